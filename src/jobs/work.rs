//! Names the files of run folders, and decides what a command may write over: files that it wrote itself, and nothing else. Three commands call their
//! record `run.json`, and their other files share names as well, so a command enters a folder that it has not begun itself only if it overwrites
//! nothing there.

use std::fs;
use std::path::Path;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::eval::answers::ANSWERS_FILE;
use crate::eval::samples::SAMPLES_FILE;
use crate::files::{LOCK_FILE, read_json};
use crate::provenance::{
    DIFF_FILES, JOINING_FOLDER, JOURNAL_FILE, OPTIONS_FILE, PARTS_FOLDER, ROLLOUTS_FILE, RUN_FILE, SCORES_FILE,
};
use crate::table::{
    ALTERNATIVES_FILE, CONFLICTS_FILE, IN_CONTEXT_FILE, LEARNT_FILE, PAIRS_FILE, ROWS_FILE, SEQUENCES_FILE, TOKENS_FILE,
    are_sequences,
};

/// The numbers of scores, for programs.
pub(super) const SUMMARY_FILE: &str = "summary.json";
/// The numbers of scores, for people.
pub(super) const REPORT_FILE: &str = "report.md";
/// The page in which a person reads the rows.
pub(super) const VIEW_FILE: &str = "view.html";
/// The sample on which the top-K entropies are compared with the full one.
pub(super) const FIDELITY_FILE: &str = "fidelity.json";
/// The spans that rows declare as planted.
pub(super) const PLANTED_FILE: &str = "planted.json";
/// The figures of scores or of a training run.
pub(super) const MAPS_FOLDER: &str = "maps";
/// The metrics of each training step.
pub(super) const METRICS_FILE: &str = "metrics.jsonl";
/// The same metrics for TensorBoard.
pub(super) const TENSORBOARD_FOLDER: &str = "tensorboard";
pub(super) const CHECKPOINTS_FOLDER: &str = "checkpoints";
/// The chat template that was trained on, if it is not the model's own.
pub(super) const TEMPLATE_FILE: &str = "chat_template.jinja";
/// The base model's scores of the data that it is trained on.
pub(super) const BEFORE_FOLDER: &str = "before";
/// The trained model, whole.
pub(super) const MODEL_FOLDER: &str = "model";
/// The trained adapter.
pub(super) const ADAPTER_FOLDER: &str = "adapter";
/// What is known of runs side by side; of its files this one is written first.
pub(super) const LANDSCAPES_FILE: &str = "landscapes.json";
/// The program that scores sequences elsewhere.
pub(super) const OFFLINE_SCRIPT_FILE: &str = "vllm_offline.py";

/// What a command leaves in a folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Scores,
    Answers,
    Training,
    /// The scores of `eval`.
    Evaluation,
    /// What `diff` writes.
    Comparison,
    /// Score runs side by side.
    Landscapes,
    /// Sequences, and the program that scores them.
    Offline,
}

impl Work {
    /// The works whose record is called `run.json`: a folder holds one of them at most.
    const WITH_RECORD: [Work; 3] = [Work::Scores, Work::Answers, Work::Training];

    fn name(self) -> &'static str {
        match self {
            Work::Scores => "scores of data",
            Work::Answers => "written answers",
            Work::Training => "a training run",
            Work::Evaluation => "scores of tasks",
            Work::Comparison => "a comparison",
            Work::Landscapes => "runs side by side",
            Work::Offline => "sequences to score",
        }
    }

    fn is_in(self, folder: &Path) -> bool {
        let is_there = |name: &str| folder.join(name).exists();
        // The lock tells that this program has worked in the folder; without it, the file may be anyone's.
        let is_begun = |name: &str| is_there(LOCK_FILE) && is_there(name);
        let is_ended = |name: &str| is_there(RUN_FILE) && is_there(name);
        match self {
            Work::Scores => is_begun(PARTS_FOLDER) || is_begun(JOINING_FOLDER) || is_ended(TOKENS_FILE),
            Work::Answers => is_begun(JOURNAL_FILE) || is_ended(ROLLOUTS_FILE),
            // A folder that is copied to go on elsewhere may lack the lock.
            Work::Training => {
                is_begun(OPTIONS_FILE) || is_ended(OPTIONS_FILE) || is_there(OPTIONS_FILE) && is_there(CHECKPOINTS_FOLDER)
            }
            Work::Evaluation => is_there(SCORES_FILE) || is_begun(SAMPLES_FILE) || is_begun(ANSWERS_FILE),
            Work::Comparison => has_members(&folder.join(DIFF_FILES[0]), ["kind", "divergence"]),
            Work::Landscapes => has_members(&folder.join(LANDSCAPES_FILE), ["runs", "thresholds"]),
            Work::Offline => are_sequences(&folder.join(SEQUENCES_FILE)),
        }
    }

    /// The files and folders that the command writes, replacing those with the same names.
    fn written(self) -> &'static [&'static str] {
        match self {
            Work::Scores => &[
                RUN_FILE,
                TOKENS_FILE,
                ROWS_FILE,
                CONFLICTS_FILE,
                PAIRS_FILE,
                ALTERNATIVES_FILE,
                IN_CONTEXT_FILE,
                SUMMARY_FILE,
                REPORT_FILE,
                VIEW_FILE,
                FIDELITY_FILE,
                PLANTED_FILE,
                MAPS_FOLDER,
            ],
            Work::Answers => &[RUN_FILE, ROLLOUTS_FILE],
            Work::Training => &[
                RUN_FILE,
                OPTIONS_FILE,
                TEMPLATE_FILE,
                METRICS_FILE,
                MODEL_FOLDER,
                ADAPTER_FOLDER,
                CHECKPOINTS_FOLDER,
                TENSORBOARD_FOLDER,
                MAPS_FOLDER,
            ],
            Work::Evaluation => &[SAMPLES_FILE, ANSWERS_FILE],
            // compared.html is a page, which `check_replaceable` guards.
            Work::Comparison => &[
                DIFF_FILES[0],
                DIFF_FILES[1],
                DIFF_FILES[2],
                LEARNT_FILE,
                "forest.png",
                "forest.svg",
                "movement.png",
                "movement.svg",
                "retention.png",
                "retention.svg",
            ],
            Work::Landscapes => &[LANDSCAPES_FILE, "landscapes.md", "landscapes.png", "landscapes.svg"],
            Work::Offline => &[SEQUENCES_FILE, OFFLINE_SCRIPT_FILE],
        }
    }
}

