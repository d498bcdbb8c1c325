//! One forward pass over a data set: sequences -> what the model believed about every supervised token.
//!
//! This file runs the batches.
//!
//! ```text
//! batch.rs        sequences -> batches that share prefixes
//! sample.rs       of which tokens the entropy of the top K is compared with that of all
//! divergence.rs   two models over the same batches
//! generate/       a model that writes
//! remote/         a server in place of a model of our own; bounds.rs what follows from the most probable tokens, which are all that it tells
//! ```

mod batch;
pub mod bounds;
mod divergence;
pub mod generate;
pub mod remote;
mod sample;

use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::kernels::statistics::Curves;
use crate::model::{BatchStatistics, Model, Placement, Statistics};
use crate::tokens::Sequence;

pub use batch::{Packed, TOKEN_BUDGET, pack};
pub use divergence::{KeptLogits, TokenDivergence, divergence};
pub use sample::{Curve, Sample};

/// The EAFT gate's K (arXiv 2601.02151, section 3).
pub const TOP_K: usize = 20;

/// Tokens of the first batch of [`score`] on a CPU, whose results show soon that all is well.
pub const FIRST_BUDGET: usize = 256;

/// How much was computed and how long it took.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Work {
    /// Tokens that went through the decoder: less than the input where prefixes were shared or nothing supervised followed.
    pub computed_tokens: u64,
    /// Seconds in the decoder.
    pub decoder_seconds: f64,
    /// Seconds in the head.
    pub head_seconds: f64,
}

/// Statistics of the supervised tokens of each sequence, in order: `scores[i].len()` is the number of `true`s in
/// `sequences[i].supervised`. With the fused kernels a score does not depend on what else is scored, to the last bit.
pub fn score(model: &Model, sequences: &[Sequence]) -> Result<Vec<Vec<TokenStatistics>>> {
    score_watched(model, sequences, &mut Work::default(), &mut |_| {})
}

/// As [`score`], and adds to `work` what was computed. After each batch `progress` is told the number of input tokens done; the first one is
/// small, so that this is soon.
pub fn score_watched(
    model: &Model,
    sequences: &[Sequence],
    work: &mut Work,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<TokenStatistics>>> {
    score_top_k(model, sequences, TOP_K, work, progress)
}

/// As [`score_watched`], with the entropy of another top K than [`TOP_K`].
pub fn score_top_k(
    model: &Model,
    sequences: &[Sequence],
    top_k: usize,
    work: &mut Work,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<TokenStatistics>>> {
    Ok(score_and_sample(model, sequences, top_k, &Sample::default(), work, progress)?.0)
}

/// As [`score_top_k`], and gives the curves of those tokens of the sequences that are in `sample`, batch by batch: they come with the
/// statistics, from the same pass.
pub fn score_and_sample(
    model: &Model,
    sequences: &[Sequence],
    top_k: usize,
    sample: &Sample,
    work: &mut Work,
    progress: &mut dyn FnMut(u64),
) -> Result<(Vec<Vec<TokenStatistics>>, Vec<Curve>)> {
    let (mut done, mut curves) = (0, Vec::new());
    let mut scores: Vec<Vec<TokenStatistics>> = sequences.iter().map(|_| Vec::new()).collect();
    let mut finish = |Underway { packed, sampled, statistics }: Underway| -> Result<()> {
        let BatchStatistics { tokens: statistics, curves: by_k, decoder, head } = statistics.wait()?;
        work.decoder_seconds += decoder.as_secs_f64();
        work.head_seconds += head.as_secs_f64();
        work.computed_tokens += packed.batch.ids.len() as u64;
        if let Some(bad) = statistics.iter().position(|token| token.logprob.is_nan()) {
            return Err(Error::new(format!(
                "the model's logits are not numbers (first at target token {})",
                packed.targets[bad]
            ))
            .cure("The weights are damaged, or overflow: check the model file."));
        }
        let entropies = sampled.iter().map(|&target| statistics[target as usize].entropy);
        curves.extend(by_k.into_iter().zip(entropies).map(|(by_k, entropy)| Curve { by_k, entropy }));
        for (sequence, targets) in &packed.scatter {
            scores[*sequence] = targets.iter().map(|&target| statistics[target as usize]).collect();
            done += sequences[*sequence].ids.len() as u64;
        }
        progress(done);
        Ok(())
    };
    // A GPU has the next batch before it is asked for the last one's results, so that it never waits.
    let mut underway: Option<Underway> = None;
    let budget = model.token_budget();
    let first_budget = if model.placement == Placement::Cuda { budget } else { FIRST_BUDGET };
    for packed in pack(sequences, budget, first_budget) {
        let sampled = sample.of(sequences, &packed);
        let curves = Curves { of: &sampled, k_max: sample.k_max };
        let statistics = model.statistics(&packed.batch, &packed.rows, &packed.targets, &model.head_options(top_k), curves)?;
        let next = Underway { packed, sampled, statistics };
        if let Some(before) = underway.take() {
            finish(before)?;
        }
        match next.statistics {
            Statistics::Ready(_) => finish(next)?,
            Statistics::Pending(_) => underway = Some(next),
        }
    }
    if let Some(last) = underway {
        finish(last)?;
    }
    Ok((scores, curves))
}

/// A batch whose statistics may be on their way.
struct Underway {
    packed: Packed,
    /// Targets whose curves were asked for.
    sampled: Vec<u32>,
    statistics: Statistics,
}
