//! The options of a training run: a TOML or YAML file, overridden by the command line, with defaults for the rest. The resolved
//! options are saved beside the results as `train.toml`, which `--config` accepts.
//!
//! Each option is declared once, below: its name, type, default and help text. The struct, the command line, `--help` and the
//! reading of files are derived from this.

mod check;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::adamw::AdamWOptions;
use super::declared::{Declared, Emitted, OptionGroup, Typed, ValueKind};
use super::elsewhere::{self, instead_of, our_name};
use super::keep::Keep;
use super::schedule::Shape;
use crate::dataset::{Choice, FieldMap, Format, ReadOptions, RoleMap};
use crate::diagnosis::gate::{Beside, EAFT, Gate, Method, Normaliser};
use crate::error::{Context, Error, Result};
use crate::kernels::{Dtype, Stored};
use crate::model::{LoraOptions, ModelName};
use crate::spelling::nearest;
use crate::tokens::{DEFAULT_MAX_LEN, RenderOptions, Supervise};

/// Declares the options: groups of fields, each with its type, its default, what `--emit` does with it, and its help text. The help
/// text may end with a default that is not a number in brackets; help adds the numeric ones.
macro_rules! options {
    ($($group:ident { $($(#[doc = $help:literal])+ $name:ident: $type:ty = $default:expr => $emitted:ident;)* })*) => {
        /// All options of a training run; the names are those of the command line.
        #[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
        #[serde(rename_all = "kebab-case", deny_unknown_fields, default)]
        pub(crate) struct Options {
            $($($(#[doc = $help])+ pub $name: $type,)*)*
        }

        impl Default for Options {
            fn default() -> Options {
                Options { $($($name: $default,)*)* }
            }
        }

        /// All options, in the order in which help shows them.
        pub(crate) const DECLARED: &[Declared] = &[
            $($(Declared {
                field: stringify!($name),
                group: OptionGroup::$group,
                kind: <$type as Typed>::KIND,
                emitted: Emitted::$emitted,
                lines: concat!($($help, "\n"),+),
            },)*)*
        ];

        impl Options {
            /// The options that differ from their defaults.
            pub(crate) fn changed(&self) -> impl Iterator<Item = &'static Declared> {
                let plain = Options::default();
                let differs = [$($(self.$name != plain.$name,)*)*];
                DECLARED.iter().zip(differs).filter(|(_, differs)| *differs).map(|(declared, _)| declared)
            }
        }
    };
}

options! {
    Run {
        /// Data files (JSONL, JSON, CSV, Parquet, Arrow; also .gz, .zst, .bz2, .xz or .zip), folders, globs, or `-` for standard input.
        datasets: Vec<String> = Vec::new() => Rows;
        /// A Hugging Face model folder, a .gguf file, a LoRA adapter folder, or a hub id [default: SmolLM2-135M-Instruct].
        model: Option<String> = None => Config;
        /// For an adapter: its base model [default: the one named in its config].
        base: Option<String> = None => NoCounterpart;
        /// The run folder [default: one under runs/].
        out: Option<PathBuf> = None => Config;
        /// Precision of the products: f32, bf16, or bf16x3 (each factor as two bf16: close to f32); trained weights are kept in f32.
        dtype: Dtype = Dtype::F32 => Config;
    }
    Loss {
        /// Loss (`diagnose guide training` describes them): METHODS.
        method: Method = EAFT => Config;
        /// EAFT's curve: linear, power:N, sigmoid:A,B, mask:Q, llama-factory or axolotl [default: linear].
        gate: Option<String> = None => Config;
        /// Divisor of EAFT's entropy: ln-k (the paper), 3.0 (LLaMA-Factory) or none (axolotl) [default: ln-k].
        normaliser: Option<Normaliser> = None => Config;
        /// K of EAFT's top-K entropy [default: 20].
        top_k: Option<usize> = None => Config;
        /// Rows whose conflicts should be learnt, such as knowledge edits, and get full weight: a source, a row's own id, or
        /// edits.jsonl:17; repeatable.
        intended: Vec<String> = Vec::new() => NoCounterpart;
    }
    Lora {
        /// Train low-rank adapters (LoRA) instead of all weights.
        lora: bool = false => Config;
        /// LoRA rank.
        lora_r: usize = 16 => Config;
        /// LoRA alpha; adapters are scaled by alpha / r [default: 2 r].
        lora_alpha: Option<f64> = None => Config;
        /// Also save the base model with the adapter merged into it.
        merge: bool = false => SetThere;
    }
    Optimiser {
        /// Peak learning rate [default: 1e-5, with --lora 1e-4].
        lr: Option<f64> = None => Config;
        /// Passes over the data; a fraction ends within an epoch.
        epochs: f64 = 1.0 => Config;
        /// Train for this many optimiser steps instead of --epochs, over as many epochs as that takes.
        max_steps: Option<u64> = None => Config;
        /// Sequences per optimiser step.
        batch_size: usize = 16 => Config;
        /// Warm-up steps; a number below 1 is a share of all steps [default: from --warmup-ratio].
        warmup_steps: Option<f64> = None => Config;
    }
    Looking {
        /// Share of the rows to hold out for evaluation during training.
        validation_share: f64 = 0.0 => Config;
        /// A file of held-out rows, read and masked like the data; repeatable.
        validation: Vec<String> = Vec::new() => SetThere;
        /// Steps between evaluations on held-out rows and general text [default: a tenth of the run].
        eval_every: Option<u64> = None => Config;
        /// Which model to save at the end: last, or best (lowest held-out loss) [default: last, with --stop-after-worse
        /// best].
        keep: Option<Keep> = None => SetThere;
        /// End the run after this many evaluations in a row without a new lowest held-out loss [default: never].
        stop_after_worse: Option<u64> = None => SetThere;
        /// Steps between checkpoints [default: an epoch].
        save_every: Option<u64> = None => Config;
    }
    Data {
        /// Longest sequence in tokens; longer ones are cut at their end and counted [default: 2048, or the model's limit if
        /// lower].
        max_len: Option<usize> = None => Config;
        /// Read only the first N records [default: all].
        limit: Option<u64> = None => Rows;
        /// Read N records drawn at random by --seed; a larger sample contains the smaller one [default: all].
        sample: Option<u64> = None => Rows;
        /// How often the rows of a source appear in an epoch: --mix chat.jsonl=0.5 takes one half in the first, the other in the second.
        mix: BTreeMap<String, f64> = BTreeMap::new() => NoCounterpart;
        /// Random seed for the order of rows, the adapters' initial weights, dropout and the held-out rows.
        seed: u64 = 0 => Config;
    }
    Expert {
        /// Weight of the divergence from the base model [default: 0.5 in sft-kl, 0.1 in asft].
        kl_weight: Option<f32> = None => Config;
        /// Optimiser steps between snapshots of psft's old model [default: 8].
        snapshot_every: Option<u64> = None => NoCounterpart;
        /// LoRA dropout.
        lora_dropout: f32 = 0.0 => Config;
        /// Modules that get adapters, such as q_proj,v_proj [default: all linear modules of the blocks; for mixtures of experts see
        /// `diagnose guide models`].
        lora_targets: Vec<String> = Vec::new() => Config;
        /// Learning-rate schedule: cosine, linear, constant (without warm-up) or constant-with-warmup.
        schedule: Shape = Shape::Cosine => Config;
        /// Share of the steps that are warm-up [default: 0.03].
        warmup_ratio: Option<f64> = None => Config;
        /// AdamW's beta1: decay of the mean gradient.
        beta1: f64 = 0.9 => Config;
        /// AdamW's beta2: decay of the mean squared gradient.
        beta2: f64 = 0.999 => Config;
        /// AdamW's epsilon, added to the denominator.
        eps: f64 = 1e-8 => Config;
        /// Weight decay (norms and biases excluded).
        weight_decay: f64 = 0.0 => Config;
        /// Number format of AdamW's moments: f32, or bf16 with stochastic rounding, which saves a quarter of the memory and changes
        /// held-out losses in the fourth decimal [default: f32 for LoRA, else bf16].
        moments: Option<Stored> = None => SetThere;
        /// Maximum gradient norm; 0 disables clipping.
        clip: f64 = 1.0 => Config;
        /// Tokens per forward pass; changes memory and speed, not results (except the masks of --lora-dropout).
        pack_tokens: usize = 2048 => SetThere;
        /// MiB of activations to keep instead of recomputing; changes memory and speed, not results [default: 1024 for LoRA, else
        /// 256].
        activation_memory: Option<usize> = None => SetThere;
        /// Number format of the saved model: f32 or bf16; adapters are saved in f32.
        save_dtype: Stored = Stored::F32 => SetThere;
        /// Number of checkpoints to keep, in addition to the one with the lowest held-out loss if --keep is best.
        keep_checkpoints: usize = 1 => Config;
        /// Data format [default: detected].
        format: Option<Format> = None => Rows;
        /// Which column a field is read from, as FIELD=COLUMN, for data in no known format.
        map: Vec<String> = Vec::new() => Rows;
        /// Role of a speaker in the data, as NAME=ROLE, such as patient=user.
        role: Vec<String> = Vec::new() => Rows;
        /// Stop at the first bad row instead of skipping it.
        strict: bool = false => Rows;
        /// System prompt for conversations without one [default: none].
        system: Option<String> = None => Template;
        /// Jinja file with a chat template to use instead of the model's own; it is saved with the model [default: the model's].
        chat_template: Option<PathBuf> = None => Config;
        /// Variables for the chat template as a JSON object, such as {"enable_thinking": false}; a row's own take precedence [default: none].
        chat_template_kwargs: Option<String> = None => Config;
        /// Append the end token to plain texts that do not end with it, as TRL does.
        append_eos: bool = false => NoCounterpart;
        /// Which turns are supervised: assistant, last or all.
        supervise: Supervise = Supervise::Assistant => Config;
    }
}

impl Options {
    /// Reads `file`, applies `overrides` (with the same keys as the file), and checks the result.
    pub(crate) fn resolve(file: Option<&Path>, overrides: toml::Table) -> Result<Options> {
        Ok(Options::resolve_with_remarks(file, overrides)?.0)
    }

    /// Like [`Options::resolve`], and also returns warnings about options of the file that other programs treat differently.
    pub(crate) fn resolve_with_remarks(file: Option<&Path>, overrides: toml::Table) -> Result<(Options, Vec<String>)> {
        let (mut table, mut remarks) = file.map_or(Ok(Default::default()), read_table)?;
        remarks.retain(|(name, _)| !overrides.contains_key(name));
        // Naming an option is a request, even if the value is the default; but a run's own file names every option, `lora` too.
        let of_adapters = |table: &toml::Table| table.keys().find(|name| name.starts_with("lora-")).cloned();
        let of_adapters = of_adapters(&overrides).or_else(|| of_adapters(&table).filter(|_| !table.contains_key("lora")));
        // An option on the command line overrides its rival in the file, whichever of the two names is used where.
        for [a, b] in RIVALS {
            match [a, b].map(|name| overrides.contains_key(name)) {
                [true, true] => {
                    return Err(Error::usage(format!("--{a} and --{b} were both given, and they exclude each other"))
                        .cure("Leave one of them out."));
                }
                [true, false] => drop(table.remove(b)),
                [false, true] => drop(table.remove(a)),
                [false, false] => {}
            }
        }
        table.extend(overrides);
        for declared in DECLARED.iter().filter(|declared| declared.kind == ValueKind::Texts) {
            // LLaMA-Factory's files may have a string in place of a list with one element.
            if let Some(value @ toml::Value::String(_)) = table.get_mut(&declared.name()) {
                *value = toml::Value::Array(vec![value.clone()]);
            }
        }
        let options: Options = table.try_into().map_err(|error: toml::de::Error| wrong_option(&error.to_string(), file))?;
        options.check()?;
        match of_adapters {
            Some(name) if !options.lora => Err(without_adapters(&name)),
            _ => Ok((options, remarks.into_iter().map(|(_, remark)| remark.to_owned()).collect())),
        }
    }

    /// The options as a file that `--config` accepts.
    pub(crate) fn to_toml(&self) -> Result<String> {
        toml::to_string(self).context("cannot write the options")
    }

    pub(crate) fn model_name(&self) -> ModelName {
        ModelName { written: self.model.clone(), base: self.base.clone() }
    }

    /// Are there held-out rows?
    pub(crate) fn holds_out(&self) -> bool {
        self.validation_share > 0.0 || !self.validation.is_empty()
    }

    /// Which model is the result.
    pub(crate) fn kept(&self) -> Keep {
        self.keep.unwrap_or(if self.stop_after_worse.is_some() { Keep::Best } else { Keep::Last })
    }

    /// Which records are read.
    pub(crate) fn choice(&self) -> Choice {
        match self.sample {
            Some(n) => Choice::Random { n, seed: self.seed },
            None => Choice::first(self.limit),
        }
    }

    /// The gate that weights the tokens: the method's, or EAFT's with the requested options.
    pub(crate) fn gate(&self) -> Result<Gate> {
        self.method.gate_under(self.gate.as_deref(), self.normaliser, self.top_k)
    }

    /// The number of optimiser steps between snapshots, for the method that takes them.
    pub(crate) fn snapshot_every(&self) -> Option<u64> {
        match self.method.beside {
            Beside::Snapshots { every } => Some(self.snapshot_every.unwrap_or(every)),
            _ => None,
        }
    }

    pub(crate) fn learning_rate(&self) -> f64 {
        self.lr.unwrap_or(if self.lora { 1e-4 } else { 1e-5 })
    }

    /// The longest sequence. Once the model is known, its limit is stored in `max_len` if that is below the default.
    pub(crate) fn max_len(&self) -> usize {
        self.max_len.unwrap_or(DEFAULT_MAX_LEN)
    }

    pub(crate) fn render(&self) -> Result<RenderOptions> {
        Ok(RenderOptions {
            system: self.system.clone(),
            max_len: self.max_len(),
            supervise: self.supervise,
            chat_template: self.chat_template.clone(),
            template_switches: RenderOptions::parse_switches(self.chat_template_kwargs.as_deref())?,
            append_eos: self.append_eos,
        })
    }

    pub(crate) fn read(&self) -> Result<ReadOptions> {
        Ok(ReadOptions {
            format: self.format,
            mapping: FieldMap::parse(&self.map)?,
            roles: RoleMap::parse(&self.role)?,
            strict: self.strict,
        })
    }

    pub(crate) fn lora(&self) -> Option<LoraOptions> {
        self.lora.then(|| LoraOptions {
            rank: self.lora_r,
            alpha: self.lora_alpha.unwrap_or(2.0 * self.lora_r as f64),
            dropout: self.lora_dropout,
            targets: self.lora_targets(),
        })
    }

    /// The modules to adapt. LLaMA-Factory writes a comma-separated text, and `all` alone for all modules; PEFT writes
    /// `all-linear`.
    fn lora_targets(&self) -> Vec<String> {
        let names: Vec<&str> = self.lora_targets.iter().flat_map(|names| names.split(',')).map(str::trim).collect();
        match names[..] {
            ["all" | "all-linear"] => Vec::new(),
            _ => names.into_iter().map(str::to_owned).collect(),
        }
    }

    /// The number of warm-up steps in a run of `total` steps.
    pub(crate) fn warmup(&self, total: u64) -> u64 {
        if self.schedule == Shape::Constant {
            return 0;
        }
        let of_share = |share: f64| (share * total as f64).ceil() as u64;
        // As in Transformers' `TrainingArguments`: if both are given, the steps apply unless they are 0; a value below 1 is a
        // share.
        match self.warmup_steps.filter(|steps| *steps > 0.0 || self.warmup_ratio.is_none()) {
            None => of_share(self.warmup_ratio.unwrap_or(0.03)),
            Some(share) if share < 1.0 => of_share(share),
            Some(steps) => steps as u64,
        }
    }

    /// Must the base model be loaded beside the trained one? With adapters it suffices to switch these off.
    pub(crate) fn needs_base(&self) -> bool {
        self.method.needs_reference() && !self.lora
    }

    /// How many bytes of activations to keep.
    pub(crate) fn activation_bytes(&self) -> usize {
        self.activation_memory.unwrap_or(if self.lora { 1024 } else { 256 }).saturating_mul(1 << 20)
    }

    pub(crate) fn adamw(&self) -> AdamWOptions {
        let Options { beta1, beta2, eps, weight_decay, .. } = *self;
        let moments = self.moments.unwrap_or(if self.lora { Stored::F32 } else { Stored::Bf16 });
        AdamWOptions { beta1, beta2, eps, weight_decay, moments }
    }

    /// The options without those that do not change the result: a run can resume another one whose identity is equal.
    pub(crate) fn identity(&self) -> Options {
        Options {
            out: None,
            activation_memory: None,
            save_every: None,
            keep_checkpoints: Options::default().keep_checkpoints,
            ..self.clone()
        }
    }
}

/// Builds an error from the text of another one, which consists of the message, optionally a cure on further lines, and "in
/// `lr`".
fn wrong_option(text: &str, file: Option<&Path>) -> Error {
    let text = text.trim_end();
    let (what, name) = match text.strip_suffix('`').and_then(|text| text.rsplit_once("\nin `")) {
        Some((what, name)) => (what, format!("{name}: ")),
        None => (text, String::new()),
    };
    let (message, cure) = what.split_once('\n').map_or((what, ""), |(message, cure)| (message, cure.trim()));
    let error = match file {
        Some(path) => Error::usage(format!("wrong option: {name}{message}")).at(path),
        None => Error::usage(format!("{name}{message}")),
    };
    if cure.is_empty() { error } else { error.cure(cure.replace('\n', " ")) }
}

fn without_adapters(name: &str) -> Error {
    Error::usage(format!("--{name} is for low-rank adapters, but all weights are to be trained"))
        .cure(format!("Give --lora, too (`lora = true` in a file), or leave --{name} out."))
}

const READ_BY_NAME: &str = "A file whose name ends in .yaml or .yml is read as YAML, and any other as TOML.";

/// Reads the options of a file under our names. Accepts other programs' names and underscores for dashes; in YAML, `null` leaves
/// an option out. Also returns warnings, under our names, about options that other programs treat differently.
fn read_table(path: &Path) -> Result<(toml::Table, Vec<(String, &'static str)>)> {
    let text = std::fs::read_to_string(path).context_at(path, "cannot read the configuration")?;
    let is_yaml = path.extension().is_some_and(|extension| extension == "yaml" || extension == "yml");
    let table = match is_yaml {
        true => {
            let entries: BTreeMap<String, Option<toml::Value>> = serde_saphyr::from_str(&text)
                .map_err(|error| Error::usage("this is not a YAML mapping").at(path).caused_by(error).cure(READ_BY_NAME))?;
            entries.into_iter().filter_map(|(name, value)| Some((name, value?))).collect()
        }
        false => text
            .parse::<toml::Table>()
            .map_err(|error| Error::usage("this is not TOML").at(path).caused_by(error).cure(READ_BY_NAME))?,
    };
    let table: toml::Table = table.into_iter().filter(|(name, value)| !elsewhere::is_off(name, value)).collect();
    refuse_unknown(&table).map_err(|error| error.at(path))?;
    let (mut ours, mut remarks) = (toml::Table::new(), Vec::new());
    for (name, value) in table {
        let our_name = our_name(&name).map_err(|error| error.at(path))?;
        remarks.extend(elsewhere::remark(&name).map(|remark| (our_name.clone(), remark)));
        let Some(value) = elsewhere::value(&name, &our_name, value).map_err(|error| error.at(path))? else { continue };
        let value = unquoted(&our_name, value).map_err(|error| error.at(path))?;
        if ours.insert(our_name.clone(), value).is_some() {
            return Err(Error::usage(format!("`{name}` is another name of `{our_name}`, which the file also has"))
                .at(path)
                .cure("Keep one of them."));
        }
    }
    Ok((ours, remarks))
}

/// Converts a string to a number if the option is numeric: PyYAML reads `2e-5` as a string, which other trainers convert as well.
fn unquoted(name: &str, value: toml::Value) -> Result<toml::Value> {
    let kind = DECLARED.iter().find(|option| option.name() == name).map(|option| option.kind);
    let (Some(kind @ (ValueKind::Whole | ValueKind::Number)), toml::Value::String(text)) = (kind, &value) else {
        return Ok(value);
    };
    let whole = text.trim().parse().ok().map(toml::Value::Integer);
    let number = || text.trim().parse().ok().map(toml::Value::Float).filter(|_| kind == ValueKind::Number);
    whole.or_else(number).ok_or_else(|| {
        let expected = if kind == ValueKind::Whole { "a whole number" } else { "a number" };
        Error::usage(format!("wrong option: {name}: expected {expected}, found `{text}`"))
            .cure("Write it without quotes, for example 2.0e-5 or 8.")
    })
}

/// Returns an error that names all unknown options, each with what to give instead, since a file of another program has several.
fn refuse_unknown(table: &toml::Table) -> Result<()> {
    let answer = |name: &String| {
        if let Some(answer) = instead_of(name) {
            return Some(format!("`{name}`: {answer}"));
        }
        let ours = our_name(name).ok()?;
        let names = || DECLARED.iter().map(Declared::name).collect::<Vec<_>>();
        if names().contains(&ours) {
            return None;
        }
        if let Some(answer) = elsewhere::answer(name) {
            return Some(format!("`{name}`: {answer}"));
        }
        Some(match nearest(&ours, names().iter().map(String::as_str)) {
            Some(meant) => format!("`{name}`: did you mean {meant}?"),
            None => {
                format!("`{name}`: unknown to this program; if it affects the training, the result will differ without it.")
            }
        })
    };
    let answers: Vec<String> = table.keys().filter_map(answer).collect();
    let what = match answers.len() {
        0 => return Ok(()),
        1 => "an option of the file is not an option of this program".to_owned(),
        n => format!("{n} options of the file are not options of this program"),
    };
    Err(Error::usage(what).cure(format!("{}\n  `diagnose train --list-options` shows them all.", answers.join("\n  "))))
}

/// Pairs of options that exclude each other.
const RIVALS: [[&str; 2]; 2] = [["epochs", "max-steps"], ["warmup-ratio", "warmup-steps"]];

#[cfg(test)]
mod tests;
