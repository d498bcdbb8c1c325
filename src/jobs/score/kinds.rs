//! The conflicts of a run and the texts of its rows -> the kind of each conflict, groups of them, and rows that are alike.
//!
//! The data are read once, and those rows again whose prompts have another answer elsewhere. Kept in memory: the conflicts, a
//! signature of each row's prompt (256 bytes), a hash of its answers.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::{Path, PathBuf};

use rayon::prelude::*;

use crate::dataset::{Chosen, Dataset, Example, Record, Role};
use crate::diagnosis::context::Spot;
use crate::diagnosis::kinds::{self, Conflict, Kind};
use crate::diagnosis::near_duplicates::{Signature, asks_the_same, near_pairs, words};
use crate::diagnosis::summary::{ConflictGroup, KindSums, Kinds, Summary};
use crate::error::Result;
use crate::files::sha256;
use crate::stats::share;
use crate::table::{
    CONFLICTS_FILE, Column, KnownConflict, NearPair, PAIRS_FILE, Quadrant, read_chunks, read_provenance, texts_of,
    write_conflicts, write_pairs,
};

/// A conflict out of the table.
struct Found {
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
    /// How far it stands behind the first target of its turn.
    place: u32,
}

/// Records whose prompts are read at a time, by all cores.
const CHUNK: usize = 1024;

/// Groups that the summary lists.
const LISTED: usize = 20;

