//! Parses the name of a repository on the hub: `org/name`, `org/name@revision`, `org/name:file.gguf`. Names without an
//! organisation, as the hub's oldest repositories have, are also ids.

use std::path::{Component, Path};

/// `org/name`, with a revision and a file if they were given.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct HubId {
    /// Models or data sets.
    pub shelf: Shelf,
    /// `org/name`, or `name` alone.
    pub repo: String,
    /// Branch, tag or commit.
    pub revision: String,
    /// The name of a `.gguf` file in the repository.
    pub file: Option<String>,
}

/// The kind of a repository; the hub may have one of each kind under the same name.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Shelf {
    Models,
    DataSets,
}

impl HubId {
    /// Parses a hub id; `None` if `written` cannot be one and must therefore be a path.
    pub(crate) fn parse(written: &str) -> Option<HubId> {
        let (rest, file) = match written.split_once(':') {
            Some((rest, file)) => (rest, Some(file)),
            None => (written, None),
        };
        let (repo, revision) = rest.split_once('@').unwrap_or((rest, "main"));
        let (org, name) = match repo.split_once('/') {
            Some((org, name)) => (Some(org), name),
            None => (None, repo),
        };
        let gguf = |file: &str| file.to_ascii_lowercase().ends_with(".gguf") && is_relative(file);
        // A misspelt file path should give an error about the file, not be searched for on the hub.
        let file_name = [".gguf", ".safetensors", ".bin", ".pt", ".json", ".jsonl", ".parquet", ".csv", ".txt", ".gz", ".zst"];
        let looks_like_a_file = file_name.iter().any(|end| name.to_ascii_lowercase().ends_with(end));
        // Repositories without an organisation have no dot in their names; file names do.
        let known_org = org.map_or(!name.contains('.'), is_label);
        let possible = known_org && is_label(name) && !looks_like_a_file && is_relative(revision) && file.is_none_or(gguf);
        possible.then(|| HubId {
            shelf: Shelf::Models,
            repo: repo.to_owned(),
            revision: revision.to_owned(),
            file: file.map(str::to_owned),
        })
    }
}

/// Is this a valid part of an id? Follows huggingface_hub's `_validators.py`.
fn is_label(label: &str) -> bool {
    let edge = |c: char| c.is_ascii_alphanumeric() || c == '_';
    (1..=96).contains(&label.len())
        && label.chars().all(|c| edge(c) || c == '-' || c == '.')
        && label.starts_with(edge)
        && label.ends_with(edge)
        && !label.contains("--")
        && !label.contains("..")
        && !label.ends_with(".git")
}

/// Does the name stay within the folder that it is joined to?
pub(crate) fn is_relative(name: &str) -> bool {
    let plain = |component| matches!(component, Component::Normal(_));
    !name.is_empty() && !name.contains(['\\', ':', '\0']) && Path::new(name).components().all(plain)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hub_ids_and_what_is_none() {
        let check = |written: &str, expected: Option<(&str, &str, Option<&str>)>| {
            let parsed = HubId::parse(written);
            let parts = parsed.as_ref().map(|id| (id.repo.as_str(), id.revision.as_str(), id.file.as_deref()));
            assert_eq!(parts, expected, "{written}");
        };
        check("gpt2", Some(("gpt2", "main", None)));
        check("gpt2@v1", Some(("gpt2", "v1", None)));
        check("Qwen/Qwen2.5-0.5B", Some(("Qwen/Qwen2.5-0.5B", "main", None)));
        check("org/name@v1.0", Some(("org/name", "v1.0", None)));
        check("org/name@refs/pr/7", Some(("org/name", "refs/pr/7", None)));
        check("org/name-GGUF:q4/name.Q4_K_M.gguf", Some(("org/name-GGUF", "main", Some("q4/name.Q4_K_M.gguf"))));
        check("org/name@abc:x.gguf", Some(("org/name", "abc", Some("x.gguf"))));
        for path in [
            "name.v1",
            "name.gguf",
            "..",
            "a/b/c",
            "/a/b",
            "./a/b",
            "a/",
            "/b",
            "../b",
            "a/model.gguf",
            "a/rows.jsonl",
            "a/b:c",
            "a/b:../c.gguf",
            "a/b:/c.gguf",
            "a/b@../c",
            "a/b@",
            "a b/c",
            "a/é",
            "a/b--c",
            "a/.b",
            "a/b-",
            "C:/model",
            "a/b.git",
            "",
        ] {
            check(path, None);
        }
    }

    #[test]
    fn names_that_lead_out_of_the_folder() {
        for name in ["a", "a/b.json", "refs/pr/1"] {
            assert!(is_relative(name), "{name}");
        }
        for name in ["", "/a", "../a", "a/../b", "a\\b", "c:x", "./a", "."] {
            assert!(!is_relative(name), "{name}");
        }
    }
}
