//! Inputs and comparisons shared by the kernels' tests.

use super::cuda::Device;
use super::{Dtype, Kernels};

/// All implementations that run on this machine. If `DIAGNOSE_DEVICE_TESTS` is set, this fails unless a GPU can be used.
pub(crate) fn implementations() -> Vec<Kernels> {
    let mut kernels = vec![Kernels::Reference, Kernels::Fused];
    if device().is_some() {
        kernels.push(Kernels::Cuda);
    }
    kernels
}

/// The implementations that multiply in `dtype`.
pub(crate) fn implementations_in(dtype: Dtype) -> Vec<Kernels> {
    let mut kernels = implementations();
    kernels.retain(|&kernels| kernels != Kernels::Cuda || dtype.stored().is_ok());
    kernels
}

/// The GPU, if there is one.
pub(crate) fn device() -> Option<&'static Device> {
    let device = Device::get();
    assert!(device.is_ok() || std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "no device: {:?}", device.err());
    device.ok()
}

/// `n` numbers distributed evenly over `-amplitude .. amplitude`, the same for equal seeds.
pub(crate) fn noise(n: usize, amplitude: f32, seed: u64) -> Vec<f32> {
    // SplitMix64 by Steele, Lea and Flood.
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15);
    let mut next = || {
        state = state.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let z = (state ^ (state >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    };
    (0..n).map(|_| ((next() >> 40) as f32 / (1u64 << 23) as f32 - 1.0) * amplitude).collect()
}

pub(crate) const DTYPES: [Dtype; 3] = [Dtype::F32, Dtype::Bf16, Dtype::Bf16x3];

/// `x w` as a product in `dtype` computes it, without any further rounding.
pub(crate) fn product(dtype: Dtype, x: f32, w: f32) -> f64 {
    let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
    let (upper_x, upper_w) = (rounded(x), rounded(w));
    match dtype {
        Dtype::F32 => f64::from(x) * f64::from(w),
        Dtype::Bf16 => f64::from(upper_x) * f64::from(upper_w),
        Dtype::Bf16x3 => {
            let (lower_x, lower_w) = (f64::from(rounded(x - upper_x)), f64::from(rounded(w - upper_w)));
            f64::from(upper_x) * (f64::from(upper_w) + lower_w) + lower_x * f64::from(upper_w)
        }
    }
}

/// A number as rounded in a weight of `dtype`.
pub(crate) fn held(dtype: Dtype, x: f32) -> f32 {
    let rounded = |x: f32| half::bf16::from_f32(x).to_f32();
    match dtype {
        Dtype::F32 => x,
        Dtype::Bf16 => rounded(x),
        Dtype::Bf16x3 => rounded(x) + rounded(x - rounded(x)),
    }
}

/// Panics at the first element that is off by more than `tolerance * max(1, |expected|)`.
#[track_caller]
pub(crate) fn close(got: &[f32], expected: &[f64], tolerance: f64, what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    for (i, (&got, &expected)) in got.iter().zip(expected).enumerate() {
        let error = (f64::from(got) - expected).abs();
        assert!(
            error <= tolerance * expected.abs().max(1.0),
            "{what}: element {i} is {got}, expected {expected}, off by {error:e}"
        );
    }
}

/// Compares results that were rounded to bf16: each factor is off by at most one part in 512, and a difference of factors may be a fraction of
/// both. Compares the norms of whole vectors, because single elements may cancel, and a bound for the largest element says little about the
/// others.
#[track_caller]
pub(crate) fn near(got: &[f32], expected: &[f64], what: &str) {
    assert_eq!(got.len(), expected.len(), "{what}: number of elements");
    let (error, size) = lengths(got.iter().copied().map(f64::from), expected.iter().copied());
    assert!(error <= 2e-2 * size + 1e-6, "{what}: {error} beside {size}");
}

/// The L2 norms of the difference between `got` and `expected`, and of `expected`.
pub(crate) fn lengths(got: impl Iterator<Item = f64>, expected: impl Iterator<Item = f64>) -> (f64, f64) {
    let squares =
        |(errors, sizes): (f64, f64), (got, expected): (f64, f64)| (errors + (got - expected).powi(2), sizes + expected.powi(2));
    let (errors, sizes) = got.zip(expected).fold((0.0, 0.0), squares);
    (errors.sqrt(), sizes.sqrt())
}
