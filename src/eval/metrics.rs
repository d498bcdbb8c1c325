//! Computes metrics from log-likelihoods and verdicts, as sums over items.
//!
//! The metrics are those of lm-evaluation-harness (`lm_eval/api/task.py`, `ConfigurableTask.process_results`): `acc` takes the
//! choice with the highest log-likelihood, `acc_norm` the highest per character of the choice, `acc_bytes` per UTF-8 byte; ties
//! go to the first. Written answers come with their verdicts (`written/`); if a question has several, the share of right ones
//! counts, and in addition `pass@k`, the probability that at least one of k is right: 1 - C(n-c, k) / C(n, k) with c of n right,
//! which is unbiased (arXiv 2107.03374, section 2.1). Perplexities are per item (LAMBADA), per word (`re.split(r"\s+", text)`) or
//! per byte of the text.

use super::tasks::TaskKind;
use super::written::Verdict;
use crate::engine::generate::Ended;
use crate::stats::{Link, Term};

/// The model's results on one item, or on one window of a text.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Sample {
    /// The item's id, unique in its task.
    pub id: String,
    /// The part of the task that the item belongs to.
    pub subject: Option<String>,
    /// The group of items that were drawn together.
    pub group: Option<String>,
    /// The index of the right choice.
    pub answer: u32,
    /// The results for each choice; empty if the model writes its answers.
    pub choices: Vec<ChoiceScore>,
    /// SHA-256 of the text before the answer, or of the first one if the choices are contexts: the harness's `prompt_hash`.
    /// `None` for a text.
    pub prompt_sha256: Option<String>,
    /// The answers that the model wrote, in order.
    pub draws: Vec<Draw>,
}

/// A written answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Draw {
    /// The text that was judged.
    pub text: String,
    /// The number of generated tokens, including the end token.
    pub tokens: u32,
    /// Why the answer ended.
    pub ended: Ended,
    /// The verdicts on the answer, one for each metric of the task.
    pub verdicts: Vec<Verdict>,
}

/// The model's results for one choice of an item.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChoiceScore {
    /// ln P(continuation | context)
    pub logprob: f64,
    /// Is every token of the continuation the model's most probable one?
    pub greedy: bool,
    /// The number of tokens of the continuation.
    pub tokens: u32,
    /// The number of characters of the choice, without the space before it.
    pub chars: u32,
    /// The number of bytes of the choice in UTF-8.
    pub bytes: u32,
    /// The number of words of the choice, separated by white space.
    pub words: u32,
}

impl ChoiceScore {
    /// Adds the results of the continuation that follows.
    pub(super) fn join(&mut self, next: &ChoiceScore) {
        let ChoiceScore { logprob, greedy, tokens, chars, bytes, words } = *next;
        self.logprob += logprob;
        self.greedy &= greedy;
        self.tokens += tokens;
        self.chars += chars;
        self.bytes += bytes;
        self.words += words;
    }
}

/// A metric of a task with its value for each item.
#[derive(Clone)]
pub struct Metric {
    /// The name in files.
    pub name: String,
    /// The function that turns the ratio of sums into the metric.
    pub link: Link,
    /// Is a lower value better, as for a perplexity?
    pub lower_is_better: bool,
    /// Is it an accuracy between 0 and 1, which is shown in per cent? A mean on another scale, such as BLEU, is not.
    pub is_share: bool,
    /// The contribution of each item, in the order of the items.
    pub terms: Vec<Term>,
}

