//! Defines the formats that can be written, and the columns that their rows share.

use serde_json::Value;

use super::super::dumps;
use super::super::example::{Example, Role, Turn};
use super::super::fields::Object;
use super::super::format::Format;
use super::super::mapping::FieldMap;
use super::super::roles::RoleMap;
pub(super) use super::super::switches::TEMPLATE_SWITCHES;
use crate::spelling::named;

/// The format in which a data set is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// The format in which it was read.
    Read,
    Messages,
    ShareGpt,
    Alpaca,
    LlamaFactory,
    Axolotl,
    Trl,
}

named! {
    pub(crate) Target, "a format to write":
    Read = "read",
    Messages = "messages",
    ShareGpt = "sharegpt",
    Alpaca = "alpaca",
    LlamaFactory = "llama-factory",
    Axolotl = "axolotl",
    Trl = "trl",
}

impl Target {
    /// The format in which the written rows are read back.
    pub(super) fn format(self, own: Format) -> Format {
        match self {
            Target::Read => own,
            Target::Messages | Target::Axolotl => Format::Messages,
            Target::ShareGpt | Target::LlamaFactory => Format::ShareGpt,
            Target::Alpaca => Format::Alpaca,
            Target::Trl => Format::Messages,
        }
    }
}

/// How the rows of a file were read, for reading them back.
pub(crate) struct Reading<'a> {
    pub format: Format,
    pub mapping: &'a FieldMap,
    pub roles: &'a RoleMap,
    /// The `source` of rows without one of their own.
    pub source: &'a str,
    /// For TRL: what the rows of the file hold.
    pub forms: Forms,
}

/// What the rows of a file for TRL hold, on which the form of each depends.
#[derive(Debug, Clone, Copy, Default)]
pub(crate) struct Forms {
    /// Whether any row is a conversation.
    pub has_talks: bool,
    /// Whether another turn than the last one of a conversation is supervised, so that rows are not written as a prompt and its completion.
    pub learns_history: bool,
    /// Whether any row has variables for the chat template.
    pub has_switches: bool,
}

impl Forms {
    pub(crate) fn add(&mut self, example: &Example) {
        let is_talk = !is_text(example);
        self.has_talks |= is_talk;
        self.learns_history |= is_talk && !is_completion_alone(example);
        self.has_switches |= example.template_switches.is_some();
    }
}

/// Whether the row is a plain text.
pub(super) fn is_text(example: &Example) -> bool {
    matches!(&example.turns[..], [Turn { role: Role::Text, .. }])
}

/// Whether the last turn is the only supervised one.
pub(super) fn is_completion_alone(example: &Example) -> bool {
    example.turns.split_last().is_some_and(|(last, before)| {
        let earlier = before.iter().any(|turn| turn.role == Role::Assistant && turn.is_learnt());
        last.role == Role::Assistant && last.is_learnt() && !earlier
    })
}

/// Returns `id` and `source`, if the row has its own.
pub(super) fn named(example: &Example, reading: &Reading) -> Object {
    let mut row = Object::new();
    row.extend(example.id.clone().map(|id| ("id".to_owned(), id.into())));
    if example.source != reading.source {
        row.insert("source".to_owned(), example.source.clone().into());
    }
    row
}

/// Adds the columns besides the conversation: the template's variables and the tools (as text, to which tables add no null padding).
pub(super) fn add_surroundings(row: &mut Object, example: &Example, tools_as_text: bool) {
    if let Some(tools) = &example.tools {
        let tools = if tools_as_text { Value::String(dumps(tools)) } else { tools.clone() };
        row.insert("tools".to_owned(), tools);
    }
    row.extend(example.template_switches.clone().map(|switches| (TEMPLATE_SWITCHES.to_owned(), switches)));
}
