//! Tests whether a prompt would remove the conflicts: scores the answers again with another row of the same kind shown first. A conflict that
//! vanishes is a matter of style or format that an example in the prompt brings about; one that stays contradicts the model's knowledge.
//!
//! For a conflict token `t` of row `r`, and a row `s` whose conflicts are mostly of the same kind `k` as those of `r`:
//!
//! ```text
//! before   p(t | prompt of r, answer of r up to t)
//! after    p(t | prompt and answer of s, prompt of r, answer of r up to t)      both of s and r as turns of one conversation
//! ```
//!
//! The conflict vanishes if `after` is no conflict under the run's thresholds. Any longer context changes probabilities, and tokens selected for a
//! low probability tend to rise. For comparison, the number of other tokens of the same answers that become conflicts is counted as well.
//!
//! Left out are rows of plain text, rows without another row of their kind with the same tools, rows whose joint conversation exceeds `--max-len`,
//! and template tokens. Rows with nearly the same question are not shown to each other, since that would reveal the answer. Of more than
//! [`MOST_ROWS`] rows, that many are sampled at random.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use crate::dataset::{Example, Role, Turn};
use crate::diagnosis::by_kind::{Prompted, PromptedKind};
use crate::diagnosis::exchanges::users_say;
use crate::diagnosis::kinds::ConflictKind;
use crate::diagnosis::quadrants::Resolved;
use crate::engine;
use crate::error::{Context, Result};
use crate::files::hex;
use crate::jobs::journal::Journal;
use crate::jobs::watch::Watch;
use crate::kernels::TokenStatistics;
use crate::model::Model;
use crate::random;
use crate::stats::{ClusterSums, Scale, Term, share};
use crate::table::{
    CONFLICTS_FILE, Column, IN_CONTEXT_FILE, KnownConflict, NearPair, PromptedToken, Quadrant, TOKENS_FILE, read_chunks,
    read_conflicts, read_provenance, write_in_context,
};
use crate::tokens::Sequence;

use super::plan::Plan;

/// The largest number of rows scored again.
const MOST_ROWS: u32 = 2000;
const SEED: u64 = 0;
/// The number of rows scored at a time.
const AT_ONCE: usize = 64;

/// A supervised token of the run.
#[derive(Clone, Copy)]
struct Known {
    pos: u32,
    logprob: f32,
    quadrant: Quadrant,
}

/// Turn, first byte, byte after the last, and token id.
type Key = (u16, u32, u32, u32);

/// The conflicts of a run with their kinds, and a hash of all that determines their result in context.
pub(super) struct Conflicts {
    kinds: HashMap<(u32, u32), ConflictKind>,
    key: String,
    /// The metadata of the token table, which identify the run and its thresholds.
    provenance: Vec<(String, String)>,
}

impl Conflicts {
    pub(super) fn read(out: &Path) -> Result<Conflicts> {
        let provenance = read_provenance(&out.join(TOKENS_FILE))?;
        let mut kinds = HashMap::new();
        // The provenance contains the run's identity and thresholds.
        let mut key = Sha256::new();
        key.update(format!("{VERSION} {provenance:?} ["));
        for (n, conflict) in read_conflicts(&out.join(CONFLICTS_FILE)).enumerate() {
            let KnownConflict { row, pos, kind, .. } = conflict?;
            let separator = if n == 0 { "" } else { ", " };
            key.update(format!("{separator}({row}, {pos}, {kind:?})"));
            if let Ok(kind) = kind.parse() {
                kinds.insert((row, pos), kind);
            }
        }
        key.update("]");
        Ok(Conflicts { kinds, key: hex(&key.finalize()), provenance })
    }
}

/// To be raised when the scoring changes, so that a table of an older version is not mistaken for a current one.
const VERSION: u32 = 1;
/// The metadata keys of the table for the hash of its conflicts and for their summary.
const CONFLICTS_KEY: &str = "diagnose.conflicts";
const PROMPTED_KEY: &str = "diagnose.prompted";
/// Keeps what a killed run has scored, for the next one with the same conflicts to resume.
const JOURNAL_FILE: &str = ".in_context.jsonl";

