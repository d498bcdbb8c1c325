//! What the products of attention multiply: f32, or pairs of bf16 where the processor has instructions for those.
//!
//! | arithmetic | where | scores | the other products | query rows of a strip |
//! |---|---|---|---|---:|
//! | `Floats` | every level, and all precisions but the next | f32 | f32 | 6 |
//! | `Dots` | bf16 at `avx512bf16` | f32 | bf16 | 12 |
//! | `Tiles` | bf16 at `amx` | bf16x3 | bf16 | 16 |
//!
//! Scores stand in exponents: with bf16 queries and keys ln p was an eighth further from f32's (SmolLM2-135M, 3,419 tokens), with bf16 weights
//! `exp(score - maximum)` and values it is as near as before. So those alone are rounded, and what is multiplied in the backward pass; sums
//! and softmax stay in f32.

use super::arithmetic::AttentionKernel;
use super::floats;
#[cfg(target_arch = "x86_64")]
use super::{dots, tiles};
use crate::kernels::Dtype;
use crate::kernels::level::Level;

/// What the factors of attention's products are, and how they are multiplied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    F32,
    #[cfg(target_arch = "x86_64")]
    Dots,
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Factors {
    /// The factors of a model in `dtype` at a level.
    pub(super) fn of(level: Level, dtype: Dtype) -> Factors {
        match (level, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16, Dtype::Bf16) => Factors::Dots,
            #[cfg(target_arch = "x86_64")]
            (Level::Amx, Dtype::Bf16) => Factors::Tiles,
            _ => Factors::F32,
        }
    }

    /// How many of them a word holds, but in keys by column.
    pub(super) fn per_word(self) -> usize {
        match self {
            Factors::F32 => 1,
            #[cfg(target_arch = "x86_64")]
            Factors::Dots | Factors::Tiles => 2,
        }
    }

    /// Query rows of a strip.
    pub(super) fn strip(self) -> usize {
        match self {
            Factors::F32 => floats::STRIP,
            #[cfg(target_arch = "x86_64")]
            Factors::Dots => dots::STRIP,
            #[cfg(target_arch = "x86_64")]
            Factors::Tiles => tiles::STRIP,
        }
    }

    /// Runs `kernel` with this arithmetic.
    pub(super) fn run<K: AttentionKernel>(self, level: Level, kernel: K) -> K::Output {
        match self {
            Factors::F32 => floats::run(level, kernel),
            #[cfg(target_arch = "x86_64")]
            Factors::Dots => dots::run(kernel),
            #[cfg(target_arch = "x86_64")]
            Factors::Tiles => tiles::run(kernel),
        }
    }
}
