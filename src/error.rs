//! The library's one error type.
//!
//! A message says what was expected, what was found, where (`file:line`) and what to do. Errors that a person can cause are
//! built here and never panic. The place and the cure are fields, so that a caller who knows the file or the line adds it
//! on the way up and nobody has to parse text.

use std::fmt;
use std::path::{Path, PathBuf};

/// A result whose error is [`Error`], unless another is named.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Something went wrong: `message`, where, why, and what to do about it.
#[derive(Debug)]
pub struct Error {
    message: String,
    path: Option<PathBuf>,
    line: Option<u64>,
    cure: Option<String>,
    kind: ErrorKind,
    source: Option<Box<dyn std::error::Error + Send + Sync>>,
}

/// Decides the exit code of the program; see [`Error::exit_code`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ErrorKind {
    /// The work could not be done.
    Failed,
    /// The command line makes no sense.
    Usage,
    /// A check that the user asked for fell short.
    Check,
}

impl Error {
    /// A failure with this message: exit code 1, as yet without a file, a line, a cure or a cause.
    pub fn new(message: impl Into<String>) -> Self {
        Self { message: message.into(), path: None, line: None, cure: None, kind: ErrorKind::Failed, source: None }
    }

    /// A wrong command line: exit code 2.
    pub fn usage(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Usage, ..Self::new(message) }
    }

    /// A check that the user asked for fell short: exit code 3.
    pub fn check(message: impl Into<String>) -> Self {
        Self { kind: ErrorKind::Check, ..Self::new(message) }
    }

    /// Names the file, unless a deeper layer has named one already.
    pub fn at(mut self, path: impl AsRef<Path>) -> Self {
        self.path.get_or_insert_with(|| path.as_ref().to_owned());
        self
    }

    /// Names the file and the line (counted from 1), unless a deeper layer has.
    pub fn at_line(mut self, path: impl AsRef<Path>, line: u64) -> Self {
        if self.path.is_none() {
            self.line = Some(line);
        }
        self.at(path)
    }

    /// Says what to do about it, a whole sentence, unless a deeper layer has: it stood nearer to what went wrong. Where the outer one has to
    /// be read, it goes to an error of its own, which is [caused by](Error::caused_by) the deeper: both are printed.
    pub fn cure(mut self, cure: impl Into<String>) -> Self {
        self.cure.get_or_insert_with(|| cure.into());
        self
    }

    /// Keeps the error that caused this one; it is printed as `caused by`.
    pub fn caused_by(mut self, source: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Self {
        self.source = Some(source.into());
        self
    }

    /// What went wrong, without the place, the cause and the cure.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// What to do about it, where that is known.
    pub fn known_cure(&self) -> Option<&str> {
        self.cure.as_deref()
    }

    pub fn kind(&self) -> ErrorKind {
        self.kind
    }

    /// 1 failed, 2 wrong usage, 3 a check the user asked for fell short.
    pub fn exit_code(&self) -> u8 {
        match self.kind {
            ErrorKind::Failed => 1,
            ErrorKind::Usage => 2,
            ErrorKind::Check => 3,
        }
    }

    /// `message (cause)` without the place: what a table of skipped rows shows.
    pub fn reason(&self) -> String {
        match &self.source {
            Some(source) => format!("{} ({source})", self.message),
            None => self.message.clone(),
        }
    }

    /// The same, and what to do about it: what a remark shows, where the work goes on.
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

/// Says what was being done when a foreign error came up.
pub trait Context<T> {
    /// `context` is the message; the foreign error becomes its cause.
    fn context(self, context: impl Into<String>) -> Result<T>;
    /// As `context`, and the error names the file at `path`, which could not be read or written.
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

/// candle's errors come up all over the numeric rooms and carry their own story.
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
