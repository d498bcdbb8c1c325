//! Writes an [`Example`] as a row of a format, the inverse of reading.
//!
//! ```text
//! read           the row's own object, with `weight` and `train_detail` on its messages            what reads the original
//! messages       {"messages": [{"role", "content", "weight"?, "train_detail"?, ..}], "tools"?}     OpenAI, this program
//! sharegpt       {"conversations": [{"from", "value"}], "system"?, "tools"?}                       FastChat and many more
//! alpaca         {"instruction", "input", "output", "system"?, "history"?}                         Alpaca, LLaMA-Factory
//! llama-factory  ShareGPT's form, for the dataset_info.json that is written beside it
//! axolotl        messages with `train` and `train_detail` on every answer, and tools as text
//! trl            {"prompt": [..], "completion": [..]} if only last answers are supervised, else {"messages": [..]}
//! ```
//!
//! Nothing is lost silently: every written row is read back and must equal the example that it was made from, in turns and weights. A row that
//! differs is refused, with an error that names the difference.
//!
//! ```text
//! target.rs       the formats, and what all rows have in common; own.rs, messages.rs, sharegpt.rs, alpaca.rs, trl.rs one each
//! weights.rs      weights of parts, as character offsets
//! parquet.rs      rows -> a table
//! ```

mod alpaca;
mod messages;
mod own;
mod parquet;
mod sharegpt;
mod target;
mod trl;
mod weights;

use serde_json::Value;

use super::chat::OTHER_LISTS;
use super::example::{Example, Turn};
use super::fields::{Object, embedded_json, label};
use super::format::Format;
use super::literal::is_nothing;
use super::mapping::{FIELDS, FieldMap};
use super::original::Original;
use super::pairs::{ANSWERED, ASKED, is_preference};
use super::roles::RoleMap;
use crate::error::{Error, Result};

pub(crate) use messages::{check_arguments, said};
pub(crate) use parquet::write_parquet;
pub(crate) use sharegpt::check_speakers;
pub(crate) use target::{Forms, Reading, Target};
pub(crate) use weights::scale;

/// The columns that name a row.
const NAMES: [&str; 2] = ["id", "source"];

/// Writes `example` as a row. It was read from `original`, but may have other weights. Also returns the example as which the row is read again.
pub(crate) fn row(target: Target, original: &Original, example: &Example, reading: &Reading) -> Result<(Object, Example)> {
    let written = match target {
        Target::Read => own::row(original, example, reading)?,
        _ if holds_preference(original) => {
            return Err(Error::new(format!(
                "the row has a chosen and a rejected answer, which {target} cannot express together"
            ))
            .cure("Write such rows as they were read: --format read."));
        }
        Target::Messages => {
            let mut row = messages::row(example, reading, messages::Switches::Weights)?;
            // A name that is a number or a list stays one.
            let own = original.object.iter().flatten().filter(|(key, own)| NAMES.contains(&key.as_str()) && !is_nothing(own));
            row.extend(own.filter(|(key, _)| !reading.mapping.has_target(key)).map(|(key, own)| (key.clone(), own.clone())));
            row
        }
        Target::Axolotl => messages::row(example, reading, messages::Switches::Train)?,
        Target::ShareGpt | Target::LlamaFactory => sharegpt::row(example, reading, target)?,
        Target::Alpaca => alpaca::row(example, reading)?,
        Target::Trl => trl::row(example, reading)?,
    };
    let read_again = check(target, &written, example, reading)?;
    Ok((written, read_again))
}

/// Writes the conversation of `example` as a row of OpenAI's messages, whatever format it was read from.
pub(crate) fn conversation(example: &Example, reading: &Reading) -> Result<Object> {
    let written = messages::row(example, reading, messages::Switches::Weights)?;
    check(Target::Messages, &written, example, reading)?;
    Ok(written)
}

/// Reads a row of messages that was written for another program.
pub(crate) fn read_messages(row: Object) -> Result<Example> {
    let mut examples = Format::Messages.read(row, &FieldMap::default(), "", &RoleMap::default())?;
    examples.pop().ok_or_else(|| Error::new("the row as it is written holds no conversation"))
}

