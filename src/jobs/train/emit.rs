//! Implements `--emit llama-factory|axolotl`: writes the same training as a folder for a cluster, with configuration, data and DeepSpeed settings.
//!
//! What the other programs cannot do is refused by name. Where they differ, the configuration compensates if possible, and otherwise states the
//! difference in a comment. Their options, as of January 2026: LLaMA-Factory `src/llamafactory/hparams/finetuning_args.py` (`use_eaft_loss`,
//! `eaft_alpha`, `use_dft_loss`, `use_asft_loss`, `asft_alpha`) and `src/llamafactory/train/trainer_utils.py`; axolotl
//! `src/axolotl/utils/schemas/config.py` (`use_eaft`, `eaft_alpha`, `eaft_k`) and `src/axolotl/monkeypatch/loss/eaft.py`.
//!
//! # The normaliser
//!
//! With H the entropy of the top K in nats, the weight of a token is `(H / ln K)^n` here, `(H / 3)^n` in LLaMA-Factory and `H^n` in axolotl: the same
//! up to a constant factor c on the whole loss. AdamW normalises the gradient, so that c cancels up to its epsilon, but clipping does not. The folder
//! therefore keeps the learning rate and multiplies the clipping norm by c. A learning rate tuned for an optimiser that does not normalise (SGD)
//! would have to be divided by c.

mod axolotl;
mod llama_factory;
mod recipe;
mod slots;
mod yaml;

use std::fs;
use std::io::Write;
use std::path::Path;

use serde_json::{Map, Value, json};

use crate::dataset::write::{check_arguments, check_speakers, read_messages};
use crate::dataset::{Example, Place, Role, dumps};
use crate::error::{Context, Error, Result};
use crate::files::{in_new_folder, write_atomically, write_json, write_synced};
use crate::spelling::named;
use crate::tokens::Supervise;
use recipe::{Batch, DATA, DEEPSPEED, TEMPLATE};

pub(super) use recipe::{CONFIG, Length, Loss, Recipe};
pub(crate) use slots::Reader;
pub(crate) use yaml::json as yaml_of;

/// The program that trains.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Program {
    LlamaFactory,
    Axolotl,
}

named! { pub(crate) Program, "a program to write for": LlamaFactory = "llama-factory", Axolotl = "axolotl" }

/// Returns an error that names what the program cannot do of a recipe; settings that depend on the model and the data may still be missing.
pub(super) fn check(program: Program, recipe: &Recipe) -> Result<()> {
    config(program, recipe).map(drop)
}

fn config(program: Program, recipe: &Recipe) -> Result<String> {
    let batch = Batch::of(recipe)?;
    match program {
        Program::LlamaFactory => llama_factory::config(recipe, &batch),
        Program::Axolotl => axolotl::config(recipe, &batch),
    }
}

/// Writes the folder, which must not exist or be empty, completely or not at all. `examples` are the rows with their places; `same` returns an error
/// for a row, and the row that is written for it, if the program would train on other tokens. Returns the number of rows.
pub(super) fn emit(
    program: Program,
    recipe: &Recipe,
    examples: impl IntoIterator<Item = Result<(Place, Example)>>,
    same: &dyn Fn(&Example, &Example) -> Result<()>,
    folder: &Path,
) -> Result<u64> {
    let config = config(program, recipe)?;
    let is_empty = match fs::read_dir(folder) {
        Ok(mut entries) => entries.next().is_none(),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => true,
        Err(error) => return Err(Error::new("cannot look at the folder").at(folder).caused_by(error)),
    };
    if !is_empty {
        return Err(Error::usage("the folder to emit to is not empty").at(folder).cure("Name a new folder."));
    }
    let mut rows = 0;
    in_new_folder(folder, |partial| {
        rows = write_data(program, recipe, examples, same, &partial.join(DATA))?;
        write_synced(&partial.join(CONFIG), config.as_bytes())?;
        write_json(&partial.join(DEEPSPEED), &deepspeed())?;
        if let Some(template) = &recipe.chat_template {
            write_synced(&partial.join(TEMPLATE), template.as_bytes())?;
        }
        match program {
            Program::LlamaFactory => write_json(&partial.join("dataset_info.json"), &llama_factory::dataset_info()),
            Program::Axolotl => Ok(()),
        }
    })?;
    Ok(rows)
}

/// ZeRO stage 3, with all other settings left to the program: weights, gradients and optimiser state are spread over the devices, and the optimiser
/// keeps f32 master weights in addition to bf16 ones.
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

