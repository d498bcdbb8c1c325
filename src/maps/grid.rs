//! Histograms with fixed bins in one and two dimensions, filled in one streaming pass and merged across threads.
//!
//! NaN is ignored and counted; a value out of range goes into the edge bin and is counted as clipped, so that nothing disappears
//! silently. Weights are f64, so that a million small weights add up exactly to the last digit shown.

/// `count` bins of equal width over `from ..= to`.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Bins {
    /// The lower edge of the first bin.
    pub from: f64,
    /// The upper edge of the last bin.
    pub to: f64,
    /// The number of bins.
    pub count: usize,
}

impl Bins {
    /// The bin of `value`, and whether it was clipped; `None` for NaN. The upper end belongs to the last bin.
    pub fn index(&self, value: f64) -> Option<(usize, bool)> {
        if value.is_nan() {
            return None;
        }
        let clipped = value < self.from || value > self.to;
        // A float-to-int cast saturates: -inf becomes bin 0 and +inf the last bin.
        let idx = ((value - self.from) / (self.to - self.from) * self.count as f64) as usize;
        Some((idx.min(self.count - 1), clipped))
    }

    /// The lower edge of bin `idx`; `edge(count)` is the upper end of the range.
    pub fn edge(&self, idx: usize) -> f64 {
        self.from + (self.to - self.from) * idx as f64 / self.count as f64
    }
}

/// How many points were added, clipped and ignored.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Tally {
    /// Points in the histogram, including clipped ones.
    pub added: u64,
    /// Points out of range, which are counted in the edge bins.
    pub clipped: u64,
    /// Points with a NaN, which are not in the histogram.
    pub ignored: u64,
}

impl Tally {
    pub(super) fn merge(&mut self, other: &Tally) {
        self.added += other.added;
        self.clipped += other.clipped;
        self.ignored += other.ignored;
    }
}

/// A weighted 2-D histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Grid {
    /// Bins of the first coordinate.
    pub x: Bins,
    /// Bins of the second coordinate.
    pub y: Bins,
    /// Row-major: `cells[y_idx * x.count + x_idx]`.
    pub cells: Vec<f64>,
    /// How many points were added, clipped and ignored.
    pub tally: Tally,
}

impl Grid {
    /// An empty histogram.
    pub fn new(x: Bins, y: Bins) -> Self {
        Self { x, y, cells: vec![0.0; x.count * y.count], tally: Tally::default() }
    }

    /// Adds `weight` to the cell of a point.
    pub fn add(&mut self, x: f64, y: f64, weight: f64) {
        let (Some((x_idx, x_clipped)), Some((y_idx, y_clipped)), false) = (self.x.index(x), self.y.index(y), weight.is_nan())
        else {
            self.tally.ignored += 1;
            return;
        };
        self.cells[y_idx * self.x.count + x_idx] += weight;
        self.tally.added += 1;
        self.tally.clipped += u64::from(x_clipped || y_clipped);
    }

    /// Adds the counts of a grid over the same bins.
    pub fn merge(&mut self, other: &Grid) {
        assert_eq!((self.x, self.y), (other.x, other.y), "only grids over the same bins can be merged");
        self.cells.iter_mut().zip(&other.cells).for_each(|(cell, more)| *cell += more);
        self.tally.merge(&other.tally);
    }

    /// The sum of the weights in a cell.
    pub fn get(&self, x_idx: usize, y_idx: usize) -> f64 {
        self.cells[y_idx * self.x.count + x_idx]
    }

    /// The sum of all weights.
    pub fn total(&self) -> f64 {
        self.cells.iter().sum()
    }

    /// Sums over y: one number per x bin.
    pub fn x_marginal(&self) -> Vec<f64> {
        let mut sums = vec![0.0; self.x.count];
        for row in self.cells.chunks_exact(self.x.count) {
            sums.iter_mut().zip(row).for_each(|(sum, cell)| *sum += cell);
        }
        sums
    }

