//! A user's own held-out rows, in any format of fine-tuning, as a task: how probable are their answers?
//!
//! A row is read, put through the model's chat template and masked as for scoring and training; the metric is the cross-entropy of the tokens
//! that would be trained, over all of them and for each source.

use std::collections::BTreeSet;
use std::path::Path;

use serde_json::Value;

use super::tasks::{Examples, Item, Kind, Task};
use crate::dataset::{Choice, DataFile, Dataset, ReadOptions};
use crate::error::{Context, Error, Result};
use crate::files::sha256;

/// Rises when a change of this program changes the scores of the same file.
const VERSION: u32 = 1;

/// Does the file hold rows to learn from? Those of a task have keys of their own: see `tasks.rs`.
pub fn are_in(path: &Path) -> Result<bool> {
    match path.extension().and_then(|extension| extension.to_str()) {
        Some("txt") => Ok(false),
        Some("jsonl") => {
            let text = std::fs::read(path).context_at(path, "cannot read the task")?;
            let first = text.split(|&byte| byte == b'\n').find(|line| !line.trim_ascii().is_empty()).unwrap_or_default();
            let first = first.strip_prefix(b"\xEF\xBB\xBF").unwrap_or(first);
            let Ok(Value::Object(row)) = serde_json::from_slice(first) else { return Ok(false) };
            let has = |keys: &[&str]| keys.iter().any(|key| row.contains_key(*key));
            let is_item = has(&["context", "choices", "continuation", "text", "match"])
                || has(&["prompt"]) && !has(&["completion", "chosen", "rejected", "response", "output"])
                || has(&["messages"]) && has(&["answer", "answers"]);
            Ok(!is_item)
        }
        Some("json" | "parquet" | "arrow" | "csv" | "tsv" | "gz" | "zst" | "bz2" | "xz" | "zip") => Ok(true),
        _ => Ok(false),
    }
}

/// The rows as a task.
pub fn read(path: &Path) -> Result<Task> {
    let dataset = Dataset::open(&[path.to_string_lossy().into_owned()], &ReadOptions::default())?;
    let mut items = Vec::new();
    for record in dataset.chosen(&dataset.choose(Choice::All)?) {
        let record = record?;
        let example = record.example.map_err(|error| error.at_line(&*record.place.path, record.place.line))?;
        let source = (!example.source.is_empty()).then(|| example.source.clone());
        // A row's own id may stand in several rows; its place does not.
        items.push(Item { conversation: Some(example), subject: source, ..Item::of(record.row.to_string()) });
    }
    if items.is_empty() {
        return Err(Error::new("the file has no rows").at(path));
    }
    // Parts are there to be compared with each other.
    if items.iter().map(|item| &item.subject).collect::<BTreeSet<_>>().len() == 1 {
        items.iter_mut().for_each(|item| item.subject = None);
    }
    let hashes: Vec<&str> = dataset.files().iter().map(|DataFile { sha256, .. }| sha256.as_str()).collect();
    let file = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    Ok(Task {
        name: file.split('.').find(|part| !part.is_empty()).unwrap_or("rows").to_owned(),
        version: VERSION,
        path: path.display().to_string(),
        sha256: if let [single] = hashes[..] { single.to_owned() } else { sha256(hashes.join("\n")) },
        kind: Kind::Conversation,
        written: None,
        items,
        examples: Examples::Own,
        few_shot: None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_to_learn_from_are_told_from_items() {
        let folder = tempfile::tempdir().unwrap();
        let check = |name: &str, text: &str, expected: bool| {
            let path = folder.path().join(name);
            std::fs::write(&path, text).unwrap();
            assert_eq!(are_in(&path).unwrap(), expected, "{text}");
        };
        check("a.jsonl", "\n{\"messages\": [{\"role\": \"user\", \"content\": \"Hi\"}]}", true);
        check("a.jsonl", "{\"messages\": [], \"answer\": \"x\"}", false);
        check("a.jsonl", "{\"prompt\": \"Hi\", \"completion\": \"x\"}", true);
        check("a.jsonl", "{\"prompt\": \"Hi\", \"answer\": \"x\"}", false);
        check("a.jsonl", "{\"instruction\": \"Hi\", \"output\": \"x\"}", true);
        check("a.jsonl", "{\"question\": \"Hi\", \"answer\": \"x\"}", true);
        check("a.jsonl", "{\"text\": \"Hi\"}", false);
        check("a.jsonl", "{\"context\": \"Hi\", \"answer\": 0}", false);
        check("a.jsonl", "no JSON", false);
        check("a.txt", "{\"messages\": []}", false);
        check("a.json", "[]", true);
    }
}
