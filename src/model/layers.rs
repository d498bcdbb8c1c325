//! Blocks that the families share. Shapes: `T` tokens of the packed batch, `D` hidden width, `F` feed-forward width.

use candle_core::Tensor;

use super::config::Config;
use super::{Batch, LoadOptions, Source};
use crate::error::Result;
use crate::kernels::Kernels;
use crate::kernels::attention::{AttentionShape, attention};
use crate::kernels::gated::{Activation, gated};
use crate::kernels::matmul::Matrix;
use crate::kernels::norm::{qk_norm, rms_norm};
use crate::kernels::rotary::Rotary;

/// Where the weights of one block come from.
pub struct Layer<'a> {
    pub config: &'a Config,
    pub source: &'a dyn Source,
    pub options: LoadOptions,
    pub index: usize,
    /// This layer's rotary embedding.
    pub rotary: &'a Rotary,
}

impl Layer<'_> {
    /// Transformers' name of something in this block.
    pub fn name(&self, rest: &str) -> String {
        format!("model.layers.{}.{rest}", self.index)
    }

    /// A norm over the hidden width.
    pub fn norm(&self, module: &str) -> Result<RmsNorm> {
        let name = self.name(&format!("{module}.weight"));
        RmsNorm::load(self.config, self.source, &name, self.config.hidden_size, self.options.kernels)
    }
}

/// `x W^T + b`, for one weight or for several that read the same input and are stored as one.
pub struct Linear {
    matrix: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `{module}.weight` `[out, input]` for each `(module, out)`, one below the other, and the biases if `bias`.
    pub fn load(layer: &Layer, modules: &[(&str, usize)], input: usize, bias: bool) -> Result<Linear> {
        let part = |&(module, out): &(&str, usize)| layer.source.tensor(&layer.name(&format!("{module}.weight")), &[out, input]);
        let matrix = Matrix::new(modules.iter().map(part), layer.options.dtype, layer.options.kernels)?;
        let bias = match bias {
            true => {
                let part = |&(module, out): &(&str, usize)| layer.source.tensor(&layer.name(&format!("{module}.bias")), &[out]);
                Some(Tensor::cat(&modules.iter().map(part).collect::<Result<Vec<_>>>()?, 0)?)
            }
            false => None,
        };
        Ok(Linear { matrix, bias })
    }

    /// Joins `weights` (`[N_i, input]` each), one below the other.
    pub fn from_weights(weights: impl IntoIterator<Item = Result<Tensor>>, options: LoadOptions) -> Result<Linear> {
        Ok(Linear { matrix: Matrix::new(weights, options.dtype, options.kernels)?, bias: None })
    }

    /// `[T, input] -> [T, out]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.biased(self.matrix.forward(x)?)
    }

    /// The same added to `residual [T, out]`.
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.biased(self.matrix.forward_add(x, residual)?)
    }

    fn biased(&self, y: Tensor) -> Result<Tensor> {
        Ok(match &self.bias {
            Some(bias) => y.broadcast_add(bias)?,
            None => y,
        })
    }
}

pub struct RmsNorm {
    weight: Tensor,
    eps: f64,
    kernels: Kernels,
}

impl RmsNorm {
    pub fn load(config: &Config, source: &dyn Source, name: &str, width: usize, kernels: Kernels) -> Result<RmsNorm> {
        let stored = source.tensor(name, &[width])?;
        let weight = if config.norm_offset { (stored + 1.0)? } else { stored };
        Ok(RmsNorm { weight, eps: config.rms_norm_eps, kernels })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps, self.kernels)
    }
}

/// Grouped-query attention with rotary embedding.
pub struct Attention {
    qkv: Linear,
    /// On each query head and each key head.
    qk_norm: Option<(RmsNorm, RmsNorm)>,
    output: Linear,
    shape: AttentionShape,
    rotary: Rotary,
    kernels: Kernels,
}

