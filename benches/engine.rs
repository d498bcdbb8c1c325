//! Measures where the time of scoring goes, and what sharing prefixes saves.
//!
//!     cargo bench --bench engine            # the default model, which must be in the cache
//!     cargo bench --bench engine -- MODEL   # a .gguf file or a Hugging Face folder
//!
//! Scores rows like short chats, then long rows, and compares the total with each kernel run alone on the same shapes as often as
//! the model runs it. The share of the matrix products shows how close scoring is to its lower bound; `rest` is the time outside
//! all kernels. Then scores questions with four answers each over a context of 500 tokens, together and one by one, and prints
//! seconds, ratio and largest difference.

#![allow(clippy::unwrap_used, clippy::expect_used)]

use std::time::Instant;

use candle_core::{DType, Device, Tensor};
use diagnose::engine::{Packed, TOKEN_BUDGET, TOP_K, pack, score};
use diagnose::kernels::attention::{AttentionShape, Heads, attention};
use diagnose::kernels::gated::{Activation, gated};
use diagnose::kernels::level::Level;
use diagnose::kernels::matmul::Matrix;
use diagnose::kernels::norm::rms_norm;
use diagnose::kernels::rotary::{Rotary, RotaryStyle};
use diagnose::kernels::statistics::head_statistics;
use diagnose::kernels::{Dtype, Kernels, allocator, peak};
use diagnose::model::{LoadOptions, Model, Placement, Reference};
use diagnose::tokens::{Sequence, Span};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const CHATS: u32 = 24;
const LONG: [usize; 2] = [2_000, 8_000];
const QUESTIONS: u32 = 6;
const CHOICES: u32 = 4;
const CONTEXT: usize = 500;
const ANSWER: usize = 12;
const REPEATS: usize = 3;

fn main() {
    // The program does this as well.
    allocator::keep_freed_memory();
    let mut arguments = std::env::args_os().skip(1).map(|argument| argument.to_string_lossy().into_owned());
    let model = arguments.find(|argument| !argument.starts_with("--"));
    let reference = Reference::resolve(model.as_deref(), &|_, _, _| {}).expect("no model");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let options = LoadOptions { dtype, kernels: Kernels::Fused, device: Placement::Cpu };
        let longest = LONG[LONG.len() - 1];
        let model = Model::load(&reference, options, longest).expect("the model does not load");
        let vocabulary = model.config.vocab_size as u32;
        breakdown(&model, &pack(&chats(vocabulary), TOKEN_BUDGET, TOKEN_BUDGET), dtype);
        for length in LONG.into_iter().filter(|&length| length <= model.config.max_positions) {
            let row = chat(0, random_ids(vocabulary)(length));
            breakdown(&model, &pack(&[row], TOKEN_BUDGET, TOKEN_BUDGET), dtype);
        }
        let sequences = questions(vocabulary);
        let (mut together_seconds, mut alone_seconds) = (Vec::new(), Vec::new());
        let mut largest = 0f32;
        for _ in 0..REPEATS {
            let began = Instant::now();
            let together = score(&model, &sequences).expect("scoring failed");
            together_seconds.push(began.elapsed().as_secs_f64());
            let began = Instant::now();
            for (sequence, together) in sequences.iter().zip(&together) {
                let one = std::slice::from_ref(sequence);
                let alone = score(&model, one).expect("scoring failed");
                let differences = together.iter().zip(&alone[0]).map(|(a, b)| (a.logprob - b.logprob).abs());
                largest = differences.fold(largest, f32::max);
            }
            alone_seconds.push(began.elapsed().as_secs_f64());
        }
        let (together, alone) = (median(together_seconds), median(alone_seconds));
        println!(
            "{dtype}: shared {together:.2} s, one by one {alone:.2} s: {:.2}x, max |dlogprob| {largest:.1e}",
            alone / together
        );
    }
}

