//! Finds the data files of a finished run again, and checks them.
//!
//! They are searched for under the names in run.json, relative to the current folder and to the folders that contain the run folder, and must have
//! the bytes that were scored.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::path::{Path, PathBuf};

use super::record::{RunRecord, names_of};
use crate::dataset::{Chosen, Compression, DataFile, Dataset, Turn};
use crate::diagnosis::context::{InContext, Spot};
use crate::diagnosis::turn_text::{TurnText, TurnToken};
use crate::error::{Error, Result};
use crate::format::count;
use crate::table::{Column, read_chunks, texts_of};
use crate::tokens::writes_beside_content;

/// Calls `read` for each readable row of `wanted`, with the texts of its turns.
pub(crate) fn read_listed(
    tables: &[PathBuf],
    dataset: &Dataset,
    chosen: &Chosen,
    wanted: BTreeSet<u32>,
    mut read: impl FnMut(u32, &dyn Fn(&Spot) -> Option<InContext>),
) -> Result<()> {
    let mut turns: BTreeMap<u32, Vec<Turn>> = BTreeMap::new();
    for record in dataset.chosen(&chosen.only(wanted)) {
        let record = record?;
        if let Ok(example) = record.example {
            turns.insert(record.row, example.turns);
        }
    }
    let beside = turn_texts(tables, &turns)?;
    for (&row, turns) in &turns {
        read(row, &|spot| {
            let own = spot.pos.and_then(|pos| beside.get(&(row, spot.turn))?.in_context(pos));
            let content = &turns.get(usize::from(spot.turn))?.content;
            Some(own.unwrap_or_else(|| InContext::of(content, spot.begin as usize, spot.end as usize)))
        });
    }
    Ok(())
}

/// Of the turns that write something beside their content: the texts of their tokens, in one pass over the tables. By row and turn.
pub(crate) fn turn_texts(tables: &[PathBuf], turns: &BTreeMap<u32, Vec<Turn>>) -> Result<HashMap<(u32, u16), TurnText>> {
    let turn_of = |row: u32, turn: u16| {
        let turn = turns.get(&row)?.get(usize::from(turn))?;
        writes_beside_content(turn).then_some(turn)
    };
    if !turns.values().flatten().any(writes_beside_content) {
        return Ok(HashMap::new());
    }
    let mut tokens: HashMap<(u32, u16), Vec<TurnToken>> = HashMap::new();
    let columns = [Column::Row, Column::Turn, Column::Pos, Column::TokenId, Column::Begin, Column::End];
    for chunk in read_chunks(tables, &columns) {
        let chunk = chunk?;
        for i in 0..chunk.len() {
            let key = (chunk.row[i], chunk.turn[i]);
            if turn_of(key.0, key.1).is_some() {
                let is_content = chunk.begin[i] < chunk.end[i];
                tokens.entry(key).or_default().push(TurnToken { pos: chunk.pos[i], id: chunk.token_id[i], is_content });
            }
        }
    }
    let words = texts_of(tables, &tokens.values().flatten().map(|token| token.id).collect())?;
    let word = |id: u32| words.get(&id).map_or("", String::as_str);
    let text = |(key, tokens): ((u32, u16), Vec<TurnToken>)| Some((key, TurnText::of(turn_of(key.0, key.1)?, &tokens, word)));
    Ok(tokens.into_iter().filter_map(text).collect())
}

