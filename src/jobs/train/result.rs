//! Saves what training leaves for others: a Hugging Face folder, or an adapter in PEFT's layout.

use std::collections::HashMap;
use std::path::{Path, PathBuf};

use candle_core::{Device, Tensor};

use crate::error::{Context, Error, Result};
use crate::files::write_text;
use crate::jobs::work::{ADAPTER_FOLDER, MODEL_FOLDER, TEMPLATE_FILE};
use crate::kernels::Stored;
use crate::model::{
    LoraOptions, LoraPair, LoraSettings, Parameter, Part, Reference, add_end_tokens, save as save_model, save_adapter,
    save_end_tokens, save_merged,
};
use crate::train::options::Options;

/// What training leaves beside the weights.
pub(super) struct Left<'a> {
    /// What was trained.
    pub reference: &'a Reference,
    pub options: &'a Options,
    /// The source of the chat template that was trained on, if it is not the model's own.
    pub template: Option<&'a str>,
    /// Additional end tokens.
    pub new_ends: &'a [u32],
}

impl Left<'_> {
    /// Saves the weights and all this in `out`. Returns the name of the folder.
    pub(super) fn save(&self, out: &Path, parameters: &[Parameter]) -> Result<PathBuf> {
        let Left { reference, options, template, new_ends } = *self;
        let result = save_weights(reference, out, parameters, options.lora().as_ref(), options.merge, options.save_dtype)?;
        let [model, adapter] = [MODEL_FOLDER, ADAPTER_FOLDER].map(|name| out.join(name));
        if !new_ends.is_empty() && model.is_dir() {
            add_end_tokens(&model, new_ends)?;
        }
        if !new_ends.is_empty() && adapter.is_dir() {
            save_end_tokens(reference, &adapter, new_ends)?;
        }
        if let Some(template) = template {
            replace_template(template, out)?;
        }
        Ok(result)
    }
}

/// A remark about an adapter whose base at `base` is a GGUF file: the program that most people use for adapters cannot load it there.
pub(super) fn note_of_base(base: &Path, options: &Options) -> Option<String> {
    if !options.lora || options.merge || !base.is_file() {
        return None;
    }
    Some(format!(
        "The adapter's base is a GGUF file ({}), which PEFT cannot load; this program can. For other programs also pass --merge, which saves the whole model as a Hugging Face folder, or train on the folder that the file was made from. You can also set base_model_name_or_path in adapter_config.json to that folder, whose weights are not rounded like those the adapter was trained on.",
        base.display()
    ))
}

/// Writes the template that was trained on into the saved folders.
fn replace_template(template: &str, out: &Path) -> Result<()> {
    for folder in [MODEL_FOLDER, ADAPTER_FOLDER].map(|name| out.join(name)).iter().filter(|folder| folder.is_dir()) {
        write_text(&folder.join(TEMPLATE_FILE), template)?;
        // The model's own template for tools would take precedence.
        let other = folder.join("additional_chat_templates");
        if other.is_dir() {
            std::fs::remove_dir_all(&other).context_at(&other, "cannot remove the other chat templates")?;
        }
    }
    Ok(())
}

/// Saves `OUT/model`, or `OUT/adapter` if adapters were trained; with `merge`, then also the base with the adapter as `OUT/model`. Returns the name
/// of the folder with the training result.
fn save_weights(
    reference: &Reference,
    out: &Path,
    parameters: &[Parameter],
    lora: Option<&LoraOptions>,
    merge: bool,
    dtype: Stored,
) -> Result<PathBuf> {
    let trained = Trained::new(parameters);
    match lora {
        None => {
            let folder = out.join(MODEL_FOLDER);
            save_model(reference, &folder, dtype, &mut |name, shape| trained.tensor(name, shape))?;
            Ok(folder)
        }
        Some(lora) => {
            let folder = out.join(ADAPTER_FOLDER);
            let pairs = trained.pairs()?;
            let mut targets: Vec<String> =
                pairs.iter().map(|pair| pair.module.rsplit('.').next().unwrap_or_default().to_owned()).collect();
            targets.sort();
            targets.dedup();
            let settings = LoraSettings { rank: lora.rank, alpha: lora.alpha, dropout: f64::from(lora.dropout), targets };
            save_adapter(reference, &folder, &settings, &pairs)?;
            if merge {
                let adapter = Reference::local(&folder)?;
                save_merged(&adapter, &out.join(MODEL_FOLDER), dtype)?;
            }
            Ok(folder)
        }
    }
}

/// The trained tensors by name.
struct Trained<'a>(HashMap<&'a str, (&'a Parameter, &'a Part)>);

impl<'a> Trained<'a> {
    fn new(parameters: &'a [Parameter]) -> Trained<'a> {
        let of = |parameter: &'a Parameter| parameter.parts.iter().map(move |part| (part.name.as_str(), (parameter, part)));
        Trained(parameters.iter().flat_map(of).collect())
    }

    fn tensor(&self, name: &str, shape: &[usize]) -> Result<Tensor> {
        let (parameter, part) = self.0.get(name).ok_or_else(|| Error::new(format!("the tensor `{name}` was not trained")))?;
        Ok(Tensor::from_vec(parameter.saved(part)?, shape, &Device::Cpu)?)
    }

    fn pairs(&self) -> Result<Vec<LoraPair>> {
        let tensor = |module: &str, ab: &str| -> Result<Tensor> {
            let name = format!("base_model.model.{module}.{ab}.weight");
            let (_, part) = self.0.get(name.as_str()).ok_or_else(|| Error::new(format!("`{name}` was not trained")))?;
            self.tensor(&name, &part.shape)
        };
        let module = |name: &&str| name.strip_prefix("base_model.model.")?.strip_suffix(".lora_A.weight").map(str::to_owned);
        let mut modules: Vec<String> = self.0.keys().filter_map(module).collect();
        modules.sort();
        let pair = |module: String| {
            let (a, b) = (tensor(&module, "lora_A")?, tensor(&module, "lora_B")?);
            Ok(LoraPair { module, a, b })
        };
        modules.into_iter().map(pair).collect()
    }
}
