//! Compares two scorings of the same data set, before and after training: where the loss fell, where it stayed, where it rose, and what the model
//! knew and has lost.
//!
//! A group of tokens (all, a source, a turn, a kind of conflict before training) is *helped* if the 95 % interval of its mean change of loss lies
//! below zero, *hurt* if it lies above, and *wasted* if it contains zero: training there left no effect distinguishable from chance. The intervals
//! treat whole rows as the sampling unit: a percentile bootstrap over rows, stretched for few rows, or the linearised error for thousands. The
//! interval of a single row treats its tokens as independent draws. Neighbouring tokens are not independent, so that interval is only a hint.
//!
//! A token was *known* if the model gave it a probability of at least [`KNOWN`], and is *lost* if another token is the first choice now. Lost tokens
//! are listed by target and new first choice, ordered by size times count: the sum of the nats lost there.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::context::{InContext, Places, Spot};
use super::kinds::ConflictKind;
use super::paired::Token;
use crate::error::Result;
use crate::spelling::named;
use crate::stats::{ClusterSums, Estimate, PerRow, Scale, Term, over_clusters};
use crate::table::{TOKENS_FILE, texts_of};

/// The probability from which a token counts as known.
pub const KNOWN: f32 = 0.5;

/// The length of each list: lost tokens, pairs of them, and rows.
const LISTED: usize = 40;

/// What training did to a group of tokens.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Helped,
    Wasted,
    Hurt,
}

named! { pub Verdict, "a verdict": Helped = "helped", Wasted = "wasted", Hurt = "hurt" }

impl Verdict {
    /// Returns `None` where the change has no interval.
    fn of(change: &Estimate) -> Option<Verdict> {
        let [low, high] = change.ci95?;
        Some(match (high < 0.0, low > 0.0) {
            (true, _) => Verdict::Helped,
            (_, true) => Verdict::Hurt,
            _ => Verdict::Wasted,
        })
    }
}

/// The part of diff.json for two score runs. Losses are -ln p, in nats; changes are after minus before, so that a negative change is an improvement.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Learnt {
    /// One group, of all tokens that both runs have.
    pub overall: Vec<Group>,
    /// The groups by source, ordered by the sum of the change, the most hurt first.
    pub sources: Vec<Group>,
    /// The groups by turn number, in the same order.
    pub turns: Vec<Group>,
    /// The groups by the kind of conflict that a token was before, in the same order; empty if the run before has no kinds.
    pub kinds: Vec<Group>,
    /// How many rows were helped, wasted and hurt.
    pub rows: RowCounts,
    /// The rows that lost most, by the sum of the change.
    pub worst_rows: Vec<RowChange>,
    /// Tokens with a probability of at least [`KNOWN`] before.
    pub known: u64,
    /// Known tokens that are not the first choice any more.
    pub lost: u64,
    /// Tokens that are known after and were not the first choice before.
    pub gained: u64,
    /// The lost tokens by target and new first choice, the largest sum of nats first.
    pub lost_pairs: Vec<LostPair>,
    /// The lost tokens one by one, the largest loss first.
    pub lost_tokens: Vec<LostToken>,
    /// All rows; they go into a table of their own.
    #[serde(skip)]
    pub all_rows: Vec<RowChange>,
    /// The identities of the run before and the run after; they go into that table.
    #[serde(skip)]
    pub identities: [String; 2],
}

/// What training did to a group of tokens, in numbers.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Group {
    /// What the tokens have in common: the name of the source, the number of the turn or the name of the kind.
    pub name: String,
    /// The rows that contain the tokens.
    pub rows: u64,
    /// The number of tokens.
    pub tokens: u64,
    /// Mean -ln p per token before, nats.
    pub loss_before: f64,
    /// Mean -ln p per token after, nats.
    pub loss_after: f64,
    /// Mean change of -ln p per token, nats, with its interval over rows.
    pub change: Estimate,
    /// The sum of the change over the tokens: size times count.
    pub nats: f64,
    /// The verdict of the interval; absent where there is none.
    pub verdict: Option<Verdict>,
}

