//! Loads models: a reference to a model -> a decoder with its tokenizer and chat template.
//!
//! ```text
//! reference.rs    what the user wrote after --model -> files; default_model.rs if nothing was written
//! files/          the files themselves: folders, safetensors, GGUF, adapters; and saving
//! families/       one file per family, and the table of families; multimodal.rs finds those inside a larger model; keys.rs says which
//!                 settings are honoured, refused or irrelevant
//! memory.rs       refuses what does not fit into memory
//! placement.rs    where a model runs; device.rs puts it there; load_options.rs says how it is held
//! on_cuda.rs      runs a decoder on a GPU, with cuda_experts.rs, cuda_delta.rs and their shared parts in cuda_parts.rs; step_on_cuda.rs
//!                 generates
//! statistics.rs   the statistics of a batch's targets: computed, or still on their way from a GPU
//! source.rs       where weights come from; batch.rs is a decoder's input; cache.rs keeps the sequences read so far; context.rs says what a
//!                 block's tokens attend to
//! config.rs       shape and settings of a model, whichever file it came from; rope.rs for rotary embeddings
//! decoder.rs      the decoder that all families share, built from block.rs, mixer.rs, layers.rs, delta_net.rs and experts.rs
//! served.rs       a model that another program runs: what is known of it here
//! parameters.rs   the trained tensors and their names; trace.rs runs the backward pass; lora.rs adds adapters
//! embedding_norms.rs  finds vectors that training never touched
//! ```
//!
//! # Adding a family
//!
//! For decoders with grouped-query attention and a gated feed-forward network whose inputs, outputs or both are normalised:
//!
//! 1. A file `src/model/families/{model_type}.rs` with a `FAMILY`; copy the nearest one. `keys` says for each
//!    setting of the model's config class in Transformers whether it is `Honoured` (then `configure` reads it), accepted with certain
//!    values `Only`, or `Irrelevant`; an unlisted setting is refused by name. `settings` writes the settings again. `block`
//!    assembles the parts of `layers.rs`. A missing feature becomes a new part, or a field of `Config`, not a special case.
//!    `configure_gguf`, `gguf_keys` and `gguf_names` read llama.cpp's files (`src/models/{architecture}.cpp` and
//!    `gguf-py/gguf/tensor_mapping.py` there). A new part also has to be computed in `on_cuda.rs`. A multimodal model around a known
//!    family is a row in `outer.rs` instead.
//! 2. A row in `FAMILIES` and a `mod` line (`src/model/families/mod.rs`), and a row in the table of `src/guide/models.md`.
//! 3. A fixture `tests/fixtures/families/{model_type}`: a random checkpoint of a few thousand weights with the logits that
//!    Transformers computes. Add it to `make.py` there and run that, then `columns.py`, `greedy.py` and, if llama.cpp knows the
//!    family, `convert.py`, and `make.py gradients {model_type}` in `tests/fixtures/train`. `tests/families.rs` then compares every logit
//!    and every column of the token table, from the folder and from the GGUF file of llama.cpp's own converter; `tests/generate.rs`
//!    compares the generated text, and `src/train/tests.rs` every gradient.
//!
//! `cargo test families` and `cargo test family` fail until all three are there.

mod batch;
mod block;
mod cache;
mod config;
mod context;
mod cuda_delta;
mod cuda_experts;
mod cuda_parts;
#[cfg(test)]
mod cuda_tests;
mod decoder;
mod default_model;
mod delta_net;
mod device;
mod embedding_norms;
mod experts;
mod families;
pub mod files;
mod layers;
mod load_options;
mod lora;
pub mod memory;
mod mixer;
mod on_cuda;
mod parameters;
mod placement;
mod reference;
mod rope;
mod served;
mod source;
mod statistics;
mod step_on_cuda;
mod trace;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Instant;

use candle_core::Tensor;

use self::cache::Place;
use self::device::{OnDevice, Placed};
use crate::error::{Error, Result};
use crate::kernels::cuda::DEVICE_PAGE;
use crate::kernels::matmul::Matrix;
use crate::kernels::statistics::{Curves, HeadOptions, bent, head_statistics_and_curves, logits};
use crate::kernels::tasks::on_the_pool;
use crate::kernels::{Dtype, Kernels};
use crate::tokens::{ChatTemplate, Tokenizer};

use decoder::Decoder;
use on_cuda::OnCuda;
use step_on_cuda::Wanted;

