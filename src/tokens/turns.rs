//! Finds the answers in a rendered conversation.
//!
//! With `{% generation %}` tags the template itself marks them. Otherwise two renderings of prefixes locate each answer: the text before answer `i`
//! is `messages[..i]` with the generation prompt, which is what the model sees at inference, and the answer ends where `messages[..=i]` ends,
//! without the text after the end-of-turn token. Everything is checked against the whole rendering. Where a template is not stable under prefixes
//! (Qwen3 drops the reasoning of earlier turns, DeepSeek-R1 opens a reasoning block in the generation prompt), the answer is found by its header,
//! its content and the content that follows instead; if that fails too, the row is refused rather than masked wrongly.
//!
//! Small test conversations first show how the template behaves ([`Habits`]): one that ends with an answer, and one in which other turns follow the
//! answer, which can change its header (Qwen 3.5) and its end (gpt-oss).

use std::cmp::Reverse;
use std::collections::HashMap;
use std::ops::Range;
use std::sync::{Mutex, PoisonError};

use minijinja::Value;
use minijinja::value::merge_maps;

use super::marks::CONTENT;
use super::own::{Own, THINK_END, marked, marked_calls, said};
use super::python;
use super::seams::{Seams, is_long, is_looked_for};
use super::template::{ChatTemplate, Surroundings};
use super::written::{find_parts, forms_of_text};
use crate::dataset::{Role, Turn};
use crate::error::{Context, Error, Result};

/// A rendered conversation with the known ranges in it. Ranges are in bytes of `text`, in order, and do not overlap.
#[derive(Debug, Default)]
pub(super) struct Layout {
    /// Tokens before the text that it does not contain: the beginning token.
    pub leading: Vec<u32>,
    /// The rendered text.
    pub text: String,
    /// The answers of the conversation that are rendered, one entry each.
    pub answers: Vec<Answer>,
    /// The contents of turns that the template renders verbatim.
    pub contents: Vec<Placed>,
    /// Whether the text before an answer differs from the generation prompt that the model is given at inference.
    pub unlike_prompt: bool,
}

/// What the model should write in one turn: reasoning, content, tool calls and the end-of-turn token, if they are rendered.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Answer {
    /// The index of the turn in the conversation.
    pub turn: usize,
    /// The byte range of the answer in the text.
    pub range: Range<usize>,
    /// Whether it includes an end-of-turn token.
    pub ends_turn: bool,
}

/// `content[begin..][..len]` of a turn is at offset `at` of the text.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Placed {
    /// The index of the turn in the conversation.
    pub turn: usize,
    /// The offset in the rendered text.
    pub at: usize,
    /// The offset in the turn's content.
    pub begin: usize,
    /// The number of bytes, which is the same in both.
    pub len: usize,
}

/// A conversation in the form that the template expects.
pub(super) struct Conversation<'a> {
    /// The messages for the template: maps with `role`, `content` and so on.
    pub messages: Vec<Value>,
    /// The index in `turns` of each message; a system message from the options has none.
    pub turn_of: Vec<Option<usize>>,
    /// The turns of the row.
    pub turns: &'a [Turn],
    /// The tools and the other variables.
    pub around: Surroundings<'a>,
}

impl Conversation<'_> {
    fn answer_idxs(&self) -> impl Iterator<Item = (usize, usize)> {
        self.turn_of.iter().enumerate().filter_map(|(idx, turn)| {
            let turn = (*turn)?;
            (self.turns[turn].role == Role::Assistant).then_some((idx, turn))
        })
    }

    /// Whether one of the messages before each has reasoning, or a text beside its calls, since the last question. Templates leave these out where other
    /// questions or answers follow, so that the text before an answer differs from its prompt.
    fn follow_reasoning(&self) -> Vec<bool> {
        let mut has_reasoning = false;
        let turns = self.turn_of.iter().map(|turn| turn.map(|turn| &self.turns[turn]));
        let before = turns.map(|turn| {
            let before = has_reasoning;
            let has = |turn: &Turn, own: Own| !own.text(turn).is_empty();
            let reasons = |turn: &Turn| {
                has(turn, Own::Reasoning) || has(turn, Own::Thought) || (has(turn, Own::Call) && has(turn, Own::Content))
            };
            has_reasoning = turn.is_some_and(|turn| (has_reasoning && turn.role != Role::User) || reasons(turn));
            before
        });
        before.collect()
    }
}

