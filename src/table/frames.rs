//! Writes frames of columns to Parquet files.

use std::fs::File;
use std::io::BufWriter;
use std::path::Path;

use polars::prelude as pl;
use polars::prelude::IntoColumn;
use polars_arrow::datatypes::{ArrowDataType, IntegerType};
use polars_parquet::write::schema_to_metadata_key;

use crate::error::{Context, Result};
use crate::files::write_atomically;

/// A dictionary of strings, which makes columns from its codes.
pub(super) struct TextColumn {
    dtype: pl::DataType,
    mapping: std::sync::Arc<pl::CategoricalMapping>,
}

impl TextColumn {
    pub(super) fn new() -> TextColumn {
        let categories = pl::Categories::global();
        let mapping = categories.mapping();
        TextColumn { dtype: pl::DataType::from_categories(categories), mapping }
    }

    pub(super) fn code(&self, text: &str) -> Result<u32> {
        Ok(self.mapping.insert_cat(text)?)
    }

    pub(super) fn column(&self, name: &str, codes: Vec<u32>) -> pl::Column {
        let codes = pl::UInt32Chunked::from_vec(name.into(), codes);
        pl::Categorical32Chunked::from_cats_and_dtype(codes, self.dtype.clone()).into_column()
    }
}

pub(super) fn text_column<'a>(name: &str, texts: impl Iterator<Item = &'a str>) -> Result<pl::Column> {
    let dictionary = TextColumn::new();
    let codes = texts.map(|text| dictionary.code(text)).collect::<Result<Vec<u32>>>()?;
    Ok(dictionary.column(name, codes))
}

/// The metadata key for the name of the table.
pub(super) const TABLE_KEY: &str = "diagnose.table";

/// Writes a Parquet file atomically; `fill` writes the batches, one row group each. `table` is the file's name without extension.
pub(super) fn write_frames(
    path: &Path,
    table: &str,
    schema: &pl::Schema,
    provenance: &[(String, String)],
    fill: impl FnOnce(&mut pl::BatchedWriter<&mut BufWriter<File>>) -> Result<()>,
) -> Result<()> {
    let others = provenance.iter().filter(|(key, _)| key != TABLE_KEY).cloned();
    let known: Vec<(String, String)> =
        others.chain([(TABLE_KEY.to_owned(), table.to_owned())]).chain(arrow_schema(schema)).collect();
    write_atomically(path, |file| {
        let mut writer = pl::ParquetWriter::new(file)
            .with_compression(COMPRESSION)
            .with_key_value_metadata(Some(pl::KeyValueMetadata::from_static(known)))
            .batched(schema)
            .context("cannot start the table")?;
        fill(&mut writer)?;
        writer.finish().context("cannot write the table")?;
        Ok(())
    })
}

/// Returns the metadata by which Arrow's readers know the types of the columns. polars would write that the codes of texts are unsigned, which pandas
/// cannot read with pyarrow 21 and 22; all of them are in the range of the signed type as well.
fn arrow_schema(schema: &pl::Schema) -> Option<(String, String)> {
    let field = |(name, dtype): (&pl::PlSmallStr, &pl::DataType)| {
        let mut field = dtype.to_arrow_field(name.clone(), pl::CompatLevel::newest());
        if let ArrowDataType::Dictionary(codes, ..) = &mut field.dtype {
            *codes = match *codes {
                IntegerType::UInt8 => IntegerType::Int8,
                IntegerType::UInt32 => IntegerType::Int32,
                other => other,
            };
        }
        (name.clone(), field)
    };
    let entry = schema_to_metadata_key(&schema.iter().map(field).collect());
    entry.value.map(|value| (entry.key, value))
}

/// The table consists mostly of random float mantissas, which are incompressible; LZ4 wastes least time on them, and compresses codes and positions
/// as well as other methods.
const COMPRESSION: pl::ParquetCompression = pl::ParquetCompression::Lz4Raw;
