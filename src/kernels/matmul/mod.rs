//! The product `x W^T` with a weight matrix that is stored once.
//!
//! Shapes: `T` tokens, `K` inputs, `N` outputs; `x_tk`, `w_nk`, `y_tn`. The plain expression is `x.matmul(&w.t())`. [`Kernels::Fused`] packs
//! the weight at load time into panels of 48 outputs, which the processor reads front to back, and keeps no second copy;
//! [`Kernels::Reference`] is candle's product, on any device, with gradients for the weight. A fused weight is frozen, and gradients only
//! pass through to the input, until [`Matrix::train`] turns it into a [`Trained`] one.
//!
//! In bf16 both factors are rounded to bfloat16 and the products accumulated in f32, with either kernels; in bf16x3 each factor is the sum of
//! two bfloat16.
//!
//! ```text
//! pack.rs         the storage format: panels
//! fused.rs        tiles of the output on all cores; tile.rs one tile in registers, amx.rs with AMX; dispatch.rs chooses
//! trained.rs      a weight under training; gradient.rs the gradients
//! ```

#[cfg(target_arch = "x86_64")]
pub(super) mod amx;
mod dispatch;
mod fused;
mod gradient;
mod pack;
mod tile;
mod trained;

use std::sync::Arc;

use candle_core::{CpuStorage, CustomOp1, CustomOp2, DType, Device, Layout, Shape, Tensor};
use rayon::prelude::*;

pub(super) use dispatch::{dispatch, widens};
pub(super) use fused::{Rows, multiply};
use gradient::add_input_gradient;
pub(super) use gradient::input_gradient;
pub(super) use pack::{PANEL, Panels};
pub(super) use tile::{MANY_ROWS, Product, ProductKernel, tile, widen};
pub use trained::Trained;

use super::cpu::{contiguous, floats, output, with_floats};
use super::cuda::{Weight, hosted};
use super::level::Level;
use super::quantized::{self, Blocks};
use super::{Dtype, Kernels};
use crate::error::{Error, Result};

/// A weight matrix `W [N, K]`: `N` outputs, `K` inputs.
#[derive(Debug, Clone)]
pub struct Matrix {
    out_features: usize,
    in_features: usize,
    dtype: Dtype,
    store: Store,
}

#[derive(Debug, Clone)]
enum Store {
    /// `[N, K]`, f32 or bf16; f32 for bf16x3.
    Plain(Tensor),
    Packed(Arc<Panels>),
    Trained(Arc<Trained>),
    /// A frozen weight in the quantised blocks of its file, as concatenated parts; for products only.
    Blocks(Arc<[Blocks]>),
    /// A frozen weight on the GPU.
    Device(Arc<Weight>),
}

impl Matrix {
    /// Concatenates `parts` (`[N_i, K]` each, any float type) along `N`. The parts are requested one by one and dropped once they are stored,
    /// so only one of them need be in memory beside the result.
    pub fn new(parts: impl IntoIterator<Item = Result<Tensor>>, dtype: Dtype, kernels: Kernels) -> Result<Matrix> {
        let mut parts = parts.into_iter();
        let first = parts.next().ok_or_else(|| Error::new("a weight matrix was asked for with no parts"))??;
        let in_features = first.dims2()?.1;
        if in_features == 0 {
            return Err(Error::new(format!("a weight matrix of shape {:?} has no inputs", first.dims())));
        }
        let store = match kernels {
            Kernels::Reference => Store::Plain(join(first, parts, dtype)?),
            Kernels::Fused => Store::Packed(Arc::new(pack(first, parts, dtype)?)),
            Kernels::Cuda => Store::Device(hosted::weight(first, parts, dtype.stored()?)?),
        };
        let out_features = match &store {
            Store::Plain(weight) => weight.dims2()?.0,
            Store::Packed(panels) => panels.out_features(),
            Store::Trained(trained) => trained.out_features(),
            Store::Device(weight) => weight.out_features(),
            Store::Blocks(parts) => parts.iter().map(Blocks::out_features).sum(),
        };
        Ok(Matrix { out_features, in_features, dtype, store })
    }

