//! The main job: a data set -> a run folder with its tables, figures and report.
//!
//! ```text
//! plan.rs      what the user asked for -> everything opened and checked, and an identity that two equal commands share
//! score.rs     reader -> engine -> writer, three threads, in parts that a killed run keeps
//! finish.rs    parts -> tables, summary, figures, report; again under other thresholds without the model
//! ```

mod finish;
mod plan;
mod score;

pub use finish::{Outcome, peak_memory_bytes, sort_again};
pub use plan::{Item, Job, Plan, rendered};

use crate::error::Result;
use crate::tokens::Audit;

/// Told how the work goes on; a terminal draws bars from it. All methods do nothing unless overridden.
pub trait Watch: Sync {
    /// Bytes of the default model fetched so far, of all.
    fn fetching(&self, _what: &str, _done: u64, _total: u64) {}
    /// Records read for the mask audit.
    fn auditing(&self, _records: u64) {}
    /// The audit is done; scoring begins.
    fn audited(&self, _plan: &Plan, _audit: &Audit) {}
    /// Input tokens scored so far, of all.
    fn scoring(&self, _done: u64, _total: u64) {}
    fn finishing(&self, _what: &str) {}
}

/// Runs the whole job. An interrupted run goes on where it stopped; a finished one is only reported again.
pub fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let plan = Plan::make(job, watch)?;
    let stages = score::score(&plan, watch)?;
    finish::finish(&plan, stages, watch)
}
