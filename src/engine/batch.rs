//! Packs sequences into batches of about a token budget, without padding, and with shared prefixes computed once.
//!
//! Sequences are sorted by their tokens, so that those with a common prefix are adjacent. A batch is then a forest in which every common
//! prefix of [`MIN_SHARED`] tokens or more is one segment. Tokens from the last supervised one on are omitted, including that one, because
//! no supervised token is predicted from them.
//!
//! ```text
//! sequences, sorted        segments of the batch, in order
//!
//! S A B                    S      sees itself
//! S A C              ->    A B    sees S and itself
//! S D                      A C    sees S and itself: A has fewer than MIN_SHARED tokens, and is computed twice
//!                          D      sees S and itself
//! ```

use std::collections::HashMap;
use std::ops::Range;

use crate::kernels::Segment;
use crate::model::Batch;
use crate::tokens::Sequence;

/// The token budget of batches for which more than statistics is stored.
pub const TOKEN_BUDGET: usize = 2048;

/// Shorter common prefixes are recomputed, because a segment has its own cost.
const MIN_SHARED: usize = 8;

/// The small first batch ends between two sequences whose common prefix has at most this many tokens, or a hundredth of all: the next batch
/// computes that prefix again.
const FIRST_LOSS: usize = 32;

/// A batch, and what to read from it.
pub struct Packed {
    /// The tokens, and which tokens see which.
    pub batch: Batch,
    /// The rows of the batch that predict a target, each `(row, target)` once. Length `N`.
    pub rows: Vec<u32>,
    /// The tokens that they predict. Length `N`.
    pub targets: Vec<u32>,
    /// For each sequence, its index in the input and, for each of its supervised tokens, the index into `rows` and `targets`.
    pub scatter: Vec<(usize, Vec<u32>)>,
}

/// Packs the sequences that have supervised tokens; the first batch has its own budget. A sequence longer than `budget` gets a batch to
/// itself.
pub fn pack(sequences: &[Sequence], budget: usize, first_budget: usize) -> Vec<Packed> {
    packs(sequences, budget, first_budget).collect()
}

/// Like [`pack`], with each batch packed on demand.
pub(super) fn packs(sequences: &[Sequence], budget: usize, first_budget: usize) -> impl Iterator<Item = Packed> {
    let inputs: Vec<&[u32]> = sequences.iter().map(input).collect();
    let mut order: Vec<usize> = (0..sequences.len()).filter(|&i| !inputs[i].is_empty()).collect();
    order.sort_by_key(|&i| inputs[i]);

    // The number of tokens that each sequence adds to those before it, if they are in one batch.
    let added = |position: usize| {
        let own = inputs[order[position]];
        let shared = if position == 0 { 0 } else { common_prefix(inputs[order[position - 1]], own) };
        own.len() - if shared < MIN_SHARED { 0 } else { shared }
    };
    // Batches of equal size, rather than full ones and a small rest.
    let total: usize = (0..order.len()).map(added).sum();
    let share = total.div_ceil(total.div_ceil(budget).max(1));
    let mut groups: Vec<Range<usize>> = Vec::new();
    let (mut begin, mut tokens) = (0, 0);
    for position in 0..order.len() {
        let shared = inputs[order[position]].len() - added(position);
        let limit = if groups.is_empty() && shared <= FIRST_LOSS.max(total / 100) { share.min(first_budget) } else { share };
        if position > begin && tokens + added(position) / 2 > limit {
            groups.push(begin..position);
            (begin, tokens) = (position, 0);
        }
        tokens += if position == begin { inputs[order[position]].len() } else { added(position) };
    }
    groups.push(begin..order.len());
    groups.into_iter().filter(|group| !group.is_empty()).map(move |group| pack_group(sequences, &inputs, &order[group]))
}

/// The tokens from which something supervised is predicted.
fn input(sequence: &Sequence) -> &[u32] {
    &sequence.ids[..sequence.targets_end().saturating_sub(1)]
}

fn common_prefix(a: &[u32], b: &[u32]) -> usize {
    a.iter().zip(b).take_while(|(a, b)| a == b).count()
}

