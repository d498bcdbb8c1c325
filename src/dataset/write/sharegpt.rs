//! Writes ShareGPT's conversations, which support no loss masks. LLaMA-Factory skips rows whose speakers do not alternate.

use serde_json::{Value, json};

use super::super::dumps;
use super::super::example::{Example, Role, Turn};
use super::super::fields::{Object, embedded_json};
use super::target::{Reading, Target, add_surroundings, named};
use crate::error::{Error, Result};

pub(super) fn row(example: &Example, reading: &Reading, target: Target) -> Result<Object> {
    all_learnt(&example.turns, 0, target)?;
    let mut row = named(example, reading);
    let mut turns = &example.turns[..];
    if let [first, rest @ ..] = turns
        && first.role == Role::System
    {
        row.insert("system".to_owned(), first.content.clone().into());
        turns = rest;
    }
    if target == Target::LlamaFactory {
        check_speakers(turns)?;
        // LLaMA-Factory's reader requires all columns in every row.
        row.entry("system").or_insert_with(|| "".into());
    }
    row.insert("conversations".to_owned(), turns.iter().map(|turn| message(turn).map(Value::Object)).collect::<Result<Value>>()?);
    add_surroundings(&mut row, example, true);
    if target == Target::LlamaFactory {
        row.entry("tools").or_insert_with(|| "".into());
    }
    Ok(row)
}

/// Checks that all turns from the one with this index on are supervised in full.
pub(super) fn all_learnt(turns: &[Turn], from: usize, target: Target) -> Result<()> {
    let is_plain = |turn: &Turn| turn.segments().0 == 1.0 && turn.segments().1.iter().all(|(.., weight)| *weight == 1.0);
    match (from..turns.len()).find(|&idx| !is_plain(&turns[idx])) {
        None => Ok(()),
        Some(idx) => {
            Err(Error::new(format!("turn {idx} is excluded from the loss, or partly, which {target} cannot express for a turn"))
                .cure("Drop the row, or choose a format with masks: --format messages or axolotl."))
        }
    }
}

fn message(turn: &Turn) -> Result<Object> {
    if turn.reasoning.is_some() {
        return Err(Error::new("ShareGPT has no place for reasoning beside the answer").cure("Choose --format messages."));
    }
    let (from, value) = match (turn.role, &turn.tool_calls) {
        (Role::Assistant, Some(_)) if !turn.content.is_empty() => {
            return Err(Error::new("ShareGPT has no turn with both text and a tool call").cure("Choose --format messages."));
        }
        (Role::Assistant, Some(calls)) => ("function_call", calls_text(calls)),
        (Role::Assistant, None) => ("gpt", turn.content.clone()),
        (Role::System, _) => ("system", turn.content.clone()),
        (Role::User, _) => ("human", turn.content.clone()),
        (Role::Tool, _) => ("observation", turn.content.clone()),
        (Role::Text, _) => {
            return Err(Error::new("the row is a plain text, not a conversation").cure("Write it as it was read: --format read."));
        }
    };
    let mut message = Object::new();
    message.insert("from".to_owned(), from.into());
    message.insert("value".to_owned(), value.into());
    let optional = [("tool_call_id", &turn.tool_call_id), ("name", &turn.name)];
    for (key, value) in optional {
        message.extend(value.clone().map(|value| (key.to_owned(), value.into())));
    }
    Ok(message)
}

/// Serialises calls as for LLaMA-Factory and others: `{"name", "arguments"}`, several in a list.
fn calls_text(calls: &Value) -> String {
    let bare = |call: &Value| {
        let arguments = call.pointer("/function/arguments").cloned().unwrap_or_default();
        let parsed = arguments.as_str().and_then(embedded_json);
        json!({"name": call.pointer("/function/name"), "arguments": parsed.unwrap_or(arguments)})
    };
    let bare: Vec<Value> = calls.as_array().into_iter().flatten().map(bare).collect();
    match &bare[..] {
        [call] => dumps(call),
        calls => dumps(&Value::from(calls)),
    }
}

/// Checks the order that LLaMA-Factory's converter requires: questions and answers alternate, and an answer is last. `turns` exclude the system
/// prompt.
pub(crate) fn check_speakers(turns: &[Turn]) -> Result<()> {
    let is_answer = |turn: &Turn| turn.role == Role::Assistant;
    let wrong = turns.iter().enumerate().position(|(idx, turn)| is_answer(turn) != (idx % 2 == 1) || turn.role == Role::System);
    if let Some(idx) = wrong {
        return Err(Error::new(format!(
            "LLaMA-Factory skips rows whose speakers do not alternate, and turn {idx} breaks the order"
        ))
        .cure("Drop the row, or choose another --format."));
    }
    match turns.len() % 2 {
        0 => Ok(()),
        _ => Err(Error::new("LLaMA-Factory skips rows that do not end with an answer")
            .cure("Drop the row, or choose another --format.")),
    }
}
