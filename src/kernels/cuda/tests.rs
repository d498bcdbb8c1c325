//! Tests of bf16, and of operations without a counterpart for host tensors. The tests of the other operations run on the device, too. Without a
//! GPU these tests do nothing; with `DIAGNOSE_DEVICE_TESTS` set they then fail.

use std::sync::Arc;

use candle_core::{DType, Device as Candle, Tensor};

use super::hosted;
use super::*;
use crate::kernels::attention::{AttentionShape, Heads, attention, positions};
use crate::kernels::delta::{DeltaShape, beside_gates, open};
use crate::kernels::gated::{Activation, ClampedSwiglu, gated};
use crate::kernels::matmul::Matrix;
use crate::kernels::norm::{qk_norm, rms_norm};
use crate::kernels::rotary::{Rotary, RotaryStyle};
use crate::kernels::statistics::{HeadOptions, head_statistics, statistics_of_logits};
use crate::kernels::testing::{close, device, near, noise};
use crate::kernels::{Dtype, Kernels, Segment, Stored, TokenStatistics};

fn tensor(numbers: &[f32], rows: usize, columns: usize) -> Tensor {
    Tensor::from_slice(numbers, (rows, columns), &Candle::Cpu).unwrap()
}

fn flat(x: &Tensor) -> Vec<f64> {
    x.flatten_all().unwrap().to_vec1::<f32>().unwrap().into_iter().map(f64::from).collect()
}

/// A prefix of 21 tokens that three segments share, one of them through another; a long sequence; one of a single token.
fn segments() -> Vec<Segment> {
    let ranges = |ranges: &[(usize, usize)]| ranges.iter().map(|&(begin, end)| begin..end).collect();
    vec![
        Segment { tokens: 0..21, context: ranges(&[]) },
        Segment { tokens: 21..91, context: ranges(&[(0, 21)]) },
        Segment { tokens: 91..96, context: ranges(&[(0, 21)]) },
        Segment { tokens: 96..105, context: ranges(&[(0, 21), (91, 96)]) },
        Segment { tokens: 105..455, context: ranges(&[]) },
        Segment { tokens: 455..456, context: ranges(&[]) },
    ]
}

/// [`close`], and in bf16 also [`near`], because the former accepts anything for small numbers there.
#[track_caller]
fn close_in(dtype: Stored, got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    close(got, expected, tolerance, what);
    if dtype == Stored::Bf16 {
        near(got, expected, what);
    }
}

#[test]
fn rounding_is_to_nearest_even() {
    let Some(device) = device() else { return };
    let numbers: Vec<f32> =
        noise(1000, 3.0, 1).into_iter().chain([0.0, -0.0, 1.0, 1.0 + 1.0 / 256.0, 1.0 + 3.0 / 256.0, 3.0e38, 1.0e-40]).collect();
    let rounded = device.upload(&numbers, Stored::Bf16).unwrap();
    let got = device.download(rounded.array(0, numbers.len(), Stored::Bf16).unwrap()).unwrap();
    let expected: Vec<f32> = numbers.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
    assert_eq!(got, expected);
}

/// Joined from parts, for products in either format, and uploaded in three pieces, the third of which reuses the first pinned memory.
#[test]
fn what_is_stored_in_bf16_goes_to_the_device_as_it_is() {
    let Some(device) = device() else { return };
    let parts = [(3, 1), (70, 2), (1, 3)].map(|(rows, seed)| tensor(&noise(rows * 37, 1.0, seed), rows, 37));
    let parts = parts.map(|part| part.to_dtype(DType::BF16).unwrap());
    for dtype in [Dtype::F32, Dtype::Bf16] {
        let rows = |stored: DType| {
            let matrix = Matrix::new(parts.iter().map(|part| Ok(part.to_dtype(stored)?)), dtype, Kernels::Cuda).unwrap();
            matrix.rows(&(0..74).collect::<Vec<u32>>()).unwrap().to_vec2::<f32>().unwrap()
        };
        assert_eq!(rows(DType::BF16), rows(DType::F32), "{dtype}");
    }
    let numbers: Vec<half::bf16> = (0..(2 << 23) + 5u32).map(|i| half::bf16::from_bits((i % 0x7f80) as u16)).collect();
    let stored = device.upload_bf16(&numbers).unwrap();
    let got = device.download(stored.array(0, numbers.len(), Stored::Bf16).unwrap()).unwrap();
    assert!(got.iter().zip(&numbers).all(|(got, number)| got.to_bits() == number.to_f32().to_bits()));
}

#[test]
fn rows_are_taken_and_biased() {
    let Some(device) = device() else { return };
    // The second width's rows are multiples of 16 bytes in either format, the third's in f32 only.
    for width in [37, 40, 36] {
        rows_of(device, width);
    }
}

fn rows_of(device: &'static Device, width: usize) {
    let numbers = noise(5 * width, 1.0, 2);
    let row = |i: usize| &numbers[i * width..(i + 1) * width];
    for (dtype, products) in [(Stored::F32, Dtype::F32), (Stored::Bf16, Dtype::Bf16)] {
        let expected = |x: f32| if dtype == Stored::F32 { x } else { half::bf16::from_f32(x).to_f32() };
        let matrix = Matrix::new([Ok(tensor(&numbers, 5, width))], products, Kernels::Cuda).unwrap();
        let got = matrix.rows(&[4, 0, 4]).unwrap().to_vec2::<f32>().unwrap();
        for (got, from) in got.iter().zip([4, 0, 4]) {
            assert_eq!(*got, row(from).iter().map(|&x| expected(x)).collect::<Vec<_>>());
        }
        let x = device.upload(&numbers, dtype).unwrap();
        let words = device.upload(&[3, 1].map(f32::from_bits), Stored::F32).unwrap();
        let y = device.allocate(2 * width * 4).unwrap();
        let y = y.array(0, 2 * width, dtype).unwrap();
        device.take_rows(x.array(0, 5 * width, dtype).unwrap(), words.indices(0, 2, 4).unwrap(), y, width).unwrap();
        let got = device.download(y).unwrap();
        assert_eq!(got, [row(3), row(1)].concat().into_iter().map(expected).collect::<Vec<_>>());
    }
    let (y, bias) = (device.upload(&numbers, Stored::F32).unwrap(), device.upload(row(0), Stored::F32).unwrap());
    let all = y.array(0, 5 * width, Stored::F32).unwrap();
    device.add_bias(&bias, all, width).unwrap();
    let expected: Vec<f64> = numbers.iter().enumerate().map(|(i, &x)| f64::from(x) + f64::from(row(0)[i % width])).collect();
    close(&device.download(all).unwrap(), &expected, 1e-6, "sums of rows");
    let words = device.upload(&[4, 2].map(f32::from_bits), Stored::F32).unwrap();
    let x = device.allocate(2 * width * 4).unwrap();
    let x = x.array(0, 2 * width, Stored::F32).unwrap();
    // Rows that do not exist are refused.
    assert!(device.take_rows(all, words.indices(0, 2, 6).unwrap(), x, width).is_err());
}

