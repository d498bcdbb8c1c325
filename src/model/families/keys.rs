//! The rules for config.json's keys: nothing that could change the logits is silently ignored.
//!
//! A family's own table (in its file) takes precedence over [`COMMON`], which all families share. A key that is in neither is
//! refused.

use serde_json::Value;

use super::family::{Family, Rule, Rules};
use super::outer;
use crate::error::{Error, Result};

use Rule::{Honoured, Irrelevant, Only, Optional};

pub(crate) const COMMON: Rules = &[
    ("model_type", Honoured),
    ("vocab_size", Honoured),
    ("hidden_size", Honoured),
    ("intermediate_size", Honoured),
    ("num_hidden_layers", Honoured),
    ("num_attention_heads", Honoured),
    ("num_key_value_heads", Honoured),
    ("head_dim", Honoured),
    ("rms_norm_eps", Honoured),
    ("max_position_embeddings", Honoured),
    ("tie_word_embeddings", Honoured),
    // May be `null` beside rope parameters that contain the base: see rope.rs.
    ("rope_theta", Optional),
    ("rope_scaling", Optional),
    ("rope_parameters", Optional),
    // Read if the scaling of the rotary embedding uses it.
    ("original_max_position_embeddings", Honoured),
    ("hidden_act", Only(&["silu", "swish"])),
    ("partial_rotary_factor", Only(&["1", "1.0"])),
    ("is_decoder", Only(&["true", "false"])),
    ("is_encoder_decoder", Only(&["false"])),
    ("add_cross_attention", Only(&["false"])),
    ("pruned_heads", Only(&["{}"])),
    // The weights would be stored in a form that is not read.
    ("quantization_config", Only(&[])),
    ("quantization", Only(&[])),
    // Written by converters of Llama; true for every `llama` checkpoint that Transformers reads.
    ("is_llama_config", Only(&["true"])),
    ("rope_interleaved", Only(&["false"])),
    // Training settings. `unapplied_in_training` reports those that Transformers would apply, before the first step.
    ("attention_dropout", Irrelevant),
    ("hidden_dropout", Irrelevant),
    ("resid_pdrop", Irrelevant),
    ("embd_pdrop", Irrelevant),
    ("initializer_range", Irrelevant),
    ("classifier_dropout", Irrelevant),
    ("initializer_factor", Irrelevant),
    ("gradient_checkpointing", Irrelevant),
    ("use_gradient_checkpointing", Irrelevant),
    ("neftune_noise_alpha", Irrelevant),
    ("pretraining_tp", Irrelevant),
    ("router_aux_loss_coef", Irrelevant),
    ("output_router_logits", Irrelevant),
    ("unsloth_fixed", Irrelevant),
    ("unsloth_version", Irrelevant),
    // Generation and special tokens; the tokenizer's own files say which tokens are special.
    ("use_cache", Irrelevant),
    ("cache_implementation", Irrelevant),
    ("bos_token_id", Irrelevant),
    ("eos_token_id", Irrelevant),
    ("pad_token_id", Optional),
    ("sep_token_id", Irrelevant),
    ("unk_token_id", Irrelevant),
    ("decoder_start_token_id", Irrelevant),
    ("tokenizer_class", Irrelevant),
    ("prefix", Irrelevant),
    ("task_specific_params", Irrelevant),
    ("generation_config", Irrelevant),
    // Generation settings that Transformers 4 wrote into every config (`PretrainedConfig`).
    ("max_length", Irrelevant),
    ("min_length", Irrelevant),
    ("max_new_tokens", Irrelevant),
    ("do_sample", Irrelevant),
    ("early_stopping", Irrelevant),
    ("num_beams", Irrelevant),
    ("num_beam_groups", Irrelevant),
    ("diversity_penalty", Irrelevant),
    ("temperature", Irrelevant),
    ("top_k", Irrelevant),
    ("top_p", Irrelevant),
    ("min_p", Irrelevant),
    ("typical_p", Irrelevant),
    ("repetition_penalty", Irrelevant),
    ("length_penalty", Irrelevant),
    ("no_repeat_ngram_size", Irrelevant),
    ("encoder_no_repeat_ngram_size", Irrelevant),
    ("bad_words_ids", Irrelevant),
    ("num_return_sequences", Irrelevant),
    ("output_scores", Irrelevant),
    ("return_dict_in_generate", Irrelevant),
    ("forced_bos_token_id", Irrelevant),
    ("forced_eos_token_id", Irrelevant),
    ("remove_invalid_values", Irrelevant),
    ("exponential_decay_length_penalty", Irrelevant),
    ("suppress_tokens", Irrelevant),
    ("begin_suppress_tokens", Irrelevant),
    ("bos_token", Irrelevant),
    ("eos_token", Irrelevant),
    ("pad_token", Irrelevant),
    ("unk_token", Irrelevant),
    ("padding_side", Irrelevant),
    // Length limits of the tokenizer or trainer.
    ("model_max_length", Irrelevant),
    ("tokenizer_model_max_length", Irrelevant),
    ("max_sequence_length", Irrelevant),
    ("max_seq_len", Irrelevant),
    ("max_seq_length", Irrelevant),
    ("seq_length", Irrelevant),
    ("seq_len", Irrelevant),
    // Choices of attention implementation and hardware.
    ("use_flash_attn", Irrelevant),
    ("use_flash_attention", Irrelevant),
    ("use_flash_attention_2", Irrelevant),
    ("_flash_attn_2_enabled", Irrelevant),
    ("use_sdpa", Irrelevant),
    ("device_map", Irrelevant),
    ("fp16", Irrelevant),
    ("bf16", Irrelevant),
    ("fp32", Irrelevant),
    // Bookkeeping.
    ("_commit_hash", Irrelevant),
    ("_diffusers_version", Irrelevant),
    ("license", Irrelevant),
    ("model_name", Irrelevant),
    ("base_model", Irrelevant),
    ("base_model_name_or_path", Irrelevant),
    ("language", Irrelevant),
    // `check_architectures` refuses heads other than language-model heads.
    ("architectures", Optional),
    ("auto_map", Irrelevant),
    ("dtype", Irrelevant),
    ("torch_dtype", Irrelevant),
    ("transformers_version", Irrelevant),
    ("transformers.js_config", Irrelevant),
    ("_model_name_or_path", Irrelevant),
    ("_name_or_path", Irrelevant),
    ("_attn_implementation_autoset", Irrelevant),
    ("_attn_implementation", Irrelevant),
    ("attn_implementation", Irrelevant),
    ("name_or_path", Irrelevant),
    ("return_dict", Irrelevant),
    ("output_attentions", Irrelevant),
    ("output_hidden_states", Irrelevant),
    ("chunk_size_feed_forward", Irrelevant),
    ("problem_type", Irrelevant),
    ("id2label", Irrelevant),
    ("label2id", Irrelevant),
    ("torchscript", Irrelevant),
    ("finetuning_task", Irrelevant),
    ("use_bfloat16", Irrelevant),
    ("tf_legacy_loss", Irrelevant),
    ("tie_encoder_decoder", Irrelevant),
    ("cross_attention_hidden_size", Irrelevant),
];

