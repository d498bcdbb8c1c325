//! Builds the fields of a known format from a row's own columns: `--map FIELD=COLUMN` and `--map FIELD=TEMPLATE`.
//!
//! ```text
//! prompt=query                      the column itself, of any type
//! prompt=meta.query                 a column inside an object
//! prompt={question}\nA. {opa}       a text with columns in it; \n, \t, \\, \{, \} and \| are escapes
//! completion={cop:A|B|C|D}          a choice: the column holds the index of the alternative, from 0
//! completion={cop:{opa}|{opb}}      alternatives are templates too
//! ```
//!
//! For example, the raw MedMCQA rows (`question`, `opa` to `opd`, `cop`, `exp`) are read with
//!
//! ```text
//! --map 'prompt={question}\nA. {opa}\nB. {opb}\nC. {opc}\nD. {opd}'
//! --map 'completion={exp}\n\nAnswer: {cop:A. {opa}|B. {opb}|C. {opc}|D. {opd}}'
//! ```
//!
//! A mapped field replaces the row's own columns of the same meaning, as `prompt` replaces `question`. A mapped field that the format does not read
//! is an error (`heard.rs`): no mapping is ignored silently.

use std::iter::Peekable;
use std::str::Chars;

use serde_json::Value;

use super::chat::{MESSAGES, SYSTEM, looks_like_turn};
use super::fields::{self, Object, kind, list_keys};
use super::pairs::{ANSWERED, ASKED};
use super::{literal, tools};
use crate::error::{Error, Result};

/// The rules in the order given; without rules, rows stay as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct FieldMap {
    rules: Vec<(String, Rule)>,
    /// The values of `--map` as given by the user.
    written: Vec<String>,
}

#[derive(Debug, Clone, PartialEq)]
enum Rule {
    Column(String),
    Template(Vec<Part>),
}

#[derive(Debug, Clone, PartialEq)]
enum Part {
    Text(String),
    Column(String),
    Choice { column: String, alternatives: Vec<Vec<Part>> },
}

/// The fields of all formats.
pub(super) const FIELDS: [&str; 30] = [
    "messages",
    "conversations",
    "system",
    "tools",
    "prompt",
    "completion",
    "chosen",
    "question",
    "answer",
    "instruction",
    "input",
    "output",
    "response",
    "history",
    "instances",
    "text",
    "role",
    "message_id",
    "parent_id",
    "id",
    "source",
    "planted",
    "functions",
    "context",
    "system_prompt",
    "rejected",
    "query",
    "label",
    "loss_mask",
    "chat_template_kwargs",
];

/// Synonyms: if a field of the first list is mapped, the row's own columns named in the second are not read.
const SAME: [(&[&str], &[&[&str]]); 5] = [
    (&["prompt", "query", "question"], &[&ASKED]),
    (&["completion", "response", "output", "answer"], &[&ANSWERED, &["chosen", "rejected"]]),
    (&["messages", "conversations"], &[MESSAGES.lists]),
    (&["system", "system_prompt"], &[&SYSTEM]),
    (&["tools", "functions"], &[&tools::SCHEMAS]),
];

/// A row to which the map has been applied.
pub(super) struct Mapped {
    pub row: Object,
    /// The row's own columns that a mapped field replaced.
    pub replaced: Object,
}

impl FieldMap {
    /// Reads the values of repeated `--map` options.
    pub fn parse(rules: &[String]) -> Result<FieldMap> {
        let written = rules.to_vec();
        let rules: Vec<(String, Rule)> = rules.iter().map(|rule| parse_rule(rule)).collect::<Result<_>>()?;
        for (idx, (target, _)) in rules.iter().enumerate() {
            if let Some(first) = rules[..idx].iter().position(|(other, _)| other == target) {
                let (first, second) = (&written[first], &written[idx]);
                return Err(Error::usage(format!("expected one --map for `{target}`, found `{first}` and `{second}`"))
                    .cure("Combine them into one template, such as --map 'prompt={context}\\n\\n{question}'."));
            }
        }
        Ok(FieldMap { rules, written })
    }

    /// The values of `--map` that the rules were parsed from.
    pub(crate) fn rules(&self) -> &[String] {
        &self.written
    }

    /// Whether no field is mapped.
    pub fn is_empty(&self) -> bool {
        self.rules.is_empty()
    }

    pub(super) fn targets(&self) -> impl Iterator<Item = &str> {
        self.rules.iter().map(|(target, _)| target.as_str())
    }

    pub(super) fn has_target(&self, field: &str) -> bool {
        self.targets().any(|target| target == field)
    }

