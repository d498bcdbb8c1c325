//! Decides what happens to each row of an export, from the run's table, rules and decisions, with the numbers that justify it.

use std::collections::{BTreeMap, HashMap};
use std::path::Path;

use super::changes::{Change, What};
use super::rules::{DropRule, MaskRule};
use crate::diagnosis::gate::{Gate, Token};
use crate::diagnosis::kinds::{ConflictKind, kinds_by_place};
use crate::diagnosis::population::Population;
use crate::error::{Error, Result};
use crate::jobs::decisions::{Decisions, Mask};
use crate::stats::PerRow;
use crate::table::{CONFLICTS_FILE, Column, Quadrant, Row, TOKENS_FILE, TokenChunk, read_chunks};

/// The requested rules and decisions.
pub(crate) struct Wanted {
    /// Rules that drop rows.
    pub drop: Vec<DropRule>,
    /// Rules that exclude tokens from the loss.
    pub mask: Vec<MaskRule>,
    /// The gate whose mean token weight becomes the weight of a row.
    pub weight: Option<Gate>,
    /// The number of rows to keep: those that teach most per conflict; `None` means all.
    pub select: Option<usize>,
    /// A person's decisions.
    pub decisions: Decisions,
}

impl Wanted {
    /// Whether a rule depends on which tokens are conflicts.
    pub(super) fn asks_for_conflicts(&self) -> bool {
        let of_rows = |rule: &DropRule| matches!(rule, DropRule::Mass(_) | DropRule::Kind(_));
        self.drop.iter().any(of_rows) || !self.mask.is_empty() || self.select.is_some()
    }
}

/// What happens to a row.
#[derive(Debug, Default)]
pub(super) struct Verdict {
    /// Present if the row is dropped, with the reason.
    pub drop: Option<Change>,
    /// The parts excluded from the loss, with the reasons. Which tokens a part takes out of the loss is known once its text is.
    pub masks: Vec<(Mask, Change)>,
    /// The supervised tokens in and beside these parts, in the order of the text.
    pub places: Vec<Place>,
    /// The weight of the row, with the reason.
    pub weight: Option<(f32, Change)>,
}

/// Sums over the supervised tokens of a row.
#[derive(Debug, Clone, Copy, Default)]
struct RowSums {
    conflicts: u32,
    /// The surplus of the conflicts, nats.
    mass: f64,
    /// -ln p over the uncertain tokens: what the row could teach, nats.
    teach: f64,
    /// The number of tokens with a finite weight, whose sum is `weight`.
    weighed: u32,
    weight: f64,
    tokens: u32,
}

/// Sums over supervised tokens that a mask takes out of the loss.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct MaskSums {
    pub conflicts: u32,
    /// The surplus of the conflicts, nats.
    pub mass: f64,
    pub tokens: u32,
    /// -ln p over all these tokens, nats.
    pub loss: f64,
}

impl MaskSums {
    pub(super) fn add(&mut self, place: &Place) {
        self.tokens += 1;
        self.loss += place.loss;
        if let Some(surplus) = place.conflict {
            self.conflicts += 1;
            self.mass += surplus;
        }
    }

    /// The change with these numbers.
    pub(super) fn of(self, change: Change) -> Change {
        let MaskSums { conflicts, mass, tokens, loss } = self;
        Change { conflicts, mass, tokens: Some(tokens), loss: Some(loss), ..change }
    }
}

/// A supervised token; `begin` is `end` for one without bytes in the content.
#[derive(Debug, Clone, Copy)]
pub(super) struct Place {
    turn: u16,
    begin: u32,
    end: u32,
    loss: f64,
    /// The surplus of a conflict, nats.
    conflict: Option<f64>,
}

impl Place {
    /// Whether it is in the turn and, if there is a span, has bytes in it.
    pub(super) fn is_in(&self, turn: u16, span: Option<(u32, u32)>) -> bool {
        self.turn == turn && span.is_none_or(|(begin, end)| self.begin < end && begin < self.end)
    }
}

