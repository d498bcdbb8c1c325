//! Attention's arithmetic in f32, with the vectors of any level.

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::packed::Head;
use super::plan::Tile;
use super::strip::{self, Scores, Words};
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};

/// The f32 arithmetic with vectors `V`.
pub(super) struct Floats<V>(V);

/// The query rows of a strip, and so of a register tile: with four AVX-512 or two AVX2 vectors side by side, the sums fill the registers.
pub(super) const STRIP: usize = 6;

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
    unsafe fn along_with_sum(_row: &mut [f32], sum: f32) -> f32 {
        sum
    }

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

pub(super) fn run<K: AttentionKernel>(level: Level, kernel: K) -> K::Output {
    level.run(OfFloats(kernel))
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
