//! Reports what changed between models, evaluations or score runs: for the terminal, as Markdown and HTML, and as a figure.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use serde::Serialize;

use super::columns::{first_that_fits, fits, laid_out};
use super::document::{self, Block, Inline, plain, strong};
use super::learnt;
use super::terminal::{Colours, in_colour, name};
use crate::diagnosis::movement::{Change, Movement};
use crate::error::Result;
use crate::eval::compare::{Comparison, Flips, MacroChange, MeanChange, MetricChange, TaskChange};
use crate::eval::divergence::Divergence;
use crate::eval::retention::{Retention, Run};
use crate::format::{count, divergence, n_tokens, number, part_of, thousands};
use crate::maps::{self, forest};
use crate::provenance;
use crate::stats::{Estimate, Interval};
use crate::table::Quadrant;

#[derive(Serialize)]
pub(crate) struct Diff {
    /// What was compared, and what changed.
    #[serde(flatten)]
    pub what: What,
    /// The divergence between the two models on general text, if it was measured.
    pub divergence: Distance,
    /// Differences other than the models, as sentences without full stops.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub remarks: Vec<String>,
}

#[derive(Serialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
#[expect(clippy::large_enum_variant, reason = "there is one of them in a run of the program")]
pub(crate) enum What {
    Evaluations(Comparison),
    Scores(Movement),
    Retention(Retention),
}

/// The mean divergence on general text, or why it is unknown.
#[derive(Serialize)]
#[serde(untagged)]
pub(crate) enum Distance {
    Measured(Divergence),
    Unknown { unavailable: String },
}

/// Draws the figure into the folder, and returns the path of the file.
pub(crate) fn draw(diff: &Diff, out: &Path, extension: &str) -> Result<PathBuf> {
    let name = match &diff.what {
        What::Evaluations(_) => "forest",
        What::Scores(_) => "movement",
        What::Retention(_) => "retention",
    };
    let path = out.join(format!("{name}.{extension}"));
    match &diff.what {
        What::Evaluations(comparison) => {
            let (rows, average) = forest_rows(comparison);
            forest::draw(&rows, average.as_ref(), &comparison.before, &comparison.after, &path)?;
        }
        What::Scores(movement) => maps::movement::draw(&movement_figure(movement), &path)?,
        What::Retention(retention) => maps::retention::draw(&retention_figure(retention), &retention.before, &path)?,
    }
    Ok(path)
}

/// diff.md and diff.html; `svg` is the drawn figure.
pub(crate) fn documents(diff: &Diff, command: &str, svg: &str) -> [String; 2] {
    let blocks = blocks(diff, command);
    [document::markdown(&blocks), document::html(&blocks, svg)]
}

/// Tables fit lines of `width` columns; sentences are not wrapped here.
pub(crate) fn terminal(diff: &Diff, coloured: bool, width: usize) -> String {
    let colours = Colours::of(coloured);
    let Colours { dim, reset, .. } = colours;
    let mut lines = match &diff.what {
        What::Evaluations(comparison) => evaluation_lines(comparison, colours, width),
        What::Scores(movement) => score_lines(movement, colours, width),
        What::Retention(retention) => retention_lines(retention, colours),
    };
    lines.extend(diff.remarks.iter().map(|remark| format!("{dim}{remark}{reset}")));
    lines.push(format!("{dim}{}{reset}", distance(&diff.divergence)));
    lines.into_iter().map(|line| line + "\n").collect()
}

