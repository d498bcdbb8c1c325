//! Opens the inputs as bytes: paths, glob patterns, folders (see `folders`) and the standard input; plain, gzip, zstd, bzip2 or xz, and the files
//! in a zip archive.
//!
//! The first bytes determine the compression, never the file's name. Inputs that can be read only once (the standard input, a pipe) are copied to a
//! temporary file, because every file is read three times: to hash it, to detect its format, and to read it.

use std::collections::HashSet;
use std::fs::File;
use std::io::{self, BufRead, BufReader, Read, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use flate2::bufread::GzDecoder;
use sha2::{Digest, Sha256};
use tempfile::{NamedTempFile, TempPath};

use super::folders;
use crate::error::{Context, Error, Result};
use crate::files::{for_each_chunk, hex, identified, refuse_pointer};
use crate::format::counted;

pub(super) type Reader = Box<dyn BufRead + Send>;

const BUFFER_BYTES: usize = 256 << 10;

/// The compression of a file, detected from its first bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Compression {
    None,
    Gzip,
    Zstd,
    Bzip2,
    Xz,
    /// A file in a zip archive.
    Zip,
}

/// The stored bytes of one input.
#[derive(Debug, Clone)]
pub(super) struct Store {
    path: Arc<PathBuf>,
    /// The compression of the file as the user gave it.
    pub compression: Compression,
    /// The path of the compressed bytes, and their number.
    original: Arc<PathBuf>,
    packed_bytes: u64,
    /// The compression of the bytes at `path`; differs from `compression` once they have been unpacked.
    packed: Compression,
    /// Deletes the temporary copy, if there is one, when the last clone of the store is dropped.
    temporary: Option<Arc<TempPath>>,
}

/// Expands the inputs into files, in the order given; matches of a pattern are in alphabetical order. `notes` receives messages to the user.
pub(super) fn expand(inputs: &[String], notes: &mut Vec<String>) -> Result<Vec<PathBuf>> {
    if inputs.is_empty() {
        return Err(Error::usage("expected at least one data file, found none"));
    }
    if inputs.iter().filter(|input| *input == "-").count() > 1 {
        return Err(Error::usage("`-` (standard input) is given twice").cure("Give `-` once."));
    }
    let mut paths = Vec::new();
    for input in inputs {
        let is_pattern = input.contains(['*', '?', '[']) && !Path::new(input).exists();
        if !is_pattern && Path::new(input).is_dir() {
            paths.append(&mut folders::data_files(Path::new(input), notes)?);
            continue;
        }
        if !is_pattern {
            paths.push(PathBuf::from(input));
            continue;
        }
        let matches = glob::glob(input).map_err(|error| {
            Error::usage(format!("`{input}` is not a valid pattern")).caused_by(error).cure("Patterns use *, ?, [abc] and **.")
        })?;
        if let Some(path) = foreign_name(input) {
            return Err(Error::new(format!("expected a name in Unicode, as `{input}` matches no other"))
                .at(path)
                .cure("Rename the file."));
        }
        let n_before = paths.len();
        let mut folders = Vec::new();
        for path in matches {
            let path = path.map_err(|error| Error::new("cannot look for files").at(error.path()).caused_by(error))?;
            // A dangling link is a missing file, which opening it reports.
            if path.is_dir() { folders.push(path) } else { paths.push(path) }
        }
        if paths.len() == n_before {
            return Err(
                Error::new(format!("expected files that match `{input}`, found none")).cure("Check the folder and the pattern.")
            );
        }
        if let Some(first) = folders.first() {
            let what = counted(folders.len() as u64, "matching folder is not read", "matching folders are not read");
            notes.push(format!("{input}: {what}, such as {}; name what to read", first.display()));
        }
    }
    let mut seen = HashSet::new();
    let again: Vec<&PathBuf> = paths.iter().filter(|path| !seen.insert(identified(path))).collect();
    if let Some(first) = again.first() {
        let what = counted(again.len() as u64, "file is named twice and read twice", "files are named twice and read twice");
        notes.push(format!("{what}, such as {}", first.display()));
    }
    Ok(paths)
}

/// Returns a file that the pattern would match if its name were Unicode. Patterns match no others, so that its rows would be missing.
fn foreign_name(pattern: &str) -> Option<PathBuf> {
    let (folder, name) = pattern.rsplit_once('/').unwrap_or((".", pattern));
    let name = glob::Pattern::new(name).ok()?;
    let folders = glob::glob(if folder.is_empty() { "/" } else { folder }).ok()?.flatten();
    let mut paths = folders.filter_map(|folder| folder.read_dir().ok()).flatten().flatten().map(|entry| entry.path());
    paths.find(|path| path.file_name().is_some_and(|file| file.to_str().is_none() && name.matches(&file.to_string_lossy())))
}

