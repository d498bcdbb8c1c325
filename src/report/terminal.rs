//! Formats the short summary on stdout: what was found, and where to look next.

use super::columns::laid_out;
use super::{isolated, quoted};
use crate::diagnosis::Report;
use crate::diagnosis::breakdown::Cell;
use crate::diagnosis::by_kind::PromptedKind;
use crate::diagnosis::context::InContext;
use crate::diagnosis::ranking::Ranking;
use crate::diagnosis::summary::{Summary, Surprise};
use crate::format::{count, n_tokens, number_with_interval, percent, percent_with_interval, thousands, visible};
use crate::table::Quadrant;
use crate::tokens::Part;

/// The heading above the numbers.
pub(crate) struct Heading {
    /// The names of the data files.
    pub data: String,
    pub model: String,
    /// The run folder.
    pub out: String,
    /// Which rows of the data were read, in a few words.
    pub rows: String,
    /// Records with something to score.
    pub scored: u64,
    /// Records that were read.
    pub records: u64,
    pub tokens_per_second: f64,
    /// Whether the folder has a page.
    pub has_page: bool,
}

/// ANSI codes, or empty texts.
#[derive(Clone, Copy)]
pub(super) struct Colours {
    pub bold: &'static str,
    pub dim: &'static str,
    pub red: &'static str,
    pub reset: &'static str,
}

impl Colours {
    pub(super) fn of(coloured: bool) -> Colours {
        match coloured {
            true => Colours { bold: "\x1b[1m", dim: "\x1b[2m", red: "\x1b[1;31m", reset: "\x1b[0m" },
            false => Colours { bold: "", dim: "", red: "", reset: "" },
        }
    }
}

/// Colours the line; unchanged if the colour is empty.
pub(super) fn in_colour(line: &str, on: &str, off: &str) -> String {
    if on.is_empty() { line.to_owned() } else { format!("{on}{line}{off}") }
}

/// The number of entries shown per list; the report has more.
const SHOWN: usize = 5;

pub(crate) fn summary(heading: &Heading, report: &Report, coloured: bool) -> String {
    let colours = Colours::of(coloured);
    let parts = [
        above(heading, report, colours),
        quadrants(heading, &report.summary, colours),
        conflicts(&report.summary, colours),
        surprises(&report.summary, colours),
        rows(&report.summary, colours),
        further(report, colours),
        files(heading, colours),
    ];
    parts.concat().into_iter().map(|line| line + "\n").collect()
}

/// Describes the data and the model.
fn above(heading: &Heading, report: &Report, Colours { bold, dim, reset, .. }: Colours) -> Vec<String> {
    let summary = &report.summary;
    let overall = &summary.overall;
    let mut lines = vec![
        format!("{bold}{}{reset} as seen by {bold}{}{reset}", heading.data, heading.model),
        format!(
            "{dim}{} of {}, {}, perplexity {:.2}, mean entropy {:.2} nat, {} tokens/s{reset}",
            thousands(heading.scored),
            count(heading.records, "row"),
            count(overall.tokens, "supervised token"),
            overall.perplexity,
            overall.mean_entropy,
            thousands(heading.tokens_per_second.round() as u64)
        ),
        format!("{dim}{}{reset}", summary.thresholds),
    ];
    let n_left_out = summary.tokens_not_finite;
    if n_left_out > 0 {
        lines.push(format!("{bold}{} left out of all numbers: no finite probability{reset}", count(n_left_out, "token")));
    }
    lines.extend(report.bounded.as_ref().map(|bounded| format!("{dim}{}{reset}", bounded.line())));
    lines
}

/// The table of the quadrants.
fn quadrants(heading: &Heading, summary: &Summary, Colours { bold, dim, red, reset }: Colours) -> Vec<String> {
    let overall = &summary.overall;
    let row = |quadrant: Quadrant| {
        let Cell { tokens, token_share, token_share_ci95, loss_share, grad_share, .. } = *overall.quadrants.get(quadrant);
        let share = percent_with_interval(token_share, token_share_ci95);
        vec![name(quadrant), thousands(tokens), share, percent(loss_share), percent(grad_share)]
    };
    let table = laid_out(&["quadrant", ">tokens", ">share", ">of loss", ">of grad"], &Quadrant::ALL.map(row));
    let conflict = name(Quadrant::ConfidentConflict);
    let mut lines = vec![String::new()];
    lines.extend(table.iter().enumerate().map(|(idx, line)| match line.strip_prefix(&conflict) {
        _ if idx == 0 => format!("{bold}{line}{reset}"),
        Some(numbers) => format!("{red}{conflict}{reset}{numbers}"),
        None => line.clone(),
    }));
    let has_intervals = Quadrant::ALL.iter().any(|quadrant| overall.quadrants.get(*quadrant).token_share_ci95.is_some());
    let intervals = match has_intervals {
        true => format!("in brackets: 95 % interval over {}; ", count(overall.rows, "row")),
        false => String::new(),
    };
    lines.push(format!("{dim}{intervals}{}{reset}", heading.rows));
    lines
}

/// The most frequent pairs of a target and the model's first choice.
fn conflicts(summary: &Summary, Colours { bold, red, reset, .. }: Colours) -> Vec<String> {
    if summary.conflict_pairs.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), format!("{bold}the data says .. but the model is sure of{reset}")];
    for pair in summary.conflict_pairs.iter().take(SHOWN) {
        lines.push(format!("{:>6} x  {} .. {}", pair.count, quoted(&pair.token), quoted(&pair.top)));
        let context = pair.example.as_ref().and_then(|example| example.context.as_ref());
        lines.extend(context.map(|context| marked(context, red, reset)));
    }
    lines
}

