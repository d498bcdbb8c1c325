//! The gradient of fused attention. The forward pass keeps the output and each row's softmax, but not the scores, which are recomputed.
//!
//! For one query row with weights `p = softmax(s)`, output `y = sum p v` and upstream gradient `dy` (FlashAttention, Dao et al.
//! 2022, arXiv 2205.14135, appendix B.4):
//!
//! ```text
//! dv += p dy        dp = dy . v        ds = p (dp - dy . y)        dq += ds k        dk += ds q
//! ```
//!
//! with `ds` multiplied by `1 - (s / cap)^2` under a softcap, and `dq` and `dk` rotated back in the end.
//!
//! A task is one kv head of one share of a family, that is, of the segments that are connected through contexts. It adds to the gradients
//! of the keys that it sees in the order of its rows, tile by tile for one block of rows at a time, like the forward pass; in the end the
//! shares are summed in order. The cost alone determines how a family is split, so the sums do not depend on threads or on other
//! sequences.

use std::mem::MaybeUninit;
use std::ops::Range;

use rayon::prelude::*;

use super::arithmetic::{Arithmetic, AttentionKernel};
use super::fused::{QueryRows, Running, Strip};
use super::pack::Part;
use super::packed::{Packed, padded};
use super::plan::{GRANULE, Plan};
use super::problem::Problem;
use super::shape::AttentionShape;
use super::strip::{STRIDE, Scores, Sight, as_words, look};
use crate::kernels::Segment;
use crate::kernels::cpu::{Shared, written};
use crate::kernels::exp::exp_of_nonpositive;
use crate::kernels::lanes::Lanes;

/// The strips of a block, which share each tile while it is in the second-level cache.
const STRIPS: usize = 16;
/// The approximate number of pairs of query and key in a share: those of a sequence of 1,024 tokens.
const SHARE: usize = 1 << 19;
/// A share holds the gradients of all keys that it sees, so their number is limited.
const MAX_SHARES: usize = 8;

/// The gradient of `qkv`, given the output `[T, heads * head_dim]`, the softmaxes of the forward pass and the output's gradient.
pub(super) fn gradient(problem: &Problem, output: &[f32], softmaxes: &[Running], d_output: &[f32]) -> Vec<f32> {
    let plan = Plan::new(problem.segments);
    let key_columns = Packed::by_column(problem, &plan, Part::Keys);
    let key_rows = Packed::by_row(problem, &plan, Part::Keys);
    let value_columns = Packed::by_column(problem, &plan, Part::Values);
    let families = families(problem.segments);
    let kv_heads = problem.shape.kv_heads;
    let window = problem.shape.window.unwrap_or(usize::MAX);
    // Ordered by family, then by head, then by share.
    let mut tasks = Vec::new();
    for (family, segments) in families.iter().enumerate() {
        let shares = shares(segments, problem, window);
        tasks.extend((0..kv_heads).map(|kv_head| (family, kv_head, shares.clone())));
    }
    let fill = |d_qkv: &mut [MaybeUninit<f32>]| {
        let d_qkv = Shared::new(d_qkv);
        tasks.par_iter().with_max_len(1).for_each(|(family, kv_head, shares)| {
            let of_share = |share: &Vec<Piece>| {
                problem.run(Backward {
                    problem,
                    plan: &plan,
                    key_columns: &key_columns,
                    key_rows: &key_rows,
                    value_columns: &value_columns,
                    output,
                    softmaxes,
                    d_output,
                    share,
                    kv_head: *kv_head,
                    d_qkv: &d_qkv,
                })
            };
            let found: Vec<KeyGradients> = shares.par_iter().with_max_len(1).map(of_share).collect();
            let whole = found.into_iter().reduce(KeyGradients::join);
            if let Some(whole) = whole {
                whole.write(&families[*family], *kv_head, problem, &plan, &d_qkv);
            }
        });
    };
    // SAFETY: every token is in one family, in one piece of its shares, and the tasks of its family write all its columns.
    unsafe { written(problem.qkv.len(), fill) }
}

/// Some tokens of a segment.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Piece {
    segment: usize,
    tokens: Range<usize>,
}

fn block_tokens(problem: &Problem) -> usize {
    (STRIPS * problem.factors.strip() / problem.shape.group()).max(1)
}

