//! Keys or values in the order in which the register tiles read them.

use super::plan::GRANULE;

/// The rows of one part of the projection, granule by granule and in each head by head.
pub(super) struct Packed {
    /// `[granules, kv_heads, size]`
    pub words: Vec<u32>,
    /// The number of key and value heads.
    pub kv_heads: usize,
    /// Words of one head in one granule.
    pub size: usize,
}

impl Packed {
    /// Room for so many granules, `size` words of each head, with nothing in it.
    pub(super) fn zeros(n_granules: usize, kv_heads: usize, size: usize) -> Packed {
        Packed { words: vec![0; n_granules * kv_heads * size], kv_heads, size }
    }

    pub(super) fn head(&self, kv_head: usize) -> Head<'_> {
        Head { packed: self, kv_head }
    }
}

/// One head of it.
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

    /// Words of a granule.
    #[inline(always)]
    pub(super) fn size(self) -> usize {
        self.packed.size
    }
}

/// Rows of a head padded with zeros to whole granules of columns, so that no vector is partial.
pub(super) fn padded(head_dim: usize) -> usize {
    head_dim.next_multiple_of(GRANULE)
}
