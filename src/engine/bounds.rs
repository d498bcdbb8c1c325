//! Bounds on the statistics of a distribution of which only the largest probabilities are known.
//!
//! A server returns the K largest log-probabilities, and the target's. The other `V - K` tokens share the remaining mass `m`, and none of
//! them is more probable than the K-th, `c`. Among all distributions that fit, the one with as many tokens of probability `c` as `m` allows
//! has the least entropy and the largest `sum p^2`, and the one that divides `m` evenly has the largest entropy and the least `sum p^2`:
//! `x ln x` and `x^2` are convex, and `x (ln x)^2` is concave below 1/e.

use crate::error::{Error, Result};
use crate::kernels::{Choice, NEXT_CHOICES, TokenStatistics};

/// The K of the EAFT gate, [`TOP_K`](crate::engine::TOP_K): fewer are refused, so `entropy_topk` is exact.
pub const LEAST_TOP_K: usize = 20;

/// The error of a sum of a few hundred probabilities whose logarithms are f32, from a softmax in f32.
const SLACK: f64 = 2e-6;
/// A mass that is further than this from the possible values did not come from a softmax in f32, and the bounds would be invalid. Smaller
/// deviations widen them.
const MOST_EXCESS: f64 = 1e-5;
/// The errors of the statistics themselves when summed in f32: parts in ten million of a few nats, of 1, and of squares of nats.
const ENTROPY_ROUNDING: f64 = 1e-6;
const TAIL_ROUNDING: f64 = 1e-7;
const VARENTROPY_ROUNDING: f64 = 1e-4;

/// What is known of one position: the target's ln p, and the K largest of its distribution.
#[derive(Debug, Clone, PartialEq)]
pub struct Position {
    /// The token in the data, with its ln p.
    pub target: Choice,
    /// 1 + the number of tokens that are at least as probable, if the server returns it.
    pub rank: Option<u32>,
    /// The most probable tokens first, the lowest id first among ties; may include the target.
    pub top: Vec<Choice>,
}

/// The least and largest value that fit what is known.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Range {
    /// The least value, in the unit of the bounded statistic.
    pub lo: f32,
    /// The largest value.
    pub hi: f32,
}

/// The ranges of the statistics that the largest probabilities do not determine. Units as in [`TokenStatistics`].
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Bounds {
    /// The entropy over the whole vocabulary, nats.
    pub entropy: Range,
    /// The probability mass of all tokens no more probable than the target.
    pub tail: Range,
    /// The variance of -ln p under the model.
    pub varentropy: Range,
    /// The L2 norm of the gradient of -ln p(target) with respect to the logits.
    pub grad: Range,
}

impl Range {
    fn new(lo: f64, hi: f64) -> Range {
        Range { lo: lo as f32, hi: hi.max(lo) as f32 }
    }

    /// The midpoint of the range.
    pub fn middle(self) -> f32 {
        self.lo + (self.hi - self.lo) / 2.0
    }

    /// The largest value minus the least.
    pub fn width(self) -> f32 {
        self.hi - self.lo
    }
}

/// The unknown tokens: `n` of them, each of probability at most `cap`, with a total mass between `least` and `most`.
struct Rest {
    /// The mass, which sums of f32 numbers do not determine exactly.
    least: f64,
    most: f64,
    n: f64,
    cap: f64,
    /// The possible error of the sum of all probabilities.
    slack: f64,
}

impl Rest {
    /// The sum of `f` if as many tokens as possible have the probability `cap`, and one the rest of `mass`.
    fn packed(&self, mass: f64, f: impl Fn(f64) -> f64) -> f64 {
        if mass <= 0.0 || self.cap <= 0.0 {
            return 0.0;
        }
        let full = (mass / self.cap).floor();
        full * f(self.cap) + f(mass - full * self.cap)
    }

