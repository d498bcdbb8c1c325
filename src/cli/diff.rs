//! `diagnose diff BEFORE AFTER`: what changed between two models, two evaluations or two score runs.

use std::path::{Path, PathBuf};

use serde_json::Value;

use super::eval::Options;
use super::progress::Terminal;
use crate::diagnosis::movement;
use crate::error::{Context, Error, Result};
use crate::eval::compare::{self, Side};
use crate::eval::results::SCORES_FILE;
use crate::eval::{self, Job, Named, Way, harness, retention, tasks};
use crate::model::{DEFAULT_MODEL, Reference};
use crate::report::diff::{Diff, Distance, What, terminal, write};
use crate::run::Watch;
use crate::table::TOKENS_FILE;

/// Say what changed between two models, two evaluations or two score runs
///
/// Two folders of `diagnose eval` are compared item by item: differences with paired bootstrap intervals, McNemar's exact test,
/// the items that flipped, and the macro average. Models are evaluated first, each into a folder under runs/ that the next
/// comparison finds again. Two score runs over the same data set show how tokens moved between the quadrants. With --target, any
/// number of runs is set against the model before: what each gained on the target, and what it lost in general.
#[derive(clap::Args)]
pub struct Args {
    /// The folder of an evaluation or of a score run; samples_TASK_TIME.jsonl of lm-evaluation-harness, or a folder of these; or a
    /// model: a folder, a .gguf file, and with --tasks a hub id
    before: String,

    /// The other one, of the same kind; several with --target
    #[arg(required = true)]
    after: Vec<String>,

    /// Write diff.json, diff.md, diff.html and a figure into this folder
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// The tasks that the runs were fine-tuned for: what was gained there is set against what was lost on all others
    #[arg(long, value_name = "TASKS", value_delimiter = ',')]
    target: Vec<String>,

    /// End with exit code 3 where the macro average (with --target, that of the other tasks) dropped by more than PTS points with
    /// confidence: where even the upper end of its 95 % interval lies below
    #[arg(long, value_name = "PTS")]
    fail_on_drop: Option<f64>,

    /// Run the models behind two folders for their mean divergence on general text; always done where models are given
    #[arg(long)]
    kl: bool,

    /// Print the comparison as JSON
    #[arg(long)]
    json: bool,

    /// What to evaluate models on, as for `diagnose eval`; `probe` by default
    #[arg(long, value_name = "TASKS", value_delimiter = ',', help_heading = "Evaluation")]
    tasks: Vec<String>,

    #[command(flatten)]
    options: Options,
}

pub fn run(args: Args, command_line: &str) -> Result<()> {
    if args.fail_on_drop.is_some_and(|points| !(0.0..=100.0).contains(&points)) {
        return Err(Error::usage("--fail-on-drop takes points from 0 to 100"));
    }
    let what = compared(&args, command_line)?;
    if args.fail_on_drop.is_some() && matches!(what, What::Scores(_)) {
        return Err(Error::usage("--fail-on-drop is for evaluations; score runs have no accuracy"));
    }
    let diff = Diff { what, divergence: distance(&args)? };
    if let Some(out) = &args.out {
        write(&diff, out, command_line)?;
    }
    super::print(&match args.json {
        true => serde_json::to_string_pretty(&diff).context("cannot write JSON")? + "\n",
        false => terminal(&diff, super::coloured()),
    })?;
    match (args.fail_on_drop, &diff.what) {
        (Some(points), What::Evaluations(comparison)) => comparison.check_drop(points),
        (Some(points), What::Retention(retention)) => {
            let check = |run: &retention::Run| run.general.check_drop(&format!("the general average of {}", run.name), points);
            retention.runs.iter().try_for_each(check)
        }
        _ => Ok(()),
    }
}

fn compared(args: &Args, command_line: &str) -> Result<What> {
    let before = kind(&args.before, args)?;
    let afters = args.after.iter().map(|after| kind(after, args)).collect::<Result<Vec<_>>>()?;
    let n_runs = afters.iter().chain([&before]).filter(|kind| **kind == Kind::ScoreRun).count();
    match (n_runs, &args.after[..]) {
        (2, [after]) if args.target.is_empty() => {
            return Ok(What::Scores(movement::compare(Path::new(&args.before), Path::new(after))?));
        }
        (0, _) => {}
        (1, [_]) => {
            return Err(Error::usage("one folder is an evaluation, the other a score run")
                .cure("Compare two folders of `diagnose eval`, or two of `diagnose DATASET`."));
        }
        _ => return Err(Error::usage("score runs are compared two at a time, without --target")),
    }
    if afters.len() > 1 && args.target.is_empty() {
        return Err(Error::usage("several runs after one before need --target: the tasks that they were fine-tuned for")
            .cure("Compare two at a time without it."));
    }
    let way = args.options.way()?;
    let before = side(before, &args.before, args, &way, command_line)?;
    let sides = afters.into_iter().zip(&args.after).map(|(kind, after)| side(kind, after, args, &way, command_line));
    let mut sides = sides.collect::<Result<Vec<_>>>()?;
    if args.target.is_empty() {
        let after = sides.remove(0);
        return Ok(What::Evaluations(compare::compare(&before, &after)?));
    }
    // Folders of evaluations bear the names of their models, which runs from one script share: their own names tell them apart.
    for (side, after) in sides.iter_mut().zip(&args.after) {
        side.name = Path::new(after).file_name().map_or_else(|| after.clone(), |name| name.to_string_lossy().into_owned());
    }
    Ok(What::Retention(retention::retention(before, sides, &args.target)?))
}

