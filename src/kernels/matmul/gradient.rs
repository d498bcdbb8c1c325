//! The gradients of `y = x W^T`: `dx = dy W`, and `dW = dy^T x`, which is added to an existing gradient.
//!
//! Both use the product of tile.rs: `dx` with the transposed weight, which is packed temporarily (one pass over `W` for `T` times
//! the arithmetic), and `dW` with the tokens in place of the inputs. In bf16 the factors `dy`, `W` and `x` are rounded and the
//! products accumulated in f32, as in PyTorch's autocast; in bf16x3 all three have two parts.

#![allow(
    clippy::needless_range_loop,
    reason = "an iterator that stays a call would be compiled without the level's instructions"
)]

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::dispatch::dispatch;
use super::fused::{Rows, multiply_rows};
use super::pack::{GROUP, PANEL, Panels, bf16_pair, split_pair, upper_place, words_of};
use super::tile::{Product, ProductKernel, tile, widen};
use crate::kernels::Dtype;
use crate::kernels::cpu::written;
use crate::kernels::lanes::{Lanes, prefetch};
use crate::kernels::level::{Kernel, Level};

/// The outputs of `W` that are transposed and summed at a time; the sums of these blocks are then added. Limits the memory. And of the head's
/// gradient, whose target is -1 and most of whose words are below 1e-7, one f32 sum over all words would drop most words: 1e-4 of the whole gradient
/// of SmolLM2 135M, in the dimensions in which all words' vectors have one sign.
const TRANSPOSED_OUTPUTS: usize = 64 * PANEL;
/// At most two panels: the rows of a low-rank adapter.
const FEW_OUTPUTS: usize = 2 * PANEL;
/// The columns of the inputs that are gathered at a time: one cache line of each row.
const COLUMN_BLOCK: usize = 16;
/// How many rows ahead to prefetch, because rows are too far apart for the hardware prefetcher.
const ROWS_AHEAD: usize = 16;
/// The words of tokens per block: as in fused.rs, a panel's block stays in the second-level cache.
const DEPTH_BLOCK: usize = 768;

/// `dy W`: `dy_tn [T, N]` -> `[T, K]`.
pub(in crate::kernels) fn input_gradient(level: Level, weight: &Panels, dy_tn: &[f32], n_rows: usize) -> Vec<f32> {
    let mut dx_tk = Vec::new();
    add_input_gradient(level, weight, dy_tn, n_rows, &mut dx_tk);
    dx_tk
}

/// Adds `dy W` to `dx_tk`, which may be empty at first. `N` is at least 1.
pub(super) fn add_input_gradient(level: Level, weight: &Panels, dy_tn: &[f32], n_rows: usize, dx_tk: &mut Vec<f32>) {
    let n = weight.out_features();
    assert_eq!(dy_tn.len(), n_rows * n);
    for begin in (0..n).step_by(TRANSPOSED_OUTPUTS) {
        let w_kn = weight.transposed(level, begin..(begin + TRANSPOSED_OUTPUTS).min(n));
        let dy = Rows::strided(level, &dy_tn[begin.min(dy_tn.len())..], n, n_rows, &w_kn);
        let before = (!dx_tk.is_empty()).then_some(dx_tk.as_slice());
        *dx_tk = multiply_rows(level, &dy, &w_kn, before);
    }
}

/// Adds `dy^T x` to `gradient [N, K]`, with `x_tk [T, K]`, `dy_tn [T, N]` and products in `dtype`.
pub(super) fn add_weight_gradient(level: Level, dtype: Dtype, x_tk: &[f32], dy_tn: &[f32], n_rows: usize, gradient: &mut Panels) {
    let (k, n) = (gradient.in_features(), gradient.out_features());
    assert!(x_tk.len() == n_rows * k && dy_tn.len() == n_rows * n);
    if n <= FEW_OUTPUTS && n < k {
        // Computed as `(x^T dy)^T`, which gives the threads many panels instead of one or two, and gathers the narrower side into
        // columns.
        let mut transposed = Panels::zeros(k, n, Dtype::F32);
        add_weight_gradient(level, dtype, dy_tn, x_tk, n_rows, &mut transposed);
        gradient.add_transposed(&transposed);
        return;
    }
    let x = Columns::new(level, dtype, x_tk, n_rows, k);
    gradient.floats_mut().par_chunks_mut(k * PANEL).enumerate().with_max_len(1).for_each(|(panel, gradient)| {
        let first_column = panel * PANEL;
        let n_columns = PANEL.min(n - first_column);
        dispatch(level, dtype, Outer { dtype, x: &x, dy_tn, n, n_rows, first_column, n_columns, gradient });
    });
}

