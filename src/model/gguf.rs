//! A `.gguf` file as a [`Source`]: config, vocabulary and template from its metadata, tensors dequantised one at a time.
//!
//! The key names and tensor names are llama.cpp's (`gguf-py/gguf/constants.py`).

use std::cell::RefCell;
use std::fs::File;
use std::io::BufReader;
use std::path::{Path, PathBuf};

use candle_core::quantized::gguf_file::{Content, Value};
use candle_core::{Device, Tensor};

use super::Source;
use super::config::{Config, Rope, RopeScaling, unknown_family};
use crate::error::{Context, Error, Result};
use crate::tokens::{ChatTemplate, GgufVocabulary, Tokenizer};

pub struct Gguf {
    path: PathBuf,
    content: Content,
    reader: RefCell<BufReader<File>>,
}

impl Gguf {
    pub fn open(path: &Path) -> Result<Gguf> {
        let file = File::open(path).context_at(path, "cannot open the model file")?;
        let mut reader = BufReader::new(file);
        let content = Content::read(&mut reader).map_err(|cause| {
            Error::new("this is not a whole GGUF file")
                .at(path)
                .caused_by(cause)
                .cure("Fetch or convert the file again; a broken download is the usual reason.")
        })?;
        Ok(Gguf { path: path.to_owned(), content, reader: RefCell::new(reader) })
    }

    fn architecture(&self) -> Result<&str> {
        self.text("general.architecture")?.ok_or_else(|| self.missing("general.architecture"))
    }

    fn missing(&self, key: &str) -> Error {
        Error::new(format!("the GGUF metadata lack `{key}`")).at(&self.path)
    }

    fn value(&self, key: &str) -> Option<&Value> {
        self.content.metadata.get(key)
    }

    fn text(&self, key: &str) -> Result<Option<&str>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::String(text)) => Ok(Some(text)),
            Some(other) => Err(self.wrong_type(key, "text", other)),
        }
    }

    fn wrong_type(&self, key: &str, expected: &str, found: &Value) -> Error {
        Error::new(format!("the GGUF metadata hold {:?} under `{key}`; expected {expected}", found.value_type())).at(&self.path)
    }

    fn count(&self, key: &str) -> Result<Option<usize>> {
        match self.value(key) {
            None => Ok(None),
            Some(value) => match whole(value) {
                Some(n) => Ok(Some(n)),
                None => Err(self.wrong_type(key, "a whole number", value)),
            },
        }
    }

    fn number(&self, key: &str) -> Result<Option<f64>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::F32(x)) => Ok(Some(f64::from(*x))),
            Some(Value::F64(x)) => Ok(Some(*x)),
            Some(value) => Err(self.wrong_type(key, "a number", value)),
        }
    }

    fn flag(&self, key: &str) -> Result<Option<bool>> {
        match self.value(key) {
            None => Ok(None),
            Some(Value::Bool(flag)) => Ok(Some(*flag)),
            Some(value) => Err(self.wrong_type(key, "true or false", value)),
        }
    }

    /// An array read item by item; empty where the key is absent.
    fn list<T>(&self, key: &str, expected: &str, item: impl Fn(&Value) -> Option<T>) -> Result<Vec<T>> {
        match self.value(key) {
            None => Ok(Vec::new()),
            Some(Value::Array(items)) => {
                items.iter().map(|value| item(value).ok_or_else(|| self.wrong_type(key, expected, value))).collect()
            }
            Some(value) => Err(self.wrong_type(key, "an array", value)),
        }
    }

    fn vocabulary(&self) -> Result<GgufVocabulary> {
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
        })
    }

    /// The tensor dequantised, in the shape that the file gives it.
    fn read(&self, name: &str) -> Result<Tensor> {
        let quantised = self.content.tensor(&mut *self.reader.borrow_mut(), name, &Device::Cpu);
        quantised.and_then(|tensor| tensor.dequantize(&Device::Cpu)).map_err(|cause| {
            Error::new(format!("cannot read the tensor `{name}`"))
                .at(&self.path)
                .caused_by(cause)
                .cure("If the file is cut short, fetch it again; if its tensor type is unknown, convert it to Q8_0 or F16.")
        })
    }
}

