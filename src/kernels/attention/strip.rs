//! A strip of query rows against a tile of keys: the products of the forward and the backward pass, in register tiles.
//!
//! A strip processes all its keys before the next one starts, so its scores stay in the first-level cache.
#![allow(clippy::needless_range_loop, reason = "indices over register tiles read like the formulas")]

use super::packed::Head;
use super::plan::{GRANULE, TILE, Tile};
use crate::kernels::exp::tanh;
use crate::kernels::lanes::Lanes;

/// The distance between rows of scores; not a power of two, which would map all rows to the same cache sets.
pub(super) const STRIDE: usize = TILE * GRANULE + GRANULE;

/// One number per query row of a strip and key of a tile. Aligned to cache lines, so that no vector crosses one.
#[repr(C, align(64))]
pub(super) struct Scores<const S: usize>(pub [[f32; STRIDE]; S]);

impl<const S: usize> Scores<S> {
    pub(super) const ZEROS: Scores<S> = Scores([[0.0; STRIDE]; S]);

    pub(super) fn as_words(&self) -> &[u32] {
        as_words(self.0.as_flattened())
    }
}

/// Reinterprets floats as words, which may contain factors in another format.
pub(super) fn as_words(floats: &[f32]) -> &[u32] {
    // SAFETY: every f32 has the size, the alignment and a bit pattern of a u32.
    unsafe { std::slice::from_raw_parts(floats.as_ptr().cast(), floats.len()) }
}

/// Vectors of words, which are multiplied and accumulated.
pub(super) trait Words {
    type V: Lanes;
    /// A vector of `V::N` words.
    type Words: Copy;
    /// The number of factors in a word.
    const PER_WORD: usize;

    /// Broadcasts one word to all lanes.
    ///
    /// # Safety
    /// The processor must have the instructions; a word is readable at `from`.
    unsafe fn splat(from: *const u32) -> Self::Words;

    /// # Safety
    /// The processor must have the instructions; `V::N` words are readable at `from`.
    unsafe fn load(from: *const u32) -> Self::Words;

    /// `sum + a . b` in each lane.
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn multiply_add(a: Self::Words, b: Self::Words, sum: Self::V) -> Self::V;
}

/// `acc[r][c] += sum over k < depth of a[r * a_row + k * a_step] . b[c][k * b_step ..][..N]`, in words.
///
/// Each element is one chain of multiply-adds over `k` in order, so a result does not depend on the shape of its register tile. (The tile is passed
/// by reference: returned by value, it was copied through memory twice.)
///
/// # Safety
/// The processor must have `W`'s instructions, and all addresses named above must be readable.
#[inline(always)]
unsafe fn multiply_add<W: Words, const R: usize, const C: usize>(
    depth: usize,
    (mut a, a_row, a_step): (*const u32, usize, usize),
    (mut b, b_step): ([*const u32; C], usize),
    acc: &mut [[W::V; C]; R],
) {
    // SAFETY: by contract; the last step leaves the pointers past the end, where `wrapping_add` may point.
    unsafe {
        for _ in 0..depth {
            let mut columns = [W::load(b[0]); C];
            b[0] = b[0].wrapping_add(b_step);
            for c in 1..C {
                columns[c] = W::load(b[c]);
                b[c] = b[c].wrapping_add(b_step);
            }
            for r in 0..R {
                let row = W::splat(a.add(r * a_row));
                for c in 0..C {
                    acc[r][c] = W::multiply_add(row, columns[c], acc[r][c]);
                }
            }
            a = a.wrapping_add(a_step);
        }
    }
}

