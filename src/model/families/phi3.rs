//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: queries, keys and values are one matrix, and so are gate and up; part of each head is
//! rotated. Reference: Transformers `models/phi3/modeling_phi3.py`; for GGUF, llama.cpp `src/models/phi3.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Only, Optional};
use crate::error::{Error, Result};
use crate::json::optional_count;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::{Rope, parameters, partial_rotary_factor};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    architecture: "phi3",
    class: "Phi3ForCausalLM",
    keys: &[
        ("partial_rotary_factor", Honoured),
        ("sliding_window", Optional),
        // Keys of Microsoft's own code, where other values have an effect.
        ("attention_bias", Only(&["false"])),
        ("mlp_bias", Only(&["false"])),
        ("lm_head_bias", Only(&["false"])),
        ("full_attn_mod", Only(&["1"])),
        ("interpolate_factor", Only(&["1"])),
    ],
    defaults: r#"{"rms_norm_eps": 0.00001, "pad_token_id": 32000}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")],
    gguf_keys: &[("attention.sliding_window", Honoured)],
    block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    let renamed = renamed(json);
    check_scaling(&renamed)?;
    config.rope = Rope::from_json(&renamed, config.max_positions)?;
    config.rotary_dim = (config.head_dim as f64 * partial_rotary_factor(json)?.unwrap_or(1.0)) as usize;
    config.windows = vec![optional_count(json, "sliding_window")?; config.layers];
    Ok(())
}

/// Renames the scaling of the first releases: `su` and `yarn` both mean `longrope` (`convert_rope_params_to_dict`).
fn renamed(json: &Value) -> Value {
    let mut json = json.clone();
    for set in ["rope_parameters", "rope_scaling"] {
        for kind in ["rope_type", "type"] {
            if let Some(name) = json.get_mut(set).and_then(|set| set.get_mut(kind))
                && ["su", "yarn"].contains(&name.as_str().unwrap_or_default())
            {
                *name = "longrope".into();
            }
        }
    }
    json
}

/// Refuses other kinds of scaling, as Transformers does for this family (`Phi3Config.validate_rope`).
fn check_scaling(json: &Value) -> Result<()> {
    let kind = parameters(json).and_then(|set| set.get("rope_type").or_else(|| set.get("type"))).and_then(Value::as_str);
    match kind.filter(|kind| !["default", "longrope"].contains(kind)) {
        None => Ok(()),
        Some(kind) => {
            Err(Error::new(format!("rope scaling `{kind}` is not supported by this family; expected default or longrope"))
                .cure("Transformers also refuses such a config.json: set the kind that the model was trained with."))
        }
    }
}

fn settings(config: &Config) -> Value {
    let share = config.rotary_dim as f64 / config.head_dim as f64;
    json!({"sliding_window": config.windows.first().copied().flatten(), "partial_rotary_factor": share})
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    // 0 means no window.
    let window = file.arch_count("attention.sliding_window")?.filter(|&window| window > 0);
    config.windows = vec![window; config.layers];
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    Block::pre_norm(layer, Attention::load_fused(layer)?, FeedForward::Dense(Mlp::load_fused(layer, Activation::Silu)?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::rope::RopeScaling;

    #[test]
    fn scalings_that_transformers_refuses_for_the_family_are_refused() {
        let of = |set: &str, scaling: Value| {
            let mut json = json!({"model_type": "phi3", "hidden_size": 64, "intermediate_size": 32, "num_hidden_layers": 1,
                "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 128, "original_max_position_embeddings": 64});
            json[set] = scaling;
            Config::from_json(&json).map(|config| config.rope).map_err(|error| error.to_string())
        };
        let divisors = vec![1.0; 16];
        for kind in ["longrope", "su", "yarn"] {
            for (set, key) in [("rope_scaling", "type"), ("rope_parameters", "rope_type")] {
                let scaling = json!({key: kind, "short_factor": divisors, "long_factor": divisors, "rope_theta": 10_000.0});
                assert!(matches!(of(set, scaling).unwrap().scaling, RopeScaling::LongRope { .. }), "{set} {kind}");
            }
        }
        assert_eq!(of("rope_parameters", json!({"rope_type": "default", "rope_theta": 5.0})).unwrap().theta, 5.0);
        let llama3 = json!({"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0});
        for scaling in [json!({"type": "linear", "factor": 2.0}), json!({"rope_type": "dynamic", "factor": 2.0}), llama3] {
            let error = of("rope_scaling", scaling).unwrap_err();
            assert!(error.contains("is not supported by this family; expected default or longrope"), "{error}");
        }
    }
}
