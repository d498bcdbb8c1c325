//! Decides which folders a saved model or adapter may replace.

use std::fs;
use std::path::Path;

use super::adapter;
use super::folder::COMPANIONS;
use crate::error::{Context, Error, Result};

/// Refuses a folder unless it does not exist or contains only the files of a model or an adapter.
pub(super) fn check_replaceable(folder: &Path) -> Result<()> {
    let entries = match fs::read_dir(folder) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(()),
        Err(error) => return Err(Error::new("cannot look at the folder to save to").at(folder).caused_by(error)),
    };
    for entry in entries {
        let name = entry.context_at(folder, "cannot look at the folder to save to")?.file_name();
        let name = name.to_string_lossy();
        let weights = name.starts_with("model") && (name.ends_with(".safetensors") || name.ends_with(".safetensors.index.json"));
        if !weights
            && name != "config.json"
            && !COMPANIONS.contains(&&*name)
            && ![adapter::CONFIG, adapter::WEIGHTS].contains(&&*name)
        {
            return Err(Error::new(format!("the folder for the model holds `{name}`, which is not part of a model"))
                .at(folder)
                .cure("Name a new folder."));
        }
    }
    Ok(())
}
