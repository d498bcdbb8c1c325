//! Builds the text that the model is given from a question, its description and its examples.
//!
//! The text is the same as in lm-evaluation-harness (`lm_eval/api/task.py`, `fewshot_context` and `build_qa_turn`;
//! `lm_eval/api/utils.py`):
//!
//! ```text
//! without a chat template   system message, description, each example with a space before its answer and a blank line after it, question
//! with a chat template      system message and description form the system message; each example is a user message and an assistant message,
//!                           the question a user message, after which the template opens an answer; nothing separates that from a choice
//! .. in a single turn       one user message with all that follows the description without a template
//! ```
//!
//! If a template rejects a system message, the question is asked without one, as in the harness, and this is counted. The last
//! word of a passage keeps its space, and a text is used as it is.

use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::requests::is_python_space;
use super::tasks::{Item, Request, TaskKind};
use crate::dataset::{Role, Turn};
use crate::error::{Error, Result};
use crate::tokens::Renderer;

/// How the questions of an evaluation are presented to the model.
#[derive(Default)]
pub struct Asking {
    /// The system message, which comes before everything else.
    pub system: Option<String>,
    /// The chat template for the questions; `None` to ask them as plain text.
    pub chat: Option<Chat>,
    /// The renderer of training rows, if a task has any: they always go through a template and get the system message from it.
    pub rows: Option<Renderer>,
}

/// How questions go through a chat template.
pub struct Chat {
    /// Renders the conversations.
    pub renderer: Renderer,
    /// Are examples separate turns?
    pub multiturn: bool,
    /// A JSON object of variables that the renderer passes to the template.
    pub switches: Option<Value>,
}

/// The part of [`Asking`] on which a task's scores depend.
#[derive(Debug, Clone, PartialEq, Default, Serialize, Deserialize)]
pub struct Asked {
    /// The system message, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub system: Option<String>,
    /// The chat template, if any.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub chat: Option<AskedByChat>,
}

/// The part of [`Chat`] on which a task's scores depend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct AskedByChat {
    /// SHA-256 of the template's source, in hexadecimal.
    pub template_sha256: String,
    /// Are examples, if there are any, separate turns?
    pub multiturn: bool,
    /// The JSON object of variables that was passed to the template.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub switches: Option<Value>,
}

/// The text before an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Context {
    /// The text as the model is given it.
    pub text: String,
    /// Did the template reject the system message?
    pub without_system: bool,
}

impl Asking {
    /// The text before the answer to `question`, which is one of the item's contexts.
    pub fn context(&self, item: &Item, question: &str) -> Result<Context> {
        let system = delimited(self.system.as_deref().unwrap_or_default(), &item.description, BETWEEN_EXAMPLES);
        match &self.chat {
            Some(chat) => chat.context(item, question, system),
            None if item.written.as_ref().is_some_and(|written| written.messages.is_some() || written.tools.is_some()) => {
                Err(Error::usage("an item with `messages` or `tools` needs a chat template").cure("Add --apply-chat-template."))
            }
            None => Ok(Context { text: format!("{system}{}", plain(item, question)), without_system: false }),
        }
    }

    /// The text that is scored after the context.
    pub fn continuation<'a>(&self, kind: TaskKind, request: &'a Request) -> &'a str {
        match (&self.chat, kind) {
            (Some(_), TaskKind::Choice | TaskKind::Partial) => request.choice(),
            _ => &request.continuation,
        }
    }

    /// Whether a chat template of the questions writes today's date.
    pub fn writes_date(&self) -> bool {
        self.chat.iter().map(|chat| &chat.renderer).chain(&self.rows).any(Renderer::writes_date)
    }

    /// The part of the way of asking on which the scores of a task depend.
    pub fn asked(&self, kind: TaskKind, has_examples: bool) -> Asked {
        if kind == TaskKind::Text {
            return Asked::default();
        }
        let switches = self.chat.as_ref().and_then(|chat| chat.switches.clone());
        let by_chat = |renderer: &Renderer, multiturn: bool| {
            Some(AskedByChat { template_sha256: renderer.template_sha256()?.to_owned(), multiturn, switches })
        };
        let chat = match kind {
            TaskKind::Rows => self.rows.as_ref().and_then(|renderer| by_chat(renderer, true)),
            // Without examples, both settings are equivalent.
            _ => self.chat.as_ref().and_then(|chat| by_chat(&chat.renderer, chat.multiturn || !has_examples)),
        };
        Asked { system: self.system.clone(), chat }
    }
}

