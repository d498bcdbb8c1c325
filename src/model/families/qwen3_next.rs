//! Qwen3-Next: the gated delta rule in three of four layers, gated attention in the fourth, experts beside a gated shared network.
//! Reference: Transformers `models/qwen3_next/modeling_qwen3_next.py`.

use serde_json::Value;

use super::family::Family;
use super::family::Rule::{Honoured, Only, Optional};
use super::{hybrid, qwen3_moe};
use crate::error::Result;
use crate::json::{count, flag};
use crate::model::config::{Config, ExpertsConfig};

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_next",
    class: "Qwen3NextForCausalLM",
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
        ("norm_topk_prob", Honoured),
        ("decoder_sparse_step", Honoured),
        ("mlp_only_layers", Optional),
        ("use_sliding_window", Only(&["false"])),
    ],
    defaults: r#"{"vocab_size": 151936, "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 48,
                  "num_attention_heads": 16, "num_key_value_heads": 2, "max_position_embeddings": 32768, "head_dim": 256,
                  "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128, "linear_value_head_dim": 128,
                  "linear_num_key_heads": 16, "linear_num_value_heads": 32, "moe_intermediate_size": 512,
                  "shared_expert_intermediate_size": 512, "num_experts_per_tok": 10, "num_experts": 512}"#,
    left_aside: &["mtp."],
    configure,
    settings,
    block: hybrid::block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    hybrid::configure(config, json, true)?;
    let n_experts = count(json, "num_experts")?;
    if n_experts > 0 {
        let (per_token, inner) = (count(json, "num_experts_per_tok")?, count(json, "moe_intermediate_size")?);
        config.experts = Some(ExpertsConfig {
            normalise: flag(json, "norm_topk_prob")?.unwrap_or(true),
            shared_size: count(json, "shared_expert_intermediate_size")?,
            shared_gate: true,
            ..ExpertsConfig::plain(n_experts, per_token, inner, qwen3_moe::routed(json, config.layers)?)
        });
    }
    Ok(())
}

fn settings(config: &Config) -> Value {
    let mut json = hybrid::settings(config);
    let mut set = |key: &str, value: Value| json.insert(key.to_owned(), value);
    match &config.experts {
        None => drop(set("num_experts", 0.into())),
        Some(experts) => {
            let dense: Vec<usize> = (0..config.layers).filter(|&layer| !experts.routed[layer]).collect();
            set("num_experts", experts.count.into());
            set("num_experts_per_tok", experts.per_token.into());
            set("moe_intermediate_size", experts.intermediate_size.into());
            set("shared_expert_intermediate_size", experts.shared_size.into());
            set("norm_topk_prob", experts.normalise.into());
            set("decoder_sparse_step", 1.into());
            set("mlp_only_layers", dense.into());
        }
    }
    Value::Object(json)
}
