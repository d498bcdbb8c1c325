//! Runs the operations on host tensors: upload, compute, download. This is what [`Kernels::Cuda`](crate::kernels::Kernels) means
//! outside a model, so that every test of an operation also runs on the device; a model keeps its numbers there from the first layer
//! to the last.

use std::sync::Arc;

use candle_core::{DType, Device as Candle, Tensor};

use super::attention::RotaryTables;
use super::head::{HeadRoom, STATISTICS_WORDS, SUMS_WORDS, head_chunk, statistics_of_words};
use super::{Arena, AttentionPlan, Buffer, DeltaArrays, DeltaPlan, Device, PrepareOptions, Rows, Weight};
use crate::error::{Error, Result};
use crate::kernels::attention::AttentionShape;
use crate::kernels::cpu::{contiguous, with_floats, with_numbers};
use crate::kernels::delta::{DeltaShape, DeltaWeights};
use crate::kernels::gated::Activation;
use crate::kernels::rotary::{Rotary, RotaryStyle};
use crate::kernels::statistics::HeadOptions;
use crate::kernels::{Segment, Stored, TokenStatistics};

/// Uploads `x` in `dtype`.
pub fn upload(device: &'static Device, x: &Tensor, dtype: Stored) -> Result<Buffer> {
    with_floats(&contiguous(x)?, |x| device.upload(x, dtype))?
}

fn download(device: &'static Device, buffer: &Buffer, shape: (usize, usize), dtype: Stored) -> Result<Tensor> {
    let numbers = device.download(buffer.array(0, shape.0 * shape.1, dtype)?)?;
    Ok(Tensor::from_vec(numbers, shape, &Candle::Cpu)?)
}

fn room(device: &'static Device, len: usize, dtype: Stored) -> Result<Buffer> {
    device.allocate(len * dtype.size_in_bytes() as usize)
}

/// Uploads unsigned integers.
pub(super) fn upload_words(device: &'static Device, words: &[u32]) -> Result<Buffer> {
    let buffer = device.allocate(size_of_val(words))?;
    let mut pinned = device.pinned(size_of_val(words))?;
    pinned.write(0, words)?;
    device.send(&pinned, buffer.array(0, words.len(), Stored::F32)?)?;
    device.synchronize()?;
    Ok(buffer)
}

/// One more than the largest of `numbers`; 0 if there are none.
pub fn end(numbers: &[u32]) -> u32 {
    numbers.iter().max().map_or(0, |&largest| largest.saturating_add(1))
}

/// [`rms_norm`](crate::kernels::norm::rms_norm) on the device.
pub fn rms_norm(x: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let device = Device::get()?;
    let (rows, width) = x.dims2()?;
    let (x, weight, y) =
        (upload(device, x, Stored::F32)?, upload(device, weight, Stored::F32)?, room(device, rows * width, Stored::F32)?);
    device.rms_norm(x.array(0, rows * width, Stored::F32)?, &weight, eps, y.array(0, rows * width, Stored::F32)?)?;
    download(device, &y, (rows, width), Stored::F32)
}

/// [`gated`](crate::kernels::gated::gated) on the device.
pub fn gated(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    let device = Device::get()?;
    let (rows, columns) = gate_up.dims2()?;
    let (x, y) = (upload(device, gate_up, Stored::F32)?, room(device, rows * columns / 2, Stored::F32)?);
    let (x_all, y_all) = (x.array(0, rows * columns, Stored::F32)?, y.array(0, rows * columns / 2, Stored::F32)?);
    device.gated(x_all, None, activation, y_all, columns / 2)?;
    download(device, &y, (rows, columns / 2), Stored::F32)
}

/// [`qk_norm`](crate::kernels::norm::qk_norm) on the device.
pub fn qk_norm(qkv: &Tensor, q_weight: &Tensor, k_weight: &Tensor, heads: usize, kv_heads: usize, eps: f64) -> Result<Tensor> {
    let head_dim = qkv.dim(1)? / (heads + 2 * kv_heads);
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 1.0, window: None, softcap: None };
    let device = Device::get()?;
    let (q, k) = (upload(device, q_weight, Stored::F32)?, upload(device, k_weight, Stored::F32)?);
    let rotary = Rotary::new(&[], 0, RotaryStyle::Half, 1.0);
    let tokens = qkv.dim(0)?;
    let segment = Segment { tokens: 0..tokens, context: Vec::new() };
    let prepared = prepare(device, qkv, &[segment], &vec![0; tokens], &rotary, &shape, Some((&q, &k, eps)), Stored::F32)?;
    download(device, &prepared, (tokens, shape.columns()), Stored::F32)
}

