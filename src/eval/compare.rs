//! Two evaluations of the same items -> what changed, with its uncertainty.
//!
//! Items are paired by task and id, so that what makes an item easy or hard for both models drops out: with the same items the
//! difference of two accuracies is far better known than by an unpaired test. Accuracies get McNemar's exact test on their flips,
//! corrected for the number of tasks after Holm; everything gets a bootstrap interval.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::metrics::{Metric, Sample, metrics, primary};
use super::results::read_scores;
use super::samples::{self, SAMPLES_FILE};
use super::tasks::Kind;
use crate::error::{Error, Result};
use crate::stats::{Estimate, Term, detectable_drop, holm, macro_difference, mcnemar_exact, paired_difference, ratio};

/// One side of a comparison.
pub struct Side {
    /// For people.
    pub name: String,
    pub tasks: BTreeMap<String, TaskSamples>,
}

pub struct TaskSamples {
    pub kind: Kind,
    pub samples: Vec<Sample>,
    /// Of the data file, where it is known.
    pub data_sha256: Option<String>,
    /// Examples before every question, where it is known.
    pub few_shot: Option<u32>,
}

/// diff.json of two evaluations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    pub before: String,
    pub after: String,
    pub tasks: BTreeMap<String, TaskChange>,
    /// Mean over the tasks that have an accuracy, each by its primary metric; `None` where there is no such task.
    pub macro_average: Option<MacroChange>,
    pub tasks_only_before: Vec<String>,
    pub tasks_only_after: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskChange {
    /// Items on both sides.
    pub n: usize,
    pub primary: String,
    pub metrics: BTreeMap<String, MetricChange>,
    /// Of the primary metric, where that is an accuracy.
    pub flips: Option<Flips>,
    /// The smallest drop of the primary metric that a paired test on these items finds with power 0.8, given how many flipped.
    pub detectable_drop: Option<f64>,
    pub items_only_before: Vec<String>,
    pub items_only_after: Vec<String>,
    /// The ids agree, but not the data they come from.
    pub data_differs: bool,
    /// Examples before every question, before and after, where the two differ.
    #[serde(default)]
    pub few_shot: Option<[u32; 2]>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricChange {
    pub before: f64,
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
    pub lower_is_better: bool,
    /// McNemar's exact test, two-sided; for accuracies.
    pub p: Option<f64>,
    /// The same after Holm's correction for all tasks; for primary metrics.
    pub p_holm: Option<f64>,
}

/// Items that were answered rightly on one side only.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Flips {
    /// Right before, wrong after.
    pub lost: Vec<String>,
    pub gained: Vec<String>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MacroChange {
    pub tasks: Vec<String>,
    pub before: f64,
    pub after: f64,
    pub difference: Estimate,
}

/// Reads an evaluation folder.
pub fn read_side(folder: &Path) -> Result<Side> {
    let scores = read_scores(folder)?;
    let path = folder.join(SAMPLES_FILE);
    let mut samples = samples::read(&path)?;
    let mut tasks = BTreeMap::new();
    for (name, task) in scores.tasks {
        let own = samples.remove(&name).filter(|own| own.len() == task.n).ok_or_else(|| {
            Error::new(format!("the table does not hold the {} items of `{name}` that scores.json speaks of", task.n))
                .at(&path)
                .cure("Evaluate the task again.")
        })?;
        tasks.insert(
            name,
            TaskSamples { kind: task.kind, samples: own, data_sha256: Some(task.data_sha256), few_shot: Some(task.few_shot) },
        );
    }
    Ok(Side { name: scores.identity.model, tasks })
}

pub fn compare(before: &Side, after: &Side) -> Result<Comparison> {
    let mut tasks = BTreeMap::new();
    let mut accuracies: Vec<(String, [Vec<Term>; 2])> = Vec::new();
    for (name, old) in &before.tasks {
        let Some(new) = after.tasks.get(name) else { continue };
        if let Some((change, terms)) = compare_task(name, old, new)? {
            tasks.insert(name.clone(), change);
            accuracies.extend(terms.map(|terms| (name.clone(), terms)));
        }
    }
    if tasks.is_empty() {
        let names = |side: &Side| side.tasks.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::new(format!("the two have no item in common: {} here, {} there", names(before), names(after)))
            .cure("Evaluate both models on the same task files."));
    }
    correct(&mut tasks);
    let only = |one: &Side, other: &Side| one.tasks.keys().filter(|name| !other.tasks.contains_key(*name)).cloned().collect();
    Ok(Comparison {
        before: before.name.clone(),
        after: after.name.clone(),
        tasks,
        macro_average: macro_average(&accuracies),
        tasks_only_before: only(before, after),
        tasks_only_after: only(after, before),
    })
}

