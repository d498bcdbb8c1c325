//! A vector of f32 lanes: the abstraction over which kernels are written once and compiled for each [`Level`](super::level::Level).
//!
//! | type | lanes | instructions |
//! |---|---|---|
//! | [`F32x16`] | 16 | AVX-512 F, BW, DQ, VL |
//! | [`F32x8`] | 8 | AVX2, FMA |
//! | [`F32x4`] | 4 | none of its own: four floats that the compiler turns into SSE2 or NEON |
//!
//! Creating a vector is unsafe: the caller guarantees that the processor has the instructions. Code that holds a vector may therefore compute
//! with it safely. On x86-64 `F32x4` rounds the product of a multiply-add, because a fused one without the instruction is a slow library call.
//! Results differ between levels in the last bits, but never between runs of one level.

#![allow(
    clippy::undocumented_unsafe_blocks,
    reason = "each block is the one intrinsic that its method stands for, under the method's own contract"
)]

#[cfg(target_arch = "x86_64")]
use std::arch::x86_64::*;

pub(crate) trait Lanes: Copy {
    /// Number of lanes.
    const N: usize;

    /// # Safety
    /// The processor must have this type's instructions.
    unsafe fn splat(x: f32) -> Self;

    /// # Safety
    /// As [`Lanes::splat`]; `N` floats must be readable at `from`.
    unsafe fn load(from: *const f32) -> Self;

    /// The first `n <= N` lanes from memory, zeros after them.
    ///
    /// # Safety
    /// As [`Lanes::splat`]; `n` floats must be readable at `from`.
    unsafe fn load_first(from: *const f32, n: usize) -> Self;

    /// # Safety
    /// `N` floats must be writable at `to`.
    unsafe fn store(self, to: *mut f32);

    /// # Safety
    /// `n <= N` floats must be writable at `to`.
    unsafe fn store_first(self, to: *mut f32, n: usize);

    /// Transposes a square of `N` by `N` bf16 whose rows are stored in pairs: word `j` of `from(i)` holds the numbers `(2 i, j)` and
    /// `(2 i + 1, j)`, and word `j` of `to(i)` receives `(j, 2 i)` and `(j, 2 i + 1)`, the first in the low half; `i < N / 2`.
    ///
    /// # Safety
    /// As [`Lanes::splat`]; `N` words must be readable at each `from(i)` and writable at each `to(i)`, and no two may overlap.
    unsafe fn transpose_halves(from: impl Fn(usize) -> *const u32, to: impl Fn(usize) -> *mut u32);

    /// `value` in every lane. Safe, because the existence of `self` shows that the processor has the instructions.
    #[inline(always)]
    fn filled(self, value: f32) -> Self {
        // SAFETY: `self` exists.
        unsafe { Self::splat(value) }
    }

    fn add(self, other: Self) -> Self;
    fn sub(self, other: Self) -> Self;
    fn mul(self, other: Self) -> Self;
    fn div(self, other: Self) -> Self;
    /// `self * factor + summand`
    fn mul_add(self, factor: Self, summand: Self) -> Self;
    /// The larger lane; `other` if either is NaN.
    fn max(self, other: Self) -> Self;
    /// The lanes of `then` where `self < bound` (never for NaN), otherwise those of `otherwise`.
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self;
    /// One bit per lane, lowest first: whether `self < bound`, which is never true for NaN.
    fn less_bits(self, bound: Self) -> u32;
    /// The lanes of `then` where `self` is NaN, otherwise those of `otherwise`.
    fn if_nan(self, then: Self, otherwise: Self) -> Self;
    /// The lanes `first..end` of `self`, the others from `fill`; `first <= end <= N`.
    fn keep(self, first: usize, end: usize, fill: Self) -> Self;
    /// The four bits from bit `shift` on of each lane's representation, as a number from 0 to 15.
    fn nibbles(self, shift: u32) -> Self;
    /// The eight bits from bit `shift` on of each lane's representation, as a number from -128 to 127.
    fn bytes(self, shift: u32) -> Self;
    /// The sixteen bits from bit `shift` on of each lane's representation, as a finite f16.
    fn halves(self, shift: u32) -> Self;
    /// The bf16 numbers in the low halves of each lane's representation.
    fn low_halves(self) -> Self;
    /// The bf16 numbers in the high halves of each lane's representation.
    fn high_halves(self) -> Self;
    /// Adds the lowest bits of `n`'s representation to the exponent: see [`exp`](super::exp::exp).
    fn add_to_exponent(self, n: Self) -> Self;
    /// The sum over the lanes, by recursive halving, in a fixed order.
    fn sum(self) -> f32;
    /// The largest lane; unspecified if one is NaN.
    fn maximum(self) -> f32;
}

