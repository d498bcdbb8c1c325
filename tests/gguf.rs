//! GGUF files whose tensors are stored in each type that is read: they give the logits of the folder with the numbers that gguf-py makes
//! of the same blocks (`tests/fixtures/gguf/make.py`), to the last bit.

use std::collections::HashMap;
use std::io::Cursor;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value};
use candle_core::{Device, Tensor};
use diagnose::kernels::{Dtype, Kernels, Segment};
use diagnose::model::{Batch, LoadOptions, Model, Placement, Purpose, Reference};
use serde_json::json;

use crate::worst::worst;

/// Every row of every matrix: a whole number of blocks of every type.
const WIDTH: usize = 256;
const HEAD_DIM: usize = 64;
const N_LAYERS: usize = 2;
const N_EXPERTS: usize = 3;
const VOCABULARY: usize = 263;
/// ggml's number of F32.
const F32: u32 = 0;

/// A tensor in both files.
struct Stored {
    gguf_name: String,
    /// The tensor's name in the folder; for a stack of experts one name for each.
    folder_names: Vec<String>,
    /// The rows of each; 0 for a norm, which is stored as F32 always.
    rows: usize,
    width: usize,
}

/// A qwen3_moe, since it has stacks of matrices, which are read one at a time.
fn tensors() -> Vec<Stored> {
    let one = |gguf: &str, folder: &str, rows, width| Stored {
        gguf_name: format!("{gguf}.weight"),
        folder_names: vec![format!("{folder}.weight")],
        rows,
        width,
    };
    let mut all = vec![
        one("token_embd", "model.embed_tokens", VOCABULARY, WIDTH),
        one("output_norm", "model.norm", 0, WIDTH),
        one("output", "lm_head", VOCABULARY, WIDTH),
    ];
    for layer in 0..N_LAYERS {
        for (gguf, folder, rows, width) in [
            ("attn_norm", "input_layernorm", 0, WIDTH),
            ("attn_q", "self_attn.q_proj", 4 * HEAD_DIM, WIDTH),
            ("attn_k", "self_attn.k_proj", 2 * HEAD_DIM, WIDTH),
            ("attn_v", "self_attn.v_proj", 2 * HEAD_DIM, WIDTH),
            ("attn_q_norm", "self_attn.q_norm", 0, HEAD_DIM),
            ("attn_k_norm", "self_attn.k_norm", 0, HEAD_DIM),
            ("attn_output", "self_attn.o_proj", WIDTH, 4 * HEAD_DIM),
            ("ffn_norm", "post_attention_layernorm", 0, WIDTH),
            ("ffn_gate_inp", "mlp.gate", N_EXPERTS, WIDTH),
        ] {
            all.push(one(&format!("blk.{layer}.{gguf}"), &format!("model.layers.{layer}.{folder}"), rows, width));
        }
        for part in ["gate", "up", "down"] {
            let of_expert = |expert| format!("model.layers.{layer}.mlp.experts.{expert}.{part}_proj.weight");
            all.push(Stored {
                gguf_name: format!("blk.{layer}.ffn_{part}_exps.weight"),
                folder_names: (0..N_EXPERTS).map(of_expert).collect(),
                rows: WIDTH,
                width: WIDTH,
            });
        }
    }
    all
}

/// Blocks of a type and the numbers in them.
struct Blocks {
    name: String,
    number: u32,
    bytes: Vec<Vec<u8>>,
    values: Vec<Vec<f32>>,
}

fn types() -> Vec<Blocks> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/gguf/blocks.safetensors");
    let fixture = candle_core::safetensors::load(path, &Device::Cpu).unwrap();
    let names = fixture.keys().filter_map(|key| key.strip_suffix(".type"));
    let blocks = |name: &str| {
        let of = |what: &str| &fixture[&format!("{name}.{what}")];
        let mut bytes = of("bytes").to_vec2::<u8>().unwrap();
        let values = of("values").to_vec1::<f32>().unwrap();
        let kind = of("type").to_vec1::<u32>().unwrap();
        // There are more blocks than those whose numbers stand there.
        bytes.truncate(values.len() / kind[1] as usize);
        let values = values.chunks(kind[1] as usize).map(<[f32]>::to_vec).collect();
        Blocks { name: name.to_owned(), number: kind[0], bytes, values }
    };
    let mut all: Vec<Blocks> = names.map(blocks).collect();
    all.sort_by_key(|blocks| blocks.number);
    all
}

/// The model in both forms, with the matrices in `blocks`.
struct Pair {
    gguf: Vec<(String, Vec<usize>, u32, Vec<u8>)>,
    folder: HashMap<String, Tensor>,
}

