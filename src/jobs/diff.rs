//! Compares two models, two evaluations or two score runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::eval::{self, KnownModel, Way};
use super::folders::{names, whole};
use super::score::{RUN_FILE, RunRecord, find_data, read_finished_report, read_listed, read_record};
use super::view;
use super::work::{COMPARISON_FILE, Work, check_free};
use crate::diagnosis::kinds::ConflictKind;
use crate::diagnosis::learnt::Verdict;
use crate::diagnosis::movement::{self, Movement};
use crate::diagnosis::paired::{Pairing, Partners};
use crate::diagnosis::quadrants::Resolved;
use crate::error::{Context, Error, Result};
use crate::eval::compare::{self, Side};
use crate::eval::results::SCORES_FILE;
use crate::eval::{harness, retention, tasks};
use crate::files::{write_json, write_text};
use crate::format::{counted, thousands};
use crate::jobs::watch::Watch;
use crate::json;
use crate::model::{DEFAULT_MODEL, ModelName, Reference};
use crate::report::diff::{self as report, Diff, Distance, What};
use crate::table::{
    CONFLICTS_FILE, KnownConflict, LEARNT_FILE, LearntRow, ROWS_FILE, TOKENS_FILE, read_conflicts, read_rows, write_learnt,
};

/// A comparison as the user requested it.
pub(crate) struct Job {
    /// The folder of an evaluation or of a score run, samples of lm-evaluation-harness, or a model.
    pub before: String,
    /// The other side, of the same kind as `before`; several if there is a target.
    pub after: Vec<String>,
    /// The tasks that the runs were fine-tuned for, if any.
    pub target: Vec<String>,
    /// The tasks to evaluate models on; empty for the probe. For evaluations, the tasks to compare; empty for all.
    pub tasks: Vec<String>,
    /// Whether to also run the models behind folders, for their divergence.
    pub divergence: bool,
    /// The drop in points from which the comparison is an error.
    pub fail_on_drop: Option<f64>,
    /// How models are evaluated.
    pub way: Way,
    /// The command line, for the records of evaluations.
    pub command: String,
}

/// Compares the two sides, after evaluating those that are models.
pub(crate) fn run(job: &Job, watch: &dyn Watch) -> Result<Diff> {
    if job.fail_on_drop.is_some() && kind(&job.before, job)? == SideKind::ScoreRun {
        return Err(Error::usage("--fail-on-drop is for evaluations; score runs have no accuracy").cure("Leave it out."));
    }
    // Compute a requested divergence first, so that an impossible one fails before the other work.
    let asked = if job.divergence { Some(distance(job, watch)?) } else { None };
    let what = compared(job, watch)?;
    let divergence = asked.map_or_else(|| distance(job, watch), Ok)?;
    Ok(Diff { what, divergence, remarks: remarks(job)? })
}

/// Whether a side is a model, which has to be evaluated first.
pub(crate) fn evaluates(job: &Job) -> Result<bool> {
    let mut sides = job.after.iter().chain([&job.before]);
    sides.try_fold(false, |found, side| Ok(found || kind(side, job)? == SideKind::Model))
}

/// Differences between our folders other than the models, as sentences without full stops; empty for anything but folders.
fn remarks(job: &Job) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let Some((kind, before)) = record(&job.before, job)? else { return Ok(said) };
    for written in &job.after {
        let Some((_, after)) = record(written, job)? else { continue };
        let records = [&before, &after];
        if kind == SideKind::ScoreRun {
            said.extend(other_rows([&job.before, written])?);
        }
        if let (SideKind::Evaluation, [Some(a), Some(b)]) = (kind, records.map(|record| record["max_len"].as_u64()))
            && a != b
        {
            said.push(format!(
                "The model sees {a} tokens at once in {} and {b} in {written} (--max-len): part of every change may be that of contexts that are cut",
                job.before
            ));
        }
        // A difference of engines is reported separately.
        if records.into_iter().any(|record| record["server"].is_object()) {
            continue;
        }
        for (key, what) in [("kernel_level", "kernel level"), ("dtype", "precision"), ("device", "device")] {
            match records.map(|record| record[key].as_str()) {
                [Some(a), Some(b)] if a != b => said.push(format!(
                    "The {what} is {a} in {} and {b} in {written}: part of every change is that of rounding",
                    job.before
                )),
                _ => {}
            }
        }
    }
    Ok(said)
}

