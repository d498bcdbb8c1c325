//! Evaluates a model on tasks into a folder with scores.json, samples.parquet and answers.parquet; the folder can be resumed and extended.
//!
//! A folder belongs to one model at one precision, and each of its tasks to one choice of items, examples and settings; the default name of a folder
//! is derived from these. Tasks with scores are not evaluated again, so an interrupted command resumes where it stopped, and another command adds its
//! tasks. Only a task whose file has changed is evaluated again. The tables are written before scores.json: samples without a score belong to an
//! interrupted task and are dropped. Generated answers and servers' scores are kept one by one in a journal per task until the task is finished.
//!
//! ```text
//! source.rs       what runs the model, before it is used
//! way.rs          the settings of an evaluation
//! desk.rs         a task and the model -> samples
//! folder.rs       the evaluation folder
//! ```

mod desk;
mod folder;
mod source;
mod way;

use std::path::{Path, PathBuf};
use std::time::{Instant, SystemTime};

use serde_json::json;

use crate::engine::remote::Options;
use crate::error::{Error, Result};
use crate::eval::divergence::{self, Divergence};
use crate::eval::results::{Scores, TaskScores, Tasks};
use crate::eval::tasks::Task;
use crate::eval::{fewshot, named};
use crate::files::{hold, sha256};
use crate::jobs::journal::Journal;
use crate::jobs::provenance_of;
use crate::jobs::watch::{Watch, fetching};
use crate::jobs::work::{Work, check_free};
use crate::model::{Model, ModelName, Reference};
use desk::{Answering, Desk, notes};
use folder::Folder;
use source::Source;
use way::writes;
pub(crate) use way::{ChatWay, SEED, Way, WrittenWay};

/// An evaluation as the user requested it.
pub(crate) struct Job {
    pub model: ModelName,
    /// The servers that run the model in place of this program.
    pub servers: Option<Options>,
    /// `probe`, benchmarks, files and globs.
    pub tasks: Vec<String>,
    /// `None` means a folder under `runs/` named after the model and everything else that determines the scores.
    pub out: Option<PathBuf>,
    pub way: Way,
    /// The command line, for scores.json.
    pub command: String,
}

/// The result of an evaluation.
pub(crate) struct Outcome {
    pub out: PathBuf,
    pub scores: Scores,
    /// The names of the requested tasks; the folder may hold others.
    pub tasks: Vec<String>,
}

