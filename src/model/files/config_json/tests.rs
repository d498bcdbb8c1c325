//! Every key of every family's config: honoured, refused or irrelevant.

use serde_json::{Value, json};

use super::*;
use crate::model::families::FAMILIES;
use crate::model::families::Rule;
use crate::model::families::keys::{COMMON, rule};

/// A config that every family takes, with the settings of all of them at values that are not the defaults.
fn config_of(family: &Family) -> Value {
    let mut config = json!({
        "model_type": family.model_type, "vocab_size": 99, "hidden_size": 48, "intermediate_size": 40, "num_hidden_layers": 4,
        "num_attention_heads": 6, "num_key_value_heads": 2, "head_dim": 8, "rms_norm_eps": 1e-5,
        "max_position_embeddings": 512, "tie_word_embeddings": false,
    });
    let settings = config.as_object_mut().unwrap();
    for (key, value) in [
        ("num_experts", json!(4)),
        ("num_experts_per_tok", json!(2)),
        ("moe_intermediate_size", json!(16)),
        ("use_sliding_window", json!(family.model_type != "qwen3_moe")),
        ("sliding_window", json!(64)),
        ("max_window_layers", json!(1)),
    ] {
        if family.keys.iter().any(|(name, rule)| *name == key && matches!(rule, Rule::Honoured | Rule::Optional)) {
            settings.insert(key.to_owned(), value);
        }
    }
    config
}

/// Another valid value for a setting that is honoured.
fn another(key: &str, family: &str) -> Value {
    match key {
        "hidden_size" => json!(96),
        "num_attention_heads" => json!(4),
        "num_key_value_heads" => json!(3),
        "num_hidden_layers" => json!(2),
        "head_dim" => json!(16),
        "partial_rotary_factor" => json!(0.25),
        "rms_norm_eps" | "rope_theta" | "query_pre_attn_scalar" | "rope_local_base_freq" => json!(12345.0),
        "final_logit_softcapping" => json!(30.0),
        "tie_word_embeddings" | "attention_bias" | "mlp_bias" | "norm_topk_prob" => json!(true),
        "use_sliding_window" => json!(false),
        "rope_scaling" => json!({"type": "linear", "factor": 2.0}),
        "rope_parameters" if family == "gemma3_text" => json!({"full_attention": {"rope_theta": 7.0}}),
        "rope_parameters" => json!({"rope_type": "default", "rope_theta": 7.0}),
        "layer_types" => json!(["full_attention", "full_attention", "sliding_attention", "full_attention"]),
        "mlp_only_layers" => json!([1]),
        "num_experts_per_tok" => json!(3),
        _ => json!(3),
    }
}

#[test]
fn every_key_is_honoured_or_refused_or_irrelevant() {
    for family in FAMILIES {
        let plain_json = config_of(family);
        let plain = Config::from_json(&plain_json).unwrap();
        let with = |key: &str, value: Value| {
            let mut json = plain_json.clone();
            // The two are one setting.
            if key == "num_local_experts"
                && let Some(json) = json.as_object_mut()
            {
                json.remove("num_experts");
            }
            json[key] = value;
            Config::from_json(&json)
        };
        for (key, _) in family.keys.iter().chain(COMMON) {
            let name = family.model_type;
            match rule(key, family).unwrap() {
                // The first is the family, and the second refuses heads.
                Rule::Honoured | Rule::Optional if ["model_type", "architectures"].contains(key) => {}
                // Only a scaling asks for it: rope.rs.
                Rule::Honoured if *key == "original_max_position_embeddings" => {}
                kind @ (Rule::Honoured | Rule::Optional) => {
                    // `rope_theta` beside rope parameters only, a window where it is not used.
                    let taken =
                        kind == Rule::Optional && *key != "rope_theta" && !(*key == "sliding_window" && name != "mistral");
                    assert_eq!(with(key, Value::Null).is_ok(), taken, "{name}: {key} = null");
                    let mut value = another(key, name);
                    // GLM has biases unless told otherwise, Gemma is tied unless told otherwise.
                    if name.starts_with("glm") && *key == "attention_bias" {
                        value = json!(false);
                    }
                    assert_ne!(with(key, value).unwrap(), plain, "{name} does not honour {key}");
                }
                Rule::Only(taken) => {
                    let message = with(key, json!("something else")).unwrap_err().to_string();
                    assert!(message.contains(&format!("`{key}` = \"something else\" is not supported")), "{message}");
                    for text in taken {
                        let value = serde_json::from_str(text).unwrap_or_else(|_| json!(text));
                        assert_eq!(with(key, value).unwrap(), plain, "{name}: {key} = {text} changes something");
                    }
                }
                Rule::Irrelevant => assert_eq!(with(key, json!("anything")).unwrap(), plain, "{name} reads {key}"),
            }
        }
        let message = with("mup_scale", json!(2)).unwrap_err().to_string();
        assert!(message.contains("`mup_scale` = 2 is not a setting that is known"), "{message}");
    }
}