/// The folder for the tables of conflicts under other thresholds, named by their keys.
const ASIDE_FOLDER: &str = ".in_context";

/// Whether the run has ever scored conflicts in context, whichever they were.
pub(super) fn looked(out: &Path) -> bool {
    out.join(IN_CONTEXT_FILE).exists() || out.join(ASIDE_FOLDER).exists()
}

/// The earlier result, if it is for the same conflicts. A table of other conflicts is moved aside and returns with them, since it cost the scoring of
/// all their rows.
pub(super) fn kept(out: &Path, conflicts: &Conflicts) -> Result<Option<Prompted>> {
    let path = out.join(IN_CONTEXT_FILE);
    if let Some((key, prompted)) = found(&path)?
        && key == conflicts.key
    {
        return Ok(Some(prompted));
    }
    put_aside(out)?;
    let aside = aside(out, &conflicts.key);
    let Some((_, prompted)) = found(&aside)?.filter(|(key, _)| *key == conflicts.key) else { return Ok(None) };
    std::fs::rename(&aside, &path).context_at(&aside, "cannot move the table back to its place")?;
    Ok(Some(prompted))
}

/// Moves the table aside, since it holds the results of other conflicts than those about to be found.
pub(super) fn put_aside(out: &Path) -> Result<()> {
    let path = out.join(IN_CONTEXT_FILE);
    let Some((key, _)) = found(&path)? else { return Ok(()) };
    let to = aside(out, &key);
    std::fs::create_dir_all(out.join(ASIDE_FOLDER)).context_at(&to, "cannot create the folder of the table")?;
    std::fs::rename(&path, &to).context_at(&path, "cannot put the table aside")
}

fn aside(out: &Path, key: &str) -> PathBuf {
    out.join(ASIDE_FOLDER).join(format!("{key}.parquet"))
}

/// The key of a table's conflicts, and their summary.
fn found(path: &Path) -> Result<Option<(String, Prompted)>> {
    if !path.exists() {
        return Ok(None);
    }
    let mut known: HashMap<String, String> = read_provenance(path)?.into_iter().collect();
    let prompted = known.get(PROMPTED_KEY).and_then(|prompted| serde_json::from_str(prompted).ok());
    Ok(known.remove(CONFLICTS_KEY).zip(prompted))
}

/// A scored row, as the journal stores it.
#[derive(Serialize, Deserialize)]
struct Scored {
    row: u32,
    /// The row shown first.
    shown: u32,
    /// The row's tokens that were no conflicts on their own.
    others: u64,
    /// The number of them that are conflicts with the other row shown first.
    new: u64,
    /// Each conflict of the row: its position, its ln p and entropy with the other row shown first, and whether it vanished. The numbers are stored
    /// as bits, since JSON cannot express all of them.
    conflicts: Vec<(u32, u32, u32, bool)>,
}

