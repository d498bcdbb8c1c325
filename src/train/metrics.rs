//! The metrics of a step: one object of metrics.jsonl, also logged as TensorBoard scalars.

use serde::{Deserialize, Serialize};

use super::keep::Lowest;
use super::step::StepToken;
use crate::diagnosis::by_quadrant::ByQuadrant;
use crate::diagnosis::quadrants::{Resolved, Thresholds};
use crate::json::{finite_ends, null_is_nan};
use crate::kernels::TokenStatistics;
use crate::stats::{ClusterSums, Scale, Term, effective_number};
use crate::table::Quadrant;
use crate::tokens::Sequence;

/// Bounds for tokens of high and of low entropy, in nats: the groups of the paper's Figure 4.
const HIGH_ENTROPY: f32 = 2.0;
const LOW_ENTROPY: f32 = 0.5;

/// The metrics of one step, before its update. Means are over the supervised tokens. JSON writes a number that is not finite as
/// null; such a line can still be read back.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct StepMetrics {
    /// Counted from 1.
    pub step: u64,
    /// The number of passes over the data so far, with a fraction.
    pub epoch: f64,
    /// The loss that training minimises.
    #[serde(deserialize_with = "null_is_nan")]
    pub loss: f64,
    /// Mean -ln p, nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub cross_entropy: f64,
    /// Mean entropy over the vocabulary, nats.
    #[serde(deserialize_with = "null_is_nan")]
    pub entropy: f64,
    /// The share of targets that are the model's most probable token.
    pub accuracy: f64,
    /// The L2 norm of the whole gradient, before clipping.
    #[serde(deserialize_with = "null_is_nan")]
    pub gradient_norm: f64,
    pub learning_rate: f64,
    /// Input tokens of the step.
    pub tokens: u64,
    /// Supervised tokens of the step.
    pub supervised: u64,
    /// The effective number of tokens, (sum w)^2 / sum w^2: so many tokens of equal weight would count as much.
    #[serde(deserialize_with = "null_is_nan")]
    pub effective_tokens: f64,
    /// Mean weight of the supervised tokens.
    #[serde(deserialize_with = "null_is_nan")]
    pub mean_weight: f64,
    #[serde(deserialize_with = "null_is_nan")]
    pub tokens_per_second: f64,
    /// The mean divergence from the base model on these tokens, for the methods that compute it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub kl_to_base: Option<f64>,
    /// The supervised tokens by quadrant.
    pub by_quadrant: ByQuadrant<Group>,
    /// Tokens with an entropy of 2 nats or more.
    pub high_entropy: Group,
    /// Tokens with an entropy of half a nat or less.
    pub low_entropy: Group,
    /// The metrics on data that the model is not trained on: measured at intervals, otherwise empty.
    #[serde(flatten)]
    pub standing: Standing,
    /// The lowest held-out loss so far, if this step has evaluated it.
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub lowest: Option<Lowest>,
}

/// A group of a step's tokens.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Group {
    /// The number of tokens in the group.
    pub tokens: u64,
    /// Their mean -ln p in nats; absent for an empty group.
    pub cross_entropy: Option<f64>,
}

/// The metrics on the held-out rows.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Validation {
    /// Mean -ln p in nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub cross_entropy: f64,
    /// Its 95 % interval over the rows.
    #[serde(default, deserialize_with = "finite_ends")]
    pub cross_entropy_ci95: Option<[f64; 2]>,
    /// The share of targets that are the model's most probable token.
    pub accuracy: f64,
    /// Its 95 % interval over the rows.
    #[serde(default, deserialize_with = "finite_ends")]
    pub accuracy_ci95: Option<[f64; 2]>,
    #[serde(default)]
    pub rows: u64,
    pub tokens: u64,
}

/// How far the model has moved from the base on text that it was not trained on; `eval::divergence` defines the text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Drift {
    /// Mean KL(base || model) in nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub kl: f64,
    /// Its 95 % interval over the texts.
    #[serde(default, deserialize_with = "finite_ends")]
    pub kl_ci95: Option<[f64; 2]>,
    /// Mean -ln p of the model in nats per token.
    #[serde(deserialize_with = "null_is_nan")]
    pub cross_entropy: f64,
    #[serde(default)]
    pub texts: u64,
    pub tokens: u64,
}

/// The metrics on data that the model is not trained on: held-out rows, if there are any, and general text.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub(crate) struct Standing {
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub validation: Option<Validation>,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub drift: Option<Drift>,
}

