//! Tests random damage to model files: folders, shards, GGUF and adapters. For any bytes, loading ends with a model or with an error that names a
//! file, without a panic and without more memory than a small model needs.
//!
//! The random numbers are seeded, so a failure is reproducible from the round that it prints. The rounds run in a process of their own with 3 GiB of
//! address space, in which an allocation of a damaged length fails.

use std::fs;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::process::Command;

use diagnose::kernels::{Dtype, Kernels};
use diagnose::model::{LoadOptions, Model, ModelName, Placement, Reference};

const ROUNDS: u64 = 1_500;
const CHILD: &str = "DIAGNOSE_TESTS_FUZZ_CHILD";
const KIB: u64 = 3 << 20;

#[test]
fn damaged_models_never_panic_and_ask_for_little_memory() {
    if std::env::var_os(CHILD).is_some() {
        return rounds();
    }
    let test = "fuzz_models::damaged_models_never_panic_and_ask_for_little_memory";
    let limited = format!("ulimit -v {KIB}; exec \"$0\" --exact {test} --nocapture");
    let program = std::env::current_exe().unwrap();
    // A model that is refused for its size would not be read.
    let ran = Command::new("sh")
        .arg("-c")
        .arg(limited)
        .arg(program)
        .env(CHILD, "1")
        .env("DIAGNOSE_IGNORE_MEMORY", "1")
        .output()
        .unwrap();
    let said = format!("{}{}", String::from_utf8_lossy(&ran.stdout), String::from_utf8_lossy(&ran.stderr));
    let last: String = said.chars().skip(said.chars().count().saturating_sub(3000)).collect();
    assert!(ran.status.success() && said.contains("1 passed"), "{last}");
}

fn rounds() {
    let fixtures = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures");
    // The folder, the files of it that are damaged, what is loaded.
    let seeds: Vec<(PathBuf, Vec<&str>, &str)> = vec![
        (fixtures.join("families/qwen3"), vec!["model.safetensors", "config.json", "tokenizer.json"], ""),
        (fixtures.join("families/qwen3_moe_stacked"), vec!["model.safetensors", "config.json"], ""),
        (fixtures.join("families/gemma3_multimodal"), vec!["config.json"], ""),
        (fixtures.join("families/llama_sharded"), shards(&fixtures.join("families/llama_sharded")), ""),
        (fixtures.join("families/qwen3"), vec!["model.gguf"], "model.gguf"),
        (fixtures.join("families/llama"), vec!["model.gguf"], "model.gguf"),
        (fixtures.join("lora/kinds/tokens"), vec!["adapter_model.safetensors", "adapter_config.json"], ""),
        (fixtures.join("lora/kinds/dora"), vec!["adapter_model.safetensors", "adapter_config.json"], ""),
        (fixtures.join("lora/kinds/bias_of_b"), vec!["adapter_config.json"], ""),
    ];
    let (mut loaded, mut refused) = (0, 0);
    for round in 0..ROUNDS {
        let mut random = Random(0x9E37_79B9_7F4A_7C15 ^ (round + 1).wrapping_mul(0xD134_2543_DE82_EF95));
        let (seed, files, model) = &seeds[random.below(seeds.len())];
        let damaged = files[random.below(files.len())];
        let scratch = tempfile::tempdir().unwrap();
        for entry in fs::read_dir(seed).unwrap() {
            let path = entry.unwrap().path();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            if model.is_empty() || name == *model {
                let mut bytes = fs::read(&path).unwrap();
                if name == damaged {
                    damage(&mut random, &mut bytes);
                } else if name == "adapter_config.json" {
                    bytes = with_whole_base(&bytes);
                }
                fs::write(scratch.path().join(name), bytes).unwrap();
            }
        }
        let path = scratch.path().join(model);
        let base = damaged == "adapter_config.json";
        let base = base.then(|| seed.join(base_of(&fs::read(seed.join("adapter_config.json")).unwrap())));
        let outcome = catch_unwind(AssertUnwindSafe(|| {
            let name = |path: &PathBuf| path.to_str().unwrap().to_owned();
            let named = ModelName { written: Some(name(&path)), base: base.as_ref().map(name) };
            let reference = Reference::resolve_named(&named, &|_, _, _| {})?;
            let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
            Model::load(&reference, options, 16).map(|_| ())
        }));
        match outcome {
            Ok(Ok(())) => loaded += 1,
            Ok(Err(error)) => {
                refused += 1;
                // A model that takes fewer tokens than it is asked for is a wrong command line.
                let named = error.to_string().contains(scratch.path().to_str().unwrap()) || error.exit_code() == 2;
                assert!(named, "round {round}: {damaged}: no file in the message: {error}");
            }
            Err(_) => panic!("round {round}: loading panicked; {damaged} of {} was damaged", seed.display()),
        }
    }
    println!("{loaded} loaded, {refused} refused in {ROUNDS} rounds");
    assert!(loaded > 100 && refused > 500, "the damage is too weak or too strong: {loaded} loaded, {refused} refused");
}

fn shards(folder: &Path) -> Vec<&'static str> {
    let names = ["model.safetensors.index.json", "model-00002-of-00005.safetensors"];
    names.into_iter().filter(|name| folder.join(name).is_file()).collect()
}

fn base_of(config: &[u8]) -> String {
    let json: serde_json::Value = serde_json::from_slice(config).unwrap();
    json["base_model_name_or_path"].as_str().unwrap().to_owned()
}

/// The path of the base from everywhere.
fn with_whole_base(config: &[u8]) -> Vec<u8> {
    let mut json: serde_json::Value = serde_json::from_slice(config).unwrap();
    let name = json["base_model_name_or_path"].as_str().unwrap().trim_start_matches("../").to_owned();
    json["base_model_name_or_path"] =
        Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name).to_str().unwrap().into();
    json.to_string().into_bytes()
}

/// One to three changes, most of them where lengths, shapes and names stand.
fn damage(random: &mut Random, bytes: &mut Vec<u8>) {
    const TELLING: &[u8] = b"{}[]\",:\\\n\0\xFF\x7F\x80 019-ntfe";
    for _ in 0..1 + random.below(3) {
        if bytes.is_empty() {
            return;
        }
        let reach = if random.below(4) == 0 { bytes.len() } else { bytes.len().min(6000) };
        let begin = random.below(reach);
        let end = (begin + 1 + random.below(12)).min(bytes.len());
        match random.below(8) {
            0 => bytes[begin] = TELLING[random.below(TELLING.len())],
            1 => bytes[begin] ^= 1 << random.below(8),
            2 => drop(bytes.drain(begin..end)),
            3 => bytes.insert(begin, TELLING[random.below(TELLING.len())]),
            4 => bytes[begin..end].fill(0xFF),
            5 => {
                let piece = bytes[begin..end].to_vec();
                bytes.splice(begin..begin, piece);
            }
            // Digits are sizes, offsets, shapes.
            6 => {
                let digits: Vec<usize> = (0..reach).filter(|&i| bytes[i].is_ascii_digit()).collect();
                if let Some(&at) = digits.get(random.below(digits.len().max(1))) {
                    bytes.splice(at..at + 1, b"9".repeat(1 + random.below(19)));
                }
            }
            _ if random.below(4) == 0 => bytes.truncate(begin),
            _ => {}
        }
    }
}

struct Random(u64);

impl Random {
    fn below(&mut self, n: usize) -> usize {
        self.0 = self.0.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        let mixed = (self.0 ^ (self.0 >> 33)).wrapping_mul(0xFF51_AFD7_ED55_8CCD);
        ((mixed >> 33) % n.max(1) as u64) as usize
    }
}