    /// A weight that stays in the quantised blocks of its file: the concatenated `parts`.
    pub(crate) fn in_blocks(parts: Vec<Blocks>) -> Result<Matrix> {
        let in_features = parts.first().map_or(0, Blocks::in_features);
        if in_features == 0 || parts.iter().any(|part| part.in_features() != in_features) {
            return Err(Error::new("the parts of a weight in blocks have other numbers of inputs, or none"));
        }
        let out_features = parts.iter().map(Blocks::out_features).sum();
        Ok(Matrix { out_features, in_features, dtype: Dtype::F32, store: Store::Blocks(parts.into()) })
    }

    /// `x W^T`: `[T, K]` f32 -> `[T, N]` f32.
    pub fn forward(&self, x_tk: &Tensor) -> Result<Tensor> {
        self.check_input(x_tk)?;
        match &self.store {
            Store::Plain(weight) => plain_forward(weight, x_tk, self.dtype),
            Store::Device(weight) => hosted::multiply(x_tk, weight, None),
            Store::Blocks(parts) => self.multiply_blocks(parts, x_tk, None),
            _ => Ok(contiguous(x_tk)?.apply_op1(self.linear()?)?),
        }
    }

    /// `residual + x W^T`: `[T, K]`, `[T, N]` f32 -> `[T, N]` f32.
    pub fn forward_add(&self, x_tk: &Tensor, residual_tn: &Tensor) -> Result<Tensor> {
        self.check_input(x_tk)?;
        let expected = [x_tk.dims()[0], self.out_features];
        if residual_tn.dims() != expected || residual_tn.dtype() != DType::F32 {
            return Err(Error::new(format!(
                "a residual of {expected:?} f32 was expected, and {:?} {:?} found",
                residual_tn.dims(),
                residual_tn.dtype()
            )));
        }
        match &self.store {
            Store::Plain(weight) => Ok((residual_tn + plain_forward(weight, x_tk, self.dtype)?)?),
            Store::Device(weight) => hosted::multiply(x_tk, weight, Some(residual_tn)),
            Store::Blocks(parts) => self.multiply_blocks(parts, x_tk, Some(residual_tn)),
            _ => Ok(contiguous(x_tk)?.apply_op2(&contiguous(residual_tn)?, self.linear()?)?),
        }
    }

    /// The gradient of the input of [`Matrix::forward`], `dy W`: `[T, N] -> [T, K]`; also adds `dy^T x` to the gradient of a trained weight.
    /// For backward passes without candle's autograd, which sums every gradient on one core.
    pub fn backward(&self, x_tk: &Tensor, dy_tn: &Tensor) -> Result<Tensor> {
        self.backward_beside(x_tk, dy_tn, None)
    }

    /// Like [`Matrix::backward`], if another matrix reads the same input: returns `dy W` plus `dy' W'` for the pair `beside`, whose weight
    /// gradient is left unchanged.
    pub fn backward_beside(&self, x_tk: &Tensor, dy_tn: &Tensor, beside: Option<(&Matrix, &Tensor)>) -> Result<Tensor> {
        self.add_gradient(x_tk, dy_tn)?;
        let mut dx = Vec::new();
        for (matrix, dy_tn) in std::iter::once((self, dy_tn)).chain(beside) {
            matrix.check_input(x_tk)?;
            matrix.check_gradient(x_tk, dy_tn)?;
            let linear = matrix.linear()?;
            with_floats(dy_tn, |dy_tn| {
                add_input_gradient(Level::current(), &linear.panels, dy_tn, x_tk.dims()[0], &mut dx);
            })?;
        }
        Ok(super::cpu::gradient(dx, x_tk)?)
    }

    /// Adds `dy^T x` to the gradient of a trained weight; does nothing for a frozen one.
    pub fn add_gradient(&self, x_tk: &Tensor, dy_tn: &Tensor) -> Result<()> {
        self.check_input(x_tk)?;
        self.check_gradient(x_tk, dy_tn)?;
        if let Some(trained) = self.trained() {
            add_weight_gradient(trained, x_tk, dy_tn)?;
        }
        Ok(())
    }

