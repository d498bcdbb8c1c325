//! Ministral 3: Mistral with YaRN, and queries that grow with their position beyond the original training length.
//! Reference: Transformers `models/ministral3/modeling_ministral3.py`.

use serde_json::{Value, json};

use super::family::Family;
use super::family::Rule::Optional;
use super::llama;
use crate::error::{Error, Result};
use crate::json::{number, optional_count};
use crate::model::config::{Config, QueryGrowth};
use crate::model::rope::{self, Rope, parameters, with_first_length};

pub(super) const FAMILY: Family = Family {
    model_type: "ministral3",
    class: "Ministral3ForCausalLM",
    keys: &[("sliding_window", Optional)],
    defaults: r#"{"num_key_value_heads": 8, "head_dim": 128, "rms_norm_eps": 0.00001, "max_position_embeddings": 262144, "pad_token_id": 11}"#,
    configure,
    settings: |config| json!({"sliding_window": config.windows.first().copied().flatten()}),
    block: llama::block,
    ..Family::PLAIN
};

fn configure(config: &mut Config, json: &Value) -> Result<()> {
    let found = with_first_length(json, &parameters(json).cloned().unwrap_or_else(default_parameters));
    let needed =
        |key: &str| Error::new(format!("this family needs `{key}` in `rope_parameters` (or `rope_scaling`), but it is missing"));
    config.query_growth = Some(QueryGrowth {
        beta: number(&found, GROWTH)?.ok_or_else(|| needed(GROWTH))?,
        original_positions: optional_count(&found, ORIGINAL)?.filter(|n| *n > 0).ok_or_else(|| needed(ORIGINAL))?,
    });
    let mut scaling = found;
    let (above, below) = (number(&scaling, "mscale")?, number(&scaling, "mscale_all_dim")?);
    if let Some(scaling) = scaling.as_object_mut() {
        scaling.retain(|key, _| ![GROWTH, "max_position_embeddings"].contains(&key.as_str()));
        // Equal values cancel out.
        if above.is_some_and(|above| above != 0.0) && above == below && !scaling.contains_key("attention_factor") {
            scaling.retain(|key, _| !key.starts_with("mscale"));
            scaling.insert("attention_factor".to_owned(), 1.0.into());
        }
    }
    let theta = rope::base(json, "rope_theta", Some(&scaling), 10_000.0)?;
    config.rope = Rope::from_parameters(Some(&scaling), theta, config.max_positions)?;
    config.windows = vec![optional_count(json, "sliding_window")?; config.layers];
    Ok(())
}

const GROWTH: &str = "llama_4_scaling_beta";
const ORIGINAL: &str = "original_max_position_embeddings";

/// Transformers' default if config.json has no rope parameters.
fn default_parameters() -> Value {
    json!({"rope_type": "yarn", "rope_theta": 1_000_000.0, "factor": 16.0, ORIGINAL: 16384, "beta_fast": 32.0, "beta_slow": 1.0,
           "mscale": 1.0, "mscale_all_dim": 1.0, GROWTH: 0.1})
}