/// The number of rows with each verdict.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct RowCounts {
    /// Rows whose loss fell.
    pub helped: u64,
    /// Rows whose loss stayed.
    pub wasted: u64,
    /// Rows whose loss rose.
    pub hurt: u64,
    /// Rows without an interval: those with a single token, or whose tokens all changed by the same amount.
    pub untold: u64,
}

/// What training did to one row.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RowChange {
    /// The row, numbered over the whole input.
    pub row: u32,
    /// The tokens that both runs have.
    pub tokens: u64,
    /// Mean change of -ln p per token, nats, with its interval over tokens.
    pub change: Estimate,
    /// The sum of the change, nats.
    pub nats: f64,
    /// The verdict of the interval; absent where there is none.
    pub verdict: Option<Verdict>,
    /// File and line, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

/// A target that was known, and the first choice that replaced it.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LostPair {
    /// The id of the target.
    pub token_id: u32,
    /// The text of the target.
    pub token: String,
    /// The id of the first choice now.
    pub top_id: u32,
    /// The text of the first choice now.
    pub top: String,
    /// The number of such tokens.
    pub count: u64,
    /// The sum of their rises in loss, nats.
    pub nats: f64,
    /// The token that lost most.
    pub example: Spot,
}

/// A single lost token: it was known and is not the first choice any more.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LostToken {
    /// Its place.
    pub spot: Spot,
    /// The id of the target.
    pub token_id: u32,
    /// The text of the target.
    pub token: String,
    /// The first choice now.
    pub top_id: u32,
    /// The text of the first choice now.
    pub top: String,
    /// ln p before.
    pub before: f32,
    /// ln p after.
    pub after: f32,
    /// File and line, where they are known.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub place: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
enum Key {
    All,
    Source(u32),
    Turn(u16),
    Kind(Option<ConflictKind>),
}

/// Sums over the tokens of a group: their loss before, and the change of each row.
#[derive(Default)]
struct GroupSums {
    before: f64,
    rows: Vec<Term>,
}

/// The changes of the row being read: by group, of its tokens, and in total.
#[derive(Default)]
struct OpenRow {
    row: u32,
    groups: BTreeMap<Key, Term>,
    tokens: ClusterSums,
    nats: f64,
}

/// What one pass over the pairs collects.
pub(super) struct Changes<'a> {
    kinds: Option<&'a HashMap<(u32, u32), ConflictKind>>,
    groups: BTreeMap<Key, GroupSums>,
    open: PerRow<OpenRow>,
    places: Places,
    learnt: Learnt,
    pairs: HashMap<(u32, u32), LostPair>,
}

