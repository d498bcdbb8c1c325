//! A Hugging Face model folder as a [`Source`].

use std::path::{Path, PathBuf};
use std::sync::OnceLock;

use candle_core::Tensor;
use serde_json::{Value, json};

use super::mxfp4;
use super::safetensors::Shards;
use crate::error::{Context, Error, Result};
use crate::files::{file_sha256, refuse_pointer};
use crate::json::{self, present};
use crate::model::config::Config;
use crate::model::families::{self, multimodal};
use crate::model::rope;
use crate::model::source::{Source, Used, listed};
use crate::tokens::{ChatTemplate, Tokenizer, token_text, tokenizer_settings};

/// The files beside the weights that are copied when a model is saved.
pub(crate) const COMPANIONS: &[&str] = &[
    "generation_config.json",
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "added_tokens.json",
    "chat_template.jinja",
    "additional_chat_templates/tool_use.jinja",
    "tokenizer.model",
    "vocab.json",
    "merges.txt",
];

/// The path at which Transformers 5 stores the named template.
const TOOL_USE: &str = "additional_chat_templates/tool_use.jinja";

pub(crate) struct Folder {
    path: PathBuf,
    shards: Shards,
    used: Used,
    /// Whether the file's head differs from its embedding; cached because reading both takes a while.
    head_differs: OnceLock<bool>,
}

pub(in crate::model) const CONFIG: &str = "config.json";
pub(in crate::model) const GENERATION: &str = "generation_config.json";

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

impl Folder {
    pub(crate) fn open(path: &Path) -> Result<Folder> {
        Ok(Folder { path: path.to_owned(), shards: Shards::open(path)?, used: Used::default(), head_differs: OnceLock::new() })
    }

    /// The name under which the file stores the tensor. A language model inside a multimodal checkpoint has another prefix: that of
    /// Transformers 4, or that of 5. In a model that was saved without its head, or as part of another, the prefix `model.` is missing or
    /// doubled; Transformers reads both (`base_model_prefix`). The matrix of a tied model may be stored as the head only.
    fn stored_name(&self, name: &str) -> Option<String> {
        let inner = name.strip_prefix("model.").unwrap_or(name);
        let names = [
            name.to_owned(),
            format!("language_model.{name}"),
            format!("model.language_model.{inner}"),
            inner.to_owned(),
            format!("model.{name}"),
        ];
        let found = names.into_iter().find(|name| self.shards.has(name));
        found.or_else(|| (name == EMBEDDING).then(|| self.stored_name(HEAD)).flatten())
    }