/// The `source` of rows without one of their own: the file's name, preceded by this number of parent folders.
pub(super) fn display_name(path: &Path, folders: usize) -> String {
    if path == Path::new("-") {
        return "stdin".to_owned();
    }
    if folders > 0 {
        let names: Vec<_> = path.components().map(|part| part.as_os_str().to_string_lossy()).collect();
        return names[names.len().saturating_sub(folders + 1)..].join("/");
    }
    path.file_name().unwrap_or(path.as_os_str()).to_string_lossy().into_owned()
}

impl Store {
    pub(super) fn open(path: &Path) -> Result<Store> {
        let temporary = if path == Path::new("-") {
            Some(spool(io::stdin().lock()).map_err(|error| error.at(path))?)
        } else {
            let metadata = std::fs::metadata(path).map_err(|error| {
                let cure = "Check the name; relative paths start at the current folder.";
                Error::new("expected a data file, cannot open it").at(path).caused_by(error).cure(cure)
            })?;
            let file = File::open(path).context_at(path, "cannot open the data file")?;
            if metadata.is_file() { None } else { Some(spool(file).map_err(|error| error.at(path))?) }
        };
        let place = match &temporary {
            Some(temporary) => temporary.to_path_buf(),
            None => path.to_owned(),
        };
        refuse_pointer(&place)?;
        let compression = compression(&place).map_err(|error| error.at(path))?;
        let packed_bytes = std::fs::metadata(&place).map_or(0, |metadata| metadata.len());
        let place = Arc::new(place);
        let temporary = temporary.map(Arc::new);
        Ok(Store { path: place.clone(), original: place, compression, packed: compression, packed_bytes, temporary })
    }

    /// Opens the stores of a file, with their paths: one for a plain file, and one for each data file in an archive.
    pub(super) fn open_all(path: &Path, notes: &mut Vec<String>) -> Result<Vec<(PathBuf, Store)>> {
        let store = Store::open(path)?;
        match store.compression {
            Compression::Zip => store
                .members(path, notes)
                .map_err(|error| error.at(path))
                .map(|members| members.into_iter().map(|(name, store)| (path.join(name), store)).collect()),
            _ => Ok(vec![(path.to_owned(), store)]),
        }
    }

    /// Unpacks each data file of the archive `path` to a temporary file, leaving out splits other than train as in a folder.
    fn members(&self, path: &Path, notes: &mut Vec<String>) -> Result<Vec<(String, Store)>> {
        const DAMAGED: &str = "cannot read the zip archive: it is damaged or of an unknown kind";
        let mut archive = zip::ZipArchive::new(self.file()?).context(DAMAGED)?;
        let mut names = Vec::new();
        for idx in 0..archive.len() {
            let member = archive.by_index(idx).context(DAMAGED)?;
            let name = member.name().context(DAMAGED)?.into_owned();
            if name == "xl/workbook.xml" {
                return Err(Error::new("expected data files, found an Excel workbook").cure("Save the sheet as CSV UTF-8."));
            }
            let is_hidden = name.split(['/', '\\']).any(|part| part.starts_with('.') && part != "." && part != "..");
            if !member.is_dir() && !is_hidden && folders::is_data_file(Path::new(&name)) {
                names.push((idx, name));
            }
        }
        let inside: Vec<PathBuf> = names.iter().map(|(_, name)| PathBuf::from(name)).collect();
        let are_kept = folders::for_training(path, &inside, notes);
        let mut members = Vec::new();
        for ((idx, name), _) in names.into_iter().zip(are_kept).filter(|(_, kept)| *kept) {
            let mut member = archive.by_index(idx).context(DAMAGED)?;
            let packed_bytes = member.compressed_size();
            let temporary = spool(Unpacked { reader: &mut member, packed_bytes, n_read: 0 })?;
            let packed = compression(&temporary)?;
            members.push((
                name,
                Store {
                    path: Arc::new(temporary.to_path_buf()),
                    original: self.original.clone(),
                    compression: Compression::Zip,
                    packed,
                    packed_bytes,
                    temporary: Some(Arc::new(temporary)),
                },
            ));
        }
        if members.is_empty() {
            return Err(Error::new("expected data files in the zip archive, found none").cure(
                "Unpack it, and name the files to read; from archives only files with data extensions, such as .jsonl, are read.",
            ));
        }
        members.sort_by(|(a, _), (b, _)| a.cmp(b));
        Ok(members)
    }

