//! Finished numbers -> terminal, Markdown, JSON.

pub mod gates;
pub mod planted;
pub mod summary;
