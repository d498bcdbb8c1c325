//! Which product runs: by the level, and by what the words are.

#[cfg(target_arch = "x86_64")]
use super::amx;
#[cfg(target_arch = "x86_64")]
use super::tile::bf16_dot;
use super::tile::{F32Kernel, ProductKernel, WidenedKernel};
use crate::kernels::Dtype;
use crate::kernels::level::Level;

/// Runs `kernel` with the product for words of `dtype` at `level`.
pub(crate) fn dispatch<K: ProductKernel>(level: Level, dtype: Dtype, kernel: K) -> K::Output {
    match (level, dtype) {
        #[cfg(target_arch = "x86_64")]
        (Level::Avx512Bf16, Dtype::Bf16) => bf16_dot::dispatch(kernel),
        #[cfg(target_arch = "x86_64")]
        (Level::Amx, Dtype::Bf16) => amx::dispatch(kernel),
        (_, Dtype::F32) => level.run(F32Kernel(kernel)),
        (_, Dtype::Bf16) => level.run(WidenedKernel(kernel)),
    }
}
