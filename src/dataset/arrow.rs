//! Reads Arrow streams and files into one JSON object per row: the cache and `save_to_disk` of Python's `datasets`, and Feather.

use std::fs::File;
use std::io::{BufReader, Read, Seek};
use std::sync::Arc;

use polars::datatypes::ArrowDataType;
use polars::prelude::DataFrame;
use polars_arrow::array::{Array, FixedSizeListArray, ListArray, PrimitiveArray, StructArray};
use polars_arrow::datatypes::Field;
use polars_arrow::io::ipc::read::{FileReader, StreamReader, StreamState, read_file_metadata, read_stream_metadata};
use polars_arrow::offset::{Offset, OffsetsBuffer};

use super::arrow_batches::{DAMAGED, refuse_bombs_of_file, refuse_bombs_of_stream};
use super::frame::{Columns, guarded, is_plain};
use super::raw::Raw;
use crate::error::{Context, Error, Result};

/// The first bytes of a stream: the continuation marker before the length of the first message.
pub(super) const STREAM_MARK: [u8; 4] = [0xFF; 4];
/// The magic bytes of an Arrow file.
pub(super) const FILE_MARK: &[u8] = b"ARROW1";

enum Reader {
    Stream(Box<StreamReader<BufReader<File>>>),
    File(Box<FileReader<BufReader<File>>>),
}

pub(super) fn records(file: File) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let (mut reader, columns) = guarded(DAMAGED, || open(file))?;
    let mut current: Option<(DataFrame, usize)> = None;
    let mut line = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some((frame, idx)) = &mut current
                && *idx < frame.height()
            {
                let value = guarded(DAMAGED, || columns.row(frame, *idx));
                *idx += 1;
                line += 1;
                return Some(Ok(Raw { line, value }));
            }
            match guarded(DAMAGED, || next(&mut reader)) {
                Ok(frame) => current = Some((frame?, 0)),
                Err(error) => {
                    return Some(Err(error.cure("Write the file again, with pyarrow.feather.write_feather or as Parquet.")));
                }
            }
        }
    }))
}

/// The columns that are read, and those that are not.
pub(super) fn columns(file: File) -> Result<Columns> {
    guarded(DAMAGED, || open(file)).map(|(_, columns)| columns)
}

fn open(file: File) -> Result<(Reader, Columns)> {
    let mut file = BufReader::new(file);
    let mut mark = [0; FILE_MARK.len()];
    file.read_exact(&mut mark).context(DAMAGED)?;
    file.rewind().context(DAMAGED)?;
    let (schema, metadata) = match mark == FILE_MARK {
        true => {
            let metadata = read_file_metadata(&mut file).context(DAMAGED)?;
            (metadata.schema.clone(), Some(metadata))
        }
        false => (Arc::new(polars::prelude::ArrowSchema::default()), None),
    };
    let readable = |columns: Columns| match columns.read.is_empty() {
        true => Err(Error::new("expected columns of text, numbers or lists, found none in the Arrow data")),
        false => Ok(columns),
    };
    let idxs = |columns: &Columns| Some(columns.read.iter().map(|(idx, _)| *idx).collect());
    match metadata {
        Some(metadata) => {
            let columns = readable(Columns::of(schema.iter_values().map(|field| (field.name.as_str(), &field.dtype))))?;
            refuse_bombs_of_file(&mut file, metadata.dictionaries.iter().flatten().chain(&metadata.blocks))?;
            let reader = FileReader::new(file, metadata, idxs(&columns), None);
            Ok((Reader::File(Box::new(reader)), columns))
        }
        None => {
            refuse_bombs_of_stream(&mut file)?;
            file.rewind().context(DAMAGED)?;
            let metadata = read_stream_metadata(&mut file).context(DAMAGED)?;
            let columns = readable(Columns::of(metadata.schema.iter_values().map(|field| (field.name.as_str(), &field.dtype))))?;
            let reader = StreamReader::new(file, metadata, idxs(&columns));
            Ok((Reader::Stream(Box::new(reader)), columns))
        }
    }
}

