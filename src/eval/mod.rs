//! General-capability scores of a model, and what changed between two.
//!
//! ```text
//! tasks.rs      files -> items that ask for the log-likelihood of continuations
//! requests.rs   items -> token sequences, cut where lm-evaluation-harness cuts
//! score.rs      sequences -> engine -> log-likelihoods
//! metrics.rs    log-likelihoods -> metrics, as sums over items
//! stats.rs      how sure a score and a difference of two scores are
//! samples.rs    samples.parquet
//! results.rs    scores.json; a folder that can be resumed and added to
//! compare.rs    two evaluations of the same items -> paired differences
//! harness.rs    the sample files of lm-evaluation-harness as one side of that
//! movement.rs   two scorings of the same tokens -> how they moved between the quadrants
//! ```
//!
//! Left out: generation, and fetching benchmarks by name.

pub mod compare;
pub mod harness;
pub mod metrics;
pub mod movement;
pub mod requests;
pub mod results;
pub mod samples;
pub mod score;
pub mod stats;
pub mod tasks;

use std::path::PathBuf;

use crate::error::Result;
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Model, Placement, Reference};
use results::{Folder, Identity, TaskScores};

/// An evaluation as the user asked for it.
pub struct Job {
    /// `None`: the default model.
    pub model: Option<String>,
    /// `probe`, files, globs.
    pub tasks: Vec<String>,
    pub out: PathBuf,
    /// The first so many items of each task.
    pub limit: Option<usize>,
    pub dtype: Dtype,
    pub kernels: Kernels,
    /// Tokens that go into the model at once; also the length of the windows of a text.
    pub max_len: usize,
    /// The command line, for scores.json.
    pub command: String,
}

/// Told what is being done, how far it is, of how much.
pub type Progress<'a> = &'a dyn Fn(&str, u64, u64);

/// Evaluates the tasks that the folder does not hold yet, and writes it after each.
pub fn evaluate(job: &Job, fetching: Progress, scoring: Progress) -> Result<results::Scores> {
    let mut tasks = tasks::load(&job.tasks)?;
    for task in &mut tasks {
        task.items.truncate(job.limit.unwrap_or(usize::MAX));
    }
    let reference = Reference::resolve(job.model.as_deref(), fetching)?;
    let options = LoadOptions { dtype: job.dtype, kernels: job.kernels, device: Placement::Cpu };
    let identity = Identity {
        model: reference.name.clone(),
        model_reference: reference.written.clone(),
        model_sha256: reference.sha256()?,
        dtype: job.dtype.to_string(),
        kernels: job.kernels.to_string(),
        max_len: job.max_len,
    };
    let mut folder = Folder::open(&job.out, identity, &job.command)?;
    tasks.retain(|task| !folder.holds(task, job.limit));
    if tasks.is_empty() {
        return Ok(folder.scores);
    }
    let model = Model::load(&reference, options, job.max_len)?;
    for task in &tasks {
        let began = std::time::Instant::now();
        let what = format!("Evaluating {}", task.name);
        let scored = score::score(&model, task, job.max_len, &mut |done, total| scoring(&what, done, total))?;
        let seconds = began.elapsed().as_secs_f64();
        let scores = TaskScores::new(task, &scored, job.limit, seconds);
        folder.add(&task.name, scores, scored.samples)?;
    }
    Ok(folder.scores)
}
