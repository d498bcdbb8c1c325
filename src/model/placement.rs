//! Where a model runs: on the CPU, on an NVIDIA GPU by the kernels of `kernels/cuda`, or on an Apple GPU by the reference kernels
//! (`--device metal --kernels reference`, in a build with the feature `metal`).

use candle_core::Device;

use crate::error::{Error, Result};
use crate::kernels::cuda;
use crate::spelling::named;

/// Where the user wants a model to run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Placement {
    /// The GPU if there is one and the model fits, otherwise the CPU.
    #[default]
    Auto,
    Cpu,
    Cuda,
    Metal,
}

named! { pub Placement, "a place to run": Auto = "auto", Cpu = "cpu", Cuda = "cuda", Metal = "metal" }

impl Placement {
    /// The device of candle's tensors.
    pub(super) fn open(self) -> Result<Device> {
        match self {
            Placement::Auto | Placement::Cpu | Placement::Cuda => Ok(Device::Cpu),
            Placement::Metal => Device::new_metal(0).map_err(|cause| {
                Error::new("cannot use the device `metal`")
                    .caused_by(cause)
                    .cure("Build with `cargo build --release --features metal` on a machine with Metal, or leave out --device.")
            }),
        }
    }

    /// Its name, with the name of the processor if there are several kinds: `cuda (NVIDIA H100 80GB HBM3)`.
    pub fn description(self) -> String {
        match self {
            Placement::Cuda => cuda::Device::get().map_or(self.to_string(), |device| format!("{self} ({})", device.name())),
            _ => self.to_string(),
        }
    }
}
