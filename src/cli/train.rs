//! `diagnose train DATASET...`: fine-tune with EAFT or a loss it is compared with.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use serde::Serialize;

use super::output;
use super::progress::Terminal;
use crate::diagnosis::gate::{EAFT, method_names};
use crate::error::{Context, Error, Result};
use crate::format::thousands;
use crate::jobs::train::{Job, Outcome, Plan, TrainRecord, Trainer};
use crate::jobs::{score, train};
use crate::tokens::Audit;
use crate::train::metrics::StepMetrics;
use crate::train::options::Options;

/// Fine-tune a model on the data: full or with low-rank adapters, with EAFT or the losses it is compared with
///
/// Every option may stand in the file given with --config, under the same name without the dashes.
#[derive(clap::Args, Serialize)]
#[serde(rename_all = "kebab-case")]
pub struct Args {
    /// Data files (JSONL, JSON, CSV, Parquet, each also .gz or .zst), globs
    #[arg(value_name = "DATASET")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    datasets: Vec<String>,

    /// Options from a TOML or YAML file; those on the command line go over it
    #[arg(long, value_name = "FILE")]
    #[serde(skip)]
    config: Option<PathBuf>,

    /// Print the plan (steps, tokens, memory, what the loss does with the data) and train nothing
    #[arg(long)]
    #[serde(skip)]
    dry_run: bool,

    /// Write the same training as a configuration of llama-factory or axolotl into --out, and train nothing
    #[arg(long, value_name = "PROGRAM")]
    #[serde(skip)]
    emit: Option<String>,

    /// Print the result as JSON
    #[arg(long)]
    #[serde(skip)]
    json: bool,

    /// A Hugging Face model folder, a .gguf file, a LoRA adapter folder, or a hub id; SmolLM2-135M-Instruct by default
    #[arg(long, value_name = "REF")]
    #[serde(skip_serializing_if = "Option::is_none")]
    model: Option<String>,

    /// The run folder; by default one under runs/
    #[arg(long, value_name = "DIR")]
    #[serde(skip_serializing_if = "Option::is_none")]
    out: Option<PathBuf>,

    #[arg(long, help = format!("{}  [default: {EAFT}]", method_names()), help_heading = "Loss")]
    #[serde(skip_serializing_if = "Option::is_none")]
    method: Option<String>,

    /// EAFT's curve: linear, power:N, sigmoid:A,B, mask:Q, llama-factory or axolotl  [default: linear]
    #[arg(long, help_heading = "Loss")]
    #[serde(skip_serializing_if = "Option::is_none")]
    gate: Option<String>,

    /// What EAFT's entropy is divided by: ln-k (the paper), 3.0 (LLaMA-Factory) or none (axolotl)  [default: ln-k]
    #[arg(long, help_heading = "Loss")]
    #[serde(skip_serializing_if = "Option::is_none")]
    normaliser: Option<String>,

    /// K of the top-K entropy  [default: 20]
    #[arg(long, value_name = "K", help_heading = "Loss")]
    #[serde(skip_serializing_if = "Option::is_none")]
    top_k: Option<usize>,

    /// Factor of the divergence from the base model  [default: 0.5 in sft-kl, 0.1 in asft]
    #[arg(long, value_name = "BETA", help_heading = "Loss")]
    #[serde(skip_serializing_if = "Option::is_none")]
    kl_weight: Option<f32>,

    /// Optimiser steps from one snapshot of psft's old model to the next  [default: 8]
    #[arg(long, value_name = "STEPS", help_heading = "Loss")]
    #[serde(skip_serializing_if = "Option::is_none")]
    snapshot_every: Option<u64>,

    /// Rows whose conflicts are meant to be learnt, such as knowledge edits: they get full weight. A source (as in --mix), a
    /// row's own id, or a place such as edits.jsonl:17; may be given several times
    #[arg(long, value_name = "ROWS", help_heading = "Loss")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    intended: Vec<String>,

    /// Train low-rank adapters instead of all weights
    #[arg(long, help_heading = "LoRA")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    lora: bool,

    /// Rank  [default: 16]
    #[arg(long, value_name = "R", help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_r: Option<usize>,