    /// Rows of `W` as stored, `[ids.len(), K]` f32: the embedding of a model whose head is its embedding.
    pub fn rows(&self, ids: &[u32]) -> Result<Tensor> {
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.out_features) {
            return Err(Error::new(format!("row {id} was asked of a matrix of {} rows", self.out_features)));
        }
        match &self.store {
            Store::Plain(weight) => {
                let ids = Tensor::new(ids, weight.device())?;
                let rows = weight.index_select(&ids, 0)?.to_dtype(DType::F32)?;
                match self.dtype {
                    Dtype::F32 | Dtype::Bf16 => Ok(rows),
                    Dtype::Bf16x3 => {
                        let [upper, lower] = in_two(&rows)?;
                        Ok((upper + lower)?)
                    }
                }
            }
            Store::Device(weight) => hosted::rows(weight, ids),
            Store::Blocks(parts) => rows_of(self.in_features, ids, |id, row| block_row(parts, id, row)),
            Store::Packed(panels) => rows_of(self.in_features, ids, |id, row| panels.row_into(id, row)),
            Store::Trained(trained) => {
                let panels = trained.stored();
                rows_of(self.in_features, ids, |id, row| {
                    panels.row_into(id, row);
                    if self.dtype == Dtype::Bf16x3 {
                        row.iter_mut().for_each(|x| *x = pack::held_in_parts(*x));
                    }
                })
            }
        }
    }

    /// `N`
    pub fn out_features(&self) -> usize {
        self.out_features
    }

    /// `K`
    pub fn in_features(&self) -> usize {
        self.in_features
    }

    /// The format in which the product is computed.
    pub fn dtype(&self) -> Dtype {
        self.dtype
    }

    /// The memory that the weight takes, in bytes.
    pub fn bytes(&self) -> usize {
        match &self.store {
            Store::Plain(weight) => weight.elem_count() * weight.dtype().size_in_bytes(),
            Store::Packed(panels) => panels.bytes(),
            Store::Trained(trained) => trained.bytes(),
            Store::Device(weight) => weight.bytes(),
            Store::Blocks(parts) => parts.iter().map(Blocks::bytes).sum(),
        }
    }

    /// Makes the weight trainable, with products in `dtype`. Its packed f32 numbers become the master weight; a weight that has been rounded
    /// cannot be trained.
    pub fn train(&mut self, dtype: Dtype) -> Result<Arc<Trained>> {
        let empty = Store::Packed(Arc::new(Panels::new(self.in_features, Dtype::F32)));
        let trained = match std::mem::replace(&mut self.store, empty) {
            Store::Trained(trained) => trained,
            Store::Packed(panels) if panels.dtype() == Dtype::F32 => {
                let panels = Arc::try_unwrap(panels).map_err(|_| Error::new("a weight that is in use cannot be trained"))?;
                Arc::new(Trained::new(panels, dtype))
            }
            _ => return Err(Error::new("only a fused f32 weight can be trained")),
        };
        self.dtype = dtype;
        self.store = Store::Trained(trained.clone());
        Ok(trained)
    }

    /// A matrix that is trainable from the start.
    pub fn from_trained(trained: Arc<Trained>) -> Matrix {
        Matrix {
            out_features: trained.out_features(),
            in_features: trained.in_features(),
            dtype: trained.dtype(),
            store: Store::Trained(trained),
        }
    }

    /// The trained weight, if it is trainable.
    pub fn trained(&self) -> Option<&Arc<Trained>> {
        match &self.store {
            Store::Trained(trained) => Some(trained),
            _ => None,
        }
    }

    /// The weight on the GPU, if it is there.
    pub fn on_device(&self) -> Option<&Arc<Weight>> {
        match &self.store {
            Store::Device(weight) => Some(weight),
            _ => None,
        }
    }

    /// The panels of a fused matrix, in the precision of its products.
    pub(super) fn panels(&self) -> Option<Arc<Panels>> {
        match &self.store {
            Store::Plain(_) | Store::Device(_) | Store::Blocks(_) => None,
            Store::Packed(panels) => Some(panels.clone()),
            Store::Trained(trained) => Some(trained.panels()),
        }
    }

    /// The parts of a weight that stays in the quantised blocks of its file.
    pub(super) fn blocks(&self) -> Option<&[Blocks]> {
        match &self.store {
            Store::Blocks(parts) => Some(parts),
            _ => None,
        }
    }

    fn multiply_blocks(&self, parts: &[Blocks], x_tk: &Tensor, residual_tn: Option<&Tensor>) -> Result<Tensor> {
        let n_rows = x_tk.dims()[0];
        let product = |residual: Option<&[f32]>| {
            with_floats(&contiguous(x_tk)?, |x| Ok(quantized::multiply(Level::current(), x, n_rows, parts, residual)))?
        };
        let y: Result<Vec<f32>> = match residual_tn {
            None => product(None),
            Some(residual) => with_floats(&contiguous(residual)?, |residual| product(Some(residual)))?,
        };
        Ok(Tensor::from_vec(y?, (n_rows, self.out_features), &Device::Cpu)?)
    }

    fn linear(&self) -> Result<Linear> {
        let panels = self.panels().ok_or_else(|| Error::new("this weight is not packed"))?;
        Ok(Linear { panels, trained: self.trained().cloned() })
    }

    fn check_gradient(&self, x_tk: &Tensor, dy_tn: &Tensor) -> Result<()> {
        let expected = [x_tk.dims()[0], self.out_features];
        if dy_tn.dims() != expected {
            return Err(Error::new(format!("a gradient of {expected:?} was expected, and {:?} found", dy_tn.dims())));
        }
        Ok(())
    }

    fn check_input(&self, x_tk: &Tensor) -> Result<()> {
        match x_tk.dims() {
            [_, k] if *k == self.in_features && x_tk.dtype() == DType::F32 => Ok(()),
            found => Err(Error::new(format!(
                "a matrix with {k} inputs takes [T, {k}] f32, and got {found:?} {dtype:?}",
                k = self.in_features,
                dtype = x_tk.dtype()
            ))),
        }
    }
}

