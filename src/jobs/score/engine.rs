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
use crate::jobs::found::FoundModel;
use crate::jobs::served::{self, Beyond, Opened, own_scores};
use crate::jobs::watch::Watch;
use crate::kernels::level::Level;
use crate::model::{Model, Placement, Purpose, Reference, Served};
use crate::table::{Answers, SEQUENCES_FILE};
use crate::tokens::{Renderer, Sequence, rendered};

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

/// What will run the model, before the first row is known.
pub(super) enum Source {
    Own(Box<Model>),
    Servers(Box<Opened>),
    /// The folder with the answers that another program left.
    Answers(PathBuf, Box<(Served, Reference)>),
}

/// Loads the model, or queries the servers.
pub(super) fn find(job: &Job, watch: &dyn Watch) -> Result<(FoundModel, Source)> {
    match &job.elsewhere {
        None => {
            let (found, model) = FoundModel::load(&job.model, Purpose::Read, job.load, job.max_len, watch)?;
            Ok((found, Source::Own(model)))
        }
        Some(Elsewhere::Servers(servers)) => {
            let beyond = Beyond { tokens: 1, why: "one token below the server's limit, since it must generate one" };
            let mut opened = Opened::open(servers, &job.model, &job.load, job.max_len, &beyond, watch)?;
            let found = FoundModel::served(&mut opened.served, &opened.reference, opened.max_len);
            Ok((found, Source::Servers(Box::new(opened))))
        }
        Some(Elsewhere::Answers(folder)) => {
            let (mut served, reference) = served::text_of(&job.model, "--answers", &job.load, watch)?;
            served.info.sha256 = served::hash(&Answers::hash(folder)?, &served.tokenizer)?;
            let max_len = job.max_len.unwrap_or_else(|| served::usual_len(&served, 1));
            let found = FoundModel::served(&mut served, &reference, max_len);
            Ok((found, Source::Answers(folder.clone(), Box::new((served, reference)))))
        }
    }
}

impl Source {
    /// Checks another engine on the first row with something to score; `is_asked` says whether this run requests that row. Also returns remarks for
    /// the user.
    pub(super) fn engine(self, first: &Sequence, is_asked: bool) -> Result<(Engine, Vec<String>)> {
        match self {
            Source::Own(model) => Ok((Engine::Own(model), Vec::new())),
            Source::Servers(opened) => {
                let (checked, remarks) = opened.check_on(first)?;
                Ok((Engine::Servers(Arc::new(opened.pool), Box::new(checked)), remarks))
            }
            Source::Answers(folder, text) => {
                let (served, reference) = *text;
                let mut remarks = Vec::new();
                let mut answers = Answers::open(&folder, served.vocab_size)?;
                let found = if is_asked { answers.of(first)? } else { Vec::new() };
                let own = if is_asked { own_scores(&served, &reference, first, &mut remarks)? } else { None };
                let from_own = own.map(|own| compare_with_own(&found, &own).map_err(|error| error.at(&folder))).transpose()?;
                let sent = file_sha256(&folder.join(SEQUENCES_FILE))?;
                let asked = TopTokens { top_k: answers.top_k, vocab: served.vocab_size };
                let model = Answers::model(&folder)?;
                remarks.extend(
                    model.iter().map(|model| format!("The answers are of {model}, as it was named where they were given.")),
                );
                let checked = Checked::offline(&folder, model.unwrap_or_default(), sent, asked, &found, from_own);
                remarks.extend(served::remark(&checked));
                Ok((Engine::Answers(folder, Box::new(checked)), remarks))
            }
        }
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
