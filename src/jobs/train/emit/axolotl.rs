//! Writes the configuration of axolotl: `axolotl train train.yaml`.

use super::recipe::{
    self, Batch, DATA, DEEPSPEED, Length, Loss, Recipe, TEMPLATE, model, not_offered, optimiser, steps, whole_alpha,
};
use super::yaml::{Yaml, json, list, number, text};
use crate::diagnosis::gate::{Beside, Curve, Eaft, Gate};
use crate::error::{Error, Result};
use crate::tokens::Supervise;

pub(super) fn config(recipe: &Recipe, batch: &Batch) -> Result<String> {
    let model = model(recipe)?;
    let (eaft, factor) = loss(&recipe.loss)?;
    if recipe.supervise == Supervise::All {
        return Err(Error::usage("axolotl's chat_template data cannot train on the whole text")
            .cure("Use --supervise assistant or last."));
    }
    if recipe.warm_up_steps == 1 {
        return Err(Error::usage("axolotl warms up for 2 steps where a configuration asks for 1, as this training does")
            .cure("Give --warmup-steps 0 or 2; more rows or steps make more of --warmup-ratio."));
    }
    let mut yaml = Yaml::default();
    yaml.comment("Written by diagnose for axolotl. In this folder:").comment(&format!(
        "    axolotl train {}        (on {} devices)",
        recipe::CONFIG,
        recipe.devices
    ));
    if eaft.is_some() {
        yaml.comment(EAFT_NOTE);
    }
    yaml.blank().set("base_model", text(model));
    if recipe.chat_template.is_some() {
        yaml.comment("It is saved with the model.").set("chat_template", "jinja").set("chat_template_jinja", text(TEMPLATE));
    }
    if let Some(switches) = &recipe.template_switches {
        yaml.comment("Variables for the chat template.").set("chat_template_kwargs", json(switches));
    }
    yaml.blank();

    if let Some(lora) = &recipe.lora {
        yaml.set("adapter", "lora")
            .set("lora_r", lora.rank.to_string())
            .set("lora_alpha", whole_alpha("axolotl", lora.alpha)?)
            .set("lora_dropout", number(lora.dropout));
        match lora.targets.is_empty() {
            true => yaml.comment(LINEAR_NOTE).set("lora_target_linear", "true"),
            false => yaml.set("lora_target_modules", list(&lora.targets)),
        };
    }
    if let Some((exponent, k)) = eaft {
        yaml.set("use_eaft", "true").set("eaft_alpha", number(exponent)).set("eaft_k", k.to_string());
    }
    sharding(&mut yaml, recipe);
    data(&mut yaml, recipe);
    steps(&mut yaml, recipe, batch, "micro_batch_size", "num_epochs");
    if let Length::Epochs(_) = recipe.length {
        yaml.comment("The steps of these epochs. By itself axolotl counts fewer where an epoch does not fill its last step.")
            .set("max_steps", recipe.steps.to_string());
    }
    optimiser(&mut yaml, recipe, "lr_scheduler", "optimizer", factor);
    yaml.set("bf16", recipe.bf16.to_string()).set("seed", recipe.seed.to_string()).set("gradient_checkpointing", "true").blank();

    yaml.set("output_dir", text("output")).set("logging_steps", "1");
    match recipe.save_every {
        Some(every) => yaml.set("save_steps", every.to_string()),
        None => yaml.set("saves_per_epoch", "1"),
    };
    yaml.set("save_total_limit", recipe.keep_checkpoints.to_string());
    Ok(yaml.finish())
}

/// How the weights and their optimiser's state are spread over the devices.
fn sharding(yaml: &mut Yaml, recipe: &Recipe) {
    yaml.comment("ZeRO keeps f32 master weights beside bf16 ones: bf16 alone loses updates of this size.")
        .set("deepspeed", text(DEEPSPEED))
        .comment("FSDP instead: remove the line above. See to it that the master weights are f32.")
        .comment("fsdp_version: 2")
        .comment("fsdp_config:")
        .comment("  auto_wrap_policy: TRANSFORMER_BASED_WRAP")
        .comment(&format!("  transformer_layer_cls_to_wrap: {}", recipe.layer_class))
        .comment("  state_dict_type: FULL_STATE_DICT")
        .comment("  reshard_after_forward: true")
        .blank();
}

/// The rows, which of their tokens are trained on, and how they are cut and batched.
fn data(yaml: &mut Yaml, recipe: &Recipe) {
    yaml.comment(TURN_ENDS_NOTE).set("eot_tokens", list(&recipe.turn_ends)).blank();
    yaml.comment("Each message says whether it is trained on, its end-of-turn token included. Of an answer axolotl learns what stands from its")
        .comment("content on, and not the empty block of reasoning that some templates put before that.")
        .set("datasets", "")
        .set("  - path", text(DATA))
        .set("    ds_type", "json")
        .set("    type", "chat_template")
        .set("    chat_template", if recipe.chat_template.is_some() { "jinja" } else { "tokenizer_default" });
    if recipe.chat_template.is_some() {
        yaml.set("    chat_template_jinja", text(TEMPLATE));
    }
    yaml.set("    field_messages", "messages")
        .set("    message_field_training", "train")
        .set("    roles_to_train", "[]")
        .set("    train_on_eos", "turn")
        .set("dataset_prepared_path", text("prepared"))
        .set("val_set_size", number(recipe.validation));
    if let Some(every) = recipe.eval_every {
        yaml.set("eval_steps", every.to_string());
    }
    yaml.comment("Longer rows are cut at their end, as in the original run; by default axolotl would drop them.")
        .set("sequence_len", recipe.max_len.to_string())
        .set("excess_length_strategy", "truncate")
        .comment("A step is a number of rows, as in the original run: rows are padded, not packed.")
        .set("sample_packing", "false")
        .blank();
}

/// EAFT's exponent and K for a loss that is EAFT, and the factor of axolotl's loss over ours.
fn loss(loss: &Loss) -> Result<(Option<(f64, usize)>, f64)> {
    match (loss.method.beside, loss.gate) {
        (Beside::Nothing, Gate::One) => Ok((None, 1.0)),
        (Beside::Nothing, Gate::Eaft(eaft @ Eaft { curve: Curve::Power { exponent }, k, .. })) => {
            let exponent = f64::from(exponent);
            Ok((Some((exponent, k)), eaft.divisor().powf(exponent)))
        }
        _ => Err(not_offered("axolotl", loss, "sft, eaft and eaft:power:N")),
    }
}

const TURN_ENDS_NOTE: &str = "
The tokens with which the chat template ends an answer; they are learnt with it. By default axolotl looks only for the tokenizer's end
token. The list is empty if the template ends answers without a control token.";

const LINEAR_NOTE: &str = "
All linear modules except the head. In a multimodal model this includes those of the vision tower, which text does not reach, so they have no effect.";

const EAFT_NOTE: &str = "
EAFT: with H the entropy of the eaft_k most probable tokens in nats, axolotl weights a token by H^eaft_alpha and does not divide,
where the paper and diagnose have (H / ln K)^alpha with ln 20 = 2.9957, and LLaMA-Factory (H / 3.0)^alpha. For the same data the
loss and the gradient norm are about three times as large as theirs and not comparable, nor are learning rates under an optimiser
that does not normalise the gradient. AdamW does, so the learning rate below is the one of the original run; only max_grad_norm
is multiplied by the ratio of the two losses.";
