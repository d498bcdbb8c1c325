//! A turn as its learnt tokens write it: the tokens that stand beside its content, in its reasoning and its tool calls.
//!
//! The table gives a token its place in the content and none to the others, and what the template has made of a row is not kept. The texts of the
//! tokens, one after the other, are what the template has made; what of it is the row's own is found by the row's reasoning and calls.

use std::ops::Range;

use super::context::InContext;
use super::kinds::bytes_of;
use crate::dataset::Turn;
use crate::tokens::{FoundParts, Part, Stretch, find_parts};

/// A learnt token of a turn, as the table has it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct TurnToken {
    /// Its position in the sequence.
    pub pos: u32,
    /// Which token it is.
    pub id: u32,
    /// Does it have a place in the content?
    pub is_content: bool,
}

/// The text of the learnt tokens of a turn.
#[derive(Debug)]
pub struct TurnText {
    text: String,
    /// The tokens, and the bytes of each.
    tokens: Vec<(TurnToken, Range<usize>)>,
    /// What is reasoning, and what of a call.
    stretches: Vec<Stretch>,
    /// The signs between the keys and values of a call.
    signs: Vec<Range<usize>>,
}

/// The place of a token outside the content.
#[derive(Debug, PartialEq, Eq)]
pub struct PartPlace<'a> {
    /// What it is part of.
    pub part: Part,
    /// The reasoning, the name, key or value, or the signs between two of them; empty for a token of the template.
    pub text: &'a str,
    /// The bytes of the token in that text.
    pub bytes: Range<usize>,
}

impl TurnText {
    /// `tokens` are all learnt tokens of the turn in their order, and `word` gives the text of one.
    pub fn of<'a>(turn: &Turn, tokens: &[TurnToken], word: impl Fn(u32) -> &'a str) -> TurnText {
        let (mut bytes, mut places, mut content) =
            (Vec::new(), Vec::<(TurnToken, Range<usize>)>::new(), Vec::<Range<usize>>::new());
        for token in tokens {
            // What is not learnt is not in the table.
            if places.last().is_some_and(|(last, _)| last.pos + 1 != token.pos) {
                bytes.extend("…".as_bytes());
            }
            let begin = bytes.len();
            bytes.extend(bytes_of(word(token.id)));
            places.push((*token, begin..bytes.len()));
            match content.last_mut().filter(|last| last.end == begin) {
                _ if !token.is_content => {}
                Some(last) => last.end = bytes.len(),
                None => content.push(begin..bytes.len()),
            }
        }
        let text = as_long_text(bytes);
        let FoundParts { stretches, signs, .. } = find_parts(&text, &content, turn);
        TurnText { text, tokens: places, stretches, signs }
    }

    /// Does the turn write this beside its content?
    pub fn has(&self, part: Part) -> bool {
        self.stretches.iter().any(|stretch| stretch.part == part)
    }

    /// The bytes of the token at this position, if it is no part of the content.
    fn bytes_beside_content(&self, pos: u32) -> Option<Range<usize>> {
        let at = self.tokens.binary_search_by_key(&pos, |(token, _)| token.pos).ok()?;
        let (token, range) = &self.tokens[at];
        let end = range.end.min(self.text.len());
        (!token.is_content).then_some(range.start.min(end)..end)
    }

    /// The place of the token at this position; `None` for a token of the content.
    pub fn place(&self, pos: u32) -> Option<PartPlace<'_>> {
        let bytes = self.bytes_beside_content(pos)?;
        // Both are in the order of the text, without overlaps.
        let holds = |range: &&Range<usize>| range.start < bytes.end;
        let stretch = self.stretches.get(self.stretches.partition_point(|own| own.range.end <= bytes.start));
        let signs = self.signs.get(self.signs.partition_point(|signs| signs.end <= bytes.start)).filter(holds);
        let own = stretch.map(|own| (own.part, &own.range)).filter(|(_, range)| holds(range));
        let own = own.or_else(|| Some((Part::ToolCall, signs?)));
        Some(match own {
            Some((part, range)) => PartPlace {
                part,
                text: &self.text[range.clone()],
                bytes: bytes.start.max(range.start) - range.start..bytes.end.min(range.end) - range.start,
            },
            None => PartPlace { part: Part::Template, text: "", bytes: 0..0 },
        })
    }

    /// The token at this position among its neighbours; `None` for a token of the content, and where the turn writes nothing beside that.
    pub fn in_context(&self, pos: u32) -> Option<InContext> {
        let part = self.place(pos).filter(|_| !self.stretches.is_empty())?.part;
        let bytes = self.bytes_beside_content(pos)?;
        Some(InContext { part: Some(part), ..InContext::of(&self.text, bytes.start, bytes.end) })
    }
}

