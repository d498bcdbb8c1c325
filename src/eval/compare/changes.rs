//! What diff.json holds: the changes of tasks, of groups of tasks and of their average, and whether the average dropped.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};
use crate::stats::Estimate;

/// diff.json of two evaluations.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Comparison {
    /// The name of the side before.
    pub before: String,
    /// The name of the side after.
    pub after: String,
    /// The engines that ran the models, before and after, if they differ.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub engines: Option<[String; 2]>,
    /// The tasks of both sides by name.
    pub tasks: BTreeMap<String, TaskChange>,
    /// The harness's groups of tasks by name.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub groups: BTreeMap<String, GroupChange>,
    /// The mean over the tasks that have an accuracy, each by its primary metric, with a group as one task; `None` if there is no
    /// such task.
    pub macro_average: Option<MacroChange>,
    /// Tasks that only the side before has.
    pub tasks_only_before: Vec<String>,
    /// Tasks that only the side after has.
    pub tasks_only_after: Vec<String>,
    /// What could not be compared, with the reason.
    #[serde(default)]
    pub skipped: Vec<String>,
}

/// What changed in one task.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct TaskChange {
    /// The number of items on both sides.
    pub n: usize,
    /// The number of groups of items that were drawn together, if there are any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub n_groups: Option<usize>,
    /// The name of the primary metric.
    pub primary: String,
    /// The metrics of both sides by name.
    pub metrics: BTreeMap<String, MetricChange>,
    /// The mean of the primary metric with equal weights for all subjects, if it is an accuracy and there are several subjects.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mean_over_subjects: Option<MeanChange>,
    /// The items that flipped by the primary metric, if it is an accuracy.
    pub flips: Option<Flips>,
    /// The smallest drop of the primary metric that a paired test on these items detects with power 0.8, given the share of
    /// flips.
    pub detectable_drop: Option<f64>,
    /// Items that only the side before has.
    pub items_only_before: Vec<String>,
    /// Items that only the side after has.
    pub items_only_after: Vec<String>,
    /// Do the ids agree but the data files differ?
    pub data_differs: bool,
    /// The numbers of few-shot examples before and after, if they differ.
    #[serde(default)]
    pub few_shot: Option<[u32; 2]>,
    /// The options before and after, if both have the same number of examples but from different files or seeds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub examples_differ: Option<[String; 2]>,
    /// The number of items with different prompts, for example because of a different number of examples.
    #[serde(default)]
    pub prompts_differ: usize,
    /// Were texts cut into different windows before and after, so that whole texts are compared?
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub whole_texts: bool,
}

/// The change of a group of tasks, by their primary metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct GroupChange {
    /// The names of the tasks.
    pub tasks: Vec<String>,
    /// The name of their primary metric.
    pub primary: String,
    /// The number of items on both sides.
    pub n: usize,
    /// The mean with equal weights for all items.
    pub by_items: MeanChange,
    /// The mean with equal weights for all tasks.
    pub mean_over_tasks: MeanChange,
}

/// A mean before and after.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MeanChange {
    /// The mean before.
    pub before: f64,
    /// The mean after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
}

/// The change of one metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MetricChange {
    /// The metric before.
    pub before: f64,
    /// The metric after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
    /// Is a lower value better, as for a perplexity?
    pub lower_is_better: bool,
    /// Is it an accuracy, which is shown in per cent?
    pub is_share: bool,
    /// The two-sided p-value of the change: McNemar's exact test or, for items in groups, random signs of the groups' net
    /// changes. Only for accuracies.
    pub p: Option<f64>,
    /// `p` after Holm's correction for all tasks; only for primary metrics.
    pub p_holm: Option<f64>,
}

/// Items that were answered correctly on one side only.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Flips {
    /// Right before, wrong after.
    pub lost: Vec<String>,
    /// Wrong before, right after.
    pub gained: Vec<String>,
}

/// The change of the mean over several tasks, each by its primary metric.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct MacroChange {
    /// The tasks, and groups of tasks.
    pub tasks: Vec<String>,
    /// The mean before.
    pub before: f64,
    /// The mean after.
    pub after: f64,
    /// After minus before.
    pub difference: Estimate,
}

impl Comparison {
    /// See [`MacroChange::check_drop`].
    pub fn check_drop(&self, points: f64) -> Result<()> {
        match &self.macro_average {
            Some(average) => average.check_drop("the macro average", points),
            None => Err(Error::usage("--fail-on-drop needs a task with an accuracy; these have perplexities only")
                .cure("Leave it out, or also evaluate a task with choices or written answers.")),
        }
    }
}

impl MacroChange {
    /// Returns an error if the average, which `what` names, dropped with confidence by more than `points` (of 100): if even the
    /// upper end of its 95 % interval lies below. An unchanged model thus fails in only 2.5 % of cases.
    pub fn check_drop(&self, what: &str, points: f64) -> Result<()> {
        let Some([low, high]) = self.difference.ci95 else {
            return Err(Error::usage("--fail-on-drop needs at least two items in every task")
                .cure("Leave it out, or evaluate more items (--limit, --sample)."));
        };
        if 100.0 * high < -points {
            return Err(Error::check(format!(
                "{what} dropped by {:.2} points (95 % interval {:.2} to {:.2}), significantly more than {points}",
                -100.0 * self.difference.value,
                -100.0 * high,
                -100.0 * low
            )));
        }
        Ok(())
    }
}
