//! Parses JSON and its Python variants into JSON values.
//!
//! ```text
//! json.dumps     NaN, Infinity, -Infinity                               kept as written (`VERBATIM`); NaN counts as a missing value
//! str(list)      ['it''s', "it's", None, True, ('a', 'b'), 1_000, nan]  lists in cells, as written by pandas' to_csv
//! str(array)     [{'a': 1}                                              NumPy puts no comma between elements
//!                 {'a': 2}]
//! ```
//!
//! Not supported: expressions, names, bytes, sets. Nothing is evaluated.

use serde_json::{Map, Number, Value};

use crate::error::{Error, Result as Checked};
use crate::format::{beginning, python_float};

/// Parses JSON, extended by Python's `NaN`, `Infinity` and `-Infinity`.
pub(super) fn json(text: &str) -> Result<Value, String> {
    Parser { text, at: 0, depth: 0, is_python: false }.whole()
}

/// Parses a literal as written by Python's `repr`.
pub(super) fn python(text: &str) -> Result<Value, String> {
    Parser { text, at: 0, depth: 0, is_python: true }.whole()
}

/// The prefix of a string that stands for a number that a JSON value cannot hold, as it was written: an integer of more than 64 bits, `NaN`,
/// `Infinity` or `-Infinity`. It is a Unicode noncharacter; data with texts that contain it are refused.
const VERBATIM: char = '\u{FDD3}';

/// Returns the number as it was written, if the value stands for one that JSON cannot hold.
pub(crate) fn verbatim(value: &Value) -> Option<&str> {
    value.as_str()?.strip_prefix(VERBATIM)
}

/// Converts any number to a value, also NaN and the infinities.
pub(super) fn number(number: f64) -> Value {
    let word = if number.is_nan() {
        "NaN"
    } else if number > 0.0 {
        "Infinity"
    } else {
        "-Infinity"
    };
    Number::from_f64(number).map_or_else(|| Value::String(format!("{VERBATIM}{word}")), Value::Number)
}

/// Whether the value is null or `NaN`, by which pandas marks a missing value.
pub(super) fn is_nothing(value: &Value) -> bool {
    value.is_null() || verbatim(value) == Some("NaN")
}

/// Checks that a text of the data does not contain [`VERBATIM`].
pub(super) fn text(text: &str) -> Checked<&str> {
    if text.contains(VERBATIM) { Err(verbatim_in_text()) } else { Ok(text) }
}

/// Checks that unparsed JSON or Python output contains [`VERBATIM`] neither itself nor as an escape.
pub(super) fn source(source: &str) -> Checked<&str> {
    let names_it = |at: usize| {
        ["ufdd3", "U0000fdd3"].iter().any(|name| {
            let found = source.as_bytes().get(at..at + name.len()).unwrap_or_default();
            found.first() == name.as_bytes().first() && found.eq_ignore_ascii_case(name.as_bytes())
        })
    };
    // After an escaped backslash, the letters are plain text.
    let is_escape = |at: usize| source[..at].bytes().rev().take_while(|&byte| byte == b'\\').count() % 2 == 0;
    let mut backslashes = source.match_indices('\\').map(|(at, _)| at);
    if backslashes.any(|at| names_it(at + 1) && is_escape(at)) { Err(verbatim_in_text()) } else { text(source) }
}

fn verbatim_in_text() -> Error {
    Error::new("the text contains the Unicode noncharacter U+FDD3").cure("It comes from a broken conversion: remove it.")
}

/// Serialises the value like Python's `json.dumps(.., ensure_ascii=False)`.
pub(crate) fn dumps(value: &Value) -> String {
    let mut out = String::new();
    write(&mut out, value, ", ", ": ");
    out
}

/// Serialises a row as one line of a file.
pub(crate) fn line(row: &Map<String, Value>) -> String {
    let mut out = String::new();
    write_object(&mut out, row, ",", ":");
    out
}

fn write(out: &mut String, value: &Value, comma: &str, colon: &str) {
    match value {
        Value::Array(list) => {
            out.push('[');
            for (idx, value) in list.iter().enumerate() {
                out.push_str(if idx > 0 { comma } else { "" });
                write(out, value, comma, colon);
            }
            out.push(']');
        }
        Value::Object(object) => write_object(out, object, comma, colon),
        other => match (verbatim(other), other.as_f64().filter(|_| other.is_f64())) {
            (Some(number), _) => out.push_str(number),
            (None, Some(number)) => out.push_str(&python_float(number)),
            (None, None) => out.push_str(&other.to_string()),
        },
    }
}

