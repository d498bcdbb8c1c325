//! What a user may write after `--model` -> where the files are.

use std::fs::File;
use std::io::Read;
use std::path::{Path, PathBuf};

use sha2::{Digest, Sha256};

use super::folder::Folder;
use super::gguf::Gguf;
use super::safetensors::shard_paths;
use super::{Source, default_model};
use crate::error::{Context, Error, Result};

/// A model's files, found but not read.
#[derive(Debug, Clone)]
pub struct Reference {
    /// What the user wrote, or the default model's name.
    pub written: String,
    /// A short name for people: the file's or the folder's.
    pub name: String,
    pub path: PathBuf,
    kind: Kind,
}

#[derive(Debug, Clone, Copy, PartialEq)]
enum Kind {
    /// Its hash was checked when it was fetched.
    Default,
    Gguf,
    Folder,
}

/// Told about long waits: what is being done, bytes so far, bytes in all.
pub type Progress<'a> = &'a dyn Fn(&str, u64, u64);

impl Reference {
    /// Finds the model that `written` names; `None` stands for the default model, which is fetched if it is not in the cache.
    pub fn resolve(written: Option<&str>, progress: Progress) -> Result<Reference> {
        let Some(written) = written else {
            let path = default_model::fetch(progress)?;
            let name = default_model::DEFAULT_MODEL.to_owned();
            return Ok(Reference { written: name.clone(), name, path, kind: Kind::Default });
        };
        let path = Path::new(written);
        let is_gguf = path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf"));
        let kind = match std::fs::metadata(path) {
            Ok(metadata) if metadata.is_dir() => Kind::Folder,
            Ok(_) if is_gguf => Kind::Gguf,
            Ok(_) => {
                return Err(Error::new("this is neither a folder nor a .gguf file")
                    .at(path)
                    .cure("--model takes a Hugging Face model folder or a .gguf file."));
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {
                return Err(Error::new(format!("there is no model at `{written}`"))
                    .cure("--model takes a Hugging Face model folder or a .gguf file; without it the default model is used."));
            }
            Err(error) => return Err(Error::new("cannot look at the model").at(path).caused_by(error)),
        };
        let resolved = std::fs::canonicalize(path).context_at(path, "cannot look at the model")?;
        let name = if kind == Kind::Gguf { resolved.file_stem() } else { resolved.file_name() };
        let name = name.map_or_else(|| written.to_owned(), |name| name.to_string_lossy().into_owned());
        Ok(Reference { written: written.to_owned(), name, path: path.to_owned(), kind })
    }

    pub(super) fn open(&self) -> Result<Box<dyn Source>> {
        Ok(match self.kind {
            Kind::Default | Kind::Gguf => Box::new(Gguf::open(&self.path)?),
            Kind::Folder => Box::new(Folder::open(&self.path)?),
        })
    }

    /// SHA-256 of the weight file in hexadecimal; of several shards, of the list of their hashes.
    pub fn sha256(&self) -> Result<String> {
        match self.kind {
            Kind::Default => Ok(default_model::GGUF_SHA256.to_owned()),
            Kind::Gguf => file_sha256(&self.path),
            Kind::Folder => {
                let hashes = shard_paths(&self.path)?.iter().map(|path| file_sha256(path)).collect::<Result<Vec<_>>>()?;
                match <[String; 1]>::try_from(hashes) {
                    Ok([single]) => Ok(single),
                    Err(several) => Ok(hex(&Sha256::digest(several.join("\n")))),
                }
            }
        }
    }
}

/// SHA-256 of a file's bytes in hexadecimal.
pub fn file_sha256(path: &Path) -> Result<String> {
    let mut file = File::open(path).context_at(path, "cannot open the file")?;
    let mut hasher = Sha256::new();
    let mut buffer = vec![0; 1 << 20];
    loop {
        match file.read(&mut buffer).context_at(path, "cannot read the file")? {
            0 => return Ok(hex(&hasher.finalize())),
            n => hasher.update(&buffer[..n]),
        }
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}
