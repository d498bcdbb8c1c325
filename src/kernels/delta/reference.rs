//! The gated delta rule by its formulas, as tensor operations, one sequence and one token at a time.

use candle_core::{DType, Tensor};

use super::head::EPSILON;
use super::plan::sequences;
use super::shape::DeltaShape;
use super::weights::DeltaWeights;
use crate::error::Result;
use crate::kernels::Segment;

/// Differentiable on any device; computes in f32 and returns the type of `x`.
pub(super) fn delta(x: &Tensor, weights: &DeltaWeights, segments: &[Segment], shape: DeltaShape) -> Result<Tensor> {
    let (tokens, _) = x.dims2()?;
    let DeltaShape { key_heads, value_heads, key_dim, value_dim, kernel, .. } = shape;
    let wide = x.to_dtype(DType::F32)?;
    let mut outputs = Vec::new();
    for sequence in sequences(segments) {
        let rows: Vec<u32> = sequence.rows.iter().map(|&row| row as u32).collect();
        let len = rows.len();
        let x = wide.index_select(&Tensor::new(rows, x.device())?, 0)?;
        let columns = |of_head: &dyn Fn(usize) -> std::ops::Range<usize>| -> Result<Tensor> {
            let parts = (0..key_heads).map(|head| x.narrow(1, of_head(head).start, of_head(head).len()));
            Ok(Tensor::cat(&parts.collect::<Result<Vec<_>, _>>()?, 1)?)
        };
        let qkv = (0..3).map(|part| columns(&|head| shape.qkv(head, false)[part].clone())).collect::<Result<Vec<_>>>()?;
        let qkv = Tensor::cat(&qkv, 1)?;
        let [z, b, a] = [0, 1, 2].map(|part| columns(&|head| shape.zba(head)[part].clone()));
        let (z, b, a) = (z?, b?, a?);

        let shifted = match kernel - 1 {
            0 => qkv,
            before => Tensor::cat(&[Tensor::zeros((before, shape.channels()), DType::F32, x.device())?, qkv], 0)?,
        };
        let tap = |tap: usize| -> Result<Tensor> {
            let weight = weights.convolution.narrow(1, tap, 1)?.t()?;
            Ok(shifted.narrow(0, tap, len)?.broadcast_mul(&weight)?)
        };
        let qkv = (1..kernel).try_fold(tap(0)?, |sum, n| Ok::<_, crate::error::Error>((sum + tap(n)?)?))?.silu()?;
        let keys = key_heads * key_dim;
        let of_keys = |first: usize| -> Result<Tensor> {
            let x = qkv.narrow(1, first, keys)?.reshape((len, key_heads, key_dim))?;
            let squares = (x.sqr()?.sum_keepdim(2)? + f64::from(EPSILON))?;
            let x = x.broadcast_div(&squares.sqrt()?)?.unsqueeze(2)?;
            let group = value_heads / key_heads;
            Ok(x.broadcast_as((len, key_heads, group, key_dim))?.reshape((len, value_heads, key_dim, 1))?)
        };
        let queries = (of_keys(0)? / (key_dim as f64).sqrt())?;
        let keys_of = of_keys(keys)?;
        let values = qkv.narrow(1, 2 * keys, value_heads * value_dim)?.reshape((len, value_heads, 1, value_dim))?;
        let beta = sigmoid(&b)?.reshape((len, value_heads, 1, 1))?;
        let rates = weights.a_log.exp()?;
        let alpha = softplus(&a.broadcast_add(&weights.dt_bias)?)?.broadcast_mul(&rates)?.neg()?.exp()?;
        let alpha = alpha.reshape((len, value_heads, 1, 1))?;

        let mut state = Tensor::zeros((value_heads, key_dim, value_dim), DType::F32, x.device())?;
        let mut reads = Vec::with_capacity(len);
        for t in 0..len {
            let key = keys_of.get(t)?;
            let kept = state.broadcast_mul(&alpha.get(t)?)?;
            let error = (values.get(t)? - kept.broadcast_mul(&key)?.sum_keepdim(1)?)?;
            state = (kept + key.broadcast_mul(&error.broadcast_mul(&beta.get(t)?)?)?)?;
            reads.push(state.broadcast_mul(&queries.get(t)?)?.sum(1)?);
        }
        let reads = Tensor::stack(&reads, 0)?;
        let both = Tensor::cat(&[z.reshape((len, value_heads, value_dim))?, reads], 2)?;
        outputs
            .push(both.narrow(0, sequence.before, len - sequence.before)?.reshape((len - sequence.before, 2 * shape.width()))?);
    }
    if outputs.is_empty() {
        return Ok(Tensor::zeros((tokens, 2 * shape.width()), x.dtype(), x.device())?);
    }
    Ok(Tensor::cat(&outputs, 0)?.to_dtype(x.dtype())?)
}

fn sigmoid(x: &Tensor) -> Result<Tensor> {
    Ok((x.neg()?.exp()? + 1.0)?.recip()?)
}

fn softplus(x: &Tensor) -> Result<Tensor> {
    Ok((x.relu()? + (x.abs()?.neg()?.exp()? + 1.0)?.log()?)?)
}
