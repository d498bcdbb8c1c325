//! The interface through which weights are read, whatever the file format.

use std::collections::HashSet;
use std::sync::{Mutex, PoisonError};

use candle_core::Tensor;
use serde_json::Value;

use super::LoadOptions;
use super::config::Config;
use crate::error::Result;
use crate::kernels::Kernels;
use crate::kernels::matmul::Matrix;
use crate::kernels::quantized::Blocks;
use crate::tokens::{ChatTemplate, Tokenizer};

/// A source of weights. Tensors are addressed by the names that Transformers gives them.
pub(crate) trait Source: Sync {
    fn config(&self) -> Result<Config>;
    fn tokenizer(&self) -> Result<Tokenizer>;
    /// Returns `None` for a base model, which has no chat template.
    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>>;
    fn has(&self, name: &str) -> bool;
    /// Returns the tensor as f32 on the CPU; if it is absent or has another shape, the error says what was expected.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// Returns the `index`th of the tensors stacked as `name`, whose whole shape is `shape`, without reading the others.
    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor>;
    /// Returns the matrix, or the `index`th of those stacked as `name`, in bf16 if the file stores it so: exactly the numbers of
    /// [`Source::tensor`] or [`Source::slice`].
    fn bf16(&self, _name: &str, _shape: &[usize], _index: Option<usize>) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// Returns the matrix in the quantised blocks of the file, if products can use these directly and its values are exactly those of
    /// [`Source::tensor`].
    fn blocks(&self, _name: &str, _shape: [usize; 2]) -> Result<Option<Blocks>> {
        Ok(None)
    }
    /// Returns config.json of the language model, with Transformers' names.
    fn config_json(&self) -> Result<Value>;
    /// Returns the names and contents of the other files of a Hugging Face folder: the tokenizer's files and the chat template.
    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
    /// Returns the number of weights of the language model in the file.
    fn parameters(&self) -> u64;
    /// Whether the language model is part of a multimodal one, whose modules have other names.
    fn is_multimodal(&self) -> Result<bool> {
        Ok(false)
    }
    /// Returns sentences for the user: contradictions in the files and how they were resolved, and what was ignored.
    fn remarks(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// After the model is loaded: returns an error that names the tensors that were never requested, unless they are known to have no
    /// effect.
    fn check_all_used(&self) -> Result<()>;
}

/// Stacks the matrices that `parts` name; they stay in the blocks of their file if all of them can.
pub(super) fn matrix(source: &dyn Source, parts: &[(String, [usize; 2])], options: LoadOptions) -> Result<Matrix> {
    let mut blocks = Vec::new();
    for (name, shape) in parts {
        match source.blocks(name, *shape)? {
            Some(part) => blocks.push(part),
            None => break,
        }
    }
    if blocks.len() == parts.len() {
        return Matrix::in_blocks(blocks);
    }
    drop(blocks);
    Matrix::new(parts.iter().map(|(name, shape)| part(source, name, shape, None, options)), options.dtype, options.kernels)
}

/// Reads a part of a matrix, or the `index`th of those stacked as `name`: for a GPU in bf16 if the file has it, for the CPU in f32.
pub(super) fn part(
    source: &dyn Source,
    name: &str,
    shape: &[usize],
    index: Option<usize>,
    options: LoadOptions,
) -> Result<Tensor> {
    if options.kernels == Kernels::Cuda
        && let Some(part) = source.bf16(name, shape, index)?
    {
        return Ok(part);
    }
    match index {
        Some(index) => source.slice(name, shape, index),
        None => source.tensor(name, shape),
    }
}

/// The tensors of a source that have been requested.
#[derive(Default)]
pub(crate) struct Used(Mutex<HashSet<String>>);

impl Used {
    pub(super) fn note(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// Those of `names` that have not been requested, in order.
    pub(super) fn others<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<String> {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others: Vec<String> = names.filter(|name| !used.contains(*name)).cloned().collect();
        others.sort_unstable();
        others
    }
}

/// Formats the first few names and the number of the remaining ones.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
