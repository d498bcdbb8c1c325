//! The layers that families are built from: linear, norm, attention, feed-forward. Shapes: `T` tokens of the packed batch, `D` hidden
//! width, `F` feed-forward width.

use std::sync::Arc;

use candle_core::Tensor;

use super::cache::Kept;
use super::config::{Config, QueryGrowth};
use super::context::Context;
use super::lora::{Adapters, Lora, LoraOptions};
use super::parameters::{Parameter, Part, Vector};
use super::source::matrix;
use super::{Batch, LoadOptions, Source};
use crate::error::{Error, Result};
use crate::kernels::attention::{Attended, AttentionShape, Heads, Softmaxes, attention, attention_backward, attention_onto};
use crate::kernels::cpu::column_sums;
use crate::kernels::gated::{Activation, gated, gated_backward};
use crate::kernels::matmul::Matrix;
use crate::kernels::norm::{qk_norm, qk_norm_backward, rms_norm, rms_norm_backward};
use crate::kernels::rotary::Rotary;
use crate::kernels::{Dtype, Kernels};

/// What a family needs to load one block.
pub(super) struct Layer<'a> {
    /// The model's shape and settings.
    pub config: &'a Config,
    /// The source of the tensors.
    pub source: &'a dyn Source,
    /// How to hold and run the weights.
    pub options: LoadOptions,
    /// The index of the layer, from 0.
    pub index: usize,
    /// This layer's rotary embedding.
    pub rotary: &'a Rotary,
}

impl Layer<'_> {
    /// Transformers' name of a module or tensor of this block.
    pub(super) fn name(&self, rest: &str) -> String {
        format!("model.layers.{}.{rest}", self.index)
    }

    /// A norm over the hidden width.
    pub(super) fn norm(&self, module: &str) -> Result<RmsNorm> {
        let name = self.name(&format!("{module}.weight"));
        RmsNorm::of_stream(self.config, self.source, &name, self.options.kernels)
    }
}

/// `x W^T + b`, for one weight or for several stacked ones that read the same input.
pub(super) struct Linear {
    pub(super) matrix: Matrix,
    pub(super) bias: Option<Arc<Vector>>,
    /// The name and number of outputs of each module, in the order of their rows.
    modules: Vec<(String, usize)>,
    lora: Option<Lora>,
}

impl Linear {
    /// Loads and stacks `{module}.weight` `[out, input]` for each `(module, out)`, and the biases if `bias`.
    pub(super) fn load(layer: &Layer, modules: &[(&str, usize)], input: usize, bias: bool) -> Result<Linear> {
        let parts: Vec<(String, [usize; 2])> =
            modules.iter().map(|&(module, out)| (layer.name(&format!("{module}.weight")), [out, input])).collect();
        let matrix = matrix(layer.source, &parts, layer.options)?;
        let bias = match bias {
            true => {
                let part = |&(module, out): &(&str, usize)| layer.source.tensor(&layer.name(&format!("{module}.bias")), &[out]);
                let bias = Tensor::cat(&modules.iter().map(part).collect::<Result<Vec<_>>>()?, 0)?;
                Some(Vector::new(bias, 0.0))
            }
            false => None,
        };
        let modules = modules.iter().map(|&(module, out)| (layer.name(module), out)).collect();
        Ok(Linear { matrix, bias, modules, lora: None })
    }

    /// Sets the biases of all modules, concatenated: `[N]`.
    pub(super) fn with_bias(self, bias: Tensor) -> Linear {
        Linear { bias: Some(Vector::new(bias, 0.0)), ..self }
    }

    /// Stacks `weights` (`[N_i, input]` each); `modules` are their names and `N_i`.
    pub(super) fn from_weights(
        modules: Vec<(String, usize)>,
        weights: impl IntoIterator<Item = Result<Tensor>>,
        options: LoadOptions,
    ) -> Result<Linear> {
        Ok(Linear { matrix: Matrix::new(weights, options.dtype, options.kernels)?, bias: None, modules, lora: None })
    }

    /// The format in which the product is computed.
    pub(super) fn dtype(&self) -> Dtype {
        self.matrix.dtype()
    }

