//! A forward pass that can be followed by a backward pass: what training adds to [`Model::hidden`].
//!
//! Stores at least the input of each block (`[T, D]`), and for as many of the last blocks as the given memory allows everything that
//! their backward pass needs. The other blocks are recomputed (Chen et al. 2016, arXiv 1604.06174). This choice changes no bit of any
//! gradient.

use candle_core::Tensor;

use super::block::Activations;
use super::context::Context;
use super::layers::Adapting;
use super::{Adapters, Batch, LoraOptions, Model, Parameter};
use crate::error::{Error, Result};
use crate::kernels::Dtype;

/// A forward pass, with what its backward pass needs.
pub struct Trace {
    batch: Batch,
    rows: Vec<u32>,
    adapters: Adapters,
    stages: Vec<Stage>,
    /// The hidden states before the final norm, `[N, D]`.
    last: Tensor,
    /// The hidden states after the final norm, `[N, D]`: the input of the head.
    pub hidden: Tensor,
}

/// The last parts of the names of adapted modules, each once: of `base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`, `q_proj`.
fn modules(parameters: &[Parameter]) -> Vec<&str> {
    let mut names = Vec::new();
    for part in parameters.iter().flat_map(|parameter| &parameter.parts) {
        names.extend(part.name.rsplit('.').nth(2).filter(|name| !names.contains(name)));
    }
    names
}

enum Stage {
    Input(Tensor),
    Whole(Activations),
}

impl Model {
    /// Makes every weight trainable, with products in `dtype`. The model must have been loaded in f32 with the fused kernels.
    pub fn train(&mut self, dtype: Dtype) -> Result<Vec<Parameter>> {
        self.decoder.train(dtype)
    }

    /// Adds low-rank adapters, and makes only them trainable. `B` is initialised to zero, so the model is unchanged at first.
    pub fn adapt(&mut self, options: &LoraOptions, seed: u64) -> Result<Vec<Parameter>> {
        let parameters = self.decoder.adapt(&Adapting { options, seed })?;
        let adapted = modules(&parameters);
        let Some(other) = options.targets.iter().find(|target| !adapted.contains(&target.as_str())) else {
            return Ok(parameters);
        };
        // All modules that can be adapted, found by adapting them: the model is not used any more.
        let all = LoraOptions { rank: 1, targets: Vec::new(), ..options.clone() };
        let all = self.decoder.adapt(&Adapting { options: &all, seed })?;
        Err(Error::usage(format!("adapters are not trained on `{other}` here"))
            .cure(format!("Of this model they can be trained on {}.", modules(&all).join(", "))))
    }

    /// Like [`Model::hidden`], and keeps what [`Model::backward`] needs: at most about `memory` bytes beyond the inputs of the blocks.
    pub fn trace(&self, batch: Batch, rows: &[u32], adapters: Adapters, memory: usize) -> Result<Trace> {
        self.tokenizer.check(&batch.ids)?;
        let n_blocks = self.decoder.n_blocks();
        let mut stages: Vec<Stage> = Vec::with_capacity(n_blocks);
        let mut x = self.decoder.embed(&batch.ids)?;
        let mut n_kept = n_blocks;
        for index in 0..n_blocks {
            let input = x.clone();
            let (y, activations) = self.decoder.run_block(index, x, Context::Batch(&batch), rows, adapters)?;
            if index == 0 {
                n_kept = memory / activations.bytes().max(1);
            }
            // Keeps the last blocks: their activations are needed first, so their memory is freed first.
            let keep = index + n_kept >= n_blocks;
            stages.push(if keep { Stage::Whole(activations) } else { Stage::Input(input) });
            x = y;
        }
        let hidden = self.decoder.finish(&x)?;
        Ok(Trace { batch, rows: rows.to_vec(), adapters, stages, last: x, hidden })
    }

    /// Adds to the gradients of all parameters, given the gradient `[N, D]` of the trace's hidden states.
    pub fn backward(&self, trace: Trace, d_hidden: &Tensor) -> Result<()> {
        let Trace { batch, rows, adapters, stages, last, .. } = trace;
        let mut dx = self.decoder.finish_backward(&last, d_hidden)?;
        for (index, stage) in stages.into_iter().enumerate().rev() {
            let activations = match stage {
                Stage::Whole(activations) => activations,
                Stage::Input(input) => self.decoder.block_again(index, input, Context::Batch(&batch), &rows, adapters)?,
            };
            dx = self.decoder.block_backward(index, &activations, &batch, &rows, adapters, &dx)?;
        }
        self.decoder.embed_backward(&batch, &dx)
    }
}
