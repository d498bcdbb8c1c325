//! Loads the tasks that the user names after `--tasks`.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::tasks::{Examples, PROBE, Task, probe, read};
use super::{benchmarks, rows};
use crate::error::{Error, Result};
use crate::fetch::Progress;

/// Loads the named tasks: `probe`, benchmarks, benchmarks with their files (`NAME=FILE`), files, and globs of files.
pub fn load(names: &[String], fetching: Progress) -> Result<Vec<Task>> {
    let mut tasks: Vec<Task> = Vec::new();
    for name in names {
        let with_file = name.split_once('=').and_then(|(name, file)| Some((benchmarks::find(name)?, Path::new(file))));
        let found = match (with_file, benchmarks::find(name)) {
            _ if Path::new(name).is_file() => vec![read_file(Path::new(name))?],
            (Some((benchmark, file)), _) => vec![benchmarks::load(benchmark, Some(file), fetching)?],
            (None, Some(benchmark)) => vec![benchmarks::load(benchmark, None, fetching)?],
            _ if name == PROBE => vec![probe()?],
            _ => expand(name)?.iter().map(|path| read_file(path)).collect::<Result<Vec<_>>>()?,
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

/// Gives the only task its examples: the first rows of a file in the task's own format, published or uniform.
pub fn examples_from(tasks: &mut [Task], path: &Path) -> Result<()> {
    let [task] = tasks else {
        return Err(Error::usage(format!("--fewshot-from provides examples for one task, but there are {}", tasks.len()))
            .cure("Evaluate that task in a separate command."));
    };
    let from = match benchmarks::find(&task.name) {
        Some(benchmark) => benchmarks::load(benchmark, Some(path), &|_, _, _| ())?,
        None => read(path)?,
    };
    if from.kind != task.kind {
        return Err(Error::usage(format!("the examples of --fewshot-from are of a different kind than `{}`", task.name))
            .at(path)
            .cure("Name a file whose rows have the same keys as those of the task."));
    }
    task.examples = Examples::File(from.items, from.sha256);
    Ok(())
}

/// Reads questions, a text, or training rows.
fn read_file(path: &Path) -> Result<Task> {
    if rows::holds_rows(path) { rows::read(path) } else { read(path) }
}

fn expand(pattern: &str) -> Result<Vec<PathBuf>> {
    let unknown = || {
        Error::usage(format!("there is no task or file called `{pattern}`")).cure(format!(
            "--tasks takes `{PROBE}` (questions that ship with the program), benchmarks by name (`--tasks list` shows them), and files: \
             .uniform.jsonl, .jsonl with `context` and `continuation`, with `prompt` and `answer`, or with `text`, .txt, training rows."
        ))
    };
    let paths = glob::glob(pattern).map_err(|cause| unknown().caused_by(cause))?;
    let paths: Vec<PathBuf> = paths.filter_map(|path| path.ok()).filter(|path| path.is_file()).collect();
    if paths.is_empty() { Err(unknown()) } else { Ok(paths) }
}
