//! Computes the plan of a run, which is printed before it begins.

use serde::{Deserialize, Serialize};

use crate::diagnosis::quadrants::Resolved;
use crate::engine;
use crate::error::Result;
use crate::format::count;
use crate::kernels::{Dtype, TokenStatistics};
use crate::model::{Model, Parameter};
use crate::stats::{effective_number, share};
use crate::table::Quadrant;
use crate::tokens::Sequence;
use crate::train::loss::{Loss, mean_loss};
use crate::train::options::Options;
use crate::train::schedule::Schedule;
use crate::train::step::RowWeight;

/// The plan of a run, which `--dry-run` prints.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub(crate) struct Plan {
    /// Method, trained weights, steps and learning rate in one line; empty in records of earlier programs.
    #[serde(default)]
    pub what: String,
    pub sequences: u64,
    pub validation_sequences: u64,
    /// Input tokens per epoch, without a mix.
    pub input_tokens: u64,
    pub supervised_tokens: u64,
    pub steps_per_epoch: u64,
    pub total_steps: u64,
    pub warmup_steps: u64,
    pub learning_rate: f64,
    pub trained_parameters: u64,
    /// The total of program, weights, gradients, moments and activations.
    pub memory_bytes: u64,
    /// The loss on a sample of the data; absent where nothing was scored (`--dry-run`).
    pub preview: Option<Preview>,
}

/// The loss on the first sequences, with the untrained model.
#[derive(Debug, Clone, Copy, Default, Serialize, Deserialize)]
pub(crate) struct Preview {
    pub tokens: u64,
    pub cross_entropy: f64,
    pub mean_weight: f64,
    pub effective_tokens: f64,
    pub confident_conflicts: u64,
}

/// Such as `eaft, all weights of tiny: 20 steps of 16 rows, learning rate 1e-5 (cosine, 1 step of warm-up)`.
pub(super) fn what(options: &Options, schedule: &Schedule, model: &str) -> String {
    let gate = options.gate.as_ref().map_or_else(String::new, |gate| format!(" with the gate {gate}"));
    let learns = match options.lora {
        true => format!("adapters of rank {} on", options.lora_r),
        false => "all weights of".to_owned(),
    };
    let warmup = match schedule.warmup {
        0 => String::new(),
        warmup => format!(", {} of warm-up", count(warmup, "step")),
    };
    format!(
        "{}{gate}, {learns} {model}: {} of {}, learning rate {:e} ({}{warmup})",
        options.method,
        count(schedule.total, "step"),
        count(options.batch_size as u64, "row"),
        schedule.peak,
        schedule.shape,
    )
}

/// Computes the loss on the first sequences, which have these weights.
pub(super) fn preview(
    model: &Model,
    sequences: &[Sequence],
    weights: &[RowWeight],
    loss: &Loss,
    thresholds: &Resolved,
) -> Result<Preview> {
    const TOKENS: usize = 1024;
    let mut n = 0;
    let enough = sequences.iter().take_while(|sequence| {
        let before = n;
        n += sequence.n_targets();
        before < TOKENS
    });
    let sample = &sequences[..enough.count()];
    let scores = engine::score(model, sample)?;
    let mut means: Vec<f64> = scores.iter().map(|tokens| mean_loss(tokens)).collect();
    let of_batch = loss.of_batch(Some(&mut means))?;
    let of_row = |(tokens, row): (&Vec<TokenStatistics>, &RowWeight)| -> Vec<f64> {
        tokens.iter().enumerate().map(|(n, token)| f64::from(row.of_token(n, token, &of_batch))).collect()
    };
    let weights: Vec<f64> = scores.iter().zip(weights).flat_map(of_row).collect();
    let tokens: Vec<TokenStatistics> = scores.into_iter().flatten().collect();
    let (sum, squares) = (weights.iter().sum::<f64>(), weights.iter().map(|w| w * w).sum::<f64>());
    let label =
        |token: &&TokenStatistics| thresholds.label(token.logprob, token.entropy, token.tail) == Quadrant::ConfidentConflict;
    Ok(Preview {
        tokens: tokens.len() as u64,
        cross_entropy: mean_loss(&tokens),
        mean_weight: share(sum, tokens.len() as f64),
        effective_tokens: effective_number(sum, squares),
        confident_conflicts: tokens.iter().filter(label).count() as u64,
    })
}

/// An estimate of the memory for training in addition to the loaded model, in bytes: gradients, moments, activations, and the base to compare with.
pub(super) fn memory_beside(options: &Options, model: &Model, adapters: Option<&[Parameter]>) -> u64 {
    let moments = 2 * options.adamw().moments.size_in_bytes();
    let learning = match adapters {
        None => model.info.parameters * (4 + moments),
        Some(adapters) => adapters.iter().map(|adapter| adapter.len() as u64 * (8 + moments)).sum(),
    };
    let base = if options.needs_base() { model.info.parameters * options.dtype.size_in_bytes() } else { 0 };
    // For training in bf16x3, the two parts of the matrix in use: that of the vocabulary, or if it is small, gate and up together.
    let parts = match (adapters, options.dtype) {
        (None, Dtype::Bf16x3) => {
            let rows = model.config.vocab_size.max(2 * model.config.intermediate_size);
            rows as u64 * model.config.hidden_size as u64 * Dtype::Bf16x3.size_in_bytes()
        }
        _ => 0,
    };
    // The backward pass of the gated delta rule splits the projections of a layer and their gradients by heads.
    let of_delta =
        (0..model.config.layers).filter_map(|layer| model.config.delta_shape(layer)).map(|shape| shape.columns()).max();
    let per_token = 2 * 4 * of_delta.unwrap_or(0) + 4 * model.config.hidden_size * model.config.layers;
    let of_batch = options.pack_tokens.saturating_mul(per_token).saturating_add(options.activation_bytes());
    (learning + base + parts).saturating_add(of_batch as u64)
}