/// The changes task by task, followed by means over subjects and tasks.
fn evaluation_lines(comparison: &Comparison, Colours { bold, dim, red, reset }: Colours, width: usize) -> Vec<String> {
    const HEAD: [&str; 10] =
        ["task", ">n", "metric", ">before", ">after", ">change", "95 % interval", ">lost", ">won", ">p (Holm)"];
    /// The columns that show the change; the others show its uncertainty.
    const OF_CHANGE: usize = 6;
    let (mut rows, mut colours) = (Vec::new(), vec![bold]);
    for (name, task) in &comparison.tasks {
        let Some(metric) = task.metrics.get(&task.primary) else { continue };
        let Row { before, after, change, interval, lost, gained, p, drop } = Row::of(task, metric);
        rows.push(vec![name.clone(), task.n.to_string(), task.primary.clone(), before, after, change, interval, lost, gained, p]);
        colours.push(if drop { red } else { "" });
    }
    for (name, by, change) in means(comparison) {
        rows.push([name.to_owned(), String::new(), by].into_iter().chain(mean_cells(change)).collect());
        colours.push("");
    }
    if let Some(MacroChange { tasks, before, after, difference }) = &comparison.macro_average {
        let change = MeanChange { before: *before, after: *after, difference: *difference };
        let of = [String::from("macro average"), String::new(), count(tasks.len() as u64, "task")];
        rows.push(of.into_iter().chain(mean_cells(&change)).collect());
        colours.push(bold);
    }
    let wide = laid_out(&HEAD, &rows);
    let table = match fits(&wide, width) {
        true => wide,
        // On a narrow terminal, the uncertainty of the changes is a separate table below.
        false => {
            let changes: Vec<Vec<String>> = rows.iter().map(|row| row[..OF_CHANGE].to_vec()).collect();
            let certainty = |row: &Vec<String>| match &row[OF_CHANGE..] {
                [interval, lost, won, p] => format!("\n    95 % interval {interval}, {lost} lost, {won} won, p (Holm) {p}"),
                rest => format!("\n    95 % interval {}", rest.concat()),
            };
            let below = std::iter::once(String::new()).chain(rows.iter().map(certainty));
            laid_out(&HEAD[..OF_CHANGE], &changes).into_iter().zip(below).map(|(line, below)| line + &below).collect()
        }
    };
    let mut lines = vec![format!("{bold}{}{reset} -> {bold}{}{reset}\n", comparison.before, comparison.after)];
    lines.extend(table.iter().zip(colours).map(|(line, on)| in_colour(line, on, reset)));
    lines.extend(warnings(comparison).into_iter().map(|warning| format!("{dim}{warning}{reset}")));
    lines
}

/// The movement between the quadrants, and what the model learnt.
fn score_lines(movement: &Movement, colours: Colours, width: usize) -> Vec<String> {
    let Colours { bold, dim, reset, .. } = colours;
    let mut lines = vec![
        format!("{bold}{}{reset} -> {bold}{}{reset}", movement.before, movement.after),
        format!(
            "{dim}{} on both sides, {} only before, {} only after{reset}\n",
            n_tokens(movement.tokens),
            thousands(movement.tokens_only_before),
            thousands(movement.tokens_only_after)
        ),
    ];
    let row = |quadrant: Quadrant| {
        let counts = movement.moved[quadrant.index()].map(thousands);
        [name(quadrant)].into_iter().chain(counts).chain(nats(&movement.by_quadrant[quadrant.index()])).collect()
    };
    let rows = Quadrant::ALL.map(row);
    // On a narrow terminal, `conflict` is short for `confident conflict`.
    let table = first_that_fits(
        [">confident conflict", ">conflict"].map(|conflict| {
            laid_out(&["before \\ after", conflict, ">uncertain", ">confident", ">hesitant", ">logprob", ">entropy"], &rows)
        }),
        width,
    );
    lines.extend(table.iter().enumerate().map(|(idx, line)| in_colour(line, if idx == 0 { bold } else { "" }, reset)));
    let [logprob, entropy] = nats(&movement.overall);
    lines.push(format!("\nmean change of logprob {logprob} nat, of entropy {entropy} nat"));
    lines.extend(learnt::terminal(&movement.learnt, colours, width));
    lines
}

/// Run by run, the gain on the target and the change on everything else.
fn retention_lines(retention: &Retention, Colours { bold, dim, red, reset }: Colours) -> Vec<String> {
    let (mut rows, mut colours) = (Vec::new(), vec![bold]);
    for run in &retention.runs {
        rows.push(retention_row(retention, run).to_vec());
        let lost = run.general.difference.ci95.is_some_and(|[_, high]| high < 0.0);
        colours.push(if lost { red } else { "" });
    }
    let table = laid_out(&["run", ">target", "95 % interval", ">n", ">general", "95 % interval", ">n"], &rows);
    let mut lines = vec![format!("{bold}{}{reset} -> {} runs, in points\n", retention.before, retention.runs.len())];
    lines.extend(table.iter().zip(colours).map(|(line, on)| in_colour(line, on, reset)));
    lines.extend(warnings_of_runs(retention).map(|warning| format!("{dim}{warning}{reset}")));
    lines
}