/// The tokens of the row being read, each with whether a rule masks it.
#[derive(Default)]
struct OpenRow {
    row: u32,
    tokens: Vec<(Place, bool)>,
}

/// A character has up to four bytes, each of which may be a token: a mask of one is widened to at most three beside it.
const BESIDE: usize = 3;

/// What verdicts need from the table.
#[derive(Default)]
struct Seen {
    sums: HashMap<u32, RowSums>,
    /// All supervised tokens of rows with a decided mask; in other rows those that a rule masks, with their neighbours.
    places: HashMap<u32, Vec<Place>>,
    /// The conflicts that a rule masks, each with the rule.
    masked: HashMap<u32, Vec<(Place, MaskRule)>>,
    turns: BTreeMap<(u32, u16), MaskSums>,
    kinds: HashMap<u32, Vec<DropRule>>,
    /// Conflicts that a rule would mask but that are template tokens.
    beside_content: u64,
}

/// The verdicts by row, and the number of conflicts that could not be masked because they are template tokens.
pub(super) fn verdicts(run: &Path, rows: &[Row], wanted: &Wanted) -> Result<(BTreeMap<u32, Verdict>, u64)> {
    let numbers: std::collections::HashSet<u32> = rows.iter().map(|row| row.row).collect();
    if let Some((row, decision)) = wanted.decisions.rows.iter().find(|(row, _)| !numbers.contains(row)) {
        let last = rows.last().map_or(0, |row| row.row);
        return Err(Error::new(format!(
            "line {} of the decisions is about row {row}, which the run has not read: it has {} rows, up to number {last}",
            decision.line,
            rows.len()
        ))
        .cure("Rows are numbered from 0 over all files of the run; remove the line."));
    }
    let listed = wanted.drop.iter().filter_map(|rule| if let DropRule::Rows(rows) = rule { Some(rows) } else { None });
    if let Some(row) = listed.flatten().find(|row| !numbers.contains(row)) {
        let last = rows.last().map_or(0, |row| row.row);
        return Err(Error::usage(format!("--drop rows names row {row}, which the run has not read: its last one is {last}"))
            .cure("Rows are numbered from 0 over all files of the run."));
    }
    let seen = read(run, wanted)?;
    let mut verdicts = BTreeMap::new();
    for row in rows {
        let verdict = seen.verdict(row, wanted);
        if verdict.drop.is_some() || !verdict.masks.is_empty() || verdict.weight.is_some() {
            verdicts.insert(row.row, verdict);
        }
    }
    if let Some(n) = wanted.select {
        seen.select(n, rows, wanted, &mut verdicts);
    }
    Ok((verdicts, seen.beside_content))
}

