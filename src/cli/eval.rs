//! `diagnose eval`: general-capability scores of a model.

use std::path::PathBuf;

use super::progress::Terminal;
use crate::error::{Context, Error, Result};
use crate::eval::{self, Job};
use crate::kernels::{Dtype, Kernels};
use crate::report::eval::table;
use crate::run::Watch;

/// Measure what a model can do, with standard errors
///
/// Scores multiple-choice questions, last words and texts by log-likelihood, with the conventions of lm-evaluation-harness, and
/// writes scores.json and samples.parquet. Tasks that the folder holds already are not evaluated again.
#[derive(clap::Args)]
pub struct Args {
    /// A Hugging Face model folder or a .gguf file; SmolLM2-135M-Instruct by default, fetched once
    #[arg(long, value_name = "REF")]
    model: Option<String>,

    /// `probe` (320 questions of general knowledge that ship with the program), files of items (.uniform.jsonl, .jsonl), texts
    /// (.txt, or .jsonl with `text`) for perplexity, globs; separated by commas
    #[arg(long, value_name = "TASKS", value_delimiter = ',', default_value = eval::tasks::PROBE)]
    tasks: Vec<String>,

    /// The folder of the scores
    #[arg(long, value_name = "DIR")]
    out: PathBuf,

    /// Only the first N items of each task
    #[arg(long, value_name = "N")]
    limit: Option<usize>,

    /// Precision of the matrix products: f32 or bf16
    #[arg(long, default_value = "f32")]
    dtype: Dtype,

    /// Implementation of the operations: fused or reference (slow and plain)
    #[arg(long, default_value = "fused", hide_short_help = true)]
    kernels: Kernels,

    /// Tokens that the model sees at once: longer contexts lose their beginning, texts are read in windows of this length
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_len: usize,

    /// Print the scores as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, command_line: &str) -> Result<()> {
    if args.max_len < 2 {
        return Err(Error::usage(format!("--max-len {} leaves nothing to predict; expected 2 or more", args.max_len)));
    }
    if args.limit == Some(0) {
        return Err(Error::usage("--limit 0 leaves nothing to evaluate; expected 1 or more"));
    }
    let watch = Terminal::new();
    let job = Job {
        model: args.model,
        tasks: args.tasks,
        out: args.out,
        limit: args.limit,
        dtype: args.dtype,
        kernels: args.kernels,
        max_len: args.max_len,
        command: command_line.to_owned(),
    };
    let fetching = |what: &str, done, total| watch.fetching(what, done, total);
    let scores = eval::evaluate(&job, &fetching, &|what, done, total| watch.evaluating(what, done, total))?;
    drop(watch);
    super::print(&match args.json {
        true => serde_json::to_string_pretty(&scores).context("cannot write JSON")? + "\n",
        false => table(&scores, &job.out.display().to_string(), super::coloured()),
    })
}
