//! Where weights come from, whatever the file.

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

/// A place that weights come from. Tensors are asked for by the names that Transformers gives them.
pub(crate) trait Source: Sync {
    fn config(&self) -> Result<Config>;
    fn tokenizer(&self) -> Result<Tokenizer>;
    /// `None` for a base model, which has no chat template.
    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>>;
    fn has(&self, name: &str) -> bool;
    /// The tensor as f32 on the CPU; an error names what was expected if it is absent or has another shape.
    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor>;
    /// The `index`th of the tensors that are stacked as `name`, whose whole shape is `shape`; the others are not read.
    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor>;
    /// The matrix, or the `index`th of those stacked as `name`, in bf16 if the file has it so: exactly the numbers of [`Source::tensor`] or
    /// [`Source::slice`].
    fn bf16(&self, _name: &str, _shape: &[usize], _index: Option<usize>) -> Result<Option<Tensor>> {
        Ok(None)
    }
    /// The matrix in the blocks that the file has it in, if products can use these as they are and its values are exactly those of
    /// [`Source::tensor`].
    fn blocks(&self, _name: &str, _shape: [usize; 2]) -> Result<Option<Blocks>> {
        Ok(None)
    }
    /// config.json of the language model, with Transformers' names.
    fn config_json(&self) -> Result<Value>;
    /// What else stands beside the weights in a Hugging Face folder: the tokenizer's files, the chat template. Names and contents.
    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
    /// Number of weights of the language model in the file.
    fn parameters(&self) -> u64;
    /// Is the language model the inner half of a multimodal one, whose modules have other names?
    fn is_multimodal(&self) -> Result<bool> {
        Ok(false)
    }
    /// Sentences for the user: where two places in the files contradict each other, and which was taken; what was left aside.
    fn remarks(&self) -> Result<Vec<String>> {
        Ok(Vec::new())
    }
    /// Once the model is loaded: an error that names the tensors that nobody has asked for, unless they are known to change nothing.
    fn check_all_used(&self) -> Result<()>;
}

/// The matrices that `parts` name, one below the other; in the blocks of their file if all of them can stay in theirs.
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

/// A part of a matrix, or the `index`th of those stacked as `name`. A GPU takes in bf16 as the file has it, the CPU f32.
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

/// Which tensors of a source somebody has asked for.
#[derive(Default)]
pub(crate) struct Used(Mutex<HashSet<String>>);

impl Used {
    pub(super) fn note(&self, name: &str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).insert(name.to_owned());
    }

    /// The names among `names` that nobody has asked for, in order.
    pub(super) fn others<'a>(&self, names: impl Iterator<Item = &'a String>) -> Vec<String> {
        let used = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let mut others: Vec<String> = names.filter(|name| !used.contains(*name)).cloned().collect();
        others.sort_unstable();
        others
    }
}

/// A few names, and how many more there are.
pub(crate) fn listed(names: &[String]) -> String {
    const SHOWN: usize = 8;
    let shown = names.iter().take(SHOWN).map(|name| format!("`{name}`")).collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(SHOWN) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}
