//! Reads files into tasks: items that ask for the log-likelihood of continuations, or for a written answer.
//!
//! Four forms of JSON Lines, distinguished by their keys, and plain text:
//!
//! ```text
//! {"id", "context", "choices": [..], "answer": 0}                                 choices; `answer` counts from 0; `delimiter` before them: a space
//! {"id", "choices": [..], "continuation", "answer": 0, "scoring": "partial"}      each choice is a context (WinoGrande)
//! {"context", "continuation"}                                                     the last word of a passage (LAMBADA)
//! {"text"}, or a .txt file as a whole                                             perplexity in a rolling window
//! {"id", "prompt" | "messages", "answer" | "answers", "match"}                    the model writes: see written/uniform.rs
//! ```
//!
//! The conventions are those of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness): one space separates context
//! and continuation, and choices are not stripped. A `description` comes before everything else, including the examples of
//! `fewshot.rs`; `asking.rs` puts them together. `subject` or `paradigm` names the part of the task that an item belongs to:
//! parts correspond to the harness's tasks of one group, also get scores of their own, and have their own examples. `group` names
//! what an item shares with others, such as a passage: these items were drawn together, which standard errors and intervals take
//! into account.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::written::{Spec, uniform};
use crate::dataset::{Example, Role, Turn};
use crate::error::{Context, Error, Result};
use crate::files::{file_name, sha256};
use crate::json::{self, expected};

/// Items that are scored and summarised together.
#[derive(Debug, Clone)]
pub struct Task {
    /// The file name up to its first dot.
    pub name: String,
    /// Must be increased when a change to this program changes the scores of the same file.
    pub version: u32,
    /// The origin of the items, for messages.
    pub path: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// What the items ask for.
    pub kind: TaskKind,
    /// How answers are generated and judged, for [`TaskKind::Written`].
    pub written: Option<&'static Spec>,
    /// The items, in order.
    pub items: Vec<Item>,
    /// The source of the few-shot examples.
    pub examples: Examples,
    /// The examples before every item.
    pub few_shot: FewShot,
}

/// The source of the examples for `fewshot.rs`.
#[derive(Debug, Clone)]
pub enum Examples {
    /// The task's own other items.
    Own,
    /// Another split, sampled by the seed.
    Drawn(Vec<Item>),
    /// The first items of another split.
    First(Vec<Item>),
    /// The first items of a file that the user named, with the file's SHA-256.
    File(Vec<Item>, String),
}

/// The examples before every question; by default there are none.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct FewShot {
    /// The number of examples (`--fewshot`).
    #[serde(rename = "few_shot")]
    pub n: u32,
    /// The seed for drawing them; `None` if none were drawn.
    #[serde(default)]
    pub seed: Option<u64>,
    /// SHA-256 of the file given by `--fewshot-from`, in hexadecimal; `None` if the examples are the task's own.
    #[serde(rename = "few_shot_sha256", default, skip_serializing_if = "Option::is_none")]
    pub file_sha256: Option<String>,
}

impl FewShot {
    /// The options that give these examples, for messages.
    pub fn words(&self) -> String {
        if self.n == 0 {
            return "no examples".to_owned();
        }
        let drawn = self.seed.map_or(String::new(), |seed| format!(" --seed {seed}"));
        let from = self
            .file_sha256
            .as_ref()
            .map_or(String::new(), |sha256| format!(" --fewshot-from a file with SHA-256 {sha256:.12}.."));
        format!("--fewshot {}{drawn}{from}", self.n)
    }
}

/// What the items of a task ask for.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskKind {
    /// Which continuation of one context is the most probable?
    Choice,
    /// After which context is the continuation the most probable?
    Partial,
    /// Is the continuation the model's most probable one, token by token?
    LastWord,
    /// How probable is the text?
    Text,
    /// Is the answer that the model writes right?
    Written,
    /// How probable are the answers of training rows?
    Rows,
}

