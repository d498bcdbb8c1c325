//! The learning rate of each step, as in Transformers' `optimization.py`: a linear warm-up, then constant, a line or half a cosine to 0.

use std::f64::consts::PI;
use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub(crate) enum Shape {
    #[default]
    Cosine,
    Linear,
    // Transformers' name of it.
    #[serde(alias = "constant_with_warmup")]
    Constant,
}

#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    pub shape: Shape,
    pub peak: f64,
    pub warmup: u64,
    pub total: u64,
}

impl Schedule {
    /// Of step `step`, counted from 0.
    pub(crate) fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let done = (step - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        self.peak
            * match self.shape {
                Shape::Constant => 1.0,
                Shape::Linear => (1.0 - done).max(0.0),
                Shape::Cosine => (0.5 * (1.0 + (PI * done.min(1.0)).cos())).max(0.0),
            }
    }
}

impl fmt::Display for Shape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Shape::Cosine => "cosine",
            Shape::Linear => "linear",
            Shape::Constant => "constant",
        })
    }
}

impl FromStr for Shape {
    type Err = Error;

    fn from_str(name: &str) -> Result<Shape> {
        [Shape::Cosine, Shape::Linear, Shape::Constant].into_iter().find(|shape| shape.to_string() == name).ok_or_else(|| {
            Error::usage(format!("there is no schedule called `{name}`")).cure("Known are cosine, linear, constant.")
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rates_by_hand() {
        let schedule = |shape| Schedule { shape, peak: 1.0, warmup: 2, total: 10 };
        let cosine = schedule(Shape::Cosine);
        assert_eq!([0, 1, 2].map(|step| cosine.rate(step)), [0.0, 0.5, 1.0]);
        assert!((cosine.rate(6) - 0.5).abs() < 1e-12 && cosine.rate(10) < 1e-12);
        assert_eq!([2, 4, 10].map(|step| schedule(Shape::Linear).rate(step)), [1.0, 0.75, 0.0]);
        assert_eq!(schedule(Shape::Constant).rate(9), 1.0);
        // No warm-up and one step.
        assert_eq!(Schedule { shape: Shape::Cosine, peak: 3.0, warmup: 0, total: 1 }.rate(0), 3.0);
    }
}
