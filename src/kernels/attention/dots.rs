//! bf16 pairs multiplied by `vdpbf16ps`: two multiply-adds in each lane.
//!
//! The instructions round to nearest, ties to even, and treat denormals as zero.

use std::arch::x86_64::*;
use std::mem::transmute;

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::floats::Floats;
use super::packed::Head;
use super::plan::{GRANULE, Tile};
use super::strip::{self, Scores, Words};
use crate::kernels::lanes::{F32x16, Lanes};
use crate::kernels::level::Level;

/// The query rows of a strip: 12 by two vectors are as many sums as fit into registers and as the instruction's latency requires,
/// and six pairs.
pub(super) const STRIP: usize = 12;

pub(super) fn run<K: AttentionKernel>(kernel: K) -> K::Output {
    // As in `Level::run`, one comparison keeps this sound whatever level was passed in.
    assert!(Level::available().contains(&Level::Avx512Bf16), "this processor cannot run avx512bf16 kernels");
    // SAFETY: the processor has the instructions, and `Dots` needs no others.
    unsafe { compiled::<K, Dots, STRIP>(kernel) }
}

/// Compiles `kernel` with these instructions, for an arithmetic that needs no others or enables them itself.
///
/// # Safety
/// The processor must have them, and `A`'s own.
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
pub(super) unsafe fn compiled<K: AttentionKernel, A: Arithmetic<S>, const S: usize>(kernel: K) -> K::Output {
    // SAFETY: by contract.
    unsafe { kernel.run::<A, S>() }
}

pub(super) struct Dots;

impl Words for Dots {
    type V = F32x16;
    type Words = __m512bh;
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn splat(from: *const u32) -> __m512bh {
        // SAFETY: by contract; `__m512i` and `__m512bh` are the same 64 bytes.
        unsafe { transmute::<__m512i, __m512bh>(_mm512_set1_epi32(from.cast::<i32>().read())) }
    }

    #[inline(always)]
    unsafe fn load(from: *const u32) -> __m512bh {
        // SAFETY: as above.
        unsafe { transmute::<__m512i, __m512bh>(_mm512_loadu_si512(from.cast())) }
    }

    #[inline(always)]
    unsafe fn multiply_add(a: __m512bh, b: __m512bh, sum: F32x16) -> F32x16 {
        // SAFETY: by contract.
        unsafe { F32x16::new(_mm512_dpbf16_ps(sum.get(), a, b)) }
    }
}

/// [`Arithmetic::along`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn along(row: &mut [f32]) {
    let n = row.len();
    let row = row.as_mut_ptr();
    let pairs = n - n % (2 * GRANULE);
    // SAFETY: by contract; each write is to words that have been read already.
    unsafe {
        for i in (0..pairs).step_by(2 * GRANULE) {
            let (first, second) = (_mm512_loadu_ps(row.add(i)), _mm512_loadu_ps(row.add(i + GRANULE)));
            // The second argument becomes the lower half.
            let words = transmute::<__m512bh, __m512i>(_mm512_cvtne2ps_pbh(second, first));
            row.add(i / 2).cast::<__m512i>().write_unaligned(words);
        }
        for i in (pairs..n).step_by(GRANULE) {
            let words = transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(row.add(i))));
            row.add(i / 2).cast::<__m256i>().write_unaligned(words);
        }
    }
}

/// [`Arithmetic::along_with_sum`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn along_with_sum(row: &mut [f32]) -> f32 {
    // SAFETY: by contract; there are half as many words as there were numbers, with half a vector at the end if the number of
    // granules is odd.
    unsafe {
        along(row);
        let n = row.len() / 2;
        let words = row.as_ptr().cast::<u32>();
        let one = _mm512_set1_epi32(0x3f80_3f80);
        let mut sum = _mm512_setzero_ps();
        for i in (0..n).step_by(GRANULE) {
            let there = if n - i < GRANULE { 0x00ff } else { 0xffff };
            let pairs = _mm512_maskz_loadu_epi32(there, words.add(i).cast());
            sum = _mm512_dpbf16_ps(sum, transmute::<__m512i, __m512bh>(pairs), transmute::<__m512i, __m512bh>(one));
        }
        F32x16::new(sum).sum()
    }
}

/// [`Arithmetic::across`].
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn across(rows: *const f32, stride: usize, n: usize, to: *mut u32) {
    // SAFETY: by contract.
    unsafe {
        for i in (0..n).step_by(GRANULE) {
            let (first, second) = (low_halves(rows.add(i)), low_halves(rows.add(stride + i)));
            to.add(i).cast::<__m512i>().write_unaligned(_mm512_or_si512(first, _mm512_slli_epi32::<16>(second)));
        }
    }
}

/// Converts 16 numbers to bf16 in the low halves of words.
///
/// # Safety
/// The processor must have the instructions; 16 floats must be readable.
#[inline(always)]
unsafe fn low_halves(from: *const f32) -> __m512i {
    // SAFETY: by contract.
    unsafe { _mm512_cvtepu16_epi32(transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(_mm512_loadu_ps(from)))) }
}

impl Arithmetic<STRIP> for Dots {
    type V = F32x16;
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn along(row: &mut [f32]) {
        // SAFETY: by contract.
        unsafe { along(row) };
    }

    #[inline(always)]
    unsafe fn across(rows: *const f32, stride: usize, n: usize, to: *mut u32) {
        // SAFETY: by contract.
        unsafe { across(rows, stride, n, to) };
    }

    #[inline(always)]
    unsafe fn along_with_sum(row: &mut [f32], _sum: f32) -> f32 {
        // SAFETY: by contract.
        unsafe { along_with_sum(row) }
    }

    #[inline(always)]
    unsafe fn finely(_row: &mut [f32]) {}

    #[inline(always)]
    unsafe fn scores(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
        // SAFETY: by contract.
        unsafe { strip::products::<Floats<F32x16>, STRIP, 2>(columns, tile, rows, scores) };
    }

    #[inline(always)]
    unsafe fn products(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
        // SAFETY: by contract.
        unsafe { strip::products::<Dots, STRIP, 2>(columns, tile, rows, scores) };
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
        unsafe { strip::weighted_sums::<Dots, STRIP, 2>(rows, tile, weights, last, shrinks, sums) };
    }

    #[inline(always)]
    unsafe fn add_transposed(weights: &[u32], g: usize, rows: &[u32], sums: &mut [f32]) {
        // SAFETY: by contract.
        unsafe { strip::add_transposed::<Dots, STRIP, 2, 8>(weights, g, rows, sums) };
    }
}
