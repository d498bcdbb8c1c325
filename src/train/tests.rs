//! Compares training with PyTorch: gradients of every tensor of every family, losses on fixed logits, ten steps.
//! tests/fixtures/train/make.py generates the fixtures.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::safetensors::load;
use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::adamw::{AdamW, AdamWOptions, gradient_norm};
use super::loss::{Loss, Share, flow_weights};
use super::schedule::{Schedule, Shape};
use super::step::{Base, RowWeight, StepOptions, accumulate};
use crate::diagnosis::gate::{Beside, METHODS, Method, Normaliser, Token};
use crate::diagnosis::population::Population;
use crate::kernels::matmul::Matrix;
use crate::kernels::statistics::{HeadOptions, TokenLoss, head_gradient};
use crate::kernels::{Dtype, Kernels, Stored};
use crate::model::{Adapters, LoadOptions, LoraOptions, Model, Parameter, Placement, Reference};
use crate::tokens::Sequence;

/// The families for which make.py has gradients; `model::families` requires each family to have them.
fn families() -> Vec<String> {
    let files = std::fs::read_dir(fixture("train/gradients")).unwrap();
    let mut names: Vec<String> = files.map(|file| file.unwrap().file_name().to_string_lossy().into_owned()).collect();
    names.sort();
    names.iter().filter_map(|name| Some(name.strip_suffix(".safetensors")?.to_owned())).collect()
}

const ONE: RowWeight = RowWeight { weight: 1.0, intended: false, targets: Vec::new(), earlier: Vec::new() };

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures").join(name)
}

fn tiny(family: &str) -> Model {
    tiny_at(&fixture("families").join(family))
}

fn tiny_at(path: &Path) -> Model {
    let reference = Reference::local(path).unwrap();
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Fused, device: Placement::Cpu };
    Model::load(&reference, options, 32).unwrap()
}

fn numbers(tensor: &Tensor) -> Vec<f32> {
    tensor.to_dtype(DType::F32).unwrap().flatten_all().unwrap().to_vec1().unwrap()
}

fn sequence(ids: Vec<u32>, supervised: Vec<bool>) -> Sequence {
    Sequence { row: 0, spans: Vec::new(), ids, supervised }
}

/// The norm of the difference relative to the norm of the expected values.
fn relative(found: &[f32], expected: &[f32]) -> f64 {
    assert_eq!(found.len(), expected.len());
    let square = |x: f32| f64::from(x) * f64::from(x);
    let difference: f64 = found.iter().zip(expected).map(|(a, b)| square(a - b)).sum();
    (difference / expected.iter().map(|&x| square(x)).sum::<f64>().max(1e-30)).sqrt()
}

fn plain(method: &str, gate: Option<&str>) -> Loss {
    let method: Method = method.parse().unwrap();
    Loss::new(method, method.gate_under(gate, None, None).unwrap(), None, Population::default())
}

fn step_options<'a>(loss: &'a Loss, pack_tokens: usize, activation_bytes: usize) -> StepOptions<'a> {
    StepOptions { loss, pack_tokens, activation_bytes, base: Base::None, dropout: 0.0, dropout_key: 0 }
}

/// All gradients, by their names in the checkpoint.
fn gradients(parameters: &[Parameter]) -> HashMap<String, Vec<f32>> {
    let of = |parameter: &Parameter| -> Vec<(String, Vec<f32>)> {
        let part =
            |part: &crate::model::Part| (part.name.clone(), parameter.gradient(|gradient| parameter.tensor_of(part, gradient)));
        parameter.parts.iter().map(part).collect()
    };
    parameters.iter().flat_map(of).collect()
}

fn clear(parameters: &[Parameter]) {
    for parameter in parameters {
        let blocks = vec![(); parameter.len() / parameter.block_len()];
        parameter.update(blocks, |_, gradient, ()| gradient.fill(0.0)).unwrap();
    }
}

