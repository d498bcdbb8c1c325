//! Reads records together with the rows behind them, so that they can be written back unchanged.

use std::collections::BTreeSet;
use std::io::{BufRead, Read};
use std::sync::Arc;

use super::example::{Example, Place};
use super::fields::{self, Object};
use super::files::{Store, broken};
use super::lines::MAX_RECORD_BYTES;
use super::raw::{Raw, RawRecords};
use super::{Container, DataFile, Dataset, Format, container, json, open_records};
use crate::error::{Error, Result};

/// A record, as in [`Record`](super::Record), and the row behind it.
#[derive(Debug)]
pub(crate) struct Original {
    /// The index of the record over all files, from 0; bad records count.
    pub row: u32,
    /// The file, and the line of the record's first byte.
    pub place: Place,
    /// The conversation, or the reason why the record holds none.
    pub example: Result<Example>,
    /// The row's own columns, before any field map. `None` if one row holds several examples or one example spans several rows, and if the row is
    /// not an object.
    pub object: Option<Object>,
    /// The bytes of the row and of the blank lines before it, including its line end; for JSON Lines only.
    pub bytes: Option<Vec<u8>>,
    /// The index of its file.
    pub file: usize,
}

/// A record before format detection, and its bytes if it has a line of its own.
type WithBytes = (Raw, Option<Vec<u8>>);

impl Dataset {
    /// Iterates over all records in order, numbered as by [`Dataset::records`].
    pub(crate) fn originals(&self) -> impl Iterator<Item = Result<Original>> + use<'_> {
        let mut row = 0;
        let of_files = self.files.iter().zip(&self.stores).enumerate();
        let read = of_files.flat_map(|(idx, (file, store))| -> Box<dyn Iterator<Item = Result<Original>>> {
            match self.of_file(idx, file, store) {
                Ok(originals) => originals,
                Err(error) => Box::new(std::iter::once(Err(error.at(&file.path)))),
            }
        });
        read.map(move |original| {
            let original = Original { row, ..original? };
            row += 1;
            Ok(original)
        })
    }

    /// Iterates over the records of one file; their `row` is 0 here, and set once all files are chained.
    fn of_file<'a>(
        &'a self,
        idx: usize,
        file: &DataFile,
        store: &Store,
    ) -> Result<Box<dyn Iterator<Item = Result<Original>> + 'a>> {
        let path = Arc::new(file.path.clone());
        let at = move |line| Place { path: Arc::clone(&path), line };
        if file.format == Format::Oasst {
            let records = open_records(file, store, &self.options)?;
            return Ok(Box::new(records.map(move |parsed| {
                let (line, example) = parsed?;
                let place = at(line);
                let example = example.map_err(|error| error.at_line(&*place.path, line));
                Ok(Original { row: 0, place, example, object: None, bytes: None, file: idx })
            })));
        }
        let rows: Box<dyn Iterator<Item = Result<WithBytes>>> = match file.container {
            Container::JsonLines => Box::new(lines(store)?),
            container => {
                let raw: RawRecords = container::open(container, store)?;
                Box::new(raw.map(|raw| Ok((raw?, None))))
            }
        };
        let (format, source) = (file.format, file.name());
        let columns = container::columns(file.container, store)?;
        Ok(Box::new(rows.flat_map(move |row| {
            let (Raw { line, value }, bytes) = match row {
                Ok(row) => row,
                Err(error) => return vec![Err(error)],
            };
            let place = at(line);
            let object = value.and_then(fields::into_object);
            let (object, examples) = match object {
                Ok(mut object) => {
                    let examples = format.read(object.clone(), &self.options.mapping, &source, &self.options.roles);
                    columns.without_marks(&mut object);
                    (Some(object), examples)
                }
                Err(error) => (None, Err(error)),
            };
            match examples {
                Ok(examples) => {
                    let is_alone = examples.len() == 1;
                    let whole = |example| {
                        let (object, bytes) = if is_alone { (object.clone(), bytes.clone()) } else { (None, None) };
                        Ok(Original { row: 0, place: place.clone(), example: Ok(example), object, bytes, file: idx })
                    };
                    examples.into_iter().map(whole).collect()
                }
                Err(error) => {
                    let example = Err(error.at_line(&*place.path, line));
                    vec![Ok(Original { row: 0, place, example, object, bytes, file: idx })]
                }
            }
        })))
    }

    /// Returns the columns and struct members that rows lack because their types are not read.
    pub(crate) fn unread_columns(&self) -> Result<BTreeSet<String>> {
        let of_file = |(file, store): (&DataFile, &Store)| {
            container::columns(file.container, store).map(|columns| columns.unread()).map_err(|error| error.at(&file.path))
        };
        Ok(self.files.iter().zip(&self.stores).map(of_file).collect::<Result<Vec<_>>>()?.into_iter().flatten().collect())
    }

    /// Returns the blank lines after the last row of a JSON Lines file.
    pub(crate) fn blank_end(&self, file: usize) -> Result<Vec<u8>> {
        let Some(store) = self.stores.get(file).filter(|_| self.files[file].container == Container::JsonLines) else {
            return Ok(Vec::new());
        };
        let mut blank = Vec::new();
        for_each_line(store, |line| {
            match is_blank(line) {
                true => blank.extend_from_slice(line),
                false => blank.clear(),
            }
            true
        })?;
        Ok(blank)
    }
}

