//! Measures how well the entropy of the K most probable tokens approximates the entropy over the whole vocabulary (the paper's figure 6 reports
//! r = 0.999 at K = 20).
//!
//! For every K, running co-moments in f64 (Welford's update; Chan, Golub and LeVeque 1979 for the merge) give the correlation, the ratio of the means
//! and the mean absolute error without storing any token. A high correlation alone would hide a bias: the top-K entropy is renormalised and lies
//! below the full entropy wherever the other tokens have probability mass.

use serde::{Deserialize, Serialize};

/// Statistics of the top-K entropy against the full entropy, for K = 1, 2, ..; computed in one streaming pass, and mergeable.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Fidelity {
    /// `by_k[K - 1]`
    by_k: Vec<Comoments>,
    /// Tokens with a NaN or an infinity; no other number includes them.
    n_ignored: u64,
}

/// What the figure and the report show for one K.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct FidelityAtK {
    /// The `K`.
    pub k: usize,
    /// How many tokens were compared.
    pub n: u64,
    /// Absent where either side is constant: at K = 1 the top-K entropy is always 0.
    pub pearson: Option<f64>,
    /// Mean of |H^topK - H|, nats.
    pub mean_abs_error: f64,
    /// Mean of H^topK over mean of H; absent where H is 0 throughout.
    pub mean_ratio: Option<f64>,
}

impl Fidelity {
    /// Adds a token: the entropies of the softmax over the K largest logits, `topk[K - 1]`, and the full entropy, all in nats and not divided by ln
    /// K. Every token must have the same number of K.
    pub fn add(&mut self, topk: &[f32], entropy: f32) {
        if !entropy.is_finite() || !topk.iter().all(|value| value.is_finite()) {
            self.n_ignored += 1;
            return;
        }
        if self.by_k.len() < topk.len() {
            self.by_k.resize(topk.len(), Comoments::default());
        }
        for (comoments, value) in self.by_k.iter_mut().zip(topk) {
            comoments.add(f64::from(*value), f64::from(entropy));
        }
    }

    /// Adds the statistics of another part of the sample.
    pub fn merge(&mut self, other: &Fidelity) {
        if self.by_k.len() < other.by_k.len() {
            self.by_k.resize(other.by_k.len(), Comoments::default());
        }
        self.by_k.iter_mut().zip(&other.by_k).for_each(|(comoments, more)| comoments.merge(more));
        self.n_ignored += other.n_ignored;
    }

    /// The number of tokens added.
    pub fn n(&self) -> u64 {
        self.by_k.first().map_or(0, |comoments| comoments.n)
    }

    /// The number of tokens skipped because an entropy is infinite or NaN.
    pub fn n_ignored(&self) -> u64 {
        self.n_ignored
    }

    /// One entry for every K, in order.
    pub fn summary(&self) -> Vec<FidelityAtK> {
        let at_k = |(idx, c): (usize, &Comoments)| FidelityAtK {
            k: idx + 1,
            n: c.n,
            pearson: c.pearson(),
            mean_abs_error: c.mean_abs_error,
            mean_ratio: (c.mean_y != 0.0).then_some(c.mean_x / c.mean_y),
        };
        self.by_k.iter().enumerate().map(at_k).collect()
    }
}

/// Running means and central second moments of pairs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
struct Comoments {
    n: u64,
    mean_x: f64,
    mean_y: f64,
    /// Sums of squared and mixed deviations from the means.
    xx: f64,
    yy: f64,
    xy: f64,
    mean_abs_error: f64,
}

impl Comoments {
    fn add(&mut self, x: f64, y: f64) {
        self.n += 1;
        let n = self.n as f64;
        let (dx, dy) = (x - self.mean_x, y - self.mean_y);
        self.mean_x += dx / n;
        self.mean_y += dy / n;
        self.xx += dx * (x - self.mean_x);
        self.yy += dy * (y - self.mean_y);
        self.xy += dx * (y - self.mean_y);
        self.mean_abs_error += ((x - y).abs() - self.mean_abs_error) / n;
    }

