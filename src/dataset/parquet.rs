//! Parquet -> one JSON object per row, row group by row group.
//!
//! Row groups that are larger than a quarter of a gigabyte are read in slices. Columns of types that no format uses
//! (dates, decimals, maps) are left out.

use std::fs::File;

use polars::prelude::{DataFrame, ParallelStrategy, ParquetReader, SerReader};

use super::frame::{guarded, is_readable, row};
use super::raw::Raw;
use crate::error::{Context, Error, Result};

const MAX_SLICE_BYTES: usize = 256 << 20;

/// A run of rows inside one row group.
type Slice = (usize, usize);

pub fn records(file: File) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let (columns, slices) = guarded(DAMAGED, || layout(&file))?;
    let mut slices = slices.into_iter();
    let mut current: Option<(DataFrame, usize, usize)> = None;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some((frame, first_row, idx)) = &mut current
                && *idx < frame.height()
            {
                let line = (*first_row + *idx + 1) as u64;
                let value = guarded(DAMAGED, || row(frame, *idx));
                *idx += 1;
                return Some(Ok(Raw { line, value }));
            }
            let slice = slices.next()?;
            match guarded(DAMAGED, || read(&file, &columns, slice)) {
                Ok(frame) => current = Some((frame, slice.0, 0)),
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

/// The columns that can be read and the slices to read them in.
fn layout(file: &File) -> Result<(Vec<String>, Vec<Slice>)> {
    let mut reader = ParquetReader::new(file.try_clone().context("cannot open the Parquet file")?);
    let schema = reader.schema().context(DAMAGED)?;
    let columns: Vec<String> =
        schema.iter().filter(|(_, field)| is_readable(&field.dtype)).map(|(name, _)| name.to_string()).collect();
    if columns.is_empty() {
        return Err(Error::new("expected columns of text, numbers or lists, found none in the Parquet file"));
    }
    let mut slices = Vec::new();
    let mut first_row = 0;
    for group in &reader.get_metadata().context(DAMAGED)?.row_groups {
        let n_rows = group.num_rows();
        let n_slices = group.total_byte_size().div_ceil(MAX_SLICE_BYTES).max(1);
        let n_rows_a_slice = n_rows.div_ceil(n_slices).max(1);
        let end = first_row + n_rows;
        while first_row < end {
            let length = n_rows_a_slice.min(end - first_row);
            slices.push((first_row, length));
            first_row += length;
        }
    }
    Ok((columns, slices))
}

const DAMAGED: &str = "cannot read the Parquet file: it is damaged or of an unknown kind";

fn read(file: &File, columns: &[String], slice: Slice) -> Result<DataFrame> {
    ParquetReader::new(file.try_clone().context("cannot open the Parquet file")?)
        .with_columns(Some(columns.to_vec()))
        .with_slice(Some(slice))
        .read_parallel(ParallelStrategy::None)
        .finish()
        .context(DAMAGED)
}
