//! What a row holds and the rendered text does not: the audit asks it of every turn.
//!
//! A template may leave out whatever it likes, without a word: the system prompt (Mistral, in all but the last turn), reasoning
//! (DeepSeek-R1 and its children, also where it stands in the content), tools (all templates that do not know them). Who trains on such rows
//! should know. Templates may also write a content in another way (Llama 3 prints results of tools as JSON), so that letters and
//! digits are compared where the content does not stand there as it is.
//!
//! The name of a tool stands in prompts and questions as well, and in the text even where no tool does. A call is therefore looked for in its own
//! answer, beside the content, and the tools by what the template makes of the row without them.

use serde_json::Value;

use super::audit::RowAudit;
use super::turns::{Layout, said, thought};
use super::written::{FoundCall, find_parts, function};
use crate::dataset::{Example, Role, Turn};

/// The flags of the audit that speak of lost text. `without_tools` is the text that the template makes of the row without its tools, if it has
/// any and the template takes it without them.
pub(super) fn lost(example: &Example, layout: &Layout, without_tools: Option<&str>) -> RowAudit {
    let (turns, text) = (&example.turns, layout.text.as_str());
    let drops_tools = without_tools == Some(text) || names(example.tools.as_ref()).any(|name| !text.contains(name));
    let calling = || turns.iter().enumerate().filter(|(_, turn)| turn.tool_calls.is_some());
    let lacks = |role: Role| turns.iter().any(|turn| turn.role == role && !stands(text, content(turn)));
    let last_question = turns.iter().rposition(|turn| turn.role == Role::User);
    let (earlier, last) = turns.split_at(last_question.unwrap_or(0));
    RowAudit {
        dropped_fields: drops_tools || calling().any(|(idx, turn)| drops_calls(turn, &beside_content(layout, idx))),
        lost_system: lacks(Role::System),
        lost_content: lacks(Role::User) || lacks(Role::Assistant) || lacks(Role::Tool),
        lost_reasoning: last.iter().any(|turn| lacks_reasoning(text, turn)),
        earlier_reasoning: earlier.iter().any(|turn| lacks_reasoning(text, turn)),
        arguments_quoted: calling().any(|(idx, turn)| quotes_arguments(turn, &beside_content(layout, idx))),
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

/// The names of tools or of calls.
fn names(functions: Option<&Value>) -> impl Iterator<Item = &str> {
    let functions = functions.and_then(Value::as_array).into_iter().flatten();
    functions.filter_map(|named| function(named).get("name").and_then(Value::as_str))
}

/// What the template makes of an answer, less the content.
fn beside_content(layout: &Layout, turn_idx: usize) -> String {
    let mut own = String::new();
    for answer in layout.answers.iter().filter(|answer| answer.turn == turn_idx) {
        let mut from = answer.range.start;
        for placed in layout.contents.iter().filter(|placed| answer.range.contains(&placed.at)) {
            own.push_str(layout.text.get(from..placed.at).unwrap_or_default());
            own.push('\n');
            from = placed.at + placed.len;
        }
        own.push_str(layout.text.get(from..answer.range.end).unwrap_or_default());
        own.push('\n');
    }
    own
}

/// Does the turn have a call whose name or arguments the answer lacks?
fn drops_calls(turn: &Turn, own: &str) -> bool {
    find_parts(own, &[], turn).calls.iter().any(|FoundCall { has_name, has_arguments }| !has_name || !has_arguments)
}

/// Are arguments that the row has as text printed as a JSON string of that text, with a backslash before each quote?
fn quotes_arguments(turn: &Turn, own: &str) -> bool {
    let calls = turn.tool_calls.iter().filter_map(Value::as_array).flatten();
    let mut arguments = calls.filter_map(|call| call.pointer("/function/arguments")?.as_str());
    arguments.any(|arguments| {
        let quoted = serde_json::to_string(arguments).unwrap_or_default();
        arguments.contains('"') && own.contains(&quoted) && !own.contains(arguments)
    })
}
