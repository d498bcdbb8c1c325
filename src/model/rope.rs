//! Rotary position embedding: reads its description in a model's files, and computes one frequency per pair of elements.
//!
//! Covers plain, linear, Llama 3 and YaRN scaling; also dynamic NTK and LongRoPE, whose frequencies depend on the length of the
//! sequence, but only up to the length at which they begin to do so ([`Rope::longest`]). Reference: Transformers,
//! `modeling_rope_utils.py`.

use std::f64::consts::PI;

use serde_json::Value;

use crate::error::{Error, Result};
use crate::json::{flag, number, present};

/// A rotary embedding: its base, and how the frequencies are scaled for long sequences.
#[derive(Debug, Clone, PartialEq)]
pub struct Rope {
    /// The base of the frequencies.
    pub theta: f64,
    /// How the frequencies are scaled.
    pub scaling: RopeScaling,
}

/// How the frequencies differ from the unscaled ones.
#[derive(Debug, Clone, PartialEq)]
pub enum RopeScaling {
    None,
    /// Divides every frequency by `factor`.
    Linear {
        factor: f64,
    },
    /// Llama 3.1: divides long wavelengths by `factor`, keeps short ones, with a ramp in between (`_compute_llama3_parameters`).
    Llama3 {
        factor: f64,
        low_freq_factor: f64,
        high_freq_factor: f64,
        original_max_positions: f64,
    },
    /// YaRN, arXiv 2309.00071: the same idea with a ramp over the pairs instead of the wavelengths; cosines and sines are also
    /// multiplied by `attention_factor` (`_compute_yarn_parameters`).
    Yarn {
        factor: f64,
        original_max_positions: f64,
        beta_fast: f64,
        beta_slow: f64,
        attention_factor: f64,
        /// Whether the ramp starts and ends at whole pairs.
        truncate: bool,
    },
    /// LongRoPE, arXiv 2402.13753: one divisor per frequency for sequences of up to `original_max_positions`, and others for longer
    /// sequences, which are refused (`_compute_longrope_parameters`).
    LongRope {
        short_divisors: Vec<f64>,
        original_max_positions: usize,
        attention_factor: f64,
    },
    /// One divisor per frequency: the form into which llama.cpp's converter brings Llama 3.1's scaling.
    Divisors(Vec<f64>),
}

impl Rope {
    /// The angle per position of each of the `rotary_dim / 2` pairs, in radians.
    pub fn inverse_frequencies(&self, rotary_dim: usize) -> Result<Vec<f64>> {
        let plain = (0..rotary_dim / 2).map(|i| self.theta.powf(-2.0 * i as f64 / rotary_dim as f64));
        match &self.scaling {
            RopeScaling::None => Ok(plain.collect()),
            RopeScaling::Linear { factor } => Ok(plain.map(|f| f / factor).collect()),
            RopeScaling::Llama3 { factor, low_freq_factor, high_freq_factor, original_max_positions } => {
                let scaled = plain.map(|f| {
                    // The number of turns that the pair makes over the original context decides how it is scaled.
                    let turns = original_max_positions * f / (2.0 * PI);
                    let smooth = ((turns - low_freq_factor) / (high_freq_factor - low_freq_factor)).clamp(0.0, 1.0);
                    (1.0 - smooth) * f / factor + smooth * f
                });
                Ok(scaled.collect())
            }
            RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, truncate, .. } => {
                let dim = rotary_dim as f64;
                // The pair that makes `turns` turns over the original context.
                let pair_of = |turns: f64| dim * (original_max_positions / (turns * 2.0 * PI)).ln() / (2.0 * self.theta.ln());
                let (low, high) = (pair_of(*beta_fast), pair_of(*beta_slow));
                let (low, high) = if *truncate { (low.floor(), high.ceil()) } else { (low, high) };
                let (low, high) = (low.max(0.0), high.min(dim - 1.0));
                let width = if high == low { 0.001 } else { high - low };
                let scaled = plain.enumerate().map(|(i, f)| {
                    let divided = ((i as f64 - low) / width).clamp(0.0, 1.0);
                    divided * f / factor + (1.0 - divided) * f
                });
                Ok(scaled.collect())
            }
            RopeScaling::Divisors(divisors) | RopeScaling::LongRope { short_divisors: divisors, .. } => {
                if divisors.len() != rotary_dim / 2 {
                    return Err(Error::new(format!(
                        "expected {} rotary divisors (half of the {rotary_dim} rotary dimensions), found {}",
                        rotary_dim / 2,
                        divisors.len()
                    )));
                }
                Ok(plain.zip(divisors).map(|(f, divisor)| f / divisor).collect())
            }
        }
    }

    /// The factor of the cosines and sines.
    pub fn attention_scaling(&self) -> f32 {
        match self.scaling {
            RopeScaling::Yarn { attention_factor, .. } | RopeScaling::LongRope { attention_factor, .. } => {
                attention_factor as f32
            }
            _ => 1.0,
        }
    }

    /// The longest sequence for which the frequencies are valid, if that is less than the model's limit.
    pub fn longest(&self) -> Option<usize> {
        match self.scaling {
            RopeScaling::LongRope { original_max_positions, .. } => Some(original_max_positions),
            _ => None,
        }
    }

    /// Reads config.json: Transformers 5 writes `rope_parameters`, which contain the base; Transformers 4 writes `rope_theta` and
    /// `rope_scaling`.
    pub fn from_json(json: &Value, max_positions: usize) -> Result<Rope> {
        let parameters = parameters(json).map(|parameters| with_first_length(json, parameters));
        Rope::from_parameters(parameters.as_ref(), base(json, "rope_theta", parameters.as_ref(), 10_000.0)?, max_positions)
    }

    /// Reads one set of rope parameters; `theta` is the default base.
    pub fn from_parameters(parameters: Option<&Value>, theta: f64, max_positions: usize) -> Result<Rope> {
        let Some(parameters) = parameters else { return Ok(Rope { theta, scaling: RopeScaling::None }) };
        if !parameters.is_object() {
            return Err(Error::new(format!("expected an object of rope parameters, found {parameters}")));
        }
        // Transformers prefers `rope_type` if both are present.
        let kind = match parameters.get("rope_type").or_else(|| parameters.get("type")) {
            None => "default",
            Some(Value::String(kind)) => kind.as_str(),
            Some(other) => return Err(Error::new(format!("expected the name of a rope scaling for `rope_type`, found {other}"))),
        };
        let given = Parameters { values: parameters, kind, max_positions };
        let scaling = given.scaling()?;
        // Transformers, too, ignores parameters that belong to another kind of scaling.
        for (key, value) in parameters.as_object().into_iter().flatten() {
            if !value.is_null() && !KNOWN.contains(&key.as_str()) {
                return Err(Error::new(format!("rope scaling `{kind}` with `{key}` = {value} is not supported")));
            }
        }
        Ok(Rope { theta: given.optional("rope_theta")?.unwrap_or(theta), scaling })
    }
}

