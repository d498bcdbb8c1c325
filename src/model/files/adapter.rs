//! LoRA adapters in PEFT's layout as a [`Source`]: the base model's tensors, with `scale * B A` added to those that the adapter
//! changes (Hu et al. 2021, arXiv:2106.09685).
//!
//! `scale` is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with `use_rslora` (PEFT, `tuners/lora/layer.py`). The product is made
//! in f32 when the tensor is loaded, so that an adapted model runs as fast as its base. Left out, and refused by name: whatever is
//! more than that sum (DoRA, biases, `modules_to_save`, embeddings), and initialisations that change the base (PiSSA, OLoRA).

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::folder;
use crate::error::{Context, Error, Result};
use crate::model::config::Config;
use crate::model::families::multimodal;
use crate::model::source::{Source, listed};
use crate::tokens::{ChatTemplate, Tokenizer};

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

/// Keys of adapter_config.json that are read, or that do not change the weights once the adapter is trained. Any other key is
/// refused unless it is empty.
const UNDERSTOOD: &[&str] = &[
    "alpha_pattern",
    "base_model_name_or_path",
    "init_lora_weights",
    "lora_alpha",
    "peft_type",
    "r",
    "rank_pattern",
    "revision",
    "use_rslora",
    // Which layers were trained: the tensors say it too.
    "exclude_modules",
    "layers_pattern",
    "layers_to_transform",
    "target_modules",
    // For training, or for other programs.
    "auto_mapping",
    "eva_config",
    "inference_mode",
    "lora_dropout",
    "megatron_core",
    "peft_version",
    "qalora_group_size",
    "runtime_config",
    "task_type",
];

/// Initialisations that leave the base as it is.
const INITIALISATIONS: &[&str] = &["gaussian", "eva", "orthogonal"];

/// A base model and what the adapter adds to it.
pub(crate) struct Adapter {
    base: Box<dyn Source>,
    folder: PathBuf,
    /// The file of the adapter's weights.
    path: PathBuf,
    /// By the name of the tensor that is changed.
    updates: BTreeMap<String, Update>,
    /// Names of `updates` that nobody has asked for yet.
    unused: Mutex<Vec<String>>,
    remarks: Vec<String>,
}

/// `scale * B A`, with `A [r, in]` and `B [out, r]`.
struct Update {
    a: Tensor,
    b: Tensor,
    scale: f64,
}

/// The base that an adapter was trained on, as its config names it.
pub(crate) struct Base {
    pub name: String,
    pub revision: Option<String>,
}

/// Whether the folder holds an adapter and no model of its own.
pub(crate) fn is_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).is_file() && !holds_model(folder)
}

fn holds_model(folder: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).is_file())
}

/// Refuses a folder with a model and an adapter: Transformers loads the base that the adapter names where PEFT is installed, and the
/// model where it is not, and a merged model with the adapter on top would have it twice.
pub(crate) fn check_not_both(folder: &Path) -> Result<()> {
    if folder.join(CONFIG).is_file() && holds_model(folder) {
        return Err(Error::new(format!(
            "the folder holds a model and an adapter ({CONFIG}): which of the two is meant is not known"
        ))
        .at(folder)
        .cure(format!("Move {CONFIG} and {WEIGHTS} to a folder of their own, and name that folder or this one.")));
    }
    Ok(())
}

/// Reads from the adapter's config which model it was trained on.
pub(crate) fn base_of(folder: &Path) -> Result<Base> {
    let config = read_config(folder)?;
    let text = |key: &str| config.get(key).and_then(Value::as_str).filter(|text| !text.is_empty()).map(str::to_owned);
    let name = text("base_model_name_or_path").ok_or_else(|| {
        Error::new("the adapter does not say which model it belongs to: `base_model_name_or_path` is empty")
            .at(folder.join(CONFIG))
            .cure("Write the base model's folder or hub id there.")
    })?;
    Ok(Base { name, revision: text("revision") })
}

