//! Writes the configuration of LLaMA-Factory: `llamafactory-cli train train.yaml`.

use serde_json::{Value, json};

use super::recipe::{self, Batch, DATA, DEEPSPEED, Recipe, model, not_offered, optimiser, steps, whole_alpha};
use super::yaml::{Yaml, number, text};
use crate::diagnosis::gate::{Beside, Curve, Eaft, Gate};
use crate::error::{Error, Result};
use crate::tokens::Supervise;

const DATASET: &str = "train";

/// `entropy_term = entropy_approx / 3.0` in its `trainer_utils.py`.
const NORMALISER: f64 = 3.0;
/// K of `_eaft_cross_entropy`.
const TOP_K: usize = 20;

/// The entry in dataset_info.json, with OpenAI's names.
pub(super) fn dataset_info() -> Value {
    json!({DATASET: {
        "file_name": DATA,
        "formatting": "sharegpt",
        "columns": {"messages": "messages"},
        "tags": {"role_tag": "role", "content_tag": "content", "user_tag": "user", "assistant_tag": "assistant", "system_tag": "system"},
    }})
}

pub(super) fn config(recipe: &Recipe, batch: &Batch) -> Result<String> {
    let model = model(recipe)?;
    let loss = loss(recipe)?;
    if recipe.supervise == Supervise::All {
        return Err(Error::usage(
            "LLaMA-Factory trains on answers, or on prompts and answers of single turns, not on the whole text",
        )
        .cure("Use --supervise assistant or last."));
    }
    if recipe.chat_template.is_some() {
        return Err(Error::usage("LLaMA-Factory cannot use a chat template file: it has named templates, or reads the tokenizer's")
            .cure("Write it into chat_template.jinja in a copy of the model's folder, give --model that folder, and leave --chat-template out."));
    }
    if recipe.template_switches.is_some() {
        return Err(Error::usage(
            "--chat-template-kwargs would be lost: LLaMA-Factory gives a chat template no variables of this kind",
        )
        .cure("Write them into the template in a copy of the model's folder, and leave the option out."));
    }
    let mut yaml = Yaml::default();
    yaml.comment("Written by diagnose for LLaMA-Factory. In this folder:")
        .comment(&format!("    FORCE_TORCHRUN=1 NPROC_PER_NODE={} llamafactory-cli train {}", recipe.devices, recipe::CONFIG))
        .comment(loss.note)
        .blank();
    yaml.set("model_name_or_path", text(model)).blank();

    yaml.set("stage", "sft").set("do_train", "true");
    match &recipe.lora {
        None => yaml.set("finetuning_type", "full"),
        Some(lora) => yaml
            .set("finetuning_type", "lora")
            .set("lora_rank", lora.rank.to_string())
            .comment("LLaMA-Factory requires a whole number.")
            .set("lora_alpha", whole_alpha("LLaMA-Factory", lora.alpha)?)
            .set("lora_dropout", number(lora.dropout))
            .set("lora_target", if lora.targets.is_empty() { "all".to_owned() } else { text(&lora.targets.join(",")) }),
    };
    for (key, value) in &loss.settings {
        yaml.set(key, value);
    }
    yaml.set("deepspeed", text(DEEPSPEED)).blank();

    yaml.comment(
        "`template` is not set, so the model's own chat template is read from its tokenizer. The loss is a mean over one more token",
    )
    .comment(
        "per answer if the template writes one after the end of a turn (in ChatML a line break, learnt at no cost).",
    )
    .set("dataset_dir", text("."))
    .set("dataset", text(DATASET))
    .comment("LLaMA-Factory cuts prompt and answers of longer rows in proportion to their lengths; the original run cuts the end.")
    .set("cutoff_len", recipe.max_len.to_string())
    .comment("A step is a number of rows, as in the original run: rows are padded, not packed.")
    .set("packing", "false");
    if recipe.supervise == Supervise::Last {
        yaml.comment("Only the last answer is trained on.").set("mask_history", "true");
    }
    if recipe.validation > 0.0 {
        yaml.set("val_size", number(recipe.validation)).set("per_device_eval_batch_size", "1");
        match recipe.eval_every {
            Some(every) => yaml.set("eval_strategy", "steps").set("eval_steps", every.to_string()),
            None => yaml.set("eval_strategy", "epoch"),
        };
    }
    yaml.blank();

    steps(&mut yaml, recipe, batch, "per_device_train_batch_size", "num_train_epochs");
    optimiser(&mut yaml, recipe, "lr_scheduler_type", "optim", loss.factor);
    yaml.comment("Weights are kept in f32 beside bf16 (pure_bf16 stays off): bf16 alone loses updates of this size.")
        .set("bf16", recipe.bf16.to_string())
        .set("seed", recipe.seed.to_string())
        .set("data_seed", recipe.seed.to_string())
        .set("gradient_checkpointing", "true")
        .blank();

    yaml.set("output_dir", text("output")).set("logging_steps", "1");
    match recipe.save_every {
        Some(every) => yaml.set("save_strategy", "steps").set("save_steps", every.to_string()),
        None => yaml.set("save_strategy", "epoch"),
    };
    yaml.set("save_total_limit", recipe.keep_checkpoints.to_string()).set("plot_loss", "true").set("report_to", "none");
    Ok(yaml.finish())
}

