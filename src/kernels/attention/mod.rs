//! Causal grouped-query attention over a packed batch, including rotary embedding.
//!
//! Shapes: `T` tokens of the batch, `q | k | v` the columns of one fused projection. Sequences are concatenated without padding; [`Segment`]s
//! define which tokens see which, so a shared prefix is stored and projected once and read by many.
//!
//! ```text
//! reference.rs    the formula, one segment at a time
//! plan.rs         which keys each segment sees; positions.rs the tokens' positions; shape.rs heads; sinks.rs sinks
//! pack.rs         keys and values -> the order in which tiles read them, stored by packed.rs
//! fused.rs        rotary embedding, scores, softmax and values over tiles of keys; problem.rs one call; backward.rs its gradient
//! strip.rs        a strip of queries against a tile of keys, in registers; arithmetic.rs the operations it is generic over
//! factors.rs      the format of the factors: floats.rs f32, dots.rs bf16 pairs, tiles.rs bf16 pairs with AMX
//! cache.rs        attention over keys and values from earlier calls
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

/// How the heads of a layer attend, independent of the tokens.
#[derive(Debug, Clone, Copy)]
pub struct Heads<'a> {
    /// The number of heads, and which keys they see.
    pub shape: &'a AttentionShape,
    /// The rotary embedding of queries and keys.
    pub rotary: &'a Rotary,
    /// `[heads]`: one logit per head that takes a share of every softmax and has no value (arXiv 2309.17453; gpt-oss).
    pub sinks: Option<&'a Tensor>,
    /// The precision. With [`Dtype::Bf16`] the fused kernels round the factors of their products to bf16 at levels that multiply these faster.
    pub dtype: Dtype,
}

/// The output of the heads, `[T, heads * head_dim]`, and what helps the backward pass.
#[derive(Debug, Clone)]
pub struct Attended {
    /// For each token, the mean of the values that it sees, weighted by its softmax.
    pub read: Tensor,
    /// Kept by the kernels that can reuse them.
    pub softmaxes: Softmaxes,
}

/// Each row's softmax, `[T, heads]`, which [`attention_backward`] would otherwise recompute: eight bytes per row and head. Empty if the
/// kernels keep none.
#[derive(Debug, Clone, Default)]
pub struct Softmaxes(Arc<OnceLock<Vec<Running>>>);

impl Softmaxes {
    /// The memory that they take, in bytes.
    pub fn bytes(&self) -> usize {
        self.0.get().map_or(0, |rows| size_of_val(rows.as_slice()))
    }
}

/// Attention: `qkv [T, (heads + 2 kv_heads) * head_dim] -> [T, heads * head_dim]`, with its gradient.
///
/// Computes `softmax(scale * rot(q) . rot(k)) v` for each token and head over the tokens that it sees: all of its segment's `context`, then
/// its own segment up to itself. Its position is the number of tokens before it. The fused kernels never store a tokens-by-tokens matrix, and
/// a token's result depends only on the tokens that it sees, to the last bit.
///
/// Use [`attention_backward`] for the sinks' gradient: candle's autograd provides it for the reference only.
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

/// Like [`attention`], for tokens that continue sequences whose keys and values are in `cache`; their own are added to it. The result is
/// bit-identical to that of [`attention`] on the whole sequences. Fused kernels only.
pub fn attention_onto(qkv: &Tensor, stretches: &[Stretch], cache: &mut LayerCache, heads: &Heads) -> Result<Tensor> {
    let Heads { shape, rotary, dtype, .. } = *heads;
    let (tokens, sinks) = checked(qkv, heads)?;
    let y =
        with_floats(&contiguous(qkv)?, |qkv| cache::attention(qkv, stretches, cache, rotary, shape, sinks.as_deref(), dtype))??;
    Ok(Tensor::from_vec(y, (tokens, shape.heads * shape.head_dim), qkv.device())?)
}

/// Returns the number of tokens and the sinks' logits, or an error if the projection does not fit the heads.
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

/// The gradients of [`attention`] with respect to `qkv` and, if there are any, the sinks, given its result and the gradient `d_read` of its
/// output.
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

/// Compares attention with AMX to attention in f32, forward and backward, in all shapes of tiles, like `matmul::amx::check` does for the
/// products with weights.
#[cfg(target_arch = "x86_64")]
pub(crate) fn check_tiles() -> Result<()> {
    // Five granules are four and one; a head of 40 numbers is one and a half tiles of words, padded to 48 columns, and 128 are whole tiles.
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
            // Factors are off by at most one part in 512.
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
    /// Where the forward pass stores each row's softmax.
    softmaxes: Softmaxes,
}

impl CustomOp1 for Attention {
    fn name(&self) -> &'static str {
        "attention"
    }

    fn cpu_fwd(&self, qkv: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (values, softmaxes) = fused::attention(&self.problem(floats(qkv, layout)?));
        // An operation runs forward once; a second run would give the same result.
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

    /// The gradient of the sinks. Call it after [`Attention::backward`], which provides the softmaxes.
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