/// The columns of `x`, in words: f32, or bf16 pairs of neighbouring tokens, in one or two parts.
struct Columns {
    words: Vec<u32>,
    depth: usize,
    stride: usize,
}

impl Columns {
    fn new(level: Level, dtype: Dtype, x_tk: &[f32], n_rows: usize, k: usize) -> Columns {
        let depth = words_of(dtype, n_rows);
        // An odd number of cache lines, so that the eight rows of a tile do not all map to the same cache set.
        let stride = depth.next_multiple_of(32) + 16;
        let fill = |words: &mut [MaybeUninit<u32>]| {
            words.par_chunks_mut(COLUMN_BLOCK * stride).enumerate().for_each(|(i, words)| {
                let n_columns = words.len() / stride;
                let x = Part { rows: x_tk, width: k, n_rows, first: i * COLUMN_BLOCK, n_columns };
                level.run(Turn { dtype, x, depth, stride, words });
            });
        };
        // SAFETY: the `depth` words of the tokens of each column are written, and so is the padding.
        let words = unsafe { written(k * stride, fill) };
        Columns { words, depth, stride }
    }
}

/// The columns `first..first + n_columns` of `rows [n_rows, width]`.
#[derive(Clone, Copy)]
struct Part<'a> {
    rows: &'a [f32],
    width: usize,
    n_rows: usize,
    first: usize,
    n_columns: usize,
}

impl Part<'_> {
    /// Copies row `t`; zeros after the last row. Columns of `to` that the part lacks stay unchanged.
    #[inline(always)]
    fn row_into<const N: usize>(&self, t: usize, to: &mut [f32; N]) {
        if t >= self.n_rows {
            *to = [0.0; N];
            return;
        }
        let ahead = (t + ROWS_AHEAD) * self.width + self.first;
        if let Some(row) = self.rows.get(ahead..ahead + self.n_columns) {
            prefetch(row);
        }
        let row = &self.rows[t * self.width + self.first..];
        match row.first_chunk() {
            Some(row) if self.n_columns == N => *to = *row,
            _ => to[..self.n_columns].copy_from_slice(&row[..self.n_columns]),
        }
    }
}

impl Part<'_> {
    /// Passes the words `first..first + depth` of the columns to `put`, one of each column at a time; in bf16x3 `first` must
    /// start a group.
    #[inline(always)]
    fn words<const N: usize>(&self, dtype: Dtype, first: usize, depth: usize, mut put: impl FnMut(usize, &[u32; N])) {
        let (mut even, mut odd) = ([0.0; N], [0.0; N]);
        let (mut upper, mut lower) = ([0; N], [0; N]);
        match dtype {
            Dtype::F32 => {
                for i in 0..depth {
                    self.row_into(first + i, &mut even);
                    for c in 0..N {
                        upper[c] = even[c].to_bits();
                    }
                    put(i, &upper);
                }
            }
            Dtype::Bf16 => {
                for i in 0..depth {
                    self.row_into(2 * (first + i), &mut even);
                    self.row_into(2 * (first + i) + 1, &mut odd);
                    for c in 0..N {
                        upper[c] = bf16_pair(even[c], odd[c]);
                    }
                    put(i, &upper);
                }
            }
            Dtype::Bf16x3 => {
                for pair in 0..depth / 2 {
                    self.row_into(first + 2 * pair, &mut even);
                    self.row_into(first + 2 * pair + 1, &mut odd);
                    for c in 0..N {
                        [upper[c], lower[c]] = split_pair(even[c], odd[c]);
                    }
                    put(upper_place(pair), &upper);
                    put(upper_place(pair) + GROUP, &lower);
                }
            }
        }
    }
}

/// Transposes a block of columns: reads rows, writes columns.
struct Turn<'a> {
    dtype: Dtype,
    x: Part<'a>,
    depth: usize,
    stride: usize,
    /// `stride` words for each of the columns, at most [`COLUMN_BLOCK`].
    words: &'a mut [MaybeUninit<u32>],
}

impl Kernel for Turn<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Turn { dtype, x, depth, stride, words } = self;
        let n_columns = x.n_columns;
        x.words(dtype, 0, depth, |i, turned: &[u32; COLUMN_BLOCK]| {
            for c in 0..n_columns {
                words[c * stride + i].write(turned[c]);
            }
        });
        for c in 0..n_columns {
            for i in depth..stride {
                words[c * stride + i].write(0);
            }
        }
    }
}

