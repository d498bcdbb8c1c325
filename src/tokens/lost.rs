//! What a row holds and the rendered text does not: the audit asks it of every turn.
//!
//! A template may leave out whatever it likes, without a word: the system prompt (Mistral, in all but the last turn), reasoning
//! (DeepSeek-R1 and its children, also where it stands in the content), tools (all templates that do not know them). Who trains on such rows
//! should know. Templates may also write a content in another way (Llama 3 prints results of tools as JSON), so that letters and
//! digits are compared where the content does not stand there as it is.

use serde_json::Value;

use super::audit::RowAudit;
use super::turns::{said, thought};
use crate::dataset::{Example, Role, Turn};

/// The flags of the audit that speak of lost text.
pub(super) fn lost(example: &Example, text: &str) -> RowAudit {
    let turns = &example.turns;
    let lacks = |role: Role| turns.iter().any(|turn| turn.role == role && !stands(text, content(turn)));
    let last_question = turns.iter().rposition(|turn| turn.role == Role::User);
    let (earlier, last) = turns.split_at(last_question.unwrap_or(0));
    RowAudit {
        dropped_fields: drops_fields(example, text),
        lost_system: lacks(Role::System),
        lost_content: lacks(Role::User) || lacks(Role::Assistant) || lacks(Role::Tool),
        lost_reasoning: last.iter().any(|turn| lacks_reasoning(text, turn)),
        earlier_reasoning: earlier.iter().any(|turn| lacks_reasoning(text, turn)),
        arguments_quoted: quotes_arguments(turns, text),
        ..RowAudit::default()
    }
}

/// Reasoning in a content is asked for apart.
fn content(turn: &Turn) -> &str {
    if turn.role == Role::Assistant { said(&turn.content) } else { &turn.content }
}

fn lacks_reasoning(text: &str, turn: &Turn) -> bool {
    let in_content = Some(&turn.content).filter(|_| turn.role == Role::Assistant).and_then(|content| thought(content));
    [turn.reasoning.as_deref(), in_content].into_iter().flatten().any(|reasoning| !stands(text, reasoning))
}

/// Does the content stand in the text, as it is or written in another way?
fn stands(text: &str, content: &str) -> bool {
    let content = content.trim();
    if content.is_empty() || text.contains(content) {
        return true;
    }
    let quoted = serde_json::to_string(content).unwrap_or_default();
    if text.contains(quoted.trim_matches('"')) {
        return true;
    }
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let content = plain(content);
    !content.is_empty() && plain(text).contains(&content)
}

/// Does the text lack the row's tools or a tool call?
fn drops_fields(example: &Example, text: &str) -> bool {
    let name_of = |call: &Value| {
        let function = call.get("function").unwrap_or(call);
        function.get("name").and_then(Value::as_str).map(str::to_owned)
    };
    let calls = example.turns.iter().filter_map(|turn| turn.tool_calls.as_ref()).chain(&example.tools);
    calls.filter_map(Value::as_array).flatten().filter_map(name_of).any(|name| !text.contains(&name))
}

/// Are arguments that the row has as text printed as a JSON string of that text, with a backslash before each quote?
fn quotes_arguments(turns: &[Turn], text: &str) -> bool {
    let calls = turns.iter().filter_map(|turn| turn.tool_calls.as_ref()?.as_array()).flatten();
    let mut arguments = calls.filter_map(|call| call.pointer("/function/arguments")?.as_str());
    arguments.any(|arguments| {
        let quoted = serde_json::to_string(arguments).unwrap_or_default();
        arguments.contains('"') && text.contains(&quoted) && !text.contains(arguments)
    })
}
