//! Parses the command line: one file per subcommand, each with its help text and one `run`. The rest of the library knows no flags.
//!
//! ```text
//! score.rs        `diagnose DATASET...` and `diagnose RUN`; every other command is in the file of its name: check.rs, rollout.rs, train.rs,
//!                 eval.rs, diff.rs, export.rs, view.rs, guide.rs, and completions.rs for completions and manual pages
//! rows.rs         options shared by several commands: how rows are read; models.rs the model; draws.rs sampling; servers.rs
//!                 where the model runs
//! config.rs       options from a file
//! runs.rs         finished runs given by name, glob or shards
//! output.rs       printing; progress.rs bars on stderr
//! ```

mod check;
mod completions;
mod config;
mod diff;
mod draws;
mod eval;
mod export;
mod guide;
mod models;
mod output;
mod progress;
mod rollout;
mod rows;
mod runs;
mod score;
mod servers;
mod train;
mod view;

use std::sync::LazyLock;

use clap::parser::ValueSource;
use clap::{ArgMatches, CommandFactory, FromArgMatches, Parser, Subcommand};

use crate::error::{Error, Result};
use crate::kernels::level::Level;
use crate::kernels::{choice, cuda};
use crate::provenance;
use crate::spelling::nearest;
use output::quoted;

/// Look before you fine-tune: find the tokens of a data set that a language model confidently disagrees with.
///
/// Computes probability and entropy of every supervised token, sorts the tokens into confident conflicts, uncertain,
/// confident and hesitant ones, and writes a report with figures into a run folder.
#[derive(Parser)]
#[command(
    name = "diagnose",
    version = version(),
    max_term_width = 110,
    args_conflicts_with_subcommands = true,
    subcommand_negates_reqs = true
)]
struct Cli {
    #[command(subcommand)]
    command: Option<Command>,

    #[command(flatten)]
    score: score::Args,
}

#[derive(Subcommand)]
enum Command {
    Eval(eval::Args),
    Diff(diff::Args),
    Check(Box<check::Args>),
    Train(Box<train::Args>),
    Rollout(Box<rollout::Args>),
    Export(Box<export::Args>),
    View(view::Args),
    Guide(guide::Args),
    Completions(completions::Args),
    #[command(hide = true)]
    Man(completions::ManArgs),
}

#[cfg(test)]
mod guide_tests;
#[cfg(test)]
mod tests;

/// Such as `0.1.0 (6221c8126b41), kernels avx512bf16`, which a bug report needs.
fn version() -> &'static str {
    static VERSION: LazyLock<String> = LazyLock::new(|| format!("{}, kernels {}", provenance::build(), Level::current().name()));
    &VERSION
}

/// Prints an error and returns the exit code of the program.
pub fn fail(error: &Error) -> u8 {
    output::say(&format!("error: {error}"));
    error.exit_code()
}

/// The whole command line parser; a negative number after an option is its value, not an unknown option.
fn command() -> clap::Command {
    fn with_negative_numbers(command: clap::Command) -> clap::Command {
        let takes_numbers = |argument: clap::Arg| match argument.is_positional() || !argument.get_action().takes_values() {
            true => argument,
            false => argument.allow_negative_numbers(true),
        };
        command.mut_args(takes_numbers).mut_subcommands(with_negative_numbers)
    }
    with_negative_numbers(Cli::command())
}

/// Returns an error if the first word is neither a command nor data but resembles a command; `typed` begins with the program.
fn check_command(command: &clap::Command, typed: &[std::ffi::OsString]) -> Result<()> {
    let Some(word) = typed.get(1).and_then(|word| word.to_str()) else { return Ok(()) };
    let is_word = !word.is_empty() && word.bytes().all(|byte| byte.is_ascii_lowercase());
    let mut built = command.clone();
    built.build();
    if !is_word || built.find_subcommand(word).is_some() || std::path::Path::new(word).exists() {
        return Ok(());
    }
    let commands = || built.get_subcommands().filter(|command| !command.is_hide_set()).map(clap::Command::get_name);
    let meant = match nearest(word, commands()) {
        Some(name) => format!("Did you mean `diagnose {name}`? "),
        None => String::new(),
    };
    let names = commands().collect::<Vec<_>>().join(", ");
    Err(Error::usage(format!("there is no command and no data file called `{word}`"))
        .cure(format!("{meant}The commands are {names}; to score data, pass only its files.")))
}

/// The long names of the options given on the command line or in an options file, of scoring or of the subcommand.
fn typed_options(matches: &ArgMatches) -> Vec<String> {
    let all = command();
    let (command, matches) = match matches.subcommand() {
        Some((name, own)) => (all.find_subcommand(name).unwrap_or(&all), own),
        None => (&all, matches),
    };
    let is_typed = |argument: &&clap::Arg| matches.value_source(argument.get_id().as_str()) == Some(ValueSource::CommandLine);
    command.get_arguments().filter(is_typed).filter_map(|argument| argument.get_long().map(str::to_owned)).collect()
}

/// Runs the command line.
pub fn run() -> Result<()> {
    // Must come first, since the version that the command line prints includes the level.
    choice::settle()?;
    let typed: Vec<_> = std::env::args_os().collect();
    let command = command();
    if completions::answered(&typed, &command)? {
        return Ok(());
    }
    check_command(&command, &typed)?;
    let matches = config::matches(&command, &typed)?;
    let cli = Cli::from_arg_matches(&matches).map_err(|error| Error::usage(error.to_string()))?;
    let command_line = typed.iter().map(|argument| quoted(&argument.to_string_lossy())).collect::<Vec<_>>().join(" ");
    let done = dispatch(cli, &typed_options(&matches), &command_line);
    if let Some(profile) = cuda::profile() {
        eprintln!("{profile}");
    }
    done
}

/// `typed` are the options that were typed.
fn dispatch(cli: Cli, typed: &[String], command_line: &str) -> Result<()> {
    match cli.command {
        None => score::run(cli.score, typed, command_line),
        Some(Command::Eval(arguments)) => eval::run(arguments, command_line),
        Some(Command::Check(arguments)) => check::run(*arguments),
        Some(Command::Diff(arguments)) => diff::run(arguments, typed, command_line),
        Some(Command::Rollout(arguments)) => rollout::run(*arguments, command_line),
        Some(Command::Export(arguments)) => export::run(*arguments, command_line),
        Some(Command::Train(arguments)) => train::run(*arguments, command_line),
        Some(Command::View(arguments)) => view::run(arguments, command_line),
        Some(Command::Guide(arguments)) => guide::run(&arguments),
        Some(Command::Completions(arguments)) => completions::run(&arguments),
        Some(Command::Man(arguments)) => completions::write_manual(&arguments, Cli::command()),
    }
}
