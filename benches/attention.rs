//! Measures attention over packed batches and long sequences, as a share of the peak of multiply-adds in registers. Counts the
//! multiplications and additions of the two matrix products for the keys that each token attends to, not rotary embedding and
//! softmax.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod of_peak;

use std::sync::Arc;

use candle_core::{Device, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput};
use diagnose::kernels::attention::{AttentionShape, Heads, attention};
use diagnose::kernels::rotary::{Rotary, RotaryStyle};
use diagnose::kernels::{Dtype, Kernels, Segment};
use of_peak::OfPeak;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Sequences of one length with SmolLM2-135M's heads (the last case has Qwen 3's), about 2,000 tokens in total, and long
/// sequences. The reference holds a matrix of tokens by tokens and is left out for the long ones.
const CASES: [(usize, usize, (usize, usize, usize)); 7] = [
    (32, 64, (9, 3, 64)),
    (10, 199, (9, 3, 64)),
    (4, 512, (9, 3, 64)),
    (1, 2048, (9, 3, 64)),
    (1, 8192, (9, 3, 64)),
    (1, 16_384, (9, 3, 64)),
    (10, 199, (16, 8, 128)),
];

fn main() {
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let mut criterion = of_peak::of_flops(dtype);
        forward(&mut criterion, dtype);
        backward(&mut criterion, dtype);
        criterion.final_summary();
    }
}

fn forward(criterion: &mut Criterion<OfPeak>, dtype: Dtype) {
    let mut group = criterion.benchmark_group(format!("attention in {dtype}"));
    for (sequences, length, heads) in CASES {
        let case = Case::new(sequences, length, heads);
        group.throughput(Throughput::Elements(case.flop));
        for kernels in case.kernels() {
            let id = BenchmarkId::new(kernels.to_string(), &case.name);
            group.bench_function(id, |b| b.iter(|| case.run(&case.qkv, dtype, *kernels)));
        }
    }
}

/// Forward and backward pass; the backward pass has five matrix products, the forward pass two.
fn backward(criterion: &mut Criterion<OfPeak>, dtype: Dtype) {
    let mut group = criterion.benchmark_group(format!("attention with gradient in {dtype}"));
    for (sequences, length, heads) in [CASES[1], CASES[2], CASES[3], CASES[4], CASES[5]] {
        let case = Case::new(sequences, length, heads);
        let qkv = Var::from_tensor(&case.qkv).unwrap();
        group.throughput(Throughput::Elements(case.flop * 7 / 2));
        for kernels in case.kernels() {
            group.bench_function(BenchmarkId::new(kernels.to_string(), &case.name), |b| {
                b.iter(|| case.run(&qkv, dtype, *kernels).sum_all().unwrap().backward().unwrap())
            });
        }
    }
}

struct Case {
    name: String,
    qkv: Tensor,
    segments: Arc<[Segment]>,
    rotary: Rotary,
    shape: AttentionShape,
    flop: u64,
}

impl Case {
    fn new(sequences: usize, length: usize, (heads, kv_heads, head_dim): (usize, usize, usize)) -> Case {
        let shape =
            AttentionShape { heads, kv_heads, head_dim, scale: 1.0 / (head_dim as f32).sqrt(), window: None, softcap: None };
        let segment = |i| Segment { tokens: i * length..(i + 1) * length, context: vec![] };
        let frequencies: Vec<f64> = (0..head_dim / 2).map(|i| 1e5f64.powf(-2.0 * i as f64 / head_dim as f64)).collect();
        Case {
            name: format!("{sequences} x {length} tokens, {heads} heads of {head_dim} on {kv_heads}"),
            qkv: Tensor::randn(0f32, 1.0, (sequences * length, shape.columns()), &Device::Cpu).unwrap(),
            segments: (0..sequences).map(segment).collect(),
            rotary: Rotary::new(&frequencies, length, RotaryStyle::Half, 1.0),
            shape,
            flop: (sequences * length * (length + 1) / 2 * 4 * heads * head_dim) as u64,
        }
    }

    fn kernels(&self) -> &'static [Kernels] {
        if self.segments[0].tokens.len() > 4096 { &[Kernels::Fused] } else { &[Kernels::Fused, Kernels::Reference] }
    }

    fn run(&self, qkv: &Tensor, dtype: Dtype, kernels: Kernels) -> Tensor {
        let heads = Heads { shape: &self.shape, rotary: &self.rotary, sinks: None, dtype };
        attention(qkv, &self.segments, &heads, kernels).unwrap().read
    }
}
