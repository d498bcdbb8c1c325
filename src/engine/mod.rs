//! Runs a model over a data set in one forward pass: sequences -> statistics of every supervised token.
//!
//! This file runs the batches.
//!
//! ```text
//! batch.rs        sequences -> batches that share prefixes
//! sample.rs       the tokens for which the top-K entropy is compared with the full entropy
//! divergence.rs   two models over the same batches
//! generate/       generates answers
//! remote/         a server in place of our own model; bounds.rs what follows from the most probable tokens, which are all that it returns
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

use batch::packs;
pub use batch::{Packed, TOKEN_BUDGET, pack};
pub use divergence::{KeptLogits, TokenDivergence, divergence};
pub use sample::{Curve, Sample};

/// The EAFT gate's K (arXiv 2601.02151, section 3).
pub const TOP_K: usize = 20;

/// The token budget of the first batch of [`score`] on a CPU, so that the first results appear soon.
pub const FIRST_BUDGET: usize = 256;

/// The amount of computation, and the time that it took.
#[derive(Debug, Clone, Copy, Default, serde::Serialize)]
pub struct Work {
    /// The tokens that the decoder processed: fewer than the input if prefixes were shared or no supervised token followed.
    pub computed_tokens: u64,
    /// The seconds spent in the decoder.
    pub decoder_seconds: f64,
    /// The seconds spent in the head.
    pub head_seconds: f64,
}

/// The statistics of the supervised tokens of each sequence, in order: `scores[i].len()` is the number of `true`s in
/// `sequences[i].supervised`. With the fused kernels a score does not depend on what else is scored, to the last bit.
pub fn score(model: &Model, sequences: &[Sequence]) -> Result<Vec<Vec<TokenStatistics>>> {
    score_watched(model, sequences, &mut Work::default(), &mut |_| {})
}

/// Like [`score`], and adds the computation to `work`. After each batch `progress` receives the number of input tokens done; the first batch
/// is small, so this is soon.
pub fn score_watched(
    model: &Model,
    sequences: &[Sequence],
    work: &mut Work,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<TokenStatistics>>> {
    score_top_k(model, sequences, TOP_K, work, progress)
}

/// Like [`score_watched`], with the top-K entropy for another K than [`TOP_K`].
pub fn score_top_k(
    model: &Model,
    sequences: &[Sequence],
    top_k: usize,
    work: &mut Work,
    progress: &mut dyn FnMut(u64),
) -> Result<Vec<Vec<TokenStatistics>>> {
    let sample = Sample::default();
    let mut scorer = Scorer::new(model, top_k, &sample, work);
    let mut scores = scorer.add(sequences, progress)?;
    scores.extend(scorer.finish(progress)?);
    // There was one set, so this has one element.
    Ok(scores.into_iter().flat_map(|scores| scores.tokens).collect())
}

/// The result of [`Scorer`] for each set of sequences.
pub struct Scores {
    /// The statistics of the supervised tokens of each sequence, in order.
    pub tokens: Vec<Vec<TokenStatistics>>,
    /// The curves of the supervised tokens in the sample.
    pub curves: Vec<Curve>,
}

/// Scores sets of sequences, one after the other. A GPU gets the next batch, possibly the first of the next set, before the results of the
/// last one are read, so it never waits; elsewhere a set is complete once it has been added.
pub struct Scorer<'a> {
    model: &'a Model,
    top_k: usize,
    sample: &'a Sample,
    work: &'a mut Work,
    /// The number of input tokens in the finished batches.
    done: u64,
    underway: Option<Underway<'a>>,
    /// The set whose last batch is still running.
    open: Option<Scores>,
}

