//! The product with quantised blocks: tiles of up to four rows of the input times one panel of 48 outputs.
//!
//! Every output has two sums in a block, of the even and the odd inputs, so that even one row has enough independent chains to keep the
//! processor busy; the blocks follow in ascending order. The arithmetic is the same for any height of the tile, so a row's result depends
//! neither on its batch nor on the number of threads.

#![allow(clippy::needless_range_loop, reason = "indices over register tiles read like the formulas")]

use std::mem::MaybeUninit;

use super::blocks::{Blocks, Form, shift_of_nibble};
use super::task::{HALVES, ONE, Place, SUMMED, TWO, Task, places, sums_of};
use crate::kernels::cpu::{Shared, written};
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::tasks::{PANEL, for_each_task};

/// The number of vectors in a tile's row.
const VECTORS: usize = 3;
/// `x W^T`, plus `residual_tn` if there is one, where `W` is the concatenation of `parts`. `x_tk` is `[T, K]`, row-major; the result is
/// `[T, N]`.
pub(in crate::kernels) fn multiply(
    level: Level,
    x_tk: &[f32],
    n_rows: usize,
    parts: &[Blocks],
    residual_tn: Option<&[f32]>,
) -> Vec<f32> {
    let n: usize = parts.iter().map(Blocks::out_features).sum();
    let k = parts.first().map_or(0, Blocks::in_features);
    assert!(x_tk.len() == n_rows * k && parts.iter().all(|part| part.in_features() == k));
    assert!(residual_tn.is_none_or(|residual| residual.len() == n_rows * n), "the residual has the output's shape");
    let panels: Vec<Place> = places(parts);
    let sums = sums_of(x_tk);
    let fill = |y_tn: &mut [MaybeUninit<f32>]| {
        let output = Shared::new(y_tn);
        for_each_task(n_rows, panels.len(), |rows, of_task| {
            let task = Task { panels: &panels[of_task], n, residual_tn, rows };
            level.run(Tiles { task, x_tk, k, sums: &sums, output: &output });
        });
    };
    // SAFETY: the tasks cover all rows and all panels, and a tile writes each of its elements.
    unsafe { written(n_rows * n, fill) }
}

/// A task and its input.
struct Tiles<'a> {
    task: Task<'a>,
    x_tk: &'a [f32],
    k: usize,
    /// `[T, K / SUMMED]`
    sums: &'a [f32],
    output: &'a Shared<f32>,
}

impl Kernel for Tiles<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        for place in self.task.panels {
            // SAFETY: the instructions are there by contract.
            unsafe {
                match place.part.form() {
                    Form::Nibbles => self.rows::<V, 4, 4, HALVES>(place),
                    Form::WideNibbles => self.rows::<V, 4, 4, TWO>(place),
                    Form::Bytes => self.rows::<V, 8, 8, ONE>(place),
                    Form::BytesAndLeast => self.rows::<V, 8, 8, TWO>(place),
                    Form::ShortBytes => self.rows::<V, 8, 4, ONE>(place),
                }
            }
        }
    }
}

