//! The gated activation between the two products of a feed-forward layer: `activation(gate) * up`, or with both factors clamped.
//!
//! Backward, with the upstream gradient `g`: `dgate = g up activation'(gate)`, `dup = g activation(gate)`. The activation is
//! recomputed rather than stored. Beyond a clamp the gradient is 0; exactly on it the gradient passes, as in PyTorch.

use std::f32::consts::FRAC_2_PI;
use std::mem::MaybeUninit;

use candle_core::{CpuStorage, CustomOp1, DType, Layout, Shape, Tensor};
use rayon::prelude::*;

pub use super::activation::{Activation, ClampedSwiglu};

use super::Kernels;
use super::cpu::{contiguous, floats, gradient, output, with_floats, written};
use super::cuda::hosted;
use super::exp::{exp, tanh};
use super::lanes::{Lanes, for_lanes, load, store};
use super::level::{Kernel, Level};
use crate::error::{Error, Result};

/// `gate_up [T, 2F]`, the gate in the first `F` columns `-> activation(gate) * up [T, F]`, with its gradient.
pub fn gated(gate_up: &Tensor, activation: Activation, kernels: Kernels) -> Result<Tensor> {
    let (_, columns) = gate_up.dims2()?;
    if !columns.is_multiple_of(2) {
        return Err(Error::new(format!("gate and up need an even number of columns, found {columns}")));
    }
    match kernels {
        Kernels::Reference => reference(gate_up, activation),
        Kernels::Fused => Ok(contiguous(gate_up)?.apply_op1(Gated { activation, level: Level::current() })?),
        Kernels::Cuda => hosted::gated(gate_up, activation),
    }
}

/// The gradient `[T, 2F]` of [`gated`], given `dy [T, F]`.
pub fn gated_backward(gate_up: &Tensor, activation: Activation, dy: &Tensor) -> Result<Tensor> {
    let width = dy.dims2()?.1;
    let level = Level::current();
    let values = with_floats(gate_up, |gate_up| with_floats(dy, |dy| backward(level, activation, gate_up, dy, width)))??;
    Ok(gradient(values, gate_up)?)
}

fn reference(gate_up: &Tensor, activation: Activation) -> Result<Tensor> {
    let width = gate_up.dim(1)? / 2;
    let gate = gate_up.narrow(1, 0, width)?.to_dtype(DType::F32)?;
    let up = gate_up.narrow(1, width, width)?.to_dtype(DType::F32)?;
    let y = match activation {
        Activation::Silu => (gate.silu()? * up)?,
        Activation::GeluTanh => (gate.gelu()? * up)?,
        Activation::Sigmoid => ((gate.neg()?.exp()? + 1.0)?.recip()? * up)?,
        // candle's maximum of an empty tensor and a number is broken.
        Activation::ClampedSwiglu(_) if gate.elem_count() == 0 => gate,
        Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) => {
            let gate = gate.minimum(limit)?;
            let up = up.maximum(-limit)?.minimum(limit)?;
            let sigmoid = ((&gate * f64::from(-alpha))?.exp()? + 1.0)?.recip()?;
            (((up + 1.0)? * gate)? * sigmoid)?
        }
    };
    Ok(y.to_dtype(gate_up.dtype())?)
}

struct Gated {
    activation: Activation,
    level: Level,
}

impl CustomOp1 for Gated {
    fn name(&self) -> &'static str {
        "gated-activation"
    }

    fn cpu_fwd(&self, gate_up: &CpuStorage, layout: &Layout) -> candle_core::Result<(CpuStorage, Shape)> {
        let (tokens, columns) = layout.shape().dims2()?;
        let gate_up = floats(gate_up, layout)?;
        Ok(output(forward(self.level, self.activation, gate_up, columns / 2), (tokens, columns / 2)))
    }

    fn bwd(&self, gate_up: &Tensor, _y: &Tensor, dy: &Tensor) -> candle_core::Result<Option<Tensor>> {
        let width = dy.dim(1)?;
        let values =
            with_floats(gate_up, |gate_up| with_floats(dy, |dy| backward(self.level, self.activation, gate_up, dy, width)))??;
        Ok(Some(gradient(values, gate_up)?))
    }
}

/// The number of rows per task.
const ROWS: usize = 16;

fn forward(level: Level, activation: Activation, gate_up: &[f32], width: usize) -> Vec<f32> {
    let block = ROWS * width.max(1);
    let fill = |y: &mut [MaybeUninit<f32>]| {
        let tasks = y.par_chunks_mut(block).zip(gate_up.par_chunks(2 * block));
        tasks.for_each(|(y, gate_up)| level.run(Forward { activation, width, gate_up, y }));
    };
    // SAFETY: `Forward` writes every element of its block.
    unsafe { written(gate_up.len() / 2, fill) }
}

