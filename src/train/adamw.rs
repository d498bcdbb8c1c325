//! The AdamW optimiser, with weight decay for all parameters except norms and biases, as in Transformers.

use rayon::prelude::*;

use crate::error::Result;
use crate::kernels::Stored;
use crate::kernels::adamw::{Moments, Update, adamw};
use crate::model::Parameter;

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct AdamWOptions {
    pub beta1: f64,
    pub beta2: f64,
    pub eps: f64,
    pub weight_decay: f64,
    /// The number format of the moments; bf16, rounded stochastically, takes half the memory.
    pub moments: Stored,
}

impl Default for AdamWOptions {
    fn default() -> Self {
        AdamWOptions { beta1: 0.9, beta2: 0.999, eps: 1e-8, weight_decay: 0.0, moments: Stored::F32 }
    }
}

pub(crate) struct AdamW {
    options: AdamWOptions,
    /// The number of updates so far.
    pub step: u64,
    /// The moments of each parameter, in the order of its flat array.
    pub moments: Vec<Moments>,
}

/// Numbers per parallel task. Sums add up the blocks in order, so that the number of threads does not change them.
const BLOCK: usize = 1 << 16;

impl AdamW {
    pub(crate) fn new(options: AdamWOptions, parameters: &[Parameter]) -> AdamW {
        let zeros = |parameter: &Parameter| Moments::zeros(parameter.len(), options.moments);
        AdamW { options, step: 0, moments: parameters.iter().map(zeros).collect() }
    }

    /// Updates every parameter with its gradient times `factor`, and resets the gradient to 0.
    pub(crate) fn update(&mut self, parameters: &[Parameter], learning_rate: f64, factor: f32) -> Result<()> {
        self.step += 1;
        let AdamWOptions { beta1, beta2, eps, weight_decay, .. } = self.options;
        let correction = |beta: f64| 1.0 - beta.powi(self.step.min(i32::MAX as u64) as i32);
        for (number, (parameter, moments)) in (0u32..).zip(parameters.iter().zip(&mut self.moments)) {
            let decay = if parameter.decays() { weight_decay } else { 0.0 };
            let update = Update {
                factor,
                rate: (learning_rate / correction(beta1)) as f32,
                keep: (1.0 - learning_rate * decay) as f32,
                betas: [beta1 as f32, beta2 as f32],
                complements: [(1.0 - beta1) as f32, (1.0 - beta2) as f32],
                root: correction(beta2).sqrt() as f32,
                eps: eps as f32,
                key: (self.step as u32).wrapping_mul(0x85eb_ca77).wrapping_add(number),
            };
            parameter.update(moments.blocks(parameter.block_len()), |values, gradient, moments| {
                adamw(values, gradient, moments, &update)
            })?;
        }
        Ok(())
    }
}

/// The sum of squares, in several independent partial sums: a single one would make each addition wait for the previous.
fn squares(numbers: &[f32]) -> f64 {
    const SUMS: usize = 16;
    let mut sums = [0.0; SUMS];
    let (rows, rest) = numbers.as_chunks::<SUMS>();
    for row in rows {
        for i in 0..SUMS {
            sums[i] += f64::from(row[i]) * f64::from(row[i]);
        }
    }
    for (i, &g) in rest.iter().enumerate() {
        sums[i] += f64::from(g) * f64::from(g);
    }
    sums.iter().sum()
}

/// The L2 norm of all gradients.
pub(crate) fn gradient_norm(parameters: &[Parameter]) -> f64 {
    let mut sum = 0.0;
    for parameter in parameters {
        let blocks: Vec<f64> = parameter.gradient(|gradient| gradient.par_chunks(BLOCK).map(squares).collect());
        sum += blocks.iter().sum::<f64>();
    }
    sum.sqrt()
}
