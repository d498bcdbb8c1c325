//! Filters that differ between minijinja and Jinja, and those that Transformers adds.
//!
//! Most of the former differ in one point only: values that are not text are formatted by Python's `str`, so that `1e16 | upper` is `1E+16`.
//! Filters over lists return generators in Jinja, which are true even if empty, and can be consumed only once. Not supported: `attr` and `pprint`,
//! which templates do not need and in which minijinja differs from Jinja, and filters that Jinja does not have.

use std::borrow::Cow;
use std::fmt;
use std::sync::Arc;

use minijinja::formatting::FormatStyle;
use minijinja::value::{Kwargs, Object, ObjectRepr, Rest, StringInput, Value, ValueKind, ValueOrKwargs};
use minijinja::{Environment, Error, ErrorKind, State, filters};

use super::iterables::{self, Generator};
use super::methods::{self, strip};
use super::python::{self, text};
use super::syntax;

pub(super) fn add(environment: &mut Environment<'static>) {
    environment.add_filter("tojson", python::tojson);
    environment.add_filter("string", text);
    environment.add_filter("item", item);
    environment.add_filter("attribute", attribute);
    environment.add_filter("sliceable", sliceable);
    environment.add_filter("plus", plus);
    environment.add_filter("int", int);
    environment.add_filter("float", float);
    for name in ["default", "d"] {
        environment.add_filter(name, default);
    }
    environment.add_filter("join", join);
    environment.add_filter("trim", |value: &Value, chars: Option<&str>| Ok(strip(&text(value)?, chars, true, true).to_owned()));
    environment.add_filter("upper", |value: &Value| Ok(text(value)?.to_uppercase()));
    environment.add_filter("lower", |value: &Value| Ok(text(value)?.to_lowercase()));
    environment.add_filter("title", |value: &Value| Ok(filters::title(text(value)?.into())));
    environment.add_filter("capitalize", |state: &State, value: &Value| {
        Ok(filters::capitalize(StringInput::new(state, &Value::from(text(value)?))?))
    });
    environment.add_filter("replace", replace);
    environment.add_filter("indent", indent);
    for name in ["escape", "e"] {
        environment.add_filter(name, escape);
    }
    // Filters that Jinja does not have, or in which minijinja differs from it.
    for name in ["attr", "pprint", "chain", "zip", "lines", "split", "bool"] {
        environment.remove_filter(name);
    }
    type Rests = Rest<ValueOrKwargs>;
    let of_items = |source: &Value, found: Value| Ok::<_, Error>(Generator::over(source, items(&found)?));
    environment.add_filter("select", |state: &mut State, list: Value, test: Option<Cow<str>>, args: Rests| {
        Ok::<_, Error>(Generator::over(&list, filters::select(state, list.clone(), test, args)?))
    });
    environment.add_filter("reject", |state: &mut State, list: Value, test: Option<Cow<str>>, args: Rests| {
        Ok::<_, Error>(Generator::over(&list, filters::reject(state, list.clone(), test, args)?))
    });
    environment.add_filter("selectattr", |state: &mut State, list: Value, key: Cow<str>, test: Option<Cow<str>>, args: Rests| {
        Ok::<_, Error>(Generator::over(&list, filters::selectattr(state, list.clone(), key, test, args)?))
    });
    environment.add_filter("rejectattr", |state: &mut State, list: Value, key: Cow<str>, test: Option<Cow<str>>, args: Rests| {
        Ok::<_, Error>(Generator::over(&list, filters::rejectattr(state, list.clone(), key, test, args)?))
    });
    environment.add_filter("map", |state: &mut State, list: Value, args: Rests| {
        Ok::<_, Error>(Generator::over(&list, filters::map(state, list.clone(), args)?))
    });
    environment.add_filter("unique", move |state: &State, list: Value, kwargs: Kwargs| {
        of_items(&list, filters::unique(state, list.clone(), kwargs)?)
    });
    environment.add_filter("batch", move |state: &State, list: Value, n: usize, fill: Option<Value>| {
        of_items(&list, filters::batch(state, list.clone(), n, fill)?)
    });
    environment.add_filter("slice", move |state: &State, list: Value, n: usize, fill: Option<Value>| {
        of_items(&list, filters::slice(state, list.clone(), n, fill)?)
    });
    environment.add_filter("items", move |map: &Value| of_items(map, filters::items(map)?));
    // Python reverses anything with a length lazily; Jinja makes a list of other iterables.
    environment.add_filter("reverse", move |list: &Value| match list.kind() {
        ValueKind::String | ValueKind::Undefined => filters::reverse(list),
        _ if Generator::is(list) => Ok(Value::from(items(&filters::reverse(list)?)?)),
        _ => of_items(list, filters::reverse(list)?),
    });
    environment.add_filter("last", |list: Value| match Generator::is(&list) {
        true => Err(Error::new(ErrorKind::InvalidOperation, "a generator has no last item; use `| list` to make it a list")),
        false => filters::last(list),
    });
    environment.add_filter("format", |format: &str, args: Rest<ValueOrKwargs>| {
        methods::format(FormatStyle::Printf, format, &args.into_values())
    });
}

