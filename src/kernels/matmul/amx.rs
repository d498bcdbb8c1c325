//! bf16 pairs multiplied by AMX: eight registers of 16 rows by 16 words, and an instruction that multiplies two of them.
//!
//! The order of panels is that of the instruction's second factor (a word holds two neighbouring `k` of one output), so a tile of the weight
//! is 16 rows of a panel, loaded directly. A panel is multiplied with 32 rows of the input at a time:
//!
//! ```text
//!                     w: tmm6, one third of a panel after the other
//!   x: tmm7 (rows 0..16)    sums tmm0 tmm1 tmm2
//!   x: tmm7 (rows 16..32)   sums tmm3 tmm4 tmm5
//! ```
//!
//! `tdpbf16ps` sums the even and the odd products of 16 words separately, starting at zero, and then adds both to the sum (Intel's Software
//! Developer's Manual, volume 2; denormals count as zero). Words are therefore processed in groups of 16, and partial tiles are padded with
//! zeros: as everywhere, a row's result depends neither on its batch nor on its tile.
//!
//! In bf16x3 a step processes 16 words of upper and 16 of lower parts, and each sum gets three products instead of one; tiles are loaded again
//! for each product, as loads take half the time of products.
//!
//! No machine available for testing has AMX. Unit tests replace the instructions by the manual's definition, so that all code around them is
//! tested; the instructions themselves are compared with plain sums when the level is requested ([`check`]), and
//! [`Level::current`](crate::kernels::level::Level::current) never chooses it automatically. On a machine with AMX,
//! `DIAGNOSE_AMX_TESTS=1 cargo test --release --lib kernels` runs all those tests with the instructions: do this first there.

use std::arch::asm;

use super::pack::{PANEL, bf16_pair};
use super::tile::bf16_dot::run;
use super::tile::{Product, ProductKernel, VECTORS};
use crate::error::{Error, Result};
#[cfg(test)]
use crate::kernels::amx::emulated::add_product;
use crate::kernels::amx::{Shape, TILE, Tiles};
use crate::kernels::lanes::{F32x16, Lanes};
use crate::kernels::level::Level;
use crate::kernels::processor;

/// The configuration with eight whole tiles.
static SHAPE: Shape = Shape::new([(TILE, TILE); 8]);

/// `PARTS` is 1 for bf16 and 2 for bf16x3.
pub(super) fn dispatch<const PARTS: usize, K: ProductKernel>(kernel: K) -> K::Output {
    // As in `Level::run`, one comparison keeps this sound whatever level was passed in.
    assert!(Level::available().contains(&Level::Amx), "this processor cannot run amx kernels");
    let _tiles = Tiles::take(&SHAPE);
    // SAFETY: the processor has the instructions, and this thread's tile registers have their shape.
    unsafe { run::<Amx<PARTS>, K>(kernel) }
}

struct Amx<const PARTS: usize>;

impl<const PARTS: usize> Product for Amx<PARTS> {
    type V = F32x16;
    const MAX_ROWS: usize = 2 * TILE;
    type Widened = Self;

    #[inline(always)]
    unsafe fn accumulate<const R: usize>(
        sums: &mut [[F32x16; VECTORS]; R],
        x: *const u32,
        stride: usize,
        w: *const u32,
        depth: usize,
    ) {
        let to = sums.as_mut_ptr().cast::<f32>();
        let words = PARTS * TILE;
        let (steps, rest) = (depth / words, depth % words);
        // SAFETY: by contract; a whole tile is read only if `R` rows and 16 words fill it.
        unsafe {
            match R {
                32 => multiply_add::<2, PARTS>(to, x, stride, w, steps),
                16 => multiply_add::<1, PARTS>(to, x, stride, w, steps),
                _ => (0..steps).for_each(|step| {
                    filled_up::<PARTS>(to, R, x.wrapping_add(step * words), stride, w.wrapping_add(step * words * PANEL), words);
                }),
            }
            if rest > 0 {
                filled_up::<PARTS>(to, R, x.wrapping_add(steps * words), stride, w.wrapping_add(steps * words * PANEL), rest);
            }
        }
    }
}

