//! Fine-tuning on the engine that scores: EAFT and the losses it is compared with, in full or by low-rank adapters.
//!
//! ```text
//! options.rs     a TOML file under the command line -> what decides a run, and options/check.rs what is refused; declared.rs what an
//!                option is, and other programs' names; elsewhere.rs what else their files say
//! data.rs        sequences in memory, held-out rows, the order of each epoch
//! step.rs        sequences -> packs -> forward, head, backward: the gradient of one step
//! loss.rs        a token's statistics -> the factors of its loss, for every method of `diagnosis::gate`
//! adamw.rs       the update; schedule.rs its rate
//! keep.rs        which model of a run is kept, and when it ends early
//! metrics.rs     what is logged; drift.rs how far general text has moved
//! ```
//!
//! Left out: training on a GPU, generation during training; run folders and the loop over steps, which are `jobs::train`'s.

pub(crate) mod adamw;
pub(crate) mod data;
pub(crate) mod declared;
pub(crate) mod drift;
mod elsewhere;
pub(crate) mod keep;
pub(crate) mod loss;
pub(crate) mod metrics;
pub(crate) mod options;
pub(crate) mod schedule;
pub(crate) mod step;
#[cfg(test)]
mod tests;
