//! The gradient of fused attention. Nothing but the output was kept: scores are computed again.
//!
//! For one query row with weights `p = softmax(s)`, output `y = sum p v` and upstream gradient `dy` (FlashAttention, Dao et al.
//! 2022, arXiv 2205.14135, appendix B.4):
//!
//! ```text
//! dv += p dy        dp = dy . v        ds = p (dp - dy . y)        dq += ds k        dk += ds q
//! ```
//!
//! with `ds` times `1 - (s / cap)^2` under a softcap, and `dq` and `dk` turned back by the rotary angle in the end.
//!
//! A task is one kv head of all segments that are connected through contexts: it alone adds to its keys' gradients, in the order
//! of the rows, so the sums do not depend on the threads. One long sequence makes only as many tasks as there are kv heads.

use std::mem::MaybeUninit;

use rayon::prelude::*;

use super::fused::{QueryRows, Running};
use super::pack::{Packed, Part, padded};
use super::plan::{GRANULE, Plan, tiles};
use super::problem::Problem;
use super::shape::AttentionShape;
use super::strip::{STRIDE, STRIP, View, add_transposed, look, products, weighted_sums};
use crate::kernels::Segment;
use crate::kernels::cpu::{Shared, written};
use crate::kernels::exp::exp;
use crate::kernels::lanes::Lanes;
use crate::kernels::level::Kernel;

/// The gradient of `qkv` from the output `[T, heads * head_dim]` and its gradient.
pub(super) fn gradient(problem: &Problem, output: &[f32], d_output: &[f32]) -> Vec<f32> {
    let plan = Plan::new(problem.segments);
    let key_columns = Packed::by_column(problem, &plan, Part::Keys);
    let key_rows = Packed::by_row(problem, &plan, Part::Keys);
    let value_columns = Packed::by_column(problem, &plan, Part::Values);
    let families = families(problem.segments);
    let kv_heads = problem.shape.kv_heads;
    let fill = |d_qkv: &mut [MaybeUninit<f32>]| {
        let d_qkv = Shared::new(d_qkv);
        (0..families.len() * kv_heads).into_par_iter().with_max_len(1).for_each(|task| {
            problem.level.run(Backward {
                problem,
                plan: &plan,
                key_columns: &key_columns,
                key_rows: &key_rows,
                value_columns: &value_columns,
                output,
                d_output,
                family: &families[task / kv_heads],
                kv_head: task % kv_heads,
                d_qkv: &d_qkv,
            });
        });
    };
    // SAFETY: every token is in one family, and that family's tasks write all its columns.
    unsafe { written(problem.qkv.len(), fill) }
}

/// Groups of segments that see each other's rows, ascending; segments of different families share nothing.
fn families(segments: &[Segment]) -> Vec<Vec<usize>> {
    // Each segment points to an earlier one of its family, the first to itself.
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
    d_output: &'a [f32],
    /// Segments.
    family: &'a [usize],
    kv_head: usize,
    d_qkv: &'a Shared,
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // SAFETY: by contract.
        unsafe { if V::N == 16 { self.family::<V, 4>() } else { self.family::<V, 2>() } }
    }
}

