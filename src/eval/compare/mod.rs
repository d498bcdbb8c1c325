//! Compares two evaluations of the same items: what changed, and how certain that is.
//!
//! ```text
//! sides.rs        one side: tasks with their items and metrics; harness.rs reads another program's
//! pairs.rs        the items of a task that both sides have
//! whole_texts.rs  windows of texts -> whole texts, if they were cut differently
//! unlike.rs       why a task cannot be compared
//! averages.rs     groups of tasks, and the macro average
//! changes.rs      diff.json
//! ```
//!
//! Items are paired by task and id, so that the difficulty of an item cancels out: on the same items, the difference of two
//! accuracies is known far more precisely than from an unpaired test. Accuracies get Tango's interval and McNemar's exact test on
//! their flips, with Holm's correction for the number of tasks; everything else gets a bootstrap interval. Items in groups count
//! by group (`stats/design.rs`): the bootstrap resamples groups, and the exact test uses their net changes.
//!
//! The subjects of a task, and the tasks in one of the harness's groups, are averaged in two ways: with equal weights for all
//! items, as the harness does for MMLU (`weight_by_size`), and with equal weights for all subjects or tasks. A group counts as
//! one task in the macro average.

mod averages;
mod changes;
mod pairs;
mod sides;
mod unlike;
mod whole_texts;

use std::collections::{BTreeMap, BTreeSet};

use averages::{Accuracy, group_change, macro_average, mean_change_over_parts};
pub use changes::{Comparison, Flips, GroupChange, MacroChange, MeanChange, MetricChange, TaskChange};
use pairs::{Pairs, ids_only_of};
pub use sides::{Asked, Origin, Side, TaskSamples, side_of};

use super::metrics::{Metric, primary};
use super::results::Settings;
use super::tasks::TaskKind;
use crate::error::{Error, Result};
use crate::stats::{Design, Term, detectable_drop, holm, mcnemar_exact, paired_difference, ratio, sign_flip, variance_inflation};

/// Compares the tasks that both sides have. Returns an error if a task has a different kind on the other side.
pub fn compare(before: &Side, after: &Side) -> Result<Comparison> {
    let mut tasks = BTreeMap::new();
    let mut accuracies: BTreeMap<String, Accuracy> = BTreeMap::new();
    let mut skipped: Vec<String> = before.skipped.iter().chain(&after.skipped).cloned().collect();
    for (name, old) in &before.tasks {
        let Some(new) = after.tasks.get(name) else { continue };
        match compare_task(name, old, new)? {
            Compared::Changed(change, accuracy) => {
                tasks.insert(name.clone(), *change);
                accuracies.extend(accuracy.map(|accuracy| (name.clone(), accuracy)));
            }
            Compared::NothingInCommon => {}
            Compared::Unlike(reason) => skipped.push(reason),
        }
    }
    if tasks.is_empty() {
        if !skipped.is_empty() {
            return Err(Error::new(format!("nothing in the two can be compared: {}", skipped.join("; ")))
                .cure("Evaluate both models in the same way on the same task files."));
        }
        let names = |side: &Side| side.tasks.keys().cloned().collect::<Vec<_>>().join(", ");
        return Err(Error::new(format!("the two have no items in common: {} here, {} there", names(before), names(after)))
            .cure("Evaluate both models on the same task files."));
    }
    correct(&mut tasks);
    let names: BTreeSet<&String> = before.groups.keys().chain(after.groups.keys()).collect();
    let group = |name: &String| {
        let members = [before, after].into_iter().filter_map(|side| side.groups.get(name)).flatten();
        Some((name.clone(), group_change(members.collect(), &accuracies)?))
    };
    let groups: BTreeMap<String, GroupChange> = names.into_iter().filter_map(group).collect();
    let only = |one: &Side, other: &Side| one.tasks.keys().filter(|name| !other.tasks.contains_key(*name)).cloned().collect();
    Ok(Comparison {
        before: before.name.clone(),
        after: after.name.clone(),
        engines: before.engine.clone().zip(after.engine.clone()).filter(|(a, b)| a != b).map(|(a, b)| [a, b]),
        tasks,
        macro_average: macro_average(&accuracies, &groups),
        groups,
        tasks_only_before: only(before, after),
        tasks_only_after: only(after, before),
        skipped,
    })
}