/// Names the kinds; writes conflicts.parquet and pairs.parquet. Gives the rows that ask nearly the same, too.
pub(super) fn name_kinds(
    out: &Path,
    tables: &[PathBuf],
    summary: &Summary,
    dataset: &Dataset,
    chosen: &Chosen,
) -> Result<(Kinds, Vec<NearPair>)> {
    let conflicts = conflicts(tables)?;
    let ids: HashSet<u32> = conflicts.iter().flat_map(|conflict| [conflict.token_id, conflict.top_id]).collect();
    let texts = texts_of(tables, &ids)?;
    let text = |id: u32| texts.get(&id).map_or("", String::as_str);

    let pairs = pairs(dataset, chosen)?;
    let mut others: BTreeMap<u32, Vec<u32>> = BTreeMap::new();
    for pair in pairs.iter().filter(|pair| pair.contradicts) {
        others.entry(pair.row).or_default().push(pair.other);
        others.entry(pair.other).or_default().push(pair.row);
    }
    let answers = answers_of(&others.keys().copied().collect(), dataset, chosen)?;

    let mut rows_alike: HashMap<(u32, u32, u32), HashSet<u32>> = HashMap::new();
    for conflict in &conflicts {
        rows_alike.entry((conflict.token_id, conflict.top_id, conflict.place)).or_default().insert(conflict.row);
    }
    let mut known: Vec<Option<(Kind, String)>> = vec![None; conflicts.len()];
    let mut name = |row: u32, example: &Example, range: std::ops::Range<usize>| {
        let others: Vec<(u32, &str)> =
            others.get(&row).into_iter().flatten().filter_map(|other| Some((*other, answers.get(other)?.as_str()))).collect();
        for (conflict, known) in conflicts[range.clone()].iter().zip(&mut known[range]) {
            let Some(turn) = example.turns.get(usize::from(conflict.turn)) else { continue };
            let earlier: Vec<&str> =
                example.turns[..usize::from(conflict.turn)].iter().map(|turn| turn.content.as_str()).collect();
            *known = Some(kinds::kind(&Conflict {
                text: &turn.content,
                begin: conflict.begin as usize,
                end: conflict.end as usize,
                top: text(conflict.top_id),
                earlier: &earlier,
                rows_alike: rows_alike.get(&(conflict.token_id, conflict.top_id, conflict.place)).map_or(1, HashSet::len),
                rows: summary.overall.rows as usize,
                others: &others,
            }));
        }
    };
    // The conflicts of a row stand together, and the rows in the order of the data.
    let mut at = 0;
    for record in dataset.chosen(chosen) {
        let record = record?;
        let end = at + conflicts[at..].iter().take_while(|conflict| conflict.row == record.row).count();
        if let (true, Ok(example)) = (end > at, &record.example) {
            name(record.row, example, at..end);
        }
        at = end;
        if at == conflicts.len() {
            break;
        }
    }
    let mut groups: HashMap<(Kind, u32, u32), u32> = HashMap::new();
    let mut sums: BTreeMap<Kind, KindSums> = BTreeMap::new();
    let mut rows: BTreeMap<Kind, HashSet<u32>> = BTreeMap::new();
    let mut listed: Vec<ConflictGroup> = Vec::new();
    let mut worst: Vec<f64> = Vec::new();
    let mut table = Vec::with_capacity(conflicts.len());
    for (conflict, known) in conflicts.iter().zip(known) {
        let (kind, evidence) = known.unwrap_or((Kind::Unexplained, String::new()));
        let next = groups.len() as u32;
        let group = *groups.entry((kind, conflict.token_id, conflict.top_id)).or_insert(next);
        let spot = Spot { row: conflict.row, turn: conflict.turn, begin: conflict.begin, end: conflict.end, context: None };
        if group == next {
            let (token, top) = (text(conflict.token_id).to_owned(), text(conflict.top_id).to_owned());
            let (evidence, example) = (String::new(), spot.clone());
            listed.push(ConflictGroup {
                group,
                kind,
                token,
                top,
                count: 0,
                surplus: 0.0,
                loss_share: 0.0,
                grad_share: 0.0,
                example,
                evidence,
            });
            worst.push(f64::NEG_INFINITY);
        }
        let own = &mut listed[group as usize];
        own.count += 1;
        own.surplus += conflict.surplus;
        own.loss_share += conflict.loss;
        own.grad_share += conflict.grad;
        if conflict.surplus > worst[group as usize] {
            worst[group as usize] = conflict.surplus;
            (own.example, own.evidence) = (spot, evidence.clone());
        }
        let of_kind = sums.entry(kind).or_insert_with(|| KindSums {
            kind,
            tokens: 0,
            rows: 0,
            surplus: 0.0,
            loss_share: 0.0,
            grad_share: 0.0,
        });
        of_kind.tokens += 1;
        of_kind.surplus += conflict.surplus;
        of_kind.loss_share += conflict.loss;
        of_kind.grad_share += conflict.grad;
        rows.entry(kind).or_default().insert(conflict.row);
        table.push(KnownConflict { row: conflict.row, pos: conflict.pos, kind: kind.name().to_owned(), evidence, group });
    }
    let provenance = tables.first().map(|table| read_provenance(table)).transpose()?.unwrap_or_default();
    write_conflicts(&out.join(CONFLICTS_FILE), &table, &provenance)?;
    write_pairs(&out.join(PAIRS_FILE), &pairs, &provenance)?;

    let (loss, grad) = (summary.overall.loss, summary.overall.grad);
    for group in &mut listed {
        (group.loss_share, group.grad_share) = (share(group.loss_share, loss), share(group.grad_share, grad));
    }
    listed.sort_by(|a, b| b.surplus.total_cmp(&a.surplus).then(a.group.cmp(&b.group)));
    listed.truncate(LISTED);
    let mut kinds: Vec<KindSums> = sums.into_values().collect();
    for sums in &mut kinds {
        sums.rows = rows.get(&sums.kind).map_or(0, HashSet::len) as u64;
        (sums.loss_share, sums.grad_share) = (share(sums.loss_share, loss), share(sums.grad_share, grad));
    }
    kinds.sort_by_key(|sums| Reverse(sums.tokens));
    let kinds = Kinds {
        kinds,
        groups: listed,
        near_duplicates: pairs.len() as u64,
        contradictions: pairs.iter().filter(|pair| pair.contradicts).count() as u64,
        in_context: None,
    };
    Ok((kinds, pairs))
}

