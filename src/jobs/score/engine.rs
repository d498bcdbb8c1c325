//! Selects what runs the model: this program, servers, or another program that left its answers.

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::{Value, json};

use super::job::{Elsewhere, Job};
use crate::dataset::{Chosen, Dataset};
use crate::engine::bounds::TopTokens;
use crate::engine::remote::{Checked, Pool, compare_with_own};
use crate::error::{Error, Result};
use crate::files::file_sha256;
use crate::jobs::served::{self, Beyond, hash, own_scores};
use crate::jobs::watch::{Watch, fetching};
use crate::kernels::level::Level;
use crate::model::{Info, Model, Placement, Reference, Served};
use crate::table::{Answers, SEQUENCES_FILE};
use crate::tokens::{ChatTemplate, Renderer, Sequence, Tokenizer, rendered};

pub(crate) enum Engine {
    Own(Box<Model>),
    Servers(Arc<Pool>, Box<Checked>),
    /// The folder with the answers that another program left.
    Answers(PathBuf, Box<Checked>),
}

impl Engine {
    /// Whether some of the scores are only known by bounds.
    pub(super) fn is_bounded(&self) -> bool {
        self.checked().is_some()
    }

    /// The checks of the engine that ran the model instead of ours; `None` if ours did.
    pub(super) fn checked(&self) -> Option<&Checked> {
        match self {
            Engine::Own(_) => None,
            Engine::Servers(_, checked) | Engine::Answers(_, checked) => Some(checked),
        }
    }

    /// Where the model runs, for people and for run.json.
    pub(super) fn device(&self) -> String {
        match self {
            Engine::Own(model) => model.placement.description(),
            Engine::Servers(_, checked) | Engine::Answers(_, checked) => {
                format!("{} at {}", checked.program(), checked.urls.join(", "))
            }
        }
    }

    /// Where our own kernels run; the CPU if another engine runs the model.
    pub(super) fn placement(&self) -> Placement {
        match self {
            Engine::Own(model) => model.placement,
            Engine::Servers(..) | Engine::Answers(..) => Placement::Cpu,
        }
    }

    /// The properties of the engine that determine the scores.
    pub(super) fn identity(&self, job: &Job) -> Value {
        match self {
            Engine::Own(model) => json!({
                "dtype": job.load.dtype.to_string(),
                "kernels": job.load.kernels.to_string(),
                // Another GPU model rounds sums differently.
                "device": model.placement.description(),
                // Another kernel level rounds sums differently.
                "kernel_level": Level::current().name(),
            }),
            // The addresses do not count: any server of the model will do.
            Engine::Servers(_, checked) | Engine::Answers(_, checked) => json!({
                "api": checked.api,
                "top_logprobs": checked.top_logprobs,
                "vocab_size": checked.vocab_size,
            }),
        }
    }
}

/// What is known about the model before the data are read, and the source of its engine.
pub(super) struct FoundModel {
    pub info: Info,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    pub vocab_size: usize,
    pub max_len: usize,
    pub remarks: Vec<String>,
    pub passed_over: Option<String>,
    source: Source,
}

enum Source {
    Own(Box<Model>),
    Servers(Pool, Box<(Served, Reference)>),
    Answers(PathBuf, Box<(Served, Reference)>),
}

/// Loads the model, or queries the servers.
pub(super) fn find(job: &Job, watch: &dyn Watch) -> Result<FoundModel> {
    match &job.elsewhere {
        None => own(job, watch),
        Some(elsewhere) => served(job, elsewhere, watch),
    }
}

fn own(job: &Job, watch: &dyn Watch) -> Result<FoundModel> {
    let reference = Reference::resolve_named(&job.model, &fetching(watch))?;
    let max_len = reference.max_len(job.max_len)?;
    let mut model = Model::load(&reference, job.load, max_len)?;
    Ok(FoundModel {
        info: model.info.clone(),
        tokenizer: model.tokenizer.clone(),
        template: model.template.take(),
        vocab_size: model.config.vocab_size,
        max_len,
        remarks: std::mem::take(&mut model.remarks),
        passed_over: model.passed_over.take(),
        source: Source::Own(Box::new(model)),
    })
}

