//! Finished numbers -> terminal, Markdown, JSON.

pub mod gates;
pub mod summary;
