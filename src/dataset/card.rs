//! Reads the card of a Hugging Face Hub data set: the front matter of its README.md, which names the files for training. `datasets` loads a single
//! configuration: the only one, the one called `default`, or the one with `default: true`.
//!
//! ```text
//! configs:
//! - config_name: main
//!   default: true
//!   data_files:                     a pattern, a list of patterns, or patterns for each split
//!   - split: train
//!     path: main/train-*
//! - config_name: other
//!   data_dir: other                 a folder, whose splits follow from file names
//! ```
//!
//! Not supported: files outside the folder, and other settings of a configuration.

use std::path::{Path, PathBuf};

use glob::{MatchOptions, Pattern};
use serde::Deserialize;

use crate::error::{Context, Error, Result};
use crate::format::beginning;

/// The configuration selected by a card.
pub(super) struct Named {
    pub config: String,
    /// The files of the folder that belong to it.
    pub files: Vec<PathBuf>,
    /// Whether `files` are the training split; otherwise their names decide which of them are.
    pub is_split: bool,
}

#[derive(Deserialize)]
struct Card {
    configs: Option<Vec<Config>>,
}

#[derive(Deserialize)]
struct Config {
    config_name: String,
    default: Option<bool>,
    data_files: Option<DataFiles>,
    data_dir: Option<String>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum DataFiles {
    Pattern(String),
    Patterns(Vec<String>),
    Splits(Vec<Split>),
}

#[derive(Deserialize)]
struct Split {
    split: String,
    path: Patterns,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum Patterns {
    One(String),
    Several(Vec<String>),
}

impl Patterns {
    fn list(&self) -> &[String] {
        match self {
            Patterns::One(pattern) => std::slice::from_ref(pattern),
            Patterns::Several(patterns) => patterns,
        }
    }
}

impl Config {
    /// The splits and their patterns, or `None` if file names decide the splits.
    fn splits(&self) -> Option<Vec<(&str, &[String])>> {
        const TRAIN: &str = "train";
        Some(match self.data_files.as_ref()? {
            DataFiles::Pattern(pattern) => vec![(TRAIN, std::slice::from_ref(pattern))],
            DataFiles::Patterns(patterns) => vec![(TRAIN, patterns)],
            DataFiles::Splits(splits) => splits.iter().map(|split| (split.split.as_str(), split.path.list())).collect(),
        })
    }

    /// Returns a pattern of files of this configuration that the user is likely to want.
    fn pattern(&self) -> &str {
        let splits = self.splits().unwrap_or_default();
        let split = splits.iter().find(|(split, _)| *split == "train").or(splits.first());
        let pattern = split.and_then(|(_, patterns)| patterns.first()).or(self.data_dir.as_ref());
        pattern.map_or("*", String::as_str)
    }
}

/// Returns what the folder's card selects for training among `files`, which are relative to the folder. Returns `None` if there is no card, or it
/// has no configurations.
pub(super) fn for_training(folder: &Path, files: &[PathBuf]) -> Result<Option<Named>> {
    let readme = folder.join("README.md");
    let Ok(text) = std::fs::read_to_string(&readme) else { return Ok(None) };
    let Some(block) = configs(&text) else { return Ok(None) };
    let card: Card = serde_saphyr::from_str(&block)
        .context_at(&readme, "cannot read `configs`, which says what part of the data set is for training")
        .map_err(|error| error.cure("Correct it, or name the data files instead of the folder."))?;
    let configs = card.configs.unwrap_or_default();
    let refuse = |message: String, pattern: &str| {
        let cure = format!("Name the files of one, such as '{}'.", folder.join(pattern).display());
        Err(Error::usage(message).at(folder).cure(cure))
    };
    let is_default = |config: &&Config| configs.len() == 1 || config.config_name == "default" || config.default == Some(true);
    let defaults: Vec<&Config> = configs.iter().filter(is_default).collect();
    let config = match (&configs[..], &defaults[..]) {
        ([], _) => return Ok(None),
        (_, [config]) => *config,
        ([first, ..], _) => {
            let names: Vec<&str> = configs.iter().map(|config| config.config_name.as_str()).collect();
            let which = if defaults.is_empty() { "none" } else { "several" };
            let names = names.join(", ");
            let message = format!("the data set has several configurations, and README.md makes {which} the default: {names}");
            return refuse(message, first.pattern());
        }
    };
    let name = config.config_name.clone();
    let Some(splits) = config.splits() else {
        let inner = config.data_dir.as_deref().unwrap_or_default();
        let files = files.iter().filter(|file| file.starts_with(inner)).cloned().collect();
        return Ok(Some(Named { config: name, files, is_split: false }));
    };
    let (split, patterns) = match (&splits[..], splits.iter().find(|(split, _)| *split == "train")) {
        (_, Some(train)) | ([train], None) => *train,
        _ => {
            let names: Vec<&str> = splits.iter().map(|(split, _)| *split).collect();
            return refuse(format!("the data set has the splits {}, but no `train`", names.join(", ")), config.pattern());
        }
    };
    let mut named: Vec<PathBuf> = Vec::new();
    for pattern in patterns {
        let matched = matched(pattern, files).map_err(|error| error.at(folder))?;
        if matched.is_empty() {
            let shown = beginning(pattern, 80);
            let message = format!("README.md names `{shown}` for the split {split}, but there is no such data file");
            let cure = "Download what is missing, or name the data files instead of the folder.";
            return Err(Error::usage(message).at(folder).cure(cure));
        }
        let new: Vec<PathBuf> = matched.into_iter().filter(|file| !named.contains(file)).collect();
        named.extend(new);
    }
    Ok(Some(Named { config: name, files: named, is_split: true }))
}

/// Returns the `configs` entry of the front matter alone, so that errors in other entries do not matter.
fn configs(readme: &str) -> Option<String> {
    let mut lines = readme.lines();
    if lines.next() != Some("---") {
        return None;
    }
    let lines: Vec<&str> = lines.collect();
    let end = lines.iter().position(|line| *line == "---")?;
    let begin = lines[..end].iter().position(|line| line.starts_with("configs:"))?;
    let goes_on = |line: &&&str| line.is_empty() || line.starts_with([' ', '\t', '-', '#', ']', '}']);
    let rest = lines[begin + 1..end].iter().take_while(goes_on);
    Some([lines[begin]].iter().chain(rest).map(|line| format!("{line}\n")).collect())
}

/// Returns the files whose relative paths match, in alphabetical order.
fn matched(pattern: &str, files: &[PathBuf]) -> Result<Vec<PathBuf>> {
    let shown = || beginning(pattern, 80);
    if pattern.contains("://") {
        return Err(Error::usage(format!("README.md names `{}`, which lies elsewhere", shown()))
            .cure("Download it, and name the file instead of the folder."));
    }
    let inside = pattern.strip_prefix("./").unwrap_or(pattern);
    // A trailing `**` stands for files.
    let whole = if inside == "**" || inside.ends_with("/**") { format!("{inside}/*") } else { inside.to_owned() };
    let glob = Pattern::new(&whole).map_err(|error| {
        let cure = "Name the data files instead of the folder.";
        Error::usage(format!("README.md names `{}`, which is not a supported pattern", shown())).caused_by(error).cure(cure)
    })?;
    let options = MatchOptions { require_literal_separator: true, require_literal_leading_dot: true, ..MatchOptions::new() };
    let mut matched: Vec<PathBuf> = files.iter().filter(|file| glob.matches_path_with(file, options)).cloned().collect();
    matched.sort();
    Ok(matched)
}
