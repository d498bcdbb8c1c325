//! gpt-oss: attention with a sink for each head and a window in every second layer; experts with biases and a clamped activation, stored in
//! MXFP4. Reference: Transformers `models/gpt_oss/modeling_gpt_oss.py`; for GGUF, llama.cpp `src/models/openai-moe.cpp` and
//! `conversion/gpt_oss.py`.

use candle_core::Tensor;
use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Irrelevant, Only, Optional};
use crate::error::{Error, Result};
use crate::json::{count, flag, number, optional_count, present, shortest};
use crate::kernels::gated::{Activation, ClampedSwiglu};
use crate::model::block::{Block, FeedForward};
use crate::model::config::{Config, ExpertsConfig};
use crate::model::experts::alternating;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer};
use crate::model::rope::{Rope, RopeScaling, parameters};

pub(super) const FAMILY: Family = Family {
    model_type: "gpt_oss",
    architecture: "gpt-oss",
    class: "GptOssForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("num_local_experts", Honoured),
        ("num_experts_per_tok", Honoured),
        ("swiglu_alpha", Honoured),
        ("swiglu_limit", Honoured),
        ("sliding_window", Honoured),
        ("layer_types", Optional),
        ("head_dim", Optional),
        ("num_key_value_heads", Optional),
        ("quantization_config", Optional),
        // Transformers' alias for the number of experts.
        ("num_experts", Only(&[])),
        // OpenAI's names for settings that are also present under Transformers' names.
        ("experts_per_token", Irrelevant),
        ("initial_context_length", Irrelevant),
    ],
    defaults: r#"{"num_hidden_layers": 36, "num_local_experts": 128, "vocab_size": 201088, "hidden_size": 2880,
                  "intermediate_size": 2880, "head_dim": 64, "num_attention_heads": 64, "num_key_value_heads": 8,
                  "sliding_window": 128, "tie_word_embeddings": false, "max_position_embeddings": 131072, "rms_norm_eps": 0.00001,
                  "num_experts_per_tok": 4, "attention_bias": true, "rope_theta": 150000.0}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[
        ("self_attn.sinks", "attn_sinks.weight"),
        ("post_attention_layernorm", "post_attention_norm"),
        ("mlp.router", "ffn_gate_inp"),
    ],
    gguf_keys: &[
        ("attention.sliding_window", Honoured),
        ("expert_count", Honoured),
        ("expert_used_count", Honoured),
        ("expert_feed_forward_length", Honoured),
    ],
    gguf_tensor,
    block,
    ..Family::PLAIN
};

const SWIGLU: ClampedSwiglu = ClampedSwiglu { alpha: 1.702, limit: 7.0 };

/// Every second layer has a window, beginning with the first.
fn is_windowed(layer: usize) -> bool {
    layer.is_multiple_of(2)
}

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = match parameters(json) {
        Some(_) => Rope::from_json(json, config.max_positions)?,
        // The default of the config class.
        None => {
            let mut json = json.clone();
            json["rope_parameters"] = json!({
                "rope_type": "yarn", "factor": 32.0, "beta_fast": 32.0, "beta_slow": 1.0, "truncate": false,
                "original_max_position_embeddings": 4096,
            });
            Rope::from_json(&json, config.max_positions)?
        }
    };
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(true);
    config.output_bias = config.qkv_bias;
    config.read_windows(json, optional_count(json, "sliding_window")?, is_windowed)?;
    let mxfp4 = match present(json, "quantization_config") {
        None => false,
        Some(how) if how.get("quant_method").and_then(Value::as_str) == Some("mxfp4") => true,
        Some(how) => {
            return Err(Error::new(format!(
                "`quantization_config` = {how} is not supported: the weights are quantised; expected the `quant_method` mxfp4"
            ))
            .cure("Use the original model, or a .gguf file."));
        }
    };
    let setting = |key: &str, default: f32| Ok::<_, Error>(number(json, key)?.map_or(default, |x| x as f32));
    let swiglu = ClampedSwiglu { alpha: setting("swiglu_alpha", SWIGLU.alpha)?, limit: setting("swiglu_limit", SWIGLU.limit)? };
    if !(swiglu.limit > 0.0 && swiglu.limit.is_finite() && swiglu.alpha.is_finite()) {
        let ClampedSwiglu { alpha, limit } = swiglu;
        return Err(Error::new(format!("`swiglu_alpha` is {alpha} and `swiglu_limit` {limit}; expected a positive limit")));
    }
    let (n_experts, per_token) = (count(json, "num_local_experts")?, count(json, "num_experts_per_tok")?);
    config.experts = Some(ExpertsConfig { mxfp4, swiglu: Some(swiglu), ..experts(config, n_experts, per_token) });
    Ok(())
}

