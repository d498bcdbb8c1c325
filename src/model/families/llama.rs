//! Llama: rotary grouped-query attention and a SiLU-gated feed-forward network. Covers Llama 1 to 3, SmolLM2 and other models
//! with the type `llama`. Reference: Transformers `models/llama/modeling_llama.py`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Optional};
use crate::error::Result;
use crate::json::flag;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "llama",
    architecture: "llama",
    class: "LlamaForCausalLM",
    keys: &[("attention_bias", Honoured), ("mlp_bias", Honoured), ("head_dim", Optional), ("num_key_value_heads", Optional)],
    configure,
    settings,
    configure_gguf,
    block,
    gguf_permuted: true,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.mlp_bias = flag(json, "mlp_bias")?.unwrap_or(false);
    Ok(())
}

fn settings(config: &Config) -> Value {
    json!({"attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias})
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    config.qkv_bias = file.holds_qkv_bias();
    config.output_bias = file.holds("blk.0.attn_output.bias");
    config.mlp_bias = file.holds("blk.0.ffn_down.bias");
    Ok(())
}

pub(super) fn block(layer: &Layer) -> Result<Block> {
    Block::pre_norm(layer, Attention::load(layer)?, FeedForward::Dense(Mlp::load(layer, Activation::Silu)?))
}