/// One set of rope parameters.
struct Parameters<'a> {
    values: &'a Value,
    /// The name of the scaling.
    kind: &'a str,
    /// The positions of the model.
    max_positions: usize,
}

impl Parameters<'_> {
    fn optional(&self, key: &str) -> Result<Option<f64>> {
        number(self.values, key)
    }

    fn required(&self, key: &str) -> Result<f64> {
        self.optional(key)?.ok_or_else(|| Error::new(format!("rope scaling `{}` needs `{key}`, which is missing", self.kind)))
    }

    /// Transformers computes `beta or 32`, so 0 counts as absent.
    fn nonzero(&self, key: &str) -> Result<Option<f64>> {
        Ok(self.optional(key)?.filter(|&x| x != 0.0))
    }

    /// The positions of the original training.
    fn original(&self) -> Result<f64> {
        let original = self.optional("original_max_position_embeddings")?.unwrap_or(self.max_positions as f64);
        match original >= 1.0 {
            true => Ok(original),
            false => Err(Error::new(format!("`original_max_position_embeddings` is {original}; expected 1 or more"))),
        }
    }

    /// How many times longer the model's sequences are than those of the original training.
    fn ratio(&self) -> Result<f64> {
        Ok(self.max_positions as f64 / self.original()?)
    }

    fn scaling(&self) -> Result<RopeScaling> {
        Ok(match self.kind {
            "default" => RopeScaling::None,
            "linear" => RopeScaling::Linear { factor: self.required("factor")? },
            // Scaling begins beyond the model's positions, which no sequence exceeds (`Model::load`).
            "dynamic" => {
                self.required("factor")?;
                RopeScaling::None
            }
            "llama3" => RopeScaling::Llama3 {
                factor: self.required("factor")?,
                low_freq_factor: self.required("low_freq_factor")?,
                high_freq_factor: self.required("high_freq_factor")?,
                original_max_positions: self.original()?,
            },
            "yarn" => self.yarn()?,
            "longrope" => self.longrope()?,
            other => {
                return Err(Error::new(format!(
                    "rope scaling `{other}` is not supported; expected default, linear, dynamic, llama3, yarn or longrope"
                )));
            }
        })
    }

    fn yarn(&self) -> Result<RopeScaling> {
        let factor = match self.values.get("factor") {
            Some(Value::Null) => self.ratio()?,
            _ => self.required("factor")?,
        };
        let scales = (self.optional("attention_factor")?, self.nonzero("mscale")?, self.nonzero("mscale_all_dim")?);
        let attention_factor = match scales {
            (Some(attention_factor), ..) => attention_factor,
            (None, Some(above), Some(below)) => yarn_mscale(factor, above) / yarn_mscale(factor, below),
            _ => yarn_attention_factor(factor),
        };
        Ok(RopeScaling::Yarn {
            factor,
            original_max_positions: self.original()?,
            beta_fast: self.nonzero("beta_fast")?.unwrap_or(32.0),
            beta_slow: self.nonzero("beta_slow")?.unwrap_or(1.0),
            attention_factor,
            truncate: flag(self.values, "truncate")?.unwrap_or(true),
        })
    }

    fn longrope(&self) -> Result<RopeScaling> {
        let original = self.original()?;
        let factor = self.optional("factor")?.map_or_else(|| self.ratio(), Ok)?;
        let attention_factor = match self.optional("attention_factor")? {
            Some(attention_factor) => attention_factor,
            None if factor <= 1.0 => 1.0,
            None => (1.0 + factor.ln() / original.ln()).sqrt(),
        };
        let short_divisors = present(self.values, "short_factor").cloned().unwrap_or_default();
        let short_divisors: Vec<f64> = serde_json::from_value(short_divisors)
            .map_err(|_| Error::new("rope scaling `longrope` needs `short_factor`: expected a list of numbers"))?;
        Ok(RopeScaling::LongRope { short_divisors, original_max_positions: original as usize, attention_factor })
    }
}

