//! Token diagnostics for supervised fine-tuning.
//!
//! `diagnose` reads a data set, runs a causal language model over it once, and reports for every token that would be trained on
//! what the model believed: how probable the token was, how uncertain the model was, and hence whether the token is known, open,
//! or a *confident conflict* (the model is sure, and the data disagree; arXiv 2601.02151).
//!
//! The data pass through the modules in the order in which they are declared here:
//!
//! ```text
//! files --dataset--> Example --tokens--> Sequence --engine--> TokenStatistics --table--> Parquet --diagnosis--> numbers
//!                                            |                                                                    |
//!                         model, kernels run it; eval benchmarks with it                       maps, report show them
//! ```
//!
//! `train` runs the same pipeline and adds the backward pass: the statistics of the forward pass weight each token's loss,
//! through a [`gate`](diagnosis::gate). `jobs` combine the modules, each job in a run folder, and [`cli`] parses the command
//! line.
//!
//! ```text
//! error  files  format  json  provenance  random  spelling  stats    foundations without domain knowledge
//! fetch       downloads for models and benchmarks: the hub, Python's package index, their caches
//! dataset     files in any common fine-tuning format -> examples, and back
//! tokens      chat template, loss mask, mask audit -> token ids
//! kernels     the custom operations, and all `unsafe` code
//! model       families, model files, the decoder, adapters
//! engine      packed batches -> statistics of every supervised token, computed here or by servers; text generation
//! table       the token table: columns, types, units; Parquet with its provenance
//! diagnosis   quadrants, gates, summary, rankings, kinds of conflict, movement: computed from the table
//! eval        benchmarks: tasks, requests, written answers, metrics, comparisons
//! train       losses, updates, schedules, logged metrics
//! maps        computed numbers -> figures
//! report      computed numbers -> terminal, Markdown, JSON, HTML; view/ is the page for reading a run
//! jobs        scoring, training, evaluation, comparison, rollouts, the page, export: they own the run folders
//! cli         command line -> jobs
//! guide       the user's guide, page by page
//! ```
//!
//! A module uses only modules above it, and files do not depend on each other in cycles. Each large dependency is confined to a
//! few modules: candle to `kernels`, `model`, `engine`, `train` and the saving of its results; polars to `table`, the samples of
//! `eval`, and the table readers and writer of `dataset`; plotters and png to `maps`; clap and indicatif to `cli`; tokenizers and
//! minijinja to `tokens`; `unsafe` to `kernels`. `tests/layers.rs` checks this.

pub mod error;
mod files;
mod format;
mod json;
mod provenance;
mod random;
mod spelling;
mod stats;

pub mod fetch;

pub mod dataset;
pub mod tokens;

pub mod kernels;
pub mod model;

pub mod engine;

pub mod table;

pub mod diagnosis;

pub mod eval;
mod train;

pub mod maps;
mod report;

mod jobs;

pub mod cli;

pub mod guide;

pub use error::{Context, Error, Result};