    /// Sums over x: one number per y bin.
    pub fn y_marginal(&self) -> Vec<f64> {
        self.cells.chunks_exact(self.x.count).map(|row| row.iter().sum()).collect()
    }
}

/// A weighted 1-D histogram.
#[derive(Debug, Clone, PartialEq)]
pub struct Histogram {
    /// The bins of the values.
    pub bins: Bins,
    /// The sum of the weights in each bin.
    pub cells: Vec<f64>,
    /// How many values were added, clipped and ignored.
    pub tally: Tally,
}

impl Histogram {
    /// An empty histogram.
    pub fn new(bins: Bins) -> Self {
        Self { bins, cells: vec![0.0; bins.count], tally: Tally::default() }
    }

    /// Adds `weight` to the bin of a value.
    pub fn add(&mut self, value: f64, weight: f64) {
        let (Some((idx, clipped)), false) = (self.bins.index(value), weight.is_nan()) else {
            self.tally.ignored += 1;
            return;
        };
        self.cells[idx] += weight;
        self.tally.added += 1;
        self.tally.clipped += u64::from(clipped);
    }

    /// Adds the counts of a histogram over the same bins.
    pub fn merge(&mut self, other: &Histogram) {
        assert_eq!(self.bins, other.bins, "only histograms over the same bins can be merged");
        self.cells.iter_mut().zip(&other.cells).for_each(|(cell, more)| *cell += more);
        self.tally.merge(&other.tally);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const UNIT: Bins = Bins { from: 0.0, to: 1.0, count: 4 };

    #[test]
    fn a_value_goes_into_the_bin_whose_lower_edge_it_reaches() {
        let check = |value, expected| assert_eq!(UNIT.index(value), expected, "{value}");
        check(0.0, Some((0, false)));
        check(0.2499, Some((0, false)));
        check(0.25, Some((1, false)));
        check(0.999, Some((3, false)));
        check(1.0, Some((3, false)));
        check(1.001, Some((3, true)));
        check(-0.1, Some((0, true)));
        check(f64::INFINITY, Some((3, true)));
        check(f64::NEG_INFINITY, Some((0, true)));
        check(f64::NAN, None);
        assert_eq!([UNIT.edge(0), UNIT.edge(1), UNIT.edge(4)], [0.0, 0.25, 1.0]);
    }

    #[test]
    fn a_grid_sums_weights_counts_the_unplaceable_and_merges() {
        let mut grid = Grid::new(UNIT, Bins { from: 0.0, to: 10.0, count: 2 });
        grid.add(0.1, 1.0, 2.0);
        grid.add(0.1, 4.9, 3.0);
        grid.add(0.9, 99.0, 5.0);
        grid.add(f64::NAN, 1.0, 7.0);
        grid.add(0.5, 1.0, f64::NAN);
        assert_eq!(grid.cells, [5.0, 0.0, 0.0, 0.0, 0.0, 0.0, 0.0, 5.0]);
        assert_eq!(grid.tally, Tally { added: 3, clipped: 1, ignored: 2 });
        assert_eq!(grid.x_marginal(), [5.0, 0.0, 0.0, 5.0]);
        assert_eq!(grid.y_marginal(), [5.0, 5.0]);
        let copy = grid.clone();
        grid.merge(&copy);
        assert_eq!(grid.get(3, 1), 10.0);
        assert_eq!(grid.total(), 20.0);
        assert_eq!(grid.tally, Tally { added: 6, clipped: 2, ignored: 4 });
    }

    #[test]
    fn a_histogram_does_the_same_in_one_dimension() {
        let mut histogram = Histogram::new(UNIT);
        [0.0, 0.3, 0.3, 2.0, f64::NAN].into_iter().for_each(|value| histogram.add(value, 1.0));
        let copy = histogram.clone();
        histogram.merge(&copy);
        assert_eq!(histogram.cells, [2.0, 4.0, 0.0, 2.0]);
        assert_eq!(histogram.tally, Tally { added: 8, clipped: 2, ignored: 2 });
    }
}
