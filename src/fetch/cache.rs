//! The cache of Hugging Face's Python library, which this program shares, so that no model is stored twice.
//!
//! ```text
//! HF_HUB_CACHE/models--org--name/blobs/ETAG                     the bytes; `ETAG.incomplete` during the download
//! HF_HUB_CACHE/models--org--name/refs/REVISION                  the commit of a branch or a tag
//! HF_HUB_CACHE/models--org--name/snapshots/COMMIT/FILE          a relative link to the blob
//! HF_HUB_CACHE/models--org--name/.diagnose/COMMIT               our own: the names of all files of the commit, one per line
//! HF_HUB_CACHE/.locks/models--org--name/ETAG.lock               held during the download of the blob
//! ```

use std::fs::File;
use std::path::{Path, PathBuf};

use super::hub_id::Shelf;
use crate::error::{Context, Error, Result};

/// The part of the cache that belongs to one repository.
#[derive(Debug, Clone)]
pub(crate) struct Cache {
    root: PathBuf,
    folder: String,
}

impl Cache {
    /// Opens the cache where the environment puts it: HF_HUB_CACHE, HF_HOME, XDG_CACHE_HOME, or the home folder.
    pub(crate) fn from_env(shelf: Shelf, repo: &str) -> Result<Cache> {
        let root = match variable("HF_HUB_CACHE").or_else(|| variable("HUGGINGFACE_HUB_CACHE")) {
            Some(root) => root,
            None => home()
                .ok_or_else(|| Error::new("no folder to keep models in: neither HF_HOME nor HOME is set").cure("Set HF_HOME."))?
                .join("hub"),
        };
        let shelf = match shelf {
            Shelf::Models => "models",
            Shelf::DataSets => "datasets",
        };
        Ok(Cache { root, folder: format!("{shelf}--{}", repo.replace('/', "--")) })
    }

    pub(crate) fn repo_folder(&self) -> PathBuf {
        self.root.join(&self.folder)
    }

    pub(crate) fn blob(&self, etag: &str) -> PathBuf {
        self.repo_folder().join("blobs").join(etag)
    }

    pub(crate) fn snapshot(&self, commit: &str) -> PathBuf {
        self.repo_folder().join("snapshots").join(commit)
    }

    /// The commit of `revision`, if the cache knows it.
    pub(crate) fn commit(&self, revision: &str) -> Option<String> {
        if is_commit(revision) {
            return Some(revision.to_owned());
        }
        let commit = std::fs::read_to_string(self.repo_folder().join("refs").join(revision)).ok()?;
        Some(commit.trim().to_owned()).filter(|commit| is_commit(commit))
    }

    pub(crate) fn set_ref(&self, revision: &str, commit: &str) -> Result<()> {
        if self.commit(revision).as_deref() == Some(commit) {
            return Ok(());
        }
        write(&self.repo_folder().join("refs").join(revision), commit)
    }

    /// The names, in the repository, of the snapshot's files whose content is present.
    pub(crate) fn files(&self, commit: &str) -> Vec<String> {
        fn walk(folder: &Path, prefix: &str, names: &mut Vec<String>) {
            let Ok(entries) = std::fs::read_dir(folder) else { return };
            for entry in entries.filter_map(|entry| entry.ok()) {
                let name = format!("{prefix}{}", entry.file_name().to_string_lossy());
                let path = entry.path();
                if path.is_dir() {
                    walk(&path, &format!("{name}/"), names);
                } else if path.is_file() {
                    names.push(name);
                }
            }
        }
        let mut names = Vec::new();
        walk(&self.snapshot(commit), "", &mut names);
        names.sort_unstable();
        names
    }

    /// The names of all files of the repository at a commit, including those that are not in the cache; `None` if the hub's list was
    /// never stored.
    pub(crate) fn listed(&self, commit: &str) -> Option<Vec<String>> {
        let list = std::fs::read_to_string(self.list(commit)).ok()?;
        Some(list.lines().map(str::to_owned).collect())
    }

    /// Stores the names for [`Cache::listed`]. In a read-only cache this fails silently, and the hub is asked again next time.
    pub(crate) fn keep_list(&self, commit: &str, files: &[String]) {
        let _ = write(&self.list(commit), &files.join("\n"));
    }

    fn list(&self, commit: &str) -> PathBuf {
        self.repo_folder().join(".diagnose").join(commit)
    }

    /// Locks the blob against other processes that would fetch it, including Python's library, until the file is dropped.
    pub(crate) fn lock(&self, etag: &str) -> Result<File> {
        let path = self.root.join(".locks").join(&self.folder).join(format!("{etag}.lock"));
        create_parent(&path)?;
        let file = File::options().create(true).append(true).open(&path).context_at(&path, "cannot create a lock file")?;
        // Some network file systems do not support locks. Two processes may then fetch the same file; the hash shows whether it
        // was corrupted.
        let _ = file.lock();
        Ok(file)
    }

