//! Saves a model as a Hugging Face folder that Transformers and this program can load: weights, config.json, tokenizer, chat template.
//!
//! The model may come from any source: for a folder, the files beside the weights are copied; for a GGUF file, they are generated from
//! its metadata. Of a multimodal checkpoint only the language model is saved. The folder is written under a temporary name and renamed at
//! the end, so it is either complete or absent.

use std::path::Path;
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};

use super::replaceable::check_replaceable;
use super::safetensors_write::{SHARD_BYTES, SavedTensor, write_weights};
use crate::error::{Context, Error, Result};
use crate::files::{in_new_folder, write_synced};
use crate::json::pretty;
use crate::kernels::rotary::Rotary;
use crate::kernels::{Dtype, Kernels, Stored};
use crate::model::config::Config;
use crate::model::experts::{CORRECTION, stack};
use crate::model::families;
use crate::model::layers::Layer;
use crate::model::{LoadOptions, Placement, Reference, Source};
use crate::tokens::{ChatTemplate, Tokenizer};

/// Saves a trained model that was loaded from `reference`, replacing a model that was saved to `folder` before.
///
/// `fetch(name, shape)` returns the trained values of a tensor, with the name, shape and convention with which a block requests it from
/// its source, except that stacked experts are requested one by one. Each is requested once, in the order of the layers, and dropped once
/// it is written.
pub fn save(
    reference: &Reference,
    folder: &Path,
    dtype: Stored,
    fetch: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
) -> Result<()> {
    // The source only provides names here; that all its tensors are read was checked when the model was loaded.
    let source = reference.open()?;
    let experts = source.config()?.experts;
    let mut values = |name: &str, shape: &[usize]| {
        if name.ends_with(CORRECTION) {
            // This tensor gets no gradient.
            return source.tensor(name, shape);
        }
        let stack = experts.as_ref().map(|experts| stack(experts, name, shape, fetch)).transpose()?.flatten();
        stack.map_or_else(|| fetch(name, shape), Ok)
    };
    save_source(source.as_ref(), folder, dtype, SHARD_BYTES, &mut values, false)
}

/// Saves the model unchanged: an adapter merged into its base, a GGUF file as a folder.
pub fn save_merged(reference: &Reference, folder: &Path, dtype: Stored) -> Result<()> {
    let source = reference.open()?;
    save_source(source.as_ref(), folder, dtype, SHARD_BYTES, &mut |name, shape| source.tensor(name, shape), true)
}

fn save_source(
    source: &dyn Source,
    folder: &Path,
    dtype: Stored,
    shard_bytes: u64,
    fetch: &mut dyn FnMut(&str, &[usize]) -> Result<Tensor>,
    reads_source: bool,
) -> Result<()> {
    let config = source.config()?;
    let mut json = source.config_json()?;
    let saved_config = Config::from_json(&json)?;
    let biases = |config: &Config| (config.qkv_bias, config.output_bias, config.mlp_bias);
    if biases(&saved_config) != biases(&config) {
        return Err(Error::new(format!(
            "the adapter adds biases to a model of the family `{}`, whose config.json cannot express them",
            config.family
        ))
        .cure("Score the adapter directly; only the merged model cannot be saved."));
    }
    // GGUF stores Gemma's norms with 1 added; the family's config.json expects them without.
    let norms_lose_one = saved_config.norm_offset && !config.norm_offset;
    let parts = parts(&config, source)?;
    let tensors: Vec<SavedTensor> = parts.iter().map(|part| part.saved.clone()).collect();
    let tied = !tensors.iter().any(|tensor| tensor.name == HEAD);
    if saved_config.tied != tied {
        json["tie_word_embeddings"] = tied.into();
    }
    // Weights are saved as plain numbers, however the file stored them.
    if let Some(json) = json.as_object_mut() {
        json.remove("quantization_config");
    }
    let key = if json.get("torch_dtype").is_some_and(|dtype| !dtype.is_null()) { "torch_dtype" } else { "dtype" };
    json[key] = dtype_name(dtype).into();

    // A stack of experts is fetched once and split.
    let mut stack: Option<(String, Tensor)> = None;
    let mut values = |number: usize| -> Result<Tensor> {
        let part = &parts[number];
        let tensor = match &part.slice {
            None => fetch(&part.stored.name, &part.stored.shape)?,
            Some(expert) => {
                if stack.as_ref().is_none_or(|(name, _)| *name != part.stored.name) {
                    stack = Some((part.stored.name.clone(), fetch(&part.stored.name, &part.stored.shape)?));
                }
                match &stack {
                    Some((_, stack)) => stack.get(*expert)?,
                    None => return Err(Error::new(format!("the stack `{}` is gone", part.stored.name))),
                }
            }
        };
        let name = &part.saved.name;
        match norms_lose_one && name.ends_with("norm.weight") && !name.ends_with("linear_attn.norm.weight") {
            true => Ok((tensor - 1.0)?),
            false => Ok(tensor),
        }
    };
    check_replaceable(folder)?;
    in_new_folder(folder, |partial| {
        write_weights(partial, &tensors, dtype, shard_bytes, &mut values)?;
        if reads_source {
            source.check_all_used()?;
        }
        for (name, bytes) in source.companions()?.into_iter().chain([("config.json", pretty(&json)?)]) {
            let path = partial.join(name);
            if let Some(folder) = path.parent() {
                std::fs::create_dir_all(folder).context_at(folder, "cannot create the folder")?;
            }
            write_synced(&path, &bytes)?;
        }
        Ok(())
    })
}

