//! Bytes -> one JSON value per record, whatever the container.
//!
//! The container is told by the first bytes where they tell (Parquet, Arrow, JSON), else by the extension (CSV, plain text).
//! `.json` and `.jsonl` mean the same here: people put arrays into the one and lines into the other.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use super::files::{Store, broken};
use super::format::Format;
use super::options::ReadOptions;
use super::raw::{Raw, RawRecords};
use super::{arrow, delimited, json, lines, parquet};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    /// One JSON object a line.
    JsonLines,
    /// One array of objects.
    JsonArray,
    /// Objects one after the other, spread over lines.
    JsonObjects,
    /// With a header line; separated by comma, tab or semicolon.
    Csv,
    Parquet,
    /// An Arrow stream, as Python's `datasets` writes it.
    Arrow,
    /// One record a line that is not blank.
    Text,
}

/// The records in order. After an `Err` the iterator must not be used again.
pub fn open(container: Container, store: &Store) -> Result<RawRecords> {
    Ok(match container {
        Container::JsonLines => Box::new(json::lines(store.reader()?)),
        Container::JsonArray => Box::new(json::elements(store.reader()?, true)),
        Container::JsonObjects => Box::new(json::elements(store.reader()?, false)),
        Container::Csv => Box::new(delimited::records(store.reader()?)?),
        Container::Parquet => Box::new(parquet::records(store.file()?)?),
        Container::Arrow => Box::new(arrow::records(store.file()?)?),
        Container::Text => Box::new(text(store)?),
    })
}

fn text(store: &Store) -> Result<impl Iterator<Item = Result<Raw>> + Send + use<>> {
    let mut lines = lines::Lines::new(store.reader()?);
    Ok(std::iter::from_fn(move || match lines.next_line() {
        Ok(None) => None,
        Ok(Some((line, bytes))) => {
            let value = bytes.and_then(|bytes| Ok(serde_json::json!({ "text": lines::utf8(bytes)? })));
            Some(Ok(Raw { line, value }))
        }
        Err(error) => Some(Err(broken(error))),
    }))
}

const HEAD_BYTES: u64 = 64 << 10;

pub fn detect(path: &Path, store: &Store, options: &ReadOptions) -> Result<Container> {
    let mut head = Vec::new();
    store.reader()?.take(HEAD_BYTES).read_to_end(&mut head).map_err(broken)?;
    let extension = extension(path);
    if head.starts_with(b"PAR1") {
        return Ok(Container::Parquet);
    }
    if head.starts_with(&arrow::MARK) {
        return Ok(Container::Arrow);
    }
    if head.is_empty() {
        return Err(Error::new("expected at least one record, found an empty file"));
    }
    let text = head.trim_ascii_start();
    match extension.as_str() {
        "parquet" => return Err(Error::new("expected a Parquet file, which begins with `PAR1`, found something else")),
        "csv" | "tsv" => return Ok(Container::Csv),
        "txt" | "md" | "text" => return Ok(Container::Text),
        _ => {}
    }
    let is_json_by_name = matches!(extension.as_str(), "json" | "jsonl" | "ndjson" | "jsonlines");
    match text.first() {
        Some(b'{') if is_spread_over_lines(text) => return Ok(Container::JsonObjects),
        Some(b'{') => return Ok(Container::JsonLines),
        // Without the name's word for it, a bracket may also open plain text.
        Some(b'[') if is_json_by_name || text[1..].trim_ascii_start().starts_with(b"{") => return Ok(Container::JsonArray),
        _ if is_json_by_name => return Ok(Container::JsonLines),
        _ => {}
    }
    if options.format == Some(Format::Text) {
        return Ok(Container::Text);
    }
    if let Some(names) = delimited::header(text) {
        let is_known = Format::of_keys(&|key| names.iter().any(|name| name == key)).is_some();
        let is_wanted = !options.mapping.is_empty() || options.format.is_some();
        if is_known || (is_wanted && names.len() > 1) {
            return Ok(Container::Csv);
        }
    }
    Err(Error::new("expected JSON Lines, a JSON array, CSV, Parquet or Arrow, found something else")
        .cure("For plain text use --format text; CSV needs the extension .csv or a header with known columns."))
}

/// Lower-case extension, that of compression left aside.
fn extension(path: &Path) -> String {
    let lower = |path: &Path| path.extension().unwrap_or(OsStr::new("")).to_string_lossy().to_lowercase();
    match lower(path).as_str() {
        "gz" | "zst" => path.file_stem().map(|stem| lower(Path::new(stem))).unwrap_or_default(),
        other => other.to_owned(),
    }
}

/// Whether the first object goes on after its first line. A row that was cut off looks alike, but then the line ends
/// inside a string, or the next line begins a new object.
fn is_spread_over_lines(text: &[u8]) -> bool {
    let Some(line_end) = text.iter().position(|&byte| byte == b'\n') else { return false };
    let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
    for &byte in &text[..line_end] {
        match byte {
            _ if is_escaped => is_escaped = false,
            b'\\' if in_string => is_escaped = true,
            b'"' => in_string = !in_string,
            b'{' | b'[' if !in_string => depth += 1,
            b'}' | b']' if !in_string => depth = depth.saturating_sub(1),
            _ => {}
        }
    }
    depth > 0 && !in_string && !text[line_end..].trim_ascii_start().starts_with(b"{")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn objects_over_several_lines_are_not_json_lines() {
        assert!(is_spread_over_lines(b"{\n \"a\": 1\n}"));
        assert!(is_spread_over_lines(b"{\"a\": [\n1]}"));
        assert!(!is_spread_over_lines(b"{\"a\": 1}\n{\"a\": 2}"));
        assert!(!is_spread_over_lines(b"{\"a\": \"cut off\n{\"a\": 2}"));
        assert!(!is_spread_over_lines(b"{\"a\": [1\n{\"a\": 2}"));
    }

    #[test]
    fn the_extension_before_the_compression_counts() {
        assert_eq!(extension(Path::new("a/b.CSV.gz")), "csv");
        assert_eq!(extension(Path::new("b.jsonl")), "jsonl");
        assert_eq!(extension(Path::new("-")), "");
    }
}
