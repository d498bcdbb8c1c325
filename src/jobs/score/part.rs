//! Defines the unit of work, and measures where the time goes.

use serde::{Deserialize, Serialize};

use crate::engine::Curve;
use crate::engine::bounds::Bounds;
use crate::kernels::TokenStatistics;
use crate::tokens::{Item, Sequence};

/// Time spent, in seconds; the reader and the writer run concurrently with the engine.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub(crate) struct Stages {
    /// Loading the model, before anything else.
    pub load: f64,
    /// Reading and rendering everything once for the mask audit, before scoring begins.
    pub audit: f64,
    /// Scoring, from the first record to the last part.
    pub wall: f64,
    /// Reading records, rendering and tokenising them.
    pub read_and_tokenise: f64,
    /// The decoder.
    pub decoder: f64,
    /// The head.
    pub head: f64,
    /// Writing the parts.
    pub write: f64,
    /// Time in which the engine was idle.
    pub engine_waited: f64,
    /// Input tokens scored by this process: fewer than the run's if it resumed an earlier one.
    pub input_tokens: u64,
    /// Tokens that went through the decoder.
    pub computed_tokens: u64,
    /// Whether the user interrupted the run before everything was scored.
    #[serde(skip)]
    pub interrupted: bool,
    /// Seconds from the start of the run to the first example's scores; absent if there was nothing left to score.
    #[serde(skip)]
    pub to_first_row: Option<f64>,
}

impl Stages {
    /// Adds the times of another process: the sum is machine time, and the time to the first row is the earlier one's.
    pub(super) fn add(&mut self, other: &Stages) {
        // Without `..`, the compiler demands a decision for every new number.
        let Stages {
            load,
            audit,
            wall,
            read_and_tokenise,
            decoder,
            head,
            write,
            engine_waited,
            input_tokens,
            computed_tokens,
            interrupted: _,
            to_first_row: _,
        } = other;
        self.load += load;
        self.audit += audit;
        self.wall += wall;
        self.read_and_tokenise += read_and_tokenise;
        self.decoder += decoder;
        self.head += head;
        self.write += write;
        self.engine_waited += engine_waited;
        self.input_tokens += input_tokens;
        self.computed_tokens += computed_tokens;
    }
}

/// The tokens per part, which bound the work that a kill loses: up to a minute on two cores for models of up to [`FULL_PARAMETERS`], some seconds on
/// a GPU.
const PART_TOKENS: usize = 16_384;
/// Larger models get proportionally fewer tokens, so that a part takes as long, but at least two batches, since smaller ones are slower per token: a
/// part takes a few minutes for 7 billion parameters.
const FULL_PARAMETERS: u64 = 500_000_000;
const LEAST_TOKENS: usize = 4_096;
const PART_RECORDS: usize = 4_096;
/// The factor on the size of a part on a GPU, which would finish a smaller one before the next is read.
const GPU_FACTOR: usize = 16;

/// Counts records and finds where parts end: at the same records for a resumed run as for an uninterrupted one.
#[derive(Debug)]
pub(super) struct PartEnds {
    is_gpu: bool,
    /// The tokens of a full part on the CPU.
    full_tokens: usize,
    /// The number of the current part, and how much it contains.
    number: usize,
    tokens: usize,
    records: usize,
}

impl PartEnds {
    /// Starts at the part with this number. `device` is named as by [`Placement::description`](crate::model::Placement::description); for a model
    /// behind a server, `parameters` is 0.
    pub(super) fn new(device: &str, parameters: u64, number: usize) -> PartEnds {
        let is_gpu = device.starts_with("cuda");
        let share = if is_gpu { 1.0 } else { FULL_PARAMETERS as f64 / parameters.max(1) as f64 };
        let full_tokens = ((PART_TOKENS as f64 * share) as usize).clamp(LEAST_TOKENS, PART_TOKENS);
        PartEnds { is_gpu, full_tokens, number, tokens: 0, records: 0 }
    }

    /// Counts a record with `tokens` input tokens, and returns whether it is the last of its part.
    pub(super) fn add(&mut self, tokens: usize) -> bool {
        self.tokens += tokens;
        self.records += 1;
        // The first parts on a GPU are smaller, so that it has work while more is read.
        let factor = if self.is_gpu { GPU_FACTOR.min(2 << self.number.min(8)) } else { 1 };
        let ends = self.tokens >= factor * self.full_tokens || self.records >= factor * PART_RECORDS;
        if ends {
            *self = PartEnds { number: self.number + 1, tokens: 0, records: 0, ..*self };
        }
        ends
    }
}

/// Consecutive records on their way through the threads.
pub(super) struct Part {
    /// The rendered records.
    pub items: Vec<Item>,
    /// The sequences of the items with something to score, in order.
    pub sequences: Vec<Sequence>,
    /// The statistics of each sequence's supervised tokens.
    pub scores: Vec<Vec<TokenStatistics>>,
    /// One list for each entry of `scores` if servers ran the model; empty if this program did.
    pub bounds: Vec<Vec<Bounds>>,
    /// The curves of the sampled tokens.
    pub curves: Vec<Curve>,
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The indices of the records that end a part, among 3,000 records of 1,000 tokens.
    fn ends(device: &str, parameters: u64, first: usize, number: usize) -> Vec<usize> {
        let mut ends = PartEnds::new(device, parameters, number);
        (first..3000).filter(|_| ends.add(1000)).collect()
    }

    #[test]
    fn a_part_takes_about_as_long_whatever_the_model() {
        let tokens = |parameters| PartEnds::new("cpu", parameters, 0).full_tokens;
        assert_eq!([0, 135_000_000, 500_000_000].map(tokens), [16_384; 3]);
        assert_eq!([1_000_000_000, 1_500_000_000, 8_000_000_000, u64::MAX].map(tokens), [8_192, 5_461, 4_096, 4_096]);
    }

    #[test]
    fn parts_end_where_they_would_have_without_an_interruption() {
        let of_gpu = ends("cuda (a card)", 8_000_000_000, 0, 0);
        assert_eq!(of_gpu[..6], [32, 98, 230, 493, 756, 1019]);
        assert_eq!(ends("cpu (2 threads)", 0, 0, 0)[..3], [16, 33, 50]);
        for device in ["cuda (a card)", "cpu (2 threads)"] {
            let whole = ends(device, 1_000_000_000, 0, 0);
            for (number, last) in whole.iter().enumerate() {
                assert_eq!(
                    ends(device, 1_000_000_000, last + 1, number + 1),
                    whole[number + 1..],
                    "{device} behind part {number}"
                );
            }
        }
        let mut of_records = PartEnds::new("cpu", 0, 0);
        assert_eq!((0..10_000).filter(|_| of_records.add(0)).collect::<Vec<_>>(), [4095, 8191]);
    }
}
