//! An answer that was drawn, as the journal of a rollout or an evaluation keeps it.

use std::collections::HashMap;

use serde::{Deserialize, Serialize};

use crate::engine::generate::{Ended, text_of};
use crate::tokens::Tokenizer;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The record that is answered, or the item.
    pub row: u32,
    /// The number of the answer among those to the same record.
    pub draw: u32,
    /// The tokens that were drawn, the end token included.
    pub ids: Vec<u32>,
    /// Why the answer ends.
    pub ended: Ended,
}

/// Answers by the number of what is answered and the number of the answer.
pub(crate) type Entries = HashMap<(u32, u32), Entry>;

pub(crate) fn entries(entries: Vec<Entry>) -> Entries {
    entries.into_iter().map(|entry| ((entry.row, entry.draw), entry)).collect()
}

impl Entry {
    pub(crate) fn text(&self, tokenizer: &Tokenizer) -> String {
        text_of(&self.ids, self.ended, tokenizer)
    }
}
