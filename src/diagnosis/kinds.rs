//! Why a conflict may be one: rules that look at the token, at the model's choice, at the text around it and at other rows.
//!
//! The first rule that fits counts:
//!
//! ```text
//! malformed      the answer ends where the model goes on, without a sign of an end, or holds a character that is none; an answer that calls a tool,
//!                or is reasoning alone, ends as it likes
//! template       the same target against the same choice at the same place of the answer in many rows
//! format         the same text in other case, white space, spelling or tokens, or a mark of punctuation or notation (`<<`), whatever the
//!                model expected
//! wording        the word that holds the token is an article, a pronoun, a preposition, a conjunction or an auxiliary, or another form of
//!                the word that the model expected: by itself it claims nothing
//! disagreement   another row answers the same prompt without the word
//! number         the word is a number or a sign beside one, or the model expected a number
//! language       the word and the model's choice are of different scripts
//! entity         the word is a name: capitalised within a sentence, or where the answer is nothing but a few words
//! disagreement   earlier in the row stands what the model expected, behind the same word, and the data's word does not
//! unexplained    none of these
//! ```
//!
//! Reasoning and tool calls go by the same rules as the content of a turn: the reasoning as a text, and of a call each name, key and value. What a template
//! puts around them is of the kind template.
//!
//! They are rules of thumb, and rather leave a conflict unexplained than explain it wrongly. A name is told by its capital letter, so that
//! German nouns pass for names and Chinese names for nothing; a language is told by its script, so that French and English are one; the small
//! words are English ones.

use crate::spelling::named;

/// Why a conflict may be one, as the rule that fits says; the rules stand at the head of this file, in this order.
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
    /// Does a conflict of this kind concern how a text is written, and not what it says? Such conflicts come by the hundred wherever a data set
    /// has another style than the model; a list of rows to read puts them behind the others.
    pub fn is_of_form(self) -> bool {
        matches!(self, ConflictKind::Template | ConflictKind::Format | ConflictKind::Wording)
    }
}

/// A conflict as the rules see it.
#[derive(Debug, Clone, Copy)]
pub struct Conflict<'a> {
    /// The text that the token is part of: the content of the turn, its reasoning, or a name, key or value of a tool call; for a token of the template
    /// the content.
    pub text: &'a str,
    /// The token's first byte in the text; `begin` and `end` are equal where it is part of the template, and say where it stands.
    pub begin: usize,
    /// The byte behind its last.
    pub end: usize,
    /// What the model expected; a token of bytes that are no text as `<0xE4><0xB9>`.
    pub top: &'a str,
    /// The texts of the turns before.
    pub earlier: &'a [&'a str],
    /// The number of rows in which the same target stands against the same choice at the same place of the answer, this one included.
    pub rows_alike: usize,
    /// Rows with something to learn, to say how many are many.
    pub rows: usize,
    /// Answers of other rows to the same prompt, each with the number of its row.
    pub others: &'a [(u32, &'a str)],
    /// Is the text the end of what the turn writes? Not where a tool call stands behind it, or where reasoning is all there is.
    pub is_last: bool,
}

/// This many rows alike make a template, if they are at least one row in [`TEMPLATE_SHARE`].
const TEMPLATE_ROWS: usize = 5;
const TEMPLATE_SHARE: usize = 200;

/// An answer of so many words at most is nothing but its point.
const SHORT_ANSWER: usize = 3;

/// The kind of a conflict, and what speaks for it, in a few words.
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

/// The text of a token whose bytes, where they are shown as `<0xE4>`, go on behind `head`; without a last character that is not whole.
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

/// The bytes that a token stands for; those that are no text by themselves are shown as `<0xE4>`.
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
    // The items of a list, and verses, end as they like.
    let mut lines = text.lines().rev().filter(|line| !line.trim().is_empty());
    let is_line_of_many = lines.nth(1).and_then(|line| line.trim_end().chars().next_back()).is_some_and(char::is_alphanumeric);
    match ends || is_line_of_many || n_words <= SHORT_ANSWER {
        true => None,
        false => Some(format!("the answer ends `{}`, without a sign of an end", last_chars(text, 20))),
    }
}