    /// The adapter counts alpha / r  [default: 2 r]
    #[arg(long, value_name = "ALPHA", help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_alpha: Option<f64>,

    /// [default: 0]
    #[arg(long, value_name = "P", help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lora_dropout: Option<f32>,

    /// Modules, such as q_proj,v_proj  [default: all linear ones of the blocks]
    #[arg(long, value_name = "NAMES", value_delimiter = ',', help_heading = "LoRA")]
    #[serde(skip_serializing_if = "Vec::is_empty")]
    lora_targets: Vec<String>,

    /// Save the base with the adapter added, too
    #[arg(long, help_heading = "LoRA")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    merge: bool,

    /// Peak learning rate  [default: 1e-5, with --lora 1e-4]
    #[arg(long, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    lr: Option<f64>,

    /// cosine, linear or constant  [default: cosine]
    #[arg(long, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    schedule: Option<String>,

    /// Share of the steps over which the learning rate rises  [default: 0.03]
    #[arg(long, value_name = "SHARE", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_ratio: Option<f64>,

    /// The same in steps
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    warmup_steps: Option<u64>,

    /// [default: 1]
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    epochs: Option<u64>,

    /// Train for this many steps, over as many epochs as they take, instead of --epochs
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_steps: Option<u64>,

    /// Sequences of an optimiser step  [default: 16]
    #[arg(long, value_name = "N", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    batch_size: Option<usize>,

    /// [default: 0.9]
    #[arg(long, help_heading = "Optimiser", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    beta1: Option<f64>,

    /// [default: 0.999]
    #[arg(long, help_heading = "Optimiser", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    beta2: Option<f64>,

    /// [default: 1e-8]
    #[arg(long, help_heading = "Optimiser", hide_short_help = true)]
    #[serde(skip_serializing_if = "Option::is_none")]
    eps: Option<f64>,

    /// Of matrices; norms and biases do not decay  [default: 0]
    #[arg(long, help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    weight_decay: Option<f64>,

    /// Number format of the optimiser's moments: f32, or bf16 (rounded at random) for a quarter less memory  [default: f32 for
    /// LoRA, else bf16]
    #[arg(long, value_name = "DTYPE", help_heading = "Speed and memory")]
    #[serde(skip_serializing_if = "Option::is_none")]
    moments: Option<String>,

    /// Scale gradients of a larger norm to this one; 0 for none  [default: 1]
    #[arg(long, value_name = "NORM", help_heading = "Optimiser")]
    #[serde(skip_serializing_if = "Option::is_none")]
    clip: Option<f64>,

    /// Precision of the products: f32 or bf16; what learns is kept in f32  [default: f32]
    #[arg(long, help_heading = "Speed and memory")]
    #[serde(skip_serializing_if = "Option::is_none")]
    dtype: Option<String>,

    /// Number format of the saved model: f32 or bf16  [default: f32]
    #[arg(long, value_name = "DTYPE", help_heading = "Looking and saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    save_dtype: Option<String>,

    /// Tokens that go through the model together; changes no result  [default: 2048]
    #[arg(long, value_name = "TOKENS", help_heading = "Speed and memory")]
    #[serde(skip_serializing_if = "Option::is_none")]
    pack_tokens: Option<usize>,

    /// MiB of activations kept instead of computed again; changes no result  [default: 1024 for LoRA, else 128]
    #[arg(long, value_name = "MIB", help_heading = "Speed and memory")]
    #[serde(skip_serializing_if = "Option::is_none")]
    activation_memory: Option<usize>,

    /// Share of the rows held out and looked at now and then  [default: 0]
    #[arg(long, value_name = "SHARE", help_heading = "Looking and saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    validation_share: Option<f64>,

    /// Steps from one look at held-out rows and general text to the next  [default: a tenth of the run]
    #[arg(long, value_name = "STEPS", help_heading = "Looking and saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    eval_every: Option<u64>,

    /// Steps from one checkpoint to the next  [default: an epoch]
    #[arg(long, value_name = "STEPS", help_heading = "Looking and saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    save_every: Option<u64>,

    /// [default: 1]
    #[arg(long, value_name = "N", help_heading = "Looking and saving")]
    #[serde(skip_serializing_if = "Option::is_none")]
    keep_checkpoints: Option<usize>,

