//! The product with AVX-512's dot products of bytes (VNNI), which take four inputs of sixteen outputs at a time.
//!
//! They multiply bytes without a sign by bytes with one. The weights' numbers are such bytes; an input becomes three of them: a whole number
//! of 24 bits times a scale that 32 neighbours share, `x = s (65536 a + 256 b + c)`, which is what an f32 holds beside the largest of the
//! 32. Three sums of a block are exact, and what is added after that, in f32, is what every level adds.

#![allow(clippy::needless_range_loop, reason = "indices over register tiles read like the formulas")]

use std::arch::x86_64::*;
use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::blocks::{Form, PANEL};
use super::task::{HALVES, ONE, Place, SUMMED, TWO, Task, sums_of};
use crate::kernels::cpu::{Shared, written};

/// Outputs of a vector.
const LANES: usize = 16;
/// Bytes of an input.
const PARTS: usize = 3;
/// Inputs of one dot product.
const QUAD: usize = 4;
/// Inputs for which the numbers are added up, to take from the sums what bytes without a sign have too much.
const SHORTEST: usize = 16;
/// The largest number of three bytes with a sign each.
const LARGEST: f32 = (127 * 65536 + 127 * 256 + 127) as f32;
/// Numbers that are smaller count as 0: their reciprocals are hardly numbers any more.
const SMALLEST: f32 = 1e-30;

/// The input as whole numbers.
pub(super) struct Fixed {
    k: usize,
    /// `[T][K / QUAD][PARTS]`, four bytes in each
    words: Vec<i32>,
    /// `[T][K / SUMMED]`
    scales: Vec<f32>,
    /// `[T][K / SHORTEST][PARTS]`: the sums of the numbers, times -128
    starts: Vec<[i32; PARTS]>,
    /// `[T][K / SUMMED]`: the sums of the inputs themselves
    sums: Vec<f32>,
}

/// Words of [`SUMMED`] inputs.
const WORDS: usize = SUMMED / QUAD * PARTS;
/// Blocks of [`SUMMED`] inputs per task.
const BLOCKS: usize = 96;

impl Fixed {
    /// # Safety
    /// The processor must have the instructions of [`run`].
    pub(super) unsafe fn new(x_tk: &[f32], k: usize) -> Fixed {
        let n_blocks = x_tk.len() / SUMMED;
        let (mut scales, mut starts) = (vec![0.0; n_blocks], vec![[0; PARTS]; n_blocks * (SUMMED / SHORTEST)]);
        let fill = |words: &mut [MaybeUninit<i32>]| {
            let tasks = words.par_chunks_mut(BLOCKS * WORDS).zip(x_tk.par_chunks(BLOCKS * SUMMED));
            let to = scales.par_chunks_mut(BLOCKS).zip(starts.par_chunks_mut(BLOCKS * SUMMED / SHORTEST));
            tasks.zip(to).for_each(|((words, x), (scales, starts))| {
                let (words, x) = (words.as_chunks_mut::<WORDS>().0, x.as_chunks::<SUMMED>().0);
                let starts = starts.as_chunks_mut::<{ SUMMED / SHORTEST }>().0;
                for (((words, x), scale), starts) in words.iter_mut().zip(x).zip(scales).zip(starts) {
                    // SAFETY: by contract.
                    *scale = unsafe { whole_numbers(x, words, starts) };
                }
            });
        };
        // SAFETY: every block writes all of its words, and the blocks are all there are, `K` being a multiple of their length.
        let words = unsafe { written(n_blocks * WORDS, fill) };
        Fixed { k, words, scales, starts, sums: sums_of(x_tk) }
    }
}

