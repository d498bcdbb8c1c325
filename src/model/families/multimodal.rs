//! Finds the language model inside a multimodal one: its config, its module names, and the parts beside it. Reference: Transformers,
//! `configuration_*.py` and `modeling_*.py` of the models in outer.rs.

use serde_json::{Map, Value, json};

use super::family::{Family, Rule};
use super::keys;
pub(crate) use super::outer::is_multimodal;
use super::outer::{Outer, around};
use crate::error::{Context, Error, Result};
use crate::json::present;

/// Keys of the outer config that some versions repeat inside; none of them concerns text.
const OUTER: &[&str] = &[
    "text_config",
    "vision_config",
    "mm_tokens_per_image",
    "boi_token_index",
    "eoi_token_index",
    "image_token_index",
    "boi_token_id",
    "eoi_token_id",
    "image_token_id",
    "video_token_id",
    "vision_start_token_id",
    "vision_end_token_id",
    "vision_token_id",
    "projector_hidden_act",
    "vision_feature_layer",
    "multimodal_projector_bias",
    "spatial_merge_size",
    TIE,
    "model_type",
    "architectures",
];

const TIE: &str = "tie_word_embeddings";

/// Keys of `text_config` about the head. The head belongs to the outer model, whose class does not read them.
const OF_THE_HEAD: &[&str] = &["final_logit_softcapping"];

/// The part of config.json that describes the language model, in the form of a standalone config, after the settings around it have
/// been checked.
///
/// The head belongs to the outer model, so the outer `tie_word_embeddings` decides (Transformers 5, `tie_weights`).
pub(crate) fn text_config(family: &Family, json: &Value) -> Result<Value> {
    let (Some(outer), Some(whole)) = (around(json), json.as_object()) else { return Ok(json.clone()) };
    let mut text = match whole.get("text_config") {
        Some(Value::Object(text)) => {
            check_beside(family, whole, text)?;
            text.clone()
        }
        None | Some(Value::Null) if outer.flat => whole.clone(),
        _ => return Err(Error::new("the config of a multimodal model holds no `text_config`; expected an object")),
    };
    keys::check(&json!({"architectures": json.get("architectures")}), family)?;
    if let Some(tied) = text.get(TIE) {
        keys::check(&json!({TIE: tied}), family)?;
    }
    if outer.needs_sections && !["rope_parameters", "rope_scaling"].iter().any(|key| holds_sections(text.get(*key))) {
        return Err(Error::new("this model needs `mrope_section` in `rope_parameters` (or `rope_scaling`), but it is missing"));
    }
    text.retain(|key, _| !OUTER.contains(&key.as_str()));
    text.insert("model_type".to_owned(), family.model_type.into());
    text.insert(TIE.to_owned(), tie(outer, json));
    for key in OF_THE_HEAD {
        if text.contains_key(*key) {
            text.insert((*key).to_owned(), Value::Null);
        }
    }
    let defaults: Map<String, Value> = serde_json::from_str(outer.defaults).context("the model's defaults are not JSON")?;
    for (key, value) in defaults {
        text.entry(key).or_insert(value);
    }
    if outer.sectioned {
        for key in ["rope_parameters", "rope_scaling"] {
            if let Some(parameters) = text.get_mut(key) {
                without_sections(parameters);
            }
        }
    }
    Ok(Value::Object(text))
}

/// Refuses settings outside `text_config`, where Transformers does not read them, unless they change nothing.
fn check_beside(family: &Family, whole: &Map<String, Value>, text: &Map<String, Value>) -> Result<()> {
    for (key, value) in whole {
        if OUTER.contains(&key.as_str()) {
            continue;
        }
        match keys::rule(key, family) {
            // Transformers reads these keys only inside `text_config`.
            Some(Rule::Honoured | Rule::Optional) if text.get(key) == Some(value) || value.is_null() => {}
            Some(Rule::Honoured | Rule::Optional) => {
                return Err(Error::new(format!(
                    "`{key}` = {value} is outside `text_config`, where Transformers ignores it; inside it is {}",
                    text.get(key).map_or("missing".to_owned(), Value::to_string)
                ))
                .cure("Remove the outer line if the inner setting is the right one."));
            }
            _ => keys::check(&json!({key: value}), family)?,
        }
    }
    Ok(())
}

