//! Rows whose columns are the turns: Alpaca, prompt/completion, question/answer, self-instruct, and pairs of a wanted and an
//! unwanted answer.
//!
//! Alpaca's `instruction` and `input` are joined by a line end, as LLaMA-Factory does, and become the user's turn of the
//! model's own chat template; the "Below is an instruction" wording of the first Alpaca model is not added.
//!
//! In a preference (`chosen`, `rejected`) the chosen answer is learnt, and nothing that stands before it. Where both sides hold
//! the whole conversation, what they have in common is the history (TRL's `extract_prompt`).

use serde_json::Value;

use super::chat::{self, Reading};
use super::example::{Role, Turn};
use super::fields::{self, Object, list, wrong_type};
use super::literal::is_nothing;
use super::switches::unlearn;
use crate::error::{Error, Result};

/// What a prompt is called, and an answer to it.
pub(super) const ASKED: [&str; 8] = ["prompt", "query", "question", "inputs", "input", "instruction", "user", "human"];
pub(super) const ANSWERED: [&str; 10] =
    ["completion", "response", "output", "outputs", "target", "targets", "answer", "assistant", "gpt", "bot"];

/// A prompt and its completion under any of their names, or the chosen side of a preference; with `history`, earlier pairs.
///
/// Only the completion is learnt: answers in the prompt are what the model is given (TRL's `completion_only_loss`).
pub(super) fn prompt_completion(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    if row.get("chosen").is_some_and(|value| !is_nothing(value)) {
        return preference(row, None, reading);
    }
    pair(row, &ASKED, &ANSWERED, reading)
}

/// `question` and `answer` (or `response`).
pub(super) fn question_answer(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    pair(row, &["question"], &["answer", "response"], reading)
}

/// `instruction`, `input` (or `context`), `output` (or `response`, or `chosen`), with `system` and `history`, a list of earlier pairs.
pub(super) fn alpaca(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    let mut turns: Vec<Turn> = chat::system(row)?.into_iter().collect();
    turns.append(&mut history(row)?);
    let instruction = fields::required_text(row, &["instruction"], "")?;
    let input = fields::optional_text(row, &["input", "context"], "")?;
    turns.push(chat::plain(Role::User, &join(&instruction, input.as_deref())));
    if row.get("chosen").is_some_and(|value| !is_nothing(value)) {
        return preference(row, Some(turns), reading);
    }
    turns.push(chat::plain(Role::Assistant, &fields::required_text(row, &["output", "response"], "")?));
    Ok(turns)
}

/// `history`: a list of earlier questions with their answers.
fn history(row: &Object) -> Result<Vec<Turn>> {
    let mut turns = Vec::new();
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
    Ok(turns)
}

/// The chosen answer after its history, which is not learnt. `before` is the history, where the format says it.
pub(super) fn preference(row: &Object, before: Option<Vec<Turn>>, reading: &mut Reading) -> Result<Vec<Turn>> {
    let mut chosen = side(fields::required(row, &["chosen"], "")?.1, "chosen", Role::Assistant, reading)?;
    let mut turns;
    if is_whole(&chosen) {
        // What is said of the unwanted answer is no word about what is learnt.
        let rejected = row.get("rejected").filter(|value| !is_nothing(value));
        let mut unheard = Reading { roles: reading.roles, unused: Vec::new() };
        let rejected = rejected.and_then(|value| side(value, "rejected", Role::Assistant, &mut unheard).ok()).unwrap_or_default();
        let n_common = chosen
            .iter()
            .zip(&rejected)
            .take_while(|(a, b)| (a.role, &a.content, &a.tool_calls) == (b.role, &b.content, &b.tool_calls))
            .count();
        let last = chosen.iter().rposition(|turn| turn.role == Role::Assistant).unwrap_or(0);
        let n_given = if rejected.is_empty() { last } else { n_common.min(last) };
        unlearn_answers(&mut chosen[..n_given]);
        turns = chosen;
    } else {
        turns = match before {
            Some(turns) => turns,
            None => {
                let (key, value) = fields::required(row, &ASKED, "")?;
                let mut turns = history(row)?;
                turns.append(&mut side(value, key, Role::User, reading)?);
                turns
            }
        };
        unlearn_answers(&mut turns);
        turns.append(&mut chosen);
    }
    chat::add_system(row, &mut turns)?;
    Ok(turns)
}

