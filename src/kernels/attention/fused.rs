//! Fused attention: rotary embedding, scores, softmax and weighted values in one pass over tiles of keys.
//!
//! ```text
//! pack    rotate and transpose every key row, copy every value row              once per row and kv head
//! block   some tokens of a segment x the query heads of one kv head            one task
//! tile      256 keys, which stay in the second-level cache
//! strip       some query rows, rotated and scaled: scores -> running softmax -> outputs += weights x values
//! ```
//!
//! The running softmax (Milakov and Gimelshein 2018, arXiv 1805.02867; FlashAttention, Dao et al. 2022, arXiv 2205.14135) keeps each row's
//! maximum and sum, and rescales them when a later tile raises the maximum. The memory beyond the packed keys and values is a block's rows
//! and one strip's scores of one tile.
//!
//! Each row sums over its own keys in order, in tiles counted from the start of its sequence. Its result therefore does not depend on other
//! rows of the batch, on threads, or on whether the start of the sequence is shared, to the bit. Masked keys get weight 0, so their values
//! must be finite (0 * NaN = NaN).

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::pack::Part;
use super::packed::{Packed, padded};
use super::plan::{GRANULE, Plan, Reach};
use super::problem::Problem;
use super::shape::AttentionShape;
use super::strip::{Scores, Sight, as_words, look};
use crate::kernels::cpu::{Shared, written};
use crate::kernels::exp::exp_of_nonpositive;
use crate::kernels::lanes::{Lanes, for_lanes, load, prefetch, store};

/// The strips of a task: enough to be worth handing to a thread, few enough to balance the threads.
const STRIPS: usize = 8;

/// Returns the output `[T, heads * head_dim]`, and the softmax of each row and head, `[T, heads]`, for the backward pass.
pub(super) fn attention(problem: &Problem) -> (Vec<f32>, Vec<Running>) {
    let plan = Plan::new(problem.segments);
    let keys = Packed::by_column(problem, &plan, Part::Keys);
    let values = Packed::by_row(problem, &plan, Part::Values);
    let views = problem.segments.iter().zip(&plan.seen);
    let views: Vec<View> = views.map(|(segment, seen)| View { tokens: segment.tokens.clone(), seen }).collect();
    over(problem, &views, &keys, &values)
}

/// Neighbouring tokens of one sequence, and the keys that they see.
pub(super) struct View<'a> {
    /// Rows of the batch.
    pub tokens: Range<usize>,
    /// Granules: the `i`-th starts at position `16 i`.
    pub seen: &'a [usize],
}

/// Like [`attention`], over keys packed by column and values packed by row. The views cover the tokens in order.
pub(super) fn over(problem: &Problem, views: &[View], keys: &Packed, values: &Packed) -> (Vec<f32>, Vec<Running>) {
    let blocks = blocks(views, STRIPS * problem.factors.strip() / problem.shape.group(), problem.shape.kv_heads);
    let n_rows = problem.positions.len() * problem.shape.heads;
    let mut softmaxes = Vec::new();
    let fill = |output: &mut [MaybeUninit<f32>]| {
        let output = Shared::new(output);
        let fill = |softmaxes: &mut [MaybeUninit<Running>]| {
            let softmaxes = Shared::new(softmaxes);
            blocks.par_iter().with_max_len(1).for_each(|block| {
                let (output, softmaxes) = (&output, &softmaxes);
                let seen = views[block.view].seen;
                problem.run(Forward { problem, seen, keys, values, block, output, softmaxes });
            });
        };
        // SAFETY: as below.
        softmaxes = unsafe { written(n_rows, fill) };
    };
    // SAFETY: the blocks cover every token and every head, and each writes its own.
    let output = unsafe { written(n_rows * problem.shape.head_dim, fill) };
    (output, softmaxes)
}

/// The unit of work: some tokens of a view, and all query heads of one kv head.
struct Block {
    view: usize,
    kv_head: usize,
    tokens: Range<usize>,
}

