//! Root-mean-square normalisation over the last dimension of `[T, D]`, and over each head's slice of a fused `[T, q|k|v]`.
//!
//! `y = x / sqrt(mean(x^2) + eps) * weight`. A family whose weight is stored as an offset from 1 (Gemma) adds the 1 when it loads the
//! weight. The arithmetic is f32 for any type of tensor (in the reference; the fused kernel only accepts f32).
//!
//! Backward, with `r = 1 / sqrt(mean(x^2) + eps)` and the upstream gradient `g`: `dx = r (g w - x r^2 mean(g w x))`,
//! `dw = sum over rows of g x r`.

use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp2, CustomOp3, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

use super::Kernels;
use super::cpu::{contiguous, floats, gradient, output, with_floats, written};
use super::cuda::hosted;
use super::lanes::{Lanes, for_lanes, load, store};
use super::level::{Kernel, Level};
use crate::error::{Error, Result};

/// `x [T, D], weight [D] -> [T, D]`, with gradients for both.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64, kernels: Kernels) -> Result<Tensor> {
    let width = x.dims2()?.1;
    check_weight("norm", weight, width)?;
    match kernels {
        Kernels::Reference => reference(x, weight, eps),
        Kernels::Fused => {
            let op = RmsNorm { eps: eps as f32, level: Level::current() };
            Ok(contiguous(x)?.apply_op2(&contiguous(weight)?, op)?)
        }
        Kernels::Cuda => hosted::rms_norm(x, weight, eps),
    }
}

/// Normalises the queries and the keys of `qkv [T, (heads + 2 kv_heads) * head_dim]` (columns q|k|v) before the rotary embedding; the
/// values pass through. Weights `[head_dim]` normalise each head separately (Qwen 3), weights as wide as all heads normalise these
/// together (OLMo 2).
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
    if all_heads == 0 || !columns.is_multiple_of(all_heads) {
        return Err(Error::new(format!(
            "{columns} columns do not split into {heads} query, {kv_heads} key and {kv_heads} value heads"
        )));
    }
    let head_dim = columns / all_heads;
    let of_heads = q_weight.dims() == [head_dim];
    let (q_width, k_width) = if of_heads { (head_dim, head_dim) } else { (heads * head_dim, kv_heads * head_dim) };
    check_weight("query norm", q_weight, q_width)?;
    check_weight("key norm", k_weight, k_width)?;
    let (q_slices, k_slices) = if of_heads { (heads, kv_heads) } else { (1, 1) };
    match kernels {
        Kernels::Reference => {
            let part = |first: usize, heads: usize| qkv.narrow(1, first * head_dim, heads * head_dim);
            let slices = |part: Tensor, slices: usize, width: usize| part.reshape((tokens, slices, width));
            let q =
                reference(&slices(part(0, heads)?, q_slices, q_width)?, q_weight, eps)?.reshape((tokens, heads * head_dim))?;
            let k = reference(&slices(part(heads, kv_heads)?, k_slices, k_width)?, k_weight, eps)?;
            let k = k.reshape((tokens, kv_heads * head_dim))?;
            Ok(Tensor::cat(&[q, k, part(heads + kv_heads, kv_heads)?], 1)?)
        }
        Kernels::Fused => {
            let op = QkNorm { columns, q_slices, k_slices, eps: eps as f32, level: Level::current() };
            Ok(contiguous(qkv)?.apply_op3(&contiguous(q_weight)?, &contiguous(k_weight)?, op)?)
        }
        Kernels::Cuda => hosted::qk_norm(qkv, q_weight, k_weight, heads, kv_heads, eps),
    }
}

/// The gradients of [`rms_norm`] with respect to `x` and the weight, given `dy`.
pub fn rms_norm_backward(x: &Tensor, weight: &Tensor, eps: f64, dy: &Tensor) -> Result<(Tensor, Vec<f32>)> {
    let op = RmsNorm { eps: eps as f32, level: Level::current() };
    let (dx, dw) = op.gradients(x, weight, dy)?;
    Ok((gradient(dx, x)?, dw))
}