/// `sums [n_rows, PANEL] += x w` for the words of at most one step and any number of rows, using copies that are padded with zeros to whole
/// tiles.
///
/// # Safety
/// As [`Product::accumulate`], and the tiles have their shape.
unsafe fn filled_up<const PARTS: usize>(
    sums: *mut f32,
    n_rows: usize,
    x: *const u32,
    stride: usize,
    w: *const u32,
    n_words: usize,
) {
    const { assert!(PARTS == 1 || PARTS == 2) };
    let mut w_copy;
    // SAFETY: by contract: `n_rows` rows of `n_words` words, and as many rows of a panel.
    unsafe {
        let w = if n_words == PARTS * TILE {
            w
        } else {
            w_copy = [0u32; 2 * TILE * PANEL];
            w_copy.as_mut_ptr().copy_from_nonoverlapping(w, n_words * PANEL);
            w_copy.as_ptr()
        };
        for first in (0..n_rows).step_by(TILE) {
            let rows = TILE.min(n_rows - first);
            let (mut x_copy, mut sums_copy) = ([0u32; 2 * TILE * TILE], [0f32; TILE * PANEL]);
            for r in 0..rows {
                x_copy.as_mut_ptr().add(r * 2 * TILE).copy_from_nonoverlapping(x.add((first + r) * stride), n_words);
            }
            let sums = sums.add(first * PANEL);
            sums_copy.as_mut_ptr().copy_from_nonoverlapping(sums, rows * PANEL);
            multiply_add::<1, PARTS>(sums_copy.as_mut_ptr(), x_copy.as_ptr(), 2 * TILE, w, 1);
            sums.copy_from_nonoverlapping(sums_copy.as_ptr(), rows * PANEL);
        }
    }
}

/// The bytes of 16 words of a row, and of 16 rows of a panel.
const X_STEP: usize = TILE * size_of::<u32>();
const W_STEP: usize = TILE * PANEL * size_of::<u32>();

/// The products of 32 rows by 16 words of a panel, at byte offsets `$x` and `$w` from the pointers.
macro_rules! products_of_32_rows {
    ($x:literal, $w:literal) => {
        concat!(
            "tileloadd tmm7, [{upper} + {stride} + ",
            $x,
            "]\n",
            "tileloadd tmm6, [{w} + {pitch} + ",
            $w,
            "]\n",
            "tdpbf16ps tmm0, tmm7, tmm6\n",
            "tileloadd tmm6, [{w} + {pitch} + ",
            $w,
            " + 64]\n",
            "tdpbf16ps tmm1, tmm7, tmm6\n",
            "tileloadd tmm6, [{w} + {pitch} + ",
            $w,
            " + 128]\n",
            "tdpbf16ps tmm2, tmm7, tmm6\n",
            // The thirds in reverse order, because the last one is loaded already.
            "tileloadd tmm7, [{lower} + {stride} + ",
            $x,
            "]\n",
            "tdpbf16ps tmm5, tmm7, tmm6\n",
            "tileloadd tmm6, [{w} + {pitch} + ",
            $w,
            " + 64]\n",
            "tdpbf16ps tmm4, tmm7, tmm6\n",
            "tileloadd tmm6, [{w} + {pitch} + ",
            $w,
            "]\n",
            "tdpbf16ps tmm3, tmm7, tmm6",
        )
    };
}

/// The products of 16 rows by 16 words of a panel, at byte offsets `$x` and `$w` from the pointers.
macro_rules! products_of_16_rows {
    ($x:literal, $w:literal) => {
        concat!(
            "tileloadd tmm7, [{x} + {stride} + ",
            $x,
            "]\n",
            "tileloadd tmm4, [{w} + {pitch} + ",
            $w,
            "]\n",
            "tdpbf16ps tmm0, tmm7, tmm4\n",
            "tileloadd tmm5, [{w} + {pitch} + ",
            $w,
            " + 64]\n",
            "tdpbf16ps tmm1, tmm7, tmm5\n",
            "tileloadd tmm6, [{w} + {pitch} + ",
            $w,
            " + 128]\n",
            "tdpbf16ps tmm2, tmm7, tmm6",
        )
    };
}

