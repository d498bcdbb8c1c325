//! Converts config.json to a [`Config`], and back for a model that was read from a GGUF file and is saved as a folder.
//!
//! Writes the spelling of Transformers 4 (`rope_theta`, `rope_scaling`), which version 5 also reads. The result is read back and
//! compared, so a model whose settings config.json cannot express is refused instead of being saved as a different one.

use serde_json::{Map, Value, json};

use crate::error::{Context, Error, Result};
use crate::json::{count, flag, number, optional_count, shortest};
use crate::model::config::Config;
use crate::model::families::{self, Family, keys};
use crate::model::rope::{Rope, RopeScaling};

impl Config {
    /// Reads a config.json of Transformers 4 or 5.
    pub fn from_json(json: &Value) -> Result<Config> {
        let family = families::by_config(json)?;
        let json = families::text_config(family, json)?;
        keys::check(&json, family)?;
        let json = with_defaults(json, family)?;
        let heads = count(&json, "num_attention_heads")?;
        let hidden_size = count(&json, "hidden_size")?;
        let max_positions = count(&json, "max_position_embeddings")?;
        let layers = count(&json, "num_hidden_layers")?;
        let head_dim = optional_count(&json, "head_dim")?.unwrap_or(hidden_size / heads.max(1));
        Config::check_sizes(layers, head_dim)?;
        let mut config = Config {
            family: family.model_type,
            vocab_size: count(&json, "vocab_size")?,
            hidden_size,
            intermediate_size: count(&json, "intermediate_size")?,
            layers,
            heads,
            kv_heads: optional_count(&json, "num_key_value_heads")?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: number(&json, "rms_norm_eps")?.unwrap_or(1e-6),
            padding: padding(&json)?,
            tied: flag(&json, "tie_word_embeddings")?.unwrap_or(false),
            ..Config::plain(family.model_type, layers, head_dim, max_positions)
        };
        (family.configure)(&mut config, &json)?;
        config.check()?;
        Ok(config)
    }

    /// Transformers' class of a block, such as `LlamaDecoderLayer`.
    pub fn layer_class(&self) -> Result<String> {
        Ok(families::by_model_type(self.family)?.class.replace("ForCausalLM", "DecoderLayer"))
    }
}

/// The model's config.json, without special tokens and dtype.
pub(super) fn of(config: &Config) -> Result<Value> {
    let family = families::by_model_type(config.family)?;
    let mut json = Map::new();
    let common = json!({
        "architectures": [family.class],
        "model_type": family.model_type,
        "vocab_size": config.vocab_size,
        "hidden_size": config.hidden_size,
        "intermediate_size": config.intermediate_size,
        "num_hidden_layers": config.layers,
        "num_attention_heads": config.heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.head_dim,
        "hidden_act": "silu",
        "rms_norm_eps": shortest(config.rms_norm_eps as f32),
        "max_position_embeddings": config.max_positions,
        "tie_word_embeddings": config.tied,
        // The writer of the weights puts their dtype here.
        "torch_dtype": "float32",
        "rope_theta": config.rope.theta,
        "rope_scaling": rope_scaling(&config.rope, config.rotary_dim)?,
    });
    for (key, value) in [common, (family.settings)(config)].into_iter().filter_map(|part| part.as_object().cloned()).flatten() {
        json.insert(key, value);
    }
    json.retain(|_, value| !value.is_null());
    let json = Value::Object(json);
    let read = Config::from_json(&json)?;
    match differences(config, &read)? {
        None => Ok(json),
        Some(differences) => {
            Err(Error::new(format!("config.json of the family `{}` cannot describe the model: {differences}", family.model_type))
                .cure("Start from the model's Hugging Face folder."))
        }
    }
}

/// The `rope_scaling` of config.json for a rotary embedding.
fn rope_scaling(rope: &Rope, rotary_dim: usize) -> Result<Value> {
    let llama3 = |factor: f64, low: f64, high: f64, original: f64| {
        json!({
            "rope_type": "llama3", "factor": factor, "low_freq_factor": low, "high_freq_factor": high,
            "original_max_position_embeddings": original as u64,
        })
    };
    Ok(match &rope.scaling {
        RopeScaling::None => Value::Null,
        RopeScaling::Linear { factor } => json!({"rope_type": "linear", "factor": factor}),
        RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
            llama3(*factor, *low_freq_factor, *high_freq_factor, *original_max_positions)
        }
        RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor, truncate } => json!({
            "rope_type": "yarn", "factor": factor, "original_max_position_embeddings": *original_max_positions as u64,
            "beta_fast": beta_fast, "beta_slow": beta_slow, "attention_factor": attention_factor, "truncate": truncate,
        }),
        RopeScaling::LongRope { .. } => {
            return Err(
                Error::new("only the short half of LongRoPE is known").cure("Start from the model's Hugging Face folder.")
            );
        }
        RopeScaling::Divisors(divisors) => {
            let (factor, original) = llama3_of_divisors(divisors, rope.theta, rotary_dim).ok_or_else(|| {
                Error::new("the file's divisors of the rotary frequencies are not those of Llama 3")
                    .cure("Start from the model's Hugging Face folder.")
            })?;
            llama3(factor, LOW, HIGH, original)
        }
    })
}

