//! Finds rows with the same or nearly the same question, and answers that others contradict.

use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use rayon::prelude::*;

use crate::dataset::{Chosen, Dataset, Record};
use crate::diagnosis::exchanges::{Exchange, LeftOut, answer_text, exchanges, prompt};
use crate::diagnosis::near_duplicates::{Asked, Near, Prompt, by_question, near_pairs};
use crate::error::Result;
use crate::table::{Column, NearPair, read_chunks};
use crate::tokens::writes_beside_content;

/// The number of records whose prompts are processed in parallel.
const CHUNK: usize = 1024;

/// An answer: its row and turn.
pub(super) type AnswerAt = (u32, u16);

/// What the rows ask.
#[derive(Default)]
pub(super) struct Questions {
    /// The prompt of each row's last answer, by row.
    prompts: Vec<(u32, Prompt)>,
    /// All supervised answers with a prompt.
    asked: Vec<Asked>,
    /// Whether any turn contains reasoning or tool calls besides its content.
    pub beside_content: bool,
}

impl Questions {
    pub(super) fn read(tables: &[PathBuf], dataset: &Dataset, chosen: &Chosen, left_out: LeftOut) -> Result<Questions> {
        let mut questions = Questions::default();
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
                return Ok(questions);
            }
            questions.add(&chunk, left_out);
        }
    }

    /// Adds records, each with its supervised turns.
    fn add(&mut self, records: &[(Record, Vec<u16>)], left_out: LeftOut) {
        let examples = records.iter().filter_map(|(record, _)| record.example.as_ref().ok());
        self.beside_content = self.beside_content || examples.flat_map(|example| &example.turns).any(writes_beside_content);
        let read = |(record, learnt): &(Record, Vec<u16>)| {
            let example = record.example.as_ref().ok()?;
            let exchanges = exchanges(example, learnt, left_out);
            let last = exchanges.last()?.turn;
            let asked = exchanges.into_iter().map(|Exchange { turn, asked: question, answer }| Asked {
                question,
                row: record.row,
                turn,
                is_last: turn == last,
                answer,
            });
            Some((prompt(example, last, left_out).map(|prompt| (record.row, prompt)), asked.collect::<Vec<_>>()))
        };
        let (prompts, asked): (Vec<_>, Vec<_>) = records.par_iter().filter_map(read).unzip();
        self.prompts.extend(prompts.into_iter().flatten());
        self.asked.extend(asked.into_iter().flatten());
    }
}

/// Rows with the same or nearly the same question.
#[derive(Default)]
pub(super) struct Alike {
    /// In the order of the rows.
    pub pairs: Vec<NearPair>,
    /// For each answer, the different answers to the same question, if there are any.
    pub others: BTreeMap<AnswerAt, Arc<[AnswerAt]>>,
    /// The number of rows whose last question is that of an earlier row, or nearly.
    pub near_duplicates: u64,
    /// The number of rows with a question to which another row has a different answer.
    pub contradictions: u64,
}

impl Alike {
    pub(super) fn of(questions: Questions) -> Alike {
        let Questions { mut prompts, mut asked, .. } = questions;
        let (mut alike, mut pairs) = (Alike::default(), BTreeMap::new());
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
        alike
    }

    /// The texts of the answers that differ from another one.
    pub(super) fn answers(&self, dataset: &Dataset, chosen: &Chosen) -> Result<HashMap<AnswerAt, String>> {
        let answers: BTreeSet<AnswerAt> = self.others.values().flat_map(|others| others.iter().copied()).collect();
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
}

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
