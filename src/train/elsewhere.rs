//! Handles options in the files of other programs (Transformers, LLaMA-Factory, axolotl, TRL) that have no option here: those
//! without a counterpart, those that do not change the result, values that mean something different there, and differences in the
//! effect of accepted options. Names that are accepted, or have another name here, are in declared.rs.

use std::path::Path;

use toml::Value;

use crate::error::{Error, Result};

/// Options that change the training there and have no counterpart here. `false` turns each of them off; a final `*` matches any
/// ending.
const WITHOUT_COUNTERPART: &[&str] = &[
    // The trained parameters and their initial values.
    "additional_target",
    "embedding_lr*",
    "freeze_*",
    "init_special_tokens",
    "lisa_*",
    "loftq_*",
    "lora_alpha_pattern",
    "lora_fan_in_fan_out",
    "lora_modules_to_save",
    "lora_rank_pattern",
    "lora_target_parameters",
    "loraplus_*",
    "mixture_of_depths",
    "module_dropout",
    "oft_*",
    "peft_init_lora_weights",
    "peft_layer*",
    "peft_trainable_token_indices",
    "peft_use_dora",
    "pissa_*",
    "reinit_weights",
    "relora*",
    "train_from_scratch",
    "unfrozen_parameters",
    "use_dora",
    "use_llama_pro",
    // Number formats.
    "bfloat16",
    "float16",
    "fp8*",
    "load_in_4bit",
    "load_in_8bit",
    "model_quantization_config*",
    "pure_bf16",
    "qat",
    "quantization_*",
    "quantize_moe_experts",
    // The loss and the model.
    "label_smoothing_factor",
    "moe_aux_loss_coef",
    "neftune_noise_alpha",
    "noisy_embedding_alpha",
    "overrides_of_model_*",
    "rope_scaling",
    "router_aux_loss_coef",
    "s2_attention",
    "scaling_softmax*",
    "shift_attn",
    "use_pose",
    // The update.
    "adam_beta3",
    "adam_epsilon2",
    "apollo_*",
    "badam_*",
    "cosine_constant_lr_ratio",
    "cosine_min_lr_ratio",
    "dion_*",
    "galore_*",
    "jagged_restart_*",
    "lr_div_factor",
    "lr_groups",
    "lr_quadratic_warmup",
    "lr_scheduler_kwargs",
    "optim_args",
    "optim_target_modules",
    "qgalore_*",
    "use_adam_mini",
    "use_apollo",
    "use_badam",
    "use_galore",
    "use_muon",
    // The rows, their order and their tokens.
    "add_special_tokens",
    "add_tokens",
    "added_tokens_overrides",
    "curriculum_sampling",
    "dataloader_drop_last",
    "dataset_exact_deduplication",
    "disable_shuffling",
    "group_by_length",
    "min_sample_len",
    "new_special_tokens_config",
    "preserve_thinking",
    "resize_vocab",
    "special_tokens",
    "split_special_tokens",
    "tokens",
    "tool_format",
    "train_sampling_strategy",
];

/// Options that change nothing about what is learnt, but how it is computed, saved, monitored and logged. A final `*` matches any
/// ending.
const WITHOUT_RESULT: &[&str] = &[
    "activation_offloading",
    "attn_implementation",
    "bf16_full_eval",
    "cache_dir",
    "comet_*",
    "dataloader_num_workers",
    "dataloader_persistent_workers",
    "dataloader_pin_memory",
    "dataloader_prefetch_factor",
    "dataset_num_proc",
    "dataset_prepared_path",
    "dataset_processes",
    "ddp*",
    "disable_tqdm",
    "do_eval",
    "do_train",
    "eager_attention",
    "enable_liger_kernel",
    "eval_batch_size",
    "flash_attention",
    "flash_attn",
    "flex_attention",
    "fp16_full_eval",
    "fsdp*",
    "full_determinism",
    "gc_steps",
    "gradient_checkpointing_kwargs",
    "hf_hub_token",
    "hf_use_auth_token",
    "hub_*",
    "include_num_input_tokens_seen",
    "liger_*",
    "local_rank",
    "log_level*",
    "log_on_each_node",
    "logging_*",
    "lora_mlp_kernel",
    "lora_o_kernel",
    "lora_qkv_kernel",
    "low_cpu_mem_usage",
    "mlflow_*",
    "overwrite_cache",
    "overwrite_output_dir",
    "per_device_eval_batch_size",
    "plot_loss",
    "preprocessing_num_workers",
    "push_to_hub",
    "remove_unused_columns",
    "report_to",
    "run_name",
    "save_only_model",
    "save_safetensors",
    "sdp_attention",
    "swanlab_*",
    "tf32",
    "tokenizer_use_fast",
    "torch_compile*",
    "trackio_*",
    "trust_remote_code",
    "upcast_layernorm",
    "use_cache",
    "use_comet",
    "use_fast_tokenizer",
    "use_liger_kernel",
    "use_mlflow",
    "use_reentrant_gc",
    "use_swanlab",
    "use_tensorboard",
    "use_trackio",
    "use_unsloth_gc",
    "use_wandb",
    "wandb_*",
    "xformers_attention",
];

