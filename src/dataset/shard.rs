//! Divides the records of a data set among several machines.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::Error;
use crate::random::SplitMix;

/// The records whose indices a hash assigns to part `index` of `of`: the same on every machine, about equally many in each, and stable when records
/// are appended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Shard {
    /// The index of the shard, from 0.
    pub index: u32,
    /// The number of shards.
    pub of: u32,
}

impl Shard {
    /// Whether the record with this index belongs to the shard.
    pub fn holds(self, row: u32) -> bool {
        SplitMix(u64::from(row)).below(self.of) == self.index
    }
}

impl fmt::Display for Shard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.index, self.of)
    }
}

impl FromStr for Shard {
    type Err = Error;

    fn from_str(text: &str) -> Result<Shard, Error> {
        let numbers = text.split_once('/').and_then(|(index, of)| Some((index.trim().parse().ok()?, of.trim().parse().ok()?)));
        match numbers {
            Some((index, of)) if index < of => Ok(Shard { index, of }),
            Some((index, of)) if of > 0 && index == of => {
                Err(Error::usage(format!("there is no shard {text}: shards are counted from 0"))
                    .cure(format!("The last one is {}/{of}.", of - 1)))
            }
            _ => Err(Error::usage(format!("expected a shard such as 0/4, the first of four, found `{text}`"))),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_row_is_in_one_shard_and_all_shards_have_their_share() {
        for of in [1, 3, 20] {
            let mut sizes = vec![0u32; of as usize];
            for row in 0..20_000 {
                let holding: Vec<u32> = (0..of).filter(|&index| Shard { index, of }.holds(row)).collect();
                assert_eq!(holding.len(), 1, "{row} of {of}");
                sizes[holding[0] as usize] += 1;
            }
            // Five standard deviations of the binomial distribution.
            let mean = 20_000.0 / f64::from(of);
            assert!(sizes.iter().all(|&size| (f64::from(size) - mean).abs() <= 5.0 * mean.sqrt()), "{sizes:?}");
        }
    }

    #[test]
    fn shards_as_they_are_typed() {
        assert_eq!("2/3".parse::<Shard>().unwrap(), Shard { index: 2, of: 3 });
        for (text, message) in
            [("3/3", "The last one is 2/3"), ("4/3", "found `4/3`"), ("1", "found `1`"), ("0/0", "found `0/0`")]
        {
            assert!(text.parse::<Shard>().unwrap_err().to_string().contains(message), "{text}");
        }
    }
}
