//! Splits a sentence into words like `NLTKWordTokenizer` of NLTK 3.10.4 (`nltk/tokenize/destructive.py`), which separates
//! punctuation and clitics.

use fancy_regex::Regex;

use super::pattern::pattern;
use crate::error::{Error, Result};
use crate::eval::requests::is_python_space;

/// The substitutions, in order: those before the sentence is padded with white space, and those after.
pub(super) struct Words {
    before: Vec<(Regex, &'static str)>,
    after: Vec<(Regex, &'static str)>,
}

const BEFORE: &[(&str, &str)] = &[
    // Opening quotes.
    ("([«“‘„]|[`]+)", " ${1} "),
    ("^\"", "``"),
    ("(``)", " ${1} "),
    (r#"([ (\[{<])("|'{2})"#, "${1} `` "),
    (r"(?i)(?<!\w)(')(?!(?:re|ve|ll|m|t|s|d|n)\b)(?=\w)", "${1} "),
    // Punctuation.
    (r#"([^.])(\.)([\])}>"'»”’ ]*+)\s*$"#, "${1} ${2} ${3} "),
    (r"([:,])([^\d])", " ${1} ${2}"),
    (r"([:,])$", " ${1} "),
    (r"(\.{2,})", " ${1} "),
    (r"([;@#$%&])", " ${1} "),
    ("([‒-―])", " ${1} "),
    (r#"([^.])(\.)([\])}>"']*)\s*$"#, "${1} ${2}${3} "),
    (r"([?!])", " ${1} "),
    (r"([^'])' ", "${1} ' "),
    (r"([*])", " ${1} "),
    // Brackets and dashes.
    (r"([\]\[(){}<>])", " ${1} "),
    (r"--", " -- "),
];

const AFTER: &[(&str, &str)] = &[
    // Closing quotes.
    ("([»”’])", " ${1} "),
    ("''", " '' "),
    ("\"", " '' "),
    (r"\s+", " "),
    (r"([^' ])('[sS]|'[mM]|'[dD]|') ", "${1} ${2} "),
    (r"([^' ])('ll|'LL|'re|'RE|'ve|'VE|n't|N'T) ", "${1} ${2} "),
    // Contractions.
    (r"(?i)\b(can)(not)\b", " ${1} ${2} "),
    (r"(?i)\b(d)('ye)\b", " ${1} ${2} "),
    (r"(?i)\b(gim)(me)\b", " ${1} ${2} "),
    (r"(?i)\b(gon)(na)\b", " ${1} ${2} "),
    (r"(?i)\b(got)(ta)\b", " ${1} ${2} "),
    (r"(?i)\b(lem)(me)\b", " ${1} ${2} "),
    (r"(?i)\b(more)('n)\b", " ${1} ${2} "),
    (r"(?i)\b(wan)(na)(?=\s)", " ${1} ${2} "),
    (r"(?i) ('t)(is)\b", " ${1} ${2} "),
    (r"(?i) ('t)(was)\b", " ${1} ${2} "),
];

impl Words {
    pub(super) fn new() -> Result<Words> {
        let compiled = |rules: &[(&'static str, &'static str)]| -> Result<Vec<(Regex, &'static str)>> {
            rules.iter().map(|(text, by)| Ok((pattern(text)?, *by))).collect()
        };
        Ok(Words { before: compiled(BEFORE)?, after: compiled(AFTER)? })
    }

    pub(super) fn cut(&self, sentence: &str) -> Result<Vec<String>> {
        let replace = |text: String, rules: &[(Regex, &str)]| {
            rules.iter().try_fold(text, |text, (pattern, by)| match pattern.try_replacen(&text, 0, *by) {
                Ok(replaced) => Ok(replaced.into_owned()),
                Err(error) => Err(Error::new("a sentence takes too long to be cut into words").caused_by(error)),
            })
        };
        let text = replace(sentence.to_owned(), &self.before)?;
        let text = replace(format!(" {text} "), &self.after)?;
        Ok(text.split(is_python_space).filter(|word| !word.is_empty()).map(str::to_owned).collect())
    }
}
