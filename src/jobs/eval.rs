//! An evaluation: tasks and a model -> a folder with scores.json and samples.parquet, which can be resumed and added to.
//!
//! A folder belongs to one model at one precision. Tasks that it holds already are not evaluated again, so that an interrupted
//! command goes on where it stopped, and another one adds its tasks. samples.parquet is written before scores.json: samples
//! without a score are those of a task that was cut off, and are dropped.

use std::collections::HashMap;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use crate::error::{Context, Error, Result};
use crate::eval::divergence::{self, Divergence};
use crate::eval::metrics::Sample;
use crate::eval::results::{Chosen, Identity, SCORES_FILE, Scores, TaskScores, Tasks, read_scores};
use crate::eval::samples::{self, SAMPLES_FILE};
use crate::eval::tasks::{FewShot, Task};
use crate::eval::{fewshot, named, score};
use crate::fetch::Progress;
use crate::files::write_atomically;
use crate::jobs::provenance_of;
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Model, Placement, Reference};
use crate::{provenance, random};

/// An evaluation as the user asked for it.
pub(crate) struct Job {
    /// `None`: the default model.
    pub model: Option<String>,
    /// The model that an adapter is put on, in place of the one that its config names.
    pub base: Option<String>,
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
pub(crate) struct Way {
    /// The first so many items of each task, or so many at random.
    pub limit: Option<usize>,
    pub sample: Option<usize>,
    /// Examples before every question, and the seed of their draw and of the sample's.
    pub few_shot: usize,
    pub seed: u64,
    pub dtype: Dtype,
    pub kernels: Kernels,
    pub device: Placement,
    /// Tokens that go into the model at once; also the length of the windows of a text. `None` for the usual length, or what the model
    /// takes if that is less.
    pub max_len: Option<usize>,
}

/// What an evaluation has left.
pub(crate) struct Evaluated {
    pub out: PathBuf,
    pub scores: Scores,
}

/// Evaluates the tasks that the folder does not hold yet, and writes it after each.
pub(crate) fn evaluate(job: &Job, fetching: Progress, scoring: Progress) -> Result<Evaluated> {
    let started = SystemTime::now();
    let way = &job.way;
    let mut tasks = named::load(&job.tasks, fetching)?;
    for task in &mut tasks {
        // Drawn from all items, so that neither a limit nor a sample changes a prompt.
        fewshot::apply(task, way.few_shot, way.seed)?;
        way.choose(task);
    }
    let reference = Reference::resolve_on(job.model.as_deref(), job.base.as_deref(), fetching)?;
    let max_len = reference.max_len(way.max_len)?;
    let identity = Identity {
        model: reference.name.clone(),
        model_reference: reference.written.clone(),
        model_base: reference.base.clone(),
        model_sha256: reference.sha256()?,
        dtype: way.dtype.to_string(),
        kernels: way.kernels.to_string(),
        max_len,
    };
    let provenance = provenance_of(started, Model::place(&reference, way.load_options(), max_len)?);
    let scores = Scores { provenance, command: job.command.clone(), identity, tasks: Tasks::new() };
    let out = job.out.clone().unwrap_or_else(|| scores.folder());
    let mut folder = Folder::open(&out, scores)?;
    tasks.retain(|task| !folder.holds(task, way.chosen()));
    if tasks.is_empty() {
        return Ok(Evaluated { out, scores: folder.scores });
    }
    let model = Model::load(&reference, way.load_options(), max_len)?;
    for task in &tasks {
        let began = std::time::Instant::now();
        let what = format!("Evaluating {}", task.name);
        let scored = score::score(&model, task, max_len, &mut |done, total| scoring(&what, done, total))?;
        let seconds = began.elapsed().as_secs_f64();
        let scores = TaskScores::new(task, &scored, way.chosen(), seconds);
        folder.add(&task.name, scores, scored.samples)?;
    }
    Ok(Evaluated { out, scores: folder.scores })
}

/// A model by what its user wrote.
pub(crate) struct Named {
    /// `None`: the default model.
    pub written: Option<String>,
    /// What its user wrote for the base of an adapter.
    pub base: Option<String>,
    /// What its SHA-256 was, where a folder tells.
    pub sha256: Option<String>,
}

/// How far two models are apart on general text: see `divergence.rs`.
pub(crate) fn divergence(models: [&Named; 2], way: &Way, fetching: Progress, scoring: Progress) -> Result<Divergence> {
    let find = |named: &Named| {
        let reference = Reference::resolve_on(named.written.as_deref(), named.base.as_deref(), fetching)?;
        if let Some(then) = &named.sha256
            && *then != reference.sha256()?
        {
            return Err(Error::new(format!("{} is another model now than it was then", reference.written)));
        }
        Ok(reference)
    };
    let (before, after) = (find(models[0])?, find(models[1])?);
    // Both read the same windows.
    let max_len = before.max_len(way.max_len)?.min(after.max_len(way.max_len)?);
    let load = |reference: &Reference| Model::load(reference, way.load_options(), max_len);
    divergence::measure(&load(&before)?, &load(&after)?, max_len, scoring)
}

impl Way {
    /// Leaves the items that are to be evaluated.
    fn choose(&self, task: &mut Task) {
        task.items.truncate(self.limit.unwrap_or(usize::MAX));
        if let Some(n) = self.sample {
            let drawn = random::sample(self.seed, task.items.len() as u32, u32::try_from(n).unwrap_or(u32::MAX));
            let mut number = 0;
            task.items.retain(|_| {
                number += 1;
                drawn.binary_search(&(number - 1)).is_ok()
            });
        }
    }

