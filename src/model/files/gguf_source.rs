//! A `.gguf` file as a [`Source`]: config, vocabulary and template from its metadata, tensors dequantised one at a time on all cores.
//!
//! The names of the tensors are llama.cpp's (`gguf-py/gguf/constants.py`).

use candle_core::Tensor;
use candle_core::quantized::gguf_file::Value;
use serde_json::{Value as JsonValue, json};

use super::config_json;
use super::gguf::Gguf;
use super::gguf_keys;
use super::quants;
use crate::error::{Error, Result};
use crate::json::pretty;
use crate::kernels::quantized::Blocks;
use crate::model::config::Config;
use crate::model::families::{self, Family, Rule};
use crate::model::rope::{Rope, RopeScaling, yarn_attention_factor};
use crate::model::source::{Source, listed};
use crate::tokens::{ChatTemplate, Tokenizer};

impl Gguf {
    /// The family of the file. If several share the architecture's name, the one that knows the most settings of the file, so that an
    /// error names the truly unknown ones; on a tie, the first.
    fn family(&self) -> Result<&'static Family> {
        let architecture = self.architecture()?;
        let first = families::by_architecture(architecture).map_err(|error| error.at(&self.path))?;
        let known = |family: &&'static Family| {
            self.settings(architecture).filter(|setting| gguf_keys::check(family, std::iter::once(*setting)).is_ok()).count()
        };
        let named = families::FAMILIES.iter().rev().filter(|family| family.architecture == architecture);
        Ok(named.max_by_key(known).unwrap_or(first))
    }

    /// The settings under `{architecture}.`, without that prefix.
    fn settings<'a>(&'a self, architecture: &'a str) -> impl Iterator<Item = (&'a str, &'a Value)> {
        let in_room = move |key: &'a String| key.strip_prefix(architecture)?.strip_prefix('.');
        self.files.metadata.iter().filter_map(move |(key, value)| Some((in_room(key)?, value)))
    }

    /// Reads the rotary embedding like llama.cpp (`llama-model.cpp`, `load_hparams`): a factor without a type means linear scaling, and
    /// the divisors of `rope_freqs` apply in addition to the factor.
    fn rope(&self) -> Result<Rope> {
        let theta = self.arch_number("rope.freq_base")?.unwrap_or(10_000.0);
        let refused = |what: String| Error::new(what).at(&self.path);
        // 0 means no scaling; old files call the factor `scale_linear`.
        let factor = match self.arch_number("rope.scaling.factor")? {
            Some(factor) => Some(factor),
            None => self.arch_number("rope.scale_linear")?,
        };
        let factor = factor.filter(|&factor| factor != 0.0);
        let kind = self.text(&self.key("rope.scaling.type")?)?;
        let attention_factor = self.arch_number("rope.scaling.attn_factor")?.unwrap_or(1.0);
        if attention_factor != 1.0 && kind != Some("yarn") {
            return Err(refused(format!(
                "`rope.scaling.attn_factor` = {attention_factor} is supported with the scaling yarn only"
            )));
        }
        let missing = || self.key("rope.scaling.factor").map_or_else(|error| error, |key| self.missing(&key));
        // Other architectures do not read this tensor, so `check_all_used` reports it for them.
        let divisors = match self.architecture()? == "llama" && self.holds("rope_freqs.weight") {
            true => Some(self.files.read("rope_freqs.weight")?.flatten_all()?.to_vec1::<f32>()?),
            false => None,
        };
        let scaling = match (kind, divisors) {
            (Some("none"), None) => RopeScaling::None,
            (None, None) => factor.map_or(RopeScaling::None, |factor| RopeScaling::Linear { factor }),
            (Some("linear"), None) => RopeScaling::Linear { factor: factor.ok_or_else(missing)? },
            (None | Some("none" | "linear"), Some(divisors)) => {
                let factor = if kind == Some("none") { 1.0 } else { factor.unwrap_or(1.0) };
                RopeScaling::Divisors(divisors.into_iter().map(|divisor| f64::from(divisor) * factor).collect())
            }
            (Some("yarn"), None) => {
                let factor = factor.ok_or_else(missing)?;
                RopeScaling::Yarn {
                    factor,
                    original_max_positions: self.required_count("rope.scaling.original_context_length")? as f64,
                    beta_fast: self.arch_number("rope.scaling.yarn_beta_fast")?.unwrap_or(32.0),
                    beta_slow: self.arch_number("rope.scaling.yarn_beta_slow")?.unwrap_or(1.0),
                    attention_factor: yarn_attention_factor(factor) * attention_factor,
                    truncate: true,
                }
            }
            (Some("yarn"), Some(_)) => {
                return Err(refused("rope scaling `yarn` beside the tensor `rope_freqs.weight` is not supported".to_owned())
                    .cure("Use the model's Hugging Face folder."));
            }
            (Some(other), _) => {
                return Err(refused(format!("`rope.scaling.type` = {other} is not supported; expected none, linear or yarn")));
            }
        };
        Ok(Rope { theta, scaling })
    }

    /// The family, and llama.cpp's name of the tensor that Transformers calls `name`.
    fn stored_name(&self, name: &str) -> Result<(&'static Family, String)> {
        let family = self.family()?;
        let stored = gguf_name(family, name);
        let stored = stored.ok_or_else(|| Error::new(format!("GGUF has no name for the tensor `{name}`")).at(&self.path))?;
        Ok((family, stored))
    }

    /// The number of heads in the tensor `name`, if the file interleaves their rows.
    fn interleaved_heads(&self, name: &str) -> Result<Option<usize>> {
        if !self.family()?.gguf_permuted || !(name.contains("q_proj.") || name.contains("k_proj.")) {
            return Ok(None);
        }
        let all_heads = self.required_count("attention.head_count")?;
        let kv_heads = self.arch_count("attention.head_count_kv")?.unwrap_or(all_heads);
        Ok(Some(if name.contains("q_proj.") { all_heads } else { kv_heads }.max(1)))
    }

    fn check_shape(&self, stored: &str, expected: &[usize]) -> Result<()> {
        match self.files.info(stored).map(|info| info.shape.as_slice()) {
            Some(found) if found == expected => Ok(()),
            Some(found) => {
                Err(Error::new(format!("tensor `{stored}`: expected shape {expected:?}, found {found:?}")).at(&self.path))
            }
            None => Err(Error::new(format!("the file holds no tensor `{stored}`")).at(&self.path)),
        }
    }

    /// The tensor that llama.cpp calls `stored`, of this shape; with an index, one tensor of the stack.
    pub(crate) fn stored(&self, stored: &str, shape: &[usize], index: Option<usize>) -> Result<Tensor> {
        let Some(index) = index else {
            self.check_shape(stored, shape)?;
            return self.files.read(stored);
        };
        if let Some((first, whole)) = self.half_of(stored, shape)? {
            return Ok(self.files.read_slice(&whole, index)?.narrow(0, first, shape[1])?);
        }
        self.check_shape(stored, shape)?;
        self.files.read_slice(stored, index)
    }

    /// If gates and up-projections of the experts are stored as one tensor: the first row within each expert, and the tensor's name.
    fn half_of(&self, stored: &str, shape: &[usize]) -> Result<Option<(usize, String)>> {
        let (Some(whole), [count, rows, input]) = (joined_experts(stored).filter(|whole| self.holds(whole)), shape) else {
            return Ok(None);
        };
        self.check_shape(&whole, &[*count, 2 * rows, *input])?;
        Ok(Some((if stored.contains("ffn_up_exps") { *rows } else { 0 }, whole)))
    }

    /// If a tensor is stored as rows of a larger one: the first row, and the larger one's name.
    ///
    /// Files of the `chatglm` architecture store queries, keys and values jointly; other files do if the converter was told to.
    fn part_of(&self, name: &str, rows: usize) -> Result<Option<(usize, String)>> {
        let Some((block, rest)) = name.split_once(".attn_") else { return Ok(None) };
        let Some((part, kind)) = rest.split_once('.') else { return Ok(None) };
        let whole = format!("{block}.attn_qkv.{kind}");
        let Some(info) = self.files.info(&whole) else { return Ok(None) };
        let all_rows = info.shape.first().copied().unwrap_or(0);
        let heads = self.required_count("attention.head_count")?;
        let kv_heads = self.arch_count("attention.head_count_kv")?.unwrap_or(heads);
        let kv_rows = all_rows / (heads + 2 * kv_heads).max(1) * kv_heads;
        let (first, found) = match part {
            "q" => (0, all_rows - 2 * kv_rows),
            "k" => (all_rows - 2 * kv_rows, kv_rows),
            "v" => (all_rows - kv_rows, kv_rows),
            _ => return Ok(None),
        };
        if rows != found {
            return Err(Error::new(format!(
                "tensor `{whole}` has {all_rows} rows, {found} of them for `{part}`; expected {rows}"
            ))
            .at(&self.path));
        }
        Ok(Some((first, whole)))
    }
}