/// Splits a family into shares of about equal cost, in the order of the rows.
fn shares(family: &[usize], problem: &Problem, window: usize) -> Vec<Vec<Piece>> {
    let cost = |token: usize| (problem.positions[token] + 1).min(window);
    let tokens = || family.iter().flat_map(|&segment| problem.segments[segment].tokens.clone());
    let whole: usize = tokens().map(cost).sum();
    let n_shares = (whole / SHARE).clamp(1, MAX_SHARES);
    let block = block_tokens(problem);
    let mut shares = vec![Vec::new()];
    let mut spent = 0;
    for &segment in family {
        let tokens = problem.segments[segment].tokens.clone();
        for start in tokens.clone().step_by(block) {
            let block = start..tokens.end.min(start + block);
            if spent * n_shares >= whole * shares.len() {
                shares.push(Vec::new());
            }
            spent += block.clone().map(cost).sum::<usize>();
            let Some(share) = shares.last_mut() else { continue };
            match share.last_mut() {
                Some(Piece { segment: last, tokens }) if *last == segment => tokens.end = block.end,
                _ => share.push(Piece { segment, tokens: block }),
            }
        }
    }
    shares
}

/// The gradients of the keys and values that a share sees, for one kv head.
struct KeyGradients {
    /// The offset of each granule's gradients; `usize::MAX` for a granule that the share does not see.
    places: Vec<usize>,
    granules: Vec<usize>,
    d_keys: Vec<f32>,
    d_values: Vec<f32>,
    width: usize,
}

impl KeyGradients {
    fn zeros(granules: impl Iterator<Item = usize>, plan: &Plan, width: usize) -> KeyGradients {
        let mut zeros = KeyGradients {
            places: vec![usize::MAX; plan.rows.len()],
            granules: Vec::new(),
            d_keys: Vec::new(),
            d_values: Vec::new(),
            width,
        };
        granules.for_each(|granule| zeros.add_granule(granule));
        let len = zeros.granules.len() * GRANULE * width;
        (zeros.d_keys, zeros.d_values) = (vec![0.0; len], vec![0.0; len]);
        zeros
    }

    /// Makes room for a granule, if it has none yet.
    fn add_granule(&mut self, granule: usize) {
        if self.places[granule] == usize::MAX {
            self.places[granule] = self.granules.len() * GRANULE * self.width;
            self.granules.push(granule);
        }
    }

    fn place(&self, granule: usize) -> Range<usize> {
        self.places[granule]..self.places[granule] + GRANULE * self.width
    }

    /// Adds the gradients of a later share to these.
    fn join(mut self, other: KeyGradients) -> KeyGradients {
        other.granules.iter().for_each(|&granule| self.add_granule(granule));
        let len = self.granules.len() * GRANULE * self.width;
        self.d_keys.resize(len, 0.0);
        self.d_values.resize(len, 0.0);
        for &granule in &other.granules {
            let (to, from) = (self.place(granule), other.place(granule));
            let add = |to: &mut [f32], from: &[f32]| to.iter_mut().zip(from).for_each(|(to, from)| *to += from);
            add(&mut self.d_keys[to.clone()], &other.d_keys[from.clone()]);
            add(&mut self.d_values[to], &other.d_values[from]);
        }
        self
    }

    /// Writes the gradients of a family's keys and values to `d_qkv`.
    fn write(mut self, family: &[usize], kv_head: usize, problem: &Problem, plan: &Plan, d_qkv: &Shared<f32>) {
        let AttentionShape { heads, kv_heads, head_dim, .. } = *problem.shape;
        let width = self.width;
        // A row that several granules contain has a part of its gradient in each; this adds all parts to the row's own granule.
        let places = self.places;
        let own = |token: usize| places[plan.own[token]] + problem.positions[token] % GRANULE * width;
        for &granule in &self.granules {
            for (lane, &token) in plan.rows[granule].iter().enumerate().filter(|&(_, &token)| plan.own[token] != granule) {
                let (from, to) = (places[granule] + lane * width, own(token));
                for d in 0..head_dim {
                    self.d_keys[to + d] += self.d_keys[from + d];
                    self.d_values[to + d] += self.d_values[from + d];
                }
            }
        }
        let head_of = |token: usize, head: usize| {
            let start = token * problem.shape.columns() + head * head_dim;
            // SAFETY: keys and values of this family and kv head belong to the task that calls.
            unsafe { std::slice::from_raw_parts_mut(d_qkv.at(start, head_dim).cast::<MaybeUninit<f32>>(), head_dim) }
        };
        for token in family.iter().flat_map(|&segment| problem.segments[segment].tokens.clone()) {
            let to = head_of(token, heads + kv_head).write_copy_of_slice(&self.d_keys[own(token)..][..head_dim]);
            problem.rotary.rotate_head(to, problem.positions[token], -1.0);
            head_of(token, heads + kv_heads + kv_head).write_copy_of_slice(&self.d_values[own(token)..][..head_dim]);
        }
    }
}

