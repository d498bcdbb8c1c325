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
use super::pack::{self, Part, padded};
use super::plan::{GRANULE, Keys, Plan};
use crate::kernels::Segment;
use crate::kernels::cpu::written;
use crate::kernels::exp::{exp, tanh};
use crate::kernels::lanes::Lanes;
use crate::kernels::level::{Kernel, Level};
use crate::kernels::rotary::Rotary;
use crate::kernels::tile::multiply_add;

/// Rows of a register tile: with four AVX-512 or two AVX2 vectors beside each other the accumulators fill the registers.
const STRIP: usize = 6;
/// Aim for this many query rows (tokens times heads of a group) in a block, so that a tile of keys is read from the nearest
/// cache eight times.
const BLOCK_ROWS: usize = 8 * STRIP;
/// Granules in a tile of keys: 256 keys.
const TILE: usize = 16;
/// From one row of scores to the next; not a power of two, which would put rows on the same cache sets.
const SCORE_STRIDE: usize = TILE * GRANULE + GRANULE;

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
    let keys = pack::by_column(level, qkv, &plan, shape, Part::Keys(rotary, positions));
    let values = pack::by_row(level, qkv, &plan, shape, Part::Values);
    let blocks = blocks(segments, shape);
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let output = Output(output.as_mut_ptr().cast());
        blocks.par_iter().with_max_len(1).for_each_init(Vec::new, |scratch, block| {
            let packed = block.kv_head * plan.rows.len() * GRANULE;
            level.run(Forward {
                qkv,
                shape,
                rotary,
                positions,
                seen: &plan.keys[block.segment],
                keys: &keys[packed * shape.head_dim..],
                values: &values[packed * padded(shape.head_dim)..],
                block,
                scratch,
                output: &output,
            });
        });
    };
    // SAFETY: the blocks cover every token and every head, and each writes its own.
    unsafe { written(positions.len() * shape.heads * shape.head_dim, fill) }
}

/// The unit of work: some tokens, all query heads of one kv head.
pub struct Block {
    pub segment: usize,
    pub kv_head: usize,
    pub tokens: Range<usize>,
}

/// Blocks are counted from each segment's start, and neighbours share their keys and values.
fn blocks(segments: &[Segment], shape: &AttentionShape) -> Vec<Block> {
    let size = (BLOCK_ROWS / shape.group()).max(1);
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
    /// Of the block's kv head: `[granules, head_dim, 16]`.
    keys: &'a [f32],
    /// Of the block's kv head: `[granules, 16, padded head_dim]`.
    values: &'a [f32],
    block: &'a Block,
    /// Kept between blocks to save the allocation.
    scratch: &'a mut Vec<f32>,
    output: &'a Output,
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // The column vectors of a register tile: as many as leave registers for the operands.
        // SAFETY: by contract.
        unsafe { if V::N == 16 { self.columns::<V, 4>() } else { self.columns::<V, 2>() } }
    }
}