/// Computes the gradients of the fixture's loss, `sum w (-ln p) / N`, for given weights.
fn weighted_gradients(model: &Model, sequences: &[(Vec<u32>, Vec<f32>)], n: usize) -> f64 {
    let mut loss = 0.0;
    for (ids, weights) in sequences {
        let rows: Vec<u32> = (0..ids.len() as u32 - 1).collect();
        let batch = crate::model::Batch {
            segments: vec![crate::kernels::Segment { tokens: 0..ids.len(), context: Vec::new() }].into(),
            ids: ids.clone(),
        };
        let trace = model.trace(batch, &rows, Adapters::On, 0).unwrap();
        let factor = |t: usize, _: &_, _: &_| TokenLoss { cross_entropy: weights[t + 1] / n as f32, ..TokenLoss::default() };
        let head = head_gradient(&trace.hidden, model.head(), &ids[1..], &model.head_options(20), None, &factor).unwrap();
        loss -= head.statistics.iter().zip(&weights[1..]).map(|(s, w)| f64::from(s.logprob * w)).sum::<f64>() / n as f64;
        model.backward(trace, &head.d_hidden).unwrap();
    }
    loss
}

#[test]
fn every_gradient_of_every_family_is_pytorchs() {
    for family in families() {
        let family = family.as_str();
        let expected = load(fixture(&format!("train/gradients/{family}.safetensors")), &Device::Cpu).unwrap();
        let sequences: Vec<(Vec<u32>, Vec<f32>)> = (0..3)
            .map(|i| {
                let ids = expected[&format!("ids.{i}")].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
                (ids, numbers(&expected[&format!("weights.{i}")]))
            })
            .collect();
        let supervised = |i: usize| numbers(&expected[&format!("supervised.{i}")]).iter().sum::<f32>() as usize;
        let n = (0..3).map(supervised).sum();
        let mut model = tiny(family);
        let parameters = model.train(Dtype::F32).unwrap();
        let loss = weighted_gradients(&model, &sequences, n);
        assert!((loss - f64::from(numbers(&expected["loss"])[0])).abs() < 1e-5, "{family}: loss {loss}");
        let found = gradients(&parameters);
        let mut compared = 0;
        for (name, tensor) in expected.iter().filter_map(|(name, tensor)| Some((name.strip_prefix("grad.")?, tensor))) {
            let found = found.get(name).cloned().unwrap_or_else(|| stacked(&found, name, tensor.dims()));
            let error = relative(&found, &numbers(tensor));
            assert!(error < 1e-4, "{family}: {name} is off by {error:e}");
            assert!(found.iter().any(|g| *g != 0.0), "{family}: {name} gets no gradient");
            compared += found.len();
        }
        let trained: usize = parameters.iter().map(Parameter::elements).sum();
        assert_eq!(compared, trained, "{family}: tensors that the fixture does not have");

        // The norm of each gradient must equal the slope of the loss along it, here by a four-point difference with an error in
        // the fifth derivative.
        clear(&parameters);
        weighted_gradients(&model, &sequences, n);
        let mut directions = gradients(&parameters);
        for (parameter, part) in parameters.iter().flat_map(|parameter| parameter.parts.iter().map(move |part| (parameter, part)))
        {
            let direction = directions.remove(&part.name).unwrap();
            let norm = direction.iter().map(|&g| f64::from(g).powi(2)).sum::<f64>().sqrt();
            let values = parameter.values(|values| parameter.tensor_of(part, values)).unwrap();
            let at = |step: f64| {
                let shifted: Vec<f32> = values.iter().zip(&direction).map(|(w, g)| w + (step / norm) as f32 * g).collect();
                parameter.set(&part.name, &shifted).unwrap();
                weighted_gradients(&model, &sequences, n)
            };
            const STEP: f64 = 2e-3;
            let slope = (8.0 * (at(STEP) - at(-STEP)) - (at(2.0 * STEP) - at(-2.0 * STEP))) / (12.0 * STEP);
            parameter.set(&part.name, &values).unwrap();
            // Measured error: at most 2e-3. The loss is rounded to 1e-7, hence the slope to 1e-4.
            assert!((slope - norm).abs() < 5e-3 * norm + 1e-4, "{family}: {} slope {slope}, norm {norm}", part.name);
        }
    }
}