/// Groups segments that see each other's rows, in ascending order; segments of different families share nothing.
fn families(segments: &[Segment]) -> Vec<Vec<usize>> {
    // Each segment points to an earlier one of its family; the first points to itself.
    let mut parents: Vec<usize> = Vec::with_capacity(segments.len());
    for (s, segment) in segments.iter().enumerate() {
        parents.push(s);
        for range in segment.context.iter().filter(|range| !range.is_empty()) {
            let first = segments.partition_point(|owner| owner.tokens.end <= range.start);
            for owner in (first..s).take_while(|&owner| segments[owner].tokens.start < range.end) {
                let (a, b) = (root(&parents, owner), root(&parents, s));
                parents[a.max(b)] = a.min(b);
            }
        }
    }
    let mut families = vec![Vec::new(); segments.len()];
    for s in 0..segments.len() {
        families[root(&parents, s)].push(s);
    }
    families.retain(|family| !family.is_empty());
    families
}

fn root(parents: &[usize], mut s: usize) -> usize {
    while parents[s] != s {
        s = parents[s];
    }
    s
}

struct Backward<'a> {
    problem: &'a Problem<'a>,
    plan: &'a Plan,
    key_columns: &'a Packed,
    key_rows: &'a Packed,
    value_columns: &'a Packed,
    output: &'a [f32],
    softmaxes: &'a [Running],
    d_output: &'a [f32],
    share: &'a [Piece],
    kv_head: usize,
    d_qkv: &'a Shared<f32>,
}

impl AttentionKernel for Backward<'_> {
    type Output = KeyGradients;

    #[inline(always)]
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) -> KeyGradients {
        let Backward { problem, plan, share, .. } = self;
        // Up to the last position of each piece, beyond which none of its queries sees.
        let of_piece = |piece: &Piece| {
            let end = piece.tokens.end.checked_sub(1).map_or(0, |last| problem.positions[last] / GRANULE + 1);
            &plan.seen[piece.segment][..end]
        };
        let granules = share.iter().flat_map(|piece| of_piece(piece).iter().copied());
        let mut sums = KeyGradients::zeros(granules, plan, padded(problem.shape.head_dim));
        let block = block_tokens(problem);
        for Piece { segment, tokens } in share {
            for start in tokens.clone().step_by(block) {
                // SAFETY: by contract; the sums have room for what the piece sees.
                unsafe { self.block::<A, S>(&plan.seen[*segment], start..tokens.end.min(start + block), &mut sums) };
            }
        }
        sums
    }
}

