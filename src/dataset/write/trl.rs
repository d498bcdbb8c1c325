//! Writes TRL's conversational forms. Its trainer supervises a completion, or with `assistant_only_loss` all answers of messages; it ignores
//! switches on turns.

use super::super::example::{Example, Role};
use super::super::fields::Object;
use super::messages::{Switches, messages};
use super::sharegpt::all_learnt;
use super::target::{Reading, Target, add_surroundings, named};
use crate::error::Result;

pub(super) fn row(example: &Example, reading: &Reading) -> Result<Object> {
    let mut row = named(example, reading);
    if let [turn] = &example.turns[..]
        && turn.role == Role::Text
    {
        all_learnt(&example.turns, Target::Trl)?;
        row.insert("text".to_owned(), turn.content.clone().into());
        return Ok(row);
    }
    match example.turns.split_last() {
        Some((last, before)) if reading.completion_alone && is_completion_alone(example) => {
            all_learnt(std::slice::from_ref(last), Target::Trl)?;
            row.insert("prompt".to_owned(), messages(before, Switches::None)?);
            row.insert("completion".to_owned(), messages(std::slice::from_ref(last), Switches::None)?);
        }
        _ => {
            all_learnt(&example.turns, Target::Trl)?;
            row.insert("messages".to_owned(), messages(&example.turns, Switches::None)?);
        }
    }
    add_surroundings(&mut row, example, true);
    Ok(row)
}

/// Whether the last turn is the only supervised one.
pub(crate) fn is_completion_alone(example: &Example) -> bool {
    example.turns.split_last().is_some_and(|(last, before)| {
        let earlier = before.iter().any(|turn| turn.role == Role::Assistant && turn.is_learnt());
        last.role == Role::Assistant && last.is_learnt() && !earlier
    })
}
