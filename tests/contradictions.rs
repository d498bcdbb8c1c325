//! Tests files with contradictions or unused content: every fixture is changed in one key or one tensor, and the result must be Transformers' numbers
//! or a refusal that names the change, never other numbers.

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{self, Content, Value as GgufValue};
use candle_core::quantized::{GgmlDType, QTensor};
use candle_core::{DType, Device, Tensor};
use diagnose::kernels::{Dtype, Kernels, Segment};
use diagnose::model::{Batch, LoadOptions, Model, Placement, Reference};
use serde_json::{Value, json};

type Tensors = HashMap<String, Tensor>;

/// A checkpoint that can be changed and written.
#[derive(Clone)]
struct Checkpoint {
    name: String,
    config: Value,
    tensors: Tensors,
    tokenizer: PathBuf,
}

impl Checkpoint {
    /// The logits and the remarks about the files, or the error instead.
    fn load(&self) -> Result<(Vec<f32>, Vec<String>), String> {
        let folder = tempfile::tempdir().unwrap();
        std::fs::copy(&self.tokenizer, folder.path().join("tokenizer.json")).unwrap();
        std::fs::write(folder.path().join("config.json"), self.config.to_string()).unwrap();
        candle_core::safetensors::save(&self.tensors, folder.path().join("model.safetensors")).unwrap();
        load(folder.path())
    }

    #[track_caller]
    fn expect_same(&self, plain: &[f32], what: &str) -> Vec<String> {
        let (logits, remarks) = self.load().unwrap_or_else(|error| panic!("{}, {what}: {error}", self.name));
        assert_eq!(logits, plain, "{}, {what}: other numbers", self.name);
        remarks
    }

    #[track_caller]
    fn expect_refused(&self, names: &[&str], what: &str) {
        match self.load() {
            Ok(_) => panic!("{}, {what}: taken", self.name),
            Err(error) => {
                assert!(names.iter().any(|name| error.contains(name)), "{}, {what}: none of {names:?} in {error}", self.name);
            }
        }
    }

    /// The name under which the language model's `name` is stored: multimodal checkpoints have a prefix.
    fn stored(&self, name: &str) -> String {
        let found = self.tensors.keys().find(|stored| plain_name(stored) == name);
        found.cloned().unwrap_or_else(|| name.to_owned())
    }

    fn is_multimodal(&self) -> bool {
        self.config.get("vision_config").is_some()
    }
}

/// What the language model by itself calls a tensor.
fn plain_name(stored: &str) -> String {
    match stored.strip_prefix("model.language_model.") {
        Some(rest) => format!("model.{rest}"),
        None => stored.strip_prefix("language_model.").unwrap_or(stored).to_owned(),
    }
}

/// Whether the tensor belongs to a vision tower or to its projector.
fn is_beside_text(stored: &str) -> bool {
    ["vision_tower.", "multi_modal_projector.", "visual."]
        .iter()
        .any(|part| stored.trim_start_matches("model.").starts_with(part))
}

fn load(path: &Path) -> Result<(Vec<f32>, Vec<String>), String> {
    let reference = Reference::local(path).map_err(|error| error.to_string())?;
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(&reference, options, 64).map_err(|error| error.to_string())?;
    let ids: Vec<u32> = (0..33).map(|i| i * 37 % 256).collect();
    let segments = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
    let rows: Vec<u32> = (0..33).collect();
    let logits = model.logits(&Batch { ids, segments }, &rows).unwrap();
    Ok((logits.flatten_all().unwrap().to_vec1().unwrap(), model.remarks))
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families")
}

fn folders() -> Vec<PathBuf> {
    let mut folders: Vec<_> = std::fs::read_dir(fixtures()).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

fn checkpoint(folder: &Path) -> Checkpoint {
    let mut tensors = Tensors::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.starts_with("model") && name.ends_with(".safetensors") {
            tensors.extend(candle_core::safetensors::load(&path, &Device::Cpu).unwrap());
        }
    }
    Checkpoint {
        name: folder.file_name().unwrap().to_string_lossy().into_owned(),
        config: serde_json::from_slice(&std::fs::read(folder.join("config.json")).unwrap()).unwrap(),
        tensors,
        tokenizer: folder.join("tokenizer.json"),
    }
}

