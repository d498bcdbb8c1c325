//! Converts tool schemas and tool calls from any form to OpenAI's current one.
//!
//! Supported: `tool_calls`, the older `function_call` and `functions`, bare `{"name", "arguments"}`, all of these inside a JSON string; Anthropic's
//! `tool_use` and `input_schema`, Bedrock's `toolUse` and `toolSpec`, Gemini's `functionCall` and `functionDeclarations`.
//!
//! Arguments stay as the row has them: text stays the same text, and an object keeps the order of its keys. Arrow gives every row the keys of all
//! rows, with null for those that the row lacks; this padding is removed (`without_padding`).

use std::borrow::Cow;

use serde_json::{Map, Value, json};

use super::example::Turn;
use super::fields::{self, Object, wrong_type};
use super::literal::is_nothing;
use crate::error::{Error, Result};

/// A tool call of a turn.
#[derive(Debug, Clone, PartialEq)]
pub struct Call<'a> {
    /// The name of the tool.
    pub name: &'a str,
    /// The arguments: what the text holds where the row has them as JSON text, since both mean the same.
    pub arguments: Cow<'a, Value>,
    /// The call's own `id`.
    pub id: Option<&'a Value>,
}

impl Turn {
    /// The calls of the turn, in their order.
    pub fn calls(&self) -> impl Iterator<Item = Call<'_>> {
        let calls = self.tool_calls.iter().filter_map(Value::as_array).flatten();
        calls.filter_map(|call| {
            let function = call.get("function")?;
            let arguments = function.get("arguments").unwrap_or(&Value::Null);
            let parsed = arguments.as_str().and_then(fields::embedded_json);
            Some(Call {
                name: function.get("name")?.as_str()?,
                arguments: parsed.map_or(Cow::Borrowed(arguments), Cow::Owned),
                id: call.get("id"),
            })
        })
    }
}

/// The columns with tool schemas.
pub(super) const SCHEMAS: [&str; 2] = ["tools", "functions"];

/// Returns the row's `tools` (or older `functions`) as a JSON array of `{"type": "function", "function": {..}}`, or `None` if empty.
pub(super) fn schemas(row: &Object) -> Result<Option<Value>> {
    let Some((key, value)) = fields::first(row, &SCHEMAS) else { return Ok(None) };
    let parsed;
    let value = match value {
        Value::String(text) if text.trim().is_empty() => return Ok(None),
        Value::String(text) => {
            parsed = fields::embedded(text).map_err(|reason| {
                Error::new(format!(
                    "`{key}`: expected a list of tool schemas, found a string that does not contain one: {reason}"
                ))
            })?;
            &parsed
        }
        other => other,
    };
    // A single schema counts as a list of one; the text `null` and an object without keys count as none.
    let single;
    let list = match value {
        nothing if is_nothing(nothing) => return Ok(None),
        Value::Object(object) if object.is_empty() => return Ok(None),
        Value::Object(_) => {
            single = [value.clone()];
            &single[..]
        }
        Value::Array(list) => list,
        other => return Err(wrong_type(key, "a list of tool schemas", other)),
    };
    let mut schemas = Vec::new();
    for (idx, schema) in list.iter().enumerate().filter(|(_, schema)| !is_nothing(schema)) {
        add_schema(schema, &format!("{key}[{idx}]"), &mut schemas)?;
    }
    Ok((!schemas.is_empty()).then_some(Value::Array(schemas)))
}

fn add_schema(schema: &Value, path: &str, schemas: &mut Vec<Value>) -> Result<()> {
    let parsed;
    let schema = match schema {
        Value::String(text) => {
            parsed = fields::embedded(text).map_err(|reason| {
                Error::new(format!("`{path}`: expected a tool schema, found a string that does not contain one: {reason}"))
            })?;
            &parsed
        }
        other => other,
    };
    let object = fields::object(schema, path)?;
    if let Some(Value::Array(declarations)) = object.get("functionDeclarations").or_else(|| object.get("function_declarations")) {
        let mut declarations = declarations.iter().enumerate();
        return declarations
            .try_for_each(|(idx, schema)| add_schema(schema, &format!("{path}.functionDeclarations[{idx}]"), schemas));
    }
    let object = match object.get("toolSpec") {
        Some(spec) => fields::object(spec, &format!("{path}.toolSpec"))?,
        None => object,
    };
    let foreign = ["input_schema", "inputSchema"].into_iter().find(|key| object.contains_key(*key));
    let is_bare = object.contains_key("name") && !object.contains_key("function");
    schemas.push(match foreign {
        Some(key) if is_bare => {
            let parameters = object[key].get("json").unwrap_or(&object[key]);
            let mut function = Map::new();
            for key in ["name", "description"] {
                function.extend(object.get(key).map(|value| (key.to_owned(), value.clone())));
            }
            function.insert("parameters".to_owned(), parameters.clone());
            json!({ "type": "function", "function": function })
        }
        _ if is_bare => json!({ "type": "function", "function": object }),
        _ => schema.clone(),
    });
    Ok(())
}

/// Returns the calls in a turn's `tool_calls` and `function_call` fields.
pub(super) fn calls_of_turn(turn: &Object, path: &str) -> Result<Vec<Value>> {
    let mut calls = Vec::new();
    // In tables, the text `null` and an empty text stand for no calls.
    let is_none = |value: &Value| value.as_str().is_some_and(|text| ["", "null", "None"].contains(&text.trim()));
    if let Some((key, value)) = fields::first(turn, &["tool_calls"]).filter(|(_, value)| !is_none(value)) {
        let path = format!("{path}.{key}");
        for (idx, value) in fields::list(value, &path)?.iter().enumerate() {
            calls.push(call(value, &format!("{path}[{idx}]"))?);
        }
    }
    if let Some((key, value)) = fields::first(turn, &["function_call"]).filter(|(_, value)| !is_none(value)) {
        calls.push(call(value, &format!("{path}.{key}"))?);
    }
    Ok(calls)
}

