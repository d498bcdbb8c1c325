//! Tests generated answers against Transformers' greedy ones, and against the scoring pass to the bit, alone and in batches.

use std::collections::HashMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use diagnose::engine::generate::{Answer, Ended, Request, Sampling, Way, generate};
use diagnose::kernels::{Dtype, Kernels, Segment, cuda};
use diagnose::model::{Batch, CacheSize, LoadOptions, Model, PAGE, Placement, Purpose, Reference, Stretch};

use crate::workdir::default_model;
use crate::worst::worst;

fn greedy() -> Way {
    Way { sampling: Sampling::GREEDY, ends: Vec::new(), stops: Vec::new(), at_once: 7 }
}

fn plain() -> Way {
    Way { sampling: Sampling::PLAIN, ..greedy() }
}

fn fixtures() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
    let mut folders: Vec<_> = std::fs::read_dir(root).unwrap().map(|entry| entry.unwrap().path()).collect();
    folders.retain(|path| path.is_dir());
    folders.sort();
    folders
}

fn load(path: &Path, dtype: Dtype) -> Model {
    load_on(Placement::Cpu, path, dtype)
}

fn load_on(device: Placement, path: &Path, dtype: Dtype) -> Model {
    let reference = Reference::local(path).unwrap();
    Model::load(&reference, LoadOptions { dtype, kernels: Kernels::Fused, device }, 128).unwrap()
}

/// The CPU, and a GPU where there is one.
fn devices() -> Vec<Placement> {
    let gpu = cuda::Device::get();
    assert!(gpu.is_ok() || std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "no device: {:?}", gpu.err());
    [Placement::Cpu].into_iter().chain(gpu.is_ok().then_some(Placement::Cuda)).collect()
}

fn answers(model: &Model, requests: &[Request], way: &Way) -> Vec<Answer> {
    let mut answers = vec![None; requests.len()];
    let finished = &mut |request: usize, answer: Answer| {
        assert!(answers[request].replace(answer).is_none(), "answered twice");
        Ok(())
    };
    let written = generate(model, requests, way, finished, &mut |_| {}).unwrap();
    let answers: Vec<Answer> = answers.into_iter().map(Option::unwrap).collect();
    assert_eq!(written.tokens, answers.iter().map(|answer| answer.ids.len() as u64).sum::<u64>());
    answers
}

fn ids(answers: &[Answer]) -> Vec<&[u32]> {
    answers.iter().map(|answer| answer.ids.as_slice()).collect()
}

/// tests/fixtures/families/greedy.py
#[test]
fn greedy_answers_of_every_family_are_those_of_transformers() {
    for device in devices() {
        for folder in fixtures() {
            let text = std::fs::read_to_string(folder.join("greedy.json")).unwrap();
            let mut expected: HashMap<String, Vec<Vec<u32>>> = serde_json::from_str(&text).unwrap();
            let (prompts, expected) = (expected.remove("prompts").unwrap(), expected.remove("answers").unwrap());
            assert!(prompts.len() == 20 && expected.iter().all(|answer| answer.len() == 64));
            let request = |prompt: &Vec<u32>| Request { prompt: prompt.clone(), max_new_tokens: 64, seed: 0 };
            let requests: Vec<Request> = prompts.iter().map(request).collect();
            let gguf = folder.join("model.gguf");
            for path in [Some(folder.clone()), gguf.is_file().then_some(gguf)].into_iter().flatten() {
                let model = load_on(device, &path, Dtype::F32);
                let found = answers(&model, &requests, &Way { at_once: 13, ..greedy() });
                assert_eq!(ids(&found), expected, "{} on {device}", path.display());
            }
        }
    }
}

/// tests/fixtures/families/greedy.py
#[test]
fn penalised_answers_are_those_of_transformers() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    let text = std::fs::read_to_string(folder.join("penalised.json")).unwrap();
    let expected: HashMap<String, Vec<Vec<u32>>> = serde_json::from_str(&text).unwrap();
    let request = |prompt: &Vec<u32>| Request { prompt: prompt.clone(), max_new_tokens: 64, seed: 0 };
    let requests: Vec<Request> = expected["prompts"].iter().map(request).collect();
    for device in devices() {
        let model = load_on(device, &folder, Dtype::F32);
        let of = |repetition_penalty| {
            let sampling = Sampling { repetition_penalty, ..Sampling::GREEDY };
            answers(&model, &requests, &Way { sampling, ..greedy() })
        };
        assert_eq!(ids(&of(Some(1.3))), expected["answers"], "{device}");
        assert_ne!(ids(&of(None)), expected["answers"], "{device}");
    }
}

