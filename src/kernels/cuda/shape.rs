//! The properties of a product that determine its fastest algorithm.

use crate::kernels::Stored;

/// `y [rows, N] = x [rows, K] W^T`, or added to `y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    /// The number of rows of `x` and of `y`.
    pub rows: usize,
    /// `N`
    pub out_features: usize,
    /// `K`
    pub in_features: usize,
    /// The format of `x` and of the weight.
    pub factors: Stored,
    /// The format of `y`.
    pub result: Stored,
    /// Whether the product is added to `y`.
    pub adds: bool,
    /// Powers of two that divide the addresses of weight, input and output, because parts of arrays may start anywhere.
    pub alignments: [u32; 3],
}

/// Which rows of a product are computed together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Rows {
    /// All of them, which is fastest. cuBLASLt's algorithm depends on their number, and so do the last bits of each row.
    Together,
    /// Always [`TILE`] at a time, so that the bits of a row do not depend on the number of others. Requires whole tiles.
    InTiles,
    /// The first `small` rows as in [`Rows::InTiles`], the others always `LARGE_TILE` at a time. The two kinds of rows have different last
    /// bits, so the kind of a row must not depend on the other rows. Requires whole tiles of both.
    InBothTiles {
        /// The number of rows in small tiles.
        small: usize,
    },
}

/// The rows of a tile: as many as the tensor cores multiply while the weights are read from memory. Each tile starts at a multiple of 256
/// bytes, the alignment that cuBLASLt wants.
pub const TILE: usize = 64;

/// The rows of a large tile, for prompts. The tensor cores take half as long again for them as reading the weights takes, so the shortest
/// prompt costs little more than in a [`TILE`], and a long one a third.
pub(super) const LARGE_TILE: usize = 256;
