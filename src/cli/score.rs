//! Implements `diagnose DATASET...`: scores, sorts, maps and reports. `diagnose RUN_FOLDER --thresholds ..` sorts a finished run again.

use std::path::{Path, PathBuf};

use serde_json::json;

use super::models::{LoadArgs, ModelArgs};
use super::output;
use super::progress::Terminal;
use super::rows::RowArgs;
use super::servers::ScoringArgs;
use crate::dataset::Shard;
use crate::diagnosis::Report;
use crate::diagnosis::quadrants::Thresholds;
use crate::error::{Error, Result};
use crate::format::count;
use crate::jobs::score::{self, Job, Joining, Outcome};
use crate::jobs::{folders, landscape};
use crate::report::terminal;

#[derive(clap::Args)]
pub(super) struct Args {
    /// Data files (JSONL, JSON, CSV, Parquet, Arrow; also .gz, .zst, .bz2, .xz or .zip), folders, globs, or `-` for standard
    /// input. Or a finished run folder, to apply other --thresholds without the model; or several, to compare them side by side
    #[arg(required = true, value_name = "DATASET")]
    datasets: Vec<String>,

    #[command(flatten)]
    model: ModelArgs,

    /// Run folder [default: a folder under runs/ named after the data]
    #[arg(long, value_name = "DIR", aliases = ["output-dir", "output_dir"])]
    out: Option<PathBuf>,

    #[command(flatten)]
    load: LoadArgs,

    #[command(flatten)]
    servers: ScoringArgs,

    #[command(flatten)]
    rows: RowArgs,

    /// Score one shard of the rows, such as 0/4, the first of four; `diagnose 'runs/NAME-shard-*'` then joins all of them into one run
    #[arg(long, value_name = "I/N", hide_short_help = true)]
    shard: Option<Shard>,

    /// Boundaries of the quadrants: fixed (p 0.25, H 1 nat), pilot, groups, tail, or numbers such as p=0.2,H=0.8 [default: fixed; for a finished
    /// run its own]
    #[arg(long, value_name = "THRESHOLDS")]
    thresholds: Option<Thresholds>,

    /// For a finished run: current paths of its data files, in order [default: their recorded names]
    #[arg(long, value_name = "FILE", hide_short_help = true)]
    data: Vec<String>,

    /// Do not write view.html, the page for reading the run
    #[arg(long, hide_short_help = true)]
    no_view: bool,

    /// Score answers with conflicts again, with another row of the same kind shown first: conflicts that disappear can be fixed by a prompt
    #[arg(long, conflicts_with_all = ["shard", "elsewhere"], hide_short_help = true)]
    in_context: bool,

    /// Options from a TOML file; the command line overrides it [default: diagnose.toml beside the data, with paths relative to
    /// its folder]
    #[arg(long, value_name = "FILE")]
    #[allow(dead_code, reason = "config.rs reads it before the rest is parsed")]
    config: Option<PathBuf>,

    /// Print the summary as JSON, with the run folder as `out`
    #[arg(long)]
    json: bool,
}

/// What `--json` prints.
#[derive(serde::Serialize)]
struct Printed<'a> {
    out: &'a Path,
    #[serde(flatten)]
    report: &'a Report,
}

/// `typed` are the options that were typed.
pub(super) fn run(args: Args, typed: &[String], command_line: &str) -> Result<()> {
    let json = args.json;
    let mut args = args;
    let were_joined = join_shards(&mut args, command_line)?;
    if let Some(runs) = runs_side_by_side(&args) {
        let cure = "Leave it out; for other --thresholds first sort each run again by itself.";
        let drawn = "no effect on a comparison of runs, which are shown as they were scored and sorted";
        refuse_others(typed, &["out"], drawn, cure)?;
        let outcome = landscape::run(&landscape::Job { runs, out: args.out })?;
        return output::print(&match json {
            true => output::json(&outcome)?,
            false => format!("{}\nfigure   {}/landscapes.png\n", outcome.text, outcome.out.display()),
        });
    }
    if args.servers.emit.is_some() {
        return emit(args, command_line);
    }
    let watch = Terminal::heeding_interrupts()?;
    let outcome = match run_folder(&args)? {
        Some(folder) => {
            let own: &[&str] =
                if were_joined { &["thresholds", "no-view", "data", "out"] } else { &["thresholds", "no-view", "data"] };
            let cure = "Leave it out, or pass the data instead of the folder to score them.";
            refuse_others(typed, own, "no effect on a finished run, which is sorted again, not scored", cure)?;
            score::sort_again(&folder, &args.data, args.thresholds, !args.no_view, command_line, &watch)?
        }
        None => score::run(job(args, command_line)?, &watch)?,
    };
    drop(watch);
    print(&outcome, json)
}

