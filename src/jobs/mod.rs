//! The jobs that the command line asks for: what the user wants -> files opened and checked, work done, a folder written.
//!
//! Only these own run folders; what they put together stands in the rooms above.
//!
//! ```text
//! score/     a data set -> tables, figures, report
//! train/     a data set -> a fine-tuned model
//! eval/      tasks -> scores
//! rollout/   prompts -> the model's own answers, a data set
//! export/    a run and decisions -> its data again
//! diff.rs    two of those -> what changed
//! landscape.rs finished runs of scores, side by side
//! check.rs   a data set -> what can be said of it without weights
//! view.rs    finished runs -> the page to read and decide in
//! reopened.rs  a run of scores with its data at hand again
//! decisions.rs what a person has decided about its rows
//! folders.rs recognises run folders, expands globs of them, and says what another folder is
//! work.rs    whose folder a folder is: a command does not write into that of another
//! answer.rs  an answer that was drawn
//! author.rs  who writes answers: this program, or servers
//! served.rs  a model that servers run
//! journal.rs what a killed job had finished; level.rs refuses to go on with it by other instructions
//! watch.rs   who is told how a job goes on
//! ```

use std::time::SystemTime;

use crate::dataset::DataFile;
use crate::kernels::level::Level;
use crate::provenance::Provenance;

mod answer;
mod author;
pub(crate) mod check;
pub(crate) mod decisions;
pub(crate) mod diff;
pub(crate) mod eval;
pub(crate) mod export;
pub(crate) mod folders;
mod journal;
pub(crate) mod landscape;
mod level;
pub(crate) mod reopened;
pub(crate) mod rollout;
pub(crate) mod score;
mod served;
pub(crate) mod train;
pub(crate) mod view;
pub(crate) mod watch;
mod work;

/// The record of this process, which began at `started` and ran the model on `device`, or had it run there by servers.
pub(crate) fn provenance_of(started: SystemTime, device: String, by_servers: bool) -> Provenance {
    Provenance::new(started, (!by_servers).then(|| Level::current().name()), device)
}

/// What of the data files decides about a run: their bytes, what they are read as, and their names, which the table holds as sources.
/// The folders before the names do not, so that the same file by another spelling is the same run.
fn identity_of_files(files: &[DataFile]) -> Vec<(String, &str, String)> {
    files.iter().map(|file| (file.name(), file.sha256.as_str(), file.format.to_string())).collect()
}

/// The high-water mark of this process's resident set, where the kernel tells (Linux).
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