/// The record of one of our folders.
fn record(written: &String, job: &Job) -> Result<Option<(SideKind, Value)>> {
    let kind = kind(written, job)?;
    let file = match kind {
        SideKind::Evaluation => SCORES_FILE,
        SideKind::ScoreRun => RUN_FILE,
        SideKind::Harness | SideKind::Model => return Ok(None),
    };
    Ok(Some((kind, read(&Path::new(written).join(file))?)))
}

/// How the rows of two score runs correspond if they did not read the same files in the same way; `None` if they did.
fn other_data(runs: [&Path; 2]) -> Result<Option<Pairing>> {
    let [before, after] = records(runs)?;
    let read = |record: &RunRecord| {
        let hashes: Vec<String> = record.data.iter().map(|file| file.sha256.clone()).collect();
        (hashes, record.read.clone().unwrap_or_default())
    };
    if read(&before) == read(&after) {
        return Ok(None);
    }
    let alike = other_rendering([&before, &after]).is_empty();
    let [before, after] = runs.map(|run| read_rows(&run.join(ROWS_FILE)));
    Ok(Some(Pairing::of_other_data(&before?, &after?, alike)))
}

fn records(runs: [&Path; 2]) -> Result<[RunRecord; 2]> {
    let [before, after] = runs.map(|run| read_record(&run.join(RUN_FILE)));
    Ok([before?, after?])
}

/// The settings by which two runs tokenize a row differently; after a different token, a model scores the same token differently.
fn other_rendering([a, b]: [&RunRecord; 2]) -> Vec<&'static str> {
    let others = [
        (a.template_sha256 != b.template_sha256, "the template"),
        (a.system != b.system, "the system prompt (--system)"),
        (a.template_switches != b.template_switches, "the template's variables (--chat-template-kwargs)"),
        (a.append_eos != b.append_eos, "the end of plain texts (--append-eos)"),
    ];
    others.into_iter().filter_map(|(differs, what)| differs.then_some(what)).collect()
}

/// The settings of two score runs that change tokens or quadrants independently of the models.
fn other_rows([before, after]: [&String; 2]) -> Result<Vec<String>> {
    let mut said = Vec::new();
    let folders = [before, after].map(Path::new);
    let [own, other] = &records(folders)?;
    if let Some(pairing) = other_data(folders)? {
        let how = match pairing {
            Pairing::Rows(Partners { rows, by_id, changed }) => {
                let how = if by_id { "rows are paired by their ids" } else { "the rows have no ids, and are paired by their numbers" };
                let changed = match changed {
                    0 => String::new(),
                    n => format!(
                        "; {}, since a model says something else of the same token behind another text",
                        counted(n, "more has another text and is left out", "more have other texts and are left out")
                    ),
                };
                format!("{how}, {} of them{changed}", thousands(rows.len() as u64))
            }
            Pairing::ByNumber => {
                "the rows have no ids, and the same tokens at the same places of rows with the same number are compared, whatever rows these are"
                    .to_owned()
            }
        };
        said.push(format!("{before} and {after} have not read the same files in the same way: {how}"));
    }
    let others = other_rendering([own, other]);
    if !others.is_empty() {
        said.push(format!(
            "{before} and {after} differ in {}: part of what changed is that, since a model says something else of the same token behind \
             another text",
            others.join(" and ")
        ));
    }
    let cuts = |run: &Path| -> Result<bool> { Ok(read_rows(&run.join(ROWS_FILE))?.iter().any(|row| row.truncated)) };
    if own.max_len != other.max_len && (cuts(folders[0])? || cuts(folders[1])?) {
        said.push(format!(
            "Rows are cut after {} tokens in {before} and after {} in {after} (--max-len): what only one of them has kept is not compared",
            thousands(own.max_len as u64),
            thousands(other.max_len as u64)
        ));
    }
    let thresholds = |folder: &str| -> Result<Resolved> { Ok(read_finished_report(Path::new(folder))?.summary.thresholds) };
    let (own, other) = (thresholds(before)?, thresholds(after)?);
    if !own.sorts_like(&other) {
        said.push(format!(
            "{before} was sorted by {own}, and {after} by {other}: tokens have moved between the quadrants for that, too"
        ));
    }
    Ok(said)
}

