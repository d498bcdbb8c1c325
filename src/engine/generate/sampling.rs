//! Chooses the next token from a row of logits.
//!
//! Order and definitions are those of Transformers' `generate` (`generation/logits_process.py`): repetition penalty, temperature, then top-k, top-p
//! and min-p, each applied to what the previous one has left. The sampling method is our own: the first token, by id, at which the cumulative share
//! exceeds the random number.

use std::borrow::Cow;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::kernels::exp::exp_slice;
use crate::kernels::level::Level;

/// How the next token is chosen from the logits.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Sampling {
    /// Divides the logits; at 0 the most probable token is taken, the first among ties, and the filters below have no effect.
    pub temperature: f64,
    /// Keeps only this many of the largest logits, and those equal to the last of them.
    pub top_k: Option<usize>,
    /// Keeps only the most probable tokens that together have this share, including the one that reaches it.
    pub top_p: Option<f64>,
    /// Keeps only tokens of at least this share of the largest probability.
    pub min_p: Option<f64>,
    /// Applied before everything else, also to greedy decoding: for tokens that the prompt or answer already contains, positive logits are divided by
    /// it and negative ones multiplied.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub repetition_penalty: Option<f64>,
}

impl Sampling {
    /// Greedy decoding.
    pub const GREEDY: Sampling = Sampling { temperature: 0.0, top_k: None, top_p: None, min_p: None, repetition_penalty: None };
    /// Samples from the model's own distribution.
    pub const PLAIN: Sampling = Sampling { temperature: 1.0, ..Sampling::GREEDY };

    /// Whether the most probable token is always taken.
    pub fn is_greedy(&self) -> bool {
        self.temperature == 0.0
    }

    /// Whether every token is sampled with the probability that the model gives it.
    pub fn is_plain(&self) -> bool {
        self.temperature == 1.0 && !self.has_cuts() && self.repetition_penalty.is_none()
    }

    /// Whether there is a filter besides the temperature.
    pub(super) fn has_cuts(&self) -> bool {
        self.top_k.is_some() || self.top_p.is_some_and(|p| p < 1.0) || self.min_p.is_some_and(|p| p > 0.0)
    }

    /// The factor of the logits; meaningless if the temperature is 0.
    pub(super) fn scale(&self) -> f32 {
        (1.0 / self.temperature) as f32
    }

    /// Refuses values that are out of range, with the names of their options.
    pub fn check(&self) -> Result<()> {
        if !(self.temperature >= 0.0 && self.temperature.is_finite()) {
            return Err(Error::usage(format!("--temperature {}: expected a number of 0 or more", self.temperature))
                .cure("0 takes the most probable token, 1 draws from the model's own distribution."));
        }
        if self.top_k == Some(0) {
            return Err(Error::usage("--top-k 0 leaves no token; expected 1 or more").cure("Leave it out to keep all tokens."));
        }
        for (option, share) in [("--top-p", self.top_p), ("--min-p", self.min_p)] {
            if let Some(share) = share.filter(|share| !(0.0..=1.0).contains(share)) {
                return Err(Error::usage(format!("{option} {share}: expected a share between 0 and 1")));
            }
        }
        if let Some(penalty) = self.repetition_penalty.filter(|penalty| !(*penalty > 0.0 && penalty.is_finite())) {
            return Err(Error::usage(format!("--repetition-penalty {penalty}: expected a number above 0"))
                .cure("1 leaves the logits unchanged; higher values make repetition less probable."));
        }
        Ok(())
    }

    /// Applies the repetition penalty to the logits, given the `tokens` of prompt and answer, which may contain duplicates.
    pub(super) fn penalised<'a>(&self, logits: &'a [f32], tokens: impl Iterator<Item = u32>) -> Cow<'a, [f32]> {
        let Some(penalty) = self.repetition_penalty else { return Cow::Borrowed(logits) };
        let penalty = penalty as f32;
        let mut own = logits.to_vec();
        for id in tokens.map(|id| id as usize) {
            own[id] = if logits[id] < 0.0 { logits[id] * penalty } else { logits[id] / penalty };
        }
        Cow::Owned(own)
    }

    /// Chooses the next token from the logits of all words, softcap included; `random` is uniform in 0..1.
    pub(super) fn choose(&self, logits: &[f32], random: f64) -> Result<u32> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        if !largest.is_finite() || logits.iter().any(|logit| logit.is_nan()) {
            return Err(no_numbers());
        }
        if self.is_greedy() {
            return Ok(logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32);
        }
        Ok(draw(&self.weights(logits, largest), random))
    }

    /// The probability of each token, up to a common factor: 1 for the most probable, 0 for those filtered out.
    fn weights(&self, logits: &[f32], largest: f32) -> Vec<f32> {
        let scale = self.scale();
        // Avoids 0 times infinity: the largest logit gives 0 for any scale.
        let scaled = |logit: f32| if logit == largest { 0.0 } else { (logit - largest) * scale };
        let mut weights: Vec<f32> = logits.iter().map(|&logit| scaled(logit)).collect();
        exp_slice(Level::current(), &mut weights);
        if let Some(k) = self.top_k.filter(|&k| k < logits.len()) {
            let mut sorted = logits.to_vec();
            let (_, &mut last, _) = sorted.select_nth_unstable_by(k - 1, |a, b| b.total_cmp(a));
            weights.iter_mut().zip(logits).filter(|(_, logit)| **logit < last).for_each(|(weight, _)| *weight = 0.0);
        }
        if let Some(share) = self.top_p.filter(|&share| share < 1.0) {
            keep_share(&mut weights, share);
        }
        if let Some(share) = self.min_p {
            weights.iter_mut().filter(|weight| f64::from(**weight) < share).for_each(|weight| *weight = 0.0);
        }
        weights
    }
}

