//! A strip of query rows against a tile of keys: the products under the forward and the backward pass.
//!
//! A strip goes through all its keys before the next one starts, so its scores stay in the nearest cache.
#![allow(clippy::needless_range_loop, reason = "indices over register tiles read like the formulas")]

use super::pack::Head;
use super::plan::{GRANULE, TILE, Tile};
use crate::kernels::exp::tanh;
use crate::kernels::lanes::Lanes;
use crate::kernels::tile::multiply_add;

/// Query rows of a strip, and so of a register tile: with four AVX-512 or two AVX2 vectors beside each other the accumulators
/// fill the registers.
pub(super) const STRIP: usize = 6;
/// From one row of scores to the next; not a power of two, which would put all rows on the same cache sets.
pub(super) const STRIDE: usize = TILE * GRANULE + GRANULE;

/// One number for each query row of a strip and each key of a tile.
pub(super) type Scores = [f32; STRIP * STRIDE];

/// `scores[r][key] = rows[r] . columns[key]`; `rows` is `[STRIP, padded head_dim]`.
///
/// # Safety
/// The processor must have `V`'s instructions; `columns` must be packed by column, `C` vectors to a register tile.
#[inline(always)]
pub(super) unsafe fn products<V: Lanes, const C: usize>(
    columns: Head,
    tile: Tile,
    rows: &[f32],
    head_dim: usize,
    scores: &mut Scores,
) {
    assert!(tile.granules.len() <= TILE && head_dim * STRIP <= rows.len());
    let rows = (rows.as_ptr(), rows.len() / STRIP, 1);
    // SAFETY: by contract; a vector of keys lies within a granule.
    unsafe {
        let key = |vector: usize| {
            let lane = vector * V::N;
            columns.granule(tile.granules[lane / GRANULE]).as_ptr().add(lane % GRANULE)
        };
        let vectors = tile.granules.len() * (GRANULE / V::N);
        let mut vector = 0;
        while vector + C <= vectors {
            let mut keys = [std::ptr::null(); C];
            for c in 0..C {
                keys[c] = key(vector + c);
            }
            let mut acc = [[V::splat(0.0); C]; STRIP];
            multiply_add(head_dim, rows, (keys, GRANULE), &mut acc);
            put(&acc, scores.as_mut_ptr().add(vector * V::N), STRIDE);
            vector += C;
        }
        while vector < vectors {
            let mut acc = [[V::splat(0.0); 1]; STRIP];
            multiply_add(head_dim, rows, ([key(vector)], GRANULE), &mut acc);
            put(&acc, scores.as_mut_ptr().add(vector * V::N), STRIDE);
            vector += 1;
        }
    }
}

/// `sums[r] = sums[r] * shrinks[r] + sum over keys of weights[r][key] * rows[key]`, over the keys of a tile up to the position
/// `last`; `sums` is `[STRIP, padded head_dim]`.
///
/// # Safety
/// The processor must have `V`'s instructions; `rows` must be packed by row.
#[inline(always)]
pub(super) unsafe fn weighted_sums<V: Lanes, const C: usize>(
    rows: Head,
    tile: Tile,
    weights: &Scores,
    last: usize,
    shrinks: &[f32; STRIP],
    sums: &mut [f32],
) {
    let width = sums.len() / STRIP;
    let mut column = 0;
    // SAFETY: by contract; the padded width is a whole number of vectors.
    unsafe {
        while column + C * V::N <= width {
            weighted_sum::<V, C>(rows, tile, weights, last, shrinks, sums, column);
            column += C * V::N;
        }
        while column < width {
            weighted_sum::<V, 1>(rows, tile, weights, last, shrinks, sums, column);
            column += V::N;
        }
    }
}

