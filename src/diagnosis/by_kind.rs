//! Sums the conflicts by kind for summary.json, from the classification by `kinds`.

use serde::{Deserialize, Serialize};

use super::context::Spot;
use super::kinds::ConflictKind;

/// The conflicts by kind, and rows with the same question. conflicts.parquet and pairs.parquet list them one by one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Kinds {
    /// The kind with the most conflicts first.
    pub kinds: Vec<KindSums>,
    /// Conflicts of one kind with the same target and the same first choice, the largest surplus first.
    pub groups: Vec<ConflictGroup>,
    /// Rows whose last question is the same as that of an earlier row, or nearly the same.
    pub near_duplicates: u64,
    /// Rows that answer the same question differently from another row, where both answers are supervised.
    pub contradictions: u64,
    /// How the conflicts change if another row of their kind is shown first; absent unless requested.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub in_context: Option<Prompted>,
}

/// Conflicts scored again with another row of their kind shown first. in_context.parquet lists them one by one.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Prompted {
    /// Rows with conflicts that were scored again.
    pub rows: u64,
    /// Rows with conflicts that were not sampled or could not be scored again.
    pub rows_left_out: u64,
    /// The kind with the largest share of vanished conflicts first.
    pub kinds: Vec<PromptedKind>,
    /// The share of the other tokens of these rows that became conflicts: the effect of any additional context.
    pub new_conflicts_share: f64,
    /// Its 95 % interval.
    pub new_conflicts_share_ci95: Option<[f64; 2]>,
}

/// The conflicts of one kind, scored again with another row of that kind shown first.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct PromptedKind {
    /// The kind.
    pub kind: ConflictKind,
    /// Its conflicts in the rows that were scored again.
    pub tokens: u64,
    /// Those that are no longer conflicts.
    pub vanished: u64,
    /// Their share of `tokens`.
    pub vanished_share: f64,
    /// Its 95 % interval over the rows; absent if all or none vanished.
    pub vanished_share_ci95: Option<[f64; 2]>,
    /// Mean of ln p with the other row minus ln p alone, nats.
    pub change: f64,
}

/// The conflicts of one kind. Shares are of the loss and gradient of all supervised tokens.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct KindSums {
    /// The kind.
    pub kind: ConflictKind,
    /// Its conflicts.
    pub tokens: u64,
    /// The rows that contain them.
    pub rows: u64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    /// Their share of all loss.
    pub loss_share: f64,
    /// Their share of all gradient.
    pub grad_share: f64,
}

/// Conflicts of one kind with the same target and the same first choice of the model. Shares as in [`KindSums`].
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct ConflictGroup {
    /// Its number in conflicts.parquet.
    pub group: u32,
    /// The kind of all of them.
    pub kind: ConflictKind,
    /// The text of the target.
    pub token: String,
    /// The text of the model's first choice.
    pub top: String,
    /// The number of conflicts.
    pub count: u64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    /// Their share of all loss.
    pub loss_share: f64,
    /// Their share of all gradient.
    pub grad_share: f64,
    /// The conflict with the largest surplus.
    pub example: Spot,
    /// The evidence for the kind.
    pub evidence: String,
}
