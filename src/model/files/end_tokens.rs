//! `eos_token_id`: the tokens at which generation stops. Transformers reads generation_config.json, and config.json if that is missing.

use std::path::Path;

use serde_json::Value;

use super::folder::{CONFIG, GENERATION, json as json_of};
use crate::error::{Context, Error, Result};
use crate::files::write_atomically;
use crate::json::{self, pretty};
use crate::model::Reference;

/// The ids that are in both files, or in the one that the model has.
pub(crate) fn end_tokens(reference: &Reference) -> Result<Vec<u32>> {
    let source = reference.open()?;
    let mut ids = ids_of(&source.config_json()?);
    if let Some((name, bytes)) = source.companions()?.into_iter().find(|(name, _)| *name == GENERATION) {
        let generation = ids_of(&json::from_slice(&bytes).context_at(name, "the file is not JSON")?);
        ids.retain(|id| generation.contains(id));
    }
    Ok(ids)
}

/// Adds the missing `ids` to both files of a saved model.
pub(crate) fn add_end_tokens(folder: &Path, ids: &[u32]) -> Result<()> {
    for path in [CONFIG, GENERATION].map(|name| folder.join(name)).iter().filter(|path| path.is_file()) {
        let bytes = std::fs::read(path).context_at(path, "cannot read the file")?;
        let json: Value = json::from_slice(&bytes).context_at(path, "the file is not JSON")?;
        let known = ids_of(&json);
        write(path, json, &known, ids)?;
    }
    Ok(())
}

/// Writes generation_config.json into the folder of an adapter on `base`: the base's own, if it has one, with the missing `ids`.
pub(crate) fn save_end_tokens(base: &Reference, folder: &Path, ids: &[u32]) -> Result<()> {
    let [config, generation] = base.generation_files()?;
    let known = generation.as_ref().or(config.as_ref()).map(ids_of).unwrap_or_default();
    write(&folder.join(GENERATION), generation.unwrap_or_else(|| Value::Object(Default::default())), &known, ids)
}

/// The ids in the generation_config.json that an adapter has of its own.
pub(crate) fn own_end_tokens(adapter: &Path) -> Result<Vec<u32>> {
    Ok(json_of(adapter, GENERATION)?.as_ref().map(ids_of).unwrap_or_default())
}

/// Writes the file with the ids `known`, and those of `ids` that are not among them.
fn write(path: &Path, mut json: Value, known: &[u32], ids: &[u32]) -> Result<()> {
    let new = ids.iter().filter(|id| !known.contains(id));
    let all: Vec<Value> = known.iter().chain(new).map(|&id| id.into()).collect();
    let object = json.as_object_mut().ok_or_else(|| Error::new("expected a JSON object").at(path))?;
    object.insert("eos_token_id".to_owned(), if let [one] = &all[..] { one.clone() } else { all.into() });
    let text = pretty(&json)?;
    write_atomically(path, |file| std::io::Write::write_all(file, &text).context_at(path, "cannot write the file"))
}

/// Reads one id or a list of ids.
pub(super) fn ids_of(json: &Value) -> Vec<u32> {
    let id = |value: &Value| value.as_u64().and_then(|id| u32::try_from(id).ok());
    match json.get("eos_token_id") {
        Some(Value::Array(ids)) => ids.iter().filter_map(id).collect(),
        Some(one) => id(one).into_iter().collect(),
        None => Vec::new(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn ids_are_added_to_what_is_there() {
        let folder = tempfile::tempdir().unwrap();
        let write = |name: &str, json: &Value| std::fs::write(folder.path().join(name), json.to_string()).unwrap();
        let read = |name: &str| -> Value {
            serde_json::from_slice::<Value>(&std::fs::read(folder.path().join(name)).unwrap()).unwrap()["eos_token_id"].clone()
        };
        write(CONFIG, &json!({"eos_token_id": 2}));
        add_end_tokens(folder.path(), &[5]).unwrap();
        assert_eq!((read(CONFIG), folder.path().join(GENERATION).exists()), (json!([2, 5]), false));
        write(CONFIG, &json!({"eos_token_id": null, "vocab_size": 9}));
        write(GENERATION, &json!({"eos_token_id": [7, 5], "do_sample": true}));
        add_end_tokens(folder.path(), &[5]).unwrap();
        assert_eq!((read(CONFIG), read(GENERATION)), (json!(5), json!([7, 5])));
    }
}
