//! Reads the token table as a stream of chunks: only the columns that a pass needs, a few row groups at a time.
//!
//! Memory holds a few chunks, whatever the size of the table. The row groups of one step are decoded in parallel.

use std::collections::{HashMap, HashSet};
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use polars::prelude as pl;
use polars::prelude::SerReader;
use rayon::prelude::*;

use super::{Column, ColumnType, Quadrant, TokenChunk};
use crate::{Context, Error, Result};

/// Reads chunks of the tables in `paths`, in order, with the given columns.
pub fn read_chunks(paths: &[PathBuf], columns: &[Column]) -> Chunks {
    Chunks {
        row_groups: RowGroups::of(paths, columns.iter().map(|column| column.name()).collect()),
        columns: columns.to_vec(),
        ready: Vec::new(),
        source_names: Arc::default(),
        source_index: HashMap::new(),
    }
}

/// Iterator over the chunks of one or more tables; see [`read_chunks`]. It ends after the first error.
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
                // `texts_of` looks up the few texts that a report shows.
                Column::Token | Column::Top => {}
            }
        }
        chunk.sources = Arc::clone(&self.source_names);
        Ok(chunk)
    }

    fn source_indices(&mut self, series: &pl::Series) -> Result<Vec<u32>> {
        let mut indices = Vec::with_capacity(series.len());
        // Consecutive tokens mostly have the same source.
        let mut last: Option<(&str, u32)> = None;
        for name in strings(series)? {
            let index = match last {
                Some((before, index)) if before == name => index,
                _ => match self.source_index.get(name) {
                    Some(index) => *index,
                    None => {
                        let index = self.source_names.len() as u32;
                        Arc::make_mut(&mut self.source_names).push(name.to_owned());
                        self.source_index.insert(name.to_owned(), index);
                        index
                    }
                },
            };
            last = Some((name, index));
            indices.push(index);
        }
        Ok(indices)
    }
}