fn write_data(
    program: Program,
    recipe: &Recipe,
    examples: impl IntoIterator<Item = Result<(Place, Example)>>,
    same: &dyn Fn(&Example, &Example) -> Result<()>,
    path: &Path,
) -> Result<u64> {
    write_atomically(path, |file| {
        let mut rows = 0;
        for example in examples {
            let (place, example) = example?;
            let row = row(program, recipe, &example).and_then(|row| {
                let written = read_messages(row.clone())?;
                same(&example, &written).map(|()| row)
            });
            let row = row.map_err(|error| {
                error.at_line(&*place.path, place.line).cure("Remove such rows from the data, or train here.")
            })?;
            writeln!(file, "{}", dumps(&row.into())).context_at(path, "cannot write the data")?;
            rows += 1;
        }
        Ok(rows)
    })
}

/// A row in OpenAI's messages format. For axolotl, each message states whether it is trained on.
fn row(program: Program, recipe: &Recipe, example: &Example) -> Result<Map<String, Value>> {
    if example.template_switches.is_some() {
        return Err(Error::new("the row has variables for the chat template, which the other program ignores"));
    }
    if program == Program::LlamaFactory {
        let n_system = usize::from(example.turns.first().is_some_and(|turn| turn.role == Role::System));
        // Tools and plain texts are refused below, by name.
        if example.turns.iter().all(|turn| !matches!(turn.role, Role::Tool | Role::Text)) {
            check_speakers(&example.turns[n_system..])?;
        }
    }
    let last_answer = example.turns.iter().rposition(|turn| turn.role == Role::Assistant);
    let mut messages = Vec::with_capacity(example.turns.len());
    for (idx, turn) in example.turns.iter().enumerate() {
        if turn.role == Role::Text {
            return Err(Error::new("a plain text has no turns: only conversations can be emitted"));
        }
        let answer = turn.role == Role::Assistant;
        if answer && !turn.parts.is_empty() {
            return Err(Error::new("only parts of a turn are supervised; the other program supports only whole turns"));
        }
        if answer && turn.weight != 0.0 && turn.weight != 1.0 {
            return Err(Error::new(format!("a turn has the weight {}; the other program supports only 0 and 1", turn.weight)));
        }
        let trained = answer && turn.weight == 1.0 && (recipe.supervise == Supervise::Assistant || Some(idx) == last_answer);
        let mut message = json!({"role": turn.role.name(), "content": turn.content});
        if program == Program::Axolotl && turn.written.without_content {
            message["content"] = Value::Null;
        }
        if let Some(reasoning) = &turn.reasoning {
            message["reasoning_content"] = reasoning.as_str().into();
        }
        match program {
            Program::Axolotl => {
                message["train"] = trained.into();
                if let Some(calls) = &turn.tool_calls {
                    check_arguments(turn)?;
                    message["tool_calls"] = calls_with_text_arguments(calls);
                }
                for (key, value) in [("tool_call_id", &turn.tool_call_id), ("name", &turn.name)] {
                    if let Some(value) = value {
                        message[key] = value.as_str().into();
                    }
                }
            }
            Program::LlamaFactory => {
                let by_mask_history = recipe.supervise == Supervise::Last && Some(idx) != last_answer;
                if answer && !trained && !by_mask_history {
                    return Err(Error::new("an answer has the weight 0; LLaMA-Factory trains on all answers or on the last"));
                }
                if turn.tool_calls.is_some() || turn.role == Role::Tool {
                    return Err(Error::new("the conversation calls tools, which LLaMA-Factory renders with its own templates"));
                }
                if turn.reasoning.is_some() {
                    return Err(Error::new("an answer has separate reasoning, which LLaMA-Factory would omit"));
                }
            }
        }
        messages.push(message);
    }
    let mut row = Map::from_iter([("messages".to_owned(), messages.into())]);
    if let Some(tools) = &example.tools {
        if program == Program::LlamaFactory {
            return Err(Error::new("the row offers tools, which LLaMA-Factory renders with its own templates"));
        }
        // axolotl takes nulls out of a row, but not out of a text.
        row.insert("tools".to_owned(), dumps(tools).into());
    }
    Ok(row)
}

/// Writes arguments as JSON text: otherwise, when the file becomes a table, rows with different arguments would get each other's keys, and axolotl
/// would take nulls out of them.
fn calls_with_text_arguments(calls: &Value) -> Value {
    let mut calls = calls.clone();
    for call in calls.as_array_mut().into_iter().flatten() {
        if let Some(arguments) = call.get_mut("function").and_then(|function| function.get_mut("arguments"))
            && !arguments.is_string()
        {
            *arguments = dumps(arguments).into();
        }
    }
    calls
}

#[cfg(test)]
mod tests;
