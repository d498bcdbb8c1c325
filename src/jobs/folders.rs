//! Identifies what a folder holds that the user named where data or a score run was expected, and suggests what to do with it.

use std::path::{Path, PathBuf};

use super::train;
use super::work::{COMPARISON_FILE, OPTIONS_FILE};
use crate::error::Error;
use crate::eval::results::{SCORES_FILE, read_scores};
use crate::format::count;
use crate::table::{PARTS_FOLDER, TOKENS_FILE};

/// Whether the folder holds finished scores, which can be sorted again. If a run was killed while joining its parts, sorting joins them.
pub(crate) fn holds_scores(folder: &Path) -> bool {
    folder.join("run.json").is_file() && [TOKENS_FILE, PARTS_FOLDER].iter().any(|name| folder.join(name).exists())
}

/// Names for folders side by side: the last components of their paths, as many as are needed to tell them apart. A repeated folder gets a number.
pub(crate) fn names<P: AsRef<Path>>(folders: &[P]) -> Vec<String> {
    let wholes: Vec<PathBuf> = folders.iter().map(|folder| whole(folder.as_ref())).collect();
    // The last `n` components of a path.
    let end = |path: &Path, n: usize| {
        let names: Vec<_> = path.iter().collect();
        names[names.len().saturating_sub(n)..].iter().collect::<PathBuf>()
    };
    let name = |idx: usize, path: &PathBuf| {
        let is_alone = |n: &usize| wholes.iter().all(|other| other == path || end(other, *n) != end(path, *n));
        let own = (1..=path.iter().count()).find(is_alone).map_or_else(|| path.clone(), |n| end(path, n));
        match wholes[..idx].iter().filter(|other| *other == path).count() {
            0 => own.display().to_string(),
            n_before => format!("{} ({})", own.display(), n_before + 1),
        }
    };
    wholes.iter().enumerate().map(|(idx, path)| name(idx, path)).collect()
}

/// The canonical path; a path that does not exist stays as it is.
pub(crate) fn whole(path: &Path) -> PathBuf {
    path.canonicalize().unwrap_or_else(|_| path.to_owned())
}

/// The folders of finished scores that a name or a glob matches, ordered by name.
pub(crate) fn runs_of(named: &str) -> Vec<PathBuf> {
    let path = PathBuf::from(named);
    if path.exists() {
        return if path.is_dir() && holds_scores(&path) { vec![path] } else { Vec::new() };
    }
    let matched = glob::glob(named).into_iter().flatten().flatten();
    matched.filter(|path| path.is_dir() && holds_scores(path)).collect()
}

/// Whether a folder given as data is empty or holds something else that this program recognises.
pub(crate) fn is_no_data(folder: &Path) -> bool {
    let known = [OPTIONS_FILE, SCORES_FILE, COMPARISON_FILE, PARTS_FOLDER, "config.json", "adapter_config.json"];
    let is_empty = std::fs::read_dir(folder).is_ok_and(|mut entries| entries.next().is_none());
    is_empty || known.iter().any(|name| folder.join(name).exists())
}

/// The error for a path without finished scores where a score run is expected; it names what is there instead.
pub(crate) fn not_scores(path: &Path) -> Error {
    let cure = "Name the folder of a finished run: `diagnose DATASET` scores data and writes one under runs/.";
    let of = |what: &str| Error::usage(what.to_owned()).at(path);
    if path.is_dir() {
        return known(path).unwrap_or_else(|| of("this folder holds no finished run (no run.json)").cure(cure));
    }
    match path.try_exists() {
        Ok(true) => of("expected a run folder, found a file").cure(match path.parent() {
            Some(folder) if holds_scores(folder) => format!("Name the folder: {}.", folder.display()),
            _ => format!("If it holds data, `diagnose {}` scores it and writes a run folder under runs/.", path.display()),
        }),
        Ok(false) => of("there is no such folder").cure(cure),
        Err(error) => of("cannot look for the folder").caused_by(error),
    }
}

/// The error for a folder given as data for which [`is_no_data`] holds.
pub(crate) fn not_data(folder: &Path) -> Error {
    known(folder).unwrap_or_else(|| {
        Error::usage("this folder holds neither a finished run (no run.json) nor data")
            .at(folder)
            .cure("Name data files, such as `folder/*.jsonl`, or the folder of a finished run.")
    })
}

