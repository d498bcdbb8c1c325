//! Token diagnostics for supervised fine-tuning.
//!
//! `diagnose` reads a data set, runs a causal language model once over it, and says for every token that would be trained on what
//! the model believed: how probable the token was, how uncertain the model was, and hence whether the token is known, open, or a
//! *confident conflict* (the model is sure, and the data says otherwise; arXiv 2601.02151).
//!
//! The data go through the rooms in the order in which they are declared here:
//!
//! ```text
//! files --dataset--> Example --tokens--> Sequence --engine--> TokenStatistics --table--> Parquet --diagnosis--> numbers
//!                                            |                                                                    |
//!                         model, kernels run it; eval benchmarks with it                       maps, report show them
//! ```
//!
//! `train` goes the same way and back: the statistics of the forward pass weigh each token's loss, by a
//! [`gate`](diagnosis::gate). `jobs` put it all together, each in a run folder, and [`cli`] says what was asked for.
//!
//! ```text
//! error  files  format  json  provenance  random  spelling  stats    the ground: no word of the subject in it
//! fetch       bytes from elsewhere, for models and benchmarks alike: the hub, Python's package index, their caches
//! dataset     files in any common format of fine-tuning -> examples, and back
//! tokens      chat template, supervised mask, mask audit -> token ids
//! kernels     the custom operations, and all `unsafe` code
//! model       families, files of models, the decoder, adapters
//! engine      packed batches -> statistics of every supervised token, computed or by way of servers; answers that the model writes
//! table       the token table: columns, types, units; Parquet with what made it
//! diagnosis   quadrants, gates, summary, rankings, kinds of conflict, movement: makes numbers of the table
//! eval        benchmarks: tasks, requests, written answers, metrics, comparisons
//! train       losses, updates, schedules, what is logged
//! maps        finished numbers -> figures
//! report      finished numbers -> terminal, Markdown, JSON, HTML; view/ is the page to read a run in
//! jobs        scoring, training, evaluation, comparison, rollouts, the page, export: the owners of run folders
//! cli         what was typed -> what is asked
//! guide       how to use it all, page by page
//! ```
//!
//! A room uses only rooms above it, and files do not use each other in circles. Each foreign world
//! stays in its rooms: candle in `kernels`, `model`, `engine`, `train` and what is saved of it, polars in `table`, the samples of
//! `eval` and the readers and the writer of tables in `dataset`, plotters in `maps`, clap and indicatif in `cli`, tokenizers and
//! minijinja in `tokens`, `unsafe` in `kernels`. A test reads the source (`tests/layers.rs`).

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
