//! The heads of an attention layer.

use crate::error::{Error, Result};

/// The heads of an attention layer, and which keys they see.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct AttentionShape {
    /// The number of query heads.
    pub heads: usize,
    /// Query heads `g * heads / kv_heads ..` read key and value head `g`.
    pub kv_heads: usize,
    /// The width of a head.
    pub head_dim: usize,
    /// Multiplies the scores; usually `1 / sqrt(head_dim)`.
    pub scale: f32,
    /// A token at position `i` sees position `j` only if `i - j < window`.
    pub window: Option<usize>,
    /// Scores become `softcap * tanh(score / softcap)` (Gemma 2).
    pub softcap: Option<f32>,
}

impl AttentionShape {
    /// The columns of the fused projection: all query heads, all key heads, all value heads.
    pub fn columns(&self) -> usize {
        self.q_width() + 2 * self.kv_width()
    }

    /// The columns of all query heads.
    pub(crate) fn q_width(&self) -> usize {
        self.heads * self.head_dim
    }

    /// The columns of all key heads, and also of all value heads.
    pub(crate) fn kv_width(&self) -> usize {
        self.kv_heads * self.head_dim
    }

    /// The number of query heads that share one key and value head.
    pub(crate) fn group(&self) -> usize {
        self.heads / self.kv_heads
    }

    pub(super) fn check(&self) -> Result<()> {
        if self.heads == 0 || self.kv_heads == 0 || self.head_dim == 0 || !self.heads.is_multiple_of(self.kv_heads) {
            return Err(Error::new(format!(
                "{} query heads of width {} cannot share {} key and value heads evenly",
                self.heads, self.head_dim, self.kv_heads
            )));
        }
        if self.window == Some(0) {
            return Err(Error::new("a window of 0 tokens lets no token see itself"));
        }
        Ok(())
    }
}
