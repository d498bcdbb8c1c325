//! Decides which model of a run is kept, and when the run stops early, by the loss on held-out rows.
//!
//! An evaluation is the lowest if its loss is below that of all before it: of equal losses, the first counts, and a loss that is
//! not finite never does. Evaluations follow updates; the base model is not a candidate.

use serde::{Deserialize, Serialize};

use crate::spelling::named;

/// The model that a run saves as its result.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Keep {
    /// The model after the last step.
    Last,
    /// The model with the lowest held-out loss.
    Best,
}

named! { pub(crate) Keep, "the model to keep": Last = "last", Best = "best" }

/// The lowest held-out loss so far.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Lowest {
    /// The number of steps after which it was reached; absent until an evaluation gives a finite loss.
    pub step: Option<u64>,
    /// The loss: mean -ln p in nats per token.
    pub cross_entropy: Option<f64>,
    /// The number of evaluations since then, none of which was lower.
    pub worse_since: u64,
}

impl Lowest {
    /// Records the evaluation after `step` steps, and returns whether it is the lowest.
    pub(crate) fn look(&mut self, step: u64, cross_entropy: f64) -> bool {
        let is_lowest = match self.cross_entropy {
            Some(lowest) => cross_entropy < lowest,
            None => cross_entropy.is_finite(),
        };
        match is_lowest {
            true => *self = Lowest { step: Some(step), cross_entropy: Some(cross_entropy), worse_since: 0 },
            false => self.worse_since += 1,
        }
        is_lowest
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_of_equal_losses_is_the_lowest_and_what_is_not_finite_never_is() {
        let mut lowest = Lowest::default();
        let looks = [(1, f64::INFINITY), (2, 3.0), (3, 2.0), (4, 2.0), (5, f64::NAN), (6, 2.5), (7, 1.5), (8, f64::INFINITY)];
        let found: Vec<(bool, Option<u64>, u64)> =
            looks.iter().map(|&(step, loss)| (lowest.look(step, loss), lowest.step, lowest.worse_since)).collect();
        assert_eq!(
            found,
            [
                (false, None, 1),
                (true, Some(2), 0),
                (true, Some(3), 0),
                (false, Some(3), 1),
                (false, Some(3), 2),
                (false, Some(3), 3),
                (true, Some(7), 0),
                (false, Some(7), 1),
            ]
        );
        assert_eq!(lowest.cross_entropy, Some(1.5));
    }
}
