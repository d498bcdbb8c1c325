//! The gated delta net: projections, a convolution over the latest tokens, the gated delta rule (kernels/delta), a norm on each head's
//! output, and gates. Reference: Transformers, `models/qwen3_next/modeling_qwen3_next.py`, `Qwen3NextGatedDeltaNet`.
//!
//! Shapes: `T` tokens of the packed batch, `N` requested rows of it, `D` hidden width, `C` columns of the projections, `W` total width of
//! the value heads.

use std::sync::Arc;

use candle_core::Tensor;

use super::Batch;
use super::cache::Kept;
use super::context::Context;
use super::layers::{Adapting, Layer, Linear, RmsNorm};
use super::lora::Adapters;
use super::parameters::{Parameter, Vector};
use crate::error::{Error, Result};
use crate::kernels::delta::{DeltaShape, DeltaWeights, delta, delta_backward, delta_onto, open};
use crate::kernels::gated::{Activation, gated, gated_backward};
use crate::kernels::{Dtype, Kernels};

pub(super) struct DeltaNet {
    pub(super) input: Linear,
    convolution: Named,
    a_log: Named,
    dt_bias: Named,
    pub(super) norm: RmsNorm,
    pub(super) output: Linear,
    pub(super) shape: DeltaShape,
    kernels: Kernels,
}

/// A trained tensor, flattened to one vector, and its name.
struct Named {
    vector: Arc<Vector>,
    name: String,
}

impl Named {
    fn load(layer: &Layer, module: &str, shape: &[usize]) -> Result<Named> {
        let name = layer.name(module);
        Ok(Named { vector: Vector::new(layer.source.tensor(&name, shape)?.flatten_all()?, 0.0), name })
    }

    fn train(&self, parameters: &mut Vec<Parameter>) {
        parameters.push(Parameter::vector(self.vector.clone(), &[(self.name.clone(), self.vector.get().elem_count())]));
    }
}

impl DeltaNet {
    pub(super) fn load(layer: &Layer, shape: DeltaShape) -> Result<DeltaNet> {
        let DeltaShape { value_heads: heads, value_dim, kernel, .. } = shape;
        let inputs = match shape.grouped {
            true => vec![("linear_attn.in_proj_qkvz", shape.wide_columns()), ("linear_attn.in_proj_ba", 2 * heads)],
            false => vec![
                ("linear_attn.in_proj_qkv", shape.channels()),
                ("linear_attn.in_proj_z", shape.width()),
                ("linear_attn.in_proj_b", heads),
                ("linear_attn.in_proj_a", heads),
            ],
        };
        let width = layer.config.hidden_size;
        let norm = layer.name("linear_attn.norm.weight");
        Ok(DeltaNet {
            input: Linear::load(layer, &inputs, width, false)?,
            convolution: Named::load(layer, "linear_attn.conv1d.weight", &[shape.channels(), 1, kernel])?,
            a_log: Named::load(layer, "linear_attn.A_log", &[heads])?,
            dt_bias: Named::load(layer, "linear_attn.dt_bias", &[heads])?,
            norm: RmsNorm::load_plain(layer.config, layer.source, &norm, value_dim, layer.options.kernels)?,
            output: Linear::load(layer, &[("linear_attn.out_proj", width)], shape.width(), false)?,
            shape,
            kernels: layer.options.kernels,
        })
    }

    /// `x [T, D] -> [T, C]`
    pub(super) fn project_in(&self, x: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.input.forward(x, adapters)
    }

    /// Applies the rule: `[T, C] -> [T, 2 W]`. For each value head, its gates are followed by the output of the rule.
    pub(super) fn mix(&self, projected: &Tensor, context: Context) -> Result<Tensor> {
        match context {
            Context::Batch(batch) => delta(projected, &self.weights()?, &batch.segments, self.shape, self.kernels),
            Context::Cache(stretches, Kept::Delta(cache)) => delta_onto(projected, &self.weights()?, stretches, cache),
            Context::Cache(_, Kept::Attention(_)) => {
                Err(Error::new("the cache keeps no states of a layer with the gated delta rule"))
            }
        }
    }

