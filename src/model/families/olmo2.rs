//! OLMo 2: norms on the outputs of attention and feed-forward network and none on their inputs, one norm over all queries and one
//! over all keys. Reference: Transformers `models/olmo2/modeling_olmo2.py`; for GGUF, llama.cpp `src/models/olmo2.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::Honoured;
use crate::error::Result;
use crate::json::flag;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "olmo2",
    architecture: "olmo2",
    class: "Olmo2ForCausalLM",
    keys: &[("attention_bias", Honoured)],
    defaults: r#"{"rms_norm_eps": 0.00001, "max_position_embeddings": 2048, "pad_token_id": 1}"#,
    configure,
    settings: |config| json!({"attention_bias": config.qkv_bias}),
    gguf_names: NAMES,
    block,
    ..Family::PLAIN
};

pub(super) const NAMES: &[(&str, &str)] =
    &[("post_attention_layernorm", "post_attention_norm"), ("post_feedforward_layernorm", "post_ffw_norm")];

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    Ok(())
}

pub(super) fn block(layer: &Layer) -> Result<Block> {
    Ok(Block {
        attention_norm: None,
        mixer: Attention::load_with_whole_norms(layer)?.into(),
        attention_post_norm: Some(layer.norm("post_attention_layernorm")?),
        mlp_norm: None,
        mlp: FeedForward::Dense(Mlp::load(layer, Activation::Silu)?),
        mlp_post_norm: Some(layer.norm("post_feedforward_layernorm")?),
    })
}