    /// The tensor that Transformers calls `name`, or the `index`th part of it, if it is a stack in MXFP4.
    fn packed(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Option<Tensor>> {
        if self.stored_name(name).is_some() || !self.config_says_mxfp4()? {
            return Ok(None);
        }
        let stored = |end: &str| self.stored_name(&format!("{name}{end}"));
        let (Some(blocks), Some(scales)) = (stored(mxfp4::BLOCKS), stored(mxfp4::SCALES)) else { return Ok(None) };
        let (of_blocks, of_scales) = mxfp4::shapes(name, shape).map_err(|error| error.at(&self.path))?;
        let read = |stored: &str, shape: &[usize]| {
            self.used.note(stored);
            self.shards.bytes(stored, shape, index)
        };
        let (blocks, scales) = (read(&blocks, &of_blocks)?, read(&scales, &of_scales)?);
        let shape = if index.is_some() { &shape[1..] } else { shape };
        mxfp4::unpack(name, shape, &blocks, &scales).map(Some).map_err(|error| error.at(&self.path))
    }

    fn config_says_mxfp4(&self) -> Result<bool> {
        Ok(Config::from_json(&self.whole_config()?)?.experts.is_some_and(|experts| experts.mxfp4))
    }

    /// Reads config.json; returns an error if there is none.
    fn whole_config(&self) -> Result<Value> {
        json(&self.path, "config.json")?.ok_or_else(|| {
            Error::new("the folder holds no config.json").at(&self.path).cure("Name a Hugging Face model folder or a .gguf file.")
        })
    }

    /// Whether the file contains a head that differs from its embedding. Some programs store equal copies of one matrix.
    fn head_differs(&self) -> Result<bool> {
        if let Some(&differs) = self.head_differs.get() {
            return Ok(differs);
        }
        let differs = match (self.stored_name(EMBEDDING), self.stored_name(HEAD)) {
            (Some(embedding), Some(head)) => {
                let same = self.shards.are_same(&embedding, &head)?;
                if same {
                    self.used.note(&head);
                }
                !same
            }
            _ => false,
        };
        Ok(*self.head_differs.get_or_init(|| differs))
    }
}

impl Source for Folder {
    fn config(&self) -> Result<Config> {
        let path = self.path.join("config.json");
        let mut config = Config::from_json(&self.whole_config()?).map_err(|error| error.at(&path))?;
        // As in Transformers 5 (`tie_weights`): if the two matrices differ, both are kept, whatever config.json says.
        if config.tied && self.head_differs()? {
            config.tied = false;
        }
        if !config.tied && self.stored_name(EMBEDDING) == self.stored_name(HEAD) && self.stored_name(HEAD).is_some() {
            return Err(Error::new(format!(
                "`tie_word_embeddings` is false, and the weights hold the head but no `{EMBEDDING}`"
            ))
            .at(&path)
            .cure(
                "If the head is the embedding matrix, set tie_word_embeddings to true; if not, the file lacks its embedding.",
            ));
        }
        if !config.tied && self.stored_name(EMBEDDING).is_some() && self.stored_name(HEAD).is_none() {
            return Err(Error::new(format!(
                "`tie_word_embeddings` is false (or missing, which means false), but the weights hold no `{HEAD}`"
            ))
            .at(&path)
            .cure("If the head is the embedding matrix, set tie_word_embeddings to true; if not, the file lacks its head."));
        }
        Ok(config)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        tokenizer(&self.path)?.ok_or_else(|| {
            Error::new("the folder holds no tokenizer.json")
                .at(&self.path)
                .cure("Save the tokenizer with Transformers' AutoTokenizer.from_pretrained(..).save_pretrained(folder).")
        })
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        template(&self.path, tokenizer)
    }

    fn has(&self, name: &str) -> bool {
        self.stored_name(name).is_some()
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(tensor) = self.packed(name, shape, None)? {
            return Ok(tensor);
        }
        // If no candidate exists, the error should name the plain one.
        let stored = self.stored_name(name);
        let stored = stored.as_deref().unwrap_or(name);
        self.used.note(stored);
        self.shards.tensor(stored, shape)
    }

    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        if let Some(tensor) = self.packed(name, shape, Some(index))? {
            return Ok(tensor);
        }
        let stored = self.stored_name(name);
        let stored = stored.as_deref().unwrap_or(name);
        self.used.note(stored);
        self.shards.slice(stored, shape, index)
    }

    fn bf16(&self, name: &str, shape: &[usize], index: Option<usize>) -> Result<Option<Tensor>> {
        let Some(stored) = self.stored_name(name) else { return Ok(None) };
        let found = self.shards.bf16(&stored, shape, index)?;
        if found.is_some() {
            self.used.note(&stored);
        }
        Ok(found)
    }

