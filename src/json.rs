//! Typed access to the fields of a JSON object: `null` counts as absent, and a value of the wrong type is an error that names the
//! key. Also reads JSON that other programs wrote: Python's json writes NaN and Infinity, which JSON does not have, and the error
//! names them.

use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::format::beginning;

/// Why a text is not valid JSON of the expected type.
#[derive(Debug)]
pub(crate) struct Unreadable {
    cause: serde_json::Error,
    number: Option<&'static str>,
}

impl std::fmt::Display for Unreadable {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let Unreadable { cause, number } = self;
        match number {
            Some(number) => write!(
                f,
                "found {number} at line {} column {}, which is not valid JSON, although Python's json writes it",
                cause.line(),
                cause.column()
            ),
            None => cause.fmt(f),
        }
    }
}

impl std::error::Error for Unreadable {}

/// Like serde_json's function of that name, for text that other programs may have written.
pub(crate) fn from_slice<T: DeserializeOwned>(text: &[u8]) -> Result<T, Unreadable> {
    serde_json::from_slice(text).map_err(|cause| {
        let line = text.split(|&byte| byte == b'\n').nth(cause.line().saturating_sub(1));
        Unreadable { number: line.and_then(|line| foreign_number(line, cause.column())), cause }
    })
}

/// Like [`from_slice`].
pub(crate) fn from_str<T: DeserializeOwned>(text: &str) -> Result<T, Unreadable> {
    from_slice(text.as_bytes())
}

/// The number unknown to JSON at which serde_json stopped, in this column (counted from 1) of a line.
pub(crate) fn foreign_number(line: &[u8], column: usize) -> Option<&'static str> {
    // serde_json stops at the first letter, or after it if there is a sign.
    (column.saturating_sub(3)..column).find_map(|at| {
        let rest = line.get(at..)?;
        ["NaN", "Infinity", "-Infinity"].into_iter().find(|number| rest.starts_with(number.as_bytes()))
    })
}

/// Reads back a number that may be infinite or NaN: JSON cannot express these, they are written as null, and null becomes NaN.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// Like [`null_is_nan`], for a number that can be infinite but never NaN, such as an exponential.
pub(crate) fn null_is_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// Reads back an interval. If one of its ends was not finite, and is therefore null, there is no interval.
pub(crate) fn finite_ends<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<[f64; 2]>, D::Error> {
    Ok(match Option::<[Option<f64>; 2]>::deserialize(deserializer)? {
        Some([Some(low), Some(high)]) => Some([low, high]),
        _ => None,
    })
}

/// A whole number that must be present.
pub(crate) fn count(json: &Value, key: &str) -> Result<usize> {
    optional_count(json, key)?.ok_or_else(|| Error::new(format!("`{key}` is missing; expected a whole number")))
}

pub(crate) fn optional_count(json: &Value, key: &str) -> Result<Option<usize>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) => Ok(Some(n as usize)),
            None => Err(Error::new(format!("expected a whole number for `{key}`, found {value}"))),
        },
    }
}

pub(crate) fn number(json: &Value, key: &str) -> Result<Option<f64>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(x) => Ok(Some(x)),
            None => Err(Error::new(format!("expected a number for `{key}`, found {value}"))),
        },
    }
}

pub(crate) fn flag(json: &Value, key: &str) -> Result<Option<bool>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_bool() {
            Some(x) => Ok(Some(x)),
            None => Err(Error::new(format!("expected true or false for `{key}`, found {value}"))),
        },
    }
}

/// The value, unless it is absent or `null`.
pub(crate) fn present<'a>(json: &'a Value, key: &str) -> Option<&'a Value> {
    json.get(key).filter(|value| !value.is_null())
}

/// The error for a value that is not what was expected; shows only the beginning of a long one.
pub(crate) fn expected(key: &str, what: &str, found: &Value) -> Error {
    Error::new(format!("expected `{key}` to be {what}, found {}", beginning(&found.to_string(), 60)))
}

pub(crate) fn pretty(json: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(json).context("cannot write JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The shortest decimal that rounds to this f32: GGUF holds 0.00001 as an f32, and 0.000009999999747378752 is hard to read.
pub(crate) fn shortest(x: f32) -> f64 {
    x.to_string().parse().unwrap_or(f64::from(x))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn absent_null_and_of_another_kind() {
        let json = json!({"n": 3, "x": 0.5, "yes": true, "nothing": null});
        assert_eq!((count(&json, "n").unwrap(), number(&json, "x").unwrap()), (3, Some(0.5)));
        assert_eq!((optional_count(&json, "nothing").unwrap(), flag(&json, "nowhere").unwrap()), (None, None));
        assert!(present(&json, "nothing").is_none() && present(&json, "yes").is_some());
        for error in
            [count(&json, "nothing").unwrap_err(), optional_count(&json, "x").unwrap_err(), flag(&json, "n").unwrap_err()]
        {
            assert!(error.to_string().contains('`'), "{error}");
        }
    }

    #[test]
    fn numbers_that_json_does_not_have_are_named_with_their_place() {
        let said = |text: &str| from_str::<Value>(text).unwrap_err().to_string();
        for number in ["NaN", "Infinity", "-Infinity"] {
            for (text, place) in [
                (number.to_owned(), "line 1 column "),
                (format!("{{\"x\": {number}}}"), "line 1 column "),
                (format!("[1,{number},2]"), "line 1 column "),
                (format!("{{\n\"a\": 1,\n  \"x\": [0.0, {number}]\n}}"), "line 3 column "),
            ] {
                let said = said(&text);
                assert!(said.starts_with(&format!("found {number} at {place}")), "{text}: {said}");
            }
            // Deserialised into a type, and skipped.
            let typed = from_str::<Vec<f64>>(&format!("[1.5, {number}]")).unwrap_err().to_string();
            assert!(typed.starts_with(&format!("found {number} at line 1 column ")), "{typed}");
            let passed = from_str::<Vec<serde::de::IgnoredAny>>(&format!("[1.5, {number}]")).unwrap_err().to_string();
            assert!(passed.starts_with(&format!("found {number} at line 1 column ")), "{passed}");
        }
        for text in ["", "{", "[1,]", "{\"NaN\" 1}", "[\"NaN\"x]", "Nan", "[Inf]", "{\"a\": nan}"] {
            assert!(!said(text).contains("Python"), "{text}: {}", said(text));
        }
        assert_eq!(from_str::<Value>("{\"NaN\": \"-Infinity\"}").unwrap(), json!({"NaN": "-Infinity"}));
    }

    #[test]
    fn short_decimals() {
        assert_eq!(shortest(1e-5), 1e-5);
        assert_eq!(shortest(30.0), 30.0);
    }
}
