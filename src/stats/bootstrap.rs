//! Percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

use crate::random::SplitMix;

/// Bootstrap samples: the ends of a 95 % interval are then known to about a twentieth of its width.
const RESAMPLES: usize = 2000;
const SEED: u64 = 20_260_102;

/// The interval of `statistic` of draws of `n` out of `n` with replacement.
pub(super) fn bootstrap_interval(n: usize, statistic: impl Fn(&[u32]) -> f64) -> [f64; 2] {
    let mut random = SplitMix(SEED);
    let mut draw = vec![0; n];
    let samples = (0..RESAMPLES).map(|_| {
        draw.iter_mut().for_each(|idx| *idx = random.below(n as u32));
        statistic(&draw)
    });
    percentile_interval(samples.collect())
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