#[test]
fn norms_and_gates_in_bf16_are_those_in_f32_rounded() {
    let Some(device) = device() else { return };
    for width in [6, 7, 64, 576, 1000] {
        let (x, weight) = (noise(7 * width, 2.0, 3), noise(width, 1.0, 4));
        let expected = flat(
            &rms_norm(
                &tensor(&x, 7, width),
                &Tensor::from_slice(&weight, width, &Candle::Cpu).unwrap(),
                1e-5,
                Kernels::Reference,
            )
            .unwrap(),
        );
        let (from, weight) = (device.upload(&x, Stored::F32).unwrap(), device.upload(&weight, Stored::F32).unwrap());
        let y = device.allocate(7 * width * 4).unwrap();
        let (from, to) = (from.array(0, 7 * width, Stored::F32).unwrap(), y.array(0, 7 * width, Stored::Bf16).unwrap());
        device.rms_norm(from, &weight, 1e-5, to).unwrap();
        // Half a unit in the last of eight binary places.
        close_in(Stored::Bf16, &device.download(to).unwrap(), &expected, 1.0 / 256.0, "norm");
        let to = y.array(0, 7 * width, Stored::F32).unwrap();
        device.copy(from, to).unwrap();
        device.rms_norm_add(from, &weight, 1e-5, to).unwrap();
        let added: Vec<f64> = expected.iter().zip(&x).map(|(norm, &x)| norm + f64::from(x)).collect();
        close(&device.download(to).unwrap(), &added, 1e-5, "added norm");

        let clamped = Activation::ClampedSwiglu(ClampedSwiglu { alpha: 1.7, limit: 2.0 });
        for activation in [Activation::Silu, Activation::GeluTanh, Activation::Sigmoid, clamped] {
            let (gate_up, bias) = (noise(6 * width, 4.0, 5), noise(2 * width, 1.0, 6));
            let rounded: Vec<f32> = gate_up.iter().map(|&x| half::bf16::from_f32(x).to_f32()).collect();
            let biased: Vec<f32> = rounded.iter().enumerate().map(|(i, &x)| x + bias[i % (2 * width)]).collect();
            let expected = flat(&gated(&tensor(&biased, 3, 2 * width), activation, Kernels::Reference).unwrap());
            let (from, bias) = (device.upload(&gate_up, Stored::Bf16).unwrap(), device.upload(&bias, Stored::F32).unwrap());
            let to = y.array(0, 3 * width, Stored::Bf16).unwrap();
            let bias = bias.array(0, 2 * width, Stored::F32).unwrap();
            device.gated(from.array(0, 6 * width, Stored::Bf16).unwrap(), Some(bias), activation, to, width).unwrap();
            close_in(Stored::Bf16, &device.download(to).unwrap(), &expected, 1.0 / 256.0, "gated activation");
        }
    }
}

#[test]
fn attention_over_shared_prefixes_of_all_widths() {
    let Some(_) = device() else { return };
    for head_dim in [8, 20, 64, 80, 128, 192, 256] {
        for (window, softcap) in [(None, None), (Some(16), None), (Some(1), None), (None, Some(3.0))] {
            let scale = 2.0 / (head_dim as f32).sqrt();
            let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim, scale, window, softcap };
            let frequencies: Vec<f64> = (0..head_dim / 4).map(|i| 100f64.powf(-(i as f64) / 8.0)).collect();
            let rotary = Rotary::new(&frequencies, 512, RotaryStyle::Interleaved, 1.0);
            let qkv = tensor(&noise(456 * shape.columns(), 2.0, head_dim as u64), 456, shape.columns());
            let heads = Heads { shape: &shape, rotary: &rotary, sinks: None, dtype: Dtype::F32 };
            let expected = flat(&attention(&qkv, &segments().into(), &heads, Kernels::Reference).unwrap().read);
            let positions = positions(&segments(), 456).unwrap();
            for (dtype, tolerance) in [(Stored::F32, 2e-5), (Stored::Bf16, 3e-2)] {
                let got = hosted::attention(&qkv, &segments(), &positions, &rotary, &shape, None, dtype).unwrap();
                let got: Vec<f32> = got.flatten_all().unwrap().to_vec1().unwrap();
                close_in(dtype, &got, &expected, tolerance, &format!("{dtype} head of {head_dim}, window {window:?}"));
            }
        }
    }
}

/// Segments of all lengths, with blocks of 8 warps and of 4; rows outside all views are left unchanged.
#[test]
fn attention_in_bf16_of_many_lengths() {
    let Some(_) = device() else { return };
    let shape = AttentionShape { heads: 6, kv_heads: 2, head_dim: 64, scale: 0.125, window: None, softcap: None };
    let rotary = Rotary::new(&[1.0, 0.3, 0.01], 2048, RotaryStyle::Half, 1.0);
    for lengths in [vec![1, 2, 15, 16, 17, 63, 64, 65, 31], vec![127, 128, 129, 700, 1, 257]] {
        let mut segments = Vec::new();
        let mut begin = 0;
        for length in lengths {
            segments.push(Segment { tokens: begin..begin + length, context: Vec::new() });
            begin += length;
        }
        let qkv = tensor(&noise(begin * shape.columns(), 2.0, 9), begin, shape.columns());
        let heads = Heads { shape: &shape, rotary: &rotary, sinks: None, dtype: Dtype::F32 };
        let expected = flat(&attention(&qkv, &segments.clone().into(), &heads, Kernels::Reference).unwrap().read);
        let positions = positions(&segments, begin).unwrap();
        let got = hosted::attention(&qkv, &segments, &positions, &rotary, &shape, None, Stored::Bf16).unwrap();
        close_in(Stored::Bf16, &got.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &expected, 3e-2, "attention");
    }
}

