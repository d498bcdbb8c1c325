//! Measures how far two data sets lie apart in probability and entropy under a model, such as fine-tuning data and the model's own answers (the
//! paper's figure 1b, in numbers).
//!
//! The distance between the two distributions is the total variation over cells of the plane, 1.5 wide in ln(p / (1 - p)) and 0.25 in the square root
//! of H: the share of tokens that would have to move. Two samples of one distribution also have a positive distance, so the distance expected by
//! chance is given as well: the mean over random divisions of all rows. The sampling unit is the whole row.

use std::path::PathBuf;

use rayon::prelude::*;
use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::random;
use crate::stats::{PerRow, two_sample_intervals};
use crate::table::{Column, Quadrant, read_chunks};

/// The scores of a data set, row by row.
pub struct Landscape {
    rows: Vec<RowSums>,
}

#[derive(Default)]
struct RowSums {
    tokens: f64,
    conflicts: f64,
    surplus: f64,
    /// Cells with their numbers of tokens, by cell.
    cells: Vec<(u16, f64)>,
}

impl RowSums {
    fn add(&mut self, surplus: f64, is_conflict: bool, cell: u16) {
        self.tokens += 1.0;
        self.conflicts += f64::from(u8::from(is_conflict));
        self.surplus += surplus;
        match self.cells.binary_search_by_key(&cell, |(cell, _)| *cell) {
            Ok(at) => self.cells[at].1 += 1.0,
            Err(at) => self.cells.insert(at, (cell, 1.0)),
        }
    }
}

/// The differences between the second data set and the first.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gaps {
    /// The share of confident conflicts among the tokens.
    pub conflict_share: Gap,
    /// The mean of -ln p - H, nats per token.
    pub mean_surplus: Gap,
    /// The distance between the two distributions, as a share of the tokens.
    pub distance: Gap,
    /// The mean distance between two such data sets if they came from one distribution.
    pub distance_by_chance: f64,
}

/// A difference with its interval.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Gap {
    /// The second data set's number minus the first's; for a distance, the distance itself.
    pub value: f64,
    /// Its 95 % bootstrap interval over rows; absent if a data set has fewer than two rows.
    pub ci95: Option<[f64; 2]>,
}

const X_CELLS: usize = 20;
const Y_CELLS: usize = 14;
const N_CELLS: usize = X_CELLS * Y_CELLS;
/// The number of random divisions for the distance by chance.
const DIVISIONS: u64 = 200;

/// The cell of a token; tokens beyond the edges belong to the edge cells.
fn cell(logprob: f32, entropy: f32) -> u16 {
    let logprob = f64::from(logprob).min(0.0);
    let logit = logprob - (-logprob.exp_m1()).ln();
    // A cast saturates, and turns NaN into 0.
    let x = (((logit + 16.5) / 1.5).max(0.0) as usize).min(X_CELLS - 1);
    let y = ((f64::from(entropy).max(0.0).sqrt() / 0.25) as usize).min(Y_CELLS - 1);
    (y * X_CELLS + x) as u16
}

impl Landscape {
    /// Reads the tokens of these tables.
    pub fn read(tables: &[PathBuf]) -> Result<Landscape> {
        let (mut rows, mut open) = (Vec::new(), PerRow::<RowSums>::default());
        for chunk in read_chunks(tables, &[Column::Row, Column::Logprob, Column::Entropy, Column::Quadrant]) {
            let chunk = chunk?;
            for i in 0..chunk.len() {
                let (logprob, entropy) = (chunk.logprob[i], chunk.entropy[i]);
                if !logprob.is_finite() || !entropy.is_finite() {
                    continue;
                }
                rows.extend(open.go_to(chunk.row[i]));
                let surplus = -f64::from(logprob) - f64::from(entropy);
                open.sums.add(surplus, chunk.quadrant[i] == Quadrant::ConfidentConflict, cell(logprob, entropy));
            }
        }
        rows.extend(open.end());
        Ok(Landscape { rows })
    }

    /// The differences between `other` and this data set.
    pub fn gaps(&self, other: &Landscape) -> Gaps {
        let all = [self, other].map(|landscape| (0..landscape.rows.len() as u32).collect::<Vec<u32>>());
        let statistics = |draws: [&[u32]; 2]| {
            let [first, second] = [SampleSums::of(self, draws[0]), SampleSums::of(other, draws[1])];
            [
                second.conflict_share() - first.conflict_share(),
                second.mean_surplus() - first.mean_surplus(),
                first.distance(&second),
            ]
        };
        let values = statistics([&all[0], &all[1]]);
        let sizes = all.each_ref().map(Vec::len);
        let intervals = (sizes.iter().all(|&n| n >= 2)).then(|| two_sample_intervals(sizes, values, statistics));
        // Rows that are all alike have no spread to estimate from; their sums may still differ by rounding.
        let is_wide = |[low, high]: &[f64; 2]| high - low > 1e-12;
        let gap = |k: usize| Gap { value: values[k], ci95: intervals.map(|intervals| intervals[k]).filter(is_wide) };
        // A distance is never negative.
        let distance = gap(2);
        let distance = Gap { ci95: distance.ci95.map(|ends| ends.map(|end| end.clamp(0.0, 1.0))), ..distance };
        Gaps { conflict_share: gap(0), mean_surplus: gap(1), distance, distance_by_chance: self.distance_by_chance(other) }
    }

