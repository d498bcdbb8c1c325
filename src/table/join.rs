//! Merges the tables of shards, which divide the rows of a data set, into the parts that a single run would have written.
//!
//! Each shard is read in slices in row order, and each part takes its rows from all shards. Memory holds a few row groups (whatever the number of
//! shards), one part, and the table of rows.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use polars::prelude as pl;

use super::alternatives::{ALTERNATIVES_FILE, COLUMNS as ALTERNATIVES};
use super::bounds;
use super::frames::write_frames;
use super::read::RowGroups;
use super::rows::{Row, read_rows, write_rows};
use super::write::part;
use super::{Column, ROW_GROUP_TOKENS, ROWS_FILE, TOKENS_FILE};
use crate::error::{Context, Error, Result};

/// The number of tokens of all shards together that are held at a time.
const HELD_TOKENS: usize = 4 * ROW_GROUP_TOKENS;

/// Writes the parts into the folder `parts`. `ends` is called with each row in order, and returns whether a part ends after it; `provenance` is
/// written to the files, as by [`PartWriter`](super::PartWriter).
pub(crate) fn join_shards(
    parts: &Path,
    shards: &[PathBuf],
    mut ends: impl FnMut(&Row) -> bool,
    provenance: &[(String, String)],
) -> Result<usize> {
    std::fs::create_dir_all(parts).context_at(parts, "cannot create the folder")?;
    let rows = rows_of(shards)?;
    let mut stored: Vec<&'static str> =
        Column::ALL.iter().filter(|(column, ..)| *column != Column::Quadrant).map(|(_, name, ..)| *name).collect();
    let tables: Vec<PathBuf> = shards.iter().map(|shard| shard.join(TOKENS_FILE)).collect();
    if tables.first().map(|table| bounds::has_bounds(table)).transpose()?.unwrap_or(false) {
        stored.extend(bounds::NAMES);
    }
    let at_once = HELD_TOKENS / shards.len().max(1);
    let mut tokens: Vec<Cursor> = tables.iter().map(|table| Cursor::new(table, stored.clone(), at_once)).collect();
    let mut alternatives: Vec<Cursor> = shards
        .iter()
        .map(|shard| shard.join(ALTERNATIVES_FILE))
        .filter(|table| table.exists())
        .map(|table| Cursor::new(&table, ALTERNATIVES.to_vec(), at_once))
        .collect();
    let (mut begin, mut number) = (0, 0);
    for end in 1..=rows.len() {
        // `ends` keeps a count, so it must be called for every row.
        if !ends(&rows[end - 1]) && end < rows.len() {
            continue;
        }
        let part = part(parts, number);
        let last = rows[end - 1].row;
        if let Some(frame) = merged(&mut tokens, last)? {
            write_frames(&part.tokens, "tokens", frame.schema(), provenance, |writer| {
                for begin in (0..frame.height()).step_by(ROW_GROUP_TOKENS) {
                    writer.write_batch(&frame.slice(begin as i64, ROW_GROUP_TOKENS))?;
                }
                Ok(())
            })?;
        } else {
            let frame = empty(&tables, &stored)?;
            write_frames(&part.tokens, "tokens", frame.schema(), provenance, |writer| Ok(writer.write_batch(&frame)?))?;
        }
        if let Some(frame) = merged(&mut alternatives, last)? {
            write_frames(&part.alternatives, "alternatives", frame.schema(), provenance, |writer| {
                Ok(writer.write_batch(&frame)?)
            })?;
        }
        write_rows(&part.rows, &rows[begin..end], provenance)?;
        (begin, number) = (end, number + 1);
    }
    Ok(rows.len())
}

/// Reads the rows of all shards in ascending order.
fn rows_of(shards: &[PathBuf]) -> Result<Vec<Row>> {
    let (mut rows, mut of) = (Vec::new(), HashMap::new());
    for (shard, folder) in shards.iter().enumerate() {
        for row in read_rows(&folder.join(ROWS_FILE))? {
            if let Some(other) = of.insert(row.row, shard) {
                return Err(Error::new(format!("row {} is in {} as well", row.row, shards[other].display()))
                    .at(folder)
                    .cure("Name each shard of the run once, and shards of one run."));
            }
            rows.push(row);
        }
    }
    rows.sort_unstable_by_key(|row| row.row);
    Ok(rows)
}

/// Returns a frame with the columns but no tokens. The table of an empty shard may have no row group to take them from.
fn empty(tables: &[PathBuf], columns: &[&'static str]) -> Result<pl::DataFrame> {
    for table in tables {
        let mut cursor = Cursor::new(table, columns.to_vec(), ROW_GROUP_TOKENS);
        cursor.fill()?;
        if let Some(frame) = &cursor.frame {
            return Ok(frame.clear());
        }
    }
    Err(Error::new("the tables of the shards have no tokens"))
}

/// The minimum number of tokens per slice of a shard, since every slice decodes its pages anew.
const LEAST_TOKENS: usize = 1 << 14;

/// A table that is read sequentially, in row order.
struct Cursor {
    groups: RowGroups,
    /// The remaining rows of the current slice.
    frame: Option<pl::DataFrame>,
}

impl Cursor {
    /// Opens a table that is read in slices of `at_once` tokens, but no fewer than [`LEAST_TOKENS`].
    fn new(table: &Path, columns: Vec<&'static str>, at_once: usize) -> Cursor {
        Cursor { groups: RowGroups::in_slices(&[table.to_owned()], columns, at_once.max(LEAST_TOKENS)), frame: None }
    }

    fn fill(&mut self) -> Result<()> {
        while self.frame.as_ref().is_none_or(|frame| frame.height() == 0)
            && let Some((_, frame)) = self.groups.next_frames()?.pop()
        {
            self.frame = Some(frame);
            if self.frame.as_ref().is_some_and(|frame| frame.height() > 0) {
                break;
            }
        }
        Ok(())
    }

    /// Takes the entries of rows up to `last`.
    fn take(&mut self, last: u32, into: &mut Vec<pl::DataFrame>) -> Result<()> {
        loop {
            self.fill()?;
            let Some(frame) = self.frame.take().filter(|frame| frame.height() > 0) else { return Ok(()) };
            let n = frame.column(Column::Row.name())?.u32()?.cont_slice()?.partition_point(|&row| row <= last);
            let height = frame.height();
            if n > 0 {
                into.push(frame.slice(0, n));
            }
            if n < height {
                self.frame = Some(frame.slice(n as i64, height - n));
                return Ok(());
            }
        }
    }
}

/// Takes the entries of rows up to `last` from all tables, in row order. Returns `None` if there are none.
fn merged(cursors: &mut [Cursor], last: u32) -> Result<Option<pl::DataFrame>> {
    let mut frames = Vec::new();
    for cursor in cursors {
        cursor.take(last, &mut frames)?;
    }
    let mut frames = frames.into_iter();
    let Some(mut whole) = frames.next() else { return Ok(None) };
    for frame in frames {
        whole.vstack_mut_owned(frame)?;
    }
    whole.rechunk_mut_par();
    // A row is in a single shard, in its own order, so a stable sort by row suffices.
    let rows = whole.column(Column::Row.name())?.u32()?.cont_slice()?;
    let mut order: Vec<u32> = (0..rows.len() as u32).collect();
    order.sort_by_key(|&i| rows[i as usize]);
    let order = pl::IdxCa::from_vec("order".into(), order);
    Ok(Some(whole.take(&order)?))
}
