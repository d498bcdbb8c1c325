//! A model that another program serves: its tokenizer, template and config, without its weights.

use std::sync::Arc;

use super::config::Config;
use super::files::folder;
use super::reference::Reference;
use super::{Info, LoadOptions, Model, text_of};
use crate::error::Result;
use crate::tokens::{ChatTemplate, DEFAULT_MAX_LEN, Tokenizer};

/// Models with more parameters are not loaded just to compare a few tokens.
const MOST_PARAMETERS: u64 = 1_500_000_000;

/// The tokenizer, template and config of a model that a server runs.
pub struct Served {
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// The number of rows of the embedding; if no config states it, the size of the tokenizer.
    pub vocab_size: usize,
    /// The longest sequence that it was made for, if a config of a known family states it.
    pub longest: Option<usize>,
    /// For run.json, except `sha256`: only the server knows which weights it serves.
    pub info: Info,
}

impl Served {
    /// Reads the files at `reference`; weights may be missing.
    pub fn read(reference: &Reference) -> Result<Served> {
        let (tokenizer, template) = text_of(reference)?;
        let model = reference.base().unwrap_or(reference);
        // A server may run a family that this program does not know.
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

    /// The limit on sequence length if the user names none.
    pub(crate) fn max_len(&self) -> usize {
        DEFAULT_MAX_LEN.min(self.longest.unwrap_or(usize::MAX))
    }

    /// Loads the model itself for a comparison, if its weights are here and not too large; otherwise returns the
    /// reason.
    pub fn load(&self, reference: &Reference, max_positions: usize) -> Result<Model, String> {
        match reference.open() {
            Err(error) => Err(error.reason()),
            Ok(source) if source.parameters() > MOST_PARAMETERS => Err(format!("it has {} parameters", source.parameters())),
            Ok(_) => Model::load(reference, LoadOptions::default(), max_positions).map_err(|error| error.reason()),
        }
    }
}
