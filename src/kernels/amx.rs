//! Manages this thread's AMX registers: eight tiles of at most 16 rows by 16 words.
//!
//! No machine available for testing has AMX. Unit tests replace the instruction by the manual's definition of the product ([`emulated`]), so
//! that all code around it is tested; `DIAGNOSE_AMX_TESTS=1 cargo test --release --lib kernels` runs the same tests with the instructions.

use std::arch::asm;
use std::cell::Cell;

use super::processor;

/// The rows of the largest tile, and the 32-bit words of each row.
pub(crate) const TILE: usize = 16;

/// The operand of `ldtilecfg`: palette 1, and for each of the eight registers the bytes per row (from byte 16 on) and the rows (from byte 48
/// on).
#[repr(C, align(64))]
#[derive(PartialEq, Eq)]
pub(crate) struct Shape([u8; 64]);

impl Shape {
    /// The rows, and the words per row, of each register.
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
            // SAFETY: the 64 bytes are a valid configuration, and processor and kernel support tiles.
            unsafe { asm!("ldtilecfg [{}]", in(reg) self, options(nostack, readonly)) };
        }
    }
}

/// Configures the registers for as long as this value lives, then restores the previous configuration. Finally releases them, because the
/// kernel saves them and the processor keeps them powered while they are in use. Their contents do not survive a change.
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
                // SAFETY: the registers exist, and nothing on this thread uses them any more.
                unsafe { asm!("tilerelease", options(nostack, nomem)) };
            }
            Some(shape) if own != self.before => shape.load(),
            _ => {}
        }
    }
}

/// The manual's definition of `tdpbf16ps` (Intel's Software Developer's Manual, volume 2): sums the even and the odd products of a row's
/// words separately, starting at zero, then adds both to the sum; denormals count as zero.
#[cfg(test)]
pub(crate) mod emulated {
    /// Computes one element of a product of tiles: `a` is a row of `words` contiguous words, `b` a column of words that are `pitch` words
    /// apart.
    ///
    /// # Safety
    /// All these words must be readable.
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
