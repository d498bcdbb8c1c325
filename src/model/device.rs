//! Decides where a model fits and runs, and puts its tensors on that device.

use candle_core::{Device, Tensor};
use serde_json::Value;

use super::config::Config;
use super::on_cuda::Sizes;
use super::placement::Placement;
use super::step_on_cuda::answer_bytes;
use super::{LoadOptions, Purpose, Source, memory};
use crate::error::{Error, Result};
use crate::kernels::quantized::Blocks;
use crate::kernels::{Kernels, cuda};
use crate::tokens::{ChatTemplate, Tokenizer};

/// The placement that was chosen for a model.
pub(super) struct Placed {
    /// How to hold and run the model; its device is never [`Placement::Auto`].
    pub options: LoadOptions,
    /// Why an available GPU was not used, if the choice was left to the program.
    pub passed_over: Option<String>,
}

/// Decides where a model of `parameters` weights runs and by which kernels; refuses a model that does not fit there. If it is to generate,
/// one answer has to fit, too.
pub(super) fn place(
    options: LoadOptions,
    purpose: Purpose,
    name: &str,
    config: &Config,
    parameters: u64,
    max_tokens: usize,
) -> Result<Placed> {
    let on_device = || -> Result<()> {
        let device = cuda::Device::get()?;
        let (free, _) = device.memory()?;
        let dtype = options.dtype.stored()?;
        let sizes = Sizes::new(config, dtype);
        let batch = sizes.token_budget().max(max_tokens);
        let of_answer = match purpose {
            Purpose::Read => 0,
            Purpose::Write | Purpose::Both => answer_bytes(config, &sizes, max_tokens),
        };
        let beside = sizes.batch_bytes(batch, batch) as u64 + of_answer;
        memory::check_device(name, device.name(), parameters, dtype, beside, free)
    };
    let mut passed_over = None;
    let (device, kernels) = match (options.device, options.kernels) {
        (Placement::Auto, Kernels::Reference) => (Placement::Cpu, Kernels::Reference),
        (Placement::Auto, kernels) => match on_device() {
            Ok(()) => (Placement::Cuda, Kernels::Cuda),
            Err(error) => {
                passed_over = cuda::is_there().then(|| error.reason());
                (Placement::Cpu, kernels)
            }
        },
        (Placement::Cuda, Kernels::Reference) => {
            return Err(
                Error::usage("the reference kernels run on the CPU or on Metal, not on `cuda`").cure("Leave out --kernels.")
            );
        }
        (Placement::Cuda, _) => {
            on_device()?;
            (Placement::Cuda, Kernels::Cuda)
        }
        (Placement::Metal, Kernels::Fused | Kernels::Cuda) => {
            return Err(Error::usage("Metal runs the reference kernels only").cure("Give --kernels reference."));
        }
        placed => placed,
    };
    if device == Placement::Cpu {
        memory::check(name, config, parameters, options.dtype, max_tokens)?;
    }
    Ok(Placed { options: LoadOptions { device, kernels, ..options }, passed_over })
}

/// A source that moves its tensors to a device.
pub(super) struct OnDevice<'a> {
    /// The source of the tensors.
    pub source: &'a dyn Source,
    /// The device that candle puts them on.
    pub device: &'a Device,
    /// Whether matrices may stay in the quantised blocks of their file.
    pub in_blocks: bool,
}

impl Source for OnDevice<'_> {
    fn config(&self) -> Result<Config> {
        self.source.config()
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        self.source.tokenizer()
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        self.source.template(tokenizer)
    }

    fn has(&self, name: &str) -> bool {
        self.source.has(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        Ok(self.source.tensor(name, shape)?.to_device(self.device)?)
    }

    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        Ok(self.source.slice(name, shape, index)?.to_device(self.device)?)
    }

    fn bf16(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Option<Tensor>> {
        let found = self.source.bf16(name, shape, index)?;
        Ok(found.map(|found| found.to_device(self.device)).transpose()?)
    }

    fn blocks(&self, name: &str, shape: [usize; 2]) -> Result<Option<Blocks>> {
        if self.in_blocks { self.source.blocks(name, shape) } else { Ok(None) }
    }

    fn config_json(&self) -> Result<Value> {
        self.source.config_json()
    }

    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        self.source.companions()
    }

    fn parameters(&self) -> u64 {
        self.source.parameters()
    }

    fn check_all_used(&self) -> Result<()> {
        self.source.check_all_used()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_is_named_or_refused() {
        assert_eq!("cpu".parse::<Placement>().unwrap(), Placement::Cpu);
        assert!("tpu".parse::<Placement>().unwrap_err().to_string().contains("`tpu`"));
        #[cfg(not(feature = "metal"))]
        assert!(Placement::Metal.open().unwrap_err().to_string().contains("--features metal"));
    }

    /// Without a GPU, an explicit request fails with an error that names the missing library, and the automatic choice is the CPU.
    #[test]
    fn what_a_gpu_lacks_is_named() {
        let json = serde_json::json!({"model_type": "llama", "hidden_size": 16, "intermediate_size": 32, "num_hidden_layers": 1,
            "num_attention_heads": 2, "vocab_size": 64, "max_position_embeddings": 128, "rms_norm_eps": 1e-5});
        let config = Config::from_json(&json).unwrap();
        let place = |device, kernels| {
            let options = LoadOptions { dtype: crate::kernels::Dtype::F32, kernels, device };
            place(options, Purpose::Both, "tiny", &config, 10_000, 128)
                .map(|placed| (placed.options.device, placed.options.kernels))
        };
        let automatic = place(Placement::Auto, Kernels::Fused).unwrap();
        match cuda::Device::get() {
            Ok(_) => assert_eq!(automatic, (Placement::Cuda, Kernels::Cuda)),
            Err(_) => {
                assert_eq!(automatic, (Placement::Cpu, Kernels::Fused));
                let error = place(Placement::Cuda, Kernels::Fused).unwrap_err().to_string();
                assert!(error.contains("libcuda.so.1") || error.contains("nvcuda") || error.contains("GPU"), "{error}");
            }
        }
        assert_eq!(place(Placement::Auto, Kernels::Reference).unwrap(), (Placement::Cpu, Kernels::Reference));
        assert!(place(Placement::Cuda, Kernels::Reference).is_err());
        assert!(place(Placement::Metal, Kernels::Fused).is_err());
    }
}
