//! The format in which attention multiplies: f32, or bf16 pairs if the processor has instructions for those.
//!
//! | arithmetic | where | scores | the other products | query rows of a strip |
//! |---|---|---|---|---:|
//! | `Floats` | every level, and all precisions except those below | f32 | f32 | 6 |
//! | `Dots` | bf16 at `avx512bf16` | f32 | bf16 | 12 |
//! | `OfTiles` | bf16 at `amx` | bf16x3 | bf16 | 16 |
//!
//! Scores become exponents: with queries and keys in bf16, ln p was an eighth further from that in f32 (SmolLM2-135M, 3,419
//! tokens); with only the weights `exp(score - maximum)` and the values in bf16, it is as close as before. So only those are rounded, and the
//! factors of the backward pass; sums and softmax stay in f32.

use super::arithmetic::AttentionKernel;
use super::floats;
#[cfg(target_arch = "x86_64")]
use super::{dots, tiles};
use crate::kernels::Dtype;
use crate::kernels::level::Level;

/// The format of the factors of attention's products, and the instructions that multiply them.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Factors {
    F32,
    #[cfg(target_arch = "x86_64")]
    Dots,
    #[cfg(target_arch = "x86_64")]
    Tiles,
}

impl Factors {
    /// The format for a model in `dtype` at a level.
    pub(super) fn of(level: Level, dtype: Dtype) -> Factors {
        match (level, dtype) {
            #[cfg(target_arch = "x86_64")]
            (Level::Avx512Bf16, Dtype::Bf16) => Factors::Dots,
            #[cfg(target_arch = "x86_64")]
            (Level::Amx, Dtype::Bf16) => Factors::Tiles,
            _ => Factors::F32,
        }
    }

    /// The number of factors in a word, except for keys packed by column.
    pub(super) fn per_word(self) -> usize {
        match self {
            Factors::F32 => 1,
            #[cfg(target_arch = "x86_64")]
            Factors::Dots | Factors::Tiles => 2,
        }
    }

    /// The query rows of a strip.
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