    /// The sum of `f` if all have the same probability.
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

/// What an engine has to return for each position.
#[derive(Debug, Clone, Copy)]
pub struct TopTokens {
    /// The number of most probable tokens.
    pub top_k: usize,
    /// The size of the vocabulary; ids are below it.
    pub vocab: usize,
}

impl Position {
    /// Builds the position of the token at index `at` of a prompt from an engine's answer, and checks its consistency: the target, and the
    /// most probable tokens in any order.
    pub(crate) fn new(
        at: usize,
        target: Choice,
        rank: Option<u32>,
        mut top: Vec<Choice>,
        TopTokens { top_k, vocab }: TopTokens,
    ) -> Result<Position> {
        if [&target].into_iter().chain(&top).any(|choice| choice.logprob.is_nan()) {
            return Err(Error::new(format!("a log-probability at token {at} is not a number")));
        }
        if let Some(choice) = [&target].into_iter().chain(&top).find(|choice| choice.id as usize >= vocab) {
            return Err(Error::new(format!(
                "the server's model has a token {}, the tokenizer ends before {vocab}: they do not match",
                choice.id
            ))
            .cure("Pass the folder of exactly the served model with --model."));
        }
        top.sort_by_key(|choice| choice.id);
        if let Some(pair) = top.windows(2).find(|pair| pair[0].id == pair[1].id) {
            return Err(Error::new(format!("id {} appears twice among the most probable tokens at token {at}", pair[0].id)));
        }
        if let Some(listed) = top.iter().find(|choice| choice.id == target.id && choice.logprob != target.logprob) {
            return Err(Error::new(format!(
                "token {at} (id {}) has ln p {}, and {} among the most probable ones: the two lists are misaligned",
                target.id, target.logprob, listed.logprob
            )));
        }
        top.sort_by(|a, b| b.logprob.total_cmp(&a.logprob).then(a.id.cmp(&b.id)));
        if top.len() != top_k {
            return Err(Error::new(format!(
                "expected the {top_k} most probable tokens at token {at}, found {}: entries are missing",
                top.len()
            ))
            .cure("Start the server with --max-logprobs set to that number or more."));
        }
        let position = Position { target, rank, top };
        let Some(last) = position.top.last().filter(|_| !position.has_target()) else { return Ok(position) };
        if target.logprob > last.logprob {
            return Err(Error::new(format!(
                "token {at} has ln p {}, is not among the {top_k} most probable ones, and the last of them has {}",
                target.logprob, last.logprob
            )));
        }
        // If it is less probable than all listed tokens, it ranks after them.
        let fits = |rank: u32| top_k < rank as usize && rank as usize <= vocab;
        match rank {
            Some(rank) if target.logprob < last.logprob && !fits(rank) => Err(Error::new(format!(
                "token {at} is less probable than the {top_k} most probable ones, and has rank {rank} of {vocab}"
            ))),
            _ => Ok(position),
        }
    }

    /// Whether no unlisted token is more probable than the target. This includes a tie with the last listed token.
    fn is_among_most_probable(&self) -> bool {
        self.has_target() || self.top.last().is_some_and(|last| self.target.logprob >= last.logprob)
    }

    /// Whether the target is among the most probable tokens.
    pub(crate) fn has_target(&self) -> bool {
        self.top.iter().any(|choice| choice.id == self.target.id)
    }

