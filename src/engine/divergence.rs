//! How far a second model has moved from a first one: the Kullback-Leibler divergence over the whole vocabulary, token by token.
//!
//! `KL(p || q) = sum_v p_v (ln p_v - ln q_v)` in nats, p of the first model; `0 ln 0 = 0`. Logits are taken for [`ROWS`] tokens at a
//! time, so that no matrix of all tokens by the vocabulary is held. The kernel that training watches its drift with needs the fused
//! kernels; this one runs on any device.

use rayon::prelude::*;

use super::TOKEN_BUDGET;
use super::batch::pack;
use crate::error::{Error, Result};
use crate::model::Model;
use crate::tokens::Sequence;

/// Tokens whose logits are held at once: 50 MB a model for a vocabulary of 49,152.
const ROWS: usize = 256;

/// The divergence at each supervised token of each sequence. `progress` is told the number of sequences done.
pub fn divergence(before: &Model, after: &Model, sequences: &[Sequence], progress: &mut dyn FnMut(u64)) -> Result<Vec<Vec<f64>>> {
    if before.config.vocab_size != after.config.vocab_size {
        return Err(Error::new(format!(
            "the vocabularies differ: {} tokens before, {} after",
            before.config.vocab_size, after.config.vocab_size
        )));
    }
    let mut divergences: Vec<Vec<f64>> = sequences.iter().map(|_| Vec::new()).collect();
    let mut done = 0;
    for packed in pack(sequences, TOKEN_BUDGET, TOKEN_BUDGET) {
        let p_nd = before.hidden(&packed.batch, &packed.rows)?;
        let q_nd = after.hidden(&packed.batch, &packed.rows)?;
        let mut found = Vec::with_capacity(packed.rows.len());
        for begin in (0..packed.rows.len()).step_by(ROWS) {
            let n = ROWS.min(packed.rows.len() - begin);
            let p_nv = before.logits_of(&p_nd.narrow(0, begin, n)?)?.to_vec2::<f32>()?;
            let q_nv = after.logits_of(&q_nd.narrow(0, begin, n)?)?.to_vec2::<f32>()?;
            found.par_extend(p_nv.par_iter().zip(&q_nv).map(|(p, q)| of_logits(p, q)));
        }
        if found.iter().any(|divergence| divergence.is_nan()) {
            return Err(Error::new("the logits of one of the models are not numbers").cure("Check the model files."));
        }
        for (sequence, targets) in &packed.scatter {
            divergences[*sequence] = targets.iter().map(|&target| found[target as usize]).collect();
            done += 1;
        }
        progress(done);
    }
    Ok(divergences)
}

/// Of one token, in f64: the terms cancel where the models are near each other.
fn of_logits(p: &[f32], q: &[f32]) -> f64 {
    let log_sum = |logits: &[f32]| {
        let max = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        f64::from(max) + logits.iter().map(|&logit| f64::from(logit - max).exp()).sum::<f64>().ln()
    };
    let (p_sum, q_sum) = (log_sum(p), log_sum(q));
    let term = |(&p, &q): (&f32, &f32)| {
        let p_log = f64::from(p) - p_sum;
        let p = p_log.exp();
        if p == 0.0 { 0.0 } else { p * (p_log - (f64::from(q) - q_sum)) }
    };
    let sum: f64 = p.iter().zip(q).map(term).sum();
    // Never below zero but for rounding; a NaN stays one.
    if sum < 0.0 { 0.0 } else { sum }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn divergences_by_hand() {
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-7, "{found} for {expected}");
        let log = |probabilities: &[f32]| probabilities.iter().map(|p| p.ln()).collect::<Vec<f32>>();
        // 1/2 ln 2 + 1/2 ln (2/3)
        close(of_logits(&log(&[0.5, 0.5]), &log(&[0.25, 0.75])), 0.5 * 2f64.ln() + 0.5 * (2.0 / 3.0f64).ln());
        // What is added to all logits changes nothing, and what p never says costs nothing.
        close(of_logits(&[7.0, 7.0, f32::NEG_INFINITY], &[-1.0, -1.0, -1.0]), 1.5f64.ln());
        close(of_logits(&[0.1, 3.0, -2.0], &[0.1, 3.0, -2.0]), 0.0);
        assert!(of_logits(&[f32::NAN, 0.0], &[0.0, 0.0]).is_nan());
    }
}