/// `sums [16 TILES, PANEL] += x w` over `steps` steps of `16 PARTS` words; `TILES` and `PARTS` are one or two. With two parts, in the order of
/// [`Split`](super::tile::Split), a step has the products upper by upper, upper by lower and lower by upper.
///
/// # Safety
/// `16 TILES` rows of sums must be writable, as many rows of `x`, `stride` words apart, and `16 PARTS steps` rows of a panel must be readable,
/// and the tiles must be configured.
#[inline(always)]
unsafe fn multiply_add<const TILES: usize, const PARTS: usize>(
    sums: *mut f32,
    x: *const u32,
    stride: usize,
    w: *const u32,
    steps: usize,
) {
    const { assert!((TILES == 1 || TILES == 2) && (PARTS == 1 || PARTS == 2)) };
    const { assert!(X_STEP == 64 && W_STEP == 3072) };
    #[cfg(test)]
    if !processor::has_tiles() {
        // SAFETY: by contract.
        return unsafe { emulated::multiply_add::<PARTS>(sums, TILES * TILE, x, stride, w, steps) };
    }
    if steps == 0 {
        return;
    }
    // SAFETY: by contract.
    unsafe {
        match TILES {
            2 => add_to_32_rows::<PARTS>(sums, x, stride, w, steps),
            _ => add_to_16_rows::<PARTS>(sums, x, stride, w, steps),
        }
    }
}

