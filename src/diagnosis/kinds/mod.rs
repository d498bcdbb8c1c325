//! Explains a conflict by rules about its token, the model's choice, the text around it, and other rows.
//!
//! The first rule that applies decides:
//!
//! ```text
//! malformed      the answer ends where the model would continue, without a sign of an end, or it contains U+FFFD; an answer that ends with a
//!                tool call, or consists of reasoning alone, may end in any way
//! template       the same target against the same choice at the same place of the answer in many rows
//! format         the same text in other case, white space, spelling or tokens, or a mark of punctuation or notation (`<<`), whatever the
//!                model expected
//! wording        the word that contains the token is an article, a pronoun, a preposition, a conjunction or an auxiliary, or another form
//!                of the word that the model expected: by itself it states nothing
//! disagreement   another row answers the same prompt without the word
//! number         the word is a number or a sign beside one, or the model expected a number
//! language       the word and the model's choice are in different scripts
//! entity         the word is a name: capitalised within a sentence, or in an answer of only a few words
//! disagreement   an earlier turn contains what the model expected after the same word, and not the data's word
//! unexplained    none of these
//! ```
//!
//! The same rules apply to reasoning, as one text, and to each name, key and value of a tool call. What a template writes around these is of the
//! kind template.
//!
//! These are heuristics, and they rather leave a conflict unexplained than explain it wrongly. Names are recognised by capital letters, so
//! that German nouns count as names and Chinese names do not; languages by their script, so that French and English are the same; and the
//! small words are English.
//!
//! form.rs has the rules about signs, white space and the ends of answers, spelling.rs those about spellings and endings, and words.rs finds
//! words and says what they are.

mod form;
mod spelling;
mod words;

use std::collections::HashMap;
use std::path::Path;

use crate::error::Result;
use crate::spelling::named;
use crate::table::{KnownConflict, read_conflicts};
use form::{is_of_sum, open_end, other_form};
use spelling::{is_other_ending, is_other_spelling};
use words::{SMALL_WORDS, has_word, is_counted, is_han, is_listed, is_name, is_number, is_small_word, script, word_around};

/// A likely cause of a conflict, in the order of the rules at the head of this file.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ConflictKind {
    Malformed,
    Template,
    Format,
    Wording,
    Disagreement,
    Number,
    Language,
    Entity,
    Unexplained,
}

named! {
    pub ConflictKind, "a kind of conflict":
    Malformed = "malformed",
    Template = "template",
    Format = "format",
    Wording = "wording",
    Disagreement = "disagreement",
    Number = "number",
    Language = "language",
    Entity = "entity",
    Unexplained = "unexplained",
}

impl ConflictKind {
    /// Is a conflict of this kind about how a text is written, and not about what it says? A data set in another style than the model's has
    /// hundreds of these, so that a list of rows to read puts them last.
    pub fn is_of_form(self) -> bool {
        matches!(self, ConflictKind::Template | ConflictKind::Format | ConflictKind::Wording)
    }
}

/// The kinds of a run's conflicts by row and position, read from its table of conflicts.
pub(crate) fn kinds_by_place(path: &Path) -> Result<HashMap<(u32, u32), ConflictKind>> {
    let kind = |conflict: KnownConflict| Ok(((conflict.row, conflict.pos), conflict.kind.parse()?));
    read_conflicts(path).map(|conflict| conflict.and_then(kind)).collect()
}

/// A conflict as the rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Conflict<'a> {
    /// The text that contains the token: the content of the turn, its reasoning, or a name, key or value of a tool call. For a token of the
    /// template, the content.
    pub text: &'a str,
    /// The token's first byte in the text. For a token of the template `begin` and `end` are equal and give its place.
    pub begin: usize,
    /// The end of the token's bytes.
    pub end: usize,
    /// What the model expected. Bytes of a token that are no text by themselves are written as `<0xE4><0xB9>`.
    pub top: &'a str,
    /// The texts of the turns before.
    pub earlier: &'a [&'a str],
    /// The number of rows with the same target against the same choice at the same place of the answer, including this one.
    pub rows_alike: usize,
    /// The number of rows with supervised tokens, to judge whether `rows_alike` is many.
    pub rows: usize,
    /// Answers of other rows to the same prompt, each with the number of its row.
    pub others: &'a [(u32, &'a str)],
    /// Is the end of the text the end of the turn? No if a tool call follows, or if the turn consists of reasoning alone.
    pub is_last: bool,
}

