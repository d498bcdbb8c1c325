//! An answer that was drawn, as the journal of a rollout or an evaluation keeps it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::engine::generate::{Ended, text_of};
use crate::tokens::Tokenizer;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The record that is answered, or the item.
    pub row: u32,
    pub draw: u32,
    pub ids: Vec<u32>,
    pub ended: Ended,
}

/// By row and draw.
pub(crate) type Entries = HashMap<(u32, u32), Entry>;

pub(crate) fn entries(entries: Vec<Entry>) -> Entries {
    entries.into_iter().map(|entry| ((entry.row, entry.draw), entry)).collect()
}

impl Entry {
    pub(crate) fn text(&self, tokenizer: &Tokenizer) -> String {
        text_of(&self.ids, self.ended, tokenizer)
    }
}