    fn distance_by_chance(&self, other: &Landscape) -> f64 {
        let n = self.rows.len();
        let of_division = |seed: u64| {
            let order = random::order(seed, (n + other.rows.len()) as u32);
            let mut halves = [SampleSums::default(), SampleSums::default()];
            for (place, &row) in order.iter().enumerate() {
                let row = row as usize;
                halves[usize::from(place >= n)].add(if row < n { &self.rows[row] } else { &other.rows[row - n] });
            }
            halves[0].distance(&halves[1])
        };
        (0..DIVISIONS).into_par_iter().map(of_division).sum::<f64>() / DIVISIONS as f64
    }
}

struct SampleSums {
    tokens: f64,
    conflicts: f64,
    surplus: f64,
    cells: Vec<f64>,
}

impl Default for SampleSums {
    fn default() -> SampleSums {
        SampleSums { tokens: 0.0, conflicts: 0.0, surplus: 0.0, cells: vec![0.0; N_CELLS] }
    }
}

impl SampleSums {
    fn of(landscape: &Landscape, rows: &[u32]) -> SampleSums {
        let mut sums = SampleSums::default();
        rows.iter().for_each(|&row| sums.add(&landscape.rows[row as usize]));
        sums
    }

    fn add(&mut self, row: &RowSums) {
        self.tokens += row.tokens;
        self.conflicts += row.conflicts;
        self.surplus += row.surplus;
        row.cells.iter().for_each(|&(cell, n)| self.cells[usize::from(cell)] += n);
    }

    fn conflict_share(&self) -> f64 {
        self.conflicts / self.tokens
    }

    fn mean_surplus(&self) -> f64 {
        self.surplus / self.tokens
    }

    /// Half the sum of the absolute differences of the cells' shares.
    fn distance(&self, other: &SampleSums) -> f64 {
        let cells = self.cells.iter().zip(&other.cells);
        0.5 * cells.map(|(a, b)| (a / self.tokens - b / other.tokens).abs()).sum::<f64>()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn row(tokens: &[(f64, u16)]) -> RowSums {
        let mut row = RowSums::default();
        tokens.iter().for_each(|&(surplus, cell)| row.add(surplus, cell == 0, cell));
        row
    }

    #[test]
    fn gaps_by_hand() {
        // Four tokens each in the cells 0, 0, 1, 1 and 0, 1, 2, 2: half of the tokens would have to move.
        let first = Landscape { rows: vec![row(&[(2.0, 0), (0.0, 1)]), row(&[(2.0, 0), (0.0, 1)])] };
        let second = Landscape { rows: vec![row(&[(1.0, 0), (0.0, 1)]), row(&[(0.0, 2), (1.0, 2)])] };
        let gaps = first.gaps(&second);
        assert_eq!((gaps.conflict_share.value, gaps.mean_surplus.value, gaps.distance.value), (-0.25, -0.5, 0.5));
        let own = first.gaps(&first);
        assert_eq!((own.distance.value, own.conflict_share.ci95), (0.0, None));
        assert!(first.gaps(&Landscape { rows: vec![row(&[(1.0, 0)])] }).distance.ci95.is_none());
    }

    #[test]
    fn every_token_has_a_cell() {
        let at = |p: f64, entropy: f32| cell(p.ln() as f32, entropy);
        // ln(p / (1 - p)) = 0 is the start of cell 11.
        assert_eq!((at(0.51, 0.0), at(0.49, 0.0), at(0.51, 1.01)), (11, 10, 11 + 4 * X_CELLS as u16));
        assert_eq!((at(0.0, 0.0), at(1.0, 0.0), cell(0.1, -0.1)), (0, X_CELLS as u16 - 1, X_CELLS as u16 - 1));
        assert_eq!(at(1e-9, 99.0), (Y_CELLS as u16 - 1) * X_CELLS as u16);
    }

    /// The intervals contain the truth at the stated rate, for two populations of rows with known gaps.
    #[test]
    fn intervals_hold_the_truth() {
        let (mut inside, mut chance) = ([0; 3], 0.0);
        const RUNS: u64 = 60;
        for run in 0..RUNS {
            // Rows have 10 tokens; a row's share in cell 0 is 0.1 or 0.3 in the first data set and 0.2 or 0.4 in the second; the others are in cell
            // 1.
            let sample = |which: u64| {
                let number = |row: u64, i: u64| random::unit(run * 1000 + which * 500 + row, i);
                let of_row = |r: u64| {
                    let share = 0.1 + 0.1 * which as f64 + if number(r, 99) < 0.5 { 0.2 } else { 0.0 };
                    let tokens: Vec<(f64, u16)> =
                        (0..10).map(|i| if number(r, i) < share { (1.0, 0) } else { (0.0, 1) }).collect();
                    row(&tokens)
                };
                Landscape { rows: (0..80).map(of_row).collect() }
            };
            let gaps = sample(0).gaps(&sample(1));
            for (k, gap) in [gaps.conflict_share, gaps.mean_surplus, gaps.distance].into_iter().enumerate() {
                let [low, high] = gap.ci95.unwrap();
                inside[k] += usize::from(low <= 0.1 && 0.1 <= high);
            }
            chance += gaps.distance_by_chance / RUNS as f64;
        }
        // Expected are 57 of 60; fewer than 52 occur once in a hundred runs.
        assert!(inside.iter().all(|&n| n >= 52), "{inside:?}");
        assert!((0.01..0.05).contains(&chance), "{chance}");
    }
}
