//! How sure a score is, and a difference of two scores on the same items. All of it in f64, all of it with a fixed seed.
//!
//! A metric is a ratio of sums over items, `f(sum numerator / sum denominator)`: accuracy has denominators of 1, bits per byte
//! those of the bytes, and `f` is exp for a perplexity. One form serves standard error, bootstrap and paired difference.
//!
//! - standard error: linearised ratio, sqrt(n/(n-1) sum (a - r b)^2) / sum b; for denominators of 1 the sample deviation over
//!   sqrt(n), which is what lm-evaluation-harness gives (`lm_eval/api/metrics.py`, `mean_stderr`); times f' where f is exp;
//! - interval: percentile bootstrap over items (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13);
//! - clusters, such as rows whose tokens are of a kind: the same linearised error over the clusters' sums, which one pass over a table
//!   of any size can collect, and an interval by Student's t on the scale on which it is near symmetric: [`ClusterSums`];
//! - two models on the same items: the same with both drawn together, and McNemar's exact test on the flips;
//! - many tasks: Holm (Scandinavian Journal of Statistics 6, 1979).

use serde::{Deserialize, Serialize};

use crate::random::SplitMix;

/// A number with its uncertainty; without it where there are fewer than two items.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Estimate {
    pub value: f64,
    pub stderr: Option<f64>,
    pub ci95: Option<[f64; 2]>,
}

/// What one item adds to a metric.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Term {
    pub numerator: f64,
    pub denominator: f64,
}

/// What is done with the ratio.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Link {
    Identity,
    Exp,
}

/// Sums over clusters that were drawn whole, from which a ratio follows and how sure it is, without keeping the clusters.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub(crate) struct ClusterSums {
    clusters: u64,
    numerator: f64,
    denominator: f64,
    /// Squares and the product.
    aa: f64,
    ab: f64,
    bb: f64,
}

/// The scale on which an interval reaches as far up as down; its ends are taken back from there, so that they stay in the range.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Scale {
    /// Any number.
    #[cfg_attr(not(test), allow(dead_code, reason = "the scale that the tests compare the others with"))]
    Plain,
    /// Positive numbers: factors.
    Log,
    /// Shares and probabilities, strictly between 0 and 1.
    LogOdds,
}

/// Bootstrap samples: the ends of a 95 % interval are then known to about a twentieth of its width.
const RESAMPLES: usize = 2000;
const SEED: u64 = 20_260_102;
/// Quantiles of the standard normal distribution: 97.5 % (two-sided test at 5 %) and 80 % (power).
const Z_975: f64 = 1.959_963_984_540_054;
const Z_80: f64 = 0.841_621_233_572_914_2;

pub(crate) fn ratio(terms: &[Term], link: Link) -> f64 {
    let (a, b) = terms.iter().fold((0.0, 0.0), |(a, b), term| (a + term.numerator, b + term.denominator));
    link.apply(a / b)
}

pub(crate) fn estimate(terms: &[Term], link: Link) -> Estimate {
    let value = ratio(terms, link);
    if terms.len() < 2 {
        return Estimate { value, stderr: None, ci95: None };
    }
    // A bootstrap of items that are all alike knows no doubt.
    if let Some(share) = constant_share(terms) {
        let ci95 = wilson((share * terms.len() as f64) as u64, terms.len() as u64);
        return Estimate { value, stderr: Some(standard_error(terms, link)), ci95: Some(ci95.map(|end| link.apply(end))) };
    }
    let samples = resampled(SEED, terms.len(), |draw| {
        let (mut a, mut b) = (0.0, 0.0);
        for &idx in draw {
            a += terms[idx as usize].numerator;
            b += terms[idx as usize].denominator;
        }
        link.apply(a / b)
    });
    Estimate { value, stderr: Some(standard_error(terms, link)), ci95: Some(percentile_interval(samples)) }
}

/// `after - before`, where `before[i]` and `after[i]` are the same item.
pub(crate) fn paired_difference(before: &[Term], after: &[Term], link: Link) -> Estimate {
    let value = ratio(after, link) - ratio(before, link);
    if before.len() < 2 {
        return Estimate { value, stderr: None, ci95: None };
    }
    let stderr = Some(paired_standard_error(before, after, link));
    let ci95 = constant_flips(before, after)
        .filter(|_| matches!(link, Link::Identity))
        .map(|[lost, gained]| tango(lost, gained, before.len() as u64));
    let ci95 = ci95.unwrap_or_else(|| percentile_interval(paired_samples(SEED, before, after, link)));
    Estimate { value, stderr, ci95: Some(ci95) }
}