/// One question of a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Item {
    /// Unique in its task.
    pub id: String,
    /// The part of the task: the subject of MMLU, the paradigm of BLiMP.
    pub subject: Option<String>,
    /// The group of items that were drawn together, such as questions about one passage.
    pub group: Option<String>,
    /// The text before everything else; may be empty.
    pub description: String,
    /// Few-shot examples before the question.
    pub examples: Vec<Shot>,
    /// One request per choice. If the model writes, a single one: the prompt, and the answer to show when the item serves as an
    /// example.
    pub requests: Vec<Request>,
    /// The index of the right request.
    pub answer: usize,
    /// The other data of an item whose answer is written.
    pub written: Option<Question>,
    /// The row itself, if the item is a training row.
    pub row: Option<Box<Example>>,
}

/// A few-shot example: a question and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// The text of the question.
    pub question: String,
    /// The text between the two; not used if they are separate turns.
    pub between: String,
    /// The text of the answer.
    pub answer: String,
}

/// The other data of an item whose answer is written.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The conversation to answer, in place of a prompt.
    pub messages: Option<Vec<Turn>>,
    /// A JSON array of tool schemas for the chat template.
    pub tools: Option<Value>,
    /// The data by which the answer is judged: see [`Spec::check`](super::written::Spec).
    pub data: Value,
}

/// A request for ln P(`continuation` | `context`).
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The text before the continuation; empty for a text.
    pub context: String,
    /// The continuation, including the space that separates it from the context; a text has no such space.
    pub continuation: String,
}

/// The name of the questions that ship with the program.
pub const PROBE: &str = "probe";
const PROBE_ITEMS: &str = include_str!("../../data/probe/general.jsonl");

/// The version of the forms above.
const VERSION: u32 = 1;

/// The questions that ship with the program, as a task.
pub fn probe() -> Result<Task> {
    parse(PROBE, "data/probe/general.jsonl", PROBE_ITEMS.as_bytes())
}

/// The name of a task from a file: the file name up to its first dot, or `otherwise`.
pub(super) fn task_name(path: &Path, otherwise: &str) -> String {
    let file = file_name(path);
    file.split('.').find(|part| !part.is_empty()).unwrap_or(otherwise).to_owned()
}

/// Reads a task from a file of the user.
pub fn read(path: &Path) -> Result<Task> {
    let bytes = std::fs::read(path).context_at(path, "cannot read the task")?;
    parse(&task_name(path, "task"), &path.to_string_lossy(), &bytes)
}

/// Parses a task from the bytes of its file; the extension of `path` decides between text and JSON Lines, and errors name it.
pub fn parse(name: &str, path: &str, bytes: &[u8]) -> Result<Task> {
    let sha256 = sha256(bytes);
    let bytes = bytes.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(bytes);
    let text = std::str::from_utf8(bytes).map_err(|error| {
        let line = 1 + bytes[..error.valid_up_to()].iter().filter(|&&byte| byte == b'\n').count();
        Error::new("expected UTF-8, found an invalid byte").at_line(path, line as u64).cure("Convert the file to UTF-8.")
    })?;
    let (kind, items) = match Path::new(path).extension().and_then(|extension| extension.to_str()) {
        Some("txt") => (TaskKind::Text, vec![text_item("0".to_owned(), text).map_err(|error| error.at(path))?]),
        Some("jsonl") => json_lines(path, text)?,
        _ => {
            return Err(Error::usage("expected a task named .jsonl or .txt")
                .at(path)
                .cure("Rename the file, if it contains one JSON object per line or plain text."));
        }
    };
    Ok(Task {
        name: name.to_owned(),
        version: VERSION,
        path: path.to_owned(),
        sha256,
        kind,
        written: (kind == TaskKind::Written).then_some(&uniform::SPEC),
        items,
        examples: Examples::Own,
        few_shot: FewShot::default(),
    })
}

fn json_lines(path: &str, text: &str) -> Result<(TaskKind, Vec<Item>)> {
    let mut builder = Builder::of_user();
    // Split at `\n` only: strings may contain U+2028 and other characters that end lines elsewhere.
    for (line, number) in text.split('\n').zip(1u64..).filter(|(line, _)| !line.trim().is_empty()) {
        let row = json::from_str(line).context("expected a JSON object");
        row.and_then(|row| builder.add(&row, number)).map_err(|error| error.at_line(path, number))?;
    }
    builder.finish().map_err(|error| error.at(path))
}

