//! The token table as a stream of chunks: only the columns a pass needs, a few row groups at a time.
//!
//! A table of any size is read in the memory of a few chunks. The row groups of one step are decoded in parallel.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude as pl;
use polars::prelude::SerReader;
use rayon::prelude::*;

use super::{Column, ColumnType, Quadrant, TokenChunk};
use crate::{Context, Error, Result};

/// Chunks of the tables in `paths`, in their order, with the columns asked for.
pub fn read_chunks(paths: &[PathBuf], columns: &[Column]) -> Chunks {
    Chunks {
        row_groups: RowGroups::of(paths, columns.iter().map(|column| column.name()).collect()),
        columns: columns.to_vec(),
        ready: Vec::new(),
        source_names: Arc::default(),
        source_index: HashMap::new(),
    }
}

/// Iterator over the chunks of one or more tables; see [`read_chunks`]. Ends after the first error.
pub struct Chunks {
    row_groups: RowGroups,
    columns: Vec<Column>,
    /// Decoded row groups, the next one last.
    ready: Vec<(PathBuf, pl::DataFrame)>,
    source_names: Arc<Vec<String>>,
    source_index: HashMap<String, u32>,
}

impl Iterator for Chunks {
    type Item = Result<TokenChunk>;

    fn next(&mut self) -> Option<Result<TokenChunk>> {
        if self.ready.is_empty() {
            match self.row_groups.next_frames() {
                Ok(frames) => self.ready.extend(frames.into_iter().rev()),
                Err(error) => return Some(Err(error)),
            }
        }
        let (path, frame) = self.ready.pop()?;
        let chunk = self.chunk_of(&frame).map_err(|error| error.at(path));
        if chunk.is_err() {
            self.row_groups.stop();
            self.ready.clear();
        }
        Some(chunk)
    }
}

impl Chunks {
    fn chunk_of(&mut self, frame: &pl::DataFrame) -> Result<TokenChunk> {
        let mut chunk = TokenChunk { len: frame.height(), ..TokenChunk::default() };
        for column in self.columns.clone() {
            let series = column_of(frame, column)?;
            match column {
                Column::Row => chunk.row = numbers::<pl::UInt32Type>(series)?,
                Column::Turn => chunk.turn = numbers::<pl::UInt16Type>(series)?,
                Column::Pos => chunk.pos = numbers::<pl::UInt32Type>(series)?,
                Column::Source => chunk.source = self.source_indices(series)?,
                Column::TokenId => chunk.token_id = numbers::<pl::UInt32Type>(series)?,
                Column::Begin => chunk.begin = numbers::<pl::UInt32Type>(series)?,
                Column::End => chunk.end = numbers::<pl::UInt32Type>(series)?,
                Column::Logprob => chunk.logprob = numbers::<pl::Float32Type>(series)?,
                Column::Entropy => chunk.entropy = numbers::<pl::Float32Type>(series)?,
                Column::EntropyTopk => chunk.entropy_topk = numbers::<pl::Float32Type>(series)?,
                Column::Rank => chunk.rank = numbers::<pl::UInt32Type>(series)?,
                Column::Tail => chunk.tail = numbers::<pl::Float32Type>(series)?,
                Column::Varentropy => chunk.varentropy = numbers::<pl::Float32Type>(series)?,
                Column::Grad => chunk.grad = numbers::<pl::Float32Type>(series)?,
                Column::TopId => chunk.top_id = numbers::<pl::UInt32Type>(series)?,
                Column::TopLogprob => chunk.top_logprob = numbers::<pl::Float32Type>(series)?,
                Column::Quadrant => chunk.quadrant = quadrants(series)?,
                // The texts stay in the dictionary; `texts_of` looks up the few that a report shows.
                Column::Token | Column::Top => {}
            }
        }
        chunk.sources = Arc::clone(&self.source_names);
        Ok(chunk)
    }

