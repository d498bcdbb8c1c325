//! The formats: their names, how they are recognised, and the way from a row to its examples.

use std::fmt;
use std::str::FromStr;

use serde_json::Value;

use super::example::{Example, Role, Turn};
use super::fields::{self, Object, label, list_keys};
use super::mapping::FieldMap;
use super::{chat, pairs, tools};
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Format {
    /// `messages`: a list of `{"role", "content", ..}`.
    Messages,
    /// `conversations`: a list of `{"from", "value"}`.
    #[serde(rename = "sharegpt")]
    ShareGpt,
    Alpaca,
    PromptCompletion,
    QuestionAnswer,
    /// `text`: learnt as a whole, without a template.
    Text,
    /// Loose messages, linked by parent ids; every path from a root to a leaf is an example.
    Oasst,
    SelfInstruct,
}

impl Format {
    pub const ALL: [Format; 8] = [
        Format::Messages,
        Format::ShareGpt,
        Format::Alpaca,
        Format::PromptCompletion,
        Format::QuestionAnswer,
        Format::Text,
        Format::Oasst,
        Format::SelfInstruct,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Format::Messages => "messages",
            Format::ShareGpt => "sharegpt",
            Format::Alpaca => "alpaca",
            Format::PromptCompletion => "prompt-completion",
            Format::QuestionAnswer => "question-answer",
            Format::Text => "text",
            Format::Oasst => "oasst",
            Format::SelfInstruct => "self-instruct",
        }
    }

    /// The fields that tell the format, as help texts show them.
    pub fn keys(self) -> &'static str {
        match self {
            Format::Messages => "messages: role, content",
            Format::ShareGpt => "conversations: from, value",
            Format::Alpaca => "instruction, output or response",
            Format::PromptCompletion => "prompt, completion or response or chosen",
            Format::QuestionAnswer => "question, answer or response",
            Format::Text => "text",
            Format::Oasst => "message_id, parent_id, role, text",
            Format::SelfInstruct => "instruction, instances",
        }
    }

    /// The format of a row, to which the field map has been applied; its targets count before the row's other columns.
    pub(super) fn detect(row: &Object, mapping: &FieldMap) -> Result<Format> {
        let mapped: Object = row.iter().filter(|(key, _)| mapping.has_target(key)).map(|(k, v)| (k.clone(), v.clone())).collect();
        of_row(&mapped).or_else(|| of_row(row)).ok_or_else(|| {
            let known: Vec<_> = Format::ALL.iter().map(|format| format!("{format} ({})", format.keys())).collect();
            Error::new(format!("cannot tell the format from the columns {}", list_keys(row.keys()))).cure(format!(
                "Name one with --format, or map the columns: --map 'prompt={{question}}' --map 'completion={{answer}}'.\n  \
                 Known formats: {}.",
                known.join("; ")
            ))
        })
    }

    /// The format that a set of column names points to.
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
        } else if has("instruction") && any(&["output", "response"]) {
            Some(Format::Alpaca)
        } else if has("chosen") || (has("prompt") && any(&["completion", "response"])) {
            Some(Format::PromptCompletion)
        } else if has("question") && any(&["answer", "response"]) {
            Some(Format::QuestionAnswer)
        } else if has("text") {
            Some(Format::Text)
        } else {
            None
        }
    }

    /// The examples of one row: one, or for self-instruct one per instance. (`oasst` needs all rows, see `trees`.)
    pub(super) fn examples(self, row: &Object, source: &str) -> Result<Vec<Example>> {
        let turns = match self {
            Format::Messages => chat::conversation(row, &chat::MESSAGES)?,
            Format::ShareGpt => chat::conversation(row, &chat::SHAREGPT)?,
            Format::Alpaca => pairs::alpaca(row)?,
            Format::PromptCompletion => pairs::prompt_completion(row)?,
            Format::QuestionAnswer => pairs::question_answer(row)?,
            Format::Text | Format::Oasst => vec![chat::plain(Role::Text, fields::required_text(row, &["text"], "")?)],
            Format::SelfInstruct => {
                let conversations = pairs::self_instruct(row)?;
                return conversations.into_iter().map(|turns| example(row, turns, source)).collect();
            }
        };
        let mut example = example(row, turns, source)?;
        if matches!(self, Format::Messages | Format::ShareGpt | Format::PromptCompletion) {
            example.tools = tools::schemas(row)?;
        }
        Ok(vec![example])
    }
}

fn example(row: &Object, turns: Vec<Turn>, source: &str) -> Result<Example> {
    let contents: Vec<&str> = turns.iter().map(|turn| turn.content.as_str()).collect();
    let planted = fields::planted(row, &contents)?;
    let source = label(row, "source").unwrap_or_else(|| source.to_owned());
    Ok(Example { id: label(row, "id"), source, turns, tools: None, planted })
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
    // The root of a tree names no parent, but it has the column.
    let may_be_null = |key: &str| matches!(key, "parent_id" | "parent_message_id");
    Format::of_keys(&|key| row.get(key).is_some_and(|value| !value.is_null() || may_be_null(key)))
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Format {
    type Err = Error;

    fn from_str(name: &str) -> Result<Format> {
        Format::ALL.into_iter().find(|format| format.name() == name).ok_or_else(|| {
            let known: Vec<_> = Format::ALL.iter().map(|format| format.name()).collect();
            Error::usage(format!("expected a format, found `{name}`")).cure(format!("Known formats: {}.", known.join(", ")))
        })
    }
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
        check(r#"{"question": "", "opa": "", "exp": ""}"#, None);
        check(r#"{"text": null}"#, None);
    }
}
