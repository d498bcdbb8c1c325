//! An evaluation: tasks and a model -> a folder with scores.json, samples.parquet and answers.parquet, which can be resumed and added to.
//!
//! A folder belongs to one model at one precision, and each of its tasks to one choice of items and examples and one way of asking; a folder
//! that nobody named is named after these, too. Tasks that it holds already are not evaluated again, so that an interrupted command goes on
//! where it stopped, and another one adds its tasks. Only a task whose file has changed is evaluated anew in its place. The tables are
//! written before scores.json: samples without a score are those of a task that was cut off, and are dropped. Answers, and what servers say of
//! continuations, are kept one by one in a journal of their task until it is finished.
//!
//! ```text
//! found.rs        the model, before anything is asked of it
//! way.rs          how it is asked
//! desk.rs         a task and the model -> samples
//! folder.rs       what is there, what fits to it, and what is added
//! ```

mod desk;
mod folder;
mod found;
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
use crate::model::{Model, ModelName, Reference};
use desk::{Answering, Desk, notes};
use folder::Folder;
use found::FoundModel;
use way::writes;
pub(crate) use way::{ChatWay, SEED, Way, WrittenWay};

/// An evaluation as the user asked for it.
pub(crate) struct Job {
    pub model: ModelName,
    /// The servers that run the model in place of this program.
    pub servers: Option<Options>,
    /// `probe`, benchmarks, files, globs.
    pub tasks: Vec<String>,
    /// `None`: a folder under `runs/` named after the model and what else decides the scores.
    pub out: Option<PathBuf>,
    pub way: Way,
    /// The command line, for scores.json.
    pub command: String,
}

/// What an evaluation has left.
pub(crate) struct Outcome {
    pub out: PathBuf,
    pub scores: Scores,
    /// The names of the tasks that were asked for; the folder may hold others.
    pub tasks: Vec<String>,
}

/// Evaluates the tasks that the folder does not hold yet, and writes it after each.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let started = SystemTime::now();
    let way = &job.way;
    let mut tasks = named::load(&job.tasks, &fetching(watch))?;
    if let Some(path) = &way.few_shot_from {
        named::examples_from(&mut tasks, path)?;
    }
    for task in &mut tasks {
        // Drawn from all items, so that neither a limit nor a sample changes a prompt.
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
    let found = FoundModel::find(&job.model, job.servers.as_ref(), way, &tasks, watch)?;
    let (reference, max_len) = (found.reference(), found.max_len());
    let asking = way.asking(reference, &tasks, max_len)?;
    let answering = writes(&tasks).then(|| Answering::of(reference, &asking, way.written.sampling)).transpose()?;
    if let Some(answering) = &answering {
        found.check_way(&answering.sampling)?;
    }
    let provenance = provenance_of(started, found.device()?, job.servers.is_some());
    let identity = found.identity(way)?;
    let scores = Scores { provenance, command: job.command.clone(), identity, server: None, tasks: Tasks::new() };
    let out = job.out.clone().unwrap_or_else(|| scores.folder(&way.settings(&asking, &tasks)));
    let _held = hold(&out)?;
    let mut folder = Folder::open(&out, scores)?;
    let writes = writes(&tasks);
    let mut open = Vec::new();
    for task in tasks {
        let settings = way.settings_of(&task, &asking, answering.as_ref());
        if let Some(writing) = &settings.writing {
            writing.room(&task.name, max_len)?;
        }
        folder.check(&task, &settings)?;
        match folder.holds(&task, &settings) {
            true => [SCORES, ANSWERS].iter().try_for_each(|what| Journal::clear(&journal_of(&out, &task, what)))?,
            false => open.push((task, settings)),
        }
    }
    let Some(author) = found.author(!open.is_empty(), writes, &out, watch)? else {
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

/// What is collected of a task until all of it is there: of servers' scores, of written answers.
const SCORES: &str = "scores";
const ANSWERS: &str = "answers";

/// The journal of a task, which holds what was said or written until the task is done.
fn journal_of(out: &Path, task: &Task, what: &str) -> PathBuf {
    out.join(format!("{what}.{}.part.jsonl", task.name))
}

/// A model that can be loaded once more.
pub(crate) struct KnownModel {
    pub name: ModelName,
    /// What its SHA-256 was, where a folder tells.
    pub sha256: Option<String>,
}

/// How far two models are apart on general text: see `divergence.rs`.
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
    // Both read the same windows.
    let max_len = before.max_len(way.max_len)?.min(after.max_len(way.max_len)?);
    let load = |reference: &Reference| Model::load(reference, way.load, max_len);
    divergence::measure(&load(&before)?, &load(&after)?, max_len, &|what, done, total| watch.tokens(what, done, total))
}
