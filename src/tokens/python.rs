//! Python's `str`, `json.dumps` and `strftime` for chat templates.
//!
//! Templates were written for Transformers, and models were trained on tool schemas in the exact spacing of `json.dumps`, so this imitates Python
//! byte for byte. Not supported: directives of `strftime` that depend on the locale.

use std::fmt::Write;
use std::sync::OnceLock;
use std::time::{SystemTime, UNIX_EPOCH};

use minijinja::value::{Kwargs, Value, ValueKind};
use minijinja::{Error, ErrorKind, Output, State};

use super::iterables::{self, Written, is_dictionary};
use crate::dataset::verbatim;
use crate::format::{date, python_float, python_quoted};

/// Converts JSON for templates; maps keep their order.
pub(super) fn from_json(json: &serde_json::Value) -> Value {
    use serde_json::Value as Json;
    match json {
        Json::Null => Value::from(()),
        Json::Bool(value) => Value::from(*value),
        Json::Number(number) => match (number.as_i64(), number.as_u64()) {
            (Some(integer), _) => Value::from(integer),
            (None, Some(integer)) => Value::from(integer),
            (None, None) => Value::from(number.as_f64().unwrap_or(f64::NAN)),
        },
        Json::String(text) => {
            let Some(number) = verbatim(json) else { return Value::from(text.as_str()) };
            match (number.parse::<i128>(), number.parse::<u128>(), number.parse::<f64>()) {
                (Ok(integer), ..) => Value::from(integer),
                (_, Ok(integer), _) => Value::from(integer),
                (.., Ok(float)) => Value::from(float),
                _ => Value::from(number),
            }
        }
        Json::Array(items) => items.iter().map(from_json).collect(),
        Json::Object(fields) => Value::from_pairs(fields.iter().map(|(key, value)| (key.as_str(), from_json(value)))),
    }
}

/// The test `iterable`: in Python strings are iterable, and so are undefined values in Jinja, but not `None`.
pub(super) fn is_iterable(value: &Value) -> bool {
    value.is_undefined()
        || matches!(value.kind(), ValueKind::String | ValueKind::Seq | ValueKind::Iterable)
        || is_dictionary(value)
}

/// The test `sequence`: in Jinja everything with a length and items, including dictionaries.
pub(super) fn is_sequence(value: &Value) -> bool {
    value.is_undefined() || matches!(value.kind(), ValueKind::String | ValueKind::Seq) || is_dictionary(value)
}

/// The callback for `Environment::set_formatter`: formats `{{ value }}` by Python's `str`.
pub(super) fn write(out: &mut Output, _: &mut State, value: &Value) -> Result<(), Error> {
    match value.as_str() {
        Some(text) => out.write_str(text).map_err(Error::from),
        None => out.write_str(&text(value)?).map_err(Error::from),
    }
}

/// Python's `str(value)`; an undefined value is empty.
pub(super) fn text(value: &Value) -> Result<String, Error> {
    let mut out = String::new();
    match value.as_str() {
        Some(text) => out.push_str(text),
        None if value.is_undefined() => {}
        None => write_repr(&mut out, value)?,
    }
    Ok(out)
}

/// Python's `repr(value)`, which minijinja's differs from in floats and unprintable characters.
fn write_repr(out: &mut String, value: &Value) -> Result<(), Error> {
    match value.kind() {
        ValueKind::Number if !value.is_integer() => out.push_str(&float(value)),
        ValueKind::String => out.push_str(&python_quoted(value.as_str().unwrap_or_default())),
        ValueKind::Seq | ValueKind::Iterable => {
            let Written { open, items, close } = iterables::written(value)?;
            out.push_str(&open);
            for (idx, item) in items.iter().enumerate() {
                out.push_str(if idx > 0 { ", " } else { "" });
                write_repr(out, item)?;
            }
            out.push_str(close);
        }
        ValueKind::Map if is_dictionary(value) => {
            out.push('{');
            for (idx, key) in value.try_iter()?.enumerate() {
                out.push_str(if idx > 0 { ", " } else { "" });
                write_repr(out, &key)?;
                out.push_str(": ");
                write_repr(out, &value.get_item(&key)?)?;
            }
            out.push('}');
        }
        // Writing to a string cannot fail.
        ValueKind::Number | ValueKind::Bool | ValueKind::None => drop(write!(out, "{value:?}")),
        ValueKind::Undefined => out.push_str("Undefined"),
        // Python would print a memory address, or its own text for a namespace, a loop or a macro.
        _ => return Err(Error::new(ErrorKind::InvalidOperation, format!("{value:?} has no text"))),
    }
    Ok(())
}

