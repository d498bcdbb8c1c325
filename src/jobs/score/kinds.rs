//! Assigns each conflict of a run its kind, from the conflicts and the rows' texts; groups the conflicts, and finds rows that are alike.
//!
//! The conflicts are read twice: once to count which of them are alike in many rows, and once beside the rows of the data, to assign and write the
//! kinds. The data are read once more to find rows with the same or nearly the same question, and again for the answers to questions that are
//! answered in different ways. In memory are: during the first pass the place and the tokens of each conflict (16 bytes); the sums of each group
//! (64 bytes); hashes of each supervised answer and of its question (24 bytes); and two signatures of each row, of its last question and of what
//! precedes it (256 bytes each). If turns contain reasoning or tool calls besides their content, a conflict there comes with all tokens of its turn.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rayon::prelude::*;

use crate::dataset::{Chosen, Dataset, Example, Record};
use crate::diagnosis::breakdown::Breakdown;
use crate::diagnosis::by_kind::{ConflictGroup, KindSums, Kinds};
use crate::diagnosis::context::{Places, Spot};
use crate::diagnosis::exchanges::{Exchange, answer_text, exchanges, prompt};
use crate::diagnosis::kinds::{self, Conflict, ConflictKind};
use crate::diagnosis::near_duplicates::{Asked, Near, by_question, near_pairs};
use crate::diagnosis::summary::Summary;
use crate::diagnosis::turn_text::{PartPlace, TurnText, TurnToken};
use crate::error::Result;
use crate::stats::share;
use crate::table::{
    CONFLICTS_FILE, Column, KnownConflict, NearPair, PAIRS_FILE, Quadrant, TokenChunk, read_chunks, read_conflicts,
    read_provenance, texts_of, write_conflicts, write_pairs,
};
use crate::tokens::{Part, writes_beside_content};

/// A conflict from the table.
struct FoundConflict {
    row: u32,
    turn: u16,
    pos: u32,
    begin: u32,
    end: u32,
    token_id: u32,
    top_id: u32,
    loss: f64,
    surplus: f64,
    grad: f64,
    /// Its distance from the first target of its turn, in tokens.
    place: u32,
    /// All supervised tokens of its turn, if the conflict is outside the content and they were requested.
    turn_tokens: Option<Arc<Vec<TurnToken>>>,
}

/// Target, choice, and the distance from the first target of the turn.
type Likeness = (u32, u32, u32);

/// The number of records whose prompts are processed in parallel.
const CHUNK: usize = 1024;

/// The number of groups that the summary lists.
const LISTED: usize = 20;

