//! `diagnose view RUN...`: the page in which a person reads the rows of a run and decides about them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{output, runs};
use crate::error::{Error, Result};
use crate::jobs::view::{self, Job};

/// Write one HTML page to read the rows of a run in, token by token, and to decide about them
///
/// The page is one file without a server: ranked rows, every token with what the model expected, filters, and decisions to drop, keep, mask
/// or note, which it exports as decisions.jsonl. Two runs stand side by side. A run has its page, view.html, from the start; this
/// writes it again.
#[derive(clap::Args)]
pub(super) struct Args {
    /// The folder of a finished run, or the one before and the one after; the shards of a run, or a glob of them, are one
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// The page; by default view.html in the run's folder, or compared.html in the second one's
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Where the data files lie now, in their order; by default they are looked for by their names
    #[arg(long, value_name = "FILE")]
    data: Vec<String>,

    /// Show the page in the browser
    #[arg(long)]
    open: bool,

    /// How many tokens of a run the page holds; of a larger run it shows the sharpest conflicts and some rows at random
    #[arg(long, value_name = "N", default_value_t = view::MOST_TOKENS)]
    tokens: usize,
}

pub(super) fn run(args: Args, command_line: &str) -> Result<()> {
    if args.tokens == 0 {
        return Err(Error::usage("--tokens 0 leaves nothing to show; expected 1 or more"));
    }
    let runs = runs::named(&args.runs, command_line)?;
    if runs.len() > 2 {
        return Err(Error::usage(format!("expected one run or two, found {}", runs.len())));
    }
    let written = view::view(&Job { runs, data: args.data, out: args.out, most_tokens: args.tokens })?;
    for reason in &written.without_text {
        let what = if written.stays {
            "The page stays as it was written, with its texts"
        } else {
            "The page shows the tokens alone, without the rows around them"
        };
        output::say(&format!("{what}: {reason}"));
    }
    output::print(&format!("{}\n", written.path.display()))?;
    if args.open { open(&written.path) } else { Ok(()) }
}

/// Hands the page to whatever shows pages on this system.
fn open(page: &Path) -> Result<()> {
    let (program, before): (&str, &[&str]) = match std::env::consts::OS {
        "macos" => ("open", &[]),
        "windows" => ("cmd", &["/C", "start", ""]),
        _ => ("xdg-open", &[]),
    };
    let opened =
        Command::new(program).args(before).arg(page).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).status();
    let failed =
        || Error::new(format!("cannot show the page with `{program}`")).at(page).cure("Open the file in a browser yourself.");
    match opened {
        Ok(status) if status.success() => Ok(()),
        Ok(_) => Err(failed()),
        Err(error) => Err(failed().caused_by(error)),
    }
}
