//! The input of a decoder: a packed batch of token sequences.

use std::sync::Arc;

use crate::kernels::Segment;

/// Rows of a packed batch: `T` tokens of several sequences, cut into segments that share prefixes.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Length `T`.
    pub ids: Vec<u32>,
    /// Together they cover `0..T`, in order and without gaps.
    pub segments: Arc<[Segment]>,
}
