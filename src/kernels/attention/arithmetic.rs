//! What the products of attention multiply: f32, or pairs of bf16 where the processor has instructions for those.
//!
//! | arithmetic | where | scores | the other products | query rows of a strip |
//! |---|---|---|---|---:|
//! | [`Floats`] | every level, and all precisions but the next | f32 | f32 | 6 |
//! | `Dots` | bf16 at `avx512bf16` | f32 | bf16 | 12 |
//! | `Tiles` | bf16 at `amx` | bf16x3 | bf16 | 16 |
//!
//! Scores stand in exponents: with bf16 queries and keys ln p was an eighth further from f32's (SmolLM2-135M, 3,419 tokens), with bf16 weights
//! `exp(score - maximum)` and values it is as near as before. So those alone are rounded, and what is multiplied in the backward pass; sums
//! and softmax stay in f32.

use super::pack::Head;
use super::plan::Tile;
use super::strip::{self, Scores, Words};
use crate::kernels::Dtype;
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};

/// Which of them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    F32,
    #[cfg(target_arch = "x86_64")]
    Dots,
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Factors {
    /// For a model in `dtype`.
    pub(super) fn of(level: Level, dtype: Dtype) -> Factors {
        match (level, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16, Dtype::Bf16) => Factors::Dots,
            #[cfg(target_arch = "x86_64")]
            (Level::Amx, Dtype::Bf16) => Factors::Tiles,
            _ => Factors::F32,
        }
    }

    /// How many of them a word holds, but in keys by column.
    pub(super) fn per_word(self) -> usize {
        match self {
            Factors::F32 => 1,
            #[cfg(target_arch = "x86_64")]
            Factors::Dots | Factors::Tiles => 2,
        }
    }

    /// Query rows of a strip.
    pub(super) fn strip(self) -> usize {
        match self {
            Factors::F32 => STRIP,
            #[cfg(target_arch = "x86_64")]
            Factors::Dots => super::dots::STRIP,
            #[cfg(target_arch = "x86_64")]
            Factors::Tiles => super::tiles::STRIP,
        }
    }

    /// Runs `kernel` with this arithmetic.
    pub(super) fn run<K: AttentionKernel>(self, level: Level, kernel: K) -> K::Output {
        match self {
            Factors::F32 => level.run(OfFloats(kernel)),
            #[cfg(target_arch = "x86_64")]
            Factors::Dots => super::dots::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Factors::Tiles => super::tiles::run(kernel),
        }
    }
}

/// The products of a strip of `S` query rows, and what they want their factors to be.
pub(super) trait Arithmetic<const S: usize> {
    type V: Lanes;
    /// Factors in a word.
    const PER_WORD: usize;

    /// Numbers into words of neighbours, in place: there are `row.len() / PER_WORD` of them at its beginning.
    ///
    /// # Safety
    /// The processor must have the instructions; the row must be whole granules.
    unsafe fn along(row: &mut [f32]);

    /// Numbers of a query or a key into as many words that [`Arithmetic::scores`] multiplies, in place.
    ///
    /// # Safety
    /// As above.
    unsafe fn finely(row: &mut [f32]);

    /// `PER_WORD` rows, `stride` apart, into words of what lies below each other.
    ///
    /// # Safety
    /// The processor must have the instructions; `n` must be whole granules, readable in each row, and as many words writable at `to`.
    unsafe fn across(rows: *const f32, stride: usize, n: usize, to: *mut u32);

    /// `scores[r][key] = rows[r] . columns[key]`; `rows` is `[S, padded head_dim]`.
    ///
    /// # Safety
    /// The processor must have the instructions; `columns` must be packed by column, these and the rows finely.
    unsafe fn scores(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<S>);

    /// The same of words along rows, at the beginning of each.
    ///
    /// # Safety
    /// The processor must have the instructions; `columns` must be packed by column, these and the rows along.
    unsafe fn products(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<S>);

