//! Arrow streams -> one JSON object per row: what the `datasets` library of Python leaves in its cache and in `save_to_disk`.

use std::fs::File;
use std::io::BufReader;

use polars::datatypes::ArrowDataType;
use polars::prelude::DataFrame;
use polars_arrow::array::StructArray;
use polars_arrow::io::ipc::read::{StreamReader, StreamState, read_stream_metadata};

use super::frame::{guarded, is_readable, row};
use super::raw::Raw;
use crate::error::{Context, Error, Result};

/// The first bytes of a stream: a mark that stands before the length of the first message.
pub const MARK: [u8; 4] = [0xFF; 4];

const DAMAGED: &str = "cannot read the Arrow stream: it is damaged or of an unknown kind";

type Reader = StreamReader<BufReader<File>>;

pub fn records(file: File) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let mut reader = guarded(DAMAGED, || open(file))?;
    let mut current: Option<(DataFrame, usize)> = None;
    let mut line = 0;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some((frame, idx)) = &mut current
                && *idx < frame.height()
            {
                let value = guarded(DAMAGED, || row(frame, *idx));
                *idx += 1;
                line += 1;
                return Some(Ok(Raw { line, value }));
            }
            match guarded(DAMAGED, || next(&mut reader)) {
                Ok(frame) => current = Some((frame?, 0)),
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

fn open(file: File) -> Result<Reader> {
    let mut file = BufReader::new(file);
    let metadata = read_stream_metadata(&mut file).context(DAMAGED)?;
    let fields = metadata.schema.iter_values().enumerate();
    let columns: Vec<usize> = fields.filter(|(_, field)| is_readable(&field.dtype)).map(|(idx, _)| idx).collect();
    if columns.is_empty() {
        return Err(Error::new("expected columns of text, numbers or lists, found none in the Arrow stream"));
    }
    Ok(StreamReader::new(file, metadata, Some(columns)))
}

/// The next batch; `None` at the end.
fn next(reader: &mut Reader) -> Result<Option<DataFrame>> {
    // A stream that waits for more will not get it from a file.
    let Some(StreamState::Some(batch)) = reader.next().transpose().context(DAMAGED)? else { return Ok(None) };
    let n_rows = batch.len();
    let (schema, arrays) = batch.into_schema_and_arrays();
    let kind = ArrowDataType::Struct(schema.iter_values().cloned().collect());
    let columns = StructArray::try_new(kind, n_rows, arrays, None).context(DAMAGED)?;
    Ok(Some(DataFrame::try_from(columns).context(DAMAGED)?))
}