/// Whether the file is a JSON object with these members.
fn has_members(path: &Path, names: [&str; 2]) -> bool {
    let read = read_json::<Value>(path).ok().flatten();
    read.is_some_and(|object| names.iter().all(|name| object.get(name).is_some()))
}

/// Returns an error if a file that is to be written exists and is not `own`: an earlier result of this program, as `is_own` finds out. An empty file
/// may be replaced.
pub(super) fn check_replaceable(path: &Path, own: &str, is_own: impl FnOnce(&Path) -> Result<bool>) -> Result<()> {
    // What is no file is refused when it is written.
    let is_there = fs::metadata(path).is_ok_and(|found| found.is_file() && found.len() > 0);
    if is_there && !is_own(path)? {
        return Err(Error::usage(format!("the file is not {own}, and is not overwritten"))
            .at(path)
            .cure("Name a new file, or remove this one."));
    }
    Ok(())
}

/// Returns an error if this command would overwrite another command's record or a person's own files.
pub(crate) fn check_free(folder: &Path, own: Work) -> Result<()> {
    let cure = "Choose another folder with --out.";
    let others: &[Work] = if Work::WITH_RECORD.contains(&own) { &Work::WITH_RECORD } else { &[] };
    if let Some(other) = others.iter().find(|work| **work != own && work.is_in(folder)) {
        let what = format!("the folder already holds {}, which would be overwritten", other.name());
        return Err(Error::usage(what).at(folder).cure(cure));
    }
    if own.is_in(folder) {
        return Ok(());
    }
    match own.written().iter().find(|name| folder.join(name).exists()) {
        Some(name) => {
            Err(Error::usage(format!("the folder holds `{name}`, which this command did not write and would overwrite"))
                .at(folder)
                .cure(cure))
        }
        None => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{Dataset, ReadOptions};
    use crate::files::file_name;
    use crate::provenance::Provenance;

    fn with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        folder
    }

    /// A file or folder that exists before a run ends, and one that exists afterwards, besides its record.
    const MARKS: [(Work, [&str; 2]); 3] = [
        (Work::Scores, [PARTS_FOLDER, TOKENS_FILE]),
        (Work::Answers, [JOURNAL_FILE, ROLLOUTS_FILE]),
        (Work::Training, [OPTIONS_FILE, OPTIONS_FILE]),
    ];

    #[test]
    fn a_folder_is_of_one_kind_of_work() {
        for (work, [before, at_end]) in MARKS {
            for names in [vec![LOCK_FILE, before], vec![RUN_FILE, at_end]] {
                let folder = with(&names);
                for own in Work::WITH_RECORD {
                    assert_eq!(check_free(folder.path(), own).is_ok(), own == work, "{own:?} where {names:?} are");
                }
                assert!(check_free(folder.path(), Work::Comparison).is_ok());
            }
        }
    }

    /// The dataset module recognises these names independently.
    #[test]
    fn the_folder_of_no_work_is_data() {
        let read = |folder: &tempfile::TempDir| {
            Dataset::open(&[folder.path().to_string_lossy().into_owned()], &ReadOptions::default())
                .map(|dataset| dataset.files().iter().map(|file| file_name(&file.path)).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        let row = "{\"text\": \"a\"}\n";
        for (work, [before, at_end]) in MARKS {
            let begun = with(&[LOCK_FILE, before]);
            std::fs::write(begun.path().join("rows.jsonl"), row).unwrap();
            assert!(read(&begun).unwrap_err().contains("a run folder of this program"), "{work:?}");
            let ended = with(&[at_end]);
            std::fs::write(ended.path().join(at_end), row).unwrap();
            let made = Provenance::new(std::time::SystemTime::now(), None, "cpu".to_owned());
            std::fs::write(ended.path().join(RUN_FILE), serde_json::to_vec(&made).unwrap()).unwrap();
            match work {
                Work::Answers => assert_eq!(read(&ended).unwrap(), [ROLLOUTS_FILE]),
                _ => assert!(read(&ended).unwrap_err().contains("a run folder of this program"), "{work:?}"),
            }
        }
    }

    #[test]
    fn what_is_a_persons_own_is_not_written_over() {
        let others = [Work::Evaluation, Work::Comparison, Work::Landscapes, Work::Offline];
        for own in Work::WITH_RECORD.into_iter().chain(others) {
            assert!(check_free(with(&["data.jsonl", "notes.md", LOCK_FILE]).path(), own).is_ok());
            assert!(check_free(Path::new("no/such/folder"), own).is_ok());
            for name in own.written() {
                assert!(check_free(with(&[name]).path(), own).unwrap_err().to_string().contains(name));
            }
        }
    }
}
