//! The storage format of a weight matrix: panels of 48 outputs, `k` outermost, so that a register tile reads them front to back.
//!
//! ```text
//!   panel 0                       panel 1
//!   k = 0: w[0][0]  .. w[47][0]   w[48][0] .. w[95][0]
//!   k = 1: w[0][1]  .. w[47][1]   w[48][1] .. w[95][1]
//! ```
//!
//! In bf16 a 32-bit word holds two neighbouring `k` of one output, the even one in the low half: the operand of `vdpbf16ps`. An odd `K` and the
//! last panel are padded with zeros. In bf16x3 the first 16 of each 32 words hold the upper parts of 32 numbers, as in bf16, and the others the
//! lower parts; `K` is padded to a multiple of 32. 48 outputs are three AVX-512 vectors, so with 8 rows of the input 24 of the 32 registers hold
//! sums.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use crate::kernels::Dtype;
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};

pub(crate) use crate::kernels::tasks::PANEL;

/// The words (f32, or two bf16) in a cache line.
const LINE: usize = 16;
/// The words of upper parts before the corresponding lower parts: a row of an AMX tile.
pub(super) const GROUP: usize = 16;
const LINES_PER_DEPTH: usize = PANEL / LINE;

/// An aligned cache line, because a vector that crosses two lines costs two loads.
#[derive(Debug, Clone, Copy)]
#[repr(C, align(64))]
struct Line([u32; LINE]);

/// A packed matrix `W [N, K]`.
#[derive(Debug)]
pub(crate) struct Panels {
    lines: Vec<Line>,
    out_features: usize,
    in_features: usize,
    dtype: Dtype,
}

impl Panels {
    /// A matrix without outputs; `in_features` must be at least 1.
    pub(crate) fn new(in_features: usize, dtype: Dtype) -> Panels {
        Panels { lines: Vec::new(), out_features: 0, in_features, dtype }
    }

    /// A zero matrix `[out_features, in_features]`.
    pub(crate) fn zeros(out_features: usize, in_features: usize, dtype: Dtype) -> Panels {
        let mut panels = Panels { out_features, ..Panels::new(in_features, dtype) };
        panels.lines = vec![Line([0; LINE]); panels.n_panels() * panels.depth() * LINES_PER_DEPTH];
        panels
    }

    /// Appends outputs: `part_nk` is `[n, K]`, row-major.
    pub(crate) fn push(&mut self, part_nk: &[f32]) {
        let (k, depth, dtype) = (self.in_features, self.depth(), self.dtype);
        let before = self.out_features;
        let after = before + part_nk.len() / k;
        self.out_features = after;
        // Writes the outputs of the part that belong to a panel into its words.
        let fill = |panel: usize, words: &mut [u32]| {
            let first_output = panel * PANEL;
            for output in first_output.max(before)..(first_output + PANEL).min(after) {
                let row = &part_nk[(output - before) * k..][..k];
                let column = output - first_output;
                match dtype {
                    Dtype::F32 => row.iter().enumerate().for_each(|(k, w)| words[k * PANEL + column] = w.to_bits()),
                    Dtype::Bf16 => {
                        let (pairs, odd) = row.as_chunks::<2>();
                        pairs.iter().enumerate().for_each(|(k, &[a, b])| words[k * PANEL + column] = bf16_pair(a, b));
                        odd.iter().for_each(|&a| words[pairs.len() * PANEL + column] = bf16_pair(a, 0.0));
                    }
                    Dtype::Bf16x3 => row.chunks(2).enumerate().for_each(|(k, pair)| {
                        let parts = split_pair(pair[0], pair.get(1).copied().unwrap_or(0.0));
                        let places = [upper_place(k), upper_place(k) + GROUP];
                        places.iter().zip(parts).for_each(|(place, part)| words[place * PANEL + column] = part);
                    }),
                }
            }
        };
        let n_panels = before.div_ceil(PANEL);
        if before < n_panels * PANEL {
            let panel_lines = depth * LINES_PER_DEPTH;
            fill(n_panels - 1, self.lines[(n_panels - 1) * panel_lines..].as_flattened_words());
        }
        self.grow(after.div_ceil(PANEL) - n_panels, |i, words| fill(n_panels + i, words));
    }

