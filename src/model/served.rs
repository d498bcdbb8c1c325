//! What is known here of a model that another program runs: its texts, and what its config says, without its weights.

use std::sync::Arc;

use super::config::Config;
use super::files::folder;
use super::reference::Reference;
use super::{Info, LoadOptions, Model, text_of};
use crate::error::Result;
use crate::tokens::{ChatTemplate, DEFAULT_MAX_LEN, Tokenizer};

/// A model of more parameters is not loaded for a comparison of a few tokens.
const MOST_PARAMETERS: u64 = 1_500_000_000;

/// The texts and the config of a model that a server runs.
pub struct Served {
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Rows of the embedding; where no config tells them, the tokenizer's.
    pub vocab_size: usize,
    /// The longest sequence that it was made for, where a config of a known family tells.
    pub longest: Option<usize>,
    /// For run.json, but for `sha256`: which weights are served only the server knows.
    pub info: Info,
}

impl Served {
    /// Reads what lies at `reference`; weights may be missing.
    pub fn read(reference: &Reference) -> Result<Served> {
        let (tokenizer, template) = text_of(reference)?;
        let model = reference.base().unwrap_or(reference);
        // A server may run a family that is not known here.
        let config = model.config().ok().flatten();
        let rows = config.as_ref().map(|config| config.vocab_size).or_else(|| folder::vocab_size(&model.path));
        Ok(Served {
            vocab_size: rows.unwrap_or(0).max(tokenizer.vocab_size()),
            longest: config.as_ref().map(Config::longest),
            info: Info {
                name: reference.name.clone(),
                reference: reference.written.clone(),
                base: reference.base.clone(),
                path: reference.path.clone(),
                sha256: String::new(),
                architecture: config.map_or("not known here", |config| config.family).to_owned(),
                parameters: reference.open().map(|source| source.parameters()).unwrap_or_default(),
            },
            tokenizer,
            template,
        })
    }

    /// The longest sequence where the user names none.
    pub(crate) fn max_len(&self) -> usize {
        DEFAULT_MAX_LEN.min(self.longest.unwrap_or(usize::MAX))
    }

    /// The model itself, to compare with, where its weights are here and not too many; else why not.
    pub fn load(&self, reference: &Reference, max_positions: usize) -> Result<Model, String> {
        match reference.open() {
            Err(error) => Err(error.reason()),
            Ok(source) if source.parameters() > MOST_PARAMETERS => Err(format!("it has {} parameters", source.parameters())),
            Ok(_) => Model::load(reference, LoadOptions::default(), max_positions).map_err(|error| error.reason()),
        }
    }
}