pub(super) fn score(
    (plan, model): (&Plan, &Model),
    out: &Path,
    conflicts: &Conflicts,
    thresholds: &Resolved,
    pairs: &[NearPair],
    watch: &dyn Watch,
) -> Result<Prompted> {
    watch.stage("Scoring the conflicts in context");
    let kinds = &conflicts.kinds;
    let main = main_kinds(kinds);
    let all: Vec<u32> = main.keys().copied().collect();
    let drawn: BTreeSet<u32> = random::sample(SEED, all.len() as u32, MOST_ROWS).into_iter().map(|i| all[i as usize]).collect();
    let examples = examples_of(plan, &drawn)?;
    let shown = shown_first(&main, &examples, pairs);
    let known = tokens_of(out, &shown.keys().copied().collect())?;

    let (mut journal, before) = Journal::open::<Scored>(&out.join(JOURNAL_FILE), &conflicts.key, || None)?;
    let mut scored: BTreeMap<u32, Scored> = before.into_iter().map(|scored| (scored.row, scored)).collect();
    let rows: Vec<(u32, u32)> =
        shown.iter().map(|(row, other)| (*row, *other)).filter(|(row, _)| !scored.contains_key(row)).collect();
    for chunk in rows.chunks(AT_ONCE) {
        let mut together = Vec::new();
        for &(row, shown) in chunk {
            let (Some(own), Some(before)) = (examples.get(&row), examples.get(&shown)) else { continue };
            let (conversation, moved) = conversation(before, own);
            let Ok(rendered) = plan.renderer.render(row, &conversation) else { continue };
            if rendered.audit.truncated.is_none() && rendered.sequence.has_targets() {
                together.push((row, shown, moved, rendered.sequence));
            }
        }
        let sequences: Vec<Sequence> = together.iter().map(|(.., sequence)| sequence.clone()).collect();
        let scores = engine::score(model, &sequences)?;
        for ((row, shown, moved, sequence), scores) in together.into_iter().zip(scores) {
            let Some(known) = known.get(&row) else { continue };
            let tokens = supervised(&sequence, &scores, moved);
            let of_row = compared(row, shown, tokens, known, kinds, thresholds);
            journal.add(&of_row)?;
            scored.insert(row, of_row);
        }
    }

    let (prompted, table) = summed(&scored, main.len() as u64, &known, kinds);
    let mut provenance = conflicts.provenance.clone();
    provenance.push((CONFLICTS_KEY.to_owned(), conflicts.key.clone()));
    provenance.push((PROMPTED_KEY.to_owned(), serde_json::to_string(&prompted).context("cannot write down what was found")?));
    write_in_context(&out.join(IN_CONTEXT_FILE), &table, &provenance)?;
    journal.remove()?;
    Ok(prompted)
}

/// Compares the tokens of a row, `known` from scoring it alone, with their scores after the row `shown`.
fn compared<'a>(
    row: u32,
    shown: u32,
    tokens: impl Iterator<Item = (Key, &'a TokenStatistics)>,
    known: &HashMap<Key, Known>,
    kinds: &HashMap<(u32, u32), ConflictKind>,
    thresholds: &Resolved,
) -> Scored {
    let mut of_row = Scored { row, shown, others: 0, new: 0, conflicts: Vec::new() };
    for (key, statistics) in tokens {
        let Some(before) = known.get(&key) else { continue };
        let label = thresholds.label(statistics.logprob, statistics.entropy, statistics.tail);
        let is_conflict = label == Quadrant::ConfidentConflict;
        if before.quadrant != Quadrant::ConfidentConflict {
            of_row.others += 1;
            of_row.new += u64::from(is_conflict);
        } else if kinds.contains_key(&(row, before.pos)) {
            let (logprob, entropy) = (statistics.logprob.to_bits(), statistics.entropy.to_bits());
            of_row.conflicts.push((before.pos, logprob, entropy, !is_conflict));
        }
    }
    of_row
}

