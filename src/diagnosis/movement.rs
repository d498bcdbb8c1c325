//! Compares two scorings of the same data set: how its tokens moved between the quadrants, and what the model learnt in between.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::kinds::ConflictKind;
use super::learnt::{Changes, Learnt};
use super::paired::{Pairing, Rest, each_pair};
use crate::error::Result;

/// The content of diff.json for two score runs. Quadrants are in the order of [`Quadrant::ALL`](crate::table::Quadrant::ALL).
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Movement {
    /// The run folder before, as the user named it.
    pub before: String,
    /// The run folder after.
    pub after: String,
    /// Tokens that both runs have.
    pub tokens: u64,
    /// Tokens that the run after does not have.
    pub tokens_only_before: u64,
    /// Tokens that the run before does not have.
    pub tokens_only_after: u64,
    /// `moved[i][j]`: tokens of quadrant i before and j after.
    pub moved: [[u64; 4]; 4],
    /// Mean changes over the tokens of each quadrant before.
    pub by_quadrant: [Change; 4],
    /// Mean changes over all tokens that both runs have.
    pub overall: Change,
    /// What the model learnt between the two runs.
    #[serde(default)]
    pub learnt: Learnt,
}

/// Mean changes in nats, after minus before; `None` where there is no token.
#[derive(Debug, Clone, Copy, PartialEq, Default, Serialize, Deserialize)]
pub struct Change {
    /// The number of tokens with finite numbers in both runs; the means are over these.
    pub tokens: u64,
    /// Mean change of ln p, nats.
    pub logprob: Option<f64>,
    /// Mean change of the entropy, nats.
    pub entropy: Option<f64>,
}

/// Compares two run folders; `kinds` are the kinds of the conflicts before, by row and position, if that run has any.
pub fn compare(
    before: &Path,
    after: &Path,
    pairing: &Pairing,
    kinds: Option<&HashMap<(u32, u32), ConflictKind>>,
) -> Result<Movement> {
    let (mut moved, mut sums) = ([[0; 4]; 4], [(0u64, 0.0, 0.0); 4]);
    let mut changes = Changes::new(kinds);
    let Rest { only_before, only_after, sources } = each_pair(before, after, pairing, |a, b| {
        moved[a.quadrant.index()][b.quadrant.index()] += 1;
        // A token with numbers that are not finite counts as moved, but is in no mean.
        let (logprob, entropy) = (f64::from(b.logprob) - f64::from(a.logprob), f64::from(b.entropy) - f64::from(a.entropy));
        if logprob.is_finite() && entropy.is_finite() {
            let sum = &mut sums[a.quadrant.index()];
            sum.0 += 1;
            sum.1 += logprob;
            sum.2 += entropy;
        }
        changes.add(a, b);
    })?;
    let total = sums.iter().fold((0, 0.0, 0.0), |sum, own| (sum.0 + own.0, sum.1 + own.1, sum.2 + own.2));
    let change = |(tokens, logprob, entropy): (u64, f64, f64)| {
        let mean = |sum: f64| (tokens > 0).then(|| sum / tokens as f64);
        Change { tokens, logprob: mean(logprob), entropy: mean(entropy) }
    };
    Ok(Movement {
        before: before.display().to_string(),
        after: after.display().to_string(),
        tokens: moved.iter().flatten().sum(),
        tokens_only_before: only_before,
        tokens_only_after: only_after,
        moved,
        by_quadrant: sums.map(change),
        overall: change(total),
        learnt: changes.finish(&sources, [before, after])?,
    })
}