    /// Category codes belong to a process, our indices to this read.
    fn source_indices(&mut self, series: &pl::Series) -> Result<Vec<u32>> {
        let mapping = series.cat32()?.get_mapping();
        let codes = series.cat32()?.physical().cont_slice()?;
        let mut indices = Vec::with_capacity(codes.len());
        // A source has many tokens in a row, so that the names are looked up once per run of equal codes.
        for run in codes.chunk_by(|a, b| a == b) {
            let name = mapping.cat_to_str(run[0]).unwrap_or_default();
            let index = match self.source_index.get(name) {
                Some(index) => *index,
                None => {
                    let index = self.source_names.len() as u32;
                    Arc::make_mut(&mut self.source_names).push(name.to_owned());
                    self.source_index.insert(name.to_owned(), index);
                    index
                }
            };
            indices.extend(std::iter::repeat_n(index, run.len()));
        }
        Ok(indices)
    }
}

/// What a person reads for each of these token ids, as far as they occur in the tables (as target or as first choice).
///
/// Stops as soon as all are found, which for frequent tokens is in the first row groups.
pub fn texts_of(paths: &[PathBuf], ids: &HashSet<u32>) -> Result<HashMap<u32, String>> {
    let mut texts = HashMap::new();
    for (id_column, text_column) in [(Column::TokenId, Column::Token), (Column::TopId, Column::Top)] {
        let mut missing: HashSet<u32> = ids.iter().filter(|id| !texts.contains_key(*id)).copied().collect();
        let mut row_groups = RowGroups::of(paths, vec![id_column.name(), text_column.name()]);
        while !missing.is_empty() {
            let frames = row_groups.next_frames()?;
            if frames.is_empty() {
                break;
            }
            for (path, frame) in &frames {
                let mut look_up = || -> Result<()> {
                    let token_ids = numbers::<pl::UInt32Type>(column_of(frame, id_column)?)?;
                    let texts_of_tokens = column_of(frame, text_column)?.cat32()?;
                    for (id, code) in token_ids.iter().zip(texts_of_tokens.physical().cont_slice()?) {
                        if missing.remove(id) {
                            let text = texts_of_tokens.get_mapping().cat_to_str(*code).unwrap_or_default();
                            texts.insert(*id, text.to_owned());
                        }
                    }
                    Ok(())
                };
                look_up().map_err(|error| error.at(path))?;
            }
        }
    }
    Ok(texts)
}

/// The names and values that say what made a table, as given to the writer.
pub fn read_provenance(path: &Path) -> Result<Vec<(String, String)>> {
    let metadata = open(path)?;
    let pairs = metadata.key_value_metadata().iter().flatten();
    let ours = pairs.filter(|pair| pair.key != "ARROW:schema");
    Ok(ours.filter_map(|pair| Some((pair.key.to_string(), pair.value.as_ref()?.to_string()))).collect())
}

/// Row groups of several tables one after another, some columns of each, a few at a time.
pub(super) struct RowGroups {
    /// Files not yet opened, the next one last.
    paths: Vec<PathBuf>,
    columns: Vec<&'static str>,
    current: Option<(PathBuf, Arc<pl::FileMetadata>, usize)>,
}

impl RowGroups {
    pub(super) fn of(paths: &[PathBuf], columns: Vec<&'static str>) -> RowGroups {
        RowGroups { paths: paths.iter().rev().cloned().collect(), columns, current: None }
    }

    /// The next row groups, as many as there are threads; none at the end. Ends after an error.
    pub(super) fn next_frames(&mut self) -> Result<Vec<(PathBuf, pl::DataFrame)>> {
        let frames = self.take_jobs().and_then(|jobs| {
            jobs.into_par_iter()
                .map(|(path, metadata, group)| {
                    let frame = read_group(&path, &metadata, group, &self.columns)?;
                    Ok((path, frame))
                })
                .collect()
        });
        if frames.is_err() {
            self.stop();
        }
        frames
    }

    fn stop(&mut self) {
        self.paths.clear();
        self.current = None;
    }

