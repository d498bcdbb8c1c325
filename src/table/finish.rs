//! Makes tokens.parquet, with its quadrant column, and rows.parquet from parts, or from a finished table under new thresholds.
//!
//! Tokens are streamed by row group; only the table of rows is held in memory. Both files are replaced atomically, and the parts are deleted only
//! after both are complete, so a run that is killed at any point can still be finished.

use std::path::{Path, PathBuf};

use polars::prelude as pl;
use polars::prelude::IntoColumn;

use super::alternatives::set_aside;
use super::bounds;
use super::frames::{TextColumn, write_frames};
use super::read::{RowGroups, column_of, strings};
use super::rows::{RowMass, RowMasses, add_masses, read_rows, write_rows};
use super::write::finished_parts;
use super::{Column, Quadrant, ROW_GROUP_TOKENS, ROWS_FILE, TOKENS_FILE, read_provenance};
use crate::files::retire;
use crate::provenance::PARTS_FOLDER;
use crate::{Error, Result};

/// The size of a finished run.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Finished {
    /// The number of supervised tokens.
    pub tokens: usize,
    /// The number of examples, including skipped ones.
    pub rows: usize,
}

/// The metadata key of the thresholds by which the quadrants of the tables were assigned.
pub const THRESHOLDS_KEY: &str = "diagnose.thresholds";

/// Joins the parts of a run into its two tables. `label(logprob, entropy, tail)` returns a token's quadrant; `thresholds` describes it in the
/// tables' metadata.
///
/// A run whose parts have been joined already is relabelled.
pub fn finish(run: &Path, thresholds: &str, label: impl Fn(f32, f32, f32) -> Quadrant) -> Result<Finished> {
    let parts = finished_parts(run)?;
    if parts.is_empty() {
        let finished = sort_again(run, thresholds, label)?;
        // What a call that was killed as it removed the parts left.
        retire(&run.join(PARTS_FOLDER))?;
        return Ok(finished);
    }
    let tokens: Vec<PathBuf> = parts.iter().map(|part| part.tokens.clone()).collect();
    let rows: Vec<PathBuf> = parts.iter().map(|part| part.rows.clone()).collect();
    let finished = write_tables(run, &tokens, &rows, thresholds, label)?;
    set_aside(run, parts.iter().map(|part| part.alternatives.clone()))?;
    // A partly deleted folder would look like a run to be finished.
    retire(&run.join(PARTS_FOLDER))?;
    Ok(finished)
}

/// Assigns a new quadrant to every token of a finished run, without a model.
pub fn sort_again(run: &Path, thresholds: &str, label: impl Fn(f32, f32, f32) -> Quadrant) -> Result<Finished> {
    let tokens = run.join(TOKENS_FILE);
    if !tokens.exists() {
        return Err(Error::new(format!("there is no {TOKENS_FILE} in this run folder"))
            .at(run)
            .cure("Score the data first: `diagnose DATASET --out FOLDER`."));
    }
    write_tables(run, &[tokens], &[run.join(ROWS_FILE)], thresholds, label)
}

fn write_tables(
    run: &Path,
    tokens: &[PathBuf],
    rows: &[PathBuf],
    thresholds: &str,
    label: impl Fn(f32, f32, f32) -> Quadrant,
) -> Result<Finished> {
    let mut provenance = match tokens.first() {
        Some(path) => read_provenance(path)?,
        None => Vec::new(),
    };
    provenance.retain(|(key, _)| key != THRESHOLDS_KEY);
    provenance.push((THRESHOLDS_KEY.to_owned(), thresholds.to_owned()));
    let (n_tokens, masses) = write_tokens(&run.join(TOKENS_FILE), tokens, &provenance, label)?;
    let mut all_rows = Vec::new();
    for path in rows {
        all_rows.extend(read_rows(path)?);
    }
    add_masses(&mut all_rows, &masses);
    write_rows(&run.join(ROWS_FILE), &all_rows, &provenance)?;
    Ok(Finished { tokens: n_tokens, rows: all_rows.len() })
}

