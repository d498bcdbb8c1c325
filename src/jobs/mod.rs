//! Runs the jobs of the command line: each opens and checks its inputs, does the work and writes a folder.
//!
//! Only jobs own run folders; the other modules provide the parts.
//!
//! ```text
//! score/       a data set -> tables, figures, report
//! train/       a data set -> a fine-tuned model
//! eval/        tasks -> scores
//! rollout/     prompts -> the model's own answers, a data set
//! export/      a run and decisions -> its data, rewritten
//! diff.rs      what changed between two models, evaluations or score runs
//! landscape.rs finished score runs on shared axes
//! check.rs     checks of a data set that need no weights
//! view.rs      finished runs -> the page to read rows and decide about them
//! reopened.rs  a score run, reopened together with its data
//! decisions.rs what a person decided about the rows of a run
//! folders.rs   recognises run folders, expands globs, and names what another folder holds
//! work.rs      the files of run folders, and what a command may write over: its own earlier files, never another's or a person's
//! found.rs     a model, before the data are read
//! answer.rs    a sampled answer
//! author.rs    what generates answers: this program, or servers
//! served.rs    a model run by servers
//! journal.rs   the finished work of a killed job
//! other_run.rs refuses a folder that holds something else than what would be resumed
//! watch.rs     reports progress
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
mod found;
mod journal;
pub(crate) mod landscape;
mod other_run;
pub(crate) mod reopened;
pub(crate) mod rollout;
pub(crate) mod score;
mod served;
pub(crate) mod train;
pub(crate) mod view;
pub(crate) mod watch;
mod work;

/// The record of this process, which began at `started` and ran the model on `device`, or had servers run it.
pub(crate) fn provenance_of(started: SystemTime, device: String, by_servers: bool) -> Provenance {
    Provenance::new(started, (!by_servers).then(|| Level::current().name()), device)
}

/// What identifies the data files of a run: their hashes, formats and file names, which the table stores as sources. Their folders do not count, so
/// that another path to the same file gives the same run.
fn identity_of_files(files: &[DataFile]) -> Vec<(String, &str, String)> {
    files.iter().map(|file| (file.name(), file.sha256.as_str(), file.format.to_string())).collect()
}

/// The peak resident set size of this process, where the kernel reports it (Linux).
pub(crate) fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, ReadOptions};

    #[test]
    fn data_files_count_by_their_bytes_and_names_and_not_by_their_folders() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::create_dir(folder.path().join("copies")).unwrap();
        for (name, text) in [("rows", "one"), ("copies/rows", "one"), ("renamed", "one"), ("changed", "two")] {
            std::fs::write(folder.path().join(name).with_extension("jsonl"), format!("{{\"text\":\"{text}\"}}")).unwrap();
        }
        let of = |name: &str| {
            let path = folder.path().join(name).to_string_lossy().into_owned();
            format!("{:?}", identity_of_files(Dataset::open(&[path], &ReadOptions::default()).unwrap().files()))
        };
        let own = of("rows.jsonl");
        assert_eq!(own, of("./rows.jsonl"));
        assert_eq!(own, of("copies/rows.jsonl"));
        assert_ne!(own, of("changed.jsonl"));
        assert_ne!(own, of("renamed.jsonl"), "the table has the name as the rows' source");
    }
}
