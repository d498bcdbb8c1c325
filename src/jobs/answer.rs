//! An answer that was drawn, as the journal of a rollout or an evaluation keeps it.

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

/// Answers that a job wants: each of `rows` (records, or items) is answered `repeats` times.
pub(super) struct Wanted<'a> {
    /// The numbers by which the journal knows them.
    pub rows: &'a [u32],
    pub repeats: u32,
    pub way: &'a Way,
    /// What is asked for a draw of the row that stands at this place in `rows`.
    pub request: &'a dyn Fn(usize, u32) -> Request,
}

/// Has the author write those of the wanted answers that are not among `entries`, which are the journal's. Each goes into both as it comes.
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
    author.write(&requests, way, &mut |request, answer, n_tokens| {
        let (at, draw) = open[request];
        let entry = Entry { row: rows[at], draw, ids: answer.ids, ended: answer.ended };
        journal.add(&entry)?;
        entries.insert((entry.row, entry.draw), entry);
        watch.answers(entries.len() as u64, n_wanted, n_tokens as f64 / began.elapsed().as_secs_f64());
        Ok(())
    })
}
