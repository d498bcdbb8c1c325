//! The options of a run as a recipe for the programs that `emit` writes for.

use std::path::PathBuf;

use super::emit::{self, Length, Loss, Recipe, Schedule, Target};
use crate::dataset::Dataset;
use crate::error::{Error, Result};
use crate::kernels::Dtype;
use crate::model::{LoraSettings, Reference};
use crate::train::options::Options;
use crate::train::schedule::Shape;

/// The default model where those programs can load it from: they do not train from a GGUF file.
const DEFAULT_HUB_ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// Writes the folder `--out`; gives its name and the number of rows in its data.
pub(crate) fn emit(options: &Options, target: Target, fetching: &dyn Fn(&str, u64, u64)) -> Result<(PathBuf, u64)> {
    let out = options.out.clone().ok_or_else(|| Error::usage("--emit needs a folder to write to: give --out"))?;
    let dataset = Dataset::open(&options.datasets, &options.read()?)?;
    let fetching = |what: &str, done, total| fetching(what, done, total);
    let reference = Reference::resolve_on(options.model.as_deref(), options.base.as_deref(), &fetching)?;
    let layer_class = reference.layer_class()?;
    let limit = options.limit.unwrap_or(u64::MAX) as usize;
    let n_rows =
        dataset.records().take(limit).filter(|record| record.as_ref().is_ok_and(|record| record.example.is_ok())).count();
    let steps = options.max_steps.unwrap_or((n_rows.div_ceil(options.batch_size) as f64 * options.epochs).ceil() as u64);
    let recipe = Recipe {
        model: options.model.clone().unwrap_or_else(|| DEFAULT_HUB_ID.to_owned()),
        loss: Loss {
            method: options.method,
            gate: options.gate()?,
            kl_weight: f64::from(options.kl_weight.unwrap_or(options.method.kl_weight())),
        },
        supervise: options.render()?.supervise,
        learning_rate: options.learning_rate(),
        schedule: match options.schedule {
            Shape::Cosine => Schedule::Cosine,
            Shape::Linear => Schedule::Linear,
            Shape::Constant => Schedule::Constant,
        },
        warm_up_steps: options.warmup(steps),
        length: options.max_steps.map_or(Length::Epochs(options.epochs), Length::Steps),
        batch_size: options.batch_size,
        devices: 1,
        max_len: reference.max_len(options.max_len)?,
        weight_decay: options.weight_decay,
        betas: (options.beta1, options.beta2),
        epsilon: options.eps,
        clip: (options.clip > 0.0).then_some(options.clip),
        lora: options.lora().map(|lora| LoraSettings {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: f64::from(lora.dropout),
            targets: lora.targets,
        }),
        bf16: options.dtype()? == Dtype::Bf16,
        seed: options.seed,
        validation: options.validation_share,
        layer_class,
    };
    if !options.mix.is_empty() || !options.intended.is_empty() {
        return Err(Error::usage("--mix and --intended have no counterpart in the other programs").cure("Leave them out."));
    }
    let examples = dataset.records().take(limit).filter_map(|record| match record {
        Ok(record) => record.example.ok().map(Ok),
        Err(error) => Some(Err(error)),
    });
    let rows = emit::emit(target, &recipe, examples, &out)?;
    Ok((out, rows))
}
