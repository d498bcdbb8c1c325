//! Splits a file's bytes into one JSON value per record, whatever the container.
//!
//! The first bytes identify Parquet, Arrow and JSON; the extension identifies CSV and plain text. `.json` and `.jsonl` are treated alike, since
//! either may hold an array or lines.

use std::ffi::OsStr;
use std::io::Read;
use std::path::Path;

use serde::de::IgnoredAny;

use super::files::{Store, broken};
use super::folders::about_data;
use super::format::Format;
use super::frame::Columns;
use super::options::ReadOptions;
use super::raw::{Raw, RawRecords};
use super::{arrow, delimited, json, lines, parquet};
use crate::error::{Error, Result};
use crate::files::pointer;
use crate::format::beginning;

/// How records are laid out in a file, once it is decompressed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Container {
    /// One JSON object per line.
    JsonLines,
    /// One array of objects.
    JsonArray,
    /// Objects one after another, each spread over lines.
    JsonObjects,
    /// One object with the list of rows, which begins at this byte offset.
    JsonWrapped(u64),
    /// With a header line; separated by comma, tab or semicolon.
    Csv,
    Parquet,
    /// An Arrow stream, as written by Python's `datasets`, or an Arrow file (Feather).
    Arrow,
    /// One record per non-blank line.
    Text,
}

/// Iterates over the records in order. After an `Err` the iterator must not be used again.
pub(super) fn open(container: Container, store: &Store) -> Result<RawRecords> {
    Ok(match container {
        Container::JsonLines => Box::new(json::lines(store.reader()?).flat_map(json::by_rows)),
        Container::JsonArray => Box::new(json::elements(store.reader()?, true)),
        Container::JsonObjects => Box::new(json::elements(store.reader()?, false).flat_map(json::by_rows)),
        Container::JsonWrapped(begin) => Box::new(json::wrapped(store.reader()?, begin)?),
        Container::Csv => Box::new(delimited::records(store.reader()?)?),
        Container::Parquet => Box::new(parquet::records(store.file()?)?),
        Container::Arrow => Box::new(arrow::records(store.file()?)?),
        Container::Text => Box::new(text(store)?),
    })
}

