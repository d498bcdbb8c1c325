//! The statistics of one row of logits by their definitions, in f64: slow and plain, and the reference in tests.

use candle_core::Tensor;
use rayon::prelude::*;

use super::divergence::Divergence;
use super::options::HeadOptions;
use crate::error::Result;
use crate::kernels::matmul::Matrix;
use crate::kernels::{Choice, NEXT_CHOICES, TokenStatistics};

/// The statistics of a target in one row of logits. `p_v = exp(logit_v) / sum exp`; a logit of -inf has `p = 0`, and `0 ln 0 = 0`. If a
/// logit is NaN or +inf, or all are -inf, every number is NaN, `rank` 0 and `top_id` 0. Panics if `target` lies outside `logits`.
pub fn statistics_of_logits(logits: &[f32], target: u32, top_k: usize) -> TokenStatistics {
    let target_logit = f64::from(logits[target as usize]);
    let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
    if logits.iter().any(|logit| logit.is_nan()) || !largest.is_finite() {
        return TokenStatistics::nan();
    }
    let shifted: Vec<f64> = logits.iter().map(|&logit| f64::from(logit) - f64::from(largest)).collect();
    let sum: f64 = shifted.iter().map(|d| d.exp()).sum();
    let surprisal = |d: f64| sum.ln() - d;
    let p = |d: f64| d.exp() / sum;
    // 0 ln 0 = 0: a logit of -inf contributes nothing to any mean.
    let mean = |f: &dyn Fn(f64) -> f64| -> f64 { shifted.iter().filter(|d| d.is_finite()).map(|&d| p(d) * f(d)).sum() };

    let entropy = mean(&surprisal);
    let target_shifted = target_logit - f64::from(largest);
    let others = || shifted.iter().enumerate().filter(|(id, _)| *id != target as usize).map(|(_, &d)| p(d));
    // 1 - 2 p + sum p^2, from the other tokens' terms only: exact even if p is close to 1.
    let not_target: f64 = others().sum();
    let grad = (not_target * not_target + others().map(|p| p * p).sum::<f64>()).sqrt();
    // ln p = -ln(1 + others / p): exact even if p is close to 1; if p has lost digits or underflowed, the others have all the mass.
    let logprob = match p(target_shifted) {
        p if p > LEAST_EXACT => -(not_target / p).ln_1p(),
        _ => -surprisal(target_shifted),
    };
    TokenStatistics {
        logprob: logprob as f32,
        entropy: entropy as f32,
        entropy_topk: normalised_topk_entropy(logits, top_k) as f32,
        rank: 1 + shifted.iter().filter(|&&d| d > target_shifted).count() as u32,
        tail: shifted.iter().filter(|&&d| d <= target_shifted).map(|&d| p(d)).sum::<f64>().min(1.0) as f32,
        varentropy: mean(&|d| (surprisal(d) - entropy).powi(2)) as f32,
        grad: grad as f32,
        top_id: logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32,
        top_logprob: -sum.ln() as f32,
        next: next_choices(&shifted, top_k, |d| -surprisal(d)),
    }
}

/// Smaller shares of the mass are close to the smallest f64: they lose digits, and dividing by them overflows.
pub(super) const LEAST_EXACT: f64 = 1e-290;

/// The choices after the first among the `top_k` largest; tokens without mass do not count.
fn next_choices(shifted: &[f64], top_k: usize, logprob: impl Fn(f64) -> f64) -> [Choice; NEXT_CHOICES] {
    let mut ids: Vec<usize> = (0..shifted.len()).collect();
    ids.sort_by(|&a, &b| shifted[b].total_cmp(&shifted[a]).then(a.cmp(&b)));
    let mut next = ids.into_iter().take(top_k).skip(1).filter(|&id| shifted[id].is_finite());
    std::array::from_fn(|_| {
        next.next().map_or(Choice::default(), |id| Choice { id: id as u32, logprob: logprob(shifted[id]) as f32 })
    })
}

/// Both Kullback-Leibler divergences between the distributions of two rows of logits: `KL(p || q) = sum_v p_v (ln p_v - ln q_v)`, in
/// nats, with `0 ln 0 = 0`. In f64, because the terms cancel if the models are close; NaN if a logit is.
pub(super) fn divergence_of_logits(model: &[f32], reference: &[f32]) -> Divergence {
    let log_sum = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + logits.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>().ln()
    };
    let (model_sum, reference_sum) = (log_sum(model), log_sum(reference));
    let (mut from_reference, mut to_reference) = (0.0, 0.0);
    for (&model, &reference) in model.iter().zip(reference) {
        let (ln_p, ln_q) = (f64::from(model) - model_sum, f64::from(reference) - reference_sum);
        let term = |of: f64, other: f64| if of.exp() == 0.0 { 0.0 } else { of.exp() * (of - other) };
        from_reference += term(ln_q, ln_p);
        to_reference += term(ln_p, ln_q);
    }
    // Negative only because of rounding; NaN stays NaN.
    let positive = |sum: f64| if sum < 0.0 { 0.0 } else { sum as f32 };
    Divergence { from_reference: positive(from_reference), to_reference: positive(to_reference) }
}