impl Backward<'_> {
    /// Writes the gradients of a block's queries, and adds to those of the keys and values that it sees.
    ///
    /// # Safety
    /// The processor must have `A`'s instructions.
    #[inline(always)]
    unsafe fn block<A: Arithmetic<S>, const S: usize>(&self, seen: &[usize], tokens: Range<usize>, sums: &mut KeyGradients) {
        let Backward { problem, kv_head, .. } = *self;
        let AttentionShape { softcap, window, .. } = *problem.shape;
        let window = window.unwrap_or(usize::MAX);
        let rows = QueryRows::new(tokens, kv_head, problem.shape);
        let width = sums.width;
        let size = S * width;
        let strips = rows.strips::<S>(problem.positions, window);
        let n_rows = strips.len() * S;
        let mut all = vec![0.0; 3 * n_rows * width];
        let (queries, rest) = all.split_at_mut(n_rows * width);
        let (d_outputs, d_queries) = rest.split_at_mut(n_rows * width);
        let (softmaxes, dots) = self.gather(&rows, width, queries, d_outputs, A::PER_WORD);
        // SAFETY: the instructions are there by contract; rows are whole granules, and `A::PER_WORD` of them are contiguous.
        let (queries_across, d_outputs_across) =
            unsafe { (rows_across::<A, S>(queries, width), rows_across::<A, S>(d_outputs, width)) };
        for (query, d_output) in queries.chunks_exact_mut(width).zip(d_outputs.chunks_exact_mut(width)) {
            // SAFETY: as above.
            unsafe {
                A::finely(query);
                A::along(d_output);
            }
        }

        let (mut weights, mut d_scores) = (Scores::ZEROS, Scores::ZEROS);
        let (mut weights_across, mut d_scores_across) = (Scores::ZEROS, Scores::ZEROS);
        // SAFETY: the instructions are there by contract; each operand is packed as its product requires.
        unsafe {
            for number in Strip::tiles(&strips) {
                for (s, strip) in strips.iter().enumerate() {
                    let tile = strip.reach.tile(seen, number);
                    if tile.granules.is_empty() {
                        continue;
                    }
                    let n = tile.granules.len() * GRANULE;
                    let part = s * size..(s + 1) * size;
                    A::scores(self.key_columns.head(kv_head), tile, as_words(&queries[part.clone()]), &mut weights);
                    A::products(self.value_columns.head(kv_head), tile, as_words(&d_outputs[part.clone()]), &mut d_scores);
                    for r in 0..S {
                        let (weights, d_scores) = (&mut weights.0[r][..n], &mut d_scores.0[r][..n]);
                        look::<A::V>(weights, tile, Sight { position: strip.positions[r], window, softcap });
                        score_gradients::<A::V>(weights, d_scores, softmaxes[s * S + r], dots[s * S + r], softcap);
                    }
                    let of_strip = s * size / A::PER_WORD..(s + 1) * size / A::PER_WORD;
                    let (queries, d_outputs) = (&queries_across[of_strip.clone()], &d_outputs_across[of_strip]);
                    let weights = scores_across::<A, S>(&weights, n, &mut weights_across);
                    let d_scores_words = scores_across::<A, S>(&d_scores, n, &mut d_scores_across);
                    for (g, &granule) in tile.granules.iter().enumerate() {
                        let place = sums.place(granule);
                        A::add_transposed(d_scores_words, g, queries, &mut sums.d_keys[place.clone()]);
                        A::add_transposed(weights, g, d_outputs, &mut sums.d_values[place]);
                    }
                    for r in 0..S {
                        A::along(&mut d_scores.0[r][..n]);
                    }
                    let d_queries = &mut d_queries[part];
                    A::weighted_sums(self.key_rows.head(kv_head), tile, &d_scores, strip.last(), &[1.0; S], d_queries);
                }
            }
        }
        self.write(&rows, width, d_queries);
    }

    /// Copies the rotated and scaled queries of a block and the gradients of its outputs into rows of `width`. Returns each row's softmax, and the
    /// product of its output and gradient, rounded to words of `per_word` numbers.
    #[inline(always)]
    fn gather(
        &self,
        rows: &QueryRows,
        width: usize,
        queries: &mut [f32],
        d_outputs: &mut [f32],
        per_word: usize,
    ) -> (Vec<Running>, Vec<f32>) {
        let problem = self.problem;
        let AttentionShape { heads, head_dim, scale, .. } = *problem.shape;
        let n_rows = queries.len() / width;
        let mut dots = vec![0.0; n_rows];
        let mut softmaxes = Vec::with_capacity(n_rows);
        for row in 0..n_rows {
            let (token, head) = rows.place(row);
            softmaxes.push(self.softmaxes[token * heads + head]);
            let query = &mut queries[row * width..][..head_dim];
            query.copy_from_slice(problem.query(token, head));
            problem.rotary.rotate_head(query, problem.positions[token], 1.0);
            query.iter_mut().for_each(|x| *x *= scale);
            // The padding rows of a strip have no upstream gradient, and add zeros.
            if row < rows.len() {
                let place = (token * heads + head) * head_dim;
                let (y, dy) = (&self.output[place..][..head_dim], &self.d_output[place..][..head_dim]);
                // Rounds the gradient like the product that computes `dp`. With different rounding, `ds` would not sum to 0, and the mean
                // of the keys would leak into `dq`.
                let rounded = |dy: f32| if per_word == 1 { dy } else { half::bf16::from_f32(dy).to_f32() };
                dots[row] = y.iter().zip(dy).map(|(y, dy)| y * rounded(*dy)).sum();
                d_outputs[row * width..][..head_dim].copy_from_slice(dy);
            }
        }
        (softmaxes, dots)
    }

    /// Writes the gradients of a block's queries, rotated back and scaled.
    #[inline(always)]
    fn write(&self, rows: &QueryRows, width: usize, d_queries: &mut [f32]) {
        let problem = self.problem;
        let AttentionShape { head_dim, scale, .. } = *problem.shape;
        for (row, d_query) in d_queries.chunks_exact_mut(width).enumerate().take(rows.len()) {
            let (token, head) = rows.place(row);
            let d_query = &mut d_query[..head_dim];
            problem.rotary.rotate_head(d_query, problem.positions[token], -1.0);
            d_query.iter_mut().for_each(|x| *x *= scale);
            // SAFETY: this token's query heads of this kv head belong to this task.
            unsafe {
                let to = self.d_qkv.at(token * problem.shape.columns() + head * head_dim, head_dim);
                std::ptr::copy_nonoverlapping(d_query.as_ptr(), to, head_dim);
            }
        }
    }
}