    /// `sums[r] = sums[r] * shrinks[r] + sum over keys of weights[r][key] * rows[key]`, over the keys of a tile up to the position
    /// `last`, and perhaps further ones of weight 0; `sums` is `[S, padded head_dim]`.
    ///
    /// # Safety
    /// The processor must have the instructions; `rows` must be packed by row, and the weights words along their rows.
    unsafe fn weighted_sums(rows: Head, tile: Tile, weights: &Scores<S>, last: usize, shrinks: &[f32; S], sums: &mut [f32]);

    /// `sums[key] += sum over r of weights[r][key] * rows[r]` for each key of one granule, the tile's `g`-th; `sums` is
    /// `[16, padded head_dim]`, `rows` `[S / PER_WORD, padded head_dim]`, and `weights` as many rows, [`STRIDE`] apart; both in words across.
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn add_transposed(weights: &[u32], g: usize, rows: &[u32], sums: &mut [f32]);
}

/// Code that is compiled once for each arithmetic; the rules of [`Kernel`] hold.
pub(super) trait AttentionKernel {
    type Output;

    /// # Safety
    /// The processor must have `A`'s instructions.
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) -> Self::Output;
}

/// f32 in the vectors of any level.
pub(super) struct Floats<V>(V);

/// Query rows of a strip, and so of a register tile: with four AVX-512 or two AVX2 vectors beside each other the sums fill the registers.
const STRIP: usize = 6;

impl<V: Lanes> Words for Floats<V> {
    type V = V;
    type Words = V;
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> V {
        // SAFETY: by contract.
        unsafe { V::splat(from.cast::<f32>().read()) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> V {
        // SAFETY: by contract.
        unsafe { V::load(from.cast()) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: V, b: V, sum: V) -> V {
        a.mul_add(b, sum)
    }
}

impl<V: Lanes> Arithmetic<STRIP> for Floats<V> {
    type V = V;
    const PER_WORD: usize = 1;

    #[inline(always)]
    unsafe fn along(_row: &mut [f32]) {}

    #[inline(always)]
    unsafe fn finely(_row: &mut [f32]) {}

    #[inline(always)]
    unsafe fn scores(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
        // SAFETY: by contract; both are f32.
        unsafe { Self::products(columns, tile, rows, scores) };
    }

    #[inline(always)]
    unsafe fn across(rows: *const f32, _stride: usize, n: usize, to: *mut u32) {
        // SAFETY: by contract.
        unsafe { to.copy_from_nonoverlapping(rows.cast(), n) };
    }

    #[inline(always)]
    unsafe fn products(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
        // SAFETY: by contract.
        unsafe {
            match V::N {
                16 => strip::products::<Self, STRIP, 4>(columns, tile, rows, scores),
                _ => strip::products::<Self, STRIP, 2>(columns, tile, rows, scores),
            }
        }
    }

    #[inline(always)]
    unsafe fn weighted_sums(
        rows: Head,
        tile: Tile,
        weights: &Scores<STRIP>,
        last: usize,
        shrinks: &[f32; STRIP],
        sums: &mut [f32],
    ) {
        // SAFETY: by contract.
        unsafe {
            match V::N {
                16 => strip::weighted_sums::<Self, STRIP, 4>(rows, tile, weights, last, shrinks, sums),
                _ => strip::weighted_sums::<Self, STRIP, 2>(rows, tile, weights, last, shrinks, sums),
            }
        }
    }

    #[inline(always)]
    unsafe fn add_transposed(weights: &[u32], g: usize, rows: &[u32], sums: &mut [f32]) {
        // SAFETY: by contract.
        unsafe {
            match V::N {
                16 => strip::add_transposed::<Self, STRIP, 4, 4>(weights, g, rows, sums),
                _ => strip::add_transposed::<Self, STRIP, 2, 4>(weights, g, rows, sums),
            }
        }
    }
}

struct OfFloats<K>(K);

impl<K: AttentionKernel> Kernel for OfFloats<K> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> K::Output {
        // SAFETY: `Floats<V>` needs the instructions of `V`.
        unsafe { self.0.run::<Floats<V>, STRIP>() }
    }
}
