//! Tests that every key of a GGUF file is honoured, harmless, or refused by name, for every family: each existing key is removed and changed, and
//! each key that llama.cpp knows is added.

use candle_core::quantized::gguf_file::Value;

use crate::contradictions::{Gguf, ggufs};

/// The keys below `{architecture}.` whose value changes what the model computes.
const HONOURED: &[&str] = &[
    "attention.layer_norm_rms_epsilon",
    "attention.scale",
    "attention.sliding_window",
    "attention.sliding_window_pattern",
    "attn_logit_softcapping",
    "embedding_scale",
    "expert_used_count",
    "expert_weights_norm",
    "expert_weights_scale",
    "final_logit_softcapping",
    "logit_scale",
    "nextn_predict_layers",
    "residual_scale",
    "rope.dimension_count",
    "rope.freq_base",
    "rope.freq_base_swa",
    "rope.scale_linear",
    "rope.scaling.attn_factor",
    "rope.scaling.factor",
    "rope.scaling.original_context_length",
    "rope.scaling.type",
    "rope.scaling.yarn_beta_fast",
    "rope.scaling.yarn_beta_slow",
];

/// These have to fit the tensors, or each other.
const SIZES: &[&str] = &[
    "attention.head_count",
    "attention.head_count_kv",
    "attention.key_length",
    "attention.value_length",
    "block_count",
    "embedding_length",
    "expert_count",
    "expert_feed_forward_length",
    "expert_shared_count",
    "expert_shared_feed_forward_length",
    "feed_forward_length",
    "leading_dense_block_count",
    "attention.recurrent_layers",
    "ssm.conv_kernel",
    "ssm.group_count",
    "ssm.inner_size",
    "ssm.state_size",
    "ssm.time_step_rank",
];

/// These do not change the numbers of a sequence that is short enough.
const HARMLESS: &[&str] =
    &["context_length", "rope.dimension_sections", "rope.scaling.finetuned", "tensor_data_layout", "vocab_size"];

/// What llama.cpp takes where the key is missing.
fn default(architecture: &str, setting: &str) -> Option<Value> {
    match (architecture, setting) {
        (_, "rope.freq_base") | ("gemma3", "rope.freq_base_swa") => Some(Value::F32(10_000.0)),
        // Beside a factor.
        (_, "rope.scaling.type") => Some(Value::String("linear".to_owned())),
        ("gemma3", "attention.sliding_window_pattern") => Some(Value::U32(6)),
        ("gemma3", "attention.sliding_window") => Some(Value::U32(0)),
        ("gemma3", "final_logit_softcapping") => Some(Value::F32(0.0)),
        ("phi3", "attention.sliding_window") => Some(Value::U32(0)),
        _ => None,
    }
}

/// The other keys of gguf-py 0.19 (`constants.py`, `Keys`) that stand behind an architecture.
#[rustfmt::skip]
const OTHERS: &[&str] = &[
    "embedding_length_out", "features_length", "leading_dense_block_count", "expert_shared_feed_forward_length",
    "expert_chunk_feed_forward_length", "use_parallel_residual", "expert_shared_count", "expert_group_count",
    "expert_group_used_count", "expert_weights_scale", "expert_gating_func", "expert_group_scale", "experts_per_group",
    "moe_every_n_layers", "moe_latent_size", "nextn_predict_layers", "n_deepstack_layers", "pooling_type", "logit_scale",
    "decoder_start_token_id", "decoder_block_count", "attn_logit_softcapping", "router_logit_softcapping", "swin_norm",
    "rescale_every_n_layers", "time_mix_extra_dim", "residual_scale", "embedding_scale", "token_shift_count",
    "interleave_moe_layer_step", "full_attention_interval", "activation_sparsity_scale", "altup.active_idx",
    "embedding_length_per_layer_input", "swiglu_clamp_exp", "swiglu_clamp_shexp", "block_size", "norm_before_residual",
    "attention.max_alibi_bias", "attention.clamp_kqv", "attention.layer_norm_epsilon", "attention.group_norm_epsilon",
    "attention.causal", "attention.q_lora_rank", "attention.kv_lora_rank", "attention.relative_buckets_count", "attention.scale",
    "attention.output_scale", "attention.value_scale", "attention.temperature_length", "attention.key_length_mla",
    "attention.key_length_swa", "attention.value_length_swa", "attention.shared_kv_layers", "attention.recurrent_layers",
    "attention.temperature_scale", "rope.dimension_count_swa", "rope.dimension_sections", "rope.scaling.alpha",
    "rope.scaling.yarn_log_multiplier", "rope.scaling.yarn_ext_factor", "rope.scaling.yarn_attn_factor", "ssm.conv_kernel",
    "wkv.head_size", "classifier.output_labels", "shortconv.l_cache", "hyper_connection.count", "ple.layers",
];

