//! Finds a model before the data are read, for jobs that read them with its tokenizer and template.

use std::sync::Arc;

use crate::error::Result;
use crate::jobs::watch::{Watch, fetching};
use crate::model::{Info, LoadOptions, Model, ModelName, Purpose, Reference, Served};
use crate::tokens::{ChatTemplate, Tokenizer};

/// What is known about the model before the data are read.
pub(super) struct FoundModel {
    pub reference: Reference,
    pub info: Info,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    pub vocab_size: usize,
    /// The longest sequence.
    pub max_len: usize,
    pub remarks: Vec<String>,
    /// Why an available GPU is not used.
    pub passed_over: Option<String>,
}

impl FoundModel {
    /// Loads the model. `asked_len` is the user's choice of the longest sequence.
    pub(super) fn load(
        name: &ModelName,
        purpose: Purpose,
        load: LoadOptions,
        asked_len: Option<usize>,
        watch: &dyn Watch,
    ) -> Result<(FoundModel, Box<Model>)> {
        let reference = Reference::resolve_named(name, &fetching(watch))?;
        let max_len = reference.max_len(asked_len)?;
        let mut model = Model::load_for(purpose, &reference, load, max_len)?;
        let found = FoundModel {
            reference,
            info: model.info.clone(),
            tokenizer: model.tokenizer.clone(),
            template: model.template.take(),
            vocab_size: model.config.vocab_size,
            max_len,
            remarks: std::mem::take(&mut model.remarks),
            passed_over: model.passed_over.take(),
        };
        Ok((found, Box::new(model)))
    }

    /// A model that another program runs.
    pub(super) fn served(served: &mut Served, reference: &Reference, max_len: usize) -> FoundModel {
        FoundModel {
            reference: reference.clone(),
            info: served.info.clone(),
            tokenizer: served.tokenizer.clone(),
            template: served.template.take(),
            vocab_size: served.vocab_size,
            max_len,
            remarks: Vec::new(),
            passed_over: None,
        }
    }
}
