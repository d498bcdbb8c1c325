//! Converts rows whose columns are the turns: Alpaca, prompt/completion, question/answer, self-instruct, and preference pairs.
//!
//! Alpaca's `instruction` and `input` are joined by a line feed, as in LLaMA-Factory (either may be missing), and become a user turn in the model's
//! own chat template; the "Below is an instruction" wording of the original Alpaca model is not added.
//!
//! In a preference (`chosen`, `rejected`) the chosen answer is supervised, and nothing before it. If both sides contain the whole conversation,
//! their common beginning is the history (TRL's `extract_prompt`). A prompt in Anthropic's form ends in `Assistant:`; the answer continues this
//! transcript.

use std::borrow::Cow;

use serde_json::Value;

use super::chat::{self, Reading};
use super::example::{Role, Turn, WeightedPart};
use super::fields::{self, Object, kind, list, wrong_type};
use super::literal::is_nothing;
use crate::error::{Error, Result};

/// Column names of a prompt, and of an answer.
pub(super) const ASKED: [&str; 8] = ["prompt", "query", "question", "inputs", "input", "instruction", "user", "human"];
pub(super) const ANSWERED: [&str; 10] =
    ["completion", "response", "output", "outputs", "target", "targets", "answer", "assistant", "gpt", "bot"];

/// Whether the row has a chosen answer. A number or a boolean of that name is metadata.
pub(super) fn is_preference(row: &Object) -> bool {
    let is_answer = |value: &Value| matches!(value, Value::String(_) | Value::Array(_) | Value::Object(_)) && !is_nothing(value);
    row.get("chosen").is_some_and(is_answer)
}

/// Reads a prompt and its completion under any of their names, or the chosen side of a preference; with `history`, earlier pairs.
///
/// Only the completion is supervised: answers in the prompt are given to the model (TRL's `completion_only_loss`).
pub(super) fn prompt_completion(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    // An Alpaca row, in a file whose first row has no instruction.
    let has = |key: &str| fields::first(row, &[key]).is_some();
    if has("instruction") && has("input") && !["prompt", "query", "question", "inputs"].into_iter().any(has) {
        return alpaca(row, reading);
    }
    if is_preference(row) {
        return preference(row, None, reading);
    }
    pair(row, &ASKED, &ANSWERED, reading)
}

/// Reads `question` and `answer` (or `response`).
pub(super) fn question_answer(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    pair(row, &["question"], &["answer", "response"], reading)
}

/// Reads `instruction`, `input` (or `context`), and an answer (`output`, `response`, `chosen`, or any of [`ANSWERED`]), with `system` and
/// `history`.
pub(super) fn alpaca(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    let mut turns: Vec<Turn> = chat::system(row)?.into_iter().collect();
    turns.append(&mut history(row, reading)?);
    let input = fields::optional_text(row, &["input", "context"], "")?;
    let asks_by_input = fields::optional_text(row, &["input"], "")?.is_some_and(|input| !input.is_empty());
    let instruction = match fields::optional_text(row, &["instruction"], "")? {
        None if asks_by_input => Cow::Borrowed(""),
        _ => fields::required_text(row, &["instruction"], "")?,
    };
    turns.push(chat::plain(Role::User, &join(&instruction, input.as_deref())));
    if is_preference(row) {
        return preference(row, Some(turns), reading);
    }
    let answered = [&["output", "response"], &ANSWERED[..]].concat();
    turns.push(chat::plain(Role::Assistant, &fields::required_text(row, &answered, "")?));
    Ok(turns)
}

/// Reads `history`: earlier questions with their answers, as a list of pairs or of messages. Its answers are supervised, as in the programs that
/// support it (LLaMA-Factory, ms-swift).
fn history(row: &Object, reading: &mut Reading) -> Result<Vec<Turn>> {
    let mut turns = Vec::new();
    if let Some((_, history)) = fields::first(row, &["history"]).filter(|(_, value)| value.as_str() != Some("")) {
        if history.get(0).is_some_and(|first| first.is_object() && chat::looks_like_turn(first)) {
            return chat::turns(history, &chat::MESSAGES, "history", reading);
        }
        for (idx, pair) in list(history, "history")?.iter().enumerate() {
            let path = format!("history[{idx}]");
            match &*list(pair, &path)? {
                [Value::String(asked), Value::String(answered)] => {
                    turns.push(chat::plain(Role::User, asked));
                    turns.push(chat::plain(Role::Assistant, answered));
                }
                [] => return Err(Error::new(format!("`{path}`: expected two strings, found an empty list"))),
                other => {
                    let found: Vec<_> = other.iter().take(3).map(kind).collect();
                    return Err(Error::new(format!("`{path}`: expected two strings, found {}", found.join(" and ")))
                        .cure("Write a list of [question, answer], or of messages with `role` and `content`."));
                }
            }
        }
    }
    Ok(turns)
}