/// The gradients of [`qk_norm`] with respect to `qkv` and the two weights, given `dy`.
pub fn qk_norm_backward(
    qkv: &Tensor,
    q_weight: &Tensor,
    k_weight: &Tensor,
    heads: usize,
    kv_heads: usize,
    eps: f64,
    dy: &Tensor,
) -> Result<(Tensor, Vec<f32>, Vec<f32>)> {
    let columns = qkv.dims2()?.1;
    let of_heads = q_weight.elem_count() * (heads + 2 * kv_heads) == columns;
    let (q_slices, k_slices) = if of_heads { (heads, kv_heads) } else { (1, 1) };
    let op = QkNorm { columns, q_slices, k_slices, eps: eps as f32, level: Level::current() };
    let (dx, mut dq) = op.gradients(qkv, q_weight, k_weight, dy)?;
    let dk = dq.split_off(q_weight.elem_count());
    Ok((gradient(dx, qkv)?, dq, dk))
}

fn check_weight(what: &str, weight: &Tensor, width: usize) -> Result<()> {
    if weight.dims() != [width] {
        return Err(Error::new(format!("the {what} weight has shape {:?}, expected [{width}]", weight.dims())));
    }
    Ok(())
}

/// The norm as tensor operations, over the last dimension, for any leading dimensions.
fn reference(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let dtype = x.dtype();
    let x = x.to_dtype(DType::F32)?;
    let mean_square = x.sqr()?.mean_keepdim(candle_core::D::Minus1)?;
    let y = x.broadcast_div(&(mean_square + eps)?.sqrt()?)?.broadcast_mul(&weight.to_dtype(DType::F32)?)?;
    Ok(y.to_dtype(dtype)?)
}

struct RmsNorm {
    eps: f32,
    level: Level,
}

impl RmsNorm {
    fn gradients(&self, x: &Tensor, weight: &Tensor, dy: &Tensor) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        with_floats(x, |x| {
            with_floats(weight, |weight| {
                let rows = Rows { columns: weight.len(), groups: &[(weight, 1)], eps: self.eps };
                with_floats(dy, |dy| backward(self.level, &rows, x, dy))
            })
        })??
    }
}

impl CustomOp2 for RmsNorm {
    fn name(&self) -> &'static str {
        "rms-norm"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        weight: &CpuStorage,
        weight_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let weight = floats(weight, weight_layout)?;
        let rows = Rows { columns: weight.len(), groups: &[(weight, 1)], eps: self.eps };
        Ok(output(forward(self.level, &rows, floats(x, x_layout)?), x_layout.shape()))
    }

    fn bwd(
        &self,
        x: &Tensor,
        weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.gradients(x, weight, dy)?;
        Ok((Some(gradient(dx, x)?), if_tracked(dw, weight)?))
    }
}

struct QkNorm {
    columns: usize,
    /// The number of slices of the queries that are normalised separately, such as heads.
    q_slices: usize,
    /// The same for the keys.
    k_slices: usize,
    eps: f32,
    level: Level,
}

impl QkNorm {
    fn rows<'a>(&self, groups: &'a [(&'a [f32], usize)]) -> Rows<'a> {
        Rows { columns: self.columns, groups, eps: self.eps }
    }

    /// The gradient of `qkv`, and the gradients of both weights, concatenated.
    fn gradients(
        &self,
        qkv: &Tensor,
        q_weight: &Tensor,
        k_weight: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Vec<f32>, Vec<f32>)> {
        with_floats(qkv, |qkv| {
            with_floats(q_weight, |q_weight| {
                with_floats(k_weight, |k_weight| {
                    let groups = [(q_weight, self.q_slices), (k_weight, self.k_slices)];
                    with_floats(dy, |dy| backward(self.level, &self.rows(&groups), qkv, dy))
                })
            })
        })???
    }
}

impl CustomOp3 for QkNorm {
    fn name(&self) -> &'static str {
        "qk-norm"
    }

    fn cpu_fwd(
        &self,
        qkv: &CpuStorage,
        qkv_layout: &Layout,
        q_weight: &CpuStorage,
        q_layout: &Layout,
        k_weight: &CpuStorage,
        k_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let groups = [(floats(q_weight, q_layout)?, self.q_slices), (floats(k_weight, k_layout)?, self.k_slices)];
        Ok(output(forward(self.level, &self.rows(&groups), floats(qkv, qkv_layout)?), qkv_layout.shape()))
    }

    fn bwd(
        &self,
        qkv: &Tensor,
        q_weight: &Tensor,
        k_weight: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>, Option<Tensor>)> {
        let (dx, dw) = self.gradients(qkv, q_weight, k_weight, dy)?;
        let head_dim = q_weight.elem_count();
        let (dq, dk) = dw.split_at(head_dim);
        Ok((Some(gradient(dx, qkv)?), if_tracked(dq.to_vec(), q_weight)?, if_tracked(dk.to_vec(), k_weight)?))
    }
}

/// Returns the gradient unless the weight is frozen.
fn if_tracked(values: Vec<f32>, weight: &Tensor) -> candle_core::Result<Option<Tensor>> {
    weight.track_op().then(|| gradient(values, weight)).transpose()
}

/// How the columns of a row are divided into slices that are normalised separately.
#[derive(Clone, Copy)]
struct Rows<'a> {
    columns: usize,
    /// Each weight, as wide as a slice, with the number of consecutive slices that use it; columns after the last slice pass through.
    groups: &'a [(&'a [f32], usize)],
    eps: f32,
}

