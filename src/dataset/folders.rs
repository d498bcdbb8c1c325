//! A folder as a data set: which of the files in it are data, and which of its splits is for training.
//!
//! ```text
//! save_to_disk       dataset_dict.json, train/state.json, train/data-*.arrow
//! a clone of the hub README.md, data/train-00000-of-00001.parquet
//! a folder of files  a.jsonl, b.jsonl.gz, more/c.csv
//! ```
//!
//! Where files or folders are named after splits, those named `train` are read, and the others are said to be left out: nobody
//! wants his test set trained on.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::files::file_name;

pub(super) const CURE: &str =
    "Data files end in .jsonl, .json, .ndjson, .csv, .tsv, .parquet or .arrow, also packed; others can be named one by one.";

const EXTENSIONS: [&str; 9] = ["jsonl", "json", "ndjson", "jsonlines", "csv", "tsv", "parquet", "arrow", "feather"];
const PACKED: [&str; 4] = ["gz", "zst", "bz2", "xz"];
/// Files about the data.
const DESCRIPTIONS: [&str; 7] = [
    "dataset_dict.json",
    "dataset_info.json",
    "dataset_infos.json",
    "state.json",
    "config.json",
    "generation_config.json",
    "tokenizer_config.json",
];
/// What the parts of a data set that are not for training are called.
const OTHER_SPLITS: [&str; 8] = ["test", "validation", "valid", "val", "dev", "eval", "heldout", "holdout"];

/// The data files of a folder in alphabetical order.
pub(super) fn data_files(folder: &Path, notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    let mut paths = Vec::new();
    add_files(folder, 0, &mut paths)?;
    paths.sort();
    if paths.is_empty() {
        return Err(Error::usage("this folder holds neither a finished run (no run.json) nor data files").at(folder).cure(CURE));
    }
    let inside: Vec<PathBuf> = paths.iter().map(|path| path.strip_prefix(folder).unwrap_or(path).to_owned()).collect();
    let are_kept = for_training(folder, &inside, notes);
    let kept: Vec<PathBuf> = inside.into_iter().zip(&are_kept).filter(|(_, kept)| **kept).map(|(path, _)| path).collect();
    refuse_several(folder, &kept)?;
    Ok(kept.into_iter().map(|path| folder.join(path)).collect())
}

fn has_word(inside: &Path, names: &[&str]) -> bool {
    let words = inside.to_string_lossy().to_lowercase();
    words.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| names.contains(&word))
}

fn is_train(inside: &Path) -> bool {
    has_word(inside, &["train", "training"])
}

/// Which of the files of a folder or an archive are read, by their names in it: nobody wants his test set trained on. What is left out is noted.
pub(super) fn for_training(of: &Path, inside: &[PathBuf], notes: &mut Vec<String>) -> Vec<bool> {
    let is_left_out = |path: &PathBuf| !is_train(path) && has_word(path, &OTHER_SPLITS);
    let left_out: Vec<&PathBuf> = inside.iter().filter(|path| is_left_out(path)).collect();
    let Some(first) = left_out.first().filter(|_| inside.iter().any(|path| is_train(path))) else {
        return vec![true; inside.len()];
    };
    notes.push(format!(
        "{}: {} files of other splits than train were left out, such as {}; name them to read them",
        of.display(),
        left_out.len(),
        of.join(first).display()
    ));
    inside.iter().map(|path| !is_left_out(path)).collect()
}

/// A data set of the hub has one configuration or split at a time read by `datasets`: several hold the same rows in other forms (GSM8K's
/// `main` and `socratic`), or rows for other kinds of training (UltraChat's `train_sft` and `train_gen`).
fn refuse_several(folder: &Path, inside: &[PathBuf]) -> Result<()> {
    let readme = std::fs::read_to_string(folder.join("README.md")).unwrap_or_default();
    let head = readme.strip_prefix("---").and_then(|rest| rest.split("\n---").next()).unwrap_or_default();
    if !head.lines().any(|line| line.starts_with("configs:") || line.starts_with("dataset_info:")) {
        return Ok(());
    }
    let splits: BTreeSet<String> = inside.iter().filter(|path| is_train(path)).map(|path| split_of(path)).collect();
    if splits.len() < 2 {
        return Ok(());
    }
    let names: Vec<&str> = splits.iter().map(String::as_str).collect();
    let pattern = folder.join(format!("{}*", names[0]));
    Err(Error::usage(format!("the data set has several configurations or splits to train on: {}", names.join(", ")))
        .at(folder)
        .cure(format!("Name one of them, such as '{}'.", pattern.display())))
}