    /// `[T, input] -> [T, out]`
    pub(super) fn forward(&self, x: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.finish(x, self.matrix.forward(x)?, adapters)
    }

    /// `residual + y`, where `y` is the output of [`Linear::forward`]; `residual [T, out]`.
    pub(super) fn forward_add(&self, x: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.finish(x, self.matrix.forward_add(x, residual)?, adapters)
    }

    fn finish(&self, x: &Tensor, y: Tensor, adapters: Adapters) -> Result<Tensor> {
        let y = match &self.lora {
            Some(lora) => lora.forward_add(x, y, adapters)?,
            None => y,
        };
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(&bias.get())?,
            None => y,
        })
    }

    /// Adds to the gradients of the trained parameters; returns the gradient of `x`.
    pub(super) fn backward(&self, x: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        if let Some(bias) = self.bias.as_ref().filter(|bias| bias.is_trained()) {
            bias.add_gradient(&column_sums(dy)?);
        }
        match &self.lora {
            Some(lora) => lora.backward(&self.matrix, x, dy, adapters),
            None => self.matrix.backward(x, dy),
        }
    }

    /// Makes weight and bias trainable.
    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        let inputs = self.matrix.in_features();
        let mut first = 0;
        let part = |(name, out): &(String, usize)| {
            first += out;
            Part::rows(format!("{name}.weight"), first - out..first, inputs)
        };
        let parts = self.modules.iter().map(part).collect();
        parameters.push(Parameter::matrix(self.matrix.train(dtype)?, parts));
        if let Some(bias) = &self.bias {
            let parts: Vec<_> = self.modules.iter().map(|(name, out)| (format!("{name}.bias"), *out)).collect();
            parameters.push(Parameter::vector(bias.clone(), &parts));
        }
        Ok(())
    }

    /// Adds a low-rank adapter if the options target it.
    pub(super) fn adapt(&mut self, how: &Adapting, parameters: &mut Vec<Parameter>) -> Result<()> {
        let inputs = self.matrix.in_features();
        self.lora = Lora::new(&self.modules, inputs, how.options, self.matrix.dtype(), how.seed, parameters)?;
        Ok(())
    }
}

/// How to add adapters.
pub(super) struct Adapting<'a> {
    /// Rank, scale, dropout and targets.
    pub options: &'a LoraOptions,
    /// The seed of the initial values of `A`.
    pub seed: u64,
}

pub(super) struct RmsNorm {
    pub(super) weight: Arc<Vector>,
    name: String,
    pub(super) eps: f64,
    kernels: Kernels,
}

impl RmsNorm {
    /// Loads a norm over the hidden width of the residual stream, which is stored divided by `residual_scale` (decoder.rs). With the
    /// epsilon divided by the scale's square, the norm of the divided stream is that of the stream itself.
    pub(super) fn of_stream(config: &Config, source: &dyn Source, name: &str, kernels: Kernels) -> Result<RmsNorm> {
        let norm = RmsNorm::load(config, source, name, config.hidden_size, kernels)?;
        Ok(RmsNorm { eps: norm.eps / config.residual_scale.powi(2), ..norm })
    }

    pub(super) fn load(config: &Config, source: &dyn Source, name: &str, width: usize, kernels: Kernels) -> Result<RmsNorm> {
        let offset = if config.norm_offset { 1.0 } else { 0.0 };
        RmsNorm::load_offset(config, source, name, width, offset, kernels)
    }

    /// Like [`RmsNorm::load`], for a weight that is stored without an offset even if the family's others have one.
    pub(super) fn load_plain(
        config: &Config,
        source: &dyn Source,
        name: &str,
        width: usize,
        kernels: Kernels,
    ) -> Result<RmsNorm> {
        RmsNorm::load_offset(config, source, name, width, 0.0, kernels)
    }

    fn load_offset(
        config: &Config,
        source: &dyn Source,
        name: &str,
        width: usize,
        offset: f64,
        kernels: Kernels,
    ) -> Result<RmsNorm> {
        let stored = source.tensor(name, &[width])?;
        let weight = Vector::new((stored + offset)?, offset as f32);
        Ok(RmsNorm { weight, name: name.to_owned(), eps: config.rms_norm_eps, kernels })
    }

