//! Hashes the supervised answers of a row and the prompt of each, to find rows that answer the same prompt differently.
//!
//! The prompt is all that a chat template may put before the answer: the row's tools and template variables, and for each earlier turn its role,
//! content, reasoning and calls. Reasoning that the template leaves out, as most do with that of earlier answers, is in no prompt. The ids of calls are
//! left out: they are random, so that no two prompts would be equal.

use serde_json::Value;
use sha2::{Digest, Sha256};

use super::near_duplicates::{Prompt, words};
use crate::dataset::{Call, Example, Role, Turn};
use crate::files::first_bytes;
use crate::tokens::{Audit, RowAudit, said};

/// A supervised answer and its prompt, by their hashes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Exchange {
    /// The index of the answer's turn.
    pub turn: u16,
    /// Equal for prompts with the same words and the same symbols, apart from punctuation. A question after a long preamble may differ by a single
    /// word, so the hash is exact.
    pub asked: u64,
    /// Equal for answers with the same content and calls, whatever their reasoning.
    pub answer: u64,
}

/// The reasoning that a chat template does not write.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct LeftOut {
    /// That of answers before the last question.
    pub earlier: bool,
    /// That of answers to the last question.
    pub last: bool,
}

impl LeftOut {
    /// What the template has left out of a row.
    pub fn of_row(audit: &RowAudit) -> LeftOut {
        LeftOut { earlier: audit.earlier_reasoning, last: audit.lost_reasoning }
    }

    /// What the template has left out of any row: it does so in all of them.
    pub fn of_run(audit: &Audit) -> LeftOut {
        let was_found = |name: &str| audit.findings.iter().any(|finding| finding.name == name && finding.rows > 0);
        LeftOut { earlier: was_found("earlier_reasoning"), last: was_found("lost_reasoning") }
    }

    /// Whether the reasoning of each turn is left out.
    fn of_turns(self, turns: &[Turn]) -> impl Iterator<Item = bool> {
        let last_question = turns.iter().rposition(|turn| turn.role == Role::User).unwrap_or(0);
        (0..turns.len()).map(move |idx| if idx < last_question { self.earlier } else { self.last })
    }
}

/// Returns the answers among the supervised turns `learnt`, which must be sorted, and skips answers without a prompt. Takes time linear in the length
/// of the row.
pub fn exchanges(example: &Example, learnt: &[u16], left_out: LeftOut) -> Vec<Exchange> {
    let mut asked = Sha256::new();
    for given in given(example) {
        asked.update(given.to_string());
    }
    let (mut found, mut has_question) = (Vec::new(), false);
    for ((turn, idx), is_left_out) in example.turns.iter().zip(0..=u16::MAX).zip(left_out.of_turns(&example.turns)) {
        if turn.role == Role::Assistant && has_question && learnt.binary_search(&idx).is_ok() {
            let answer = answer(&text(turn, true));
            found.push(Exchange { turn: idx, asked: first_bytes(&asked.clone().finalize()), answer });
        }
        let text = text(turn, is_left_out);
        has_question = !text.trim().is_empty() || (has_question && turn.role != Role::User);
        asked.update(format!("{}\n{}", turn.role.name(), normalised(&text)));
    }
    found
}

/// The signature of the prompt of the answer at `turn`, to find prompts that are nearly the same.
pub fn prompt(example: &Example, turn: u16, left_out: LeftOut) -> Option<Prompt> {
    let turns = &example.turns;
    let texts: Vec<String> = turns.iter().zip(left_out.of_turns(turns)).map(|(turn, is)| text(turn, is) + "\n").collect();
    let n_asked = usize::from(turn).min(turns.len());
    let question = turns[..n_asked].iter().rposition(|turn| turn.role == Role::User).unwrap_or(0);
    let given: String = given(example).map(|given| format!("{given}\n")).collect();
    Prompt::of(&(given + &texts[..question].concat()), &texts[question..n_asked].concat())
}

/// The content and the calls of an answer.
pub fn answer_text(turn: &Turn) -> String {
    with_calls(turn, &turn.content)
}

fn with_calls(turn: &Turn, content: &str) -> String {
    let parts = [content.to_owned()].into_iter().chain(calls(turn));
    parts.filter(|part| !part.is_empty()).collect::<Vec<_>>().join("\n")
}

/// Equal for rows whose user turns have the same content.
pub fn users_say(example: &Example) -> u64 {
    let mut hash = Sha256::new();
    for turn in example.turns.iter().filter(|turn| turn.role == Role::User) {
        hash.update(normalised(&turn.content));
    }
    first_bytes(&hash.finalize())
}

/// What the template receives besides the turns.
fn given(example: &Example) -> impl Iterator<Item = &Value> {
    let is_empty = |value: &Value| value.as_object().is_some_and(|object| object.is_empty());
    [&example.tools, &example.template_switches].into_iter().flatten().filter(move |value| !is_empty(value))
}

