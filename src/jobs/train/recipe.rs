//! The options of a run as a recipe for the programs that `emit` writes for.

use std::path::{Path, PathBuf};

use super::emit::{self, Length, Loss, Recipe, Schedule, Target};
use crate::dataset::Dataset;
use crate::error::{Context, Error, Result};
use crate::jobs::watch::{Watch, fetching};
use crate::kernels::Dtype;
use crate::model::{LoraSettings, Reference};
use crate::train;
use crate::train::keep::Keep;
use crate::train::options::Options;
use crate::train::schedule::Shape;

/// The default model where those programs can load it from: they do not train from a GGUF file.
const DEFAULT_HUB_ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// Writes the folder `--out`; gives its name and the number of rows in its data.
pub(crate) fn emit(options: &Options, target: Target, watch: &dyn Watch) -> Result<(PathBuf, u64)> {
    let out = options.out.clone().ok_or_else(|| Error::usage("--emit needs a folder to write to: give --out"))?;
    let dataset = Dataset::open(&options.datasets, &options.read()?)?;
    let reference = Reference::resolve_on(options.model.as_deref(), options.base.as_deref(), &fetching(watch))?;
    let layer_class = reference.layer_class()?;
    let chosen = dataset.choose(options.choice())?;
    let n_rows = dataset.chosen(&chosen).filter(|record| record.as_ref().is_ok_and(|record| record.example.is_ok())).count();
    // Held out of them are as many as `train_test_split` takes.
    let n_rows = n_rows - (n_rows as f64 * options.validation_share).ceil() as usize;
    let steps = options.max_steps.unwrap_or((n_rows.div_ceil(options.batch_size) as f64 * options.epochs).ceil() as u64);
    let schedule = train::schedule::Schedule {
        shape: options.schedule,
        peak: options.learning_rate(),
        warmup: options.warmup(steps),
        total: steps,
    };
    schedule.check()?;
    let recipe = Recipe {
        model: options.model.as_deref().map_or(Ok(DEFAULT_HUB_ID.to_owned()), as_seen_from_anywhere)?,
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
            Shape::Constant | Shape::ConstantWithWarmup => Schedule::Constant,
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
        chat_template: options.chat_template.as_deref().map(template).transpose()?,
        layer_class,
    };
    for (option, is_given) in
        [("--system", options.system.is_some()), ("--chat-template-kwargs", options.chat_template_kwargs.is_some())]
    {
        if is_given {
            return Err(Error::usage(format!(
                "{option} would be lost: the configuration takes the template of the model's folder"
            ))
            .cure("Write it into the data or into the model's folder, and leave the option out."));
        }
    }
    let plain = Options::default();
    for (option, is_given) in [
        ("--merge", options.merge),
        ("--save-dtype", options.save_dtype != plain.save_dtype),
        ("--moments", options.moments != plain.moments),
        ("--validation", !options.validation.is_empty()),
        ("--keep best", options.kept() == Keep::Best),
        ("--stop-after-worse", options.stop_after_worse.is_some()),
    ] {
        if is_given {
            return Err(Error::usage(format!("{option} is not written into the configuration of another program"))
                .cure("Leave it out, and set it there."));
        }
    }
    if !options.mix.is_empty() || !options.intended.is_empty() {
        return Err(Error::usage("--mix and --intended have no counterpart in the other programs").cure("Leave them out."));
    }
    let examples = dataset.chosen(&chosen).filter_map(|record| match record {
        Ok(record) => record.example.ok().map(Ok),
        Err(error) => Some(Err(error)),
    });
    let rows = emit::emit(target, &recipe, examples, &out)?;
    Ok((out, rows))
}

fn template(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).context_at(path, "cannot read the chat template")
}

/// A model's folder by its whole path, since the configuration is used in its own folder; a hub id as it is.
fn as_seen_from_anywhere(model: &str) -> Result<String> {
    let path = Path::new(model);
    if !path.exists() {
        return Ok(model.to_owned());
    }
    let whole = std::path::absolute(path).context_at(path, "cannot find the folder")?;
    Ok(whole.to_string_lossy().into_owned())
}
