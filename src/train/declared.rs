//! Describes a training option: its name, its help text and where help shows it. [`options`](super::options) declares all of
//! them.

use std::collections::BTreeMap;
use std::path::PathBuf;

use super::keep::Keep;
use super::schedule::Shape;
use crate::dataset::Format;
use crate::diagnosis::gate::{Method, Normaliser};
use crate::error::{Error, Result};
use crate::kernels::{Dtype, Stored};
use crate::tokens::Supervise;

/// An option of the command line, `--set`, configuration files and help.
#[derive(Debug, Clone, Copy)]
pub(crate) struct Declared {
    field: &'static str,
    pub group: OptionGroup,
    pub kind: ValueKind,
    /// Its documentation comment, with its line breaks.
    lines: &'static str,
}

/// The section of the help that shows an option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum OptionGroup {
    Run,
    Loss,
    Lora,
    Optimiser,
    Looking,
    Data,
    /// For experts: shown by `--list-options`.
    Expert,
}

/// The kind of value that an option takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ValueKind {
    Switch,
    Whole,
    Number,
    Text,
    /// May be given several times.
    Texts,
    /// May be given several times, as NAME=NUMBER.
    Numbers,
}

impl Declared {
    pub(crate) const fn new(field: &'static str, group: OptionGroup, kind: ValueKind, lines: &'static str) -> Declared {
        Declared { field, group, kind, lines }
    }

    /// The name in files and, after two dashes, on the command line.
    pub(crate) fn name(&self) -> String {
        self.field.replace('_', "-")
    }

    /// The help text as one line.
    pub(crate) fn help(&self) -> String {
        self.lines.split_whitespace().collect::<Vec<_>>().join(" ")
    }

    /// Parses the value of this option.
    pub(crate) fn value(&self, text: &str) -> Result<toml::Value> {
        let wrong = |expected: &str| Error::usage(format!("--{} {text}: expected {expected}", self.name()));
        match self.kind {
            ValueKind::Switch => text.parse().map(toml::Value::Boolean).map_err(|_| wrong("true or false")),
            ValueKind::Whole => text.parse().map(toml::Value::Integer).map_err(|_| wrong("a whole number")),
            ValueKind::Number => text.parse().map(toml::Value::Float).map_err(|_| wrong("a number")),
            ValueKind::Text => Ok(toml::Value::String(text.to_owned())),
            ValueKind::Texts => Ok(toml::Value::Array(vec![toml::Value::String(text.to_owned())])),
            ValueKind::Numbers => {
                let pair = text.rsplit_once('=').and_then(|(name, number)| Some((name, number.parse().ok()?)));
                let (name, number) = pair.ok_or_else(|| wrong("SOURCE=WEIGHT, such as chat.jsonl=0.5"))?;
                Ok(toml::Value::Table([(name.to_owned(), toml::Value::Float(number))].into_iter().collect()))
            }
        }
    }

    /// Parses `text` and adds the value to a table: an option that is given several times keeps all its values.
    pub(crate) fn add(&self, table: &mut toml::Table, text: &str) -> Result<()> {
        let value = self.value(text)?;
        match (table.get_mut(&self.name()), value) {
            (Some(toml::Value::Array(known)), toml::Value::Array(more)) => known.extend(more),
            (Some(toml::Value::Table(known)), toml::Value::Table(more)) => known.extend(more),
            (_, value) => drop(table.insert(self.name(), value)),
        }
        Ok(())
    }
}

impl OptionGroup {
    pub(crate) const ALL: [OptionGroup; 7] = [
        OptionGroup::Run,
        OptionGroup::Loss,
        OptionGroup::Lora,
        OptionGroup::Optimiser,
        OptionGroup::Looking,
        OptionGroup::Data,
        OptionGroup::Expert,
    ];

    pub(crate) fn title(self) -> &'static str {
        match self {
            OptionGroup::Run => "Run",
            OptionGroup::Loss => "Loss",
            OptionGroup::Lora => "LoRA",
            OptionGroup::Optimiser => "Optimiser",
            OptionGroup::Looking => "Evaluation and checkpoints",
            OptionGroup::Data => "Data",
            OptionGroup::Expert => "For --set and --config",
        }
    }
}

/// Maps the type of an option to the kind of value that it takes.
pub(crate) trait Typed {
    const KIND: ValueKind;
}

macro_rules! typed {
    ($($kind:ident: $($type:ty)*;)*) => { $($(impl Typed for $type { const KIND: ValueKind = ValueKind::$kind; })*)* };
}

