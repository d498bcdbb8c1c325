//! The gated delta rule over a packed batch, including the operations before it: a convolution over the latest tokens, norms, decay.
//!
//! ```text
//! shape.rs      heads, and the columns of their numbers in a row; weights.rs the trained parameters besides the projections
//! plan.rs       the order in which tokens are processed
//! forward.rs    all heads over a batch; cache.rs the states of sequences that continue
//! head.rs       one key head over tokens of one sequence
//! rule.rs       the rule itself, and its backward pass
//! open.rs       the norm and gates after it
//! delta.cu      all of it on a GPU, by the plan of cuda/delta.rs
//! reference.rs  the same as tensor operations
//! ```
//!
//! The rule processes tokens one by one, so a token's result is bit-identical in a sequence alone, after a shared prefix, and when its
//! sequence continues from a cache. The backward pass processes each sequence as a whole.

mod cache;
mod forward;
mod head;
mod open;
pub(super) mod plan;
mod reference;
mod rule;
mod shape;
#[cfg(test)]
mod tests;
pub(super) mod weights;

use candle_core::Tensor;
use rayon::prelude::*;

pub use cache::DeltaCache;
use head::{Head, HeadGradients, Problem, columns_of, put_columns};
pub use open::open;
use plan::sequences;
pub use shape::DeltaShape;
use weights::DeltaNumbers;
pub use weights::DeltaWeights;

use super::attention::{Stretch, positions};
use super::cpu::{contiguous, with_floats};
use super::cuda::hosted;
use super::level::Level;
use super::{Kernels, Segment};
use crate::error::Result;

/// The gradients of one call.
pub struct DeltaGradients {
    /// `[T, columns]`
    pub x: Tensor,
    /// `[channels, kernel]`, row-major.
    pub convolution: Vec<f32>,
    /// `[value_heads]`
    pub a_log: Vec<f32>,
    /// `[value_heads]`
    pub dt_bias: Vec<f32>,
}

/// `x [T, columns] -> [T, value_heads, 2 value_dim]`: for each value head its gates, unchanged, and the output of the rule.
pub fn delta(x: &Tensor, weights: &DeltaWeights, segments: &[Segment], shape: DeltaShape, kernels: Kernels) -> Result<Tensor> {
    let (tokens, columns) = x.dims2()?;
    shape.check(columns)?;
    if kernels == Kernels::Reference {
        return reference::delta(x, weights, segments, shape);
    }
    positions(segments, tokens)?;
    if kernels == Kernels::Cuda {
        return beside_gates(x, &hosted::delta(x, weights, segments, &shape)?, shape);
    }
    let numbers = DeltaNumbers::new(weights, shape)?;
    let y = with_floats(&contiguous(x)?, |x| forward::forward(x, &numbers.problem(shape), segments))?;
    Ok(Tensor::from_vec(y, (tokens, 2 * shape.width()), x.device())?)
}

/// Combines the gates in the projections with the output of the rule, `[T, value_heads * value_dim]`, to `[T, value_heads, 2 value_dim]`.
pub(super) fn beside_gates(x: &Tensor, given: &Tensor, shape: DeltaShape) -> Result<Tensor> {
    let DeltaShape { key_heads, value_heads, value_dim, .. } = shape;
    let tokens = x.dim(0)?;
    let gates = (0..key_heads).map(|head| x.narrow(1, shape.zba(head)[0].start, shape.group() * value_dim));
    let gates = Tensor::cat(&gates.collect::<Result<Vec<_>, _>>()?, 1)?;
    let of_heads = |x: &Tensor| x.reshape((tokens, value_heads, value_dim));
    Ok(Tensor::cat(&[of_heads(&gates)?, of_heads(given)?], 2)?.reshape((tokens, 2 * shape.width()))?)
}

/// Like [`delta`], for tokens that continue the sequences of `cache`, which is updated. Fused kernels only.
pub fn delta_onto(x: &Tensor, weights: &DeltaWeights, stretches: &[Stretch], cache: &mut DeltaCache) -> Result<Tensor> {
    let (shape, (tokens, columns)) = (cache.shape(), x.dims2()?);
    shape.check(columns)?;
    let numbers = DeltaNumbers::new(weights, shape)?;
    let y = with_floats(&contiguous(x)?, |x| forward::forward_onto(x, &numbers.problem(shape), stretches, cache))??;
    Ok(Tensor::from_vec(y, (tokens, 2 * shape.width()), x.device())?)
}

/// The gradients of [`delta`], given that of its output. Sums the sequences in order, so the number of threads changes no bit.
pub fn delta_backward(
    x: &Tensor,
    weights: &DeltaWeights,
    segments: &[Segment],
    shape: DeltaShape,
    dy: &Tensor,
) -> Result<DeltaGradients> {
    let (tokens, columns) = x.dims2()?;
    shape.check(columns)?;
    let numbers = DeltaNumbers::new(weights, shape)?;
    let (dx, of_weights) = with_floats(x, |x| with_floats(dy, |dy| numbers.backward(x, segments, shape, dy)))??;
    let DeltaNumbers { convolution, a_log, dt_bias } = of_weights;
    Ok(DeltaGradients { x: Tensor::from_vec(dx, (tokens, columns), x.device())?, convolution, a_log, dt_bias })
}

