//! Models by hub id: which files of a repository make up a model, and where they are stored once fetched.

use std::path::{Path, PathBuf};

use super::gguf_files;
use super::safetensors::shard_paths;
use crate::error::{Error, Result};
use crate::fetch::Progress;
use crate::fetch::cache::{Cache, is_commit};
use crate::fetch::client::{Client, Listing, offline};
use crate::fetch::hub::fetch_all;
use crate::fetch::hub_id::{HubId, is_relative};

/// The files with the tokenizer, the template and the config. A repository need not have all of them.
const COMPANIONS: &[&str] = &[
    "config.json",
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "chat_template.json",
    "additional_chat_templates/tool_use.jinja",
    "adapter_config.json",
];
const CONFIG: &str = "config.json";
const TOKENIZER: &str = "tokenizer.json";
const SINGLE: &str = "model.safetensors";
const INDEX: &str = "model.safetensors.index.json";
const ADAPTER_CONFIG: &str = "adapter_config.json";
const ADAPTER: &str = "adapter_model.safetensors";

/// The part of a model that is needed.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Wanted {
    Model,
    /// Its tokenizer, template and config.
    Text,
}

/// The cached folder or `.gguf` file for `id`; fetches what the cache lacks. With `adapter`, a repository
/// that contains both a model and an adapter yields the adapter.
pub(crate) fn fetch(id: &HubId, wanted: Wanted, adapter: bool, progress: Progress) -> Result<PathBuf> {
    let cache = Cache::from_env(id.shelf, &id.repo)?;
    let cached = || {
        let commit = cache.commit(&id.revision)?;
        let text = Some(cache.snapshot(&commit)).filter(|folder| wanted == Wanted::Text && id.file.is_none() && has_text(folder));
        text.or_else(|| whole(&cache, &commit, id, adapter))
    };
    if offline() {
        return cached().ok_or_else(|| {
            Error::new(format!("`{}` is not (completely) in the cache, and HF_HUB_OFFLINE forbids downloading it", id.repo))
                .at(cache.repo_folder())
                .cure("Unset HF_HUB_OFFLINE, or name a model that is available locally: a folder, a .gguf file, another hub id.")
        });
    }
    // A commit never changes, so the cache suffices.
    if is_commit(&id.revision)
        && let Some(path) = cached()
    {
        return Ok(path);
    }
    let client = Client::from_env(id)?;
    let listing = match client.listing() {
        Ok(listing) => listing,
        // As in huggingface_hub: while the hub is unavailable, the cached files are used.
        Err(error) => return cached().ok_or(error),
    };
    let path = download(&client, &cache, &listing, id, wanted, adapter, progress)?;
    // This comes last, so that the revision never points at an incomplete snapshot.
    cache.set_ref(&id.revision, &listing.commit)?;
    Ok(path)
}

/// The name of the file, or of the repository without the organisation.
pub(crate) fn short_name(id: &HubId) -> &str {
    match &id.file {
        Some(file) => gguf_files::stem(file.rsplit_once('/').map_or(file, |(_, name)| name)),
        None => id.repo.split_once('/').map_or(id.repo.as_str(), |(_, name)| name),
    }
}

