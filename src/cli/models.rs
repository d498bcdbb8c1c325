//! Declares the options that name the model, and those that say how this program runs it.

use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, ModelName, Placement};

#[derive(clap::Args)]
pub(super) struct ModelArgs {
    /// A Hugging Face model folder, a .gguf file, a LoRA adapter folder, or a hub id (org/name, org/name@revision, org/name:file.gguf);
    /// SmolLM2-135M-Instruct by default, downloaded once
    #[arg(long, value_name = "REF", aliases = ["model-name-or-path", "model_name_or_path"])]
    model: Option<String>,

    /// For an adapter: its base model, instead of the one named in its config; for example the full-precision version of a quantised base
    #[arg(long, value_name = "REF")]
    base: Option<String>,
}

#[derive(clap::Args)]
pub(super) struct LoadArgs {
    /// Precision of the matrix products: f32, bf16, or bf16x3 (each factor as two bf16: close to f32)
    #[arg(long, default_value = "f32")]
    dtype: Dtype,

    /// Implementation of the operations: fused or reference (simple and slow)
    #[arg(long, default_value = "fused", hide_short_help = true)]
    kernels: Kernels,

    /// Where the model runs: auto (an NVIDIA GPU if there is one that the model fits on, else the CPU), cpu, cuda, or metal (a build with
    /// that feature, and --kernels reference)
    #[arg(long, default_value = "auto", hide_short_help = true)]
    device: Placement,
}

impl ModelArgs {
    pub(super) fn name(self) -> ModelName {
        ModelName { written: self.model, base: self.base }
    }
}

impl LoadArgs {
    pub(super) fn options(&self) -> LoadOptions {
        LoadOptions { dtype: self.dtype, kernels: self.kernels, device: self.device }
    }
}
