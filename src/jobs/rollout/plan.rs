//! Plans a rollout: opens and checks everything, renders the prompts and computes an identity that equal commands share.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::SystemTime;

use rayon::prelude::*;
use serde_json::json;

use super::record::LeftOut;
use crate::dataset::{Choice, Chosen, DataFile, Dataset, ReadOptions, Record};
use crate::engine::generate::Sampling;
use crate::engine::remote::Options;
use crate::error::{Context, Error, Result};
use crate::files::sha256;
use crate::format::counted;
use crate::jobs::author::Author;
use crate::jobs::found::FoundModel;
use crate::jobs::identity_of_files;
use crate::jobs::served::{AS_SERVED, Beyond, Opened};
use crate::jobs::watch::Watch;
use crate::kernels::Dtype;
use crate::kernels::level::Level;
use crate::model::{GenerationConfig, Info, LoadOptions, Model, ModelName, Placement, Purpose};
use crate::provenance;
use crate::tokens::{RenderOptions, Renderer, Tokenizer, refused_strictly};

/// A rollout as the user requested it.
pub(crate) struct Job {
    /// Files, globs, or `-` for standard input.
    pub inputs: Vec<String>,
    pub read: ReadOptions,
    pub model: ModelName,
    /// The servers that run the model in place of this program.
    pub servers: Option<Options>,
    /// `None`: a folder under `runs/` named after the identity.
    pub out: Option<PathBuf>,
    /// How this program runs the model.
    pub load: LoadOptions,
    pub render: RenderOptions,
    /// Replaces the limit in `render`; `None` for the usual length, or less if the model takes less.
    pub max_len: Option<usize>,
    pub choice: Choice,
    /// The number of answers to each prompt.
    pub n: u32,
    pub max_new_tokens: usize,
    pub sampling: Sampling,
    pub stops: Vec<String>,
    /// The number of answers generated concurrently.
    pub at_once: usize,
    pub seed: u64,
    /// The command line, for run.json.
    pub command: String,
}

/// A job after everything is opened and checked.
pub(super) struct Plan {
    pub dataset: Dataset,
    pub chosen: Chosen,
    pub info: Info,
    pub tokenizer: Arc<Tokenizer>,
    /// The precision of the matrix products.
    pub dtype: String,
    pub renderer: Renderer,
    /// The prompts, in the order of the rows.
    pub prompts: Vec<Asked>,
    pub left_out: LeftOut,
    pub ends: Vec<u32>,
    pub max_len: usize,
    pub notes: Vec<String>,
    pub out: PathBuf,
    pub identity: String,
    pub started: SystemTime,
}

/// What runs the model.
pub(super) enum Source {
    Own(Box<Model>),
    /// The servers are checked once the folder is known.
    Servers(Box<Opened>),
}

impl Source {
    pub(super) fn author(self, out: &Path, watch: &dyn Watch) -> Result<Author> {
        match self {
            Source::Own(model) => Ok(Author::Own(model)),
            Source::Servers(opened) => Ok(Author::Servers(Box::new(opened.check(out, true, watch)?))),
        }
    }

    /// The precision of the matrix products.
    fn precision(&self, own: Dtype) -> String {
        match self {
            Source::Own(_) => own.to_string(),
            Source::Servers(_) => AS_SERVED.to_owned(),
        }
    }

    /// What determines the rounding of sums. The servers' addresses do not count: any server of the model will do.
    fn level(&self) -> String {
        match self {
            Source::Own(_) => Level::current().name().to_owned(),
            Source::Servers(opened) => opened.program(),
        }
    }

    /// The device or server program that runs the model, for run.json.
    pub(super) fn device(&self) -> String {
        match self {
            Source::Own(model) => model.placement.description(),
            Source::Servers(opened) => opened.program(),
        }
    }
}

/// A row's prompt.
pub(super) struct Asked {
    pub row: u32,
    pub ids: Vec<u32>,
    /// The number of the row's turns in the prompt.
    pub n_turns: usize,
}

/// The number of records whose prompts are rendered at a time.
const CHUNK: usize = 256;

impl Plan {
    pub(super) fn make(job: &Job, watch: &dyn Watch) -> Result<(Plan, Source)> {
        let started = SystemTime::now();
        job.sampling.check()?;
        let dataset = Dataset::open(&job.inputs, &job.read)?;
        watch.opened(dataset.files());
        let (FoundModel { reference, info, tokenizer, template, max_len, .. }, source) = find(job, watch)?;
        let render = RenderOptions { max_len, ..job.render.clone() };
        let renderer = Renderer::new(tokenizer.clone(), template, render)?;
        let generation = GenerationConfig::read(&reference, &tokenizer)?;
        let mut notes = Vec::new();
        if let Some(settings) = generation.left_aside().filter(|_| job.sampling.repetition_penalty.is_none()) {
            notes.push(format!(
                "the model asks for {settings}, which Transformers would use; these answers are drawn from the model's own distribution, without it"
            ));
        }
        let mut ends = generation.end_tokens;
        ends.extend(renderer.end_of_turn().filter(|id| !ends.contains(id)));
        if ends.is_empty() {
            notes.push(format!(
                "neither the model nor its template names an end token: every answer has {} tokens, or reaches a --stop text",
                job.max_new_tokens
            ));
        }
        if !renderer.has_generation_prompt() {
            notes.push("the chat template has no generation prompt: answers begin directly after the last turn".to_owned());
        }
        let chosen = dataset.choose(job.choice)?;
        let (prompts, left_out, reasons) = prompts(&dataset, &chosen, &renderer, max_len, job.read.strict)?;
        notes.extend(reasons);
        if prompts.is_empty() {
            if left_out.too_long > 0 {
                notes.push(format!(
                    "{} no room for an answer in --max-len {max_len}: give a larger one, if the model has the positions, or shorter rows.",
                    counted(left_out.too_long, "prompt leaves", "prompts leave")
                ));
            }
            return Err(Error::new("no row of the data has a prompt that could be answered").cure(notes.join("\n  ")));
        }
        watch.remarks(&info.name, &notes);
        let dtype = source.precision(job.load.dtype);
        let identity = identity(job, dataset.files(), &info.sha256, &renderer, max_len, &ends, &source)?;
        let out = job.out.clone().unwrap_or_else(|| Path::new("runs").join(format!("rollout-{}", &identity[..8])));
        let plan = Plan {
            dataset,
            chosen,
            info,
            tokenizer,
            dtype,
            renderer,
            prompts,
            left_out,
            ends,
            max_len,
            notes,
            out,
            identity,
            started,
        };
        Ok((plan, source))
    }
}

