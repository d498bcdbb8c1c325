//! The common representation of training examples: one conversation or plain text, whatever format it was read from.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};

use crate::error::Result;

/// The position of a record in the input files.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Place {
    /// The path as given by the user.
    pub path: Arc<PathBuf>,
    /// The line of the record's first byte, counted from 1; in tables, the row number.
    pub line: u64,
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter) -> fmt::Result {
        write!(f, "{}:{}", self.path.display(), self.line)
    }
}

/// One conversation, or one plain text, to train on.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Example {
    /// The row's own `id`, if it has one.
    pub id: Option<String>,
    /// The row's own `source` field, or else the display name of its file.
    pub source: String,
    /// The messages in order. A plain text is one turn with the role [`Role::Text`].
    pub turns: Vec<Turn>,
    /// A JSON array of tool schemas, passed to the chat template unchanged.
    pub tools: Option<Value>,
    /// Known conflicts, for measuring how well a ranking finds them.
    pub planted: Vec<PlantedSpan>,
    /// A JSON object of variables for the chat template: the row's `chat_template_kwargs`.
    pub template_switches: Option<Value>,
    /// Paths of keys that look like loss switches and were not used, such as `messages[1].lossy`.
    pub unused: Vec<String>,
    /// Text columns that no turn holds, such as `choices` or `context`.
    pub unread: Vec<String>,
    /// A `--map` value that would show the model the first of `unread`, if there is one: `question={context}\n\n{question}`.
    pub unread_map: Option<String>,
    /// The origin of the last answer, if `diagnose rollout` generated it.
    pub rollout: Option<Rollout>,
}

/// How a model generated the last answer of a row: the row's `rollout` field.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Rollout {
    /// The index of the record that was answered, from 0.
    pub row: u32,
    /// The index of the answer among the samples for that record, from 0.
    pub draw: u32,
    /// The sampled tokens, including the end token.
    pub ids: Vec<u32>,
    /// Why generation ended: `end_token`, `stop` or `length`.
    pub ended: String,
    /// The leading part of the SHA-256 of the prompt's tokens: see [`crate::tokens::fingerprint_of_prompt`].
    pub prompt: String,
    /// SHA-256 of the model.
    pub model: String,
    /// The precision of the model's matrix products.
    pub dtype: String,
    /// Whether every token was sampled from the model's unmodified distribution.
    pub plain: bool,
}

/// One message. `content` is what the chat template gets, and token spans are byte offsets into it.
#[derive(Debug, Clone, PartialEq)]
pub struct Turn {
    /// The speaker.
    pub role: Role,
    /// The text in UTF-8; token spans are byte offsets into it.
    pub content: String,
    /// The reasoning, passed to the template as `reasoning_content`.
    pub reasoning: Option<String>,
    /// A JSON array in OpenAI's form, `[{"id"?, "type": "function", "function": {"name", "arguments"}}]`, with any other keys of the row's calls.
    /// Arguments are an object, or the text that the row has instead.
    pub tool_calls: Option<Value>,
    /// The `tool_call_id` of a tool result.
    pub tool_call_id: Option<String>,
    /// The `name` of the speaker or tool.
    pub name: Option<String>,
    /// The weight of this turn in the loss: the row's own, or else 1. A turn of weight 0 is not supervised.
    pub weight: f32,
    /// Parts of the content with a weight of their own. Where parts overlap, the smaller weight applies.
    pub parts: Vec<WeightedPart>,
    /// How the row writes the turn, for templates that distinguish it.
    pub written: Written,
}

/// How the row writes a turn, where chat templates may distinguish it.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Written {
    /// The row's own name of the role, if it differs from that of [`Role`]: `developer`, `observation`.
    pub role: Option<String>,
    /// Whether the content is null or absent; Transformers then passes the template a message without one.
    pub without_content: bool,
    /// The content as the row's list of parts if all of them are text, or else empty.
    pub parts: Vec<Value>,
    /// The content of a tool result that is not text, such as an object: templates get it unchanged, while `content` is its JSON.
    pub value: Option<Value>,
    /// Whether the message itself states if it is supervised.
    pub has_switch: bool,
    /// The other keys of the message, such as Command R's `tool_plan`, without those that are null, as in Transformers.
    pub others: Map<String, Value>,
}

/// Bytes `begin..end` of a content whose weight in the loss differs from that of their turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct WeightedPart {
    /// The offset of the first byte.
    pub begin: usize,
    /// The offset after the last byte.
    pub end: usize,
    /// The weight in the loss, instead of the turn's; a part of weight 0 is not supervised.
    pub weight: f32,
}

impl Turn {
    /// Returns a turn that consists of text alone.
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

