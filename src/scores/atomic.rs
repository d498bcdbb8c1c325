//! A file appears under its final name whole or not at all, whatever kills the program.

use std::fs::{self, File};
use std::io::BufWriter;
use std::path::{Path, PathBuf};

use crate::{Context, Result};

/// Lets `write` fill a temporary file beside `path`, forces it to the disk and renames it to `path`.
///
/// The temporary name is fixed (`.NAME.partial`), so that what a killed run left behind is overwritten by the next one.
pub fn write_atomically<T>(path: &Path, write: impl FnOnce(&mut BufWriter<File>) -> Result<T>) -> Result<T> {
    let partial = partial_path(path);
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
            fs::rename(&partial, path).context_at(path, "cannot give the finished file its name")?;
            sync_folder(path)?;
            Ok(value)
        });
    if written.is_err() {
        // The first error is the one to report; a leftover is overwritten by the next run anyway.
        let _ = fs::remove_file(&partial);
    }
    written
}

/// The rename itself reaches the disk with the folder that holds the name.
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
    let name = path.file_name().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
    path.with_file_name(format!(".{name}.partial"))
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::Error;

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
}
