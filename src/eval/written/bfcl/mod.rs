//! Judges answers of BFCL (Berkeley Function-Calling Leaderboard; Patil et al. 2025): does an answer contain the calls that its
//! question requires? Implements the official checker's comparison with the possible answers
//! (`bfcl_eval/eval_checker/ast_eval/ast_checker.py` and `eval_runner.py`, 2026.3.23, for Python), including its quirks.
//!
//! ```text
//! python.rs   text -> Python's expressions; value.rs its values
//! calls.rs    expressions -> calls with their arguments
//! ```
//!
//! Function names are compared literally, as the official program does for models that write their calls as text.

mod calls;
mod python;
mod value;

use serde_json::{Value as Json, json};

use super::{Spec, Verdict};
use crate::error::{Error, Result};
use crate::format::beginning;
use calls::{Decoded, decode};
use value::{Type, Value};

/// The data are `category` and, except for irrelevance, `function` and `ground_truth` of a published question and its answer.
pub const SPEC: Spec = Spec { stops: &[], max_new_tokens: 1024, few_shot: 0, primary: "acc", check };

/// The category of a question, which selects the official checker's rules.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Category {
    /// One function, called once.
    Simple,
    /// One of several functions, called once.
    Multiple,
    /// Several calls in any order, of one or several functions.
    Parallel,
    /// No function fits, so that none may be called.
    Irrelevance,
}

impl Category {
    const ALL: [(&str, Category); 4] = [
        ("simple", Category::Simple),
        ("multiple", Category::Multiple),
        ("parallel", Category::Parallel),
        ("irrelevance", Category::Irrelevance),
    ];

    /// The category of an official file of questions, by its name, such as `live_parallel_multiple`; `None` for categories that
    /// are not supported.
    pub fn of(name: &str) -> Option<Category> {
        if name.contains("java") || name.contains("multi_turn") {
            return None;
        }
        // Backwards is the order of the official checker's conditions.
        let named = Category::ALL.iter().rev().find(|(part, _)| name.contains(part));
        named.map(|(_, category)| *category)
    }

    fn name(self) -> &'static str {
        Category::ALL.iter().find(|(_, category)| *category == self).map_or("", |(name, _)| name)
    }
}

/// The data for [`SPEC`] from a question's functions and its possible answers; an error if the checker could not use them.
pub fn data(category: Category, function: &Json, ground_truth: &Json) -> Result<Json> {
    if category != Category::Irrelevance {
        Question::read(function, ground_truth)?;
    }
    Ok(json!({"category": category.name(), "function": function, "ground_truth": ground_truth}))
}

fn check(data: &Json, answer: &str) -> Result<Vec<Verdict>> {
    let category = Category::ALL.iter().find(|(name, _)| data["category"] == *name);
    let (_, category) = category.ok_or_else(|| Error::new(format!("there is no category {}", data["category"])))?;
    let is_right = match category {
        Category::Irrelevance => decode(answer).is_none_or(|calls| calls.is_empty()),
        category => {
            let question = Question::read(&data["function"], &data["ground_truth"])?;
            decode(answer).is_some_and(|calls| question.is_answered(*category, &calls))
        }
    };
    Ok(vec![Verdict::of_answer("acc", is_right)])
}

/// The expected calls, each with its function.
struct Question<'a> {
    expected: Vec<Expected<'a>>,
}

struct Expected<'a> {
    function: Function<'a>,
    /// The possible values of each parameter; if an empty string is among them, the parameter is optional.
    arguments: Vec<(&'a str, Vec<Value>)>,
}

#[derive(Clone)]
struct Function<'a> {
    name: &'a str,
    required: Vec<&'a str>,
    parameters: Vec<(&'a str, Parameter)>,
}

#[derive(Clone, Copy)]
struct Parameter {
    kind: Type,
    is_float: bool,
    is_tuple: bool,
    /// The type of a list's elements.
    nested: Option<Type>,
}

