//! Determines which keys each segment sees, in the units of the fused kernels.
//!
//! Keys and values are packed in granules of 16 rows, which start at every sixteenth position of their sequence. A segment that continues
//! in the middle of a granule gets its own copy of that granule, including the rows before it. A sequence therefore looks the same to the
//! kernels, and its sums are grouped in the same way, whether its beginning is shared or not.

use std::ops::Range;

use crate::kernels::Segment;

/// The rows of a granule: a multiple of every level's lanes.
pub(super) const GRANULE: usize = 16;
/// The granules of a tile: 256 keys.
pub(super) const TILE: usize = 16;

pub(super) struct Plan {
    /// The batch rows of each granule, at most [`GRANULE`].
    pub rows: Vec<Vec<usize>>,
    /// For each segment the granules that it sees: the `i`-th starts at position `16 i`.
    pub seen: Vec<Vec<usize>>,
    /// For each batch row the granule of its own segment, in which it is at its position modulo 16; other granules may contain it, too.
    pub own: Vec<usize>,
}

impl Plan {
    /// The segments must have passed [`positions`](super::positions).
    pub(super) fn new(segments: &[Segment]) -> Plan {
        let mut plan = Plan { rows: Vec::new(), seen: Vec::with_capacity(segments.len()), own: Vec::new() };
        for segment in segments {
            let ranges = segment.context.iter().chain([&segment.tokens]);
            let sequence: Vec<usize> = ranges.flat_map(|range| range.clone()).collect();
            // A segment without tokens sees nothing.
            let cut = if segment.tokens.is_empty() { [].chunks(GRANULE) } else { sequence.chunks(GRANULE) };
            let seen: Vec<usize> = cut.map(|rows| plan.granule(rows)).collect();
            let before = sequence.len() - segment.tokens.len();
            plan.own.extend((before..sequence.len()).map(|position| seen[position / GRANULE]));
            plan.seen.push(seen);
        }
        plan
    }

    /// The granule of these rows: the existing granule of the last row's segment if it holds the same rows, otherwise a new one.
    fn granule(&mut self, rows: &[usize]) -> usize {
        let made = rows.last().and_then(|&last| self.own.get(last)).copied().filter(|&granule| self.rows[granule] == rows);
        made.unwrap_or_else(|| {
            self.rows.push(rows.to_vec());
            self.rows.len() - 1
        })
    }
}

/// Up to [`TILE`] neighbouring granules of a sequence.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Tile<'a> {
    /// The indices of the granules, in the order of their positions.
    pub granules: &'a [usize],
    /// The position of the tile's first key in the sequence.
    pub position: usize,
}

impl Tile<'_> {
    /// Whether a query at `position` sees the whole tile through a window.
    #[inline(always)]
    pub(super) fn is_seen(&self, position: usize, window: usize) -> bool {
        let end = self.position + self.granules.len() * GRANULE;
        end <= position + 1 && (position + 1).saturating_sub(window) <= self.position
    }

    /// The lanes of the `g`-th granule that a query at `position` sees through a window (`usize::MAX` for no window).
    #[inline(always)]
    pub(super) fn visible(&self, g: usize, position: usize, window: usize) -> std::ops::Range<usize> {
        let begin = self.position + g * GRANULE;
        // The visible keys are those at `oldest ..= position`.
        let oldest = (position + 1).saturating_sub(window);
        let end = (position + 1).saturating_sub(begin).min(GRANULE);
        oldest.saturating_sub(begin).min(end)..end
    }
}

/// The granules of a sequence with keys that some neighbouring queries see.
#[derive(Debug, Clone, Copy)]
pub(super) struct Reach {
    begin: usize,
    end: usize,
}

impl Reach {
    /// The granules that queries at the positions `first ..= last` see through a window of `window` positions.
    pub(super) fn new(first: usize, last: usize, window: usize) -> Reach {
        Reach { begin: (first + 1).saturating_sub(window) / GRANULE, end: last / GRANULE + 1 }
    }

