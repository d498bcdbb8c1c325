//! Stores a sampled answer as the journal of a rollout or an evaluation holds it.

use std::collections::HashMap;
use std::time::Instant;

use serde::{Deserialize, Serialize};

use super::author::Author;
use super::journal::Journal;
use super::watch::Watch;
use crate::engine::generate::{Ended, Request, Way, Written, text_of};
use crate::error::Result;
use crate::tokens::Tokenizer;

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Entry {
    /// The record or item that is answered.
    pub row: u32,
    /// The number of the answer among those to the same record or item.
    pub draw: u32,
    /// The sampled tokens, including the end token.
    pub ids: Vec<u32>,
    /// Why the answer ends.
    pub ended: Ended,
}

/// Answers by (record or item, number of the answer).
pub(crate) type Entries = HashMap<(u32, u32), Entry>;

pub(crate) fn entries(entries: Vec<Entry>) -> Entries {
    entries.into_iter().map(|entry| ((entry.row, entry.draw), entry)).collect()
}

impl Entry {
    pub(crate) fn text(&self, tokenizer: &Tokenizer) -> String {
        text_of(&self.ids, self.ended, tokenizer)
    }
}

/// The answers that a job needs: `repeats` to each of `rows` (records, or items).
pub(super) struct Wanted<'a> {
    /// The numbers of the records or items, as in the journal.
    pub rows: &'a [u32],
    pub repeats: u32,
    pub way: &'a Way,
    /// The request for an answer, given the index into `rows` and the number of the answer.
    pub request: &'a dyn Fn(usize, u32) -> Request,
}

/// Lets the author write the answers that are missing from `entries`, which come from the journal. Each new answer is added to both.
pub(super) fn write_open(
    author: &Author,
    wanted: &Wanted,
    journal: &mut Journal,
    entries: &mut Entries,
    watch: &dyn Watch,
) -> Result<Written> {
    let Wanted { rows, repeats, way, request } = *wanted;
    let all = (0..rows.len()).flat_map(|at| (0..repeats).map(move |draw| (at, draw)));
    let open: Vec<(usize, u32)> = all.filter(|&(at, draw)| !entries.contains_key(&(rows[at], draw))).collect();
    let requests: Vec<Request> = open.iter().map(|&(at, draw)| request(at, draw)).collect();
    let (began, n_wanted) = (Instant::now(), rows.len() as u64 * u64::from(repeats));
    author.write(&requests, way, watch, &mut |request, answer, n_tokens| {
        let (at, draw) = open[request];
        let entry = Entry { row: rows[at], draw, ids: answer.ids, ended: answer.ended };
        journal.add(&entry)?;
        entries.insert((entry.row, entry.draw), entry);
        watch.answers(entries.len() as u64, n_wanted, n_tokens as f64 / began.elapsed().as_secs_f64());
        Ok(())
    })
}