impl<'a> Changes<'a> {
    /// `kinds` are the kinds of the conflicts before, by row and position.
    pub(super) fn new(kinds: Option<&'a HashMap<(u32, u32), ConflictKind>>) -> Changes<'a> {
        Changes {
            kinds,
            groups: BTreeMap::new(),
            open: PerRow::default(),
            places: Places::default(),
            learnt: Learnt::default(),
            pairs: HashMap::new(),
        }
    }

    pub(super) fn add(&mut self, before: &Token, after: &Token) {
        let place = self.places.next(before.row, before.turn, before.begin..before.end);
        if !before.logprob.is_finite() || !after.logprob.is_finite() {
            return;
        }
        if let Some(ended) = self.open.go_to(before.row) {
            self.close(ended);
        }
        let change = f64::from(before.logprob) - f64::from(after.logprob);
        let term = Term { numerator: change, denominator: 1.0 };
        let row = &mut self.open.sums;
        row.row = before.row;
        let kind = self.kinds.map(|kinds| Key::Kind(kinds.get(&(before.row, before.pos)).copied()));
        for key in [Key::All, Key::Source(before.source), Key::Turn(before.turn)].into_iter().chain(kind) {
            self.groups.entry(key).or_default().before -= f64::from(before.logprob);
            *row.groups.entry(key).or_default() += term;
        }
        row.tokens.add(term);
        row.nats += change;
        let was_known = before.logprob >= KNOWN.ln();
        self.learnt.known += u64::from(was_known);
        self.learnt.gained += u64::from(before.top_id != before.token_id && after.logprob >= KNOWN.ln());
        if was_known && after.top_id != after.token_id {
            let spot = Spot {
                row: before.row,
                turn: before.turn,
                begin: place.start,
                end: place.end,
                pos: Some(before.pos),
                context: None,
            };
            self.lose(spot, before, after, change);
        }
    }

    fn lose(&mut self, spot: Spot, before: &Token, after: &Token, change: f64) {
        self.learnt.lost += 1;
        let (token_id, top_id) = (before.token_id, after.top_id);
        let pair = self.pairs.entry((token_id, top_id)).or_insert_with(|| LostPair {
            token_id,
            token: String::new(),
            top_id,
            top: String::new(),
            count: 0,
            nats: 0.0,
            example: spot.clone(),
        });
        pair.count += 1;
        pair.nats += change;
        // Keep only the tokens that lost most, as many as will be listed.
        let lost = &mut self.learnt.lost_tokens;
        let lost_before = |other: &LostToken| f64::from(other.before) - f64::from(other.after);
        let place = lost.partition_point(|other| lost_before(other) >= change);
        if place < LISTED {
            let (token, top) = (String::new(), String::new());
            lost.insert(
                place,
                LostToken { spot, token_id, token, top_id, top, before: before.logprob, after: after.logprob, place: None },
            );
            lost.truncate(LISTED);
        }
    }

    fn close(&mut self, OpenRow { row, groups, tokens, nats }: OpenRow) {
        for (key, change) in groups {
            self.groups.entry(key).or_default().rows.push(change);
        }
        let (change, tokens) = (tokens.estimate(Scale::Plain), tokens.clusters());
        let verdict = Verdict::of(&change);
        let counts = &mut self.learnt.rows;
        *match verdict {
            Some(Verdict::Helped) => &mut counts.helped,
            Some(Verdict::Wasted) => &mut counts.wasted,
            Some(Verdict::Hurt) => &mut counts.hurt,
            None => &mut counts.untold,
        } += 1;
        self.learnt.all_rows.push(RowChange { row, tokens, change, nats, verdict, place: None });
    }

    /// `sources` are the names of the sources, `runs` the folders before and after.
    pub(super) fn finish(mut self, sources: &[String], runs: [&Path; 2]) -> Result<Learnt> {
        if let Some(ended) = self.open.end() {
            self.close(ended);
        }
        let mut learnt = self.learnt;
        for (key, sums) in self.groups {
            let (list, name) = match key {
                Key::All => (&mut learnt.overall, "all".to_owned()),
                Key::Source(source) => (&mut learnt.sources, sources.get(source as usize).cloned().unwrap_or_default()),
                Key::Turn(turn) => (&mut learnt.turns, turn.to_string()),
                Key::Kind(Some(kind)) => (&mut learnt.kinds, kind.name().to_owned()),
                Key::Kind(None) => (&mut learnt.kinds, "no conflict".to_owned()),
            };
            list.push(sums.finish(name));
        }
        for list in [&mut learnt.sources, &mut learnt.turns, &mut learnt.kinds] {
            list.sort_by(|a, b| b.nats.total_cmp(&a.nats));
        }
        learnt.worst_rows = learnt.all_rows.iter().filter(|row| row.nats > 0.0).cloned().collect();
        learnt.worst_rows.sort_by(|a, b| b.nats.total_cmp(&a.nats).then(a.row.cmp(&b.row)));
        learnt.worst_rows.truncate(LISTED);
        learnt.lost_pairs = self.pairs.into_values().collect();
        learnt
            .lost_pairs
            .sort_by(|a, b| b.nats.total_cmp(&a.nats).then(a.token_id.cmp(&b.token_id)).then(a.top_id.cmp(&b.top_id)));
        learnt.lost_pairs.truncate(LISTED);

        let pairs = learnt.lost_pairs.iter().flat_map(|pair| [pair.token_id, pair.top_id]);
        let ids: HashSet<u32> = pairs.chain(learnt.lost_tokens.iter().flat_map(|lost| [lost.token_id, lost.top_id])).collect();
        let texts = texts_of(&runs.map(|run| run.join(TOKENS_FILE)), &ids)?;
        let text = |id: u32| texts.get(&id).cloned().unwrap_or_default();
        for pair in &mut learnt.lost_pairs {
            (pair.token, pair.top) = (text(pair.token_id), text(pair.top_id));
        }
        for lost in &mut learnt.lost_tokens {
            (lost.token, lost.top) = (text(lost.token_id), text(lost.top_id));
        }
        Ok(learnt)
    }
}

impl GroupSums {
    fn finish(self, name: String) -> Group {
        let mut total = Term::default();
        self.rows.iter().for_each(|&row| total += row);
        let change = over_clusters(&self.rows);
        let loss_before = self.before / total.denominator;
        Group {
            name,
            rows: self.rows.len() as u64,
            tokens: total.denominator as u64,
            loss_before,
            loss_after: loss_before + total.numerator / total.denominator,
            verdict: Verdict::of(&change),
            change,
            nats: total.numerator,
        }
    }
}

impl Learnt {
    /// The rows that are listed or contain a listed token.
    pub fn listed_rows(&self) -> BTreeSet<u32> {
        let pairs = self.lost_pairs.iter().map(|pair| pair.example.row);
        let tokens = self.lost_tokens.iter().map(|lost| lost.spot.row);
        pairs.chain(tokens).collect()
    }