/// Converts rows of `width` numbers to words of vertically adjacent numbers, `[n_rows / PER_WORD, width]`.
///
/// # Safety
/// The processor must have `A`'s instructions; a row must be whole granules, and their number a multiple of `PER_WORD`.
#[inline(always)]
unsafe fn rows_across<A: Arithmetic<S>, const S: usize>(rows: &[f32], width: usize) -> Vec<u32> {
    let mut words = vec![0; rows.len() / A::PER_WORD];
    for (rows, words) in rows.chunks_exact(A::PER_WORD * width).zip(words.chunks_exact_mut(width)) {
        // SAFETY: by contract.
        unsafe { A::across(rows.as_ptr(), width, width, words.as_mut_ptr()) };
    }
    words
}

/// Converts the first `n` scores of each row to words of vertically adjacent numbers, `[S / PER_WORD, STRIDE]`: in place if a word is one
/// number, otherwise in `scratch`.
///
/// # Safety
/// The processor must have `A`'s instructions; `n` must be whole granules.
#[inline(always)]
unsafe fn scores_across<'a, A: Arithmetic<S>, const S: usize>(
    scores: &'a Scores<S>,
    n: usize,
    scratch: &'a mut Scores<S>,
) -> &'a [u32] {
    if A::PER_WORD == 1 {
        return scores.as_words();
    }
    assert!(n <= STRIDE);
    for (rows, words) in scores.0.chunks_exact(A::PER_WORD).zip(&mut scratch.0) {
        // SAFETY: by contract, and the assertion.
        unsafe { A::across(rows.as_ptr().cast(), STRIDE, n, words.as_mut_ptr().cast()) };
    }
    &scratch.as_words()[..S / A::PER_WORD * STRIDE]
}

/// Given one row's scores `s` and weight gradients `dp` of a tile, overwrites the scores with the weights `p`, and `dp` with the gradients
/// of the scores before the softcap.
///
/// # Safety
/// The processor must have `V`'s instructions; both slices must be the same whole number of vectors.
#[inline(always)]
unsafe fn score_gradients<V: Lanes>(scores: &mut [f32], d_weights: &mut [f32], row: Running, dot: f32, softcap: Option<f32>) {
    assert_eq!(scores.len(), d_weights.len());
    // Two loops, so that the softcap is not tested in each iteration.
    // SAFETY: by contract.
    unsafe {
        match softcap {
            None => each_score_gradient::<V>(
                scores,
                d_weights,
                row,
                dot,
                #[inline(always)]
                |_, d_score| d_score,
            ),
            Some(cap) => each_score_gradient::<V>(
                scores,
                d_weights,
                row,
                dot,
                #[inline(always)]
                |score, d_score| {
                    // Masked keys have the score -infinity; clamping to -1 gives them the slope 0.
                    let bent = score.mul(V::splat(1.0 / cap)).max(V::splat(-1.0));
                    d_score.mul(V::splat(1.0).sub(bent.mul(bent)))
                },
            ),
        }
    }
}

/// The loop of [`score_gradients`]; `bend(score, gradient)` applies the derivative of the softcap to a gradient.
///
/// # Safety
/// As above.
#[inline(always)]
unsafe fn each_score_gradient<V: Lanes>(
    scores: &mut [f32],
    d_weights: &mut [f32],
    row: Running,
    dot: f32,
    bend: impl Fn(V, V) -> V,
) {
    // SAFETY: by contract.
    unsafe {
        let (maximum, share, dot) = (V::splat(row.maximum), V::splat(1.0 / row.sum), V::splat(dot));
        for vector in (0..scores.len()).step_by(V::N) {
            let (score_at, d_at) = (scores.as_mut_ptr().add(vector), d_weights.as_mut_ptr().add(vector));
            let score = V::load(score_at);
            let weight = exp_of_nonpositive(score.sub(maximum)).mul(share);
            let d_score = bend(score, V::load(d_at).sub(dot).mul(weight));
            weight.store(score_at);
            d_score.store(d_at);
        }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]
mod tests {
    use super::*;

    #[test]
    fn families_are_what_contexts_connect() {
        let segment = |tokens, context| Segment { tokens, context };
        let segments = [
            segment(0..3, vec![]),
            segment(3..5, vec![]),
            segment(5..6, vec![0..3]),
            segment(6..7, vec![2..3, 5..6]),
            segment(7..8, vec![3..3]),
            segment(8..9, vec![4..5, 7..8]),
        ];
        assert_eq!(families(&segments), [vec![0, 2, 3], vec![1, 4, 5]]);
    }
}