impl Adapter {
    /// Reads the adapter in `path` to be applied to `base`.
    pub(crate) fn open(path: &Path, base: Box<dyn Source>) -> Result<Adapter> {
        let config = read_config(path)?;
        let scales = Scales::read(&config).map_err(|error| error.at(path.join(CONFIG)))?;
        let weights = path.join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&weights, &Device::Cpu)
            .context_at(&weights, "cannot read the adapter's weights")
            .map_err(|error| error.cure("Save the adapter as safetensors again; adapter_model.bin is not read."))?;
        let mut updates = updates(tensors, &scales).map_err(|error| error.at(&weights))?;
        let mut remarks = Vec::new();
        if base.is_multimodal()? {
            updates = of_language_model(updates, &mut remarks).map_err(|error| error.at(&weights))?;
        }
        let unused = Mutex::new(updates.keys().cloned().collect());
        Ok(Adapter { base, folder: path.to_owned(), path: weights, updates, unused, remarks })
    }
}

/// The updates of an adapter on a multimodal model by the names that its language model has alone. Those of the vision tower are left
/// out, for no text reaches it.
fn of_language_model(updates: BTreeMap<String, Update>, remarks: &mut Vec<String>) -> Result<BTreeMap<String, Update>> {
    let (beside, inner): (Vec<_>, Vec<_>) = updates.into_iter().partition(|(name, _)| multimodal::is_beside_text(name));
    if !beside.is_empty() {
        let names: Vec<String> = beside.into_iter().map(|(name, _)| name).collect();
        remarks.push(format!(
            "text does not reach the vision tower: these updates of the adapter are left aside: {}",
            listed(&names)
        ));
    }
    let mut renamed = BTreeMap::new();
    let mut by_inner_name = Vec::new();
    for (name, update) in inner {
        let inner = multimodal::inner_name(&name);
        if inner == name && multimodal::outer_name(&name) != name {
            by_inner_name.push(name.clone());
        }
        if renamed.insert(inner.clone(), update).is_some() {
            return Err(Error::new(format!("the adapter changes `{inner}` twice, under two names"))
                .cure("Keep the names that Transformers gives the base: those with `language_model`."));
        }
    }
    if !by_inner_name.is_empty() {
        remarks.push(format!(
            "the adapter has the names of a language model by itself, and its base is multimodal: it is applied to the base's \
             language model; PEFT does so only on Transformers' class of the language model ({})",
            listed(&by_inner_name)
        ));
    }
    Ok(renamed)
}

impl Source for Adapter {
    fn config(&self) -> Result<Config> {
        self.base.config()
    }

    /// The adapter's own where it was saved with one, as trainers do: it knows the template that was trained on.
    fn tokenizer(&self) -> Result<Tokenizer> {
        folder::tokenizer(&self.folder)?.map_or_else(|| self.base.tokenizer(), Ok)
    }

    fn template(&self, tokenizer: &Tokenizer) -> Result<Option<ChatTemplate>> {
        match folder::template(&self.folder, tokenizer)? {
            Some(template) => Ok(Some(template)),
            None => self.base.template(tokenizer),
        }
    }