fn conflicts(tables: &[PathBuf]) -> Result<Vec<Found>> {
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
    let mut found = Vec::new();
    let mut first = (None, 0);
    for chunk in read_chunks(tables, &columns) {
        let chunk = chunk?;
        for i in 0..chunk.len() {
            let turn = Some((chunk.row[i], chunk.turn[i]));
            if first.0 != turn {
                first = (turn, chunk.pos[i]);
            }
            // A token whose numbers are not finite is counted elsewhere, and is no conflict.
            let loss = -f64::from(chunk.logprob[i]);
            let surplus = loss - f64::from(chunk.entropy[i]);
            if chunk.quadrant[i] != Quadrant::ConfidentConflict || !surplus.is_finite() {
                continue;
            }
            found.push(Found {
                row: chunk.row[i],
                turn: chunk.turn[i],
                pos: chunk.pos[i],
                begin: chunk.begin[i],
                end: chunk.end[i],
                token_id: chunk.token_id[i],
                top_id: chunk.top_id[i],
                loss,
                surplus,
                grad: f64::from(chunk.grad[i]),
                place: chunk.pos[i] - first.1,
            });
        }
    }
    Ok(found)
}

/// What is asked before the last answer, and all that is answered.
fn asked_and_answered(example: &Example) -> (String, String) {
    let last = example.turns.iter().rposition(|turn| turn.role == Role::Assistant);
    let (mut asked, mut answered) = (String::new(), String::new());
    for turn in &example.turns[..last.unwrap_or(0)] {
        asked.push_str(&turn.content);
        asked.push('\n');
    }
    if let Some(answer) = last.map(|last| &example.turns[last]) {
        answered.push_str(&answer.content);
        if let Some(calls) = &answer.tool_calls {
            answered.push_str(&calls.to_string());
        }
    }
    (asked, answered)
}

/// Rows with nearly the same prompts, those apart that contradict each other.
fn pairs(dataset: &Dataset, chosen: &Chosen) -> Result<Vec<NearPair>> {
    let mut signatures = Vec::new();
    let mut records = dataset.chosen(chosen);
    loop {
        let chunk: Vec<Record> = records.by_ref().take(CHUNK).collect::<Result<_>>()?;
        if chunk.is_empty() {
            break;
        }
        let signature = |record: &Record| {
            let example = record.example.as_ref().ok()?;
            Some((record.row, Signature::of(&asked_and_answered(example).0)?))
        };
        signatures.par_extend(chunk.par_iter().filter_map(signature));
    }
    let near = near_pairs(&signatures);
    if near.is_empty() {
        return Ok(Vec::new());
    }
    let wanted: BTreeSet<u32> = near.iter().flat_map(|(a, b, _)| [*a, *b]).collect();
    let mut texts: HashMap<u32, (String, String)> = HashMap::new();
    for record in dataset.chosen(chosen) {
        let record = record?;
        if let (true, Ok(example)) = (wanted.contains(&record.row), &record.example) {
            let (asked, answered) = asked_and_answered(example);
            // Of the answer no more than whether it is another one.
            texts.insert(record.row, (asked, sha256(words(&answered).join(" "))));
        }
    }
    let pair = |(other, row, prompts): (u32, u32, f32)| {
        let (a, b) = (texts.get(&other)?, texts.get(&row)?);
        Some(NearPair { row, other, prompts, contradicts: a.1 != b.1 && asks_the_same(&a.0, &b.0) })
    };
    Ok(near.into_iter().filter_map(pair).collect())
}

/// The last answers of these rows.
fn answers_of(rows: &BTreeSet<u32>, dataset: &Dataset, chosen: &Chosen) -> Result<HashMap<u32, String>> {
    let mut answers = HashMap::new();
    if rows.is_empty() {
        return Ok(answers);
    }
    for record in dataset.chosen(chosen) {
        let record = record?;
        if let (true, Ok(example)) = (rows.contains(&record.row), &record.example) {
            answers.insert(record.row, asked_and_answered(example).1);
        }
    }
    Ok(answers)
}