/// The error for a folder that holds something else that this program recognises, if it does.
fn known(folder: &Path) -> Option<Error> {
    let is_there = |name: &str| folder.join(name).exists();
    let of = |what: &str| Error::usage(what.to_owned()).at(folder);
    let within = |name: &str| folder.join(name).display().to_string();
    if is_there(OPTIONS_FILE) {
        let Ok(record) = train::read_record(&folder.join(train::RUN_FILE)) else {
            let error = of("this is the folder of an unfinished training run, not of scores");
            return Some(error.cure(format!("`diagnose train --config {}` resumes it.", within(OPTIONS_FILE))));
        };
        let again = match is_there("before") {
            true => format!(" `diagnose {}` sorts the base model's scores of its data.", within("before")),
            false => String::new(),
        };
        let what = format!(
            "this is the folder of a training run ({}, {} from {}), not of scores",
            record.options.method,
            count(record.steps, "step"),
            record.model.name
        );
        return Some(of(&what).cure(format!(
            "`diagnose DATASET --model {}` scores data with the trained model; metrics.jsonl and maps/ show the training.{again}",
            folder.join(record.result.file_name().unwrap_or_default()).display()
        )));
    }
    if is_there(SCORES_FILE) {
        let tasks = read_scores(folder).map(|scores| scores.tasks.into_keys().collect::<Vec<_>>().join(", "));
        let what = format!("this is the folder of an evaluation ({}), not of scores", tasks.unwrap_or_default());
        return Some(of(&what).cure("`diagnose eval --out` adds tasks to it; `diagnose diff` compares it with another."));
    }
    let (what, cure) = if is_there(COMPARISON_FILE) {
        ("this is the folder of a comparison, not of scores", "Read its diff.md.".to_owned())
    } else if is_there(PARTS_FOLDER) {
        ("this is the folder of a run that was not finished", "Run the command that started it again.".to_owned())
    } else if is_there("config.json") || is_there("adapter_config.json") {
        ("this is a model, not data", format!("`diagnose DATASET --model {}` scores data with it.", folder.display()))
    } else {
        return None;
    };
    Some(of(what).cure(cure))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_stands_in_the_place_of_a_run_is_told_what_it_is() {
        let folder = tempfile::tempdir().unwrap();
        let of = |name: &str| not_scores(&folder.path().join(name)).to_string();
        for name in ["empty", "model", "run"] {
            std::fs::create_dir(folder.path().join(name)).unwrap();
        }
        for name in ["rows.jsonl", "model/config.json", "run/run.json", "run/tokens.parquet", "run/view.html"] {
            std::fs::write(folder.path().join(name), "{}").unwrap();
        }
        for (name, what, cure) in [
            ("nope", "there is no such folder", "Name the folder of a finished run"),
            ("rows.jsonl", "found a file", "rows.jsonl` scores it"),
            ("run/view.html", "found a file", "/run."),
            ("empty", "holds no finished run", "Name the folder of a finished run"),
            ("model", "this is a model", "--model"),
        ] {
            let told = of(name);
            assert!(told.contains(what) && told.contains(cure) && !told.contains("Name data files"), "{name}: {told}");
        }
        assert!(not_data(&folder.path().join("empty")).to_string().contains("Name data files"));
    }

    #[test]
    fn folders_of_one_name_are_told_apart() {
        let check = |folders: &[&str], expected: &[&str]| assert_eq!(names(folders), expected, "{folders:?}");
        check(&["runs/a", "runs/b"], &["a", "b"]);
        check(&["x/run", "y/run", "y/other"], &["x/run", "y/run", "other"]);
        check(&["1/x/run", "2/x/run", "2/y/run"], &["1/x/run", "2/x/run", "y/run"]);
        check(&["x/run", "x/run", "run"], &["x/run", "x/run (2)", "run"]);
        let folder = tempfile::tempdir().unwrap();
        for name in ["x/run", "y/run"] {
            std::fs::create_dir_all(folder.path().join(name)).unwrap();
        }
        let given = ["x/run", "y/../y/run/", "y/run/."].map(|name| folder.path().join(name));
        assert_eq!(names(&given), ["x/run", "y/run", "y/run (2)"]);
    }
}
