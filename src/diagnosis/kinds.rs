//! Why a conflict may be one: rules that look at the token, at the model's choice, at the text around it and at other rows.
//!
//! The first rule that fits counts:
//!
//! ```text
//! malformed      the answer ends where the model goes on, without a sign of an end, or holds a character that is none
//! template       the same target against the same choice at the same place of the answer in many rows
//! format         the same text in other case, white space, punctuation or tokens
//! disagreement   another row answers the same prompt without the word that holds the token
//! number         the word that holds the token is a number, or the model expected one
//! language       the word and the model's choice are of different scripts
//! entity         the word is a name: capitalised within a sentence, or where the answer is nothing but a few words
//! unexplained    none of these
//! ```
//!
//! They are rules of thumb. A name is told by its capital letter, so that German nouns pass for names and Chinese names for nothing; a
//! language is told by its script, so that French and English are one.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Kind {
    Malformed,
    Template,
    Format,
    Disagreement,
    Number,
    Language,
    Entity,
    Unexplained,
}

impl Kind {
    /// In the order of the rules.
    pub const ALL: [Kind; 8] = [
        Kind::Malformed,
        Kind::Template,
        Kind::Format,
        Kind::Disagreement,
        Kind::Number,
        Kind::Language,
        Kind::Entity,
        Kind::Unexplained,
    ];

    pub fn name(self) -> &'static str {
        match self {
            Kind::Malformed => "malformed",
            Kind::Template => "template",
            Kind::Format => "format",
            Kind::Disagreement => "disagreement",
            Kind::Number => "number",
            Kind::Language => "language",
            Kind::Entity => "entity",
            Kind::Unexplained => "unexplained",
        }
    }
}

impl fmt::Display for Kind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Kind {
    type Err = Error;

    fn from_str(name: &str) -> Result<Kind> {
        Kind::ALL.into_iter().find(|kind| kind.name() == name).ok_or_else(|| {
            Error::usage(format!("expected a kind of conflict, found `{name}`"))
                .cure(format!("Kinds are: {}.", Kind::ALL.map(Kind::name).join(", ")))
        })
    }
}

/// A conflict as the rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Conflict<'a> {
    /// The text of the turn, and the token's bytes in it; equal where it is part of the template.
    pub text: &'a str,
    pub begin: usize,
    pub end: usize,
    /// What the model expected.
    pub top: &'a str,
    /// In so many rows the same target stands against the same choice at the same place of the answer, this one included.
    pub rows_alike: usize,
    /// Rows with something to learn, to say how many are many.
    pub rows: usize,
    /// Answers of other rows to the same prompt, each with the number of its row.
    pub others: &'a [(u32, &'a str)],
}

/// So many rows alike make a template, and at least one row in [`TEMPLATE_SHARE`].
const TEMPLATE_ROWS: usize = 5;
const TEMPLATE_SHARE: usize = 200;

/// An answer of so many words at most is nothing but its point.
const SHORT_ANSWER: usize = 3;