pub use batch::Batch;
pub use cache::{Cache, CacheSize, PAGE, Stretch};
pub use config::Config;
pub use default_model::DEFAULT_MODEL;
pub(crate) use files::end_tokens::{add_end_tokens, end_tokens, own_end_tokens, save_end_tokens};
pub(crate) use files::generation::GenerationConfig;
pub use files::peft::{LoraPair, LoraSettings, save_adapter};
pub use files::save::{save, save_merged};
pub use load_options::{LoadOptions, Purpose};
pub use lora::{Adapters, LoraOptions};
pub use parameters::{Parameter, Part};
pub use placement::Placement;
pub use reference::{ModelName, Reference};
pub use served::Served;
pub(crate) use source::Source;
use statistics::CurvesOf;
pub use statistics::{BatchStatistics, Statistics};
pub use trace::Trace;

/// A model that is ready to score, with what it needs to read text.
pub struct Model {
    /// A description of the model for run.json.
    pub info: Info,
    /// Its shape and settings.
    pub config: Config,
    /// Its vocabulary.
    pub tokenizer: Arc<Tokenizer>,
    /// Its chat template, if it has one.
    pub template: Option<ChatTemplate>,
    /// Where it runs: never [`Placement::Auto`].
    pub placement: Placement,
    /// Why an available GPU was not used, if the choice was left to the program.
    pub passed_over: Option<String>,
    /// Sentences about the files: contradictions and how they were resolved, and what was ignored.
    pub remarks: Vec<String>,
    decoder: Decoder,
    /// The other parameters of the decoder on a GPU.
    on_cuda: Option<OnCuda>,
}

/// The identity of the model, recorded in run.json.
#[derive(Debug, Clone, serde::Serialize, serde::Deserialize)]
pub struct Info {
    /// A short name for display: see [`Reference`].
    pub name: String,
    /// What the user wrote, or the default model's name.
    pub reference: String,
    /// What the user wrote after --base.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub base: Option<String>,
    /// The file, or the folder with the files.
    pub path: PathBuf,
    /// SHA-256 of the weight file, in hexadecimal; with several files, of the list of their hashes.
    pub sha256: String,
    /// The family.
    pub architecture: String,
    /// The number of weights.
    pub parameters: u64,
}

/// The tokenizer and chat template of a model. The folder need not contain the weights.
pub fn text_of(reference: &Reference) -> Result<(Arc<Tokenizer>, Option<ChatTemplate>)> {
    let path = &reference.path;
    let own = path.is_dir().then(|| files::folder::tokenizer(path)).transpose()?.flatten();
    if let Some(base) = reference.base() {
        let (of_base, base_template) = text_of(base)?;
        let tokenizer = own.map_or(of_base, Arc::new);
        let template = files::folder::template(path, &tokenizer)?;
        return Ok((tokenizer, template.or(base_template)));
    }
    if let Some(tokenizer) = own {
        let template = files::folder::template(path, &tokenizer)?;
        let rows = files::folder::embedding_rows(path);
        return Ok((Arc::new(rows.into_iter().fold(tokenizer, Tokenizer::bounded)), template));
    }
    let source = reference.open()?;
    let tokenizer = source.tokenizer()?;
    let template = source.template(&tokenizer)?;
    Ok((Arc::new(tokenizer), template))
}

impl Model {
    /// Loads the decoder behind `reference` with its tokenizer and template, for scoring. `max_positions` is the longest sequence it must
    /// accept.
    pub fn load(reference: &Reference, options: LoadOptions, max_positions: usize) -> Result<Model> {
        Model::load_for(Purpose::Read, reference, options, max_positions)
    }

    /// Like [`Model::load`], for `purpose`: a model that generates also needs room for its cache.
    pub fn load_for(purpose: Purpose, reference: &Reference, options: LoadOptions, max_positions: usize) -> Result<Model> {
        let source = reference.open()?;
        let config = source.config()?;
        check_length(&config, &reference.name, max_positions)?;
        let Placed { options, passed_over } =
            device::place(options, purpose, &reference.name, &config, source.parameters(), max_positions)?;
        let device = options.device.open()?;
        let in_blocks = purpose == Purpose::Write && options.dtype == Dtype::F32 && options.kernels == Kernels::Fused;
        let on_device = OnDevice { source: source.as_ref(), device: &device, in_blocks };
        // The tokenizer and the hash keep one core busy each; the remaining cores read and pack the weights.
        let (decoder, (tokenizer, sha256)) = rayon::join(
            || Decoder::load(&config, &on_device, options, max_positions),
            || rayon::join(|| source.tokenizer(), || reference.sha256()),
        );
        let tokenizer = tokenizer?.bounded(config.vocab_size);
        let template = source.template(&tokenizer)?;
        let decoder = decoder?;
        let on_cuda = match options.device {
            Placement::Cuda => Some(OnCuda::new(&decoder, &config, options.dtype.stored()?)?),
            _ => None,
        };
        source.check_all_used()?;
        let mut remarks = source.remarks()?;
        if tokenizer.vocab_size() > config.vocab_size {
            remarks.push(format!(
                "the tokenizer has {} tokens, the model {}: texts with tokens beyond the model's are refused",
                tokenizer.vocab_size(),
                config.vocab_size
            ));
        }
        let info = Info {
            name: reference.name.clone(),
            reference: reference.written.clone(),
            base: reference.base.clone(),
            path: reference.path.clone(),
            sha256: sha256?,
            architecture: config.family.to_owned(),
            parameters: source.parameters(),
        };
        Ok(Model {
            info,
            config,
            tokenizer: Arc::new(tokenizer),
            template,
            placement: options.device,
            passed_over,
            remarks,
            decoder,
            on_cuda,
        })
    }

