//! The kinds of instructions (`instructions_registry.py`), and whether an answer follows one (`instructions.py`).
//!
//! The official code inserts keywords, markers and splitters into patterns without escaping them. So does this module, in the
//! syntax of `fancy-regex`, which equals Python's for all published rows.

use std::cell::RefCell;

use fancy_regex::Regex;
use serde_json::{Map, Value};

use super::json;
use super::pattern::{BOUNDARY, Patterns, SPACE, pattern};
use super::tools::Tools;
use crate::error::{Error, Result};
use crate::eval::requests::is_python_space;

/// An instruction with its arguments.
pub(super) enum Instruction {
    Keywords(Vec<Regex>),
    KeywordFrequency(Regex, Bound),
    ForbiddenWords(Vec<Regex>),
    LetterFrequency(char, Bound),
    Language(String),
    Sentences(Bound),
    /// This many paragraphs, separated by `***`.
    Paragraphs(usize),
    Words(Bound),
    FirstWord {
        paragraphs: usize,
        nth: usize,
        word: String,
    },
    Placeholders(usize),
    Postscript(Regex),
    Bullets(usize),
    Constrained,
    Highlights(usize),
    Sections {
        splitter: Regex,
        at_least: usize,
    },
    Json,
    Title,
    TwoResponses,
    RepeatPrompt(String),
    End(String),
    CapitalWords(Bound),
    EnglishCapital,
    EnglishLowercase,
    NoComma,
    Quotation,
}

/// `less than` or `at least` this number.
#[derive(Clone, Copy)]
pub(super) enum Bound {
    LessThan(usize),
    AtLeast(usize),
}

impl Bound {
    fn holds(self, n: usize) -> bool {
        match self {
            Bound::LessThan(bound) => n < bound,
            Bound::AtLeast(bound) => n >= bound,
        }
    }
}

/// The arguments of an instruction in a row; a value that is null, 0 or empty counts as absent.
struct Arguments<'a> {
    id: &'a str,
    given: Vec<(&'a String, &'a Value)>,
    /// The names that were asked for.
    read: RefCell<Vec<&'static str>>,
}

impl<'a> Arguments<'a> {
    fn new(id: &'a str, arguments: &'a Map<String, Value>) -> Arguments<'a> {
        let is_given = |value: &Value| match value {
            Value::Null | Value::Bool(false) => false,
            Value::Number(number) => number.as_f64() != Some(0.0),
            Value::String(text) => !text.is_empty(),
            Value::Array(list) => !list.is_empty(),
            _ => true,
        };
        Arguments { id, given: arguments.iter().filter(|(_, value)| is_given(value)).collect(), read: RefCell::default() }
    }

    /// Returns an error if there are arguments that were not asked for.
    fn check_all_read(&self) -> Result<()> {
        let read = self.read.borrow();
        match self.given.iter().find(|(key, _)| !read.contains(&key.as_str())) {
            Some((key, _)) => Err(Error::new(format!("`{}` takes no `{key}`", self.id))),
            None => Ok(()),
        }
    }

    fn wrong(&self, key: &str, expected: &str) -> Error {
        let found =
            self.given.iter().find(|(known, _)| *known == key).map_or_else(|| "none".to_owned(), |(_, value)| value.to_string());
        Error::new(format!("`{}` of `{}`: expected {expected}, found {found}", key, self.id))
            .cure("The harness would draw it at random, so no answer could be judged by the prompt.")
    }

    fn get(&self, key: &'static str) -> Option<&'a Value> {
        self.read.borrow_mut().push(key);
        self.given.iter().find(|(known, _)| *known == key).map(|(_, value)| *value)
    }

    fn text(&self, key: &'static str) -> Result<&'a str> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.wrong(key, "a text"))
    }

    /// A whole number above 0, which some tables write as 3.0.
    fn count(&self, key: &'static str) -> Result<usize> {
        let number =
            self.get(key).and_then(Value::as_f64).filter(|number| *number > 0.0 && number.fract() == 0.0 && *number < 1e9);
        number.map(|number| number as usize).ok_or_else(|| self.wrong(key, "a whole number above 0"))
    }

    fn texts(&self, key: &'static str) -> Result<Vec<&'a str>> {
        let list = self.get(key).and_then(Value::as_array);
        let texts = list.and_then(|list| list.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| self.wrong(key, "a list of texts"))
    }

    fn bound(&self, relation: &'static str, count: &'static str) -> Result<Bound> {
        let n = self.count(count)?;
        match self.text(relation)? {
            "less than" => Ok(Bound::LessThan(n)),
            "at least" => Ok(Bound::AtLeast(n)),
            _ => Err(self.wrong(relation, "`less than` or `at least`")),
        }
    }
}