fn last_chars(text: &str, n: usize) -> &str {
    let at = text.char_indices().rev().nth(n - 1).map_or(0, |(at, _)| at);
    &text[at..]
}

/// What the data write otherwise than the model, if it is the same text or a mark: the token begins at `begin`.
fn other_form(text: &str, begin: usize, token: &str, top: &str) -> Option<&'static str> {
    let (own, other) = (token.trim(), top.trim());
    let (is_mark, is_other_mark) = (is_punctuation(text, begin, token), is_punctuation("", 0, top));
    if own.is_empty() && other.is_empty() && !top.is_empty() {
        return Some("other white space");
    }
    if own.is_empty() && token.contains('\n') {
        return Some("a line ends where the model writes on");
    }
    if own == other {
        return Some("the same text with other white space");
    }
    if is_mark {
        return Some(if is_other_mark { "another sign" } else { "a sign where the model writes something else" });
    }
    if !own.is_empty() && own.to_lowercase() == other.to_lowercase() {
        return Some("the same text in another case");
    }
    // A longer token of the model is the text itself. A shorter one could be another word.
    if other.len() > own.len() && text[begin..].trim_start().starts_with(other) {
        return Some("the same text in other tokens");
    }
    let bare = |text: &str| text.chars().filter(|c| c.is_alphanumeric()).flat_map(char::to_lowercase).collect::<String>();
    (!bare(own).is_empty() && bare(own) == bare(other)).then_some("the same text with other signs around it")
}

const PUNCTUATION: &str = ".,:;!?…\"'“”‘’«»`*_#-–—|。，、：；！？「」『』《》";

/// Does the token consist of marks that say how a text is divided, quoted or laid out? Those of a number do not; brackets and operators mean
/// something in code and in sums.
fn is_punctuation(text: &str, begin: usize, token: &str) -> bool {
    let own = token.trim();
    let is_mark = !own.is_empty() && own.chars().all(|c| PUNCTUATION.contains(c)) && !is_of_sum(text, begin, token);
    is_mark || is_double_bracket(text, begin, token)
}

/// Is the token of `<<` or `>>`, or half of it? These enclose something, as a step of a calculation in `so 3 + 4 = <<3+4=7>>7 eggs`, and compare
/// nothing.
fn is_double_bracket(text: &str, begin: usize, token: &str) -> bool {
    let own = token.trim();
    let (before, after) = (text.get(..begin).unwrap_or_default(), text.get(begin + token.len()..).unwrap_or_default());
    let is_half = |bracket: &str| {
        own == bracket && (token.starts_with(own) && before.ends_with(own) || token.ends_with(own) && after.starts_with(own))
    };
    own.contains("<<") || own.contains(">>") || is_half("<") || is_half(">")
}

/// Is the token an operator or a currency beside a number, a minus behind one, or the point within one?
fn is_of_sum(text: &str, begin: usize, token: &str) -> bool {
    let own = token.trim();
    let (before, after) = (text.get(..begin).unwrap_or_default(), text.get(begin + token.len()..).unwrap_or_default());
    let is_digit = |c: Option<char>| c.is_some_and(|c| c.is_ascii_digit());
    // At the beginning of a line `- 2` is an item of a list.
    let follows = is_digit(before.trim_end_matches(' ').chars().next_back());
    let precedes = is_digit(after.trim_start_matches(' ').chars().next());
    let is_within = token == own && is_digit(before.chars().next_back()) && is_digit(after.chars().next());
    let is_operator = !own.is_empty() && own.chars().all(|c| "+−×÷/=<>≤≥^%°$€£¥".contains(c));
    match own {
        "-" | "*" | "–" => follows && precedes,
        "." | "," | ":" => is_within,
        _ => is_operator && (follows || precedes) && !is_double_bracket(text, begin, token),
    }
}