impl<'a> Scorer<'a> {
    /// A scorer that adds every finished batch to `work`.
    pub fn new(model: &'a Model, top_k: usize, sample: &'a Sample, work: &'a mut Work) -> Scorer<'a> {
        Scorer { model, top_k, sample, work, done: 0, underway: None, open: None }
    }

    /// Enqueues all batches of a set, and returns the sets that were completed meanwhile, in order. After each batch `progress` receives the
    /// number of input tokens done, over all sets.
    pub fn add(&mut self, sequences: &[Sequence], progress: &mut dyn FnMut(u64)) -> Result<Vec<Scores>> {
        let (model, mut finished) = (self.model, Vec::new());
        let mut scores = Scores { tokens: sequences.iter().map(|_| Vec::new()).collect(), curves: Vec::new() };
        let budget = model.token_budget();
        let first_budget = if model.placement == Placement::Cuda { budget } else { FIRST_BUDGET };
        for packed in packs(sequences, budget, first_budget) {
            let sampled = self.sample.of(sequences, &packed);
            let curves = Curves { of: &sampled, k_max: self.sample.k_max };
            let options = model.head_options(self.top_k);
            let statistics = model.statistics(&packed.batch, &packed.rows, &packed.targets, &options, curves)?;
            let input_tokens = packed.scatter.iter().map(|(sequence, _)| sequences[*sequence].ids.len() as u64).sum();
            let next = Underway { packed, input_tokens, sampled, statistics };
            if let Some(before) = self.underway.take() {
                match self.open.take() {
                    Some(mut open) => {
                        self.take_in(before, &mut open, progress)?;
                        finished.push(open);
                    }
                    None => self.take_in(before, &mut scores, progress)?,
                }
            }
            match next.statistics {
                Statistics::Ready(_) => self.take_in(next, &mut scores, progress)?,
                Statistics::Pending(..) => self.underway = Some(next),
            }
        }
        // A set without a batch leaves the previous set open.
        if self.open.is_some() {
            finished.extend(self.finish(progress)?);
        }
        match self.underway {
            Some(_) => self.open = Some(scores),
            None => finished.push(scores),
        }
        Ok(finished)
    }

    /// Waits for the running batch, and returns the set that it belongs to.
    pub fn finish(&mut self, progress: &mut dyn FnMut(u64)) -> Result<Option<Scores>> {
        let Some(mut open) = self.open.take() else { return Ok(None) };
        if let Some(last) = self.underway.take() {
            self.take_in(last, &mut open, progress)?;
        }
        Ok(Some(open))
    }

    fn take_in(&mut self, batch: Underway, scores: &mut Scores, progress: &mut dyn FnMut(u64)) -> Result<()> {
        let Underway { packed, input_tokens, sampled, statistics } = batch;
        let BatchStatistics { tokens: statistics, curves: by_k, decoder, head } = statistics.wait()?;
        self.work.decoder_seconds += decoder.as_secs_f64();
        self.work.head_seconds += head.as_secs_f64();
        self.work.computed_tokens += packed.batch.ids.len() as u64;
        if let Some(bad) = statistics.iter().position(|token| token.logprob.is_nan()) {
            return Err(Error::new(format!(
                "the model's logits are not numbers (first at target token {})",
                packed.targets[bad]
            ))
            .cure("The weights are damaged, or overflow: check the model file."));
        }
        let entropies = sampled.iter().map(|&target| statistics[target as usize].entropy);
        scores.curves.extend(by_k.into_iter().zip(entropies).map(|(by_k, entropy)| Curve { by_k, entropy }));
        for (sequence, targets) in &packed.scatter {
            scores.tokens[*sequence] = targets.iter().map(|&target| statistics[target as usize]).collect();
        }
        self.done += input_tokens;
        progress(self.done);
        Ok(())
    }
}

/// A batch whose statistics may still be on their way.
struct Underway<'a> {
    packed: Packed,
    /// The total number of tokens of its sequences, before packing.
    input_tokens: u64,
    /// The targets whose curves were requested.
    sampled: Vec<u32>,
    statistics: Statistics<'a>,
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernels::testing::device;
    use crate::kernels::{Dtype, Kernels};
    use crate::model::{LoadOptions, Reference};
    use crate::tokens::Span;

