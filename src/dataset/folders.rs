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
    let is_of = |path: &Path, splits: &[&str]| {
        let inside = path.strip_prefix(folder).unwrap_or(path);
        let words = inside.to_string_lossy().to_lowercase();
        words.split(|c: char| !c.is_ascii_alphanumeric()).any(|word| splits.contains(&word))
    };
    let is_train = |path: &PathBuf| is_of(path, &["train", "training"]);
    let is_left_out = |path: &PathBuf| !is_train(path) && is_of(path, &OTHER_SPLITS);
    if paths.iter().any(is_train) && paths.iter().any(is_left_out) {
        let (left_out, kept): (Vec<PathBuf>, Vec<PathBuf>) = paths.into_iter().partition(is_left_out);
        notes.push(format!(
            "{}: {} files of other splits than train were left out, such as {}; name them to read them",
            folder.display(),
            left_out.len(),
            left_out.first().map(|path| path.display().to_string()).unwrap_or_default()
        ));
        paths = kept;
    }
    Ok(paths)
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
        let empty = tempfile::tempdir().unwrap();
        assert_eq!(data_files(empty.path(), &mut Vec::new()).unwrap_err().exit_code(), 2);
    }
}