    pub(super) fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight.get(), self.eps, self.kernels)
    }

    /// Adds to the weight's gradient if it is trained; returns the gradient of `x`.
    pub(super) fn backward(&self, x: &Tensor, dy: &Tensor) -> Result<Tensor> {
        let (dx, dw) = rms_norm_backward(x, &self.weight.get(), self.eps, dy)?;
        self.weight.add_gradient(&dw);
        Ok(dx)
    }

    /// Makes the weight trainable.
    pub(super) fn train(&self, parameters: &mut Vec<Parameter>) -> Result<()> {
        let len = self.weight.get().elem_count();
        parameters.push(Parameter::vector(self.weight.clone(), &[(self.name.clone(), len)]));
        Ok(())
    }
}

/// Grouped-query attention with rotary embedding.
pub(super) struct Attention {
    pub(super) qkv: Linear,
    /// The norms on queries and on keys, over each head or over all heads at once.
    pub(super) qk_norm: Option<(RmsNorm, RmsNorm)>,
    pub(super) output: Linear,
    /// Whether each query head comes with gates: `(query | gates)` for one head after the other.
    pub(super) gated: bool,
    /// The sinks and their name: one logit per head that takes a share of every softmax.
    pub(super) sinks: Option<(Arc<Vector>, String)>,
    pub(super) shape: AttentionShape,
    pub(super) rotary: Rotary,
    pub(super) growth: Option<QueryGrowth>,
    kernels: Kernels,
}

impl Attention {
    /// Loads the attention from `q_proj`, `k_proj`, `v_proj` and `o_proj`.
    pub(super) fn load(layer: &Layer) -> Result<Attention> {
        let shape = layer.config.attention_shape(layer.index);
        let (q_width, kv_width) = (if layer.config.attention_gates { 2 } else { 1 } * shape.q_width(), shape.kv_width());
        let inputs = [("self_attn.q_proj", q_width), ("self_attn.k_proj", kv_width), ("self_attn.v_proj", kv_width)];
        Attention::load_parts(layer, &inputs)
    }

    /// Loads the attention from `qkv_proj`, with the queries' rows first, and `o_proj`.
    pub(super) fn load_fused(layer: &Layer) -> Result<Attention> {
        let columns = layer.config.attention_shape(layer.index).columns();
        Attention::load_parts(layer, &[("self_attn.qkv_proj", columns)])
    }

    fn load_parts(layer: &Layer, inputs: &[(&str, usize)]) -> Result<Attention> {
        let config = layer.config;
        let shape = config.attention_shape(layer.index);
        let (width, q_width) = (config.hidden_size, shape.q_width());
        Ok(Attention {
            qkv: Linear::load(layer, inputs, width, config.qkv_bias)?,
            qk_norm: None,
            output: Linear::load(layer, &[("self_attn.o_proj", width)], q_width, config.output_bias)?,
            gated: config.attention_gates,
            sinks: None,
            shape,
            rotary: layer.rotary.clone(),
            growth: config.query_growth,
            kernels: layer.options.kernels,
        })
    }

    /// Like [`Attention::load`], with norms over each query head and each key head before rotation.
    pub(super) fn load_with_norms(layer: &Layer) -> Result<Attention> {
        Attention::load_normed(layer, layer.config.head_dim, layer.config.head_dim)
    }

    /// Like [`Attention::load`], with one norm over all query heads and one over all key heads before rotation.
    pub(super) fn load_with_whole_norms(layer: &Layer) -> Result<Attention> {
        let shape = layer.config.attention_shape(layer.index);
        Attention::load_normed(layer, shape.q_width(), shape.kv_width())
    }

    /// Like [`Attention::load`], with a sink for each head.
    pub(super) fn load_with_sinks(layer: &Layer) -> Result<Attention> {
        let name = layer.name("self_attn.sinks");
        let sinks = layer.source.tensor(&name, &[layer.config.heads])?;
        Ok(Attention { sinks: Some((Vector::new(sinks, 0.0), name)), ..Attention::load(layer)? })
    }

