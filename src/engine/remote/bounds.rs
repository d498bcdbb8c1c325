//! What the largest probabilities of a distribution say about the whole of it.
//!
//! A server tells the K largest log-probabilities, and the target's. Beyond them it is known that the rest, `V - K` tokens, has the mass `m`
//! that is left over, and that none of it is more probable than the K-th, `c`. Of all distributions that fit, those with as many tokens at
//! `c` as `m` pays for have the least entropy and the most `sum p^2`, and the one that shares `m` out evenly the most entropy and the least
//! `sum p^2`: `x ln x` and `x^2` are convex, and `x (ln x)^2` is concave below 1/e.

use crate::error::{Error, Result};
use crate::kernels::{Choice, NEXT_CHOICES, TokenStatistics};

/// The K of the EAFT gate, [`TOP_K`](crate::engine::TOP_K): fewer are refused, so that `entropy_topk` is exact.
pub const LEAST_TOP_K: usize = 20;

/// What a sum of a few hundred probabilities may be off by, whose logarithms came as f32 from a softmax in f32.
const SLACK: f64 = 2e-6;

/// What is known of one position: the target's ln p, and the K largest of the distribution that it was drawn from.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    pub target: Choice,
    /// 1 + number of tokens that are at least as probable, where the server says so.
    pub rank: Option<u32>,
    /// The most probable first, the lowest id first among equals; the target may be among them.
    pub top: Vec<Choice>,
}

/// Least and largest value that fit what is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Range {
    pub lo: f32,
    pub hi: f32,
}

/// Where the statistics lie that the largest probabilities do not decide. Units as in [`TokenStatistics`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bounds {
    pub entropy: Range,
    pub tail: Range,
    pub varentropy: Range,
    pub grad: Range,
}

impl Range {
    fn new(lo: f64, hi: f64) -> Range {
        Range { lo: lo as f32, hi: hi.max(lo) as f32 }
    }

    pub fn middle(self) -> f32 {
        self.lo + (self.hi - self.lo) / 2.0
    }

    pub fn width(self) -> f32 {
        self.hi - self.lo
    }
}

/// Sums over the tokens that are not known, of which there are `n`, each of at most `cap`, and all together of `mass`.
struct Rest {
    /// Mass, of which the sums of f32 numbers leave a little open.
    least: f64,
    most: f64,
    n: f64,
    cap: f64,
}

impl Rest {
    /// The sum of `f` where as many tokens as possible have the probability `cap`, and one what is left of `mass`.
    fn packed(&self, mass: f64, f: impl Fn(f64) -> f64) -> f64 {
        if mass <= 0.0 || self.cap <= 0.0 {
            return 0.0;
        }
        let full = (mass / self.cap).floor();
        full * f(self.cap) + f(mass - full * self.cap)
    }

    /// The sum of `f` where all have the same probability.
    fn spread(&self, mass: f64, f: impl Fn(f64) -> f64) -> f64 {
        if mass <= 0.0 || self.n <= 0.0 { 0.0 } else { self.n * f(mass / self.n) }
    }
}

/// `-x ln x`
fn surprise(x: f64) -> f64 {
    if x <= 0.0 { 0.0 } else { -x * x.ln() }
}

/// `x (ln x)^2`
fn square_surprise(x: f64) -> f64 {
    if x <= 0.0 { 0.0 } else { x * x.ln().powi(2) }
}