    /// Whether some field takes the whole column, whatever the row holds.
    pub(super) fn takes(&self, column: &str) -> bool {
        self.rules.iter().any(|(_, rule)| match rule {
            Rule::Column(name) => name == column,
            Rule::Template(parts) => parts.iter().any(|part| matches!(part, Part::Column(name) if name == column)),
        })
    }

    /// Whether a mapped field takes the place of this column of the row's own.
    pub(super) fn replaces(&self, column: &str) -> bool {
        let is_same = |(fields, names): &(&[&str], &[&[&str]])| {
            fields.iter().any(|field| self.has_target(field)) && names.iter().any(|names| names.contains(&column))
        };
        self.has_target(column) || SAME.iter().any(is_same)
    }

    /// Returns the name of the column that the field takes as it is.
    pub(super) fn column(&self, field: &str) -> Option<&str> {
        let (_, rule) = self.rules.iter().find(|(target, _)| target == field)?;
        match rule {
            Rule::Column(name) => Some(name),
            Rule::Template(parts) => match &parts[..] {
                [Part::Column(name)] => Some(name),
                _ => None,
            },
        }
    }

    /// Returns the definition of the field in `--map`, as a template.
    pub(super) fn template(&self, field: &str) -> Option<String> {
        let at = self.rules.iter().position(|(target, _)| target == field)?;
        let (_, definition) = self.written[at].split_once('=')?;
        Some(match &self.rules[at].1 {
            Rule::Column(name) => format!("{{{name}}}"),
            Rule::Template(_) => definition.to_owned(),
        })
    }

    /// Sets the mapped fields of a row. Every rule sees the row's own columns, not the results of other rules.
    pub(super) fn apply(&self, row: Object) -> Result<Mapped> {
        if self.is_empty() {
            return Ok(Mapped { row, replaced: Object::new() });
        }
        let mut mapped = Vec::with_capacity(self.rules.len());
        for (target, rule) in &self.rules {
            let value = match rule {
                Rule::Column(name) => column(&row, name).and_then(|value| checked_label(target, name, value)).cloned(),
                Rule::Template(parts) => match &parts[..] {
                    // Braces around the only column ask for no text where it has turns.
                    [Part::Column(name)] if !is_label(target) && holds_turns(&row, name) => column(&row, name).cloned(),
                    _ => fill(parts, &row).map(Value::String),
                },
            };
            let value = value.map_err(|error| {
                let named = Error::new(format!("field map for `{target}`: {}", error.message()));
                match error.known_cure() {
                    Some(cure) => named.cure(cure),
                    None => named,
                }
            })?;
            mapped.push((target.clone(), value));
        }
        let (mut row, mut replaced) = (row, Object::new());
        let same = SAME.iter().filter(|(fields, _)| fields.iter().any(|field| self.has_target(field)));
        for name in same.flat_map(|(_, names)| names.iter().copied().flatten()).filter(|name| !self.has_target(name)) {
            replaced.extend(row.shift_remove_entry(*name));
        }
        row.extend(mapped);
        Ok(Mapped { row, replaced })
    }
}

/// Whether the field names the row or its source.
fn is_label(target: &str) -> bool {
    ["id", "source"].contains(&target)
}

/// Returns the value of this column, or an error if the field is a label of the row and the value none.
fn checked_label<'a>(target: &str, column: &str, value: &'a Value) -> Result<&'a Value> {
    if !is_label(target) || value.is_null() || value.is_string() || value.is_number() {
        return Ok(value);
    }
    let inner = value.as_object().and_then(|object| object.keys().next()).map(|key| format!("{column}.{key}"));
    let inner = inner.unwrap_or_else(|| format!("{{{column}}}"));
    Err(Error::new(format!("expected a text or a number in the column `{column}`, found {}", kind(value)))
        .cure(format!("Name what identifies the row, such as --map '{target}={inner}'.")))
}

fn fill(parts: &[Part], row: &Object) -> Result<String> {
    let mut text = String::new();
    for part in parts {
        match part {
            Part::Text(literal) => text.push_str(literal),
            Part::Column(name) => match column(row, name)? {
                nothing if literal::is_nothing(nothing) => {
                    return Err(Error::new(format!("expected a value in the column `{name}`, found {}", kind(nothing))));
                }
                _ if holds_turns(row, name) => {
                    return Err(Error::new(format!("the column `{name}` holds a list of turns, which is not a text"))
                        .cure(format!("Map the column alone, as in FIELD={name}, or give the rows a column with the text.")));
                }
                value => match fields::text(value) {
                    Some(value) => text.push_str(&value),
                    None => text.push_str(&literal::dumps(value)),
                },
            },
            Part::Choice { column: name, alternatives } => {
                let value = column(row, name)?;
                let chosen = index(value).and_then(|idx| alternatives.get(idx)).ok_or_else(|| {
                    let found = if matches!(value, Value::Number(_) | Value::String(_)) {
                        value.to_string()
                    } else {
                        kind(value).into_owned()
                    };
                    let n = alternatives.len();
                    Error::new(format!(
                        "expected a number from 0 to {} in the column `{name}`, found {found}",
                        n.saturating_sub(1)
                    ))
                })?;
                text.push_str(&fill(chosen, row)?);
            }
        }
    }
    Ok(text)
}

