//! What a model believed about a batch's targets: computed, or on its way from a GPU.

use std::time::Duration;

use super::on_cuda::Pending;
use crate::error::Result;
use crate::kernels::TokenStatistics;

/// What [`Model::statistics`](super::Model::statistics) gives.
pub enum Statistics {
    Ready(BatchStatistics),
    Pending(Pending),
}

/// The statistics of a batch's targets, and how long the decoder and the head took.
pub struct BatchStatistics {
    /// What the model believed about each target.
    pub tokens: Vec<TokenStatistics>,
    /// The entropies of the targets that they were asked for: see [`Curves`](crate::kernels::statistics::Curves).
    pub curves: Vec<Vec<f32>>,
    /// Time in the decoder.
    pub decoder: Duration,
    /// Time in the head.
    pub head: Duration,
}

impl Statistics {
    /// Waits for them.
    pub fn wait(self) -> Result<BatchStatistics> {
        match self {
            Statistics::Ready(statistics) => Ok(statistics),
            Statistics::Pending(pending) => {
                let (tokens, decoder, head) = pending.wait()?;
                Ok(BatchStatistics { tokens, curves: Vec::new(), decoder, head })
            }
        }
    }
}