impl<'a> Question<'a> {
    fn read(function: &'a Json, ground_truth: &'a Json) -> Result<Question<'a>> {
        let functions = function.as_array().map_or(std::slice::from_ref(function), Vec::as_slice);
        let functions = functions.iter().map(Function::read).collect::<Result<Vec<_>>>()?;
        let expected = |call: &'a Json| -> Result<Expected<'a>> {
            let (name, arguments) = call.as_object().and_then(|call| call.iter().next()).ok_or_else(|| wrong("a call", call))?;
            let function = functions.iter().find(|function| function.name == name);
            let function =
                function.ok_or_else(|| Error::new(format!("no function is called `{name}`, which an answer calls")))?;
            let possible = |(parameter, possible): (&'a String, &'a Json)| {
                let list = possible.as_array().ok_or_else(|| wrong("a list of what a parameter may be", possible))?;
                Ok((parameter.as_str(), list.iter().map(Value::of_json).collect()))
            };
            let arguments = arguments.as_object().ok_or_else(|| wrong("the arguments of a call", arguments))?;
            Ok(Expected { function: function.clone(), arguments: arguments.iter().map(possible).collect::<Result<_>>()? })
        };
        let calls =
            ground_truth.as_array().filter(|calls| !calls.is_empty()).ok_or_else(|| wrong("a list of calls", ground_truth))?;
        Ok(Question { expected: calls.iter().map(expected).collect::<Result<_>>()? })
    }

    fn is_answered(&self, category: Category, calls: &[Decoded]) -> bool {
        if calls.len() != self.expected.len() {
            return false;
        }
        if category != Category::Parallel {
            return self.expected[0].is_met(&calls[0]);
        }
        // Each expected call is matched with the first call that meets it.
        let mut taken = vec![false; calls.len()];
        self.expected.iter().all(|expected| {
            let found = (0..calls.len()).find(|&idx| !taken[idx] && expected.is_met(&calls[idx]));
            found.is_some_and(|idx| {
                taken[idx] = true;
                true
            })
        })
    }
}

impl<'a> Function<'a> {
    fn read(json: &'a Json) -> Result<Function<'a>> {
        let name = json["name"].as_str().ok_or_else(|| wrong("a function with a name", json))?;
        let properties = json["parameters"]["properties"].as_object();
        let properties = properties.ok_or_else(|| wrong("`parameters` with `properties`", json))?;
        let required = json["parameters"]["required"].as_array().map(Vec::as_slice).unwrap_or_default();
        let parameter = |(name, json): (&'a String, &'a Json)| Ok((name.as_str(), Parameter::read(json)?));
        Ok(Function {
            name,
            required: required.iter().filter_map(Json::as_str).collect(),
            parameters: properties.iter().map(parameter).collect::<Result<_>>()?,
        })
    }
}

impl Parameter {
    fn read(json: &Json) -> Result<Parameter> {
        let kind = |json: &Json| match json.as_str() {
            Some("string" | "any") => Ok(Type::Text),
            Some("integer") => Ok(Type::Int),
            Some("float") => Ok(Type::Float),
            Some("boolean") => Ok(Type::Bool),
            Some("array" | "tuple") => Ok(Type::List),
            Some("dict") => Ok(Type::Dict),
            _ => Err(wrong("a type: string, integer, float, boolean, array, tuple, dict or any", json)),
        };
        let own = &json["type"];
        let has_items = *own == "array" || *own == "tuple";
        Ok(Parameter {
            kind: kind(own)?,
            is_float: *own == "float",
            is_tuple: *own == "tuple",
            nested: has_items.then(|| kind(&json["items"]["type"])).transpose()?,
        })
    }
}

impl Expected<'_> {
    /// The official `simple_function_checker`.
    fn is_met(&self, call: &Decoded) -> bool {
        let has = |name: &str| call.arguments.iter().any(|(known, _)| known == name);
        if call.function != self.function.name || !self.function.required.iter().all(|name| has(name)) {
            return false;
        }
        let is_met = |(name, value): &(String, Value)| {
            let parameter = self.function.parameters.iter().find(|(known, _)| known == name);
            let possible = self.arguments.iter().find(|(known, _)| known == name);
            parameter.zip(possible).is_some_and(|((_, parameter), (_, possible))| parameter.takes(value, possible))
        };
        let is_optional = |possible: &[Value]| possible.iter().any(is_empty_text);
        call.arguments.iter().all(is_met) && self.arguments.iter().all(|(name, possible)| has(name) || is_optional(possible))
    }
}

