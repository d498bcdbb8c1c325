//! The conflicts by kind, as summary.json has them: sums of what `kinds` tells of each.

use serde::{Deserialize, Serialize};

use super::context::Spot;
use super::kinds::Kind;

/// The conflicts by kind, and rows whose prompts are nearly the same. The tables conflicts.parquet and pairs.parquet have all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kinds {
    /// Most conflicts first.
    pub kinds: Vec<KindSums>,
    /// Conflicts of one kind with the same target and the same choice, most surplus first.
    pub groups: Vec<ConflictGroup>,
    /// Pairs of rows with nearly the same prompt, and those of them that ask the same and are answered otherwise.
    pub near_duplicates: u64,
    pub contradictions: u64,
    /// What became of the conflicts with another row of their kind shown first, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_context: Option<Prompted>,
}

/// Conflicts with another row of their kind shown first. in_context.parquet has all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompted {
    /// Rows with conflicts that were scored again, and those that could not be or were not drawn.
    pub rows: u64,
    pub rows_left_out: u64,
    /// The largest share of vanished ones first.
    pub kinds: Vec<PromptedKind>,
    /// Of the other tokens of these rows, the share that became conflicts: what any other context does.
    pub new_conflicts_share: f64,
    pub new_conflicts_share_ci95: Option<[f64; 2]>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptedKind {
    pub kind: Kind,
    pub tokens: u64,
    /// Those that are no conflicts then.
    pub vanished: u64,
    pub vanished_share: f64,
    /// Over the rows; absent where all vanished or none.
    pub vanished_share_ci95: Option<[f64; 2]>,
    /// Mean of ln p then less ln p alone, nats.
    pub change: f64,
}

/// Shares are of the loss and of the gradient of all supervised tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindSums {
    pub kind: Kind,
    pub tokens: u64,
    pub rows: u64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    pub loss_share: f64,
    pub grad_share: f64,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConflictGroup {
    /// Its number in conflicts.parquet.
    pub group: u32,
    pub kind: Kind,
    pub token: String,
    pub top: String,
    pub count: u64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    pub loss_share: f64,
    pub grad_share: f64,
    /// The conflict with the largest surplus, and what speaks for its kind.
    pub example: Spot,
    pub evidence: String,
}
