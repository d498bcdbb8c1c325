//! Qwen 3.5 and 3.6 with experts beside a gated shared network, on their own or, as published, inside a multimodal model.
//! Reference: Transformers `models/qwen3_5_moe/modeling_qwen3_5_moe.py`.

use serde_json::Value;

use super::family::Family;
use super::family::Rule::{Honoured, Irrelevant, Only, Optional};
use super::{hybrid, hybrid_gguf};
use crate::error::Result;
use crate::json::count;
use crate::model::config::{Config, ExpertsConfig};
use crate::model::files::gguf::Gguf;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_5_moe_text",
    architecture: "qwen35moe",
    class: "Qwen3_5MoeForCausalLM",
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
        ("num_experts", Honoured),
        ("num_experts_per_tok", Honoured),
        ("moe_intermediate_size", Honoured),
        ("shared_expert_intermediate_size", Honoured),
        // All layers have experts, with normalised weights.
        ("norm_topk_prob", Only(&["true"])),
        ("attn_output_gate", Only(&["true"])),
        ("decoder_sparse_step", Only(&["1"])),
        ("mlp_only_layers", Only(&["[]"])),
        // Layers that predict several tokens ahead, and the type of the states in other programs' caches.
        ("mtp_num_hidden_layers", Irrelevant),
        ("mtp_use_dedicated_embeddings", Irrelevant),
        ("mamba_ssm_dtype", Irrelevant),
    ],
    defaults: r#"{"vocab_size": 248320, "hidden_size": 2048, "num_hidden_layers": 40, "num_attention_heads": 16,
                  "num_key_value_heads": 2, "max_position_embeddings": 32768, "head_dim": 256, "linear_conv_kernel_dim": 4,
                  "linear_key_head_dim": 128, "linear_value_head_dim": 128, "linear_num_key_heads": 16,
                  "linear_num_value_heads": 32, "moe_intermediate_size": 512, "shared_expert_intermediate_size": 512,
                  "num_experts_per_tok": 8, "num_experts": 256, "intermediate_size": 512}"#,
    left_aside: &["mtp.", "model.visual."],
    configure,
    settings,
    configure_gguf,
    gguf_names: hybrid_gguf::NAMES,
    gguf_keys: hybrid_gguf::KEYS_WITH_EXPERTS,
    gguf_tensor: hybrid_gguf::tensor,
    block: hybrid::block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    hybrid::configure(config, json, false)?;
    let (n_experts, per_token) = (count(json, "num_experts")?, count(json, "num_experts_per_tok")?);
    let (inner, shared_size) = (count(json, "moe_intermediate_size")?, count(json, "shared_expert_intermediate_size")?);
    config.experts = Some(experts(config.layers, [n_experts, per_token, inner, shared_size]));
    Ok(())
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    hybrid_gguf::configure(config, file)?;
    let (n_experts, per_token) = (file.required_count("expert_count")?, file.required_count("expert_used_count")?);
    let inner = file.required_count("expert_feed_forward_length")?;
    let shared_size = file.required_count("expert_shared_feed_forward_length")?;
    config.experts = Some(experts(config.layers, [n_experts, per_token, inner, shared_size]));
    Ok(())
}

fn experts(layers: usize, [n_experts, per_token, inner, shared_size]: [usize; 4]) -> ExpertsConfig {
    ExpertsConfig {
        shared_size,
        shared_gate: true,
        // Not in Transformers' table of conversions, which PEFT relies on.
        modules: false,
        ..ExpertsConfig::plain(n_experts, per_token, inner, vec![true; layers])
    }
}

fn settings(config: &Config) -> Value {
    let mut json = hybrid::settings(config);
    if let Some(experts) = &config.experts {
        for (key, number) in [
            ("num_experts", experts.count),
            ("num_experts_per_tok", experts.per_token),
            ("moe_intermediate_size", experts.intermediate_size),
            ("shared_expert_intermediate_size", experts.shared_size),
        ] {
            json.insert(key.to_owned(), number.into());
        }
    }
    Value::Object(json)
}