/// The entropy divided by `ln K`, the largest entropy of `K` tokens; for a single token both are 0, and so is the result.
pub(super) fn normalised_topk_entropy(logits: &[f32], top_k: usize) -> f64 {
    let k = top_k.min(logits.len());
    match topk_entropies_of_logits(logits, k).last() {
        Some(entropy) if k > 1 => entropy / (k as f64).ln(),
        _ => 0.0,
    }
}

/// The entropy of the softmax over the `K` largest logits for `K = 1 ..= k_max`; `k_max` must be at most `logits.len()`.
fn topk_entropies_of_logits(logits: &[f32], k_max: usize) -> Vec<f64> {
    let mut largest = logits.to_vec();
    if k_max < largest.len() {
        largest.select_nth_unstable_by(k_max, |a, b| b.total_cmp(a));
        largest.truncate(k_max);
    }
    largest.sort_unstable_by(|a, b| b.total_cmp(a));
    // With d = logit - largest and e = exp(d), H = ln sum e - sum e d / sum e, two terms of the same sign.
    let (mut sum, mut sum_shifted) = (0.0, 0.0);
    largest
        .iter()
        .map(|&logit| {
            let d = f64::from(logit) - f64::from(largest[0]);
            if d > f64::NEG_INFINITY {
                sum += d.exp();
                sum_shifted += d.exp() * d;
            }
            sum.ln() - sum_shifted / sum
        })
        .collect()
}

/// The rows of logits in memory at a time.
const CHUNK: usize = 32;

pub(super) fn head_statistics(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    targets: &[u32],
    options: &HeadOptions,
) -> Result<Vec<TokenStatistics>> {
    over_rows(hidden_nd, head_vd, options, |row, logits| statistics_of_logits(logits, targets[row], options.top_k))
}

/// The logits `[N, V]`, including the softcap.
pub(super) fn logits(hidden_nd: &Tensor, head_vd: &Matrix, options: &HeadOptions) -> Result<Vec<f32>> {
    Ok(over_rows(hidden_nd, head_vd, options, |_, logits| logits.to_vec())?.concat())
}

pub(super) fn divergences(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    targets: &[u32],
    reference_logits: &[f32],
    options: &HeadOptions,
) -> Result<Vec<(TokenStatistics, Divergence)>> {
    let vocabulary = head_vd.out_features();
    over_rows(hidden_nd, head_vd, options, |row, logits| {
        let reference = &reference_logits[row * vocabulary..][..vocabulary];
        (statistics_of_logits(logits, targets[row], options.top_k), divergence_of_logits(logits, reference))
    })
}

pub(super) fn topk_entropies(hidden_nd: &Tensor, head_vd: &Matrix, k_max: usize, options: &HeadOptions) -> Result<Vec<Vec<f32>>> {
    over_rows(hidden_nd, head_vd, options, |_, logits| topk_entropies_up_to(logits, k_max))
}

/// If `k_max` exceeds the number of logits, all of them count.
pub(super) fn topk_entropies_up_to(logits: &[f32], k_max: usize) -> Vec<f32> {
    let mut entropies = topk_entropies_of_logits(logits, k_max.min(logits.len()));
    let whole = entropies.last().copied().unwrap_or(0.0);
    entropies.resize(k_max, whole);
    entropies.into_iter().map(|entropy| entropy as f32).collect()
}

/// Computes the logits a few rows at a time and applies `statistic(row, logits)` to each row.
fn over_rows<R: Send>(
    hidden_nd: &Tensor,
    head_vd: &Matrix,
    options: &HeadOptions,
    statistic: impl Fn(usize, &[f32]) -> R + Sync,
) -> Result<Vec<R>> {
    let n_rows = hidden_nd.dims2()?.0;
    let mut results = Vec::with_capacity(n_rows);
    for begin in (0..n_rows).step_by(CHUNK) {
        let hidden = hidden_nd.narrow(0, begin, CHUNK.min(n_rows - begin))?;
        let mut logits = head_vd.forward(&hidden.contiguous()?)?;
        if let Some(cap) = options.softcap {
            logits = ((logits / f64::from(cap))?.tanh()? * f64::from(cap))?;
        }
        let logits = logits.to_vec2::<f32>()?;
        results.par_extend(logits.par_iter().enumerate().map(|(i, logits)| statistic(begin + i, logits)));
    }
    Ok(results)
}

impl TokenStatistics {
    /// The statistics of a row with a NaN logit: none of its numbers can be trusted, and no token has rank 0.
    pub(super) fn nan() -> TokenStatistics {
        TokenStatistics {
            logprob: f32::NAN,
            entropy: f32::NAN,
            entropy_topk: f32::NAN,
            rank: 0,
            tail: f32::NAN,
            varentropy: f32::NAN,
            grad: f32::NAN,
            top_id: 0,
            top_logprob: f32::NAN,
            next: Default::default(),
        }
    }
}
