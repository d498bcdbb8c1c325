//! Describes a training run for other programs, and writes the settings that they share.

use serde_json::Value;

use super::yaml::{Yaml, number};
use crate::diagnosis::gate::{Beside, Gate, Method};
use crate::error::{Error, Result};
use crate::model::LoraSettings;
use crate::tokens::Supervise;
use crate::train::schedule::Shape;

/// A training run with all numbers resolved.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    /// A hub id, or the path of a Hugging Face folder.
    pub model: String,
    pub loss: Loss,
    pub supervise: Supervise,
    pub learning_rate: f64,
    pub schedule: Shape,
    pub warm_up_steps: u64,
    pub length: Length,
    /// The number of steps that this is.
    pub steps: u64,
    /// Sequences per optimiser step, over all devices.
    pub batch_size: usize,
    pub devices: usize,
    pub max_len: usize,
    pub weight_decay: f64,
    pub betas: (f64, f64),
    pub epsilon: f64,
    pub clip: Option<f64>,
    /// `None` trains all weights; no targets mean all linear modules of the blocks.
    pub lora: Option<LoraSettings>,
    pub bf16: bool,
    pub seed: u64,
    /// The share of rows that are held out.
    pub validation: f64,
    /// The steps between evaluations on held-out rows, if given.
    pub eval_every: Option<u64>,
    /// The steps between checkpoints, if given; `keep_checkpoints` is how many are kept.
    pub save_every: Option<u64>,
    pub keep_checkpoints: usize,
    /// A template that replaces the model's own.
    pub chat_template: Option<String>,
    /// A JSON object of variables for the chat template.
    pub template_switches: Option<Value>,
    /// Transformers' class of a block, for FSDP, such as `LlamaDecoderLayer`.
    pub layer_class: String,
    /// The control tokens with which the chat template ends answers.
    pub turn_ends: Vec<String>,
}

/// A method with its numbers.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) struct Loss {
    pub method: Method,
    /// The method's gate, with the user's changes.
    pub gate: Gate,
    /// The factor of the divergence from the base model, for methods that have one.
    pub kl_weight: f64,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Length {
    Epochs(f64),
    Steps(u64),
}

/// The files of the folder.
pub(crate) const CONFIG: &str = "train.yaml";
pub(super) const DATA: &str = "train.jsonl";
pub(super) const DEEPSPEED: &str = "deepspeed.json";
pub(super) const TEMPLATE: &str = "chat_template.jinja";

/// The sequences of a step, spread over the devices.
pub(super) struct Batch {
    pub per_device: usize,
    pub accumulation: usize,
}

impl Batch {
    /// The most sequences on a device at a time, small enough for most devices; the actual number divides the device's share.
    const LARGEST: usize = 4;

    pub(super) fn of(recipe: &Recipe) -> Result<Batch> {
        let (batch, devices) = (recipe.batch_size, recipe.devices);
        if batch == 0 || devices == 0 || !batch.is_multiple_of(devices) {
            return Err(Error::usage(format!("{batch} sequences per step cannot be divided evenly among {devices} devices"))
                .cure("Choose a batch size that is a multiple of the devices."));
        }
        let share = batch / devices;
        let per_device = (1..=Batch::LARGEST).rev().find(|n| share.is_multiple_of(*n)).unwrap_or(1);
        Ok(Batch { per_device, accumulation: share / per_device })
    }
}

/// The model as both programs load it: Transformers does not read a single GGUF file without more settings.
pub(super) fn model(recipe: &Recipe) -> Result<&str> {
    match recipe.model.to_ascii_lowercase().ends_with(".gguf") {
        false => Ok(&recipe.model),
        true => Err(Error::usage(format!("the other program cannot train from the GGUF file `{}`", recipe.model))
            .cure("Give --model the hub id or the Hugging Face folder of the model.")),
    }
}

/// Writes the sequences per step and the number of steps under Transformers' names; the programs differ in two of them.
pub(super) fn steps(yaml: &mut Yaml, recipe: &Recipe, batch: &Batch, device_key: &str, epochs_key: &str) {
    yaml.comment(&format!(
        "{} sequences a step = {} a device x {} accumulated x {} devices.",
        recipe.batch_size, batch.per_device, batch.accumulation, recipe.devices
    ))
    .set(device_key, batch.per_device.to_string())
    .set("gradient_accumulation_steps", batch.accumulation.to_string());
    match recipe.length {
        Length::Epochs(epochs) => yaml.set(epochs_key, number(epochs)),
        Length::Steps(steps) => yaml.set("max_steps", steps.to_string()),
    };
}

/// Writes AdamW and its schedule under Transformers' names; the programs differ in two of them. `factor` is the other program's loss over ours.
pub(super) fn optimiser(yaml: &mut Yaml, recipe: &Recipe, schedule_key: &str, optimiser_key: &str, factor: f64) {
    let schedule = match recipe.schedule {
        Shape::Cosine => "cosine",
        Shape::Linear => "linear",
        Shape::Constant | Shape::ConstantWithWarmup => "constant_with_warmup",
    };
    yaml.set("learning_rate", number(recipe.learning_rate))
        .set(schedule_key, schedule)
        .set("warmup_steps", recipe.warm_up_steps.to_string())
        .set(optimiser_key, "adamw_torch")
        .set("weight_decay", number(recipe.weight_decay))
        .set("adam_beta1", number(recipe.betas.0))
        .set("adam_beta2", number(recipe.betas.1))
        .set("adam_epsilon", number(recipe.epsilon))
        .comment("0 does not clip.")
        .set("max_grad_norm", number(recipe.clip.map_or(0.0, |clip| clip * factor)));
}

/// Formats `lora_alpha`, which is an integer in both programs.
pub(super) fn whole_alpha(program: &str, alpha: f64) -> Result<String> {
    match alpha.fract() == 0.0 {
        true => Ok(format!("{alpha:.0}")),
        false => Err(Error::usage(format!("{program}: expected a whole number for lora_alpha, found {alpha}"))
            .cure("Give --lora-alpha a whole number.")),
    }
}

pub(super) fn not_offered(program: &str, loss: &Loss, offered: &str) -> Error {
    let name = match loss.method.beside {
        Beside::Nothing => loss.gate.to_string(),
        _ => loss.method.to_string(),
    };
    Error::usage(format!("{program} has no loss equivalent to `{name}`"))
        .cure(format!("It offers {offered}; the others can only be trained here."))
}