typed! {
    Switch: bool;
    Whole: u64 usize;
    Number: f32 f64;
    Text: String PathBuf Dtype Stored Format Supervise Method Normaliser Shape Keep;
    Texts: Vec<String>;
    Numbers: BTreeMap<String, f64>;
}

impl<T: Typed> Typed for Option<T> {
    const KIND: ValueKind = T::KIND;
}

/// Names in other programs (Transformers, LLaMA-Factory, axolotl), with underscores, of options that have a different name here.
const SAME: &[(&str, &str)] = &[
    ("model_name_or_path", "model"),
    ("base_model", "model"),
    ("output_dir", "out"),
    ("eaft_k", "top-k"),
    ("lora_rank", "lora-r"),
    ("lora_target", "lora-targets"),
    ("lora_target_modules", "lora-targets"),
    ("learning_rate", "lr"),
    ("lr_scheduler_type", "schedule"),
    ("lr_scheduler", "schedule"),
    ("num_train_epochs", "epochs"),
    ("num_epochs", "epochs"),
    ("adam_beta1", "beta1"),
    ("adam_beta2", "beta2"),
    ("adam_epsilon", "eps"),
    ("max_grad_norm", "clip"),
    ("cutoff_len", "max-len"),
    ("max_length", "max-len"),
    ("sequence_len", "max-len"),
    ("max_seq_length", "max-len"),
    ("val_size", "validation-share"),
    ("val_set_size", "validation-share"),
    ("eval_steps", "eval-every"),
    ("save_steps", "save-every"),
    ("save_total_limit", "keep-checkpoints"),
    ("early_stopping_patience", "stop-after-worse"),
    ("early_stopping_steps", "stop-after-worse"),
];

const BATCH: &str =
    "Use batch-size, the sequences per optimiser step: per-device batch size times accumulation steps times devices.";
const LORA: &str = "Use lora = true for LoRA, or leave it out to train all weights; other methods are not supported.";
const ALWAYS: &str = "Leave it out: rows are always packed without padding and never attend to each other; batch-size counts rows, whereas there, with packing, a batch counts packs.";
const ANSWERS: &str =
    "Leave it out for true: only answers are learnt. For false use supervise = \"all\", which learns the whole text.";
const RANK: &str =
    "For true, which scales by alpha / sqrt(r), use lora-alpha = alpha times the square root of r; leave it out for false.";
const TEMPLATE: &str = "Use chat-template, the path of a Jinja file.";
const LOOKS: &str = "Use eval-every, the steps between evaluations; `train --dry-run` shows how many steps the run has.";
const SAVES: &str = "Use save-every, the steps between checkpoints; the default is one per epoch.";
const ADAMW: &str =
    "Leave it out for adamw_torch and the like: AdamW is the only optimiser; any other would be a different training.";
const ADAPTER: &str = "Merge it with `diagnose export ADAPTER --out DIR` and give model = \"DIR/model\"; an adapter cannot be trained further directly.";
const WHOLE: &str =
    "Use supervise = \"all\" for true, which learns the whole text, and leave it out for false: only answers are learnt.";

