//! Computes the gradient of one optimiser step: processes its sequences one token budget at a time and accumulates into the
//! parameters.
//!
//! The sum over tokens is divided once, by the number of supervised tokens of the whole step (each counted with the weight of its
//! turn), so that the gradient does not depend on how the sequences are split into packs. Sequences with a common prefix share
//! its rows: the gradient of a row is the sum over all sequences that use it.

use crate::engine::{self, Packed, pack};
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::kernels::statistics::{Divergence, head_gradient};
use crate::model::{Adapters, Batch, Model};
use crate::tokens::Sequence;

use super::loss::{BatchLoss, Loss, Share, mean_loss};
use crate::diagnosis::gate::Token;

/// The source of the base model's distributions, for methods that stay close to it.
pub(crate) enum Base<'a> {
    None,
    /// A separate model.
    Model(&'a Model),
    /// The trained model without its adapters.
    WithoutAdapters,
}

/// How much a sequence counts.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct RowWeight {
    /// The method's weight of the whole sequence.
    pub weight: f32,
    /// The conflicts of the row are intended: the method's token weights do not apply.
    pub intended: bool,
    /// The weight of each target, as given in the data; empty if all are 1. A target of weight 2 counts as two tokens.
    pub targets: Vec<f32>,
    /// ln p of each target under an earlier model, for the gates that use it; empty for all others.
    pub earlier: Vec<f32>,
}

impl RowWeight {
    /// The factor of the gradient of target `n`.
    pub(crate) fn of_token(&self, n: usize, statistics: &TokenStatistics, loss: &BatchLoss) -> f32 {
        self.of_target(n) * if self.intended { 1.0 } else { loss.weight(&self.token(n, statistics)) }
    }

    /// Target `n` in the form that gates take.
    fn token(&self, n: usize, statistics: &TokenStatistics) -> Token {
        Token::new(statistics, self.earlier.get(n).copied())
    }

    /// The constant factor of the whole loss of target `n`.
    fn of_target(&self, n: usize) -> f32 {
        self.weight * self.targets.get(n).unwrap_or(&1.0)
    }

    /// The number of tokens that the targets of `sequence` count as.
    fn tokens(&self, sequence: &Sequence) -> f64 {
        if self.targets.is_empty() {
            return sequence.n_targets() as f64;
        }
        self.targets.iter().map(|&weight| f64::from(weight)).sum()
    }
}

/// The settings of a step.
pub(crate) struct StepOptions<'a> {
    pub loss: &'a Loss,
    /// The number of tokens per forward pass.
    pub pack_tokens: usize,
    /// The bytes of activations to keep instead of recomputing.
    pub activation_bytes: usize,
    pub base: Base<'a>,
    /// The dropout rate of the adapters' inputs.
    pub dropout: f32,
    /// The key for the random draws of this step.
    pub dropout_key: u64,
}

/// A supervised token of a sequence with its results.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct StepToken {
    /// The token's id.
    pub target: u32,
    pub statistics: TokenStatistics,
    pub divergence: Divergence,
    /// The factor of its gradient.
    pub weight: f32,
    /// The token's loss before the division by the number of tokens.
    pub loss: f64,
}

/// The results of a step, before its update.
#[derive(Debug, Clone, Default)]
pub(crate) struct StepResult {
    /// The supervised tokens of each sequence, in order.
    pub tokens: Vec<Vec<StepToken>>,
    /// The loss that is minimised: the mean over the supervised tokens.
    pub loss: f64,
    pub input_tokens: u64,
    /// The sequences with a token whose loss is NaN. If there are any, the step stopped there and its gradient is invalid.
    pub diverged: Vec<usize>,
}