/// PyTorch excludes the row `padding_idx` of `nn.Embedding` from the embedding's gradient, and changes nothing else.
#[test]
fn the_padding_token_is_not_trained_as_an_input() {
    let expected = load(fixture("train/gradients/llama.safetensors"), &Device::Cpu).unwrap();
    let ids: Vec<u32> = expected["ids.0"].to_dtype(DType::U32).unwrap().to_vec1().unwrap();
    let (weights, padding) = (numbers(&expected["weights.0"]), ids[3]);
    let gradients_of = |padding: Value| {
        let folder = tempfile::tempdir().unwrap();
        for file in std::fs::read_dir(fixture("families/llama")).unwrap().map(|file| file.unwrap()) {
            std::fs::copy(file.path(), folder.path().join(file.file_name())).unwrap();
        }
        let path = folder.path().join("config.json");
        let mut config: Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
        assert_eq!(config["tie_word_embeddings"], false);
        config["pad_token_id"] = padding;
        std::fs::write(path, config.to_string()).unwrap();
        let mut model = tiny_at(folder.path());
        let parameters = model.train(Dtype::F32).unwrap();
        weighted_gradients(&model, &[(ids.clone(), weights.clone())], ids.len());
        (gradients(&parameters), model.config.vocab_size, model.config.hidden_size)
    };
    let (whole, vocab_size, width) = gradients_of(Value::Null);
    let negative = i64::from(padding) - vocab_size as i64;
    for id in [Value::from(padding), negative.into()] {
        let (mut found, ..) = gradients_of(id);
        let embedding = found.get_mut("model.embed_tokens.weight").unwrap();
        let row = padding as usize * width..(padding as usize + 1) * width;
        let own = &whole["model.embed_tokens.weight"][row.clone()];
        assert!(embedding[row.clone()].iter().all(|g| *g == 0.0) && own.iter().any(|g| *g != 0.0));
        embedding[row].copy_from_slice(own);
        assert_eq!(found, whole);
    }
}

/// One gradient in Transformers' stacked layout from those of the single experts. gpt-oss, whose experts have biases, stores
/// inputs by outputs, with gates and ups interleaved.
fn stacked(found: &HashMap<String, Vec<f32>>, name: &str, shape: &[usize]) -> Vec<f32> {
    let (module, kind) = name.rsplit_once('.').unwrap();
    if found.contains_key(&format!("{module}.0.down_proj.bias")) {
        let (kind, end) = kind.strip_suffix("_bias").map_or((kind, "weight"), |kind| (kind, "bias"));
        let inputs = if end == "bias" { 1 } else { shape[1] };
        let of_expert = |e: usize| {
            let of = |part: &str| &found[&format!("{module}.{e}.{part}.{end}")];
            let outputs: Vec<&[f32]> = match kind {
                "gate_up_proj" => {
                    of("gate_proj").chunks(inputs).zip(of("up_proj").chunks(inputs)).flat_map(|(gate, up)| [gate, up]).collect()
                }
                _ => of("down_proj").chunks(inputs).collect(),
            };
            (0..inputs).flat_map(|input| outputs.iter().map(|row| row[input]).collect::<Vec<_>>()).collect::<Vec<_>>()
        };
        return (0..shape[0]).flat_map(of_expert).collect();
    }
    let parts: &[&str] = if kind == "gate_up_proj" { &["gate_proj", "up_proj"] } else { &["down_proj"] };
    let of_expert = |e: usize| parts.iter().flat_map(move |part| found[&format!("{module}.{e}.{part}.weight")].clone());
    (0..shape[0]).flat_map(of_expert).collect()
}

fn example_batch() -> Vec<Sequence> {
    // Two sequences with a common prefix, and a different one that appears twice.
    let ids = |seed: u32, n: u32| (0..n).map(move |t| (t * t * 7 + t * seed + 3 * seed) % 250 + 3);
    let prefix: Vec<u32> = ids(5, 10).collect();
    let with = |tail: Vec<u32>| {
        let ids: Vec<u32> = prefix.iter().copied().chain(tail).collect();
        let supervised = (0..ids.len()).map(|t| t >= 8).collect();
        sequence(ids, supervised)
    };
    let other: Vec<u32> = ids(11, 17).collect();
    let other = sequence(other, (0..17).map(|t| t > 0 && t % 3 != 0).collect());
    vec![with(ids(2, 6).collect()), other.clone(), with(ids(3, 9).collect()), other]
}