/// [`Arithmetic::scores`](super::arithmetic::Arithmetic::scores) or [`products`](super::arithmetic::Arithmetic::products), with `C` vectors of keys
/// per register tile.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn products<W: Words, const S: usize, const C: usize>(
    columns: Head,
    tile: Tile,
    rows: &[u32],
    scores: &mut Scores<S>,
) {
    let (depth, stride) = (columns.size() / GRANULE, rows.len() / S);
    assert!(tile.granules.len() <= TILE && depth <= stride);
    let rows = (rows.as_ptr(), stride, 1);
    let scores = scores.0.as_mut_ptr().cast::<f32>();
    let lanes = W::V::N;
    // SAFETY: by contract; a vector of keys lies within a granule.
    unsafe {
        let key = |vector: usize| {
            let lane = vector * lanes;
            columns.granule(tile.granules[lane / GRANULE]).as_ptr().add(lane % GRANULE)
        };
        let vectors = tile.granules.len() * (GRANULE / lanes);
        let mut vector = 0;
        while vector + C <= vectors {
            let mut keys = [std::ptr::null(); C];
            for c in 0..C {
                keys[c] = key(vector + c);
            }
            let mut acc = [[W::V::splat(0.0); C]; S];
            multiply_add::<W, S, C>(depth, rows, (keys, GRANULE), &mut acc);
            put(&acc, scores.add(vector * lanes), STRIDE);
            vector += C;
        }
        while vector < vectors {
            let mut acc = [[W::V::splat(0.0); 1]; S];
            multiply_add::<W, S, 1>(depth, rows, ([key(vector)], GRANULE), &mut acc);
            put(&acc, scores.add(vector * lanes), STRIDE);
            vector += 1;
        }
    }
}

/// [`Arithmetic::weighted_sums`](super::arithmetic::Arithmetic::weighted_sums), with `C` vectors of columns per register tile.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn weighted_sums<W: Words, const S: usize, const C: usize>(
    rows: Head,
    tile: Tile,
    weights: &Scores<S>,
    last: usize,
    shrinks: &[f32; S],
    sums: &mut [f32],
) {
    let width = sums.len() / S;
    let mut column = 0;
    // SAFETY: by contract; the padded width is a whole number of vectors.
    unsafe {
        while column + C * W::V::N <= width {
            weighted_sum::<W, S, C>(rows, tile, weights, last, shrinks, sums, column);
            column += C * W::V::N;
        }
        while column < width {
            weighted_sum::<W, S, 1>(rows, tile, weights, last, shrinks, sums, column);
            column += W::V::N;
        }
    }
}

/// [`weighted_sums`] for `C` vectors of columns, starting at `column`.
///
/// # Safety
/// As above; the columns must lie within the padded width.
#[inline(always)]
unsafe fn weighted_sum<W: Words, const S: usize, const C: usize>(
    rows: Head,
    tile: Tile,
    weights: &Scores<S>,
    last: usize,
    shrinks: &[f32; S],
    sums: &mut [f32],
    column: usize,
) {
    let width = sums.len() / S;
    let weights = weights.as_words().as_ptr();
    // SAFETY: by contract.
    unsafe {
        let sums = sums.as_mut_ptr().add(column);
        let mut acc = [[W::V::splat(0.0); C]; S];
        for r in 0..S {
            for c in 0..C {
                acc[r][c] = W::V::load(sums.add(r * width + c * W::V::N)).mul(W::V::splat(shrinks[r]));
            }
        }
        for (g, &granule) in tile.granules.iter().enumerate() {
            let row = rows.granule(granule).as_ptr().add(column);
            let seen = tile.visible(g, last, usize::MAX).end.div_ceil(W::PER_WORD);
            let weights = (weights.add(g * GRANULE / W::PER_WORD), STRIDE, 1);
            multiply_add::<W, S, C>(seen, weights, (beside::<W, C>(row), width), &mut acc);
        }
        put(&acc, sums, width);
    }
}

/// [`Arithmetic::add_transposed`](super::arithmetic::Arithmetic::add_transposed), with `K` keys by `C` vectors of columns per register tile.
///
/// # Safety
/// As there.
#[inline(always)]
pub(super) unsafe fn add_transposed<W: Words, const S: usize, const C: usize, const K: usize>(
    weights: &[u32],
    g: usize,
    rows: &[u32],
    sums: &mut [f32],
) {
    let depth = S / W::PER_WORD;
    let width = rows.len() / depth;
    assert!(g < TILE && weights.len() == depth * STRIDE && sums.len() == GRANULE * width);
    let mut column = 0;
    // SAFETY: by contract; the padded width is a whole number of vectors.
    unsafe {
        while column + C * W::V::N <= width {
            add_transposed_columns::<W, S, C, K>(weights, g, rows, sums, column);
            column += C * W::V::N;
        }
        while column < width {
            add_transposed_columns::<W, S, 1, K>(weights, g, rows, sums, column);
            column += W::V::N;
        }
    }
}

