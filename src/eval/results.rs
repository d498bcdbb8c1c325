//! scores.json: what an evaluation found.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::answers::{self, ANSWERS_FILE};
use super::asking::{Asked, Asking};
use super::metrics::{Metric, Sample, metrics, primary};
use super::samples::{self, SAMPLES_FILE};
use super::tasks::{FewShot, Task, TaskKind};
use super::write::{Endings, Writing};
use crate::engine::remote::Checked;
use crate::error::Result;
use crate::files::{read_existing_json, sha256};
use crate::json::{finite_ends, null_is_nan};
use crate::provenance::Provenance;
use crate::stats::{Design, Estimate, Term, estimate, mean_over_parts, ratio};

/// The name of the file in an evaluation's folder.
pub const SCORES_FILE: &str = "scores.json";

/// scores.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scores {
    /// What made the scores: the process of the command that wrote the file last.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// The command that wrote the file last.
    pub command: String,
    /// Which model was evaluated, and how.
    #[serde(flatten)]
    pub identity: Identity,
    /// The servers that ran the model, if this program did not, and what was found about them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Checked>,
    /// The scores of each task.
    pub tasks: Tasks,
}

/// Scores by the names of the tasks.
pub type Tasks = BTreeMap<String, TaskScores>;

impl Scores {
    /// What ran the model, for people: two evaluations of one model by two engines may differ by these.
    pub fn engine(&self) -> String {
        match &self.server {
            Some(server) => format!("{} (a server)", server.program()),
            None => format!("this program in {}", self.identity.dtype),
        }
    }

    /// SHA-256 over what decides the numbers besides the task: equal ones give equal scores. Neither a model's name nor its path does.
    pub fn identity(&self) -> String {
        let Identity { model: _, model_reference: _, model_base: _, model_sha256, dtype, kernels, max_len } = &self.identity;
        let Provenance { device, kernel_level, .. } = &self.provenance;
        // Other instructions round other sums.
        let level = kernel_level.as_deref().unwrap_or_default();
        sha256(format!("{} {device} {level} {model_sha256} {dtype} {kernels} {max_len}", self.provenance.build()))
    }

    /// Where an evaluation goes whose folder nobody named; `settings` say which items and examples, where that is not all and none.
    pub fn folder(&self, settings: &str) -> PathBuf {
        let of_name = |c: char| if c.is_alphanumeric() || "-._".contains(c) { c } else { '-' };
        let name: String = self.identity.model.chars().map(of_name).collect();
        let identity = if settings.is_empty() { self.identity() } else { sha256(format!("{} {settings}", self.identity())) };
        Path::new("runs").join(format!("eval-{name}-{}", &identity[..8]))
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
    /// What the model's products were computed in.
    pub dtype: String,
    /// Which implementation of the operations ran.
    pub kernels: String,
    /// The most tokens that went into the model at once.
    pub max_len: usize,
}

/// What a task came to, and how it was asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskScores {
    /// Items; windows, where it is a text.
    pub n: usize,
    /// The metrics by their names.
    pub metrics: BTreeMap<String, Estimate>,
    /// The metric that is usually quoted.
    pub primary: String,
    /// The primary metric of each subject.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, SubjectScore>,
    /// The primary metric with the same weight for every subject, where `metrics` has the same weight for every item; for accuracies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_over_subjects: Option<Estimate>,
    /// Groups of items that were drawn together, where there are some: `metrics` respects them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_groups: Option<usize>,
    /// The kind of the task.
    pub kind: TaskKind,
    /// The version of the task: it rises when the scores of the same file change.
    pub version: u32,
    /// Where the items come from, for people.
    pub data: String,
    /// SHA-256 of the data, in hexadecimal.
    pub data_sha256: String,
    /// Examples that `--fewshot` put before every question.
    pub few_shot: u32,
    /// The seed by which the examples were drawn; `None` where nothing was drawn.
    #[serde(default)]
    pub seed: Option<u64>,
    /// SHA-256 of the file of `--fewshot-from`, in hexadecimal; `None` where the examples are the task's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub few_shot_sha256: Option<String>,
    /// Which items were evaluated.
    #[serde(flatten)]
    pub chosen: Chosen,
    /// How they were asked.
    #[serde(flatten)]
    pub asked: Asked,
    /// How answers were written, and how they ended; where the model writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writing: Option<Writing>,
    /// How answers ended.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endings: Option<Endings>,
    /// What it took.
    #[serde(flatten)]
    pub work: Work,
    /// Wall time.
    pub seconds: f64,
    /// What was odd about the model, in sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// What it took.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Requests whose context lost its beginning.
    pub truncated: u64,
    /// Items whose system message the chat template refused.
    #[serde(default)]
    pub without_system: u64,
    /// Answers that could not be judged, and count as wrong.
    #[serde(default)]
    pub unjudged: u64,
    /// The tokens of all requests; where the model writes, those of prompts and answers.
    pub tokens: u64,
    /// Less than `tokens` where requests share a prefix.
    pub computed_tokens: u64,
}

/// All that decides a task's scores beside the model and the data.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Settings {
    /// Which items are evaluated.
    pub chosen: Chosen,
    /// The examples before every question.
    pub few_shot: Option<FewShot>,
    /// How they are asked.
    pub asked: Asked,
    /// How answers are written; `None` where the model writes none.
    pub writing: Option<Writing>,
}