/// Packs one batch; `members` are indices of sequences, sorted by their input tokens.
fn pack_group(sequences: &[Sequence], inputs: &[&[u32]], members: &[usize]) -> Packed {
    let mut forest = Forest { inputs, ids: Vec::new(), segments: Vec::new(), paths: HashMap::new() };
    forest.grow(members, 0, &[]);

    let mut packed = Packed {
        batch: Batch { ids: forest.ids, segments: forest.segments.into() },
        rows: Vec::new(),
        targets: Vec::new(),
        scatter: Vec::with_capacity(members.len()),
    };
    // The number of members that pass through each segment, by its first row.
    let mut shares: HashMap<usize, usize> = HashMap::new();
    for rows in members.iter().flat_map(|member| &forest.paths[member]) {
        *shares.entry(rows.start).or_default() += 1;
    }
    // Sequences that share a prefix may supervise the same token of it.
    let mut seen: HashMap<(u32, u32), u32> = HashMap::new();
    for &member in members {
        let sequence = &sequences[member];
        let mut targets = sequence.targets().filter(|(position, _)| *position > 0).peekable();
        let (mut indices, mut before) = (Vec::new(), 0);
        for rows in &forest.paths[&member] {
            let is_shared = shares[&rows.start] > 1;
            // A token is predicted from the row of the previous token.
            while let Some((position, target)) = targets.next_if(|(position, _)| *position <= before + rows.len()) {
                let row = (rows.start + position - 1 - before) as u32;
                let mut add = || {
                    packed.rows.push(row);
                    packed.targets.push(target);
                    packed.rows.len() as u32 - 1
                };
                indices.push(if is_shared { *seen.entry((row, target)).or_insert_with(add) } else { add() });
            }
            before += rows.len();
        }
        packed.scatter.push((member, indices));
    }
    packed
}

/// The batch under construction.
struct Forest<'a> {
    inputs: &'a [&'a [u32]],
    ids: Vec<u32>,
    segments: Vec<Segment>,
    /// The batch rows of each finished sequence's tokens, in order, by the index of the sequence.
    paths: HashMap<usize, Vec<Range<usize>>>,
}

