//! Who is told how the main job goes on.

use std::path::Path;

use crate::dataset::DataFile;
use crate::tokens::Audit;

/// Told how the work goes on; a terminal draws bars from it. All methods do nothing unless overridden.
pub(crate) trait Watch: Sync {
    /// Bytes of the default model fetched so far, of all.
    fn fetching(&self, _what: &str, _done: u64, _total: u64) {}
    /// Records read for the mask audit.
    fn auditing(&self, _records: u64) {}
    /// The audit is done; scoring begins.
    fn audited(&self, _beginning: &Beginning) {}
    /// Input tokens scored so far, of all.
    fn scoring(&self, _done: u64, _total: u64) {}
    fn finishing(&self, _what: &str) {}
}

/// What is known when scoring begins.
pub(crate) struct Beginning<'a> {
    pub files: &'a [DataFile],
    pub audit: &'a Audit,
    /// Of the whole data set: supervised tokens, all tokens of the rows with any, and these rows.
    pub supervised: u64,
    pub tokens: u64,
    pub rows: u64,
    /// The model's short name, and where it runs.
    pub model: &'a str,
    pub device: String,
    /// Why a GPU that is there was not taken.
    pub passed_over: Option<&'a str>,
    /// What the model's files say twice or in vain.
    pub remarks: &'a [String],
    pub out: &'a Path,
}
