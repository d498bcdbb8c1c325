//! The decoder that all families share: embedding, blocks, norm, head. Shapes: `T` tokens of the packed batch, `N` requested rows of
//! it, `D` hidden width, `V` vocabulary.
//!
//! The backward pass is written by hand next to the forward pass (block.rs): candle's autograd would sum every gradient on one core,
//! which took a fifth of a training step.

use candle_core::Tensor;

use super::block::{Activations, Block, FeedForward};
use super::cache::Kept;
use super::config::Config;
use super::context::Context;
use super::families as family;
use super::layers::{Adapting, Layer, RmsNorm};
use super::lora::Adapters;
use super::mixer::Mixer;
use super::parameters::{Parameter, Part};
use super::source::matrix;
use super::{Batch, LoadOptions, Source};
use crate::error::Result;
use crate::kernels::attention::Stretch;
use crate::kernels::cpu::with_floats;
use crate::kernels::matmul::Matrix;
use crate::kernels::rotary::Rotary;
use crate::kernels::{Dtype, Kernels};

pub(super) struct Decoder {
    pub(super) embedding: Matrix,
    pub(super) embedding_scale: f64,
    /// The padding token, whose input embedding is not trained.
    padding: Option<u32>,
    /// Multiplies the hidden states in place of the logits, so that readers of the head need not know about it.
    pub(super) logit_scale: f64,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
    /// `None` if the head is the embedding.
    head: Option<Matrix>,
}

impl Decoder {
    pub(super) fn load(config: &Config, source: &dyn Source, options: LoadOptions, max_positions: usize) -> Result<Decoder> {
        let family = family::by_model_type(config.family)?;
        let rotary = |rope: &super::rope::Rope| -> Result<Rotary> {
            let frequencies = rope.inverse_frequencies(config.rotary_dim)?;
            Ok(Rotary::new(&frequencies, max_positions, family.rotary, rope.attention_scaling()))
        };
        let full = rotary(&config.rope)?;
        let windowed = config.window_rope.as_ref().map(rotary).transpose()?;
        let resting = Rotary::new(&[], 0, family.rotary, 1.0);
        let vocabulary = [config.vocab_size, config.hidden_size];
        let matrix = |name: &str| matrix(source, &[(name.to_owned(), vocabulary)], options);
        let block = |index: usize| {
            let rotary = match &windowed {
                _ if !config.turning[index] => &resting,
                Some(windowed) if config.windows[index].is_some() => windowed,
                _ => &full,
            };
            let dtype = if options.kernels == Kernels::Cuda { options.dtype } else { product_dtype(index, options.dtype) };
            let options = LoadOptions { dtype, ..options };
            (family.block)(&Layer { config, source, options, index, rotary })
        };
        // Loads the largest matrices first: their temporary copies are freed before the blocks take memory.
        let embedding = matrix("model.embed_tokens.weight")?;
        let head = if config.tied { None } else { Some(matrix("lm_head.weight")?) };
        Ok(Decoder {
            embedding,
            // The residual stream is stored divided by `residual_scale`, so that additions need no scaling. The norms that read it are
            // invariant to that, except for their epsilon (`RmsNorm::of_stream`).
            embedding_scale: config.embedding_scale / config.residual_scale,
            padding: config.padding,
            logit_scale: 1.0 / config.logit_divisor,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            norm: RmsNorm::of_stream(config, source, "model.norm.weight", options.kernels)?,
            head,
        })
    }

    /// The hidden states `[N, D]` after the final norm, at `rows` of the batch only.
    pub(super) fn hidden(&self, batch: &Batch, rows: &[u32], adapters: Adapters) -> Result<Tensor> {
        self.through(&batch.ids, rows, adapters, std::iter::repeat_with(|| Context::Batch(batch)))
    }

    /// Like [`Decoder::hidden`], for tokens that continue the sequences of a cache and are added to it.
    pub(super) fn hidden_onto(&self, cache: &mut [Kept], ids: &[u32], stretches: &[Stretch], rows: &[u32]) -> Result<Tensor> {
        self.through(ids, rows, Adapters::On, cache.iter_mut().map(|layer| Context::Cache(stretches, layer)))
    }

