//! Reports what the model learnt between two score runs, what training wasted and what was lost, for the terminal and as blocks of the report.

use super::columns::{first_that_fits, laid_out};
use super::document::{Block, Inline, plain, strong};
use super::quoted;
use super::terminal::{Colours, OF_TEMPLATE, between, in_colour, marked, note};
use crate::diagnosis::context::{InContext, Spot};
use crate::diagnosis::learnt::{Group, KNOWN, Learnt, Verdict};
use crate::format::{beginning, count, n_tokens, percent, thousands, visible};
use crate::stats::share;

/// The number of entries shown per list, on the terminal and in the report.
const ON_TERMINAL: usize = 5;
const IN_REPORT: usize = 20;

/// The widths of a group's name on the terminal, in characters; the first that fits is used.
const NAMES: [usize; 3] = [31, 20, 12];

/// Lines without their ends, for a terminal of `width` columns.
pub(super) fn terminal(learnt: &Learnt, Colours { bold, dim, red, reset }: Colours, width: usize) -> Vec<String> {
    let mut lines = vec![String::new(), rows_sentence(learnt)];
    let (mut rows, mut colours) = (Vec::new(), vec![bold]);
    let lists = [("", &learnt.overall), ("source ", &learnt.sources), ("turn ", &learnt.turns), ("", &learnt.kinds)];
    for (what, groups) in lists.into_iter().filter(|(what, groups)| what.is_empty() || groups.len() > 1) {
        for group in groups.iter().take(IN_REPORT) {
            rows.push([format!("{what}{}", visible(&group.name))].into_iter().chain(cells(group)).collect());
            colours.push(if group.verdict == Some(Verdict::Hurt) { red } else { "" });
        }
        if let Some(more @ 1..) = groups.len().checked_sub(IN_REPORT) {
            rows.push(vec![format!("and {} more, listed in diff.json", thousands(more as u64))]);
            colours.push(dim);
        }
    }
    let table = |most: usize| {
        let shortened = rows.iter().cloned().map(|mut row: Vec<String>| {
            if row.len() > 1 {
                row[0] = beginning(&row[0], most);
            }
            row
        });
        laid_out(&["", ">rows", ">tokens", ">loss", ">change", "95 % interval", ""], &shortened.collect::<Vec<_>>())
    };
    let table = first_that_fits(NAMES.into_iter().map(table), width);
    lines.extend(table.iter().zip(colours).map(|(line, on)| in_colour(line, on, reset)));
    lines.push(String::new());
    lines.push(known_sentence(learnt));
    for lost in learnt.lost_tokens.iter().take(ON_TERMINAL) {
        let place = lost.place.as_deref().map_or_else(|| format!("row {}", lost.spot.row), visible);
        let [before, after] = [lost.before, lost.after].map(f32::exp);
        lines.push(format!("  {place}  {} .. now {}, p {before:.2} -> {after:.1e}", quoted(&lost.token), quoted(&lost.top)));
        lines.extend(lost.spot.context.as_ref().map(|context| marked(context, red, reset)));
    }
    if learnt.lost_pairs.iter().any(|pair| pair.count > 1) {
        lines.push(format!("{dim}largest losses (nats times count):{reset}"));
        for pair in learnt.lost_pairs.iter().take(ON_TERMINAL) {
            lines.push(format!(
                "{:>6} x  {} .. now {}, {:.1} nats",
                pair.count,
                quoted(&pair.token),
                quoted(&pair.top),
                pair.nats
            ));
        }
    }
    lines
}

