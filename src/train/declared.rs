//! Describes a training option: its name, its help text and where help shows it. [`options`](super::options) declares all of
//! them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::keep::Keep;
use super::schedule::Shape;
use crate::dataset::Format;
use crate::diagnosis::gate::{Method, Normaliser};
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Stored};
use crate::tokens::Supervise;

/// An option of the command line, `--set`, configuration files and help.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declared {
    pub field: &'static str,
    pub group: OptionGroup,
    pub kind: ValueKind,
    pub emitted: Emitted,
    /// Its documentation comment, with its line breaks.
    pub lines: &'static str,
}

/// The section of the help that shows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionGroup {
    Run,
    Loss,
    Lora,
    Optimiser,
    Looking,
    Data,
    /// For experts: shown by `--list-options`.
    Expert,
}

/// The kind of value that an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    Switch,
    Whole,
    Number,
    Text,
    /// May be given several times.
    Texts,
    /// May be given several times, as NAME=NUMBER.
    Numbers,
}

/// What `--emit` does with an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Emitted {
    /// It decides which rows are written, and how they are read.
    Rows,
    /// The configuration states it.
    Config,
    /// Refuses it: the configuration uses the chat template in the model's folder.
    Template,
    /// Refuses it: the other programs have it, but the configuration does not state it.
    SetThere,
    /// Refuses it: the other programs have nothing like it.
    NoCounterpart,
}

impl Declared {
    /// The name in files and, after two dashes, on the command line.
    pub(crate) fn name(&self) -> String {
        self.field.replace('_', "-")
    }

    /// The help text as one line.
    pub(crate) fn help(&self) -> String {
        self.lines.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Parses the value of this option.
    pub(crate) fn value(&self, text: &str) -> Result<toml::Value> {
        let wrong = |expected: &str| Error::usage(format!("--{} {text}: expected {expected}", self.name()));
        match self.kind {
            ValueKind::Switch => text.parse().map(toml::Value::Boolean).map_err(|_| wrong("true or false")),
            ValueKind::Whole => text.parse().map(toml::Value::Integer).map_err(|_| wrong("a whole number")),
            ValueKind::Number => text.parse().map(toml::Value::Float).map_err(|_| wrong("a number")),
            ValueKind::Text => Ok(toml::Value::String(text.to_owned())),
            ValueKind::Texts => Ok(toml::Value::Array(vec![toml::Value::String(text.to_owned())])),
            ValueKind::Numbers => {
                let pair = text.rsplit_once('=').and_then(|(name, number)| Some((name, number.parse().ok()?)));
                let (name, number) = pair.ok_or_else(|| wrong("SOURCE=WEIGHT, such as chat.jsonl=0.5"))?;
                Ok(toml::Value::Table([(name.to_owned(), toml::Value::Float(number))].into_iter().collect()))
            }
        }
    }

    /// Parses `text` and adds the value to a table: an option that is given several times keeps all its values.
    pub(crate) fn add(&self, table: &mut toml::Table, text: &str) -> Result<()> {
        let value = self.value(text)?;
        match (table.get_mut(&self.name()), value) {
            (Some(toml::Value::Array(known)), toml::Value::Array(more)) => known.extend(more),
            (Some(toml::Value::Table(known)), toml::Value::Table(more)) => known.extend(more),
            (_, value) => drop(table.insert(self.name(), value)),
        }
        Ok(())
    }
}

impl OptionGroup {
    pub(crate) const ALL: [OptionGroup; 7] = [
        OptionGroup::Run,
        OptionGroup::Loss,
        OptionGroup::Lora,
        OptionGroup::Optimiser,
        OptionGroup::Looking,
        OptionGroup::Data,
        OptionGroup::Expert,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            OptionGroup::Run => "Run",
            OptionGroup::Loss => "Loss",
            OptionGroup::Lora => "LoRA",
            OptionGroup::Optimiser => "Optimiser",
            OptionGroup::Looking => "Evaluation and checkpoints",
            OptionGroup::Data => "Data",
            OptionGroup::Expert => "For --set and --config",
        }
    }
}

/// Maps the type of an option to the kind of value that it takes.
pub(crate) trait Typed {
    const KIND: ValueKind;
}

macro_rules! typed {
    ($($kind:ident: $($type:ty)*;)*) => { $($(impl Typed for $type { const KIND: ValueKind = ValueKind::$kind; })*)* };
}

typed! {
    Switch: bool;
    Whole: u64 usize;
    Number: f32 f64;
    Text: String PathBuf Dtype Stored Format Supervise Method Normaliser Shape Keep;
    Texts: Vec<String>;
    Numbers: BTreeMap<String, f64>;
}

impl<T: Typed> Typed for Option<T> {
    const KIND: ValueKind = T::KIND;
}
