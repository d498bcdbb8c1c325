//! The description of a model family: a row in the table of families.

use candle_core::Tensor;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::rotary::RotaryStyle;
use crate::model::block::Block;
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::Layer;

/// What is specific to a family. All families are decoders that [`crate::model::decoder`] runs.
pub(crate) struct Family {
    /// config.json's `model_type`, which is also the name of the family's file.
    pub model_type: &'static str,
    /// Its name in GGUF files: their `general.architecture`. Empty if another family reads those files.
    pub architecture: &'static str,
    /// Transformers' class of the model with a language-model head.
    pub class: &'static str,
    /// The rules for config.json's keys, where they differ from `keys::COMMON`.
    pub keys: Rules,
    /// JSON: the defaults of Transformers' config class for keys that config.json may omit.
    pub defaults: &'static str,
    /// Which elements of a head are rotated as a pair.
    pub rotary: RotaryStyle,
    /// Prefixes of tensor names that files hold in addition to the model and that are not run, as in Transformers.
    pub left_aside: &'static [&'static str],
    /// Reads the family's own settings from config.json.
    pub configure: fn(&mut Config, &Value) -> Result<()>,
    /// The inverse of `configure`: the family's own settings for config.json. `null` removes a key that all families have.
    pub settings: fn(&Config) -> Value,
    /// Like `configure`, from GGUF metadata.
    pub configure_gguf: fn(&mut Config, &Gguf) -> Result<()>,
    /// Pairs of Transformers' and llama.cpp's names for a block's modules, where they differ from `gguf::NAMES`.
    pub gguf_names: &'static [(&'static str, &'static str)],
    /// The rules for GGUF keys, where they differ from `gguf_keys`, without the architecture's prefix.
    pub gguf_keys: Rules,
    /// Whether llama.cpp's converter reorders the rows of queries and keys for interleaved rotary embedding.
    pub gguf_permuted: bool,
    /// Reads a tensor that llama.cpp's files hold in another form, by Transformers' name and shape; a number selects one tensor of a
    /// stack. Returns `None` for all other tensors.
    pub gguf_tensor: ReadTensor,
    /// Loads one block.
    pub block: fn(&Layer) -> Result<Block>,
}

impl Family {
    /// The values that most families share; fields that differ for every family are empty.
    pub(super) const PLAIN: Family = Family {
        model_type: "",
        architecture: "",
        class: "",
        keys: &[],
        defaults: "{}",
        rotary: RotaryStyle::Half,
        left_aside: &[],
        configure: |_, _| Ok(()),
        settings: |_| Value::Null,
        configure_gguf: |_, _| Ok(()),
        gguf_names: &[],
        gguf_keys: &[],
        gguf_permuted: false,
        gguf_tensor: |_, _, _, _| Ok(None),
        block: |_| Err(Error::new("the family has no blocks")),
    };
}

/// Reads a tensor by name and shape and, if it is part of a stack, its index there.
type ReadTensor = fn(&Gguf, &str, &[usize], Option<usize>) -> Result<Option<Tensor>>;

/// How a key of config.json is treated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    /// Affects the logits, and is read. `null` is refused, as in Transformers.
    Honoured,
    /// Like `Honoured`, where Transformers accepts `null` and treats it as a missing key.
    Optional,
    /// Would affect the logits; only these values are accepted. A missing key is always accepted, and so is `null` where it can mean one
    /// of them.
    Only(&'static [&'static str]),
    /// Only concerns training, generation or bookkeeping.
    Irrelevant,
}

/// A rule for each key; the family's own rules take precedence.
pub(crate) type Rules = &'static [(&'static str, Rule)];