/// The name of the tensor with the experts' gates followed by their up-projections, for files whose converter was told to join them.
fn joined_experts(stored: &str) -> Option<String> {
    let (block, _) = stored.split_once(".ffn_gate_exps.").or_else(|| stored.split_once(".ffn_up_exps."))?;
    Some(format!("{block}.ffn_gate_up_exps.weight"))
}

impl Source for Gguf {
    fn config(&self) -> Result<Config> {
        let family = self.family()?;
        let in_file = |error: Error| error.at(&self.path);
        let prefix = format!("{}.", family.architecture);
        gguf_keys::check(family, self.settings(family.architecture)).map_err(in_file)?;
        let others = self.files.metadata.iter().filter(|(key, _)| !key.starts_with(&prefix));
        gguf_keys::check_others(others.map(|(key, value)| (key.as_str(), value))).map_err(in_file)?;
        let heads = self.required_count("attention.head_count")?;
        let hidden_size = self.required_count("embedding_length")?;
        let head_dim = self.arch_count("attention.key_length")?.unwrap_or(hidden_size / heads.max(1));
        if let Some(value_dim) = self.arch_count("attention.value_length")?.filter(|&dim| dim != head_dim) {
            return Err(in_file(Error::new(format!(
                "values of {value_dim} dimensions (attention.value_length) beside keys of {head_dim} (attention.key_length) are not supported"
            ))));
        }
        let embedding = self.files.info("token_embd.weight").ok_or_else(|| {
            in_file(Error::new("the file holds no tensor `token_embd.weight`: it is not a complete language model"))
        })?;
        let layers = self.required_count("block_count")?;
        Config::check_sizes(layers, head_dim).map_err(in_file)?;
        let max_positions = self.required_count("context_length")?;
        // Heads are rotated entirely, except in families that allow partial rotation. There the file has to state it, because the defaults
        // of llama.cpp and Transformers differ.
        let in_part = families::keys::rule("partial_rotary_factor", family) == Some(Rule::Honoured);
        let rotary_dim = match self.arch_count("rope.dimension_count")? {
            Some(dim) if in_part || dim == head_dim => dim,
            Some(dim) => {
                return Err(in_file(Error::new(format!(
                    "`{prefix}rope.dimension_count` = {dim} is not supported in this family, which rotates whole heads; expected {head_dim}"
                ))));
            }
            None if in_part => return Err(self.missing(&format!("{prefix}rope.dimension_count"))),
            None => head_dim,
        };
        // If all layers have experts, files may omit the size of dense layers.
        let intermediate_size = match (self.arch_count("feed_forward_length")?, self.arch_count("expert_feed_forward_length")?) {
            (None, Some(of_experts)) => of_experts,
            _ => self.required_count("feed_forward_length")?,
        };
        let epsilon = "attention.layer_norm_rms_epsilon";
        let mut config = Config {
            vocab_size: embedding.shape.first().copied().unwrap_or(0),
            hidden_size,
            intermediate_size,
            heads,
            kv_heads: self.arch_count("attention.head_count_kv")?.unwrap_or(heads),
            rms_norm_eps: self.arch_number(epsilon)?.ok_or_else(|| self.missing(epsilon))?,
            rope: self.rope()?,
            rotary_dim,
            padding: self.count("tokenizer.ggml.padding_token_id")?.map(|id| id as u32),
            tied: !self.holds("output.weight"),
            ..Config::plain(family.model_type, layers, head_dim, max_positions)
        };
        (family.configure_gguf)(&mut config, self).map_err(in_file)?;
        config.check().map_err(in_file)?;
        Ok(config)
    }