/// Compares projections with gates and a bias, both kinds of norms, and growing queries with the reference: for heads of all widths that are
/// divided differently among threads, rotated in whole and in part.
#[test]
fn queries_and_keys_are_prepared_beside_their_gates() {
    let Some(device) = device() else { return };
    use RotaryStyle::{Half, Interleaved};
    for (head_dim, pairs, style) in [
        (12, 3, Half),
        (7, 3, Interleaved),
        (64, 32, Half),
        (80, 16, Half),
        (128, 64, Interleaved),
        (250, 125, Half),
        (256, 40, Half),
    ] {
        check_prepared(device, head_dim, pairs, style);
    }
}

fn check_prepared(device: &'static Device, head_dim: usize, pairs: usize, style: RotaryStyle) {
    let (heads, kv_heads, tokens) = (6, 2, 30);
    let shape = AttentionShape { heads, kv_heads, head_dim, scale: 1.0, window: None, softcap: None };
    let (width, columns) = (heads * head_dim, shape.columns());
    let (growth, original_positions) = (0.5f32, 8);
    let positions: Vec<usize> = (0..tokens).map(|t| t * 37 % 96).collect();
    let words: Vec<f32> = positions.iter().map(|&position| f32::from_bits(position as u32)).collect();
    let frequencies: Vec<f64> = (0..pairs).map(|pair| 100f64.powf(-(pair as f64) / pairs as f64)).collect();
    let rotary = Rotary::new(&frequencies, 96, style, 1.0);
    let (x, bias) = (noise(tokens * (columns + width), 2.0, 1), noise(columns + width, 1.0, 2));
    for (q_width, k_width) in [(head_dim, head_dim), (width, kv_heads * head_dim)] {
        let (q_weight, k_weight) = (noise(q_width, 1.0, 3), noise(k_width, 1.0, 4));
        for (dtype, tolerance) in [(Stored::F32, 1e-5), (Stored::Bf16, 4e-2)] {
            let x = device.upload(&x, dtype).unwrap();
            let x = x.array(0, tokens * (columns + width), dtype).unwrap();
            let rows = device.download(x).unwrap();
            let biased: Vec<f32> = rows.iter().enumerate().map(|(i, x)| x + bias[i % (columns + width)]).collect();
            let biased = tensor(&biased, tokens, columns + width);
            let both = biased.narrow(1, 0, 2 * width).unwrap().reshape((tokens, heads, 2, head_dim)).unwrap();
            let part = |number| both.narrow(2, number, 1).unwrap().reshape((tokens, width)).unwrap();
            let qkv = Tensor::cat(&[part(0), biased.narrow(1, 2 * width, columns - width).unwrap()], 1).unwrap();
            let weight = |w: &[f32]| Tensor::from_slice(w, w.len(), &Candle::Cpu).unwrap();
            let normed =
                qk_norm(&qkv, &weight(&q_weight), &weight(&k_weight), heads, kv_heads, 1e-5, Kernels::Reference).unwrap();
            let of_heads = normed.reshape((tokens, heads + 2 * kv_heads, head_dim)).unwrap();
            let turned = rotary.rotate(&of_heads.narrow(1, 0, heads + kv_heads).unwrap(), &positions).unwrap();
            let prepared = Tensor::cat(&[&turned, &of_heads.narrow(1, heads + kv_heads, kv_heads).unwrap()], 1).unwrap();
            let factor = |t: usize| 1.0 + f64::from(growth) * (1.0 + (positions[t] / original_positions) as f64).ln();
            let grown = flat(&prepared).into_iter().enumerate();
            let expected: Vec<f64> = grown.map(|(i, x)| if i % columns < width { x * factor(i / columns) } else { x }).collect();

            let upload = |numbers: &[f32]| device.upload(numbers, Stored::F32).unwrap();
            let (q_norm, k_norm, bias, tables) =
                (upload(&q_weight), upload(&k_weight), upload(&bias), RotaryTables::new(device, &rotary).unwrap());
            let options = PrepareOptions {
                shape: &shape,
                rotary: &tables,
                bias: Some(&bias),
                norms: Some((&q_norm, &k_norm, 1e-5)),
                gated: true,
                growth: Some((growth, original_positions)),
            };
            let segment = Segment { tokens: 0..tokens, context: Vec::new() };
            let plan = AttentionPlan::new(&[segment], tokens, &shape, dtype, device.shared_bytes());
            let (words, y) = (upload(&words), device.allocate(4 * tokens * columns).unwrap());
            let y = y.array(0, tokens * columns, dtype).unwrap();
            device.prepare_attention(x, y, &options, &plan, words.indices(0, tokens, 96).unwrap()).unwrap();
            let what = format!("{dtype}, {style:?}, heads of {head_dim}, norms of {q_width}");
            close_in(dtype, &device.download(y).unwrap(), &expected, tolerance, &what);

            let read = noise(tokens * width, 2.0, 5);
            let to = device.upload(&read, dtype).unwrap();
            let to = to.array(0, read.len(), dtype).unwrap();
            let given = device.download(to).unwrap();
            device.open_gates(x, &options, &plan, to).unwrap();
            let open = |(given, gate): (&f32, f64)| f64::from(*given) / (1.0 + (-gate).exp());
            let expected: Vec<f64> = given.iter().zip(flat(&part(1))).map(open).collect();
            close_in(dtype, &device.download(to).unwrap(), &expected, tolerance / 4.0, &what);
            // Without gates nothing needs to be moved.
            assert!(
                device
                    .prepare_attention(
                        y,
                        to,
                        &PrepareOptions { gated: false, ..options },
                        &plan,
                        words.indices(0, tokens, 96).unwrap()
                    )
                    .is_err()
            );
        }
    }
}

