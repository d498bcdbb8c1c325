//! Qwen 3 with experts in place of the feed-forward network of some or all layers.
//! Reference: Transformers `models/qwen3_moe/modeling_qwen3_moe.py`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Irrelevant, Only, Optional};
use crate::error::{Error, Result};
use crate::json::{count, flag, optional_count, present};
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::{Config, ExpertsConfig};
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer};
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen3_moe",
    architecture: "qwen3moe",
    class: "Qwen3MoeForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("num_experts", Honoured),
        ("num_local_experts", Honoured),
        ("num_experts_per_tok", Honoured),
        ("moe_intermediate_size", Honoured),
        ("norm_topk_prob", Honoured),
        ("decoder_sparse_step", Honoured),
        ("mlp_only_layers", Optional),
        ("use_sliding_window", Only(&["false"])),
        // Without `use_sliding_window` these have no effect.
        ("sliding_window", Irrelevant),
        ("max_window_layers", Irrelevant),
        ("layer_types", Irrelevant),
    ],
    defaults: r#"{"num_key_value_heads": 4}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[
        ("mlp.gate", "ffn_gate_inp"),
        ("mlp.experts.gate_proj", "ffn_gate_exps"),
        ("mlp.experts.up_proj", "ffn_up_exps"),
        ("mlp.experts.down_proj", "ffn_down_exps"),
    ],
    block,
    gguf_keys: &[
        ("expert_count", Honoured),
        ("expert_used_count", Honoured),
        ("expert_feed_forward_length", Honoured),
        ("expert_shared_count", Only(&["0"])),
        ("expert_gating_func", Only(&["1"])),
        ("expert_weights_scale", Only(&["1"])),
        ("expert_weights_norm", Only(&["true"])),
    ],
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    let n_experts = match (optional_count(json, "num_local_experts")?, optional_count(json, "num_experts")?) {
        (Some(local), Some(plain)) if local != plain => {
            return Err(Error::new(format!(
                "`num_local_experts` is {local}, and `num_experts` {plain}, which should be the same"
            ))
            .cure("Keep the number that matches the weights in config.json."));
        }
        (Some(count), _) => count,
        (None, _) => count(json, "num_experts")?,
    };
    if n_experts > 0 {
        let (per_token, inner) = (count(json, "num_experts_per_tok")?, count(json, "moe_intermediate_size")?);
        let routed = routed(json, config.layers)?;
        let normalise = flag(json, "norm_topk_prob")?.unwrap_or(false);
        config.experts = Some(ExpertsConfig { normalise, ..ExpertsConfig::plain(n_experts, per_token, inner, routed) });
    }
    Ok(())
}

/// Whether a layer has experts, one entry per layer.
pub(super) fn routed(json: &Value, layers: usize) -> Result<Vec<bool>> {
    let step = optional_count(json, "decoder_sparse_step")?.unwrap_or(1);
    if step == 0 {
        return Err(Error::new("`decoder_sparse_step` is 0; expected 1 or more"));
    }
    let dense: Vec<usize> = match present(json, "mlp_only_layers") {
        None => Vec::new(),
        Some(layers) => serde_json::from_value(layers.clone())
            .map_err(|_| Error::new(format!("expected a list of layer numbers for `mlp_only_layers`, found {layers}")))?,
    };
    Ok((0..layers).map(|layer| (layer + 1) % step == 0 && !dense.contains(&layer)).collect())
}

fn settings(config: &Config) -> Value {
    let mut json = json!({"attention_bias": config.qkv_bias, "decoder_sparse_step": 1, "use_sliding_window": false});
    match &config.experts {
        None => json["num_experts"] = 0.into(),
        Some(experts) => {
            let dense: Vec<usize> = (0..config.layers).filter(|&layer| !experts.routed[layer]).collect();
            json["num_experts"] = experts.count.into();
            json["num_experts_per_tok"] = experts.per_token.into();
            json["moe_intermediate_size"] = experts.intermediate_size.into();
            json["norm_topk_prob"] = experts.normalise.into();
            json["mlp_only_layers"] = dense.into();
        }
    }
    json
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    let (count, per_token) = (file.required_count("expert_count")?, file.required_count("expert_used_count")?);
    let inner = file.required_count("expert_feed_forward_length")?;
    let routed = (0..config.layers).map(|layer| file.holds(&format!("blk.{layer}.ffn_gate_inp.weight"))).collect();
    // As in llama.cpp, src/models/qwen3moe.cpp, where `norm_w` is true.
    config.experts = Some(ExpertsConfig { normalise: true, ..ExpertsConfig::plain(count, per_token, inner, routed) });
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    let attention = Attention::load_with_norms(layer)?;
    Block::pre_norm(layer, attention, FeedForward::load(layer, Activation::Silu)?)
}