impl<'a> Rows<'a> {
    /// The first column and weight of each slice, and the index of the weight.
    #[inline(always)]
    fn slices(self) -> impl Iterator<Item = (usize, &'a [f32], usize)> {
        let mut column = 0;
        let each = self.groups.iter().enumerate().flat_map(|(g, &(weight, count))| std::iter::repeat_n((weight, g), count));
        each.map(move |(weight, g)| {
            column += weight.len();
            (column - weight.len(), weight, g)
        })
    }

    fn normalised_columns(self) -> usize {
        self.groups.iter().map(|(weight, count)| weight.len() * count).sum()
    }
}

/// The rows per task: a constant, so that the order of the sums in `dw` does not depend on the number of threads.
const ROWS: usize = 32;

fn forward(level: Level, rows: &Rows, x: &[f32]) -> Vec<f32> {
    let block = ROWS * rows.columns.max(1);
    let fill = |y: &mut [MaybeUninit<f32>]| {
        y.par_chunks_mut(block).zip(x.par_chunks(block)).for_each(|(y, x)| level.run(Forward { rows: *rows, x, y }));
    };
    // SAFETY: `Forward` writes every element of its block: the slices and the columns after them.
    unsafe { written(x.len(), fill) }
}

struct Forward<'a> {
    rows: Rows<'a>,
    x: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Rows { columns, eps, .. } = self.rows;
        let passed = self.rows.normalised_columns();
        assert_eq!(self.x.len(), self.y.len());
        for (x, y) in self.x.chunks_exact(columns).zip(self.y.chunks_exact_mut(columns)) {
            for (start, weight, _) in self.rows.slices() {
                let (x, y) = (&x[start..start + weight.len()], &mut y[start..start + weight.len()]);
                // SAFETY: the instructions are there by contract; all three slices are as long as `weight`.
                unsafe {
                    let r = V::splat(inverse_rms::<V>(x, eps));
                    for_lanes::<V>(
                        x.len(),
                        #[inline(always)]
                        |i, n| {
                            let normalised = load::<V>(x, i, n).mul(r);
                            store(normalised.mul(load::<V>(weight, i, n)), y.as_mut_ptr().cast(), i, n);
                        },
                    );
                }
            }
            y[passed..].write_copy_of_slice(&x[passed..]);
        }
    }
}

/// Returns `(dx, dw)`, with the gradients of the weights concatenated.
fn backward(level: Level, rows: &Rows, x: &[f32], dy: &[f32]) -> (Vec<f32>, Vec<f32>) {
    let weights: usize = rows.groups.iter().map(|(weight, _)| weight.len()).sum();
    let block = ROWS * rows.columns.max(1);
    let mut dw_of_blocks = vec![0.0; x.len().div_ceil(block) * weights];
    let fill = |dx: &mut [MaybeUninit<f32>]| {
        let inputs = x.par_chunks(block).zip(dy.par_chunks(block));
        let outputs = dx.par_chunks_mut(block).zip(dw_of_blocks.par_chunks_mut(weights.max(1)));
        inputs.zip(outputs).for_each(|((x, dy), (dx, dw))| level.run(Backward { rows: *rows, x, dy, dx, dw }));
    };
    // SAFETY: `Backward` writes every element of its block: the slices and the columns after them.
    let dx = unsafe { written(x.len(), fill) };
    let mut dw = vec![0.0; weights];
    for block in dw_of_blocks.chunks_exact(weights.max(1)) {
        dw.iter_mut().zip(block).for_each(|(sum, x)| *sum += x);
    }
    (dx, dw)
}

