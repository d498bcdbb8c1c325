//! The statistics of a batch's targets: computed already, or still on their way from a GPU.

use std::time::{Duration, Instant};

use super::on_cuda::{Pending, Waited};
use crate::error::Result;
use crate::kernels::TokenStatistics;
use crate::kernels::matmul::Matrix;
use crate::kernels::statistics::{HeadOptions, topk_entropies};

/// The result of [`Model::statistics`](super::Model::statistics).
pub enum Statistics<'a> {
    Ready(BatchStatistics),
    Pending(Pending, CurvesOf<'a>),
}

/// What is needed to compute curves from hidden states.
pub struct CurvesOf<'a> {
    pub(super) head: &'a Matrix,
    pub(super) options: HeadOptions,
    pub(super) k_max: usize,
}

/// The number of hidden states whose logits are on a GPU at once for their curves; they have to fit beside everything else in the
/// estimate.
const CURVES_AT_A_TIME: usize = 64;

/// The statistics of a batch's targets, and how long the decoder and the head took.
pub struct BatchStatistics {
    /// The statistics of each target.
    pub tokens: Vec<TokenStatistics>,
    /// The entropy curves of the requested targets: see [`Curves`](crate::kernels::statistics::Curves).
    pub curves: Vec<Vec<f32>>,
    /// The time spent in the decoder.
    pub decoder: Duration,
    /// The time spent in the head.
    pub head: Duration,
}

impl Statistics<'_> {
    /// Waits for the statistics.
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
