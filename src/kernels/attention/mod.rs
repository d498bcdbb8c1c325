//! Causal grouped-query attention over a packed batch, rotary embedding included.
//!
//! Shapes: `T` tokens of the batch, `q | k | v` the columns of one fused projection. Sequences lie one after the other without
//! padding; [`Segment`]s say who sees whom, so a shared prefix is stored and projected once and read by many.
//!
//! ```text
//! reference.rs    the formula, one segment after the other
//! plan.rs         which keys each segment sees; positions.rs where its tokens stand; shape.rs heads; sinks.rs sinks
//! pack.rs         keys and values -> the order in which tiles read them, held by packed.rs
//! fused.rs        rotary embedding, scores, softmax and values over tiles of keys; problem.rs one call; backward.rs its gradient
//! strip.rs        a strip of queries against a tile of keys, by registers; arithmetic.rs what it is written over
//! factors.rs      what is multiplied: floats.rs f32, dots.rs pairs of bf16, tiles.rs pairs of bf16 by AMX
//! cache.rs        attention over the keys and values that earlier calls have left
//! ```

mod arithmetic;
mod backward;
mod cache;
#[cfg(target_arch = "x86_64")]
mod dots;
mod factors;
mod floats;
mod fused;
mod pack;
mod packed;
mod plan;
mod positions;
mod problem;
mod reference;
mod shape;
mod sinks;
mod strip;
#[cfg(test)]
mod tests;
#[cfg(target_arch = "x86_64")]
mod tiles;

use std::sync::{Arc, OnceLock};

use candle_core::{CpuStorage, CustomOp1, Layout, Shape, Tensor};

pub use cache::{LayerCache, PAGE, Stretch, check_pages, positions_of};
use factors::Factors;
use fused::Running;
pub use positions::positions;
use problem::Problem;
pub use shape::AttentionShape;

use super::cpu::{contiguous, floats, gradient, output, with_floats};
use super::cuda::hosted;
use super::level::Level;
use super::rotary::Rotary;
use super::{Dtype, Kernels, Segment, Stored};
use crate::error::{Error, Result};

/// How the heads of a layer attend, whatever the tokens are.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// How many there are, and which keys they see.
    pub shape: &'a AttentionShape,
    /// Turns queries and keys by their positions.
    pub rotary: &'a Rotary,
    /// `[heads]`: a logit for each head that takes a share of every softmax and has no value (arXiv 2309.17453; gpt-oss).
    pub sinks: Option<&'a Tensor>,
    /// With [`Dtype::Bf16`] the fused kernels round the factors of both products to bf16 at the levels that multiply those faster.
    pub dtype: Dtype,
}

/// What the heads have read, `[T, heads * head_dim]`, and what the backward pass can use beside it.
#[derive(Debug, Clone)]
pub struct Attended {
    /// The mean of the values that each token sees, weighed by its softmax.
    pub read: Tensor,
    /// Kept by the kernels that can use them again.
    pub softmaxes: Softmaxes,
}

/// Each row's softmax, `[T, heads]`, which [`attention_backward`] would compute again: eight bytes a row and head. Empty where the kernels
/// that ran keep none.
#[derive(Debug, Clone, Default)]
pub struct Softmaxes(Arc<OnceLock<Vec<Running>>>);

impl Softmaxes {
    /// The memory that they take.
    pub fn bytes(&self) -> usize {
        self.0.get().map_or(0, |rows| size_of_val(rows.as_slice()))
    }
}