    fn config_json(&self) -> Result<Value> {
        let whole = json(&self.path, "config.json")?.unwrap_or(Value::Null);
        let family = families::by_model_type(self.config()?.family)?;
        let mut text = families::text_config(family, &whole)?;
        if let (Some(text), Some(whole)) = (text.as_object_mut(), whole.as_object().filter(|_| multimodal::is_multimodal(&whole)))
        {
            // Of a multimodal checkpoint only the language model is saved, as a standalone model.
            text.insert("architectures".to_owned(), json!([family.class]));
            for key in ["bos_token_id", "eos_token_id", "pad_token_id"] {
                if let Some(id) = whole.get(key) {
                    text.entry(key).or_insert_with(|| id.clone());
                }
            }
        }
        Ok(text)
    }

    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        companions(&self.path)
    }

    /// The number of weights of the language model.
    fn parameters(&self) -> u64 {
        let multimodal = self.is_multimodal().unwrap_or(false);
        self.shards.parameters(|name| !(multimodal && multimodal::is_beside_text(name)))
    }

    fn is_multimodal(&self) -> Result<bool> {
        Ok(multimodal::is_multimodal(&self.whole_config()?))
    }

    fn remarks(&self) -> Result<Vec<String>> {
        let json = self.whole_config()?;
        let mut remarks: Vec<String> = contradictions(&json).into_iter().collect();
        if Config::from_json(&json)?.tied && self.head_differs()? {
            remarks.push(
                "tie_word_embeddings is true, but the weights hold a head that differs from the embedding: both are used, as in Transformers 5"
                    .to_owned(),
            );
        }
        Ok(remarks)
    }

    fn check_all_used(&self) -> Result<()> {
        let multimodal = self.is_multimodal()?;
        let mut unread = self.used.others(self.shards.names());
        let Config { family, layers, further_layers, .. } = self.config()?;
        let left_aside = families::by_model_type(family)?.left_aside;
        unread.retain(|name| {
            let beside = multimodal && multimodal::is_beside_text(name);
            let layer = name.strip_prefix("model.layers.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            let further = layer.is_some_and(|layer| (layers..layers + further_layers).contains(&layer));
            let aside = left_aside.iter().any(|start| name.starts_with(start));
            !(is_rotary_buffer(name) || beside || further || aside)
        });
        if unread.is_empty() {
            return Ok(());
        }
        Err(Error::new(format!("the weights hold tensors that config.json does not mention: {}", listed(&unread)))
            .at(&self.path)
            .cure(
                "Set the matching option in config.json (num_hidden_layers, attention_bias, ..); or, if they should have no effect, remove them from the file.",
            ))
    }
}

/// Whether this is a buffer of old checkpoints with the rotary frequencies, which follow from config.json.
fn is_rotary_buffer(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"].iter().any(|end| name.ends_with(end))
}

/// Settings that config.json contains twice with different values, and which of the two was used.
fn contradictions(json: &Value) -> Vec<String> {
    let mut found = multimodal::remarks(json);
    let text = json.get("text_config").filter(|_| multimodal::is_multimodal(json)).unwrap_or(json);
    if let (Some(new), Some(old)) = (present(text, "rope_parameters"), present(text, "rope_scaling"))
        && new != old
        && rope::parameters(text) == Some(old)
    {
        found.push(format!(
            "config.json holds rope_parameters and rope_scaling, which differ: rope_scaling is used, as in Transformers ({old})"
        ));
    }
    found
}

/// The folder's tokenizer, if it has one.
pub(crate) fn tokenizer(folder: &Path) -> Result<Option<Tokenizer>> {
    let path = folder.join("tokenizer.json");
    path.is_file().then(|| Tokenizer::from_file(&path)).transpose()
}

/// The rows of the embedding according to config.json, if there is one and it is understood.
pub(crate) fn embedding_rows(folder: &Path) -> Option<usize> {
    config(folder).ok()?.map(|config| config.vocab_size)
}

/// The folder's config.json, if it has one, whether or not the weights are there. Returns an error if it is not understood.
pub(crate) fn config(folder: &Path) -> Result<Option<Config>> {
    let Some(config) = json(folder, "config.json")? else { return Ok(None) };
    Config::from_json(&config).map(Some).map_err(|error| error.at(folder.join("config.json")))
}

/// The size of the vocabulary according to config.json, for any family.
pub(crate) fn vocab_size(folder: &Path) -> Option<usize> {
    let config = json(folder, "config.json").ok()??;
    let text = config.get("text_config").unwrap_or(&config);
    text.get("vocab_size")?.as_u64().map(|size| size as usize)
}

