//! Token diagnostics for supervised fine-tuning.
//!
//! `diagnose` reads a data set, runs a causal language model once over it, and says for every token that would be trained on what
//! the model believed: how probable the token was, how uncertain the model was, and hence whether the token is known, open, or a
//! *confident conflict* (the model is sure, and the data says otherwise; arXiv 2601.02151).
//!
//! The data go through the modules in the order in which they are declared here:
//!
//! ```text
//! files --dataset--> Example --tokens--> Sequence --engine--> TokenStatistics --table--> Parquet
//!                                           |                                               |
//!                          model, kernels run it; eval scores            quadrants, gate, maps, report read them
//!                                    benchmarks with it
//! ```
//!
//! `train` goes the same way and back: the statistics of the forward pass weigh each token's loss, by a [`gate`].
//!
//! A module uses only modules above it, and each foreign world stays in its rooms: candle in `kernels`, `model`, `engine` and `train`,
//! polars from `table` on, plotters in `maps`, clap and indicatif in `cli`, tokenizers and minijinja in `tokens`, `unsafe` in
//! `kernels`. A test reads the `use` lines (`tests/layers.rs`).

pub mod error;
pub mod files;
mod format;
mod json;
mod random;
pub mod stats;

pub mod fetch;

pub mod dataset;
pub mod tokens;

pub mod kernels;
pub mod model;

pub mod engine;

pub mod table;

pub mod diagnosis;

pub mod eval;
pub mod train;

pub mod maps;
pub mod report;

pub mod jobs;

pub mod cli;

pub use error::{Context, Error, Result};
