//! Reads JSON Lines, JSON arrays and concatenated JSON objects, one value per record.
//!
//! An array is never parsed as a whole: a small scanner that knows only strings and brackets cuts it into its elements, and each element is parsed
//! by itself. So a malformed element costs one row, and a file may be larger than the memory.

use std::io::{self, BufRead, Read};

use serde_json::{Map, Value};

use super::files::{Reader, broken};
use super::lines::{Lines, MAX_RECORD_BYTES, too_long, utf8};
use super::literal;
use super::raw::Raw;
use crate::error::{Error, Result};
use crate::format::beginning;

/// Reads one value per line.
pub(super) fn lines(reader: Reader) -> impl Iterator<Item = Result<Raw>> + Send {
    let mut lines = Lines::new(reader);
    std::iter::from_fn(move || match lines.next_line() {
        Ok(None) => None,
        Ok(Some((line, bytes))) => Some(Ok(Raw { line, value: bytes.and_then(|bytes| parse(bytes, line)) })),
        Err(error) => Some(Err(broken(error))),
    })
}

/// Reads the elements of one array or, if `in_array` is false, objects one after another in any layout.
pub(super) fn elements(reader: Reader, in_array: bool) -> impl Iterator<Item = Result<Raw>> + Send {
    let mut scanner =
        Scanner { reader, line: 1, in_array, is_wrapped: false, stage: if in_array { Stage::Before } else { Stage::Inside } };
    std::iter::from_fn(move || match scanner.next_element() {
        Ok(None) => None,
        Ok(Some((line, bytes))) => Some(Ok(Raw { line, value: bytes.and_then(|bytes| parse(&bytes, line)) })),
        Err(error) => Some(Err(broken(error))),
    })
}

/// Reads the elements of the list of rows that begins at byte `begin`, inside an object such as `{"version": 1, "data": [..]}`.
pub(super) fn wrapped(mut reader: Reader, begin: u64) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let mut head = Vec::new();
    reader.by_ref().take(begin).read_to_end(&mut head).map_err(broken)?;
    let line = 1 + head.iter().filter(|&&byte| byte == b'\n').count() as u64;
    let mut scanner = Scanner { reader, line, in_array: true, is_wrapped: true, stage: Stage::Before };
    Ok(std::iter::from_fn(move || match scanner.next_element() {
        Ok(None) => None,
        Ok(Some((line, bytes))) => Some(Ok(Raw { line, value: bytes.and_then(|bytes| parse(&bytes, line)) })),
        Err(error) => Some(Err(broken(error))),
    }))
}

/// Splits a record that holds a whole table by columns, as written by pandas' `to_json`: `{"a": {"0": .., "1": ..}, "b": {..}}`, or
/// `{"a": [..], "b": [..]}`. Other records stay as they are.
pub(super) fn by_rows(raw: Result<Raw>) -> Vec<Result<Raw>> {
    match raw {
        Ok(Raw { line, value: Ok(Value::Object(columns)) }) => match rows_of_columns(&columns) {
            Some(rows) => rows.into_iter().map(|row| Ok(Raw { line, value: Ok(Value::Object(row)) })).collect(),
            None => vec![Ok(Raw { line, value: Ok(Value::Object(columns)) })],
        },
        other => vec![other],
    }
}

fn rows_of_columns(columns: &Map<String, Value>) -> Option<Vec<Map<String, Value>>> {
    if let Some(rows) = rows_of_split(columns) {
        return Some(rows);
    }
    let first = columns.values().next()?;
    let row = |cell: &dyn Fn(&Value) -> Option<Value>| -> Option<Map<String, Value>> {
        columns.iter().map(|(name, column)| Some((name.clone(), cell(column)?))).collect()
    };
    match first {
        Value::Object(cells) => {
            // pandas numbers its rows, whereas objects that are values of a row have names as keys.
            let is_column = |value: &Value| {
                value.as_object().is_some_and(|other| other.len() == cells.len() && other.keys().eq(cells.keys()))
            };
            let is_numbered = !cells.is_empty() && cells.keys().all(|key| key.bytes().all(|byte| byte.is_ascii_digit()));
            let is_table = is_numbered && columns.values().all(is_column);
            is_table.then(|| cells.keys().map(|key| row(&|column| column.get(key).cloned())).collect())?
        }
        Value::Array(cells) => {
            // A row may hold lists, too: lists of turns, or a single list.
            let is_turn =
                |value: &Value| value.as_object().is_some_and(|turn| turn.contains_key("role") || turn.contains_key("from"));
            let is_column = |value: &Value| {
                value.as_array().is_some_and(|other| other.len() == cells.len() && !other.first().is_some_and(is_turn))
            };
            let is_table = columns.len() > 1 && !cells.is_empty() && columns.values().all(is_column);
            is_table.then(|| (0..cells.len()).map(|idx| row(&|column| column.get(idx).cloned())).collect())?
        }
        _ => None,
    }
}