impl Instruction {
    pub(super) fn parse(id: &Value, arguments: &Value) -> Result<Instruction> {
        let id = id.as_str().ok_or_else(|| Error::new(format!("expected the name of an instruction, found {id}")))?;
        let nothing = Map::new();
        let arguments = match arguments {
            Value::Object(arguments) => arguments,
            Value::Null => &nothing,
            other => return Err(Error::new(format!("`kwargs` of `{id}`: expected an object, found {other}"))),
        };
        let given = Arguments::new(id, arguments);
        let anywhere = |keyword: &str| pattern(&format!("(?i){keyword}"));
        let instruction = match id {
            "keywords:existence" => {
                Instruction::Keywords(given.texts("keywords")?.into_iter().map(anywhere).collect::<Result<_>>()?)
            }
            "keywords:frequency" => {
                Instruction::KeywordFrequency(anywhere(stripped(given.text("keyword")?))?, given.bound("relation", "frequency")?)
            }
            "keywords:forbidden_words" => {
                let alone = |word: &str| pattern(&format!("(?i){BOUNDARY}{word}{BOUNDARY}"));
                Instruction::ForbiddenWords(given.texts("forbidden_words")?.into_iter().map(alone).collect::<Result<_>>()?)
            }
            "keywords:letter_frequency" => {
                let mut letters = given.text("letter")?.chars();
                match (letters.next(), letters.next()) {
                    (Some(letter), None) if !is_python_space(letter) => {
                        let lower = letter.to_lowercase().next().unwrap_or(letter);
                        Instruction::LetterFrequency(lower, given.bound("let_relation", "let_frequency")?)
                    }
                    _ => return Err(given.wrong("letter", "a single letter")),
                }
            }
            "language:response_language" => Instruction::Language(given.text("language")?.to_owned()),
            "length_constraints:number_sentences" => Instruction::Sentences(given.bound("relation", "num_sentences")?),
            "length_constraints:number_paragraphs" => Instruction::Paragraphs(given.count("num_paragraphs")?),
            "length_constraints:number_words" => Instruction::Words(given.bound("relation", "num_words")?),
            "length_constraints:nth_paragraph_first_word" => {
                let (paragraphs, nth) = (given.count("num_paragraphs")?, given.count("nth_paragraph")?);
                if nth > paragraphs {
                    return Err(given.wrong("nth_paragraph", &format!("one of the {paragraphs} paragraphs")));
                }
                Instruction::FirstWord { paragraphs, nth, word: given.text("first_word")?.to_lowercase() }
            }
            "detectable_content:number_placeholders" => Instruction::Placeholders(given.count("num_placeholders")?),
            "detectable_content:postscript" => Instruction::Postscript(match stripped(given.text("postscript_marker")?) {
                "P.P.S" => pattern(&format!(r"(?m){SPACE}*p\.{SPACE}?p\.{SPACE}?s.*$"))?,
                "P.S." => pattern(&format!(r"(?m){SPACE}*p\.{SPACE}?s\..*$"))?,
                other => pattern(&format!(r"(?m){SPACE}*{}.*$", other.to_lowercase()))?,
            }),
            "detectable_format:number_bullet_lists" => Instruction::Bullets(given.count("num_bullets")?),
            "detectable_format:constrained_response" => Instruction::Constrained,
            "detectable_format:number_highlighted_sections" => Instruction::Highlights(given.count("num_highlights")?),
            "detectable_format:multiple_sections" => {
                let splitter = stripped(given.text("section_spliter")?);
                Instruction::Sections {
                    splitter: pattern(&format!(r"{SPACE}?{splitter}{SPACE}?\d+{SPACE}?"))?,
                    at_least: given.count("num_sections")?,
                }
            }
            "detectable_format:json_format" => Instruction::Json,
            "detectable_format:title" => Instruction::Title,
            "combination:two_responses" => Instruction::TwoResponses,
            "combination:repeat_prompt" => Instruction::RepeatPrompt(lower(stripped(given.text("prompt_to_repeat")?))),
            "startend:end_checker" => Instruction::End(lower(stripped(given.text("end_phrase")?))),
            "change_case:capital_word_frequency" => {
                Instruction::CapitalWords(given.bound("capital_relation", "capital_frequency")?)
            }
            "change_case:english_capital" => Instruction::EnglishCapital,
            "change_case:english_lowercase" => Instruction::EnglishLowercase,
            "punctuation:no_comma" => Instruction::NoComma,
            "startend:quotation" => Instruction::Quotation,
            other => return Err(Error::new(format!("there is no kind of instruction called `{other}`"))),
        };
        given.check_all_read()?;
        Ok(instruction)
    }

