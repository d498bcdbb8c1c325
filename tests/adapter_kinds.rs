//! Adapters of every kind that PEFT writes, on checkpoints of several families: the logits that PEFT gives
//! (tests/fixtures/lora/kinds.py), and the table in the guide that says what is read and what is refused.

use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use diagnose::kernels::{Dtype, Kernels, Segment, Stored};
use diagnose::model::{Batch, LoadOptions, Model, Placement, Reference, save_merged};
use serde_json::Value;

use crate::worst::worst;

/// How far a logit may be from PEFT's: f32 on both sides, sums in another order.
const TOLERANCE: f64 = 1e-4;

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn kinds() -> Vec<PathBuf> {
    let mut kinds: Vec<_> =
        std::fs::read_dir(fixtures().join("lora/kinds")).unwrap().map(|entry| entry.unwrap().path()).collect();
    kinds.sort();
    assert!(kinds.len() > 20, "{kinds:?}");
    kinds
}

fn reference(path: &Path) -> Reference {
    Reference::local(path).unwrap()
}

/// Behind the last 4 of 33 tokens.
fn logits(reference: &Reference) -> Result<Tensor, String> {
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(reference, options, 64).map_err(|error| error.to_string())?;
    let ids: Vec<u32> = (0..33).map(|i| i * 37 % 256).collect();
    let segments = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
    Ok(model.logits(&Batch { ids, segments }, &[29, 30, 31, 32]).unwrap())
}

fn apart(left: &Tensor, right: &Tensor) -> f64 {
    worst((left - right).unwrap().abs().unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap())
}

