//! Implements `diagnose view RUN...`: writes the page in which a person reads the rows of a run and decides about them.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use super::{output, runs};
use crate::error::{Error, Result};
use crate::jobs::view::{self, Job};

/// Write an HTML page to read a run's rows token by token, and to decide about them
///
/// The page is a single file without a server: ranked rows, every token with the model's expectation, filters, and decisions to drop, keep, mask
/// or note, which it exports as decisions.jsonl. Two runs are shown side by side. Every run already has a page, view.html; this
/// writes it again.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder of a finished run, or two to compare, before and after; the shards of a run, or a glob of them, count as one
    #[arg(required = true, num_args = 1.., value_name = "RUN")]
    runs: Vec<PathBuf>,

    /// File to write [default: view.html in the run's folder, or compared.html in the second one's]
    #[arg(long, value_name = "FILE")]
    out: Option<PathBuf>,

    /// Current paths of the data files, in order [default: their recorded names]
    #[arg(long, value_name = "FILE")]
    data: Vec<String>,

    /// Open the page in the browser
    #[arg(long)]
    open: bool,

    /// How many tokens the page holds; for a larger run it shows the sharpest conflicts and a random sample of rows
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
            "The existing page, which has the texts, is kept"
        } else {
            "The page shows the tokens alone, without their text"
        };
        output::say(&format!("{what}: {reason}"));
    }
    output::print(&format!("{}\n", written.path.display()))?;
    if args.open { open(&written.path) } else { Ok(()) }
}

/// Opens the page in the system's browser.
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