/// All metrics for a kind of task; the first is the primary one, unless [`primary`] says otherwise.
pub fn metrics(kind: TaskKind, samples: &[Sample]) -> Vec<Metric> {
    let share = |name: &str, right: &dyn Fn(&Sample) -> bool| Metric {
        name: name.to_owned(),
        link: Link::Identity,
        lower_is_better: false,
        is_share: true,
        terms: samples.iter().map(|sample| Term { numerator: f64::from(u8::from(right(sample))), denominator: 1.0 }).collect(),
    };
    // The loss in nats, or in bits if `unit` is ln 2, divided by `denominator`.
    let loss = |name: &str, link, unit: f64, denominator: &dyn Fn(&ChoiceScore) -> f64| Metric {
        name: name.to_owned(),
        link,
        lower_is_better: true,
        is_share: false,
        terms: samples
            .iter()
            .map(|sample| Term { numerator: -sample.choices[0].logprob / unit, denominator: denominator(&sample.choices[0]) })
            .collect(),
    };
    let bytes = |score: &ChoiceScore| f64::from(score.bytes);
    match kind {
        TaskKind::Choice => vec![
            share("acc", &|sample| sample.is_right(|_| 1.0)),
            share("acc_norm", &|sample| sample.is_right(|score| f64::from(score.chars))),
            share("acc_bytes", &|sample| sample.is_right(bytes)),
        ],
        TaskKind::Partial => vec![share("acc", &|sample| sample.is_right(|_| 1.0))],
        TaskKind::LastWord => {
            vec![share("acc", &|sample| sample.choices[0].greedy), loss("perplexity", Link::Exp, 1.0, &|_| 1.0)]
        }
        TaskKind::Text => vec![
            loss("bits_per_byte", Link::Identity, std::f64::consts::LN_2, &bytes),
            loss("byte_perplexity", Link::Exp, 1.0, &bytes),
            loss("word_perplexity", Link::Exp, 1.0, &|score| f64::from(score.words)),
        ],
        TaskKind::Written => written(samples),
        TaskKind::Rows => vec![
            loss("cross_entropy", Link::Identity, 1.0, &|score| f64::from(score.tokens)),
            loss("perplexity", Link::Exp, 1.0, &|score| f64::from(score.tokens)),
        ],
    }
}

/// The metrics of the verdicts, in their order.
fn written(samples: &[Sample]) -> Vec<Metric> {
    let Some(first) = samples.first().and_then(|sample| sample.draws.first()) else { return Vec::new() };
    let n = samples.iter().map(|sample| sample.draws.len()).min().unwrap_or(0) as u32;
    let mut metrics = Vec::new();
    for (idx, Verdict { metric, .. }) in first.verdicts.iter().enumerate() {
        let counts = |sample: &Sample| {
            let of_metric = sample.draws.iter().filter_map(|draw| draw.verdicts.get(idx));
            of_metric.fold([0, 0], |[right, of], verdict| [right + verdict.right, of + verdict.of])
        };
        let metric_of = |name: String, term: &dyn Fn(&Sample) -> Term| Metric {
            name,
            link: Link::Identity,
            lower_is_better: false,
            is_share: true,
            terms: samples.iter().map(term).collect(),
        };
        metrics.push(metric_of(metric.clone(), &|sample| {
            let ([right, of], n) = (counts(sample), sample.draws.len() as f64);
            Term { numerator: f64::from(right) / n, denominator: f64::from(of) / n }
        }));
        // Where a metric counts several things per answer, the answer as a whole is neither right nor wrong.
        let is_of_answers = samples.iter().all(|sample| counts(sample)[1] as usize == sample.draws.len());
        for k in powers_of_two_to(if is_of_answers { n } else { 0 }) {
            let name = format!("pass@{k}({metric})");
            metrics.push(metric_of(name, &|sample| {
                let [right, of] = counts(sample);
                Term { numerator: pass_at(k, right, of), denominator: 1.0 }
            }));
        }
    }
    metrics
}

/// 2, 4, 8, .. below `n`, and `n` itself.
fn powers_of_two_to(n: u32) -> impl Iterator<Item = u32> {
    let powers = (1..32).map(|exponent| 1u32 << exponent).take_while(move |k| *k < n);
    powers.chain((n > 1).then_some(n))
}

/// The probability that at least one of `k` answers is right if `c` of `n` are: see the head of this module.
fn pass_at(k: u32, c: u32, n: u32) -> f64 {
    // C(n-c, k) / C(n, k) is the product of (1 - k / i) over i in n-c+1 ..= n.
    if n - c < k { 1.0 } else { 1.0 - ((n - c + 1)..=n).map(|i| 1.0 - f64::from(k) / f64::from(i)).product::<f64>() }
}

