//! Converts rows of a table to JSON objects, for the readers of Parquet and Arrow.
//!
//! ```text
//! text, numbers, booleans, lists, structs of them      unchanged
//! integers of 8 and 16 bits, lists of a fixed size     widened, converted to lists of any size
//! extension types, such as Arrow's JSON                their storage type
//! dates, times, decimals, maps, bytes                  left out alone: the struct around them stays
//! ```

use std::cell::Cell;
use std::panic::{AssertUnwindSafe, catch_unwind, set_hook, take_hook};
use std::sync::Once;

use polars::datatypes::ArrowDataType;
use polars::prelude::{AnyValue, DataFrame};
use serde_json::{Map, Value};

use super::literal;
use super::switches::looks_like_switch;
use crate::error::{Context, Error, Result};

/// The columns of a table that are read, and what of them is left out.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Columns {
    /// Indices and names of the columns to read.
    pub read: Vec<(usize, String)>,
    /// Whether polars reads all columns without conversion.
    pub is_plain: bool,
    /// Struct members that are left out: the column and the names inside it.
    pruned: Vec<Vec<String>>,
    /// Columns that are left out entirely.
    left_out: Vec<String>,
}

impl Columns {
    /// Divides the columns of a schema, given as names and types, into those that can be read and those that are left out.
    pub(super) fn of<'a>(fields: impl Iterator<Item = (&'a str, &'a ArrowDataType)>) -> Columns {
        let mut columns = Columns { is_plain: true, ..Columns::default() };
        for (idx, (name, kind)) in fields.enumerate() {
            if is_readable(kind, &mut vec![name.to_owned()], &mut columns.pruned) {
                columns.is_plain &= is_plain(kind);
                columns.read.push((idx, name.to_owned()));
            } else {
                columns.left_out.push(name.to_owned());
            }
        }
        columns
    }

    /// Messages to the user about what is left out.
    pub(super) fn notes(&self) -> Vec<String> {
        let pruned = self
            .pruned
            .iter()
            .map(|path| format!("the member `{}` of a column has a type that is not supported", path.join(".")));
        let left_out = self.left_out.iter().map(|name| format!("the column `{name}` has a type that is not supported"));
        pruned.chain(left_out).collect()
    }

    /// Columns that are left out although their names suggest loss switches or media, such as `images`.
    fn unseen(&self) -> impl Iterator<Item = &String> {
        self.left_out.iter().filter(|name| looks_like_switch(name))
    }

    /// Removes the markers of unread values from a row, so that they are not written back.
    pub(super) fn without_marks(&self, row: &mut Map<String, Value>) {
        self.unseen().for_each(|name| {
            row.shift_remove(name);
        });
        for path in &self.pruned {
            if let [first, rest @ ..] = &path[..]
                && let Some(value) = row.get_mut(first)
            {
                prune(value, rest, false);
            }
        }
    }

    /// Everything in the file that rows lack: columns, and dotted paths of struct members.
    pub(super) fn unread(&self) -> Vec<String> {
        self.left_out.iter().cloned().chain(self.pruned.iter().map(|path| path.join("."))).collect()
    }

    pub(super) fn row(&self, frame: &DataFrame, idx: usize) -> Result<Value> {
        let mut row = Map::new();
        for column in frame.columns() {
            let value = column.get(idx).context("cannot read a cell of the table")?;
            row.insert(column.name().to_string(), json(value)?);
        }
        // An unreadable loss switch or image must not pass for an absent one.
        row.extend(self.unseen().map(|name| (name.clone(), Value::from(UNREAD))));
        let mut row = Value::Object(row);
        self.pruned.iter().for_each(|path| prune(&mut row, path, true));
        Ok(row)
    }
}

/// Marks a value of an unsupported type whose name suggests a loss switch or media.
const UNREAD: &str = "of a type that is not supported";

/// Removes a member. With `marks`, a member whose name suggests a loss switch or media is replaced by a marker instead.
fn prune(value: &mut Value, path: &[String], marks: bool) {
    match (value, path) {
        (Value::Array(list), _) => list.iter_mut().for_each(|value| prune(value, path, marks)),
        (Value::Object(object), [last]) if marks && looks_like_switch(last) => {
            object.insert(last.clone(), UNREAD.into());
        }
        (Value::Object(object), [last]) => {
            object.shift_remove(last);
        }
        (Value::Object(object), [first, rest @ ..]) => {
            object.get_mut(first).into_iter().for_each(|value| prune(value, rest, marks));
        }
        _ => {}
    }
}

