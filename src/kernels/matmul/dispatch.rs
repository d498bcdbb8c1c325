//! Chooses the product by the level and the format of the words.

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

/// Whether [`dispatch`] chooses a product that widens its panels:
/// [`Product::WIDENS`](super::Product::WIDENS).
pub(crate) fn widens(level: Level, dtype: Dtype) -> bool {
    dtype != Dtype::F32 && level < Level::Avx512
}

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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::matmul::Product;
    use crate::kernels::testing::DTYPES;

    struct Widens;

    impl ProductKernel for Widens {
        type Output = bool;

        unsafe fn run<P: Product>(self) -> bool {
            P::WIDENS
        }
    }

    #[test]
    fn tiles_of_the_head_are_cut_for_the_product_that_runs() {
        for level in Level::available() {
            for dtype in DTYPES {
                assert_eq!(dispatch(level, dtype, Widens), widens(level, dtype), "{level} {dtype}");
            }
        }
    }
}