impl Settings {
    /// The settings of a task.
    pub fn new(task: &Task, chosen: Chosen, asking: &Asking, writing: Option<Writing>) -> Settings {
        Settings { chosen, few_shot: task.few_shot.clone(), asked: asking.asked(task.kind, task.few_shot.is_some()), writing }
    }
}

/// The options that give these settings, for people.
impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let items = match self.chosen {
            Chosen { sample: Some(n), sample_seed, .. } => format!("--sample {n} --seed {}", sample_seed.unwrap_or_default()),
            Chosen { limit: Some(n), .. } => format!("--limit {n}"),
            _ => "all items".to_owned(),
        };
        let examples = self.few_shot.as_ref().map_or("no examples".to_owned(), FewShot::words);
        let ways = self.asked.words().into_iter().chain(self.writing.iter().flat_map(Writing::words));
        let ends = self.writing.as_ref().map(|writing| format!("end tokens {:?}", writing.ends));
        write!(f, "{items} and {examples}{}", ways.chain(ends).map(|word| format!(", {word}")).collect::<String>())
    }
}

/// Which items of a task were evaluated: of each subject, where there are some.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// The first items, this many.
    pub limit: Option<usize>,
    /// Items drawn at random by `sample_seed`, this many.
    #[serde(default)]
    pub sample: Option<usize>,
    /// The seed of the draw.
    #[serde(default)]
    pub sample_seed: Option<u64>,
}

/// The primary metric on the items of one subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubjectScore {
    /// Items.
    pub n: usize,
    /// The metric; null in the file where it is infinite or not a number.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// Its 95 % interval over its items; absent in scores of earlier programs.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "finite_ends")]
    pub ci95: Option<[f64; 2]>,
}

impl TaskScores {
    /// Sums up the samples of a task; `seconds` is the wall time.
    pub fn new(task: &Task, samples: &[Sample], settings: Settings, work: Work, seconds: f64) -> TaskScores {
        let all = metrics(task.kind, samples);
        let primary = task.written.map(|spec| spec.primary).or(primary(task.kind, &task.name)).unwrap_or_default();
        let of_primary = all.iter().find(|metric| metric.name == primary);
        let design = Design::of(samples.iter().map(|sample| (sample.subject.as_deref(), sample.group.as_deref())));
        let Settings { chosen, few_shot, asked, writing } = settings;
        TaskScores {
            n: samples.len(),
            metrics: all.iter().map(|metric| (metric.name.clone(), estimate(&metric.terms, &design, metric.link))).collect(),
            primary: primary.to_owned(),
            groups: of_primary.map(|metric| subjects(metric, samples)).unwrap_or_default(),
            mean_over_subjects: of_primary.and_then(|metric| mean_over_parts(&metric.terms, &design)),
            n_groups: design.n_groups(),
            kind: task.kind,
            version: task.version,
            data: task.path.clone(),
            data_sha256: task.sha256.clone(),
            few_shot: few_shot.as_ref().map_or(0, |few_shot| few_shot.n),
            seed: few_shot.as_ref().and_then(|few_shot| few_shot.seed),
            few_shot_sha256: few_shot.and_then(|few_shot| few_shot.file_sha256),
            chosen,
            asked,
            endings: writing.is_some().then(|| Endings::of(samples)),
            writing,
            work,
            seconds,
            notes: Vec::new(),
        }
    }

    /// The settings, read back from the record.
    pub fn settings(&self) -> Settings {
        let few_shot =
            (self.few_shot > 0).then(|| FewShot { n: self.few_shot, seed: self.seed, file_sha256: self.few_shot_sha256.clone() });
        Settings { chosen: self.chosen, few_shot, asked: self.asked.clone(), writing: self.writing.clone() }
    }
}

fn subjects(metric: &Metric, samples: &[Sample]) -> BTreeMap<String, SubjectScore> {
    let mut members: BTreeMap<&str, (Vec<Term>, Vec<Option<&str>>)> = BTreeMap::new();
    for (sample, term) in samples.iter().zip(&metric.terms) {
        if let Some(subject) = &sample.subject {
            let (terms, groups) = members.entry(subject).or_default();
            terms.push(*term);
            groups.push(sample.group.as_deref());
        }
    }
    let score = |(terms, groups): &(Vec<Term>, Vec<Option<&str>>)| {
        let design = Design::of(groups.iter().map(|group| (None, *group)));
        let ci95 = estimate(terms, &design, metric.link).ci95;
        SubjectScore { n: terms.len(), value: ratio(terms, metric.link), ci95 }
    };
    members.iter().map(|(subject, members)| ((*subject).to_owned(), score(members))).collect()
}

/// Reads scores.json of an evaluation's folder.
pub fn read_scores(folder: &Path) -> Result<Scores> {
    read_existing_json(&folder.join(SCORES_FILE))
}

/// The samples of each task of an evaluation's folder.
pub fn read_samples(folder: &Path) -> Result<HashMap<String, Vec<Sample>>> {
    let mut tasks = samples::read(&folder.join(SAMPLES_FILE))?;
    let path = folder.join(ANSWERS_FILE);
    if path.exists() {
        tasks.extend(answers::read(&path)?);
    }
    Ok(tasks)
}

/// Writes them; a task is in one of the two tables.
pub fn write_samples(folder: &Path, tasks: &[(&str, &[Sample])]) -> Result<()> {
    if tasks.iter().any(|(_, samples)| samples.iter().any(|sample| !sample.draws.is_empty())) {
        answers::write(&folder.join(ANSWERS_FILE), tasks)?;
    }
    samples::write(&folder.join(SAMPLES_FILE), tasks)
}