fn blocks(diff: &Diff, command: &str) -> Vec<Block> {
    let mut blocks = match &diff.what {
        What::Evaluations(comparison) => of_evaluations(comparison),
        What::Scores(movement) => of_scores(movement),
        What::Retention(retention) => of_retention(retention),
    };
    blocks.extend(diff.remarks.iter().map(|remark| Block::Paragraph(vec![plain(format!("{remark}."))])));
    blocks.push(Block::Paragraph(vec![plain(distance(&diff.divergence) + ".")]));
    blocks.push(Block::Paragraph(vec![plain(format!("Made by diagnose {} with", provenance::build()))]));
    blocks.push(Block::Code(command.to_owned()));
    blocks
}

fn of_evaluations(comparison: &Comparison) -> Vec<Block> {
    let mut blocks = vec![Block::Title(format!("{} -> {}", comparison.before, comparison.after))];
    if let Some(average) = &comparison.macro_average {
        let ends = average.difference.ci95.map_or_else(String::new, |ends| format!(", 95 % interval {}", interval(ends, 100.0)));
        blocks.push(Block::Paragraph(vec![strong(format!(
            "The macro average of {} went from {:.2} to {:.2}: {:+.2} points{ends}.",
            count(average.tasks.len() as u64, "task"),
            100.0 * average.before,
            100.0 * average.after,
            100.0 * average.difference.value
        ))]));
    }
    blocks.push(Block::Figure { name: "forest", shows: "differences with their intervals" });
    let mut rows = Vec::new();
    for (task_name, task) in &comparison.tasks {
        for (metric_name, metric) in &task.metrics {
            let row = Row::of(task, metric);
            let is_primary = *metric_name == task.primary;
            let of_primary = |cell: String| plain(if is_primary { cell } else { String::new() });
            let p = metric.p.map_or_else(|| "-".to_owned(), p_value);
            let detectable = task.detectable_drop.map_or_else(|| "-".to_owned(), |drop| format!("{:.1}", 100.0 * drop));
            rows.push(vec![
                plain(task_name),
                plain(task.n.to_string()),
                if is_primary { strong(metric_name) } else { plain(metric_name) },
                plain(row.before),
                plain(row.after),
                plain(row.change),
                plain(row.interval),
                of_primary(row.lost),
                of_primary(row.gained),
                plain(p),
                of_primary(row.p),
                of_primary(detectable),
            ]);
        }
    }
    let head = [
        "task",
        ">n",
        "metric",
        ">before",
        ">after",
        ">change",
        "95 % interval",
        ">lost",
        ">won",
        ">p",
        ">p (Holm)",
        ">smallest detectable drop",
    ];
    blocks.push(Block::Table { head: head.to_vec(), rows });
    blocks.push(Block::Paragraph(vec![plain(format!(
        "Accuracies and their changes are in per cent and points. Changes are after minus before on the same items, with 95 % \
         intervals: {}. p is McNemar's exact test (over groups of items that of their nets), in the column beside it after Holm's \
         correction for the number of tasks. The smallest drop to be seen is the one that such a test finds four times in five, given \
         how many items flipped.",
        methods(comparison)
    ))]));
    let means = means(comparison);
    if !means.is_empty() {
        blocks.push(Block::Paragraph(vec![plain(
            "Of tasks with subjects, and of groups of tasks: every item with the same weight, as the harness sums up MMLU, and every subject \
             or task with the same weight.",
        )]));
        let row = |(name, by, change): (&str, String, &MeanChange)| -> Vec<Inline> {
            [plain(format!("{name}, {by}"))].into_iter().chain(mean_cells(change).map(plain)).collect()
        };
        let head = vec!["", ">before", ">after", ">change", "95 % interval"];
        blocks.push(Block::Table { head, rows: means.into_iter().map(row).collect() });
    }
    let warnings = warnings(comparison);
    if !warnings.is_empty() {
        blocks.push(Block::List(warnings.into_iter().map(|warning| vec![plain(warning)]).collect()));
    }
    blocks.push(Block::Heading("Items that flipped".to_owned()));
    let flips = comparison.tasks.iter().filter_map(|(name, task)| Some(flipped(name, task.flips.as_ref()?)));
    blocks.push(Block::List(flips.flatten().collect()));
    blocks
}

/// The methods behind the intervals of the differences.
fn methods(comparison: &Comparison) -> String {
    let metrics = comparison.tasks.values().flat_map(|task| task.metrics.values());
    let found: BTreeSet<Interval> = metrics.filter_map(|metric| metric.difference.interval).collect();
    let listed: Vec<&str> = found.into_iter().map(Interval::name).collect();
    if listed.is_empty() { "none".to_owned() } else { listed.join(", ") }
}

