//! Stores the model's second to fifth choices in a table beside tokens.parquet.
//!
//! ```text
//! alternatives.parquet   row u32, pos u32, rank u16, token_id u32, token str, logprob f32     sorted by row, position and rank (2 to 5)
//! ```
//!
//! Scoring writes the choices of every token for which they are informative ([`is_told`]) beside the parts. A finished run keeps only those of the
//! rows that reports show, so the table has a few megabytes at most, whatever the size of the run.

use std::collections::HashSet;
use std::fs;
use std::path::{Path, PathBuf};

use polars::prelude as pl;
use polars::prelude::IntoColumn;

use super::frames::{TextColumn, write_frames};
use super::read::{RowGroups, strings};
use crate::error::{Context, Result};
use crate::files::retire;
use crate::kernels::TokenStatistics;

/// The name of the file in a run folder.
pub const ALTERNATIVES_FILE: &str = "alternatives.parquet";
const TABLE: &str = "alternatives";
/// The folder that holds the choices of all rows until it is known which rows reports show.
const WAITING_FOLDER: &str = ".alternatives";

pub(super) const COLUMNS: [&str; 6] = ["row", "pos", "rank", "token_id", "token", "logprob"];

/// A choice of the model after its first.
#[derive(Debug, Clone, PartialEq)]
pub struct Alternative {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// Index of the token in the rendered sequence.
    pub pos: u32,
    /// The rank of the choice, 2 to 5; the first choice has rank 1.
    pub rank: u16,
    /// The id of the choice.
    pub token_id: u32,
    /// The text of the choice.
    pub token: String,
    /// ln p of the choice, nats.
    pub logprob: f32,
}

/// Whether the further choices are informative: the token is not the first choice, or the first choice is uncertain.
pub(super) fn is_told(statistics: &TokenStatistics) -> bool {
    const SURE: f32 = 0.9;
    statistics.rank > 1 || statistics.top_logprob < SURE.ln()
}

/// The choices for the tokens of a part, in the order of scoring.
#[derive(Default)]
pub(super) struct Pending {
    row: Vec<u32>,
    pos: Vec<u32>,
    rank: Vec<u16>,
    token_id: Vec<u32>,
    /// The category code of each choice's text.
    token: Vec<u32>,
    logprob: Vec<f32>,
}

impl Pending {
    pub(super) fn push(&mut self, row: u32, pos: u32, rank: u16, token_id: u32, code: u32, logprob: f32) {
        self.row.push(row);
        self.pos.push(pos);
        self.rank.push(rank);
        self.token_id.push(token_id);
        self.token.push(code);
        self.logprob.push(logprob);
    }

    /// Writes the table, or nothing if there are no choices.
    pub(super) fn write(self, path: &Path, texts: &TextColumn, provenance: &[(String, String)]) -> Result<()> {
        if self.row.is_empty() {
            return Ok(());
        }
        let mut order: Vec<usize> = (0..self.row.len()).collect();
        order.sort_by_key(|&i| (self.row[i], self.pos[i], self.rank[i]));
        write_frames(path, TABLE, &schema(), provenance, |writer| Ok(writer.write_batch(&self.frame(&order, texts)?)?))
    }

    fn frame(&self, order: &[usize], texts: &TextColumn) -> Result<pl::DataFrame> {
        fn of<T: Copy>(values: &[T], order: &[usize]) -> Vec<T> {
            order.iter().map(|&i| values[i]).collect()
        }
        let columns = vec![
            pl::UInt32Chunked::from_vec("row".into(), of(&self.row, order)).into_column(),
            pl::UInt32Chunked::from_vec("pos".into(), of(&self.pos, order)).into_column(),
            pl::UInt16Chunked::from_vec("rank".into(), of(&self.rank, order)).into_column(),
            pl::UInt32Chunked::from_vec("token_id".into(), of(&self.token_id, order)).into_column(),
            texts.column("token", of(&self.token, order)),
            pl::Float32Chunked::from_vec("logprob".into(), of(&self.logprob, order)).into_column(),
        ];
        Ok(pl::DataFrame::new(order.len(), columns)?)
    }
}

