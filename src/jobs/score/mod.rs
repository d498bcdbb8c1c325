//! The main job: a data set -> a run folder with its tables, figures and report.
//!
//! ```text
//! plan.rs      what the user asked for -> everything opened and checked, and an identity that two equal commands share
//! stream.rs    reader -> engine -> writer, three threads, in parts that a killed run keeps
//! record.rs    run.json, written and read again
//! data.rs      the data files of a finished run, found and checked again
//! kinds.rs     the kind of each conflict, and rows that are alike
//! in_context.rs  the conflicts again, with another row of their kind shown first
//! finish.rs    parts -> tables, summary, figures, report; again under other thresholds without the model
//! ```

mod data;
mod finish;
mod in_context;
mod kinds;
mod plan;
mod record;
mod stream;

pub(crate) use data::{find_data, open_data, read_listed};
pub(crate) use finish::{Outcome, SUMMARY_FILE, sort_again};
pub(crate) use plan::{Job, Plan};
pub(crate) use record::{RUN_FILE, RunRecord, read_json, read_record};

use crate::error::Result;
use crate::jobs::watch::Watch;

/// Runs the whole job. An interrupted run goes on where it stopped; a finished one is only reported again.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let plan = Plan::make(job, watch)?;
    let stages = stream::score(&plan, watch)?;
    finish::finish(&plan, stages, watch)
}