impl Tiles<'_> {
    /// Multiplies all rows of the task with one panel.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions; `BITS`, `WORDS` and `SCALES` must be those of the panel's form.
    #[inline(always)]
    unsafe fn rows<V: Lanes, const BITS: usize, const WORDS: usize, const SCALES: u8>(&self, place: &Place) {
        // Six sums per row: 24 of AVX-512's 32 registers, otherwise 12 of 16.
        let highest = if V::N == 16 { 4 } else { 2 };
        let mut row = self.task.rows.start;
        while row < self.task.rows.end {
            // SAFETY: the rows exist; the rest is by contract.
            row += unsafe {
                match (self.task.rows.end - row).min(highest) {
                    4.. => self.tile::<V, 4, BITS, WORDS, SCALES>(place, row),
                    3 => self.tile::<V, 3, BITS, WORDS, SCALES>(place, row),
                    2 => self.tile::<V, 2, BITS, WORDS, SCALES>(place, row),
                    _ => self.tile::<V, 1, BITS, WORDS, SCALES>(place, row),
                }
            };
        }
    }

    /// Multiplies `R` rows from `row` on; returns `R`.
    ///
    /// # Safety
    /// As [`Tiles::rows`], and `R` rows from `row` on must exist.
    #[inline(always)]
    unsafe fn tile<V: Lanes, const R: usize, const BITS: usize, const WORDS: usize, const SCALES: u8>(
        &self,
        place: &Place,
        row: usize,
    ) -> usize {
        let per_word = const { u32::BITS as usize / BITS };
        let rows_of_block = const { WORDS + if SCALES == TWO { 2 } else { 1 } };
        debug_assert_eq!((per_word * WORDS, rows_of_block), (place.part.form().len(), place.part.form().words()));
        let x = self.x_tk[row * self.k..(row + R) * self.k].as_ptr();
        let n_sums = self.k / SUMMED;
        let sums_of_x = self.sums[row * n_sums..(row + R) * n_sums].as_ptr();
        let panel = place.part.panel(place.panel);
        for column in (0..PANEL).step_by(VECTORS * V::N) {
            // SAFETY: `panel` has checked that its words exist; the rows of `x` have `K` numbers, which is the total length of all blocks.
            unsafe {
                let mut totals = [[V::splat(0.0); VECTORS]; R];
                for block in 0..place.part.n_blocks() {
                    let words = panel.add(block * rows_of_block * PANEL + column);
                    let x = x.add(block * per_word * WORDS);
                    let mut sums = [[[V::splat(0.0); VECTORS]; 2]; R];
                    for word in 0..WORDS {
                        let w = words.add(word * PANEL).cast::<f32>();
                        let w = [V::load(w), V::load(w.add(V::N)), V::load(w.add(2 * V::N))];
                        let x = x.add(word * per_word);
                        // Unrolled by hand, so that every sum stays in its register.
                        step::<V, R, BITS, 0>(x, self.k, &w, &mut sums);
                        step::<V, R, BITS, 1>(x, self.k, &w, &mut sums);
                        step::<V, R, BITS, 2>(x, self.k, &w, &mut sums);
                        step::<V, R, BITS, 3>(x, self.k, &w, &mut sums);
                        if const { BITS == 4 } {
                            step::<V, R, BITS, 4>(x, self.k, &w, &mut sums);
                            step::<V, R, BITS, 5>(x, self.k, &w, &mut sums);
                            step::<V, R, BITS, 6>(x, self.k, &w, &mut sums);
                            step::<V, R, BITS, 7>(x, self.k, &w, &mut sums);
                        }
                    }
                    let scales = words.add(WORDS * PANEL).cast::<f32>();
                    for c in 0..VECTORS {
                        let first = V::load(scales.add(c * V::N));
                        let scale = if SCALES == HALVES { first.halves(0) } else { first };
                        for r in 0..R {
                            totals[r][c] = scale.mul_add(sums[r][0][c].add(sums[r][1][c]), totals[r][c]);
                        }
                        if SCALES != ONE {
                            let least = if SCALES == HALVES { first.halves(16) } else { V::load(scales.add(PANEL + c * V::N)) };
                            for r in 0..R {
                                let sum = V::splat(*sums_of_x.add(r * n_sums + block));
                                totals[r][c] = least.mul_add(sum, totals[r][c]);
                            }
                        }
                    }
                }
                for r in 0..R {
                    for c in 0..VECTORS {
                        self.task.store(self.output, totals[r][c], row + r, column + c * V::N, place);
                    }
                }
            }
        }
        R
    }
}

/// Adds the products of input `I` of the words `w` to the sums of the even or the odd inputs.
///
/// # Safety
/// The processor must have `V`'s instructions; `R` numbers, `stride` apart, must be readable at offset `I` from `x`.
#[inline(always)]
unsafe fn step<V: Lanes, const R: usize, const BITS: usize, const I: usize>(
    x: *const f32,
    stride: usize,
    w: &[V; VECTORS],
    sums: &mut [[[V; VECTORS]; 2]; R],
) {
    let mut q = *w;
    for c in 0..VECTORS {
        // The shifts are constants, because a call that was not inlined here spilled all sums, which cost a fifth of the rate.
        q[c] = if BITS == 4 { w[c].nibbles(const { shift_of_nibble(I) as u32 }) } else { w[c].bytes(const { 8 * I as u32 }) };
    }
    for r in 0..R {
        // SAFETY: by contract.
        let x = unsafe { V::splat(*x.add(r * stride + I)) };
        for c in 0..VECTORS {
            sums[r][I % 2][c] = x.mul_add(q[c], sums[r][I % 2][c]);
        }
    }
}