fn read(run: &Path, wanted: &Wanted) -> Result<Seen> {
    let tables = [run.join(TOKENS_FILE)];
    let weight = match &wanted.weight {
        Some(gate) => Some(gate.bind(&Population::of_tables(&tables, &gate.needs())?)?),
        None => None,
    };
    let kinds = kinds_of_conflicts(run, wanted)?;
    let columns = [
        Column::Row,
        Column::Turn,
        Column::Pos,
        Column::Begin,
        Column::End,
        Column::Logprob,
        Column::Entropy,
        Column::EntropyTopk,
        Column::Grad,
        Column::Quadrant,
    ];
    let by_turn = wanted.mask.iter().any(|rule| matches!(rule, MaskRule::TurnMass(_)));
    let mut seen = Seen::default();
    let mut open = PerRow::<OpenRow>::default();
    for chunk in read_chunks(&tables, &columns) {
        let chunk: TokenChunk = chunk?;
        for i in 0..chunk.len() {
            let (row, loss) = (chunk.row[i], -f64::from(chunk.logprob[i]));
            if let Some(ended) = open.go_to(row) {
                seen.close(&ended, wanted);
            }
            open.sums.row = row;
            let surplus = loss - f64::from(chunk.entropy[i]);
            let is_conflict = chunk.quadrant[i] == Quadrant::ConfidentConflict;
            let sums = seen.sums.entry(row).or_default();
            sums.tokens += 1;
            let weight = weight.as_ref().map(|weight| f64::from(weight.of(&Token::of_table(&chunk, i))));
            if let Some(weight) = weight.filter(|weight| weight.is_finite()) {
                sums.weighed += 1;
                sums.weight += weight;
            }
            match chunk.quadrant[i] {
                Quadrant::ConfidentConflict => {
                    sums.conflicts += 1;
                    sums.mass += surplus;
                }
                Quadrant::Uncertain => sums.teach += loss,
                Quadrant::Confident | Quadrant::Hesitant => {}
            }
            let place = Place {
                turn: chunk.turn[i],
                begin: chunk.begin[i],
                end: chunk.end[i],
                loss,
                conflict: is_conflict.then_some(surplus),
            };
            if by_turn {
                seen.turns.entry((row, place.turn)).or_default().add(&place);
            }
            let is_masked = is_conflict && seen.apply(wanted, row, place, kinds.get(&(row, chunk.pos[i])).copied());
            open.sums.tokens.push((place, is_masked));
        }
    }
    if let Some(ended) = open.end() {
        seen.close(&ended, wanted);
    }
    Ok(seen)
}

/// The kinds of the conflicts by row and position, if a rule asks for them.
fn kinds_of_conflicts(run: &Path, wanted: &Wanted) -> Result<HashMap<(u32, u32), ConflictKind>> {
    let by_kind = wanted.drop.iter().any(|rule| matches!(rule, DropRule::Kind(_)))
        || wanted.mask.iter().any(|rule| matches!(rule, MaskRule::Kind(_)));
    if by_kind { kinds_by_place(&run.join(CONFLICTS_FILE)) } else { Ok(HashMap::new()) }
}

impl Seen {
    /// Keeps those of the row's tokens that its masks may take out of the loss.
    fn close(&mut self, OpenRow { row, tokens }: &OpenRow, wanted: &Wanted) {
        let is_decided = wanted.decisions.rows.get(row).is_some_and(|decision| !decision.masks.is_empty());
        let is_near = |idx: usize| {
            let near = idx.saturating_sub(BESIDE)..tokens.len().min(idx + BESIDE + 1);
            tokens[near].iter().any(|(_, is_masked)| *is_masked)
        };
        if is_decided || self.masked.contains_key(row) {
            let places = (0..tokens.len()).filter(|&idx| is_decided || is_near(idx)).map(|idx| tokens[idx].0).collect();
            self.places.insert(*row, places);
        }
    }

    /// Applies the rules about single conflicts to the one at `place`, and returns whether one of them masks it.
    fn apply(&mut self, wanted: &Wanted, row: u32, place: Place, kind: Option<ConflictKind>) -> bool {
        let hit = wanted.mask.iter().find(|rule| match rule {
            MaskRule::Conflicts => true,
            MaskRule::Kind(wanted) => kind == Some(*wanted),
            MaskRule::TurnMass(_) => false,
        });
        let is_in_content = place.begin < place.end;
        match hit {
            Some(rule) if is_in_content => self.masked.entry(row).or_default().push((place, *rule)),
            Some(_) => self.beside_content += 1,
            None => {}
        }
        for rule in &wanted.drop {
            if matches!(rule, DropRule::Kind(wanted) if kind == Some(*wanted)) {
                let rules = self.kinds.entry(row).or_default();
                if !rules.contains(rule) {
                    rules.push(rule.clone());
                }
            }
        }
        hit.is_some() && is_in_content
    }