/// `qkv [T, (heads + 2 kv_heads) * head_dim] -> [T, heads * head_dim]`, with its gradient.
///
/// For each token and head `softmax(scale * rot(q) . rot(k)) v` over the tokens it sees: all of its segment's `context`, then its
/// own segment up to itself; its position is the number of tokens before it. Never holds a tokens-by-tokens matrix when fused,
/// and a token's result depends on nothing but the tokens it sees, to the last bit.
///
/// The sinks' gradient is that of [`attention_backward`]: candle's graph leads to it through the reference alone.
pub fn attention(qkv: &Tensor, segments: &Arc<[Segment]>, heads: &Heads, kernels: Kernels) -> Result<Attended> {
    let Heads { shape, rotary, sinks, dtype } = *heads;
    let (tokens, logits) = checked(qkv, heads)?;
    let softmaxes = Softmaxes::default();
    let positions = positions(segments, tokens)?;
    rotary.check(shape.head_dim, &positions)?;
    let read = match kernels {
        Kernels::Reference => reference::attention(qkv, segments, &positions, rotary, shape, sinks)?,
        Kernels::Fused => {
            let (segments, rotary, shape) = (segments.clone(), rotary.clone(), *shape);
            let (level, softmaxes) = (Level::current(), softmaxes.clone());
            let factors = Factors::of(level, dtype);
            let op = Attention { segments, positions, rotary, shape, sinks: logits, level, factors, softmaxes };
            contiguous(qkv)?.apply_op1(op)?
        }
        Kernels::Cuda => hosted::attention(qkv, segments, &positions, rotary, shape, logits.as_deref(), Stored::F32)?,
    };
    Ok(Attended { read, softmaxes })
}

/// As [`attention`], for tokens that go on with sequences whose keys and values `cache` holds; their own are added to it. To the bit what
/// [`attention`] gives the same tokens within their whole sequences. Only with the fused kernels.
pub fn attention_onto(qkv: &Tensor, stretches: &[Stretch], cache: &mut LayerCache, heads: &Heads) -> Result<Tensor> {
    let Heads { shape, rotary, dtype, .. } = *heads;
    let (tokens, sinks) = checked(qkv, heads)?;
    let y =
        with_floats(&contiguous(qkv)?, |qkv| cache::attention(qkv, stretches, cache, rotary, shape, sinks.as_deref(), dtype))??;
    Ok(Tensor::from_vec(y, (tokens, shape.heads * shape.head_dim), qkv.device())?)
}

/// The number of tokens, and the sinks as numbers. An error where the projection does not fit the heads.
fn checked(qkv: &Tensor, heads: &Heads) -> Result<(usize, Option<Vec<f32>>)> {
    let Heads { shape, sinks, .. } = *heads;
    shape.check()?;
    let logits = sinks.map(|sinks| sinks::logits(sinks, shape)).transpose()?;
    let (tokens, columns) = qkv.dims2()?;
    if columns != shape.columns() {
        return Err(Error::new(format!("the fused projection has {columns} columns, expected {}", shape.columns())));
    }
    Ok((tokens, logits))
}

/// The gradient of [`attention`] with respect to `qkv` and, where there are some, to the sinks, from what it gave and the gradient `d_read` of
/// what was read.
pub fn attention_backward(
    qkv: &Tensor,
    segments: &Arc<[Segment]>,
    heads: &Heads,
    attended: &Attended,
    d_read: &Tensor,
) -> Result<(Tensor, Option<Vec<f32>>)> {
    let Heads { shape, rotary, sinks, dtype } = *heads;
    let Attended { read, softmaxes } = attended;
    let positions = positions(segments, qkv.dims2()?.0)?;
    let (segments, rotary, softmaxes) = (segments.clone(), rotary.clone(), softmaxes.clone());
    let sinks = sinks.map(|sinks| sinks::logits(sinks, shape)).transpose()?;
    let level = Level::current();
    let factors = Factors::of(level, dtype);
    let op = Attention { segments, positions, rotary, shape: *shape, sinks, level, factors, softmaxes };
    let d_qkv = op.backward(qkv, read, d_read)?;
    Ok((d_qkv, op.sinks_backward(read, d_read)?))
}