fn checkpoints() -> impl Iterator<Item = (Checkpoint, Vec<f32>)> {
    folders().into_iter().map(|folder| {
        let checkpoint = checkpoint(&folder);
        let (plain, remarks) = checkpoint.load().unwrap();
        assert!(remarks.is_empty(), "{}: {remarks:?}", checkpoint.name);
        (checkpoint, plain)
    })
}

fn ones(n: usize) -> Tensor {
    Tensor::ones(n, DType::F32, &Device::Cpu).unwrap()
}

#[test]
fn every_tensor_of_a_folder_is_read_or_harmless_or_refused_by_name() {
    for (plain, logits) in checkpoints() {
        let names: Vec<String> = plain.tensors.keys().cloned().collect();
        let last = plain.stored("model.layers.1.input_layernorm.weight").replace("input_layernorm.weight", "");
        // What converters, quantisers and trainers leave.
        let mut strays =
            vec!["score.weight".to_owned(), "v_head.summary.weight".to_owned(), plain.stored("model.norm.weight") + "_2"];
        for stray in [
            "self_attn.q_proj.bias",
            "self_attn.k_proj.bias",
            "self_attn.o_proj.bias",
            "mlp.gate_proj.bias",
            "mlp.down_proj.bias",
            "mlp.down_proj.weight_scale_inv",
            "mlp.down_proj.scale",
            "self_attn.q_norm.bias",
            "self_attn.k_proj.k_scale",
            "input_layernorm.bias",
            "attn_sub_norm.weight",
        ] {
            strays.push(format!("{last}{stray}"));
        }
        strays.push(last.replace("layers.1.", "layers.77.") + "input_layernorm.weight");
        for stray in strays.into_iter().filter(|stray| !names.contains(stray)) {
            let mut changed = plain.clone();
            changed.tensors.insert(stray.clone(), ones(4));
            changed.expect_refused(&[&stray], "a stray tensor");
        }
        for name in &names {
            let mut changed = plain.clone();
            let tensor = changed.tensors.remove(name).unwrap();
            if is_beside_text(name) {
                changed.expect_same(&logits, "a tensor of the vision tower removed");
                continue;
            }
            let inner = plain_name(name);
            changed.expect_refused(&[name, &inner, "experts", "embed_tokens"], "a tensor removed");
            changed.tensors.insert(format!("{name}.old"), tensor);
            changed.expect_refused(&[&inner, "experts"], "a tensor renamed");
        }
        let mut harmless = plain.clone();
        harmless.tensors.insert(format!("{last}self_attn.rotary_emb.inv_freq"), ones(4));
        harmless.expect_same(&logits, "rotary buffers");
        let tower = "vision_tower.vision_model.post_layernorm.weight";
        let mut tower_added = plain.clone();
        tower_added.tensors.insert(tower.to_owned(), ones(4));
        match plain.is_multimodal() {
            true => drop(tower_added.expect_same(&logits, "a vision tower")),
            false => tower_added.expect_refused(&[tower], "a vision tower"),
        }
    }
}

#[test]
fn layers_that_predict_further_tokens_are_left_aside_where_the_config_announces_them() {
    let plain = checkpoint(&fixtures().join("glm4_moe"));
    let (logits, _) = plain.load().unwrap();
    let (behind, further) =
        (format!("model.layers.{}.eh_proj.weight", plain.config["num_hidden_layers"]), "num_nextn_predict_layers");
    let mut changed = plain.clone();
    changed.config[further] = 0.into();
    changed.tensors.insert(behind.clone(), ones(4));
    changed.expect_refused(&[&behind], "a layer that nobody announces");
    changed.config[further] = 1.into();
    changed.expect_same(&logits, "a layer that predicts further tokens");
}

