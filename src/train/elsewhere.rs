//! Knows the options of other programs (Transformers, LLaMA-Factory, axolotl, TRL): those with another name here, those without a
//! counterpart, those that do not change the result, values that mean something different there, and differences in the effect of
//! accepted options. The tables hold their names separated by spaces and spelt with underscores.

use std::path::Path;

use toml::Value;

use crate::error::{Context, Error, Result};

/// Options that have a different name in other programs, and these names.
const SAME: &[(&str, &str)] = &[
    ("model", "model_name_or_path base_model"),
    ("out", "output_dir"),
    ("top-k", "eaft_k"),
    ("lora-r", "lora_rank"),
    ("lora-targets", "lora_target lora_target_modules"),
    ("lr", "learning_rate"),
    ("schedule", "lr_scheduler_type lr_scheduler"),
    ("epochs", "num_train_epochs num_epochs"),
    ("beta1", "adam_beta1"),
    ("beta2", "adam_beta2"),
    ("eps", "adam_epsilon"),
    ("clip", "max_grad_norm"),
    ("max-len", "cutoff_len max_length sequence_len max_seq_length"),
    ("validation-share", "val_size val_set_size"),
    ("eval-every", "eval_steps"),
    ("save-every", "save_steps"),
    ("keep-checkpoints", "save_total_limit"),
    ("stop-after-worse", "early_stopping_patience early_stopping_steps"),
];

/// Options of other programs that have no counterpart here, and what to give instead.
const INSTEAD: &[(&str, &str)] = &[
    (
        "gradient_accumulation_steps per_device_train_batch_size micro_batch_size",
        "Use batch-size, the sequences per optimiser step: per-device batch size times accumulation steps times devices.",
    ),
    (
        "finetuning_type adapter full_finetune use_peft",
        "Use lora = true for LoRA, or leave it out to train all weights; other methods are not supported.",
    ),
    (
        "packing neat_packing packing_strategy padding_free pad_to_sequence_len batch_flattening eval_packing \
         eval_sample_packing multipack_real_batches sample_packing sample_packing_bin_size sample_packing_eff_est \
         sample_packing_group_size sample_packing_mp_start_method sample_packing_sequentially",
        "Leave it out: rows are always packed without padding and never attend to each other; batch-size counts rows, whereas there, with packing, a batch counts packs.",
    ),
    ("use_eaft use_eaft_loss", "Use method = \"eaft\"."),
    ("eaft_alpha", "Use gate = \"power:N\" with this N."),
    ("use_dft_loss", "Use method = \"dft\"."),
    ("use_asft_loss", "Use method = \"asft\"."),
    ("asft_alpha", "Use kl-weight."),
    ("bf16 fp16", "Use dtype = \"bf16\"."),
    ("dataset dataset_dir dataset_name", "Use datasets, a list of files."),
    (
        "max_samples",
        "Use limit, the first records of all files together; LLaMA-Factory's limit applies to each data set, held-out ones included.",
    ),
    ("eval_dataset test_datasets", "Use validation, a list of files."),
    ("load_best_model_at_end", "Use keep = \"best\"."),
    ("metric_for_best_model", "Leave it out for eval_loss: keep = \"best\" always uses the held-out loss."),
    (
        "template",
        "The model's own chat template is used, unless chat-template names another file; LLaMA-Factory's own template of this name may produce different tokens.",
    ),
    ("chat_template_jinja chat_template_path", "Use chat-template, the path of a Jinja file."),
    ("eot_tokens", "Leave it out: the token that ends a turn in the chat template is learnt with the turn."),
    ("enable_thinking", "Use chat-template-kwargs, such as {\"enable_thinking\": false}, if the model's chat template uses it."),
    (
        "default_system default_system_message system_prompt",
        "Use system, which is added to conversations without a system prompt.",
    ),
    ("dataset_text_field", "Use map, such as map = [\"text=COLUMN\"]."),
    (
        "assistant_only_loss completion_only_loss",
        "Leave it out for true: only answers are learnt. For false use supervise = \"all\", which learns the whole text.",
    ),
    ("loss_type", "Leave it out for nll, and give method = \"dft\" for dft."),
    ("stage", "Leave it out for sft: other stages are not supported."),
    ("excess_length_strategy", "Leave it out for truncate, which is what max-len does; for drop remove such rows from the data."),
    ("truncation_mode", "Leave it out for keep_start, which is what max-len does."),
    ("mix_strategy interleave_probs", "Use mix, how often the rows of each source appear."),
    (
        "adapter_name_or_path lora_model_dir",
        "Merge it with `diagnose export ADAPTER --out DIR` and give model = \"DIR/model\"; an adapter cannot be trained further directly.",
    ),
    (
        "use_rslora peft_use_rslora",
        "For true, which scales by alpha / sqrt(r), use lora-alpha = alpha times the square root of r; leave it out for false.",
    ),
    ("lora_target_linear", "Leave it out for true: by default all linear modules get adapters. For false give lora-targets."),
    ("torch_dtype", "Use dtype = \"bf16\" or \"f32\", the precision of the products; trained weights are kept in f32."),
    ("data_seed", "Use seed."),
    (
        "eval_strategy evaluation_strategy evals_per_epoch",
        "Use eval-every, the steps between evaluations; `train --dry-run` shows how many steps the run has.",
    ),
    ("save_strategy saves_per_epoch", "Use save-every, the steps between checkpoints; the default is one per epoch."),
    ("resume_from_checkpoint auto_resume_from_checkpoints", "Leave it out: the same command resumes."),
    (
        "average_tokens_across_devices",
        "Leave it out for true, the default there: the loss is the mean over all tokens of a step.",
    ),
    (
        "optim optimizer",
        "Leave it out for adamw_torch and the like: AdamW is the only optimiser; any other would be a different training.",
    ),
    ("mask_history", "Use supervise = \"last\" for true, and leave it out for false: every answer is learnt."),
    (
        "train_on_prompt train_on_inputs",
        "Use supervise = \"all\" for true, which learns the whole text, and leave it out for false: only answers are learnt.",
    ),
    (
        "roles_to_train",
        "Leave it out: the assistant's turns are learnt; choose with supervise (assistant, last, or all for the whole text), and for single messages with `weight` or `train`.",
    ),
    ("train_on_eos", "Leave it out: the token that ends a turn is learnt with it, as `turn` says, which is axolotl's default."),
    ("gradient_checkpointing", "Use activation-memory, the MiB of activations to keep instead of recomputing."),
    (
        "model_type type_of_model tokenizer_type processor_type cls_model_config",
        "Leave it out: the model's own files say of which family the model and its tokenizer are.",
    ),
    (
        "base_model_config tokenizer_config tokenizer_legacy tokenizer_use_mistral_common",
        "Leave it out if it means the model's own files, which are always used; others would be a different training.",
    ),
    ("model_revision revision_of_model", "Use model = \"ORG/NAME@REVISION\"."),
    (
        "plugins",
        "Leave it out for plugins that only compute faster, such as CutCrossEntropyPlugin and LigerPlugin; others would be a different training.",
    ),
    (
        "shuffle_merged_datasets shuffle_before_merging_datasets",
        "Leave it out: each epoch has its own random order of all rows, drawn by seed; any other order would be a different training.",
    ),
    (
        "loss_watchdog_threshold loss_watchdog_patience",
        "Leave it out: it stops a training whose loss is high, and changes nothing in one that goes on.",
    ),
    ("deepspeed", "Leave it out: --emit writes a configuration for several devices."),
];

