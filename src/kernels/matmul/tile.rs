//! The register tile: up to 8 rows of the input times one panel of 48 outputs, with all sums in registers.
//!
//! Every output is the sum over `k` in ascending order, one multiply-add after the other, whatever the height and place of the tile.
//! A row's result therefore depends neither on its batch nor on the number of threads.

#![allow(clippy::needless_range_loop, reason = "indices over register tiles read like the formulas")]

use std::mem::MaybeUninit;

use super::pack::{GROUP, PANEL};
use crate::kernels::lanes::Lanes;
use crate::kernels::level::Kernel;

/// The vectors of a tile's row: all 48 outputs with AVX-512, 24 or 12 of them where registers are shorter and fewer.
pub(crate) const VECTORS: usize = 3;

/// A way to multiply packed words.
pub(crate) trait Product {
    type V: Lanes;
    /// The rows of the highest tile whose sums fit into registers.
    const MAX_ROWS: usize;
    /// The rows of `w` for each word of `x`.
    const ROWS_OF_WORD: usize = 1;
    /// The same product, with the same bits, for panels that [`widen`] has converted to f32; the product itself if that is no faster.
    type Widened: Product<V = Self::V>;
    /// Whether [`Product::Widened`] is faster for many rows.
    const WIDENS: bool = false;

    /// `sums[r][c] += sum over k < depth of x[r][k] w[k][c]`, where each word of `x` (f32 or a bf16 pair) has a word of `w`.
    ///
    /// # Safety
    /// The processor must have the product's instructions; `R` rows of `depth` words, `stride` words apart, must be readable at `x`,
    /// and `depth` times [`Product::ROWS_OF_WORD`] rows of `VECTORS` vectors, `PANEL` words apart, at `w`.
    unsafe fn accumulate<const R: usize>(
        sums: &mut [[Self::V; VECTORS]; R],
        x: *const u32,
        stride: usize,
        w: *const u32,
        depth: usize,
    );
}

/// The number of rows from which widening a panel pays off.
pub(crate) const MANY_ROWS: usize = 8;

/// Converts rows of a panel's words, bf16 pairs, to twice as many rows of f32: the odd `k` of each pair first.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
pub(crate) unsafe fn widen<V: Lanes>(words: &[u32], to: &mut [f32]) {
    assert!(words.len().is_multiple_of(PANEL) && to.len() >= 2 * words.len());
    for row in (0..words.len()).step_by(PANEL) {
        for column in (0..PANEL).step_by(V::N) {
            // SAFETY: `column + N <= PANEL`, and the assertion covers both rows; the instructions are there by contract.
            unsafe {
                let pairs = V::load(words.as_ptr().add(row + column).cast());
                let to = to.as_mut_ptr().add(2 * row + column);
                pairs.high_halves().store(to);
                pairs.low_halves().store(to.add(PANEL));
            }
        }
    }
}

/// Both factors in two parts, `x = u + v` and `w = s + t`: sums the products `u s`, `u t` and `v s`, and omits `v t`, which is at
/// most 2^-16 of the whole. Proceeds group by group, so that blocks of whole groups give the bits of one product over all of them.
pub(super) struct Split<P>(P);

impl<P: Product> Product for Split<P> {
    type V = P::V;
    const MAX_ROWS: usize = P::MAX_ROWS;
    const ROWS_OF_WORD: usize = P::ROWS_OF_WORD;
    type Widened = Split<P::Widened>;
    const WIDENS: bool = P::WIDENS;

    #[inline(always)]
    unsafe fn accumulate<const R: usize>(
        sums: &mut [[P::V; VECTORS]; R],
        x: *const u32,
        stride: usize,
        w: *const u32,
        depth: usize,
    ) {
        debug_assert!(depth.is_multiple_of(2 * GROUP));
        for first in (0..depth).step_by(2 * GROUP) {
            // SAFETY: both parts of a group lie within `depth` words; the rest is by contract.
            unsafe {
                let (x, w) = (x.add(first), w.add(first * P::ROWS_OF_WORD * PANEL));
                P::accumulate(sums, x, stride, w, GROUP);
                P::accumulate(sums, x, stride, w.add(GROUP * P::ROWS_OF_WORD * PANEL), GROUP);
                P::accumulate(sums, x.add(GROUP), stride, w, GROUP);
            }
        }
    }
}

/// Code that [`dispatch`](super::dispatch::dispatch) compiles once per product; the rules of [`Kernel`] apply.
pub(crate) trait ProductKernel {
    type Output;

    /// # Safety
    /// The processor must have `P`'s instructions.
    unsafe fn run<P: Product>(self) -> Self::Output;
}

