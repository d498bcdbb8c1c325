//! The norm and gates after the gated delta rule, head by head: `silu(gates) * rms_norm(given) * weight`.

use std::mem::MaybeUninit;

use candle_core::Tensor;
use rayon::prelude::*;

use crate::error::{Error, Result};
use crate::kernels::cpu::{contiguous, with_floats, written};
use crate::kernels::gated::silu;
use crate::kernels::lanes::{Lanes, for_lanes, load, store};
use crate::kernels::level::{Kernel, Level};
use crate::kernels::norm::inverse_rms;

/// The number of heads per task.
const HEADS: usize = 128;

/// `[N, heads * (gates | given)] -> [N, heads * value_dim]`, with `weight [value_dim]`. The result is bit-identical to that of
/// [`rms_norm`](crate::kernels::norm::rms_norm) followed by [`gated`](crate::kernels::gated::gated), without the copies between them.
pub fn open(mixed: &Tensor, weight: &Tensor, eps: f64) -> Result<Tensor> {
    let ((rows, columns), value_dim) = (mixed.dims2()?, weight.dims1()?);
    if value_dim == 0 || !columns.is_multiple_of(2 * value_dim) {
        return Err(Error::new(format!("rows of {columns} numbers are no heads of {value_dim} gates and as many values")));
    }
    let (level, eps) = (Level::current(), eps as f32);
    let y = with_floats(&contiguous(mixed)?, |mixed| {
        with_floats(weight, |weight| {
            let fill = |y: &mut [MaybeUninit<f32>]| {
                let blocks = y.par_chunks_mut(HEADS * value_dim).zip(mixed.par_chunks(2 * HEADS * value_dim));
                blocks.for_each(|(y, mixed)| level.run(Open { mixed, weight, eps, y }));
            };
            // SAFETY: `Open` writes every element of its block.
            unsafe { written(mixed.len() / 2, fill) }
        })
    })??;
    Ok(Tensor::from_vec(y, (rows, columns / 2), mixed.device())?)
}

struct Open<'a> {
    mixed: &'a [f32],
    weight: &'a [f32],
    eps: f32,
    y: &'a mut [MaybeUninit<f32>],
}

impl Kernel for Open<'_> {
    type Output = ();

    #[inline(always)]
    unsafe fn run<V: Lanes>(self) {
        let Open { mixed, weight, eps, y } = self;
        let value_dim = weight.len();
        assert!(mixed.len() == 2 * y.len() && y.len().is_multiple_of(value_dim));
        for (y, mixed) in y.chunks_exact_mut(value_dim).zip(mixed.chunks_exact(2 * value_dim)) {
            let (gates, given) = mixed.split_at(value_dim);
            // SAFETY: the instructions are there by contract; all are `value_dim` long.
            unsafe {
                let r = V::splat(inverse_rms::<V>(given, eps));
                for_lanes::<V>(
                    value_dim,
                    #[inline(always)]
                    |i, n| {
                        let normed = load::<V>(given, i, n).mul(r).mul(load::<V>(weight, i, n));
                        store(silu(load::<V>(gates, i, n)).0.mul(normed), y.as_mut_ptr().cast(), i, n);
                    },
                );
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use candle_core::Device;

    use super::*;
    use crate::kernels::Kernels;
    use crate::kernels::gated::{Activation, gated};
    use crate::kernels::norm::rms_norm;
    use crate::kernels::testing::noise;

    #[test]
    fn it_is_the_norm_and_the_gates_one_after_the_other() {
        for (rows, heads, value_dim) in [(3, 2, 5), (70, 3, 16), (1, 1, 33)] {
            let tensor = |n: usize, seed: u64, dims: &[usize]| Tensor::from_vec(noise(n, 2.0, seed), dims, &Device::Cpu).unwrap();
            let mixed = tensor(rows * heads * 2 * value_dim, 1, &[rows, heads * 2 * value_dim]);
            let weight = tensor(value_dim, 2, &[value_dim]);
            let found = open(&mixed, &weight, 1e-6).unwrap();
            let by_heads = mixed.reshape((rows * heads, 2 * value_dim)).unwrap();
            let part = |number: usize| by_heads.narrow(1, number * value_dim, value_dim).unwrap().contiguous().unwrap();
            let normed = rms_norm(&part(1), &weight, 1e-6, Kernels::Fused).unwrap();
            let expected = gated(&Tensor::cat(&[part(0), normed], 1).unwrap(), Activation::Silu, Kernels::Fused).unwrap();
            let flat = |tensor: &Tensor| tensor.flatten_all().unwrap().to_vec1::<f32>().unwrap();
            assert_eq!(flat(&found), flat(&expected), "{rows} {heads} {value_dim}");
        }
        let (nothing, weight) = (Tensor::zeros((0, 8), candle_core::DType::F32, &Device::Cpu).unwrap(), [1f32; 4]);
        assert_eq!(open(&nothing, &Tensor::new(&weight, &Device::Cpu).unwrap(), 1e-6).unwrap().dims(), [0, 4]);
        let mixed = Tensor::zeros((1, 12), candle_core::DType::F32, &Device::Cpu).unwrap();
        let weight = Tensor::zeros(4, candle_core::DType::F32, &Device::Cpu).unwrap();
        assert!(open(&mixed, &weight, 1e-6).unwrap_err().to_string().contains("12 numbers"));
    }
}
