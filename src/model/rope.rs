//! Rotary position embedding as a model's files describe it -> one frequency per pair of elements.
//!
//! Covered: plain, linear, Llama 3 and YaRN scaling. Left out, and refused by name: dynamic NTK and LongRoPE, whose frequencies
//! depend on the length of the sequence. Reference: Transformers, `modeling_rope_utils.py`.

use std::f64::consts::PI;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{number, optional_count, present};

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
    /// Llama 3.1: long wavelengths divided by `factor`, short ones kept, a ramp between (`_compute_llama3_parameters`).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
    /// arXiv 2309.00071: the same idea with a ramp over the pairs instead of the wavelengths, and with the cosines and sines
    /// multiplied by `attention_factor` (`_compute_yarn_parameters`).
    Yarn {
        factor: f64,
        original_max_positions: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
    },
    /// A divisor for each frequency: what llama.cpp's converter makes of Llama 3.1's kind.
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
                    let turns = original_max_positions * f / (2.0 * PI);
                    let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                });
                Ok(scaled.collect())
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, .. } => {
                let dim = rotary_dim as f64;
                // The pair that makes this many turns over the original context.
                let pair_of = |turns: f64| dim * (original_max_positions / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let low = pair_of(*beta_fast).floor().max(0.0);
                let high = pair_of(*beta_slow).ceil().min(dim - 1.0);
                let width = if high == low { 0.001 } else { high - low };
                let scaled = plain.enumerate().map(|(i, f)| {
                    let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    divided * f / factor + (1.0 - divided) * f
                });
                Ok(scaled.collect())
            }
            RopeScaling::Divisors(divisors) if divisors.len() == rotary_dim / 2 => {
                Ok(plain.zip(divisors).map(|(f, divisor)| f / divisor).collect())
            }
            RopeScaling::Divisors(divisors) => Err(Error::new(format!(
                "expected {} rotary divisors (half of the {rotary_dim} rotary dimensions), found {}",
                rotary_dim / 2,
                divisors.len()
            ))),
        }
    }

    /// Multiplies the cosines and sines.
    pub fn attention_scaling(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } => attention_factor as f32,
            _ => 1.0,
        }
    }

    /// From config.json: Transformers 5 writes `rope_parameters` with the base inside; Transformers 4 `rope_theta` and
    /// `rope_scaling`.
    pub fn from_json(json: &Value, max_positions: usize) -> Result<Rope> {
        Rope::from_parameters(parameters(json), number(json, "rope_theta")?.unwrap_or(10_000.0), max_positions)
    }

    /// From one set of rope parameters; `theta` is the base where they do not hold one.
    pub fn from_parameters(parameters: Option<&Value>, theta: f64, max_positions: usize) -> Result<Rope> {
        let Some(parameters) = parameters else { return Ok(Rope { theta, scaling: RopeScaling::None }) };
        if !parameters.is_object() {
            return Err(Error::new(format!("expected an object of rope parameters, found {parameters}")));
        }
        // Transformers takes `rope_type` where both are there.
        let kind = match parameters.get("rope_type").or_else(|| parameters.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(Error::new(format!("expected the name of a rope scaling for `rope_type`, found {other}"))),
        };
        let optional = |key: &str| number(parameters, key);
        let required = |key: &str| {
            optional(key)?.ok_or_else(|| Error::new(format!("rope scaling `{kind}` needs `{key}`, which is missing")))
        };
        let original = || -> Result<f64> {
            let original = optional_count(parameters, "original_max_position_embeddings")?;
            Ok(original.unwrap_or(max_positions) as f64)
        };
        let (scaling, keys): (_, &[&str]) = match kind {
            "default" => (RopeScaling::None, &[]),
            "linear" => (RopeScaling::Linear { factor: required("factor")? }, &["factor"]),
            "llama3" => (
                RopeScaling::Llama3 {
                    factor: required("factor")?,
                    low_freq_factor: required("low_freq_factor")?,
                    high_freq_factor: required("high_freq_factor")?,
                    original_max_positions: original()?,
                },
                &["factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"],
            ),
            "yarn" => {
                let factor = required("factor")?;
                let attention_factor = optional("attention_factor")?.unwrap_or_else(|| yarn_attention_factor(factor));
                (
                    RopeScaling::Yarn {
                        factor,
                        original_max_positions: original()?,
                        // Transformers says `beta or 32`: 0 is as good as absent.
                        beta_fast: optional("beta_fast")?.filter(|&beta| beta != 0.0).unwrap_or(32.0),
                        beta_slow: optional("beta_slow")?.filter(|&beta| beta != 0.0).unwrap_or(1.0),
                        attention_factor,
                    },
                    &["factor", "original_max_position_embeddings", "beta_fast", "beta_slow", "attention_factor"],
                )
            }
            other => {
                return Err(Error::new(format!(
                    "rope scaling `{other}` is not supported; known are default, linear, llama3, yarn"
                )));
            }
        };
        let always = ["rope_type", "type", "rope_theta", "partial_rotary_factor"];
        for (key, value) in parameters.as_object().into_iter().flatten() {
            if !value.is_null() && !always.contains(&key.as_str()) && !keys.contains(&key.as_str()) {
                return Err(Error::new(format!("rope scaling `{kind}` with `{key}` = {value} is not supported")));
            }
        }
        Ok(Rope { theta: optional("rope_theta")?.unwrap_or(theta), scaling })
    }
}

