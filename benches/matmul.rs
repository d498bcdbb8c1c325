//! Products with SmolLM2-135M's shapes. The throughput criterion prints in Gelem/s is GFLOP/s.

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Criterion, Throughput, criterion_group, criterion_main};
use diagnose::kernels::matmul::Matrix;
use diagnose::kernels::{Dtype, Kernels};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn products(criterion: &mut Criterion) {
    for (t, k, n) in [(2048, 576, 1536), (2048, 576, 960), (2048, 1536, 576), (2048, 576, 49152), (1, 576, 49152)] {
        let mut group = criterion.benchmark_group(format!("[{t} x {k}] x [{k} x {n}]"));
        group.throughput(Throughput::Elements(2 * (t * k * n) as u64));
        let x = Tensor::randn(0f32, 1.0, (t, k), &Device::Cpu).unwrap();
        let w = Tensor::randn(0f32, 0.05, (n, k), &Device::Cpu).unwrap();
        for (kernels, dtype) in [(Kernels::Fused, Dtype::F32), (Kernels::Fused, Dtype::Bf16), (Kernels::Reference, Dtype::F32)] {
            let matrix = Matrix::new([Ok(w.clone())], dtype, kernels).unwrap();
            group.bench_function(BenchmarkId::new(kernels.to_string(), dtype), |b| b.iter(|| matrix.forward(&x).unwrap()));
        }
    }
}

criterion_group!(benches, products);
criterion_main!(benches);
