//! Reads files in any common SFT format into [`Example`]s.
//!
//! A file passes through three stages:
//!
//! ```text
//! files.rs       inputs -> bytes: globs, stdin, gzip, zstd, bzip2, xz, zip; folders.rs picks the data files of a folder, card.rs those of a
//!                Hugging Face Hub data set
//! container.rs   bytes -> one JSON object per record (raw.rs): json.rs, delimited.rs (CSV), parquet.rs, arrow.rs, lines of plain text
//! format.rs      JSON object -> Example (example.rs): chat.rs lists of turns (harmony.rs: OpenAI's channels), pairs.rs prompt and answer columns,
//!                trees.rs OASST
//! ```
//!
//! The other modules support them:
//!
//! ```text
//! lines.rs       bytes -> lines; literal.rs Python's deviations from JSON
//! frame.rs       table row -> JSON; arrow_batches.rs the unpacked size of Arrow batches
//! mapping.rs     the user's columns -> the fields of a known format; heard.rs checks that the format reads the mapped fields; unread.rs finds text
//!                columns that no turn holds; fields.rs typed access to fields, with errors that state what was found
//! roles.rs       names of roles; tools.rs tool schemas and calls; switches.rs loss masks and weights of a row
//! options.rs     how files are read; choice.rs which records; shard.rs a machine's share of them
//! original.rs    records with the rows they were read from, which write/ writes back
//! ```
//!
//! Everything is streamed: memory holds one record (one row group of Parquet, one batch of Arrow), whatever the size of the file. The exception is
//! `oasst`, whose rows are separate messages that have to be linked by their ids. A bad row is a value ([`Record::example`] is an error with file
//! and line); a broken file is an error of the iterator.
//!
//! Not supported: images, audio, and Hub data sets by name (download them first).

mod arrow;
mod arrow_batches;
mod card;
mod chat;
mod choice;
mod container;
mod delimited;
mod example;
mod fields;
mod files;
mod folders;
mod format;
mod frame;
#[cfg(test)]
mod guide;
mod harmony;
mod heard;
mod json;
mod lines;
mod literal;
mod mapping;
mod options;
mod original;
mod pairs;
mod parquet;
mod raw;
mod roles;
mod shard;
mod switches;
mod tools;
mod trees;
mod unread;
pub(crate) mod write;

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use serde_json::{Map, Value};

use crate::error::{Error, Result};

pub use choice::{Choice, Chosen};
pub use container::Container;
pub use example::{Example, Place, PlantedSpan, Role, Rollout, Turn, WeightedPart, Written};
pub(crate) use fields::embedded_json;
pub use files::Compression;
pub(crate) use folders::are_changes;
pub use format::Format;
pub(crate) use literal::{dumps, line, verbatim};
pub use mapping::FieldMap;
pub use options::ReadOptions;
pub(crate) use original::Original;
pub use roles::RoleMap;
pub use shard::Shard;
pub use tools::Call;

use example::Parsed;

/// The input files: opened, hashed and with their formats detected, but not yet read.
#[derive(Debug)]
pub struct Dataset {
    files: Vec<DataFile>,
    stores: Vec<files::Store>,
    options: ReadOptions,
    notes: Vec<String>,
}

/// The description of one input file.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct DataFile {
    /// The path as given by the user; `-` is the standard input.
    pub path: PathBuf,
    /// How records are laid out in the file.
    pub container: Container,
    /// How the file is compressed.
    pub compression: Compression,
    /// What the keys of the rows mean.
    pub format: Format,
    /// SHA-256 of the file's bytes as stored (compressed, if they are), in hexadecimal.
    pub sha256: String,
    /// The number of those bytes.
    pub bytes: u64,
    /// The number of parent folders in the file's display name: just enough to make it unique among the input files, usually 0.
    #[serde(default, skip_serializing_if = "is_zero")]
    pub name_folders: usize,
}

fn is_zero(n: &usize) -> bool {
    *n == 0
}

impl DataFile {
    /// Returns the display name, which is the table's `source` of rows without one of their own: the file name, preceded by the parent folders that
    /// distinguish it from other input files.
    pub fn name(&self) -> String {
        files::display_name(&self.path, self.name_folders)
    }
}