/// Calls `f(start, n)` for each vector of `len` elements; `n` is `N` for all but perhaps the last.
#[inline(always)]
pub(crate) fn for_lanes<V: Lanes>(len: usize, mut f: impl FnMut(usize, usize)) {
    let whole = len - len % V::N;
    for i in (0..whole).step_by(V::N) {
        f(i, V::N);
    }
    if whole < len {
        f(whole, len - whole);
    }
}

/// Loads elements `i..i + n` of a slice, followed by zeros.
///
/// # Safety
/// The processor must have `V`'s instructions; `i + n <= from.len()`.
#[inline(always)]
pub(crate) unsafe fn load<V: Lanes>(from: &[f32], i: usize, n: usize) -> V {
    // SAFETY: by contract.
    unsafe { if n == V::N { V::load(from.as_ptr().add(i)) } else { V::load_first(from.as_ptr().add(i), n) } }
}

/// Writes the first `n` lanes to `to[i..i + n]`.
///
/// # Safety
/// `i + n` floats must be writable at `to`.
#[inline(always)]
pub(crate) unsafe fn store<V: Lanes>(x: V, to: *mut f32, i: usize, n: usize) {
    // SAFETY: by contract.
    unsafe { if n == V::N { x.store(to.add(i)) } else { x.store_first(to.add(i), n) } }
}

/// Prefetches these floats into the first-level cache; never affects a result.
#[inline(always)]
pub(crate) fn prefetch(values: &[f32]) {
    // A cache line holds 16 floats.
    for line in values.chunks(16) {
        #[cfg(target_arch = "x86_64")]
        // SAFETY: SSE is part of x86-64, and a prefetch may name any address.
        unsafe {
            _mm_prefetch::<_MM_HINT_T0>(line.as_ptr().cast());
        }
        #[cfg(not(target_arch = "x86_64"))]
        let _ = line;
    }
}

/// 2^112: the ratio of the exponents' scales of f16 and f32, once the bits are at f32's positions.
const HALF_BIAS: f32 = f32::from_bits((112 + 127) << 23);

/// The byte order that swaps the second and the third of four bf16, twice.
#[cfg(target_arch = "x86_64")]
#[inline(always)]
fn swapped_halves() -> __m128i {
    unsafe { _mm_setr_epi8(0, 1, 4, 5, 2, 3, 6, 7, 8, 9, 12, 13, 10, 11, 14, 15) }
}

/// AVX-512.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32x16(__m512);

#[cfg(target_arch = "x86_64")]
impl F32x16 {
    /// # Safety
    /// The processor must have AVX-512.
    #[inline(always)]
    pub(crate) unsafe fn new(vector: __m512) -> Self {
        Self(vector)
    }

    #[inline(always)]
    pub(crate) fn get(self) -> __m512 {
        self.0
    }

    #[inline(always)]
    fn first(n: usize) -> __mmask16 {
        ((1u32 << n) - 1) as __mmask16
    }
}

