//! Python's values, as far as calls and their expected answers contain them.

use serde_json::Value as Json;

use crate::format::{python_float, python_quoted};

#[derive(Debug, Clone)]
pub(super) enum Value {
    None,
    Bool(bool),
    Int(i128),
    Float(f64),
    Text(String),
    List(Vec<Value>),
    Tuple(Vec<Value>),
    /// In insertion order, each key once.
    Dict(Vec<(Value, Value)>),
    /// Bytes, complex numbers, integers beyond 128 bits: values that no expected answer contains.
    Opaque,
}

/// The result of `type(value)`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Type {
    None,
    Bool,
    Int,
    Float,
    Text,
    List,
    Tuple,
    Dict,
    Opaque,
}

impl Value {
    pub(super) fn of_json(json: &Json) -> Value {
        match json {
            Json::Null => Value::None,
            Json::Bool(value) => Value::Bool(*value),
            Json::Number(number) => match (number.as_i64(), number.as_u64(), number.as_f64()) {
                (Some(n), ..) => Value::Int(n.into()),
                (_, Some(n), _) => Value::Int(n.into()),
                (.., Some(x)) => Value::Float(x),
                _ => Value::Opaque,
            },
            Json::String(text) => Value::Text(text.clone()),
            Json::Array(items) => Value::List(items.iter().map(Value::of_json).collect()),
            Json::Object(entries) => {
                Value::Dict(entries.iter().map(|(key, value)| (Value::Text(key.clone()), Value::of_json(value))).collect())
            }
        }
    }

    pub(super) fn kind(&self) -> Type {
        match self {
            Value::None => Type::None,
            Value::Bool(_) => Type::Bool,
            Value::Int(_) => Type::Int,
            Value::Float(_) => Type::Float,
            Value::Text(_) => Type::Text,
            Value::List(_) => Type::List,
            Value::Tuple(_) => Type::Tuple,
            Value::Dict(_) => Type::Dict,
            Value::Opaque => Type::Opaque,
        }
    }

    /// The value of a key in a dictionary.
    pub(super) fn get(&self, key: &Value) -> Option<&Value> {
        match self {
            Value::Dict(entries) => entries.iter().find(|(known, _)| known == key).map(|(_, value)| value),
            _ => None,
        }
    }

    /// The approximate memory of the value: the bytes of strings, and one for each value.
    pub(super) fn size(&self) -> usize {
        let all = |items: &[Value]| items.iter().map(Value::size).sum::<usize>();
        1 + match self {
            Value::Text(text) => text.len(),
            Value::List(items) | Value::Tuple(items) => all(items),
            Value::Dict(entries) => entries.iter().map(|(key, value)| key.size() + value.size()).sum(),
            _ => 0,
        }
    }

    /// Can it be a key of a dictionary?
    pub(super) fn is_hashable(&self) -> bool {
        match self {
            Value::List(_) | Value::Dict(_) => false,
            Value::Tuple(items) => items.iter().all(Value::is_hashable),
            _ => true,
        }
    }

    /// The result of `repr(value)`.
    pub(super) fn repr(&self) -> String {
        let joined = |items: &[Value]| items.iter().map(Value::repr).collect::<Vec<_>>().join(", ");
        match self {
            Value::None => "None".to_owned(),
            Value::Bool(true) => "True".to_owned(),
            Value::Bool(false) => "False".to_owned(),
            Value::Int(n) => n.to_string(),
            Value::Float(x) => float(*x),
            Value::Text(text) => python_quoted(text),
            Value::List(items) => format!("[{}]", joined(items)),
            Value::Tuple(items) if items.len() == 1 => format!("({},)", joined(items)),
            Value::Tuple(items) => format!("({})", joined(items)),
            Value::Dict(entries) => {
                let entry = |(key, value): &(Value, Value)| format!("{}: {}", key.repr(), value.repr());
                format!("{{{}}}", entries.iter().map(entry).collect::<Vec<_>>().join(", "))
            }
            Value::Opaque => "?".to_owned(),
        }
    }
}

/// Python's `==`: numbers of all types compare by value, a list never equals a tuple.
impl PartialEq for Value {
    fn eq(&self, other: &Value) -> bool {
        let whole = |value: &Value| match value {
            Value::Bool(value) => Some(i128::from(*value)),
            Value::Int(n) => Some(*n),
            _ => None,
        };
        match (self, other) {
            (Value::None, Value::None) => true,
            (Value::Text(a), Value::Text(b)) => a == b,
            (Value::List(a), Value::List(b)) | (Value::Tuple(a), Value::Tuple(b)) => a == b,
            (Value::Dict(a), Value::Dict(b)) => a.len() == b.len() && a.iter().all(|(key, value)| other.get(key) == Some(value)),
            (Value::Float(a), Value::Float(b)) => a == b,
            (Value::Float(x), n) | (n, Value::Float(x)) => {
                // Exactly: the float must be a whole number, and must fit into the integer type.
                whole(n).is_some_and(|n| x.fract() == 0.0 && x.abs() < 1e38 && *x as i128 == n)
            }
            (a, b) => whole(a).is_some() && whole(a) == whole(b),
        }
    }
}

/// The `repr` of a float in `ast.unparse`.
fn float(x: f64) -> String {
    if !x.is_finite() {
        // `ast.unparse` writes infinity as a number that overflows.
        return if x.is_nan() {
            "nan"
        } else if x > 0.0 {
            "1e309"
        } else {
            "-1e309"
        }
        .to_owned();
    }
    python_float(x)
}
