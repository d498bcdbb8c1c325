//! Describes what an export changed in which row, and why: the lines of changes.jsonl.

use serde::Serialize;

use crate::jobs::decisions::Mask;
use crate::table::Row;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case", tag = "action")]
pub(super) enum What {
    Drop,
    Mask {
        turn: u16,
        #[serde(skip_serializing_if = "Option::is_none")]
        begin: Option<u32>,
        #[serde(skip_serializing_if = "Option::is_none")]
        end: Option<u32>,
    },
    Weight,
    /// The record could not be read; it is exported only if it can be copied.
    Unreadable,
}

/// A change. Conflicts and their mass (surplus in nats) are those of the row, or for a mask, of the tokens that it takes out of the loss.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub(super) struct Change {
    pub row: u32,
    pub path: String,
    pub line: u64,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub id: Option<String>,
    #[serde(flatten)]
    pub what: What,
    /// The option that caused it, or `decision`.
    pub why: String,
    pub conflicts: u32,
    pub mass: f64,
    /// The supervised tokens that the change affects; a mask, those that no mask before it in the row has taken out of the loss.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub tokens: Option<u32>,
    /// Their -ln p, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub loss: Option<f64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub weight: Option<f64>,
    /// Loss of the uncertain tokens per conflict, nats.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub teaches: Option<f64>,
    /// The masked text.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub text: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

impl Change {
    pub(super) fn new(row: &Row, what: What, why: String) -> Change {
        Change {
            row: row.row,
            path: row.path.clone(),
            line: row.line,
            id: row.id.clone(),
            what,
            why,
            conflicts: 0,
            mass: 0.0,
            tokens: None,
            loss: None,
            weight: None,
            teaches: None,
            text: None,
            note: None,
        }
    }
}

impl What {
    pub(super) fn of(mask: Mask) -> What {
        What::Mask { turn: mask.turn, begin: mask.span.map(|(begin, _)| begin), end: mask.span.map(|(_, end)| end) }
    }
}