/// Mean over tasks of the differences, each task resampled on its own. Every entry is `(before, after)` of one task.
pub(crate) fn macro_difference(tasks: &[(&[Term], &[Term])]) -> Estimate {
    let n = tasks.len() as f64;
    let value = tasks.iter().map(|(before, after)| ratio(after, Link::Identity) - ratio(before, Link::Identity)).sum::<f64>() / n;
    if tasks.iter().any(|(before, _)| before.len() < 2) {
        return Estimate { value, stderr: None, ci95: None };
    }
    // Without a single flip the bootstrap knows no doubt: the half widths of Tango's intervals add up as errors do.
    let flips: Option<Vec<[u64; 2]>> = tasks.iter().map(|(before, after)| constant_flips(before, after)).collect();
    if let Some(flips) = flips {
        let mut squares = [0.0, 0.0];
        for ([lost, gained], (before, after)) in flips.iter().zip(tasks) {
            let difference = ratio(after, Link::Identity) - ratio(before, Link::Identity);
            let interval = tango(*lost, *gained, before.len() as u64);
            squares.iter_mut().zip(interval).for_each(|(sum, end)| *sum += ((end - difference) / n).powi(2));
        }
        return Estimate { value, stderr: Some(0.0), ci95: Some([value - squares[0].sqrt(), value + squares[1].sqrt()]) };
    }
    let mut means = vec![0.0; RESAMPLES];
    for (idx, (before, after)) in tasks.iter().enumerate() {
        let samples = paired_samples(SEED + idx as u64, before, after, Link::Identity);
        means.iter_mut().zip(samples).for_each(|(mean, sample)| *mean += sample / n);
    }
    Estimate { value, stderr: Some(deviation(&means)), ci95: Some(percentile_interval(means)) }
}

impl ClusterSums {
    pub(crate) fn add(&mut self, cluster: Term) {
        let Term { numerator: a, denominator: b } = cluster;
        self.clusters += 1;
        self.numerator += a;
        self.denominator += b;
        self.aa += a * a;
        self.ab += a * b;
        self.bb += b * b;
    }

    /// `sum numerator / sum denominator` with its interval; the uncertainty is absent for fewer than two clusters.
    pub(crate) fn estimate(&self, scale: Scale) -> Estimate {
        let value = self.numerator / self.denominator;
        if self.clusters < 2 {
            return Estimate { value, stderr: None, ci95: None };
        }
        let n = self.clusters as f64;
        // The sum of (a - ratio b)^2; rounding may take it below zero where all clusters are alike.
        let squares = (self.aa - 2.0 * value * self.ab + value * value * self.bb).max(0.0);
        let stderr = (squares * n / (n - 1.0)).sqrt() / self.denominator.abs();
        Estimate { value, stderr: Some(stderr), ci95: cluster_interval(value, stderr, self.clusters, scale) }
    }

    /// The interval alone. It is absent, too, for a share of 0 or 1, of which no cluster tells how it varies.
    pub(crate) fn ci95(&self, scale: Scale) -> Option<[f64; 2]> {
        self.estimate(scale).ci95
    }
}

/// The 95 % interval of `value`, whose standard error follows from so many clusters. Absent where it means nothing.
pub(crate) fn cluster_interval(value: f64, stderr: f64, clusters: u64, scale: Scale) -> Option<[f64; 2]> {
    // The error on the scale is that of the value times the slope there.
    let (at, slope) = match scale {
        // Nothing in any cluster: two models that are one.
        Scale::Log if value == 0.0 && stderr == 0.0 && clusters > 1 => return Some([0.0; 2]),
        Scale::Plain => (value, 1.0),
        Scale::Log => (value.ln(), 1.0 / value),
        Scale::LogOdds => ((value / (1.0 - value)).ln(), 1.0 / (value * (1.0 - value))),
    };
    if clusters < 2 || !at.is_finite() || !stderr.is_finite() {
        return None;
    }
    let reach = student_t_975(clusters - 1) * stderr * slope;
    Some([at - reach, at + reach].map(|end| match scale {
        Scale::Plain => end,
        Scale::Log => end.exp(),
        Scale::LogOdds => 1.0 / (1.0 + (-end).exp()),
    }))
}