/// Adds parent folders to the display names of files with equal names until the names differ.
fn tell_apart(files: &mut [DataFile]) {
    for n in 1.. {
        let names: Vec<String> = files.iter().map(DataFile::name).collect();
        let mut paths: HashMap<&str, HashSet<&Path>> = HashMap::new();
        for (name, file) in names.iter().zip(&*files) {
            paths.entry(name).or_default().insert(&file.path);
        }
        let is_alike = |idx: &usize| paths[&*names[*idx]].len() > 1 && files[*idx].path.components().count() > n;
        let alike: Vec<usize> = (0..files.len()).filter(is_alike).collect();
        if alike.is_empty() {
            return;
        }
        alike.into_iter().for_each(|idx| files[idx].name_folders = n);
    }
}

/// One record of the input, valid or not.
#[derive(Debug)]
pub struct Record {
    /// The index of the record over all files, from 0; bad records count.
    pub row: u32,
    /// The file, and the line of the record's first byte.
    pub place: Place,
    /// The conversation, or the reason why the record holds none.
    pub example: Result<Example>,
}

impl Dataset {
    /// Finds the files and detects their formats. `inputs` are paths, glob patterns, or `-` for the standard input.
    ///
    /// This parses only the first records of each file, but hashes all its bytes.
    pub fn open(inputs: &[String], options: &ReadOptions) -> Result<Dataset> {
        let mut notes = Vec::new();
        let paths = files::expand(inputs, &mut notes)?;
        let mut dataset = Dataset { files: Vec::new(), stores: Vec::new(), options: options.clone(), notes };
        for path in paths {
            for (path, mut store) in files::Store::open_all(&path, &mut dataset.notes)? {
                let (sha256, bytes) = store.digest().map_err(|error| error.at(&path))?;
                let (container, format) = recognise(&path, &mut store, options).map_err(|error| error.at(&path))?;
                let notes = container::columns(container, &store).map_err(|error| error.at(&path))?.notes();
                dataset.notes.extend(notes.into_iter().map(|note| format!("{}: {note}", path.display())));
                let compression = store.compression;
                dataset.files.push(DataFile { path, container, compression, format, sha256, bytes, name_folders: 0 });
                dataset.stores.push(store);
            }
        }
        tell_apart(&mut dataset.files);
        Ok(dataset)
    }

    /// The files in reading order.
    pub fn files(&self) -> &[DataFile] {
        &self.files
    }

    /// Returns an error if the bytes of a file have changed since it was opened.
    pub(crate) fn check_unchanged(&self) -> Result<()> {
        for (file, store) in self.files.iter().zip(&self.stores) {
            let (sha256, _) = store.digest().map_err(|error| error.at(&file.path))?;
            if sha256 != file.sha256 {
                let begin = |hash: &str| hash.get(..12).unwrap_or_default().to_owned();
                let (before, now) = (begin(&file.sha256), begin(&sha256));
                return Err(Error::new(format!(
                    "the data file has changed since it was opened: SHA-256 {before}.. then, {now}.. now"
                ))
                .at(&file.path));
            }
        }
        Ok(())
    }

    /// The options with which rows are read.
    pub(crate) fn options(&self) -> &ReadOptions {
        &self.options
    }

    /// Messages to the user about what was left out of the files and folders.
    pub fn notes(&self) -> &[String] {
        &self.notes
    }

    /// Iterates over all records in order. An `Err` means that a file could not be read on (a damaged archive, a failing disk, or a bad row under
    /// `strict`); the iterator then continues with the next file, or ends under `strict`.
    pub fn records(&self) -> impl Iterator<Item = Result<Record>> + Send + use<> {
        let files: Vec<_> = self.files.iter().cloned().zip(self.stores.iter().cloned()).collect();
        Records { files: files.into_iter(), current: None, next_row: 0, options: self.options.clone() }
    }
}