fn index(value: &Value) -> Option<usize> {
    match value {
        Value::Number(number) => number.as_u64().and_then(|number| usize::try_from(number).ok()),
        Value::String(text) => text.trim().parse().ok(),
        Value::Bool(value) => Some(usize::from(*value)),
        _ => None,
    }
}

/// Finds a column by its name, or by a path of names separated by dots.
fn column<'a>(row: &'a Object, name: &str) -> Result<&'a Value> {
    let nested = || {
        let (first, rest) = name.split_once('.')?;
        rest.split('.').try_fold(row.get(first)?, |value, key| value.get(key))
    };
    row.get(name)
        .or_else(nested)
        .ok_or_else(|| Error::new(format!("expected a column `{name}`, found {}", list_keys(row.keys()))))
}

/// Whether the column holds a list of turns.
fn holds_turns(row: &Object, name: &str) -> bool {
    let turns = column(row, name).ok().and_then(Value::as_array);
    turns.is_some_and(|turns| !turns.is_empty() && turns.iter().all(|turn| turn.is_object() && looks_like_turn(turn)))
}

fn parse_rule(rule: &str) -> Result<(String, Rule)> {
    let cure = "Write --map FIELD=COLUMN or --map 'FIELD=text with {column}', for example --map 'prompt={question}'.";
    let Some((target, definition)) = rule.split_once('=') else {
        return Err(Error::usage(format!("expected FIELD=COLUMN or FIELD=TEMPLATE, found `{rule}`")).cure(cure));
    };
    let target = target.trim();
    if !FIELDS.contains(&target) {
        return Err(Error::usage(format!("expected a field of a known format, found `{target}` in `{rule}`"))
            .cure(format!("Fields: {}.", FIELDS.join(", "))));
    }
    if definition.is_empty() {
        return Err(Error::usage(format!("expected a column or a template after `=`, found nothing in `{rule}`")).cure(cure));
    }
    if !definition.contains(['{', '}', '\\']) {
        return Ok((target.to_owned(), Rule::Column(definition.to_owned())));
    }
    let parts = parse_template(&mut definition.chars().peekable(), 0);
    let parts =
        parts.map_err(|reason| Error::usage(format!("expected a template, found `{definition}`: {reason}")).cure(cure))?;
    Ok((target.to_owned(), Rule::Template(parts)))
}

/// Parses up to the end or, inside a choice, up to the `|` or `}` that ends the alternative.
fn parse_template(chars: &mut Peekable<Chars>, depth: u8) -> Result<Vec<Part>, String> {
    let mut parts = Vec::new();
    let mut text = String::new();
    while let Some(&next) = chars.peek() {
        if depth > 0 && matches!(next, '|' | '}') {
            break;
        }
        chars.next();
        match next {
            '\\' => text.push(match chars.next() {
                Some('n') => '\n',
                Some('t') => '\t',
                Some(plain @ ('\\' | '{' | '}' | '|')) => plain,
                Some(other) => return Err(format!("unknown escape \\{other}")),
                None => return Err("it ends in a single backslash".to_owned()),
            }),
            '{' => {
                if !text.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut text)));
                }
                parts.push(parse_hole(chars, depth)?);
            }
            '}' => return Err("a `}` without its `{`; a literal one is \\}".to_owned()),
            plain => text.push(plain),
        }
    }
    if !text.is_empty() {
        parts.push(Part::Text(text));
    }
    Ok(parts)
}

