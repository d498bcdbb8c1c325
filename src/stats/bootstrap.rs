//! Bootstrap percentile intervals (Efron and Tibshirani, An Introduction to the Bootstrap, 1993, chapter 13).

use rayon::prelude::*;

use super::shares::{Z_975, student_t_975};
use crate::random::SplitMix;

/// The number of bootstrap samples: enough to know the ends of a 95 % interval to about a twentieth of its width.
const RESAMPLES: usize = 2000;
const SEED: u64 = 20_260_102;

/// The factor by which the percentile interval of `n` units is widened. A few units vary less among themselves than the
/// population they come from, by sqrt((n - 1) / n), and their spread is itself uncertain, as Student's t accounts for
/// (Hesterberg, The American Statistician 69, 2015). 9.2 for two units, 1.6 for five, 1.05 for forty.
pub(super) fn stretch(n: usize) -> f64 {
    (n as f64 / (n as f64 - 1.0)).sqrt() * student_t_975(n as u64 - 1) / Z_975
}

/// The percentile interval of `statistic` over samples of `n` out of `n` with replacement.
pub(super) fn bootstrap_interval(n: usize, statistic: impl Fn(&[u32]) -> f64) -> [f64; 2] {
    let mut random = SplitMix(SEED);
    let mut draw = vec![0; n];
    let samples = (0..RESAMPLES).map(|_| {
        draw.iter_mut().for_each(|idx| *idx = random.below(n as u32));
        statistic(&draw)
    });
    percentile_interval(samples.collect())
}

/// Intervals of several statistics of two samples, which are resampled independently. They are basic bootstrap intervals, with
/// ends `value - (quantile - value)`: a statistic such as a distance, which noise can only increase, is biased upwards in the
/// sample and again in the resamples, and this form removes both biases. Widened as the smaller sample requires.
pub(crate) fn two_sample_intervals<const K: usize>(
    sizes: [usize; 2],
    values: [f64; K],
    statistics: impl Fn([&[u32]; 2]) -> [f64; K] + Sync,
) -> [[f64; 2]; K] {
    let draw = |resample: usize| {
        let mut random = stream(resample);
        let draws = sizes.map(|n| (0..n).map(|_| random.below(n as u32)).collect::<Vec<u32>>());
        statistics([&draws[0], &draws[1]])
    };
    let stretch = stretch(sizes[0].min(sizes[1]));
    let draws: Vec<[f64; K]> = (0..RESAMPLES).into_par_iter().map(draw).collect();
    std::array::from_fn(|k| {
        let [low, high] = percentile_interval(draws.iter().map(|draw| draw[k]).collect());
        [high, low].map(|end| values[k] - stretch * (end - values[k]))
    })
}

/// The random numbers of one resample. The seed is itself drawn: seeds that differ by multiples of SplitMix's step would give
/// overlapping pieces of one sequence.
fn stream(resample: usize) -> SplitMix {
    SplitMix(SplitMix(SEED ^ resample as u64).next())
}

/// The interval between the 2.5 % and the 97.5 % quantile, interpolated as NumPy does.
fn percentile_interval(mut samples: Vec<f64>) -> [f64; 2] {
    samples.sort_by(f64::total_cmp);
    [0.025, 0.975].map(|share| {
        let at = share * (samples.len() - 1) as f64;
        let (below, above) = (samples[at.floor() as usize], samples[at.ceil() as usize]);
        below + (above - below) * at.fract()
    })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn resamples_share_no_numbers() {
        const N_EACH: usize = 200;
        let numbers = (0..RESAMPLES).flat_map(|resample| {
            let mut random = stream(resample);
            (0..N_EACH).map(move |_| random.next())
        });
        // 400,000 random 64-bit numbers contain a duplicate with a probability of only about 10^-8.
        assert_eq!(numbers.collect::<HashSet<u64>>().len(), RESAMPLES * N_EACH);
    }
}