/// Means over several subjects or tasks: what is averaged, the metric and the unit of equal weight, and the change.
fn means(comparison: &Comparison) -> Vec<(&str, String, &MeanChange)> {
    let subjects = comparison.tasks.iter().filter_map(|(name, task)| {
        Some((name.as_str(), format!("{} by subject", task.primary), task.mean_over_subjects.as_ref()?))
    });
    let groups = comparison.groups.iter().flat_map(|(name, group)| {
        [("item", &group.by_items), ("task", &group.mean_over_tasks)]
            .map(|(by, change)| (name.as_str(), format!("{} by {by}", group.primary), change))
    });
    subjects.chain(groups).collect()
}

/// The cells of a table: before, after, change and interval, in per cent and points.
fn mean_cells(change: &MeanChange) -> [String; 4] {
    let ends = change.difference.ci95.map_or_else(|| "-".to_owned(), |ends| interval(ends, 100.0));
    let number = |value: f64| format!("{:.2}", 100.0 * value);
    [number(change.before), number(change.after), format!("{:+.2}", 100.0 * change.difference.value), ends]
}

fn of_scores(movement: &Movement) -> Vec<Block> {
    let counts = format!(
        "{} on both sides, {} only before, {} only after.",
        n_tokens(movement.tokens),
        thousands(movement.tokens_only_before),
        thousands(movement.tokens_only_after)
    );
    let changes = |change: &Change| nats(change).map(plain);
    let row = |quadrant: Quadrant| {
        let counts = movement.moved[quadrant.index()].map(|count| plain(thousands(count)));
        [plain(name(quadrant))].into_iter().chain(counts).chain(changes(&movement.by_quadrant[quadrant.index()])).collect()
    };
    let mut rows: Vec<Vec<Inline>> = Quadrant::ALL.map(row).to_vec();
    let nothing = || plain("");
    let all = [plain("all"), nothing(), nothing(), nothing(), nothing()];
    rows.push(all.into_iter().chain(changes(&movement.overall)).collect());
    let head = vec![
        "before \\ after",
        ">confident conflict",
        ">uncertain",
        ">confident",
        ">hesitant",
        ">change of logprob",
        ">of entropy",
    ];
    let mut blocks = vec![
        Block::Title(format!("{} -> {}", movement.before, movement.after)),
        Block::Paragraph(vec![plain(counts)]),
        Block::Figure { name: "movement", shows: "how the tokens moved between the quadrants" },
        Block::Table { head, rows },
        Block::Paragraph(vec![plain("Changes are means in nats, by the quadrant before.")]),
    ];
    blocks.extend(learnt::blocks(&movement.learnt));
    blocks
}

fn of_retention(retention: &Retention) -> Vec<Block> {
    let mut rows = Vec::new();
    for run in &retention.runs {
        rows.push(retention_row(retention, run).map(plain).into());
    }
    let mut notes: Vec<Vec<Inline>> = Vec::new();
    for run in &retention.runs {
        let (target, general) = (run.target.tasks.join(", "), run.general.tasks.join(", "));
        notes.push(vec![strong(&run.name), plain(format!(": target {target}; general {general}"))]);
    }
    notes.extend(warnings_of_runs(retention).map(|warning| vec![plain(warning)]));
    let head = vec!["run", ">target gain", "95 % interval", ">n", ">general change", "95 % interval", ">n"];
    vec![
        Block::Title(format!("What was gained and what was forgotten since {}", retention.before)),
        Block::Figure { name: "retention", shows: "target gain against general change" },
        Block::Table { head, rows },
        Block::Paragraph(vec![plain(
            "Points of the macro averages over n items, after minus before on the same items, a group of tasks counting as one by its items; \
             the 95 % intervals add up the tasks' own (Tango's; a bootstrap over groups of items).",
        )]),
        Block::List(notes),
    ]
}

/// The number of flipped items shown per list; diff.json has all.
const FLIPS_SHOWN: usize = 50;

/// The lists of items lost and won.
fn flipped(name: &str, flips: &Flips) -> Vec<Vec<Inline>> {
    let list = |what: &str, ids: &[String]| {
        let mut line = vec![plain(format!("{name}, {what} ({}): ", ids.len()))];
        for (idx, id) in ids.iter().take(FLIPS_SHOWN).enumerate() {
            line.extend((idx > 0).then(|| plain(", ")));
            line.push(Inline::Code(id.clone()));
        }
        let more = ids.len().saturating_sub(FLIPS_SHOWN);
        line.extend((more > 0).then(|| plain(format!(" and {more} more"))));
        line
    };
    match flips.lost.is_empty() && flips.gained.is_empty() {
        true => vec![vec![plain(format!("{name}: none"))]],
        false => vec![list("lost", &flips.lost), list("won", &flips.gained)],
    }
}

