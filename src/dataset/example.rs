//! One conversation (or plain text) to learn from, whatever format it came in.

use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Result;

/// Where a record stands: the file as the user named it, and the line of its first byte, counted from 1.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The file as the user named it.
    pub path: Arc<PathBuf>,
    /// The line of the record's first byte, counted from 1; in tables the number of the row.
    pub line: u64,
}

/// One conversation (or plain text) to learn from.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// The row's own `id`, if it has one.
    pub id: Option<String>,
    /// The row's own `source` field, or the name of its file.
    pub source: String,
    /// The messages, in order. A plain text is one turn of the role [`Role::Text`].
    pub turns: Vec<Turn>,
    /// JSON array of tool schemas, passed to the chat template as it is.
    pub tools: Option<Value>,
    /// Known conflicts, for measuring how well a ranking finds them.
    pub planted: Vec<PlantedSpan>,
    /// JSON object of variables for the chat template: the row's `chat_template_kwargs`.
    pub template_switches: Option<Value>,
    /// Keys of the row that look like switches and were not used, with their places: `messages[1].lossy`.
    pub unused: Vec<String>,
    /// Columns with text that no turn holds: `choices`, `context`.
    pub unread: Vec<String>,
    /// The value of a `--map` by which the model would see the first of them, where there is one: `question={context}\n\n{question}`.
    pub unread_map: Option<String>,
    /// Where the last answer was written by a model: by `diagnose rollout`.
    pub rollout: Option<Rollout>,
}

/// How a model wrote the last answer of a row: its `rollout`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The record that was answered, counted from 0.
    pub row: u32,
    /// The number of the answer among those to the same record, counted from 0.
    pub draw: u32,
    /// The tokens that were drawn, the end token included.
    pub ids: Vec<u32>,
    /// Why the answer ends: `end_token`, `stop` or `length`.
    pub ended: String,
    /// SHA-256 of the prompt's tokens, the beginning of it: see [`crate::tokens::fingerprint_of_prompt`].
    pub prompt: String,
    /// SHA-256 of the model.
    pub model: String,
    /// The precision of the model's products.
    pub dtype: String,
    /// Was every token drawn with the probability that the model gives it?
    pub plain: bool,
}

/// One message. `content` is what the chat template sees; spans of tokens count bytes of it.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// Who speaks.
    pub role: Role,
    /// The text, in UTF-8; the spans of tokens count its bytes.
    pub content: String,
    /// Passed to the template as `reasoning_content`.
    pub reasoning: Option<String>,
    /// JSON array in OpenAI's form, `[{"id"?, "type": "function", "function": {"name", "arguments"}}]`, with whatever else the row says of a
    /// call. Arguments are an object, or the text that the row has in its place.
    pub tool_calls: Option<Value>,
    /// `tool_call_id` of a tool's result.
    pub tool_call_id: Option<String>,
    /// `name` of the speaker or tool.
    pub name: Option<String>,
    /// Weight of this turn in the loss: the row's own, else 1. A turn of weight 0 is not supervised.
    pub weight: f32,
    /// Parts of the content with a weight of their own. Where two overlap, the smaller counts.
    pub parts: Vec<WeightedPart>,
    /// What else the row says of the turn, for templates that look at it.
    pub written: Written,
}

/// How the row writes a turn, where templates may tell the difference.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    /// The row's own name of the role, where it is not the one that [`Role`] stands for: `developer`, `observation`.
    pub role: Option<String>,
    /// The content is null or absent: Transformers then gives the template a message without one.
    pub without_content: bool,
    /// The content as the row's list of parts, if all of them are text; else empty.
    pub parts: Vec<Value>,
    /// The content of a tool's result that is no text, such as an object: templates are given it as it is, and `content` is its JSON.
    pub value: Option<Value>,
    /// The message says itself whether it is learnt.
    pub has_switch: bool,
    /// The other keys of the message, such as Command R's `tool_plan`; those that are null are left out, as in Transformers.
    pub others: Map<String, Value>,
}

/// Bytes `begin..end` of a content that have another weight in the loss than their turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightedPart {
    /// The first byte.
    pub begin: usize,
    /// The byte behind the last.
    pub end: usize,
    /// The weight in the loss, instead of the turn's; 0 is not learnt.
    pub weight: f32,
}

impl Turn {
    /// A turn that is nothing but text.
    pub fn plain(role: Role, content: impl Into<String>) -> Turn {
        let content = content.into();
        Turn {
            role,
            content,
            reasoning: None,
            tool_calls: None,
            tool_call_id: None,
            name: None,
            weight: 1.0,
            parts: Vec::new(),
            written: Written::default(),
        }
    }

    /// Is any part of it to be learnt?
    pub fn is_learnt(&self) -> bool {
        self.weight > 0.0 || self.parts.iter().any(|part| part.weight > 0.0)
    }
}

/// Who speaks. `Text` is the single turn of a plain-text row: no template is applied to it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
    Text,
}

impl Role {
    /// As chat templates and OpenAI's format call it.
    pub fn name(self) -> &'static str {
        match self {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Text => "text",
        }
    }
}

/// Byte range `begin..end` of `turns[turn].content` that carries a conflict planted on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlantedSpan {
    /// The index of the turn.
    pub turn: u16,
    /// The first byte of the conflict.
    pub begin: u32,
    /// The byte behind its last.
    pub end: u32,
}

/// What a record becomes: the line of its first byte, and the example or the reason why there is none.
pub(super) type Parsed = (u64, Result<Example>);