    /// Does a non-empty answer follow the instruction?
    pub(super) fn follows(&self, answer: &str, tools: &Tools) -> Result<bool> {
        let patterns = &tools.patterns;
        let is_english = |text: &str| Ok::<bool, Error>(tools.languages.of(text)?.is_none_or(|language| language == "en"));
        Ok(match self {
            Instruction::Keywords(keywords) => {
                for keyword in keywords {
                    if !found(keyword, answer)? {
                        return Ok(false);
                    }
                }
                true
            }
            Instruction::KeywordFrequency(keyword, bound) => bound.holds(count(keyword, answer)?),
            Instruction::ForbiddenWords(words) => {
                for word in words {
                    if found(word, answer)? {
                        return Ok(false);
                    }
                }
                true
            }
            Instruction::LetterFrequency(letter, bound) => bound.holds(lower(answer).chars().filter(|c| c == letter).count()),
            Instruction::Language(code) => tools.languages.of(answer)?.is_none_or(|language| language == code),
            Instruction::Sentences(bound) => bound.holds(tools.sentences.split(answer)?.len()),
            Instruction::Paragraphs(n) => number_of_paragraphs(answer, &patterns.divider)? == Some(*n),
            Instruction::Words(bound) => bound.holds(count(&patterns.word, answer)?),
            Instruction::FirstWord { paragraphs, nth, word } => has_first_word(answer, *paragraphs, *nth, word),
            Instruction::Placeholders(n) => count(&patterns.placeholder, answer)? >= *n,
            Instruction::Postscript(pattern) => found(pattern, &lower(answer))?,
            Instruction::Bullets(n) => count(&patterns.star, answer)? + count(&patterns.dash, answer)? == *n,
            Instruction::Constrained => OPTIONS.iter().any(|option| answer.contains(option)),
            Instruction::Highlights(n) => highlights(answer, patterns)? >= *n,
            Instruction::Sections { splitter, at_least } => {
                // If the splitter contains a group, its matches appear between the sections and count as sections, as in Python's
                // `re.split`.
                count(splitter, answer)? * splitter.captures_len() >= *at_least
            }
            Instruction::Json => json::is_json(without_fence(answer)),
            Instruction::Title => {
                let mut is_title = false;
                for title in matches(&patterns.title, answer)? {
                    is_title |= !stripped(title.trim_start_matches('<').trim_end_matches('>')).is_empty();
                }
                is_title
            }
            Instruction::TwoResponses => are_two_responses(answer),
            Instruction::RepeatPrompt(prompt) => lower(stripped(answer)).starts_with(prompt.as_str()),
            Instruction::End(phrase) => lower(stripped(answer).trim_matches('"')).ends_with(phrase.as_str()),
            Instruction::CapitalWords(bound) => {
                let mut n = 0;
                for sentence in tools.sentences.split(answer)? {
                    n += tools.words.cut(&sentence)?.iter().filter(|word| is_upper(word)).count();
                }
                bound.holds(n)
            }
            Instruction::EnglishCapital => is_upper(answer) && is_english(answer)?,
            Instruction::EnglishLowercase => is_lower(answer) && is_english(answer)?,
            Instruction::NoComma => !answer.contains(','),
            Instruction::Quotation => {
                let answer = stripped(answer);
                answer.len() > 1 && answer.starts_with('"') && answer.ends_with('"')
            }
        })
    }
}

const OPTIONS: [&str; 3] = ["My answer is yes.", "My answer is no.", "My answer is maybe."];

fn matches<'t>(pattern: &Regex, text: &'t str) -> Result<Vec<&'t str>> {
    pattern.find_iter(text).map(|found| Ok(found.map_err(too_long)?.as_str())).collect()
}

fn count(pattern: &Regex, text: &str) -> Result<usize> {
    Ok(matches(pattern, text)?.len())
}

fn found(pattern: &Regex, text: &str) -> Result<bool> {
    pattern.is_match(text).map_err(too_long)
}