impl Parameter {
    /// Is this value allowed for the parameter?
    fn takes(self, value: &Value, possible: &[Value]) -> bool {
        let value = match value {
            Value::Tuple(items) if self.is_tuple => Value::List(items.clone()),
            Value::Int(n) if self.is_float => Value::Float(*n as f64),
            other => other.clone(),
        };
        let Some(is_variable) = is_of_type(&value, possible, self.kind, self.nested) else { return false };
        match &value {
            _ if is_variable => possible.contains(&value),
            Value::Dict(_) if self.kind == Type::Dict => possible.iter().any(|possible| is_dict(&value, possible)),
            Value::List(items) if self.kind == Type::List && self.nested == Some(Type::Dict) => {
                possible.iter().any(|possible| are_dicts(items, possible))
            }
            Value::Text(text) if self.kind == Type::Text => is_text(text, possible),
            Value::List(items) if self.kind == Type::List => {
                let items = Value::List(items.iter().map(plain).collect());
                possible.iter().any(|possible| plain_items(possible) == items)
            }
            value => possible.contains(value),
        }
    }
}

/// The official `type_checker`: `None` for a wrong type, otherwise whether the value is the name of a variable in place of a
/// value.
fn is_of_type(value: &Value, possible: &[Value], expected: Type, nested: Option<Type>) -> Option<bool> {
    let possible_type = possible.iter().find(|possible| !is_empty_text(possible)).map(Value::kind);
    let is_variable = possible_type.is_some_and(|kind| kind != expected);
    if value.kind() == expected {
        let Some(nested) = nested else { return Some(is_variable) };
        let Value::List(items) = value else { return None };
        // A possible value that is not a list matches anything.
        let fits = |possible: &Value| match possible {
            Value::List(possible) => items.iter().all(|item| is_of_type(item, possible, nested, None).is_some()),
            _ => true,
        };
        return possible.iter().any(fits).then_some(is_variable);
    }
    (possible_type == Some(value.kind())).then_some(true)
}

fn is_empty_text(value: &Value) -> bool {
    matches!(value, Value::Text(text) if text.is_empty())
}

/// The official `standardize_string`.
fn standard(text: &str) -> String {
    let kept: String = text.chars().filter(|c| !" ,./-_*^".contains(*c)).collect();
    kept.to_lowercase().replace('\'', "\"")
}

/// A string in its standard form, any other value unchanged.
fn plain(value: &Value) -> Value {
    match value {
        Value::Text(text) => Value::Text(standard(text)),
        other => other.clone(),
    }
}

/// The elements of a possible list; for a string, its characters, since Python iterates over them.
fn plain_items(possible: &Value) -> Value {
    match possible {
        Value::List(items) => Value::List(items.iter().map(plain).collect()),
        Value::Text(text) => Value::List(text.chars().map(|c| Value::Text(standard(&c.to_string()))).collect()),
        other => other.clone(),
    }
}

fn is_text(text: &str, possible: &[Value]) -> bool {
    let text = standard(text);
    possible.iter().any(|possible| matches!(possible, Value::Text(possible) if standard(possible) == text))
}

/// The official `dict_checker` for one of the possible answers, which has a list for each key.
fn is_dict(value: &Value, possible: &Value) -> bool {
    let (Value::Dict(entries), Value::Dict(expected)) = (value, possible) else { return false };
    let is_met = |(key, value): &(Value, Value)| match possible.get(key) {
        Some(Value::List(possible)) => possible.iter().map(plain).any(|possible| possible == plain(value)),
        _ => false,
    };
    let is_there = |(key, possible): &(Value, Value)| {
        let is_optional = matches!(possible, Value::List(possible) if possible.iter().any(is_empty_text));
        is_optional || value.get(key).is_some()
    };
    entries.iter().all(is_met) && expected.iter().all(is_there)
}

/// The official `list_dict_checker` for one of the possible answers.
fn are_dicts(items: &[Value], possible: &Value) -> bool {
    match possible {
        Value::List(possible) => {
            items.len() == possible.len() && items.iter().zip(possible).all(|(item, possible)| is_dict(item, possible))
        }
        // An empty string is as long as an empty list.
        possible => items.is_empty() && is_empty_text(possible),
    }
}

fn wrong(expected: &str, found: &Json) -> Error {
    Error::new(format!("expected {expected}, found {}", beginning(&found.to_string(), 80)))
}

#[cfg(test)]
mod tests;