/// Summarises the conflicts of all rows, and returns them token by token in table order. `rows` is the number of rows including those not scored.
fn summed(
    scored: &BTreeMap<u32, Scored>,
    rows: u64,
    known: &HashMap<u32, HashMap<Key, Known>>,
    kinds: &HashMap<(u32, u32), ConflictKind>,
) -> (Prompted, Vec<PromptedToken>) {
    let mut sums: BTreeMap<ConflictKind, PromptedSums> = BTreeMap::new();
    let (mut others, mut table) = (ClusterSums::default(), Vec::new());
    for (&row, of_row) in scored {
        let alone: HashMap<u32, f32> =
            known.get(&row).into_iter().flatten().map(|(_, token)| (token.pos, token.logprob)).collect();
        let mut by_kind: BTreeMap<ConflictKind, (u64, u64, f64)> = BTreeMap::new();
        for &(pos, logprob, entropy, vanished) in &of_row.conflicts {
            let (Some(kind), Some(&before)) = (kinds.get(&(row, pos)), alone.get(&pos)) else { continue };
            let (logprob, entropy) = (f32::from_bits(logprob), f32::from_bits(entropy));
            let own = by_kind.entry(*kind).or_default();
            own.0 += 1;
            own.1 += u64::from(vanished);
            own.2 += f64::from(logprob) - f64::from(before);
            table.push(PromptedToken { row, pos, shown: of_row.shown, logprob, entropy, vanished });
        }
        others.add(Term { numerator: of_row.new as f64, denominator: of_row.others as f64 });
        for (kind, (n, vanished, change)) in by_kind {
            sums.entry(kind).or_default().add(n, vanished, change);
        }
    }
    let n_rows = scored.len() as u64;
    table.sort_by_key(|token| (token.row, token.pos));
    let mut prompted: Vec<PromptedKind> = sums.into_iter().map(|(kind, sums)| sums.finish(kind)).collect();
    prompted.sort_by(|a, b| b.vanished_share.total_cmp(&a.vanished_share).then(b.tokens.cmp(&a.tokens)));
    let estimate = others.estimate(Scale::LogOdds);
    let prompted = Prompted {
        rows: n_rows,
        rows_left_out: rows - n_rows,
        kinds: prompted,
        new_conflicts_share: if estimate.value.is_finite() { estimate.value } else { 0.0 },
        new_conflicts_share_ci95: estimate.ci95,
    };
    (prompted, table)
}

#[derive(Default)]
struct PromptedSums {
    tokens: u64,
    vanished: u64,
    change: f64,
    share: ClusterSums,
}

impl PromptedSums {
    fn add(&mut self, tokens: u64, vanished: u64, change: f64) {
        self.tokens += tokens;
        self.vanished += vanished;
        self.change += change;
        self.share.add(Term { numerator: vanished as f64, denominator: tokens as f64 });
    }

    fn finish(self, kind: ConflictKind) -> PromptedKind {
        PromptedKind {
            kind,
            tokens: self.tokens,
            vanished: self.vanished,
            vanished_share: share(self.vanished as f64, self.tokens as f64),
            vanished_share_ci95: self.share.ci95(Scale::LogOdds),
            change: share(self.change, self.tokens as f64),
        }
    }
}

/// The most frequent kind among the conflicts of each row, the first of equally frequent ones.
fn main_kinds(kinds: &HashMap<(u32, u32), ConflictKind>) -> BTreeMap<u32, ConflictKind> {
    let mut counts: BTreeMap<u32, BTreeMap<ConflictKind, u32>> = BTreeMap::new();
    for ((row, _), kind) in kinds {
        *counts.entry(*row).or_default().entry(*kind).or_default() += 1;
    }
    let most = |counts: BTreeMap<ConflictKind, u32>| {
        // Kinds come in ascending order and only a larger count replaces the best, so the smallest kind wins ties.
        counts.into_iter().fold(
            None,
            |best: Option<(ConflictKind, u32)>, own| if best.is_none_or(|best| own.1 > best.1) { Some(own) } else { best },
        )
    };
    counts.into_iter().filter_map(|(row, counts)| Some((row, most(counts)?.0))).collect()
}

fn examples_of(plan: &Plan, rows: &BTreeSet<u32>) -> Result<HashMap<u32, Example>> {
    let mut examples = HashMap::new();
    for record in plan.dataset.chosen(&plan.chosen.only(rows.iter().copied())) {
        let record = record?;
        if let Ok(example) = record.example {
            examples.insert(record.row, example);
        }
    }
    Ok(examples)
}

