//! Attention's arithmetic with bf16 pairs and AMX: products of tiles of 16 rows by 16 words. Most of the remaining time is the softmax.
//!
//! ```text
//!   scores     rows x keys of a granule by column     16 words of a row at a time, 8 at its end; four granules side by side; both factors
//!                                                     in two parts, with three products as in bf16x3
//!   outputs    weights x values of a granule by row   8 words, the keys of a granule; four times 16 columns side by side
//! ```
//!
//! All keys of a granule are added at once, including those of weight 0, so that a row's result depends neither on the other rows nor on later
//! keys; see `matmul/amx.rs` for how the instruction accumulates, and for the tests.

use std::arch::asm;
use std::arch::x86_64::*;

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::dots;
use super::packed::Head;
use super::plan::{GRANULE, TILE as GRANULES, Tile};
use super::strip::{STRIDE, Scores};
#[cfg(test)]
use crate::kernels::amx::emulated::add_product;
use crate::kernels::amx::{Shape, TILE, Tiles};
use crate::kernels::lanes::F32x16;
use crate::kernels::level::Level;
#[cfg(test)]
use crate::kernels::processor;

/// The query rows of a strip.
pub(super) const STRIP: usize = TILE;

/// The words of half a tile: the keys of a granule.
const HALF: usize = TILE / 2;

/// Four tiles for sums, two for factors of 16 words, two for those of 8.
static SHAPE: Shape =
    Shape::new([(TILE, TILE), (TILE, TILE), (TILE, TILE), (TILE, TILE), (TILE, TILE), (TILE, TILE), (TILE, HALF), (HALF, TILE)]);

pub(super) fn run<K: AttentionKernel>(kernel: K) -> K::Output {
    // As in `Level::run`, one comparison keeps this sound whatever level was passed in.
    assert!(Level::available().contains(&Level::Amx), "this processor cannot run amx kernels");
    let _tiles = Tiles::take(&SHAPE);
    // SAFETY: the processor has the instructions, and this thread's tile registers are configured.
    unsafe { dots::compiled::<K, OfTiles, STRIP>(kernel) }
}

struct OfTiles;

impl Arithmetic<STRIP> for OfTiles {
    type V = F32x16;
    const PER_WORD: usize = 2;

    #[inline(always)]
    unsafe fn along(row: &mut [f32]) {
        // SAFETY: by contract.
        unsafe { dots::along(row) };
    }

    #[inline(always)]
    unsafe fn across(rows: *const f32, stride: usize, n: usize, to: *mut u32) {
        // SAFETY: by contract.
        unsafe { dots::across(rows, stride, n, to) };
    }

    #[inline(always)]
    unsafe fn along_with_sum(row: &mut [f32], _sum: f32) -> f32 {
        // SAFETY: by contract.
        unsafe { dots::along_with_sum(row) }
    }

    #[inline(always)]
    unsafe fn finely(row: &mut [f32]) {
        // SAFETY: by contract.
        unsafe { split(row) };
    }

    #[inline(always)]
    unsafe fn scores(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
        // SAFETY: by contract.
        unsafe { products::<2>(columns, tile, rows, scores) };
    }

    #[inline(always)]
    unsafe fn products(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
        // SAFETY: by contract.
        unsafe { products::<1>(columns, tile, rows, scores) };
    }

    #[inline(always)]
    unsafe fn weighted_sums(
        rows: Head,
        tile: Tile,
        weights: &Scores<STRIP>,
        _last: usize,
        shrinks: &[f32; STRIP],
        sums: &mut [f32],
    ) {
        let width = sums.len() / STRIP;
        assert!(tile.granules.len() <= GRANULES);
        for (row, shrink) in sums.chunks_exact_mut(width).zip(shrinks) {
            row.iter_mut().for_each(|x| *x *= shrink);
        }
        let mut granules = [std::ptr::null(); GRANULES];
        granules.iter_mut().zip(tile.granules).for_each(|(to, &granule)| *to = rows.granule(granule).as_ptr());
        // SAFETY: by contract, and the assertion.
        unsafe { multiply_add(weights.as_words().as_ptr(), STRIDE, &granules[..tile.granules.len()], sums, width) };
    }