/// How a template renders the simplest conversations.
#[derive(Debug, Default)]
pub(super) struct Habits {
    /// The text that the generation prompt adds, such as `<|im_start|>assistant\n`; empty for templates that ignore it or need none.
    generation_prompt: String,
    /// The text between a user's turn and the answer to it, without `opening`.
    header: String,
    /// The text that the model itself writes before the content: Mistral's space, Qwen 3's empty reasoning block.
    opening: String,
    /// The header of a template that ignores `add_generation_prompt`: it belongs to no answer, although no prompt shows it.
    hidden_header: String,
    /// The part of the header that an answer has if other turns follow: Qwen 3.5 opens a reasoning block only in the last answer.
    earlier_header: String,
    /// The special tokens that end an answer: that of the last answer first, followed, where they differ, by that of an earlier answer and of one
    /// that calls a tool.
    ends: Vec<String>,
    /// All special tokens.
    special_tokens: Vec<String>,
    /// The forms of content that answers and other messages support.
    answers: Contents,
    others: Contents,
    /// Names of roles that the data have, and whether the template knows them.
    roles: Mutex<HashMap<String, bool>>,
}

/// The forms in which a template renders contents: text, or a list of parts such as `{"type": "text", "text": "Hi"}`. Many support both.
#[derive(Debug, Clone, Copy)]
struct Contents {
    as_text: bool,
    as_parts: bool,
}

impl Default for Contents {
    fn default() -> Self {
        Self { as_text: true, as_parts: false }
    }
}

impl Habits {
    /// Determines the habits of a template. `eos` is the tokenizer's end token.
    pub(super) fn learn(template: &ChatTemplate, special_tokens: Vec<String>, eos: Option<&str>) -> Result<Self> {
        let around = Surroundings::default();
        let mark = CONTENT.to_string();
        let contents = Contents::of(template);
        let [others, answers] = contents;
        let message = |role: &str, text: &str| {
            let kind = if role == "assistant" { answers } else { others };
            minijinja::context! { role => role, content => kind.content(text, &[]) }
        };
        let (system, user, answer) = (message("system", "Be brief."), message("user", "Hi"), message("assistant", &mark));
        // Some templates require a system message; most do not.
        let simplest = [vec![user.clone()], vec![system, user]].into_iter().map(|before| {
            let whole = [before.as_slice(), std::slice::from_ref(&answer)].concat();
            let (prompt, bare) = (template.render(&before, around, true)?, template.render(&before, around, false).ok());
            Ok((before, template.render(&whole, around, false)?, prompt, bare))
        });
        let (messages, whole, prompt, bare) = first_success(simplest)?;
        let (before, after) = whole.split_once(CONTENT).ok_or_else(|| {
            Error::new("the chat template does not render the content of an assistant's message")
                .cure("It cannot be used for fine-tuning on answers: use another template, or none.")
        })?;
        let bare = bare.unwrap_or_default();
        let generation_prompt = prompt.strip_prefix(bare.as_str()).unwrap_or_default().to_owned();
        let unprompted = before.strip_prefix(prompt.as_str()).unwrap_or_default();
        // White space before the answer belongs to the answer: the model writes it.
        let hides_header = generation_prompt.is_empty() && !unprompted.trim().is_empty();
        let hidden_header = if hides_header { unprompted.to_owned() } else { String::new() };
        let opening = unprompted.strip_prefix(hidden_header.as_str()).unwrap_or_default().to_owned();
        let header = before.strip_prefix(bare.as_str()).unwrap_or_default();
        let header = header.strip_suffix(opening.as_str()).unwrap_or(header).to_owned();
        let mut ends = Vec::from_iter(first_token(&special_tokens, after).map(str::to_owned));
        // Cohere 2 closes the text of every answer before it ends the turn.
        let closed = |text: &str| eos.is_some_and(|eos| closing_run(&special_tokens, text).contains(&eos));
        let mut earlier_header = String::new();
        let followed = [messages.as_slice(), &[answer, message("user", &mark), message("assistant", "Bye")]].concat();
        let followed = template.render(&followed, around, false).unwrap_or_default();
        let mut pieces = followed.split(CONTENT);
        if let (Some(before), Some(between), Some(_)) = (pieces.next(), pieces.next(), pieces.next()) {
            let own = before.strip_prefix(bare.as_str()).unwrap_or_default();
            earlier_header = own[..common(own, &header)].to_owned();
            if closed(after) && closed(between) {
                ends = Vec::from_iter(eos.map(str::to_owned));
            } else {
                ends.extend(end_of_followed(&special_tokens, between, &header).filter(|_| !ends.is_empty()).map(str::to_owned));
            }
        }
        let function = minijinja::context! { name => "f", arguments => minijinja::context! { x => 1 } };
        let calls = vec![minijinja::context! { id => "call00001", type => "function", function => function }];
        let calling = minijinja::context! { role => "assistant", content => answers.content("", &[]), tool_calls => calls };
        let called = template.render(&[messages, vec![calling]].concat(), around, false).unwrap_or_default();
        let called = called.strip_prefix(prompt.as_str()).unwrap_or(&called).trim_end();
        let is_closed = ends.iter().any(|end| called.contains(end.as_str()));
        ends.extend(last_token(&special_tokens, called).filter(|_| !ends.is_empty() && !is_closed).map(str::to_owned));
        let mut seen = std::collections::HashSet::new();
        ends.retain(|token| seen.insert(token.clone()));
        Ok(Self {
            generation_prompt,
            header,
            opening,
            hidden_header,
            earlier_header,
            ends,
            special_tokens,
            answers,
            others,
            roles: Mutex::default(),
        })
    }

