//! Attention sinks: one logit per head that takes a share of every softmax and has no value, so that a head may attend to nothing.
//!
//! In the forward pass a row's running softmax starts with the sink (fused.rs). In the backward pass the gradients of queries, keys and
//! values have the same formulas, with the sink included in the row's sum (backward.rs): a weight's gradient is `dp - dy . y`, and the
//! sink's `dp` is 0. The sink's own gradient is therefore the sum over the tokens of `p_sink (0 - dy . y)`.

use candle_core::Tensor;
use rayon::prelude::*;

use super::fused::Running;
use super::shape::AttentionShape;
use crate::error::{Error, Result};

/// The logits `[heads]`, checked.
pub(super) fn logits(sinks: &Tensor, shape: &AttentionShape) -> Result<Vec<f32>> {
    let logits = sinks.to_dtype(candle_core::DType::F32)?.flatten_all()?.to_vec1::<f32>()?;
    if logits.len() != shape.heads {
        return Err(Error::new(format!("expected an attention sink for each of {} heads, found {}", shape.heads, logits.len())));
    }
    match logits.iter().position(|logit| !logit.is_finite()) {
        None => Ok(logits),
        Some(head) => Err(Error::new(format!("the attention sink of head {head} is {}; expected a finite number", logits[head]))
            .cure("The weights are damaged, or overflow: check the model file.")),
    }
}

/// The gradient of the logits `[heads]`, given each row's softmax `[T, heads]`, the output `y [T, heads * head_dim]` and its gradient.
/// Sums the tokens in order, so the number of threads changes no bit.
pub(super) fn gradient(logits: &[f32], softmaxes: &[Running], y: &[f32], dy: &[f32]) -> Vec<f32> {
    let heads = logits.len();
    let head_dim = y.len() / softmaxes.len().max(1);
    let of_head = |head: usize| {
        let of_row = |row: usize| {
            let Running { maximum, sum } = softmaxes[row];
            let of_row = row * head_dim..(row + 1) * head_dim;
            let dot: f32 = y[of_row.clone()].iter().zip(&dy[of_row]).map(|(y, dy)| y * dy).sum();
            -f64::from((logits[head] - maximum).exp() / sum * dot)
        };
        (head..softmaxes.len()).step_by(heads).map(of_row).sum::<f64>() as f32
    };
    (0..heads).into_par_iter().map(of_head).collect()
}
