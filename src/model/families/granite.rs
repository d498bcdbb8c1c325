//! Granite 3: Llama with separate multipliers for embeddings, attention scores, logits, and what is added to the residual
//! stream. Reference: Transformers `models/granite/modeling_granite.py`; for GGUF, llama.cpp `src/models/granite.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::Honoured;
use super::llama;
use crate::error::Result;
use crate::json::{flag, number, shortest};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "granite",
    architecture: "granite",
    class: "GraniteForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("mlp_bias", Honoured),
        ("embedding_multiplier", Honoured),
        ("attention_multiplier", Honoured),
        ("residual_multiplier", Honoured),
        ("logits_scaling", Honoured),
    ],
    configure,
    settings,
    configure_gguf,
    gguf_keys: &[
        ("embedding_scale", Honoured),
        ("attention.scale", Honoured),
        ("residual_scale", Honoured),
        ("logit_scale", Honoured),
    ],
    gguf_permuted: true,
    block: llama::block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.mlp_bias = flag(json, "mlp_bias")?.unwrap_or(false);
    scale(
        config,
        |key| number(json, key),
        ["embedding_multiplier", "attention_multiplier", "residual_multiplier", "logits_scaling"],
    )
}

/// Reads the four multipliers by name; each defaults to 1.
fn scale(config: &mut Config, read: impl Fn(&str) -> Result<Option<f64>>, names: [&str; 4]) -> Result<()> {
    let [embedding, attention, residual, logits] = names;
    config.embedding_scale = read(embedding)?.unwrap_or(1.0);
    config.attention_scale = read(attention)?.unwrap_or(1.0) as f32;
    config.residual_scale = read(residual)?.unwrap_or(1.0);
    config.logit_divisor = read(logits)?.unwrap_or(1.0);
    Ok(())
}

fn settings(config: &Config) -> Value {
    json!({
        "attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias,
        "embedding_multiplier": config.embedding_scale, "attention_multiplier": shortest(config.attention_scale),
        "residual_multiplier": config.residual_scale, "logits_scaling": config.logit_divisor,
    })
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    config.qkv_bias = file.holds_qkv_bias();
    config.output_bias = file.holds("blk.0.attn_output.bias");
    config.mlp_bias = file.holds("blk.0.ffn_down.bias");
    // The file stores them as f32.
    let read = |key: &str| Ok(Some(shortest(file.required(key, file.arch_number(key)?)? as f32)));
    scale(config, read, ["embedding_scale", "attention.scale", "residual_scale", "logit_scale"])
}