/// 32 inputs as whole numbers times the scale that is returned. If one of them is no number, the scale is none either.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
fn whole_numbers(
    x: &[f32; SUMMED],
    words: &mut [MaybeUninit<i32>; WORDS],
    starts: &mut [[i32; PARTS]; SUMMED / SHORTEST],
) -> f32 {
    // Infinities of both signs and whatever is no number.
    const ODD: i32 = 0x99;
    // SAFETY: sixteen numbers are there.
    let x = unsafe { [_mm512_loadu_ps(x.as_ptr()), _mm512_loadu_ps(x.as_ptr().add(LANES))] };
    let largest = _mm512_reduce_max_ps(_mm512_max_ps(_mm512_abs_ps(x[0]), _mm512_abs_ps(x[1])));
    let is_odd = _mm512_fpclass_ps_mask::<ODD>(x[0]) | _mm512_fpclass_ps_mask::<ODD>(x[1]) != 0;
    let inverse = if is_odd || largest < SMALLEST { 0.0 } else { LARGEST / largest };
    let limit = _mm512_set1_ps(LARGEST);
    for half in 0..2 {
        let scaled = _mm512_mul_ps(x[half], _mm512_set1_ps(inverse));
        let scaled = _mm512_max_ps(_mm512_min_ps(scaled, limit), _mm512_sub_ps(_mm512_setzero_ps(), limit));
        // To the nearest, the even one of two.
        let number = _mm512_cvtps_epi32(scaled);
        let c = low_byte(number);
        let rest = _mm512_srai_epi32::<8>(_mm512_sub_epi32(number, c));
        let b = low_byte(rest);
        let a = _mm512_srai_epi32::<8>(_mm512_sub_epi32(rest, b));
        let parts = [a, b, c];
        for p in 0..PARTS {
            starts[half][p] = -128 * _mm512_reduce_add_epi32(parts[p]);
            let mut quads = [0i32; LANES / QUAD];
            // SAFETY: sixteen bytes are there.
            unsafe { _mm_storeu_si128(quads.as_mut_ptr().cast(), _mm512_cvtepi32_epi8(parts[p])) };
            for quad in 0..LANES / QUAD {
                words[(half * (LANES / QUAD) + quad) * PARTS + p].write(quads[quad]);
            }
        }
    }
    match () {
        () if is_odd => f32::NAN,
        () if largest < SMALLEST => 0.0,
        () => largest / LARGEST,
    }
}

/// The lowest byte of each number, with its sign.
#[target_feature(enable = "avx512f")]
fn low_byte(numbers: __m512i) -> __m512i {
    _mm512_srai_epi32::<24>(_mm512_slli_epi32::<24>(numbers))
}

/// Rows of a task against its panels.
///
/// # Safety
/// The processor must have these instructions.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512vnni,avx2,fma")]
pub(super) unsafe fn run(task: &Task, x: &Fixed, output: &Shared<f32>) {
    for place in task.panels {
        // SAFETY: the instructions are there; the constants are those of the form.
        unsafe {
            match place.part.form() {
                Form::Nibbles => rows::<4, 4, HALVES>(task, x, output, place),
                Form::WideNibbles => rows::<4, 4, TWO>(task, x, output, place),
                Form::Bytes => rows::<8, 8, ONE>(task, x, output, place),
                Form::BytesAndLeast => rows::<8, 8, TWO>(task, x, output, place),
                Form::ShortBytes => rows::<8, 4, ONE>(task, x, output, place),
            }
        }
    }
}

/// All rows of the task against one panel: one or two rows with the whole panel, more with a vector of it after the other. The sums of a
/// block are whole numbers, so that it makes no difference.
///
/// # Safety
/// As [`run`]; `BITS`, `WORDS` and `SCALES` are those of the panel's form.
#[inline(always)]
unsafe fn rows<const BITS: usize, const WORDS: usize, const SCALES: u8>(
    task: &Task,
    x: &Fixed,
    output: &Shared<f32>,
    place: &Place,
) {
    const ALL: usize = PANEL / LANES;
    let mut row = task.first_row;
    while row < task.end_row {
        let tile = Tile { task, x, output, place, row };
        // SAFETY: the rows exist; the rest by contract.
        row += unsafe {
            match task.end_row - row {
                1 => tile.run::<1, ALL, BITS, WORDS, SCALES>(),
                2 | 3 => tile.run::<2, ALL, BITS, WORDS, SCALES>(),
                4..8 => tile.run::<4, 1, BITS, WORDS, SCALES>(),
                _ => tile.run::<8, 1, BITS, WORDS, SCALES>(),
            }
        };
    }
}

