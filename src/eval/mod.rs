//! General-capability scores of a model, and what changed between two.
//!
//! ```text
//! tasks.rs      files -> items that ask for the log-likelihood of continuations; benchmarks/ by name
//! fewshot.rs    answered examples before the items
//! requests.rs   items -> token sequences, cut where lm-evaluation-harness cuts
//! score.rs      sequences -> engine -> log-likelihoods
//! metrics.rs    log-likelihoods -> metrics, as sums over items
//! stats.rs      how sure a score and a difference of two scores are
//! samples.rs    samples.parquet
//! results.rs    scores.json; a folder that can be resumed and added to
//! compare.rs    two evaluations of the same items -> paired differences
//! harness.rs    the sample files of lm-evaluation-harness as one side of that
//! divergence.rs  two models on the same text -> how far apart they are
//! retention.rs  a model before and runs from it -> gains on the target, losses in general
//! movement.rs   two scorings of the same tokens -> how they moved between the quadrants
//! ```
//!
//! Left out: generation.

pub mod benchmarks;
pub mod compare;
pub mod divergence;
pub mod fewshot;
pub mod harness;
pub mod metrics;
pub mod requests;
pub mod results;
pub mod retention;
pub mod samples;
pub mod score;
pub mod tasks;

use std::path::PathBuf;

use crate::error::{Error, Result};
use crate::fetch::Progress;
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Model, Placement, Reference};
use divergence::Divergence;
use results::{Folder, Identity, Scores, TaskScores};

/// An evaluation as the user asked for it.
pub struct Job {
    /// `None`: the default model.
    pub model: Option<String>,
    /// `probe`, benchmarks, files, globs.
    pub tasks: Vec<String>,
    /// `None`: a folder under `runs/` named after the model and what else decides the scores.
    pub out: Option<PathBuf>,
    pub way: Way,
    /// The command line, for scores.json.
    pub command: String,
}

/// How a model is asked.
#[derive(Debug, Clone, Copy)]
pub struct Way {
    /// The first so many items of each task.
    pub limit: Option<usize>,
    /// Examples before every question, and the seed of their draw.
    pub few_shot: usize,
    pub seed: u64,
    pub dtype: Dtype,
    pub kernels: Kernels,
    pub device: Placement,
    /// Tokens that go into the model at once; also the length of the windows of a text.
    pub max_len: usize,
}

/// What an evaluation has left.
pub struct Evaluated {
    pub out: PathBuf,
    pub scores: Scores,
}

/// Evaluates the tasks that the folder does not hold yet, and writes it after each.
pub fn evaluate(job: &Job, fetching: Progress, scoring: Progress) -> Result<Evaluated> {
    let way = &job.way;
    let mut tasks = tasks::load(&job.tasks, fetching)?;
    for task in &mut tasks {
        // Drawn from all items, so that a limit changes no prompt.
        fewshot::apply(task, way.few_shot, way.seed)?;
        task.items.truncate(way.limit.unwrap_or(usize::MAX));
    }
    let reference = Reference::resolve(job.model.as_deref(), fetching)?;
    let identity = Identity {
        model: reference.name.clone(),
        model_reference: reference.written.clone(),
        model_sha256: reference.sha256()?,
        dtype: way.dtype.to_string(),
        kernels: way.kernels.to_string(),
        device: way.device.to_string(),
        max_len: way.max_len,
    };
    let out = job.out.clone().unwrap_or_else(|| identity.folder());
    let mut folder = Folder::open(&out, identity, &job.command)?;
    tasks.retain(|task| !folder.holds(task, way.limit));
    if tasks.is_empty() {
        return Ok(Evaluated { out, scores: folder.scores });
    }
    let model = Model::load(&reference, way.load_options(), way.max_len)?;
    for task in &tasks {
        let began = std::time::Instant::now();
        let what = format!("Evaluating {}", task.name);
        let scored = score::score(&model, task, way.max_len, &mut |done, total| scoring(&what, done, total))?;
        let seconds = began.elapsed().as_secs_f64();
        let scores = TaskScores::new(task, &scored, way.limit, seconds);
        folder.add(&task.name, scores, scored.samples)?;
    }
    Ok(Evaluated { out, scores: folder.scores })
}

/// A model by what its user wrote.
pub struct Named {
    /// `None`: the default model.
    pub written: Option<String>,
    /// What its SHA-256 was, where a folder tells.
    pub sha256: Option<String>,
}

/// How far two models are apart on general text: see `divergence.rs`.
pub fn divergence(models: [&Named; 2], way: &Way, fetching: Progress, scoring: Progress) -> Result<Divergence> {
    let load = |named: &Named| {
        let reference = Reference::resolve(named.written.as_deref(), fetching)?;
        if let Some(then) = &named.sha256
            && *then != reference.sha256()?
        {
            return Err(Error::new(format!("{} is another model now than it was then", reference.written)));
        }
        Model::load(&reference, way.load_options(), way.max_len)
    };
    let [before, after] = models;
    divergence::measure(&load(before)?, &load(after)?, way.max_len, scoring)
}

impl Way {
    fn load_options(&self) -> LoadOptions {
        LoadOptions { dtype: self.dtype, kernels: self.kernels, device: self.device }
    }
}
