//! The rules for the settings of a GGUF file, like [`crate::model::families::keys`] for config.json.
//!
//! The names are llama.cpp's (`gguf-py/gguf/constants.py`), without the architecture's prefix; `check_others` handles keys with other
//! prefixes.

use candle_core::quantized::gguf_file::Value;

use crate::error::{Error, Result};
use crate::model::families::Rule::{self, Honoured, Irrelevant, Only};
use crate::model::families::{FAMILIES, Family};

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
    ("rope.scale_linear", Honoured),
    ("rope.scaling.type", Honoured),
    ("rope.scaling.factor", Honoured),
    ("rope.scaling.original_context_length", Honoured),
    ("rope.scaling.attn_factor", Honoured),
    ("rope.scaling.yarn_beta_fast", Honoured),
    ("rope.scaling.yarn_beta_slow", Honoured),
    // Keys of families with experts; the architecture of Mixtral is `llama`, too.
    ("expert_count", Only(&["0"])),
    ("expert_used_count", Only(&["0"])),
    ("attention.causal", Only(&["true"])),
    ("nextn_predict_layers", Only(&["0"])),
    ("rope.scaling.finetuned", Irrelevant),
    ("vocab_size", Irrelevant),
    ("tensor_data_layout", Irrelevant),
];

/// Refuses the first setting that `family` does not know, or whose value cannot be honoured.
pub(super) fn check<'a>(family: &Family, settings: impl Iterator<Item = (&'a str, &'a Value)>) -> Result<()> {
    let architecture = family.architecture;
    for (key, value) in settings {
        let rule = family.gguf_keys.iter().chain(KEYS).find(|(name, _)| *name == key).map(|(_, rule)| *rule);
        let value = plain(value);
        match rule {
            Some(Only(taken)) if !taken.contains(&value.as_str()) => {
                let taken = taken.join(" or ");
                return Err(Error::new(format!("`{architecture}.{key}` = {value} is not supported; expected {taken}")));
            }
            Some(_) => {}
            None => {
                return Err(Error::new(format!("`{architecture}.{key}` = {value} is not a known setting of this family"))
                    .cure("Use the model's Hugging Face folder, or a file from a converter that was tested with this family."));
            }
        }
    }
    Ok(())
}

/// Settings in `general.` and `tokenizer.` that could change the results; the rest of `general.` describes the file for people.
const WHOLE_KEYS: &[(&str, Rule)] = &[
    ("general.type", Only(&["model"])),
    ("general.quantization_version", Only(&["2"])),
    ("tokenizer.ggml.model", Honoured),
    ("tokenizer.ggml.pre", Honoured),
    ("tokenizer.ggml.tokens", Honoured),
    ("tokenizer.ggml.token_type", Honoured),
    ("tokenizer.ggml.scores", Honoured),
    ("tokenizer.ggml.merges", Honoured),
    ("tokenizer.ggml.bos_token_id", Honoured),
    ("tokenizer.ggml.eos_token_id", Honoured),
    ("tokenizer.ggml.padding_token_id", Honoured),
    ("tokenizer.ggml.add_bos_token", Honoured),
    ("tokenizer.ggml.add_space_prefix", Honoured),
    ("tokenizer.chat_template", Honoured),
    // No token is appended to texts, as in Transformers' tokenizers of these families.
    ("tokenizer.ggml.add_eos_token", Only(&["false"])),
    ("tokenizer.ggml.add_sep_token", Only(&["false"])),
    ("tokenizer.ggml.remove_extra_whitespaces", Only(&["false"])),
    ("tokenizer.ggml.token_type_count", Irrelevant),
    ("tokenizer.ggml.unknown_token_id", Irrelevant),
    ("tokenizer.ggml.seperator_token_id", Irrelevant),
    ("tokenizer.ggml.cls_token_id", Irrelevant),
    ("tokenizer.ggml.mask_token_id", Irrelevant),
    ("tokenizer.ggml.eot_token_id", Irrelevant),
    ("tokenizer.ggml.eom_token_id", Irrelevant),
    ("tokenizer.ggml.eos_token_ids", Irrelevant),
    ("tokenizer.ggml.prefix_token_id", Irrelevant),
    ("tokenizer.ggml.suffix_token_id", Irrelevant),
    ("tokenizer.ggml.middle_token_id", Irrelevant),
    ("tokenizer.ggml.fim_pre_token_id", Irrelevant),
    ("tokenizer.ggml.fim_suf_token_id", Irrelevant),
    ("tokenizer.ggml.fim_mid_token_id", Irrelevant),
    ("tokenizer.ggml.fim_pad_token_id", Irrelevant),
    ("tokenizer.ggml.fim_rep_token_id", Irrelevant),
    ("tokenizer.ggml.fim_sep_token_id", Irrelevant),
    ("tokenizer.huggingface.json", Irrelevant),
    ("tokenizer.chat_templates", Irrelevant),
];

