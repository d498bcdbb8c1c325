//! Writes Alpaca's columns, with LLaMA-Factory's `system` and `history`.

use serde_json::{Value, json};

use super::super::example::{Example, Role, Turn};
use super::super::fields::Object;
use super::sharegpt::all_learnt;
use super::target::{Reading, Target, named};
use crate::error::{Error, Result};

pub(super) fn row(example: &Example, reading: &Reading) -> Result<Object> {
    all_learnt(&example.turns, 0, Target::Alpaca)?;
    let mut row = named(example, reading);
    let (system, turns) = match &example.turns[..] {
        [first, rest @ ..] if first.role == Role::System => (Some(first), rest),
        turns => (None, turns),
    };
    let pairs: Vec<[&Turn; 2]> =
        turns.chunks(2).filter_map(|pair| <[&Turn; 2]>::try_from(pair.iter().collect::<Vec<_>>()).ok()).collect();
    let is_pair = |[asked, answered]: &[&Turn; 2]| {
        asked.role == Role::User
            && answered.role == Role::Assistant
            && answered.tool_calls.is_none()
            && answered.reasoning.is_none()
    };
    let (Some(([asked, answered], history)), true) =
        (pairs.split_last(), pairs.len() * 2 == turns.len() && pairs.iter().all(is_pair) && example.tools.is_none())
    else {
        return Err(Error::new("Alpaca can express only alternating user questions and plain answers")
            .cure("Drop the row, or choose --format messages."));
    };
    row.insert("instruction".to_owned(), asked.content.clone().into());
    row.insert("input".to_owned(), "".into());
    row.insert("output".to_owned(), answered.content.clone().into());
    row.extend(system.map(|system| ("system".to_owned(), system.content.clone().into())));
    if !history.is_empty() {
        let pairs: Vec<Value> = history.iter().map(|[asked, answered]| json!([asked.content, answered.content])).collect();
        row.insert("history".to_owned(), pairs.into());
    }
    Ok(row)
}
