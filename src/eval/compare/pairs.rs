//! Pairs the items of a task by their ids.

use std::collections::{HashMap, HashSet};

use super::super::metrics::{Metric, Sample};
use super::sides::{Asked, Origin, TaskSamples};
use crate::stats::{Design, Term};

/// The items of a task that both sides have.
pub(super) struct Pairs<'a> {
    pub old: &'a TaskSamples,
    pub new: &'a TaskSamples,
    /// The index of each item before and after.
    indices: Vec<(usize, usize)>,
}

impl<'a> Pairs<'a> {
    pub(super) fn of(old: &'a TaskSamples, new: &'a TaskSamples) -> Pairs<'a> {
        let places: HashMap<&str, usize> = new.ids.iter().enumerate().map(|(idx, id)| (id.as_str(), idx)).collect();
        let partner = |(idx, id): (usize, &String)| Some((idx, *places.get(id.as_str())?));
        Pairs { old, new, indices: old.ids.iter().enumerate().filter_map(partner).collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.indices.len()
    }

    pub(super) fn ids(&self) -> impl Iterator<Item = &'a str> {
        self.indices.iter().map(|&(before, _)| self.old.ids[before].as_str())
    }

    /// The samples of each item; none if one of the sides is not our own evaluation.
    pub(super) fn samples(&self) -> impl Iterator<Item = [&'a Sample; 2]> {
        let sample = |&(before, after): &(usize, usize)| Some([self.old.samples.get(before)?, self.new.samples.get(after)?]);
        self.indices.iter().filter_map(sample)
    }

    pub(super) fn origins(&self) -> impl Iterator<Item = &'a Origin> {
        self.indices.iter().map(|&(before, _)| &self.old.origins[before])
    }

    pub(super) fn design(&self) -> Design {
        Design::of(self.origins().map(|origin| (origin.subject.as_deref(), origin.group.as_deref())))
    }

    /// The metrics that both sides have.
    pub(super) fn metrics(&self) -> Vec<[&'a Metric; 2]> {
        let both = |old: &'a Metric| Some([old, self.new.metrics.iter().find(|new| new.name == old.name)?]);
        self.old.metrics.iter().filter_map(both).collect()
    }

    /// The values of a metric before and after.
    pub(super) fn terms(&self, [old, new]: [&Metric; 2]) -> [Vec<Term>; 2] {
        self.indices.iter().map(|&(before, after)| (old.terms[before], new.terms[after])).collect::<(Vec<_>, Vec<_>)>().into()
    }

    /// The number of items whose hashes are known on both sides and differ.
    pub(super) fn n_differing(&self, hash: fn(&Asked) -> Option<&str>) -> usize {
        let hashes = |&&(before, after): &&(usize, usize)| hash(&self.old.asked[before]).zip(hash(&self.new.asked[after]));
        self.indices.iter().filter(|pair| hashes(pair).is_some_and(|(before, after)| before != after)).count()
    }
}

/// The ids that only the first of two sides has.
pub(super) fn ids_only_of(one: &TaskSamples, other: &TaskSamples) -> Vec<String> {
    let ids: HashSet<&String> = other.ids.iter().collect();
    one.ids.iter().filter(|id| !ids.contains(id)).cloned().collect()
}
