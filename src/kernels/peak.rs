//! Measures the peak rates of this machine, to which benchmarks compare the kernels.
//!
//! These are multiply-adds in registers, without any load or store, and a triad over arrays larger than any cache; both on all
//! threads of the pool at once, taking the best of several tries.

use std::hint::black_box;
use std::time::Instant;

use rayon::prelude::*;

use super::Dtype;
use super::lanes::Lanes;
use super::level::{Kernel, Level};

const TRIES: usize = 7;

/// Floating-point operations per second in products of `dtype` at `level`; a multiply-add counts as two.
pub fn flops(level: Level, dtype: Dtype) -> f64 {
    const STEPS: usize = 2_000_000;
    let run = || match (level, dtype) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Dtype::Bf16 | Dtype::Bf16x3) => bf16_dot::chains(STEPS),
        #[cfg(target_arch = "x86_64")]
        (Level::Amx, Dtype::Bf16 | Dtype::Bf16x3) if super::processor::has_tiles() => super::matmul::amx::chains(STEPS / 16),
        // Without the instruction, bf16 pairs are widened to f32 first.
        _ => level.run(Chains { steps: STEPS }),
    };
    // Three products make up one.
    let products = if dtype == Dtype::Bf16x3 { 3.0 } else { 1.0 };
    best(|| rayon::broadcast(|_| run()).into_iter().sum::<usize>()) / products
}

/// Bytes per second of `a = b + s c`; each of the three arrays counts once.
pub fn bandwidth() -> f64 {
    // 64 MiB each: more than a core's share of the last cache.
    const FLOATS: usize = 16 << 20;
    const CHUNK: usize = 1 << 16;
    let (b, c) = (vec![1f32; FLOATS], vec![2f32; FLOATS]);
    let mut a = vec![0f32; FLOATS];
    best(|| {
        let chunks = a.par_chunks_mut(CHUNK).zip(b.par_chunks(CHUNK).zip(c.par_chunks(CHUNK)));
        chunks.for_each(|(a, (b, c))| a.iter_mut().zip(b.iter().zip(c)).for_each(|(a, (b, c))| *a = b + 3.0 * c));
        black_box(&a);
        3 * FLOATS * size_of::<f32>()
    })
}

/// The highest rate of `work`, which returns the amount of work done, per second.
fn best(mut work: impl FnMut() -> usize) -> f64 {
    let rate = |_| {
        let began = Instant::now();
        work() as f64 / began.elapsed().as_secs_f64()
    };
    (0..TRIES).map(rate).fold(0.0, f64::max)
}

/// The number of independent chains of multiply-adds: enough to hide the latency, few enough for the registers of every level.
const CHAINS: usize = 12;

struct Chains {
    steps: usize,
}

impl Kernel for Chains {
    type Output = usize;

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) -> usize {
        // SAFETY: by contract.
        let (factor, summand) = unsafe { (V::splat(black_box(0.5)), V::splat(black_box(1.0))) };
        // The chains start with different values; otherwise the compiler would keep only one.
        let mut chains = [summand; CHAINS];
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = chain.filled(i as f32);
        }
        for _ in 0..self.steps {
            for chain in &mut chains {
                *chain = chain.mul_add(factor, summand);
            }
        }
        black_box(chains.iter().map(|chain| chain.sum()).sum::<f32>());
        self.steps * CHAINS * V::N * 2
    }
}

#[cfg(target_arch = "x86_64")]
mod bf16_dot {
    use std::arch::x86_64::{__m512bh, __m512i, _mm512_dpbf16_ps, _mm512_reduce_add_ps, _mm512_set1_epi32, _mm512_set1_ps};
    use std::hint::black_box;
    use std::mem::transmute;

    use crate::kernels::level::Level;

    /// Twice as many as for multiply-adds, because on some processors the instruction takes twice as long.
    const CHAINS: usize = 24;

    pub(super) fn chains(steps: usize) -> usize {
        assert!(Level::available().contains(&Level::Avx512Bf16));
        // SAFETY: the assertion shows that the processor has the instructions.
        unsafe { run(steps) }
    }

    #[target_feature(enable = "avx512f,avx512bf16")]
    fn run(steps: usize) -> usize {
        let pair = _mm512_set1_epi32(black_box(0x3f00_3f00));
        // SAFETY: the two types are the same 64 bytes.
        let pair = unsafe { transmute::<__m512i, __m512bh>(pair) };
        let mut chains = [_mm512_set1_ps(0.0); CHAINS];
        for (i, chain) in chains.iter_mut().enumerate() {
            *chain = _mm512_set1_ps(i as f32);
        }
        for _ in 0..steps {
            for chain in &mut chains {
                *chain = _mm512_dpbf16_ps(*chain, pair, pair);
            }
        }
        for chain in chains {
            black_box(_mm512_reduce_add_ps(chain));
        }
        steps * CHAINS * 32 * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_level_has_a_peak_and_longer_vectors_a_higher_one() {
        let rates: Vec<f64> = Level::available().into_iter().map(|level| flops(level, Dtype::F32)).collect();
        assert!(rates.iter().all(|&rate| rate > 1e8), "{rates:?}");
        // Four lanes against eight or sixteen: even a busy machine does not reverse this.
        assert!(rates.len() == 1 || rates[rates.len() - 1] > rates[0], "{rates:?}");
        assert!(Level::available().into_iter().all(|level| flops(level, Dtype::Bf16) > 1e8));
        assert!(bandwidth() > 1e8);
    }
}
