//! Finished numbers -> terminal, Markdown, JSON, HTML.

pub mod diff;
mod document;
pub mod eval;
pub mod gates;
pub mod markdown;
pub mod planted;
pub mod ranking;
pub mod summary;
pub mod terminal;

use serde::{Deserialize, Serialize};

use crate::maps::fidelity::FidelityAtK;

/// Everything a run found out: summary.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Report {
    #[serde(flatten)]
    pub summary: summary::Summary,
    /// How well the rankings find planted conflicts, where the data carry any.
    pub planted: Option<planted::RankingQuality>,
    /// Top-K entropy against the full entropy on a sample, K = 1, 2, ..
    pub topk_fidelity: Vec<FidelityAtK>,
}

/// A token as one line of text in quotes.
fn quoted(token: &str) -> String {
    format!("`{}`", token.replace('\n', "⏎").replace('\t', "⇥").replace(' ', "␣").replace('`', "ˋ"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_for_people() {
        assert_eq!(quoted(" a`\n"), "`␣aˋ⏎`");
    }
}
