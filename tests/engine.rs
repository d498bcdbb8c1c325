//! Tests the engine through the library: packing must not affect the scores, and candle-transformers must agree.

use std::path::Path;

use candle_core::quantized::gguf_file;
use candle_core::{Device, Tensor};
use candle_transformers::models::quantized_llama::ModelWeights;
use diagnose::engine::{FIRST_BUDGET, TOKEN_BUDGET, Work, pack, score, score_watched};
use diagnose::kernels::cuda;
use diagnose::kernels::statistics::statistics_of_logits;
use diagnose::kernels::{Dtype, Kernels, TokenStatistics};
use diagnose::model::{LoadOptions, Model, Placement, Reference};
use diagnose::tokens::{Sequence, Span};

use crate::tiny_model;

fn load(path: &Path, kernels: Kernels, dtype: Dtype) -> Model {
    let reference = Reference::local(path).unwrap();
    let device = if kernels == Kernels::Cuda { Placement::Cuda } else { Placement::Cpu };
    Model::load(&reference, LoadOptions { dtype, kernels, device }, 4096).unwrap()
}

fn sequence(row: u32, ids: Vec<u32>, supervised_from: usize) -> Sequence {
    let supervised = (0..ids.len()).map(|t| t >= supervised_from).collect();
    Sequence { row, spans: vec![Span::default(); ids.len()], supervised, ids }
}

/// Deterministic noise below `below`.
fn ids(seed: u32, n: usize, below: u32) -> Vec<u32> {
    let mut state = seed.wrapping_mul(2_654_435_761) | 1;
    let next = || {
        state ^= state << 13;
        state ^= state >> 17;
        state ^= state << 5;
        state % below
    };
    std::iter::repeat_with(next).take(n).collect()
}

/// Questions with four answers each: a long context in common, an instruction in common to all.
fn questions(n: u32, context: usize, answer: usize, vocabulary: u32) -> Vec<Sequence> {
    let instruction = ids(999, 40, vocabulary);
    let question = |q: u32| {
        let context = [instruction.clone(), ids(q, context, vocabulary)].concat();
        let choice = move |c: u32| {
            let ids = [context.clone(), ids(1000 + 4 * q + c, answer, vocabulary)].concat();
            sequence(4 * q + c, ids, context.len())
        };
        (0..4).map(choice).collect::<Vec<_>>()
    };
    (0..n).flat_map(question).collect()
}

fn alone(model: &Model, sequences: &[Sequence]) -> Vec<Vec<TokenStatistics>> {
    let one = |sequence: &Sequence| score(model, std::slice::from_ref(sequence)).unwrap().remove(0);
    sequences.iter().map(one).collect()
}

#[test]
fn a_shared_prefix_changes_no_score() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model::write(folder.path());
    let on_cpu = [
        (Kernels::Reference, Dtype::F32),
        (Kernels::Fused, Dtype::F32),
        (Kernels::Fused, Dtype::Bf16),
        (Kernels::Fused, Dtype::Bf16x3),
    ];
    let on_cuda = cuda::Device::get().is_ok().then_some((Kernels::Cuda, Dtype::F32));
    for (kernels, dtype) in on_cpu.into_iter().chain(on_cuda) {
        let model = load(&path, kernels, dtype);
        // Short contexts and one longer than a tile of attention's keys, each in common to four.
        let sequences = [questions(5, 60, 7, 250), questions(1, 300, 7, 250)].concat();
        let mut work = Work::default();
        let together = score_watched(&model, &sequences, &mut work, &mut |_| {}).unwrap();
        // 40 + 5 x 60 + 300 in common (but question 0 begins like the long one), and 6 tokens of each of 24 answers: the last
        // predicts nothing.
        assert_eq!(work.computed_tokens, 40 + 5 * 60 + 240 + 24 * 6);
        for (together, alone) in together.iter().flatten().zip(alone(&model, &sequences).iter().flatten()) {
            match kernels {
                // Equal to the last bit, whatever else is in the batch.
                Kernels::Fused => assert_eq!(together, alone),
                // f32 sums over the keys, split at other places.
                Kernels::Reference | Kernels::Cuda => {
                    assert!((together.logprob - alone.logprob).abs() <= 1e-5, "{together:?} {alone:?}");
                    assert!((together.entropy - alone.entropy).abs() <= 1e-5, "{together:?} {alone:?}");
                }
            }
        }
    }
}

#[test]
fn the_first_batch_is_small_unless_that_costs_much() {
    let tokens = |sequences: &[Sequence]| -> Vec<usize> {
        pack(sequences, TOKEN_BUDGET, FIRST_BUDGET).iter().map(|p| p.batch.ids.len()).collect()
    };
    let apart: Vec<Sequence> = (0..40).map(|row| sequence(row, ids(row + 1, 100, 250), 50)).collect();
    let batches = tokens(&apart);
    assert!(batches[0] < 400 && batches[1..].iter().all(|&n| n > 1500), "{batches:?}");
    let system = ids(1, 150, 250);
    let alike: Vec<Sequence> = (0..20).map(|row| sequence(row, [system.clone(), ids(row + 2, 50, 250)].concat(), 180)).collect();
    assert_eq!(tokens(&alike), [150 + 20 * 49]);
}

#[test]
fn candle_transformers_gives_the_same_distributions() {
    let folder = tempfile::tempdir().unwrap();
    let path = tiny_model::write(folder.path());
    let text = ids(7, 40, 250);
    let sequence = sequence(0, text.clone(), 1);
    let ours = score(&load(&path, Kernels::Fused, Dtype::F32), &[sequence]).unwrap();

    // Their model gives the last position only: once for every prefix.
    for (t, ours) in ours[0].iter().enumerate() {
        // A fresh one each time, for it keeps a cache.
        let mut file = std::fs::File::open(&path).unwrap();
        let content = gguf_file::Content::read(&mut file).unwrap();
        let mut theirs = ModelWeights::from_gguf(content, &mut file, &Device::Cpu).unwrap();
        let input = Tensor::new(&text[..=t], &Device::Cpu).unwrap().unsqueeze(0).unwrap();
        let logits = theirs.forward(&input, 0).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
        let expected = statistics_of_logits(&logits, text[t + 1], 20);
        // f32 on both sides, sums in another order.
        for (name, ours, expected) in [
            ("logprob", ours.logprob, expected.logprob),
            ("entropy", ours.entropy, expected.entropy),
            ("entropy_topk", ours.entropy_topk, expected.entropy_topk),
            ("tail", ours.tail, expected.tail),
            ("grad", ours.grad, expected.grad),
            ("varentropy", ours.varentropy, expected.varentropy),
            ("top_logprob", ours.top_logprob, expected.top_logprob),
        ] {
            assert!((ours - expected).abs() <= 1e-4, "token {t}, {name}: {ours}, candle-transformers {expected}");
        }
        assert_eq!((ours.rank, ours.top_id), (expected.rank, expected.top_id), "token {t}");
    }
}