/// The 97.5 % quantile of Student's t: exact for 1 and 2 degrees of freedom, to 0.3 % from 3 on by the expansion around the normal
/// quantile (Abramowitz and Stegun, Handbook of Mathematical Functions, 26.7.5).
fn student_t_975(degrees: u64) -> f64 {
    let (n, x) = (degrees as f64, Z_975);
    match degrees {
        0 => f64::INFINITY,
        1 => 12.706_204_736_432_095,
        2 => 4.302_652_729_911_275,
        _ => {
            x + (x.powi(3) + x) / (4.0 * n)
                + (5.0 * x.powi(5) + 16.0 * x.powi(3) + 3.0 * x) / (96.0 * n * n)
                + (3.0 * x.powi(7) + 19.0 * x.powi(5) + 17.0 * x.powi(3) - 15.0 * x) / (384.0 * n.powi(3))
                + (79.0 * x.powi(9) + 776.0 * x.powi(7) + 1482.0 * x.powi(5) - 1920.0 * x.powi(3) - 945.0 * x)
                    / (92_160.0 * n.powi(4))
        }
    }
}

/// The share of items that are right, where all are 0 or all are 1.
fn constant_share(terms: &[Term]) -> Option<f64> {
    let first = terms.first()?;
    let is_share = [0.0, 1.0].contains(&first.numerator) && first.denominator == 1.0;
    (is_share && terms.iter().all(|term| term == first)).then_some(first.numerator)
}

/// How many items were lost and gained, where the items are right or wrong and have all done the same.
fn constant_flips(before: &[Term], after: &[Term]) -> Option<[u64; 2]> {
    let is_share = |term: &Term| term.denominator == 1.0 && [0.0, 1.0].contains(&term.numerator);
    if !before.iter().chain(after).all(is_share) {
        return None;
    }
    let mut moves = before.iter().zip(after).map(|(before, after)| after.numerator - before.numerator);
    let first = moves.next()?;
    let n = before.len() as u64;
    moves.all(|other| other == first).then_some(match first {
        first if first < 0.0 => [n, 0],
        first if first > 0.0 => [0, n],
        _ => [0, 0],
    })
}

/// Wilson's interval of a share (J. Am. Stat. Assoc. 22, 1927): never of width 0.
pub(crate) fn wilson(n_right: u64, n: u64) -> [f64; 2] {
    let (p, n, z2) = (n_right as f64 / n as f64, n as f64, Z_975 * Z_975);
    let middle = (p + z2 / (2.0 * n)) / (1.0 + z2 / n);
    let half = Z_975 / (1.0 + z2 / n) * (p * (1.0 - p) / n + z2 / (4.0 * n * n)).sqrt();
    [(middle - half).max(0.0), (middle + half).min(1.0)]
}

/// Tango's interval of the difference of two paired shares (Statistics in Medicine 17, 1998): where the score test does not refuse.
pub(crate) fn tango(lost: u64, gained: u64, n: u64) -> [f64; 2] {
    let (b, c, n) = (gained as f64, lost as f64, n as f64);
    let score = |delta: f64| {
        let (a_, b_, c_) = (2.0 * n, -b - c + (2.0 * n - b + c) * delta, -c * delta * (1.0 - delta));
        let q = ((b_ * b_ - 4.0 * a_ * c_).max(0.0).sqrt() - b_) / (2.0 * a_);
        let variance = n * (2.0 * q + delta * (1.0 - delta));
        let distance = b - c - n * delta;
        if distance == 0.0 { 0.0 } else { distance / variance.max(0.0).sqrt() }
    };
    let value = (b - c) / n;
    let end = |bound: f64, z: f64| {
        let (mut inside, mut outside) = (value, bound);
        for _ in 0..200 {
            let middle = 0.5 * (inside + outside);
            if (score(middle) * z.signum()) < z.abs() { inside = middle } else { outside = middle }
        }
        inside
    };
    [end(-1.0, Z_975), end(1.0, -Z_975)]
}