/// Returns the next batch, or `None` at the end.
fn next(reader: &mut Reader) -> Result<Option<DataFrame>> {
    let batch = match reader {
        // A file never grows: a stream that waits for more data has ended.
        Reader::Stream(reader) => match reader.next().transpose().context(DAMAGED)? {
            Some(StreamState::Some(batch)) => batch,
            _ => return Ok(None),
        },
        Reader::File(reader) => match reader.next().transpose().context(DAMAGED)? {
            Some(batch) => batch,
            None => return Ok(None),
        },
    };
    let n_rows = batch.len();
    let (schema, arrays) = batch.into_schema_and_arrays();
    let mended: Vec<(Field, Box<dyn Array>)> = schema
        .iter_values()
        .zip(arrays)
        .map(|(field, array)| mended(field, array))
        .collect::<Option<_>>()
        .ok_or_else(|| Error::new(DAMAGED))?;
    let (fields, arrays) = mended.into_iter().unzip();
    let columns = StructArray::try_new(ArrowDataType::Struct(fields), n_rows, arrays, None).context(DAMAGED)?;
    Ok(Some(DataFrame::try_from(columns).context(DAMAGED)?))
}

/// Converts a column to types that polars reads (see the table at the top of `frame`). Returns `None` if no part of it can be read.
fn mended(field: &Field, array: Box<dyn Array>) -> Option<(Field, Box<dyn Array>)> {
    let array = mend(array)?;
    Some((Field::new(field.name.clone(), array.dtype().clone(), true), array))
}

fn mend(mut array: Box<dyn Array>) -> Option<Box<dyn Array>> {
    if is_plain(array.dtype()) {
        return Some(array);
    }
    match array.dtype().clone() {
        ArrowDataType::Extension(extension) => {
            *array.dtype_mut() = extension.inner;
            mend(array)
        }
        ArrowDataType::Int8 => widen::<i8>(array.as_ref()),
        ArrowDataType::Int16 => widen::<i16>(array.as_ref()),
        ArrowDataType::UInt8 => widen::<u8>(array.as_ref()),
        ArrowDataType::List(item) => mend_list::<i32>(array.as_ref(), &item),
        ArrowDataType::LargeList(item) => mend_list::<i64>(array.as_ref(), &item),
        ArrowDataType::FixedSizeList(item, size) => {
            let list = array.as_any().downcast_ref::<FixedSizeListArray>()?;
            let (item, values) = mended(&item, list.values().clone())?;
            let offsets = (0..=list.len()).map(|idx| i64::try_from(idx * size)).collect::<Result<Vec<i64>, _>>().ok()?;
            let offsets = OffsetsBuffer::try_from(offsets).ok()?;
            let kind = ArrowDataType::LargeList(Box::new(item));
            Some(ListArray::<i64>::try_new(kind, offsets, values, list.validity().cloned()).ok()?.boxed())
        }
        ArrowDataType::Struct(fields) => {
            let array = array.as_any().downcast_ref::<StructArray>()?;
            let members = fields.iter().zip(array.values()).filter_map(|(field, values)| mended(field, values.clone()));
            let (fields, values): (Vec<Field>, Vec<Box<dyn Array>>) = members.unzip();
            if fields.is_empty() {
                return None;
            }
            let kind = ArrowDataType::Struct(fields);
            Some(StructArray::try_new(kind, array.len(), values, array.validity().cloned()).ok()?.boxed())
        }
        _ => None,
    }
}

fn mend_list<O: Offset>(array: &dyn Array, item: &Field) -> Option<Box<dyn Array>> {
    let list = array.as_any().downcast_ref::<ListArray<O>>()?;
    let (item, values) = mended(item, list.values().clone())?;
    let kind = ListArray::<O>::default_datatype(item.dtype);
    Some(ListArray::<O>::try_new(kind, list.offsets().clone(), values, list.validity().cloned()).ok()?.boxed())
}

fn widen<N: polars_arrow::types::NativeType + Into<i32>>(array: &dyn Array) -> Option<Box<dyn Array>> {
    let array = array.as_any().downcast_ref::<PrimitiveArray<N>>()?;
    let wide: PrimitiveArray<i32> = array.iter().map(|value| value.map(|value| (*value).into())).collect();
    Some(wide.boxed())
}
