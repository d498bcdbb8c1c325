//! The fused product: computes tiles of the output on all cores, and adds the residual as each tile is stored.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::dispatch::{dispatch, widens};
use super::pack::{GROUP, PANEL, Panels, bf16_pair, split_pair};
use super::tile::{MANY_ROWS, Product, ProductKernel, tile, widen};
use crate::kernels::Dtype;
use crate::kernels::cpu::written;
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::tasks::for_each_task;

/// The words of `k` per block. A panel's block stays in a cache while all rows of a task are multiplied with it: in the second-level cache (144
/// KiB) if eight rows share what is read, in the first (24 KiB) if registers hold fewer rows. The sums of earlier blocks are read back from the
/// output exactly, so the block size does not affect the result.
const fn depth_block<P: Product>() -> usize {
    if P::V::N == 16 { 768 } else { 128 }
}
/// The number of rows rounded to bf16 per task.
const ROUND_BLOCK: usize = 32;

/// `x W^T`, plus `residual_tn` if there is one. `x_tk` is `[T, K]` row-major; the result is `[T, N]`.
pub(in crate::kernels) fn multiply(
    level: Level,
    x_tk: &[f32],
    n_rows: usize,
    weight: &Panels,
    residual_tn: Option<&[f32]>,
) -> Vec<f32> {
    let n = weight.out_features();
    assert!(residual_tn.is_none_or(|residual| residual.len() == n_rows * n), "the residual has the output's shape");
    multiply_rows(level, &Rows::new(level, x_tk, n_rows, weight), weight, residual_tn)
}

/// [`multiply`] of rows that are words already.
pub(super) fn multiply_rows(level: Level, x: &Rows, weight: &Panels, residual_tn: Option<&[f32]>) -> Vec<f32> {
    let len = x.n_rows * weight.out_features();
    // Not zeroed, because the tiles write every element.
    let mut y_tn: Vec<f32> = Vec::with_capacity(len);
    run(level, x, weight, residual_tn, Output(y_tn.as_mut_ptr()));
    // SAFETY: the tasks cover all rows and all panels, and a tile writes each of its elements; the capacity was reserved above.
    unsafe { y_tn.set_len(len) };
    y_tn
}

fn run(level: Level, x: &Rows, weight: &Panels, residual_tn: Option<&[f32]>, output: Output) {
    for_each_task(x.n_rows, weight.n_panels(), |rows, panels| {
        let many = rows.len() >= MANY_ROWS;
        let block = Block { x, weight, residual_tn, output, rows, panels };
        if many && widens(level, weight.dtype()) {
            dispatch(level, weight.dtype(), WidenedBlock(block));
        } else {
            dispatch(level, weight.dtype(), block);
        }
    });
}

/// The input in words: f32 without conversion, or bf16 pairs in one or two parts.
pub(crate) struct Rows<'a> {
    words: std::borrow::Cow<'a, [u32]>,
    n_rows: usize,
    /// The distance between rows, in words.
    stride: usize,
}

