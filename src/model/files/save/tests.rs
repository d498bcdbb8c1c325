//! Tests that each family's tiny checkpoint gives the same logits after saving and loading.

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;

use super::*;
use crate::kernels::Segment;
use crate::kernels::worst::worst;
use crate::model::{Batch, Model};

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

fn reference(path: &Path) -> Reference {
    Reference::local(path).unwrap()
}

fn logits(path: &Path) -> Vec<f32> {
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(&reference(path), options, 64).unwrap();
    let ids: Vec<u32> = (0..17).map(|i| i * 37 % 256).collect();
    let segments: Arc<[Segment]> = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
    let rows: Vec<u32> = (0..17).collect();
    let logits = model.logits(&Batch { ids, segments }, &rows).unwrap();
    logits.flatten_all().unwrap().to_vec1().unwrap()
}

#[test]
fn every_family_is_saved_and_loads_with_the_same_logits() {
    let mut checked = 0;
    for entry in fs::read_dir(fixtures()).unwrap() {
        let folder = entry.unwrap().path();
        for path in [folder.clone(), folder.join("model.gguf")] {
            if !folder.is_dir() || !path.exists() {
                continue;
            }
            let out = tempfile::tempdir().unwrap();
            let saved = out.path().join("model");
            save_merged(&reference(&path), &saved, Stored::F32).unwrap();
            let (before, after) = (logits(&path), logits(&saved));
            let worst = worst(before.iter().zip(&after).map(|(a, b)| (a - b).abs()));
            // Settings that the file stores as f32 (Llama 3's divisors) are rounded differently when read back. Weights are
            // bit-identical, except for Gemma's norms, from which 1 is subtracted and to which it is added again.
            let tolerance = if path.is_dir() { 0.0 } else { 2e-5 };
            assert!(worst <= tolerance, "{}: {worst:e}", path.display());
            let names: Vec<_> = fs::read_dir(out.path()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
            assert_eq!(names, ["model"], "a temporary folder is left");
            checked += 1;
        }
    }
    assert!(checked >= 36, "{checked}");
}

#[test]
fn half_the_bytes_in_bfloat16_and_shards_give_the_same() {
    // This checkpoint's weights are multiples of 1/128 below 2, so they are exact in bf16.
    let path = fixtures().join("llama");
    let source = reference(&path).open().unwrap();
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("model");
    let fetch = &mut |name: &str, shape: &[usize]| source.tensor(name, shape);
    save_source(source.as_ref(), &saved, Stored::Bf16, 30_000, fetch, false).unwrap();
    assert!(saved.join("model.safetensors.index.json").is_file() && !saved.join("model.safetensors").exists());
    let config: serde_json::Value = serde_json::from_slice(&fs::read(saved.join("config.json")).unwrap()).unwrap();
    assert_eq!(config["dtype"], "bfloat16");
    assert_eq!(logits(&path), logits(&saved));
    // Saving again to one file removes the shards.
    save_source(source.as_ref(), &saved, Stored::F32, SHARD_BYTES, fetch, false).unwrap();
    assert!(!saved.join("model.safetensors.index.json").exists() && saved.join("model.safetensors").is_file());
}

#[test]
fn changed_values_are_the_ones_that_are_saved() {
    let path = fixtures().join("qwen2");
    let reference = reference(&path);
    let source = reference.open().unwrap();
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("model");
    let mut asked = Vec::new();
    save(&reference, &saved, Stored::F32, &mut |name, shape| {
        asked.push(name.to_owned());
        Ok((source.tensor(name, shape)? + 0.5)?)
    })
    .unwrap();
    let read = Reference::local(&saved).unwrap().open().unwrap();
    let sum =
        |source: &dyn Source| source.tensor("model.norm.weight", &[36]).unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap();
    assert!((sum(read.as_ref()) - sum(source.as_ref()) - 18.0).abs() < 1e-3);
    // Each is requested once, and there is no head beside a tied embedding.
    assert_eq!(asked.len(), 38);
    assert!(asked[0] == EMBEDDING && asked[37] == NORM, "{asked:?}");
}

#[test]
fn a_saved_gguf_has_its_tokenizer_and_its_template() {
    let path = fixtures().join("llama/model.gguf");
    let out = tempfile::tempdir().unwrap();
    let saved = out.path().join("model");
    save_merged(&reference(&path), &saved, Stored::F32).unwrap();
    let tokenizer = |path: &Path| reference(path).open().unwrap().tokenizer().unwrap();
    let (before, after) = (tokenizer(&path), tokenizer(&saved));
    let text = "Hi 123<|im_end|> naïve";
    assert_eq!(before.encode(text).unwrap(), after.encode(text).unwrap());
    assert_eq!((before.bos(), before.eos(), before.leading()), (after.bos(), after.eos(), after.leading()));
    assert_eq!(before.vocab_size(), after.vocab_size());
    let config: serde_json::Value = serde_json::from_slice(&fs::read(saved.join("config.json")).unwrap()).unwrap();
    assert_eq!((&config["rope_scaling"]["original_max_position_embeddings"], &config["eos_token_id"]), (&32.into(), &258.into()));
}

#[test]
fn whole_numbers_that_transformers_wants_whole_have_no_point() {
    let source = reference(&fixtures().join("gemma3_text/model.gguf")).open().unwrap();
    // `10.0` is a different value for serde_json, and an error for Transformers.
    assert_eq!(source.config_json().unwrap()["query_pre_attn_scalar"], serde_json::json!(10));
}

#[test]
fn a_folder_with_other_files_is_not_replaced_and_a_failure_leaves_nothing() {
    let out = tempfile::tempdir().unwrap();
    let reference = reference(&fixtures().join("qwen3"));
    let folder = out.path().join("model");
    fs::create_dir(&folder).unwrap();
    fs::write(folder.join("thesis.tex"), "words").unwrap();
    let error = save_merged(&reference, &folder, Stored::F32).unwrap_err().to_string();
    assert!(error.contains("`thesis.tex`") && error.contains("new folder"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);

    let other = out.path().join("other");
    let error = save(&reference, &other, Stored::F32, &mut |_, _| Err(Error::new("out of ink"))).unwrap_err().to_string();
    assert!(error.contains("out of ink"), "{error}");
    assert_eq!(fs::read_dir(out.path()).unwrap().count(), 1);
}