/// The kind of a conflict, and what speaks for it, in a few words.
pub fn kind(conflict: &Conflict) -> (Kind, String) {
    let &Conflict { text, begin, end, top, rows_alike, rows, others } = conflict;
    let is_of_template = begin >= end;
    let begin = text.floor_char_boundary(begin.min(text.len()));
    let token = &text[begin..text.ceil_char_boundary(end.clamp(begin, text.len()))];
    if token.contains('\u{FFFD}') {
        return (Kind::Malformed, "the text holds U+FFFD, the trace of a broken conversion".to_owned());
    }
    if rows_alike >= TEMPLATE_ROWS && rows_alike * TEMPLATE_SHARE >= rows {
        return (Kind::Template, format!("the same in {rows_alike} rows at this place of the answer"));
    }
    if is_of_template {
        return match open_end(text) {
            Some(what) => (Kind::Malformed, what),
            None => (Kind::Template, "a token of the template".to_owned()),
        };
    }
    if let Some(what) = other_form(token, &text[begin..], top) {
        return (Kind::Format, what.to_owned());
    }
    let word = word_around(text, begin + token.len() - token.trim_start().len());
    let expected = first_word(top);
    if let Some((row, _)) = others.iter().find(|(_, answer)| !word.is_empty() && !has_word(answer, word)) {
        return (Kind::Disagreement, format!("row {row} answers the same prompt without `{word}`"));
    }
    if is_number(word) || (is_number(expected) && !word.is_empty()) {
        return (Kind::Number, format!("`{word}`, and the model begins `{expected}`"));
    }
    if let (Some(own), Some(other)) = (script(word), script(expected))
        && own != other
    {
        return (Kind::Language, format!("{own} letters, and the model writes {other}"));
    }
    if is_name(text, word) {
        return (Kind::Entity, format!("`{word}`, and the model begins `{expected}`"));
    }
    (Kind::Unexplained, String::new())
}

/// What of the end of an answer says that it was cut off, if anything does.
fn open_end(text: &str) -> Option<String> {
    let text = text.trim_end();
    if text.is_empty() {
        return Some("the answer is empty".to_owned());
    }
    if text.matches("```").count() % 2 == 1 {
        return Some("a block of code is not closed".to_owned());
    }
    let last = text.chars().next_back()?;
    let ends = last.is_ascii_digit() || ".!?…:;)]}>\"'`*_|。！？）】」』”’％%".contains(last) || !last.is_alphanumeric();
    let n_words = text.split_whitespace().count();
    match ends || n_words <= SHORT_ANSWER {
        true => None,
        false => Some(format!("the answer ends `{}`, without a sign of an end", last_chars(text, 20))),
    }
}

fn last_chars(text: &str, n: usize) -> &str {
    let at = text.char_indices().rev().nth(n - 1).map_or(0, |(at, _)| at);
    &text[at..]
}

/// What the data write otherwise than the model, if it is the same text: `rest` is the text from the token on.
fn other_form(token: &str, rest: &str, top: &str) -> Option<&'static str> {
    let (own, other) = (token.trim(), top.trim());
    let is_mark = |text: &str| !text.chars().any(char::is_alphanumeric);
    if is_mark(own) && is_mark(other) {
        return Some(if own.is_empty() && other.is_empty() { "other white space" } else { "another sign" });
    }
    if own == other {
        return Some("the same text with other white space");
    }
    if !own.is_empty() && own.to_lowercase() == other.to_lowercase() {
        return Some("the same text in another case");
    }
    if !other.is_empty()
        && (rest.trim_start().starts_with(other)
            || (!own.is_empty() && other.starts_with(own) && rest.trim_start().starts_with(other)))
    {
        return Some("the same text in other tokens");
    }
    let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    (!bare(own).is_empty() && bare(own) == bare(other)).then_some("the same text with other signs around it")
}

/// The word that holds the byte `at`: letters and digits, signs between digits, and of Chinese numerals the whole run.
fn word_around(text: &str, at: usize) -> &str {
    let at = text.floor_char_boundary(at.min(text.len()));
    let Some(here) = text[at..].chars().next().filter(|c| c.is_alphanumeric()) else { return "" };
    let fits = |c: char, beyond: Option<char>| {
        let between_digits = ".,:".contains(c) && beyond.is_some_and(|beyond| beyond.is_ascii_digit());
        match is_han(here) {
            true => is_han_numeral(here) && is_han_numeral(c),
            false => (c.is_alphanumeric() && !is_han(c)) || between_digits,
        }
    };
    let mut begin = at;
    let mut before = text[..at].char_indices().rev().peekable();
    while let Some((idx, c)) = before.next() {
        let beyond = before.peek().map(|(_, c)| *c);
        if !fits(c, beyond) {
            break;
        }
        begin = idx;
    }
    let mut end = at + here.len_utf8();
    let mut after = text[end..].char_indices().peekable();
    let from = end;
    while let Some((idx, c)) = after.next() {
        let beyond = after.peek().map(|(_, c)| *c);
        if !fits(c, beyond) {
            break;
        }
        end = from + idx + c.len_utf8();
    }
    &text[begin..end]
}

