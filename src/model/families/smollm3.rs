//! SmolLM3: Llama without rotary embedding in every fourth layer.
//! Reference: Transformers `models/smollm3/modeling_smollm3.py`; for GGUF, llama.cpp `src/models/smollm3.cpp`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::{Honoured, Irrelevant, Optional};
use super::llama;
use crate::error::{Error, Result};
use crate::json::{flag, optional_count, present};
use crate::model::config::Config;
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "smollm3",
    architecture: "smollm3",
    class: "SmolLM3ForCausalLM",
    keys: &[
        ("attention_bias", Honoured),
        ("mlp_bias", Honoured),
        ("no_rope_layers", Optional),
        ("no_rope_layer_interval", Honoured),
        ("use_sliding_window", Honoured),
        ("sliding_window", Optional),
        ("layer_types", Optional),
        // A key of Qwen's that this family does not read.
        ("max_window_layers", Irrelevant),
    ],
    defaults: r#"{"rope_theta": 2000000.0, "num_key_value_heads": 4, "tie_word_embeddings": true, "pad_token_id": 128004}"#,
    configure,
    settings,
    // llama.cpp only knows this interval.
    configure_gguf: |config, _| {
        config.turning = every_but(INTERVAL, config.layers);
        Ok(())
    },
    gguf_permuted: true,
    block: llama::block,
    ..Family::PLAIN
};

/// The distance between layers without rotary embedding, if the file does not list them.
const INTERVAL: usize = 4;

fn every_but(interval: usize, layers: usize) -> Vec<bool> {
    (1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect()
}

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    config.mlp_bias = flag(json, "mlp_bias")?.unwrap_or(false);
    config.turning = match present(json, "no_rope_layers") {
        None => match optional_count(json, "no_rope_layer_interval")?.unwrap_or(INTERVAL) {
            0 => return Err(Error::new("`no_rope_layer_interval` is 0; expected 1 or more")),
            interval => every_but(interval, config.layers),
        },
        Some(list) => {
            let turns: Vec<u8> = serde_json::from_value(list.clone()).unwrap_or_default();
            if turns.len() < config.layers || turns.iter().any(|turns| *turns > 1) {
                return Err(Error::new(format!(
                    "`no_rope_layers` is {list}; expected for each of the {} layers 1 (queries and keys turn) or 0",
                    config.layers
                )));
            }
            turns[..config.layers].iter().map(|turns| *turns == 1).collect()
        }
    };
    let used = flag(json, "use_sliding_window")?.unwrap_or(false);
    let window = if used { optional_count(json, "sliding_window")? } else { None };
    let turning = config.turning.clone();
    config.read_windows(json, window, |layer| !turning[layer])
}

fn settings(config: &Config) -> Value {
    let window = config.windows.iter().flatten().next();
    json!({
        "attention_bias": config.qkv_bias, "mlp_bias": config.mlp_bias,
        "no_rope_layers": config.turning.iter().map(|turns| u8::from(*turns)).collect::<Vec<_>>(),
        "use_sliding_window": window.is_some(), "sliding_window": window, "layer_types": config.layer_types(),
    })
}
