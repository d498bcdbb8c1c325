//! The running statistics of one row of logits: sums relative to the largest logit so far, rescaled when a larger one appears.
//!
//! With `m` the largest logit so far (including the target's), `d_v = logit_v - m` and `e_v = exp(d_v)`, over all words except the
//! target:
//!
//! | sum of | gives |
//! |---|---|
//! | `e` | the normaliser, and `1 - p` of the target without cancellation |
//! | `e d`, `e d^2` | entropy `ln sum e - sum e d / sum e`, two terms of one sign; varentropy |
//! | `e^2` | the gradient's norm |
//! | `e` where the logit is at most the target's | the tail |
//!
//! The terms of a tile are summed in f32, lane by lane, and the tiles in f64.

use super::reference::{LEAST_EXACT, normalised_topk_entropy, topk_entropies_up_to};
use crate::kernels::exp::exp_of_nonpositive;
use crate::kernels::lanes::Lanes;
use crate::kernels::{Choice, NEXT_CHOICES, TokenStatistics};

/// Its `exp` is 0 in f32, and so is the product of the two; for -inf that product would be NaN.
const NO_MASS: f32 = -100.0;

#[derive(Debug, Clone)]
pub(super) struct Running {
    /// `m`; at least `f32::MIN`, so that a row that starts with -inf has finite differences.
    reference: f32,
    /// The largest logit of a word other than the target, and the lowest id with it.
    largest: f32,
    largest_id: u32,
    n_larger: u32,
    sums: Sums,
    /// `K` of `entropy_topk`; at least this many of the largest logits are kept.
    top_k: usize,
    top: Largest,
}

#[derive(Debug, Clone, Copy, Default)]
struct Sums {
    e: f64,
    e_d: f64,
    e_dd: f64,
    e_e: f64,
    tail: f64,
}

impl Running {
    /// `top_k` and `kept`, the number of largest logits to keep if more than `top_k` are needed, must be at most the size of the
    /// vocabulary.
    pub(super) fn new(target_logit: f32, top_k: usize, kept: usize) -> Running {
        Running {
            reference: target_logit.max(f32::MIN),
            largest: f32::NEG_INFINITY,
            largest_id: u32::MAX,
            n_larger: 0,
            sums: Sums::default(),
            top_k,
            top: Largest::new(top_k.max(kept)),
        }
    }

    /// Folds in the logits of the words from `first_id` on; the elements of the target and of padding must be -inf.
    ///
    /// # Safety
    /// `V::N` must divide `logits.len()`, and the processor must have `V`'s instructions.
    #[inline(always)]
    pub(super) unsafe fn take<V: Lanes>(&mut self, logits: &[f32], first_id: u32, target_logit: f32) {
        debug_assert!(logits.len().is_multiple_of(V::N));
        // SAFETY: `i + N <= logits.len()` in every call of `load`; the instructions are there by contract.
        unsafe {
            let load = |i: usize| V::load(logits.as_ptr().add(i));
            let (zero, one, target) = (V::splat(0.0), V::splat(1.0), V::splat(target_logit));
            let mut largest = V::splat(f32::NEG_INFINITY);
            let mut n_larger = zero;
            for i in (0..logits.len()).step_by(V::N) {
                largest = largest.max(load(i));
                n_larger = n_larger.add(target.if_less(load(i), one, zero));
            }
            self.n_larger += n_larger.sum() as u32;
            let largest = largest.maximum();
            if largest > self.largest {
                self.largest = largest;
                self.largest_id = first_id + logits.iter().position(|&logit| logit == largest).unwrap_or(0) as u32;
                self.refer_to(largest);
            }
            if largest > self.top.threshold() {
                for i in (0..logits.len()).step_by(V::N) {
                    let mut larger = V::splat(self.top.threshold()).less_bits(load(i));
                    while larger != 0 {
                        let at = i + larger.trailing_zeros() as usize;
                        self.top.push(logits[at], first_id + at as u32);
                        larger &= larger - 1;
                    }
                }
            }

            let (reference, no_mass) = (V::splat(self.reference), V::splat(NO_MASS));
            // Tests `logit <= target_logit`.
            let above_target = V::splat(target_logit.next_up());
            let (mut e_sum, mut e_d, mut e_dd, mut e_e, mut tail) = (zero, zero, zero, zero, zero);
            for i in (0..logits.len()).step_by(V::N) {
                let logit = load(i);
                let d = no_mass.max(logit.sub(reference));
                let e = exp_of_nonpositive(d);
                let ed = e.mul(d);
                e_sum = e_sum.add(e);
                e_d = e_d.add(ed);
                e_dd = ed.mul_add(d, e_dd);
                e_e = e.mul_add(e, e_e);
                tail = tail.add(logit.if_less(above_target, e, zero));
            }
            self.sums.e += f64::from(e_sum.sum());
            self.sums.e_d += f64::from(e_d.sum());
            self.sums.e_dd += f64::from(e_dd.sum());
            self.sums.e_e += f64::from(e_e.sum());
            self.sums.tail += f64::from(tail.sum());
        }
    }

    /// Combines the statistics of two spans; `self`'s words precede `other`'s.
    pub(super) fn join(mut self, other: &Running) -> Running {
        let mut other = other.clone();
        self.refer_to(other.reference);
        other.refer_to(self.reference);
        if other.largest > self.largest {
            (self.largest, self.largest_id) = (other.largest, other.largest_id);
        }
        self.n_larger += other.n_larger;
        self.sums = Sums {
            e: self.sums.e + other.sums.e,
            e_d: self.sums.e_d + other.sums.e_d,
            e_dd: self.sums.e_dd + other.sums.e_dd,
            e_e: self.sums.e_e + other.sums.e_e,
            tail: self.sums.tail + other.sums.tail,
        };
        other.top.values.iter().zip(&other.top.ids).for_each(|(&value, &id)| self.top.push(value, id));
        self
    }