    fn has(&self, name: &str) -> bool {
        self.base.has(name)
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let tensor = self.base.tensor(name, shape)?;
        let Some(update) = self.updates.get(name) else { return Ok(tensor) };
        let (out, input) = (update.b.dims2()?.0, update.a.dims2()?.1);
        if shape != [out, input] {
            return Err(Error::new(format!(
                "the adapter changes `{name}` as [{out}, {input}]; in the base model it is {shape:?}"
            ))
            .at(&self.path)
            .cure("The adapter belongs to another base model: see base_model_name_or_path in its config."));
        }
        self.unused.lock().unwrap_or_else(PoisonError::into_inner).retain(|unused| unused != name);
        Ok((tensor + (update.b.matmul(&update.a)? * update.scale)?)?)
    }

    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        // An update of such a tensor stays unused, which `check_all_used` tells.
        self.base.slice(name, shape, index)
    }

    fn config_json(&self) -> Result<Value> {
        self.base.config_json()
    }

    fn companions(&self) -> Result<Vec<(&'static str, Vec<u8>)>> {
        let own = folder::companions(&self.folder)?;
        let mut files = self.base.companions()?;
        files.retain(|(name, _)| own.iter().all(|(own, _)| own != name));
        files.extend(own);
        Ok(files)
    }

    fn parameters(&self) -> u64 {
        self.base.parameters()
    }

    fn is_multimodal(&self) -> Result<bool> {
        self.base.is_multimodal()
    }

    fn remarks(&self) -> Result<Vec<String>> {
        let mut remarks = self.base.remarks()?;
        remarks.extend(self.remarks.iter().cloned());
        Ok(remarks)
    }

    fn check_all_used(&self) -> Result<()> {
        self.base.check_all_used()?;
        self.check_updates_used()
    }
}

impl Adapter {
    fn check_updates_used(&self) -> Result<()> {
        match self.unused.lock().unwrap_or_else(PoisonError::into_inner).as_slice() {
            [] => Ok(()),
            unused => {
                Err(Error::new(format!("the adapter changes tensors that the base model does not have: {}", listed(unused)))
                    .at(&self.path)
                    .cure(
                        "The adapter belongs to another base model, or changes the head of a model whose head is its embedding.",
                    ))
            }
        }
    }
}

/// How strongly each module's update counts.
struct Scales {
    rank: usize,
    alpha: f64,
    rslora: bool,
    /// End of a module's name -> its own alpha; the first that fits counts.
    alpha_pattern: Vec<(String, f64)>,
    has_rank_pattern: bool,
}

impl Scales {
    fn read(config: &Value) -> Result<Scales> {
        let object = config.as_object().ok_or_else(|| Error::new("expected a JSON object"))?;
        if object.get("peft_type").and_then(Value::as_str) != Some("LORA") {
            let found = object.get("peft_type").unwrap_or(&Value::Null);
            return Err(Error::new(format!("peft_type is {found}; only LORA adapters can be applied")));
        }
        let merge = "Merge the adapter with PEFT's merge_and_unload() and save the merged model.";
        for (key, value) in object {
            let none = is_empty(value) || (key == "bias" && value == "none");
            if !none && !UNDERSTOOD.contains(&key.as_str()) {
                return Err(Error::new(format!("`{key}` is {value}, which is not supported")).cure(merge));
            }
        }
        match object.get("init_lora_weights") {
            None | Some(Value::Null | Value::Bool(_)) => {}
            Some(Value::String(kind)) if INITIALISATIONS.contains(&kind.as_str()) => {}
            Some(kind) => {
                return Err(
                    Error::new(format!("`init_lora_weights` is {kind}, which changes the base model: not supported")).cure(merge)
                );
            }
        }
        let rank = object.get("r").and_then(Value::as_u64).filter(|&rank| rank > 0);
        let rank = rank.ok_or_else(|| Error::new("expected a whole number above 0 for `r`"))? as usize;
        let alpha = object.get("lora_alpha").and_then(Value::as_f64);
        let alpha = alpha.ok_or_else(|| Error::new("expected a number for `lora_alpha`"))?;
        let patterns = object.get("alpha_pattern").and_then(Value::as_object);
        let alpha_pattern = patterns.into_iter().flatten().map(|(pattern, alpha)| match alpha.as_f64() {
            // PEFT reads a regular expression; names are what people write.
            Some(alpha) if pattern.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"._-".contains(&byte)) => {
                Ok((pattern.clone(), alpha))
            }
            _ => Err(Error::new(format!("`alpha_pattern` holds `{pattern}`: {alpha}; expected a module's name and a number"))),
        });
        Ok(Scales {
            rank,
            alpha,
            rslora: object.get("use_rslora").and_then(Value::as_bool).unwrap_or(false),
            alpha_pattern: alpha_pattern.collect::<Result<_>>()?,
            has_rank_pattern: object.get("rank_pattern").is_some_and(|value| !is_empty(value)),
        })
    }

    /// The factor of `B A` for a module whose `A` has `rank` rows.
    fn of(&self, module: &str, rank: usize) -> Result<f64> {
        if rank != self.rank && !self.has_rank_pattern {
            return Err(Error::new(format!("`{module}` has rank {rank}; the config says {}", self.rank)));
        }
        let fits = |pattern: &str| module.strip_suffix(pattern).is_some_and(|rest| rest.is_empty() || rest.ends_with('.'));
        let own = self.alpha_pattern.iter().find(|(pattern, _)| fits(pattern));
        let alpha = own.map_or(self.alpha, |(_, alpha)| *alpha);
        Ok(alpha / if self.rslora { (rank as f64).sqrt() } else { rank as f64 })
    }
}

