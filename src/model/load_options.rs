//! Options for loading a model: number format, kernels, device.

use super::placement::Placement;
use crate::kernels::{Dtype, Kernels};

/// How a model is held and where it runs.
#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    /// The number format in which matrices are stored and multiplied.
    pub dtype: Dtype,
    /// Which implementation of the operations to use.
    pub kernels: Kernels,
    /// Where to run. NVIDIA GPUs have their own kernels; Metal runs the reference kernels.
    pub device: Placement,
}

/// What a model is loaded for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Purpose {
    /// To score existing tokens.
    Read,
    /// To generate answers. In f32 on the CPU, matrices of a GGUF file stay in its 8- and 4-bit blocks if `kernels/quantized` supports
    /// these: the results are equal up to the rounding of sums, and a token reads a sixth to a third of the memory.
    Write,
    /// To do both in turn: weights are read as for [`Purpose::Read`], and an answer has to fit beside the model.
    Both,
}
