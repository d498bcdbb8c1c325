//! Gemma 3, the language model: five layers with a window and their own rotary base for each layer without, norms on the inputs
//! and outputs of both halves and on queries and keys, scaled embeddings, GELU. Also read as the text half of the multimodal
//! `gemma3`. Reference: Transformers `models/gemma3/modeling_gemma3.py`; for GGUF, llama.cpp `src/models/gemma3.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Irrelevant, Only, Optional};
use super::layer_kinds;
use crate::error::{Error, Result};
use crate::json::{flag, number, optional_count, present, shortest};
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::{self, Rope, RopeScaling};

pub(super) const FAMILY: Family = Family {
    model_type: "gemma3_text",
    architecture: "gemma3",
    class: "Gemma3ForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        // Transformers reads this but does not use it.
        ("attn_logit_softcapping", Only(&[])),
        ("final_logit_softcapping", Optional),
        ("query_pre_attn_scalar", Honoured),
        // Transformers does not read this if each kind of layer has its own rope parameters.
        ("original_max_position_embeddings", Only(&[])),
        ("sliding_window", Honoured),
        ("sliding_window_pattern", Honoured),
        // Written by Transformers 5 beside `layer_types`, but never read.
        ("_sliding_window_pattern", Irrelevant),
        ("layer_types", Optional),
        ("rope_local_base_freq", Honoured),
        ("hidden_activation", Only(&["gelu_pytorch_tanh"])),
        ("hidden_act", Only(&["gelu_pytorch_tanh"])),
        ("use_bidirectional_attention", Only(&["false"])),
    ],
    // The multimodal checkpoints rely on these defaults.
    defaults: r#"{"vocab_size": 262208, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                  "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 131072,
                  "rms_norm_eps": 0.000001, "tie_word_embeddings": true, "query_pre_attn_scalar": 256,
                  "sliding_window": 4096, "rope_theta": 1000000.0, "rope_local_base_freq": 10000.0, "pad_token_id": 0}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    block,
    gguf_keys: &[
        ("attention.sliding_window", Honoured),
        ("attention.sliding_window_pattern", Honoured),
        ("rope.freq_base_swa", Honoured),
        ("final_logit_softcapping", Honoured),
    ],
    ..Family::PLAIN
};

/// The distance between layers without a window, and the rotary base of layers with one, if the file does not say.
const PATTERN: usize = 6;
const WINDOW_THETA: f64 = 10_000.0;

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    let full = json.get("rope_parameters").and_then(|sets| present(sets, "full_attention"));
    let theta = rope::base(json, "rope_theta", full, 1_000_000.0)?;
    let window_theta = number(json, "rope_local_base_freq")?.unwrap_or(WINDOW_THETA);
    (config.rope, config.window_rope) = layer_kinds::ropes(json, (theta, window_theta), config.max_positions)?;
    config.norm_offset = true;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    let scalar = number(json, "query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar <= 0.0 {
        return Err(Error::new(format!("`query_pre_attn_scalar` is {scalar}; expected a positive number")));
    }
    config.attention_scale = (1.0 / scalar.sqrt()) as f32;
    config.final_softcap = number(json, "final_logit_softcapping")?.map(|cap| cap as f32);
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    let pattern = optional_count(json, "sliding_window_pattern")?.unwrap_or(PATTERN);
    let window = optional_count(json, "sliding_window")?;
    config.read_windows(json, window, |layer| !(layer + 1).is_multiple_of(pattern))
}

fn settings(config: &Config) -> Value {
    let window_theta = config.window_rope.as_ref().map_or(WINDOW_THETA, |rope| rope.theta);
    // The scale is an f32, and Transformers accepts whole numbers only. If the scale is not from a whole number, the check on
    // reading refuses it.
    let scalar = f64::from(config.attention_scale).powi(-2).round() as u64;
    json!({
        "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": scalar, "final_logit_softcapping": config.final_softcap.map(shortest),
        "sliding_window": config.windows.iter().flatten().next(), "layer_types": config.layer_types(),
        "rope_local_base_freq": window_theta,
    })
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    // The converter has already added 1 to the norm weights.
    config.norm_offset = false;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    // Only the 27B model scales by the width per head; its number of layers identifies it, as in llama.cpp.
    if config.layers == 62 {
        config.attention_scale = 1.0 / ((config.hidden_size / config.heads.max(1)) as f32).sqrt();
    }
    // In llama.cpp 0 means no cap, or no window.
    config.final_softcap = file.arch_number("final_logit_softcapping")?.filter(|&cap| cap != 0.0).map(|cap| cap as f32);
    let window = file.arch_count("attention.sliding_window")?.filter(|&window| window > 0);
    let pattern = file.arch_count("attention.sliding_window_pattern")?.unwrap_or(PATTERN);
    config.windows = (0..config.layers).map(|layer| window.filter(|_| !(layer + 1).is_multiple_of(pattern))).collect();
    let theta = file.arch_number("rope.freq_base_swa")?.unwrap_or(WINDOW_THETA);
    config.window_rope = Some(Rope { theta, scaling: RopeScaling::None });
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    Ok(Block {
        attention_norm: Some(layer.norm("input_layernorm")?),
        mixer: Attention::load_with_norms(layer)?.into(),
        attention_post_norm: Some(layer.norm("post_attention_layernorm")?),
        mlp_norm: Some(layer.norm("pre_feedforward_layernorm")?),
        mlp: FeedForward::Dense(Mlp::load(layer, Activation::GeluTanh)?),
        mlp_post_norm: Some(layer.norm("post_feedforward_layernorm")?),
    })
}
