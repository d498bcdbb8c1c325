//! The token table -> what it says about the data: numbers, for `maps` and `report` to show.
//!
//! ```text
//! quadrants.rs      thresholds, and the quadrant of a token; by_quadrant.rs holds a value for each
//! gate/             the losses, and what each weighs a token by; population.rs what gates ask about the other tokens
//! gate_preview.rs   what each gate would do with the data
//! summary.rs        summary.json: frequent tokens, conflicts, and breakdown.rs shares of tokens, loss and gradient
//! context.rs        a token in the sentence that it stands in
//! turn_text.rs      what of a turn stands beside its content: reasoning and tool calls, read from the tokens
//! kinds.rs          why a conflict may be one; by_kind.rs sums of each; near_duplicates.rs rows that ask nearly the same
//! ranking.rs        tokens by how likely they are to be conflicts; planted.rs measures the rankings on known ones
//! paired.rs         the tokens of two scorings, paired; movement.rs how they moved between the quadrants
//! learnt.rs         what was learnt between two scorings, what was wasted, what was known and is lost
//! landscape.rs      how far two data sets lie apart in probability and entropy
//! shown.rs          the rows that a person looks at, with all numbers of their tokens
//! fidelity.rs       the top-K entropy as a stand-in for the full one
//! bounded.rs        scores that came through a server: what of them is exact
//! self_check.rs     what must hold on text that the model itself has drawn
//! ```

pub mod bounded;
pub mod breakdown;
pub mod by_kind;
pub mod by_quadrant;
pub mod context;
pub mod fidelity;
pub mod gate;
pub mod gate_preview;
pub mod kinds;
pub mod landscape;
pub mod learnt;
pub mod movement;
pub mod near_duplicates;
pub mod paired;
pub mod planted;
pub mod population;
pub mod quadrants;
pub mod ranking;
pub mod self_check;
pub(crate) mod shown;
pub mod summary;
pub mod turn_text;

use serde::{Deserialize, Serialize};

use fidelity::FidelityAtK;

/// Everything a run found out: summary.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The numbers of summary.json.
    #[serde(flatten)]
    pub summary: summary::Summary,
    /// The kinds of the conflicts; absent where the data were not at hand.
    #[serde(default)]
    pub kinds: Option<by_kind::Kinds>,
    /// How well the rankings find planted conflicts, where the data carry any.
    pub planted: Option<planted::RankingQuality>,
    /// What is exact; absent where this program has run the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded: Option<bounded::Bounded>,
    /// Where the data are answers that a model has drawn.
    #[serde(default)]
    pub on_policy: Option<self_check::OnPolicy>,
    /// Top-K entropy against the full entropy on a sample, K = 1, 2, ..
    pub topk_fidelity: Vec<FidelityAtK>,
}
