//! What a decoder reads.

use std::sync::Arc;

use crate::kernels::Segment;

/// Rows of a packed batch: `T` tokens of several sequences, cut into segments that share prefixes.
#[derive(Debug, Clone)]
pub struct Batch {
    /// Length `T`.
    pub ids: Vec<u32>,
    /// They tile `0..T`.
    pub segments: Arc<[Segment]>,
}