/// The word as the model would have it: what stands of it before the token, and the beginning of the model's choice.
fn expected_word(text: &str, at: usize, top: &str) -> String {
    let first = first_word(top);
    let goes_on = top.starts_with(first) && !first.is_empty();
    let before: String = text[..at].chars().rev().take_while(|c| c.is_alphanumeric() && !is_han(*c)).collect();
    match goes_on && !before.is_empty() {
        true => before.chars().rev().collect::<String>() + first,
        false => first.to_owned(),
    }
}

/// Stems that are written with `our` in Britain and with `or` in America. A rule for the letters alone would make mourning a morning.
const OUR: &str = "arbour ardour armour behaviour candour clamour colour demeanour endeavour favour fervour flavour glamour honour humour \
                   labour neighbour odour parlour rancour rigour rumour saviour savour splendour succour tumour valour vapour vigour";

/// Stems whose `l` is doubled before a vowel in Britain and not in America. By a rule, filled would be filed, and holly holy.
const DOUBLED: &str = "bevel cancel channel chisel counsel dial duel enamel equal fuel funnel grovel initial jewel label level libel marvel \
                       medal model panel pedal quarrel revel rival shovel signal snorkel spiral swivel total travel tunnel unravel";

/// Spellings that follow no rule, and endings that no other word shares.
const SPELT: &[(&str, &str)] = &[
    ("yse", "yze"),
    ("ise", "ize"),
    ("isi", "izi"),
    ("isa", "iza"),
    ("ogue", "og"),
    ("jewelery", "jewelry"),
    ("fulfill", "fulfil"),
    ("enroll", "enrol"),
    ("skillful", "skilful"),
    ("willful", "wilful"),
    ("installment", "instalment"),
    ("woollen", "woolen"),
];

/// British beside American spelling.
fn is_other_spelling(word: &str, other: &str) -> bool {
    let plain = |word: &str| {
        let mut word = word.to_lowercase();
        for british in OUR.split_whitespace() {
            word = word.replace(british, &british.replace("our", "or"));
        }
        for stem in DOUBLED.split_whitespace() {
            for vowel in ["e", "i", "o"] {
                word = word.replace(&format!("{stem}l{vowel}"), &format!("{stem}{vowel}"));
            }
        }
        for (one, another) in SPELT {
            word = word.replace(one, another);
        }
        let (stem, plural) = word.strip_suffix('s').map_or((word.as_str(), ""), |stem| (stem, "s"));
        // Centre, fibre, meagre, ochre; a tire is no tier.
        match stem.strip_suffix("re").filter(|stem| stem.ends_with(['b', 'g', 'h', 't'])) {
            Some(stem) => format!("{stem}er{plural}"),
            None => word,
        }
    };
    word.chars().count() > 4 && word.to_lowercase() != other.to_lowercase() && plain(word) == plain(other)
}

/// Do two words differ in the ending of a plural or of a tense only?
fn is_other_ending(word: &str, other: &str) -> bool {
    const ENDINGS: [&str; 8] = ["", "s", "es", "ed", "d", "ing", "y", "ies"];
    let (word, other) = (word.to_lowercase(), other.to_lowercase());
    let same: usize =
        word.chars().zip(other.chars()).take_while(|(a, b)| a == b && a.is_alphabetic()).map(|(a, _)| a.len_utf8()).sum();
    // `bind` and `bed` share a letter and endings.
    same >= 3 && word != other && ENDINGS.contains(&&word[same..]) && ENDINGS.contains(&&other[same..])
}

