//! The conflicts by kind, as summary.json has them: sums of what `kinds` tells of each.

use serde::{Deserialize, Serialize};

use super::context::Spot;
use super::kinds::ConflictKind;

/// The conflicts by kind, and rows that ask the same. The tables conflicts.parquet and pairs.parquet have all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kinds {
    /// Most conflicts first.
    pub kinds: Vec<KindSums>,
    /// Conflicts of one kind with the same target and the same choice, most surplus first.
    pub groups: Vec<ConflictGroup>,
    /// Rows whose last question is that of an earlier one, or nearly.
    pub near_duplicates: u64,
    /// Rows one of whose questions is that of another one and answered otherwise, where both answers are learnt.
    pub contradictions: u64,
    /// What became of the conflicts with another row of their kind shown first, where that was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_context: Option<Prompted>,
}

/// Conflicts with another row of their kind shown first. in_context.parquet has all of them.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompted {
    /// Rows with conflicts that were scored again.
    pub rows: u64,
    /// Rows with conflicts that could not be scored again, or were not drawn.
    pub rows_left_out: u64,
    /// The largest share of vanished ones first.
    pub kinds: Vec<PromptedKind>,
    /// The share of the other tokens of these rows that became conflicts: what any other context does.
    pub new_conflicts_share: f64,
    /// Its 95 % interval.
    pub new_conflicts_share_ci95: Option<[f64; 2]>,
}

/// The conflicts of one kind, with another row of that kind shown first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptedKind {
    /// The kind.
    pub kind: ConflictKind,
    /// Its conflicts in the rows that were scored again.
    pub tokens: u64,
    /// Those that are no conflicts then.
    pub vanished: u64,
    /// Their share of `tokens`.
    pub vanished_share: f64,
    /// Its 95 % interval over the rows; absent where all vanished or none.
    pub vanished_share_ci95: Option<[f64; 2]>,
    /// Mean of ln p then less ln p alone, nats.
    pub change: f64,
}

/// Shares are of the loss and of the gradient of all supervised tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindSums {
    /// The kind.
    pub kind: ConflictKind,
    /// Its conflicts.
    pub tokens: u64,
    /// The rows that they stand in.
    pub rows: u64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    /// Their share of all loss.
    pub loss_share: f64,
    /// Their share of all gradient.
    pub grad_share: f64,
}

/// Conflicts of one kind with the same target and the same choice of the model. Shares as in [`KindSums`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConflictGroup {
    /// Its number in conflicts.parquet.
    pub group: u32,
    /// The kind of all of them.
    pub kind: ConflictKind,
    /// The text of the target.
    pub token: String,
    /// The text of the model's choice.
    pub top: String,
    /// How many conflicts they are.
    pub count: u64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    /// Their share of all loss.
    pub loss_share: f64,
    /// Their share of all gradient.
    pub grad_share: f64,
    /// The conflict with the largest surplus.
    pub example: Spot,
    /// What speaks for its kind.
    pub evidence: String,
}
