//! An evaluation: tasks and a model -> a folder with scores.json and samples.parquet, which can be resumed and added to.
//!
//! A folder belongs to one model at one precision. Tasks that it holds already are not evaluated again, so that an interrupted
//! command goes on where it stopped, and another one adds its tasks. samples.parquet is written before scores.json: samples
//! without a score are those of a task that was cut off, and are dropped.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::eval::divergence::{self, Divergence};
use crate::eval::metrics::Sample;
use crate::eval::results::{Identity, SCORES_FILE, Scores, TaskScores, Tasks, read_scores};
use crate::eval::samples::{self, SAMPLES_FILE};
use crate::eval::tasks::{FewShot, Task};
use crate::eval::{fewshot, named, score};
use crate::fetch::Progress;
use crate::files::write_atomically;
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Model, Placement, Reference};

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
    let mut tasks = named::load(&job.tasks, fetching)?;
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
        device: Model::place(&reference, way.load_options(), way.max_len)?.to_string(),
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

/// An evaluation folder that is being written.
pub struct Folder {
    path: PathBuf,
    pub scores: Scores,
    samples: HashMap<String, Vec<Sample>>,
}

impl Folder {
    /// A new folder, or one that an evaluation of the same model has left.
    pub fn open(path: &Path, identity: Identity, command: &str) -> Result<Folder> {
        std::fs::create_dir_all(path).context_at(path, "cannot create the folder")?;
        let mut folder = Folder {
            path: path.to_owned(),
            scores: Scores {
                program: env!("CARGO_PKG_NAME").to_owned(),
                version: env!("CARGO_PKG_VERSION").to_owned(),
                command: command.to_owned(),
                identity,
                tasks: Tasks::new(),
            },
            samples: HashMap::new(),
        };
        if path.join(SCORES_FILE).exists() {
            let before = read_scores(path)?;
            if (&before.identity, &before.version) != (&folder.scores.identity, &folder.scores.version) {
                let Identity { model, dtype, .. } = &before.identity;
                return Err(Error::new(format!("the folder holds the scores of another evaluation: {model}, {dtype}"))
                    .at(path)
                    .cure("Give another --out, or the same --model, --dtype, --kernels, --device and --max-len."));
            }
            folder.scores.tasks = before.tasks;
            folder.samples = samples::read(&path.join(SAMPLES_FILE))?;
        }
        Ok(folder)
    }

    /// Has this task been evaluated, on the same items?
    pub fn holds(&self, task: &Task, limit: Option<usize>) -> bool {
        self.scores.tasks.get(&task.name).is_some_and(|scores| {
            let few_shot = (scores.few_shot > 0).then_some(FewShot { n: scores.few_shot, seed: scores.seed });
            (scores.version, &scores.data_sha256, scores.limit, few_shot) == (task.version, &task.sha256, limit, task.few_shot)
                && self.samples.get(&task.name).is_some_and(|samples| samples.len() == scores.n)
        })
    }

    /// Writes a finished task, in the place of an older one of that name.
    pub fn add(&mut self, name: &str, scores: TaskScores, samples: Vec<Sample>) -> Result<()> {
        self.scores.tasks.insert(name.to_owned(), scores);
        self.samples.insert(name.to_owned(), samples);
        let samples_of = |name: &String| self.samples.get(name).map_or(&[][..], Vec::as_slice);
        let tables: Vec<(&str, &[Sample])> = self.scores.tasks.keys().map(|name| (name.as_str(), samples_of(name))).collect();
        samples::write(&self.path.join(SAMPLES_FILE), &tables)?;
        let json = serde_json::to_string_pretty(&self.scores).context("cannot write down the scores")?;
        write_atomically(&self.path.join(SCORES_FILE), |file| writeln!(file, "{json}").context("cannot write the scores"))
    }
}
