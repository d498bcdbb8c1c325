//! The tables and patterns that some kinds of instructions need besides the answer.

use std::path::Path;

use super::language::Languages;
use super::pattern::Patterns;
use super::sentences::Sentences;
use super::words::Words;
use crate::error::Result;

/// The tables and patterns of the checks.
pub struct Tools {
    pub(super) sentences: Sentences,
    pub(super) words: Words,
    pub(super) languages: Languages,
    pub(super) patterns: Patterns,
}

impl Tools {
    /// Reads the folders of Punkt's English model and of the package langdetect.
    pub fn open(punkt: &Path, langdetect: &Path) -> Result<Tools> {
        Ok(Tools {
            sentences: Sentences::open(punkt)?,
            words: Words::new()?,
            languages: Languages::open(langdetect)?,
            patterns: Patterns::new()?,
        })
    }
}
