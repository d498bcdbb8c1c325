//! Which keys each segment sees, in the units the fused kernels work in.
//!
//! Keys and values are packed in granules of 16 rows. Every segment starts a granule of its own, so that where a sequence
//! stands in the batch has no influence on how its sums are grouped.

use std::ops::Range;

use crate::kernels::Segment;

/// Rows of a granule: a multiple of every level's lanes.
pub const GRANULE: usize = 16;

pub struct Plan {
    /// The batch rows of each granule, at most [`GRANULE`].
    pub rows: Vec<Range<usize>>,
    /// For each segment what it sees, in order: its context, then itself.
    pub keys: Vec<Vec<Keys>>,
}

/// The part of one granule that a segment sees.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Keys {
    pub granule: usize,
    /// Of the granule's rows; the others belong to the same owner but not to this sequence, or to nobody.
    pub lanes: Range<usize>,
    /// The first lane's position in the sequence.
    pub position: usize,
}

impl Plan {
    /// The segments must have passed [`positions`](super::positions).
    pub fn new(segments: &[Segment]) -> Plan {
        let mut rows = Vec::new();
        let mut first_granules = Vec::with_capacity(segments.len());
        for segment in segments {
            first_granules.push(rows.len());
            let starts = segment.tokens.clone().step_by(GRANULE);
            rows.extend(starts.map(|start| start..segment.tokens.end.min(start + GRANULE)));
        }
        let keys = segments.iter().map(|segment| {
            let mut keys = Vec::new();
            let mut position = 0;
            for range in segment.context.iter().chain([&segment.tokens]) {
                // A range may span several segments and begin or end within one.
                let owners = segments.partition_point(|owner| owner.tokens.end <= range.start)..segments.len();
                for owner in owners.take_while(|&owner| segments[owner].tokens.start < range.end) {
                    let tokens = &segments[owner].tokens;
                    let (from, to) = (range.start.max(tokens.start) - tokens.start, range.end.min(tokens.end) - tokens.start);
                    for granule in from / GRANULE..to.div_ceil(GRANULE) {
                        let start = granule * GRANULE;
                        let lanes = from.max(start) - start..to.min(start + GRANULE) - start;
                        let n = lanes.len();
                        keys.push(Keys { granule: first_granules[owner] + granule, lanes, position });
                        position += n;
                    }
                }
            }
            keys
        });
        let keys = keys.collect();
        Plan { rows, keys }
    }
}

impl Keys {
    /// The lanes that a query at `position` sees through a window (`usize::MAX` for none).
    #[inline(always)]
    pub fn visible(&self, position: usize, window: usize) -> Range<usize> {
        let Range { start, end } = self.lanes;
        // Keys at `oldest ..= position` are seen.
        let oldest = (position + 1).saturating_sub(window);
        let first = start + oldest.saturating_sub(self.position).min(end - start);
        let last = start + (position + 1).saturating_sub(self.position).min(end - start);
        first.min(last)..last
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]
mod tests {
    use super::*;

    #[test]
    fn ranges_are_cut_at_granules_and_segments() {
        let segment = |tokens, context| Segment { tokens, context };
        let plan = Plan::new(&[
            segment(0..20, vec![]),
            segment(20..20, vec![]),
            segment(20..25, vec![0..20]),
            segment(25..26, vec![18..23]),
        ]);
        assert_eq!(plan.rows, [0..16, 16..20, 20..25, 25..26]);
        let keys = |granule, lanes, position| Keys { granule, lanes, position };
        assert_eq!(plan.keys[0], [keys(0, 0..16, 0), keys(1, 0..4, 16)]);
        assert_eq!(plan.keys[2], [keys(0, 0..16, 0), keys(1, 0..4, 16), keys(2, 0..5, 20)]);
        assert_eq!(plan.keys[3], [keys(1, 2..4, 0), keys(2, 0..3, 2), keys(3, 0..1, 5)]);
    }

    #[test]
    fn visibility_is_causal_and_windowed() {
        let keys = Keys { granule: 0, lanes: 2..10, position: 30 };
        assert_eq!(keys.visible(29, usize::MAX), 2..2);
        assert_eq!(keys.visible(30, usize::MAX), 2..3);
        assert_eq!(keys.visible(99, usize::MAX), 2..10);
        assert_eq!(keys.visible(35, 3), 5..8); // positions 33, 34, 35
        assert_eq!(keys.visible(38, 3), 8..10); // positions 36, 37; 38 is the next granule's
        assert!(keys.visible(99, 3).is_empty());
    }
}
