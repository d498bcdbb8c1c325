//! Answers as they come, of rollouts and of evaluations: a line each, behind a line that says whose they are. A line that was cut off with the
//! process is written anew.

use std::collections::HashMap;
use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::engine::generate::{Ended, text_of};
use crate::error::{Context, Error, Result};
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

impl Entry {
    pub(crate) fn text(&self, tokenizer: &Tokenizer) -> String {
        text_of(&self.ids, self.ended, tokenizer)
    }

    pub(crate) fn ended_name(&self) -> &'static str {
        match self.ended {
            Ended::EndToken => "end_token",
            Ended::Stop => "stop",
            Ended::Length => "length",
        }
    }
}

pub(crate) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// A new journal, or one that a run of the same identity has left, with what it holds.
    pub(crate) fn open(path: &Path, identity: &str, other: impl Fn() -> Error) -> Result<(Journal, Entries)> {
        const CANNOT: &str = "cannot open the answers of the run";
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::new(CANNOT).at(path).caused_by(error)),
        };
        let whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty());
        let mut entries = Entries::new();
        if let Some(first) = lines.next() {
            let found: serde_json::Value = serde_json::from_slice(first).context_at(path, "expected the identity of a run")?;
            if found["identity"] != identity {
                return Err(other());
            }
            for line in lines {
                let entry: Entry = serde_json::from_slice(line).context_at(path, "expected an answer")?;
                entries.insert((entry.row, entry.draw), entry);
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).context_at(path, CANNOT)?;
        file.set_len(whole as u64).context_at(path, CANNOT)?;
        let mut journal = Journal { path: path.to_owned(), file };
        if whole == 0 {
            journal.line(&json!({ "identity": identity }))?;
        }
        Ok((journal, entries))
    }

    pub(crate) fn add(&mut self, entry: &Entry) -> Result<()> {
        self.line(entry)
    }

    /// Once the answers stand elsewhere.
    pub(crate) fn remove(self) -> Result<()> {
        std::fs::remove_file(&self.path).context_at(&self.path, "cannot remove the file")
    }

    fn line(&mut self, value: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(value).context("cannot write down an answer")?;
        line.push(b'\n');
        self.file.write_all(&line).context_at(&self.path, "cannot write down an answer")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_stay_and_a_cut_one_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let other = || Error::new("another run");
        let entry = |row: u32| Entry { row, draw: 1, ids: vec![row, 7], ended: Ended::Length };
        let (mut journal, entries) = Journal::open(&path, "a", other).unwrap();
        assert!(entries.is_empty());
        journal.add(&entry(3)).unwrap();
        journal.add(&entry(5)).unwrap();
        drop(journal);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 4]).unwrap();
        assert_eq!(Journal::open(&path, "b", other).err().unwrap().message(), "another run");
        let (mut journal, entries) = Journal::open(&path, "a", other).unwrap();
        assert_eq!(entries, Entries::from([((3, 1), entry(3))]));
        journal.add(&entry(5)).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), text);
    }
}
