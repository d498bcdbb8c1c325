//! Compares what fine-tuning runs gained on their target with what they lost in general.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::compare::{Comparison, GroupChange, MacroChange, Side, compare};
use crate::error::{Error, Result};

/// diff.json of a base model and any number of fine-tuning runs.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Retention {
    /// The name of the base model.
    pub before: String,
    /// The changes of each run.
    pub runs: Vec<Run>,
    /// Tasks that some of the runs lack, or were asked differently. They enter no average, so that the runs' averages are over
    /// the same tasks.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub left_out: Vec<String>,
}

/// The gains and losses of one run.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Run {
    /// The name of the fine-tuned model.
    pub name: String,
    /// The macro average over the target tasks that all runs have.
    pub target: MacroChange,
    /// The macro average over all other tasks that all runs have.
    pub general: MacroChange,
    /// The groups among the target tasks, with both ways of weighting.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub target_groups: BTreeMap<String, GroupChange>,
    /// The target tasks one by one.
    pub target_tasks: Comparison,
    /// The other tasks one by one.
    pub general_tasks: Comparison,
}

/// Compares the runs with `before`. `target` names tasks and groups of tasks; all other tasks that every run shares with `before`
/// count as general.
pub fn retention(mut before: Side, runs: Vec<Side>, target: &[String]) -> Result<Retention> {
    let mut tasks = Vec::new();
    for name in target {
        tasks.extend(named(&mut before, "--target", name)?);
    }
    let target = &tasks[..];
    let name = before.name.clone();
    let known: Vec<String> = before.tasks.keys().cloned().collect();
    let (before_target, before_general) = split(before, target);
    if before_general.tasks.is_empty() {
        return Err(Error::usage("all tasks are targets: none is left to measure what was lost")
            .cure("Name fewer tasks with --target, or evaluate general tasks as well."));
    }
    let sides = runs.into_iter().map(|run| {
        let (run_target, run_general) = split(run, target);
        let comparisons = [compare(&before_target, &run_target)?, compare(&before_general, &run_general)?];
        Ok(([run_target, run_general], comparisons))
    });
    let sides = sides.collect::<Result<Vec<_>>>()?;
    // A task that one run lacks, or was asked differently, would make the runs' averages cover different tasks.
    let has = |(_, comparisons): &([Side; 2], [Comparison; 2]), task: &String| {
        comparisons.iter().any(|one| one.tasks.contains_key(task))
    };
    let of_some = |task: &String| sides.iter().any(|run| has(run, task)) && !sides.iter().all(|run| has(run, task));
    let left_out: Vec<String> = known.into_iter().filter(of_some).collect();
    let run = |([run_target, run_general], [target_tasks, general_tasks]): ([Side; 2], [Comparison; 2])| {
        let name = run_target.name.clone();
        let average = |comparison: &Comparison, what: &str| {
            comparison.macro_average.clone().ok_or_else(|| {
                Error::usage(format!("`{name}` has no {what} task with an accuracy, which --target needs"))
                    .cure("Evaluate both on target tasks and on general tasks.")
            })
        };
        // Usually nothing is left out, and the existing comparison can be used.
        let shared = |before: &Side, run: Side, all: &Comparison| match left_out.iter().any(|task| all.tasks.contains_key(task)) {
            true => compare(before, &without(run, &left_out)),
            false => Ok(all.clone()),
        };
        let shared_target = shared(&before_target, run_target, &target_tasks)?;
        let shared_general = shared(&before_general, run_general, &general_tasks)?;
        let (target, general) = (average(&shared_target, "target")?, average(&shared_general, "general")?);
        Ok(Run { name, target, target_groups: shared_target.groups, target_tasks, general, general_tasks })
    };
    let runs = sides.into_iter().map(run).collect::<Result<_>>()?;
    Ok(Retention { before: name, runs, left_out })
}

fn without(mut side: Side, tasks: &[String]) -> Side {
    side.tasks.retain(|name, _| !tasks.contains(name));
    side
}

/// The tasks that `name`, a value of `option`, stands for: a task, a group, or all tasks whose names begin with it, which then
/// become a group.
pub(crate) fn named(side: &mut Side, option: &str, name: &str) -> Result<Vec<String>> {
    if side.tasks.contains_key(name) {
        return Ok(vec![name.to_owned()]);
    }
    if let Some(tasks) = side.groups.get(name) {
        return Ok(tasks.clone());
    }
    let begins = format!("{name}_");
    let tasks: Vec<String> = side.tasks.keys().filter(|task| task.starts_with(&begins)).cloned().collect();
    if tasks.is_empty() {
        let known: Vec<&str> = side.groups.keys().chain(side.tasks.keys()).map(String::as_str).collect();
        return Err(Error::usage(format!("{option} names `{name}`, but {} was evaluated on {}", side.name, known.join(", "))));
    }
    side.groups.insert(name.to_owned(), tasks.clone());
    Ok(tasks)
}

