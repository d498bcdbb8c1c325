//! Writes a LoRA adapter in PEFT's layout, which [`super::adapter`] and PEFT read: `adapter_config.json`, and
//! `adapter_model.safetensors` with `base_model.model.{module}.lora_A.weight [r, in]` and `lora_B.weight [out, r]`.

use std::path::Path;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::adapter::{CONFIG, WEIGHTS};
use super::replaceable::check_replaceable;
use super::safetensors_write::{SavedTensor, write_file};
use crate::error::{Error, Result};
use crate::files::{in_new_folder, write_synced};
use crate::json::pretty;
use crate::kernels::Stored;
use crate::model::Reference;
use crate::model::families::multimodal;

/// The settings that an adapter was trained with.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraSettings {
    /// The rows of `A` and columns of `B`.
    pub rank: usize,
    /// The update is `alpha / rank * B A`.
    pub alpha: f64,
    /// The share of an adapter's inputs that was dropped during training.
    pub dropout: f64,
    /// Suffixes of the names of the adapted modules: `q_proj`, `down_proj`, ..
    pub targets: Vec<String>,
}

/// The low-rank update of one module.
#[derive(Debug, Clone)]
pub struct LoraPair {
    /// The module's name in Transformers: `model.layers.0.self_attn.q_proj`.
    pub module: String,
    /// `[r, in]`
    pub a: Tensor,
    /// `[out, r]`
    pub b: Tensor,
}

/// Saves an adapter on the model `base`, replacing one that was saved to `folder` before.
pub fn save_adapter(base: &Reference, folder: &Path, settings: &LoraSettings, pairs: &[LoraPair]) -> Result<()> {
    let (name, revision) = base.as_base()?;
    // For a multimodal base, PEFT looks up the modules by their names in that model.
    let multimodal = base.open()?.is_multimodal()?;
    let name_of = |module: &str| if multimodal { multimodal::outer_name(module) } else { module.to_owned() };
    // A plain list of suffixes would also match modules of the vision tower.
    let targets = match multimodal {
        true => json!(format!(".*language_model.*\\.({})", settings.targets.join("|"))),
        false => json!(settings.targets),
    };
    let config = json!({
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": name,
        "revision": revision,
        "r": settings.rank,
        "lora_alpha": whole(settings.alpha),
        "lora_dropout": settings.dropout,
        "target_modules": targets,
        "bias": "none",
        "fan_in_fan_out": false,
        "inference_mode": true,
        "init_lora_weights": true,
        "modules_to_save": null,
        "use_dora": false,
        "use_rslora": false,
    });
    let mut tensors = Vec::with_capacity(2 * pairs.len());
    for pair in pairs {
        for (part, tensor) in [("lora_A", &pair.a), ("lora_B", &pair.b)] {
            let name = format!("base_model.model.{}.{part}.weight", name_of(&pair.module));
            tensors.push(SavedTensor { name, shape: tensor.dims().to_vec() });
        }
        let (rank, inner) = (pair.a.dims2()?.0, pair.b.dims2()?.1);
        if (rank, inner) != (settings.rank, settings.rank) {
            return Err(Error::new(format!("`{}` has ranks {rank} and {inner}; expected {}", pair.module, settings.rank)));
        }
    }
    check_replaceable(folder)?;
    in_new_folder(folder, |partial| {
        let values = &mut |number: usize| {
            let pair = &pairs[number / 2];
            Ok(if number.is_multiple_of(2) { pair.a.clone() } else { pair.b.clone() })
        };
        write_file(&partial.join(WEIGHTS), &tensors, Stored::F32, values)?;
        write_synced(&partial.join(CONFIG), &pretty(&config)?)
    })
}