struct Settings {
    settings: Vec<(&'static str, String)>,
    /// The factor of LLaMA-Factory's loss over ours.
    factor: f64,
    note: &'static str,
}

fn loss(recipe: &Recipe) -> Result<Settings> {
    let plain = |settings: Vec<(&'static str, String)>, note| Settings { settings, factor: 1.0, note };
    match (recipe.loss.method.beside, recipe.loss.gate) {
        (Beside::Nothing, Gate::One) => Ok(plain(Vec::new(), "")),
        (Beside::Nothing, Gate::Eaft(eaft @ Eaft { curve: Curve::Power { exponent }, .. })) => {
            if eaft.k != TOP_K {
                return Err(Error::usage(format!(
                    "LLaMA-Factory's EAFT takes the entropy of the top {TOP_K}, not of {}",
                    eaft.k
                ))
                .cure(format!("Use K = {TOP_K}, or emit for axolotl.")));
            }
            let exponent = f64::from(exponent);
            Ok(Settings {
                settings: vec![("use_eaft_loss", "true".to_owned()), ("eaft_alpha", number(exponent))],
                factor: (eaft.divisor() / NORMALISER).powf(exponent),
                note: EAFT_NOTE,
            })
        }
        (Beside::Nothing, Gate::Probability) => Ok(plain(vec![("use_dft_loss", "true".to_owned())], "")),
        (Beside::FromBase { .. }, Gate::Probability) => Ok(plain(
            vec![
                ("use_asft_loss", "true".to_owned()),
                ("asft_alpha", number(recipe.loss.kl_weight)),
                // Without it, LoRA would have no reference model to compare with.
                ("ref_model", text(model(recipe)?)),
            ],
            "\nASFT: its loss is the mean of the micro-batches' means, here it is the mean over the step's tokens: the two differ where\n\
             micro-batches differ in length.",
        )),
        _ => Err(not_offered("LLaMA-Factory", &recipe.loss, "sft, eaft, eaft:power:N, dft and asft")),
    }
}

const EAFT_NOTE: &str = "
EAFT: with H the entropy of the 20 most probable tokens in nats, LLaMA-Factory weights a token by (H / 3.0)^eaft_alpha, where the
paper and diagnose have (H / ln 20)^alpha and ln 20 = 2.9957; axolotl does not divide at all, and its loss is about three times
as large for the same data. Losses and gradient norms of the three are therefore not comparable, nor are learning rates under an
optimiser that does not normalise the gradient. AdamW does, so the learning rate below is the one of the original run; only
max_grad_norm is multiplied by the ratio of the two losses.";
