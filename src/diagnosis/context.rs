//! A token in the sentence that it stands in: what a person has to read to judge it.
//!
//! The table knows a token by its span; the sentence comes from the data, once they are at hand. Left out here: how it is shown.

use serde::{Deserialize, Serialize};

/// The place of a token, and its sentence where the data were at hand.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Spot {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The index of the turn in the example.
    pub turn: u16,
    /// Bytes of the turn's text; both 0 where the token is part of the template.
    pub begin: u32,
    /// The byte behind the last.
    pub end: u32,
    /// The sentence around the token, where the data were at hand.
    #[serde(default)]
    pub context: Option<InContext>,
}

/// The sentence around a token, cut at about `REACH` characters on either side, where it then begins or ends with `…`.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct InContext {
    /// What stands before the token.
    pub before: String,
    /// Empty where the token is part of the template; the turn's first sentence then stands in `after`.
    pub token: String,
    /// What stands behind it.
    pub after: String,
}

/// Characters that are shown before a token, and behind it.
const REACH: usize = 160;

impl Spot {
    /// Reads the sentence out of the text of the turn.
    pub fn read(&mut self, text: &str) {
        self.context = Some(InContext::of(text, self.begin as usize, self.end as usize));
    }
}

impl InContext {
    /// The sentence around the bytes `begin..end` of a text; a span inside a character is widened to the whole of it.
    pub fn of(text: &str, begin: usize, end: usize) -> InContext {
        let begin = text.floor_char_boundary(begin.min(text.len()));
        let end = text.ceil_char_boundary(end.clamp(begin, text.len()));
        InContext {
            before: sentence_end(&text[..begin]),
            token: text[begin..end].to_owned(),
            after: sentence_start(&text[end..]),
        }
    }

    /// The same sentence with at most `reach` characters on either side.
    pub fn shortened(&self, reach: usize) -> InContext {
        let n_before = self.before.chars().count();
        let before = match n_before > reach {
            true => std::iter::once('…').chain(self.before.chars().skip(n_before + 1 - reach)).collect(),
            false => self.before.clone(),
        };
        InContext { before, token: self.token.clone(), after: cut(&self.after, reach) }
    }
}

/// Does a sentence end with this character, if `next` follows?
fn ends_sentence(c: char, next: Option<char>) -> bool {
    match c {
        '\n' | '。' | '！' | '？' => true,
        '.' | '!' | '?' => next.is_none_or(char::is_whitespace),
        _ => false,
    }
}

/// What of the last sentence of a text that goes on stands in it.
fn sentence_end(text: &str) -> String {
    let mut begin = text.len();
    let mut next = None;
    for (n, (at, c)) in text.char_indices().rev().enumerate() {
        // The token goes on where the text ends: nothing but a line's end ends a sentence there.
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
        let InContext { before, token, after } = InContext::of(text, begin, begin + token.len());
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