#[test]
fn weights_in_mxfp4_are_read_where_the_config_says_so_and_count_as_what_they_hold() {
    let folder = fixtures().join("gpt_oss_mxfp4");
    let reference = Reference::local(&folder).unwrap();
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(&reference, options, 64).unwrap();
    // Queries and output, keys and values, sinks, norms, router, three experts with their biases.
    let layer = 2 * 64 * 32 + 2 * 64 * 16 + 4 + 2 * 64 + 3 * (64 + 1) + 3 * (64 * 64 + 64 + 32 * 64 + 64);
    assert_eq!(model.info.parameters, 2 * 263 * 64 + 64 + 2 * layer);
    let mut changed = checkpoint(&folder);
    changed.config["quantization_config"] = Value::Null;
    changed.expect_refused(&["gate_up_proj"], "weights in MXFP4 that nobody announces");
}

/// Layers that predict further tokens, which Transformers does not load (`_keys_to_ignore_on_load_unexpected`).
#[test]
fn tensors_beside_the_model_are_left_aside_in_their_families_alone() {
    for (family, aside) in [("qwen3_next", true), ("qwen3_5_moe_text", true), ("qwen3_moe", false)] {
        let plain = checkpoint(&fixtures().join(family));
        let (logits, _) = plain.load().unwrap();
        let mut changed = plain.clone();
        changed.tensors.insert("mtp.fc.weight".to_owned(), ones(4));
        match aside {
            true => drop(changed.expect_same(&logits, "a layer that predicts further tokens")),
            false => changed.expect_refused(&["mtp.fc.weight"], "a layer that predicts further tokens"),
        }
    }
}

#[test]
fn the_head_is_what_the_file_holds_and_never_a_guess() {
    let tie = "tie_word_embeddings";
    for (plain, logits) in checkpoints() {
        let (embedding, head) = (plain.stored("model.embed_tokens.weight"), plain.stored("lm_head.weight"));
        match plain.tensors.contains_key(&head) {
            true => {
                let mut changed = plain.clone();
                changed.config[tie] = true.into();
                let remarks = changed.expect_same(&logits, "tied, with two matrices");
                // A multimodal config contradicts its inner one, too.
                assert!(!remarks.is_empty() && remarks.iter().all(|remark| remark.contains(tie)), "{remarks:?}");
                changed.config[tie] = false.into();
                changed.tensors.remove(&head);
                changed.expect_refused(&["lm_head.weight"], "a head of its own that is not there");
            }
            false => {
                let mut changed = plain.clone();
                changed.tensors.insert("lm_head.weight".to_owned(), plain.tensors[&embedding].clone());
                let remarks = changed.expect_same(&logits, "a copy of the embedding");
                assert!(remarks.is_empty(), "{remarks:?}");
                changed.tensors.remove("lm_head.weight");
                changed.config[tie] = false.into();
                changed.expect_refused(&["lm_head.weight"], "a head of its own that is not there");
                // Another head than the embedding counts.
                let mut changed = plain.clone();
                let turned = plain.tensors[&embedding].neg().unwrap();
                changed.tensors.insert("lm_head.weight".to_owned(), turned);
                let (found, remarks) = changed.load().unwrap();
                assert!(remarks.len() == 1 && remarks[0].contains(tie), "{remarks:?}");
                assert!(found.iter().zip(&logits).all(|(a, b)| *a == -b), "{}: the head in the file is not used", plain.name);
            }
        }
    }
}

#[test]
fn the_head_of_a_multimodal_model_is_as_its_own_class_computes_it() {
    let (plain, logits) = checkpoints().find(|(plain, _)| plain.name == "gemma3_multimodal").unwrap();
    let mut changed = plain.clone();
    changed.config["text_config"]["final_logit_softcapping"] = json!(7.0);
    let remarks = changed.expect_same(&logits, "a cap in text_config");
    assert!(remarks.len() == 1 && remarks[0].contains("`final_logit_softcapping` = 7.0"), "{remarks:?}");
    // The language model by itself caps.
    let text = checkpoint(&fixtures().join("gemma3_text"));
    assert_eq!(text.config["final_logit_softcapping"], 7.0);
    let mut uncapped = text.clone();
    uncapped.config["final_logit_softcapping"] = Value::Null;
    assert_ne!(uncapped.load().unwrap().0, text.load().unwrap().0);
}

