//! Decodes the types in which a GGUF file stores numbers: blocks of bytes -> floats.
//!
//! Every type except the plain floats divides a row into blocks of 32, 64 or 256 numbers, and each block has its own scale. The table
//! below lists the types; a test compares each with gguf-py (`gguf/quants.py`) bit by bit, and another keeps the guide's table up to
//! date.
//!
//! ```text
//! simple.rs      blocks with one scale
//! nested.rs      blocks of 256 with scales for parts of them (Q2_K to Q6_K, IQ4_XS)
//! codebook.rs    eight or four numbers at a time from a codebook (IQ1_S to IQ3_S); the codebooks are in grids.rs
//! apart.rs       the components of blocks, for products that compute with them directly
//! words.rs       multi-byte numbers in a block
//! ```

mod apart;
mod codebook;
mod grids;
mod nested;
mod simple;
mod words;

pub(super) use apart::kept;
pub(super) use simple::mxfp4_in_pairs;

use rayon::prelude::*;

use crate::error::{Error, Result};

/// A storage type: `values` numbers in a block of `bytes` bytes.
pub(super) struct TensorType {
    /// The name in ggml.
    pub(super) name: &'static str,
    /// The number in ggml, which files contain.
    number: u32,
    pub(super) values: usize,
    pub(super) bytes: usize,
    /// Decodes whole blocks.
    decode: fn(&[u8], &mut [f32]),
}

/// A row of the table: name, number, and the function that decodes one block, whose signature determines the block's length.
macro_rules! blocks {
    ($name:literal, $number:literal, $decode:path) => {
        TensorType::new($name, $number, lengths($decode), |bytes, values| each_block(bytes, values, $decode))
    };
}

#[rustfmt::skip]
const TAKEN: &[TensorType] = &[
    blocks!("F32", 0, simple::f32),
    TensorType::new("F16", 1, (2, 1), simple::f16s),
    blocks!("BF16", 30, simple::bf16),
    blocks!("Q4_0", 2, simple::q4_0),
    blocks!("Q4_1", 3, simple::q4_1),
    blocks!("Q5_0", 6, simple::q5_0),
    blocks!("Q5_1", 7, simple::q5_1),
    blocks!("Q8_0", 8, simple::q8_0),
    blocks!("Q2_K", 10, nested::q2_k),
    blocks!("Q3_K", 11, nested::q3_k),
    blocks!("Q4_K", 12, nested::q4_k),
    blocks!("Q5_K", 13, nested::q5_k),
    blocks!("Q6_K", 14, nested::q6_k),
    blocks!("IQ1_S", 19, codebook::iq1_s),
    blocks!("IQ1_M", 29, codebook::iq1_m),
    blocks!("IQ2_XXS", 16, codebook::iq2_xxs),
    blocks!("IQ2_XS", 17, codebook::iq2_xs),
    blocks!("IQ2_S", 22, codebook::iq2_s),
    blocks!("IQ3_XXS", 18, codebook::iq3_xxs),
    blocks!("IQ3_S", 21, codebook::iq3_s),
    blocks!("IQ4_NL", 20, simple::iq4_nl),
    blocks!("IQ4_XS", 23, nested::iq4_xs),
    blocks!("TQ1_0", 34, simple::tq1_0),
    blocks!("TQ2_0", 35, simple::tq2_0),
    blocks!("MXFP4", 39, simple::mxfp4),
    blocks!("NVFP4", 40, simple::nvfp4),
];

const DROPPED: &str = "llama.cpp has dropped it";
const NO_WEIGHTS: &str = "no model stores its weights this way";
const INSIDE: &str = "llama.cpp uses it only inside products";
const TOO_NEW: &str = "gguf-py, which this program follows, does not read it either";

/// The other types with a number in ggml, and why they are not supported.
const REFUSED: &[(&str, u32, &str)] = &[
    ("Q4_2", 4, DROPPED),
    ("Q4_3", 5, DROPPED),
    ("Q8_1", 9, INSIDE),
    ("Q8_K", 15, INSIDE),
    ("I8", 24, NO_WEIGHTS),
    ("I16", 25, NO_WEIGHTS),
    ("I32", 26, NO_WEIGHTS),
    ("I64", 27, NO_WEIGHTS),
    ("F64", 28, NO_WEIGHTS),
    ("Q4_0_4_4", 31, DROPPED),
    ("Q4_0_4_8", 32, DROPPED),
    ("Q4_0_8_8", 33, DROPPED),
    ("IQ4_NL_4_4", 36, DROPPED),
    ("IQ4_NL_4_8", 37, DROPPED),
    ("IQ4_NL_8_8", 38, DROPPED),
    ("Q1_0", 41, TOO_NEW),
    ("Q2_0", 42, TOO_NEW),
];

/// The numbers decoded at a time: a multiple of every type's block, and few enough to stay in a cache.
const CHUNK: usize = 1 << 15;

/// The type with ggml's `number`, for the tensor `tensor`.
pub(super) fn by_number(number: u32, tensor: &str) -> Result<&'static TensorType> {
    if let Some(found) = TAKEN.iter().find(|taken| taken.number == number) {
        return Ok(found);
    }
    let refused = REFUSED.iter().find(|(_, refused, _)| *refused == number);
    Err(Error::new(match refused {
        Some((name, _, why)) => {
            format!("the tensor `{tensor}` has the type {name} (number {number}), which is not supported: {why}")
        }
        None => format!("the tensor `{tensor}` has the unknown type number {number}"),
    })
    .cure("Convert or quantise the model again, to one of the types in the guide (Q8_0, Q4_K, F16 and so on)."))
}

impl TensorType {
    const fn new(name: &'static str, number: u32, (bytes, values): (usize, usize), decode: fn(&[u8], &mut [f32])) -> TensorType {
        assert!(CHUNK.is_multiple_of(values));
        TensorType { name, number, values, bytes, decode }
    }

    /// Decodes whole blocks on all cores; a remainder of bytes or numbers is ignored.
    pub(super) fn decode(&self, bytes: &[u8], values: &mut [f32]) {
        let chunk_bytes = CHUNK / self.values * self.bytes;
        let chunks = values.par_chunks_mut(CHUNK).zip(bytes.par_chunks(chunk_bytes));
        chunks.for_each(|(values, bytes)| (self.decode)(bytes, values));
    }
}

/// The bytes and numbers of a block that `_decode` accepts.
const fn lengths<const BYTES: usize, const VALUES: usize>(_decode: fn(&[u8; BYTES], &mut [f32; VALUES])) -> (usize, usize) {
    (BYTES, VALUES)
}

fn each_block<const BYTES: usize, const VALUES: usize>(
    bytes: &[u8],
    values: &mut [f32],
    decode: impl Fn(&[u8; BYTES], &mut [f32; VALUES]),
) {
    let (blocks, values) = (bytes.as_chunks().0, values.as_chunks_mut().0);
    blocks.iter().zip(values).for_each(|(block, values)| decode(block, values));
}

#[cfg(test)]
mod tests;