/// Words that build a sentence and claim nothing; without negations, quantities, modal verbs and the prepositions of place and time that do.
const SMALL_WORDS: &[&str] = &[
    "a",
    "about",
    "also",
    "am",
    "an",
    "and",
    "are",
    "as",
    "at",
    "be",
    "because",
    "been",
    "being",
    "but",
    "by",
    "did",
    "do",
    "does",
    "for",
    "had",
    "has",
    "have",
    "here",
    "how",
    "i",
    "if",
    "in",
    "into",
    "is",
    "it",
    "its",
    "just",
    "me",
    "my",
    "of",
    "on",
    "or",
    "our",
    "own",
    "so",
    "such",
    "than",
    "that",
    "the",
    "their",
    "them",
    "then",
    "there",
    "these",
    "they",
    "this",
    "those",
    "to",
    "too",
    "upon",
    "us",
    "very",
    "was",
    "we",
    "were",
    "what",
    "when",
    "where",
    "which",
    "while",
    "who",
    "whom",
    "whose",
    "with",
    "you",
    "your",
    "yours",
    "ours",
    "theirs",
    "itself",
    "themselves",
    "yourself",
];
const CONTRACTIONS: [&str; 6] = ["'s", "'m", "'re", "'ve", "'ll", "'d"];

/// Is the word one of [`SMALL_WORDS`], written as within a sentence or at its beginning, and not as a name (`US`)? The token holds the word
/// from its beginning on, or is a contraction.
fn is_small_word(text: &str, word: &str, token: &str) -> bool {
    if CONTRACTIONS.contains(&token.replace('’', "'").as_str()) {
        return true;
    }
    let lower = word.to_lowercase();
    let is_begun = token.trim_start().starts_with(word) && !word.is_empty();
    let as_written = word == lower || (word.chars().skip(1).all(char::is_lowercase) && !is_name(text, word));
    is_begun && as_written && SMALL_WORDS.contains(&lower.as_str())
}

