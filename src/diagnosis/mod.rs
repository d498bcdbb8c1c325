//! Computes the diagnosis from the token table: the numbers that `maps` draws and `report` writes.
//!
//! ```text
//! quadrants.rs      thresholds, and the quadrant of a token; by_quadrant.rs holds one value per quadrant
//! gate/             the losses and their token weights; population.rs computes what a gate needs to know about the other tokens
//! gate_preview.rs   what each gate would do to the data
//! summary.rs        summary.json: frequent tokens and conflicts; breakdown.rs computes shares of tokens, loss and gradient
//! context.rs        the sentence around a token; turn_text.rs reads reasoning and tool calls, which lie outside a turn's content, from the tokens
//! kinds/            likely causes of a conflict; by_kind.rs sums per kind; near_duplicates.rs finds rows with nearly the same question,
//!                   exchanges.rs hashes answers and their prompts
//! ranking.rs        rankings of tokens by how likely they are conflicts; planted.rs measures the rankings on planted conflicts
//! paired.rs         pairs the tokens of two runs; movement.rs counts how they moved between the quadrants
//! learnt.rs         what training between two runs taught, what it wasted and what it made the model forget
//! landscape.rs      the distance between two data sets in probability and entropy
//! shown.rs          the rows shown to a person, with all numbers of their tokens
//! fidelity.rs       how well the top-K entropy approximates the full entropy
//! bounded.rs        scores from a server: which numbers are exact
//! self_check.rs     statistical checks on text sampled from the model itself
//! ```

pub mod bounded;
pub mod breakdown;
pub mod by_kind;
pub mod by_quadrant;
pub mod context;
pub mod exchanges;
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

/// Everything that a run finds out: the content of summary.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    /// The numbers of summary.json.
    #[serde(flatten)]
    pub summary: summary::Summary,
    /// The kinds of the conflicts; absent where the data were not available.
    #[serde(default)]
    pub kinds: Option<by_kind::Kinds>,
    /// How well the rankings find planted conflicts, where the data contain any.
    pub planted: Option<planted::RankingQuality>,
    /// What is exact of scores from a server; absent where this program ran the model.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bounded: Option<bounded::Bounded>,
    /// The self-check, where the data are answers sampled from a model.
    #[serde(default)]
    pub on_policy: Option<self_check::OnPolicy>,
    /// Top-K entropy against the full entropy on a sample, K = 1, 2, ..
    pub topk_fidelity: Vec<FidelityAtK>,
}