/// Options that change the training there and have no counterpart here. `false` turns each of them off; a final `*` matches any
/// ending.
const WITHOUT_COUNTERPART: &[&str] = &[
    // The trained parameters and their initial values.
    "additional_target embedding_lr* freeze_* init_special_tokens lisa_* loftq_* lora_alpha_pattern lora_fan_in_fan_out \
     lora_modules_to_save lora_rank_pattern lora_target_parameters loraplus_* mixture_of_depths module_dropout oft_* \
     peft_init_lora_weights peft_layer* peft_trainable_token_indices peft_use_dora pissa_* reinit_weights relora* \
     train_from_scratch unfrozen_parameters use_dora use_llama_pro",
    // Another training: from preferences, by rewards, of classifiers, or on a stream of plain text.
    "center_rewards_coefficient cpo_alpha diffusion dpo_* ebft kto_* ld_alpha max_prompt_len num_labels orpo_alpha ppo_* \
     precompute_ref_log_probs pref_* pretraining_* process_reward_model ref_model* reward_model* rl rl_beta rpo_alpha simpo_gamma \
     trainer_cls trl vllm",
    // Number formats.
    "bfloat16 bnb_config_kwargs double_quantization float16 fp8* gptq load_in_4bit load_in_8bit model_quantization_config* pure_bf16 qat quantization_* \
     quantize_moe_experts",
    // The loss and the model.
    "label_smoothing_factor model_config moe_aux_loss_coef neftune_noise_alpha noisy_embedding_alpha overrides_of_model_* pose_* \
     rope_scaling router_aux_loss_coef s2_attention scaling_softmax* shift_attn use_onebitllms use_pose",
    // The update.
    "adam_beta3 adam_epsilon2 apollo_* badam_* cosine_constant_lr_ratio cosine_min_lr_ratio dion_* galore_* \
     jagged_restart_* lr_div_factor lr_groups lr_quadratic_warmup lr_scheduler_kwargs optim_args optim_target_modules \
     qgalore_* use_adam_mini use_apollo use_badam use_galore use_muon",
    // The rows, their order and their tokens.
    "add_special_tokens add_tokens added_tokens_overrides curriculum_sampling dataloader_drop_last \
     dataset_exact_deduplication disable_shuffling fix_untrained_tokens group_by_length min_sample_len \
     new_special_tokens_config preserve_thinking resize_token_embeddings_to_32x resize_vocab shrink_embeddings special_tokens split_special_tokens tokens tool_format train_sampling_strategy",
];

