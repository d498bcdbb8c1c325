//! Converts the parts of a turn to character offsets, and changes its weights.

use serde_json::{Value, json};

use super::super::example::{Turn, WeightedPart};

/// Returns axolotl's `train_detail` for the whole content, if it needs one; offsets count characters and include both ends.
pub(super) fn details(turn: &Turn) -> Option<Value> {
    let (_, segments) = turn.segments();
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
    fn parts_become_characters_and_weights_are_scaled() {
        let mut turn = Turn::plain(Role::Assistant, "né, five.");
        let part = |begin, end, weight| WeightedPart { begin, end, weight };
        turn.parts = vec![part(0, 3, 0.0), part(3, 5, 0.0)];
        let expected =
            json!([{"begin_offset": 0, "end_offset": 3, "train": false}, {"begin_offset": 4, "end_offset": 8, "train": true}]);
        assert_eq!(details(&turn), Some(expected));
        turn.parts = vec![part(0, 3, 1.0)];
        assert_eq!(details(&turn), None);
        scale(&mut turn, 0.25);
        assert_eq!(turn.segments(), (0.25, vec![(0, 10, 0.25)]));
    }
}
