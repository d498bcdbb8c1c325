//! What a model is to answer, and what it has answered: prompts, and rows whose last answer was written token by token.
//!
//! The text of an answer need not become the tokens that were drawn: most texts have many spellings. Such a row is read with the tokens
//! that were drawn, which are what the model said, and counted; where they do not belong to the row (another tokenizer, a prompt that is
//! rendered otherwise, a text that was changed), it is read as its text, and counted, too.

use serde_json::Value;

use super::audit::Drawn;
use super::render::{Rendered, Renderer};
use super::template::ChatTemplate;
use super::tokenizer::Token;
use super::turns::{Habits, Layout};
use super::{Span, fingerprint};
use crate::dataset::{Example, Role, Rollout, Turn};
use crate::error::{Error, Result};

/// What a model is given to answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Prompt {
    /// The token ids that the model is given.
    pub ids: Vec<u32>,
    /// The example's turns that are in it.
    pub n_turns: usize,
}

/// The fingerprint of a prompt, in hexadecimal.
pub fn fingerprint_of_prompt(ids: &[u32]) -> String {
    format!("{:016x}", fingerprint(ids))
}

impl Renderer {
    /// All before the last answer, with what the template puts before an answer; all turns where the last one is no answer.
    pub fn prompt(&self, example: &Example) -> Result<Prompt> {
        if example.turns.iter().any(|turn| turn.role == Role::Text) {
            return Err(Error::new("a plain text has no prompt to answer"));
        }
        let is_answered = example.turns.last().is_some_and(|turn| turn.role == Role::Assistant);
        let n_turns = example.turns.len() - usize::from(is_answered);
        if n_turns == 0 {
            return Err(Error::new("the row has nothing before its answer"));
        }
        // With an answer of our own the answer is found, and the text before it cut, as in the rows that are learnt.
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
                // Before an answer that is learnt stands something else: what counts here is what the model is given when it is used.
                before = self.tokenize(&Layout { text: prompt, ..Layout::default() })?;
            }
        }
        let ids: Vec<u32> = before.iter().map(|token| token.id).collect();
        match ids.is_empty() {
            true => Err(Error::new("the prompt is empty")),
            false => Ok(Prompt { ids, n_turns }),
        }
    }

    /// The text that the model is given to answer these turns, as the template writes it; without a template an error.
    pub fn prompt_text(&self, turns: Vec<Turn>, tools: Option<Value>) -> Result<String> {
        let (n_turns, asked) = (turns.len(), Example { turns, tools, ..Example::default() });
        let template = self.template_of(&asked).ok_or_else(|| {
            Error::usage("the model has no chat template").cure("Pass one with --chat-template FILE, or ask without one.")
        })?;
        self.generation_prompt(template, &asked, n_turns)
    }

    /// The text of these turns, as the template writes it, with what it puts before an answer if it `asks` for one; without a template an error.
    pub fn text(&self, turns: Vec<Turn>, asks: bool) -> Result<String> {
        let example = Example { turns, ..Example::default() };
        let template = self.template_of(&example).ok_or_else(|| Error::usage("the model has no chat template"))?;
        self.attempts(template, &example, |template, _, conversation| {
            template.render(&conversation.messages, conversation.around, asks)
        })
    }

    /// The answers that the template writes otherwise when others follow them: the text up to them is not how the whole text begins.
    pub fn rewritten_turns(&self, example: &Example) -> Result<Vec<usize>> {
        let Some(template) = self.template_of(example) else { return Ok(Vec::new()) };
        let text = |turns: &[Turn]| {
            let part = Example { turns: turns.to_vec(), ..example.clone() };
            self.attempts(template, &part, |template, _, conversation| {
                template.render(&conversation.messages, conversation.around, false)
            })
        };
        let whole = text(&example.turns)?;
        let answers = (0..example.turns.len()).filter(|&turn| example.turns[turn].role == Role::Assistant);
        let is_rewritten = |turn: &usize| !text(&example.turns[..=*turn]).is_ok_and(|so_far| whole.starts_with(&so_far));
        Ok(answers.filter(is_rewritten).collect())
    }

    /// The special token with which the template ends an answer; without a template the end token.
    pub fn end_of_turn(&self) -> Option<u32> {
        match &self.template {
            Some((_, habits)) => habits.end_of_turn().and_then(|token| self.tokenizer.id(token)),
            None => self.tokenizer.eos(),
        }
    }

    /// The control tokens with which answers end, that of the last answer first; without a template the end token.
    pub fn turn_ends(&self) -> Vec<String> {
        match &self.template {
            Some((_, habits)) => habits.ends().to_vec(),
            None => self.tokenizer.eos().map(|eos| self.tokenizer.text(eos)).into_iter().collect(),
        }
    }

    /// Does the template add something where an answer is to follow?
    pub fn has_generation_prompt(&self) -> bool {
        self.template.as_ref().is_none_or(|(_, habits)| habits.has_generation_prompt())
    }

    /// The text before an answer to the first `n_turns` turns, as the template gives it.
    fn generation_prompt(&self, template: &(ChatTemplate, Habits), asked: &Example, n_turns: usize) -> Result<String> {
        let before = Example { turns: asked.turns[..n_turns].to_vec(), ..asked.clone() };
        self.attempts(template, &before, |template, _, conversation| {
            template.render(&conversation.messages, conversation.around, true)
        })
    }

    /// Puts the tokens that were drawn in the place of those of the answer's text, if they belong to the row.
    pub(super) fn put_drawn(
        &self,
        rendered: &mut Rendered,
        rollout: &Rollout,
        example: &Example,
        layout: &Layout,
        tokens: &[Token],
    ) -> Drawn {
        let (Some(answer), Some(turn)) = (layout.answers.last(), example.turns.last()) else { return Drawn::Foreign };
        let n_prompt = Self::n_before(layout, tokens, answer.range.start);
        let sequence = &mut rendered.sequence;
        let n_text = rollout.ids.len() - usize::from(rollout.ended == "end_token" && !rollout.ids.is_empty());
        let bytes: Vec<u8> = rollout.ids[..n_text].iter().flat_map(|&id| self.tokenizer.bytes(id)).copied().collect();
        let is_known = rollout.ids.iter().all(|&id| (id as usize) < self.tokenizer.vocab_size());
        let is_own = answer.turn + 1 == example.turns.len()
            && is_known
            && String::from_utf8_lossy(&bytes) == turn.content
            && fingerprint_of_prompt(&sequence.ids[..n_prompt]) == rollout.prompt;
        if !is_own {
            return Drawn::Foreign;
        }
        // What the template writes behind an answer that was cut was not drawn.
        let has_same = sequence.ids[n_prompt..].starts_with(&rollout.ids);
        sequence.ids.truncate(n_prompt);
        sequence.ids.extend_from_slice(&rollout.ids);
        sequence.supervised.truncate(n_prompt);
        let n_weights = sequence.n_targets();
        sequence.supervised.resize(n_prompt + rollout.ids.len(), turn.weight > 0.0);
        rendered.target_weights.truncate(n_weights);
        if turn.weight > 0.0 {
            rendered.target_weights.resize(n_weights + rollout.ids.len(), turn.weight);
        }
        sequence.spans.truncate(n_prompt);
        let places = places_in_text(&bytes);
        let mut at = 0;
        for &id in &rollout.ids[..n_text] {
            let next = at + self.tokenizer.bytes(id).len();
            sequence.spans.push(Span { turn: answer.turn as u16, begin: places[at], end: places[next] });
            at = next;
        }
        sequence.spans.resize(sequence.ids.len(), Span { turn: answer.turn as u16, begin: 0, end: 0 });
        if has_same { Drawn::Same } else { Drawn::Respelt }
    }
}

/// Where the beginning of each byte, and the end of all, stands in the text that [`String::from_utf8_lossy`] makes of them: what is no UTF-8 is
/// U+FFFD there, which has three bytes whatever it stands for.
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
            // Text, with characters of every length, in which bytes are lost or changed.
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
