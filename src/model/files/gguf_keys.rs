//! What becomes of each setting of a GGUF file, as [`crate::model::families::keys`] does for config.json.
//!
//! The names are llama.cpp's (`gguf-py/gguf/constants.py`), without the architecture in front. `general.*`, `tokenizer.*` and
//! what else does not begin with the architecture is not judged here.

use candle_core::quantized::gguf_file::Value;

use crate::error::{Error, Result};
use crate::model::families::Rule::{self, Honoured, Irrelevant, Only};

const KEYS: &[(&str, Rule)] = &[
    ("context_length", Honoured),
    ("embedding_length", Honoured),
    ("block_count", Honoured),
    ("feed_forward_length", Honoured),
    ("attention.head_count", Honoured),
    ("attention.head_count_kv", Honoured),
    ("attention.key_length", Honoured),
    ("attention.value_length", Honoured),
    ("attention.layer_norm_rms_epsilon", Honoured),
    ("rope.dimension_count", Honoured),
    ("rope.freq_base", Honoured),
    ("rope.scaling.type", Honoured),
    ("rope.scaling.factor", Honoured),
    ("rope.scaling.original_context_length", Honoured),
    ("rope.scaling.attn_factor", Honoured),
    ("rope.scaling.yarn_beta_fast", Honoured),
    ("rope.scaling.yarn_beta_slow", Honoured),
    // For `qwen3moe` only: Mixtral calls itself `llama`.
    ("expert_count", Honoured),
    ("expert_used_count", Honoured),
    ("expert_feed_forward_length", Honoured),
    ("expert_shared_count", Only(&["0"])),
    ("expert_gating_func", Only(&["1"])),
    ("expert_weights_scale", Only(&["1"])),
    ("expert_weights_norm", Only(&["true"])),
    // Gemma 3.
    ("attention.sliding_window", Honoured),
    ("attention.sliding_window_pattern", Honoured),
    ("rope.freq_base_swa", Honoured),
    ("final_logit_softcapping", Honoured),
    ("attention.causal", Only(&["true"])),
    ("nextn_predict_layers", Only(&["0"])),
    ("rope.scaling.finetuned", Irrelevant),
    ("vocab_size", Irrelevant),
    ("tensor_data_layout", Irrelevant),
];

/// Settings that mean something to one family only; elsewhere they are refused.
const GEMMA3: &[&str] =
    &["attention.sliding_window", "attention.sliding_window_pattern", "rope.freq_base_swa", "final_logit_softcapping"];

/// Refuses the first setting that is unknown to `architecture`, or whose value cannot be honoured.
pub fn check<'a>(architecture: &str, settings: impl Iterator<Item = (&'a str, &'a Value)>) -> Result<()> {
    for (key, value) in settings {
        let rule = KEYS.iter().find(|(name, _)| *name == key).map(|(_, rule)| *rule);
        let foreign = GEMMA3.contains(&key) && architecture != "gemma3";
        let value = plain(value);
        match rule {
            Some(Honoured) if key == "expert_count" && architecture != "qwen3moe" && value != "0" => {
                return Err(Error::new(format!("`{architecture}.expert_count` = {value} is not supported; expected 0")));
            }
            Some(Only(taken)) if !taken.contains(&value.as_str()) => {
                let taken = taken.join(" or ");
                return Err(Error::new(format!("`{architecture}.{key}` = {value} is not supported; expected {taken}")));
            }
            Some(_) if !foreign => {}
            _ => {
                return Err(Error::new(format!(
                    "`{architecture}.{key}` = {value} is not a setting that is known for this family"
                ))
                .cure("Use the model's Hugging Face folder, or a file from a converter that the family was tested with."));
            }
        }
    }
    Ok(())
}

fn plain(value: &Value) -> String {
    match value {
        Value::Bool(flag) => flag.to_string(),
        Value::String(text) => text.clone(),
        Value::F32(x) => x.to_string(),
        Value::F64(x) => x.to_string(),
        Value::Array(items) => format!("an array of {}", items.len()),
        whole => whole.to_u64().map_or_else(|_| format!("{whole:?}"), |n| n.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_are_honoured_or_refused_by_name() {
        let check = |architecture: &str, key: &str, value: Value, refused: bool| {
            let result = check(architecture, [(key, &value)].into_iter());
            match result {
                Err(error) => assert!(refused && error.to_string().contains(&format!("{architecture}.{key}")), "{error}"),
                Ok(()) => assert!(!refused, "{key}"),
            }
        };
        check("llama", "block_count", Value::U32(2), false);
        check("llama", "expert_count", Value::U32(0), false);
        check("llama", "expert_count", Value::U32(8), true);
        check("qwen3moe", "expert_count", Value::U32(8), false);
        check("qwen3moe", "expert_weights_scale", Value::F32(1.0), false);
        check("qwen3moe", "expert_weights_scale", Value::F32(2.5), true);
        check("gemma3", "final_logit_softcapping", Value::F32(30.0), false);
        check("qwen2", "final_logit_softcapping", Value::F32(30.0), true);
        check("qwen2", "attention.causal", Value::Bool(false), true);
        check("qwen2", "attention.scale", Value::F32(0.5), true);
        check("qwen2", "vocab_size", Value::U32(5), false);
    }
}
