//! Reads options of the main job from a file: `--config FILE`, or `diagnose.toml` beside the data. `check` takes the options about rows from it, so
//! that it reads what scoring would. Paths in a file named by the user are relative to the current folder, like typed ones; those in a file found
//! beside the data are relative to its folder, so that it means the same wherever the command runs. A file that was found may have come with the
//! data, from anyone: it sets neither what is written where nor what is sent to whom.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::num::{IntErrorKind, ParseIntError};
use std::path::{Path, PathBuf};

use clap::error::{ContextKind, ContextValue, ErrorKind};
use clap::parser::ValueSource;
use clap::{Arg, ArgAction, ArgMatches, Command};

use super::output::say;
use crate::error::{Context, Error, Result};
use crate::provenance::RUN_FILE;

/// The file looked for beside the first data file.
const NAME: &str = "diagnose.toml";

/// Options that write, send, or read what another program left: only the user sets them.
const ONLY_NAMED: [&str; 9] = ["out", "data", "server", "api", "served-model", "in-flight", "top-logprobs", "emit", "answers"];

/// Parses `typed`, the command line, over the options of the file, if there is one.
pub(super) fn matches(command: &Command, typed: &[OsString]) -> Result<ArgMatches> {
    let mut command = command.clone();
    // Building fills in the conflicts between options.
    command.build();
    let matches = match command.clone().try_get_matches_from(typed) {
        Ok(matches) => matches,
        Err(error) => {
            return Err(of_another_command(&command, typed, &error)
                .or_else(|| no_number(&error))
                .or_else(|| no_unicode(typed, &error))
                .unwrap_or_else(|| error.exit()));
        }
    };
    // The command that the options belong to, what was typed for it, and where its own words begin.
    let (own, of_own, begin) = match matches.subcommand() {
        None => (&command, &matches, 1),
        Some((name @ "check", of_own)) => (command.find_subcommand(name).unwrap_or(&command), of_own, 2),
        Some((name, of_other)) => {
            // The files of rows among the tasks of an evaluation are data, too.
            let tasks = of_other.try_get_many::<String>("tasks").ok().flatten().unwrap_or_default();
            let files: BTreeSet<PathBuf> =
                beside_data(of_other).into_iter().chain(tasks.filter_map(|task| beside(Path::new(task)))).collect();
            for file in files {
                say(&format!("{} is not for `{name}`: it has options of scoring and of `check`", file.display()));
            }
            return Ok(matches);
        }
    };
    let named = of_own.get_one::<PathBuf>("config").cloned();
    let found = if named.is_none() { beside_data(of_own) } else { None };
    let from = found.as_ref().and_then(|file| file.parent()).map(Path::to_owned);
    let Some(file) = named.or(found) else { return Ok(matches) };
    let text = std::fs::read_to_string(&file).context_at(&file, "cannot read the options")?;
    let table: toml::Table = text.parse().map_err(|error: toml::de::Error| {
        Error::usage(format!("the options are not valid TOML: {}", error.to_string().trim_end())).at(&file)
    })?;
    let mut added = Vec::new();
    for (key, value) in &table {
        if argument(own, key).is_none() && argument(&command, key).is_some() {
            continue;
        }
        let words = option(own, of_own, key, value, from.as_deref()).map_err(|error| error.at(&file))?;
        let is_only_named = || argument(own, key).and_then(Arg::get_long).is_some_and(|name| ONLY_NAMED.contains(&name));
        if from.is_some() && !words.is_empty() && is_only_named() {
            return Err(Error::usage(format!("`{key}` is not taken from a file that merely lies beside the data")).at(&file).cure(format!(
                "Type the option, or, if you trust the file, add --config {} (its paths are then relative to the current folder).",
                file.display()
            )));
        }
        added.extend(words);
    }
    say(&format!("Options from {}", file.display()));
    // Insert the file's options before what was typed, which may end in `--` and names.
    let (program, rest) = typed.split_at(begin.min(typed.len()));
    let words = program.iter().cloned().chain(added).chain(rest.iter().cloned());
    command.try_get_matches_from(words).map_err(|error| {
        // The error concerns the file, which may have come with the data, so print it as safely as data.
        let said = no_number(&error).unwrap_or_else(|| {
            let text = error.to_string();
            Error::usage(text.trim_start_matches("error: ").trim_end())
        });
        said.at(&file)
    })
}

/// The error for an option that only another command has; clap would suggest one with a similar spelling.
fn of_another_command(command: &Command, typed: &[OsString], error: &clap::Error) -> Option<Error> {
    if error.kind() != ErrorKind::UnknownArgument {
        return None;
    }
    let Some(ContextValue::String(unknown)) = error.get(ContextKind::InvalidArg) else { return None };
    let name = unknown.strip_prefix("--")?;
    let own = typed.get(1).and_then(|word| command.find_subcommand(word));
    let has_it = |other: &&Command| other.get_arguments().any(|argument| is_named(argument, name));
    let mut others: Vec<String> =
        command.get_subcommands().filter(has_it).map(|other| format!("`diagnose {}`", other.get_name())).collect();
    if own.is_some() && has_it(&command) {
        others.push("`diagnose DATA`".to_owned());
    }
    if others.is_empty() {
        return None;
    }
    let (here, help) = match own {
        Some(own) => (format!("`diagnose {}`", own.get_name()), format!("diagnose {} --help", own.get_name())),
        None => ("scoring".to_owned(), "diagnose --help".to_owned()),
    };
    Some(
        Error::usage(format!("{here} has no option `{unknown}`"))
            .cure(format!("It is an option of {}; `{help}` lists those available here.", others.join(" and "))),
    )
}