impl Asked {
    /// The option by which two ways of asking differ. Templates do not count, since a fine-tuned model may have its own.
    pub fn differs(&self, other: &Asked) -> Option<&'static str> {
        if self.system != other.system {
            return Some("--system");
        }
        match (&self.chat, &other.chat) {
            (Some(a), Some(b)) if a.multiturn != b.multiturn => Some("--fewshot-as-multiturn"),
            (Some(a), Some(b)) if a.switches != b.switches => Some("--chat-template-kwargs"),
            (Some(_), None) | (None, Some(_)) => Some("--apply-chat-template"),
            _ => None,
        }
    }

    /// The options that ask in this way, for messages.
    pub fn words(&self) -> Vec<String> {
        let mut words = Vec::new();
        words.extend(self.system.as_ref().map(|system| format!("--system {system:?}")));
        if let Some(AskedByChat { template_sha256, multiturn, switches }) = &self.chat {
            let turns = if *multiturn { "" } else { " --fewshot-as-multiturn false" };
            let switches = switches.as_ref().map(|switches| format!(" --chat-template-kwargs '{switches}'")).unwrap_or_default();
            let template = template_sha256.get(..8).unwrap_or_default();
            words.push(format!("--apply-chat-template (template {template}){turns}{switches}"));
        }
        words
    }
}

impl Chat {
    fn context(&self, item: &Item, question: &str, system: String) -> Result<Context> {
        let mut turns = Vec::new();
        let written = item.written.as_ref();
        if let Some(messages) = written.and_then(|written| written.messages.as_ref()) {
            turns.extend(messages.iter().cloned());
        } else if self.multiturn {
            for shot in &item.examples {
                turns.push(Turn::plain(Role::User, shot.question.as_str()));
                turns.push(Turn::plain(Role::Assistant, shot.answer.as_str()));
            }
            turns.push(Turn::plain(Role::User, question));
        } else {
            turns.push(Turn::plain(Role::User, plain(item, question)));
        }
        let tools = written.and_then(|written| written.tools.clone());
        // The conversation's own system message takes precedence.
        if system.is_empty() || turns.iter().any(|turn| turn.role == Role::System) {
            return Ok(Context { text: self.renderer.prompt_text(turns, tools)?, without_system: false });
        }
        let with_system = std::iter::once(Turn::plain(Role::System, system)).chain(turns.iter().cloned()).collect();
        match self.renderer.prompt_text(with_system, tools.clone()) {
            Ok(text) => Ok(Context { text, without_system: false }),
            Err(error) => match self.renderer.prompt_text(turns, tools) {
                Ok(text) => Ok(Context { text, without_system: true }),
                Err(_) => Err(error),
            },
        }
    }
}

const BETWEEN_EXAMPLES: &str = "\n\n";

fn plain(item: &Item, question: &str) -> String {
    let examples = item.examples.iter().map(|shot| format!("{}{}{}{BETWEEN_EXAMPLES}", shot.question, shot.between, shot.answer));
    format!("{}{question}", examples.collect::<String>())
}

