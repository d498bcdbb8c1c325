//! Extracts the calls from an answer as the official decoder does (`default_decode_ast_prompting`, `ast_parse`,
//! `resolve_ast_by_type` in `bfcl_eval/model_handler/utils.py`, 2026.3.23): a list of calls in Python's syntax, with or without
//! brackets around it.
//!
//! Like the official decoder, it ignores positional arguments. It computes arithmetic on constants; the official decoder
//! evaluates any such expression, whereas this one never executes code.

use super::python::{Call, Expr, index_written, parse, unparse};
use super::value::Value;

/// A function call with its named arguments.
pub(super) struct Decoded {
    /// The name of the function, including dots.
    pub function: String,
    /// The named arguments, in the order in which they are written.
    pub arguments: Vec<(String, Value)>,
}

/// Decodes an answer; `None` if it is not a list of calls.
pub(super) fn decode(answer: &str) -> Option<Vec<Decoded>> {
    let mut text = answer.trim_matches(['`', '\n', ' ']).to_owned();
    if !text.starts_with('[') {
        text.insert(0, '[');
    }
    if !text.ends_with(']') {
        text.push(']');
    }
    let text = text.trim_matches(crate::eval::requests::is_python_space).trim_matches('\'');
    match parse(text)? {
        Expr::Call(call) => Some(vec![decoded(&call)?]),
        Expr::List(items) | Expr::Tuple(items) | Expr::Set(items) => {
            let call = |item: &Expr| match item {
                Expr::Call(call) => decoded(call),
                _ => None,
            };
            items.iter().map(call).collect()
        }
        _ => None,
    }
}

fn decoded(call: &Call) -> Option<Decoded> {
    let mut parts = Vec::new();
    let mut function = &call.function;
    while let Expr::Attribute(value, name) = function {
        parts.push(name.as_str());
        function = value;
    }
    if let Expr::Name(name) = function {
        parts.push(name);
    }
    parts.reverse();
    let mut arguments: Vec<(String, Value)> = Vec::new();
    for (name, value) in &call.named {
        let value = value_of(value)?;
        // No parameter has this name, which represents Python's None.
        let name = name.clone().unwrap_or_else(|| "**".to_owned());
        match arguments.iter_mut().find(|(known, _)| *known == name) {
            Some((_, known)) => *known = value,
            None => arguments.push((name, value)),
        }
    }
    Some(Decoded { function: parts.join("."), arguments })
}

/// The value of an expression; `None` if the official decoder raises an error.
fn value_of(expr: &Expr) -> Option<Value> {
    match expr {
        Expr::Constant(value) => Some(value.clone()),
        Expr::Ellipsis => Some(Value::Text("...".to_owned())),
        Expr::Name(name) => Some(Value::Text(name.clone())),
        // The official decoder negates the value whatever the sign is.
        Expr::Unary(_, operand) => match &**operand {
            Expr::Constant(value) => negated(value),
            _ => None,
        },
        Expr::List(items) => items.iter().map(value_of).collect::<Option<_>>().map(Value::List),
        Expr::Tuple(items) => items.iter().map(value_of).collect::<Option<_>>().map(Value::Tuple),
        Expr::Dict(entries) => {
            let mut dict: Vec<(Value, Value)> = Vec::new();
            for (key, value) in entries {
                let (key, value) = (value_of(key.as_ref()?)?, value_of(value)?);
                if !key.is_hashable() {
                    return None;
                }
                match dict.iter_mut().find(|(known, _)| *known == key) {
                    Some((_, known)) => *known = value,
                    None => dict.push((key, value)),
                }
            }
            Some(Value::Dict(dict))
        }
        Expr::Binary(..) => evaluated(expr),
        Expr::Call(call) if call.named.is_empty() => Some(Value::Text(unparse(expr))),
        Expr::Call(call) => {
            let Decoded { function, arguments } = decoded(call)?;
            let arguments = arguments.into_iter().map(|(name, value)| (Value::Text(name), value)).collect();
            Some(Value::Dict(vec![(Value::Text(function), Value::Dict(arguments))]))
        }
        Expr::Subscript(value, index) => Some(Value::Text(format!("{}[{}]", unparse(value), index_written(index)))),
        Expr::Attribute(..) | Expr::Set(_) | Expr::Other(_) => None,
    }
}

fn negated(value: &Value) -> Option<Value> {
    match value {
        Value::Bool(value) => Some(Value::Int(-i128::from(*value))),
        Value::Int(n) => n.checked_neg().map(Value::Int),
        Value::Float(x) => Some(Value::Float(-x)),
        _ => None,
    }
}

/// The value of an expression of constants: a number, a string or a list.
fn evaluated(expr: &Expr) -> Option<Value> {
    match expr {
        Expr::Constant(value) => Some(value.clone()),
        Expr::List(items) => items.iter().map(evaluated).collect::<Option<_>>().map(Value::List),
        Expr::Tuple(items) => items.iter().map(evaluated).collect::<Option<_>>().map(Value::Tuple),
        Expr::Unary(sign, operand) => match (*sign, evaluated(operand)?) {
            ("-", value) => negated(&value),
            ("+", value) => negated(&negated(&value)?),
            ("~", value) => whole(&value).map(|n| Value::Int(!n)),
            _ => None,
        },
        Expr::Binary(op, left, right) => operated(op, &evaluated(left)?, &evaluated(right)?),
        _ => None,
    }
}

