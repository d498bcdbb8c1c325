//! Writes files and folders so that they appear under their final names either complete or not at all, even if the program is
//! killed; computes hashes of files.

use std::fs::{self, File, TryLockError};
use std::io::{BufWriter, Read, Write};
use std::path::{Path, PathBuf};

use serde::Serialize;
use serde::de::DeserializeOwned;
use sha2::{Digest, Sha256};

use crate::error::{Context, Error, Result};

/// Lets `write` fill a temporary file beside `path`, syncs it to the disk and renames it to `path`.
///
/// The temporary name is fixed (`.NAME.partial`), so that the next run overwrites what a killed run left behind.
pub(crate) fn write_atomically<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let destination = &destination(path)?;
    let partial = partial_path(destination);
    let file = File::create(&partial).context_at(&partial, "cannot create the file")?;
    let mut writer = BufWriter::with_capacity(1 << 20, file);
    let written = write(&mut writer)
        .map_err(|error| error.at(path))
        .and_then(|value| {
            let file = writer.into_inner().map_err(|error| error.into_error()).context_at(path, "cannot write the file")?;
            file.sync_all().context_at(path, "cannot write the file to the disk")?;
            Ok(value)
        })
        .and_then(|value| {
            fs::rename(&partial, destination).context_at(path, "cannot rename the finished file")?;
            sync_folder(destination)?;
            Ok(value)
        });
    if written.is_err() {
        // Report the first error; the next run overwrites a leftover anyway.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// Returns the path to write to for `path`: a symbolic link stays a link, and its target is written. Anything that is not a
/// regular file is an error: renaming the finished file over a device such as `/dev/stdout` would replace it for every program on
/// the machine.
fn destination(path: &Path) -> Result<PathBuf> {
    refuse_dash(path)?;
    match fs::metadata(path) {
        Ok(found) if !found.is_file() => {
            let what = if found.is_dir() { "a folder" } else { "a device or a pipe" };
            Err(Error::usage(format!("expected the name of a file to write, found {what}")).at(path).cure("Name a file."))
        }
        _ if path.is_symlink() => fs::canonicalize(path).context_at(path, "cannot resolve the symbolic link"),
        _ => Ok(path.to_owned()),
    }
}

/// Returns an error for `-`, which other programs take as standard output, but which here would create a file of that name.
fn refuse_dash(path: &Path) -> Result<()> {
    match path.as_os_str() == "-" {
        true => Err(Error::usage("`-` is not a file, and output cannot go to standard output").cure("Name a file or a folder.")),
        false => Ok(()),
    }
}

/// Returns the same path for all names of a file, whether or not the file exists yet.
pub(crate) fn identified(path: &Path) -> PathBuf {
    fs::canonicalize(path).unwrap_or_else(|_| {
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
        match (fs::canonicalize(folder), path.file_name()) {
            (Ok(folder), Some(name)) => folder.join(name),
            _ => path.to_owned(),
        }
    })
}

/// The file in a folder by which [`hold`] locks it; it stays there.
pub(crate) const LOCK_FILE: &str = ".lock";

/// A lock on a folder: while this lives, no other process of this program writes into it.
#[must_use]
pub(crate) struct Held {
    _lock: File,
}

/// Creates the folder and locks it for this process. Returns an error if another process holds it, since both would write the
/// same files.
pub(crate) fn hold(folder: &Path) -> Result<Held> {
    refuse_dash(folder)?;
    fs::create_dir_all(folder).context_at(folder, "cannot create the folder")?;
    // The lock file is never removed: otherwise a third process could create a new one while a second one waits on the old one.
    let path = folder.join(LOCK_FILE);
    let lock =
        File::options().create(true).truncate(false).write(true).open(&path).context_at(&path, "cannot create the file")?;
    match lock.try_lock() {
        Err(TryLockError::WouldBlock) => Err(Error::new("another command is working in this folder")
            .at(folder)
            .cure("Wait until it ends, or choose another folder with --out.")),
        // Some network file systems do not support locks.
        Ok(()) | Err(TryLockError::Error(_)) => Ok(Held { _lock: lock }),
    }
}

/// Writes the numbers one after the other, `N` bytes each.
pub(crate) fn write_numbers<T: Copy, const N: usize>(
    file: &mut impl Write,
    numbers: &[T],
    encode: impl Fn(T) -> [u8; N],
) -> std::io::Result<()> {
    const AT_ONCE: usize = 1 << 16;
    let mut bytes = vec![0; N * numbers.len().min(AT_ONCE)];
    for numbers in numbers.chunks(AT_ONCE) {
        let (places, _) = bytes.as_chunks_mut::<N>();
        // Indexing instead of iterators: where std's iterator functions are not inlined across codegen units, calling them costs
        // more than the work itself.
        for i in 0..numbers.len() {
            places[i] = encode(numbers[i]);
        }
        file.write_all(&bytes[..N * numbers.len()])?;
    }
    Ok(())
}

/// Writes `value` as indented JSON, atomically (see [`write_atomically`]).
pub(crate) fn write_json(path: &Path, value: &impl Serialize) -> Result<()> {
    write_atomically(path, |file| {
        serde_json::to_writer_pretty(&mut *file, value).context("cannot write JSON")?;
        file.write_all(b"\n").context("cannot write JSON")
    })
}

/// The last component of a path, for display; empty if it has none.
pub(crate) fn file_name(path: &Path) -> String {
    path.file_name().unwrap_or_default().to_string_lossy().into_owned()
}

/// Writes `text` as the whole content of a file, atomically (see [`write_atomically`]).
pub(crate) fn write_text(path: &Path, text: &str) -> Result<()> {
    write_atomically(path, |file| file.write_all(text.as_bytes()).context("cannot write the file"))
}

/// Reads what [`write_json`] wrote; `None` if there is no such file.
pub(crate) fn read_json<T: DeserializeOwned>(path: &Path) -> Result<Option<T>> {
    match fs::read(path) {
        Ok(bytes) => {
            serde_json::from_slice(&bytes).context_at(path, "the file does not have the format of this version").map(Some)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("cannot read the file").at(path).caused_by(error)),
    }
}

/// Reads what [`write_json`] wrote; a missing file is an error.
pub(crate) fn read_existing_json<T: DeserializeOwned>(path: &Path) -> Result<T> {
    read_json(path)?.ok_or_else(|| Error::new("cannot read the file, which is not there").at(path))
}

/// Writes `bytes` and syncs them to the disk, so that they are there before the enclosing folder gets its final name.
pub(crate) fn write_synced(path: &Path, bytes: &[u8]) -> Result<()> {
    let written = fs::File::create(path).and_then(|mut file| file.write_all(bytes).and_then(|()| file.sync_all()));
    written.context_at(path, "cannot write the file")
}

/// Lets `fill` put files into a folder with a temporary name, then renames it to `folder`, replacing what was there. If the
/// program is killed at any point, the next call restores the old folder first, even if that call then fails.
pub(crate) fn in_new_folder(folder: &Path, fill: impl FnOnce(&Path) -> Result<()>) -> Result<()> {
    let name = folder.file_name().ok_or_else(|| Error::usage("expected the name of a new folder").at(folder))?;
    let beside = |end: &str| folder.with_file_name(format!(".{}.{end}", name.to_string_lossy()));
    let (partial, old) = (beside("partial"), beside("old"));
    if old.exists() && !folder.exists() {
        // A killed call moved the old folder away before it put the new one in its place.
        fs::rename(&old, folder).context_at(folder, "cannot restore the folder that an interrupted save moved")?;
    }
    for leftover in [&partial, &old].into_iter().filter(|path| path.exists()) {
        fs::remove_dir_all(leftover).context_at(leftover, "cannot remove the remains of an interrupted save")?;
    }
    fs::create_dir_all(&partial).context_at(&partial, "cannot create the folder")?;
    if let Err(error) = fill(&partial) {
        // Report the first error.
        let _ = fs::remove_dir_all(&partial);
        return Err(error.at(folder));
    }
    let renamed = "cannot rename the finished folder";
    let replaces = folder.exists();
    if replaces {
        fs::rename(folder, &old).context_at(folder, renamed)?;
    }
    fs::rename(&partial, folder).context_at(folder, renamed)?;
    if replaces {
        fs::remove_dir_all(&old).context_at(&old, "cannot remove the folder that was replaced")?;
    }
    Ok(())
}

/// Removes a folder, if it is there, that must never be found with a part of its files: it gets another name first. What a killed
/// call left under that name is removed, too.
pub(crate) fn retire(folder: &Path) -> Result<()> {
    let retired = folder.with_file_name(format!(".{}.retired", file_name(folder).trim_start_matches('.')));
    let remove = || match retired.exists() {
        true => fs::remove_dir_all(&retired).context_at(&retired, "cannot remove the folder"),
        false => Ok(()),
    };
    remove()?;
    if folder.exists() {
        fs::rename(folder, &retired).context_at(folder, "cannot put the folder away")?;
    }
    remove()
}

/// Returns an error if the file is a pointer that Git LFS or git-annex left in place of a large file. A file that cannot be
/// opened is left for the caller to report.
pub(crate) fn refuse_pointer(path: &Path) -> Result<()> {
    let mut start = Vec::new();
    let read = File::open(path).and_then(|file| file.take(POINTER_BYTES).read_to_end(&mut start));
    match pointer(&start).filter(|_| read.is_ok()) {
        Some(refused) => Err(refused.at(path)),
        None => Ok(()),
    }
}

/// How many bytes at the start of a file suffice to recognise a pointer of Git LFS or git-annex.
const POINTER_BYTES: u64 = 64;

/// Returns the error for a file that starts with these bytes, if Git LFS or git-annex put it in place of a large file.
pub(crate) fn pointer(start: &[u8]) -> Option<Error> {
    const LFS: [&[u8]; 2] = [b"version https://git-lfs.github.com/spec/", b"version https://hawser.github.com/spec/"];
    const ANNEX: &[u8] = b"/annex/objects/";
    // Where symbolic links are not supported, git-annex writes the target of the link into a file.
    let is_annex = start.starts_with(ANNEX) || (start.starts_with(b"../") || start.starts_with(b".git/")) && holds(start, ANNEX);
    let (name, fetch) = if LFS.iter().any(|mark| start.starts_with(mark)) {
        ("Git LFS", "git lfs pull")
    } else if is_annex {
        ("git-annex", "git annex get")
    } else {
        return None;
    };
    Some(
        Error::new(format!("this is a {name} pointer to a large file, not the file itself"))
            .cure(format!("Get the file with {fetch} in its repository, or download it from the repository's website.")),
    )
}

fn holds(text: &[u8], part: &[u8]) -> bool {
    text.windows(part.len()).any(|window| window == part)
}

/// SHA-256 of a file's bytes in hexadecimal.
pub(crate) fn file_sha256(path: &Path) -> Result<String> {
    file_digest(Sha256::new(), path)
}

/// The hash, in hexadecimal, of what `hasher` has already seen followed by the file's bytes.
pub(crate) fn file_digest<D: Digest>(mut hasher: D, path: &Path) -> Result<String> {
    let mut file = File::open(path).context_at(path, "cannot open the file")?;
    let read = for_each_chunk(&mut file, "cannot read the file", |chunk| {
        hasher.update(chunk);
        Ok(())
    });
    read.map_err(|error| error.at(path))?;
    Ok(hex(&hasher.finalize()))
}

/// Passes all bytes of `reader` to `work` in chunks of at most a megabyte; `cannot_read` is the message if reading fails.
pub(crate) fn for_each_chunk(reader: &mut dyn Read, cannot_read: &str, mut work: impl FnMut(&[u8]) -> Result<()>) -> Result<()> {
    let mut buffer = vec![0; 1 << 20];
    loop {
        match reader.read(&mut buffer) {
            Ok(0) => return Ok(()),
            Ok(n) => work(&buffer[..n])?,
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(Error::new(cannot_read).caused_by(error)),
        }
    }
}

/// SHA-256 of `bytes` in hexadecimal.
pub(crate) fn sha256(bytes: impl AsRef<[u8]>) -> String {
    hex(&Sha256::digest(bytes))
}

/// The first eight bytes of a hash as a number, to compare hashes and to count them.
pub(crate) fn first_bytes(hash: &[u8]) -> u64 {
    u64::from_be_bytes(std::array::from_fn(|i| hash[i]))
}

/// Two lower-case hexadecimal digits per byte.
pub(crate) fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// Syncs the folder that holds `path`: only then is a rename in it on the disk.
#[cfg(unix)]
fn sync_folder(path: &Path) -> Result<()> {
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    File::open(folder).and_then(|folder| folder.sync_all()).context_at(folder, "cannot write the folder to the disk")
}

#[cfg(not(unix))]
fn sync_folder(_path: &Path) -> Result<()> {
    Ok(())
}

fn partial_path(path: &Path) -> PathBuf {
    let name = file_name(path);
    path.with_file_name(format!(".{name}.partial"))
}

/// Skips a test that lacks something, like `absent` in tests/workdir.rs: in CI this is a failure unless the lack is declared.
#[cfg(test)]
pub(crate) fn absent(thing: &str, why: &str) {
    let is_ci = std::env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()));
    let without = std::env::var("DIAGNOSE_TESTS_WITHOUT").unwrap_or_default();
    assert!(!is_ci || without.split(',').any(|known| known.trim() == thing), "{why}: CI must not pass for want of it");
    println!("skipped: {why}");
}

