//! What becomes of each key of config.json: nothing that could change the logits is silently ignored.
//!
//! A family's own table (in its file) comes before [`COMMON`], which holds what all families share. A key in neither is refused.

use serde_json::Value;

use super::family::{Family, Rule, Rules};
use crate::error::{Error, Result};

use Rule::{Honoured, Irrelevant, Only};

pub const COMMON: Rules = &[
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
    ("rope_theta", Honoured),
    ("rope_scaling", Honoured),
    ("rope_parameters", Honoured),
    ("hidden_act", Only(&["silu", "swish"])),
    ("partial_rotary_factor", Only(&["1", "1.0"])),
    ("is_decoder", Only(&["true", "false"])),
    ("is_encoder_decoder", Only(&["false"])),
    ("add_cross_attention", Only(&["false"])),
    ("pruned_heads", Only(&["{}"])),
    // Weights of another kind than the tensors that are read.
    ("quantization_config", Only(&[])),
    ("quantization", Only(&[])),
    // Left by converters of Llama: true of every `llama` checkpoint that Transformers reads.
    ("is_llama_config", Only(&["true"])),
    ("rope_interleaved", Only(&["false"])),
    // Training.
    ("attention_dropout", Irrelevant),
    ("hidden_dropout", Irrelevant),
    ("resid_pdrop", Irrelevant),
    ("embd_pdrop", Irrelevant),
    ("initializer_range", Irrelevant),
    ("pretraining_tp", Irrelevant),
    ("router_aux_loss_coef", Irrelevant),
    ("output_router_logits", Irrelevant),
    ("unsloth_fixed", Irrelevant),
    ("unsloth_version", Irrelevant),
    // Generation and tokens; the tokenizer's own files say which tokens are special.
    ("use_cache", Irrelevant),
    ("cache_implementation", Irrelevant),
    ("bos_token_id", Irrelevant),
    ("eos_token_id", Irrelevant),
    ("pad_token_id", Irrelevant),
    ("sep_token_id", Irrelevant),
    ("unk_token_id", Irrelevant),
    ("decoder_start_token_id", Irrelevant),
    ("tokenizer_class", Irrelevant),
    ("prefix", Irrelevant),
    ("task_specific_params", Irrelevant),
    ("generation_config", Irrelevant),
    // Bookkeeping.
    ("architectures", Irrelevant),
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

/// Refuses the first key that is unknown, or whose value cannot be honoured.
pub fn check(json: &Value, family: &Family) -> Result<()> {
    for (key, value) in json.as_object().into_iter().flatten() {
        match rule(key, family) {
            None => {
                return Err(Error::new(format!(
                    "`{key}` = {value} is not a setting that is known for the family `{}`",
                    family.model_type
                ))
                .cure(
                    "If it does not change what the model computes, remove the line; if it does, the family needs to learn it: \
                     src/model/mod.rs says how.",
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

pub fn rule(key: &str, family: &Family) -> Option<Rule> {
    family.keys.iter().chain(COMMON).find(|(name, _)| *name == key).map(|(_, rule)| *rule)
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