    /// Appends `n` panels of zeros, and lets `fill(index, words)` write to each, on all threads.
    fn grow(&mut self, n: usize, fill: impl Fn(usize, &mut [u32]) + Sync) {
        let panel_lines = self.depth() * LINES_PER_DEPTH;
        let n_new = n * panel_lines;
        // Reserves exactly, because growing by doubling would take up to twice the memory. The threads that fill the new lines touch them first,
        // so the kernel provides the memory to all of them in parallel.
        self.lines.reserve_exact(n_new);
        self.lines.spare_capacity_mut()[..n_new].par_chunks_mut(panel_lines.max(1)).enumerate().for_each(|(i, lines)| {
            lines.fill(MaybeUninit::new(Line([0; LINE])));
            // SAFETY: the previous line has written all of them.
            fill(i, unsafe { lines.assume_init_mut() }.as_flattened_words());
        });
        // SAFETY: the capacity has been reserved, and the chunks cover all new lines.
        unsafe { self.lines.set_len(self.lines.len() + n_new) };
    }

    pub(crate) fn out_features(&self) -> usize {
        self.out_features
    }

    pub(crate) fn in_features(&self) -> usize {
        self.in_features
    }

    pub(crate) fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The words of one output, for `K` numbers.
    pub(crate) fn depth(&self) -> usize {
        words_of(self.dtype, self.in_features)
    }

    pub(crate) fn n_panels(&self) -> usize {
        self.out_features.div_ceil(PANEL)
    }

    /// `[depth, PANEL]` words.
    pub(crate) fn panel(&self, panel: usize) -> &[u32] {
        let panel_lines = self.depth() * LINES_PER_DEPTH;
        self.lines[panel * panel_lines..][..panel_lines].as_words()
    }

    /// All panels of an f32 matrix, `[n_panels, K, PANEL]`; the padding of the last panel is zero and must stay so.
    pub(crate) fn floats(&self) -> &[f32] {
        assert_eq!(self.dtype, Dtype::F32);
        // SAFETY: f32 and u32 have the same size and alignment, and every bit pattern is a valid f32.
        unsafe { std::slice::from_raw_parts(self.lines.as_ptr().cast(), self.lines.len() * LINE) }
    }

