//! Measures matrix products with SmolLM2-135M's shapes, as a share of the peak of multiply-adds in registers.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod of_peak;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Throughput};
use diagnose::kernels::matmul::Matrix;
use diagnose::kernels::{Dtype, Kernels};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let both = [Kernels::Fused, Kernels::Reference];
    for (dtype, all_kernels) in [(Dtype::F32, &both[..]), (Dtype::Bf16, &both[..1]), (Dtype::Bf16x3, &both[..1])] {
        let mut criterion = of_peak::of_flops(dtype);
        for (t, k, n) in [(2048, 576, 1536), (2048, 576, 960), (2048, 1536, 576), (2048, 576, 49152), (1, 576, 49152)] {
            let mut group = criterion.benchmark_group(format!("[{t} x {k}] x [{k} x {n}]"));
            group.throughput(Throughput::Elements(2 * (t * k * n) as u64));
            let x = Tensor::randn(0f32, 1.0, (t, k), &Device::Cpu).unwrap();
            let w = Tensor::randn(0f32, 0.05, (n, k), &Device::Cpu).unwrap();
            for &kernels in all_kernels {
                let matrix = Matrix::new([Ok(w.clone())], dtype, kernels).unwrap();
                group.bench_function(BenchmarkId::new(kernels.to_string(), dtype), |b| b.iter(|| matrix.forward(&x).unwrap()));
            }
        }
        criterion.final_summary();
    }
}
