//! GLM-4-9B: half of each head is rotated, in neighbouring pairs; gate and up are one matrix.
//! Reference: Transformers `models/glm/modeling_glm.py`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::Honoured;
use crate::error::Result;
use crate::json::flag;
use crate::kernels::gated::Activation;
use crate::kernels::rotary::RotaryStyle;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::{Rope, partial_rotary_factor};

pub(super) const FAMILY: Family = Family {
    model_type: "glm",
    architecture: "chatglm",
    class: "GlmForCausalLM",
    keys: &[("attention_bias", Honoured), ("partial_rotary_factor", Honoured)],
    defaults: r#"{"head_dim": 128, "num_key_value_heads": 2, "rms_norm_eps": 0.00000015625, "pad_token_id": 151329}"#,
    rotary: RotaryStyle::Interleaved,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[("mlp.gate_up_proj", "ffn_up")],
    block,
    ..Family::PLAIN
};

pub(super) fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.rotary_dim = (config.head_dim as f64 * partial_rotary_factor(json)?.unwrap_or(0.5)) as usize;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(true);
    Ok(())
}

pub(super) fn settings(config: &Config) -> Value {
    let share = config.rotary_dim as f64 / config.head_dim as f64;
    json!({"attention_bias": config.qkv_bias, "partial_rotary_factor": share})
}

pub(super) fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    config.qkv_bias = file.holds_qkv_bias();
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    Block::pre_norm(layer, Attention::load(layer)?, FeedForward::Dense(Mlp::load_fused(layer, Activation::Silu)?))
}
