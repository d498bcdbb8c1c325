//! Python's methods of strings, lists and dictionaries that minijinja lacks or implements differently.
//!
//! Methods that Transformers' sandbox forbids (`append`, `pop`, `update`) are refused here, too, and an unknown method is an error that names it.

use minijinja::formatting::{self, FormatStyle};
use minijinja::value::{Kwargs, Tuple, Value, ValueKind, from_args};
use minijinja::{Error, ErrorKind, State};
use minijinja_contrib::pycompat;

use super::iterables::{View, is_dictionary};
use super::python;
use super::syntax;

/// The callback for `Environment::set_unknown_method_callback`.
pub(super) fn call(state: &mut State, value: &Value, method: &str, args: &[Value]) -> Result<Value, Error> {
    let found = match (value.kind(), value.as_str()) {
        (ValueKind::String, Some(text)) => of_string(text, method, args)?,
        (ValueKind::Seq, _) if method == "index" => {
            let (wanted,): (&Value,) = from_args(args)?;
            let at = value.try_iter()?.position(|item| item == *wanted);
            let absent = || Error::new(ErrorKind::InvalidOperation, format!("{wanted:?} is not in the list"));
            Some(Value::from(at.ok_or_else(absent)?))
        }
        // A namespace, a loop or a macro has no methods of a dictionary.
        (ValueKind::Map, _) if !is_dictionary(value) => return Err(Error::from(ErrorKind::UnknownMethod)),
        (ValueKind::Map, _) if let Some(view) = View::of(value, method) => {
            let () = from_args(args)?;
            Some(view)
        }
        (ValueKind::Seq | ValueKind::Map, _) if method == "copy" => {
            let () = from_args(args)?;
            Some(value.clone())
        }
        _ => None,
    };
    match found {
        Some(found) => Ok(found),
        None if syntax::is_forbidden(value, method) => Err(Error::new(
            ErrorKind::InvalidOperation,
            format!(
                "`{method}` would change a {}, which the sandbox refuses in which Transformers runs chat templates",
                if value.kind() == ValueKind::Map { "dictionary" } else { "list" }
            ),
        )),
        None => pycompat::unknown_method_callback(state, value, method, args),
    }
}

/// Implements `"..".format(..)`, and the filter `format` with `%` directives.
pub(super) fn format(style: FormatStyle, format: &str, args: &[Value]) -> Result<Value, Error> {
    // Whether a field has a format specification besides the name of its value.
    let says_more = |field: &str| match style {
        FormatStyle::StrFormat => field.split('}').next().is_some_and(|field| field.contains([':', '!', '.', '['])),
        FormatStyle::Printf => !field.starts_with('s') && !field.is_empty(),
    };
    let mark = if matches!(style, FormatStyle::StrFormat) { '{' } else { '%' };
    // A plain field formats its value by Python's `str`. Keyword arguments are a single value of a special kind.
    let is_plain = !format.split(mark).skip(1).any(says_more);
    let spelled = |arg: &Value| if is_plain && !arg.is_kwargs() { python::text(arg).map(Value::from) } else { Ok(arg.clone()) };
    let args = args.iter().map(spelled).collect::<Result<Vec<_>, _>>()?;
    formatting::format(style, format, &args).map(Value::from)
}

fn of_string(text: &str, method: &str, args: &[Value]) -> Result<Option<Value>, Error> {
    let outer = |begin: bool, end: bool| {
        let (chars,): (Option<&str>,) = from_args(args)?;
        Ok::<_, Error>(Value::from(strip(text, chars, begin, end)))
    };
    let three = |parts: [&str; 3]| Value::from(Tuple::from(parts.map(Value::from)));
    let around = |at: Option<usize>, mark: &str| at.map(|at| three([&text[..at], mark, &text[at + mark.len()..]]));
    Ok(Some(match method {
        "strip" => outer(true, true)?,
        "lstrip" => outer(true, false)?,
        "rstrip" => outer(false, true)?,
        "removeprefix" => {
            let (mark,): (&str,) = from_args(args)?;
            Value::from(text.strip_prefix(mark).unwrap_or(text))
        }
        "removesuffix" => {
            let (mark,): (&str,) = from_args(args)?;
            Value::from(text.strip_suffix(mark).unwrap_or(text))
        }
        "partition" => {
            let (mark,): (&str,) = from_args(args)?;
            around(text.find(mark), mark).unwrap_or_else(|| three([text, "", ""]))
        }
        "rpartition" => {
            let (mark,): (&str,) = from_args(args)?;
            around(text.rfind(mark), mark).unwrap_or_else(|| three(["", "", text]))
        }
        "split" | "rsplit" => split(text, method == "rsplit", args)?,
        "splitlines" => {
            let (keeps_ends,): (Option<bool>,) = from_args(args)?;
            lines(text, keeps_ends.unwrap_or(false)).into_iter().map(Value::from).collect()
        }
        "index" => {
            let (mark,): (&str,) = from_args(args)?;
            let absent = || Error::new(ErrorKind::InvalidOperation, format!("`{mark}` is not in the string"));
            Value::from(text.find(mark).map(|at| text[..at].chars().count()).ok_or_else(absent)?)
        }
        "title" => {
            let () = from_args(args)?;
            Value::from(title(text))
        }
        "format" => format(FormatStyle::StrFormat, text, args)?,
        "join" => {
            let (items,): (&Value,) = from_args(args)?;
            let items = items.try_iter()?.checked().map(|item| python::text(&item?)).collect::<Result<Vec<_>, _>>()?;
            Value::from(items.join(text))
        }
        "casefold" => {
            let () = from_args(args)?;
            Value::from(text.to_lowercase().replace('ß', "ss"))
        }
        "isdigit" | "isnumeric" | "isalpha" | "isalnum" => {
            let () = from_args(args)?;
            Value::from(is_all(text, method)?)
        }
        "zfill" => {
            let (width,): (usize,) = from_args(args)?;
            let (sign, digits) = text.split_at(usize::from(text.starts_with(['-', '+'])));
            let zeros = width.min(1 << 16).saturating_sub(text.chars().count());
            Value::from(format!("{sign}{}{digits}", "0".repeat(zeros)))
        }
        _ => return Ok(None),
    }))
}