/// Collects the items of an iterable.
fn items(iterable: &Value) -> Result<Vec<Value>, Error> {
    iterable.try_iter()?.checked().collect()
}

/// Evaluates `value[key]` for a key that is the name of a method: Jinja returns the method if there is no such key, so `schema['items']` is never
/// false.
fn item(value: &Value, key: &str) -> Result<Value, Error> {
    let found = value.get_item(&Value::from(key))?;
    Ok(if found.is_undefined() { Method::of(value, key).unwrap_or(found) } else { found })
}

/// Evaluates `value.key` for a key that is the name of a method: Jinja looks up the key only if there is no such method. A method that the sandbox
/// forbids is undefined.
fn attribute(value: &Value, key: &str) -> Result<Value, Error> {
    match Method::of(value, key) {
        Some(method) => Ok(method),
        None if syntax::is_forbidden(value, key) => Ok(Value::UNDEFINED),
        None => value.get_attr(key),
    }
}

/// Returns the operand of a slice, or an error for values that Python cannot slice.
fn sliceable(value: Value) -> Result<Value, Error> {
    let refused = |name: &str| Err(Error::new(ErrorKind::InvalidOperation, format!("{name} cannot be sliced")));
    match (iterables::name(&value), value.kind()) {
        (Some(name), _) => refused(&format!("{name}, which is no list here,")),
        (None, ValueKind::Undefined) => Err(Error::from(ErrorKind::UndefinedError)),
        (None, ValueKind::None) => refused("`none`"),
        (None, _) => Ok(value),
    }
}

/// A method that has not been called: it is true and defined, but cannot be printed.
struct Method {
    of: Value,
    name: String,
}

impl Method {
    fn of(value: &Value, name: &str) -> Option<Value> {
        let is_method = syntax::is_method(value, name);
        is_method.then(|| Value::from_object(Method { of: value.clone(), name: name.to_owned() }))
    }
}

impl fmt::Debug for Method {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "the method `{}`", self.name)
    }
}

impl Object for Method {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Plain
    }

    fn call(self: &Arc<Self>, state: &mut State<'_, '_>, args: &[Value]) -> Result<Value, Error> {
        self.of.call_method(state, &self.name, args)
    }
}

/// Adds two values. If one of them is a `safe` text, the other text is escaped, and the result is `safe`.
fn plus(state: &State, left: Value, right: Value) -> Result<Value, Error> {
    match (left.as_str(), right.as_str()) {
        (Some(_), Some(_)) if left.is_safe() || right.is_safe() => {
            let (left, right) = (escape(&left)?, escape(&right)?);
            Ok(Value::from_safe_string(text(&left)? + &text(&right)?))
        }
        _ => state.env().compile_expression("a + b")?.eval(minijinja::context! { a => left, b => right }),
    }
}

/// Python's `int`, with a fallback to `float` for texts; returns the default for anything that is no number.
fn int(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = given(&positional, &kwargs, 0, "default")?;
    kwargs.assert_all_used()?;
    if positional.len() > 1 {
        return Err(Error::new(ErrorKind::TooManyArguments, "`int` with a base is not read"));
    }
    let whole = |float: f64| match float.is_finite() {
        true if float.abs() < 1e38 => Ok(Some(Value::from(float.trunc() as i128))),
        true => Err(Error::new(ErrorKind::InvalidOperation, format!("`int` of {float} has more digits than are read here"))),
        false => Ok(None),
    };
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => {
            let digits = plain_number(text);
            match (digits.parse::<i128>(), digits.parse()) {
                (Ok(integer), _) => Some(Value::from(integer)),
                (_, Ok(float)) => whole(float)?,
                _ => None,
            }
        }
        (_, ValueKind::Bool) => Some(Value::from(i64::from(value.is_true()))),
        (_, ValueKind::Number) if value.is_integer() => Some(value.clone()),
        (_, ValueKind::Number) => f64::try_from(value.clone()).ok().map(whole).transpose()?.flatten(),
        (_, ValueKind::Undefined) => return Err(Error::from(ErrorKind::UndefinedError)),
        _ => None,
    };
    Ok(found.unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0))))
}

/// Python's `float`; returns the default for anything that is no number.
fn float(value: &Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let default = given(&positional, &kwargs, 0, "default")?;
    kwargs.assert_all_used()?;
    let found = match (value.as_str(), value.kind()) {
        (Some(text), _) => plain_number(text).parse::<f64>().ok(),
        (_, ValueKind::Bool) => Some(if value.is_true() { 1.0 } else { 0.0 }),
        (_, ValueKind::Undefined) => return Err(Error::from(ErrorKind::UndefinedError)),
        _ => f64::try_from(value.clone()).ok(),
    };
    Ok(found.map(Value::from).unwrap_or_else(|| default.unwrap_or_else(|| Value::from(0.0))))
}

