//! The sample of tokens for which the top-K entropy is compared with the entropy over the whole vocabulary, for every K.

use std::collections::HashMap;

use super::batch::{Packed, TOKEN_BUDGET, pack};
use crate::tokens::Sequence;

/// Some supervised tokens of a data set; none by default.
#[derive(Debug, Clone, Default)]
pub struct Sample {
    pub(super) k_max: usize,
    /// The indices of a sequence's supervised tokens in the sample, in ascending order, by [`Sequence::row`].
    tokens: HashMap<u32, Vec<usize>>,
}

/// The entropies at one token, in nats.
#[derive(Debug, Clone, PartialEq)]
pub struct Curve {
    /// The entropy of the softmax over the `K` largest logits: `by_k[K - 1]` for `K = 1 ..= k_max`.
    pub by_k: Vec<f32>,
    /// The entropy over the whole vocabulary.
    pub entropy: f32,
}

impl Sample {
    /// Up to `limit` supervised tokens of the sequences: the first ones in the order in which these sequences are packed on their own, with
    /// tokens that several of them share counted once. The result depends on the arguments only.
    pub fn new(sequences: &[Sequence], k_max: usize, limit: usize) -> Sample {
        let (mut tokens, mut missing) = (HashMap::<u32, Vec<usize>>::new(), limit);
        for packed in pack(sequences, TOKEN_BUDGET, TOKEN_BUDGET) {
            let taken = packed.rows.len().min(missing);
            missing -= taken;
            let mut owned = vec![false; taken];
            for (sequence, targets) in &packed.scatter {
                let own = (0..targets.len()).filter(|&i| {
                    let free = owned.get_mut(targets[i] as usize).filter(|owned| !**owned);
                    free.map(|owned| *owned = true).is_some()
                });
                let own: Vec<usize> = own.collect();
                if !own.is_empty() {
                    tokens.insert(sequences[*sequence].row, own);
                }
            }
        }
        Sample { k_max, tokens }
    }

    /// The number of tokens in the sample.
    pub fn len(&self) -> usize {
        self.tokens.values().map(Vec::len).sum()
    }

    /// Whether the sample is empty.
    pub fn is_empty(&self) -> bool {
        self.tokens.is_empty()
    }

    /// The targets of a batch of these sequences that are in the sample.
    pub(super) fn of(&self, sequences: &[Sequence], packed: &Packed) -> Vec<u32> {
        let of_sequence = |(sequence, targets): &(usize, Vec<u32>)| {
            let tokens = self.tokens.get(&sequences[*sequence].row).map(Vec::as_slice).unwrap_or_default();
            tokens.iter().map(|&token| targets[token]).collect::<Vec<u32>>()
        };
        packed.scatter.iter().flat_map(of_sequence).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Span;

    fn sequence(row: u32, ids: &[u32], supervised_from: usize) -> Sequence {
        let supervised = (0..ids.len()).map(|t| t >= supervised_from).collect();
        Sequence { row, ids: ids.to_vec(), supervised, spans: vec![Span::default(); ids.len()] }
    }

    /// The context that each target of a batch is predicted from, and the target.
    fn texts(packed: &Packed, targets: &[u32]) -> Vec<(Vec<u32>, u32)> {
        let text = |&target: &u32| {
            let row = packed.rows[target as usize] as usize;
            let segment = packed.batch.segments.iter().find(|segment| segment.tokens.contains(&row)).unwrap();
            let seen = segment.context.iter().cloned().flatten().chain(segment.tokens.start..=row);
            (seen.map(|row| packed.batch.ids[row]).collect(), packed.targets[target as usize])
        };
        targets.iter().map(text).collect()
    }

    /// The tokens of the sample are found wherever their sequences are packed, and are the first rows when these are packed on their own.
    #[test]
    fn a_sample_is_the_same_tokens_in_any_batch() {
        let prefix: Vec<u32> = (0..20).collect();
        let sequences: Vec<Sequence> = (0..12)
            .map(|i| sequence(100 + i, &[&prefix[..], &[50 + i % 5, 60 + i % 4, 70, 71, 72 + i / 6]].concat(), 18))
            .collect();
        for limit in [1, 2, 7, 20, 1000] {
            let sample = Sample::new(&sequences, 64, limit);
            let own = &pack(&sequences, TOKEN_BUDGET, TOKEN_BUDGET)[0];
            assert_eq!(sample.len(), own.rows.len().min(limit));
            let mut expected = texts(own, &(0..sample.len() as u32).collect::<Vec<u32>>());
            expected.sort();
            for budget in [30, 60, 2048] {
                let batches = pack(&sequences, budget, budget);
                let mut found: Vec<_> = batches.iter().flat_map(|packed| texts(packed, &sample.of(&sequences, packed))).collect();
                found.sort();
                assert_eq!(found, expected, "limit {limit}, budget {budget}");
            }
        }
        assert!(Sample::new(&[], 64, 512).is_empty());
    }
}
