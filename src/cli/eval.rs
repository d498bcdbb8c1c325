//! `diagnose eval`: general-capability scores of a model.

use std::path::PathBuf;

use super::output;
use super::progress::Terminal;
use crate::error::{Context, Error, Result};
use crate::eval::{benchmarks, tasks};
use crate::jobs::eval::{self, Job, Way};
use crate::kernels::{Dtype, Kernels};
use crate::model::Placement;
use crate::report::eval::table;

/// Measure what a model can do, with standard errors
///
/// Scores multiple-choice questions, last words and texts by log-likelihood, with the conventions of lm-evaluation-harness, and
/// writes scores.json and samples.parquet. Tasks that the folder holds already are not evaluated again. No chat template is put around
/// the questions, which is the harness's default, too.
#[derive(clap::Args)]
pub(super) struct Args {
    /// A Hugging Face model folder, a .gguf file, a LoRA adapter folder, or a hub id (org/name, org/name@revision, org/name:file.gguf);
    /// SmolLM2-135M-Instruct by default, fetched once
    #[arg(long, value_name = "REF")]
    model: Option<String>,

    /// For an adapter: the model that it is put on, in place of the one that its config names, such as the full model of a quantised one
    #[arg(long, value_name = "REF")]
    base: Option<String>,

    /// Separated by commas: `probe` (320 questions of general knowledge that ship with the program), benchmarks by name (`list` shows
    /// them), benchmarks with your copy of their rows (NAME=FILE), files of items (.uniform.jsonl, .jsonl), texts (.txt, or .jsonl with
    /// `text`) for perplexity, globs
    #[arg(long, value_name = "TASKS", value_delimiter = ',', default_value = tasks::PROBE)]
    tasks: Vec<String>,

    /// The folder of the scores; by default a folder under runs/ named after the model
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    #[command(flatten)]
    options: Options,

    /// Print the scores as JSON
    #[arg(long)]
    json: bool,
}

/// How to evaluate: the options that `diagnose diff` has, too.
#[derive(clap::Args)]
#[command(next_help_heading = "Evaluation")]
pub(super) struct Options {
    /// Only the first N items of each task, of MMLU and the like of each subject; they need not be like the others
    #[arg(long, value_name = "N", conflicts_with = "sample")]
    limit: Option<usize>,

    /// N items of each task, or of each of its subjects, drawn at random
    #[arg(long, value_name = "N")]
    sample: Option<usize>,

    /// Put N answered examples before every question: from another split of the benchmark, or from the task's own other items
    #[arg(long, value_name = "N", default_value_t = 0, aliases = ["num-fewshot", "num_fewshot"])]
    fewshot: usize,

    /// Seed of the draw of these examples, and of --sample
    #[arg(long, default_value_t = 1234)]
    seed: u64,

    /// Precision of the matrix products: f32 or bf16
    #[arg(long, default_value = "f32")]
    dtype: Dtype,

    /// Implementation of the operations: fused or reference (slow and plain)
    #[arg(long, default_value = "fused", hide_short_help = true)]
    kernels: Kernels,

    /// Where the model runs: auto (an NVIDIA GPU if there is one that the model fits on, else the CPU), cpu, cuda, or metal (a build with
    /// that feature, and --kernels reference)
    #[arg(long, default_value = "auto", hide_short_help = true)]
    device: Placement,

    /// Tokens that the model sees at once: longer contexts lose their beginning, texts are read in windows of this length [default: 2048, or
    /// what the model takes, if that is less]
    #[arg(long, value_name = "TOKENS")]
    max_len: Option<usize>,

    /// Answered with the reason why there is none here.
    #[arg(long, aliases = ["apply-chat-template", "apply_chat_template"], num_args = 0..=1, default_missing_value = "", hide = true)]
    chat_template: Option<String>,
}

impl Options {
    pub(super) fn way(&self) -> Result<Way> {
        if let Some(max_len) = self.max_len.filter(|max_len| *max_len < 2) {
            return Err(Error::usage(format!("--max-len {max_len} leaves nothing to predict; expected 2 or more")));
        }
        if self.chat_template.is_some() {
            return Err(Error::usage(
                "the tasks are asked without a chat template, as lm-evaluation-harness asks them by default",
            )
            .cure("Leave the option out; `diagnose DATASET --chat-template FILE` scores conversations by a template."));
        }
        for (option, n) in [("--limit", self.limit), ("--sample", self.sample)] {
            if n == Some(0) {
                return Err(Error::usage(format!("{option} 0 leaves nothing to evaluate; expected 1 or more")));
            }
        }
        Ok(Way {
            limit: self.limit,
            sample: self.sample,
            few_shot: self.fewshot,
            seed: self.seed,
            dtype: self.dtype,
            kernels: self.kernels,
            device: self.device,
            max_len: self.max_len,
        })
    }
}

pub(super) fn run(args: Args, command_line: &str) -> Result<()> {
    if args.tasks == ["list"] {
        return output::print(&benchmarks::list());
    }
    let job = Job {
        model: args.model,
        base: args.base,
        tasks: args.tasks,
        out: args.out,
        way: args.options.way()?,
        command: command_line.to_owned(),
    };
    let watch = Terminal::new();
    let eval::Outcome { out, scores } = eval::run(&job, &watch)?;
    drop(watch);
    output::print(&match args.json {
        true => serde_json::to_string_pretty(&scores).context("cannot write JSON")? + "\n",
        false => table(&scores, &out.display().to_string(), output::coloured()),
    })
}
