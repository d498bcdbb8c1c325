//! Stores the conflicts re-scored with another row shown first: `in_context.parquet`.
//!
//! ```text
//! row u32, pos u32, shown u32, logprob f32, entropy f32, vanished bool     in the order of tokens.parquet
//! ```

use std::path::Path;

use polars::prelude as pl;

use super::frames::write_frames;
use crate::error::Result;

/// The name of the file in a run folder.
pub const IN_CONTEXT_FILE: &str = "in_context.parquet";

/// A conflict, re-scored with another row shown first.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct PromptedToken {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// Index of the token in the rendered sequence of its row alone.
    pub pos: u32,
    /// The row that was shown first.
    pub shown: u32,
    /// ln p of the token with the other row shown first, nats.
    pub logprob: f32,
    /// The entropy with the other row shown first, nats.
    pub entropy: f32,
    /// Whether the token is no longer a conflict.
    pub vanished: bool,
}

/// Writes the table. `provenance` identifies the run of the conflicts, and summarises the results.
pub fn write_in_context(path: &Path, tokens: &[PromptedToken], provenance: &[(String, String)]) -> Result<()> {
    let numbers =
        |name: &str, of: fn(&PromptedToken) -> u32| pl::Column::new(name.into(), tokens.iter().map(of).collect::<Vec<_>>());
    let floats =
        |name: &str, of: fn(&PromptedToken) -> f32| pl::Column::new(name.into(), tokens.iter().map(of).collect::<Vec<_>>());
    let columns = vec![
        numbers("row", |token| token.row),
        numbers("pos", |token| token.pos),
        numbers("shown", |token| token.shown),
        floats("logprob", |token| token.logprob),
        floats("entropy", |token| token.entropy),
        pl::Column::new("vanished".into(), tokens.iter().map(|token| token.vanished).collect::<Vec<_>>()),
    ];
    let frame = pl::DataFrame::new(tokens.len(), columns)?;
    write_frames(path, "in_context", frame.schema(), provenance, |writer| Ok(writer.write_batch(&frame)?))
}
