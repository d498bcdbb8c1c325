//! Columns for scores that came through a server: bounds of the statistics that it does not report.
//!
//! ```text
//! entropy_lo, entropy_hi, tail_lo, tail_hi, varentropy_lo, varentropy_hi, grad_lo, grad_hi   f32, in the units of the bounded columns
//! certain                                                                                    bool: no value within the bounds changes the quadrant
//! ```
//!
//! In such tables `entropy`, `tail`, `varentropy` and `grad` are the midpoints of their bounds. `rank` is exact among the most probable tokens;
//! otherwise it is the rank that the server reports, or the smallest possible one if it reports none (SGLang).

use std::path::{Path, PathBuf};

use polars::prelude as pl;
use polars::prelude::{IntoColumn, NewChunkedArray};

use super::read::RowGroups;
use super::{Column, Quadrant};
use crate::engine::bounds::{Bounds, Range};
use crate::error::{Error, Result};

pub(super) const NAMES: [&str; 8] =
    ["entropy_lo", "entropy_hi", "tail_lo", "tail_hi", "varentropy_lo", "varentropy_hi", "grad_lo", "grad_hi"];
pub(super) const CERTAIN: &str = "certain";

type Get = fn(&Bounds) -> f32;

pub(super) fn columns(bounds: &[Bounds]) -> impl Iterator<Item = pl::Column> {
    let get: [Get; 8] = [
        |bounds| bounds.entropy.lo,
        |bounds| bounds.entropy.hi,
        |bounds| bounds.tail.lo,
        |bounds| bounds.tail.hi,
        |bounds| bounds.varentropy.lo,
        |bounds| bounds.varentropy.hi,
        |bounds| bounds.grad.lo,
        |bounds| bounds.grad.hi,
    ];
    NAMES
        .into_iter()
        .zip(get)
        .map(|(name, get)| pl::Float32Chunked::from_vec(name.into(), bounds.iter().map(get).collect()).into_column())
}

pub(super) fn fields() -> impl Iterator<Item = pl::Field> {
    let numbers = NAMES.into_iter().map(|name| pl::Field::new(name.into(), pl::DataType::Float32));
    numbers.chain([pl::Field::new(CERTAIN.into(), pl::DataType::Boolean)])
}

/// Whether the table has columns with bounds.
pub fn has_bounds(path: &Path) -> Result<bool> {
    let metadata = super::read::open(path)?;
    Ok(metadata.schema().columns().iter().any(|column| column.path_in_schema.iter().eq([NAMES[0]])))
}

fn floats<'a>(frame: &'a pl::DataFrame, name: &str) -> Result<&'a [f32]> {
    Ok(frame.column(name)?.f32()?.cont_slice()?)
}

/// Returns the bounds of each token of a frame with these columns.
fn bounds_of(frame: &pl::DataFrame) -> Result<Vec<Bounds>> {
    let mut columns = Vec::with_capacity(NAMES.len());
    for name in NAMES {
        columns.push(floats(frame, name)?);
    }
    let range = |of: usize, i: usize| Range { lo: columns[2 * of][i], hi: columns[2 * of + 1][i] };
    let bounds = |i| Bounds { entropy: range(0, i), tail: range(1, i), varentropy: range(2, i), grad: range(3, i) };
    Ok((0..frame.height()).map(bounds).collect())
}

/// Returns whether the token has the same quadrant for all entropies and tails within their bounds, and whether it may be a conflict.
pub(crate) fn certainty(logprob: f32, bounds: &Bounds, label: impl Fn(f32, f32, f32) -> Quadrant) -> (bool, bool) {
    let corners = [bounds.entropy.lo, bounds.entropy.hi]
        .map(|entropy| [bounds.tail.lo, bounds.tail.hi].map(|tail| label(logprob, entropy, tail)));
    let first = corners[0][0];
    let mut all = corners.iter().flatten();
    (all.clone().all(|corner| *corner == first), all.any(|corner| *corner == Quadrant::ConfidentConflict))
}

/// Computes the column `certain` of a frame with bounds.
pub(super) fn certain(frame: &pl::DataFrame, label: impl Fn(f32, f32, f32) -> Quadrant) -> Result<pl::Column> {
    let logprobs = floats(frame, Column::Logprob.name())?;
    let bounds = bounds_of(frame)?;
    let certain = logprobs.iter().zip(&bounds).map(|(logprob, bounds)| certainty(*logprob, bounds, &label).0);
    Ok(pl::BooleanChunked::from_iter_values(CERTAIN.into(), certain).into_column())
}

/// A token with its bounds.
#[derive(Debug, Clone, Copy)]
pub struct Bounded {
    /// ln p of the target, nats.
    pub logprob: f32,
    /// 1 + the number of tokens that are more probable than the target, as stored in the table.
    pub rank: u32,
    /// The quadrant of the midpoints of the bounds.
    pub quadrant: Quadrant,
    /// Lower and upper bounds of the statistics that the server does not report.
    pub bounds: Bounds,
}

/// Calls `each` with every token of the tables, which must have bounds and quadrants.
pub fn for_each_bounded(tables: &[PathBuf], mut each: impl FnMut(&Bounded)) -> Result<()> {
    let others = [Column::Logprob, Column::Rank, Column::Quadrant];
    let mut groups = RowGroups::of(tables, others.iter().map(|column| column.name()).chain(NAMES).collect());
    loop {
        let frames = groups.next_frames()?;
        if frames.is_empty() {
            return Ok(());
        }
        for (path, frame) in frames {
            let mut read = || -> Result<()> {
                let bounds = bounds_of(&frame)?;
                let logprobs = floats(&frame, Column::Logprob.name())?;
                let ranks = frame.column(Column::Rank.name())?.u32()?.cont_slice()?;
                let quadrants = super::read::quadrants(super::read::column_of(&frame, Column::Quadrant)?)?;
                for i in 0..frame.height() {
                    each(&Bounded { logprob: logprobs[i], rank: ranks[i], quadrant: quadrants[i], bounds: bounds[i] });
                }
                Ok(())
            };
            read().map_err(|error: Error| error.at(&path))?;
        }
    }
}