    /// The special tokens with which the template ends answers, beginning with that of the last answer.
    pub(super) fn ends(&self) -> &[String] {
        &self.ends
    }

    /// The special token with which the template ends the last answer.
    pub(super) fn end_of_turn(&self) -> Option<&str> {
        self.ends.first().map(String::as_str)
    }

    pub(super) fn has_generation_prompt(&self) -> bool {
        !self.generation_prompt.is_empty()
    }

    /// Whether this is the header before an answer of a template whose generation prompt is empty.
    pub(super) fn hides(&self, text: &str) -> bool {
        !text.is_empty() && text == self.hidden_header
    }

    /// Whether the template knows a role of this name: somewhere it renders a message of it in another way than one of a role that nobody has.
    pub(super) fn knows_role(&self, template: &ChatTemplate, role: &str) -> bool {
        let is_in_quotes = [format!("'{role}'"), format!("\"{role}\"")].iter().any(|quoted| template.spells(quoted));
        // The word in quotes may be that of something else, as in `type == 'function'`.
        let mut known = self.roles.lock().unwrap_or_else(PoisonError::into_inner);
        is_in_quotes && *known.entry(role.to_owned()).or_insert_with(|| self.tells_role(template, role))
    }

    fn tells_role(&self, template: &ChatTemplate, role: &str) -> bool {
        const NOBODY: &str = "nobody";
        let message = |role: &str, content: Value| {
            minijinja::context! { role => role, content => content, name => "f", tool_call_id => "call00000" }
        };
        let function = minijinja::context! { name => "f", arguments => minijinja::context! { x => 1 } };
        let call = minijinja::context! { id => "call00000", type => "function", function => function };
        let user = message("user", self.others.content("Hi", &[]));
        let answer = minijinja::context! { role => "assistant", content => self.answers.content("Hello", &[]) };
        let calling =
            minijinja::context! { role => "assistant", content => self.answers.content("", &[]), tool_calls => vec![call] };
        let text = |[before, after]: [&[Value]; 2], role: &str| {
            let messages = [before, &[message(role, self.mark(false))], after].concat();
            template.render(&messages, Surroundings::default(), false).ok()
        };
        let asked = std::slice::from_ref(&user);
        [[&[][..], asked], [&[user.clone(), calling], &[]], [&[user.clone(), answer], &[]]].into_iter().any(|around| {
            let of_nobody = || text(around, NOBODY).map(|text| text.replace(NOBODY, role));
            text(around, role).is_some_and(|text| text.contains(CONTENT) && of_nobody().is_none_or(|other| other != text))
        })
    }

    /// Returns the content of a turn in a form that the template renders; the row's own form if it supports both.
    pub(super) fn content(&self, turn: &Turn) -> Value {
        self.contents(turn.role == Role::Assistant).content(&turn.content, &turn.written.parts)
    }

    /// Returns the mark in a form that the template renders in the place of a content.
    fn mark(&self, is_answer: bool) -> Value {
        self.contents(is_answer).content(&CONTENT.to_string(), &[])
    }

    fn contents(&self, is_answer: bool) -> Contents {
        if is_answer { self.answers } else { self.others }
    }

    /// Whether the row has this turn's content in parts that the template does not support, so that their texts are joined.
    pub(super) fn joins_parts(&self, turn: &Turn) -> bool {
        !turn.written.parts.is_empty() && !self.contents(turn.role == Role::Assistant).as_parts
    }

    /// Finds the special token that closes an answer, in the text of the answer and whatever the template puts after it.
    ///
    /// There can be several special tokens at the end: the template adds more than one, or the data contain one as text. The right one is the first
    /// end-of-turn token after the content.
    fn find_end_of_turn(&self, region: &str, turn: Option<&Turn>) -> Option<Range<usize>> {
        let mut tokens = Vec::new();
        let mut end = region.trim_end().len();
        while let Some(token) = last_token(&self.special_tokens, &region[..end]) {
            let begin = end - token.len();
            tokens.push((begin..end, token));
            end = region[..begin].trim_end().len();
        }
        let closing =
            || tokens.iter().rev().filter(|(_, token)| self.ends.iter().any(|end| end == token)).map(|(range, _)| range);
        let behind_content = closing().find(|range| turn.is_some_and(|turn| holds_content(&region[..range.start], turn)));
        behind_content.or_else(|| closing().next()).or_else(|| tokens.first().map(|(range, _)| range)).cloned()
    }
}