/// Iterates over the JSON objects of one file in any container, with their line numbers, without interpreting them.
pub fn rows(path: &Path) -> Result<impl Iterator<Item = Result<(u64, Map<String, Value>)>> + use<>> {
    let mut stores = files::Store::open_all(path, &mut Vec::new())?;
    let (Some((_, mut store)), true) = (stores.pop(), stores.is_empty()) else {
        return Err(Error::new("expected one data file in the archive, found several")
            .at(path)
            .cure("Unpack it, and name the file."));
    };
    let container = container::detect(path, &store, &ReadOptions::default()).map_err(|error| error.at(path))?;
    if matches!(container, Container::Parquet | Container::Arrow) {
        store.decompress().map_err(|error| error.at(path))?;
    }
    let path = path.to_owned();
    let raw = container::open(container, &store).map_err(|error| error.at(&path))?;
    Ok(raw.map(move |raw| {
        let raw::Raw { line, value } = raw.map_err(|error| error.at(&path))?;
        let row = value.and_then(fields::into_object).map_err(|error| error.at_line(&path, line))?;
        Ok((line, row))
    }))
}

type ParsedRecords = Box<dyn Iterator<Item = Result<Parsed>> + Send>;

struct Records {
    files: std::vec::IntoIter<(DataFile, files::Store)>,
    current: Option<(Arc<PathBuf>, ParsedRecords)>,
    next_row: u32,
    options: ReadOptions,
}

impl Iterator for Records {
    type Item = Result<Record>;

    fn next(&mut self) -> Option<Result<Record>> {
        loop {
            let Some((path, records)) = &mut self.current else {
                let (file, store) = self.files.next()?;
                match open_records(&file, &store, &self.options) {
                    Ok(records) => self.current = Some((Arc::new(file.path), records)),
                    Err(error) => return Some(Err(self.broken(error.at(&file.path)))),
                }
                continue;
            };
            let path = path.clone();
            match records.next() {
                None => self.current = None,
                Some(Err(error)) => return Some(Err(self.broken(error.at(&*path)))),
                Some(Ok((line, Err(error)))) if self.options.strict => {
                    return Some(Err(self.broken(error.at_line(&*path, line))));
                }
                Some(Ok((line, example))) => {
                    let row = self.next_row;
                    let Some(next_row) = row.checked_add(1) else {
                        let error =
                            Error::new("expected fewer than 4,294,967,295 rows").cure("Split the files into several runs.");
                        self.files = Vec::new().into_iter();
                        return Some(Err(self.broken(error)));
                    };
                    self.next_row = next_row;
                    let example = example.map_err(|error| error.at_line(&*path, line));
                    return Some(Ok(Record { row, place: Place { path, line }, example }));
                }
            }
        }
    }
}

impl Records {
    /// Abandons the current file, and under `strict` all remaining ones.
    fn broken(&mut self, error: Error) -> Error {
        self.current = None;
        if self.options.strict {
            self.files = Vec::new().into_iter();
        }
        error
    }
}

fn open_records(file: &DataFile, store: &files::Store, options: &ReadOptions) -> Result<ParsedRecords> {
    let raw = container::open(file.container, store)?;
    let mapping = options.mapping.clone();
    let source = file.name();
    let format = file.format;
    let explained: fn(Error) -> Error =
        if file.container == Container::Csv { delimited::explained } else { std::convert::identity };
    let roles = options.roles.clone();
    let rows = raw.map(|raw| raw.map(|raw::Raw { line, value }| (line, value.and_then(fields::into_object))));
    if format == Format::Oasst {
        let of_trees = roles.clone();
        let mapped = move |row| {
            let mut row = mapping.apply(row)?.row;
            format.check_heard(&mut row, &mapping, &roles)?;
            Ok(row)
        };
        let rows = rows.map(move |row| row.map(|(line, row)| (line, row.and_then(&mapped))));
        return Ok(Box::new(trees::conversations(rows, source, of_trees)));
    }
    Ok(Box::new(rows.flat_map(move |row| {
        let (line, row) = match row {
            Ok(row) => row,
            Err(error) => return vec![Err(error)],
        };
        match row.and_then(|row| format.read(row, &mapping, &source, &roles)) {
            Ok(examples) => examples.into_iter().map(|example| Ok((line, Ok(example)))).collect(),
            Err(error) => vec![Ok((line, Err(explained(error))))],
        }
    })))
}