/// Computes one panel of a weight's gradient.
struct Outer<'a> {
    dtype: Dtype,
    x: &'a Columns,
    dy_tn: &'a [f32],
    n: usize,
    n_rows: usize,
    first_column: usize,
    n_columns: usize,
    /// `[K, PANEL]`
    gradient: &'a mut [f32],
}

impl ProductKernel for Outer<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<P: Product>(mut self) {
        let block = if P::WIDENS { DEPTH_BLOCK / 2 } else { DEPTH_BLOCK };
        let rows = block.min(self.x.depth);
        let mut panel = Panels::zeros(PANEL, rows, Dtype::F32);
        let mut widened = Panels::zeros(PANEL, if P::WIDENS { 2 * rows } else { 1 }, Dtype::F32);
        for first in (0..self.x.depth).step_by(block) {
            let depth = block.min(self.x.depth - first);
            self.pack(first, depth, panel.floats_mut());
            // SAFETY: the rows exist, `depth` words are packed, and the instructions are there by contract.
            unsafe {
                if P::WIDENS {
                    widen::<P::V>(&panel.panel(0)[..depth * PANEL], widened.floats_mut());
                    self.against::<P::Widened>(first, depth, widened.panel(0));
                } else {
                    self.against::<P>(first, depth, panel.panel(0));
                }
            }
        }
    }
}

