//! Lays out tables for the terminal.

use crate::format::n_columns;

/// Lays out a table, with the head as the first line. Every column is as wide as its longest cell, and two spaces separate columns, since two numbers
/// that touch would be read as one. As in a report ([`Block::Table`](super::document::Block)), columns whose name begins with `>` contain numbers and
/// are right-aligned.
///
/// A row may be shorter than the head. Its last cell is then a text that may run across the remaining columns and does not affect their widths.
pub(super) fn laid_out(head: &[&str], rows: &[Vec<String>]) -> Vec<String> {
    let names: Vec<String> = head.iter().map(|name| name.trim_start_matches('>').to_owned()).collect();
    let rows: Vec<&Vec<String>> = std::iter::once(&names).chain(rows).collect();
    let runs_on = |row: &[String], column: usize| row.len() < head.len() && column + 1 == row.len();
    let width = |column: usize| {
        let cells = rows.iter().filter(|row| !runs_on(row, column)).filter_map(|row| row.get(column));
        cells.map(|cell| n_columns(cell)).max().unwrap_or_default()
    };
    let widths: Vec<usize> = (0..head.len()).map(width).collect();
    let line = |row: &&Vec<String>| {
        let cell = |(column, cell): (usize, &String)| {
            let space = " ".repeat(widths[column].saturating_sub(n_columns(cell)));
            match head[column].starts_with('>') && !runs_on(row, column) {
                true => space + cell,
                false => cell.clone() + &space,
            }
        };
        row.iter().take(head.len()).enumerate().map(cell).collect::<Vec<_>>().join("  ").trim_end().to_owned()
    };
    rows.iter().map(line).collect()
}

/// Whether every line fits a terminal of `width` columns.
pub(super) fn fits(lines: &[String], width: usize) -> bool {
    lines.iter().all(|line| n_columns(line) <= width)
}

/// The first table that fits a terminal of `width` columns, or the last one if none does.
pub(super) fn first_that_fits(tables: impl IntoIterator<Item = Vec<String>>, width: usize) -> Vec<String> {
    let mut shown = Vec::new();
    for table in tables {
        shown = table;
        if fits(&shown, width) {
            break;
        }
    }
    shown
}