    fn model(placement: Placement, kernels: Kernels) -> Model {
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen3");
        let reference = Reference::resolve(path.to_str(), &|_, _, _| {}).unwrap();
        Model::load(&reference, LoadOptions { dtype: Dtype::F32, kernels, device: placement }, 128).unwrap()
    }

    /// `n` sequences from index `first` on, with a common prefix, whose tokens from `supervised_from` on are supervised.
    fn sequences(first: u32, n: u32, supervised_from: usize) -> Vec<Sequence> {
        let of_row = |row: u32| {
            let tail = (0..5 + row % 23).map(|t| (row * 7 + t * t) % 250);
            let ids: Vec<u32> = (0..12).chain(tail).collect();
            let supervised = (0..ids.len()).map(|t| t >= supervised_from).collect();
            Sequence { row, supervised, spans: vec![Span::default(); ids.len()], ids }
        };
        (first..first + n).map(of_row).collect()
    }

    /// Sets are returned in order and as if scored separately, even if one has nothing to score; a GPU holds one back, the CPU none. The
    /// curves of the sample are those of the CPU.
    #[test]
    fn sets_are_scored_as_if_each_were_alone() {
        let sets = [sequences(0, 40, 3), sequences(40, 0, 3), sequences(40, 9, 13), sequences(49, 5, 99), sequences(54, 30, 8)];
        let sample = Sample::new(&sets[..3].concat(), 20, 300);
        let mut places = vec![(Placement::Cpu, Kernels::Fused)];
        places.extend(device().map(|_| (Placement::Cuda, Kernels::Cuda)));
        let mut of_places = Vec::new();
        for (placement, kernels) in places {
            let model = model(placement, kernels);
            let (mut work, mut done) = (Work::default(), 0);
            let mut progress = |tokens| done = tokens;
            let mut scorer = Scorer::new(&model, TOP_K, &sample, &mut work);
            let mut found = Vec::new();
            for (number, set) in sets.iter().enumerate() {
                found.extend(scorer.add(set, &mut progress).unwrap());
                // Only sets that have a batch are held back.
                let held_back = usize::from(placement == Placement::Cuda && [0, 2, 4].contains(&number));
                assert_eq!(found.len(), number + 1 - held_back, "{placement:?}");
            }
            found.extend(scorer.finish(&mut progress).unwrap());
            assert!(scorer.finish(&mut progress).unwrap().is_none());
            assert_eq!(found.len(), sets.len());
            assert_eq!(done, [0, 2, 4].iter().flat_map(|&set| &sets[set]).map(|sequence| sequence.ids.len() as u64).sum::<u64>());
            let mut curves = 0;
            for (found, set) in found.iter().zip(&sets) {
                let (mut alone_work, mut alone) = (Work::default(), Vec::new());
                let mut scorer = Scorer::new(&model, TOP_K, &sample, &mut alone_work);
                alone.extend(scorer.add(set, &mut |_| {}).unwrap());
                alone.extend(scorer.finish(&mut |_| {}).unwrap());
                assert_eq!(alone.len(), 1);
                assert!(found.tokens == alone[0].tokens && found.curves == alone[0].curves, "{placement:?}");
                for (sequence, scores) in set.iter().zip(&found.tokens) {
                    assert_eq!(scores.len(), sequence.supervised.iter().filter(|&&supervised| supervised).count());
                }
                curves += found.curves.len();
            }
            assert_eq!(curves, sample.len());
            of_places.push(found);
        }
        // f32 on both.
        for (of_cpu, of_gpu) in of_places[0].iter().zip(of_places.iter().skip(1).flatten()) {
            assert_eq!(of_cpu.curves.len(), of_gpu.curves.len());
            let sorted = |curves: &[Curve]| {
                let mut all: Vec<f32> =
                    curves.iter().flat_map(|curve| curve.by_k.iter().chain([&curve.entropy])).copied().collect();
                all.sort_by(f32::total_cmp);
                all
            };
            for (a, b) in sorted(&of_cpu.curves).into_iter().zip(sorted(&of_gpu.curves)) {
                assert!((a - b).abs() <= 1e-4, "{a} and {b}");
            }
        }
    }
}