#[expect(clippy::too_many_arguments, reason = "the parts of one operation, named where it is called")]
fn prepare(
    device: &'static Device,
    qkv: &Tensor,
    segments: &[Segment],
    positions: &[u32],
    rotary: &Rotary,
    shape: &AttentionShape,
    norms: Option<(&Buffer, &Buffer, f64)>,
    dtype: Stored,
) -> Result<Buffer> {
    let qkv = upload(device, qkv, dtype)?;
    let tables = RotaryTables::new(device, rotary)?;
    let words = upload_words(device, positions)?;
    let plan = AttentionPlan::new(segments, positions.len(), shape, dtype, device.shared_bytes());
    let options = PrepareOptions { shape, rotary: &tables, bias: None, norms, gated: false, growth: None };
    let all = words.indices(0, positions.len(), end(positions))?;
    let in_place = qkv.array(0, positions.len() * shape.columns(), dtype)?;
    device.prepare_attention(in_place, in_place, &options, &plan, all)?;
    device.synchronize()?;
    Ok(qkv)
}

/// Prepares and runs attention in `dtype`, with optional `sinks [heads]`; `[T, heads * head_dim]` f32.
pub fn attention(
    qkv: &Tensor,
    segments: &[Segment],
    positions: &[usize],
    rotary: &Rotary,
    shape: &AttentionShape,
    sinks: Option<&[f32]>,
    dtype: Stored,
) -> Result<Tensor> {
    let device = Device::get()?;
    let tokens = positions.len();
    let positions: Vec<u32> = positions.iter().map(|&position| position as u32).collect();
    let prepared = prepare(device, qkv, segments, &positions, rotary, shape, None, dtype)?;
    let plan = AttentionPlan::new(segments, tokens, shape, dtype, device.shared_bytes());
    let (tiles, ranges) = (upload_words(device, &plan.tiles)?, upload_words(device, &plan.ranges)?);
    let width = shape.heads * shape.head_dim;
    let y = room(device, tokens * width, dtype)?;
    let sinks = sinks.map(|sinks| device.upload(sinks, Stored::F32)).transpose()?;
    device.attention(
        prepared.array(0, tokens * shape.columns(), dtype)?,
        None,
        &plan,
        tiles.indices(0, plan.tiles.len(), 0)?,
        ranges.indices(0, plan.ranges.len(), 0)?,
        shape,
        sinks.as_ref(),
        y.array(0, tokens * width, dtype)?,
    )?;
    download(device, &y, (tokens, width), dtype)
}

/// The output of the gated delta rule, `[T, H, V]`, without the gates.
pub fn delta(x: &Tensor, weights: &DeltaWeights, segments: &[Segment], shape: &DeltaShape) -> Result<Tensor> {
    let device = Device::get()?;
    let tokens = x.dim(0)?;
    let learnt = DeltaArrays::new(device, weights, shape)?;
    let plan = DeltaPlan::new(segments, tokens, shape);
    let (steps, runs) = (upload_words(device, &plan.steps)?, upload_words(device, &plan.runs)?);
    let (x, room) = (upload(device, x, Stored::F32)?, device.allocate(plan.room(shape))?);
    let arena = Arena::new(&room, Rows::Together);
    let (steps, runs) = (steps.indices(0, plan.steps.len(), 0)?, runs.indices(0, plan.runs.len(), 0)?);
    let y = device.delta(x.array(0, tokens * shape.columns(), Stored::F32)?, &learnt, &plan, steps, runs, shape, &arena)?;
    Ok(Tensor::from_vec(device.download(y)?, (tokens, shape.width()), &Candle::Cpu)?)
}

/// Builds a weight from parts `[N_i, K]`, which are requested one by one.
pub fn weight(first: Tensor, rest: impl Iterator<Item = Result<Tensor>>, dtype: Stored) -> Result<Arc<Weight>> {
    let device = Device::get()?;
    let in_features = first.dims2()?.1;
    let mut parts = Vec::new();
    for part in std::iter::once(Ok(first)).chain(rest) {
        let part = part?;
        let (rows, width) = part.dims2()?;
        if width != in_features {
            return Err(Error::new(format!("weights of {:?} cannot follow others with {in_features} inputs", part.dims())));
        }
        parts.push((upload_part(device, &part, dtype)?, rows));
    }
    Ok(Arc::new(Weight::new(parts, in_features, dtype)?))
}

