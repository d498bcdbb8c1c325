//! Implements `diagnose eval`: general-capability scores of a model.

use std::path::PathBuf;

use super::draws::DrawArgs;
use super::models::{LoadArgs, ModelArgs};
use super::output;
use super::progress::Terminal;
use super::servers::ServerArgs;
use crate::engine::remote::LEAST_TOP_K;
use crate::error::{Error, Result};
use crate::eval::{benchmarks, tasks};
use crate::jobs::eval::{self, ChatWay, Job, SEED, Way, WrittenWay};
use crate::report::eval::table;
use crate::tokens::RenderOptions;

/// Evaluate a model on benchmarks, with standard errors
///
/// Scores multiple-choice questions, last words and texts by log-likelihood, and judges the answers that the model writes to word problems and to
/// your own questions, with the conventions of lm-evaluation-harness: no chat template without --apply-chat-template. Writes
/// scores.json with samples.parquet and answers.parquet. Tasks already in the folder are not evaluated again, and an interrupted task resumes.
#[derive(clap::Args)]
pub(super) struct Args {
    #[command(flatten)]
    model: ModelArgs,

    #[command(flatten)]
    servers: ServerArgs,

    /// Comma-separated: `probe` (320 general-knowledge questions, shipped with the program), benchmarks by name (`list` shows
    /// them), benchmarks with your copy of their rows (NAME=FILE), files of multiple-choice or free-answer items (.uniform.jsonl, .jsonl), texts
    /// (.txt, or .jsonl with `text`) for perplexity, training rows in any format (cross-entropy of their answers), globs
    #[arg(long, value_name = "TASKS", value_delimiter = ',', default_value = tasks::PROBE)]
    tasks: Vec<String>,

    /// Folder for the scores [default: a folder under runs/ named after the model]
    #[arg(long, value_name = "DIR")]
    out: Option<PathBuf>,

    /// Print the scores as JSON
    #[arg(long)]
    json: bool,

    #[command(flatten)]
    options: Options,
}

/// How to evaluate: the options that `diagnose diff` has, too.
#[derive(clap::Args)]
#[command(next_help_heading = "Evaluation")]
pub(super) struct Options {
    /// Only the first N items of each task, or of each subject (MMLU and the like); these may not be representative
    #[arg(long, value_name = "N", conflicts_with = "sample")]
    limit: Option<usize>,

    /// N random items of each task, or of each of its subjects
    #[arg(long, value_name = "N")]
    sample: Option<usize>,

    /// Put N answered examples before every question: from another split of the benchmark, or from the task's own other items [default:
    /// that of lm-evaluation-harness (0, or 5 for gsm8k); bbh 0]
    #[arg(long, value_name = "N", aliases = ["num-fewshot", "num_fewshot"])]
    fewshot: Option<usize>,

    /// For a single task: take the few-shot examples from the first N rows of a file in the task's format
    #[arg(long, value_name = "FILE", aliases = ["fewshot_from"])]
    fewshot_from: Option<PathBuf>,

    /// Seed for drawing few-shot examples, for --sample, and for answers at a --temperature
    #[arg(long, default_value_t = SEED)]
    seed: u64,

    #[command(flatten)]
    load: LoadArgs,

    /// Context length in tokens: longer contexts lose their beginning, texts are read in windows of this length [default: 2048, or
    /// the model's limit if lower]
    #[arg(long, value_name = "TOKENS")]
    max_len: Option<usize>,

    /// Ask through the model's chat template: examples become earlier turns, and answers follow its generation prompt
    #[arg(long, alias = "apply_chat_template")]
    apply_chat_template: bool,

    /// Ask through the chat template in this file instead of the model's own
    #[arg(long, value_name = "FILE", alias = "chat_template")]
    chat_template: Option<PathBuf>,

    /// JSON object of variables for the chat template, such as '{"enable_thinking": false}'
    #[arg(long, value_name = "JSON", alias = "chat_template_kwargs", hide_short_help = true)]
    chat_template_kwargs: Option<String>,

    /// With a chat template: examples as separate turns, or (`false`) all in one user message with the question
    #[arg(
        long,
        value_name = "BOOL",
        alias = "fewshot_as_multiturn",
        num_args = 0..=1,
        default_missing_value = "true",
        hide_short_help = true
    )]
    fewshot_as_multiturn: Option<bool>,

    /// System message for every question; without a chat template the text is prepended
    #[arg(long, value_name = "TEXT", aliases = ["system-instruction", "system_instruction"])]
    system: Option<String>,

    #[command(flatten)]
    written: Written,
}

