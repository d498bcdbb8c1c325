//! Describes how the items of a task were sampled: which were drawn together, and which parts the task has.
//!
//! Items of one *group* share something, such as the passage that they ask about: they were drawn together, and a group counts as
//! one draw. *Parts*, such as the subjects of MMLU, are the same in every draw: differences between them are not due to chance.

use std::collections::HashMap;

use super::terms::Term;

#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Design {
    /// The group number of each item; empty if every item was drawn independently.
    group_of: Vec<u32>,
    n_groups: usize,
    /// The index in `parts` of each item's part; empty if there is only one part.
    part_of: Vec<u32>,
    /// The names of the parts.
    pub parts: Vec<String>,
}

impl Design {
    /// Every item drawn independently, in one part.
    pub(crate) const ALONE: Design = Design { group_of: Vec::new(), n_groups: 0, part_of: Vec::new(), parts: Vec::new() };

    /// Builds the design from each item's part and group names, in the order of the items; `None` for an item without one.
    pub(crate) fn of<'a>(items: impl Iterator<Item = (Option<&'a str>, Option<&'a str>)>) -> Design {
        let (mut parts, mut groups) = (HashMap::new(), HashMap::new());
        let mut design = Design::ALONE;
        let mut has_groups = false;
        for (idx, (part, group)) in items.enumerate() {
            let part = *parts.entry(part.unwrap_or_default()).or_insert_with_key(|name| {
                design.parts.push((*name).to_owned());
                design.parts.len() as u32 - 1
            });
            design.part_of.push(part);
            has_groups |= group.is_some();
            // An item without a group forms its own group; group names are local to their part.
            let n_groups = groups.len() as u32;
            let own = group.map_or((part, None, idx), |name| (part, Some(name), 0));
            design.group_of.push(*groups.entry(own).or_insert(n_groups));
        }
        design.n_groups = groups.len();
        if !has_groups {
            (design.group_of, design.n_groups) = (Vec::new(), 0);
        }
        if design.parts.len() < 2 {
            (design.part_of, design.parts) = (Vec::new(), Vec::new());
        }
        design
    }

    pub(crate) fn has_groups(&self) -> bool {
        !self.group_of.is_empty()
    }

    /// The number of groups, with items outside groups counting as one each; `None` if there are no groups.
    pub(crate) fn n_groups(&self) -> Option<usize> {
        self.has_groups().then_some(self.n_groups)
    }

    /// By how many whole items each group's gains exceed its losses from `before` to `after`.
    pub(crate) fn nets(&self, before: &[Term], after: &[Term]) -> Vec<i64> {
        let moved = |(before, after): (Term, Term)| (after.numerator - before.numerator).round() as i64;
        self.units(before).into_iter().zip(self.units(after)).map(moved).collect()
    }

    /// The indices of the items of a part.
    pub(crate) fn items_of(&self, part: usize) -> Vec<usize> {
        (0..self.part_of.len()).filter(|&idx| self.part_of[idx] as usize == part).collect()
    }

    /// The design of a subset of the items, given by their indices: groups stay, and all items form one part.
    pub(crate) fn within(&self, items: &[usize]) -> Design {
        let names: Vec<String> = items.iter().filter_map(|&idx| self.group_of.get(idx)).map(u32::to_string).collect();
        Design::of((0..items.len()).map(|idx| (None, names.get(idx).map(String::as_str))))
    }

    /// The sampling units: the items, or the sums over their groups.
    pub(super) fn units(&self, terms: &[Term]) -> Vec<Term> {
        if !self.has_groups() {
            return terms.to_vec();
        }
        let mut sums = vec![Term::default(); self.n_groups];
        self.group_of.iter().zip(terms).for_each(|(&group, &term)| sums[group as usize] += term);
        sums
    }

    /// The part of each unit, and the number of parts. All units are in one part if some part has a single unit, which does not
    /// show how that part varies: differences between parts then count as chance.
    pub(super) fn parts_of_units(&self, n_units: usize) -> (Vec<usize>, usize) {
        let mut part_of = vec![0; n_units];
        for (idx, &part) in self.part_of.iter().enumerate() {
            let unit = self.group_of.get(idx).map_or(idx, |&group| group as usize);
            part_of[unit] = part as usize;
        }
        let n_parts = self.parts.len().max(1);
        let mut counts = vec![0; n_parts];
        part_of.iter().for_each(|&part| counts[part] += 1);
        if counts.iter().all(|&count| count > 1) { (part_of, n_parts) } else { (vec![0; n_units], 1) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn items_of_a_group_are_one_draw_and_parts_are_kept() {
        let items = [("a", Some("x")), ("a", Some("x")), ("a", None), ("b", Some("x")), ("b", None)];
        let design = Design::of(items.iter().map(|&(part, group)| (Some(part), group)));
        let terms: Vec<Term> = (1..=5).map(|i| Term { numerator: f64::from(i), denominator: 1.0 }).collect();
        let units: Vec<(f64, f64)> = design.units(&terms).iter().map(|unit| (unit.numerator, unit.denominator)).collect();
        assert_eq!(units, [(3.0, 2.0), (3.0, 1.0), (4.0, 1.0), (5.0, 1.0)]);
        assert_eq!((design.parts_of_units(4), design.parts.join(" ")), ((vec![0, 0, 1, 1], 2), "a b".to_owned()));
        assert_eq!(design.items_of(0), [0, 1, 2]);
        assert_eq!(design.within(&[0, 1, 2]).units(&terms[..3]).len(), 2);
        // A single item does not show how its part varies.
        let lone = Design::of([Some("a"), Some("a"), Some("b")].into_iter().map(|part| (part, None)));
        assert_eq!((lone.parts_of_units(3).1, lone.has_groups()), (1, false));
        assert_eq!(Design::of([(Some("a"), None); 3].into_iter()), Design::ALONE);
    }
}