struct Tile<'a> {
    task: &'a Task<'a>,
    x: &'a Fixed,
    output: &'a Shared<f32>,
    place: &'a Place<'a>,
    row: usize,
}

impl Tile<'_> {
    /// `R` rows, `C` vectors of the panel at a time; returns `R`.
    ///
    /// # Safety
    /// As [`rows`], and the rows exist.
    #[inline(always)]
    unsafe fn run<const R: usize, const C: usize, const BITS: usize, const WORDS: usize, const SCALES: u8>(&self) -> usize {
        for vector in (0..PANEL / LANES).step_by(C) {
            // SAFETY: by contract.
            unsafe { self.vectors::<R, C, BITS, WORDS, SCALES>(vector * LANES) };
        }
        R
    }

    /// The vectors that begin at `column` of the panel.
    ///
    /// # Safety
    /// As [`Tile::run`], and `C` vectors from `column` on lie in the panel.
    #[inline(always)]
    unsafe fn vectors<const R: usize, const C: usize, const BITS: usize, const WORDS: usize, const SCALES: u8>(
        &self,
        column: usize,
    ) {
        let (k, row, part) = (self.x.k, self.row, self.place.part);
        let len = const { u32::BITS as usize / BITS * WORDS };
        let rows_of_block = const { WORDS + if SCALES == TWO { 2 } else { 1 } };
        debug_assert_eq!((len, rows_of_block), (part.form().len(), part.form().words()));
        // Checked once, for all rows and the whole of `K`.
        let (n_words, n_sums, n_starts) = (k / QUAD * PARTS, k / SUMMED, k / SHORTEST);
        let words = self.x.words[row * n_words..(row + R) * n_words].as_ptr();
        let scales_of_x = self.x.scales[row * n_sums..(row + R) * n_sums].as_ptr();
        let sums_of_x = self.x.sums[row * n_sums..(row + R) * n_sums].as_ptr();
        let starts = self.x.starts[row * n_starts..(row + R) * n_starts].as_ptr();
        // SAFETY: all addresses lie in the slices above or in the panel, whose words the form has told; the instructions are there.
        unsafe {
            let panel = part.panel(self.place.panel).add(column);
            let mut totals = [[_mm512_setzero_ps(); C]; R];
            for block in 0..part.n_blocks() {
                let w = panel.add(block * rows_of_block * PANEL);
                let mut sums = [[[_mm512_setzero_si512(); PARTS]; C]; R];
                if BITS == 8 {
                    for r in 0..R {
                        for p in 0..PARTS {
                            let mut start = 0;
                            for i in 0..const { u32::BITS as usize / BITS * WORDS / SHORTEST } {
                                start += (*starts.add(r * n_starts + block * (len / SHORTEST) + i))[p];
                            }
                            for c in 0..C {
                                sums[r][c][p] = _mm512_set1_epi32(start);
                            }
                        }
                    }
                }
                let first_quad = block * (len / QUAD);
                for word in 0..WORDS {
                    let mut bytes = [[_mm512_setzero_si512(); 2]; C];
                    for c in 0..C {
                        let loaded = _mm512_loadu_si512(w.add(word * PANEL + c * LANES).cast());
                        bytes[c] = if BITS == 4 {
                            let low = _mm512_set1_epi8(15);
                            [_mm512_and_si512(loaded, low), _mm512_and_si512(_mm512_srli_epi32::<4>(loaded), low)]
                        } else {
                            // q + 128 without a sign.
                            [_mm512_xor_si512(loaded, _mm512_set1_epi8(-128)); 2]
                        };
                    }
                    for i in 0..const { if BITS == 4 { 2 } else { 1 } } {
                        let quad = first_quad + word * const { if BITS == 4 { 2 } else { 1 } } + i;
                        for r in 0..R {
                            for p in 0..PARTS {
                                let x = _mm512_set1_epi32(*words.add(r * n_words + quad * PARTS + p));
                                for c in 0..C {
                                    sums[r][c][p] = _mm512_dpbusd_epi32(sums[r][c][p], bytes[c][i], x);
                                }
                            }
                        }
                    }
                }
                for c in 0..C {
                    let scales = w.add(WORDS * PANEL + c * LANES);
                    let first = _mm512_loadu_si512(scales.cast());
                    let scale =
                        if SCALES == HALVES { _mm512_cvtph_ps(_mm512_cvtepi32_epi16(first)) } else { _mm512_castsi512_ps(first) };
                    let least = match SCALES {
                        ONE => _mm512_setzero_ps(),
                        HALVES => _mm512_cvtph_ps(_mm512_cvtepi32_epi16(_mm512_srli_epi32::<16>(first))),
                        _ => _mm512_loadu_ps(scales.add(PANEL).cast()),
                    };
                    for r in 0..R {
                        let sum_of = block * len / SUMMED;
                        let [high, middle, low] = sums[r][c];
                        let upper = _mm512_fmadd_ps(_mm512_cvtepi32_ps(high), _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(middle));
                        let sum = _mm512_fmadd_ps(upper, _mm512_set1_ps(256.0), _mm512_cvtepi32_ps(low));
                        let sum = _mm512_mul_ps(sum, _mm512_set1_ps(*scales_of_x.add(r * n_sums + sum_of)));
                        totals[r][c] = _mm512_fmadd_ps(scale, sum, totals[r][c]);
                        if SCALES != ONE {
                            let sum = _mm512_set1_ps(*sums_of_x.add(r * n_sums + sum_of));
                            totals[r][c] = _mm512_fmadd_ps(least, sum, totals[r][c]);
                        }
                    }
                }
            }
            for r in 0..R {
                for c in 0..C {
                    let sums = crate::kernels::lanes::F32x16::new(totals[r][c]);
                    self.task.store(self.output, sums, row + r, column + c * LANES, self.place);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::level::Level;
    use crate::kernels::testing::noise;

    /// The numbers, their scale and the starts.
    fn fixed(x: &[f32; SUMMED]) -> (Vec<i32>, f32, [[i32; PARTS]; 2]) {
        let mut words = [MaybeUninit::uninit(); WORDS];
        let mut starts = [[0; PARTS]; 2];
        // SAFETY: the only caller has looked at the level; all words have been written.
        let (scale, words) = unsafe { (whole_numbers(x, &mut words, &mut starts), words.map(|word| word.assume_init())) };
        let byte = |k: usize, part: usize| i32::from(words[k / QUAD * PARTS + part].to_le_bytes()[k % QUAD] as i8);
        for (half, starts) in starts.iter().enumerate() {
            let sum = |part: usize| (half * 16..half * 16 + 16).map(|k| byte(k, part)).sum::<i32>();
            assert_eq!(*starts, [0, 1, 2].map(|part| -128 * sum(part)));
        }
        ((0..SUMMED).map(|k| 65536 * byte(k, 0) + 256 * byte(k, 1) + byte(k, 2)).collect(), scale, starts)
    }

    /// What is lost of an input is a few 2^-24ths of the largest of its 32.
    #[test]
    fn inputs_are_three_bytes() {
        if !Level::available().contains(&Level::Avx512Bf16) {
            return;
        }
        for (seed, amplitude) in [(1, 1.0), (2, 3e38), (3, 1e-28)] {
            let mut x: [f32; SUMMED] = noise(SUMMED, amplitude, seed).try_into().unwrap();
            x[5] = 0.0;
            let (numbers, scale, _) = fixed(&x);
            let largest = x.iter().fold(0f32, |largest, x| largest.max(x.abs()));
            assert!(numbers.iter().any(|number| number.abs() >= LARGEST as i32 - 1));
            for (&number, x) in numbers.iter().zip(&x) {
                let error = f64::from(number) * f64::from(scale) - f64::from(*x);
                // Half a step, and the roundings of the scale and of its reciprocal.
                assert!(error.abs() <= f64::from(largest) * 4.0 * 2f64.powi(-24), "{x}: off by {error:e}");
            }
        }
        assert_eq!(fixed(&[0.0; SUMMED]), (vec![0; SUMMED], 0.0, [[0; PARTS]; 2]));
        for odd in [f32::NAN, f32::INFINITY, f32::NEG_INFINITY] {
            let mut x = [1.0; SUMMED];
            x[27] = odd;
            assert!(fixed(&x).1.is_nan());
        }
    }
}