/// Splits a side into the named tasks and the others.
fn split(side: Side, target: &[String]) -> (Side, Side) {
    let (named, others): (BTreeMap<_, _>, _) = side.tasks.into_iter().partition(|(name, _)| target.contains(name));
    let side_of = |tasks, skipped| Side {
        name: side.name.clone(),
        model_reference: side.model_reference.clone(),
        engine: side.engine.clone(),
        tasks,
        groups: side.groups.clone(),
        skipped,
    };
    (side_of(named, Vec::new()), side_of(others, side.skipped))
}

#[cfg(test)]
mod tests {
    use super::super::asking::Asked;
    use super::super::compare::TaskSamples;
    use super::super::metrics::{ChoiceScore, Sample};
    use super::super::results::Settings;
    use super::super::tasks::TaskKind;
    use super::*;

    fn side(name: &str, tasks: &[(&str, usize)]) -> Side {
        let sample = |i: usize, right: bool| {
            let score = |logprob| ChoiceScore { logprob, chars: 1, bytes: 1, ..ChoiceScore::default() };
            let choices = vec![score(if right { -1.0 } else { -3.0 }), score(-2.0)];
            Sample { id: i.to_string(), choices, ..Sample::default() }
        };
        let task = |&(name, n_right): &(&str, usize)| {
            let samples = (0..10).map(|i| sample(i, i < n_right)).collect();
            (name.to_owned(), TaskSamples::of(TaskKind::Choice, samples))
        };
        Side {
            name: name.into(),
            model_reference: None,
            engine: None,
            tasks: tasks.iter().map(task).collect(),
            groups: BTreeMap::new(),
            skipped: Vec::new(),
        }
    }

    #[test]
    fn gains_and_losses_are_averaged_apart() {
        let before = || side("base", &[("med", 4), ("a", 8), ("b", 6)]);
        let runs = vec![side("sft", &[("med", 7), ("a", 5), ("b", 5)]), side("eaft", &[("med", 6), ("a", 8)])];
        let target = ["med".to_owned()];
        let found = retention(before(), runs, &target).unwrap();
        let [sft, eaft] = &found.runs[..] else { panic!() };
        let all = ["med", "a", "b"].map(str::to_owned);
        let error = retention(before(), vec![side("sft", &[("med", 7), ("a", 5), ("b", 5)])], &all).unwrap_err();
        assert!(error.message().contains("all tasks are targets"), "{error}");
        let close = |found: f64, expected: f64| assert!((found - expected).abs() < 1e-12, "{found} for {expected}");
        close(sft.target.difference.value, 0.3);
        // The target is only `a`, which both runs have.
        close(sft.general.difference.value, -0.3);
        assert_eq!((&found.left_out[..], sft.general.tasks.join(" ")), (&["b".to_owned()][..], "a".to_owned()));
        assert_eq!(sft.general_tasks.tasks.keys().map(String::as_str).collect::<Vec<_>>(), ["a", "b"]);
        close(eaft.target.difference.value, 0.2);
        close(eaft.general.difference.value, 0.0);
        assert_eq!((eaft.general.tasks.join(" "), &*found.before), ("a".to_owned(), "base"));
        // A task that one run was asked differently is left out of the other runs' averages, too, and reported.
        let asked_otherwise = |system: Option<&str>, mut side: Side| {
            for task in side.tasks.values_mut() {
                let asked = Asked { system: system.map(str::to_owned), ..Asked::default() };
                task.settings = Some(Settings { asked, ..Settings::default() });
            }
            side
        };
        let both = [("med", 4), ("a", 8), ("b", 6)];
        let mut odd = asked_otherwise(None, side("odd", &both));
        odd.tasks.get_mut("b").unwrap().settings =
            asked_otherwise(Some("S"), side("x", &both)).tasks.remove("b").unwrap().settings;
        let runs = vec![asked_otherwise(None, side("even", &both)), odd];
        let found = retention(asked_otherwise(None, side("base", &both)), runs, &target).unwrap();
        assert_eq!((&found.left_out[..], found.runs[0].general.tasks.join(" ")), (&["b".to_owned()][..], "a".to_owned()));
        assert!(found.runs[1].general_tasks.skipped[0].contains("--system"), "{:?}", found.runs[1].general_tasks.skipped);
        // A group given by the common beginning of its tasks' names: its 20 items have equal weights.
        let before = || side("base", &[("med_a", 4), ("med_b", 6), ("a", 8)]);
        let found = retention(before(), vec![side("sft", &[("med_a", 8), ("med_b", 6), ("a", 8)])], &target).unwrap();
        assert_eq!(found.runs[0].target.tasks, ["med"]);
        close(found.runs[0].target.difference.value, 0.2);
        assert_eq!(found.runs[0].target_groups["med"].n, 20);
        assert_eq!(found.runs[0].general.tasks, ["a"]);
        let before = || side("base", &[("med", 4), ("a", 8), ("b", 6)]);
        let error = retention(before(), Vec::new(), &["law".to_owned()]).unwrap_err().to_string();
        assert!(error.contains("names `law`, but base was evaluated on a, b, med"), "{error}");
        assert!(retention(before(), vec![side("x", &[("med", 1)])], &target).is_err());
    }
}