/// The architecture's name and the key behind it.
fn split<'a>(file: &Gguf, key: &'a str) -> Option<&'a str> {
    let Some(Value::String(architecture)) = file.metadata.get("general.architecture") else { panic!("no architecture") };
    key.strip_prefix(architecture.as_str())?.strip_prefix('.')
}

fn architecture(family: &str) -> String {
    match Gguf::read(family).metadata.get("general.architecture") {
        Some(Value::String(architecture)) => architecture.clone(),
        other => panic!("{family}: {other:?}"),
    }
}

/// Another value of the same type.
fn changed(key: &str, value: &Value) -> Value {
    match value {
        // The corrections of YaRN are cut to whole dimensions, so that a small change is none.
        Value::U32(n) if key.ends_with("original_context_length") => Value::U32(n * 64),
        Value::U32(n) => Value::U32(n + 2),
        Value::I32(n) => Value::I32(n + 2),
        Value::U64(n) => Value::U64(n + 2),
        Value::F32(x) => Value::F32(x * 2.0),
        Value::Bool(flag) => Value::Bool(!flag),
        Value::String(text) => Value::String(format!("{text}x")),
        Value::Array(items) => Value::Array(items[..items.len() - 1].to_vec()),
        other => panic!("a fixture holds {other:?}"),
    }
}