/// Splits pandas' `orient="split"`: `{"columns": ["a", "b"], "index": [0], "data": [["x", "y"]]}`.
fn rows_of_split(table: &Map<String, Value>) -> Option<Vec<Map<String, Value>>> {
    let [names, data] = ["columns", "data"].map(|key| table.get(key).and_then(Value::as_array));
    let (names, data) = (names?, data?);
    if table.keys().any(|key| !["columns", "index", "data"].contains(&key.as_str())) {
        return None;
    }
    let names = names.iter().map(|name| name.as_str().map(str::to_owned)).collect::<Option<Vec<String>>>()?;
    let row = |cells: &Value| {
        let cells = cells.as_array().filter(|cells| cells.len() == names.len())?;
        Some(names.iter().cloned().zip(cells.iter().cloned()).collect())
    };
    data.iter().map(row).collect()
}

/// Parses one record that starts on `line`.
pub(super) fn parse(bytes: &[u8], line: u64) -> Result<Value> {
    let text = literal::source(utf8(bytes)?)?;
    // Concatenated files have a byte-order mark in the middle.
    let text = text.strip_prefix('\u{FEFF}').unwrap_or(text);
    if literal::may_hold_long_integers(text) {
        match literal::json(text) {
            Ok(value) => return Ok(value),
            Err(found) if found.contains(literal::TOO_LONG) => {
                return Err(
                    Error::new(format!("expected integers of at most 128 bits, {found}")).cure("Write it as text, in quotes.")
                );
            }
            Err(_) => {}
        }
    }
    serde_json::from_str(text).or_else(|error| {
        // Python's `print(row)` uses single quotes.
        let is_printed = text.starts_with("{'") || text.starts_with("[{'");
        let dialect = literal::json(text).or_else(|error| if is_printed { literal::python(text) } else { Err(error) });
        // serde_json counts lines from the start of the record and appends them to the message.
        let position = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        let reason = message.strip_suffix(&position).unwrap_or(&message);
        let line = line + (error.line() as u64).saturating_sub(1);
        dialect.map_err(|found| {
            // The dialect parser's message shows the text that was found; serde_json's error has the position.
            let place = format!("line {line}, column {}", error.column());
            let error = Error::new(match found.strip_prefix("found ") {
                Some(found) => format!("expected valid JSON, found {found} ({place})"),
                // serde_json stopped at a word that is accepted here, so the actual error is further on.
                None if ["`NaN", "`Infinity", "`-Infinity"].iter().any(|word| text_at(text, &error).starts_with(word)) => {
                    format!("expected valid JSON: {found}")
                }
                None => format!("expected valid JSON, found {} ({reason}; {place})", text_at(text, &error)),
            });
            match found.contains("surrogate") {
                true => error.cure("Write the character itself, or both halves: \\ud83d\\ude00 is one."),
                false => error,
            }
        })
    })
}

/// Returns the text at which the parser stopped, for messages.
fn text_at(text: &str, error: &serde_json::Error) -> String {
    const N_SHOWN: usize = 20;
    let line = text.split('\n').nth(error.line().saturating_sub(1)).unwrap_or_default();
    // Columns count bytes, from 1; the end of the text is one past its last byte.
    let mut at = error.column().saturating_sub(1).min(line.len());
    while !line.is_char_boundary(at) {
        at -= 1;
    }
    let rest = beginning(&line[at..], N_SHOWN);
    if error.is_eof() || rest.is_empty() { "the end".to_owned() } else { format!("`{rest}`") }
}

/// The line where an element starts, and its bytes or why they are unusable.
type Element = (u64, Result<Vec<u8>>);

#[derive(Clone, Copy, PartialEq)]
enum Stage {
    /// Before the opening bracket.
    Before,
    Inside,
    /// After the closing bracket.
    After,
    Done,
}

struct Scanner {
    reader: Reader,
    line: u64,
    in_array: bool,
    /// Whether the array is a member of an object, so that more may follow it.
    is_wrapped: bool,
    stage: Stage,
}