/// Compares attention by AMX's tiles with attention in f32, forward and backward, in all shapes of tiles, as `matmul::amx::check` does for
/// the products with weights.
#[cfg(target_arch = "x86_64")]
pub(crate) fn check_tiles() -> Result<()> {
    // Five granules are four and one; 40 numbers of a head are a whole tile of words and half a tile, padded to 48 columns, and 128 are whole.
    for head_dim in [40, 128] {
        let shape = AttentionShape {
            heads: 2,
            kv_heads: 1,
            head_dim,
            scale: 1.0 / (head_dim as f32).sqrt(),
            window: None,
            softcap: None,
        };
        let tokens = 70;
        let segments = &[Segment { tokens: 0..tokens, context: Vec::new() }];
        let mut state = 1u32;
        let mut noise = || {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 8) as f32 / (1 << 23) as f32 - 1.0
        };
        let qkv: Vec<f32> = (0..tokens * shape.columns()).map(|_| 2.0 * noise()).collect();
        let dy: Vec<f32> = (0..tokens * shape.heads * head_dim).map(|_| noise()).collect();
        let positions: Vec<usize> = (0..tokens).collect();
        let rotary = Rotary::new(&[], 0, super::rotary::RotaryStyle::Half, 1.0);
        let of = |level: Level, dtype: Dtype| {
            let factors = Factors::of(level, dtype);
            let (qkv, positions, rotary, shape) = (&qkv, &positions, &rotary, &shape);
            let problem = Problem { qkv, segments, positions, rotary, shape, sinks: None, level, factors };
            let (y, softmaxes) = fused::attention(&problem);
            let gradient = backward::gradient(&problem, &y, &softmaxes, &dy);
            [y, gradient]
        };
        for (found, expected) in of(Level::Amx, Dtype::Bf16).iter().zip(&of(Level::Avx512, Dtype::F32)) {
            let length = |values: &mut dyn Iterator<Item = f32>| values.map(|x| f64::from(x * x)).sum::<f64>().sqrt();
            let error = length(&mut found.iter().zip(expected).map(|(found, expected)| found - expected));
            let size = length(&mut expected.iter().copied());
            // Factors are off by a part in 512 at most.
            if error.is_nan() || error > 1e-2 * size {
                return Err(Error::new(format!("attention by the processor's AMX tiles is {error} off where {size} is right")));
            }
        }
    }
    Ok(())
}

struct Attention {
    segments: Arc<[Segment]>,
    positions: Vec<usize>,
    rotary: Rotary,
    shape: AttentionShape,
    sinks: Option<Vec<f32>>,
    level: Level,
    factors: Factors,
    /// Where the forward pass leaves each row's softmax.
    softmaxes: Softmaxes,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (values, softmaxes) = fused::attention(&self.problem(floats(qkv, layout)?));
        // An operation runs forward once; a second time it would find the same.
        _ = self.softmaxes.0.set(softmaxes);
        Ok(output(values, (self.positions.len(), self.shape.heads * self.shape.head_dim)))
    }

    fn bwd(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.backward(qkv, y, dy)?))
    }
}

impl Attention {
    fn backward(&self, qkv: &Tensor, y: &Tensor, dy: &Tensor) -> candle_core::Result<Tensor> {
        let values = with_floats(qkv, |qkv| {
            let problem = self.problem(qkv);
            let softmaxes = self.softmaxes.0.get_or_init(|| fused::attention(&problem).1);
            with_floats(y, |y| with_floats(dy, |dy| backward::gradient(&problem, y, softmaxes, dy)))
        })???;
        gradient(values, qkv)
    }

    /// The gradient of the sinks. It runs behind [`Attention::backward`], which sees to the softmaxes.
    fn sinks_backward(&self, y: &Tensor, dy: &Tensor) -> Result<Option<Vec<f32>>> {
        let (Some(logits), Some(softmaxes)) = (&self.sinks, self.softmaxes.0.get()) else { return Ok(None) };
        let gradient = with_floats(y, |y| with_floats(dy, |dy| sinks::gradient(logits, softmaxes, y, dy)))??;
        Ok(Some(gradient))
    }

    fn problem<'a>(&'a self, qkv: &'a [f32]) -> Problem<'a> {
        let Attention { segments, positions, rotary, shape, level, factors, .. } = self;
        Problem { qkv, segments, positions, rotary, shape, sinks: self.sinks.as_deref(), level: *level, factors: *factors }
    }
}
