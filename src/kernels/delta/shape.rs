//! The heads of the gated delta rule, and the columns of their numbers in a row of the projections.

use std::ops::Range;

use super::rule::PAD;
use crate::error::{Error, Result};

/// The heads of a layer with the gated delta rule.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct DeltaShape {
    /// The number of heads of queries and keys.
    pub key_heads: usize,
    /// Value heads `h` with `h * key_heads / value_heads = g` share the query and the key of head `g`.
    pub value_heads: usize,
    /// The width of a query and of a key.
    pub key_dim: usize,
    /// The width of a value.
    pub value_dim: usize,
    /// The number of tokens that the convolution reads, including the current one.
    pub kernel: usize,
    /// Whether a row is `(q | k | v.. | z..) of each key head | (b.. | a..) of each key head` (Qwen3-Next), or `q | k | v | z | b | a` of
    /// all heads (Qwen 3.5).
    pub grouped: bool,
}

impl DeltaShape {
    /// The number of value heads per key head.
    pub(super) fn group(&self) -> usize {
        self.value_heads / self.key_heads.max(1)
    }

    /// The channels of the convolution: `q | k | v` of all heads.
    pub fn channels(&self) -> usize {
        2 * self.key_heads * self.key_dim + self.value_heads * self.value_dim
    }

    /// The columns of the first projection or projections: queries, keys, values and gates.
    pub fn wide_columns(&self) -> usize {
        self.channels() + self.value_heads * self.value_dim
    }

    /// The columns of all projections: the wide ones, then two numbers per value head, `b` (how much is learnt) and `a` (how much is kept).
    pub fn columns(&self) -> usize {
        self.wide_columns() + 2 * self.value_heads
    }

    /// The total width of the heads' outputs.
    pub fn width(&self) -> usize {
        self.value_heads * self.value_dim
    }

    /// The size of the states of a key head's value heads, `[group, value_dim, padded key_dim]`.
    pub(super) fn state_len(&self) -> usize {
        self.group() * self.value_dim * padded(self.key_dim)
    }

    /// The columns of the query, the key and the values of a key head: in a row of the projections, or among the channels.
    pub(super) fn qkv(&self, head: usize, of_channels: bool) -> [Range<usize>; 3] {
        let DeltaShape { key_heads, key_dim, value_dim, .. } = *self;
        let values = self.group() * value_dim;
        let [q, k, v] = match self.grouped && !of_channels {
            true => {
                let start = head * 2 * (key_dim + values);
                [start, start + key_dim, start + 2 * key_dim]
            }
            false => [head * key_dim, (key_heads + head) * key_dim, 2 * key_heads * key_dim + head * values],
        };
        [q..q + key_dim, k..k + key_dim, v..v + values]
    }

    /// The columns of the gates of a key head's values, and of their `b` and `a`.
    pub(super) fn zba(&self, head: usize) -> [Range<usize>; 3] {
        let group = self.group();
        let values = group * self.value_dim;
        let wide = self.wide_columns();
        let [z, b, a] = match self.grouped {
            true => {
                let first = wide + head * 2 * group;
                [head * 2 * (self.key_dim + values) + 2 * self.key_dim + values, first, first + group]
            }
            false => [self.channels() + head * values, wide + head * group, wide + self.value_heads + head * group],
        };
        [z..z + values, b..b + group, a..a + group]
    }

    pub(crate) fn check(&self, columns: usize) -> Result<()> {
        let DeltaShape { key_heads, value_heads, key_dim, value_dim, kernel, .. } = *self;
        if [key_heads, value_heads, key_dim, value_dim, kernel].contains(&0) || !value_heads.is_multiple_of(key_heads) {
            return Err(Error::new(format!(
                "{value_heads} value heads of width {value_dim} cannot share {key_heads} key heads of width {key_dim} evenly, behind a \
                 convolution over {kernel} tokens"
            )));
        }
        if columns != self.columns() {
            return Err(Error::new(format!("the projections have {columns} columns, expected {}", self.columns())));
        }
        Ok(())
    }
}

/// The width of keys in the rule, padded with zeros.
pub(super) fn padded(key_dim: usize) -> usize {
    key_dim.next_multiple_of(PAD)
}
