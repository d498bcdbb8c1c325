//! Assigns each conflict of a run its kind, from the conflicts and the rows' texts; groups the conflicts, and finds rows that are alike.
//!
//! ```text
//! alike.rs      rows with the same or nearly the same question, and answers that others contradict
//! conflicts.rs  the conflicts of the token table, and which of them are alike in many rows
//! groups.rs     sums by kind, and by kind, target and choice
//! ```
//!
//! The conflicts are read twice: once to count which of them are alike in many rows, and once beside the rows of the data, to assign and write the
//! kinds. The data are read once more to find rows with the same or nearly the same question, and again for the answers to questions that are
//! answered in different ways. In memory are: during the first pass the place and the tokens of each conflict (16 bytes); the sums of each group
//! (72 bytes); hashes of each supervised answer and of its question (24 bytes); and two signatures of each row, of its last question and of what
//! precedes it (256 bytes each). If turns contain reasoning or tool calls besides their content, a conflict there comes with all tokens of its turn.

mod alike;
mod conflicts;
mod groups;

use std::collections::{BTreeMap, HashMap};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use crate::dataset::{Chosen, Dataset, Example};
use crate::diagnosis::by_kind::Kinds;
use crate::diagnosis::exchanges::LeftOut;
use crate::diagnosis::kinds::{self, Conflict, ConflictKind};
use crate::diagnosis::summary::Summary;
use crate::diagnosis::turn_text::{PartPlace, TurnText};
use crate::error::Result;
use crate::table::{
    CONFLICTS_FILE, KnownConflict, NearPair, PAIRS_FILE, read_provenance, texts_of, write_conflicts, write_pairs,
};
use crate::tokens::{Audit, Part, writes_beside_content};
use alike::{Alike, AnswerAt, Questions};
use conflicts::{FoundConflict, Likeness, conflicts, survey};
use groups::Groups;

/// Assigns the kinds, and writes conflicts.parquet and pairs.parquet. Also returns the rows with the same or nearly the same question.
pub(super) fn name_kinds(
    out: &Path,
    tables: &[PathBuf],
    summary: &Summary,
    (dataset, chosen): (&Dataset, &Chosen),
    audit: &Audit,
) -> Result<(Kinds, Vec<NearPair>)> {
    let questions = Questions::read(tables, dataset, chosen, LeftOut::of_run(audit))?;
    let beside_content = questions.beside_content;
    let alike = Alike::of(questions);
    let (rows_alike, ids) = survey(tables, beside_content)?;
    let texts = texts_of(tables, &ids)?;
    let answers = alike.answers(dataset, chosen)?;
    let Alike { pairs, others, near_duplicates, contradictions } = alike;
    let rows = summary.overall.rows as usize;
    let mut naming = Naming { rows, rows_alike, texts: &texts, others, answers, last_turn: None };
    let provenance = tables.first().map(|table| read_provenance(table)).transpose()?.unwrap_or_default();
    let mut groups = Groups::default();
    write_conflicts(&out.join(CONFLICTS_FILE), &provenance, |write| {
        let mut add = |conflict: &FoundConflict, known: Option<(ConflictKind, String)>| {
            let (kind, evidence) = known.unwrap_or((ConflictKind::Unexplained, String::new()));
            let group = groups.add(conflict, kind);
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
                add(&conflict, example.and_then(|example| naming.kind(&conflict, example)))?;
            }
        }
        conflicts.try_for_each(|conflict| add(&conflict?, None))
    })?;
    write_pairs(&out.join(PAIRS_FILE), &pairs, &provenance)?;
    let (kinds, groups) = groups.finish(out, &summary.overall, |id| text_of(&texts, id))?;
    let kinds = Kinds { kinds, groups, near_duplicates, contradictions, in_context: None };
    Ok((kinds, pairs))
}

/// The text of a token of the table.
fn text_of(texts: &HashMap<u32, String>, id: u32) -> &str {
    texts.get(&id).map_or("", String::as_str)
}

/// What is known of the whole run, to assign a kind to each of its conflicts in their order.
struct Naming<'a> {
    /// The number of rows with supervised tokens.
    rows: usize,
    /// For conflicts that are alike in more than one row, the number of rows.
    rows_alike: HashMap<Likeness, u32>,
    /// The texts of the tokens.
    texts: &'a HashMap<u32, String>,
    /// For each answer, the different answers to the same question, if there are any.
    others: BTreeMap<AnswerAt, Arc<[AnswerAt]>>,
    /// The texts of those.
    answers: HashMap<AnswerAt, String>,
    /// The turn of the last conflict outside the content.
    last_turn: Option<(AnswerAt, TurnText)>,
}

impl Naming<'_> {
    /// The kind of a conflict of the row `example`, and the evidence for it; `None` if the row has no such turn.
    fn kind(&mut self, conflict: &FoundConflict, example: &Example) -> Option<(ConflictKind, String)> {
        let Naming { rows, rows_alike, texts, others, answers, last_turn } = self;
        let text = |id: u32| text_of(texts, id);
        let place = (conflict.row, conflict.turn);
        let others = others.get(&place).into_iter().flat_map(|others| others.iter());
        let others: Vec<(u32, &str)> = others.filter_map(|other| Some((other.0, answers.get(other)?.as_str()))).collect();
        let turn = example.turns.get(usize::from(conflict.turn))?;
        let earlier: Vec<&str> = example.turns[..usize::from(conflict.turn)].iter().map(|turn| turn.content.as_str()).collect();
        let mut found = Conflict {
            text: &turn.content,
            begin: conflict.begin as usize,
            end: conflict.end as usize,
            top: text(conflict.top_id),
            earlier: &earlier,
            rows_alike: rows_alike.get(&conflict.likeness()).map_or(1, |n| *n as usize),
            rows: *rows,
            others: &others,
            is_last: true,
        };
        let Some(tokens) = conflict.turn_tokens.as_ref().filter(|_| writes_beside_content(turn)) else {
            return Some(kinds::kind(&found));
        };
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
    }
}
