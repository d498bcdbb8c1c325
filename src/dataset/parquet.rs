//! Reads Parquet into one JSON object per row, row group by row group.
//!
//! Row groups of more than 256 MiB are read in slices. polars assigns a type to every column of the file, and fails at types that this program does
//! not enable (dates, times, bytes). The schema of a file with such columns is therefore simplified: every leaf becomes the plain number or text
//! that is stored, and values that are neither are left out of the rows (see `frame`).

use std::fs::File;
use std::sync::Arc;

use polars::prelude::{DataFrame, ParallelStrategy, ParquetReader, SerReader};
use polars_parquet::parquet::metadata::{FileMetadata, SchemaDescriptor};
use polars_parquet::parquet::schema::types::{
    IntegerType, ParquetType, PhysicalType, PrimitiveConvertedType, PrimitiveLogicalType, PrimitiveType,
};

use super::fields::refuse_twice;
use super::frame::{Columns, guarded};
use super::raw::Raw;
use crate::error::{Context, Error, Result};

const MAX_SLICE_BYTES: usize = 256 << 20;

/// A range of rows within one row group: the first row and the number of rows.
type Slice = (usize, usize);

/// The plan for reading a file.
struct Layout {
    columns: Columns,
    slices: Vec<Slice>,
    /// The metadata with the simplified schema, where one is needed.
    metadata: Option<Arc<FileMetadata>>,
}

pub(super) fn records(file: File) -> Result<impl Iterator<Item = Result<Raw>> + Send> {
    let layout = guarded(DAMAGED, || layout(&file))?;
    let mut slices = layout.slices.clone().into_iter();
    let mut current: Option<(DataFrame, usize, usize)> = None;
    Ok(std::iter::from_fn(move || {
        loop {
            if let Some((frame, first_row, idx)) = &mut current
                && *idx < frame.height()
            {
                let line = (*first_row + *idx + 1) as u64;
                let value = guarded(DAMAGED, || layout.columns.row(frame, *idx));
                *idx += 1;
                return Some(Ok(Raw { line, value }));
            }
            let slice = slices.next()?;
            match guarded(DAMAGED, || read(&file, &layout, slice)) {
                Ok(frame) => current = Some((frame, slice.0, 0)),
                Err(error) => return Some(Err(error)),
            }
        }
    }))
}

/// The columns that are read, and those that are not.
pub(super) fn columns(file: &File) -> Result<Columns> {
    guarded(DAMAGED, || layout(file)).map(|layout| layout.columns)
}

/// Determines the columns that can be read, and the slices to read them in.
fn layout(file: &File) -> Result<Layout> {
    let mut reader = ParquetReader::new(file.try_clone().context("cannot open the Parquet file")?);
    refuse_twice(reader.get_metadata().context(DAMAGED)?.schema_descr.fields().iter().map(|field| field.name()))?;
    let schema = reader.schema().context(DAMAGED)?;
    let columns = Columns::of(schema.iter().map(|(name, field)| (name.as_str(), &field.dtype)));
    if columns.read.is_empty() {
        return Err(Error::new("expected columns of text, numbers or lists, found none in the Parquet file"));
    }
    let metadata = reader.get_metadata().context(DAMAGED)?;
    let mut slices = Vec::new();
    let mut first_row = 0;
    for group in &metadata.row_groups {
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
    let metadata = (!columns.is_plain).then(|| Arc::new(told_anew(metadata)));
    Ok(Layout { columns, slices, metadata })
}

const DAMAGED: &str = "cannot read the Parquet file: it is damaged or of an unknown kind";

fn read(file: &File, layout: &Layout, slice: Slice) -> Result<DataFrame> {
    let mut reader = ParquetReader::new(file.try_clone().context("cannot open the Parquet file")?);
    if let Some(metadata) = &layout.metadata {
        reader.set_metadata(metadata.clone());
    }
    reader
        .with_columns(Some(layout.columns.read.iter().map(|(_, name)| name.clone()).collect()))
        .with_slice(Some(slice))
        .read_parallel(ParallelStrategy::None)
        .finish()
        .context(DAMAGED)
}

/// Returns the metadata without the embedded Arrow schema, which has extension types and small integers, and with simplified leaves.
fn told_anew(metadata: &FileMetadata) -> FileMetadata {
    let fields = metadata.schema_descr.fields().iter().map(plain).collect();
    FileMetadata {
        key_value_metadata: None,
        schema_descr: SchemaDescriptor::new(metadata.schema_descr.name().into(), fields),
        ..metadata.clone()
    }
}

fn plain(kind: &ParquetType) -> ParquetType {
    match kind {
        ParquetType::GroupType { field_info, logical_type, converted_type, fields } => ParquetType::GroupType {
            field_info: field_info.clone(),
            logical_type: *logical_type,
            converted_type: *converted_type,
            fields: fields.iter().map(plain).collect(),
        },
        ParquetType::PrimitiveType(leaf) => {
            use PrimitiveConvertedType as Converted;
            use PrimitiveLogicalType as Logical;
            let is_text = matches!(leaf.logical_type, Some(Logical::String | Logical::Json | Logical::Enum))
                || matches!(leaf.converted_type, Some(Converted::Utf8 | Converted::Json | Converted::Enum));
            let is_wide = matches!(
                leaf.logical_type,
                Some(Logical::Integer(IntegerType::UInt32 | IntegerType::UInt64 | IntegerType::Int32 | IntegerType::Int64))
            ) || matches!(leaf.converted_type, Some(Converted::Uint32 | Converted::Uint64));
            let (logical_type, converted_type) = match leaf.physical_type {
                PhysicalType::ByteArray if is_text => (Some(Logical::String), Some(Converted::Utf8)),
                _ if is_wide => (leaf.logical_type, leaf.converted_type),
                _ => (None, None),
            };
            ParquetType::PrimitiveType(PrimitiveType { logical_type, converted_type, ..leaf.clone() })
        }
    }
}