/// Whether head and embedding are one matrix. In the outer config `null` means false.
fn tie(outer: &Outer, json: &Value) -> Value {
    let found = json.get(TIE).map_or(outer.tied.into(), |tied| if tied.is_null() { false.into() } else { tied.clone() });
    let inner = json.get("text_config").and_then(|text| text.get(TIE)) == Some(&Value::Bool(true));
    if outer.inner_tie_counts && inner && found.as_bool() == Some(false) { inner.into() } else { found }
}

fn holds_sections(parameters: Option<&Value>) -> bool {
    parameters.is_some_and(|parameters| present(parameters, "mrope_section").is_some())
}

/// Removes the sections that the frequencies are divided into: for text all sections rotate alike.
pub(super) fn without_sections(parameters: &mut Value) {
    let Some(parameters) = parameters.as_object_mut() else { return };
    parameters.retain(|key, _| !["mrope_section", "mrope_interleaved"].contains(&key.as_str()));
    for kind in ["rope_type", "type"] {
        if parameters.get(kind).and_then(Value::as_str) == Some("mrope") {
            parameters.insert(kind.to_owned(), "default".into());
        }
    }
}

/// Remarks on what the inner config says about the head, which belongs to the outer model, and which value was used.
pub(crate) fn remarks(json: &Value) -> Vec<String> {
    let (Some(text), Some(outer)) = (json.get("text_config"), around(json)) else { return Vec::new() };
    let mut remarks = Vec::new();
    let inner = present(text, TIE).and_then(Value::as_bool);
    let counted = tie(outer, json).as_bool().unwrap_or(false);
    if let Some(inner) = inner.filter(|inner| *inner != counted) {
        remarks.push(format!(
            "tie_word_embeddings is {counted} for the whole model and {inner} in text_config: {counted} is used, as in Transformers"
        ));
    }
    remarks.extend(OF_THE_HEAD.iter().filter_map(|key| present(text, key).map(|value| (key, value))).map(|(key, value)| {
        format!("`{key}` = {value} in text_config is ignored, as in Transformers' class of the multimodal model")
    }));
    remarks
}

/// The name that the multimodal model of Transformers 5 gives to a module or tensor of the language model: `model.layers.0` becomes
/// `model.language_model.layers.0`. The head keeps its name.
pub(crate) fn outer_name(name: &str) -> String {
    match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_owned(),
    }
}

/// The inverse of [`outer_name`], for the names of either version of Transformers: version 4 has `language_model.model.layers.0` and
/// `language_model.lm_head`.
pub(crate) fn inner_name(name: &str) -> String {
    match (name.strip_prefix("model.language_model."), name.strip_prefix("language_model.")) {
        (Some(rest), _) => format!("model.{rest}"),
        (_, Some(rest)) => rest.to_owned(),
        _ => name.to_owned(),
    }
}