/// What other programs call the tensors, where Transformers reads them all the same (`base_model_prefix`, `tie_weights`).
#[test]
fn names_with_another_prefix_and_a_lone_head_are_read_as_transformers_does() {
    for (plain, logits) in checkpoints().filter(|(plain, _)| plain.config.get("text_config").is_none()) {
        let renamed = |to: &dyn Fn(&str) -> String| {
            let tensors = plain.tensors.iter().map(|(name, tensor)| (to(name), tensor.clone())).collect();
            Checkpoint { tensors, ..plain.clone() }
        };
        let inner = |name: &str| name.trim_start_matches("model.").to_owned();
        renamed(&inner).expect_same(&logits, "names without `model.`");
        renamed(&|name| if name.contains("layers.0.") { inner(name) } else { name.to_owned() })
            .expect_same(&logits, "some names");
        renamed(&|name| format!("model.{name}")).expect_same(&logits, "names with `model.` twice");
        renamed(&|name| format!("_orig_mod.{name}")).expect_refused(&["embed_tokens", "lm_head"], "names of torch.compile");
        let embedding_as_head =
            renamed(&|name| if name.ends_with("embed_tokens.weight") { "lm_head.weight".to_owned() } else { name.to_owned() });
        match plain.tensors.contains_key("lm_head.weight") {
            true => embedding_as_head.expect_refused(&["embed_tokens"], "an untied head alone"),
            false => drop(embedding_as_head.expect_same(&logits, "a tied head alone")),
        }
    }
}

#[test]
fn a_token_without_a_row_in_the_embedding_is_refused_and_the_others_are_read() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors"] {
        std::fs::copy(fixtures().join("qwen3").join(name), folder.path().join(name)).unwrap();
    }
    let mut tokenizer: Value = serde_json::from_slice(&std::fs::read(fixtures().join("qwen3/tokenizer.json")).unwrap()).unwrap();
    let mut added = tokenizer["added_tokens"][0].clone();
    (added["id"], added["content"]) = (json!(263), json!("[PAD]"));
    let known = tokenizer["added_tokens"].as_array_mut().unwrap();
    known.extend((259..263).map(|id| {
        json!({"id": id, "content": format!("<{id}>"), "single_word": false, "lstrip": false,
        "rstrip": false, "normalized": false, "special": true})
    }));
    known.push(added);
    std::fs::write(folder.path().join("tokenizer.json"), tokenizer.to_string()).unwrap();
    let reference = Reference::local(folder.path()).unwrap();
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Reference, device: Placement::Cpu };
    let model = Model::load(&reference, options, 64).unwrap();
    assert!(model.remarks.iter().any(|remark| remark.contains("has 264 tokens, the model 263")), "{:?}", model.remarks);
    assert_eq!(model.tokenizer.encode("hi<262>").unwrap().len(), 3);
    let error = model.tokenizer.encode("hi[PAD]").unwrap_err().to_string();
    assert!(error.contains("`[PAD]` has the id 263") && error.contains("263 rows"), "{error}");
    let segments = vec![Segment { tokens: 0..2, context: Vec::new() }].into();
    let error = model.logits(&Batch { ids: vec![1, 263], segments }, &[1]).unwrap_err().to_string();
    assert!(error.contains("[PAD]"), "{error}");
}

#[test]
fn of_two_spellings_of_the_rotary_embedding_the_one_of_transformers_counts() {
    for folder in folders() {
        let plain = checkpoint(&folder);
        let Ok(older) = std::fs::read(folder.join("config.transformers4.json")) else { continue };
        let (logits, _) = plain.load().unwrap();
        let older: Value = serde_json::from_slice(&older).unwrap();
        let text = |json: &mut Value| if json.get("text_config").is_some() { json["text_config"].take() } else { json.take() };
        let (mut config, mut older) = (plain.config.clone(), older);
        let nested = config.get("text_config").is_some();
        let (mut config, older) = (text(&mut config), text(&mut older));
        let Some(scaling) = older.get("rope_scaling").filter(|scaling| scaling.is_object()) else { continue };
        let gemma = config["rope_parameters"].get("full_attention").is_some();
        // A wrong set, replaced by the older spelling as a whole; in Gemma 3 the older one changes single values of it.
        match gemma {
            true => config["rope_parameters"]["full_attention"]["factor"] = json!(2.0),
            false => config["rope_parameters"] = json!({"rope_type": "default", "rope_theta": 77.0}),
        }
        config["rope_scaling"] = scaling.clone();
        config["rope_theta"] = older["rope_theta"].clone();
        let mut changed = plain.clone();
        match nested {
            true => changed.config["text_config"] = config,
            false => changed.config = config,
        }
        let remarks = changed.expect_same(&logits, "rope_scaling beside rope_parameters");
        assert!(remarks.len() == 1 && remarks[0].contains("rope_scaling is used"), "{remarks:?}");
    }
}

