//! Compares two models, two evaluations or two score runs.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use super::eval::{self, KnownModel, Way};
use super::folders::{names, whole};
use super::score::{RunRecord, find_data, read_finished_report, read_listed, read_record};
use super::view;
use super::work::{Work, check_free};
use crate::diagnosis::kinds::kinds_by_place;
use crate::diagnosis::learnt::Verdict;
use crate::diagnosis::movement::{self, Movement};
use crate::diagnosis::paired::{Pairing, Partners};
use crate::diagnosis::quadrants::Resolved;
use crate::error::{Context, Error, Result};
use crate::eval::compare::{self, Side};
use crate::eval::results::{Identity, Scores, read_scores};
use crate::eval::{harness, retention, tasks};
use crate::files::{write_json, write_text};
use crate::format::{counted, thousands};
use crate::jobs::watch::Watch;
use crate::model::{DEFAULT_MODEL, Info, ModelName, Reference};
use crate::provenance::{DIFF_FILES, Provenance, SCORES_FILE};
use crate::report::diff::{self as report, Diff, Distance, What};
use crate::table::{CONFLICTS_FILE, LEARNT_FILE, LearntRow, ROWS_FILE, Row, TOKENS_FILE, read_rows, write_learnt};

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

/// The sides of a comparison, opened.
pub(crate) enum Sides {
    Runs(Box<[Run; 2]>),
    /// The first is the one before.
    Evaluations(Vec<Evaluated>),
}

/// A finished score run.
pub(crate) struct Run {
    folder: PathBuf,
    record: RunRecord,
    rows: Vec<Row>,
    thresholds: Resolved,
}

/// A model's answers to tasks.
pub(crate) enum Evaluated {
    /// The folder of an evaluation.
    Folder(Box<Scores>, Side),
    /// Sample files of lm-evaluation-harness.
    Harness(Side),
    /// A model, which is yet to be evaluated.
    Model(ModelName),
}

/// Opens the sides. Returns an error if they are not of one kind, or if an option has no effect on that kind.
pub(crate) fn open(job: &Job) -> Result<Sides> {
    let (mut runs, mut evaluations) = (Vec::new(), Vec::new());
    for written in [&job.before].into_iter().chain(&job.after) {
        let path = Path::new(written);
        if path.join(SCORES_FILE).is_file() {
            let scores = read_scores(path)?;
            let side = compare::side_of(&scores, path)?;
            evaluations.push(Evaluated::Folder(Box::new(scores), side));
        } else if path.join(TOKENS_FILE).is_file() {
            let (record, report) = (read_record(path)?, read_finished_report(path)?);
            let rows = read_rows(&path.join(ROWS_FILE))?;
            runs.push(Run { folder: path.to_owned(), record, rows, thresholds: report.summary.thresholds });
        } else if harness::is_harness(path) {
            evaluations.push(Evaluated::Harness(harness::read_side(path)?));
        } else if Reference::looks_like_one(written) && (path.exists() || !job.tasks.is_empty()) {
            evaluations.push(Evaluated::Model(ModelName { written: Some(written.clone()), base: None }));
        } else {
            let found = if path.exists() { "found neither there" } else { "and there is nothing of this name" };
            return Err(Error::usage(format!("expected a folder with {SCORES_FILE} or {TOKENS_FILE}, or a model, {found}"))
                .at(path)
                .cure(
                    "Give the --out folder of a finished `diagnose eval` or `diagnose DATASET`, the samples_*.jsonl files of \
                     lm-evaluation-harness, a model folder or .gguf file, or a hub id with --tasks.",
                ));
        }
    }
    match (<[Run; 2]>::try_from(runs), evaluations.len()) {
        (Ok(runs), 0) if job.target.is_empty() => {
            let unheard = [(!job.tasks.is_empty(), "--tasks"), (job.fail_on_drop.is_some(), "--fail-on-drop")];
            match unheard.into_iter().find(|(is_given, _)| *is_given) {
                Some((_, option)) => {
                    Err(Error::usage(format!("{option} is for evaluations; score runs have neither tasks nor an accuracy"))
                        .cure("Leave it out."))
                }
                None => Ok(Sides::Runs(Box::new(runs))),
            }
        }
        (Err(runs), n) if runs.is_empty() => match n > 2 && job.target.is_empty() {
            true => Err(Error::usage("several runs after one before need --target: the tasks that they were fine-tuned for")
                .cure("Compare two at a time without it.")),
            false => Ok(Sides::Evaluations(evaluations)),
        },
        (Err(_), 1) => Err(Error::usage("one folder is an evaluation, the other a score run")
            .cure("Compare two folders of `diagnose eval`, or two of `diagnose DATASET`.")),
        _ => Err(Error::usage("score runs are compared two at a time, without --target")),
    }
}