fn schema() -> pl::Schema {
    let text = pl::DataType::from_categories(pl::Categories::global());
    let types =
        [pl::DataType::UInt32, pl::DataType::UInt32, pl::DataType::UInt16, pl::DataType::UInt32, text, pl::DataType::Float32];
    COLUMNS.iter().zip(types).map(|(name, dtype)| pl::Field::new((*name).into(), dtype)).collect()
}

/// Moves the tables of the parts away, before the parts are deleted.
pub(super) fn set_aside(run: &Path, parts: impl Iterator<Item = PathBuf>) -> Result<()> {
    let waiting = run.join(WAITING_FOLDER);
    for path in parts.filter(|path| path.exists()) {
        fs::create_dir_all(&waiting).context_at(&waiting, "cannot create the folder")?;
        let Some(name) = path.file_name() else { continue };
        fs::rename(&path, waiting.join(name)).context_at(&path, "cannot put the table aside")?;
    }
    Ok(())
}

/// Makes the table of a newly scored run from the rows that `rows` returns. The table of a run that was scored before stays as it is.
pub fn keep_alternatives(run: &Path, rows: impl FnOnce() -> Result<HashSet<u32>>) -> Result<()> {
    let waiting = run.join(WAITING_FOLDER);
    if !waiting.exists() {
        return retire(&waiting);
    }
    let rows = rows()?;
    let mut paths = Vec::new();
    for entry in fs::read_dir(&waiting).context_at(&waiting, "cannot list the folder")? {
        paths.push(entry.context_at(&waiting, "cannot list the folder")?.path());
    }
    paths.sort();
    let provenance = paths.first().map(|path| super::read_provenance(path)).transpose()?.unwrap_or_default();
    let texts = TextColumn::new();
    write_frames(&run.join(ALTERNATIVES_FILE), TABLE, &schema(), &provenance, |writer| {
        let mut groups = RowGroups::of(&paths, COLUMNS.to_vec());
        loop {
            let frames = groups.next_frames()?;
            if frames.is_empty() {
                return Ok(());
            }
            for (path, frame) in frames {
                let mut kept = Pending::default();
                let own = of_rows(&frame, &rows).and_then(|own| read_frame(&own)).map_err(|error| error.at(&path))?;
                for Alternative { row, pos, rank, token_id, token, logprob } in own {
                    kept.push(row, pos, rank, token_id, texts.code(&token)?, logprob);
                }
                let order: Vec<usize> = (0..kept.row.len()).collect();
                writer.write_batch(&kept.frame(&order, &texts)?)?;
            }
        }
    })?;
    // From a partly deleted folder, the next command would make the table again with what is left.
    retire(&waiting)
}

/// Selects the choices of these rows, so that no other texts are read.
fn of_rows(frame: &pl::DataFrame, rows: &HashSet<u32>) -> Result<pl::DataFrame> {
    let wanted: pl::BooleanChunked = frame
        .column("row")?
        .as_materialized_series()
        .u32()?
        .iter()
        .map(|row| row.is_some_and(|row| rows.contains(&row)))
        .collect();
    Ok(frame.filter(&wanted)?)
}

/// Reads the whole table of a run; the result is empty if the run has none.
pub fn read_alternatives(run: &Path) -> Result<Vec<Alternative>> {
    let path = run.join(ALTERNATIVES_FILE);
    let mut all = Vec::new();
    if !path.exists() {
        return Ok(all);
    }
    let mut groups = RowGroups::of(&[path], COLUMNS.to_vec());
    loop {
        let frames = groups.next_frames()?;
        if frames.is_empty() {
            return Ok(all);
        }
        for (path, frame) in frames {
            all.extend(read_frame(&frame).map_err(|error| error.at(path))?);
        }
    }
}

