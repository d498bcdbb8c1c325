//! Qwen 3.5 and 3.6: the gated delta rule in three of four layers, gated attention in the fourth; on their own or, as published,
//! inside a multimodal model. Reference: Transformers `models/qwen3_5/modeling_qwen3_5.py`.

use serde_json::Value;

use super::family::Family;
use super::family::Rule::{Honoured, Irrelevant, Only, Optional};
use super::{hybrid, hybrid_gguf};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_5_text",
    architecture: "qwen35",
    class: "Qwen3_5ForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("partial_rotary_factor", Honoured),
        ("linear_num_key_heads", Honoured),
        ("linear_num_value_heads", Honoured),
        ("linear_key_head_dim", Honoured),
        ("linear_value_head_dim", Honoured),
        ("linear_conv_kernel_dim", Honoured),
        ("layer_types", Optional),
        // Read if `layer_types` is missing.
        ("full_attention_interval", Honoured),
        ("attn_output_gate", Only(&["true"])),
        ("mlp_only_layers", Only(&["[]"])),
        // Layers that predict several tokens ahead, and the type of the states in other programs' caches.
        ("mtp_num_hidden_layers", Irrelevant),
        ("mtp_use_dedicated_embeddings", Irrelevant),
        ("mamba_ssm_dtype", Irrelevant),
    ],
    defaults: r#"{"vocab_size": 248320, "hidden_size": 4096, "intermediate_size": 12288, "num_hidden_layers": 32,
                  "num_attention_heads": 16, "num_key_value_heads": 4, "max_position_embeddings": 32768, "head_dim": 256,
                  "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
                  "linear_num_key_heads": 16, "linear_num_value_heads": 32}"#,
    left_aside: &["mtp.", "model.visual."],
    configure: |config, json| hybrid::configure(config, json, false),
    settings: |config| Value::Object(hybrid::settings(config)),
    configure_gguf: hybrid_gguf::configure,
    gguf_names: hybrid_gguf::NAMES,
    gguf_keys: hybrid_gguf::KEYS,
    gguf_tensor: hybrid_gguf::tensor,
    block: hybrid::block,
    ..Family::PLAIN
};