impl Source for Gguf {
    fn config(&self) -> Result<Config> {
        let architecture = self.architecture()?;
        let family = match architecture {
            "llama" => "llama",
            other => return Err(unknown_family(other).at(&self.path)),
        };
        let key = |name: &str| format!("{architecture}.{name}");
        let required = |name: &str| self.count(&key(name))?.ok_or_else(|| self.missing(&key(name)));
        let heads = required("attention.head_count")?;
        let hidden_size = required("embedding_length")?;
        let head_dim = match self.count(&key("attention.key_length"))? {
            Some(head_dim) => head_dim,
            None => hidden_size / heads.max(1),
        };
        if let Some(rotary_dim) = self.count(&key("rope.dimension_count"))?.filter(|&n| n != head_dim) {
            return Err(
                Error::new(format!("rotary embedding of {rotary_dim} of {head_dim} dimensions is not supported")).at(&self.path)
            );
        }
        let scaling = match self.text(&key("rope.scaling.type"))? {
            _ if self.content.tensor_infos.contains_key("rope_freqs.weight") => {
                let divisors = self.read("rope_freqs.weight")?.flatten_all()?.to_vec1::<f32>()?;
                RopeScaling::Divisors(divisors.into_iter().map(f64::from).collect())
            }
            None | Some("none") => RopeScaling::None,
            Some("linear") => RopeScaling::Linear {
                factor: self.number(&key("rope.scaling.factor"))?.ok_or_else(|| self.missing(&key("rope.scaling.factor")))?,
            },
            Some(other) => {
                return Err(Error::new(format!("rope scaling `{other}` is not supported; known are none, linear")).at(&self.path));
            }
        };
        let embedding = self.content.tensor_infos.get("token_embd.weight").ok_or_else(|| {
            Error::new("the file holds no tensor `token_embd.weight`: it is not a whole language model").at(&self.path)
        })?;
        let config = Config {
            family: family.to_owned(),
            vocab_size: embedding.shape.dims().first().copied().unwrap_or(0),
            hidden_size,
            intermediate_size: required("feed_forward_length")?,
            layers: required("block_count")?,
            heads,
            kv_heads: self.count(&key("attention.head_count_kv"))?.unwrap_or(heads),
            head_dim,
            rms_norm_eps: self
                .number(&key("attention.layer_norm_rms_epsilon"))?
                .ok_or_else(|| self.missing(&key("attention.layer_norm_rms_epsilon")))?,
            rope: Rope { theta: self.number(&key("rope.freq_base"))?.unwrap_or(10_000.0), scaling },
            attention_bias: self.content.tensor_infos.contains_key("blk.0.attn_q.bias"),
            mlp_bias: self.content.tensor_infos.contains_key("blk.0.ffn_down.bias"),
            tied: !self.content.tensor_infos.contains_key("output.weight"),
            max_positions: required("context_length")?,
            final_softcap: None,
        };
        config.check().map_err(|error| error.at(&self.path))?;
        Ok(config)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(self.vocabulary()?).map_err(|error| error.at(&self.path))
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let Some(source) = self.text("tokenizer.chat_template")? else { return Ok(None) };
        let token = |id: Option<u32>| id.map(|id| tokenizer.text(id));
        let (bos, eos) = (token(tokenizer.bos()), token(tokenizer.eos()));
        ChatTemplate::new(source, bos.as_deref(), eos.as_deref()).map(Some).map_err(|error| error.at(&self.path))
    }

