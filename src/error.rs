//! The library's only error type.
//!
//! A message says what was expected, what was found, where (`file:line`) and what to do about it. Mistakes that a user can make
//! are errors of this type and never panics. The place and the cure are fields, so that a caller who knows the file or the line
//! can add it on the way up without parsing text.

use std::fmt;
use std::path::{Path, PathBuf};

/// A result whose error type is [`Error`] by default.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An error: what went wrong (`message`), where, why, and what to do about it.
#[derive(Debug)]
pub struct Error {
    message: String,
    path: Option<PathBuf>,
    line: Option<u64>,
    cure: Option<String>,
    kind: ErrorKind,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// The kind of an error, which decides the program's exit code; see [`Error::exit_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work could not be done.
    Failed,
    /// The command line is wrong.
    Usage,
    /// A check that the user asked for did not pass.
    Check,
}

impl Error {
    /// Creates a failure with this message (exit code 1), without file, line, cure or cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), path: None, line: None, cure: None, kind: ErrorKind::Failed, source: None }
    }

    /// Creates an error about a wrong command line (exit code 2).
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, ..Self::new(message) }
    }

    /// Creates an error for a check that the user asked for and that did not pass (exit code 3).
    pub fn check(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Check, ..Self::new(message) }
    }

    /// Names the file, unless a deeper layer has already named one.
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    /// Names the file and the line (counted from 1), unless a deeper layer has already named a file.
    pub fn at_line(mut self, path: impl AsRef<Path>, line: u64) -> Self {
        if self.path.is_none() {
            self.line = Some(line);
        }
        self.at(path)
    }

    /// Says in a whole sentence what to do about it, unless a deeper layer, which knows more about the failure, has already done
    /// so. If the outer cure must be shown as well, put it into a new error that is [caused by](Error::caused_by) the deeper one:
    /// both are printed.
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure.get_or_insert_with(|| cure.into());
        self
    }

    /// Stores the error that caused this one; it is printed after `caused by`.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// The message alone, without place, cause and cure.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, if known.
    pub fn known_cure(&self) -> Option<&str> {
        self.cure.as_deref()
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// The program's exit code: 1 for a failure, 2 for wrong usage, 3 for a check that did not pass.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Check => 3,
        }
    }

    /// `message (cause)` without the place, as shown in the table of skipped rows.
    pub fn reason(&self) -> String {
        match &self.source {
            Some(source) => format!("{} ({source})", self.message),
            None => self.message.clone(),
        }
    }

    /// [`Error::reason`] followed by the cure, for warnings after which the work goes on.
    pub fn reason_and_cure(&self) -> String {
        match &self.cure {
            Some(cure) => format!("{}. {cure}", self.reason()),
            None => self.reason(),
        }
    }
}

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match (&self.path, self.line) {
            (Some(path), Some(line)) => write!(f, "{}:{line}: {}", path.display(), self.message)?,
            (Some(path), None) => write!(f, "{}: {}", path.display(), self.message)?,
            (None, _) => f.write_str(&self.message)?,
        }
        let mut source = self.source.as_deref().map(|source| source as &dyn std::error::Error);
        while let Some(cause) = source {
            write!(f, "\n  caused by: {cause}")?;
            source = cause.source();
        }
        if let Some(cure) = &self.cure {
            write!(f, "\n  {cure}")?;
        }
        Ok(())
    }
}

impl std::error::Error for Error {
    fn source(&self) -> Option<&(dyn std::error::Error + 'static)> {
        self.source.as_deref().map(|source| source as _)
    }
}

/// Adds to a foreign error what the program was doing when it occurred.
pub trait Context<T> {
    /// Turns the error into an [`Error`] with the message `context` and the foreign error as its cause.
    fn context(self, context: impl Into<String>) -> Result<T>;
    /// Like `context`, and names the file at `path`, which could not be read or written.
    fn context_at(self, path: impl AsRef<Path>, context: impl Into<String>) -> Result<T>;
}

impl<T, E: Into<Box<dyn std::error::Error + Send + Sync>>> Context<T> for std::result::Result<T, E> {
    fn context(self, context: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::new(context).caused_by(source))
    }

    fn context_at(self, path: impl AsRef<Path>, context: impl Into<String>) -> Result<T> {
        self.map_err(|source| Error::new(context).at(path).caused_by(source))
    }
}

/// candle's errors can occur anywhere in the numeric modules and describe themselves, so that `?` converts them.
impl From<candle_core::Error> for Error {
    fn from(source: candle_core::Error) -> Self {
        Error::new("the tensor library refused an operation").caused_by(source)
    }
}

impl From<polars::error::PolarsError> for Error {
    fn from(source: polars::error::PolarsError) -> Self {
        Error::new("the table library refused an operation").caused_by(source)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_innermost_place_wins_and_the_cure_comes_last() {
        let io = std::io::Error::other("disk on fire");
        let error =
            Error::new("cannot read the row").at_line("a.jsonl", 3).at_line("b.jsonl", 9).caused_by(io).cure("Buy a new disk.");
        assert_eq!(error.to_string(), "a.jsonl:3: cannot read the row\n  caused by: disk on fire\n  Buy a new disk.");
        assert_eq!(error.exit_code(), 1);
        assert_eq!(Error::usage("?").exit_code(), 2);
        assert_eq!(Error::check("?").exit_code(), 3);
    }

    #[test]
    fn the_innermost_cure_wins_and_a_cause_keeps_its_own() {
        let inner = || Error::new("no such role").cure("Give --role.");
        assert_eq!(inner().cure("Mend the row.").to_string(), "no such role\n  Give --role.");
        let outer = Error::new("not fetched").caused_by(inner()).cure("Try again.").to_string();
        assert_eq!(outer, "not fetched\n  caused by: no such role\n  Give --role.\n  Try again.");
    }

    #[test]
    fn a_file_named_deeper_keeps_its_missing_line() {
        assert_eq!(Error::new("empty").at("a.json").at_line("b.json", 4).to_string(), "a.json: empty");
    }
}
