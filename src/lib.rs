//! Token diagnostics for supervised fine-tuning.
//!
//! The data go through the modules in the order in which they are declared here:
//!
//! ```text
//! dataset -> tokens -> engine -> scores -> quadrants -> maps, report
//!                       \-> eval
//! ```

pub mod error;

pub mod dataset;
pub mod tokens;

pub mod kernels;
pub mod model;

pub mod engine;

pub mod scores;

pub mod quadrants;

pub mod gate;

pub mod maps;

pub mod eval;

pub mod report;

pub mod run;

pub mod cli;

pub use error::{Context, Error, Result};
