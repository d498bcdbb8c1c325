//! The formats that can be written, and what all of their rows have in common.

use serde_json::Value;

use super::super::dumps;
use super::super::example::Example;
use super::super::fields::Object;
use super::super::format::Format;
use super::super::mapping::FieldMap;
use super::super::roles::RoleMap;
use crate::spelling::named;

/// What a data set is written as.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Target {
    /// In the format in which it was read.
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
    /// The format that the rows are read as.
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

/// How the rows of a file were read, for reading again what was made of them.
pub(crate) struct Reading<'a> {
    pub format: Format,
    pub mapping: &'a FieldMap,
    pub roles: &'a RoleMap,
    /// The `source` of rows that name no other.
    pub source: &'a str,
    /// For TRL: of every row of the file the last answer alone is learnt, so that all are prompts and completions.
    pub completion_alone: bool,
}

/// `id` and `source`, where the row has its own.
pub(super) fn named(example: &Example, reading: &Reading) -> Object {
    let mut row = Object::new();
    row.extend(example.id.clone().map(|id| ("id".to_owned(), id.into())));
    if example.source != reading.source {
        row.insert("source".to_owned(), example.source.clone().into());
    }
    row
}

/// The columns behind the conversation: tools, as a text that no table pads with nulls, and the variables of the template.
pub(super) fn add_surroundings(row: &mut Object, example: &Example, tools_as_text: bool) {
    if let Some(tools) = &example.tools {
        let tools = if tools_as_text { Value::String(dumps(tools)) } else { tools.clone() };
        row.insert("tools".to_owned(), tools);
    }
    row.extend(example.template_switches.clone().map(|switches| ("chat_template_kwargs".to_owned(), switches)));
}
