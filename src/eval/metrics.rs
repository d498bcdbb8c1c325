//! Log-likelihoods -> metrics, as sums over items.
//!
//! By lm-evaluation-harness (`lm_eval/api/task.py`, `ConfigurableTask.process_results`): `acc` takes the choice with the highest
//! log-likelihood, `acc_norm` the highest per character of the choice, `acc_bytes` per UTF-8 byte; ties go to the first.
//! Perplexities are per item (LAMBADA), per word (`re.split(r"\s+", text)`) or per byte of the text.

use super::tasks::Kind;
use crate::stats::{Link, Term};

/// What the model said about one item, or about one window of a text.
#[derive(Debug, Clone, PartialEq)]
pub struct Sample {
    pub id: String,
    /// The part of the task.
    pub subject: Option<String>,
    /// What was drawn together.
    pub group: Option<String>,
    pub answer: u32,
    pub choices: Vec<ChoiceScore>,
}

#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct ChoiceScore {
    /// ln P(continuation | context)
    pub logprob: f64,
    /// Is every token of the continuation the model's first choice?
    pub greedy: bool,
    pub tokens: u32,
    /// Of the choice, without the space before it.
    pub chars: u32,
    pub bytes: u32,
    pub words: u32,
}

pub struct Metric {
    pub name: &'static str,
    pub link: Link,
    pub lower_is_better: bool,
    /// One per sample, in order.
    pub terms: Vec<Term>,
}

/// All metrics of a kind of task; the first is the most telling one, unless [`primary`] says otherwise.
pub fn metrics(kind: Kind, samples: &[Sample]) -> Vec<Metric> {
    let share = |name, right: &dyn Fn(&Sample) -> bool| Metric {
        name,
        link: Link::Identity,
        lower_is_better: false,
        terms: samples.iter().map(|sample| Term { numerator: f64::from(u8::from(right(sample))), denominator: 1.0 }).collect(),
    };
    // Nats, or bits where `unit` is ln 2, over what `denominator` counts.
    let loss = |name, link, unit: f64, denominator: &dyn Fn(&ChoiceScore) -> f64| Metric {
        name,
        link,
        lower_is_better: true,
        terms: samples
            .iter()
            .map(|sample| Term { numerator: -sample.choices[0].logprob / unit, denominator: denominator(&sample.choices[0]) })
            .collect(),
    };
    let bytes = |score: &ChoiceScore| f64::from(score.bytes);
    match kind {
        Kind::Choice => vec![
            share("acc", &|sample| sample.is_right(|_| 1.0)),
            share("acc_norm", &|sample| sample.is_right(|score| f64::from(score.chars))),
            share("acc_bytes", &|sample| sample.is_right(bytes)),
        ],
        Kind::Partial => vec![share("acc", &|sample| sample.is_right(|_| 1.0))],
        Kind::LastWord => {
            vec![share("acc", &|sample| sample.choices[0].greedy), loss("perplexity", Link::Exp, 1.0, &|_| 1.0)]
        }
        Kind::Text => vec![
            loss("bits_per_byte", Link::Identity, std::f64::consts::LN_2, &bytes),
            loss("byte_perplexity", Link::Exp, 1.0, &bytes),
            loss("word_perplexity", Link::Exp, 1.0, &|score| f64::from(score.words)),
        ],
    }
}

/// The metric that is usually quoted, and that the macro average takes: where the answers of a benchmark differ much in length,
/// the one per character.
pub fn primary(kind: Kind, task: &str) -> &'static str {
    match kind {
        Kind::Choice if ["hellaswag", "arc_challenge", "openbookqa"].iter().any(|name| task.starts_with(name)) => "acc_norm",
        Kind::Choice | Kind::Partial | Kind::LastWord => "acc",
        Kind::Text => "bits_per_byte",
    }
}

impl Sample {
    fn is_right(&self, length: impl Fn(&ChoiceScore) -> f64) -> bool {
        self.picked(length) == self.answer as usize
    }

    /// The choice with the highest log-likelihood per `length`, the first among equals.
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
        Sample { id: String::new(), subject: None, group: None, answer, choices: choices.iter().map(score).collect() }
    }

    fn values(kind: Kind, samples: &[Sample]) -> Vec<(&'static str, f64)> {
        metrics(kind, samples).iter().map(|metric| (metric.name, ratio(&metric.terms, metric.link))).collect()
    }

    #[test]
    fn choices_by_sum_by_character_and_by_byte() {
        // Sums prefer choice 0; per character -2 against -1; per byte -2 against -3.
        let by_all = sample(0, &[(-4.0, 2, 2), (-9.0, 9, 3)]);
        // A tie goes to the first.
        let tie = sample(1, &[(-3.0, 1, 1), (-3.0, 1, 1)]);
        assert_eq!(values(Kind::Choice, &[by_all, tie]), [("acc", 0.5), ("acc_norm", 0.0), ("acc_bytes", 0.5)]);
    }

    #[test]
    fn texts_by_byte_and_by_word() {
        // 8 nats on 4 bytes and 2 words, 4 ln 2 nats on 4 bytes and 2 words.
        let windows = [sample(0, &[(-8.0, 4, 4)]), sample(0, &[(-4.0 * 2f64.ln(), 4, 4)])];
        let nats = 8.0 + 4.0 * 2f64.ln();
        let found = values(Kind::Text, &windows);
        let expected = [nats / 2f64.ln() / 8.0, (nats / 8.0).exp(), (nats / 4.0).exp()];
        for ((name, found), expected) in found.into_iter().zip(expected) {
            assert!((found - expected).abs() < 1e-12, "{name}: {found} for {expected}");
        }
    }
}
