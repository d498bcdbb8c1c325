//! The table of families: one small file each.

mod family;
mod gemma3_text;
mod glm;
mod glm4;
pub(super) mod keys;
mod llama;
mod mistral;
pub(super) mod multimodal;
mod outer;
mod qwen2;
mod qwen3;
mod qwen3_moe;

use crate::error::{Error, Result};

pub(super) use family::{Family, Rule};
pub(super) use multimodal::text_config;

/// One row per file.
pub(super) const FAMILIES: &[Family] = &[
    llama::FAMILY,
    mistral::FAMILY,
    qwen2::FAMILY,
    qwen3::FAMILY,
    qwen3_moe::FAMILY,
    glm::FAMILY,
    glm4::FAMILY,
    gemma3_text::FAMILY,
];

pub(super) fn by_model_type(model_type: &str) -> Result<&'static Family> {
    let searched = outer::inner_type(model_type);
    FAMILIES.iter().find(|family| family.model_type == searched).ok_or_else(|| unknown(model_type))
}

pub(super) fn by_architecture(architecture: &str) -> Result<&'static Family> {
    FAMILIES.iter().find(|family| family.architecture == architecture).ok_or_else(|| unknown(architecture))
}

fn unknown(found: &str) -> Error {
    let known: Vec<&str> = FAMILIES.iter().map(|family| family.model_type).collect();
    Error::new(format!("this model is of the family `{found}`; known are: {}", known.join(", ")))
        .cure("Use a model of a known family, or add the family: src/model/mod.rs says how.")
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;

    /// The newcomer's guide in model/mod.rs promises a file, a row and a fixture for each family.
    #[test]
    fn every_family_has_its_file_its_row_and_its_fixture() {
        let root = Path::new(env!("CARGO_MANIFEST_DIR"));
        let mut files = Vec::new();
        for entry in std::fs::read_dir(root.join("src/model/families")).unwrap() {
            let path = entry.unwrap().path();
            let text = if path.is_file() { std::fs::read_to_string(&path).unwrap() } else { String::new() };
            if text.contains("\npub const FAMILY: Family = Family {") {
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
            let mut needed = vec!["config.json", "model.safetensors", "tokenizer.json", "logits.safetensors", "columns.json"];
            needed.extend((!family.architecture.is_empty()).then_some("model.gguf"));
            for name in needed {
                let path = fixture.join(name);
                assert!(path.is_file(), "{} is missing: make.py, columns.py or convert.py there writes it", path.display());
            }
        }
    }
}