/// The path of a file of the development data beside the checkout, for tests.
#[cfg(test)]
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name);
    if !path.exists() {
        absent("shared", &format!("there is no ../shared/{name}"));
        return None;
    }
    Some(path)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_failed_write_leaves_the_old_file_and_no_other() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.txt");
        write_atomically(&path, |file| file.write_all(b"old").context("write")).unwrap();
        let failed = write_atomically(&path, |file| {
            file.write_all(b"new").context("write")?;
            Err::<(), _>(Error::new("stopped half way"))
        });
        assert!(failed.unwrap_err().to_string().contains("stopped half way"));
        assert_eq!(fs::read_to_string(&path).unwrap(), "old");
        assert_eq!(fs::read_dir(folder.path()).unwrap().count(), 1);
    }

    #[cfg(unix)]
    #[test]
    fn links_are_followed_and_devices_refused() {
        let folder = tempfile::tempdir().unwrap();
        let [file, link, nowhere] = ["elsewhere.txt", "link.txt", "nowhere.txt"].map(|name| folder.path().join(name));
        write_text(&file, "old").unwrap();
        std::os::unix::fs::symlink("elsewhere.txt", &link).unwrap();
        std::os::unix::fs::symlink("gone/x.txt", &nowhere).unwrap();
        write_text(&link, "new").unwrap();
        assert!(link.is_symlink());
        assert_eq!(fs::read_to_string(&file).unwrap(), "new");
        assert_eq!(identified(&link), identified(&file));
        for (path, found) in
            [(nowhere.as_path(), "symbolic link"), (folder.path(), "a folder"), (Path::new("-"), "standard output")]
        {
            assert!(write_text(path, "new").unwrap_err().to_string().contains(found), "{}", path.display());
        }
        // A socket is not a regular file either; with a real device, a failure of this test would destroy it.
        let socket = folder.path().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
        assert!(write_text(&socket, "new").unwrap_err().to_string().contains("a device or a pipe"));
        assert!(!fs::metadata(&socket).unwrap().is_file());
    }

    #[test]
    fn a_folder_that_a_killed_save_moved_away_is_there_after_a_failed_one() {
        let parent = tempfile::tempdir().unwrap();
        let (folder, old, partial) =
            (parent.path().join("model"), parent.path().join(".model.old"), parent.path().join(".model.partial"));
        // The state between the two renames.
        for path in [&old, &partial] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("weights"), path.to_string_lossy().as_bytes()).unwrap();
        }
        in_new_folder(&folder, |_| Err(Error::new("disk on fire"))).unwrap_err();
        assert_eq!(fs::read_to_string(folder.join("weights")).unwrap(), old.to_string_lossy());
        in_new_folder(&folder, |partial| write_synced(&partial.join("weights"), b"new")).unwrap();
        assert_eq!(fs::read_to_string(folder.join("weights")).unwrap(), "new");
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 1);
    }

    #[test]
    fn a_retired_folder_leaves_nothing_behind() {
        let parent = tempfile::tempdir().unwrap();
        let [folder, retired] = [".parts", ".parts.retired"].map(|name| parent.path().join(name));
        // The state after a kill within the removal, and then a new folder of the same name.
        for path in [&retired, &folder] {
            fs::create_dir(path).unwrap();
            fs::write(path.join("part"), "").unwrap();
        }
        retire(&folder).unwrap();
        assert_eq!(fs::read_dir(parent.path()).unwrap().count(), 0);
        retire(&folder).unwrap();
    }

    #[test]
    fn a_pointer_of_git_is_told_from_the_file() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("a.parquet");
        fs::write(&path, "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 9\n").unwrap();
        assert!(refuse_pointer(&path).unwrap_err().to_string().contains("Git LFS pointer"));
        fs::write(&path, "/annex/objects/SHA256E-s9--00.parquet\n").unwrap();
        assert!(refuse_pointer(&path).unwrap_err().to_string().contains("git annex get"));
        fs::write(&path, "../../.git/annex/objects/x1/9Z/SHA256E-s9--00").unwrap();
        assert!(refuse_pointer(&path).is_err());
        fs::write(&path, "version https://git").unwrap();
        assert!(refuse_pointer(&path).is_ok() && refuse_pointer(&folder.path().join("b")).is_ok());
    }

    #[test]
    fn digests_by_hand() {
        assert_eq!(hex(&[0, 10, 255]), "000aff");
        // FIPS 180-4, the one-block example.
        assert_eq!(sha256("abc"), "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad");
    }
}
