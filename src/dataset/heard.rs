//! Checks that a format reads the fields that the user has mapped. A field is read if changing its value changes the result. This test replaces a
//! list of fields for each format, and rules for how one field hides another.

use serde_json::Value;

use super::fields::Object;
use super::mapping::{FIELDS, FieldMap};
use super::pairs::is_preference;
use crate::error::{Error, Result};

/// Returns an error if this format does not read a field that the user has mapped. A row that cannot be read at all is reported elsewhere.
pub(super) fn check<T: PartialEq>(
    row: &mut Object,
    mapping: &FieldMap,
    format: &str,
    read: impl Fn(&Object) -> Option<T>,
) -> Result<()> {
    if mapping.is_empty() {
        return Ok(());
    }
    let Some(as_it_is) = read(row) else { return Ok(()) };
    let mut is_read = |field: &str| is_read_by(row, field, &as_it_is, &read);
    let Some(unheard) = mapping.targets().find(|field| !is_read(field)) else { return Ok(()) };
    let fields: Vec<String> = FIELDS.iter().filter(|field| is_read(field)).map(|field| format!("`{field}`")).collect();
    Err(Error::usage(format!(
        "--map: expected a field that this format uses, found `{unheard}`: rows in the format {format} are read without it"
    ))
    .cure(format!("Map one of {}, or choose another format with --format.", fields.join(", "))))
}

fn is_read_by<T: PartialEq>(row: &mut Object, field: &str, as_it_is: &T, read: &impl Fn(&Object) -> Option<T>) -> bool {
    // A rejected answer counts as read, although it is not supervised.
    if field == "rejected" && is_preference(row) {
        return true;
    }
    let own = row.insert(field.to_owned(), Value::from("Is this field read?"));
    let otherwise = read(row);
    match own {
        Some(own) => row.insert(field.to_owned(), own),
        None => row.shift_remove(field),
    };
    otherwise.as_ref() != Some(as_it_is)
}
