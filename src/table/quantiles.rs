//! Computes exact quantiles of table columns in two passes and constant memory.
//!
//! The bits of a float, with the sign folded in, order like the float itself. The first pass counts the upper 16 bits, which determines the bin
//! that contains the wanted rank; the second counts the lower 16 bits of that bin's values, which determines the value. This is a radix selection
//! (Knuth, The Art of Computer Programming 3, 5.2.5) on a stream.

use std::path::PathBuf;

use super::{Column, TokenChunk, read_chunks};
use crate::{Error, Result};

/// Returns the `share`-quantile of each column: the smallest value such that at least `share` of all tokens are at or below it.
///
/// It is always a value of the table (numpy calls this method `inverted_cdf`), so `value <= quantile` selects at least that share, and exactly that
/// share up to ties and rounding. Values that are not finite do not count.
pub fn quantiles(paths: &[PathBuf], wanted: &[(Column, f64)]) -> Result<Vec<f32>> {
    if wanted.is_empty() {
        return Ok(Vec::new());
    }
    let columns: Vec<Column> = wanted.iter().map(|(column, _)| *column).collect();
    let mut searches: Vec<Search> = wanted.iter().map(|_| Search::new()).collect();
    for refining in [false, true] {
        for chunk in read_chunks(paths, &columns) {
            let chunk = chunk?;
            for (search, column) in searches.iter_mut().zip(&columns) {
                search.count(chunk.floats(*column)?, refining);
            }
        }
        for (search, (column, share)) in searches.iter_mut().zip(wanted) {
            search.narrow(*share, refining).ok_or_else(|| {
                Error::new(format!("no quantile of `{}`: the table has no tokens", column.name()))
                    .cure("Choose thresholds that do not depend on the data, for example `--thresholds fixed`.")
            })?;
        }
    }
    Ok(searches.into_iter().map(|search| float_of(search.prefix << 16 | search.suffix)).collect())
}

/// Returns the `share`-quantile of values in memory, by the same definition, or `None` if there are no finite values.
pub fn quantile_of(values: &[f32], share: f64) -> Option<f32> {
    let mut search = Search::new();
    for refining in [false, true] {
        search.count(values, refining);
        search.narrow(share, refining)?;
    }
    Some(float_of(search.prefix << 16 | search.suffix))
}

impl TokenChunk {
    /// Returns a column of f32, or an error for any other column, which is a mistake of the caller.
    pub fn floats(&self, column: Column) -> Result<&[f32]> {
        match column {
            Column::Logprob => Ok(&self.logprob),
            Column::Entropy => Ok(&self.entropy),
            Column::EntropyTopk => Ok(&self.entropy_topk),
            Column::Tail => Ok(&self.tail),
            Column::Varentropy => Ok(&self.varentropy),
            Column::Grad => Ok(&self.grad),
            Column::TopLogprob => Ok(&self.top_logprob),
            _ => Err(Error::new(format!("column `{}` of the token table has no fractions", column.name()))),
        }
    }
}

/// The state of one selection: counts of the upper, then of the lower half of the keys.
struct Search {
    counts: Vec<u64>,
    /// The remaining rank inside the chosen bin, counted from 1.
    rank: u64,
    prefix: u32,
    suffix: u32,
}

impl Search {
    fn new() -> Search {
        Search { counts: vec![0; 1 << 16], rank: 0, prefix: 0, suffix: 0 }
    }

    fn count(&mut self, values: &[f32], refining: bool) {
        for value in values.iter().filter(|value| value.is_finite()) {
            let key = key_of(*value);
            if !refining {
                self.counts[(key >> 16) as usize] += 1;
            } else if key >> 16 == self.prefix {
                self.counts[(key & 0xffff) as usize] += 1;
            }
        }
    }

    /// Finds the bin of the wanted rank. Returns `None` if nothing was counted.
    fn narrow(&mut self, share: f64, refining: bool) -> Option<()> {
        if !refining {
            let n: u64 = self.counts.iter().sum();
            // The tolerance keeps a product like 0.07 * 100 = 7.000000000000001 from being rounded up to 8.
            self.rank = ((share * n as f64 * (1.0 - 4.0 * f64::EPSILON)).ceil() as u64).clamp(1, n.max(1));
        }
        let mut before = 0;
        let bin = self.counts.iter().position(|count| {
            before += count;
            before >= self.rank
        })?;
        self.rank -= before - self.counts[bin];
        self.counts.fill(0);
        *if refining { &mut self.suffix } else { &mut self.prefix } = bin as u32;
        Some(())
    }
}

/// Maps larger floats to larger keys; -0 and 0 have the same key.
fn key_of(value: f32) -> u32 {
    let bits = (value + 0.0).to_bits();
    if bits >> 31 == 1 { !bits } else { bits | 1 << 31 }
}

fn float_of(key: u32) -> f32 {
    f32::from_bits(if key >> 31 == 1 { key & !(1 << 31) } else { !key })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn small_cases_by_hand() {
        let values = [5.0, 1.0, 4.0, 2.0, 3.0];
        assert_eq!(quantile_of(&values, 0.2), Some(1.0));
        assert_eq!(quantile_of(&values, 0.21), Some(2.0));
        assert_eq!(quantile_of(&values, 0.5), Some(3.0));
        assert_eq!(quantile_of(&values, 1.0), Some(5.0));
        assert_eq!(quantile_of(&values, 0.0), Some(1.0));
        assert_eq!(quantile_of(&[-1.0, -2.0, 0.0, -0.0], 0.5), Some(-1.0));
        assert_eq!(quantile_of(&[f32::NAN, 7.0, f32::INFINITY], 0.9), Some(7.0));
        assert_eq!(quantile_of(&[], 0.5), None);
        assert_eq!(quantile_of(&[f32::NAN], 0.5), None);
    }

    #[test]
    fn a_round_share_of_a_round_number_is_not_pushed_up_by_rounding() {
        let values: Vec<f32> = (1..=100).map(|value| value as f32).collect();
        for percent in 1..=100 {
            assert_eq!(quantile_of(&values, f64::from(percent) / 100.0), Some(percent as f32));
        }
    }

    #[test]
    fn equals_sorting_on_random_values() {
        let mut state = 1u64;
        let mut random = move || {
            state = state.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
            (state >> 40) as f32 / (1 << 24) as f32
        };
        for n in [1, 2, 3, 100, 4097] {
            // Squares of fractions cluster near zero, and rounding to eighths produces ties.
            let values: Vec<f32> =
                (0..n).map(|i| if i % 3 == 0 { (random() * 8.0).round() / 8.0 } else { -random() * random() }).collect();
            let mut sorted = values.clone();
            sorted.sort_by(f32::total_cmp);
            for share in [0.01, 0.15, 0.5, 0.85, 1.0] {
                let rank = ((share * f64::from(n)).ceil() as usize).max(1);
                assert_eq!(quantile_of(&values, share), Some(sorted[rank - 1]), "n {n}, share {share}");
            }
        }
    }
}