    /// `[N, 2 W] -> [N, D]`
    pub(super) fn project(&self, mixed: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.output.forward(&self.open(mixed)?, adapters)
    }

    pub(super) fn project_add(&self, mixed: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.output.forward_add(&self.open(mixed)?, residual, adapters)
    }

    /// The gradient of the input of [`DeltaNet::project`].
    pub(super) fn project_backward(&self, mixed: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        let (gate_up, opened) = self.opened(mixed)?;
        let DeltaShape { value_dim, .. } = self.shape;
        let d_opened = self.output.backward(&opened, dy, adapters)?.reshape((gate_up.dim(0)?, value_dim))?;
        let d_gate_up = gated_backward(&gate_up, Activation::Silu, &d_opened)?;
        let d_read = self.norm.backward(&self.read(mixed)?, &d_gate_up.narrow(1, value_dim, value_dim)?.contiguous()?)?;
        Ok(Tensor::cat(&[d_gate_up.narrow(1, 0, value_dim)?, d_read], 1)?.reshape(mixed.shape())?)
    }

    /// The gradient of the input `x` of [`DeltaNet::project_in`], given the gradient of the output of [`DeltaNet::mix`].
    pub(super) fn backward(
        &self,
        x: &Tensor,
        projected: &Tensor,
        d_mixed: &Tensor,
        batch: &Batch,
        adapters: Adapters,
    ) -> Result<Tensor> {
        let gradients = delta_backward(projected, &self.weights()?, &batch.segments, self.shape, d_mixed)?;
        self.convolution.vector.add_gradient(&gradients.convolution);
        self.a_log.vector.add_gradient(&gradients.a_log);
        self.dt_bias.vector.add_gradient(&gradients.dt_bias);
        self.input.backward(x, &gradients.x, adapters)
    }

    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.input.train(dtype, parameters)?;
        [&self.convolution, &self.a_log, &self.dt_bias].into_iter().for_each(|named| named.train(parameters));
        self.norm.train(parameters)?;
        self.output.train(dtype, parameters)
    }

    pub(super) fn adapt(&mut self, how: &Adapting, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.input.adapt(how, parameters)?;
        self.output.adapt(how, parameters)
    }

    pub(super) fn weights(&self) -> Result<DeltaWeights> {
        let convolution = self.convolution.vector.get().reshape((self.shape.channels(), self.shape.kernel))?;
        Ok(DeltaWeights { convolution, a_log: self.a_log.vector.get(), dt_bias: self.dt_bias.vector.get() })
    }

    /// The output of the rule without the gates, one head per row: `[N * heads, value_dim]`.
    fn read(&self, mixed: &Tensor) -> Result<Tensor> {
        let DeltaShape { value_heads, value_dim, .. } = self.shape;
        let heads = mixed.reshape((mixed.dim(0)? * value_heads, 2 * value_dim))?;
        Ok(heads.narrow(1, value_dim, value_dim)?.contiguous()?)
    }

    /// The normalised and gated output of the rule, `[N, W]`.
    fn open(&self, mixed: &Tensor) -> Result<Tensor> {
        match self.kernels {
            Kernels::Fused => open(mixed, &self.norm.weight.get(), self.norm.eps),
            _ => Ok(self.opened(mixed)?.1),
        }
    }

    /// Like [`DeltaNet::open`], with the intermediate result that the backward pass needs: first each head's gates beside its normalised
    /// output, `[N * heads, 2 value_dim]`; second the gated output, `[N, W]`.
    fn opened(&self, mixed: &Tensor) -> Result<(Tensor, Tensor)> {
        let DeltaShape { value_heads, value_dim, .. } = self.shape;
        let rows = mixed.dim(0)?;
        let gates = mixed.reshape((rows * value_heads, 2 * value_dim))?.narrow(1, 0, value_dim)?;
        let gate_up = Tensor::cat(&[gates, self.norm.forward(&self.read(mixed)?)?], 1)?;
        let opened = gated(&gate_up, Activation::Silu, self.kernels)?.reshape((rows, self.shape.width()))?;
        Ok((gate_up, opened))
    }
}
