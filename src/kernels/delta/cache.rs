//! The state of the gated delta rule for sequences being generated: one state per value head, and the last rows for the convolution.
//!
//! A state summarises all earlier tokens. A sequence can therefore only continue from its end, and a beginning that two sequences share
//! is processed for each of them.

use super::shape::DeltaShape;
use crate::error::{Error, Result};
use crate::kernels::attention::{Stretch, positions_of};

/// The cache of one layer.
pub struct DeltaCache {
    shape: DeltaShape,
    sequences: Vec<Memory>,
}

/// The cache of one layer for one sequence.
#[derive(Default)]
pub(super) struct Memory {
    /// The number of tokens read so far.
    position: usize,
    /// The states of each key head, [`DeltaShape::state_len`] numbers each.
    pub states: Vec<Vec<f32>>,
    /// The last rows of the projections: as many as the convolution reads before the current one.
    pub last: Vec<f32>,
}

impl DeltaCache {
    /// A cache for `sequences` concurrent sequences; memory is allocated as they begin.
    pub fn new(shape: DeltaShape, sequences: usize) -> DeltaCache {
        DeltaCache { shape, sequences: (0..sequences).map(|_| Memory::default()).collect() }
    }

    /// The memory that a sequence takes, in bytes.
    pub fn sequence_bytes(shape: &DeltaShape) -> usize {
        (shape.key_heads * shape.state_len() + (shape.kernel - 1) * shape.columns()) * size_of::<f32>()
    }

    pub(super) fn shape(&self) -> DeltaShape {
        self.shape
    }

    /// Takes the memories of the stretches' sequences, after checking that each is at the start of its stretch.
    pub(super) fn take(&mut self, stretches: &[Stretch], tokens: usize) -> Result<Vec<Memory>> {
        positions_of(stretches, tokens)?;
        let mut seen = vec![false; self.sequences.len()];
        for Stretch { sequence, position, .. } in stretches {
            let (Some(memory), Some(seen)) = (self.sequences.get(*sequence), seen.get_mut(*sequence)) else {
                return Err(Error::new(format!("the cache has no room for sequence {sequence}")));
            };
            if std::mem::replace(seen, true) {
                return Err(Error::new(format!("two stretches go on with sequence {sequence}")));
            }
            if ![0, memory.position].contains(position) {
                return Err(Error::new(format!(
                    "sequence {sequence} goes on at token {position}; its states stand behind token {}",
                    memory.position
                )));
            }
        }
        let DeltaShape { key_heads, .. } = self.shape;
        let take = |Stretch { sequence, position, .. }: &Stretch| match position {
            0 => Memory { states: vec![vec![0.0; self.shape.state_len()]; key_heads], ..Memory::default() },
            _ => std::mem::take(&mut self.sequences[*sequence]),
        };
        Ok(stretches.iter().map(take).collect())
    }

    pub(super) fn put_back(&mut self, stretches: &[Stretch], memories: Vec<Memory>) {
        stretches.iter().zip(memories).for_each(|(stretch, memory)| self.sequences[stretch.sequence] = memory);
    }
}

impl Memory {
    /// Records that `rows [L, columns]` have been read.
    pub(super) fn read(&mut self, rows: &[f32], columns: usize, kernel: usize) {
        self.position += rows.len() / columns;
        self.last.extend_from_slice(rows);
        self.last.drain(..self.last.len().saturating_sub((kernel - 1) * columns));
    }
}
