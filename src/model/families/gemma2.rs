//! Gemma 2: Gemma with capped attention scores and logits, a window in every second layer, and norms on the inputs and outputs
//! of both halves. Reference: Transformers `models/gemma2/modeling_gemma2.py`; for GGUF, llama.cpp `src/models/gemma2.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Only, Optional};
use crate::error::{Error, Result};
use crate::json::{flag, number, optional_count, shortest};
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "gemma2",
    architecture: "gemma2",
    class: "Gemma2ForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("attn_logit_softcapping", Optional),
        ("final_logit_softcapping", Optional),
        ("query_pre_attn_scalar", Honoured),
        ("sliding_window", Honoured),
        ("layer_types", Optional),
        ("hidden_activation", Only(&["gelu_pytorch_tanh"])),
        ("hidden_act", Only(&["gelu_pytorch_tanh"])),
        ("use_bidirectional_attention", Only(&["false"])),
    ],
    defaults: r#"{"vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
                  "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "max_position_embeddings": 8192,
                  "rms_norm_eps": 0.000001, "tie_word_embeddings": true, "query_pre_attn_scalar": 256,
                  "sliding_window": 4096, "attn_logit_softcapping": 50.0, "final_logit_softcapping": 30.0, "pad_token_id": 0}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("pre_feedforward_layernorm", "ffn_norm"),
        ("post_feedforward_layernorm", "post_ffw_norm"),
    ],
    gguf_keys: &[
        ("attention.sliding_window", Honoured),
        ("attn_logit_softcapping", Honoured),
        ("final_logit_softcapping", Honoured),
    ],
    block,
    ..Family::PLAIN
};

/// Every second layer has a window, beginning with the first.
fn is_windowed(layer: usize) -> bool {
    layer.is_multiple_of(2)
}

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.norm_offset = true;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    let scalar = number(json, "query_pre_attn_scalar")?.unwrap_or(256.0);
    if scalar <= 0.0 {
        return Err(Error::new(format!("`query_pre_attn_scalar` is {scalar}; expected a positive number")));
    }
    config.attention_scale = (1.0 / scalar.sqrt()) as f32;
    config.attention_softcap = number(json, "attn_logit_softcapping")?.map(|cap| cap as f32);
    config.final_softcap = number(json, "final_logit_softcapping")?.map(|cap| cap as f32);
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.read_windows(json, optional_count(json, "sliding_window")?, is_windowed)
}

fn settings(config: &Config) -> Value {
    // The scale is an f32, and Transformers accepts whole numbers only. If the scale is not from a whole number, the check on
    // reading refuses it.
    let scalar = f64::from(config.attention_scale).powi(-2).round() as u64;
    json!({
        "hidden_act": null, "hidden_activation": "gelu_pytorch_tanh", "attention_bias": config.qkv_bias,
        "query_pre_attn_scalar": scalar, "attn_logit_softcapping": config.attention_softcap.map(shortest),
        "final_logit_softcapping": config.final_softcap.map(shortest),
        "sliding_window": config.windows.iter().flatten().next(), "layer_types": config.layer_types(),
    })
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    // The converter has already added 1 to the norm weights.
    config.norm_offset = false;
    config.embedding_scale = (config.hidden_size as f64).sqrt();
    // Only the 27B model scales by the width per head; its number of layers identifies it, as in llama.cpp.
    if config.layers == 46 {
        config.attention_scale = 1.0 / ((config.hidden_size / config.heads.max(1)) as f32).sqrt();
    }
    // 0 means no cap.
    let cap = |name: &str| -> Result<Option<f32>> {
        let cap = file.required(name, file.arch_number(name)?)?;
        Ok(Some(cap as f32).filter(|cap| *cap > 0.0))
    };
    config.attention_softcap = cap("attn_logit_softcapping")?;
    config.final_softcap = cap("final_logit_softcapping")?;
    let window = Some(file.required_count("attention.sliding_window")?).filter(|&window| window > 0);
    config.windows = (0..config.layers).map(|layer| window.filter(|_| is_windowed(layer))).collect();
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    Ok(Block {
        attention_norm: Some(layer.norm("input_layernorm")?),
        mixer: Attention::load(layer)?.into(),
        attention_post_norm: Some(layer.norm("post_attention_layernorm")?),
        mlp_norm: Some(layer.norm("pre_feedforward_layernorm")?),
        mlp: FeedForward::Dense(Mlp::load(layer, Activation::GeluTanh)?),
        mlp_post_norm: Some(layer.norm("post_feedforward_layernorm")?),
    })
}