impl Sides {
    /// Whether a side is a model, which has to be evaluated first.
    pub(crate) fn evaluates(&self) -> bool {
        match self {
            Sides::Runs(_) => false,
            Sides::Evaluations(sides) => sides.iter().any(|side| matches!(side, Evaluated::Model(_))),
        }
    }
}

/// Compares the sides, after evaluating those that are models.
pub(crate) fn run(job: &Job, sides: Sides, watch: &dyn Watch) -> Result<Diff> {
    let models = models_behind(&sides);
    // Compute a requested divergence first, so that an impossible one fails before the other work.
    let asked = if job.divergence { Some(distance(job, &models, watch)?) } else { None };
    let evaluates = sides.evaluates();
    let (what, remarks) = match sides {
        Sides::Runs(runs) => {
            let pairing = other_data(&runs);
            let remarks = other_rows(&runs, pairing.as_ref());
            (What::Scores(compare_scores(&runs, &pairing.unwrap_or(Pairing::ByNumber))?), remarks)
        }
        Sides::Evaluations(evaluations) => {
            let remarks = other_settings(job, &evaluations);
            let sides = evaluations.into_iter().map(|side| side.answered(job, watch)).collect::<Result<Vec<_>>>()?;
            (compare_evaluations(job, sides, evaluates)?, remarks)
        }
    };
    let divergence = asked.map_or_else(|| distance(job, &models, watch), Ok)?;
    Ok(Diff { what, divergence, remarks })
}

impl Evaluated {
    /// The answers; a model is evaluated for them.
    fn answered(self, job: &Job, watch: &dyn Watch) -> Result<Side> {
        match self {
            Evaluated::Folder(_, side) | Evaluated::Harness(side) => Ok(side),
            Evaluated::Model(model) => {
                let tasks = if job.tasks.is_empty() { vec![tasks::PROBE.to_owned()] } else { job.tasks.clone() };
                let (way, command) = (job.way.clone(), job.command.clone());
                let evaluated = eval::run(&eval::Job { model, servers: None, tasks, out: None, way, command }, watch)?;
                // The folder may contain tasks of earlier evaluations of the model.
                let mut side = compare::side_of(&evaluated.scores, &evaluated.out)?;
                side.tasks.retain(|name, _| evaluated.tasks.contains(name));
                Ok(side)
            }
        }
    }
}

/// Differences between evaluation folders other than the models, as sentences without full stops.
fn other_settings(job: &Job, evaluations: &[Evaluated]) -> Vec<String> {
    let mut said = Vec::new();
    let mut written = [&job.before].into_iter().chain(&job.after).zip(evaluations);
    let Some((before, Evaluated::Folder(own, _))) = written.next() else { return said };
    for (after, side) in written {
        let Evaluated::Folder(other, _) = side else { continue };
        let [a, b] = [own, other].map(|scores| scores.identity.max_len);
        if a != b {
            said.push(format!(
                "The model sees {a} tokens at once in {before} and {b} in {after} (--max-len): part of every change may be that of contexts that are cut"
            ));
        }
        // A difference of engines is reported separately.
        if own.server.is_none() && other.server.is_none() {
            let made = [own, other].map(|scores| (&scores.provenance, &scores.identity.dtype));
            said.extend(other_rounding([before, after], made));
        }
    }
    said
}

/// The differences by which the same model gives other numbers, as sentences without full stops.
fn other_rounding([before, after]: [&str; 2], made: [(&Provenance, &String); 2]) -> Vec<String> {
    let settings = made.map(|(made, dtype)| [made.kernel_level.as_ref(), Some(dtype), Some(&made.device)]);
    let pairs = settings[0].into_iter().zip(settings[1]).zip(["kernel level", "precision", "device"]);
    let differing = pairs.filter_map(|((a, b), what)| Some((a?, b?, what)).filter(|(a, b, _)| a != b));
    let remark = |(a, b, what): (&String, &String, &str)| {
        format!("The {what} is {a} in {before} and {b} in {after}: part of every change is that of rounding")
    };
    differing.map(remark).collect()
}

/// How the rows of two score runs correspond if they did not read the same files in the same way; `None` if they did.
fn other_data([before, after]: &[Run; 2]) -> Option<Pairing> {
    let alike = other_rendering([&before.record, &after.record]).is_empty();
    (!before.record.reads_like(&after.record)).then(|| Pairing::of_other_data(&before.rows, &after.rows, alike))
}