/// The factors of all Llama 3 models (`low_freq_factor`, `high_freq_factor`), which llama.cpp's converter does not store.
const LOW: f64 = 1.0;
const HIGH: f64 = 4.0;

/// Recovers the factor and the original context from llama.cpp's divisors.
///
/// The factor F is the largest divisor. A divisor d between 1 and F gives the ramp's value s = (1/d - 1/F) / (1 - 1/F), and that
/// gives the number of turns that the pair makes over the original context: low + s (high - low).
fn llama3_of_divisors(divisors: &[f64], theta: f64, rotary_dim: usize) -> Option<(f64, f64)> {
    let frequencies = Rope { theta, scaling: RopeScaling::None }.inverse_frequencies(rotary_dim).ok()?;
    let factor = divisors.iter().copied().fold(1.0, f64::max);
    let turns_of = |divisor: f64| LOW + (1.0 / divisor - 1.0 / factor) / (1.0 - 1.0 / factor) * (HIGH - LOW);
    let on_ramp =
        divisors.iter().zip(&frequencies).find(|(divisor, _)| **divisor > 1.0 + 1e-4 && **divisor < factor * (1.0 - 1e-4));
    let original = on_ramp.map(|(divisor, frequency)| turns_of(*divisor) * std::f64::consts::TAU / frequency)?;
    Some((shortest(factor as f32), original.round()))
}

/// Describes how the two models differ, if they compute different results.
fn differences(ours: &Config, read: &Config) -> Result<Option<String>> {
    let near = |a: f64, b: f64| (a - b).abs() <= 1e-5 * a.abs();
    let ropes_agree = |a: &Rope, b: &Rope| -> Result<bool> {
        let (left, right) = (a.inverse_frequencies(ours.rotary_dim)?, b.inverse_frequencies(ours.rotary_dim)?);
        let scales = near(a.attention_scaling().into(), b.attention_scaling().into());
        Ok(scales && left.into_iter().zip(right).all(|(left, right)| near(left, right)))
    };
    let mut found = Vec::new();
    if !ropes_agree(&ours.rope, &read.rope)? {
        found.push("the rotary embedding");
    }
    let window_ropes_agree = match (&ours.window_rope, &read.window_rope) {
        (Some(a), Some(b)) => ropes_agree(a, b)?,
        (a, b) => a.is_none() && b.is_none(),
    };
    if !window_ropes_agree {
        found.push("the rotary embedding of layers with a window");
    }
    if !near(ours.attention_scale.into(), read.attention_scale.into()) {
        found.push("the scale of the attention");
    }
    if !near(ours.rms_norm_eps, read.rms_norm_eps) {
        found.push("the epsilon of the norms");
    }
    if (ours.qkv_bias, ours.output_bias, ours.mlp_bias) != (read.qkv_bias, read.output_bias, read.mlp_bias) {
        found.push("its biases");
    }
    if ours.windows != read.windows {
        found.push("its windows");
    }
    let same = Config {
        rope: ours.rope.clone(),
        window_rope: ours.window_rope.clone(),
        attention_scale: ours.attention_scale,
        rms_norm_eps: ours.rms_norm_eps,
        // Written with the other special tokens.
        padding: ours.padding,
        // Weights are saved in config.json's convention: see save.rs.
        norm_offset: ours.norm_offset,
        ..read.clone()
    };
    if found.is_empty() && same != *ours {
        found.push("its sizes");
    }
    Ok((!found.is_empty()).then(|| found.join(", ")))
}

/// The padding token. As in PyTorch, a negative number counts from the end of the vocabulary.
fn padding(json: &Value) -> Result<Option<u32>> {
    let vocab_size = count(json, "vocab_size")? as i64;
    let id = json.get("pad_token_id").and_then(Value::as_i64);
    let id = id.map(|id| if id < 0 { id + vocab_size } else { id });
    Ok(id.filter(|id| (0..vocab_size).contains(id)).and_then(|id| u32::try_from(id).ok()))
}

/// Fills in the defaults of Transformers' config class for keys that the file omits.
fn with_defaults(mut json: Value, family: &Family) -> Result<Value> {
    let defaults: Value = serde_json::from_str(family.defaults).context("the family's defaults are not JSON")?;
    if let (Some(json), Value::Object(defaults)) = (json.as_object_mut(), defaults) {
        for (key, value) in defaults {
            json.entry(key).or_insert(value);
        }
    }
    Ok(json)
}

#[cfg(test)]
mod tests;