/// Refuses the first key without the file's architecture as prefix that could change the results. Keys that llama.cpp does not read,
/// such as `mradermacher.quantized_by`, have no effect, unless they are settings of another architecture.
pub(super) fn check_others<'a>(keys: impl Iterator<Item = (&'a str, &'a Value)>) -> Result<()> {
    for (key, value) in keys {
        let (room, rest) = key.split_once('.').unwrap_or((key, ""));
        let rule = WHOLE_KEYS.iter().find(|(name, _)| *name == key).map(|(_, rule)| *rule);
        let is_setting = || {
            let mut keys = FAMILIES.iter().flat_map(|family| family.gguf_keys).chain(KEYS);
            rest.starts_with("rope.") || rest.starts_with("attention.") || keys.any(|(name, _)| *name == rest)
        };
        let value = plain(value);
        match rule {
            Some(Only(taken)) if !taken.contains(&value.as_str()) => {
                return Err(Error::new(format!("`{key}` = {value} is not supported; expected {}", taken.join(" or ")))
                    .cure("Use a file with a complete language model, or the model's Hugging Face folder."));
            }
            Some(_) => {}
            // Additional templates, for tools and the like.
            None if key.starts_with("tokenizer.chat_template.") => {}
            None if room == "tokenizer" || room == "adapter" || room == "clip" || is_setting() => {
                return Err(Error::new(format!("`{key}` = {value} is not a known setting of this file"))
                    .cure("Use the model's Hugging Face folder, or a file from a converter that was tested with this family."));
            }
            None => {}
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
    use crate::model::families::by_architecture;

    #[test]
    fn keys_of_other_rooms_are_harmless_or_refused_by_name() {
        let check = |key: &str, value: Value, refused: bool| match check_others([(key, &value)].into_iter()) {
            Err(error) => assert!(refused && error.to_string().contains(key), "{error}"),
            Ok(()) => assert!(!refused, "{key}"),
        };
        let text = |text: &str| Value::String(text.to_owned());
        check("general.name", text("tiny"), false);
        check("general.type", text("model"), false);
        check("general.type", text("adapter"), true);
        check("adapter.lora.alpha", Value::F32(8.0), true);
        check("mradermacher.quantized_by", text("someone"), false);
        check("quantize.imatrix.file", text("imatrix.dat"), false);
        check("llama.rope.scaling.factor", Value::F32(2.0), true);
        check("tokenizer.ggml.add_eos_token", Value::Bool(true), true);
        check("tokenizer.ggml.add_eos_token", Value::Bool(false), false);
        check("tokenizer.ggml.precompiled_charsmap", Value::Array(Vec::new()), true);
        check("tokenizer.chat_template.tool_use", text("{{ x }}"), false);
    }

    #[test]
    fn settings_are_honoured_or_refused_by_name() {
        let check = |architecture: &str, key: &str, value: Value, refused: bool| {
            let result = check(by_architecture(architecture).unwrap(), [(key, &value)].into_iter());
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
