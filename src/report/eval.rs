//! Formats the table of an evaluation for the terminal.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;

use super::columns::laid_out;
use super::terminal::{Colours, in_colour};
use crate::eval::results::{Chosen, Scores, SubjectScore, TaskScores, Work};
use crate::eval::tasks::TaskKind;
use crate::eval::write::Endings;
use crate::format::{count, counted, ends, number, number_with_interval};
use crate::stats::{Estimate, Interval};

/// `out` is the folder with the scores.
pub(crate) fn table(scores: &Scores, out: &str, coloured: bool) -> String {
    let Colours { bold, dim, reset, .. } = Colours::of(coloured);
    const HEAD: [&str; 6] = ["task", ">n", "metric", ">value", ">stderr", "95 % interval"];
    let mut rows: Vec<Vec<String>> = Vec::new();
    for (name, task) in &scores.tasks {
        let by_subject = task.mean_over_subjects.iter().map(|mean| (by_subject(task), numbers(&task.primary, mean)));
        let metrics = shown(task).into_iter().map(|(metric, estimate)| (metric.to_owned(), numbers(metric, estimate)));
        rows.extend(metrics.chain(by_subject).enumerate().map(|(idx, (metric, numbers))| {
            let of_task = if idx == 0 { [name.clone(), task.n.to_string()] } else { [String::new(), String::new()] };
            of_task.into_iter().chain([metric]).chain(numbers).collect()
        }));
        let beneath = which_items(task).into_iter().chain(remarks(task));
        rows.extend(beneath.map(|remark| vec![String::new(), String::new(), remark]));
    }
    let identity = &scores.identity;
    let mut text = String::new();
    // Writing to a String cannot fail.
    let mut line = |content: String| {
        let _ = writeln!(text, "{content}");
    };
    line(format!("{bold}{}{reset} {dim}{}, context length {} tokens{reset}\n", identity.model, identity.dtype, identity.max_len));
    let colours = rows.iter().map(|row| if row.len() < HEAD.len() { dim } else { "" });
    for (text, on) in laid_out(&HEAD, &rows).iter().zip(std::iter::once(bold).chain(colours)) {
        line(in_colour(text, on, reset));
    }
    line(format!("\n{dim}95 % intervals: {}{reset}", methods(scores)));
    line(format!("\nscores   {bold}{out}/scores.json{reset}"));
    line(format!("samples  {out}/samples.parquet"));
    if scores.tasks.values().any(|task| task.settings.writing.is_some()) {
        line(format!("answers  {out}/answers.parquet"));
    }
    text
}

/// Remarks on a task's numbers.
fn remarks(task: &TaskScores) -> Vec<String> {
    let mut remarks = Vec::new();
    let ways = task.settings.ways();
    if !ways.is_empty() {
        remarks.push(ways.join(", "));
    }
    if let Some(Endings { end_token, stop, length }) = task.endings {
        remarks.push(format!(
            "of {} answers {end_token} ended by themselves, {stop} reached a stop string, {length} were cut at the maximum length",
            end_token + stop + length
        ));
    }
    if let (TaskKind::Text, Some(n_texts)) = (task.kind, task.n_groups) {
        remarks.push(format!(
            "{} of up to the context length, in {}",
            count(task.n as u64, "window"),
            count(n_texts as u64, "text")
        ));
    }
    let Work { truncated, without_system, unjudged, .. } = task.work;
    if truncated > 0 {
        remarks.push(match task.kind {
            TaskKind::Rows => counted(truncated, "row was cut at its end", "rows were cut at their end"),
            _ => counted(truncated, "context was cut at its beginning", "contexts were cut at their beginning"),
        });
    }
    if task.kind == TaskKind::Rows {
        remarks.extend(sources(task));
    }
    if without_system > 0 {
        remarks.push(format!(
            "{} system message, which the chat template rejects",
            counted(without_system, "question was asked without its", "questions were asked without their")
        ));
    }
    if unjudged > 0 {
        remarks.push(counted(
            unjudged,
            "answer could not be judged, as its patterns took too long, and counts as wrong",
            "answers could not be judged, as their patterns took too long, and count as wrong",
        ));
    }
    remarks.extend(task.notes.iter().cloned());
    remarks
}

