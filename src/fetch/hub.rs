//! Files of the hub's repositories, brought into the cache that Python shares.
//!
//! A client of our own, after huggingface_hub's `file_download.py`. The hf-hub crate would be the obvious choice, but its
//! 1.0 brings a second transfer protocol and two cryptography libraries, and its older lines neither resume a broken transfer
//! nor compare hashes. What is left out: uploads, data sets but for their Parquet copies, the Xet protocol (the hub serves the same files over HTTP).

use std::path::PathBuf;

use super::Progress;
use super::cache::Cache;
use super::client::{Client, Remote, offline};
use super::hub_id::{HubId, Shelf};
use crate::error::{Error, Result};

/// The files of the data set `repo` whose names `wanted` accepts, as Parquet: the hub keeps a converted copy of every data set
/// under a revision of its own, with names such as `CONFIG/SPLIT/0000.parquet`. What the cache lacks is fetched.
pub(crate) fn fetch_data(repo: &str, wanted: impl Fn(&str) -> bool, progress: Progress) -> Result<Vec<PathBuf>> {
    const CONVERTED: &str = "refs/convert/parquet";
    let id = HubId { shelf: Shelf::DataSets, repo: repo.to_owned(), revision: CONVERTED.to_owned(), file: None };
    let cache = Cache::from_env(id.shelf, repo)?;
    // The revision is written last: where it is, its files are, and benchmarks do not change.
    if let Some(commit) = cache.commit(CONVERTED) {
        let names = cache.files(&commit).into_iter().filter(|name| wanted(name));
        let paths: Vec<PathBuf> = names.map(|name| cache.snapshot(&commit).join(name)).collect();
        if !paths.is_empty() {
            return Ok(paths);
        }
    }
    if offline() {
        return Err(Error::new(format!("the data set `{repo}` is not in the cache, and HF_HUB_OFFLINE forbids downloading it"))
            .at(cache.repo_folder()));
    }
    let client = Client::from_env(&id)?;
    let listing = client.listing()?;
    let mut names: Vec<String> = listing.files.into_iter().filter(|name| wanted(name)).collect();
    names.sort_unstable();
    if names.is_empty() {
        return Err(Error::new(format!("the hub's data set `{repo}` has no such files at {CONVERTED}")));
    }
    fetch_all(&client, &cache, &listing.commit, &names, progress)?;
    cache.set_ref(CONVERTED, &listing.commit)?;
    Ok(names.into_iter().map(|name| cache.snapshot(&listing.commit).join(name)).collect())
}

/// Brings `names` into the snapshot, one after the other; the progress is that of all their bytes.
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
            // Whoever held the lock may have fetched it.
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
