//! Fused attention: rotary embedding, scores, softmax and weighted values in one pass over tiles of keys.
//!
//! ```text
//! pack    every key row rotated and transposed, every value row copied        once per row and kv head
//! block   some tokens of a segment x the query heads of one kv head:          one task
//!           rotate and scale the queries
//!           for each tile of keys:  scores -> running softmax -> outputs += weights x values
//! ```
//!
//! The running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867; FlashAttention, Dao et al. 2022, arXiv 2205.14135) keeps
//! each row's maximum `m` and sum `l`, and scales what it has when a later tile raises the maximum. Memory beyond the packed
//! keys and values is one block's scores.
//!
//! Each row's sums run over its own keys in tiles counted from its sequence's start, in order. So neither the other rows of the
//! batch nor the threads change a bit of its result. Masked keys get weight 0; their values must be finite (0 * NaN = NaN).

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::AttentionShape;
use super::pack::{Packed, Part, padded};
use super::plan::{GRANULE, Keys, Plan};
use crate::kernels::Segment;
use crate::kernels::cpu::written;
use crate::kernels::exp::{exp, tanh};
use crate::kernels::lanes::{Lanes, for_lanes, load, prefetch, store};
use crate::kernels::level::{Kernel, Level};
use crate::kernels::rotary::Rotary;
use crate::kernels::tile::multiply_add;

/// Query rows of a register tile: with four AVX-512 or two AVX2 vectors beside each other the accumulators fill the registers.
/// A strip goes through all its keys before the next one starts, so its scores stay in the nearest cache.
const STRIP: usize = 6;
/// Strips in a task of its own: coarse enough to be worth handing to a thread, fine enough to balance threads.
const STRIPS: usize = 8;
/// Granules in a tile of keys: 256 keys.
const TILE: usize = 16;
/// From one row of scores to the next; not a power of two, which would put all rows on the same cache sets.
const STRIDE: usize = TILE * GRANULE + GRANULE;

/// `qkv [T, columns] -> [T, heads * head_dim]`; everything has been checked.
pub fn attention(
    level: Level,
    qkv: &[f32],
    segments: &[Segment],
    positions: &[usize],
    rotary: &Rotary,
    shape: &AttentionShape,
) -> Vec<f32> {
    let plan = Plan::new(segments);
    let keys = Packed::by_column(level, qkv, &plan, shape, Part::Keys(rotary, positions));
    let values = Packed::by_row(level, qkv, &plan, shape, Part::Values);
    let blocks = blocks(segments, shape);
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let output = Output(output.as_mut_ptr().cast());
        blocks.par_iter().with_max_len(1).for_each(|block| {
            let seen = &plan.keys[block.segment];
            level.run(Forward { qkv, shape, rotary, positions, seen, keys: &keys, values: &values, block, output: &output });
        });
    };
    // SAFETY: the blocks cover every token and every head, and each writes its own.
    unsafe { written(positions.len() * shape.heads * shape.head_dim, fill) }
}

/// The unit of work: some tokens of a segment, all query heads of one kv head.
struct Block {
    segment: usize,
    kv_head: usize,
    tokens: Range<usize>,
}

/// Blocks are counted from each segment's start; neighbours share their keys and values.
fn blocks(segments: &[Segment], shape: &AttentionShape) -> Vec<Block> {
    let size = (STRIPS * STRIP / shape.group()).max(1);
    let mut blocks = Vec::new();
    for (segment, Segment { tokens, .. }) in segments.iter().enumerate() {
        for kv_head in 0..shape.kv_heads {
            let starts = tokens.clone().step_by(size);
            blocks.extend(starts.map(|start| Block { segment, kv_head, tokens: start..tokens.end.min(start + size) }));
        }
    }
    blocks
}

/// The output under construction, written by all threads in different places.
struct Output(*mut f32);

// SAFETY: each block writes only the rows and columns that are its own.
unsafe impl Sync for Output {}

struct Forward<'a> {
    qkv: &'a [f32],
    shape: &'a AttentionShape,
    rotary: &'a Rotary,
    positions: &'a [usize],
    seen: &'a [Keys],
    /// Each granule `[head_dim, 16]`.
    keys: &'a Packed,
    /// Each granule `[16, padded head_dim]`.
    values: &'a Packed,
    block: &'a Block,
    output: &'a Output,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // The column vectors of a register tile: as many as leave registers for the operands.
        // SAFETY: by contract.
        unsafe { if V::N == 16 { self.strips::<V, 4>() } else { self.strips::<V, 2>() } }
    }
}