#[test]
fn packing_accumulation_and_recomputation_change_no_gradient() {
    for family in families() {
        let mut model = tiny(&family);
        let parameters = model.train(Dtype::F32).unwrap();
        let loss = plain("eaft", None);
        let batch = example_batch();
        let row = |weight: f32, intended: bool| RowWeight { weight, intended, targets: Vec::new(), earlier: Vec::new() };
        let last_half = RowWeight { targets: vec![0.5; batch[3].n_targets()], ..row(1.5, false) };
        let weights = [row(1.0, false), row(0.5, true), row(2.0, false), last_half];
        let run = |pack_tokens: usize, activation_bytes: usize| {
            clear(&parameters);
            let result = accumulate(&model, &batch, &weights, &step_options(&loss, pack_tokens, activation_bytes)).unwrap();
            (result.loss, result.tokens, gradients(&parameters))
        };
        let whole = run(10_000, 0);
        // Recomputing or keeping activations gives the same bits.
        assert!(run(10_000, 1 << 30) == whole && run(10_000, 20_000) == whole, "{family}: what is kept changes the result");
        let alone = run(1, 0);
        assert!((alone.0 - whole.0).abs() < 1e-6, "{family}: loss {} and {}", alone.0, whole.0);
        for (name, expected) in &whole.2 {
            // The order of summation over some dozen terms differs.
            let error = relative(&alone.2[name], expected);
            assert!(error < 1e-5, "{family}: {name} is off by {error:e} when nothing is packed");
        }
        // The loss by hand: the mean over all supervised tokens of weight times gate times -ln p, without gate where conflicts
        // are intended; those of the last row count half.
        let supervised = |row: usize| batch[row].n_targets() as f64;
        let n = supervised(0) + supervised(1) + supervised(2) + 0.5 * supervised(3);
        let by_hand: f64 = whole
            .1
            .iter()
            .zip([(1.0, false), (0.5, true), (2.0, false), (0.75, false)])
            .flat_map(|(tokens, weight)| tokens.iter().map(move |t| (t, weight)))
            .map(|(t, (weight, intended))| {
                let gate = if intended { 1.0 } else { t.statistics.entropy_topk };
                f64::from(weight * gate) * -f64::from(t.statistics.logprob)
            })
            .sum();
        assert!((by_hand / n - whole.0).abs() < 1e-6);
    }
}

#[test]
fn eaft_with_exponent_0_is_sft_to_the_bit() {
    let mut model = tiny("llama");
    let parameters = model.train(Dtype::F32).unwrap();
    let batch = example_batch();
    let run = |loss: Loss| {
        clear(&parameters);
        let result = accumulate(&model, &batch, &[ONE; 4], &step_options(&loss, 100, 0)).unwrap();
        (result.loss, gradients(&parameters))
    };
    assert!(run(plain("eaft", Some("eaft:power:0"))) == run(plain("sft", None)));
    assert!(run(plain("eaft", None)).0 != run(plain("sft", None)).0);
}

fn floats(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().map(|x| x.as_f64().unwrap() as f32).collect()
}

fn rows(value: &Value) -> Vec<f32> {
    value.as_array().unwrap().iter().flat_map(floats).collect()
}

