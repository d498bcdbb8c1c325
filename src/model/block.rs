//! One block of the decoder: `x + attention(norm(x))`, then `x + mlp(norm(x))`. Some families also, or only, normalise what each
//! half adds. Shapes: `T` tokens of the packed batch, `N` requested rows of it, `D` hidden width, `F` feed-forward width.

use candle_core::Tensor;

use super::Batch;
use super::context::Context;
use super::experts::Experts;
use super::layers::{Layer, Mlp, RmsNorm};
use super::lora::Adapters;
use super::mixer::Mixer;
use super::parameters::Parameter;
use crate::error::{Error, Result};
use crate::kernels::Dtype;
use crate::kernels::attention::Attended;
use crate::kernels::cpu::{sum, with_floats};
use crate::kernels::gated::Activation;

pub(super) struct Block {
    /// The norm on the attention's input.
    pub attention_norm: Option<RmsNorm>,
    /// Attention, or the gated delta rule.
    pub mixer: Mixer,
    /// The norm on the attention's output, before it is added to the residual stream.
    pub attention_post_norm: Option<RmsNorm>,
    /// The norm on the input of the feed-forward network.
    pub mlp_norm: Option<RmsNorm>,
    /// The feed-forward network.
    pub mlp: FeedForward,
    /// The norm on the output of the feed-forward network, before it is added to the residual stream.
    pub mlp_post_norm: Option<RmsNorm>,
}

pub(super) enum FeedForward {
    Dense(Mlp),
    Routed(Experts),
}

/// The intermediate results of a forward pass that the backward pass reads. Norms and activation functions are recomputed
/// instead.
pub(super) struct Activations {
    /// `[T, D]`
    input: Tensor,
    /// The mixer's projections: `[T, q | k | v]` for attention.
    projected: Tensor,
    /// The output of the heads, `[T, M]`.
    mixed: Attended,
    /// The mixer's output before its norm, in families that normalise it.
    added: Option<Tensor>,
    /// The residual stream between attention and feed-forward network, `[N, D]`.
    middle: Tensor,
    /// `[N, 2 F]`; `None` for a layer with experts.
    gate_up: Option<Tensor>,
    /// The output of the feed-forward network before its norm, in families that normalise it.
    fed: Option<Tensor>,
}

impl Activations {
    /// The memory that the activations take, in bytes.
    pub(super) fn bytes(&self) -> usize {
        let optional = [&self.added, &self.gate_up, &self.fed].into_iter().flatten();
        let all = [&self.input, &self.projected, &self.mixed.read, &self.middle].into_iter().chain(optional);
        all.map(|tensor| 4 * tensor.elem_count()).sum::<usize>() + self.mixed.softmaxes.bytes()
    }
}

impl Block {
    /// The block of most families: only the inputs of both halves are normalised, by norms with the usual names.
    pub(super) fn pre_norm(layer: &Layer, mixer: impl Into<Mixer>, mlp: FeedForward) -> Result<Block> {
        Ok(Block {
            attention_norm: Some(layer.norm("input_layernorm")?),
            mixer: mixer.into(),
            attention_post_norm: None,
            mlp_norm: Some(layer.norm("post_attention_layernorm")?),
            mlp,
            mlp_post_norm: None,
        })
    }

    /// Runs the block: `x [T, D] -> [T, D]`, or `[N, D]` if only some `rows` are wanted.
    pub(super) fn run(
        &self,
        x: Tensor,
        context: Context,
        rows: Option<&[u32]>,
        adapters: Adapters,
    ) -> Result<(Tensor, Activations)> {
        let (kept, read) = self.opened(x, context, rows, adapters)?;
        let y = match (&self.mlp_post_norm, &kept.fed) {
            (Some(norm), Some(fed)) => (&kept.middle + norm.forward(fed)?)?,
            _ => self.mlp.close_add(&read, kept.gate_up.as_ref(), &kept.middle, adapters)?,
        };
        Ok((y, kept))
    }

    /// Runs the block again for its activations only, and omits the last product where nothing but the block's output needs it.
    pub(super) fn activations(
        &self,
        x: Tensor,
        context: Context,
        rows: Option<&[u32]>,
        adapters: Adapters,
    ) -> Result<Activations> {
        Ok(self.opened(x, context, rows, adapters)?.0)
    }

    /// Computes everything but the block's output: the activations for the backward pass, and the input of the feed-forward
    /// network.
    fn opened(&self, x: Tensor, context: Context, rows: Option<&[u32]>, adapters: Adapters) -> Result<(Activations, Tensor)> {
        let projected = self.mixer.project_in(&normed(&self.attention_norm, &x)?, adapters)?;
        let mixed = self.mixer.mix(&projected, context)?;
        let (mixed_rows, x_rows) = (select(&mixed.read, rows)?, select(&x, rows)?);
        let (middle, added) = match &self.attention_post_norm {
            None => (self.mixer.project_add(&mixed_rows, &x_rows, adapters)?, None),
            Some(norm) => {
                let added = self.mixer.project(&mixed_rows, adapters)?;
                ((x_rows + norm.forward(&added)?)?, Some(added))
            }
        };
        let read = normed(&self.mlp_norm, &middle)?;
        let gate_up = match &self.mlp {
            FeedForward::Dense(mlp) => Some(mlp.open(&read, adapters)?),
            FeedForward::Routed(_) => None,
        };
        let fed = match &self.mlp_post_norm {
            None => None,
            Some(_) => Some(self.mlp.close(&read, gate_up.as_ref(), adapters)?),
        };
        Ok((Activations { input: x, projected, mixed, added, middle, gate_up, fed }, read))
    }