/// Keys with `Only` for which Transformers does not accept `null`.
const NEVER_NULL: &[&str] = &["hidden_act", "hidden_activation", "use_sliding_window"];

/// Refuses the first key that is unknown or whose value cannot be honoured.
pub(crate) fn check(json: &Value, family: &Family) -> Result<()> {
    check_architectures(json, family)?;
    check_nested_rotary_factor(json, family)?;
    for (key, value) in json.as_object().into_iter().flatten() {
        match rule(key, family) {
            None => {
                return Err(Error::new(format!(
                    "`{key}` = {value} is not a known setting of the family `{}`",
                    family.model_type
                ))
                .cure(
                    "If it does not affect the model's results, remove the line; if it does, the family must be extended: see src/model/mod.rs.",
                ));
            }
            Some(rule) if value.is_null() && (rule == Honoured || NEVER_NULL.contains(&key.as_str())) => {
                return Err(Error::new(format!("`{key}` = null is not a valid value for the family `{}`", family.model_type))
                    .cure(
                        "Set the value that the weights were made with, or remove the line to use the default of Transformers.",
                    ));
            }
            Some(Only([])) if !value.is_null() && key.starts_with("quantization") => {
                return Err(Error::new(format!("`{key}` = {value} is not supported: the weights are quantised")).cure(
                    "Use the model that they were made from, or a .gguf file; for an adapter on a quantised base pass the original model with --base.",
                ));
            }
            Some(Only(taken)) if !value.is_null() && !taken.contains(&plain(value).as_str()) => {
                let taken = if taken.is_empty() { String::new() } else { format!("; expected {}", taken.join(" or ")) };
                return Err(Error::new(format!("`{key}` = {value} is not supported{taken}")));
            }
            Some(_) => {}
        }
    }
    Ok(())
}

