//! Reads and writes the folder of an evaluation, and checks that new tasks fit what it holds.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};
use crate::eval::metrics::Sample;
use crate::eval::results::{Scores, Settings, TaskScores, read_samples, read_scores, write_samples};
use crate::eval::tasks::Task;
use crate::files::write_json;
use crate::jobs::other_run::{other_run, with_date};
use crate::provenance::{self, SCORES_FILE};

/// An evaluation folder being written.
pub(super) struct Folder {
    path: PathBuf,
    pub(super) scores: Scores,
    samples: HashMap<String, Vec<Sample>>,
}

impl Folder {
    /// Opens a new folder for `scores`, which contain no task yet, or one that an evaluation of the same model by the same program left.
    pub(super) fn open(path: &Path, scores: Scores) -> Result<Folder> {
        let mut folder = Folder { path: path.to_owned(), scores, samples: HashMap::new() };
        if path.join(SCORES_FILE).exists() {
            let before = read_scores(path)?;
            if before.identity() != folder.scores.identity() {
                let (model, engine, by) = (&before.identity.model, before.engine(), before.provenance.build());
                let what = format!(
                    "the scores of another evaluation ({model}, run by {engine}, {by}; this program is {})",
                    provenance::build()
                );
                // The templates are the tasks' own.
                return Err(other_run(path, &what, before.provenance.kernel_level.as_deref(), false));
            }
            folder.scores.tasks = before.tasks;
            folder.samples = read_samples(path)?;
        }
        Ok(folder)
    }

    /// Returns an error if the folder has scores of the task with other items, examples or settings: two sets of scores cannot share one name.
    /// `writes_date` is whether a chat template of the questions writes today's date.
    pub(super) fn check(&self, task: &Task, settings: &Settings, writes_date: bool) -> Result<()> {
        let Some(was) = self.scores.tasks.get(&task.name).map(|scores| &scores.settings) else { return Ok(()) };
        if was == settings {
            return Ok(());
        }
        Err(Error::new(format!("the folder holds the scores of `{}` with {was}; requested: {settings}", task.name))
            .at(&self.path)
            .cure(with_date(
                "Choose another --out. Without one the folder is named after the settings, but not after templates and end tokens.",
                writes_date,
            )))
    }

    /// Whether the folder has scores of this task on the same items.
    pub(super) fn holds(&self, task: &Task, settings: &Settings) -> bool {
        self.scores.tasks.get(&task.name).is_some_and(|scores| {
            (scores.version, &scores.data_sha256) == (task.version, &task.sha256)
                && scores.settings == *settings
                && self.samples.get(&task.name).is_some_and(|samples| samples.len() == scores.n)
        })
    }

    /// Writes a finished task, replacing an older one of that name.
    pub(super) fn add(&mut self, name: &str, scores: TaskScores, samples: Vec<Sample>) -> Result<()> {
        self.scores.tasks.insert(name.to_owned(), scores);
        self.samples.insert(name.to_owned(), samples);
        let samples_of = |name: &String| self.samples.get(name).map_or(&[][..], Vec::as_slice);
        let tables: Vec<(&str, &[Sample])> = self.scores.tasks.keys().map(|name| (name.as_str(), samples_of(name))).collect();
        write_samples(&self.path, &tables)?;
        write_json(&self.path.join(SCORES_FILE), &self.scores)
    }
}