const EMBEDDING: &str = "model.embed_tokens.weight";
const NORM: &str = "model.norm.weight";
const HEAD: &str = "lm_head.weight";

fn dtype_name(dtype: Stored) -> &'static str {
    match dtype {
        Stored::F32 => "float32",
        Stored::Bf16 => "bfloat16",
    }
}

/// A tensor of the folder and the source of its values: a tensor of the source, or one slice of it.
struct Part {
    saved: SavedTensor,
    stored: SavedTensor,
    slice: Option<usize>,
}

/// The tensors that the family requests from its source, in that order, by Transformers' names.
fn parts(config: &Config, source: &dyn Source) -> Result<Vec<Part>> {
    let family = families::by_model_type(config.family)?;
    let asked = Asked { source, tensors: Mutex::default() };
    let vocabulary = [config.vocab_size, config.hidden_size];
    asked.tensor(EMBEDDING, &vocabulary)?;
    // Loading the blocks with zeros, one at a time, reveals what they need without a list in every family.
    let rotary = Rotary::new(&config.rope.inverse_frequencies(config.rotary_dim)?, 1, family.rotary, 1.0);
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    for index in 0..config.layers {
        (family.block)(&Layer { config, source: &asked, options, index, rotary: &rotary })?;
    }
    asked.tensor(NORM, &[config.hidden_size])?;
    if !config.tied {
        asked.tensor(HEAD, &vocabulary)?;
    }
    let mut parts = Vec::new();
    for stored in asked.tensors.into_inner().unwrap_or_else(PoisonError::into_inner) {
        match (stored.name.split_once(".experts."), stored.shape.as_slice()) {
            // GGUF stacks the experts, where Transformers stores each one separately.
            (Some((mlp, module)), [experts, rows, columns]) if module.ends_with(".weight") => {
                parts.extend((0..*experts).map(|expert| Part {
                    saved: SavedTensor { name: format!("{mlp}.experts.{expert}.{module}"), shape: vec![*rows, *columns] },
                    stored: stored.clone(),
                    slice: Some(expert),
                }));
            }
            _ => parts.push(Part { saved: stored.clone(), stored, slice: None }),
        }
    }
    Ok(parts)
}

/// A source that records the requests, and returns zeros that take no memory.
struct Asked<'a> {
    source: &'a dyn Source,
    tensors: Mutex<Vec<SavedTensor>>,
}

impl Source for Asked<'_> {
    fn config(&self) -> Result<Config> {
        self.source.config()
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        self.source.tokenizer()
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        self.source.template(tokenizer)
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        self.tensors
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .push(SavedTensor { name: name.to_owned(), shape: shape.to_vec() });
        Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(shape)?)
    }

    fn slice(&self, name: &str, shape: &[usize], _index: usize) -> Result<Tensor> {
        // A stack is requested once for each of its parts.
        let known = self.tensors.lock().unwrap_or_else(PoisonError::into_inner).iter().any(|tensor| tensor.name == name);
        if !known {
            self.tensor(name, shape)?;
        }
        Ok(Tensor::zeros(1, DType::F32, &Device::Cpu)?.broadcast_as(&shape[1..])?)
    }

    fn config_json(&self) -> Result<serde_json::Value> {
        self.source.config_json()
    }

    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        self.source.companions()
    }

    fn parameters(&self) -> u64 {
        self.source.parameters()
    }

    fn check_all_used(&self) -> Result<()> {
        self.source.check_all_used()
    }
}

#[cfg(test)]
mod tests;