fn surprises(summary: &Summary, Colours { bold, red, reset, .. }: Colours) -> Vec<String> {
    if summary.surprises.is_empty() {
        return Vec::new();
    }
    let mut lines = vec![String::new(), format!("{bold}most surprising tokens ({}){reset}", Ranking::DEFAULT.name())];
    for Surprise { path, line, token, top, logprob, score, context, .. } in summary.surprises.iter().take(SHOWN) {
        let path = visible(path);
        lines.push(format!("{score:>8.1}  {path}:{line}  {} .. {}, p = {:.1e}", quoted(token), quoted(top), logprob.exp()));
        lines.extend(context.as_ref().map(|context| marked(context, red, reset)));
    }
    lines
}

fn rows(summary: &Summary, Colours { bold, red, reset, .. }: Colours) -> Vec<String> {
    if summary.conflict_rows.is_empty() {
        return Vec::new();
    }
    let head = format!("{bold}rows with the most conflict mass (nats beyond what the model expected){reset}");
    let mut lines = vec![String::new(), head];
    for row in summary.conflict_rows.iter().take(SHOWN) {
        let path = visible(&row.path);
        let of_row = n_tokens(u64::from(row.supervised));
        lines.push(format!("{:>8.1}  {path}:{}  {} of {of_row}", row.conflict_surplus, row.line, row.conflicts));
        let context = row.worst.as_ref().and_then(|worst| worst.context.as_ref());
        lines.extend(context.map(|context| marked(context, red, reset)));
    }
    lines
}

/// Results that only exist if requested, or if the data provide them.
fn further(report: &Report, Colours { bold, reset, .. }: Colours) -> Vec<String> {
    let mut lines = Vec::new();
    if let Some(planted) = &report.planted
        && let Some(best) = planted.best()
    {
        let of_best = planted.rankings.iter().find(|scores| scores.ranking == best).map(|scores| scores.first_token);
        let auroc = of_best.map(|scores| number_with_interval(scores.auroc, scores.auroc_ci95, 3)).unwrap_or_default();
        lines.push(String::new());
        lines.push(format!(
            "{bold}planted conflicts{reset}: {} spans, best found by {}, AUROC {auroc}; all rankings in the report",
            thousands(planted.spans as u64),
            best.name()
        ));
    }
    if let Some(prompted) = report.kinds.as_ref().and_then(|kinds| kinds.in_context.as_ref()) {
        let [tokens, vanished] = [|kind: &PromptedKind| kind.tokens, |kind: &PromptedKind| kind.vanished]
            .map(|of| prompted.kinds.iter().map(of).sum::<u64>());
        lines.push(String::new());
        lines.push(format!(
            "{bold}in context{reset} {} of {} conflicts vanish with another row of their kind shown first, and {} of the other tokens of their rows become \
             conflicts; by kind in the report",
            thousands(vanished),
            thousands(tokens),
            percent(prompted.new_conflicts_share)
        ));
    }
    if let Some(on_policy) = &report.on_policy {
        let found = on_policy.check.as_ref().map(|check| check.sentence().replace("**", ""));
        let why_not = || on_policy.why_not.as_ref().map(|why_not| format!("not possible: {why_not}"));
        if let Some(result) = found.or_else(why_not) {
            lines.push(String::new());
            lines.push(format!("{bold}self-check{reset} {result}"));
        }
    }
    lines
}

/// Where to look next.
fn files(heading: &Heading, Colours { bold, reset, .. }: Colours) -> Vec<String> {
    let out = &heading.out;
    let mut lines = vec![String::new()];
    if heading.has_page {
        lines.push(format!("page     {bold}{out}/view.html{reset}, for reading the rows and deciding"));
    }
    lines.push(format!("report   {bold}{out}/report.md{reset}"));
    lines.push(format!("figures  {out}/maps/density.png and others"));
    lines
}

/// The number of characters shown on either side of a token.
const REACH: usize = 36;

/// Stands for a template token, which is no part of the row's text, such as the end of a turn.
pub(super) const OF_TEMPLATE: &str = "(of the template)";

/// What is said behind a sentence whose token is no part of a content.
pub(super) fn note(part: Option<Part>) -> String {
    let what = match part {
        None => return String::new(),
        Some(Part::Reasoning) => "(reasoning)",
        Some(Part::ToolCall) => "(tool call)",
        Some(Part::Template) => OF_TEMPLATE,
    };
    format!(" {what}")
}

/// A token in its sentence, on one line.
pub(super) fn marked(context: &InContext, on: &str, off: &str) -> String {
    let InContext { before, token, after, part } = context.shortened(REACH);
    let [before, token, after] = [before, token, after].map(|text| isolated(&visible(&text)));
    match token.is_empty() {
        true => format!("{:10}{}", "", between(&before, &format!("{on}{OF_TEMPLATE}{off}"), &after)),
        false => format!("{:10}{before}{on}[[{token}]]{off}{after}{}", "", note(part)),
    }
}

/// Joins three parts of a line with spaces, skipping empty ones.
pub(super) fn between(before: &str, what: &str, after: &str) -> String {
    [before, what, after.trim_start()].into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
}

/// `confident conflict`
pub(super) fn name(quadrant: Quadrant) -> String {
    quadrant.name().replace('_', " ")
}
