//! Resolves the names of finished runs: folders, globs, and the shards of a run, which count as one.

use std::path::PathBuf;

use super::progress::Terminal;
use crate::error::{Error, Result};
use crate::jobs::folders::runs_of;
use crate::jobs::score::{Joining, joined};

/// The folders that the names denote; a name that is no finished run is kept, for the command to report.
pub(super) fn named(names: &[PathBuf], command: &str) -> Result<Vec<PathBuf>> {
    let mut folders = Vec::new();
    for name in names {
        match runs_of(&name.to_string_lossy()) {
            runs if runs.is_empty() => folders.push(name.clone()),
            runs => folders.extend(runs),
        }
    }
    joined(&folders, &Joining { out: None, sorted: true, command }, &Terminal::new())
}

/// Like [`named`], where exactly one run is expected.
pub(super) fn one(names: &[PathBuf], command: &str) -> Result<PathBuf> {
    match <[PathBuf; 1]>::try_from(named(names, command)?) {
        Ok([run]) => Ok(run),
        Err(several) => {
            let names: Vec<String> = several.iter().map(|run| run.display().to_string()).collect();
            Err(Error::usage(format!(
                "expected one run, or the shards of one run; found {}: {}",
                several.len(),
                names.join(", ")
            )))
        }
    }
}