/// Multiplies a tile of up to [`Product::MAX_ROWS`] rows and passes each vector of sums to `finish(row, column, sums)`.
///
/// # Safety
/// As [`Product::accumulate`], for `R` rows and a whole panel at `w`.
#[inline(always)]
pub(crate) unsafe fn tile<P: Product, const R: usize>(
    x: *const u32,
    stride: usize,
    w: *const u32,
    depth: usize,
    start: impl Fn(usize, usize) -> P::V,
    mut finish: impl FnMut(usize, usize, P::V),
) {
    let width = VECTORS * P::V::N;
    for column in (0..PANEL).step_by(width) {
        // SAFETY: `column` lies in the panel, and every sum is written before it is used; the rest is by contract.
        unsafe {
            // Not initialised with zeros, because these then went through memory.
            let mut sums = [const { [const { MaybeUninit::uninit() }; VECTORS] }; R];
            for r in 0..R {
                for c in 0..VECTORS {
                    sums[r][c].write(start(r, column + c * P::V::N));
                }
            }
            let sums = &mut *sums.as_mut_ptr().cast::<[[P::V; VECTORS]; R]>();
            P::accumulate(sums, x, stride, w.add(column), depth);
            for r in 0..R {
                for c in 0..VECTORS {
                    finish(r, column + c * P::V::N, sums[r][c]);
                }
            }
        }
    }
}

pub(super) struct F32Kernel<K>(pub(super) K);

impl<K: ProductKernel> Kernel for F32Kernel<K> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> K::Output {
        // SAFETY: `F32Product<V>` needs the instructions of `V`.
        unsafe { self.0.run::<F32Product<V>>() }
    }
}

pub(super) struct WidenedKernel<K>(pub(super) K);

impl<K: ProductKernel> Kernel for WidenedKernel<K> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> K::Output {
        // SAFETY: `WidenedProduct<V>` needs the instructions of `V`.
        unsafe { self.0.run::<WidenedProduct<V>>() }
    }
}

pub(super) struct SplitKernel<K>(pub(super) K);

impl<K: ProductKernel> Kernel for SplitKernel<K> {
    type Output = K::Output;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> K::Output {
        // SAFETY: `WidenedProduct<V>` needs the instructions of `V`.
        unsafe { self.0.run::<Split<WidenedProduct<V>>>() }
    }
}

/// The product of f32 words.
struct F32Product<V>(V);

impl<V: Lanes> Product for F32Product<V> {
    type V = V;
    /// Sums take 24 of AVX-512's 32 registers, or 9 of 16 otherwise: with 12 the compiler spills.
    const MAX_ROWS: usize = if V::N == 16 { 8 } else { 3 };
    type Widened = Self;

    #[inline(always)]
    unsafe fn accumulate<const R: usize>(
        sums: &mut [[V; VECTORS]; R],
        x: *const u32,
        stride: usize,
        w: *const u32,
        depth: usize,
    ) {
        let (x, w) = (x.cast::<f32>(), w.cast::<f32>());
        for k in 0..depth {
            // SAFETY: by contract, for `k < depth` and `r < R`.
            unsafe {
                let w = w.add(k * PANEL);
                let w = [V::load(w), V::load(w.add(V::N)), V::load(w.add(2 * V::N))];
                for r in 0..R {
                    let x = V::splat(*x.add(r * stride + k));
                    for c in 0..VECTORS {
                        sums[r][c] = x.mul_add(w[c], sums[r][c]);
                    }
                }
            }
        }
    }
}

/// bf16 pairs, widened to f32: a bf16 is the upper half of an f32. The odd `k` of a pair comes first, as in `vdpbf16ps`.
struct WidenedProduct<V>(V);

impl<V: Lanes> Product for WidenedProduct<V> {
    type V = V;
    /// Few rows, because both halves of three words, a row and a mask leave no room for 24 sums.
    const MAX_ROWS: usize = if V::N == 16 { 4 } else { 2 };
    type Widened = ByWidened<V>;
    /// AVX-512 has enough registers to widen inside the product, for four rows at a time.
    const WIDENS: bool = V::N < 16;

    #[inline(always)]
    unsafe fn accumulate<const R: usize>(
        sums: &mut [[V; VECTORS]; R],
        x: *const u32,
        stride: usize,
        w: *const u32,
        depth: usize,
    ) {
        for k in 0..depth {
            // SAFETY: by contract, for `k < depth` and `r < R`.
            unsafe {
                let w = w.add(k * PANEL).cast();
                let odd = [V::load(w).high_halves(), V::load(w.add(V::N)).high_halves(), V::load(w.add(2 * V::N)).high_halves()];
                for r in 0..R {
                    let x = V::splat(f32::from_bits(*x.add(r * stride + k) & 0xffff_0000));
                    for c in 0..VECTORS {
                        sums[r][c] = x.mul_add(odd[c], sums[r][c]);
                    }
                }
                let even = [V::load(w).low_halves(), V::load(w.add(V::N)).low_halves(), V::load(w.add(2 * V::N)).low_halves()];
                for r in 0..R {
                    let x = V::splat(f32::from_bits(*x.add(r * stride + k) << 16));
                    for c in 0..VECTORS {
                        sums[r][c] = x.mul_add(even[c], sums[r][c]);
                    }
                }
            }
        }
    }
}

