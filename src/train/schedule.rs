//! The learning rate of each step, as in Transformers' `optimization.py`: a linear warm-up, then constant, linear or half a
//! cosine to 0.

use std::f64::consts::PI;

use crate::error::{Error, Result};
use crate::format::count;
use crate::spelling::named;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(crate) enum Shape {
    #[default]
    Cosine,
    Linear,
    /// Constant from the first step on: in Transformers it has no warm-up, whatever the options say.
    Constant,
    // Transformers' name for it.
    ConstantWithWarmup,
}

named! {
    pub(crate) Shape, "a schedule":
    Cosine = "cosine",
    Linear = "linear",
    Constant = "constant",
    ConstantWithWarmup = "constant-with-warmup" | "constant_with_warmup",
}

/// The learning rate of each step.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Schedule {
    /// How the rate decays after the warm-up.
    pub shape: Shape,
    /// The highest rate.
    pub peak: f64,
    /// The number of warm-up steps.
    pub warmup: u64,
    /// The number of steps in total.
    pub total: u64,
}

impl Schedule {
    /// Returns an error if the rate is 0 at every step.
    pub(crate) fn check(&self) -> Result<()> {
        let Schedule { total, warmup, .. } = *self;
        // The rate rises linearly to the peak and decays from there.
        if [0, 1, warmup].into_iter().any(|step| step < total && self.rate(step) > 0.0) {
            return Ok(());
        }
        let steps = count(total, "step");
        Err(match self.peak == 0.0 {
            true => Error::usage(format!("--lr 0: none of {steps} would change the model")).cure("Give a learning rate above 0."),
            false => Error::usage(format!("the learning rate is 0 at all {steps}: the warm-up of {warmup} starts at 0"))
                .cure("Give --warmup-steps 0, or train for more steps (--epochs, --max-steps, a smaller --batch-size)."),
        })
    }

    /// The learning rate of step `step`, counted from 0.
    pub(crate) fn rate(&self, step: u64) -> f64 {
        if step < self.warmup {
            return self.peak * step as f64 / self.warmup.max(1) as f64;
        }
        let done = (step - self.warmup) as f64 / (self.total.saturating_sub(self.warmup)).max(1) as f64;
        self.peak
            * match self.shape {
                Shape::Constant | Shape::ConstantWithWarmup => 1.0,
                Shape::Linear => (1.0 - done).max(0.0),
                Shape::Cosine => (0.5 * (1.0 + (PI * done.min(1.0)).cos())).max(0.0),
            }
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
        // A warm-up over all steps, the first of which has rate 0, trains from the second step on.
        let of = |peak, warmup, total| Schedule { shape: Shape::Linear, peak, warmup, total }.check();
        assert!(of(1.0, 0, 1).is_ok() && of(1.0, 2, 2).is_ok());
        let error = of(1.0, 1, 1).unwrap_err();
        assert!(error.exit_code() == 2 && error.to_string().contains("--warmup-steps 0"), "{error}");
        assert!(of(0.0, 0, 9).unwrap_err().to_string().contains("--lr 0"));
        // No warm-up and one step.
        assert_eq!(Schedule { shape: Shape::Cosine, peak: 3.0, warmup: 0, total: 1 }.rate(0), 3.0);
    }
}
