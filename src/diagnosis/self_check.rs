//! Checks the whole engine on text sampled from the model itself, where two things must hold for every model.
//!
//! The mean surplus `-ln p - H` is 0, since its expectation is 0 at every token. And `tail` with ties split at random, `tail - v p` with `v` uniform
//! in 0..1, is uniform (Czado, Gneiting and Held, Biometrics 65, 2009). A wrong cache, mask, rotary embedding, entropy or sampler breaks one or the
//! other. The first is tested by its standard error over rows, the second by the Kolmogorov-Smirnov test. Tokens whose logits are equal to the bit
//! are not split, apart from the target's own mass: they are rare and together have little mass.

use std::path::PathBuf;

use serde::{Deserialize, Serialize};

use crate::error::Result;
use crate::format::{count, n_tokens};
use crate::random;
use crate::stats::{ClusterSums, PerRow, Scale, Term};
use crate::table::{Column, read_chunks};

/// Rows with answers sampled from a model, and what these tell about the program.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct OnPolicy {
    /// Rows whose last answer was drawn by a model.
    pub rows: u64,
    /// The rows among them whose text is split into other tokens than those sampled.
    pub respelt: u64,
    /// Absent unless all answers were sampled from this model; `why_not` gives the reason.
    pub check: Option<SelfCheck>,
    /// Why there is no check, worded as the end of a sentence.
    pub why_not: Option<String>,
}

/// What the model's own answers tell about the program.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct SelfCheck {
    /// Rows with a token.
    pub rows: u64,
    /// Tokens of these rows.
    pub tokens: u64,
    /// Mean of -ln p - H, nats per token.
    pub mean_surplus: f64,
    /// Its standard error over rows.
    pub stderr: f64,
    /// The Kolmogorov-Smirnov distance: the largest distance between the distribution of `tail` and the uniform one.
    pub ks_distance: f64,
    /// The probability of a distance at least as large.
    pub ks_p: f64,
}

/// The largest mean surplus that passes, in standard errors. Together with [`LEAST_P`], it rejects a correct program once in eighty runs.
pub const MOST_STDERRS: f64 = 3.0;
/// The smallest p-value of the Kolmogorov-Smirnov test that passes.
pub const LEAST_P: f64 = 0.01;
/// The least number of rows. From here on, a correct program exceeds three standard errors once in two hundred runs (Student's t); with two rows, it
/// would once in five.
pub const LEAST_ROWS: u64 = 30;
const SEED: u64 = 7;

impl SelfCheck {
    /// Returns `None` for fewer than [`LEAST_ROWS`] rows, whose standard error is too uncertain.
    pub fn of(tables: &[PathBuf]) -> Result<Option<SelfCheck>> {
        let (mut sums, mut row, mut uniforms) = (ClusterSums::default(), PerRow::<Term>::default(), Vec::new());
        for chunk in read_chunks(tables, &[Column::Row, Column::Logprob, Column::Entropy, Column::Tail]) {
            let mut chunk = chunk?;
            chunk.retain_finite();
            for i in 0..chunk.len() {
                sums.extend(row.go_to(chunk.row[i]));
                let (logprob, entropy) = (f64::from(chunk.logprob[i]), f64::from(chunk.entropy[i]));
                row.sums += Term { numerator: -logprob - entropy, denominator: 1.0 };
                let v = random::unit(SEED, uniforms.len() as u64);
                uniforms.push((f64::from(chunk.tail[i]) - v * logprob.exp()).clamp(0.0, 1.0));
            }
        }
        sums.extend(row.end());
        let (estimate, rows) = (sums.estimate(Scale::Plain), sums.clusters());
        let Some(stderr) = estimate.stderr.filter(|_| rows >= LEAST_ROWS) else { return Ok(None) };
        let (ks_distance, ks_p) = kolmogorov_smirnov(&mut uniforms);
        Ok(Some(SelfCheck { rows, tokens: uniforms.len() as u64, mean_surplus: estimate.value, stderr, ks_distance, ks_p }))
    }

    /// Whether the mean surplus is within [`MOST_STDERRS`] standard errors of 0.
    fn surplus_is_near_zero(&self) -> bool {
        self.mean_surplus.abs() <= MOST_STDERRS * self.stderr
    }

    /// Whether `tail` is as close to uniform as chance allows.
    fn tail_is_uniform(&self) -> bool {
        self.ks_p >= LEAST_P
    }

    /// Whether both tests pass.
    pub fn passes(&self) -> bool {
        self.surplus_is_near_zero() && self.tail_is_uniform()
    }

    /// The result in a sentence.
    pub fn sentence(&self) -> String {
        let verdict = |holds: bool| if holds { "as expected" } else { "**which a correct program does not produce**" };
        format!(
            "On {} of {} that the model itself drew, the mean surplus is {:+.4} nat with a standard error of {:.4} ({:+.1} of \
             them), {}; `tail`, with ties split at random, is at most {:.4} away from uniform (Kolmogorov-Smirnov, p = {:.2}), {}.",
            n_tokens(self.tokens),
            count(self.rows, "row"),
            self.mean_surplus,
            self.stderr,
            self.mean_surplus / self.stderr,
            verdict(self.surplus_is_near_zero()),
            self.ks_distance,
            self.ks_p,
            verdict(self.tail_is_uniform())
        )
    }
}