impl Scanner {
    fn next_element(&mut self) -> io::Result<Option<Element>> {
        if self.stage == Stage::Before {
            if self.skip_space()? == Some(b'[') {
                self.reader.consume(1);
            }
            self.stage = Stage::Inside;
        }
        if self.stage == Stage::After && self.is_wrapped {
            self.stage = Stage::Done;
            if let Some(line) = self.another_list()? {
                let error = Error::new("expected one list of rows in the object, found another one after it");
                return Ok(Some((line, Err(error.cure("Put each list into a separate file.")))));
            }
            return Ok(None);
        }
        if self.stage == Stage::After {
            self.stage = Stage::Done;
            if self.skip_space()?.is_some() {
                let error = Error::new("expected the end of the file after the closing `]`, found more text");
                return Ok(Some((self.line, Err(error.cure("Write one JSON array, or one object per line.")))));
            }
        }
        if self.stage == Stage::Done {
            return Ok(None);
        }
        loop {
            match self.skip_space()? {
                None if self.in_array => {
                    self.stage = Stage::Done;
                    return Ok(Some((
                        self.line,
                        Err(Error::new("expected `]` at the end of the array, found the end of the file")),
                    )));
                }
                None => return Ok(None),
                Some(b']') if self.in_array => {
                    self.reader.consume(1);
                    self.stage = Stage::After;
                    return self.next_element();
                }
                // A superfluous comma hides no data.
                Some(b',') => self.reader.consume(1),
                Some(_) => return self.element().map(Some),
            }
        }
    }