/// The set of rope parameters that counts: `rope_scaling` replaces `rope_parameters` as a whole, base and all, unless it is empty
/// (Transformers, `modeling_rope_utils.py`: `self.rope_parameters = rope_scaling or self.rope_parameters`).
pub(super) fn parameters(json: &Value) -> Option<&Value> {
    let is_empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    let scaling = present(json, "rope_scaling").filter(|scaling| !is_empty(scaling));
    scaling.or_else(|| present(json, "rope_parameters"))
}

/// arXiv 2309.00071, equation 22.
pub(super) fn yarn_attention_factor(factor: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * factor.ln() + 1.0 }
}

/// The share of a head's elements that turn: within `rope_parameters` (Transformers 5) or beside them (4).
pub(super) fn partial_rotary_factor(json: &Value) -> Result<Option<f64>> {
    match parameters(json).map(|parameters| number(parameters, "partial_rotary_factor")).transpose()?.flatten() {
        Some(factor) => Ok(Some(factor)),
        None => number(json, "partial_rotary_factor"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn the_base_is_found_where_either_version_of_transformers_puts_it() {
        for json in [
            json!({"rope_theta": 100_000.0, "rope_scaling": null}),
            json!({"rope_parameters": {"rope_theta": 100_000, "rope_type": "default"}}),
        ] {
            assert_eq!(Rope::from_json(&json, 8192).unwrap(), Rope { theta: 100_000.0, scaling: RopeScaling::None });
        }
    }

    /// Transformers takes `rope_scaling`, and with it the base that stands outside.
    #[test]
    fn of_two_spellings_the_older_one_counts() {
        let both = json!({
            "rope_parameters": {"rope_theta": 500_000.0, "rope_type": "default", "partial_rotary_factor": 0.25},
            "rope_theta": 20_000.0, "rope_scaling": {"type": "linear", "factor": 4.0}, "partial_rotary_factor": 0.5,
        });
        let expected = Rope { theta: 20_000.0, scaling: RopeScaling::Linear { factor: 4.0 } };
        assert_eq!(Rope::from_json(&both, 8192).unwrap(), expected);
        assert_eq!(partial_rotary_factor(&both).unwrap(), Some(0.5));
        let mut empty = both.clone();
        empty["rope_scaling"] = json!({});
        assert_eq!(Rope::from_json(&empty, 8192).unwrap(), Rope { theta: 500_000.0, scaling: RopeScaling::None });
        let contradiction = json!({"rope_scaling": {"rope_type": "linear", "type": "yarn", "factor": 2.0}});
        assert_eq!(Rope::from_json(&contradiction, 8192).unwrap().scaling, RopeScaling::Linear { factor: 2.0 });
    }

    #[test]
    fn a_beta_of_zero_is_as_good_as_absent() {
        let yarn = |more: Value| {
            let mut parameters = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
            if let (Some(parameters), Value::Object(more)) = (parameters.as_object_mut(), more) {
                parameters.extend(more);
            }
            Rope::from_parameters(Some(&parameters), 1e4, 256).unwrap()
        };
        assert_eq!(yarn(json!({"beta_fast": 0, "beta_slow": 0.0})), yarn(json!({})));
        assert_ne!(yarn(json!({"beta_slow": 2})), yarn(json!({})));
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
        // 100 positions: 32 turns belong to pair -0.15 (so 0), 1 turn to pair 0.6 (so 1).
        let scaling = RopeScaling::Yarn {
            factor: 8.0,
            original_max_positions: 100.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
        };
        assert_eq!(rope(scaling), [1.0, 0.00125]);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |parameters: Value, expected: &str| {
            let message = Rope::from_parameters(Some(&parameters), 1e4, 4096).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(json!({"type": "dynamic", "factor": 4.0}), "`dynamic` is not supported");
        check(json!({"rope_type": "linear"}), "needs `factor`");
        check(json!({"rope_type": null, "type": "yarn", "factor": 4.0}), "found null");
        check(json!("yarn"), "found \"yarn\"");
        check(json!({"rope_type": "yarn", "factor": 4.0, "mscale": 0.7}), "`mscale` = 0.7 is not supported");
        check(json!({"rope_type": "default", "mrope_section": [1, 2]}), "`mrope_section` = [1,2]");
    }
}