impl Validation {
    /// Summarises the statistics of the supervised tokens of held-out rows.
    pub(crate) fn of(sequences: &[Sequence], rows: &[Vec<TokenStatistics>]) -> Validation {
        let (mut loss, mut right, mut tokens) = (ClusterSums::default(), ClusterSums::default(), 0);
        for (sequence, row) in sequences.iter().zip(rows).filter(|(_, row)| !row.is_empty()) {
            let n_right = sequence.targets().zip(row).filter(|((_, target), token)| token.top_id == *target).count();
            let denominator = row.len() as f64;
            loss.add(Term { numerator: -row.iter().map(|token| f64::from(token.logprob)).sum::<f64>(), denominator });
            right.add(Term { numerator: n_right as f64, denominator });
            tokens += row.len() as u64;
        }
        let (loss, right) = (loss.estimate(Scale::Log), right.estimate(Scale::LogOdds));
        Validation {
            cross_entropy: loss.value,
            cross_entropy_ci95: loss.ci95,
            accuracy: right.value,
            accuracy_ci95: right.ci95,
            rows: rows.iter().filter(|row| !row.is_empty()).count() as u64,
            tokens,
        }
    }
}

impl StepMetrics {
    /// The metrics that follow from the tokens of a step; the caller adds the others.
    pub(crate) fn of(tokens: &[Vec<StepToken>], thresholds: &Resolved) -> StepMetrics {
        let all = || tokens.iter().flatten();
        let n = all().count().max(1) as f64;
        let mean = |f: &dyn Fn(&StepToken) -> f64| all().map(f).sum::<f64>() / n;
        let sum_of = |f: &dyn Fn(&StepToken) -> f64| all().map(f).sum::<f64>();
        let (weights, squares) = (sum_of(&|token| f64::from(token.weight)), sum_of(&|token| f64::from(token.weight).powi(2)));
        let group = |belongs: &dyn Fn(&StepToken) -> bool| {
            let losses: Vec<f64> =
                all().filter(|token| belongs(token)).map(|token| -f64::from(token.statistics.logprob)).collect();
            let tokens = losses.len() as u64;
            Group { tokens, cross_entropy: (tokens > 0).then(|| losses.iter().sum::<f64>() / tokens as f64) }
        };
        let quadrant = |wanted: Quadrant| {
            group(&|token| {
                let statistics = &token.statistics;
                thresholds.label(statistics.logprob, statistics.entropy, statistics.tail) == wanted
            })
        };
        StepMetrics {
            cross_entropy: mean(&|token| -f64::from(token.statistics.logprob)),
            entropy: mean(&|token| f64::from(token.statistics.entropy)),
            accuracy: mean(&|token| f64::from(u8::from(token.statistics.top_id == token.target))),
            supervised: all().count() as u64,
            effective_tokens: effective_number(weights, squares),
            mean_weight: weights / n,
            by_quadrant: ByQuadrant::from_fn(quadrant),
            high_entropy: group(&|token| token.statistics.entropy >= HIGH_ENTROPY),
            low_entropy: group(&|token| token.statistics.entropy <= LOW_ENTROPY),
            ..StepMetrics::default()
        }
    }

    /// The scalars for TensorBoard, with their names.
    pub(crate) fn scalars(&self) -> Vec<(&'static str, f64)> {
        let mut scalars = vec![
            ("train/loss", self.loss),
            ("train/cross_entropy", self.cross_entropy),
            ("train/entropy", self.entropy),
            ("train/accuracy", self.accuracy),
            ("train/gradient_norm", self.gradient_norm),
            ("train/learning_rate", self.learning_rate),
            ("train/effective_tokens", self.effective_tokens),
            ("train/tokens_per_second", self.tokens_per_second),
        ];
        let groups = [
            ("quadrant/confident_conflict", self.by_quadrant.confident_conflict),
            ("quadrant/uncertain", self.by_quadrant.uncertain),
            ("quadrant/confident", self.by_quadrant.confident),
            ("quadrant/hesitant", self.by_quadrant.hesitant),
            ("entropy_group/high", self.high_entropy),
            ("entropy_group/low", self.low_entropy),
        ];
        scalars.extend(groups.into_iter().filter_map(|(tag, group)| Some((tag, group.cross_entropy?))));
        scalars.extend(self.kl_to_base.map(|kl| ("train/kl_to_base", kl)));
        if let Some(validation) = self.standing.validation {
            scalars.push(("validation/cross_entropy", validation.cross_entropy));
            scalars.push(("validation/accuracy", validation.accuracy));
        }
        if let Some(drift) = self.standing.drift {
            scalars.push(("drift/kl", drift.kl));
            scalars.push(("drift/cross_entropy", drift.cross_entropy));
        }
        scalars
    }
}