/// All text of a turn; of an answer without its reasoning, if that is left out.
fn text(turn: &Turn, without_reasoning: bool) -> String {
    if without_reasoning && turn.role == Role::Assistant {
        return with_calls(turn, said(&turn.content));
    }
    let reasoning = turn.reasoning.iter().map(|reasoning| format!("{reasoning}\n"));
    reasoning.chain([answer_text(turn)]).collect()
}

/// The calls of a turn by name and arguments, whose order means nothing.
fn calls(turn: &Turn) -> impl Iterator<Item = String> {
    turn.calls().map(|Call { name, arguments, .. }| {
        let mut arguments = arguments.into_owned();
        arguments.sort_all_objects();
        format!("{name} {arguments}")
    })
}

/// Equal for answers with the same words and symbols, apart from punctuation and Markdown; for texts without any, equal if the text is the same.
fn answer(text: &str) -> u64 {
    let is_mark = |word: &str| !word.is_empty() && word.chars().all(|c| "#>-+•".contains(c));
    // Strips the mark at the start of a heading, a list item or a quotation.
    let unmarked = |line: &str| {
        let line = line.trim_start();
        line.split_once(' ').filter(|(first, _)| is_mark(first)).map_or(line, |(_, rest)| rest).replace(['*', '_'], "") + "\n"
    };
    let plain = normalised(&text.lines().map(unmarked).collect::<String>());
    let is_empty = plain.trim().is_empty();
    first_bytes(&Sha256::digest(if is_empty { text.trim() } else { &plain }))
}

