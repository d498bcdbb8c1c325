//! Decodes types whose blocks have one scale, and plain floats.
//!
//! In blocks of 32, the low halves of the bytes hold the first 16 numbers, the high halves the others.

use half::f16;
use half::slice::HalfFloatSliceExt;

use super::words::{half_at, u32_at};

pub(super) fn f32(block: &[u8; 4], values: &mut [f32; 1]) {
    values[0] = f32::from_le_bytes(*block);
}

/// Converts f16 numbers: many at a time, so that the conversion is vectorised.
pub(super) fn f16s(bytes: &[u8], values: &mut [f32]) {
    const AT_A_TIME: usize = 256;
    let mut halves = [f16::ZERO; AT_A_TIME];
    for (bytes, values) in bytes.chunks(2 * AT_A_TIME).zip(values.chunks_mut(AT_A_TIME)) {
        let halves = &mut halves[..values.len()];
        halves.iter_mut().zip(bytes.as_chunks().0).for_each(|(half, bytes)| *half = f16::from_le_bytes(*bytes));
        halves.convert_to_f32_slice(values);
    }
}

pub(super) fn bf16(block: &[u8; 2], values: &mut [f32; 1]) {
    values[0] = f32::from_bits(u32::from(u16::from_le_bytes(*block)) << 16);
}

pub(super) fn q4_0(block: &[u8; 18], values: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    let number = |q: u8| scale * f32::from(q as i8 - 8);
    for i in 0..16 {
        let byte = block[2 + i];
        values[i] = number(byte & 15);
        values[i + 16] = number(byte >> 4);
    }
}

pub(super) fn q4_1(block: &[u8; 20], values: &mut [f32; 32]) {
    let (scale, least) = (half_at(block, 0), half_at(block, 2));
    let number = |q: u8| scale * f32::from(q) + least;
    for i in 0..16 {
        let byte = block[4 + i];
        values[i] = number(byte & 15);
        values[i + 16] = number(byte >> 4);
    }
}

/// The fifth bits of all 32 numbers are stored together.
pub(super) fn q5_0(block: &[u8; 22], values: &mut [f32; 32]) {
    let (scale, fifth) = (half_at(block, 0), u32_at(block, 2));
    let number = |q: u8, bit: u32| scale * f32::from((q | ((fifth >> bit) as u8 & 1) << 4) as i8 - 16);
    for i in 0..16 {
        let byte = block[6 + i];
        values[i] = number(byte & 15, i as u32);
        values[i + 16] = number(byte >> 4, i as u32 + 16);
    }
}

pub(super) fn q5_1(block: &[u8; 24], values: &mut [f32; 32]) {
    let (scale, least, fifth) = (half_at(block, 0), half_at(block, 2), u32_at(block, 4));
    let number = |q: u8, bit: u32| scale * f32::from(q | ((fifth >> bit) as u8 & 1) << 4) + least;
    for i in 0..16 {
        let byte = block[8 + i];
        values[i] = number(byte & 15, i as u32);
        values[i + 16] = number(byte >> 4, i as u32 + 16);
    }
}

pub(super) fn q8_0(block: &[u8; 34], values: &mut [f32; 32]) {
    let scale = half_at(block, 0);
    for (value, &q) in values.iter_mut().zip(&block[2..]) {
        *value = scale * f32::from(q as i8);
    }
}

/// The values that four bits choose from: finer around 0.
pub(super) const NON_LINEAR: [f32; 16] =
    [-127., -104., -83., -65., -49., -35., -22., -10., 1., 13., 25., 38., 53., 69., 89., 113.];

pub(super) fn iq4_nl(block: &[u8; 18], values: &mut [f32; 32]) {
    chosen(half_at(block, 0), &NON_LINEAR, &block[2..], values);
}

/// The values of OCP's 4-bit float E2M1, which has no NaN, doubled.
const E2M1: [f32; 16] = [0., 1., 2., 3., 4., 6., 8., 12., 0., -1., -2., -3., -4., -6., -8., -12.];