/// Sinks in bf16, with a window and a softcap, give the results of f32.
#[test]
fn sinks_take_their_share_in_bf16() {
    let Some(_) = device() else { return };
    for (head_dim, window, softcap) in [(64, None, None), (20, Some(16), None), (128, None, Some(3.0)), (256, Some(5), None)] {
        let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim, scale: 2.0 / (head_dim as f32).sqrt(), window, softcap };
        let rotary = Rotary::new(&[1.0, 0.3], 512, RotaryStyle::Half, 1.0);
        let qkv = tensor(&noise(456 * shape.columns(), 2.0, 3), 456, shape.columns());
        let sinks = [0.5, -30.0, 6.0, 2.0];
        let of_reference = Tensor::new(&sinks, &Candle::Cpu).unwrap();
        let (segments, positions) = (segments(), positions(&segments(), 456).unwrap());
        let heads = Heads { shape: &shape, rotary: &rotary, sinks: Some(&of_reference), dtype: Dtype::F32 };
        let expected = flat(&attention(&qkv, &segments.clone().into(), &heads, Kernels::Reference).unwrap().read);
        for (dtype, tolerance) in [(Stored::F32, 2e-5), (Stored::Bf16, 3e-2)] {
            let got = hosted::attention(&qkv, &segments, &positions, &rotary, &shape, Some(&sinks), dtype).unwrap();
            close_in(
                dtype,
                &got.flatten_all().unwrap().to_vec1::<f32>().unwrap(),
                &expected,
                tolerance,
                &format!("{dtype} {head_dim}"),
            );
        }
    }
}

/// The experts of a layer on the host, rounded as products in `dtype` round: `gate_up [E, 2F, D]`, `down [E, D, F]`, `x [T, D]`,
/// `logits [T, E]`, and biases for each.
struct ExpertLayer {
    tokens: usize,
    n_experts: usize,
    per_token: usize,
    width: usize,
    inner: usize,
    dtype: Stored,
    x: Vec<f32>,
    logits: Vec<f32>,
    gate_up: Vec<f32>,
    down: Vec<f32>,
    router_bias: Vec<f32>,
    correction: Vec<f32>,
    gate_up_biases: Vec<f32>,
    down_biases: Vec<f32>,
    residual: Vec<f32>,
}

/// The same experts on the device.
struct ExpertsThere {
    device: &'static Device,
    x: Buffer,
    logits: Buffer,
    gate_up: ExpertWeights,
    down: ExpertWeights,
    router_bias: Buffer,
    correction: Buffer,
    gate_up_biases: Buffer,
    down_biases: Buffer,
}

impl ExpertLayer {
    fn new([tokens, n_experts, per_token, width, inner]: [usize; 5], dtype: Stored) -> ExpertLayer {
        let factors = |n: usize, amplitude: f32, seed: u64| -> Vec<f32> {
            let round = |x: f32| if dtype == Stored::F32 { x } else { half::bf16::from_f32(x).to_f32() };
            noise(n, amplitude, seed).into_iter().map(round).collect()
        };
        ExpertLayer {
            tokens,
            n_experts,
            per_token,
            width,
            inner,
            dtype,
            x: factors(tokens * width, 1.0, 1),
            logits: noise(tokens * n_experts, 3.0, 2),
            gate_up: factors(n_experts * 2 * inner * width, 0.5, 3),
            down: factors(n_experts * width * inner, 0.5, 4),
            router_bias: noise(n_experts, 0.5, 5),
            correction: noise(n_experts, 0.5, 6),
            gate_up_biases: noise(n_experts * 2 * inner, 0.5, 7),
            down_biases: noise(n_experts * width, 0.5, 8),
            residual: noise(tokens * width, 1.0, 9),
        }
    }

    fn upload(&self, device: &'static Device) -> ExpertsThere {
        let weights = |all: &[f32], rows: usize, columns: usize| {
            let weight = |numbers: &[f32]| {
                let buffer = device.upload(numbers, self.dtype).unwrap();
                Arc::new(Weight::new(vec![(buffer, rows)], columns, self.dtype).unwrap())
            };
            ExpertWeights::new(device, all.chunks_exact(rows * columns).map(weight).collect()).unwrap()
        };
        let upload = |numbers: &[f32]| device.upload(numbers, Stored::F32).unwrap();
        ExpertsThere {
            device,
            x: device.upload(&self.x, self.dtype).unwrap(),
            logits: upload(&self.logits),
            gate_up: weights(&self.gate_up, 2 * self.inner, self.width),
            down: weights(&self.down, self.width, self.inner),
            router_bias: upload(&self.router_bias),
            correction: upload(&self.correction),
            gate_up_biases: upload(&self.gate_up_biases),
            down_biases: upload(&self.down_biases),
        }
    }

    /// The experts of each token, in ascending order, and their weights.
    fn chosen(&self, softmax: bool, normalise: bool, scale: f64) -> Vec<Vec<(usize, f64)>> {
        let of_token = |logits: &[f32]| {
            let logits: Vec<f64> = logits.iter().zip(&self.router_bias).map(|(logit, bias)| f64::from(logit + bias)).collect();
            let sum: f64 = logits.iter().map(|logit| logit.exp()).sum();
            let score = |e: usize| if softmax { logits[e].exp() / sum } else { 1.0 / (1.0 + (-logits[e]).exp()) };
            let corrected = |e: usize| score(e) + f64::from(self.correction[e]);
            let mut experts: Vec<usize> = (0..self.n_experts).collect();
            experts.sort_by(|&a, &b| corrected(b).total_cmp(&corrected(a)));
            experts.truncate(self.per_token);
            experts.sort_unstable();
            let total: f64 = if normalise { experts.iter().map(|&e| score(e)).sum() } else { 1.0 };
            experts.into_iter().map(|e| (e, score(e) / total * scale)).collect()
        };
        self.logits.chunks_exact(self.n_experts).map(of_token).collect()
    }
}

