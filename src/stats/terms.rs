//! A metric as a ratio of sums over items, `f(sum numerator / sum denominator)`: for accuracy the denominators are 1, for bits
//! per byte they are the numbers of bytes, and for perplexity `f` is exp. Standard error, interval and paired difference all use
//! this form.

use serde::{Deserialize, Serialize};

use crate::json::{finite_ends, null_is_nan};

/// A number with its uncertainty, which is absent for fewer than two items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The metric itself; null in a file if it is infinite or NaN, such as a perplexity that overflows.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// The standard error, in the unit of the metric; absent if there are too few items.
    pub stderr: Option<f64>,
    /// The 95 % interval. It has width 0 only for a difference that is 0 in every cluster. It is also absent if all items of an
    /// unbounded metric are alike, since they do not show how much others would vary.
    #[serde(default, deserialize_with = "finite_ends")]
    pub ci95: Option<[f64; 2]>,
    /// The method of `ci95`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

/// The method of a 95 % interval.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Interval {
    /// Wilson's score interval of a share.
    Wilson,
    /// Tango's score interval of the difference of two paired shares.
    Tango,
    /// Percentile bootstrap over items.
    Bootstrap,
    /// Percentile bootstrap over groups of items, drawn whole.
    GroupBootstrap,
    /// The half widths of several tasks' intervals, added in squares.
    Combined,
    /// Student's t over clusters, on the scale on which the interval is symmetric.
    StudentT,
}

/// The contribution of one item to a metric.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Term {
    /// Added to the sum of the numerators, such as 1 for a right answer.
    pub numerator: f64,
    /// Added to the sum of the denominators, such as 1 or the number of bytes.
    pub denominator: f64,
}

/// The function applied to the ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Link {
    Identity,
    Exp,
}

impl Estimate {
    /// A value without standard error and interval, for which there are too few items.
    pub(crate) fn bare(value: f64) -> Estimate {
        Estimate { value, stderr: None, ci95: None, interval: None }
    }
}

impl Interval {
    /// The name of the method in prose.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Interval::Wilson => "Wilson's",
            Interval::Tango => "Tango's",
            Interval::Bootstrap => "a bootstrap over items",
            Interval::GroupBootstrap => "a bootstrap over groups of items",
            Interval::Combined => "the tasks' own, combined",
            Interval::StudentT => "Student's t over rows",
        }
    }
}

impl Term {
    /// Is the item either right or wrong, with nothing in between?
    pub(crate) fn is_right_or_wrong(&self) -> bool {
        self.denominator == 1.0 && [0.0, 1.0].contains(&self.numerator)
    }

    /// Is it a share of a whole number of things?
    pub(crate) fn is_share(&self) -> bool {
        self.denominator >= 1.0 && self.denominator.fract() == 0.0 && (0.0..=self.denominator).contains(&self.numerator)
    }
}

impl std::ops::AddAssign for Term {
    fn add_assign(&mut self, other: Term) {
        self.numerator += other.numerator;
        self.denominator += other.denominator;
    }
}

impl Link {
    pub(super) fn apply(self, ratio: f64) -> f64 {
        match self {
            Link::Identity => ratio,
            Link::Exp => ratio.exp(),
        }
    }

    /// The derivative of the link at `ratio`.
    pub(super) fn slope(self, ratio: f64) -> f64 {
        match self {
            Link::Identity => 1.0,
            Link::Exp => ratio.exp(),
        }
    }
}

/// Kish's effective number (1965), `(sum w)^2 / sum w^2`: so many equally weighted items would give a mean of the same variance.
/// 0 if there are none.
pub(crate) fn effective_number(sum: f64, sum_of_squares: f64) -> f64 {
    share(sum * sum, sum_of_squares)
}

/// `part / whole`, or 0 if `whole` is 0.
pub(crate) fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}