#[test]
fn keys_that_contradict_or_that_nobody_knows_are_refused_by_name() {
    for (plain, _) in checkpoints() {
        let class = |name: &str| json!([name]);
        for (key, value) in [
            ("logit_scale", json!(0.5)),
            ("architectures", class("LlamaForSequenceClassification")),
            ("architectures", class("Gemma3RewardModel")),
            ("quantization_config", json!({"quant_method": "fp8"})),
            ("rope_scaling", json!({"rope_type": "su", "factor": 2.0})),
            ("num_hidden_layers", json!(1)),
        ] {
            let mut changed = plain.clone();
            let in_text = key == "num_hidden_layers" && plain.config.get("text_config").is_some();
            let config = if in_text { &mut changed.config["text_config"] } else { &mut changed.config };
            config[key] = value.clone();
            // A layer too few leaves the tensors of the others unread, or contradicts the list of their kinds.
            changed.expect_refused(&[key, "layers.1.", "layer_types", "`su`", "`longrope`"], &format!("{key} = {value}"));
        }
    }
}

#[test]
fn a_model_and_an_adapter_in_one_folder_are_refused() {
    let folder = tempfile::tempdir().unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixtures().join("qwen3").join(name), folder.path().join(name)).unwrap();
    }
    assert!(load(folder.path()).is_ok());
    std::fs::write(folder.path().join("adapter_config.json"), r#"{"peft_type": "LORA", "r": 2, "lora_alpha": 4}"#).unwrap();
    let error = load(folder.path()).unwrap_err();
    for part in ["a model and an adapter", "adapter_config.json", "--base"] {
        assert!(error.contains(part), "{error}");
    }
}

/// A GGUF file that can be changed and written.
pub(crate) struct Gguf {
    pub metadata: BTreeMap<String, GgufValue>,
    tensors: BTreeMap<String, QTensor>,
}

impl Gguf {
    pub(crate) fn read(family: &str) -> Gguf {
        let mut file = std::fs::File::open(fixtures().join(family).join("model.gguf")).unwrap();
        let content = Content::read(&mut file).unwrap();
        let names: Vec<String> = content.tensor_infos.keys().cloned().collect();
        let tensor = |name: String| (name.clone(), content.tensor(&mut file, &name, &Device::Cpu).unwrap());
        let tensors = names.into_iter().map(tensor).collect();
        Gguf { metadata: content.metadata.into_iter().collect(), tensors }
    }

    fn add(mut self, name: &str, values: Tensor) -> Gguf {
        self.tensors.insert(name.to_owned(), QTensor::quantize(&values, GgmlDType::F32).unwrap());
        self
    }

    pub(crate) fn set(mut self, key: &str, value: GgufValue) -> Gguf {
        self.metadata.insert(key.to_owned(), value);
        self
    }

    pub(crate) fn load(&self) -> Result<Vec<f32>, String> {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("model.gguf");
        let metadata: Vec<(&str, &GgufValue)> = self.metadata.iter().map(|(key, value)| (key.as_str(), value)).collect();
        let tensors: Vec<(&str, &QTensor)> = self.tensors.iter().map(|(name, tensor)| (name.as_str(), tensor)).collect();
        gguf_file::write(&mut std::fs::File::create(&path).unwrap(), &metadata, &tensors).unwrap();
        load(&path).map(|(logits, _)| logits)
    }
}

