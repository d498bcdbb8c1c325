//! One key head and its value heads over tokens of one sequence, forward and backward: from the columns of the projections to the outputs.
//!
//! ```text
//! q, k, v  silu(convolution over the last tokens)        q = l2norm(q) / sqrt(key_dim)        k = l2norm(k)
//! beta     sigmoid(b)                                    ln alpha = -exp(A_log) softplus(a + dt_bias)
//! ```
//!
//! Reference: Transformers, `models/qwen3_next/modeling_qwen3_next.py`, `Qwen3NextGatedDeltaNet`.

use std::ops::Range;

use super::rule::{self, Gradients, Inputs};
use super::shape::{DeltaShape, padded};
use crate::kernels::gated::silu;
use crate::kernels::lanes::{Lanes, for_lanes, load, store};
use crate::kernels::level::{Kernel, Level};

/// The epsilon of the norm of queries and keys, added to the sum of squares.
pub(super) const EPSILON: f32 = 1e-6;

/// The trained parameters, the shape and the instructions.
pub(super) struct Problem<'a> {
    /// `[channels, kernel]`
    pub convolution: &'a [f32],
    /// `[value_heads]`
    pub a_log: &'a [f32],
    /// `[value_heads]`, added to `a`.
    pub dt_bias: &'a [f32],
    /// The heads.
    pub shape: DeltaShape,
    /// The instructions to use.
    pub level: Level,
}

/// A key head, and the tokens to process.
pub(super) struct Head<'a> {
    /// The trained parameters.
    pub problem: &'a Problem<'a>,
    /// The index of the key head.
    pub head: usize,
    /// The tokens' rows of the projections, `[columns]` each, in order.
    pub rows: &'a [&'a [f32]],
    /// The number of leading rows that only the convolution reads, because their tokens have been processed before.
    pub before: usize,
}

/// The gradients of a head's inputs, in the layout in which the forward pass reads them: `[L, width]` each.
pub(super) struct HeadGradients {
    /// The gradients of `q`, `k` and the values before the convolution.
    pub qkv: [Vec<f32>; 3],
    /// `[L, value heads of the key head]`
    pub b: Vec<f32>,
    /// `[L, value heads of the key head]`
    pub a: Vec<f32>,
    /// The gradients of the convolution's weights, for the channels of `q`, `k` and the values: `[width, kernel]` each.
    pub convolutions: [Vec<f32>; 3],
    /// `[value heads of the key head]`
    pub a_log: Vec<f32>,
    /// `[value heads of the key head]`
    pub dt_bias: Vec<f32>,
}

/// The inputs of the rule, and the intermediate results they were computed from.
struct Prepared {
    /// The output of the convolution for `q`, `k` and the values, before the activation.
    convolved: [Vec<f32>; 3],
    /// `[L, padded key_dim]`, normalised; the queries are also scaled.
    queries: Vec<f32>,
    keys: Vec<f32>,
    /// The factor by which each row of queries and keys was normalised.
    norms: [Vec<f32>; 2],
    values: Vec<f32>,
}