    /// Returns the SHA-256, in hexadecimal, and the number of the stored bytes.
    pub(super) fn digest(&self) -> Result<(String, u64)> {
        let mut reader = File::open(&*self.original).context("cannot open the data file")?;
        let (mut hasher, mut n_bytes) = (Sha256::new(), 0);
        for_each_chunk(&mut reader, "cannot read the data file", |chunk| {
            hasher.update(chunk);
            n_bytes += chunk.len() as u64;
            Ok(())
        })?;
        Ok((hex(&hasher.finalize()), n_bytes))
    }

    /// Reads the decompressed bytes unchanged.
    pub(super) fn unpacked(&self) -> Result<Reader> {
        let file = File::open(&*self.path).context("cannot open the data file")?;
        let unpacked = |decoder: Box<dyn Read + Send>| -> Reader {
            let unpacked = Unpacked { reader: decoder, packed_bytes: self.packed_bytes, n_read: 0 };
            Box::new(BufReader::with_capacity(BUFFER_BYTES, unpacked))
        };
        let buffered = |file| BufReader::with_capacity(BUFFER_BYTES, file);
        Ok(match self.packed {
            Compression::None | Compression::Zip => Box::new(buffered(file)),
            Compression::Gzip => unpacked(Box::new(GzipMembers { current: Some(GzDecoder::new(buffered(file))) })),
            Compression::Zstd => {
                unpacked(Box::new(zstd::stream::read::Decoder::new(file).context("cannot start to unpack the zstd file")?))
            }
            Compression::Bzip2 => unpacked(Box::new(bzip2::bufread::MultiBzDecoder::new(buffered(file)))),
            Compression::Xz => unpacked(Box::new(lzma_rust2::XzReader::new(buffered(file), true))),
        })
    }

    /// Reads the decompressed bytes without a byte-order mark.
    pub(super) fn reader(&self) -> Result<Reader> {
        let mut reader = self.unpacked()?;
        let mut start = Vec::new();
        reader.by_ref().take(4).read_to_end(&mut start).map_err(broken)?;
        // The mark of UTF-32 begins with that of UTF-16; behind the latter, no text begins with NUL.
        let encoding = match start.as_slice() {
            [0xFF, 0xFE, 0, 0] | [0, 0, 0xFE, 0xFF] => Some("UTF-32"),
            [0xFF, 0xFE, ..] | [0xFE, 0xFF, ..] => Some("UTF-16"),
            _ => None,
        };
        if let Some(encoding) = encoding {
            return Err(Error::new(format!("expected UTF-8, found {encoding}"))
                .cure(format!("Convert the file: iconv -f {encoding} -t UTF-8.")));
        }
        if start.starts_with(b"\xEF\xBB\xBF") {
            start.drain(..3);
        }
        Ok(Box::new(io::Cursor::new(start).chain(reader)))
    }

    /// Replaces compressed bytes by an unpacked temporary copy, for containers that need to seek.
    pub(super) fn decompress(&mut self) -> Result<()> {
        if self.packed != Compression::None {
            let temporary = spool(self.reader()?)?;
            self.path = Arc::new(temporary.to_path_buf());
            self.temporary = Some(Arc::new(temporary));
            self.packed = Compression::None;
        }
        Ok(())
    }

    /// Opens a seekable file; call `decompress` first.
    pub(super) fn file(&self) -> Result<File> {
        File::open(&*self.path).context("cannot open the data file")
    }
}

/// Reads the members of a gzip file one after another. Zeros after a member, with which tapes and some caches pad files, are skipped, as by gzip
/// and by Python.
struct GzipMembers<R> {
    /// `None` after the last member.
    current: Option<GzDecoder<R>>,
}

impl<R: BufRead> Read for GzipMembers<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while let Some(decoder) = &mut self.current {
            let n_read = decoder.read(buffer)?;
            if n_read > 0 || buffer.is_empty() {
                return Ok(n_read);
            }
            let next = self.current.take().map(GzDecoder::into_inner);
            self.current = next.map(behind_zeros).transpose()?.flatten().map(GzDecoder::new);
        }
        Ok(0)
    }
}

/// Advances the reader to its first nonzero byte; returns `None` at the end.
fn behind_zeros<R: BufRead>(mut reader: R) -> io::Result<Option<R>> {
    loop {
        let bytes = reader.fill_buf()?;
        let n_zeros = bytes.iter().take_while(|&&byte| byte == 0).count();
        match (bytes.is_empty(), n_zeros == bytes.len()) {
            (true, _) => return Ok(None),
            (false, is_all) => {
                reader.consume(n_zeros);
                if !is_all {
                    return Ok(Some(reader));
                }
            }
        }
    }
}