    fn load_normed(layer: &Layer, q_width: usize, k_width: usize) -> Result<Attention> {
        let norm =
            |name: &str, width: usize| RmsNorm::load(layer.config, layer.source, &layer.name(name), width, layer.options.kernels);
        let qk_norm = Some((norm("self_attn.q_norm.weight", q_width)?, norm("self_attn.k_norm.weight", k_width)?));
        Ok(Attention { qk_norm, ..Attention::load(layer)? })
    }

    /// The format of the attention's products, including those between tokens.
    pub(super) fn dtype(&self) -> Dtype {
        self.qkv.dtype()
    }

    fn heads<'a>(&'a self, sinks: Option<&'a Tensor>) -> Heads<'a> {
        Heads { shape: &self.shape, rotary: &self.rotary, sinks, dtype: self.dtype() }
    }

    /// Projects queries, keys and values: `x [T, D] -> [T, q | k | v]`, with the gates beside each query head if there are any.
    pub(super) fn project_in(&self, x: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.qkv.forward(x, adapters)
    }

    /// Runs the attention: `[T, q | k | v] -> [T, heads * head_dim]`, before the output projection; the gates, if any, come first, with
    /// the same number of columns. Includes what the backward pass needs.
    pub(super) fn mix(&self, projected: &Tensor, context: Context) -> Result<Attended> {
        let (qkv, gates) = self.without_gates(projected)?;
        let grown = self.grown(self.normed(&qkv)?, &context)?;
        let sinks = self.sinks.as_ref().map(|(sinks, _)| sinks.get());
        let heads = self.heads(sinks.as_ref());
        let attended = match context {
            Context::Batch(batch) => attention(&grown, &batch.segments, &heads, self.kernels)?,
            Context::Cache(_, Kept::Delta(_)) => return Err(Error::new("the cache keeps no keys of a layer with attention")),
            Context::Cache(stretches, Kept::Attention(cache)) => {
                Attended { read: attention_onto(&grown, stretches, cache, &heads)?, softmaxes: Softmaxes::default() }
            }
        };
        match gates {
            None => Ok(attended),
            Some(gates) => Ok(Attended { read: Tensor::cat(&[gates, attended.read], 1)?, ..attended }),
        }
    }

    /// `mixed W_o^T`
    pub(super) fn project(&self, mixed: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.output.forward(&self.opened(mixed)?, adapters)
    }

    /// `residual + mixed W_o^T`
    pub(super) fn project_add(&self, mixed: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.output.forward_add(&self.opened(mixed)?, residual, adapters)
    }

    /// The gradient of the input of [`Attention::project`].
    pub(super) fn project_backward(&self, mixed: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        let d_opened = self.output.backward(&self.opened(mixed)?, dy, adapters)?;
        if self.gated { gated_backward(mixed, Activation::Sigmoid, &d_opened) } else { Ok(d_opened) }
    }

    /// Applies the gates, if there are any, to the output of the heads.
    fn opened(&self, mixed: &Tensor) -> Result<Tensor> {
        if self.gated { gated(mixed, Activation::Sigmoid, self.kernels) } else { Ok(mixed.clone()) }
    }

    /// Separates queries, keys and values `[T, q | k | v]` from the gates `[T, q]`.
    fn without_gates(&self, projected: &Tensor) -> Result<(Tensor, Option<Tensor>)> {
        if !self.gated {
            return Ok((projected.clone(), None));
        }
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let (tokens, columns) = projected.dims2()?;
        let width = heads * head_dim;
        let both = projected.narrow(1, 0, 2 * width)?.reshape((tokens, heads, 2, head_dim))?;
        let part = |number: usize| both.narrow(2, number, 1)?.reshape((tokens, width));
        let qkv = Tensor::cat(&[part(0)?, projected.narrow(1, 2 * width, columns - 2 * width)?], 1)?;
        Ok((qkv, Some(part(1)?)))
    }

