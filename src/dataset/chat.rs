//! Converts lists of turns in any common dialect into [`Turn`]s:
//!
//! ```text
//! OpenAI       {"role", "content", "tool_calls"?}, where content is a text, null, or a list of typed parts
//! ShareGPT     {"from", "value"}; mixtures of both, as in {"role", "value"}
//! Anthropic    parts `text`, `thinking`, `tool_use`, `tool_result`
//! Bedrock      parts without a type: {"text"}, {"toolUse"}, {"toolResult"}
//! Gemini       {"role": "model", "parts": [{"text"}, {"functionCall"}, {"functionResponse"}]}
//! pairs        {"human", "assistant"}, two turns in one object
//! UltraChat    a list of texts, alternately by user and assistant
//! datasets     {"role": [..], "content": [..]}, a list for each key
//! Harmony      {"role", "channel", "recipient"?, "content"}: harmony.rs
//! ```
//!
//! The parts of a turn are joined without a separator. A null content counts as empty. Tool results inside a user's turn become turns of their own
//! before it. Images and sound are refused.

use serde_json::Value;

use super::example::{Role, Turn, WeightedPart};
use super::fields::{self, Object, list_keys, wrong_type};
use super::literal::is_nothing;
use super::roles::RoleMap;
use super::{harmony, literal, switches, tools};
use crate::error::{Error, Result};
use crate::format::beginning;

/// The context in which a row is read, and what reading it has found.
pub(super) struct Reading<'a> {
    /// The mapping from names to roles.
    pub roles: &'a RoleMap,
    /// Keys that look like loss switches and were not used.
    pub unused: Vec<String>,
}

/// The field names of a dialect; those of the other dialect are used where its own are absent.
pub(super) struct Dialect {
    pub lists: &'static [&'static str],
    role: &'static str,
    content: &'static str,
}

/// Columns that are read as a conversation if their values look like one.
pub(super) const OTHER_LISTS: [&str; 7] = ["data", "contents", "dialog", "dialogue", "chat", "turns", "chat_messages"];
pub(super) const MESSAGES: Dialect = Dialect {
    lists: &[
        "messages",
        "conversations",
        "conversation",
        "data",
        "contents",
        "dialog",
        "dialogue",
        "chat",
        "turns",
        "chat_messages",
    ],
    role: "role",
    content: "content",
};
pub(super) const SHAREGPT: Dialect = Dialect {
    lists: &[
        "conversations",
        "conversation",
        "messages",
        "data",
        "contents",
        "dialog",
        "dialogue",
        "chat",
        "turns",
        "chat_messages",
    ],
    role: "from",
    content: "value",
};

/// A column whose plain texts are all by the user (MT-Bench).
const QUESTIONS: &str = "turns";
/// Columns with a system prompt.
pub(super) const SYSTEM: [&str; 4] = ["system", "system_prompt", "systemInstruction", "system_instruction"];

const ROLE_KEYS: [&str; 4] = ["role", "from", "sender", "speaker"];
const CONTENT_KEYS: [&str; 4] = ["content", "value", "parts", "text"];
const ASKED: [&str; 7] = ["human", "user", "prompt", "question", "query", "instruction", "input"];
const ANSWERED: [&str; 8] = ["assistant", "gpt", "bot", "model", "answer", "response", "output", "completion"];

/// Returns the whole conversation of a row, beginning with the system prompt if the row has a column for it.
pub(super) fn conversation(row: &Object, dialect: &Dialect, reading: &mut Reading) -> Result<Vec<Turn>> {
    let (key, value) = fields::required(row, dialect.lists, "")?;
    let mut turns = turns(value, dialect, key, reading)?;
    add_system(row, &mut turns)?;
    Ok(turns)
}

/// Prepends the row's system prompt, unless it is empty or the turns already have the same.
pub(super) fn add_system(row: &Object, turns: &mut Vec<Turn>) -> Result<()> {
    let Some(system) = system(row)? else { return Ok(()) };
    match turns.first().filter(|turn| turn.role == Role::System) {
        None => turns.insert(0, system),
        Some(own) if own.content.trim() == system.content.trim() => {}
        Some(own) => {
            return Err(Error::new(format!(
                "the row's column and its first turn contradict each other: the system prompts `{}` and `{}`",
                beginning(&system.content, 40),
                beginning(&own.content, 40)
            ))
            .cure("Keep only one of them."));
        }
    }
    Ok(())
}

