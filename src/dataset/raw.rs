//! What every container gives.

use serde_json::Value;

use crate::error::Result;

/// One record before its format is looked at.
pub(super) struct Raw {
    /// Line of its first byte, from 1; in tables the number of the row, from 1.
    pub line: u64,
    /// The record as JSON, or why it could not be read.
    pub value: Result<Value>,
}

pub(super) type RawRecords = Box<dyn Iterator<Item = Result<Raw>> + Send>;