    fn merge(&mut self, other: &Comoments) {
        if other.n == 0 {
            return;
        }
        let (n_a, n_b) = (self.n as f64, other.n as f64);
        let n = n_a + n_b;
        let (dx, dy) = (other.mean_x - self.mean_x, other.mean_y - self.mean_y);
        self.n += other.n;
        self.xx += other.xx + dx * dx * n_a * n_b / n;
        self.yy += other.yy + dy * dy * n_a * n_b / n;
        self.xy += other.xy + dx * dy * n_a * n_b / n;
        self.mean_x += dx * n_b / n;
        self.mean_y += dy * n_b / n;
        self.mean_abs_error += (other.mean_abs_error - self.mean_abs_error) * n_b / n;
    }

    fn pearson(&self) -> Option<f64> {
        let scale = (self.xx * self.yy).sqrt();
        (scale > 0.0).then(|| (self.xy / scale).clamp(-1.0, 1.0))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// x = 1, 2, 3 and y = 2, 3, 7: the deviations are -1, 0, 1 and -2, -1, 3, so that r = 5 / sqrt(2 * 14).
    #[test]
    fn pearson_ratio_and_error_of_a_hand_case() {
        let mut fidelity = Fidelity::default();
        for (topk, entropy) in [([0.0, 1.0], 2.0), ([0.0, 2.0], 3.0), ([0.0, 3.0], 7.0)] {
            fidelity.add(&topk, entropy);
        }
        fidelity.add(&[0.0, f32::NAN], 1.0);
        fidelity.add(&[0.0, 1.0], f32::NAN);
        let [one, two] = fidelity.summary()[..] else { panic!("two K") };
        assert_eq!((one.k, one.n, one.pearson, one.mean_ratio), (1, 3, None, Some(0.0)));
        assert_eq!((one.mean_abs_error, fidelity.n_ignored), (4.0, 2));
        assert!((two.pearson.unwrap() - 5.0 / 28f64.sqrt()).abs() < 1e-15);
        assert_eq!(two.mean_ratio, Some(0.5));
        assert!((two.mean_abs_error - 2.0).abs() < 1e-15);
    }

    /// Compares streaming and merged statistics with the two-pass formula; 1e-12 leaves three digits of f64 for the order of summation.
    #[test]
    fn a_stream_and_its_merged_parts_equal_two_passes() {
        let pair = |idx: u32| {
            let y = 4.0 + (f64::from(idx) * 0.37).sin();
            ((y * 0.9 + 0.1 * (f64::from(idx) * 1.7).cos()) as f32, y as f32)
        };
        let pairs: Vec<(f32, f32)> = (0..1000).map(pair).collect();
        let mean = |side: &dyn Fn(&(f32, f32)) -> f32| pairs.iter().map(|pair| f64::from(side(pair))).sum::<f64>() / 1000.0;
        let (mean_x, mean_y) = (mean(&|pair| pair.0), mean(&|pair| pair.1));
        let sum = |term: &dyn Fn(f64, f64) -> f64| {
            pairs.iter().map(|(x, y)| term(f64::from(*x) - mean_x, f64::from(*y) - mean_y)).sum::<f64>()
        };
        let expected = sum(&|x, y| x * y) / (sum(&|x, _| x * x) * sum(&|_, y| y * y)).sqrt();

        let (mut whole, mut first, mut second) = (Fidelity::default(), Fidelity::default(), Fidelity::default());
        for (idx, (x, y)) in pairs.iter().enumerate() {
            whole.add(&[*x], *y);
            if idx < 300 { &mut first } else { &mut second }.add(&[*x], *y);
        }
        let mut merged = Fidelity::default();
        merged.merge(&first);
        merged.merge(&second);
        merged.merge(&Fidelity::default());
        for fidelity in [&whole, &merged] {
            assert_eq!(fidelity.n(), 1000);
            assert!((fidelity.summary()[0].pearson.unwrap() - expected).abs() < 1e-12);
        }
        let text = serde_json::to_string(&merged).unwrap();
        assert_eq!(serde_json::from_str::<Fidelity>(&text).unwrap().n(), 1000);
    }
}
