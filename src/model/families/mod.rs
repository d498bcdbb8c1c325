//! The table of model families: one small file for each, named after the `model_type` of its config.json. Shared parts:
//!
//! ```text
//! family.rs       the description of a family
//! keys.rs         which settings of a config are honoured, refused or irrelevant
//! layer_kinds.rs  rotary embeddings that differ by kind of layer
//! hybrid.rs       layers of attention alternating with the gated delta rule; hybrid_gguf.rs reads them from GGUF
//! outer.rs        multimodal models around a text model of a known family; multimodal.rs finds that text model
//! ```

mod family;
mod gemma;
mod gemma2;
mod gemma3_text;
mod glm;
mod glm4;
mod glm4_moe;
mod gpt_oss;
mod granite;
mod hybrid;
mod hybrid_gguf;
pub(super) mod keys;
mod layer_kinds;
mod llama;
mod ministral3;
mod mistral;
pub(super) mod multimodal;
mod olmo2;
mod olmo3;
mod outer;
mod phi3;
mod qwen2;
mod qwen3;
mod qwen3_5_moe_text;
mod qwen3_5_text;
mod qwen3_moe;
mod qwen3_next;
mod smollm3;

use serde_json::Value;

use crate::error::{Error, Result};

pub(super) use family::{Family, Rule};
pub(super) use multimodal::text_config;

/// One row per file.
pub(super) const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    ministral3::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    glm::FAMILY,
    glm4::FAMILY,
    glm4_moe::FAMILY,
    gemma::FAMILY,
    gemma2::FAMILY,
    gemma3_text::FAMILY,
    smollm3::FAMILY,
    phi3::FAMILY,
    olmo2::FAMILY,
    olmo3::FAMILY,
    granite::FAMILY,
    gpt_oss::FAMILY,
    qwen3_next::FAMILY,
    qwen3_5_text::FAMILY,
    qwen3_5_moe_text::FAMILY,
];

pub(super) fn by_model_type(model_type: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.model_type == model_type).ok_or_else(|| unknown(model_type))
}

/// The family of the language model that config.json describes, on its own or inside a multimodal model.
pub(super) fn by_config(json: &Value) -> Result<&'static Family> {
    by_model_type(outer::inner_type(json)?)
}

pub(super) fn by_architecture(architecture: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.architecture == architecture).ok_or_else(|| unknown(architecture))
}

fn unknown(found: &str) -> Error {
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    Error::new(format!("the model's family `{found}` is not supported; supported are: {}", known.join(", ")))
        .cure("Use a model of a supported family, or add the family: see src/model/mod.rs.")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The guide's tables list exactly what is read: one row per family and per multimodal model.
    #[test]
    fn the_guide_lists_every_family() {
        let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide/models.md")).unwrap();
        let rows_below = |title: &str| -> Vec<Vec<String>> {
            let table = guide.split_once(title).unwrap_or_else(|| panic!("the guide has no table {title}")).1;
            let lines = table.lines().skip(2).take_while(|line| line.starts_with('|'));
            lines.map(|line| line.trim_matches('|').split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
        };
        let code = |text: &str| if text.is_empty() { "-".to_owned() } else { format!("`{text}`") };
        let families = FAMILIES.iter().map(|family| vec![code(family.model_type), code(family.architecture)]);
        let found: Vec<Vec<String>> =
            rows_below("| family | `model_type` | GGUF |").into_iter().map(|row| row[1..].to_vec()).collect();
        assert_eq!(found, families.collect::<Vec<_>>());
        let outers = outer::OUTERS.iter().map(|outer| {
            let inner = outer.inner.iter().map(|(_, family)| code(family)).collect::<Vec<_>>().join(", ");
            vec![code(outer.model_type), inner]
        });
        let found: Vec<Vec<String>> =
            rows_below("| text half of | `model_type` | read as |").into_iter().map(|row| row[1..].to_vec()).collect();
        assert_eq!(found, outers.collect::<Vec<_>>());
    }

    /// The guide for contributors in model/mod.rs promises a file, a row and a fixture for each family.
    #[test]
    fn every_family_has_its_file_its_row_and_its_fixture() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(root.join("src/model/families")).unwrap() {
            let path = entry.unwrap().path();
            let text = if path.is_file() { std::fs::read_to_string(&path).unwrap() } else { String::new() };
            if text.contains("\npub(super) const FAMILY: Family = Family {") {
                assert!(text.contains("Reference: Transformers `models/"), "{} names no reference", path.display());
                files.push(path.file_stem().unwrap().to_string_lossy().into_owned());
            }
        }
        let mut rows: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
        files.sort();
        rows.sort_unstable();
        assert_eq!(files, rows, "files of src/model/families with a FAMILY, and rows of FAMILIES");
        for family in FAMILIES {
            let fixture = root.join("tests/fixtures/families").join(family.model_type);
            let mut needed =
                vec!["config.json", "model.safetensors", "tokenizer.json", "logits.safetensors", "columns.json", "greedy.json"];
            needed.extend((!family.architecture.is_empty()).then_some("model.gguf"));
            assert!(
                root.join(format!("tests/fixtures/train/gradients/{}.safetensors", family.model_type)).is_file(),
                "{}: tests/fixtures/train/make.py writes the gradients",
                family.model_type
            );
            for name in needed {
                let path = fixture.join(name);
                assert!(path.is_file(), "{} is missing: make.py, columns.py or convert.py there writes it", path.display());
            }
        }
    }
}
