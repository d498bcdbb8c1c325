//! Writes the settings that a trainer needs for an exported file: LLaMA-Factory's dataset_info.json, axolotl's `datasets`.

use std::path::{Path, PathBuf};

use serde_json::{Map, Value, json};

use crate::dataset::write::Target;
use crate::error::{Context, Error, Result};
use crate::files::{file_name, write_json, write_text};
use crate::jobs::score::RunRecord;
use crate::jobs::train::yaml_of;
use crate::json;

const DATASET_INFO: &str = "dataset_info.json";
/// How axolotl's settings begin.
const HEAD: &str = "# Written by diagnose export";

/// The path of the settings file that the format needs besides the data.
pub(super) fn path(target: Target, out: &Path) -> Option<PathBuf> {
    match target {
        Target::LlamaFactory => Some(out.with_file_name(DATASET_INFO)),
        Target::Axolotl => Some(out.with_file_name(format!("{}.axolotl.yaml", stem(out)))),
        _ => None,
    }
}

fn stem(out: &Path) -> String {
    out.file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default()
}

/// Whether a settings file may be written over: one that only receives another entry, or that an export wrote.
pub(super) fn is_own(target: Target, path: &Path) -> Result<bool> {
    match target {
        Target::Axolotl => Ok(std::fs::read(path).context_at(path, "cannot read the file")?.starts_with(HEAD.as_bytes())),
        _ => Ok(true),
    }
}

/// Writes the settings file and returns its path.
pub(super) fn write(target: Target, out: &Path, is_table: bool, run: &RunRecord) -> Result<Option<PathBuf>> {
    let name = file_name(out);
    let Some(path) = path(target, out) else { return Ok(None) };
    match target {
        Target::LlamaFactory => {
            let mut info = match std::fs::read(&path) {
                Ok(bytes) => json::from_slice::<Map<String, Value>>(&bytes)
                    .context_at(&path, "expected LLaMA-Factory's dataset_info.json, to which the data set is added")?,
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => Map::new(),
                Err(error) => return Err(Error::new("cannot read the file").at(&path).caused_by(error)),
            };
            let entry = json!({
                "file_name": name,
                "formatting": "sharegpt",
                "columns": {"messages": "conversations", "system": "system", "tools": "tools"},
            });
            info.insert(stem(out), entry);
            write_json(&path, &info)?;
        }
        Target::Axolotl => {
            let ends = match &run.turn_ends {
                Some(ends) => format!(
                    "# The tokens with which the chat template ends an answer; they are learnt with it.\neot_tokens: {}\n",
                    Value::from(ends.as_slice())
                ),
                None => "# An older program has made the run. Where the chat template ends answers with another token than the tokenizer's end\n\
                         # token, name it, or it is not learnt: eot_tokens: [\"<|im_end|>\"]\n"
                    .to_owned(),
            };
            let switches = match &run.template_switches {
                Some(switches) => {
                    format!("# The run's variables for the chat template.\nchat_template_kwargs: {}\n", yaml_of(switches))
                }
                None => String::new(),
            };
            let text = format!(
                "{HEAD}: axolotl's settings for {name}. Each answer says whether it is learnt.\n\
                 {ends}{switches}datasets:\n  - path: {}\n    ds_type: {}\n    type: chat_template\n    field_messages: messages\n    \
                 message_property_mappings:\n      role: role\n      content: content\n    roles_to_train: []\n    train_on_eos: turn\n    \
                 message_field_training: train\n    message_field_training_detail: train_detail\n",
                Value::from(name.as_str()),
                if is_table { "parquet" } else { "json" }
            );
            write_text(&path, &text)?;
        }
        _ => {}
    }
    Ok(Some(path))
}