/// PEFT writes integers without a decimal point.
fn whole(x: f64) -> Value {
    if x.fract() == 0.0 && x.abs() < 1e15 { json!(x as i64) } else { json!(x) }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;

    #[test]
    fn an_adapter_of_peft_comes_back_as_it_was() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora");
        let resolve = |path: &Path| Reference::local(path).unwrap();
        let base = resolve(&fixtures.join("base"));
        let tensor = |shape: (usize, usize), seed: usize| {
            let values: Vec<f32> = (0..shape.0 * shape.1).map(|i| ((i * 7 + seed) % 11) as f32 / 8.0 - 0.5).collect();
            Tensor::from_vec(values, shape, &Device::Cpu).unwrap()
        };
        let module = "model.layers.1.self_attn.q_proj";
        let pair = LoraPair { module: module.to_owned(), a: tensor((2, 12), 1), b: tensor((16, 2), 2) };
        let settings = LoraSettings { rank: 2, alpha: 6.0, dropout: 0.05, targets: vec!["q_proj".to_owned()] };
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("adapter");
        // The second save replaces the first.
        for _ in 0..2 {
            save_adapter(&base, &folder, &settings, std::slice::from_ref(&pair)).unwrap();
        }
        let adapted = resolve(&folder);
        assert_eq!(adapted.name, "base + adapter");
        let (source, plain) = (adapted.open().unwrap(), base.open().unwrap());
        let name = format!("{module}.weight");
        let expected = (plain.tensor(&name, &[16, 12]).unwrap() + (pair.b.matmul(&pair.a).unwrap() * 3.0).unwrap()).unwrap();
        let found = source.tensor(&name, &[16, 12]).unwrap();
        assert_eq!(found.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());

        // Merged and saved, it is a standalone model.
        let merged = out.path().join("merged");
        crate::model::save_merged(&adapted, &merged, Stored::F32).unwrap();
        let merged = resolve(&merged).open().unwrap().tensor(&name, &[16, 12]).unwrap();
        assert_eq!(merged.to_vec2::<f32>().unwrap(), expected.to_vec2::<f32>().unwrap());
    }

    /// PEFT adapts modules of the multimodal model, so names and targets are those; reading them back yields the inner names.
    #[test]
    fn an_adapter_on_a_multimodal_base_has_the_names_of_the_base() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
        let resolve = |path: &Path| Reference::local(path).unwrap();
        let base = resolve(&fixtures.join("gemma3_multimodal"));
        let (module, shape) = ("model.layers.1.self_attn.q_proj", [40, 28]);
        let ones = |shape: (usize, usize)| Tensor::ones(shape, candle_core::DType::F32, &Device::Cpu).unwrap();
        let pair = LoraPair { module: module.to_owned(), a: ones((2, shape[1])), b: ones((shape[0], 2)) };
        let targets = vec!["o_proj".to_owned(), "q_proj".to_owned()];
        let settings = LoraSettings { rank: 2, alpha: 6.0, dropout: 0.0, targets };
        let out = tempfile::tempdir().unwrap();
        let folder = out.path().join("adapter");
        save_adapter(&base, &folder, &settings, &[pair]).unwrap();
        let config: Value = serde_json::from_slice(&std::fs::read(folder.join(CONFIG)).unwrap()).unwrap();
        assert_eq!(config["target_modules"], ".*language_model.*\\.(o_proj|q_proj)");
        let stored = candle_core::safetensors::load(folder.join(WEIGHTS), &Device::Cpu).unwrap();
        let outer = "base_model.model.model.language_model.layers.1.self_attn.q_proj.lora_A.weight";
        assert!(stored.contains_key(outer), "{:?}", stored.keys());

        // The names of the modules in other programs (Transformers 4, older versions of this program), and updates of the vision
        // tower.
        let rename = |to: &str, tower: bool| {
            let mut renamed: std::collections::HashMap<String, Tensor> =
                stored.iter().map(|(name, tensor)| (name.replace("model.language_model.layers", to), tensor.clone())).collect();
            if tower {
                let of_tower = stored.iter().map(|(name, tensor)| {
                    (name.replace("language_model.layers", "vision_tower.vision_model.encoder.layers"), tensor.clone())
                });
                renamed.extend(of_tower);
            }
            candle_core::safetensors::save(&renamed, folder.join(WEIGHTS)).unwrap();
        };
        let name = format!("{module}.weight");
        let expected = (base.open().unwrap().tensor(&name, &shape).unwrap() + 6.0).unwrap().to_vec2::<f32>().unwrap();
        for (to, tower, remarks) in [
            ("model.language_model.layers", false, 0),
            ("model.language_model.layers", true, 1),
            ("language_model.model.layers", true, 1),
            ("model.layers", false, 1),
        ] {
            rename(to, tower);
            let source = resolve(&folder).open().unwrap();
            assert_eq!(source.tensor(&name, &shape).unwrap().to_vec2::<f32>().unwrap(), expected, "{to}");
            let found = source.remarks().unwrap();
            assert_eq!(found.len(), remarks, "{to}: {found:?}");
            assert!(!tower || found[0].contains("`model.vision_tower.vision_model"), "{found:?}");
            save_merged_again(&folder, &out.path().join(format!("merged-{to}-{tower}")));
        }
    }

    /// Every tensor of the base and every update is used.
    fn save_merged_again(adapter: &Path, to: &Path) {
        let reference = Reference::local(adapter).unwrap();
        crate::model::save_merged(&reference, to, Stored::F32).unwrap();
    }

    #[test]
    fn an_adapter_on_an_adapter_is_refused() {
        let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora");
        let base = Reference::local(&fixtures.join("adapter")).unwrap();
        let settings = LoraSettings { rank: 2, alpha: 6.0, dropout: 0.0, targets: Vec::new() };
        let out = tempfile::tempdir().unwrap();
        let error = save_adapter(&base, &out.path().join("new"), &settings, &[]).unwrap_err().to_string();
        assert!(error.contains("itself an adapter") && error.contains("Merge"), "{error}");
    }
}