fn pair(blocks: &Blocks) -> Pair {
    let mut pair = Pair { gguf: Vec::new(), folder: HashMap::new() };
    let mut random = 1u64;
    let mut below = |n: usize| {
        random = random.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (random >> 33) as usize % n
    };
    for stored in tensors() {
        let is_norm = stored.rows == 0;
        let (mut all_bytes, rows) = (Vec::new(), stored.rows.max(1));
        for name in &stored.folder_names {
            let mut values: Vec<f32> = Vec::new();
            while values.len() < rows * stored.width {
                if is_norm {
                    let value = 0.5 + below(1000) as f32 / 1000.0;
                    values.push(value);
                    all_bytes.extend(value.to_le_bytes());
                } else {
                    let block = below(blocks.bytes.len());
                    values.extend(&blocks.values[block]);
                    all_bytes.extend(&blocks.bytes[block]);
                }
            }
            let shape = if is_norm { vec![stored.width] } else { vec![rows, stored.width] };
            pair.folder.insert(name.clone(), Tensor::from_vec(values, shape, &Device::Cpu).unwrap());
        }
        // Columns first, as in the file.
        let mut dimensions = vec![stored.width];
        dimensions.extend((!is_norm).then_some(rows));
        dimensions.extend((stored.folder_names.len() > 1).then_some(stored.folder_names.len()));
        pair.gguf.push((stored.gguf_name, dimensions, if is_norm { F32 } else { blocks.number }, all_bytes));
    }
    pair
}

impl Pair {
    fn write_gguf(&self, path: &Path) {
        let mut metadata = metadata("qwen3_moe");
        for (key, value) in [
            ("block_count", N_LAYERS),
            ("embedding_length", WIDTH),
            ("feed_forward_length", WIDTH),
            ("expert_feed_forward_length", WIDTH),
            ("attention.head_count", 4),
            ("attention.head_count_kv", 2),
            ("attention.key_length", HEAD_DIM),
            ("attention.value_length", HEAD_DIM),
            ("expert_count", N_EXPERTS),
            ("expert_used_count", 2),
        ] {
            metadata.insert(format!("qwen3moe.{key}"), Value::U32(value as u32));
        }
        metadata.remove("qwen3moe.rope.dimension_count");
        let entry = |(name, dimensions, number, bytes): &(String, Vec<usize>, u32, Vec<u8>)| Entry {
            name: name.clone(),
            dimensions: dimensions.clone(),
            number: *number,
            bytes: bytes.len(),
        };
        let (mut bytes, _) = head(&metadata, &self.gguf.iter().map(entry).collect::<Vec<_>>());
        for (.., tensor) in &self.gguf {
            bytes.extend(tensor);
            bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
        }
        std::fs::write(path, bytes).unwrap();
    }

    fn write_folder(&self, path: &Path) {
        std::fs::copy(fixture().join("tokenizer.json"), path.join("tokenizer.json")).unwrap();
        let mut config: serde_json::Value =
            serde_json::from_slice(&std::fs::read(fixture().join("config.json")).unwrap()).unwrap();
        for (key, value) in [
            ("num_hidden_layers", json!(N_LAYERS)),
            ("hidden_size", json!(WIDTH)),
            ("intermediate_size", json!(WIDTH)),
            ("moe_intermediate_size", json!(WIDTH)),
            ("num_attention_heads", json!(4)),
            ("num_key_value_heads", json!(2)),
            ("head_dim", json!(HEAD_DIM)),
            ("num_local_experts", json!(N_EXPERTS)),
            ("num_experts_per_tok", json!(2)),
            ("tie_word_embeddings", json!(false)),
        ] {
            config[key] = value;
        }
        std::fs::write(path.join("config.json"), config.to_string()).unwrap();
        candle_core::safetensors::save(&self.folder, path.join("model.safetensors")).unwrap();
    }
}

pub(crate) fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

fn fixture() -> PathBuf {
    fixtures().join("qwen3_moe")
}

/// The metadata of a family's fixture.
pub(crate) fn metadata(family: &str) -> HashMap<String, Value> {
    Content::read(&mut std::fs::File::open(fixtures().join(family).join("model.gguf")).unwrap()).unwrap().metadata
}

/// What a GGUF file says of a tensor.
pub(crate) struct Entry {
    pub name: String,
    /// Columns first.
    pub dimensions: Vec<usize>,
    /// The number of its type.
    pub number: u32,
    pub bytes: usize,
}

const ALIGNMENT: usize = 32;

/// What stands before the tensors, and the length of all tensors.
pub(crate) fn head(metadata: &HashMap<String, Value>, entries: &[Entry]) -> (Vec<u8>, u64) {
    // candle writes the metadata; behind their last byte, which is not 0, it writes zeros only.
    let last = Value::String("the end".to_owned());
    let mut pairs: Vec<(&str, &Value)> = metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
    pairs.push(("general.comment", &last));
    let mut head = Cursor::new(Vec::new());
    gguf_file::write(&mut head, &pairs, &[]).unwrap();
    let mut bytes = head.into_inner();
    bytes.truncate(bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1);
    bytes[8..16].copy_from_slice(&(entries.len() as u64).to_le_bytes());
    let mut offset = 0;
    for entry in entries {
        bytes.extend((entry.name.len() as u64).to_le_bytes());
        bytes.extend(entry.name.as_bytes());
        bytes.extend((entry.dimensions.len() as u32).to_le_bytes());
        entry.dimensions.iter().for_each(|&n| bytes.extend((n as u64).to_le_bytes()));
        bytes.extend(entry.number.to_le_bytes());
        bytes.extend((offset as u64).to_le_bytes());
        offset += entry.bytes.next_multiple_of(ALIGNMENT);
    }
    bytes.resize(bytes.len().next_multiple_of(ALIGNMENT), 0);
    (bytes, offset as u64)
}