/// Times the model on the batches, and each of its kernels alone on the same shapes.
fn breakdown(model: &Model, batches: &[Packed], dtype: Dtype) {
    let config = &model.config;
    let (layers, width, inner, q_width) =
        (config.layers, config.hidden_size, config.intermediate_size, config.heads * config.head_dim);
    let shape = AttentionShape {
        heads: config.heads,
        kv_heads: config.kv_heads,
        head_dim: config.head_dim,
        scale: 0.125,
        window: None,
        softcap: None,
    };
    let matrix = |outputs: usize, inputs: usize| {
        let w = Tensor::randn(0f32, 0.05, (outputs, inputs), &Device::Cpu).unwrap();
        Matrix::new([Ok(w)], dtype, Kernels::Fused).unwrap()
    };
    let qkv = matrix(shape.columns(), width);
    // The products after attention, which the last layer computes only for the requested rows.
    let others = [matrix(width, q_width), matrix(2 * inner, width), matrix(width, inner)];
    let input = |rows: usize, columns: usize| Tensor::randn(0f32, 1.0, (rows, columns), &Device::Cpu).unwrap();
    let frequencies: Vec<f64> = (0..config.head_dim / 2).map(|i| 1e5f64.powf(-2.0 * i as f64 / config.head_dim as f64)).collect();
    let rotary =
        Rotary::new(&frequencies, batches.iter().map(|packed| packed.batch.ids.len()).max().unwrap(), RotaryStyle::Half, 1.0);
    let ones = Tensor::ones(width, DType::F32, &Device::Cpu).unwrap();

    let (mut whole, mut products, mut attentions, mut norms, mut gates, mut statistics) = (0.0, 0.0, 0.0, 0.0, 0.0, 0.0);
    let (mut tokens, mut targets, mut flop) = (0, 0, 0.0);
    for packed in batches {
        let (t, n) = (packed.batch.ids.len(), packed.rows.len());
        let options = model.head_options(TOP_K);
        let mut hidden = None;
        whole += seconds(|| hidden = Some(model.hidden(&packed.batch, &packed.rows).unwrap()));
        let hidden = hidden.unwrap();
        let head = seconds(|| drop(head_statistics(&hidden, model.head(), &packed.targets, &options).unwrap()));
        whole += head;

        let x = input(t, width);
        let mut body = seconds(|| (0..layers).for_each(|_| drop(qkv.forward(&x).unwrap())));
        for matrix in &others {
            let (all, asked) = (input(t, matrix.in_features()), input(n, matrix.in_features()));
            body += seconds(|| (1..layers).for_each(|_| drop(matrix.forward(&all).unwrap())));
            body += seconds(|| drop(matrix.forward(&asked).unwrap()));
            flop += 2.0 * (matrix.in_features() * matrix.out_features() * ((layers - 1) * t + n)) as f64;
        }
        let pieces: Vec<Tensor> = (0..n).step_by(256).map(|row| hidden.narrow(0, row, 256.min(n - row)).unwrap()).collect();
        let head_product = seconds(|| pieces.iter().for_each(|piece| drop(model.head().forward(piece).unwrap())));
        flop += 2.0 * (layers * t * width * shape.columns() + n * width * config.vocab_size) as f64;
        products += body + head_product;
        statistics += head - head_product;

        let fused = input(t, shape.columns());
        let heads = Heads { shape: &shape, rotary: &rotary, sinks: None, dtype };
        attentions += seconds(|| {
            (0..layers).for_each(|_| drop(attention(&fused, &packed.batch.segments, &heads, Kernels::Fused).unwrap()))
        });
        norms += seconds(|| (0..2 * layers).for_each(|_| drop(rms_norm(&x, &ones, 1e-5, Kernels::Fused).unwrap())));
        let gate_up = input(t, 2 * inner);
        gates += seconds(|| (0..layers).for_each(|_| drop(gated(&gate_up, Activation::Silu, Kernels::Fused).unwrap())));
        (tokens, targets) = (tokens + t, targets + n);
    }
    let rate = flop / products / 1e9;
    println!("{dtype}: {tokens} tokens, {targets} targets in {whole:.2} s: {:.0} tokens/s", tokens as f64 / whole);
    let peak = peak::flops(Level::current(), dtype) / 1e9;
    println!("  products alone at {rate:.0} GFLOP/s ({:.0} % of the registers' {peak:.0})", 100.0 * rate / peak);
    let rest = whole - products - attentions - norms - gates - statistics;
    for (name, part) in [
        ("products", products),
        ("attention", attentions),
        ("norms", norms),
        ("gated activations", gates),
        ("head beyond its product", statistics),
        ("rest", rest),
    ] {
        println!("  {name:<24} {part:6.2} s {:5.1} %", 100.0 * part / whole);
    }
}

/// The minimum of several runs, since disturbances only make a run longer.
fn seconds(mut work: impl FnMut()) -> f64 {
    let run = |_| {
        let began = Instant::now();
        work();
        began.elapsed().as_secs_f64()
    };
    (0..REPEATS).map(run).fold(f64::INFINITY, f64::min)
}

/// Rows of 100 to 300 tokens with a common prefix of 24; the last 60 % are supervised.
fn chats(vocabulary: u32) -> Vec<Sequence> {
    let mut ids = random_ids(vocabulary);
    let system = ids(24);
    (0..CHATS).map(|row| chat(row, [system.clone(), ids(76 + (row as usize * 67) % 200)].concat())).collect()
}

fn chat(row: u32, ids: Vec<u32>) -> Sequence {
    let supervised = (0..ids.len()).map(|t| t >= ids.len() * 2 / 5).collect();
    Sequence { row, supervised, spans: vec![Span::default(); ids.len()], ids }
}

fn random_ids(vocabulary: u32) -> impl FnMut(usize) -> Vec<u32> {
    let mut state = 88_172_645u32;
    move |n| {
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % vocabulary
        };
        std::iter::repeat_with(next).take(n).collect()
    }
}

fn questions(vocabulary: u32) -> Vec<Sequence> {
    let mut ids = random_ids(vocabulary);
    let mut sequences = Vec::new();
    for question in 0..QUESTIONS {
        let context = ids(CONTEXT);
        for choice in 0..CHOICES {
            let ids = [context.clone(), ids(ANSWER)].concat();
            sequences.push(Sequence {
                row: question * CHOICES + choice,
                supervised: (0..ids.len()).map(|t| t >= CONTEXT).collect(),
                spans: vec![Span::default(); ids.len()],
                ids,
            });
        }
    }
    sequences
}

fn median(mut seconds: Vec<f64>) -> f64 {
    seconds.sort_by(f64::total_cmp);
    seconds[seconds.len() / 2]
}