    /// Continue from the newest checkpoint in --out: the same command does so anyway, and this one fails if there is none
    #[arg(long, help_heading = "Looking and saving")]
    #[serde(skip)]
    resume: bool,

    /// Longest sequence in tokens; what is longer is cut at its end and counted  [default: 2048]
    #[arg(long, value_name = "TOKENS", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    max_len: Option<usize>,

    /// Read only the first N records
    #[arg(long, value_name = "N", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<u64>,

    /// Format of the data, where it is not to be guessed
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    format: Option<String>,

    /// Where a field comes from, for data of no known format
    #[arg(long = "map", value_name = "FIELD=COLUMN", help_heading = "Data")]
    #[serde(rename = "map", skip_serializing_if = "Vec::is_empty")]
    maps: Vec<String>,

    /// Stop at the first bad row instead of skipping it
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "std::ops::Not::not")]
    strict: bool,

    /// A system prompt for conversations that have none
    #[arg(long, value_name = "TEXT", help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    system: Option<String>,

    /// Which tokens count: assistant, last or all  [default: assistant]
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    supervise: Option<String>,

    /// How often the rows of a source appear in an epoch: `--mix chat.jsonl=0.5` takes another half each time
    #[arg(long = "mix", value_name = "SOURCE=WEIGHT", help_heading = "Data")]
    #[serde(skip)]
    mix: Vec<String>,

    /// Of the order of the rows, the adapters' first weights, dropout and the held-out rows  [default: 0]
    #[arg(long, help_heading = "Data")]
    #[serde(skip_serializing_if = "Option::is_none")]
    seed: Option<u64>,
}

pub fn run(args: Args, command_line: &str) -> Result<()> {
    let mut table = toml::Table::try_from(&args).context("cannot read the options")?;
    if !args.mix.is_empty() {
        table.insert("mix".to_owned(), toml::Value::Table(args.mix.iter().map(|mix| weight(mix)).collect::<Result<_>>()?));
    }
    let options = Options::resolve(args.config.as_deref(), table)?;
    if let Some(program) = &args.emit {
        return emit(program, &options);
    }
    let watch = Progress::new()?;
    let job = Job::open(options, &watch)?;
    if !args.dry_run {
        if let Some(record) = job.record()? {
            return output::print(&record_text(&record, args.json)?);
        }
        if args.resume && !job.can_resume()? {
            return Err(Error::usage("there is no checkpoint to resume from").at(&job.out).cure("Leave out --resume to begin."));
        }
    }
    let trainer = Trainer::prepare(job, command_line, &watch)?;
    if args.dry_run {
        drop(watch);
        return output::print(&plan_text(&trainer.plan, args.json)?);
    }
    watch.terminal.say(&format!("Run folder {}", trainer.out.display()));
    let outcome = trainer.run(&watch)?;
    drop(watch);
    match outcome {
        Outcome::Finished(record) => output::print(&record_text(&record, args.json)?),
        Outcome::Interrupted { out, step, total } => {
            Err(Error::new(format!("interrupted after step {step} of {total}; a checkpoint lies in {}", out.display()))
                .cure("Give the same command again to go on."))
        }
    }
}

fn weight(text: &str) -> Result<(String, toml::Value)> {
    let wrong = || Error::usage(format!("--mix {text}: expected SOURCE=WEIGHT, such as chat.jsonl=0.5"));
    let (source, weight) = text.rsplit_once('=').ok_or_else(wrong)?;
    Ok((source.to_owned(), toml::Value::Float(weight.parse().map_err(|_| wrong())?)))
}

fn emit(program: &str, options: &Options) -> Result<()> {
    let target = program.parse()?;
    let watch = Terminal::new();
    let (folder, rows) = train::emit(options, target, &|what, done, total| score::Watch::fetching(&watch, what, done, total))?;
    drop(watch);
    output::print(&format!("{} rows and a configuration for {program} in {}\n", thousands(rows), folder.display()))
}

