//! Implements `diagnose rollout`: samples the model's own answers to the prompts of a data set.

use std::path::{Path, PathBuf};

use super::draws::DrawArgs;
use super::models::ModelArgs;
use super::output;
use super::progress::Terminal;
use super::rows::RowArgs;
use super::servers::ServerArgs;
use crate::engine::remote::LEAST_TOP_K;
use crate::error::Result;
use crate::jobs::rollout::{self, Job};
use crate::kernels::{Dtype, Kernels};
use crate::model::{LoadOptions, Placement};

/// Let the model answer the prompts of a data set itself
///
/// Removes every row's last answer and lets the model write it, at temperature 1 by default. rollouts.jsonl in the run folder
/// holds the conversations as messages, each with the row that it answers and the token ids that were drawn. `diagnose` scores it like any
/// other data set, and uses it for a self-check. Where the model is sure of its own answers but not of the data's, the two differ.
#[derive(clap::Args)]
pub(super) struct Args {
    /// Data files, folders, globs, or `-` for standard input, as for `diagnose`
    #[arg(required = true, value_name = "DATASET")]
    datasets: Vec<String>,

    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    servers: ServerArgs,

    /// Run folder [default: a folder under runs/]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Answers to each prompt
    #[arg(short, long, value_name = "N", default_value_t = 1)]
    n: u32,

    /// Longest answer in tokens; prompt and answer together stay within --max-len
    #[arg(long, value_name = "TOKENS", default_value_t = 512, alias = "max_new_tokens")]
    max_new_tokens: usize,

    #[command(flatten)]
    draws: DrawArgs<false>,

    /// Divide the logits of tokens already in the prompt or the answer by X (multiply if negative). The model's
    /// generation_config.json is ignored, so that answers are drawn from the distribution that is scored
    #[arg(long, value_name = "X", alias = "repetition_penalty", default_value_t = 1.0)]
    repetition_penalty: f64,

    /// Answers generated in parallel; affects memory and speed, not the answers. For servers use --in-flight
    #[arg(long, value_name = "N", default_value_t = 16, conflicts_with = "urls")]
    batch: usize,

    /// Precision of the matrix products: f32, bf16, or bf16x3 (each factor as two bf16: close to f32)
    #[arg(long, default_value = "f32")]
    dtype: Dtype,

    /// Where the model runs: auto (an NVIDIA GPU if there is one that the model fits on, else the CPU), cpu, or cuda
    #[arg(long, default_value = "auto", hide_short_help = true)]
    device: Placement,

    #[command(flatten)]
    rows: RowArgs,

    /// Print the record as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn run(args: Args, command_line: &str) -> Result<()> {
    args.rows.refuse_targets()?;
    let counts = [("--n", args.n as usize), ("--max-new-tokens", args.max_new_tokens), ("--batch", args.batch)];
    let penalty = Some(args.repetition_penalty).filter(|penalty| *penalty != 1.0);
    let sampling = args.draws.sampling(penalty, counts)?;
    let job = Job {
        read: args.rows.read()?,
        inputs: args.datasets,
        model: args.model.name(),
        servers: args.servers.options(LEAST_TOP_K)?,
        out: args.out,
        load: LoadOptions { dtype: args.dtype, device: args.device, kernels: Kernels::default() },
        render: args.rows.render()?,
        max_len: args.rows.max_len(),
        choice: args.rows.choice(),
        n: args.n,
        max_new_tokens: args.max_new_tokens,
        sampling,
        stops: args.draws.stops,
        at_once: args.batch,
        seed: args.rows.seed(),
        command: command_line.to_owned(),
    };
    let watch = Terminal::new();
    let outcome = rollout::run(&job, &watch)?;
    drop(watch);
    output::print(&match args.json {
        true => output::json_in(&outcome.out, &outcome.record)?,
        false => {
            let path = outcome.rollouts();
            let command = scoring_command(&job, &path);
            format!("{}\n\nrollouts  {}\nscore them with: {command}\n", outcome.record.lines().join("\n"), path.display())
        }
    })
}

/// The command that scores the answers with the model that wrote them, rendered as when it wrote them.
fn scoring_command(job: &Job, rollouts: &Path) -> String {
    let render = &job.render;
    let options = [
        ("--model", job.model.written.clone()),
        ("--base", job.model.base.clone()),
        ("--dtype", (job.load.dtype != Dtype::F32).then(|| job.load.dtype.to_string())),
        ("--device", (job.load.device != Placement::Auto).then(|| job.load.device.to_string())),
        ("--system", render.system.clone()),
        ("--chat-template", render.chat_template.as_ref().map(|path| path.display().to_string())),
        ("--chat-template-kwargs", render.template_switches.as_ref().map(ToString::to_string)),
        ("--max-len", job.max_len.map(|tokens| tokens.to_string())),
    ];
    let servers = job.servers.iter().flat_map(|servers| {
        let urls = servers.urls.iter().map(|url| ("--server", Some(url.clone())));
        urls.chain([("--api", servers.api.map(|api| api.to_string())), ("--served-model", servers.model.clone())])
    });
    let options = options.into_iter().chain(servers);
    let given = options.filter_map(|(name, value)| Some(format!(" {name} {}", output::quoted(&value?))));
    format!("diagnose {}{}", output::quoted(&rollouts.display().to_string()), given.collect::<String>())
}