impl Attention {
    pub fn load(layer: &Layer) -> Result<Attention> {
        let config = layer.config;
        let shape = config.attention_shape(layer.index);
        let (width, q_width, kv_width) = (config.hidden_size, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim);
        let inputs = [("self_attn.q_proj", q_width), ("self_attn.k_proj", kv_width), ("self_attn.v_proj", kv_width)];
        Ok(Attention {
            qkv: Linear::load(layer, &inputs, width, config.qkv_bias)?,
            qk_norm: None,
            output: Linear::load(layer, &[("self_attn.o_proj", width)], q_width, config.output_bias)?,
            shape,
            rotary: layer.rotary.clone(),
            kernels: layer.options.kernels,
        })
    }

    /// The same with norms on queries and keys before they turn.
    pub fn load_with_norms(layer: &Layer) -> Result<Attention> {
        let norm = |name: &str| {
            RmsNorm::load(layer.config, layer.source, &layer.name(name), layer.config.head_dim, layer.options.kernels)
        };
        let qk_norm = Some((norm("self_attn.q_norm.weight")?, norm("self_attn.k_norm.weight")?));
        Ok(Attention { qk_norm, ..Attention::load(layer)? })
    }

    /// What the heads read from the batch: `x [T, D] -> [T, heads * head_dim]`, before the output projection.
    pub fn mix(&self, x: &Tensor, batch: &Batch) -> Result<Tensor> {
        let mut qkv = self.qkv.forward(x)?;
        if let Some((q, k)) = &self.qk_norm {
            qkv = qk_norm(&qkv, &q.weight, &k.weight, self.shape.heads, self.shape.kv_heads, q.eps, self.kernels)?;
        }
        attention(&qkv, &batch.segments, &self.rotary, &self.shape, self.kernels)
    }

    /// `mixed W_o^T`
    pub fn project(&self, mixed: &Tensor) -> Result<Tensor> {
        self.output.forward(mixed)
    }

    /// `residual + mixed W_o^T`
    pub fn project_add(&self, mixed: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.output.forward_add(mixed, residual)
    }
}

/// Gated feed-forward network: `down(act(gate(x)) * up(x))`.
pub struct Mlp {
    gate_up: Linear,
    down: Linear,
    activation: Activation,
    kernels: Kernels,
}

impl Mlp {
    /// From `gate_proj`, `up_proj` and `down_proj`.
    pub fn load(layer: &Layer, activation: Activation) -> Result<Mlp> {
        let inner = layer.config.intermediate_size;
        Mlp::load_parts(layer, &[("mlp.gate_proj", inner), ("mlp.up_proj", inner)], activation)
    }

    /// From `gate_up_proj`, the gate's rows first, and `down_proj`.
    pub fn load_fused(layer: &Layer, activation: Activation) -> Result<Mlp> {
        Mlp::load_parts(layer, &[("mlp.gate_up_proj", 2 * layer.config.intermediate_size)], activation)
    }

    fn load_parts(layer: &Layer, gate_up: &[(&str, usize)], activation: Activation) -> Result<Mlp> {
        let config = layer.config;
        let gate_up = Linear::load(layer, gate_up, config.hidden_size, config.mlp_bias)?;
        let down = Linear::load(layer, &[("mlp.down_proj", config.hidden_size)], config.intermediate_size, config.mlp_bias)?;
        Ok(Mlp::new(gate_up, down, activation, layer.options.kernels))
    }

    pub fn new(gate_up: Linear, down: Linear, activation: Activation, kernels: Kernels) -> Mlp {
        Mlp { gate_up, down, activation, kernels }
    }

    /// `[T, D] -> [T, D]`
    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        self.down.forward(&self.inner(x)?)
    }

    /// `residual + mlp(x)`, `x` and `residual [T, D]`
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.down.forward_add(&self.inner(x)?, residual)
    }

    /// `[T, D] -> [T, F]`
    fn inner(&self, x: &Tensor) -> Result<Tensor> {
        gated(&self.gate_up.forward(x)?, self.activation, self.kernels)
    }
}
