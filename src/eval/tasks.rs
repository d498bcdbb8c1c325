//! Files -> tasks: items that ask for the log-likelihood of continuations, or for an answer.
//!
//! Four forms of JSON Lines, told apart by their keys, and plain text:
//!
//! ```text
//! {"id", "context", "choices": [..], "answer": 0}                                 choices; `answer` counts from 0; `delimiter` before them: a space
//! {"id", "choices": [..], "continuation", "answer": 0, "scoring": "partial"}      each choice is a context (WinoGrande)
//! {"context", "continuation"}                                                     the last word of a passage (LAMBADA)
//! {"text"}, or a .txt file as a whole                                             perplexity in a rolling window
//! {"id", "prompt" | "messages", "answer" | "answers", "match"}                    the model writes: see written/uniform.rs
//! ```
//!
//! The conventions are those of lm-evaluation-harness (github.com/EleutherAI/lm-evaluation-harness): one space stands between
//! context and continuation, choices are not stripped. A `description` stands before everything else, also
//! before the examples of `fewshot.rs`; `asking.rs` puts them together. `subject` or `paradigm` names the part of the task that an item belongs to: parts are what the
//! harness has as tasks of one group, are summed up on their own, too, and have their own examples. `group` names what an item shares
//! with others, such as a passage: they were drawn together, which errors and intervals respect.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use super::written::{Spec, uniform};
use crate::dataset::{Example, Role, Turn};
use crate::error::{Context, Error, Result};
use crate::files::{file_name, sha256};
use crate::json::{self, expected};

/// Items that are scored and summed up together.
#[derive(Debug, Clone)]
pub struct Task {
    /// The file's name up to its first dot.
    pub name: String,
    /// Rises when a change of this program changes the scores of the same file.
    pub version: u32,
    /// Where the items come from, for people.
    pub path: String,
    /// SHA-256 of the file, in hexadecimal.
    pub sha256: String,
    /// What its items ask for.
    pub kind: TaskKind,
    /// How answers are written and judged, where [`TaskKind::Written`].
    pub written: Option<&'static Spec>,
    /// The items, in order.
    pub items: Vec<Item>,
    /// Where examples to put before questions come from.
    pub examples: Examples,
    /// The examples that stand before every item; `None`: there are none.
    pub few_shot: Option<FewShot>,
}

/// Where the examples of `fewshot.rs` come from.
#[derive(Debug, Clone)]
pub enum Examples {
    /// From the task's own other items.
    Own,
    /// From another split, drawn by the seed.
    Drawn(Vec<Item>),
    /// The first ones of another split.
    First(Vec<Item>),
    /// The first ones of a file that the user named, whose SHA-256 stands beside them.
    File(Vec<Item>, String),
}

/// Examples that stand before every question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct FewShot {
    /// How many.
    pub n: u32,
    /// `None` where nothing was drawn.
    pub seed: Option<u64>,
    /// SHA-256 of the file that they were taken from, in hexadecimal; `None` where they are the task's own.
    pub file_sha256: Option<String>,
}

impl FewShot {
    /// The options that give these examples, for people.
    pub fn words(&self) -> String {
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
    /// After which context is one continuation the most probable?
    Partial,
    /// Is the continuation the model's own first choice, token by token?
    LastWord,
    /// How probable is the text?
    Text,
    /// Is the answer right that the model writes?
    Written,
    /// How probable are the answers of rows to learn from?
    Rows,
}

/// One question of a task.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Item {
    /// Unique in its task.
    pub id: String,
    /// The part of the task: the subject of MMLU, the paradigm of BLiMP.
    pub subject: Option<String>,
    /// Items of one group were drawn together, such as questions about one passage.
    pub group: Option<String>,
    /// Stands before everything else; empty where there is none.
    pub description: String,
    /// Answered examples that stand before the question.
    pub examples: Vec<Shot>,
    /// One for each choice. Where the model writes, a single one: the prompt, and the answer that an example shows.
    pub requests: Vec<Request>,
    /// Index of the right request.
    pub answer: usize,
    /// What else a written answer needs, where the model writes.
    pub written: Option<Question>,
    /// The row itself, where the item is a row to learn from.
    pub row: Option<Box<Example>>,
}