    /// Like [`Panels::floats`], mutable.
    pub(crate) fn floats_mut(&mut self) -> &mut [f32] {
        assert_eq!(self.dtype, Dtype::F32);
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.lines.as_mut_ptr().cast(), self.lines.len() * LINE) }
    }

    /// Splits an f32 matrix in two: the nearest bf16, and at the same indices the rounding error in units of the f32's last bit. A number midway
    /// between two bf16 may lose that bit; all others are recovered exactly.
    pub(crate) fn split(&self) -> (Panels, Panels) {
        let mut upper = Panels::zeros(self.out_features, self.in_features, Dtype::Bf16);
        let mut lower = Panels::zeros(self.out_features, self.in_features, Dtype::Bf16);
        let floats = self.floats().par_chunks(self.depth() * PANEL);
        upper.words_mut().zip(lower.words_mut()).zip(floats).for_each(|((upper, lower), floats)| split(floats, upper, lower));
        (upper, lower)
    }

    /// The inverse of [`Panels::split`].
    pub(crate) fn joined(upper: &Panels, lower: &Panels) -> Panels {
        let mut whole = Panels::zeros(upper.out_features, upper.in_features, Dtype::F32);
        let panels = whole.floats_mut().par_chunks_mut(upper.in_features * PANEL).enumerate();
        panels.for_each(|(i, floats)| join(upper.panel(i), lower.panel(i), floats));
        whole
    }

    /// Converts an f32 matrix to the two parts of bf16x3.
    pub(super) fn in_parts(&self) -> Panels {
        let mut parts = Panels::zeros(self.out_features, self.in_features, Dtype::Bf16x3);
        let floats = self.floats().par_chunks(self.depth() * PANEL);
        parts.words_mut().zip(floats).for_each(|(words, floats)| Level::current().run(Parts { floats, words }));
        parts
    }

    /// The panels one by one, `[depth, PANEL]` words each.
    pub(crate) fn words_mut(&mut self) -> impl IndexedParallelIterator<Item = &mut [u32]> {
        let panel_words = self.depth() * PANEL;
        self.lines.as_flattened_words().par_chunks_mut(panel_words)
    }

    /// The rows `outputs` of `W` as the columns of a separate matrix, `[K, outputs.len()]`, in the same format; `outputs` must start at the start
    /// of a panel and end at the end of one, or at the last output.
    pub(crate) fn transposed(&self, level: Level, outputs: Range<usize>) -> Panels {
        let at_end = outputs.end.is_multiple_of(PANEL) || outputs.end == self.out_features;
        assert!(outputs.start.is_multiple_of(PANEL) && at_end && outputs.end <= self.out_features);
        let (k_end, dtype) = (self.in_features, self.dtype);
        let mut transposed = Panels { out_features: k_end, ..Panels::new(outputs.len(), dtype) };
        transposed.grow(k_end.div_ceil(PANEL), |i, to| {
            let columns = i * PANEL..((i + 1) * PANEL).min(k_end);
            level.run(Transpose { from: self, outputs: outputs.clone(), columns, to });
        });
        transposed
    }

    /// Adds an f32 matrix `[K, N]` to this one, f32 `[N, K]`.
    pub(crate) fn add_transposed(&mut self, other: &Panels) {
        assert!(self.dtype == Dtype::F32 && other.dtype == Dtype::F32);
        assert!((self.out_features, self.in_features) == (other.in_features, other.out_features));
        let (n_end, k_end) = (self.out_features, self.in_features);
        for (i, panel) in self.floats_mut().chunks_exact_mut(k_end * PANEL).enumerate() {
            let columns = i * PANEL..((i + 1) * PANEL).min(n_end);
            for (k, row) in panel.chunks_exact_mut(PANEL).enumerate() {
                let from = &other.floats()[k / PANEL * PANEL * n_end..];
                row.iter_mut().zip(columns.clone()).for_each(|(sum, n)| *sum += from[n * PANEL + k % PANEL]);
            }
        }
    }

    pub(crate) fn bytes(&self) -> usize {
        self.lines.len() * size_of::<Line>()
    }

    /// Output `n`, `[K]`, as stored.
    pub(crate) fn row_into(&self, n: usize, row: &mut [f32]) {
        let panel = self.panel(n / PANEL);
        for (k, x) in row.iter_mut().enumerate() {
            let word = |place: usize| panel[place * PANEL + n % PANEL];
            let half = |word: u32| f32::from_bits(if k % 2 == 0 { word << 16 } else { word & 0xffff_0000 });
            *x = match self.dtype {
                Dtype::F32 => f32::from_bits(word(k)),
                Dtype::Bf16 => half(word(k / 2)),
                Dtype::Bf16x3 => half(word(upper_place(k / 2))) + half(word(upper_place(k / 2) + GROUP)),
            };
        }
    }
}

/// The number of words for `n` neighbouring numbers.
pub(super) fn words_of(dtype: Dtype, n: usize) -> usize {
    match dtype {
        Dtype::F32 => n,
        Dtype::Bf16 => n.div_ceil(2),
        Dtype::Bf16x3 => 2 * n.div_ceil(2).next_multiple_of(GROUP),
    }
}

/// The word with the upper parts of a pair in bf16x3; [`GROUP`] words after it are the lower parts.
#[inline(always)]
pub(super) fn upper_place(pair: usize) -> usize {
    pair + pair / GROUP * GROUP
}

/// Splits one panel for [`Panels::split`].
pub(super) fn split(floats: &[f32], upper: &mut [u32], lower: &mut [u32]) {
    Level::current().run(Split { floats, upper, lower });
}

/// Joins one panel for [`Panels::joined`].
pub(super) fn join(upper: &[u32], lower: &[u32], floats: &mut [f32]) {
    Level::current().run(Join { upper, lower, floats });
}

