//! Cuts out the sentence around a token, which a person has to read to judge it.
//!
//! The table knows only the span of a token; the sentence comes from the data, once they are available.

use std::ops::Range;

use serde::{Deserialize, Serialize};

use crate::tokens::Part;

/// The place of a token, with its sentence where the data were available.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The index of the turn in the example.
    pub turn: u16,
    /// The first byte in the turn's content. A token outside the content has no bytes there: `begin` and `end` are both its place, see [`Places`].
    pub begin: u32,
    /// The byte behind the last.
    pub end: u32,
    /// Index of the token in the rendered sequence, where it was kept.
    #[serde(default)]
    pub pos: Option<u32>,
    /// The sentence around the token, where the data were available.
    #[serde(default)]
    pub context: Option<InContext>,
}

/// The sentence around a token, cut at about `REACH` characters on either side; a cut is marked by `…`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InContext {
    /// The text before the token.
    pub before: String,
    /// The text of the token; empty for a template token, which is between the other two.
    pub token: String,
    /// The text behind the token.
    pub after: String,
    /// What the token is part of, where that is not the content.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub part: Option<Part>,
}

/// Finds the place of each token in the text of its turn, given the tokens in table order.
#[derive(Debug, Default)]
pub struct Places {
    /// The row and turn being read.
    of: Option<(u32, u16)>,
    /// The end of the last token in it that has bytes.
    end: u32,
}

impl Places {
    /// Returns the token's own `bytes`. A template token has none, so it gets the place behind the token before it, or the beginning of the turn if
    /// there is none; an end-of-turn token thus follows the whole text.
    pub fn next(&mut self, row: u32, turn: u16, bytes: Range<u32>) -> Range<u32> {
        if self.of != Some((row, turn)) {
            *self = Places { of: Some((row, turn)), end: 0 };
        }
        if bytes.is_empty() {
            return self.end..self.end;
        }
        self.end = bytes.end;
        bytes
    }
}

/// The number of characters shown on either side of a token.
const REACH: usize = 160;

impl InContext {
    /// The sentence around the bytes `begin..end` of a text; a span that cuts a character is widened to the whole character.
    pub fn of(text: &str, begin: usize, end: usize) -> InContext {
        let begin = text.floor_char_boundary(begin.min(text.len()));
        let end = text.ceil_char_boundary(end.clamp(begin, text.len()));
        // A template token is between two whole texts; the sentence to show is the one before the line break.
        let before = if begin == end { text[..begin].trim_end() } else { &text[..begin] };
        let (before, after) = (sentence_end(before), sentence_start(&text[end..]));
        InContext { before, token: text[begin..end].to_owned(), after, part: None }
    }

    /// The same sentence with at most `reach` characters on either side.
    pub fn shortened(&self, reach: usize) -> InContext {
        let n_before = self.before.chars().count();
        let before = match n_before > reach {
            true => std::iter::once('…').chain(self.before.chars().skip(n_before + 1 - reach)).collect(),
            false => self.before.clone(),
        };
        InContext { before, token: self.token.clone(), after: cut(&self.after, reach), part: self.part }
    }
}

/// Whether a sentence ends with this character, given the one that follows.
fn ends_sentence(c: char, next: Option<char>) -> bool {
    match c {
        '\n' | '。' | '！' | '？' => true,
        '.' | '!' | '?' => next.is_none_or(char::is_whitespace),
        _ => false,
    }
}

/// The beginning of the last, unfinished sentence of a text.
fn sentence_end(text: &str) -> String {
    let mut begin = text.len();
    let mut next = None;
    for (n, (at, c)) in text.char_indices().rev().enumerate() {
        // The text continues with the token, so that at its end only a line break ends a sentence.
        if next.is_none() && c == '\n' {
            break;
        }
        if next.is_some() && ends_sentence(c, next) && !text[begin..].trim().is_empty() {
            break;
        }
        if n >= REACH {
            return format!("…{}", &text[begin..]);
        }
        (begin, next) = (at, Some(c));
    }
    text[begin..].trim_start().to_owned()
}

/// The text up to the end of its first sentence.
fn sentence_start(text: &str) -> String {
    let mut chars = text.char_indices().peekable();
    let mut n = 0;
    while let Some((at, c)) = chars.next() {
        let next = chars.peek().map(|(_, next)| *next);
        if ends_sentence(c, next) {
            return text[..at + c.len_utf8()].trim_end().to_owned();
        }
        n += 1;
        if n > REACH {
            return format!("{}…", &text[..at]);
        }
    }
    text.trim_end().to_owned()
}

fn cut(text: &str, n: usize) -> String {
    match text.chars().count() > n {
        true => text.chars().take(n.saturating_sub(1)).chain(['…']).collect(),
        false => text.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, token: &str) -> [String; 3] {
        let begin = text.find(token).unwrap();
        let InContext { before, token, after, .. } = InContext::of(text, begin, begin + token.len());
        [before, token, after]
    }

    #[test]
    fn a_sentence_by_hand() {
        let text = "It is hot. The capital of France is Lyon. It lies 3.5 km off.\nYes";
        assert_eq!(of(text, " Lyon"), ["The capital of France is", " Lyon", "."]);
        assert_eq!(of(text, ".5"), ["It lies 3", ".5", " km off."]);
        assert_eq!(of(text, "Yes"), ["", "Yes", ""]);
        assert_eq!(of(text, " The"), ["It is hot.", " The", " capital of France is Lyon."]);
        assert_eq!(of("他说。北京很大。", "京"), ["北", "京", "很大。"]);
    }

    #[test]
    fn a_token_of_the_template_stands_where_it_comes() {
        let text = "No. Paris it is.\n";
        // These are the turns 1 and 3 of row 7.
        let mut places = Places::default();
        // A header, four tokens of text of which two share a character, the end-of-turn token and a line feed; then the next turn.
        let tokens = [(1, 0..0), (1, 0..3), (1, 3..5), (1, 3..5), (1, 5..17), (1, 0..0), (1, 0..0), (3, 0..0), (3, 0..2)];
        let found = tokens.map(|(turn, bytes)| places.next(7, turn, bytes));
        assert_eq!(found, [0..0, 0..3, 3..5, 3..5, 5..17, 17..17, 17..17, 0..0, 0..2]);
        let context = |at: usize| InContext::of(text, at, at);
        let of =
            |before: &str, after: &str| InContext { before: before.to_owned(), after: after.to_owned(), ..InContext::default() };
        assert_eq!(context(17), of("Paris it is.", ""));
        assert_eq!(context(0), of("", "No."));
        assert_eq!(context(9), of("Paris", " it is."));
    }

    #[test]
    fn long_sentences_are_cut_and_characters_are_not() {
        let text = format!("{}é{}", "a ".repeat(200), " b".repeat(200));
        let at = text.find('é').unwrap();
        let context = InContext::of(&text, at + 1, at + 2);
        assert_eq!((context.token.as_str(), context.before.chars().count(), context.after.chars().count()), ("é", 161, 161));
        let short = context.shortened(10);
        assert_eq!((short.before.as_str(), short.after.as_str()), ("… a a a a ", " b b b b …"));
        assert_eq!(InContext::of("abc", 9, 99), InContext { before: "abc".to_owned(), ..InContext::default() });
    }
}