    /// The inverse of [`Attention::without_gates`].
    fn with_gates(&self, qkv: Tensor, gates: Option<Tensor>) -> Result<Tensor> {
        let Some(gates) = gates else { return Ok(qkv) };
        let AttentionShape { heads, head_dim, .. } = self.shape;
        let (tokens, columns) = qkv.dims2()?;
        let width = heads * head_dim;
        let of_heads = |x: Tensor| x.reshape((tokens, heads, 1, head_dim));
        let both = Tensor::cat(&[of_heads(qkv.narrow(1, 0, width)?)?, of_heads(gates)?], 2)?.reshape((tokens, 2 * width))?;
        Ok(Tensor::cat(&[both, qkv.narrow(1, width, columns - width)?], 1)?)
    }

    /// The gradient of the input `x` of [`Attention::project_in`], given the gradient of the output of [`Attention::mix`].
    pub(super) fn backward(
        &self,
        x: &Tensor,
        projected: &Tensor,
        mixed: &Attended,
        d_mixed: &Tensor,
        batch: &Batch,
        adapters: Adapters,
    ) -> Result<Tensor> {
        let (qkv, _) = self.without_gates(projected)?;
        let qkv = &qkv;
        let width = self.shape.q_width();
        let part = |x: &Tensor, first: usize| x.narrow(1, first, width)?.contiguous();
        let (attended, d_gates, d_read) = match self.gated {
            false => (mixed.clone(), None, d_mixed.clone()),
            true => {
                let attended = Attended { read: part(&mixed.read, width)?, softmaxes: mixed.softmaxes.clone() };
                (attended, Some(part(d_mixed, 0)?), part(d_mixed, width)?)
            }
        };
        let grown = self.grown(self.normed(qkv)?, &Context::Batch(batch))?;
        let sinks = self.sinks.as_ref().map(|(sinks, _)| sinks.get());
        let heads = self.heads(sinks.as_ref());
        let (d_grown, d_sinks) = attention_backward(&grown, &batch.segments, &heads, &attended, &d_read)?;
        if let (Some((sinks, _)), Some(d_sinks)) = (&self.sinks, d_sinks) {
            sinks.add_gradient(&d_sinks);
        }
        let mut d_qkv = self.grown(d_grown, &Context::Batch(batch))?;
        if let Some((q, k)) = &self.qk_norm {
            let (q_weight, k_weight) = (q.weight.get(), k.weight.get());
            let AttentionShape { heads, kv_heads, .. } = self.shape;
            let (dx, dq, dk) = qk_norm_backward(qkv, &q_weight, &k_weight, heads, kv_heads, q.eps, &d_qkv)?;
            q.weight.add_gradient(&dq);
            k.weight.add_gradient(&dk);
            d_qkv = dx;
        }
        self.qkv.backward(x, &self.with_gates(d_qkv, d_gates)?, adapters)
    }

    /// Makes all weights trainable.
    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.qkv.train(dtype, parameters)?;
        if let Some((q, k)) = &self.qk_norm {
            q.train(parameters)?;
            k.train(parameters)?;
        }
        if let Some((sinks, name)) = &self.sinks {
            parameters.push(Parameter::vector(sinks.clone(), &[(name.clone(), self.shape.heads)]));
        }
        self.output.train(dtype, parameters)
    }

    pub(super) fn adapt(&mut self, how: &Adapting, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.qkv.adapt(how, parameters)?;
        self.output.adapt(how, parameters)
    }

    /// Scales queries, or their gradients, by position; this commutes with the rotation.
    fn grown(&self, qkv: Tensor, context: &Context) -> Result<Tensor> {
        let Some(QueryGrowth { beta, original_positions }) = self.growth else { return Ok(qkv) };
        let (tokens, columns) = qkv.dims2()?;
        let positions = context.positions(tokens)?;
        if positions.iter().all(|position| *position < original_positions) {
            return Ok(qkv);
        }
        let factor = |position: &usize| (1.0 + beta * (1.0 + (position / original_positions) as f64).ln()) as f32;
        let factors = Tensor::from_vec(positions.iter().map(factor).collect(), (tokens, 1), qkv.device())?;
        let width = self.shape.q_width();
        let queries = qkv.narrow(1, 0, width)?.broadcast_mul(&factors)?;
        Ok(Tensor::cat(&[queries, qkv.narrow(1, width, columns - width)?], 1)?)
    }

    fn normed(&self, qkv: &Tensor) -> Result<Tensor> {
        match &self.qk_norm {
            None => Ok(qkv.clone()),
            Some((q, k)) => {
                let AttentionShape { heads, kv_heads, .. } = self.shape;
                qk_norm(qkv, &q.weight.get(), &k.weight.get(), heads, kv_heads, q.eps, self.kernels)
            }
        }
    }
}