/// Returns the first special token in the text; of two at the same position, the longer one.
fn first_token<'a>(special_tokens: &'a [String], text: &str) -> Option<&'a str> {
    let places = special_tokens.iter().filter_map(|token| Some((text.find(token.as_str())?, Reverse(token.len()), token)));
    places.min().map(|(_, _, token)| token.as_str())
}

/// Returns the run of consecutive special tokens that begins with the first one in the text.
fn closing_run<'a>(special_tokens: &'a [String], text: &str) -> Vec<&'a str> {
    let mut run = Vec::new();
    let mut rest = first_token(special_tokens, text).and_then(|token| text.find(token)).map_or("", |at| &text[at..]);
    while let Some(token) = first_token(special_tokens, rest).filter(|token| rest.starts_with(token)) {
        run.push(token);
        rest = &rest[token.len()..];
    }
    run
}

/// Returns the special token that ends the text.
fn last_token<'a>(special_tokens: &'a [String], text: &str) -> Option<&'a str> {
    special_tokens.iter().map(String::as_str).filter(|token| text.ends_with(token)).max_by_key(|token| token.len())
}

/// Returns the special token that ends an answer which a question follows. `between` is the text between their contents, and `header` that of
/// answers. The token that closes a turn precedes the next header, and is part of no header.
fn end_of_followed<'a>(special_tokens: &'a [String], between: &str, header: &str) -> Option<&'a str> {
    let token = first_token(special_tokens, between)?;
    let (_, rest) = between.split_once(token)?;
    (!header.contains(token) && first_token(special_tokens, rest).is_some()).then_some(token)
}

/// Returns the length in bytes of the common prefix, in whole characters.
fn common(a: &str, b: &str) -> usize {
    a.chars().zip(b.chars()).take_while(|(a, b)| a == b).map(|(a, _)| a.len_utf8()).sum()
}

impl Contents {
    /// Determines the forms of content that a template supports in questions (first) and answers (second), by rendering a question and an answer in
    /// each form: as a text and as a list of parts.
    fn of(template: &ChatTemplate) -> [Contents; 2] {
        let message = |role: &str, content: &Value| minijinja::context! { role => role, content => content };
        let shows = |question: &Value, answer: &Value| {
            let messages = [message("user", question), message("assistant", answer)];
            let text = template.render(&messages, Surroundings::default(), false).unwrap_or_default();
            // A template that prints a list as Python or JSON does not support it.
            let without_blanks = text.replace(' ', "");
            let is_printed = without_blanks.contains("'type':'text'") || without_blanks.contains("\"type\":\"text\"");
            !is_printed && text.contains(CONTENT)
        };
        let mark = CONTENT.to_string();
        let (plain, marked) = ([Value::from("x"), part("x")], [Value::from(mark.as_str()), part(&mark)]);
        // The other message may have either form, since some templates support only one.
        let question = |form: usize| plain.iter().any(|answer| shows(&marked[form], answer));
        let answer = |form: usize| plain.iter().any(|question| shows(question, &marked[form]));
        let contents = |as_text: bool, as_parts: bool| Contents { as_text: as_text || !as_parts, as_parts };
        [contents(question(0), question(1)), contents(answer(0), answer(1))]
    }

    fn content(self, text: &str, parts: &[serde_json::Value]) -> Value {
        match (self.as_text, self.as_parts) {
            (_, true) if !parts.is_empty() => parts.iter().map(python::from_json).collect(),
            (false, true) => part(text),
            _ => Value::from(text),
        }
    }
}

/// Returns a content as a list of one part.
fn part(text: &str) -> Value {
    Value::from(vec![minijinja::context! { type => "text", text => text }])
}

/// Renders the whole conversation, and finds every answer and every content in it.
pub(super) fn lay_out(template: &ChatTemplate, habits: &Habits, conversation: &Conversation) -> Result<Layout> {
    if template.has_generation_tags() {
        return lay_out_tagged(template, habits, conversation);
    }
    lay_out_untagged(template, habits, conversation, is_long(conversation.answer_idxs().count()))
}

/// Like [`lay_out`] for a template without tags. With `by_seams` only some answers are located by rendering, if these agree with their seams.
pub(super) fn lay_out_untagged(
    template: &ChatTemplate,
    habits: &Habits,
    conversation: &Conversation,
    by_seams: bool,
) -> Result<Layout> {
    let text = template.render(&conversation.messages, conversation.around, false)?;
    let seams = match by_seams {
        true => {
            place_all(template, habits, conversation, &text).map(|own| Seams::new(&text, own, conversation.follow_reasoning()))
        }
        false => None,
    };
    let by_seams = seams.map(|seams| find_answers(template, habits, conversation, &text, Some(seams))).transpose()?.flatten();
    let found = match by_seams {
        Some(found) => found,
        None => find_answers(template, habits, conversation, &text, None)?.unwrap_or_default(),
    };
    let mut layout = Layout { text, ..found };
    place_other_contents(template, habits, conversation, &mut layout);
    Ok(layout)
}