    /// Where [`Model::load_for`] would put the model.
    pub fn place(purpose: Purpose, reference: &Reference, options: LoadOptions, max_positions: usize) -> Result<Placement> {
        let source = reference.open()?;
        let config = source.config()?;
        Ok(device::place(options, purpose, &reference.name, &config, source.parameters(), max_positions)?.options.device)
    }

    /// The number of positions in a page of a cache.
    pub fn page(&self) -> usize {
        if self.on_cuda.is_some() { DEVICE_PAGE } else { PAGE }
    }

    /// Creates a cache for sequences that are being generated. On the CPU it has the largest number of pages that `size` allows, on a GPU as
    /// many as fit. If there is too little memory, the error says how much is needed.
    pub fn cache(&self, size: &CacheSize) -> Result<Cache> {
        if let Some(on_cuda) = &self.on_cuda {
            return Ok(Cache::on_device(on_cuda.keep(&self.info.name, &self.config, size)?));
        }
        let (n_pages, dtypes) = (*size.pages.end(), self.decoder.attention_dtypes());
        let of_pages = n_pages * Cache::page_bytes(&self.config, &dtypes);
        let bytes = of_pages + size.sequences * Cache::sequence_bytes(&self.config);
        memory::check_answers(&self.info.name, bytes as u64)?;
        Ok(Cache::new(&self.config, &dtypes, n_pages, size.sequences))
    }

    /// The hidden states `[rows.len(), D]` after the final norm, at `rows` of the batch.
    pub fn hidden(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        self.tokenizer.check(&batch.ids)?;
        match &self.on_cuda {
            Some(on_cuda) => on_cuda.hidden(&self.decoder, batch, rows),
            None => self.decoder.hidden(batch, rows, Adapters::On),
        }
    }

    /// Like [`Model::hidden`], for tokens that continue the sequences of `cache` and are added to it. The result is bit-identical to that of
    /// [`Model::hidden`] on the whole sequences. CPU with fused kernels only.
    pub fn hidden_onto(&self, cache: &mut Cache, ids: &[u32], stretches: &[Stretch], rows: &[u32]) -> Result<Tensor> {
        self.tokenizer.check(ids)?;
        self.decoder.hidden_onto(cache.layers()?, ids, stretches, rows)
    }

    /// Passes the next-token logits `[N, V]`, one row for the last token of each of the `N` stretches, to `read`, and adds the stretches'
    /// tokens to `cache`. The bits of a row do not depend on what else is in the batch.
    pub fn next_logits<R>(
        &self,
        cache: &mut Cache,
        ids: &[u32],
        stretches: &[Stretch],
        read: impl FnOnce(&[f32]) -> Result<R>,
    ) -> Result<R> {
        self.tokenizer.check(ids)?;
        let (head, options) = (self.head(), self.head_options(1));
        match (&self.on_cuda, &cache.place) {
            (Some(on_cuda), Place::Device(kept)) => {
                let fetched = on_cuda.step(&self.decoder, kept, ids, stretches, Wanted::Logits)?;
                match options.softcap {
                    None => read(fetched.logits()?),
                    Some(_) => read(&bent(fetched.logits()?.to_vec(), head.out_features(), &options)),
                }
            }
            (None, Place::Host(_)) => {
                let last: Vec<u32> = stretches.iter().map(|stretch| (stretch.tokens.end as u32).saturating_sub(1)).collect();
                let hidden = self.decoder.hidden_onto(cache.layers()?, ids, stretches, &last)?;
                read(&logits(&hidden, head, &options)?)
            }
            _ => Err(Error::new("the cache was made for a model in another place")),
        }
    }