impl Forward<'_> {
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn strips<V: Lanes, const C: usize>(self) {
        let Forward { shape, block, .. } = self;
        let (head_dim, group, kv_head) = (shape.head_dim, shape.group(), block.kv_head);
        let width = padded(head_dim);
        let window = shape.window.unwrap_or(usize::MAX);
        let mut scores = [0.0; STRIP * STRIDE];
        let mut queries = vec![0.0; STRIP * (head_dim + width)];
        let (queries, outputs) = queries.split_at_mut(STRIP * head_dim);

        // Row `token * group + head`. A last strip that is not full repeats its last row and does not write it again.
        let n_rows = block.tokens.len() * group;
        for start in (0..n_rows).step_by(STRIP) {
            let place = |r: usize| {
                let row = (start + r).min(n_rows - 1);
                (block.tokens.start + row / group, kv_head * group + row % group)
            };
            let query_of = |r: usize| {
                let (token, head) = place(r);
                &self.qkv[token * shape.columns() + head * head_dim..][..head_dim]
            };
            let mut positions = [0; STRIP];
            for (r, query) in queries.chunks_exact_mut(head_dim).enumerate() {
                positions[r] = self.positions[place(r).0];
                query.copy_from_slice(query_of(r));
                self.rotary.rotate_head(query, positions[r], 1.0);
                query.iter_mut().for_each(|x| *x *= shape.scale);
            }
            for r in STRIP..2 * STRIP {
                prefetch(query_of(r));
            }
            let oldest = (positions[0] + 1).saturating_sub(window);
            let first = self.seen.partition_point(|keys| keys.position + keys.lanes.len() <= oldest);
            let end = self.seen.partition_point(|keys| keys.position <= positions[STRIP - 1]);
            let mut running = [Running { maximum: f32::NEG_INFINITY, sum: 0.0, shrink: 0.0 }; STRIP];
            outputs.fill(0.0);
            for tile in self.seen[first..end].chunks(TILE) {
                // SAFETY: the instructions are there by contract; queries, scores and outputs hold a strip, scores a tile of keys.
                unsafe {
                    products::<V, C>(self.keys, kv_head, tile, (queries, head_dim), &mut scores);
                    for r in 0..STRIP {
                        running[r] =
                            softmax::<V>(&mut scores[r * STRIDE..], tile, positions[r], window, shape.softcap, running[r]);
                    }
                    weighted_sums::<V, C>(self.values, kv_head, tile, &scores, &running, positions[STRIP - 1], (outputs, width));
                }
            }
            for r in 0..STRIP.min(n_rows - start) {
                let (token, head) = place(r);
                // SAFETY: the instructions are there by contract, and this row and head belong to this block alone.
                unsafe {
                    let share = V::splat(1.0 / running[r].sum);
                    let to = self.output.0.add((token * shape.heads + head) * head_dim);
                    for_lanes::<V>(
                        head_dim,
                        #[inline(always)]
                        |d, n| store(load::<V>(&outputs[r * width..], d, n).mul(share), to, d, n),
                    );
                }
            }
        }
    }
}

/// `scores[r][key] = queries[r] . keys[key]` for the keys of a tile.
///
/// # Safety
/// The processor must have `V`'s instructions; `queries` and `scores` must hold a strip, `scores` the tile.
#[inline(always)]
unsafe fn products<V: Lanes, const C: usize>(
    keys: &Packed,
    kv_head: usize,
    tile: &[Keys],
    (queries, head_dim): (&[f32], usize),
    scores: &mut [f32; STRIP * STRIDE],
) {
    // SAFETY: by contract; a vector of keys lies within a granule.
    unsafe {
        let key = |vector: usize| {
            let lane = vector * V::N;
            keys.of(tile[lane / GRANULE].granule, kv_head).as_ptr().add(lane % GRANULE)
        };
        let vectors = tile.len() * (GRANULE / V::N);
        let mut vector = 0;
        while vector + C <= vectors {
            let mut columns = [std::ptr::null(); C];
            for c in 0..C {
                columns[c] = key(vector + c);
            }
            let mut acc = [[V::splat(0.0); C]; STRIP];
            multiply_add(head_dim, (queries.as_ptr(), head_dim, 1), (columns, GRANULE), &mut acc);
            put(&acc, scores.as_mut_ptr().add(vector * V::N), STRIDE);
            vector += C;
        }
        while vector < vectors {
            let mut acc = [[V::splat(0.0); 1]; STRIP];
            multiply_add(head_dim, (queries.as_ptr(), head_dim, 1), ([key(vector)], GRANULE), &mut acc);
            put(&acc, scores.as_mut_ptr().add(vector * V::N), STRIDE);
            vector += 1;
        }
    }
}