impl ExpertsThere {
    fn options(&self, layer: &ExpertLayer, softmax: bool, normalise: bool, scale: f64) -> RouterOptions<'_> {
        RouterOptions {
            n_experts: layer.n_experts,
            per_token: layer.per_token,
            softmax,
            normalise,
            scale: scale as f32,
            bias: Some(&self.router_bias),
            correction: Some(&self.correction),
        }
    }

    /// The residual stream of tokens `first .. first + n` after their experts, computed without any other token.
    fn of_tokens(&self, layer: &ExpertLayer, first: usize, n: usize) -> Vec<f32> {
        let ExpertLayer { n_experts, width, inner, dtype, per_token, .. } = *layer;
        let options = self.options(layer, true, true, 1.0);
        let room = self.device.allocate(routing_bytes(n, n_experts, per_token)).unwrap();
        let logits = self.logits.array(4 * first * n_experts, n * n_experts, Stored::F32).unwrap();
        let routing = self.device.route(logits, &options, &Arena::new(&room, Rows::Together)).unwrap();
        let slots = routing.n_slots();
        let opened = self.device.allocate(4 * slots * inner).unwrap();
        let opened = opened.array(0, slots * inner, dtype).unwrap();
        let x = self.x.array(first * width * dtype.size_in_bytes() as usize, n * width, dtype).unwrap();
        let biases = Some(&self.gate_up_biases);
        self.device.open_experts(x, &self.gate_up, biases, Activation::Silu, &routing, opened).unwrap();
        let given = self.device.allocate(4 * slots * width).unwrap();
        let given = given.array(0, slots * width, Stored::F32).unwrap();
        self.device.close_experts(opened, &self.down, &routing, 0, given).unwrap();
        let residual = self.device.upload(&layer.residual[first * width..(first + n) * width], Stored::F32).unwrap();
        let residual = residual.array(0, n * width, Stored::F32).unwrap();
        self.device.add_experts(given, &routing, 0, Some(&self.down_biases), residual, width).unwrap();
        self.device.download(residual).unwrap()
    }
}

fn words(device: &'static Device, of: Indices) -> Vec<usize> {
    let array = Array { address: of.address, len: of.len, dtype: Stored::F32, memory: of.memory };
    device.download(array).unwrap().into_iter().map(|word| word.to_bits() as usize).collect()
}

/// Compares every step with f64 on the host: experts with few rows, many or none, and widths that no block divides.
#[test]
fn experts_get_their_tokens_and_give_their_sums() {
    let Some(device) = device() else { return };
    let sizes = [
        [1, 1, 1, 20, 12],
        [5, 7, 3, 21, 9],
        [150, 7, 3, 200, 136],
        [77, 40, 40, 21, 5],
        [300, 130, 8, 72, 40],
        [64, 130, 8, 40, 70],
    ];
    for (sizes, dtype) in sizes.into_iter().flat_map(|sizes| [(sizes, Stored::F32), (sizes, Stored::Bf16)]) {
        let layer = ExpertLayer::new(sizes, dtype);
        let there = layer.upload(device);
        let ExpertLayer { tokens, n_experts, per_token, width, inner, .. } = layer;
        let clamped = Activation::ClampedSwiglu(ClampedSwiglu { alpha: 1.7, limit: 2.0 });
        for (softmax, normalise, scale, activation) in
            [(true, true, 1.0, Activation::Silu), (false, true, 2.5, clamped), (true, false, 1.0, Activation::GeluTanh)]
        {
            let what = format!("{per_token} of {n_experts} experts for {tokens} tokens in {dtype}, {activation:?}");
            let room = device.allocate(routing_bytes(tokens, n_experts, per_token)).unwrap();
            let logits = there.logits.array(0, layer.logits.len(), Stored::F32).unwrap();
            let options = there.options(&layer, softmax, normalise, scale);
            let routing = device.route(logits, &options, &Arena::new(&room, Rows::Together)).unwrap();

            let chosen = layer.chosen(softmax, normalise, scale);
            let experts: Vec<usize> = chosen.iter().flatten().map(|(expert, _)| *expert).collect();
            let weights: Vec<f64> = chosen.iter().flatten().map(|(_, weight)| *weight).collect();
            assert_eq!(words(device, routing.experts), experts, "{what}");
            let weights_there = device.download(routing.weights).unwrap();
            close(&weights_there, &weights, 1e-5, &what);
            // The choices sorted by expert, and by token within an expert.
            let mut order: Vec<usize> = (0..experts.len()).collect();
            order.sort_by_key(|&choice| experts[choice]);
            let slots = words(device, routing.slots);
            assert!(order.iter().enumerate().all(|(slot, &choice)| slots[choice] == slot), "{what}");
            assert!(words(device, routing.tokens).iter().zip(&order).all(|(token, choice)| *token == choice / per_token));
            let tiles = words(device, routing.tiles);
            let mut slot = 0;
            for tile in tiles.chunks_exact(3).filter(|tile| tile[2] > 0) {
                assert!(tile[1] == slot && tile[2] <= routing.rows_of_tile.number(), "{what}: {tile:?}");
                assert!(order[slot..slot + tile[2]].iter().all(|&choice| experts[choice] == tile[0]), "{what}: {tile:?}");
                slot += tile[2];
            }
            assert_eq!(slot, order.len(), "{what}");

            let opened = device.allocate(4 * slot * inner).unwrap();
            let opened = opened.array(0, slot * inner, dtype).unwrap();
            let x = there.x.array(0, layer.x.len(), dtype).unwrap();
            device.open_experts(x, &there.gate_up, Some(&there.gate_up_biases), activation, &routing, opened).unwrap();
            let dot = |a: &[f32], b: &[f32]| a.iter().zip(b).map(|(a, b)| f64::from(*a) * f64::from(*b)).sum::<f64>();
            let row = |all: &[f32], row: usize, width: usize| all[row * width..][..width].to_vec();
            let mut expected = Vec::new();
            for &choice in &order {
                let (expert, x) = (experts[choice], row(&layer.x, choice / per_token, width));
                let of = |i: usize| {
                    let at = 2 * inner * expert + i;
                    dot(&x, &row(&layer.gate_up, at, width)) + f64::from(layer.gate_up_biases[at])
                };
                expected.extend((0..inner).map(|i| activated(activation, of(i), of(inner + i))));
            }
            let opened_there = device.download(opened).unwrap();
            let tolerance = 1e-5 * (width.max(inner) as f64).sqrt();
            close_in(dtype, &opened_there, &expected, if dtype == Stored::F32 { tolerance } else { 1.0 / 256.0 }, &what);

            // In two parts, as if there were no room for all columns.
            let residual = device.upload(&layer.residual, Stored::F32).unwrap();
            let residual = residual.array(0, layer.residual.len(), Stored::F32).unwrap();
            let mut sums: Vec<f64> = layer.residual.iter().map(|&x| f64::from(x)).collect();
            for (first, columns) in [(0, width / 2), (width / 2, width - width / 2)] {
                let given = device.allocate(4 * slot * columns).unwrap();
                let given = given.array(0, slot * columns, Stored::F32).unwrap();
                device.close_experts(opened, &there.down, &routing, first, given).unwrap();
                device.add_experts(given, &routing, first, Some(&there.down_biases), residual, width).unwrap();
                let mut expected = Vec::new();
                for (slot, &choice) in order.iter().enumerate() {
                    let (expert, opened) = (experts[choice], row(&opened_there, slot, inner));
                    expected.extend((first..first + columns).map(|i| dot(&opened, &row(&layer.down, width * expert + i, inner))));
                    for i in 0..columns {
                        let (number, bias) = (expected[slot * columns + i], layer.down_biases[width * expert + first + i]);
                        sums[choice / per_token * width + first + i] += weights[choice] * (number + f64::from(bias));
                    }
                }
                close(&device.download(given).unwrap(), &expected, tolerance, &what);
            }
            close(&device.download(residual).unwrap(), &sums, tolerance, &what);
        }
    }
}