/// The largest distance from the uniform distribution on 0..1, and the probability of one at least as large, by Kolmogorov's distribution with
/// Stephens' correction for finite samples (J. R. Stat. Soc. B 32, 1970). Sorts the values.
fn kolmogorov_smirnov(values: &mut [f64]) -> (f64, f64) {
    values.sort_unstable_by(f64::total_cmp);
    let n = values.len() as f64;
    let distance_at = |(i, value): (usize, &f64)| (value - i as f64 / n).max((i + 1) as f64 / n - value);
    let distance = values.iter().enumerate().map(distance_at).fold(0.0, f64::max);
    let lambda = (n.sqrt() + 0.12 + 0.11 / n.sqrt()) * distance;
    let term = |j: i32| f64::from(if j % 2 == 0 { -2 } else { 2 }) * (-2.0 * f64::from(j * j) * lambda * lambda).exp();
    // The series does not converge where the probability is close to 1.
    let p = if lambda < 0.3 { 1.0 } else { (1..=100).map(term).sum::<f64>().clamp(0.0, 1.0) };
    (distance, p)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::finished_parts;
    use crate::table::testing::{Example, token, write_parts};

    #[test]
    fn the_test_of_uniformity_by_scipy() {
        // scipy.stats.kstest([0.05, 0.2, 0.35, 0.7, 0.9], "uniform") gives D = 0.25; with Stephens' correction lambda is (sqrt(5) + 0.12 + 0.11 /
        // sqrt(5)) / 4 = 0.60132, for which scipy.special.kolmogorov gives 0.86254.
        let (distance, p) = kolmogorov_smirnov(&mut [0.9, 0.05, 0.2, 0.35, 0.7]);
        assert!((distance - 0.25).abs() < 1e-12 && (p - 0.86254).abs() < 1e-4, "{distance} {p}");
        let mut even: Vec<f64> = (0..1000).map(|i| (f64::from(i) + 0.5) / 1000.0).collect();
        assert!(kolmogorov_smirnov(&mut even).1 > 0.999);
        let mut squares: Vec<f64> = even.iter().map(|u| u * u).collect();
        assert!(kolmogorov_smirnov(&mut squares).1 < 1e-12);
        // Kolmogorov's own table: 1.3581 is exceeded once in twenty, 1.6276 once in a hundred.
        let p_of = |lambda: f64| {
            let shift = lambda / (1000f64.sqrt() + 0.12 + 0.11 / 1000f64.sqrt()) - 0.0005;
            let mut moved: Vec<f64> = (0..1000).map(|i| ((f64::from(i) + 0.5) / 1000.0 + shift).min(1.0)).collect();
            kolmogorov_smirnov(&mut moved).1
        };
        assert!((p_of(1.3581) - 0.05).abs() < 1e-4 && (p_of(1.6276) - 0.01).abs() < 1e-4, "{} {}", p_of(1.3581), p_of(1.6276));
    }

    /// Samples from the stated distributions pass, and samples from others do not.
    #[test]
    fn draws_of_the_model_pass_and_those_of_another_do_not() {
        // Each token is one of three, with probabilities 0.6, 0.3 and 0.1; they are sampled with these to the power `a`.
        let check = |a: f64| {
            let shares = [0.6f64, 0.3, 0.1];
            let drawn: Vec<f64> = shares.iter().map(|p| p.powf(a)).collect();
            let total: f64 = drawn.iter().sum();
            let entropy: f64 = shares.iter().map(|p| -p * p.ln()).sum();
            let word = |i: u64| {
                let mut rest = random::unit(11, i) * total;
                drawn
                    .iter()
                    .position(|share| {
                        rest -= share;
                        rest < 0.0
                    })
                    .unwrap_or(2)
            };
            let rows: Vec<Example> = (0..60u32)
                .map(|row| {
                    let tokens = (0..50).map(|i| {
                        let word = word(u64::from(row) * 50 + i);
                        let mut token = token(1, shares[word] as f32, entropy as f32);
                        token.statistics.tail = shares[word..].iter().sum::<f64>() as f32;
                        token
                    });
                    Example { row, source: "a", tokens: tokens.collect() }
                })
                .collect();
            let run = tempfile::tempdir().unwrap();
            write_parts(run.path(), &[&rows]);
            let tables: Vec<PathBuf> = finished_parts(run.path()).unwrap().into_iter().map(|part| part.tokens).collect();
            SelfCheck::of(&tables).unwrap().unwrap()
        };
        let own = check(1.0);
        assert!(own.passes() && (own.rows, own.tokens) == (60, 3000), "{own:?}");
        let sharper = check(1.5);
        assert!(!sharper.surplus_is_near_zero() && !sharper.tail_is_uniform(), "{sharper:?}");
    }
}
