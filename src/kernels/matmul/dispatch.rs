//! Which product runs: by the level, and by what the words are.

#[cfg(target_arch = "x86_64")]
use super::amx;
use super::tile::{F32Kernel, ProductKernel, SplitKernel, WidenedKernel};
#[cfg(target_arch = "x86_64")]
use super::tile::{
    Split,
    bf16_dot::{self, Bf16Dot},
};
use crate::kernels::Dtype;
use crate::kernels::level::Level;

/// Runs `kernel` with the product for words of `dtype` at `level`.
pub(crate) fn dispatch<K: ProductKernel>(level: Level, dtype: Dtype, kernel: K) -> K::Output {
    match (level, dtype) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Dtype::Bf16) => bf16_dot::dispatch::<Bf16Dot, K>(kernel),
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Dtype::Bf16x3) => bf16_dot::dispatch::<Split<Bf16Dot>, K>(kernel),
        #[cfg(target_arch = "x86_64")]
        (Level::Amx, Dtype::Bf16) => amx::dispatch::<1, K>(kernel),
        #[cfg(target_arch = "x86_64")]
        (Level::Amx, Dtype::Bf16x3) => amx::dispatch::<2, K>(kernel),
        (_, Dtype::F32) => level.run(F32Kernel(kernel)),
        (_, Dtype::Bf16) => level.run(WidenedKernel(kernel)),
        (_, Dtype::Bf16x3) => level.run(SplitKernel(kernel)),
    }
}
