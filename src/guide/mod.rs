//! How to use the program, page by page: what the README leaves out.
//!
//! The pages are Markdown files beside this one, so that they can be read in the repository as well. Tests keep their tables true
//! and parse every command in them.

#[doc = include_str!("data.md")]
pub mod data {}

#[doc = include_str!("models.md")]
pub mod models {}

#[doc = include_str!("reading.md")]
pub mod reading {}

#[doc = include_str!("deciding.md")]
pub mod deciding {}

#[doc = include_str!("rollouts.md")]
pub mod rollouts {}

#[doc = include_str!("evaluation.md")]
pub mod evaluation {}

#[doc = include_str!("training.md")]
pub mod training {}

#[doc = include_str!("remote.md")]
pub mod remote {}

#[doc = include_str!("speed.md")]
pub mod speed {}