fn write_object(out: &mut String, object: &Map<String, Value>, comma: &str, colon: &str) {
    out.push('{');
    for (idx, (key, value)) in object.iter().enumerate() {
        out.push_str(if idx > 0 { comma } else { "" });
        out.push_str(&Value::from(key.as_str()).to_string());
        out.push_str(colon);
        write(out, value, comma, colon);
    }
    out.push('}');
}

/// The beginning of the message about an integer that is too large.
pub(super) const TOO_LONG: &str = "found an integer of more than 128 bits";

/// Whether the text may contain an integer of more than 64 bits, which serde_json would parse as a float.
pub(super) fn may_hold_long_integers(text: &str) -> bool {
    const N_DIGITS: usize = 19;
    let mut n_digits = 0;
    text.bytes().any(|byte| {
        n_digits = if byte.is_ascii_digit() { n_digits + 1 } else { 0 };
        n_digits == N_DIGITS
    })
}

/// Returns an integer of more than 64 bits as a text with the prefix [`VERBATIM`], or `None` if a JSON number can hold it.
fn long_integer(written: &str) -> Result<Option<Value>, String> {
    let digits = written.strip_prefix('-').unwrap_or(written);
    if digits.is_empty() || !digits.bytes().all(|byte| byte.is_ascii_digit()) || (digits.len() > 1 && digits.starts_with('0')) {
        return Ok(None);
    }
    if written.parse::<i64>().is_ok() || written.parse::<u64>().is_ok() {
        return Ok(None);
    }
    match written.parse::<i128>().is_ok() || written.parse::<u128>().is_ok() {
        true => Ok(Some(Value::String(format!("{VERBATIM}{written}")))),
        false => Err(format!("{TOO_LONG}, {written}")),
    }
}

/// Returns the infinity that Python makes of a number beyond the largest float, such as `1E400`, or `None` for anything else.
fn beyond(written: &str) -> Option<f64> {
    let digits = written.strip_prefix('-').unwrap_or(written);
    let is_number = digits.starts_with(|c: char| c.is_ascii_digit())
        && !(digits.starts_with('0') && digits[1..].starts_with(|c: char| c.is_ascii_digit()));
    written.parse::<f64>().ok().filter(|number| is_number && number.is_infinite())
}

/// The maximum nesting depth, as in serde_json: deeper nesting is a mistake that would exhaust the stack.
const MAX_DEPTH: usize = 128;

struct Parser<'a> {
    text: &'a str,
    at: usize,
    depth: usize,
    is_python: bool,
}