fn is_blank(line: &[u8]) -> bool {
    line.iter().all(u8::is_ascii_whitespace)
}

fn for_each_line(store: &Store, mut work: impl FnMut(&[u8]) -> bool) -> Result<()> {
    let mut reader = store.unpacked()?;
    let mut line = Vec::new();
    loop {
        line.clear();
        if reader.read_until(b'\n', &mut line).map_err(broken)? == 0 || !work(&line) {
            return Ok(());
        }
    }
}

/// Iterates over the rows of a JSON Lines file, with their bytes.
fn lines(store: &Store) -> Result<impl Iterator<Item = Result<WithBytes>> + use<>> {
    let mut reader = store.unpacked()?;
    let mut number = 0_u64;
    let mut ready: std::vec::IntoIter<Result<WithBytes>> = Vec::new().into_iter();
    Ok(std::iter::from_fn(move || {
        if let Some(next) = ready.next() {
            return Some(next);
        }
        let mut bytes = Vec::new();
        loop {
            let begin = bytes.len();
            match reader.by_ref().take(MAX_RECORD_BYTES as u64 + 1).read_until(b'\n', &mut bytes) {
                Ok(0) => return None,
                Ok(_) => number += 1,
                Err(error) => return Some(Err(broken(error))),
            }
            if bytes.len() - begin > MAX_RECORD_BYTES {
                let error = Error::new("the file has a record that is too long to be written again");
                return Some(Err(error.cure("Correct or remove the row first.")));
            }
            if is_blank(&bytes[begin..]) {
                continue;
            }
            let record = bytes[begin..].trim_ascii_end();
            let mut rows = json::by_rows(Ok(Raw { line: number, value: json::parse(record, number) }));
            // A line with a whole table holds several rows.
            if rows.len() > 1 {
                ready = rows.into_iter().map(|row| Ok((row?, None))).collect::<Vec<_>>().into_iter();
                return ready.next();
            }
            return rows.pop().map(|row| Ok((row?, Some(bytes))));
        }
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::ReadOptions;

    fn of(bytes: &[u8]) -> (Dataset, tempfile::TempDir) {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        std::fs::write(&path, bytes).unwrap();
        (Dataset::open(&[path.to_string_lossy().into_owned()], &ReadOptions::default()).unwrap(), folder)
    }

    #[test]
    fn the_bytes_of_all_rows_are_those_of_the_file() {
        for bytes in [
            &b"{\"text\": \"one\"}\n{\"text\" :\"two\"}\n"[..],
            b"\xEF\xBB\xBF{\"text\": \"one\"}\r\n\n  \n{\"text\":\"two\"}\n\n\n",
            b"\n{\"text\": \"one\"}\nbroken\n{\"text\": 5}",
        ] {
            let (dataset, _folder) = of(bytes);
            let mut again = Vec::new();
            let records: Vec<_> = dataset.records().map(|record| record.unwrap()).collect();
            let originals: Vec<_> = dataset.originals().map(|original| original.unwrap()).collect();
            assert_eq!(records.len(), originals.len());
            for (record, original) in records.iter().zip(&originals) {
                assert_eq!((record.row, &record.place), (original.row, &original.place));
                assert_eq!(record.example.as_ref().ok(), original.example.as_ref().ok());
                again.extend_from_slice(original.bytes.as_ref().unwrap());
            }
            again.extend(dataset.blank_end(0).unwrap());
            assert_eq!(again, bytes, "{}", bytes.escape_ascii());
        }
    }

    #[test]
    fn rows_that_share_a_line_have_no_bytes_of_their_own() {
        let (dataset, _folder) = of(b"{\"prompt\": [\"a\", \"b\"], \"completion\": [\"c\", \"d\"]}\n");
        let originals: Vec<_> = dataset.originals().map(|original| original.unwrap()).collect();
        assert_eq!(originals.len(), 2);
        assert!(originals.iter().all(|original| original.bytes.is_none() && original.object.is_some()));
        assert_eq!(originals[1].example.as_ref().unwrap().turns[1].content, "d");
    }
}
