//! Values out of a JSON object by key, of the kind that is expected there. `null` is as good as absent; what is of another kind
//! is an error that names the key.

use serde::{Deserialize, Deserializer};
use serde_json::Value;

use crate::error::{Context, Error, Result};
use crate::format::beginning;

/// Reads a number back that JSON has no word for: what is infinite or not a number is written as null, and is no number here.
pub(crate) fn null_is_nan<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::NAN))
}

/// As [`null_is_nan`], of a number that can be infinite alone, as e to the power of something can.
pub(crate) fn null_is_infinite<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<f64, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or(f64::INFINITY))
}

/// Reads an interval back. One with an end that was no number, and is null, tells nothing.
pub(crate) fn finite_ends<'de, D: Deserializer<'de>>(deserializer: D) -> std::result::Result<Option<[f64; 2]>, D::Error> {
    Ok(match Option::<[Option<f64>; 2]>::deserialize(deserializer)? {
        Some([Some(low), Some(high)]) => Some([low, high]),
        _ => None,
    })
}

/// A whole number that must be there.
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

/// The value, unless it is `null`.
pub(crate) fn present<'a>(json: &'a Value, key: &str) -> Option<&'a Value> {
    json.get(key).filter(|value| !value.is_null())
}

/// The error of a value that is another than it should be; of a long one its beginning is shown.
pub(crate) fn expected(key: &str, what: &str, found: &Value) -> Error {
    Error::new(format!("expected `{key}` to be {what}, found {}", beginning(&found.to_string(), 60)))
}

pub(crate) fn pretty(json: &Value) -> Result<Vec<u8>> {
    let mut bytes = serde_json::to_vec_pretty(json).context("cannot write JSON")?;
    bytes.push(b'\n');
    Ok(bytes)
}

/// The shortest decimal that is this f32: GGUF holds 0.00001 as an f32, and 0.000009999999747378752 is nothing to read.
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
    fn short_decimals() {
        assert_eq!(shortest(1e-5), 1e-5);
        assert_eq!(shortest(30.0), 30.0);
    }
}