struct Split<'a> {
    floats: &'a [f32],
    upper: &'a mut [u32],
    lower: &'a mut [u32],
}

impl Kernel for Split<'_> {
    type Output = ();

    // Plain loops over whole rows of a panel, which the compiler vectorises with the level's instructions.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let rest = |x: f32, upper: u32| {
            let rest = x.to_bits().wrapping_sub(upper) as i32;
            if x.is_nan() { 0 } else { rest.min(0x7fff) as u32 }
        };
        let (upper, lower) = (self.upper.as_chunks_mut::<PANEL>().0, self.lower.as_chunks_mut::<PANEL>().0);
        let floats = self.floats.as_chunks::<PANEL>().0;
        assert!(upper.len() == lower.len() && floats.len().div_ceil(2) == upper.len());
        for pair in 0..upper.len() {
            let even = &floats[2 * pair];
            // If the number of rows is odd, the last one is paired with zeros.
            let odd = floats.get(2 * pair + 1).unwrap_or(&[0.0; PANEL]);
            let (upper, lower) = (&mut upper[pair], &mut lower[pair]);
            for i in 0..PANEL {
                let words = bf16_pair(even[i], odd[i]);
                upper[i] = words;
                lower[i] = rest(even[i], words << 16) & 0xffff | rest(odd[i], words & 0xffff_0000) << 16;
            }
        }
    }
}

struct Join<'a> {
    upper: &'a [u32],
    lower: &'a [u32],
    floats: &'a mut [f32],
}

impl Kernel for Join<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (upper, lower) = (self.upper.as_chunks::<PANEL>().0, self.lower.as_chunks::<PANEL>().0);
        let floats = self.floats.as_chunks_mut::<PANEL>().0;
        assert!(upper.len() == lower.len() && floats.len().div_ceil(2) == upper.len());
        for row in 0..floats.len() {
            let (upper, lower, floats) = (&upper[row / 2], &lower[row / 2], &mut floats[row]);
            if row % 2 == 0 {
                for i in 0..PANEL {
                    floats[i] = f32::from_bits((upper[i] << 16).wrapping_add_signed((lower[i] << 16) as i32 >> 16));
                }
            } else {
                for i in 0..PANEL {
                    floats[i] = f32::from_bits((upper[i] & 0xffff_0000).wrapping_add_signed(lower[i] as i32 >> 16));
                }
            }
        }
    }
}

/// Converts one panel for [`Panels::in_parts`].
struct Parts<'a> {
    floats: &'a [f32],
    /// The destination; zeros at first.
    words: &'a mut [u32],
}

impl Kernel for Parts<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let (floats, words) = (self.floats.as_chunks::<PANEL>().0, self.words.as_chunks_mut::<PANEL>().0);
        for pair in 0..floats.len().div_ceil(2) {
            let even = &floats[2 * pair];
            let odd = floats.get(2 * pair + 1).unwrap_or(&[0.0; PANEL]);
            let mut parts = [[0; PANEL]; 2];
            for i in 0..PANEL {
                [parts[0][i], parts[1][i]] = split_pair(even[i], odd[i]);
            }
            words[upper_place(pair)] = parts[0];
            words[upper_place(pair) + GROUP] = parts[1];
        }
    }
}

/// Computes one panel of [`Panels::transposed`]: the columns `columns` of the rows `outputs`.
struct Transpose<'a> {
    from: &'a Panels,
    outputs: Range<usize>,
    columns: Range<usize>,
    /// The destination; zeros at first.
    to: &'a mut [u32],
}