enum Compared {
    Changed(Box<TaskChange>, Option<Accuracy>),
    NothingInCommon,
    /// The reason why the two cannot be compared.
    Unlike(String),
}

fn compare_task(name: &str, old: &TaskSamples, new: &TaskSamples) -> Result<Compared> {
    if matches!((old.kind, new.kind), (Some(a), Some(b)) if a != b) {
        return Err(Error::new(format!("`{name}` is one kind of task before and another one after"))
            .cure("Evaluate both on the same file."));
    }
    let whole_texts = whole_texts::joined(old, new);
    let [old, new] = whole_texts.as_ref().map_or([old, new], |[old, new]| [old, new]);
    let items = Pairs::of(old, new);
    if let Some(reason) = unlike::reason(name, &items)? {
        return Ok(Compared::Unlike(reason));
    }
    if items.len() == 0 {
        return Ok(Compared::NothingInCommon);
    }
    let shared = items.metrics();
    if shared.is_empty() {
        return Ok(Compared::Unlike(format!("`{name}`: the two sides have no metric in common")));
    }
    let (design, primary) = (items.design(), primary_of(name, old, new, &shared));
    let (mut metrics, mut of_primary) = (BTreeMap::new(), None);
    for [x, y] in shared {
        let [before, after] = items.terms([x, y]);
        // Only what is right or wrong can flip.
        let can_flip = !x.lower_is_better && before.iter().chain(&after).all(Term::is_right_or_wrong);
        let flips = can_flip.then(|| flips(items.ids(), &before, &after));
        let change = metric_change([x, y], &before, &after, &design, flips.as_ref());
        // The share of several answers that are right is also an accuracy.
        if x.name == primary && (flips.is_some() || old.kind.or(new.kind) == Some(TaskKind::Written)) {
            let groups = items.origins().map(|origin| origin.group.clone()).collect();
            let difference = change.difference;
            of_primary = Some((Accuracy { metric: primary.clone(), before, after, groups, difference }, flips));
        }
        metrics.insert(x.name.clone(), change);
    }
    let (accuracy, flips) = of_primary.unzip();
    let flips = flips.flatten();
    let settings = old.settings.as_ref().zip(new.settings.as_ref());
    let (few_shot, examples_differ) = settings.map(|(old, new)| differing_examples(old, new)).unwrap_or_default();
    let change = TaskChange {
        n: items.len(),
        n_groups: design.n_groups(),
        primary,
        metrics,
        mean_over_subjects: accuracy.as_ref().and_then(|task| mean_change_over_parts(&task.before, &task.after, &design)),
        detectable_drop: accuracy.as_ref().zip(flips.as_ref()).and_then(|(Accuracy { before, after, .. }, flips)| {
            let n = items.len() as f64;
            let flipping = (flips.lost.len() + flips.gained.len()) as f64 / n;
            detectable_drop((n / variance_inflation(before, after, &design)) as usize, flipping)
        }),
        flips,
        items_only_before: ids_only_of(old, new),
        items_only_after: ids_only_of(new, old),
        data_differs: matches!((&old.data_sha256, &new.data_sha256), (Some(a), Some(b)) if a != b),
        few_shot,
        examples_differ,
        prompts_differ: items.n_differing(|asked| asked.prompt.as_deref()),
        whole_texts: whole_texts.is_some(),
    };
    Ok(Compared::Changed(Box::new(change), accuracy))
}

/// The numbers of few-shot examples if they differ, otherwise the options if these differ.
fn differing_examples(old: &Settings, new: &Settings) -> (Option<[u32; 2]>, Option<[String; 2]>) {
    let (a, b) = (&old.few_shot, &new.few_shot);
    if a.n != b.n { (Some([a.n, b.n]), None) } else { (None, (a != b).then(|| [a.words(), b.words()])) }
}

