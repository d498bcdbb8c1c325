//! Tables on a terminal.

use crate::format::n_columns;

/// The lines of a table, that of the head first. Every column is as wide as its longest cell, and two spaces stand before the next, whatever the
/// cells hold: two numbers that touch are read as one. As in a report ([`Block::Table`](super::document::Block)), columns whose name is preceded
/// by `>` hold numbers, and stand at the right.
///
/// A row may be shorter than the head. Its last cell is then a text that runs on over the columns beside it, whose width is not its affair.
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

/// Has every line room on a terminal of `width` columns?
pub(super) fn fits(lines: &[String], width: usize) -> bool {
    lines.iter().all(|line| n_columns(line) <= width)
}

/// The first of the tables that has room on a terminal of `width` columns; the last of them where none has.
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