impl Job {
    /// Returns an error if something dropped by more than the user allows.
    pub(crate) fn check_drop(&self, diff: &Diff) -> Result<()> {
        match (self.fail_on_drop, &diff.what) {
            (Some(points), What::Evaluations(comparison)) => comparison.check_drop(points),
            (Some(points), What::Retention(retention)) => {
                let check =
                    |run: &retention::Run| run.general.check_drop(&format!("the general average of {}", run.name), points);
                retention.runs.iter().try_for_each(check)
            }
            _ => Ok(()),
        }
    }
}

/// Returns an error if what [`write`] writes would replace files of other origin.
pub(crate) fn check_out(job: &Job, out: &Path) -> Result<()> {
    check_free(out, Work::Comparison)?;
    match kind(&job.before, job)? {
        SideKind::ScoreRun => view::check_page(&out.join(view::COMPARED_FILE)),
        _ => Ok(()),
    }
}

/// Writes diff.json, diff.md, diff.html, and the figure as PNG and SVG; for two score runs also learnt.parquet and compared.html.
pub(crate) fn write(diff: &Diff, out: &Path, command: &str) -> Result<()> {
    std::fs::create_dir_all(out).context_at(out, "cannot create the folder")?;
    write_json(&out.join(COMPARISON_FILE), diff)?;
    for extension in ["png", "svg"] {
        report::draw(diff, out, extension)?;
    }
    let svg = |name: &str| {
        // The file was written above.
        let text = std::fs::read_to_string(out.join(format!("{name}.svg"))).unwrap_or_default();
        // An SVG inside HTML has no XML declaration.
        text.find("<svg").map_or_else(String::new, |begin| text[begin..].to_owned())
    };
    if let What::Scores(movement) = &diff.what {
        write_learnt_rows(movement, out)?;
    }
    let [markdown, html] = report::documents(diff, command, &svg);
    write_text(&out.join("diff.md"), &markdown)?;
    write_text(&out.join("diff.html"), &html)
}

fn compared(job: &Job, watch: &dyn Watch) -> Result<What> {
    let before = kind(&job.before, job)?;
    let afters = job.after.iter().map(|after| kind(after, job)).collect::<Result<Vec<_>>>()?;
    let n_runs = afters.iter().chain([&before]).filter(|kind| **kind == SideKind::ScoreRun).count();
    match (n_runs, &job.after[..]) {
        (2, [after]) if job.target.is_empty() => {
            if !job.tasks.is_empty() {
                return Err(Error::usage("--tasks has no say: score runs have none").cure("Leave it out."));
            }
            return Ok(What::Scores(compare_scores(Path::new(&job.before), Path::new(after))?));
        }
        (0, _) => {}
        (1, [_]) => {
            return Err(Error::usage("one folder is an evaluation, the other a score run")
                .cure("Compare two folders of `diagnose eval`, or two of `diagnose DATASET`."));
        }
        _ => return Err(Error::usage("score runs are compared two at a time, without --target")),
    }
    if afters.len() > 1 && job.target.is_empty() {
        return Err(Error::usage("several runs after one before need --target: the tasks that they were fine-tuned for")
            .cure("Compare two at a time without it."));
    }
    let mut before = side(before, &job.before, job, watch)?;
    let sides = afters.into_iter().zip(&job.after).map(|(kind, after)| side(kind, after, job, watch));
    let mut sides = sides.collect::<Result<Vec<_>>>()?;
    if !evaluates(job)? && !job.tasks.is_empty() {
        choose(&mut before, &mut sides, &job.tasks)?;
    }
    if job.target.is_empty() {
        let mut after = sides.remove(0);
        tell_apart([&mut before, &mut after], [&job.before, &job.after[0]]);
        return Ok(What::Evaluations(compare::compare(&before, &after)?));
    }
    // Evaluation folders carry the names of their models, which runs of one script share; the folder names tell them apart.
    let mut of_all = names(&[std::slice::from_ref(&job.before), &job.after].concat()).into_iter();
    let of_before = of_all.next();
    for (side, name) in sides.iter_mut().zip(of_all) {
        side.name = name;
    }
    if let Some(name) = of_before.filter(|_| sides.iter().any(|side| side.name == before.name)) {
        before.name = name;
    }
    Ok(What::Retention(retention::retention(before, sides, &job.target)?))
}

