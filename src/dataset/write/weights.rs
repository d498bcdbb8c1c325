//! Normalises the weights of a turn for comparison, and converts its parts to character offsets.

use serde_json::{Value, json};

use super::super::example::{Turn, WeightedPart};

/// Returns the weight of the turn, which applies to its end token, and runs of equal weight in its content as `(begin, end, weight)` in bytes.
pub(super) fn segments(turn: &Turn) -> (f32, Vec<(usize, usize, f32)>) {
    let mut cuts: Vec<usize> = turn.parts.iter().flat_map(|part| [part.begin, part.end]).chain([0, turn.content.len()]).collect();
    cuts.sort_unstable();
    cuts.dedup();
    let weight_at = |at: usize| {
        let weights = turn.parts.iter().filter(|part| (part.begin..part.end).contains(&at)).map(|part| part.weight);
        weights.reduce(f32::min).unwrap_or(turn.weight)
    };
    let mut segments: Vec<(usize, usize, f32)> = Vec::new();
    for ends in cuts.windows(2) {
        let (begin, end, weight) = (ends[0], ends[1], weight_at(ends[0]));
        match segments.last_mut() {
            Some(last) if last.2 == weight => last.1 = end,
            _ => segments.push((begin, end, weight)),
        }
    }
    (turn.weight, segments)
}

/// Returns axolotl's `train_detail` for the whole content, if it needs one; offsets count characters and include both ends.
pub(super) fn details(turn: &Turn) -> Option<Value> {
    let (_, segments) = segments(turn);
    if segments.iter().all(|(.., weight)| *weight == turn.weight) {
        return None;
    }
    let chars = |to: usize| turn.content.get(..to).map_or(0, |text| text.chars().count());
    let detail = |(begin, end, weight): (usize, usize, f32)| json!({"begin_offset": chars(begin), "end_offset": chars(end).saturating_sub(1), "train": weight > 0.0});
    Some(segments.into_iter().map(detail).collect())
}

/// Multiplies all weights of the turn by a factor.
pub(crate) fn scale(turn: &mut Turn, factor: f32) {
    turn.weight *= factor;
    turn.parts.iter_mut().for_each(|WeightedPart { weight, .. }| *weight *= factor);
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Role;

    #[test]
    fn the_smaller_of_two_weights_counts_and_equal_neighbours_are_one() {
        let mut turn = Turn::plain(Role::Assistant, "né, five.");
        let part = |begin, end, weight| WeightedPart { begin, end, weight };
        turn.parts = vec![part(0, 5, 0.0), part(3, 8, 0.5), part(8, 10, 1.0)];
        assert_eq!(segments(&turn), (1.0, vec![(0, 5, 0.0), (5, 8, 0.5), (8, 10, 1.0)]));
        turn.parts = vec![part(0, 3, 0.0), part(3, 5, 0.0)];
        assert_eq!(segments(&turn).1, [(0, 5, 0.0), (5, 10, 1.0)]);
        let expected =
            json!([{"begin_offset": 0, "end_offset": 3, "train": false}, {"begin_offset": 4, "end_offset": 8, "train": true}]);
        assert_eq!(details(&turn), Some(expected));
        turn.parts = vec![part(0, 3, 1.0)];
        assert_eq!(details(&turn), None);
        scale(&mut turn, 0.25);
        assert_eq!(segments(&turn), (0.25, vec![(0, 10, 0.25)]));
    }
}