// SAFETY of every block in this implementation: a vector exists only on a processor with AVX-512 (the constructors' contract),
// and the constructors themselves are unsafe; pointers are valid by the contracts in the trait.
#[cfg(target_arch = "x86_64")]
impl Lanes for F32x16 {
    const N: usize = 16;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm512_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm512_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        Self(unsafe { _mm512_maskz_loadu_ps(Self::first(n), from) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm512_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        unsafe { _mm512_mask_storeu_ps(to, Self::first(n), self.0) }
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        Self(unsafe { _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_castps_si512(self.0))) })
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        let mask = unsafe { _mm512_set1_epi32(0xffff_0000_u32 as i32) };
        Self(unsafe { _mm512_castsi512_ps(_mm512_and_si512(_mm512_castps_si512(self.0), mask)) })
    }
    #[inline(always)]
    unsafe fn transpose_halves(from: impl Fn(usize) -> *const u32, to: impl Fn(usize) -> *mut u32) {
        unsafe {
            let swap = _mm512_broadcast_i32x4(swapped_halves());
            // Four numbers, two from each row, form one 64-bit element.
            let load = |i| _mm512_shuffle_epi8(_mm512_loadu_si512(from(i).cast()), swap);
            let rows = [load(0), load(1), load(2), load(3), load(4), load(5), load(6), load(7)];
            // The elements with even indices, then those with odd ones.
            for odd in 0..2 {
                let pair = |i: usize| match odd {
                    0 => _mm512_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]),
                    _ => _mm512_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]),
                };
                let [a, b, c, d] = [pair(0), pair(1), pair(2), pair(3)];
                let low = [_mm512_shuffle_i64x2::<0x44>(a, b), _mm512_shuffle_i64x2::<0x44>(c, d)];
                let high = [_mm512_shuffle_i64x2::<0xee>(a, b), _mm512_shuffle_i64x2::<0xee>(c, d)];
                _mm512_storeu_si512(to(odd).cast(), _mm512_shuffle_i64x2::<0x88>(low[0], low[1]));
                _mm512_storeu_si512(to(2 + odd).cast(), _mm512_shuffle_i64x2::<0xdd>(low[0], low[1]));
                _mm512_storeu_si512(to(4 + odd).cast(), _mm512_shuffle_i64x2::<0x88>(high[0], high[1]));
                _mm512_storeu_si512(to(6 + odd).cast(), _mm512_shuffle_i64x2::<0xdd>(high[0], high[1]));
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm512_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm512_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm512_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { _mm512_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        Self(unsafe { _mm512_fmadd_ps(self.0, factor.0, summand.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(unsafe { _mm512_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0), otherwise.0, then.0) })
    }
    #[inline(always)]
    fn less_bits(self, bound: Self) -> u32 {
        u32::from(unsafe { _mm512_cmp_ps_mask::<_CMP_LT_OQ>(self.0, bound.0) })
    }
    #[inline(always)]
    fn if_nan(self, then: Self, otherwise: Self) -> Self {
        Self(unsafe { _mm512_mask_blend_ps(_mm512_cmp_ps_mask::<_CMP_UNORD_Q>(self.0, self.0), otherwise.0, then.0) })
    }
    #[inline(always)]
    fn keep(self, first: usize, end: usize, fill: Self) -> Self {
        Self(unsafe { _mm512_mask_blend_ps(Self::first(end) & !Self::first(first), fill.0, self.0) })
    }
    #[inline(always)]
    fn nibbles(self, shift: u32) -> Self {
        // The permutation uses the lowest four bits of an index only.
        unsafe {
            let numbers = _mm512_setr_ps(0., 1., 2., 3., 4., 5., 6., 7., 8., 9., 10., 11., 12., 13., 14., 15.);
            let bits = _mm512_srlv_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(shift as i32));
            Self(_mm512_permutexvar_ps(bits, numbers))
        }
    }
    #[inline(always)]
    fn bytes(self, shift: u32) -> Self {
        unsafe {
            let high = _mm512_sllv_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(24 - shift as i32));
            Self(_mm512_cvtepi32_ps(_mm512_srai_epi32::<24>(high)))
        }
    }
    #[inline(always)]
    fn halves(self, shift: u32) -> Self {
        unsafe {
            let bits = _mm512_srlv_epi32(_mm512_castps_si512(self.0), _mm512_set1_epi32(shift as i32));
            Self(_mm512_cvtph_ps(_mm512_cvtepi32_epi16(bits)))
        }
    }
    #[inline(always)]
    fn add_to_exponent(self, n: Self) -> Self {
        Self(unsafe {
            let n = _mm512_slli_epi32::<23>(_mm512_castps_si512(n.0));
            _mm512_castsi512_ps(_mm512_add_epi32(_mm512_castps_si512(self.0), n))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        unsafe { _mm512_reduce_add_ps(self.0) }
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        unsafe { _mm512_reduce_max_ps(self.0) }
    }
}

/// AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32x8(__m256);

#[cfg(target_arch = "x86_64")]
impl F32x8 {
    /// A mask with all bits set in the first `n` lanes.
    ///
    /// # Safety
    /// The processor must have AVX2.
    #[inline(always)]
    unsafe fn first(n: usize) -> __m256i {
        unsafe { _mm256_cmpgt_epi32(_mm256_set1_epi32(n as i32), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7)) }
    }
}