struct Backward<'a> {
    rows: Rows<'a>,
    x: &'a [f32],
    dy: &'a [f32],
    dx: &'a mut [MaybeUninit<f32>],
    /// The weight's gradient, to which this block's is added.
    dw: &'a mut [f32],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Rows { columns, eps, groups } = self.rows;
        let passed = self.rows.normalised_columns();
        assert!(self.x.len() == self.dy.len() && self.x.len() == self.dx.len());
        let inputs = self.x.chunks_exact(columns).zip(self.dy.chunks_exact(columns));
        for ((x, dy), dx) in inputs.zip(self.dx.chunks_exact_mut(columns)) {
            for (start, weight, group) in self.rows.slices() {
                let width = weight.len();
                let (x, dy, dx) = (&x[start..start + width], &dy[start..start + width], &mut dx[start..start + width]);
                let dw_start: usize = groups[..group].iter().map(|(weight, _)| weight.len()).sum();
                let dw = &mut self.dw[dw_start..dw_start + width];
                // SAFETY: the instructions are there by contract; all five slices are as long as `weight`.
                unsafe {
                    let r = inverse_rms::<V>(x, eps);
                    let mut dot = V::splat(0.0);
                    for_lanes::<V>(
                        width,
                        #[inline(always)]
                        |i, n| {
                            dot = load::<V>(dy, i, n).mul(load::<V>(weight, i, n)).mul_add(load::<V>(x, i, n), dot);
                        },
                    );
                    let shrink = V::splat(-r * r * dot.sum() / width as f32);
                    let r = V::splat(r);
                    for_lanes::<V>(
                        width,
                        #[inline(always)]
                        |i, n| {
                            let (x, dy) = (load::<V>(x, i, n), load::<V>(dy, i, n));
                            let dx_lanes = x.mul_add(shrink, dy.mul(load::<V>(weight, i, n))).mul(r);
                            store(dx_lanes, dx.as_mut_ptr().cast(), i, n);
                            store(dy.mul(x).mul_add(r, load::<V>(dw, i, n)), dw.as_mut_ptr(), i, n);
                        },
                    );
                }
            }
            dx[passed..].write_copy_of_slice(&dy[passed..]);
        }
    }
}