    /// Like [`Model::next_logits`], but only returns the id of the largest logit of each row: the first of equals, or `u32::MAX` if a logit is
    /// NaN. GPU only: on the CPU, and with a softcap, which may round two logits to one, all logits are needed; then it does nothing and
    /// returns `None`.
    pub fn next_largest(&self, cache: &mut Cache, ids: &[u32], stretches: &[Stretch]) -> Result<Option<Vec<u32>>> {
        match (&self.on_cuda, &cache.place, self.config.final_softcap) {
            (Some(on_cuda), Place::Device(kept), None) => {
                self.tokenizer.check(ids)?;
                let fetched = on_cuda.step(&self.decoder, kept, ids, stretches, Wanted::Largest)?;
                Ok(Some(fetched.ids()?.to_vec()))
            }
            _ => Ok(None),
        }
    }

    /// Like [`Model::next_logits`], but samples a token per row from the distribution proportional to `exp(scale logit)`, using the row's
    /// number of `randoms`, in 0..1. GPU only, with the same result as on the host, to the bit. `u32::MAX` and `None` as in
    /// [`Model::next_largest`].
    pub fn next_drawn(
        &self,
        cache: &mut Cache,
        ids: &[u32],
        stretches: &[Stretch],
        scale: f32,
        randoms: &[f64],
    ) -> Result<Option<Vec<u32>>> {
        match (&self.on_cuda, &cache.place, self.config.final_softcap) {
            (Some(on_cuda), Place::Device(kept), None) => {
                self.tokenizer.check(ids)?;
                let fetched = on_cuda.step(&self.decoder, kept, ids, stretches, Wanted::Drawn { scale, randoms })?;
                Ok(Some(fetched.ids()?.to_vec()))
            }
            _ => Ok(None),
        }
    }

    /// Like [`Model::hidden`], of the base model, without the adapters under training.
    pub fn hidden_of_base(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        self.tokenizer.check(&batch.ids)?;
        self.decoder.hidden(batch, rows, Adapters::Off)
    }

    /// The model's statistics of `targets` at `rows` of the batch. On a GPU this only enqueues the work, so that the caller can prepare the
    /// next batch meanwhile; elsewhere it computes everything.
    pub fn statistics(
        &self,
        batch: &Batch,
        rows: &[u32],
        targets: &[u32],
        options: &HeadOptions,
        curves: Curves,
    ) -> Result<Statistics<'_>> {
        self.tokenizer.check(&batch.ids)?;
        self.tokenizer.check(targets)?;
        if let Some(on_cuda) = &self.on_cuda {
            let pending = on_cuda.statistics(&self.decoder, batch, rows, targets, options, curves.of)?;
            let of = CurvesOf { head: self.head(), options: *options, k_max: curves.k_max };
            return Ok(Statistics::Pending(pending, of));
        }
        on_the_pool(|| {
            let began = Instant::now();
            let hidden_nd = self.decoder.hidden(batch, rows, Adapters::On)?;
            let decoder = began.elapsed();
            let (tokens, curves) = head_statistics_and_curves(&hidden_nd, self.head(), targets, options, curves)?;
            Ok(Statistics::Ready(BatchStatistics { tokens, curves, decoder, head: began.elapsed() - decoder }))
        })
    }

    /// The number of tokens per batch that keeps the processor or the GPU busy without wasting memory.
    pub fn token_budget(&self) -> usize {
        // On the CPU products reach their peak rate at about a thousand rows; more rows only cost memory.
        self.on_cuda.as_ref().map_or(2048, OnCuda::token_budget)
    }

    /// The vocabulary matrix `[V, D]`.
    pub fn head(&self) -> &Matrix {
        self.decoder.head()
    }

    /// The logits `[rows.len(), V]` at `rows` of the batch. For tests and small checks only: they take much memory, and the statistics do not
    /// need them.
    pub fn logits(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        self.logits_of(&self.hidden(batch, rows)?)
    }

    /// The logits `[N, V]` of hidden states `[N, D]`.
    pub fn logits_of(&self, hidden_nd: &Tensor) -> Result<Tensor> {
        let logits = self.head().forward(hidden_nd)?;
        Ok(match self.config.final_softcap {
            Some(cap) => ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?,
            None => logits,
        })
    }

    /// The options for the statistics of the head, with the model's own softcap.
    pub fn head_options(&self, top_k: usize) -> HeadOptions {
        HeadOptions { top_k, softcap: self.config.final_softcap }
    }
}

/// Returns an error if the model was not made for sequences of `max_positions` tokens.
fn check_length(config: &Config, name: &str, max_positions: usize) -> Result<()> {
    let longest = config.longest();
    if max_positions <= longest {
        return Ok(());
    }
    let beyond = match longest == config.max_positions {
        true => format!("is more than the {longest} positions that {name} was made for"),
        false => {
            format!("is more than {longest}, beyond which the rotary frequencies of {name} depend on the sequence (LongRoPE)")
        }
    };
    Err(Error::usage(format!("--max-len {max_positions} {beyond}")).cure(format!("Give --max-len {longest} or less.")))
}