/// The terms of the primary metric, before and after, where it is an accuracy.
type Accuracy = Option<[Vec<Term>; 2]>;

fn compare_task(name: &str, old: &TaskSamples, new: &TaskSamples) -> Result<Option<(TaskChange, Accuracy)>> {
    if old.kind != new.kind {
        return Err(Error::new(format!("`{name}` is one kind of task before and another one after")));
    }
    let by_id: HashMap<&str, &Sample> = new.samples.iter().map(|sample| (sample.id.as_str(), sample)).collect();
    let (mut befores, mut afters, mut items_only_before) = (Vec::new(), Vec::new(), Vec::new());
    for sample in &old.samples {
        match by_id.get(sample.id.as_str()) {
            Some(other) => {
                if (sample.answer, sample.choices.len()) != (other.answer, other.choices.len()) {
                    return Err(Error::new(format!("item `{}` of `{name}` has other choices after than before", sample.id))
                        .cure("Evaluate both models on the same task file."));
                }
                befores.push(sample.clone());
                afters.push((*other).clone());
            }
            None => items_only_before.push(sample.id.clone()),
        }
    }
    if befores.is_empty() {
        return Ok(None);
    }
    let own: std::collections::HashSet<&str> = old.samples.iter().map(|sample| sample.id.as_str()).collect();
    let only_after = new.samples.iter().filter(|sample| !own.contains(sample.id.as_str())).map(|sample| sample.id.clone());
    let data_differs = matches!((&old.data_sha256, &new.data_sha256), (Some(a), Some(b)) if a != b);
    let mut change = TaskChange {
        n: befores.len(),
        primary: primary(old.kind, name).to_owned(),
        metrics: BTreeMap::new(),
        flips: None,
        detectable_drop: None,
        items_only_before,
        items_only_after: only_after.collect(),
        data_differs,
        few_shot: old.few_shot.zip(new.few_shot).filter(|(a, b)| a != b).map(|(a, b)| [a, b]),
    };
    let mut accuracy = None;
    for (x, y) in metrics(old.kind, &befores).into_iter().zip(metrics(old.kind, &afters)) {
        let flips = (!x.lower_is_better).then(|| flips(&befores, &x, &y));
        change.metrics.insert(
            x.name.to_owned(),
            MetricChange {
                before: ratio(&x.terms, x.link),
                after: ratio(&y.terms, y.link),
                difference: paired_difference(&x.terms, &y.terms, x.link),
                lower_is_better: x.lower_is_better,
                p: flips.as_ref().map(|flips| mcnemar_exact(flips.lost.len() as u64, flips.gained.len() as u64)),
                p_holm: None,
            },
        );
        if x.name == change.primary
            && let Some(flips) = flips
        {
            let flipping = (flips.lost.len() + flips.gained.len()) as f64 / change.n as f64;
            change.detectable_drop = detectable_drop(change.n, flipping);
            change.flips = Some(flips);
            accuracy = Some([x.terms, y.terms]);
        }
    }
    Ok(Some((change, accuracy)))
}

fn flips(items: &[Sample], before: &Metric, after: &Metric) -> Flips {
    let mut flips = Flips::default();
    for ((item, before), after) in items.iter().zip(&before.terms).zip(&after.terms) {
        match (before.numerator > 0.5, after.numerator > 0.5) {
            (true, false) => flips.lost.push(item.id.clone()),
            (false, true) => flips.gained.push(item.id.clone()),
            _ => {}
        }
    }
    flips
}

/// Fills in `p_holm` of the primary metrics.
fn correct(tasks: &mut BTreeMap<String, TaskChange>) {
    let mut primaries: Vec<&mut MetricChange> =
        tasks.values_mut().filter_map(|task| task.metrics.get_mut(&task.primary)).filter(|metric| metric.p.is_some()).collect();
    let p_values: Vec<f64> = primaries.iter().filter_map(|metric| metric.p).collect();
    for (metric, adjusted) in primaries.iter_mut().zip(holm(&p_values)) {
        metric.p_holm = Some(adjusted);
    }
}