/// Scores from the cache equal those of the whole sequence to the bit, in every family and precision, wherever it is split.
#[test]
fn cached_hidden_states_are_the_uncached_ones_to_the_bit() {
    for folder in fixtures() {
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Bf16x3] {
            let model = load(&folder, dtype);
            let sequence: Vec<u32> = (0..100).map(|i| (i * 37 + i * i) % 256).collect();
            let rows: Vec<u32> = (0..100).collect();
            let segments: Arc<[Segment]> = vec![Segment { tokens: 0..100, context: Vec::new() }].into();
            let whole = model.hidden(&Batch { ids: sequence.clone(), segments }, &rows).unwrap().to_vec2::<f32>().unwrap();
            let size = CacheSize { pages: 20..=20, sequences: 2, positions: 100, tokens: 48 };
            let mut cache = model.cache(&size).unwrap();
            // Another sequence comes and goes between the pieces, with the first one's first page where pages can be shared.
            let pages: Arc<[usize]> = cache.take(100usize.div_ceil(PAGE)).unwrap().into();
            let n_shared = usize::from(cache.shares_pages());
            let others: Arc<[usize]> = [&pages[..n_shared], &cache.take(4).unwrap()].concat().into();
            let mut done = 0;
            for (n, others_position) in [(30, None), (1, Some(0)), (1, Some(1)), (47, Some(2)), (1, None), (20, Some(3))] {
                let mut ids = sequence[done..done + n].to_vec();
                let mut stretches = vec![Stretch { tokens: 0..n, position: done, pages: pages.clone(), sequence: 0 }];
                if let Some(position) = others_position {
                    ids.push(7);
                    let position = n_shared * PAGE + position;
                    stretches.push(Stretch { tokens: n..n + 1, position, pages: others.clone(), sequence: 1 });
                }
                let rows: Vec<u32> = (0..n as u32).collect();
                let found = model.hidden_onto(&mut cache, &ids, &stretches, &rows).unwrap().to_vec2::<f32>().unwrap();
                assert_eq!(found, whole[done..done + n], "{} {dtype} from {done}", folder.display());
                done += n;
            }
            assert_eq!(done, 100);
        }
    }
}

/// On a GPU sums over keys are cut otherwise where a sequence is kept than where it is read at once: logits in f32 are the same up to 1e-5
/// of the largest, in bf16 those of the median token up to 3e-2 of it on average.
#[test]
fn cached_logits_on_a_gpu_are_the_uncached_ones() {
    if !devices().contains(&Placement::Cuda) {
        return;
    }
    for folder in fixtures() {
        for dtype in [Dtype::F32, Dtype::Bf16] {
            let model = load_on(Placement::Cuda, &folder, dtype);
            let sequence: Vec<u32> = (0..124).map(|i| (i * 37 + i * i) % 256).collect();
            let rows: Vec<u32> = (0..124).collect();
            let segments: Arc<[Segment]> = vec![Segment { tokens: 0..124, context: Vec::new() }].into();
            let whole = model.logits(&Batch { ids: sequence.clone(), segments }, &rows).unwrap().to_vec2::<f32>().unwrap();
            let largest = whole.iter().flatten().fold(0f32, |largest, logit| largest.max(logit.abs()));
            let mut cache = model.cache(&CacheSize { pages: 4..=8, sequences: 2, positions: 124, tokens: 100 }).unwrap();
            let pages: Arc<[usize]> = cache.take(2).unwrap().into();
            // Another sequence begins with the first one's first page, where pages can be shared.
            let n_shared = usize::from(cache.shares_pages());
            let others: Arc<[usize]> = [&pages[..n_shared], &cache.take(1).unwrap()].concat().into();
            let (mut done, mut means) = (0, Vec::new());
            let pieces = [(1, None), (80, None), (1, None), (1, Some(0)), (30, Some(1)), (1, Some(2)), (1, None), (9, None)];
            for (n, other) in pieces {
                let mut ids = sequence[done..done + n].to_vec();
                let mut stretches = vec![Stretch { tokens: 0..n, position: done, pages: pages.clone(), sequence: 0 }];
                let mut expected = vec![&whole[done + n - 1]];
                if let Some(position) = other {
                    let position = n_shared * model.page() + position;
                    ids.push(sequence[position]);
                    stretches.push(Stretch { tokens: n..n + 1, position, pages: others.clone(), sequence: 1 });
                    expected.push(&whole[position]);
                }
                let found = model.next_logits(&mut cache, &ids, &stretches, |logits| Ok(logits.to_vec())).unwrap();
                assert_eq!(found.len(), expected.len() * model.head().out_features());
                for (found, expected) in found.chunks_exact(model.head().out_features()).zip(expected) {
                    let differences: Vec<f32> =
                        found.iter().zip(expected).map(|(found, expected)| (found - expected).abs()).collect();
                    let exact = differences.iter().all(|&difference| difference <= 1e-5 * largest);
                    assert!(exact || dtype == Dtype::Bf16, "{} behind {done}: {:?}", folder.display(), &differences[..9]);
                    means.push(differences.iter().sum::<f32>() / found.len() as f32);
                }
                done += n;
            }
            assert_eq!(done, 124);
            // A median alone would hide this.
            assert!(means.iter().all(|mean| mean.is_finite()), "{} {dtype}: {means:?}", folder.display());
            // Rounding may send a token to other experts.
            means.sort_by(f32::total_cmp);
            let median = means[means.len() / 2];
            assert!(median <= 3e-2 * largest, "{} {dtype}: {median} of {largest}", folder.display());
        }
    }
}

