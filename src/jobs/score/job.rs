//! The main job as the user asks for it.

use std::path::PathBuf;

use crate::dataset::{Choice, ReadOptions, Shard};
use crate::diagnosis::quadrants::Thresholds;
use crate::engine::remote::Options;
use crate::model::{LoadOptions, ModelName};
use crate::tokens::RenderOptions;

pub(crate) struct Job {
    /// Files, globs, or `-` for standard input.
    pub inputs: Vec<String>,
    pub read: ReadOptions,
    pub model: ModelName,
    /// `None`: a folder under `runs/` named after the data and the identity.
    pub out: Option<PathBuf>,
    /// How this program runs the model.
    pub load: LoadOptions,
    /// Who runs the model in place of this program.
    pub elsewhere: Option<Elsewhere>,
    pub render: RenderOptions,
    /// In place of that of `render`; `None` for the usual length, or what the model takes.
    pub max_len: Option<usize>,
    pub choice: Choice,
    /// One machine's share of the chosen records; `None`: all of them.
    pub shard: Option<Shard>,
    /// `None`: those that the run has, if it is finished, else the default ones.
    pub thresholds: Option<Thresholds>,
    /// Does the run get a page to read it in?
    pub with_page: bool,
    /// Are the conflicts scored again with another row of their kind shown first?
    pub in_context: bool,
    /// The command line, for the report.
    pub command: String,
}

/// Who runs the model in place of this program.
pub(crate) enum Elsewhere {
    Servers(Options),
    /// Somebody has: a folder of `--emit` with the answers.
    Answers(PathBuf),
}
