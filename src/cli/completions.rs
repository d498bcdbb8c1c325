//! Implements `diagnose completions SHELL`, answers the shells that complete a command line, and writes the manual pages for packagers.

use std::ffi::OsString;
use std::path::PathBuf;

use clap::builder::PossibleValuesParser;
use clap::{Command, ValueHint};
use clap_complete::Shell;
use clap_complete::env::{CompleteEnv, Shells};

use super::{guide, output};
use crate::diagnosis::gate::{Beside, METHODS};
use crate::error::{Context, Error, Result};
use crate::files::write_atomically;
use crate::jobs::check;

/// The environment variable with which the script of a shell asks the program what it can offer.
const ASKED: &str = "DIAGNOSE_COMPLETE";

/// Print a shell completion script for subcommands, options and their values; it calls `diagnose`, which must be in PATH
///
/// For bash: `diagnose completions bash > ~/.local/share/bash-completion/completions/diagnose`. For zsh: `source <(diagnose completions zsh)` in
/// ~/.zshrc. For fish: `diagnose completions fish > ~/.config/fish/completions/diagnose.fish`.
#[derive(clap::Args)]
pub(super) struct Args {
    /// bash, zsh, fish, elvish or powershell
    shell: Shell,
}

pub(super) fn run(args: &Args) -> Result<()> {
    let shell = args.shell.to_string();
    let mut script = Vec::new();
    let written = Shells::builtins()
        .completer(&shell)
        .ok_or_else(|| Error::usage(format!("there are no completions for {shell}")))?
        .write_registration(ASKED, "diagnose", "diagnose", "diagnose", &mut script);
    written.context("cannot write the completions")?;
    output::print(&String::from_utf8_lossy(&script))
}

/// Whether a shell's script called the program, which then has printed what can stand at the cursor.
pub(super) fn answered(typed: &[OsString], command: &Command) -> Result<bool> {
    CompleteEnv::with_factory(|| with_names(command.clone()))
        .var(ASKED)
        .bin("diagnose")
        .completer("diagnose")
        .try_complete(typed, std::env::current_dir().ok().as_deref())
        .map_err(|error| Error::usage(error.to_string()))
}

/// Write the manual pages into a folder: diagnose.1 and one for each subcommand
#[derive(clap::Args)]
pub(super) struct ManArgs {
    folder: PathBuf,
}

pub(super) fn write_manual(args: &ManArgs, command: Command) -> Result<()> {
    let folder = &args.folder;
    std::fs::create_dir_all(folder).context_at(folder, "cannot create the folder")?;
    let shown = command.get_subcommands().filter(|subcommand| !subcommand.is_hide_set());
    let pages = shown.map(|subcommand| (format!("diagnose-{}", subcommand.get_name()), subcommand.clone()));
    for (name, command) in [("diagnose".to_owned(), command.clone())].into_iter().chain(pages) {
        let page = clap_mangen::Man::new(command.name(name.clone()).disable_help_subcommand(true));
        write_atomically(&folder.join(format!("{name}.1")), |file| page.render(file).context("cannot write a manual page"))?;
    }
    Ok(())
}

/// Adds what a shell offers as values: names, of which parsing accepts more, such as `power:2` or `p=0.2,H=0.8`, and paths.
fn with_names(command: Command) -> Command {
    let gates = METHODS.iter().filter(|method| method.beside == Beside::Nothing).map(|method| method.name);
    let methods: Vec<&str> = METHODS.iter().map(|method| method.name).collect();
    let findings = check::names();
    let names: [(&str, Vec<&str>); 10] = [
        ("gate", gates.collect()),
        ("method", methods),
        ("thresholds", vec!["fixed", "pilot", "groups", "tail"]),
        ("dtype", vec!["f32", "bf16", "bf16x3"]),
        ("kernels", vec!["fused", "reference"]),
        ("device", vec!["auto", "cpu", "cuda", "metal"]),
        ("supervise", vec!["assistant", "last", "all"]),
        ("emit", vec!["llama-factory", "axolotl"]),
        ("fail_on", findings.iter().map(String::as_str).collect()),
        ("page", guide::PAGES.map(|(name, _)| name).to_vec()),
    ];
    let has_paths = |argument: &clap::Arg| {
        let names = argument.get_value_names().unwrap_or_default();
        names.iter().any(|name| ["AFTER", "BEFORE", "DATASET", "DIR", "FILE", "REF", "RUN", "TASKS"].contains(&name.as_str()))
    };
    let of_command = |command: Command| {
        let mut command = command.mut_args(|argument| match has_paths(&argument) {
            true => argument.value_hint(ValueHint::AnyPath),
            false => argument,
        });
        for (option, names) in &names {
            if command.get_arguments().any(|argument| argument.get_id() == option) {
                let names = PossibleValuesParser::new(names.iter().map(|name| (*name).to_owned()));
                command = command.mut_arg(option, |argument| argument.value_parser(names));
            }
        }
        command
    };
    let mut command = of_command(command);
    let subcommands: Vec<String> = command.get_subcommands().map(|subcommand| subcommand.get_name().to_owned()).collect();
    for name in subcommands {
        command = command.mut_subcommand(name, of_command);
    }
    command
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;
    use crate::cli::Cli;
    use crate::diagnosis::gate::Gate;

    #[test]
    fn every_name_that_a_shell_offers_is_taken() {
        let command = with_names(Cli::command());
        let train = command.find_subcommand("train").unwrap();
        let offered = |option: &str| {
            let argument = train.get_arguments().find(|argument| argument.get_id() == option).unwrap();
            argument.get_possible_values().iter().map(|value| value.get_name().to_owned()).collect::<Vec<_>>()
        };
        assert!(offered("gate").len() > 5 && offered("gate").iter().all(|name| name.parse::<Gate>().is_ok()));
        assert_eq!(offered("method").len(), METHODS.len());
        // `train` is excluded, since its options are texts: every offered value must parse as typed.
        for (option, names) in [("thresholds", 4), ("dtype", 3), ("kernels", 2), ("device", 4), ("supervise", 3)] {
            let argument = command.get_arguments().find(|argument| argument.get_id() == option).unwrap();
            let values = argument.get_possible_values();
            assert_eq!(values.len(), names, "{option}");
            for value in values {
                let typed = ["diagnose", "a.jsonl", &format!("--{option}"), value.get_name()].map(str::to_owned);
                Cli::command().try_get_matches_from(typed).unwrap();
            }
        }
    }
}
