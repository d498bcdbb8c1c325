//! The head: multiplies hidden states with the vocabulary matrix and computes the statistics of each target token.
//!
//! Shapes: `N` tokens, `D` width, `V` vocabulary; `hidden_nd`, `head_vd`, `logits_nv = hidden_nd head_vd^T`. Logarithms are natural.
//! The plain expression is [`statistics_of_logits`] on every row of `logits_nv`. [`Kernels::Fused`](super::Kernels) never stores
//! `logits_nv`: it computes a tile, folds it into running sums while it is in the cache, and discards it, as in Cut Cross-Entropy
//! (arXiv 2411.09009), here with more statistics. [`head_gradient`] does the same for training, with the logits of a few hundred
//! tokens in memory at a time.
//!
//! ```text
//! reference.rs    the definitions, for a row of logits
//! fused.rs        tiles of logits, folded into each row's state by running.rs
//! gradient.rs     the head of a training step
//! divergence.rs   two models at one token
//! options.rs      the options; check.rs checks that the arguments fit together
//! ```

mod check;
mod divergence;
mod fused;
mod gradient;
mod options;
mod reference;
mod running;

use candle_core::Tensor;

use check::{check, check_hidden};
pub use divergence::Divergence;
pub use gradient::{HeadGradient, TokenLoss, bent, chunk_rows, divergences, head_gradient, logits};
pub use options::{Curves, HeadOptions};
pub use reference::statistics_of_logits;

use super::TokenStatistics;
use super::cpu::{contiguous, with_floats};
use super::cuda::{self, hosted};
use super::level::Level;
use super::matmul::Matrix;
use crate::error::{Error, Result};

/// The statistics of `targets[n]` at `hidden_nd[n]`: `[N, D]` f32 in, `N` statistics out.
pub fn head_statistics(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    targets: &[u32],
    options: &HeadOptions,
) -> Result<Vec<TokenStatistics>> {
    Ok(head_statistics_and_curves(hidden_nd, head_vd, targets, options, Curves::default())?.0)
}

/// Like [`head_statistics`], with the entropies, in nats, that `curves` requests, `[curves.of.len()][k_max]`; if `K` exceeds the
/// vocabulary, the whole vocabulary counts. The fused kernels compute both in one pass.
pub fn head_statistics_and_curves(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    targets: &[u32],
    options: &HeadOptions,
    curves: Curves,
) -> Result<(Vec<TokenStatistics>, Vec<Vec<f32>>)> {
    check(hidden_nd, head_vd, targets, options)?;
    if let Some(target) = curves.of.iter().find(|&&target| target as usize >= targets.len()) {
        return Err(Error::new(format!("the curve of target {target} was asked for, of {} targets", targets.len())));
    }
    if let Some(panels) = head_vd.panels() {
        let run = |hidden_nd: &[f32]| fused::head_statistics(Level::current(), hidden_nd, &panels, targets, options, curves);
        return Ok(with_floats(&contiguous(hidden_nd)?, run)?);
    }
    let statistics = match head_vd.on_device() {
        Some(head_vd) => hosted::head_statistics(hidden_nd, head_vd, targets, options)?,
        None => reference::head_statistics(hidden_nd, head_vd, targets, options)?,
    };
    if curves.of.is_empty() {
        return Ok((statistics, Vec::new()));
    }
    let of = Tensor::new(curves.of, hidden_nd.device())?;
    Ok((statistics, topk_entropies(&hidden_nd.index_select(&of, 0)?, head_vd, curves.k_max, options)?))
}

/// The entropy, in nats, of the softmax over the `K` largest logits, for `K = 1 ..= k_max`, of each token: `[N][k_max]`. If `K`
/// exceeds the vocabulary, the whole vocabulary counts. For small samples, because it stores whole rows of logits.
pub fn topk_entropies(hidden_nd: &Tensor, head_vd: &Matrix, k_max: usize, options: &HeadOptions) -> Result<Vec<Vec<f32>>> {
    check_hidden(hidden_nd, head_vd)?;
    if let Some(head_vd) = head_vd.on_device()
        && cuda::Device::get()?.can_list(head_vd.out_features(), k_max)
    {
        let of_token = |logits: Vec<f32>| reference::topk_entropies_up_to(&logits, k_max);
        return Ok(hosted::top_logits(hidden_nd, head_vd, k_max, options.softcap)?.into_iter().map(of_token).collect());
    }
    reference::topk_entropies(hidden_nd, head_vd, k_max, options)
}

#[cfg(test)]
mod tests;
