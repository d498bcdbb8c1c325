//! A training run: options and data -> a trained model in a run folder.
//!
//! ```text
//! job.rs         what is asked for; data and model found but not read; record.rs tells what a finished run has left
//! trainer.rs     everything read and checked; the loop over steps; what is written when
//! plan.rs        what a run will do; before.rs the diagnosis that some methods need first
//! special_tokens.rs  where answers end, and tokens that the model never learnt
//! snapshot.rs    what psft compares with
//! checkpoint.rs  weights, moments and progress, to the bit
//! log.rs         metrics.jsonl; events.rs for TensorBoard; figures.rs draws
//! result.rs      the trained model or adapter as others read it; exported.rs the same of a checkpoint
//! emit.rs        no run at all, but the same training as a configuration of LLaMA-Factory or axolotl, by way of recipe.rs
//! ```

mod before;
mod checkpoint;
mod emit;
mod events;
mod exported;
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

pub(crate) use emit::{Program, Slots, check_axolotl};
pub(crate) use exported::{export_checkpoint, merge_adapter};
pub(crate) use job::{Job, Outcome};
pub(crate) use plan::Plan;
pub(crate) use recipe::emit;
pub(crate) use record::{RUN_FILE, TrainRecord, read_record};

use crate::error::{Error, Result};
use crate::jobs::watch::Watch;
use job::Opened;
use trainer::Trainer;

/// Runs the whole job. An interrupted run goes on from its newest checkpoint; of a finished one the record is given again.
pub(crate) fn run(job: Job, watch: &dyn Watch) -> Result<Outcome> {
    let (dry_run, must_resume) = (job.dry_run, job.must_resume);
    let opened = Opened::new(job, watch)?;
    if dry_run {
        return Ok(Outcome::Planned(Box::new(trainer::plan(opened, watch)?)));
    }
    if let Some(record) = opened.record()? {
        return Ok(Outcome::Finished(Box::new(record)));
    }
    if must_resume && !opened.can_resume()? {
        return Err(Error::usage("there is no checkpoint to resume from").at(&opened.out).cure("Leave out --resume to start."));
    }
    Trainer::prepare(opened, watch)?.run(watch)
}