    /// Excludes the whole turn from the loss.
    pub(crate) fn mask(&mut self) {
        self.weight = 0.0;
        self.parts.clear();
    }

    /// The weight of byte `at` of the content.
    pub(crate) fn weight_at(&self, at: usize) -> f32 {
        let weights = self.parts.iter().filter(|part| (part.begin..part.end).contains(&at)).map(|part| part.weight);
        weights.reduce(f32::min).unwrap_or(self.weight)
    }

    /// Returns the weight of the turn, which applies to its end token, and runs of equal weight in its content as `(begin, end, weight)` in bytes:
    /// equal for turns of equal weights, whatever parts they are written in.
    pub(crate) fn segments(&self) -> (f32, Vec<(usize, usize, f32)>) {
        let mut cuts: Vec<usize> =
            self.parts.iter().flat_map(|part| [part.begin, part.end]).chain([0, self.content.len()]).collect();
        cuts.sort_unstable();
        cuts.dedup();
        let mut segments: Vec<(usize, usize, f32)> = Vec::new();
        for ends in cuts.windows(2) {
            let (begin, end, weight) = (ends[0], ends[1], self.weight_at(ends[0]));
            match segments.last_mut() {
                Some(last) if last.2 == weight => last.1 = end,
                _ => segments.push((begin, end, weight)),
            }
        }
        (self.weight, segments)
    }

    /// Whether a chat template gets the same of both turns, and the loss the same weights. Only where the weights are stated may differ.
    pub(crate) fn is_same(&self, other: &Turn) -> bool {
        // All fields are named, so that none is forgotten when another is added.
        fn compared(turn: &Turn) -> impl PartialEq {
            let Turn { role, content, reasoning, tool_calls, tool_call_id, name, weight: _, parts: _, written } = turn;
            let Written { role: own_name, without_content, parts, value, has_switch: _, others } = written;
            let said = (role, own_name, content, without_content, parts, value);
            (said, reasoning, tool_calls, tool_call_id, name, others, turn.segments())
        }
        compared(self) == compared(other)
    }

    /// Whether any part of the turn is supervised.
    pub fn is_learnt(&self) -> bool {
        self.weight > 0.0 || self.parts.iter().any(|part| part.weight > 0.0)
    }
}

/// The speaker of a turn. `Text` is the single turn of a plain-text row, which is used without a template.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Role {
    System,
    User,
    Assistant,
    Tool,
    Text,
}

impl Role {
    /// The name in chat templates and in OpenAI's format.
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

/// The byte range `begin..end` of `turns[turn].content` that carries a conflict planted on purpose.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PlantedSpan {
    /// The index of the turn.
    pub turn: u16,
    /// The offset of the conflict's first byte.
    pub begin: u32,
    /// The offset after its last byte.
    pub end: u32,
}

/// A parsed record: the line of its first byte, and the example or the reason why there is none.
pub(super) type Parsed = (u64, Result<Example>);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_smaller_of_two_weights_counts_and_equal_neighbours_are_one() {
        let mut turn = Turn::plain(Role::Assistant, "né, five.");
        let part = |begin, end, weight| WeightedPart { begin, end, weight };
        turn.parts = vec![part(0, 5, 0.0), part(3, 8, 0.5), part(8, 10, 1.0)];
        assert_eq!(turn.segments(), (1.0, vec![(0, 5, 0.0), (5, 8, 0.5), (8, 10, 1.0)]));
        turn.parts = vec![part(0, 3, 0.0), part(3, 5, 0.0)];
        assert_eq!(turn.segments().1, [(0, 5, 0.0), (5, 10, 1.0)]);
    }

    #[test]
    fn turns_are_the_same_whatever_parts_their_weights_are_written_in() {
        let part = |begin, end, weight| WeightedPart { begin, end, weight };
        let turn = Turn { parts: vec![part(0, 2, 0.0), part(2, 4, 0.0)], ..Turn::plain(Role::Assistant, "one two") };
        let mut other = Turn { parts: vec![part(0, 4, 0.0), part(4, 7, 1.0)], ..turn.clone() };
        other.written.has_switch = true;
        assert!(turn != other && turn.is_same(&other));
        let changed: [&dyn Fn(&mut Turn); 5] = [
            &|turn| turn.parts[0].end = 5,
            &|turn| turn.weight = 0.5,
            &|turn| turn.content.push('!'),
            &|turn| turn.written.without_content = true,
            &|turn| turn.tool_calls = Some(Value::Array(Vec::new())),
        ];
        for change in changed {
            let mut other = other.clone();
            change(&mut other);
            assert!(!turn.is_same(&other), "{other:?}");
        }
    }
}
