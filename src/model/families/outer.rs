//! Which multimodal models hold which families.

use serde_json::Value;

use super::family::Family;

/// `model_type` of the multimodal model, of the language model inside, and Transformers' class of the former.
const KINDS: &[(&str, &str, &str)] = &[("gemma3", "gemma3_text", "Gemma3ForConditionalGeneration")];

/// Is this config.json that of a multimodal model?
pub(crate) fn is_multimodal(json: &Value) -> bool {
    let model_type = json.get("model_type").and_then(Value::as_str);
    KINDS.iter().any(|(outer, ..)| Some(*outer) == model_type)
}

/// `model_type` of the language model inside.
pub(super) fn inner_type(model_type: &str) -> &str {
    KINDS.iter().find(|(outer, ..)| *outer == model_type).map_or(model_type, |(_, inner, _)| inner)
}

/// Transformers' class of the multimodal model around `family`.
pub(super) fn class(family: &Family) -> Option<&'static str> {
    KINDS.iter().find(|(_, inner, _)| *inner == family.model_type).map(|(.., class)| *class)
}