/// Returns the id that a GPU chose, or an error if there is none.
pub(super) fn check_chosen(id: u32) -> Result<u32> {
    if id == u32::MAX { Err(no_numbers()) } else { Ok(id) }
}

fn no_numbers() -> Error {
    Error::new("the model's logits are not numbers").cure("The weights are damaged, or overflow: check the model file.")
}

/// Keeps the most probable tokens until they have this share of the total; ties are broken by the lower id.
fn keep_share(weights: &mut [f32], share: f64) {
    let bound = share * weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    let mut order: Vec<u32> = (0..weights.len() as u32).filter(|&id| weights[id as usize] > 0.0).collect();
    let by_weight = |a: &u32, b: &u32| weights[*b as usize].total_cmp(&weights[*a as usize]).then(a.cmp(b));
    // Few are usually needed, so sorting a growing prefix is less work than sorting all.
    let mut n_sorted = 64;
    let n_kept = loop {
        if n_sorted < order.len() {
            order.select_nth_unstable_by(n_sorted, by_weight);
        }
        n_sorted = n_sorted.min(order.len());
        order[..n_sorted].sort_unstable_by(by_weight);
        let mut before = 0.0;
        let reached = order[..n_sorted].iter().position(|&id| {
            let is_enough = before >= bound;
            before += f64::from(weights[id as usize]);
            is_enough
        });
        match reached {
            Some(n) => break n.max(1),
            None if n_sorted == order.len() => break n_sorted,
            None => n_sorted *= 8,
        }
    };
    order[n_kept..].iter().for_each(|&id| weights[id as usize] = 0.0);
}

/// Samples a token. statistics/draw.cu does the same on a GPU, to the bit.
fn draw(weights: &[f32], random: f64) -> u32 {
    // In two steps, so that most of the sums are independent.
    const BLOCK: usize = 512;
    let sum = |weights: &[f32]| weights.iter().map(|&weight| f64::from(weight)).sum::<f64>();
    let blocks: Vec<f64> = weights.chunks(BLOCK).map(sum).collect();
    let mut rest = random * blocks.iter().sum::<f64>();
    for (i, (block, weights)) in blocks.iter().zip(weights.chunks(BLOCK)).enumerate() {
        if rest >= *block {
            rest -= block;
            continue;
        }
        for (j, &weight) in weights.iter().enumerate() {
            if rest < f64::from(weight) {
                return (i * BLOCK + j) as u32;
            }
            rest -= f64::from(weight);
        }
    }
    // If rounding left a small remainder, this takes the last token with any weight.
    weights.iter().rposition(|&weight| weight > 0.0).unwrap_or(0) as u32
}

#[cfg(test)]
mod tests {
    use candle_core::{Device, Tensor};
    use candle_transformers::generation::{LogitsProcessor, Sampling as Candles};

    use super::*;
    use crate::random;

    fn kept(sampling: Sampling, logits: &[f32]) -> Vec<u32> {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let weights = sampling.weights(logits, largest);
        (0..logits.len() as u32).filter(|&id| weights[id as usize] > 0.0).collect()
    }

    /// The logarithms of 0.4, 0.3, 0.15, 0.1, 0.05, in another order.
    fn five() -> Vec<f32> {
        [0.1f32, 0.4, 0.05, 0.3, 0.15].iter().map(|p| p.ln()).collect()
    }

