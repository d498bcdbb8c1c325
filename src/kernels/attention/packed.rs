//! Storage for keys or values in the order in which the register tiles read them.

use super::plan::GRANULE;

/// The rows of one part of the projection, by granule and then by head.
pub(super) struct Packed {
    /// `[granules, kv_heads, size]`
    pub words: Vec<u32>,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// The words of one head in one granule.
    pub size: usize,
}

impl Packed {
    /// Zeros for `n_granules` granules, with `size` words per head.
    pub(super) fn zeros(n_granules: usize, kv_heads: usize, size: usize) -> Packed {
        Packed { words: vec![0; n_granules * kv_heads * size], kv_heads, size }
    }

    pub(super) fn head(&self, kv_head: usize) -> Head<'_> {
        Head { packed: self, kv_head }
    }
}

/// The words of one head.
#[derive(Clone, Copy)]
pub(super) struct Head<'a> {
    packed: &'a Packed,
    kv_head: usize,
}

impl<'a> Head<'a> {
    #[inline(always)]
    pub(super) fn granule(self, granule: usize) -> &'a [u32] {
        let Packed { words, kv_heads, size } = self.packed;
        &words[(granule * kv_heads + self.kv_head) * size..][..*size]
    }

    /// The words of a granule.
    #[inline(always)]
    pub(super) fn size(self) -> usize {
        self.packed.size
    }
}

/// The width of a head padded to whole granules, so that no vector is partial.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(GRANULE)
}