/// The primary metric, which is usually quoted and enters the macro average: the one per character for benchmarks whose answers
/// differ much in length. `None` if the task itself names it ([`Spec::primary`](super::written::Spec)).
pub fn primary(kind: TaskKind, task: &str) -> Option<&'static str> {
    Some(match kind {
        TaskKind::Written => return None,
        TaskKind::Choice if ["hellaswag", "arc_challenge", "openbookqa", "bbh"].iter().any(|name| task.starts_with(name)) => {
            "acc_norm"
        }
        TaskKind::Choice | TaskKind::Partial | TaskKind::LastWord => "acc",
        TaskKind::Text => "bits_per_byte",
        TaskKind::Rows => "cross_entropy",
    })
}

impl Sample {
    fn is_right(&self, length: impl Fn(&ChoiceScore) -> f64) -> bool {
        self.picked(length) == self.answer as usize
    }

    /// The choice with the highest log-likelihood per `length`; ties go to the first.
    pub fn picked(&self, length: impl Fn(&ChoiceScore) -> f64) -> usize {
        let mut best = (0, f64::NEG_INFINITY);
        for (idx, score) in self.choices.iter().enumerate() {
            let per_length = score.logprob / length(score);
            if per_length > best.1 {
                best = (idx, per_length);
            }
        }
        best.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::stats::ratio;

    fn sample(answer: u32, choices: &[(f64, u32, u32)]) -> Sample {
        let score = |&(logprob, chars, bytes)| ChoiceScore { logprob, chars, bytes, words: 2, ..ChoiceScore::default() };
        Sample { answer, choices: choices.iter().map(score).collect(), ..Sample::default() }
    }

    fn values(kind: TaskKind, samples: &[Sample]) -> Vec<(String, f64)> {
        metrics(kind, samples).iter().map(|metric| (metric.name.clone(), ratio(&metric.terms, metric.link))).collect()
    }

    #[track_caller]
    fn check(found: Vec<(String, f64)>, expected: &[(&str, f64)]) {
        let names = |values: &[(String, f64)]| values.iter().map(|(name, _)| name.clone()).collect::<Vec<_>>();
        assert_eq!(names(&found), expected.iter().map(|(name, _)| (*name).to_owned()).collect::<Vec<_>>());
        for ((name, found), (_, expected)) in found.iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{name}: {found} for {expected}");
        }
    }

    #[test]
    fn choices_by_sum_by_character_and_by_byte() {
        // Choice 0 wins by sum; -2 against -1 per character; -2 against -3 per byte.
        let by_all = sample(0, &[(-4.0, 2, 2), (-9.0, 9, 3)]);
        // A tie goes to the first.
        let tie = sample(1, &[(-3.0, 1, 1), (-3.0, 1, 1)]);
        check(values(TaskKind::Choice, &[by_all, tie]), &[("acc", 0.5), ("acc_norm", 0.0), ("acc_bytes", 0.5)]);
    }

    #[test]
    fn texts_by_byte_and_by_word() {
        // 8 nats on 4 bytes and 2 words, 4 ln 2 nats on 4 bytes and 2 words.
        let windows = [sample(0, &[(-8.0, 4, 4)]), sample(0, &[(-4.0 * 2f64.ln(), 4, 4)])];
        let nats = 8.0 + 4.0 * 2f64.ln();
        let expected = [
            ("bits_per_byte", nats / 2f64.ln() / 8.0),
            ("byte_perplexity", (nats / 8.0).exp()),
            ("word_perplexity", (nats / 4.0).exp()),
        ];
        check(values(TaskKind::Text, &windows), &expected);
    }

    fn answered(right: &[bool], parts: [u32; 2]) -> Sample {
        let draw = |&right: &bool| Draw {
            text: String::new(),
            tokens: 1,
            ended: Ended::Length,
            verdicts: vec![Verdict::of_answer("m", right), Verdict::of_parts("parts", parts[0], parts[1])],
        };
        Sample { draws: right.iter().map(draw).collect(), ..Sample::default() }
    }