/// Opens the data of a run, which must be exactly the bytes that were scored. `data` are the files in their order, if they have moved.
pub(crate) fn open_data(folder: &Path, record: &RunRecord, data: &[String]) -> Result<Dataset> {
    let inputs = match data {
        [] => find(folder, &record.data)?,
        data => data.to_vec(),
    };
    let read = record.read.clone().unwrap_or_default();
    let dataset = Dataset::open(&inputs, &read.options()?)?;
    let (expected, found) = (&record.data, dataset.files());
    if expected.len() != found.len() {
        let [expected, found] =
            [expected, found].map(|files| format!("{} ({})", count(files.len() as u64, "file"), names_of(files)));
        return Err(Error::new(format!("expected the data of the run, {expected}, found {found}"))
            .at(folder)
            .cure("Name all of them with --data, in their order."));
    }
    for (expected, found) in expected.iter().zip(found) {
        if expected.sha256 != found.sha256 {
            let of =
                |file: &DataFile| format!("SHA-256 {} ({} bytes)", &file.sha256.get(..12).unwrap_or(&file.sha256), file.bytes);
            return Err(Error::new(format!(
                "the data file has changed since the run: expected {}, found {}",
                of(expected),
                of(found)
            ))
            .at(&found.path)
            .cure("Score it again, or name the original file with --data."));
        }
        if (expected.format, expected.container) != (found.format, found.container) {
            return Err(Error::new(format!("expected rows of the format {}, found {}", expected.format, found.format))
                .at(&found.path)
                .cure("The run was made by another version of the program; score the data again."));
        }
    }
    Ok(dataset)
}

/// The data files of a run at their current place, and which of their records were read.
pub(crate) fn find_data(folder: &Path, record: &RunRecord, data: &[String]) -> Result<(Dataset, Chosen)> {
    let dataset = open_data(folder, record, data)?;
    let chosen = dataset.choose(record.choice())?.in_shard(record.shard.as_ref().map(|shard| shard.shard));
    Ok((dataset, chosen))
}

/// The current paths of the run's files: as named, relative to the current folder or to a folder that contains the run folder.
fn find(folder: &Path, files: &[DataFile]) -> Result<Vec<String>> {
    let folder = std::path::absolute(folder).unwrap_or_else(|_| folder.to_owned());
    let mut inputs: Vec<String> = Vec::new();
    for file in files {
        if file.path == Path::new("-") {
            return Err(Error::new("the data of the run came from standard input, which is gone")
                .at(&folder)
                .cure("Name a file that holds the same bytes with --data."));
        }
        let bases = std::iter::once(Path::new("")).chain(folder.ancestors().skip(1));
        // The path of a file in an archive begins with that of the archive.
        let is_file = |path: &PathBuf| path.ancestors().find(|path| path.is_file()).map(Path::to_owned);
        let path = bases.map(|base| base.join(&file.path)).find_map(|path| is_file(&path)).ok_or_else(|| {
            Error::new(format!("cannot find the data file {} of the run", file.path.display()))
                .at(&folder)
                .cure("Run this in the folder where the data were scored, or pass their current paths with --data.")
        })?;
        let path = path.into_os_string().into_string().map_err(|path| {
            Error::new("expected a file name of valid Unicode")
                .at(PathBuf::from(path))
                .cure("Rename the file, and name it with --data.")
        })?;
        if inputs.last() != Some(&path) || !matches!(file.compression, Compression::Zip) {
            inputs.push(path);
        }
    }
    Ok(inputs)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::dataset::ReadOptions;

    #[test]
    fn files_are_found_from_where_the_run_lies() {
        let folder = tempfile::tempdir().unwrap();
        let data = folder.path().join("data");
        std::fs::create_dir_all(&data).unwrap();
        std::fs::write(data.join("rows.jsonl"), "{\"text\": \"one\"}\n").unwrap();
        let name = data.join("rows.jsonl").to_string_lossy().into_owned();
        let mut files = Dataset::open(&[name], &ReadOptions::default()).unwrap().files().to_vec();
        files[0].path = PathBuf::from("data/rows.jsonl");
        let run = folder.path().join("runs").join("rows-1234");
        let expected = folder.path().join("data/rows.jsonl").to_string_lossy().into_owned();
        assert_eq!(find(&run, &files).unwrap(), [expected]);
        files[0].path = PathBuf::from("data/other.jsonl");
        assert!(find(&run, &files).unwrap_err().to_string().contains("--data"));
        files[0].path = PathBuf::from("-");
        assert!(find(&run, &files).unwrap_err().to_string().contains("standard input"));
    }
}