    /// What of it a task's scores depend on, as they state it.
    fn chosen(&self) -> Chosen {
        Chosen { limit: self.limit, sample: self.sample, sample_seed: self.sample.map(|_| self.seed) }
    }

    fn load_options(&self) -> LoadOptions {
        LoadOptions { dtype: self.dtype, kernels: self.kernels, device: self.device }
    }
}

/// An evaluation folder that is being written.
pub(crate) struct Folder {
    path: PathBuf,
    pub scores: Scores,
    samples: HashMap<String, Vec<Sample>>,
}

impl Folder {
    /// A new folder for `scores`, which hold no task yet, or one that an evaluation of the same model by the same program has left.
    pub(crate) fn open(path: &Path, scores: Scores) -> Result<Folder> {
        std::fs::create_dir_all(path).context_at(path, "cannot create the folder")?;
        let mut folder = Folder { path: path.to_owned(), scores, samples: HashMap::new() };
        if path.join(SCORES_FILE).exists() {
            let before = read_scores(path)?;
            if before.identity() != folder.scores.identity() {
                let Scores { identity: Identity { model, dtype, .. }, provenance, .. } = &before;
                let by = provenance.build();
                return Err(Error::new(format!("the folder holds the scores of another evaluation: {model}, {dtype}, by {by}"))
                    .at(path)
                    .cure(format!(
                        "Give another --out, or the same --model, --dtype, --kernels, --device and --max-len; this program is {}.",
                        provenance::build()
                    )));
            }
            folder.scores.tasks = before.tasks;
            folder.samples = samples::read(&path.join(SAMPLES_FILE))?;
        }
        Ok(folder)
    }

    /// Has this task been evaluated, on the same items?
    pub(crate) fn holds(&self, task: &Task, chosen: Chosen) -> bool {
        self.scores.tasks.get(&task.name).is_some_and(|scores| {
            let few_shot = (scores.few_shot > 0).then_some(FewShot { n: scores.few_shot, seed: scores.seed });
            (scores.version, &scores.data_sha256, scores.chosen, few_shot) == (task.version, &task.sha256, chosen, task.few_shot)
                && self.samples.get(&task.name).is_some_and(|samples| samples.len() == scores.n)
        })
    }

    /// Writes a finished task, in the place of an older one of that name.
    pub(crate) fn add(&mut self, name: &str, scores: TaskScores, samples: Vec<Sample>) -> Result<()> {
        self.scores.tasks.insert(name.to_owned(), scores);
        self.samples.insert(name.to_owned(), samples);
        let samples_of = |name: &String| self.samples.get(name).map_or(&[][..], Vec::as_slice);
        let tables: Vec<(&str, &[Sample])> = self.scores.tasks.keys().map(|name| (name.as_str(), samples_of(name))).collect();
        samples::write(&self.path.join(SAMPLES_FILE), &tables)?;
        let json = serde_json::to_string_pretty(&self.scores).context("cannot write down the scores")?;
        write_atomically(&self.path.join(SCORES_FILE), |file| writeln!(file, "{json}").context("cannot write the scores"))
    }
}