impl Head<'_> {
    /// Computes `[L, value heads of the key head * value_dim]`; updates the head's states ([`DeltaShape::state_len`]) past the tokens.
    pub(super) fn forward(&self, states: &mut [f32]) -> Vec<f32> {
        let prepared = self.prepare();
        let DeltaShape { value_dim, .. } = self.problem.shape;
        let group = self.problem.shape.group();
        let mut all = vec![0.0; self.tokens() * group * value_dim];
        for (r, states) in states.chunks_exact_mut(self.problem.shape.state_len() / group).enumerate() {
            let (values, alpha, beta) = self.of_value_head(&prepared, r);
            let inputs = self.inputs(&prepared, &values, &alpha, &beta);
            let mut outputs = vec![0.0; values.len()];
            self.problem.level.run(rule::Forward { inputs, states, outputs: &mut outputs });
            put_columns(&mut all, group * value_dim, r * value_dim, &outputs, value_dim);
        }
        all
    }

    /// The gradients over a whole sequence, given the gradient `[L, value heads of the key head * value_dim]` of the output of
    /// [`Head::forward`].
    pub(super) fn backward(&self, d_all: &[f32]) -> HeadGradients {
        let prepared = self.prepare();
        let DeltaShape { value_dim, key_dim, .. } = self.problem.shape;
        let (group, len) = (self.problem.shape.group(), self.tokens());
        let width = padded(key_dim);
        let (mut d_queries, mut d_keys) = (vec![0.0; len * width], vec![0.0; len * width]);
        let mut d_values = vec![0.0; len * group * value_dim];
        let (mut d_b, mut d_a) = (vec![0.0; len * group], vec![0.0; len * group]);
        let (mut d_a_log, mut d_dt_bias) = (vec![0.0; group], vec![0.0; group]);
        for r in 0..group {
            let (values, alpha, beta) = self.of_value_head(&prepared, r);
            let inputs = self.inputs(&prepared, &values, &alpha, &beta);
            let d_outputs = columns_of(d_all, group * value_dim, r * value_dim, value_dim);
            let (mut d_of_values, mut d_log_alpha, mut d_beta) = (vec![0.0; values.len()], vec![0.0; len], vec![0.0; len]);
            let gradients = Gradients {
                queries: &mut d_queries,
                keys: &mut d_keys,
                values: &mut d_of_values,
                log_alpha: &mut d_log_alpha,
                beta: &mut d_beta,
            };
            self.problem.level.run(rule::Backward { inputs, d_outputs: &d_outputs, gradients });
            put_columns(&mut d_values, group * value_dim, r * value_dim, &d_of_values, value_dim);
            let (rate, bias) = self.decay_of(r);
            for t in 0..len {
                let shifted = self.column(t, 2, r) + bias;
                // ln alpha = -rate softplus(shifted)
                d_a_log[r] -= d_log_alpha[t] * rate * softplus(shifted);
                let d_shifted = -d_log_alpha[t] * rate * sigmoid(shifted);
                d_dt_bias[r] += d_shifted;
                d_a[t * group + r] = d_shifted;
                d_b[t * group + r] = d_beta[t] * beta[t] * (1.0 - beta[t]);
            }
        }
        let Prepared { convolved, queries, keys, norms: [q_norms, k_norms], .. } = &prepared;
        let of_norm = |normed, norms, d_normed, scale| {
            self.problem.level.run(NormBackward { normed, norms, d_normed, width: key_dim, scale })
        };
        let d_q = of_norm(queries, q_norms, &d_queries, self.query_scale());
        let d_k = of_norm(keys, k_norms, &d_keys, 1.0);
        let (d_q, c_q) = self.convolution_backward(0, &convolved[0], d_q);
        let (d_k, c_k) = self.convolution_backward(1, &convolved[1], d_k);
        let (d_v, c_v) = self.convolution_backward(2, &convolved[2], d_values);
        HeadGradients { qkv: [d_q, d_k, d_v], b: d_b, a: d_a, convolutions: [c_q, c_k, c_v], a_log: d_a_log, dt_bias: d_dt_bias }
    }

    /// The gradients of the columns `[L, width]` and of the weights `[width, kernel]`, given the gradient `[L, width]` of the activated
    /// output of the convolution.
    fn convolution_backward(&self, part: usize, convolved: &[f32], dy: Vec<f32>) -> (Vec<f32>, Vec<f32>) {
        let columns = self.problem.shape.qkv(self.head, false)[part].clone();
        let (width, kernel, taps) = (columns.len(), self.problem.shape.kernel, self.taps(part));
        let rows = self.rows;
        let (dx, d_taps) = self.problem.level.run(ConvolutionBackward { rows, columns, taps: &taps, convolved, dy });
        let d_weights = (0..width).flat_map(|c| (0..kernel).map(move |tap| tap * width + c)).map(|i| d_taps[i]).collect();
        (dx, d_weights)
    }

    /// The number of tokens to process.
    fn tokens(&self) -> usize {
        self.rows.len() - self.before
    }

    fn prepare(&self) -> Prepared {
        self.problem.level.run(Prepare { head: self, taps: &[0, 1, 2].map(|part| self.taps(part)) })
    }

    fn query_scale(&self) -> f32 {
        1.0 / (self.problem.shape.key_dim as f32).sqrt()
    }

    /// The values `[L, value_dim]` of the `r`th value head, and its `alpha` and `beta` `[L]`.
    fn of_value_head(&self, prepared: &Prepared, r: usize) -> (Vec<f32>, Vec<f32>, Vec<f32>) {
        let DeltaShape { value_dim, .. } = self.problem.shape;
        let values = columns_of(&prepared.values, self.problem.shape.group() * value_dim, r * value_dim, value_dim);
        let (rate, bias) = self.decay_of(r);
        let tokens = 0..self.tokens();
        let alpha = tokens.clone().map(|t| (-rate * softplus(self.column(t, 2, r) + bias)).exp()).collect();
        let beta = tokens.map(|t| sigmoid(self.column(t, 1, r))).collect();
        (values, alpha, beta)
    }

    fn inputs<'b>(&self, prepared: &'b Prepared, values: &'b [f32], alpha: &'b [f32], beta: &'b [f32]) -> Inputs<'b> {
        let DeltaShape { key_dim, value_dim, .. } = self.problem.shape;
        let Prepared { queries, keys, .. } = prepared;
        Inputs { queries, keys, values, alpha, beta, width: padded(key_dim), value_dim }
    }

    /// `exp(A_log)` and `dt_bias` of the `r`th value head.
    fn decay_of(&self, r: usize) -> (f32, f32) {
        let head = self.head * self.problem.shape.group() + r;
        (self.problem.a_log[head].exp(), self.problem.dt_bias[head])
    }

    /// `b` (1) or `a` (2) of the `r`th value head at the `t`th token.
    fn column(&self, t: usize, which: usize, r: usize) -> f32 {
        self.rows[self.before + t][self.problem.shape.zba(self.head)[which].start + r]
    }

    /// The weights of the channels of `q`, `k` or the values: `[kernel, width]`.
    fn taps(&self, part: usize) -> Vec<f32> {
        let kernel = self.problem.shape.kernel;
        let channels = self.problem.shape.qkv(self.head, true)[part].clone();
        let of_tap = |tap: usize| channels.clone().map(move |c| self.problem.convolution[c * kernel + tap]);
        (0..kernel).flat_map(of_tap).collect()
    }
}