/// The same for `C` vectors of columns.
///
/// # Safety
/// As above; the columns must lie within the padded width.
#[inline(always)]
unsafe fn weighted_sum<V: Lanes, const C: usize>(
    rows: Head,
    tile: Tile,
    weights: &Scores,
    last: usize,
    shrinks: &[f32; STRIP],
    sums: &mut [f32],
    column: usize,
) {
    let width = sums.len() / STRIP;
    // SAFETY: by contract.
    unsafe {
        let sums = sums.as_mut_ptr().add(column);
        let mut acc = [[V::splat(0.0); C]; STRIP];
        for r in 0..STRIP {
            for c in 0..C {
                acc[r][c] = V::load(sums.add(r * width + c * V::N)).mul(V::splat(shrinks[r]));
            }
        }
        for (g, &granule) in tile.granules.iter().enumerate() {
            let row = rows.granule(granule).as_ptr().add(column);
            let seen = tile.visible(g, last, usize::MAX).end;
            multiply_add(seen, (weights.as_ptr().add(g * GRANULE), STRIDE, 1), (beside::<V, C>(row), width), &mut acc);
        }
        put(&acc, sums, width);
    }
}

/// `sums[key] += sum over r of weights[r][key] * rows[r]` for each key of one granule, the tile's `g`-th; `sums` is
/// `[16, padded head_dim]`, `rows` `[STRIP, padded head_dim]`.
///
/// # Safety
/// The processor must have `V`'s instructions.
#[inline(always)]
pub(super) unsafe fn add_transposed<V: Lanes, const C: usize>(weights: &Scores, g: usize, rows: &[f32], sums: &mut [f32]) {
    let width = rows.len() / STRIP;
    assert!(g < TILE && sums.len() == GRANULE * width);
    let mut column = 0;
    // SAFETY: by contract; the padded width is a whole number of vectors.
    unsafe {
        while column + C * V::N <= width {
            add_transposed_columns::<V, C>(weights, g, rows, sums, column);
            column += C * V::N;
        }
        while column < width {
            add_transposed_columns::<V, 1>(weights, g, rows, sums, column);
            column += V::N;
        }
    }
}

/// The same for `C` vectors of columns.
///
/// # Safety
/// As above; the columns must lie within the padded width.
#[inline(always)]
unsafe fn add_transposed_columns<V: Lanes, const C: usize>(
    weights: &Scores,
    g: usize,
    rows: &[f32],
    sums: &mut [f32],
    column: usize,
) {
    // Divides a granule and, times `C`, fits the registers.
    const KEYS: usize = 4;
    let width = rows.len() / STRIP;
    // SAFETY: by contract.
    unsafe {
        for key in (0..GRANULE).step_by(KEYS) {
            let sums = sums.as_mut_ptr().add(key * width + column);
            let mut acc = [[V::splat(0.0); C]; KEYS];
            for k in 0..KEYS {
                for c in 0..C {
                    acc[k][c] = V::load(sums.add(k * width + c * V::N));
                }
            }
            let weights = weights.as_ptr().add(g * GRANULE + key);
            multiply_add(STRIP, (weights, 1, STRIDE), (beside::<V, C>(rows.as_ptr().add(column)), width), &mut acc);
            put(&acc, sums, width);
        }
    }
}

/// What a query may see, and how scores are bent.
#[derive(Clone, Copy)]
pub(super) struct Sight {
    pub position: usize,
    /// `usize::MAX` for none.
    pub window: usize,
    pub softcap: Option<f32>,
}

/// Caps one row's scores of a tile, sets those of keys it may not see to -infinity and returns the largest.
///
/// # Safety
/// The processor must have `V`'s instructions; `scores` must hold the tile.
#[inline(always)]
pub(super) unsafe fn look<V: Lanes>(scores: &mut [f32], tile: Tile, sight: Sight) -> f32 {
    assert!(tile.granules.len() * GRANULE <= scores.len());
    // SAFETY: by contract.
    unsafe {
        let nothing = V::splat(f32::NEG_INFINITY);
        let mut maxima = nothing;
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

/// `C` vectors that lie behind each other.
///
/// # Safety
/// They must be inside one allocation.
#[inline(always)]
unsafe fn beside<V: Lanes, const C: usize>(first: *const f32) -> [*const f32; C] {
    let mut all = [first; C];
    for c in 0..C {
        // SAFETY: by contract.
        all[c] = unsafe { first.add(c * V::N) };
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