/// The path up to the name of its split: `main/train` of `main/train-00000-of-00001.parquet`.
fn split_of(inside: &Path) -> String {
    let text = inside.to_string_lossy();
    let at = text.to_lowercase().rfind("train").filter(|&at| text.is_char_boundary(at)).unwrap_or(0);
    let n = text[at..].find(|c: char| !c.is_alphanumeric() && c != '_').unwrap_or(text.len() - at);
    text[..at + n].to_owned()
}

fn add_files(folder: &Path, depth: usize, paths: &mut Vec<PathBuf>) -> Result<()> {
    const MAX_DEPTH: usize = 8;
    for entry in std::fs::read_dir(folder).context_at(folder, "cannot read the folder")? {
        let path = entry.context_at(folder, "cannot read the folder")?.path();
        let name = file_name(&path);
        if name.starts_with('.') {
            continue;
        }
        if path.is_dir() && depth < MAX_DEPTH {
            add_files(&path, depth + 1, paths)?;
        } else if path.is_file() && is_data_file(&path) {
            paths.push(path);
        }
    }
    Ok(())
}

/// Is the file one of data, by its name?
pub(super) fn is_data_file(path: &Path) -> bool {
    let name = file_name(path).to_lowercase();
    // `datasets` keeps what `map` made beside what it was made of.
    let is_cache = name.starts_with("cache-") && name.ends_with(".arrow");
    let is_foreign = path.components().any(|part| part.as_os_str() == "__MACOSX") || name.starts_with("._");
    if DESCRIPTIONS.contains(&name.as_str()) || is_cache || is_foreign {
        return false;
    }
    let mut parts = name.rsplit('.');
    let last = parts.next().unwrap_or_default();
    let extension = if PACKED.contains(&last) { parts.next().unwrap_or_default() } else { last };
    EXTENSIONS.contains(&extension)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The names that are read, and whether something is said.
    fn read(files: &[&str]) -> (Vec<String>, bool) {
        let folder = tempfile::tempdir().unwrap();
        for file in files {
            let path = folder.path().join(file);
            std::fs::create_dir_all(path.parent().unwrap()).unwrap();
            std::fs::write(path, "x").unwrap();
        }
        let mut notes = Vec::new();
        let paths = data_files(folder.path(), &mut notes).unwrap();
        let names = paths.iter().map(|path| path.strip_prefix(folder.path()).unwrap().display().to_string()).collect();
        (names, !notes.is_empty())
    }

    #[test]
    fn data_files_are_told_from_others_and_train_from_test() {
        let check = |files: &[&str], expected: &[&str], is_said: bool| {
            assert_eq!(read(files), (expected.iter().map(|name| (*name).to_owned()).collect(), is_said));
        };
        check(&["b.jsonl", "a.csv.gz", "README.md", "x/c.JSON", ".git/d.jsonl"], &["a.csv.gz", "b.jsonl", "x/c.JSON"], false);
        check(
            &[
                "dataset_dict.json",
                "train/state.json",
                "train/data-00000-of-00001.arrow",
                "train/cache-1.arrow",
                "test/data-0.arrow",
            ],
            &["train/data-00000-of-00001.arrow"],
            true,
        );
        check(&["data/train-0.parquet", "data/test-0.parquet", "extra.jsonl"], &["data/train-0.parquet", "extra.jsonl"], true);
        check(&["test.jsonl", "latest.jsonl"], &["latest.jsonl", "test.jsonl"], false);
        // A data set of the hub, whose README.md says so.
        let hub = |files: &[&str]| {
            let folder = tempfile::tempdir().unwrap();
            for file in files {
                let path = folder.path().join(file);
                std::fs::create_dir_all(path.parent().unwrap()).unwrap();
                std::fs::write(path, "x").unwrap();
            }
            std::fs::write(folder.path().join("README.md"), "---\nlicense: mit\nconfigs:\n- config_name: main\n---\n# Data\n")
                .unwrap();
            data_files(folder.path(), &mut Vec::new()).map(|paths| paths.len()).map_err(|error| error.to_string())
        };
        assert_eq!(hub(&["data/train-0-of-2.parquet", "data/train-1-of-2.parquet", "data/test-0-of-1.parquet"]), Ok(2));
        let error = hub(&["main/train-0.parquet", "socratic/train-0.parquet", "main/test-0.parquet"]).unwrap_err();
        assert!(error.contains("main/train, socratic/train") && error.contains("main/train*'"), "{error}");
        let error = hub(&["data/train_sft-0.parquet", "data/train_gen-0.parquet"]).unwrap_err();
        assert!(error.contains("data/train_gen, data/train_sft"), "{error}");
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(data_files(empty.path(), &mut Vec::new()).unwrap_err().exit_code(), 2);
    }
}
