//! The instruction set of the kernels, chosen once at run time.
//!
//! This is the fastest level that the processor has (`choice.rs`), unless the environment variable `DIAGNOSE_KERNELS` requests another, so that a
//! machine with AVX-512 can test the code for older ones. Every kernel takes the level as an argument, so that its tests can iterate over
//! [`Level::available`]; the public functions pass [`Level::current`].
//!
//! A kernel is written once, over `Lanes`, and `Level::run` compiles it for each instruction set. Only the matrix products and attention, whose
//! register tiles and bf16 instructions differ between levels, match on the level themselves.

use std::fmt;
use std::sync::OnceLock;

use super::lanes::F32x4;
use super::lanes::Lanes;
#[cfg(target_arch = "x86_64")]
use super::lanes::{F32x8, F32x16};
use crate::error::{Error, Result};

/// The environment variable that requests a level.
pub const VARIABLE: &str = "DIAGNOSE_KERNELS";

static CURRENT: OnceLock<Level> = OnceLock::new();

/// Sets of instructions; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// The instructions that the target always has: SSE2 on x86-64, NEON on Arm.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 and the bf16 dot products.
    Avx512Bf16,
    /// AVX-512, the bf16 dot products, and AMX: tiles of bf16 products. Only on request, because no machine available for testing has AMX.
    Amx,
}

impl Level {
    const ALL: [Level; 5] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];

    /// The level of this process: the one that `choice::settle` fixed at the program's start; otherwise the one that the environment requests, if
    /// possible, or the best.
    pub fn current() -> Level {
        *CURRENT.get_or_init(|| Level::asked().ok().flatten().unwrap_or_else(Level::best))
    }

    /// Fixes the level of this process and returns it; the first call wins.
    pub(super) fn fix(level: Level) -> Level {
        *CURRENT.get_or_init(|| level)
    }

    /// The level that `DIAGNOSE_KERNELS` names; an error if it is unknown or the processor lacks it.
    pub(super) fn asked() -> Result<Option<Level>> {
        let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
        Level::parse(&value.to_string_lossy(), Level::highest()).map(Some)
    }

    /// The levels that may be chosen automatically, lowest first; without the portable level if the processor has 256-bit vectors.
    pub(super) fn chosen_by_themselves() -> Vec<Level> {
        let lowest = Level::best().min(Level::Avx2);
        Level::ALL.into_iter().filter(|level| (lowest..=Level::best()).contains(level)).collect()
    }

    /// All levels that this processor can run, lowest first, for tests.
    pub fn available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|&level| level <= Level::highest()).collect()
    }

    /// The name in `DIAGNOSE_KERNELS`.
    pub fn name(self) -> &'static str {
        match self {
            Level::Portable => "portable",
            Level::Avx2 => "avx2",
            Level::Avx512 => "avx512",
            Level::Avx512Bf16 => "avx512bf16",
            Level::Amx => "amx",
        }
    }

    /// Runs a kernel with the vectors of this level.
    ///
    /// # Panics
    /// If the processor lacks the level.
    pub(crate) fn run<K: Kernel>(self, kernel: K) -> K::Output {
        // One comparison per kernel call keeps `run` sound whatever level is passed in.
        assert!(self <= Level::highest(), "this processor cannot run {self} kernels");
        match self {
            #[cfg(target_arch = "x86_64")]
            // SAFETY: the assertion above shows that the processor has the instructions.
            Level::Avx512 | Level::Avx512Bf16 | Level::Amx => unsafe { run_avx512(kernel) },
            #[cfg(target_arch = "x86_64")]
            // SAFETY: as above.
            Level::Avx2 => unsafe { run_avx2(kernel) },
            // SAFETY: `F32x4` needs nothing beyond the target's own instructions.
            _ => unsafe { kernel.run::<F32x4>() },
        }
    }

    fn parse(value: &str, best: Level) -> Result<Level> {
        let level = Level::ALL.into_iter().find(|level| level.name() == value).ok_or_else(|| {
            Error::usage(format!("{VARIABLE}={value}: expected one of portable, avx2, avx512, avx512bf16, amx"))
                .cure(format!("Unset {VARIABLE} to use the best the processor has."))
        })?;
        if level > best {
            return Err(Error::usage(format!("{VARIABLE}={value}: this processor's best is {best}"))
                .cure(format!("Unset {VARIABLE} to use the best the processor has.")));
        }
        Ok(level)
    }

    /// The highest level that the processor has: the best one, or AMX, which is only used on request.
    fn highest() -> Level {
        static HIGHEST: OnceLock<Level> = OnceLock::new();
        *HIGHEST.get_or_init(|| if Level::best() == Level::Avx512Bf16 && has_tiles() { Level::Amx } else { Level::best() })
    }

    fn best() -> Level {
        static BEST: OnceLock<Level> = OnceLock::new();
        *BEST.get_or_init(detect)
    }
}