fn macro_average(accuracies: &[(String, [Vec<Term>; 2])]) -> Option<MacroChange> {
    let n = accuracies.len() as f64;
    let mean =
        |side: usize| accuracies.iter().map(|(_, terms)| ratio(&terms[side], crate::stats::Link::Identity)).sum::<f64>() / n;
    let pairs: Vec<(&[Term], &[Term])> = accuracies.iter().map(|(_, [x, y])| (x.as_slice(), y.as_slice())).collect();
    (!pairs.is_empty()).then(|| MacroChange {
        tasks: accuracies.iter().map(|(name, _)| name.clone()).collect(),
        before: mean(0),
        after: mean(1),
        difference: macro_difference(&pairs),
    })
}

impl Comparison {
    /// See [`MacroChange::check_drop`].
    pub fn check_drop(&self, points: f64) -> Result<()> {
        match &self.macro_average {
            Some(average) => average.check_drop("the macro average", points),
            None => Err(Error::usage("--fail-on-drop needs a task with an accuracy; these have perplexities only")),
        }
    }
}

impl MacroChange {
    /// Falls short where the average, which `what` names, dropped by more than `points` (of 100) with confidence: where even the
    /// upper end of its 95 % interval lies below. An alarm on an unchanged model is thus as rare as 2.5 %.
    pub fn check_drop(&self, what: &str, points: f64) -> Result<()> {
        let Some([low, high]) = self.difference.ci95 else {
            return Err(Error::usage("--fail-on-drop needs two items or more in every task"));
        };
        if 100.0 * high < -points {
            return Err(Error::check(format!(
                "{what} dropped by {:.2} points (95 % interval {:.2} to {:.2}), with confidence by more than {points}",
                -100.0 * self.difference.value,
                -100.0 * high,
                -100.0 * low
            )));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metrics::ChoiceScore;

    /// Items `0..n` with two choices; `right(i)` says whether the first, which is the answer, wins.
    fn side(n: usize, right: impl Fn(usize) -> bool) -> Side {
        let item = |i: usize| {
            let score = |logprob| ChoiceScore { logprob, chars: 1, bytes: 1, ..ChoiceScore::default() };
            let choices = vec![score(if right(i) { -1.0 } else { -3.0 }), score(-2.0)];
            Sample { id: i.to_string(), group: None, answer: 0, choices }
        };
        let task = TaskSamples { kind: Kind::Choice, samples: (0..n).map(item).collect(), data_sha256: None, few_shot: None };
        Side { name: "m".into(), tasks: BTreeMap::from([("t".to_owned(), task)]) }
    }

    #[test]
    fn flips_are_counted_and_listed() {
        // 6 of 10 right before; after, 0 to 2 are lost and 9 is gained.
        let found = compare(&side(10, |i| i < 6), &side(11, |i| (3..6).contains(&i) || i == 9)).unwrap();
        let task = &found.tasks["t"];
        let flips = task.flips.as_ref().unwrap();
        assert_eq!((flips.lost.join(" "), flips.gained.join(" ")), ("0 1 2".to_owned(), "9".to_owned()));
        assert_eq!((task.n, task.items_only_after.join(" ")), (10, "10".to_owned()));
        let acc = &task.metrics["acc"];
        assert!((acc.difference.value + 0.2).abs() < 1e-12);
        // 2 (1 + 4) / 2^4
        assert_eq!((acc.p, acc.p_holm), (Some(0.625), Some(0.625)));
        assert!(found.check_drop(2.0).is_ok(), "10 items show nothing");
    }

    #[test]
    fn a_clear_drop_fails_the_check_and_none_does_not() {
        let before = side(500, |i| i % 4 != 0);
        let after = side(500, |i| i % 4 != 0 && i % 10 != 1);
        let error = compare(&before, &after).unwrap().check_drop(2.0).unwrap_err();
        assert_eq!(error.exit_code(), 3, "{error}");
        assert!(compare(&after, &before).unwrap().check_drop(2.0).is_ok());
        let same = compare(&before, &before).unwrap();
        assert_eq!(same.macro_average.as_ref().unwrap().difference.ci95, Some([0.0, 0.0]));
        assert!(same.check_drop(0.0).is_ok() && same.tasks["t"].flips.as_ref().unwrap().lost.is_empty());
    }

    #[test]
    fn sides_that_do_not_fit_are_refused() {
        let (a, mut b) = (side(3, |_| true), side(3, |_| true));
        b.tasks.get_mut("t").unwrap().samples[1].answer = 1;
        assert!(compare(&a, &b).unwrap_err().to_string().contains("item `1` of `t`"));
        let other = Side { name: "m".into(), tasks: BTreeMap::new() };
        assert!(compare(&a, &other).unwrap_err().to_string().contains("no item in common"));
    }
}
