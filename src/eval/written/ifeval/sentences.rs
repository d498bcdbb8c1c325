//! Splits text into sentences with Punkt (Kiss and Strunk 2006, "Unsupervised Multilingual Sentence Boundary Detection"), as NLTK
//! 3.10.4 runs it with its English model (`nltk/tokenize/punkt.py`, `punkt_tab/english`).
//!
//! A `.`, `?` or `!` before white space or closing punctuation may end a sentence. The words before and after it decide: known
//! abbreviations, collocations, words that often start sentences, and how the next word is usually written (`ortho_context`).

use std::collections::{HashMap, HashSet};
use std::ops::Range;
use std::path::Path;

use fancy_regex::Regex;

use super::pattern::pattern;
use crate::error::{Context, Error, Result};

/// The tables of the model, and the patterns that split words.
pub(super) struct Sentences {
    abbreviations: HashSet<String>,
    collocations: HashSet<(String, String)>,
    starters: HashSet<String>,
    /// How each word was seen in the model's training text: [`LOWER`] and the other bits.
    ortho: HashMap<String, u32>,
    word: Regex,
    number: Regex,
    initial: Regex,
    realignment: Regex,
}

/// Seen with an upper-case letter within a sentence.
const WITHIN_UPPER: u32 = 1 << 2;
/// Seen with a lower-case letter at the start of a sentence.
const FIRST_LOWER: u32 = 1 << 4;
const UPPER: u32 = 1 << 1 | WITHIN_UPPER | 1 << 3;
const LOWER: u32 = FIRST_LOWER | 1 << 5 | 1 << 6;

/// Characters that may directly follow the end of a sentence, and end a word.
const NON_WORD: &str = r#"[)";}\]*:@'({\[‘’“”«»?!]"#;
const MULTI: &str = r"(?:-{2,}|\.{2,}|(?:\.\s){2,}\.)";
const NUMBER: &str = "##number##";

/// A word of a candidate's context.
struct Word {
    text: String,
    /// The word in lower case, with all numbers mapped to one.
    kind: String,
    ends: bool,
    is_abbreviation: bool,
    is_ellipsis: bool,
}

/// Does the usual spelling of a word suggest that it starts a sentence here?
#[derive(PartialEq)]
enum Begins {
    Yes,
    No,
    Unknown,
}

