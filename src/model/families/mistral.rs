//! Mistral: Llama with an optional window in every layer. Its GGUF architecture is `llama`.
//! Reference: Transformers `models/mistral/modeling_mistral.py`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::Optional;
use super::llama;
use crate::error::Result;
use crate::json::optional_count;
use crate::model::config::Config;
use crate::model::rope::Rope;

pub(super) const FAMILY: Family = Family {
    model_type: "mistral",
    class: "MistralForCausalLM",
    keys: &[("sliding_window", Optional), ("head_dim", Optional)],
    defaults: r#"{"num_key_value_heads": 8, "sliding_window": 4096}"#,
    configure,
    settings,
    block: llama::block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    config.rope = Rope::from_json(json, config.max_positions)?;
    config.windows = vec![optional_count(json, "sliding_window")?; config.layers];
    Ok(())
}

fn settings(config: &Config) -> Value {
    json!({"sliding_window": config.windows.first().copied().flatten()})
}