/// The words of a text on one line, and its symbols other than punctuation on the next.
fn normalised(text: &str) -> String {
    let of_sentence = |c: char| c.is_whitespace() || ".,;:!?'\"`´‘’“”„«»。，、；：！？「」".contains(c);
    let signs = text.chars().filter(|c| !c.is_alphanumeric() && !of_sentence(*c));
    words(text).join(" ") + "\n" + &signs.collect::<String>() + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn user(text: &str) -> Turn {
        Turn::plain(Role::User, text)
    }

    fn assistant(text: &str) -> Turn {
        Turn::plain(Role::Assistant, text)
    }

    fn call(id: &str, arguments: Value) -> Turn {
        let call = json!([{"id": id, "type": "function", "function": {"name": "look", "arguments": arguments}}]);
        Turn { tool_calls: Some(call), ..assistant("") }
    }

    fn example(turns: &[Turn]) -> Example {
        Example { turns: turns.to_vec(), ..Example::default() }
    }

    /// The last one of all exchanges.
    fn last(example: &Example) -> Exchange {
        let all: Vec<u16> = (0..example.turns.len() as u16).collect();
        *exchanges(example, &all, LeftOut::default()).last().unwrap()
    }

    fn asks_the_same(a: &Example, b: &Example) -> bool {
        last(a).asked == last(b).asked
    }

    fn answers_the_same(a: &str, b: &str) -> bool {
        answer(a) == answer(b)
    }

    #[test]
    fn a_word_or_a_sign_makes_another_question() {
        let same = |a: &str, b: &str| asks_the_same(&example(&[user(a), assistant("")]), &example(&[user(b), assistant("")]));
        assert!(same("what is the capital of France", "What is the capital of France?"));
        assert!(!same("What is 3 times 4?", "What is 3 times 5?"));
        assert!(!same("The capital of France", "The capital of Spain"));
        assert!(!same("What is 3 + 4?", "What is 3 - 4?"));
        assert!(!same("🙂", "🙁"));
        // Each text contains all words of the other.
        let rules = "Talk of the sea and of the sky.";
        assert!(!same(&format!("{rules} Is the sea blue?"), &format!("{rules} Is the sky blue?")));
        let of = |turns: &[Turn]| example(&[turns, &[assistant("")]].concat());
        assert!(!asks_the_same(&of(&[user("a b"), user("c")]), &of(&[user("a"), user("b c")])));
        assert!(!asks_the_same(&of(&[user("a"), user("b")]), &of(&[Turn::plain(Role::System, "a"), user("b")])));
    }

    #[test]
    fn answers_are_equal_by_their_words_and_numbers() {
        assert!(answers_the_same("It is Oslo.", "it is **Oslo**"));
        assert!(answers_the_same("- 3 apples\n* pears", "3 apples\n\npears"));
        assert!(answers_the_same(":-) ", ":-)") && !answers_the_same(":-)", ":-("));
        assert!(answers_the_same(" ! ", "!") && !answers_the_same("!", "?"));
        for (a, b) in [("-3", "3"), ("x > 3", "x < 3"), ("C#", "C"), ("{\"n\": -1}", "{\"n\": 1}"), ("Oslo", "Bergen"), ("", "a")]
        {
            assert!(!answers_the_same(a, b), "{a} {b}");
        }
    }

    /// All that a template may put before the answer is part of the prompt, but the id of a call is not.
    #[test]
    fn tools_calls_and_variables_are_asked() {
        let plain = example(&[user("Is it raining?"), assistant("No.")]);
        assert!(asks_the_same(&plain, &Example { template_switches: Some(json!({})), ..plain.clone() }));
        let tools = |name: &str| Example { tools: Some(json!([{"function": {"name": name}}])), ..plain.clone() };
        assert!(asks_the_same(&tools("weather"), &tools("weather")));
        assert!(!asks_the_same(&tools("weather"), &plain) && !asks_the_same(&tools("weather"), &tools("music")));
        let thinks = |on: bool| Example { template_switches: Some(json!({"enable_thinking": on})), ..plain.clone() };
        assert!(!asks_the_same(&thinks(true), &thinks(false)));
        let with = |call: Turn| example(&[user("Is it raining?"), call, Turn::plain(Role::Tool, "12 mm"), assistant("Yes.")]);
        let [oslo, bergen] = ["Oslo", "Bergen"].map(|town| json!({"town": town}));
        let called = with(call("c1", oslo.clone()));
        assert!(asks_the_same(&called, &with(call("c2", oslo.to_string().into()))));
        // Arguments as text, with the spaces that Python writes, and in another order.
        let [object, text, other] = [
            json!({"town": "Oslo", "days": {"from": 1, "to": 2}}),
            json!(r#"{ "days": {"to": 2, "from": 1}, "town": "Oslo" }"#),
            json!(r#"{"town": "Oslo", "days": {"from": 2, "to": 1}}"#),
        ]
        .map(|arguments| with(call("c1", arguments)));
        assert!(asks_the_same(&object, &text) && !asks_the_same(&object, &other));
        assert!(!asks_the_same(&called, &with(call("c1", bergen.clone()))) && !asks_the_same(&called, &with(assistant(""))));
        let reasoned = Turn { reasoning: Some("Let me look.".to_owned()), ..call("c1", oslo.clone()) };
        assert!(!asks_the_same(&called, &with(reasoned.clone())));
        // The reasoning of an answer does not count, but its calls do.
        let [first, second, other] = [call("c1", oslo.clone()), call("c2", oslo), call("c1", bergen)]
            .map(|turn| last(&example(&[user("a"), turn])).answer);
        assert!(first == second && first != other && first == last(&example(&[user("a"), reasoned])).answer);
    }

    /// What the model does not read makes no other prompt, whether it is a field or within the content.
    #[test]
    fn reasoning_that_the_template_leaves_out_is_not_asked() {
        let thought = |thought: &str| {
            [
                Turn { reasoning: Some(thought.to_owned()), ..assistant("Which one?") },
                assistant(&format!("<think>\n{thought}\n</think>\n\nWhich one?")),
            ]
        };
        for (north, south) in thought("They mean Norway.").into_iter().zip(thought("They mean France.")) {
            let row = |turn: &Turn, rest: &[Turn]| example(&[&[user("The capital?"), turn.clone()][..], rest].concat());
            let guessed = [user("Guess."), assistant("Oslo.")];
            let looked = [call("c1", json!({})), Turn::plain(Role::Tool, "Oslo"), assistant("Oslo.")];
            for (rest, matters) in [(&guessed[..], "earlier"), (&looked[..], "last")] {
                let [a, b] = [&north, &south].map(|turn| row(turn, rest));
                let all: Vec<u16> = (0..a.turns.len() as u16).collect();
                for earlier in [false, true] {
                    for last in [false, true] {
                        let left_out = LeftOut { earlier, last };
                        let [asked, prompts] = [
                            [&a, &b].map(|row| format!("{:?}", exchanges(row, &all, left_out).last().unwrap().asked)),
                            [&a, &b].map(|row| format!("{:?}", prompt(row, all.len() as u16 - 1, left_out))),
                        ];
                        let is_left_out = if matters == "earlier" { earlier } else { last };
                        assert_eq!((asked[0] == asked[1], prompts[0] == prompts[1]), (is_left_out, is_left_out), "{left_out:?}");
                    }
                }
            }
            // Before the same answer it never counts.
            let [a, b] = [&north, &south].map(|turn| last(&row(turn, &[])));
            assert_eq!(a, b);
        }
    }

    #[test]
    fn each_learnt_answer_is_an_exchange() {
        let row = example(&[user("a"), assistant("b"), user("c"), assistant("d"), user(""), assistant("e")]);
        let exchanges = |row: &Example, learnt: &[u16]| exchanges(row, learnt, LeftOut::default());
        let turns = |learnt: &[u16]| exchanges(&row, learnt).iter().map(|exchange| exchange.turn).collect::<Vec<_>>();
        // User turns are no answers, and the last answer has no prompt.
        assert_eq!((turns(&[0, 1, 2, 3, 4, 5]), turns(&[3]), turns(&[])), (vec![1, 3], vec![3], vec![]));
        assert_eq!(exchanges(&row, &[1])[0], last(&example(&[user("A?"), assistant("B!")])));
        assert!(exchanges(&example(&[assistant("b")]), &[0]).is_empty());
    }
}
