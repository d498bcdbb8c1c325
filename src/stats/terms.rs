//! A metric as a ratio of sums over items, `f(sum numerator / sum denominator)`: accuracy has denominators of 1, bits per byte those of
//! the bytes, and `f` is exp for a perplexity. One form serves standard error, interval and paired difference.

use serde::{Deserialize, Serialize};

use crate::json::{finite_ends, null_is_nan};

/// A number with its uncertainty; without it where there are fewer than two items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    /// The metric itself; null in a file where it is infinite or not a number, as a perplexity beyond the range of the numbers.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// Its standard error, in the unit of the metric; absent where there is too little to tell.
    pub stderr: Option<f64>,
    /// Of width 0 only for a difference where nothing differs at all. Absent, too, where all items of a metric without bounds are alike: nothing then tells how far others would be.
    #[serde(default, deserialize_with = "finite_ends")]
    pub ci95: Option<[f64; 2]>,
    /// How `ci95` was found.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub interval: Option<Interval>,
}

/// How a 95 % interval was found.
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
    /// The intervals of several tasks: their half widths, added in squares.
    Combined,
    /// Student's t over clusters, on the scale on which the interval is symmetric.
    StudentT,
}

/// What one item adds to a metric.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Term {
    /// What the item adds to the sum above the line, such as 1 for a right answer.
    pub numerator: f64,
    /// What it adds to the sum below the line, such as 1 or its number of bytes.
    pub denominator: f64,
}

/// What is done with the ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Link {
    Identity,
    Exp,
}

impl Estimate {
    /// A value without standard error and interval: there is too little to say how sure it is.
    pub(crate) fn bare(value: f64) -> Estimate {
        Estimate { value, stderr: None, ci95: None, interval: None }
    }
}

impl Interval {
    /// The name of the interval in sentences.
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
    /// Is the item right or wrong, and nothing between?
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

/// As many equally weighted things would give a mean of the same variance: `(sum w)^2 / sum w^2` (Kish, 1965), and 0 of nothing.
pub(crate) fn effective_number(sum: f64, sum_of_squares: f64) -> f64 {
    share(sum * sum, sum_of_squares)
}

/// `part / whole`, and 0 of nothing.
pub(crate) fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}
