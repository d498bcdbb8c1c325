//! The table of multimodal models that hold a language model of a known family.

use serde_json::Value;

use super::family::Family;
use crate::error::{Error, Result};

/// A multimodal model: how its config describes the language model inside.
pub(crate) struct Outer {
    pub model_type: &'static str,
    /// Its class in Transformers.
    pub class: &'static str,
    /// The possible `model_type`s of `text_config`, and the family of each.
    pub inner: &'static [(&'static str, &'static str)],
    /// JSON: the defaults of Transformers' inner config class, where they differ from the family's.
    pub defaults: &'static str,
    /// Whether the head is the embedding if the outer config does not say.
    pub tied: bool,
    /// Whether a tie in the inner config counts if the outer config has none.
    pub inner_tie_counts: bool,
    /// Whether checkpoints exist that have their text settings at the top level, without a `text_config`.
    pub flat: bool,
    /// Whether positions have three parts (time, height, width). For text these are one number, by which every pair of a head is
    /// rotated, whichever part its section of the frequencies belongs to.
    pub sectioned: bool,
    /// Whether Transformers refuses a config without such sections.
    pub needs_sections: bool,
}

pub(crate) const OUTERS: &[Outer] = &[
    Outer {
        model_type: "gemma3",
        class: "Gemma3ForConditionalGeneration",
        inner: &[("gemma3_text", "gemma3_text")],
        defaults: "{}",
        tied: true,
        inner_tie_counts: false,
        flat: false,
        sectioned: false,
        needs_sections: false,
    },
    Outer {
        model_type: "mistral3",
        class: "Mistral3ForConditionalGeneration",
        inner: &[("mistral", "mistral"), ("ministral3", "ministral3")],
        defaults: "{}",
        tied: true,
        inner_tie_counts: false,
        flat: false,
        sectioned: false,
        needs_sections: false,
    },
    Outer {
        model_type: "qwen2_5_vl",
        class: "Qwen2_5_VLForConditionalGeneration",
        inner: &[("qwen2_5_vl_text", "qwen2")],
        defaults: r#"{"vocab_size": 152064, "hidden_size": 8192, "intermediate_size": 29568, "num_hidden_layers": 80,
                      "num_attention_heads": 64, "num_key_value_heads": 8, "max_position_embeddings": 32768,
                      "rms_norm_eps": 0.00001, "rope_theta": 1000000.0, "max_window_layers": 80}"#,
        tied: false,
        inner_tie_counts: true,
        flat: true,
        sectioned: true,
        needs_sections: true,
    },
    Outer {
        model_type: "qwen3_vl",
        class: "Qwen3VLForConditionalGeneration",
        inner: &[("qwen3_vl_text", "qwen3")],
        defaults: r#"{"vocab_size": 151936, "hidden_size": 4096, "intermediate_size": 22016, "num_hidden_layers": 32,
                      "num_attention_heads": 32, "num_key_value_heads": 32, "max_position_embeddings": 128000,
                      "rope_theta": 500000.0}"#,
        tied: false,
        inner_tie_counts: false,
        flat: false,
        sectioned: true,
        needs_sections: false,
    },
    Outer {
        model_type: "qwen3_5",
        class: "Qwen3_5ForConditionalGeneration",
        inner: &[("qwen3_5_text", "qwen3_5_text")],
        defaults: "{}",
        tied: false,
        inner_tie_counts: false,
        flat: false,
        sectioned: true,
        needs_sections: false,
    },
    Outer {
        model_type: "qwen3_5_moe",
        class: "Qwen3_5MoeForConditionalGeneration",
        inner: &[("qwen3_5_moe_text", "qwen3_5_moe_text")],
        defaults: "{}",
        tied: false,
        inner_tie_counts: false,
        flat: false,
        sectioned: true,
        needs_sections: false,
    },
];

/// The multimodal model that config.json describes, if any.
pub(crate) fn around(json: &Value) -> Option<&'static Outer> {
    let model_type = json.get("model_type").and_then(Value::as_str);
    OUTERS.iter().find(|outer| Some(outer.model_type) == model_type)
}

/// Whether config.json describes a multimodal model.
pub(crate) fn is_multimodal(json: &Value) -> bool {
    around(json).is_some()
}

/// The `model_type` of the language model that config.json describes: its own, or that of the family inside.
pub(super) fn inner_type(json: &Value) -> Result<&str> {
    let Some(outer) = around(json) else {
        return Ok(json.get("model_type").and_then(Value::as_str).unwrap_or("(no model_type in config.json)"));
    };
    let found = json.get("text_config").and_then(|text| text.get("model_type"));
    let known = outer
        .inner
        .iter()
        .find(|(inner, family)| found.is_none_or(|found| found.as_str() == Some(inner) || found.as_str() == Some(family)));
    match (known, found) {
        (Some((_, family)), _) => Ok(family),
        (None, found) => {
            let known: Vec<String> = outer.inner.iter().map(|(inner, _)| format!("`{inner}`")).collect();
            let found = found.map_or_else(|| "(none)".to_owned(), Value::to_string);
            Err(Error::new(format!("`text_config` is of the family {found}; expected {}", known.join(" or "))))
        }
    }
}

/// Whether `class` is Transformers' class of a multimodal model around `family`.
pub(super) fn is_class_around(family: &Family, class: &str) -> bool {
    let holds = |outer: &Outer| outer.inner.iter().any(|(_, inner)| *inner == family.model_type);
    OUTERS.iter().any(|outer| outer.class == class && holds(outer))
}