/// Selects the row to show before each row: the next one, cyclically, of the same kind, source and tools, or else of the same kind and tools; never
/// one with the same question.
fn shown_first(main: &BTreeMap<u32, ConflictKind>, examples: &HashMap<u32, Example>, pairs: &[NearPair]) -> BTreeMap<u32, u32> {
    let near: HashSet<(u32, u32)> = pairs.iter().flat_map(|pair| [(pair.row, pair.other), (pair.other, pair.row)]).collect();
    let asked: HashMap<u32, u64> = examples.iter().map(|(row, example)| (*row, users_say(example))).collect();
    let is_text = |example: &Example| example.turns.iter().any(|turn| turn.role == Role::Text);
    let group = |row: u32, example: &Example| {
        let tools = example.tools.as_ref().map(ToString::to_string);
        main.get(&row).map(|kind| (*kind, tools))
    };
    let mut groups: BTreeMap<(ConflictKind, Option<String>), Vec<u32>> = BTreeMap::new();
    let rows: BTreeSet<u32> = examples.iter().filter(|(_, example)| !is_text(example)).map(|(row, _)| *row).collect();
    for row in rows {
        if let Some(key) = examples.get(&row).and_then(|example| group(row, example)) {
            groups.entry(key).or_default().push(row);
        }
    }
    let mut shown = BTreeMap::new();
    for members in groups.values() {
        for (i, &row) in members.iter().enumerate() {
            let circle = || {
                let others = (1..members.len()).map(|step| members[(i + step) % members.len()]);
                others.filter(|other| !near.contains(&(row, *other)) && asked.get(&row) != asked.get(other))
            };
            let source = |row: u32| examples.get(&row).map(|example| example.source.as_str());
            if let Some(other) = circle().find(|other| source(*other) == source(row)).or_else(|| circle().next()) {
                shown.insert(row, other);
            }
        }
    }
    shown
}

/// How the turns of a conversation move when another conversation is inserted.
#[derive(Debug, Clone, Copy, PartialEq)]
struct Moved {
    /// The first turn that moves; system prompts stay in place.
    from: u16,
    /// The number of turns by which they move.
    by: u16,
}

/// Joins the two into one conversation in which nothing of the first is supervised, and returns how the turns of the second moved.
fn conversation(first: &Example, second: &Example) -> (Example, Moved) {
    let n_system = second.turns.iter().take_while(|turn| turn.role == Role::System).count();
    let mut shown: Vec<Turn> = first.turns.iter().filter(|turn| turn.role != Role::System).cloned().collect();
    shown.iter_mut().for_each(Turn::mask);
    let moved = Moved { from: n_system as u16, by: shown.len() as u16 };
    let mut turns = second.turns[..n_system].to_vec();
    turns.extend(shown);
    turns.extend_from_slice(&second.turns[n_system..]);
    (Example { turns, ..second.clone() }, moved)
}

/// The supervised tokens with text, keyed by their place in the second conversation alone.
fn supervised<'a>(
    sequence: &'a Sequence,
    scores: &'a [TokenStatistics],
    Moved { from, by }: Moved,
) -> impl Iterator<Item = (Key, &'a TokenStatistics)> {
    sequence.targets().zip(scores).filter_map(move |((pos, id), statistics)| {
        let span = sequence.spans[pos];
        let turn = if span.turn < from { span.turn } else { span.turn.checked_sub(by)? };
        (span.begin < span.end).then_some(((turn, span.begin, span.end, id), statistics))
    })
}

