//! Flattens OASST's message trees into one example per path from a root to a leaf.
//!
//! A reply may be anywhere in the file, so all messages are held in memory; the examples are built one at a time. Turns that several paths share
//! are repeated in each of them, as is usual when such trees are flattened for training.

use std::collections::HashMap;
use std::iter::once_with;

use super::example::{Example, Parsed, Role, Turn};
use super::fields::{self, Object, label};
use super::roles::RoleMap;
use super::{chat, switches};
use crate::error::{Error, Result};

type Rows = Result<(u64, Result<Object>)>;

pub(super) fn conversations(
    rows: impl Iterator<Item = Rows> + Send,
    source: String,
    roles: RoleMap,
) -> impl Iterator<Item = Result<Parsed>> + Send {
    once_with(move || link(rows, source, &roles)).flatten()
}

#[derive(PartialEq)]
pub(super) struct Message {
    line: u64,
    id: String,
    parent: Option<String>,
    source: Option<String>,
    turn: Turn,
    /// Keys that look like loss switches and were not used.
    unused: Vec<String>,
}

enum Outcome {
    /// The messages from the root to the leaf.
    Path(Vec<usize>),
    Bad(Error),
}

fn link<R: Iterator<Item = Rows>>(
    rows: R,
    source: String,
    roles: &RoleMap,
) -> impl Iterator<Item = Result<Parsed>> + Send + use<R> {
    let mut messages: Vec<Message> = Vec::new();
    let mut index: HashMap<String, usize> = HashMap::new();
    let mut outcomes: Vec<(u64, Outcome)> = Vec::new();
    let mut broken = None;
    for row in rows {
        let (line, row) = match row {
            Ok(row) => row,
            Err(error) => {
                broken = Some(error);
                break;
            }
        };
        match row.and_then(|row| message(&row, line, roles)) {
            Ok(message) => match index.get(&message.id) {
                Some(&other) => {
                    let other: &Message = &messages[other];
                    let error =
                        Error::new(format!("expected a new message id, found `{}` of line {} again", message.id, other.line));
                    outcomes.push((line, Outcome::Bad(error)));
                }
                None => {
                    index.insert(message.id.clone(), messages.len());
                    messages.push(message);
                }
            },
            Err(error) => outcomes.push((line, Outcome::Bad(error))),
        }
    }
    outcomes.extend(paths(&messages, &index));
    outcomes.sort_by_key(|(line, _)| *line);
    let examples = outcomes.into_iter().map(move |(line, outcome)| {
        let example = match outcome {
            Outcome::Path(path) => Ok(example(&messages, &path, &source)),
            Outcome::Bad(error) => Err(error),
        };
        Ok((line, example))
    });
    examples.chain(broken.map(Err))
}

pub(super) fn message(row: &Object, line: u64, roles: &RoleMap) -> Result<Message> {
    let id = fields::required_text(row, &["message_id", "user_message_id"], "")?.into_owned();
    let parent = fields::optional_text(row, &["parent_id", "parent_message_id"], "")?;
    let parent = parent.filter(|parent| !parent.is_empty()).map(|parent| parent.into_owned());
    let (role, _) = roles.find(&fields::required_text(row, &["role"], "")?, "role")?;
    let mut turn = chat::plain(role, &fields::required_text(row, &["text"], "")?);
    let mut unused = Vec::new();
    switches::of_turn(&mut turn, row, "", &mut unused)?;
    Ok(Message { line, id, parent, source: label(row, "source"), turn, unused })
}

/// Returns each leaf's path from its root, or why it has none, and the messages on no path, which can only be part of a cycle.
fn paths(messages: &[Message], index: &HashMap<String, usize>) -> Vec<(u64, Outcome)> {
    let parents: Vec<Option<usize>> =
        messages.iter().map(|message| message.parent.as_ref().and_then(|parent| index.get(parent).copied())).collect();
    let mut has_reply = vec![false; messages.len()];
    for &parent in parents.iter().flatten() {
        has_reply[parent] = true;
    }
    let mut is_seen = vec![false; messages.len()];
    let mut outcomes = Vec::new();
    for leaf in (0..messages.len()).filter(|&idx| !has_reply[idx]) {
        let mut path = vec![leaf];
        let mut root = leaf;
        while let (Some(parent), true) = (parents[root], path.len() <= messages.len()) {
            root = parent;
            path.push(root);
        }
        for &idx in &path {
            is_seen[idx] = true;
        }
        path.reverse();
        let outcome = match &messages[root].parent {
            None if path.len() > usize::from(u16::MAX) => {
                Outcome::Bad(Error::new("expected at most 65,535 turns on a path, found more"))
            }
            None => Outcome::Path(path),
            Some(_) if parents[root].is_some() => Outcome::Bad(circle(&messages[leaf])),
            Some(parent) => {
                let child = &messages[root].id;
                Outcome::Bad(Error::new(format!(
                    "expected the message `{parent}`, the parent of `{child}`, found none with this id"
                )))
            }
        };
        outcomes.push((messages[leaf].line, outcome));
    }
    let lost = messages.iter().zip(is_seen).filter(|(_, is_seen)| !is_seen);
    outcomes.extend(lost.map(|(message, _)| (message.line, Outcome::Bad(circle(message)))));
    outcomes
}

fn circle(message: &Message) -> Error {
    Error::new(format!("expected a root above the message `{}`, found a cycle of parents", message.id))
}

fn example(messages: &[Message], path: &[usize], source: &str) -> Example {
    let turns = path.iter().map(|&idx| messages[idx].turn.clone()).collect();
    let leaf = path.last().map(|&idx| &messages[idx]);
    let source = leaf.and_then(|leaf| leaf.source.clone()).unwrap_or_else(|| source.to_owned());
    debug_assert!(path.iter().all(|&idx| messages[idx].turn.role != Role::Text));
    let mut unused: Vec<String> = path.iter().flat_map(|&idx| messages[idx].unused.iter().cloned()).collect();
    unused.sort_unstable();
    unused.dedup();
    Example { id: leaf.map(|leaf| leaf.id.clone()), source, turns, unused, ..Example::default() }
}