    /// The statistics of the row, including the target, which the sums omit.
    pub(super) fn finish(self, target: u32, target_logit: f32) -> TokenStatistics {
        self.finish_with_curve(target, target_logit, 0).0
    }

    /// Like `finish`, with the entropies, in nats, of the softmax over the `K` largest logits for `K = 1 ..= k_max`. If more are
    /// requested than logits are kept, the last entropy is repeated.
    pub(super) fn finish_with_curve(mut self, target: u32, target_logit: f32, k_max: usize) -> (TokenStatistics, Vec<f32>) {
        let others = self.sums;
        let d = f64::from(target_logit) - f64::from(self.reference);
        let e = d.exp();
        let total = others.e + e;
        // A NaN or +inf makes `e d` NaN; a row of only -inf has no mass.
        let is_sound = total > 0.0 && others.e_d.is_finite() && !target_logit.is_nan();
        if !is_sound {
            return (TokenStatistics::nan(), vec![f32::NAN; k_max]);
        }
        // -inf has no mass: 0 ln 0 = 0.
        let (ed, edd) = if e > 0.0 { (e * d, e * d * d) } else { (0.0, 0.0) };
        let target_is_top = target_logit > self.largest || (target_logit == self.largest && target < self.largest_id);
        // ln p = -ln(1 + others / e), exact even if p is close to 1; if e has lost digits or underflowed, the total is that of the
        // others.
        let ln_total = if d == 0.0 { others.e.ln_1p() } else { total.ln() };
        let logprob = if e > LEAST_EXACT { -(others.e / e).ln_1p() } else { d - ln_total };
        let mean_d = (others.e_d + ed) / total;
        let not_target = others.e / total;
        self.top.push(target_logit, target);
        let logprob_of = |logit: f32| (f64::from(logit) - f64::from(self.reference) - ln_total) as f32;
        let statistics = TokenStatistics {
            logprob: logprob as f32,
            entropy: (ln_total - mean_d) as f32,
            entropy_topk: self.top.normalised_entropy(self.top_k) as f32,
            rank: 1 + self.n_larger,
            tail: ((others.tail + e) / total).min(1.0) as f32,
            varentropy: ((others.e_dd + edd) / total - mean_d * mean_d).max(0.0) as f32,
            grad: (not_target * not_target + others.e_e / (total * total)).sqrt() as f32,
            top_id: if target_is_top { target } else { self.largest_id },
            top_logprob: -ln_total as f32,
            next: self.top.next_choices(self.top_k, logprob_of),
        };
        (statistics, topk_entropies_up_to(&self.top.values, k_max))
    }

    /// Raises `m` to at least `logit`. With `s = m' - m`: `d' = d - s` and `e' = e exp(-s)`; no terms cancel, because `d <= 0 <= s`.
    fn refer_to(&mut self, logit: f32) {
        if logit <= self.reference {
            return;
        }
        let s = f64::from(logit) - f64::from(self.reference);
        let scale = (-s).exp();
        let Sums { e, e_d, e_dd, e_e, tail } = self.sums;
        self.reference = logit;
        self.sums = Sums {
            e: scale * e,
            e_d: scale * (e_d - s * e),
            e_dd: scale * (e_dd - 2.0 * s * e_d + s * s * e),
            e_e: scale * scale * e_e,
            tail: scale * tail,
        };
    }
}

/// The `K` largest values of a stream with the ids of their words, largest first; -inf until there are `K`. Of `V` values in random order
/// about `K (1 + ln(V / K))` are inserted, each moving half of the others.
#[derive(Debug, Clone)]
struct Largest {
    values: Vec<f32>,
    ids: Vec<u32>,
}

impl Largest {
    fn new(k: usize) -> Largest {
        Largest { values: vec![f32::NEG_INFINITY; k], ids: vec![0; k] }
    }

    /// Values up to this one are not inserted.
    fn threshold(&self) -> f32 {
        self.values.last().copied().unwrap_or(f32::INFINITY)
    }

    /// Inserts a value if it is among the largest. Equal values stay in order of arrival.
    fn push(&mut self, value: f32, id: u32) {
        let Some(mut place) = self.values.len().checked_sub(1).filter(|&last| value > self.values[last]) else { return };
        while place > 0 && value > self.values[place - 1] {
            (self.values[place], self.ids[place]) = (self.values[place - 1], self.ids[place - 1]);
            place -= 1;
        }
        (self.values[place], self.ids[place]) = (value, id);
    }

    /// The entropy of the softmax of the first `top_k`, divided by `ln top_k`.
    fn normalised_entropy(&self, top_k: usize) -> f64 {
        normalised_topk_entropy(&self.values[..top_k], top_k)
    }

    /// The choices after the first, among at most `top_k`. Words arrive in the order of their ids, except for the target, which comes
    /// last, so ties are sorted by id here.
    fn next_choices(&mut self, top_k: usize, logprob: impl Fn(f32) -> f32) -> [Choice; NEXT_CHOICES] {
        for end in 1..self.ids.len() {
            let mut place = end;
            while place > 0 && self.values[place - 1] == self.values[place] && self.ids[place - 1] > self.ids[place] {
                self.ids.swap(place - 1, place);
                place -= 1;
            }
        }
        let ranked = self.values.iter().zip(&self.ids).take(top_k).skip(1);
        let mut next = ranked.filter(|(value, _)| value.is_finite());
        std::array::from_fn(|_| next.next().map_or(Choice::default(), |(&value, &id)| Choice { id, logprob: logprob(value) }))
    }
}