impl<'a> Rows<'a> {
    /// All of `x_tk [T, K]`.
    pub(crate) fn new(level: Level, x_tk: &'a [f32], n_rows: usize, weight: &Panels) -> Rows<'a> {
        assert_eq!(x_tk.len(), n_rows * weight.in_features());
        Rows::strided(level, x_tk, weight.in_features(), n_rows, weight)
    }

    /// `n_rows` rows of `K` numbers that start `stride` numbers apart.
    pub(crate) fn strided(level: Level, x: &'a [f32], stride: usize, n_rows: usize, weight: &Panels) -> Rows<'a> {
        let (k, depth) = (weight.in_features(), weight.depth());
        assert!(k <= stride && (n_rows == 0 || x.len() >= (n_rows - 1) * stride + k));
        match weight.dtype() {
            Dtype::F32 => {
                // SAFETY: f32 and u32 have the same size and alignment, and every bit pattern is a valid u32.
                let words = unsafe { std::slice::from_raw_parts(x.as_ptr().cast::<u32>(), x.len()) };
                Rows { words: words.into(), n_rows, stride }
            }
            dtype => {
                let fill = |words: &mut [MaybeUninit<u32>]| {
                    words.par_chunks_mut(ROUND_BLOCK * depth).enumerate().for_each(|(i, words)| {
                        let x = &x[i * ROUND_BLOCK * stride..];
                        match dtype {
                            Dtype::Bf16x3 => level.run(SplitToBf16 { x, stride, k, words }),
                            _ => level.run(RoundToBf16 { x, stride, k, words }),
                        }
                    });
                };
                // SAFETY: the chunks cover all rows, and the kernel writes every word of each.
                let words = unsafe { written(n_rows * depth, fill) };
                Rows { words: words.into(), n_rows, stride: depth }
            }
        }
    }

    pub(crate) fn stride(&self) -> usize {
        self.stride
    }

    /// A pointer to `n` rows from `first` on, which are `stride` words apart.
    pub(crate) fn rows(&self, first: usize, n: usize) -> *const u32 {
        assert!(first + n <= self.n_rows);
        self.words[first * self.stride..].as_ptr()
    }
}

/// Rounds rows of `k` numbers to rows of pairs, padded with a zero if `k` is odd.
struct RoundToBf16<'a> {
    x: &'a [f32],
    stride: usize,
    k: usize,
    words: &'a mut [MaybeUninit<u32>],
}

impl Kernel for RoundToBf16<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for (words, x) in self.words.chunks_exact_mut(self.k.div_ceil(2)).zip(self.x.chunks(self.stride)) {
            let (pairs, odd) = x[..self.k].as_chunks::<2>();
            for (word, &[a, b]) in words.iter_mut().zip(pairs) {
                word.write(bf16_pair(a, b));
            }
            for &a in odd {
                words[pairs.len()].write(bf16_pair(a, 0.0));
            }
        }
    }
}

/// Splits rows of `k` numbers into rows of their two parts, in the layout of a panel.
struct SplitToBf16<'a> {
    x: &'a [f32],
    stride: usize,
    k: usize,
    words: &'a mut [MaybeUninit<u32>],
}

impl Kernel for SplitToBf16<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let groups = self.words.as_chunks_mut::<{ 2 * GROUP }>().0;
        for (groups, x) in groups.chunks_exact_mut(self.k.div_ceil(2 * GROUP)).zip(self.x.chunks(self.stride)) {
            for (group, x) in groups.iter_mut().zip(x[..self.k].chunks(2 * GROUP)) {
                let mut numbers = [0.0; 2 * GROUP];
                numbers[..x.len()].copy_from_slice(x);
                for i in 0..GROUP {
                    let [upper, lower] = split_pair(numbers[2 * i], numbers[2 * i + 1]);
                    group[i].write(upper);
                    group[GROUP + i].write(lower);
                }
            }
        }
    }
}

/// The output that the tasks write to, each its own elements.
#[derive(Clone, Copy)]
struct Output(*mut f32);

// SAFETY: the blocks of two tasks share no element, and nothing is read before all tasks have ended.
unsafe impl Send for Output {}
// SAFETY: as above.
unsafe impl Sync for Output {}

struct Block<'a> {
    x: &'a Rows<'a>,
    weight: &'a Panels,
    residual_tn: Option<&'a [f32]>,
    output: Output,
    rows: Range<usize>,
    panels: Range<usize>,
}

impl ProductKernel for Block<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<P: Product>(self) {
        let depth = self.weight.depth();
        let mut first_k = 0;
        loop {
            let end_k = (first_k + depth_block::<P>()).min(depth);
            for panel in self.panels.clone() {
                let w = &self.weight.panel(panel)[first_k * PANEL..end_k * PANEL];
                // SAFETY: `w` are the panel's words of `first_k..end_k`; the instructions are there by contract.
                unsafe { self.against::<P>(panel, w, first_k, end_k) };
            }
            first_k = end_k;
            if first_k >= depth {
                break;
            }
        }
    }
}

/// A [`Block`], with the same bits, for products that widen their panels to f32 first. A separate kernel, because compiled as one function both
/// spill their sums to memory.
struct WidenedBlock<'a>(Block<'a>);

