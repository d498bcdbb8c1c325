//! How to hold and run a model.

use super::placement::Placement;
use crate::kernels::{Dtype, Kernels};

#[derive(Debug, Clone, Copy, Default)]
pub struct LoadOptions {
    pub dtype: Dtype,
    pub kernels: Kernels,
    /// A GPU of NVIDIA's has kernels of its own; Metal runs the reference kernels.
    pub device: Placement,
}