pub(crate) fn ggufs() -> Vec<String> {
    let with_gguf = folders().into_iter().filter(|folder| folder.join("model.gguf").is_file());
    with_gguf.map(|folder| folder.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

#[test]
fn every_tensor_of_a_gguf_file_is_read_or_refused_by_name() {
    for family in ggufs() {
        let plain = Gguf::read(&family);
        plain.load().unwrap_or_else(|error| panic!("{family}: {error}"));
        for stray in [
            "output.bias",
            "output_norm.bias",
            "blk.1.attn_q.bias",
            "blk.1.attn_output.bias",
            "blk.1.ffn_down.bias",
            "blk.1.ffn_down.scale",
            "blk.1.attn_sub_norm.weight",
            "blk.1.attn_norm.bias",
            "blk.77.attn_norm.weight",
            "rope_factors_long.weight",
            "rope_freqs.weight",
            "cls.weight",
        ] {
            if plain.tensors.contains_key(stray) {
                continue;
            }
            // Llama alone has divisors of its rotary frequencies, whose number is checked.
            let refused = Gguf::read(&family).add(stray, ones(3)).load();
            let error = refused.err().unwrap_or_else(|| panic!("{family}: {stray} is taken"));
            assert!(error.contains(stray) || error.contains("rotary divisors"), "{family}: {stray}: {error}");
        }
        for name in plain.tensors.keys() {
            let mut changed = Gguf::read(&family);
            changed.tensors.remove(name);
            // A file without its head is tied, and one without divisors has none: both are what llama.cpp makes of it. Without the biases
            // or the router of the first block the other blocks' are left over.
            match changed.load() {
                Ok(_) => {
                    assert!(["output.weight", "rope_freqs.weight"].contains(&name.as_str()), "{family}: {name} is not missed")
                }
                Err(error) => {
                    let named = ["blk.", ".experts.", name.as_str()].iter().any(|part| error.contains(part));
                    assert!(named, "{family}: {name}: {error}");
                }
            }
        }
    }
}

#[test]
fn rotary_settings_of_gguf_count_as_in_llama_cpp() {
    use GgufValue::{F32, String as Text};
    let family = "qwen3";
    let key = |name: &str| format!("{family}.rope.{name}");
    let plain = Gguf::read(family).load().unwrap();
    let with = |settings: &[(&str, GgufValue)]| {
        let set = |file: Gguf, (name, value): &(&str, GgufValue)| file.set(&key(name), value.clone());
        settings.iter().fold(Gguf::read(family), set).load()
    };
    let linear = with(&[("scaling.type", Text("linear".to_owned())), ("scaling.factor", F32(4.0))]).unwrap();
    assert_ne!(linear, plain);
    // A factor without a type is linear; `none` switches it off; 0 stands for none; old files call it otherwise.
    assert_eq!(with(&[("scaling.factor", F32(4.0))]).unwrap(), linear);
    assert_eq!(with(&[("scale_linear", F32(4.0))]).unwrap(), linear);
    assert_eq!(with(&[("scaling.factor", F32(4.0)), ("scale_linear", F32(2.0))]).unwrap(), linear);
    assert_eq!(with(&[("scaling.type", Text("none".to_owned())), ("scaling.factor", F32(4.0))]).unwrap(), plain);
    assert_eq!(with(&[("scaling.factor", F32(0.0))]).unwrap(), plain);
    let error = with(&[("scaling.attn_factor", F32(1.5))]).unwrap_err();
    assert!(error.contains("rope.scaling.attn_factor"), "{error}");
    for (name, value) in [("scaling.yarn_log_multiplier", F32(0.1)), ("scaling.type", Text("longrope".to_owned()))] {
        let error = with(&[(name, value)]).unwrap_err();
        assert!(error.contains(name) || error.contains("longrope"), "{error}");
    }
    // Divisors and factor: a divisor of 4 everywhere, or of 2 beside a factor of 2, is a factor of 4.
    let llama = |divisor: f64, factor: Option<f32>| {
        let file = Gguf::read("llama");
        let n = file.tensors["rope_freqs.weight"].shape().elem_count();
        let file = file.add("rope_freqs.weight", (ones(n) * divisor).unwrap());
        let file = factor.into_iter().fold(file, |file, factor| file.set("llama.rope.scaling.factor", F32(factor)));
        file.load().unwrap()
    };
    assert_eq!(llama(4.0, None), llama(2.0, Some(2.0)));
    assert_ne!(llama(2.0, None), llama(2.0, Some(2.0)));
}