impl ProductKernel for WidenedBlock<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<P: Product>(self) {
        assert!(P::WIDENS, "this product takes words as they are");
        let WidenedBlock(block) = self;
        let depth = block.weight.depth();
        let depth_block = (depth_block::<P>() / 2).min(depth);
        let mut widened = Panels::zeros(PANEL, (2 * depth_block).max(1), Dtype::F32);
        let mut first_k = 0;
        loop {
            let end_k = (first_k + depth_block).min(depth);
            for panel in block.panels.clone() {
                let w = &block.weight.panel(panel)[first_k * PANEL..end_k * PANEL];
                // SAFETY: the panel's words of `first_k..end_k`, widened; the instructions are there by contract.
                unsafe {
                    widen::<P::V>(w, widened.floats_mut());
                    block.against::<P::Widened>(panel, widened.panel(0), first_k, end_k);
                }
            }
            first_k = end_k;
            if first_k >= depth {
                break;
            }
        }
    }
}

impl Block<'_> {
    /// Adds `first_k..end_k` to all rows, for one panel, whose words for this range are `w`.
    ///
    /// # Safety
    /// As [`Block::tile`].
    #[inline(always)]
    unsafe fn against<P: Product>(&self, panel: usize, w: &[u32], first_k: usize, end_k: usize) {
        let mut row = self.rows.start;
        while row < self.rows.end {
            let n_rows = P::MAX_ROWS.min(self.rows.end - row);
            // SAFETY: the rows exist; the rest is by contract.
            row += unsafe {
                match n_rows {
                    // Only compiled for products with tiles of that height.
                    32.. if const { P::MAX_ROWS >= 32 } => self.tile::<P, 32>(row, panel, w, first_k, end_k),
                    16.. if const { P::MAX_ROWS >= 16 } => self.tile::<P, 16>(row, panel, w, first_k, end_k),
                    8.. => self.tile::<P, 8>(row, panel, w, first_k, end_k),
                    4.. => self.tile::<P, 4>(row, panel, w, first_k, end_k),
                    3.. => self.tile::<P, 3>(row, panel, w, first_k, end_k),
                    2.. => self.tile::<P, 2>(row, panel, w, first_k, end_k),
                    _ => self.tile::<P, 1>(row, panel, w, first_k, end_k),
                }
            };
        }
    }

    /// Adds `first_k..end_k` to `R` rows from `row` on; returns `R`.
    ///
    /// # Safety
    /// The rows and the panel must exist, `first_k..end_k` must lie within its depth, and `w` must be its words for this range; the processor
    /// must have `P`'s instructions.
    #[inline(always)]
    unsafe fn tile<P: Product, const R: usize>(
        &self,
        row: usize,
        panel: usize,
        w: &[u32],
        first_k: usize,
        end_k: usize,
    ) -> usize {
        let n = self.weight.out_features();
        let first_column = panel * PANEL;
        let n_columns = PANEL.min(n - first_column);
        let last = end_k == self.weight.depth();
        let lanes = |column: usize| n_columns.saturating_sub(column).min(P::V::N);
        let at = |r: usize, column: usize| (row + r) * n + first_column + column;
        let x = self.x.rows(row, R);
        // SAFETY: `lanes(column)` elements from `at(r, column)` on lie in row `row + r` of the output, and of the residual, which has the same
        // shape; blocks of `k` after the first read what the first has written; the slice bounds `x`, and the contract covers `w`.
        unsafe {
            tile::<P, R>(
                x.add(first_k),
                self.x.stride(),
                w.as_ptr(),
                end_k - first_k,
                #[inline(always)]
                |r, column| match first_k {
                    0 => P::V::splat(0.0),
                    _ if lanes(column) == P::V::N => P::V::load(self.output.0.add(at(r, column))),
                    _ if lanes(column) == 0 => P::V::splat(0.0),
                    _ => P::V::load_first(self.output.0.add(at(r, column)), lanes(column)),
                },
                #[inline(always)]
                |r, column, mut sums| {
                    let n_lanes = lanes(column);
                    if n_lanes == P::V::N {
                        if last && let Some(residual) = self.residual_tn {
                            sums = P::V::load(residual.as_ptr().add(at(r, column))).add(sums);
                        }
                        sums.store(self.output.0.add(at(r, column)));
                    } else if n_lanes > 0 {
                        if last && let Some(residual) = self.residual_tn {
                            sums = P::V::load_first(residual.as_ptr().add(at(r, column)), n_lanes).add(sums);
                        }
                        sums.store_first(self.output.0.add(at(r, column)), n_lanes);
                    }
                },
            );
        }
        R
    }
}