/// The rope parameters that Transformers knows (`RopeParameters`), and marks that converters leave.
const KNOWN: &[&str] = &[
    "rope_type",
    "type",
    "rope_theta",
    "partial_rotary_factor",
    "factor",
    "original_max_position_embeddings",
    "attention_factor",
    "beta_fast",
    "beta_slow",
    "short_factor",
    "long_factor",
    "low_freq_factor",
    "high_freq_factor",
    "mscale",
    "mscale_all_dim",
    "truncate",
    "finetuned",
];

/// The base under `key` beside rope parameters; `null` is refused unless these contain one, as in Transformers.
pub(super) fn base(json: &Value, key: &str, parameters: Option<&Value>, default: f64) -> Result<f64> {
    let is_null = json.get(key).is_some_and(Value::is_null);
    if is_null && parameters.is_none_or(|parameters| present(parameters, "rope_theta").is_none()) {
        return Err(Error::new(format!("`{key}` is null; expected a number"))
            .cure(format!("Set the base, or remove the line for {default}.")));
    }
    Ok(number(json, key)?.unwrap_or(default))
}

/// The set of rope parameters that applies: `rope_scaling` replaces `rope_parameters` entirely, including the base, unless it is empty
/// (Transformers, `modeling_rope_utils.py`: `self.rope_parameters = rope_scaling or self.rope_parameters`).
pub(super) fn parameters(json: &Value) -> Option<&Value> {
    let is_empty = |value: &Value| value.as_object().is_some_and(serde_json::Map::is_empty);
    let scaling = present(json, "rope_scaling").filter(|scaling| !is_empty(scaling));
    scaling.or_else(|| present(json, "rope_parameters"))
}

/// Adds the original training length to the `parameters` of all layers: if `json` has it beside them, that value takes precedence
/// (Transformers, `standardize_rope_params`).
pub(super) fn with_first_length(json: &Value, parameters: &Value) -> Value {
    const ORIGINAL: &str = "original_max_position_embeddings";
    let mut parameters = parameters.clone();
    if let (Some(original), Some(parameters)) = (json.get(ORIGINAL), parameters.as_object_mut()) {
        parameters.insert(ORIGINAL.to_owned(), original.clone());
    }
    parameters
}

/// The default attention factor of YaRN: arXiv 2309.00071, equation 22.
pub(super) fn yarn_attention_factor(factor: f64) -> f64 {
    yarn_mscale(factor, 1.0)
}

/// `0.1 mscale ln(factor) + 1`, or 1 without scaling; DeepSeek's models choose the weight `mscale`.
fn yarn_mscale(factor: f64, mscale: f64) -> f64 {
    if factor <= 1.0 { 1.0 } else { 0.1 * mscale * factor.ln() + 1.0 }
}

