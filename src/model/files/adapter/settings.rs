//! Reads adapter_config.json: the strength of each update, and the other settings of the adapter.

use std::collections::BTreeMap;

use serde_json::Value;

use crate::error::{Error, Result};

/// The keys of adapter_config.json that are read, or that do not affect the weights of a trained adapter. Any other key is
/// refused unless it is empty.
const UNDERSTOOD: &[&str] = &[
    "alpha_pattern",
    "base_model_name_or_path",
    "bias",
    "init_lora_weights",
    "lora_alpha",
    "lora_bias",
    "modules_to_save",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "trainable_token_indices",
    "use_dora",
    "use_rslora",
    // Its effect is in the file's tensors.
    "ensure_weight_tying",
    // Which layers were trained, which is evident from the tensors.
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
    // For training, or for other programs.
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
];

/// Initialisations that do not change the base.
const INITIALISATIONS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// The advice for everything that cannot be applied here.
pub(super) const MERGE: &str = "Merge the adapter with PEFT's merge_and_unload() and save the merged model.";

pub(super) struct Settings {
    rank: usize,
    alpha: f64,
    rslora: bool,
    /// Suffixes of module names with their own alpha; the first match applies.
    alpha_pattern: Vec<(String, f64)>,
    has_rank_pattern: bool,
    /// Whether the updates are weight-decomposed, with a magnitude for each output (DoRA, arXiv 2402.09353).
    pub dora: bool,
    /// Suffixes of the names of modules that are stored in full.
    modules_to_save: Vec<String>,
    /// For suffixes of module names, the tokens that have their own rows.
    tokens: BTreeMap<String, Vec<u32>>,
}

impl Settings {
    pub(super) fn read(config: &Value) -> Result<Settings> {
        let object = config.as_object().ok_or_else(|| Error::new("expected a JSON object"))?;
        if object.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            let found = object.get("peft_type").unwrap_or(&Value::Null);
            return Err(Error::new(format!("peft_type is {found}; only LORA adapters can be applied")));
        }
        for (key, value) in object {
            if !is_empty(value) && !UNDERSTOOD.contains(&key.as_str()) {
                return Err(Error::new(format!("`{key}` is {value}, which is not supported")).cure(MERGE));
            }
        }
        match object.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(kind)) if INITIALISATIONS.contains(&kind.as_str()) => {}
            Some(kind) => {
                return Err(
                    Error::new(format!("`init_lora_weights` is {kind}, which changes the base model: not supported")).cure(MERGE)
                );
            }
        }
        let rank = object.get("r").and_then(Value::as_u64).filter(|&rank| rank > 0);
        let rank = rank.ok_or_else(|| Error::new("expected a whole number above 0 for `r`"))? as usize;
        let alpha = object.get("lora_alpha").and_then(Value::as_f64);
        let alpha = alpha.ok_or_else(|| Error::new("expected a number for `lora_alpha`"))?;
        let patterns = object.get("alpha_pattern").and_then(Value::as_object);
        let alpha_pattern = patterns.into_iter().flatten().map(|(pattern, alpha)| match alpha.as_f64() {
            // PEFT interprets the key as a regular expression, but in practice it is a plain name.
            Some(alpha) if pattern.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) => {
                Ok((pattern.clone(), alpha))
            }
            _ => Err(Error::new(format!("`alpha_pattern` holds `{pattern}`: {alpha}; expected a module's name and a number"))),
        });
        let flag = |key: &str| object.get(key).and_then(Value::as_bool).unwrap_or(false);
        Ok(Settings {
            rank,
            alpha,
            rslora: flag("use_rslora"),
            alpha_pattern: alpha_pattern.collect::<Result<_>>()?,
            has_rank_pattern: object.get("rank_pattern").is_some_and(|value| !is_empty(value)),
            dora: flag("use_dora"),
            modules_to_save: names(object.get("modules_to_save"), "modules_to_save")?,
            tokens: tokens(object.get("trainable_token_indices"))?,
        })
    }

    /// The factor of `B A` for a module whose `A` has `rank` rows.
    pub(super) fn scale(&self, module: &str, rank: usize) -> Result<f64> {
        if rank != self.rank && !self.has_rank_pattern {
            return Err(Error::new(format!("`{module}` has rank {rank}; the config says {}", self.rank)));
        }
        let own = self.alpha_pattern.iter().find(|(pattern, _)| is_end(module, pattern));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        Ok(alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 })
    }

    /// Whether the module is stored as a copy beside the base's. (PEFT compares suffixes of names, `ModulesToSaveWrapper`.)
    pub(super) fn is_saved(&self, module: &str) -> bool {
        self.modules_to_save.iter().any(|end| module.ends_with(end.as_str()))
    }

    /// The tokens that have their own rows in the module.
    pub(super) fn tokens_of(&self, module: &str) -> Result<&[u32]> {
        let found = self.tokens.iter().find(|(end, _)| module.ends_with(end.as_str()));
        found.map(|(_, tokens)| tokens.as_slice()).ok_or_else(|| {
            Error::new(format!(
                "the adapter holds rows of tokens for `{module}`, and `trainable_token_indices` does not say which"
            ))
        })
    }
}