impl Forest<'_> {
    /// Lays out the tokens from `depth` on of `members`, which are sorted and agree before `depth`, where the rows `context` hold their
    /// common beginning.
    fn grow(&mut self, members: &[usize], depth: usize, context: &[Range<usize>]) {
        let (Some(&first), Some(&last)) = (members.first(), members.last()) else { return };
        // They are sorted, so what the first and the last have in common, all have.
        let shared = common_prefix(self.inputs[first], self.inputs[last]);
        let all_end = self.inputs[last].len() == shared;
        if all_end || shared - depth >= MIN_SHARED {
            let mut path = context.to_vec();
            if shared > depth {
                let rows = self.ids.len()..self.ids.len() + shared - depth;
                self.ids.extend_from_slice(&self.inputs[first][depth..shared]);
                self.segments.push(Segment { tokens: rows.clone(), context: context.to_vec() });
                path.push(rows);
            }
            let ended = members.iter().take_while(|&&member| self.inputs[member].len() == shared).count();
            for &member in &members[..ended] {
                self.paths.insert(member, path.clone());
            }
            self.grow_apart(&members[ended..], shared, shared, &path);
        } else {
            // Too little in common: each continues from `depth`, together with those that share more.
            let ended = members.iter().take_while(|&&member| self.inputs[member].len() == shared).count();
            for member in &members[..ended] {
                self.grow(std::slice::from_ref(member), depth, context);
            }
            self.grow_apart(&members[ended..], shared, depth, context);
        }
    }

    /// Lays out the groups of `members` that have the same token at `branch`.
    fn grow_apart(&mut self, members: &[usize], branch: usize, depth: usize, context: &[Range<usize>]) {
        let inputs = self.inputs;
        for group in members.chunk_by(|&a, &b| inputs[a][branch] == inputs[b][branch]) {
            self.grow(group, depth, context);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Span;

    fn sequence(ids: &[u32], supervised_from: usize) -> Sequence {
        Sequence {
            row: 0,
            ids: ids.to_vec(),
            supervised: (0..ids.len()).map(|t| t >= supervised_from && t > 0).collect(),
            spans: vec![Span::default(); ids.len()],
        }
    }

    /// Checks that every supervised token is predicted from exactly the tokens before it, in order.
    fn check(sequences: &[Sequence], budget: usize) -> Vec<Packed> {
        let batches = pack(sequences, budget, 256);
        let mut found = 0;
        for packed in &batches {
            let mut pairs: Vec<_> = packed.rows.iter().zip(&packed.targets).collect();
            pairs.sort_unstable();
            assert!(pairs.windows(2).all(|pair| pair[0] != pair[1]), "each row and target stand once");
            assert_eq!(packed.batch.segments.iter().map(|s| s.tokens.len()).sum::<usize>(), packed.batch.ids.len());
            for (sequence, targets) in &packed.scatter {
                let sequence = &sequences[*sequence];
                let supervised: Vec<usize> = sequence.targets().map(|(t, _)| t).collect();
                assert_eq!(supervised.len(), targets.len());
                for (&t, &target) in supervised.iter().zip(targets) {
                    assert_eq!(packed.targets[target as usize], sequence.ids[t]);
                    let row = packed.rows[target as usize] as usize;
                    let segment = packed.batch.segments.iter().find(|s| s.tokens.contains(&row)).unwrap();
                    let seen = segment.context.iter().cloned().flatten().chain(segment.tokens.start..=row);
                    let seen: Vec<u32> = seen.map(|row| packed.batch.ids[row]).collect();
                    assert_eq!(seen, sequence.ids[..t]);
                    found += 1;
                }
            }
        }
        assert_eq!(found, sequences.iter().map(Sequence::n_targets).sum::<usize>());
        batches
    }

    #[test]
    fn a_common_prefix_is_computed_once() {
        let prefix: Vec<u32> = (0..20).collect();
        let with = |tail: &[u32]| sequence(&[&prefix, tail].concat(), 20);
        let batches = check(&[with(&[7, 8, 9]), with(&[5, 6]), with(&[7, 8, 4]), with(&[7, 8, 9])], 1000);
        assert_eq!(batches.len(), 1);
        // 20 shared tokens, then [7, 8] once, because three sequences are equal except for their last token, which is no input, then 5.
        assert_eq!(batches[0].batch.ids.len(), 20 + 2 + 1);
        // The two equal sequences and the third have the rows of 7 and 8 in common: (19, 7), (7, 8), (8, 9), (8, 4), (19, 5), (5, 6).
        assert_eq!(batches[0].rows.len(), 6);
    }

    #[test]
    fn a_tree_two_levels_deep() {
        let a: Vec<u32> = (0..10).collect();
        let b: Vec<u32> = (100..112).collect();
        let join = |parts: &[&[u32]]| sequence(&parts.concat(), 5);
        let sequences = [join(&[&a, &b, &[1, 2]]), join(&[&a, &b, &[3, 4]]), join(&[&a, &[50, 51]]), join(&[&a, &[77]])];
        let batches = check(&sequences, 1000);
        assert_eq!(batches[0].batch.ids.len(), 10 + 12 + 1 + 1 + 1);
        assert!(batches[0].batch.segments.iter().any(|s| s.context.len() == 2));
    }

    #[test]
    fn unsupervised_ends_and_rows_are_left_out() {
        let mut cut = sequence(&[1, 2, 3, 4, 5, 6], 2);
        cut.supervised[4..].fill(false);
        let none = sequence(&[1, 2, 3], 9);
        let batches = check(&[cut, none], 100);
        assert_eq!(batches[0].batch.ids, [1, 2, 3]);
        assert!(pack(&[], 100, 100).is_empty());
        assert!(pack(&[sequence(&[1], 0)], 100, 100).is_empty());
    }

    #[test]
    fn batches_keep_to_the_budget_or_hold_one_long_sequence() {
        let mut state = 1u32;
        let mut random = |n: u32| {
            state = state.wrapping_mul(1_664_525).wrapping_add(1_013_904_223);
            (state >> 16) % n
        };
        // Few distinct tokens, so that prefixes of every length occur.
        let sequences: Vec<Sequence> = (0..300)
            .map(|_| {
                let length = 2 + random(60) as usize;
                let ids: Vec<u32> =
                    (0..length).map(|t| if t < 12 { random(2) * u32::from(t % 4 == 0) } else { random(3) }).collect();
                sequence(&ids, 1 + random(5) as usize)
            })
            .chain([sequence(&(0..900).collect::<Vec<u32>>(), 3)])
            .collect();
        for budget in [1, 64, 500, 100_000] {
            for packed in check(&sequences, budget) {
                let tokens = packed.batch.ids.len();
                assert!(
                    packed.scatter.len() == 1 || tokens <= budget + budget / 2 + 62,
                    "{tokens} tokens for a budget of {budget}"
                );
            }
        }
    }
}
