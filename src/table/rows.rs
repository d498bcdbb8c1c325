//! The table of examples: their origin, mean statistics, and sums over their conflicts.

use std::collections::HashMap;
use std::path::Path;

use polars::prelude as pl;
use polars::prelude::{IntoColumn, NamedFrom, SerReader};
use serde::Serialize;

use super::frames::{text_column, write_frames};
use crate::{Context, Error, Result};

/// An example of the data set, scored or skipped. Sums and means are over its supervised tokens.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    /// The example, numbered over the whole input.
    pub row: u32,
    /// The record's own `id`, if it has one.
    pub id: Option<String>,
    /// The record's own `source` field, or the name of its file.
    pub source: String,
    /// The path as given by the user.
    pub path: String,
    /// The line of the record's first byte, counted from 1.
    pub line: u64,
    /// The number of all tokens of the rendered sequence.
    pub tokens: u32,
    /// The number of supervised tokens.
    pub supervised: u32,
    /// Whether the sequence was truncated at the maximum length.
    pub truncated: bool,
    /// Mean of ln p(target), nats.
    pub mean_logprob: Option<f32>,
    /// exp(-mean_logprob)
    pub perplexity: Option<f32>,
    /// Mean of the full-vocabulary entropy, nats.
    pub mean_entropy: Option<f32>,
    /// Number of confident conflicts.
    pub conflicts: u32,
    /// Sum of -ln p over the confident conflicts, nats.
    pub conflict_loss: f32,
    /// Sum of -ln p - H over the confident conflicts: the loss in nats beyond what the model itself expected there.
    pub conflict_surplus: f32,
    /// Sum of the gradient norms of the confident conflicts.
    pub conflict_grad: f32,
    /// Why the example was not scored.
    pub skipped: Option<String>,
    /// A hash of all token ids and the loss mask, if the example was scored; rows with equal hashes are equal token by token. Older tables lack it.
    pub fingerprint: Option<u64>,
    /// A hash of the token ids alone. Older tables lack it.
    pub ids_fingerprint: Option<u64>,
}

/// Sums over a row's confident conflicts.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct RowMass {
    /// Number of confident conflicts.
    pub conflicts: u32,
    /// Sum of -ln p, nats.
    pub loss: f64,
    /// Sum of -ln p - H, nats.
    pub surplus: f64,
    /// Sum of the gradient norms.
    pub grad: f64,
}

/// The sums over the conflicts of each row, by its number; rows without conflicts are absent.
pub type RowMasses = HashMap<u32, RowMass>;

/// Reads rows.parquet, or a part of it.
pub fn read_rows(path: &Path) -> Result<Vec<Row>> {
    let file = std::fs::File::open(path).context_at(path, "cannot open the table of rows")?;
    let frame = pl::ParquetReader::new(file).finish().context_at(path, "cannot read the table of rows")?;
    rows_of(&frame).map_err(|error| error.at(path))
}

pub(super) fn write_rows(path: &Path, rows: &[Row], provenance: &[(String, String)]) -> Result<()> {
    let frame = frame_of(rows)?;
    write_frames(path, "rows", frame.schema(), provenance, |writer| Ok(writer.write_batch(&frame)?))
}

pub(super) fn add_masses(rows: &mut [Row], masses: &RowMasses) {
    for row in rows {
        let mass = masses.get(&row.row).copied().unwrap_or_default();
        row.conflicts = mass.conflicts;
        row.conflict_loss = mass.loss as f32;
        row.conflict_surplus = mass.surplus as f32;
        row.conflict_grad = mass.grad as f32;
    }
}

/// Makes a frame with the columns in stored order. [`rows_of`] is the inverse.
fn frame_of(rows: &[Row]) -> Result<pl::DataFrame> {
    macro_rules! plain {
        ($field:ident) => {
            pl::Column::new(stringify!($field).into(), rows.iter().map(|row| row.$field).collect::<Vec<_>>())
        };
    }
    let optional_text = |name: &str, of: fn(&Row) -> Option<&str>| {
        pl::Series::new(name.into(), rows.iter().map(of).collect::<Vec<_>>()).into_column()
    };
    let columns = vec![
        plain!(row),
        optional_text("id", |row| row.id.as_deref()),
        text_column("source", rows.iter().map(|row| row.source.as_str()))?,
        text_column("path", rows.iter().map(|row| row.path.as_str()))?,
        plain!(line),
        plain!(tokens),
        plain!(supervised),
        plain!(truncated),
        plain!(mean_logprob),
        plain!(perplexity),
        plain!(mean_entropy),
        plain!(conflicts),
        plain!(conflict_loss),
        plain!(conflict_surplus),
        plain!(conflict_grad),
        optional_text("skipped", |row| row.skipped.as_deref()),
        plain!(fingerprint),
        plain!(ids_fingerprint),
    ];
    Ok(pl::DataFrame::new(rows.len(), columns)?)
}

fn rows_of(frame: &pl::DataFrame) -> Result<Vec<Row>> {
    let column = |name: &str| {
        frame.column(name).map(|column| column.as_materialized_series()).map_err(|source| {
            Error::new(format!("the table of rows has no column `{name}`"))
                .caused_by(source)
                .cure("Repeat the run with this version of the program.")
        })
    };
    macro_rules! values {
        ($name:literal, $as:ident) => {
            column($name)?.$as()?.iter()
        };
    }
    let text = |name: &str| -> Result<Vec<Option<String>>> {
        let strings = column(name)?.cast(&pl::DataType::String)?;
        Ok(strings.str()?.iter().map(|text| text.map(str::to_owned)).collect())
    };
    let mut rows: Vec<Row> = values!("row", u32).map(|row| Row { row: row.unwrap_or_default(), ..Row::default() }).collect();
    macro_rules! fill {
        ($name:literal, $as:ident, $field:ident) => {
            for (row, value) in rows.iter_mut().zip(values!($name, $as)) {
                row.$field = value.unwrap_or_default();
            }
        };
        (optional $name:literal, $as:ident, $field:ident) => {
            for (row, value) in rows.iter_mut().zip(values!($name, $as)) {
                row.$field = value;
            }
        };
    }
    fill!("line", u64, line);
    fill!("tokens", u32, tokens);
    fill!("supervised", u32, supervised);
    fill!("truncated", bool, truncated);
    fill!(optional "mean_logprob", f32, mean_logprob);
    fill!(optional "perplexity", f32, perplexity);
    fill!(optional "mean_entropy", f32, mean_entropy);
    fill!("conflicts", u32, conflicts);
    fill!("conflict_loss", f32, conflict_loss);
    fill!("conflict_surplus", f32, conflict_surplus);
    fill!("conflict_grad", f32, conflict_grad);
    if column("fingerprint").is_ok() {
        fill!(optional "fingerprint", u64, fingerprint);
    }
    if column("ids_fingerprint").is_ok() {
        fill!(optional "ids_fingerprint", u64, ids_fingerprint);
    }
    let texts = text("id")?.into_iter().zip(text("source")?).zip(text("path")?).zip(text("skipped")?);
    for (row, (((id, source), path), skipped)) in rows.iter_mut().zip(texts) {
        row.id = id;
        row.source = source.unwrap_or_default();
        row.path = path.unwrap_or_default();
        row.skipped = skipped;
    }
    Ok(rows)
}