impl Forward<'_> {
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn columns<V: Lanes, const C: usize>(self) {
        let Forward { shape, seen, block, .. } = self;
        let (head_dim, group) = (shape.head_dim, shape.group());
        let width = padded(head_dim);
        let n_rows = block.tokens.len() * group;
        let n_padded = n_rows.next_multiple_of(STRIP);

        self.scratch.clear();
        self.scratch.resize(n_padded * (head_dim + SCORE_STRIDE + width + 3), 0.0);
        let (queries, rest) = self.scratch.split_at_mut(n_padded * head_dim);
        let (scores, rest) = rest.split_at_mut(n_padded * SCORE_STRIDE);
        let (outputs, rest) = rest.split_at_mut(n_padded * width);
        let (maxima, rest) = rest.split_at_mut(n_padded);
        let (sums, shrinks) = rest.split_at_mut(n_padded);
        maxima.fill(f32::NEG_INFINITY);

        // Row `token * group + head`; the rows that fill the last strip stay zero and are dropped at the end.
        for (row, query) in queries.chunks_exact_mut(head_dim).take(n_rows).enumerate() {
            let token = block.tokens.start + row / group;
            let head = block.kv_head * group + row % group;
            query.copy_from_slice(&self.qkv[token * shape.columns() + head * head_dim..][..head_dim]);
            self.rotary.rotate_head(query, self.positions[token], 1.0);
            query.iter_mut().for_each(|x| *x *= shape.scale);
        }

        let window = shape.window.unwrap_or(usize::MAX);
        let first_position = self.positions[block.tokens.start];
        let position = |row: usize| first_position + (row / group).min(block.tokens.len() - 1);
        let oldest = (first_position + 1).saturating_sub(window);
        let first = seen.partition_point(|keys| keys.position + keys.lanes.len() <= oldest);
        let end = seen.partition_point(|keys| keys.position <= position(n_rows - 1));
        for tile in seen[first..end].chunks(TILE) {
            // How many of the tile's granules the strip that starts at `row` sees.
            let n_seen = |row: usize| tile.partition_point(|keys| keys.position <= position(row + STRIP - 1));

            // SAFETY: the instructions are there by contract; granule indices come from the plan, which the packed arrays were
            // made by; vectors stay within a granule, rows within the scratch.
            unsafe {
                let vectors = tile.len() * GRANULE / V::N;
                let key = |vector: usize| {
                    let lane = vector * V::N;
                    self.keys.as_ptr().add(tile[lane / GRANULE].granule * head_dim * GRANULE + lane % GRANULE)
                };
                let whole = vectors - vectors % C;
                for vector in (0..whole).step_by(C) {
                    let mut columns = [self.keys.as_ptr(); C];
                    for c in 0..C {
                        columns[c] = key(vector + c);
                    }
                    for row in (0..n_padded).step_by(STRIP) {
                        if vector * V::N < n_seen(row) * GRANULE {
                            let query = queries.as_ptr().add(row * head_dim);
                            let zero = [[V::splat(0.0); C]; STRIP];
                            let tile = multiply_add(head_dim, (query, head_dim, 1), (columns, GRANULE), zero);
                            put(tile, scores.as_mut_ptr().add(row * SCORE_STRIDE + vector * V::N), SCORE_STRIDE);
                        }
                    }
                }
                for vector in whole..vectors {
                    for row in (0..n_padded).step_by(STRIP) {
                        if vector * V::N < n_seen(row) * GRANULE {
                            let query = queries.as_ptr().add(row * head_dim);
                            let zero = [[V::splat(0.0); 1]; STRIP];
                            let tile = multiply_add(head_dim, (query, head_dim, 1), ([key(vector)], GRANULE), zero);
                            put(tile, scores.as_mut_ptr().add(row * SCORE_STRIDE + vector * V::N), SCORE_STRIDE);
                        }
                    }
                }

                for row in 0..n_padded {
                    let strip = row - row % STRIP;
                    let scores = &mut scores[row * SCORE_STRIDE..][..n_seen(strip) * GRANULE];
                    let new = softmax::<V>(scores, &tile[..n_seen(strip)], position(row), window, shape.softcap, maxima[row]);
                    shrinks[row] = exp(V::splat(maxima[row] - new.maximum)).maximum();
                    if new.maximum == f32::NEG_INFINITY {
                        shrinks[row] = 1.0;
                    }
                    maxima[row] = new.maximum;
                    sums[row] = sums[row] * shrinks[row] + new.sum;
                }

                for row in (0..n_padded).step_by(STRIP) {
                    let weights = scores.as_ptr().add(row * SCORE_STRIDE);
                    let n_seen = n_seen(row);
                    let last = position(row + STRIP - 1);
                    let mut column = 0;
                    while column < width {
                        let output = outputs.as_mut_ptr().add(row * width + column);
                        if column + C * V::N <= width {
                            weigh::<V, C>(self.values, width, &tile[..n_seen], last, weights, &shrinks[row..], column, output);
                            column += C * V::N;
                        } else {
                            weigh::<V, 1>(self.values, width, &tile[..n_seen], last, weights, &shrinks[row..], column, output);
                            column += V::N;
                        }
                    }
                }
            }
        }

        for row in 0..n_rows {
            let token = block.tokens.start + row / group;
            let head = block.kv_head * group + row % group;
            let share = 1.0 / sums[row];
            let from = &outputs[row * width..][..head_dim];
            // SAFETY: this row and head belong to this block alone.
            let to = unsafe {
                std::slice::from_raw_parts_mut(
                    self.output.0.add((token * shape.heads + head) * head_dim).cast::<MaybeUninit<f32>>(),
                    head_dim,
                )
            };
            for (to, from) in to.iter_mut().zip(from) {
                to.write(from * share);
            }
        }
    }
}