/// Builds items of one kind with unique ids from rows of the uniform form.
pub(super) struct Builder {
    items: Vec<Item>,
    kind: Option<TaskKind>,
    lines_of_ids: HashMap<String, u64>,
    /// Extracts from a row the data by which an answer is judged.
    judged_by: fn(&Map<String, Value>) -> Result<Value>,
}

impl Builder {
    /// For the rows of a user's own file.
    fn of_user() -> Builder {
        Builder { items: Vec::new(), kind: None, lines_of_ids: HashMap::new(), judged_by: uniform::data }
    }

    /// For rows that a benchmark's function has made: `data` is what its `check` reads.
    pub(super) fn of_benchmark() -> Builder {
        let judged_by = |row: &Map<String, Value>| {
            row.get("data").cloned().ok_or_else(|| Error::new("expected `data` to judge the answer by"))
        };
        Builder { judged_by, ..Builder::of_user() }
    }

    /// Adds a row; errors about later rows refer to its `line`.
    pub(super) fn add(&mut self, row: &Map<String, Value>, line: u64) -> Result<()> {
        let (own_kind, item) = item(row, self.items.len(), self.judged_by)?;
        check_context(own_kind, &item, self.items.first())?;
        let kind = *self.kind.get_or_insert(own_kind);
        if own_kind != kind {
            return Err(Error::new(format!("expected {} as in the lines above, found {}", kind.name(), own_kind.name()))
                .cure("Keep each kind of item in a separate file."));
        }
        if let Some(before) = self.lines_of_ids.insert(item.id.clone(), line) {
            return Err(Error::new(format!("the id `{}` is also that of line {before}", item.id))
                .cure("Give every item a unique id: comparisons pair items by id."));
        }
        self.items.push(item);
        Ok(())
    }

    pub(super) fn finish(self) -> Result<(TaskKind, Vec<Item>)> {
        match self.kind {
            Some(kind) => Ok((kind, self.items)),
            None => Err(Error::new("expected one JSON object per line, found none").cure("Name a file that holds items.")),
        }
    }
}

/// Checks for empty contexts: in a task of isolated sentences (BLiMP), all are empty; otherwise an empty one is a mistake.
fn check_context(kind: TaskKind, item: &Item, first: Option<&Item>) -> Result<()> {
    let is_empty = |item: &Item| item.requests[0].context.trim().is_empty();
    match kind {
        TaskKind::LastWord if is_empty(item) => Err(Error::new("expected a passage as `context`, found an empty one")),
        TaskKind::Choice if first.is_some_and(|first| !is_empty(first)) && is_empty(item) => {
            Err(Error::new("`context` is empty, but not in the lines above")
                .cure("Fill it in, or put items without a context into a separate file."))
        }
        TaskKind::Choice if first.is_some_and(is_empty) && !is_empty(item) => {
            Err(Error::new("`context` is empty in the lines above, but not here")
                .cure("Put items without a context into a separate file."))
        }
        _ => Ok(()),
    }
}

/// A name, which may be a number or missing.
fn name_of(row: &Map<String, Value>, key: &str) -> Result<Option<String>> {
    match row.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(Value::String(name)) => Ok(Some(name.clone())),
        Some(Value::Number(name)) => Ok(Some(name.to_string())),
        Some(other) => Err(expected(key, "a string or a number", other)),
    }
}

