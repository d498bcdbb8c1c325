//! Options of the main job from a file: `--config FILE`, or `diagnose.toml` beside the data.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use clap::parser::ValueSource;
use clap::{ArgAction, ArgMatches, Command};

use crate::error::{Context, Error, Result};

/// The file that is looked for beside the first data file.
const NAME: &str = "diagnose.toml";

/// The matches of `typed`, the command line, over the options of the file, if there is one.
pub(super) fn matches(command: &Command, typed: &[OsString]) -> Result<ArgMatches> {
    let matches = command.clone().get_matches_from(typed);
    let Some(file) = (if matches.subcommand_name().is_some() { None } else { file(&matches) }) else { return Ok(matches) };
    let text = std::fs::read_to_string(&file).context_at(&file, "cannot read the options")?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Error::usage(format!("the options are no TOML: {}", error.to_string().trim_end())).at(&file)
    })?;
    let mut added = Vec::new();
    for (key, value) in &table {
        added.extend(option(command, &matches, key, value).map_err(|error| error.at(&file))?);
    }
    eprintln!("Options from {}", file.display());
    // Before what was typed, which may end in `--` and names.
    let (program, rest) = typed.split_at(1.min(typed.len()));
    Ok(command.clone().get_matches_from(program.iter().cloned().chain(added).chain(rest.iter().cloned())))
}

fn file(matches: &ArgMatches) -> Option<PathBuf> {
    if let Some(file) = matches.get_one::<PathBuf>("config") {
        return Some(file.clone());
    }
    let first = Path::new(matches.get_many::<String>("datasets")?.next()?);
    // A folder of data may hold it; standard input and globs have no neighbour. A run folder is no data.
    let folder = if first.is_dir() { first } else { first.is_file().then(|| first.parent())?? };
    Some(folder.join(NAME)).filter(|file| file.is_file() && !folder.join("run.json").is_file())
}

/// The words that one line of the file stands for; none where the command line says otherwise.
fn option(command: &Command, matches: &ArgMatches, key: &str, value: &toml::Value) -> Result<Vec<OsString>> {
    let name = key.replace('_', "-");
    let is_named = |argument: &&clap::Arg| {
        let aliases = argument.get_all_aliases().unwrap_or_default();
        argument.get_long() == Some(name.as_str()) || aliases.iter().any(|alias| *alias == name || *alias == key)
    };
    let known = command
        .get_arguments()
        .find(is_named)
        .filter(|argument| !["config", "help", "version"].contains(&argument.get_id().as_str()));
    let Some(argument) = known else {
        return Err(Error::usage(format!("there is no option `{key}`")).cure("`diagnose --help` names those that there are."));
    };
    if matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine) {
        return Ok(Vec::new());
    }
    let wrong = |expected: &str| Error::usage(format!("{key} = {value}: expected {expected}"));
    if matches!(argument.get_action(), ArgAction::SetTrue) {
        return match value {
            toml::Value::Boolean(true) => Ok(vec![format!("--{name}").into()]),
            toml::Value::Boolean(false) => Ok(Vec::new()),
            _ => Err(wrong("true or false")),
        };
    }
    let values = match value {
        toml::Value::Array(values) if matches!(argument.get_action(), ArgAction::Append) => values.as_slice(),
        toml::Value::Array(_) => return Err(wrong("one value")),
        value => std::slice::from_ref(value),
    };
    let word = |value: &toml::Value| match value {
        toml::Value::String(text) => Ok(format!("--{name}={text}").into()),
        toml::Value::Integer(number) => Ok(format!("--{name}={number}").into()),
        toml::Value::Float(number) => Ok(format!("--{name}={number}").into()),
        _ => Err(wrong("a text or a number")),
    };
    values.iter().map(word).collect()
}
