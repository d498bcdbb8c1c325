//! What a run found out about its conflicts and about rows that are alike, each a table of its own.
//!
//! ```text
//! conflicts.parquet   row u32, pos u32, kind str, evidence str, group u32     a row for each confident conflict, in the order of tokens.parquet
//! pairs.parquet       row u32, other u32, prompts f32, contradicts bool       rows whose prompts are nearly the same; other comes first
//! ```

use std::path::Path;

use polars::prelude as pl;
use polars::prelude::SerReader;

use super::frames::{text_column, write_frames};
use crate::{Context, Error, Result};

pub const CONFLICTS_FILE: &str = "conflicts.parquet";
pub const PAIRS_FILE: &str = "pairs.parquet";

/// A confident conflict with its kind, as `diagnosis::kinds` names it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownConflict {
    pub row: u32,
    /// Index of the token in the rendered sequence.
    pub pos: u32,
    pub kind: String,
    /// What speaks for the kind; may be empty.
    pub evidence: String,
    /// Conflicts of one kind with the same target and the same choice are one group, numbered from 0.
    pub group: u32,
}

/// Two rows whose prompts are nearly the same.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearPair {
    pub row: u32,
    /// The earlier one.
    pub other: u32,
    /// Similarity of the prompts, estimated.
    pub prompts: f32,
    /// They ask the same and are answered otherwise.
    pub contradicts: bool,
}

/// `provenance` is that of the token table ([`super::read_provenance`]): it says whose conflicts these are.
pub fn write_conflicts(path: &Path, conflicts: &[KnownConflict], provenance: &[(String, String)]) -> Result<()> {
    let numbers =
        |name: &str, of: fn(&KnownConflict) -> u32| pl::Column::new(name.into(), conflicts.iter().map(of).collect::<Vec<_>>());
    let columns = vec![
        numbers("row", |conflict| conflict.row),
        numbers("pos", |conflict| conflict.pos),
        text_column("kind", conflicts.iter().map(|conflict| conflict.kind.as_str()))?,
        pl::Column::new("evidence".into(), conflicts.iter().map(|conflict| conflict.evidence.as_str()).collect::<Vec<_>>()),
        numbers("group", |conflict| conflict.group),
    ];
    let frame = pl::DataFrame::new(conflicts.len(), columns)?;
    write_frames(path, "conflicts", frame.schema(), provenance, |writer| Ok(writer.write_batch(&frame)?))
}

pub fn read_conflicts(path: &Path) -> Result<Vec<KnownConflict>> {
    let frame = read(path)?;
    let (rows, places, groups) = (numbers(&frame, "row")?, numbers(&frame, "pos")?, numbers(&frame, "group")?);
    let (kinds, evidence) = (texts(&frame, "kind")?, texts(&frame, "evidence")?);
    let all = rows.into_iter().zip(places).zip(groups).zip(kinds.into_iter().zip(evidence));
    Ok(all.map(|(((row, pos), group), (kind, evidence))| KnownConflict { row, pos, kind, evidence, group }).collect())
}

pub fn write_pairs(path: &Path, pairs: &[NearPair], provenance: &[(String, String)]) -> Result<()> {
    let columns = vec![
        pl::Column::new("row".into(), pairs.iter().map(|pair| pair.row).collect::<Vec<_>>()),
        pl::Column::new("other".into(), pairs.iter().map(|pair| pair.other).collect::<Vec<_>>()),
        pl::Column::new("prompts".into(), pairs.iter().map(|pair| pair.prompts).collect::<Vec<_>>()),
        pl::Column::new("contradicts".into(), pairs.iter().map(|pair| pair.contradicts).collect::<Vec<_>>()),
    ];
    let frame = pl::DataFrame::new(pairs.len(), columns)?;
    write_frames(path, "pairs", frame.schema(), provenance, |writer| Ok(writer.write_batch(&frame)?))
}

fn read(path: &Path) -> Result<pl::DataFrame> {
    if !path.exists() {
        return Err(Error::new("the run has no kinds of conflict: its data were not at hand when it was sorted")
            .at(path)
            .cure("Sort it again where the data lie: `diagnose RUN`."));
    }
    let file = std::fs::File::open(path).context_at(path, "cannot open the table of conflicts")?;
    pl::ParquetReader::new(file).finish().context_at(path, "cannot read the table of conflicts")
}

fn numbers(frame: &pl::DataFrame, name: &str) -> Result<Vec<u32>> {
    Ok(frame.column(name)?.as_materialized_series().u32()?.iter().map(Option::unwrap_or_default).collect())
}

fn texts(frame: &pl::DataFrame, name: &str) -> Result<Vec<String>> {
    let strings = frame.column(name)?.as_materialized_series().cast(&pl::DataType::String)?;
    Ok(strings.str()?.iter().map(|text| text.unwrap_or_default().to_owned()).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_written_is_read() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFLICTS_FILE);
        let conflict =
            |row, kind: &str| KnownConflict { row, pos: row + 7, kind: kind.to_owned(), evidence: "`é`".to_owned(), group: 1 };
        for conflicts in [vec![], vec![conflict(1, "number"), conflict(4, "entity"), conflict(4, "number")]] {
            write_conflicts(&path, &conflicts, &[]).unwrap();
            assert_eq!(read_conflicts(&path).unwrap(), conflicts);
        }
        assert!(read_conflicts(&folder.path().join("none")).unwrap_err().to_string().contains("diagnose RUN"));
    }
}