/// The number of leading records that are searched for one that shows the format.
const N_RECORDS_SEEN: usize = 100;

/// Detects the container from the extension and the first bytes, and the format from the first record that shows it.
fn recognise(path: &Path, store: &mut files::Store, options: &ReadOptions) -> Result<(Container, Format)> {
    let container = container::detect(path, store, options)?;
    if matches!(container, Container::Parquet | Container::Arrow) {
        store.decompress()?;
    }
    let unread = container::columns(container, store)?.notes();
    let mut first_reason = None;
    let mut is_empty = true;
    for raw in container::open(container, store)?.take(N_RECORDS_SEEN) {
        let raw::Raw { line, value } = raw?;
        is_empty = false;
        let said = match (container, options.format) {
            (Container::Text, Some(format)) if format != Format::Text => {
                return Err(Error::new(format!("expected records of the format `{format}`, found plain text"))
                    .cure("Use --format text, or provide the data as JSON Lines."));
            }
            (Container::Text, _) => Some(Format::Text),
            (_, said) => said,
        };
        let mapped = value.and_then(fields::into_object).and_then(|row| options.mapping.apply(row));
        let format = match (mapped, said) {
            (Ok(mapped), said) => said.map_or_else(|| Format::detect(&mapped.row, &options.mapping), Ok).and_then(|format| {
                let mut row = mapped.row;
                format.check_heard(&mut row, &options.mapping, &options.roles).map(|()| format)
            }),
            (Err(_), Some(format)) => Ok(format),
            (Err(error), None) => Err(error),
        };
        match format {
            Ok(format) => return Ok((container, format)),
            Err(error) => first_reason = first_reason.or(Some(error.at_line(path, line))),
        }
    }
    match first_reason {
        Some(reason) if !unread.is_empty() => Err(reason.caused_by(Error::new(unread.join("; ")))),
        Some(reason) => Err(reason),
        None if is_empty => Err(Error::new("expected at least one record, found an empty file")),
        None => Err(Error::new("expected at least one readable record among the first ones")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn files(paths: impl IntoIterator<Item = String>) -> Vec<DataFile> {
        let file = |path: String| DataFile {
            path: path.into(),
            container: Container::JsonLines,
            compression: Compression::None,
            format: Format::Messages,
            sha256: String::new(),
            bytes: 0,
            name_folders: 0,
        };
        paths.into_iter().map(file).collect()
    }

    #[test]
    fn files_of_one_name_are_told_apart_by_as_few_folders_as_it_takes() {
        let check = |paths: &[&str], expected: &[&str]| {
            let mut files = files(paths.iter().map(|path| (*path).to_owned()));
            tell_apart(&mut files);
            assert_eq!(files.iter().map(DataFile::name).collect::<Vec<_>>(), expected);
        };
        check(&["x/a.jsonl", "y/b.jsonl"], &["a.jsonl", "b.jsonl"]);
        check(&["x/a.jsonl", "y/a.jsonl", "y/b.jsonl"], &["x/a.jsonl", "y/a.jsonl", "b.jsonl"]);
        check(&["1/x/a", "2/x/a", "2/y/a"], &["1/x/a", "2/x/a", "y/a"]);
        // A file that is named twice equals itself, and a path may run out of folders before it differs.
        check(&["x/a", "x/a"], &["a", "a"]);
        check(&["x/a", "a"], &["x/a", "a"]);
    }

    /// The algorithm takes one pass per folder depth; comparing all pairs of 20,000 files would take minutes here.
    #[test]
    fn many_files_are_told_apart_at_once() {
        let mut files = files((0..20_000).map(|i| format!("data/{}/{}/row.jsonl", i / 250, i % 250)));
        tell_apart(&mut files);
        let names: HashSet<String> = files.iter().map(DataFile::name).collect();
        assert_eq!((names.len(), files[251].name()), (20_000, "1/1/row.jsonl".to_owned()));
    }
}
