//! Finds what runs the model of an evaluation, this program or servers. The model is loaded only if there is work for it.

use std::path::Path;

use super::way::{Way, writes};
use crate::engine::generate::Sampling;
use crate::engine::remote::Options;
use crate::error::Result;
use crate::eval::results::Identity;
use crate::eval::tasks::Task;
use crate::jobs::author::Author;
use crate::jobs::served::{AS_SERVED, Beyond, Opened};
use crate::jobs::watch::{Watch, fetching};
use crate::model::{LoadOptions, Model, ModelName, Purpose, Reference};

/// What will run the model.
pub(super) enum Source {
    Own { reference: Box<Reference>, options: LoadOptions, purpose: Purpose, max_len: usize },
    Servers(Box<Opened>),
}

impl Source {
    pub(super) fn find(
        model: &ModelName,
        servers: Option<&Options>,
        way: &Way,
        tasks: &[Task],
        watch: &dyn Watch,
    ) -> Result<Source> {
        if let Some(servers) = servers {
            let beyond = Beyond {
                tokens: 2,
                why: "two tokens below the server's limit: one for the continuation's last token, one that the server must generate",
            };
            return Ok(Source::Servers(Box::new(Opened::open(servers, model, &way.load, way.max_len, &beyond, watch)?)));
        }
        let options = way.load_options_of(tasks)?;
        let reference = Reference::resolve_named(model, &fetching(watch))?;
        let max_len = reference.max_len(way.max_len)?;
        let purpose = if writes(tasks) { Purpose::Both } else { Purpose::Read };
        Ok(Source::Own { reference: Box::new(reference), options, purpose, max_len })
    }

    /// Returns an error if answers cannot be sampled in this way.
    pub(super) fn check_way(&self, sampling: &Sampling) -> Result<()> {
        match self {
            Source::Own { .. } => Ok(()),
            Source::Servers(opened) => opened.check_way(sampling),
        }
    }

    pub(super) fn reference(&self) -> &Reference {
        match self {
            Source::Own { reference, .. } => reference,
            Source::Servers(opened) => &opened.reference,
        }
    }

    pub(super) fn max_len(&self) -> usize {
        match self {
            Source::Own { max_len, .. } => *max_len,
            Source::Servers(opened) => opened.max_len,
        }
    }

    /// Where the model runs. The servers' addresses do not count: any server of the model will do.
    pub(super) fn device(&self) -> Result<String> {
        match self {
            Source::Own { reference, options, purpose, max_len } => {
                Ok(Model::place(*purpose, reference, *options, *max_len)?.description())
            }
            Source::Servers(opened) => Ok(opened.program()),
        }
    }

    pub(super) fn identity(&self, way: &Way) -> Result<Identity> {
        let reference = self.reference();
        let (sha256, dtype, kernels) = match self {
            Source::Own { reference, .. } => (reference.sha256()?, way.load.dtype.to_string(), way.load.kernels.to_string()),
            Source::Servers(opened) => (opened.served.info.sha256.clone(), AS_SERVED.to_owned(), AS_SERVED.to_owned()),
        };
        Ok(Identity {
            model: reference.name.clone(),
            model_reference: reference.written.clone(),
            model_base: reference.base.clone(),
            model_sha256: sha256,
            dtype,
            kernels,
            max_len: self.max_len(),
        })
    }

    /// Loads the model if there is work left. Servers are always checked, including an answer if a task needs generated ones, since another model may
    /// have replaced the one that a finished folder belongs to.
    pub(super) fn author(self, has_work: bool, writes: bool, out: &Path, watch: &dyn Watch) -> Result<Option<Author>> {
        Ok(match self {
            Source::Servers(opened) => Some(Author::Servers(Box::new(opened.check(out, writes, watch)?))),
            Source::Own { .. } if !has_work => None,
            Source::Own { reference, options, purpose, max_len } => {
                Some(Author::Own(Box::new(Model::load_for(purpose, &reference, options, max_len)?)))
            }
        })
    }
}