fn read_frame(frame: &pl::DataFrame) -> Result<Vec<Alternative>> {
    let column = |name: &str| -> Result<&pl::Series> { Ok(frame.column(name)?.as_materialized_series()) };
    let numbers = |name: &str| -> Result<&[u32]> { Ok(column(name)?.u32()?.cont_slice()?) };
    let (rows, places, ids) = (numbers("row")?, numbers("pos")?, numbers("token_id")?);
    let (ranks, logprobs) = (column("rank")?.u16()?.cont_slice()?, column("logprob")?.f32()?.cont_slice()?);
    let of = |(i, token): (usize, &str)| Alternative {
        row: rows[i],
        pos: places[i],
        rank: ranks[i],
        token_id: ids[i],
        token: token.to_owned(),
        logprob: logprobs[i],
    };
    Ok(strings(column("token")?)?.enumerate().map(of).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn part(folder: &Path, name: &str, rows: &[u32]) -> PathBuf {
        let (texts, mut pending) = (TextColumn::new(), Pending::default());
        for &row in rows {
            for rank in [3, 2] {
                pending.push(
                    row,
                    7,
                    rank,
                    u32::from(rank) * 10,
                    texts.code(&format!("{row} é {rank}")).unwrap(),
                    -f32::from(rank),
                );
            }
        }
        let path = folder.join(name);
        pending.write(&path, &texts, &[]).unwrap();
        path
    }

    #[test]
    fn of_what_was_set_aside_the_wanted_rows_are_kept() {
        let folder = tempfile::tempdir().unwrap();
        let parts = [
            part(folder.path(), "alternatives-00000.parquet", &[4, 1]),
            part(folder.path(), "alternatives-00001.parquet", &[5, 9]),
        ];
        set_aside(folder.path(), parts.iter().cloned()).unwrap();
        assert!(!parts[0].exists());
        keep_alternatives(folder.path(), || Ok(HashSet::from([1, 9]))).unwrap();
        let of = |row: u32, rank: u16| Alternative {
            row,
            pos: 7,
            rank,
            token_id: u32::from(rank) * 10,
            token: format!("{row} é {rank}"),
            logprob: -f32::from(rank),
        };
        let expected = [of(1, 2), of(1, 3), of(9, 2), of(9, 3)];
        assert_eq!(read_alternatives(folder.path()).unwrap(), expected);
        assert!(!folder.path().join(WAITING_FOLDER).exists());
        // No tables are waiting, though a kill may have left some that were being removed: the table stays, and `rows` is not called.
        fs::create_dir(folder.path().join(".alternatives.retired")).unwrap();
        keep_alternatives(folder.path(), || panic!("asked")).unwrap();
        assert_eq!(read_alternatives(folder.path()).unwrap(), expected);
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_run_without_choices_has_no_table() {
        let folder = tempfile::tempdir().unwrap();
        let path = part(folder.path(), "alternatives-00000.parquet", &[]);
        assert!(!path.exists());
        set_aside(folder.path(), std::iter::once(path)).unwrap();
        keep_alternatives(folder.path(), || panic!("asked")).unwrap();
        assert_eq!(read_alternatives(folder.path()).unwrap(), []);
    }

    #[test]
    fn another_table_is_refused() {
        let folder = tempfile::tempdir().unwrap();
        let mut frame = pl::df!("row" => [1u32], "pos" => [1u32], "rank" => [2i64], "token_id" => [1u32], "token" => ["a"], "logprob" => [0f32]).unwrap();
        let file = fs::File::create(folder.path().join(ALTERNATIVES_FILE)).unwrap();
        pl::ParquetWriter::new(file).finish(&mut frame).unwrap();
        let message = read_alternatives(folder.path()).unwrap_err().to_string();
        assert!(message.contains("alternatives.parquet"), "{message}");
    }
}
