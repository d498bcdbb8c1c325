//! Writes rows as a Parquet table. All values of a column must fit one type: lists have items of one type, and objects have the keys of all objects
//! (a key that a row lacks is null, and read as absent). Python's NaN is a missing value, hence null, except among floats.
//!
//! Tools, the arguments of calls and the variables of a template are another matter: a chat template prints them as they are, so that `null`, a
//! missing key, `5` and `5.0` are different texts. There only what reads back exactly is written.

use std::io::Write;

use polars::prelude as pl;
use polars::prelude::{AnyValue, DataType, IntoColumn, Series};
use serde_json::Value;

use super::super::fields::{Object, kind};
use super::super::verbatim;
use crate::error::{Context, Error, Result};

/// The keys below which a chat template prints whatever it finds.
const PRINTED: [&str; 4] = ["arguments", "chat_template_kwargs", "functions", "tools"];

/// Writes the rows as a table. `from_tables`: they were read from tables, where a key of one row is a key of all already.
pub(crate) fn write_parquet(rows: &[Object], from_tables: bool, file: &mut dyn Write) -> Result<()> {
    let mut names: Vec<&String> = Vec::new();
    for key in rows.iter().flat_map(|row| row.keys()) {
        if !names.contains(&key) {
            names.push(key);
        }
    }
    let column = |name: &&String| {
        let values: Vec<&Value> = rows.iter().map(|row| row.get(*name).unwrap_or(&Value::Null)).collect();
        let mut shape = Shape::Null;
        for value in &values {
            shape = shape.with(value, name)?;
        }
        if !from_tables {
            values.iter().try_for_each(|value| shape.check_printed(value, name, false))?;
        }
        let cells: Vec<AnyValue> = values.iter().map(|value| shape.cell(value, name)).collect::<Result<_>>()?;
        let series = Series::from_any_values_and_dtype(name.as_str().into(), &cells, &shape.dtype(), true);
        Ok(series.context(format!("cannot make a column of `{name}`"))?.into_column())
    };
    let columns = names.iter().map(column).collect::<Result<Vec<_>>>()?;
    let mut frame = pl::DataFrame::new(rows.len(), columns)?;
    let writer = pl::ParquetWriter::new(Unsized(file)).with_compression(pl::ParquetCompression::Snappy);
    writer.finish(&mut frame).context("cannot write the table")?;
    Ok(())
}

/// Wraps a writer of dynamic type as a sized one.
struct Unsized<'a>(&'a mut dyn Write);

impl Write for Unsized<'_> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.write(bytes)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// The common type of a column's values.
#[derive(Debug, Clone, PartialEq)]
enum Shape {
    Null,
    Boolean,
    Whole,
    Fraction,
    Text,
    List(Box<Shape>),
    Object(Vec<(String, Shape)>),
}

impl Shape {
    /// Returns the common type of these values and one more.
    fn with(self, value: &Value, path: &str) -> Result<Shape> {
        if let Some(number) = verbatim(value) {
            return match (&self, number.parse::<f64>()) {
                // A missing value: null, except in a column of floats.
                (_, Ok(float)) if float.is_nan() => Ok(self),
                (Shape::Null | Shape::Whole | Shape::Fraction, Ok(float)) if float.is_infinite() => Ok(Shape::Fraction),
                (Shape::Null | Shape::Whole | Shape::Fraction, _) => {
                    Err(Error::new(format!("`{path}`: a table holds integers of at most 64 bits, found {number}"))
                        .cure("Write JSON Lines, which allow different rows."))
                }
                _ => Err(Error::new(format!("`{path}`: expected {} in every row of a table, found {number}", self.name()))
                    .cure("Write JSON Lines, which allow different rows.")),
            };
        }
        Ok(match (self, value) {
            (shape, Value::Null) => shape,
            (Shape::Null | Shape::Boolean, Value::Bool(_)) => Shape::Boolean,
            (Shape::Null | Shape::Whole, Value::Number(number)) if number.is_i64() => Shape::Whole,
            (Shape::Null | Shape::Whole | Shape::Fraction, Value::Number(_)) => Shape::Fraction,
            (Shape::Null | Shape::Text, Value::String(_)) => Shape::Text,
            (shape @ (Shape::Null | Shape::List(_)), Value::Array(list)) => {
                let mut item = if let Shape::List(item) = shape { *item } else { Shape::Null };
                for value in list {
                    item = item.with(value, path)?;
                }
                Shape::List(Box::new(item))
            }
            (shape @ (Shape::Null | Shape::Object(_)), Value::Object(object)) => {
                let mut fields = if let Shape::Object(fields) = shape { fields } else { Vec::new() };
                for (key, value) in object {
                    let path = format!("{path}.{key}");
                    match fields.iter_mut().find(|(name, _)| name == key) {
                        Some((_, shape)) => *shape = std::mem::replace(shape, Shape::Null).with(value, &path)?,
                        None => fields.push((key.clone(), Shape::Null.with(value, &path)?)),
                    }
                }
                Shape::Object(fields)
            }
            (shape, other) => {
                return Err(Error::new(format!(
                    "`{path}`: expected {} in every row of a table, found {}",
                    shape.name(),
                    kind(other)
                ))
                .cure("Write JSON Lines, which allow different rows."));
            }
        })
    }

