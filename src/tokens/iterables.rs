//! Python's iterables other than lists: generators, dictionary views and `range`.
//!
//! minijinja has a single kind of iterable for all of them, which restarts on every use, can be indexed, and prints as a list. In Python a
//! generator can be consumed only once, only `range` can be indexed, and each prints differently.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use minijinja::value::{DynObject, Enumerator, Object, ObjectRepr, Rest, Tuple, Value, ValueKind};
use minijinja::{Error, ErrorKind};

/// The result of a filter such as `map`: each item can be taken only once.
#[derive(Debug)]
pub(super) struct Generator(Mutex<Left>);

/// The remaining state of a generator.
#[derive(Debug, Default)]
struct Left {
    items: VecDeque<Value>,
    /// Whether its end was reached.
    is_done: bool,
    /// The generator that another filter made of this one; consuming it in Python also consumes this one.
    lent_to: Option<Arc<Generator>>,
}

impl Generator {
    /// Makes a generator of the items that a filter made from `source`. If that is a generator, it lends its items to the new one.
    pub(super) fn over(source: &Value, items: impl IntoIterator<Item = Value>) -> Value {
        let generator = Arc::new(Generator(Mutex::new(Left { items: items.into_iter().collect(), ..Left::default() })));
        if let Some(source) = source.downcast_object_ref::<Generator>() {
            source.rest().lent_to = Some(generator.clone());
        }
        Value::from_dyn_object(generator)
    }

    pub(super) fn is(value: &Value) -> bool {
        value.downcast_object_ref::<Generator>().is_some()
    }

    fn rest(&self) -> MutexGuard<'_, Left> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn is_done(&self) -> bool {
        let rest = self.rest();
        rest.is_done && rest.lent_to.as_ref().is_none_or(|other| other.is_done())
    }
}

impl Object for Generator {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Iter(Box::new(Drain { generator: self.clone(), is_refused: false }))
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        None
    }

    fn is_true(self: &Arc<Self>) -> bool {
        true
    }
}

struct Drain {
    generator: Arc<Generator>,
    is_refused: bool,
}

impl Iterator for Drain {
    type Item = Value;

    fn next(&mut self) -> Option<Value> {
        let mut rest = self.generator.rest();
        // Python would still have items here that were lent to the other generator.
        if rest.lent_to.as_ref().is_some_and(|other| !other.is_done()) && !self.is_refused {
            self.is_refused = true;
            let message = "a generator is consumed while one of its filters is unfinished; use `| list` to make it a list";
            return Some(Value::from(Error::new(ErrorKind::InvalidOperation, message)));
        }
        let item = rest.items.pop_front();
        rest.is_done |= item.is_none();
        item
    }

    /// Required by `loop.last` and `loop.length`, which Jinja supports for generators, too.
    fn size_hint(&self) -> (usize, Option<usize>) {
        let n_left = self.generator.rest().items.len();
        (n_left, Some(n_left))
    }
}

/// The result of a dictionary's methods `keys`, `values` and `items`.
#[derive(Debug)]
pub(super) struct View {
    of: DynObject,
    what: What,
}

#[derive(Debug, Clone, Copy)]
enum What {
    Keys,
    Values,
    Items,
}

impl View {
    /// Calls `method` of the dictionary, if it is one that returns a view.
    pub(super) fn of(dictionary: &Value, method: &str) -> Option<Value> {
        let what = match method {
            "keys" => What::Keys,
            "values" => What::Values,
            "items" => What::Items,
            _ => return None,
        };
        Some(Value::from_object(View { of: dictionary.as_object()?.clone(), what }))
    }

    /// The name that begins Python's text of the view.
    fn name(&self) -> &'static str {
        match self.what {
            What::Keys => "dict_keys",
            What::Values => "dict_values",
            What::Items => "dict_items",
        }
    }
}

impl Object for View {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Iterable
    }

    fn get_value(self: &Arc<Self>, _: &Value) -> Option<Value> {
        Some(Value::UNDEFINED)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        let part = |(key, value)| match self.what {
            What::Keys => key,
            What::Values => value,
            What::Items => Value::from(Tuple::from([key, value])),
        };
        Enumerator::Values(self.of.try_iter_pairs().into_iter().flatten().map(part).collect())
    }

    fn enumerator_len(self: &Arc<Self>) -> Option<usize> {
        self.of.enumerator_len()
    }
}

/// Python's `range`.
#[derive(Debug)]
pub(super) struct Range {
    begin: i64,
    end: i64,
    step: i64,
    len: usize,
}

