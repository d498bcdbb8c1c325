//! `--emit llama-factory|axolotl`: the same training as a ready folder for a cluster, with configuration, data and DeepSpeed settings.
//!
//! What the other programs cannot do is refused by name. What they do otherwise is made up for where it can be and written into the
//! configuration as a comment where it cannot. Their options, as of January 2026: LLaMA-Factory
//! `src/llamafactory/hparams/finetuning_args.py` (`use_eaft_loss`, `eaft_alpha`, `use_dft_loss`, `use_asft_loss`, `asft_alpha`) and
//! `src/llamafactory/train/trainer_utils.py`; axolotl `src/axolotl/utils/schemas/config.py` (`use_eaft`, `eaft_alpha`, `eaft_k`) and
//! `src/axolotl/monkeypatch/loss/eaft.py`.
//!
//! # The normaliser
//!
//! With H the entropy of the top K in nats, the weight of a token is `(H / ln K)^n` here, `(H / 3)^n` in LLaMA-Factory and `H^n` in
//! axolotl: the same up to a constant factor c of the whole loss. AdamW divides the gradient by its own size, so that c cancels but
//! for its epsilon; clipping does not. The folder therefore keeps the learning rate and multiplies the clipping norm by c. A learning
//! rate that was tuned for an optimiser that does not normalise (SGD) would have to be divided by c.

mod axolotl;
mod llama_factory;
mod yaml;

use std::fs;
use std::io::Write;
use std::path::Path;
use std::str::FromStr;

use serde_json::{Value, json};

use crate::dataset::{Example, Role};
use crate::diagnosis::gate::Gate;
use crate::error::{Context, Error, Result};
use crate::model::LoraSettings;
use crate::tokens::Supervise;
use yaml::{Yaml, number};

/// The program that is to train.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Target {
    LlamaFactory,
    Axolotl,
}

