//! Builds prompts for a model to answer, and reads rows whose last answer a model generated.
//!
//! The text of an answer may tokenise to other tokens than those that were drawn. Such a row is read with the drawn tokens, which are the model's
//! actual output, and counted. If they do not belong to the row (because the tokenizer differs, the prompt is rendered differently, or the text was
//! changed), its text is tokenised instead, and counted, too.

use serde_json::Value;

use super::audit::Drawn;
use super::render::{Rendered, Renderer, n_white};
use super::template::ChatTemplate;
use super::tokenizer::Token;
use super::turns::{Habits, Layout};
use super::{Span, fingerprint};
use crate::dataset::{Example, Role, Rollout, Turn};
use crate::error::{Error, Result};

/// A prompt for a model to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The token ids of the prompt.
    pub ids: Vec<u32>,
    /// The number of the example's turns that it contains.
    pub n_turns: usize,
}

/// Returns the fingerprint of a prompt, in hexadecimal.
pub fn fingerprint_of_prompt(ids: &[u32]) -> String {
    format!("{:016x}", fingerprint(ids))
}

impl Renderer {
    /// Returns everything before the last answer, including the generation prompt; all turns if the last one is no answer.
    pub fn prompt(&self, example: &Example) -> Result<Prompt> {
        if example.turns.iter().any(|turn| turn.role == Role::Text) {
            return Err(Error::new("a plain text has no prompt to answer"));
        }
        let is_answered = example.turns.last().is_some_and(|turn| turn.role == Role::Assistant);
        let n_turns = example.turns.len() - usize::from(is_answered);
        if n_turns == 0 {
            return Err(Error::new("the row has nothing before its answer"));
        }
        // With a placeholder answer, the answer is located and the text before it cut as in rows for training.
        let mut turns = example.turns[..n_turns].to_vec();
        turns.push(Turn::plain(Role::Assistant, "x"));
        let asked = Example { turns, rollout: None, ..example.clone() };
        let layout = self.lay_out(&asked)?;
        let Some(answer) = layout.answers.last() else {
            return Err(Error::new("the chat template does not render an answer to the row"));
        };
        let begin = answer.range.start;
        let mut before = self.tokenize(&layout)?;
        before.truncate(Self::n_before(&layout, &before, begin));
        if let Some(template) = self.template_of(example) {
            let prompt = self.generation_prompt(template, &asked, n_turns)?;
            let is_begun = layout.text[..begin].strip_prefix(prompt.as_str());
            if !is_begun.is_some_and(|rest| rest.is_empty() || template.1.hides(rest)) {
                // In training the text before an answer differs; a prompt needs what the model is given at inference.
                before = self.tokenize(&Layout { text: prompt, ..Layout::default() })?;
            }
        }
        let ids: Vec<u32> = before.iter().map(|token| token.id).collect();
        match ids.is_empty() {
            true => Err(Error::new("the prompt is empty")),
            false => Ok(Prompt { ids, n_turns }),
        }
    }

    /// Returns the template's text for answering these turns, or an error without a template.
    pub fn prompt_text(&self, turns: Vec<Turn>, tools: Option<Value>) -> Result<String> {
        let (n_turns, asked) = (turns.len(), Example { turns, tools, ..Example::default() });
        let template = self.template_of(&asked).ok_or_else(|| {
            Error::usage("the model has no chat template").cure("Pass one with --chat-template FILE, or ask without one.")
        })?;
        self.generation_prompt(template, &asked, n_turns)
    }

    /// Returns the template's text of these turns, with the generation prompt if `asks` is set, or an error without a template.
    pub fn text(&self, turns: Vec<Turn>, asks: bool) -> Result<String> {
        let example = Example { turns, ..Example::default() };
        let template = self.template_of(&example).ok_or_else(|| Error::usage("the model has no chat template"))?;
        self.text_by(template, &example, asks)
    }

    /// Returns the first of these turns that the template renders differently once other turns follow: the whole text does not begin with the text up
    /// to it.
    pub fn rewritten_turn(&self, example: &Example, turns: &[usize]) -> Result<Option<usize>> {
        let Some(template) = self.template_of(example) else { return Ok(None) };
        // The template gets the beginnings of a conversation in the form in which it gets all of it.
        self.attempts(template, example, |template, _, conversation| {
            let text = |messages: &[minijinja::Value]| template.render(messages, conversation.around, false);
            let whole = text(&conversation.messages)?;
            let n_before = conversation.messages.len() - conversation.turns.len();
            let is_rewritten = |turn: &usize| {
                !text(&conversation.messages[..=n_before + turn]).is_ok_and(|so_far| whole.starts_with(so_far.as_str()))
            };
            Ok(turns.iter().copied().find(is_rewritten))
        })
    }

    /// Returns the special token with which the template ends an answer; without a template, the end token.
    pub fn end_of_turn(&self) -> Option<u32> {
        match &self.template {
            Some((_, habits)) => habits.end_of_turn().and_then(|token| self.tokenizer.id(token)),
            None => self.tokenizer.eos(),
        }
    }

    /// Returns the control tokens with which answers end, beginning with that of the last answer; without a template, the end token.
    pub fn turn_ends(&self) -> Vec<String> {
        match &self.template {
            Some((_, habits)) => habits.ends().to_vec(),
            None => self.tokenizer.eos().map(|eos| self.tokenizer.text(eos)).into_iter().collect(),
        }
    }

    /// Whether the template has a generation prompt.
    pub fn has_generation_prompt(&self) -> bool {
        self.template.as_ref().is_none_or(|(_, habits)| habits.has_generation_prompt())
    }

