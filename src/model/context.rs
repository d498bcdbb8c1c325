//! What the tokens that go through a block attend to.

use crate::error::Result;
use crate::kernels::attention::{Stretch, positions, positions_of};
use crate::model::Batch;
use crate::model::cache::Kept;

pub(super) enum Context<'a> {
    /// Others of their batch.
    Batch(&'a Batch),
    /// What this layer has kept of their sequences; what they bring is added to it.
    Cache(&'a [Stretch], &'a mut Kept),
}

impl Context<'_> {
    /// Where each of so many tokens stands in its sequence.
    pub(super) fn positions(&self, tokens: usize) -> Result<Vec<usize>> {
        match self {
            Context::Batch(batch) => positions(&batch.segments, tokens),
            Context::Cache(stretches, _) => positions_of(stretches, tokens),
        }
    }
}