/// Returns the chosen answer after its history, which is not supervised. `before` is the history, if the format defines it.
pub(super) fn preference(row: &Object, before: Option<Vec<Turn>>, reading: &mut Reading) -> Result<Vec<Turn>> {
    let mut chosen = side(fields::required(row, &["chosen"], "")?.1, "chosen", Role::Assistant, reading)?;
    let mut turns;
    if is_whole(&chosen) {
        // Loss switches of the rejected answer do not affect what is supervised.
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
        mask_answers(&mut chosen[..n_given]);
        turns = chosen;
    } else {
        turns = match before {
            Some(mut turns) => {
                mask_answers(&mut turns);
                turns.append(&mut chosen);
                turns
            }
            None => {
                let n_learnt = chosen.len();
                let mut turns = behind_prompt(row, &ASKED, chosen, reading)?;
                let n_given = turns.len() - n_learnt;
                mask_answers(&mut turns[..n_given]);
                turns
            }
        };
    }
    chat::add_system(row, &mut turns)?;
    Ok(turns)
}

/// Excludes the answers from the loss, since they belong to the context of a later one.
fn mask_answers(turns: &mut [Turn]) {
    turns.iter_mut().filter(|turn| turn.role == Role::Assistant).for_each(Turn::mask);
}

fn is_whole(answer: &[Turn]) -> bool {
    matches!(answer.first(), Some(Turn { role: Role::System | Role::User, .. }))
}

/// Reads `instruction` and `instances`, a list of `{"input", "output"}`: one conversation for each.
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

/// Reads a question and its answer, each a string or a list of messages. An answer that begins with a system or user turn is the whole
/// conversation.
fn pair(row: &Object, asked: &[&str], answered: &[&str], reading: &mut Reading) -> Result<Vec<Turn>> {
    let (key, value) = fields::required(row, answered, "")?;
    let answer = side(value, key, Role::Assistant, reading)?;
    let mut turns = if is_whole(&answer) { answer } else { behind_prompt(row, asked, answer, reading)? };
    chat::add_system(row, &mut turns)?;
    Ok(turns)
}

/// Returns the row's history and prompt, followed by the answer; answers in the prompt are not supervised.
fn behind_prompt(row: &Object, asked: &[&str], mut answer: Vec<Turn>, reading: &mut Reading) -> Result<Vec<Turn>> {
    let (key, value) = fields::required(row, asked, "")?;
    let mut turns = history(row, reading)?;
    let mut prompt = side(value, key, Role::User, reading)?;
    mask_answers(&mut prompt);
    turns.append(&mut prompt);
    if let Some(text) = value.as_str().filter(|text| transcript(text).is_some()) {
        let begun = turns.pop_if(|turn| turn.role == Role::Assistant).and_then(|_| Some(text.rsplit_once(ASSISTANT)?.1));
        if let Some(answer) = answer.first_mut() {
            continue_transcript(begun, answer);
        }
    }
    turns.append(&mut answer);
    Ok(turns)
}

/// Makes the answer the end of a transcript, whose turns are trimmed. What the transcript has `begun` of the answer is not supervised.
fn continue_transcript(begun: Option<&str>, answer: &mut Turn) {
    let begun = begun.unwrap_or_default().trim_start();
    let content = answer.content.trim_end();
    let content = content.trim_start().strip_prefix(ASSISTANT.trim_start()).unwrap_or(content);
    if begun.is_empty() {
        answer.content = content.trim().to_owned();
    } else {
        answer.content = format!("{begun}{content}");
        answer.parts.push(WeightedPart { begin: 0, end: begun.len(), weight: 0.0 });
    }
    answer.written.parts.clear();
}

fn side(value: &Value, key: &str, role: Role, reading: &mut Reading) -> Result<Vec<Turn>> {
    match value {
        // Texts that do not alternate: answers by several people, or several correct ones.
        Value::Array(texts) if texts.iter().any(Value::is_string) => {
            Err(Error::new(format!("`{key}`: expected a string or a list of messages, found a list of {} texts", texts.len()))
                .cure("Keep only the one to be learnt, as a text."))
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

const HUMAN: &str = "\n\nHuman:";
const ASSISTANT: &str = "\n\nAssistant:";

/// Parses the turns of a text such as `\n\nHuman: Hi\n\nAssistant: Hello`, the form of Anthropic's preference data.
pub(super) fn transcript(text: &str) -> Option<Vec<Turn>> {
    const SPEAKERS: [(&str, Role); 2] = [(HUMAN, Role::User), (ASSISTANT, Role::Assistant)];
    if !text.starts_with(HUMAN) {
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
