//! What a row of the table of families says.

use candle_core::Tensor;
use serde_json::Value;

use crate::error::{Error, Result};
use crate::kernels::rotary::RotaryStyle;
use crate::model::block::Block;
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::Layer;

/// What is particular to a family. All families are decoders that [`crate::model::decoder`] runs.
pub(crate) struct Family {
    /// config.json's `model_type`, which is also the name of the family's file.
    pub model_type: &'static str,
    /// What GGUF files call it: their `general.architecture`. Empty where another family reads those files.
    pub architecture: &'static str,
    /// Transformers' class of the model with its head.
    pub class: &'static str,
    /// What becomes of the keys of config.json that are not as in `keys::COMMON`.
    pub keys: Rules,
    /// JSON: what Transformers' config class takes for keys that config.json may leave out.
    pub defaults: &'static str,
    /// Which elements of a head turn together.
    pub rotary: RotaryStyle,
    /// Beginnings of the names of tensors that files hold beside the model, and that are not run, as in Transformers.
    pub left_aside: &'static [&'static str],
    /// Reads what is particular from config.json.
    pub configure: fn(&mut Config, &Value) -> Result<()>,
    /// The way back: what config.json says that is particular. `null` removes a key that all families have.
    pub settings: fn(&Config) -> Value,
    /// `configure` from GGUF metadata.
    pub configure_gguf: fn(&mut Config, &Gguf) -> Result<()>,
    /// Transformers' names of a block's modules and llama.cpp's, where `gguf::NAMES` does not hold.
    pub gguf_names: &'static [(&'static str, &'static str)],
    /// What becomes of the keys of its GGUF files that are not as in `gguf_keys`, without the architecture in front.
    pub gguf_keys: Rules,
    /// Does llama.cpp's converter store the rows of queries and keys for interleaved rotary embedding?
    pub gguf_permuted: bool,
    /// Reads, by Transformers' name and shape, a tensor that llama.cpp's files hold in another form; with a number one of a stack. `None`
    /// for all others.
    pub gguf_tensor: ReadTensor,
    /// Loads one block.
    pub block: fn(&Layer) -> Result<Block>,
}

impl Family {
    /// What most families have; the fields that none shares are empty.
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

/// Reads a tensor by its name and shape and, where it is a part of a stack, its number there.
type ReadTensor = fn(&Gguf, &str, &[usize], Option<usize>) -> Result<Option<Tensor>>;

/// What becomes of a key of config.json.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Rule {
    /// Changes the logits, and is read. `null` is refused, as Transformers does.
    Honoured,
    /// As `Honoured`, where Transformers takes `null`, which is then as good as a missing key.
    Optional,
    /// Would change the logits: only these values are taken. A missing key always is, and `null` where it can stand for them.
    Only(&'static [&'static str]),
    /// Concerns training, generation or bookkeeping.
    Irrelevant,
}

/// A rule for each key; the family's own rules first.
pub(crate) type Rules = &'static [(&'static str, Rule)];