    /// The indices of the tiles with something in reach. Tiles are at fixed positions of the sequence, because their boundaries affect
    /// the rounding of a row's sums.
    pub(super) fn tiles(self) -> Range<usize> {
        self.begin / TILE..self.end.div_ceil(TILE)
    }

    /// The part of a tile that is in reach.
    #[inline(always)]
    pub(super) fn tile(self, seen: &[usize], tile: usize) -> Tile<'_> {
        let begin = self.begin.max(tile * TILE);
        let end = self.end.min((tile + 1) * TILE).max(begin);
        Tile { granules: &seen[begin.min(seen.len())..end.min(seen.len())], position: begin * GRANULE }
    }
}

#[cfg(test)]
#[allow(clippy::single_range_in_vec_init, reason = "a context is a list of ranges")]
mod tests {
    use super::*;

    #[test]
    fn granules_are_cut_at_positions_and_shared_where_they_are_equal() {
        let segment = |tokens, context| Segment { tokens, context };
        let plan = Plan::new(&[
            segment(0..20, vec![]),
            segment(20..20, vec![0..20]),
            segment(20..35, vec![0..20]),
            segment(35..36, vec![0..20, 20..34]),
            // The context is no prefix of another sequence, so all granules are its own.
            segment(36..37, vec![18..23]),
        ]);
        let rows = |ranges: &[std::ops::Range<usize>]| ranges.iter().cloned().flatten().collect::<Vec<usize>>();
        let granules =
            [rows(&[0..16]), rows(&[16..20]), rows(&[16..32]), rows(&[32..35]), rows(&[32..34, 35..36]), rows(&[18..23, 36..37])];
        assert_eq!(plan.rows, granules);
        assert_eq!(plan.seen, [vec![0, 1], vec![], vec![0, 2, 3], vec![0, 2, 4], vec![5]]);
        assert_eq!(plan.own, [vec![0; 16], vec![1; 4], vec![2; 12], vec![3; 3], vec![4, 5]].concat());
    }

    #[test]
    fn visibility_is_causal_and_windowed() {
        let tile = Tile { granules: &[7, 8], position: 32 };
        assert_eq!(tile.visible(0, 31, usize::MAX), 0..0);
        assert_eq!(tile.visible(0, 32, usize::MAX), 0..1);
        assert_eq!(tile.visible(0, 99, usize::MAX), 0..16);
        assert_eq!(tile.visible(1, 50, usize::MAX), 0..3);
        assert_eq!(tile.visible(0, 37, 3), 3..6); // positions 35, 36, 37
        assert_eq!(tile.visible(0, 48, 3), 14..16); // positions 46, 47; 48 is the next granule's
        assert_eq!(tile.visible(1, 48, 3), 0..1);
        assert!(tile.visible(0, 99, 3).is_empty());
    }

    #[test]
    fn tiles_end_at_the_same_positions_from_wherever_one_looks() {
        let seen: Vec<usize> = (0..40).collect();
        let cut = |first, last, window| -> Vec<Tile> {
            let reach = Reach::new(first, last, window);
            reach.tiles().map(|tile| reach.tile(&seen, tile)).collect()
        };
        let tile = |granules: std::ops::Range<usize>| Tile { position: granules.start * GRANULE, granules: &seen[granules] };
        assert_eq!(cut(0, 0, usize::MAX), [tile(0..1)]);
        assert_eq!(cut(255, 255, usize::MAX), [tile(0..16)]);
        assert_eq!(cut(255, 256, usize::MAX), [tile(0..16), tile(16..17)]);
        assert_eq!(cut(600, 601, 400), [tile(12..16), tile(16..32), tile(32..38)]);
        assert_eq!(cut(600, 601, 1), [tile(37..38)]);
        assert!(
            (0..9)
                .filter(|&tile| !(0..3).contains(&tile))
                .all(|tile| Reach::new(600, 601, 400).tile(&seen, tile).granules.is_empty())
        );
    }
}