fn plan_text(plan: &Plan, json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(plan).context("cannot write JSON")? + "\n");
    }
    let train::Plan { preview, .. } = plan;
    let gib = plan.memory_bytes as f64 / (1u64 << 30) as f64;
    let mut text = format!(
        "{} sequences, {} tokens, {} of them supervised; {} sequences held out\n",
        thousands(plan.sequences),
        thousands(plan.input_tokens),
        thousands(plan.supervised_tokens),
        thousands(plan.validation_sequences),
    );
    text += &format!(
        "{} steps, {} an epoch, {} of warm-up to a learning rate of {:e}\n",
        thousands(plan.total_steps),
        thousands(plan.steps_per_epoch),
        plan.warmup_steps,
        plan.learning_rate,
    );
    text += &format!("{} trained parameters, about {gib:.1} GiB of memory\n", thousands(plan.trained_parameters));
    text += &format!(
        "On the first {} supervised tokens: cross-entropy {:.3}, mean weight {:.3}, as many effective tokens as {:.0} equal ones, \
         {} confident conflicts\n",
        thousands(preview.tokens),
        preview.cross_entropy,
        preview.mean_weight,
        preview.effective_tokens,
        thousands(preview.confident_conflicts),
    );
    Ok(text)
}

fn record_text(record: &TrainRecord, json: bool) -> Result<String> {
    if json {
        return Ok(serde_json::to_string_pretty(record).context("cannot write JSON")? + "\n");
    }
    let mut text = format!(
        "Trained {} for {} steps, {} tokens, at {:.0} tokens per second\n",
        record.model.name,
        thousands(record.steps),
        thousands(record.input_tokens),
        record.tokens_per_second,
    );
    let before = record.before;
    let was = |value: Option<String>| value.map_or(String::new(), |value| format!(" ({value} before)"));
    if let Some(validation) = record.validation {
        text += &format!(
            "Held-out rows: cross-entropy {:.4}{}, accuracy {:.1} %{}\n",
            validation.cross_entropy,
            was(before.validation.map(|before| format!("{:.4}", before.cross_entropy))),
            100.0 * validation.accuracy,
            was(before.validation.map(|before| format!("{:.1} %", 100.0 * before.accuracy))),
        );
    }
    if let Some(drift) = record.drift {
        text += &format!(
            "General text: mean KL from the base model {:.4} nats, cross-entropy {:.4}{}\n",
            drift.kl,
            drift.cross_entropy,
            was(before.drift.map(|before| format!("{:.4}", before.cross_entropy))),
        );
    }
    text += &format!("Result {}\n", record.result.display());
    Ok(text)
}

/// Bars on the terminal; an interrupt ends the run after the step, a second one at once.
struct Progress {
    terminal: Terminal,
    interrupted: Arc<AtomicBool>,
}

impl Progress {
    fn new() -> Result<Progress> {
        use signal_hook::consts::{SIGINT, SIGTERM};
        let interrupted = Arc::new(AtomicBool::new(false));
        for signal in [SIGINT, SIGTERM] {
            // In this order: the second signal finds the flag set.
            signal_hook::flag::register_conditional_shutdown(signal, 130, interrupted.clone())
                .and_then(|_| signal_hook::flag::register(signal, interrupted.clone()))
                .context("cannot listen for interrupts")?;
        }
        Ok(Progress { terminal: Terminal::new(), interrupted })
    }
}

impl train::Watch for Progress {
    fn of_scoring(&self) -> &dyn score::Watch {
        &self.terminal
    }

    fn fetching(&self, what: &str, done: u64, total: u64) {
        score::Watch::fetching(&self.terminal, what, done, total);
    }

    fn reading(&self, records: u64) {
        score::Watch::auditing(&self.terminal, records);
    }

    fn audited(&self, audit: &Audit) {
        self.terminal.audit(audit);
    }

    fn training(&self, done: u64, total: u64) {
        if done > 0 {
            self.terminal.say(&format!("Going on after step {done} of {total}"));
        }
    }

    fn step(&self, metrics: &StepMetrics, total: u64) {
        self.terminal.training(metrics, total);
    }

    fn stage(&self, what: &str) {
        score::Watch::finishing(&self.terminal, what);
    }

    fn interrupted(&self) -> bool {
        self.interrupted.load(Ordering::SeqCst)
    }
}
