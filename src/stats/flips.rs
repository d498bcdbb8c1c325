//! Tests of what flipped between two sides, and their power.
//!
//! McNemar's exact test; over groups of items the same with the groups' own sums, [`sign_flip`]; Holm's correction for many tasks
//! (Scandinavian Journal of Statistics 6, 1979).

use super::shares::{Z_80, Z_975};

/// Two-sided exact p-value of McNemar's test: `lost` items went from right to wrong, `gained` the other way. 1 without flips.
pub(crate) fn mcnemar_exact(lost: u64, gained: u64) -> f64 {
    let n = lost + gained;
    // C(n, k) / 2^n, in logarithms: 2^-n alone underflows from n = 1075 on.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 0..lost.min(gained) {
        log_term += ((n - k) as f64 / (k + 1) as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Holm's adjusted p-values, in the order given: below 0.05 where the family-wise error stays below 5 %.
pub(crate) fn holm(p_values: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..p_values.len()).collect();
    order.sort_by(|&a, &b| p_values[a].total_cmp(&p_values[b]));
    let mut adjusted = vec![0.0; p_values.len()];
    let mut greatest: f64 = 0.0;
    for (rank, &idx) in order.iter().enumerate() {
        greatest = greatest.max(p_values[idx] * (p_values.len() - rank) as f64).min(1.0);
        adjusted[idx] = greatest;
    }
    adjusted
}

/// The smallest drop of an accuracy that a paired test at 5 % finds with power 0.8 on `n` items of which a share `flipping`
/// flips either way (Connor, Biometrics 43, 1987): the d with n d^2 = (z sqrt(f) + z' sqrt(f - d^2))^2. `None` where even flips
/// in one direction only would be too few.
pub(crate) fn detectable_drop(n: usize, flipping: f64) -> Option<f64> {
    let shortfall = |d: f64| Z_975 * flipping.sqrt() + Z_80 * (flipping - d * d).max(0.0).sqrt() - d * (n as f64).sqrt();
    let (mut low, mut high) = (0.0, flipping);
    if flipping <= 0.0 || shortfall(high) > 0.0 {
        return None;
    }
    for _ in 0..60 {
        let middle = 0.5 * (low + high);
        if shortfall(middle) > 0.0 { low = middle } else { high = middle }
    }
    Some(high)
}

/// Two-sided exact p-value of the sum of `nets`, if each group's net could as well have had the other sign. `nets` says of each
/// group how many more of its items were gained than lost. Where no group has more than one item, this is McNemar's test.
pub(crate) fn sign_flip(nets: &[i64]) -> f64 {
    let observed = nets.iter().sum::<i64>().unsigned_abs() as usize;
    let steps: Vec<usize> = nets.iter().filter(|net| **net != 0).map(|net| net.unsigned_abs() as usize).collect();
    let reach: usize = steps.iter().sum();
    // The probability of each sum; the index counts from `-reach`.
    let mut probabilities = vec![0.0; 2 * reach + 1];
    probabilities[reach] = 1.0;
    for step in steps {
        let before = probabilities;
        let from = |index: Option<usize>| index.and_then(|index| before.get(index)).copied().unwrap_or(0.0);
        let after = |index: usize| 0.5 * (from(index.checked_sub(step)) + from(index.checked_add(step)));
        probabilities = (0..before.len()).map(after).collect();
    }
    let as_far = |index: &usize| index.abs_diff(reach) >= observed;
    (0..probabilities.len()).filter(as_far).map(|index| probabilities[index]).sum::<f64>().min(1.0)
}
