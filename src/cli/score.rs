//! `diagnose DATASET...`: score, sort, map, report. `diagnose RUN_FOLDER --thresholds ..` sorts a finished run again.

use std::path::{Path, PathBuf};

use super::output;
use super::progress::Terminal;
use crate::dataset::{Choice, FieldMap, Format, ReadOptions};
use crate::diagnosis::quadrants::Thresholds;
use crate::error::{Context, Error, Result};
use crate::jobs::folders;
use crate::jobs::score::{self, Job, Outcome};
use crate::kernels::{Dtype, Kernels, cuda};
use crate::model::Placement;
use crate::report::terminal;
use crate::tokens::{RenderOptions, Supervise};

#[derive(clap::Args)]
pub struct Args {
    /// Data files (JSONL, JSON, CSV, Parquet, each also .gz or .zst), globs, `-` for standard input; or a finished run folder,
    /// which is sorted again under other --thresholds without the model
    #[arg(required = true, value_name = "DATASET")]
    datasets: Vec<String>,

    /// A Hugging Face model folder, a .gguf file, a LoRA adapter folder, or a hub id (org/name, org/name@revision, org/name:file.gguf);
    /// SmolLM2-135M-Instruct by default, fetched once
    #[arg(long, value_name = "REF")]
    model: Option<String>,

    /// The run folder; by default a folder under runs/ named after the data
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

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

    /// Longest sequence in tokens; what is longer is cut at its end and counted
    #[arg(long, value_name = "TOKENS", default_value_t = 2048)]
    max_len: usize,

    /// Read only the first N records, which need not be like the others: to try something out
    #[arg(long, value_name = "N", conflicts_with = "sample")]
    limit: Option<u64>,

    /// Read N records drawn at random; the intervals of the report then hold for the whole data set
    #[arg(long, value_name = "N")]
    sample: Option<u64>,

    /// Seed of --sample; a larger sample of the same seed holds the smaller one
    #[arg(long, value_name = "SEED", default_value_t = 0)]
    seed: u64,

    /// Format of the data, where it is not to be guessed: messages, sharegpt, alpaca, prompt-completion, question-answer, text, ..
    #[arg(long)]
    format: Option<Format>,

    /// Where a field comes from, for data of no known format: `--map prompt=question --map 'completion={exp}'`
    #[arg(long = "map", value_name = "FIELD=COLUMN")]
    maps: Vec<String>,

    /// Stop at the first bad row instead of skipping it
    #[arg(long)]
    strict: bool,

    /// A system prompt for conversations that have none
    #[arg(long, value_name = "TEXT")]
    system: Option<String>,

    /// Which tokens count: assistant (every assistant turn), last (the last one only), all (the whole text)
    #[arg(long, default_value = "assistant")]
    supervise: Supervise,

    /// Where the quadrants divide: fixed (p 0.25, H 1 nat), pilot, groups, tail, or numbers such as p=0.2,H=0.8
    #[arg(long, default_value = "fixed")]
    thresholds: Thresholds,

    /// Print the summary as JSON
    #[arg(long)]
    json: bool,
}

pub fn run(args: Args, command_line: &str) -> Result<()> {
    let json = args.json;
    let watch = Terminal::new();
    let outcome = match run_folder(&args)? {
        Some(folder) => score::sort_again(&folder, args.thresholds, command_line, &watch)?,
        None => score::run(&job(args, command_line)?, &watch)?,
    };
    drop(watch);
    if let Some(profile) = cuda::profile() {
        eprintln!("{profile}");
    }
    print(&outcome, json)
}

/// The finished run that the user wants sorted again, if it is one.
fn run_folder(args: &Args) -> Result<Option<PathBuf>> {
    let folders: Vec<&String> = args.datasets.iter().filter(|dataset| Path::new(dataset).is_dir()).collect();
    match (folders.as_slice(), args.datasets.len()) {
        ([], _) => Ok(None),
        ([folder], 1) if folders::holds_scores(Path::new(folder)) => Ok(Some(PathBuf::from(folder))),
        ([folder], 1) => Err(folders::not_scores(Path::new(folder))),
        _ => Err(Error::usage("a run folder is sorted again on its own, not together with other inputs")),
    }
}

fn job(args: Args, command_line: &str) -> Result<Job> {
    if args.max_len < 2 {
        return Err(Error::usage(format!("--max-len {} leaves nothing to predict; expected 2 or more", args.max_len)));
    }
    for (option, n) in [("--limit", args.limit), ("--sample", args.sample)] {
        if n == Some(0) {
            return Err(Error::usage(format!("{option} 0 leaves nothing to read; expected 1 or more")));
        }
    }
    Ok(Job {
        inputs: args.datasets,
        read: ReadOptions { format: args.format, mapping: FieldMap::parse(&args.maps)?, strict: args.strict },
        model: args.model,
        out: args.out,
        dtype: args.dtype,
        kernels: args.kernels,
        device: args.device,
        render: RenderOptions { system: args.system, max_len: args.max_len, supervise: args.supervise },
        choice: match args.sample {
            Some(n) => Choice::Random { n, seed: args.seed },
            None => Choice::first(args.limit),
        },
        thresholds: args.thresholds,
        command: command_line.to_owned(),
    })
}

fn print(outcome: &Outcome, json: bool) -> Result<()> {
    let text = match json {
        true => serde_json::to_string_pretty(&outcome.report).context("cannot write JSON")? + "\n",
        false => terminal::summary(&outcome.heading(), &outcome.report, output::coloured()),
    };
    output::print(&text)
}
