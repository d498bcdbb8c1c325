//! scores.json: the results of an evaluation, with everything that determines them.

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
use crate::provenance::{Provenance, SCORES_FILE};
use crate::stats::{Design, Estimate, Term, estimate, mean_over_parts, ratio};

/// The contents of scores.json.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Scores {
    /// What produced the scores: the process of the command that last wrote the file.
    #[serde(flatten)]
    pub provenance: Provenance,
    /// The command that last wrote the file.
    pub command: String,
    /// Which model was evaluated, and how.
    #[serde(flatten)]
    pub identity: Identity,
    /// The servers that ran the model, if this program did not, and the results of checking them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub server: Option<Checked>,
    /// The scores of each task.
    pub tasks: Tasks,
}

/// The scores of the tasks by name.
pub type Tasks = BTreeMap<String, TaskScores>;

impl Scores {
    /// The engine that ran the model, for messages: evaluations of one model may differ between engines.
    pub fn engine(&self) -> String {
        match &self.server {
            Some(server) => format!("{} (a server)", server.program()),
            None => format!("this program in {}", self.identity.dtype),
        }
    }

    /// SHA-256 over what determines the numbers besides the task: scores with equal identities are equal. The name and the path
    /// of the model do not count.
    pub fn identity(&self) -> String {
        let Identity { model: _, model_reference: _, model_base: _, model_sha256, dtype, kernels, max_len } = &self.identity;
        let Provenance { device, kernel_level, .. } = &self.provenance;
        // Other instruction sets round sums differently.
        let level = kernel_level.as_deref().unwrap_or_default();
        sha256(format!("{} {device} {level} {model_sha256} {dtype} {kernels} {max_len}", self.provenance.build()))
    }

    /// The default folder of an evaluation; `settings` describe the items and examples if they are not the default (all items, no
    /// examples).
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
    /// The value of --model.
    pub model_reference: String,
    /// The value of --base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub model_base: Option<String>,
    pub model_sha256: String,
    /// The precision of the matrix products.
    pub dtype: String,
    /// The implementation of the operations.
    pub kernels: String,
    /// The maximum number of input tokens.
    pub max_len: usize,
}

/// The scores of a task, and how it was asked.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskScores {
    /// The number of items, or of windows for a text.
    pub n: usize,
    /// The metrics by name.
    pub metrics: BTreeMap<String, Estimate>,
    /// The name of the primary metric.
    pub primary: String,
    /// The primary metric of each subject.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, SubjectScore>,
    /// The primary metric with equal weights for all subjects, whereas `metrics` weights all items equally; only for accuracies.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_over_subjects: Option<Estimate>,
    /// The number of groups of items that were drawn together, if there are any: `metrics` takes them into account.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_groups: Option<usize>,
    /// The kind of the task.
    pub kind: TaskKind,
    /// The version of the task, which is increased when the scores of the same file change.
    pub version: u32,
    /// The origin of the items, for messages.
    pub data: String,
    /// SHA-256 of the data, in hexadecimal.
    pub data_sha256: String,
    /// How the task was evaluated.
    #[serde(flatten)]
    pub settings: Settings,
    /// How answers ended, if the model writes.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub endings: Option<Endings>,
    /// The amount of work, and what went wrong.
    #[serde(flatten)]
    pub work: Work,
    /// Wall-clock time in seconds.
    pub seconds: f64,
    /// Peculiarities of the model, as sentences.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub notes: Vec<String>,
}

/// The amount of work for a task, and what went wrong.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Work {
    /// Requests whose context was truncated at its beginning.
    pub truncated: u64,
    /// Items whose system message the chat template rejected.
    #[serde(default)]
    pub without_system: u64,
    /// Answers that could not be judged and count as wrong.
    #[serde(default)]
    pub unjudged: u64,
    /// The tokens of all requests, or of prompts and answers if the model writes.
    pub tokens: u64,
    /// The tokens actually computed: fewer than `tokens` if requests share a prefix.
    pub computed_tokens: u64,
}

/// Everything that determines a task's scores besides the model and the data.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Settings {
    /// The examples before every question.
    #[serde(flatten)]
    pub few_shot: FewShot,
    /// Which items are evaluated.
    #[serde(flatten)]
    pub chosen: Chosen,
    /// How the questions are asked.
    #[serde(flatten)]
    pub asked: Asked,
    /// How answers are generated; `None` if the model writes none.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub writing: Option<Writing>,
}

impl Settings {
    /// The settings of a task.
    pub fn new(task: &Task, chosen: Chosen, asking: &Asking, writing: Option<Writing>) -> Settings {
        Settings { few_shot: task.few_shot.clone(), chosen, asked: asking.asked(task.kind, task.few_shot.n > 0), writing }
    }

    /// How the questions are asked and the answers generated, in words.
    pub fn ways(&self) -> Vec<String> {
        self.asked.words().into_iter().chain(self.writing.iter().flat_map(Writing::words)).collect()
    }
}

