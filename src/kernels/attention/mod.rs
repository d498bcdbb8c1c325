//! Causal grouped-query attention over a packed batch, rotary embedding included.
//!
//! Shapes: `T` tokens of the batch, `q | k | v` the columns of one fused projection. Sequences lie one after the other without
//! padding; [`Segment`]s say who sees whom, so a shared prefix is stored and projected once and read by many.

mod backward;
mod fused;
mod pack;
mod plan;
mod positions;
mod problem;
mod reference;
mod shape;
mod strip;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

pub use positions::positions;
use problem::Problem;
pub use shape::AttentionShape;

use super::cpu::{contiguous, floats, gradient, output, with_floats};
use super::cuda::hosted;
use super::level::Level;
use super::rotary::Rotary;
use super::{Dtype, Kernels, Segment};
use crate::error::{Error, Result};

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
