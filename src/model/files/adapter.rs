//! LoRA adapters in PEFT's layout as a [`Source`]: the base model's tensors with the adapter's changes applied. These are `scale * B A`
//! added to a weight (Hu et al. 2021, arXiv:2106.09685), magnitudes (DoRA, arXiv:2402.09353), rows of single tokens, whole modules, and
//! biases.
//!
//! `settings.rs` reads the adapter's config, `changes.rs` its tensors. `scale` is `lora_alpha / r`, or `lora_alpha / sqrt(r)` with
//! `use_rslora` (PEFT, `tuners/lora/layer.py`). The sum is computed in f32 when a tensor is loaded, so an adapted model runs as fast as
//! its base. Refused by name: adapters of other kinds, single expert matrices as parameters (`target_parameters`), and initialisations
//! that change the base (PiSSA, OLoRA).

mod changes;
mod settings;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use candle_core::{DType, Device, Tensor};
use serde_json::Value;

use super::folder;
use crate::error::{Context, Error, Result};
use crate::json;
use crate::model::config::Config;
use crate::model::families::multimodal;
use crate::model::source::{Source, listed};
use crate::tokens::{ChatTemplate, Tokenizer};
use changes::{Change, changes};
use settings::Settings;

pub(crate) const CONFIG: &str = "adapter_config.json";
pub(crate) const WEIGHTS: &str = "adapter_model.safetensors";

const EMBEDDING: &str = "model.embed_tokens.weight";
const HEAD: &str = "lm_head.weight";

/// Biases that a config has all or none of: whether it has them, and their modules.
type Biases = (fn(&Config) -> bool, &'static [&'static str]);
const BIASES: [Biases; 3] = [
    (|config| config.qkv_bias, &["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj"]),
    (|config| config.output_bias, &["self_attn.o_proj"]),
    (|config| config.mlp_bias, &["mlp.gate_proj", "mlp.up_proj", "mlp.gate_up_proj", "mlp.down_proj"]),
];

fn is_bias_of(name: &str, modules: &[&str]) -> bool {
    let module = name.strip_suffix(".bias");
    module.is_some_and(|module| modules.iter().any(|end| module.strip_suffix(end).is_some_and(|rest| rest.ends_with('.'))))
}

/// A base model with an adapter applied.
pub(crate) struct Adapter {
    base: Box<dyn Source>,
    folder: PathBuf,
    /// The file of the adapter's weights.
    path: PathBuf,
    /// Whether updates of single experts apply, in the rows of their stacks.
    modules: bool,
    /// The changes, by the name of the base's tensor.
    changes: BTreeMap<String, Change>,
    /// The names in `changes` that have not been requested yet.
    unused: Mutex<Vec<String>>,
    remarks: Vec<String>,
}

/// The base that an adapter was trained on, as its config names it.
pub(crate) struct Base {
    /// A folder or a hub id.
    pub name: String,
    /// The branch, tag or commit of a hub id, if the config names one.
    pub revision: Option<String>,
}

/// Whether the folder contains an adapter and no model of its own.
pub(crate) fn is_adapter(folder: &Path) -> bool {
    holds_adapter(folder) && !holds_model(folder)
}

pub(crate) fn holds_adapter(folder: &Path) -> bool {
    folder.join(CONFIG).is_file()
}

fn holds_model(folder: &Path) -> bool {
    ["model.safetensors", "model.safetensors.index.json"].iter().any(|name| folder.join(name).is_file())
}

/// Refuses a folder with both a model and an adapter, which is ambiguous. For a local folder, Transformers applies the adapter to the
/// model in it if PEFT is installed, which applies it twice to a merged model, and ignores the adapter otherwise; for a hub repository it
/// loads the base that the adapter names (`auto_factory.py`).
pub(crate) fn check_not_both(folder: &Path) -> Result<()> {
    if holds_adapter(folder) && holds_model(folder) {
        return Err(Error::new(format!(
            "the folder holds both a model and an adapter ({CONFIG}): it is ambiguous which one to use"
        ))
        .at(folder)
        .cure(format!(
            "For the adapter, pass its base model with --base; for the model, use a copy of the folder without {CONFIG}."
        )));
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
            .cure("Set the base model's folder or hub id there.")
    })?;
    Ok(Base { name, revision: text("revision") })
}