fn activated(activation: Activation, gate: f64, up: f64) -> f64 {
    match activation {
        Activation::Silu => gate / (1.0 + (-gate).exp()) * up,
        Activation::GeluTanh => 0.5 * gate * (1.0 + (0.797_884_560_802_865_4 * (gate + 0.044_715 * gate.powi(3))).tanh()) * up,
        Activation::Sigmoid => up / (1.0 + (-gate).exp()),
        Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) => {
            let (alpha, limit) = (f64::from(alpha), f64::from(limit));
            let gate = gate.min(limit);
            (1.0 + up.clamp(-limit, limit)) * gate / (1.0 + (-alpha * gate).exp())
        }
    }
}

/// Alone, a token's experts have one row each, in tiles for few rows; together many, in tiles for many. Rows that do not begin at multiples of
/// 16 bytes use another code path.
#[test]
fn what_experts_give_a_token_does_not_depend_on_others_to_the_bit() {
    let Some(device) = device() else { return };
    for (dtype, width) in [(Stored::F32, 100), (Stored::Bf16, 104), (Stored::Bf16, 37)] {
        let layer = ExpertLayer::new([200, 4, 2, width, 72], dtype);
        let there = layer.upload(device);
        let together = there.of_tokens(&layer, 0, 200);
        assert!(together.iter().all(|x| x.is_finite()));
        for token in [0, 1, 77, 199] {
            assert!(there.of_tokens(&layer, token, 1) == together[token * width..][..width], "token {token} in {dtype}");
        }
        assert!(there.of_tokens(&layer, 3, 40) == together[3 * width..43 * width], "40 tokens in {dtype}");
    }
}

/// The addresses of their weights are invalid, so that reading them faults.
#[test]
fn experts_that_nobody_chose_are_not_read() {
    let Some(device) = device() else { return };
    for dtype in [Stored::F32, Stored::Bf16] {
        let layer = ExpertLayer::new([2, 9, 2, 40, 24], dtype);
        let mut there = layer.upload(device);
        let expected = there.of_tokens(&layer, 0, 2);
        let chosen = layer.chosen(true, true, 1.0);
        let is_chosen = |expert: usize| chosen.iter().flatten().any(|(other, _)| *other == expert);
        assert!((0..9).any(|expert| !is_chosen(expert)));
        for weights in [&mut there.gate_up, &mut there.down] {
            let addresses = weights.addresses.indices(0, 18, 0).unwrap();
            let kept = words(device, addresses).into_iter().enumerate();
            let kept: Vec<u32> = kept.map(|(i, word)| if is_chosen(i / 2) { word as u32 } else { 0 }).collect();
            weights.addresses = hosted::upload_words(device, &kept).unwrap();
        }
        assert_eq!(there.of_tokens(&layer, 0, 2), expected);
    }
}

/// The first of equal experts is chosen. A token with a NaN logit gets NaN from its experts, and affects no other token.
#[test]
fn damaged_choices_of_experts_leave_no_numbers() {
    let Some(device) = device() else { return };
    let mut layer = ExpertLayer::new([3, 4, 2, 24, 16], Stored::F32);
    layer.router_bias.fill(0.0);
    layer.correction.fill(0.0);
    layer.logits = vec![1.0, 2.0, 2.0, 2.0, 1.0, 0.5, 3.0, 0.0, 5.0, 5.0, 5.0, 5.0];
    let sound = layer.upload(device).of_tokens(&layer, 0, 3);
    assert!(sound.iter().all(|x| x.is_finite()));
    layer.logits[5] = f32::NAN;
    let there = layer.upload(device);
    let damaged = there.of_tokens(&layer, 0, 3);
    assert!(damaged[24..48].iter().all(|x| x.is_nan()), "{damaged:?}");
    assert!(damaged[..24] == sound[..24] && damaged[48..] == sound[48..]);
    let room = device.allocate(routing_bytes(3, 4, 2)).unwrap();
    let logits = there.logits.array(0, 12, Stored::F32).unwrap();
    let options = there.options(&layer, true, true, 1.0);
    let routing = device.route(logits, &options, &Arena::new(&room, Rows::Together)).unwrap();
    let experts = words(device, routing.experts);
    assert_eq!((&experts[..2], &experts[4..]), (&[1, 2][..], &[0, 1][..]));
}

#[test]
fn gates_stand_beside_each_token_of_the_batch() {
    let Some(device) = device() else { return };
    let (tokens, width) = (9, 300);
    let [y, gates, residual] = [(tokens * width, 1), (tokens, 2), (tokens * width, 3)].map(|(n, seed)| noise(n, 3.0, seed));
    let [on_y, on_gates, on_residual] = [&y, &gates, &residual].map(|x| device.upload(x, Stored::F32).unwrap());
    let to = on_residual.array(0, residual.len(), Stored::F32).unwrap();
    let (from, gates_on) = (on_y.array(0, y.len(), Stored::F32).unwrap(), on_gates.array(0, tokens, Stored::F32).unwrap());
    device.add_gated(from, gates_on, to, width).unwrap();
    let share = |i: usize| 1.0 / (1.0 + (-f64::from(gates[i / width])).exp());
    let expected: Vec<f64> = (0..y.len()).map(|i| f64::from(residual[i]) + share(i) * f64::from(y[i])).collect();
    close(&device.download(to).unwrap(), &expected, 1e-6, "gated sum");
}

