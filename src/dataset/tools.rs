//! Tool schemas and tool calls -> OpenAI's present form, whatever form the row has.
//!
//! Covered: `tool_calls`, the older `function_call` and `functions`, bare `{"name", "arguments"}`, arguments as an object or
//! as a string of JSON, all of it inside a string of JSON. Arguments become objects, because that is what chat templates
//! print; key order is kept.

use serde_json::{Map, Value, json};

use super::fields::{self, Object, kind, missing, wrong_type};
use crate::error::{Error, Result};

/// The row's `tools` (or older `functions`) as a JSON array of `{"type": "function", "function": {..}}`; none if empty.
pub fn schemas(row: &Object) -> Result<Option<Value>> {
    let Some((key, value)) = fields::first(row, &["tools", "functions"]) else { return Ok(None) };
    if value.as_str().is_some_and(|text| text.trim().is_empty()) {
        return Ok(None);
    }
    let schemas = fields::list(value, key)?;
    let wrap = |(idx, schema): (usize, &Value)| {
        let object = fields::object(schema, &format!("{key}[{idx}]"))?;
        let is_bare = object.contains_key("name") && !object.contains_key("function");
        Ok(if is_bare { json!({ "type": "function", "function": schema }) } else { schema.clone() })
    };
    let schemas = schemas.iter().enumerate().map(wrap).collect::<Result<Vec<_>>>()?;
    Ok((!schemas.is_empty()).then_some(Value::Array(schemas)))
}

/// The calls of a turn's `tool_calls` or `function_call` field; empty if it has none.
pub fn calls_of_turn(turn: &Object, path: &str) -> Result<Vec<Value>> {
    let mut calls = Vec::new();
    if let Some((key, value)) = fields::first(turn, &["tool_calls"]) {
        let path = format!("{path}.{key}");
        for (idx, value) in fields::list(value, &path)?.iter().enumerate() {
            calls.push(call(value, &format!("{path}[{idx}]"))?);
        }
    }
    if let Some((key, value)) = fields::first(turn, &["function_call"]) {
        calls.push(call(value, &format!("{path}.{key}"))?);
    }
    Ok(calls)
}

/// One call or a list of calls, as JSON or as a string that holds it.
pub fn calls_of_value(value: &Value, path: &str) -> Result<Vec<Value>> {
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = serde_json::from_str(text).map_err(|error| {
                Error::new(format!("`{path}`: expected a tool call as JSON, found text that is not JSON ({error})"))
            })?;
            &parsed
        }
        other => other,
    };
    match value {
        Value::Array(list) if list.is_empty() => Err(Error::new(format!("`{path}`: expected a tool call, found an empty list"))),
        Value::Array(list) => list.iter().enumerate().map(|(idx, value)| call(value, &format!("{path}[{idx}]"))).collect(),
        other => Ok(vec![call(other, path)?]),
    }
}

fn call(value: &Value, path: &str) -> Result<Value> {
    let object = fields::object(value, path)?;
    let (function, path) = match object.get("function") {
        Some(Value::Object(function)) => (function, format!("{path}.function")),
        Some(other) if !object.contains_key("name") => return Err(wrong_type(&format!("{path}.function"), "an object", other)),
        _ => (object, path.to_owned()),
    };
    let name = fields::required_text(function, &["name"], &format!("{path}."))?;
    if !function.contains_key("arguments") {
        return Err(missing(function, &format!("{path}.arguments")));
    }
    let arguments = arguments(&function["arguments"], &format!("{path}.arguments"))?;
    let mut call = Map::new();
    call.insert("type".to_owned(), json!("function"));
    if let Some(id) = fields::label(object, "id") {
        call.insert("id".to_owned(), json!(id));
    }
    call.insert("function".to_owned(), json!({ "name": name, "arguments": arguments }));
    Ok(Value::Object(call))
}

/// A function without parameters is called with `""`, `null` or `{}`.
fn arguments(value: &Value, path: &str) -> Result<Value> {
    match value {
        Value::Object(_) => Ok(value.clone()),
        Value::Null => Ok(json!({})),
        Value::String(text) if text.trim().is_empty() => Ok(json!({})),
        Value::String(text) => match serde_json::from_str::<Value>(text) {
            Ok(Value::Object(arguments)) => Ok(Value::Object(arguments)),
            Ok(other) => Err(Error::new(format!("`{path}`: expected an object, found a string that holds {}", kind(&other)))),
            Err(error) => Err(Error::new(format!("`{path}`: expected an object, found a string that is not JSON ({error})"))),
        },
        other => Err(wrong_type(path, "an object", other)),
    }
}