// SAFETY of every block in this implementation: as for `F32x16`, with AVX2 and FMA.
#[cfg(target_arch = "x86_64")]
impl Lanes for F32x8 {
    const N: usize = 8;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self(unsafe { _mm256_set1_ps(x) })
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        Self(unsafe { _mm256_loadu_ps(from) })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        Self(unsafe { _mm256_maskload_ps(from, Self::first(n)) })
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        unsafe { _mm256_storeu_ps(to, self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        unsafe { _mm256_maskstore_ps(to, Self::first(n), self.0) }
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        Self(unsafe { _mm256_castsi256_ps(_mm256_slli_epi32::<16>(_mm256_castps_si256(self.0))) })
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        let mask = unsafe { _mm256_set1_epi32(0xffff_0000_u32 as i32) };
        Self(unsafe { _mm256_castsi256_ps(_mm256_and_si256(_mm256_castps_si256(self.0), mask)) })
    }
    #[inline(always)]
    unsafe fn transpose_halves(from: impl Fn(usize) -> *const u32, to: impl Fn(usize) -> *mut u32) {
        unsafe {
            let swap = _mm256_broadcastsi128_si256(swapped_halves());
            let load = |i| _mm256_shuffle_epi8(_mm256_loadu_si256(from(i).cast()), swap);
            let rows = [load(0), load(1), load(2), load(3)];
            for odd in 0..2 {
                let pair = |i: usize| match odd {
                    0 => _mm256_unpacklo_epi64(rows[2 * i], rows[2 * i + 1]),
                    _ => _mm256_unpackhi_epi64(rows[2 * i], rows[2 * i + 1]),
                };
                let [a, b] = [pair(0), pair(1)];
                _mm256_storeu_si256(to(odd).cast(), _mm256_permute2x128_si256::<0x20>(a, b));
                _mm256_storeu_si256(to(2 + odd).cast(), _mm256_permute2x128_si256::<0x31>(a, b));
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        Self(unsafe { _mm256_add_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        Self(unsafe { _mm256_sub_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        Self(unsafe { _mm256_mul_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        Self(unsafe { _mm256_div_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        Self(unsafe { _mm256_fmadd_ps(self.0, factor.0, summand.0) })
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        Self(unsafe { _mm256_max_ps(self.0, other.0) })
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        Self(unsafe { _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0)) })
    }
    #[inline(always)]
    fn less_bits(self, bound: Self) -> u32 {
        (unsafe { _mm256_movemask_ps(_mm256_cmp_ps::<_CMP_LT_OQ>(self.0, bound.0)) }) as u32
    }
    #[inline(always)]
    fn if_nan(self, then: Self, otherwise: Self) -> Self {
        Self(unsafe { _mm256_blendv_ps(otherwise.0, then.0, _mm256_cmp_ps::<_CMP_UNORD_Q>(self.0, self.0)) })
    }
    #[inline(always)]
    fn keep(self, first: usize, end: usize, fill: Self) -> Self {
        Self(unsafe {
            let keep = _mm256_andnot_si256(Self::first(first), Self::first(end));
            _mm256_blendv_ps(fill.0, self.0, _mm256_castsi256_ps(keep))
        })
    }
    #[inline(always)]
    fn nibbles(self, shift: u32) -> Self {
        unsafe {
            let bits = _mm256_srlv_epi32(_mm256_castps_si256(self.0), _mm256_set1_epi32(shift as i32));
            Self(_mm256_cvtepi32_ps(_mm256_and_si256(bits, _mm256_set1_epi32(15))))
        }
    }
    #[inline(always)]
    fn bytes(self, shift: u32) -> Self {
        unsafe {
            let high = _mm256_sllv_epi32(_mm256_castps_si256(self.0), _mm256_set1_epi32(24 - shift as i32));
            Self(_mm256_cvtepi32_ps(_mm256_srai_epi32::<24>(high)))
        }
    }
    #[inline(always)]
    fn halves(self, shift: u32) -> Self {
        unsafe {
            let bits = _mm256_srlv_epi32(_mm256_castps_si256(self.0), _mm256_set1_epi32(shift as i32));
            let sign = _mm256_slli_epi32::<16>(_mm256_and_si256(bits, _mm256_set1_epi32(0x8000)));
            let rest = _mm256_slli_epi32::<13>(_mm256_and_si256(bits, _mm256_set1_epi32(0x7fff)));
            let size = _mm256_mul_ps(_mm256_castsi256_ps(rest), _mm256_set1_ps(HALF_BIAS));
            Self(_mm256_or_ps(size, _mm256_castsi256_ps(sign)))
        }
    }
    #[inline(always)]
    fn add_to_exponent(self, n: Self) -> Self {
        Self(unsafe {
            let n = _mm256_slli_epi32::<23>(_mm256_castps_si256(n.0));
            _mm256_castsi256_ps(_mm256_add_epi32(_mm256_castps_si256(self.0), n))
        })
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        let mut lanes = [0.0; 8];
        // SAFETY: the array holds eight floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        let four = four(|i| lanes[i] + lanes[i + 4]);
        (four[0] + four[2]) + (four[1] + four[3])
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        let mut lanes = [0.0; 8];
        // SAFETY: the array holds eight floats.
        unsafe { self.store(lanes.as_mut_ptr()) };
        lanes.iter().fold(f32::NEG_INFINITY, |largest, &lane| largest.max(lane))
    }
}

/// Plain floats, safe on every machine: only the pointers below rely on the methods' contracts.
#[derive(Debug, Clone, Copy)]
pub(crate) struct F32x4([f32; 4]);

/// Replaces `std::array::from_fn`, which like other array methods may not be inlined: see [`Kernel`](super::level::Kernel).
#[inline(always)]
fn four(lane: impl Fn(usize) -> f32) -> [f32; 4] {
    [lane(0), lane(1), lane(2), lane(3)]
}

impl F32x4 {
    #[inline(always)]
    fn zip(self, other: Self, f: impl Fn(f32, f32) -> f32) -> Self {
        Self(four(|i| f(self.0[i], other.0[i])))
    }
}

impl Lanes for F32x4 {
    const N: usize = 4;

    #[inline(always)]
    unsafe fn splat(x: f32) -> Self {
        Self([x; 4])
    }
    #[inline(always)]
    unsafe fn load(from: *const f32) -> Self {
        // SAFETY: four floats are readable by contract; the type has no alignment beyond theirs.
        Self(unsafe { from.cast::<[f32; 4]>().read_unaligned() })
    }
    #[inline(always)]
    unsafe fn load_first(from: *const f32, n: usize) -> Self {
        // SAFETY: `i < n` floats are readable by contract.
        Self(four(|i| if i < n { unsafe { *from.add(i) } } else { 0.0 }))
    }
    #[inline(always)]
    unsafe fn store(self, to: *mut f32) {
        // SAFETY: four floats are writable by contract.
        unsafe { to.cast::<[f32; 4]>().write_unaligned(self.0) }
    }
    #[inline(always)]
    unsafe fn store_first(self, to: *mut f32, n: usize) {
        for (i, &x) in self.0.iter().take(n).enumerate() {
            // SAFETY: `i < n` floats are writable by contract.
            unsafe { *to.add(i) = x }
        }
    }
    #[inline(always)]
    fn low_halves(self) -> Self {
        Self(four(|i| f32::from_bits(self.0[i].to_bits() << 16)))
    }
    #[inline(always)]
    fn high_halves(self) -> Self {
        Self(four(|i| f32::from_bits(self.0[i].to_bits() & 0xffff_0000)))
    }
    #[inline(always)]
    unsafe fn transpose_halves(from: impl Fn(usize) -> *const u32, to: impl Fn(usize) -> *mut u32) {
        for (i, j) in [(0, 0), (0, 1), (1, 0), (1, 1)] {
            // SAFETY: words `2 j` and `2 j + 1` of four are readable, words `2 i` and `2 i + 1` writable by contract.
            unsafe {
                let (a, b) = (*from(i).add(2 * j), *from(i).add(2 * j + 1));
                *to(j).add(2 * i) = a & 0xffff | b << 16;
                *to(j).add(2 * i + 1) = a >> 16 | b & 0xffff_0000;
            }
        }
    }
    #[inline(always)]
    fn add(self, other: Self) -> Self {
        self.zip(other, |a, b| a + b)
    }
    #[inline(always)]
    fn sub(self, other: Self) -> Self {
        self.zip(other, |a, b| a - b)
    }
    #[inline(always)]
    fn mul(self, other: Self) -> Self {
        self.zip(other, |a, b| a * b)
    }
    #[inline(always)]
    fn div(self, other: Self) -> Self {
        self.zip(other, |a, b| a / b)
    }
    #[inline(always)]
    fn mul_add(self, factor: Self, summand: Self) -> Self {
        if cfg!(any(target_arch = "aarch64", target_feature = "fma")) {
            Self(four(|i| self.0[i].mul_add(factor.0[i], summand.0[i])))
        } else {
            Self(four(|i| self.0[i] * factor.0[i] + summand.0[i]))
        }
    }
    #[inline(always)]
    fn max(self, other: Self) -> Self {
        // This comparison compiles to one instruction, whereas `f32::max` also handles NaN.
        self.zip(other, |a, b| if a > b { a } else { b })
    }
    #[inline(always)]
    fn if_less(self, bound: Self, then: Self, otherwise: Self) -> Self {
        Self(four(|i| if self.0[i] < bound.0[i] { then.0[i] } else { otherwise.0[i] }))
    }
    #[inline(always)]
    fn less_bits(self, bound: Self) -> u32 {
        (0..4).fold(0, |bits, i| bits | u32::from(self.0[i] < bound.0[i]) << i)
    }
    #[inline(always)]
    fn if_nan(self, then: Self, otherwise: Self) -> Self {
        Self(four(|i| if self.0[i].is_nan() { then.0[i] } else { otherwise.0[i] }))
    }
    #[inline(always)]
    fn keep(self, first: usize, end: usize, fill: Self) -> Self {
        Self(four(|i| if (first..end).contains(&i) { self.0[i] } else { fill.0[i] }))
    }
    #[inline(always)]
    fn nibbles(self, shift: u32) -> Self {
        Self(four(|i| (self.0[i].to_bits() >> shift & 15) as f32))
    }
    #[inline(always)]
    fn bytes(self, shift: u32) -> Self {
        Self(four(|i| ((self.0[i].to_bits() << (24 - shift)) as i32 >> 24) as f32))
    }
    #[inline(always)]
    fn halves(self, shift: u32) -> Self {
        let number = |bits: u32| {
            let size = f32::from_bits((bits & 0x7fff) << 13) * HALF_BIAS;
            f32::from_bits(size.to_bits() | (bits & 0x8000) << 16)
        };
        Self(four(|i| number(self.0[i].to_bits() >> shift)))
    }
    #[inline(always)]
    fn add_to_exponent(self, n: Self) -> Self {
        self.zip(n, |x, n| f32::from_bits(x.to_bits().wrapping_add(n.to_bits() << 23)))
    }
    #[inline(always)]
    fn sum(self) -> f32 {
        (self.0[0] + self.0[2]) + (self.0[1] + self.0[3])
    }
    #[inline(always)]
    fn maximum(self) -> f32 {
        self.0.iter().fold(f32::NEG_INFINITY, |largest, &lane| largest.max(lane))
    }
}
