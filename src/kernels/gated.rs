//! The gated activation between the two products of a feed-forward layer: `activation(gate) * up`.

use candle_core::{DType, Tensor};

use super::Kernels;
use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Activation {
    /// `x / (1 + exp(-x))`: Llama, Qwen, GLM.
    Silu,
    /// `x / 2 (1 + tanh(sqrt(2 / pi) (x + 0.044715 x^3)))`: Gemma.
    GeluTanh,
}

/// `gate_up [T, 2F]`, the gate in the first `F` columns `-> activation(gate) * up [T, F]`, with its gradient.
pub fn gated(gate_up: &Tensor, activation: Activation, kernels: Kernels) -> Result<Tensor> {
    let (_, columns) = gate_up.dims2()?;
    if columns % 2 != 0 {
        return Err(Error::new(format!("gate and up need an even number of columns, found {columns}")));
    }
    match kernels {
        Kernels::Reference | Kernels::Fused => reference(gate_up, activation),
    }
}

fn reference(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    let width = gate_up.dim(1)? / 2;
    let gate = gate_up.narrow(1, 0, width)?.to_dtype(DType::F32)?;
    let up = gate_up.narrow(1, width, width)?.to_dtype(DType::F32)?;
    let activated = match activation {
        Activation::Silu => gate.silu()?,
        Activation::GeluTanh => gate.gelu()?,
    };
    Ok((activated * up)?.to_dtype(gate_up.dtype())?)
}
