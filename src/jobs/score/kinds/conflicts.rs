//! Reads the conflicts from the token table, and counts which of them are alike in many rows.

use std::collections::{HashMap, HashSet};
use std::path::PathBuf;
use std::sync::Arc;

use crate::diagnosis::context::Places;
use crate::diagnosis::turn_text::TurnToken;
use crate::error::Result;
use crate::table::{Column, Quadrant, TokenChunk, read_chunks};

/// A conflict from the table.
pub(super) struct FoundConflict {
    pub row: u32,
    pub turn: u16,
    pub pos: u32,
    pub begin: u32,
    pub end: u32,
    pub token_id: u32,
    pub top_id: u32,
    pub loss: f64,
    pub surplus: f64,
    pub grad: f64,
    /// Its distance from the first target of its turn, in tokens.
    pub place: u32,
    /// All supervised tokens of its turn, if the conflict is outside the content and they were requested.
    pub turn_tokens: Option<Arc<Vec<TurnToken>>>,
}

/// Target, choice, and the distance from the first target of the turn.
pub(super) type Likeness = (u32, u32, u32);

impl FoundConflict {
    pub(super) fn likeness(&self) -> Likeness {
        (self.token_id, self.top_id, self.place)
    }
}

/// For conflicts that are alike in more than one row, the number of rows; and the ids of all targets and choices and of the tokens that come
/// with the conflicts.
pub(super) fn survey(tables: &[PathBuf], beside_content: bool) -> Result<(HashMap<Likeness, u32>, HashSet<u32>)> {
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
pub(super) fn conflicts(tables: &[PathBuf], beside_content: bool) -> impl Iterator<Item = Result<FoundConflict>> {
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