impl Position {
    /// What an engine says of the token at index `at` of a prompt, as long as it makes sense: the target, and `top_k` of the most probable tokens
    /// in any order.
    pub(crate) fn new(at: usize, target: Choice, rank: Option<u32>, mut top: Vec<Choice>, top_k: usize) -> Result<Position> {
        if [&target].into_iter().chain(&top).any(|choice| choice.logprob.is_nan()) {
            return Err(Error::new(format!("a log-probability at token {at} is not a number")));
        }
        top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.id.cmp(&b.id)));
        if top.len() != top_k || top.windows(2).any(|pair| pair[0].id == pair[1].id) {
            return Err(Error::new(format!(
                "expected the {top_k} most probable tokens at token {at}, found {}: entries are missing",
                top.len()
            ))
            .cure("Start the server with a --max-logprobs of that number or more."));
        }
        let position = Position { target, rank, top };
        match position.top.last() {
            Some(last) if !position.has_target() && target.logprob > last.logprob => Err(Error::new(format!(
                "token {at} has ln p {}, is not among the {top_k} most probable ones, and the last of them has {}",
                target.logprob, last.logprob
            ))),
            _ => Ok(position),
        }
    }

    /// The target among the most probable?
    pub(crate) fn has_target(&self) -> bool {
        self.top.iter().any(|choice| choice.id == self.target.id)
    }

    /// The statistics, and where those lie that are not known: they stand at the middle of their bounds. `vocab` is the number of tokens that
    /// share the mass. An error where no distribution has these as its largest log-probabilities.
    pub fn statistics(&self, vocab: usize) -> Result<(TokenStatistics, Bounds)> {
        let Position { target, top, .. } = self;
        let p = |choice: &Choice| f64::from(choice.logprob).exp();
        let outside = if self.has_target() { None } else { Some(target) };
        let known = || top.iter().chain(outside);
        let (Some(first), Some(last)) = (top.first(), top.last()) else {
            return Err(Error::new("the position has no most probable tokens"));
        };
        let (listed, all): (f64, f64) = (top.iter().map(p).sum(), known().map(p).sum());
        let rest = Rest {
            least: (1.0 - all - SLACK).max(0.0),
            most: (1.0 - all + SLACK).max(0.0),
            n: vocab.saturating_sub(known().count()) as f64,
            cap: p(last),
        };
        self.check(first, listed, all, &rest)?;
        let rest = Rest { most: rest.most.min(rest.n * rest.cap + SLACK), ..rest };

        let entropy: f64 = known().map(|choice| surprise(p(choice))).sum();
        let entropy = (entropy + rest.packed(rest.least, surprise), entropy + rest.spread(rest.most, surprise));
        let second: f64 = known().map(|choice| square_surprise(p(choice))).sum();
        let second = (second + rest.packed(rest.least, square_surprise), second + rest.spread(rest.most, square_surprise));
        let varentropy = ((second.0 - entropy.1 * entropy.1).max(0.0), (second.1 - entropy.0 * entropy.0).max(0.0));

        // 1 - 2 p + sum p^2 without the cancellation of a p near 1.
        let not_target = -f64::from(target.logprob).exp_m1();
        let squares: f64 = known().filter(|choice| choice.id != target.id).map(|choice| p(choice).powi(2)).sum();
        let squares = not_target * not_target + squares;
        let square = |x: f64| x * x;
        let grad = (
            (squares + rest.spread(rest.least, square)).sqrt() - SLACK,
            (squares + rest.packed(rest.most, square)).sqrt() + SLACK,
        );

        let bounds = Bounds {
            entropy: Range::new((entropy.0 - SLACK).max(0.0), (entropy.1 + SLACK).min((vocab as f64).ln())),
            tail: self.tail(&rest, vocab),
            varentropy: Range::new(varentropy.0, varentropy.1 + SLACK),
            grad: Range::new(grad.0.max(0.0), grad.1),
        };
        let mut next = top.iter().skip(1).filter(|choice| choice.logprob.is_finite()).copied();
        let larger = top.iter().filter(|choice| choice.logprob > target.logprob).count() as u32;
        let statistics = TokenStatistics {
            logprob: target.logprob,
            entropy: bounds.entropy.middle(),
            entropy_topk: self.entropy_topk() as f32,
            rank: match self.has_target() {
                true => 1 + larger,
                false => self.rank.unwrap_or(0).max(1 + larger),
            },
            tail: bounds.tail.middle(),
            varentropy: bounds.varentropy.middle(),
            grad: bounds.grad.middle(),
            top_id: first.id,
            top_logprob: first.logprob,
            next: [(); NEXT_CHOICES].map(|()| next.next().unwrap_or_default()),
        };
        Ok((statistics, bounds))
    }

    /// Are these the largest of one distribution over the vocabulary?
    fn check(&self, first: &Choice, listed: f64, all: f64, rest: &Rest) -> Result<()> {
        let raw =
            "The server gives raw or altered logits: start it without --logprobs-mode, or with --logprobs-mode raw_logprobs.";
        if first.logprob > SLACK as f32 {
            return Err(Error::new(format!("expected log-probabilities, found {} (above 0)", first.logprob)).cure(raw));
        }
        if listed > 1.0 + 1e-3 {
            return Err(Error::new(format!(
                "the {} largest probabilities of a position add up to {listed:.4}; expected 1 at most",
                self.top.len()
            ))
            .cure(raw));
        }
        let most = all + rest.n * rest.cap;
        if most < 1.0 - 1e-3 {
            return Err(Error::new(format!(
                "the {} largest probabilities of a position add up to {listed:.2e}, and the {} other tokens, none more probable than the \
                 last of them, cannot make that 1",
                self.top.len(),
                rest.n
            ))
            .cure(raw));
        }
        Ok(())
    }

    /// Mass of the tokens no more probable than the target.
    fn tail(&self, rest: &Rest, vocab: usize) -> Range {
        let p = |choice: &Choice| f64::from(choice.logprob).exp();
        let own: f64 = self.top.iter().filter(|choice| choice.logprob <= self.target.logprob).map(p).sum();
        if self.has_target() {
            // Nothing that is not listed is more probable than what is.
            return Range::new(own + rest.least, (own + rest.most).min(1.0));
        }
        // Of the tokens that are not listed only so many can be more probable than the target, none more than the last that is.
        let target = p(&self.target);
        let unlisted = vocab.saturating_sub(self.top.len());
        let larger = self.rank.map_or(unlisted, |rank| (rank as usize).saturating_sub(1 + self.top.len())) as f64;
        let least = (rest.least - larger * rest.cap).max(0.0) + target;
        let most = (rest.most + target).min(target * unlisted as f64 + SLACK);
        Range::new(own + least, (own + most).min(1.0))
    }

    /// As [`TokenStatistics::entropy_topk`], of the first [`LEAST_TOP_K`].
    fn entropy_topk(&self) -> f64 {
        let top = &self.top[..self.top.len().min(LEAST_TOP_K)];
        let largest = top.first().map_or(0.0, |choice| f64::from(choice.logprob));
        let (mut sum, mut sum_shifted) = (0.0, 0.0);
        for d in top.iter().map(|choice| f64::from(choice.logprob) - largest).filter(|d| d.is_finite()) {
            sum += d.exp();
            sum_shifted += d.exp() * d;
        }
        (sum.ln() - sum_shifted / sum) / (top.len() as f64).ln()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kernels::statistics::statistics_of_logits;
    use crate::random::SplitMix;

    /// What a server with `--max-logprobs K` says of these logits.
    fn position(logits: &[f32], target: u32, k: usize, with_rank: bool) -> Position {
        let largest = logits.iter().copied().fold(f32::NEG_INFINITY, f32::max);
        let sum: f64 = logits.iter().map(|&logit| f64::from(logit - largest).exp()).sum();
        let logprob = |id: u32| (f64::from(logits[id as usize] - largest) - sum.ln()) as f32;
        let mut ids: Vec<u32> = (0..logits.len() as u32).collect();
        ids.sort_by(|&a, &b| logits[b as usize].total_cmp(&logits[a as usize]).then(a.cmp(&b)));
        let choice = |id: u32| Choice { id, logprob: logprob(id) };
        let rank = logits.iter().filter(|&&logit| logit >= logits[target as usize]).count() as u32;
        Position { target: choice(target), rank: with_rank.then_some(rank), top: ids[..k].iter().map(|&id| choice(id)).collect() }
    }

    /// Logits of a shape that the number decides: flat, peaked, heavy-tailed, with ties.
    fn logits(random: &mut SplitMix, i: usize) -> Vec<f32> {
        let n = 40 + random.below(3000) as usize;
        let scale = [0.01, 0.5, 2.0, 5.0, 12.0][i % 5];
        let mut normal = || {
            let mut unit = || (random.next() >> 11) as f64 / (1u64 << 53) as f64;
            (-2.0 * unit().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()
        };
        (0..n)
            .map(|v| match i % 3 {
                0 => (normal() * scale) as f32,
                // Zipf's law, as words have it.
                1 => (-(v as f64 + 1.0).ln() * (0.5 + scale) + 0.1 * normal()) as f32,
                // One zero, not two.
                _ => ((normal() * scale * 2.0).round() / 2.0 + 0.0) as f32,
            })
            .collect()
    }

    #[test]
    fn the_truth_lies_within_the_bounds_of_a_thousand_distributions() {
        let mut random = SplitMix(19);
        let (mut widths, mut told) = (Vec::new(), 0);
        for k in [20, 40, 100] {
            let (mut width, mut n) = (0.0, 0.0);
            for i in 0..1000 {
                let logits = logits(&mut random, i);
                let k = k.min(logits.len());
                // Targets from the head, the middle and anywhere.
                let target = random.below([5, 60, logits.len() as u32][i % 3].min(logits.len() as u32));
                let truth = statistics_of_logits(&logits, target, LEAST_TOP_K);
                for with_rank in [false, true] {
                    let position = position(&logits, target, k, with_rank);
                    let (found, bounds) = position.statistics(logits.len()).unwrap();
                    let within = |range: Range, truth: f32| range.lo <= truth && truth <= range.hi;
                    // The truth is rounded to f32 once more: a few parts in ten million of numbers up to 8 nats, and of their squares.
                    let near = |range: Range, by: f32| Range { lo: range.lo - by, hi: range.hi + by };
                    assert!(within(near(bounds.entropy, 1e-6), truth.entropy), "{i}: {bounds:?} {truth:?}");
                    assert!(within(near(bounds.tail, 1e-7), truth.tail), "{i}: {bounds:?} {truth:?}");
                    assert!(within(near(bounds.varentropy, 1e-4), truth.varentropy), "{i}: {bounds:?} {truth:?}");
                    assert!(within(bounds.grad, truth.grad), "{i}: {bounds:?} {truth:?}");
                    assert!((found.entropy_topk - truth.entropy_topk).abs() < 2e-6, "{i}: {found:?} {truth:?}");
                    assert!((found.logprob - truth.logprob).abs() <= 1e-6 * truth.logprob.abs().max(1.0));
                    // Logits that differ may have one logarithm in f32, and which came first is then not told.
                    let logit = |choice: &Choice| logits[choice.id as usize];
                    let collide = |a: &Choice, b: &Choice| a.logprob == b.logprob && logit(a) != logit(b);
                    let is_told = !position.top.windows(2).any(|pair| collide(&pair[0], &pair[1]));
                    if is_told {
                        assert_eq!(
                            (found.top_id, found.next.map(|next| next.id)),
                            (truth.top_id, truth.next.map(|next| next.id))
                        );
                        told += 1;
                    }
                    if position.has_target() && is_told {
                        assert_eq!(found.rank, truth.rank);
                        assert!((found.tail - truth.tail).abs() <= 5e-6, "{i}: {found:?} {truth:?}");
                    } else if with_rank && !position.has_target() {
                        assert!(found.rank >= truth.rank);
                    }
                    if with_rank {
                        width += f64::from(bounds.entropy.width());
                        n += 1.0;
                    }
                }
            }
            println!("K {k}: H within {:.4} nat on the mean", width / n);
            widths.push(width / n);
        }
        assert!(told > 4000, "{told}");
        // More of them say more.
        assert!(widths[0] > widths[1] && widths[1] > widths[2], "{widths:?}");
    }

    #[test]
    fn bounds_by_hand() {
        // Twenty tokens of 0.04 each, and 0.2 over 100 others of at most 0.04: five of them, or all alike.
        let logprob = 0.04f32.ln();
        let top: Vec<Choice> = (0..20).map(|id| Choice { id, logprob }).collect();
        let inside = Position { target: top[3], rank: Some(20), top };
        let (statistics, bounds) = inside.statistics(120).unwrap();
        let expected = [25.0 * 0.04 * -(0.04f64.ln()), 20.0 * 0.04 * -(0.04f64.ln()) - 0.2 * (0.2f64 / 100.0).ln()];
        for (found, expected) in [bounds.entropy.lo, bounds.entropy.hi].into_iter().zip(expected) {
            // Half of a hundred-thousandth: the slack of 2e-6 of mass is worth that much of entropy.
            assert!((f64::from(found) - expected).abs() < 5e-5, "{found} {expected}");
        }
        // Ties are in the tail, and so is all that is not listed.
        assert!((statistics.tail - 1.0).abs() < 1e-5 && statistics.rank == 1);
        assert!((statistics.entropy_topk - 1.0).abs() < 1e-6);
        // sqrt(1 - 2 p + sum p^2), with 5 at 0.04 more, or 100 at 0.002.
        let grad = |rest: f64| (1.0 - 0.08 + 20.0 * 0.0016 + rest).sqrt();
        assert!((f64::from(bounds.grad.hi) - grad(5.0 * 0.0016)).abs() < 1e-5);
        assert!((f64::from(bounds.grad.lo) - grad(100.0 * 4e-6)).abs() < 1e-5);

        // A target of 0.01 that is not among them, the 23rd: two others of at most 0.04 lie between.
        let outside = Position { target: Choice { id: 50, logprob: 0.01f32.ln() }, rank: Some(23), ..inside };
        let (statistics, bounds) = outside.statistics(120).unwrap();
        assert_eq!(statistics.rank, 23);
        assert!((bounds.tail.lo - (0.2 - 2.0 * 0.04)).abs() < 1e-5 && (bounds.tail.hi - 0.2).abs() < 1e-5, "{bounds:?}");
        let (_, bounds) = Position { rank: None, ..outside }.statistics(120).unwrap();
        assert!((bounds.tail.lo - 0.01).abs() < 1e-5, "{bounds:?}");
    }

    #[test]
    fn what_is_no_distribution_is_refused() {
        let listed = |logprob: f32| {
            let top: Vec<Choice> = (0..20).map(|id| Choice { id, logprob }).collect();
            Position { target: top[0], rank: None, top }.statistics(1000).unwrap_err().to_string()
        };
        assert!(listed(3.5).contains("found 3.5 (above 0)"), "{}", listed(3.5));
        assert!(listed(-1.0).contains("add up to 7.3576"), "{}", listed(-1.0));
        assert!(listed(-12.0).contains("cannot make that 1"), "{}", listed(-12.0));
        assert!(listed(-12.0).contains("--logprobs-mode"));
    }
}