    #[test]
    fn cuts_by_hand() {
        let check = |sampling: Sampling, expected: &[u32]| assert_eq!(kept(sampling, &five()), expected, "{sampling:?}");
        check(Sampling { top_k: Some(2), ..Sampling::PLAIN }, &[1, 3]);
        check(Sampling { top_k: Some(9), ..Sampling::PLAIN }, &[0, 1, 2, 3, 4]);
        // 0.4 + 0.3 reach 0.69, and not 0.71.
        check(Sampling { top_p: Some(0.69), ..Sampling::PLAIN }, &[1, 3]);
        check(Sampling { top_p: Some(0.71), ..Sampling::PLAIN }, &[1, 3, 4]);
        check(Sampling { top_p: Some(0.0), ..Sampling::PLAIN }, &[1]);
        check(Sampling { min_p: Some(0.26), ..Sampling::PLAIN }, &[1, 3, 4]);
        check(Sampling { min_p: Some(1.0), ..Sampling::PLAIN }, &[1]);
        // Among the three that are left, 0.4 / 0.85 and 0.3 / 0.85 add up to 0.82.
        check(Sampling { top_k: Some(3), top_p: Some(0.8), ..Sampling::PLAIN }, &[1, 3]);
        // The shares to the power 1 / 2: 0.63, 0.55, 0.39, 0.32, 0.22 of 2.11; two add up to 0.56, three to 0.74.
        check(Sampling { temperature: 2.0, top_p: Some(0.7), ..Sampling::PLAIN }, &[1, 3, 4]);
        // Tokens equal to the last of the k are kept.
        assert_eq!(kept(Sampling { top_k: Some(2), ..Sampling::PLAIN }, &[1.0, 2.0, 1.0, 0.0]), [0, 1, 2]);
    }

    #[test]
    fn what_was_said_is_penalised_once_whatever_its_sign() {
        let sampling = Sampling { repetition_penalty: Some(2.0), ..Sampling::GREEDY };
        let logits = [3.0, -1.0, 2.0, 0.0, 4.0];
        assert_eq!(*sampling.penalised(&logits, [4, 1, 4, 3, 4].into_iter()), [3.0, -2.0, 2.0, 0.0, 2.0]);
        assert_eq!(*Sampling::GREEDY.penalised(&logits, [4].into_iter()), logits);
    }

    #[test]
    fn the_draw_goes_by_the_sums_of_the_shares() {
        let choose = |random| Sampling::PLAIN.choose(&five(), random).unwrap();
        // The cumulative sums: 0.1, 0.5, 0.55, 0.85, 1.
        for (random, id) in [(0.0, 0), (0.09, 0), (0.11, 1), (0.49, 1), (0.52, 2), (0.6, 3), (0.9, 4), (0.999_999, 4)] {
            assert_eq!(choose(random), id, "{random}");
        }
        assert_eq!(Sampling::GREEDY.choose(&[0.0, 3.0, 3.0], 0.9).unwrap(), 1);
        assert!(Sampling::PLAIN.choose(&[0.0, f32::NAN], 0.5).is_err());
        assert_eq!(Sampling { temperature: 1e-30, ..Sampling::PLAIN }.choose(&[0.0, 3.0, 3.0, 1.0], 0.7).unwrap(), 2);
        // A large vocabulary in which whole blocks have no weight.
        let mut wide = vec![f32::NEG_INFINITY; 2000];
        (wide[700], wide[1999]) = (0.0, 0.0);
        assert_eq!([0.4, 0.6].map(|random| Sampling::PLAIN.choose(&wide, random).unwrap()), [700, 1999]);
    }

