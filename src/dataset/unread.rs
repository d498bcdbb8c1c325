//! Finds text columns that no turn holds, such as a question's context or its choices, and suggests a `--map` for them.

use serde_json::Value;

use super::chat::SYSTEM;
use super::example::{Example, Role, Turn};
use super::fields::{self, Object};
use super::mapping::{FIELDS, FieldMap, Mapped};
use super::pairs::transcript;

/// Records the columns that this row's example does not use, and a `--map` for them. `asked` are the format's names of the question, `others` the
/// columns that are read but may not appear verbatim in a turn.
pub(super) fn note(example: &mut Example, mapped: &Mapped, mapping: &FieldMap, asked: &[&str], others: &[&[&str]]) {
    // A transcript is split into several turns, and the rejected answer is in none.
    let read = others.iter().chain([&asked]).filter_map(|keys| Some(fields::first(&mapped.row, keys)?.0));
    let read: Vec<&str> = read.chain(["chosen", "history", "id", "source", "planted", "rollout", "tools", "functions"]).collect();
    example.unread = columns(mapped, mapping, &read, &example.turns);
    example.unread_map = example.unread.iter().find(|column| is_plain(column)).and_then(|column| {
        before_question(column, &mapped.row, mapping, asked, &example.turns)
            .or_else(|| in_system_prompt(column, &mapped.row, mapping, &example.turns))
    });
}

/// Whether `--map` takes the name literally.
pub(super) fn is_plain(column: &str) -> bool {
    !column.is_empty() && column.chars().all(|c| c.is_alphanumeric() || c == '_' || c == '-')
}

/// Returns a `--map` value that puts the column before the question, if the question is a text that is read.
fn before_question(column: &str, row: &Object, mapping: &FieldMap, asked: &[&str], turns: &[Turn]) -> Option<String> {
    let (key, value) = fields::first(row, asked)?;
    let text = fields::text(value).filter(|text| transcript(text).is_none())?;
    let is_read = turns.iter().any(|turn| turn.role == Role::User && turn.content.contains(&*text));
    let field = if FIELDS.contains(&key) { key } else { "prompt" };
    let own = mapping.template(field).unwrap_or_else(|| format!("{{{key}}}"));
    is_read.then(|| format!("{field}={{{column}}}\\n\\n{own}"))
}

/// Returns a `--map` value that puts the column into the system prompt, unless that comes from the list of turns.
fn in_system_prompt(column: &str, row: &Object, mapping: &FieldMap, turns: &[Turn]) -> Option<String> {
    if !turns.first().is_some_and(|turn| turn.role == Role::System) {
        let is_free = ["system", "system_prompt"].iter().all(|field| !mapping.has_target(field));
        return is_free.then(|| format!("system={{{column}}}"));
    }
    let (key, value) = fields::first(row, &SYSTEM)?;
    let is_column = value.as_str().is_some_and(|text| text == turns[0].content);
    let field = if FIELDS.contains(&key) { key } else { "system" };
    let own = mapping.template(field).unwrap_or_else(|| format!("{{{key}}}"));
    is_column.then(|| format!("{field}={own}\\n\\n{{{column}}}"))
}

/// Returns the text columns that no turn holds. Single words, such as the name of a category, are left out, and so is a text that contains all
/// turns, such as the rendered conversation.
fn columns(mapped: &Mapped, mapping: &FieldMap, read: &[&str], turns: &[Turn]) -> Vec<String> {
    let is_held = |text: &str| {
        turns.iter().any(|turn| turn.content.contains(text.trim())) || turns.iter().all(|turn| text.contains(turn.content.trim()))
    };
    let says_something = |text: &str| text.split_whitespace().filter(|word| word.contains(char::is_alphabetic)).nth(1).is_some();
    let is_unread = |(key, value): &(&String, &Value)| match value {
        _ if key.starts_with("rejected") || mapping.takes(key) => false,
        _ if mapped.row.contains_key(*key) && read.contains(&key.as_str()) => false,
        Value::String(text) => says_something(text) && !is_held(text) && !text.trim_start().starts_with(['[', '{']),
        Value::Array(texts) => {
            let are_choices =
                ["choices", "options"].contains(&key.as_str()) || texts.iter().filter_map(Value::as_str).any(says_something);
            texts.len() > 1
                && are_choices
                && texts.iter().all(Value::is_string)
                && !texts.iter().filter_map(Value::as_str).all(is_held)
        }
        _ => false,
    };
    mapped.row.iter().chain(&mapped.replaced).filter(is_unread).map(|(key, _)| key.clone()).collect()
}