fn logits(path: &Path) -> Result<Vec<f32>, String> {
    let reference = Reference::local(path).map_err(|error| error.to_string())?;
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(&reference, options, 64).map_err(|error| error.to_string())?;
    let ids: Vec<u32> = (0..20).map(|i| i * 37 % 256).collect();
    let rows: Vec<u32> = (0..20).collect();
    let segments = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
    Ok(model.logits(&Batch { ids, segments }, &rows).unwrap().flatten_all().unwrap().to_vec1().unwrap())
}

#[test]
fn every_type_gives_the_logits_of_the_folder_with_its_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let types = types();
    assert!(types.len() > 20);
    let mut seen: Vec<Vec<f32>> = Vec::new();
    for blocks in &types {
        let pair = pair(blocks);
        pair.write_gguf(&path);
        pair.write_folder(folder.path());
        let found = logits(&path).unwrap_or_else(|error| panic!("{}: {error}", blocks.name));
        let expected = logits(folder.path()).unwrap_or_else(|error| panic!("{}: {error}", blocks.name));
        assert!(found.iter().all(|logit| logit.is_finite()), "{}", blocks.name);
        assert_eq!(found, expected, "{}", blocks.name);
        assert!(!seen.contains(&found), "{}: the logits of another type", blocks.name);
        seen.push(found);
    }
}

/// A model that writes keeps matrices in the blocks of the file, where products are made for these: fewer bytes, the same logits.
#[test]
fn matrices_in_their_blocks_give_the_logits_of_their_numbers() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let mut kept = Vec::new();
    for blocks in types() {
        pair(&blocks).write_gguf(&path);
        let reference = Reference::local(&path).unwrap();
        let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Fused, device: Placement::Cpu };
        let plain = Model::load(&reference, options, 64).unwrap();
        let in_blocks = Model::load_for(Purpose::Write, &reference, options, 64).unwrap();
        let ids: Vec<u32> = (0..20).map(|i| i * 37 % 256).collect();
        let rows: Vec<u32> = (0..20).collect();
        let [expected, found] = [&plain, &in_blocks].map(|model| {
            let segments = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
            let logits = model.logits(&Batch { ids: ids.clone(), segments }, &rows).unwrap();
            logits.flatten_all().unwrap().to_vec1::<f32>().unwrap()
        });
        let largest = expected.iter().fold(1f32, |largest, logit| largest.max(logit.abs()));
        let error = worst(expected.iter().zip(&found).map(|(a, b)| (a - b).abs()));
        assert!(error <= 1e-4 * f64::from(largest), "{}: off by {error} of {largest}", blocks.name);
        if 3 * in_blocks.head().bytes() < plain.head().bytes() {
            kept.push(blocks.name);
        }
    }
    assert_eq!(kept, ["Q4_0", "Q4_1", "Q5_0", "Q8_0", "Q4_K", "Q5_K", "Q6_K"]);
}

#[test]
fn what_is_not_read_is_named_and_no_broken_download() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("model.gguf");
    let f32s = types().into_iter().find(|blocks| blocks.number == F32).unwrap();
    let check = |change: &dyn Fn(&mut Pair), parts: &[&str]| {
        let mut changed = pair(&f32s);
        change(&mut changed);
        changed.write_gguf(&path);
        let error = logits(&path).unwrap_err();
        assert!(parts.iter().all(|part| error.contains(part)), "expected {parts:?} in {error}");
        assert!(!error.contains("download"), "{error}");
    };
    let last = |pair: &mut Pair, number| pair.gguf.last_mut().unwrap().2 = number;
    check(&|pair| last(pair, 41), &["blk.1.ffn_down_exps.weight", "Q1_0", "41"]);
    check(&|pair| last(pair, 31), &["Q4_0_4_4", "31", "dropped"]);
    check(&|pair| last(pair, 26), &["I32", "26"]);
    check(&|pair| last(pair, 99), &["blk.1.ffn_down_exps.weight", "number 99"]);
    check(&|pair| pair.gguf.push(("output.weight".to_owned(), vec![1], F32, vec![0; 4])), &["`output.weight` twice"]);
    // Q8_0 has 32 numbers in a block.
    check(&|pair| pair.gguf[0] = ("token_embd.weight".to_owned(), vec![20, 16], 8, vec![0; 340]), &["rows of 20", "Q8_0", "32"]);
}