/// Tells apart two sides whose models have the same name, as those of two training runs do: by the paths of the models, or if these are equal, by
/// what the user `written` for the sides.
fn tell_apart([before, after]: [&mut Side; 2], written: [&String; 2]) {
    if before.name != after.name {
        return;
    }
    let models = before.model_reference.as_ref().zip(after.model_reference.as_ref());
    let models = models.filter(|(a, b)| whole(Path::new(a)) != whole(Path::new(b)));
    let apart = names(&models.map_or(written, |(a, b)| [a, b]));
    for (side, name) in [before, after].into_iter().zip(apart) {
        side.name = name;
    }
}

/// Compares two score runs; listed tokens get their sentences if the data of the first run are available.
fn compare_scores(before: &Path, after: &Path) -> Result<Movement> {
    let conflicts = before.join(CONFLICTS_FILE);
    let by_place = |conflict: KnownConflict| Ok(((conflict.row, conflict.pos), conflict.kind.parse()?));
    let by_place = |conflict: Result<KnownConflict>| conflict.and_then(by_place);
    let kinds: Option<HashMap<(u32, u32), ConflictKind>> =
        conflicts.exists().then(|| read_conflicts(&conflicts).map(by_place).collect::<Result<_>>()).transpose()?;
    let rows = read_rows(&before.join(ROWS_FILE))?;
    let pairing = other_data([before, after])?.unwrap_or(Pairing::ByNumber);
    let mut movement = movement::compare(before, after, &pairing, kinds.as_ref())?;
    let places: HashMap<u32, String> = rows.into_iter().map(|row| (row.row, format!("{}:{}", row.path, row.line))).collect();
    movement.learnt.name_places(&|row| places.get(&row).cloned());
    // If the data have moved or changed, places remain without sentences.
    let data = read_record(&before.join(RUN_FILE)).and_then(|record| find_data(before, &record, &[]));
    if let Ok((dataset, chosen)) = data {
        let wanted = movement.learnt.listed_rows();
        let tables = [before.join(TOKENS_FILE)];
        read_listed(&tables, &dataset, &chosen, wanted, |row, context_of| movement.learnt.read_contexts(row, context_of))?;
    }
    Ok(movement)
}

/// Writes a table of all rows and the page with both runs side by side.
fn write_learnt_rows(movement: &Movement, out: &Path) -> Result<()> {
    let rows: Vec<LearntRow> = movement
        .learnt
        .all_rows
        .iter()
        .map(|row| LearntRow {
            row: row.row,
            tokens: row.tokens as u32,
            change: row.change.value as f32,
            ci95: row.change.ci95.map(|ends| ends.map(|end| end as f32)),
            nats: row.nats as f32,
            verdict: row.verdict.map_or("", Verdict::name),
        })
        .collect();
    let identity = |side: &str, run: &str| -> Result<(String, String)> {
        Ok((format!("diagnose.{side}"), read_record(&Path::new(run).join(RUN_FILE))?.identity))
    };
    let provenance = [identity("before", &movement.before)?, identity("after", &movement.after)?];
    write_learnt(&out.join(LEARNT_FILE), &rows, &provenance)?;
    let runs = vec![PathBuf::from(&movement.before), PathBuf::from(&movement.after)];
    let page = view::Job { runs, data: Vec::new(), out: Some(out.join(view::COMPARED_FILE)), most_tokens: view::MOST_TOKENS };
    view::view(&page).map(|_| ())
}

#[derive(Clone, Copy, PartialEq)]
enum SideKind {
    Evaluation,
    /// Sample files of lm-evaluation-harness.
    Harness,
    ScoreRun,
    Model,
}

fn kind(written: &str, job: &Job) -> Result<SideKind> {
    let path = Path::new(written);
    if path.join(SCORES_FILE).is_file() {
        Ok(SideKind::Evaluation)
    } else if path.join(TOKENS_FILE).is_file() {
        Ok(SideKind::ScoreRun)
    } else if harness::is_harness(path) {
        Ok(SideKind::Harness)
    } else if Reference::looks_like_one(written) && (path.exists() || !job.tasks.is_empty()) {
        Ok(SideKind::Model)
    } else {
        let found = if path.exists() { "found neither there" } else { "and there is nothing of this name" };
        Err(Error::usage(format!("expected a folder with {SCORES_FILE} or {TOKENS_FILE}, or a model, {found}")).at(path).cure(
            "Give the --out folder of a finished `diagnose eval` or `diagnose DATASET`, the samples_*.jsonl files of \
             lm-evaluation-harness, a model folder or .gguf file, or a hub id with --tasks.",
        ))
    }
}