    /// Takes the sentences around the listed tokens of a row from `context_of`.
    pub fn read_contexts(&mut self, row: u32, context_of: &dyn Fn(&Spot) -> Option<InContext>) {
        let pairs = self.lost_pairs.iter_mut().map(|pair| &mut pair.example);
        let tokens = self.lost_tokens.iter_mut().map(|lost| &mut lost.spot);
        for spot in pairs.chain(tokens).filter(|spot| spot.row == row) {
            spot.context = context_of(spot);
        }
    }

    /// Fills in the file and line of each listed row, given its number.
    pub fn name_places(&mut self, place_of: &dyn Fn(u32) -> Option<String>) {
        for row in &mut self.worst_rows {
            row.place = place_of(row.row);
        }
        for lost in &mut self.lost_tokens {
            lost.place = place_of(lost.spot.row);
        }
    }

    /// The groups worth mending, each with the criterion that it is grouped by; criteria with a single group are left out. Groups that were hurt come
    /// first, by the nats lost (size times count), then the other groups that were not helped, by their tokens.
    pub fn to_mend(&self) -> Vec<(&'static str, &Group)> {
        let lists = [("source", &self.sources), ("turn", &self.turns), ("kind", &self.kinds)];
        let groups = lists.into_iter().filter(|(_, groups)| groups.len() > 1);
        let groups = groups.flat_map(|(what, groups)| groups.iter().map(move |group| (what, group)));
        let mut groups: Vec<_> = groups.filter(|(_, group)| group.verdict != Some(Verdict::Helped)).collect();
        let lost = |group: &Group| if group.verdict == Some(Verdict::Hurt) { group.nats } else { 0.0 };
        groups.sort_by(|(_, a), (_, b)| lost(b).total_cmp(&lost(a)).then(b.tokens.cmp(&a.tokens)));
        groups
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::table::Quadrant;
    use crate::table::finish;
    use crate::table::testing::{Example, token, write_parts};

    fn at(row: u32, pos: u32, logprob: f32, rank: u32) -> Token {
        Token {
            row,
            pos,
            token_id: pos,
            turn: 1,
            source: row % 2,
            begin: 0,
            end: 1,
            logprob,
            entropy: 1.0,
            top_id: if rank == 1 { pos } else { 90 },
            quadrant: Quadrant::Confident,
        }
    }

    /// Two runs of one token each, which supply the texts.
    fn runs(folder: &Path) -> [std::path::PathBuf; 2] {
        ["before", "after"].map(|name| {
            let run = folder.join(name);
            write_parts(&run, &[&[Example { row: 0, source: "a", tokens: vec![token(0, 0.5, 1.0), token(90, 0.5, 1.0)] }]]);
            finish(&run, "test", |_, _, _| Quadrant::Confident).unwrap();
            run
        })
    }

    #[test]
    fn what_was_learnt_wasted_and_lost_by_hand() {
        let folder = tempfile::tempdir().unwrap();
        let [before, after] = runs(folder.path());
        let kinds = HashMap::from([((0, 1), ConflictKind::Number)]);
        let mut changes = Changes::new(Some(&kinds));
        for row in 0..12 {
            // Rows of source 0 fall by about a nat per token, those of source 1 rise by about half a nat.
            let by = if row % 2 == 0 { 1.0 } else { -0.5 };
            for pos in 0..4 {
                let wobble = 0.01 * ((row * 4 + pos) % 5) as f32;
                changes.add(&at(row, pos, -2.0, 3), &at(row, pos, -2.0 + by + wobble, 2));
            }
        }
        // A known token is lost: its p goes from 0.8 to 0.1.
        changes.add(&at(12, 0, 0.8f32.ln(), 1), &at(12, 0, 0.1f32.ln(), 2));
        // This token was not the first choice and is known now; the next one has an infinite number and counts for nothing.
        changes.add(&at(13, 0, 0.1f32.ln(), 2), &at(13, 0, 0.9f32.ln(), 1));
        changes.add(&at(13, 1, f32::NEG_INFINITY, 9), &at(13, 1, -1.0, 1));
        let learnt = changes.finish(&["even".to_owned(), "odd".to_owned()], [&before, &after]).unwrap();
        let of = |list: &[Group], name: &str| list.iter().find(|group| group.name == name).cloned().unwrap();
        let odd = of(&learnt.sources, "odd");
        // Six hurt rows of four tokens, and the token that is known now.
        assert_eq!((odd.rows, odd.tokens), (7, 25));
        assert_eq!(learnt.rows, RowCounts { helped: 6, wasted: 0, hurt: 6, untold: 2 });
        assert_eq!((learnt.known, learnt.lost, learnt.gained), (1, 1, 1));
        let lost = &learnt.lost_tokens[0];
        assert_eq!((lost.spot.row, lost.token.as_str(), lost.top.as_str()), (12, "t0", "t90"));
        assert!((learnt.lost_pairs[0].nats - 8f64.ln()).abs() < 1e-6 && learnt.lost_pairs[0].count == 1);
        let number = of(&learnt.kinds, "number");
        assert_eq!((number.tokens, number.verdict), (1, None));
        assert_eq!(of(&learnt.kinds, "no conflict").tokens, 49);
        assert_eq!(learnt.overall[0].tokens, 50);
        let total: f64 = learnt.all_rows.iter().map(|row| row.nats).sum();
        assert!((learnt.overall[0].nats - total).abs() < 1e-9);
        // Row 13 was helped most, row 12 hurt most.
        assert_eq!(learnt.worst_rows[0].row, 12);
        assert!(learnt.worst_rows.iter().all(|row| row.nats > 0.0));
        // The hurt groups lost about half a nat per token, source and turn alike; the kind with too few rows for a verdict comes last.
        let to_mend: Vec<(&str, &str)> = learnt.to_mend().into_iter().map(|(what, group)| (what, group.name.as_str())).collect();
        assert_eq!(to_mend, [("kind", "no conflict"), ("source", "odd"), ("kind", "number")], "{:?}", learnt.kinds);
        let even = of(&learnt.sources, "even");
        assert!((even.loss_after - even.loss_before - even.change.value).abs() < 1e-12);
    }

    #[test]
    fn the_same_model_twice_has_learnt_nothing() {
        let folder = tempfile::tempdir().unwrap();
        let [before, after] = runs(folder.path());
        let mut changes = Changes::new(None);
        for row in 0..5 {
            for pos in 0..3 {
                changes.add(&at(row, pos, -0.1, 1), &at(row, pos, -0.1, 1));
            }
        }
        let learnt = changes.finish(&["a".to_owned(), "b".to_owned()], [&before, &after]).unwrap();
        assert_eq!((learnt.overall[0].change.value, learnt.overall[0].verdict), (0.0, Some(Verdict::Wasted)));
        assert_eq!((learnt.lost, learnt.rows.wasted, learnt.kinds.len()), (0, 5, 0));
    }
}
