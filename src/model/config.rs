//! What the families need to know about a model, whichever file it came from.

use serde_json::Value;

use crate::error::{Error, Result};

/// The families that can be loaded, by config.json's `model_type`.
pub const FAMILIES: &[&str] = &["llama"];

#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    /// config.json's `model_type`, or the family that a GGUF architecture stands for.
    pub family: String,
    pub vocab_size: usize,
    pub hidden_size: usize,
    pub intermediate_size: usize,
    pub layers: usize,
    pub heads: usize,
    pub kv_heads: usize,
    pub head_dim: usize,
    pub rms_norm_eps: f64,
    pub rope: Rope,
    /// Biases on the query, key, value and output projections.
    pub attention_bias: bool,
    /// Biases in the feed-forward network.
    pub mlp_bias: bool,
    /// The head is the embedding matrix.
    pub tied: bool,
    pub max_positions: usize,
    /// `cap * tanh(logit / cap)` on the logits.
    pub final_softcap: Option<f32>,
}

/// Rotary position embedding.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    pub theta: f64,
    pub scaling: RopeScaling,
}

#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Every frequency divided by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between (Transformers `modeling_rope_utils.py`,
    /// `_compute_llama3_parameters`).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
    /// A divisor for each frequency: what llama.cpp's converter makes of the kind above.
    Divisors(Vec<f64>),
}

impl Rope {
    /// Angle per position of each of the `rotary_dim / 2` pairs, in radians.
    pub fn inverse_frequencies(&self, rotary_dim: usize) -> Result<Vec<f64>> {
        let plain = (0..rotary_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / rotary_dim as f64));
        match &self.scaling {
            RopeScaling::None => Ok(plain.collect()),
            RopeScaling::Linear { factor } => Ok(plain.map(|f| f / factor).collect()),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let scaled = plain.map(|f| {
                    // How many turns the pair makes over the original context decides how it is treated.
                    let turns = original_max_positions * f / (2.0 * std::f64::consts::PI);
                    let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                });
                Ok(scaled.collect())
            }
            RopeScaling::Divisors(divisors) if divisors.len() == rotary_dim / 2 => {
                Ok(plain.zip(divisors).map(|(f, divisor)| f / divisor).collect())
            }
            RopeScaling::Divisors(divisors) => Err(Error::new(format!(
                "expected {} rotary divisors (half of the head's {rotary_dim} dimensions), found {}",
                rotary_dim / 2,
                divisors.len()
            ))),
        }
    }
}

pub fn unknown_family(found: &str) -> Error {
    Error::new(format!("this model is of the family `{found}`; known are: {}", FAMILIES.join(", ")))
        .cure("Use a model of a known family, or add the family: src/model/mod.rs says how.")
}

impl Config {
    /// Reads a config.json as Transformers 4 or 5 writes it.
    pub fn from_json(json: &Value) -> Result<Config> {
        let family = json.get("model_type").and_then(Value::as_str).unwrap_or_default();
        if !FAMILIES.contains(&family) {
            return Err(unknown_family(if family.is_empty() { "(no model_type in config.json)" } else { family }));
        }
        let heads = count(json, "num_attention_heads")?;
        let hidden_size = count(json, "hidden_size")?;
        let kv_heads = optional_count(json, "num_key_value_heads")?.unwrap_or(heads);
        let head_dim = optional_count(json, "head_dim")?.unwrap_or(hidden_size / heads.max(1));
        let activation = json.get("hidden_act").and_then(Value::as_str).unwrap_or("silu");
        if activation != "silu" {
            return Err(Error::new(format!("config.json: hidden_act `{activation}` is not supported; expected `silu`")));
        }
        let config = Config {
            family: family.to_owned(),
            vocab_size: count(json, "vocab_size")?,
            hidden_size,
            intermediate_size: count(json, "intermediate_size")?,
            layers: count(json, "num_hidden_layers")?,
            heads,
            kv_heads,
            head_dim,
            rms_norm_eps: number(json, "rms_norm_eps")?.unwrap_or(1e-6),
            rope: rope(json)?,
            attention_bias: flag(json, "attention_bias")?.unwrap_or(false),
            mlp_bias: flag(json, "mlp_bias")?.unwrap_or(false),
            tied: flag(json, "tie_word_embeddings")?.unwrap_or(false),
            max_positions: count(json, "max_position_embeddings")?,
            final_softcap: None,
        };
        config.check()?;
        Ok(config)
    }

    /// Refuses sizes that cannot belong together before any tensor is read.
    pub fn check(&self) -> Result<()> {
        if self.heads == 0 || self.kv_heads == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::new(format!(
                "{} attention heads cannot share {} key-value heads evenly",
                self.heads, self.kv_heads
            )));
        }
        if self.head_dim == 0 || !self.head_dim.is_multiple_of(2) {
            return Err(Error::new(format!("expected an even head_dim for rotary embeddings, found {}", self.head_dim)));
        }
        Ok(())
    }
}

