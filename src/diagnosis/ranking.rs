//! Ranks tokens by how likely they are to be conflicts.
//!
//! A quadrant is a yes or a no, but a person who reads the data wants the worst tokens first. `planted` measures the rankings.

use serde::{Deserialize, Serialize};

use super::quadrants::Resolved;
use crate::table::{Quadrant, TokenChunk};

/// A score of tokens that is larger where a conflict is more likely.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ranking {
    /// -ln p - H: the nats beyond what the model expected.
    Surplus,
    /// -ln p - H in standard deviations of -ln p: divided by sqrt(varentropy).
    SurplusOverSd,
    /// The tail probability, smallest first.
    Tail,
    /// -ln p
    Loss,
    /// -H: lowest entropy first.
    LowEntropy,
    /// Conflicts first, then uncertain, hesitant and confident tokens.
    Quadrant,
}

impl Ranking {
    /// The ranking that best finds the planted conflicts of `data/demo.jsonl`: AUROC 0.988 for the first token of a plant (tail 0.982, surplus 0.978,
    /// quadrant 0.960, -ln p 0.954, low entropy 0.821), precision at 1 % 44 % (39, 29, 14, 23, 3).
    pub const DEFAULT: Ranking = Ranking::SurplusOverSd;

    /// All rankings, in the order in which tables list them.
    pub const ALL: [Ranking; 6] =
        [Ranking::Surplus, Ranking::SurplusOverSd, Ranking::Tail, Ranking::Loss, Ranking::LowEntropy, Ranking::Quadrant];

    /// The name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Ranking::Surplus => "surplus",
            Ranking::SurplusOverSd => "surplus / sd",
            Ranking::Tail => "tail",
            Ranking::Loss => "-ln p",
            Ranking::LowEntropy => "low entropy",
            Ranking::Quadrant => "quadrant",
        }
    }

    pub(super) fn score(self, chunk: &TokenChunk, i: usize, thresholds: &Resolved) -> f32 {
        let (logprob, entropy) = (chunk.logprob[i], chunk.entropy[i]);
        match self {
            Ranking::Surplus => -logprob - entropy,
            // A model that is almost certain has a varentropy of 0 up to rounding; the lower limit exceeds that rounding.
            Ranking::SurplusOverSd => (-logprob - entropy) / chunk.varentropy[i].max(SMALLEST_VARENTROPY).sqrt(),
            Ranking::Tail => -chunk.tail[i],
            Ranking::Loss => -logprob,
            Ranking::LowEntropy => -entropy,
            Ranking::Quadrant => match thresholds.label(logprob, entropy, chunk.tail[i]) {
                Quadrant::ConfidentConflict => 3.0,
                Quadrant::Uncertain => 2.0,
                Quadrant::Hesitant => 1.0,
                Quadrant::Confident => 0.0,
            },
        }
    }
}

const SMALLEST_VARENTROPY: f32 = 1e-6;
