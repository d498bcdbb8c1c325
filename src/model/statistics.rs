//! What a model believed about a batch's targets: computed, or on its way from a GPU.

use std::time::{Duration, Instant};

use super::on_cuda::{Pending, Waited};
use crate::error::Result;
use crate::kernels::TokenStatistics;
use crate::kernels::matmul::Matrix;
use crate::kernels::statistics::{HeadOptions, topk_entropies};

/// What [`Model::statistics`](super::Model::statistics) gives.
pub enum Statistics<'a> {
    Ready(BatchStatistics),
    Pending(Pending, CurvesOf<'a>),
}

/// What curves are made with of hidden states.
pub struct CurvesOf<'a> {
    pub(super) head: &'a Matrix,
    pub(super) options: HeadOptions,
    pub(super) k_max: usize,
}

/// Hidden states whose logits are on a GPU at a time for their curves: they have to fit beside everything else that was reckoned with.
const CURVES_AT_A_TIME: usize = 64;

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

impl Statistics<'_> {
    /// Waits for them.
    pub fn wait(self) -> Result<BatchStatistics> {
        match self {
            Statistics::Ready(statistics) => Ok(statistics),
            Statistics::Pending(pending, CurvesOf { head: matrix, options, k_max }) => {
                let Waited { tokens, sampled, decoder, head } = pending.wait()?;
                let (began, mut curves) = (Instant::now(), Vec::new());
                let n_sampled = sampled.as_ref().map_or(0, |hidden| hidden.dims()[0]);
                for begin in (0..n_sampled).step_by(CURVES_AT_A_TIME) {
                    let some = sampled.as_ref().map(|hidden| hidden.narrow(0, begin, CURVES_AT_A_TIME.min(n_sampled - begin)));
                    if let Some(some) = some {
                        curves.extend(topk_entropies(&some?, matrix, k_max, &options)?);
                    }
                }
                Ok(BatchStatistics { tokens, curves, decoder, head: head + began.elapsed() })
            }
        }
    }
}