/// Whether the tensor or module belongs to the vision tower or its connection to the language model, which text never reaches.
pub(crate) fn is_beside_text(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    ["vision_tower.", "multi_modal_projector.", "visual."].iter().any(|part| name.starts_with(part))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::config::Config;

    fn outer() -> Value {
        json!({
            "architectures": ["Gemma3ForConditionalGeneration"], "model_type": "gemma3", "vision_config": {"hidden_size": 1152},
            "text_config": {"model_type": "gemma3_text", "num_hidden_layers": 2},
        })
    }

    #[test]
    fn the_outer_tie_counts_and_is_true_where_it_is_missing() {
        for (outer_tie, inner_tie, tied, told) in [
            (None, None, true, false),
            (None, Some(false), true, true),
            (Some(json!(false)), Some(true), false, true),
            (Some(json!(false)), None, false, false),
            (Some(json!(true)), Some(true), true, false),
            (Some(Value::Null), Some(true), false, true),
        ] {
            let mut json = outer();
            if let Some(tie) = &outer_tie {
                json["tie_word_embeddings"] = tie.clone();
            }
            if let Some(tie) = inner_tie {
                json["text_config"]["tie_word_embeddings"] = tie.into();
            }
            assert_eq!(Config::from_json(&json).unwrap().tied, tied, "{outer_tie:?} {inner_tie:?}");
            assert_eq!(!remarks(&json).is_empty(), told, "{outer_tie:?} {inner_tie:?}");
        }
    }

    #[test]
    fn what_stands_around_the_text_half_is_judged() {
        let check = |key: &str, value: Value, expected: &str| {
            let mut json = outer();
            json[key] = value;
            let message = Config::from_json(&json).unwrap_err().to_string();
            assert!(message.contains(expected), "{message}");
        };
        check("quantization_config", json!({"quant_method": "fp8"}), "`quantization_config`");
        check("rope_theta", json!(7.0), "`rope_theta` = 7.0 is outside `text_config`");
        check("num_hidden_layers", json!(3), "inside it is 2");
        check("audio_scale", json!(3), "`audio_scale` = 3");
        check("text_config", Value::Null, "`text_config`");
        check("text_config", json!({"model_type": "llama"}), "of the family \"llama\"");
        check("architectures", json!(["Gemma3ForSequenceClassification"]), "Gemma3ForSequenceClassification");
    }

    /// Qwen/Qwen2.5-VL-7B-Instruct as published, and as Transformers 5 writes it.
    #[test]
    fn text_settings_stand_outside_or_inside() {
        let text = json!({"hidden_size": 3584, "intermediate_size": 18944, "num_attention_heads": 28, "num_key_value_heads": 4,
            "num_hidden_layers": 28, "vocab_size": 152064, "rms_norm_eps": 1e-6, "max_position_embeddings": 128000,
            "use_sliding_window": false, "sliding_window": 32768, "max_window_layers": 28,
            "rope_scaling": {"type": "mrope", "mrope_section": [16, 24, 24]}});
        let mut flat = text.clone();
        flat["model_type"] = json!("qwen2_5_vl");
        flat["architectures"] = json!(["Qwen2_5_VLForConditionalGeneration"]);
        flat["vision_config"] = json!({"depth": 32});
        flat["vision_token_id"] = json!(151654);
        let mut inner = text;
        inner["model_type"] = json!("qwen2_5_vl_text");
        inner["rope_scaling"] = Value::Null;
        inner["rope_parameters"] = json!({"rope_type": "default", "mrope_section": [16, 24, 24], "rope_theta": 1e6});
        let nested = json!({"model_type": "qwen2_5_vl", "vision_config": {"depth": 32}, "text_config": inner});
        let config = Config::from_json(&flat).unwrap();
        assert_eq!((config.family, config.rope.theta, config.tied, config.qkv_bias), ("qwen2", 1e6, false, true));
        assert_eq!(Config::from_json(&nested).unwrap(), config);
        // For this model a tie in the inner config counts.
        let mut tied = nested.clone();
        tied["text_config"]["tie_word_embeddings"] = json!(true);
        assert!(Config::from_json(&tied).unwrap().tied && remarks(&tied).is_empty());
        // Another kind of scaling is not dropped with the sections, and Gemma 3 has no sections.
        let mut yarn = nested;
        yarn["text_config"]["rope_parameters"]["rope_type"] = json!("longer");
        assert!(Config::from_json(&yarn).unwrap_err().to_string().contains("`longer`"));
        let mut gemma = outer();
        gemma["text_config"]["rope_scaling"] = json!({"rope_type": "default", "mrope_section": [1]});
        assert!(Config::from_json(&gemma).unwrap_err().to_string().contains("mrope_section"));
    }

    #[test]
    fn names_inside_and_outside() {
        assert_eq!(outer_name("model.layers.0.mlp.up_proj"), "model.language_model.layers.0.mlp.up_proj");
        assert_eq!(outer_name("lm_head.weight"), "lm_head.weight");
        for name in ["model.language_model.norm.weight", "language_model.model.norm.weight", "model.norm.weight"] {
            assert_eq!(inner_name(name), "model.norm.weight");
        }
        assert_eq!(inner_name("language_model.lm_head.weight"), "lm_head.weight");
        assert!(
            is_beside_text("model.vision_tower.x") && is_beside_text("multi_modal_projector.y") && is_beside_text("visual.z")
        );
        assert!(!is_beside_text("model.language_model.norm.weight"));
    }
}