fn item(row: &Map<String, Value>, index: usize, judged_by: fn(&Map<String, Value>) -> Result<Value>) -> Result<(TaskKind, Item)> {
    let id = name_of(row, "id")?.unwrap_or_else(|| index.to_string());
    let subject = match name_of(row, "subject")? {
        None => name_of(row, "paradigm")?,
        subject => subject,
    };
    let group = name_of(row, "group")?;
    let description = match row.get("description") {
        None | Some(Value::Null) => String::new(),
        Some(_) => text(row, "description")?.to_owned(),
    };
    let item = |requests: Vec<Request>, answer: usize, written: Option<Question>| Item {
        id,
        subject,
        group,
        description,
        examples: Vec::new(),
        requests,
        answer,
        written,
        row: None,
    };
    let partial = match row.get("scoring") {
        None | Some(Value::Null) => false,
        Some(Value::String(scoring)) if scoring == "partial" => true,
        Some(other) => return Err(expected("scoring", "\"partial\" or no such key", other)),
    };
    if row.contains_key("choices") {
        let choices = choices(row)?;
        let answer = answer(row, choices.len())?;
        let delimiter = match row.get("delimiter") {
            None => " ",
            Some(Value::String(text)) if text == " " || text == "\n" => text,
            Some(other) => return Err(expected("delimiter", "a space or a newline", other)),
        };
        let request =
            |context: &str, rest: &str| Request { context: context.to_owned(), continuation: format!("{delimiter}{rest}") };
        let (kind, requests) = match partial {
            true => {
                let continuation = filled(row, "continuation")?;
                (TaskKind::Partial, choices.iter().map(|choice| request(choice, continuation)).collect())
            }
            false => {
                let context = text(row, "context")?;
                (TaskKind::Choice, choices.iter().map(|choice| request(context, choice)).collect())
            }
        };
        return Ok((kind, item(requests, answer, None)));
    }
    if row.contains_key("continuation") {
        let request =
            Request { context: text(row, "context")?.to_owned(), continuation: format!(" {}", filled(row, "continuation")?) };
        return Ok((TaskKind::LastWord, item(vec![request], 0, None)));
    }
    if row.contains_key("text") {
        // Nothing precedes a text.
        let Item { requests, .. } = text_item(String::new(), text(row, "text")?)?;
        return Ok((TaskKind::Text, Item { description: String::new(), ..item(requests, 0, None) }));
    }
    if row.contains_key("prompt") || row.contains_key("messages") {
        let data = judged_by(row)?;
        let (request, messages) = prompt(row, &data)?;
        let tools = row.get("tools").filter(|tools| !tools.is_null()).cloned();
        return Ok((TaskKind::Written, item(vec![request], 0, Some(Question { messages, tools, data }))));
    }
    let keys = row.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
    Err(Error::new(format!("expected `choices`, `continuation`, `text`, `prompt` or `messages`, found the keys {keys}")))
}

/// The prompt with the answer to show when it serves as an example, or the conversation to answer.
fn prompt(row: &Map<String, Value>, data: &Value) -> Result<(Request, Option<Vec<Turn>>)> {
    let shown = match row.get("target") {
        Some(_) => Some(text(row, "target")?),
        None => data.pointer("/answers/0").and_then(Value::as_str),
    };
    let continuation = shown.map_or_else(String::new, |answer| format!(" {answer}"));
    match (row.get("prompt"), row.get("messages")) {
        (Some(_), Some(_)) => Err(Error::new("expected `prompt` or `messages`, found both")),
        (Some(_), None) => {
            let context = text(row, "prompt")?.to_owned();
            match context.trim().is_empty() {
                true => Err(Error::new("`prompt` is empty: there is nothing to answer")),
                false => Ok((Request { context, continuation }, None)),
            }
        }
        (None, messages) => {
            let messages = messages.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
            let turns = messages.iter().map(turn).collect::<Result<Vec<Turn>>>()?;
            match turns.last() {
                Some(last) if last.role != Role::Assistant => Ok((Request { context: String::new(), continuation }, Some(turns))),
                Some(_) => Err(Error::new("the last of `messages` is an answer: there is nothing to answer")),
                None => Err(expected("messages", "a list of {role, content}", row.get("messages").unwrap_or(&Value::Null))),
            }
        }
    }
}

fn turn(message: &Value) -> Result<Turn> {
    let role = match message["role"].as_str() {
        Some("system") => Role::System,
        Some("user") => Role::User,
        Some("assistant") => Role::Assistant,
        _ => return Err(expected("role", "system, user or assistant", &message["role"])),
    };
    let content = message["content"].as_str().ok_or_else(|| expected("content", "a text", &message["content"]))?;
    match content.trim().is_empty() {
        true => Err(Error::new("the `content` of a message is empty")),
        false => Ok(Turn::plain(role, content)),
    }
}