/// Whether the text is non-empty and all its characters are digits, numbers, letters, or letters and numbers. Python uses Unicode properties that
/// Rust's standard library lacks: in Python vowel signs are not letters, and some letters are numbers.
fn is_all(text: &str, method: &str) -> Result<bool, Error> {
    let is_letter = |c: char| {
        matches!(c, '\u{c0}'..='\u{24f}' | '\u{388}'..='\u{481}' | '\u{48a}'..='\u{52f}' | '\u{3041}'..='\u{3096}'
            | '\u{30a1}'..='\u{30fa}' | '\u{3400}'..='\u{4dbf}' | '\u{4e00}'..='\u{9fff}' | '\u{ac00}'..='\u{d7a3}')
    };
    // Python's result for one character, if it is known.
    let is = |c: char| match method {
        _ if !c.is_alphanumeric() => Some(false),
        "isdigit" if !c.is_numeric() => Some(false),
        "isdigit" | "isnumeric" => {
            c.is_ascii().then(|| c.is_ascii_digit()).or((!c.is_numeric() && c < '\u{3000}').then_some(false))
        }
        "isalpha" if c.is_numeric() && c.is_ascii() => Some(false),
        _ => (c.is_ascii() || (is_letter(c) && c.is_alphabetic())).then_some(true),
    };
    let found: Vec<Option<bool>> = text.chars().map(is).collect();
    match text.chars().zip(&found).find(|(_, is)| is.is_none()) {
        _ if found.contains(&Some(false)) => Ok(false),
        Some((c, _)) => Err(Error::new(ErrorKind::InvalidOperation, format!("{method}: the character {c} is not supported"))),
        None => Ok(!found.is_empty()),
    }
}

pub(super) fn strip<'a>(text: &'a str, chars: Option<&str>, begin: bool, end: bool) -> &'a str {
    let is_stripped = |c: char| chars.map_or_else(|| is_space(c), |chars| chars.contains(c));
    let text = if begin { text.trim_start_matches(is_stripped) } else { text };
    if end { text.trim_end_matches(is_stripped) } else { text }
}

/// Whether Python treats the character as white space: as in Unicode, plus four ASCII separators.
fn is_space(c: char) -> bool {
    c.is_whitespace() || ('\u{1c}'..='\u{1f}').contains(&c)
}

fn split(text: &str, from_right: bool, args: &[Value]) -> Result<Value, Error> {
    let (mark, max, kwargs): (Option<&str>, Option<i64>, Kwargs) = from_args(args)?;
    let mark = mark.or(kwargs.get("sep")?);
    let max: Option<i64> = max.or(kwargs.get("maxsplit")?);
    kwargs.assert_all_used()?;
    let max = max.and_then(|max| usize::try_from(max).ok()).unwrap_or(usize::MAX);
    if mark == Some("") {
        return Err(Error::new(ErrorKind::InvalidOperation, "split: the separator is empty"));
    }
    let mut parts: Vec<&str> = Vec::new();
    let mut rest = text;
    // The range of the next separator: the given one, or a white-space character.
    let next = |rest: &str| match mark {
        Some(mark) => if from_right { rest.rfind(mark) } else { rest.find(mark) }.map(|at| (at, at + mark.len())),
        None => {
            let is_in = |(at, c): (usize, char)| is_space(c).then_some((at, at + c.len_utf8()));
            if from_right { rest.char_indices().rev().find_map(is_in) } else { rest.char_indices().find_map(is_in) }
        }
    };
    let trimmed = |rest: &'_ str| -> (usize, usize) {
        let begin = rest.len() - rest.trim_start_matches(is_space).len();
        (begin, rest.trim_end_matches(is_space).len().max(begin))
    };
    if mark.is_none() {
        let (begin, end) = trimmed(rest);
        // Without any split, Python keeps the spaces at the far end.
        rest = if max == 0 && !from_right {
            &rest[begin..]
        } else if max == 0 {
            &rest[..end]
        } else {
            &rest[begin..end]
        };
        if rest.is_empty() {
            return Ok(Value::from(Vec::<Value>::new()));
        }
    }
    while parts.len() < max
        && let Some((begin, end)) = next(rest)
    {
        let (before, after) = (&rest[..begin], &rest[end..]);
        let (part, other) = if from_right { (after, before) } else { (before, after) };
        rest = other;
        if mark.is_none() {
            rest = if from_right { rest.trim_end_matches(is_space) } else { rest.trim_start_matches(is_space) };
        }
        parts.push(part);
    }
    // After the maximum number of splits, Python keeps the spaces at the far end.
    if mark.is_none() && parts.len() == max && max > 0 {
        let (begin, end) = trimmed(text);
        rest = if from_right { &text[..begin + rest.len()] } else { &text[end - rest.len()..] };
    }
    parts.push(rest);
    if from_right {
        parts.reverse();
    }
    Ok(parts.into_iter().map(Value::from).collect())
}

