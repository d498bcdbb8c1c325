//! How to hold and run a model.

use super::placement::Placement;
use crate::kernels::{Dtype, Kernels};

/// How a model is held and where it runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// What matrices are held in and multiplied in.
    pub dtype: Dtype,
    /// Which implementation of the operations runs.
    pub kernels: Kernels,
    /// A GPU of NVIDIA's has kernels of its own; Metal runs the reference kernels.
    pub device: Placement,
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To score tokens that are there.
    Read,
    /// To write answers: in f32 on the CPU, the matrices of a GGUF file stay in its 8- and 4-bit blocks where `kernels/quantized` multiplies
    /// with them, which gives the same numbers up to the rounding of sums, with a sixth to a third of the memory to read for each token.
    Write,
    /// Both in turn: all is read as [`Purpose::Read`] reads it, and an answer has to fit beside the model.
    Both,
}
