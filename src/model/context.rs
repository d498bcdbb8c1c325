//! The tokens that a block's input attends to: those of the same batch, or those in a cache.

use crate::error::Result;
use crate::kernels::attention::{Stretch, positions, positions_of};
use crate::model::Batch;
use crate::model::cache::Kept;

pub(super) enum Context<'a> {
    /// Other tokens of the same batch.
    Batch(&'a Batch),
    /// The layer's cache of the sequences, to which the new tokens are added.
    Cache(&'a [Stretch], &'a mut Kept),
}

impl Context<'_> {
    /// The position of each of `tokens` tokens in its sequence.
    pub(super) fn positions(&self, tokens: usize) -> Result<Vec<usize>> {
        match self {
            Context::Batch(batch) => positions(&batch.segments, tokens),
            Context::Cache(stretches, _) => positions_of(stretches, tokens),
        }
    }
}
