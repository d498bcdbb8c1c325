//! What a row of the table of families says.

use serde_json::Value;

use crate::error::Result;
use crate::kernels::rotary::RotaryStyle;
use crate::model::block::Block;
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::Layer;

/// What is particular to a family. All families are pre-norm decoders that [`crate::model::decoder`] runs.
pub(crate) struct Family {
    /// config.json's `model_type`, which is also the name of the family's file.
    pub model_type: &'static str,
    /// The same for GGUF: its `general.architecture`. Empty where another family reads those files.
    pub architecture: &'static str,
    /// Transformers' class of the model with its head.
    pub class: &'static str,
    /// What becomes of the keys of config.json that are not as in `keys::COMMON`.
    pub keys: Rules,
    /// JSON: what Transformers' config class takes for keys that config.json may leave out.
    pub defaults: &'static str,
    pub rotary: RotaryStyle,
    /// Reads what is particular from config.json.
    pub configure: fn(&mut Config, &Value) -> Result<()>,
    /// The way back: what config.json says that is particular. `null` removes a key that all families have.
    pub settings: fn(&Config) -> Value,
    /// `configure` from GGUF metadata.
    pub configure_gguf: fn(&mut Config, &Gguf) -> Result<()>,
    /// Transformers' names of a block's modules and llama.cpp's, where `gguf::NAMES` does not hold.
    pub gguf_names: &'static [(&'static str, &'static str)],
    /// Loads one block.
    pub block: fn(&Layer) -> Result<Block>,
}

/// What becomes of a key of config.json.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    /// Changes the logits, and is read. `null` is refused, as Transformers does.
    Honoured,
    /// The same where Transformers takes `null`, which is then as good as a missing key.
    Optional,
    /// Would change the logits: only these values are taken. A missing key always is, and `null` where it can stand for them.
    Only(&'static [&'static str]),
    /// Concerns training, generation or bookkeeping.
    Irrelevant,
}

/// A rule for each key; the family's own rules first.
pub(super) type Rules = &'static [(&'static str, Rule)];
