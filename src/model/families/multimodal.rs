//! A language model inside a multimodal one: what its config and its modules are called there, and what stands beside it.
//! Reference: Transformers `models/gemma3/configuration_gemma3.py` and `modeling_gemma3.py`.

use serde_json::{Value, json};

use super::family::{Family, Rule};
use super::keys;
pub(crate) use super::outer::is_multimodal;
use crate::error::{Error, Result};
use crate::json::present;

/// Keys that only the outer config has; none of them concerns text.
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
    "tie_word_embeddings",
    "model_type",
    "architectures",
];

/// What `text_config` says of the head, which belongs to the outer model: its class does not read it.
const OF_THE_HEAD: &[&str] = &["final_logit_softcapping"];

/// The part of config.json that describes the language model, once what stands around it has been judged.
///
/// The head belongs to the outer model, so that the outer `tie_word_embeddings` counts, which is true where it is missing; the
/// inner one is not read (Transformers 5, `tie_weights`).
pub(crate) fn text_config(family: &Family, json: &Value) -> Result<Value> {
    if !is_multimodal(json) {
        return Ok(json.clone());
    }
    let Some(text) = json.get("text_config").and_then(Value::as_object) else {
        return Err(Error::new("the config of a multimodal model holds no `text_config`; expected an object"));
    };
    if let Some(inner) = text.get("model_type").filter(|inner| inner.as_str() != Some(family.model_type)) {
        return Err(Error::new(format!("`text_config` is of the family {inner}; expected `{}`", family.model_type)));
    }
    for (key, value) in json.as_object().into_iter().flatten() {
        if OUTER.contains(&key.as_str()) {
            continue;
        }
        match keys::rule(key, family) {
            // Transformers reads it inside only.
            Some(Rule::Honoured | Rule::Optional) if text.get(key) == Some(value) || value.is_null() => {}
            Some(Rule::Honoured | Rule::Optional) => {
                return Err(Error::new(format!(
                    "`{key}` = {value} stands beside `text_config`, where Transformers does not read it; inside it is {}",
                    text.get(key).map_or("missing".to_owned(), Value::to_string)
                ))
                .cure("Remove the outer line if the inner setting is the right one."));
            }
            _ => keys::check(&json!({key: value}), family)?,
        }
    }
    keys::check(&json!({"architectures": json.get("architectures")}), family)?;
    if let Some(tied) = text.get("tie_word_embeddings") {
        keys::check(&json!({"tie_word_embeddings": tied}), family)?;
    }
    let mut text = text.clone();
    // Outside, `null` is as good as false.
    let tied = json.get("tie_word_embeddings").map(|tied| if tied.is_null() { false.into() } else { tied.clone() });
    text.insert("tie_word_embeddings".to_owned(), tied.unwrap_or(true.into()));
    for key in OF_THE_HEAD {
        if text.contains_key(*key) {
            text.insert((*key).to_owned(), Value::Null);
        }
    }
    Ok(Value::Object(text))
}

/// What the inner config says about the head, which belongs to the outer model, and what was taken.
pub(crate) fn remarks(json: &Value) -> Vec<String> {
    let Some(text) = json.get("text_config").filter(|_| is_multimodal(json)) else { return Vec::new() };
    let mut remarks = Vec::new();
    let inner = present(text, "tie_word_embeddings").and_then(Value::as_bool);
    let outer = json.get("tie_word_embeddings").map_or(Some(true), Value::as_bool).unwrap_or(false);
    if let Some(inner) = inner.filter(|inner| *inner != outer) {
        remarks.push(format!(
            "tie_word_embeddings is {outer} for the whole model and {inner} in text_config: {outer} is taken, as in Transformers"
        ));
    }
    remarks.extend(OF_THE_HEAD.iter().filter_map(|key| present(text, key).map(|value| (key, value))).map(|(key, value)| {
        format!("`{key}` = {value} in text_config is left aside: Transformers' class of the multimodal model does not read it")
    }));
    remarks
}

/// What the multimodal model calls a module or tensor of the language model, in Transformers 5: `model.layers.0` is
/// `model.language_model.layers.0`. The head keeps its name.
pub(crate) fn outer_name(name: &str) -> String {
    match name.strip_prefix("model.") {
        Some(rest) => format!("model.language_model.{rest}"),
        None => name.to_owned(),
    }
}

/// What the language model by itself calls a module or tensor that the multimodal model calls `name`, in either version of
/// Transformers: 4 says `language_model.model.layers.0` and `language_model.lm_head`.
pub(crate) fn inner_name(name: &str) -> String {
    match (name.strip_prefix("model.language_model."), name.strip_prefix("language_model.")) {
        (Some(rest), _) => format!("model.{rest}"),
        (_, Some(rest)) => rest.to_owned(),
        _ => name.to_owned(),
    }
}

/// Does the tensor or module belong to the vision tower, or to what joins it to the language model? Text never reaches these.
pub(crate) fn is_beside_text(name: &str) -> bool {
    let name = name.strip_prefix("model.").unwrap_or(name);
    ["vision_tower.", "multi_modal_projector."].iter().any(|part| name.starts_with(part))
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
        check("rope_theta", json!(7.0), "`rope_theta` = 7.0 stands beside `text_config`");
        check("num_hidden_layers", json!(3), "inside it is 2");
        check("audio_scale", json!(3), "`audio_scale` = 3");
        check("text_config", Value::Null, "`text_config`");
        check("text_config", json!({"model_type": "llama"}), "of the family \"llama\"");
        check("architectures", json!(["Gemma3ForSequenceClassification"]), "Gemma3ForSequenceClassification");
    }

    #[test]
    fn names_inside_and_outside() {
        assert_eq!(outer_name("model.layers.0.mlp.up_proj"), "model.language_model.layers.0.mlp.up_proj");
        assert_eq!(outer_name("lm_head.weight"), "lm_head.weight");
        for name in ["model.language_model.norm.weight", "language_model.model.norm.weight", "model.norm.weight"] {
            assert_eq!(inner_name(name), "model.norm.weight");
        }
        assert_eq!(inner_name("language_model.lm_head.weight"), "lm_head.weight");
        assert!(is_beside_text("model.vision_tower.x") && is_beside_text("multi_modal_projector.y"));
        assert!(!is_beside_text("model.language_model.norm.weight"));
    }
}
