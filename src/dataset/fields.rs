//! Accesses fields of a JSON object, with errors that state the path, what was expected and what was found.
//!
//! `null`, pandas' `NaN` and a missing key are equivalent, since Parquet and pandas write one for the other. Where a list or an object is expected,
//! a string with its JSON or its Python literal is accepted: CSV has nothing else, and ShareGPT files store their tools that way. Where text is
//! expected, a number or a boolean is read as Python prints it.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::{Map, Value};

use super::example::PlantedSpan;
use super::literal;
use crate::error::{Error, Result};
use crate::format::{beginning, python_float};

pub(super) type Object = Map<String, Value>;

pub(super) fn into_object(value: Value) -> Result<Object> {
    match value {
        Value::Object(object) => Ok(object),
        // A bare list of turns is a conversation.
        Value::Array(turns) if turns.first().is_some_and(is_turn) => {
            Ok(Map::from_iter([("messages".to_owned(), Value::Array(turns))]))
        }
        other => Err(Error::new(format!("expected an object with named fields, found {}", kind(&other)))),
    }
}

fn is_turn(value: &Value) -> bool {
    value.as_object().is_some_and(|turn| turn.contains_key("role") || turn.contains_key("from"))
}

/// The JSON type as a phrase for messages.
pub(super) fn kind(value: &Value) -> Cow<'static, str> {
    if let Some(number) = literal::verbatim(value) {
        return Cow::Owned(format!("`{number}`"));
    }
    Cow::Borrowed(match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    })
}

/// Formats `keys` for messages.
pub(super) fn list_keys<'a>(keys: impl Iterator<Item = &'a String>) -> String {
    const N_SHOWN: usize = 12;
    let keys: Vec<_> = keys.map(|key| format!("`{key}`")).collect();
    match keys.len() {
        0 => "no keys".to_owned(),
        1..=N_SHOWN => keys.join(", "),
        n => format!("{} and {} more", keys[..N_SHOWN].join(", "), n - N_SHOWN),
    }
}

/// Returns an error if two columns of a table have the same name.
pub(super) fn refuse_twice<'a>(mut names: impl Iterator<Item = &'a str>) -> Result<()> {
    let mut seen = HashSet::new();
    match names.find(|name| !seen.insert(*name)) {
        Some(name) => {
            Err(Error::new(format!("expected different column names, found `{name}` twice")).cure("Rename one of them."))
        }
        None => Ok(()),
    }
}

pub(super) fn wrong_type(path: &str, expected: &str, found: &Value) -> Error {
    // The text that was found, shortened.
    let shown = match found {
        Value::String(text) if literal::verbatim(found).is_none() => format!(", `{}`", beginning(text, 40)),
        Value::Bool(_) | Value::Number(_) => format!(", {found}"),
        _ => String::new(),
    };
    Error::new(format!("`{path}`: expected {expected}, found {}{shown}", kind(found)))
}

pub(super) fn missing(row: &Object, path: &str) -> Error {
    Error::new(format!("missing field `{path}`, found {}", list_keys(row.keys())))
}

/// Returns the first of `keys` that is present and not null.
pub(super) fn first<'a, 'k>(row: &'a Object, keys: &[&'k str]) -> Option<(&'k str, &'a Value)> {
    keys.iter().find_map(|&key| row.get(key).filter(|value| !literal::is_nothing(value)).map(|value| (key, value)))
}

/// Returns a string unchanged, and a number or a boolean as Python prints it: answers such as 5 are often written without quotes.
pub(super) fn text(value: &Value) -> Option<Cow<'_, str>> {
    match value {
        Value::String(text) => match literal::verbatim(value) {
            None => Some(Cow::Borrowed(text)),
            // An integer is text; `NaN` and the infinities are not.
            Some(number) => Some(Cow::Borrowed(number)).filter(|number| number.ends_with(|c: char| c.is_ascii_digit())),
        },
        Value::Bool(true) => Some(Cow::Borrowed("True")),
        Value::Bool(false) => Some(Cow::Borrowed("False")),
        Value::Number(number) => Some(Cow::Owned(match number.as_f64().filter(|_| number.is_f64()) {
            Some(number) => python_float(number),
            None => number.to_string(),
        })),
        _ => None,
    }
}

/// Returns the first of `keys` that is present, as text.
pub(super) fn optional_text<'a>(row: &'a Object, keys: &[&str], prefix: &str) -> Result<Option<Cow<'a, str>>> {
    match first(row, keys) {
        None => Ok(None),
        Some((key, value)) => match text(value) {
            Some(text) => Ok(Some(text)),
            None => Err(wrong_type(&format!("{prefix}{key}"), "a string", value)),
        },
    }
}

