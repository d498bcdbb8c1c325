//! Low-rank adapters under training: `y = x W^T + (alpha / r) (x A^T) B^T` with `W` frozen (Hu et al. 2021, arXiv 2106.09685).
//!
//! As in PEFT's `tuners/lora/layer.py`, `A [r, in]` is initialised uniformly in `+-1 / sqrt(in)` (its
//! `kaiming_uniform_(a = sqrt(5))`) and `B [out, r]` with zeros. Modules that read the same input form one product: their `A`s are
//! stacked, their `B`s are the blocks of a block-diagonal matrix. They share one dropout mask, where PEFT draws one for each.
//!
//! adapter.rs applies finished adapters; this file trains them.

use std::sync::Arc;

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::parameters::{Parameter, Part};
use crate::error::{Error, Result};
use crate::kernels::cpu::sum;
use crate::kernels::matmul::{Matrix, Trained};
use crate::kernels::{Dtype, Kernels};
use crate::random::uniform;

/// The options of adapters.
#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    /// The rows of `A` and columns of `B`.
    pub rank: usize,
    /// The update is `alpha / rank * B A`.
    pub alpha: f64,
    /// The share of an adapter's inputs that is dropped during training.
    pub dropout: f32,
    /// The last parts of the names of the modules to adapt, such as `q_proj`; empty for every linear module of the blocks.
    pub targets: Vec<String>,
}

impl LoraOptions {
    /// The factor of `B A`.
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// How the adapters under training take part in a pass; irrelevant for a model without adapters.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub enum Adapters {
    /// The base model alone.
    Off,
    #[default]
    On,
    /// On, with a share `rate` of their inputs dropped. `key` determines the masks, so that a pass can be repeated.
    Dropout { key: u64, rate: f32 },
}

impl Adapters {
    /// On, with dropout if `rate` is above 0.
    pub fn with_dropout(key: u64, rate: f32) -> Adapters {
        if rate > 0.0 { Adapters::Dropout { key: key.max(1), rate } } else { Adapters::On }
    }
}

/// The adapter of the modules that one product computes.
#[derive(Debug)]
pub(super) struct Lora {
    /// `[modules * r, in]`
    a: Matrix,
    /// `[out, modules * r]`
    b: Matrix,
    scale: f64,
    /// Distinguishes this adapter's dropout from the others'.
    number: u64,
}

impl Lora {
    /// Creates the adapter of those `modules` (name and outputs, stacked) that `options` target; `None` if they target none of
    /// them.
    pub(super) fn new(
        modules: &[(String, usize)],
        inputs: usize,
        options: &LoraOptions,
        dtype: Dtype,
        seed: u64,
        parameters: &mut Vec<Parameter>,
    ) -> Result<Option<Lora>> {
        let last = |name: &str| name.rsplit('.').next().unwrap_or(name).to_owned();
        let is_target = |name: &str| options.targets.is_empty() || options.targets.contains(&last(name));
        let n_targets = modules.iter().filter(|(name, _)| is_target(name)).count();
        if n_targets == 0 {
            return Ok(None);
        }
        let rank = options.rank;
        let adapter = |name: &str, ab: &str| format!("base_model.model.{name}.lora_{ab}.weight");
        let (mut a_parts, mut b_parts, mut blocks) = (Vec::new(), Vec::new(), Vec::new());
        let mut output = 0;
        for (name, outputs) in modules {
            let ranks = a_parts.len() * rank..(a_parts.len() + 1) * rank;
            if is_target(name) {
                a_parts.push(Part::rows(adapter(name, "A"), ranks.clone(), inputs));
                b_parts.push(Part::block(adapter(name, "B"), output..output + outputs, ranks));
                blocks.push((*outputs, rank, vec![0.0; outputs * rank]));
            } else {
                blocks.push((*outputs, 0, Vec::new()));
            }
            output += outputs;
        }
        let number = parameters.len() as u64 + 1;
        let bound = 1.0 / (inputs as f32).sqrt();
        let noise = |i: usize| (2.0 * uniform(seed ^ number.rotate_left(32), i as u64) - 1.0) * bound;
        let values: Vec<f32> = (0..n_targets * rank * inputs).map(noise).collect();
        let values = Tensor::from_vec(values, (n_targets * rank, inputs), &Device::Cpu)?;
        let mut a = Matrix::new([Ok(values)], Dtype::F32, Kernels::Fused)?;
        parameters.push(Parameter::matrix(a.train(dtype)?, a_parts));
        let b = Matrix::from_trained(Arc::new(Trained::block_diagonal(&blocks, dtype)));
        parameters.push(Parameter::matrix(b.trained().cloned().ok_or_else(|| Error::new("not trained"))?, b_parts));
        Ok(Some(Lora { a, b, scale: options.scale(), number }))
    }

    /// `y + scale (x A^T) B^T`
    pub(super) fn forward_add(&self, x: &Tensor, y: Tensor, adapters: Adapters) -> Result<Tensor> {
        if adapters == Adapters::Off {
            return Ok(y);
        }
        let low = match self.mask(x, adapters)? {
            Some(mask) => self.a.forward(&(x * mask)?)?,
            None => self.a.forward(x)?,
        };
        let low = (low * self.scale)?;
        self.b.forward_add(&low, &y)
    }

    /// Adds to the gradients of `A` and `B`, and of `base` if it is trained; returns the gradient of `x`.
    pub(super) fn backward(&self, base: &Matrix, x: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        if adapters == Adapters::Off {
            return base.backward(x, dy);
        }
        let mask = self.mask(x, adapters)?;
        let dropped = match &mask {
            Some(mask) => (x * mask)?,
            None => x.clone(),
        };
        let low = (self.a.forward(&dropped)? * self.scale)?;
        let d_low = (self.b.backward(&low, dy)? * self.scale)?;
        match mask {
            None => {
                self.a.add_gradient(x, &d_low)?;
                base.backward_beside(x, dy, Some((&self.a, &d_low)))
            }
            Some(mask) => Ok(sum(&base.backward(x, dy)?, &(self.a.backward(&dropped, &d_low)? * mask)?)?),
        }
    }

    /// The dropout mask: 0 with the probability `rate`, otherwise `1 / (1 - rate)`. Equal keys give equal masks, so that a pass
    /// can be repeated.
    fn mask(&self, x: &Tensor, adapters: Adapters) -> Result<Option<Tensor>> {
        let Adapters::Dropout { key, rate } = adapters else { return Ok(None) };
        let key = key ^ self.number.rotate_left(40);
        let mut mask = vec![0.0; x.elem_count()];
        const BLOCK: usize = 1 << 12;
        mask.par_chunks_mut(BLOCK).enumerate().for_each(|(block, mask)| {
            for (i, keep) in mask.iter_mut().enumerate() {
                if uniform(key, (block * BLOCK + i) as u64) >= rate {
                    *keep = 1.0 / (1.0 - rate);
                }
            }
        });
        Ok(Some(Tensor::from_vec(mask, x.shape(), &Device::Cpu)?))
    }
}