/// What an earlier turn says at the same place: the word before, and the model's choice behind it; where no earlier turn has the data's word.
fn said_before(text: &str, at: usize, word: &str, expected: &str, earlier: &[&str]) -> Option<String> {
    let before = text[..at].trim_end_matches(|c: char| !c.is_alphanumeric());
    let begin = before.char_indices().rev().take_while(|(_, c)| c.is_alphanumeric() && !is_han(*c)).last()?.0;
    // Behind an article anything can follow, and so it can behind the end of a sentence; a beginning of three letters could be any word's.
    let (gap, neighbour) = (&text[before.len()..at], text[begin..before.len()].to_lowercase());
    let is_no_place = gap.chars().count() > 2 || SMALL_WORDS.contains(&neighbour.as_str());
    if is_no_place || expected.chars().count() < 4 || word.is_empty() || !text[at..].starts_with(word) {
        return None;
    }
    let wanted = format!("{}{expected}", &text[begin..at]);
    let is_said = earlier.iter().any(|turn| {
        turn.match_indices(&wanted).any(|(at, _)| !turn[..at].chars().next_back().is_some_and(char::is_alphanumeric))
    });
    (is_said && !earlier.iter().any(|turn| has_word(turn, word))).then_some(wanted)
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

/// Is the word a number? `one` is more often a pronoun or an article, and one only where the model expected a number as well.
fn is_counted(word: &str, expected: &str) -> bool {
    is_number(word) && (!word.eq_ignore_ascii_case("one") || is_number(expected))
}

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

    fn of(text: &str, token: &str, top: &str) -> ConflictKind {
        let begin = text.find(token).unwrap();
        let conflict = Conflict {
            text,
            begin,
            end: begin + token.len(),
            top,
            earlier: &[],
            rows_alike: 1,
            rows: 100,
            others: &[],
            is_last: true,
        };
        kind(&conflict).0
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
            // A token that the model makes of fewer letters may be another word.
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
            // A step of a calculation is enclosed, in whatever tokens; a comparison is one.
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
            // Bytes of a character: another one, or nobody knows which.
            ("全长很长", "长", "<0xE9><0x83>", ConflictKind::Unexplained),
            ("今年九十", "九", "<0xE4><0xBA>", ConflictKind::Number),
        ] {
            assert_eq!(of(text, token, top), expected, "{text}: {token}, {top}");
        }
    }

    #[test]
    fn other_words_are_no_other_spelling() {
        for (british, american) in [
            ("colour", "color"),
            ("Neighbouring", "neighboring"),
            ("discoloured", "discolored"),
            ("savoury", "savory"),
            ("travelled", "traveled"),
            ("modelling", "modeling"),
            ("marvellous", "marvelous"),
            ("jewellery", "jewelry"),
            ("fulfil", "fulfill"),
            ("enrolment", "enrollment"),
            ("centres", "centers"),
            ("fibre", "fiber"),
            ("analyse", "analyze"),
            ("realising", "realizing"),
            ("organisation", "organization"),
            ("dialogues", "dialogs"),
        ] {
            assert!(is_other_spelling(british, american) && is_other_spelling(american, british), "{british}, {american}");
        }
        for (word, other) in [
            ("mourning", "morning"),
            ("pouring", "poring"),
            ("holly", "holy"),
            ("bellow", "below"),
            ("belly", "bely"),
            ("filled", "filed"),
            ("tilled", "tiled"),
            ("polling", "poling"),
            ("collar", "colar"),
            ("totally", "totaly"),
            ("tires", "tiers"),
            ("fours", "fors"),
        ] {
            assert!(!is_other_spelling(word, other) && !is_other_spelling(other, word), "{word}, {other}");
        }
    }

    #[test]
    fn other_rows_and_the_template_count_first() {
        let text = "It is Lyon.";
        let conflict = Conflict {
            text,
            begin: 5,
            end: 10,
            top: " Paris",
            earlier: &[],
            rows_alike: 1,
            rows: 100,
            others: &[(7, "It is Paris.")],
            is_last: true,
        };
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
        // Behind a call, and of a turn that is reasoning alone; and what stands before the text is no end of it.
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
        // Of the three bytes of 三 (E4 B8 89) the model writes the last one otherwise: 专 is no number, and 三 is one all the same.
        let text = "有三个";
        let of = |text, begin, end, top| {
            kind(&Conflict { text, begin, end, top, earlier: &[], rows_alike: 1, rows: 100, others: &[], is_last: true }).0
        };
        assert_eq!(of(text, 5, 6, "<0x93>"), ConflictKind::Number);
        assert_eq!(of("有人在", 5, 6, "<0x93>"), ConflictKind::Unexplained);
    }

    #[test]
    fn what_the_row_says_earlier_is_a_disagreement() {
        let earlier = ["Mail tom@example.com, please.", "{\"12 May\": \"Budget review\"}"];
        let of = |text: &str, token: &str, top: &str, earlier: &[&str]| {
            let begin = text.find(token).unwrap();
            kind(&Conflict {
                text,
                begin,
                end: begin + token.len(),
                top,
                earlier,
                rows_alike: 1,
                rows: 100,
                others: &[],
                is_last: true,
            })
        };
        let said = |what: &str| (ConflictKind::Disagreement, format!("earlier in the row stands `{what}`"));
        assert_eq!(of("sent to tom@company.com", "company", "example", &earlier), said("tom@example"));
        assert_eq!(of("Budget report", " report", " review", &earlier), said("Budget review"));
        // An article is no place; not behind the same word, another word behind it, or the data's word was said, too.
        assert_eq!(of("so the hiker", " hiker", " compass", &["What is the compass for?"]).0, ConflictKind::Unexplained);
        assert_eq!(of("a report", " report", " review", &earlier).0, ConflictKind::Unexplained);
        assert_eq!(of("Budget report", " report", " revision", &earlier).0, ConflictKind::Unexplained);
        assert_eq!(of("Budget report", " report", " review", &[earlier[1], "the report"]).0, ConflictKind::Unexplained);
    }

    #[test]
    fn lists_end_without_a_sign() {
        assert_eq!(open_end("These are they:\n1. October\n2. December"), None);
        assert!(open_end("These are they.\nThen we went on to the").is_some());
    }

    #[test]
    fn names_read_back() {
        for kind in ConflictKind::ALL {
            assert_eq!(kind.name().parse::<ConflictKind>().unwrap(), kind);
        }
        assert_eq!("colour".parse::<ConflictKind>().unwrap_err().exit_code(), 2);
    }
}