impl Adapter {
    /// Opens the adapter in `path`, to be applied to `base`.
    pub(crate) fn open(path: &Path, base: Box<dyn Source>) -> Result<Adapter> {
        let config = read_config(path)?;
        let settings = Settings::read(&config).map_err(|error| error.at(path.join(CONFIG)))?;
        let weights = path.join(WEIGHTS);
        let tensors = candle_core::safetensors::load(&weights, &Device::Cpu)
            .context_at(&weights, "cannot read the adapter's weights")
            .map_err(|error| error.cure("Save the adapter as safetensors; adapter_model.bin is not supported."))?;
        let mut changes = changes(tensors, &settings).map_err(|error| error.at(&weights))?;
        let mut remarks = Vec::new();
        if base.is_multimodal()? {
            changes = of_language_model(changes, &mut remarks).map_err(|error| error.at(&weights))?;
        }
        let unused = Mutex::new(changes.keys().cloned().collect());
        let modules = base.config()?.experts.is_none_or(|experts| experts.modules);
        Ok(Adapter { base, modules, folder: path.to_owned(), path: weights, changes, unused, remarks })
    }

    fn use_change(&self, name: &str) -> Option<&Change> {
        let change = self.changes.get(name)?;
        self.unused.lock().unwrap_or_else(PoisonError::into_inner).retain(|unused| unused != name);
        Some(change)
    }

    /// Whether the adapter separates head and embedding of a tied base. It does not if it stores the same token rows for both (PEFT,
    /// `TrainableTokensWrapper`), or a replacement of the shared matrix.
    fn parts_head(&self) -> bool {
        let is_apart = |change: &Change| change.low_rank.is_some() || change.whole.as_ref().is_some_and(|whole| whole.apart);
        let own_rows = |name: &str| self.changes.get(name).and_then(|change| change.rows.as_ref()).map(|rows| &rows.tokens);
        let apart = [EMBEDDING, HEAD].into_iter().filter_map(|name| self.changes.get(name)).any(is_apart);
        apart || own_rows(HEAD).is_some_and(|of_head| Some(of_head) != own_rows(EMBEDDING))
    }

    /// The shared matrix of a tied base: the adapter's replacement if it stores one, otherwise the base's.
    fn shared_matrix(&self, shape: &[usize]) -> Result<Tensor> {
        let stored = [EMBEDDING, HEAD].into_iter().find_map(|name| {
            let whole = self.changes.get(name)?.whole.as_ref()?;
            (!whole.apart).then_some(&whole.tensor)
        });
        let base = self.base.tensor(EMBEDDING, shape)?;
        Ok(stored.cloned().unwrap_or(base))
    }

    /// The base's tensor; zeros for a bias that the base lacks, the embedding for a head that it lacks.
    fn of_base(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        if [EMBEDDING, HEAD].contains(&name) && self.base.config()?.tied {
            let shared = self.shared_matrix(shape)?;
            let own_rows = self.changes.get(HEAD).is_some_and(|change| change.rows.is_some());
            let rows = self.changes.get(EMBEDDING).and_then(|change| change.rows.as_ref());
            return match rows.filter(|_| name == HEAD && !own_rows) {
                Some(rows) => rows.apply(&shared),
                None => Ok(shared),
            };
        }
        if name.ends_with(".bias") && !self.base.has(name) {
            let base = self.base.config()?;
            let added = BIASES.iter().any(|(flag, modules)| !flag(&base) && is_bias_of(name, modules));
            if added {
                return Ok(Tensor::zeros(shape, DType::F32, &Device::Cpu)?);
            }
        }
        self.base.tensor(name, shape)
    }

    /// The changes of the `index`th expert of the stack `name`, each with the first row and the number of rows that it applies to.
    fn changes_of_expert(&self, name: &str, rows: usize, index: usize) -> Vec<(usize, usize, &Change)> {
        let Some((mlp, kind)) = name.split_once(".experts.").filter(|_| self.modules) else { return Vec::new() };
        let parts: &[&str] = match kind {
            "gate_up_proj" | "gate_up_proj.weight" => &["gate_proj", "up_proj"],
            kind => &[kind.trim_end_matches(".weight")],
        };
        let rows = rows / parts.len();
        let part = |(number, module): (usize, &&str)| {
            let change = self.use_change(&format!("{mlp}.experts.{index}.{module}.weight"))?;
            Some((number * rows, rows, change))
        };
        parts.iter().enumerate().filter_map(part).collect()
    }

    fn check_shape(&self, name: &str, change: &Change, shape: &[usize]) -> Result<()> {
        match change.shape() {
            Some(found) if found != shape => {
                let cure = match name {
                    EMBEDDING | HEAD => {
                        "If tokens were added before training, add the same to the base (resize_token_embeddings in Transformers), save it, and pass it with --base."
                    }
                    _ => "The adapter belongs to another base model: see base_model_name_or_path in its config.",
                };
                let message = format!("the adapter changes `{name}` as {found:?}; in the base model it is {shape:?}");
                Err(Error::new(message).at(&self.path).cure(cure))
            }
            _ => Ok(()),
        }
    }