/// The change of one metric over the items of both sides; `flips` are the items that were right on one side only, if items are
/// right or wrong.
fn metric_change(
    [old, new]: [&Metric; 2],
    before: &[Term],
    after: &[Term],
    design: &Design,
    flips: Option<&Flips>,
) -> MetricChange {
    let p = flips.map(|flips| match design.has_groups() {
        true => sign_flip(&design.nets(before, after)),
        false => mcnemar_exact(flips.lost.len() as u64, flips.gained.len() as u64),
    });
    MetricChange {
        before: ratio(before, old.link),
        after: ratio(after, old.link),
        difference: paired_difference(before, after, design, old.link),
        lower_is_better: old.lower_is_better,
        is_share: old.is_share && new.is_share,
        p,
        p_holm: None,
    }
}

/// The primary metric, among those that both sides have.
fn primary_of(task: &str, old: &TaskSamples, new: &TaskSamples, shared: &[[&Metric; 2]]) -> String {
    let names: Vec<&str> = shared.iter().map(|[metric, _]| metric.name.as_str()).collect();
    // The samples of the harness do not tell the kind of task; those with several choices have `acc_norm`.
    let guess = if names.contains(&"bits_per_byte") { TaskKind::Text } else { TaskKind::Choice };
    let of_kind = primary(old.kind.or(new.kind).unwrap_or(guess), task);
    let known = old.primary.as_deref().or(new.primary.as_deref()).or(of_kind);
    let wanted: Vec<&str> =
        known.into_iter().chain(["acc", "exact_match,strict-match", "exact_match", "prompt_level_strict_acc"]).collect();
    let is_called =
        |name: &str, wanted: &str| name == wanted || name.strip_prefix(wanted).is_some_and(|rest| rest.starts_with(','));
    let found = wanted.iter().find_map(|wanted| names.iter().find(|name| is_called(name, wanted)));
    let higher = || shared.iter().find(|[metric, _]| !metric.lower_is_better).map(|[metric, _]| metric.name.as_str());
    found.copied().or_else(higher).unwrap_or(names[0]).to_owned()
}

fn flips<'a>(ids: impl Iterator<Item = &'a str>, before: &[Term], after: &[Term]) -> Flips {
    let mut flips = Flips::default();
    for ((id, before), after) in ids.zip(before).zip(after) {
        match (before.numerator > 0.5, after.numerator > 0.5) {
            (true, false) => flips.lost.push(id.to_owned()),
            (false, true) => flips.gained.push(id.to_owned()),
            _ => {}
        }
    }
    flips
}