    fn tokenizer(&self) -> Result<Tokenizer> {
        Tokenizer::from_gguf(self.vocabulary()?).map_err(|error| error.at(&self.path))
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        let Some(source) = self.text("tokenizer.chat_template")? else { return Ok(None) };
        let token = |id: Option<u32>| id.map(|id| tokenizer.text(id));
        let (bos, eos) = (token(tokenizer.bos()), token(tokenizer.eos()));
        let compile =
            |source: &str| ChatTemplate::new(source, bos.as_deref(), eos.as_deref()).map_err(|error| error.at(&self.path));
        let template = compile(source)?;
        // llama.cpp stores additional templates under their names.
        Ok(Some(match self.text("tokenizer.chat_template.tool_use")? {
            Some(tool_use) => template.with_tool_use(compile(tool_use)?),
            None => template,
        }))
    }

    fn has(&self, name: &str) -> bool {
        let stored = self.family().ok().and_then(|family| gguf_name(family, name));
        stored.is_some_and(|name| self.holds(&name) || joined_experts(&name).is_some_and(|whole| self.holds(&whole)))
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if let Some(tensor) = (self.family()?.gguf_tensor)(self, name, shape, None)? {
            return Ok(tensor);
        }
        let (_, stored) = self.stored_name(name)?;
        let tensor = match (self.files.info(&stored), shape.first()) {
            (Some(_), _) => {
                self.check_shape(&stored, shape)?;
                self.files.read(&stored)?
            }
            (None, Some(&rows)) if let Some((first, whole)) = self.part_of(&stored, rows)? => {
                self.files.read(&whole)?.narrow(0, first, rows)?
            }
            (None, _) if let Some((first, whole)) = self.half_of(&stored, shape)? => {
                self.files.read(&whole)?.narrow(1, first, shape[1])?.contiguous()?
            }
            _ => return Err(Error::new(format!("the file holds no tensor `{stored}` (`{name}`)")).at(&self.path)),
        };
        match self.interleaved_heads(name)? {
            Some(heads) => halves_from_interleaved(&tensor, heads),
            None => Ok(tensor),
        }
    }