/// Options that change nothing about what is learnt, but how it is computed, saved, monitored and logged. A final `*` matches any
/// ending.
const WITHOUT_RESULT: &str = "activation_offloading attn_implementation bf16_full_eval cache_dir \
     chunked_cross_entropy* comet_* context_parallel_size cut_cross_entropy dataloader_num_workers \
     dataloader_persistent_workers dataloader_pin_memory dataloader_prefetch_factor dataset_keep_in_memory \
     dataset_num_proc dataset_prepared_path dataset_processes ddp* device_map disable_tqdm do_bench_eval \
     do_causal_lm_eval do_eval do_train dp_replicate_size dp_shard_size eager_attention enable_liger_kernel \
     eval_batch_size eval_causal_lm_metrics experts_implementation flash_attention flash_attn* flash_optimum \
     flex_attention flex_attn_compile_kwargs fp16_full_eval fsdp* full_determinism fused_attn_kernel gc_steps \
     gradient_checkpointing_kwargs heads_k_stride hf_hub_token hf_use_auth_token hub_* include_num_input_tokens_seen \
     liger_* local_rank log_level* log_on_each_node logging_* lora_embedding_kernel lora_mlp_kernel lora_o_kernel \
     lora_qkv_kernel low_cpu_mem_usage mlflow_* otel_* overwrite_cache overwrite_output_dir \
     per_device_eval_batch_size plot_loss preprocessing_num_workers push_to_hub qlora_sharded_model_loading ray_* \
     remove_unused_columns report_to resources_per_worker ring_attn_func run_name save_on_each_node save_only_model \
     save_safetensors sdp_attention sdpa_varlen sequence_parallel_degree swanlab_* tensor_parallel_size tf32 \
     tiled_mlp* tokenized_path tokenizer_use_fast torch_compile* trackio_* trust_remote_code upcast_layernorm \
     use_cache use_comet use_fast_tokenizer use_kernels use_liger_kernel use_mlflow use_otel_metrics use_ray \
     use_reentrant_gc use_scattermoe use_swanlab use_tensorboard use_trackio use_unsloth_gc use_wandb wandb_* \
     xformers_attention";

/// The names of option `name` in other programs.
pub(crate) fn other_names(name: &str) -> impl Iterator<Item = &'static str> {
    SAME.iter().filter(move |(ours, _)| *ours == name).flat_map(|(_, theirs)| theirs.split_whitespace())
}

/// Names in other programs that [`instead_of`] answers.
pub(crate) fn answered_names() -> impl Iterator<Item = &'static str> {
    INSTEAD.iter().flat_map(|(names, _)| names.split_whitespace())
}

/// What to give instead of another program's option that has no counterpart here.
pub(crate) fn instead_of(name: &str) -> Option<&'static str> {
    INSTEAD.iter().find(|(names, _)| is_of(names, name)).map(|(_, answer)| *answer)
}

/// Our name of an option, given by our name or another program's, with dashes or underscores; an unknown name stays as it is,
/// with dashes.
pub(crate) fn our_name(name: &str) -> Result<String> {
    if let Some(answer) = instead_of(name) {
        return Err(Error::usage(format!("`{name}` is not an option of this program")).cure(answer));
    }
    let same = SAME.iter().find(|(_, names)| is_of(names, name));
    Ok(same.map_or_else(|| name.replace('_', "-"), |(ours, _)| (*ours).to_owned()))
}

/// Is the option, written with dashes or underscores, among `names`? One that ends in `*` matches any ending.
fn is_of(names: &str, name: &str) -> bool {
    let name = name.replace('-', "_");
    names.split_whitespace().any(|known| known.strip_suffix('*').map_or(known == name, |start| name.starts_with(start)))
}

fn has_no_counterpart(name: &str) -> bool {
    WITHOUT_COUNTERPART.iter().any(|names| is_of(names, name))
}

/// Those of them that 0 turns off, too.
const OFF_AT_ZERO: &str =
    "cosine_min_lr_ratio label_smoothing_factor moe_aux_loss_coef neftune_noise_alpha noisy_embedding_alpha router_aux_loss_coef";

/// Is this another program's option without a counterpart here, turned off?
pub(super) fn is_off(name: &str, value: &Value) -> bool {
    let is_zero = value.as_integer() == Some(0) || value.as_float() == Some(0.0);
    has_no_counterpart(name) && (*value == Value::Boolean(false) || is_zero && is_of(OFF_AT_ZERO, name))
}

/// What to do about an option that only other programs have.
pub(super) fn answer(name: &str) -> Option<&'static str> {
    if has_no_counterpart(name) {
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
        // axolotl has a mapping for it.
        ("chat-template-kwargs", Value::Table(variables)) => {
            Ok(Some(Value::String(serde_json::to_string(variables).context("cannot read the template's variables")?)))
        }
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
