//! Estimates a ratio of sums over clusters that were sampled whole, such as rows of tokens, with its uncertainty, without storing
//! the clusters.
//!
//! One pass over a table of any size collects the sums from which the linearised error follows; the interval is Student's t on
//! the scale on which it is nearly symmetric.

use super::bootstrap::{bootstrap_interval, stretch};
use super::shares::{student_t_975, wilson};
use super::terms::{Estimate, Interval, Term};

/// Sums over clusters that were sampled whole, which suffice for a ratio and its uncertainty.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ClusterSums {
    clusters: u64,
    numerator: f64,
    denominator: f64,
    /// Sums of the squared numerators, of the products and of the squared denominators.
    aa: f64,
    ab: f64,
    bb: f64,
}

/// What is collected of the row being read, where the tokens of a row are contiguous.
#[derive(Default)]
pub(crate) struct PerRow<T> {
    row: Option<u32>,
    pub sums: T,
}

impl<T: Default> PerRow<T> {
    /// Goes on to a token of `row`. If another row was being read, this ends it and returns what was collected of it.
    pub(crate) fn go_to(&mut self, row: u32) -> Option<T> {
        if self.row == Some(row) {
            return None;
        }
        let ended = self.end();
        self.row = Some(row);
        ended
    }

    /// Ends the row being read, if there is one.
    pub(crate) fn end(&mut self) -> Option<T> {
        self.row.take().map(|_| std::mem::take(&mut self.sums))
    }
}

/// The scale on which an interval is symmetric. Its ends are transformed back, so that they stay within the range of the value.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    /// Any number.
    Plain,
    /// Positive numbers: ratios of two quantities.
    Log,
    /// Shares and probabilities, strictly between 0 and 1.
    LogOdds,
}

impl ClusterSums {
    pub(crate) fn add(&mut self, cluster: Term) {
        let Term { numerator: a, denominator: b } = cluster;
        self.clusters += 1;
        self.numerator += a;
        self.denominator += b;
        self.aa += a * a;
        self.ab += a * b;
        self.bb += b * b;
    }

    /// The number of clusters.
    pub(crate) fn clusters(&self) -> u64 {
        self.clusters
    }

    pub(crate) fn extend(&mut self, clusters: impl IntoIterator<Item = Term>) {
        clusters.into_iter().for_each(|cluster| self.add(cluster));
    }

    /// `sum numerator / sum denominator` with its interval; without uncertainty for fewer than two clusters.
    pub(crate) fn estimate(&self, scale: Scale) -> Estimate {
        let value = self.numerator / self.denominator;
        if self.clusters < 2 {
            return Estimate::bare(value);
        }
        let n = self.clusters as f64;
        // The sum of (a - ratio b)^2. If all clusters are alike, rounding leaves a small remainder, positive or negative, instead
        // of zero.
        let squares = self.aa - 2.0 * value * self.ab + value * value * self.bb;
        let squares = if squares > ROUNDING * (self.aa + value * value * self.bb) { squares } else { 0.0 };
        let stderr = (squares * n / (n - 1.0)).sqrt() / self.denominator.abs();
        let ci95 = cluster_interval(value, stderr, self.clusters, scale);
        let interval = if stderr == 0.0 && scale == Scale::LogOdds { Interval::Wilson } else { Interval::StudentT };
        Estimate { value, stderr: Some(stderr), ci95, interval: ci95.map(|_| interval) }
    }

    /// The interval alone. It is also absent for a share of 0 or 1, since then no cluster shows how the share varies.
    pub(crate) fn ci95(&self, scale: Scale) -> Option<[f64; 2]> {
        self.estimate(scale).ci95
    }
}

/// Sums of squares that differ by less than this fraction of them count as equal but for rounding.
const ROUNDING: f64 = 1e-12;

/// The 95 % interval of `value` with standard error `stderr` over `clusters` clusters. Absent where it is not defined, for
/// example where all clusters are alike and so do not show how much others would vary; for a share, Wilson's interval then counts
/// each cluster as one item.
pub(crate) fn cluster_interval(value: f64, stderr: f64, clusters: u64, scale: Scale) -> Option<[f64; 2]> {
    // The error on the transformed scale is the error of the value times the slope of the transformation.
    let (at, slope) = match scale {
        // All clusters are zero, for example when a model is compared with itself.
        Scale::Log | Scale::Plain if value == 0.0 && stderr == 0.0 && clusters > 1 => return Some([0.0; 2]),
        Scale::Plain => (value, 1.0),
        Scale::Log => (value.ln(), 1.0 / value),
        Scale::LogOdds => ((value / (1.0 - value)).ln(), 1.0 / (value * (1.0 - value))),
    };
    if clusters < 2 || !at.is_finite() || !stderr.is_finite() {
        return None;
    }
    if stderr == 0.0 {
        return (scale == Scale::LogOdds).then(|| wilson(value * clusters as f64, clusters as f64));
    }
    let reach = student_t_975(clusters - 1) * stderr * slope;
    let ends = [at - reach, at + reach].map(|end| match scale {
        Scale::Plain => end,
        Scale::Log => end.exp(),
        Scale::LogOdds => 1.0 / (1.0 + (-end).exp()),
    });
    // The upper end of a ratio may overflow.
    Some(ends).filter(|ends| ends.iter().all(|end| end.is_finite()))
}

/// Above this number of clusters, the linearised error gives the same result as a bootstrap in less time.
const MANY: usize = 2000;

/// `sum numerator / sum denominator` of clusters, one term each, for any value range. The interval is a percentile bootstrap over
/// the clusters, widened for few clusters as for groups of items ([`super::items`]); above [`MANY`] clusters it follows from the
/// linearised error.
pub(crate) fn over_clusters(terms: &[Term]) -> Estimate {
    let mut sums = ClusterSums::default();
    sums.extend(terms.iter().copied());
    let linear = sums.estimate(Scale::Plain);
    if terms.len() < 2 || terms.len() > MANY || linear.stderr == Some(0.0) {
        return linear;
    }
    let ends = bootstrap_interval(terms.len(), |draw| {
        let mut total = Term::default();
        draw.iter().for_each(|&idx| total += terms[idx as usize]);
        total.numerator / total.denominator
    });
    let stretch = stretch(terms.len());
    let ci95 = ends.map(|end| linear.value + stretch * (end - linear.value));
    Estimate { ci95: Some(ci95), interval: Some(Interval::GroupBootstrap), ..linear }
}
