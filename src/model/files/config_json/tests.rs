//! Tests that every key of every family's config is honoured, refused or irrelevant.

use serde_json::{Value, json};

use super::*;
use crate::model::families::FAMILIES;
use crate::model::families::Rule;
use crate::model::families::keys::{COMMON, rule};

/// A config that the family accepts, with all its settings at values other than the defaults.
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
        ("n_routed_experts", json!(4)),
    ] {
        if family.keys.iter().any(|(name, rule)| *name == key && matches!(rule, Rule::Honoured | Rule::Optional)) {
            settings.insert(key.to_owned(), value);
        }
    }
    if family.model_type == "ministral3" {
        settings.insert("rope_parameters".to_owned(), ministral_rope(4.0));
    }
    config
}

/// The family needs a set of rope parameters; the base may be outside of it.
fn ministral_rope(factor: f64) -> Value {
    json!({"rope_type": "yarn", "factor": factor, "original_max_position_embeddings": 64, "llama_4_scaling_beta": 0.1})
}

/// Families that alternate attention with the gated delta rule.
const HYBRID: &[&str] = &["qwen3_next", "qwen3_5_text", "qwen3_5_moe_text"];

/// Another valid value for an honoured setting.
fn another(key: &str, family: &str) -> Value {
    match key {
        "hidden_size" => json!(96),
        "num_attention_heads" => json!(4),
        "num_key_value_heads" => json!(3),
        "num_hidden_layers" => json!(2),
        "head_dim" => json!(16),
        "partial_rotary_factor" if HYBRID.contains(&family) => json!(0.5),
        "partial_rotary_factor" => json!(0.25),
        "linear_num_key_heads" => json!(8),
        "linear_num_value_heads" => json!(16),
        "layer_types" if HYBRID.contains(&family) => {
            json!(["linear_attention", "full_attention", "full_attention", "full_attention"])
        }
        "rms_norm_eps" | "rope_theta" | "query_pre_attn_scalar" | "rope_local_base_freq" => json!(12345.0),
        "final_logit_softcapping" => json!(25.0),
        "norm_topk_prob" if ["glm4_moe", "qwen3_next"].contains(&family) => json!(false),
        "use_qk_norm" => json!(true),
        "tie_word_embeddings" | "attention_bias" | "mlp_bias" | "norm_topk_prob" => json!(true),
        "use_sliding_window" => json!(false),
        "rope_scaling" | "rope_parameters" if family == "ministral3" => ministral_rope(2.0),
        "rope_scaling" if family == "phi3" => {
            json!({"type": "longrope", "short_factor": [1.0, 1.0, 2.0, 2.0], "long_factor": [1.0, 1.0, 2.0, 2.0]})
        }
        "rope_scaling" => json!({"type": "linear", "factor": 2.0}),
        "residual_multiplier" | "attention_multiplier" | "embedding_multiplier" | "logits_scaling" => json!(0.5),
        "attn_logit_softcapping" => json!(20.0),
        "no_rope_layers" => json!([0, 0, 1, 1]),
        "layer_types" if family == "smollm3" => {
            json!(["sliding_attention", "full_attention", "full_attention", "full_attention"])
        }
        "rope_parameters" if ["gemma3_text", "olmo3"].contains(&family) => json!({"full_attention": {"rope_theta": 7.0}}),
        "rope_parameters" => json!({"rope_type": "default", "rope_theta": 7.0}),
        "layer_types" => json!(["full_attention", "full_attention", "sliding_attention", "full_attention"]),
        "mlp_only_layers" => json!([1]),
        "num_experts_per_tok" => json!(3),
        "quantization_config" => json!({"quant_method": "mxfp4"}),
        _ => json!(3),
    }
}

