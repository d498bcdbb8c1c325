//! Refuses a folder that holds something else than what the command would resume.

use std::path::Path;

use crate::error::Error;
use crate::kernels::level::{Level, VARIABLE};

/// The error for a folder that holds `what`, such as `another run`, begun at the kernel level `level` if that is known. Other instructions round sums
/// differently, so another level alone makes another run, and where the chat template writes the date, another day does.
pub(super) fn other_run(folder: &Path, what: &str, level: Option<&str>, writes_date: bool) -> Error {
    let own = Level::current().name();
    let error = match level.filter(|level| !level.is_empty() && *level != own) {
        Some(level) => Error::new(format!(
            "the run in this folder was started at the kernel level {level}; this process uses {own}, which rounds sums differently"
        ))
        .cure(format!(
            "{VARIABLE}={level} resumes it if all else is the same and the processor has that level; or choose another folder with --out."
        )),
        None => Error::new(format!(
            "the folder holds {what}: with other data, model or options, or made by another version or commit of the program"
        ))
        .cure(with_date("Choose another folder with --out, or remove this one.", writes_date)),
    };
    error.at(folder)
}

/// A cure for a run of other prompts, with how to get the same ones where the chat template writes the date.
pub(super) fn with_date(cure: &str, writes_date: bool) -> String {
    match writes_date {
        true => {
            format!(
                "{cure} The chat template prints today's date: to resume a run of another day, set SOURCE_DATE_EPOCH to its date."
            )
        }
        false => cure.to_owned(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn another_level_is_named_with_the_way_back_to_it() {
        let of = |level: Option<&str>| other_run(Path::new("out"), "another run", level, false).to_string();
        for level in [None, Some(""), Some(Level::current().name())] {
            assert!(of(level).contains("the folder holds another run"), "{}", of(level));
        }
        let error = of(Some("avx1024"));
        assert!(error.contains("avx1024") && error.contains(Level::current().name()), "{error}");
        assert!(error.contains("DIAGNOSE_KERNELS=avx1024 resumes it"), "{error}");
        // The date is of use only where a template prints it.
        assert!(!of(None).contains("SOURCE_DATE_EPOCH"), "{}", of(None));
        let dated = other_run(Path::new("out"), "another run", None, true).to_string();
        assert!(dated.ends_with("set SOURCE_DATE_EPOCH to its date."), "{dated}");
    }
}
