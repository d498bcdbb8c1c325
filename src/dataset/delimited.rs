//! CSV with a header -> one JSON object of strings per record. Cells that hold JSON are parsed where a list is expected.

use std::io::{self, BufRead, Read};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use csv::{ByteRecord, ReaderBuilder};
use serde_json::{Map, Value};

use super::container::Raw;
use super::files::{Reader, broken};
use super::lines::{MAX_RECORD_BYTES, utf8};
use crate::error::{Error, Result};

pub fn records(mut reader: Reader) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let delimiter = delimiter(reader.fill_buf().map_err(broken)?);
    let budget = Arc::new(AtomicU64::new(MAX_RECORD_BYTES as u64));
    let limited = Limited { reader, budget: budget.clone() };
    let mut reader = ReaderBuilder::new().delimiter(delimiter).flexible(true).has_headers(false).from_reader(limited);
    let mut record = ByteRecord::new();
    reader.read_byte_record(&mut record).map_err(csv_broken)?;
    let names = record.iter().map(|name| utf8(name).map(|name| name.trim().to_owned())).collect::<Result<Vec<_>>>();
    let names = names.map_err(|error| Error::new(format!("expected a header with column names, {}", error.message())))?;
    if let Some(name) = names.iter().enumerate().find_map(|(idx, name)| names[..idx].contains(name).then_some(name)) {
        return Err(Error::new(format!("expected different column names, found `{name}` twice")));
    }
    Ok(std::iter::from_fn(move || {
        budget.store(MAX_RECORD_BYTES as u64, Ordering::Relaxed);
        match reader.read_byte_record(&mut record) {
            Ok(false) => None,
            Ok(true) => {
                let line = record.position().map_or(0, |position| position.line());
                Some(Ok(Raw { line, value: row(&names, &record) }))
            }
            Err(error) => Some(Err(csv_broken(error))),
        }
    }))
}

/// Column names of the first line, if it looks like CSV with more than one column.
pub fn header(text: &[u8]) -> Option<Vec<String>> {
    let line = text.split(|&byte| byte == b'\n').next()?;
    let mut reader = ReaderBuilder::new().delimiter(delimiter(line)).has_headers(false).from_reader(line);
    let record = reader.records().next()?.ok()?;
    Some(record.iter().map(|name| name.trim().to_owned()).collect())
}

fn row(names: &[String], record: &ByteRecord) -> Result<Value> {
    if record.len() != names.len() {
        let message = format!("expected {} cells as in the header, found {}", names.len(), record.len());
        return Err(Error::new(message).cure("Put cells that hold commas, quotes or line ends between double quotes."));
    }
    let cell = |(name, cell): (&String, &[u8])| match utf8(cell) {
        Ok(text) => Ok((name.clone(), Value::String(text.to_owned()))),
        Err(error) => Err(Error::new(format!("column `{name}`: {}", error.message()))),
    };
    Ok(Value::Object(names.iter().zip(record).map(cell).collect::<Result<Map<_, _>>>()?))
}

/// The separator that the first line holds most of.
fn delimiter(text: &[u8]) -> u8 {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let count = |delimiter: u8| line.iter().filter(|&&byte| byte == delimiter).count();
    // `max_by_key` takes the last of equals: a comma wins.
    *[b';', b'\t', b','].iter().max_by_key(|&&delimiter| count(delimiter)).unwrap_or(&b',')
}

fn csv_broken(error: csv::Error) -> Error {
    match error.into_kind() {
        csv::ErrorKind::Io(error) => broken(error),
        other => Error::new(format!("cannot read the CSV file: {other:?}")),
    }
}

/// Fails once a single record has taken more than its budget: a quote that is never closed must not fill the memory.
struct Limited {
    reader: Reader,
    budget: Arc<AtomicU64>,
}

impl Read for Limited {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        let left = self.budget.load(Ordering::Relaxed);
        let Some(left) = left.checked_sub(n_read as u64) else {
            return Err(io::Error::other("a record is too long; is a quote left open?"));
        };
        self.budget.store(left, Ordering::Relaxed);
        Ok(n_read)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &'static str) -> String {
        let records = records(Box::new(text.as_bytes())).unwrap();
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
        assert_eq!(read("a;b\n1;2"), r#"2: {"a":"1","b":"2"}"#);
        assert_eq!(read("a,b\n1\n1,2"), r#"2: expected 2 cells as in the header, found 1; 3: {"a":"1","b":"2"}"#);
    }
}
