//! What the user writes after `--tasks` -> tasks.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::benchmarks;
use super::tasks::{PROBE, Task, probe, read};
use crate::error::{Error, Result};
use crate::fetch::Progress;

/// The tasks that the user named: `probe`, benchmarks, benchmarks with their files (`NAME=FILE`), files, and globs of files.
pub fn load(names: &[String], fetching: Progress) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    for name in names {
        let with_file = name.split_once('=').and_then(|(name, file)| Some((benchmarks::find(name)?, Path::new(file))));
        let found = match (with_file, benchmarks::find(name)) {
            _ if Path::new(name).is_file() => vec![read(Path::new(name))?],
            (Some((benchmark, file)), _) => vec![benchmarks::load(benchmark, Some(file), fetching)?],
            (None, Some(benchmark)) => vec![benchmarks::load(benchmark, None, fetching)?],
            _ if name == PROBE => vec![probe()?],
            _ => expand(name)?.iter().map(|path| read(path)).collect::<Result<Vec<_>>>()?,
        };
        tasks.extend(found);
    }
    let mut paths: HashMap<&str, &str> = HashMap::new();
    for task in &tasks {
        if let Some(other) = paths.insert(&task.name, &task.path) {
            let (name, path) = (&task.name, &task.path);
            return Err(Error::usage(format!("two tasks are called `{name}`: {other} and {path}"))
                .cure("A task is named after its file: rename one of them, or evaluate it into another folder."));
        }
    }
    Ok(tasks)
}

fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let unknown = || {
        Error::usage(format!("there is no task and no file called `{pattern}`")).cure(format!(
            "--tasks takes `{PROBE}` (questions that ship with the program), benchmarks by name (`--tasks list` shows them), and files: \
             .uniform.jsonl, .jsonl with `context` and `continuation` or with `text`, .txt."
        ))
    };
    let paths = glob::glob(pattern).map_err(|cause| unknown().caused_by(cause))?;
    let paths: Vec<PathBuf> = paths.filter_map(|path| path.ok()).filter(|path| path.is_file()).collect();
    if paths.is_empty() { Err(unknown()) } else { Ok(paths) }
}
