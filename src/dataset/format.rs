//! Defines the dataset formats: their names, their detection, and the conversion of rows into examples.

use std::cmp::Reverse;

use serde_json::Value;

use super::chat::Reading;
use super::example::{Example, Role, Rollout, Turn};
use super::fields::{self, Object, label, list_keys};
use super::literal::is_nothing;
use super::mapping::FieldMap;
use super::pairs::{ANSWERED, ASKED};
use super::roles::RoleMap;
use super::{chat, heard, pairs, switches, tools, trees, unread};
use crate::error::{Error, Result};
use crate::spelling::named;

/// What the keys of a row mean.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Format {
    /// `messages`: a list of `{"role", "content", ..}`.
    Messages,
    /// `conversations`: a list of `{"from", "value"}`.
    ShareGpt,
    Alpaca,
    PromptCompletion,
    QuestionAnswer,
    /// `text`: supervised as a whole, without a template.
    Text,
    /// Separate messages, linked by parent ids; every path from a root to a leaf is an example.
    Oasst,
    SelfInstruct,
}

named! {
    pub Format, "a format":
    Messages = "messages",
    ShareGpt = "sharegpt",
    Alpaca = "alpaca",
    PromptCompletion = "prompt-completion",
    QuestionAnswer = "question-answer",
    Text = "text",
    Oasst = "oasst",
    SelfInstruct = "self-instruct",
}