/// Pairs the adapter's tensors: `base_model.model.MODULE.lora_A.weight` with `lora_B`.
fn updates(tensors: impl IntoIterator<Item = (String, Tensor)>, scales: &Scales) -> Result<BTreeMap<String, Update>> {
    let mut pairs: BTreeMap<String, [Option<Tensor>; 2]> = BTreeMap::new();
    let mut unknown = Vec::new();
    for (name, tensor) in tensors {
        let module = name.strip_prefix("base_model.model.");
        let part = |end: &str| module.and_then(|module| module.strip_suffix(end));
        match (part(".lora_A.weight"), part(".lora_B.weight")) {
            (Some(module), _) => pairs.entry(module.to_owned()).or_default()[0] = Some(tensor),
            (_, Some(module)) => pairs.entry(module.to_owned()).or_default()[1] = Some(tensor),
            _ => unknown.push(name),
        }
    }
    if !unknown.is_empty() {
        unknown.sort_unstable();
        return Err(Error::new(format!("the adapter holds tensors that are not supported: {}", listed(&unknown)))
            .cure("Merge the adapter with PEFT's merge_and_unload() and save the merged model."));
    }
    let mut updates = BTreeMap::new();
    for (module, pair) in pairs {
        let [Some(a), Some(b)] = pair else {
            return Err(Error::new(format!("the adapter holds only one of lora_A and lora_B for `{module}`")));
        };
        let (a, b) = (a.to_dtype(DType::F32)?, b.to_dtype(DType::F32)?);
        let ([rank, _], [_, inner]) = (a.dims(), b.dims()) else {
            return Err(Error::new(format!("`{module}`: lora_A is {:?} and lora_B {:?}; expected matrices", a.dims(), b.dims())));
        };
        if rank != inner {
            return Err(Error::new(format!("`{module}`: lora_A is {:?} and lora_B {:?}: they do not fit", a.dims(), b.dims())));
        }
        let scale = scales.of(&module, *rank)?;
        updates.insert(format!("{module}.weight"), Update { a, b, scale });
    }
    Ok(updates)
}

fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).context_at(&path, "cannot read the adapter's config")?;
    serde_json::from_str(&text).context_at(&path, "this is not JSON")
}

