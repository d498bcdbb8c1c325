//! The operations that candle lacks or does slowly, and all of the crate's `unsafe` code.
//!
//! Every operation has a plain form, which says what it computes, and fused kernels, which compute it fast; tests hold the second against the
//! first in f64. The kernels are written once over lanes of a vector and compiled for each level of instructions; `.cu` files beside them are
//! the same for NVIDIA's GPUs.
//!
//! ```text
//! matmul/         `x W^T`, whatever `W` is held in; quantized/ where it stays in the blocks of a GGUF file
//! attention/      attention over a packed batch, forward and backward, and over what earlier calls have left
//! delta/          the gated delta rule, which stands in attention's place in some layers
//! norm.rs         norms; rotary.rs rotary embeddings; gated.rs the gated product, with activation.rs
//! statistics/     the head: hidden states and targets -> statistics of each token, without a row of logits in memory; its gradient
//! adamw.rs        the update of what learns
//! cuda/           all of it on an NVIDIA GPU
//! cpu.rs          what a custom operation of candle's needs around a kernel; tasks.rs cuts work for the threads
//! lanes.rs        vectors of f32, in which kernels are written; exp.rs `exp` and `tanh` of them; amx.rs registers of tiles
//! level.rs        which instructions are used; choice.rs measures which are fastest here; processor.rs asks the processor for AMX
//! allocator.rs    a setting of the allocator
//! peak.rs         the most that a machine can do, for benchmarks
//! ```

#![allow(unsafe_code)]

pub mod activation;
pub mod adamw;
pub mod allocator;
#[cfg(target_arch = "x86_64")]
mod amx;
pub mod attention;
pub(crate) mod choice;
pub(crate) mod cpu;
pub mod cuda;
pub mod delta;
pub mod exp;
pub mod gated;
pub(crate) mod lanes;
pub mod level;
pub mod matmul;
pub mod norm;
pub mod peak;
#[cfg(target_arch = "x86_64")]
mod processor;
pub(crate) mod quantized;
pub mod rotary;
pub mod statistics;
pub(crate) mod tasks;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
pub(crate) mod worst;

use std::fmt;
use std::ops::Range;
use std::str::FromStr;

use crate::error::{Error, Result};
use crate::spelling::named;

/// Which implementation of the operations runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Kernels {
    /// Plain compositions of tensor operations: slow, readable, on any device.
    Reference,
    /// The fused kernels of this room: on the CPU.
    #[default]
    Fused,
    /// The kernels of `cuda`: on an NVIDIA GPU. They come with the device and have no name to ask for them.
    Cuda,
}

/// What matrices are multiplied in, and a frozen weight is held in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    #[default]
    F32,
    /// Rounds both factors of every product with a weight to bfloat16 and adds in f32; of attention's products see `attention/factors.rs`.
    Bf16,
    /// Each factor as the sum of two bfloat16, and of their four products the three that count, added in f32: some five hundred times closer
    /// to f32 than `Bf16`, for three times its work. Of a factor 16 bits are kept, of its 24; denormal parts count as zero where the
    /// processor's bf16 instructions say so, and a sum within a hundredth of f32's largest number may overflow, to infinity or NaN; factors
    /// that are infinite or NaN give what they give in f32.
    Bf16x3,
}

named! { pub Dtype, "a number format": F32 = "f32", Bf16 = "bf16", Bf16x3 = "bf16x3" }

impl Dtype {
    /// The bytes of one number in memory.
    pub fn size_in_bytes(self) -> u64 {
        match self {
            Dtype::F32 | Dtype::Bf16x3 => 4,
            Dtype::Bf16 => 2,
        }
    }

    /// What the factors are stored in where each is one number: on a GPU.
    pub(crate) fn stored(self) -> Result<Stored> {
        match self {
            Dtype::F32 => Ok(Stored::F32),
            Dtype::Bf16 => Ok(Stored::Bf16),
            Dtype::Bf16x3 => {
                Err(Error::new("bf16x3 products run on the CPU only").cure("Give --device cpu, or --dtype f32 or bf16."))
            }
        }
    }
}

/// What numbers are stored in, in a file or on a GPU.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Stored {
    F32,
    Bf16,
}

named! { pub Stored, "a number format": F32 = "f32", Bf16 = "bf16" }

impl Stored {
    /// The bytes of one number.
    pub fn size_in_bytes(self) -> u64 {
        match self {
            Stored::F32 => 4,
            Stored::Bf16 => 2,
        }
    }
}

/// One run of tokens of a packed batch `[T, D]` and what it may attend to.
///
/// A token at `tokens.start + i` sees every token of `context` and the tokens `tokens.start ..= tokens.start + i`.
/// Sequences with a common prefix share it: the prefix is a segment of its own, and stands in the `context` of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the batch; the segments of a batch tile `0..T` in order.
    pub tokens: Range<usize>,
    /// Earlier rows of the batch that come before this segment in its sequence, first to last; the position of the segment's
    /// first token is the sum of their lengths.
    pub context: Vec<Range<usize>>,
}

/// What the model believed about one target token. Natural logarithms; sums over the whole vocabulary `V`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenStatistics {
    /// ln p(target)
    pub logprob: f32,
    /// -sum p ln p, nats; 0 ln 0 = 0
    pub entropy: f32,
    /// Entropy of the softmax over the K largest logits, divided by ln K: the EAFT gate (arXiv 2601.02151), K = 20 by default.
    pub entropy_topk: f32,
    /// 1 + number of tokens with a larger logit; of equal ones only `top_id` says which comes first
    pub rank: u32,
    /// Probability mass of all tokens no more probable than the target (ties and the target included)
    pub tail: f32,
    /// Variance of -ln p under the model: sum p (ln p)^2 - H^2
    pub varentropy: f32,
    /// L2 norm of the gradient of -ln p(target) with respect to the logits: sqrt(1 - 2 p + sum p^2)
    pub grad: f32,
    /// The model's first choice; the lowest id among ties
    pub top_id: u32,
    /// ln p of that choice, nats.
    pub top_logprob: f32,
    /// The model's second to fifth choice, the lowest ids first among ties; fewer where fewer largest logits were asked for.
    pub next: [Choice; NEXT_CHOICES],
}

/// How many choices after the first are kept.
pub const NEXT_CHOICES: usize = 4;

/// A token that the model might have written.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The id of the token.
    pub id: u32,
    /// ln p; -inf where there is no such choice.
    pub logprob: f32,
}

impl Default for Choice {
    fn default() -> Self {
        Choice { id: 0, logprob: f32::NEG_INFINITY }
    }
}

impl fmt::Display for Kernels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Kernels::Reference => "reference",
            Kernels::Fused => "fused",
            Kernels::Cuda => "cuda",
        })
    }
}

impl FromStr for Kernels {
    type Err = Error;

    fn from_str(name: &str) -> Result<Self> {
        match name {
            "reference" => Ok(Kernels::Reference),
            "fused" => Ok(Kernels::Fused),
            _ => Err(Error::usage(format!("there are no kernels called `{name}`")).cure("Give `reference` or `fused`.")),
        }
    }
}