    #[inline(always)]
    unsafe fn add_transposed(weights: &[u32], g: usize, rows: &[u32], sums: &mut [f32]) {
        let width = rows.len() / HALF;
        assert!(g < GRANULES && weights.len() == HALF * STRIDE && sums.len() == GRANULE * width);
        // SAFETY: the processor has the instructions by contract; the assertion bounds all accesses.
        unsafe {
            let weights = transposed(weights.as_ptr().add(g * GRANULE));
            multiply_add(weights.as_ptr().cast(), HALF, &[rows.as_ptr()], sums, width);
        }
    }
}

/// Splits numbers into bf16 pairs, in place: for each 32 numbers first the words of their upper parts, then those of their lower parts;
/// likewise for the last 16 if their number is odd.
///
/// # Safety
/// As [`Arithmetic::finely`].
#[inline(always)]
unsafe fn split(row: &mut [f32]) {
    // SAFETY: by contract.
    unsafe {
        for numbers in row.chunks_mut(2 * GRANULE) {
            let mut lower = [0f32; 2 * GRANULE];
            for i in (0..numbers.len()).step_by(GRANULE) {
                let x = _mm512_loadu_ps(numbers.as_ptr().add(i));
                let upper = std::mem::transmute::<__m256bh, __m256i>(_mm512_cvtneps_pbh(x));
                let upper = _mm512_castsi512_ps(_mm512_slli_epi32::<16>(_mm512_cvtepu16_epi32(upper)));
                lower.as_mut_ptr().add(i).cast::<__m512>().write_unaligned(_mm512_sub_ps(x, upper));
            }
            let half = numbers.len() / 2;
            dots::along(numbers);
            dots::along(&mut lower[..2 * half]);
            numbers[half..].copy_from_slice(&lower[..half]);
        }
    }
}

/// The scores for words along rows, in `PARTS` parts, one or two.
///
/// # Safety
/// As [`Arithmetic::products`].
#[inline(always)]
unsafe fn products<const PARTS: usize>(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<STRIP>) {
    let (words, stride) = (columns.size() / GRANULE, rows.len() / STRIP);
    assert!(tile.granules.len() <= GRANULES && words <= stride && words.is_multiple_of(PARTS * HALF));
    let scores = scores.0.as_mut_ptr().cast::<f32>();
    let (fours, ones) = tile.granules.as_chunks::<4>();
    let keys = |granule: usize| columns.granule(granule).as_ptr();
    let depth = words / PARTS;
    // SAFETY: by contract, and the assertion; the granules' scores are contiguous.
    unsafe {
        for (i, &[a, b, c, d]) in fours.iter().enumerate() {
            let keys = [keys(a), keys(b), keys(c), keys(d)];
            multiply::<4, PARTS>(rows.as_ptr(), stride, keys, depth, scores.add(4 * i * GRANULE));
        }
        for (i, &granule) in ones.iter().enumerate() {
            let to = scores.add((4 * fours.len() + i) * GRANULE);
            multiply::<1, PARTS>(rows.as_ptr(), stride, [keys(granule); 4], depth, to);
        }
    }
}

/// Transposes eight rows of 16 words, [`STRIDE`] apart, to 16 rows of eight.
///
/// # Safety
/// The processor must have AVX-512; the words must be readable.
#[inline(always)]
unsafe fn transposed(words: *const u32) -> [[u32; HALF]; GRANULE] {
    // SAFETY: by contract.
    let (upper, lower) = unsafe { (by_fours(words), by_fours(words.add(4 * STRIDE))) };
    let mut columns = [[0; HALF]; GRANULE];
    for (i, column) in columns.iter_mut().enumerate() {
        column[..4].copy_from_slice(&upper[i % 4][i / 4]);
        column[4..].copy_from_slice(&lower[i % 4][i / 4]);
    }
    columns
}

