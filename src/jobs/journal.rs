//! Records the finished parts of a long job as they come: a line with the identity of the run, then one line each. A line cut off by a crash is
//! dropped and written again.

use std::fs::{File, OpenOptions};
use std::io::Write;
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::json;

use crate::error::{Context, Error, Result};

pub(super) struct Journal {
    path: PathBuf,
    file: File,
}

impl Journal {
    /// Opens a new journal, or that of an earlier run of the same identity with its entries. `other` decides what happens to a journal of another
    /// run: an error, or `None` to replace it.
    pub(super) fn open<Entry: DeserializeOwned>(
        path: &Path,
        identity: &str,
        other: impl Fn() -> Option<Error>,
    ) -> Result<(Journal, Vec<Entry>)> {
        const CANNOT: &str = "cannot open the journal of the run";
        let text = match std::fs::read(path) {
            Ok(bytes) => bytes,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Vec::new(),
            Err(error) => return Err(Error::new(CANNOT).at(path).caused_by(error)),
        };
        let mut whole = text.iter().rposition(|&byte| byte == b'\n').map_or(0, |end| end + 1);
        let mut lines = text[..whole].split(|&byte| byte == b'\n').filter(|line| !line.is_empty()).peekable();
        let mut entries = Vec::new();
        if let Some(first) = lines.next() {
            let found: serde_json::Value = serde_json::from_slice(first).context_at(path, "expected the identity of a run")?;
            // Replacing an empty journal loses nothing.
            match (found["identity"] == identity, other().filter(|_| lines.peek().is_some())) {
                (true, _) => {
                    for line in lines {
                        entries.push(serde_json::from_slice(line).context_at(path, "expected what the run has finished")?);
                    }
                }
                (false, Some(error)) => return Err(error),
                (false, None) => whole = 0,
            }
        }
        let file = OpenOptions::new().create(true).append(true).open(path).context_at(path, CANNOT)?;
        file.set_len(whole as u64).context_at(path, CANNOT)?;
        let mut journal = Journal { path: path.to_owned(), file };
        if whole == 0 {
            journal.add(&json!({ "identity": identity }))?;
        }
        Ok((journal, entries))
    }

    pub(super) fn add(&mut self, entry: &impl Serialize) -> Result<()> {
        let mut line = serde_json::to_vec(entry).context("cannot write down what is finished")?;
        line.push(b'\n');
        let before = self.file.metadata().context_at(&self.path, "cannot read the length of the journal")?.len();
        let written = self.file.write_all(&line);
        if written.is_err() {
            // A partial line, as from a full disk, would corrupt the next one.
            let _ = self.file.set_len(before);
        }
        written.context_at(&self.path, "cannot write down what is finished")
    }

    /// Removes the journal once its entries are stored elsewhere.
    pub(super) fn remove(self) -> Result<()> {
        Journal::clear(&self.path)
    }

    /// Removes the journal of a finished job, if the process was killed before it could.
    pub(super) fn clear(path: &Path) -> Result<()> {
        match std::fs::remove_file(path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                Err(Error::new("cannot remove the file").at(path).caused_by(error))
            }
            _ => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whole_lines_stay_and_a_cut_one_is_written_anew() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("answers.jsonl");
        let refused = || Some(Error::new("another run"));
        let open = |identity: &str, other: &dyn Fn() -> Option<Error>| Journal::open::<Vec<u32>>(&path, identity, other);
        let (mut journal, entries) = open("a", &refused).unwrap();
        assert!(entries.is_empty());
        journal.add(&[3, 7]).unwrap();
        journal.add(&[5, 7]).unwrap();
        drop(journal);
        let text = std::fs::read(&path).unwrap();
        std::fs::write(&path, &text[..text.len() - 4]).unwrap();
        assert_eq!(open("b", &refused).err().unwrap().message(), "another run");
        let (mut journal, entries) = open("a", &refused).unwrap();
        assert_eq!(entries, [[3, 7]]);
        journal.add(&[5, 7]).unwrap();
        drop(journal);
        assert_eq!(std::fs::read(&path).unwrap(), text);
        // A journal of another run is no error here: it is replaced.
        assert!(open("b", &|| None).unwrap().1.is_empty());
        assert!(open("b", &refused).unwrap().1.is_empty());
        // An empty journal is replaced even if `other` is an error.
        assert!(open("c", &refused).unwrap().1.is_empty());
        let (mut journal, _) = open("c", &refused).unwrap();
        journal.add(&[1, 7]).unwrap();
        drop(journal);
        assert!(open("b", &refused).is_err());
    }
}