/// The quadrants of the default thresholds, which do not depend on a table.
pub(crate) fn fixed_thresholds() -> crate::Result<Resolved> {
    crate::diagnosis::quadrants::resolve(Thresholds::default(), &[])
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Span;

    const TARGET: u32 = 7;

    /// The metrics of rows all of whose targets are [`TARGET`].
    fn of(rows: &[Vec<TokenStatistics>]) -> Validation {
        let sequence = |row: &Vec<TokenStatistics>| Sequence {
            row: 0,
            ids: vec![TARGET; row.len() + 1],
            supervised: (0..=row.len()).map(|at| at > 0).collect(),
            spans: vec![Span::default(); row.len() + 1],
        };
        Validation::of(&rows.iter().map(sequence).collect::<Vec<_>>(), rows)
    }

    /// If all logits are equal, no token ranks above the target, and yet the most probable one is the first id.
    #[test]
    fn a_model_that_knows_nothing_is_right_about_one_id_alone() {
        let statistics = crate::kernels::statistics::statistics_of_logits(&[0.5; 12], TARGET, 4);
        assert_eq!((statistics.rank, statistics.top_id), (1, 0));
        assert_eq!(of(&[vec![statistics; 3]]).accuracy, 0.0);
        let token = |target: u32| StepToken { target, statistics, divergence: Default::default(), weight: 1.0, loss: 0.0 };
        let metrics = StepMetrics::of(&[vec![token(0), token(TARGET)]], &fixed_thresholds().unwrap());
        assert_eq!(metrics.accuracy, 0.5);
    }

    #[test]
    fn held_out_rows_by_hand() {
        let token = |logprob: f32, top_id: u32| TokenStatistics { logprob, rank: 1, top_id, ..TokenStatistics::default() };
        let rows = [vec![token(-1.0, TARGET), token(-3.0, 2)], vec![], vec![token(-2.0, TARGET), token(-2.0, 4)]];
        let found = of(&rows);
        assert_eq!((found.cross_entropy, found.accuracy, found.rows, found.tokens), (2.0, 0.5, 2, 4));
        // Both rows have a mean of 2 and one of two tokens right: the loss gets no interval, and the share that of two items
        // (Wilson).
        let [low, high] = found.accuracy_ci95.unwrap();
        assert!(found.cross_entropy_ci95.is_none() && (low - 0.094_531).abs() < 1e-6 && (high - 0.905_469).abs() < 1e-6);
        assert_eq!(of(&rows[..1]).cross_entropy_ci95, None);
    }

    /// A resumed run reads back the previous lines, including those whose loss was not finite.
    #[test]
    fn a_line_whose_loss_is_not_finite_is_read_again() {
        let validation = Validation { cross_entropy: f64::NAN, ..Validation::default() };
        let drift = Drift { kl: f64::INFINITY, cross_entropy: 1.5, ..Drift::default() };
        let standing = Standing { validation: Some(validation), drift: Some(drift) };
        let metrics = StepMetrics {
            step: 3,
            loss: f64::INFINITY,
            cross_entropy: f64::INFINITY,
            entropy: f64::NAN,
            gradient_norm: f64::INFINITY,
            mean_weight: f64::NAN,
            standing,
            lowest: Some(Lowest { worse_since: 1, ..Lowest::default() }),
            ..StepMetrics::default()
        };
        let line = serde_json::to_string(&metrics).unwrap();
        let again: StepMetrics = serde_json::from_str(&line).unwrap();
        assert!(again.loss.is_nan() && again.gradient_norm.is_nan());
        assert!(again.standing.validation.unwrap().cross_entropy.is_nan() && again.standing.drift.unwrap().kl.is_nan());
        assert_eq!((again.step, again.lowest, serde_json::to_string(&again).unwrap()), (3, metrics.lowest, line));
    }

    /// Rows of one to sixty tokens, each row with its own level. Nominally 95 %; 1000 experiments leave a standard deviation of
    /// 0.7 points.
    #[test]
    fn intervals_of_held_out_rows_cover_the_truth_as_often_as_they_say() {
        let mut random = crate::random::SplitMix(41);
        let mut uniform = move || random.unit();
        let mut row = || -> Vec<TokenStatistics> {
            let (n, level) = (1 + (uniform() * 60.0) as usize, 0.3 + uniform());
            let mut token = || {
                let logprob = level * (1.0 - uniform()).ln();
                TokenStatistics {
                    logprob: logprob as f32,
                    top_id: if logprob > -0.5 { TARGET } else { 0 },
                    ..TokenStatistics::default()
                }
            };
            (0..n).map(|_| token()).collect()
        };
        let truth = of(&(0..200_000).map(|_| row()).collect::<Vec<_>>());
        let (mut loss, mut accuracy) = (0, 0);
        for _ in 0..1000 {
            let found = of(&(0..50).map(|_| row()).collect::<Vec<_>>());
            let holds = |ci95: Option<[f64; 2]>, truth: f64| ci95.is_some_and(|[low, high]| low <= truth && truth <= high);
            loss += usize::from(holds(found.cross_entropy_ci95, truth.cross_entropy));
            accuracy += usize::from(holds(found.accuracy_ci95, truth.accuracy));
        }
        println!("covered: cross-entropy {loss}, accuracy {accuracy} of 1000");
        assert!((925..=975).contains(&loss) && (925..=975).contains(&accuracy), "{loss} {accuracy}");
    }
}
