//! Weights and families: a reference to a model -> a decoder with its tokenizer and chat template.
//!
//! ```text
//! reference.rs    what the user wrote after --model -> files, by way of default_model.rs where nothing was written, and of hub/
//! adapter.rs      a LoRA adapter folder, applied to a base
//! memory.rs       refuses what does not fit
//! gguf.rs         a .gguf file: config, vocabulary, template, tensors by their Hugging Face names
//! folder.rs       a Hugging Face folder: config.json, tokenizer files, safetensors.rs
//! config.rs       what the families need to know, from either
//! layers.rs       blocks that the families share
//! llama.rs        one family a file; the file name is config.json's `model_type`
//! ```

mod adapter;
mod config;
mod default_model;
mod folder;
mod gguf;
mod hub;
mod layers;
mod llama;
mod memory;
mod reference;
mod safetensors;

use std::path::PathBuf;
use std::sync::Arc;

use candle_core::{Device, Tensor};

use crate::error::{Error, Result};
use crate::kernels::head::HeadOptions;
use crate::kernels::matmul::Matrix;
use crate::kernels::{Dtype, Kernels, Segment};
use crate::tokens::{ChatTemplate, Tokenizer};

pub use config::Config;
pub use default_model::DEFAULT_MODEL;
pub use reference::{Progress, Reference};

/// A model that is ready to score, and what it needs to read text.
pub struct Model {
    pub info: Info,
    pub config: Config,
    pub tokenizer: Arc<Tokenizer>,
    pub template: Option<ChatTemplate>,
    decoder: Box<dyn Decoder>,
}

/// What made the numbers: goes into run.json.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Info {
    /// A short name for people: see [`Reference`].
    pub name: String,
    /// What the user wrote, or the default model's name.
    pub reference: String,
    pub path: PathBuf,
    /// Of the weight file; of the list of the files' hashes where there are several.
    pub sha256: String,
    pub architecture: String,
    pub parameters: u64,
}

/// How to hold and run a model.
#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    pub dtype: Dtype,
    pub kernels: Kernels,
}

/// Rows of a packed batch: `T` tokens of several sequences, cut into segments that share prefixes.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Length `T`.
    pub ids: Vec<u32>,
    /// They tile `0..T`.
    pub segments: Arc<[Segment]>,
}

/// A family: token ids in, final hidden states out.
pub(crate) trait Decoder: Send + Sync {
    /// Hidden states `[rows.len(), D]` after the final norm, at `rows` of the batch only.
    fn hidden(&self, batch: &Batch, rows: &Tensor) -> Result<Tensor>;
    /// The vocabulary matrix `[V, D]`.
    fn head(&self) -> &Matrix;
}

impl Model {
    /// Loads the decoder behind `reference` with its tokenizer and template. `max_positions` is the longest sequence it must take.
    pub fn load(reference: &Reference, options: LoadOptions, max_positions: usize) -> Result<Model> {
        let source = reference.open()?;
        let config = source.config()?;
        if max_positions > config.max_positions {
            return Err(Error::usage(format!(
                "--max-len {max_positions} is more than the {} positions that {} was made for",
                config.max_positions, reference.name
            ))
            .cure(format!("Give --max-len {} or less.", config.max_positions)));
        }
        let tokenizer = source.tokenizer()?;
        if tokenizer.vocab_size() > config.vocab_size {
            return Err(Error::new(format!(
                "the tokenizer knows {} tokens, the model {}: they do not belong together",
                tokenizer.vocab_size(),
                config.vocab_size
            ))
            .at(&reference.path));
        }
        let template = source.template(&tokenizer)?;
        memory::check(&reference.name, &config, source.parameters(), options.dtype, max_positions)?;
        let decoder: Box<dyn Decoder> = match config.family.as_str() {
            "llama" => Box::new(llama::Llama::load(&config, source.as_ref(), options, max_positions)?),
            other => return Err(config::unknown_family(other).at(&reference.path)),
        };
        source.check_all_used()?;
        let info = Info {
            name: reference.name.clone(),
            reference: reference.written.clone(),
            path: reference.path.clone(),
            sha256: reference.sha256()?,
            architecture: config.family.clone(),
            parameters: source.parameters(),
        };
        Ok(Model { info, config, tokenizer: Arc::new(tokenizer), template, decoder })
    }

    /// Hidden states `[rows.len(), D]` after the final norm, at `rows` of the batch.
    pub fn hidden(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        let rows = Tensor::from_slice(rows, rows.len(), &Device::Cpu)?;
        self.decoder.hidden(batch, &rows)
    }

    /// The vocabulary matrix `[V, D]`.
    pub fn head(&self) -> &Matrix {
        self.decoder.head()
    }

    pub fn head_options(&self, top_k: usize) -> HeadOptions {
        HeadOptions { top_k, softcap: self.config.final_softcap }
    }
}

/// A place that weights come from. Tensors are asked for by the names that Transformers gives them.
pub(crate) trait Source {
    fn config(&self) -> Result<Config>;
    fn tokenizer(&self) -> Result<Tokenizer>;
    /// `None` for a base model, which has no chat template.
    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>>;
    fn has(&self, name: &str) -> bool;
    /// The tensor as f32 on the CPU; an error names what was expected if it is absent or has another shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// Number of weights in the file.
    fn parameters(&self) -> u64;
    /// An error if the source brings changes to tensors that the family has not asked for.
    fn check_all_used(&self) -> Result<()> {
        Ok(())
    }
}
