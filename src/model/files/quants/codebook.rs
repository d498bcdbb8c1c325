//! Decodes blocks of 256 numbers that are indices into a codebook, for eight (or twice four) numbers at a time (llama.cpp's "I-quants").
//!
//! The codebooks of the 2- and 3-bit types contain positive numbers; the signs are stored beside the indices. Those of the 1-bit types
//! contain -1, 0, 1, shifted by an eighth.

use super::grids::{IQ1, IQ2_S, IQ2_XS, IQ2_XXS, IQ3_S, IQ3_XXS};
use super::words::{half_at, u16_at, u32_at};

/// Parts of 32 numbers: four indices in four bytes, then 7 sign bits for each index and 4 bits for the scale.
pub(super) fn iq2_xxs(block: &[u8; 66], values: &mut [f32; 256]) {
    let scale = half_at(block, 0);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let (indices, rest) = (&block[2 + part * 8..][..4], u32_at(block, 6 + part * 8));
        let scale = scale * (0.5 + (rest >> 28) as f32) * 0.25;
        for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
            signed(scale, &IQ2_XXS[usize::from(indices[i])], eight_signs(rest >> (7 * i)), values);
        }
    }
}

/// Nine index bits and seven sign bits for eight numbers; 4-bit scales for 16.
pub(super) fn iq2_xs(block: &[u8; 74], values: &mut [f32; 256]) {
    let (scale, scales) = (half_at(block, 0), &block[66..]);
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        let index = u16_at(block, 2 + 2 * i);
        let scale = scale * (0.5 + four_bits(scales, i / 2)) * 0.25;
        signed(scale, &IQ2_XS[usize::from(index & 511)], eight_signs(u32::from(index >> 9)), values);
    }
}

/// Ten index bits, two of them stored separately, and eight sign bits for eight numbers; 4-bit scales for 16.
pub(super) fn iq2_s(block: &[u8; 82], values: &mut [f32; 256]) {
    let (scale, indices, signs, high, scales) = (half_at(block, 0), &block[2..34], &block[34..66], &block[66..74], &block[74..]);
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        let index = usize::from(indices[i]) | usize::from(high[i / 4] >> (i % 4 * 2) & 3) << 8;
        let scale = scale * (0.5 + four_bits(scales, i / 2)) * 0.25;
        signed(scale, &IQ2_S[index], signs[i], values);
    }
}

/// An index byte for four numbers; seven sign bits for eight; a 4-bit scale for 32.
pub(super) fn iq3_xxs(block: &[u8; 98], values: &mut [f32; 256]) {
    let (scale, indices) = (half_at(block, 0), &block[2..66]);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let rest = u32_at(block, 66 + part * 4);
        let scale = scale * (0.5 + (rest >> 28) as f32) * 0.5;
        for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
            let [a, b] = [indices[part * 8 + i * 2], indices[part * 8 + i * 2 + 1]].map(usize::from);
            signed(scale, &joined(&IQ3_XXS[a], &IQ3_XXS[b]), eight_signs(rest >> (7 * i)), values);
        }
    }
}

/// Nine index bits for four numbers, one of them stored separately; eight sign bits for eight; 4-bit scales for 32.
pub(super) fn iq3_s(block: &[u8; 110], values: &mut [f32; 256]) {
    let (scale, indices, high, signs, scales) =
        (half_at(block, 0), &block[2..66], &block[66..74], &block[74..106], &block[106..]);
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        let [a, b] = [2 * i, 2 * i + 1].map(|i| usize::from(indices[i]) | usize::from(high[i / 8] >> (i % 8) & 1) << 8);
        let scale = scale * (1.0 + 2.0 * four_bits(scales, i / 4));
        signed(scale, &joined(&IQ3_S[a], &IQ3_S[b]), signs[i], values);
    }
}

/// Eleven index bits, three of them stored separately, together with the scale and shift of 32 numbers.
pub(super) fn iq1_s(block: &[u8; 50], values: &mut [f32; 256]) {
    let (scale, indices) = (half_at(block, 0), &block[2..34]);
    for (part, values) in values.as_chunks_mut::<32>().0.iter_mut().enumerate() {
        let high = u16_at(block, 34 + part * 2);
        let scale = scale * f32::from(2 * (high >> 12 & 7) + 1);
        for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
            let index = usize::from(indices[part * 4 + i]) | usize::from(high >> (3 * i) & 7) << 8;
            shifted(scale, &IQ1[index], high >> 15 == 1, values);
        }
    }
}

/// Like `iq1_s`, with a shift for each 8 numbers and a 3-bit scale for 16; the bits of the block's scale are spread over four places.
pub(super) fn iq1_m(block: &[u8; 56], values: &mut [f32; 256]) {
    let (indices, high) = (&block[..32], &block[32..48]);
    let scales = [48, 50, 52, 54].map(|at| u16_at(block, at));
    let scale = scales[0] >> 12 | scales[1] >> 12 << 4 | scales[2] >> 12 << 8 | scales[3] >> 12 << 12;
    let scale = half::f16::from_bits(scale).to_f32();
    for (i, values) in values.as_chunks_mut().0.iter_mut().enumerate() {
        let high = high[i / 2] >> (i % 2 * 4);
        let index = usize::from(indices[i]) | usize::from(high & 7) << 8;
        let three_bits = scales[i / 8] >> (i / 2 % 4 * 3) & 7;
        shifted(scale * f32::from(2 * three_bits + 1), &IQ1[index], high & 8 != 0, values);
    }
}

/// The `i`th 4-bit number.
fn four_bits(bytes: &[u8], i: usize) -> f32 {
    f32::from(bytes[i / 2] >> (i % 2 * 4) & 15)
}

/// The low seven bits, and an eighth that makes the parity even.
fn eight_signs(bits: u32) -> u8 {
    let seven = (bits & 127) as u8;
    seven | (seven.count_ones() as u8 & 1) << 7
}

fn joined(a: &[i8; 4], b: &[i8; 4]) -> [i8; 8] {
    [a[0], a[1], a[2], a[3], b[0], b[1], b[2], b[3]]
}

/// A set bit of `signs` means minus.
fn signed(scale: f32, entry: &[i8; 8], signs: u8, values: &mut [f32; 8]) {
    for i in 0..8 {
        let minus = u32::from(signs) >> i << 31;
        values[i] = f32::from_bits((scale * f32::from(entry[i])).to_bits() ^ minus);
    }
}

fn shifted(scale: f32, entry: &[i8; 8], down: bool, values: &mut [f32; 8]) {
    let shift = if down { -0.125 } else { 0.125 };
    for (value, &number) in values.iter_mut().zip(entry) {
        *value = scale * (f32::from(number) + shift);
    }
}