impl Backward<'_> {
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn family<V: Lanes, const C: usize>(self) {
        let Backward { problem, plan, kv_head, .. } = self;
        let AttentionShape { heads, kv_heads, head_dim, .. } = *problem.shape;
        let width = padded(head_dim);
        // Where the gradients of each granule that this family sees begin.
        let mut places = vec![usize::MAX; plan.rows.len()];
        let mut granules = Vec::new();
        for &granule in self.family.iter().flat_map(|&segment| &plan.seen[segment]) {
            if places[granule] == usize::MAX {
                places[granule] = granules.len() * GRANULE * width;
                granules.push(granule);
            }
        }
        let mut d_keys = vec![0.0; granules.len() * GRANULE * width];
        let mut d_values = vec![0.0; granules.len() * GRANULE * width];
        for &segment in self.family {
            // SAFETY: by contract; the offsets are those of the granules this family sees.
            unsafe { self.segment::<V, C>(segment, &places, &mut d_keys, &mut d_values) };
        }
        // A row that stands in several granules has a part of its gradient in each: all go to its own.
        let own = |token: usize| places[plan.own[token]] + problem.positions[token] % GRANULE * width;
        for &granule in &granules {
            for (lane, &token) in plan.rows[granule].iter().enumerate().filter(|&(_, &token)| plan.own[token] != granule) {
                let (from, to) = (places[granule] + lane * width, own(token));
                for d in 0..head_dim {
                    d_keys[to + d] += d_keys[from + d];
                    d_values[to + d] += d_values[from + d];
                }
            }
        }

        let head_of = |token: usize, head: usize| {
            let start = token * problem.shape.columns() + head * head_dim;
            // SAFETY: keys and values of this family and kv head belong to this task.
            unsafe { std::slice::from_raw_parts_mut(self.d_qkv.at(start, head_dim).cast::<MaybeUninit<f32>>(), head_dim) }
        };
        for token in self.family.iter().flat_map(|&segment| problem.segments[segment].tokens.clone()) {
            let to = head_of(token, heads + kv_head).write_copy_of_slice(&d_keys[own(token)..][..head_dim]);
            problem.rotary.rotate_head(to, problem.positions[token], -1.0);
            head_of(token, heads + kv_heads + kv_head).write_copy_of_slice(&d_values[own(token)..][..head_dim]);
        }
    }

    /// Writes the gradients of a segment's queries and adds to those of the keys and values it sees.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions; `places` gives each granule's place in `d_keys` and `d_values`.
    #[inline(always)]
    unsafe fn segment<V: Lanes, const C: usize>(
        &self,
        segment: usize,
        places: &[usize],
        d_keys: &mut [f32],
        d_values: &mut [f32],
    ) {
        let Backward { problem, kv_head, .. } = *self;
        let AttentionShape { heads, head_dim, scale, softcap, .. } = *problem.shape;
        let window = problem.shape.window.unwrap_or(usize::MAX);
        let tokens = problem.segments[segment].tokens.clone();
        let rows = QueryRows::new(tokens, kv_head, problem.shape);
        let width = padded(head_dim);
        let (mut weights, mut d_scores) = ([0.0; STRIP * STRIDE], [0.0; STRIP * STRIDE]);
        let mut strips = vec![0.0; 3 * STRIP * width];
        let (queries, rest) = strips.split_at_mut(STRIP * width);
        let (d_outputs, d_queries) = rest.split_at_mut(STRIP * width);
        for start in (0..rows.len()).step_by(STRIP) {
            let n_rows = STRIP.min(rows.len() - start);
            let mut positions = [0; STRIP];
            let mut dots = [0.0; STRIP];
            for r in 0..STRIP {
                let (token, head) = rows.place(start + r);
                positions[r] = problem.positions[token];
                let query = &mut queries[r * width..][..head_dim];
                query.copy_from_slice(problem.query(token, head));
                problem.rotary.rotate_head(query, positions[r], 1.0);
                query.iter_mut().for_each(|x| *x *= scale);
                let place = (token * heads + head) * head_dim;
                let (y, dy) = (&self.output[place..][..head_dim], &self.d_output[place..][..head_dim]);
                dots[r] = y.iter().zip(dy).map(|(y, dy)| y * dy).sum();
                d_outputs[r * width..][..head_dim].copy_from_slice(dy);
            }
            // The rows that only fill the strip: without an upstream gradient they add zeros.
            d_outputs[n_rows * width..].fill(0.0);
            dots[n_rows..].fill(0.0);
            d_queries.fill(0.0);

            let reach = || tiles(&self.plan.seen[segment], positions[0], positions[STRIP - 1], window);
            let view = |r: usize| View { position: positions[r], window, softcap };
            let mut running = [Running::START; STRIP];
            // SAFETY: the instructions are there by contract; each operand is packed as its product wants it.
            unsafe {
                for tile in reach() {
                    products::<V, C>(self.key_columns.head(kv_head), tile, queries, head_dim, &mut weights);
                    for r in 0..STRIP {
                        let row = &mut weights[r * STRIDE..][..tile.granules.len() * GRANULE];
                        let highest = look::<V>(row, tile, view(r));
                        running[r].weigh::<V>(row, highest);
                    }
                }
                for tile in reach() {
                    products::<V, C>(self.key_columns.head(kv_head), tile, queries, head_dim, &mut weights);
                    products::<V, C>(self.value_columns.head(kv_head), tile, d_outputs, head_dim, &mut d_scores);
                    for r in 0..STRIP {
                        let row = r * STRIDE..r * STRIDE + tile.granules.len() * GRANULE;
                        look::<V>(&mut weights[row.clone()], tile, view(r));
                        score_gradients::<V>(&mut weights[row.clone()], &mut d_scores[row], running[r], dots[r], softcap);
                    }
                    let ones = [1.0; STRIP];
                    weighted_sums::<V, C>(self.key_rows.head(kv_head), tile, &d_scores, positions[STRIP - 1], &ones, d_queries);
                    for (g, &granule) in tile.granules.iter().enumerate() {
                        let place = places[granule]..places[granule] + GRANULE * width;
                        add_transposed::<V, C>(&d_scores, g, queries, &mut d_keys[place.clone()]);
                        add_transposed::<V, C>(&weights, g, d_outputs, &mut d_values[place]);
                    }
                }
            }
            for r in 0..n_rows {
                let (token, head) = rows.place(start + r);
                let d_query = &mut d_queries[r * width..][..head_dim];
                problem.rotary.rotate_head(d_query, positions[r], -1.0);
                d_query.iter_mut().for_each(|x| *x *= scale);
                // SAFETY: this token's query heads of this kv head belong to this task.
                unsafe {
                    let to = self.d_qkv.at(token * problem.shape.columns() + head * head_dim, head_dim);
                    std::ptr::copy_nonoverlapping(d_query.as_ptr(), to, head_dim);
                }
            }
        }
    }
}

/// From one row's scores `s` and weight gradients `dp` of a tile: the weights `p` in place of the scores, and the gradients of
/// the scores before their cap in place of `dp`.
///
/// # Safety
/// The processor must have `V`'s instructions; both slices must be whole vectors of the same number.
#[inline(always)]
unsafe fn score_gradients<V: Lanes>(scores: &mut [f32], d_weights: &mut [f32], row: Running, dot: f32, softcap: Option<f32>) {
    assert_eq!(scores.len(), d_weights.len());
    // SAFETY: by contract.
    unsafe {
        let (maximum, share, dot) = (V::splat(row.maximum), V::splat(1.0 / row.sum), V::splat(dot));
        for vector in (0..scores.len()).step_by(V::N) {
            let (score_at, d_at) = (scores.as_mut_ptr().add(vector), d_weights.as_mut_ptr().add(vector));
            let score = V::load(score_at);
            let weight = exp(score.sub(maximum)).mul(share);
            let mut d_score = V::load(d_at).sub(dot).mul(weight);
            if let Some(cap) = softcap {
                // Hidden keys have the score -infinity, which -1 stands for: slope 0.
                let bent = score.mul(V::splat(1.0 / cap)).max(V::splat(-1.0));
                d_score = d_score.mul(V::splat(1.0).sub(bent.mul(bent)));
            }
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