/// The settings by which two runs tokenize a row differently; after a different token, a model scores the same token differently.
fn other_rendering([a, b]: [&RunRecord; 2]) -> Vec<&'static str> {
    let pairs = a.rendering().into_iter().zip(b.rendering());
    pairs.filter(|(a, b)| a != b).map(|((what, _), _)| what).collect()
}

/// Differences between two score runs that change tokens, quadrants or numbers independently of the models, as sentences without full stops.
/// `pairing` is that of [`other_data`].
fn other_rows([own, other]: &[Run; 2], pairing: Option<&Pairing>) -> Vec<String> {
    let mut said = Vec::new();
    let (before, after) = (own.folder.display().to_string(), other.folder.display().to_string());
    if let Some(pairing) = pairing {
        let how = match pairing {
            Pairing::Rows(Partners { rows, by_id, changed }) => {
                let how = if *by_id { "rows are paired by their ids" } else { "the rows have no ids, and are paired by their numbers" };
                let changed = match changed {
                    0 => String::new(),
                    n => format!(
                        "; {}, since a model says something else of the same token behind another text",
                        counted(*n, "more has another text and is left out", "more have other texts and are left out")
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
    let others = other_rendering([&own.record, &other.record]);
    if !others.is_empty() {
        said.push(format!(
            "{before} and {after} differ in {}: part of what changed is that, since a model says something else of the same token behind \
             another text",
            others.join(" and ")
        ));
    }
    let [own_len, other_len] = [own, other].map(|run| run.record.max_len as u64);
    if own_len != other_len && own.rows.iter().chain(&other.rows).any(|row| row.truncated) {
        said.push(format!(
            "Rows are cut after {} tokens in {before} and after {} in {after} (--max-len): what only one of them has kept is not compared",
            thousands(own_len),
            thousands(other_len)
        ));
    }
    let (by, other_by) = (&own.thresholds, &other.thresholds);
    if !by.sorts_like(other_by) {
        said.push(format!(
            "{before} was sorted by {by}, and {after} by {other_by}: tokens have moved between the quadrants for that, too"
        ));
    }
    // A difference of engines is reported separately.
    if own.record.server.is_none() && other.record.server.is_none() {
        said.extend(other_rounding([&before, &after], [own, other].map(|run| (&run.record.provenance, &run.record.dtype))));
    }
    said
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
pub(crate) fn check_out(sides: &Sides, out: &Path) -> Result<()> {
    check_free(out, Work::Comparison)?;
    match sides {
        Sides::Runs(_) => view::check_page(&out.join(view::COMPARED_FILE)),
        Sides::Evaluations(_) => Ok(()),
    }
}

/// Writes diff.json, diff.md, diff.html, and the figure as PNG and SVG; for two score runs also learnt.parquet and compared.html.
pub(crate) fn write(diff: &Diff, out: &Path, command: &str) -> Result<()> {
    std::fs::create_dir_all(out).context_at(out, "cannot create the folder")?;
    let [json, md, html] = DIFF_FILES.map(|name| out.join(name));
    // First, since an interrupted comparison is recognised by it.
    write_json(&json, diff)?;
    report::draw(diff, out, "png")?;
    let figure = report::draw(diff, out, "svg")?;
    let svg = std::fs::read_to_string(&figure).context_at(&figure, "cannot read the figure")?;
    // An SVG inside HTML has no XML declaration.
    let svg = &svg[svg.find("<svg").unwrap_or_default()..];
    if let What::Scores(movement) = &diff.what {
        write_rows(movement, out)?;
    }
    let [as_markdown, as_html] = report::documents(diff, command, svg);
    write_text(&md, &as_markdown)?;
    write_text(&html, &as_html)
}

/// Compares answers; the first side is the one before. `evaluated` says whether some were given just now, to the tasks of the job.
fn compare_evaluations(job: &Job, mut sides: Vec<Side>, evaluated: bool) -> Result<What> {
    if !evaluated && !job.tasks.is_empty() {
        choose(&mut sides, &job.tasks)?;
    }
    let mut before = sides.remove(0);
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
fn compare_scores([before, after]: &[Run; 2], pairing: &Pairing) -> Result<Movement> {
    let conflicts = before.folder.join(CONFLICTS_FILE);
    let kinds = conflicts.exists().then(|| kinds_by_place(&conflicts)).transpose()?;
    let mut movement = movement::compare(&before.folder, &after.folder, pairing, kinds.as_ref())?;
    movement.learnt.identities = [before, after].map(|run| run.record.identity.clone());
    let places: HashMap<u32, String> = before.rows.iter().map(|row| (row.row, format!("{}:{}", row.path, row.line))).collect();
    movement.learnt.name_places(&|row| places.get(&row).cloned());
    // If the data have moved or changed, places remain without sentences.
    if let Ok((dataset, chosen)) = find_data(&before.folder, &before.record, &[]) {
        let wanted = movement.learnt.listed_rows();
        let tables = [before.folder.join(TOKENS_FILE)];
        read_listed(&tables, &dataset, &chosen, wanted, |row, context_of| movement.learnt.read_contexts(row, context_of))?;
    }
    Ok(movement)
}

/// Writes a table of all rows and the page with both runs side by side.
fn write_rows(movement: &Movement, out: &Path) -> Result<()> {
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
    let [before, after] = movement.learnt.identities.clone();
    let provenance = [("diagnose.before".to_owned(), before), ("diagnose.after".to_owned(), after)];
    write_learnt(&out.join(LEARNT_FILE), &rows, &provenance)?;
    let runs = vec![PathBuf::from(&movement.before), PathBuf::from(&movement.after)];
    let page = view::Job { runs, data: Vec::new(), out: Some(out.join(view::COMPARED_FILE)), most_tokens: view::MOST_TOKENS };
    view::view(&page).map(|_| ())
}

/// Keeps only the tasks that --tasks selects, by name or group of the first side.
fn choose(sides: &mut [Side], names: &[String]) -> Result<()> {
    let mut tasks = Vec::new();
    for name in names {
        tasks.extend(retention::named(&mut sides[0], "--tasks", name)?);
    }
    sides.iter_mut().for_each(|side| side.tasks.retain(|name, _| tasks.contains(name)));
    Ok(())
}

/// The model of a side.
enum Behind {
    /// The user named it.
    Named(KnownModel),
    /// A folder names it.
    Recorded(KnownModel),
    /// A server ran the model, so that its weights are not known here.
    Server,
    Unknown,
}

/// The models of the sides, in their order.
fn models_behind(sides: &Sides) -> Vec<Behind> {
    let recorded = |server: bool, written: &String, base: &Option<String>, sha256: &String| match server {
        true => Behind::Server,
        false => {
            let written = Some(written.clone()).filter(|written| written != DEFAULT_MODEL);
            Behind::Recorded(KnownModel { name: ModelName { written, base: base.clone() }, sha256: Some(sha256.clone()) })
        }
    };
    let of_run = |Run { record, .. }: &Run| {
        let Info { reference, base, sha256, .. } = &record.model;
        recorded(record.server.is_some(), reference, base, sha256)
    };
    let of_evaluation = |side: &Evaluated| match side {
        Evaluated::Harness(_) => Behind::Unknown,
        Evaluated::Model(name) => Behind::Named(KnownModel { name: name.clone(), sha256: None }),
        Evaluated::Folder(scores, _) => {
            let Identity { model_reference, model_base, model_sha256, .. } = &scores.identity;
            recorded(scores.server.is_some(), model_reference, model_base, model_sha256)
        }
    };
    match sides {
        Sides::Runs(runs) => runs.iter().map(of_run).collect(),
        Sides::Evaluations(sides) => sides.iter().map(of_evaluation).collect(),
    }
}

/// The divergence between the two models, if both can be run and the user requests it by naming models or with --kl.
fn distance(job: &Job, models: &[Behind], watch: &dyn Watch) -> Result<Distance> {
    let unknown = |why: &str| match job.divergence {
        true => Err(Error::usage(format!("--kl: the divergence is {why}")).cure("Leave --kl out.")),
        false => Ok(Distance::Unknown { unavailable: why.to_owned() }),
    };
    match models {
        [Behind::Named(before), Behind::Named(after)] => match eval::divergence([before, after], &job.way, watch) {
            Err(error) if !job.divergence => unknown(&format!("not available: {}", error.reason())),
            measured => measured.map(Distance::Measured),
        },
        [_, _] if !job.divergence => unknown("not measured; --kl runs both models for it"),
        [Behind::Named(before) | Behind::Recorded(before), Behind::Named(after) | Behind::Recorded(after)] => {
            eval::divergence([before, after], &job.way, watch).map(Distance::Measured)
        }
        [Behind::Server, _] | [_, Behind::Server] => {
            unknown("not available: a server ran a model, whose weights are not known here")
        }
        [_, _] => unknown("not available: the samples of lm-evaluation-harness do not tell where the models are"),
        _ => unknown("not measured for several runs"),
    }
}
