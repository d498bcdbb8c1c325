//! The decoder that all families are: embedding, blocks, norm, head. Shapes: `T` tokens of the packed batch, `N` asked-for rows of
//! it, `D` hidden width, `V` vocabulary.
//!
//! A block is `x + attention(norm(x))`, then `x + mlp(norm(x))`; some families norm what is added, too.

use candle_core::Tensor;

use super::config::Config;
use super::experts::Experts;
use super::family;
use super::layers::{Attention, Layer, Mlp, RmsNorm};
use super::{Batch, LoadOptions, Source};
use crate::error::Result;
use crate::kernels::matmul::Matrix;
use crate::kernels::rotary::Rotary;

pub struct Decoder {
    embedding: Matrix,
    embedding_scale: f64,
    blocks: Vec<Block>,
    norm: RmsNorm,
    /// `None` where the head is the embedding.
    head: Option<Matrix>,
}

pub struct Block {
    pub attention_norm: RmsNorm,
    pub attention: Attention,
    /// On what the attention adds.
    pub attention_post_norm: Option<RmsNorm>,
    pub mlp_norm: RmsNorm,
    pub mlp: FeedForward,
    /// On what the feed-forward network adds.
    pub mlp_post_norm: Option<RmsNorm>,
}

pub enum FeedForward {
    Dense(Mlp),
    Routed(Experts),
}

impl Decoder {
    pub fn load(config: &Config, source: &dyn Source, options: LoadOptions, max_positions: usize) -> Result<Decoder> {
        let family = family::by_model_type(config.family)?;
        let rotary = |rope: &super::rope::Rope| -> Result<Rotary> {
            let frequencies = rope.inverse_frequencies(config.rotary_dim)?;
            Ok(Rotary::new(&frequencies, max_positions, family.rotary, rope.attention_scaling()))
        };
        let full = rotary(&config.rope)?;
        let windowed = config.window_rope.as_ref().map(rotary).transpose()?;
        let vocabulary = [config.vocab_size, config.hidden_size];
        let matrix = |name: &str| Matrix::new([source.tensor(name, &vocabulary)], options.dtype, options.kernels);
        let tied = config.tied || !source.has("lm_head.weight");
        let block = |index: usize| {
            let rotary = windowed.as_ref().filter(|_| config.windows[index].is_some()).unwrap_or(&full);
            (family.block)(&Layer { config, source, options, index, rotary })
        };
        Ok(Decoder {
            embedding: matrix("model.embed_tokens.weight")?,
            embedding_scale: config.embedding_scale,
            blocks: (0..config.layers).map(block).collect::<Result<_>>()?,
            norm: RmsNorm::load(config, source, "model.norm.weight", config.hidden_size, options.kernels)?,
            head: if tied { None } else { Some(matrix("lm_head.weight")?) },
        })
    }

    /// Hidden states `[N, D]` after the final norm, at `rows` (`[N]`, u32) of the batch only.
    pub fn hidden(&self, batch: &Batch, rows: &Tensor) -> Result<Tensor> {
        let mut x_td = self.embedding.rows(&batch.ids)?;
        if self.embedding_scale != 1.0 {
            x_td = (x_td * self.embedding_scale)?;
        }
        if let Some((last, blocks)) = self.blocks.split_last() {
            for block in blocks {
                let mixed = block.attention.mix(&block.attention_norm.forward(&x_td)?, batch)?;
                x_td = block.finish(&mixed, &x_td)?;
            }
            // Nothing attends to the last block's output, so only the rows that are asked for go on from its attention.
            let mixed = last.attention.mix(&last.attention_norm.forward(&x_td)?, batch)?;
            x_td = last.finish(&mixed.index_select(rows, 0)?, &x_td.index_select(rows, 0)?)?;
        }
        self.norm.forward(&x_td)
    }

    /// The vocabulary matrix `[V, D]`.
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }
}

impl Block {
    /// From the attention's heads to the block's output; `mixed [N, heads * head_dim]`, `x [N, D]`, any `N` rows of the batch.
    fn finish(&self, mixed: &Tensor, x: &Tensor) -> Result<Tensor> {
        let x = match &self.attention_post_norm {
            None => self.attention.project_add(mixed, x)?,
            Some(norm) => (x + norm.forward(&self.attention.project(mixed)?)?)?,
        };
        let normed = self.mlp_norm.forward(&x)?;
        match &self.mlp_post_norm {
            None => self.mlp.forward_add(&normed, &x),
            Some(norm) => Ok((&x + norm.forward(&self.mlp.forward(&normed)?)?)?),
        }
    }
}

impl FeedForward {
    fn forward(&self, x: &Tensor) -> Result<Tensor> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward(x),
            FeedForward::Routed(experts) => experts.forward_add(x, &x.zeros_like()?),
        }
    }

    fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        match self {
            FeedForward::Dense(mlp) => mlp.forward_add(x, residual),
            FeedForward::Routed(experts) => experts.forward_add(x, residual),
        }
    }
}
