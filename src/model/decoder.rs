//! The decoder that all families are: embedding, blocks, norm, head. Shapes: `T` tokens of the packed batch, `N` asked-for rows of
//! it, `D` hidden width, `V` vocabulary.
//!
//! A block is `x + attention(norm(x))`, then `x + mlp(norm(x))`; some families norm what is added, too. The backward pass is written
//! out beside the forward pass: candle's would add up every gradient on one core, which took a fifth of a training step.

use candle_core::Tensor;

use super::config::Config;
use super::experts::Experts;
use super::families as family;
use super::layers::{Adapting, Attention, Layer, Mlp, RmsNorm};
use super::parameters::{Parameter, Part};
use super::{Batch, LoadOptions, Source};
use crate::error::{Error, Result};
use crate::kernels::cpu::{sum, with_floats};
use crate::kernels::matmul::Matrix;
use crate::kernels::rotary::Rotary;
use crate::kernels::{Dtype, Kernels};

pub struct Decoder {
    pub(super) embedding: Matrix,
    pub(super) embedding_scale: f64,
    pub(super) blocks: Vec<Block>,
    pub(super) norm: RmsNorm,
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
            let dtype = if options.kernels == Kernels::Cuda { options.dtype } else { product_dtype(index, options.dtype) };
            let options = LoadOptions { dtype, ..options };
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

    /// Hidden states `[N, D]` after the final norm, at `rows` of the batch only.
    pub fn hidden(&self, batch: &Batch, rows: &[u32]) -> Result<Tensor> {
        let mut x = self.embed(batch)?;
        for index in 0..self.blocks.len() {
            x = self.run_block(index, x, batch, rows)?.0;
        }
        self.norm.forward(&x)
    }

    /// The embeddings `[T, D]` of the batch's tokens.
    pub fn embed(&self, batch: &Batch) -> Result<Tensor> {
        let x_td = self.embedding.rows(&batch.ids)?;
        Ok(if self.embedding_scale == 1.0 { x_td } else { (x_td * self.embedding_scale)? })
    }

    /// Adds the gradient `[T, D]` of what [`Decoder::embed`] gave to the embedding's, if that is trained.
    pub fn embed_backward(&self, batch: &Batch, dx: &Tensor) -> Result<()> {
        if let Some(trained) = self.embedding.trained() {
            let dx = if self.embedding_scale == 1.0 { dx.clone() } else { (dx * self.embedding_scale)? };
            with_floats(&dx, |dx| trained.add_row_gradients(&batch.ids, dx))?;
        }
        Ok(())
    }

    /// Block `index` from `[T, D]` to `[T, D]`; from the last block only `rows` go on, for nothing attends to its output.
    pub fn run_block(&self, index: usize, x: Tensor, batch: &Batch, rows: &[u32]) -> Result<(Tensor, Activations)> {
        let rows = (index + 1 == self.blocks.len()).then_some(rows);
        self.blocks[index].run(x, batch, rows)
    }

    /// The gradient of block `index`'s input.
    pub fn block_backward(&self, index: usize, kept: &Activations, batch: &Batch, rows: &[u32], dy: &Tensor) -> Result<Tensor> {
        let rows = (index + 1 == self.blocks.len()).then_some(rows);
        self.blocks[index].backward(kept, batch, rows, dy)
    }

    pub fn n_blocks(&self) -> usize {
        self.blocks.len()
    }

    /// The norm behind the last block.
    pub fn final_norm(&self) -> &RmsNorm {
        &self.norm
    }

    /// The vocabulary matrix `[V, D]`.
    pub fn head(&self) -> &Matrix {
        self.head.as_ref().unwrap_or(&self.embedding)
    }