/// Answers that stand before the one to learn are what the model is given.
fn unlearn_answers(turns: &mut [Turn]) {
    turns.iter_mut().filter(|turn| turn.role == Role::Assistant).for_each(unlearn);
}

fn is_whole(answer: &[Turn]) -> bool {
    matches!(answer.first(), Some(Turn { role: Role::System | Role::User, .. }))
}

/// `instruction` and `instances`, a list of `{"input", "output"}`: one conversation for each.
pub(super) fn self_instruct(row: &Object) -> Result<Vec<Vec<Turn>>> {
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
        let asked = join(&instruction, fields::optional_text(instance, &["input"], &prefix)?.as_deref());
        let answered = fields::required_text(instance, &["output"], &prefix)?;
        Ok(vec![chat::plain(Role::User, &asked), chat::plain(Role::Assistant, &answered)])
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
fn pair(row: &Object, asked: &[&str], answered: &[&str], reading: &mut Reading) -> Result<Vec<Turn>> {
    let (key, value) = fields::required(row, answered, "")?;
    let mut answer = side(value, key, Role::Assistant, reading)?;
    let mut turns = Vec::new();
    if !is_whole(&answer) {
        let (key, value) = fields::required(row, asked, "")?;
        let mut prompt = side(value, key, Role::User, reading)?;
        unlearn_answers(&mut prompt);
        turns = history(row)?;
        turns.append(&mut prompt);
    }
    turns.append(&mut answer);
    chat::add_system(row, &mut turns)?;
    Ok(turns)
}

fn side(value: &Value, key: &str, role: Role, reading: &mut Reading) -> Result<Vec<Turn>> {
    match value {
        // Answers of several people, or several right ones: texts that do not take turns.
        Value::Array(texts) if texts.iter().any(Value::is_string) => {
            Err(Error::new(format!("`{key}`: expected a string or a list of messages, found a list of {} texts", texts.len()))
                .cure("Keep the one that is to be learnt, as a text."))
        }
        Value::Array(_) => chat::turns(value, &chat::MESSAGES, key, reading),
        Value::Object(turn) if chat::looks_like_turn(value) => {
            chat::turns(&Value::Array(vec![Value::Object(turn.clone())]), &chat::MESSAGES, key, reading)
        }
        other => match fields::text(other) {
            Some(text) => Ok(transcript(&text).unwrap_or_else(|| vec![chat::plain(role, &text)])),
            None => Err(wrong_type(key, "a string or a list of messages", other)),
        },
    }
}

/// The turns of a text such as `\n\nHuman: Hi\n\nAssistant: Hello`, as Anthropic's preference data have them.
fn transcript(text: &str) -> Option<Vec<Turn>> {
    const SPEAKERS: [(&str, Role); 2] = [("\n\nHuman:", Role::User), ("\n\nAssistant:", Role::Assistant)];
    if !text.starts_with(SPEAKERS[0].0) {
        return None;
    }
    let mut begins: Vec<(usize, usize, Role)> = SPEAKERS
        .iter()
        .flat_map(|(mark, role)| text.match_indices(mark).map(|(at, mark)| (at, at + mark.len(), *role)))
        .collect();
    begins.sort_unstable_by_key(|(at, ..)| *at);
    let ends = begins.iter().skip(1).map(|(at, ..)| *at).chain([text.len()]);
    let turns = begins.iter().zip(ends).map(|(&(_, begin, role), end)| chat::plain(role, text[begin..end].trim()));
    Some(turns.collect())
}