/// The SHA-256 of everything that the answers depend on.
fn identity(
    job: &Job,
    files: &[DataFile],
    model_sha256: &str,
    renderer: &Renderer,
    max_len: usize,
    ends: &[u32],
    source: &Source,
) -> Result<String> {
    // Without `..`, the compiler demands a decision for every new option. The options ignored here either take effect through what was found under
    // their names, or do not affect the answers.
    let Job {
        inputs: _,
        read: ReadOptions { format: _, mapping, roles, strict: _ },
        model: _,
        servers: _,
        out: _,
        load,
        render: RenderOptions { system, max_len: _, supervise: _, chat_template: _, template_switches, append_eos: _ },
        max_len: _,
        choice,
        n,
        max_new_tokens,
        sampling,
        stops,
        at_once: _,
        seed,
        command: _,
    } = job;
    let what = json!({
        "program": provenance::build(),
        "files": identity_of_files(files),
        "mapping": format!("{mapping:?}"),
        "roles": format!("{roles:?}"),
        "choice": choice,
        "model": model_sha256,
        "template": renderer.template_sha256(),
        "system": system,
        "template_switches": template_switches,
        "max_len": max_len,
        "dtype": source.precision(load.dtype),
        "kernel_level": source.level(),
        "device": source.device(),
        "n": n,
        "ends": ends,
        "max_new_tokens": max_new_tokens,
        "sampling": sampling,
        "stops": stops,
        "seed": seed,
    });
    Ok(sha256(serde_json::to_string(&what).context("cannot write down what identifies the run")?))
}

fn find(job: &Job, watch: &dyn Watch) -> Result<(FoundModel, Source)> {
    if let Some(servers) = &job.servers {
        let beyond = Beyond { tokens: 0, why: "its limit, prompt and answer together" };
        let mut opened = Opened::open(servers, &job.model, &job.load, job.max_len, &beyond, watch)?;
        opened.check_way(&job.sampling)?;
        let found = FoundModel::served(&mut opened.served, &opened.reference, opened.max_len);
        return Ok((found, Source::Servers(Box::new(opened))));
    }
    if job.load.device == Placement::Metal {
        return Err(
            Error::usage("answers are written on the CPU or on an NVIDIA GPU, not on `metal`").cure("Leave --device out.")
        );
    }
    let (found, model) = FoundModel::load(&job.model, Purpose::Write, job.load, job.max_len, watch)?;
    let passed_over = found.passed_over.iter().map(|reason| format!("The GPU is not used: {reason}"));
    watch.remarks(&found.info.name, &found.remarks.iter().cloned().chain(passed_over).collect::<Vec<_>>());
    Ok((found, Source::Own(model)))
}

/// The prompts of all chosen rows, the number of rows without one, and the reason for the first of these.
fn prompts(
    dataset: &Dataset,
    chosen: &Chosen,
    renderer: &Renderer,
    max_len: usize,
    strict: bool,
) -> Result<(Vec<Asked>, LeftOut, Option<String>)> {
    let (mut prompts, mut left_out, mut first_reason) = (Vec::new(), LeftOut::default(), None);
    let mut records = dataset.chosen(chosen);
    loop {
        let chunk: Vec<Record> = records.by_ref().take(CHUNK).collect::<Result<_>>()?;
        if chunk.is_empty() {
            let reason = first_reason
                .map(|reason| format!("{} left out; the first: {reason}", counted(left_out.unusable, "row is", "rows are")));
            return Ok((prompts, left_out, reason));
        }
        let asked = chunk.into_par_iter().map(|record| {
            let place = record.place.clone();
            let prompt = record
                .example
                .and_then(|example| renderer.prompt(&example).map_err(|error| error.at_line(&*place.path, place.line)));
            (record.row, prompt)
        });
        for (row, prompt) in asked.collect::<Vec<_>>() {
            match prompt {
                Ok(prompt) if prompt.ids.len() >= max_len => left_out.too_long += 1,
                Ok(prompt) => prompts.push(Asked { row, ids: prompt.ids, n_turns: prompt.n_turns }),
                Err(error) if strict => return Err(refused_strictly(error)),
                Err(error) => {
                    left_out.unusable += 1;
                    first_reason.get_or_insert_with(|| error.to_string());
                }
            }
        }
    }
}