    /// Makes every weight learn, with products in `dtype`.
    pub fn train(&mut self, dtype: Dtype) -> Result<Vec<Parameter>> {
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
    pub fn adapt(&mut self, how: &Adapting) -> Result<Vec<Parameter>> {
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

/// What a block's backward pass needs of its forward pass; norms and activations are computed again.
pub struct Activations {
    /// `[T, D]`
    input: Tensor,
    /// `[T, q | k | v]`
    qkv: Tensor,
    /// `[T, heads * head_dim]`
    mixed: Tensor,
    /// What the attention adds, before its norm; only where there is one.
    added: Option<Tensor>,
    /// Between attention and feed-forward network, `[N, D]`.
    middle: Tensor,
    /// `[N, 2 F]`; not for experts.
    gate_up: Option<Tensor>,
    /// What the feed-forward network adds, before its norm; only where there is one.
    fed: Option<Tensor>,
}

impl Activations {
    /// The memory they take.
    pub fn bytes(&self) -> usize {
        let optional = [&self.added, &self.gate_up, &self.fed].into_iter().flatten();
        let all = [&self.input, &self.qkv, &self.mixed, &self.middle].into_iter().chain(optional);
        all.map(|tensor| 4 * tensor.elem_count()).sum()
    }
}

impl Block {
    /// `x [T, D] -> [T, D]`, or `[N, D]` where only `rows` of it are wanted.
    fn run(&self, x: Tensor, batch: &Batch, rows: Option<&[u32]>) -> Result<(Tensor, Activations)> {
        let qkv = self.attention.project_in(&self.attention_norm.forward(&x)?)?;
        let mixed = self.attention.mix(&qkv, batch)?;
        let (mixed_rows, x_rows) = (select(&mixed, rows)?, select(&x, rows)?);
        let (middle, added) = match &self.attention_post_norm {
            None => (self.attention.project_add(&mixed_rows, &x_rows)?, None),
            Some(norm) => {
                let added = self.attention.project(&mixed_rows)?;
                ((x_rows + norm.forward(&added)?)?, Some(added))
            }
        };
        let normed = self.mlp_norm.forward(&middle)?;
        let gate_up = match &self.mlp {
            FeedForward::Dense(mlp) => Some(mlp.open(&normed)?),
            FeedForward::Routed(_) => None,
        };
        let (y, fed) = match &self.mlp_post_norm {
            None => (self.mlp.close_add(&normed, gate_up.as_ref(), &middle)?, None),
            Some(norm) => {
                let fed = self.mlp.close(&normed, gate_up.as_ref())?;
                ((&middle + norm.forward(&fed)?)?, Some(fed))
            }
        };
        Ok((y, Activations { input: x, qkv, mixed, added, middle, gate_up, fed }))
    }

    /// Adds to the gradients of whatever is trained; from `dy` to the gradient of the input.
    fn backward(&self, kept: &Activations, batch: &Batch, rows: Option<&[u32]>, dy: &Tensor) -> Result<Tensor> {
        let d_fed = match (&self.mlp_post_norm, &kept.fed) {
            (Some(norm), Some(fed)) => norm.backward(fed, dy)?,
            _ => dy.clone(),
        };
        let normed = self.mlp_norm.forward(&kept.middle)?;
        let d_normed = match (&self.mlp, &kept.gate_up) {
            (FeedForward::Dense(mlp), Some(gate_up)) => mlp.backward(&normed, gate_up, &d_fed)?,
            (FeedForward::Routed(experts), _) => experts.backward(&normed, &d_fed)?,
            _ => return Err(Error::new("the activations belong to another block")),
        };
        let d_middle = sum(dy, &self.mlp_norm.backward(&kept.middle, &d_normed)?)?;

        let d_added = match (&self.attention_post_norm, &kept.added) {
            (Some(norm), Some(added)) => norm.backward(added, &d_middle)?,
            _ => d_middle.clone(),
        };
        let d_mixed = self.attention.project_backward(&select(&kept.mixed, rows)?, &d_added)?;
        let tokens = kept.input.dim(0)?;
        let (d_mixed, d_middle) = (spread(d_mixed, rows, tokens)?, spread(d_middle, rows, tokens)?);
        let normed = self.attention_norm.forward(&kept.input)?;
        let d_normed = self.attention.backward(&normed, &kept.qkv, &kept.mixed, &d_mixed, batch)?;
        Ok(sum(&d_middle, &self.attention_norm.backward(&kept.input, &d_normed)?)?)
    }

    fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.attention_norm.train(parameters)?;
        self.attention.train(dtype, parameters)?;
        self.attention_post_norm.as_ref().map_or(Ok(()), |norm| norm.train(parameters))?;
        self.mlp_norm.train(parameters)?;
        match &mut self.mlp {
            FeedForward::Dense(mlp) => mlp.train(dtype, parameters)?,
            FeedForward::Routed(experts) => experts.train(dtype, parameters)?,
        }
        self.mlp_post_norm.as_ref().map_or(Ok(()), |norm| norm.train(parameters))
    }
}

impl FeedForward {
    fn close(&self, x: &Tensor, gate_up: Option<&Tensor>) -> Result<Tensor> {
        match (self, gate_up) {
            (FeedForward::Dense(mlp), Some(gate_up)) => mlp.close(gate_up),
            (FeedForward::Dense(mlp), None) => mlp.forward(x),
            (FeedForward::Routed(experts), _) => experts.forward_add(x, &x.zeros_like()?),
        }
    }

    fn close_add(&self, x: &Tensor, gate_up: Option<&Tensor>, residual: &Tensor) -> Result<Tensor> {
        match (self, gate_up) {
            (FeedForward::Dense(mlp), Some(gate_up)) => mlp.close_add(gate_up, residual),
            (FeedForward::Dense(mlp), None) => Ok((mlp.forward(x)? + residual)?),
            (FeedForward::Routed(experts), _) => experts.forward_add(x, residual),
        }
    }
}

/// The rows that are wanted; all of them without a choice.
fn select(x: &Tensor, rows: Option<&[u32]>) -> Result<Tensor> {
    Ok(match rows {
        None => x.clone(),
        Some(rows) => x.index_select(&Tensor::from_slice(rows, rows.len(), x.device())?, 0)?,
    })
}

/// The gradient of what [`select`] took from: `[N, D] -> [tokens, D]`.
fn spread(g: Tensor, rows: Option<&[u32]>, tokens: usize) -> Result<Tensor> {
    let Some(rows) = rows else { return Ok(g) };
    let width = g.dim(1)?;
    let mut spread = vec![0.0; tokens * width];
    with_floats(&g, |g| {
        for (&row, g) in rows.iter().zip(g.chunks_exact(width)) {
            spread[row as usize * width..][..width].iter_mut().zip(g).for_each(|(sum, g)| *sum += g);
        }
    })?;
    Ok(Tensor::from_vec(spread, (tokens, width), g.device())?)
}