impl Outer<'_> {
    /// Adds `depth` words to all rows of the gradient.
    ///
    /// # Safety
    /// As [`Outer::tile`].
    #[inline(always)]
    unsafe fn against<P: Product>(&mut self, first: usize, depth: usize, panel: &[u32]) {
        let k_end = self.gradient.len() / PANEL;
        let mut k = 0;
        while k < k_end {
            // SAFETY: the rows exist; the rest is by contract.
            k += unsafe {
                match P::MAX_ROWS.min(k_end - k) {
                    32.. if const { P::MAX_ROWS >= 32 } => self.tile::<P, 32>(k, first, depth, panel),
                    16.. if const { P::MAX_ROWS >= 16 } => self.tile::<P, 16>(k, first, depth, panel),
                    8.. => self.tile::<P, 8>(k, first, depth, panel),
                    4.. => self.tile::<P, 4>(k, first, depth, panel),
                    3.. => self.tile::<P, 3>(k, first, depth, panel),
                    2.. => self.tile::<P, 2>(k, first, depth, panel),
                    _ => self.tile::<P, 1>(k, first, depth, panel),
                }
            };
        }
    }

    /// Packs the panel's columns of `dy`, tokens outermost: words `first..first + depth`.
    #[inline(always)]
    fn pack(&self, first: usize, depth: usize, panel: &mut [f32]) {
        let dy =
            Part { rows: self.dy_tn, width: self.n, n_rows: self.n_rows, first: self.first_column, n_columns: self.n_columns };
        let panel = panel.as_chunks_mut::<PANEL>().0;
        dy.words(self.dtype, first, depth, |i, words: &[u32; PANEL]| {
            for c in 0..PANEL {
                panel[i][c] = f32::from_bits(words[c]);
            }
        });
    }

    /// Adds `depth` words to `R` rows of the gradient from `k` on; returns `R`.
    ///
    /// # Safety
    /// `R` columns of `x` from `k` on must have the words `first..first + depth`; the processor must have `P`'s instructions.
    #[inline(always)]
    unsafe fn tile<P: Product, const R: usize>(&mut self, k: usize, first: usize, depth: usize, panel: &[u32]) -> usize {
        assert!(k + R <= self.gradient.len() / PANEL && first + depth <= self.x.depth && panel.len() >= depth * PANEL);
        // Prefetches what the next tile adds to, for which its sums would otherwise wait.
        let next = (k + R) * PANEL;
        prefetch(&self.gradient[next..self.gradient.len().min(next + R * PANEL)]);
        let x = self.x.words[k * self.x.stride + first..].as_ptr();
        let to = self.gradient[k * PANEL..(k + R) * PANEL].as_mut_ptr();
        // SAFETY: `column + N <= PANEL` in every call, so the elements are those of the rows just cut out; the assertion covers
        // `x` and the panel.
        unsafe {
            tile::<P, R>(
                x,
                self.x.stride,
                panel.as_ptr(),
                depth,
                #[inline(always)]
                |r, column| P::V::load(to.add(r * PANEL + column)),
                #[inline(always)]
                |r, column, sums| sums.store(to.add(r * PANEL + column)),
            );
        }
        R
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::testing::{DTYPES, close, noise, product};

    fn rows_of(panels: &Panels) -> Vec<f32> {
        let k = panels.in_features();
        let mut rows = vec![0.0; panels.out_features() * k];
        rows.chunks_mut(k).enumerate().for_each(|(n, row)| panels.row_into(n, row));
        rows
    }

    #[test]
    fn odd_sizes_agree_with_f64_at_every_level() {
        for (t, k, n) in [
            (1, 1, 1),
            (2, 15, 16),
            (17, 49, 47),
            (63, 16, 97),
            (64, 33, 48),
            (799, 8, 5),
            (1601, 3, 50),
            (33, 200, 96),
            // The outputs are transposed in two blocks.
            (3, 5, 64 * PANEL + 49),
            (0, 3, 4),
            (0, 200, 4),
        ] {
            let (x, w, dy) = (noise(t * k, 1.0, 1), noise(n * k, 1.0, 2), noise(t * n, 1.0, 3));
            for dtype in DTYPES {
                let mut panels = Panels::new(k, dtype);
                panels.push(&w);
                let dx: Vec<f64> =
                    (0..t * k).map(|i| (0..n).map(|j| product(dtype, dy[i / k * n + j], w[j * k + i % k])).sum()).collect();
                // The gradient was 1 before.
                let dw: Vec<f64> = (0..n * k)
                    .map(|i| 1.0 + (0..t).map(|s| product(dtype, dy[s * n + i / k], x[s * k + i % k])).sum::<f64>())
                    .collect();
                for level in Level::available() {
                    let what = format!("{level} {dtype} [{t}, {k}] [{n}, {k}]");
                    // Sums of up to 3,121 products with random signs stay below 100, with some hundred roundings of 2^-24 each.
                    close(&input_gradient(level, &panels, &dy, t), &dx, if n > 1000 { 5e-5 } else { 1e-5 }, &what);
                    let mut gradient = Panels::new(k, Dtype::F32);
                    gradient.push(&vec![1.0; n * k]);
                    add_weight_gradient(level, dtype, &x, &dy, t, &mut gradient);
                    close(&rows_of(&gradient), &dw, 1e-4, &what);
                    let columns = gradient.floats().iter().enumerate().map(|(i, x)| (i / (k * PANEL) * PANEL + i % PANEL, x));
                    assert!(columns.filter(|(column, _)| *column >= n).all(|(_, x)| *x == 0.0), "{what}: the padding is not 0");
                }
            }
        }
    }

    /// The gradient of a softmax: one -1, one word of half the mass, and a thousandth of the mass in words of 2e-8 each, which f32 does not add to a half.
    #[test]
    fn what_is_little_in_each_of_many_words_is_not_lost() {
        const LITTLE: f32 = 2e-8;
        let n = 50_000;
        let mut dy = vec![LITTLE; n];
        (dy[0], dy[n - 1]) = (0.5, -1.0);
        dy[n / 2] = 0.5 - LITTLE * (n - 3) as f32;
        let exact: f64 = dy.iter().copied().map(f64::from).sum();
        for dtype in DTYPES {
            let mut panels = Panels::new(3, dtype);
            panels.push(&vec![1.0; 3 * n]);
            let rounded: f64 = dy.iter().map(|&dy| product(dtype, dy, 1.0)).sum();
            for level in Level::available() {
                for sum in input_gradient(level, &panels, &dy, 1) {
                    // Of the thousand words of a block with a large one, most are lost: 2e-5. One sum over all words would lose 1e-3.
                    assert!((f64::from(sum) - rounded).abs() < 5e-5, "{level} {dtype}: {sum} for {rounded} ({exact})");
                }
            }
        }
    }

    #[test]
    fn transposing_moves_every_number_to_its_place() {
        for (n, k) in [(1, 1), (3, 2), (49, 47), (96, 5), (100, 97)] {
            let w = noise(n * k, 1.0, 4);
            for dtype in DTYPES {
                let mut panels = Panels::new(k, dtype);
                panels.push(&w);
                let rows = rows_of(&panels);
                for level in Level::available() {
                    let columns = rows_of(&panels.transposed(level, 0..n));
                    for i in 0..n * k {
                        assert_eq!(rows[i], columns[i % k * n + i / k], "{level} {dtype} [{n}, {k}] element {i}");
                    }
                }
            }
        }
    }
}