#[derive(Clone, Copy, PartialEq)]
enum Kind {
    Evaluation,
    /// Sample files of lm-evaluation-harness.
    Harness,
    ScoreRun,
    Model,
}

fn kind(written: &str, args: &Args) -> Result<Kind> {
    let path = Path::new(written);
    if path.join(SCORES_FILE).is_file() {
        Ok(Kind::Evaluation)
    } else if path.join(TOKENS_FILE).is_file() {
        Ok(Kind::ScoreRun)
    } else if harness::is_harness(path) {
        Ok(Kind::Harness)
    } else if Reference::looks_like_one(written) && (path.exists() || !args.tasks.is_empty()) {
        Ok(Kind::Model)
    } else {
        Err(Error::usage(format!("expected a folder with {SCORES_FILE} or {TOKENS_FILE}, or a model; found none")).at(path).cure(
            "Give the --out folder of a finished `diagnose eval` or `diagnose DATASET`, the samples_*.jsonl files of \
             lm-evaluation-harness, a model folder or .gguf file, or a hub id with --tasks.",
        ))
    }
}

fn side(kind: Kind, written: &str, args: &Args, way: &Way, command_line: &str) -> Result<Side> {
    match kind {
        Kind::Harness => harness::read_side(Path::new(written)),
        Kind::Model => {
            let tasks = if args.tasks.is_empty() { vec![tasks::PROBE.to_owned()] } else { args.tasks.clone() };
            let job = Job { model: Some(written.to_owned()), tasks, out: None, way: *way, command: command_line.to_owned() };
            let watch = Terminal::new();
            let fetching = |what: &str, done, total| watch.fetching(what, done, total);
            let evaluated = eval::evaluate(&job, &fetching, &|what, done, total| watch.evaluating(what, done, total))?;
            compare::read_side(&evaluated.out)
        }
        Kind::Evaluation | Kind::ScoreRun => compare::read_side(Path::new(written)),
    }
}

/// The divergence of the two models, where both can be run and the user asks for it by naming models or by --kl.
fn distance(args: &Args) -> Result<Distance> {
    let unknown = |why: &str| Ok(Distance::Unknown { unavailable: why.to_owned() });
    let [after] = &args.after[..] else { return unknown("not measured for several runs") };
    let kinds = [kind(&args.before, args)?, kind(after, args)?];
    if !args.kl && kinds != [Kind::Model; 2] {
        return unknown("not measured; --kl runs both models for it");
    }
    let behind = |written: &String, kind| model_behind(Path::new(written), kind);
    let (Some(before), Some(after)) = (behind(&args.before, kinds[0])?, behind(after, kinds[1])?) else {
        return unknown("not available: the samples of lm-evaluation-harness do not tell where the models are");
    };
    let way = args.options.way()?;
    let watch = Terminal::new();
    let fetching = |what: &str, done, total| watch.fetching(what, done, total);
    let scoring = |what: &str, done, total| watch.evaluating(what, done, total);
    match eval::divergence([&before, &after], &way, &fetching, &scoring) {
        Ok(divergence) => Ok(Distance::Measured(divergence)),
        Err(error) => unknown(&format!("not available: {}", error.reason())),
    }
}

/// The model that a side is, or was made with.
fn model_behind(path: &Path, kind: Kind) -> Result<Option<Named>> {
    let named = |file: &str, model: &str| {
        let path = path.join(file);
        let bytes = std::fs::read(&path).context_at(&path, "cannot read what made the folder")?;
        let record: Value = serde_json::from_slice(&bytes).context_at(&path, "the file is no JSON")?;
        let text = |key: &str| record.pointer(&format!("{model}{key}")).and_then(Value::as_str).map(str::to_owned);
        let written = text("reference").filter(|written| written != DEFAULT_MODEL);
        Ok(Some(Named { written, sha256: text("sha256") }))
    };
    match kind {
        Kind::Harness => Ok(None),
        Kind::Model => Ok(Some(Named { written: Some(path.to_string_lossy().into_owned()), sha256: None })),
        Kind::Evaluation => named(SCORES_FILE, "/model_"),
        Kind::ScoreRun => named("run.json", "/model/"),
    }
}
