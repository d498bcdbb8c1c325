//! OLMo 3: OLMo 2 with a window in three of four layers; the rotary embedding is scaled in the others only. Its GGUF architecture is
//! `olmo2`, from which its windows distinguish it. Reference: Transformers `models/olmo3/modeling_olmo3.py`; llama.cpp
//! `src/models/olmo2.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Optional};
use super::{layer_kinds, olmo2};
use crate::error::{Error, Result};
use crate::json::{flag, optional_count, present};
use crate::model::config::Config;
use crate::model::files::gguf::Gguf;
use crate::model::rope::{self, Rope, RopeScaling};

pub(super) const FAMILY: Family = Family {
    model_type: "olmo3",
    architecture: "olmo2",
    class: "Olmo3ForCausalLM",
    keys: &[("attention_bias", Honoured), ("sliding_window", Honoured), ("layer_types", Optional)],
    defaults: r#"{"rms_norm_eps": 0.00001, "max_position_embeddings": 2048, "sliding_window": 4096, "pad_token_id": 1}"#,
    configure,
    settings,
    configure_gguf,
    gguf_names: olmo2::NAMES,
    gguf_keys: &[
        ("attention.sliding_window", Honoured),
        ("attention.sliding_window_pattern", Honoured),
        ("rope.freq_base_swa", Honoured),
    ],
    block: olmo2::block,
    ..Family::PLAIN
};

/// Transformers applies `rope_theta` to the layers without a window, and this base to the others unless a file names theirs.
const THETA: f64 = 500_000.0;

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    let full = json.get("rope_parameters").and_then(|sets| present(sets, "full_attention"));
    let theta = rope::base(json, "rope_theta", full, THETA)?;
    (config.rope, config.window_rope) = layer_kinds::ropes(json, (theta, THETA), config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.read_windows(json, optional_count(json, "sliding_window")?, |layer| !(layer + 1).is_multiple_of(4))
}

fn configure_gguf(config: &mut Config, file: &Gguf) -> Result<()> {
    let window = file.arch_count("attention.sliding_window")?;
    let pattern = file.arch_flags("attention.sliding_window_pattern")?;
    if pattern.len() != config.layers {
        let found = pattern.len();
        return Err(Error::new(format!(
            "`attention.sliding_window_pattern` names {found} layers; expected each of the {} layers",
            config.layers
        )));
    }
    config.windows = pattern.into_iter().map(|windowed| window.filter(|_| windowed)).collect();
    let theta = file.arch_number("rope.freq_base_swa")?.unwrap_or(config.rope.theta);
    config.window_rope = Some(Rope { theta, scaling: RopeScaling::None });
    Ok(())
}

fn settings(config: &Config) -> Value {
    json!({
        "attention_bias": config.qkv_bias,
        "sliding_window": config.windows.iter().flatten().next(), "layer_types": config.layer_types(),
    })
}
