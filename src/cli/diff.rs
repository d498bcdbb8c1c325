//! Implements `diagnose diff BEFORE AFTER`: compares two models, two evaluations or two score runs.

use std::path::PathBuf;

use super::eval::Options;
use super::output;
use super::progress::Terminal;
use super::runs;
use crate::error::{Error, Result};
use crate::jobs::diff::{self, Job, Sides};
use crate::jobs::folders::runs_of;
use crate::report::diff::terminal;

/// Compare two models, two evaluations or two score runs
///
/// Two folders of `diagnose eval` are compared item by item: differences with paired intervals (Tango's; a bootstrap for perplexities and
/// for items in groups), McNemar's exact test, the items that flipped, and the macro average. Models are evaluated first, each into a folder under runs/ that the next
/// comparison reuses. Two score runs over the same data set show how tokens moved between the quadrants. With --target, any
/// number of runs is compared with the original model: what each gained on the target, and what it lost elsewhere.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Folder of an evaluation or of a score run, or a glob of a run's shards; samples_TASK_TIME.jsonl of lm-evaluation-harness, or a folder of these; or a
    /// model: a folder, a .gguf file, or with --tasks a hub id
    before: String,

    /// The one to compare it with, of the same kind; several with --target
    #[arg(required = true)]
    after: Vec<String>,

    /// Write diff.json, diff.md, diff.html and a figure into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The tasks that the runs were fine-tuned for, or groups of tasks such as the harness's mmlu: compares the gain on these with the
    /// loss on all others
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    target: Vec<String>,

    /// Exit with code 3 if the macro average (with --target, that of the other tasks) dropped by more than PTS points with
    /// confidence: if even the upper end of its 95 % interval lies below -PTS
    #[arg(long, value_name = "PTS")]
    fail_on_drop: Option<f64>,

    /// Run the models behind two folders to measure their mean divergence on general text; always done when models are given
    #[arg(long)]
    kl: bool,

    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,

    /// For models: what to evaluate, as in `diagnose eval` [default: probe]. For evaluation folders: the names of the tasks to compare
    #[arg(long, value_name = "TASKS", value_delimiter = ',', help_heading = "Evaluation")]
    tasks: Vec<String>,

    #[command(flatten)]
    options: Options,
}

/// `typed` are the options that were typed.
pub(super) fn run(args: Args, typed: &[String], command_line: &str) -> Result<()> {
    if args.fail_on_drop.is_some_and(|points| !(0.0..=100.0).contains(&points)) {
        return Err(Error::usage("--fail-on-drop: expected points from 0 to 100"));
    }
    // A glob of shards is one run; any other name stays as it is.
    let run = |name: String| -> Result<String> {
        match runs_of(&name).len() {
            0 => Ok(name),
            _ => Ok(runs::one(&[PathBuf::from(name)], command_line)?.to_string_lossy().into_owned()),
        }
    };
    let job = Job {
        before: run(args.before)?,
        after: args.after.into_iter().map(run).collect::<Result<_>>()?,
        target: args.target,
        tasks: args.tasks,
        divergence: args.kl,
        fail_on_drop: args.fail_on_drop,
        way: args.options.way()?,
        command: command_line.to_owned(),
    };
    let sides = diff::open(&job)?;
    refuse_unheard(&job, &sides, typed)?;
    args.out.iter().try_for_each(|out| diff::check_out(&sides, out))?;
    let watch = Terminal::new();
    let diff = diff::run(&job, sides, &watch)?;
    drop(watch);
    if let Some(out) = &args.out {
        diff::write(&diff, out, command_line)?;
    }
    output::print(&match args.json {
        true => output::json(&diff)?,
        false => {
            let text = terminal(&diff, output::coloured(), output::width().unwrap_or(usize::MAX));
            text.lines().map(|line| output::fitted(line) + "\n").collect()
        }
    })?;
    job.check_drop(&diff)
}

/// Returns an error for an evaluation option if no model is evaluated: folders are compared with the settings they were evaluated with.
fn refuse_unheard(job: &Job, sides: &Sides, typed: &[String]) -> Result<()> {
    if sides.evaluates() {
        return Ok(());
    }
    // With --kl, the models behind the folders run with these options.
    let of_divergence = ["dtype", "kernels", "device", "max-len"];
    let is_heard = |option: &str| {
        ["out", "target", "tasks", "fail-on-drop", "kl", "json"].contains(&option)
            || (job.divergence && of_divergence.contains(&option))
    };
    match typed.iter().find(|option| !is_heard(option)) {
        Some(option) => {
            Err(Error::usage(format!("--{option} has no effect: folders are compared as they are, and nothing is evaluated"))
                .cure("Leave it out, or first evaluate the models with it, using `diagnose eval` and other folders."))
        }
        None => Ok(()),
    }
}