/// Blocks of `size` tokens, counted from each view's start; neighbouring blocks share keys and values.
fn blocks(views: &[View], size: usize, kv_heads: usize) -> Vec<Block> {
    let size = size.max(1);
    let mut blocks = Vec::new();
    for (view, View { tokens, .. }) in views.iter().enumerate() {
        for kv_head in 0..kv_heads {
            let starts = tokens.clone().step_by(size);
            blocks.extend(starts.map(|start| Block { view, kv_head, tokens: start..tokens.end.min(start + size) }));
        }
    }
    blocks
}

struct Forward<'a> {
    problem: &'a Problem<'a>,
    /// The granules that the view sees.
    seen: &'a [usize],
    /// The keys, packed by column.
    keys: &'a Packed,
    /// The values, packed by row.
    values: &'a Packed,
    block: &'a Block,
    output: &'a Shared<f32>,
    softmaxes: &'a Shared<Running>,
}

impl AttentionKernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) {
        let Forward { problem, seen, block, .. } = self;
        let AttentionShape { heads, head_dim, scale, softcap, .. } = *problem.shape;
        let width = padded(head_dim);
        let (keys, values) = (self.keys.head(block.kv_head), self.values.head(block.kv_head));
        let rows = QueryRows::new(block.tokens.clone(), block.kv_head, problem.shape);
        let window = problem.shape.window.unwrap_or(usize::MAX);
        let mut strips = rows.strips::<S>(problem.positions, window);
        let n_rows = strips.len() * S;
        if let Some(sinks) = problem.sinks {
            for row in 0..n_rows {
                strips[row / S].running[row % S] = Running::sink(sinks[rows.place(row).1]);
            }
        }
        let mut queries = Vec::with_capacity(n_rows * width);
        for row in 0..n_rows {
            let (token, head) = rows.place(row);
            let (next_token, next_head) = rows.place(row + S);
            prefetch(problem.query(next_token, next_head));
            queries.extend_from_slice(problem.query(token, head));
            let query = &mut queries[row * width..];
            problem.rotary.rotate_head(query, problem.positions[token], 1.0);
            query.iter_mut().for_each(|x| *x *= scale);
            queries.resize((row + 1) * width, 0.0);
        }
        for row in queries.chunks_exact_mut(width) {
            // SAFETY: the instructions are there by contract; a padded row is whole granules.
            unsafe { A::finely(row) };
        }
        let mut outputs = vec![0.0; n_rows * width];
        let mut scores = Scores::ZEROS;
        let mut highest = [0.0; S];
        for number in Strip::tiles(&strips) {
            let each = strips.iter_mut().zip(queries.chunks_exact(S * width)).zip(outputs.chunks_exact_mut(S * width));
            for ((strip, queries), outputs) in each {
                let tile = strip.reach.tile(seen, number);
                if tile.granules.is_empty() {
                    continue;
                }
                // SAFETY: the instructions are there by contract; keys are packed by column, values by row.
                unsafe {
                    A::scores(keys, tile, as_words(queries), &mut scores);
                    let n = tile.granules.len() * GRANULE;
                    for (r, highest) in highest.iter_mut().enumerate() {
                        let sight = Sight { position: strip.positions[r], window, softcap };
                        *highest = look::<A::V>(&mut scores.0[r][..n], tile, sight);
                    }
                    let shrinks = Running::raise::<A::V, S>(&mut strip.running, &highest);
                    for r in 0..S {
                        let row = &mut scores.0[r][..n];
                        let sum = strip.running[r].weigh::<A::V>(row);
                        // Sums the weights as rounded for the product: otherwise rounded weights that add up to more than the sum would
                        // overweight the mean of the values.
                        strip.running[r].sum += A::along_with_sum(row, sum);
                    }
                    A::weighted_sums(values, tile, &scores, strip.last(), &shrinks, outputs);
                }
            }
        }
        for (row, outputs) in outputs.chunks_exact(width).enumerate().take(rows.len()) {
            let (token, head) = rows.place(row);
            let softmax = strips[row / S].running[row % S];
            // SAFETY: the instructions are there by contract; this row and head belong to this block alone.
            unsafe {
                self.softmaxes.at(token * heads + head, 1).write(softmax);
                let share = A::V::splat(1.0 / softmax.sum);
                let to = self.output.at((token * heads + head) * head_dim, head_dim);
                for_lanes::<A::V>(
                    head_dim,
                    #[inline(always)]
                    |d, n| store(load::<A::V>(outputs, d, n).mul(share), to, d, n),
                );
            }
        }
    }
}