/// Sets `p_holm` of the primary metrics.
fn correct(tasks: &mut BTreeMap<String, TaskChange>) {
    let mut primaries: Vec<&mut MetricChange> =
        tasks.values_mut().filter_map(|task| task.metrics.get_mut(&task.primary)).filter(|metric| metric.p.is_some()).collect();
    let p_values: Vec<f64> = primaries.iter().filter_map(|metric| metric.p).collect();
    for (metric, adjusted) in primaries.iter_mut().zip(holm(&p_values)) {
        metric.p_holm = Some(adjusted);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::metrics::{ChoiceScore, Sample};

    /// Items `0..n` with two choices; `right(i)` says whether the first, which is the answer, wins.
    fn side(n: usize, right: impl Fn(usize) -> bool) -> Side {
        let item = |i: usize| {
            let score = |logprob| ChoiceScore { logprob, chars: 1, bytes: 1, ..ChoiceScore::default() };
            let choices = vec![score(if right(i) { -1.0 } else { -3.0 }), score(-2.0)];
            Sample { id: i.to_string(), choices, ..Sample::default() }
        };
        let task = TaskSamples::of(TaskKind::Choice, (0..n).map(item).collect());
        Side {
            name: "m".into(),
            model_reference: None,
            engine: None,
            tasks: BTreeMap::from([("t".to_owned(), task)]),
            groups: BTreeMap::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn flips_are_counted_and_listed() {
        // Before, 6 of 10 are right; after, 0 to 2 are lost and 9 is gained.
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
        // No flip among 500 items does not prove equality: Tango's interval is then z^2 / (n + z^2).
        let [low, high] = same.macro_average.as_ref().unwrap().difference.ci95.unwrap();
        let expected = 1.959_963_984_540_054f64.powi(2) / (500.0 + 1.959_963_984_540_054f64.powi(2));
        assert!((high - expected).abs() < 1e-9 && (low + expected).abs() < 1e-9, "{low} {high}");
        assert!(same.check_drop(0.0).is_ok() && same.tasks["t"].flips.as_ref().unwrap().lost.is_empty());
    }

    /// A side with one task of `kind`, whose samples have one choice each: (id, nats, tokens, bytes).
    fn told(kind: TaskKind, samples: &[(&str, f64, u32, u32)]) -> Side {
        let sample = |&(id, nats, tokens, bytes): &(&str, f64, u32, u32)| {
            let score = ChoiceScore { logprob: -nats, tokens, bytes, words: 1, ..ChoiceScore::default() };
            Sample { id: id.to_owned(), choices: vec![score], ..Sample::default() }
        };
        let task = TaskSamples::of(kind, samples.iter().map(sample).collect());
        Side { tasks: BTreeMap::from([("t".to_owned(), task)]), ..side(0, |_| true) }
    }

    #[test]
    fn texts_in_other_windows_are_compared_as_wholes() {
        let before = told(TaskKind::Text, &[("0:0", 4.0, 4, 10), ("0:1", 8.0, 4, 10), ("1:0", 3.0, 2, 10)]);
        let after = told(TaskKind::Text, &[("0:0", 9.0, 6, 15), ("0:1", 1.0, 2, 5), ("1:0", 3.0, 2, 10)]);
        let found = compare(&before, &after).unwrap();
        let task = &found.tasks["t"];
        let bits = &task.metrics["bits_per_byte"];
        assert!((bits.before - 15.0 / 30.0 / 2f64.ln()).abs() < 1e-12 && (bits.after - 13.0 / 30.0 / 2f64.ln()).abs() < 1e-12);
        assert_eq!((task.n, task.whole_texts, task.items_only_after.len()), (2, true, 0));
        // Equal windows are compared as items, even if one side has more texts.
        let fewer = told(TaskKind::Text, &[("0:0", 5.0, 4, 10), ("0:1", 8.0, 4, 10)]);
        let found = compare(&before, &fewer).unwrap();
        assert_eq!((found.tasks["t"].n, found.tasks["t"].whole_texts), (2, false));
        let longer = told(TaskKind::Text, &[("0:0", 4.0, 4, 10), ("0:1", 8.0, 4, 11)]);
        assert!(compare(&before, &longer).unwrap_err().to_string().contains("text 0 has 20 bytes before and 21 after"));
    }

    #[test]
    fn losses_of_other_tokens_are_not_compared() {
        let of = |tokens: u32| told(TaskKind::Rows, &[("0", 4.0, 4, 0), ("1", 4.0, tokens, 0)]);
        assert!(compare(&of(3), &of(3)).is_ok());
        let error = compare(&of(3), &of(4)).unwrap_err().to_string();
        assert!(error.contains("row 1 has 3 tokens before and 4 after (another tokenizer"), "{error}");
    }

    #[test]
    fn sides_that_do_not_fit_are_refused() {
        let (a, mut b) = (side(3, |_| true), side(3, |_| true));
        b.tasks.get_mut("t").unwrap().samples[1].answer = 1;
        assert!(compare(&a, &b).unwrap_err().to_string().contains("item `1` of `t`"));
        let other = Side { tasks: BTreeMap::new(), ..side(0, |_| true) };
        assert!(compare(&a, &other).unwrap_err().to_string().contains("no items in common"));
    }
}
