//! Helpers that both halves of a block share on a GPU.

use std::sync::Arc;

use super::layers::{Linear, Mlp, RmsNorm};
use super::parameters::Vector;
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::cuda::{Arena, Array, Buffer, Device, Rows, Weight, hosted};
use crate::kernels::matmul::Matrix;

pub(super) fn on_device(matrix: &Matrix) -> Result<&Arc<Weight>> {
    matrix.on_device().ok_or_else(|| Error::new("a weight of the model is not on the GPU"))
}

pub(super) fn vector(device: &'static Device, vector: &Vector) -> Result<Buffer> {
    hosted::upload(device, &vector.get(), Stored::F32)
}

pub(super) fn bias(device: &'static Device, linear: &Linear) -> Result<Option<Buffer>> {
    linear.bias.as_ref().map(|bias| vector(device, bias)).transpose()
}

pub(super) fn norm(device: &'static Device, norm: &RmsNorm) -> Result<Buffer> {
    vector(device, &norm.weight)
}

/// Converts `x` from f32 to `dtype`, for use as the factor of a product.
pub(super) fn factor<'a>(device: &Device, x: Array<'a>, dtype: Stored, arena: &Arena<'a>) -> Result<Array<'a>> {
    if dtype == Stored::F32 {
        return Ok(x);
    }
    let rounded = arena.array(x.len(), dtype)?;
    device.round(x, rounded)?;
    Ok(rounded)
}

/// `activation(gate) * up`: `[T, D] -> [T, F]`.
pub(super) fn open<'a>(
    device: &'static Device,
    mlp: &Mlp,
    bias: Option<Array>,
    x: Array,
    arena: &Arena<'a>,
) -> Result<Array<'a>> {
    open_by(device, mlp, bias, x, arena.rows(), arena)
}

/// Like [`open`], with `rows` saying which rows the product computes together.
pub(super) fn open_by<'a>(
    device: &'static Device,
    mlp: &Mlp,
    bias: Option<Array>,
    x: Array,
    rows: Rows,
    arena: &Arena<'a>,
) -> Result<Array<'a>> {
    let weight = on_device(&mlp.gate_up.matrix)?;
    let (tokens, inner) = (x.len() / weight.in_features(), weight.out_features() / 2);
    let gate_up = arena.array(2 * tokens * inner, weight.dtype())?;
    device.multiply(x, weight, gate_up, false, rows)?;
    let y = arena.array(tokens * inner, weight.dtype())?;
    device.gated(gate_up, bias, mlp.activation, y, inner)?;
    Ok(y)
}
