//! Measures the statistics of target tokens with SmolLM2-135M's head, as a share of the peak of multiply-adds in registers.
//! Counts only the operations of the matrix product, so that the cost of the statistics shows as a lower share.

#![allow(clippy::unwrap_used, clippy::expect_used)]

mod of_peak;

use candle_core::{Device, Tensor};
use criterion::{BenchmarkId, Throughput};
use diagnose::kernels::matmul::Matrix;
use diagnose::kernels::statistics::{HeadOptions, head_statistics};
use diagnose::kernels::{Dtype, Kernels};

#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() {
    let (width, vocabulary) = (576, 49152);
    let w = Tensor::randn(0f32, 0.15, (vocabulary, width), &Device::Cpu).unwrap();
    for (dtype, all_kernels) in [(Dtype::F32, &[Kernels::Fused, Kernels::Reference][..]), (Dtype::Bf16, &[Kernels::Fused])] {
        let mut criterion = of_peak::of_flops(dtype);
        for &kernels in all_kernels {
            let matrix = Matrix::new([Ok(w.clone())], dtype, kernels).unwrap();
            for n in [64, 1024] {
                let mut group = criterion.benchmark_group(format!("head, {n} tokens"));
                group.throughput(Throughput::Elements((2 * n * width * vocabulary) as u64)).sample_size(10);
                let hidden = Tensor::randn(0f32, 1.0, (n, width), &Device::Cpu).unwrap();
                let targets: Vec<u32> = (0..n as u32).map(|i| i * 47 % vocabulary as u32).collect();
                group.bench_function(BenchmarkId::new(kernels.to_string(), dtype), |b| {
                    b.iter(|| head_statistics(&hidden, &matrix, &targets, &HeadOptions::default()).unwrap());
                });
            }
        }
        criterion.final_summary();
    }
}