/// Dequantises output `n` of the concatenated parts.
fn block_row(parts: &[Blocks], mut n: usize, row: &mut [f32]) {
    for part in parts {
        match n.checked_sub(part.out_features()) {
            None => return part.row_into(n, row),
            Some(rest) => n = rest,
        }
    }
}

/// The rows `ids`, `[ids.len(), K]`, each written by `fill`.
fn rows_of(k: usize, ids: &[u32], fill: impl Fn(usize, &mut [f32]) + Sync) -> Result<Tensor> {
    let mut rows = vec![0.0; ids.len() * k];
    rows.par_chunks_mut(k).zip(ids).for_each(|(row, &id)| fill(id as usize, row));
    Ok(Tensor::from_vec(rows, (ids.len(), k), &Device::Cpu)?)
}

/// The reference product.
fn plain_forward(weight_nk: &Tensor, x_tk: &Tensor, dtype: Dtype) -> Result<Tensor> {
    Ok(match dtype {
        Dtype::F32 => x_tk.matmul(&weight_nk.t()?)?,
        Dtype::Bf16 => x_tk.to_dtype(DType::BF16)?.to_dtype(DType::F32)?.matmul(&weight_nk.to_dtype(DType::F32)?.t()?)?,
        Dtype::Bf16x3 => {
            let ([x, x_rest], [w, w_rest]) = (in_two(x_tk)?, in_two(weight_nk)?);
            ((x.matmul(&w.t()?)? + x.matmul(&w_rest.t()?)?)? + x_rest.matmul(&w.t()?)?)?
        }
    })
}

/// The nearest finite bf16, and the bf16 nearest to the remainder, both as f32.
fn in_two(x: &Tensor) -> Result<[Tensor; 2]> {
    let rounded = |x: &Tensor| x.to_dtype(DType::BF16)?.to_dtype(DType::F32);
    let upper = rounded(x)?.clamp(half::bf16::MIN.to_f32(), half::bf16::MAX.to_f32())?;
    let lower = rounded(&(x - &upper)?)?;
    Ok([upper, lower])
}