    fn blocks(&self, name: &str, [rows, columns]: [usize; 2]) -> Result<Option<Blocks>> {
        if (self.family()?.gguf_tensor)(self, name, &[rows, columns], None)?.is_some() {
            return Ok(None);
        }
        let (_, stored) = self.stored_name(name)?;
        let (first, whole) = match self.files.info(&stored) {
            Some(_) => {
                self.check_shape(&stored, &[rows, columns])?;
                (0, stored)
            }
            None => match self.part_of(&stored, rows)? {
                Some(part) => part,
                None => return Ok(None),
            },
        };
        let Some(info) = self.files.info(&whole).filter(|info| matches!(info.shape[..], [_, found] if found == columns)) else {
            return Ok(None);
        };
        let Some(&(_, form, group)) = quants::kept(info.kind.name) else { return Ok(None) };
        let row_bytes = columns / info.kind.values * info.kind.bytes;
        let heads = self.interleaved_heads(name)?;
        // An odd number of rows per head is reported when the tensor is read.
        if heads.is_some_and(|heads| !rows.is_multiple_of(2 * heads)) {
            return Ok(None);
        }
        let bytes = self.files.bytes(&whole)?;
        Ok(Blocks::new(form, rows, columns, |n, i| {
            let stored_row = first + heads.map_or(n, |heads| interleaved(n, rows / heads));
            group(&bytes[stored_row * row_bytes..][..row_bytes], i)
        }))
    }

    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        if let Some(tensor) = (self.family()?.gguf_tensor)(self, name, shape, Some(index))? {
            return Ok(tensor);
        }
        let (_, stored) = self.stored_name(name)?;
        self.stored(&stored, shape, Some(index))
    }

    fn config_json(&self) -> Result<JsonValue> {
        let mut json = config_json::of(&self.config()?).map_err(|error| error.at(&self.path))?;
        for token in ["bos_token_id", "eos_token_id"] {
            json[token] = self.count(&format!("tokenizer.ggml.{token}"))?.into();
        }
        json["pad_token_id"] = self.count("tokenizer.ggml.padding_token_id")?.into();
        Ok(json)
    }

    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let tokenizer = self.tokenizer()?;
        let token = |id: Option<u32>| id.map(|id| tokenizer.text(id));
        let pad = self.count("tokenizer.ggml.padding_token_id")?.map(|id| id as u32).or(tokenizer.eos());
        let settings = json!({
            "tokenizer_class": "PreTrainedTokenizerFast",
            "bos_token": token(tokenizer.bos()),
            "eos_token": token(tokenizer.eos()),
            // If the file names none, the end token serves for padding, as is usual.
            "pad_token": token(pad),
            "add_bos_token": !tokenizer.leading().is_empty(),
            "model_max_length": self.required_count("context_length")?,
            "clean_up_tokenization_spaces": false,
        });
        let mut files =
            vec![("tokenizer.json", tokenizer.to_json()?.into_bytes()), ("tokenizer_config.json", pretty(&settings)?)];
        if let Some(template) = self.text("tokenizer.chat_template")? {
            files.push(("chat_template.jinja", template.as_bytes().to_vec()));
        }
        Ok(files)
    }

    fn parameters(&self) -> u64 {
        self.files.parameters()
    }

    fn check_all_used(&self) -> Result<()> {
        // If a file contains both a matrix and the joined one that includes it, only one of them was read.
        let twice = self.files.names().find_map(|name| {
            let whole = match name.split_once(".attn_") {
                Some((block, rest)) if let Some(("q" | "k" | "v", kind)) = rest.split_once('.') => {
                    format!("{block}.attn_qkv.{kind}")
                }
                _ => joined_experts(name)?,
            };
            self.holds(&whole).then(|| format!("`{name}` and `{whole}`, which contains it"))
        });
        if let Some(twice) = twice {
            return Err(Error::new(format!("the file holds both {twice}")).at(&self.path).cure("Convert the model again."));
        }
        let mut unread = self.files.used.others(self.files.names());
        // Rotary frequencies of old files, which follow from the metadata.
        unread.retain(|name| !name.ends_with(".attn_rot_embd.weight") && !name.ends_with(".attn_rot_embd"));
        let Config { layers, further_layers, .. } = self.config()?;
        let is_further = |name: &str| {
            let layer = name.strip_prefix("blk.").and_then(|rest| rest.split('.').next()?.parse::<usize>().ok());
            layer.is_some_and(|layer| (layers..layers + further_layers).contains(&layer))
        };
        unread.retain(|name| !is_further(name));
        if unread.is_empty() {
            return Ok(());
        }
        let architecture = self.architecture()?;
        Err(Error::new(format!(
            "the file holds tensors that the architecture `{architecture}` does not read here: {}",
            listed(&unread)
        ))
        .at(&self.path)
        .cure("Use the model's Hugging Face folder, or a file from a converter that was tested with this family."))
    }
}