fn whole(value: &Value) -> Option<i128> {
    match value {
        Value::Bool(value) => Some(i128::from(*value)),
        Value::Int(n) => Some(*n),
        _ => None,
    }
}

fn operated(op: &str, left: &Value, right: &Value) -> Option<Value> {
    if let (Some(a), Some(b)) = (whole(left), whole(right)) {
        let is_small = |n: i128| n.unsigned_abs() <= 1 << 53;
        return match op {
            "+" => a.checked_add(b).map(Value::Int),
            "-" => a.checked_sub(b).map(Value::Int),
            "*" => a.checked_mul(b).map(Value::Int),
            // Larger numbers would have to be divided before rounding.
            "/" => (b != 0 && is_small(a) && is_small(b)).then(|| Value::Float(a as f64 / b as f64)),
            "//" => floored(a, b).map(|(quotient, _)| Value::Int(quotient)),
            "%" => floored(a, b).map(|(_, rest)| Value::Int(rest)),
            "**" if b >= 0 => a.checked_pow(u32::try_from(b).ok()?).map(Value::Int),
            "**" => (a != 0 && is_small(a)).then(|| Value::Float((a as f64).powf(b as f64))),
            "<<" => u32::try_from(b).ok().filter(|b| *b < 127).and_then(|b| a.checked_mul(1 << b)).map(Value::Int),
            ">>" => (b >= 0).then(|| Value::Int(a >> b.min(127))),
            "&" => Some(Value::Int(a & b)),
            "|" => Some(Value::Int(a | b)),
            "^" => Some(Value::Int(a ^ b)),
            _ => None,
        };
    }
    let number = |value: &Value| match value {
        Value::Float(x) => Some(*x),
        value => whole(value).map(|n| n as f64),
    };
    if let (Some(a), Some(b)) = (number(left), number(right)) {
        let floor = |a: f64, b: f64| {
            let rest = a % b;
            let rest = if rest != 0.0 && (rest < 0.0) != (b < 0.0) { rest + b } else { rest };
            (((a - rest) / b).round(), rest)
        };
        return match op {
            "+" => Some(Value::Float(a + b)),
            "-" => Some(Value::Float(a - b)),
            "*" => Some(Value::Float(a * b)),
            "/" => (b != 0.0).then(|| Value::Float(a / b)),
            "//" => (b != 0.0).then(|| Value::Float(floor(a, b).0)),
            "%" => (b != 0.0).then(|| Value::Float(floor(a, b).1)),
            // Roots of negative numbers are complex.
            "**" if a < 0.0 && b.fract() != 0.0 => Some(Value::Opaque),
            "**" => (a != 0.0 || b >= 0.0).then(|| Value::Float(a.powf(b))),
            _ => None,
        };
    }
    match (op, left, right) {
        ("+", Value::Text(_) | Value::List(_) | Value::Tuple(_), _)
            if left.kind() == right.kind() && !fits(left.size() + right.size()) =>
        {
            Some(Value::Opaque)
        }
        ("+", Value::Text(a), Value::Text(b)) => Some(Value::Text(format!("{a}{b}"))),
        ("+", Value::List(a), Value::List(b)) => Some(Value::List([a.as_slice(), b].concat())),
        ("+", Value::Tuple(a), Value::Tuple(b)) => Some(Value::Tuple([a.as_slice(), b].concat())),
        ("*", sequence @ (Value::Text(_) | Value::List(_) | Value::Tuple(_)), n)
        | ("*", n, sequence @ (Value::Text(_) | Value::List(_) | Value::Tuple(_))) => repeated(sequence, n),
        ("+" | "*", Value::Opaque, _) | ("+" | "*", _, Value::Opaque) => Some(Value::Opaque),
        _ => None,
    }
}

/// Repeats a string or a list. As in Python, it is an error if the result exceeds any memory.
fn repeated(sequence: &Value, n: &Value) -> Option<Value> {
    const MEMORY: usize = 1 << 40;
    let n = i64::try_from(whole(n)?).ok()?.max(0) as usize;
    // Python does not copy the elements, so that a list takes only the size of their addresses.
    let bytes = match sequence {
        Value::Text(text) => text.len(),
        Value::List(items) | Value::Tuple(items) => 8 * items.len(),
        _ => return None,
    };
    n.checked_mul(bytes).filter(|bytes| *bytes < MEMORY)?;
    let n = if bytes == 0 { 0 } else { n };
    if !n.checked_mul(sequence.size() - 1).is_some_and(fits) {
        return Some(Value::Opaque);
    }
    let all = |items: &[Value]| std::iter::repeat_n(items, n).flatten().cloned().collect();
    match sequence {
        Value::Text(text) => Some(Value::Text(text.repeat(n))),
        Value::List(items) => Some(Value::List(all(items))),
        Value::Tuple(items) => Some(Value::Tuple(all(items))),
        _ => None,
    }
}

/// Would the result of an operator be small enough? A larger one exceeds anything that is expected of an answer: it is not built,
/// and equals nothing.
fn fits(size: usize) -> bool {
    size < 1 << 16
}

fn floored(a: i128, b: i128) -> Option<(i128, i128)> {
    let (quotient, rest) = (a.checked_div(b)?, a.checked_rem(b)?);
    Some(if rest != 0 && (rest < 0) != (b < 0) { (quotient - 1, rest + b) } else { (quotient, rest) })
}
