//! Qwen 3: norms on queries and keys in place of Qwen 2's biases. Reference: Transformers `models/qwen3/modeling_qwen3.py`.

use serde_json::Value;

use super::family::Family;
use super::family::Rule::{Honoured, Optional};
use super::qwen2;
use crate::error::Result;
use crate::json::flag;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3",
    architecture: "qwen3",
    class: "Qwen3ForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("use_sliding_window", Honoured),
        ("num_key_value_heads", Optional),
        ("sliding_window", Optional),
        ("max_window_layers", Honoured),
        ("layer_types", Optional),
    ],
    defaults: r#"{"num_key_value_heads": 32, "head_dim": 128, "sliding_window": 4096, "max_window_layers": 28}"#,
    configure,
    settings,
    block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    qwen2::read_windows(config, json)
}

fn settings(config: &Config) -> Value {
    let mut json = qwen2::window_settings(config);
    json["attention_bias"] = config.qkv_bias.into();
    json
}

fn block(layer: &Layer) -> Result<Block> {
    Block::pre_norm(layer, Attention::load_with_norms(layer)?, FeedForward::Dense(Mlp::load(layer, Activation::Silu)?))
}