/// How answers are written.
#[derive(clap::Args)]
#[command(next_help_heading = "Written answers")]
struct Written {
    /// Longest answer in tokens [default: the task's own, usually 256]
    #[arg(long, value_name = "TOKENS", aliases = ["max_new_tokens", "max-gen-toks", "max_gen_toks"])]
    max_new_tokens: Option<usize>,

    #[command(flatten)]
    draws: DrawArgs<true>,

    /// Divide the logits of tokens already in the prompt or the answer by X (multiply if negative); 1 for no
    /// penalty [default: that of the model's generation_config.json, as in Transformers]
    #[arg(long, value_name = "X", alias = "repetition_penalty", hide_short_help = true)]
    repetition_penalty: Option<f64>,

    /// Draw N answers to every question; reports their mean, and pass@k, the chance that one of k is right
    #[arg(long, value_name = "N", default_value_t = 1)]
    repeats: u32,

    /// Answers generated in parallel; affects memory and speed, not the answers. For servers use --in-flight [default: 16]
    #[arg(long, value_name = "N", hide_short_help = true)]
    batch: Option<usize>,
}

impl Options {
    pub(super) fn way(&self) -> Result<Way> {
        if let Some(max_len) = self.max_len.filter(|max_len| *max_len < 2) {
            return Err(Error::usage(format!("--max-len {max_len} leaves nothing to predict; expected 2 or more")));
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
            few_shot_from: self.fewshot_from.clone(),
            seed: self.seed,
            system: self.system.clone(),
            chat: self.chat()?,
            written: self.written.way()?,
            load: self.load.options(),
            max_len: self.max_len,
        })
    }

    /// How to use a chat template, if at all.
    fn chat(&self) -> Result<Option<ChatWay>> {
        if !self.apply_chat_template && self.chat_template.is_none() {
            let without = [
                (self.fewshot_as_multiturn.is_some(), "--fewshot-as-multiturn"),
                (self.chat_template_kwargs.is_some(), "--chat-template-kwargs"),
            ];
            return match without.into_iter().find(|(is_given, _)| *is_given) {
                Some((_, option)) => {
                    Err(Error::usage(format!("{option} needs a chat template")).cure("Add --apply-chat-template."))
                }
                None => Ok(None),
            };
        }
        Ok(Some(ChatWay {
            template: self.chat_template.clone(),
            switches: RenderOptions::parse_switches(self.chat_template_kwargs.as_deref())?,
            multiturn: self.fewshot_as_multiturn.unwrap_or(true),
        }))
    }
}

impl Written {
    fn way(&self) -> Result<WrittenWay> {
        let at_once = self.batch.unwrap_or(WrittenWay::default().at_once);
        let max_new_tokens = ("--max-new-tokens", self.max_new_tokens.unwrap_or(1));
        let counts = [("--repeats", self.repeats as usize), max_new_tokens, ("--batch", at_once)];
        Ok(WrittenWay {
            max_new_tokens: self.max_new_tokens,
            sampling: self.draws.sampling(self.repetition_penalty, counts)?,
            stops: self.draws.stops.clone(),
            repeats: self.repeats,
            at_once,
        })
    }
}

pub(super) fn run(args: Args, command_line: &str) -> Result<()> {
    if args.tasks == ["list"] {
        return output::print(&match args.json {
            true => output::json(&benchmarks::listed())?,
            false => benchmarks::list(),
        });
    }
    let batch = args.options.written.batch;
    let servers = args.servers.options(LEAST_TOP_K)?;
    if let (Some(batch), true) = (batch, servers.is_some()) {
        return Err(Error::usage(format!("--batch {batch} is for this program's own engine; for servers use --in-flight")));
    }
    let job = Job {
        model: args.model.name(),
        servers,
        tasks: args.tasks,
        out: args.out,
        way: args.options.way()?,
        command: command_line.to_owned(),
    };
    let watch = Terminal::new();
    let eval::Outcome { out, scores, tasks: _ } = eval::run(&job, &watch)?;
    drop(watch);
    output::print(&match args.json {
        true => output::json_in(&out, &scores)?,
        false => table(&scores, &out.display().to_string(), output::coloured()),
    })
}