/// Assigns the kinds, and writes conflicts.parquet and pairs.parquet. Also returns the rows with the same or nearly the same question.
pub(super) fn name_kinds(
    out: &Path,
    tables: &[PathBuf],
    summary: &Summary,
    dataset: &Dataset,
    chosen: &Chosen,
) -> Result<(Kinds, Vec<NearPair>)> {
    let Alike { pairs, others, near_duplicates, contradictions, beside_content } = Alike::find(tables, dataset, chosen)?;
    let (rows_alike, ids) = survey(tables, beside_content)?;
    let texts = texts_of(tables, &ids)?;
    let text = |id: u32| texts.get(&id).map_or("", String::as_str);
    let answers = answers_of(&others.values().flat_map(|others| others.iter().copied()).collect(), dataset, chosen)?;
    // The turn of the last conflict outside the content.
    let mut last_turn: Option<((u32, u16), TurnText)> = None;
    let mut kind = |conflict: &FoundConflict, example: &Example| {
        let others: Vec<(u32, &str)> = others
            .get(&(conflict.row, conflict.turn))
            .into_iter()
            .flat_map(|others| others.iter())
            .filter_map(|other| Some((other.0, answers.get(other)?.as_str())))
            .collect();
        let turn = example.turns.get(usize::from(conflict.turn))?;
        let earlier: Vec<&str> = example.turns[..usize::from(conflict.turn)].iter().map(|turn| turn.content.as_str()).collect();
        let mut found = Conflict {
            text: &turn.content,
            begin: conflict.begin as usize,
            end: conflict.end as usize,
            top: text(conflict.top_id),
            earlier: &earlier,
            rows_alike: rows_alike.get(&conflict.likeness()).map_or(1, |n| *n as usize),
            rows: summary.overall.rows as usize,
            others: &others,
            is_last: true,
        };
        let Some(tokens) = conflict.turn_tokens.as_ref().filter(|_| writes_beside_content(turn)) else {
            return Some(kinds::kind(&found));
        };
        let place = (conflict.row, conflict.turn);
        let (_, own) = match last_turn.take().filter(|(last, _)| *last == place) {
            Some(same) => last_turn.insert(same),
            None => last_turn.insert((place, TurnText::of(turn, tokens, text))),
        };
        found.is_last = !own.has(Part::ToolCall) && (!own.has(Part::Reasoning) || !turn.content.trim().is_empty());
        if let Some(PartPlace { part: part @ (Part::Reasoning | Part::ToolCall), text, bytes }) = own.place(conflict.pos) {
            (found.text, found.begin, found.end) = (text, bytes.start, bytes.end);
            // Of other rows only the answers are known, not the reasoning.
            found.others = if part == Part::Reasoning { &[] } else { &others };
        }
        Some(kinds::kind(&found))
    };
    let provenance = tables.first().map(|table| read_provenance(table)).transpose()?.unwrap_or_default();
    let mut sums = ConflictSums::default();
    write_conflicts(&out.join(CONFLICTS_FILE), &provenance, |write| {
        let mut add = |conflict: &FoundConflict, known: Option<(ConflictKind, String)>| {
            let (kind, evidence) = known.unwrap_or((ConflictKind::Unexplained, String::new()));
            let group = sums.add(conflict, kind);
            write(KnownConflict { row: conflict.row, pos: conflict.pos, kind: kind.name().to_owned(), evidence, group })
        };
        // The conflicts of a row are contiguous, and the rows are in the order of the data.
        let mut conflicts = conflicts(tables, beside_content).peekable();
        let mut records = dataset.chosen(chosen);
        while conflicts.peek().is_some()
            && let Some(record) = records.next()
        {
            let record = record?;
            while let Some(conflict) = conflicts.next_if(|next| next.as_ref().map_or(true, |next| next.row <= record.row)) {
                let conflict = conflict?;
                let example = record.example.as_ref().ok().filter(|_| conflict.row == record.row);
                add(&conflict, example.and_then(|example| kind(&conflict, example)))?;
            }
        }
        conflicts.try_for_each(|conflict| add(&conflict?, None))
    })?;
    write_pairs(&out.join(PAIRS_FILE), &pairs, &provenance)?;
    let (kinds, groups) = sums.finish(out, &summary.overall, text)?;
    let kinds = Kinds { kinds, groups, near_duplicates, contradictions, in_context: None };
    Ok((kinds, pairs))
}

/// Sums over the conflicts, in their order.
#[derive(Default)]
struct ConflictSums {
    /// Each group's number, by its kind, target and choice.
    numbers: HashMap<(ConflictKind, u32, u32), u32>,
    groups: Vec<Group>,
    kinds: BTreeMap<ConflictKind, OfKind>,
    /// The number of conflicts.
    n: u32,
}

/// Conflicts of one kind with the same target and the same choice.
struct Group {
    kind: ConflictKind,
    token_id: u32,
    top_id: u32,
    count: u32,
    surplus: f64,
    loss: f64,
    grad: f64,
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
    tokens: u64,
    rows: u64,
    surplus: f64,
    loss: f64,
    grad: f64,
    last_row: Option<u32>,
}

impl Group {
    /// A group without conflicts, for those like `conflict`.
    fn new(kind: ConflictKind, conflict: &FoundConflict) -> Group {
        let &FoundConflict { row, turn, begin, end, pos, token_id, top_id, .. } = conflict;
        let (count, at, worst) = (0, 0, f64::NEG_INFINITY);
        Group { kind, token_id, top_id, count, surplus: 0.0, loss: 0.0, grad: 0.0, worst, row, turn, begin, end, pos, at }
    }

    /// The place of the conflict with the largest surplus.
    fn spot(&self) -> Spot {
        Spot { row: self.row, turn: self.turn, begin: self.begin, end: self.end, pos: Some(self.pos), context: None }
    }
}

