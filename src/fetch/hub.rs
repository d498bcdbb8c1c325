//! Fetches files of the hub's repositories into the cache that this program shares with Python.
//!
//! This is our own client, modelled on huggingface_hub's `file_download.py`. The hf-hub crate would be the obvious choice, but
//! its 1.0 brings a second transfer protocol and two cryptography libraries, and its older versions neither resume an interrupted
//! transfer nor verify hashes. Not supported: uploads, data sets other than their Parquet copies, and the Xet protocol (the hub
//! serves the same files over HTTP).

use std::path::PathBuf;

use super::Progress;
use super::cache::Cache;
use super::client::{Client, Remote, offline};
use super::hub_id::{HubId, Shelf};
use crate::error::{Error, Result};

/// Returns the Parquet files of the data set `repo` whose names `wanted` accepts, fetching those that the cache lacks. The hub
/// keeps a converted copy of every data set under a separate revision, with names such as `CONFIG/SPLIT/0000.parquet`.
pub(crate) fn fetch_data(repo: &str, wanted: impl Fn(&str) -> bool, progress: Progress) -> Result<Vec<PathBuf>> {
    const CONVERTED: &str = "refs/convert/parquet";
    let id = HubId { shelf: Shelf::DataSets, repo: repo.to_owned(), revision: CONVERTED.to_owned(), file: None };
    let cache = Cache::from_env(id.shelf, repo)?;
    let paths = |commit: &str, names: Vec<String>| -> Vec<PathBuf> {
        let mut names: Vec<String> = names.into_iter().filter(|name| wanted(name)).collect();
        names.sort_unstable();
        names.into_iter().map(|name| cache.snapshot(commit).join(name)).collect()
    };
    // Other programs share the cache, and a download may have been interrupted: only the stored list of files shows whether a data
    // set is complete. A complete one is not refreshed, since benchmarks do not change.
    let listed = cache.commit(CONVERTED).and_then(|commit| Some(paths(&commit, cache.listed(&commit)?)));
    let n_there = listed.iter().flatten().filter(|path| path.exists()).count();
    if let Some(paths) = &listed
        && n_there == paths.len()
        && n_there > 0
    {
        return Ok(paths.clone());
    }
    if offline() {
        let found = match (listed, cache.commit(CONVERTED)) {
            (Some(paths), _) if n_there > 0 => format!("is in the cache with {n_there} of {} files", paths.len()),
            (None, Some(_)) => "may be in the cache in part only, without the list of its files".to_owned(),
            _ => "is not in the cache".to_owned(),
        };
        return Err(Error::new(format!("the data set `{repo}` {found}, and HF_HUB_OFFLINE forbids downloading it"))
            .at(cache.repo_folder()));
    }
    let client = Client::from_env(&id)?;
    let listing = client.listing()?;
    let names: Vec<String> = listing.files.iter().filter(|name| wanted(name)).cloned().collect();
    if names.is_empty() {
        return Err(Error::new(format!("the hub's data set `{repo}` has no such files at {CONVERTED}")));
    }
    fetch_all(&client, &cache, &listing.commit, &names, progress)?;
    cache.keep_list(&listing.commit, &listing.files);
    cache.set_ref(CONVERTED, &listing.commit)?;
    Ok(paths(&listing.commit, names))
}

/// Fetches `names` into the snapshot, one after the other, and reports the progress over all their bytes.
pub(crate) fn fetch_all(client: &Client, cache: &Cache, commit: &str, names: &[String], progress: Progress) -> Result<()> {
    let absent = names.iter().filter(|name| !cache.snapshot(commit).join(name).exists());
    let absent = absent.map(|name| Ok((name, client.remote(commit, name)?))).collect::<Result<Vec<(&String, Remote)>>>()?;
    let total = absent.iter().map(|(_, remote)| remote.size.unwrap_or(0)).sum();
    let what = format!("Fetching {}", client.repo());
    let mut done = 0;
    for (name, remote) in absent {
        let blob = cache.blob(&remote.etag);
        if !blob.exists() {
            let _lock = cache.lock(&remote.etag)?;
            // The previous holder of the lock may have fetched it.
            if !blob.exists() {
                client.download(name, &remote, &blob, &|bytes| progress(&what, done + bytes, total))?;
            }
        }
        cache.link(&blob, commit, name)?;
        done += remote.size.unwrap_or(0);
        progress(&what, done, total);
    }
    Ok(())
}