impl Parser<'_> {
    fn whole(mut self) -> Result<Value, String> {
        let value = self.value()?;
        self.skip_space();
        match self.rest() {
            "" => Ok(value),
            _ => Err(format!("found more text after the value: {}", self.found())),
        }
    }

    fn rest(&self) -> &str {
        &self.text[self.at..]
    }

    /// Returns the text at the current position, for messages.
    fn found(&self) -> String {
        let rest = beginning(self.rest(), 20);
        if rest.is_empty() { "the end".to_owned() } else { format!("`{rest}` at byte {}", self.at) }
    }

    fn skip_space(&mut self) {
        self.at += self.rest().len() - self.rest().trim_start_matches([' ', '\t', '\n', '\r']).len();
    }

    fn take(&mut self, token: &str) -> bool {
        let is_there = self.rest().starts_with(token);
        self.at += if is_there { token.len() } else { 0 };
        is_there
    }

    fn value(&mut self) -> Result<Value, String> {
        self.skip_space();
        let Some(first) = self.rest().chars().next() else { return Err("expected a value, found the end".to_owned()) };
        match first {
            '{' => self.nested(Self::object),
            '[' => self.nested(|parser| parser.list(']').map(|(list, _)| Value::Array(list))),
            '(' if self.is_python => self.nested(Self::tuple),
            '"' => self.strings(),
            '\'' if self.is_python => self.strings(),
            '-' | '+' | '0'..='9' | '.' => self.number(),
            _ => self.word(),
        }
    }

    fn nested(&mut self, read: impl FnOnce(&mut Self) -> Result<Value, String>) -> Result<Value, String> {
        self.depth += 1;
        if self.depth > MAX_DEPTH {
            return Err(format!("found more than {MAX_DEPTH} brackets inside each other"));
        }
        self.at += 1;
        let value = read(self);
        self.depth -= 1;
        value
    }

    fn object(&mut self) -> Result<Value, String> {
        let mut object = Map::new();
        loop {
            self.skip_space();
            if self.take("}") && (self.is_python || object.is_empty()) {
                return Ok(Value::Object(object));
            }
            let key = self.key()?;
            self.skip_space();
            if !self.take(":") {
                return Err(format!("expected `:` after the key, found {}", self.found()));
            }
            let value = self.value()?;
            object.insert(key, value);
            self.skip_space();
            if self.take("}") {
                return Ok(Value::Object(object));
            }
            if !self.take(",") {
                return Err(format!("expected `,` or `}}`, found {}", self.found()));
            }
        }
    }

    /// Parses a string or, in Python, a number, which becomes the text that `json.dumps` makes of it.
    fn key(&mut self) -> Result<String, String> {
        let found = self.found();
        let is_quoted = self.rest().starts_with('"') || (self.is_python && self.rest().starts_with('\''));
        match self.value()? {
            Value::String(key) if is_quoted => Ok(key),
            number if self.is_python && (number.is_number() || verbatim(&number).is_some()) => Ok(dumps(&number)),
            _ => Err(format!("expected a key in quotes, found {found}")),
        }
    }

    /// Parses the values up to the closing bracket, and reports whether a comma precedes it.
    fn list(&mut self, close: char) -> Result<(Vec<Value>, bool), String> {
        let (mut list, mut has_comma) = (Vec::new(), false);
        let close = close.to_string();
        loop {
            self.skip_space();
            if (self.is_python || list.is_empty()) && self.take(&close) {
                return Ok((list, has_comma));
            }
            list.push(self.value()?);
            self.skip_space();
            if self.take(&close) {
                return Ok((list, false));
            }
            // NumPy separates the elements of object arrays by white space instead of commas.
            let is_array = self.is_python && self.rest().starts_with(['{', '[']);
            has_comma = self.take(",");
            if !has_comma && !is_array {
                return Err(format!("expected `,` or `{close}`, found {}", self.found()));
            }
        }
    }

    /// Parses `(x)` as `x`, and `(x,)` as a list.
    fn tuple(&mut self) -> Result<Value, String> {
        match self.list(')')? {
            (mut list, false) if list.len() == 1 => Ok(list.remove(0)),
            (list, _) => Ok(Value::Array(list)),
        }
    }

    /// Parses one or more strings; Python concatenates adjacent ones.
    fn strings(&mut self) -> Result<Value, String> {
        let mut text = self.string()?;
        while self.is_python {
            let before = self.at;
            self.skip_space();
            if !self.rest().starts_with(['"', '\'']) {
                self.at = before;
                break;
            }
            text.push_str(&self.string()?);
        }
        Ok(Value::String(text))
    }

    fn string(&mut self) -> Result<String, String> {
        let quote = if self.take("'") { '\'' } else { '"' };
        if quote == '"' {
            self.at += 1;
        }
        let mut out = String::new();
        loop {
            let Some(c) = self.rest().chars().next() else { return Err("expected a closing quote, found the end".to_owned()) };
            self.at += c.len_utf8();
            match c {
                _ if c == quote => return Ok(out),
                '\\' => self.escape(&mut out)?,
                c if c < ' ' && !self.is_python => {
                    return Err(format!("found the control character U+{:04X} inside a string", u32::from(c)));
                }
                c => out.push(c),
            }
        }
    }

    fn escape(&mut self, out: &mut String) -> Result<(), String> {
        let begin = self.at - 1;
        let Some(c) = self.rest().chars().next() else { return Err("expected a closing quote, found the end".to_owned()) };
        self.at += c.len_utf8();
        match c {
            'n' => out.push('\n'),
            't' => out.push('\t'),
            'r' => out.push('\r'),
            'b' => out.push('\u{8}'),
            'f' => out.push('\u{c}'),
            '\\' | '"' | '/' => out.push(c),
            'u' => {
                let mut code = self.hexadecimal(4)?;
                if (0xD800..0xDC00).contains(&code) && self.take("\\u") {
                    let low = self.hexadecimal(4)?;
                    if !(0xDC00..0xE000).contains(&low) {
                        return Err(self.half_pair(begin));
                    }
                    code = 0x10000 + ((code - 0xD800) << 10) + (low - 0xDC00);
                }
                out.push(char::from_u32(code).ok_or_else(|| self.half_pair(begin))?);
            }
            '\'' if self.is_python => out.push('\''),
            '\n' if self.is_python => {}
            'a' if self.is_python => out.push('\u{7}'),
            'v' if self.is_python => out.push('\u{b}'),
            '0' if self.is_python => out.push('\0'),
            'x' | 'U' if self.is_python => {
                let code = self.hexadecimal(if c == 'x' { 2 } else { 8 })?;
                out.push(char::from_u32(code).ok_or_else(|| self.half_pair(begin))?);
            }
            // Python keeps the backslash of an unknown escape.
            other if self.is_python => out.extend(['\\', other]),
            other => return Err(format!("found the unknown escape `\\{other}`")),
        }
        Ok(())
    }

    fn half_pair(&self, begin: usize) -> String {
        format!("found `{}`, half of a surrogate pair, which is not a character", &self.text[begin..self.at])
    }

    fn hexadecimal(&mut self, n_digits: usize) -> Result<u32, String> {
        let digits = self.rest().get(..n_digits).unwrap_or_default();
        let code = Some(digits).filter(|digits| digits.bytes().all(|byte| byte.is_ascii_hexdigit()));
        let code = code.and_then(|digits| u32::from_str_radix(digits, 16).ok());
        let code = code.ok_or_else(|| format!("expected {n_digits} hexadecimal digits, found {}", self.found()))?;
        self.at += n_digits;
        Ok(code)
    }

    fn number(&mut self) -> Result<Value, String> {
        let words = [("-Infinity", f64::NEG_INFINITY), ("-inf", f64::NEG_INFINITY), ("-nan", f64::NAN), ("+inf", f64::INFINITY)];
        for (word, value) in words {
            if (word == "-Infinity" || self.is_python) && self.take(word) {
                return Ok(number(value));
            }
        }
        let is_part = |c: char| c.is_ascii_alphanumeric() || matches!(c, '+' | '-' | '.' | '_');
        let length = self.rest().find(|c| !is_part(c)).unwrap_or(self.rest().len());
        let written = &self.rest()[..length];
        let mut plain = written.to_owned();
        if self.is_python {
            plain.retain(|c| c != '_');
            // NumPy prints `1.` and `.5`.
            if plain.ends_with('.') {
                plain.push('0');
            }
            if let Some(fraction) = plain.strip_prefix('.') {
                plain = format!("0.{fraction}");
            }
        }
        if let Some(integer) = long_integer(&plain)? {
            self.at += length;
            return Ok(integer);
        }
        let value = match serde_json::from_str::<Number>(&plain) {
            Ok(number) => Value::Number(number),
            Err(_) => number(beyond(&plain).ok_or_else(|| format!("expected a number, found `{written}`"))?),
        };
        self.at += length;
        Ok(value)
    }

    fn word(&mut self) -> Result<Value, String> {
        let words: &[(&str, Value)] = &[
            ("true", Value::Bool(true)),
            ("false", Value::Bool(false)),
            ("null", Value::Null),
            ("NaN", number(f64::NAN)),
            ("Infinity", number(f64::INFINITY)),
            ("True", Value::Bool(true)),
            ("False", Value::Bool(false)),
            ("None", Value::Null),
            ("nan", number(f64::NAN)),
            ("inf", number(f64::INFINITY)),
        ];
        const N_JSON: usize = 5;
        let length = self.rest().find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(self.rest().len());
        let word = &self.rest()[..length];
        let known = if self.is_python { words } else { &words[..N_JSON] };
        let Some((_, value)) = known.iter().find(|(name, _)| *name == word) else {
            return Err(format!("expected a value, found {}", self.found()));
        };
        self.at += length;
        Ok(value.clone())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn literals_are_read_as_python_reads_them() {
        let check = |text: &str, expected: Value| assert_eq!(python(text), Ok(expected), "{text}");
        // The values that `ast.literal_eval` returns for these texts.
        check(r#"[{'a': "it's", 'b': None}, {'a': 'say "x"'}]"#, json!([{"a": "it's", "b": null}, {"a": "say \"x\""}]));
        check(r"'a\n\t\\\'\x41\u00e9\U0001F600\d'", json!("a\n\t\\'Aé😀\\d"));
        check("('a', 'b',)", json!(["a", "b"]));
        check("('a')", json!("a"));
        check("('a',)", json!(["a"]));
        check("(('a',))", json!(["a"]));
        check("(('a',), )", json!([["a"]]));
        check("[('a'), (('a', ) ), ()]", json!(["a", ["a"], []]));
        check("('a' \"b\")", json!("ab"));
        let words = json!([1, -2.5, 1000, true, false, "\u{FDD3}NaN", "\u{FDD3}-Infinity"]);
        check("[1, -2.5, 1_000, True, False, nan, -inf]", words);
        check("{1: {}, 'b': [], nan: 2, 1e16: 3}", json!({"1": {}, "b": [], "NaN": 2, "1e+16": 3}));
        // str(numpy.array([{..}, {..}], dtype=object))
        check("[{'a': 1}\n {'a': 2.}]", json!([{"a": 1}, {"a": 2.0}]));
        for text in ["[__import__('os')]", "{'a'}", "[1, 2", "'a", "b'x'", "[1 2]", "", "{'a': 1} x"] {
            assert!(python(text).is_err(), "{text}");
        }
    }

    #[test]
    fn json_is_json_but_for_three_words() {
        // They are also serialised as they were written.
        let text = r#"{"a": NaN, "b": [Infinity, -Infinity, null, 1e+16, 12345678901234567890123, "é\n"]}"#;
        assert_eq!(json(text).map(|value| dumps(&value)), Ok(text.to_owned()));
        assert_eq!(json(text).map(|value| line(value.as_object().unwrap())), Ok(text.replace(", ", ",").replace(": ", ":")));
        // The values that `json.loads` returns for this text.
        assert_eq!(json("[1E400, -1e999, 1E-400]").map(|value| dumps(&value)), Ok("[Infinity, -Infinity, 0.0]".to_owned()));
        assert_eq!(json(r#" "\ud83d\ude00\u00e9\/" "#), Ok(json!("😀é/")));
        for text in [
            "{NaN: 1}",
            "{-Infinity: 1}",
            "{12345678901234567890123: 1}",
            "{1: 1}",
            "{null: 1}",
            "{'a': 1}",
            "[1,]",
            "{\"a\": 1,}",
            "None",
            "[nan]",
            "\"a\nb\"",
            "01x",
            "01E400",
            "1E400x",
            "{} {}",
        ] {
            assert!(json(text).is_err(), "{text}");
        }
        assert!(json(r#""\ud800 x""#).unwrap_err().contains(r"`\ud800`, half of a surrogate pair"));
        assert!(json(&"[".repeat(100_000)).unwrap_err().contains("brackets"));
    }

    #[test]
    fn what_stands_before_our_numbers_is_refused_in_texts_and_nothing_like_it() {
        for refused in ["\u{fdd3}", r"\ufdd3", r"a\uFDD3", r"\\\ufdd3", r"\U0000fdd3", r#"{"a": "\uFdd3NaN"}"#] {
            assert!(source(refused).is_err(), "{refused}");
        }
        // An escaped backslash and letters do not form an escape.
        for fine in [r"\\ufdd3", r"\\\\ufdd3", "ufdd3", r"\ufdd4", r"\Ufdd3", r"\u0000fdd3", "é\\\\uFDD3", "u", "U"] {
            assert!(source(fine).is_ok(), "{fine}");
        }
        assert!(text("\u{fdd3}").is_err() && text(r"\ufdd3").is_ok());
    }

    /// The parser returns the same values as serde_json, and accepts only `NaN` and the infinities in addition.
    #[test]
    fn the_parser_agrees_with_serde_json_on_random_text() {
        let pieces = ["{", "}", "[", "]", ",", ":", "\"a\"", "\"\\n\"", "1", "-2.5", "1e3", "true", "null", " ", "\"é\""];
        let mut state = 7_u64;
        let mut n_valid = 0;
        for _ in 0..200_000 {
            let mut text = String::new();
            for _ in 0..(state >> 60) + 1 {
                state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                text.push_str(pieces[(state >> 33) as usize % pieces.len()]);
            }
            let expected = serde_json::from_str::<Value>(&text).ok();
            n_valid += usize::from(expected.is_some());
            // Numbers beyond the largest float are infinite here, as in Python.
            let found = json(&text).ok().filter(|found| !found.to_string().contains("Infinity"));
            assert_eq!(found, expected, "{text}");
        }
        assert!(n_valid > 1000, "{n_valid}");
    }
}