/// Transformers 5 writes `rope_parameters` with the base inside; Transformers 4 `rope_theta` and `rope_scaling`.
fn rope(json: &Value) -> Result<Rope> {
    let present = |key: &str| json.get(key).filter(|value| !value.is_null());
    let parameters = present("rope_parameters").or_else(|| present("rope_scaling"));
    let theta = match parameters.map(|p| number(p, "rope_theta")).transpose()?.flatten() {
        Some(theta) => theta,
        None => number(json, "rope_theta")?.unwrap_or(10_000.0),
    };
    let Some(parameters) = parameters else {
        return Ok(Rope { theta, scaling: RopeScaling::None });
    };
    let kind = parameters.get("rope_type").or_else(|| parameters.get("type")).and_then(Value::as_str).unwrap_or("default");
    let required = |key: &str| {
        number(parameters, key)?
            .ok_or_else(|| Error::new(format!("config.json: rope scaling `{kind}` needs `{key}`, which is missing")))
    };
    let scaling = match kind {
        "default" => RopeScaling::None,
        "linear" => RopeScaling::Linear { factor: required("factor")? },
        "llama3" => RopeScaling::Llama3 {
            factor: required("factor")?,
            low_freq_factor: required("low_freq_factor")?,
            high_freq_factor: required("high_freq_factor")?,
            original_max_positions: required("original_max_position_embeddings")?,
        },
        other => {
            return Err(Error::new(format!(
                "config.json: rope scaling `{other}` is not supported; known are default, linear, llama3"
            )));
        }
    };
    Ok(Rope { theta, scaling })
}

fn count(json: &Value, key: &str) -> Result<usize> {
    optional_count(json, key)?.ok_or_else(|| Error::new(format!("config.json: `{key}` is missing; expected a whole number")))
}

fn optional_count(json: &Value, key: &str) -> Result<Option<usize>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_u64() {
            Some(n) => Ok(Some(n as usize)),
            None => Err(Error::new(format!("config.json: expected a whole number for `{key}`, found {value}"))),
        },
    }
}

fn number(json: &Value, key: &str) -> Result<Option<f64>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_f64() {
            Some(x) => Ok(Some(x)),
            None => Err(Error::new(format!("config.json: expected a number for `{key}`, found {value}"))),
        },
    }
}

fn flag(json: &Value, key: &str) -> Result<Option<bool>> {
    match json.get(key) {
        None | Some(Value::Null) => Ok(None),
        Some(value) => match value.as_bool() {
            Some(x) => Ok(Some(x)),
            None => Err(Error::new(format!("config.json: expected true or false for `{key}`, found {value}"))),
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn smol() -> Value {
        json!({"model_type": "llama", "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
               "num_attention_heads": 9, "num_key_value_heads": 3, "vocab_size": 49152, "max_position_embeddings": 8192,
               "rms_norm_eps": 1e-5, "tie_word_embeddings": true, "hidden_act": "silu"})
    }

    #[test]
    fn the_rotary_base_is_found_where_either_version_of_transformers_puts_it() {
        let mut v4 = smol();
        v4["rope_theta"] = json!(100_000.0);
        v4["rope_scaling"] = Value::Null;
        let mut v5 = smol();
        v5["rope_parameters"] = json!({"rope_theta": 100_000, "rope_type": "default"});
        for json in [v4, v5] {
            let config = Config::from_json(&json).unwrap();
            assert_eq!(config.rope, Rope { theta: 100_000.0, scaling: RopeScaling::None });
            assert_eq!(config.head_dim, 64);
        }
    }

    #[test]
    fn frequencies_by_hand() {
        let rope = |scaling| Rope { theta: 10_000.0, scaling }.inverse_frequencies(4).unwrap();
        assert_eq!(rope(RopeScaling::None), [1.0, 0.01]);
        assert_eq!(rope(RopeScaling::Linear { factor: 4.0 }), [0.25, 0.0025]);
        assert_eq!(rope(RopeScaling::Divisors(vec![1.0, 8.0])), [1.0, 0.00125]);
        // 8192 positions: the first pair turns 1304 times (kept), the second 13 times (kept, high_freq_factor 4).
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192.0 };
        assert_eq!(rope(scaling), [1.0, 0.01]);
        // 100 positions: the second pair turns 0.16 times (divided by 8).
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 100.0 };
        assert_eq!(rope(scaling), [1.0, 0.00125]);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |key: &str, value: Value, expected: &str| {
            let mut json = smol();
            json[key] = value;
            let message = Config::from_json(&json).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("rope_scaling", json!({"type": "yarn", "factor": 4.0}), "`yarn` is not supported");
        check("rope_scaling", json!({"type": "linear"}), "needs `factor`");
        check("hidden_act", json!("gelu"), "hidden_act `gelu`");
        check("model_type", json!("mamba"), "family `mamba`");
        check("hidden_size", json!("large"), "found \"large\"");
        check("num_key_value_heads", json!(2), "cannot share");
        check("vocab_size", Value::Null, "`vocab_size` is missing");
    }
}