impl Sentences {
    /// Reads `abbrev_types.txt`, `collocations.tab`, `sent_starters.txt` and `ortho_context.tab`.
    pub(super) fn open(folder: &Path) -> Result<Sentences> {
        let lines = |name: &str| -> Result<Vec<String>> {
            let path = folder.join(name);
            let text = std::fs::read_to_string(&path).context_at(&path, "cannot read the model of sentences")?;
            Ok(text.lines().filter(|line| !line.is_empty()).map(str::to_owned).collect())
        };
        let pairs = |name: &str| -> Result<Vec<(String, String)>> {
            let pair = |line: String| match line.split_once('\t') {
                Some((left, right)) => Ok((left.to_owned(), right.trim_end().to_owned())),
                None => Err(Error::new(format!("expected two columns, found `{line}`")).at(folder.join(name))),
            };
            lines(name)?.into_iter().map(pair).collect()
        };
        let bits = |(word, bits): (String, String)| match bits.parse() {
            Ok(bits) => Ok((word, bits)),
            Err(_) => Err(Error::new(format!("expected a number, found `{bits}`")).at(folder.join("ortho_context.tab"))),
        };
        let starts_word = r#"[^(\"`{\[:;&\#*@)}\]\-,]"#;
        let word = format!(r"{MULTI}|(?={starts_word})\S+?(?=\s|$|{NON_WORD}|{MULTI}|,(?=$|\s|{NON_WORD}|{MULTI}))|\S");
        Ok(Sentences {
            abbreviations: lines("abbrev_types.txt")?.into_iter().collect(),
            collocations: pairs("collocations.tab")?.into_iter().collect(),
            starters: lines("sent_starters.txt")?.into_iter().collect(),
            ortho: pairs("ortho_context.tab")?.into_iter().map(bits).collect::<Result<_>>()?,
            word: pattern(&word)?,
            number: pattern(r"^-?[.,]?\d[\d,.\-]*\.?$")?,
            initial: pattern(r"^[^\W\d]\.$")?,
            realignment: pattern(r#"(?m)\A["')\]}‘’“”«»]+?(?:\s+|(?=--)|$)"#)?,
        })
    }

    /// Splits a text into its sentences.
    pub(super) fn split(&self, text: &str) -> Result<Vec<String>> {
        let text: Vec<char> = text.chars().collect();
        let sentences = self.spans(&text)?.into_iter().map(|span| text[span].iter().collect());
        Ok(sentences.collect())
    }

    /// NLTK's `span_tokenize`: the character range of each sentence.
    fn spans(&self, text: &[char]) -> Result<Vec<Range<usize>>> {
        let slices = self.slices(text)?;
        let mut spans = Vec::new();
        // Closing quotes and brackets at the start of a sentence belong to the previous one.
        let mut moved = 0;
        for (idx, slice) in slices.iter().enumerate() {
            let begin = slice.start + moved;
            let Some(next) = slices.get(idx + 1) else {
                spans.extend((begin < slice.end).then_some(begin..slice.end));
                break;
            };
            let behind: String = text[next.clone()].iter().collect();
            match self.realignment.find(&behind).map_err(too_long)? {
                Some(found) => {
                    let closing = found.as_str();
                    spans.push(begin..next.start + closing.trim_end().chars().count());
                    moved = closing.chars().count();
                }
                None => {
                    moved = 0;
                    spans.extend((begin < slice.end).then_some(begin..slice.end));
                }
            }
        }
        Ok(spans)
    }

    /// The ranges between those candidates that really end a sentence.
    fn slices(&self, text: &[char]) -> Result<Vec<Range<usize>>> {
        let mut slices = Vec::new();
        let mut begin = 0;
        for Candidate { at, next, context } in candidates(text) {
            if self.has_break(&context)? {
                slices.push(begin..at + 1);
                begin = next.unwrap_or(at + 1);
            }
        }
        let trailing = text.iter().rev().take_while(|c| c.is_whitespace()).count();
        slices.push(begin..(text.len() - trailing).max(begin));
        Ok(slices)
    }

    /// Does a sentence end within the context, with another word after it?
    fn has_break(&self, context: &str) -> Result<bool> {
        let mut words = Vec::new();
        for line in context.split('\n') {
            for found in self.word.find_iter(line) {
                words.push(self.word(found.map_err(too_long)?.as_str())?);
            }
        }
        for first in 1..words.len() {
            let (before, behind) = words.split_at_mut(first);
            if let (Some(word), Some(next)) = (before.last_mut(), behind.first()) {
                self.revise(word, next)?;
                if word.ends {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }

    /// Classifies a word by itself.
    fn word(&self, text: &str) -> Result<Word> {
        let lower = text.to_lowercase();
        let is_number = self.number.is_match(&lower).map_err(too_long)?;
        let kind = if is_number { NUMBER.to_owned() } else { lower };
        let mut word = Word { text: text.to_owned(), kind, ends: false, is_abbreviation: false, is_ellipsis: false };
        if [".", "?", "!"].contains(&text) {
            word.ends = true;
        } else if text.len() > 1 && text.chars().all(|c| c == '.') {
            word.is_ellipsis = true;
        } else if text.ends_with('.') && !text.ends_with("..") {
            let stem = text[..text.len() - 1].to_lowercase();
            let last = stem.rsplit('-').next().unwrap_or_default();
            word.is_abbreviation = self.abbreviations.contains(&stem) || self.abbreviations.contains(last);
            word.ends = !word.is_abbreviation;
        }
        Ok(word)
    }

    /// Revises the classification of a word that ends in a period, using the next word.
    fn revise(&self, word: &mut Word, next: &Word) -> Result<()> {
        if !word.text.ends_with('.') {
            return Ok(());
        }
        let kind = without_period(&word.kind);
        let next_kind = if next.ends { without_period(&next.kind) } else { &next.kind };
        let is_initial = self.initial.is_match(&word.text).map_err(too_long)?;
        if self.collocations.contains(&(kind.to_owned(), next_kind.to_owned())) {
            (word.ends, word.is_abbreviation) = (false, true);
            return Ok(());
        }
        let next_is_upper = next.text.chars().next().is_some_and(char::is_uppercase);
        if (word.is_abbreviation || word.is_ellipsis) && !is_initial {
            let is_starter = next_is_upper && self.starters.contains(next_kind);
            if self.begins(next, next_kind) == Begins::Yes || is_starter {
                word.ends = true;
                return Ok(());
            }
        }
        if is_initial || kind == NUMBER {
            let begins = self.begins(next, next_kind);
            let never_lower = self.ortho.get(next_kind).unwrap_or(&0) & LOWER == 0;
            if begins == Begins::No || begins == Begins::Unknown && is_initial && next_is_upper && never_lower {
                (word.ends, word.is_abbreviation) = (false, true);
            }
        }
        Ok(())
    }

    fn begins(&self, word: &Word, kind: &str) -> Begins {
        if [";", ":", ",", ".", "!", "?"].contains(&word.text.as_str()) {
            return Begins::No;
        }
        let seen = self.ortho.get(kind).copied().unwrap_or(0);
        let first = word.text.chars().next().unwrap_or_default();
        if first.is_uppercase() && seen & LOWER != 0 && seen & WITHIN_UPPER == 0 {
            Begins::Yes
        } else if first.is_lowercase() && (seen & UPPER != 0 || seen & FIRST_LOWER == 0) {
            Begins::No
        } else {
            Begins::Unknown
        }
    }
}

/// A position where a sentence may end.
struct Candidate {
    at: usize,
    /// The start of the next word, if white space precedes it.
    next: Option<usize>,
    /// The word before the position, the character at it, and what follows.
    context: String,
}

/// NLTK's `_match_potential_end_contexts`: of candidates with overlapping words, only the last counts.
fn candidates(text: &[char]) -> Vec<Candidate> {
    let is_space = |c: char| c.is_whitespace();
    let closing = ")\";}]*:@'({[‘’“”«»?!";
    let mut candidates: Vec<Candidate> = Vec::new();
    let mut word = 0..0;
    let mut last: Option<Candidate> = None;
    for at in (0..text.len()).filter(|&at| ".?!".contains(text[at])) {
        let Some(&behind) = text.get(at + 1) else { break };
        let (next, until) = if closing.contains(behind) {
            (None, at + 2)
        } else if is_space(behind) {
            let begin = text[at + 1..].iter().take_while(|c| is_space(**c)).count() + at + 1;
            let end = text[begin..].iter().take_while(|c| !is_space(**c)).count() + begin;
            if end == begin {
                continue;
            }
            (Some(begin), end)
        } else {
            continue;
        };
        // The previous word starts after the last white space; white space at the very start of the text does not count, as in
        // NLTK.
        let space = text[word.end..at].iter().rposition(|c| " \t\n\r\u{b}\u{c}".contains(*c)).filter(|&space| space > 0);
        let own = space.map_or(word.start, |space| word.end + space + 1)..at;
        candidates.extend(last.take().filter(|_| word.end <= own.start));
        last = Some(Candidate { at, next, context: text[own.start..until].iter().collect() });
        word = own;
    }
    candidates.extend(last);
    candidates
}

fn without_period(kind: &str) -> &str {
    if kind.chars().count() > 1 { kind.strip_suffix('.').unwrap_or(kind) } else { kind }
}

fn too_long(error: fancy_regex::Error) -> Error {
    Error::new("a text takes too long to be cut into sentences").caused_by(error)
}