    fn check_changes_used(&self) -> Result<()> {
        match self.unused.lock().unwrap_or_else(PoisonError::into_inner).as_slice() {
            [] => Ok(()),
            unused => {
                Err(Error::new(format!("the adapter changes tensors that the base model does not have: {}", listed(unused)))
                    .at(&self.path)
                    .cure("The adapter belongs to another base model: see base_model_name_or_path in its config."))
            }
        }
    }
}

/// Renames the changes of an adapter on a multimodal model to the names of the standalone language model. Drops those of the vision
/// tower, which text never reaches.
fn of_language_model(changes: BTreeMap<String, Change>, remarks: &mut Vec<String>) -> Result<BTreeMap<String, Change>> {
    let (beside, inner): (Vec<_>, Vec<_>) = changes.into_iter().partition(|(name, _)| multimodal::is_beside_text(name));
    if !beside.is_empty() {
        let names: Vec<String> = beside.into_iter().map(|(name, _)| name).collect();
        remarks.push(format!(
            "these updates of the adapter belong to the vision tower, which text does not reach, and are ignored: {}",
            listed(&names)
        ));
    }
    let mut renamed = BTreeMap::new();
    let mut by_inner_name = Vec::new();
    for (name, change) in inner {
        let inner = multimodal::inner_name(&name);
        if inner == name && multimodal::outer_name(&name) != name {
            by_inner_name.push(name.clone());
        }
        if renamed.insert(inner.clone(), change).is_some() {
            return Err(Error::new(format!("the adapter changes `{inner}` twice, under two names"))
                .cure("Keep the names that Transformers gives the base: those with `language_model`."));
        }
    }
    if !by_inner_name.is_empty() {
        remarks.push(format!(
            "the adapter has the names of a plain language model, but its base is multimodal: it is applied to the base's language model; PEFT does this only on Transformers' class of the language model ({})",
            listed(&by_inner_name)
        ));
    }
    Ok(renamed)
}

impl Source for Adapter {
    /// The base's config, with what the adapter adds to it.
    fn config(&self) -> Result<Config> {
        let mut config = self.base.config()?;
        config.tied &= !self.parts_head();
        let adds = |(_, modules): &Biases| self.changes.keys().any(|name| is_bias_of(name, modules));
        let [qkv, output, mlp] = &BIASES;
        config.qkv_bias |= adds(qkv);
        config.output_bias |= adds(output);
        config.mlp_bias |= adds(mlp);
        Ok(config)
    }

    /// The adapter's own tokenizer if it was saved with one, as trainers do: that one knows the template that was trained on.
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
        let has_changed_expert = || {
            let stack = name.split_once(".experts.").map(|(mlp, _)| format!("{mlp}.experts."));
            stack.is_some_and(|stack| self.changes.keys().any(|changed| changed.starts_with(&stack)))
        };
        if let [count, _, _] = shape
            && has_changed_expert()
        {
            // Stacked experts, each with its own changes.
            let experts = (0..*count).map(|index| self.slice(name, shape, index)).collect::<Result<Vec<_>>>()?;
            return Ok(Tensor::stack(&experts, 0)?);
        }
        let base = self.of_base(name, shape)?;
        let Some(change) = self.use_change(name) else { return Ok(base) };
        self.check_shape(name, change, shape)?;
        change.apply(base).map_err(|error| error.at(&self.path))
    }

    fn slice(&self, name: &str, shape: &[usize], index: usize) -> Result<Tensor> {
        let expert = self.base.slice(name, shape, index)?;
        let [rows, width] = *expert.dims() else { return Ok(expert) };
        let changed = self.changes_of_expert(name, rows, index);
        if changed.is_empty() {
            return Ok(expert);
        }
        let (mut parts, mut done) = (Vec::new(), 0);
        for (begin, rows, change) in changed {
            self.check_shape(name, change, &[rows, width])?;
            parts.push(expert.narrow(0, done, begin - done)?);
            parts.push(change.apply(expert.narrow(0, begin, rows)?).map_err(|error| error.at(&self.path))?);
            done = begin + rows;
        }
        parts.push(expert.narrow(0, done, rows - done)?);
        parts.retain(|part| part.elem_count() > 0);
        Ok(Tensor::cat(&parts, 0)?)
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
        self.check_changes_used()
    }
}

fn read_config(folder: &Path) -> Result<Value> {
    let path = folder.join(CONFIG);
    let text = std::fs::read_to_string(&path).context_at(&path, "cannot read the adapter's config")?;
    json::from_str(&text).context_at(&path, "this is not JSON")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::model::files::folder::Folder;

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
                // The rounding of two f32 operations on numbers around 1.
                assert!(largest((&found - &expected).unwrap()) < 1e-6, "{folder}: {name}");
                assert!(largest((&found - &plain).unwrap()) > 1e-2, "{folder}: {name} is unchanged");
            }
            adapter.check_changes_used().unwrap();
        }
    }
}
