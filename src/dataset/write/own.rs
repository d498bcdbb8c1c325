//! Writes a row in its original form, with other weights on its messages.

use serde_json::Value;

use super::super::chat::MESSAGES;
use super::super::example::{Example, Role};
use super::super::fields::Object;
use super::super::original::Original;
use super::super::switches::{LOSS_MASK, NAMES};
use super::messages::{Switches, add_switches};
use super::target::Reading;
use crate::error::{Error, Result};

const DETAILS: [&str; 2] = ["train_detail", "training_detail"];

pub(super) fn row(original: &Original, example: &Example, reading: &Reading) -> Result<Object> {
    let Some(object) = &original.object else {
        return Err(Error::new(format!("rows of the format {} cannot be written one by one as they were read", reading.format))
            .cure("Choose another --format, such as messages."));
    };
    let Ok(as_read) = &original.example else { return Ok(object.clone()) };
    let mut row = object.clone();
    let changed = |idx: &usize| as_read.turns[*idx].segments() != example.turns[*idx].segments();
    let changed: Vec<usize> = (0..example.turns.len()).filter(changed).collect();
    if changed.is_empty() {
        return Ok(row);
    }
    // Columns that the field map names take the place of the row's own.
    let lists = MESSAGES.lists.iter().copied();
    let mut lists = lists.clone().filter_map(|list| reading.mapping.column(list)).chain(lists);
    let list = lists.find(|key| row.get(*key).is_some_and(Value::is_array));
    let Some(messages) = list.and_then(|key| row.get_mut(key)?.as_array_mut()) else {
        return Err(Error::new(format!("a row of the format {} has no turns to exclude from the loss", reading.format))
            .cure("Choose --format messages."));
    };
    // A system prompt from a column of its own is the first turn, but not a message.
    let n_before = example.turns.len().saturating_sub(messages.len());
    if n_before > 1 || (n_before == 1 && example.turns[0].role != Role::System) || messages.len() > example.turns.len() {
        return Err(Error::new("the turns of the row do not match its messages one to one").cure("Choose --format messages."));
    }
    for idx in changed {
        let message = idx.checked_sub(n_before).and_then(|idx| messages.get_mut(idx)?.as_object_mut());
        let Some(message) = message else {
            return Err(Error::new(format!("turn {idx} is not a message of the row")).cure("Choose --format messages."));
        };
        for key in NAMES.into_iter().chain(DETAILS) {
            message.shift_remove(key);
        }
        add_switches(message, &example.turns[idx], Switches::Weights)?;
    }
    // The row's loss mask covers all answers, and could contradict the new weights of the messages.
    if row.contains_key(LOSS_MASK) {
        return Err(Error::new(format!("the row has its own `{LOSS_MASK}`, which would contradict the decision"))
            .cure("Choose --format messages."));
    }
    Ok(row)
}