/// [`multiply_add`] for two tiles of rows.
///
/// # Safety
/// As for [`multiply_add`]; `steps` must not be 0.
#[inline(always)]
unsafe fn add_to_32_rows<const PARTS: usize>(sums: *mut f32, x: *const u32, stride: usize, w: *const u32, steps: usize) {
    // Loads and stores are within what the contract allows: 16 rows of 64 bytes each, `pitch` or `stride` bytes apart. The first factor of
    // `tdpbf16ps` is the second operand.
    macro_rules! add {
        ($($products:expr),+) => {
            asm!(
                "tileloadd tmm0, [{sums} + {pitch}]",
                "tileloadd tmm1, [{sums} + {pitch} + 64]",
                "tileloadd tmm2, [{sums} + {pitch} + 128]",
                "tileloadd tmm3, [{sums} + {pitch} + 3072]",
                "tileloadd tmm4, [{sums} + {pitch} + 3136]",
                "tileloadd tmm5, [{sums} + {pitch} + 3200]",
                "2:",
                $($products,)+
                "add {upper}, {x_step}",
                "add {lower}, {x_step}",
                "add {w}, {w_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {pitch}], tmm0",
                "tilestored [{sums} + {pitch} + 64], tmm1",
                "tilestored [{sums} + {pitch} + 128], tmm2",
                "tilestored [{sums} + {pitch} + 3072], tmm3",
                "tilestored [{sums} + {pitch} + 3136], tmm4",
                "tilestored [{sums} + {pitch} + 3200], tmm5",
                sums = in(reg) sums,
                pitch = in(reg) PANEL * size_of::<f32>(),
                upper = inout(reg) x => _,
                lower = inout(reg) x.wrapping_add(TILE * stride) => _,
                stride = in(reg) stride * size_of::<u32>(),
                w = inout(reg) w => _,
                steps = inout(reg) steps => _,
                x_step = const PARTS * X_STEP,
                w_step = const PARTS * W_STEP,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: by contract, as described above.
    unsafe {
        match PARTS {
            1 => add!(products_of_32_rows!("0", "0")),
            _ => add!(products_of_32_rows!("0", "0"), products_of_32_rows!("0", "3072"), products_of_32_rows!("64", "0")),
        }
    }
}

/// [`multiply_add`] for one tile of rows.
///
/// # Safety
/// As for [`multiply_add`]; `steps` must not be 0.
#[inline(always)]
unsafe fn add_to_16_rows<const PARTS: usize>(sums: *mut f32, x: *const u32, stride: usize, w: *const u32, steps: usize) {
    macro_rules! add {
        ($($products:expr),+) => {
            asm!(
                "tileloadd tmm0, [{sums} + {pitch}]",
                "tileloadd tmm1, [{sums} + {pitch} + 64]",
                "tileloadd tmm2, [{sums} + {pitch} + 128]",
                "2:",
                $($products,)+
                "add {x}, {x_step}",
                "add {w}, {w_step}",
                "dec {steps}",
                "jnz 2b",
                "tilestored [{sums} + {pitch}], tmm0",
                "tilestored [{sums} + {pitch} + 64], tmm1",
                "tilestored [{sums} + {pitch} + 128], tmm2",
                sums = in(reg) sums,
                pitch = in(reg) PANEL * size_of::<f32>(),
                x = inout(reg) x => _,
                stride = in(reg) stride * size_of::<u32>(),
                w = inout(reg) w => _,
                steps = inout(reg) steps => _,
                x_step = const PARTS * X_STEP,
                w_step = const PARTS * W_STEP,
                out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm4") _, out("tmm5") _, out("tmm6") _, out("tmm7") _,
                options(nostack),
            )
        };
    }
    // SAFETY: by contract, as in `add_to_32_rows`.
    unsafe {
        match PARTS {
            1 => add!(products_of_16_rows!("0", "0")),
            _ => add!(products_of_16_rows!("0", "0"), products_of_16_rows!("0", "3072"), products_of_16_rows!("64", "0")),
        }
    }
}

/// Compares the tiles with plain sums, so that a processor (or an emulator) whose results deviate is refused.
pub(crate) fn check() -> Result<()> {
    const WORDS: usize = 6 * TILE;
    const ROWS: usize = 32;
    let mut state = 1u32;
    let mut noise = || {
        state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
        // Eight bits of mantissa, which bf16 represents exactly.
        f32::from((state >> 24) as u8) / 64.0 - 2.0
    };
    let mut words = |n: usize| -> Vec<[f32; 2]> { (0..n).map(|_| [noise(), noise()]).collect() };
    let (x, w) = (words(ROWS * WORDS), words(WORDS * PANEL));
    let packed = |words: &[[f32; 2]]| -> Vec<u32> { words.iter().map(|&[a, b]| bf16_pair(a, b)).collect() };
    let (x_words, w_words) = (packed(&x), packed(&w));
    // The indices of the words of `x` and `w` that are multiplied: for one part, which ends within a tile, and for two parts.
    let one_part: Vec<(usize, usize)> = (0..WORDS - 13).map(|k| (k, k)).collect();
    let groups = (0..WORDS).step_by(2 * TILE);
    let pairs = |first: usize, x: usize, w: usize| (first..first + TILE).map(move |k| (k + x, k + w));
    let two_parts: Vec<(usize, usize)> =
        groups.flat_map(|first| pairs(first, 0, 0).chain(pairs(first, 0, TILE)).chain(pairs(first, TILE, 0))).collect();
    for n_rows in [ROWS, TILE, 5] {
        let sums = |depth| Sums { x: &x_words, stride: WORDS, w: &w_words[..depth * PANEL], depth, n_rows };
        let found = [(dispatch::<1, _>(sums(WORDS - 13)), &one_part), (dispatch::<2, _>(sums(WORDS)), &two_parts)];
        for (found, products) in found {
            for (i, sum) in found.into_iter().enumerate() {
                let (row, column) = (i / PANEL, i % PANEL);
                let product = |&(k, j): &(usize, usize)| {
                    let (x, w) = (x[row * WORDS + k], w[j * PANEL + column]);
                    f64::from(x[0] * w[0]) + f64::from(x[1] * w[1])
                };
                let expected: f64 = products.iter().map(product).sum();
                // At most 288 products of at most 4, with as many roundings, each of 2^-24 of at most 1,152.
                if (f64::from(sum) - expected).abs() > 0.02 {
                    return Err(Error::new(format!("the processor's AMX tiles give {sum} where {expected} is right")));
                }
            }
        }
    }
    Ok(())
}

/// The first `n_rows` rows of `x w`, `[n_rows, PANEL]`, for [`check`].
struct Sums<'a> {
    x: &'a [u32],
    stride: usize,
    w: &'a [u32],
    depth: usize,
    n_rows: usize,
}

impl ProductKernel for Sums<'_> {
    type Output = Vec<f32>;

    #[inline(always)]
    unsafe fn run<P: Product>(self) -> Vec<f32> {
        let mut sums = vec![0f32; self.n_rows * PANEL];
        // SAFETY: the slices hold `n_rows` rows and a panel of `depth` words; `P::V` has 16 lanes here.
        unsafe {
            match self.n_rows {
                32 => self.tile::<P, 32>(&mut sums),
                16 => self.tile::<P, 16>(&mut sums),
                _ => self.tile::<P, 5>(&mut sums),
            }
        }
        sums
    }
}

impl Sums<'_> {
    /// # Safety
    /// As [`Product::accumulate`].
    #[inline(always)]
    unsafe fn tile<P: Product, const R: usize>(&self, to: &mut [f32]) {
        let rows_are_there = self.depth <= self.stride && self.x.len() >= R * self.stride;
        assert!(to.len() == R * PANEL && rows_are_there && self.w.len() == self.depth * PANEL);
        // SAFETY: `column + N <= PANEL` in every call; the assertion guarantees the rest.
        unsafe {
            super::tile::tile::<P, R>(
                self.x.as_ptr(),
                self.stride,
                self.w.as_ptr(),
                self.depth,
                #[inline(always)]
                |_, _| P::V::splat(0.0),
                #[inline(always)]
                |r, column, sums| sums.store(to.as_mut_ptr().add(r * PANEL + column)),
            );
        }
    }
}