/// Parses one call or a list of calls, as JSON or as a string that holds it.
pub(super) fn calls_of_value(value: &Value, path: &str) -> Result<Vec<Value>> {
    let parsed;
    let value = match value {
        Value::String(text) => {
            parsed = fields::embedded(text).map_err(|error| {
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
    let (function, function_path) = match object.get("function") {
        Some(Value::Object(function)) => (function, format!("{path}.function")),
        Some(other) if !object.contains_key("name") => return Err(wrong_type(&format!("{path}.function"), "an object", other)),
        _ => (object, path.to_owned()),
    };
    let name = fields::required_text(function, &["name"], &format!("{function_path}."))?;
    let (key, arguments) = fields::first(function, &["arguments", "parameters", "input", "args"]).unzip();
    let arguments_path = format!("{function_path}.arguments");
    let is_openai = object.get("function").is_some_and(Value::is_object) && key.is_none_or(|key| key == "arguments");
    if !is_openai {
        return made(&name, fields::label(object, "id"), arguments, &arguments_path);
    }
    // Templates print whole calls, so keys and their order stay as the row has them.
    let mut call = object.clone();
    call.retain(|_, value| !is_nothing(value));
    let mut function = function.clone();
    function.insert("name".to_owned(), json!(name));
    function.insert("arguments".to_owned(), checked(arguments, &arguments_path)?);
    call.insert("function".to_owned(), Value::Object(function));
    Ok(Value::Object(call))
}

/// Converts a part of an answer that is a call, in Anthropic's, Bedrock's or Gemini's form.
pub(super) fn call_of_part(part: &Object, path: &str) -> Result<Value> {
    let name = fields::required_text(part, &["name"], &format!("{path}."))?;
    let id = fields::label(part, "id").or_else(|| fields::label(part, "toolUseId"));
    let arguments = fields::first(part, &["input", "args", "arguments"]).map(|(_, value)| value);
    made(&name, id, arguments, &format!("{path}.input"))
}

fn made(name: &str, id: Option<String>, arguments: Option<&Value>, path: &str) -> Result<Value> {
    let mut call = Map::new();
    call.extend(id.map(|id| ("id".to_owned(), json!(id))));
    call.insert("type".to_owned(), json!("function"));
    call.insert("function".to_owned(), json!({ "name": name, "arguments": checked(arguments, path)? }));
    Ok(Value::Object(call))
}

/// Checks that arguments are an object or text. A function without parameters is called with `""`, `null`, `{}` or no arguments.
fn checked(arguments: Option<&Value>, path: &str) -> Result<Value> {
    match arguments {
        None => Ok(json!({})),
        Some(nothing) if is_nothing(nothing) => Ok(json!({})),
        Some(Value::String(text)) if text.trim().is_empty() => Ok(json!({})),
        Some(arguments @ (Value::Object(_) | Value::String(_))) => Ok(arguments.clone()),
        Some(other) => Err(wrong_type(path, "an object", other)),
    }
}

/// Removes the padding that Arrow adds to align rows: properties without a schema, and null arguments that are not in the schema of their tool. An
/// argument in the schema may be null.
pub(super) fn without_padding(tools: &mut Value, turns: &mut [Turn]) {
    let mut known: Vec<(String, Vec<String>)> = Vec::new();
    for schema in tools.as_array_mut().into_iter().flatten() {
        if let Some(properties) = schema.pointer_mut("/function/parameters/properties").and_then(Value::as_object_mut) {
            properties.retain(|_, schema| !schema.is_null());
            let names = properties.keys().cloned().collect();
            let name = schema.pointer("/function/name").and_then(Value::as_str).unwrap_or_default().to_owned();
            known.push((name, names));
        }
    }
    let calls = turns.iter_mut().filter_map(|turn| turn.tool_calls.as_mut()?.as_array_mut()).flatten();
    for call in calls {
        let name = call.pointer("/function/name").and_then(Value::as_str).unwrap_or_default().to_owned();
        let Some((_, names)) = known.iter().find(|(known, _)| *known == name) else { continue };
        if let Some(arguments) = call.pointer_mut("/function/arguments").and_then(Value::as_object_mut) {
            arguments.retain(|key, value| !value.is_null() || names.contains(key));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::Role;

    #[test]
    fn padding_goes_and_nulls_that_mean_something_stay() {
        let function =
            json!({"name": "f", "parameters": {"type": "object", "properties": {"x": {"default": null}, "city": null, "y": {}}}});
        let mut tools = json!([{"type": "function", "function": function}]);
        let call = json!([{"type": "function", "function": {"name": "f", "arguments": {"x": 1, "city": null, "y": null}}}]);
        let mut turns = vec![Turn { tool_calls: Some(call), ..Turn::plain(Role::Assistant, "") }];
        without_padding(&mut tools, &mut turns);
        let properties = &tools[0]["function"]["parameters"]["properties"];
        assert_eq!(properties.to_string(), r#"{"x":{"default":null},"y":{}}"#);
        let arguments = &turns[0].tool_calls.as_ref().unwrap()[0]["function"]["arguments"];
        assert_eq!(arguments.to_string(), r#"{"x":1,"y":null}"#);
    }
}
