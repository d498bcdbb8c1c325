//! Gemma 3, the language model: five layers with a window and a rotary base of their own to one without, norms before and behind
//! everything, on queries and on keys, scaled embeddings, GELU. Of the multimodal `gemma3` the text half is read.
//! Reference: Transformers `models/gemma3/modeling_gemma3.py`; for GGUF, llama.cpp `src/models/gemma3.cpp`.

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
        // Transformers reads it and does not use it.
        ("attn_logit_softcapping", Only(&[])),
        ("final_logit_softcapping", Optional),
        ("query_pre_attn_scalar", Honoured),
        // Where each kind of layer has its own rope parameters, Transformers does not read it.
        ("original_max_position_embeddings", Only(&[])),
        ("sliding_window", Honoured),
        ("sliding_window_pattern", Honoured),
        // What Transformers 5 writes and never reads: `layer_types` stands beside it.
        ("_sliding_window_pattern", Irrelevant),
        ("layer_types", Optional),
        ("rope_local_base_freq", Honoured),
        ("hidden_activation", Only(&["gelu_pytorch_tanh"])),
        ("hidden_act", Only(&["gelu_pytorch_tanh"])),
        ("use_bidirectional_attention", Only(&["false"])),
    ],
    // The multimodal checkpoints rely on these.
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

/// Layers with a window between two without, where the file does not say, and the base of their rotary embedding.
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
    // The scale is an f32, and Transformers takes whole numbers only; where none is meant, reading back refuses the model.
    let scalar = f64::from(config.attention_scale).powi(-2).round() as u64;
    json!({
        "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": scalar, "final_logit_softcapping": config.final_softcap.map(shortest),
        "sliding_window": config.windows.iter().flatten().next(), "layer_types": config.layer_types(),
        "rope_local_base_freq": window_theta,
    })
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    // The converter has added the 1 to the norms already.
    config.norm_offset = false;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    // The 27B model alone scales by the width per head; it is told by its layers, as llama.cpp does.
    if config.layers == 62 {
        config.attention_scale = 1.0 / ((config.hidden_size / config.heads.max(1)) as f32).sqrt();
    }
    // In llama.cpp 0 stands for none, of both.
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