/// Equal conflicts in at least this many rows, and in at least one row in [`TEMPLATE_SHARE`], make a template.
const TEMPLATE_ROWS: usize = 5;
const TEMPLATE_SHARE: usize = 200;

/// The kind of a conflict, and the evidence for it in a few words.
pub fn kind(conflict: &Conflict) -> (ConflictKind, String) {
    let &Conflict { text, begin, end, top, earlier, rows_alike, rows, others, is_last } = conflict;
    let is_of_template = begin >= end;
    let first_byte = begin;
    let begin = text.floor_char_boundary(begin.min(text.len()));
    let token = &text[begin..text.ceil_char_boundary(end.clamp(begin, text.len()))];
    if token.contains('\u{FFFD}') {
        return (ConflictKind::Malformed, "the text holds U+FFFD, the trace of a broken conversion".to_owned());
    }
    if rows_alike >= TEMPLATE_ROWS && rows_alike * TEMPLATE_SHARE >= rows {
        return (ConflictKind::Template, format!("the same in {rows_alike} rows at this place of the answer"));
    }
    if is_of_template {
        let ends_text = is_last && text[begin..].trim().is_empty();
        return match open_end(text).filter(|_| ends_text) {
            Some(what) => (ConflictKind::Malformed, what),
            None => (ConflictKind::Template, "a token of the template".to_owned()),
        };
    }
    let top = &as_text(top, &text.as_bytes()[begin..first_byte.clamp(begin, text.len())]);
    if let Some(what) = other_form(text, begin, token, top) {
        return (ConflictKind::Format, what.to_owned());
    }
    let at = begin + token.len() - token.trim_start().len();
    let word = word_around(text, at);
    let expected = &expected_word(text, at, top);
    if is_other_spelling(word, expected) {
        return (ConflictKind::Format, format!("`{word}` is another spelling of `{expected}`"));
    }
    let against = || match expected.is_empty() {
        true => format!("the data say `{word}`, and the model something else"),
        false => format!("the data say `{word}`, and the model begins `{expected}`"),
    };
    if is_small_word(text, word, token) {
        let own = if word.is_empty() { token.trim() } else { word };
        return (ConflictKind::Wording, format!("`{own}` claims nothing by itself; the model begins `{}`", top.trim()));
    }
    if is_other_ending(word, expected) {
        return (ConflictKind::Wording, format!("`{word}` is another form of `{expected}`"));
    }
    if let Some((row, _)) = others.iter().find(|(_, answer)| !word.is_empty() && !has_word(answer, word)) {
        return (ConflictKind::Disagreement, format!("row {row} answers the same prompt without `{word}`"));
    }
    if is_counted(word, expected) || (is_number(expected) && !word.is_empty()) {
        return (ConflictKind::Number, against());
    }
    if is_of_sum(text, begin, token) {
        return (ConflictKind::Number, format!("`{}` beside a number, and the model begins `{}`", token.trim(), top.trim()));
    }
    if let (Some(own), Some(other)) = (script(word), script(expected))
        && own != other
    {
        return (ConflictKind::Language, format!("{own} letters, and the model writes {other}"));
    }
    if is_name(text, word) {
        return (ConflictKind::Entity, against());
    }
    if let Some(said) = said_before(text, at, word, expected, earlier) {
        return (ConflictKind::Disagreement, format!("earlier in the row stands `{said}`"));
    }
    (ConflictKind::Unexplained, String::new())
}

/// The text of a token, whose bytes may be written as `<0xE4>` and continue the character begun by `head`, without an incomplete character at
/// its end.
fn as_text(token: &str, head: &[u8]) -> String {
    if !token.contains("<0x") {
        return token.to_owned();
    }
    let bytes = [head, &bytes_of(token)].concat();
    match String::from_utf8(bytes) {
        Ok(text) => text,
        Err(error) => String::from_utf8_lossy(&error.as_bytes()[..error.utf8_error().valid_up_to()]).into_owned(),
    }
}