    /// Links `name` of the snapshot to `blob`.
    pub(crate) fn link(&self, blob: &Path, commit: &str, name: &str) -> Result<()> {
        let path = self.snapshot(commit).join(name);
        create_parent(&path)?;
        // Remove a link whose blob was deleted.
        let _ = std::fs::remove_file(&path);
        link(blob, &path, name).context_at(&path, "cannot write to the cache of models")
    }
}

#[cfg(unix)]
fn link(blob: &Path, path: &Path, name: &str) -> std::io::Result<()> {
    // Relative, from snapshots/COMMIT/NAME up to the repository's folder, so that the cache can be moved.
    let up = "../".repeat(2 + name.matches('/').count());
    let etag = blob.file_name().unwrap_or_default();
    match std::os::unix::fs::symlink(Path::new(&up).join("blobs").join(etag), path) {
        // Another process created it first.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    }
}

/// Copies the file, like Python's library where users may not create links.
#[cfg(not(unix))]
fn link(blob: &Path, path: &Path, _name: &str) -> std::io::Result<()> {
    std::fs::copy(blob, path).map(drop)
}

/// Is this a commit, 40 hexadecimal digits?
pub(crate) fn is_commit(revision: &str) -> bool {
    revision.len() == 40 && revision.bytes().all(|byte| byte.is_ascii_hexdigit())
}

/// HF_HOME or its default: the folder of the cache and the token.
pub(crate) fn home() -> Option<PathBuf> {
    variable("HF_HOME").or_else(|| {
        let base = variable("XDG_CACHE_HOME").or_else(|| user_home().map(|home| home.join(".cache")));
        base.map(|base| base.join("huggingface"))
    })
}

/// The cache folder of this program: `$DIAGNOSE_CACHE`, or `diagnose` in the user's cache folder; `None` if neither is known.
pub(crate) fn own_cache() -> Option<PathBuf> {
    variable("DIAGNOSE_CACHE").or_else(|| {
        let in_home = || user_home().map(|home| home.join(if cfg!(target_os = "macos") { "Library/Caches" } else { ".cache" }));
        let base = variable("XDG_CACHE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(in_home);
        base.map(|base| base.join("diagnose"))
    })
}

/// The folder for decisions of this program that must survive clearing the caches: `diagnose` in `$XDG_STATE_HOME`, or in the
/// user's state folder; `None` if neither is known.
pub(crate) fn own_state() -> Option<PathBuf> {
    let in_home = || {
        user_home().map(|home| home.join(if cfg!(target_os = "macos") { "Library/Application Support" } else { ".local/state" }))
    };
    let base = variable("XDG_STATE_HOME").or_else(|| variable("LOCALAPPDATA")).or_else(in_home);
    base.map(|base| base.join("diagnose"))
}

/// The path in an environment variable; `~` is the home folder, as in Python's library.
pub(crate) fn variable(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from)?;
    match path.strip_prefix("~") {
        Ok(rest) => user_home().map(|home| home.join(rest)),
        Err(_) => Some(path),
    }
}

fn user_home() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    variable("HOME").or_else(|| variable("USERPROFILE"))
}

fn write(path: &Path, text: &str) -> Result<()> {
    let folder = create_parent(path)?;
    let written = tempfile::NamedTempFile::new_in(folder).and_then(|file| {
        std::fs::write(file.path(), text)?;
        file.persist(path).map_err(|error| error.error)
    });
    written.map(drop).context_at(path, "cannot write to the cache of models")
}

fn create_parent(path: &Path) -> Result<&Path> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder).map_err(|cause| {
        Error::new("cannot create the folder").at(folder).caused_by(cause).cure("Set HF_HOME to a writable folder.")
    })?;
    Ok(folder)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_layout_is_that_of_the_python_library() {
        let root = tempfile::tempdir().unwrap();
        let cache = Cache { root: root.path().to_owned(), folder: "models--org--name".to_owned() };
        let commit = "0123456789abcdef0123456789abcdef01234567";
        let blob = cache.blob("e7a6");
        create_parent(&blob).unwrap();
        std::fs::write(&blob, "bytes").unwrap();
        cache.link(&blob, commit, "config.json").unwrap();
        cache.link(&blob, commit, "q4/model.gguf").unwrap();
        cache.set_ref("refs/pr/1", commit).unwrap();
        let snapshot = root.path().join("models--org--name/snapshots").join(commit);
        let target = |name: &str| std::fs::read_link(snapshot.join(name)).unwrap();
        assert_eq!(target("config.json"), Path::new("../../blobs/e7a6"));
        assert_eq!(target("q4/model.gguf"), Path::new("../../../blobs/e7a6"));
        assert_eq!(std::fs::read_to_string(snapshot.join("q4/model.gguf")).unwrap(), "bytes");
        assert_eq!(std::fs::read_to_string(root.path().join("models--org--name/refs/refs/pr/1")).unwrap(), commit);
        assert_eq!(cache.commit("refs/pr/1").as_deref(), Some(commit));
        assert_eq!(cache.files(commit), ["config.json", "q4/model.gguf"]);
        // A link whose blob was deleted does not count as a file.
        std::fs::remove_file(&blob).unwrap();
        assert!(cache.files(commit).is_empty());
        assert_eq!(cache.commit("main"), None);
    }
}
