//! Patterns as Python reads them, in the syntax of `fancy-regex`.

use fancy_regex::Regex;

use crate::error::{Error, Result};

/// A pattern of this program's own, or of a row.
pub(super) fn pattern(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| Error::new(format!("the pattern `{text}` cannot be read")).caused_by(error))
}

/// A place between a word and none, as Python's `\b`: there a word's characters are letters, numbers and `_`.
pub(super) const BOUNDARY: &str = r"(?:(?<![\p{L}\p{N}_])(?=[\p{L}\p{N}_])|(?<=[\p{L}\p{N}_])(?![\p{L}\p{N}_]))";
/// As Python's `\s`.
pub(super) const SPACE: &str = r"[\s\x1c-\x1f]";

/// The patterns of the kinds that have one of their own.
pub(super) struct Patterns {
    /// A word.
    pub word: Regex,
    /// A placeholder in brackets: `[name]`.
    pub placeholder: Regex,
    /// A bullet point that begins with a star.
    pub star: Regex,
    /// A bullet point that begins with a dash.
    pub dash: Regex,
    /// A highlighted part: `*so*`.
    pub highlight: Regex,
    /// A highlighted part: `**so**`.
    pub double_highlight: Regex,
    /// A title: `<<so>>`.
    pub title: Regex,
    /// A divider of paragraphs: `***`.
    pub divider: Regex,
}

impl Patterns {
    pub(super) fn new() -> Result<Patterns> {
        Ok(Patterns {
            // NLTK's words have marks in them, as fancy-regex's do.
            word: pattern(r"\w+")?,
            placeholder: pattern(r"\[.*?\]")?,
            star: pattern(&format!(r"(?m)^{SPACE}*\*[^\*].*$"))?,
            dash: pattern(&format!(r"(?m)^{SPACE}*-.*$"))?,
            highlight: pattern(r"\*[^\n\*]*\*")?,
            double_highlight: pattern(r"\*\*[^\n\*]*\*\*")?,
            title: pattern(r"<<[^\n]+>>")?,
            divider: pattern(&format!(r"{SPACE}?\*\*\*{SPACE}?"))?,
        })
    }
}