/// Refuses classes with another head than a language-model head, such as reward models: their files may still use a language
/// model's tensor names. `model_type` decides the family, as in Transformers.
fn check_architectures(json: &Value, family: &Family) -> Result<()> {
    let stem = family.class.trim_end_matches("ForCausalLM");
    let without_head = format!("{stem}Model");
    let is_known = |class: &str| class.ends_with("ForCausalLM") || class == without_head || outer::is_class_around(family, class);
    let found = match json.get("architectures") {
        None | Some(Value::Null) => return Ok(()),
        Some(Value::Array(classes)) => classes.iter().find(|class| !class.as_str().is_some_and(is_known)),
        Some(other) => Some(other),
    };
    found.map_or(Ok(()), |found| {
        Err(Error::new(format!(
            "`architectures` names {found}, which is not a language model with its head; expected `{}`",
            family.class
        ))
        .cure("A reward model or a classifier has no token probabilities: use the language model that it was made from."))
    })
}

/// Rope parameters may contain the rotated share of a head; the same rule applies to it there.
fn check_nested_rotary_factor(json: &Value, family: &Family) -> Result<()> {
    const KEY: &str = "partial_rotary_factor";
    let sets = ["rope_parameters", "rope_scaling"].into_iter().filter_map(|key| json.get(key)?.as_object());
    let nested = sets.flat_map(|set| [set].into_iter().chain(set.values().filter_map(Value::as_object)));
    for value in nested.filter_map(|set| set.get(KEY)) {
        if let Some(Only(taken)) = rule(KEY, family)
            && !value.is_null()
            && !taken.contains(&plain(value).as_str())
        {
            return Err(Error::new(format!(
                "rope parameters with `{KEY}` = {value} are not supported; expected {}",
                taken.join(" or ")
            )));
        }
    }
    Ok(())
}

pub(crate) fn rule(key: &str, family: &Family) -> Option<Rule> {
    family.keys.iter().chain(COMMON).find(|(name, _)| *name == key).map(|(_, rule)| *rule)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
/// Sentences about training settings of config.json that Transformers applies and this program does not: dropout, and the router's
/// auxiliary loss. Scoring does not depend on them.
pub(crate) fn unapplied_in_training(json: &Value) -> Vec<String> {
    let number = |key: &str| json.get(key).and_then(Value::as_f64).unwrap_or(0.0);
    let elsewhere = "Transformers and the trainers built on it apply it, and this program does not";
    let rates = ["attention_dropout", "resid_pdrop"].into_iter().filter(|key| number(key) != 0.0);
    let mut said: Vec<String> = rates
        .map(|key| {
            format!("config.json asks for {key} {} in training: {elsewhere}; set it to 0 for the same training", number(key))
        })
        .collect();
    if json.get("output_router_logits").and_then(Value::as_bool) == Some(true) {
        said.push(format!(
            "config.json adds the router's load-balancing loss to training (output_router_logits): {elsewhere}; set it to false for the same \
             training"
        ));
    }
    said
}
