//! Defines the common output of all containers.

use serde_json::Value;

use crate::error::Result;

/// One record before format detection.
pub(super) struct Raw {
    /// The line of its first byte, from 1; in tables the row number, from 1.
    pub line: u64,
    /// The record as JSON, or why it could not be read.
    pub value: Result<Value>,
}

pub(super) type RawRecords = Box<dyn Iterator<Item = Result<Raw>> + Send>;