/// What PEFT writes where a setting is not used.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null | Value::Bool(false) => true,
        Value::Array(items) => items.is_empty(),
        Value::Object(entries) => entries.is_empty(),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::model::files::folder::Folder;

    fn config() -> Value {
        json!({"peft_type": "LORA", "r": 2, "lora_alpha": 6, "bias": "none", "target_modules": ["q_proj"], "use_dora": false})
    }

    #[test]
    fn tensors_are_those_that_peft_merges() {
        let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora");
        for folder in ["adapter", "adapter_rslora"] {
            let base = || Box::new(Folder::open(&fixture.join("base")).unwrap());
            let adapter = Adapter::open(&fixture.join(folder), base()).unwrap();
            let merged = candle_core::safetensors::load(fixture.join(folder).join("merged.safetensors"), &Device::Cpu).unwrap();
            assert_eq!(merged.len(), 12);
            for (name, expected) in merged {
                let largest =
                    |tensor: Tensor| tensor.abs().unwrap().flatten_all().unwrap().max(0).unwrap().to_scalar::<f32>().unwrap();
                let found = adapter.tensor(&name, expected.dims()).unwrap();
                let plain = base().tensor(&name, expected.dims()).unwrap();
                // Two f32 roundings of numbers around 1.
                assert!(largest((&found - &expected).unwrap()) < 1e-6, "{folder}: {name}");
                assert!(largest((&found - &plain).unwrap()) > 1e-2, "{folder}: {name} is unchanged");
            }
            adapter.check_updates_used().unwrap();
        }
    }

    #[test]
    fn scales_by_hand() {
        let check = |changes: Value, module: &str, rank: usize, expected: f64| {
            let mut config = config();
            config.as_object_mut().unwrap().extend(changes.as_object().unwrap().clone());
            assert_eq!(Scales::read(&config).unwrap().of(module, rank).unwrap(), expected);
        };
        check(json!({}), "model.layers.0.mlp.up_proj", 2, 3.0);
        check(json!({"use_rslora": true, "r": 4}), "model.layers.0.mlp.up_proj", 4, 3.0);
        let own = json!({"alpha_pattern": {"layers.0.mlp.up_proj": 10}, "rank_pattern": {"up_proj": 5}});
        check(own.clone(), "model.layers.0.mlp.up_proj", 5, 2.0);
        check(own, "model.layers.10.mlp.up_proj", 2, 3.0);
    }

    #[test]
    fn what_cannot_be_applied_is_refused_by_name() {
        let check = |key: &str, value: Value| {
            let mut config = config();
            config[key] = value;
            let error = Scales::read(&config).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(key), "{key}: {error}");
        };
        check("modules_to_save", json!(["lm_head"]));
        check("use_dora", json!(true));
        check("bias", json!("all"));
        check("fan_in_fan_out", json!(true));
        check("init_lora_weights", json!("pissa_niter_4"));
        check("peft_type", json!("IA3"));
        check("r", json!(0));
        check("lora_alpha", Value::Null);
        check("alpha_pattern", json!({".*up_proj": 3}));
        check("a_key_of_next_year", json!(1));
    }

    #[test]
    fn tensors_are_paired_and_the_others_named() {
        let scales = Scales::read(&config()).unwrap();
        let a = || Tensor::new(&[[1f32, 2.0], [3.0, 4.0]], &Device::Cpu).unwrap();
        let check = |tensors: &[(&str, Tensor)], expected: &str| {
            let tensors = tensors.iter().map(|(name, tensor)| ((*name).to_owned(), tensor.clone()));
            let error = updates(tensors, &scales).err().map(|error| error.to_string()).unwrap_or_default();
            assert!(error.contains(expected), "{error}");
        };
        let (lora_a, lora_b) = ("base_model.model.m.q_proj.lora_A.weight", "base_model.model.m.q_proj.lora_B.weight");
        check(&[(lora_a, a())], "only one of lora_A and lora_B for `m.q_proj`");
        check(&[(lora_a, a()), ("base_model.model.lm_head.weight", a())], "`base_model.model.lm_head.weight`");
        check(&[(lora_a, a()), ("base_model.model.e.lora_embedding_A", a())], "`base_model.model.e.lora_embedding_A`");
        check(&[(lora_a, a()), (lora_b, Tensor::zeros((2, 3), DType::F32, &Device::Cpu).unwrap())], "do not fit");
        let pair = updates([(lora_a.to_owned(), a()), (lora_b.to_owned(), a())], &scales).unwrap();
        assert_eq!(pair.keys().collect::<Vec<_>>(), ["m.q_proj.weight"]);
        assert_eq!(pair["m.q_proj.weight"].scale, 3.0);
    }
}
