//! Describes scores that came from a server: how tight the bounds are on what it does not report, and how many tokens have a certain quadrant.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use super::quadrants::Resolved;
use crate::engine::bounds::{Bounds, Range};
use crate::error::Result;
use crate::format::{percent, thousands};
use crate::table::{Quadrant, certainty, for_each_bounded, has_bounds};

/// How much of such scores is exact, and how tight the bounds on the rest are.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Bounded {
    /// How many of the most probable tokens the server reports per position.
    pub top_logprobs: usize,
    /// All supervised tokens.
    pub tokens: u64,
    /// Tokens whose target is among those that the server reports: their `tail` and `rank` are exact.
    pub tail_exact: u64,
    /// Tokens whose quadrant is the same everywhere within the bounds, with the thresholds taken as given.
    pub certain: u64,
    /// The least and the greatest possible number of confident conflicts.
    pub conflicts: [u64; 2],
    /// The width of the bounds on the entropy, nats.
    pub entropy: Width,
    /// The width of the bounds on the tail probability.
    pub tail: Width,
    /// The width of the bounds on the variance of -ln p, nats squared.
    pub varentropy: Width,
    /// The width of the bounds on the gradient norm.
    pub grad: Width,
}

/// The distance between a lower and an upper bound, in the unit of the column.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Width {
    /// The mean over all tokens.
    pub mean: f64,
    /// The largest.
    pub max: f64,
}

impl Width {
    fn add(&mut self, range: Range) {
        let width = f64::from(range.width());
        self.mean += width;
        self.max = self.max.max(width);
    }
}

impl Bounded {
    /// Returns `None` where this program ran the model itself, so that nothing is bounded.
    pub fn of(tables: &[PathBuf], thresholds: &Resolved, top_logprobs: usize) -> Result<Option<Bounded>> {
        for table in tables {
            if !has_bounds(table)? {
                return Ok(None);
            }
        }
        let none = Width::default();
        let mut found = Bounded {
            top_logprobs,
            tokens: 0,
            tail_exact: 0,
            certain: 0,
            conflicts: [0, 0],
            entropy: none,
            tail: none,
            varentropy: none,
            grad: none,
        };
        for_each_bounded(tables, |token| {
            let (is_certain, may_be_conflict) =
                certainty(token.logprob, &token.bounds, |logprob, entropy, tail| thresholds.label(logprob, entropy, tail));
            found.tokens += 1;
            found.tail_exact += u64::from(token.rank as usize <= top_logprobs);
            found.certain += u64::from(is_certain);
            found.conflicts[0] += u64::from(is_certain && token.quadrant == Quadrant::ConfidentConflict);
            found.conflicts[1] += u64::from(may_be_conflict);
            let Bounds { entropy, tail, varentropy, grad } = token.bounds;
            found.entropy.add(entropy);
            found.tail.add(tail);
            found.varentropy.add(varentropy);
            found.grad.add(grad);
        })?;
        let n = found.tokens.max(1) as f64;
        for width in [&mut found.entropy, &mut found.tail, &mut found.varentropy, &mut found.grad] {
            width.mean /= n;
        }
        Ok(Some(found))
    }

    fn share(&self, n: u64) -> String {
        percent(n as f64 / self.tokens.max(1) as f64)
    }

    /// One line for the terminal and for captions.
    pub fn line(&self) -> String {
        format!(
            "through a server, top {}: H within {:.3} nat on average, quadrant certain for {} of the tokens",
            self.top_logprobs,
            self.entropy.mean,
            self.share(self.certain)
        )
    }

    /// The paragraph of the report.
    pub fn sentences(&self) -> String {
        format!(
            "A server reported the {} most probable tokens of each position. ln p, the model's first choice and the gate of EAFT (`entropy_topk`) are \
             exact, and so are `tail` and `rank` for {} of the tokens, whose target is among them. Entropy, varentropy and gradient lie within \
             bounds that are {:.4} nat, {:.3} nat² and {:.5} apart on average; the quadrants, the figures and the \
             gates that use the full entropy are computed from their midpoints. The quadrant of {} of the tokens is certain; there are at least {} \
             and at most {} confident conflicts. Requesting more of the most probable tokens (`--top-logprobs`) narrows the bounds.",
            self.top_logprobs,
            self.share(self.tail_exact),
            self.entropy.mean,
            self.varentropy.mean,
            self.grad.mean,
            self.share(self.certain),
            thousands(self.conflicts[0]),
            thousands(self.conflicts[1])
        )
    }
}