/// The change and its interval.
fn points(average: &MacroChange) -> [String; 2] {
    let Estimate { value, ci95, .. } = average.difference;
    [format!("{:+.2}", 100.0 * value), ci95.map_or_else(|| "-".to_owned(), |ends| interval(ends, 100.0))]
}

fn distance(distance: &Distance) -> String {
    match distance {
        Distance::Measured(Divergence { texts, tokens, mean, .. }) => {
            let mean = divergence(mean.value, mean.ci95);
            format!(
                "mean KL(before || after) on general text: {mean} nat per token, {texts} texts, {} tokens",
                thousands(*tokens)
            )
        }
        Distance::Unknown { unavailable } => format!("mean KL on general text: {unavailable}"),
    }
}

/// A metric's cells: accuracies in per cent.
struct Row {
    before: String,
    after: String,
    change: String,
    interval: String,
    lost: String,
    gained: String,
    p: String,
    /// Whether the metric got worse and its interval excludes 0.
    drop: bool,
}

impl Row {
    fn of(task: &TaskChange, metric: &MetricChange) -> Row {
        let (scale, decimals) = if metric.is_share { (100.0, 2) } else { (1.0, 4) };
        let number = |value: f64| number(scale * value, decimals);
        let count = |of: fn(&Flips) -> usize| task.flips.as_ref().map_or_else(|| "-".to_owned(), |flips| of(flips).to_string());
        let ends = metric.difference.ci95.filter(|ends| ends.iter().all(|end| end.is_finite()));
        Row {
            before: number(metric.before),
            after: number(metric.after),
            change: signed(scale * metric.difference.value, decimals),
            interval: ends.map_or_else(|| "-".to_owned(), |ends| interval(ends, scale)),
            lost: count(|flips| flips.lost.len()),
            gained: count(|flips| flips.gained.len()),
            p: metric.p_holm.map_or_else(|| "-".to_owned(), p_value),
            drop: ends.is_some_and(|[low, high]| if metric.lower_is_better { low > 0.0 } else { high < 0.0 }),
        }
    }
}

fn interval([low, high]: [f64; 2], scale: f64) -> String {
    let decimals = if scale == 1.0 { 4 } else { 2 };
    format!("{} to {}", signed(scale * low, decimals), signed(scale * high, decimals))
}

/// Like [`number`], but with a sign before positive values as well.
fn signed(value: f64, digits: usize) -> String {
    match number(value, digits) {
        text if text.starts_with('-') => text,
        text => format!("+{text}"),
    }
}

fn p_value(p: f64) -> String {
    if p < 0.0001 { "< 0.0001".to_owned() } else { format!("{p:.4}") }
}

fn nats(change: &Change) -> [String; 2] {
    [change.logprob, change.entropy].map(|mean| mean.map_or_else(|| "-".to_owned(), |mean| format!("{mean:+.4}")))
}

/// States that different engines ran the models, if so.
fn engines(comparison: &Comparison) -> Option<String> {
    let [before, after] = comparison.engines.as_ref()?;
    Some(format!("the models were run by different engines, which may differ by themselves: {before} before, {after} after"))
}

/// Which tasks are in no average, and warnings about the comparison of each run.
fn warnings_of_runs(retention: &Retention) -> impl Iterator<Item = String> {
    let left_out = &retention.left_out;
    let unshared = (!left_out.is_empty())
        .then(|| format!("excluded from averages, since some runs lack them or were asked differently: {}", left_out.join(", ")));
    let of_run = |run: &Run| {
        let mut all: Vec<String> = Vec::new();
        for warning in warnings(&run.target_tasks).into_iter().chain(warnings(&run.general_tasks)) {
            let warning = format!("{}: {warning}", run.name);
            if !all.contains(&warning) {
                all.push(warning);
            }
        }
        all
    };
    unshared.into_iter().chain(retention.runs.iter().flat_map(of_run).collect::<Vec<_>>())
}

