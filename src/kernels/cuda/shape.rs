//! What the fastest algorithm of a product depends on.

use crate::kernels::Stored;

/// `y [rows, N] = x [rows, K] W^T`, or added to `y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// Rows of `x` and of `y`.
    pub rows: usize,
    /// `N`
    pub out_features: usize,
    /// `K`
    pub in_features: usize,
    /// What `x` and the weight are stored in.
    pub factors: Stored,
    /// What `y` is stored in.
    pub result: Stored,
    /// Is the product added to `y`?
    pub adds: bool,
    /// What divides the addresses of weight, input and output: parts of arrays begin anywhere.
    pub alignments: [u32; 3],
}

/// Which rows of a product are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All there are, which is the fastest. cuBLASLt's algorithm depends on their number, and with it the last bits of each.
    Together,
    /// [`TILE`] at a time, never more or less: the bits of a row do not depend on how many others there are. Whole tiles are given.
    InTiles,
    /// So many of the first as [`Rows::InTiles`], those behind them `LARGE_TILE` at a time, always: the two have bits of two kinds, so that
    /// which of them a row is among must not depend on the others. Whole tiles are given of both.
    InBothTiles {
        /// How many are among the first.
        small: usize,
    },
}

/// Rows of a tile. The tensor cores multiply so many in the time that the weights take to come from memory, and each begins where cuBLASLt
/// wants arrays to begin, at a multiple of 256 bytes.
pub const TILE: usize = 64;

/// Rows of a large tile, for prompts: the tensor cores take half as long again to multiply so many as the weights take to come from memory,
/// so that the smallest prompt costs little more than in a [`TILE`], and a long one a third.
pub(super) const LARGE_TILE: usize = 256;
