//! A training run: options and data -> a trained model in a run folder.
//!
//! ```text
//! job.rs         what is asked for: options, data and model, found but not read; record.rs tells what a finished run has left
//! trainer.rs     everything read and checked; the loop over steps; what is written when
//! plan.rs        what a run will do; before.rs the diagnosis that some methods need first
//! special_tokens.rs  where answers end, and tokens that the model never learnt
//! snapshot.rs    what psft compares with
//! checkpoint.rs  weights, moments and progress, to the bit
//! log.rs         metrics.jsonl; events.rs for TensorBoard; figures.rs draws
//! result.rs      the trained model or adapter as others read it
//! emit.rs        no run at all, but the same training as a configuration of LLaMA-Factory or axolotl, by way of recipe.rs
//! watch.rs       who is told how it goes on
//! ```

mod before;
mod checkpoint;
mod emit;
mod events;
mod figures;
mod job;
mod log;
mod plan;
mod recipe;
mod record;
mod result;
mod snapshot;
mod special_tokens;
mod trainer;
mod watch;

pub(crate) use job::Job;
pub(crate) use plan::Plan;
pub(crate) use recipe::emit;
pub(crate) use record::{OPTIONS_FILE, RUN_FILE, TrainRecord, read_record};
pub(crate) use trainer::{Outcome, Trainer, plan};
pub(crate) use watch::Watch;