/// Finds the answers of the conversation and their contents, in a layout that has no text yet. With `seams`, only some answers are located by
/// rendering; the result is `None` if one of them contradicts its seam.
fn find_answers(
    template: &ChatTemplate,
    habits: &Habits,
    conversation: &Conversation,
    text: &str,
    mut seams: Option<Seams>,
) -> Result<Option<Layout>> {
    let mut layout = Layout::default();
    let mut cursor = 0;
    let n_answers = conversation.answer_idxs().count();
    for (nth, (idx, turn)) in conversation.answer_idxs().enumerate() {
        let known = seams.as_ref().filter(|_| !is_looked_for(nth, n_answers));
        let (begin, unlike_prompt) = match known.and_then(|seams| seams.begin(idx)) {
            // One answer that is unlike its prompt is enough, whatever the others are.
            Some((begin, unlike)) if layout.unlike_prompt || unlike.is_some() => (begin, unlike.unwrap_or(true)),
            _ => {
                let (begin, unlike) = find_begin(template, habits, conversation, text, idx)?;
                seams.iter_mut().for_each(|seams| seams.learn_begin(idx, begin, unlike));
                (begin, unlike)
            }
        };
        if begin < cursor {
            return Err(lost(idx));
        }
        let known = seams.as_ref().filter(|_| !is_looked_for(nth, n_answers));
        let end = match known.and_then(|seams| seams.end(idx)) {
            Some(known) => known,
            None => {
                let end = find_end(template, habits, conversation, text, idx, begin)?;
                seams.iter_mut().for_each(|seams| seams.learn_end(idx, end));
                end
            }
        };
        if seams.as_ref().is_some_and(Seams::is_contradicted) {
            return Ok(None);
        }
        let region = &text[begin..end];
        let (content_end, answer_end, ends_turn) = match habits.find_end_of_turn(region, Some(&conversation.turns[turn])) {
            Some(end_of_turn) => (end_of_turn.start, end_of_turn.end, true),
            None => (region.len(), region.trim_end().len(), false),
        };
        let placed = place_content(&region[..content_end], &conversation.turns[turn]).map(|placed| Placed {
            turn,
            at: placed.at + begin,
            ..placed
        });
        // Without an end-of-turn token the answer ends with its content, including white space, or with its tool calls.
        let written = placed.filter(|_| !ends_turn).map_or(0, |placed| placed.at + placed.len - begin);
        layout.answers.push(Answer { turn, range: begin..begin + answer_end.max(written), ends_turn });
        layout.contents.extend(placed);
        layout.unlike_prompt |= unlike_prompt;
        cursor = begin + answer_end.max(written);
    }
    Ok(Some(layout))
}

/// Locates what each message writes of its own: its content, its reasoning and its calls. A rendering with marks instead of the texts shows where they
/// stand. Returns `None` if the template treats the marks differently than the texts.
fn place_all(
    template: &ChatTemplate,
    habits: &Habits,
    conversation: &Conversation,
    text: &str,
) -> Option<Vec<Option<Range<usize>>>> {
    let mut messages = conversation.messages.clone();
    for (idx, turn) in conversation.turn_of.iter().enumerate() {
        let Some(turn) = turn.map(|turn| &conversation.turns[turn]) else { continue };
        let marked = marked(turn, idx);
        let mut fields = Vec::new();
        if !turn.content.trim().is_empty() && turn.written.value.is_none() {
            fields.push(("content", habits.content(&marked)));
        }
        if let Some(reasoning) = marked.reasoning {
            fields.extend(["thinking", "reasoning_content"].map(|key| (key, Value::from(reasoning.as_str()))));
        }
        fields.extend(marked_calls(turn, idx).map(|calls| ("tool_calls", python::from_json(&calls))));
        messages[idx] = merge_maps([messages[idx].clone(), Value::from_pairs(fields)]);
    }
    let rendered = template.render(&messages, conversation.around, false).ok()?;
    let mut pieces = rendered.split(CONTENT);
    let mut cursor = pieces.next().filter(|before| text.starts_with(before))?.len();
    let mut places: Vec<Option<Range<usize>>> = vec![None; messages.len()];
    let mut calls: Vec<Option<usize>> = vec![None; messages.len()];
    let mut last = 0;
    while let Some(mark) = pieces.next() {
        let (own, idx) = Own::of_mark(mark)?;
        let after = pieces.next()?;
        let turn = &conversation.turns[conversation.turn_of.get(idx).copied()??];
        let stands = |form: &String| text[cursor..].strip_prefix(form.as_str()).is_some_and(|rest| rest.starts_with(after));
        let end = cursor + forms_of_text(own.text(turn)).iter().find(|form| stands(form))?.len();
        // A text that is printed once more, beside another message, says nothing about where its own message stands.
        if idx < last {
            return None;
        }
        let begin = places[idx].as_ref().map_or(cursor, |place| place.start);
        (places[idx], last) = (Some(begin..end), idx);
        if own == Own::Call {
            calls[idx] = Some(cursor);
        }
        cursor = end + after.len();
    }
    if cursor != text.len() {
        return None;
    }
    // The arguments of calls follow their names.
    let mut next = text.len();
    for (idx, place) in places.iter_mut().enumerate().rev() {
        let Some(place) = place else { continue };
        if let (Some(call), Some(turn)) = (calls[idx], conversation.turn_of[idx]) {
            let found = find_parts(&text[call..next], &[], &conversation.turns[turn]);
            let ends = found.stretches.iter().map(|stretch| stretch.range.end).chain(found.signs.iter().map(|sign| sign.end));
            place.end = ends.map(|end| call + end).fold(place.end, usize::max);
        }
        next = place.start;
    }
    Some(places)
}

