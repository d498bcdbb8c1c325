//! Low-rank adapters under training: `y = x W^T + (alpha / r) (x A^T) B^T` with `W` frozen (Hu et al. 2021, arXiv 2106.09685).
//!
//! As in PEFT's `tuners/lora/layer.py`: `A [r, in]` begins uniform in `+-1 / sqrt(in)` (its `kaiming_uniform_(a = sqrt(5))`), `B
//! [out, r]` with zeros. Modules that read the same input are one product: their `A`s stand one below the other, their `B`s on a
//! diagonal. They share one dropout mask, where PEFT draws one for each.
//!
//! adapter.rs applies finished adapters; this file is for those that learn.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

use candle_core::{Device, Tensor};
use rayon::prelude::*;

use super::parameters::{Parameter, Part};
use crate::error::{Error, Result};
use crate::kernels::cpu::sum;
use crate::kernels::matmul::{Matrix, Trained};
use crate::kernels::{Dtype, Kernels};
use crate::random::uniform;

#[derive(Debug, Clone, PartialEq)]
pub struct LoraOptions {
    pub rank: usize,
    pub alpha: f64,
    pub dropout: f32,
    /// Last parts of the names of the modules to adapt, such as `q_proj`; empty for every linear module of the blocks.
    pub targets: Vec<String>,
}

impl LoraOptions {
    pub fn scale(&self) -> f64 {
        self.alpha / self.rank as f64
    }
}

/// Turns all adapters of a model off and on, and their dropout.
#[derive(Debug)]
pub struct AdapterSwitch {
    on: AtomicBool,
    /// What the dropout masks are drawn from; 0 for none.
    dropout_key: AtomicU64,
    dropout: f32,
}

impl AdapterSwitch {
    pub(super) fn new(dropout: f32) -> Arc<AdapterSwitch> {
        Arc::new(AdapterSwitch { on: AtomicBool::new(true), dropout_key: AtomicU64::new(0), dropout })
    }

    /// Runs `work` with the base model alone.
    pub fn without<R>(&self, work: impl FnOnce() -> R) -> R {
        self.on.store(false, Ordering::SeqCst);
        let result = work();
        self.on.store(true, Ordering::SeqCst);
        result
    }

    /// Draws the masks of all passes from now on from `key`; `None` ends dropout.
    pub fn set_dropout(&self, key: Option<u64>) {
        let key = key.filter(|_| self.dropout > 0.0).map_or(0, |key| key.max(1));
        self.dropout_key.store(key, Ordering::SeqCst);
    }
}

/// The adapter of the modules that one product serves.
#[derive(Debug)]
pub(super) struct Lora {
    /// `[modules * r, in]`
    a: Matrix,
    /// `[out, modules * r]`
    b: Matrix,
    scale: f64,
    switch: Arc<AdapterSwitch>,
    /// Tells this adapter's dropout from the others'.
    number: u64,
}

impl Lora {
    /// For those of `modules` (name and outputs, one below the other) that `options` name; `None` if it names none of them.
    pub(super) fn new(
        modules: &[(String, usize)],
        inputs: usize,
        options: &LoraOptions,
        dtype: Dtype,
        seed: u64,
        switch: &Arc<AdapterSwitch>,
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
        Ok(Some(Lora { a, b, scale: options.scale(), switch: switch.clone(), number }))
    }

    /// `y + scale (x A^T) B^T`
    pub(super) fn forward_add(&self, x: &Tensor, y: Tensor) -> Result<Tensor> {
        if !self.switch.on.load(Ordering::SeqCst) {
            return Ok(y);
        }
        let low = match self.mask(x)? {
            Some(mask) => self.a.forward(&(x * mask)?)?,
            None => self.a.forward(x)?,
        };
        let low = (low * self.scale)?;
        self.b.forward_add(&low, &y)
    }

    /// Adds to the gradients of `A` and `B`, and of `base` if it is trained; returns that of `x`.
    pub(super) fn backward(&self, base: &Matrix, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let mask = self.mask(x)?;
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

    /// 0 with the probability of dropout, else `1 / (1 - dropout)`: the same for the same key, so that a pass can be repeated.
    fn mask(&self, x: &Tensor) -> Result<Option<Tensor>> {
        let key = self.switch.dropout_key.load(Ordering::SeqCst);
        if key == 0 {
            return Ok(None);
        }
        let (key, rate) = (key ^ self.number.rotate_left(40), self.switch.dropout);
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
