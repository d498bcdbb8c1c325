//! Stores the effect of training on each row: `learnt.parquet`.
//!
//! ```text
//! row u32, tokens u32, change f32, low f32, high f32, nats f32, verdict str     changes of -ln p, after minus before; low and high may be absent
//! ```

use std::path::Path;

use polars::prelude as pl;

use super::frames::{text_column, write_frames};
use crate::error::Result;

/// The name of the file in the folder of a comparison.
pub const LEARNT_FILE: &str = "learnt.parquet";

/// A row that is in both of two runs.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct LearntRow<'a> {
    /// The row, numbered over the whole input.
    pub row: u32,
    /// The number of tokens that both runs have.
    pub tokens: u32,
    /// Mean change of -ln p over the tokens, after minus before, nats: negative if the loss fell.
    pub change: f32,
    /// The 95 % interval of `change`; absent for a single token, and if all tokens changed equally.
    pub ci95: Option<[f32; 2]>,
    /// The sum of the changes, nats.
    pub nats: f32,
    /// Helped, wasted or hurt; empty if there is no interval.
    pub verdict: &'a str,
}

/// Writes the table. `provenance` identifies the two runs.
pub fn write_learnt(path: &Path, rows: &[LearntRow], provenance: &[(String, String)]) -> Result<()> {
    let floats = |name: &str, of: fn(&LearntRow) -> f32| pl::Column::new(name.into(), rows.iter().map(of).collect::<Vec<_>>());
    let ends = |name: &str, end: usize| {
        pl::Column::new(name.into(), rows.iter().map(|row| row.ci95.map(|ends| ends[end])).collect::<Vec<_>>())
    };
    let columns = vec![
        pl::Column::new("row".into(), rows.iter().map(|row| row.row).collect::<Vec<_>>()),
        pl::Column::new("tokens".into(), rows.iter().map(|row| row.tokens).collect::<Vec<_>>()),
        floats("change", |row| row.change),
        ends("low", 0),
        ends("high", 1),
        floats("nats", |row| row.nats),
        text_column("verdict", rows.iter().map(|row| row.verdict))?,
    ];
    let frame = pl::DataFrame::new(rows.len(), columns)?;
    write_frames(path, "learnt", frame.schema(), provenance, |writer| Ok(writer.write_batch(&frame)?))
}