    fn take_jobs(&mut self) -> Result<Vec<(PathBuf, Arc<pl::FileMetadata>, usize)>> {
        let mut jobs = Vec::new();
        while jobs.len() < rayon::current_num_threads() {
            match &mut self.current {
                Some((path, metadata, group)) if *group < metadata.row_groups.len() => {
                    jobs.push((path.clone(), Arc::clone(metadata), *group));
                    *group += 1;
                }
                _ => {
                    let Some(path) = self.paths.pop() else { break };
                    let metadata = open(&path)?;
                    for name in &self.columns {
                        if !metadata.schema().columns().iter().any(|column| column.path_in_schema.iter().eq([name])) {
                            return Err(missing_column(name).at(path));
                        }
                    }
                    self.current = Some((path, metadata, 0));
                }
            }
        }
        Ok(jobs)
    }
}

fn open(path: &Path) -> Result<Arc<pl::FileMetadata>> {
    let file = File::open(path).context_at(path, "cannot open the token table")?;
    let mut reader = pl::ParquetReader::new(file);
    let metadata = reader.get_metadata().context_at(path, "this is not a complete Parquet table")?;
    Ok(Arc::clone(metadata))
}

fn read_group(path: &Path, metadata: &Arc<pl::FileMetadata>, group: usize, columns: &[&str]) -> Result<pl::DataFrame> {
    let begin: usize = metadata.row_groups[..group].iter().map(|group| group.num_rows()).sum();
    let file = File::open(path).context_at(path, "cannot open the token table")?;
    let mut reader = pl::ParquetReader::new(file);
    reader.set_metadata(Arc::clone(metadata));
    // Of polars' strategies only this one skips the row groups before the slice instead of decoding them.
    reader
        .read_parallel(pl::ParallelStrategy::RowGroups)
        .with_columns(Some(columns.iter().map(|name| name.to_string()).collect()))
        .with_slice(Some((begin, metadata.row_groups[group].num_rows())))
        .set_rechunk(true)
        .finish()
        .context_at(path, "cannot read the token table")
}

fn missing_column(name: &str) -> Error {
    Error::new(format!("the token table has no column `{name}`")).cure(
        "Give the folder of a finished run, or a table written by this program; quadrants are filled in when a run finishes.",
    )
}

fn column_of(frame: &pl::DataFrame, column: Column) -> Result<&pl::Series> {
    let series = frame.column(column.name()).map_err(|_| missing_column(column.name()))?.as_materialized_series();
    let dtype = series.dtype();
    let fits = match column.column_type() {
        ColumnType::U16 => *dtype == pl::DataType::UInt16,
        ColumnType::U32 => *dtype == pl::DataType::UInt32,
        ColumnType::F32 => *dtype == pl::DataType::Float32,
        ColumnType::Text => {
            matches!(dtype, pl::DataType::Categorical(categories, _) if categories.physical() == pl::CategoricalPhysical::U32)
        }
        ColumnType::Label => matches!(dtype, pl::DataType::Enum(..)),
    };
    if !fits {
        let expected = column.column_type();
        return Err(Error::new(format!("column `{}` of the token table should be {expected:?}, but is {dtype}", column.name()))
            .cure("Keep the column types when you rewrite a table, or score the data again."));
    }
    if series.null_count() > 0 {
        let nulls = series.null_count();
        return Err(Error::new(format!("column `{}` of the token table has {nulls} missing values", column.name())));
    }
    Ok(series)
}

/// The values of a column that `column_of` has checked.
fn numbers<T: pl::PolarsNumericType>(series: &pl::Series) -> Result<Vec<T::Native>> {
    let array: &pl::ChunkedArray<T> = series.as_ref().as_ref();
    Ok(array.cont_slice()?.to_vec())
}

fn quadrants(series: &pl::Series) -> Result<Vec<Quadrant>> {
    let column = series.cat8()?;
    let names: Vec<Option<Quadrant>> = (0..4)
        .map(|code| {
            let name = column.get_mapping().cat_to_str(code);
            Quadrant::ALL.into_iter().find(|quadrant| Some(quadrant.name()) == name)
        })
        .collect();
    let of = |code: &u8| names.get(usize::from(*code)).copied().flatten();
    let quadrants: Option<Vec<Quadrant>> = column.physical().cont_slice()?.iter().map(of).collect();
    quadrants.ok_or_else(|| Error::new("column `quadrant` of the token table holds names that this version does not know"))
}