/// Returns the row's system prompt, unless it is empty. Anthropic, Bedrock and Gemini write it as a list of parts.
pub(super) fn system(row: &Object) -> Result<Option<Turn>> {
    let Some((key, value)) = fields::first(row, &SYSTEM) else { return Ok(None) };
    let mut turn = plain(Role::System, "");
    match value {
        Value::Array(parts) => add_parts(&mut turn, &mut Vec::new(), &mut Vec::new(), parts, key, &mut Vec::new())?,
        Value::Object(system) => match system.get("parts") {
            Some(Value::Array(parts)) => add_parts(&mut turn, &mut Vec::new(), &mut Vec::new(), parts, key, &mut Vec::new())?,
            _ => return Err(wrong_type(key, "a string or a list of parts", value)),
        },
        other => match fields::text(other) {
            Some(text) => turn.content.push_str(&text),
            None => return Err(wrong_type(key, "a string or a list of parts", value)),
        },
    }
    Ok((!turn.content.is_empty()).then_some(turn))
}

/// Returns a turn that consists of text alone.
pub(super) fn plain(role: Role, content: &str) -> Turn {
    Turn::plain(role, content)
}

pub(super) fn turns(value: &Value, dialect: &Dialect, path: &str, reading: &mut Reading) -> Result<Vec<Turn>> {
    let columns = by_columns(value);
    let list = fields::list(columns.as_ref().unwrap_or(value), path)?;
    if list.is_empty() {
        return Err(Error::new(format!("`{path}`: expected at least one turn, found an empty list")));
    }
    if path == QUESTIONS && list.iter().all(Value::is_string) {
        return Err(Error::new(format!(
            "`{path}`: expected turns with a speaker, found texts: in MT-Bench these are questions only"
        ))
        .cure("If every second text is an answer, name the column `data`, as UltraChat does."));
    }
    if list.len() > 1 && list.iter().all(Value::is_string) {
        let roles = [Role::User, Role::Assistant].into_iter().cycle();
        return Ok(list.iter().filter_map(Value::as_str).zip(roles).map(|(text, role)| plain(role, text)).collect());
    }
    let mut turns = Vec::with_capacity(list.len());
    // Harmony puts the reasoning of an answer into a message before it.
    let mut reasoning: Option<String> = None;
    for (idx, value) in list.iter().enumerate() {
        let path = format!("{path}[{idx}]");
        let message = fields::object(value, &path)?;
        let read = match harmony::read(message, &path)? {
            Some(harmony::Said::Reasoning(text)) => {
                reasoning = Some(reasoning.map_or(text.clone(), |before| before + &text));
                continue;
            }
            Some(harmony::Said::Message(message)) => Some(message),
            None => None,
        };
        let message = read.as_ref().unwrap_or(message);
        match pair(message) {
            Some((asked, answered)) => add_pair(message, asked, answered, &path, &mut turns, reading)?,
            None => add_turn(message, dialect, &path, &mut turns, reading)?,
        }
        if let Some(text) = reasoning.take() {
            match turns.last_mut().filter(|turn| turn.role == Role::Assistant) {
                Some(answer) => answer.reasoning = Some(text),
                None => return Err(no_answer(&path)),
            }
        }
    }
    if reasoning.is_some() {
        return Err(no_answer(path));
    }
    if turns.len() > usize::from(u16::MAX) {
        return Err(Error::new(format!("`{path}`: expected at most {} turns, found {}", u16::MAX, turns.len())));
    }
    Ok(turns)
}

fn no_answer(path: &str) -> Error {
    Error::new(format!("`{path}`: expected an assistant's message after the one in the channel `analysis`"))
}

/// Returns the turns of `{"role": ["user", "assistant"], "content": ["Hi", "Hello"]}`, the form that `datasets` gives to a sequence of objects.
fn by_columns(value: &Value) -> Option<Value> {
    let columns = value.as_object()?;
    let names = |keys: &[&str]| keys.iter().any(|key| columns.contains_key(*key));
    let given = columns.iter().filter(|(_, list)| !is_nothing(list));
    let lists: Vec<(&String, &Vec<Value>)> = given.map(|(key, list)| Some((key, list.as_array()?))).collect::<Option<_>>()?;
    let n_turns = lists.first()?.1.len();
    let is_table = names(&ROLE_KEYS) && names(&CONTENT_KEYS) && lists.iter().all(|(_, list)| list.len() == n_turns);
    let turn = |idx: usize| Value::Object(lists.iter().map(|(key, list)| ((*key).clone(), list[idx].clone())).collect());
    is_table.then(|| (0..n_turns).map(turn).collect())
}

