//! scores.json: what an evaluation found.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::metrics::{Sample, metrics, primary};
use super::score::Scored;
use super::tasks::{Kind, Task};
use crate::error::{Context, Result};
use crate::files::sha256;
use crate::provenance::Provenance;
use crate::stats::{Estimate, estimate, ratio};

pub const SCORES_FILE: &str = "scores.json";

/// scores.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scores {
    /// Of the command that wrote the file last.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// The command that wrote the file last.
    pub command: String,
    #[serde(flatten)]
    pub identity: Identity,
    pub tasks: Tasks,
}

/// By name.
pub type Tasks = BTreeMap<String, TaskScores>;

impl Scores {
    /// SHA-256 over what decides the numbers besides the task: equal ones give equal scores. Neither a model's name nor its path does.
    pub fn identity(&self) -> String {
        let Identity { model_sha256, dtype, kernels, max_len, .. } = &self.identity;
        sha256(format!("{} {} {model_sha256} {dtype} {kernels} {max_len}", self.provenance.build(), self.provenance.device))
    }

    /// Where an evaluation goes whose folder nobody named.
    pub fn folder(&self) -> PathBuf {
        let of_name = |c: char| if c.is_alphanumeric() || "-._".contains(c) { c } else { '-' };
        let name: String = self.identity.model.chars().map(of_name).collect();
        Path::new("runs").join(format!("eval-{name}-{}", &self.identity()[..8]))
    }
}

/// Which model was evaluated, and how.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Identity {
    /// The model's short name.
    pub model: String,
    /// What the user wrote after --model.
    pub model_reference: String,
    /// What the user wrote after --base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_base: Option<String>,
    pub model_sha256: String,
    pub dtype: String,
    pub kernels: String,
    pub max_len: usize,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskScores {
    /// Items; windows, where it is a text.
    pub n: usize,
    pub metrics: BTreeMap<String, Estimate>,
    /// The metric that is usually quoted.
    pub primary: String,
    /// `acc` of the groups that the file names: subjects, paradigms.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupScore>,
    pub kind: Kind,
    pub version: u32,
    pub data: String,
    pub data_sha256: String,
    /// Examples that `--fewshot` put before every question.
    pub few_shot: u32,
    /// Of their draw; `None` where nothing was drawn.
    #[serde(default)]
    pub seed: Option<u64>,
    #[serde(flatten)]
    pub chosen: Chosen,
    /// Requests whose context lost its beginning.
    pub truncated: u64,
    pub tokens: u64,
    /// Less than `tokens` where requests share a prefix.
    pub computed_tokens: u64,
    pub seconds: f64,
}

/// Which items of a task were evaluated.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// The first so many.
    pub limit: Option<usize>,
    /// So many at random, by this seed.
    #[serde(default)]
    pub sample: Option<usize>,
    #[serde(default)]
    pub sample_seed: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupScore {
    pub n: usize,
    pub value: f64,
}

impl TaskScores {
    pub fn new(task: &Task, scored: &Scored, chosen: Chosen, seconds: f64) -> TaskScores {
        let all = metrics(task.kind, &scored.samples);
        TaskScores {
            n: scored.samples.len(),
            metrics: all.iter().map(|metric| (metric.name.to_owned(), estimate(&metric.terms, metric.link))).collect(),
            primary: primary(task.kind, &task.name).to_owned(),
            groups: groups(task.kind, &scored.samples),
            kind: task.kind,
            version: task.version,
            data: task.path.clone(),
            data_sha256: task.sha256.clone(),
            few_shot: task.few_shot.map_or(0, |few_shot| few_shot.n),
            seed: task.few_shot.and_then(|few_shot| few_shot.seed),
            chosen,
            truncated: scored.truncated,
            tokens: scored.tokens,
            computed_tokens: scored.computed_tokens,
            seconds,
        }
    }
}

fn groups(kind: Kind, samples: &[Sample]) -> BTreeMap<String, GroupScore> {
    let mut members: BTreeMap<&str, Vec<Sample>> = BTreeMap::new();
    for sample in samples {
        if let Some(group) = &sample.group {
            members.entry(group).or_default().push(sample.clone());
        }
    }
    let score = |samples: &[Sample]| {
        let first = &metrics(kind, samples)[0];
        GroupScore { n: samples.len(), value: ratio(&first.terms, first.link) }
    };
    members.iter().map(|(group, samples)| (group.to_string(), score(samples))).collect()
}

pub fn read_scores(folder: &Path) -> Result<Scores> {
    let path = folder.join(SCORES_FILE);
    let bytes = std::fs::read(&path).context_at(&path, "cannot read the scores")?;
    serde_json::from_slice(&bytes).context_at(&path, "the file does not hold what this version writes there")
}
