//! Where weights come from, whatever the file.

use candle_core::Tensor;
use serde_json::Value;

use super::config::Config;
use crate::error::Result;
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
    /// config.json of the language model, with Transformers' names.
    fn config_json(&self) -> Result<Value>;
    /// What else stands beside the weights in a Hugging Face folder: the tokenizer's files, the chat template. Names and contents.
    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>>;
    /// Number of weights in the file.
    fn parameters(&self) -> u64;
    /// An error if the source brings changes to tensors that the family has not asked for.
    fn check_all_used(&self) -> Result<()> {
        Ok(())
    }
}
