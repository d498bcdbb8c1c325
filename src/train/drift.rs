//! Measures how far training has moved the model on general text, which it is not trained on: the [`Divergence`] from the base
//! model that `diagnose diff` also measures, on the first of the same texts. The base model's logits are computed before the
//! first step and kept in a file: a hundred megabytes with a vocabulary of 49,152, five hundred with one of 262,144.

use std::path::Path;

use crate::engine::{KeptLogits, TokenDivergence};
use crate::error::Result;
use crate::eval::divergence::{Divergence, FEW_TOKENS, general_text};
use crate::model::Model;
use crate::tokens::Sequence;

use super::metrics::Drift;

pub(crate) struct DriftProbe {
    sequences: Vec<Sequence>,
    kept: KeptLogits,
    /// The values of the base model itself: no divergence, and its cross-entropy.
    pub base: Drift,
}

impl DriftProbe {
    /// Stores the logits of `base` on general text, in windows of `max_len` tokens, in `folder`.
    pub(crate) fn new(base: &Model, max_len: usize, folder: &Path) -> Result<DriftProbe> {
        let sequences = general_text(&base.tokenizer, max_len, FEW_TOKENS)?;
        let kept = KeptLogits::of(base, &sequences, folder)?;
        let base = drift(&sequences, &kept.divergence(base)?);
        Ok(DriftProbe { sequences, kept, base })
    }

    /// Measures how far `model` is from the base.
    pub(crate) fn measure(&self, model: &Model) -> Result<Drift> {
        Ok(drift(&self.sequences, &self.kept.divergence(model)?))
    }
}

fn drift(sequences: &[Sequence], found: &[Vec<TokenDivergence>]) -> Drift {
    let Divergence { texts, tokens, mean, cross_entropy } = Divergence::new(sequences, found);
    Drift { kl: mean.value, kl_ci95: mean.ci95, cross_entropy, texts: texts as u64, tokens }
}
