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

/// The files beside the weights that are copied with a model that is saved.
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

/// Where Transformers 5 keeps the named template.
const TOOL_USE: &str = "additional_chat_templates/tool_use.jinja";

pub(crate) struct Folder {
    path: PathBuf,
    shards: Shards,
    used: Used,
    /// Whether the file's head differs from its embedding: reading both takes a while.
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

    /// The language model within a multimodal checkpoint has another prefix: Transformers 4's, then 5's. A model that was saved without
    /// its head, or as a part of another, lacks the prefix `model.` or has it twice: Transformers reads both
    /// (`base_model_prefix`). Of a tied model the matrix may be stored as the head only.
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

    /// What Transformers calls `name`, where that is a stack in MXFP4: the tensor, or the `index`th of its parts.
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

    /// config.json; an error if there is none.
    fn whole_config(&self) -> Result<Value> {
        json(&self.path, "config.json")?.ok_or_else(|| {
            Error::new("the folder holds no config.json").at(&self.path).cure("Name a Hugging Face model folder or a .gguf file.")
        })
    }

    /// Does the file hold a head that is not its embedding? Equal copies of one matrix are stored by some programs.
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
        // As Transformers 5 (`tie_weights`): two matrices with different values are both kept, whatever config.json says.
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
        // Where none is there, the error should name the plain one.
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
            // A multimodal checkpoint is saved as the language model in it, which is a model by itself.
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

/// What old checkpoints store beside the weights: the rotary frequencies, which follow from config.json.
fn is_rotary_buffer(name: &str) -> bool {
    [".rotary_emb.inv_freq", ".rotary_emb.cos_cached", ".rotary_emb.sin_cached"].iter().any(|end| name.ends_with(end))
}

/// What config.json says twice and differently, and which of the two was taken.
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

/// The tokenizer of a folder that has one.
pub(crate) fn tokenizer(folder: &Path) -> Result<Option<Tokenizer>> {
    let path = folder.join("tokenizer.json");
    path.is_file().then(|| Tokenizer::from_file(&path)).transpose()
}

/// Rows of the embedding as config.json tells them, if the folder holds one that is understood.
pub(crate) fn embedding_rows(folder: &Path) -> Option<usize> {
    config(folder).ok()?.map(|config| config.vocab_size)
}

/// config.json, if the folder holds one: what it says by itself, whether the weights are there or not. An error if it is not understood.
pub(crate) fn config(folder: &Path) -> Result<Option<Config>> {
    let Some(config) = json(folder, "config.json")? else { return Ok(None) };
    Config::from_json(&config).map(Some).map_err(|error| error.at(folder.join("config.json")))
}

/// The size of the vocabulary as config.json tells it, of whatever family.
pub(crate) fn vocab_size(folder: &Path) -> Option<usize> {
    let config = json(folder, "config.json").ok()??;
    let text = config.get("text_config").unwrap_or(&config);
    text.get("vocab_size")?.as_u64().map(|size| size as usize)
}

/// The chat template of a folder that has one.
pub(crate) fn template(folder: &Path, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
    let config = tokenizer_settings(folder)?;
    let templates = match text(&folder.join("chat_template.jinja"))? {
        // Transformers looks into tokenizer_config.json only where there is no such file.
        Some(default) => Some((default, text(&folder.join(TOOL_USE))?)),
        None => match named_templates(config.get("chat_template"))? {
            Some(templates) => Some(templates),
            // Older processors keep it in a file of its own.
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
    // Multimodal models name tokens of their own: `image_token`.
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

/// A text file that need not be there.
fn text(path: &Path) -> Result<Option<String>> {
    match std::fs::read_to_string(path) {
        Ok(text) => refuse_pointer(path).map(|()| Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(Error::new("cannot read the chat template").at(path).caused_by(error)),
    }
}

/// The name and the SHA-256 of each file beside the weights that this program reads, of those that the folder holds.
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

/// A JSON file of the folder; `None` where there is none.
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

/// `chat_template` is a text, or a list of `{"name", "template"}` of which `default` is meant for chats and `tool_use` for those with tools.
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
