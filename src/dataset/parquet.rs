//! Parquet -> one JSON object per row, row group by row group.
//!
//! Row groups that are larger than a quarter of a gigabyte are read in slices. Columns of types that no format uses
//! (dates, decimals, maps) are left out.

use std::cell::Cell;
use std::fs::File;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use polars::datatypes::ArrowDataType;
use polars::prelude::{AnyValue, DataFrame, ParallelStrategy, ParquetReader, SerReader};
use serde_json::{Map, Value};

use super::container::Raw;
use crate::error::{Context, Error, Result};

const MAX_SLICE_BYTES: usize = 256 << 20;

/// A run of rows inside one row group.
type Slice = (usize, usize);

pub fn records(file: File) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let (columns, slices) = guarded(|| layout(&file))?;
    let mut slices = slices.into_iter();
    let mut current: Option<(DataFrame, usize, usize)> = None;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some((frame, first_row, idx)) = &mut current
                && *idx < frame.height()
            {
                let line = (*first_row + *idx + 1) as u64;
                let value = guarded(|| row(frame, *idx));
                *idx += 1;
                return Some(Ok(Raw { line, value }));
            }
            let slice = slices.next()?;
            match guarded(|| read(&file, &columns, slice)) {
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

fn is_readable(kind: &ArrowDataType) -> bool {
    use ArrowDataType as Kind;
    match kind {
        Kind::Null | Kind::Boolean | Kind::Utf8 | Kind::LargeUtf8 | Kind::Utf8View => true,
        Kind::Int32 | Kind::Int64 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 | Kind::Float32 | Kind::Float64 => true,
        Kind::List(item) | Kind::LargeList(item) => is_readable(&item.dtype),
        Kind::Struct(fields) => fields.iter().all(|field| is_readable(&field.dtype)),
        Kind::Dictionary(_, values, _) => matches!(**values, Kind::Utf8 | Kind::LargeUtf8 | Kind::Utf8View),
        _ => false,
    }
}

fn row(frame: &DataFrame, idx: usize) -> Result<Value> {
    let mut row = Map::new();
    for column in frame.columns() {
        let value = column.get(idx).context("cannot read a cell of the Parquet file")?;
        row.insert(column.name().to_string(), json(value));
    }
    Ok(Value::Object(row))
}

fn json(value: AnyValue) -> Value {
    match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => value.into(),
        AnyValue::String(text) => text.into(),
        AnyValue::StringOwned(text) => text.as_str().into(),
        AnyValue::UInt16(value) => value.into(),
        AnyValue::UInt32(value) => value.into(),
        AnyValue::UInt64(value) => value.into(),
        AnyValue::Int32(value) => value.into(),
        AnyValue::Int64(value) => value.into(),
        AnyValue::Float32(value) => value.into(),
        AnyValue::Float64(value) => value.into(),
        AnyValue::Struct(..) => json(value.into_static()),
        // In a column of structs every row has every key, so that null is the only way to leave one out.
        AnyValue::StructOwned(payload) => {
            let (values, fields) = *payload;
            let fields = fields.into_iter().zip(values).filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(field, value)| (field.name().to_string(), json(value))).collect())
        }
        AnyValue::List(list) => Value::Array(list.iter().map(json).collect()),
        AnyValue::Categorical(..) | AnyValue::CategoricalOwned(..) => value.get_str().map_or(Value::Null, Value::from),
        other => other.to_string().into(),
    }
}

/// The Parquet reader panics on some damaged files; to the user they are damaged files like others, so the panic becomes an
/// error and its message is not printed.
fn guarded<T>(work: impl FnOnce() -> Result<T>) -> Result<T> {
    thread_local!(static IS_GUARDED: Cell<bool> = const { Cell::new(false) });
    static QUIET: Once = Once::new();
    QUIET.call_once(|| {
        let usual = take_hook();
        set_hook(Box::new(move |panic| {
            if !IS_GUARDED.get() {
                usual(panic);
            }
        }));
    });
    IS_GUARDED.set(true);
    let outcome = catch_unwind(AssertUnwindSafe(work));
    IS_GUARDED.set(false);
    outcome.unwrap_or_else(|_| Err(Error::new(DAMAGED)))
}