    fn has(&self, name: &str) -> bool {
        gguf_name(name).is_some_and(|name| self.content.tensor_infos.contains_key(&name))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let Some(stored) = gguf_name(name) else {
            return Err(Error::new(format!("GGUF has no name for the tensor `{name}`")).at(&self.path));
        };
        let info = self
            .content
            .tensor_infos
            .get(&stored)
            .ok_or_else(|| Error::new(format!("the file holds no tensor `{stored}` (`{name}`)")).at(&self.path))?;
        if info.shape.dims() != shape {
            return Err(
                Error::new(format!("tensor `{stored}`: expected shape {shape:?}, found {:?}", info.shape.dims())).at(&self.path)
            );
        }
        let tensor = self.read(&stored)?;
        // llama.cpp's converter stores the query and key rows of this architecture for interleaved rotary embedding.
        let is_query = name.ends_with("q_proj.weight");
        if self.architecture()? == "llama" && (is_query || name.ends_with("k_proj.weight")) {
            let config_key = if is_query { "llama.attention.head_count" } else { "llama.attention.head_count_kv" };
            let heads = match self.count(config_key)? {
                Some(heads) => heads,
                None => self.count("llama.attention.head_count")?.unwrap_or(1),
            };
            return halves_from_interleaved(&tensor, heads);
        }
        Ok(tensor)
    }

    fn parameters(&self) -> u64 {
        self.content.tensor_infos.values().map(|info| info.shape.elem_count() as u64).sum()
    }
}

/// Rows of each head from (0, d/2, 1, d/2 + 1, ..) back to (0, 1, .., d/2, d/2 + 1, ..): undoes `LlamaModel.permute` of llama.cpp's
/// `convert_hf_to_gguf.py`. `weight` is `[heads * d, K]`.
fn halves_from_interleaved(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let (rows, columns) = weight.dims2()?;
    let half = rows / heads / 2;
    Ok(weight.reshape((heads, half, 2, columns))?.transpose(1, 2)?.contiguous()?.reshape((rows, columns))?)
}

/// llama.cpp's name of the tensor that Transformers calls `name`.
fn gguf_name(name: &str) -> Option<String> {
    let plain = match name {
        "model.embed_tokens.weight" => "token_embd.weight",
        "model.norm.weight" => "output_norm.weight",
        "lm_head.weight" => "output.weight",
        _ => "",
    };
    if !plain.is_empty() {
        return Some(plain.to_owned());
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    let (module, kind) = rest.rsplit_once('.')?;
    let module = match module {
        "self_attn.q_proj" => "attn_q",
        "self_attn.k_proj" => "attn_k",
        "self_attn.v_proj" => "attn_v",
        "self_attn.o_proj" => "attn_output",
        "mlp.gate_proj" => "ffn_gate",
        "mlp.up_proj" => "ffn_up",
        "mlp.down_proj" => "ffn_down",
        "input_layernorm" => "attn_norm",
        "post_attention_layernorm" => "ffn_norm",
        _ => return None,
    };
    Some(format!("blk.{layer}.{module}.{kind}"))
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors() {
        let check = |name: &str, expected: Option<&str>| assert_eq!(gguf_name(name).as_deref(), expected);
        check("model.embed_tokens.weight", Some("token_embd.weight"));
        check("model.layers.12.self_attn.q_proj.weight", Some("blk.12.attn_q.weight"));
        check("model.layers.0.mlp.down_proj.bias", Some("blk.0.ffn_down.bias"));
        check("model.layers.0.mlp.router.weight", None);
        check("visual.patch_embed.weight", None);
    }

    #[test]
    fn rows_of_a_head_come_back_in_halves() {
        // One head of 4 rows, stored as 0, 2, 1, 3 (interleaved), must read 0, 1, 2, 3; the second head likewise.
        let stored = Tensor::new(&[[0f32], [2.], [1.], [3.], [4.], [6.], [5.], [7.]], &Device::Cpu).unwrap();
        let halves = halves_from_interleaved(&stored, 2).unwrap();
        assert_eq!(halves.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
    }
}