    /// Compares a GPU with the CPU: whole and partial blocks, zero weights, random numbers at both ends, and NaN.
    #[test]
    fn a_gpu_draws_the_same_tokens() {
        use crate::kernels::Stored;
        use crate::kernels::cuda::draw_words;
        use crate::kernels::testing::{device, noise};
        let Some(device) = device() else { return };
        if Level::current() == Level::Portable {
            return; // This level has no fused multiply-add, so its bits differ.
        }
        for (vocabulary, temperature) in [(1, 1.0), (7, 0.5), (512, 1.0), (513, 1.7), (3001, 1.0), (40_000, 0.8), (3001, 1e-30)] {
            let sampling = Sampling { temperature, ..Sampling::PLAIN };
            let randoms: Vec<f64> =
                [0.0, 1.0 - f64::EPSILON, 0.5].into_iter().chain((0..60).map(|i| random::unit(5, i))).collect();
            let n = randoms.len();
            let mut logits = noise(n * vocabulary, 12.0, vocabulary as u64);
            // A row without most of its tokens, a row with two largest ones, a NaN row, and subnormal weights.
            logits[vocabulary.div_ceil(2)..vocabulary].fill(f32::NEG_INFINITY);
            logits[vocabulary..][vocabulary / 3] = 13.0;
            logits[vocabulary..][vocabulary - 1] = 13.0;
            let has_none = vocabulary > 1;
            if has_none {
                logits[2 * vocabulary + 1] = f32::NAN;
                logits[3 * vocabulary] = 95.0;
            }
            let upload = |words: &[f32]| device.upload(words, Stored::F32).unwrap();
            let words: Vec<f32> = randoms
                .iter()
                .flat_map(|random| [random.to_bits() as u32, (random.to_bits() >> 32) as u32])
                .map(f32::from_bits)
                .collect();
            let (on_logits, words) = (upload(&logits), upload(&words));
            let room = device.allocate(4 * n * (draw_words(vocabulary) + 2)).unwrap();
            let on_logits = on_logits.array(0, logits.len(), Stored::F32).unwrap();
            let sums = room.array(0, n * draw_words(vocabulary), Stored::F32).unwrap();
            let largest = room.array(4 * n * draw_words(vocabulary), n, Stored::F32).unwrap();
            let drawn = room.array(4 * n * (draw_words(vocabulary) + 1), n, Stored::F32).unwrap();
            device.largest_of_rows(on_logits, largest, vocabulary).unwrap();
            let largest = largest.indices(0, n, vocabulary as u32).unwrap();
            let words = words.indices(0, 2 * n, u32::MAX).unwrap();
            device.draw(on_logits, largest, words, sampling.scale(), sums, drawn, vocabulary).unwrap();
            let found = device.download(drawn).unwrap();
            for (i, (found, row)) in found.iter().zip(logits.chunks_exact(vocabulary)).enumerate() {
                let expected = sampling.choose(row, randoms[i]).ok();
                assert_eq!(expected.is_none(), has_none && i == 2);
                assert_eq!(found.to_bits(), expected.unwrap_or(u32::MAX), "row {i} of {vocabulary} at {temperature}");
            }
        }
    }

    #[test]
    fn options_that_mean_nothing_are_refused() {
        let check = |sampling: Sampling| sampling.check().unwrap_err().to_string();
        assert!(check(Sampling { temperature: -1.0, ..Sampling::PLAIN }).contains("--temperature -1"));
        assert!(check(Sampling { temperature: f64::NAN, ..Sampling::PLAIN }).contains("--temperature"));
        assert!(check(Sampling { top_k: Some(0), ..Sampling::PLAIN }).contains("--top-k 0"));
        assert!(check(Sampling { top_p: Some(1.5), ..Sampling::PLAIN }).contains("--top-p 1.5"));
        assert!(check(Sampling { min_p: Some(-0.1), ..Sampling::PLAIN }).contains("--min-p -0.1"));
        assert!(Sampling::PLAIN.check().is_ok() && Sampling::PLAIN.is_plain() && Sampling::GREEDY.is_greedy());
        assert!(!Sampling { top_p: Some(0.9), ..Sampling::PLAIN }.is_plain());
        for penalty in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let sampling = Sampling { repetition_penalty: Some(penalty), ..Sampling::PLAIN };
            assert!(check(sampling).contains("--repetition-penalty") && !sampling.is_plain());
        }
    }

    /// Compares the frequencies with those of candle's sampler, which uses other random numbers: chi-squared over the tokens, at one in a thousand.
    #[test]
    fn frequencies_are_those_of_candles_sampler() {
        const DRAWS: u64 = 20_000;
        let logits: Vec<f32> = (0..12).map(|i| ((i * 7) % 12) as f32 * 0.4 - 1.0).collect();
        let tensor = Tensor::new(logits.as_slice(), &Device::Cpu).unwrap();
        let cases = [
            (Sampling { temperature: 0.7, ..Sampling::PLAIN }, Candles::All { temperature: 0.7 }),
            (Sampling { top_k: Some(5), ..Sampling::PLAIN }, Candles::TopK { k: 5, temperature: 1.0 }),
            (Sampling { top_p: Some(0.8), ..Sampling::PLAIN }, Candles::TopP { p: 0.8, temperature: 1.0 }),
        ];
        for (own, theirs) in cases {
            let mut processor = LogitsProcessor::from_sampling(5, theirs);
            let (mut ours, mut candles) = ([0f64; 12], [0f64; 12]);
            for i in 0..DRAWS {
                ours[own.choose(&logits, random::unit(3, i)).unwrap() as usize] += 1.0;
                candles[processor.sample(&tensor).unwrap() as usize] += 1.0;
            }
            let drawn = |counts: &[f64; 12]| counts.iter().map(|&n| n > 0.0).collect::<Vec<_>>();
            assert_eq!(drawn(&ours), drawn(&candles), "{own:?}");
            let terms = ours.iter().zip(&candles).filter(|(a, b)| *a + *b > 0.0).map(|(a, b)| (a - b).powi(2) / (a + b));
            // At most 11 degrees of freedom.
            assert!(terms.sum::<f64>() < 31.3, "{own:?}: {ours:?} {candles:?}");
        }
    }
}
