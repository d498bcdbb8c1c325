//! Declares the options for running the model on servers or in other programs.

use std::path::PathBuf;

use crate::engine::remote::{Api, LEAST_TOP_K, Options};
use crate::error::{Error, Result};
use crate::jobs::score::Elsewhere;

/// Servers that run the model.
#[derive(clap::Args)]
pub(super) struct ServerArgs {
    /// vLLM or SGLang server that runs the model instead of this program; several share the work. --model then names the tokenizer and
    /// the template. Set an API key in the environment variable DIAGNOSE_SERVER_KEY
    #[arg(long = "server", value_name = "URL", group = "elsewhere")]
    urls: Vec<String>,

    /// Protocol of the servers: vllm or sglang [default: detected]
    #[arg(long, requires = "urls", hide_short_help = true)]
    api: Option<Api>,

    /// Name of the model on the servers, if they serve several
    #[arg(long, value_name = "NAME", requires = "urls", hide_short_help = true)]
    served_model: Option<String>,

    /// Maximum tokens in flight at each server, to limit its memory; an answer counts in full from its beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, requires = "urls", hide_short_help = true)]
    in_flight: usize,
}

/// Servers or other programs that score.
#[derive(clap::Args)]
pub(super) struct ScoringArgs {
    #[command(flatten)]
    servers: ServerArgs,

    /// How many of the most probable tokens to request: more give narrower bounds for values that a server does not report; start it with
    /// at least as many (--max-logprobs)
    #[arg(long, value_name = "K", default_value_t = LEAST_TOP_K, requires = "elsewhere", hide_short_help = true)]
    pub(super) top_logprobs: usize,

    /// Instead of scoring, write a program that scores (vllm-offline: with vLLM's engine, without a server) and its input into --out
    #[arg(long, value_name = "WHAT", value_parser = ["vllm-offline"], group = "elsewhere", requires = "out", conflicts_with_all = ["urls", "answers"], hide_short_help = true)]
    pub(super) emit: Option<String>,

    /// Folder of --emit with the program's answers, used instead of running the model
    #[arg(long, value_name = "DIR", group = "elsewhere", conflicts_with = "urls", hide_short_help = true)]
    answers: Option<PathBuf>,
}

impl ServerArgs {
    /// The servers, if any, each asked for the `top_k` most probable tokens.
    pub(super) fn options(self, top_k: usize) -> Result<Option<Options>> {
        if self.urls.is_empty() {
            return Ok(None);
        }
        if self.in_flight == 0 {
            return Err(Error::usage("--in-flight 0 sends nothing; expected 1 or more"));
        }
        Ok(Some(Options { urls: self.urls, api: self.api, model: self.served_model, top_k, in_flight: self.in_flight }))
    }
}

impl ScoringArgs {
    /// The engine that runs the model instead of this program, if any.
    pub(super) fn elsewhere(self) -> Result<Option<Elsewhere>> {
        if let Some(folder) = self.answers.clone() {
            return Ok(Some(Elsewhere::Answers(folder)));
        }
        if !self.servers.urls.is_empty() {
            self.check()?;
        }
        Ok(self.servers.options(self.top_logprobs)?.map(Elsewhere::Servers))
    }

    /// Checks that enough of the most probable tokens are requested for the gate.
    pub(super) fn check(&self) -> Result<()> {
        if self.top_logprobs < LEAST_TOP_K {
            return Err(Error::usage(format!(
                "--top-logprobs {} is less than the {LEAST_TOP_K} that the gate of EAFT uses",
                self.top_logprobs
            )));
        }
        Ok(())
    }
}