fn join(first: Tensor, rest: impl Iterator<Item = Result<Tensor>>, dtype: Dtype) -> Result<Tensor> {
    let dtype = match dtype {
        Dtype::F32 | Dtype::Bf16x3 => DType::F32,
        Dtype::Bf16 => DType::BF16,
    };
    let mut parts = vec![first.to_dtype(dtype)?];
    drop(first);
    for part in rest {
        parts.push(part?.to_dtype(dtype)?);
    }
    Ok(if parts.len() == 1 { parts.remove(0) } else { Tensor::cat(&parts, 0)? })
}

fn pack(first: Tensor, rest: impl Iterator<Item = Result<Tensor>>, dtype: Dtype) -> Result<Panels> {
    let in_features = first.dims2()?.1;
    let mut panels = Panels::new(in_features, dtype);
    for part in std::iter::once(Ok(first)).chain(rest) {
        let part = part?;
        if part.dims2()?.1 != in_features {
            return Err(Error::new(format!("weights of {:?} cannot follow others with {in_features} inputs", part.dims())));
        }
        with_floats(&contiguous(&part.to_dtype(DType::F32)?)?, |part_nk| panels.push(part_nk))?;
    }
    Ok(panels)
}

/// The fused product as a tensor operation: `x W^T` with one argument, `residual + x W^T` with two. The gradient of a trained weight goes
/// directly to its own storage, because candle would copy the whole weight for every sum.
struct Linear {
    panels: Arc<Panels>,
    trained: Option<Arc<Trained>>,
}

impl Linear {
    /// Adds to the weight's gradient and returns the gradient of the input.
    fn backward(&self, x_tk: &Tensor, dy_tn: &Tensor) -> candle_core::Result<Tensor> {
        if let Some(trained) = &self.trained {
            add_weight_gradient(trained, x_tk, dy_tn)?;
        }
        let dx = with_floats(dy_tn, |dy_tn| input_gradient(Level::current(), &self.panels, dy_tn, x_tk.dims()[0]))?;
        super::cpu::gradient(dx, x_tk)
    }
}

fn add_weight_gradient(trained: &Trained, x_tk: &Tensor, dy_tn: &Tensor) -> candle_core::Result<()> {
    with_floats(x_tk, |x_tk| {
        with_floats(dy_tn, |dy_tn| {
            trained.add_gradient(Level::current(), x_tk, dy_tn, x_tk.len() / trained.in_features());
        })
    })?
}

impl CustomOp1 for Linear {
    fn name(&self) -> &'static str {
        "packed-linear"
    }

    fn cpu_fwd(&self, x: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let n_rows = layout.dims()[0];
        let y = fused::multiply(Level::current(), floats(x, layout)?, n_rows, &self.panels, None);
        Ok(output(y, (n_rows, self.panels.out_features())))
    }

    fn bwd(&self, x: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        Ok(Some(self.backward(x, dy)?))
    }
}

impl CustomOp2 for Linear {
    fn name(&self) -> &'static str {
        "packed-linear-add"
    }

    fn cpu_fwd(
        &self,
        x: &CpuStorage,
        x_layout: &Layout,
        residual: &CpuStorage,
        residual_layout: &Layout,
    ) -> candle_core::Result<(CpuStorage, Shape)> {
        let n_rows = x_layout.dims()[0];
        let residual = floats(residual, residual_layout)?;
        let y = fused::multiply(Level::current(), floats(x, x_layout)?, n_rows, &self.panels, Some(residual));
        Ok(output(y, (n_rows, self.panels.out_features())))
    }

    fn bwd(
        &self,
        x: &Tensor,
        _residual: &Tensor,
        _y: &Tensor,
        dy: &Tensor,
    ) -> candle_core::Result<(Option<Tensor>, Option<Tensor>)> {
        Ok((Some(self.backward(x, dy)?), Some(dy.clone())))
    }
}

#[cfg(test)]
mod tests;
