//! Fine-tuning on the engine that scores: EAFT and the losses it is compared with, in full or by low-rank adapters.
//!
//! ```text
//! options.rs     a TOML file under the command line -> what decides a run
//! run.rs         everything opened and checked; the loop over steps; what is written when
//! data.rs        sequences in memory, held-out rows, the order of each epoch
//! step.rs        sequences -> packs -> forward, head, backward: the gradient of one step
//! method.rs      a token's statistics -> the factors of its loss, for every method
//! adamw.rs       the update; schedule.rs its rate
//! metrics.rs     what is logged; drift.rs how far general text has moved; events.rs for TensorBoard; figures.rs draws
//! checkpoint.rs  weights, moments and progress, to the bit
//! result.rs      the trained model or adapter as others read it
//! emit.rs        the same training as a configuration of LLaMA-Factory or axolotl, from the options by way of recipe.rs
//! ```
//!
//! Left out: training on a GPU, generation during training.

mod adamw;
mod checkpoint;
mod data;
mod drift;
pub mod emit;
mod events;
mod figures;
mod method;
mod metrics;
mod options;
mod recipe;
mod result;
mod run;
mod schedule;
mod step;
#[cfg(test)]
mod tests;

pub use method::{Method, Normaliser};
pub use metrics::{Drift, StepMetrics, Validation};
pub use options::Options;
pub use recipe::emit as emit_recipe;
pub use run::{Job, Outcome, Plan, TrainRecord, Trainer};

use crate::tokens::Audit;

/// Told how the work goes on; a terminal draws bars from it. All methods but the first do nothing unless overridden.
pub trait Watch: Sync {
    /// For the diagnosis that some methods need first.
    fn of_scoring(&self) -> &dyn crate::run::Watch;
    /// Bytes of the default model fetched so far, of all.
    fn fetching(&self, _what: &str, _done: u64, _total: u64) {}
    /// Records read so far.
    fn reading(&self, _records: u64) {}
    fn audited(&self, _audit: &Audit) {}
    /// Steps begin, after those that a checkpoint holds.
    fn training(&self, _done: u64, _total: u64) {}
    fn step(&self, _metrics: &StepMetrics, _total: u64) {}
    /// Something that takes a while and has no steps: `Saving`.
    fn stage(&self, _what: &str) {}
    /// Does the user want it to end after this step?
    fn interrupted(&self) -> bool {
        false
    }
}