/// The bytes as a text of the same length: without a last character that is not whole, and with `?` for other bytes that are no text.
fn as_long_text(mut bytes: Vec<u8>) -> String {
    loop {
        match String::from_utf8(bytes) {
            Ok(text) => return text,
            Err(error) => {
                let (at, length) = (error.utf8_error().valid_up_to(), error.utf8_error().error_len());
                bytes = error.into_bytes();
                match length {
                    Some(length) => bytes[at..at + length].fill(b'?'),
                    None => bytes.truncate(at),
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::dataset::Role;

    /// The tokens of these words, of which those in the content begin with `=`.
    fn text_of(turn: &Turn, words: &[&str]) -> TurnText {
        let tokens: Vec<TurnToken> =
            (0..).zip(words).map(|(id, word)| TurnToken { pos: id + 5, id, is_content: word.starts_with('=') }).collect();
        TurnText::of(turn, &tokens, |id| words[id as usize].trim_start_matches('='))
    }

    fn place(part: Part, text: &str, bytes: Range<usize>) -> Option<PartPlace<'_>> {
        Some(PartPlace { part, text, bytes })
    }

    #[test]
    fn reasoning_and_calls_have_places_and_the_template_has_none() {
        let call = json!([{ "function": { "name": "look_up", "arguments": { "city": "北京", "n": 3 } } }]);
        let turn =
            Turn { reasoning: Some("Where? In 北.".into()), tool_calls: Some(call), ..Turn::plain(Role::Assistant, "So:") };
        let words = [
            "<think>",
            "\n",
            "Where",
            "?",
            " In",
            " ",
            "<0xE5>",
            "<0x8C><0x97>",
            ".\n",
            "</think>",
            "\n\n",
            "=So",
            "=:",
            "<tool_call>",
            "{\"name\": \"",
            "look",
            "_up\"",
            ", \"arguments\": {\"",
            "city",
            "\": \"",
            "北京",
            "\", \"",
            "n",
            "\": ",
            "3}",
            "}",
            "</tool_call>",
            "<|im_end|>",
            "\n",
        ];
        let text = text_of(&turn, &words);
        let (reasoning, template) = ("Where? In 北.", place(Part::Template, "", 0..0));
        assert_eq!(text.place(5), template);
        assert_eq!(text.place(7), place(Part::Reasoning, reasoning, 0..5));
        assert_eq!(text.place(11), place(Part::Reasoning, reasoning, 10..11));
        assert_eq!(text.place(12), place(Part::Reasoning, reasoning, 11..13));
        // A token that reaches over the edge has the part of it that lies within.
        assert_eq!(text.place(13), place(Part::Reasoning, reasoning, 13..14));
        assert_eq!([text.place(16), text.place(99)], [None, None]);
        assert_eq!(text.place(20), place(Part::ToolCall, "look_up", 0..4));
        assert_eq!(text.place(21), place(Part::ToolCall, "look_up", 4..7));
        assert_eq!(text.place(25), place(Part::ToolCall, "北京", 0..6));
        assert_eq!(text.place(29), place(Part::ToolCall, "3", 0..1));
        // Between two arguments, and behind the last one.
        assert_eq!(text.place(26), place(Part::ToolCall, "\", \"", 0..4));
        assert_eq!(text.place(30), place(Part::ToolCall, "}}", 1..2));
        assert_eq!([text.place(22), text.place(32)], [template, place(Part::Template, "", 0..0)]);
        assert!(text.has(Part::Reasoning) && text.has(Part::ToolCall));
        let context = text.in_context(25).unwrap();
        assert_eq!(
            (context.before.as_str(), context.token.as_str(), context.part),
            ("So:<tool_call>{\"name\": \"look_up\", \"arguments\": {\"city\": \"", "北京", Some(Part::ToolCall))
        );
        assert_eq!(text.in_context(12).map(|context| context.token), Some("北".to_owned()));
        assert_eq!(text.in_context(16), None);
    }

    #[test]
    fn a_template_that_leaves_them_out_leaves_its_own_tokens() {
        let call = json!([{ "function": { "name": "f", "arguments": {} } }]);
        let turn = Turn { reasoning: Some("Hm.".into()), tool_calls: Some(call), ..Turn::plain(Role::Assistant, "f") };
        let text = text_of(&turn, &["=f", "<|im_end|>", "\n"]);
        assert_eq!(text.place(6), place(Part::Template, "", 0..0));
        assert!(!text.has(Part::Reasoning) && !text.has(Part::ToolCall));
        assert_eq!(text.in_context(6), None);
    }

    #[test]
    fn a_turn_that_is_cut_off_keeps_the_places_of_what_is_left() {
        let turn = Turn { reasoning: Some("It is 北京.".into()), ..Turn::plain(Role::Assistant, "Yes.") };
        let text = text_of(&turn, &["<think>\n", "It", " is", " <0xE5>", "<0x8C>"]);
        assert_eq!(text.place(7), place(Part::Reasoning, "It is ", 2..5));
        assert_eq!(text.place(9), place(Part::Template, "", 0..0));
        assert_eq!(as_long_text(b"a\xFFb\xE5".to_vec()), "a?b");
    }
}