fn lay_out_tagged(template: &ChatTemplate, habits: &Habits, conversation: &Conversation) -> Result<Layout> {
    let (messages, around) = (&conversation.messages, conversation.around);
    let (text, blocks) = template.render_marked(messages, around)?;
    let mut layout = Layout { text, ..Layout::default() };
    let answers: Vec<(usize, usize)> = conversation.answer_idxs().collect();
    // Most templates have one block per answer. For others, prefixes show how many blocks each message adds.
    let turns_of_blocks: Vec<usize> = if answers.len() == blocks.len() {
        answers.iter().map(|&(_, turn)| turn).collect()
    } else {
        let mut turns = Vec::new();
        for &(idx, turn) in &answers {
            let (_, so_far) = template.render_marked(&messages[..=idx], around)?;
            turns.resize(so_far.len().max(turns.len()), turn);
        }
        if turns.len() != blocks.len() {
            return Err(Error::new("the generation blocks of the chat template do not belong to the assistant's messages")
                .cure("Check the position of the template's {% generation %} tags."));
        }
        turns
    };
    for (block, turn) in blocks.into_iter().zip(turns_of_blocks) {
        let region = &layout.text[block.clone()];
        let end_of_turn = habits.find_end_of_turn(region, Some(&conversation.turns[turn]));
        let content_end = end_of_turn.as_ref().map_or(region.len(), |end_of_turn| end_of_turn.start);
        if let Some(placed) = place_content(&region[..content_end], &conversation.turns[turn]) {
            layout.contents.push(Placed { turn, at: placed.at + block.start, ..placed });
        }
        layout.answers.push(Answer { turn, range: block, ends_turn: end_of_turn.is_some() });
    }
    place_other_contents(template, habits, conversation, &mut layout);
    Ok(layout)
}

/// Returns where answer `idx` begins, and whether the text before it differs from its generation prompt.
fn find_begin(
    template: &ChatTemplate,
    habits: &Habits,
    conversation: &Conversation,
    text: &str,
    idx: usize,
) -> Result<(usize, bool)> {
    // The first message has no prompt to compare with: an empty text is a prefix of everything.
    if idx > 0
        && let Ok(prompt) = template.render(&conversation.messages[..idx], conversation.around, true)
        && let Some(rest) = text.strip_prefix(prompt.as_str())
        && rest.starts_with(&habits.hidden_header)
    {
        return Ok((prompt.len() + habits.hidden_header.len(), false));
    }
    // Mark the content: the header is before the mark, even if earlier text has changed.
    let content = habits.mark(true);
    let plain = minijinja::context! { role => "assistant", content => content.clone() };
    // A template may refuse the result of a call that is gone, a content beside reasoning, or leave out the content beside a call (gpt-oss).
    let own = &conversation.messages[idx];
    let calling = minijinja::context! { content => content, ..without_reasoning(own).unwrap_or_else(|| own.clone()) };
    let calls = conversation.turn_of[idx].and_then(|turn| {
        let mut calls = conversation.turns[turn].tool_calls.clone()?;
        *calls.pointer_mut("/0/function/name")? = CONTENT.to_string().into();
        Some(minijinja::context! { tool_calls => python::from_json(&calls), ..own.clone() })
    });
    let mut messages = conversation.messages.clone();
    let mut marked = [Some(plain), Some(calling), calls].into_iter().flatten().filter_map(|message| {
        messages[idx] = message;
        template.render(&messages, conversation.around, false).ok()
    });
    let marked = marked.find(|marked| marked.contains(CONTENT)).ok_or_else(|| lost(idx))?;
    let before = marked.split_once(CONTENT).map_or("", |(before, _)| before);
    // The header that ends last, since an earlier turn may contain another. Answers without a header begin with their opening.
    let prompt = format!("{}{}", habits.generation_prompt, habits.hidden_header);
    let headers = [prompt.as_str(), &habits.header, &habits.earlier_header];
    let ends =
        headers.iter().filter(|header| !header.is_empty()).filter_map(|header| Some(before.rfind(*header)? + header.len()));
    let begin = match ends.max() {
        Some(begin) => Some(begin),
        None if headers.iter().all(|header| header.is_empty()) => before.strip_suffix(habits.opening.as_str()).map(str::len),
        None => None,
    };
    // After the header of another turn, the end of that turn would follow.
    let is_own = |begin: usize| !habits.ends.iter().any(|end| before[begin..].contains(end.as_str()));
    match begin {
        Some(begin) if text.starts_with(&before[..begin]) && is_own(begin) => Ok((begin, idx > 0)),
        _ => Err(lost(idx)),
    }
}