    fn verdict(&self, row: &Row, wanted: &Wanted) -> Verdict {
        let mut verdict = Verdict { places: self.places.get(&row.row).cloned().unwrap_or_default(), ..Verdict::default() };
        let sums = self.sums.get(&row.row).copied().unwrap_or_default();
        let decision = wanted.decisions.rows.get(&row.row);
        let keeps = decision.is_some_and(|decision| decision.keep == Some(true));
        let change =
            |what: What, why: String| Change { conflicts: sums.conflicts, mass: sums.mass, ..Change::new(row, what, why) };
        let note = decision.and_then(|decision| decision.note.clone());
        if decision.is_some_and(|decision| decision.keep == Some(false)) {
            verdict.drop = Some(Change { note: note.clone(), ..change(What::Drop, "decision".to_owned()) });
            return verdict;
        }
        for mask in decision.into_iter().flat_map(|decision| &decision.masks) {
            let mask = whole_tokens(&verdict.places, *mask);
            let change = Change { note: note.clone(), ..Change::new(row, What::of(mask), "decision".to_owned()) };
            verdict.masks.push((mask, change));
        }
        if keeps {
            return verdict;
        }
        let dropped = wanted.drop.iter().find(|rule| match rule {
            // As the table of rows has it, from which the number may be taken: with as many digits.
            DropRule::Mass(nats) => sums.conflicts > 0 && row.conflict_surplus >= *nats as f32,
            DropRule::Rows(rows) => rows.contains(&row.row),
            DropRule::Kind(_) => self.kinds.get(&row.row).is_some_and(|rules| rules.contains(rule)),
            DropRule::Inexpressible => false,
        });
        if let Some(rule) = dropped {
            verdict.drop = Some(change(What::Drop, rule.to_string()));
            return verdict;
        }
        for rule in &wanted.mask {
            let MaskRule::TurnMass(nats) = rule else { continue };
            for (&(_, turn), sums) in self.turns.range((row.row, 0)..=(row.row, u16::MAX)) {
                let mask = Mask { turn, span: None };
                if sums.conflicts > 0 && sums.mass >= *nats && !verdict.masks.iter().any(|(known, _)| *known == mask) {
                    verdict.masks.push((mask, sums.of(Change::new(row, What::of(mask), rule.to_string()))));
                }
            }
        }
        for (place, rule) in self.masked.get(&row.row).into_iter().flatten() {
            let mask = Mask { turn: place.turn, span: Some((place.begin, place.end)) };
            verdict.masks.push((mask, Change::new(row, What::of(mask), rule.to_string())));
        }
        if let (Some(gate), true) = (&wanted.weight, sums.weighed > 0) {
            // Four digits are enough for a reader. The weight is never 0, since dropping a row is a separate rule.
            let weight = ((sums.weight / f64::from(sums.weighed)) * 1e4).round().max(1.0) / 1e4;
            let change =
                Change { weight: Some(weight), tokens: Some(sums.tokens), ..change(What::Weight, format!("--weight {gate}")) };
            verdict.weight = Some((weight as f32, change));
        }
        verdict
    }

    /// Keeps the `n` rows that teach most per conflict: the loss of their uncertain tokens divided by one plus the number of their conflicts.
    fn select(&self, n: usize, rows: &[Row], wanted: &Wanted, verdicts: &mut BTreeMap<u32, Verdict>) {
        let keeps = |row: &Row| wanted.decisions.rows.get(&row.row).is_some_and(|decision| decision.keep == Some(true));
        let score = |row: &Row| {
            let sums = self.sums.get(&row.row).copied().unwrap_or_default();
            if keeps(row) { f64::INFINITY } else { sums.teach / f64::from(sums.conflicts + 1) }
        };
        let stays = |row: &&Row| verdicts.get(&row.row).is_none_or(|verdict| verdict.drop.is_none());
        let mut ranked: Vec<&Row> = rows.iter().filter(stays).collect();
        ranked.sort_by(|a, b| score(b).total_cmp(&score(a)).then(a.row.cmp(&b.row)));
        for (rank, row) in ranked.into_iter().enumerate().skip(n).filter(|(_, row)| !keeps(row)) {
            let sums = self.sums.get(&row.row).copied().unwrap_or_default();
            let why = format!("--select {n}: number {} by nats to learn per conflict", rank + 1);
            let change = Change::new(row, What::Drop, why);
            let change = Change { conflicts: sums.conflicts, mass: sums.mass, teaches: Some(score(row)), ..change };
            verdicts.insert(row.row, Verdict { drop: Some(change), ..Verdict::default() });
        }
    }
}

