//! How sure a score is, and a difference of two scores on the same items. All of it in f64, all of it with a fixed seed.
//!
//! A metric is a ratio of sums over items, `f(sum numerator / sum denominator)`: accuracy has denominators of 1, bits per byte
//! those of the bytes, and `f` is exp for a perplexity. One form serves standard error, bootstrap and paired difference.
//!
//! - standard error: linearised ratio, sqrt(n/(n-1) sum (a - r b)^2) / sum b; for denominators of 1 the sample deviation over
//!   sqrt(n), which is what lm-evaluation-harness gives (`lm_eval/api/metrics.py`, `mean_stderr`); times f' where f is exp;
//! - interval: percentile bootstrap over items (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13);
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
#[derive(Debug, Clone, Copy, PartialEq)]
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

/// Bootstrap samples: the ends of a 95 % interval are then known to about a twentieth of its width.
const RESAMPLES: usize = 2000;
const SEED: u64 = 20_260_102;
/// Quantiles of the standard normal distribution: 97.5 % (two-sided test at 5 %) and 80 % (power).
const Z_975: f64 = 1.959_963_984_540_054;
const Z_80: f64 = 0.841_621_233_572_914_2;

pub fn ratio(terms: &[Term], link: Link) -> f64 {
    let (a, b) = terms.iter().fold((0.0, 0.0), |(a, b), term| (a + term.numerator, b + term.denominator));
    link.apply(a / b)
}

pub fn estimate(terms: &[Term], link: Link) -> Estimate {
    let value = ratio(terms, link);
    if terms.len() < 2 {
        return Estimate { value, stderr: None, ci95: None };
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
pub fn paired_difference(before: &[Term], after: &[Term], link: Link) -> Estimate {
    let value = ratio(after, link) - ratio(before, link);
    if before.len() < 2 {
        return Estimate { value, stderr: None, ci95: None };
    }
    let samples = paired_samples(SEED, before, after, link);
    Estimate { value, stderr: Some(deviation(&samples)), ci95: Some(percentile_interval(samples)) }
}

/// Mean over tasks of the differences, each task resampled on its own. Every entry is `(before, after)` of one task.
pub fn macro_difference(tasks: &[(&[Term], &[Term])]) -> Estimate {
    let n = tasks.len() as f64;
    let value = tasks.iter().map(|(before, after)| ratio(after, Link::Identity) - ratio(before, Link::Identity)).sum::<f64>() / n;
    if tasks.iter().any(|(before, _)| before.len() < 2) {
        return Estimate { value, stderr: None, ci95: None };
    }
    let mut means = vec![0.0; RESAMPLES];
    for (idx, (before, after)) in tasks.iter().enumerate() {
        let samples = paired_samples(SEED + idx as u64, before, after, Link::Identity);
        means.iter_mut().zip(samples).for_each(|(mean, sample)| *mean += sample / n);
    }
    Estimate { value, stderr: Some(deviation(&means)), ci95: Some(percentile_interval(means)) }
}

/// `part / whole`, and 0 of nothing.
pub fn share(part: f64, whole: f64) -> f64 {
    if whole == 0.0 { 0.0 } else { part / whole }
}

/// Two-sided exact p-value of McNemar's test: `lost` items went from right to wrong, `gained` the other way. 1 without flips.
pub fn mcnemar_exact(lost: u64, gained: u64) -> f64 {
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
pub fn holm(p_values: &[f64]) -> Vec<f64> {
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
pub fn detectable_drop(n: usize, flipping: f64) -> Option<f64> {
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
        let zero = Estimate { value: 0.0, stderr: Some(0.0), ci95: Some([0.0, 0.0]) };
        assert_eq!(paired_difference(&terms, &terms, Link::Identity), zero);
        assert_eq!(macro_difference(&[(&terms, &terms), (&terms[..2], &terms[..2])]), zero);
    }

    const MCNEMAR: [f64; 4] = [0.143463134765625, 0.021484375, 0.0992558700573967, 0.0012427867782632013];
    const HOLM: [f64; 5] = [0.04, 0.09, 0.09, 0.025, 0.5];
    const SEM: f64 = 0.06664192862581393;
    const BOOTSTRAP: [f64; 2] = [0.768929, 1.02607];
    const PAIRED_SEM: f64 = 0.01486500060768439;
    const PAIRED_BOOTSTRAP: [f64; 2] = [-0.0211161, 0.03625];
    const EXP_BOOTSTRAP: [f64; 2] = [2.15745, 2.79008];
}
