//! Measures the operations between the matrix products: norms and gated activations as a share of the memory bandwidth, counting
//! each input as read once and each output as written once; and `exp`, in numbers per second on one thread.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod of_peak;

use candle_core::{DType, Device, Tensor, Var};
use criterion::{BenchmarkId, Criterion, Throughput};
use diagnose::kernels::Kernels;
use diagnose::kernels::exp::exp_slice;
use diagnose::kernels::gated::{Activation, gated};
use diagnose::kernels::level::Level;
use diagnose::kernels::norm::{qk_norm, rms_norm};
use of_peak::OfPeak;

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

const TOKENS: usize = 2048;

fn main() {
    let mut criterion = of_peak::of_bandwidth();
    norms(&mut criterion);
    activations(&mut criterion);
    criterion.final_summary();
    exponentials(&mut Criterion::default().configure_from_args());
}

fn random(columns: usize) -> Tensor {
    Tensor::randn(0f32, 1.0, (TOKENS, columns), &Device::Cpu).unwrap()
}

fn norms(criterion: &mut Criterion<OfPeak>) {
    let weight = |n: usize| Tensor::ones(n, DType::F32, &Device::Cpu).unwrap();
    let mut group = criterion.benchmark_group("norm");
    let (x, columns) = (random(576), (16 + 2 * 8) * 128);
    let qkv = random(columns);
    for kernels in [Kernels::Fused, Kernels::Reference] {
        group.throughput(Throughput::Bytes((TOKENS * 576 * 8) as u64));
        group.bench_function(BenchmarkId::new(kernels.to_string(), "576"), |b| {
            let weight = weight(576);
            b.iter(|| rms_norm(&x, &weight, 1e-5, kernels).unwrap());
        });
        group.throughput(Throughput::Bytes((TOKENS * columns * 8) as u64));
        group.bench_function(BenchmarkId::new(kernels.to_string(), "q, k heads of 128"), |b| {
            let weight = weight(128);
            b.iter(|| qk_norm(&qkv, &weight, &weight, 16, 8, 1e-6, kernels).unwrap());
        });
    }
}

fn activations(criterion: &mut Criterion<OfPeak>) {
    let mut group = criterion.benchmark_group("gated");
    let gate_up = Var::from_tensor(&random(2 * 1536)).unwrap();
    for activation in [Activation::Silu, Activation::GeluTanh] {
        for kernels in [Kernels::Fused, Kernels::Reference] {
            group.throughput(Throughput::Bytes((TOKENS * 1536 * 12) as u64));
            let name = |what: &str| BenchmarkId::new(kernels.to_string(), format!("{activation:?}{what}"));
            group.bench_function(name(""), |b| b.iter(|| gated(&gate_up, activation, kernels).unwrap()));
            group.throughput(Throughput::Bytes((TOKENS * 1536 * 32) as u64));
            group.bench_function(name(" with gradient"), |b| {
                b.iter(|| gated(&gate_up, activation, kernels).unwrap().sum_all().unwrap().backward().unwrap())
            });
        }
    }
}

fn exponentials(criterion: &mut Criterion) {
    let mut group = criterion.benchmark_group("exp, one thread");
    let values: Vec<f32> = (0..4096).map(|i| i as f32 * -0.02).collect();
    group.throughput(Throughput::Elements(values.len() as u64));
    for level in Level::available() {
        let mut buffer = values.clone();
        group.bench_function(BenchmarkId::from_parameter(level), |b| {
            b.iter(|| {
                buffer.copy_from_slice(&values);
                exp_slice(level, &mut buffer);
            })
        });
    }
}