/// `1 / sqrt(mean(x^2) + eps)`
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn inverse_rms<V: Lanes>(x: &[f32], eps: f32) -> f32 {
    // SAFETY: the instructions are there by contract; `i + n` never passes the end of `x`.
    unsafe {
        // Two sums, so that an addition need not wait for the previous one.
        let mut sums = [V::splat(0.0); 2];
        for_lanes::<V>(
            x.len(),
            #[inline(always)]
            |i, n| {
                let x = load::<V>(x, i, n);
                let sum = &mut sums[i / V::N % 2];
                *sum = x.mul_add(x, *sum);
            },
        );
        1.0 / (sums[0].add(sums[1]).sum() / x.len() as f32 + eps).sqrt()
    }
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::kernels::testing::{close, implementations, noise};

    const EPS: f64 = 1e-5;

    fn truth(x: &[f32], weight: &[f32]) -> Vec<f64> {
        let normalise = |row: &[f32]| {
            let mean_square = row.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>() / row.len() as f64;
            let r = 1.0 / (mean_square + EPS).sqrt();
            row.iter().zip(weight).map(|(&x, &w)| f64::from(x) * r * f64::from(w)).collect::<Vec<_>>()
        };
        x.chunks(weight.len()).flat_map(normalise).collect()
    }

    fn values(x: &Tensor) -> Vec<f32> {
        x.flatten_all().unwrap().to_vec1().unwrap()
    }

    #[test]
    fn by_hand() {
        // mean(3^2, 4^2, 0, 0) = 25/4, so the row is divided by 5/2.
        let x = Tensor::new(&[[3f32, 4.0, 0.0, 0.0]], &Device::Cpu).unwrap();
        let weight = Tensor::new(&[1f32, 10.0, 1.0, 1.0], &Device::Cpu).unwrap();
        for kernels in implementations() {
            close(&values(&rms_norm(&x, &weight, 0.0, kernels).unwrap()), &[1.2, 16.0, 0.0, 0.0], 1e-6, "by hand");
        }
    }

    #[test]
    fn every_level_and_the_reference_match_the_truth() {
        for (tokens, width) in [(1, 1), (2, 2), (31, 15), (32, 16), (33, 17), (65, 63), (3, 577), (0, 5), (2, 4096)] {
            let (x, weight) = (noise(tokens * width, 3.0, 1), noise(width, 2.0, 2));
            let expected = truth(&x, &weight);
            for level in Level::available() {
                let rows = Rows { columns: width, groups: &[(&weight, 1)], eps: EPS as f32 };
                close(&forward(level, &rows, &x), &expected, 2e-6, &format!("{level} {tokens}x{width}"));
            }
            let x = Tensor::from_vec(x, (tokens, width), &Device::Cpu).unwrap();
            let weight = Tensor::from_vec(weight, width, &Device::Cpu).unwrap();
            close(&values(&reference(&x, &weight, EPS).unwrap()), &expected, 2e-6, "reference");
        }
    }

    #[test]
    fn heads_are_normalised_apart_and_values_pass() {
        let (tokens, heads, kv_heads, head_dim) = (33, 3, 1, 20);
        let columns = (heads + 2 * kv_heads) * head_dim;
        let (x, q_weight, k_weight) = (noise(tokens * columns, 3.0, 1), noise(head_dim, 2.0, 2), noise(head_dim, 2.0, 3));
        let of_row = |row: &[f32]| {
            let (q, rest) = row.split_at(heads * head_dim);
            let (k, v) = rest.split_at(kv_heads * head_dim);
            [truth(q, &q_weight), truth(k, &k_weight), v.iter().map(|&v| f64::from(v)).collect()].concat()
        };
        let expected: Vec<f64> = x.chunks(columns).flat_map(of_row).collect();
        for level in Level::available() {
            let rows = Rows { columns, groups: &[(&q_weight, heads), (&k_weight, kv_heads)], eps: EPS as f32 };
            close(&forward(level, &rows, &x), &expected, 2e-6, level.name());
        }
        let x = Tensor::from_slice(&x, (tokens, columns), &Device::Cpu).unwrap();
        let weight = |w: &[f32]| Tensor::from_slice(w, head_dim, &Device::Cpu).unwrap();
        for kernels in implementations() {
            let y = qk_norm(&x, &weight(&q_weight), &weight(&k_weight), heads, kv_heads, EPS, kernels).unwrap();
            close(&values(&y), &expected, 2e-6, &format!("{kernels:?}"));
        }
        assert!(qk_norm(&x, &weight(&q_weight), &weight(&k_weight), 4, 2, EPS, Kernels::Fused).is_err());
    }

    #[test]
    fn gradients_match_the_reference() {
        let (tokens, heads, kv_heads, head_dim) = (70, 3, 1, 21);
        let columns = (heads + 2 * kv_heads) * head_dim;
        let var = |n: usize, shape: &[usize], seed| Var::from_vec(noise(n, 2.0, seed), shape, &Device::Cpu).unwrap();
        let x = var(tokens * columns, &[tokens, columns], 1);
        let weight = var(columns, &[columns], 2);
        let (q_weight, k_weight) = (var(head_dim, &[head_dim], 3), var(head_dim, &[head_dim], 4));
        let upstream = Tensor::from_vec(noise(tokens * columns, 1.0, 5), (tokens, columns), &Device::Cpu).unwrap();
        let gradients = |kernels| {
            let y = qk_norm(&x, &q_weight, &k_weight, heads, kv_heads, EPS, kernels).unwrap();
            let y = rms_norm(&y, &weight, EPS, kernels).unwrap();
            let gradients = (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
            [&x, &weight, &q_weight, &k_weight].map(|var| values(gradients.get(var).unwrap()))
        };
        for (fused, reference) in gradients(Kernels::Fused).iter().zip(gradients(Kernels::Reference)) {
            let expected: Vec<f64> = reference.into_iter().map(f64::from).collect();
            close(fused, &expected, 1e-4, "gradient");
        }
    }

    /// A norm over all query heads equals that of a single query head of the same width.
    #[test]
    fn a_norm_over_all_heads_is_that_of_one_wide_head() {
        let (tokens, heads, kv_heads, head_dim) = (37, 6, 2, 7);
        let (q_width, k_width) = (heads * head_dim, kv_heads * head_dim);
        let columns = q_width + 2 * k_width;
        let var = |n: usize, shape: &[usize], seed| Var::from_vec(noise(n, 2.0, seed), shape, &Device::Cpu).unwrap();
        let x = var(tokens * columns, &[tokens, columns], 1);
        let (q_weight, k_weight) = (var(q_width, &[q_width], 2), var(k_width, &[k_width], 3));
        let upstream = Tensor::from_vec(noise(tokens * columns, 1.0, 4), (tokens, columns), &Device::Cpu).unwrap();
        let by_parts = {
            let q = rms_norm(&x.narrow(1, 0, q_width).unwrap(), &q_weight, EPS, Kernels::Reference).unwrap();
            let k = rms_norm(&x.narrow(1, q_width, k_width).unwrap(), &k_weight, EPS, Kernels::Reference).unwrap();
            Tensor::cat(&[q, k, x.narrow(1, q_width + k_width, k_width).unwrap()], 1).unwrap()
        };
        let gradients = |y: &Tensor| {
            let gradients = (y * &upstream).unwrap().sum_all().unwrap().backward().unwrap();
            [&x, &q_weight, &k_weight].map(|var| values(gradients.get(var).unwrap()))
        };
        let wide = |x: &[f32]| x.iter().map(|&x| f64::from(x)).collect::<Vec<_>>();
        let expected = gradients(&by_parts).map(|gradient| wide(&gradient));
        for kernels in [Kernels::Reference, Kernels::Fused] {
            let y = qk_norm(&x, &q_weight, &k_weight, heads, kv_heads, EPS, kernels).unwrap();
            for (found, expected) in gradients(&y).iter().zip(&expected) {
                close(found, expected, 1e-4, &format!("{kernels:?}"));
            }
        }
        for kernels in implementations() {
            let y = qk_norm(&x, &q_weight, &k_weight, heads, kv_heads, EPS, kernels).unwrap();
            close(&values(&y), &wide(&values(&by_parts)), 2e-6, &format!("{kernels:?}"));
        }
        let (dx, dq, dk) = qk_norm_backward(&x, &q_weight, &k_weight, heads, kv_heads, EPS, &upstream).unwrap();
        for (found, expected) in [values(&dx), dq, dk].iter().zip(&expected) {
            close(found, expected, 1e-4, "backward");
        }
    }

    #[test]
    fn every_level_has_the_same_gradient() {
        let (tokens, width) = (40, 37);
        let (x, weight, dy) = (noise(tokens * width, 3.0, 1), noise(width, 2.0, 2), noise(tokens * width, 1.0, 3));
        let rows = Rows { columns: width, groups: &[(&weight, 1)], eps: EPS as f32 };
        let (dx, dw) = backward(Level::Portable, &rows, &x, &dy);
        let wide = |x: Vec<f32>| x.into_iter().map(f64::from).collect::<Vec<_>>();
        let (dx, dw) = (wide(dx), wide(dw));
        for level in Level::available() {
            let got = backward(level, &rows, &x, &dy);
            close(&got.0, &dx, 1e-5, level.name());
            close(&got.1, &dw, 1e-5, level.name());
        }
    }

    #[test]
    fn a_weight_of_another_width_is_refused() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros(4, DType::F32, &Device::Cpu).unwrap();
        assert!(rms_norm(&x, &weight, EPS, Kernels::Fused).unwrap_err().message().contains("expected [3]"));
    }
}