fn too_long(error: fancy_regex::Error) -> Error {
    Error::new("a pattern of an instruction takes too long on an answer").caused_by(error)
}

/// Python's `str.strip()`.
pub(super) fn stripped(text: &str) -> &str {
    text.trim_matches(is_python_space)
}

fn lower(text: &str) -> String {
    text.to_lowercase()
}

/// Titlecase letters, which are neither upper nor lower case.
fn is_title_case(c: char) -> bool {
    matches!(c, '\u{1c5}' | '\u{1c8}' | '\u{1cb}' | '\u{1f2}' | '\u{1f88}'..='\u{1f8f}' | '\u{1f98}'..='\u{1f9f}'
        | '\u{1fa8}'..='\u{1faf}' | '\u{1fbc}' | '\u{1fcc}' | '\u{1ffc}')
}

/// Python's `str.isupper()`: there are cased letters, and all of them are upper case.
fn is_upper(text: &str) -> bool {
    text.chars().any(char::is_uppercase) && !text.chars().any(|c| c.is_lowercase() || is_title_case(c))
}

/// Python's `str.islower()`.
fn is_lower(text: &str) -> bool {
    text.chars().any(char::is_lowercase) && !text.chars().any(|c| c.is_uppercase() || is_title_case(c))
}

/// The number of paragraphs separated by `***`; `None` if one between two others is empty.
fn number_of_paragraphs(answer: &str, divider: &Regex) -> Result<Option<usize>> {
    let mut paragraphs = Vec::new();
    let mut begin = 0;
    for found in divider.find_iter(answer) {
        let found = found.map_err(too_long)?;
        paragraphs.push(&answer[begin..found.start()]);
        begin = found.end();
    }
    paragraphs.push(&answer[begin..]);
    let mut n = paragraphs.len();
    for (idx, paragraph) in paragraphs.iter().enumerate() {
        if stripped(paragraph).is_empty() {
            if idx > 0 && idx + 1 < paragraphs.len() {
                return Ok(None);
            }
            n -= 1;
        }
    }
    Ok(Some(n))
}

/// Paragraphs are separated by empty lines. Empty paragraphs do not count, but keep their positions when the `nth` is looked up.
fn has_first_word(answer: &str, paragraphs: usize, nth: usize, expected: &str) -> bool {
    let all: Vec<&str> = answer.split("\n\n").map(stripped).collect();
    let n = all.iter().filter(|paragraph| !paragraph.is_empty()).count();
    let Some(paragraph) = all.get(nth - 1).filter(|paragraph| nth <= n && !paragraph.is_empty()) else { return false };
    let word = paragraph.split(is_python_space).next().unwrap_or_default();
    let word = word.trim_start_matches('\'').trim_start_matches('"');
    let end = word.find(['.', ',', '?', '!', '\'', '"']).unwrap_or(word.len());
    let first: String = word[..end].chars().flat_map(char::to_lowercase).collect();
    n == paragraphs && first == expected
}

fn highlights(answer: &str, patterns: &Patterns) -> Result<usize> {
    let is_filled = |text: &str| !stripped(text).is_empty();
    let single = matches(&patterns.highlight, answer)?.into_iter().filter(|text| is_filled(text.trim_matches('*'))).count();
    let inside = |text: &&str| {
        let text = text.strip_prefix("**").unwrap_or(text);
        is_filled(text.strip_suffix("**").unwrap_or(text))
    };
    Ok(single + matches(&patterns.double_highlight, answer)?.iter().filter(|text| inside(text)).count())
}

/// The text between fences.
fn without_fence(answer: &str) -> &str {
    let fences = ["```json", "```Json", "```JSON", "```"];
    let text = fences.iter().fold(stripped(answer), |text, fence| text.strip_prefix(fence).unwrap_or(text));
    stripped(text.strip_suffix("```").unwrap_or(text))
}

/// Two different responses, separated by `******`.
fn are_two_responses(answer: &str) -> bool {
    let responses: Vec<&str> = answer.split("******").map(stripped).collect();
    let is_gap = |(idx, response): (usize, &&str)| response.is_empty() && idx > 0 && idx + 1 < responses.len();
    if responses.iter().enumerate().any(is_gap) {
        return false;
    }
    let filled: Vec<&str> = responses.into_iter().filter(|response| !response.is_empty()).collect();
    filled.len() == 2 && filled[0] != filled[1]
}