/// The function `range`, as in Jinja's sandbox.
pub(super) fn range(arguments: Rest<Value>) -> Result<Value, Error> {
    const MAX_LEN: u128 = 100_000;
    let refused = |message: String| Error::new(ErrorKind::InvalidOperation, format!("range: {message}"));
    let whole = |value: &Value| match value.kind() {
        ValueKind::Number if value.is_integer() => i64::try_from(value.clone()),
        ValueKind::Bool => Ok(i64::from(value.is_true())),
        kind => Err(refused(format!("expected an integer, found a value of kind {kind}"))),
    };
    let numbers = arguments.iter().map(whole).collect::<Result<Vec<_>, _>>()?;
    let (begin, end, step) = match numbers[..] {
        [end] => (0, end, 1),
        [begin, end] => (begin, end, 1),
        [begin, end, step] if step != 0 => (begin, end, step),
        [_, _, _] => return Err(refused("the step is 0".to_owned())),
        _ => return Err(refused(format!("expected 1 to 3 arguments, found {}", numbers.len()))),
    };
    let distance = if step > 0 { i128::from(end) - i128::from(begin) } else { i128::from(begin) - i128::from(end) };
    let len = u128::try_from(distance).unwrap_or(0).div_ceil(step.unsigned_abs().into());
    match usize::try_from(len) {
        Ok(n) if len <= MAX_LEN => Ok(Value::from_object(Range { begin, end, step, len: n })),
        _ => Err(refused(format!("expected at most {MAX_LEN} numbers, found {len}"))),
    }
}

impl Object for Range {
    fn repr(self: &Arc<Self>) -> ObjectRepr {
        ObjectRepr::Seq
    }

    fn get_value(self: &Arc<Self>, key: &Value) -> Option<Value> {
        let idx = key.as_usize().filter(|&idx| idx < self.len)?;
        // Intermediate overflow cancels out, since the element itself is within the range.
        Some(Value::from(self.begin.wrapping_add((idx as i64).wrapping_mul(self.step))))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Seq(self.len)
    }
}

/// How Python prints a value that contains others.
pub(super) struct Written {
    /// The text before the items, such as `[`.
    pub open: String,
    /// The items, which are separated by `, `.
    pub items: Vec<Value>,
    /// The text after the items.
    pub close: &'static str,
}

/// Returns how Python prints a list or an iterable, or an error if Python would print a memory address.
pub(super) fn written(value: &Value) -> Result<Written, Error> {
    if Generator::is(value) {
        return Err(Error::new(ErrorKind::InvalidOperation, "a generator has no text; use `| list` to make it a list"));
    }
    if let Some(range) = value.downcast_object_ref::<Range>() {
        let step = if range.step == 1 { String::new() } else { format!(", {}", range.step) };
        return Ok(Written { open: format!("range({}, {}{step}", range.begin, range.end), items: Vec::new(), close: ")" });
    }
    let items = value.try_iter()?.checked().collect::<Result<Vec<_>, _>>()?;
    let (open, close) = match value.downcast_object_ref::<View>() {
        Some(view) => (format!("{}([", view.name()), "])"),
        None if is_tuple(value) => ("(".to_owned(), if items.len() == 1 { ",)" } else { ")" }),
        None => ("[".to_owned(), "]"),
    };
    Ok(Written { open, items, close })
}

/// Returns the name of a value that `json.dumps` and slices refuse, or `None` for others.
pub(super) fn name(value: &Value) -> Option<&'static str> {
    match value {
        generator if Generator::is(generator) => Some("a generator"),
        range if range.downcast_object_ref::<Range>().is_some() => Some("a `range`"),
        view => view.downcast_object_ref::<View>().map(View::name),
    }
}

/// Whether the value is a dictionary in Python. minijinja's namespaces, loops and macros can be indexed by name, too.
pub(super) fn is_dictionary(value: &Value) -> bool {
    const MAPS: [&str; 5] = ["IndexMap<", "BTreeMap<", "HashMap<", "::StaticKeyMap", "::MergeDict"];
    let is_map = |object: &DynObject| MAPS.iter().any(|map| object.type_name().contains(map));
    value.kind() == ValueKind::Map && value.as_object().is_some_and(is_map)
}

/// Whether the value is a tuple in Jinja, as the groups of `groupby` are.
fn is_tuple(value: &Value) -> bool {
    value.is_tuple() || value.as_object().is_some_and(|object| object.type_name().ends_with("GroupTuple"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use minijinja::{Environment, context};

    /// Templates see a message as a dictionary however it was built, unlike minijinja's own objects.
    #[test]
    fn messages_are_dictionaries_however_they_are_made() {
        let plain = Value::from_pairs([("role", "user")]);
        let made = [
            context! { role => "user" },
            context! { content => "a", ..plain.clone() },
            super::super::python::from_json(&serde_json::json!({"role": "user"})),
            plain,
        ];
        let mut environment = Environment::new();
        environment.set_unknown_method_callback(super::super::methods::call);
        environment.add_test("mapping", is_dictionary);
        for message in made {
            assert!(is_dictionary(&message), "{message:?}");
            let text = environment
                .render_str("{{ m.get('role') }} {{ m.items() | length > 0 }} {{ m is mapping }}", context! { m => message });
            assert_eq!(text.unwrap(), "user True True");
        }
        let source = "{% macro m() %}{% endmacro %}{{ m is mapping }}{% for x in [1] %}{{ loop is mapping }}{% endfor %}{{ namespace(a=1) is mapping }}";
        assert_eq!(environment.render_str(source, ()).unwrap(), "FalseFalseFalse");
    }
}