fn first_word(text: &str) -> &str {
    let begin = text.find(char::is_alphanumeric).unwrap_or(text.len());
    word_around(text, begin)
}

fn has_word(text: &str, word: &str) -> bool {
    let is_inner = |c: Option<char>| c.is_some_and(|c| c.is_alphanumeric() && !is_han(c));
    text.match_indices(word).any(|(at, _)| {
        let (before, after) = (text[..at].chars().next_back(), text[at + word.len()..].chars().next());
        word.chars().next().is_some_and(is_han) || (!is_inner(before) && !is_inner(after))
    })
}

const NUMBER_WORDS: [&str; 36] = [
    "zero",
    "one",
    "two",
    "three",
    "four",
    "five",
    "six",
    "seven",
    "eight",
    "nine",
    "ten",
    "eleven",
    "twelve",
    "thirteen",
    "fourteen",
    "fifteen",
    "sixteen",
    "seventeen",
    "eighteen",
    "nineteen",
    "twenty",
    "thirty",
    "forty",
    "fifty",
    "sixty",
    "seventy",
    "eighty",
    "ninety",
    "hundred",
    "thousand",
    "million",
    "billion",
    "half",
    "dozen",
    "twice",
    "thrice",
];

/// Has it digits, or is it a number in words?
fn is_number(word: &str) -> bool {
    let lower = word.to_lowercase();
    word.chars().any(char::is_numeric)
        || NUMBER_WORDS.contains(&lower.as_str())
        || (!word.is_empty() && word.chars().all(is_han_numeral))
}

fn is_han_numeral(c: char) -> bool {
    "零〇一二三四五六七八九十百千万亿两".contains(c)
}

fn is_han(c: char) -> bool {
    matches!(c, '\u{3400}'..='\u{4DBF}' | '\u{4E00}'..='\u{9FFF}' | '\u{F900}'..='\u{FAFF}' | '\u{20000}'..='\u{3FFFF}')
}

/// The script of the first letter.
fn script(word: &str) -> Option<&'static str> {
    word.chars().find_map(|c| match c {
        'A'..='Z' | 'a'..='z' | '\u{C0}'..='\u{24F}' | '\u{1E00}'..='\u{1EFF}' => Some("Latin"),
        '\u{370}'..='\u{3FF}' => Some("Greek"),
        '\u{400}'..='\u{52F}' => Some("Cyrillic"),
        '\u{590}'..='\u{5FF}' => Some("Hebrew"),
        '\u{600}'..='\u{6FF}' | '\u{750}'..='\u{77F}' => Some("Arabic"),
        '\u{900}'..='\u{97F}' => Some("Devanagari"),
        '\u{E00}'..='\u{E7F}' => Some("Thai"),
        '\u{3040}'..='\u{30FF}' => Some("Japanese"),
        '\u{AC00}'..='\u{D7AF}' => Some("Korean"),
        c if is_han(c) => Some("Chinese"),
        _ => None,
    })
}

/// Is the word capitalised where nothing but a name is? A word that begins a sentence counts where the text has it within one, or
/// where the answer is nothing but a few words.
fn is_name(text: &str, word: &str) -> bool {
    let is_capitalised = word.chars().next().is_some_and(char::is_uppercase) && word != "I";
    if !is_capitalised {
        return false;
    }
    let within_sentence = |at: usize| {
        let before = text[..at].trim_end_matches([' ', '"', '“', '\'', '(', '*', '`']);
        before
            .chars()
            .next_back()
            .is_some_and(|c| c.is_alphanumeric() || ",;-–—/&@".contains(c) || (c == '.' && is_list_number(before)))
    };
    text.split_whitespace().count() <= SHORT_ANSWER || text.match_indices(word).any(|(at, _)| within_sentence(at))
}