/// The primary metric of each source of rows, up to a limit; the file has them all.
fn sources(task: &TaskScores) -> Vec<String> {
    const SHOWN: usize = 8;
    let source = |(name, score): (&String, &SubjectScore)| {
        format!("{name}: {} in {}", number_with_interval(Some(score.value), score.ci95, 4), count(score.n as u64, "row"))
    };
    let mut sources: Vec<String> = task.groups.iter().take(SHOWN).map(source).collect();
    if task.groups.len() > SHOWN {
        sources.push(format!("and {} more sources", task.groups.len() - SHOWN));
    }
    sources
}

/// A remark if not all items of the task were evaluated.
fn which_items(task: &TaskScores) -> Option<String> {
    // Rows are chosen whatever their sources.
    let subjects = if task.kind == TaskKind::Rows { &BTreeMap::new() } else { &task.groups };
    let largest = subjects.values().map(|subject| subject.n).max().unwrap_or(task.n);
    let of_each = match subjects.len() {
        0 | 1 => String::new(),
        n => format!(" of each of {n} subjects"),
    };
    match task.settings.chosen {
        Chosen { sample: Some(n), sample_seed, .. } if n <= largest => {
            let items = count(n as u64, "item");
            let weights = match of_each.is_empty() {
                true => "",
                false => ": a score over them weighs small and large subjects alike",
            };
            Some(format!("{items}{of_each} drawn at random, seed {}{weights}", sample_seed.unwrap_or_default()))
        }
        Chosen { limit: Some(n), .. } if n <= largest => {
            Some(format!("the first {}{of_each}, not a random sample", count(n as u64, "item")))
        }
        _ => None,
    }
}

/// The methods behind the displayed intervals.
fn methods(scores: &Scores) -> String {
    let mut metrics: BTreeMap<Interval, BTreeSet<String>> = BTreeMap::new();
    for task in scores.tasks.values() {
        let by_subject = task.mean_over_subjects.iter().map(|mean| (by_subject(task), mean));
        for (name, estimate) in shown(task).into_iter().map(|(name, estimate)| (name.to_owned(), estimate)).chain(by_subject) {
            if let Some(interval) = estimate.interval {
                metrics.entry(interval).or_default().insert(name);
            }
        }
    }
    let of = |(interval, names): (&Interval, &BTreeSet<String>)| {
        format!("{} ({})", interval.name(), names.iter().map(String::as_str).collect::<Vec<_>>().join(", "))
    };
    let listed: Vec<String> = metrics.iter().map(of).collect();
    if listed.is_empty() { "none, too few items".to_owned() } else { listed.join("; ") }
}

/// The name of the primary metric's mean over subjects.
fn by_subject(task: &TaskScores) -> String {
    format!("{} by subject", task.primary)
}

/// The metrics to display, the primary one first.
fn shown(task: &TaskScores) -> Vec<(&str, &Estimate)> {
    let mut metrics: Vec<(&str, &Estimate)> = task.metrics.iter().map(|(name, estimate)| (name.as_str(), estimate)).collect();
    // Bytes and characters differ only for non-ASCII texts; the file has both.
    metrics.retain(|(name, _)| task.kind != TaskKind::Choice || *name != "acc_bytes");
    metrics.sort_by_key(|(name, _)| *name != task.primary);
    metrics
}

fn is_share(metric: &str) -> bool {
    !metric.ends_with("perplexity") && !["bits_per_byte", "cross_entropy"].contains(&metric)
}

/// Value, standard error and interval, with shares in per cent.
fn numbers(metric: &str, estimate: &Estimate) -> [String; 3] {
    let (scale, unit) = if is_share(metric) { (100.0, " %") } else { (1.0, "") };
    let digits = if unit.is_empty() { 4 } else { 2 };
    let stderr = estimate.stderr.map_or_else(|| "-".to_owned(), |stderr| number(scale * stderr, digits));
    let interval = ends(estimate.ci95.map(|ends| ends.map(|end| scale * end)), digits);
    let value = number(scale * estimate.value, digits);
    let unit = if value == "-" { "" } else { unit };
    [value + unit, stderr, interval]
}