fn json(value: AnyValue) -> Result<Value> {
    Ok(match value {
        AnyValue::Null => Value::Null,
        AnyValue::Boolean(value) => value.into(),
        AnyValue::String(text) => literal::text(text)?.into(),
        AnyValue::StringOwned(text) => literal::text(text.as_str())?.into(),
        AnyValue::UInt16(value) => value.into(),
        AnyValue::UInt32(value) => value.into(),
        AnyValue::UInt64(value) => value.into(),
        AnyValue::Int32(value) => value.into(),
        AnyValue::Int64(value) => value.into(),
        AnyValue::Float32(value) => literal::number(value.into()),
        AnyValue::Float64(value) => literal::number(value),
        AnyValue::Struct(..) => json(value.into_static())?,
        // In a column of structs every row has every key, so null is the only way to omit one.
        AnyValue::StructOwned(payload) => {
            let (values, fields) = *payload;
            let fields = fields.into_iter().zip(values).filter(|(_, value)| !value.is_null());
            Value::Object(fields.map(|(field, value)| Ok((field.name().to_string(), json(value)?))).collect::<Result<_>>()?)
        }
        AnyValue::List(list) => Value::Array(list.iter().map(json).collect::<Result<_>>()?),
        AnyValue::Categorical(..) | AnyValue::CategoricalOwned(..) => {
            value.get_str().map(literal::text).transpose()?.map_or(Value::Null, Value::from)
        }
        // A pruned value: everything that is kept has one of the types above.
        _ => Value::Null,
    })
}

/// Whether the column can be read; struct members that cannot are added to `pruned`. `path` locates the type.
fn is_readable(kind: &ArrowDataType, path: &mut Vec<String>, pruned: &mut Vec<Vec<String>>) -> bool {
    use ArrowDataType as Kind;
    match kind {
        Kind::Int8 | Kind::Int16 | Kind::UInt8 => true,
        Kind::List(item) | Kind::LargeList(item) | Kind::FixedSizeList(item, _) => is_readable(&item.dtype, path, pruned),
        Kind::Extension(extension) => is_readable(&extension.inner, path, pruned),
        Kind::Struct(fields) => {
            let n_before = pruned.len();
            let mut n_read = 0;
            for field in fields {
                path.push(field.name.to_string());
                if is_readable(&field.dtype, path, pruned) {
                    n_read += 1;
                } else {
                    pruned.push(path.clone());
                }
                path.pop();
            }
            if n_read == 0 {
                pruned.truncate(n_before);
            }
            n_read > 0
        }
        other => is_plain(other),
    }
}

/// Whether polars, with this program's features, reads the type without conversion.
pub(super) fn is_plain(kind: &ArrowDataType) -> bool {
    use ArrowDataType as Kind;
    match kind {
        Kind::Null | Kind::Boolean | Kind::Utf8 | Kind::LargeUtf8 | Kind::Utf8View => true,
        Kind::Int32 | Kind::Int64 | Kind::UInt16 | Kind::UInt32 | Kind::UInt64 | Kind::Float32 | Kind::Float64 => true,
        Kind::List(item) | Kind::LargeList(item) => is_plain(&item.dtype),
        Kind::Struct(fields) => fields.iter().all(|field| is_plain(&field.dtype)),
        Kind::Dictionary(_, values, _) => matches!(**values, Kind::Utf8 | Kind::LargeUtf8 | Kind::Utf8View),
        _ => false,
    }
}

/// Turns panics of the readers, which occur on some damaged files, into the error `damaged`, and suppresses their message.
pub(super) fn guarded<T>(damaged: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
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
    outcome.unwrap_or_else(|_| Err(Error::new(damaged)))
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_member_that_is_not_read_is_absent_unless_it_looks_like_a_switch() {
        let mut row = json!({"messages": [{"role": "user", "at": 1, "weight": null}, {"role": "assistant"}]});
        for member in ["at", "weight"] {
            prune(&mut row, &["messages".to_owned(), member.to_owned()], true);
        }
        let turn = |role: &str| json!({"role": role, "weight": UNREAD});
        assert_eq!(row, json!({"messages": [turn("user"), turn("assistant")]}));
        // Rows that are written back hold no markers, neither for members nor for whole columns.
        let path = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
        let (pruned, left_out) = (vec![path(&["messages", "at"]), path(&["messages", "weight"])], path(&["train_loss", "date"]));
        let columns = Columns { pruned, left_out, ..Columns::default() };
        row["train_loss"] = UNREAD.into();
        columns.without_marks(row.as_object_mut().unwrap());
        assert_eq!(row, json!({"messages": [{"role": "user"}, {"role": "assistant"}]}));
        assert_eq!(columns.unread(), ["train_loss", "date", "messages.at", "messages.weight"]);
    }
}