/// The original length beside the rope parameters takes precedence over the one inside: `standardize_rope_params`.
#[test]
fn the_length_of_the_first_training_beside_rope_parameters_is_that_of_every_family() {
    for family in FAMILIES {
        let with = |within: u64, beside: Option<u64>| {
            let mut json = config_of(family);
            json["rope_parameters"] = ministral_rope(2.0);
            if let (Some(parameters), true) = (json["rope_parameters"].as_object_mut(), family.model_type != "ministral3") {
                parameters.remove("llama_4_scaling_beta");
            }
            json["rope_parameters"]["original_max_position_embeddings"] = within.into();
            if let Some(beside) = beside {
                json["original_max_position_embeddings"] = beside.into();
            }
            Config::from_json(&json)
        };
        // Families with rotary embeddings per kind of layer accept no parameters for all layers, and Phi 3 accepts no YaRN.
        match with(32, None) {
            Ok(config) => assert_eq!(with(64, Some(32)).unwrap(), config, "{}", family.model_type),
            Err(_) => assert!(["gemma3_text", "olmo3", "phi3"].contains(&family.model_type), "{}", family.model_type),
        }
    }
}

#[test]
fn every_key_is_honoured_or_refused_or_irrelevant() {
    // For these families null means no window, by itself or because another key disables it.
    let without_window = ["mistral", "ministral3", "phi3", "smollm3"];
    for family in FAMILIES {
        let plain_json = config_of(family);
        let plain = Config::from_json(&plain_json).unwrap();
        let with = |key: &str, value: Value| {
            let mut json = plain_json.clone();
            // The two keys are one setting.
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
                // The first determines the family; the second is for refusing other heads.
                Rule::Honoured | Rule::Optional if ["model_type", "architectures"].contains(key) => {}
                // Only read if a scaling needs it: rope.rs.
                Rule::Honoured if *key == "original_max_position_embeddings" => {}
                kind @ (Rule::Honoured | Rule::Optional) => {
                    // Null is accepted for optional keys, except for `rope_theta` without rope parameters, and for
                    // `sliding_window` in families other than those above.
                    let taken = kind == Rule::Optional
                        && *key != "rope_theta"
                        && (*key != "sliding_window" || without_window.contains(&name));
                    assert_eq!(with(key, Value::Null).is_ok(), taken, "{name}: {key} = null");
                    let mut value = another(key, name);
                    // GLM and gpt-oss have biases by default, Gemma is tied by default.
                    if ["glm", "glm4", "gpt_oss"].contains(&name) && *key == "attention_bias" {
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
        assert!(message.contains("`mup_scale` = 2 is not a known setting"), "{message}");
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
    assert!(message.contains("`layer_types` has layers with a window"), "{message}");
}

#[test]
fn experts_are_where_the_config_puts_them() {
    let mut json = config_of(by_name("qwen3_moe"));
    json["decoder_sparse_step"] = json!(2);
    json["mlp_only_layers"] = json!([3]);
    assert_eq!(Config::from_json(&json).unwrap().experts.unwrap().routed, [false, true, false, false]);
}

/// google/gemma-3-4b-it omits settings that have the default value.
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

/// Accepts the config.json of each published model, with the meaning that its paper gives to the settings.
#[test]
fn the_settings_of_published_models_are_taken() {
    let read = |json: Value| Config::from_json(&json).unwrap();
    let smollm3 = read(json!({"architectures": ["SmolLM3ForCausalLM"], "attention_bias": false, "attention_dropout": 0.0,
        "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 11008, "max_position_embeddings": 65536,
        "max_window_layers": 28, "mlp_bias": false, "model_type": "smollm3", "no_rope_layer_interval": 4,
        "no_rope_layers": (1..=36).map(|layer| u8::from(layer % 4 != 0)).collect::<Vec<_>>(), "num_attention_heads": 16,
        "num_hidden_layers": 36, "num_key_value_heads": 4, "pretraining_tp": 2, "rms_norm_eps": 1e-6, "rope_scaling": null,
        "rope_theta": 5_000_000.0, "sliding_window": null, "use_cache": false, "use_sliding_window": false, "vocab_size": 128_256,
        "layer_types": vec!["full_attention"; 36]}));
    assert_eq!((smollm3.tied, smollm3.head_dim, smollm3.rope.theta), (true, 128, 5e6));
    assert_eq!(smollm3.turning.iter().filter(|turns| !**turns).count(), 9);
    let phi4 =
        read(json!({"architectures": ["Phi3ForCausalLM"], "attention_bias": false, "embd_pdrop": 0.0, "hidden_act": "silu",
        "hidden_size": 5120, "intermediate_size": 17920, "max_position_embeddings": 16384, "model_type": "phi3",
        "num_attention_heads": 40, "num_hidden_layers": 40, "num_key_value_heads": 10, "original_max_position_embeddings": 16384,
        "resid_pdrop": 0.0, "rms_norm_eps": 1e-5, "rope_scaling": null, "rope_theta": 250_000, "sliding_window": null,
        "tie_word_embeddings": false, "vocab_size": 100_352}));
    assert_eq!((phi4.rotary_dim, phi4.windows[0], phi4.tied), (128, None, false));
    let gemma2 = read(json!({"architectures": ["Gemma2ForCausalLM"], "attention_bias": false, "attn_logit_softcapping": 50.0,
        "cache_implementation": "hybrid", "final_logit_softcapping": 30.0, "head_dim": 256, "hidden_act": "gelu_pytorch_tanh",
        "hidden_activation": "gelu_pytorch_tanh", "hidden_size": 2304, "intermediate_size": 9216, "max_position_embeddings": 8192,
        "model_type": "gemma2", "num_attention_heads": 8, "num_hidden_layers": 26, "num_key_value_heads": 4,
        "query_pre_attn_scalar": 256, "rms_norm_eps": 1e-6, "rope_theta": 10000.0, "sliding_window": 4096, "vocab_size": 256_000}));
    assert_eq!((gemma2.attention_softcap, gemma2.final_softcap, gemma2.tied), (Some(50.0), Some(30.0), true));
    assert_eq!((gemma2.windows[0], gemma2.windows[1], gemma2.attention_scale), (Some(4096), None, 0.0625));
    let olmo3 =
        read(json!({"architectures": ["Olmo3ForCausalLM"], "attention_bias": false, "hidden_act": "silu", "hidden_size": 4096,
        "intermediate_size": 11008, "max_position_embeddings": 65536, "model_type": "olmo3", "num_attention_heads": 32,
        "num_hidden_layers": 32, "num_key_value_heads": 32, "rms_norm_eps": 1e-6, "rope_theta": 500_000, "sliding_window": 4096,
        "rope_scaling": {"attention_factor": 1.2, "beta_fast": 32.0, "beta_slow": 1.0, "factor": 8.0, "rope_type": "yarn",
            "original_max_position_embeddings": 8192}, "tie_word_embeddings": false, "vocab_size": 100_278}));
    assert_eq!((olmo3.windows[2], olmo3.windows[3], olmo3.rope.attention_scaling()), (Some(4096), None, 1.2));
    assert_eq!(olmo3.window_rope, Some(Rope { theta: 500_000.0, scaling: RopeScaling::None }));
    let granite = read(
        json!({"architectures": ["GraniteForCausalLM"], "attention_bias": false, "attention_multiplier": 0.015_625,
        "embedding_multiplier": 12.0, "hidden_act": "silu", "hidden_size": 2048, "intermediate_size": 8192, "logits_scaling": 8.0,
        "max_position_embeddings": 131_072, "mlp_bias": false, "model_type": "granite", "num_attention_heads": 32,
        "num_hidden_layers": 40, "num_key_value_heads": 8, "residual_multiplier": 0.22, "rms_norm_eps": 1e-5, "rope_scaling": null,
        "rope_theta": 10_000_000.0, "tie_word_embeddings": true, "vocab_size": 49159}),
    );
    assert_eq!((granite.embedding_scale, granite.residual_scale, granite.logit_divisor), (12.0, 0.22, 8.0));
    let glm =
        read(json!({"architectures": ["Glm4MoeForCausalLM"], "attention_bias": true, "head_dim": 128, "hidden_act": "silu",
        "hidden_size": 4096, "partial_rotary_factor": 0.5, "intermediate_size": 10944, "max_position_embeddings": 131_072,
        "model_type": "glm4_moe", "moe_intermediate_size": 1408, "norm_topk_prob": true, "num_attention_heads": 96, "n_group": 1,
        "topk_group": 1, "n_routed_experts": 128, "n_shared_experts": 1, "routed_scaling_factor": 1.0, "num_experts_per_tok": 8,
        "first_k_dense_replace": 1, "num_hidden_layers": 46, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_scaling": null,
        "rope_theta": 1_000_000, "num_nextn_predict_layers": 1, "tie_word_embeddings": false, "use_qk_norm": false,
        "vocab_size": 151_552}));
    let experts = glm.experts.unwrap();
    assert_eq!((glm.rotary_dim, glm.further_layers, experts.shared_size, experts.routed[0]), (64, 1, 1408, false));
    assert!(experts.routed[1] && experts.scoring == crate::model::config::Scoring::Sigmoid);
}

#[test]
fn the_text_halves_of_published_models_are_taken() {
    let read = |json: Value| Config::from_json(&json).unwrap();
    let mistral = json!({"architectures": ["Mistral3ForConditionalGeneration"], "image_token_index": 10, "model_type": "mistral3",
        "multimodal_projector_bias": false, "projector_hidden_act": "gelu", "spatial_merge_size": 2, "torch_dtype": "bfloat16",
        "text_config": {"attention_dropout": 0.0, "head_dim": 128, "hidden_act": "silu", "hidden_size": 5120,
            "intermediate_size": 32768, "max_position_embeddings": 131_072, "model_type": "mistral", "num_attention_heads": 32,
            "num_hidden_layers": 40, "num_key_value_heads": 8, "rms_norm_eps": 1e-5, "rope_theta": 1e9, "sliding_window": null,
            "use_cache": true, "vocab_size": 131_072},
        "vision_config": {"model_type": "pixtral"}, "vision_feature_layer": -1});
    let small = read(mistral.clone());
    assert_eq!((small.family, small.windows[0], small.rope.theta), ("mistral", None, 1e9));
    let mut ministral = mistral;
    ministral["text_config"]["model_type"] = json!("ministral3");
    ministral["text_config"]["rope_parameters"] = json!({"beta_fast": 32.0, "beta_slow": 1.0, "factor": 16.0,
        "llama_4_scaling_beta": 0.1, "mscale": 1.0, "mscale_all_dim": 1.0, "original_max_position_embeddings": 16384,
        "rope_theta": 1e6, "rope_type": "yarn", "type": "yarn"});
    let ministral = read(ministral);
    assert_eq!((ministral.family, ministral.rope.theta, ministral.rope.attention_scaling()), ("ministral3", 1e6, 1.0));
    assert_eq!(ministral.query_growth.map(|growth| growth.original_positions), Some(16384));
    let qwen3 = read(
        json!({"architectures": ["Qwen3VLForConditionalGeneration"], "image_token_id": 151_655, "model_type": "qwen3_vl",
        "text_config": {"attention_bias": false, "head_dim": 128, "hidden_act": "silu", "hidden_size": 2560, "dtype": "bfloat16",
            "intermediate_size": 9728, "max_position_embeddings": 262_144, "model_type": "qwen3_vl_text", "num_attention_heads": 32,
            "num_hidden_layers": 36, "num_key_value_heads": 8, "rms_norm_eps": 1e-6, "rope_theta": 5_000_000,
            "rope_scaling": {"mrope_interleaved": true, "mrope_section": [24, 20, 20], "rope_type": "default"},
            "tie_word_embeddings": true, "use_cache": true, "vocab_size": 151_936},
        "tie_word_embeddings": true, "video_token_id": 151_656, "vision_config": {"depth": 24}, "vision_end_token_id": 151_653,
        "vision_start_token_id": 151_652}),
    );
    assert_eq!((qwen3.family, qwen3.tied, qwen3.rope), ("qwen3", true, Rope { theta: 5e6, scaling: RopeScaling::None }));
}

/// The config of openai/gpt-oss-20b, whose weights are in MXFP4.
#[test]
fn the_settings_of_gpt_oss_are_taken() {
    let json = json!({
        "architectures": ["GptOssForCausalLM"], "attention_bias": true, "attention_dropout": 0.0, "eos_token_id": 200_002,
        "experts_per_token": 4, "head_dim": 64, "hidden_act": "silu", "hidden_size": 2880, "initial_context_length": 4096,
        "initializer_range": 0.02, "intermediate_size": 2880,
        "layer_types": (0..24).map(|i| if i % 2 == 0 { "sliding_attention" } else { "full_attention" }).collect::<Vec<_>>(),
        "max_position_embeddings": 131_072, "model_type": "gpt_oss", "num_attention_heads": 64, "num_experts_per_tok": 4,
        "num_hidden_layers": 24, "num_key_value_heads": 8, "num_local_experts": 32, "output_router_logits": false,
        "pad_token_id": 199_999, "quantization_config": {"modules_to_not_convert": ["model.layers.*.self_attn",
            "model.layers.*.mlp.router", "model.embed_tokens", "lm_head"], "quant_method": "mxfp4"},
        "rms_norm_eps": 1e-5, "rope_scaling": {"beta_fast": 32.0, "beta_slow": 1.0, "factor": 32.0,
            "original_max_position_embeddings": 4096, "rope_type": "yarn", "truncate": false},
        "rope_theta": 150_000, "router_aux_loss_coef": 0.9, "sliding_window": 128, "swiglu_limit": 7.0,
        "tie_word_embeddings": false, "transformers_version": "4.55.0.dev0", "use_cache": true, "vocab_size": 201_088,
    });
    let config = Config::from_json(&json).unwrap();
    let experts = config.experts.clone().unwrap();
    assert_eq!((experts.count, experts.per_token, experts.mxfp4, experts.transposed), (32, 4, true, true));
    assert_eq!((config.windows[0], config.windows[1], config.rope.theta), (Some(128), None, 150_000.0));
    // With two settings removed, the defaults of the config class apply.
    let mut shorter = json.clone();
    let object = shorter.as_object_mut().unwrap();
    object.remove("rope_scaling");
    object.remove("rope_theta");
    assert_eq!(Config::from_json(&shorter).unwrap(), config);
    let refused = |key: &str, value: Value, expected: &str| {
        let mut json = json.clone();
        json[key] = value;
        let message = Config::from_json(&json).unwrap_err().to_string();
        assert!(message.contains(key) && message.contains(expected), "{message}");
    };
    refused("quantization_config", json!({"quant_method": "bitsandbytes"}), "expected the `quant_method` mxfp4");
    refused("swiglu_limit", json!(0.0), "expected a positive limit");
    refused("num_experts", json!(32), "not supported");
    refused("hidden_act", json!("gelu"), "not supported");
}

/// The configs of Qwen/Qwen3-Next-80B-A3B-Instruct, and of the text half of Qwen/Qwen3.5-27B.
#[test]
fn the_settings_of_layers_with_the_delta_rule_are_taken() {
    let next = json!({
        "architectures": ["Qwen3NextForCausalLM"], "attention_bias": false, "attention_dropout": 0.0, "bos_token_id": 151_643,
        "decoder_sparse_step": 1, "eos_token_id": 151_645, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu",
        "hidden_size": 2048, "initializer_range": 0.02, "intermediate_size": 5120, "linear_conv_kernel_dim": 4,
        "linear_key_head_dim": 128, "linear_num_key_heads": 16, "linear_num_value_heads": 32, "linear_value_head_dim": 128,
        "max_position_embeddings": 262_144, "mlp_only_layers": [], "model_type": "qwen3_next", "moe_intermediate_size": 512,
        "norm_topk_prob": true, "num_attention_heads": 16, "num_experts": 512, "num_experts_per_tok": 10, "num_hidden_layers": 48,
        "num_key_value_heads": 2, "output_router_logits": false, "partial_rotary_factor": 0.25, "rms_norm_eps": 1e-6,
        "rope_scaling": null, "rope_theta": 10_000_000, "router_aux_loss_coef": 0.001, "shared_expert_intermediate_size": 512,
        "tie_word_embeddings": false, "torch_dtype": "bfloat16", "use_cache": true, "use_sliding_window": false,
        "vocab_size": 151_936,
    });
    let config = Config::from_json(&next).unwrap();
    let delta = config.delta.clone().unwrap();
    assert_eq!((config.rotary_dim, config.norm_offset, config.attention_gates), (64, true, true));
    assert_eq!((&delta.layers[..4], delta.shape.columns()), (&[true, true, true, false][..], 12_288 + 64));
    let experts = config.experts.unwrap();
    assert_eq!((experts.shared_size, experts.shared_gate, experts.normalise), (512, true, true));
    let refused = |key: &str, value: Value, expected: &str| {
        let mut json = next.clone();
        json[key] = value;
        let message = Config::from_json(&json).unwrap_err().to_string();
        assert!(message.contains(expected), "{message}");
    };
    refused("layer_types", json!(["linear_attention"]), "each of the 48 layers");
    refused("layer_types", json!(vec!["sliding_attention"; 48]), "`layer_types`");
    refused("linear_num_value_heads", json!(24), "24 value heads");
    refused("full_attention_interval", json!(0), "expected 1 or more");
    refused("use_sliding_window", json!(true), "not supported");

    let qwen = json!({"architectures": ["Qwen3_5ForConditionalGeneration"], "image_token_id": 248_056, "model_type": "qwen3_5",
        "text_config": {"attention_bias": false, "attention_dropout": 0.0, "attn_output_gate": true, "dtype": "bfloat16",
            "eos_token_id": 248_044, "full_attention_interval": 4, "head_dim": 256, "hidden_act": "silu", "hidden_size": 5120,
            "initializer_range": 0.02, "intermediate_size": 17_408, "linear_conv_kernel_dim": 4, "linear_key_head_dim": 128,
            "linear_num_key_heads": 16, "linear_num_value_heads": 48, "linear_value_head_dim": 128, "mamba_ssm_dtype": "float32",
            "max_position_embeddings": 262_144, "mlp_only_layers": [], "model_type": "qwen3_5_text", "mtp_num_hidden_layers": 1,
            "mtp_use_dedicated_embeddings": false, "num_attention_heads": 24, "num_hidden_layers": 64, "num_key_value_heads": 4,
            "rms_norm_eps": 1e-6, "tie_word_embeddings": false, "use_cache": true, "vocab_size": 248_320,
            "rope_parameters": {"mrope_interleaved": true, "mrope_section": [11, 11, 10], "partial_rotary_factor": 0.25,
                "rope_theta": 10_000_000, "rope_type": "default"}},
        "tie_word_embeddings": false, "video_token_id": 248_057, "vision_config": {"depth": 27}, "vision_end_token_id": 248_054,
        "vision_start_token_id": 248_053});
    let config = Config::from_json(&qwen).unwrap();
    assert_eq!((config.family, config.rotary_dim, config.rope.theta), ("qwen3_5_text", 64, 1e7));
    assert_eq!(config.delta.unwrap().shape.columns(), 2 * 16 * 128 + 2 * 48 * 128 + 2 * 48);
}

/// An error for an unsupported family names it.
#[test]
fn other_families_are_refused_by_name() {
    for model_type in ["gemma4", "gemma3n", "qwen3_vl_moe", "llama4", "granitemoe"] {
        let message = Config::from_json(&json!({"model_type": model_type})).unwrap_err().to_string();
        assert!(message.contains(&format!("family `{model_type}`")), "{message}");
    }
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
    check("num_key_value_heads", json!(4), "cannot be divided");
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

/// The fixtures contain each config in both spellings.
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
        // GGUF files store them as f32.
        let divisors: Vec<f64> = plain.iter().zip(&scaled).map(|(plain, scaled)| f64::from((plain / scaled) as f32)).collect();
        assert_eq!(llama3_of_divisors(&divisors, 500_000.0, dim), Some((factor, 8192.0)));
    }
    assert_eq!(llama3_of_divisors(&[1.0, 1.0, 1.0], 1e4, 6), None);
}