/// Returns the columns of the row that the format does not keep; `mapping` is the one by which the row was read.
pub(crate) fn left_out(target: Target, original: &Original, mapping: &FieldMap) -> Vec<String> {
    let (Some(object), true) = (&original.object, target != Target::Read) else { return Vec::new() };
    // The example holds the columns that it was read from; `conversation` and lists in `OTHER_LISTS` hold its turns.
    let is_read = |key: &str| FIELDS.contains(&key) || ASKED.contains(&key) || ANSWERED.contains(&key) || key == "conversation";
    let is_list = |key: &str, value: &Value| OTHER_LISTS.contains(&key) && value.is_array();
    // A name that is a list or a boolean is none to an example.
    let is_lost = |key: &str| NAMES.contains(&key) && target != Target::Messages && label(object, key).is_none();
    let is_own = |key: &str, value: &Value| (is_read(key) && key != "planted" && !is_lost(key)) || is_list(key, value);
    let is_held =
        |key: &str, value: &Value| is_nothing(value) || mapping.takes(key) || (is_own(key, value) && !mapping.replaces(key));
    object.iter().filter(|(key, value)| !is_held(key, value)).map(|(key, _)| key.clone()).collect()
}

fn holds_preference(original: &Original) -> bool {
    original.object.as_ref().is_some_and(is_preference)
}

/// Reads the row back, and returns what was read if it equals the example.
fn check(target: Target, written: &Object, expected: &Example, reading: &Reading) -> Result<Example> {
    let refused = |what: String| {
        Error::new(format!("the format {target} cannot express the row: {what}"))
            .cure("Choose another --format; messages and axolotl can express the most.")
    };
    let read = || {
        let (mapping, roles) = (FieldMap::default(), RoleMap::default());
        let (format, mapping, roles) = match target {
            Target::Read => (reading.format, reading.mapping, reading.roles),
            _ => (Format::detect(written, &mapping).unwrap_or_else(|_| target.format(reading.format)), &mapping, &roles),
        };
        let mut examples = format.read(written.clone(), mapping, reading.source, roles)?;
        match (examples.pop(), examples.is_empty()) {
            (Some(example), true) => Ok(example),
            _ => Err(Error::new("it would be read as several")),
        }
    };
    let found = read().map_err(|error| refused(error.reason()))?;
    match difference(expected, &found) {
        None => Ok(found),
        Some(what) => Err(refused(what)),
    }
}

/// Describes the first difference between two examples.
fn difference(expected: &Example, found: &Example) -> Option<String> {
    if expected.turns.len() != found.turns.len() {
        return Some(format!("its {} turns would be read as {}", expected.turns.len(), found.turns.len()));
    }
    let pairs = expected.turns.iter().zip(&found.turns).enumerate();
    for (idx, (own, other)) in pairs {
        let Turn { role, content, reasoning, tool_calls, tool_call_id, name, .. } = own;
        let differences = [
            (*role != other.role, "speaker"),
            (*content != other.content, "text"),
            (*reasoning != other.reasoning, "reasoning"),
            (calls(tool_calls) != calls(&other.tool_calls), "tool calls"),
            (*tool_call_id != other.tool_call_id, "`tool_call_id`"),
            (*name != other.name, "`name`"),
            (own.segments() != other.segments(), "weights"),
        ];
        if let Some((_, what)) = differences.into_iter().find(|(differs, _)| *differs) {
            return Some(format!("the {what} of turn {idx} would be lost"));
        }
    }
    let (own, other) = (&expected.tools, &found.tools);
    if own != other {
        return Some("its tools would be lost".to_owned());
    }
    if expected.template_switches != found.template_switches {
        return Some("its `chat_template_kwargs` would be lost".to_owned());
    }
    if expected.id != found.id {
        return Some("its `id` would be lost".to_owned());
    }
    (expected.source != found.source).then(|| "its `source` would be lost".to_owned())
}

/// Returns calls with parsed arguments, so that a text of an object equals the object.
fn calls(calls: &Option<Value>) -> Vec<(Option<&Value>, Value)> {
    let list = calls.as_ref().and_then(Value::as_array).into_iter().flatten();
    list.map(|call| {
        let arguments = call.pointer("/function/arguments").cloned().unwrap_or_default();
        let parsed = arguments.as_str().and_then(embedded_json);
        (call.pointer("/function/name"), parsed.unwrap_or(arguments))
    })
    .collect()
}

#[cfg(test)]
mod tests;
