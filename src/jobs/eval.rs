//! An evaluation: tasks and a model -> a folder with scores.json and samples.parquet, which can be resumed and added to.
//!
//! A folder belongs to one model at one precision, and each of its tasks to one choice of items and examples; a folder that nobody named
//! is named after these, too. Tasks that it holds already are not evaluated again, so that an interrupted command goes on where it
//! stopped, and another one adds its tasks. Only a task whose file has changed is evaluated anew in its place. samples.parquet is written before scores.json: samples
//! without a score are those of a task that was cut off, and are dropped.

use std::collections::{BTreeMap, HashMap};
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
use crate::files::write_atomically;
use crate::jobs::provenance_of;
use crate::jobs::watch::{Watch, fetching};
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
    /// The first so many items of each task, or so many at random; of each subject, where a task has some.
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
pub(crate) struct Outcome {
    pub out: PathBuf,
    pub scores: Scores,
}

/// Evaluates the tasks that the folder does not hold yet, and writes it after each.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Outcome> {
    let started = SystemTime::now();
    let way = &job.way;
    let mut tasks = named::load(&job.tasks, &fetching(watch))?;
    for task in &mut tasks {
        // Drawn from all items, so that neither a limit nor a sample changes a prompt.
        fewshot::apply(task, way.few_shot, way.seed)?;
        way.choose(task);
    }
    let reference = Reference::resolve_on(job.model.as_deref(), job.base.as_deref(), &fetching(watch))?;
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
    let out = job.out.clone().unwrap_or_else(|| scores.folder(&way.settings()));
    let mut folder = Folder::open(&out, scores)?;
    tasks.iter().try_for_each(|task| folder.check(task, way.chosen()))?;
    tasks.retain(|task| !folder.holds(task, way.chosen()));
    if tasks.is_empty() {
        return Ok(Outcome { out, scores: folder.scores });
    }
    let model = Model::load(&reference, way.load_options(), max_len)?;
    for task in &tasks {
        let began = std::time::Instant::now();
        let what = format!("Evaluating {}", task.name);
        let scored = score::score(&model, task, max_len, &mut |done, total| watch.tokens(&what, done, total))?;
        let seconds = began.elapsed().as_secs_f64();
        let scores = TaskScores::new(task, &scored, way.chosen(), seconds);
        folder.add(&task.name, scores, scored.samples)?;
    }
    Ok(Outcome { out, scores: folder.scores })
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
pub(crate) fn divergence(models: [&Named; 2], way: &Way, watch: &dyn Watch) -> Result<Divergence> {
    let find = |named: &Named| {
        let reference = Reference::resolve_on(named.written.as_deref(), named.base.as_deref(), &fetching(watch))?;
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
    divergence::measure(&load(&before)?, &load(&after)?, max_len, &|what, done, total| watch.tokens(what, done, total))
}

impl Way {
    /// Leaves the items that are to be evaluated.
    fn choose(&self, task: &mut Task) {
        let mut subjects: BTreeMap<Option<&str>, Vec<usize>> = BTreeMap::new();
        for (idx, item) in task.items.iter().enumerate() {
            subjects.entry(item.subject.as_deref()).or_default().push(idx);
        }
        let mut kept = vec![false; task.items.len()];
        for (subject, items) in subjects {
            let limited = items.len().min(self.limit.unwrap_or(usize::MAX)) as u32;
            let drawn = match self.sample {
                Some(n) => {
                    let seed = subject.map_or(self.seed, |subject| self.seed ^ random::own_seed(subject));
                    random::sample(seed, limited, u32::try_from(n).unwrap_or(u32::MAX))
                }
                None => (0..limited).collect(),
            };
            drawn.into_iter().for_each(|idx| kept[items[idx as usize]] = true);
        }
        let mut kept = kept.into_iter();
        task.items.retain(|_| kept.next() == Some(true));
    }

    /// What of it a task's scores depend on, as they state it.
    fn chosen(&self) -> Chosen {
        Chosen { limit: self.limit, sample: self.sample, sample_seed: self.sample.map(|_| self.seed) }
    }

    /// Empty for all items without examples.
    fn settings(&self) -> String {
        let option = |name: &str, n: Option<usize>| n.map(|n| format!("{name} {n}"));
        let examples = (self.few_shot > 0).then_some(self.few_shot);
        let drawn = self.sample.or(examples).map(|_| self.seed as usize);
        let options =
            [option("limit", self.limit), option("sample", self.sample), option("fewshot", examples), option("seed", drawn)];
        options.into_iter().flatten().collect::<Vec<_>>().join(" ")
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

    /// An error if the folder holds the task with other items or examples, which two sets of scores under one name would hide.
    fn check(&self, task: &Task, chosen: Chosen) -> Result<()> {
        let Some(scores) = self.scores.tasks.get(&task.name) else { return Ok(()) };
        let (was, is) = (scores.settings(), TaskScores::settings_of(chosen, task.few_shot));
        if was == is {
            return Ok(());
        }
        Err(Error::new(format!("the folder holds the scores of `{}` with {was}; asked for is {is}", task.name))
            .at(&self.path)
            .cure("Give another --out, or leave it out: the folder is then named after these settings, too."))
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::parse;

    fn way(limit: Option<usize>, sample: Option<usize>, seed: u64) -> Way {
        Way {
            limit,
            sample,
            few_shot: 0,
            seed,
            dtype: Dtype::F32,
            kernels: Kernels::Fused,
            device: Placement::Cpu,
            max_len: Some(16),
        }
    }

    #[test]
    fn a_limit_and_a_sample_are_of_each_subject() {
        let row = |i: usize| {
            let subject = ["law", "logic", "virology"][i % 3];
            format!(
                "{{\"id\":{i},\"context\":\"c\",\"choices\":[\"a\",\"b\"],\"answer\":0,\"subject\":\"{subject}\",\"group\":{}}}\n",
                i / 2
            )
        };
        // 20 of law, 20 of logic, 2 of virology.
        let rows: String = (0..60).filter(|i| i % 3 < 2 || *i < 6).map(row).collect();
        let chosen = |way: Way| -> Vec<String> {
            let mut task = parse("t", "t.jsonl", rows.as_bytes()).unwrap();
            way.choose(&mut task);
            task.items.into_iter().map(|item| item.id).collect()
        };
        assert_eq!(chosen(way(Some(3), None, 1)), ["0", "1", "2", "3", "4", "5", "6", "7"]);
        let sampled = chosen(way(None, Some(5), 1));
        let of = |subject: usize| sampled.iter().filter(|id| id.parse::<usize>().unwrap() % 3 == subject).collect::<Vec<_>>();
        assert_eq!((of(0).len(), of(1).len(), of(2).len()), (5, 5, 2));
        // Subjects have draws of their own, and seeds, too.
        let places = |subject| of(subject).iter().map(|id| id.parse::<usize>().unwrap() / 3).collect::<Vec<_>>();
        assert_ne!(places(0), places(1));
        assert_eq!(sampled, chosen(way(None, Some(5), 1)));
        assert_ne!(sampled, chosen(way(None, Some(5), 2)));
        let groups = parse("t", "t.jsonl", rows.as_bytes()).unwrap().items;
        assert_eq!((groups[3].group.as_deref(), groups[3].subject.as_deref()), (Some("1"), Some("law")));
    }
}