/// Returns where the text of message `idx` ends, including what the template puts after the end-of-turn token.
fn find_end(
    template: &ChatTemplate,
    habits: &Habits,
    conversation: &Conversation,
    text: &str,
    idx: usize,
    begin: usize,
) -> Result<usize> {
    if idx + 1 == conversation.messages.len() {
        return Ok(text.len());
    }
    let messages = &conversation.messages[..=idx];
    let as_written = std::iter::once_with(|| Some(messages.to_vec()));
    let without_own = std::iter::once_with(|| {
        let own = without_reasoning(&messages[idx])?;
        Some([&messages[..idx], &[own]].concat())
    });
    // A template that drops the reasoning of earlier rounds also drops that of the calls before this answer (GLM 4.5).
    let without_any = std::iter::once_with(|| {
        let is_changed = messages[..idx].iter().any(|message| without_reasoning(message).is_some());
        is_changed.then(|| messages.iter().map(|message| without_reasoning(message).unwrap_or_else(|| message.clone())).collect())
    });
    for so_far in as_written.chain(without_own).chain(without_any).flatten() {
        if let Ok(so_far) = template.render(&so_far, conversation.around, false)
            && so_far.len() > begin
            && let Some(rest) = text.strip_prefix(so_far.as_str())
        {
            // Some templates leave the last message open: the token that closes it comes with the next message.
            let closing = habits.ends.iter().find(|token| rest.trim_start().starts_with(token.as_str()));
            let open = habits.find_end_of_turn(&so_far[begin..], None).is_none();
            let more = closing.filter(|_| open).map_or(0, |token| rest.len() - rest.trim_start().len() + token.len());
            return Ok(so_far.len() + more);
        }
    }
    // The message is rendered differently if others follow. No other message ends before the next content.
    if let Some(next) = next_content(template, habits, conversation, idx).filter(|next| text.starts_with(next)) {
        let region = text.get(begin..next.len()).unwrap_or_default();
        let last = habits.ends.iter().filter_map(|token| Some(region.rfind(token.as_str())? + token.len())).max();
        return last.map(|end| begin + end).ok_or_else(|| lost(idx));
    }
    // It ends with the first end-of-turn token after its content.
    let region = &text[begin..];
    let turn = conversation.turn_of[idx].map(|turn| &conversation.turns[turn]);
    let mut ends: Vec<_> = habits.ends.iter().flat_map(|token| region.match_indices(token.as_str())).collect();
    ends.sort_unstable();
    // If the template omits the content, the answer ends at the first end-of-turn token, unless that could be part of the data.
    let is_spelt_out = turn.is_some_and(|turn| habits.ends.iter().any(|token| turn.content.contains(token.as_str())));
    let behind_content = ends.iter().find(|(at, _)| turn.is_none_or(|turn| holds_content(&region[..*at], turn)));
    let (at, token) = behind_content.or(ends.first().filter(|_| !is_spelt_out)).ok_or_else(|| lost(idx))?;
    Ok(begin + at + token.len())
}

/// Returns the text up to the content of the message after message `idx`; it ends with that message's header.
fn next_content(template: &ChatTemplate, habits: &Habits, conversation: &Conversation, idx: usize) -> Option<String> {
    let mut messages = conversation.messages.clone();
    let next = messages.get_mut(idx + 1)?;
    let role = next.get_attr("role").ok()?;
    *next = minijinja::context! { content => habits.mark(role.as_str() == Some("assistant")), ..next.clone() };
    let marked = template.render(&messages, conversation.around, false).ok()?;
    marked.split_once(CONTENT).map(|(before, _)| before.to_owned())
}