impl Kernel for Transpose<'_> {
    type Output = ();

    // Square blocks of fixed size, so that both sides stay in the first-level cache and indices need no bounds checks.
    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let n_columns = self.columns.len();
        let first_panel = self.outputs.start / PANEL;
        let words = self.to.as_chunks_mut::<PANEL>().0;
        match self.from.dtype {
            Dtype::F32 => {
                for block in 0..words.len().div_ceil(PANEL) {
                    let from = &self.from.panel(first_panel + block).as_chunks::<PANEL>().0[self.columns.clone()];
                    let n_words = PANEL.min(words.len() - block * PANEL);
                    let to = &mut words[block * PANEL..][..n_words];
                    for c in 0..n_columns {
                        for n in 0..n_words {
                            to[n][c] = from[c][n];
                        }
                    }
                }
            }
            Dtype::Bf16 => {
                // Panels begin at an even column, because they have an even number of outputs.
                let first_row = self.columns.start / 2;
                for block in 0..words.len().div_ceil(PAIRS) {
                    let from = &self.from.panel(first_panel + block).as_chunks::<PANEL>().0[first_row..];
                    let n_words = PAIRS.min(words.len() - block * PAIRS);
                    let to = &mut words[block * PAIRS..][..n_words];
                    // SAFETY: the instructions are there by contract.
                    unsafe { transpose_pairs::<V>(n_columns, |pair| &from[pair], to) };
                }
            }
            Dtype::Bf16x3 => {
                let first_row = self.columns.start / 2;
                let n_pairs = self.outputs.len().div_ceil(2);
                for block in 0..n_pairs.div_ceil(PAIRS) {
                    let from = self.from.panel(first_panel + block).as_chunks::<PANEL>().0;
                    for part in [0, GROUP] {
                        let mut to = [[0; PANEL]; PAIRS];
                        let row = |pair| &from[upper_place(first_row + pair) + part];
                        // SAFETY: the instructions are there by contract.
                        unsafe { transpose_pairs::<V>(n_columns, row, &mut to) };
                        for n in 0..PAIRS.min(n_pairs - block * PAIRS) {
                            words[upper_place(block * PAIRS + n) + part] = to[n];
                        }
                    }
                }
            }
        }
    }
}

/// The number of words that a panel's outputs become.
const PAIRS: usize = PANEL / 2;

/// Writes `n_columns` columns, of which `from(pair)` returns two at a time, as the first `to.len()` rows of pairs.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
unsafe fn transpose_pairs<'a, V: Lanes>(n_columns: usize, from: impl Fn(usize) -> &'a [u32; PANEL], to: &mut [[u32; PANEL]]) {
    if n_columns == PANEL && to.len() == PAIRS {
        let to = to.as_mut_ptr();
        for pair in (0..PAIRS).step_by(V::N / 2) {
            for n in (0..PAIRS).step_by(V::N / 2) {
                // SAFETY: `N` words from an even index on lie in a row, and there are `PAIRS` rows; the rest is by contract.
                unsafe {
                    V::transpose_halves(
                        #[inline(always)]
                        |i| from(pair + i).as_ptr().add(2 * n),
                        #[inline(always)]
                        |i| to.add(n + i).cast::<u32>().add(2 * pair),
                    );
                }
            }
        }
        return;
    }
    for pair in 0..n_columns.div_ceil(2) {
        let row = from(pair);
        // If the number of columns is odd, the last word holds one number and a zero, which goes to the padding.
        for n in 0..to.len() {
            let (a, b) = (row[2 * n], row[2 * n + 1]);
            to[n][2 * pair] = a & 0xffff | b << 16;
            to[n][2 * pair + 1] = a >> 16 | b & 0xffff_0000;
        }
    }
}

/// Splits neighbouring numbers into the two parts of bf16x3: the pair of upper parts, and the pair of lower parts.
#[inline(always)]
pub(super) fn split_pair(first: f32, second: f32) -> [u32; 2] {
    let ([first, first_rest], [second, second_rest]) = (in_two(first), in_two(second));
    [bf16_pair(first, second), bf16_pair(first_rest, second_rest)]
}

/// The sum of a number's two parts.
pub(super) fn held_in_parts(x: f32) -> f32 {
    let [upper, lower] = split_pair(x, x).map(|pair| f32::from_bits(pair << 16));
    upper + lower
}

