//! Row-wise and element-wise operations on device arrays: each checks lengths and formats, then launches its kernel and returns at once.
//! attention.rs and head.rs work in the same way.

use super::array::Argument::{self, F32, Pointer, U32, U64};
use super::array::{Array, Indices};
use super::compile::Source;
use super::device::{Buffer, Device};
use crate::error::{Error, Result};
use crate::kernels::Stored;
use crate::kernels::gated::{Activation, ClampedSwiglu};

/// The threads of a block that processes one row, and those of norm.cu.
const ROW_THREADS: usize = 256;
const NORM_THREADS: usize = 256;
/// The blocks of a kernel that iterates over all numbers.
const WALKING_BLOCKS: usize = 4096;

impl Device {
    /// Rounds f32 to bf16.
    pub fn round(&self, x: Array, y: Array) -> Result<()> {
        y.expect("rounded numbers", x.len(), Stored::Bf16)?;
        self.convert("round_to_bf16", x, y)
    }

    /// Converts bf16 to f32.
    pub fn widen(&self, x: Array, y: Array) -> Result<()> {
        y.expect("widened numbers", x.len(), Stored::F32)?;
        self.convert("widen_to_f32", x, y)
    }

    fn convert(&self, name: &'static str, x: Array, y: Array) -> Result<()> {
        let blocks = x.len().div_ceil(256).min(WALKING_BLOCKS);
        let kernel = self.kernel(Source::Rows, name)?;
        // SAFETY: the kernel reads and writes `len` numbers, which both arrays hold.
        unsafe { self.launch(kernel, (blocks, 1), 256, 0, &[x.argument(), y.argument(), U64(x.len() as u64)]) }
    }

    /// `y [T, D]` f32: the rows `ids` of `table [V, D]`, multiplied by `scale`.
    pub fn embed(&self, table: Array, ids: Indices, y: Array, width: usize, scale: f32) -> Result<()> {
        y.expect("embeddings", ids.len() * width, Stored::F32)?;
        check_rows(ids, table, width)?;
        let name = if table.dtype() == Stored::F32 { "embed_f32" } else { "embed_bf16" };
        self.by_row(name, ids.len(), width, &[table.argument(), ids.argument(), y.argument(), U32(width as u32), F32(scale)])
    }

    /// `y [N, D]`: the rows `rows` of `x`.
    pub fn take_rows(&self, x: Array, rows: Indices, y: Array, width: usize) -> Result<()> {
        y.expect("chosen rows", rows.len() * width, x.dtype())?;
        check_rows(rows, x, width)?;
        let bytes = width * x.dtype().size_in_bytes() as usize;
        let in_units = [x.address, y.address, bytes as u64].into_iter().all(|number| number.is_multiple_of(16));
        let (name, width) = match x.dtype() {
            _ if in_units => ("take_rows_16", bytes / 16),
            Stored::F32 => ("take_rows_f32", width),
            Stored::Bf16 => ("take_rows_bf16", width),
        };
        self.by_row(name, rows.len(), width, &[x.argument(), rows.argument(), y.argument(), U32(width as u32)])
    }

    /// Copies the columns `first ..` of the rows of `x`, as many as `y` has, to the rows `rows` of `y`; these must be distinct.
    pub fn put_rows(&self, x: Array, x_width: usize, first: usize, rows: Indices, y: Array, width: usize) -> Result<()> {
        y.expect("rows to be replaced", y.len(), x.dtype())?;
        check_rows(rows, y, width)?;
        if first + width > x_width || whole_rows("a choice of columns", x, x_width)? < rows.len() {
            return Err(Error::new(format!(
                "columns {first} to {} of {} rows are not there on the GPU",
                first + width,
                rows.len()
            )));
        }
        let name = if x.dtype() == Stored::F32 { "put_rows_f32" } else { "put_rows_bf16" };
        let [x_width, first, width_word] = [x_width, first, width].map(|number| U32(number as u32));
        self.by_row(name, rows.len(), width, &[x.argument(), rows.argument(), y.argument(), x_width, first, width_word])
    }

    /// Adds `bias [N]` to every row of `y [T, N]`, f32.
    pub fn add_bias(&self, bias: &Buffer, y: Array, width: usize) -> Result<()> {
        let bias = bias.array(0, width, Stored::F32)?;
        let rows = whole_rows("a bias", y, width)?;
        y.expect("what a bias is added to", y.len(), Stored::F32)?;
        self.by_row("add_bias", rows, width, &[bias.argument(), y.argument(), U32(width as u32)])
    }

    fn by_row(&self, name: &'static str, rows: usize, width: usize, arguments: &[Argument]) -> Result<()> {
        let kernel = self.kernel(Source::Rows, name)?;
        // SAFETY: the callers have checked that the arrays hold `rows` rows of `width` numbers, and that the rows they name exist.
        unsafe { self.launch(kernel, (rows, 1), threads_for(width), 0, arguments) }
    }

    /// `y [T, D] = x / sqrt(mean(x^2) + eps) * weight`, computed in f32 and stored in the format of `y`.
    pub fn rms_norm(&self, x: Array, weight: &Buffer, eps: f64, y: Array) -> Result<()> {
        let name = if y.dtype() == Stored::F32 { "rms_norm_f32" } else { "rms_norm_bf16" };
        self.norm(name, x, weight, eps, y)
    }

