//! Runs the main job: scores a data set into a run folder with tables, figures and report.
//!
//! ```text
//! job.rs       the options
//! plan.rs      opens and checks everything, and computes an identity that equal commands share
//! engine.rs    what runs the model: this program, or servers
//! stream.rs    reader -> engine -> writer, three threads, in parts that a killed run keeps
//! part.rs      the unit of work
//! servers.rs   replaces the engine if servers run the model; answers.rs if another program, which emit.rs writes, has run it
//! record.rs    run.json
//! data.rs      finds and checks the data files of a finished run
//! kinds/       the kind of each conflict, and rows that are alike
//! in_context.rs  scores conflicts again with another row of their kind shown first
//! shards.rs    joins runs over shards of the data; shard.rs records which shard of which run
//! sorted.rs    the thresholds by which a run is sorted
//! finish.rs    parts -> tables, summary, figures, report; also under other thresholds, without the model
//! ```

mod answers;
mod data;
mod emit;
mod engine;
mod finish;
mod in_context;
mod job;
mod kinds;
mod part;
mod plan;
mod record;
mod servers;
mod shard;
mod shards;
mod sorted;
mod stream;

pub(crate) use data::{find_data, open_data, read_listed};
pub(crate) use emit::emit;
pub(crate) use finish::{Outcome, sort_again};
pub(crate) use job::{Elsewhere, Job};
pub(crate) use plan::Plan;
pub(crate) use record::{RunRecord, read_record};
pub(crate) use shards::{Joining, joined};
pub(crate) use sorted::{read_finished_report, sorted_by};

use crate::error::Result;
use crate::files::{hold, retire};
use crate::jobs::watch::Watch;
use crate::jobs::work::{Work, check_free};
use crate::provenance::PARTS_FOLDER;

/// Runs the whole job. An interrupted run resumes; a finished one only gets its report again.
pub(crate) fn run(job: Job, watch: &dyn Watch) -> Result<Outcome> {
    let plan = Plan::make(job, watch)?;
    check_free(&plan.out, Work::Scores)?;
    let _held = hold(&plan.out)?;
    let stages = stream::score(&plan, watch)?;
    if stages.is_some()
        && let Err(changed) = plan.dataset.check_unchanged()
    {
        // It is unknown which rows these parts belong to.
        retire(&plan.out.join(PARTS_FOLDER))?;
        return Err(changed.cure("Its scores are not kept: run the command again, and do not change the data while it runs."));
    }
    finish::finish(&plan, stages, watch)
}