    /// Returns the template's text before an answer to the first `n_turns` turns.
    fn generation_prompt(&self, template: &(ChatTemplate, Habits), asked: &Example, n_turns: usize) -> Result<String> {
        self.text_by(template, &Example { turns: asked.turns[..n_turns].to_vec(), ..asked.clone() }, true)
    }

    /// Replaces the tokens of the answer's text by those that were drawn, if they belong to the row.
    pub(super) fn put_drawn(
        &self,
        rendered: &mut Rendered,
        rollout: &Rollout,
        example: &Example,
        layout: &Layout,
        tokens: &[Token],
    ) -> Drawn {
        let (Some(answer), Some(turn)) = (layout.answers.last(), example.turns.last()) else { return Drawn::Foreign };
        let n_before = Self::n_before(layout, tokens, answer.range.start);
        let sequence = &mut rendered.sequence;
        let n_text = rollout.ids.len() - usize::from(rollout.ended == "end_token" && !rollout.ids.is_empty());
        let bytes: Vec<u8> = rollout.ids[..n_text].iter().flat_map(|&id| self.tokenizer.bytes(id)).copied().collect();
        let is_known = rollout.ids.iter().all(|&id| (id as usize) < self.tokenizer.vocab_size());
        let is_own = answer.turn + 1 == example.turns.len() && is_known && String::from_utf8_lossy(&bytes) == turn.content;
        let is_asked = |ids: &[u32]| fingerprint_of_prompt(ids) == rollout.prompt;
        // A template that marks the header as part of the answer is still asked with it.
        let header = match is_own {
            true if is_asked(&sequence.ids[..n_before]) => Some(Vec::new()),
            true => self
                .prompt(example)
                .ok()
                .filter(|prompt| is_asked(&prompt.ids))
                .and_then(|prompt| prompt.ids.strip_prefix(&sequence.ids[..n_before]).map(<[u32]>::to_vec)),
            false => None,
        };
        let Some(header) = header else { return Drawn::Foreign };
        let n_prompt = n_before + header.len();
        // The model did not draw what the template writes after a truncated answer.
        let has_same = sequence.ids.get(n_prompt..).is_some_and(|ids| ids.starts_with(&rollout.ids));
        let places = places_in_text(&bytes);
        let mut at = 0;
        let drawn = rollout.ids.iter().enumerate().map(|(n, &id)| {
            let n_bytes = if n < n_text { self.tokenizer.bytes(id).len() } else { 0 };
            let (begin, end) = if n < n_text { (places[at], places[at + n_bytes]) } else { (0, 0) };
            let first = begin as usize + n_white(&bytes[at..at + n_bytes]);
            let weight = if n_bytes > 0 { turn.weight_at(first) } else { turn.weight };
            at += n_bytes;
            (Span { turn: answer.turn as u16, begin, end }, weight)
        });
        sequence.ids.truncate(n_before);
        sequence.ids.extend(header);
        sequence.supervised.truncate(n_before);
        sequence.supervised.resize(n_prompt, false);
        sequence.spans.truncate(n_before);
        sequence.spans.resize(n_prompt, Span { turn: answer.turn as u16, begin: 0, end: 0 });
        rendered.target_weights.truncate(sequence.n_targets());
        for (&id, (span, weight)) in rollout.ids.iter().zip(drawn) {
            sequence.ids.push(id);
            sequence.spans.push(span);
            sequence.supervised.push(weight > 0.0);
            rendered.target_weights.extend((weight > 0.0).then_some(weight));
        }
        if has_same { Drawn::Same } else { Drawn::Respelt }
    }
}

/// Returns the offset of each byte, and of the end, in the text that [`String::from_utf8_lossy`] makes of them: invalid UTF-8 becomes U+FFFD, which
/// has three bytes whatever it replaces.
fn places_in_text(bytes: &[u8]) -> Vec<u32> {
    let mut places = Vec::with_capacity(bytes.len() + 1);
    let mut at = 0;
    for chunk in bytes.utf8_chunks() {
        let n_valid = chunk.valid().len() as u32;
        places.extend(at..at + n_valid);
        at += n_valid;
        places.extend(at..at + chunk.invalid().len() as u32);
        at += if chunk.invalid().is_empty() { 0 } else { char::REPLACEMENT_CHARACTER.len_utf8() as u32 };
    }
    places.push(at);
    places
}

#[cfg(test)]
mod tests {
    use super::places_in_text;
    use crate::random::SplitMix;

    #[test]
    fn every_byte_stands_where_its_character_does() {
        assert_eq!(places_in_text(b"a\xE4\xB8b"), [0, 1, 2, 4, 5]);
        let mut random = SplitMix(7);
        for _ in 0..500 {
            // Text with characters of every length, from which bytes are removed or in which they are changed.
            let mut bytes = "aé三🦀 ".repeat(4).into_bytes();
            for _ in 0..random.below(6) {
                let at = random.below(bytes.len() as u32) as usize;
                if random.below(2) == 0 {
                    bytes.remove(at);
                } else {
                    bytes[at] = random.below(256) as u8
                }
            }
            let text = String::from_utf8_lossy(&bytes);
            let places = places_in_text(&bytes);
            assert_eq!(places.len(), bytes.len() + 1);
            assert_eq!(*places.last().unwrap() as usize, text.len());
            assert!(places.is_sorted());
            for (byte, place) in bytes.iter().zip(&places) {
                let found = text.as_bytes()[*place as usize];
                let begin = text.floor_char_boundary(*place as usize);
                assert!(found == *byte || text[begin..].starts_with('\u{FFFD}'), "{bytes:?} at {place}");
            }
        }
    }
}