/// Joins the two texts with `between`, unless one of them is empty or already has white space at the boundary (`maybe_delimit`).
fn delimited(before: &str, after: &str, between: &str) -> String {
    let touch = before.ends_with(is_python_space) || after.starts_with(is_python_space);
    let between = if before.is_empty() || after.is_empty() || touch { "" } else { between };
    format!("{before}{between}{after}")
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use serde_json::json;

    use super::*;
    use crate::eval::fewshot;
    use crate::eval::tasks::{Examples, Task, parse};
    use crate::tokens::{ChatTemplate, GgufVocabulary, RenderOptions, Tokenizer};

    fn chat(template: &str, multiturn: bool) -> Chat {
        let tokens = ["<s>", "<|end|>", "a"].map(str::to_owned).to_vec();
        let vocabulary = GgufVocabulary {
            model: "gpt2".into(),
            pre: Some("gpt-2".into()),
            tokens,
            token_types: vec![3, 3, 1],
            bos: Some(0),
            ..GgufVocabulary::default()
        };
        let tokenizer = Arc::new(Tokenizer::from_gguf(vocabulary).unwrap());
        let template = ChatTemplate::new(template, Some("<s>"), None).unwrap();
        let renderer = Renderer::new(tokenizer, Some(template), RenderOptions::default()).unwrap();
        Chat { renderer, multiturn, switches: None }
    }

    /// Converts the rows of the fixture to our form.
    fn task(kind: &str, rows: &[Value], description: &str) -> Task {
        let uniform = rows.iter().map(|row| {
            let question = format!("Question: {}\nAnswer:", row["question"].as_str().unwrap_or_default());
            let words = row["text"].as_str().and_then(|text| text.rsplit_once(' ')).unwrap_or_default();
            let mut uniform = match kind {
                "choice" => json!({"context": question, "choices": row["choices"], "answer": row["answer"]}),
                "partial" => json!({"choices": row["contexts"], "continuation": row["rest"], "answer": row["answer"], "scoring": "partial"}),
                "last_word" => json!({"context": words.0, "continuation": words.1}),
                _ => json!({"prompt": question, "target": row["answer"], "answer": "7"}),
            };
            uniform["description"] = description.into();
            uniform.to_string()
        });
        parse("t", "t.jsonl", uniform.collect::<Vec<_>>().join("\n").as_bytes()).unwrap()
    }

    /// The harness uses `target_delimiter` in examples as in the question.
    #[test]
    fn examples_have_the_delimiter_of_their_item() {
        let row =
            |i: usize| format!("{{\"context\":\"Q{i}?\",\"delimiter\":\"\\n\",\"choices\":[\"No\",\"Yes\"],\"answer\":{i}}}\n");
        let mut task = parse("t", "t.jsonl", (0..2).map(row).collect::<String>().as_bytes()).unwrap();
        fewshot::apply(&mut task, 1, 0).unwrap();
        let context = Asking::default().context(&task.items[0], &task.items[0].requests[0].context).unwrap();
        assert_eq!(context.text, "Q1?\nYes\n\nQ0?");
    }

    /// The requests that the harness's own code produced, by `tests/fixtures/eval/asking.py`.
    #[test]
    fn questions_are_put_as_the_harness_puts_them() {
        let fixture: Value = serde_json::from_str(include_str!("../../tests/fixtures/eval/asking.json")).unwrap();
        let cases = fixture["cases"].as_array().unwrap();
        assert_eq!(cases.len(), 4 * 3 * 2 * 2 * 3);
        for case in cases {
            let kind = case["kind"].as_str().unwrap();
            let rows = fixture["rows"][kind].as_array().unwrap();
            let mut task = task(kind, rows, case["description"].as_str().unwrap());
            task.examples = Examples::First(task.items.split_off(1));
            fewshot::apply(&mut task, case["few_shot"].as_u64().unwrap() as usize, 0).unwrap();
            let chat = case["chat"]
                .as_bool()
                .unwrap()
                .then(|| chat(fixture["template"].as_str().unwrap(), case["multiturn"].as_bool().unwrap()));
            let asking = Asking { system: case["system"].as_str().map(str::to_owned), chat, rows: None };
            let item = &task.items[0];
            let found = item.requests.iter().map(|request| {
                let context = asking.context(item, &request.context).unwrap();
                assert!(!context.without_system);
                match task.kind {
                    TaskKind::Written => json!([context.text]),
                    _ => json!([context.text, asking.continuation(task.kind, request)]),
                }
            });
            assert_eq!(Value::from(found.collect::<Vec<_>>()), case["requests"], "{case}");
        }
    }

    #[test]
    fn a_template_that_refuses_system_messages_is_asked_without_and_one_that_refuses_all_is_an_error() {
        let strict = "{% for m in messages %}{% if m.role == 'system' %}{{ raise_exception('no system') }}{% endif %}[{{ m.role }}]{{ m.content }}{% endfor %}";
        let item = |row: Value| parse("t", "t.jsonl", row.to_string().as_bytes()).unwrap().items.remove(0);
        let asking =
            |system: Option<&str>| Asking { system: system.map(str::to_owned), chat: Some(chat(strict, true)), rows: None };
        let plain = item(json!({"prompt": "Hi", "answer": "a"}));
        let found = asking(Some("Be brief.")).context(&plain, "Hi").unwrap();
        assert_eq!(found, Context { text: "[user]Hi".into(), without_system: true });
        assert_eq!(asking(None).context(&plain, "Hi").unwrap(), Context { text: "[user]Hi".into(), without_system: false });
        // A system message that belongs to the item is never dropped.
        let own =
            item(json!({"messages": [{"role": "system", "content": "S"}, {"role": "user", "content": "Hi"}], "answer": "a"}));
        assert!(asking(None).context(&own, "").unwrap_err().to_string().contains("no system"));
        // A conversation requires a template.
        assert!(Asking::default().context(&own, "").unwrap_err().to_string().contains("--apply-chat-template"));
    }

    #[test]
    fn ways_of_asking_differ_by_an_option() {
        let by_chat = |template: &str, multiturn| AskedByChat { template_sha256: template.into(), multiturn, switches: None };
        let plain = Asked::default();
        let asked = |chat| Asked { chat: Some(chat), ..Asked::default() };
        assert_eq!(plain.differs(&asked(by_chat("a", true))), Some("--apply-chat-template"));
        assert_eq!(asked(by_chat("a", true)).differs(&asked(by_chat("b", true))), None);
        assert_eq!(asked(by_chat("a", true)).differs(&asked(by_chat("a", false))), Some("--fewshot-as-multiturn"));
        assert_eq!(plain.differs(&Asked { system: Some("S".into()), ..Asked::default() }), Some("--system"));
        let switched = AskedByChat { switches: Some(json!({"enable_thinking": false})), ..by_chat("a", true) };
        assert_eq!(asked(by_chat("a", true)).differs(&asked(switched)), Some("--chat-template-kwargs"));
    }
}