/// [`add_transposed`] for `C` vectors of columns, starting at `column`.
///
/// # Safety
/// As above; the columns must lie within the padded width.
#[inline(always)]
unsafe fn add_transposed_columns<W: Words, const S: usize, const C: usize, const K: usize>(
    weights: &[u32],
    g: usize,
    rows: &[u32],
    sums: &mut [f32],
    column: usize,
) {
    const { assert!(GRANULE.is_multiple_of(K) && S.is_multiple_of(W::PER_WORD)) };
    let depth = S / W::PER_WORD;
    let width = rows.len() / depth;
    // SAFETY: by contract.
    unsafe {
        for key in (0..GRANULE).step_by(K) {
            let sums = sums.as_mut_ptr().add(key * width + column);
            let mut acc = [[W::V::splat(0.0); C]; K];
            for k in 0..K {
                for c in 0..C {
                    acc[k][c] = W::V::load(sums.add(k * width + c * W::V::N));
                }
            }
            let weights = weights.as_ptr().add(g * GRANULE + key);
            multiply_add::<W, K, C>(depth, (weights, 1, STRIDE), (beside::<W, C>(rows.as_ptr().add(column)), width), &mut acc);
            put(&acc, sums, width);
        }
    }
}

/// Which keys a query sees, and the softcap of its scores.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    /// The query's position in its sequence.
    pub position: usize,
    /// `usize::MAX` for no window.
    pub window: usize,
    /// Scores become `softcap * tanh(score / softcap)`.
    pub softcap: Option<f32>,
}

/// Caps one row's scores of a tile, sets those of masked keys to -infinity and returns the largest.
///
/// # Safety
/// The processor must have `V`'s instructions; `scores` must hold the tile.
#[inline(always)]
pub(super) unsafe fn look<V: Lanes>(scores: &mut [f32], tile: Tile, sight: Sight) -> f32 {
    let n = tile.granules.len() * GRANULE;
    assert!(n <= scores.len());
    // SAFETY: by contract.
    unsafe {
        let nothing = V::splat(f32::NEG_INFINITY);
        let mut maxima = nothing;
        // Most tiles are entirely visible.
        if sight.softcap.is_none() && tile.is_seen(sight.position, sight.window) {
            let mut others = nothing;
            for vectors in (0..n).step_by(2 * V::N) {
                let first = scores.as_ptr().add(vectors);
                maxima = maxima.max(V::load(first));
                // A granule is one or two vectors; if the last one is single, the first is read again.
                others = others.max(V::load(first.add(if vectors + V::N < n { V::N } else { 0 })));
            }
            return maxima.max(others).maximum();
        }
        for g in 0..tile.granules.len() {
            let visible = tile.visible(g, sight.position, sight.window);
            for lane in (0..GRANULE).step_by(V::N) {
                let at = scores.as_mut_ptr().add(g * GRANULE + lane);
                let mut score = V::load(at);
                if let Some(cap) = sight.softcap {
                    score = tanh(score.mul(V::splat(1.0 / cap))).mul(V::splat(cap));
                }
                if visible.len() < GRANULE {
                    let within = |x: usize| x.saturating_sub(lane).min(V::N);
                    score = score.keep(within(visible.start), within(visible.end), nothing);
                }
                if sight.softcap.is_some() || visible.len() < GRANULE {
                    score.store(at);
                }
                maxima = maxima.max(score);
            }
        }
        maxima.maximum()
    }
}

/// Pointers to `C` contiguous vectors.
///
/// # Safety
/// They must be inside one allocation.
#[inline(always)]
unsafe fn beside<W: Words, const C: usize>(first: *const u32) -> [*const u32; C] {
    let mut all = [first; C];
    for c in 0..C {
        // SAFETY: by contract.
        all[c] = unsafe { first.add(c * W::V::N) };
    }
    all
}

/// Stores a register tile.
///
/// # Safety
/// The processor must have `V`'s instructions; the rows must be writable.
#[inline(always)]
unsafe fn put<V: Lanes, const R: usize, const C: usize>(tile: &[[V; C]; R], to: *mut f32, stride: usize) {
    for r in 0..R {
        for c in 0..C {
            // SAFETY: by contract.
            unsafe { tile[r][c].store(to.add(r * stride + c * V::N)) };
        }
    }
}
