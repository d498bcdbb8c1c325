//! GLM-4.5 and 4.6: experts chosen by corrected scores beside a shared network, in all but the first layers; half of each head is
//! rotated. The extra layers that predict several tokens ahead are not run, as in Transformers.
//! Reference: Transformers `models/glm4_moe/modeling_glm4_moe.py`; for GGUF, llama.cpp `src/models/glm4-moe.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Only, Optional};
use crate::error::Result;
use crate::json::{count, flag, number, optional_count};
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::{Config, ExpertsConfig, Scoring};
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer};
use crate::model::rope::{Rope, partial_rotary_factor};

pub(super) const FAMILY: Family = Family {
    model_type: "glm4_moe",
    architecture: "glm4moe",
    class: "Glm4MoeForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("partial_rotary_factor", Honoured),
        ("use_qk_norm", Honoured),
        ("n_routed_experts", Honoured),
        ("num_experts_per_tok", Honoured),
        ("moe_intermediate_size", Honoured),
        ("n_shared_experts", Honoured),
        ("first_k_dense_replace", Honoured),
        ("norm_topk_prob", Honoured),
        ("routed_scaling_factor", Honoured),
        ("num_nextn_predict_layers", Optional),
        // Transformers' aliases for two of these keys.
        ("num_local_experts", Only(&[])),
        ("num_mtp_layers", Only(&[])),
        // Only one group: experts are chosen among all.
        ("n_group", Only(&["1"])),
        ("topk_group", Only(&["1"])),
    ],
    defaults: r#"{"num_key_value_heads": 8, "rms_norm_eps": 0.00001, "max_position_embeddings": 131072, "n_routed_experts": 128,
                  "num_experts_per_tok": 8, "moe_intermediate_size": 1408, "n_shared_experts": 1, "first_k_dense_replace": 1,
                  "num_nextn_predict_layers": 1}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[
        ("post_attention_layernorm", "post_attention_norm"),
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.gate.e_score_correction_bias", "exp_probs_b.bias"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
        ("mlp.shared_experts.gate_proj", "ffn_gate_shexp"),
        ("mlp.shared_experts.up_proj", "ffn_up_shexp"),
        ("mlp.shared_experts.down_proj", "ffn_down_shexp"),
    ],
    gguf_keys: &[
        ("expert_count", Honoured),
        ("expert_used_count", Honoured),
        ("expert_feed_forward_length", Honoured),
        ("expert_shared_count", Honoured),
        ("leading_dense_block_count", Honoured),
        ("expert_weights_scale", Honoured),
        ("expert_weights_norm", Honoured),
        ("nextn_predict_layers", Honoured),
        // 2 is the sigmoid.
        ("expert_gating_func", Only(&["2"])),
        ("expert_group_count", Only(&["1"])),
        ("expert_group_used_count", Only(&["1"])),
    ],
    block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.rotary_dim = (config.head_dim as f64 * partial_rotary_factor(json)?.unwrap_or(0.5)) as usize;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.qk_norm = flag(json, "use_qk_norm")?.unwrap_or(false);
    config.further_layers = optional_count(json, "num_nextn_predict_layers")?.unwrap_or(0);
    let inner = count(json, "moe_intermediate_size")?;
    let dense = count(json, "first_k_dense_replace")?;
    let (n_experts, per_token) = (count(json, "n_routed_experts")?, count(json, "num_experts_per_tok")?);
    let routed = (0..config.layers).map(|layer| layer >= dense).collect();
    config.experts = Some(ExpertsConfig {
        normalise: flag(json, "norm_topk_prob")?.unwrap_or(true),
        scoring: Scoring::Sigmoid,
        scale: number(json, "routed_scaling_factor")?.unwrap_or(1.0),
        shared_size: inner * count(json, "n_shared_experts")?,
        ..ExpertsConfig::plain(n_experts, per_token, inner, routed)
    });
    Ok(())
}

fn settings(config: &Config) -> Value {
    let share = config.rotary_dim as f64 / config.head_dim as f64;
    let mut json = json!({
        "attention_bias": config.qkv_bias, "use_qk_norm": config.qk_norm, "partial_rotary_factor": share,
        "num_nextn_predict_layers": config.further_layers,
    });
    if let Some(experts) = &config.experts {
        json["n_routed_experts"] = experts.count.into();
        json["num_experts_per_tok"] = experts.per_token.into();
        json["moe_intermediate_size"] = experts.intermediate_size.into();
        json["n_shared_experts"] = (experts.shared_size / experts.intermediate_size.max(1)).into();
        json["norm_topk_prob"] = experts.normalise.into();
        json["routed_scaling_factor"] = experts.scale.into();
        json["first_k_dense_replace"] = experts.routed.iter().filter(|routed| !**routed).count().into();
    }
    json
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    config.qkv_bias = file.holds_qkv_bias();
    config.qk_norm = file.holds("blk.0.attn_q_norm.weight");
    // The file's block count includes the extra layers.
    config.further_layers = file.arch_count("nextn_predict_layers")?.unwrap_or(0);
    config.set_layers(config.layers.saturating_sub(config.further_layers));
    let inner = file.required_count("expert_feed_forward_length")?;
    let dense = file.required_count("leading_dense_block_count")?;
    let (count, per_token) = (file.required_count("expert_count")?, file.required_count("expert_used_count")?);
    let routed = (0..config.layers).map(|layer| layer >= dense).collect();
    config.experts = Some(ExpertsConfig {
        normalise: file.required("expert_weights_norm", file.arch_flag("expert_weights_norm")?)?,
        scoring: Scoring::Sigmoid,
        scale: file.required("expert_weights_scale", file.arch_number("expert_weights_scale")?)?,
        shared_size: inner * file.required_count("expert_shared_count")?,
        ..ExpertsConfig::plain(count, per_token, inner, routed)
    });
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    let attention = if layer.config.qk_norm { Attention::load_with_norms(layer)? } else { Attention::load(layer)? };
    Block::pre_norm(layer, attention, FeedForward::load(layer, Activation::Silu)?)
}