impl DeltaNumbers {
    fn problem(&self, shape: DeltaShape) -> Problem<'_> {
        let DeltaNumbers { convolution, a_log, dt_bias } = self;
        Problem { convolution, a_log, dt_bias, shape, level: Level::current() }
    }

    fn backward(&self, x: &[f32], segments: &[Segment], shape: DeltaShape, dy: &[f32]) -> (Vec<f32>, DeltaNumbers) {
        let problem = self.problem(shape);
        let sequences = sequences(segments);
        let (columns, width, group) = (shape.columns(), 2 * shape.width(), shape.group() * shape.value_dim);
        // The gradients of one key head: the columns of all tokens, contiguous, and its weights.
        let of_head = |head: usize| {
            let mut sums = HeadSums::zeros(x.len() / columns, shape);
            for sequence in &sequences {
                let mut d_all = vec![0.0; sequence.rows.len() * group];
                for (&row, d_all) in sequence.rows.iter().zip(d_all.chunks_exact_mut(group)).skip(sequence.before) {
                    let from = &dy[row * width + head * 2 * group..][..2 * group];
                    let of_heads = from.chunks_exact(2 * shape.value_dim);
                    d_all
                        .chunks_exact_mut(shape.value_dim)
                        .zip(of_heads)
                        .for_each(|(to, from)| to.copy_from_slice(&from[shape.value_dim..]));
                }
                let rows: Vec<&[f32]> = sequence.rows.iter().map(|&row| &x[row * columns..][..columns]).collect();
                let gradients = Head { problem: &problem, head, rows: &rows, before: 0 }.backward(&d_all);
                sums.add(&sequence.rows, gradients);
            }
            sums
        };
        let found: Vec<HeadSums> = (0..shape.key_heads).into_par_iter().with_max_len(1).map(of_head).collect();
        let mut dx = vec![0.0; x.len()];
        let mut convolution = vec![0.0; self.convolution.len()];
        let (mut a_log, mut dt_bias) = (Vec::new(), Vec::new());
        for (head, sums) in found.iter().enumerate() {
            let [q, k, v] = shape.qkv(head, false);
            let [z, b, a] = shape.zba(head);
            for (range, part) in [q, k, v, b, a].into_iter().zip(&sums.columns) {
                put_columns(&mut dx, columns, range.start, part, range.len());
            }
            for r in 0..shape.group() {
                let gates = columns_of(dy, width, head * 2 * group + r * 2 * shape.value_dim, shape.value_dim);
                put_columns(&mut dx, columns, z.start + r * shape.value_dim, &gates, shape.value_dim);
            }
            for (channels, part) in shape.qkv(head, true).into_iter().zip(&sums.convolutions) {
                convolution[channels.start * shape.kernel..channels.end * shape.kernel].copy_from_slice(part);
            }
            a_log.extend_from_slice(&sums.a_log);
            dt_bias.extend_from_slice(&sums.dt_bias);
        }
        (dx, DeltaNumbers { convolution, a_log, dt_bias })
    }
}

/// The gradients of one key head, summed over the sequences.
struct HeadSums {
    /// The gradients of the columns of `q`, `k`, the values, `b` and `a`: `[T, width]` each.
    columns: [Vec<f32>; 5],
    convolutions: [Vec<f32>; 3],
    a_log: Vec<f32>,
    dt_bias: Vec<f32>,
}

impl HeadSums {
    fn zeros(tokens: usize, shape: DeltaShape) -> HeadSums {
        let (keys, group) = (shape.key_dim, shape.group());
        let values = group * shape.value_dim;
        HeadSums {
            columns: [keys, keys, values, group, group].map(|width| vec![0.0; tokens * width]),
            convolutions: [keys, keys, values].map(|width| vec![0.0; width * shape.kernel]),
            a_log: vec![0.0; group],
            dt_bias: vec![0.0; group],
        }
    }

    fn add(&mut self, rows: &[usize], gradients: HeadGradients) {
        let HeadGradients { qkv: [q, k, v], b, a, convolutions, a_log, dt_bias } = gradients;
        let add = |to: &mut [f32], from: &[f32]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
        for (sums, part) in self.columns.iter_mut().zip([q, k, v, b, a]) {
            let width = part.len() / rows.len().max(1);
            for (&row, part) in rows.iter().zip(part.chunks_exact(width.max(1))) {
                add(&mut sums[row * width..][..width], part);
            }
        }
        self.convolutions.iter_mut().zip(&convolutions).for_each(|(sums, part)| add(sums, part));
        add(&mut self.a_log, &a_log);
        add(&mut self.dt_bias, &dt_bias);
    }
}
