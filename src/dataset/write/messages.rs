//! Writes OpenAI's messages, with loss switches for this program or for axolotl.

use serde_json::Value;

use super::super::example::{Example, Role, Turn};
use super::super::fields::{Object, embedded_json, required_text};
use super::super::switches::NAMES;
use super::target::{Reading, add_surroundings, named};
use super::weights::details;
use crate::error::{Error, Result};
use crate::format::beginning;

/// The keys by which a message states its weight in the loss.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Switches {
    /// No keys.
    None,
    /// `weight`, and `train_detail` for parts; neither for a turn of full weight.
    Weights,
    /// axolotl: `train` on every answer, and `train_detail`.
    Train,
}

pub(super) fn row(example: &Example, reading: &Reading, switches: Switches) -> Result<Object> {
    let mut row = named(example, reading);
    row.insert("messages".to_owned(), messages(&example.turns, switches)?);
    // axolotl takes nulls out of a row, but not out of a text.
    add_surroundings(&mut row, example, switches == Switches::Train);
    Ok(row)
}

pub(super) fn messages(turns: &[Turn], switches: Switches) -> Result<Value> {
    turns.iter().map(|turn| Ok(Value::Object(message(turn, switches)?))).collect()
}

fn message(turn: &Turn, switches: Switches) -> Result<Object> {
    if turn.role == Role::Text {
        return Err(Error::new("the row is a plain text, not a conversation").cure("Write it as it was read: --format read."));
    }
    if switches == Switches::Train {
        check_arguments(turn)?;
        if turn.tool_calls.as_ref().is_some_and(holds_null) {
            return Err(Error::new("a tool call holds a null, which axolotl leaves out")
                .cure("Use --format messages, or write the call's arguments as JSON text."));
        }
    }
    let parts = parts(turn).filter(|_| switches == Switches::Weights);
    let mut message = said_in(turn, parts.as_ref());
    match parts.filter(|parts| parts.state_weights) {
        Some(_) => add_switches(&mut message, &Turn { parts: Vec::new(), ..turn.clone() }, switches)?,
        None => add_switches(&mut message, turn, switches)?,
    }
    Ok(message)
}

/// Returns what a turn says as a message without loss switches; that of a plain text has the role `text`.
pub(crate) fn said(turn: &Turn) -> Object {
    said_in(turn, None)
}

/// Returns the message of a turn, with its content in these parts, or as one text.
fn said_in(turn: &Turn, parts: Option<&Parts>) -> Object {
    let (written, mut message) = (&turn.written, Object::new());
    message.insert("role".to_owned(), written.role.as_deref().unwrap_or(turn.role.name()).into());
    let content = match (&written.value, parts) {
        (Some(value), _) => value.clone(),
        (None, _) if written.without_content => Value::Null,
        (None, Some(parts)) => parts.content.clone(),
        (None, None) => turn.content.clone().into(),
    };
    message.insert("content".to_owned(), content);
    let optional = [("reasoning_content", &turn.reasoning), ("tool_call_id", &turn.tool_call_id), ("name", &turn.name)];
    for (key, value) in optional {
        message.extend(value.clone().map(|value| (key.to_owned(), value.into())));
    }
    message.extend(turn.tool_calls.clone().map(|calls| ("tool_calls".to_owned(), calls)));
    for (key, value) in &written.others {
        message.entry(key).or_insert_with(|| value.clone());
    }
    message
}

/// A content as the list of parts that the row has, for templates that render each by itself.
struct Parts {
    content: Value,
    /// Whether the parts state the weights within the turn, as each of them has one weight.
    state_weights: bool,
}

fn parts(turn: &Turn) -> Option<Parts> {
    let (whole, segments) = turn.segments();
    let (mut parts, mut weights, mut begin) = (Vec::new(), Vec::new(), 0);
    for part in &turn.written.parts {
        let mut part = part.as_object()?.clone();
        let end = begin + required_text(&part, &["text", "value", "content"], "").ok()?.len();
        part.retain(|key, _| !NAMES.contains(&key.as_str()));
        weights.extend(
            segments.iter().filter(|(from, to, _)| *from < end && begin < *to).map(|(.., weight)| (parts.len(), *weight)),
        );
        parts.push(part);
        begin = end;
    }
    // The reader refuses a part that is learnt within a turn that is not.
    let is_one = |pair: &[(usize, f32)]| pair[0].0 != pair[1].0;
    let state_weights =
        weights.windows(2).all(is_one) && weights.iter().all(|(_, weight)| whole == 1.0 || [0.0, whole].contains(weight));
    for (idx, weight) in weights.into_iter().filter(|(_, weight)| state_weights && *weight != whole) {
        parts[idx].insert("weight".to_owned(), number(weight));
    }
    (!parts.is_empty()).then(|| Parts { content: parts.into_iter().map(Value::Object).collect(), state_weights })
}