pub(super) fn blocks(learnt: &Learnt) -> Vec<Block> {
    let mut blocks = vec![
        Block::Heading("What was learnt, wasted, lost".to_owned()),
        Block::Paragraph(vec![strong(rows_sentence(learnt))]),
        Block::Paragraph(vec![plain(
            "The loss is -ln p of the data's token; changes are after minus before, in nats per token. A group is helped if the 95 % interval of its \
             change lies below zero, hurt if it lies above, wasted if it contains zero: training had no effect there that could be distinguished from \
             chance. Intervals treat whole rows as a sample (a bootstrap over rows, widened for few rows; the linearised error for \
             thousands). A single row's interval treats its tokens as independent, which neighbours are not: take it as a hint.",
        )]),
    ];
    for (title, groups) in [
        ("all tokens", &learnt.overall),
        ("source", &learnt.sources),
        ("turn", &learnt.turns),
        ("conflict before", &learnt.kinds),
    ] {
        if groups.is_empty() || (groups.len() == 1 && title != "all tokens") {
            continue;
        }
        let head = vec![title, ">rows", ">tokens", ">loss before", ">change", "95 % interval", "", ">nats in all"];
        let row = |group: &Group| -> Vec<Inline> {
            let name = if title == "all tokens" { String::new() } else { group.name.clone() };
            [name].into_iter().chain(cells(group)).chain([format!("{:+.1}", group.nats)]).map(plain).collect()
        };
        blocks.push(Block::Table { head, rows: groups.iter().take(IN_REPORT).map(row).collect() });
    }
    let to_mend = learnt.to_mend();
    if !to_mend.is_empty() {
        blocks.push(Block::Paragraph(vec![
            strong("What to fix"),
            plain(", by nats lost (size times count), then what was wasted:"),
        ]));
        let item = |(what, group): &(&str, &Group)| {
            let verdict = group.verdict.map_or("no confidence interval", Verdict::name);
            let (nats, tokens) = (group.nats, n_tokens(group.tokens));
            vec![plain(format!("{what} {}: {verdict}, {nats:+.1} nats over {tokens}", group.name))]
        };
        blocks.push(Block::List(to_mend.iter().take(IN_REPORT).map(item).collect()));
    }
    if !learnt.worst_rows.is_empty() {
        blocks.push(Block::Paragraph(vec![plain("The rows that lost the most (all rows are in learnt.parquet):")]));
        let head = vec!["row", "where", ">tokens", ">change", "95 % interval", "", ">nats in all"];
        let rows = learnt.worst_rows.iter().take(IN_REPORT).map(|row| {
            let ends = row.change.ci95.map_or_else(|| "-".to_owned(), interval);
            let cells = [
                row.row.to_string(),
                row.place.clone().unwrap_or_default(),
                thousands(row.tokens),
                format!("{:+.3}", row.change.value),
                ends,
                row.verdict.map_or("", Verdict::name).to_owned(),
                format!("{:+.1}", row.nats),
            ];
            cells.map(plain).to_vec()
        });
        blocks.push(Block::Table { head, rows: rows.collect() });
    }
    blocks.push(Block::Paragraph(vec![strong(known_sentence(learnt))]));
    if !learnt.lost_pairs.is_empty() {
        blocks.push(Block::Paragraph(vec![plain("What was known and what the model now prefers, by nats lost:")]));
        let head = vec!["data", "model now", ">times", ">nats", "largest loss"];
        let rows = learnt.lost_pairs.iter().take(IN_REPORT).map(|pair| {
            let (count, nats) = (plain(thousands(pair.count)), plain(format!("{:.1}", pair.nats)));
            vec![code(&pair.token), code(&pair.top), count, nats, sentence(&pair.example)]
        });
        blocks.push(Block::Table { head, rows: rows.collect() });
        blocks.push(Block::Paragraph(vec![plain("The tokens that lost the most, in their sentences:")]));
        let head = vec!["where", "data", "model now", ">p before", ">p after", "sentence"];
        let rows = learnt.lost_tokens.iter().take(IN_REPORT).map(|lost| {
            let place = lost.place.clone().unwrap_or_else(|| format!("row {}", lost.spot.row));
            let [before, after] = [lost.before, lost.after].map(|logprob| plain(format!("{:.2e}", logprob.exp())));
            vec![plain(place), code(&lost.token), code(&lost.top), before, after, sentence(&lost.spot)]
        });
        blocks.push(Block::Table { head, rows: rows.collect() });
    }
    blocks
}

fn rows_sentence(learnt: &Learnt) -> String {
    let counts = &learnt.rows;
    let all = counts.helped + counts.wasted + counts.hurt;
    let part = |n: u64| format!("{} ({})", thousands(n), percent(share(n as f64, all as f64)));
    format!(
        "Of {}: {} helped, {} wasted, {} hurt; {} without a confidence interval (a single token, or all tokens changed alike).",
        count(all, "row"),
        part(counts.helped),
        part(counts.wasted),
        part(counts.hurt),
        thousands(counts.untold)
    )
}

fn known_sentence(learnt: &Learnt) -> String {
    format!(
        "Of {} known before (p of {KNOWN} or more): {} lost, where another token is now the first choice. Newly known: {}.",
        n_tokens(learnt.known),
        thousands(learnt.lost),
        thousands(learnt.gained)
    )
}

/// Rows, tokens, loss before, change, interval, verdict.
fn cells(group: &Group) -> [String; 6] {
    [
        thousands(group.rows),
        thousands(group.tokens),
        format!("{:.3}", group.loss_before),
        format!("{:+.3}", group.change.value),
        group.change.ci95.map_or_else(|| "-".to_owned(), interval),
        group.verdict.map_or("", Verdict::name).to_owned(),
    ]
}

fn interval([low, high]: [f64; 2]) -> String {
    format!("{low:+.3} to {high:+.3}")
}

fn code(token: &str) -> Inline {
    Inline::Code(quoted(token).trim_matches('`').to_owned())
}

/// The token in its sentence, in brackets.
fn sentence(spot: &Spot) -> Inline {
    let Some(InContext { before, token, after, part }) = &spot.context else { return plain("") };
    plain(match token.is_empty() {
        true => between(&visible(before), OF_TEMPLATE, &visible(after)),
        false => format!("{}[[{}]]{}{}", visible(before), visible(token), visible(after), note(*part)),
    })
}
