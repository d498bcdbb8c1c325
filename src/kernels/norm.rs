//! Root-mean-square normalisation over the last dimension of `[T, D]`, and over each head's slice of a fused `[T, q|k|v]`.
//!
//! `y = x / sqrt(mean(x^2) + eps) * weight`. A family whose weight is stored as an offset from 1 (Gemma) adds the 1 when it
//! loads the weight. The arithmetic is f32 whatever the tensor's type (in the reference; the fused kernel takes nothing else).

use candle_core::{DType, Tensor};

use super::Kernels;
use crate::error::{Error, Result};

/// `x [T, D], weight [D] -> [T, D]`, with gradients for both.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kernels: Kernels) -> Result<Tensor> {
    let width = x.dims2()?.1;
    check_weight("norm", weight, width)?;
    match kernels {
        Kernels::Reference | Kernels::Fused => reference(x, weight, eps),
    }
}

/// Normalises each query and each key head of `qkv [T, (heads + 2 kv_heads) * head_dim]` (columns q|k|v) on its own, as
/// Qwen 3 does before the rotary embedding; the values pass through. `q_weight` and `k_weight` are `[head_dim]`.
pub fn qk_norm(
    qkv: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    heads: usize,
    kv_heads: usize,
    eps: f64,
    kernels: Kernels,
) -> Result<Tensor> {
    let (tokens, columns) = qkv.dims2()?;
    let all_heads = heads + 2 * kv_heads;
    if all_heads == 0 || columns % all_heads != 0 {
        return Err(Error::new(format!(
            "{columns} columns do not split into {heads} query, {kv_heads} key and {kv_heads} value heads"
        )));
    }
    let head_dim = columns / all_heads;
    check_weight("query norm", q_weight, head_dim)?;
    check_weight("key norm", k_weight, head_dim)?;
    match kernels {
        Kernels::Reference | Kernels::Fused => {
            let per_head = qkv.reshape((tokens, all_heads, head_dim))?;
            let q = reference(&per_head.narrow(1, 0, heads)?, q_weight, eps)?;
            let k = reference(&per_head.narrow(1, heads, kv_heads)?, k_weight, eps)?;
            let v = per_head.narrow(1, heads + kv_heads, kv_heads)?;
            Ok(Tensor::cat(&[q, k, v], 1)?.reshape((tokens, columns))?)
        }
    }
}

fn check_weight(what: &str, weight: &Tensor, width: usize) -> Result<()> {
    if weight.dims() != [width] {
        return Err(Error::new(format!("the {what} weight has shape {:?}, expected [{width}]", weight.dims())));
    }
    Ok(())
}

/// Over the last dimension, whatever stands before it.
fn reference(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let mean_square = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    let y = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    Ok(y.to_dtype(dtype)?)
}