fn float(value: &Value) -> String {
    match f64::try_from(value.clone()) {
        Ok(number) if number.is_nan() => "nan".to_owned(),
        Ok(number) if number.is_infinite() => if number > 0.0 { "inf" } else { "-inf" }.to_owned(),
        Ok(number) => python_float(number),
        Err(_) => value.to_string(),
    }
}

/// The filter `tojson(ensure_ascii=False, indent=None, separators=None, sort_keys=False)` of Transformers (utils/chat_template_utils.py), which
/// calls `json.dumps` with these arguments.
pub(super) fn tojson(value: &Value, arguments: Kwargs) -> Result<String, Error> {
    let indent: Option<Value> = arguments.get("indent")?;
    let separators: Option<Vec<String>> = arguments.get("separators")?;
    let layout = Layout {
        ensure_ascii: arguments.get::<Option<bool>>("ensure_ascii")?.unwrap_or(false),
        sort_keys: arguments.get::<Option<bool>>("sort_keys")?.unwrap_or(false),
        indent: match indent.filter(|indent| !indent.is_none()) {
            None => None,
            Some(indent) => match indent.as_str() {
                Some(text) => Some(text.to_owned()),
                None => Some(" ".repeat(usize::try_from(indent)?)),
            },
        },
        ..Layout::plain()
    };
    arguments.assert_all_used()?;
    let layout = match separators.as_deref() {
        Some([item, key]) => Layout { item: item.clone(), key: key.clone(), ..layout },
        Some(_) => return Err(Error::new(ErrorKind::InvalidOperation, "tojson: separators must be a pair")),
        // With an indent, Python leaves no space at the end of a line.
        None if layout.indent.is_some() => Layout { item: ",".to_owned(), ..layout },
        None => layout,
    };
    let mut out = String::new();
    write_json(&mut out, value, &layout, 0)?;
    Ok(out)
}

struct Layout {
    ensure_ascii: bool,
    sort_keys: bool,
    indent: Option<String>,
    item: String,
    key: String,
}

impl Layout {
    fn plain() -> Layout {
        Layout { ensure_ascii: false, sort_keys: false, indent: None, item: ", ".to_owned(), key: ": ".to_owned() }
    }
}

fn write_json(out: &mut String, value: &Value, layout: &Layout, depth: usize) -> Result<(), Error> {
    match value.kind() {
        ValueKind::None => out.push_str("null"),
        ValueKind::Bool => out.push_str(if value.is_true() { "true" } else { "false" }),
        ValueKind::Number if value.is_integer() => out.push_str(&value.to_string()),
        ValueKind::Number => out.push_str(match float(value).as_str() {
            "nan" => "NaN",
            "inf" => "Infinity",
            "-inf" => "-Infinity",
            number => number,
        }),
        ValueKind::String => write_string(out, value.as_str().unwrap_or_default(), layout.ensure_ascii),
        ValueKind::Seq | ValueKind::Iterable if iterables::name(value).is_none() => {
            let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
            write_items(out, "[]", &items, layout, depth, |out, item| write_json(out, item, layout, depth + 1))?;
        }
        ValueKind::Map if is_dictionary(value) => {
            let mut keys: Vec<Value> = value.try_iter()?.collect();
            if layout.sort_keys {
                keys.sort();
            }
            write_items(out, "{}", &keys, layout, depth, |out, key| {
                write_string(out, &json_key(key)?, layout.ensure_ascii);
                out.push_str(&layout.key);
                write_json(out, &value.get_item(key)?, layout, depth + 1)
            })?;
        }
        kind => {
            let name = iterables::name(value).map_or_else(|| format!("a value of kind {kind}"), str::to_owned);
            return Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: {name} has no JSON form")));
        }
    }
    Ok(())
}

/// Formats a key like json.dumps, which accepts only strings, numbers, booleans and None.
fn json_key(key: &Value) -> Result<String, Error> {
    match key.kind() {
        ValueKind::String => text(key),
        ValueKind::Number | ValueKind::Bool | ValueKind::None => {
            let mut out = String::new();
            write_json(&mut out, key, &Layout::plain(), 0)?;
            Ok(out)
        }
        kind => Err(Error::new(ErrorKind::InvalidOperation, format!("tojson: a key of kind {kind} has no JSON form"))),
    }
}

fn write_items(
    out: &mut String,
    brackets: &str,
    items: &[Value],
    layout: &Layout,
    depth: usize,
    mut write_item: impl FnMut(&mut String, &Value) -> Result<(), Error>,
) -> Result<(), Error> {
    let (open, close) = brackets.split_at(1);
    out.push_str(open);
    let new_line = |out: &mut String, depth: usize| {
        if let Some(indent) = &layout.indent {
            out.push('\n');
            out.push_str(&indent.repeat(depth));
        }
    };
    for (idx, item) in items.iter().enumerate() {
        if idx > 0 {
            out.push_str(&layout.item);
        }
        new_line(out, depth + 1);
        write_item(out, item)?;
    }
    if !items.is_empty() {
        new_line(out, depth);
    }
    out.push_str(close);
    Ok(())
}