/// The kind of model in a repository.
#[derive(Debug, PartialEq)]
enum Choice {
    /// One file, or all parts of a split file.
    Gguf(Vec<String>),
    /// A folder, and the file that contains its weights or lists the shards.
    Folder(&'static str),
}

fn choose(files: &[String], id: &HubId, adapter: bool) -> Result<Choice> {
    let has = |name: &str| files.iter().any(|file| file == name);
    let gguf = |file: &str| gguf_files::parts_of(file).unwrap_or_else(|| vec![file.to_owned()]);
    // The first part of a split file represents all of them.
    let is_first = |file: &str| file.to_ascii_lowercase().ends_with(".gguf") && gguf(file)[0] == file;
    let ggufs: Vec<&str> = files.iter().map(String::as_str).filter(|file| is_first(file)).collect();
    let offer = || match ggufs.as_slice() {
        [] => "It holds no .gguf file.".to_owned(),
        [first, ..] => format!("Name one of its files, such as `{}:{first}`; there are: {}", id.repo, ggufs.join(", ")),
    };
    if let Some(file) = &id.file {
        return match has(file) {
            true => Ok(Choice::Gguf(gguf(file))),
            false => Err(Error::new(format!("the hub's `{}` holds no file `{file}`", id.repo)).cure(offer())),
        };
    }
    let weights = [(SINGLE, "config.json"), (INDEX, "config.json"), (ADAPTER, ADAPTER_CONFIG)];
    let mut there = weights.into_iter().filter(|(weights, config)| has(weights) && has(config));
    if let Some((weights, _)) = if adapter { there.next_back() } else { there.next() } {
        return Ok(Choice::Folder(weights));
    }
    match ggufs.as_slice() {
        [single] => Ok(Choice::Gguf(gguf(single))),
        [] => Err(Error::new(format!("the hub's `{}` holds neither safetensors with a config.json nor a .gguf file", id.repo))
            .cure("Name a repository that does; older .bin checkpoints must be saved again as safetensors.")),
        _ => Err(Error::new(format!("the hub's `{}` holds {} .gguf files", id.repo, ggufs.len())).cure(offer())),
    }
}

/// Whether the folder contains a tokenizer and a config.
fn has_text(folder: &Path) -> bool {
    let has = |name: &str| folder.join(name).is_file();
    has(TOKENIZER) && (has(CONFIG) || has(ADAPTER_CONFIG))
}

/// The model in the snapshot of `commit`, if every file that it needs is there.
fn whole(cache: &Cache, commit: &str, id: &HubId, adapter: bool) -> Option<PathBuf> {
    let folder = cache.snapshot(commit);
    match choose(&cache.files(commit), id, adapter).ok()? {
        Choice::Gguf(files) => files.iter().all(|file| folder.join(file).is_file()).then(|| folder.join(&files[0])),
        Choice::Folder(INDEX) => shard_paths(&folder).ok()?.iter().all(|path| path.is_file()).then_some(folder),
        Choice::Folder(_) => Some(folder),
    }
}

/// Fetches the files of the model that the cache lacks; returns the model's path.
fn download(
    client: &Client,
    cache: &Cache,
    Listing { commit, files }: &Listing,
    id: &HubId,
    wanted: Wanted,
    adapter: bool,
    progress: Progress,
) -> Result<PathBuf> {
    let folder = cache.snapshot(commit);
    let small = || COMPANIONS.iter().filter(|name| files.iter().any(|file| file == *name)).map(|name| (*name).to_owned());
    let has = |name: &str| files.iter().any(|file| file == name);
    if wanted == Wanted::Text && id.file.is_none() && has(TOKENIZER) && (has(CONFIG) || has(ADAPTER_CONFIG)) {
        return fetch_all(client, cache, commit, &small().collect::<Vec<_>>(), progress).map(|()| folder);
    }
    let choice = choose(files, id, adapter)?;
    let weights = match &choice {
        Choice::Gguf(files) => return fetch_all(client, cache, commit, files, progress).map(|()| folder.join(&files[0])),
        Choice::Folder(weights) => *weights,
    };
    let mut small: Vec<String> = small().collect();
    if weights == INDEX {
        small.push(INDEX.to_owned());
    }
    fetch_all(client, cache, commit, &small, progress)?;
    let large = match weights {
        INDEX => shard_paths(&folder)?
            .iter()
            .map(|path| match path.strip_prefix(&folder).ok().and_then(Path::to_str) {
                Some(name) if is_relative(name) => Ok(name.to_owned()),
                _ => Err(Error::new(format!("a shard is named `{}`, which points outside the folder", path.display()))
                    .at(folder.join(INDEX))),
            })
            .collect::<Result<Vec<_>>>()?,
        single => vec![single.to_owned()],
    };
    fetch_all(client, cache, commit, &large, progress)?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_files_that_make_a_model() {
        let check = |files: &[&str], written: &str, expected: std::result::Result<Choice, &str>| {
            let files: Vec<String> = files.iter().map(|file| (*file).to_owned()).collect();
            match (choose(&files, &HubId::parse(written).unwrap(), false), expected) {
                (Ok(choice), Ok(expected)) => assert_eq!(choice, expected),
                (Err(error), Err(part)) => assert!(error.to_string().contains(part), "{error}"),
                (found, expected) => panic!("{files:?}: expected {expected:?}, found {found:?}"),
            }
        };
        let gguf = |name: &str| Ok(Choice::Gguf(vec![name.to_owned()]));
        check(&["config.json", "model.safetensors", "a.gguf"], "o/n", Ok(Choice::Folder(SINGLE)));
        check(&["config.json", "model.safetensors.index.json", "x.safetensors"], "o/n", Ok(Choice::Folder(INDEX)));
        check(&["adapter_config.json", "adapter_model.safetensors"], "o/n", Ok(Choice::Folder(ADAPTER)));
        let both = ["config.json", "model.safetensors", "adapter_config.json", "adapter_model.safetensors"].map(str::to_owned);
        let of_both = |adapter| choose(&both, &HubId::parse("o/n").unwrap(), adapter).unwrap();
        assert_eq!((of_both(false), of_both(true)), (Choice::Folder(SINGLE), Choice::Folder(ADAPTER)));
        check(&["config.json", "a.gguf"], "o/n", gguf("a.gguf"));
        check(&["config.json", "model.safetensors", "a.gguf"], "o/n:a.gguf", gguf("a.gguf"));
        check(&["a.gguf", "b.gguf"], "o/n", Err("o/n:a.gguf"));
        let parts = ["q4/a-00001-of-00002.gguf", "q4/a-00002-of-00002.gguf"];
        let split = || Ok(Choice::Gguf(parts.map(str::to_owned).to_vec()));
        check(&parts, "o/n", split());
        check(&parts, "o/n:q4/a-00002-of-00002.gguf", split());
        check(&[parts[0], parts[1], "b.gguf"], "o/n", Err("holds 2 .gguf files"));
        check(&["a.gguf"], "o/n:c.gguf", Err("holds no file `c.gguf`"));
        check(&["pytorch_model.bin", "config.json"], "o/n", Err("older .bin"));
    }
}