    fn name(&self) -> &'static str {
        match self {
            Shape::Null => "null",
            Shape::Boolean => "a boolean",
            Shape::Whole | Shape::Fraction => "a number",
            Shape::Text => "a string",
            Shape::List(_) => "a list",
            Shape::Object(_) => "an object",
        }
    }

    fn dtype(&self) -> DataType {
        match self {
            // A column without values becomes text, which every reader supports.
            Shape::Null | Shape::Text => DataType::String,
            Shape::Boolean => DataType::Boolean,
            Shape::Whole => DataType::Int64,
            Shape::Fraction => DataType::Float64,
            Shape::List(item) => DataType::List(Box::new(item.dtype())),
            Shape::Object(_) => DataType::Struct(self.fields()),
        }
    }

    fn fields(&self) -> Vec<pl::Field> {
        match self {
            Shape::Object(fields) if !fields.is_empty() => {
                fields.iter().map(|(name, shape)| pl::Field::new(name.as_str().into(), shape.dtype())).collect()
            }
            // Parquet has no struct without members.
            _ => vec![pl::Field::new("_".into(), DataType::String)],
        }
    }

    /// Returns an error if a part of `value` that a chat template prints would be read back as something else. `is_printed`: all of it is printed.
    fn check_printed(&self, value: &Value, path: &str, is_printed: bool) -> Result<()> {
        let refused = |found: &str| {
            Err(Error::new(format!("`{path}`: {found}, which a chat template may print"))
                .cure("Write JSON Lines, which allow different rows."))
        };
        // A row may lack the whole of it; what it has of it is printed.
        let is_inside = is_printed || PRINTED.contains(&path.rsplit('.').next().unwrap_or(path));
        match (self, value) {
            (Shape::Object(fields), Value::Object(object)) => {
                if let (true, Some((key, _))) = (is_inside, fields.iter().find(|(key, _)| !object.contains_key(key))) {
                    return refused(&format!("a table has the key `{key}` in every row or in none, and one lacks it"));
                }
                let of = |key: &String| fields.iter().find(|(name, _)| name == key).map_or(&Shape::Null, |(_, shape)| shape);
                object.iter().try_for_each(|(key, value)| of(key).check_printed(value, &format!("{path}.{key}"), is_inside))
            }
            (Shape::List(item), Value::Array(list)) => {
                list.iter().try_for_each(|value| item.check_printed(value, path, is_inside))
            }
            (_, Value::Null) if is_printed => refused("a table does not tell null from a missing key"),
            (Shape::Fraction, Value::Number(number)) if is_printed && !number.is_f64() => {
                refused(&format!("a column of fractions makes {number}.0 of {number}"))
            }
            _ => Ok(()),
        }
    }

    fn cell(&self, value: &Value, path: &str) -> Result<AnyValue<'static>> {
        Ok(match (self, value) {
            (Shape::Boolean, Value::Bool(value)) => AnyValue::Boolean(*value),
            (Shape::Whole, Value::Number(number)) => number.as_i64().map_or(AnyValue::Null, AnyValue::Int64),
            (Shape::Fraction, Value::Number(number)) => {
                let float = number.as_f64().unwrap_or(f64::NAN);
                let integer = number.as_i64().map(i128::from).or(number.as_u64().map(i128::from));
                if integer.is_some_and(|integer| float as i128 != integer) {
                    let message = format!("`{path}`: expected numbers that a column of floats holds, found {number}");
                    return Err(Error::new(message).cure("Write JSON Lines, which allow different rows."));
                }
                AnyValue::Float64(float)
            }
            (Shape::Fraction, word @ Value::String(_)) => {
                verbatim(word).and_then(|number| number.parse().ok()).map_or(AnyValue::Null, AnyValue::Float64)
            }
            (Shape::Text, Value::String(text)) if verbatim(value).is_none() => AnyValue::StringOwned(text.as_str().into()),
            (Shape::List(item), Value::Array(list)) => {
                let cells: Vec<AnyValue> = list.iter().map(|value| item.cell(value, path)).collect::<Result<_>>()?;
                AnyValue::List(Series::from_any_values_and_dtype("".into(), &cells, &item.dtype(), true)?)
            }
            (Shape::Object(fields), Value::Object(object)) => {
                let own = |(name, shape): &(String, Shape)| match object.get(name) {
                    Some(value) => shape.cell(value, &format!("{path}.{name}")),
                    None => Ok(AnyValue::Null),
                };
                let mut cells = fields.iter().map(own).collect::<Result<Vec<_>>>()?;
                if cells.is_empty() {
                    cells.push(AnyValue::Null);
                }
                AnyValue::StructOwned(Box::new((cells, self.fields())))
            }
            _ => AnyValue::Null,
        })
    }
}