/// Whether `end` consists of the last parts of a module's name: true for `q_proj` and `model.layers.0.self_attn.q_proj`, but
/// not for `model.layers.0.self_attn.eq_proj`.
fn is_end(module: &str, end: &str) -> bool {
    module.strip_suffix(end).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'))
}

/// Reads a name or a list of names.
fn names(value: Option<&Value>, key: &str) -> Result<Vec<String>> {
    match value {
        None | Some(Value::Null) => Ok(Vec::new()),
        Some(Value::String(name)) => Ok(vec![name.clone()]),
        Some(value) => serde_json::from_value(value.clone())
            .map_err(|_| Error::new(format!("expected a list of names for `{key}`, found {value}"))),
    }
}

/// Reads the tokens that have their own rows: a plain list belongs to the embedding, otherwise each module has its own.
fn tokens(value: Option<&Value>) -> Result<BTreeMap<String, Vec<u32>>> {
    let read = match value {
        None | Some(Value::Null) => return Ok(BTreeMap::new()),
        Some(Value::Array(_)) => value
            .and_then(|value| serde_json::from_value(value.clone()).ok())
            .map(|tokens| [("embed_tokens".to_owned(), tokens)].into()),
        Some(value) => serde_json::from_value(value.clone()).ok(),
    };
    read.ok_or_else(|| {
        let value = value.unwrap_or(&Value::Null);
        Error::new(format!(
            "expected token ids, or names of modules with token ids, for `trainable_token_indices`, found {value}"
        ))
    })
}

/// Whether this is the value that PEFT writes for an unused setting.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn config() -> Value {
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"], "use_dora": false})
    }

    fn settings(changes: &Value) -> Settings {
        let mut config = config();
        config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
        Settings::read(&config).unwrap()
    }

    #[test]
    fn scales_by_hand() {
        let check = |changes: Value, module: &str, rank: usize, expected: f64| {
            assert_eq!(settings(&changes).scale(module, rank).unwrap(), expected);
        };
        check(json!({}), "model.layers.0.mlp.up_proj", 2, 3.0);
        check(json!({"use_rslora": true, "r": 4}), "model.layers.0.mlp.up_proj", 4, 3.0);
        let own = json!({"alpha_pattern": {"layers.0.mlp.up_proj": 10}, "rank_pattern": {"up_proj": 5}});
        check(own.clone(), "model.layers.0.mlp.up_proj", 5, 2.0);
        check(own, "model.layers.10.mlp.up_proj", 2, 3.0);
    }

    #[test]
    fn modules_and_tokens_are_told_by_the_ends_of_names() {
        let saved = settings(&json!({"modules_to_save": ["norm", "lm_head"]}));
        assert!(
            saved.is_saved("lm_head")
                && saved.is_saved("model.layers.0.input_layernorm")
                && !saved.is_saved("model.embed_tokens")
        );
        let of_embedding = settings(&json!({"trainable_token_indices": [3, 5]}));
        assert_eq!(of_embedding.tokens_of("model.embed_tokens").unwrap(), [3, 5]);
        let of_head = settings(&json!({"trainable_token_indices": {"lm_head": [7]}}));
        assert_eq!(of_head.tokens_of("lm_head").unwrap(), [7]);
        assert!(of_head.tokens_of("model.embed_tokens").unwrap_err().to_string().contains("trainable_token_indices"));
    }

    #[test]
    fn what_cannot_be_applied_is_refused_by_name() {
        let check = |key: &str, value: Value| {
            let mut config = config();
            config[key] = value;
            let error = Settings::read(&config).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(key), "{key}: {error}");
        };
        check("fan_in_fan_out", json!(true));
        check("target_parameters", json!(["mlp.experts.gate_up_proj"]));
        check("layer_replication", json!([[0, 2], [1, 3]]));
        check("init_lora_weights", json!("pissa_niter_4"));
        check("peft_type", json!("IA3"));
        check("r", json!(0));
        check("lora_alpha", Value::Null);
        check("alpha_pattern", json!({".*up_proj": 3}));
        check("modules_to_save", json!({"lm_head": 1}));
        check("trainable_token_indices", json!({"lm_head": "all"}));
        check("a_key_of_next_year", json!(1));
    }
}