/// Formats the options that give these settings.
impl std::fmt::Display for Settings {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        let items = match self.chosen {
            Chosen { sample: Some(n), sample_seed, .. } => format!("--sample {n} --seed {}", sample_seed.unwrap_or_default()),
            Chosen { limit: Some(n), .. } => format!("--limit {n}"),
            _ => "all items".to_owned(),
        };
        let examples = self.few_shot.words();
        let ends = self.writing.as_ref().map(|writing| format!("end tokens {:?}", writing.ends));
        let ways = self.ways().into_iter().chain(ends);
        write!(f, "{items} and {examples}{}", ways.map(|way| format!(", {way}")).collect::<String>())
    }
}

/// Which items of a task were evaluated; applies to each subject, if there are any.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Chosen {
    /// Only the first items, this many.
    pub limit: Option<usize>,
    /// This many items, drawn at random by `sample_seed`.
    #[serde(default)]
    pub sample: Option<usize>,
    /// The seed of the draw.
    #[serde(default)]
    pub sample_seed: Option<u64>,
}

/// The primary metric on the items of one subject.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct SubjectScore {
    /// The number of items.
    pub n: usize,
    /// The metric; null in the file if it is infinite or NaN.
    #[serde(deserialize_with = "null_is_nan")]
    pub value: f64,
    /// The 95 % interval over the subject's items; absent in files of earlier versions.
    #[serde(default, skip_serializing_if = "Option::is_none", deserialize_with = "finite_ends")]
    pub ci95: Option<[f64; 2]>,
}

impl TaskScores {
    /// Summarises the samples of a task; `seconds` is the wall-clock time.
    pub fn new(task: &Task, samples: &[Sample], settings: Settings, work: Work, seconds: f64) -> TaskScores {
        let all = metrics(task.kind, samples);
        let primary = task.written.map(|spec| spec.primary).or(primary(task.kind, &task.name)).unwrap_or_default();
        let of_primary = all.iter().find(|metric| metric.name == primary);
        let design = Design::of(samples.iter().map(|sample| (sample.subject.as_deref(), sample.group.as_deref())));
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
            endings: settings.writing.is_some().then(|| Endings::of(samples)),
            settings,
            work,
            seconds,
            notes: Vec::new(),
        }
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

/// Reads scores.json from the folder of an evaluation.
pub fn read_scores(folder: &Path) -> Result<Scores> {
    read_existing_json(&folder.join(SCORES_FILE))
}

/// Reads the samples of each task from the folder of an evaluation.
pub fn read_samples(folder: &Path) -> Result<HashMap<String, Vec<Sample>>> {
    let mut tasks = samples::read(&folder.join(SAMPLES_FILE))?;
    let path = folder.join(ANSWERS_FILE);
    if path.exists() {
        tasks.extend(answers::read(&path)?);
    }
    Ok(tasks)
}

/// Writes the samples; each task goes into one of the two tables.
pub fn write_samples(folder: &Path, tasks: &[(&str, &[Sample])]) -> Result<()> {
    if tasks.iter().any(|(_, samples)| samples.iter().any(|sample| !sample.draws.is_empty())) {
        answers::write(&folder.join(ANSWERS_FILE), tasks)?;
    }
    samples::write(&folder.join(SAMPLES_FILE), tasks)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn scores_keep_their_bytes_and_those_of_an_older_program_are_read() {
        let written = json!({
            "n": 2, "metrics": {}, "primary": "exact_match", "kind": "written", "version": 1, "data": "a.jsonl", "data_sha256": "03",
            "few_shot": 5, "seed": null, "few_shot_sha256": "87", "limit": null, "sample": 2, "sample_seed": 1234, "system": "Be brief.",
            "chat": { "template_sha256": "b1", "multiturn": true },
            "writing": {
                "max_new_tokens": 16, "sampling": { "temperature": 0.5, "top_k": 5, "top_p": 0.9, "min_p": null }, "stops": ["Q:"], "repeats": 3,
                "seed": 1234, "ends": [2]
            },
            "endings": { "end_token": 1, "stop": 1, "length": 0 },
            "truncated": 0, "without_system": 0, "unjudged": 0, "tokens": 10, "computed_tokens": 8, "seconds": 1.5
        });
        let scores: TaskScores = serde_json::from_str(&written.to_string()).unwrap();
        assert_eq!(serde_json::to_string(&scores).unwrap(), written.to_string());
        let mut older = written;
        ["seed", "few_shot_sha256", "sample", "sample_seed", "writing"]
            .iter()
            .for_each(|key| drop(older.as_object_mut().unwrap().remove(*key)));
        older["few_shot"] = 0.into();
        let scores: TaskScores = serde_json::from_value(older).unwrap();
        assert_eq!((scores.settings.few_shot, scores.settings.chosen), (FewShot::default(), Chosen::default()));
    }
}
