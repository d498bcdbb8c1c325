//! Tests whether items that flipped between two models are more than chance, and the power of these tests.
//!
//! McNemar's exact test; its counterpart for groups of items, [`sign_flip`], over the groups' sums; Holm's correction for many
//! tasks (Scandinavian Journal of Statistics 6, 1979).

use super::shares::{Z_80, Z_975};

/// Two-sided exact p-value of McNemar's test: `lost` items changed from right to wrong, `gained` from wrong to right. 1 without
/// flips.
pub(crate) fn mcnemar_exact(lost: u64, gained: u64) -> f64 {
    let n = lost + gained;
    // C(n, k) / 2^n in logarithms, since 2^-n underflows from n = 1075 on.
    let mut log_term = -(n as f64) * std::f64::consts::LN_2;
    let mut tail = log_term.exp();
    for k in 0..lost.min(gained) {
        log_term += ((n - k) as f64 / (k + 1) as f64).ln();
        tail += log_term.exp();
    }
    (2.0 * tail).min(1.0)
}

/// Holm's adjusted p-values, in the given order: rejecting those below 0.05 keeps the family-wise error rate below 5 %.
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

/// The smallest drop in accuracy that a paired test at 5 % detects with power 0.8 on `n` items, of which a share `flipping` flips
/// in either direction (Connor, Biometrics 43, 1987): the d with n d^2 = (z sqrt(f) + z' sqrt(f - d^2))^2. `None` if even flips
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

/// Two-sided exact p-value of the sum of `nets` under the hypothesis that the sign of each net is random. A net is the number of
/// items that a group gained minus the number that it lost. Where no group has more than one item, this is McNemar's test.
pub(crate) fn sign_flip(nets: &[i64]) -> f64 {
    let observed = nets.iter().sum::<i64>().unsigned_abs() as usize;
    let steps: Vec<usize> = nets.iter().filter(|net| **net != 0).map(|net| net.unsigned_abs() as usize).collect();
    let reach: usize = steps.iter().sum();
    // The probability of each sum from `-reach` on.
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
