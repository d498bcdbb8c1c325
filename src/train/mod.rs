//! Fine-tuning with the engine that also scores: EAFT and the losses that it is compared with, for all weights or low-rank
//! adapters.
//!
//! ```text
//! options.rs     a TOML file and the command line -> the options of a run; options/check.rs rejects invalid ones; declared.rs describes an
//!                option; elsewhere.rs knows the options of other programs
//! data.rs        sequences in memory, held-out rows, the order of each epoch
//! step.rs        sequences -> packs -> forward, head, backward: the gradient of one step
//! loss.rs        a token's statistics -> the factors of its loss, for every method of `diagnosis::gate`
//! adamw.rs       the update; schedule.rs its learning rate
//! keep.rs        which model of a run is kept, and when it stops early
//! metrics.rs     the logged metrics; drift.rs how far the model has moved on general text
//! ```
//!
//! Not supported: training on a GPU, and generation during training. Run folders and the loop over steps are in `jobs::train`.

pub(crate) mod adamw;
pub(crate) mod data;
pub(crate) mod declared;
pub(crate) mod drift;
pub(crate) mod elsewhere;
pub(crate) mod keep;
pub(crate) mod loss;
pub(crate) mod metrics;
pub(crate) mod options;
pub(crate) mod schedule;
pub(crate) mod step;
#[cfg(test)]
mod tests;
