//! Regular expressions that match as in Python, in the syntax of `fancy-regex`.

use fancy_regex::Regex;

use crate::error::{Error, Result};

/// Compiles a pattern of this program or of a row.
pub(super) fn pattern(text: &str) -> Result<Regex> {
    Regex::new(text).map_err(|error| Error::new(format!("the pattern `{text}` cannot be read")).caused_by(error))
}

/// A word boundary as Python's `\b`: word characters are letters, numbers and `_`.
pub(super) const BOUNDARY: &str = r"(?:(?<![\p{L}\p{N}_])(?=[\p{L}\p{N}_])|(?<=[\p{L}\p{N}_])(?![\p{L}\p{N}_]))";
/// Python's `\s`.
pub(super) const SPACE: &str = r"[\s\x1c-\x1f]";

/// The patterns of those kinds of instructions that have a fixed one.
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
    /// A separator of paragraphs: `***`.
    pub divider: Regex,
}

impl Patterns {
    pub(super) fn new() -> Result<Patterns> {
        Ok(Patterns {
            // `\w` includes combining marks in NLTK as in fancy-regex.
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