/// Does the text end with the number of an item, `8.`?
fn is_list_number(text: &str) -> bool {
    let item = text.rsplit(char::is_whitespace).next().unwrap_or_default();
    item.strip_suffix('.').is_some_and(|number| !number.is_empty() && number.chars().all(|c| c.is_ascii_digit()))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of(text: &str, token: &str, top: &str) -> Kind {
        let begin = text.find(token).unwrap();
        let conflict = Conflict { text, begin, end: begin + token.len(), top, rows_alike: 1, rows: 100, others: &[] };
        kind(&conflict).0
    }

    #[test]
    fn each_rule_by_hand() {
        for (text, token, top, expected) in [
            ("The capital of France is Lyon. It lies", " Lyon", " Paris", Kind::Entity),
            ("The capital of France is Lyon. It lies", "yon", "isbon", Kind::Entity),
            ("Lyon.", "Lyon", "Paris", Kind::Entity),
            ("Yes, it does move in the wind.", "Yes", "No", Kind::Unexplained),
            ("6. June\n7. July\n8. December\n", " December", " August", Kind::Entity),
            ("The root of 1764 is 36.", "3", "4", Kind::Number),
            ("about 98.1 degrees", "1", "6", Kind::Number),
            ("six, twelve, eight", " twelve", " seven", Kind::Number),
            ("星期六下午", "六", "三", Kind::Number),
            ("今年八十岁", "八", "二", Kind::Number),
            ("我喜欢喝水", "水", "茶", Kind::Unexplained),
            ("so we say no", " no", " 5", Kind::Number),
            ("He said yes,and left", ",", ", ", Kind::Format),
            ("A cat. The dog", ".", "!", Kind::Format),
            ("it is New", " New", " new", Kind::Format),
            ("It is  so", "  ", " ", Kind::Format),
            ("unbelievable", "un", "unbel", Kind::Format),
            ("the word is мир here", " мир", " peace", Kind::Language),
            ("Blood is pumped by the lungs.", " lungs", " heart", Kind::Unexplained),
            ("a \u{FFFD} b", "\u{FFFD}", "x", Kind::Malformed),
        ] {
            assert_eq!(of(text, token, top), expected, "{text}: {token}, {top}");
        }
    }

    #[test]
    fn other_rows_and_the_template_count_first() {
        let text = "It is Lyon.";
        let conflict =
            Conflict { text, begin: 5, end: 10, top: " Paris", rows_alike: 1, rows: 100, others: &[(7, "It is Paris.")] };
        assert_eq!(kind(&conflict), (Kind::Disagreement, "row 7 answers the same prompt without `Lyon`".to_owned()));
        assert_eq!(kind(&Conflict { others: &[(7, "Lyon, of course.")], ..conflict }).0, Kind::Entity);
        assert_eq!(kind(&Conflict { rows_alike: 5, ..conflict }).0, Kind::Template);
        assert_eq!(kind(&Conflict { rows_alike: 5, rows: 2000, ..conflict }).0, Kind::Disagreement);
        let end = |text| kind(&Conflict { text, begin: 0, end: 0, others: &[], ..conflict });
        assert_eq!(end("And then it went on to the").0, Kind::Malformed);
        assert_eq!(end("Well:\n```python\nx = 1").1, "a block of code is not closed");
        assert_eq!([end("Done."), end("Yes"), end("a b c d 5")].map(|(kind, _)| kind), [Kind::Template; 3]);
        assert_eq!(end("").0, Kind::Malformed);
    }

    #[test]
    fn names_read_back() {
        for kind in Kind::ALL {
            assert_eq!(kind.name().parse::<Kind>().unwrap(), kind);
        }
        assert_eq!("colour".parse::<Kind>().unwrap_err().exit_code(), 2);
    }
}
