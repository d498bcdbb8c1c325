//! Gemma 1: Llama with scaled embeddings, GELU, and norms whose weights are stored as an offset from 1.
//! Reference: Transformers `models/gemma/modeling_gemma.py`; for GGUF, llama.cpp `src/models/gemma.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Only};
use crate::error::Result;
use crate::json::flag;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma",
    architecture: "gemma",
    class: "GemmaForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        // The first releases say `gelu` but mean its tanh approximation; Transformers treats them so.
        ("hidden_act", Only(&["gelu", "gelu_pytorch_tanh"])),
        ("hidden_activation", Only(&["gelu_pytorch_tanh"])),
        ("use_bidirectional_attention", Only(&["false"])),
    ],
    defaults: r#"{"vocab_size": 256000, "hidden_size": 3072, "intermediate_size": 24576, "num_hidden_layers": 28,
                  "num_attention_heads": 16, "num_key_value_heads": 16, "head_dim": 256, "max_position_embeddings": 8192,
                  "rms_norm_eps": 0.000001, "tie_word_embeddings": true, "pad_token_id": 0}"#,
    configure,
    settings: |config| json!({"hidden_act": "gelu_pytorch_tanh", "attention_bias": config.qkv_bias}),
    configure_gguf,
    block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.norm_offset = true;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    Ok(())
}

fn configure_gguf(config: &mut Config, _: &Gguf) -> Result<()> {
    // The converter has already added 1 to the norm weights.
    config.norm_offset = false;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    Block::pre_norm(layer, Attention::load(layer)?, FeedForward::Dense(Mlp::load(layer, Activation::GeluTanh)?))
}