/// Reorders the rows of each head from (0, d/2, 1, d/2 + 1, ..) to (0, 1, .., d/2, d/2 + 1, ..): undoes `LlamaModel.permute` of
/// llama.cpp's `convert_hf_to_gguf.py`. `weight` is `[heads * d, K]`, or a bias `[heads * d]`.
fn halves_from_interleaved(weight: &Tensor, heads: usize) -> Result<Tensor> {
    let rows = weight.dim(0)?;
    let half = rows / heads / 2;
    let pairs = weight.reshape((heads, half, 2, weight.elem_count() / rows.max(1)))?;
    Ok(pairs.transpose(1, 2)?.contiguous()?.reshape(weight.shape())?)
}

/// The row of the file that becomes row `row` in [`halves_from_interleaved`], for heads of `head_rows` rows.
fn interleaved(row: usize, head_rows: usize) -> usize {
    let (head, within, half) = (row / head_rows, row % head_rows, head_rows / 2);
    head * head_rows + within % half * 2 + within / half
}

/// Pairs of Transformers' and llama.cpp's names for a block's modules. A family's own list takes precedence.
const NAMES: &[(&str, &str)] = &[
    ("self_attn.q_proj", "attn_q"),
    ("self_attn.k_proj", "attn_k"),
    ("self_attn.v_proj", "attn_v"),
    ("self_attn.o_proj", "attn_output"),
    ("self_attn.q_norm", "attn_q_norm"),
    ("self_attn.k_norm", "attn_k_norm"),
    ("mlp.gate_proj", "ffn_gate"),
    ("mlp.up_proj", "ffn_up"),
    ("mlp.down_proj", "ffn_down"),
    ("input_layernorm", "attn_norm"),
    ("post_attention_layernorm", "ffn_norm"),
];