/// Parses `column}` or `column:first|second}`, after the opening brace.
fn parse_hole(chars: &mut Peekable<Chars>, depth: u8) -> Result<Part, String> {
    const MAX_DEPTH: u8 = 8;
    if depth == MAX_DEPTH {
        return Err(format!("choices can be nested at most {MAX_DEPTH} deep"));
    }
    let mut column = String::new();
    let end = loop {
        match chars.next() {
            Some(end @ ('}' | ':')) => break end,
            Some('{') => return Err("a `{` inside a column name".to_owned()),
            Some(other) => column.push(other),
            None => return Err("a `{` without its `}`".to_owned()),
        }
    };
    let column = column.trim().to_owned();
    if column.is_empty() {
        return Err("braces without a column name".to_owned());
    }
    if end == '}' {
        return Ok(Part::Column(column));
    }
    let mut alternatives = Vec::new();
    loop {
        alternatives.push(parse_template(chars, depth + 1)?);
        match chars.next() {
            Some('|') => {}
            Some(_) => return Ok(Part::Choice { column, alternatives }),
            None => return Err("a `{` without its `}`".to_owned()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn map(rules: &[&str], row: Value) -> Result<Value> {
        let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
        FieldMap::parse(&rules)?.apply(row.as_object().unwrap().clone()).map(|mapped| Value::Object(mapped.row))
    }

    #[test]
    fn columns_templates_and_choices() {
        let row = || serde_json::json!({"q": "Why?", "a": "x", "b": "y", "cop": 1, "meta": {"w": [1, 2]}});
        let check =
            |rule: &str, field: &str, expected: Value| assert_eq!(map(&[rule], row()).unwrap()[field], expected, "{rule}");
        check("prompt=q", "prompt", "Why?".into());
        check("messages=meta.w", "messages", serde_json::json!([1, 2]));
        check("prompt={q}\\n1. {a}\n\\{{cop}\\}", "prompt", "Why?\n1. x\n{1}".into());
        check("completion={cop:A|B}", "completion", "B".into());
        check("completion=It is {cop:A. {a}|B. {b}}.", "completion", "It is B. y.".into());
        check("completion={cop:|{cop:|deep}}", "completion", "deep".into());
        check("text={meta.w}", "text", "[1, 2]".into());
        let turns = || serde_json::json!([{"role": "assistant", "content": "c"}]);
        assert_eq!(map(&["completion={t}"], serde_json::json!({"t": turns()})).unwrap()["completion"], turns());
    }

    #[test]
    fn rules_see_the_original_columns() {
        let swapped = map(&["prompt=completion", "completion=prompt"], serde_json::json!({"prompt": "a", "completion": "b"}));
        assert_eq!(swapped.unwrap(), serde_json::json!({"prompt": "b", "completion": "a"}));
    }

    #[test]
    fn bad_rules_are_wrong_usage_and_bad_rows_are_not() {
        for (rule, expected) in [
            ("prompt", "expected FIELD=COLUMN"),
            ("promt=q", "expected a field of a known format"),
            ("prompt=", "found nothing"),
            ("prompt={q", "without its `}`"),
            ("prompt=q}", "without its `{`"),
            ("prompt={}", "without a column name"),
            ("prompt=a\\x", "unknown escape"),
            ("prompt={q:a|b", "without its `}`"),
        ] {
            let error = map(&[rule], serde_json::json!({})).unwrap_err();
            assert!(error.message().contains(expected), "{rule}: {error}");
            assert_eq!(error.exit_code(), 2);
        }
        for (rule, expected) in [
            ("prompt=q", "expected a column `q`, found `cop`, `e`, `meta`, `t`"),
            ("id=meta", "field map for `id`: expected a text or a number in the column `meta`, found an object"),
            ("source=meta.ok", "expected a text or a number in the column `meta.ok`, found a boolean"),
            ("prompt={e}", "found null"),
            ("prompt=Q: {t}", "the column `t` holds a list of turns, which is not a text"),
            ("id={t}", "the column `t` holds a list of turns"),
            ("prompt={cop:a|b}", "expected a number from 0 to 1 in the column `cop`, found 7"),
        ] {
            let turns = [serde_json::json!({"from": "human", "value": "q"})];
            let row = serde_json::json!({"cop": 7, "e": null, "meta": {"key": "a", "ok": true}, "t": turns});
            let error = map(&[rule], row).unwrap_err();
            assert!(error.message().contains(expected), "{rule}: {error}");
            assert_eq!(error.exit_code(), 1);
        }
        let row = || serde_json::json!({"cop": 7, "e": null, "meta": {"key": "a", "ok": true}});
        assert!(map(&["id=meta"], row()).unwrap_err().to_string().contains("--map 'id=meta.key'"));
        let whole = "{\"key\": \"a\", \"ok\": true}";
        for (rule, id) in [("id=meta.key", Value::from("a")), ("id=cop", 7.into()), ("id={meta}", whole.into())] {
            assert_eq!(map(&[rule], row()).unwrap()["id"], id, "{rule}");
        }
        assert_eq!(map(&["id=e"], row()).unwrap()["id"], Value::Null);
    }
}
