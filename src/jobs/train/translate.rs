//! Translates the options of a run into a recipe for the programs that `emit` writes for.

use std::path::{Path, PathBuf};

use super::emit::{self, Length, Loss, Program, Reader, Recipe};
use crate::dataset::{Dataset, Record};
use crate::error::{Context, Error, Result};
use crate::jobs::watch::{Watch, fetching};
use crate::json::shortest;
use crate::kernels::Dtype;
use crate::model::{LoraSettings, Reference, text_of};
use crate::tokens::{Audit, Item, RenderOptions, Renderer, rendered};
use crate::train::declared::Emitted;
use crate::train::keep::Keep;
use crate::train::options::Options;
use crate::train::schedule::Schedule;

/// The default model in a form that those programs can load: they do not train from a GGUF file.
const DEFAULT_HUB_ID: &str = "HuggingFaceTB/SmolLM2-135M-Instruct";

/// Writes the folder `--out`; returns its path and the number of rows in its data.
pub(crate) fn emit(options: &Options, program: Program, watch: &dyn Watch) -> Result<(PathBuf, u64)> {
    let out = options.out.clone().ok_or_else(|| Error::usage("--emit needs a folder to write to: give --out"))?;
    refuse(options)?;
    let mut recipe = recipe(options)?;
    // Refuse what cannot be done before anything is downloaded or read.
    emit::check(program, &recipe)?;
    let dataset = Dataset::open(&options.datasets, &options.read()?)?;
    let reference = Reference::resolve_text(&options.model_name(), &fetching(watch))?;
    if reference.is_adapter() {
        return Err(Error::usage(format!("the other programs load a complete model, but `{}` is an adapter", reference.written))
            .cure(reference.to_merge()));
    }
    if let Some(lora) = &recipe.lora
        && reference.adapts_experts(&lora.targets)?
    {
        return Err(Error::usage(format!(
            "{program} would put no adapters on the experts of `{}`, while here each expert has them: Transformers keeps the experts of a layer in one tensor, and the other program looks for modules",
            reference.written
        ))
        .cure("Give --lora-targets q_proj,k_proj,v_proj,o_proj, which is the same training there, or train here."));
    }
    (recipe.layer_class, recipe.max_len) = (reference.layer_class()?, reference.max_len(options.max_len)?);
    watch.remarks(&reference.name, &reference.training_remarks()?);
    let (tokenizer, template) = text_of(&reference)?;
    let renderer = Renderer::new(tokenizer, template, RenderOptions { max_len: recipe.max_len, ..options.render()? })?;
    recipe.turn_ends = renderer.turn_ends();
    let reader = Reader::of(Some(program), renderer, recipe.supervise, None)?;
    let chosen = dataset.choose(options.choice())?;
    // Rows of which nothing is learnt are left out, as in training here: the other programs count them in batches, steps and epochs.
    let (mut audit, mut learnt) = (Audit::of(&dataset), Vec::new());
    for chunk in rendered(&dataset, &reader.renderer, 0, &chosen) {
        for Item { row, place, rendered, .. } in chunk? {
            let rendered = audit.take(row, &place, rendered, options.strict)?;
            learnt.extend(rendered.filter(|rendered| rendered.sequence.has_targets()).map(|_| row));
        }
        watch.reading(audit.rows + audit.refused);
    }
    if learnt.is_empty() {
        return Err(Error::new("there is no row to train on").cure(audit.lines().join("\n  ")));
    }
    watch.audited(&audit);
    // `train_test_split` holds out this many rows.
    let n_rows = learnt.len() as u64 - (learnt.len() as f64 * options.validation_share).ceil() as u64;
    let of_epochs = (n_rows.div_ceil(options.batch_size as u64) as f64 * options.epochs).ceil() as u64;
    let steps = options.max_steps.unwrap_or(of_epochs);
    (recipe.steps, recipe.warm_up_steps) = (steps, options.warmup(steps));
    let schedule =
        Schedule { shape: options.schedule, peak: options.learning_rate(), warmup: recipe.warm_up_steps, total: steps };
    schedule.check()?;
    let examples = dataset.chosen(&chosen).filter_map(|record| match record {
        Ok(Record { row, .. }) if learnt.binary_search(&row).is_err() => None,
        Ok(Record { place, example, .. }) => example.ok().map(|example| Ok((place, example))),
        Err(error) => Some(Err(error)),
    });
    let rows = emit::emit(program, &recipe, examples, &|read, written| reader.check(read, written), &out)?;
    Ok((out, rows))
}

