//! Rows whose columns are the turns: Alpaca, prompt/completion, question/answer, self-instruct.
//!
//! Alpaca's `instruction` and `input` are joined by a line end, as LLaMA-Factory does, and become the user's turn of the
//! model's own chat template; the "Below is an instruction" wording of the first Alpaca model is not added.

use serde_json::Value;

use super::chat;
use super::example::{Role, Turn};
use super::fields::{self, Object, list, wrong_type};
use crate::error::{Error, Result};

/// `prompt` and `completion` (or `response`, or the `chosen` side of a preference pair).
pub fn prompt_completion(row: &Object) -> Result<Vec<Turn>> {
    pair(row, &["prompt"], &["completion", "response", "chosen"])
}

/// `question` and `answer` (or `response`).
pub fn question_answer(row: &Object) -> Result<Vec<Turn>> {
    pair(row, &["question"], &["answer", "response"])
}

/// `instruction`, `input` (or `context`), `output` (or `response`), with `system` and `history`, a list of earlier pairs.
pub fn alpaca(row: &Object) -> Result<Vec<Turn>> {
    let mut turns: Vec<Turn> = chat::system(row)?.into_iter().collect();
    if let Some((_, history)) = fields::first(row, &["history"]).filter(|(_, value)| value.as_str() != Some("")) {
        for (idx, pair) in list(history, "history")?.iter().enumerate() {
            let path = format!("history[{idx}]");
            match &*list(pair, &path)? {
                [Value::String(asked), Value::String(answered)] => {
                    turns.push(chat::plain(Role::User, asked));
                    turns.push(chat::plain(Role::Assistant, answered));
                }
                other => return Err(Error::new(format!("`{path}`: expected two strings, found {} values", other.len()))),
            }
        }
    }
    let instruction = fields::required_text(row, &["instruction"], "")?;
    let input = fields::optional_text(row, &["input", "context"], "")?;
    turns.push(chat::plain(Role::User, &join(instruction, input)));
    turns.push(chat::plain(Role::Assistant, fields::required_text(row, &["output", "response"], "")?));
    Ok(turns)
}

/// `instruction` and `instances`, a list of `{"input", "output"}`: one conversation for each.
pub fn self_instruct(row: &Object) -> Result<Vec<Vec<Turn>>> {
    let instruction = fields::required_text(row, &["instruction"], "")?;
    let (_, value) = fields::required(row, &["instances"], "")?;
    let instances = list(value, "instances")?;
    if instances.is_empty() {
        return Err(Error::new("`instances`: expected at least one instance, found an empty list"));
    }
    let conversation = |(idx, instance): (usize, &Value)| {
        let path = format!("instances[{idx}]");
        let instance = fields::object(instance, &path)?;
        let prefix = format!("{path}.");
        let asked = join(instruction, fields::optional_text(instance, &["input"], &prefix)?);
        let answered = fields::required_text(instance, &["output"], &prefix)?;
        Ok(vec![chat::plain(Role::User, &asked), chat::plain(Role::Assistant, answered)])
    };
    instances.iter().enumerate().map(conversation).collect()
}

fn join(instruction: &str, input: Option<&str>) -> String {
    match input {
        None | Some("") => instruction.to_owned(),
        Some(input) if instruction.is_empty() => input.to_owned(),
        Some(input) => format!("{instruction}\n{input}"),
    }
}

/// Each side is a string or a list of messages. An answer that begins with another's turn is the whole conversation.
fn pair(row: &Object, asked: &[&str], answered: &[&str]) -> Result<Vec<Turn>> {
    let (key, value) = fields::required(row, answered, "")?;
    let mut answer = side(value, key, Role::Assistant)?;
    let is_whole = matches!(answer.first(), Some(Turn { role: Role::System | Role::User, .. }));
    let mut turns = Vec::new();
    if !is_whole {
        let (key, value) = fields::required(row, asked, "")?;
        turns = side(value, key, Role::User)?;
    }
    turns.append(&mut answer);
    let has_system = turns.first().is_some_and(|turn| turn.role == Role::System);
    if let (Some(system), false) = (chat::system(row)?, has_system) {
        turns.insert(0, system);
    }
    Ok(turns)
}

fn side(value: &Value, key: &str, role: Role) -> Result<Vec<Turn>> {
    match value {
        Value::String(text) => Ok(vec![chat::plain(role, text)]),
        Value::Array(_) => chat::turns(value, &chat::MESSAGES, key),
        other => Err(wrong_type(key, "a string or a list of messages", other)),
    }
}
