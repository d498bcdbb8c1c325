//! Statistics of target tokens with SmolLM2-135M's head. criterion prints tokens per second as elem/s.

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use diagnose::kernels::head::{HeadOptions, head_statistics};
use diagnose::kernels::matmul::Matrix;
use diagnose::kernels::{Dtype, Kernels};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn head(criterion: &mut Criterion) {
    let (width, vocabulary) = (576, 49152);
    let w = Tensor::randn(0f32, 0.15, (vocabulary, width), &Device::Cpu).unwrap();
    for (kernels, dtype) in [(Kernels::Fused, Dtype::F32), (Kernels::Fused, Dtype::Bf16), (Kernels::Reference, Dtype::F32)] {
        let matrix = Matrix::new([Ok(w.clone())], dtype, kernels).unwrap();
        for n in [64, 1024] {
            let mut group = criterion.benchmark_group(format!("head, {n} tokens"));
            group.throughput(Throughput::Elements(n as u64)).sample_size(10);
            let hidden = Tensor::randn(0f32, 1.0, (n, width), &Device::Cpu).unwrap();
            let targets: Vec<u32> = (0..n as u32).map(|i| i * 47 % vocabulary as u32).collect();
            group.bench_function(BenchmarkId::new(kernels.to_string(), dtype), |b| {
                b.iter(|| head_statistics(&hidden, &matrix, &targets, &HeadOptions::default()).unwrap());
            });
        }
    }
}

criterion_group!(benches, head);
criterion_main!(benches);