/// Returns the first of `keys` that is present, or an error if none is.
pub(super) fn required<'a, 'k>(row: &'a Object, keys: &[&'k str], prefix: &str) -> Result<(&'k str, &'a Value)> {
    let name = keys.first().copied().unwrap_or_default();
    first(row, keys).ok_or_else(|| match row.get(name) {
        Some(null) => wrong_type(&format!("{prefix}{name}"), "a value", null),
        None => missing(row, &format!("{prefix}{name}")),
    })
}

pub(super) fn required_text<'a>(row: &'a Object, keys: &[&str], prefix: &str) -> Result<Cow<'a, str>> {
    let (key, value) = required(row, keys, prefix)?;
    text(value).ok_or_else(|| wrong_type(&format!("{prefix}{key}"), "a string", value))
}

/// Parses a string as JSON or as a Python literal.
pub(super) fn embedded(text: &str) -> Result<Value, String> {
    literal::source(text).map_err(|error| error.message().to_owned())?;
    if !literal::may_hold_long_integers(text)
        && let Ok(value) = serde_json::from_str(text)
    {
        return Ok(value);
    }
    literal::json(text).or_else(|error| literal::python(text).map_err(|python| if text.contains('\'') { python } else { error }))
}

/// Parses the JSON in a string, such as the arguments of a call; integers keep their digits.
pub(crate) fn embedded_json(text: &str) -> Option<Value> {
    literal::source(text).ok()?;
    let plain = || serde_json::from_str(text).ok();
    if literal::may_hold_long_integers(text) { None } else { plain() }.or_else(|| literal::json(text).ok())
}

/// Returns a list, also from a string that holds one in JSON or as Python prints it.
pub(super) fn list<'a>(value: &'a Value, path: &str) -> Result<Cow<'a, [Value]>> {
    match value {
        Value::Array(list) => Ok(Cow::Borrowed(list)),
        Value::String(text) if literal::verbatim(value).is_none() => match embedded(text) {
            Ok(Value::Array(list)) => Ok(Cow::Owned(list)),
            Ok(other) => Err(wrong_type(path, "a list", &other)),
            Err(reason) => {
                let start = beginning(text, 40);
                Err(Error::new(format!(
                    "`{path}`: expected a list, found a string that does not contain one, `{start}`: {reason}"
                )))
            }
        },
        other => Err(wrong_type(path, "a list", other)),
    }
}

pub(super) fn object<'a>(value: &'a Value, path: &str) -> Result<&'a Object> {
    value.as_object().ok_or_else(|| wrong_type(path, "an object", value))
}

/// Returns a string or a number as an identifier; other values do not identify the row.
pub(super) fn label(row: &Object, key: &str) -> Option<String> {
    match row.get(key)? {
        value @ Value::String(text) if !text.is_empty() && !literal::is_nothing(value) => {
            Some(literal::verbatim(value).unwrap_or(text).to_owned())
        }
        Value::Number(number) => Some(number.to_string()),
        _ => None,
    }
}

/// Reads `planted`: a list of `{"turn", "begin", "end"}`, in bytes of that turn's content.
pub(super) fn planted(row: &Object, contents: &[&str]) -> Result<Vec<PlantedSpan>> {
    let Some((_, value)) = first(row, &["planted"]) else { return Ok(Vec::new()) };
    // An empty cell of a CSV file.
    if value.as_str() == Some("") {
        return Ok(Vec::new());
    }
    let mut spans = Vec::new();
    for (idx, span) in list(value, "planted")?.iter().enumerate() {
        let path = format!("planted[{idx}]");
        let span = object(span, &path)?;
        let number = |key: &str| {
            let (_, value) = required(span, &[key], &format!("{path}."))?;
            let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
            number.ok_or_else(|| Error::new(format!("`{path}.{key}`: expected a whole number from 0, found {value}")))
        };
        let (turn, begin, end) = (number("turn")?, number("begin")?, number("end")?);
        let Some(content) = contents.get(turn) else {
            return Err(Error::new(format!(
                "`{path}.turn`: expected less than {}, the number of turns, found {turn}",
                contents.len()
            )));
        };
        if begin >= end || end > content.len() {
            let found = format!("found {begin}..{end}");
            return Err(Error::new(format!(
                "`{path}`: expected begin < end <= {}, the bytes of turn {turn}, {found}",
                content.len()
            )));
        }
        if !content.is_char_boundary(begin) || !content.is_char_boundary(end) {
            return Err(Error::new(format!("`{path}`: expected bytes on character boundaries, found {begin}..{end}")));
        }
        let (Ok(turn), Ok(begin), Ok(end)) = (u16::try_from(turn), u32::try_from(begin), u32::try_from(end)) else {
            return Err(Error::new(format!("`{path}`: expected at most 65,536 turns of 4 GiB, found a span beyond them")));
        };
        spans.push(PlantedSpan { turn, begin, end });
    }
    Ok(spans)
}
