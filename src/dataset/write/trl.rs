//! Writes TRL's conversational forms. Its trainer supervises a completion, or with `assistant_only_loss` all answers of messages; it ignores
//! switches on turns. It takes the form of the first row for that of all.

use serde_json::json;

use super::super::example::Example;
use super::super::fields::Object;
use super::messages::{Switches, messages};
use super::sharegpt::all_learnt;
use super::target::{Reading, TEMPLATE_SWITCHES, Target, add_surroundings, is_completion_alone, is_text, named};
use crate::error::{Error, Result};

pub(super) fn row(example: &Example, reading: &Reading) -> Result<Object> {
    let mut row = named(example, reading);
    if is_text(example) {
        if reading.forms.has_talks {
            return Err(Error::new(
                "the row is a plain text, and others of the file are conversations: TRL takes all rows for what the first is",
            )
            .cure("Export texts and conversations apart, or leave the texts out with --drop inexpressible."));
        }
        all_learnt(&example.turns, 0, Target::Trl)?;
        row.extend(example.turns.first().map(|turn| ("text".to_owned(), turn.content.clone().into())));
        return Ok(row);
    }
    match example.turns.split_last() {
        Some((last, before)) if !reading.forms.learns_history && is_completion_alone(example) => {
            all_learnt(&example.turns, before.len(), Target::Trl)?;
            row.insert("prompt".to_owned(), messages(before, Switches::None)?);
            row.insert("completion".to_owned(), messages(std::slice::from_ref(last), Switches::None)?);
        }
        _ => {
            all_learnt(&example.turns, 0, Target::Trl)?;
            row.insert("messages".to_owned(), messages(&example.turns, Switches::None)?);
        }
    }
    add_surroundings(&mut row, example, true);
    if reading.forms.has_switches {
        // A table has the column in every row, and TRL stops at one without a value.
        row.entry(TEMPLATE_SWITCHES).or_insert_with(|| json!({}));
    }
    Ok(row)
}