#[test]
fn every_kind_has_the_logits_of_peft_and_so_has_its_merged_model() {
    let mut failures = Vec::new();
    for kind in kinds() {
        let name = kind.file_name().unwrap().to_string_lossy().into_owned();
        let expected = candle_core::safetensors::load(kind.join("expected.safetensors"), &Device::Cpu).unwrap();
        let expected = &expected["logits"];
        let adapter = reference(&kind);
        match logits(&adapter) {
            Ok(found) => {
                let difference = apart(&found, expected);
                println!("{name:30} {difference:.1e}");
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{name}: {difference:.1e}"));
                }
            }
            Err(error) => failures.push(format!("{name}: {error}")),
        }
        let folder = tempfile::tempdir().unwrap();
        match save_merged(&adapter, &folder.path().join("merged"), Stored::F32) {
            Ok(()) => {
                let difference = apart(&logits(&reference(&folder.path().join("merged"))).unwrap(), expected);
                if difference.is_nan() || difference > TOLERANCE {
                    failures.push(format!("{name}, merged: {difference:.1e}"));
                }
            }
            Err(error) => {
                let error = error.to_string();
                let cannot_be_said = name == "bias_of_b_without_base" && error.contains("adds biases");
                if !cannot_be_said {
                    failures.push(format!("{name}, merged: {error}"));
                }
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// A row of the guide's table.
struct Row {
    what: &'static str,
    here: &'static str,
    proof: Proof,
}

enum Proof {
    /// These fixtures have PEFT's logits.
    Read(&'static [&'static str]),
    /// With this setting in the place of the adapter's own, the error names its key.
    Refused(&'static [(&'static str, &'static str)]),
}

use Proof::{Read, Refused};

const ROWS: &[Row] = &[
    Row {
        what: "LoRA on linear modules, rsLoRA, ranks and alphas per module",
        here: "read",
        proof: Read(&["regular_expressions"]),
    },
    Row { what: "DoRA (`use_dora`)", here: "read", proof: Read(&["dora", "dora_rslora", "dora_embedding"]) },
    Row {
        what: "LoRA on `embed_tokens` and `lm_head`",
        here: "read; a head tied to the embedding is untied, as in PEFT",
        proof: Read(&["embedding", "embedding_scaled", "head", "tied_embedding", "tied_embedding_ensured", "tied_head"]),
    },
    Row {
        what: "LoRA on single experts",
        here: "read, also if the base stacks them",
        proof: Read(&["experts", "experts_stacked"]),
    },
    Row {
        what: "whole modules (`modules_to_save`)",
        here: "read",
        proof: Read(&[
            "head_saved",
            "both_saved",
            "norms_saved",
            "tied_head_saved",
            "tied_embedding_saved",
            "tied_both_saved",
            "tied_ensured",
        ]),
    },
    Row {
        what: "rows of single tokens (`trainable_token_indices`)",
        here: "read",
        proof: Read(&[
            "tokens",
            "tokens_of_head",
            "tied_tokens",
            "tied_tokens_ensured",
            "tied_tokens_of_head",
            "tied_tokens_apart",
        ]),
    },
    Row {
        what: "biases (`bias`, `lora_bias`)",
        here: "read; a bias that the base lacks cannot be merged",
        proof: Read(&["bias_all", "bias_lora_only", "bias_of_b", "bias_of_b_without_base"]),
    },
    Row {
        what: "stacked experts as parameters (`target_parameters`)",
        here: "refused",
        proof: Refused(&[("target_parameters", r#"["mlp.experts.down_proj"]"#)]),
    },
    Row {
        what: "initialisations that change the base (PiSSA, OLoRA, LoftQ, CorDA)",
        here: "refused",
        proof: Refused(&[
            ("init_lora_weights", r#""pissa""#),
            ("init_lora_weights", r#""olora""#),
            ("init_lora_weights", r#""loftq""#),
            ("init_lora_weights", r#""corda""#),
        ]),
    },
    Row {
        what: "`fan_in_fan_out`, `layer_replication`, regular expressions in `alpha_pattern`",
        here: "refused",
        proof: Refused(&[("fan_in_fan_out", "true"), ("layer_replication", "[[0, 2]]"), ("alpha_pattern", r#"{".*q_proj": 3}"#)]),
    },
    Row {
        what: "adapters of other kinds (IA3, LoHa, prompts, ..)",
        here: "refused",
        proof: Refused(&[("peft_type", r#""IA3""#), ("peft_type", r#""LOHA""#), ("peft_type", r#""PROMPT_TUNING""#)]),
    },
];

#[test]
fn the_table_in_the_readme_is_what_happens() {
    let guide = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/guide/models.md")).unwrap();
    let (_, behind) = guide.split_once("| adapter by PEFT | here |\n|---|---|\n").expect("the guide has no table of adapters");
    let found: Vec<&str> = behind.lines().take_while(|line| line.starts_with('|')).collect();
    let expected: Vec<String> = ROWS.iter().map(|row| format!("| {} | {} |", row.what, row.here)).collect();
    assert_eq!(found, expected);
    // What the other test compares.
    let mut proven: Vec<&str> =
        ROWS.iter().flat_map(|row| if let Read(kinds) = row.proof { kinds } else { &[] }).copied().collect();
    proven.sort_unstable();
    let names: Vec<String> = kinds().iter().map(|kind| kind.file_name().unwrap().to_string_lossy().into_owned()).collect();
    assert_eq!(proven, names);
    for row in ROWS {
        let Refused(settings) = row.proof else { continue };
        for (key, value) in settings {
            let kind = fixtures().join("lora/kinds/dora");
            let folder = tempfile::tempdir().unwrap();
            std::fs::copy(kind.join("adapter_model.safetensors"), folder.path().join("adapter_model.safetensors")).unwrap();
            let mut config: Value = serde_json::from_slice(&std::fs::read(kind.join("adapter_config.json")).unwrap()).unwrap();
            config["base_model_name_or_path"] = fixtures().join("families/llama").to_str().unwrap().into();
            let write = |config: &Value| std::fs::write(folder.path().join("adapter_config.json"), config.to_string()).unwrap();
            write(&config);
            logits(&reference(folder.path())).unwrap();
            config[*key] = serde_json::from_str(value).unwrap();
            write(&config);
            let error = logits(&reference(folder.path())).unwrap_err();
            assert!(error.contains(key) && error.contains("adapter_config.json"), "{key} = {value}: {error}");
        }
    }
}
