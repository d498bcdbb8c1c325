//! Who is told how a job goes on. One for all jobs: each tells what it has to tell.

use std::path::Path;

use crate::dataset::DataFile;
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;

/// Told how the work goes on; a terminal draws bars from it. All methods do nothing unless overridden.
pub(crate) trait Watch: Sync {
    /// Bytes fetched of `what` so far, of all.
    fn fetching(&self, _what: &str, _done: u64, _total: u64) {}
    /// The data files were found.
    fn opened(&self, _files: &[DataFile]) {}
    /// Records read for the mask audit.
    fn reading(&self, _records: u64) {}
    fn audited(&self, _audit: &Audit) {}
    /// What the model's files say twice or in vain.
    fn remarks(&self, _model: &str, _remarks: &[String]) {}
    /// Scoring begins.
    fn begins(&self, _beginning: &Beginning) {}
    /// Tokens that went through a model so far, of all, for the sake of `what`: `Scoring`.
    fn tokens(&self, _what: &str, _done: u64, _total: u64) {}
    /// Answers written so far, of all, and tokens of them a second.
    fn answers(&self, _done: u64, _total: u64, _tokens_per_second: f64) {}
    /// Training begins in this folder, after the steps that a checkpoint holds; `what` says by which method, of which weights, and how fast.
    fn trains(&self, _out: &Path, _what: &str, _done: u64, _total: u64) {}
    /// A step of training, of all.
    fn step(&self, _metrics: &StepMetrics, _total: u64) {}
    /// Something that takes a while and has no steps: `Saving`.
    fn stage(&self, _what: &str) {}
    /// From here on, or no more: an interrupt does not end the program at once but is noted, for the work to end where it can be taken up again.
    fn heeds_interrupts(&self, _heeds: bool) {}
    /// Does the user want it to end after this step?
    fn interrupted(&self) -> bool {
        false
    }
}

/// What is known when scoring begins.
pub(crate) struct Beginning<'a> {
    /// Supervised tokens of the whole data set.
    pub supervised: u64,
    /// All tokens of the rows that have supervised tokens.
    pub tokens: u64,
    /// The number of these rows.
    pub rows: u64,
    /// The model's short name.
    pub model: &'a str,
    /// Where the model runs.
    pub device: String,
    /// Why a GPU that is there was not taken.
    pub passed_over: Option<&'a str>,
    pub out: &'a Path,
}

/// Passes on how far a fetch has come: the rooms that fetch know no job.
pub(crate) fn fetching(watch: &dyn Watch) -> impl Fn(&str, u64, u64) {
    |what, done, total| watch.fetching(what, done, total)
}