fn text_item(id: String, text: &str) -> Result<Item> {
    if text.is_empty() {
        return Err(Error::new("expected a text, found an empty one"));
    }
    let request = Request { context: String::new(), continuation: text.to_owned() };
    Ok(Item { id, requests: vec![request], ..Item::default() })
}

fn choices(row: &Map<String, Value>) -> Result<Vec<&str>> {
    let Some(Value::Array(values)) = row.get("choices") else {
        return Err(expected("choices", "a list of strings", row.get("choices").unwrap_or(&Value::Null)));
    };
    if values.len() < 2 {
        return Err(Error::new(format!("expected at least two `choices`, found {}", values.len())));
    }
    let texts = values.iter().enumerate().map(|(idx, value)| match value {
        Value::String(text) if text.is_empty() => Err(Error::new(format!("choice {idx} is empty"))),
        Value::String(text) => Ok(text.as_str()),
        other => Err(expected(&format!("choices[{idx}]"), "a string", other)),
    });
    texts.collect()
}

fn answer(row: &Map<String, Value>, n_choices: usize) -> Result<usize> {
    let value =
        row.get("answer").ok_or_else(|| Error::new("expected `answer`, the index of the right choice; found no such key"))?;
    let answer = value.as_u64().ok_or_else(|| expected("answer", "the index of the right choice, counted from 0", value))?;
    match usize::try_from(answer) {
        Ok(answer) if answer < n_choices => Ok(answer),
        _ => Err(Error::new(format!("`answer` is {answer}, but there are {n_choices} choices, counted from 0"))),
    }
}

fn text<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    match row.get(key) {
        Some(Value::String(text)) => Ok(text),
        Some(other) => Err(expected(key, "a string", other)),
        None => Err(Error::new(format!("expected `{key}`, found no such key"))),
    }
}

fn filled<'a>(row: &'a Map<String, Value>, key: &str) -> Result<&'a str> {
    match text(row, key)? {
        "" => Err(Error::new(format!("`{key}` is empty"))),
        text => Ok(text),
    }
}

impl TaskKind {
    fn name(self) -> &'static str {
        match self {
            TaskKind::Choice => "`context` and `choices`",
            TaskKind::Partial => "`choices` and `continuation`",
            TaskKind::LastWord => "`context` and `continuation`",
            TaskKind::Text => "`text`",
            TaskKind::Written => "`prompt` or `messages`",
            TaskKind::Rows => "rows to learn from",
        }
    }
}

