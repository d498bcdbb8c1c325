//! Attention by its formula, one segment at a time: gathers the rows that a segment sees and stores its whole score matrix.

use candle_core::{D, DType, Tensor};

use super::AttentionShape;
use crate::error::Result;
use crate::kernels::Segment;
use crate::kernels::rotary::Rotary;

/// Differentiable on any device; computes in f32 and returns the type of `qkv`.
pub(super) fn attention(
    qkv: &Tensor,
    segments: &[Segment],
    positions: &[usize],
    rotary: &Rotary,
    shape: &AttentionShape,
    sinks: Option<&Tensor>,
) -> Result<Tensor> {
    let tokens = qkv.dim(0)?;
    let AttentionShape { heads, kv_heads, head_dim, .. } = *shape;
    let per_head = qkv.to_dtype(DType::F32)?.reshape((tokens, heads + 2 * kv_heads, head_dim))?;
    let q = rotary.rotate(&per_head.narrow(1, 0, heads)?, positions)?;
    let k = rotary.rotate(&per_head.narrow(1, heads, kv_heads)?, positions)?;
    let v = per_head.narrow(1, heads + kv_heads, kv_heads)?;

    let mut outputs = Vec::with_capacity(segments.len());
    for segment in segments.iter().filter(|segment| !segment.tokens.is_empty()) {
        let own = &segment.tokens;
        let rows = |x: &Tensor| -> Result<Tensor> {
            let seen = segment.context.iter().filter(|range| !range.is_empty()).chain([own]);
            let parts = seen.map(|range| x.narrow(0, range.start, range.len())).collect::<Result<Vec<_>, _>>()?;
            Ok(Tensor::cat(&parts, 0)?.transpose(0, 1)?.contiguous()?) // [kv_heads, keys, head_dim]
        };
        let (keys, values) = (rows(&k)?, rows(&v)?);
        let n_keys = keys.dim(1)?;
        let group = heads / kv_heads;
        let queries = q.narrow(0, own.start, own.len())?.transpose(0, 1)?.contiguous()?; // [heads, tokens, head_dim]
        let queries = queries.reshape((kv_heads, group * own.len(), head_dim))?;

        let mut scores = (queries.matmul(&keys.t()?)? * f64::from(shape.scale))?;
        if let Some(cap) = shape.softcap {
            scores = ((scores / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let mask = Tensor::from_vec(mask(own.len(), n_keys, shape.window), (1, 1, own.len(), n_keys), qkv.device())?;
        let scores = scores.reshape((kv_heads, group, own.len(), n_keys))?.broadcast_add(&mask)?;
        // The maximum cancels in the quotient, so its gradient may be dropped.
        let mut maxima = scores.max_keepdim(D::Minus1)?;
        let sinks = sinks.map(|sinks| sinks.reshape((kv_heads, group, 1, 1))?.broadcast_as(maxima.shape())).transpose()?;
        if let Some(sinks) = &sinks {
            maxima = maxima.maximum(sinks)?;
        }
        let maxima = maxima.detach();
        let exponentials = scores.broadcast_sub(&maxima)?.exp()?;
        let mut sums = exponentials.sum_keepdim(D::Minus1)?;
        if let Some(sinks) = &sinks {
            sums = (sums + (sinks - maxima)?.exp()?)?;
        }
        let probabilities = exponentials.broadcast_div(&sums)?;
        let probabilities = probabilities.reshape((kv_heads, group * own.len(), n_keys))?;
        let output = probabilities.matmul(&values)?.reshape((heads, own.len(), head_dim))?;
        outputs.push(output.transpose(0, 1)?.reshape((own.len(), heads * head_dim))?);
    }
    if outputs.is_empty() {
        return Ok(Tensor::zeros((0, heads * head_dim), qkv.dtype(), qkv.device())?);
    }
    Ok(Tensor::cat(&outputs, 0)?.to_dtype(qkv.dtype())?)
}

/// The mask `[queries, keys]` for the last `queries` of `keys` tokens: 0 for visible keys, -infinity for the others.
fn mask(queries: usize, keys: usize, window: Option<usize>) -> Vec<f32> {
    let window = window.unwrap_or(keys);
    let visible = |i: usize, j: usize| j <= i && i - j < window;
    (keys - queries..keys).flat_map(|i| (0..keys).map(move |j| if visible(i, j) { 0.0 } else { f32::NEG_INFINITY })).collect()
}

#[cfg(test)]
mod tests {
    use super::mask;

    #[test]
    fn the_mask_is_causal_and_windowed() {
        const X: f32 = f32::NEG_INFINITY;
        assert_eq!(mask(2, 4, None), [0.0, 0.0, 0.0, X, 0.0, 0.0, 0.0, 0.0]);
        assert_eq!(mask(2, 4, Some(2)), [X, 0.0, 0.0, X, X, X, 0.0, 0.0]);
    }
}
