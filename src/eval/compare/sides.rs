//! One side of a comparison: the results of a model on tasks.

use std::collections::BTreeMap;
use std::path::Path;

use super::super::metrics::{Metric, Sample, metrics};
use super::super::results::{Scores, Settings, read_samples};
use super::super::tasks::TaskKind;
use crate::error::{Error, Result};

/// One side of a comparison.
pub struct Side {
    /// The name of the side, for messages.
    pub name: String,
    /// The model as the user gave it, if known.
    pub model_reference: Option<String>,
    /// The engine that ran the model, if known.
    pub engine: Option<String>,
    /// The tasks by name.
    pub tasks: BTreeMap<String, TaskSamples>,
    /// Groups of tasks that are averaged together, by the group's name.
    pub groups: BTreeMap<String, Vec<String>>,
    /// Files that cannot be compared, with the reason.
    pub skipped: Vec<String>,
}

/// The results of one side on a task.
pub struct TaskSamples {
    /// The kind of task; only known for our own evaluations.
    pub kind: Option<TaskKind>,
    /// The items' ids.
    pub ids: Vec<String>,
    /// The samples of our own evaluations, in the order of `ids`; otherwise empty.
    pub samples: Vec<Sample>,
    /// The metrics with their values per item.
    pub metrics: Vec<Metric>,
    /// What each item asks, in the order of `ids`.
    pub asked: Vec<Asked>,
    /// The part and the group of each item, in the order of `ids`.
    pub origins: Vec<Origin>,
    /// SHA-256 of the data file, if known.
    pub data_sha256: Option<String>,
    /// How the questions were asked and the answers written, if known.
    pub settings: Option<Settings>,
    /// The primary metric, if known.
    pub primary: Option<String>,
}

/// The part of its task that an item belongs to, and the group with which it was drawn.
pub struct Origin {
    /// The part of its task.
    pub subject: Option<String>,
    /// The group of items that were drawn together.
    pub group: Option<String>,
}

/// Hashes of what an item asks.
pub struct Asked {
    /// The hash of the item's row, if known.
    pub document: Option<String>,
    /// The hash of the text before the answer, if known.
    pub prompt: Option<String>,
}

impl TaskSamples {
    /// The results of a task in our own evaluation.
    pub fn of(kind: TaskKind, samples: Vec<Sample>) -> TaskSamples {
        TaskSamples {
            kind: Some(kind),
            ids: samples.iter().map(|sample| sample.id.clone()).collect(),
            metrics: metrics(kind, &samples),
            origins: samples
                .iter()
                .map(|sample| Origin { subject: sample.subject.clone(), group: sample.group.clone() })
                .collect(),
            asked: samples.iter().map(|sample| Asked { document: None, prompt: sample.prompt_sha256.clone() }).collect(),
            samples,
            data_sha256: None,
            settings: None,
            primary: None,
        }
    }
}

/// The side of an evaluation's `scores`, with the samples in its folder.
pub fn side_of(scores: &Scores, folder: &Path) -> Result<Side> {
    let mut samples = read_samples(folder)?;
    let mut tasks = BTreeMap::new();
    for (name, task) in &scores.tasks {
        let own = samples.remove(name).filter(|own| own.len() == task.n).ok_or_else(|| {
            Error::new(format!("the table lacks the {} items of `{name}` that scores.json lists", task.n))
                .at(folder)
                .cure("Evaluate the task again.")
        })?;
        let (settings, primary) = (Some(task.settings.clone()), Some(task.primary.clone()));
        let data_sha256 = Some(task.data_sha256.clone());
        tasks.insert(name.clone(), TaskSamples { settings, primary, data_sha256, ..TaskSamples::of(task.kind, own) });
    }
    Ok(Side {
        name: scores.identity.model.clone(),
        model_reference: Some(scores.identity.model_reference.clone()),
        engine: Some(scores.engine()),
        tasks,
        groups: BTreeMap::new(),
        skipped: Vec::new(),
    })
}
