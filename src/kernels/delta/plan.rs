//! The order in which the rule processes the tokens of a batch.

use std::collections::HashMap;

use crate::kernels::Segment;

/// Tokens that are processed one after the other.
#[derive(Debug, PartialEq, Eq)]
pub(in crate::kernels) struct Run {
    /// The preceding rows that the convolution reads; none at the beginning of a sequence.
    pub before: Vec<usize>,
    /// The rows of the batch, in the order in which they are processed.
    pub rows: Vec<usize>,
    /// The number of leading rows whose outputs another run writes: a context that is not a whole path of segments is processed again.
    pub again: usize,
    /// The run of its tree from whose final states this run continues; `None` at the beginning of a sequence.
    pub parent: Option<usize>,
    /// The number of runs that continue from its final states.
    pub heirs: usize,
}

/// Runs that depend on each other, each after its parent.
pub(in crate::kernels) type Tree = Vec<Run>;

/// Plans the runs. A segment continues from the final states of the last segment of its context, so a common prefix is processed once.
/// `kernel` is the number of tokens that the convolution reads. At most `most_parents` runs store their states for others; a segment that
/// would continue from another run processes its context again.
pub(in crate::kernels) fn trees(segments: &[Segment], kernel: usize, most_parents: usize) -> Vec<Tree> {
    let mut trees: Vec<Tree> = Vec::new();
    let mut n_parents = 0;
    // The segments by first row, with the tree and the run of each.
    let mut known: HashMap<usize, (&Segment, usize, usize)> = HashMap::new();
    for segment in segments.iter().filter(|segment| !segment.tokens.is_empty()) {
        let context: Vec<usize> = segment.context.iter().flat_map(|range| range.clone()).collect();
        let parent = segment.context.split_last().and_then(|(last, before)| {
            let (found, tree, run) = known.get(&last.start)?;
            (found.tokens == *last && found.context == before).then_some((*tree, *run))
        });
        let parent = parent.filter(|&(tree, run)| trees[tree][run].heirs > 0 || n_parents < most_parents);
        let own = segment.tokens.clone();
        let place = match parent {
            Some((tree, parent)) => {
                let before = context[context.len().saturating_sub(kernel - 1)..].to_vec();
                n_parents += usize::from(trees[tree][parent].heirs == 0);
                trees[tree][parent].heirs += 1;
                trees[tree].push(Run { before, rows: own.collect(), again: 0, parent: Some(parent), heirs: 0 });
                tree
            }
            None => {
                let again = context.len();
                let rows = context.into_iter().chain(own).collect();
                trees.push(vec![Run { before: Vec::new(), rows, again, parent: None, heirs: 0 }]);
                trees.len() - 1
            }
        };
        known.insert(segment.tokens.start, (segment, place, trees[place].len() - 1));
    }
    trees
}

/// The rows of a segment including its context.
pub(super) struct Sequence {
    /// Rows of the batch: the context's, then the segment's own.
    pub rows: Vec<usize>,
    /// The number of the context's rows.
    pub before: usize,
}

/// The segments one by one, for the backward pass.
pub(super) fn sequences(segments: &[Segment]) -> Vec<Sequence> {
    let of = |segment: &Segment| {
        let mut rows: Vec<usize> = segment.context.iter().flat_map(|range| range.clone()).collect();
        let before = rows.len();
        rows.extend(segment.tokens.clone());
        Sequence { rows, before }
    };
    segments.iter().filter(|segment| !segment.tokens.is_empty()).map(of).collect()
}

#[cfg(test)]
mod tests {
    #![allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]

    use super::*;

    fn run(before: &[usize], rows: impl Iterator<Item = usize>, again: usize, parent: Option<usize>, heirs: usize) -> Run {
        Run { before: before.to_vec(), rows: rows.collect(), again, parent, heirs }
    }

    #[test]
    fn a_path_of_segments_goes_through_once() {
        let segment = |tokens, context: &[std::ops::Range<usize>]| Segment { tokens, context: context.to_vec() };
        let segments = [
            segment(0..5, &[]),
            segment(5..7, &[0..5]),
            segment(7..8, &[0..5, 5..7]),
            segment(8..9, &[]),
            segment(9..9, &[8..9]),
            segment(9..12, &[0..5]),
            // A context that is part of a segment, and a path that does not start at the beginning.
            segment(12..13, &[0..4]),
            segment(13..14, &[5..7]),
        ];
        let expected = vec![
            vec![
                run(&[], 0..5, 0, None, 2),
                run(&[2, 3, 4], 5..7, 0, Some(0), 1),
                run(&[4, 5, 6], 7..8, 0, Some(1), 0),
                run(&[2, 3, 4], 9..12, 0, Some(0), 0),
            ],
            vec![run(&[], 8..9, 0, None, 0)],
            vec![run(&[], (0..4).chain([12]), 4, None, 0)],
            vec![run(&[], [5, 6, 13].into_iter(), 2, None, 0)],
        ];
        assert_eq!(trees(&segments, 4, usize::MAX), expected);
        assert!(trees(&segments, 1, 9).iter().flatten().all(|run| run.before.is_empty()));
        // If the states of only one run are stored, the second prefix is processed again.
        let found = trees(&segments[..3], 4, 1);
        let again = vec![run(&[], 0..8, 7, None, 0)];
        assert_eq!(found, [vec![run(&[], 0..5, 0, None, 1), run(&[2, 3, 4], 5..7, 0, Some(0), 0)], again]);
    }
}