/// The share of a head's elements that is rotated: inside `rope_parameters` (Transformers 5) or beside them (4).
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

    /// Transformers uses `rope_scaling`, together with the base outside.
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
        // 8192 positions: the first pair makes 1304 turns (kept), the second 13 (kept, as high_freq_factor is 4).
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192.0 };
        assert_eq!(rope(scaling), [1.0, 0.01]);
        // 100 positions: the second pair makes 0.16 turns (divided by 8).
        let scaling =
            RopeScaling::Llama3 { factor: 8.0, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 100.0 };
        assert_eq!(rope(scaling), [1.0, 0.00125]);
        // 100 positions: 32 turns correspond to pair -0.15 (rounded to 0), 1 turn to pair 0.6 (rounded to 1).
        let scaling = RopeScaling::Yarn {
            factor: 8.0,
            original_max_positions: 100.0,
            beta_fast: 32.0,
            beta_slow: 1.0,
            attention_factor: 1.0,
            truncate: true,
        };
        assert_eq!(rope(scaling.clone()), [1.0, 0.00125]);
        // Without rounding, the ramp ends at pair 0.6, before the second pair; with 0.1 turns it ends at pair 1.10, after it.
        let RopeScaling::Yarn { factor, original_max_positions, beta_fast, attention_factor, .. } = scaling else { panic!() };
        let yarn = |beta_slow, truncate| {
            rope(RopeScaling::Yarn { factor, original_max_positions, beta_fast, beta_slow, attention_factor, truncate })[1]
        };
        assert_eq!(yarn(1.0, false), 0.00125);
        let share = 2.0 * 10_000f64.ln() / (4.0 * (100.0 / (0.1 * 2.0 * PI)).ln());
        assert!((yarn(0.1, false) - (share * 0.00125 + (1.0 - share) * 0.01)).abs() < 1e-12);
        assert!((yarn(0.1, true) - (0.00125 + 0.01) / 2.0).abs() < 1e-12);
    }

    #[test]
    fn kinds_that_depend_on_the_length_hold_up_to_a_length() {
        let read = |parameters: Value| Rope::from_parameters(Some(&parameters), 1e4, 4096).unwrap();
        let dynamic = read(json!({"type": "dynamic", "factor": 4.0, "original_max_position_embeddings": 1024}));
        assert_eq!((dynamic.scaling.clone(), dynamic.longest()), (RopeScaling::None, None));
        let long = json!({"type": "longrope", "short_factor": [1.0, 2], "long_factor": [3.0, 4.0], "original_max_position_embeddings": 64});
        let rope = read(long.clone());
        assert_eq!((rope.longest(), rope.inverse_frequencies(4).unwrap()), (Some(64), vec![1.0, 0.005]));
        // The factor is 4096 / 64: sqrt(1 + ln 64 / ln 64).
        assert_eq!(rope.attention_scaling(), 2f32.sqrt());
        assert!(rope.inverse_frequencies(6).unwrap_err().to_string().contains("expected 3 rotary divisors"));
        // A value beside the parameters takes precedence.
        let outside = Rope::from_json(&json!({"rope_scaling": long, "original_max_position_embeddings": 32}), 4096).unwrap();
        assert_eq!(outside.longest(), Some(32));
    }

    #[test]
    fn yarn_may_say_how_strongly_it_scales() {
        let factor = |parameters: Value| {
            let mut whole = json!({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 64});
            if let (Some(whole), Value::Object(parameters)) = (whole.as_object_mut(), parameters) {
                whole.extend(parameters);
            }
            f64::from(Rope::from_parameters(Some(&whole), 1e4, 512).unwrap().attention_scaling())
        };
        let near = |a: f64, b: f64| assert!((a - b).abs() < 1e-6, "{a} {b}");
        let plain = 0.1 * 4f64.ln() + 1.0;
        near(factor(json!({"mscale": 0.7})), plain);
        near(factor(json!({"mscale": 0.7, "mscale_all_dim": 0})), plain);
        near(factor(json!({"mscale": 0.7, "mscale_all_dim": 1.0})), (0.07 * 4f64.ln() + 1.0) / plain);
        near(factor(json!({"mscale": 0.7, "mscale_all_dim": 1.0, "attention_factor": 1.5})), 1.5);
        near(factor(json!({"factor": null})), 0.1 * 8f64.ln() + 1.0);
    }

    #[test]
    fn what_cannot_be_honoured_is_refused_by_name() {
        let check = |parameters: Value, expected: &str| {
            let message = Rope::from_parameters(Some(&parameters), 1e4, 4096).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check(json!({"type": "su", "factor": 4.0}), "`su` is not supported");
        check(json!({"type": "dynamic"}), "needs `factor`");
        check(json!({"type": "longrope", "factor": 4.0}), "needs `short_factor`");
        check(
            json!({"type": "llama3", "original_max_position_embeddings": 0, "factor": 4.0, "low_freq_factor": 1,
            "high_freq_factor": 4}),
            "expected 1 or more",
        );
        check(json!({"rope_type": "linear"}), "needs `factor`");
        check(json!({"rope_type": null, "type": "yarn", "factor": 4.0}), "found null");
        check(json!("yarn"), "found \"yarn\"");
        check(json!({"rope_type": "default", "mrope_section": [1, 2]}), "`mrope_section` = [1,2]");
    }
}
