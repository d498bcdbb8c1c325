//! Qwen 2 and 2.5: Llama with biases on queries, keys and values, and optional windows in the later layers.
//! Reference: Transformers `models/qwen2/modeling_qwen2.py`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Only, Optional};
use super::llama;
use crate::error::Result;
use crate::json::{count, flag};
use crate::model::config::Config;
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "qwen2",
    architecture: "qwen2",
    class: "Qwen2ForCausalLM",
    keys: &[
        ("use_sliding_window", Honoured),
        ("num_key_value_heads", Optional),
        ("sliding_window", Optional),
        ("max_window_layers", Honoured),
        ("layer_types", Optional),
        ("use_mrope", Only(&["false"])),
    ],
    defaults: r#"{"num_key_value_heads": 32, "sliding_window": 4096, "max_window_layers": 28}"#,
    configure,
    settings: window_settings,
    configure_gguf: |config, _| {
        config.qkv_bias = true;
        Ok(())
    },
    block: llama::block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = true;
    read_windows(config, json)
}

/// Layers from `max_window_layers` on have a window if `use_sliding_window` is set.
pub(super) fn read_windows(config: &mut Config, json: &Value) -> Result<()> {
    let used = flag(json, "use_sliding_window")?.unwrap_or(false);
    let window = used.then(|| count(json, "sliding_window")).transpose()?;
    let first = count(json, "max_window_layers")?;
    config.read_windows(json, window, |layer| layer >= first)
}

/// The inverse of [`read_windows`].
pub(super) fn window_settings(config: &Config) -> Value {
    match config.windows.iter().flatten().next() {
        None => json!({"use_sliding_window": false}),
        Some(window) => {
            let first = config.windows.iter().position(Option::is_some);
            json!({
                "use_sliding_window": true, "sliding_window": window, "max_window_layers": first,
                "layer_types": config.layer_types(),
            })
        }
    }
}
