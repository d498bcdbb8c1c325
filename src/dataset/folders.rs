//! Finds the data files of a folder, and selects those of its training split.
//!
//! ```text
//! save_to_disk       dataset_dict.json, train/state.json, train/data-*.arrow
//! a clone of the Hub README.md (its configurations: card.rs), data/train-00000-of-00001.parquet
//! a folder of files  a.jsonl, b.jsonl.gz, more/c.csv
//! ```
//!
//! Where files or folders are named after splits, only those named `train` are read, lest a test set be trained on; a note lists the others. Files
//! about data that this program itself has written are left out, too. Symbolic links are followed, and what they reach a second time is read once.

use std::collections::{BTreeSet, HashSet};
use std::fs::{self, File};
use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::card;
use crate::error::{Context, Error, Result};
use crate::files::{file_name, identified, read_json};
use crate::format::counted;
use crate::provenance::{ROLLOUTS_FILE, RUN_FILE, is_own_folder};

pub(super) const CURE: &str = "Data files end in .jsonl, .json, .ndjson, .csv, .tsv, .parquet or .arrow, optionally compressed; name other files individually.";

const EXTENSIONS: [&str; 9] = ["jsonl", "json", "ndjson", "jsonlines", "csv", "tsv", "parquet", "arrow", "feather"];
const PACKED: [&str; 4] = ["gz", "zst", "bz2", "xz"];
/// Extensions of archives, which are not opened inside a folder.
const ARCHIVES: [&str; 7] = ["zip", "tar", "tgz", "7z", "rar", "xlsx", "xls"];
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
/// Names of splits that are not for training.
const OTHER_SPLITS: [&str; 10] =
    ["test", "testing", "validation", "valid", "val", "dev", "eval", "evaluation", "heldout", "holdout"];

/// Returns the data files of a folder in alphabetical order, or in the order of its card.
pub(super) fn data_files(folder: &Path, notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    if is_own_folder(folder) {
        return answers(folder);
    }
    let Found { files, links: _, seen: _, mut again, runs, own, archives } = Found::of(folder)?;
    let mut note = |paths: &[PathBuf], one: &str, several: &str, cure: &str| {
        if let Some(first) = paths.iter().min() {
            let what = counted(paths.len() as u64, one, several);
            notes.push(format!("{}: {what}, such as {}; {cure}", folder.display(), folder.join(first).display()));
        }
    };
    let (one, several) = ("run folder of this program was left out", "run folders of this program were left out");
    note(&runs, one, several, "name a folder of rollouts to read them");
    let (one, several) = ("file that this program wrote about data was", "files that this program wrote about data were");
    note(&own, &format!("{one} left out"), &format!("{several} left out"), "such files hold no rows");
    let (one, several) = ("archive or workbook was left out", "archives or workbooks were left out");
    note(&archives, one, several, "name a zip archive to read it, and unpack others");
    let named = card::for_training(folder, &files)?;
    if let Some(named) = &named {
        let others: Vec<PathBuf> = files.iter().filter(|file| !named.files.contains(file)).cloned().collect();
        let which = format!("that README.md does not list for training in the configuration `{}`", named.config);
        let (one, several) = (format!("data file {which} was left out"), format!("data files {which} were left out"));
        note(&others, &one, &several, "name what to read");
    }
    let (files, is_chosen) = named.map_or((files, false), |named| (named.files, named.is_split));
    if files.is_empty() {
        return Err(Error::usage("this folder holds neither a finished run (no run.json) nor data files").at(folder).cure(CURE));
    }
    let mut kept = files;
    if !is_chosen {
        let mut are_kept = for_training(folder, &kept, notes).into_iter();
        kept.retain(|_| are_kept.next().unwrap_or(true));
        refuse_several(folder, &kept)?;
    }
    // Files with a real path in the folder come before those behind links.
    let mut seen = HashSet::new();
    kept.retain(|file| {
        let is_new = seen.insert(identified(&folder.join(file)));
        again.extend((!is_new).then(|| file.clone()));
        is_new
    });
    if !is_chosen {
        kept.sort();
    }
    if let Some(first) = again.iter().min() {
        let what = counted(again.len() as u64, "name is", "names are");
        let first = folder.join(first);
        notes.push(format!(
            "{}: {what} reached more than once by symbolic links and read once, such as {}",
            folder.display(),
            first.display()
        ));
    }
    Ok(kept.into_iter().map(|file| folder.join(file)).collect())
}

/// The contents of a folder, as paths relative to it.
#[derive(Default)]
struct Found {
    /// Data files; those behind links come last.
    files: Vec<PathBuf>,
    /// Links that are still to be followed. They are followed last, so that files inside the folder keep their own paths.
    links: BTreeSet<PathBuf>,
    /// The identities of the folders that have been visited.
    seen: HashSet<PathBuf>,
    /// Links to folders that had already been visited.
    again: Vec<PathBuf>,
    runs: Vec<PathBuf>,
    own: Vec<PathBuf>,
    archives: Vec<PathBuf>,
}

impl Found {
    fn of(folder: &Path) -> Result<Found> {
        let mut found = Found::default();
        found.add_folder(folder, Path::new(""))?;
        found.files.sort();
        while let Some(link) = found.links.pop_first() {
            let n_before = found.files.len();
            match folder.join(&link).is_dir() {
                true => found.add_folder(folder, &link)?,
                // A dangling link means missing data, which opening it reports.
                false => found.add_file(folder, link),
            }
            found.files[n_before..].sort();
        }
        Ok(found)
    }

