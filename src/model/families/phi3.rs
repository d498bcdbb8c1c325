//! Phi-3, Phi-3.5, Phi-4 and Phi-4-mini: queries, keys and values are one matrix, and so are gate and up; a part of each head turns.
//! Reference: Transformers `models/phi3/modeling_phi3.py`; for GGUF, llama.cpp `src/models/phi3.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Only, Optional};
use crate::error::Result;
use crate::json::optional_count;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::layers::{Attention, Layer, Mlp};
use crate::model::rope::{Rope, partial_rotary_factor};

pub(super) const FAMILY: Family = Family {
    model_type: "phi3",
    architecture: "phi3",
    class: "Phi3ForCausalLM",
    keys: &[
        ("partial_rotary_factor", Honoured),
        ("sliding_window", Optional),
        // Keys of Microsoft's own code, where other values mean something.
        ("attention_bias", Only(&["false"])),
        ("mlp_bias", Only(&["false"])),
        ("lm_head_bias", Only(&["false"])),
        ("full_attn_mod", Only(&["1"])),
        ("interpolate_factor", Only(&["1"])),
    ],
    defaults: r#"{"rms_norm_eps": 0.00001}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: &[("self_attn.qkv_proj", "attn_qkv"), ("mlp.gate_up_proj", "ffn_up")],
    gguf_keys: &[("attention.sliding_window", Honoured)],
    block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(&renamed(json), config.max_positions)?;
    config.rotary_dim = (config.head_dim as f64 * partial_rotary_factor(json)?.unwrap_or(1.0)) as usize;
    config.windows = vec![optional_count(json, "sliding_window")?; config.layers];
    Ok(())
}

/// The first releases call the scaling `su` or `yarn`; both are `longrope` (`convert_rope_params_to_dict`).
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

fn settings(config: &Config) -> Value {
    let share = config.rotary_dim as f64 / config.head_dim as f64;
    json!({"sliding_window": config.windows.first().copied().flatten(), "partial_rotary_factor": share})
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    // 0 stands for none.
    let window = file.arch_count("attention.sliding_window")?.filter(|&window| window > 0);
    config.windows = vec![window; config.layers];
    Ok(())
}

fn block(layer: &Layer) -> Result<Block> {
    Block::pre_norm(layer, Attention::load_fused(layer)?, FeedForward::Dense(Mlp::load_fused(layer, Activation::Silu)?))
}