impl ConflictSums {
    /// Returns the number of the conflict's group.
    fn add(&mut self, conflict: &FoundConflict, kind: ConflictKind) -> u32 {
        let &FoundConflict { row, turn, begin, end, pos, loss, surplus, grad, .. } = conflict;
        let next = self.groups.len() as u32;
        let number = *self.numbers.entry((kind, conflict.token_id, conflict.top_id)).or_insert(next);
        if number == next {
            self.groups.push(Group::new(kind, conflict));
        }
        let group = &mut self.groups[number as usize];
        group.count += 1;
        group.surplus += surplus;
        group.loss += loss;
        group.grad += grad;
        if surplus > group.worst {
            group.worst = surplus;
            (group.row, group.turn, group.begin, group.end, group.pos, group.at) = (row, turn, begin, end, pos, self.n);
        }
        let of_kind = self.kinds.entry(kind).or_default();
        of_kind.tokens += 1;
        of_kind.surplus += surplus;
        of_kind.loss += loss;
        of_kind.grad += grad;
        // The conflicts of a row are contiguous.
        of_kind.rows += u64::from(of_kind.last_row.replace(row) != Some(row));
        self.n += 1;
        number
    }

    /// The kinds, most conflicts first, and the groups with the most surplus; `overall` are the sums over all tokens. The evidence for the example
    /// of each group is read again from the table of conflicts.
    fn finish<'a>(
        self,
        out: &Path,
        overall: &Breakdown,
        text: impl Fn(u32) -> &'a str,
    ) -> Result<(Vec<KindSums>, Vec<ConflictGroup>)> {
        let ConflictSums { numbers, groups, kinds, .. } = self;
        drop(numbers);
        let mut order: Vec<u32> = (0..groups.len() as u32).collect();
        let surplus = |number: &u32| groups[*number as usize].surplus;
        order.sort_unstable_by(|a, b| surplus(b).total_cmp(&surplus(a)).then(a.cmp(b)));
        order.truncate(LISTED);
        let mut evidences: BTreeMap<u32, String> = BTreeMap::new();
        let mut wanted: BTreeSet<u32> = order.iter().map(|number| groups[*number as usize].at).collect();
        for (at, conflict) in (0..).zip(read_conflicts(&out.join(CONFLICTS_FILE))) {
            if wanted.is_empty() {
                break;
            }
            let conflict = conflict?;
            if wanted.remove(&at) {
                evidences.insert(at, conflict.evidence);
            }
        }
        let listed = |number: u32| {
            let group = &groups[number as usize];
            ConflictGroup {
                group: number,
                kind: group.kind,
                token: text(group.token_id).to_owned(),
                top: text(group.top_id).to_owned(),
                count: u64::from(group.count),
                surplus: group.surplus,
                loss_share: share(group.loss, overall.loss),
                grad_share: share(group.grad, overall.grad),
                example: group.spot(),
                evidence: evidences.remove(&group.at).unwrap_or_default(),
            }
        };
        let listed = order.into_iter().map(listed).collect();
        let sums = |(kind, sums): (ConflictKind, OfKind)| KindSums {
            kind,
            tokens: sums.tokens,
            rows: sums.rows,
            surplus: sums.surplus,
            loss_share: share(sums.loss, overall.loss),
            grad_share: share(sums.grad, overall.grad),
        };
        let mut kinds: Vec<KindSums> = kinds.into_iter().map(sums).collect();
        kinds.sort_by_key(|sums| Reverse(sums.tokens));
        Ok((kinds, listed))
    }
}

impl FoundConflict {
    fn likeness(&self) -> Likeness {
        (self.token_id, self.top_id, self.place)
    }
}

/// For conflicts that are alike in more than one row, the number of rows; and the ids of all targets and choices and of the tokens that come
/// with the conflicts.
fn survey(tables: &[PathBuf], beside_content: bool) -> Result<(HashMap<Likeness, u32>, HashSet<u32>)> {
    let (mut places, mut ids) = (Vec::new(), HashSet::new());
    let mut last_turn = None;
    for conflict in conflicts(tables, beside_content) {
        let conflict = conflict?;
        ids.extend([conflict.token_id, conflict.top_id]);
        if let Some(tokens) = &conflict.turn_tokens
            && last_turn.replace((conflict.row, conflict.turn)) != Some((conflict.row, conflict.turn))
        {
            ids.extend(tokens.iter().map(|token| token.id));
        }
        places.push((conflict.likeness(), conflict.row));
    }
    places.sort_unstable();
    places.dedup();
    let alike = places.chunk_by(|(a, _), (b, _)| a == b).filter(|alike| alike.len() > 1);
    Ok((alike.map(|alike| (alike[0].0, alike.len() as u32)).collect(), ids))
}

