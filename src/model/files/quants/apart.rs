//! Splits quantised blocks into their integers, scales and minimums, for products that compute with them directly.

use super::nested::six_bits;
use super::words::{half_at, u32_at};
use crate::kernels::quantized::{Form, Group};

/// A type, the form that holds its blocks or parts of them, and the function that returns the `i`th part of a row.
type Row = (&'static str, Form, fn(&[u8], usize) -> Group);

/// The types whose blocks are multiplied directly.
pub(super) const KEPT: &[Row] = &[
    ("Q4_0", Form::Nibbles, q4_0),
    ("Q4_1", Form::Nibbles, q4_1),
    ("Q5_0", Form::Bytes, q5_0),
    ("Q8_0", Form::Bytes, q8_0),
    ("Q4_K", Form::WideNibbles, q4_k),
    ("Q5_K", Form::BytesAndLeast, q5_k),
    ("Q6_K", Form::ShortBytes, q6_k),
];

/// The entry of the type called `kind`, if it has one.
pub(in crate::model::files) fn kept(kind: &str) -> Option<&'static Row> {
    KEPT.iter().find(|(name, ..)| *name == kind)
}

/// The low halves of the bytes hold the first 16 numbers, the high halves the others; a stored 0 means -8.
fn q4_0(row: &[u8], i: usize) -> Group {
    let block = &row[18 * i..][..18];
    let scale = half_at(block, 0);
    Group { values: halves(&block[2..]), scale, least: -8.0 * scale }
}

fn q4_1(row: &[u8], i: usize) -> Group {
    let block = &row[20 * i..][..20];
    Group { values: halves(&block[4..]), scale: half_at(block, 0), least: half_at(block, 2) }
}

fn q5_0(row: &[u8], i: usize) -> Group {
    let block = &row[22 * i..][..22];
    let (mut values, fifth) = (halves(&block[6..]), u32_at(block, 2));
    values.iter_mut().enumerate().for_each(|(k, value)| *value += if fifth >> k & 1 == 1 { 0 } else { -16 });
    Group { values, scale: half_at(block, 0), least: 0.0 }
}

fn q8_0(row: &[u8], i: usize) -> Group {
    let block = &row[34 * i..][..34];
    let mut values = [0; 32];
    values.iter_mut().zip(&block[2..]).for_each(|(value, &byte)| *value = byte as i8);
    Group { values, scale: half_at(block, 0), least: 0.0 }
}

/// A block has eight parts.
fn q4_k(row: &[u8], i: usize) -> Group {
    let (block, part) = (&row[144 * (i / 8)..][..144], i % 8);
    let (scale, least) = six_bits(&block[4..16], part);
    let values = nibbles(&block[16..], part);
    Group { values, scale: half_at(block, 0) * scale, least: -half_at(block, 2) * least }
}

fn q5_k(row: &[u8], i: usize) -> Group {
    let (block, part) = (&row[176 * (i / 8)..][..176], i % 8);
    let (scale, least) = six_bits(&block[4..16], part);
    let mut values = nibbles(&block[48..], part);
    values.iter_mut().zip(&block[16..48]).for_each(|(value, fifth)| *value |= ((fifth >> part & 1) << 4) as i8);
    Group { values, scale: half_at(block, 0) * scale, least: -half_at(block, 2) * least }
}

/// A block has sixteen parts.
fn q6_k(row: &[u8], i: usize) -> Group {
    let (block, part) = (&row[210 * (i / 16)..][..210], i % 16);
    let (half, of_half) = (part / 8, part % 8);
    let low = &block[half * 64 + of_half % 4 * 16..][..16];
    let high = &block[128 + half * 32 + of_half % 2 * 16..][..16];
    let mut values = [0; 32];
    for ((value, low), high) in values.iter_mut().zip(low).zip(high) {
        *value = (low >> (of_half / 4 * 4) & 15 | (high >> (of_half / 2 * 2) & 3) << 4) as i8 - 32;
    }
    Group { values, scale: half_at(block, 208) * f32::from(block[192 + part] as i8), least: 0.0 }
}

fn halves(bytes: &[u8]) -> [i8; 32] {
    let mut values = [0; 32];
    for (k, byte) in bytes.iter().enumerate() {
        (values[k], values[k + 16]) = ((byte & 15) as i8, (byte >> 4) as i8);
    }
    values
}

/// The numbers of a part. Two parts share 32 bytes: the first has the low halves, the second the high halves.
fn nibbles(quants: &[u8], part: usize) -> [i8; 32] {
    let mut values = [0; 32];
    let bytes = &quants[part / 2 * 32..][..32];
    values.iter_mut().zip(bytes).for_each(|(value, byte)| *value = (byte >> (part % 2 * 4) & 15) as i8);
    values
}