/// The error for an argument that is not Unicode; clap does not say which one it is.
fn no_unicode(typed: &[OsString], error: &clap::Error) -> Option<Error> {
    let word = typed.iter().find(|word| word.to_str().is_none())?;
    (error.kind() == ErrorKind::InvalidUtf8).then(|| {
        Error::usage(format!("expected names of valid Unicode, found {word:?}")).cure("Rename the file, or name its folder.")
    })
}

/// The error for a value that is no whole number; clap would quote the standard library's message.
fn no_number(error: &clap::Error) -> Option<Error> {
    let source = std::error::Error::source(error)?.downcast_ref::<ParseIntError>()?;
    let (ContextValue::String(option), ContextValue::String(value)) =
        (error.get(ContextKind::InvalidArg)?, error.get(ContextKind::InvalidValue)?)
    else {
        return None;
    };
    let is_text = matches!(source.kind(), IntErrorKind::InvalidDigit | IntErrorKind::Empty);
    is_text.then(|| Error::usage(format!("{option}: expected a whole number of 0 or more, found `{value}`")))
}

/// The options file beside the first data file, if there is one.
fn beside_data(matches: &ArgMatches) -> Option<PathBuf> {
    beside(Path::new(matches.try_get_many::<String>("datasets").ok()??.next()?))
}

/// The options file beside this file, or in this folder.
fn beside(first: &Path) -> Option<PathBuf> {
    // A folder of data may contain it; standard input and globs have no neighbours. A run folder is not data.
    let folder = if first.is_dir() { first } else { first.is_file().then(|| first.parent())?? };
    Some(folder.join(NAME)).filter(|file| file.is_file() && !folder.join(RUN_FILE).is_file())
}

/// The option of `command` that a key of the file names.
fn argument<'a>(command: &'a Command, key: &str) -> Option<&'a Arg> {
    let found = command.get_arguments().find(|argument| is_named(argument, key));
    found.filter(|argument| !["config", "help", "version"].contains(&argument.get_id().as_str()))
}

/// Whether `key` is a name or an alias of the option, with dashes or underscores.
fn is_named(argument: &Arg, key: &str) -> bool {
    let name = key.replace('_', "-");
    let aliases = argument.get_all_aliases().unwrap_or_default();
    argument.get_long() == Some(name.as_str()) || aliases.iter().any(|alias| *alias == name || *alias == key)
}

/// The command-line words for one line of the file; none if the command line gives the option or one that conflicts with it. Paths are relative to
/// `from`, if that is not the current folder.
fn option(command: &Command, matches: &ArgMatches, key: &str, value: &toml::Value, from: Option<&Path>) -> Result<Vec<OsString>> {
    let name = key.replace('_', "-");
    let Some(argument) = argument(command, key) else {
        return Err(Error::usage(format!("there is no option `{key}`")).cure("`diagnose --help` lists the options."));
    };
    let is_typed = |argument: &Arg| matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine);
    let excludes = |one: &Arg, other: &Arg| command.get_arg_conflicts_with(one).iter().any(|arg| arg.get_id() == other.get_id());
    let goes_with = |other: &&Arg| !is_typed(other) || !(excludes(argument, other) || excludes(other, argument));
    if is_typed(argument) || !command.get_arguments().all(|other| goes_with(&other)) {
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
        toml::Value::String(text) => {
            let mut word = OsString::from(format!("--{name}="));
            word.push(from.and_then(|from| path_from(from, argument, text)).unwrap_or_else(|| text.into()));
            Ok(word)
        }
        toml::Value::Integer(number) => Ok(format!("--{name}={number}").into()),
        toml::Value::Float(number) => Ok(format!("--{name}={number}").into()),
        _ => Err(wrong("a text or a number")),
    };
    values.iter().map(word).collect()
}

/// The path that the option's value denotes from this folder; `None` if it is no path, such as a model on the hub.
fn path_from(from: &Path, argument: &Arg, text: &str) -> Option<PathBuf> {
    let path = from.join(text);
    let is_path = match argument.get_value_names()?.first()?.as_str() {
        "FILE" | "DIR" => true,
        "REF" => text.starts_with("./") || text.starts_with("../") || path.exists(),
        _ => false,
    };
    is_path.then_some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A new option of scoring is added to one of the two lists, by whether it writes, sends, or reads what another program left.
    #[test]
    fn every_option_is_either_for_found_files_or_not() {
        let harmless = [
            "model",
            "base",
            "dtype",
            "kernels",
            "device",
            "chat-template",
            "chat-template-kwargs",
            "max-len",
            "limit",
            "sample",
            "seed",
            "format",
            "map",
            "role",
            "strict",
            "system",
            "append-eos",
            "supervise",
            "shard",
            "thresholds",
            "no-view",
            "in-context",
            "json",
        ];
        let command = crate::cli::command();
        let mut named: Vec<&str> = command.get_arguments().filter_map(Arg::get_long).collect();
        named.retain(|name| argument(&command, name).is_some());
        for name in &named {
            assert!(harmless.contains(name) != ONLY_NAMED.contains(name), "--{name} is in none or both of the lists");
        }
        assert_eq!(named.len(), harmless.len() + ONLY_NAMED.len());
    }
}