    #[test]
    fn one_answer_is_right_or_wrong_and_of_several_one_in_k_is() {
        let single = [answered(&[true], [1, 2]), answered(&[false], [0, 3])];
        check(values(TaskKind::Written, &single), &[("m", 0.5), ("parts", 0.2)]);
        // 1 of 3 right: two of the three pairs contain it. 0 of 3 right: none do.
        let several = [answered(&[false, true, false], [1, 1]), answered(&[false; 3], [1, 1])];
        check(
            values(TaskKind::Written, &several),
            &[
                ("m", 1.0 / 6.0),
                ("pass@2(m)", 1.0 / 3.0),
                ("pass@3(m)", 0.5),
                ("parts", 1.0),
                ("pass@2(parts)", 1.0),
                ("pass@3(parts)", 1.0),
            ],
        );
    }

    /// The interval covers both sources of variance: 40 questions of very different difficulty, with 4 answers each.
    #[test]
    fn intervals_of_several_answers_cover_the_truth() {
        use crate::random::unit;
        use crate::stats::{Design, estimate};
        let (n_experiments, n_items, n_draws) = (400u64, 40u64, 4u64);
        // A question is answered correctly with probability u^3: most are hard. Over u in 0..1 its mean is 1/4, and that of at
        // least one right in two 2/4 - 1/7.
        let truths = [("m", 0.25), ("pass@2(m)", 0.5 - 1.0 / 7.0), ("pass@4(m)", 1.0 - four_wrong())];
        let (mut covered, mut covered_by_answers) = ([0.0; 3], 0.0);
        for experiment in 0..n_experiments {
            let item = |item: u64| {
                let chance = unit(experiment, item).powi(3);
                let right: Vec<bool> =
                    (0..n_draws).map(|draw| unit(experiment + 1_000_000, item * n_draws + draw) < chance).collect();
                let verdicts = right.iter().map(|&right| vec![Verdict::of_answer("m", right)]);
                let draw = |verdicts| Draw { text: String::new(), tokens: 1, ended: Ended::Length, verdicts };
                Sample { draws: verdicts.map(draw).collect(), ..Sample::default() }
            };
            let samples: Vec<Sample> = (0..n_items).map(item).collect();
            for (idx, metric) in metrics(TaskKind::Written, &samples).iter().enumerate() {
                assert_eq!(metric.name, truths[idx].0);
                let [low, high] = estimate(&metric.terms, &Design::ALONE, metric.link).ci95.unwrap();
                covered[idx] += f64::from(u8::from((low..=high).contains(&truths[idx].1))) / n_experiments as f64;
            }
            // Each answer as an independent item, as if 160 questions had been asked.
            let answers: Vec<Term> = samples
                .iter()
                .flat_map(|sample| &sample.draws)
                .map(|draw| Term { numerator: f64::from(draw.verdicts[0].right), denominator: 1.0 })
                .collect();
            let [low, high] = estimate(&answers, &Design::ALONE, Link::Identity).ci95.unwrap();
            covered_by_answers += f64::from(u8::from((low..=high).contains(&truths[0].1))) / n_experiments as f64;
        }
        println!("covered {covered:?}; by answers alone {covered_by_answers}");
        // A percentile bootstrap over 40 items covers slightly less than 95 %.
        assert!(covered.iter().all(|covered| (0.90..=0.98).contains(covered)), "{covered:?}");
        assert!(covered_by_answers < 0.85, "{covered_by_answers}");
    }

    /// The mean of (1 - u^3)^4 over u in 0..1: 1 - 4/4 + 6/7 - 4/10 + 1/13.
    fn four_wrong() -> f64 {
        6.0 / 7.0 - 0.4 + 1.0 / 13.0
    }

    #[test]
    fn the_chance_of_one_in_k_is_that_of_all_subsets() {
        let n = 7u32;
        for c in 0..=n {
            for k in 1..=n {
                // All subsets of k answers, and those that contain one of the first c.
                let subsets: Vec<u32> = (0u32..1 << n).filter(|set| set.count_ones() == k).collect();
                let right = subsets.iter().filter(|&set| set & ((1 << c) - 1) != 0).count();
                let expected = right as f64 / subsets.len() as f64;
                assert!((pass_at(k, c, n) - expected).abs() < 1e-12, "{k} {c}");
            }
        }
    }
}
