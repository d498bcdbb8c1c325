//! What the kernels of attention are written over: the products of a strip, whatever is multiplied.

use super::packed::Head;
use super::plan::Tile;
use super::strip::Scores;
use crate::kernels::lanes::Lanes;

/// The products of a strip of `S` query rows, and what they want their factors to be.
pub(super) trait Arithmetic<const S: usize> {
    type V: Lanes;
    /// Factors in a word.
    const PER_WORD: usize;

    /// Numbers into words of neighbours, in place: there are `row.len() / PER_WORD` of them at its beginning.
    ///
    /// # Safety
    /// The processor must have the instructions; the row must be whole granules.
    unsafe fn along(row: &mut [f32]);

    /// [`Arithmetic::along`]; returns the sum of the numbers as the words hold them, which before was `sum`.
    ///
    /// # Safety
    /// As above.
    unsafe fn along_with_sum(row: &mut [f32], sum: f32) -> f32;

    /// Numbers of a query or a key into as many words that [`Arithmetic::scores`] multiplies, in place.
    ///
    /// # Safety
    /// As above.
    unsafe fn finely(row: &mut [f32]);

    /// `PER_WORD` rows, `stride` apart, into words of what lies below each other.
    ///
    /// # Safety
    /// The processor must have the instructions; `n` must be whole granules, readable in each row, and as many words writable at `to`.
    unsafe fn across(rows: *const f32, stride: usize, n: usize, to: *mut u32);

    /// `scores[r][key] = rows[r] . columns[key]`; `rows` is `[S, padded head_dim]`.
    ///
    /// # Safety
    /// The processor must have the instructions; `columns` must be packed by column, these and the rows finely.
    unsafe fn scores(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<S>);

    /// As [`Arithmetic::scores`], for rows in words of neighbours, as [`Arithmetic::along`] makes them, which stand at the beginning of
    /// each row.
    ///
    /// # Safety
    /// The processor must have the instructions; `columns` must be packed by column, these and the rows along.
    unsafe fn products(columns: Head, tile: Tile, rows: &[u32], scores: &mut Scores<S>);

    /// `sums[r] = sums[r] * shrinks[r] + sum over keys of weights[r][key] * rows[key]`, over the keys of a tile up to the position
    /// `last`, and perhaps further ones of weight 0; `sums` is `[S, padded head_dim]`.
    ///
    /// # Safety
    /// The processor must have the instructions; `rows` must be packed by row, and the weights words along their rows.
    unsafe fn weighted_sums(rows: Head, tile: Tile, weights: &Scores<S>, last: usize, shrinks: &[f32; S], sums: &mut [f32]);

    /// `sums[key] += sum over r of weights[r][key] * rows[r]` for each key of one granule, the tile's `g`-th; `sums` is
    /// `[16, padded head_dim]`, `rows` `[S / PER_WORD, padded head_dim]`, and `weights` as many rows, [`STRIDE`] apart; both in words across.
    ///
    /// # Safety
    /// The processor must have the instructions.
    unsafe fn add_transposed(weights: &[u32], g: usize, rows: &[u32], sums: &mut [f32]);
}

/// Code that is compiled once for each arithmetic; the rules of [`Kernel`](crate::kernels::level::Kernel) hold.
pub(super) trait AttentionKernel {
    type Output;

    /// # Safety
    /// The processor must have `A`'s instructions.
    unsafe fn run<A: Arithmetic<S>, const S: usize>(self) -> Self::Output;
}