/// What many prompts begin with.
const BEGINNING: [u32; 70] = [7; 70];

/// Prompts of all lengths, some of which share their beginning for pages.
fn requests() -> Vec<Request> {
    let beginning: Vec<u32> = (0..40).map(|i| i * 5 % 256).collect();
    let prompt = |i: u32| -> Vec<u32> {
        let own = (0..1 + i * 3 % 25).map(|j| (i * 31 + j * 7) % 256);
        let shared = if i.is_multiple_of(3) { &beginning[..] } else { &beginning[..(i as usize) % 20] };
        shared.iter().copied().chain(own).collect()
    };
    (0..24).map(|i| Request { prompt: prompt(i / 2), max_new_tokens: 5 + i as usize * 2 % 40, seed: u64::from(i) }).collect()
}

#[test]
fn an_answer_depends_on_nothing_but_its_request() {
    let names = ["llama", "gemma3_text", "qwen3_moe", "phi3", "qwen3_5_text"];
    for (name, device) in names.into_iter().flat_map(|name| devices().into_iter().map(move |device| (name, device))) {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families").join(name);
        for dtype in [Dtype::F32, Dtype::Bf16, Dtype::Bf16x3] {
            if device == Placement::Cuda && dtype == Dtype::Bf16x3 {
                continue;
            }
            let model = load_on(device, &folder, dtype);
            let mut requests = requests();
            if device == Placement::Cuda {
                // Longer than its pages, and fewer, as each step takes as long as one of 64 sequences.
                requests.truncate(10);
                requests.iter_mut().for_each(|request| {
                    request.prompt = [&BEGINNING[..], &request.prompt].concat();
                    request.prompt.truncate(110);
                    request.max_new_tokens = request.max_new_tokens.min(12);
                });
            }
            let together = answers(&model, &requests, &Way { at_once: 16, ..plain() });
            let alone: Vec<Answer> =
                requests.iter().flat_map(|request| answers(&model, std::slice::from_ref(request), &plain())).collect();
            assert_eq!(together, alone, "{name} {dtype} on {device}");
            let mut backwards = requests.clone();
            backwards.reverse();
            let mut found = answers(&model, &backwards, &Way { at_once: 5, ..plain() });
            found.reverse();
            assert_eq!(found, alone, "{name} {dtype} on {device}");
            // Two samples for one prompt differ.
            let n = requests.len();
            assert_ne!(together[n - 2].ids[..5], together[n - 1].ids[..5]);
        }
    }
}

#[test]
fn common_beginnings_are_computed_once() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    for device in devices() {
        let model = load_on(device, &folder, Dtype::F32);
        // Some whole pages and a half, of 16 or of 64 positions.
        let whole = 40 / model.page().min(40);
        let common = (whole * model.page() + model.page() / 2) as u32;
        let request = |last: u32| Request {
            prompt: (0..common).map(|i| i % 99).chain([last]).collect(),
            max_new_tokens: 3,
            seed: u64::from(last),
        };
        let requests: Vec<Request> = (100..110).map(request).collect();
        for at_once in [1, 3, 16] {
            let written = generate(&model, &requests, &Way { at_once, ..plain() }, &mut |_, _| Ok(()), &mut |_| {}).unwrap();
            // For all but the first, even where the earlier answer is finished.
            let expected = (10 * u64::from(common + 1), 9 * (whole * model.page()) as u64);
            assert_eq!((written.prompt_tokens, written.shared_tokens), expected, "{at_once} on {device}");
            assert_eq!(written.tokens, 30);
        }
        // A prompt that is all of another's beginning shares but what comes before its last token.
        let prompt = |n: usize| Request { prompt: vec![5; n], max_new_tokens: 2, seed: 1 };
        let requests = [prompt(model.page()), prompt(model.page() + 1)];
        let written = generate(&model, &requests, &plain(), &mut |_, _| Ok(()), &mut |_| {}).unwrap();
        assert_eq!(written.shared_tokens, 0, "{device}");
    }
}

