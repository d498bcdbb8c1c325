//! Decodes blocks of 256 numbers with a scale, and with scales of a few bits for parts of 16 or 32 (llama.cpp's "K-quants", and IQ4_XS).

use super::simple::{NON_LINEAR, chosen};
use super::words::{half_at, u16_at};

/// Parts of 16 with a 4-bit scale and a 4-bit subtrahend. Two bits per number; the four numbers of a byte are 32 apart.
pub(super) fn q2_k(block: &[u8; 84], values: &mut [f32; 256]) {
    let (scales, quants) = (&block[..16], &block[16..80]);
    let (scale, least) = (half_at(block, 80), half_at(block, 82));
    for (part, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let (scale, least) = (scale * f32::from(scales[part] & 15), least * f32::from(scales[part] >> 4));
        let (bytes, shift) = two_bits(quants, part);
        for (value, byte) in values.iter_mut().zip(bytes) {
            *value = scale * f32::from(byte >> shift & 3) - least;
        }
    }
}

/// Parts of 16 with a 6-bit scale. The third bits of the numbers are stored together; 4 is subtracted from each number.
pub(super) fn q3_k(block: &[u8; 110], values: &mut [f32; 256]) {
    let (third_bits, quants, scales) = (&block[..32], &block[32..96], &block[96..108]);
    let scale = half_at(block, 108);
    for (part, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        let low = scales[part % 8] >> (part / 8 * 4) & 15;
        let high = scales[8 + part % 4] >> (part / 4 * 2) & 3;
        let scale = scale * f32::from((low | high << 4) as i8 - 32);
        let (bytes, shift) = two_bits(quants, part);
        let third = &third_bits[part % 2 * 16..][..16];
        for ((value, byte), third) in values.iter_mut().zip(bytes).zip(third) {
            let third = third >> (part / 2) & 1;
            *value = scale * f32::from((byte >> shift & 3 | third << 2) as i8 - 4);
        }
    }
}

/// The bytes of 16 2-bit numbers, and the shift of the numbers in them.
fn two_bits(quants: &[u8], part: usize) -> (&[u8], usize) {
    (&quants[part / 8 * 32 + part % 2 * 16..][..16], part % 8 / 2 * 2)
}

/// Parts of 32 with a 6-bit scale and a 6-bit subtrahend.
pub(super) fn q4_k(block: &[u8; 144], values: &mut [f32; 256]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (scales, quants) = (&block[4..16], &block[16..]);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (six, less) = six_bits(scales, part);
        let (scale, least) = (scale * six, least * less);
        let shift = part % 2 * 4;
        for (value, byte) in values.iter_mut().zip(&quants[part / 2 * 32..][..32]) {
            *value = scale * f32::from(byte >> shift & 15) - least;
        }
    }
}

/// Like `q4_k`; the fifth bits of the numbers are stored together.
pub(super) fn q5_k(block: &[u8; 176], values: &mut [f32; 256]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let (scales, fifth, quants) = (&block[4..16], &block[16..48], &block[48..]);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (six, less) = six_bits(scales, part);
        let (scale, least) = (scale * six, least * less);
        let shift = part % 2 * 4;
        for ((value, byte), fifth) in values.iter_mut().zip(&quants[part / 2 * 32..][..32]).zip(fifth) {
            let fifth = fifth >> part & 1;
            *value = scale * f32::from(byte >> shift & 15 | fifth << 4) - least;
        }
    }
}

/// The 6-bit scale and subtrahend of one of eight parts. For the first four parts these are the low bits of whole bytes; for the others
/// the low four bits are in the last four bytes, and the high two bits are above those of the first four parts.
pub(super) fn six_bits(scales: &[u8], part: usize) -> (f32, f32) {
    let (scale, less) = match part {
        0..4 => (scales[part] & 63, scales[part + 4] & 63),
        _ => {
            let low = scales[part + 4];
            (low & 15 | scales[part - 4] >> 6 << 4, low >> 4 | scales[part] >> 6 << 4)
        }
    };
    (f32::from(scale), f32::from(less))
}

/// Parts of 16 with an 8-bit scale; four bits of each number are in one array, two in another.
pub(super) fn q6_k(block: &[u8; 210], values: &mut [f32; 256]) {
    let (low, high, scales) = (&block[..128], &block[128..192], &block[192..208]);
    let scale = half_at(block, 208);
    for (part, values) in values.as_chunks_mut::<16>().0.iter_mut().enumerate() {
        // For each 128 numbers, 64 bytes hold the low bits of the first 64 numbers and of the last 64, and 32 bytes hold all high bits.
        let (half, of_half) = (part / 8, part % 8);
        let scale = scale * f32::from(scales[part] as i8);
        let low = &low[half * 64 + of_half % 4 * 16..][..16];
        let high = &high[half * 32 + of_half % 2 * 16..][..16];
        let (low_shift, high_shift) = (of_half / 4 * 4, of_half / 2 * 2);
        for ((value, low), high) in values.iter_mut().zip(low).zip(high) {
            let q = low >> low_shift & 15 | (high >> high_shift & 3) << 4;
            *value = scale * f32::from(q as i8 - 32);
        }
    }
}

/// Parts of 32 with a 6-bit scale, and the values of IQ4_NL.
pub(super) fn iq4_xs(block: &[u8; 136], values: &mut [f32; 256]) {
    let (scale, high, low) = (half_at(block, 0), u16_at(block, 2), &block[4..8]);
    let parts = block[8..].chunks_exact(16).zip(values.chunks_exact_mut(32));
    for (part, (quants, values)) in parts.enumerate() {
        let low = low[part / 2] >> (part % 2 * 4) & 15;
        let high = (high >> (part * 2)) as u8 & 3;
        chosen(scale * f32::from((low | high << 4) as i8 - 32), &NON_LINEAR, quants, values);
    }
}