/// An example: a question and its answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Shot {
    /// The text of the question.
    pub question: String,
    /// What stands between the two in a text; in turns of their own nothing does.
    pub between: String,
    /// The text of the answer.
    pub answer: String,
}

/// What else a written answer needs.
#[derive(Debug, Clone, PartialEq)]
pub struct Question {
    /// The conversation that is to be answered, in the place of a prompt.
    pub messages: Option<Vec<Turn>>,
    /// JSON array of tool schemas, for the chat template.
    pub tools: Option<Value>,
    /// What the answer is judged by: see [`Spec::check`](super::written::Spec).
    pub data: Value,
}

/// Asks for ln P(`continuation` | `context`).
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// The text before the continuation; a text has none.
    pub context: String,
    /// Begins with the space that belongs between the two; a text has none.
    pub continuation: String,
}

/// The questions that ship with the program.
pub const PROBE: &str = "probe";
const PROBE_ITEMS: &str = include_str!("../../data/probe/general.jsonl");

/// Version of the forms above.
const VERSION: u32 = 1;

/// The questions that ship with the program, as a task.
pub fn probe() -> Result<Task> {
    parse(PROBE, "data/probe/general.jsonl", PROBE_ITEMS.as_bytes())
}

/// What a task from a file is called: the file's name up to its first dot, or `otherwise`.
pub(super) fn task_name(path: &Path, otherwise: &str) -> String {
    let file = file_name(path);
    file.split('.').find(|part| !part.is_empty()).unwrap_or(otherwise).to_owned()
}

/// A task from a file of the user.
pub fn read(path: &Path) -> Result<Task> {
    let bytes = std::fs::read(path).context_at(path, "cannot read the task")?;
    parse(&task_name(path, "task"), &path.to_string_lossy(), &bytes)
}

/// A task from the bytes of its file; `path` decides between text and JSON Lines and is named in errors.
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
        few_shot: None,
    })
}

fn json_lines(path: &str, text: &str) -> Result<(TaskKind, Vec<Item>)> {
    let mut builder = Builder::of_user();
    // Split on `\n` only: strings may hold U+2028 and other characters that end lines elsewhere.
    for (line, number) in text.split('\n').zip(1u64..).filter(|(line, _)| !line.trim().is_empty()) {
        let row = json::from_str(line).context("expected a JSON object");
        row.and_then(|row| builder.add(&row, number)).map_err(|error| error.at_line(path, number))?;
    }
    builder.finish().map_err(|error| error.at(path))
}

/// Rows of the uniform form -> items of one kind with ids of their own.
pub(super) struct Builder {
    items: Vec<Item>,
    kind: Option<TaskKind>,
    lines_of_ids: HashMap<String, u64>,
    /// What a row says that an answer is judged by.
    judged_by: fn(&Map<String, Value>) -> Result<Value>,
}

impl Builder {
    /// Builds a task from the rows of a user's own file.
    fn of_user() -> Builder {
        Builder { items: Vec::new(), kind: None, lines_of_ids: HashMap::new(), judged_by: uniform::data }
    }

    /// Builds a task from rows that a benchmark's own function has made: `data` is what its `check` reads.
    pub(super) fn of_benchmark() -> Builder {
        let judged_by = |row: &Map<String, Value>| {
            row.get("data").cloned().ok_or_else(|| Error::new("expected `data` to judge the answer by"))
        };
        Builder { judged_by, ..Builder::of_user() }
    }

    /// `line` is named in errors about later rows.
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

/// Sentences that stand on their own (BLiMP) have no context, all of them; elsewhere an empty one is a slip.
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

/// A name that may be a number, or missing.
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
        // Nothing stands before a text.
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

/// The prompt with the answer that it has as an example, or the conversation that is to be answered.
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
    /// The choice as the file has it, without the delimiter before it.
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
