//! What psft compares with: the model as it stood at the first step of a large batch, which is some optimiser steps long.
//!
//! Not the model itself is kept but what it made of the large batch's targets, by one more forward pass over them; a checkpoint in the
//! middle of a large batch holds these numbers, so that a resumed run goes on to the same bits.

use serde::{Deserialize, Serialize};

use crate::engine::{self, Work};
use crate::error::Result;
use crate::model::Model;
use crate::tokens::Sequence;

/// ln p of the targets of some steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(super) struct Snapshot {
    /// The first of the steps.
    first: u64,
    /// Of each step, of each of its sequences, of each target.
    logprobs: Vec<Vec<Vec<f32>>>,
}

impl Snapshot {
    /// Of the model as it is, before step `first`, whose sequences are the first of `steps`.
    pub(super) fn take(model: &Model, first: u64, steps: &[Vec<Sequence>]) -> Result<Snapshot> {
        let scores = engine::score(model, &steps.concat(), &mut Work::default(), &mut |_| {})?;
        let mut logprobs = scores.into_iter().map(|tokens| tokens.iter().map(|token| token.logprob).collect());
        Ok(Snapshot { first, logprobs: steps.iter().map(|step| logprobs.by_ref().take(step.len()).collect()).collect() })
    }

    /// Of the sequences of a step, if it is one of this large batch.
    pub(super) fn of(&self, step: u64) -> Option<&[Vec<f32>]> {
        let index = usize::try_from(step.checked_sub(self.first)?).ok()?;
        self.logprobs.get(index).map(Vec::as_slice)
    }
}