/// The folder's chat template, if it has one.
pub(crate) fn template(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let config = tokenizer_settings(folder)?;
    let templates = match text(&folder.join("chat_template.jinja"))? {
        // Transformers looks into tokenizer_config.json only if this file does not exist.
        Some(default) => Some((default, text(&folder.join(TOOL_USE))?)),
        None => match named_templates(config.get("chat_template"))? {
            Some(templates) => Some(templates),
            // Older processors store it in a separate file.
            None => match json(folder, "chat_template.json")? {
                Some(json) => named_templates(json.get("chat_template"))?,
                None => None,
            },
        },
    };
    let Some((default, tool_use)) = templates else { return Ok(None) };
    let known = [("bos_token", tokenizer.bos()), ("eos_token", tokenizer.eos())];
    let of_tokenizer = known.into_iter().filter_map(|(name, id)| Some((name.to_owned(), tokenizer.text(id?))));
    let named = config.iter().filter(|(name, _)| name.ends_with("_token"));
    // Multimodal models define their own special tokens, such as `image_token`.
    let own = config.get("extra_special_tokens").and_then(Value::as_object).into_iter().flatten();
    let of_config = named.chain(own).filter_map(|(name, value)| Some((name.clone(), token_text(value)?.to_owned())));
    let tokens: Vec<(String, String)> = of_tokenizer.chain(of_config).collect();
    let compile = |source: &str| {
        let template = ChatTemplate::new(source, None, None).map_err(|error| error.at(folder))?;
        Ok::<_, Error>(template.with_special_tokens(tokens.iter().cloned()))
    };
    let template = compile(&default)?;
    Ok(Some(match tool_use {
        Some(tool_use) => template.with_tool_use(compile(&tool_use)?),
        None => template,
    }))
}

/// Reads an optional text file.
fn text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => refuse_pointer(path).map(|()| Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("cannot read the chat template").at(path).caused_by(error)),
    }
}

/// The names and SHA-256 hashes of the folder's files beside the weights that this program reads.
pub(crate) fn text_hashes(folder: &Path) -> Result<Vec<String>> {
    let names = ["config.json", "chat_template.json"].into_iter().chain(COMPANIONS.iter().copied());
    let there = names.map(|name| (name, folder.join(name))).filter(|(_, path)| path.is_file());
    there.map(|(name, path)| Ok(format!("{name} {}", file_sha256(&path)?))).collect()
}

/// The files beside the weights that are copied with a model.
pub(crate) fn companions(folder: &Path) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let mut files = Vec::new();
    for name in COMPANIONS {
        let path = folder.join(name);
        match std::fs::read(&path) {
            Ok(bytes) => files.push((*name, bytes)),
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
            Err(error) => return Err(Error::new("cannot read the file").at(&path).caused_by(error)),
        }
    }
    Ok(files)
}

/// Reads a JSON file of the folder; `None` if it does not exist.
pub(in crate::model) fn json(folder: &Path, name: &str) -> Result<Option<Value>> {
    let path = folder.join(name);
    match std::fs::read_to_string(&path) {
        Ok(text) => {
            refuse_pointer(&path)?;
            json::from_str(&text).context_at(&path, "this is not JSON").map(Some)
        }
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("cannot read the file").at(&path).caused_by(error)),
    }
}

/// Reads `chat_template`: a text, or a list of `{"name", "template"}`, in which `default` is for plain chats and `tool_use` for chats with
/// tools.
fn named_templates(value: Option<&Value>) -> Result<Option<(String, Option<String>)>> {
    match value {
        Some(Value::String(source)) => Ok(Some((source.clone(), None))),
        Some(Value::Array(templates)) => {
            let named = |name: &str| {
                let template = templates.iter().find(|template| template.get("name").and_then(Value::as_str) == Some(name));
                template.and_then(|template| template.get("template")).and_then(Value::as_str).map(str::to_owned)
            };
            let Some(default) = named("default") else {
                let names: Vec<&str> = templates.iter().filter_map(|template| template.get("name")?.as_str()).collect();
                return Err(Error::new(format!(
                    "the model has the chat templates {}, but none is called default",
                    names.join(", ")
                ))
                .cure("Save the one you want to a file, and pass --chat-template FILE."));
            };
            Ok(Some((default, named("tool_use"))))
        }
        _ => Ok(None),
    }
}
