//! Which instructions the kernels use, decided once at run time.
//!
//! The fastest level the processor has (`choice.rs`), unless the environment variable `DIAGNOSE_KERNELS` asks for
//! another: that is how a machine with AVX-512 tests what an older one will run. Every kernel takes the level as an argument, so that its tests can
//! walk through [`Level::available`]; the public functions pass [`Level::current`].
//!
//! A kernel is written once, over `Lanes`, and `Level::run` compiles it for each instruction set. Only the matrix products and
//! attention, whose register tiles and bf16 instructions differ between levels, match on the level themselves.

use std::fmt;
use std::sync::OnceLock;

use super::lanes::F32x4;
use super::lanes::Lanes;
#[cfg(target_arch = "x86_64")]
use super::lanes::{F32x8, F32x16};
use crate::error::{Error, Result};

/// The environment variable that asks for a level.
pub const VARIABLE: &str = "DIAGNOSE_KERNELS";

static CURRENT: OnceLock<Level> = OnceLock::new();

/// Sets of instructions; each includes the ones before it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Level {
    /// Whatever the target always has: SSE2 on x86-64, NEON on Arm.
    Portable,
    /// AVX2 and FMA.
    Avx2,
    /// AVX-512 F, BW, DQ and VL.
    Avx512,
    /// AVX-512 and the bf16 dot products.
    Avx512Bf16,
    /// AVX-512, the bf16 dot products, and AMX: tiles of bf16 products. Only where it is asked for: no machine that we could test on
    /// has them.
    Amx,
}

impl Level {
    const ALL: [Level; 5] = [Level::Portable, Level::Avx2, Level::Avx512, Level::Avx512Bf16, Level::Amx];

    /// The level this process uses: what `choice::settle` has fixed, as the program does at its start; else
    /// the one that the environment asks for, if that is possible, or the best.
    pub fn current() -> Level {
        *CURRENT.get_or_init(|| Level::asked().ok().flatten().unwrap_or_else(Level::best))
    }

    /// Fixes the level of this process; the first one to do so wins, and that level is returned.
    pub(super) fn fix(level: Level) -> Level {
        *CURRENT.get_or_init(|| level)
    }

    /// The level that `DIAGNOSE_KERNELS` names; an error if it names none, or one the processor lacks.
    pub(super) fn asked() -> Result<Option<Level>> {
        let Some(value) = std::env::var_os(VARIABLE) else { return Ok(None) };
        Level::parse(&value.to_string_lossy(), Level::highest()).map(Some)
    }

    /// The levels that may be chosen without being asked for, lowest first: with 256-bit vectors and above, if there are any.
    pub(super) fn chosen_by_themselves() -> Vec<Level> {
        let lowest = Level::best().min(Level::Avx2);
        Level::ALL.into_iter().filter(|level| (lowest..=Level::best()).contains(level)).collect()
    }

    /// All levels this processor can run, lowest first: what tests walk through.
    pub fn available() -> Vec<Level> {
        Level::ALL.into_iter().filter(|&level| level <= Level::highest()).collect()
    }

    /// The name that `DIAGNOSE_KERNELS` takes.
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
            // SAFETY: the assertion above has shown that the processor has the instructions.
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

    /// The highest level that the processor has: the best, or AMX, which must be asked for.
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

    /// Must be `#[inline(always)]`, and so must everything it calls that handles vectors: it is inlined into a function with the
    /// instructions enabled, and a call that stays a call would be compiled without them. Arrays are walked by reference or by index:
    /// `std::array::from_fn`, `map` and `into_iter` need not be inlined, which makes a product ten times slower where they are not.
    ///
    /// # Safety
    /// The processor must have `V`'s instructions.
    unsafe fn run<V: Lanes>(self) -> Self::Output;
}

/// In unit tests a processor without AMX follows its definition instead, slowly.
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
    match () {
        () if avx2 && avx512 && is_x86_feature_detected!("avx512bf16") => Level::Avx512Bf16,
        () if avx2 && avx512 => Level::Avx512,
        () if avx2 => Level::Avx2,
        () => Level::Portable,
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