impl fmt::Display for Level {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// Code that [`Level::run`] compiles once per instruction set.
pub(crate) trait Kernel {
    type Output;

    /// Must be `#[inline(always)]`, and so must everything it calls that handles vectors: it is inlined into a function with the instructions
    /// enabled, and a call that is not inlined would be compiled without them. Access arrays by reference or by index: `std::array::from_fn`, `map`
    /// and `into_iter` may not be inlined, which makes a product ten times slower.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions.
    unsafe fn run<V: Lanes>(self) -> Self::Output;
}

/// Unit tests on a processor without AMX emulate its definition, slowly.
#[cfg(target_arch = "x86_64")]
fn has_tiles() -> bool {
    cfg!(test) || super::processor::has_tiles()
}

#[cfg(not(target_arch = "x86_64"))]
fn has_tiles() -> bool {
    false
}

#[cfg(target_arch = "x86_64")]
fn detect() -> Level {
    let avx2 = is_x86_feature_detected!("avx2") && is_x86_feature_detected!("fma");
    let avx512 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    match (avx2, avx512) {
        (true, true) if is_x86_feature_detected!("avx512bf16") => Level::Avx512Bf16,
        (true, true) => Level::Avx512,
        (true, false) => Level::Avx2,
        (false, _) => Level::Portable,
    }
}

#[cfg(not(target_arch = "x86_64"))]
fn detect() -> Level {
    Level::Portable
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx512f,avx512bw,avx512dq,avx512vl,avx2,fma")]
fn run_avx512<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own target features are those of `F32x16`.
    unsafe { kernel.run::<F32x16>() }
}

#[cfg(target_arch = "x86_64")]
#[target_feature(enable = "avx2,fma")]
fn run_avx2<K: Kernel>(kernel: K) -> K::Output {
    // SAFETY: this function's own target features are those of `F32x8`.
    unsafe { kernel.run::<F32x8>() }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_are_ordered_and_the_lowest_is_always_there() {
        assert!(Level::ALL.is_sorted());
        assert_eq!(Level::available().first(), Some(&Level::Portable));
        assert!(Level::available().contains(&Level::current()));
    }

    #[test]
    fn a_level_can_be_lowered_but_not_raised_or_misspelt() {
        assert_eq!(Level::parse("avx2", Level::Avx512).unwrap(), Level::Avx2);
        assert_eq!(Level::parse("avx2", Level::Avx2).unwrap(), Level::Avx2);
        let raised = Level::parse("avx512", Level::Avx2).unwrap_err();
        assert_eq!(raised.message(), "DIAGNOSE_KERNELS=avx512: this processor's best is avx2");
        let misspelt = Level::parse("AVX", Level::Avx512).unwrap_err();
        assert_eq!(misspelt.exit_code(), 2);
        assert!(misspelt.message().contains("expected one of portable"));
    }
}
