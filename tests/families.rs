//! Each family against Hugging Face Transformers: all logits of a tiny random checkpoint (tests/fixtures/families/make.py) and all
//! columns of the token table, from its folder and from the GGUF file that llama.cpp's converter makes of it (convert.py there),
//! through both kernels, packed with a prefix that two sequences share.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{Device, Tensor};
use diagnose::engine::score;
use diagnose::kernels::cuda;
use diagnose::kernels::{Dtype, Kernels, Segment, TokenStatistics};
use diagnose::model::{Batch, LoadOptions, LoraOptions, Model, Placement, Reference};
use diagnose::tokens::{Sequence, Span};

use crate::workdir::Workdir;
use crate::worst::worst;

/// How far a logit may be from Transformers': f32 on both sides, sums in another order.
const TOLERANCE: f64 = 1e-4;

#[test]
fn every_logit_is_that_of_transformers() {
    let mut failures = Vec::new();
    for (folder, path, kernels) in cases() {
        let name = name_of(&path);
        let difference = worst_logit(&path, &folder.join("logits.safetensors"), kernels);
        println!("{name:30} {kernels:9} max |dlogit| {difference:.1e}");
        // A NaN must not pass.
        if difference.is_nan() || difference > TOLERANCE {
            failures.push(format!("{name} ({kernels}): {difference:.1e}"));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Layers of a fixture, and their modules that are `nn.Linear` in Transformers (linear.py).
#[derive(serde::Deserialize)]
struct Linear {
    layers: Vec<usize>,
    modules: Vec<String>,
}

/// PEFT's `all-linear`, LLaMA-Factory and axolotl put adapters on each `nn.Linear`, and so does this program, but for families whose experts it
/// adapts: no module there is one of these, and such a training is not written for another program.
#[test]
fn adapters_stand_on_the_linear_modules_of_transformers_or_are_not_told_to_other_programs() {
    let linear: BTreeMap<String, Vec<Linear>> =
        serde_json::from_slice(&std::fs::read(fixtures().join("linear.json")).unwrap()).unwrap();
    let workdir = Workdir::new();
    workdir
        .write("rows.jsonl", r#"{"messages":[{"role":"user","content":"Say hi."},{"role":"assistant","content":"hi there"}]}"#);
    let folders: BTreeSet<PathBuf> = cases().into_iter().map(|(folder, ..)| folder).collect();
    assert_eq!(folders.len(), linear.len());
    let mut others = Vec::new();
    for folder in folders {
        let name = name_of(&folder);
        let options = LoraOptions { rank: 1, alpha: 1.0, dropout: 0.0, targets: Vec::new() };
        let parameters = load(&folder, Kernels::Fused).adapt(&options, 0).unwrap();
        let module =
            |part: &str| part.strip_prefix("base_model.model.model.layers.")?.strip_suffix(".lora_A.weight").map(str::to_owned);
        let ours: BTreeSet<String> =
            parameters.iter().flat_map(|parameter| &parameter.parts).filter_map(|part| module(&part.name)).collect();
        let of_kind = |kind: &Linear| -> Vec<String> {
            let of_layer = |layer: &usize| kind.modules.iter().map(move |module| format!("{layer}.{module}")).collect::<Vec<_>>();
            kind.layers.iter().flat_map(of_layer).collect()
        };
        let theirs: BTreeSet<String> = linear[&name].iter().flat_map(of_kind).collect();
        for program in ["axolotl", "llama-factory"] {
            let emit = |more: &[&str]| {
                let out = format!("{name}-{program}-{}", more.len());
                let model = ["--model", folder.to_str().unwrap(), "--emit", program, "--out", &out, "--warmup-steps", "0"];
                workdir.run(&[&["train", "rows.jsonl", "--lora"], &model[..], more].concat())
            };
            let (all, of_attention) = (emit(&[]), emit(&["--lora-targets", "q_proj"]));
            if ours == theirs {
                assert!(!all.stderr.contains("experts"), "{name}: {}", all.stderr);
            } else {
                let cure = "--lora-targets q_proj,k_proj,v_proj,o_proj";
                assert!(all.code == Some(2) && all.stderr.contains("no adapters on the experts"), "{name}: {}", all.stderr);
                assert!(all.stderr.contains(program) && all.stderr.contains(cure), "{name}: {}", all.stderr);
                let one = emit(&["--lora-targets", "q_proj", "--lora-targets", "down_proj"]);
                assert!(one.code == Some(2) && one.stderr.contains("no adapters on the experts"), "{name}: {}", one.stderr);
            }
            assert!(!of_attention.stderr.contains("experts"), "{name}: {}", of_attention.stderr);
            // LLaMA-Factory needs a chat template, which the fixtures lack.
            if program == "axolotl" {
                of_attention.ok();
                assert_eq!(all.code == Some(0), ours == theirs, "{name}: {}", all.stderr);
            }
        }
        if ours != theirs {
            others.push(name);
        }
    }
    assert_eq!(others, ["glm4_moe", "qwen3_moe", "qwen3_moe_stacked", "qwen3_next"]);
}

/// A GPU in bf16 is as far from Transformers' f32 as the CPU in bf16 is, up to what that gains by having the first of a fixture's two to
/// five blocks in f32: in the middle of all logits, as a router that is of two minds may send single tokens to other experts.
#[test]
fn bf16_on_a_gpu_is_as_near_as_on_the_cpu() {
    let mut failures = Vec::new();
    for (folder, path, _) in cases().into_iter().filter(|(_, _, kernels)| *kernels == Kernels::Cuda) {
        let [on_cpu, on_gpu] = [Kernels::Fused, Kernels::Cuda].map(|kernels| {
            let mut errors = errors(&load_in(&path, kernels, Dtype::Bf16), &folder.join("logits.safetensors"));
            errors.sort_by(f32::total_cmp);
            if errors.last().is_none_or(|worst| worst.is_nan()) { f32::NAN } else { errors[errors.len() / 2] }
        });
        println!("{:30} median |dlogit| {on_cpu:.1e} on the CPU, {on_gpu:.1e} on the GPU", name_of(&path));
        if on_gpu.is_nan() || on_gpu > 4.0 * on_cpu {
            failures.push(format!("{}: {on_cpu:.1e} on the CPU, {on_gpu:.1e} on the GPU", name_of(&path)));
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// Columns of numbers, what they are of a token, and how far they may be from PyTorch's float64 on Transformers' f32 logits: two
/// logits with an error of 1e-5 each move a log-probability by 2e-5, and an entropy by no more; the variance by that times twice
/// the largest surprisal, which is below 20 nats here; probabilities by less.
type Column = (&'static str, fn(&TokenStatistics) -> f32, f64);
const COLUMNS: &[Column] = &[
    ("logprob", |token| token.logprob, 2e-5),
    ("entropy", |token| token.entropy, 2e-5),
    ("entropy_topk", |token| token.entropy_topk, 2e-5),
    ("rank", |token| token.rank as f32, 0.0),
    ("tail", |token| token.tail, 2e-5),
    ("varentropy", |token| token.varentropy, 8e-4),
    ("grad", |token| token.grad, 2e-5),
    ("top_id", |token| token.top_id as f32, 0.0),
    ("top_logprob", |token| token.top_logprob, 2e-5),
];

#[test]
fn every_column_of_the_token_table_is_that_of_transformers() {
    let mut failures = Vec::new();
    for (folder, path, kernels) in cases() {
        let text = std::fs::read_to_string(folder.join("columns.json")).unwrap();
        let expected: HashMap<String, Vec<f64>> = serde_json::from_str(&text).unwrap();
        assert_eq!(expected.len(), COLUMNS.len(), "columns.json has a column that is not compared");
        let stored = candle_core::safetensors::load(folder.join("logits.safetensors"), &Device::Cpu).unwrap();
        let sequences: Vec<Sequence> = (0..3u32)
            .map(|n| {
                let ids = ids(&stored, n as usize);
                Sequence {
                    row: n,
                    spans: vec![Span::default(); ids.len()],
                    supervised: (0..ids.len()).map(|t| t > 0).collect(),
                    ids,
                }
            })
            .collect();
        let scores = score(&load(&path, kernels), &sequences).unwrap().concat();
        for (column, value, tolerance) in COLUMNS {
            let expected = &expected[*column];
            assert_eq!(scores.len(), expected.len());
            let differences = scores.iter().zip(expected).map(|(token, expected)| (f64::from(value(token)) - expected).abs());
            let worst = worst(differences);
            if worst.is_nan() || worst > *tolerance {
                failures.push(format!("{} ({kernels}) {column}: {worst:.1e}", name_of(&path)));
            }
        }
    }
    assert!(failures.is_empty(), "{failures:#?}");
}

/// llama.cpp's converter joins matrices when it is told to (`--fuse-qkv`, `--fuse-gate-up-exps`).
#[test]
fn joined_matrices_of_gguf_are_read_as_the_separate_ones() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("joined.gguf");
    for (family, parts, joined, dim) in [
        // The rows of queries and keys are permuted, those of values are not.
        ("llama", &["attn_q", "attn_k", "attn_v"][..], "attn_qkv", 0),
        ("qwen3_moe", &["ffn_gate_exps", "ffn_up_exps"], "ffn_gate_up_exps", 1),
    ] {
        write_joined(&fixtures().join(family).join("model.gguf"), &path, parts, joined, dim);
        let difference = worst_logit(&path, &fixtures().join(family).join("logits.safetensors"), Kernels::Fused);
        assert!(difference <= TOLERANCE, "{family}: {difference:.1e}");
    }
}

/// Copies a GGUF file with the tensors `blk.N.PART.KIND` joined along `dim` as `blk.N.JOINED.KIND`.
fn write_joined(from: &Path, to: &Path, parts: &[&str], joined: &str, dim: usize) {
    let mut file = std::fs::File::open(from).unwrap();
    let content = Content::read(&mut file).unwrap();
    let mut groups: BTreeMap<String, Vec<Tensor>> = BTreeMap::new();
    let mut add = |stored: &str, name: String| {
        let tensor = content.tensor(&mut file, stored, &Device::Cpu).unwrap().dequantize(&Device::Cpu).unwrap();
        groups.entry(name).or_default().push(tensor);
    };
    let is_part = |name: &str| name.split('.').nth(2).is_some_and(|module| parts.contains(&module));
    content.tensor_infos.keys().filter(|name| !is_part(name)).for_each(|name| add(name, name.clone()));
    // In the order of `parts`.
    for part in parts {
        let of_part = content.tensor_infos.keys().filter(|name| name.split('.').nth(2) == Some(part));
        of_part.for_each(|name| add(name, name.replace(part, joined)));
    }
    let join =
        |tensors: Vec<Tensor>| QTensor::quantize(&Tensor::cat(&tensors, dim.min(tensors[0].rank() - 1)).unwrap(), GgmlDType::F32);
    let tensors: Vec<(String, QTensor)> = groups.into_iter().map(|(name, tensors)| (name, join(tensors).unwrap())).collect();
    assert!(tensors.iter().any(|(name, _)| name.contains(joined)));
    let tensors: Vec<(&str, &QTensor)> = tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
    let metadata: Vec<(&str, &Value)> = content.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    gguf_file::write(&mut std::fs::File::create(to).unwrap(), &metadata, &tensors).unwrap();
}

/// The fixture's folder, what is loaded of it, and with which kernels.
fn cases() -> Vec<(PathBuf, PathBuf, Kernels)> {
    let mut folders: Vec<_> = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    let mut cases = Vec::new();
    for folder in folders {
        let gguf = folder.join("model.gguf");
        for path in [Some(folder.clone()), gguf.is_file().then_some(gguf)].into_iter().flatten() {
            let on_cuda = cuda::Device::get().is_ok().then_some(Kernels::Cuda);
            let implementations = [Kernels::Reference, Kernels::Fused].into_iter().chain(on_cuda);
            cases.extend(implementations.map(|kernels| (folder.clone(), path.clone(), kernels)));
        }
    }
    cases
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

fn name_of(path: &Path) -> String {
    path.strip_prefix(fixtures()).unwrap().display().to_string()
}

fn load(path: &Path, kernels: Kernels) -> Model {
    load_in(path, kernels, Dtype::F32)
}

fn load_in(path: &Path, kernels: Kernels, dtype: Dtype) -> Model {
    let reference = Reference::local(path).unwrap();
    let device = if kernels == Kernels::Cuda { Placement::Cuda } else { Placement::Cpu };
    Model::load(&reference, LoadOptions { dtype, kernels, device }, 64).unwrap()
}

fn ids(stored: &HashMap<String, Tensor>, n: usize) -> Vec<u32> {
    let ids = stored[&format!("ids.{n}")].to_vec1::<i64>().unwrap();
    ids.into_iter().map(|id| id as u32).collect()
}

/// The largest difference of any logit at any position of the three sequences.
fn worst_logit(path: &Path, expected: &Path, kernels: Kernels) -> f64 {
    let errors = errors(&load(path, kernels), expected);
    worst(errors)
}

/// How far all logits at all positions of the three sequences are from the expected ones.
fn errors(model: &Model, expected: &Path) -> Vec<f32> {
    let expected = candle_core::safetensors::load(expected, &Device::Cpu).unwrap();
    let (a, b, c) = (ids(&expected, 0), ids(&expected, 1), ids(&expected, 2));
    let shared = a.iter().zip(&b).take_while(|(a, b)| a == b).count();
    assert!(shared > 0 && shared < b.len());
    // The shared prefix, what follows it in the first and in the second, the third: one batch.
    let all = [&a[..shared], &a[shared..], &b[shared..], &c].concat();
    let mut segments = Vec::new();
    let mut begin = 0;
    let prefix = 0..shared;
    for (length, context) in
        [(shared, vec![]), (a.len() - shared, vec![prefix.clone()]), (b.len() - shared, vec![prefix.clone()]), (c.len(), vec![])]
    {
        segments.push(Segment { tokens: begin..begin + length, context });
        begin += length;
    }
    let batch = Batch { ids: all, segments: segments.into() };
    let rows = |range: std::ops::Range<usize>| range.map(|row| row as u32);
    let tail_of_b = a.len()..a.len() + b.len() - shared;
    let mut errors = Vec::new();
    for (n, rows) in [
        rows(0..a.len()).collect::<Vec<_>>(),
        rows(0..shared).chain(rows(tail_of_b.clone())).collect(),
        rows(tail_of_b.end..begin).collect(),
    ]
    .into_iter()
    .enumerate()
    {
        let logits = model.logits(&batch, &rows).unwrap();
        let expected = &expected[&format!("logits.{n}")];
        assert_eq!(logits.dims(), expected.dims());
        let values = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        errors.extend(values(&logits).into_iter().zip(values(expected)).map(|(ours, theirs)| (ours - theirs).abs()));
    }
    errors
}
