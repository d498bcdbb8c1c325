//! Reads the tokens that a model folder defines beside tokenizer.json, and which tokens are special.
//!
//! This follows Transformers 5 (tokenization_utils_base.py, `_from_pretrained`, and tokenization_utils_tokenizers.py,
//! `TokenizersBackend.__init__`). If tokenizer_config.json lists its added tokens, it is used alone; older repositories, in which it does not, have
//! special_tokens_map.json, which takes precedence, and added_tokens.json.

use std::collections::HashSet;
use std::path::Path;

use serde_json::{Map, Value};
use tokenizers::{AddedToken, Tokenizer as Inner};

use crate::error::{Context, Error, Result};
use crate::files::refuse_pointer;

const CONFIG: &str = "tokenizer_config.json";
const SPECIAL: &str = "special_tokens_map.json";
const ADDED: &str = "added_tokens.json";
/// The key of tokenizer_config.json for its added tokens by id.
const DECODER: &str = "added_tokens_decoder";
/// Keys of unnamed special tokens; the older key is used if the newer one has none.
const EXTRA: [&str; 2] = ["extra_special_tokens", "additional_special_tokens"];

/// Reads tokenizer_config.json of the folder, extended by the older files beside it if it lists no added tokens.
pub(crate) fn tokenizer_settings(folder: &Path) -> Result<Map<String, Value>> {
    let mut settings = object(folder, CONFIG)?;
    if settings.contains_key(DECODER) {
        return Ok(settings);
    }
    for (key, value) in object(folder, SPECIAL)? {
        if key == EXTRA[0]
            && let (Some(Value::Array(known)), Value::Array(more)) = (settings.get_mut(&key), &value)
        {
            let new: Vec<Value> = more.iter().filter(|token| !known.contains(token)).cloned().collect();
            known.extend(new);
            continue;
        }
        settings.insert(key, value);
    }
    let added = object(folder, ADDED)?;
    if !added.is_empty() {
        settings.insert(ADDED.to_owned(), added.into());
    }
    Ok(settings)
}

/// Returns an error for a tokenizer that splits special tokens like any other text: Transformers then also splits those of the chat template, and
/// no turn would have an end at which a model could be stopped.
pub(super) fn refuse_split(settings: &Map<String, Value>) -> Result<()> {
    match settings.get("split_special_tokens") {
        Some(Value::Bool(true)) => Err(Error::new(
            "`split_special_tokens` is set in tokenizer_config.json: Transformers then splits control tokens in a text into pieces, including those of the chat template; this is not supported here",
        )
        .cure("Remove the key if the model was trained with whole control tokens, as most are.")),
        _ => Ok(()),
    }
}

/// Returns the text of a special token, which is a string or an object.
pub(crate) fn token_text(value: &Value) -> Option<&str> {
    value.as_str().or(value["content"].as_str())
}

/// Adds the tokens of the settings that the tokenizer lacks or defines differently. A new one gets the next id, which must equal the one in the
/// settings.
pub(super) fn add_tokens(inner: &mut Inner, settings: &Map<String, Value>) -> Result<()> {
    let own: HashSet<String> = inner.get_added_tokens_decoder().into_iter().map(|(_, token)| token.content).collect();
    let named: Vec<&Value> = named(settings).collect();
    let is_named = |content: &str| named.iter().any(|token| token_text(token) == Some(content));
    let extra: Vec<&Value> = EXTRA
        .iter()
        .filter_map(|key| settings.get(*key)?.as_array())
        .find(|list| !list.is_empty())
        .into_iter()
        .flatten()
        .collect();
    let mut listed = Vec::new();
    for (id, token) in settings.get(DECODER).and_then(Value::as_object).into_iter().flatten() {
        let broken = || {
            Error::new(format!("`{DECODER}`: expected a token with its `content` under its id, found `{id}`: {token}")).at(CONFIG)
        };
        let (id, mut token) = (id.parse::<u32>().map_err(|_| broken())?, added_token(token).ok_or_else(broken)?);
        token.special |= is_named(&token.content);
        listed.push((id, token, CONFIG));
    }
    // tokenizer.json takes precedence for tokens that it defines.
    for (content, id) in
        settings.get(ADDED).and_then(Value::as_object).into_iter().flatten().filter(|(content, _)| !own.contains(*content))
    {
        let id = id.as_u64().and_then(|id| u32::try_from(id).ok());
        let id = id.ok_or_else(|| Error::new(format!("expected the id of the token `{content}`")).at(ADDED))?;
        let is_special = is_named(content) || extra.iter().any(|token| token_text(token) == Some(content));
        listed.push((id, AddedToken::from(content.clone(), is_special), ADDED));
    }
    listed.sort_by_key(|(id, ..)| *id);
    let refused = "the tokenizers library refused the tokens of the tokenizer's settings";
    let are_new: Vec<bool> = listed.iter().map(|(_, token, _)| inner.token_to_id(&token.content).is_none()).collect();
    inner.add_tokens(listed.iter().map(|(_, token, _)| token.clone())).context(refused)?;
    for ((id, token, file), _) in listed.iter().zip(are_new).filter(|(_, is_new)| *is_new) {
        if let Some(found) = inner.token_to_id(&token.content).filter(|found| found != id) {
            return Err(Error::new(format!(
                "{file} gives the token `{}` the id {id}, but tokenizer.json lacks it, and its next free id is {found}",
                token.content
            ))
            .cure("Add the token to tokenizer.json under the id that the model uses, or remove it from the other file."));
        }
    }
    let known: HashSet<String> = inner.get_added_tokens_decoder().into_iter().map(|(_, token)| token.content).collect();
    let special = named.into_iter().chain(extra).filter_map(|token| match token {
        Value::String(content) => Some(AddedToken::from(content.clone(), true)),
        token => added_token(token).map(|token| token.special(true)),
    });
    inner.add_tokens(special.filter(|token| !known.contains(&token.content)).collect::<Vec<_>>()).context(refused)?;
    Ok(())
}

/// Returns the values of the keys that name special tokens: `eos_token`, and model-specific ones such as `image_token`.
fn named(settings: &Map<String, Value>) -> impl Iterator<Item = &Value> {
    let tokens = settings.iter().filter(|(key, _)| key.ends_with("_token")).map(|(_, value)| value);
    let own = settings.get(EXTRA[0]).and_then(Value::as_object).into_iter().flat_map(Map::values);
    tokens.chain(own).filter(|value| token_text(value).is_some_and(|text| !text.is_empty()))
}

fn added_token(value: &Value) -> Option<AddedToken> {
    let flag = |name: &str| value[name].as_bool();
    let token = AddedToken::from(value["content"].as_str()?.to_owned(), flag("special").unwrap_or(false));
    let normalized = flag("normalized").unwrap_or(token.normalized);
    let sides = |name: &str| flag(name).unwrap_or(false);
    Some(token.normalized(normalized).lstrip(sides("lstrip")).rstrip(sides("rstrip")).single_word(sides("single_word")))
}

/// Reads a file with a JSON object, or an empty object if there is no such file.
fn object(folder: &Path, name: &str) -> Result<Map<String, Value>> {
    let path = folder.join(name);
    match std::fs::read(&path) {
        Ok(bytes) => {
            refuse_pointer(&path)?;
            serde_json::from_slice(&bytes).context_at(&path, "expected a JSON object")
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(Map::new()),
        Err(error) => Err(Error::new("cannot read the tokenizer's settings").at(path).caused_by(error)),
    }
}
