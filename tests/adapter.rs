//! Tests LoRA adapter folders given to --model: the numbers equal those of the merged model, and unusable adapters are refused.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};
use serde_json::Value;

use crate::workdir::{Ran, Workdir};

const ROW: &str = r#"{"messages":[{"role":"user","content":"Say hi."},{"role":"assistant","content":"hi there"}]}"#;

/// The fixture's folders beside a data set.
fn workdir() -> Workdir {
    let workdir = Workdir::new();
    for folder in ["base", "adapter", "adapter_rslora"] {
        copy_folder(&fixture(folder), &workdir.path(folder));
    }
    workdir.write("rows.jsonl", ROW);
    workdir
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora").join(name)
}

fn copy_folder(from: &Path, to: &Path) {
    std::fs::create_dir(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let path = entry.unwrap().path();
        std::fs::copy(&path, to.join(path.file_name().unwrap())).unwrap();
    }
}

fn run(workdir: &Workdir, model: &str) -> Ran {
    workdir.run(&["rows.jsonl", "--model", model, "--out", &format!("run-{model}"), "--json"])
}

fn record(workdir: &Workdir, model: &str) -> Value {
    let path = workdir.path(&format!("run-{model}")).join("run.json");
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

/// A folder with the base's weights, of which those that the adapter changes are as PEFT merges them.
fn write_merged(workdir: &Workdir, adapter: &str) -> String {
    let merged = format!("merged-{adapter}");
    copy_folder(&workdir.path("base"), &workdir.path(&merged));
    let load = |path: PathBuf| candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let mut tensors: HashMap<String, Tensor> = HashMap::new();
    for shard in 1..=2 {
        tensors.extend(load(workdir.path(&format!("base/model-0000{shard}-of-00002.safetensors"))));
    }
    tensors.extend(load(workdir.path(adapter).join("merged.safetensors")));
    candle_core::safetensors::save(&tensors, workdir.path(&merged).join("model.safetensors")).unwrap();
    merged
}

#[test]
fn an_adapter_scores_as_the_model_that_peft_merges() {
    let workdir = workdir();
    let perplexity = |model: &str| run(&workdir, model).ok().json()["overall"]["perplexity"].as_f64().unwrap();
    let base = perplexity("base");
    for adapter in ["adapter", "adapter_rslora"] {
        let (applied, merged) = (perplexity(adapter), perplexity(&write_merged(&workdir, adapter)));
        // The same sum in another order: f32 roundings.
        assert!((applied / merged - 1.0).abs() < 1e-5, "{adapter}: {applied}, merged {merged}");
        assert!((applied / base - 1.0).abs() > 1e-2, "{adapter} changes nothing: {applied}, base {base}");
    }
    let model = |name: &str| record(&workdir, name)["model"].clone();
    assert_eq!(model("adapter")["name"], "base + adapter");
    let hashes = ["base", "adapter", "adapter_rslora"].map(|name| model(name)["sha256"].as_str().unwrap().to_owned());
    assert!(hashes[0] != hashes[1] && hashes[1] != hashes[2] && hashes[0] != hashes[2], "{hashes:?}");
}

/// Refuses before the training rather than when the result is saved.
#[test]
fn adapters_on_an_adapter_are_refused_at_once() {
    let workdir = workdir();
    workdir.write("rows.jsonl", r#"{"prompt":"What is it?","response":"A test of adapters."}"#);
    for more in [&[][..], &["--dry-run"]] {
        let refused = workdir.run(&[&["train", "rows.jsonl", "--model", "adapter", "--lora", "--out", "tuned"], more].concat());
        let cure = "Merge it into its base first: `diagnose export adapter --out DIR`";
        assert!(refused.code == Some(1) && refused.stderr.contains(cure), "{}", refused.stderr);
        assert!(!workdir.path("tuned").exists());
    }
}

/// As the refusal of an adapter on an adapter says.
#[test]
fn export_merges_an_adapter_into_its_base() {
    let workdir = workdir();
    let perplexity = |model: &str, out: &str| {
        let ran = workdir.run(&["rows.jsonl", "--model", model, "--out", out, "--json"]);
        ran.ok().json()["overall"]["perplexity"].as_f64().unwrap()
    };
    let ran = workdir.run(&["export", "adapter", "--out", "whole", "--json"]).ok();
    assert_eq!(ran.json()["model"], "whole/model");
    let (merged, applied) = (perplexity("whole/model", "merged"), perplexity("adapter", "applied"));
    // The same sum in another order: f32 roundings.
    assert!((merged / applied - 1.0).abs() < 1e-5, "{merged}, applied {applied}");
    workdir.write("pairs.jsonl", r#"{"prompt":"What is it?","response":"A test of adapters."}"#);
    let train =
        ["train", "pairs.jsonl", "--model", "whole/model", "--lora", "--max-steps", "2", "--warmup-steps", "0", "--dry-run"];
    workdir.run(&train).ok();
    // On another base.
    std::fs::rename(workdir.path("base"), workdir.path("moved")).unwrap();
    let lost = workdir.run(&["export", "adapter", "--out", "again"]);
    assert!(lost.code == Some(1) && lost.stderr.contains("--base"), "{}", lost.stderr);
    workdir.run(&["export", "adapter", "--base", "moved", "--out", "again"]).ok();
    assert_eq!(perplexity("again/model", "merged-again"), merged);
    for (arguments, code, expected) in [
        (&["export", "adapter", "--base", "moved", "--out", "again"][..], 2, "this folder already has a model"),
        (&["export", "adapter", "--base", "moved", "--out", "new", "--drop", "mass=3"], 2, "which takes only --out"),
        (&["export", "moved", "--base", "moved", "--out", "new"], 2, "--base"),
        (&["export", "merged", "--base", "moved", "--out", "new"], 2, "--base"),
    ] {
        let refused = workdir.run(arguments);
        assert!(refused.code == Some(code) && refused.stderr.contains(expected), "{arguments:?}: {}", refused.stderr);
        assert!(!workdir.path("new").exists());
    }
}

#[test]
fn the_base_is_found_by_its_path_from_either_folder() {
    let workdir = workdir();
    let set_base = |name: &str| {
        let path = workdir.path("adapter/adapter_config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        config["base_model_name_or_path"] = name.into();
        workdir.write("adapter/adapter_config.json", config.to_string());
    };
    for name in ["../base", "base", workdir.path("base").to_str().unwrap()] {
        set_base(name);
        run(&workdir, "adapter").ok();
        // The adapter's config is part of the run's identity.
        std::fs::remove_dir_all(workdir.path("run-adapter")).unwrap();
    }
    let check = |name: &str, parts: &[&str]| {
        set_base(name);
        let mut command = workdir.command(&["rows.jsonl", "--model", "adapter"]);
        let ran = Ran::of(command.env("HF_HOME", workdir.path("hf")).env("HF_ENDPOINT", crate::hub::CLOSED).output().unwrap());
        assert_eq!(ran.code, Some(1));
        for part in parts {
            assert!(ran.stderr.contains(part), "expected `{part}` in\n{}", ran.stderr);
        }
    };
    check("", &["base_model_name_or_path", "adapter_config.json"]);
    check("/no/such/base", &["/no/such/base", "adapter_config.json"]);
    check("some/base", &["some/base", "cannot be reached"]);
    check("../adapter_rslora", &["is itself an adapter"]);
}

#[test]
fn base_says_what_the_adapter_is_put_on() {
    let workdir = workdir();
    let expected = run(&workdir, "adapter").ok().json()["overall"]["perplexity"].clone();
    let path = workdir.path("adapter/adapter_config.json");
    let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    let on =
        |model: &str, base: &str| workdir.run(&["rows.jsonl", "--model", model, "--base", base, "--out", "run-on", "--json"]);
    let check = |ran: Ran| {
        assert_eq!(ran.ok().json()["overall"]["perplexity"], expected);
        std::fs::remove_dir_all(workdir.path("run-on")).unwrap();
    };
    // It has moved.
    config["base_model_name_or_path"] = "/no/such/base".into();
    workdir.write("adapter/adapter_config.json", config.to_string());
    let error = run(&workdir, "adapter").stderr;
    assert!(error.contains("--base"), "{error}");
    check(on("adapter", "base"));
    // It is quantised.
    copy_folder(&workdir.path("base"), &workdir.path("quantised"));
    let mut quantised: Value = serde_json::from_slice(&std::fs::read(workdir.path("base/config.json")).unwrap()).unwrap();
    quantised["quantization_config"] = serde_json::json!({"quant_method": "bitsandbytes", "load_in_4bit": true});
    workdir.write("quantised/config.json", quantised.to_string());
    config["base_model_name_or_path"] = "../quantised".into();
    workdir.write("adapter/adapter_config.json", config.to_string());
    let error = run(&workdir, "adapter").stderr;
    assert!(error.contains("quantization_config") && error.contains("--base"), "{error}");
    check(on("adapter", "base"));
    // A folder with a model of its own, too.
    copy_folder(&workdir.path("adapter"), &workdir.path("both"));
    for file in ["config.json", "tokenizer.json"] {
        std::fs::copy(workdir.path("base").join(file), workdir.path("both").join(file)).unwrap();
    }
    std::fs::copy(workdir.path("adapter/merged.safetensors"), workdir.path("both/model.safetensors")).unwrap();
    let error = run(&workdir, "both").stderr;
    assert!(error.contains("a model and an adapter") && error.contains("--base"), "{error}");
    check(on("both", "base"));
    let ran = on("base", "adapter");
    assert!(ran.code == Some(2) && ran.stderr.contains("there is none at `base`"), "{}", ran.stderr);
    // A run folder remembers it.
    on("adapter", "base").ok();
    let record: Value = serde_json::from_slice(&std::fs::read(workdir.path("run-on/run.json")).unwrap()).unwrap();
    assert_eq!(record["model"]["base"], "base");
}

/// The default length is what the model takes; a longer one is refused if requested.
#[test]
fn a_model_of_few_positions_is_read_without_a_word_about_it() {
    let workdir = workdir();
    let mut config: Value = serde_json::from_slice(&std::fs::read(workdir.path("base/config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = 96.into();
    workdir.write("base/config.json", config.to_string());
    run(&workdir, "base").ok();
    assert_eq!(record(&workdir, "base")["max_len"], 96);
    let ran = workdir.run(&["rows.jsonl", "--model", "base", "--max-len", "97", "--out", "run"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--max-len 96 or less"), "{}", ran.stderr);
    // With LongRoPE, tokens beyond the original length depend on the length of the sequence.
    config["rope_scaling"] = serde_json::json!({"type": "longrope", "short_factor": [1, 1, 1, 1], "long_factor": [2, 2, 2, 2]});
    config["original_max_position_embeddings"] = 48.into();
    config.as_object_mut().unwrap().remove("rope_parameters");
    workdir.write("base/config.json", config.to_string());
    let ran = workdir.run(&["rows.jsonl", "--model", "base", "--max-len", "96", "--out", "run"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("LongRoPE") && ran.stderr.contains("--max-len 48"), "{}", ran.stderr);
    workdir.run(&["eval", "--model", "base", "--limit", "2", "--out", "scores"]).ok();
    let options = ["--out", "trained", "--method", "sft", "--max-steps", "1", "--warmup-steps", "0"];
    workdir.run(&[&["train", "rows.jsonl", "--model", "base"], &options[..]].concat()).ok();
}

#[test]
fn an_adapter_that_brings_a_tokenizer_and_a_template_is_read_with_them() {
    let workdir = workdir();
    let merged = write_merged(&workdir, "adapter");
    let perplexity = |model: &str| {
        let printed = run(&workdir, model).ok().json();
        std::fs::remove_dir_all(workdir.path(&format!("run-{model}"))).unwrap();
        printed["overall"]["perplexity"].as_f64().unwrap()
    };
    let path = workdir.path("base/tokenizer.json");
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    tokenizer["normalizer"] = serde_json::json!({"type": "Lowercase"});
    let template = std::fs::read_to_string(workdir.path("base/chat_template.jinja")).unwrap().replace("\n", "\n\n");
    let mut last = perplexity("adapter");
    // The one, then both; the merged model with the same files is what must come out.
    for (name, text) in [("chat_template.jinja", template), ("tokenizer.json", tokenizer.to_string())] {
        for folder in ["adapter", &merged] {
            workdir.write(&format!("{folder}/{name}"), &text);
        }
        let (found, expected) = (perplexity("adapter"), perplexity(&merged));
        // The same sum in another order: f32 roundings.
        assert!((found / expected - 1.0).abs() < 1e-5, "{name}: {found}, merged {expected}");
        assert!((found / last - 1.0).abs() > 1e-3, "{name} changes nothing: {found}");
        last = found;
    }
}

#[test]
fn an_adapter_of_another_model_is_refused_with_the_names() {
    let check = |rename: fn(&str) -> String, parts: &[&str]| {
        let workdir = workdir();
        let path = workdir.path("adapter/adapter_model.safetensors");
        let tensors = candle_core::safetensors::load(&path, &Device::Cpu).unwrap();
        let renamed: HashMap<String, Tensor> = tensors.into_iter().map(|(name, tensor)| (rename(&name), tensor)).collect();
        candle_core::safetensors::save(&renamed, &path).unwrap();
        let ran = run(&workdir, "adapter");
        assert_eq!(ran.code, Some(1));
        for part in parts {
            assert!(ran.stderr.contains(part), "expected `{part}` in\n{}", ran.stderr);
        }
    };
    // A layer that the base lacks; a matrix of another shape; something that is no LoRA tensor.
    check(|name| name.replace("layers.1.", "layers.7."), &["`model.layers.7.self_attn.q_proj.weight`", "does not have"]);
    check(|name| name.replace("self_attn.k_proj", "mlp.up_proj"), &["up_proj.weight", "[8, 12]", "another base"]);
    check(|name| name.replace("lora_A.weight", "lora_C.weight"), &["lora_C.weight", "not supported"]);
}