/// Returns which columns of a typed table are read; all columns of other containers are.
pub(super) fn columns(container: Container, store: &Store) -> Result<Columns> {
    match container {
        Container::Parquet => parquet::columns(&store.file()?),
        Container::Arrow => arrow::columns(store.file()?),
        _ => Ok(Columns::default()),
    }
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

pub(super) fn detect(path: &Path, store: &Store, options: &ReadOptions) -> Result<Container> {
    let mut head = Vec::new();
    store.reader()?.take(HEAD_BYTES).read_to_end(&mut head).map_err(broken)?;
    // Git LFS and git-annex pointers are refused under any file name, also inside archives.
    if let Some(refused) = pointer(&head) {
        return Err(refused);
    }
    let extension = extension(path);
    if head.starts_with(b"PAR1") {
        return Ok(Container::Parquet);
    }
    if head.starts_with(&arrow::STREAM_MARK) || head.starts_with(arrow::FILE_MARK) {
        return Ok(Container::Arrow);
    }
    if head.is_empty() {
        return Err(Error::new("expected at least one record, found an empty file"));
    }
    let text = head.trim_ascii_start();
    let is_text_by_name = matches!(extension.as_str(), "txt" | "md" | "text");
    // A text may begin with a tag, as chat logs do; an HTML page passes for text only with `--format text`.
    let is_said = options.format == Some(Format::Text);
    let is_text = text.starts_with(b"<") && (is_said || (is_text_by_name && !is_page(text)));
    if let Some((name, cure)) = known(&head).filter(|_| !is_text) {
        let error = Error::new(format!("expected JSON Lines, a JSON array, CSV, Parquet or Arrow, found {name}"));
        return Err(if cure.is_empty() { error } else { error.cure(cure) });
    }
    let is_csv = matches!(extension.as_str(), "csv" | "tsv");
    // A line feed in a cell does not end the header.
    let header = text.split(|&byte| byte == b'\n').next().unwrap_or_default().trim_ascii_end();
    if ends_lines_with_returns(text) || is_csv && header.contains(&b'\r') {
        return Err(Error::new(
            "expected lines that end in a line feed, found some that end in a carriage return only, as on old Macs",
        )
        .cure("Convert the file: tr '\\r' '\\n' < FILE > NEW."));
    }
    match extension.as_str() {
        "parquet" => return Err(Error::new("expected a Parquet file, which begins with `PAR1`, found something else")),
        _ if is_csv => return Ok(Container::Csv),
        _ if is_text_by_name => return Ok(Container::Text),
        _ => {}
    }
    let is_json_by_name = matches!(extension.as_str(), "json" | "jsonl" | "ndjson" | "jsonlines");
    let n_blank = (head.len() - text.len()) as u64;
    match text.first() {
        Some(b'{') if let Some(begin) = list_of_rows(text) => return Ok(Container::JsonWrapped(begin as u64 + n_blank)),
        Some(b'{') if is_spread_over_lines(text) => return Ok(Container::JsonObjects),
        Some(b'{') => return Ok(Container::JsonLines),
        Some(b'[') if is_conversation_a_line(text) => return Ok(Container::JsonLines),
        // Without a JSON extension, a bracket may also begin plain text.
        Some(b'[') if is_json_by_name || text[1..].trim_ascii_start().starts_with(b"{") => return Ok(Container::JsonArray),
        _ if is_json_by_name => return Ok(Container::JsonLines),
        _ => {}
    }
    if is_said {
        return Ok(Container::Text);
    }
    if let Some(names) = delimited::header(text) {
        let is_known = Format::of_keys(&|key| names.iter().any(|name| name == key)).is_some();
        let is_wanted = !options.mapping.is_empty() || options.format.is_some();
        if is_known || (is_wanted && names.len() > 1) {
            return Ok(Container::Csv);
        }
    }
    Err(Error::new(format!("expected JSON Lines, a JSON array, CSV, Parquet or Arrow, found {}", found(&head)))
        .cure("For plain text use --format text; CSV needs the extension .csv or a header with known columns."))
}

/// Recognises files that hold no data by their first decompressed bytes. Returns a description and a remedy.
fn known(head: &[u8]) -> Option<(&'static str, &'static str)> {
    const TWICE: &str = "a file that is compressed twice";
    const TABLE: &str = "Write the rows as JSON Lines or Parquet.";
    let known: [(&[u8], &str, &str); 10] = [
        (b"%PDF", "a PDF", ""),
        (b"<", "a page of HTML or XML (a login page instead of the file?)", ""),
        (b"GGUF", "a GGUF model", ""),
        (b"\x89HDF", "an HDF5 file", TABLE),
        (b"SQLite format 3", "an SQLite database", TABLE),
        (b"\x93NUMPY", "a NumPy array", TABLE),
        (b"\x80\x04\x95", "a Python pickle", TABLE),
        (b"\x80\x05\x95", "a Python pickle", TABLE),
        (b"\x1F\x8B", TWICE, "Unpack it once."),
        (b"PK\x03\x04", TWICE, "Unpack it once."),
    ];
    if head.get(257..262) == Some(b"ustar") {
        return Some(("a tar archive", "Unpack it into a separate folder, and name that: tar -xf FILE -C FOLDER."));
    }
    if let Some(about) = about_data(head) {
        return Some((about, "Name the data files themselves."));
    }
    known.iter().find(|(mark, ..)| head.trim_ascii_start().starts_with(mark)).map(|(_, name, cure)| (*name, *cure))
}

/// Whether lines end in carriage returns alone. JSON allows these as white space, so there the first line must be a complete row that another line
/// follows.
fn ends_lines_with_returns(text: &[u8]) -> bool {
    let mut lines = text.split(|&byte| byte == b'\r').filter(|line| !line.trim_ascii().is_empty());
    let first = lines.next().unwrap_or_default();
    let is_row = !first.starts_with(b"{") && !first.starts_with(b"[") || crate::json::from_slice::<IgnoredAny>(first).is_ok();
    !text.contains(&b'\n') && is_row && lines.next().is_some()
}

/// Whether the text is an HTML page or an XML document.
fn is_page(text: &[u8]) -> bool {
    let starts = |mark: &[u8]| text.get(..mark.len()).is_some_and(|start| start.eq_ignore_ascii_case(mark));
    starts(b"<!doctype") || starts(b"<html") || starts(b"<?xml")
}

/// Describes the first bytes for an error message.
fn found(head: &[u8]) -> String {
    // A character has at most four bytes; the 31st shows that the text goes on.
    let start = beginning(&String::from_utf8_lossy(&head[..head.len().min(4 * 31)]), 30);
    format!("something else, which begins with `{}`", start.escape_debug())
}

/// Returns the lower-case extension, ignoring that of the compression.
fn extension(path: &Path) -> String {
    let lower = |path: &Path| path.extension().unwrap_or(OsStr::new("")).to_string_lossy().to_lowercase();
    match lower(path).as_str() {
        "gz" | "zst" | "bz2" | "xz" => path.file_stem().map(|stem| lower(Path::new(stem))).unwrap_or_default(),
        other => other.to_owned(),
    }
}

/// Keys under which an object may hold the list of all rows.
pub(super) const ROWS: [&[u8]; 8] = [b"data", b"rows", b"train", b"examples", b"items", b"samples", b"records", b"entries"];

/// Returns the offset of the list of rows in an object that wraps it. Its elements must be objects but not turns: `{"data": ["a", "b"]}` is one
/// row. Returns `None` if more text follows the object: then each object is a row, whatever it holds.
fn list_of_rows(text: &[u8]) -> Option<usize> {
    let (mut depth, mut string_begin, mut is_escaped) = (0_usize, None, false);
    let mut last_string: &[u8] = &[];
    let mut found = None;
    for (idx, &byte) in text.iter().enumerate() {
        match (byte, string_begin) {
            _ if is_escaped => is_escaped = false,
            (b'\\', Some(_)) => is_escaped = true,
            (b'"', Some(begin)) => {
                last_string = &text[begin..idx];
                string_begin = None;
            }
            (b'"', None) => string_begin = Some(idx + 1),
            (_, Some(_)) => {}
            (b'[', None) if depth == 1 && ROWS.contains(&last_string) => {
                if found.is_some() {
                    depth += 1;
                    continue;
                }
                let first = text[idx + 1..].trim_ascii_start();
                let first_key = first.strip_prefix(b"{").map(|rest| rest.trim_ascii_start());
                let is_turn = |rest: &[u8]| [&b"\"role\""[..], b"\"from\""].iter().any(|key| rest.starts_with(key));
                found = Some(first_key.filter(|rest| !is_turn(rest)).map(|_| idx)?);
                depth += 1;
            }
            (b'{' | b'[', None) => depth += 1,
            (b'}' | b']', None) => {
                depth = depth.saturating_sub(1);
                if depth == 0 {
                    return found.filter(|_| text[idx + 1..].trim_ascii_start().is_empty());
                }
            }
            _ => {}
        }
    }
    found
}

/// Whether the first line is a complete list of turns, so that each line is a conversation.
fn is_conversation_a_line(text: &[u8]) -> bool {
    let line = text.split(|&byte| byte == b'\n').next().unwrap_or_default();
    let Ok(serde_json::Value::Array(turns)) = serde_json::from_slice(line) else { return false };
    let has_any = |turn: &serde_json::Value, keys: &[&str]| keys.iter().any(|key| turn.get(key).is_some());
    turns.first().is_some_and(|turn| has_any(turn, &["role", "from"]) && has_any(turn, &["content", "value", "tool_calls"]))
}

/// Whether the first object continues after its first line. A truncated row looks similar, but then the line ends inside a string, or the next line
/// begins a new object.
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
    fn a_list_of_rows_is_found_inside_an_object() {
        let check = |text: &[u8], expected: Option<usize>| assert_eq!(list_of_rows(text), expected, "{}", text.escape_ascii());
        check(br#"{"version": "a[\"data\": [{", "data": [{"a": 1}]}"#, Some(38));
        check(br#"{"meta": {"rows": [{"a": 1}]}, "rows": [ {}]}"#, Some(39));
        check(br#"{"data": ["a", "b"]}"#, None);
        check(br#"{"data": [{"role": "user", "content": "a"}]}"#, None);
        check(br#"{"messages": [{"a": 1}]}"#, None);
        check(br#"{"a": 1} {"data": [{}]}"#, None);
        check(b"{\"data\": [{\"a\": 1}]}\n{\"data\": [{\"a\": 1}]}\n", None);
        check(b"{\"data\": [{\"a\": 1}]}\n", Some(9));
        assert!(is_conversation_a_line(b"[{\"role\": \"user\", \"content\": \"a\"}]\n[]"));
        assert!(!is_conversation_a_line(b"[{\"prompt\": \"a\"}]") && !is_conversation_a_line(b"[\n{\"role\": 1}]"));
    }

    #[test]
    fn what_is_no_data_is_refused_under_every_name() {
        let folder = tempfile::tempdir().unwrap();
        let found = |name: &str, bytes: &[u8], format: Option<Format>| {
            let path = folder.path().join(name);
            std::fs::write(&path, bytes).unwrap();
            let options = ReadOptions { format, ..ReadOptions::default() };
            Store::open(&path).and_then(|store| detect(&path, &store, &options)).map_err(|error| error.to_string())
        };
        let packed = |bytes: &[u8]| {
            let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
            std::io::Write::write_all(&mut encoder, bytes).unwrap();
            encoder.finish().unwrap()
        };
        let pointer = b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n";
        let refused: [(&[u8], &str); 5] = [
            (pointer, "Git LFS pointer"),
            (b"/annex/objects/MD5E-s9--00.txt\n", "git-annex pointer"),
            (b"%PDF-1.7\n", "a PDF"),
            (b"GGUF\x03\0\0\0", "a GGUF model"),
            (b"SQLite format 3\0", "an SQLite database"),
        ];
        for name in ["a", "a.txt", "a.md", "a.csv", "a.tsv", "a.jsonl", "a.json"] {
            for (bytes, what) in refused {
                for format in [None, Some(Format::Text), Some(Format::Messages)] {
                    assert!(found(name, bytes, format).unwrap_err().contains(what), "{name} {what}");
                    let error = found(&format!("{name}.gz"), &packed(bytes), format).unwrap_err();
                    assert!(error.contains(what), "{name}.gz {what}: {error}");
                }
            }
            assert!(found(name, b"<!DOCTYPE html>\n<html>", None).unwrap_err().contains("a page of HTML"), "{name}");
        }
        // A chat log, and a page that the user declares to be text.
        assert_eq!(found("a.txt", b"<user> Hello", None), Ok(Container::Text));
        assert_eq!(found("a.txt", b"<html>", Some(Format::Text)), Ok(Container::Text));
    }

    #[test]
    fn the_extension_before_the_compression_counts() {
        assert_eq!(extension(Path::new("a/b.CSV.gz")), "csv");
        assert_eq!(extension(Path::new("b.jsonl")), "jsonl");
        assert_eq!(extension(Path::new("-")), "");
    }
}