#[test]
fn answers_end_with_end_tokens_and_stop_strings() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    let model = load(&folder, Dtype::F32);
    let requests = [Request { prompt: vec![65, 66, 67], max_new_tokens: 30, seed: 3 }];
    let free = answers(&model, &requests, &plain()).remove(0);
    assert_eq!((free.ids.len(), free.ended), (30, Ended::Length));
    // The first token that did not stand before.
    let at = (8..30).find(|&i| !free.ids[..i].contains(&free.ids[i])).unwrap();
    let ended = answers(&model, &requests, &Way { ends: vec![999, free.ids[at]], ..plain() }).remove(0);
    assert_eq!((ended.ids.as_slice(), ended.ended), (&free.ids[..=at], Ended::EndToken));
    assert_eq!(
        ended.bytes(&model.tokenizer).len(),
        free.ids[..at].iter().map(|&id| model.tokenizer.bytes(id).len()).sum::<usize>()
    );
    // Every token is a byte here: a stop string of three tokens, of which the last one ends the answer. It is found in bytes, so
    // that its text must be one of ASCII to be asked for.
    let is_ascii = |i: usize| free.ids[i..i + 3].iter().all(|&id| id < 128 && model.tokenizer.bytes(id).len() == 1);
    if let Some(at) = (0..27).find(|&i| is_ascii(i)) {
        let stop =
            String::from_utf8(free.ids[at..at + 3].iter().flat_map(|&id| model.tokenizer.bytes(id)).copied().collect()).unwrap();
        let stopped = answers(&model, &requests, &Way { stops: vec!["not there".to_owned(), stop], ..plain() }).remove(0);
        assert_eq!((stopped.ids.as_slice(), stopped.ended), (&free.ids[..at + 3], Ended::Stop));
    } else {
        panic!("no three characters of ASCII among {:?}: choose another seed", free.ids);
    }
}

/// The default model's matrices are Q4_1 and Q8_0. Twenty prompts of different tokens, 64 tokens each.
#[test]
fn answers_in_the_blocks_of_the_file_are_those_in_f32() {
    let Some(path) = default_model() else { return };
    let reference = Reference::local(&path).unwrap();
    let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Fused, device: Placement::Cpu };
    let plain = Model::load(&reference, options, 256).unwrap();
    let in_blocks = Model::load_for(Purpose::Write, &reference, options, 256).unwrap();
    assert!(3 * in_blocks.head().bytes() < plain.head().bytes());
    let request = |i: u32| {
        let text = format!("<|im_start|>user\nTell me about the number {}.<|im_end|>\n<|im_start|>assistant\n", i * i);
        Request {
            prompt: plain.tokenizer.encode(&text).unwrap().iter().map(|token| token.id).collect(),
            max_new_tokens: 64,
            seed: 0,
        }
    };
    let requests: Vec<Request> = (0..20).map(request).collect();
    let expected = answers(&plain, &requests, &greedy());
    let found = answers(&in_blocks, &requests, &greedy());
    let same = expected.iter().zip(&found).filter(|(a, b)| a == b).count();
    println!("{same} of 20 answers are the same");
    // The log-probabilities of all words behind every token of the answers.
    let mut differences = Vec::new();
    for (request, answer) in requests.iter().zip(&expected) {
        let ids = [request.prompt.as_slice(), &answer.ids].concat();
        let rows: Vec<u32> = (request.prompt.len() as u32 - 1..ids.len() as u32 - 1).collect();
        let [a, b] = [&plain, &in_blocks].map(|model| {
            let segments = vec![Segment { tokens: 0..ids.len(), context: Vec::new() }].into();
            let logits = model.logits(&Batch { ids: ids.clone(), segments }, &rows).unwrap();
            log_softmax(&logits.to_vec2::<f32>().unwrap())
        });
        for (a, b) in a.iter().flatten().zip(b.iter().flatten()) {
            differences.push((a - b).abs());
        }
    }
    let largest = worst(differences);
    println!("log-probabilities differ by {largest:e} at most");
    // As much as f32 on another level does.
    assert!(largest < 1e-3, "{largest}");
    // All are here; on another processor a near tie may fall to the other side.
    assert!(same >= 17, "{same}");
}

/// Rows of logits -> ln p, in f64.
fn log_softmax(rows: &[Vec<f32>]) -> Vec<Vec<f32>> {
    let of_row = |row: &Vec<f32>| {
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
        row.iter().map(|logit| (f64::from(logit - largest) - sum.ln()) as f32).collect()
    };
    rows.iter().map(of_row).collect()
}
