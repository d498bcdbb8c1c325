//! The texts that a turn has of its own, which a template prints or leaves out one by one, and marks in their places.
//!
//! A rendering with marks instead of the texts shows which of them the template prints, and where.

use super::marks::CONTENT;
use crate::dataset::{Role, Turn};

const THINK_BEGIN: &str = "<think>";
pub(super) const THINK_END: &str = "</think>";

/// A text of a turn.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(super) enum Own {
    /// The content; of an answer without the reasoning in it.
    Content,
    /// The reasoning that is a field of its own.
    Reasoning,
    /// The reasoning in the content of an answer.
    Thought,
    /// The name of the first call.
    Call,
}

impl Own {
    const ALL: [Own; 4] = [Own::Content, Own::Reasoning, Own::Thought, Own::Call];

    /// The text without the white space around it; empty if the turn has none.
    pub(super) fn text(self, turn: &Turn) -> &str {
        let is_answer = turn.role == Role::Assistant;
        let text = match self {
            Own::Content if is_answer => said(&turn.content),
            Own::Content => &turn.content,
            Own::Reasoning => turn.reasoning.as_deref().unwrap_or_default(),
            Own::Thought => thought(&turn.content).filter(|_| is_answer).unwrap_or_default(),
            Own::Call => turn.calls().next().map_or("", |call| call.name),
        };
        text.trim()
    }

    /// A number, which no template changes.
    pub(super) fn mark(self, turn_idx: usize) -> String {
        (Own::ALL.len() * turn_idx + self as usize).to_string()
    }

    /// The text and the turn that a number marks.
    pub(super) fn of_mark(mark: &str) -> Option<(Own, usize)> {
        let number: usize = mark.parse().ok()?;
        Some((Own::ALL[number % Own::ALL.len()], number / Own::ALL.len()))
    }

    /// The text with its mark in its place. White space around it stays, since templates look at it.
    fn marked(self, text: &str, turn_idx: usize) -> String {
        match text.trim() {
            "" => text.to_owned(),
            inner => text.replacen(inner, &format!("{CONTENT}{}{CONTENT}", self.mark(turn_idx)), 1),
        }
    }
}

/// The turn with marks in the places of its content and its reasoning.
pub(super) fn marked(turn: &Turn, idx: usize) -> Turn {
    let mut turn = turn.clone();
    turn.content = match thought(&turn.content).filter(|_| turn.role == Role::Assistant) {
        Some(thought) => {
            let said = said(&turn.content);
            let before = &turn.content[..turn.content.len() - said.len() - THINK_END.len() - thought.len()];
            [before, &Own::Thought.marked(thought, idx), THINK_END, &Own::Content.marked(said, idx)].concat()
        }
        None => Own::Content.marked(&turn.content, idx),
    };
    turn.written.parts = Vec::new();
    turn.reasoning = turn.reasoning.map(|reasoning| Own::Reasoning.marked(&reasoning, idx));
    turn
}

/// The turn's calls with a mark instead of the name of the first one.
pub(super) fn marked_calls(turn: &Turn, idx: usize) -> Option<serde_json::Value> {
    let mut calls = turn.tool_calls.clone()?;
    let name = calls.pointer_mut("/0/function/name")?;
    *name = Own::Call.marked(name.as_str()?, idx).into();
    Some(calls)
}

/// Returns a content without the reasoning in it.
pub(crate) fn said(content: &str) -> &str {
    content.rfind(THINK_END).map_or(content, |at| &content[at + THINK_END.len()..])
}

/// Returns the reasoning in a content.
pub(super) fn thought(content: &str) -> Option<&str> {
    let before = &content[..content.rfind(THINK_END)?];
    Some(before.rfind(THINK_BEGIN).map_or(before, |at| &before[at + THINK_BEGIN.len()..]))
}