/// Evaluates the tasks that the folder does not hold yet, and updates it after each.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let started = SystemTime::now();
    let way = &job.way;
    let mut tasks = named::load(&job.tasks, &fetching(watch))?;
    if let Some(path) = &way.few_shot_from {
        named::examples_from(&mut tasks, path)?;
    }
    for task in &mut tasks {
        // Examples are drawn from all items, so that neither a limit nor a sample changes a prompt.
        let own = task.written.map_or(0, |spec| spec.few_shot);
        let n = way.few_shot.unwrap_or(own);
        if let (0, Some(path)) = (n, &way.few_shot_from) {
            return Err(Error::usage(format!(
                "--fewshot-from {} provides examples, but `{}` uses none",
                path.display(),
                task.name
            ))
            .cure("Set their number with --fewshot N, or leave --fewshot-from out."));
        }
        fewshot::apply(task, n, way.seed)?;
        way.choose(task);
    }
    way.check_says(&tasks)?;
    let names: Vec<String> = tasks.iter().map(|task| task.name.clone()).collect();
    let source = Source::find(&job.model, job.servers.as_ref(), way, &tasks, watch)?;
    let (reference, max_len) = (source.reference(), source.max_len());
    let asking = way.asking(reference, &tasks, max_len)?;
    let answering = writes(&tasks).then(|| Answering::of(reference, &asking, way.written.sampling)).transpose()?;
    if let Some(answering) = &answering {
        source.check_way(&answering.sampling)?;
    }
    let provenance = provenance_of(started, source.device()?, job.servers.is_some());
    let identity = source.identity(way)?;
    let scores = Scores { provenance, command: job.command.clone(), identity, server: None, tasks: Tasks::new() };
    let out = job.out.clone().unwrap_or_else(|| scores.folder(&way.settings(&asking, &tasks)));
    check_free(&out, Work::Evaluation)?;
    let _held = hold(&out)?;
    let mut folder = Folder::open(&out, scores)?;
    let writes = writes(&tasks);
    let mut open = Vec::new();
    for task in tasks {
        let settings = way.settings_of(&task, &asking, answering.as_ref());
        if let Some(writing) = &settings.writing {
            writing.room(&task.name, max_len)?;
        }
        folder.check(&task, &settings, asking.writes_date())?;
        match folder.holds(&task, &settings) {
            true => [SCORES, ANSWERS].iter().try_for_each(|what| Journal::clear(&journal_of(&out, &task, what)))?,
            false => open.push((task, settings)),
        }
    }
    let Some(author) = source.author(!open.is_empty(), writes, &out, watch)? else {
        return Ok(Outcome { out, scores: folder.scores, tasks: names });
    };
    folder.scores.server = author.checked().cloned();
    let mut all: Vec<String> = Vec::new();
    for note in open.iter().flat_map(|(task, _)| notes(task, answering.as_ref(), &asking)) {
        if !all.contains(&note) {
            all.push(note);
        }
    }
    watch.remarks(&folder.scores.identity.model, &all);
    let desk = Desk { author: &author, asking: &asking, max_len, at_once: way.written.at_once, watch };
    for (task, settings) in open {
        let began = Instant::now();
        let what = json!([folder.scores.identity(), task.name, task.version, task.sha256, settings]);
        let identity = sha256(what.to_string());
        let (samples, work, journal) = match &settings.writing {
            None => desk.scored(&task, &journal_of(&out, &task, SCORES), &identity)?,
            Some(writing) => desk.written(&task, writing, &journal_of(&out, &task, ANSWERS), &identity)?,
        };
        let scores = TaskScores::new(&task, &samples, settings, work, began.elapsed().as_secs_f64());
        folder.add(&task.name, TaskScores { notes: notes(&task, answering.as_ref(), &asking), ..scores }, samples)?;
        journal.map_or(Ok(()), Journal::remove)?;
    }
    Ok(Outcome { out, scores: folder.scores, tasks: names })
}

/// What the journal of an unfinished task holds: servers' scores, or generated answers.
const SCORES: &str = "scores";
const ANSWERS: &str = "answers";

/// The path of a task's journal, which holds scores or answers until the task is finished.
fn journal_of(out: &Path, task: &Task, what: &str) -> PathBuf {
    out.join(format!("{what}.{}.part.jsonl", task.name))
}

/// A model that can be loaded again.
pub(crate) struct KnownModel {
    pub name: ModelName,
    /// The SHA-256 that it had according to its folder, if known.
    pub sha256: Option<String>,
}

/// Measures the divergence between two models on general text: see `divergence.rs`.
pub(crate) fn divergence(models: [&KnownModel; 2], way: &Way, watch: &dyn Watch) -> Result<Divergence> {
    let find = |known: &KnownModel| {
        let reference = Reference::resolve_named(&known.name, &fetching(watch))?;
        if let Some(then) = &known.sha256
            && *then != reference.sha256()?
        {
            return Err(Error::new(format!("{} is not the model that it was when the folder was made", reference.written))
                .cure("Evaluate it again, or compare the folders without --kl."));
        }
        Ok(reference)
    };
    let (before, after) = (find(models[0])?, find(models[1])?);
    // Both models read the same windows.
    let max_len = before.max_len(way.max_len)?.min(after.max_len(way.max_len)?);
    let load = |reference: &Reference| Model::load(reference, way.load, max_len);
    divergence::measure(&load(&before)?, &load(&after)?, max_len, &|what, done, total| watch.tokens(what, done, total))
}