/// Uploads part of a weight, of any float type, in `dtype`. bf16 parts are uploaded without conversion.
fn upload_part(device: &'static Device, part: &Tensor, dtype: Stored) -> Result<Buffer> {
    if part.dtype() != DType::BF16 {
        return upload(device, &part.to_dtype(DType::F32)?, dtype);
    }
    let stored = with_numbers(part, |numbers| device.upload_bf16(numbers))??;
    if dtype == Stored::Bf16 {
        return Ok(stored);
    }
    let (len, widened) = (part.elem_count(), room(device, part.elem_count(), dtype)?);
    device.widen(stored.array(0, len, Stored::Bf16)?, widened.array(0, len, dtype)?)?;
    Ok(widened)
}

/// `x W^T`, added to `residual` if there is one.
pub fn multiply(x: &Tensor, weight: &Weight, residual: Option<&Tensor>) -> Result<Tensor> {
    let device = Device::get()?;
    let (rows, dtype) = (x.dim(0)?, weight.dtype());
    let x_buffer = upload(device, x, dtype)?;
    let len = rows * weight.out_features();
    let y = match residual {
        Some(residual) => upload(device, residual, Stored::F32)?,
        None => room(device, len, Stored::F32)?,
    };
    device.multiply(
        x_buffer.array(0, x.elem_count(), dtype)?,
        weight,
        y.array(0, len, Stored::F32)?,
        residual.is_some(),
        Rows::Together,
    )?;
    download(device, &y, (rows, weight.out_features()), Stored::F32)
}

/// Rows of a weight, in f32.
pub fn rows(weight: &Weight, ids: &[u32]) -> Result<Tensor> {
    let device = Device::get()?;
    let width = weight.in_features();
    let words = upload_words(device, ids)?;
    let y = room(device, ids.len() * width, Stored::F32)?;
    device.embed(
        weight.array()?,
        words.indices(0, ids.len(), end(ids))?,
        y.array(0, ids.len() * width, Stored::F32)?,
        width,
        1.0,
    )?;
    download(device, &y, (ids.len(), width), Stored::F32)
}

/// The statistics of `targets` at `hidden_nd`.
pub fn head_statistics(
    hidden_nd: &Tensor,
    head_vd: &Weight,
    targets: &[u32],
    options: &HeadOptions,
) -> Result<Vec<TokenStatistics>> {
    head(hidden_nd, head_vd, targets, options, false).map(|(statistics, _)| statistics)
}

/// The `k` largest logits of each token, largest first: `[N][k]`.
pub fn top_logits(hidden_nd: &Tensor, head_vd: &Weight, k: usize, softcap: Option<f32>) -> Result<Vec<Vec<f32>>> {
    let targets = vec![0; hidden_nd.dim(0)?];
    let (_, logits) = head(hidden_nd, head_vd, &targets, &HeadOptions { top_k: k, softcap }, true)?;
    Ok(logits.chunks_exact(k.min(head_vd.out_features())).map(<[f32]>::to_vec).collect())
}

/// The statistics and, if wanted, the largest logits; holds the logits of some rows at a time.
fn head(
    hidden_nd: &Tensor,
    head_vd: &Weight,
    targets: &[u32],
    options: &HeadOptions,
    wants_logits: bool,
) -> Result<(Vec<TokenStatistics>, Vec<f32>)> {
    let device = Device::get()?;
    let (n, vocabulary, dtype) = (targets.len(), head_vd.out_features(), head_vd.dtype());
    let hidden = upload(device, hidden_nd, dtype)?;
    let hidden = hidden.array(0, n * head_vd.in_features(), dtype)?;
    let words = upload_words(device, targets)?;
    let words = words.indices(0, n, end(targets))?;
    let statistics = device.allocate(4 * STATISTICS_WORDS * n)?;
    let all = statistics.indices(0, STATISTICS_WORDS * n, 0)?;
    let chunk = head_chunk(vocabulary).min(n) * vocabulary;
    let logits = device.allocate(4 * chunk)?;
    let top_len = n * options.top_k.min(vocabulary);
    let (top_buffer, sums) = (device.allocate(4 * top_len)?, device.allocate(4 * SUMS_WORDS * n)?);
    let top = top_buffer.array(0, top_len, Stored::F32)?;
    let sums = sums.array(0, SUMS_WORDS * n, Stored::F32)?;
    let room = HeadRoom { logits: logits.array(0, chunk, Stored::F32)?, sums, top_logits: top };
    device.head_statistics(hidden, head_vd, words, all, &room, options)?;
    let pinned = device.pinned(statistics.bytes())?;
    device.fetch(statistics.array(0, STATISTICS_WORDS * n, Stored::F32)?, &pinned)?;
    device.synchronize()?;
    let (words, _) = pinned.words(STATISTICS_WORDS * n)?.as_chunks();
    let top = if wants_logits { device.download(top)? } else { Vec::new() };
    Ok((words.iter().map(statistics_of_words).collect(), top))
}