    /// Cuts at the comma or bracket that ends the element; outside an array, at its own closing bracket or the line's end.
    fn element(&mut self) -> io::Result<Element> {
        let start_line = self.line;
        let mut bytes = Vec::new();
        let (mut depth, mut in_string, mut is_escaped) = (0_usize, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                if depth > 0 && self.in_array {
                    self.stage = Stage::Done;
                    let error = Error::new("expected the end of this element, found the end of the file");
                    return Ok((
                        start_line,
                        Err(error.cure("If rows are missing after it, it lacks a closing bracket or quote.")),
                    ));
                }
                return Ok((start_line, Ok(bytes)));
            }
            let mut end = None;
            for (idx, &byte) in buffer.iter().enumerate() {
                if in_string {
                    match byte {
                        _ if is_escaped => is_escaped = false,
                        b'\\' => is_escaped = true,
                        b'"' => in_string = false,
                        // Strings cannot contain a raw line feed: a quote is missing, and the damage stays within this element.
                        b'\n' => in_string = false,
                        _ => {}
                    }
                } else {
                    match byte {
                        b'"' => in_string = true,
                        b'{' | b'[' => depth += 1,
                        b']' | b',' if depth == 0 && self.in_array => end = Some(idx),
                        b'}' | b']' => {
                            depth = depth.saturating_sub(1);
                            if depth == 0 && !self.in_array {
                                end = Some(idx + 1);
                            }
                        }
                        b'\n' if depth == 0 && !self.in_array => end = Some(idx),
                        _ => {}
                    }
                }
                if end.is_some() {
                    break;
                }
                self.line += u64::from(byte == b'\n');
            }
            let n_taken = end.unwrap_or(buffer.len());
            bytes.extend_from_slice(&buffer[..n_taken]);
            self.reader.consume(n_taken);
            if end.is_some() {
                return Ok((start_line, Ok(bytes)));
            }
            if bytes.len() > MAX_RECORD_BYTES {
                self.stage = Stage::Done;
                return Ok((start_line, Err(too_long().cure("The rest of the file was not read: where does this element end?"))));
            }
        }
    }

    /// Returns the line of another list of objects in the rest of the object.
    fn another_list(&mut self) -> io::Result<Option<u64>> {
        let (mut in_string, mut is_escaped, mut is_opened) = (false, false, false);
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let n_bytes = buffer.len();
            for &byte in buffer {
                match byte {
                    _ if is_escaped => is_escaped = false,
                    b'\\' if in_string => is_escaped = true,
                    b'"' => in_string = !in_string,
                    b'{' if is_opened && !in_string => return Ok(Some(self.line)),
                    b'\n' => self.line += 1,
                    _ => {}
                }
                is_opened = !in_string && (byte == b'[' || (is_opened && byte.is_ascii_whitespace()));
            }
            self.reader.consume(n_bytes);
        }
    }

    /// Peeks at the next byte that is not white space.
    fn skip_space(&mut self) -> io::Result<Option<u8>> {
        loop {
            let buffer = self.reader.fill_buf()?;
            if buffer.is_empty() {
                return Ok(None);
            }
            let n_blank = buffer.iter().take_while(|byte| byte.is_ascii_whitespace()).count();
            self.line += buffer[..n_blank].iter().filter(|&&byte| byte == b'\n').count() as u64;
            let found = buffer.get(n_blank).copied();
            self.reader.consume(n_blank);
            if found.is_some() {
                return Ok(found);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Formats every element as `line: value` or `line: !`.
    fn cut(text: &str, in_array: bool) -> String {
        let reader: Reader = Box::new(io::BufReader::with_capacity(3, io::Cursor::new(text.to_owned())));
        let show = |raw: Raw| match raw.value {
            Ok(value) => format!("{}: {value}", raw.line),
            Err(_) => format!("{}: !", raw.line),
        };
        elements(reader, in_array).map(|raw| show(raw.unwrap())).collect::<Vec<_>>().join("; ")
    }

    #[test]
    fn an_array_is_cut_into_elements() {
        assert_eq!(cut("[]", true), "");
        assert_eq!(cut(" [\n1, \"a,]\\\"[\",\n{\"b\": [1,\n2]}\n]\n", true), r#"2: 1; 2: "a,]\"["; 3: {"b":[1,2]}"#);
        assert_eq!(cut("[1,2,]", true), "1: 1; 1: 2");
    }

    #[test]
    fn a_broken_element_costs_one_row() {
        assert_eq!(cut("[{\"a\": },\n{\"a\": 1}]", true), r#"1: !; 2: {"a":1}"#);
        assert_eq!(cut("[{\"a\": \"x\n},\n{\"a\": 1}]", true), r#"1: !; 3: {"a":1}"#);
        assert_eq!(cut("[1 2, 3]", true), "1: !; 1: 3");
        assert_eq!(cut("[1,\n2", true), "1: 1; 2: 2; 2: !");
        assert_eq!(cut("[1,\n", true), "1: 1; 2: !");
        assert_eq!(cut("[1]\n[2]", true), "1: 1; 2: !");
        assert_eq!(cut("[1, {\"a\":", true), "1: 1; 1: !");
    }

    #[test]
    fn a_list_inside_an_object_is_read_to_its_end() {
        let read = |text: &str| {
            let begin = text.find('[').unwrap() as u64;
            let reader: Reader = Box::new(io::BufReader::with_capacity(3, io::Cursor::new(text.to_owned())));
            let show = |raw: Raw| format!("{}: {}", raw.line, raw.value.map_or("!".to_owned(), |value| value.to_string()));
            wrapped(reader, begin).unwrap().map(|raw| show(raw.unwrap())).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(read("{\"v\": 1,\n\"data\": [{\"a\": 1},\n2], \"n\": [1, \"[{\"]}"), r#"2: {"a":1}; 3: 2"#);
        assert_eq!(read("{\"train\": [1], \"test\":\n[ {}]}"), "1: 1; 2: !");
        assert_eq!(read("{\"data\": [1"), "1: 1; 1: !");
    }

    #[test]
    fn columns_become_rows() {
        let check = |record: Value, expected: Value| {
            let rows = by_rows(Ok(Raw { line: 1, value: Ok(record.clone()) }));
            assert_eq!(Value::Array(rows.into_iter().map(|row| row.unwrap().value.unwrap()).collect()), expected, "{record}");
        };
        let rows = serde_json::json!([{"a": "x", "b": 1}, {"a": "y", "b": null}]);
        check(serde_json::json!({"a": {"0": "x", "7": "y"}, "b": {"0": 1, "7": null}}), rows.clone());
        check(serde_json::json!({"a": ["x", "y"], "b": [1, null]}), rows.clone());
        check(serde_json::json!({"columns": ["a", "b"], "index": [0, 1], "data": [["x", 1], ["y", null]]}), rows);
        check(
            serde_json::json!({"columns": ["a", "b"], "index": [5], "data": [["x", 1]]}),
            serde_json::json!([{"a": "x", "b": 1}]),
        );
        for whole in [
            serde_json::json!({"a": {"0": "x"}, "b": 1}),
            serde_json::json!({"prompt": [{"role": "user"}], "completion": [{"role": "assistant"}]}),
            serde_json::json!({"data": ["a", "b"]}),
            serde_json::json!({"a": {"x": 1}, "b": {"x": 2}}),
            serde_json::json!({}),
        ] {
            check(whole.clone(), serde_json::json!([whole]));
        }
    }

    #[test]
    fn objects_may_follow_one_another_in_any_layout() {
        assert_eq!(cut("{\n\"a\": 1\n}\n{\"b\":\n2} {\"c\": 3}\n", false), r#"1: {"a":1}; 4: {"b":2}; 5: {"c":3}"#);
        assert_eq!(cut("x\n{\"a\": 1}", false), r#"1: !; 2: {"a":1}"#);
    }
}