struct Forward<'a> {
    activation: Activation,
    width: usize,
    gate_up: &'a [f32],
    y: &'a mut [MaybeUninit<f32>],
}

impl Kernel for Forward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        // One loop per activation, so that the choice is not made for every vector.
        // SAFETY: the instructions are there by contract.
        unsafe {
            match self.activation {
                Activation::Silu => self.rows(
                    #[inline(always)]
                    |gate: V, up| silu(gate).0.mul(up),
                ),
                Activation::GeluTanh => self.rows(
                    #[inline(always)]
                    |gate: V, up| gelu(gate).0.mul(up),
                ),
                Activation::Sigmoid => self.rows(
                    #[inline(always)]
                    |gate: V, up| sigmoid(gate).0.mul(up),
                ),
                Activation::ClampedSwiglu(how) => self.rows(
                    #[inline(always)]
                    |gate: V, up| clamped_swiglu(how, gate, up).0,
                ),
            }
        }
    }
}

impl Forward<'_> {
    /// # Safety
    /// The processor must have `V`'s instructions.
    #[inline(always)]
    unsafe fn rows<V: Lanes>(self, activate: impl Fn(V, V) -> V) {
        assert_eq!(self.gate_up.len(), 2 * self.y.len());
        for (gate_up, y) in self.gate_up.chunks_exact(2 * self.width).zip(self.y.chunks_exact_mut(self.width)) {
            let (gate, up) = gate_up.split_at(self.width);
            // SAFETY: all three slices hold `width` elements.
            for_lanes::<V>(
                self.width,
                #[inline(always)]
                |i, n| unsafe {
                    store(activate(load(gate, i, n), load(up, i, n)), y.as_mut_ptr().cast(), i, n);
                },
            );
        }
    }
}

/// The gradient of `gate_up`.
fn backward(level: Level, activation: Activation, gate_up: &[f32], dy: &[f32], width: usize) -> Vec<f32> {
    let block = ROWS * width.max(1);
    let fill = |d_gate_up: &mut [MaybeUninit<f32>]| {
        let tasks = d_gate_up.par_chunks_mut(2 * block).zip(gate_up.par_chunks(2 * block)).zip(dy.par_chunks(block));
        tasks.for_each(|((d_gate_up, gate_up), dy)| level.run(Backward { activation, width, gate_up, dy, d_gate_up }));
    };
    // SAFETY: `Backward` writes every element of its block.
    unsafe { written(gate_up.len(), fill) }
}

struct Backward<'a> {
    activation: Activation,
    width: usize,
    gate_up: &'a [f32],
    dy: &'a [f32],
    d_gate_up: &'a mut [MaybeUninit<f32>],
}

impl Kernel for Backward<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Backward { activation, width, gate_up, dy, d_gate_up } = self;
        assert!(gate_up.len() == d_gate_up.len() && gate_up.len() == 2 * dy.len());
        let inputs = gate_up.chunks_exact(2 * width).zip(dy.chunks_exact(width));
        for ((gate_up, dy), d_gate_up) in inputs.zip(d_gate_up.chunks_exact_mut(2 * width)) {
            let (gate, up) = gate_up.split_at(width);
            let (d_gate, d_up) = d_gate_up.split_at_mut(width);
            // SAFETY: all five slices hold `width` elements; the instructions are there by contract.
            for_lanes::<V>(
                width,
                #[inline(always)]
                |i, n| unsafe {
                    let (gate, up, dy): (V, V, V) = (load(gate, i, n), load(up, i, n), load(dy, i, n));
                    let (of_gate, of_up) = match activation {
                        Activation::Silu => by_product(silu(gate), up),
                        Activation::GeluTanh => by_product(gelu(gate), up),
                        Activation::Sigmoid => by_product(sigmoid(gate), up),
                        Activation::ClampedSwiglu(how) => {
                            let (_, of_gate, of_up) = clamped_swiglu(how, gate, up);
                            (of_gate, of_up)
                        }
                    };
                    store(dy.mul(of_gate), d_gate.as_mut_ptr().cast(), i, n);
                    store(dy.mul(of_up), d_up.as_mut_ptr().cast(), i, n);
                },
            );
        }
    }
}