#[test]
fn keys_that_are_there_count_or_are_harmless_when_they_change_or_go() {
    let mut failures = Vec::new();
    for family in ggufs() {
        let plain = Gguf::read(&family);
        let numbers = plain.load().unwrap();
        for (key, value) in &plain.metadata {
            let setting = split(&plain, key);
            // Texts, names and tokens: ids go in here, so that the numbers stay, or the file is refused.
            let harmless = setting.map_or(key != "general.architecture", |setting| HARMLESS.contains(&setting));
            // Where all layers have experts, nothing has that size.
            let harmless = harmless
                || ["qwen3_moe", "gpt_oss", "qwen3_5_moe_text"].contains(&family.as_str())
                    && setting == Some("feed_forward_length");
            // What only a file without the list of layers is read by.
            let harmless = harmless || family.starts_with("qwen3_5") && setting == Some("full_attention_interval");
            // Corrections that are cut to whole dimensions, and a head has few; a length that only a scaling asks for.
            let harmless = harmless
                || family == "olmo3" && setting.is_some_and(|setting| setting.starts_with("rope.scaling.yarn_beta"))
                || family == "phi3" && setting == Some("rope.scaling.original_context_length");
            let honoured = setting.is_some_and(|setting| HONOURED.contains(&setting));
            let sized = setting.is_some_and(|setting| SIZES.contains(&setting));
            match plain_with(&family, key, Some(changed(key, value))) {
                Ok(found) if found == numbers && harmless => {}
                Ok(found) if found != numbers && honoured => {}
                Ok(found) => failures.push(format!("{family}: {key} changed: taken, numbers equal: {}", found == numbers)),
                Err(error) => {
                    let named = error.contains(setting.unwrap_or(key))
                        || sized && ["tensor", "heads", "layers"].iter().any(|word| error.contains(word));
                    let named = named || key == "general.architecture" && error.contains(&format!("{}x", architecture(&family)));
                    // A tokenizer that lacks a piece says so in its own words.
                    let named = named || key.starts_with("tokenizer.") && error.contains("token");
                    if !named {
                        failures.push(format!("{family}: {key} changed: {error}"));
                    }
                }
            }
            match plain_with(&family, key, None) {
                Ok(found) if found == numbers && harmless => {}
                Ok(found) => {
                    match setting.and_then(|setting| default(&architecture(&family), setting)) {
                        // Without it, as with what llama.cpp takes then.
                        Some(default) => {
                            let explicit = plain_with(&family, key, Some(default.clone())).unwrap();
                            if explicit != found {
                                failures.push(format!("{family}: {key} removed is not {default:?}"));
                            }
                        }
                        // What is left out may be what follows from the others.
                        None if found == numbers => {}
                        // OLMo 3 without a window is OLMo 2.
                        None if family == "olmo3" && setting == Some("attention.sliding_window") => {}
                        None => failures.push(format!("{family}: {key} removed: other numbers")),
                    }
                }
                Err(error) => {
                    let named = error.contains(setting.unwrap_or(key)) || sized && error.contains("tensor");
                    if !named {
                        failures.push(format!("{family}: {key} removed: {error}"));
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// The fixture with `key` set, or removed.
fn plain_with(family: &str, key: &str, value: Option<Value>) -> Result<Vec<f32>, String> {
    let mut file = Gguf::read(family);
    match value {
        Some(value) => file = file.set(key, value),
        None => drop(file.metadata.remove(key)),
    }
    file.load()
}

#[test]
fn keys_that_are_added_are_refused_by_name_unless_they_are_known() {
    for family in ggufs() {
        let architecture = architecture(&family);
        let numbers = Gguf::read(&family).load().unwrap();
        let refused = |key: &str, value: Value| {
            let result = plain_with(&family, key, Some(value));
            let error = result.err().unwrap_or_else(|| panic!("{family}: {key} is taken"));
            assert!(error.contains(key), "{family}: {key}: {error}");
        };
        for setting in OTHERS {
            let key = format!("{architecture}.{setting}");
            if !Gguf::read(&family).metadata.contains_key(&key) {
                refused(&key, Value::U32(3));
            }
        }
        // A setting of another architecture, and rooms of files of another kind.
        let other = if architecture == "llama" { "qwen2" } else { "llama" };
        refused(&format!("{other}.rope.freq_base"), Value::F32(3.0));
        refused("adapter.type", Value::String("lora".to_owned()));
        refused("clip.has_vision_encoder", Value::Bool(true));
        refused("tokenizer.ggml.suppress_tokens", Value::U32(3));
        refused("tokenizer.ggml.normalizer.lowercase", Value::Bool(true));
        refused("general.type", Value::String("mmproj".to_owned()));
        for key in ["general.sampling.temp", "general.file_type", "general.license", "imatrix.chunk_count", "split.tensors.count"]
        {
            assert_eq!(plain_with(&family, key, Some(Value::U32(1))).unwrap(), numbers, "{family}: {key}");
        }
        for setting in HONOURED.iter().chain(HARMLESS) {
            let key = format!("{architecture}.{setting}");
            if Gguf::read(&family).metadata.contains_key(&key) {
                continue;
            }
            match plain_with(&family, &key, Some(Value::U32(3))) {
                Ok(found) => assert!(found == numbers || HONOURED.contains(setting), "{family}: {key}: other numbers"),
                // What belongs to windows makes OLMo 2 an OLMo 3 that lacks the others.
                Err(error) => {
                    let of_windows = architecture == "olmo2" && error.contains("attention.sliding_window_pattern");
                    assert!(error.contains(setting) || of_windows, "{family}: {key}: {error}");
                }
            }
        }
    }
}
