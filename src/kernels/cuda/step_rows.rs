//! The rows of a decoding step's tokens in its batch.
//!
//! The last token of each stretch comes first, in the order of the stretches; from the next multiple of [`TILE`] on come the earlier
//! tokens, stretch by stretch, padded to whole tiles of [`LARGE_TILE`]. Products compute the former by [`TILE`] rows and the latter by
//! [`LARGE_TILE`], with different last bits. A token's own request determines which of the two it gets: a generated token is always the
//! last of its stretch, and so is the end of a prompt; the rest of a prompt never is, whether it is computed for this prompt or for another
//! with the same beginning (engine/generate shares no page that contains the end of a prompt).

use std::ops::Range;

use super::shape::{LARGE_TILE, Rows, TILE};
use crate::error::{Error, Result};
use crate::kernels::attention::Stretch;

/// The rows of a step's tokens.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StepRows {
    /// The rows of each stretch's tokens except its last.
    before: Vec<Range<usize>>,
    len: usize,
}

impl StepRows {
    /// Arranges stretches of at least one token each.
    pub fn new(stretches: &[Stretch]) -> Result<StepRows> {
        if stretches.is_empty() || stretches.iter().any(|stretch| stretch.tokens.is_empty()) {
            return Err(Error::new("every sequence of a step brings a token at least"));
        }
        let first = stretches.len().next_multiple_of(TILE);
        let mut end = first;
        let of_stretch = |stretch: &Stretch| {
            let begin = end;
            end += stretch.tokens.len() - 1;
            begin..end
        };
        let before = stretches.iter().map(of_stretch).collect();
        Ok(StepRows { before, len: first + (end - first).next_multiple_of(LARGE_TILE) })
    }

    /// The most rows that `tokens` tokens take.
    pub fn most(tokens: usize) -> usize {
        tokens + (TILE - 1) + (LARGE_TILE - 1)
    }

    /// The number of rows of the batch.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Always false: there is at least one stretch.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// The number of stretches, which is the number of leading rows with last tokens.
    pub fn n_last(&self) -> usize {
        self.before.len()
    }

    /// The rows of the other tokens.
    pub fn before(&self) -> Range<usize> {
        let first = self.n_last().next_multiple_of(TILE);
        first..self.before.last().map_or(first, |last| last.end)
    }

    /// The rows of a stretch's tokens except its last.
    pub fn before_last(&self, stretch: usize) -> Range<usize> {
        self.before[stretch].clone()
    }

    /// The row of a token of a stretch.
    pub fn row(&self, stretch: usize, token: usize) -> usize {
        let before = &self.before[stretch];
        if token < before.len() { before.start + token } else { stretch }
    }

    /// The padding rows.
    pub fn vacant(&self) -> [Range<usize>; 2] {
        let before = self.before();
        [self.n_last()..before.start, before.end..self.len]
    }

    /// The end of the rows with tokens: from here on all rows are padding.
    pub fn held(&self) -> usize {
        let before = self.before();
        if before.is_empty() { self.n_last() } else { before.end }
    }

    /// Which rows the products compute together.
    pub fn products(&self) -> Rows {
        Rows::InBothTiles { small: self.before().start }
    }

    /// Arranges the `numbers` of the stretches' tokens by row; padding rows get the first number.
    pub fn arranged(&self, stretches: &[Stretch], numbers: &[u32]) -> Vec<u32> {
        let mut rows = vec![numbers.first().copied().unwrap_or(0); self.len];
        for (number, stretch) in stretches.iter().enumerate() {
            for (token, &own) in numbers[stretch.tokens.clone()].iter().enumerate() {
                rows[self.row(number, token)] = own;
            }
        }
        rows
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stretches(lens: &[usize]) -> Vec<Stretch> {
        let mut begin = 0;
        let stretch = |&len: &usize| {
            begin += len;
            Stretch { tokens: begin - len..begin, position: 0, pages: Vec::new().into(), sequence: 0 }
        };
        lens.iter().map(stretch).collect()
    }

    /// The last tokens come first, followed by the others in whole tiles; every token has its own row.
    #[test]
    fn last_tokens_stand_in_front_of_the_others() {
        let some = stretches(&[3, 1, 300, 2]);
        let rows = StepRows::new(&some).unwrap();
        assert_eq!((rows.n_last(), rows.before(), rows.held(), rows.len()), (4, 64..366, 366, 64 + 512));
        assert_eq!(rows.vacant(), [4..64, 366..576]);
        assert_eq!(
            [rows.row(0, 0), rows.row(0, 1), rows.row(0, 2), rows.row(1, 0), rows.row(3, 0), rows.row(3, 1)],
            [64, 65, 0, 1, 365, 3]
        );
        let numbers: Vec<u32> = (1000..1306).collect();
        let arranged = rows.arranged(&some, &numbers);
        assert_eq!((arranged[..4].to_vec(), arranged[4..64].to_vec()), (vec![1002, 1003, 1303, 1305], vec![1000; 60]));
        assert_eq!(
            (arranged[64..67].to_vec(), arranged[365], arranged[366..].to_vec()),
            (vec![1000, 1001, 1004], 1304, vec![1000; 210])
        );
        let of_writing = StepRows::new(&stretches(&[1; 65])).unwrap();
        assert_eq!((of_writing.len(), of_writing.held(), of_writing.before()), (128, 65, 128..128));
        assert!(StepRows::new(&[]).is_err() && StepRows::new(&stretches(&[2, 0])).is_err());
    }

    #[test]
    fn no_step_has_more_rows_than_are_reckoned_with() {
        for (tokens, n) in [(1, 1), (65, 65), (66, 65), (321, 65), (322, 65), (322, 64), (2112, 64), (2048, 1)] {
            let mut lens = vec![1; n];
            lens[0] += tokens - n;
            let rows = StepRows::new(&stretches(&lens)).unwrap();
            assert!(rows.len() <= StepRows::most(tokens), "{tokens} tokens of {n} stretches: {rows:?}");
        }
    }
}