/// The derivatives of `activation(gate) * up` with respect to both, given the activation and its derivative.
#[inline(always)]
fn by_product<V: Lanes>((activated, slope): (V, V), up: V) -> (V, V) {
    (up.mul(slope), activated)
}

/// Returns the function and its derivatives by `gate` and by `up`; unused results are not computed.
#[inline(always)]
fn clamped_swiglu<V: Lanes>(ClampedSwiglu { alpha, limit }: ClampedSwiglu, gate: V, up: V) -> (V, V, V) {
    let (zero, one, high, low) = (gate.filled(0.0), gate.filled(1.0), gate.filled(limit), gate.filled(-limit));
    // Comparisons with NaN are false, so a NaN is preserved.
    let g = high.if_less(gate, high, gate);
    let u = up.if_less(low, low, high.if_less(up, high, up)).add(one);
    let sigmoid = one.div(one.add(exp(zero.sub(g.mul(gate.filled(alpha))))));
    let activated = g.mul(sigmoid);
    // s + alpha g s (1 - s)
    let slope = activated.mul(one.sub(sigmoid)).mul_add(gate.filled(alpha), sigmoid);
    let of_gate = high.if_less(gate, zero, u.mul(slope));
    let of_up = up.if_less(low, zero, high.if_less(up, zero, activated));
    (activated.mul(u), of_gate, of_up)
}

/// Returns the function and its derivative; unused results are not computed.
#[inline(always)]
pub(super) fn silu<V: Lanes>(x: V) -> (V, V) {
    let (zero, one) = (x.filled(0.0), x.filled(1.0));
    let denominator = one.add(exp(zero.sub(x)));
    let value = x.div(denominator);
    let sigmoid = one.div(denominator);
    // s (1 + x (1 - s)) = s + y (1 - s)
    (value, value.mul_add(one.sub(sigmoid), sigmoid))
}

/// Returns the function and its derivative; unused results are not computed.
#[inline(always)]
fn sigmoid<V: Lanes>(x: V) -> (V, V) {
    let (zero, one) = (x.filled(0.0), x.filled(1.0));
    let value = one.div(one.add(exp(zero.sub(x))));
    (value, value.mul(one.sub(value)))
}