/// Whether this could be an element of a list of turns: OpenAI's, ShareGPT's, a pair or a plain text.
pub(super) fn looks_like_turn(value: &Value) -> bool {
    match value {
        Value::Object(message) => has_role(message) || pair(message).is_some(),
        Value::String(_) => true,
        _ => false,
    }
}

fn has_role(message: &Object) -> bool {
    ROLE_KEYS.iter().any(|key| message.get(*key).is_some_and(Value::is_string))
        && CONTENT_KEYS.iter().chain(&["tool_calls", "function_call"]).any(|key| message.contains_key(*key))
}

/// Returns the two keys of an object that holds a question and its answer.
fn pair(message: &Object) -> Option<(&'static str, &'static str)> {
    if ROLE_KEYS.iter().any(|key| message.contains_key(*key)) {
        return None;
    }
    let find = |keys: &[&'static str]| fields::first(message, keys).map(|(key, _)| key);
    find(&ASKED).zip(find(&ANSWERED))
}

fn add_pair(
    message: &Object,
    asked: &str,
    answered: &str,
    path: &str,
    turns: &mut Vec<Turn>,
    reading: &mut Reading,
) -> Result<()> {
    let prefix = format!("{path}.");
    if let Some(system) = fields::optional_text(message, &["system"], &prefix)?.filter(|text| !text.is_empty()) {
        turns.push(plain(Role::System, &system));
    }
    turns.push(plain(Role::User, &fields::required_text(message, &[asked], &prefix)?));
    let mut answer = plain(Role::Assistant, &fields::required_text(message, &[answered], &prefix)?);
    switches::of_turn(&mut answer, message, &prefix, &mut reading.unused)?;
    turns.push(answer);
    Ok(())
}

fn add_turn(message: &Object, dialect: &Dialect, path: &str, turns: &mut Vec<Turn>, reading: &mut Reading) -> Result<()> {
    let prefix = format!("{path}.");
    let is_text = |key: &&&str| message.get(**key).is_some_and(Value::is_string);
    let role_key = [dialect.role].iter().chain(&ROLE_KEYS).find(is_text).copied().unwrap_or(dialect.role);
    let name = fields::required_text(message, &[role_key], &prefix)?;
    let (role, is_call) = reading.roles.find(&name, &format!("{path}.{role_key}"))?;
    let mut turn = plain(role, "");
    let is_own_name = role_key == "role" && !is_call && !reading.roles.has(&name) && name != role.name();
    turn.written.role = is_own_name.then(|| name.into_owned());
    let mut calls = tools::calls_of_turn(message, path)?;
    let is_there = |key: &&&str| message.get(**key).is_some_and(|value| !is_nothing(value));
    let content_key = [dialect.content].iter().chain(&CONTENT_KEYS).find(is_there).copied().unwrap_or(dialect.content);
    let content_path = format!("{path}.{content_key}");
    let mut results = Vec::new();
    match message.get(content_key).filter(|value| !is_nothing(value)) {
        None => {}
        Some(value) if is_call => calls.extend(tools::calls_of_value(value, &content_path)?),
        Some(Value::Array(parts)) if role != Role::Tool || parts.iter().all(is_known_part) => {
            add_parts(&mut turn, &mut calls, &mut results, parts, &content_path, &mut reading.unused)?;
            let is_text = |part: &Value| part.get("type") == Some(&Value::from("text")) && part.get("text").is_some();
            if turn.reasoning.is_none() && parts.iter().all(is_text) {
                turn.written.parts = parts.clone();
            }
        }
        Some(value @ Value::Object(part)) if role != Role::Tool && is_known_part(value) => {
            add_part(&mut turn, &mut calls, &mut results, part, &content_path, &mut reading.unused)?;
        }
        // A tool may return any JSON value; templates that expect text get it serialised.
        Some(value) if role == Role::Tool && !value.is_string() => {
            turn.content = literal::dumps(value);
            turn.written.value = Some(value.clone());
        }
        Some(value) => match fields::text(value) {
            Some(text) => turn.content.push_str(&text),
            None => return Err(wrong_type(&content_path, "a string or a list of parts", value)),
        },
    }
    if let Some(reasoning) = fields::optional_text(message, &["reasoning_content", "reasoning", "thinking"], &prefix)? {
        turn.reasoning.get_or_insert_default().push_str(&reasoning);
    }
    // OpenRouter splits the text or the summary of the reasoning into pieces.
    if turn.reasoning.is_none()
        && let Some(Value::Array(details)) = message.get("reasoning_details")
    {
        let texts = details.iter().filter_map(|detail| detail["text"].as_str().or(detail["summary"].as_str()));
        turn.reasoning = texts.map(str::to_owned).reduce(|all, text| all + &text);
    }
    if let Some(refusal) = fields::optional_text(message, &["refusal"], &prefix)?.filter(|text| !text.is_empty()) {
        if !turn.content.is_empty() {
            return Err(Error::new(format!("`{path}`: expected an answer or a refusal, found `{content_key}` and `refusal`"))
                .cure("Keep only one of them."));
        }
        turn.content.push_str(&refusal);
    }
    // OpenAI writes null for an empty content. A message without the key is malformed, unless it has tool calls, reasoning or a refusal.
    turn.written.without_content = fields::first(message, &[content_key]).is_none() && turn.content.is_empty();
    if !message.contains_key(content_key) && turn.content.is_empty() && calls.is_empty() && turn.reasoning.is_none() {
        return Err(Error::new(format!("`{content_path}`: expected text, found {}", list_keys(message.keys()))));
    }
    if !calls.is_empty() && role != Role::Assistant {
        return Err(Error::new(format!("`{path}`: expected tool calls in assistant turns only, found some in another turn")));
    }
    turn.tool_calls = (!calls.is_empty()).then_some(Value::Array(calls));
    turn.tool_call_id = fields::optional_text(message, &["tool_call_id"], &prefix)?.map(|id| id.into_owned());
    turn.name = fields::optional_text(message, &["name"], &prefix)?.map(|name| name.into_owned());
    switches::of_turn(&mut turn, message, &prefix, &mut reading.unused)?;
    for (idx, call) in message.get("tool_calls").and_then(Value::as_array).into_iter().flatten().enumerate() {
        let call = call.as_object().into_iter();
        call.for_each(|call| switches::note_unused(call, &[], &format!("{prefix}tool_calls[{idx}]."), &mut reading.unused));
    }
    turn.written.others = others(message, &[role_key, content_key]);
    // A turn that consists of tool results alone is replaced by them.
    let is_only_results = !results.is_empty() && turn.content.is_empty() && role != Role::Assistant;
    turns.append(&mut results);
    if !is_only_results {
        turns.push(turn);
    }
    Ok(())
}

/// Returns the entries of a message that are neither fields of [`Turn`] nor loss switches.
fn others(message: &Object, read: &[&str]) -> Object {
    const READ: [&str; 8] =
        ["reasoning_content", "reasoning", "thinking", "tool_calls", "function_call", "tool_call_id", "name", "refusal"];
    let is_other = |key: &str| !read.contains(&key) && !READ.contains(&key) && !switches::looks_like_switch(key);
    message.iter().filter(|(key, value)| !is_nothing(value) && is_other(key)).map(|(k, v)| (k.clone(), v.clone())).collect()
}

/// Keys of Bedrock's and Gemini's parts, which have no `type`.
const UNTYPED_PARTS: [&str; 7] =
    ["text", "toolUse", "toolResult", "functionCall", "functionResponse", "function_call", "reasoningContent"];

fn is_known_part(part: &Value) -> bool {
    part.get("type").is_some_and(Value::is_string) || UNTYPED_PARTS.iter().any(|key| part.get(key).is_some())
}

fn add_parts(
    turn: &mut Turn,
    calls: &mut Vec<Value>,
    results: &mut Vec<Turn>,
    parts: &[Value],
    path: &str,
    unused: &mut Vec<String>,
) -> Result<()> {
    for (idx, part) in parts.iter().enumerate() {
        let path = format!("{path}[{idx}]");
        match part {
            Value::String(text) => turn.content.push_str(text),
            part => add_part(turn, calls, results, fields::object(part, &path)?, &path, unused)?,
        }
    }
    Ok(())
}

fn add_part(
    turn: &mut Turn,
    calls: &mut Vec<Value>,
    results: &mut Vec<Turn>,
    part: &Object,
    path: &str,
    unused: &mut Vec<String>,
) -> Result<()> {
    let prefix = format!("{path}.");
    let inner = |key: &str| fields::object(&part[key], &format!("{prefix}{key}"));
    let untyped = UNTYPED_PARTS.iter().find(|key| part.get(**key).is_some_and(|value| !is_nothing(value)));
    let kind = match (part.get("type"), untyped) {
        (None | Some(Value::Null), Some(key)) => (*key).to_owned(),
        _ => fields::required_text(part, &["type"], &prefix)?.into_owned(),
    };
    let begin = turn.content.len();
    match kind.as_str() {
        // Gemini marks thoughts with a flag on an ordinary part.
        "text" if part.get("thought") == Some(&Value::Bool(true)) => {
            turn.reasoning.get_or_insert_default().push_str(&fields::required_text(part, &["text"], &prefix)?);
        }
        "text" | "input_text" | "output_text" => {
            turn.content.push_str(&fields::required_text(part, &["text", "value", "content"], &prefix)?);
        }
        "refusal" => turn.content.push_str(&fields::required_text(part, &["refusal", "text"], &prefix)?),
        "reasoning" | "thinking" => {
            let text = fields::required_text(part, &["value", "reasoning", "thinking", "text"], &prefix)?;
            turn.reasoning.get_or_insert_default().push_str(&text);
        }
        "reasoningContent" => {
            let path = format!("{prefix}reasoningContent.reasoningText");
            let text = fields::object(inner("reasoningContent")?.get("reasoningText").unwrap_or(&Value::Null), &path)?;
            let text = fields::required_text(text, &["text"], &format!("{path}."))?;
            turn.reasoning.get_or_insert_default().push_str(&text);
        }
        "tool_call" => {
            let (key, value) = fields::required(part, &["value", "tool_call"], &prefix)?;
            calls.extend(tools::calls_of_value(value, &format!("{prefix}{key}"))?);
        }
        "tool_use" => calls.push(tools::call_of_part(part, path)?),
        "toolUse" | "functionCall" | "function_call" => {
            calls.push(tools::call_of_part(inner(&kind)?, &format!("{prefix}{kind}"))?);
        }
        "tool_result" => results.push(tool_result(part, path)?),
        "toolResult" | "functionResponse" => results.push(tool_result(inner(&kind)?, &format!("{prefix}{kind}"))?),
        "image" | "image_url" | "input_image" | "audio" | "audio_url" | "input_audio" | "video" | "video_url" | "file"
        | "document" => {
            return Err(Error::new(format!("`{path}.type`: expected text, found `{kind}`, but only text can be scored"))
                .cure("Remove these rows: text about an image is meaningless without it."));
        }
        other => {
            let found = beginning(other, 40);
            return Err(Error::new(format!("`{path}.type`: expected text, reasoning or tool_call, found `{found}`")));
        }
    }
    let mut used: Vec<&str> = Vec::new();
    if let Some(weight) = switches::weight(part, &prefix)?
        && turn.content.len() > begin
    {
        turn.parts.push(WeightedPart { begin, end: turn.content.len(), weight });
        if turn.role == Role::Assistant || weight == 0.0 {
            used.extend(switches::NAMES);
        }
    }
    switches::note_unused(part, &used, &prefix, unused);
    Ok(())
}

/// Converts a tool result in Anthropic's, Bedrock's or Gemini's form.
fn tool_result(result: &Object, path: &str) -> Result<Turn> {
    let prefix = format!("{path}.");
    let mut turn = plain(Role::Tool, "");
    turn.tool_call_id = fields::optional_text(result, &["tool_use_id", "toolUseId", "id"], &prefix)?.map(|id| id.into_owned());
    turn.name = fields::optional_text(result, &["name"], &prefix)?.map(|name| name.into_owned());
    match fields::first(result, &["content", "response"]) {
        None => {}
        Some((_, Value::String(text))) => turn.content.push_str(text),
        Some((key, Value::Array(parts))) if parts.iter().all(|part| part.get("json").is_none()) => {
            add_parts(&mut turn, &mut Vec::new(), &mut Vec::new(), parts, &format!("{prefix}{key}"), &mut Vec::new())?;
        }
        Some((_, Value::Array(parts))) if parts.len() == 1 => turn.content = literal::dumps(&parts[0]["json"]),
        Some((_, other)) => turn.content = literal::dumps(other),
    }
    Ok(turn)
}
