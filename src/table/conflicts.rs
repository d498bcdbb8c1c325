//! Stores the conflicts of a run with their kinds, and pairs of near-duplicate rows, in two tables.
//!
//! ```text
//! conflicts.parquet   row u32, pos u32, kind str, evidence str, group u32     a row per confident conflict, in the order of tokens.parquet
//! pairs.parquet       row u32, other u32, prompts f32, contradicts bool       pairs of rows with nearly the same prompt
//! ```

use std::path::Path;

use polars::prelude as pl;

use super::ROW_GROUP_TOKENS;
use super::frames::{text_column, write_frames};
use super::read::{RowGroups, strings};
use crate::{Error, Result};

/// The name of the table of conflicts in a run folder.
pub const CONFLICTS_FILE: &str = "conflicts.parquet";
/// The name of the table of pairs in a run folder.
pub const PAIRS_FILE: &str = "pairs.parquet";

const COLUMNS: [&str; 5] = ["row", "pos", "kind", "evidence", "group"];

/// A confident conflict with the kind that `diagnosis::kinds` assigns.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct KnownConflict {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// Index of the token in the rendered sequence.
    pub pos: u32,
    /// The name of the kind.
    pub kind: String,
    /// The evidence for the kind; may be empty.
    pub evidence: String,
    /// The index of the group, from 0: conflicts of the same kind, target and first choice form a group.
    pub group: u32,
}

/// A row and another with the same or nearly the same prompt: an earlier row or, anywhere in the data, the first with a contradictory answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct NearPair {
    /// The row, numbered over the whole input.
    pub row: u32,
    /// The other row.
    pub other: u32,
    /// The estimated similarity of the prompts.
    pub prompts: f32,
    /// Whether both have the same prompt but different answers. Every row for which this holds has such a pair.
    pub contradicts: bool,
}

/// Writes the conflicts that `fill` passes to its argument, one row group at a time. `provenance` is that of the token table
/// ([`super::read_provenance`]), to which the conflicts belong.
pub fn write_conflicts(
    path: &Path,
    provenance: &[(String, String)],
    fill: impl FnOnce(&mut dyn FnMut(KnownConflict) -> Result<()>) -> Result<()>,
) -> Result<()> {
    write_frames(path, "conflicts", frame_of(&[])?.schema(), provenance, |writer| {
        let (mut waiting, mut is_empty) = (Vec::new(), true);
        fill(&mut |conflict| {
            waiting.push(conflict);
            if waiting.len() == ROW_GROUP_TOKENS {
                writer.write_batch(&frame_of(&waiting)?)?;
                waiting.clear();
                is_empty = false;
            }
            Ok(())
        })?;
        if is_empty || !waiting.is_empty() {
            writer.write_batch(&frame_of(&waiting)?)?;
        }
        Ok(())
    })
}

fn frame_of(conflicts: &[KnownConflict]) -> Result<pl::DataFrame> {
    let numbers =
        |name: &str, of: fn(&KnownConflict) -> u32| pl::Column::new(name.into(), conflicts.iter().map(of).collect::<Vec<_>>());
    let columns = vec![
        numbers("row", |conflict| conflict.row),
        numbers("pos", |conflict| conflict.pos),
        text_column("kind", conflicts.iter().map(|conflict| conflict.kind.as_str()))?,
        pl::Column::new("evidence".into(), conflicts.iter().map(|conflict| conflict.evidence.as_str()).collect::<Vec<_>>()),
        numbers("group", |conflict| conflict.group),
    ];
    Ok(pl::DataFrame::new(conflicts.len(), columns)?)
}

/// Reads the conflicts of a table in order, one row group at a time.
pub fn read_conflicts(path: &Path) -> impl Iterator<Item = Result<KnownConflict>> + use<> {
    let mut groups = RowGroups::one_by_one(&[path.to_owned()], COLUMNS.to_vec());
    let mut missing = (!path.exists()).then(|| {
        Error::new("the run has no kinds of conflict: its data files were not found when it was sorted")
            .at(path)
            .cure("Sort it again where the data files are: `diagnose RUN`.")
    });
    let frames = std::iter::from_fn(move || {
        if let Some(missing) = missing.take() {
            groups.stop();
            return Some(Err(missing));
        }
        groups.next_frames().map(|mut frames| frames.pop()).transpose()
    });
    frames.flat_map(|frame| match frame.and_then(|(path, frame)| conflicts_of(&frame).map_err(|error| error.at(path))) {
        Ok(conflicts) => conflicts.into_iter().map(Ok).collect(),
        Err(error) => vec![Err(error)],
    })
}

fn conflicts_of(frame: &pl::DataFrame) -> Result<Vec<KnownConflict>> {
    if frame.height() == 0 {
        return Ok(Vec::new());
    }
    let numbers = |name: &str| -> Result<&[u32]> { Ok(frame.column(name)?.as_materialized_series().u32()?.cont_slice()?) };
    let texts = |name: &str| strings(frame.column(name)?.as_materialized_series());
    let (rows, places, groups) = (numbers("row")?, numbers("pos")?, numbers("group")?);
    let texts = texts("kind")?.zip(texts("evidence")?).enumerate();
    let conflict = |(i, (kind, evidence)): (usize, (&str, &str))| KnownConflict {
        row: rows[i],
        pos: places[i],
        kind: kind.to_owned(),
        evidence: evidence.to_owned(),
        group: groups[i],
    };
    Ok(texts.map(conflict).collect())
}

/// Writes pairs.parquet; `provenance` becomes the file's metadata.
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
            write_conflicts(&path, &[], |write| conflicts.iter().cloned().try_for_each(write)).unwrap();
            assert_eq!(read_conflicts(&path).collect::<Result<Vec<_>>>().unwrap(), conflicts);
        }
        let missing: Vec<_> = read_conflicts(&folder.path().join("none")).collect();
        assert_eq!(missing.len(), 1);
        assert!(missing[0].as_ref().unwrap_err().to_string().contains("diagnose RUN"));
    }

    #[test]
    fn many_are_written_and_read_in_pieces() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join(CONFLICTS_FILE);
        let n = 2 * ROW_GROUP_TOKENS as u32;
        let of = |row| KnownConflict { row, pos: 0, kind: "entity".to_owned(), evidence: format!("`{row}`"), group: row % 7 };
        for n in [n - 1, n, n + 1] {
            write_conflicts(&path, &[], |write| (0..n).map(of).try_for_each(write)).unwrap();
            assert!(read_conflicts(&path).map(Result::unwrap).eq((0..n).map(of)), "{n}");
            assert_eq!(super::super::read::open(&path).unwrap().row_groups.len(), (n as usize).div_ceil(ROW_GROUP_TOKENS));
        }
    }
}