    /// Like [`Device::rms_norm`], added to `y`, which is f32.
    pub fn rms_norm_add(&self, x: Array, weight: &Buffer, eps: f64, y: Array) -> Result<()> {
        y.expect("what a norm is added to", y.len(), Stored::F32)?;
        self.norm("rms_norm_add", x, weight, eps, y)
    }

    fn norm(&self, name: &'static str, x: Array, weight: &Buffer, eps: f64, y: Array) -> Result<()> {
        let width = weight.bytes() / size_of::<f32>();
        let rows = whole_rows("a norm", y, width)?;
        x.expect("the input of a norm", y.len(), Stored::F32)?;
        let weight = weight.array(0, width, Stored::F32)?;
        let kernel = self.kernel(Source::Norm, name)?;
        // Wide rows get more threads, so that each thread keeps its numbers in registers.
        let row_threads = match width {
            0..=1024 => 32,
            1025..=4096 => 128,
            _ => NORM_THREADS,
        };
        let [rows_word, width, row_threads_word] = [rows, width, row_threads].map(|number| U32(number as u32));
        let arguments = [x.argument(), weight.argument(), y.argument(), rows_word, width, row_threads_word, F32(eps as f32)];
        let blocks = (rows.div_ceil(NORM_THREADS / row_threads), 1);
        // SAFETY: `x` and `y` hold `rows` rows of `width` numbers, the weight one; the kernel divides its threads by `row_threads`.
        unsafe { self.launch(kernel, blocks, NORM_THREADS as u32, 0, &arguments) }
    }

    /// `y [T, F] = activation(gate) * up` for `gate_up [T, 2F]`, to which `bias [2F]` is added first, if given. Both arrays have the same
    /// format.
    pub fn gated(&self, gate_up: Array, bias: Option<Array>, activation: Activation, y: Array, width: usize) -> Result<()> {
        let rows = whole_rows("a gated activation", y, width)?;
        gate_up.expect("gate and up", 2 * y.len(), y.dtype())?;
        let bias = match bias {
            Some(bias) => bias.expect("the bias of gate and up", 2 * width, Stored::F32).map(|()| bias.argument())?,
            None => Pointer(0),
        };
        let name = match (activation, y.dtype()) {
            (Activation::Silu, Stored::F32) => "silu_f32",
            (Activation::Silu, Stored::Bf16) => "silu_bf16",
            (Activation::GeluTanh, Stored::F32) => "gelu_tanh_f32",
            (Activation::GeluTanh, Stored::Bf16) => "gelu_tanh_bf16",
            (Activation::Sigmoid, Stored::F32) => "sigmoid_f32",
            (Activation::Sigmoid, Stored::Bf16) => "sigmoid_bf16",
            (Activation::ClampedSwiglu(_), Stored::F32) => "clamped_swiglu_f32",
            (Activation::ClampedSwiglu(_), Stored::Bf16) => "clamped_swiglu_bf16",
        };
        let kernel = self.kernel(Source::Gated, name)?;
        // The columns of a thread, as in gated.cu.
        let columns = [8, 2, 1].into_iter().find(|columns| width.is_multiple_of(*columns)).unwrap_or(1);
        let threads = width / columns;
        let block = threads_for(threads);
        let blocks = (rows, threads.div_ceil(block as usize));
        let mut arguments = vec![gate_up.argument(), bias, y.argument(), U32(width as u32)];
        if let Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) = activation {
            arguments.extend([F32(alpha), F32(limit)]);
        }
        // SAFETY: `gate_up` holds `rows` rows of `2 width` numbers, `y` of `width`, the bias `2 width` or nothing.
        unsafe { self.launch(kernel, blocks, block, 0, &arguments) }
    }
}

/// A pointer to the buffer's f32 numbers, or a null pointer.
pub(super) fn optional(buffer: Option<&Buffer>, len: usize) -> Result<Argument> {
    Ok(match buffer {
        Some(buffer) => buffer.array(0, len, Stored::F32)?.argument(),
        None => Pointer(0),
    })
}

/// The number of rows of `width` in `y`; an error if it does not consist of whole rows.
pub(super) fn whole_rows(what: &str, y: Array, width: usize) -> Result<usize> {
    if width == 0 || !y.len().is_multiple_of(width) || u32::try_from(width).is_err() {
        return Err(Error::new(format!("{} numbers are no rows of {width}, as {what} wants them", y.len())));
    }
    Ok(y.len() / width)
}

/// Returns an error unless all `rows` exist in `x`.
pub(super) fn check_rows(rows: Indices, x: Array, width: usize) -> Result<()> {
    let there = whole_rows("a choice of rows", x, width)?;
    if rows.end as usize > there {
        return Err(Error::new(format!("row {} was asked of {there} on the GPU", rows.end - 1)));
    }
    Ok(())
}

/// Enough threads for a row, in whole warps.
pub(super) fn threads_for(width: usize) -> u32 {
    width.next_multiple_of(32).clamp(32, ROW_THREADS) as u32
}
