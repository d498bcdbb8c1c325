//! Reads the metadata of a `.gguf` file.
//!
//! The names of the keys are llama.cpp's (`gguf-py/gguf/constants.py`).

use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::Value;

use super::gguf_files::GgufFiles;
use crate::error::{Error, Result};
use crate::tokens::GgufVocabulary;

pub(crate) struct Gguf {
    pub(super) path: PathBuf,
    pub(super) files: GgufFiles,
}

impl Gguf {
    pub(crate) fn open(path: &Path) -> Result<Gguf> {
        Ok(Gguf { path: path.to_owned(), files: GgufFiles::open(path)? })
    }

    /// Whether there is a tensor that llama.cpp calls `name`.
    pub(crate) fn holds(&self, name: &str) -> bool {
        self.files.info(name).is_some()
    }

    /// Whether queries, keys and values have biases, stored jointly or separately.
    pub(crate) fn holds_qkv_bias(&self) -> bool {
        self.holds("blk.0.attn_q.bias") || self.holds("blk.0.attn_qkv.bias")
    }

    /// The integer under `{architecture}.{name}`.
    pub(crate) fn arch_count(&self, name: &str) -> Result<Option<usize>> {
        self.count(&self.key(name)?)
    }

    pub(crate) fn required_count(&self, name: &str) -> Result<usize> {
        let key = self.key(name)?;
        self.count(&key)?.ok_or_else(|| self.missing(&key))
    }

    /// The floating-point number under `{architecture}.{name}`.
    pub(crate) fn arch_number(&self, name: &str) -> Result<Option<f64>> {
        self.number(&self.key(name)?)
    }

    /// The list of flags under `{architecture}.{name}`; empty if it is missing.
    pub(crate) fn arch_flags(&self, name: &str) -> Result<Vec<bool>> {
        let flag = |value: &Value| match value {
            Value::Bool(flag) => Some(*flag),
            _ => None,
        };
        self.list(&self.key(name)?, "a list of true and false", flag)
    }

    /// The flag under `{architecture}.{name}`.
    pub(crate) fn arch_flag(&self, name: &str) -> Result<Option<bool>> {
        self.flag(&self.key(name)?)
    }

    /// Unwraps `found`, the value of `{architecture}.{name}`, which converters always write; returns an error if it is missing.
    pub(crate) fn required<T>(&self, name: &str, found: Option<T>) -> Result<T> {
        let key = self.key(name)?;
        found.ok_or_else(|| self.missing(&key))
    }

    pub(super) fn key(&self, name: &str) -> Result<String> {
        Ok(format!("{}.{name}", self.architecture()?))
    }

    pub(crate) fn architecture(&self) -> Result<&str> {
        self.text("general.architecture")?.ok_or_else(|| self.missing("general.architecture"))
    }

    pub(super) fn missing(&self, key: &str) -> Error {
        Error::new(format!("the GGUF metadata lack `{key}`")).at(&self.path)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.files.metadata.get(key)
    }

    pub(super) fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, "text", other)),
        }
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::new(format!("the GGUF metadata hold {:?} under `{key}`; expected {expected}", found.value_type())).at(&self.path)
    }

    pub(super) fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match whole(value) {
                Some(n) => Ok(Some(n)),
                None => Err(self.wrong_type(key, "a whole number", value)),
            },
        }
    }

    /// Reads a floating-point number; refuses an integer in its place, as llama.cpp does
    /// (`key .. has wrong type u32 but expected type f32`).
    pub(super) fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(f64::from(*x))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(value) => Err(self.wrong_type(key, "a number", value)),
        }
    }

    pub(super) fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong_type(key, "true or false", value)),
        }
    }

    /// Reads an array item by item; empty if the key is absent.
    pub(super) fn list<T>(&self, key: &str, expected: &str, item: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|value| item(value).ok_or_else(|| self.wrong_type(key, expected, value))).collect()
            }
            Some(value) => Err(self.wrong_type(key, "an array", value)),
        }
    }

    pub(super) fn vocabulary(&self) -> Result<GgufVocabulary> {
        let key = |name: &str| format!("tokenizer.ggml.{name}");
        let text = |value: &Value| value.to_string().ok().cloned();
        let id = |name: &str| self.count(&key(name)).map(|id| id.map(|id| id as u32));
        Ok(GgufVocabulary {
            model: self.text(&key("model"))?.ok_or_else(|| self.missing(&key("model")))?.to_owned(),
            pre: self.text(&key("pre"))?.map(str::to_owned),
            tokens: self.list(&key("tokens"), "texts", text)?,
            token_types: self.list(&key("token_type"), "whole numbers", |value| whole(value).map(|n| n as i32))?,
            scores: self.list(&key("scores"), "numbers", |value| value.to_f32().ok())?,
            merges: self.list(&key("merges"), "texts", text)?,
            bos: id("bos_token_id")?,
            eos: id("eos_token_id")?,
            add_bos: self.flag(&key("add_bos_token"))?,
            add_space_prefix: self.flag(&key("add_space_prefix"))?,
            name: self.text("general.name")?.map(str::to_owned),
            architecture: self.text("general.architecture")?.map(str::to_owned),
        })
    }
}

fn whole(value: &Value) -> Option<usize> {
    match value {
        Value::I8(n) => usize::try_from(*n).ok(),
        Value::I16(n) => usize::try_from(*n).ok(),
        Value::I32(n) => usize::try_from(*n).ok(),
        Value::I64(n) => usize::try_from(*n).ok(),
        Value::U8(n) => Some(usize::from(*n)),
        Value::U16(n) => Some(usize::from(*n)),
        Value::U32(n) => usize::try_from(*n).ok(),
        Value::U64(n) => usize::try_from(*n).ok(),
        _ => None,
    }
}
