//! What sharing prefixes brings: questions with four answers each over a context of 500 tokens, scored together and one by one.
//!
//!     cargo bench --bench engine            # the default model, which must be in the cache
//!     cargo bench --bench engine -- MODEL   # a .gguf file or a Hugging Face folder
//!
//! Prints seconds, the ratio, and the largest difference between the two.

use std::time::Instant;

use diagnose::engine::{Work, score};
use diagnose::kernels::{Dtype, Kernels};
use diagnose::model::{LoadOptions, Model, Placement, Reference};
use diagnose::tokens::{Sequence, Span};

const QUESTIONS: u32 = 6;
const CHOICES: u32 = 4;
const CONTEXT: usize = 500;
const ANSWER: usize = 12;
const REPEATS: usize = 3;

fn main() {
    let model = std::env::args().skip(1).find(|argument| !argument.starts_with("--"));
    let reference = Reference::resolve(model.as_deref(), &|_, _, _| {}).expect("no model");
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let options = LoadOptions { dtype, kernels: Kernels::Fused, device: Placement::Cpu };
        let model = Model::load(&reference, options, 1024).expect("the model does not load");
        let sequences = questions(model.config.vocab_size as u32);
        let (mut together_seconds, mut alone_seconds) = (Vec::new(), Vec::new());
        let mut largest = 0f32;
        for _ in 0..REPEATS {
            let began = Instant::now();
            let together = score(&model, &sequences, &mut Work::default(), &mut |_| {}).expect("scoring failed");
            together_seconds.push(began.elapsed().as_secs_f64());
            let began = Instant::now();
            for (sequence, together) in sequences.iter().zip(&together) {
                let one = std::slice::from_ref(sequence);
                let alone = score(&model, one, &mut Work::default(), &mut |_| {}).expect("scoring failed");
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

fn questions(vocabulary: u32) -> Vec<Sequence> {
    let mut state = 88_172_645u32;
    let mut ids = |n: usize| -> Vec<u32> {
        let next = || {
            state ^= state << 13;
            state ^= state >> 17;
            state ^= state << 5;
            state % vocabulary
        };
        std::iter::repeat_with(next).take(n).collect()
    };
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