/// The conflicts of the tables in their order; with `beside_content`, those outside the content come with the tokens of their turn.
fn conflicts(tables: &[PathBuf], beside_content: bool) -> impl Iterator<Item = Result<FoundConflict>> {
    let columns = [
        Column::Row,
        Column::Turn,
        Column::Pos,
        Column::Begin,
        Column::End,
        Column::TokenId,
        Column::TopId,
        Column::Logprob,
        Column::Entropy,
        Column::Grad,
        Column::Quadrant,
    ];
    let mut open = OpenTurn { beside_content, ..OpenTurn::default() };
    // The end of the last chunk is the end of the last turn.
    read_chunks(tables, &columns).map(Some).chain(std::iter::once(None)).flat_map(move |chunk| match chunk {
        Some(Ok(chunk)) => open.conflicts_of(&chunk).into_iter().map(Ok).collect(),
        Some(Err(error)) => vec![Err(error)],
        None => open.close().into_iter().map(Ok).collect(),
    })
}

/// The turn that is being read.
#[derive(Default)]
struct OpenTurn {
    beside_content: bool,
    /// Its row and number, and the position of its first target.
    turn: Option<(u32, u16)>,
    first: u32,
    places: Places,
    /// Its tokens and conflicts so far.
    tokens: Vec<TurnToken>,
    conflicts: Vec<FoundConflict>,
}

impl OpenTurn {
    /// The conflicts of the turns that end within the chunk.
    fn conflicts_of(&mut self, chunk: &TokenChunk) -> Vec<FoundConflict> {
        let mut found = Vec::new();
        for i in 0..chunk.len() {
            let turn = Some((chunk.row[i], chunk.turn[i]));
            if self.turn != turn {
                found.append(&mut self.close());
                (self.turn, self.first) = (turn, chunk.pos[i]);
            }
            let is_content = chunk.begin[i] < chunk.end[i];
            if self.beside_content {
                self.tokens.push(TurnToken { pos: chunk.pos[i], id: chunk.token_id[i], is_content });
            }
            let place = self.places.next(chunk.row[i], chunk.turn[i], chunk.begin[i]..chunk.end[i]);
            // A token with a number that is not finite is counted elsewhere, and is not a conflict.
            let loss = -f64::from(chunk.logprob[i]);
            let surplus = loss - f64::from(chunk.entropy[i]);
            if chunk.quadrant[i] != Quadrant::ConfidentConflict || !surplus.is_finite() {
                continue;
            }
            self.conflicts.push(FoundConflict {
                row: chunk.row[i],
                turn: chunk.turn[i],
                pos: chunk.pos[i],
                begin: place.start,
                end: place.end,
                token_id: chunk.token_id[i],
                top_id: chunk.top_id[i],
                loss,
                surplus,
                grad: f64::from(chunk.grad[i]),
                place: chunk.pos[i] - self.first,
                turn_tokens: None,
            });
        }
        found
    }

    /// Ends the turn and returns its conflicts.
    fn close(&mut self) -> Vec<FoundConflict> {
        let (mut conflicts, tokens) = (std::mem::take(&mut self.conflicts), std::mem::take(&mut self.tokens));
        if self.beside_content && conflicts.iter().any(|conflict| conflict.begin == conflict.end) {
            let tokens = Arc::new(tokens);
            let beside = conflicts.iter_mut().filter(|conflict| conflict.begin == conflict.end);
            beside.for_each(|conflict| conflict.turn_tokens = Some(Arc::clone(&tokens)));
        }
        conflicts
    }
}

/// An answer: its row and turn.
type AnswerAt = (u32, u16);

/// The turns with supervised tokens, in the order of the table.
fn learnt_turns(tables: &[PathBuf]) -> impl Iterator<Item = Result<AnswerAt>> {
    read_chunks(tables, &[Column::Row, Column::Turn]).flat_map(|chunk| match chunk {
        Ok(chunk) => {
            let mut turns: Vec<AnswerAt> = chunk.row.into_iter().zip(chunk.turn).collect();
            turns.dedup();
            turns.into_iter().map(Ok).collect()
        }
        Err(error) => vec![Err(error)],
    })
}

/// Rows with the same or nearly the same question.
#[derive(Default)]
struct Alike {
    /// In the order of the rows.
    pairs: Vec<NearPair>,
    /// For each answer, the different answers to the same question, if there are any.
    others: BTreeMap<AnswerAt, Arc<[AnswerAt]>>,
    /// The number of rows whose last question is that of an earlier row, or nearly.
    near_duplicates: u64,
    /// The number of rows with a question to which another row has a different answer.
    contradictions: u64,
    /// Does any turn contain reasoning or tool calls besides its content?
    beside_content: bool,
}