    /// Adds to the gradients of the trained parameters; returns the gradient of the input, given the gradient `dy` of the output.
    pub(super) fn backward(
        &self,
        kept: &Activations,
        batch: &Batch,
        rows: Option<&[u32]>,
        adapters: Adapters,
        dy: &Tensor,
    ) -> Result<Tensor> {
        let d_fed = match (&self.mlp_post_norm, &kept.fed) {
            (Some(norm), Some(fed)) => norm.backward(fed, dy)?,
            _ => dy.clone(),
        };
        let read = normed(&self.mlp_norm, &kept.middle)?;
        let d_read = match (&self.mlp, &kept.gate_up) {
            (FeedForward::Dense(mlp), Some(gate_up)) => mlp.backward(&read, gate_up, &d_fed, adapters)?,
            (FeedForward::Routed(experts), _) => experts.backward(&read, &d_fed, adapters)?,
            _ => return Err(Error::new("the activations belong to another block")),
        };
        let d_middle = sum(dy, &norm_backward(&self.mlp_norm, &kept.middle, d_read)?)?;

        let d_added = match (&self.attention_post_norm, &kept.added) {
            (Some(norm), Some(added)) => norm.backward(added, &d_middle)?,
            _ => d_middle.clone(),
        };
        let d_mixed = self.mixer.project_backward(&select(&kept.mixed.read, rows)?, &d_added, adapters)?;
        let tokens = kept.input.dim(0)?;
        let (d_mixed, d_middle) = (spread(d_mixed, rows, tokens)?, spread(d_middle, rows, tokens)?);
        let read = normed(&self.attention_norm, &kept.input)?;
        let d_read = self.mixer.backward(&read, &kept.projected, &kept.mixed, &d_mixed, batch, adapters)?;
        Ok(sum(&d_middle, &norm_backward(&self.attention_norm, &kept.input, d_read)?)?)
    }

    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.attention_norm.as_ref().map_or(Ok(()), |norm| norm.train(parameters))?;
        self.mixer.train(dtype, parameters)?;
        self.attention_post_norm.as_ref().map_or(Ok(()), |norm| norm.train(parameters))?;
        self.mlp_norm.as_ref().map_or(Ok(()), |norm| norm.train(parameters))?;
        match &mut self.mlp {
            FeedForward::Dense(mlp) => mlp.train(dtype, parameters)?,
            FeedForward::Routed(experts) => experts.train(dtype, parameters)?,
        }
        self.mlp_post_norm.as_ref().map_or(Ok(()), |norm| norm.train(parameters))
    }
}

impl FeedForward {
    /// Loads the experts if the config routes this layer's tokens, otherwise a dense network.
    pub(super) fn load(layer: &Layer, activation: Activation) -> Result<FeedForward> {
        Ok(match &layer.config.experts {
            Some(experts) if experts.routed[layer.index] => FeedForward::Routed(Experts::load(layer, experts, activation)?),
            _ => FeedForward::Dense(Mlp::load(layer, activation)?),
        })
    }

    fn close(&self, x: &Tensor, gate_up: Option<&Tensor>, adapters: Adapters) -> Result<Tensor> {
        match (self, gate_up) {
            (FeedForward::Dense(mlp), Some(gate_up)) => mlp.close(gate_up, adapters),
            (FeedForward::Dense(mlp), None) => mlp.forward(x, adapters),
            (FeedForward::Routed(experts), _) => experts.forward_add(x, &x.zeros_like()?, adapters),
        }
    }

    fn close_add(&self, x: &Tensor, gate_up: Option<&Tensor>, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        match (self, gate_up) {
            (FeedForward::Dense(mlp), Some(gate_up)) => mlp.close_add(gate_up, residual, adapters),
            (FeedForward::Dense(mlp), None) => Ok((mlp.forward(x, adapters)? + residual)?),
            (FeedForward::Routed(experts), _) => experts.forward_add(x, residual, adapters),
        }
    }
}

fn normed(norm: &Option<RmsNorm>, x: &Tensor) -> Result<Tensor> {
    norm.as_ref().map_or_else(|| Ok(x.clone()), |norm| norm.forward(x))
}

/// The gradient of `x`, given the gradient `dy` of the output of [`normed`].
fn norm_backward(norm: &Option<RmsNorm>, x: &Tensor, dy: Tensor) -> Result<Tensor> {
    match norm {
        None => Ok(dy),
        Some(norm) => norm.backward(x, &dy),
    }
}

/// Selects `rows` of `x`, or all rows if `rows` is `None`.
fn select(x: &Tensor, rows: Option<&[u32]>) -> Result<Tensor> {
    Ok(match rows {
        None => x.clone(),
        Some(rows) => x.index_select(&Tensor::from_slice(rows, rows.len(), x.device())?, 0)?,
    })
}

/// The backward pass of [`select`]: `[N, D] -> [tokens, D]`.
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