/// `outputs = outputs * shrink + weights x values` over the keys of a tile, none after the position `last`.
///
/// # Safety
/// The processor must have `V`'s instructions; `weights` must hold a strip of the tile, `outputs` a strip.
#[inline(always)]
unsafe fn weighted_sums<V: Lanes, const C: usize>(
    values: &Packed,
    kv_head: usize,
    tile: &[Keys],
    weights: &[f32; STRIP * STRIDE],
    running: &[Running; STRIP],
    last: usize,
    (outputs, width): (&mut [f32], usize),
) {
    // SAFETY: by contract; `width` is a whole number of vectors.
    unsafe {
        let mut column = 0;
        while column + C * V::N <= width {
            weighted_sum::<V, C>(values, kv_head, tile, weights, running, last, (outputs.as_mut_ptr(), width), column);
            column += C * V::N;
        }
        while column < width {
            weighted_sum::<V, 1>(values, kv_head, tile, weights, running, last, (outputs.as_mut_ptr(), width), column);
            column += V::N;
        }
    }
}

/// The same for `C` vectors of columns.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn weighted_sum<V: Lanes, const C: usize>(
    values: &Packed,
    kv_head: usize,
    tile: &[Keys],
    weights: &[f32; STRIP * STRIDE],
    running: &[Running; STRIP],
    last: usize,
    (outputs, width): (*mut f32, usize),
    column: usize,
) {
    // SAFETY: by contract.
    unsafe {
        let outputs = outputs.add(column);
        let mut acc = [[V::splat(0.0); C]; STRIP];
        for r in 0..STRIP {
            let shrink = V::splat(running[r].shrink);
            for c in 0..C {
                acc[r][c] = V::load(outputs.add(r * width + c * V::N)).mul(shrink);
            }
        }
        for (g, keys) in tile.iter().enumerate() {
            let value = values.of(keys.granule, kv_head).as_ptr().add(column);
            let mut columns = [value; C];
            for c in 0..C {
                columns[c] = value.add(c * V::N);
            }
            let rows = keys.visible(last, usize::MAX).end;
            multiply_add(rows, (weights.as_ptr().add(g * GRANULE), STRIDE, 1), (columns, width), &mut acc);
        }
        put(&acc, outputs, width);
    }
}

/// Where one row's softmax stands.
#[derive(Clone, Copy)]
struct Running {
    maximum: f32,
    /// Of `exp(score - maximum)` over all keys so far.
    sum: f32,
    /// What everything before the last tile was multiplied with when that tile raised the maximum.
    shrink: f32,
}

/// Turns one row's scores of a tile into weights `exp(score - maximum)`, 0 where the row may not look.
///
/// # Safety
/// The processor must have `V`'s instructions; `scores` must hold the tile.
#[inline(always)]
unsafe fn softmax<V: Lanes>(
    scores: &mut [f32],
    tile: &[Keys],
    position: usize,
    window: usize,
    softcap: Option<f32>,
    before: Running,
) -> Running {
    let scores = scores.as_mut_ptr();
    // SAFETY: by contract.
    unsafe {
        let nothing = V::splat(f32::NEG_INFINITY);
        let mut maxima = nothing;
        for (g, keys) in tile.iter().enumerate() {
            let visible = keys.visible(position, window);
            for lane in (0..GRANULE).step_by(V::N) {
                let at = scores.add(g * GRANULE + lane);
                let mut score = V::load(at);
                if let Some(cap) = softcap {
                    score = tanh(score.mul(V::splat(1.0 / cap))).mul(V::splat(cap));
                }
                if visible.len() < GRANULE {
                    let within = |x: usize| x.saturating_sub(lane).min(V::N);
                    score = score.keep(within(visible.start), within(visible.end), nothing);
                }
                if softcap.is_some() || visible.len() < GRANULE {
                    score.store(at);
                }
                maxima = maxima.max(score);
            }
        }
        let maximum = before.maximum.max(maxima.maximum());
        // A row that has seen nothing yet must not compute -inf - -inf.
        let subtracted = if maximum == f32::NEG_INFINITY { 0.0 } else { maximum };
        let shrink = exp(V::splat(before.maximum - subtracted)).maximum();
        let mut sum = V::splat(0.0);
        for vector in 0..tile.len() * (GRANULE / V::N) {
            let at = scores.add(vector * V::N);
            let weight = exp(V::load(at).sub(V::splat(subtracted)));
            weight.store(at);
            sum = sum.add(weight);
        }
        Running { maximum, sum: before.sum * shrink + sum.sum(), shrink }
    }
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