fn write_string(out: &mut String, text: &str, ensure_ascii: bool) {
    out.push('"');
    for c in text.chars() {
        match c {
            '"' => out.push_str("\\\""),
            '\\' => out.push_str("\\\\"),
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            '\u{8}' => out.push_str("\\b"),
            '\u{c}' => out.push_str("\\f"),
            c if c < ' ' || (ensure_ascii && c > '~') => {
                for unit in c.encode_utf16(&mut [0; 2]) {
                    // Writing to a string cannot fail.
                    let _ = write!(out, "\\u{unit:04x}");
                }
            }
            c => out.push(c),
        }
    }
    out.push('"');
}

/// The variable that sets the time at which templates are rendered: https://reproducible-builds.org/specs/source-date-epoch/.
const MOMENT_VARIABLE: &str = "SOURCE_DATE_EPOCH";

/// Returns the time at which templates are rendered, in seconds since 1970, UTC: that of the environment variable, or that of the first call, so
/// that all templates of a process agree.
pub(super) fn now() -> crate::Result<u64> {
    static NOW: OnceLock<u64> = OnceLock::new();
    let now = match std::env::var(MOMENT_VARIABLE) {
        Ok(seconds) => moment(&seconds)?,
        Err(_) => SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_secs()),
    };
    Ok(*NOW.get_or_init(|| now))
}

/// Parses the value of the variable; Python's calendar ends with the year 9999.
fn moment(value: &str) -> crate::Result<u64> {
    const YEAR_10000: u64 = 253_402_300_800;
    let expected = match value.trim().parse() {
        Ok(seconds @ ..YEAR_10000) => return Ok(seconds),
        Ok(_) => "seconds since 1970 up to the year 9999, and no smaller unit",
        Err(_) => "whole seconds since 1970",
    };
    Err(crate::Error::usage(format!("{MOMENT_VARIABLE} is `{value}`; expected {expected}"))
        .cure("`date -d 2026-01-31 +%s` gives those of a day."))
}

/// Python's `datetime.strftime` in the C locale, for a time in UTC.
pub(super) fn strftime(seconds: u64, format: &str) -> Result<String, Error> {
    const MONTHS: [&str; 12] = [
        "January",
        "February",
        "March",
        "April",
        "May",
        "June",
        "July",
        "August",
        "September",
        "October",
        "November",
        "December",
    ];
    const DAYS: [&str; 7] = ["Thursday", "Friday", "Saturday", "Sunday", "Monday", "Tuesday", "Wednesday"];
    let (days, second_of_day) = (seconds / 86_400, seconds % 86_400);
    let (hour, minute, second) = (second_of_day / 3600, second_of_day / 60 % 60, second_of_day % 60);
    let [year, month, day] = date(days);
    // 1970 began on a Thursday.
    let week_day = DAYS[(days % 7) as usize];
    let month_name = MONTHS[month as usize - 1];
    let hour_12 = if hour % 12 == 0 { 12 } else { hour % 12 };
    let is_leap = year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400));
    // Counts as if February had 30 days, then subtracts the missing ones (Reingold, Dershowitz, Calendrical Calculations).
    let lacking = if month <= 2 { 0 } else { 2 - u64::from(is_leap) };
    let day_of_year = (367 * month - 362) / 12 + day - lacking;

    let mut out = String::new();
    let mut chars = format.chars();
    while let Some(c) = chars.next() {
        if c != '%' {
            out.push(c);
            continue;
        }
        let text = match chars.next() {
            Some('Y') => year.to_string(),
            Some('y') => format!("{:02}", year % 100),
            Some('m') => format!("{month:02}"),
            Some('d') => format!("{day:02}"),
            Some('e') => format!("{day:2}"),
            Some('j') => format!("{day_of_year:03}"),
            Some('B') => month_name.to_owned(),
            Some('b' | 'h') => month_name[..3].to_owned(),
            Some('A') => week_day.to_owned(),
            Some('a') => week_day[..3].to_owned(),
            Some('H') => format!("{hour:02}"),
            Some('I') => format!("{hour_12:02}"),
            Some('p') => if hour < 12 { "AM" } else { "PM" }.to_owned(),
            Some('M') => format!("{minute:02}"),
            Some('S') => format!("{second:02}"),
            Some('F') => format!("{year}-{month:02}-{day:02}"),
            Some('T') => format!("{hour:02}:{minute:02}:{second:02}"),
            Some('Z') => "UTC".to_owned(),
            Some('z') => "+0000".to_owned(),
            Some('%') => "%".to_owned(),
            // glibc's flag for "no padding", which templates use for the day.
            Some('-') => match chars.next() {
                Some('d' | 'e') => day.to_string(),
                Some('m') => month.to_string(),
                Some('H') => hour.to_string(),
                Some('I') => hour_12.to_string(),
                Some('M') => minute.to_string(),
                other => return Err(unknown_directive('-', other)),
            },
            other => return Err(unknown_directive('%', other)),
        };
        out.push_str(&text);
    }
    Ok(out)
}