/// The bytes of a token; those that are no text by themselves are written as `<0xE4>`.
pub(super) fn bytes_of(token: &str) -> Vec<u8> {
    let byte = |text: &str| {
        let hex = text.get(..6)?.strip_prefix("<0x")?.strip_suffix('>')?;
        hex.chars().all(|c| c.is_ascii_hexdigit()).then(|| u8::from_str_radix(hex, 16).ok())?
    };
    let (mut bytes, mut rest) = (Vec::with_capacity(token.len()), token);
    while let Some(c) = rest.chars().next() {
        let length = match byte(rest) {
            Some(byte) => {
                bytes.push(byte);
                6
            }
            None => {
                bytes.extend(rest.bytes().take(c.len_utf8()));
                c.len_utf8()
            }
        };
        rest = &rest[length..];
    }
    bytes
}

/// The word that the model expected: the part of the word before the token, and the beginning of the model's choice.
fn expected_word(text: &str, at: usize, top: &str) -> String {
    let first = words::first_word(top);
    let continues = top.starts_with(first) && !first.is_empty();
    let before: String = text[..at].chars().rev().take_while(|c| c.is_alphanumeric() && !is_han(*c)).collect();
    match continues && !before.is_empty() {
        true => before.chars().rev().collect::<String>() + first,
        false => first.to_owned(),
    }
}

