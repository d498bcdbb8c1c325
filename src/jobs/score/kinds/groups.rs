//! Sums over the conflicts of each kind, and over those with the same target and the same choice.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::Path;

use super::conflicts::FoundConflict;
use crate::diagnosis::breakdown::Breakdown;
use crate::diagnosis::by_kind::{ConflictGroup, KindSums};
use crate::diagnosis::context::Spot;
use crate::diagnosis::kinds::ConflictKind;
use crate::error::Result;
use crate::stats::share;
use crate::table::{CONFLICTS_FILE, read_conflicts};

/// The number of groups that the summary lists.
const LISTED: usize = 20;

/// Conflicts by kind and by group, in their order.
#[derive(Default)]
pub(super) struct Groups {
    /// Each group's number, by its kind, target and choice.
    numbers: HashMap<(ConflictKind, u32, u32), u32>,
    groups: Vec<Group>,
    kinds: BTreeMap<ConflictKind, OfKind>,
    /// The number of conflicts.
    n: u32,
}

/// Sums over some conflicts.
#[derive(Default)]
struct Sums {
    count: u64,
    surplus: f64,
    loss: f64,
    grad: f64,
}

/// Conflicts of one kind with the same target and the same choice.
struct Group {
    kind: ConflictKind,
    token_id: u32,
    top_id: u32,
    sums: Sums,
    /// The largest surplus among them, and the conflict that has it.
    worst: f64,
    row: u32,
    turn: u16,
    begin: u32,
    end: u32,
    pos: u32,
    /// The index of that conflict among all.
    at: u32,
}

#[derive(Default)]
struct OfKind {
    sums: Sums,
    rows: u64,
    last_row: Option<u32>,
}

impl Sums {
    fn add(&mut self, conflict: &FoundConflict) {
        self.count += 1;
        self.surplus += conflict.surplus;
        self.loss += conflict.loss;
        self.grad += conflict.grad;
    }
}

impl Group {
    /// A group without conflicts, for those like `conflict`.
    fn new(kind: ConflictKind, conflict: &FoundConflict) -> Group {
        let &FoundConflict { row, turn, begin, end, pos, token_id, top_id, .. } = conflict;
        let (sums, worst, at) = (Sums::default(), f64::NEG_INFINITY, 0);
        Group { kind, token_id, top_id, sums, worst, row, turn, begin, end, pos, at }
    }

    /// The place of the conflict with the largest surplus.
    fn spot(&self) -> Spot {
        Spot { row: self.row, turn: self.turn, begin: self.begin, end: self.end, pos: Some(self.pos), context: None }
    }
}

impl Groups {
    /// Returns the number of the conflict's group.
    pub(super) fn add(&mut self, conflict: &FoundConflict, kind: ConflictKind) -> u32 {
        let &FoundConflict { row, turn, begin, end, pos, surplus, .. } = conflict;
        let next = self.groups.len() as u32;
        let number = *self.numbers.entry((kind, conflict.token_id, conflict.top_id)).or_insert(next);
        if number == next {
            self.groups.push(Group::new(kind, conflict));
        }
        let group = &mut self.groups[number as usize];
        group.sums.add(conflict);
        if surplus > group.worst {
            group.worst = surplus;
            (group.row, group.turn, group.begin, group.end, group.pos, group.at) = (row, turn, begin, end, pos, self.n);
        }
        let of_kind = self.kinds.entry(kind).or_default();
        of_kind.sums.add(conflict);
        // The conflicts of a row are contiguous.
        of_kind.rows += u64::from(of_kind.last_row.replace(row) != Some(row));
        self.n += 1;
        number
    }

    /// The kinds, most conflicts first, and the groups with the most surplus; `overall` are the sums over all tokens, and `text` gives the text of a
    /// token. The evidence for the example of each group is read again from the table of conflicts in the folder `out`.
    pub(super) fn finish<'a>(
        self,
        out: &Path,
        overall: &Breakdown,
        text: impl Fn(u32) -> &'a str,
    ) -> Result<(Vec<KindSums>, Vec<ConflictGroup>)> {
        let Groups { groups, kinds, .. } = self;
        let mut order: Vec<u32> = (0..groups.len() as u32).collect();
        let surplus = |number: &u32| groups[*number as usize].sums.surplus;
        order.sort_unstable_by(|a, b| surplus(b).total_cmp(&surplus(a)).then(a.cmp(b)));
        order.truncate(LISTED);
        let mut evidence = evidence_of(order.iter().map(|number| groups[*number as usize].at).collect(), out)?;
        let listed = |number: u32| {
            let group = &groups[number as usize];
            ConflictGroup {
                group: number,
                kind: group.kind,
                token: text(group.token_id).to_owned(),
                top: text(group.top_id).to_owned(),
                count: group.sums.count,
                surplus: group.sums.surplus,
                loss_share: share(group.sums.loss, overall.loss),
                grad_share: share(group.sums.grad, overall.grad),
                example: group.spot(),
                evidence: evidence.remove(&group.at).unwrap_or_default(),
            }
        };
        let listed = order.into_iter().map(listed).collect();
        let sums = |(kind, OfKind { sums, rows, .. }): (ConflictKind, OfKind)| KindSums {
            kind,
            tokens: sums.count,
            rows,
            surplus: sums.surplus,
            loss_share: share(sums.loss, overall.loss),
            grad_share: share(sums.grad, overall.grad),
        };
        let mut kinds: Vec<KindSums> = kinds.into_iter().map(sums).collect();
        kinds.sort_by_key(|sums| Reverse(sums.tokens));
        Ok((kinds, listed))
    }
}

/// The evidence for these conflicts, given by their indices in the table of conflicts. Reading stops behind the last of them.
fn evidence_of(wanted: BTreeSet<u32>, out: &Path) -> Result<BTreeMap<u32, String>> {
    let n = wanted.last().map_or(0, |last| *last as usize + 1);
    let mut evidence = BTreeMap::new();
    for (at, conflict) in (0..).zip(read_conflicts(&out.join(CONFLICTS_FILE))).take(n) {
        let conflict = conflict?;
        if wanted.contains(&at) {
            evidence.insert(at, conflict.evidence);
        }
    }
    Ok(evidence)
}
