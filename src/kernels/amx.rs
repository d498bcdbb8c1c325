//! This thread's AMX registers: eight tiles of at most 16 rows by 16 words.
//!
//! No machine that we could test on has them. Unit tests put the manual's definition of the one product in the place of the instructions
//! ([`emulated`]), so that all around them is tested; `DIAGNOSE_AMX_TESTS=1 cargo test --release --lib kernels` runs the same tests by the
//! instructions.

use std::arch::asm;
use std::cell::Cell;

use super::processor;

/// Rows of the largest tile, and 32-bit words of each row.
pub(crate) const TILE: usize = 16;

/// What `ldtilecfg` reads: palette 1, and of each of the eight registers the bytes of a row (from byte 16 on) and the rows (from byte 48 on).
#[repr(C, align(64))]
#[derive(PartialEq, Eq)]
pub(crate) struct Shape([u8; 64]);

impl Shape {
    /// Rows and words of a row of each register.
    pub(crate) const fn new(registers: [(usize, usize); 8]) -> Shape {
        let mut bytes = [0; 64];
        bytes[0] = 1;
        let mut register = 0;
        while register < registers.len() {
            let (rows, words) = registers[register];
            assert!(rows <= TILE && words <= TILE);
            bytes[16 + 2 * register] = (words * size_of::<u32>()) as u8;
            bytes[48 + register] = rows as u8;
            register += 1;
        }
        Shape(bytes)
    }

    fn load(&self) {
        if processor::has_tiles() {
            // SAFETY: the 64 bytes are a legal shape, and the processor and the kernel allow tiles.
            unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly)) };
        }
    }
}

/// The registers in a shape, for as long as this lives; then in the one they had before. Given back at the end: the kernel saves them, and
/// the processor keeps them powered, as long as they are taken. What they hold does not last from one to the next.
pub(crate) struct Tiles {
    before: Option<&'static Shape>,
}

thread_local! {
    static TAKEN: Cell<Option<&'static Shape>> = const { Cell::new(None) };
}

impl Tiles {
    pub(crate) fn take(shape: &'static Shape) -> Tiles {
        let before = TAKEN.replace(Some(shape));
        if before != Some(shape) {
            shape.load();
        }
        Tiles { before }
    }
}

impl Drop for Tiles {
    fn drop(&mut self) {
        let own = TAKEN.replace(self.before);
        match self.before {
            None if processor::has_tiles() => {
                // SAFETY: they are there, and nobody on this thread uses them any more.
                unsafe { asm!("tilerelease", options(nostack, nomem)) };
            }
            Some(shape) if own != self.before => shape.load(),
            _ => {}
        }
    }
}

/// The manual's definition of `tdpbf16ps` (Intel's Software Developer's Manual, volume 2): from zero the even and the odd products of a row's
/// words, then both to the sum; denormals count as zero.
#[cfg(test)]
pub(crate) mod emulated {
    /// One element of the product of tiles of `words` words: `a` is its row's, one behind the other, `b` its column's, `pitch` words apart.
    ///
    /// # Safety
    /// All of them must be readable.
    pub(crate) unsafe fn add_product(sum: &mut f32, a: *const u32, b: *const u32, pitch: usize, words: usize) {
        let (even, odd) = (|word: u32| f32::from_bits(word << 16), |word: u32| f32::from_bits(word & 0xffff_0000));
        let flushed = |x: f32| if x.is_subnormal() { 0.0 } else { x };
        let (mut evens, mut odds) = (0f32, 0f32);
        for k in 0..words {
            // SAFETY: the caller's promise.
            let (a, b) = unsafe { (*a.add(k), *b.add(k * pitch)) };
            evens = flushed(flushed(even(a)).mul_add(flushed(even(b)), evens));
            odds = flushed(flushed(odd(a)).mul_add(flushed(odd(b)), odds));
        }
        *sum = flushed(flushed(*sum) + flushed(evens + odds));
    }
}
