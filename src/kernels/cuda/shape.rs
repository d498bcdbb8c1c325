//! What the fastest algorithm of a product depends on.

use crate::kernels::Stored;

/// `y [rows, N] = x [rows, K] W^T`, or added to `y`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) struct Shape {
    pub rows: usize,
    pub out_features: usize,
    pub in_features: usize,
    pub factors: Stored,
    pub result: Stored,
    pub adds: bool,
    /// What divides the addresses of weight, input and output: parts of arrays begin anywhere.
    pub alignments: [u32; 3],
}