/// A softmax over the chosen experts equals the softmax over all experts, normalised over the chosen ones.
fn experts(config: &Config, count: usize, per_token: usize) -> ExpertsConfig {
    let plain = ExpertsConfig::plain(count, per_token, config.intermediate_size, vec![true; config.layers]);
    ExpertsConfig { normalise: true, modules: false, transposed: true, swiglu: Some(SWIGLU), ..plain }
}

fn settings(config: &Config) -> Value {
    let mut json = json!({
        "attention_bias": config.qkv_bias, "sliding_window": config.windows.iter().flatten().next(),
        "layer_types": config.layer_types(),
    });
    // An unscaled embedding has to be stated explicitly, because the default is scaled.
    if config.rope.scaling == RopeScaling::None {
        json["rope_scaling"] = json!({"rope_type": "default"});
    }
    if let Some(experts) = &config.experts {
        json["num_local_experts"] = experts.count.into();
        json["num_experts_per_tok"] = experts.per_token.into();
        let swiglu = experts.swiglu.unwrap_or(SWIGLU);
        json["swiglu_alpha"] = shortest(swiglu.alpha).into();
        json["swiglu_limit"] = shortest(swiglu.limit).into();
    }
    json
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    config.qkv_bias = file.holds_qkv_bias();
    config.output_bias = file.holds("blk.0.attn_output.bias");
    // llama.cpp rounds the ramp to whole pairs for all families; these models were trained without that, and no key records it.
    if let RopeScaling::Yarn { truncate, .. } = &mut config.rope.scaling {
        *truncate = false;
    }
    let window = file.required_count("attention.sliding_window")?;
    config.windows = (0..config.layers).map(|layer| is_windowed(layer).then_some(window)).collect();
    let inner = file.required_count("expert_feed_forward_length")?;
    config.intermediate_size = inner;
    config.experts = Some(experts(config, file.required_count("expert_count")?, file.required_count("expert_used_count")?));
    Ok(())
}

/// Reads the experts' stacks: llama.cpp stores gate and up separately, outputs by inputs.
fn gguf_tensor(file: &Gguf, name: &str, shape: &[usize], index: Option<usize>) -> Result<Option<Tensor>> {
    let Some((layer, kind)) = name.strip_prefix("model.layers.").and_then(|rest| rest.split_once(".mlp.experts.")) else {
        return Ok(None);
    };
    let part =
        |part: &str, kind: &str, shape: &[usize]| file.stored(&format!("blk.{layer}.ffn_{part}_exps.{kind}"), shape, index);
    Ok(Some(match (kind, shape) {
        ("gate_up_proj", &[count, inputs, columns]) => {
            let shape = [count, columns / 2, inputs];
            alternating(&part("gate", "weight", &shape)?.t()?, &part("up", "weight", &shape)?.t()?)?
        }
        ("gate_up_proj_bias", &[count, columns]) => {
            let shape = [count, columns / 2];
            alternating(&part("gate", "bias", &shape)?, &part("up", "bias", &shape)?)?
        }
        ("down_proj", &[count, inputs, outputs]) => part("down", "weight", &[count, outputs, inputs])?.t()?.contiguous()?,
        ("down_proj_bias", _) => part("down", "bias", shape)?,
        _ => return Ok(None),
    }))
}

fn block(layer: &Layer) -> Result<Block> {
    let swiglu = layer.config.experts.as_ref().and_then(|experts| experts.swiglu).unwrap_or(SWIGLU);
    Block::pre_norm(layer, Attention::load_with_sinks(layer)?, FeedForward::load(layer, Activation::ClampedSwiglu(swiglu))?)
}
