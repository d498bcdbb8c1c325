//! `diagnose diff BEFORE AFTER`: what changed between two evaluations or two score runs.

use std::path::{Path, PathBuf};

use crate::error::{Context, Error, Result};
use crate::eval::compare::Side;
use crate::eval::results::SCORES_FILE;
use crate::eval::{compare, harness, movement};
use crate::report::diff::{Diff, terminal, write};
use crate::scores::TOKENS_FILE;

/// Say what changed between two evaluations or two score runs
///
/// Two folders of `diagnose eval` are compared item by item: differences with paired bootstrap intervals, McNemar's exact test,
/// the items that flipped, and the macro average. Two score runs over the same data set show how tokens moved between the
/// quadrants.
#[derive(clap::Args)]
pub struct Args {
    /// The folder of an evaluation or of a score run; or samples_TASK_TIME.jsonl of lm-evaluation-harness, or a folder of these
    before: PathBuf,

    /// The other one, of the same kind
    after: PathBuf,

    /// Write diff.json, diff.md and a figure into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// End with exit code 3 where the macro average dropped by more than PTS points with confidence: where even the upper end of its
    /// 95 % interval lies below
    #[arg(long, value_name = "PTS")]
    fail_on_drop: Option<f64>,

    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, command_line: &str) -> Result<()> {
    if args.fail_on_drop.is_some_and(|points| !(0.0..=100.0).contains(&points)) {
        return Err(Error::usage("--fail-on-drop takes points from 0 to 100"));
    }
    let kinds = [kind(&args.before)?, kind(&args.after)?];
    let diff = match kinds {
        [Kind::ScoreRun, Kind::ScoreRun] => Diff::Scores(movement::compare(&args.before, &args.after)?),
        [Kind::Evaluation | Kind::Harness, Kind::Evaluation | Kind::Harness] => {
            let [before, after] = kinds;
            Diff::Evaluations(compare::compare(&side(before, &args.before)?, &side(after, &args.after)?)?)
        }
        _ => {
            return Err(Error::usage("one folder is an evaluation, the other a score run")
                .cure("Compare two folders of `diagnose eval`, or two of `diagnose DATASET`."));
        }
    };
    if args.fail_on_drop.is_some() && matches!(diff, Diff::Scores(_)) {
        return Err(Error::usage("--fail-on-drop is for evaluations; score runs have no accuracy"));
    }
    if let Some(out) = &args.out {
        write(&diff, out, command_line)?;
    }
    super::print(&match args.json {
        true => serde_json::to_string_pretty(&diff).context("cannot write JSON")? + "\n",
        false => terminal(&diff, super::coloured()),
    })?;
    match (args.fail_on_drop, &diff) {
        (Some(points), Diff::Evaluations(comparison)) => comparison.check_drop(points),
        _ => Ok(()),
    }
}

#[derive(Clone, Copy)]
enum Kind {
    Evaluation,
    /// Sample files of lm-evaluation-harness.
    Harness,
    ScoreRun,
}

fn side(kind: Kind, path: &Path) -> Result<Side> {
    match kind {
        Kind::Harness => harness::read_side(path),
        _ => compare::read_side(path),
    }
}

fn kind(folder: &Path) -> Result<Kind> {
    if folder.join(SCORES_FILE).is_file() {
        Ok(Kind::Evaluation)
    } else if folder.join(TOKENS_FILE).is_file() {
        Ok(Kind::ScoreRun)
    } else if harness::is_harness(folder) {
        Ok(Kind::Harness)
    } else {
        Err(Error::usage(format!("expected a folder with {SCORES_FILE} or {TOKENS_FILE}, found none")).at(folder).cure(
            "Give the --out folder of a finished `diagnose eval` or `diagnose DATASET`, or the samples_*.jsonl files of \
                 lm-evaluation-harness.",
        ))
    }
}