/// Returns an error if arguments of a call are text in which axolotl finds no object: it parses them (`transform_message` in its
/// `prompt_strategies/chat_template.py`) and stops at the first that is no JSON.
pub(crate) fn check_arguments(turn: &Turn) -> Result<()> {
    let is_object = |text: &str| embedded_json(text).is_some_and(|arguments| arguments.is_object());
    let calls = turn.tool_calls.iter().filter_map(Value::as_array).flatten();
    let mut texts = calls.filter_map(|call| call.pointer("/function/arguments")?.as_str());
    match texts.find(|text| !is_object(text)) {
        None => Ok(()),
        Some(text) => Err(Error::new(format!(
            "the arguments of a tool call are text that holds no JSON object, `{}`, while axolotl reads them as one",
            beginning(text, 40)
        ))
        .cure("Make them a JSON object in the data, or leave the row out.")),
    }
}

/// Whether a key has no value, here or further within.
fn holds_null(value: &Value) -> bool {
    match value {
        Value::Object(fields) => fields.values().any(|value| value.is_null() || holds_null(value)),
        Value::Array(items) => items.iter().any(holds_null),
        _ => false,
    }
}

/// Adds the loss switches of a turn to its message.
pub(super) fn add_switches(message: &mut Object, turn: &Turn, switches: Switches) -> Result<()> {
    let details = details(turn);
    match switches {
        Switches::None => {}
        Switches::Weights => {
            if turn.weight != 1.0 {
                message.insert("weight".to_owned(), number(turn.weight));
            }
        }
        Switches::Train if turn.role == Role::Assistant => {
            let (weight, segments) = turn.segments();
            if weight == 0.0 && segments.iter().any(|(.., weight)| *weight > 0.0) {
                return Err(Error::new(
                    "axolotl skips a turn that is excluded from the loss, and with it the part that is included",
                )
                .cure("Include or exclude the whole turn, or use --format messages."));
            }
            check_edges(&turn.content, &segments)?;
            message.insert("train".to_owned(), (weight > 0.0).into());
        }
        Switches::Train => {
            if turn.weight != 1.0 {
                message.insert("train".to_owned(), (turn.weight > 0.0).into());
            }
        }
    }
    if switches != Switches::None {
        message.extend(details.map(|details| ("train_detail".to_owned(), details)));
    }
    Ok(())
}

/// Checks that a mask does not begin at a character that may be several tokens. axolotl treats a token that holds only the first bytes of a
/// character as ending before it, and supervises it with the text before
/// (`get_offsets_for_train_detail` in its `prompt_strategies/chat_template.py`).
fn check_edges(content: &str, segments: &[(usize, usize, f32)]) -> Result<()> {
    for edge in segments.windows(2) {
        let (before, (begin, _, weight)) = (edge[0].2, edge[1]);
        let first = content.get(begin..).and_then(|text| text.chars().next()).filter(|c| !c.is_ascii());
        if let (true, Some(first)) = (before > 0.0 && weight == 0.0, first) {
            return Err(Error::new(format!(
                "axolotl would learn part of the character `{first}`, where a mask begins, if the tokenizer splits it into several tokens"
            ))
            .cure("Mask the turn from its beginning, or the whole turn, or choose --format messages; --drop inexpressible leaves such rows out."));
        }
    }
    Ok(())
}

/// Returns the shortest decimal that rounds to this weight; a whole number has no point, as in OpenAI's format.
pub(super) fn number(weight: f32) -> Value {
    match weight.fract() == 0.0 && weight < 1e6 {
        true => (weight as u64).into(),
        false => crate::json::shortest(weight).into(),
    }
}
