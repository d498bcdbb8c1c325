//! Families that alternate the gated delta rule with gated attention in every fourth layer: Qwen3-Next and Qwen 3.5.

use serde_json::{Map, Value, json};

use super::multimodal::without_sections;
use crate::error::{Error, Result};
use crate::json::{count, flag, optional_count, present};
use crate::kernels::delta::DeltaShape;
use crate::kernels::gated::Activation;
use crate::model::block::{Block, FeedForward};
use crate::model::config::{Config, DeltaConfig};
use crate::model::delta_net::DeltaNet;
use crate::model::layers::{Attention, Layer};
use crate::model::mixer::Mixer;
use crate::model::rope::{Rope, partial_rotary_factor};

/// The names of the two kinds of layers in config.json.
const KINDS: [&str; 2] = ["full_attention", "linear_attention"];
/// The distance between layers with attention, if the file does not say.
pub(super) const INTERVAL: usize = 4;

/// Reads the settings that the families share; `grouped` says how the rows of the projections are ordered.
pub(super) fn configure(config: &mut Config, json: &Value, grouped: bool) -> Result<()> {
    let mut plain = json.clone();
    // Qwen 3.5 has three-part positions, which are a single number for text.
    for key in ["rope_parameters", "rope_scaling"].into_iter().filter(|_| !grouped) {
        if let Some(parameters) = plain.get_mut(key) {
            without_sections(parameters);
        }
    }
    config.rope = Rope::from_json(&plain, config.max_positions)?;
    config.rotary_dim = (config.head_dim as f64 * partial_rotary_factor(json)?.unwrap_or(0.25)) as usize;
    config.norm_offset = true;
    config.attention_gates = true;
    config.qkv_bias = flag(json, "attention_bias")?.unwrap_or(false);
    config.output_bias = config.qkv_bias;
    let layers = match present(json, "layer_types") {
        None => every_but(optional_count(json, "full_attention_interval")?.unwrap_or(INTERVAL), config.layers)?,
        Some(kinds) => {
            let known = |kind: &Value| kind.as_str().and_then(|kind| KINDS.iter().position(|known| *known == kind));
            let found = kinds.as_array().and_then(|kinds| kinds.iter().map(known).collect::<Option<Vec<_>>>());
            let found = found.filter(|found| found.len() == config.layers).ok_or_else(|| {
                let [full, linear] = KINDS;
                Error::new(format!(
                    "`layer_types` is {kinds}; expected {full} or {linear} for each of the {} layers",
                    config.layers
                ))
            })?;
            found.into_iter().map(|kind| kind == 1).collect()
        }
    };
    let shape = DeltaShape {
        key_heads: count(json, "linear_num_key_heads")?,
        value_heads: count(json, "linear_num_value_heads")?,
        key_dim: count(json, "linear_key_head_dim")?,
        value_dim: count(json, "linear_value_head_dim")?,
        kernel: count(json, "linear_conv_kernel_dim")?,
        grouped,
    };
    config.delta = Some(DeltaConfig { shape, layers });
    Ok(())
}

/// Every layer has the delta rule, except each `interval`th.
pub(super) fn every_but(interval: usize, layers: usize) -> Result<Vec<bool>> {
    match interval {
        0 => Err(Error::new("`full_attention_interval` is 0; expected 1 or more")),
        interval => Ok((1..=layers).map(|layer| !layer.is_multiple_of(interval)).collect()),
    }
}

/// The inverse of [`configure`].
pub(super) fn settings(config: &Config) -> Map<String, Value> {
    let mut json = Map::new();
    json.insert("attention_bias".to_owned(), config.qkv_bias.into());
    json.insert("partial_rotary_factor".to_owned(), json!(config.rotary_dim as f64 / config.head_dim as f64));
    if let Some(DeltaConfig { shape, layers }) = &config.delta {
        let kinds: Vec<&str> = layers.iter().map(|linear| KINDS[usize::from(*linear)]).collect();
        json.insert("layer_types".to_owned(), json!(kinds));
        for (key, number) in [
            ("linear_num_key_heads", shape.key_heads),
            ("linear_num_value_heads", shape.value_heads),
            ("linear_key_head_dim", shape.key_dim),
            ("linear_value_head_dim", shape.value_dim),
            ("linear_conv_kernel_dim", shape.kernel),
        ] {
            json.insert(key.to_owned(), number.into());
        }
    }
    json
}

pub(super) fn block(layer: &Layer) -> Result<Block> {
    let mixer = match layer.config.delta_shape(layer.index) {
        Some(shape) => Mixer::Delta(DeltaNet::load(layer, shape)?),
        None => Mixer::Attention(Attention::load_with_norms(layer)?),
    };
    Block::pre_norm(layer, mixer, FeedForward::load(layer, Activation::Silu)?)
}
