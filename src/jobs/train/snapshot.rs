//! What psft compares with: the model as it stood at the first step of a large batch, which is some optimiser steps long.
//!
//! Not the model itself is kept but what it made of the large batch's targets, by one more forward pass over them; a checkpoint in the
//! middle of a large batch holds these numbers, so that a resumed run goes on to the same bits.

use serde::{Deserialize, Serialize};

use crate::engine;
use crate::error::Result;
use crate::model::Model;
use crate::tokens::Sequence;

/// ln p of the targets of some steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The number of the first of the steps.
    first: u64,
    /// ln p of each target, by step and by sequence of the step.
    logprobs: Vec<Vec<Vec<f32>>>,
}

impl Snapshot {
    /// What the model as it is makes of the targets of `steps`; `first` is the number of the first of them.
    pub(super) fn take(model: &Model, first: u64, steps: &[Vec<Sequence>]) -> Result<Snapshot> {
        let scores = engine::score(model, &steps.concat())?;
        let mut logprobs = scores.into_iter().map(|tokens| tokens.iter().map(|token| token.logprob).collect());
        Ok(Snapshot { first, logprobs: steps.iter().map(|step| logprobs.by_ref().take(step.len()).collect()).collect() })
    }

    /// ln p of the targets of a step's sequences; `None` where the step is none of this large batch.
    pub(super) fn of(&self, step: u64) -> Option<&[Vec<f32>]> {
        let index = usize::try_from(step.checked_sub(self.first)?).ok()?;
        self.logprobs.get(index).map(Vec::as_slice)
    }
}
