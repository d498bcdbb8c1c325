//! The options that have the model run elsewhere.

use std::path::PathBuf;

use crate::engine::remote::{Api, LEAST_TOP_K, Options};
use crate::error::{Error, Result};
use crate::jobs::score::Elsewhere;

/// Servers that run the model.
#[derive(clap::Args)]
pub(super) struct ServerArgs {
    /// A server of vLLM or SGLang that runs the model in place of this program; several share the work. --model then names the tokenizer and
    /// the template. A key comes from the environment variable DIAGNOSE_SERVER_KEY
    #[arg(long = "server", value_name = "URL", group = "elsewhere")]
    urls: Vec<String>,

    /// What the servers speak: vllm or sglang; found out by default
    #[arg(long, requires = "urls", hide_short_help = true)]
    api: Option<Api>,

    /// The name under which they serve the model, where there are several
    #[arg(long, value_name = "NAME", requires = "urls", hide_short_help = true)]
    served_model: Option<String>,

    /// Tokens under way at each server at a time, which bounds its memory; those of an answer count from its beginning
    #[arg(long, value_name = "TOKENS", default_value_t = 8192, requires = "urls", hide_short_help = true)]
    in_flight: usize,
}

/// Servers or other programs that score.
#[derive(clap::Args)]
pub(super) struct ScoringArgs {
    #[command(flatten)]
    servers: ServerArgs,

    /// How many of the most probable tokens are asked for: more narrow the bounds of what a server does not tell, and it must be started with
    /// as many (--max-logprobs)
    #[arg(long, value_name = "K", default_value_t = LEAST_TOP_K, requires = "elsewhere", hide_short_help = true)]
    pub(super) top_logprobs: usize,

    /// Score nothing, but write a program that does (vllm-offline: with vLLM's own engine, without a server) and what it is to score into --out
    #[arg(long, value_name = "WHAT", value_parser = ["vllm-offline"], group = "elsewhere", requires = "out", conflicts_with_all = ["urls", "answers"], hide_short_help = true)]
    pub(super) emit: Option<String>,

    /// The folder of --emit, where its program has left the answers: they take the place of the model
    #[arg(long, value_name = "DIR", group = "elsewhere", conflicts_with = "urls", hide_short_help = true)]
    answers: Option<PathBuf>,
}

impl ServerArgs {
    /// The servers, if there are some, asked for so many of the most probable tokens.
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
    /// Who runs the model, if this program does not.
    pub(super) fn elsewhere(self) -> Result<Option<Elsewhere>> {
        if let Some(folder) = self.answers.clone() {
            return Ok(Some(Elsewhere::Answers(folder)));
        }
        if !self.servers.urls.is_empty() {
            self.check()?;
        }
        Ok(self.servers.options(self.top_logprobs)?.map(Elsewhere::Servers))
    }

    /// Enough of the most probable tokens for the gate?
    pub(super) fn check(&self) -> Result<()> {
        if self.top_logprobs < LEAST_TOP_K {
            return Err(Error::usage(format!(
                "--top-logprobs {} is less than the {LEAST_TOP_K} that the gate of EAFT looks at",
                self.top_logprobs
            )));
        }
        Ok(())
    }
}
