//! The main job: a data set -> a run folder with its tables, figures and report.
//!
//! ```text
//! job.rs       what the user asked for
//! plan.rs      that -> everything opened and checked, and an identity that two equal commands share
//! engine.rs    what runs the model: this program, or servers
//! stream.rs    reader -> engine -> writer, three threads, in parts that a killed run keeps
//! part.rs      the unit of work
//! servers.rs   the engine's place in that, where servers run the model; answers.rs where another program has run it, which emit.rs writes
//! record.rs    run.json, written and read again
//! data.rs      the data files of a finished run, found and checked again
//! kinds.rs     the kind of each conflict, and rows that are alike
//! in_context.rs  the conflicts again, with another row of their kind shown first
//! shards.rs    runs over shards of the data -> one run; shard.rs which part of which run
//! sorted.rs    by which thresholds a run is sorted
//! finish.rs    parts -> tables, summary, figures, report; again under other thresholds without the model
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
pub(crate) use record::{RUN_FILE, RunRecord, read_record};
pub(crate) use shards::{Joining, joined};
pub(crate) use sorted::{read_finished_report, sorted_by};

use crate::error::{Context, Result};
use crate::files::hold;
use crate::jobs::watch::Watch;
use crate::jobs::work::{Work, check_free};
use crate::table::PARTS_FOLDER;

/// Runs the whole job. An interrupted run goes on where it stopped; a finished one is only reported again.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let plan = Plan::make(job, watch)?;
    check_free(&plan.out, Work::Scores)?;
    let _held = hold(&plan.out)?;
    let stages = stream::score(&plan, watch)?;
    if stages.is_some()
        && let Err(changed) = plan.dataset.check_unchanged()
    {
        // Nobody knows of which rows these scores are.
        let parts = plan.out.join(PARTS_FOLDER);
        if parts.exists() {
            std::fs::remove_dir_all(&parts).context_at(&parts, "cannot remove the folder")?;
        }
        return Err(changed.cure("Its scores are not kept: run the command again, and do not change the data while it runs."));
    }
    finish::finish(&plan, stages, watch)
}
