//! Defines the trait by which all jobs report their progress.

use std::path::Path;

use crate::dataset::DataFile;
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;

/// Receives the progress of a job; the terminal draws bars from it. All methods do nothing by default.
pub(crate) trait Watch: Sync {
    /// Bytes fetched of `what` so far, out of `total`.
    fn fetching(&self, _what: &str, _done: u64, _total: u64) {}
    /// The data files have been found.
    fn opened(&self, _files: &[DataFile]) {}
    /// Records read for the mask audit.
    fn reading(&self, _records: u64) {}
    fn audited(&self, _audit: &Audit) {}
    /// Redundant or unused settings in the model's files.
    fn remarks(&self, _model: &str, _remarks: &[String]) {}
    /// Scoring begins.
    fn begins(&self, _beginning: &Beginning) {}
    /// Tokens processed by a model so far, out of `total`, for the purpose `what`, such as `Scoring`.
    fn tokens(&self, _what: &str, _done: u64, _total: u64) {}
    /// Answers written so far, out of `total`, and their tokens per second.
    fn answers(&self, _done: u64, _total: u64, _tokens_per_second: f64) {}
    /// Training begins in this folder after `done` steps from a checkpoint; `what` describes the method, the weights and the speed.
    fn trains(&self, _out: &Path, _what: &str, _done: u64, _total: u64) {}
    /// A training step has finished.
    fn step(&self, _metrics: &StepMetrics, _total: u64) {}
    /// A stage begins that takes a while and has no steps, such as `Saving`.
    fn stage(&self, _what: &str) {}
    /// From now on, interrupts are noted instead of ending the program, so that the job can stop where it can resume; `false` undoes this.
    fn heeds_interrupts(&self, _heeds: bool) {}
    /// Whether the user wants the job to stop after this step.
    fn interrupted(&self) -> bool {
        false
    }
}

/// What is known when scoring begins.
pub(crate) struct Beginning<'a> {
    /// The number of supervised tokens in the whole data set.
    pub supervised: u64,
    /// The number of tokens in all rows with supervised tokens.
    pub tokens: u64,
    /// The number of these rows.
    pub rows: u64,
    /// The model's short name.
    pub model: &'a str,
    /// Where the model runs.
    pub device: String,
    /// Why an available GPU is not used.
    pub passed_over: Option<&'a str>,
    pub out: &'a Path,
}

/// Adapts `watch` for the modules that fetch, which know nothing of jobs.
pub(crate) fn fetching(watch: &dyn Watch) -> impl Fn(&str, u64, u64) {
    |what, done, total| watch.fetching(what, done, total)
}
