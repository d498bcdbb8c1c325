//! Runs a training job: trains a model on data as the options say, and leaves it in a run folder.
//!
//! ```text
//! job.rs         the options, with data and model found but not read; record.rs holds what a finished run leaves
//! trainer.rs     reads and checks everything; the training loop; saving
//! plan.rs        what a run will do; before.rs computes the base model's scores that some methods need first
//! special_tokens.rs  where answers end, and tokens that the model was never trained on
//! snapshot.rs    the snapshot that psft compares with
//! checkpoint.rs  weights, moments and progress, to the bit
//! log.rs         metrics.jsonl; events.rs writes TensorBoard files; figures.rs draws
//! result.rs      saves the trained model or adapter for others; exported.rs does so for a checkpoint
//! emit.rs        instead of training, writes a configuration of LLaMA-Factory or axolotl; translate.rs turns the options into
//!                its recipe
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
mod record;
mod result;
mod snapshot;
mod special_tokens;
mod trainer;
mod translate;

pub(crate) use emit::{Program, Reader, yaml_of};
pub(crate) use exported::{export_checkpoint, merge_adapter};
pub(crate) use job::{Job, Outcome};
pub(crate) use plan::Plan;
pub(crate) use record::{TrainRecord, read_record};
pub(crate) use translate::emit;

use crate::error::{Error, Result};
use crate::jobs::watch::Watch;
use job::Opened;
use trainer::Trainer;

/// Runs the whole job. An interrupted run resumes from its newest checkpoint, as does a finished one whose result was removed; a
/// finished one returns its record.
pub(crate) fn run(job: Job, watch: &dyn Watch) -> Result<Outcome> {
    let (dry_run, must_resume) = (job.dry_run, job.must_resume);
    let opened = Opened::new(job, watch)?;
    if dry_run {
        return Ok(Outcome::Planned(Box::new(trainer::plan(opened, watch)?)));
    }
    if let Some(record) = opened.finished()? {
        return Ok(Outcome::Finished(Box::new(record)));
    }
    if must_resume && !opened.can_resume()? {
        return Err(Error::usage("there is no checkpoint to resume from").at(&opened.out).cure("Leave out --resume to start."));
    }
    Trainer::prepare(opened, watch)?.run(watch)
}