/// The kernel of [`Head::prepare`], with the weights of the convolution.
struct Prepare<'a> {
    head: &'a Head<'a>,
    taps: &'a [Vec<f32>; 3],
}

impl Kernel for Prepare<'_> {
    type Output = Prepared;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> Prepared {
        let Prepare { head, taps: [q, k, v] } = self;
        let key_dim = head.problem.shape.key_dim;
        // SAFETY: the instructions are there by contract.
        unsafe {
            let convolved = [convolved::<V>(head, 0, q), convolved::<V>(head, 1, k), convolved::<V>(head, 2, v)];
            let (queries, q_norms) = normed::<V>(&activated::<V>(&convolved[0]), key_dim, head.query_scale());
            let (keys, k_norms) = normed::<V>(&activated::<V>(&convolved[1]), key_dim, 1.0);
            let values = activated::<V>(&convolved[2]);
            Prepared { convolved, queries, keys, norms: [q_norms, k_norms], values }
        }
    }
}

/// `[L, width]`: the convolution of each channel of `q`, `k` or the values over the latest tokens; tokens before the sequence count as 0.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn convolved<V: Lanes>(head: &Head, part: usize, taps: &[f32]) -> Vec<f32> {
    let columns = head.problem.shape.qkv(head.head, false)[part].clone();
    let (width, kernel) = (columns.len(), head.problem.shape.kernel);
    let mut y = vec![0.0; head.tokens() * width];
    for (t, y) in y.chunks_exact_mut(width).enumerate() {
        let newest = head.before + t;
        for row in (newest + 1).saturating_sub(kernel)..=newest {
            let x = &head.rows[row][columns.clone()];
            let weights = &taps[(row + kernel - 1 - newest) * width..][..width];
            for_lanes::<V>(
                width,
                #[inline(always)]
                // SAFETY: all three are `width` long.
                |i, n| unsafe {
                    let sum = load::<V>(x, i, n).mul_add(load(weights, i, n), load(y, i, n));
                    store(sum, y.as_mut_ptr(), i, n);
                },
            );
        }
    }
    y
}

/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn activated<V: Lanes>(x: &[f32]) -> Vec<f32> {
    let mut y = vec![0.0; x.len()];
    for_lanes::<V>(
        x.len(),
        #[inline(always)]
        // SAFETY: both have the same length.
        |i, n| unsafe { store(silu(load::<V>(x, i, n)).0, y.as_mut_ptr(), i, n) },
    );
    y
}

/// Normalises each row of `[L, width]` to length 1, multiplies it by `scale` and pads it with zeros; also returns the factors without the
/// scale.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn normed<V: Lanes>(x: &[f32], width: usize, scale: f32) -> (Vec<f32>, Vec<f32>) {
    let n_rows = x.len() / width;
    let (mut rows, mut norms) = (vec![0.0; n_rows * padded(width)], Vec::with_capacity(n_rows));
    for (x, y) in x.chunks_exact(width).zip(rows.chunks_exact_mut(padded(width))) {
        // SAFETY: `y` is no shorter than `x`, and the instructions are there by contract.
        unsafe {
            let norm = 1.0 / (dot::<V>(x, x) + EPSILON).sqrt();
            let (by_norm, by_scale) = (V::splat(norm), V::splat(scale));
            for_lanes::<V>(
                width,
                #[inline(always)]
                |i, n| store(load::<V>(x, i, n).mul(by_norm).mul(by_scale), y.as_mut_ptr(), i, n),
            );
            norms.push(norm);
        }
    }
    (rows, norms)
}