#[test]
fn windows_are_where_the_family_puts_them() {
    let windows = |model_type: &str, key: &str, value: Value| {
        let mut json = config_of(by_name(model_type));
        json[key] = value;
        Config::from_json(&json).unwrap().windows
    };
    let (none, some) = (None, Some(64));
    assert_eq!(windows("llama", "model_type", json!("llama")), [none; 4]);
    assert_eq!(windows("mistral", "model_type", json!("mistral")), [some; 4]);
    assert_eq!(windows("mistral", "sliding_window", Value::Null), [none; 4]);
    assert_eq!(windows("qwen2", "max_window_layers", json!(2)), [none, none, some, some]);
    assert_eq!(windows("qwen2", "use_sliding_window", json!(false)), [none; 4]);
    assert_eq!(windows("gemma3_text", "sliding_window_pattern", json!(2)), [some, none, some, none]);
    assert_eq!(windows("gemma3_text", "sliding_window_pattern", json!(6)), [some; 4]);
}

#[test]
fn one_setting_under_two_names_must_be_one_number() {
    let mut json = config_of(by_name("qwen3_moe"));
    json["num_local_experts"] = json["num_experts"].clone();
    assert_eq!(Config::from_json(&json).unwrap().experts.unwrap().count, 4);
    json["num_local_experts"] = json!(5);
    let message = Config::from_json(&json).unwrap_err().to_string();
    assert!(message.contains("`num_local_experts` is 5, and `num_experts` 4"), "{message}");
    let mut json = config_of(by_name("qwen2"));
    json["use_sliding_window"] = json!(false);
    json["layer_types"] = json!(["full_attention", "sliding_attention", "full_attention", "full_attention"]);
    let message = Config::from_json(&json).unwrap_err().to_string();
    assert!(message.contains("`layer_types` names layers with a window"), "{message}");
}

#[test]
fn experts_are_where_the_config_puts_them() {
    let mut json = config_of(by_name("qwen3_moe"));
    json["decoder_sparse_step"] = json!(2);
    json["mlp_only_layers"] = json!([3]);
    assert_eq!(Config::from_json(&json).unwrap().experts.unwrap().routed, [false, true, false, false]);
}

/// google/gemma-3-4b-it leaves out what is the default.
#[test]
fn the_text_half_of_a_multimodal_config() {
    let json = json!({
        "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"hidden_size": 1152},
        "text_config": {"hidden_size": 2560, "intermediate_size": 10240, "model_type": "gemma3_text", "num_hidden_layers": 34,
                        "rope_scaling": {"factor": 8.0, "rope_type": "linear"}, "sliding_window": 1024},
    });
    let config = Config::from_json(&json).unwrap();
    assert_eq!((config.family, config.heads, config.kv_heads, config.head_dim), ("gemma3_text", 8, 4, 256));
    assert_eq!((config.hidden_size, config.tied, config.windows[5], config.windows[6]), (2560, true, None, Some(1024)));
    assert_eq!(config.rope, Rope { theta: 1e6, scaling: crate::model::rope::RopeScaling::Linear { factor: 8.0 } });
}

#[test]
fn what_cannot_be_honoured_is_refused_by_name() {
    let check = |key: &str, value: Value, expected: &str| {
        let mut json = config_of(by_name("llama"));
        json[key] = value;
        let message = Config::from_json(&json).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    check("rope_scaling", json!({"type": "su", "factor": 4.0}), "`su` is not supported");
    check("hidden_act", json!("gelu"), "`hidden_act` = \"gelu\"");
    check("model_type", json!("mamba"), "family `mamba`");
    check("hidden_size", json!("large"), "found \"large\"");
    check("num_key_value_heads", json!(4), "cannot share");
    check("vocab_size", Value::Null, "`vocab_size` = null");
    check("quantization_config", json!({"quant_method": "gptq"}), "`quantization_config`");
    for class in
        ["LlamaForSequenceClassification", "LlamaForTokenClassification", "LlamaRewardModel", "LlamaForCausalLMWithValueHead"]
    {
        check("architectures", json!([class]), &format!("`architectures` names \"{class}\""));
    }
    check("rope_parameters", json!({"rope_theta": 7.0, "partial_rotary_factor": 0.5}), "`partial_rotary_factor` = 0.5");
    check("head_dim", json!(7), "even number of rotary dimensions");
}

/// The fixtures hold each config in both spellings.
#[test]
fn transformers_4_and_5_say_the_same() {
    for family in FAMILIES {
        let folder = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(family.model_type);
        let read = |name: &str| {
            let text = std::fs::read_to_string(folder.join(name)).unwrap();
            Config::from_json(&serde_json::from_str(&text).unwrap()).unwrap()
        };
        assert_eq!(read("config.json"), read("config.transformers4.json"));
    }
}

fn by_name(model_type: &str) -> &'static Family {
    families::by_model_type(model_type).unwrap()
}

#[test]
fn the_divisors_of_llama_3_give_back_their_settings() {
    // Llama 3.1 and 3.2: theta 500000, heads of 128 and 64.
    for (factor, dim) in [(8.0, 128), (32.0, 64)] {
        let scaling = RopeScaling::Llama3 { factor, low_freq_factor: 1.0, high_freq_factor: 4.0, original_max_positions: 8192.0 };
        let plain = Rope { theta: 500_000.0, scaling: RopeScaling::None }.inverse_frequencies(dim).unwrap();
        let scaled = Rope { theta: 500_000.0, scaling }.inverse_frequencies(dim).unwrap();
        // In a GGUF file they are f32.
        let divisors: Vec<f64> = plain.iter().zip(&scaled).map(|(plain, scaled)| f64::from((plain / scaled) as f32)).collect();
        assert_eq!(llama3_of_divisors(&divisors, 500_000.0, dim), Some((factor, 8192.0)));
    }
    assert_eq!(llama3_of_divisors(&[1.0, 1.0, 1.0], 1e4, 6), None);
}
