//! The operations that candle lacks or computes slowly, and all of the crate's `unsafe` code.
//!
//! Every operation has a reference form, which defines it, and fused kernels, which compute it fast; tests compare the latter with the
//! definition in f64. The kernels are written once over vector lanes and compiled for each instruction set; the `.cu` files next to them are
//! their counterparts for NVIDIA GPUs.
//!
//! ```text
//! matmul/         `x W^T`, for any storage of `W`; quantized/ if it stays in the blocks of a GGUF file
//! attention/      attention over a packed batch, forward and backward, and over a KV cache
//! delta/          the gated delta rule, which replaces attention in some layers
//! norm.rs         norms; rotary.rs rotary embeddings; gated.rs the gated product, with activation.rs
//! statistics/     the head: hidden states and targets -> statistics of each token, without storing a row of logits; its gradient
//! adamw.rs        the optimiser's update
//! cuda/           all of it on an NVIDIA GPU
//! cpu.rs          helpers for custom operations of candle; tasks.rs divides work among threads
//! lanes.rs        vectors of f32, over which kernels are written; exp.rs `exp` and `tanh` of them; amx.rs tile registers
//! level.rs        the instruction set to use; choice.rs measures which is fastest here; processor.rs detects AMX
//! allocator.rs    a setting of the allocator
//! peak.rs         the peak rates of the machine, for benchmarks
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
    /// The fused kernels of this module, on the CPU.
    #[default]
    Fused,
    /// The kernels of `cuda`, on an NVIDIA GPU. They are implied by the device and cannot be requested by name.
    Cuda,
}

/// The format in which matrices are multiplied, and frozen weights stored.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Default)]
pub enum Dtype {
    #[default]
    F32,
    /// Rounds both factors of every product with a weight to bfloat16 and accumulates in f32; for attention's products see
    /// `attention/factors.rs`.
    Bf16,
    /// Each factor is the sum of two bfloat16, and three of their four products, which matter, are accumulated in f32: some five hundred
    /// times closer to f32 than `Bf16`, for three times its work. It keeps 16 of a factor's 24 bits. Denormal parts count as zero if the
    /// processor's bf16 instructions do so, and a sum within a hundredth of f32's largest number may overflow, to infinity or NaN; infinite
    /// and NaN factors give the results of f32.
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

    /// The storage format of the factors on a GPU, where each is a single number.
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

/// The format in which numbers are stored, in a file or on a GPU.
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

/// A run of tokens of a packed batch `[T, D]`, and what it may attend to.
///
/// A token at `tokens.start + i` sees every token of `context` and the tokens `tokens.start ..= tokens.start + i`. Sequences can share a
/// common prefix: the prefix is a separate segment, which is in the `context` of the others.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Segment {
    /// Rows of the batch; the segments of a batch cover `0..T` in order.
    pub tokens: Range<usize>,
    /// Earlier rows of the batch that precede this segment in its sequence, in order; the position of the segment's first token is the sum of
    /// their lengths.
    pub context: Vec<Range<usize>>,
}

/// The model's statistics for one target token. Logarithms are natural; sums are over the whole vocabulary `V`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct TokenStatistics {
    /// ln p(target)
    pub logprob: f32,
    /// -sum p ln p, nats; 0 ln 0 = 0
    pub entropy: f32,
    /// Entropy of the softmax over the K largest logits, divided by ln K: the EAFT gate (arXiv 2601.02151), K = 20 by default.
    pub entropy_topk: f32,
    /// 1 + the number of tokens with a larger logit; ties with the target do not count, so only `top_id` says which of them comes first
    pub rank: u32,
    /// The probability mass of all tokens that are no more probable than the target (including ties and the target)
    pub tail: f32,
    /// The variance of -ln p under the model: sum p (ln p)^2 - H^2
    pub varentropy: f32,
    /// The L2 norm of the gradient of -ln p(target) with respect to the logits: sqrt(1 - 2 p + sum p^2)
    pub grad: f32,
    /// The most probable token; the lowest id among ties
    pub top_id: u32,
    /// ln p of that token, nats.
    pub top_logprob: f32,
    /// The second to fifth most probable tokens, lowest ids first among ties; fewer if fewer largest logits were requested.
    pub next: [Choice; NEXT_CHOICES],
}

/// The number of choices that are kept after the first.
pub const NEXT_CHOICES: usize = 4;

/// A token that the model might have generated.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Choice {
    /// The id of the token.
    pub id: u32,
    /// ln p; -inf if there is no such choice.
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