/// llama.cpp's name of the tensor that Transformers calls `name`.
fn gguf_name(family: &Family, name: &str) -> Option<String> {
    match name {
        "model.embed_tokens.weight" => return Some("token_embd.weight".to_owned()),
        "model.norm.weight" => return Some("output_norm.weight".to_owned()),
        "lm_head.weight" => return Some("output.weight".to_owned()),
        _ => {}
    }
    let (layer, rest) = name.strip_prefix("model.layers.")?.split_once('.')?;
    if let Some((_, whole)) = family.gguf_names.iter().find(|(name, _)| *name == rest) {
        return Some(format!("blk.{layer}.{whole}"));
    }
    let (module, kind) = rest.rsplit_once('.')?;
    let (_, module) = family.gguf_names.iter().chain(NAMES).find(|(name, _)| *name == module)?;
    Some(format!("blk.{layer}.{module}.{kind}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_of_tensors() {
        let check = |name: &str, expected: Option<&str>| {
            assert_eq!(gguf_name(families::by_architecture("llama").unwrap(), name).as_deref(), expected);
        };
        check("model.embed_tokens.weight", Some("token_embd.weight"));
        check("model.layers.12.self_attn.q_proj.weight", Some("blk.12.attn_q.weight"));
        check("model.layers.0.mlp.down_proj.bias", Some("blk.0.ffn_down.bias"));
        check("model.layers.0.mlp.router.weight", None);
        check("visual.patch_embed.weight", None);
        let glm4 = families::by_architecture("glm4").unwrap();
        let name = gguf_name(glm4, "model.layers.3.post_mlp_layernorm.weight");
        assert_eq!(name.as_deref(), Some("blk.3.post_ffw_norm.weight"));
    }

    #[test]
    fn rows_of_a_head_come_back_in_halves() {
        // One head of 4 rows, stored as 0, 2, 1, 3 (interleaved), must become 0, 1, 2, 3; the second head likewise.
        let stored = Tensor::new(&[[0f32], [2.], [1.], [3.], [4.], [6.], [5.], [7.]], &candle_core::Device::Cpu).unwrap();
        let halves = halves_from_interleaved(&stored, 2).unwrap();
        assert_eq!(halves.flatten_all().unwrap().to_vec1::<f32>().unwrap(), [0., 1., 2., 3., 4., 5., 6., 7.]);
        let stored = stored.flatten_all().unwrap().to_vec1::<f32>().unwrap();
        assert!((0..8).all(|row| stored[interleaved(row, 4)] == row as f32));
    }
}