/// Returns the mask widened to whole tokens: of a partly masked token, another tokenizer would supervise the rest.
fn whole_tokens(places: &[Place], mask: Mask) -> Mask {
    let widened = mask.span.map(|span| {
        let inside = places.iter().filter(|place| place.is_in(mask.turn, Some(span)));
        inside.fold(span, |(begin, end), place| (begin.min(place.begin), end.max(place.end)))
    });
    Mask { turn: mask.turn, span: widened }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::{self, Role, Turn};
    use crate::jobs::decisions::RowDecision;
    use crate::table::testing::{Example, Token as Written, token, write_parts};
    use crate::table::{ROWS_FILE, finish, read_rows};

    /// Turn 1 has two conflicts of 4 - 1 and 3 - 1 nats and a token beside them, turn 3 one conflict and a number that is none.
    fn verdict(wanted: Wanted) -> Verdict {
        let folder = tempfile::tempdir().unwrap();
        let in_turn = |turn: u16, nats: f32| Written { turn, ..token(turn.into(), (-nats).exp(), 1.0) };
        let broken = Written { turn: 3, ..token(9, f32::NAN, f32::NAN) };
        let tokens = vec![in_turn(1, 4.0), in_turn(1, 3.0), in_turn(1, 0.5), in_turn(3, 2.0), broken];
        write_parts(folder.path(), &[&[Example { row: 0, source: "a", tokens }]]);
        let label = |logprob: f32, _, _| if logprob <= -2.0 { Quadrant::ConfidentConflict } else { Quadrant::Confident };
        finish(folder.path(), "test", label).unwrap();
        let rows = read_rows(&folder.path().join(ROWS_FILE)).unwrap();
        verdicts(folder.path(), &rows, &wanted).unwrap().0.remove(&0).unwrap_or_default()
    }

    /// A mask that splits a character is widened to it, and its numbers are those of all tokens that it takes out of the loss, once.
    #[test]
    fn a_mask_counts_the_tokens_that_it_takes_out() {
        let folder = tempfile::tempdir().unwrap();
        // The bytes of one character are three tokens, of which the first and the last are conflicts.
        let at = |begin: u32, end: u32, nats: f32| Written { turn: 1, begin, end, ..token(begin, (-nats).exp(), 1.0) };
        let tokens = vec![at(0, 1, 0.5), at(1, 2, 4.0), at(2, 3, 0.25), at(3, 4, 3.0), at(4, 5, 0.5)];
        write_parts(folder.path(), &[&[Example { row: 0, source: "a", tokens }]]);
        let label = |logprob: f32, _, _| if logprob <= -2.0 { Quadrant::ConfidentConflict } else { Quadrant::Confident };
        finish(folder.path(), "test", label).unwrap();
        let rows = read_rows(&folder.path().join(ROWS_FILE)).unwrap();
        let turns = [(Role::User, "q"), (Role::Assistant, "a\u{8bed}b")].map(|(role, text)| Turn::plain(role, text));
        let read = dataset::Example { turns: turns.into(), ..dataset::Example::default() };
        let changes = |wanted: &Wanted| {
            let verdict = verdicts(folder.path(), &rows, wanted).unwrap().0.remove(&0).unwrap();
            super::super::decided(&read, &verdict).unwrap().1
        };
        let by_rule = changes(&Wanted { mask: vec!["conflicts".parse().unwrap()], ..wanted() });
        let numbers = |change: &Change| (change.tokens, change.conflicts, change.mass.round(), change.loss);
        assert_eq!(by_rule.iter().map(numbers).collect::<Vec<_>>(), [(Some(3), 2, 5.0, Some(7.25))]);
        assert!(by_rule.iter().all(|change| change.text.as_deref() == Some("\u{8bed}")), "{by_rule:?}");
        let masks = vec![Mask { turn: 1, span: Some((3, 5)) }, Mask { turn: 1, span: None }];
        let decision = RowDecision { masks, ..Default::default() };
        let decided = changes(&Wanted { decisions: Decisions { rows: [(0, decision)].into() }, ..wanted() });
        assert_eq!(
            decided.iter().map(numbers).collect::<Vec<_>>(),
            [(Some(4), 2, 5.0, Some(7.75)), (Some(1), 0, 0.0, Some(0.5))]
        );
    }

    fn wanted() -> Wanted {
        Wanted { drop: Vec::new(), mask: Vec::new(), weight: None, select: None, decisions: Decisions::default() }
    }

    #[test]
    fn a_masked_turn_counts_all_that_is_not_learnt_of_it() {
        let masks = verdict(Wanted { mask: vec!["turn-mass=2".parse().unwrap()], ..wanted() }).masks;
        let [(mask, change)] = &masks[..] else { panic!("{masks:?}") };
        assert_eq!((mask.turn, mask.span, change.tokens, change.conflicts), (1, None, Some(3), 2));
        assert!((change.mass - 5.0).abs() < 1e-5 && (change.loss.unwrap() - 7.5).abs() < 1e-5, "{change:?}");
        let masks = verdict(Wanted { mask: vec!["turn-mass=0".parse().unwrap()], ..wanted() }).masks;
        assert_eq!(masks.iter().map(|(mask, _)| mask.turn).collect::<Vec<_>>(), [1, 3]);
    }

    /// A number from rows.parquet means the same row again, whether it is written with the digits of f32 or of f64.
    #[test]
    fn a_row_is_dropped_at_its_own_mass() {
        for nats in (0..40).map(|i| 3.0 + 0.37 * i as f32) {
            let folder = tempfile::tempdir().unwrap();
            let tokens = vec![token(0, (-nats).exp(), 0.1), token(1, (-nats - 0.3).exp(), 0.7)];
            write_parts(folder.path(), &[&[Example { row: 0, source: "a", tokens }]]);
            finish(folder.path(), "test", |_, _, _| Quadrant::ConfidentConflict).unwrap();
            let rows = read_rows(&folder.path().join(ROWS_FILE)).unwrap();
            let mass = rows[0].conflict_surplus;
            for written in [mass.to_string(), f64::from(mass).to_string()] {
                let rule = format!("mass={written}");
                let wanted = Wanted { drop: vec![rule.parse().unwrap()], ..wanted() };
                assert_eq!(verdicts(folder.path(), &rows, &wanted).unwrap().0.len(), 1, "{rule}");
            }
            let more = Wanted { drop: vec![DropRule::Mass(f64::from(mass.next_up()))], ..wanted() };
            assert!(verdicts(folder.path(), &rows, &more).unwrap().0.is_empty());
        }
    }

    #[test]
    fn a_weight_is_the_mean_of_what_has_one() {
        let (weight, change) = verdict(Wanted { weight: Some("dft".parse().unwrap()), ..wanted() }).weight.unwrap();
        let mean = [4.0f64, 3.0, 0.5, 2.0].iter().map(|nats| (-nats).exp()).sum::<f64>() / 4.0;
        assert!((f64::from(weight) - mean).abs() < 1e-4 && change.tokens == Some(5), "{weight} for {mean}");
    }
}
