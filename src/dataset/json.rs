//! JSON Lines, JSON arrays and concatenated JSON objects -> one value per record.
//!
//! An array is never parsed whole: a small scanner that knows only strings and brackets cuts it into its elements, and each
//! element is parsed by itself. So a broken element costs one row, and a file larger than the memory can be read.

use std::io::{self, BufRead};

use serde_json::Value;

use super::files::{Reader, broken};
use super::lines::{Lines, MAX_RECORD_BYTES, too_long, utf8};
use super::raw::Raw;
use crate::error::{Error, Result};

/// One value a line.
pub fn lines(reader: Reader) -> impl Iterator<Item = Result<Raw>> + Send {
    let mut lines = Lines::new(reader);
    std::iter::from_fn(move || match lines.next_line() {
        Ok(None) => None,
        Ok(Some((line, bytes))) => Some(Ok(Raw { line, value: bytes.and_then(|bytes| parse(bytes, line)) })),
        Err(error) => Some(Err(broken(error))),
    })
}

/// The elements of one array; or, when `in_array` is false, objects one after the other, however they are laid out.
pub fn elements(reader: Reader, in_array: bool) -> impl Iterator<Item = Result<Raw>> + Send {
    let mut scanner = Scanner { reader, line: 1, in_array, stage: if in_array { Stage::Before } else { Stage::Inside } };
    std::iter::from_fn(move || match scanner.next_element() {
        Ok(None) => None,
        Ok(Some((line, bytes))) => Some(Ok(Raw { line, value: bytes.and_then(|bytes| parse(&bytes, line)) })),
        Err(error) => Some(Err(broken(error))),
    })
}

/// Parses one record that starts on `line`.
pub fn parse(bytes: &[u8], line: u64) -> Result<Value> {
    serde_json::from_str(utf8(bytes)?).map_err(|error| {
        // serde_json counts lines from the start of the record and appends them to the message.
        let position = format!(" at line {} column {}", error.line(), error.column());
        let message = error.to_string();
        let reason = message.strip_suffix(&position).unwrap_or(&message);
        let line = line + (error.line() as u64).saturating_sub(1);
        Error::new(format!("expected valid JSON, found {reason} (line {line}, column {})", error.column()))
    })
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
        if self.stage == Stage::After {
            self.stage = Stage::Done;
            if self.skip_space()?.is_some() {
                let error = Error::new("expected the end of the file after the closing `]`, found more text");
                return Ok(Some((self.line, Err(error.cure("Write one JSON array, or one object a line.")))));
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
                // A comma too many hides no data.
                Some(b',') => self.reader.consume(1),
                Some(_) => return self.element().map(Some),
            }
        }
    }

    /// Cuts at the comma or bracket that ends the element; without an array, at its own closing bracket or the line's end.
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
                        Err(error.cure("If rows are missing after it: it lacks a closing bracket or quote.")),
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
                        // Strings cannot hold a raw line end: a quote is missing, and the damage stays within this element.
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

    /// The next byte that is not white space, not consumed.
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

    /// `line: value` or `line: !` for every element.
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
    fn objects_may_follow_one_another_in_any_layout() {
        assert_eq!(cut("{\n\"a\": 1\n}\n{\"b\":\n2} {\"c\": 3}\n", false), r#"1: {"a":1}; 4: {"b":2}; 5: {"c":3}"#);
        assert_eq!(cut("x\n{\"a\": 1}", false), r#"1: !; 2: {"a":1}"#);
    }
}