/// By the delta method, as [`standard_error`]; for means it is that of the mean of the differences.
fn paired_standard_error(before: &[Term], after: &[Term], link: Link) -> f64 {
    let n = before.len() as f64;
    let influences = |terms: &[Term]| -> Vec<f64> {
        let (a, b) = terms.iter().fold((0.0, 0.0), |(a, b), term| (a + term.numerator, b + term.denominator));
        let slope = match link {
            Link::Identity => 1.0,
            Link::Exp => link.apply(a / b),
        };
        terms.iter().map(|term| slope * (term.numerator - a / b * term.denominator) / (b / n)).collect()
    };
    let squares: f64 = influences(before).iter().zip(influences(after)).map(|(x, y)| (y - x).powi(2)).sum();
    (squares / (n - 1.0) / n).sqrt()
}

/// `part / whole`, and 0 of nothing.
pub(crate) fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

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

fn standard_error(terms: &[Term], link: Link) -> f64 {
    let n = terms.len() as f64;
    let (a, b) = terms.iter().fold((0.0, 0.0), |(a, b), term| (a + term.numerator, b + term.denominator));
    let ratio = a / b;
    let squares: f64 = terms.iter().map(|term| (term.numerator - ratio * term.denominator).powi(2)).sum();
    let slope = match link {
        Link::Identity => 1.0,
        Link::Exp => ratio.exp(),
    };
    slope * (squares * n / (n - 1.0)).sqrt() / b.abs()
}

fn paired_samples(seed: u64, before: &[Term], after: &[Term], link: Link) -> Vec<f64> {
    resampled(seed, before.len(), |draw| {
        let mut sums = [0.0; 4];
        for &idx in draw {
            let (x, y) = (before[idx as usize], after[idx as usize]);
            sums[0] += x.numerator;
            sums[1] += x.denominator;
            sums[2] += y.numerator;
            sums[3] += y.denominator;
        }
        link.apply(sums[2] / sums[3]) - link.apply(sums[0] / sums[1])
    })
}

/// `statistic` of [`RESAMPLES`] draws of `n` out of `n` with replacement.
fn resampled(seed: u64, n: usize, statistic: impl Fn(&[u32]) -> f64) -> Vec<f64> {
    let mut random = SplitMix(seed);
    let mut draw = vec![0; n];
    (0..RESAMPLES)
        .map(|_| {
            draw.iter_mut().for_each(|idx| *idx = random.below(n as u32));
            statistic(&draw)
        })
        .collect()
}

/// From the 2.5 % to the 97.5 % quantile, interpolated as NumPy does.
fn percentile_interval(mut samples: Vec<f64>) -> [f64; 2] {
    samples.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|share| {
        let at = share * (samples.len() - 1) as f64;
        let (below, above) = (samples[at.floor() as usize], samples[at.ceil() as usize]);
        below + (above - below) * at.fract()
    })
}

fn deviation(samples: &[f64]) -> f64 {
    let n = samples.len() as f64;
    let mean = samples.iter().sum::<f64>() / n;
    (samples.iter().map(|sample| (sample - mean).powi(2)).sum::<f64>() / (n - 1.0)).sqrt()
}

