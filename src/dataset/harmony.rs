//! Converts messages of OpenAI's Harmony format (gpt-oss), which has a message for each channel of an answer, to chat completions, with
//! `reasoning_content` and `tool_calls` in one message:
//!
//! ```text
//! {"role": "assistant", "channel": "analysis", "content"}                                    the reasoning of the message that follows
//! {"role": "assistant", "channel": "commentary", "recipient": "functions.NAME", "content"}   a call of NAME with these arguments
//! {"role": "assistant", "channel": "final", "content"}                                       the answer
//! {"role": "tool", "name": "functions.NAME", "channel"?, "recipient"?, "content"}            the result of the call
//! ```

use serde_json::{Value, json};

use super::fields::{self, Object};
use crate::error::{Error, Result};

/// The content of a Harmony message.
pub(super) enum Said {
    /// The text of an `analysis` message, which belongs to the next answer.
    Reasoning(String),
    /// A message in the form of chat completions.
    Message(Object),
}

const FUNCTIONS: &str = "functions.";
/// Keys that chat completions do not have.
const OWN: [&str; 3] = ["channel", "recipient", "content_type"];

/// Converts a message that has a Harmony channel; returns `None` for any other.
pub(super) fn read(message: &Object, path: &str) -> Result<Option<Said>> {
    let text = |key: &str| message.get(key).and_then(Value::as_str);
    let Some(channel @ ("analysis" | "commentary" | "final")) = text("channel") else { return Ok(None) };
    let mut plain: Object =
        message.iter().filter(|(key, _)| !OWN.contains(&key.as_str())).map(|(k, v)| (k.clone(), v.clone())).collect();
    let prefix = format!("{path}.");
    let content = || Ok::<_, Error>(fields::required_text(message, &["content"], &prefix)?.into_owned());
    let function = text("recipient").and_then(|recipient| recipient.strip_prefix(FUNCTIONS));
    match (text("role"), channel, function) {
        (Some("tool"), ..) => {
            if let Some(name) = text("name").and_then(|name| name.strip_prefix(FUNCTIONS)) {
                plain.insert("name".to_owned(), name.into());
            }
        }
        (_, "final", None) => {}
        (_, "analysis", None) => return Ok(Some(Said::Reasoning(content()?))),
        (_, "commentary", Some(name)) => {
            let call = json!([{"type": "function", "function": {"name": name, "arguments": content()?}}]);
            plain.insert("tool_calls".to_owned(), call);
            plain.insert("content".to_owned(), Value::Null);
        }
        _ => {
            let to = text("recipient").map_or_else(String::new, |recipient| format!(" to `{recipient}`"));
            return Err(Error::new(format!(
                "`{path}`: expected an analysis, a call of `functions.NAME` in the commentary, or a final answer, found `{channel}`{to}"
            ))
            .cure("Other messages of the Harmony format are not read: leave the row out, or write it with `reasoning_content` and `tool_calls`."));
        }
    }
    Ok(Some(Said::Message(plain)))
}