impl Format {
    /// The fields that identify the format, for help texts.
    pub fn keys(self) -> &'static str {
        match self {
            Format::Messages => "messages: role, content",
            Format::ShareGpt => "conversations: from, value",
            Format::Alpaca => "instruction, output or response or chosen",
            Format::PromptCompletion => "prompt, completion or response or chosen; query, response; input, output",
            Format::QuestionAnswer => "question, answer or response",
            Format::Text => "text",
            Format::Oasst => "message_id, parent_id, role, text",
            Format::SelfInstruct => "instruction, instances",
        }
    }

    /// What a row of this format contains, for the guide.
    #[cfg(test)]
    pub(super) fn row_has(self) -> &'static str {
        match self {
            Format::Messages => {
                "`messages`: list of `role` and `content` (text, or typed parts), with `tools`, `tool_calls`, tool results, \
                 `reasoning_content`, and a `weight` for each turn; Anthropic's, Bedrock's and Gemini's shapes"
            }
            Format::ShareGpt => {
                "`conversations`: list of `from` and `value`, with `function_call` and `observation`; with `chosen`"
            }
            Format::Alpaca => "`instruction`, `input`, `output` (or `response`, or `chosen`), `system`, `history`",
            Format::PromptCompletion => {
                "`prompt` and `completion` (or `chosen`): texts or lists of messages; `query` and `response`, `input` and `output`"
            }
            Format::QuestionAnswer => "`question` and `answer`",
            Format::Text => "`text`: all of it is supervised, without a template",
            Format::Oasst => "separate messages linked by parent ids: each path from root to leaf is an example",
            Format::SelfInstruct => "`instruction` and `instances`",
        }
    }

    /// Detects the format of a row to which the field map has been applied. The map's targets take precedence over the row's other columns; a
    /// mapped question or answer makes a pair with the row's own other half.
    pub(super) fn detect(row: &Object, mapping: &FieldMap) -> Result<Format> {
        let mapped: Object = row.iter().filter(|(key, _)| mapping.has_target(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        let has = |keys: &[&str]| fields::first(row, keys).is_some();
        let is_pair = || [ASKED.as_slice(), &ANSWERED].iter().any(|keys| mapping.targets().any(|target| keys.contains(&target)));
        let of_pair = || match (row.contains_key("instruction"), has(&ASKED) && has(&ANSWERED) && is_pair()) {
            (_, false) => None,
            (true, true) => Some(Format::Alpaca),
            (false, true) => Some(Format::PromptCompletion),
        };
        let own = || of_row(row).filter(|format| *format != Format::Text).or_else(of_pair).or_else(|| of_row(row));
        of_row(&mapped).or_else(own).ok_or_else(|| {
            let known: Vec<_> = Format::ALL.iter().map(|format| format!("{format} ({})", format.keys())).collect();
            let (prompt, completion) = two_longest_texts(row).unwrap_or(("COLUMN", "COLUMN"));
            Error::new(format!("cannot tell the format from the columns {}", list_keys(row.keys()))).cure(format!(
                "Name one with --format, or map the columns, such as --map 'prompt={{{prompt}}}' --map 'completion={{{completion}}}'.\n  \
                 Known formats: {}.",
                known.join("; ")
            ))
        })
    }

    /// Returns the format that a set of column names suggests.
    pub(super) fn of_keys(has: &dyn Fn(&str) -> bool) -> Option<Format> {
        let any = |keys: &[&str]| keys.iter().any(|key| has(key));
        if has("messages") {
            Some(Format::Messages)
        } else if any(&["conversations", "conversation"]) {
            Some(Format::ShareGpt)
        } else if any(&["message_id", "user_message_id"]) && any(&["parent_id", "parent_message_id"]) && has("text") {
            Some(Format::Oasst)
        } else if has("instruction") && has("instances") {
            Some(Format::SelfInstruct)
        } else if has("instruction") && any(&["output", "response", "chosen"]) {
            Some(Format::Alpaca)
        } else if has("chosen") || (has("prompt") && any(&["completion", "response"])) {
            Some(Format::PromptCompletion)
        } else if has("question") && any(&["answer", "response"]) {
            Some(Format::QuestionAnswer)
        } else if has("text") {
            Some(Format::Text)
        } else if (any(&["prompt", "query"]) && any(&pairs::ANSWERED))
            || (any(&["input", "inputs"]) && any(&["output", "outputs", "target", "targets"]))
            || (any(&["user", "human"]) && any(&["assistant", "gpt", "bot"]))
        {
            Some(Format::PromptCompletion)
        } else {
            None
        }
    }

    /// Reads the examples of one row of the file, to which this applies the field map.
    pub(super) fn read(self, row: Object, mapping: &FieldMap, source: &str, roles: &RoleMap) -> Result<Vec<Example>> {
        let mut mapped = mapping.apply(row)?;
        let mut examples = self.examples(&mapped.row, source, roles)?;
        self.check_heard(&mut mapped.row, mapping, roles)?;
        let (asked, others): (&[&str], &[&[&str]]) = match self {
            Format::Messages => (&[], &[chat::MESSAGES.lists]),
            Format::ShareGpt => (&[], &[chat::SHAREGPT.lists]),
            Format::Alpaca => (&["instruction"], &[&["input", "context"], &["output", "response"]]),
            Format::QuestionAnswer if !pairs::is_preference(&mapped.row) => (&["question"], &[&["answer", "response"]]),
            Format::PromptCompletion | Format::QuestionAnswer => (&ASKED, &[&ANSWERED]),
            Format::Text | Format::Oasst | Format::SelfInstruct => return Ok(examples),
        };
        examples.iter_mut().for_each(|example| unread::note(example, &mapped, mapping, asked, others));
        Ok(examples)
    }

    /// Returns an error if the format does not read a field that the user has mapped.
    pub(super) fn check_heard(self, row: &mut Object, mapping: &FieldMap, roles: &RoleMap) -> Result<()> {
        match self {
            Format::Oasst => heard::check(row, mapping, self.name(), |row| trees::message(row, 0, roles).ok()),
            _ => heard::check(row, mapping, self.name(), |row| self.examples(row, "", roles).ok()),
        }
    }

    /// Reads the examples of one row: one, or for self-instruct one per instance. (`oasst` needs all rows, see `trees`.)
    pub(super) fn examples(self, row: &Object, source: &str, roles: &RoleMap) -> Result<Vec<Example>> {
        let mut reading = Reading { roles, unused: Vec::new() };
        let is_preference = pairs::is_preference(row);
        let turns = match self {
            Format::Messages | Format::ShareGpt => {
                let dialect = if self == Format::Messages { &chat::MESSAGES } else { &chat::SHAREGPT };
                let turns = chat::conversation(row, dialect, &mut reading)?;
                if is_preference { pairs::preference(row, Some(turns), &mut reading)? } else { turns }
            }
            Format::Alpaca => pairs::alpaca(row, &mut reading)?,
            Format::PromptCompletion => pairs::prompt_completion(row, &mut reading)?,
            Format::QuestionAnswer if is_preference => pairs::prompt_completion(row, &mut reading)?,
            Format::QuestionAnswer => pairs::question_answer(row, &mut reading)?,
            Format::Text | Format::Oasst => vec![chat::plain(Role::Text, &fields::required_text(row, &["text"], "")?)],
            Format::SelfInstruct => {
                let conversations = pairs::self_instruct(row)?;
                return conversations.into_iter().map(|turns| example(row, turns, source, Vec::new())).collect();
            }
        };
        let mut example = example(row, turns, source, reading.unused)?;
        if self != Format::Text {
            example.tools = tools::schemas(row)?;
            if let Some(schemas) = &mut example.tools {
                tools::without_padding(schemas, &mut example.turns);
            }
        }
        Ok(vec![example])
    }
}

/// Columns of media that this program cannot read.
const MEDIA: [&str; 6] = ["image", "images", "audio", "audios", "video", "videos"];

fn example(row: &Object, mut turns: Vec<Turn>, source: &str, mut unused: Vec<String>) -> Result<Example> {
    let is_filled = |value: &Value| match value {
        Value::Null | Value::Bool(_) | Value::Number(_) => false,
        Value::String(text) => !text.is_empty() && !is_nothing(value),
        Value::Array(list) => !list.is_empty(),
        Value::Object(object) => !object.is_empty(),
    };
    if let Some(key) = MEDIA.into_iter().find(|key| row.get(*key).is_some_and(is_filled)) {
        return Err(Error::new(format!("`{key}`: expected a row of text, found one with {key}, but only text can be scored"))
            .cure("Remove these rows: text about them is meaningless without them."));
    }
    let template_switches = switches::of_row(row, &mut turns, &mut unused)?;
    let contents: Vec<&str> = turns.iter().map(|turn| turn.content.as_str()).collect();
    let planted = fields::planted(row, &contents)?;
    let source = label(row, "source").unwrap_or_else(|| source.to_owned());
    let rollout = rollout(row)?;
    Ok(Example {
        id: label(row, "id"),
        source,
        turns,
        tools: None,
        planted,
        template_switches,
        unused,
        unread: Vec::new(),
        unread_map: None,
        rollout,
    })
}

/// Reads the field that `diagnose rollout` writes; columns of this name by other programs have no token ids.
fn rollout(row: &Object) -> Result<Option<Rollout>> {
    let own = row.get("rollout").filter(|value| value.get("ids").is_some_and(Value::is_array) && value.get("prompt").is_some());
    let read = |value: &Value| {
        serde_json::from_value(value.clone()).map_err(|error| {
            Error::new(format!("`rollout`: {error}"))
                .cure("Write the rollouts again, or remove the column to read only the text.")
        })
    };
    own.map(read).transpose()
}

fn of_row(row: &Object) -> Option<Format> {
    if let Some((key, value)) = fields::first(row, &["messages", "conversations", "conversation"]) {
        let turns = fields::list(value, key).ok();
        match turns.as_ref().and_then(|turns| turns.first()) {
            Some(Value::Object(turn)) if turn.contains_key("role") => return Some(Format::Messages),
            Some(Value::Object(turn)) if turn.contains_key("from") => return Some(Format::ShareGpt),
            _ => {}
        }
    }
    let has = |key: &str| {
        if key == "chosen" { pairs::is_preference(row) } else { row.get(key).is_some_and(|value| !is_nothing(value)) }
    };
    let is_known = Format::of_keys(&has).is_some();
    if let (Some((key, value)), false) = (fields::first(row, &chat::OTHER_LISTS), is_known)
        && let Ok(turns) = fields::list(value, key)
        && !turns.is_empty()
        && turns.iter().all(chat::looks_like_turn)
    {
        return Some(Format::Messages);
    }
    // The root of a tree has no parent, but it has the column.
    let may_be_null = |key: &str| matches!(key, "parent_id" | "parent_message_id");
    Format::of_keys(&|key| has(key) || (may_be_null(key) && row.contains_key(key)))
}

/// Returns the columns with the two longest texts, in the row's order: the likeliest prompt and completion. Names with characters that `--map`
/// interprets are left out.
fn two_longest_texts(row: &Object) -> Option<(&str, &str)> {
    let texts = row.iter().enumerate().filter(|(_, (key, _))| unread::is_plain(key));
    let mut texts: Vec<_> = texts.filter_map(|(at, (key, value))| Some((value.as_str()?.len(), at, key.as_str()))).collect();
    texts.sort_unstable_by_key(|&(length, at, _)| (Reverse(length), at));
    let [(_, first, key), (_, second, other), ..] = texts[..] else { return None };
    Some(if first < second { (key, other) } else { (other, key) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back() {
        for format in Format::ALL {
            assert_eq!(format.name().parse::<Format>().unwrap(), format);
            assert_eq!(serde_json::to_value(format).unwrap(), format.name());
        }
        assert_eq!("chatml".parse::<Format>().unwrap_err().exit_code(), 2);
    }

    #[test]
    fn the_cure_for_unknown_columns_names_columns_of_the_row() {
        let cure = |row: &str| {
            let row = serde_json::from_str(row).unwrap();
            Format::detect(&row, &FieldMap::default()).unwrap_err().to_string()
        };
        let found = cure(r#"{"id": "a1", "question": "What is it?", "opa": "x", "cop": 2, "exp": "A long explanation."}"#);
        assert!(found.contains("--map 'prompt={question}' --map 'completion={exp}'"), "{found}");
        let found = cure(r#"{"id": 1, "the text": "no plain name", "b": "one"}"#);
        assert!(found.contains("--map 'prompt={COLUMN}'"), "{found}");
    }

    #[test]
    fn rows_show_their_format() {
        let check = |row: &str, expected: Option<&str>| {
            let row = serde_json::from_str(row).unwrap();
            let found = Format::detect(&row, &FieldMap::default()).ok();
            assert_eq!(found.map(Format::name), expected, "{row:?}");
        };
        check(r#"{"messages": [{"role": "user", "content": ""}], "prompt": "", "completion": ""}"#, Some("messages"));
        check(r#"{"conversations": [{"role": "user", "content": ""}]}"#, Some("messages"));
        check(r#"{"conversations": [{"from": "human", "value": ""}]}"#, Some("sharegpt"));
        check(r#"{"conversations": "[{\"from\": \"human\", \"value\": \"\"}]"}"#, Some("sharegpt"));
        check(r#"{"instruction": "", "input": "", "output": ""}"#, Some("alpaca"));
        check(r#"{"instruction": "", "context": "", "response": ""}"#, Some("alpaca"));
        check(r#"{"instruction": "", "instances": []}"#, Some("self-instruct"));
        check(r#"{"prompt": "", "response": ""}"#, Some("prompt-completion"));
        check(r#"{"chosen": [], "rejected": []}"#, Some("prompt-completion"));
        check(r#"{"question": "", "answer": ""}"#, Some("question-answer"));
        check(r#"{"message_id": "a", "parent_id": null, "text": "", "role": "prompter"}"#, Some("oasst"));
        check(r#"{"text": ""}"#, Some("text"));
        check(r#"{"query": "", "response": "", "history": []}"#, Some("prompt-completion"));
        check(r#"{"instruction": "", "chosen": "", "rejected": ""}"#, Some("alpaca"));
        check(r#"{"inputs": "", "targets": ""}"#, Some("prompt-completion"));
        check(r#"{"id": 1, "data": ["a", "b"]}"#, Some("messages"));
        check(r#"{"contents": [{"role": "user", "parts": [{"text": "a"}]}]}"#, Some("messages"));
        check(r#"{"id": 1, "data": [1, 2]}"#, None);
        check(r#"{"question": "", "opa": "", "exp": ""}"#, None);
        check(r#"{"text": null}"#, None);
    }
}
