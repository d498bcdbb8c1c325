//! Generates the answers of evaluations and rollouts, by this program or by servers.

use std::cell::Cell;

use crate::engine::generate::{Answer, Request, Way, Written, generate};
use crate::engine::remote::{Checked, Pool};
use crate::error::Result;
use crate::jobs::served::Servers;
use crate::jobs::watch::Watch;
use crate::model::Model;
use crate::tokens::Tokenizer;

pub(super) enum Author {
    Own(Box<Model>),
    Servers(Box<Servers>),
}

impl Author {
    pub(super) fn tokenizer(&self) -> &Tokenizer {
        match self {
            Author::Own(model) => &model.tokenizer,
            Author::Servers(servers) => &servers.tokenizer,
        }
    }

    /// What the checks found about the servers; `None` where this program runs the model.
    pub(super) fn checked(&self) -> Option<&Checked> {
        match self {
            Author::Own(_) => None,
            Author::Servers(servers) => Some(&servers.checked),
        }
    }

    /// Answers all requests: see [`generate`], and for servers [`Servers::each`]. `finished` receives each answer with the number of tokens generated
    /// so far.
    pub(super) fn write(
        &self,
        requests: &[Request],
        way: &Way,
        watch: &dyn Watch,
        finished: &mut dyn FnMut(usize, Answer, u64) -> Result<()>,
    ) -> Result<Written> {
        match self {
            Author::Own(model) => {
                let n_tokens = Cell::new(0);
                generate(model, requests, way, &mut |request, answer| finished(request, answer, n_tokens.get()), &mut |tokens| {
                    n_tokens.set(tokens)
                })
            }
            Author::Servers(servers) => {
                let mut written = Written::default();
                let ask = |pool: &Pool, request: &Request| pool.answer(request, way, &servers.tokenizer);
                servers.each(requests, ask, watch, &mut |request, answer: Answer| {
                    written.prompt_tokens += requests[request].prompt.len() as u64;
                    written.tokens += answer.ids.len() as u64;
                    finished(request, answer, written.tokens)
                })?;
                Ok(written)
            }
        }
    }
}