/// The columns of four rows of 16 words, [`STRIDE`] apart: `[i][j]` is column `4 j + i`, from the first row to the fourth.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn by_fours(words: *const u32) -> [[[u32; 4]; 4]; 4] {
    // SAFETY: by contract.
    unsafe {
        let (a, b) = (_mm512_loadu_si512(words.cast()), _mm512_loadu_si512(words.add(STRIDE).cast()));
        let (c, d) = (_mm512_loadu_si512(words.add(2 * STRIDE).cast()), _mm512_loadu_si512(words.add(3 * STRIDE).cast()));
        let (ab, ab_high) = (_mm512_unpacklo_epi32(a, b), _mm512_unpackhi_epi32(a, b));
        let (cd, cd_high) = (_mm512_unpacklo_epi32(c, d), _mm512_unpackhi_epi32(c, d));
        std::mem::transmute::<[__m512i; 4], _>([
            _mm512_unpacklo_epi64(ab, cd),
            _mm512_unpackhi_epi64(ab, cd),
            _mm512_unpacklo_epi64(ab_high, cd_high),
            _mm512_unpackhi_epi64(ab_high, cd_high),
        ])
    }
}

/// [`multiply`] for processors without tiles.
///
/// # Safety
/// As for [`multiply`].
#[cfg(test)]
unsafe fn emulated_multiply<const N: usize, const PARTS: usize>(
    a: *const u32,
    stride: usize,
    b: [*const u32; 4],
    depth: usize,
    to: *mut f32,
) {
    for (r, n) in (0..TILE).flat_map(|r| (0..N * TILE).map(move |n| (r, n))) {
        let mut sum = 0.0;
        let (a, b) = (a.wrapping_add(r * stride), b[n / TILE].wrapping_add(n % TILE));
        for step in (0..depth).step_by(TILE) {
            let words = TILE.min(depth - step);
            let products: &[(usize, usize)] = if PARTS == 1 { &[(0, 0)] } else { &[(0, 0), (0, words), (words, 0)] };
            for (of_a, of_b) in products {
                let (a, b) = (a.wrapping_add(PARTS * step + of_a), b.wrapping_add((PARTS * step + of_b) * TILE));
                // SAFETY: by contract.
                unsafe { add_product(&mut sum, a, b, TILE, words) };
            }
        }
        // SAFETY: by contract.
        unsafe { to.add(r * STRIDE + n).write(sum) };
    }
}

/// One product of each column tile, at byte offsets `$of_a` and `$of_b`, using the registers `$x` and `$y`. The first factor of `tdpbf16ps` is the
/// second operand.
macro_rules! product_of_tiles {
    ($x:literal, $of_a:literal, $y:literal, $of_b:literal, $($b:ident $sum:literal),+) => {
        concat!(
            "tileloadd ", $x, ", [{a} + {stride} + ", $of_a, "]\n",
            $(
                "tileloadd ", $y, ", [{", stringify!($b), "} + {pitch} + ", $of_b, "]\n",
                "tdpbf16ps ", $sum, ", ", $x, ", ", $y, "\n",
            )+
        )
    };
}