/// The norm and gates after the gated delta rule, in both layouts of the projections.
#[test]
fn what_the_delta_rule_gives_is_normed_and_gated() {
    let Some(device) = device() else { return };
    let tokens = 11;
    for grouped in [true, false] {
        let shape = DeltaShape { key_heads: 2, value_heads: 6, key_dim: 5, value_dim: 40, kernel: 4, grouped };
        let (x, given) = (noise(tokens * shape.columns(), 2.0, 1), noise(tokens * shape.width(), 2.0, 2));
        let weight = noise(shape.value_dim, 1.0, 3);
        let on_host = |x: &[f32]| Tensor::from_slice(x, (tokens, x.len() / tokens), &Candle::Cpu).unwrap();
        let mixed = beside_gates(&on_host(&x), &on_host(&given), shape).unwrap();
        let expected = flat(&open(&mixed, &Tensor::from_slice(&weight, 40, &Candle::Cpu).unwrap(), 1e-6).unwrap());
        let [on_x, on_given, on_weight] = [&x, &given, &weight].map(|x| device.upload(x, Stored::F32).unwrap());
        for (dtype, tolerance) in [(Stored::F32, 1e-5), (Stored::Bf16, 1.0 / 256.0)] {
            let y = device.allocate(4 * given.len()).unwrap();
            let y = y.array(0, given.len(), dtype).unwrap();
            let (x, given) = (on_x.array(0, x.len(), Stored::F32).unwrap(), on_given.array(0, given.len(), Stored::F32).unwrap());
            device.delta_open(x, given, &on_weight, 1e-6, &shape, y).unwrap();
            close_in(dtype, &device.download(y).unwrap(), &expected, tolerance, &format!("{dtype}, grouped {grouped}"));
        }
    }
}

#[test]
fn products_in_bf16_are_exact_sums_of_rounded_factors() {
    let Some(device) = device() else { return };
    for (rows, n, k) in [(1, 8, 8), (5, 24, 16), (130, 1536, 576), (33, 1000, 200)] {
        let round = |x: f32| half::bf16::from_f32(x).to_f32();
        let (x, w) = (noise(rows * k, 1.0, 7), noise(n * k, 1.0, 8));
        let expected: Vec<f64> = (0..rows * n)
            .map(|i| (0..k).map(|j| f64::from(round(x[i / n * k + j])) * f64::from(round(w[i % n * k + j]))).sum())
            .collect();
        let matrix = Matrix::new(
            [Ok(tensor(&w[..n / 2 * k], n / 2, k)), Ok(tensor(&w[n / 2 * k..], n - n / 2, k))],
            Dtype::Bf16,
            Kernels::Cuda,
        );
        let matrix = matrix.unwrap();
        let got = matrix.forward(&tensor(&x, rows, k)).unwrap();
        close(&got.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &expected, 1e-5 * (k as f64).sqrt(), "product");
        let residual = noise(rows * n, 5.0, 9);
        let got = matrix.forward_add(&tensor(&x, rows, k), &tensor(&residual, rows, n)).unwrap();
        let added: Vec<f64> = expected.iter().zip(&residual).map(|(x, &r)| x + f64::from(r)).collect();
        close(&got.flatten_all().unwrap().to_vec1::<f32>().unwrap(), &added, 1e-5 * (k as f64).sqrt(), "sum");
        // The product of a part of an array, which has a weaker alignment.
        let (from, to) = (device.upload(&x, Stored::Bf16).unwrap(), device.allocate(4 * rows * n).unwrap());
        let (last, to) =
            (from.array(2 * (rows - 1) * k, k, Stored::Bf16).unwrap(), to.array(4 * (rows - 1) * n, n, Stored::F32).unwrap());
        device.multiply(last, matrix.on_device().unwrap(), to, false, Rows::Together).unwrap();
        close(&device.download(to).unwrap(), &expected[(rows - 1) * n..], 1e-5 * (k as f64).sqrt(), "product of the last row");
        // With a bf16 result.
        let from = device.upload(&x, Stored::Bf16).unwrap();
        let to = device.allocate(2 * rows * n).unwrap();
        let to = to.array(0, rows * n, Stored::Bf16).unwrap();
        device
            .multiply(from.array(0, rows * k, Stored::Bf16).unwrap(), matrix.on_device().unwrap(), to, false, Rows::Together)
            .unwrap();
        // Rounded once, to eight binary places: partial sums that are rounded before they are added lose more if they cancel out.
        for (got, expected) in device.download(to).unwrap().iter().zip(&expected) {
            let allowed = expected.abs() / 256.0 + 1e-5 * (k as f64).sqrt();
            assert!((f64::from(*got) - expected).abs() <= allowed, "rounded product {got}, not {expected}");
        }
    }
}

/// Every statistic over a large vocabulary, with ties, softcaps and many K, in chunks.
#[test]
fn statistics_of_a_large_vocabulary() {
    let Some(_) = device() else { return };
    let (n, width) = (300, 4);
    for (vocabulary, top_k, softcap) in
        [(50_000, 20, None), (151_936, 20, Some(5.0)), (3_001, 1, None), (1_500, 64, None), (7, 20, None)]
    {
        let (hidden, mut words) = (noise(n * width, 2.0, 11), noise(vocabulary * width, 2.0, 12));
        // Identical rows of the head cause ties at every rank.
        words.copy_within(0..(vocabulary / 8) * width, (vocabulary / 2) * width);
        let targets: Vec<u32> = (0..n).map(|i| (i * 7919 % vocabulary) as u32).collect();
        let head = Matrix::new([Ok(tensor(&words, vocabulary, width))], Dtype::F32, Kernels::Cuda).unwrap();
        let hidden = tensor(&hidden, n, width);
        let options = HeadOptions { top_k, softcap };
        let got = head_statistics(&hidden, &head, &targets, &options).unwrap();
        let mut logits = head.forward(&hidden).unwrap();
        if let Some(cap) = softcap {
            logits = ((logits / f64::from(cap)).unwrap().tanh().unwrap() * f64::from(cap)).unwrap();
        }
        for ((got, logits), &target) in got.iter().zip(logits.to_vec2::<f32>().unwrap()).zip(&targets) {
            let expected = statistics_of_logits(&logits, target, top_k);
            let numbers = |s: &TokenStatistics| {
                [s.logprob, s.entropy, s.entropy_topk, s.tail, s.varentropy, s.grad, s.top_logprob].map(f64::from)
            };
            close(&numbers(got).map(|x| x as f32), &numbers(&expected), 2e-5, "statistics");
            // The tanh of the softcap is rounded differently on the device, which may break ties.
            if softcap.is_none() {
                assert_eq!((got.rank, got.top_id), (expected.rank, expected.top_id), "vocabulary {vocabulary}, target {target}");
                let ids = |s: &TokenStatistics| s.next.map(|choice| choice.id);
                assert_eq!(ids(got), ids(&expected), "choices: vocabulary {vocabulary}, target {target}");
            }
            for (got, expected) in got.next.iter().zip(&expected.next) {
                let is_close = (got.logprob - expected.logprob).abs() <= 2e-5 * expected.logprob.abs().max(1.0);
                assert!(got.logprob == expected.logprob || is_close, "{got:?}, not {expected:?}");
            }
        }
    }
}

