//! The decoder that all families are: embedding, blocks, norm, head. Shapes: `T` tokens of the packed batch, `N` asked-for rows of
//! it, `D` hidden width, `V` vocabulary.
//!
//! A block is `x + attention(norm(x))`, then `x + mlp(norm(x))`; some families norm what is added, too. The backward pass is written
//! out beside the forward pass: candle's would add up every gradient on one core, which took a fifth of a training step.

use candle_core::Tensor;

use super::block::{Activations, Block, FeedForward};
use super::config::Config;
use super::families as family;
use super::layers::{Adapting, Layer, RmsNorm};
use super::lora::Adapters;
use super::parameters::{Parameter, Part};
use super::{Batch, LoadOptions, Source};
use crate::error::Result;
use crate::kernels::cpu::with_floats;
use crate::kernels::matmul::Matrix;
use crate::kernels::rotary::Rotary;
use crate::kernels::{Dtype, Kernels};

pub(super) struct Decoder {
    pub(super) embedding: Matrix,
    pub(super) embedding_scale: f64,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
    /// `None` where the head is the embedding.
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
        let vocabulary = [config.vocab_size, config.hidden_size];
        let matrix = |name: &str| Matrix::new([source.tensor(name, &vocabulary)], options.dtype, options.kernels);
        let block = |index: usize| {
            let rotary = windowed.as_ref().filter(|_| config.windows[index].is_some()).unwrap_or(&full);
            let dtype = if options.kernels == Kernels::Cuda { options.dtype } else { product_dtype(index, options.dtype) };
            let options = LoadOptions { dtype, ..options };
            (family.block)(&Layer { config, source, options, index, rotary })
        };
        Ok(Decoder {
            embedding: matrix("model.embed_tokens.weight")?,
            embedding_scale: config.embedding_scale,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            norm: RmsNorm::load(config, source, "model.norm.weight", config.hidden_size, options.kernels)?,
            head: if config.tied { None } else { Some(matrix("lm_head.weight")?) },
        })
    }

    /// Hidden states `[N, D]` after the final norm, at `rows` of the batch only.
    pub(super) fn hidden(&self, batch: &Batch, rows: &[u32], adapters: Adapters) -> Result<Tensor> {
        let mut x = self.embed(batch)?;
        for index in 0..self.blocks.len() {
            x = self.run_block(index, x, batch, rows, adapters)?.0;
        }
        self.norm.forward(&x)
    }

    /// The embeddings `[T, D]` of the batch's tokens.
    pub(super) fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let x_td = self.embedding.rows(&batch.ids)?;
        Ok(if self.embedding_scale == 1.0 { x_td } else { (x_td * self.embedding_scale)? })
    }

    /// Adds the gradient `[T, D]` of what [`Decoder::embed`] gave to the embedding's, if that is trained.
    pub(super) fn embed_backward(&self, batch: &Batch, dx: &Tensor) -> Result<()> {
        if let Some(trained) = self.embedding.trained() {
            let dx = if self.embedding_scale == 1.0 { dx.clone() } else { (dx * self.embedding_scale)? };
            with_floats(&dx, |dx| trained.add_row_gradients(&batch.ids, dx))?;
        }
        Ok(())
    }

    /// Block `index` from `[T, D]` to `[T, D]`; from the last block only `rows` go on, for nothing attends to its output.
    pub(super) fn run_block(
        &self,
        index: usize,
        x: Tensor,
        batch: &Batch,
        rows: &[u32],
        adapters: Adapters,
    ) -> Result<(Tensor, Activations)> {
        let rows = (index + 1 == self.blocks.len()).then_some(rows);
        self.blocks[index].run(x, batch, rows, adapters)
    }

    /// The gradient of block `index`'s input.
    pub(super) fn block_backward(
        &self,
        index: usize,
        kept: &Activations,
        batch: &Batch,
        rows: &[u32],
        adapters: Adapters,
        dy: &Tensor,
    ) -> Result<Tensor> {
        let rows = (index + 1 == self.blocks.len()).then_some(rows);
        self.blocks[index].backward(kept, batch, rows, adapters, dy)
    }

    pub(super) fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The norm behind the last block.
    pub(super) fn final_norm(&self) -> &RmsNorm {
        &self.norm
    }

    /// The vocabulary matrix `[V, D]`.
    pub(super) fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Makes every weight learn, with products in `dtype`.
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

    /// Adds low-rank adapters to the modules that `how` names.
    pub(super) fn adapt(&mut self, how: &Adapting) -> Result<Vec<Parameter>> {
        let mut parameters = Vec::new();
        for block in &mut self.blocks {
            block.attention.adapt(how, &mut parameters)?;
            match &mut block.mlp {
                FeedForward::Dense(mlp) => mlp.adapt(how, &mut parameters)?,
                FeedForward::Routed(experts) => experts.adapt(how, &mut parameters)?,
            }
        }
        Ok(parameters)
    }
}

/// Precision of a block's products: what the first block rounds off goes through all the others, so that it stays in f32, for a small
/// part of the time. Not on a GPU, whose f32 products take ten times as long as those in bf16.
fn product_dtype(index: usize, dtype: Dtype) -> Dtype {
    if index == 0 { Dtype::F32 } else { dtype }
}
