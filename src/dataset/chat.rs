//! Lists of turns -> [`Turn`]s: OpenAI's messages (`role`, `content`) and ShareGPT's conversations (`from`, `value`).
//!
//! The two differ in names only. Content may be a string, null beside tool calls, or a list of typed parts
//! (`text`, `reasoning`, `tool_call`); parts of one turn are joined without a separator.

use serde_json::Value;

use super::example::{Role, Turn};
use super::fields::{self, Object, list_keys, wrong_type};
use super::tools;
use crate::error::{Error, Result};

/// What a dialect calls its fields.
pub struct Dialect {
    lists: [&'static str; 3],
    role: &'static str,
    content: &'static str,
}

pub const MESSAGES: Dialect = Dialect { lists: ["messages", "conversations", "conversation"], role: "role", content: "content" };
pub const SHAREGPT: Dialect = Dialect { lists: ["conversations", "conversation", "messages"], role: "from", content: "value" };

/// The whole conversation of a row, with a `system` column of its own put first.
pub fn conversation(row: &Object, dialect: &Dialect) -> Result<Vec<Turn>> {
    let (key, value) = fields::required(row, &dialect.lists, "")?;
    let mut turns = turns(value, dialect, key)?;
    let has_system = turns.first().is_some_and(|turn| turn.role == Role::System);
    if let (Some(system), false) = (system(row)?, has_system) {
        turns.insert(0, system);
    }
    Ok(turns)
}

/// The row's system prompt, unless it is empty.
pub fn system(row: &Object) -> Result<Option<Turn>> {
    let text = fields::optional_text(row, &["system", "system_prompt"], "")?;
    Ok(text.filter(|text| !text.is_empty()).map(|text| plain(Role::System, text)))
}

/// A turn that is nothing but text.
pub fn plain(role: Role, content: &str) -> Turn {
    let content = content.to_owned();
    Turn { role, content, reasoning: None, tool_calls: None, tool_call_id: None, name: None, weight: 1.0 }
}

pub fn turns(value: &Value, dialect: &Dialect, path: &str) -> Result<Vec<Turn>> {
    let list = fields::list(value, path)?;
    if list.is_empty() {
        return Err(Error::new(format!("`{path}`: expected at least one turn, found an empty list")));
    }
    if list.len() > usize::from(u16::MAX) {
        return Err(Error::new(format!("`{path}`: expected at most {} turns, found {}", u16::MAX, list.len())));
    }
    list.iter().enumerate().map(|(idx, value)| turn(value, dialect, &format!("{path}[{idx}]"))).collect()
}

/// The role that a name stands for, and whether such a turn's whole text is a tool call.
pub fn role(name: &str, path: &str) -> Result<(Role, bool)> {
    Ok(match name {
        "system" | "developer" => (Role::System, false),
        "user" | "human" | "prompter" => (Role::User, false),
        "assistant" | "gpt" | "model" | "chatgpt" | "bot" => (Role::Assistant, false),
        "function_call" | "tool_call" => (Role::Assistant, true),
        "tool" | "function" | "observation" | "function_response" | "tool_response" | "ipython" => (Role::Tool, false),
        other => {
            let other: String = other.chars().take(40).collect();
            let known = "system, user, assistant, tool, human, gpt, function_call or observation";
            return Err(Error::new(format!("`{path}`: expected a role ({known}), found `{other}`")));
        }
    })
}

fn turn(value: &Value, dialect: &Dialect, path: &str) -> Result<Turn> {
    let message = fields::object(value, path)?;
    let prefix = format!("{path}.");
    let (role, is_call) = role(fields::required_text(message, &[dialect.role], &prefix)?, &format!("{path}.{}", dialect.role))?;
    let mut turn = plain(role, "");
    let mut calls = tools::calls_of_turn(message, path)?;
    let content_path = format!("{path}.{}", dialect.content);
    match message.get(dialect.content) {
        None | Some(Value::Null) => {}
        Some(value) if is_call => calls.extend(tools::calls_of_value(value, &content_path)?),
        Some(Value::String(text)) => turn.content.push_str(text),
        Some(Value::Array(parts)) if role != Role::Tool || parts.iter().all(is_typed_part) => {
            add_parts(&mut turn, &mut calls, parts, &content_path)?;
        }
        // A tool may answer with any JSON; templates that want text get it as text.
        Some(value) if role == Role::Tool => turn.content = value.to_string(),
        Some(value) => return Err(wrong_type(&content_path, "a string or a list of parts", value)),
    }
    if let Some(reasoning) = fields::optional_text(message, &["reasoning_content", "reasoning", "thinking"], &prefix)? {
        turn.reasoning.get_or_insert_default().push_str(reasoning);
    }
    let is_empty = fields::first(message, &[dialect.content]).is_none();
    if is_empty && calls.is_empty() && turn.reasoning.is_none() {
        let found = match message.get(dialect.content) {
            Some(_) => "null without tool calls".to_owned(),
            None => list_keys(message.keys()),
        };
        return Err(Error::new(format!("`{content_path}`: expected text, found {found}")));
    }
    if !calls.is_empty() && role != Role::Assistant {
        return Err(Error::new(format!("`{path}`: expected tool calls in assistant turns only, found some in another turn")));
    }
    turn.tool_calls = (!calls.is_empty()).then_some(Value::Array(calls));
    turn.tool_call_id = fields::optional_text(message, &["tool_call_id"], &prefix)?.map(str::to_owned);
    turn.name = fields::optional_text(message, &["name"], &prefix)?.map(str::to_owned);
    turn.weight = weight(message, path)?;
    Ok(turn)
}

fn is_typed_part(part: &Value) -> bool {
    part.get("type").is_some_and(Value::is_string)
}

fn add_parts(turn: &mut Turn, calls: &mut Vec<Value>, parts: &[Value], path: &str) -> Result<()> {
    for (idx, part) in parts.iter().enumerate() {
        let path = format!("{path}[{idx}]");
        if let Value::String(text) = part {
            turn.content.push_str(text);
            continue;
        }
        let part = fields::object(part, &path)?;
        let prefix = format!("{path}.");
        match fields::required_text(part, &["type"], &prefix)? {
            "text" => turn.content.push_str(fields::required_text(part, &["text", "value", "content"], &prefix)?),
            "reasoning" | "thinking" => {
                let text = fields::required_text(part, &["value", "reasoning", "thinking", "text"], &prefix)?;
                turn.reasoning.get_or_insert_default().push_str(text);
            }
            "tool_call" => {
                let (key, value) = fields::required(part, &["value", "tool_call"], &prefix)?;
                calls.extend(tools::calls_of_value(value, &format!("{prefix}{key}"))?);
            }
            other => {
                let other: String = other.chars().take(40).collect();
                return Err(Error::new(format!("`{path}.type`: expected text, reasoning or tool_call, found `{other}`")));
            }
        }
    }
    Ok(())
}

/// The turn's own weight in the loss: `weight` or `loss_weight` (a number from 0), or `train` (a boolean).
fn weight(message: &Object, path: &str) -> Result<f32> {
    let Some((key, value)) = fields::first(message, &["weight", "loss_weight", "train"]) else { return Ok(1.0) };
    match value {
        Value::Bool(is_trained) => Ok(f32::from(u8::from(*is_trained))),
        Value::Number(number) => {
            let weight = number.as_f64().unwrap_or(f64::NAN) as f32;
            if weight.is_finite() && weight >= 0.0 {
                return Ok(weight);
            }
            Err(Error::new(format!("`{path}.{key}`: expected a finite number from 0, found {number}")))
        }
        other => Err(wrong_type(&format!("{path}.{key}"), "a number from 0 or a boolean", other)),
    }
}