/// Returns the message without reasoning, for templates that drop that of earlier turns, or `None` if it has none.
fn without_reasoning(message: &Value) -> Option<Value> {
    let mut kept = Vec::new();
    let mut is_changed = false;
    for key in message.try_iter().ok()? {
        let mut value = message.get_item(&key).ok()?;
        if matches!(key.as_str(), Some("reasoning_content" | "thinking")) {
            is_changed = true;
            continue;
        }
        if key.as_str() == Some("content")
            && let Some(content) = value.as_str().filter(|content| content.contains(THINK_END))
        {
            is_changed = true;
            value = Value::from(said(content).trim_start_matches('\n'));
        }
        kept.push((key, value));
    }
    is_changed.then(|| Value::from_pairs(kept))
}

fn lost(idx: usize) -> Error {
    Error::new(format!(
        "cannot tell which part of the rendered text is message {} of the conversation: the template rewrites it",
        idx + 1
    ))
    .cure("Put {% generation %} ... {% endgeneration %} around the assistant's text in the chat template.")
}

/// Whether the region contains the turn's content. A content that is only reasoning may be omitted.
fn holds_content(region: &str, turn: &Turn) -> bool {
    said(&turn.content).trim().is_empty() || place_content(region, turn).is_some()
}

/// Finds a turn's content in the text of its answer, which ends with it unless tool calls follow.
fn place_content(region: &str, turn: &Turn) -> Option<Placed> {
    if turn.tool_calls.is_some() {
        return place_first(region, turn);
    }
    forms(&turn.content).find_map(|(begin, form)| Some(Placed { turn: 0, at: region.rfind(form)?, begin, len: form.len() }))
}

/// Finds the first occurrence of a turn's content after its reasoning.
fn place_first(region: &str, turn: &Turn) -> Option<Placed> {
    let reasoning = turn.reasoning.as_deref().map(str::trim).filter(|reasoning| !reasoning.is_empty());
    let from = reasoning.and_then(|reasoning| Some(region.find(reasoning)? + reasoning.len())).unwrap_or(0);
    forms(&turn.content)
        .find_map(|(begin, form)| Some(Placed { turn: 0, at: from + region[from..].find(form)?, begin, len: form.len() }))
}

/// Returns the forms in which templates render a content, the fullest first, each with its offset in the content: unchanged, without the
/// surrounding white space, and without the reasoning in it.
fn forms(content: &str) -> impl Iterator<Item = (usize, &str)> {
    let trimmed = |text: &str, begin: usize| (begin + text.len() - text.trim_start().len(), text.trim().len());
    let answer = content.rfind(THINK_END).map(|at| at + THINK_END.len());
    let mut ranges = vec![(0, content.len()), trimmed(content, 0)];
    ranges.extend(answer.map(|at| trimmed(&content[at..], at)));
    ranges.into_iter().filter(|&(_, len)| len > 0).map(|(begin, len)| (begin, &content[begin..begin + len]))
}

/// Locates the contents of turns other than answers, by a rendering with marks instead of them. Contents that cannot be located count as template;
/// this affects only the spans of unsupervised tokens.
fn place_other_contents(template: &ChatTemplate, habits: &Habits, conversation: &Conversation, layout: &mut Layout) {
    let mut messages = conversation.messages.clone();
    let mut marked_turns = Vec::new();
    for (idx, turn) in conversation.turn_of.iter().enumerate() {
        if let Some(turn) = *turn
            && conversation.turns[turn].role != Role::Assistant
            && !conversation.turns[turn].content.trim().is_empty()
        {
            let role = messages[idx].get_attr("role").unwrap_or_default();
            messages[idx] = minijinja::context! { role => role, content => habits.mark(false), ..messages[idx].clone() };
            marked_turns.push(turn);
        }
    }
    let Ok(marked) = template.render(&messages, conversation.around, false) else { return };
    let mut pieces = marked.split(CONTENT);
    let mut cursor = pieces.next().unwrap_or_default().len();
    if !layout.text.starts_with(&marked[..cursor]) {
        return;
    }
    for (turn, after) in marked_turns.into_iter().zip(pieces) {
        let content = &conversation.turns[turn].content;
        let Some((begin, form)) =
            forms(content).find(|(_, form)| layout.text[cursor..].strip_prefix(form).is_some_and(|rest| rest.starts_with(after)))
        else {
            break;
        };
        layout.contents.push(Placed { turn, at: cursor, begin, len: form.len() });
        cursor += form.len() + after.len();
    }
    layout.contents.sort_by_key(|placed| placed.at);
}

fn first_success<T>(mut attempts: impl Iterator<Item = Result<T>>) -> Result<T> {
    let first = attempts.next().unwrap_or_else(|| Err(Error::new("nothing to try")));
    match first {
        Ok(value) => Ok(value),
        Err(error) => {
            attempts.find_map(Result::ok).ok_or(error).context("the chat template rejects even a greeting and its answer")
        }
    }
}