/// Gated feed-forward network: `down(act(gate(x)) * up(x))`.
pub(super) struct Mlp {
    pub(super) gate_up: Linear,
    pub(super) down: Linear,
    pub(super) activation: Activation,
    kernels: Kernels,
}

impl Mlp {
    /// Loads the network from `gate_proj`, `up_proj` and `down_proj`.
    pub(super) fn load(layer: &Layer, activation: Activation) -> Result<Mlp> {
        Mlp::load_in(layer, "mlp", layer.config.intermediate_size, activation)
    }

    /// Like [`Mlp::load`], from the matrices of `module`, with inner width `inner`.
    pub(super) fn load_in(layer: &Layer, module: &str, inner: usize, activation: Activation) -> Result<Mlp> {
        let name = |part: &str| format!("{module}.{part}");
        Mlp::load_parts(layer, &[(&name("gate_proj"), inner), (&name("up_proj"), inner)], (&name("down_proj"), inner), activation)
    }

    /// Loads the network from `gate_up_proj`, with the gate's rows first, and `down_proj`.
    pub(super) fn load_fused(layer: &Layer, activation: Activation) -> Result<Mlp> {
        let inner = layer.config.intermediate_size;
        Mlp::load_parts(layer, &[("mlp.gate_up_proj", 2 * inner)], ("mlp.down_proj", inner), activation)
    }

    fn load_parts(layer: &Layer, gate_up: &[(&str, usize)], down: (&str, usize), activation: Activation) -> Result<Mlp> {
        let (config, (down, inner)) = (layer.config, down);
        let gate_up = Linear::load(layer, gate_up, config.hidden_size, config.mlp_bias)?;
        let down = Linear::load(layer, &[(down, config.hidden_size)], inner, config.mlp_bias)?;
        Ok(Mlp::new(gate_up, down, activation, layer.options.kernels))
    }

    pub(super) fn new(gate_up: Linear, down: Linear, activation: Activation, kernels: Kernels) -> Mlp {
        Mlp { gate_up, down, activation, kernels }
    }

    /// `[T, D] -> [T, D]`
    pub(super) fn forward(&self, x: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.close(&self.open(x, adapters)?, adapters)
    }

    /// Gate and up: `[T, D] -> [T, 2 F]`.
    pub(super) fn open(&self, x: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.gate_up.forward(x, adapters)
    }

    /// The output, given gate and up-projection: `[T, 2 F] -> [T, D]`.
    pub(super) fn close(&self, gate_up: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.down.forward(&gated(gate_up, self.activation, self.kernels)?, adapters)
    }

    /// `residual + close(gate_up)`, `residual [T, D]`
    pub(super) fn close_add(&self, gate_up: &Tensor, residual: &Tensor, adapters: Adapters) -> Result<Tensor> {
        self.down.forward_add(&gated(gate_up, self.activation, self.kernels)?, residual, adapters)
    }

    /// The gradient of the input `x` of [`Mlp::open`], given the gradient of the output of [`Mlp::close`].
    pub(super) fn backward(&self, x: &Tensor, gate_up: &Tensor, dy: &Tensor, adapters: Adapters) -> Result<Tensor> {
        let d_inner = self.down.backward(&gated(gate_up, self.activation, self.kernels)?, dy, adapters)?;
        self.gate_up.backward(x, &gated_backward(gate_up, self.activation, &d_inner)?, adapters)
    }

    /// Makes all weights trainable.
    pub(super) fn train(&mut self, dtype: Dtype, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.gate_up.train(dtype, parameters)?;
        self.down.train(dtype, parameters)
    }

    pub(super) fn adapt(&mut self, how: &Adapting, parameters: &mut Vec<Parameter>) -> Result<()> {
        self.gate_up.adapt(how, parameters)?;
        self.down.adapt(how, parameters)
    }
}
