//! The unit of work, and where the time goes.

use serde::{Deserialize, Serialize};

use crate::engine::Curve;
use crate::engine::bounds::Bounds;
use crate::kernels::TokenStatistics;
use crate::tokens::{Item, Sequence};

/// Where the time went, in seconds; the reader and the writer work beside the engine.
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
    /// The time in which the engine had nothing to do.
    pub engine_waited: f64,
    /// Input tokens scored by this process: fewer than the run's if it went on with an earlier one's parts.
    pub input_tokens: u64,
    /// Tokens that went through the decoder.
    pub computed_tokens: u64,
    /// From the start of the run to the first example's scores; absent if there was nothing left to score.
    #[serde(skip)]
    pub to_first_row: Option<f64>,
}

impl Stages {
    /// Adds the times of another process: they add up to machine time, and the first row is the earlier one's.
    pub(super) fn add(&mut self, other: &Stages) {
        // Without `..`, so that the compiler asks for a new number.
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

/// What a kill can cost: half a minute of work at a few hundred tokens per second; on a GPU some seconds.
const PART_TOKENS: usize = 16_384;
const PART_RECORDS: usize = 4_096;
/// How many times as much is in a part on a GPU, which would be done with a smaller one before the next is read.
const GPU_FACTOR: usize = 16;

/// How much is in a part.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct PartSize {
    tokens: usize,
    records: usize,
}

impl PartSize {
    /// With how much a part is full. `device` as [`Placement::description`](crate::model::Placement::description) names it.
    pub(super) fn of_device(device: &str) -> PartSize {
        let factor = if device.starts_with("cuda") { GPU_FACTOR } else { 1 };
        PartSize { tokens: factor * PART_TOKENS, records: factor * PART_RECORDS }
    }

    /// Adds a record that has `tokens` tokens to read.
    pub(super) fn add(&mut self, tokens: usize) {
        self.tokens += tokens;
        self.records += 1;
    }

    pub(super) fn reaches(&self, full: &PartSize) -> bool {
        self.tokens >= full.tokens || self.records >= full.records
    }
}

/// Consecutive records on their way through the threads.
pub(super) struct Part {
    /// The records, as they were rendered.
    pub items: Vec<Item>,
    /// The sequences of those items that have something to score, in order.
    pub sequences: Vec<Sequence>,
    /// The statistics of each sequence's supervised tokens.
    pub scores: Vec<Vec<TokenStatistics>>,
    /// One list for each of `scores` where servers ran the model; empty where this program did.
    pub bounds: Vec<Vec<Bounds>>,
    /// The curves of the tokens that are in the sample.
    pub curves: Vec<Curve>,
}