impl Alike {
    fn find(tables: &[PathBuf], dataset: &Dataset, chosen: &Chosen) -> Result<Alike> {
        let (mut prompts, mut asked, mut beside_content) = (Vec::new(), Vec::new(), false);
        let (mut records, mut learnt) = (dataset.chosen(chosen), learnt_turns(tables).peekable());
        loop {
            let mut chunk: Vec<(Record, Vec<u16>)> = Vec::with_capacity(CHUNK);
            for record in records.by_ref().take(CHUNK) {
                let (record, mut turns) = (record?, Vec::new());
                while let Some(next) = learnt.next_if(|next| next.as_ref().map_or(true, |(row, _)| *row <= record.row)) {
                    let (row, turn) = next?;
                    turns.extend((row == record.row).then_some(turn));
                }
                turns.sort_unstable();
                turns.dedup();
                chunk.push((record, turns));
            }
            if chunk.is_empty() {
                break;
            }
            let turns = || chunk.iter().filter_map(|(record, _)| record.example.as_ref().ok()).flat_map(|example| &example.turns);
            beside_content = beside_content || turns().any(writes_beside_content);
            let read = |(record, learnt): &(Record, Vec<u16>)| {
                let example = record.example.as_ref().ok()?;
                let exchanges = exchanges(example, learnt);
                let last = exchanges.last()?.turn;
                let asked = exchanges.into_iter().map(|Exchange { turn, asked: question, answer }| Asked {
                    question,
                    row: record.row,
                    turn,
                    is_last: turn == last,
                    answer,
                });
                Some((prompt(example, last).map(|prompt| (record.row, prompt)), asked.collect::<Vec<_>>()))
            };
            let (of_chunk, their): (Vec<_>, Vec<_>) = chunk.par_iter().filter_map(read).unzip();
            prompts.extend(of_chunk.into_iter().flatten());
            asked.extend(their.into_iter().flatten());
        }
        let (mut alike, mut pairs) = (Alike { beside_content, ..Alike::default() }, BTreeMap::new());
        let mut firsts = HashSet::new();
        for same in by_question(&mut asked) {
            let mut first = None;
            let mut others: HashMap<u64, Arc<[AnswerAt]>> = HashMap::new();
            for &Asked { row, turn, is_last, answer, .. } in same.rows {
                let others = others.entry(answer).or_insert_with(|| same.otherwise(answer).collect());
                if !others.is_empty() {
                    alike.others.insert((row, turn), Arc::clone(others));
                }
                match first {
                    Some(other) if is_last => {
                        alike.near_duplicates += 1;
                        pairs.insert(row, NearPair { row, other, prompts: 1.0, contradicts: false });
                    }
                    None if is_last => {
                        first = Some(row);
                        firsts.insert(row);
                    }
                    _ => {}
                }
            }
        }
        drop(asked);
        prompts.retain(|(row, _)| firsts.contains(row));
        for Near { earlier: other, later: row, similarity: prompts } in near_pairs(&prompts) {
            alike.near_duplicates += 1;
            pairs.insert(row, NearPair { row, other, prompts, contradicts: false });
        }
        // If several turns of a row have different answers elsewhere, the first of them counts.
        for (&(row, _), others) in alike.others.iter().rev() {
            let other = others[0].0;
            pairs.insert(row, NearPair { row, other, prompts: 1.0, contradicts: true });
        }
        alike.contradictions = pairs.values().filter(|pair| pair.contradicts).count() as u64;
        alike.pairs = pairs.into_values().collect();
        Ok(alike)
    }
}

/// The texts of these answers.
fn answers_of(answers: &BTreeSet<AnswerAt>, dataset: &Dataset, chosen: &Chosen) -> Result<HashMap<AnswerAt, String>> {
    let mut texts = HashMap::new();
    for record in dataset.chosen(&chosen.only(answers.iter().map(|(row, _)| *row))) {
        let record = record?;
        let Ok(example) = &record.example else { continue };
        for &(row, turn) in answers.range((record.row, 0)..=(record.row, u16::MAX)) {
            if let Some(turn_of) = example.turns.get(usize::from(turn)) {
                texts.insert((row, turn), answer_text(turn_of));
            }
        }
    }
    Ok(texts)
}