    /// The statistics, with unknown ones at the midpoint of their bounds, and the bounds. `vocab` is the number of tokens that share the
    /// mass. Returns an error if no distribution has these as its largest log-probabilities.
    pub fn statistics(&self, vocab: usize) -> Result<(TokenStatistics, Bounds)> {
        let Position { target, top, .. } = self;
        let p = |choice: &Choice| f64::from(choice.logprob).exp();
        let outside = if self.has_target() { None } else { Some(target) };
        let known = || top.iter().chain(outside);
        let (Some(first), Some(last)) = (top.first(), top.last()) else {
            return Err(Error::new("the position has no most probable tokens"));
        };
        let (listed, all): (f64, f64) = (top.iter().map(p).sum(), known().map(p).sum());
        let (n, cap) = (vocab.saturating_sub(known().count()) as f64, p(last));
        let slack = SLACK + self.excess(first, listed, all, n * cap)?;
        let rest =
            Rest { least: (1.0 - all - slack).max(0.0), most: (1.0 - all + slack).max(0.0).min(n * cap + slack), n, cap, slack };

        let entropy: f64 = known().map(|choice| surprise(p(choice))).sum();
        let entropy = (entropy + rest.packed(rest.least, surprise), entropy + rest.spread(rest.most, surprise));
        let second: f64 = known().map(|choice| square_surprise(p(choice))).sum();
        let second = (second + rest.packed(rest.least, square_surprise), second + rest.spread(rest.most, square_surprise));
        let varentropy = ((second.0 - entropy.1 * entropy.1).max(0.0), (second.1 - entropy.0 * entropy.0).max(0.0));

        // 1 - 2 p + sum p^2, without cancellation if p is close to 1.
        let not_target = -f64::from(target.logprob).exp_m1();
        let squares: f64 = known().filter(|choice| choice.id != target.id).map(|choice| p(choice).powi(2)).sum();
        let squares = not_target * not_target + squares;
        let square = |x: f64| x * x;
        let grad = (
            (squares + rest.spread(rest.least, square)).sqrt() - slack,
            (squares + rest.packed(rest.most, square)).sqrt() + slack,
        );

        let entropy = (entropy.0 - slack - ENTROPY_ROUNDING, entropy.1 + slack + ENTROPY_ROUNDING);
        let bounds = Bounds {
            entropy: Range::new(entropy.0.max(0.0), entropy.1.min((vocab as f64).ln() + ENTROPY_ROUNDING)),
            tail: self.tail(&rest, vocab)?,
            varentropy: Range::new((varentropy.0 - VARENTROPY_ROUNDING).max(0.0), varentropy.1 + slack + VARENTROPY_ROUNDING),
            grad: Range::new(grad.0.max(0.0), grad.1),
        };
        let mut next = top.iter().skip(1).filter(|choice| choice.logprob.is_finite()).copied();
        let larger = top.iter().filter(|choice| choice.logprob > target.logprob).count() as u32;
        let statistics = TokenStatistics {
            logprob: target.logprob,
            entropy: bounds.entropy.middle(),
            entropy_topk: self.entropy_topk() as f32,
            rank: match self.is_among_most_probable() {
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

    /// How far the mass of all tokens is from 1, if the unlisted tokens have at most `rest`. Returns an error if that exceeds rounding,
    /// because the input is then not the largest probabilities of one distribution over the vocabulary.
    fn excess(&self, first: &Choice, listed: f64, all: f64, rest: f64) -> Result<f64> {
        let raw =
            "The server returns raw or altered logits: start it without --logprobs-mode, or with --logprobs-mode raw_logprobs.";
        if first.logprob > SLACK as f32 {
            return Err(Error::new(format!("expected log-probabilities, found {} (above 0)", first.logprob)).cure(raw));
        }
        let (most, n) = (all + rest, self.top.len());
        let excess = (all - 1.0).max(1.0 - most).max(0.0);
        if excess <= MOST_EXCESS {
            return Ok(excess);
        }
        // Rounding logarithms of a few nats to sixteen bits causes such an error.
        if excess < 0.02 {
            return Err(Error::new(format!(
                "the probabilities of a position add up to {:.6} instead of 1: they were rounded more coarsely than f32, so values that the server does not report cannot be bounded",
                if all > 1.0 { all } else { most }
            ))
            .cure("Have the server compute its logits and log-probabilities in f32 (SGLang: --enable-fp32-lm-head)."));
        }
        if listed > 1.0 {
            return Err(Error::new(format!(
                "the {n} largest probabilities of a position add up to {listed:.4}; expected at most 1"
            ))
            .cure(raw));
        }
        if all > 1.0 {
            return Err(Error::new(format!(
                "the {n} largest probabilities of a position and the target's add up to {all:.4}; expected at most 1"
            ))
            .cure(raw));
        }
        Err(Error::new(format!(
            "the {n} largest probabilities of a position add up to {listed:.2e}, and the other tokens, none more probable than the last of \
             them, cannot complete that to 1"
        ))
        .cure(raw))
    }

    /// The mass of the tokens no more probable than the target.
    fn tail(&self, rest: &Rest, vocab: usize) -> Result<Range> {
        let p = |choice: &Choice| f64::from(choice.logprob).exp();
        let outside = if self.has_target() { None } else { Some(&self.target) };
        let listed = self.top.iter().chain(outside).filter(|choice| choice.logprob <= self.target.logprob);
        let own: f64 = listed.map(p).sum();
        let range =
            |least: f64, most: f64| Range::new((own + least - TAIL_ROUNDING).max(0.0), (own + most + TAIL_ROUNDING).min(1.0));
        if self.is_among_most_probable() {
            // No unlisted token is more probable than the listed ones.
            return Ok(range(rest.least, rest.most));
        }
        // At most this many of the unlisted tokens can be more probable than the target, none more than the last listed one.
        let others = vocab.saturating_sub(self.top.len() + 1);
        let larger = self.rank.map_or(others, |rank| (rank as usize).saturating_sub(1 + self.top.len())) as f64;
        let least = (rest.least - larger * rest.cap).max(0.0);
        let most = rest.most.min(p(&self.target) * others as f64 + rest.slack);
        if least > most + rest.slack {
            let rank = self.rank.map_or_else(|| "any rank".to_owned(), |rank| format!("rank {rank}"));
            return Err(Error::new(format!(
                "a token of ln p {} has {rank}, and those after it a mass of {least:.2e}, which is more than possible: the reply does not describe one distribution",
                self.target.logprob
            )));
        }
        Ok(range(least, most))
    }

    /// Like [`TokenStatistics::entropy_topk`], of the first [`LEAST_TOP_K`].
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

    /// The answer of a server with `--max-logprobs K` for these logits.
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

    /// Logits whose shape depends on the index: flat, peaked, heavy-tailed, with ties.
    fn logits(random: &mut SplitMix, i: usize) -> Vec<f32> {
        let n = 40 + random.below(3000) as usize;
        let scale = [0.01, 0.5, 2.0, 5.0, 12.0][i % 5];
        let mut normal = || {
            let mut unit = || random.unit();
            (-2.0 * unit().max(1e-12).ln()).sqrt() * (std::f64::consts::TAU * unit()).cos()
        };
        (0..n)
            .map(|v| match i % 3 {
                0 => (normal() * scale) as f32,
                // Zipf's law, as for words.
                1 => (-(v as f64 + 1.0).ln() * (0.5 + scale) + 0.1 * normal()) as f32,
                // Avoids negative zero.
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
                // Targets among the most probable, in the middle and anywhere.
                let target = random.below([5, 60, logits.len() as u32][i % 3].min(logits.len() as u32));
                let truth = statistics_of_logits(&logits, target, LEAST_TOP_K);
                for with_rank in [false, true] {
                    let position = position(&logits, target, k, with_rank);
                    let (found, bounds) = position.statistics(logits.len()).unwrap();
                    let within = |range: Range, truth: f32| range.lo <= truth && truth <= range.hi;
                    assert!(within(bounds.entropy, truth.entropy), "{i}: {bounds:?} {truth:?}");
                    assert!(within(bounds.tail, truth.tail), "{i}: {bounds:?} {truth:?}");
                    assert!(within(bounds.varentropy, truth.varentropy), "{i}: {bounds:?} {truth:?}");
                    assert!(within(bounds.grad, truth.grad), "{i}: {bounds:?} {truth:?}");
                    assert!((found.entropy_topk - truth.entropy_topk).abs() < 2e-6, "{i}: {found:?} {truth:?}");
                    assert!((found.logprob - truth.logprob).abs() <= 1e-6 * truth.logprob.abs().max(1.0));
                    // Different logits may have the same logarithm in f32, and their order is then unknown.
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
        // Larger K give narrower bounds.
        assert!(widths[0] > widths[1] && widths[1] > widths[2], "{widths:?}");
    }

    #[test]
    fn bounds_by_hand() {
        // Twenty tokens of 0.04 each, and 0.2 over 100 others of at most 0.04: five of them, or all with equal shares.
        let logprob = 0.04f32.ln();
        let top: Vec<Choice> = (0..20).map(|id| Choice { id, logprob }).collect();
        let inside = Position { target: top[3], rank: Some(20), top };
        let (statistics, bounds) = inside.statistics(120).unwrap();
        let expected = [25.0 * 0.04 * -(0.04f64.ln()), 20.0 * 0.04 * -(0.04f64.ln()) - 0.2 * (0.2f64 / 100.0).ln()];
        for (found, expected) in [bounds.entropy.lo, bounds.entropy.hi].into_iter().zip(expected) {
            // Half of a ten-thousandth: the slack of 2e-6 of mass corresponds to that much entropy.
            assert!((f64::from(found) - expected).abs() < 5e-5, "{found} {expected}");
        }
        // The tail includes ties and all unlisted tokens.
        assert!((statistics.tail - 1.0).abs() < 1e-5 && statistics.rank == 1);
        assert!((statistics.entropy_topk - 1.0).abs() < 1e-6);
        // sqrt(1 - 2 p + sum p^2), with 5 more tokens at 0.04, or 100 at 0.002.
        let grad = |rest: f64| (1.0 - 0.08 + 20.0 * 0.0016 + rest).sqrt();
        assert!((f64::from(bounds.grad.hi) - grad(5.0 * 0.0016)).abs() < 1e-5);
        assert!((f64::from(bounds.grad.lo) - grad(100.0 * 4e-6)).abs() < 1e-5);

        // An unlisted target of 0.01 with rank 23: two unlisted tokens of at most 0.04 come before it.
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
        assert!(listed(-12.0).contains("cannot complete that to 1"), "{}", listed(-12.0));
        assert!(listed(-12.0).contains("--logprobs-mode"));
        // Rounded to bf16: too coarse for bounds, which the error says.
        assert!(listed((0.05f32 * 1.001).ln()).contains("rounded more coarsely"), "{}", listed((0.05f32 * 1.001).ln()));
    }

    #[test]
    fn what_is_no_position_is_refused() {
        const VOCAB: usize = 64;
        let listed = || -> Vec<Choice> { (0..20).map(|id| Choice { id, logprob: -1.5625 - 0.25 * id as f32 }).collect() };
        let new = |target: u32, logprob: f32, rank: Option<u32>, top: Vec<Choice>| {
            Position::new(7, Choice { id: target, logprob }, rank, top, TopTokens { top_k: 20, vocab: VOCAB })
                .map_err(|error| error.to_string())
        };
        let refused = |found: Result<Position, String>, message: &str| {
            let error = found.unwrap_err();
            assert!(error.contains(message), "{error}");
        };
        assert!(new(3, -2.3125, Some(4), listed()).is_ok() && new(40, -7.0, Some(21), listed()).is_ok());
        // The same id twice, with very different ln p.
        let mut twice = listed();
        twice[17].id = 2;
        refused(new(3, -2.3125, Some(4), twice), "id 2 appears twice");
        refused(new(3, -2.5, Some(4), listed()), "misaligned");
        refused(new(64, -7.0, Some(30), listed()), "has a token 64");
        let mut beyond = listed();
        beyond[5].id = 70;
        refused(new(3, -2.3125, Some(4), beyond), "has a token 70");
        refused(new(40, -7.0, Some(20), listed()), "has rank 20 of 64");
        refused(new(40, -7.0, Some(65), listed()), "has rank 65 of 64");
        refused(new(40, -2.0, Some(30), listed()), "is not among the 20 most probable ones");
        refused(new(3, -2.3125, Some(4), listed()[1..].to_vec()), "found 19: entries are missing");
        // A tie with the last listed token has no rank to check, and is as exact as the listed tokens.
        let tie = new(40, -6.3125, Some(30), listed()).unwrap();
        let (statistics, bounds) = tie.statistics(VOCAB).unwrap();
        assert_eq!(statistics.rank, 20);
        assert!(bounds.tail.width() < 1e-4, "{bounds:?}");
        // With twenty-one tokens before it, those after it would need more mass than they can have.
        let top: Vec<Choice> = (0..20).map(|id| Choice { id, logprob: 0.01f32.ln() }).collect();
        let target = Choice { id: 40, logprob: -20.0 };
        let impossible =
            Position::new(7, target, Some(21), top, TopTokens { top_k: 20, vocab: 1000 }).unwrap().statistics(1000).unwrap_err();
        assert!(impossible.to_string().contains("more than possible"), "{impossible}");
    }
}
