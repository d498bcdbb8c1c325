//! Reads CSV with a header into one JSON object of strings per record. Cells that hold JSON are parsed where a list is expected.

use std::collections::VecDeque;
use std::io::{self, BufRead, Read};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use csv::{ByteRecord, ReaderBuilder, Terminator};
use serde_json::{Map, Value};

use super::fields::refuse_twice;
use super::files::{Reader, broken};
use super::lines::{MAX_RECORD_BYTES, NOT_UTF8, utf8};
use super::raw::Raw;
use crate::error::{Error, Result};

pub(super) fn records(mut reader: Reader) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    // A buffer may hold only a part of the first line.
    let mut head = Vec::new();
    reader.by_ref().take(MAX_HEADER_BYTES).read_until(b'\n', &mut head).map_err(broken)?;
    let delimiter = delimiter(&head);
    let reader: Reader = Box::new(io::Cursor::new(head).chain(reader));
    let budget = Arc::new(AtomicU64::new(MAX_RECORD_BYTES as u64));
    let line_feeds = Arc::new(Mutex::default());
    let limited = Limited { reader: reader.chain(END_MARK), budget: budget.clone(), n_read: 0, line_feeds: line_feeds.clone() };
    let mut reader = ReaderBuilder::new()
        .delimiter(delimiter)
        .terminator(Terminator::CRLF)
        .flexible(true)
        .has_headers(false)
        .from_reader(limited);
    let mut record = ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(csv_broken)?;
    let names = record.iter().enumerate().map(|(idx, name)| {
        let name = utf8(name)?.trim();
        // pandas' name for a column without one, usually the index.
        Ok(if name.is_empty() { format!("Unnamed: {idx}") } else { name.to_owned() })
    });
    let names = names.collect::<Result<Vec<_>>>();
    let names =
        names.map_err(|error| Error::new(format!("expected a header with column names, {}", error.message())).cure(NOT_UTF8))?;
    refuse_twice(names.iter().map(String::as_str))?;
    Ok(std::iter::from_fn(move || {
        budget.store(MAX_RECORD_BYTES as u64, Ordering::Relaxed);
        match reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) if record.as_slice() == b"\0" => None,
            Ok(true) => {
                // The record's own position would be that of the blank lines before it.
                let n_line_ends = record.as_slice().iter().filter(|&&byte| byte == b'\n').count() as u64;
                let is_open = record.as_slice().ends_with(END_MARK);
                // A Windows line end is read up to its carriage return, the line feed only with the next record.
                let has_line_feed = ends_with_line_feed(&line_feeds, reader.position().byte());
                let line = reader.position().line().saturating_sub(n_line_ends + u64::from(has_line_feed));
                let value = if is_open { Err(open_quote()) } else { row(&names, &record) };
                Some(Ok(Raw { line, value }))
            }
            Err(error) => Some(Err(csv_broken(error))),
        }
    }))
}

const MAX_HEADER_BYTES: u64 = 1 << 20;

/// Cells that `pandas.read_csv`, and hence `datasets`, reads as missing values (`pandas._libs.parsers.STR_NA_VALUES`); pandas also writes some of
/// them. An empty cell, which pandas counts among them, is an empty text here.
const MISSING: [&str; 18] = [
    "#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL", "NaN",
    "None", "n/a", "nan", "null",
];

/// Adds an explanation to the error of a row that may come from a missing value.
pub(super) fn explained(error: Error) -> Error {
    match error.message().ends_with("found null") {
        true => error.cure(
            "A cell such as NA, None, NULL or nan is read as missing, as in pandas and `datasets`: if it is meant as text, provide the rows as JSON Lines.",
        ),
        false => error,
    }
}

/// Appended to the file. As a record of its own, it marks the end. Inside another record, it shows a quote that was never closed, which by the CSV
/// rules makes a cell that reaches to the end of the file.
const END_MARK: &[u8] = b"\n\0";

fn open_quote() -> Error {
    Error::new("expected a closing quote, found the end of the file").cure("Double every quote inside a cell.")
}

/// Returns the column names in the first line, parsed as CSV.
pub(super) fn header(text: &[u8]) -> Option<Vec<String>> {
    let line = text.split(|&byte| byte == b'\n').next()?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter(line)).has_headers(false).from_reader(line);
    let record = reader.records().next()?.ok()?;
    Some(record.iter().map(|name| name.trim().to_owned()).collect())
}