fn side(kind: SideKind, written: &str, job: &Job, watch: &dyn Watch) -> Result<Side> {
    match kind {
        SideKind::Harness => harness::read_side(Path::new(written)),
        SideKind::Model => {
            let tasks = if job.tasks.is_empty() { vec![tasks::PROBE.to_owned()] } else { job.tasks.clone() };
            let command = job.command.clone();
            let asked = eval::Job {
                model: ModelName { written: Some(written.to_owned()), base: None },
                servers: None,
                tasks,
                out: None,
                way: job.way.clone(),
                command,
            };
            let evaluated = eval::run(&asked, watch)?;
            // The folder may contain tasks of earlier evaluations of the model.
            let mut side = compare::read_side(&evaluated.out)?;
            side.tasks.retain(|name, _| evaluated.tasks.contains(name));
            Ok(side)
        }
        SideKind::Evaluation | SideKind::ScoreRun => compare::read_side(Path::new(written)),
    }
}

/// Keeps only the tasks that --tasks selects, by name or group.
fn choose(before: &mut Side, others: &mut [Side], names: &[String]) -> Result<()> {
    let mut tasks = Vec::new();
    for name in names {
        tasks.extend(retention::named(before, "--tasks", name)?);
    }
    for side in others.iter_mut().chain([before]) {
        side.tasks.retain(|name, _| tasks.contains(name));
    }
    Ok(())
}

/// The divergence between the two models, if both can be run and the user requests it by naming models or with --kl.
fn distance(job: &Job, watch: &dyn Watch) -> Result<Distance> {
    let unknown = |why: &str| match job.divergence {
        true => Err(Error::usage(format!("--kl: the divergence is {why}")).cure("Leave --kl out.")),
        false => Ok(Distance::Unknown { unavailable: why.to_owned() }),
    };
    let [after] = &job.after[..] else { return unknown("not measured for several runs") };
    let kinds = [kind(&job.before, job)?, kind(after, job)?];
    if !job.divergence && kinds != [SideKind::Model; 2] {
        return unknown("not measured; --kl runs both models for it");
    }
    let behind = |written: &String, kind| model_behind(Path::new(written), kind);
    match (behind(&job.before, kinds[0])?, behind(after, kinds[1])?) {
        (Behind::Model(before), Behind::Model(after)) => match eval::divergence([&before, &after], &job.way, watch) {
            Ok(divergence) => Ok(Distance::Measured(divergence)),
            Err(error) if job.divergence => Err(error),
            Err(error) => unknown(&format!("not available: {}", error.reason())),
        },
        (Behind::Server, _) | (_, Behind::Server) => {
            unknown("not available: a server ran a model, whose weights are not known here")
        }
        _ => unknown("not available: the samples of lm-evaluation-harness do not tell where the models are"),
    }
}

/// Reads the record of a folder.
fn read(path: &Path) -> Result<Value> {
    let bytes = std::fs::read(path).context_at(path, "cannot read what made the folder")?;
    json::from_slice(&bytes).context_at(path, "the file is no JSON")
}

/// The model of a side, given directly or known from its record.
enum Behind {
    Model(KnownModel),
    /// A server ran the model, so that its weights are not known here.
    Server,
    Unknown,
}

fn model_behind(path: &Path, kind: SideKind) -> Result<Behind> {
    let named = |file: &str, model: &str| {
        let record = read(&path.join(file))?;
        if record["server"].is_object() {
            return Ok(Behind::Server);
        }
        let text = |key: &str| record.pointer(&format!("{model}{key}")).and_then(Value::as_str).map(str::to_owned);
        let written = text("reference").filter(|written| written != DEFAULT_MODEL);
        Ok(Behind::Model(KnownModel { name: ModelName { written, base: text("base") }, sha256: text("sha256") }))
    };
    match kind {
        SideKind::Harness => Ok(Behind::Unknown),
        SideKind::Model => {
            let name = ModelName { written: Some(path.to_string_lossy().into_owned()), base: None };
            Ok(Behind::Model(KnownModel { name, sha256: None }))
        }
        SideKind::Evaluation => named(SCORES_FILE, "/model_"),
        SideKind::ScoreRun => named("run.json", "/model/"),
    }
}
