//! Fused attention: rotary embedding, scores, softmax and weighted values in one pass over tiles of keys.
//!
//! ```text
//! pack    every key row turned and transposed, every value row copied          once per row and kv head
//! block   some tokens of a segment x the query heads of one kv head            one task
//! strip     six query rows: turn, scale
//! tile        256 keys: scores -> running softmax -> outputs += weights x values
//! ```
//!
//! The running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867; FlashAttention, Dao et al. 2022, arXiv 2205.14135) keeps
//! each row's maximum and sum, and shrinks what it has when a later tile raises the maximum. Memory beyond the packed keys and
//! values is one strip's scores of one tile.
//!
//! Each row's sums run over its own keys in tiles counted from its sequence's start, in order. So neither the other rows of the
//! batch nor the threads change a bit of its result, nor whether the start of the sequence is shared. Masked keys get weight 0;
//! their values must be finite (0 * NaN = NaN).

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::pack::{Packed, Part, padded};
use super::plan::{GRANULE, Plan, tiles};
use super::problem::Problem;
use super::shape::AttentionShape;
use super::strip::{STRIDE, STRIP, View, look, products, weighted_sums};
use crate::kernels::Segment;
use crate::kernels::cpu::{Shared, written};
use crate::kernels::exp::exp_of_nonpositive;
use crate::kernels::lanes::{Lanes, for_lanes, load, prefetch, store};
use crate::kernels::level::Kernel;

/// Strips in a task of its own: coarse enough to be worth handing to a thread, fine enough to balance threads.
const STRIPS: usize = 8;

/// `[T, heads * head_dim]`
pub(super) fn attention(problem: &Problem) -> Vec<f32> {
    let plan = Plan::new(problem.segments);
    let keys = Packed::by_column(problem, &plan, Part::Keys);
    let values = Packed::by_row(problem, &plan, Part::Values);
    let blocks = blocks(problem.segments, problem.shape);
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let output = Shared::new(output);
        blocks.par_iter().with_max_len(1).for_each(|block| {
            let seen = &plan.seen[block.segment];
            problem.level.run(Forward { problem, seen, keys: &keys, values: &values, block, output: &output });
        });
    };
    // SAFETY: the blocks cover every token and every head, and each writes its own.
    unsafe { written(problem.positions.len() * problem.shape.heads * problem.shape.head_dim, fill) }
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

struct Forward<'a> {
    problem: &'a Problem<'a>,
    /// Granules.
    seen: &'a [usize],
    /// By column.
    keys: &'a Packed,
    /// By row.
    values: &'a Packed,
    block: &'a Block,
    output: &'a Shared,
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
        let Forward { problem, seen, block, .. } = self;
        let AttentionShape { heads, head_dim, scale, softcap, .. } = *problem.shape;
        let width = padded(head_dim);
        let (keys, values) = (self.keys.head(block.kv_head), self.values.head(block.kv_head));
        let mut scores = [0.0; STRIP * STRIDE];
        let mut rows = vec![0.0; 2 * STRIP * width];
        let (queries, outputs) = rows.split_at_mut(STRIP * width);

        let rows = QueryRows::new(block.tokens.clone(), block.kv_head, problem.shape);
        for start in (0..rows.len()).step_by(STRIP) {
            let mut positions = [0; STRIP];
            for (r, query) in queries.chunks_exact_mut(width).enumerate() {
                let (token, head) = rows.place(start + r);
                positions[r] = problem.positions[token];
                let query = &mut query[..head_dim];
                query.copy_from_slice(problem.query(token, head));
                problem.rotary.rotate_head(query, positions[r], 1.0);
                query.iter_mut().for_each(|x| *x *= scale);
            }
            for r in STRIP..2 * STRIP {
                let (token, head) = rows.place(start + r);
                prefetch(problem.query(token, head));
            }
            let window = problem.shape.window.unwrap_or(usize::MAX);
            let mut running = [Running::START; STRIP];
            let mut shrinks = [0.0; STRIP];
            outputs.fill(0.0);
            for tile in tiles(seen, positions[0], positions[STRIP - 1], window) {
                // SAFETY: the instructions are there by contract; keys are packed by column, values by row.
                unsafe {
                    products::<V, C>(keys, tile, queries, head_dim, &mut scores);
                    for r in 0..STRIP {
                        let row = &mut scores[r * STRIDE..][..tile.granules.len() * GRANULE];
                        let highest = look::<V>(row, tile, View { position: positions[r], window, softcap });
                        shrinks[r] = running[r].weigh::<V>(row, highest);
                    }
                    weighted_sums::<V, C>(values, tile, &scores, positions[STRIP - 1], &shrinks, outputs);
                }
            }
            for r in 0..STRIP.min(rows.len() - start) {
                let (token, head) = rows.place(start + r);
                // SAFETY: the instructions are there by contract; this row and head belong to this block alone.
                unsafe {
                    let share = V::splat(1.0 / running[r].sum);
                    let to = self.output.at((token * heads + head) * head_dim, head_dim);
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

/// The query rows of some tokens and the heads of one group: row `token * group + head`.
pub(super) struct QueryRows {
    tokens: Range<usize>,
    first_head: usize,
    group: usize,
}

impl QueryRows {
    pub(super) fn new(tokens: Range<usize>, kv_head: usize, shape: &AttentionShape) -> QueryRows {
        QueryRows { tokens, first_head: kv_head * shape.group(), group: shape.group() }
    }

    pub(super) fn len(&self) -> usize {
        self.tokens.len() * self.group
    }

    /// Token and head of a row; rows past the end are the last one again, so that every strip can be full.
    #[inline(always)]
    pub(super) fn place(&self, row: usize) -> (usize, usize) {
        let row = row.min(self.len() - 1);
        (self.tokens.start + row / self.group, self.first_head + row % self.group)
    }
}

/// One row's softmax as far as it has got.
#[derive(Clone, Copy)]
pub(super) struct Running {
    pub maximum: f32,
    /// Of `exp(score - maximum)`.
    pub sum: f32,
}

impl Running {
    pub(super) const START: Running = Running { maximum: f32::NEG_INFINITY, sum: 0.0 };

    /// Turns the scores of a tile, of which `highest` is the highest, into weights `exp(score - maximum)`. Returns what earlier
    /// weights shrink by because this tile has raised the maximum.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions; `scores` must be whole vectors.
    #[inline(always)]
    pub(super) unsafe fn weigh<V: Lanes>(&mut self, scores: &mut [f32], highest: f32) -> f32 {
        let before = self.maximum;
        self.maximum = before.max(highest);
        // A row that has seen nothing yet must not compute -inf - -inf.
        let subtracted = if self.maximum == f32::NEG_INFINITY { 0.0 } else { self.maximum };
        // SAFETY: by contract.
        unsafe {
            let shrink = exp_of_nonpositive(V::splat(before - subtracted)).maximum();
            let mut sum = V::splat(0.0);
            for vector in (0..scores.len()).step_by(V::N) {
                let at = scores.as_mut_ptr().add(vector);
                let weight = exp_of_nonpositive(V::load(at).sub(V::splat(subtracted)));
                weight.store(at);
                sum = sum.add(weight);
            }
            self.sum = self.sum * shrink + sum.sum();
            shrink
        }
    }
}