/// [`WidenedProduct`] for panels that [`widen`] has converted to f32.
struct ByWidened<V>(V);

impl<V: Lanes> Product for ByWidened<V> {
    type V = V;
    /// The same number of rows as for f32 words.
    const MAX_ROWS: usize = F32Product::<V>::MAX_ROWS;
    const ROWS_OF_WORD: usize = 2;
    type Widened = Self;

    #[inline(always)]
    unsafe fn accumulate<const R: usize>(
        sums: &mut [[V; VECTORS]; R],
        x: *const u32,
        stride: usize,
        w: *const u32,
        depth: usize,
    ) {
        for k in 0..depth {
            // SAFETY: by contract, for `k < depth` and `r < R`.
            unsafe {
                let w = w.add(2 * k * PANEL).cast::<f32>();
                let odd = [V::load(w), V::load(w.add(V::N)), V::load(w.add(2 * V::N))];
                for r in 0..R {
                    let x = V::splat(f32::from_bits(*x.add(r * stride + k))).high_halves();
                    for c in 0..VECTORS {
                        sums[r][c] = x.mul_add(odd[c], sums[r][c]);
                    }
                }
                let w = w.add(PANEL);
                let even = [V::load(w), V::load(w.add(V::N)), V::load(w.add(2 * V::N))];
                for r in 0..R {
                    let x = V::splat(f32::from_bits(*x.add(r * stride + k))).low_halves();
                    for c in 0..VECTORS {
                        sums[r][c] = x.mul_add(even[c], sums[r][c]);
                    }
                }
            }
        }
    }
}

/// bf16 pairs multiplied by the dedicated instruction: twice the rate of f32.
#[cfg(target_arch = "x86_64")]
pub(super) mod bf16_dot {
    use std::arch::x86_64::*;
    use std::mem::transmute;

    use super::{PANEL, Product, ProductKernel, Split, VECTORS};
    use crate::kernels::lanes::F32x16;
    use crate::kernels::level::Level;

    /// Runs `kernel` with `P`, a product that uses these instructions.
    pub(in crate::kernels::matmul) fn dispatch<P: ByDots, K: ProductKernel>(kernel: K) -> K::Output {
        // As in `Level::run`, one comparison keeps this sound whatever level was passed in.
        assert!(Level::available().contains(&Level::Avx512Bf16), "this processor cannot run avx512bf16 kernels");
        // SAFETY: the processor has the instructions.
        unsafe { run::<P, K>(kernel) }
    }

    /// Products that need no other instructions.
    pub(in crate::kernels::matmul) trait ByDots: Product {}

    impl ByDots for Bf16Dot {}

    impl ByDots for Split<Bf16Dot> {}

    /// Compiles `kernel` with these instructions, for products that need no others or enable them themselves.
    ///
    /// # Safety
    /// The processor must have them, and `P`'s own instructions.
    #[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx512bf16,avx2,fma")]
    pub(in crate::kernels::matmul) unsafe fn run<P: Product, K: ProductKernel>(kernel: K) -> K::Output {
        // SAFETY: by contract.
        unsafe { kernel.run::<P>() }
    }

    pub(in crate::kernels::matmul) struct Bf16Dot;

    impl Product for Bf16Dot {
        type V = F32x16;
        const MAX_ROWS: usize = 8;
        type Widened = Self;

        #[inline(always)]
        unsafe fn accumulate<const R: usize>(
            sums: &mut [[F32x16; VECTORS]; R],
            x: *const u32,
            stride: usize,
            w: *const u32,
            depth: usize,
        ) {
            for k in 0..depth {
                // SAFETY: by contract, for `k < depth` and `r < R`; `__m512i` and `__m512bh` are the same 64 bytes.
                unsafe {
                    let w = w.add(k * PANEL).cast::<__m512i>();
                    let w = [_mm512_loadu_si512(w), _mm512_loadu_si512(w.add(1)), _mm512_loadu_si512(w.add(2))];
                    for r in 0..R {
                        let x = transmute::<__m512i, __m512bh>(_mm512_set1_epi32(*x.add(r * stride + k) as i32));
                        for c in 0..VECTORS {
                            let w = transmute::<__m512i, __m512bh>(w[c]);
                            sums[r][c] = F32x16::new(_mm512_dpbf16_ps(sums[r][c].get(), x, w));
                        }
                    }
                }
            }
        }
    }
}