impl Link {
    fn apply(self, ratio: f64) -> f64 {
        match self {
            Link::Identity => ratio,
            Link::Exp => ratio.exp(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn plain(values: &[f64]) -> Vec<Term> {
        values.iter().map(|&numerator| Term { numerator, denominator: 1.0 }).collect()
    }

    fn close(found: f64, expected: f64, tolerance: f64) {
        assert!((found - expected).abs() <= tolerance, "{found} for {expected}");
    }

    #[test]
    fn numbers_that_a_reader_can_check() {
        // 3 of 4 right: sample variance (3 * 1/16 + 9/16) / 3 = 1/4, so that the standard error is 0.5 / 2.
        let estimate = estimate(&plain(&[1.0, 1.0, 1.0, 0.0]), Link::Identity);
        assert_eq!((estimate.value, estimate.stderr), (0.75, Some(0.25)));
        // A perplexity: exp of the mean of ln 2 and ln 8 is 4.
        close(ratio(&plain(&[2f64.ln(), 8f64.ln()]), Link::Exp), 4.0, 1e-12);
        // 30 bits on 10 bytes and 10 on 10: 2 bits per byte.
        let terms = [(30.0, 10.0), (10.0, 10.0)].map(|(numerator, denominator)| Term { numerator, denominator });
        assert_eq!(ratio(&terms, Link::Identity), 2.0);
        // Two flips one way: 2 * (1/2)^2.
        assert_eq!([mcnemar_exact(2, 0), mcnemar_exact(0, 0), mcnemar_exact(3, 3)], [0.5, 1.0, 1.0]);
        assert_eq!(super::estimate(&plain(&[1.0]), Link::Identity), Estimate { value: 1.0, stderr: None, ci95: None });
    }

    #[test]
    fn scipy_and_statsmodels_give_the_same() {
        // from statsmodels.stats.contingency_tables import mcnemar
        // [mcnemar([[50, b], [c, 40]], exact=True).pvalue for b, c in [(12, 5), (1, 9), (300, 260), (2000, 1800)]]
        for ((lost, gained), expected) in [(12, 5), (1, 9), (300, 260), (2000, 1800)].into_iter().zip(MCNEMAR) {
            close(mcnemar_exact(lost, gained), expected, 1e-9 * expected);
        }
        // from statsmodels.stats.multitest import multipletests
        // multipletests([0.01, 0.04, 0.03, 0.005, 0.5], method="holm")[1]
        for (found, expected) in holm(&[0.01, 0.04, 0.03, 0.005, 0.5]).into_iter().zip(HOLM) {
            close(found, expected, 1e-12);
        }
        // x = np.arange(40) % 7 / 7 + np.arange(40) / 40; scipy.stats.sem(x)
        // scipy.stats.bootstrap((x,), np.mean, n_resamples=200_000, method="percentile", rng=1).confidence_interval
        let values: Vec<f64> = (0..40).map(|i| f64::from(i % 7) / 7.0 + f64::from(i) / 40.0).collect();
        let own = estimate(&plain(&values), Link::Identity);
        close(own.stderr.unwrap(), SEM, 1e-12);
        // 2000 draws place each end to about 0.05 standard errors.
        for (found, expected) in own.ci95.unwrap().into_iter().zip(BOOTSTRAP) {
            close(found, expected, 0.15 * SEM);
        }
        // The same for the paired difference to y = x * 0.9 + (np.arange(40) % 3) / 10, whose items are x's own.
        let after: Vec<f64> = values.iter().zip(0..).map(|(x, i)| 0.9 * x + f64::from(i % 3) / 10.0).collect();
        let difference = paired_difference(&plain(&values), &plain(&after), Link::Identity);
        for (found, expected) in difference.ci95.unwrap().into_iter().zip(PAIRED_BOOTSTRAP) {
            close(found, expected, 0.15 * PAIRED_SEM);
        }
        // And for exp of the mean, by scipy.stats.bootstrap((x,), lambda x, axis: np.exp(x.mean(axis=axis)), ...).
        let perplexity = estimate(&plain(&values), Link::Exp);
        for (found, expected) in perplexity.ci95.unwrap().into_iter().zip(EXP_BOOTSTRAP) {
            close(found, expected, 0.15 * perplexity.stderr.unwrap());
        }
    }

    /// Nominal 95 %; 400 experiments leave a standard deviation of 1.1 points.
    #[test]
    fn intervals_cover_the_truth_as_often_as_they_say() {
        let mut random = SplitMix(5);
        let mut uniform = || random.next() as f64 / 2f64.powi(64);
        let (n, n_experiments) = (150, 400);
        let (mut covered, mut covered_difference, mut false_alarms) = (0, 0, 0);
        for _ in 0..n_experiments {
            // Right before with 0.6; after, one in ten of the right ones is lost and one in ten of the wrong ones gained.
            let before: Vec<f64> = (0..n).map(|_| f64::from(u8::from(uniform() < 0.6))).collect();
            let flip = |x: &f64, flips: bool| if flips { 1.0 - x } else { *x };
            let after: Vec<f64> = before.iter().map(|x| flip(x, uniform() < 0.1)).collect();
            let within = |estimate: Estimate, truth: f64| {
                let [low, high] = estimate.ci95.unwrap();
                low <= truth && truth <= high
            };
            covered += usize::from(within(estimate(&plain(&before), Link::Identity), 0.6));
            let difference = paired_difference(&plain(&before), &plain(&after), Link::Identity);
            covered_difference += usize::from(within(difference, 0.1 * (0.4 - 0.6)));
            // The true drop is 2 points: an alarm at 2 is false.
            let (before, after) = (plain(&before), plain(&after));
            false_alarms += usize::from(macro_difference(&[(&before, &after)]).ci95.unwrap()[1] < -0.02);
        }
        let share = |count: usize| count as f64 / f64::from(n_experiments);
        println!("covered {} and {}, false alarms {}", share(covered), share(covered_difference), share(false_alarms));
        assert!((0.90..=0.97).contains(&share(covered)) && (0.90..=0.97).contains(&share(covered_difference)));
        // Nominal 2.5 %.
        assert!(share(false_alarms) <= 0.05);
    }

    #[test]
    fn intervals_over_clusters_by_hand() {
        // scipy.stats.t.ppf(0.975, [1, 2, 3, 5, 10, 30, 1000])
        let expected = [12.706205, 4.302653, 3.182446, 2.570582, 2.228139, 2.042272, 1.962339];
        for (degrees, expected) in [1, 2, 3, 5, 10, 30, 1000].into_iter().zip(expected) {
            close(student_t_975(degrees), expected, 0.003 * expected);
        }
        // Four rows with 1, 2, 3, 4 of 10: the ratio is 1/4, and its error that of the mean of 0.1, 0.2, 0.3, 0.4.
        let mut sums = ClusterSums::default();
        (1..=4).for_each(|i| sums.add(Term { numerator: f64::from(i), denominator: 10.0 }));
        let reach = student_t_975(3) * (0.05f64 / 3.0 / 4.0).sqrt();
        for (found, expected) in sums.ci95(Scale::Plain).unwrap().into_iter().zip([0.25 - reach, 0.25 + reach]) {
            close(found, expected, 1e-12);
        }
        let [low, high] = sums.ci95(Scale::LogOdds).unwrap();
        close((low / (1.0 - low)).ln() + (high / (1.0 - high)).ln(), 2.0 * (1.0f64 / 3.0).ln(), 1e-12);
        // Rows that are all alike leave no doubt about a factor; rows without any leave nothing to say about a share.
        let mut alike = ClusterSums::default();
        (1..=4).for_each(|i| alike.add(Term { numerator: f64::from(i), denominator: f64::from(i) }));
        assert_eq!((alike.ci95(Scale::Log), alike.ci95(Scale::LogOdds)), (Some([1.0, 1.0]), None));
        assert_eq!((ClusterSums::default().ci95(Scale::Plain), cluster_interval(0.0, 0.1, 9, Scale::LogOdds)), (None, None));
    }

    /// Rows of all lengths, in some of which every other token is odd and in most hardly one: shares of tokens and of a heavy-tailed
    /// loss, and the factor between two sums. Nominal 95 %; 1000 experiments leave a standard deviation of 0.7 points. With few rows
    /// and heavy tails the intervals are somewhat too short, which the bounds admit.
    #[test]
    fn intervals_over_clusters_cover_the_truth_as_often_as_they_say() {
        for (n_rows, lowest) in [(40, 0.90), (160, 0.92)] {
            let mut random = SplitMix(29);
            let mut uniform = move || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            let mut row = move || {
                let tokens = (5.0 - 60.0 * (1.0 - uniform()).ln()).floor();
                let odd = uniform().powi(4);
                let (mut n_odd, mut loss, mut odd_loss) = (0.0, 0.0, 0.0);
                for _ in 0..tokens as usize {
                    let is_odd = uniform() < odd;
                    // An exponential's square has a variance of twenty times the square of its mean.
                    let own = (1.0 - uniform()).ln().powi(2) * if is_odd { 3.0 } else { 1.0 };
                    loss += own;
                    if is_odd {
                        (n_odd, odd_loss) = (n_odd + 1.0, odd_loss + own);
                    }
                }
                [(n_odd, tokens, Scale::LogOdds), (odd_loss, loss, Scale::LogOdds), (loss, loss - 0.8 * odd_loss, Scale::Log)]
            };
            let mut truth = [(0.0, 0.0); 3];
            for _ in 0..400_000 {
                for (sum, (a, b, _)) in truth.iter_mut().zip(row()) {
                    *sum = (sum.0 + a, sum.1 + b);
                }
            }
            let (n_experiments, mut covered) = (1000, [0; 3]);
            for _ in 0..n_experiments {
                let mut sums = [ClusterSums::default(); 3];
                let mut scales = [Scale::Plain; 3];
                for _ in 0..n_rows {
                    for (idx, (numerator, denominator, scale)) in row().into_iter().enumerate() {
                        sums[idx].add(Term { numerator, denominator });
                        scales[idx] = scale;
                    }
                }
                for idx in 0..3 {
                    let truth = truth[idx].0 / truth[idx].1;
                    let [low, high] = sums[idx].ci95(scales[idx]).unwrap();
                    covered[idx] += usize::from(low <= truth && truth <= high);
                }
            }
            let shares = covered.map(|count| count as f64 / f64::from(n_experiments));
            println!("{n_rows} rows: shares of tokens and loss and the factor are covered {shares:?}");
            assert!(shares.iter().all(|share| (lowest..=0.975).contains(share)), "{n_rows} rows: {shares:?}");
        }
    }

    /// McNemar's exact test is somewhat conservative, so that its power at the computed drop is a little below 0.8.
    #[test]
    fn the_detectable_drop_is_detected_four_times_in_five() {
        let (n, flipping) = (400, 0.2);
        let drop = detectable_drop(n, flipping).unwrap();
        let mut random = SplitMix(11);
        let mut uniform = || random.next() as f64 / 2f64.powi(64);
        let detected = (0..1000).filter(|_| {
            let (mut lost, mut gained) = (0, 0);
            for _ in 0..n {
                match uniform() {
                    u if u < (flipping + drop) / 2.0 => lost += 1,
                    u if u < flipping => gained += 1,
                    _ => {}
                }
            }
            mcnemar_exact(lost, gained) < 0.05
        });
        let power = detected.count() as f64 / 1000.0;
        assert!((0.72..=0.85).contains(&power), "a drop of {drop} is found with power {power}");
        assert_eq!((detectable_drop(400, 0.0), detectable_drop(5, 0.2)), (None, None));
    }

    #[test]
    fn a_model_against_itself_differs_by_nothing() {
        let terms = plain(&[1.0, 0.0, 1.0, 1.0, 0.0]);
        for same in
            [paired_difference(&terms, &terms, Link::Identity), macro_difference(&[(&terms, &terms), (&terms[..2], &terms[..2])])]
        {
            // By nothing, but five items are no proof of it.
            let [low, high] = same.ci95.unwrap();
            assert!(same.value == 0.0 && same.stderr == Some(0.0) && low < -0.2 && high > 0.2, "{same:?}");
        }
    }

    #[test]
    fn certainty_is_never_whole() {
        let close = |found: [f64; 2], expected: [f64; 2]| {
            assert!(found.iter().zip(expected).all(|(found, expected)| (found - expected).abs() < 1e-9), "{found:?}");
        };
        // statsmodels.stats.proportion.proportion_confint(0, 40, method="wilson"), and 80 of 80: z^2 / (n + z^2)
        let z2 = Z_975 * Z_975;
        close(wilson(0, 40), [0.0, z2 / (40.0 + z2)]);
        close(wilson(80, 80), [80.0 / (80.0 + z2), 1.0]);
        close(tango(0, 0, 80), [-z2 / (80.0 + z2), z2 / (80.0 + z2)]);
        // At its ends the score test is just refused: symmetric in what is lost and gained.
        let [low, high] = tango(3, 9, 40);
        close(tango(9, 3, 40), [-high, -low]);
        assert!(low < 0.15 && 0.15 < high && high - low < 0.5, "{low} {high}");
        let [low, high] = tango(10, 0, 10);
        assert!((-1.0..-0.99).contains(&low) && high > -0.99 && high < -0.4, "{low} {high}");
        for (n_right, n) in [(0, 1), (1, 1), (0, 40), (80, 80)] {
            let terms = vec![Term { numerator: f64::from(u8::from(n_right > 0)), denominator: 1.0 }; n];
            let found = estimate(&terms, Link::Identity).ci95;
            assert!(found.is_none_or(|[low, high]| low < high), "{n_right} of {n}: {found:?}");
        }
    }

    const MCNEMAR: [f64; 4] = [0.143463134765625, 0.021484375, 0.0992558700573967, 0.0012427867782632013];
    const HOLM: [f64; 5] = [0.04, 0.09, 0.09, 0.025, 0.5];
    const SEM: f64 = 0.06664192862581393;
    const BOOTSTRAP: [f64; 2] = [0.768929, 1.02607];
    const PAIRED_SEM: f64 = 0.01486500060768439;
    const PAIRED_BOOTSTRAP: [f64; 2] = [-0.0211161, 0.03625];
    const EXP_BOOTSTRAP: [f64; 2] = [2.15745, 2.79008];
}
