//! Names the files of run folders, and finds out which command a folder belongs to. Three commands call their record `run.json`, and their other
//! files share names as well, so a command enters a folder that it has not begun itself only if it overwrites nothing there.

use std::path::Path;

use crate::error::{Error, Result};
use crate::provenance::{JOURNAL_FILE, OPTIONS_FILE, PARTS_FOLDER, ROLLOUTS_FILE, RUN_FILE};
use crate::table::{ALTERNATIVES_FILE, CONFLICTS_FILE, IN_CONTEXT_FILE, PAIRS_FILE, ROWS_FILE, TOKENS_FILE};

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
/// The base model's scores of the data that it is trained on.
pub(super) const BEFORE_FOLDER: &str = "before";
/// The trained model, whole.
pub(super) const MODEL_FOLDER: &str = "model";
/// The trained adapter.
pub(super) const ADAPTER_FOLDER: &str = "adapter";

/// The commands whose record is called `run.json`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Work {
    Scores,
    Answers,
    Training,
}

impl Work {
    const ALL: [Work; 3] = [Work::Scores, Work::Answers, Work::Training];

    fn name(self) -> &'static str {
        match self {
            Work::Scores => "scores of data",
            Work::Answers => "written answers",
            Work::Training => "a training run",
        }
    }

    /// A file or folder that exists before the run ends, and one that exists afterwards, besides its record.
    fn marks(self) -> [&'static str; 2] {
        match self {
            Work::Scores => [PARTS_FOLDER, TOKENS_FILE],
            Work::Answers => [JOURNAL_FILE, ROLLOUTS_FILE],
            Work::Training => [OPTIONS_FILE, OPTIONS_FILE],
        }
    }

    fn is_in(self, folder: &Path) -> bool {
        let is_there = |name: &str| folder.join(name).exists();
        let [before, at_end] = self.marks();
        is_there(before) || (is_there(RUN_FILE) && is_there(at_end))
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
            Work::Training => {
                &[RUN_FILE, METRICS_FILE, MODEL_FOLDER, ADAPTER_FOLDER, CHECKPOINTS_FOLDER, TENSORBOARD_FOLDER, MAPS_FOLDER]
            }
        }
    }
}

/// Returns an error if this command would overwrite another command's record or a person's own files.
pub(crate) fn check_free(folder: &Path, own: Work) -> Result<()> {
    let cure = "Choose another folder with --out.";
    if let Some(other) = Work::ALL.into_iter().find(|work| *work != own && work.is_in(folder)) {
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
    use crate::files::{LOCK_FILE, file_name};
    use crate::provenance::Provenance;

    fn with(names: &[&str]) -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        names.iter().for_each(|name| std::fs::write(folder.path().join(name), "").unwrap());
        folder
    }

    #[test]
    fn a_folder_is_of_one_kind_of_work() {
        for work in Work::ALL {
            let [before, at_end] = work.marks();
            for names in [vec![before], vec![RUN_FILE, at_end]] {
                let folder = with(&names);
                for own in Work::ALL {
                    assert_eq!(check_free(folder.path(), own).is_ok(), own == work, "{own:?} where {names:?} are");
                }
            }
        }
    }

    #[test]
    fn the_folder_of_no_work_is_data() {
        let read = |folder: &tempfile::TempDir| {
            Dataset::open(&[folder.path().to_string_lossy().into_owned()], &ReadOptions::default())
                .map(|dataset| dataset.files().iter().map(|file| file_name(&file.path)).collect::<Vec<_>>())
                .map_err(|error| error.to_string())
        };
        let row = "{\"text\": \"a\"}\n";
        for work in Work::ALL {
            let [before, at_end] = work.marks();
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
        for own in Work::ALL {
            assert!(check_free(with(&["data.jsonl", "notes.md", LOCK_FILE]).path(), own).is_ok());
            assert!(check_free(Path::new("no/such/folder"), own).is_ok());
            for name in own.written() {
                assert!(check_free(with(&[name]).path(), own).unwrap_err().to_string().contains(name));
            }
        }
    }
}
