//! Averages of accuracies: over the tasks of a group, and over all tasks.

use std::collections::{BTreeMap, BTreeSet};

use super::changes::{GroupChange, MacroChange, MeanChange};
use crate::stats::{
    Design, Estimate, Link, Term, macro_difference, mean_difference_over_parts, mean_over_parts, paired_difference, ratio,
};

/// The primary metric of a task, if it is an accuracy.
pub(super) struct Accuracy {
    pub metric: String,
    pub before: Vec<Term>,
    pub after: Vec<Term>,
    /// The group with which each item was drawn.
    pub groups: Vec<Option<String>>,
    pub difference: Estimate,
}

/// The change of a group, over those of its tasks that were compared; `None` if there are fewer than two, or if their primary
/// metrics differ.
pub(super) fn group_change(members: BTreeSet<&String>, accuracies: &BTreeMap<String, Accuracy>) -> Option<GroupChange> {
    let members: Vec<(&String, &Accuracy)> = members.into_iter().filter_map(|name| accuracies.get_key_value(name)).collect();
    let primary = &members.first()?.1.metric;
    if members.len() < 2 || members.iter().any(|(_, task)| task.metric != *primary) {
        return None;
    }
    let all = |side: fn(&Accuracy) -> &[Term]| members.iter().flat_map(|(_, task)| side(task)).copied().collect::<Vec<Term>>();
    let (before, after) = (all(|task| &task.before), all(|task| &task.after));
    let design = Design::of(
        members.iter().flat_map(|(name, task)| task.groups.iter().map(|group| (Some(name.as_str()), group.as_deref()))),
    );
    Some(GroupChange {
        tasks: members.iter().map(|(name, _)| (*name).clone()).collect(),
        primary: primary.clone(),
        n: before.len(),
        by_items: MeanChange {
            before: ratio(&before, Link::Identity),
            after: ratio(&after, Link::Identity),
            difference: paired_difference(&before, &after, &design, Link::Identity),
        },
        mean_over_tasks: mean_change_over_parts(&before, &after, &design)?,
    })
}

pub(super) fn mean_change_over_parts(before: &[Term], after: &[Term], design: &Design) -> Option<MeanChange> {
    Some(MeanChange {
        before: mean_over_parts(before, design)?.value,
        after: mean_over_parts(after, design)?.value,
        difference: mean_difference_over_parts(before, after, design)?,
    })
}

pub(super) fn macro_average(
    accuracies: &BTreeMap<String, Accuracy>,
    groups: &BTreeMap<String, GroupChange>,
) -> Option<MacroChange> {
    // Of nested groups, the outermost counts.
    let is_within = |(name, group): (&String, &GroupChange), (other, outer): (&String, &GroupChange)| {
        let (n, n_outer) = (group.tasks.len(), outer.tasks.len());
        (n_outer > n || (n_outer == n && other < name)) && group.tasks.iter().all(|task| outer.tasks.contains(task))
    };
    let outermost: Vec<(&String, &GroupChange)> =
        groups.iter().filter(|own| !groups.iter().any(|other| is_within(*own, other))).collect();
    let mut of_group = BTreeSet::new();
    let mut units: Vec<(String, MeanChange)> = Vec::new();
    for (name, group) in outermost {
        of_group.extend(&group.tasks);
        units.push((name.clone(), group.by_items.clone()));
    }
    for (name, task) in accuracies.iter().filter(|(name, _)| !of_group.contains(name)) {
        let [before, after] = [&task.before, &task.after].map(|terms| ratio(terms, Link::Identity));
        units.push((name.clone(), MeanChange { before, after, difference: task.difference }));
    }
    units.sort_by(|(a, _), (b, _)| a.cmp(b));
    let mean = |of: fn(&MeanChange) -> f64| units.iter().map(|(_, unit)| of(unit)).sum::<f64>() / units.len() as f64;
    let differences: Vec<Estimate> = units.iter().map(|(_, unit)| unit.difference).collect();
    (!units.is_empty()).then(|| MacroChange {
        tasks: units.iter().map(|(name, _)| name.clone()).collect(),
        before: mean(|unit| unit.before),
        after: mean(|unit| unit.after),
        difference: macro_difference(&differences),
    })
}