#[test]
fn every_loss_is_pytorchs_transcription_of_its_formula() {
    let json: Value = serde_json::from_slice(&std::fs::read(fixture("train/losses.json")).unwrap()).unwrap();
    let lengths: Vec<usize> = json["lengths"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as usize).collect();
    let targets: Vec<u32> = json["targets"].as_array().unwrap().iter().map(|n| n.as_u64().unwrap() as u32).collect();
    let n = targets.len();
    let logits = rows(&json["logits"]);
    let vocabulary = logits.len() / n;
    let tensor = |values: &[f32]| Tensor::from_slice(values, (n, vocabulary), &Device::Cpu).unwrap();
    let identity = Tensor::eye(vocabulary, DType::F32, &Device::Cpu).unwrap();
    let head = Matrix::new([Ok(identity)], Dtype::F32, Kernels::Fused).unwrap();
    let (hidden, reference) = (tensor(&logits), tensor(&rows(&json["reference"])));
    let options = HeadOptions::default();

    let means = |hidden: &Tensor| -> Vec<f64> {
        let found = crate::kernels::statistics::head_statistics(hidden, &head, &targets, &options).unwrap();
        let mut first = 0;
        let mean = |&length: &usize| {
            first += length;
            -found[first - length..first].iter().map(|t| f64::from(t.logprob)).sum::<f64>() / length as f64
        };
        lengths.iter().map(mean).collect()
    };
    let threshold = |name: &str| json["thresholds"][name].as_f64().unwrap() as f32;
    let population = Population::of_thresholds(threshold("entropy_topk"), threshold("logprob"), threshold("entropy"));
    let flow = flow_weights(&means(&reference));
    for (weight, expected) in flow.iter().zip(floats(&json["flow_weights"])) {
        assert!((weight - expected).abs() < 1e-5, "flow {weight} {expected}");
    }

    let statistics_of = |hidden: &Tensor| crate::kernels::statistics::head_statistics(hidden, &head, &targets, &options).unwrap();
    // The reference is the base model before training.
    let earlier: Vec<f32> = statistics_of(&reference).iter().map(|token| token.logprob).collect();
    let mut checked = Vec::new();
    for (name, expected) in json["losses"].as_object().unwrap() {
        let (method, gate, normaliser) = as_typed(name);
        let method: Method = method.parse().unwrap();
        let gate = method.gate_under(gate.as_deref(), normaliser, None).unwrap();
        let loss = Loss::new(method, gate, None, population.clone());
        let of_batch = loss.of_batch(Some(&mut means(&hidden))).unwrap();
        let sample_weight = |t: usize| {
            let ends = lengths.iter().scan(0, |end, length| {
                *end += length;
                Some(*end)
            });
            if method.beside == Beside::RowWeights { flow[ends.filter(|&end| end <= t).count()] } else { 1.0 }
        };
        let token = |t: usize, statistics: &_| Token::new(statistics, Some(earlier[t]));
        let factors = |t: usize, statistics: &_, _: &_| {
            of_batch.factors(&token(t, statistics), Share { weighted: sample_weight(t) / n as f32, whole: 0.0 })
        };
        let with_reference = method.needs_reference().then_some((&reference, &head));
        let found = head_gradient(&hidden, &head, &targets, &options, with_reference, &factors).unwrap();
        let terms = found.statistics.iter().zip(&found.divergences).enumerate();
        let value = |t: usize, statistics, divergence| {
            f64::from(sample_weight(t)) * of_batch.value(&token(t, statistics), divergence, false)
        };
        let value = terms.map(|(t, (s, d))| value(t, s, d)).sum::<f64>() / n as f64;
        let truth = expected["value"].as_f64().unwrap();
        assert!((value - truth).abs() < 1e-5, "{name}: {value} is not {truth}");
        let error = relative(&numbers(&found.d_hidden), &rows(&expected["gradient"]));
        assert!(error < 1e-5, "{name}: the gradient is off by {error:e}");
        checked.push(method.name);
    }
    for method in METHODS {
        assert!(checked.contains(&method.name), "{method} is not in the fixture");
    }
}

/// The method, gate and normaliser for a name in the fixture.
fn as_typed(name: &str) -> (&str, Option<String>, Option<Normaliser>) {
    match name {
        "eaft_llama_factory" => ("eaft", None, Some(Normaliser::Three)),
        "eaft_axolotl" => ("eaft", None, Some(Normaliser::None)),
        "sft_kl_0.5" => ("sft-kl", None, None),
        "asft_0.1" => ("asft", None, None),
        // One loss with two names: `eaft_mask_0.15` and `mask`.
        "eaft_mask_0.15" => ("mask", None, None),
        _ => match name.strip_prefix("eaft_") {
            // eaft_power_2, eaft_sigmoid_30_0.17
            Some(curve) => ("eaft", Some(curve.replacen('_', ":", 1).replace('_', ",")), None),
            None => (name, None, None),
        },
    }
}