fn write_tokens(
    path: &Path,
    inputs: &[PathBuf],
    provenance: &[(String, String)],
    label: impl Fn(f32, f32, f32) -> Quadrant,
) -> Result<(usize, RowMasses)> {
    let mut stored: Vec<&'static str> =
        Column::ALL.iter().filter(|(column, ..)| *column != Column::Quadrant).map(|(_, name, ..)| *name).collect();
    let with_bounds = inputs.first().map(|path| bounds::has_bounds(path)).transpose()?.unwrap_or(false);
    if with_bounds {
        stored.extend(bounds::NAMES);
    }
    let quadrant_type = quadrant_type()?;
    let mut row_groups = RowGroups::of(inputs, stored);
    let mut masses = RowMasses::new();
    let mut n_tokens = 0;
    // Shared by all row groups, so that a text has one code in the whole table.
    let dictionary = TextColumn::new();
    let mut text_columns = [(Column::Source, None), (Column::Token, Some(Column::TokenId)), (Column::Top, Some(Column::TopId))]
        .map(|(column, key)| (column, key, KnownTexts::new()));
    let schema = schema(quadrant_type.clone(), with_bounds);
    let mut label_frame = |frame: &mut pl::DataFrame, path: &Path| -> Result<()> {
        let labels = label_tokens(frame, &label, &mut masses).map_err(|error| error.at(path))?;
        for (column, key, known) in &mut text_columns {
            let codes = known.codes(frame, *column, *key, &dictionary).map_err(|error| error.at(path))?;
            frame.with_column(dictionary.column(column.name(), codes))?;
        }
        let codes = pl::UInt8Chunked::from_vec(Column::Quadrant.name().into(), labels);
        frame.with_column(pl::Categorical8Chunked::from_cats_and_dtype(codes, quadrant_type.clone()).into_column())?;
        if with_bounds {
            let certain = bounds::certain(frame, &label).map_err(|error| error.at(path))?;
            frame.with_column(certain)?;
            *frame = frame.select(schema.iter_names().cloned())?;
        }
        n_tokens += frame.height();
        Ok(())
    };
    write_frames(path, "tokens", &schema, provenance, |writer| {
        let mut group = pl::DataFrame::empty_with_schema(&schema);
        loop {
            let frames = row_groups.next_frames()?;
            let at_end = frames.is_empty();
            for (path, mut frame) in frames {
                label_frame(&mut frame, &path)?;
                if group.height() > 0 && group.height() + frame.height() > ROW_GROUP_TOKENS {
                    let mut full = std::mem::replace(&mut group, frame);
                    full.rechunk_mut_par();
                    writer.write_batch(&full)?;
                } else if group.height() == 0 {
                    group = frame;
                } else {
                    group.vstack_mut_owned(frame)?;
                }
            }
            if at_end {
                group.rechunk_mut_par();
                return Ok(writer.write_batch(&group)?);
            }
        }
    })?;
    Ok((n_tokens, masses))
}

/// A cache of texts and their codes, indexed by numbers that usually determine the text (a token's id), which avoids nearly all dictionary lookups.
/// Cached texts are compared before use, so a table in which an id has two texts is handled correctly.
struct KnownTexts(Vec<(String, u32)>);

impl KnownTexts {
    /// More than the vocabularies of most models; in larger ones two ids share a place.
    const PLACES: usize = 1 << 18;

    fn new() -> KnownTexts {
        KnownTexts(Vec::new())
    }

    /// Returns the codes of a text column. The numbers in the column `key`, if given, index the cache.
    fn codes(&mut self, frame: &pl::DataFrame, column: Column, key: Option<Column>, dictionary: &TextColumn) -> Result<Vec<u32>> {
        let texts = column_of(frame, column)?;
        let keys = match key {
            Some(key) => column_of(frame, key)?.u32()?.cont_slice()?,
            None => &[],
        };
        let mut codes = Vec::with_capacity(texts.len());
        for (i, text) in strings(texts)?.enumerate() {
            let place = keys.get(i).map_or(0, |&key| key as usize % KnownTexts::PLACES);
            if place >= self.0.len() {
                // No text has this code.
                self.0.resize(place + 1, (String::new(), u32::MAX));
            }
            let (known, code) = &mut self.0[place];
            if *code == u32::MAX || known != text {
                (*known, *code) = (text.to_owned(), dictionary.code(text)?);
            }
            codes.push(*code);
        }
        Ok(codes)
    }
}

/// Returns the category codes of the quadrants, and adds the conflicts to the sums of their rows.
fn label_tokens(frame: &pl::DataFrame, label: &impl Fn(f32, f32, f32) -> Quadrant, masses: &mut RowMasses) -> Result<Vec<u8>> {
    let floats = |column: Column| -> Result<&[f32]> { Ok(frame.column(column.name())?.f32()?.cont_slice()?) };
    let rows = frame.column(Column::Row.name())?.u32()?.cont_slice()?;
    let (logprob, entropy) = (floats(Column::Logprob)?, floats(Column::Entropy)?);
    let (tail, grad) = (floats(Column::Tail)?, floats(Column::Grad)?);
    let mut codes = Vec::with_capacity(rows.len());
    for i in 0..rows.len() {
        let quadrant = label(logprob[i], entropy[i], tail[i]);
        if quadrant == Quadrant::ConfidentConflict {
            let mass: &mut RowMass = masses.entry(rows[i]).or_default();
            mass.conflicts += 1;
            mass.loss -= f64::from(logprob[i]);
            mass.surplus -= f64::from(logprob[i]) + f64::from(entropy[i]);
            mass.grad += f64::from(grad[i]);
        }
        codes.push(quadrant.index() as u8);
    }
    Ok(codes)
}

fn quadrant_type() -> Result<pl::DataType> {
    let names = pl::FrozenCategories::new(Quadrant::ALL.map(Quadrant::name))?;
    Ok(pl::DataType::from_frozen_categories(names))
}

fn schema(quadrant_type: pl::DataType, with_bounds: bool) -> pl::Schema {
    use super::ColumnType;
    let text = pl::DataType::from_categories(pl::Categories::global());
    let dtype = |column_type| match column_type {
        ColumnType::U16 => pl::DataType::UInt16,
        ColumnType::U32 => pl::DataType::UInt32,
        ColumnType::F32 => pl::DataType::Float32,
        ColumnType::Text => text.clone(),
        ColumnType::Label => quadrant_type.clone(),
    };
    let fields = Column::ALL.iter().map(|(_, name, column_type, _)| pl::Field::new((*name).into(), dtype(*column_type)));
    fields.chain(bounds::fields().filter(|_| with_bounds)).collect()
}
