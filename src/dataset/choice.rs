//! Selects the records to read: all, the first `n`, or a random sample.

use std::sync::Arc;

use serde::{Deserialize, Serialize};

use super::shard::Shard;
use super::{Dataset, Record};
use crate::error::Result;
use crate::random;

/// Which records the user wants to read.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Choice {
    #[default]
    All,
    First(u64),
    /// All samples of size `n` are equally likely. A larger sample with the same seed contains the smaller one.
    Random {
        n: u64,
        seed: u64,
    },
}

/// The records of a data set that are read: the user's choice, resolved once the records are counted.
#[derive(Debug, Clone)]
pub struct Chosen {
    /// The user's choice.
    pub choice: Choice,
    /// The number of records that a random sample was drawn from.
    pub drawn_from: Option<u64>,
    /// The machine's share of the chosen records, or `None` for all of them.
    pub shard: Option<Shard>,
    /// The numbers of the selected records in ascending order, unless they are all or the first ones.
    drawn: Option<Arc<Vec<u32>>>,
}

impl Chosen {
    /// Restricts the selection to one machine's share.
    pub fn in_shard(self, shard: Option<Shard>) -> Chosen {
        Chosen { shard, ..self }
    }

    /// Restricts the selection to these of its records; nothing is read behind the last of them.
    pub(crate) fn only(&self, rows: impl IntoIterator<Item = u32>) -> Chosen {
        let mut rows: Vec<u32> = rows.into_iter().collect();
        rows.sort_unstable();
        Chosen { drawn: Some(Arc::new(rows)), ..self.clone() }
    }

    /// Returns a remark for reports if not all records are read.
    pub fn remark(&self) -> Option<String> {
        match (self.choice, self.drawn_from) {
            (Choice::Random { n, seed }, Some(of)) if n < of => {
                Some(format!("{n} of {of} records are read, drawn at random with seed {seed}."))
            }
            (Choice::First(n), _) => Some(format!("Only the first {n} records are read, which may not be representative.")),
            _ => None,
        }
    }
}

impl Choice {
    /// Selects the first `limit` records, or all of them for `None`.
    pub fn first(limit: Option<u64>) -> Choice {
        limit.map_or(Choice::All, Choice::First)
    }
}

impl Dataset {
    /// Resolves the choice. A random sample takes a pass over all records to count them.
    pub fn choose(&self, choice: Choice) -> Result<Chosen> {
        let Choice::Random { n, seed } = choice else { return Ok(Chosen { choice, drawn_from: None, shard: None, drawn: None }) };
        let mut records = 0;
        for record in self.records() {
            record?;
            records += 1;
        }
        let drawn = random::sample(seed, records, n.min(u64::from(u32::MAX)) as u32);
        Ok(Chosen { choice, drawn_from: Some(u64::from(records)), shard: None, drawn: Some(Arc::new(drawn)) })
    }

    /// Iterates over the chosen records in order, with the errors of [`Dataset::records`].
    pub fn chosen(&self, chosen: &Chosen) -> impl Iterator<Item = Result<Record>> + Send + use<> {
        let drawn = chosen.drawn.clone();
        // Nothing is read behind the last selected record.
        let most = match (chosen.choice, &drawn) {
            (_, Some(drawn)) => drawn.last().map_or(0, |last| u64::from(*last) + 1),
            (Choice::First(limit), None) => limit,
            _ => u64::MAX,
        };
        let is_wanted = move |record: &Result<Record>| match (record, &drawn) {
            (Ok(record), Some(drawn)) => drawn.binary_search(&record.row).is_ok(),
            _ => true,
        };
        let shard = chosen.shard;
        let is_ours = move |record: &Result<Record>| match (record, shard) {
            (Ok(record), Some(shard)) => shard.holds(record.row),
            _ => true,
        };
        self.records().take(usize::try_from(most).unwrap_or(usize::MAX)).filter(is_wanted).filter(is_ours)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::ReadOptions;

    #[test]
    fn rows_keep_their_numbers_and_a_larger_sample_holds_the_smaller_one() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("rows.jsonl");
        let rows = (0..50).map(|i| if i == 7 { "{}\n".to_owned() } else { format!("{{\"text\":\"row {i}\"}}\n") });
        std::fs::write(&path, rows.collect::<String>()).unwrap();
        let dataset = Dataset::open(&[path.to_string_lossy().into_owned()], &ReadOptions::default()).unwrap();
        let rows = |choice: Choice| -> Vec<u32> {
            let chosen = dataset.choose(choice).unwrap();
            dataset.chosen(&chosen).map(|record| record.unwrap().row).collect()
        };
        assert_eq!(rows(Choice::All), (0..50).collect::<Vec<_>>());
        assert_eq!(rows(Choice::First(8)), (0..8).collect::<Vec<_>>(), "bad records count");
        let sample = |n, seed| rows(Choice::Random { n, seed });
        let (small, large) = (sample(10, 3), sample(20, 3));
        assert_eq!((small.len(), large.len(), sample(90, 3).len()), (10, 20, 50));
        assert!(small.is_sorted() && small.iter().all(|row| large.contains(row)));
        assert_ne!(small, sample(10, 4));
        assert_eq!(small, sample(10, 3));
        let chosen = dataset.choose(Choice::First(20)).unwrap();
        let rows = |wanted: &[u32]| -> Vec<u32> {
            dataset.chosen(&chosen.only(wanted.iter().copied())).map(|record| record.unwrap().row).collect()
        };
        assert_eq!((rows(&[12, 3, 7]), rows(&[])), (vec![3, 7, 12], vec![]));
    }
}