#[test]
fn a_mask_is_eaft_with_a_mask() {
    let of = |method: &str, gate: Option<&str>| method.parse::<Method>().unwrap().gate_under(gate, None, None).unwrap();
    assert_eq!(of("mask", None), of("eaft", Some("mask:0.15")));
}

#[test]
fn ten_steps_follow_pytorch() {
    let json: Value = serde_json::from_slice(&std::fs::read(fixture("train/steps.json")).unwrap()).unwrap();
    let settings = &json["settings"];
    let setting = |name: &str| settings[name].as_f64().unwrap();
    let batches: Vec<Vec<Sequence>> = json["batches"].as_array().unwrap().iter().map(read_batch).collect();
    for (name, run) in json["runs"].as_object().unwrap() {
        let family = if name.contains("qwen2") { "qwen2" } else { "llama" };
        let method = if name.contains("eaft") { "eaft" } else { "sft" };
        let mut model = tiny(family);
        let parameters = if name.contains("lora") {
            let options =
                LoraOptions { rank: setting("lora_r") as usize, alpha: setting("lora_alpha"), dropout: 0.0, targets: Vec::new() };
            let parameters = model.adapt(&options, 0).unwrap();
            for (name, a) in load(fixture(&format!("train/lora_{family}.safetensors")), &Device::Cpu).unwrap() {
                let owner = parameters.iter().find(|parameter| parameter.parts.iter().any(|part| part.name == name));
                owner.unwrap_or_else(|| panic!("no {name}")).set(&name, &numbers(&a)).unwrap();
            }
            parameters
        } else {
            model.train(Dtype::F32).unwrap()
        };
        let adamw = AdamWOptions {
            beta1: setting("beta1"),
            beta2: setting("beta2"),
            eps: setting("eps"),
            weight_decay: setting("weight_decay"),
            moments: Stored::F32,
        };
        let mut optimizer = AdamW::new(adamw, &parameters);
        let (warmup, total) = (setting("warm_up_steps") as u64, setting("steps") as u64);
        let schedule = Schedule { shape: Shape::Cosine, peak: setting("lr"), warmup, total };
        let loss = plain(method, None);
        let steps = run["steps"].as_array().unwrap_or_else(|| panic!("{name}: {:?}", run.as_object().unwrap().keys()));
        for (step, (batch, expected)) in batches.iter().zip(steps).enumerate() {
            let result = accumulate(&model, batch, &vec![ONE; batch.len()], &step_options(&loss, 1000, 0)).unwrap();
            let norm = gradient_norm(&parameters);
            let rate = schedule.rate(step as u64);
            let close = |found: f64, key: &str, tolerance: f64| {
                let expected = expected[key].as_f64().unwrap();
                assert!((found - expected).abs() < tolerance, "{name} step {step}: {key} {found}, PyTorch {expected}");
            };
            // The requirement is 1e-3. PyTorch in f64 differs from PyTorch in f32 by 3e-6.
            close(result.loss, "loss", 5e-5);
            close(norm, "gradient_norm", 1e-3 * norm.max(1.0));
            close(rate, "lr", 1e-9);
            optimizer.update(&parameters, rate, (setting("clip") / (norm + 1e-6)).min(1.0) as f32).unwrap();
        }
    }
}

fn read_batch(batch: &Value) -> Vec<Sequence> {
    let read = |entry: &Value| {
        let ids = entry["ids"].as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let is_on = |flag: &Value| flag.as_bool().unwrap_or(flag.as_u64() == Some(1));
        sequence(ids, entry["supervised"].as_array().unwrap().iter().map(is_on).collect())
    };
    batch.as_array().unwrap().iter().map(read).collect()
}