/// The query rows of some tokens, for the heads of one group: row `token * group + head`.
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

    /// The token and head of a row; rows past the end repeat the last one, so that every strip is full.
    #[inline(always)]
    pub(super) fn place(&self, row: usize) -> (usize, usize) {
        let row = row.min(self.len() - 1);
        (self.tokens.start + row / self.group, self.first_head + row % self.group)
    }

    /// Divides the rows into strips, padding the last one.
    pub(super) fn strips<const S: usize>(&self, positions: &[usize], window: usize) -> Vec<Strip<S>> {
        let strip = |start: usize| {
            let positions = std::array::from_fn(|r| positions[self.place(start + r).0]);
            let reach = Reach::new(positions[0], positions[S - 1], window);
            Strip { positions, reach, running: [Running::START; S] }
        };
        (0..self.len()).step_by(S).map(strip).collect()
    }
}

/// The running state of `S` neighbouring query rows.
pub(super) struct Strip<const S: usize> {
    /// The position of each row's token in its sequence.
    pub positions: [usize; S],
    /// The granules with keys that any of the rows sees.
    pub reach: Reach,
    /// The running softmax of each row.
    pub running: [Running; S],
}

impl<const S: usize> Strip<S> {
    pub(super) fn last(&self) -> usize {
        self.positions[S - 1]
    }

    /// The indices of the tiles that any of these strips, which are in order, sees.
    pub(super) fn tiles(strips: &[Strip<S>]) -> Range<usize> {
        match strips {
            [] => 0..0,
            [first, ..] => first.reach.tiles().start..strips[strips.len() - 1].reach.tiles().end,
        }
    }
}

/// The running softmax of one row.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Running {
    /// The largest score so far.
    pub maximum: f32,
    /// The sum of `exp(score - maximum)` over the keys so far and the head's sink.
    pub sum: f32,
}

impl Running {
    pub(super) const START: Running = Running { maximum: f32::NEG_INFINITY, sum: 0.0 };

    /// The start of a row in a head with a sink: the sink's logit counts as a score without a value.
    pub(super) fn sink(logit: f32) -> Running {
        Running { maximum: logit, sum: 1.0 }
    }

    /// Raises the maxima to those of a tile's scores if these are higher, and scales the sums. Returns the factors by which earlier weights
    /// shrink.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    pub(super) unsafe fn raise<V: Lanes, const S: usize>(rows: &mut [Running; S], highest: &[f32; S]) -> [f32; S] {
        let mut shrinks = [0.0; S];
        for r in 0..S {
            let before = rows[r].maximum;
            rows[r].maximum = before.max(highest[r]);
            shrinks[r] = before - rows[r].subtracted();
        }
        for_lanes::<V>(
            S,
            #[inline(always)]
            |i, n| {
                // SAFETY: by contract.
                unsafe { store(exp_of_nonpositive(load::<V>(&shrinks, i, n)), shrinks.as_mut_ptr(), i, n) };
            },
        );
        for r in 0..S {
            rows[r].sum *= shrinks[r];
        }
        shrinks
    }

    /// Avoids -inf - -inf for a row that has seen no key yet.
    #[inline(always)]
    fn subtracted(&self) -> f32 {
        if self.maximum == f32::NEG_INFINITY { 0.0 } else { self.maximum }
    }

    /// Replaces the scores of a tile, none of which exceeds the maximum, by weights `exp(score - maximum)`; returns their sum.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions; `scores` must be whole vectors.
    #[inline(always)]
    pub(super) unsafe fn weigh<V: Lanes>(&self, scores: &mut [f32]) -> f32 {
        // SAFETY: by contract.
        unsafe {
            let subtracted = V::splat(self.subtracted());
            let mut sum = V::splat(0.0);
            for vector in (0..scores.len()).step_by(V::N) {
                let at = scores.as_mut_ptr().add(vector);
                let weight = exp_of_nonpositive(V::load(at).sub(subtracted));
                weight.store(at);
                sum = sum.add(weight);
            }
            sum.sum()
        }
    }
}