fn tokens_of(out: &Path, rows: &HashSet<u32>) -> Result<HashMap<u32, HashMap<Key, Known>>> {
    let columns =
        [Column::Row, Column::Turn, Column::Pos, Column::TokenId, Column::Begin, Column::End, Column::Logprob, Column::Quadrant];
    let mut known: HashMap<u32, HashMap<Key, Known>> = HashMap::new();
    for chunk in read_chunks(&[out.join(TOKENS_FILE)], &columns) {
        let chunk = chunk?;
        for i in (0..chunk.len()).filter(|&i| rows.contains(&chunk.row[i])) {
            let key = (chunk.turn[i], chunk.begin[i], chunk.end[i], chunk.token_id[i]);
            let token = Known { pos: chunk.pos[i], logprob: chunk.logprob[i], quadrant: chunk.quadrant[i] };
            known.entry(chunk.row[i]).or_default().insert(key, token);
        }
    }
    Ok(known)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn example(turns: &[(Role, &str)], source: &str) -> Example {
        let turns = turns.iter().map(|(role, text)| Turn::plain(*role, *text)).collect();
        Example { turns, source: source.to_owned(), ..Example::default() }
    }

    #[test]
    fn one_conversation_of_two() {
        use Role::{Assistant, System, User};
        let first = example(&[(System, "be brief"), (User, "a?"), (Assistant, "a.")], "x");
        let second = example(&[(System, "be kind"), (User, "b?"), (Assistant, "b.")], "x");
        let (together, moved) = conversation(&first, &second);
        let texts: Vec<_> = together.turns.iter().map(|turn| (turn.content.as_str(), turn.is_learnt())).collect();
        assert_eq!(texts, [("be kind", true), ("a?", false), ("a.", false), ("b?", true), ("b.", true)]);
        assert_eq!(moved, Moved { from: 1, by: 2 });
        assert_eq!(conversation(&second, &example(&[(User, "c?")], "x")).1, Moved { from: 0, by: 2 });
    }

    #[test]
    fn the_next_row_of_the_kind_is_shown_and_none_that_asks_the_same() {
        let kinds: HashMap<(u32, u32), ConflictKind> = [
            (1, ConflictKind::Format),
            (2, ConflictKind::Format),
            (3, ConflictKind::Format),
            (5, ConflictKind::Number),
            (6, ConflictKind::Format),
        ]
        .into_iter()
        .flat_map(|(row, kind)| [((row, 4), kind), ((row, 5), kind), ((row, 6), ConflictKind::Unexplained)])
        .collect();
        let main = main_kinds(&kinds);
        assert_eq!((main[&1], main[&5]), (ConflictKind::Format, ConflictKind::Number));
        let chat = |asked, source| example(&[(Role::User, asked), (Role::Assistant, "b")], source);
        let mut examples = HashMap::from([
            (1, chat("a", "x")),
            (2, chat("b", "y")),
            (3, chat("c", "x")),
            (5, chat("d", "x")),
            (6, example(&[(Role::Text, "t")], "x")),
        ]);
        // A row of the same source is shown first; the only row of its kind gets none; plain text neither shows nor is shown.
        assert_eq!(shown_first(&main, &examples, &[]), BTreeMap::from([(1, 3), (2, 3), (3, 1)]));
        let same = examples.insert(3, chat("A?", "x")).unwrap();
        assert_eq!(shown_first(&main, &examples, &[]), BTreeMap::from([(1, 2), (2, 3), (3, 2)]));
        examples.insert(3, same);
        let pair = NearPair { row: 3, other: 1, prompts: 1.0, contradicts: true };
        assert_eq!(shown_first(&main, &examples, &[pair]), BTreeMap::from([(1, 2), (2, 3), (3, 2)]));
        examples.get_mut(&2).unwrap().tools = Some(serde_json::json!([{"name": "f"}]));
        assert_eq!(shown_first(&main, &examples, &[]), BTreeMap::from([(1, 3), (3, 1)]));
    }

    #[test]
    fn tokens_are_found_where_they_stood() {
        use crate::tokens::Span;
        let span = |turn, begin, end| Span { turn, begin, end };
        let sequence = Sequence {
            row: 0,
            ids: vec![9, 7, 8, 6],
            supervised: vec![false, true, true, true],
            spans: vec![span(2, 0, 1), span(4, 0, 1), span(4, 1, 3), span(4, 0, 0)],
        };
        let scores = [TokenStatistics::default(); 3];
        let keys: Vec<Key> = supervised(&sequence, &scores, Moved { from: 1, by: 2 }).map(|(key, _)| key).collect();
        assert_eq!(keys, [(2, 0, 1, 7), (2, 1, 3, 8)]);
    }
}