/// Options of other programs that have no counterpart here, and what to give instead.
const INSTEAD: &[(&str, &str)] = &[
    ("gradient_accumulation_steps", BATCH),
    ("per_device_train_batch_size", BATCH),
    ("micro_batch_size", BATCH),
    ("finetuning_type", LORA),
    ("adapter", LORA),
    ("packing", ALWAYS),
    ("neat_packing", ALWAYS),
    ("packing_strategy", ALWAYS),
    ("padding_free", ALWAYS),
    ("pad_to_sequence_len", ALWAYS),
    ("eval_packing", ALWAYS),
    ("eval_sample_packing", ALWAYS),
    ("sample_packing", ALWAYS),
    ("use_eaft", "Use method = \"eaft\"."),
    ("use_eaft_loss", "Use method = \"eaft\"."),
    ("eaft_alpha", "Use gate = \"power:N\" with this N."),
    ("use_dft_loss", "Use method = \"dft\"."),
    ("use_asft_loss", "Use method = \"asft\"."),
    ("asft_alpha", "Use kl-weight."),
    ("bf16", "Use dtype = \"bf16\"."),
    ("fp16", "Use dtype = \"bf16\"."),
    ("dataset", "Use datasets, a list of files."),
    (
        "max_samples",
        "Use limit, the first records of all files together; LLaMA-Factory's limit applies to each data set, held-out ones included.",
    ),
    ("eval_dataset", "Use validation, a list of files."),
    ("test_datasets", "Use validation, a list of files."),
    ("load_best_model_at_end", "Use keep = \"best\"."),
    ("metric_for_best_model", "Leave it out for eval_loss: keep = \"best\" always uses the held-out loss."),
    (
        "template",
        "The model's own chat template is used, unless chat-template names another file; LLaMA-Factory's own template of this name may produce different tokens.",
    ),
    ("chat_template_jinja", TEMPLATE),
    ("chat_template_path", TEMPLATE),
    ("eot_tokens", "Leave it out: the token that ends a turn in the chat template is learnt with the turn."),
    ("enable_thinking", "Use chat-template-kwargs, such as {\"enable_thinking\": false}, if the model's chat template uses it."),
    ("default_system", "Use system, which is added to conversations without a system prompt."),
    ("default_system_message", "Use system, which is added to conversations without a system prompt."),
    ("dataset_name", "Use datasets, a list of files."),
    ("dataset_text_field", "Use map, such as map = [\"text=COLUMN\"]."),
    ("assistant_only_loss", ANSWERS),
    ("completion_only_loss", ANSWERS),
    ("loss_type", "Leave it out for nll, and give method = \"dft\" for dft."),
    ("stage", "Leave it out for sft: other stages are not supported."),
    ("excess_length_strategy", "Leave it out for truncate, which is what max-len does; for drop remove such rows from the data."),
    ("truncation_mode", "Leave it out for keep_start, which is what max-len does."),
    ("mix_strategy", "Use mix, how often the rows of each source appear."),
    ("interleave_probs", "Use mix, how often the rows of each source appear."),
    ("adapter_name_or_path", ADAPTER),
    ("lora_model_dir", ADAPTER),
    ("use_peft", LORA),
    ("use_rslora", RANK),
    ("peft_use_rslora", RANK),
    ("lora_target_linear", "Leave it out for true: by default all linear modules get adapters. For false give lora-targets."),
    ("torch_dtype", "Use dtype = \"bf16\" or \"f32\", the precision of the products; trained weights are kept in f32."),
    ("data_seed", "Use seed."),
    ("eval_strategy", LOOKS),
    ("evaluation_strategy", LOOKS),
    ("evals_per_epoch", LOOKS),
    ("save_strategy", SAVES),
    ("saves_per_epoch", SAVES),
    ("resume_from_checkpoint", "Leave it out: the same command resumes."),
    (
        "average_tokens_across_devices",
        "Leave it out for true, the default there: the loss is the mean over all tokens of a step.",
    ),
    ("optim", ADAMW),
    ("optimizer", ADAMW),
    ("mask_history", "Use supervise = \"last\" for true, and leave it out for false: every answer is learnt."),
    ("train_on_prompt", WHOLE),
    ("train_on_inputs", WHOLE),
    (
        "roles_to_train",
        "Leave it out: the assistant's turns are learnt; choose with supervise (assistant, last, or all for the whole text), and for single messages with `weight` or `train`.",
    ),
    ("train_on_eos", "Leave it out: the token that ends a turn is learnt with it, as `turn` says, which is axolotl's default."),
    ("gradient_checkpointing", "Use activation-memory, the MiB of activations to keep instead of recomputing."),
    ("deepspeed", "Leave it out: --emit writes a configuration for several devices."),
];

/// The names of option `name` in other programs.
pub(crate) fn other_names(name: &str) -> impl Iterator<Item = &'static str> {
    SAME.iter().filter(move |(_, ours)| *ours == name).map(|(theirs, _)| *theirs)
}

/// Names in other programs that [`instead_of`] answers.
pub(crate) fn answered_names() -> impl Iterator<Item = &'static str> {
    INSTEAD.iter().map(|(name, _)| *name)
}

/// What to give instead of another program's option that has no counterpart here.
pub(crate) fn instead_of(name: &str) -> Option<&'static str> {
    let theirs = name.replace('-', "_");
    INSTEAD.iter().find(|(name, _)| *name == theirs).map(|(_, answer)| *answer)
}

/// Our name of an option, given by our name or another program's, with dashes or underscores; an unknown name stays as it is,
/// with dashes.
pub(crate) fn our_name(name: &str) -> Result<String> {
    if let Some(answer) = instead_of(name) {
        return Err(Error::usage(format!("`{name}` is not an option of this program")).cure(answer));
    }
    let theirs = name.replace('-', "_");
    let same = SAME.iter().find(|(name, _)| *name == theirs);
    Ok(same.map_or_else(|| name.replace('_', "-"), |(_, ours)| (*ours).to_owned()))
}
