//! Tests keys of config.json that are missing or null: every fixture with one key changed gives Transformers' logits or is refused
//! (tests/fixtures/families/absent.py). What Transformers refuses is refused here, except for keys that no logit depends on.

use std::collections::BTreeMap;
use std::path::Path;

use diagnose::kernels::{Dtype, Kernels, Segment};
use diagnose::model::{Batch, LoadOptions, Model, Placement, Reference};
use serde_json::Value;

/// How far a logit may be from Transformers': f32 on both sides, sums in another order.
const TOLERANCE: f64 = 1e-4;

/// Transformers checks the types of these, or uses them for features that do not exist here.
const HARMLESS: &[&str] = &[
    "attention_dropout",
    "embd_pdrop",
    "initializer_range",
    "n_group",
    "output_router_logits",
    "pad_token_id",
    "resid_pdrop",
    "router_aux_loss_coef",
    "topk_group",
    "use_cache",
];

/// The first eight logits after the last of 33 tokens, or the refusal.
fn logits(fixture: &Path, config: &Value) -> Result<Vec<f64>, String> {
    let folder = tempfile::tempdir().unwrap();
    for entry in std::fs::read_dir(fixture).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name == "tokenizer.json" || name.starts_with("model") && !name.ends_with(".gguf") {
            std::fs::copy(&path, folder.path().join(name)).unwrap();
        }
    }
    std::fs::write(folder.path().join("config.json"), config.to_string()).unwrap();
    let reference = Reference::local(folder.path()).map_err(|error| error.to_string())?;
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(&reference, options, 64).map_err(|error| error.to_string())?;
    let ids: Vec<u32> = (0..33).map(|i| i * 37 % 256).collect();
    let segments = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
    let logits = model.logits(&Batch { ids, segments }, &[32]).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
    Ok(logits[..8].iter().map(|&logit| f64::from(logit)).collect())
}

#[test]
fn a_key_that_is_missing_or_null_is_what_transformers_makes_of_it() {
    type Outcomes = BTreeMap<String, BTreeMap<String, BTreeMap<String, BTreeMap<String, Value>>>>;
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let made: Outcomes = serde_json::from_slice(&std::fs::read(fixtures.join("absent.json")).unwrap()).unwrap();
    let (mut failures, mut same, mut refused) = (Vec::new(), 0, 0);
    for entry in std::fs::read_dir(&fixtures).unwrap() {
        let fixture = entry.unwrap().path();
        let name = fixture.file_name().unwrap().to_string_lossy().into_owned();
        if !fixture.is_dir() {
            continue;
        }
        let spellings = made.get(&name).unwrap_or_else(|| panic!("absent.json lacks {name}: absent.py there makes it"));
        for (spelling, keys) in spellings {
            let plain: Value = serde_json::from_slice(&std::fs::read(fixture.join(spelling)).unwrap()).unwrap();
            for (key, outcomes) in keys {
                for (change, expected) in outcomes {
                    let mut config = plain.clone();
                    let text = if config.get("text_config").is_some() { &mut config["text_config"] } else { &mut config };
                    match change.as_str() {
                        "null" => text[key] = Value::Null,
                        _ => drop(text.as_object_mut().unwrap().remove(key)),
                    }
                    let what = format!("{name}/{spelling}: {key} {change}");
                    match (logits(&fixture, &config), expected.as_array()) {
                        (Ok(_), None) if HARMLESS.contains(&key.as_str()) => {}
                        (Ok(_), None) => failures.push(format!("{what}: taken, and Transformers refuses it")),
                        (Err(_), _) => refused += 1,
                        (Ok(found), Some(expected)) => {
                            let near = |(a, b): (&f64, &Value)| (a - b.as_f64().unwrap()).abs() <= TOLERANCE;
                            same += 1;
                            if !found.iter().zip(expected).all(near) {
                                failures.push(format!("{what}: {found:?}, Transformers {expected:?}"));
                            }
                        }
                    }
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
    assert!(same > 400 && refused > 300, "{same} the same, {refused} refused");
}