#[test]
fn the_largest_of_a_row_is_the_first_of_equals() {
    let Some(device) = device() else { return };
    let vocabulary = 3001;
    let mut logits = noise(8 * vocabulary, 5.0, 3);
    let mut expected: Vec<u32> = Vec::new();
    for (i, row) in logits.chunks_exact_mut(vocabulary).enumerate() {
        match i {
            // Ties within a thread's share and across shares; the last word; broken rows.
            0 => [700, 188, 1212, 3000].iter().for_each(|&at| row[at] = 9.0),
            1 => row[3000] = 9.0,
            2 => row[2999] = f32::NAN,
            3 => row.fill(f32::NEG_INFINITY),
            4 => row[17] = f32::INFINITY,
            5 => row.fill(-3.0),
            _ => {}
        }
        let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let is_broken = !largest.is_finite() || row.iter().any(|logit| logit.is_nan());
        let at = row.iter().position(|&logit| logit == largest).unwrap_or(0) as u32;
        expected.push(if is_broken { u32::MAX } else { at });
    }
    assert_eq!(expected[..6], [188, 3000, u32::MAX, u32::MAX, u32::MAX, 0]);
    let buffer = device.upload(&logits, Stored::F32).unwrap();
    let ids = device.allocate(4 * 8).unwrap();
    let all = ids.array(0, 8, Stored::F32).unwrap();
    device.largest_of_rows(buffer.array(0, 8 * vocabulary, Stored::F32).unwrap(), all, vocabulary).unwrap();
    let found: Vec<u32> = device.download(all).unwrap().into_iter().map(f32::to_bits).collect();
    assert_eq!(found, expected);
}

/// The cached file is intact, but contains no machine code for this driver.
#[test]
fn kept_kernels_that_the_driver_refuses_are_compiled_again() {
    let Some(device) = device() else { return };
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("gated.cubin");
    for kept in [&[0; 64][..], &[]] {
        compile::keep(&file, kept);
        assert_eq!(compile::kept(&file).as_deref(), Some(kept));
        device.load(compile::Source::Gated, Some(&file)).unwrap();
        assert!(compile::kept(&file).unwrap().len() > 1000);
    }
    device.load(compile::Source::Gated, Some(&file)).unwrap();
}

/// A copy is enqueued, but its memory is dropped before anyone waits for it.
#[test]
fn host_memory_is_not_used_again_before_it_has_been_read() {
    let Some(device) = device() else { return };
    let to = device.allocate(4 * 1000).unwrap();
    let to = to.array(0, 1000, Stored::F32).unwrap();
    // Larger than any other request, so that the second allocation reuses the first.
    let bytes = (64 << 20) + 1;
    let mut pinned = device.pinned(bytes).unwrap();
    pinned.write(0, &[1; 1000]).unwrap();
    device.send(&pinned, to).unwrap();
    drop(pinned);
    device.pinned(bytes).unwrap().write(0, &[2; 1000]).unwrap();
    assert!(device.download(to).unwrap().iter().all(|word| word.to_bits() == 1));
}

#[test]
fn what_does_not_fit_is_refused() {
    let Some(device) = device() else { return };
    let buffer = device.allocate(1000).unwrap();
    assert!(buffer.array(0, 251, Stored::F32).is_err());
    assert!(buffer.array(usize::MAX, 2, Stored::F32).is_err());
    let array = buffer.array(0, 250, Stored::F32).unwrap();
    assert!(array.part(200, 51).is_err());
    assert!(device.round(array, array).is_err());
    let matrix = Matrix::new([Ok(tensor(&[1.0, 2.0], 1, 2))], Dtype::Bf16x3, Kernels::Cuda);
    assert!(matrix.err().unwrap().to_string().contains("bf16x3 products run on the CPU only"));
    let (_, total) = device.memory().unwrap();
    let error = device.allocate(2 * total as usize).unwrap_err().to_string();
    assert!(error.contains("OUT_OF_MEMORY") && error.contains("free on"), "{error}");
}

/// A plan describes the same attention for the device as the segments do for the CPU; this test needs no GPU.
#[test]
fn a_plan_covers_every_token_once() {
    let shape = AttentionShape { heads: 4, kv_heads: 2, head_dim: 64, scale: 1.0, window: None, softcap: None };
    for dtype in [Stored::F32, Stored::Bf16] {
        let plan = AttentionPlan::new(&segments(), 456, &shape, dtype, 99 << 10);
        let positions = positions(&segments(), 456).unwrap();
        let mut seen = vec![0; 456];
        let (tiles, _) = plan.tiles.as_chunks::<5>();
        let (ranges, _) = plan.ranges.as_chunks::<3>();
        for &[row, rows, position, first_range, end_range] in tiles {
            let ranges = &ranges[first_range as usize..end_range as usize];
            for i in 0..rows {
                let token = (row + i) as usize;
                seen[token] += 1;
                assert_eq!(positions[token] as u32, position + i);
                let keys: Vec<u32> =
                    ranges.iter().flat_map(|&[row, rows, _]| row..row + rows).filter(|&key| key as usize <= token).collect();
                assert_eq!(keys.len(), positions[token] + 1);
            }
            for pair in ranges.windows(2) {
                assert_eq!(pair[0][2] + pair[0][1], pair[1][2], "positions run on from range to range");
            }
        }
        assert_eq!(seen, vec![1; 456]);
    }
}
