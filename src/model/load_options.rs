//! How to hold and run a model.

use super::device::Placement;
use crate::kernels::{Dtype, Kernels};

#[derive(Debug, Clone, Copy)]
pub struct LoadOptions {
    pub dtype: Dtype,
    pub kernels: Kernels,
    /// Anything but the CPU runs the reference kernels.
    pub device: Placement,
}
