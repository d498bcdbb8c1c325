//! What a row holds and the rendered text does not: the audit asks it of every turn.
//!
//! A template may leave out whatever it likes, without a word: the system prompt (Mistral, in all but the last turn), reasoning
//! (DeepSeek-R1 and its children, also where it stands in the content), tools (all templates that do not know them). Who trains on such rows
//! should know.
//!
//! The same words may stand elsewhere in the text, in a prompt, a question or another answer. A content that stands at its own place is printed; of
//! any other text the template is asked, by a rendering with marks in its place, which also tells of contents that the template writes in
//! another way (Llama 3 prints results of tools as JSON). A call is looked for in its own answer, beside the content, and the tools by what the
//! template makes of the row without them.

use std::collections::HashSet;

use serde_json::Value;

use super::audit::RowAudit;
use super::marks::CONTENT;
use super::own::{Own, marked};
use super::turns::Layout;
use super::written::{FoundCall, find_parts, writes_beside_content};
use crate::dataset::{Example, Role, Turn};

/// The flags of the audit that speak of lost text. `render` gives the text that the template makes of a row that is changed; `None` where it
/// refuses it.
pub(super) fn lost(example: &Example, layout: &Layout, render: impl Fn(&Example) -> Option<String>) -> RowAudit {
    let (turns, text) = (&example.turns, layout.text.as_str());
    let printed = Printed::of(example, layout, &render);
    let has_tools = example.tools.as_ref().and_then(Value::as_array).is_some_and(|tools| !tools.is_empty());
    let without_tools = has_tools.then(|| render(&Example { tools: None, ..example.clone() })).flatten();
    let drops_tools = without_tools.as_deref() == Some(text) || names(example.tools.as_ref()).any(|name| !text.contains(name));
    let calling = || turns.iter().enumerate().filter(|(_, turn)| turn.tool_calls.is_some());
    let lacks = |role: Role| turns.iter().enumerate().any(|(idx, turn)| turn.role == role && !printed.has(idx, Own::Content));
    let lacks_reasoning = |idx: usize| [Own::Reasoning, Own::Thought].into_iter().any(|own| !printed.has(idx, own));
    let last_question = turns.iter().rposition(|turn| turn.role == Role::User).unwrap_or(0);
    RowAudit {
        dropped_fields: drops_tools || calling().any(|(idx, turn)| drops_calls(turn, &beside_content(layout, idx))),
        lost_system: lacks(Role::System),
        lost_content: lacks(Role::User) || lacks(Role::Assistant) || lacks(Role::Tool),
        lost_reasoning: (last_question..turns.len()).any(lacks_reasoning),
        earlier_reasoning: (0..last_question).any(lacks_reasoning),
        arguments_quoted: calling().any(|(idx, turn)| quotes_arguments(turn, &beside_content(layout, idx))),
        ..RowAudit::default()
    }
}

/// What the template prints of the turns of a row.
struct Printed<'a> {
    turns: &'a [Turn],
    text: &'a str,
    /// The turns whose contents are known to stand at their own places.
    placed: HashSet<usize>,
    /// The marks that the template prints in the places of the answers' texts, and of the other turns' contents. `None` where all contents are
    /// placed, so that nothing has to be asked, and where the template refuses marks.
    marks: [Option<HashSet<String>>; 2],
}

impl<'a> Printed<'a> {
    fn of(example: &'a Example, layout: &'a Layout, render: impl Fn(&Example) -> Option<String>) -> Printed<'a> {
        let turns = &example.turns;
        let placed: HashSet<usize> = layout.contents.iter().map(|placed| placed.turn).collect();
        // A template may look into the questions before it decides what to print of the answers, so each is asked for beside the others as they are.
        let marks = [true, false].map(|of_answers| {
            let is_asked = |turn: &Turn| (turn.role == Role::Assistant) == of_answers && turn.written.value.is_none();
            // What seems to be the content may be reasoning, or an argument of a call.
            let is_open = |idx: usize, turn: &Turn| !placed.contains(&idx) || writes_beside_content(turn);
            let mut asked = turns.iter().enumerate().filter(|(_, turn)| is_asked(turn));
            if !asked.any(|(idx, turn)| is_open(idx, turn)) {
                return None;
            }
            let marked = |(idx, turn): (usize, &Turn)| if is_asked(turn) { marked(turn, idx) } else { turn.clone() };
            let turns = turns.iter().enumerate().map(marked).collect();
            // Python and JSON may write the character by its number.
            let rendered = render(&Example { turns, ..example.clone() })?.replace("\\ufdd2", &CONTENT.to_string());
            Some(rendered.split(CONTENT).map(str::to_owned).collect())
        });
        Printed { turns, text: &layout.text, placed, marks }
    }

    fn has(&self, turn_idx: usize, own: Own) -> bool {
        let turn = &self.turns[turn_idx];
        let text = own.text(turn);
        let marks = &self.marks[usize::from(turn.role != Role::Assistant)];
        match marks.as_ref().filter(|_| turn.written.value.is_none()) {
            _ if text.is_empty() => true,
            Some(marks) => marks.contains(&own.mark(turn_idx)),
            None => (own == Own::Content && self.placed.contains(&turn_idx)) || stands(self.text, text),
        }
    }
}

/// Does the text stand in the whole, as it is or written in another way: with the escapes of JSON, or by its letters and digits?
fn stands(whole: &str, text: &str) -> bool {
    let quoted = serde_json::to_string(text).unwrap_or_default();
    if whole.contains(text) || whole.contains(quoted.trim_matches('"')) {
        return true;
    }
    let plain = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).collect::<String>();
    let text = plain(text);
    !text.is_empty() && plain(whole).contains(&text)
}

/// The names of tools, which stand under `function`, or in the tool itself.
fn names(tools: Option<&Value>) -> impl Iterator<Item = &str> {
    let tools = tools.and_then(Value::as_array).into_iter().flatten();
    tools.filter_map(|tool| tool.get("function").unwrap_or(tool).get("name")?.as_str())
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