/// The part of the recipe that depends on the options alone; the model and the data fill in the rest.
fn recipe(options: &Options) -> Result<Recipe> {
    Ok(Recipe {
        model: options.model.as_deref().map_or(Ok(DEFAULT_HUB_ID.to_owned()), as_seen_from_anywhere)?,
        loss: Loss {
            method: options.method,
            gate: options.gate()?,
            kl_weight: f64::from(options.kl_weight.unwrap_or(options.method.kl_weight())),
        },
        supervise: options.supervise,
        learning_rate: options.learning_rate(),
        schedule: options.schedule,
        warm_up_steps: 0,
        steps: 0,
        length: options.max_steps.map_or(Length::Epochs(options.epochs), Length::Steps),
        batch_size: options.batch_size,
        devices: 1,
        max_len: options.max_len(),
        weight_decay: options.weight_decay,
        betas: (options.beta1, options.beta2),
        epsilon: options.eps,
        clip: (options.clip > 0.0).then_some(options.clip),
        lora: options.lora().map(|lora| LoraSettings {
            rank: lora.rank,
            alpha: lora.alpha,
            dropout: shortest(lora.dropout),
            targets: lora.targets,
        }),
        bf16: options.dtype == Dtype::Bf16,
        seed: options.seed,
        validation: options.validation_share,
        eval_every: options.eval_every,
        save_every: options.save_every,
        keep_checkpoints: options.keep_checkpoints,
        chat_template: options.chat_template.as_deref().map(template).transpose()?,
        template_switches: options.render()?.template_switches,
        layer_class: String::new(),
        turn_ends: Vec::new(),
    })
}

/// Returns an error that names an option which another program's configuration and data cannot express.
fn refuse(options: &Options) -> Result<()> {
    // The other programs keep the last model, too.
    let options = &Options { keep: options.keep.filter(|keep| *keep == Keep::Best), ..options.clone() };
    for declared in options.changed() {
        let (what, cure) = match declared.emitted {
            Emitted::Rows | Emitted::Config => continue,
            Emitted::Template => (
                "would be lost: the configuration uses the template in the model's folder",
                "Write it into the data or into the model's folder, and leave the option out.",
            ),
            Emitted::SetThere => ("is not written into the configuration of another program", "Leave it out, and set it there."),
            Emitted::NoCounterpart => ("has no counterpart in the other programs", "Leave it out."),
        };
        return Err(Error::usage(format!("--{} {what}", declared.name())).cure(cure));
    }
    if options.dtype == Dtype::Bf16x3 {
        return Err(Error::usage("--dtype bf16x3 has no counterpart in the other programs").cure("Leave it out."));
    }
    if let Some(every) = options.eval_every.filter(|_| options.validation_share == 0.0) {
        return Err(Error::usage(format!(
            "--eval-every {every}: the other programs evaluate only on held-out rows, and there are none"
        ))
        .cure("Give --validation-share 0.05, or leave --eval-every out."));
    }
    Ok(())
}

fn template(path: &Path) -> Result<String> {
    std::fs::read_to_string(path).context_at(path, "cannot read the chat template")
}

/// Makes the path of a model's folder absolute, since the configuration is used from its own folder; a hub id stays as it is.
fn as_seen_from_anywhere(model: &str) -> Result<String> {
    let path = Path::new(model);
    if !path.exists() {
        return Ok(model.to_owned());
    }
    let whole = std::path::absolute(path).context_at(path, "cannot find the folder")?;
    Ok(whole.to_string_lossy().into_owned())
}