/// Opens the tokenizer and configuration, the only local parts needed if another engine runs the model. `option` is the option that selected it.
pub(super) fn text_of(job: &Job, option: &str, watch: &dyn Watch) -> Result<(Served, Reference)> {
    if job.in_context {
        return Err(Error::usage(format!("--in-context runs the model here, and {option} runs it elsewhere"))
            .cure("Leave out one of them."));
    }
    served::text_of(&job.model, option, &job.load, watch)
}

fn served(job: &Job, elsewhere: &Elsewhere, watch: &dyn Watch) -> Result<FoundModel> {
    let (option, servers) = match elsewhere {
        Elsewhere::Servers(servers) => ("--server", Some(servers)),
        Elsewhere::Answers(_) => ("--answers", None),
    };
    let (mut served, reference) = text_of(job, option, watch)?;
    let pool = servers.map(|servers| Pool::open(servers, served.vocab_size)).transpose()?;
    let beyond = Beyond { tokens: 1, why: "one token below the server's limit, since it must generate one" };
    let max_len = served::max_len(job.max_len, &served, pool.as_ref(), &beyond)?;
    let hash = match elsewhere {
        Elsewhere::Servers(_) => hash(pool.as_ref().map_or("", Pool::model), &served.tokenizer)?,
        Elsewhere::Answers(folder) => hash(&Answers::hash(folder)?, &served.tokenizer)?,
    };
    Ok(FoundModel {
        info: Info { sha256: hash, ..served.info.clone() },
        tokenizer: served.tokenizer.clone(),
        template: served.template.take(),
        vocab_size: served.vocab_size,
        max_len,
        remarks: Vec::new(),
        passed_over: None,
        source: match (pool, elsewhere) {
            (Some(pool), _) => Source::Servers(pool, Box::new((served, reference))),
            (None, Elsewhere::Answers(folder)) => Source::Answers(folder.clone(), Box::new((served, reference))),
            (None, Elsewhere::Servers(_)) => return Err(Error::usage("--server names no server")),
        },
    })
}

impl FoundModel {
    /// Checks another engine on the first row with something to score; `is_asked` says whether this run requests that row. Also returns remarks for
    /// the user.
    pub(super) fn engine(self, first: Sequence, is_asked: bool) -> Result<(Engine, Vec<String>)> {
        let mut remarks = Vec::new();
        let engine = match self.source {
            Source::Own(model) => Engine::Own(model),
            Source::Servers(pool, served) => {
                let own = |probe: &Sequence| own_scores(&served.0, &served.1, probe, &mut remarks);
                let checked = pool.check(&first, &served.0.tokenizer, own)?;
                Engine::Servers(Arc::new(pool), Box::new(checked))
            }
            Source::Answers(folder, served) => {
                let mut answers = Answers::open(&folder, self.vocab_size)?;
                let found = if is_asked { answers.of(&first)? } else { Vec::new() };
                let own = if is_asked { own_scores(&served.0, &served.1, &first, &mut remarks)? } else { None };
                let from_own = own.map(|own| compare_with_own(&found, &own).map_err(|error| error.at(&folder))).transpose()?;
                let sent = file_sha256(&folder.join(SEQUENCES_FILE))?;
                let asked = TopTokens { top_k: answers.top_k, vocab: self.vocab_size };
                let checked = Checked::offline(&folder, sent, asked, &found, from_own);
                Engine::Answers(folder, Box::new(checked))
            }
        };
        remarks.extend(engine.checked().and_then(served::remark));
        Ok((engine, remarks))
    }
}

/// The first row with something to score.
pub(super) fn first_sequence(dataset: &Dataset, renderer: &Renderer, chosen: &Chosen) -> Result<Sequence> {
    for chunk in rendered(dataset, renderer, 0, chosen) {
        for item in chunk? {
            if let Ok(rendered) = item.rendered
                && rendered.sequence.has_targets()
            {
                return Ok(rendered.sequence);
            }
        }
    }
    Err(nothing_to_score())
}

pub(super) fn nothing_to_score() -> Error {
    Error::new("no token of this data set would be trained on: there is nothing to score")
}
