//! Who is told how training goes on.

use crate::jobs::score;
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;

/// Told how the work goes on; a terminal draws bars from it. All methods but the first do nothing unless overridden.
pub(crate) trait Watch: Sync {
    /// For the diagnosis that some methods need first.
    fn of_scoring(&self) -> &dyn score::Watch;
    /// Bytes of the default model fetched so far, of all.
    fn fetching(&self, _what: &str, _done: u64, _total: u64) {}
    /// Records read so far.
    fn reading(&self, _records: u64) {}
    fn audited(&self, _audit: &Audit) {}
    /// What the model's files say twice or in vain.
    fn remarks(&self, _model: &str, _remarks: &[String]) {}
    /// Steps begin, after those that a checkpoint holds.
    fn training(&self, _done: u64, _total: u64) {}
    fn step(&self, _metrics: &StepMetrics, _total: u64) {}
    /// Something that takes a while and has no steps: `Saving`.
    fn stage(&self, _what: &str) {}
    /// Does the user want it to end after this step?
    fn interrupted(&self) -> bool {
        false
    }
}