/// Limits the output of a decoder: a few bytes that unpack to more than memory and disk can hold are an attack, or a file of zeros. Even the most
/// repetitive real text compresses to no less than a hundredth.
struct Unpacked<R> {
    reader: R,
    packed_bytes: u64,
    n_read: u64,
}

const MAX_RATIO: u64 = 1000;
const ALWAYS_FINE_BYTES: u64 = 256 << 20;

impl<R: Read> Read for Unpacked<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let n_read = self.reader.read(buffer)?;
        self.n_read += n_read as u64;
        if is_bomb(self.packed_bytes, self.n_read) {
            return Err(io::Error::new(io::ErrorKind::FileTooLarge, BOMB));
        }
        Ok(n_read)
    }
}

/// Whether this compression ratio is implausible for data.
pub(super) fn is_bomb(packed_bytes: u64, n_unpacked: u64) -> bool {
    n_unpacked > ALWAYS_FINE_BYTES && n_unpacked / MAX_RATIO > packed_bytes
}

pub(super) fn bomb() -> Error {
    Error::new(BOMB).cure("If you know what it contains, unpack it yourself and name that file.")
}

const BOMB: &str = "expected compressed data, found a compression bomb: it unpacks to more than a thousand times its size";

/// The error of a read that failed half-way: a damaged archive or a failing disk.
pub(super) fn broken(error: io::Error) -> Error {
    if error.kind() == io::ErrorKind::FileTooLarge {
        return bomb();
    }
    let cure = "The rows before this point were read; download or compress the file again.";
    Error::new("cannot read further: the file is damaged or truncated").caused_by(error).cure(cure)
}

fn spool(mut reader: impl Read) -> Result<TempPath> {
    let mut file = NamedTempFile::new().context("cannot create a temporary file for the input")?;
    let cure = "The copy is made in the folder named by TMPDIR, and needs the uncompressed size of the input.";
    io::copy(&mut reader, &mut file).and_then(|_| file.flush()).map_err(|error| match error.kind() {
        io::ErrorKind::FileTooLarge => broken(error),
        _ => Error::new("cannot copy the input to a temporary file").caused_by(error).cure(cure),
    })?;
    Ok(file.into_temp_path())
}

fn compression(path: &Path) -> Result<Compression> {
    let mut start = Vec::new();
    let file = File::open(path).context("cannot open the data file")?;
    file.take(6).read_to_end(&mut start).context("cannot read the data file")?;
    let unsupported = |name: &str| {
        Err(Error::new(format!("expected plain, gzip, zstd, bzip2, xz or zip data, found {name}"))
            .cure("Unpack the file, or compress it with gzip or zstd."))
    };
    match start.as_slice() {
        [0x1F, 0x8B, ..] => Ok(Compression::Gzip),
        [0x28, 0xB5, 0x2F, 0xFD, ..] => Ok(Compression::Zstd),
        [b'B', b'Z', b'h', b'1'..=b'9', ..] => Ok(Compression::Bzip2),
        [0xFD, b'7', b'z', b'X', b'Z', ..] => Ok(Compression::Xz),
        // The second magic number begins an archive without files.
        [b'P', b'K', 3, 4, ..] | [b'P', b'K', 5, 6, ..] => Ok(Compression::Zip),
        [b'7', b'z', 0xBC, 0xAF, ..] => unsupported("a 7-zip archive"),
        _ => Ok(Compression::None),
    }
}

#[cfg(all(test, unix))]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::*;

    #[test]
    fn a_file_that_a_pattern_should_match_and_cannot_is_an_error() {
        let folder = tempfile::tempdir().unwrap();
        for name in [&b"a.jsonl"[..], b"b\xFF.jsonl"] {
            std::fs::write(folder.path().join(OsStr::from_bytes(name)), "{}").unwrap();
        }
        let found = |pattern: &str| expand(&[folder.path().join(pattern).display().to_string()], &mut Vec::new());
        for pattern in ["*.jsonl", "b*", "*"] {
            let error = found(pattern).unwrap_err().to_string();
            assert!(
                error.contains("expected a name in Unicode, as `") && error.contains("Rename the file."),
                "{pattern}: {error}"
            );
        }
        assert_eq!(found("a*").unwrap(), [folder.path().join("a.jsonl")]);
    }
}