    /// Runs all blocks, each in its own context.
    fn through<'a>(
        &self,
        ids: &[u32],
        rows: &[u32],
        adapters: Adapters,
        contexts: impl Iterator<Item = Context<'a>>,
    ) -> Result<Tensor> {
        let mut x = self.embed(ids)?;
        for (index, context) in (0..self.blocks.len()).zip(contexts) {
            x = self.run_block(index, x, context, rows, adapters)?.0;
        }
        self.finish(&x)
    }

    /// Applies the final norm: turns the last block's output into the input of the head.
    pub(super) fn finish(&self, x: &Tensor) -> Result<Tensor> {
        scaled(self.norm.forward(x)?, self.logit_scale)
    }

    /// The gradient of `x`, given the gradient `dy` of the output of [`Decoder::finish`].
    pub(super) fn finish_backward(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        self.norm.backward(x, &scaled(dy.clone(), self.logit_scale)?)
    }

    /// The embeddings `[T, D]` of the tokens.
    pub(super) fn embed(&self, ids: &[u32]) -> Result<Tensor> {
        scaled(self.embedding.rows(ids)?, self.embedding_scale)
    }

    /// Adds to the embedding's gradient if it is trained, given the gradient `dx [T, D]` of the output of [`Decoder::embed`].
    pub(super) fn embed_backward(&self, batch: &Batch, dx: &Tensor) -> Result<()> {
        if let Some(trained) = self.embedding.trained() {
            let dx = scaled(dx.clone(), self.embedding_scale)?;
            with_floats(&dx, |dx| trained.add_row_gradients(&batch.ids, self.padding, dx))?;
        }
        Ok(())
    }

    /// The rows that block `index` outputs if not all are needed: only `rows` for the last block, whose output nothing attends to.
    fn going_on<'a>(&self, index: usize, rows: &'a [u32]) -> Option<&'a [u32]> {
        (index + 1 == self.blocks.len()).then_some(rows)
    }

    /// Runs block `index`: `[T, D] -> [T, D]`, or `[N, D]` for the last block.
    pub(super) fn run_block(
        &self,
        index: usize,
        x: Tensor,
        context: Context,
        rows: &[u32],
        adapters: Adapters,
    ) -> Result<(Tensor, Activations)> {
        self.blocks[index].run(x, context, self.going_on(index, rows), adapters)
    }

    /// Recomputes what the backward pass of block `index` needs.
    pub(super) fn block_again(
        &self,
        index: usize,
        x: Tensor,
        context: Context,
        rows: &[u32],
        adapters: Adapters,
    ) -> Result<Activations> {
        self.blocks[index].activations(x, context, self.going_on(index, rows), adapters)
    }

    /// The gradient of the input of block `index`.
    pub(super) fn block_backward(
        &self,
        index: usize,
        kept: &Activations,
        batch: &Batch,
        rows: &[u32],
        adapters: Adapters,
        dy: &Tensor,
    ) -> Result<Tensor> {
        self.blocks[index].backward(kept, batch, self.going_on(index, rows), adapters, dy)
    }

    pub(super) fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The vocabulary matrix `[V, D]`.
    pub(super) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Makes every weight trainable, with products in `dtype`.
    pub(super) fn train(&mut self, dtype: Dtype) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        let vocabulary = |matrix: &mut Matrix, name: &str| -> Result<Parameter> {
            let (rows, width) = (matrix.out_features(), matrix.in_features());
            Ok(Parameter::matrix(matrix.train(dtype)?, vec![Part::rows(name.to_owned(), 0..rows, width)]))
        };
        parameters.push(vocabulary(&mut self.embedding, "model.embed_tokens.weight")?);
        for (index, block) in self.blocks.iter_mut().enumerate() {
            block.train(product_dtype(index, dtype), &mut parameters)?;
        }
        self.norm.train(&mut parameters)?;
        if let Some(head) = &mut self.head {
            parameters.push(vocabulary(head, "lm_head.weight")?);
        }
        Ok(parameters)
    }

    /// The format in which each block's attention multiplies: that of its projections. The entry of a block without attention is
    /// unused.
    pub(super) fn attention_dtypes(&self) -> Vec<Dtype> {
        let of_mixer = |mixer: &Mixer| match mixer {
            Mixer::Attention(attention) => attention.dtype(),
            Mixer::Delta(_) => Dtype::F32,
        };
        self.blocks.iter().map(|block| of_mixer(&block.mixer)).collect()
    }

    /// Adds low-rank adapters to the modules selected by `how`.
    pub(super) fn adapt(&mut self, how: &Adapting) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        // Wherever there are experts, PEFT takes `gate_proj` and the like to mean the experts' stacked weights, and drops the updates
        // of dense and shared networks. Only what PEFT keeps is trained.
        let has_experts = self.blocks.iter().any(|block| matches!(block.mlp, FeedForward::Routed(_)));
        for block in &mut self.blocks {
            block.mixer.adapt(how, &mut parameters)?;
            match &mut block.mlp {
                FeedForward::Dense(_) if has_experts => {}
                FeedForward::Dense(mlp) => mlp.adapt(how, &mut parameters)?,
                FeedForward::Routed(experts) => experts.adapt(how, &mut parameters)?,
            }
        }
        Ok(parameters)
    }
}

fn scaled(x: Tensor, scale: f64) -> Result<Tensor> {
    Ok(if scale == 1.0 { x } else { (x * scale)? })
}

/// The precision of a block's products. Rounding to bf16 in the first block would propagate through all others, so this block stays in
/// f32 at little cost. On a GPU it does not: f32 products take ten times as long as bf16 products there.
fn product_dtype(index: usize, dtype: Dtype) -> Dtype {
    if index == 0 && dtype == Dtype::Bf16 { Dtype::F32 } else { dtype }
}