fn warnings(comparison: &Comparison) -> Vec<String> {
    let mut warnings = Vec::new();
    warnings.extend(engines(comparison));
    let mut only = |what: &str, names: &[String]| {
        if !names.is_empty() {
            let shown = names.iter().take(5).cloned().collect::<Vec<_>>().join(", ");
            let more = if names.len() > 5 { ", .." } else { "" };
            warnings.push(format!("{what}: {} ({shown}{more})", names.len()));
        }
    };
    only("tasks only before", &comparison.tasks_only_before);
    only("tasks only after", &comparison.tasks_only_after);
    for (name, task) in &comparison.tasks {
        only(&format!("items of {name} only before"), &task.items_only_before);
        only(&format!("items of {name} only after"), &task.items_only_after);
    }
    for (name, task) in &comparison.tasks {
        if let Some([before, after]) = task.few_shot {
            let before = count(u64::from(before), "example");
            warnings.push(format!("{name} was asked with {before} before and with {after} after"));
        }
        if let Some([before, after]) = &task.examples_differ {
            warnings.push(format!("{name} was asked with different examples: {before} before, {after} after"));
        }
    }
    for (name, task) in comparison.tasks.iter().filter(|(_, task)| task.prompts_differ > 0) {
        let n = task.prompts_differ;
        let items = part_of(n as u64, task.n as u64, "item", ["was", "were"]);
        warnings.push(format!("{name}: {items} asked with a different prompt (prompt_hash differs)"));
    }
    warnings.extend(comparison.skipped.iter().map(|reason| format!("not compared: {reason}")));
    for (name, _) in comparison.tasks.iter().filter(|(_, task)| task.whole_texts) {
        warnings.push(format!(
            "{name} was cut into different windows before and after (another tokenizer or --max-len): its items are whole texts"
        ));
    }
    for (name, _) in comparison.tasks.iter().filter(|(_, task)| task.data_differs) {
        warnings.push(format!("the data file of {name} was a different one; items are paired by their ids"));
    }
    warnings
}

/// Accuracies only, so that all tasks share an axis in points.
fn forest_rows(comparison: &Comparison) -> (Vec<forest::Row>, Option<forest::Row>) {
    let row = |name: &str, n: Option<usize>, difference: &Estimate| {
        let ci95 = difference.ci95.map(|ends| ends.map(|end| 100.0 * end));
        forest::Row { name: name.to_owned(), n, value: 100.0 * difference.value, ci95 }
    };
    let of_task = |(name, task): (&String, &TaskChange)| {
        let metric = task.metrics.get(&task.primary).filter(|metric| metric.is_share)?;
        Some(row(&format!("{name}, {}", task.primary), Some(task.n), &metric.difference))
    };
    let average = comparison.macro_average.as_ref().map(|average| row("macro average", None, &average.difference));
    (comparison.tasks.iter().filter_map(of_task).collect(), average)
}

fn movement_figure(movement: &Movement) -> maps::movement::Movement {
    maps::movement::Movement {
        before: movement.before.clone(),
        after: movement.after.clone(),
        moved: movement.moved,
        changes: movement.by_quadrant.map(|change| [change.logprob, change.entropy]),
    }
}

/// The name of a run, and of both averages the points, the interval and the number of items.
fn retention_row(retention: &Retention, run: &Run) -> [String; 7] {
    let [target, target_interval] = points(&run.target);
    let [general, general_interval] = points(&run.general);
    let [n_target, n_general] = items(retention, run).map(|n| thousands(n as u64));
    [run.name.clone(), target, target_interval, n_target, general, general_interval, n_general]
}

/// The numbers of items behind the averages over the target tasks and over the others.
fn items(retention: &Retention, run: &Run) -> [usize; 2] {
    [(&run.target, &run.target_tasks), (&run.general, &run.general_tasks)].map(|(average, all)| {
        let members = |name: &String| all.groups.get(name).map_or_else(|| vec![name.clone()], |group| group.tasks.clone());
        let tasks: BTreeSet<String> = average.tasks.iter().flat_map(members).collect();
        let is_counted = |task: &&String| !retention.left_out.contains(task);
        tasks.iter().filter(is_counted).filter_map(|task| all.tasks.get(task)).map(|task| task.n).sum()
    })
}

fn retention_figure(retention: &Retention) -> Vec<maps::retention::Run> {
    let change = |average: &MacroChange, n: usize| {
        let value = 100.0 * average.difference.value;
        let [low, high] = average.difference.ci95.map_or([value; 2], |ends| ends.map(|end| 100.0 * end));
        maps::retention::Change { value, low, high, n }
    };
    let run = |run: &Run| {
        let [n_target, n_general] = items(retention, run);
        maps::retention::Run {
            name: run.name.clone(),
            target: change(&run.target, n_target),
            general: change(&run.general, n_general),
        }
    };
    retention.runs.iter().map(run).collect()
}