/// Returns the function and its derivative; unused results are not computed.
#[inline(always)]
fn gelu<V: Lanes>(x: V) -> (V, V) {
    const CUBIC: f32 = 0.044_715;
    let scale = x.filled(FRAC_2_PI.sqrt());
    let square = x.mul(x);
    let tanh = tanh(square.mul_add(x.filled(CUBIC), x.filled(1.0)).mul(x).mul(scale));
    let half_cdf = tanh.mul_add(x.filled(0.5), x.filled(0.5));
    let inner_slope = square.mul_add(x.filled(3.0 * CUBIC), x.filled(1.0)).mul(scale);
    let sech_squared = x.filled(1.0).sub(tanh.mul(tanh));
    (x.mul(half_cdf), x.mul(x.filled(0.5)).mul(sech_squared).mul_add(inner_slope, half_cdf))
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Var};

    use super::*;
    use crate::kernels::testing::{close, implementations, noise};

    const CLAMPED: Activation = Activation::ClampedSwiglu(ClampedSwiglu { alpha: 1.702, limit: 2.5 });
    const ALL: [Activation; 4] = [Activation::Silu, Activation::GeluTanh, Activation::Sigmoid, CLAMPED];

    fn truth(activation: Activation, gate: f32, up: f32) -> f64 {
        let x = f64::from(gate);
        if let Activation::ClampedSwiglu(ClampedSwiglu { alpha, limit }) = activation {
            let (x, limit) = (x.min(limit.into()), f64::from(limit));
            return (f64::from(up).clamp(-limit, limit) + 1.0) * x / (1.0 + (-f64::from(alpha) * x).exp());
        }
        let activated = match activation {
            Activation::Silu => x / (1.0 + (-x).exp()),
            Activation::Sigmoid => 1.0 / (1.0 + (-x).exp()),
            _ => 0.5 * x * (1.0 + ((2.0 / std::f64::consts::PI).sqrt() * (x + 0.044715 * x.powi(3))).tanh()),
        };
        activated * f64::from(up)
    }

    #[test]
    fn by_hand() {
        // silu(0) = 0, silu(ln 3) = ln 3 * 3/4; the gelu of a large number is that number.
        let x = Tensor::new(&[[0.0, 3f32.ln(), 7.0, 4.0]], &Device::Cpu).unwrap();
        let y = gated(&x, Activation::Silu, Kernels::Fused).unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(y[0][0], 0.0);
        assert!((y[0][1] - 3.0 * 3f32.ln()).abs() < 1e-6);
        let x = Tensor::new(&[[30.0, -30.0, 2.0, 2f32]], &Device::Cpu).unwrap();
        assert_eq!(gated(&x, Activation::GeluTanh, Kernels::Fused).unwrap().to_vec2::<f32>().unwrap(), [[60.0, -0.0]]);
        // (1 + 1) ln 3 * 3/4; gate and up above the limit 7: (7 + 1) 7 / (1 + exp(-7)); up below -7: (-7 + 1) 7 / (1 + exp(-7)).
        let plain = Activation::ClampedSwiglu(ClampedSwiglu { alpha: 1.0, limit: 7.0 });
        let x = Tensor::new(&[[3f32.ln(), 9.0, 9.0, f32::NAN, 1.0, 1.0, 8.0, -8.0, 1.0, f32::NAN]], &Device::Cpu).unwrap();
        for kernels in implementations() {
            let y = gated(&x, plain, kernels).unwrap().to_vec2::<f32>().unwrap();
            let most = 7.0 / (1.0 + (-7f64).exp());
            close(&y[0][..3], &[1.5 * 3f64.ln(), 8.0 * most, -6.0 * most], 1e-6, "clamped by hand");
            assert!(y[0][3..].iter().all(|y| y.is_nan()), "{kernels:?}: {y:?}");
        }
        // Beyond the clamps the gradient is 0; on them it is 7 s, and (u + 1) (s + 7 s (1 - s)).
        let x = Tensor::new(&[[8f32, 7.0, 1.0, 7.0]], &Device::Cpu).unwrap();
        let dy = Tensor::ones((1, 2), DType::F32, &Device::Cpu).unwrap();
        let s = 1.0 / (1.0 + (-7f64).exp());
        let expected = [0.0, 8.0 * (s + 7.0 * s * (1.0 - s)), 7.0 * s, 7.0 * s];
        close(&gated_backward(&x, plain, &dy).unwrap().to_vec2::<f32>().unwrap()[0], &expected, 1e-6, "clamped");
    }

    #[test]
    fn every_level_and_the_reference_match_the_truth() {
        for (tokens, width) in [(1, 1), (2, 15), (3, 16), (17, 17), (33, 63), (16, 577), (0, 8)] {
            let gate_up = noise(tokens * 2 * width, 4.0, 1);
            let tensor = Tensor::from_slice(&gate_up, (tokens, 2 * width), &Device::Cpu).unwrap();
            for activation in ALL {
                let rows = gate_up.chunks(2 * width.max(1));
                let expected: Vec<f64> =
                    rows.flat_map(|row| (0..width).map(move |i| truth(activation, row[i], row[width + i]))).collect();
                for level in Level::available() {
                    // Values up to 16 carry an absolute error of a few times 1e-6.
                    close(&forward(level, activation, &gate_up, width), &expected, 1e-5, &format!("{level} {activation:?}"));
                }
                for kernels in implementations() {
                    let y = gated(&tensor, activation, kernels).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap();
                    close(&y, &expected, 1e-5, &format!("{kernels:?} {activation:?}"));
                }
            }
        }
    }

    #[test]
    fn gradients_match_the_reference() {
        let (tokens, width) = (19, 37);
        let upstream = Tensor::from_vec(noise(tokens * width, 1.0, 2), (tokens, width), &Device::Cpu).unwrap();
        for activation in ALL {
            let x = Var::from_vec(noise(tokens * 2 * width, 4.0, 3), (tokens, 2 * width), &Device::Cpu).unwrap();
            let gradient = |kernels| {
                let loss = (gated(&x, activation, kernels).unwrap() * &upstream).unwrap().sum_all().unwrap();
                loss.backward().unwrap().get(&x).unwrap().flatten_all().unwrap().to_vec1::<f32>().unwrap()
            };
            let expected: Vec<f64> = gradient(Kernels::Reference).into_iter().map(f64::from).collect();
            close(&gradient(Kernels::Fused), &expected, 1e-4, &format!("{activation:?}"));
            for level in Level::available() {
                let (x, dy) = (noise(tokens * 2 * width, 4.0, 3), noise(tokens * width, 1.0, 2));
                close(&backward(level, activation, &x, &dy, width), &expected, 1e-4, &format!("{level} {activation:?}"));
            }
        }
    }

    #[test]
    fn an_odd_number_of_columns_is_refused() {
        let x = Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap();
        assert!(gated(&x, Activation::Silu, Kernels::Fused).unwrap_err().message().contains("even"));
    }
}