/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn dot<V: Lanes>(a: &[f32], b: &[f32]) -> f32 {
    assert_eq!(a.len(), b.len());
    // SAFETY: both have the same length, and the instructions are there by contract.
    unsafe {
        let mut sum = V::splat(0.0);
        for_lanes::<V>(
            a.len(),
            #[inline(always)]
            |i, n| sum = load::<V>(a, i, n).mul_add(load(b, i, n), sum),
        );
        sum.sum()
    }
}

/// The gradient `[L, width]` of the input of [`normed`]: `norm (scale d - n (n . scale d))`, where `n` is the row before scaling.
struct NormBackward<'a> {
    /// `[L, padded width]`
    normed: &'a [f32],
    norms: &'a [f32],
    d_normed: &'a [f32],
    width: usize,
    scale: f32,
}

impl Kernel for NormBackward<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> Vec<f32> {
        let NormBackward { normed, norms, d_normed, width, scale } = self;
        let mut dx = vec![0.0; norms.len() * width];
        let rows = normed.chunks_exact(padded(width)).zip(d_normed.chunks_exact(padded(width))).zip(norms);
        for (((row, d_row), &norm), dx) in rows.zip(dx.chunks_exact_mut(width)) {
            // SAFETY: all are at least `width` long, and the instructions are there by contract.
            unsafe {
                // The rows include the scale already, which the second product contains twice.
                let (of_d, of_row) = (V::splat(norm * scale), V::splat(norm * dot::<V>(row, d_row) / scale));
                for_lanes::<V>(
                    width,
                    #[inline(always)]
                    |i, n| {
                        let d = load::<V>(d_row, i, n).mul(of_d).sub(load::<V>(row, i, n).mul(of_row));
                        store(d, dx.as_mut_ptr(), i, n);
                    },
                );
            }
        }
        dx
    }
}

/// The gradient of the convolution over a whole sequence: from the gradient `[L, width]` of its activated output to those of its input
/// columns, `[L, width]`, and of its weights, `[kernel, width]`.
struct ConvolutionBackward<'a> {
    rows: &'a [&'a [f32]],
    columns: Range<usize>,
    taps: &'a [f32],
    convolved: &'a [f32],
    dy: Vec<f32>,
}

impl Kernel for ConvolutionBackward<'_> {
    type Output = (Vec<f32>, Vec<f32>);

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> (Vec<f32>, Vec<f32>) {
        let ConvolutionBackward { rows, columns, taps, convolved, mut dy } = self;
        let (width, kernel) = (columns.len(), taps.len() / columns.len());
        assert!(dy.len() == convolved.len() && dy.len() == rows.len() * width);
        for_lanes::<V>(
            dy.len(),
            #[inline(always)]
            // SAFETY: both have the same length.
            |i, n| unsafe {
                let d = load::<V>(&dy, i, n).mul(silu(load::<V>(convolved, i, n)).1);
                store(d, dy.as_mut_ptr(), i, n);
            },
        );
        let (mut dx, mut d_taps) = (vec![0.0; dy.len()], vec![0.0; taps.len()]);
        for (newest, dy) in dy.chunks_exact(width).enumerate() {
            for row in (newest + 1).saturating_sub(kernel)..=newest {
                let tap = (row + kernel - 1 - newest) * width..(row + kernel - newest) * width;
                let (x, weights) = (&rows[row][columns.clone()], &taps[tap.clone()]);
                let (dx, d_weights) = (&mut dx[row * width..][..width], &mut d_taps[tap]);
                for_lanes::<V>(
                    width,
                    #[inline(always)]
                    // SAFETY: all are `width` long.
                    |i, n| unsafe {
                        let d = load::<V>(dy, i, n);
                        store(d.mul_add(load(weights, i, n), load(dx, i, n)), dx.as_mut_ptr(), i, n);
                        store(d.mul_add(load(x, i, n), load(d_weights, i, n)), d_weights.as_mut_ptr(), i, n);
                    },
                );
            }
        }
        (dx, d_taps)
    }
}

/// The `width` columns from `first` on of an array with `columns` columns.
pub(super) fn columns_of(all: &[f32], columns: usize, first: usize, width: usize) -> Vec<f32> {
    all.chunks_exact(columns).flat_map(|row| &row[first..first + width]).copied().collect()
}

/// The inverse of [`columns_of`].
pub(super) fn put_columns(all: &mut [f32], columns: usize, first: usize, part: &[f32], width: usize) {
    all.chunks_exact_mut(columns)
        .zip(part.chunks_exact(width))
        .for_each(|(row, part)| row[first..first + width].copy_from_slice(part));
}

fn sigmoid(x: f32) -> f32 {
    1.0 / (1.0 + (-x).exp())
}

fn softplus(x: f32) -> f32 {
    x.max(0.0) + (-x.abs()).exp().ln_1p()
}