/// Returns the display texts of these token ids, if they occur in the tables (as target or as first choice).
///
/// The search stops once all are found, which for frequent tokens is in the first row groups.
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
                    for (id, text) in token_ids.iter().zip(strings(column_of(frame, text_column)?)?) {
                        if missing.remove(id) {
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

/// Returns the names and values that describe the origin of a table, as given to the writer.
pub fn read_provenance(path: &Path) -> Result<Vec<(String, String)>> {
    let metadata = open(path)?;
    let pairs = metadata.key_value_metadata().iter().flatten();
    let ours = pairs.filter(|pair| pair.key != "ARROW:schema");
    Ok(ours.filter_map(|pair| Some((pair.key.to_string(), pair.value.as_ref()?.to_string()))).collect())
}

/// Reads row groups of several tables one after another, a few at a time, with some of the columns.
///
/// Text columns are read as strings although the tables declare them as categories: polars would look up every row's text in a hash table to make
/// categories, which for fifty million rows takes longer than everything else.
pub(super) struct RowGroups {
    /// Files not yet opened, the next one last.
    paths: Vec<PathBuf>,
    columns: Vec<&'static str>,
    /// The open file, the index of its next row group, and how many rows of that group have been taken.
    current: Option<(PathBuf, Arc<pl::FileMetadata>, usize, usize)>,
    /// The number of row groups that are decoded at a time.
    at_once: usize,
    /// The maximum number of rows of a frame; a larger row group is split.
    most_rows: usize,
}

/// A range of rows within one row group of a file.
struct Slice {
    path: PathBuf,
    metadata: Arc<pl::FileMetadata>,
    begin: usize,
    len: usize,
}

impl RowGroups {
    pub(super) fn of(paths: &[PathBuf], columns: Vec<&'static str>) -> RowGroups {
        let at_once = rayon::current_num_threads().min(MOST_AT_ONCE);
        RowGroups { paths: paths.iter().rev().cloned().collect(), columns, current: None, at_once, most_rows: usize::MAX }
    }

    /// Like [`RowGroups::of`], but one row group at a time.
    pub(super) fn one_by_one(paths: &[PathBuf], columns: Vec<&'static str>) -> RowGroups {
        RowGroups { at_once: 1, ..RowGroups::of(paths, columns) }
    }

    /// Like [`RowGroups::one_by_one`], but at most `most_rows` rows at a time, for reading many tables concurrently.
    pub(super) fn in_slices(paths: &[PathBuf], columns: Vec<&'static str>, most_rows: usize) -> RowGroups {
        RowGroups { most_rows, ..RowGroups::one_by_one(paths, columns) }
    }

    /// Returns the next row groups, up to `at_once` of them, or none at the end and after an error.
    pub(super) fn next_frames(&mut self) -> Result<Vec<(PathBuf, pl::DataFrame)>> {
        let frames = self.take_jobs().and_then(|jobs| {
            jobs.into_par_iter()
                .map(|slice: Slice| {
                    let frame = read_slice(&slice, &self.columns)?;
                    Ok((slice.path, frame))
                })
                .collect()
        });
        if frames.is_err() {
            self.stop();
        }
        frames
    }

    pub(super) fn stop(&mut self) {
        self.paths.clear();
        self.current = None;
    }

    fn take_jobs(&mut self) -> Result<Vec<Slice>> {
        let mut jobs = Vec::new();
        while jobs.len() < self.at_once {
            match &mut self.current {
                Some((path, metadata, group, taken)) if *group < metadata.row_groups.len() => {
                    let before: usize = metadata.row_groups[..*group].iter().map(|group| group.num_rows()).sum();
                    let rows = metadata.row_groups[*group].num_rows();
                    let (begin, len) = (before + *taken, (rows - *taken).min(self.most_rows));
                    jobs.push(Slice { path: path.clone(), metadata: Arc::clone(metadata), begin, len });
                    (*group, *taken) = if *taken + len < rows { (*group, *taken + len) } else { (*group + 1, 0) };
                }
                _ => {
                    let Some(path) = self.paths.pop() else { break };
                    let metadata = open(&path)?;
                    for name in &self.columns {
                        if !metadata
                            .schema()
                            .columns()
                            .iter()
                            .any(|column| column.path_in_schema.first().is_some_and(|of| of == name))
                        {
                            return Err(missing_column(name).at(path));
                        }
                    }
                    // Without the embedded Arrow schema, the columns have their Parquet types.
                    let plain = pl::FileMetadata { key_value_metadata: None, ..(*metadata).clone() };
                    self.current = Some((path, Arc::new(plain), 0, 0));
                }
            }
        }
        Ok(jobs)
    }
}

/// The maximum number of row groups that are decoded at a time: enough to keep ahead of the consumer, while one per thread on a machine with a
/// hundred threads would take gigabytes.
const MOST_AT_ONCE: usize = 8;

pub(super) fn open(path: &Path) -> Result<Arc<pl::FileMetadata>> {
    let file = File::open(path).context_at(path, "cannot open the token table")?;
    let mut reader = pl::ParquetReader::new(file);
    let metadata = reader.get_metadata().context_at(path, "this is not a complete Parquet table")?;
    Ok(Arc::clone(metadata))
}

fn read_slice(Slice { path, metadata, begin, len }: &Slice, columns: &[&str]) -> Result<pl::DataFrame> {
    let file = File::open(path).context_at(path, "cannot open the token table")?;
    let mut reader = pl::ParquetReader::new(file);
    reader.set_metadata(Arc::clone(metadata));
    // The only strategy of polars that skips the row groups before the slice instead of decoding them.
    reader
        .read_parallel(pl::ParallelStrategy::RowGroups)
        .with_columns(Some(columns.iter().map(|name| name.to_string()).collect()))
        .with_slice(Some((*begin, *len)))
        .set_rechunk(true)
        .finish()
        .context_at(path, "cannot read the token table")
}

fn missing_column(name: &str) -> Error {
    Error::new(format!("the token table has no column `{name}`")).cure(
        "Give the folder of a finished run, or a table written by this program; quadrants are filled in when a run finishes.",
    )
}

pub(super) fn column_of(frame: &pl::DataFrame, column: Column) -> Result<&pl::Series> {
    let series = frame.column(column.name()).map_err(|_| missing_column(column.name()))?.as_materialized_series();
    let dtype = series.dtype();
    let fits = match column.column_type() {
        ColumnType::U16 => *dtype == pl::DataType::UInt16,
        ColumnType::U32 => *dtype == pl::DataType::UInt32,
        ColumnType::F32 => *dtype == pl::DataType::Float32,
        ColumnType::Text | ColumnType::Label => *dtype == pl::DataType::String,
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

/// Returns the values of a column that `column_of` has checked.
pub(super) fn numbers<T: pl::PolarsNumericType>(series: &pl::Series) -> Result<Vec<T::Native>> {
    let array: &pl::ChunkedArray<T> = series.as_ref().as_ref();
    Ok(array.cont_slice()?.to_vec())
}

/// Iterates over the texts of a column that `column_of` has checked.
pub(super) fn strings(series: &pl::Series) -> Result<impl Iterator<Item = &str>> {
    Ok(series.str()?.downcast_iter().flat_map(|array| array.values_iter()))
}

pub(super) fn quadrants(series: &pl::Series) -> Result<Vec<Quadrant>> {
    let of = |name: &str| Quadrant::ALL.into_iter().find(|quadrant| quadrant.name() == name);
    let quadrants: Option<Vec<Quadrant>> = strings(series)?.map(of).collect();
    quadrants.ok_or_else(|| Error::new("column `quadrant` of the token table holds names that this version does not know"))
}