impl Request {
    /// The choice as it is in the file, without the delimiter before it.
    pub fn choice(&self) -> &str {
        self.continuation.strip_prefix([' ', '\n']).unwrap_or(&self.continuation)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::named::load;

    #[test]
    fn the_forms_are_told_apart_by_their_keys() {
        let check = |line: &str, kind: TaskKind, requests: &[(&str, &str)], answer: usize| {
            let task = parse("t", "t.jsonl", line.as_bytes()).unwrap();
            let found: Vec<_> = task.items[0].requests.iter().map(|r| (r.context.as_str(), r.continuation.as_str())).collect();
            assert_eq!((task.kind, found.as_slice(), task.items[0].answer), (kind, requests, answer));
        };
        check(r#"{"id":7,"context":"Q","choices":["a"," b "],"answer":1}"#, TaskKind::Choice, &[("Q", " a"), ("Q", "  b ")], 1);
        let partial = r#"{"id":"w","context":"","choices":["x","y"],"answer":0,"continuation":"z","scoring":"partial"}"#;
        check(partial, TaskKind::Partial, &[("x", " z"), ("y", " z")], 0);
        check(r#"{"context":"I saw the","continuation":"sea"}"#, TaskKind::LastWord, &[("I saw the", " sea")], 0);
        check("\n{\"text\":\"a\u{2028}b\"}\n", TaskKind::Text, &[("", "a\u{2028}b")], 0);
        assert_eq!(parse("t", "a/t.txt", b"two\nlines").unwrap().items[0].requests[0].continuation, "two\nlines");
    }

    #[test]
    fn the_probe_is_whole() {
        let probe = &load(&[PROBE.to_owned()], &|_, _, _| ()).unwrap()[0];
        assert_eq!((probe.name.as_str(), probe.kind, probe.items.len()), ("probe", TaskKind::Choice, 320));
    }

    #[test]
    fn malformed_tasks_are_refused_with_the_line() {
        let check = |line: &str, expected: &str| {
            let good = r#"{"id":"a","context":"","choices":["x","y"],"answer":0}"#;
            let error = parse("t", "t.jsonl", format!("{good}\n\n{line}\n").as_bytes()).unwrap_err().to_string();
            assert!(error.starts_with("t.jsonl:3: ") && error.contains(expected), "{error}");
        };
        check(r#"{"id":"b","context":"","choices":[],"answer":0}"#, "at least two `choices`, found 0");
        check(r#"{"id":"b","context":"","choices":["x","y"],"answer":2}"#, "`answer` is 2, but there are 2 choices");
        check(r#"{"id":"b","context":"","choices":["x","y"],"answer":-1}"#, "counted from 0, found -1");
        check(r#"{"id":"b","context":"","choices":["x","y"],"answer":"B"}"#, "found \"B\"");
        check(r#"{"id":"b","context":"","choices":["x","y"]}"#, "expected `answer`");
        check(r#"{"id":"a","context":"","choices":["x","y"],"answer":0}"#, "also that of line 1");
        check(r#"{"id":"b","context":3,"choices":["x","y"],"answer":0}"#, "`context` to be a string, found 3");
        check(r#"{"id":"b","choices":["x","y"],"answer":0}"#, "expected `context`");
        check(r#"{"id":"b","context":"","choices":["x",""],"answer":0}"#, "choice 1 is empty");
        check(r#"{"id":"b","context":"","choices":["x",4],"answer":0}"#, "`choices[1]` to be a string");
        check(r#"{"id":"b","context":"","choices":"xy","answer":0}"#, "`choices` to be a list");
        check(r#"{"id":"b","choices":["x","y"],"answer":0,"scoring":"partial"}"#, "expected `continuation`");
        check(r#"{"id":"b","choices":["x","y"],"answer":0,"scoring":"full"}"#, "`scoring`");
        check(r#"{"id":["b"],"context":"","choices":["x","y"],"answer":0}"#, "`id`");
        check(r#"{"id":"b","context":"x","continuation":"y"}"#, "as in the lines above");
        check(r#"{"id":"b","question":"x"}"#, "found the keys `id`, `question`");
        check(r#"{"id":"b","context":"x","choices":["x","y"],"answer":0}"#, "`context` is empty in the lines above");
        let error = |lines: &str| parse("t", "t.jsonl", lines.as_bytes()).unwrap_err().to_string();
        let filled = r#"{"context":"x","choices":["x","y"],"answer":0}"#;
        let empty = r#"{"context":" ","choices":["x","y"],"answer":0}"#;
        assert!(error(&format!("{filled}\n{empty}")).starts_with("t.jsonl:2: `context` is empty, but"));
        assert!(error(r#"{"context":"","continuation":"y"}"#).starts_with("t.jsonl:1: expected a passage"));
        check("[1]", "expected a JSON object");
        check("{", "expected a JSON object");
        assert!(parse("t", "t.jsonl", b"\n").is_err() && parse("t", "t.txt", b"").is_err() && parse("t", "t.csv", b"a").is_err());
        assert!(parse("t", "t.jsonl", b"\n\xff").unwrap_err().to_string().starts_with("t.jsonl:2: expected UTF-8"));
        let refused = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            load(&names, &|_, _, _| ()).unwrap_err().to_string()
        };
        assert!(refused(&["hellaswagg"]).contains("`--tasks list`"));
        assert!(refused(&[PROBE, PROBE]).contains("two tasks"));
    }
}