/// The nearest finite bf16, and the exact remainder. Infinity and NaN are split into 1 and a remainder of infinity or NaN, so that products
/// give the same as in f32: the 1 only multiplies the other factor, whose product does not change an infinite or NaN sum.
#[inline(always)]
fn in_two(x: f32) -> [f32; 2] {
    const INFINITE: u32 = 0x7f80_0000;
    const LARGEST: u32 = 0x7f7f_0000;
    const ONE: u32 = 0x3f80_0000;
    let (sign, size) = (x.to_bits() & 0x8000_0000, x.to_bits() & 0x7fff_ffff);
    let rounded = (size + (0x7fff + (size >> 16 & 1))) & 0xffff_0000;
    let upper = f32::from_bits(sign | if size < INFINITE { rounded.min(LARGEST) } else { ONE });
    [upper, x - upper]
}

/// Rounds neighbouring numbers to the nearest bf16 (ties to even), the first in the low half.
#[inline(always)]
pub(super) fn bf16_pair(first: f32, second: f32) -> u32 {
    bf16_bits(first) >> 16 | bf16_bits(second) & 0xffff_0000
}

/// The nearest bf16 in the upper half. Branch-free, so that the compiler can vectorise it.
#[inline(always)]
fn bf16_bits(x: f32) -> u32 {
    let bits = x.to_bits();
    let rounded = bits.wrapping_add(0x7fff + (bits >> 16 & 1));
    // Rounding must not carry a NaN into infinity.
    if x.is_nan() { bits | 0x40_0000 } else { rounded }
}

trait Words {
    fn as_words(&self) -> &[u32];
    fn as_flattened_words(&mut self) -> &mut [u32];
}

impl Words for [Line] {
    fn as_words(&self) -> &[u32] {
        // SAFETY: `Line` is `repr(C)` around `[u32; LINE]`, whose 64 bytes its alignment does not pad.
        unsafe { std::slice::from_raw_parts(self.as_ptr().cast(), self.len() * LINE) }
    }

    fn as_flattened_words(&mut self) -> &mut [u32] {
        // SAFETY: as above.
        unsafe { std::slice::from_raw_parts_mut(self.as_mut_ptr().cast(), self.len() * LINE) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rounding_is_that_of_the_half_crate() {
        let edges = [0.0, -0.0, f32::INFINITY, f32::NEG_INFINITY, f32::MAX, f32::MIN_POSITIVE, 1e-45, f32::NAN, 1.003_906_2];
        let nans = [0x7f80_0001, 0xffff_ffff, 0x7fff_8000].map(f32::from_bits);
        let all = (0..=u32::MAX).step_by(65_521).map(f32::from_bits);
        for x in all.chain(edges).chain(nans) {
            let bits = |x: f32| u32::from(half::bf16::from_f32(x).to_bits());
            assert_eq!(bf16_pair(x, 1.0), bits(x) | bits(1.0) << 16, "{x}");
            assert_eq!(bf16_pair(1.0, x), bits(1.0) | bits(x) << 16, "{x}");
        }
    }

    #[test]
    fn two_parts_hold_seventeen_bits_of_any_number() {
        let edges = [0.0, -0.0, f32::MAX, f32::MIN, f32::MIN_POSITIVE, 1e-45, 1.003_906_2, -3.402_823e38];
        for x in (0..=u32::MAX).step_by(65_521).map(f32::from_bits).chain(edges).filter(|x| x.is_finite()) {
            let [upper, lower] = split_pair(x, x).map(|pair| f32::from_bits(pair << 16));
            assert!(upper.is_finite() && lower.is_finite(), "{x}");
            // Half a unit of the upper part's eight bits remains, of which eight bits are kept. The smallest bf16 is 2^-133.
            let error = (f64::from(upper) + f64::from(lower) - f64::from(x)).abs();
            assert!(error <= (f64::from(x).abs() * 2f64.powi(-17)).max(2f64.powi(-134)), "{x}: {upper} + {lower}");
        }
        for x in [f32::INFINITY, f32::NEG_INFINITY, f32::NAN] {
            let [upper, lower] = in_two(x);
            assert!(upper.is_finite() && (lower == x || lower.is_nan() && x.is_nan()), "{x}");
        }
    }
}
