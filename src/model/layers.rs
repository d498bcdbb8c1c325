//! Blocks that the families share. Shapes: `T` tokens of the packed batch, `D` hidden width, `F` feed-forward width.

use candle_core::Tensor;

use super::{Batch, LoadOptions, Source};
use crate::error::Result;
use crate::kernels::Kernels;
use crate::kernels::attention::{AttentionShape, attention};
use crate::kernels::gated::{Activation, gated};
use crate::kernels::matmul::Matrix;
use crate::kernels::norm::rms_norm;
use crate::kernels::rotary::Rotary;

/// `x W^T + b`, for one weight or for several that read the same input and are stored as one.
pub struct Linear {
    matrix: Matrix,
    bias: Option<Tensor>,
}

impl Linear {
    /// Loads `{module}.weight` `[out, input]` for each `(module, out)`, one below the other, and the biases if `bias`.
    pub fn load(
        source: &dyn Source,
        modules: &[(String, usize)],
        input: usize,
        bias: bool,
        options: LoadOptions,
    ) -> Result<Linear> {
        let part = |(module, out): &(String, usize)| source.tensor(&format!("{module}.weight"), &[*out, input]);
        let matrix = Matrix::new(modules.iter().map(part), options.dtype, options.kernels)?;
        let bias = match bias {
            true => {
                let part = |(module, out): &(String, usize)| source.tensor(&format!("{module}.bias"), &[*out]);
                Some(Tensor::cat(&modules.iter().map(part).collect::<Result<Vec<_>>>()?, 0)?)
            }
            false => None,
        };
        Ok(Linear { matrix, bias })
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
    pub fn load(source: &dyn Source, name: &str, width: usize, eps: f64, kernels: Kernels) -> Result<RmsNorm> {
        Ok(RmsNorm { weight: source.tensor(name, &[width])?, eps, kernels })
    }

    pub fn forward(&self, x: &Tensor) -> Result<Tensor> {
        rms_norm(x, &self.weight, self.eps, self.kernels)
    }
}

/// Grouped-query attention with rotary embedding.
pub struct Attention {
    qkv: Linear,
    output: Linear,
    shape: AttentionShape,
    kernels: Kernels,
}

impl Attention {
    /// `prefix` is the module's name, such as `model.layers.0.self_attn`.
    pub fn load(
        source: &dyn Source,
        prefix: &str,
        width: usize,
        shape: AttentionShape,
        bias: bool,
        options: LoadOptions,
    ) -> Result<Attention> {
        let AttentionShape { heads, kv_heads, head_dim, .. } = shape;
        let module = |name: &str, heads: usize| (format!("{prefix}.{name}"), heads * head_dim);
        let inputs = [module("q_proj", heads), module("k_proj", kv_heads), module("v_proj", kv_heads)];
        let qkv = Linear::load(source, &inputs, width, bias, options)?;
        let output = Linear::load(source, &[(format!("{prefix}.o_proj"), width)], heads * head_dim, bias, options)?;
        Ok(Attention { qkv, output, shape, kernels: options.kernels })
    }

    /// What the heads read from the batch: `x [T, D] -> [T, heads * head_dim]`, before the output projection.
    pub fn mix(&self, x: &Tensor, batch: &Batch, rotary: &Rotary) -> Result<Tensor> {
        attention(&self.qkv.forward(x)?, &batch.segments, rotary, &self.shape, self.kernels)
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
    pub fn load(
        source: &dyn Source,
        prefix: &str,
        width: usize,
        inner: usize,
        activation: Activation,
        bias: bool,
        options: LoadOptions,
    ) -> Result<Mlp> {
        let module = |name: &str, out: usize| (format!("{prefix}.{name}"), out);
        let gate_up = Linear::load(source, &[module("gate_proj", inner), module("up_proj", inner)], width, bias, options)?;
        let down = Linear::load(source, &[module("down_proj", width)], inner, bias, options)?;
        Ok(Mlp { gate_up, down, activation, kernels: options.kernels })
    }

    /// `residual + mlp(x)`, `x` and `residual [T, D]`
    pub fn forward_add(&self, x: &Tensor, residual: &Tensor) -> Result<Tensor> {
        self.down.forward_add(&gated(&self.gate_up.forward(x)?, self.activation, self.kernels)?, residual)
    }
}

/// Rows `rows` (u32) of `x [T, D]`.
pub fn select(x: &Tensor, rows: &Tensor) -> Result<Tensor> {
    Ok(x.index_select(rows, 0)?)
}
