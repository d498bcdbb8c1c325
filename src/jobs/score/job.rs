//! Holds the options of the main job.

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
    /// `None` means a folder under `runs/` named after the data and the identity.
    pub out: Option<PathBuf>,
    /// How this program runs the model.
    pub load: LoadOptions,
    /// What runs the model instead of this program.
    pub elsewhere: Option<Elsewhere>,
    pub render: RenderOptions,
    /// Replaces the limit in `render`; `None` for the usual length, or less if the model takes less.
    pub max_len: Option<usize>,
    pub choice: Choice,
    /// One machine's share of the chosen records; `None` means all of them.
    pub shard: Option<Shard>,
    /// `None` means the run's own thresholds if it is finished, otherwise the default ones.
    pub thresholds: Option<Thresholds>,
    /// Whether the run gets a page.
    pub with_page: bool,
    /// Whether conflicts are scored again with another row of their kind shown first.
    pub in_context: bool,
    /// The command line, for the report.
    pub command: String,
}

/// What runs the model instead of this program.
pub(crate) enum Elsewhere {
    Servers(Options),
    /// Another program has run it: a folder of `--emit` with its answers.
    Answers(PathBuf),
}