/// Normalises a number in a text as Python reads it: with white space around it, and with `_` between digits.
fn plain_number(text: &str) -> String {
    let text = strip(text, None, true, true);
    let is_digit = |at: usize| text.as_bytes().get(at).is_some_and(u8::is_ascii_digit);
    let is_between = |at: usize| at > 0 && is_digit(at - 1) && is_digit(at + 1);
    text.char_indices().filter(|&(at, c)| c != '_' || !is_between(at)).map(|(_, c)| c).collect()
}

/// Returns an argument by position or name. (`Option<Value>` would not distinguish an explicit `none` from an absent argument.)
fn given(positional: &Rest<Value>, kwargs: &Kwargs, nth: usize, name: &str) -> Result<Option<Value>, Error> {
    match positional.get(nth) {
        Some(value) => Ok(Some(value.clone())),
        None if kwargs.has(name) => kwargs.get::<Value>(name).map(Some),
        None => Ok(None),
    }
}

fn default(value: Value, positional: Rest<Value>, kwargs: Kwargs) -> Result<Value, Error> {
    let other = given(&positional, &kwargs, 0, "default_value")?;
    let boolean = given(&positional, &kwargs, 1, "boolean")?.is_some_and(|boolean| boolean.is_true());
    if positional.len() > 2 {
        return Err(Error::from(ErrorKind::TooManyArguments));
    }
    kwargs.assert_all_used()?;
    let is_missing = value.is_undefined() || (boolean && !value.is_true());
    Ok(if is_missing { other.unwrap_or_else(|| Value::from("")) } else { value })
}

/// Escapes like markupsafe. Nothing else here escapes anything.
fn escape(value: &Value) -> Result<Value, Error> {
    if value.is_safe() {
        return Ok(value.clone());
    }
    let text = text(value)?.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;");
    Ok(Value::from_safe_string(text.replace('\'', "&#39;").replace('"', "&#34;")))
}

/// Jinja's `indent`: indents all lines except the first and blank ones, unless requested.
fn indent(value: &str, width: Option<Value>, first: Option<bool>, blank: Option<bool>, kwargs: Kwargs) -> Result<String, Error> {
    let width = width.map_or_else(|| kwargs.get::<Option<Value>>("width"), |width| Ok(Some(width)))?;
    let first = first.map_or_else(|| kwargs.get::<Option<bool>>("first"), |first| Ok(Some(first)))?.unwrap_or(false);
    let blank = blank.map_or_else(|| kwargs.get::<Option<bool>>("blank"), |blank| Ok(Some(blank)))?.unwrap_or(false);
    kwargs.assert_all_used()?;
    let space = match width {
        None => " ".repeat(4),
        Some(width) => match width.as_str() {
            Some(text) => text.to_owned(),
            None => " ".repeat(usize::try_from(width)?.min(1 << 10)),
        },
    };
    let value = format!("{value}\n");
    let is_indented = |idx: usize, line: &str| if idx == 0 { first } else { blank || !line.is_empty() };
    let line = |(idx, line)| if is_indented(idx, line) { format!("{space}{line}") } else { line.to_owned() };
    Ok(methods::lines(&value, false).into_iter().enumerate().map(line).collect::<Vec<_>>().join("\n"))
}

fn join(value: &Value, mark: Option<Value>, attribute: Option<Value>, kwargs: Kwargs) -> Result<String, Error> {
    let mark = match mark {
        Some(mark) => mark,
        None => kwargs.get::<Option<Value>>("d")?.unwrap_or_default(),
    };
    let attribute = match attribute {
        Some(attribute) => Some(attribute),
        None => kwargs.get::<Option<Value>>("attribute")?,
    };
    kwargs.assert_all_used()?;
    let mark = text(&mark)?;
    let mut out = String::new();
    for (idx, item) in value.try_iter()?.checked().enumerate() {
        let item = item?;
        out.push_str(if idx > 0 { &mark } else { "" });
        out.push_str(&text(&attribute.as_ref().map_or(Ok(item.clone()), |path| attribute_of(&item, path))?)?);
    }
    Ok(out)
}

/// Resolves Jinja's attribute paths, such as `a.b.0`.
fn attribute_of(item: &Value, path: &Value) -> Result<Value, Error> {
    let Some(path) = path.as_str() else { return item.get_item(path) };
    path.split('.').try_fold(item.clone(), |value, key| match key.parse::<usize>() {
        Ok(idx) => value.get_item_by_index(idx),
        Err(_) => value.get_attr(key),
    })
}

fn replace(value: &Value, old: &Value, new: &Value, count: Option<i64>, kwargs: Kwargs) -> Result<String, Error> {
    let count = match count {
        Some(count) => Some(count),
        None => kwargs.get::<Option<i64>>("count")?,
    };
    kwargs.assert_all_used()?;
    let (value, old, new) = (text(value)?, text(old)?, text(new)?);
    Ok(match count.and_then(|count| usize::try_from(count).ok()) {
        Some(count) => value.replacen(&old, &new, count),
        None => value.replace(&old, &new),
    })
}
