//! The part of a block through which tokens of a sequence see each other: attention, or the gated delta rule.

use candle_core::Tensor;

use super::Batch;
use super::context::Context;
use super::delta_net::DeltaNet;
use super::layers::{Adapting, Attention, Linear};
use super::lora::Adapters;
use super::parameters::Parameter;
use crate::error::Result;
use crate::kernels::Dtype;
use crate::kernels::attention::{Attended, Softmaxes};

pub(super) enum Mixer {
    Attention(Attention),
    Delta(DeltaNet),
}

impl From<Attention> for Mixer {
    fn from(attention: Attention) -> Mixer {
        Mixer::Attention(attention)
    }
}

impl Mixer {
    /// Projects the input of the heads: `x [T, D] -> [T, C]`.
    pub(super) fn project_in(&self, x: &Tensor, adapters: Adapters) -> Result<Tensor> {
        match self {
            Mixer::Attention(attention) => attention.project_in(x, adapters),
            Mixer::Delta(delta) => delta.project_in(x, adapters),
        }
    }

    /// Runs the heads over the context: `[T, M]`, before gates and output projection. Includes what the backward pass needs.
    pub(super) fn mix(&self, projected: &Tensor, context: Context) -> Result<Attended> {
        match self {
            Mixer::Attention(attention) => attention.mix(projected, context),
            Mixer::Delta(delta) => Ok(Attended { read: delta.mix(projected, context)?, softmaxes: Softmaxes::default() }),
        }
    }

    /// Applies the output projection: `[T, M] -> [T, D]`.
    pub(super) fn project(&self, mixed: &Tensor, adapters: Adapters) -> Result<Tensor> {
        match self {
            Mixer::Attention(attention) => attention.project(mixed, adapters),
            Mixer::Delta(delta) => delta.project(mixed, adapters),
        }
    }

    /// Like [`Mixer::project`], added to `residual`.
    pub(super) fn project_add(&self, mixed: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        match self {
            Mixer::Attention(attention) => attention.project_add(mixed, residual, adapters),
            Mixer::Delta(delta) => delta.project_add(mixed, residual, adapters),
        }
    }

    /// The gradient of the input of [`Mixer::project`].
    pub(super) fn project_backward(&self, mixed: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        match self {
            Mixer::Attention(attention) => attention.project_backward(mixed, dy, adapters),
            Mixer::Delta(delta) => delta.project_backward(mixed, dy, adapters),
        }
    }

    /// The gradient of the input `x` of [`Mixer::project_in`], given the gradient of the output of [`Mixer::mix`].
    pub(super) fn backward(
        &self,
        x: &Tensor,
        projected: &Tensor,
        mixed: &Attended,
        d_mixed: &Tensor,
        batch: &Batch,
        adapters: Adapters,
    ) -> Result<Tensor> {
        match self {
            Mixer::Attention(attention) => attention.backward(x, projected, mixed, d_mixed, batch, adapters),
            Mixer::Delta(delta) => delta.backward(x, projected, d_mixed, batch, adapters),
        }
    }

    /// Makes all weights trainable.
    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        match self {
            Mixer::Attention(attention) => attention.train(dtype, parameters),
            Mixer::Delta(delta) => delta.train(dtype, parameters),
        }
    }

    pub(super) fn adapt(&mut self, how: &Adapting, parameters: &mut Vec<Parameter>) -> Result<()> {
        match self {
            Mixer::Attention(attention) => attention.adapt(how, parameters),
            Mixer::Delta(delta) => delta.adapt(how, parameters),
        }
    }

    /// The output projection.
    pub(super) fn output(&self) -> &Linear {
        match self {
            Mixer::Attention(attention) => &attention.output,
            Mixer::Delta(delta) => &delta.output,
        }
    }
}