/// The operations of six independent chains in registers, for [`peak`](crate::kernels::peak).
pub(crate) fn chains(steps: usize) -> usize {
    assert!(processor::has_tiles());
    let _tiles = Tiles::take(&SHAPE);
    // SAFETY: the tiles are configured, and `ldtilecfg` has filled them with zeros.
    unsafe {
        asm!(
            "2:",
            "tdpbf16ps tmm0, tmm7, tmm6",
            "tdpbf16ps tmm1, tmm7, tmm6",
            "tdpbf16ps tmm2, tmm7, tmm6",
            "tdpbf16ps tmm3, tmm7, tmm6",
            "tdpbf16ps tmm4, tmm7, tmm6",
            "tdpbf16ps tmm5, tmm7, tmm6",
            "dec {steps}",
            "jnz 2b",
            steps = inout(reg) steps.max(1) => _,
            out("tmm0") _, out("tmm1") _, out("tmm2") _, out("tmm3") _, out("tmm4") _, out("tmm5") _,
            options(nostack, nomem),
        );
    }
    steps.max(1) * 6 * TILE * TILE * TILE * 4
}

/// The manual's definition of `tdpbf16ps` between 16 rows and a panel.
#[cfg(test)]
mod emulated {
    use super::{PANEL, TILE, add_product};

    /// # Safety
    /// As [`super::multiply_add`].
    pub(super) unsafe fn multiply_add<const PARTS: usize>(
        sums: *mut f32,
        n_rows: usize,
        x: *const u32,
        stride: usize,
        w: *const u32,
        steps: usize,
    ) {
        for step in 0..steps * PARTS {
            let products: &[(usize, usize)] = match (PARTS, step % PARTS) {
                (1, _) => &[(0, 0)],
                (_, 0) => &[(0, 0), (0, TILE), (TILE, 0)],
                _ => &[],
            };
            for &(x_words, w_words) in products {
                // SAFETY: by contract.
                unsafe { product(sums, n_rows, x.add(step * TILE + x_words), stride, w.add((step * TILE + w_words) * PANEL)) };
            }
        }
    }

    /// One `tdpbf16ps` for each 16 rows and each third of a panel.
    unsafe fn product(sums: *mut f32, n_rows: usize, x: *const u32, stride: usize, w: *const u32) {
        for r in 0..n_rows {
            for n in 0..PANEL {
                // SAFETY: by contract.
                unsafe { add_product(&mut *sums.add(r * PANEL + n), x.add(r * stride), w.add(n), PANEL, TILE) };
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_check_of_the_instructions_passes() {
        let wanted = std::env::var_os("DIAGNOSE_AMX_TESTS").is_some();
        assert!(
            !wanted || processor::has_tiles(),
            "DIAGNOSE_AMX_TESTS is set, and there are no tiles, or the kernel grants none"
        );
        if Level::available().contains(&Level::Amx) {
            check().unwrap();
        }
    }

    /// Whole tiles, padded tiles, and both in sequence give each row the same bits.
    #[test]
    fn a_row_has_the_same_bits_in_every_tile() {
        if !Level::available().contains(&Level::Amx) {
            return;
        }
        fn check<const PARTS: usize>(depths: &[usize]) {
            for &depth in depths {
                let noise = crate::kernels::testing::noise(2 * depth * (32 + PANEL), 1.0, 7);
                let words: Vec<u32> = noise.chunks(2).map(|pair| bf16_pair(pair[0], pair[1])).collect();
                let (x, w) = words.split_at(32 * depth);
                let rows = |n_rows| dispatch::<PARTS, _>(Sums { x, stride: depth, w, depth, n_rows });
                let all = rows(32);
                for n_rows in [16, 5] {
                    let same = rows(n_rows).iter().zip(&all).all(|(a, b)| a.to_bits() == b.to_bits());
                    assert!(same, "{n_rows} rows of {depth} words in {PARTS} parts");
                }
            }
        }
        check::<1>(&[1, 15, 16, 17, 48, 83]);
        check::<2>(&[32, 64, 160]);
    }
}