/// The scale is a power of 2 (OCP's E8M0), halved here because `E2M1` is doubled; the two smallest are subnormal.
pub(super) fn mxfp4(block: &[u8; 17], values: &mut [f32; 32]) {
    chosen(half_e8m0(block[0]), &E2M1, &block[1..], values);
}

fn half_e8m0(exponent: u8) -> f32 {
    match u32::from(exponent) {
        exponent @ 0..2 => f32::from_bits(0x0020_0000 << exponent),
        exponent => f32::from_bits((exponent - 1) << 23),
    }
}

/// MXFP4 as in the checkpoints of gpt-oss: the scale is stored elsewhere, and each byte holds two neighbours, the first in its low half.
pub(in super::super) fn mxfp4_in_pairs(scale: u8, block: &[u8], values: &mut [f32]) {
    let scale = half_e8m0(scale);
    for (&byte, pair) in block.iter().zip(values.chunks_exact_mut(2)) {
        pair[0] = scale * E2M1[usize::from(byte & 15)];
        pair[1] = scale * E2M1[usize::from(byte >> 4)];
    }
}

/// Four groups of 16 numbers, each with a scale in an 8-bit float (E4M3 without its sign).
pub(super) fn nvfp4(block: &[u8; 36], values: &mut [f32; 64]) {
    let (scales, quants) = block.split_at(4);
    for ((&scale, quants), values) in scales.iter().zip(quants.chunks_exact(8)).zip(values.chunks_exact_mut(16)) {
        let (exponent, mantissa) = (i32::from(scale >> 3 & 15), f32::from(scale & 7));
        let scale = match (scale, exponent) {
            (0x7f, _) => 0.0,
            (_, 0) => mantissa / 512.0,
            _ => (1.0 + mantissa / 8.0) * 2f32.powi(exponent - 7),
        };
        chosen(scale * 0.5, &E2M1, quants, values);
    }
}

/// Looks the numbers up in `table`: those of the low halves of the bytes, then those of the high halves.
pub(super) fn chosen(scale: f32, table: &[f32; 16], quants: &[u8], values: &mut [f32]) {
    let (low, high) = values.split_at_mut(quants.len());
    for ((&byte, low), high) in quants.iter().zip(low).zip(high) {
        *low = scale * table[usize::from(byte & 15)];
        *high = scale * table[usize::from(byte >> 4)];
    }
}

/// A byte holds five base-3 digits as a fraction of 256: the next digit is the integer part of three times the fraction. Two runs of
/// bytes have five digits per byte, and the last four bytes have four.
pub(super) fn tq1_0(block: &[u8; 54], values: &mut [f32; 256]) {
    let scale = half_at(block, 52);
    let (first, values) = values.split_at_mut(160);
    let (second, third) = values.split_at_mut(80);
    for (quants, values) in [(&block[..32], first), (&block[32..48], second), (&block[48..52], third)] {
        for (values, power) in values.chunks_exact_mut(quants.len()).zip([1u8, 3, 9, 27, 81]) {
            for (value, byte) in values.iter_mut().zip(quants) {
                let digit = (u16::from(byte.wrapping_mul(power)) * 3) >> 8;
                *value = scale * (f32::from(digit) - 1.0);
            }
        }
    }
}

/// A byte holds four 2-bit numbers, which are 32 apart.
pub(super) fn tq2_0(block: &[u8; 66], values: &mut [f32; 256]) {
    let scale = half_at(block, 64);
    for (quants, values) in block[..64].chunks_exact(32).zip(values.chunks_exact_mut(128)) {
        for (values, shift) in values.chunks_exact_mut(32).zip([0, 2, 4, 6]) {
            for (value, byte) in values.iter_mut().zip(quants) {
                *value = scale * (f32::from(byte >> shift & 3) - 1.0);
            }
        }
    }
}