/// Adds the gradient of the mean loss over `sequences`, weighted by `weights`, to the model's parameters.
pub(crate) fn accumulate(
    model: &Model,
    sequences: &[Sequence],
    weights: &[RowWeight],
    options: &StepOptions,
) -> Result<StepResult> {
    let n_tokens: f64 = sequences.iter().zip(weights).map(|(sequence, weight)| weight.tokens(sequence)).sum();
    if n_tokens == 0.0 {
        return Err(Error::new("a batch holds no supervised token"));
    }
    let loss = batch_loss(model, sequences, options)?;
    let mut result = StepResult { tokens: vec![Vec::new(); sequences.len()], ..StepResult::default() };
    for (number, packed) in (0..).zip(pack(sequences, options.pack_tokens, options.pack_tokens)) {
        let Packed { batch, rows, targets, scatter } = packed;
        // A target counts once for each sequence that contains it.
        let mut shares = vec![Share::default(); targets.len()];
        // Sequences share a target only with all tokens before it, so that any model gives it the same probability in all of
        // them.
        let mut earlier = vec![None; targets.len()];
        for (sequence, indices) in &scatter {
            let row = &weights[*sequence];
            for (n, &index) in indices.iter().enumerate() {
                let Share { weighted, whole } = &mut shares[index as usize];
                *(if row.intended { whole } else { weighted }) += row.of_target(n) / n_tokens as f32;
                earlier[index as usize] = row.earlier.get(n).copied();
            }
        }
        let reference = base_hidden(model, &options.base, &batch, &rows)?;
        let reference = reference.as_ref().map(|hidden| (hidden, base_model(model, &options.base).head()));
        let adapters = Adapters::with_dropout(options.dropout_key.wrapping_add(number), options.dropout);
        let trace = model.trace(batch, &rows, adapters, options.activation_bytes)?;
        let factors = |n: usize, token: &TokenStatistics, _: &Divergence| loss.factors(&Token::new(token, earlier[n]), shares[n]);
        let head_options = model.head_options(options.loss.gate.top_k());
        let head = head_gradient(&trace.hidden, model.head(), &targets, &head_options, reference, &factors)?;
        let is_bad = |indices: &[u32]| indices.iter().any(|&index| head.statistics[index as usize].logprob.is_nan());
        result.diverged = scatter.iter().filter(|(_, indices)| is_bad(indices)).map(|(sequence, _)| *sequence).collect();
        if !result.diverged.is_empty() {
            return Ok(result);
        }
        model.backward(trace, &head.d_hidden)?;
        for (sequence, indices) in scatter {
            let row = &weights[sequence];
            let token = |(n, &index): (usize, &u32)| {
                let (statistics, divergence) = (head.statistics[index as usize], head.divergences[index as usize]);
                let weight = row.of_token(n, &statistics, &loss);
                let loss = f64::from(row.of_target(n)) * loss.value(&row.token(n, &statistics), &divergence, row.intended);
                StepToken { target: targets[index as usize], statistics, divergence, weight, loss }
            };
            result.tokens[sequence] = indices.iter().enumerate().map(token).collect();
        }
    }
    // In the order of the sequences, however they were packed.
    result.loss = result.tokens.iter().flatten().map(|token| token.loss).sum::<f64>() / n_tokens;
    result.input_tokens = sequences.iter().map(|sequence| sequence.ids.len() as u64).sum();
    Ok(result)
}

fn base_model<'a>(model: &'a Model, base: &Base<'a>) -> &'a Model {
    match base {
        Base::Model(base) => base,
        Base::None | Base::WithoutAdapters => model,
    }
}

fn base_hidden(model: &Model, base: &Base, batch: &Batch, rows: &[u32]) -> Result<Option<candle_core::Tensor>> {
    match base {
        Base::None => Ok(None),
        Base::Model(base) => base.hidden(batch, rows).map(Some),
        Base::WithoutAdapters => model.hidden_of_base(batch, rows).map(Some),
    }
}

/// The loss of a step with what it needs to know about the batch: TALR's temperature takes a separate forward pass.
fn batch_loss(model: &Model, sequences: &[Sequence], options: &StepOptions) -> Result<BatchLoss> {
    if !options.loss.gate.needs().tau {
        return options.loss.of_batch(None);
    }
    let scores = engine::score(model, sequences)?;
    let mut means: Vec<f64> = scores.iter().filter(|tokens| !tokens.is_empty()).map(|tokens| mean_loss(tokens)).collect();
    options.loss.of_batch(Some(&mut means))
}
