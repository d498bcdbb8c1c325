//! The operations on a strip of query rows that the attention kernels are generic over, for any format of the factors.

use super::packed::Head;
use super::plan::Tile;
use super::strip::Scores;
use crate::kernels::lanes::Lanes;

/// The products of a strip of `S` query rows, and the conversions into the formats of their factors. A word holds `PER_WORD` factors.
pub(super) trait Arithmetic<const S: usize> {
    type V: Lanes;
    /// The number of factors in a word.
    const PER_WORD: usize;

    /// Converts a row in place to words of horizontally adjacent numbers: the first `row.len() / PER_WORD` words hold the result.
    ///
    /// # Safety
    /// The processor must have the instructions; the row must be a whole number of granules.
    unsafe fn along(row: &mut [f32]);

    /// Like [`Arithmetic::along`]; returns the sum of the numbers as rounded in the words, given their `sum` before rounding.
    ///
    /// # Safety
    /// As above.
    unsafe fn along_with_sum(row: &mut [f32], sum: f32) -> f32;

    /// Converts the numbers of a query or a key in place to the same number of words, in the format of [`Arithmetic::scores`].
    ///
    /// # Safety
    /// As above.
    unsafe fn finely(row: &mut [f32]);

    /// Converts `PER_WORD` rows, `stride` apart, to words of vertically adjacent numbers.
    ///
    /// # Safety
    /// The processor must have the instructions; `n` must be a whole number of granules, readable in each row, with `n` words writable at
    /// `to`.
    unsafe fn across(rows: *const f32, stride: usize, n: usize, to: *mut u32);

    /// `scores[r][key] = rows[r] . columns[key]`; `rows` is `[S, padded head_dim]`.
    ///
    /// # Safety
    /// The processor must have the instructions; `columns` must be packed by column, and both factors converted by [`Arithmetic::finely`].
    unsafe fn scores(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<S>);

    /// Like [`Arithmetic::scores`], for rows converted by [`Arithmetic::along`], whose words are at the start of each row.
    ///
    /// # Safety
    /// The processor must have the instructions; `columns` must be packed by column, and both factors converted by [`Arithmetic::along`].
    unsafe fn products(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<S>);

    /// `sums[r] = sums[r] * shrinks[r] + sum over keys of weights[r][key] * rows[key]`, over a tile's keys up to the position `last`,
    /// and possibly further keys with weight 0; `sums` is `[S, padded head_dim]`.
    ///
    /// # Safety
    /// The processor must have the instructions; `rows` must be packed by row, and the weights converted by [`Arithmetic::along`].
    unsafe fn weighted_sums(rows: Head, tile: Tile, weights: &Scores<S>, last: usize, shrinks: &[f32; S], sums: &mut [f32]);

    /// `sums[key] += sum over r of weights[r][key] * rows[r]` for each key of the tile's `g`-th granule; `sums` is `[16, padded head_dim]`,
    /// `rows` `[S / PER_WORD, padded head_dim]`, and `weights` has as many rows, [`STRIDE`] apart; both are converted by
    /// [`Arithmetic::across`].
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn add_transposed(weights: &[u32], g: usize, rows: &[u32], sums: &mut [f32]);
}

/// Code that is compiled once for each arithmetic; the rules of [`Kernel`](crate::kernels::level::Kernel) apply.
pub(super) trait AttentionKernel {
    type Output;

    /// # Safety
    /// The processor must have `A`'s instructions.
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) -> Self::Output;
}