/// What an earlier turn says at the same place: the previous word followed by the model's choice. `None` if an earlier turn contains the data's
/// word.
fn said_before(text: &str, at: usize, word: &str, expected: &str, earlier: &[&str]) -> Option<String> {
    let before = text[..at].trim_end_matches(|c: char| !c.is_alphanumeric());
    let begin = before.char_indices().rev().take_while(|(_, c)| c.is_alphanumeric() && !is_han(*c)).last()?.0;
    // Anything can follow an article or the end of a sentence, and three letters can begin any word.
    let (gap, neighbour) = (&text[before.len()..at], text[begin..before.len()].to_lowercase());
    let is_no_place = gap.chars().count() > 2 || is_listed(&neighbour, SMALL_WORDS);
    if is_no_place || expected.chars().count() < 4 || word.is_empty() || !text[at..].starts_with(word) {
        return None;
    }
    let wanted = format!("{}{expected}", &text[begin..at]);
    let is_said = earlier.iter().any(|turn| {
        turn.match_indices(&wanted).any(|(at, _)| !turn[..at].chars().next_back().is_some_and(char::is_alphanumeric))
    });
    (is_said && !earlier.iter().any(|turn| has_word(turn, word))).then_some(wanted)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn conflict<'a>(text: &'a str, token: &str, top: &'a str) -> Conflict<'a> {
        let begin = text.find(token).unwrap();
        let end = begin + token.len();
        Conflict { text, begin, end, top, earlier: &[], rows_alike: 1, rows: 100, others: &[], is_last: true }
    }

    fn of(text: &str, token: &str, top: &str) -> ConflictKind {
        kind(&conflict(text, token, top)).0
    }

    #[test]
    fn each_rule_by_hand() {
        for (text, token, top, expected) in [
            ("The capital of France is Lyon. It lies", " Lyon", " Paris", ConflictKind::Entity),
            ("The capital of France is Lyon. It lies", "yon", "isbon", ConflictKind::Entity),
            ("Lyon.", "Lyon", "Paris", ConflictKind::Entity),
            ("Yes, it does move in the wind.", "Yes", "No", ConflictKind::Unexplained),
            ("6. June\n7. July\n8. December\n", " December", " August", ConflictKind::Entity),
            ("The root of 1764 is 36.", "3", "4", ConflictKind::Number),
            ("about 98.1 degrees", "1", "6", ConflictKind::Number),
            ("six, twelve, eight", " twelve", " seven", ConflictKind::Number),
            ("星期六下午", "六", "三", ConflictKind::Number),
            ("今年八十岁", "八", "二", ConflictKind::Number),
            ("我喜欢喝水", "水", "茶", ConflictKind::Unexplained),
            ("so we say no", " no", " 5", ConflictKind::Number),
            ("He said yes,and left", ",", ", ", ConflictKind::Format),
            ("A cat. The dog", ".", "!", ConflictKind::Format),
            ("it is New", " New", " new", ConflictKind::Format),
            ("It is  so", "  ", " ", ConflictKind::Format),
            ("unbelievable", "un", "unbel", ConflictKind::Format),
            ("the word is мир here", " мир", " peace", ConflictKind::Language),
            ("Blood is pumped by the lungs.", " lungs", " heart", ConflictKind::Unexplained),
            ("a \u{FFFD} b", "\u{FFFD}", "x", ConflictKind::Malformed),
            // A shorter token of the model may begin another word.
            ("more than an ordinary year", " an", " a", ConflictKind::Wording),
            ("within about a week", " about", " a", ConflictKind::Wording),
            ("The bottom is flat.", " flat", " fl", ConflictKind::Unexplained),
            ("it covers a million. Many", ".", " square", ConflictKind::Format),
            ("a lake. It", ".", "\n", ConflictKind::Format),
            ("as he said \"no\".", " \"", " with", ConflictKind::Format),
            ("milk\n- bread", "\n", " and", ConflictKind::Format),
            ("it lies 3.5 km off", ".", " km", ConflictKind::Number),
            ("24 - 10 = 14", " -", " +", ConflictKind::Number),
            ("24 - 10 = 14", " =", ".", ConflictKind::Number),
            ("so that x = y", " =", " +", ConflictKind::Unexplained),
            // Signs that enclose a step of a calculation, split into tokens in any way; but a comparison is a number's.
            ("so 3+4 = <<3+4=7>>7 eggs", " <<", " 7", ConflictKind::Format),
            ("so 3+4 = <<3+4=7>>7 eggs", "<", "7", ConflictKind::Format),
            ("so 3+4 = <<3+4=7>>7 eggs", ">>", " eggs", ConflictKind::Format),
            ("so 3+4 = <<3+4=7>>7 eggs", ">", " eggs", ConflictKind::Format),
            ("so 3+4 = <<3+4=7>>7 eggs", "+", "-", ConflictKind::Number),
            ("since 3 < 4 and", " <", " >", ConflictKind::Number),
            ("print(x)", "(", " x", ConflictKind::Unexplained),
            ("40 square centimetres.", " centimetres", " centimeters", ConflictKind::Format),
            ("to organise it", " organise", " organize", ConflictKind::Format),
            ("a colourful bird", " colourful", " colorful", ConflictKind::Format),
            ("to digest fat; it", " fat", " fats", ConflictKind::Wording),
            ("Inhaled medicines", "aled", "aling", ConflictKind::Wording),
            ("It tells of two", " of", " the", ConflictKind::Wording),
            ("I'll look up", "'ll", "'m", ConflictKind::Wording),
            ("It is not so", " not", " so", ConflictKind::Unexplained),
            ("they never do", " never", " always", ConflictKind::Unexplained),
            ("made in the US by them", " US", " UK", ConflictKind::Entity),
            ("think of It as", " It", " the", ConflictKind::Entity),
            ("Here is one, too", " one", " a", ConflictKind::Unexplained),
            ("one, two, one", " two", " three", ConflictKind::Number),
            ("zero, one, two", " one", " two", ConflictKind::Number),
            // Bytes of a character that is another one, or incomplete.
            ("全长很长", "长", "<0xE9><0x83>", ConflictKind::Unexplained),
            ("今年九十", "九", "<0xE4><0xBA>", ConflictKind::Number),
        ] {
            assert_eq!(of(text, token, top), expected, "{text}: {token}, {top}");
        }
    }

    #[test]
    fn other_rows_and_the_template_count_first() {
        let conflict = Conflict { others: &[(7, "It is Paris.")], ..conflict("It is Lyon.", " Lyon", " Paris") };
        assert_eq!(kind(&conflict), (ConflictKind::Disagreement, "row 7 answers the same prompt without `Lyon`".to_owned()));
        assert_eq!(kind(&Conflict { others: &[(7, "Lyon, of course.")], ..conflict }).0, ConflictKind::Entity);
        assert_eq!(kind(&Conflict { rows_alike: 5, ..conflict }).0, ConflictKind::Template);
        assert_eq!(kind(&Conflict { rows_alike: 5, rows: 2000, ..conflict }).0, ConflictKind::Disagreement);
        let end_of = |text: &'static str| Conflict { text, begin: text.len(), end: text.len(), others: &[], ..conflict };
        let end = |text| kind(&end_of(text));
        assert_eq!(end("And then it went on to the").0, ConflictKind::Malformed);
        assert_eq!(end("Well:\n```python\nx = 1").1, "a block of code is not closed");
        assert_eq!([end("Done."), end("Yes"), end("a b c d 5")].map(|(kind, _)| kind), [ConflictKind::Template; 3]);
        assert_eq!(end("").0, ConflictKind::Malformed);
        assert_eq!(end("And then it went on to the \n").0, ConflictKind::Malformed);
        // Before a tool call, and for reasoning alone, the end of the text is not the end of the turn; nor is its beginning.
        assert_eq!(kind(&Conflict { is_last: false, ..end_of("") }).0, ConflictKind::Template);
        assert_eq!(kind(&Conflict { begin: 0, end: 0, ..end_of("And then it went on to the") }).0, ConflictKind::Template);
    }

    #[test]
    fn a_token_of_bytes_is_read_with_what_stands_before_it() {
        assert_eq!(as_text("<0x95>", &[0xE9, 0x95]), "\u{9555}");
        assert_eq!(as_text(" <0xE4>", &[]), " ");
        assert_eq!(as_text("<0xE4><0xB8>", &[]), "");
        assert_eq!(as_text("<0xE4><0xB8><0x89>", &[]), "三");
        let no_bytes = ["<0x>", "a>", " <0x41", "<0x+1>"];
        assert_eq!(no_bytes.map(|text| as_text(text, &[])), no_bytes);
        // The model writes another last byte of 三 (E4 B8 89), which makes 专: that is not a number, but 三 is.
        let text = "有三个";
        let of = |text, begin, end, top| kind(&Conflict { begin, end, ..conflict(text, "", top) }).0;
        assert_eq!(of(text, 5, 6, "<0x93>"), ConflictKind::Number);
        assert_eq!(of("有人在", 5, 6, "<0x93>"), ConflictKind::Unexplained);
    }

    #[test]
    fn what_the_row_says_earlier_is_a_disagreement() {
        let earlier = ["Mail tom@example.com, please.", "{\"12 May\": \"Budget review\"}"];
        let of = |text: &str, token: &str, top: &str, earlier: &[&str]| kind(&Conflict { earlier, ..conflict(text, token, top) });
        let said = |what: &str| (ConflictKind::Disagreement, format!("earlier in the row stands `{what}`"));
        assert_eq!(of("sent to tom@company.com", "company", "example", &earlier), said("tom@example"));
        assert_eq!(of("Budget report", " report", " review", &earlier), said("Budget review"));
        // An article does not identify a place; another word before, another word after, or the data's word was also said.
        assert_eq!(of("so the hiker", " hiker", " compass", &["What is the compass for?"]).0, ConflictKind::Unexplained);
        assert_eq!(of("a report", " report", " review", &earlier).0, ConflictKind::Unexplained);
        assert_eq!(of("Budget report", " report", " revision", &earlier).0, ConflictKind::Unexplained);
        assert_eq!(of("Budget report", " report", " review", &[earlier[1], "the report"]).0, ConflictKind::Unexplained);
    }

    #[test]
    fn names_read_back() {
        for kind in ConflictKind::ALL {
            assert_eq!(kind.name().parse::<ConflictKind>().unwrap(), kind);
        }
        assert_eq!("colour".parse::<ConflictKind>().unwrap_err().exit_code(), 2);
    }
}