/// `to[r][n] = a[r] . b[n]` over `depth` words, in `PARTS` parts, for `N` tiles of 16 columns, 4 or 1 of them; rows of `to` are [`STRIDE`]
/// apart, words of a column 16. With two parts, a step has the products upper by upper, upper by lower and lower by upper.
///
/// # Safety
/// All inputs must be readable, `to` writable, `depth` a multiple of 8, and the tiles configured.
#[inline(always)]
unsafe fn multiply<const N: usize, const PARTS: usize>(
    a: *const u32,
    stride: usize,
    b: [*const u32; 4],
    depth: usize,
    to: *mut f32,
) {
    const { assert!((N == 4 || N == 1) && (PARTS == 1 || PARTS == 2)) };
    #[cfg(test)]
    if !processor::has_tiles() {
        // SAFETY: by contract.
        return unsafe { emulated_multiply::<N, PARTS>(a, stride, b, depth, to) };
    }
    macro_rules! product {
        ($whole:expr, $half:expr, $($b:ident $column:literal $sum:literal),+) => {
            asm!(
                $(concat!("tilezero ", $sum),)+
                "test {steps}, {steps}",
                "jz 3f",
                "2:",
                $whole,
                $(concat!("add {", stringify!($b), "}, {b_step}"),)+
                "add {a}, {a_step}",
                "dec {steps}",
                "jnz 2b",
                "3:",
                "test {rest}, {rest}",
                "jz 4f",
                $half,
                "4:",
                $(concat!("tilestored [{to} + {to_pitch} + ", $column, "], ", $sum),)+
                $($b = inout(reg) $b => _,)+
                a = inout(reg) a => _,
                stride = in(reg) stride * size_of::<u32>(),
                pitch = in(reg) TILE * size_of::<u32>(),
                a_step = const PARTS * TILE * size_of::<u32>(),
                b_step = const PARTS * TILE * TILE * size_of::<u32>(),
                steps = inout(reg) depth / TILE => _,
                rest = in(reg) depth % TILE,
                to = in(reg) to,
                to_pitch = in(reg) STRIDE * size_of::<f32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // Loads and stores are within what the contract allows.
    macro_rules! in_parts {
        ($($b:ident $column:literal $sum:literal),+) => {
            match PARTS {
                1 => product!(
                    product_of_tiles!("tmm4", "0", "tmm5", "0", $($b $sum),+),
                    product_of_tiles!("tmm6", "0", "tmm7", "0", $($b $sum),+),
                    $($b $column $sum),+
                ),
                _ => product!(
                    concat!(
                        product_of_tiles!("tmm4", "0", "tmm5", "0", $($b $sum),+),
                        product_of_tiles!("tmm4", "0", "tmm5", "1024", $($b $sum),+),
                        product_of_tiles!("tmm4", "64", "tmm5", "0", $($b $sum),+),
                    ),
                    concat!(
                        product_of_tiles!("tmm6", "0", "tmm7", "0", $($b $sum),+),
                        product_of_tiles!("tmm6", "0", "tmm7", "512", $($b $sum),+),
                        product_of_tiles!("tmm6", "32", "tmm7", "0", $($b $sum),+),
                    ),
                    $($b $column $sum),+
                ),
            }
        };
    }
    let [b0, b1, b2, b3] = b;
    // SAFETY: by contract, as described above.
    unsafe {
        match N {
            4 => in_parts!(b0 "0" "tmm0", b1 "64" "tmm1", b2 "128" "tmm2", b3 "192" "tmm3"),
            _ => in_parts!(b0 "0" "tmm0"),
        }
    }
}

/// `sums += sum over i of a[i] b[i]`, with tiles `a[i]` of 16 rows by 8 words, side by side in rows `stride` words apart, and `b[i]` of 8 rows
/// of `width` words; `sums` is `[16, width]`.
///
/// # Safety
/// All inputs must be readable, `width` must be a multiple of 16, and the tiles must be configured.
#[inline(always)]
unsafe fn multiply_add(a: *const u32, stride: usize, b: &[*const u32], sums: &mut [f32], width: usize) {
    if b.is_empty() {
        return;
    }
    #[cfg(test)]
    if !processor::has_tiles() {
        for (i, sum) in sums.iter_mut().enumerate() {
            for (k, b) in b.iter().enumerate() {
                // SAFETY: by contract.
                unsafe { add_product(sum, a.add(i / width * stride + k * HALF), b.add(i % width), width, HALF) };
            }
        }
        return;
    }
    macro_rules! product {
        ($first:expr, $(($column:literal, $sum:literal)),+) => {
            asm!(
                $(concat!("tileloadd ", $sum, ", [{sums} + {pitch} + ", $column, "]"),)+
                "2:",
                "mov {row}, [{b}]",
                "add {row}, {first}",
                "tileloadd tmm6, [{a} + {stride}]",
                $(
                    concat!("tileloadd tmm7, [{row} + {pitch} + ", $column, "]"),
                    concat!("tdpbf16ps ", $sum, ", tmm6, tmm7"),
                )+
                "add {a}, 32",
                "add {b}, 8",
                "dec {steps}",
                "jnz 2b",
                $(concat!("tilestored [{sums} + {pitch} + ", $column, "], ", $sum),)+
                row = out(reg) _,
                first = in(reg) $first * size_of::<u32>(),
                a = inout(reg) a => _,
                stride = in(reg) stride * size_of::<u32>(),
                b = inout(reg) b.as_ptr() => _,
                steps = inout(reg) b.len() => _,
                sums = in(reg) sums.as_mut_ptr().add($first),
                pitch = in(reg) width * size_of::<u32>(),
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    let mut column = 0;
    // SAFETY: by contract; loads and stores are of columns within the width.
    unsafe {
        while column + 4 * TILE <= width {
            product!(column, ("0", "tmm0"), ("64", "tmm1"), ("128", "tmm2"), ("192", "tmm3"));
            column += 4 * TILE;
        }
        while column < width {
            product!(column, ("0", "tmm0"));
            column += TILE;
        }
    }
}