    fn add_folder(&mut self, folder: &Path, inside: &Path) -> Result<()> {
        let path = folder.join(inside);
        if !self.seen.insert(identified(&path)) {
            self.again.push(inside.to_owned());
            return Ok(());
        }
        if self.seen.len() > 1 && is_own_folder(&path) {
            self.runs.push(inside.to_owned());
            return Ok(());
        }
        for entry in fs::read_dir(&path).context_at(&path, "cannot read the folder")? {
            let path = entry.context_at(&path, "cannot read the folder")?.path();
            let name = file_name(&path);
            let inside = inside.join(&name);
            match name.starts_with('.') {
                true => {}
                false if path.is_symlink() => _ = self.links.insert(inside),
                false if path.is_dir() => self.add_folder(folder, &inside)?,
                false => self.add_file(folder, inside),
            }
        }
        Ok(())
    }

    fn add_file(&mut self, folder: &Path, inside: PathBuf) {
        let path = folder.join(&inside);
        let extension = path.extension().unwrap_or_default().to_string_lossy().to_lowercase();
        let is_archive = ARCHIVES.contains(&extension.as_str()) || file_name(&path).to_lowercase().contains(".tar.");
        if is_archive {
            self.archives.push(inside);
        } else if is_data_file(&inside) && (path.is_file() || path.is_symlink()) {
            let list = if file_about_data(&path).is_some() { &mut self.own } else { &mut self.files };
            list.push(inside);
        }
    }
}

/// Returns the rollouts in a run folder; runs of other kinds hold no data.
fn answers(run: &Path) -> Result<Vec<PathBuf>> {
    let answers = run.join(ROLLOUTS_FILE);
    if answers.is_file() {
        return Ok(vec![answers]);
    }
    let cure = match &data_of(run)[..] {
        [] => "Name the data files themselves.".to_owned(),
        [file] => format!("Name the data files themselves; that of the run is {file}."),
        [file, others @ ..] => {
            let others = counted(others.len() as u64, "other", "others");
            format!("Name the data files themselves; those of the run are {file} and {others}, which its run.json lists.")
        }
    };
    Err(Error::usage("this is a run folder of this program, not data").at(run).cure(cure))
}

/// The data files that a run has read, according to its record; none if it has no record, or one without them.
fn data_of(run: &Path) -> Vec<String> {
    let record = read_json::<Value>(&run.join(RUN_FILE)).ok().flatten().unwrap_or_default();
    let files = record["data"].as_array().into_iter().flatten();
    files.filter_map(|file| file["path"].as_str()).map(str::to_owned).collect()
}

/// Prefixes (without white space) of files by this program that lie beside data but hold no rows, with their descriptions.
pub(super) const ABOUT_DATA: [(&[u8], &str); 2] = [
    (b"{\"changes\":1,\"run\":", CHANGES),
    (b"{\"decisions\":1,\"run\":", "decisions about a run, which `diagnose export --decisions` takes"),
];

/// Returns what a file with these first bytes describes, if it is a file about data rather than one of data.
pub(super) fn about_data(head: &[u8]) -> Option<&'static str> {
    let begin: Vec<u8> = head.iter().take(64).copied().filter(|byte| !byte.is_ascii_whitespace()).collect();
    ABOUT_DATA.iter().find(|(mark, _)| begin.starts_with(mark)).map(|(_, name)| *name)
}

const CHANGES: &str = "the changes that `diagnose export` has made to data";

/// What the file describes, as for [`about_data`].
fn file_about_data(path: &Path) -> Option<&'static str> {
    let mut head = Vec::new();
    // Whoever reads the file later reports an unreadable one.
    File::open(path).and_then(|file| file.take(64).read_to_end(&mut head)).ok()?;
    about_data(&head)
}

/// Whether the file lists the changes that an export made.
pub(crate) fn are_changes(path: &Path) -> bool {
    file_about_data(path) == Some(CHANGES)
}

fn has_word(inside: &Path, names: &[&str]) -> bool {
    let words = inside.to_string_lossy().to_lowercase();
    // As in `datasets`, a number may follow: train1.jsonl.
    words.split(|c: char| !c.is_ascii_alphabetic()).any(|word| names.contains(&word))
}

fn is_train(inside: &Path) -> bool {
    has_word(inside, &["train", "training"])
}

/// Returns which files of a folder or an archive are read, by their relative paths: not those of test sets. A note lists what is left out.
pub(super) fn for_training(of: &Path, inside: &[PathBuf], notes: &mut Vec<String>) -> Vec<bool> {
    let is_left_out = |path: &PathBuf| !is_train(path) && has_word(path, &OTHER_SPLITS);
    let left_out: Vec<&PathBuf> = inside.iter().filter(|path| is_left_out(path)).collect();
    let Some(first) = left_out.first().filter(|_| inside.iter().any(|path| is_train(path))) else {
        return vec![true; inside.len()];
    };
    let (one, several) = ("file of another split than train was", "files of other splits than train were");
    notes.push(format!(
        "{}: {} left out, such as {}; name what to read",
        of.display(),
        counted(left_out.len() as u64, one, several),
        of.join(first).display()
    ));
    inside.iter().map(|path| !is_left_out(path)).collect()
}

/// Refuses a Hub data set with several configurations or splits for training. `datasets` loads one at a time, since several hold the same rows in
/// other forms (GSM8K's `main` and `socratic`), or rows for other kinds of training (UltraChat's `train_sft` and `train_gen`).
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

/// Whether the name is that of a data file.
pub(super) fn is_data_file(path: &Path) -> bool {
    let name = file_name(path).to_lowercase();
    // `datasets` caches the results of `map` beside the data.
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

    /// Returns the names that are read, and whether there are notes.
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
        // A Hub data set, as its README.md shows.
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
