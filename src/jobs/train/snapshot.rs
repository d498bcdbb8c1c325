//! Keeps the snapshot that psft compares with: the model at the first step of a large batch, which spans several optimiser steps.
//!
//! Instead of the model, it stores ln p of the large batch's targets, from an additional forward pass over them. A checkpoint in the middle of a
//! large batch includes these numbers, so that a resumed run continues to the same bits.

use serde::{Deserialize, Serialize};

use crate::engine;
use crate::error::Result;
use crate::model::Model;
use crate::tokens::Sequence;

/// ln p of the targets of several steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The number of the first step.
    first: u64,
    /// ln p of each target, by step and by sequence of the step.
    logprobs: Vec<Vec<Vec<f32>>>,
}

impl Snapshot {
    /// Scores the targets of `steps` with the current model; `first` is the number of the first step.
    pub(super) fn take(model: &Model, first: u64, steps: &[Vec<Sequence>]) -> Result<Snapshot> {
        let scores = engine::score(model, &steps.concat())?;
        let mut logprobs = scores.into_iter().map(|tokens| tokens.iter().map(|token| token.logprob).collect());
        Ok(Snapshot { first, logprobs: steps.iter().map(|step| logprobs.by_ref().take(step.len()).collect()).collect() })
    }

    /// ln p of the targets of a step's sequences; `None` if the step is not in this large batch.
    pub(super) fn of(&self, step: u64) -> Option<&[Vec<f32>]> {
        let index = usize::try_from(step.checked_sub(self.first)?).ok()?;
        self.logprobs.get(index).map(Vec::as_slice)
    }
}