fn is_of(names: &[&str], name: &str) -> bool {
    let name = name.replace('-', "_");
    names.iter().any(|known| known.strip_suffix('*').map_or(*known == name, |start| name.starts_with(start)))
}

/// Is this another program's option without a counterpart here, turned off?
pub(super) fn is_off(name: &str, value: &Value) -> bool {
    *value == Value::Boolean(false) && is_of(WITHOUT_COUNTERPART, name)
}

/// What to do about an option that only other programs have.
pub(super) fn answer(name: &str) -> Option<&'static str> {
    if is_of(WITHOUT_COUNTERPART, name) {
        return Some("this program does not support it, and without it the training would differ.");
    }
    is_of(WITHOUT_RESULT, name).then_some("leave it out: it does not affect the result.")
}

/// The value of our option `ours`, which the file gives under `name`: `None` if another program's value only states the default,
/// and an error if it means something different here.
pub(super) fn value(name: &str, ours: &str, value: Value) -> Result<Option<Value>> {
    let refused = |what: &str, cure: &str| Err(Error::usage(format!("`{name}: {}` {what}", shown(&value))).cure(cure));
    match (ours, &value) {
        // Transformers' default, which leaves the number of steps to the epochs.
        ("max-steps", Value::Integer(..0)) => Ok(None),
        ("validation-share", Value::Integer(1..)) => refused(ROWS, HOLD_OUT),
        ("validation-share", Value::Float(rows)) if *rows >= 1.0 => refused(ROWS, HOLD_OUT),
        ("eval-every" | "save-every", Value::Float(share)) if *share < 1.0 => refused(
            "is a share of the run there; here it is a number of steps",
            &format!("Use {ours} as a number of steps: `diagnose train --dry-run` says how many the run has."),
        ),
        // axolotl's name for the model's own template.
        ("chat-template", Value::String(template)) if template == "tokenizer_default" => Ok(None),
        ("chat-template", Value::String(template)) if !template.contains(['.', '/', '\\']) && !Path::new(template).exists() => {
            refused(
                "names a template of the other program; here it is a file",
                "Use the path of a Jinja file, or leave it out to use the model's own template, which may produce different tokens.",
            )
        }
        ("dtype", Value::String(dtype)) if ["bfloat16", "float16", "float32", "auto"].contains(&dtype.as_str()) => refused(
            "is the storage format of the weights there; here it is the precision of the products, and trained weights are kept in f32",
            "Use dtype = \"bf16\" or \"f32\".",
        ),
        ("datasets", Value::Array(items)) if items.iter().any(Value::is_table) => {
            Err(Error::usage(format!("`{name}` describes how each data set is read there; here it is a list of files"))
                .cure("Pass only the list of files: their format is detected, or set with format and map."))
        }
        _ => Ok(Some(value)),
    }
}

const ROWS: &str = "is a number of rows there; here it is a share of them";
const HOLD_OUT: &str = "Use validation-share, a number below 1, or validation, a list of files to hold out.";

fn shown(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// A warning if another program treats an accepted option differently.
pub(super) fn remark(name: &str) -> Option<&'static str> {
    match name.replace('-', "_").as_str() {
        "sequence_len" => Some(
            "axolotl drops rows longer than sequence_len, unless excess_length_strategy is truncate; here their ends are cut, and they are counted.",
        ),
        "cutoff_len" => Some(
            "LLaMA-Factory cuts prompt and answers of rows longer than cutoff_len in proportion to their lengths; here their ends are cut, and they are counted.",
        ),
        // Our own files write `top-k`.
        "top_k" if name.contains('_') => Some("LLaMA-Factory's top_k is about sampling; here it is K of EAFT's top-K entropy."),
        _ => None,
    }
}