fn unknown_directive(before: char, directive: Option<char>) -> Error {
    let directive = directive.map_or("the end".to_owned(), |c| c.to_string());
    Error::new(ErrorKind::InvalidOperation, format!("strftime_now: {directive} after {before} is not supported"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn json_is_spelled_as_in_python() {
        // json.dumps({"a": [1, 2.0, 1e16, 1e-5, 0.1], "b": "é\n<", "c": {}, "d": None, "e": True}, ensure_ascii=False)
        let value: serde_json::Value =
            serde_json::from_str(r#"{"a": [1, 2.0, 1e16, 1e-5, 0.1], "b": "é\n<", "c": {}, "d": null, "e": true}"#).unwrap();
        let value = from_json(&value);
        let mut env = minijinja::Environment::new();
        env.add_filter("tojson", tojson);
        let check = |expression: &str, expected: &str| {
            assert_eq!(env.render_str(expression, minijinja::context! { v => value.clone() }).unwrap(), expected, "{expression}");
        };
        check("{{ v|tojson }}", r#"{"a": [1, 2.0, 1e+16, 1e-05, 0.1], "b": "é\n<", "c": {}, "d": null, "e": true}"#);
        check("{{ v.b|tojson(ensure_ascii=True) }}", r#""\u00e9\n<""#);
        check("{{ v.a|tojson(indent=2) }}", "[\n  1,\n  2.0,\n  1e+16,\n  1e-05,\n  0.1\n]");
        check("{{ {'b': 1, 'a': []}|tojson(sort_keys=true, separators=(',', ':')) }}", r#"{"a":[],"b":1}"#);
    }

    #[test]
    fn floats_are_spelled_as_in_python() {
        for (x, expected) in [
            (0.0, "0.0"),
            (-0.0, "-0.0"),
            (123456789012345680.0, "1.2345678901234568e+17"),
            (1e15, "1000000000000000.0"),
            (0.0001, "0.0001"),
            (-2.5e-7, "-2.5e-07"),
            (1e300, "1e+300"),
        ] {
            assert_eq!(python_float(x), expected);
        }
    }

    #[test]
    fn dates_are_right_across_leap_years() {
        // date -u -d @951782400
        let check = |seconds, format: &str, expected: &str| assert_eq!(strftime(seconds, format).unwrap(), expected);
        check(951_782_400, "%d %b %Y, %A %j", "29 Feb 2000, Tuesday 060");
        check(0, "%Y-%m-%d %H:%M:%S %a", "1970-01-01 00:00:00 Thu");
        check(1_735_689_599, "%B %-d, %Y %I:%M %p %%", "December 31, 2024 11:59 PM %");
        assert!(strftime(0, "%Q").is_err());
        // datetime.date(year, 1, 1) + datetime.timedelta(n) for all days of the year.
        for (year, first, n_days) in [(2023, 19_358, 365), (2024, 19_723, 366), (2100, 47_482, 365)] {
            for n in 0..n_days {
                check((first + n) * 86_400, "%Y %j", &format!("{year} {:03}", n + 1));
            }
        }
    }

    #[test]
    fn a_moment_is_in_seconds_and_in_the_calendar() {
        assert_eq!(moment(" 1764201600\n").unwrap(), 1_764_201_600);
        let last = moment("253402300799").unwrap();
        assert_eq!(strftime(last, "%d %b %Y %H:%M:%S").unwrap(), "31 Dec 9999 23:59:59");
        for (value, said) in [
            ("253402300800", "no smaller unit"),
            ("1764201600000", "SOURCE_DATE_EPOCH is `1764201600000`; expected seconds since 1970"),
            ("18446744073709551615", "up to the year 9999"),
            ("18446744073709551616", "whole seconds"),
            ("-1", "whole seconds"),
            ("", "whole seconds"),
        ] {
            let error = moment(value).unwrap_err().to_string();
            assert!(error.contains(said), "{value}: {error}");
        }
    }
}