/// Python's `title`, for which a word begins after every character that is not a letter.
fn title(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut is_inside = false;
    for c in text.chars() {
        if is_inside {
            out.extend(c.to_lowercase())
        } else {
            out.extend(c.to_uppercase())
        }
        is_inside = c.is_lowercase() || c.is_uppercase();
    }
    out
}

pub(super) fn lines(text: &str, keeps_ends: bool) -> Vec<&str> {
    let is_end =
        |c: char| matches!(c, '\n' | '\r' | '\u{b}' | '\u{c}' | '\u{1c}'..='\u{1e}' | '\u{85}' | '\u{2028}' | '\u{2029}');
    let (mut lines, mut rest) = (Vec::new(), text);
    while let Some(at) = rest.find(is_end) {
        let len = if rest[at..].starts_with("\r\n") { 2 } else { rest[at..].chars().next().map_or(0, char::len_utf8) };
        lines.push(&rest[..if keeps_ends { at + len } else { at }]);
        rest = &rest[at + len..];
    }
    if !rest.is_empty() {
        lines.push(rest);
    }
    lines
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The expected values are what Python 3.11 prints for the same expressions.
    #[test]
    fn methods_do_what_pythons_do() {
        let mut environment = minijinja::Environment::new();
        environment.set_unknown_method_callback(call);
        environment.set_formatter(crate::tokens::python::write);
        for (expression, expected) in [
            (r#"" \x1ca\xa0 ".strip()"#, "a"),
            (r#""xxaxx".lstrip("x")"#, "axx"),
            (r#""a b  c ".split()"#, "['a', 'b', 'c']"),
            (r#"" a b  c ".split(none, 1)"#, "['a', 'b  c ']"),
            (r#"" a b  c ".rsplit(none, 1)"#, "[' a b', 'c']"),
            (r#""a,b,,c".split(",", 2)"#, "['a', 'b', ',c']"),
            (r#""a,b,,c".split(",", maxsplit=1)"#, "['a', 'b,,c']"),
            (r#""a,b,,c".rsplit(",", 1)"#, "['a,b,', 'c']"),
            (r#""".split(",")"#, "['']"),
            (r#""".split()"#, "[]"),
            (r#""  ".split()"#, "[]"),
            (r#""a</think>b</think>c".split("</think>")[-1]"#, "c"),
            (r#""a\rb\r\nc\x0bd\u2028e\n".splitlines()"#, "['a', 'b', 'c', 'd', 'e']"),
            (r#""a\r\nb".splitlines(true)"#, r"['a\r\n', 'b']"),
            (r#""a=b=c".partition("=")[2]"#, "b=c"),
            (r#""a=b=c".rpartition("=")[0]"#, "a=b"),
            (r#""abc".partition("=") | length"#, "3"),
            (r#""abc".removeprefix("a").removesuffix("c")"#, "b"),
            (r#""-7".zfill(4)"#, "-007"),
            (r#""it's a_b ÉT".title()"#, "It'S A_B Ét"),
            (r#""{}: {} {a}".format(1e16, [1e-7], a="x")"#, "1e+16: [1e-07] x"),
            (r#""{:.2f}|{:>3}".format(2.5, 1)"#, "2.50|  1"),
            (r#"", ".join(["a", "b"])"#, "a, b"),
            (r#""café".index("é")"#, "3"),
            (r#"[1, 2].index(2)"#, "1"),
            (r#"{"a": 1}.copy()"#, "{'a': 1}"),
        ] {
            // Template syntax has no \x and \u, but the source may contain the characters.
            let source = expression.replace(r"\x1c", "\u{1c}").replace(r"\xa0", "\u{a0}").replace(r"\x0b", "\u{b}");
            let source = source.replace(r"\u2028", "\u{2028}");
            assert_eq!(environment.render_str(&format!("{{{{ {source} }}}}"), ()).unwrap(), expected, "{expression}");
        }
        for (source, said) in
            [("{{ [1].append(2) }}", "`append` would change a list"), ("{{ {}.pop('a') }}", "`pop` would change a dictionary")]
        {
            let error = environment.render_str(source, ()).unwrap_err().to_string();
            assert!(error.contains(said), "{error}");
        }
    }
}
