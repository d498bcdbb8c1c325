//! Causal grouped-query attention over a packed batch, rotary embedding included.
//!
//! Shapes: `T` tokens of the batch, `q | k | v` the columns of one fused projection. Sequences lie one after the other without
//! padding; [`Segment`]s say who sees whom, so a shared prefix is stored and projected once and read by many.

mod backward;
mod fused;
mod pack;
mod plan;
mod reference;
mod strip;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

use super::cpu::{contiguous, floats, gradient, output, with_floats};
use super::cuda::hosted;
use super::level::Level;
use super::rotary::Rotary;
use super::{Dtype, Kernels, Segment};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    pub heads: usize,
    /// Query heads `g * heads / kv_heads ..` read key and value head `g`.
    pub kv_heads: usize,
    pub head_dim: usize,
    /// Multiplies the scores; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token at position `i` sees position `j` only if `i - j < window`.
    pub window: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// Columns of the fused projection: all query heads, all key heads, all value heads.
    pub fn columns(&self) -> usize {
        (self.heads + 2 * self.kv_heads) * self.head_dim
    }

    /// Query heads that share one key and value head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    fn check(&self) -> Result<()> {
        if self.heads == 0 || self.kv_heads == 0 || self.head_dim == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::new(format!(
                "{} query heads of width {} cannot share {} key and value heads evenly",
                self.heads, self.head_dim, self.kv_heads
            )));
        }
        if self.window == Some(0) {
            return Err(Error::new("a window of 0 tokens lets no token see itself"));
        }
        Ok(())
    }
}

/// `qkv [T, (heads + 2 kv_heads) * head_dim] -> [T, heads * head_dim]`, with its gradient.
///
/// For each token and head `softmax(scale * rot(q) . rot(k)) v` over the tokens it sees: all of its segment's `context`, then its
/// own segment up to itself; its position is the number of tokens before it. Never holds a tokens-by-tokens matrix when fused,
/// and a token's result depends on nothing but the tokens it sees, to the last bit.
pub fn attention(
    qkv: &Tensor,
    segments: &Arc<[Segment]>,
    rotary: &Rotary,
    shape: &AttentionShape,
    kernels: Kernels,
) -> Result<Tensor> {
    shape.check()?;
    let (tokens, columns) = qkv.dims2()?;
    if columns != shape.columns() {
        return Err(Error::new(format!("the fused projection has {columns} columns, expected {}", shape.columns())));
    }
    let positions = positions(segments, tokens)?;
    rotary.check(shape.head_dim, &positions)?;
    match kernels {
        Kernels::Reference => reference::attention(qkv, segments, &positions, rotary, shape),
        Kernels::Fused => {
            let (segments, rotary, shape) = (segments.clone(), rotary.clone(), *shape);
            let op = Attention { segments, positions, rotary, shape, level: Level::current() };
            Ok(contiguous(qkv)?.apply_op1(op)?)
        }
        Kernels::Cuda => hosted::attention(qkv, segments, &positions, rotary, shape, Dtype::F32),
    }
}

/// The gradient of [`attention`] with respect to `qkv`, from its output `y` and that one's gradient `dy`.
pub fn attention_backward(
    qkv: &Tensor,
    segments: &Arc<[Segment]>,
    rotary: &Rotary,
    shape: &AttentionShape,
    y: &Tensor,
    dy: &Tensor,
) -> Result<Tensor> {
    let positions = positions(segments, qkv.dims2()?.0)?;
    let op = Attention { segments: segments.clone(), positions, rotary: rotary.clone(), shape: *shape, level: Level::current() };
    Ok(op.backward(qkv, y, dy)?)
}

struct Attention {
    segments: Arc<[Segment]>,
    positions: Vec<usize>,
    rotary: Rotary,
    shape: AttentionShape,
    level: Level,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let values = fused::attention(&self.problem(floats(qkv, layout)?));
        Ok(output(values, (self.positions.len(), self.shape.heads * self.shape.head_dim)))
    }

    fn bwd(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.backward(qkv, y, dy)?))
    }
}

impl Attention {
    fn backward(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let values =
            with_floats(qkv, |qkv| with_floats(y, |y| with_floats(dy, |dy| backward::gradient(&self.problem(qkv), y, dy))))???;
        gradient(values, qkv)
    }

    fn problem<'a>(&'a self, qkv: &'a [f32]) -> Problem<'a> {
        let Attention { segments, positions, rotary, shape, level } = self;
        Problem { qkv, segments, positions, rotary, shape, level: *level }
    }
}

/// What the fused kernels are given; everything has been checked.
struct Problem<'a> {
    qkv: &'a [f32],
    segments: &'a [Segment],
    positions: &'a [usize],
    rotary: &'a Rotary,
    shape: &'a AttentionShape,
    level: Level,
}

impl<'a> Problem<'a> {
    /// One query head of one token.
    #[inline(always)]
    fn query(&self, token: usize, head: usize) -> &'a [f32] {
        let AttentionShape { head_dim, .. } = *self.shape;
        &self.qkv[token * self.shape.columns() + head * head_dim..][..head_dim]
    }
}

/// Each token's position in its sequence. Refuses segments that do not tile `0..tokens` or that look ahead.
pub fn positions(segments: &[Segment], tokens: usize) -> Result<Vec<usize>> {
    let mut positions = Vec::with_capacity(tokens);
    for segment in segments {
        if segment.tokens.start != positions.len() || segment.tokens.end < segment.tokens.start {
            return Err(Error::new(format!(
                "segment {:?} does not start at token {}, where the last one ended",
                segment.tokens,
                positions.len()
            )));
        }
        let start = segment.tokens.start;
        if let Some(range) = segment.context.iter().find(|range| range.end < range.start || range.end > start) {
            return Err(Error::new(format!(
                "segment {:?} has {range:?} as context, which does not lie before it",
                segment.tokens
            )));
        }
        let before: usize = segment.context.iter().map(|range| range.len()).sum();
        positions.extend((0..segment.tokens.len()).map(|i| before + i));
    }
    if positions.len() != tokens {
        return Err(Error::new(format!("the segments cover {} tokens of a batch of {tokens}", positions.len())));
    }
    Ok(positions)
}