/// `outputs = outputs * shrink + weights x values` for one strip and `C` vectors of columns.
///
/// # Safety
/// The processor must have `V`'s instructions; the pointers must cover a strip.
#[inline(always)]
unsafe fn weigh<V: Lanes, const C: usize>(
    values: &[f32],
    width: usize,
    tile: &[Keys],
    last: usize,
    weights: *const f32,
    shrinks: &[f32],
    column: usize,
    output: *mut f32,
) {
    // SAFETY: by contract.
    unsafe {
        let mut acc = [[V::splat(0.0); C]; STRIP];
        for r in 0..STRIP {
            let shrink = V::splat(shrinks[r]);
            for c in 0..C {
                acc[r][c] = V::load(output.add(r * width + c * V::N)).mul(shrink);
            }
        }
        let mut g = 0;
        while g < tile.len() {
            // Granules that lie behind each other are one long product.
            let start = g;
            let mut rows = 0;
            while g < tile.len() && tile[g].granule == tile[start].granule + (g - start) {
                rows = (g - start) * GRANULE + tile[g].visible(last, usize::MAX).end;
                g += 1;
            }
            let value = values.as_ptr().add(tile[start].granule * GRANULE * width + column);
            let mut columns = [value; C];
            for c in 0..C {
                columns[c] = value.add(c * V::N);
            }
            acc = multiply_add(rows, (weights.add(start * GRANULE), SCORE_STRIDE, 1), (columns, width), acc);
        }
        put(acc, output, width);
    }
}

struct Running {
    maximum: f32,
    /// Of this tile's weights.
    sum: f32,
}

/// Turns one row's scores into weights `exp(score - maximum)`, 0 where the row may not look.
///
/// # Safety
/// The processor must have `V`'s instructions; `scores` must hold a granule for each element of `tile`.
#[inline(always)]
unsafe fn softmax<V: Lanes>(
    scores: &mut [f32],
    tile: &[Keys],
    position: usize,
    window: usize,
    softcap: Option<f32>,
    maximum: f32,
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
        let maximum = maximum.max(maxima.maximum());
        // A row that has seen nothing yet must not compute -inf - -inf.
        let subtracted = V::splat(if maximum == f32::NEG_INFINITY { 0.0 } else { maximum });
        let mut sum = V::splat(0.0);
        for vector in 0..tile.len() * GRANULE / V::N {
            let at = scores.add(vector * V::N);
            let weight = exp(V::load(at).sub(subtracted));
            weight.store(at);
            sum = sum.add(weight);
        }
        Running { maximum, sum: sum.sum() }
    }
}

/// Stores a register tile.
///
/// # Safety
/// The processor must have `V`'s instructions; the rows must be writable.
#[inline(always)]
unsafe fn put<V: Lanes, const R: usize, const C: usize>(tile: [[V; C]; R], to: *mut f32, stride: usize) {
    for (r, row) in tile.into_iter().enumerate() {
        for (c, x) in row.into_iter().enumerate() {
            // SAFETY: by contract.
            unsafe { x.store(to.add(r * stride + c * V::N)) };
        }
    }
}