fn emit(args: Args, command_line: &str) -> Result<()> {
    args.servers.check()?;
    let top_k = args.servers.top_logprobs;
    let watch = Terminal::new();
    let as_json = args.json;
    let emitted = score::emit(&job(args, command_line)?, top_k, &watch)?;
    drop(watch);
    let folder = emitted.script.parent().unwrap_or(Path::new("."));
    if as_json {
        let found = json!({"out": folder, "sequences": emitted.sequences, "script": emitted.script});
        return output::print(&output::json(&found)?);
    }
    output::print(&format!(
        "{} for {}\nRun it where vLLM is, then score with its answers:\n  python {} MODEL\n  diagnose DATASET --model MODEL --answers {}\n",
        count(emitted.sequences, "sequence"),
        emitted.script.display(),
        emitted.script.display(),
        folder.display()
    ))
}

/// Returns an error that names the typed options without effect: all but `own`, `--json` and `--config`.
fn refuse_others(typed: &[String], own: &[&str], has: &str, cure: &str) -> Result<()> {
    let is_own = |option: &str| ["json", "config"].contains(&option) || own.contains(&option);
    match typed.iter().find(|option| !is_own(option)) {
        Some(option) => Err(Error::usage(format!("--{option} has {has}")).cure(cure)),
        None => Ok(()),
    }
}

/// Replaces shards and globs by their runs if only runs are named, and returns whether it did.
fn join_shards(args: &mut Args, command_line: &str) -> Result<bool> {
    let named: Vec<Vec<PathBuf>> = args.datasets.iter().map(|name| folders::runs_of(name)).collect();
    let runs: Vec<PathBuf> = named.iter().flatten().cloned().collect();
    if named.iter().any(Vec::is_empty) {
        return Ok(false);
    }
    let joining = Joining { out: args.out.as_deref(), sorted: args.thresholds.is_none(), command: command_line };
    let joined = score::joined(&runs, &joining, &Terminal::new())?;
    let of = |run: &PathBuf| {
        run.to_str().map(str::to_owned).ok_or_else(|| Error::new("expected a folder name of valid Unicode").at(run))
    };
    let before = std::mem::replace(&mut args.datasets, joined.iter().map(of).collect::<Result<_>>()?);
    Ok(before != args.datasets)
}

/// Returns the runs if several finished runs and nothing else are named.
fn runs_side_by_side(args: &Args) -> Option<Vec<PathBuf>> {
    let runs: Vec<PathBuf> = args.datasets.iter().map(PathBuf::from).collect();
    (runs.len() > 1 && runs.iter().all(|run| run.is_dir() && folders::holds_scores(run))).then_some(runs)
}

/// The finished run to sort again, if one is named. Any other folder is a data set.
fn run_folder(args: &Args) -> Result<Option<PathBuf>> {
    let is_folder = |dataset: &&String| Path::new(dataset).is_dir();
    let is_run = |dataset: &&String| is_folder(dataset) && folders::holds_scores(Path::new(dataset));
    if let Some(folder) = args.datasets.iter().find(is_run) {
        let is_nothing = |name: &&String| *name != "-" && !name.contains(['*', '?', '[']) && !Path::new(name).exists();
        if let Some(name) = args.datasets.iter().find(is_nothing) {
            return Err(Error::usage("there is no run folder or data file with this name")
                .at(name)
                .cure("Check the name; relative paths start at the current folder."));
        }
        if args.in_context {
            return Err(Error::usage("--in-context runs the model, which cannot be loaded from a run folder alone")
                .at(folder)
                .cure("Run the command that made the run with --in-context added: existing scores are kept."));
        }
        return match args.datasets.len() {
            1 => Ok(Some(PathBuf::from(folder))),
            _ => Err(Error::usage("a run folder is sorted again by itself, or compared with other runs, not combined with data")
                .at(folder)),
        };
    }
    match args.datasets.iter().filter(is_folder).find(|folder| folders::is_no_data(Path::new(folder))) {
        Some(folder) => Err(folders::not_data(Path::new(folder))),
        None => Ok(None),
    }
}

fn job(args: Args, command_line: &str) -> Result<Job> {
    if let Some(file) = args.data.first() {
        return Err(Error::usage(format!(
            "--data {file} has no effect when data are scored: it gives the current paths of a finished run's data"
        ))
        .cure("Pass the files to score without --data, or a finished run with it."));
    }
    args.rows.refuse_lone_seed()?;
    Ok(Job {
        read: args.rows.read()?,
        inputs: args.datasets,
        model: args.model.name(),
        max_len: args.rows.max_len(),
        out: args.out,
        load: args.load.options(),
        elsewhere: args.servers.elsewhere()?,
        render: args.rows.render()?,
        choice: args.rows.choice(),
        shard: args.shard,
        thresholds: args.thresholds,
        with_page: !args.no_view,
        in_context: args.in_context,
        command: command_line.to_owned(),
    })
}

fn print(outcome: &Outcome, json: bool) -> Result<()> {
    let text = match json {
        true => output::json(&Printed { out: &outcome.out, report: &outcome.report })?,
        false => terminal::summary(&outcome.heading(), &outcome.report, output::coloured()),
    };
    output::print(&text)
}