/// A training run with every number settled.
#[derive(Debug, Clone)]
pub struct Recipe {
    /// A hub id, or the path of a Hugging Face folder.
    pub model: String,
    pub loss: Loss,
    /// K of the gate's entropy.
    pub top_k: usize,
    pub supervise: Supervise,
    pub learning_rate: f64,
    pub schedule: Schedule,
    pub warm_up_steps: u64,
    pub length: Length,
    /// Sequences per optimiser step, over all devices.
    pub batch_size: usize,
    pub devices: usize,
    pub max_len: usize,
    pub weight_decay: f64,
    pub betas: (f64, f64),
    pub epsilon: f64,
    pub clip: Option<f64>,
    /// `None` trains every weight; no targets mean all linear modules of the blocks.
    pub lora: Option<LoraSettings>,
    pub bf16: bool,
    pub seed: u64,
    /// Share of the rows that are held out.
    pub validation: f64,
    /// Transformers' class of a block, for FSDP: `LlamaDecoderLayer`.
    pub layer_class: String,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Loss {
    /// One weight per token, sft and eaft among them.
    Gated(Gate),
    Asft {
        alpha: f64,
    },
    Flow,
    SftKl {
        beta: f64,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Schedule {
    Cosine,
    Linear,
    Constant,
}

#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Length {
    Epochs(f64),
    Steps(u64),
}

/// What a folder holds.
pub const CONFIG: &str = "train.yaml";
pub const DATA: &str = "train.jsonl";
pub const DEEPSPEED: &str = "deepspeed.json";

/// Writes the folder, which must not exist or be empty. `examples` are the rows as they are read. Gives the number of rows.
pub fn emit(target: Target, recipe: &Recipe, examples: impl IntoIterator<Item = Result<Example>>, folder: &Path) -> Result<u64> {
    // Whatever is refused is refused before anything is written.
    let batch = Batch::of(recipe)?;
    let config = match target {
        Target::LlamaFactory => llama_factory::config(recipe, &batch)?,
        Target::Axolotl => axolotl::config(recipe, &batch)?,
    };
    fs::create_dir_all(folder).context_at(folder, "cannot create the folder")?;
    let mut entries = fs::read_dir(folder).context_at(folder, "cannot look at the folder")?;
    if entries.next().is_some() {
        return Err(Error::usage("the folder to emit to is not empty").at(folder).cure("Name a new folder."));
    }
    let rows = write_data(target, recipe, examples, &folder.join(DATA))?;
    let write = |name: &str, text: String| {
        let path = folder.join(name);
        fs::write(&path, text).context_at(&path, "cannot write the file")
    };
    let pretty = |json: &Value| serde_json::to_string_pretty(json).context("cannot write JSON");
    write(CONFIG, config)?;
    write(DEEPSPEED, pretty(&deepspeed())? + "\n")?;
    if target == Target::LlamaFactory {
        write("dataset_info.json", pretty(&llama_factory::dataset_info())? + "\n")?;
    }
    Ok(rows)
}

impl FromStr for Target {
    type Err = Error;

    fn from_str(text: &str) -> Result<Target> {
        match text {
            "llama-factory" => Ok(Target::LlamaFactory),
            "axolotl" => Ok(Target::Axolotl),
            _ => Err(Error::usage(format!("--emit `{text}` is not known")).cure("Use llama-factory or axolotl.")),
        }
    }
}

/// A step's sequences, spread over the devices.
struct Batch {
    per_device: usize,
    accumulation: usize,
}

impl Batch {
    /// Sequences on a device at a time: a divisor of its share, small enough for most.
    const LARGEST: usize = 4;

    fn of(recipe: &Recipe) -> Result<Batch> {
        let (batch, devices) = (recipe.batch_size, recipe.devices);
        if batch == 0 || devices == 0 || !batch.is_multiple_of(devices) {
            return Err(Error::usage(format!("{batch} sequences a step cannot be spread evenly over {devices} devices"))
                .cure("Choose a batch size that is a multiple of the devices."));
        }
        let share = batch / devices;
        let per_device = (1..=Batch::LARGEST).rev().find(|n| share.is_multiple_of(*n)).unwrap_or(1);
        Ok(Batch { per_device, accumulation: share / per_device })
    }
}

/// The model as both programs load it: Transformers reads no single GGUF file without more settings.
fn model(recipe: &Recipe) -> Result<&str> {
    match recipe.model.to_ascii_lowercase().ends_with(".gguf") {
        false => Ok(&recipe.model),
        true => Err(Error::usage(format!("the other program cannot train from the GGUF file `{}`", recipe.model))
            .cure("Give --model the hub id or the Hugging Face folder of the model.")),
    }
}

/// AdamW and its schedule, under Transformers' names; two of them differ. `factor` is the other program's loss over ours.
fn optimiser(yaml: &mut Yaml, recipe: &Recipe, schedule_key: &str, optimiser_key: &str, factor: f64) {
    let schedule = match recipe.schedule {
        Schedule::Cosine => "cosine",
        Schedule::Linear => "linear",
        Schedule::Constant => "constant_with_warmup",
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

fn not_offered(program: &str, loss: &Loss, offered: &str) -> Error {
    let name = match loss {
        Loss::Gated(gate) => gate.to_string(),
        Loss::Asft { .. } => "asft".to_owned(),
        Loss::Flow => "flow".to_owned(),
        Loss::SftKl { .. } => "sft-kl".to_owned(),
    };
    Error::usage(format!("{program} has no loss like `{name}`")).cure(format!("It offers {offered}; the others train here only."))
}

/// ZeRO stage 3 with everything else left to the program: weights, gradients and optimiser are spread over the devices, and the
/// optimiser keeps f32 master weights beside bf16 ones.
fn deepspeed() -> Value {
    json!({
        "train_batch_size": "auto",
        "train_micro_batch_size_per_gpu": "auto",
        "gradient_accumulation_steps": "auto",
        "gradient_clipping": "auto",
        "zero_allow_untested_optimizer": true,
        "bf16": {"enabled": "auto"},
        "zero_optimization": {
            "stage": 3,
            "overlap_comm": true,
            "contiguous_gradients": true,
            "reduce_bucket_size": "auto",
            "stage3_prefetch_bucket_size": "auto",
            "stage3_param_persistence_threshold": "auto",
            "stage3_gather_16bit_weights_on_model_save": true,
        },
    })
}

fn write_data(target: Target, recipe: &Recipe, examples: impl IntoIterator<Item = Result<Example>>, path: &Path) -> Result<u64> {
    let mut file = std::io::BufWriter::new(fs::File::create(path).context_at(path, "cannot create the file")?);
    let mut rows = 0;
    for example in examples {
        let row = row(target, recipe, &example?).map_err(|error| Error::new(format!("row {}: {}", rows + 1, error.message())))?;
        writeln!(file, "{row}").context_at(path, "cannot write the data")?;
        rows += 1;
    }
    file.flush().context_at(path, "cannot write the data")?;
    Ok(rows)
}

/// A row as OpenAI's messages. For axolotl each message says whether it is trained on.
fn row(target: Target, recipe: &Recipe, example: &Example) -> Result<Value> {
    let last_answer = example.turns.iter().rposition(|turn| turn.role == Role::Assistant);
    let mut messages = Vec::with_capacity(example.turns.len());
    for (idx, turn) in example.turns.iter().enumerate() {
        let role = match turn.role {
            Role::System => "system",
            Role::User => "user",
            Role::Assistant => "assistant",
            Role::Tool => "tool",
            Role::Text => return Err(Error::new("a plain text has no turns: only conversations can be emitted")),
        };
        let answer = turn.role == Role::Assistant;
        if answer && turn.weight != 0.0 && turn.weight != 1.0 {
            return Err(Error::new(format!("a turn has the weight {}; the other program knows 0 and 1 only", turn.weight)));
        }
        let trained = answer && turn.weight == 1.0 && (recipe.supervise == Supervise::Assistant || Some(idx) == last_answer);
        let mut message = json!({"role": role, "content": turn.content});
        if let Some(reasoning) = &turn.reasoning {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        match target {
            Target::Axolotl => {
                message["train"] = trained.into();
                if let Some(calls) = &turn.tool_calls {
                    message["tool_calls"] = calls_with_text_arguments(calls);
                }
                for (key, value) in [("tool_call_id", &turn.tool_call_id), ("name", &turn.name)] {
                    if let Some(value) = value {
                        message[key] = value.as_str().into();
                    }
                }
            }
            Target::LlamaFactory => {
                let by_mask_history = recipe.supervise == Supervise::Last && Some(idx) != last_answer;
                if answer && !trained && !by_mask_history {
                    return Err(Error::new("an answer has the weight 0; LLaMA-Factory trains on all answers or on the last"));
                }
                if turn.tool_calls.is_some() || turn.role == Role::Tool {
                    return Err(Error::new("the conversation calls tools, which LLaMA-Factory writes by templates of its own"));
                }
                if turn.reasoning.is_some() {
                    return Err(Error::new("an answer has reasoning of its own, which LLaMA-Factory would leave out"));
                }
            }
        }
        messages.push(message);
    }
    let mut row = json!({"messages": messages});
    if let Some(tools) = &example.tools {
        if target == Target::LlamaFactory {
            return Err(Error::new("the row offers tools, which LLaMA-Factory writes by templates of its own"));
        }
        row["tools"] = tools.clone();
    }
    Ok(row)
}

/// Arguments as JSON in a text: rows whose arguments differ would otherwise get each other's keys when the file becomes a table.
fn calls_with_text_arguments(calls: &Value) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        if let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments"))
            && !arguments.is_string()
        {
            *arguments = arguments.to_string().into();
        }
    }
    calls
}

#[cfg(test)]
mod tests;