fn row(names: &[String], record: &ByteRecord) -> Result<Value> {
    if record.len() != names.len() {
        let message = format!("expected {} cells as in the header, found {}", names.len(), record.len());
        return Err(Error::new(message).cure("Put cells with commas, quotes or line breaks in double quotes."));
    }
    let cell = |(name, cell): (&String, &[u8])| match utf8(cell) {
        Ok(text) if MISSING.contains(&text) => Ok((name.clone(), Value::Null)),
        Ok(text) => Ok((name.clone(), Value::String(text.to_owned()))),
        Err(error) => Err(Error::new(format!("column `{name}`: {}", error.message())).cure(NOT_UTF8)),
    };
    Ok(Value::Object(names.iter().zip(record).map(cell).collect::<Result<Map<_, _>>>()?))
}

/// Returns the most frequent separator of the first line.
fn delimiter(text: &[u8]) -> u8 {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let count = |delimiter: u8| line.iter().filter(|&&byte| byte == delimiter).count();
    // `max_by_key` returns the last of several maxima, so a comma wins ties.
    *[b';', b'\t', b','].iter().max_by_key(|&&delimiter| count(delimiter)).unwrap_or(&b',')
}

fn csv_broken(error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => broken(error),
        other => Error::new(format!("cannot read the CSV file: {other:?}")),
    }
}

/// Where the line feeds are that have been buffered, counted from the beginning of the file.
type LineFeeds = Mutex<VecDeque<u64>>;

/// Whether the last of the first `n` bytes is a line feed. Forgets those before it.
fn ends_with_line_feed(line_feeds: &LineFeeds, n: u64) -> bool {
    let mut line_feeds = line_feeds.lock().unwrap_or_else(PoisonError::into_inner);
    let mut last = None;
    while let Some(at) = line_feeds.pop_front_if(|at| *at < n) {
        last = Some(at);
    }
    last.is_some_and(|at| at + 1 == n)
}

/// Fails once a single record exceeds its budget, so that a quote that is never closed cannot fill the memory.
struct Limited<R> {
    reader: R,
    budget: Arc<AtomicU64>,
    n_read: u64,
    line_feeds: Arc<LineFeeds>,
}

impl<R: Read> Read for Limited<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        let left = self.budget.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(n_read as u64) else {
            return Err(io::Error::other("a record is too long; is a quote left open?"));
        };
        self.budget.store(left, Ordering::Relaxed);
        let at = |(at, &byte): (u64, &u8)| (byte == b'\n').then_some(at);
        let line_feeds = (self.n_read..).zip(&buffer[..n_read]).filter_map(at);
        self.line_feeds.lock().unwrap_or_else(PoisonError::into_inner).extend(line_feeds);
        self.n_read += n_read as u64;
        Ok(n_read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> String {
        // The buffer is smaller than the first name.
        let records = records(Box::new(io::BufReader::with_capacity(1, text.as_bytes()))).unwrap();
        let show = |raw: Raw| match raw.value {
            Ok(value) => format!("{}: {value}", raw.line),
            Err(error) => format!("{}: {}", raw.line, error.message()),
        };
        records.map(|raw| show(raw.unwrap())).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn quotes_line_ends_and_delimiters() {
        assert_eq!(read("a,b\n1,\"x,\n\"\"y\"\"\"\n\n2,z\n"), r#"2: {"a":"1","b":"x,\n\"y\""}; 5: {"a":"2","b":"z"}"#);
        assert_eq!(read("a\tb,c\td\n1\t2\t3\r\n"), r#"2: {"a":"1","b,c":"2","d":"3"}"#);
        assert_eq!(read("a,b\r\n\r\n1,\"x\r\n\"\r\n2,y"), r#"3: {"a":"1","b":"x\r\n"}; 5: {"a":"2","b":"y"}"#);
        // A carriage return inside quotes is text, as in Python's csv module, whatever ends the line.
        assert_eq!(
            read("a,b\n1,\"x\r\"\n2,\"y\r\"\r\n3,z\r\n\r\n\n4,\"\r\n\"\n5,u"),
            r#"2: {"a":"1","b":"x\r"}; 3: {"a":"2","b":"y\r"}; 4: {"a":"3","b":"z"}; 7: {"a":"4","b":"\r\n"}; 9: {"a":"5","b":"u"}"#
        );
        assert_eq!(read("a,b\n1,\"2\n3\n"), "2: expected a closing quote, found the end of the file");
        // Cells without text are a row, a blank line is none.
        assert_eq!(read("a,b\r\n,\r\n\r\n1,2\r\n"), r#"2: {"a":"","b":""}; 4: {"a":"1","b":"2"}"#);
        assert_eq!(read("a;b\n1;2"), r#"2: {"a":"1","b":"2"}"#);
        assert_eq!(read("a,b\n1\n1,2"), r#"2: expected 2 cells as in the header, found 1; 3: {"a":"1","b":"2"}"#);
    }
}
