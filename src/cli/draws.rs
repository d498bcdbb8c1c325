//! How answers are drawn, for `rollout` and `eval`.

use crate::engine::generate::Sampling;
use crate::error::{Error, Result};

/// The options of drawing. `GREEDY` commands take the most probable token by default, and show only --temperature in the short help.
#[derive(clap::Args)]
pub(super) struct DrawArgs<const GREEDY: bool> {
    /// Divisor of the logits: 0 takes the most probable token, 1 draws from the model's own distribution; --seed seeds the draws
    #[arg(long, value_name = "T", default_value = if GREEDY { "0" } else { "1" })]
    temperature: f64,

    /// Draw only from the K most probable tokens
    #[arg(long, value_name = "K", alias = "top_k", hide_short_help = GREEDY)]
    top_k: Option<usize>,

    /// Draw only from the most probable tokens that together have this probability
    #[arg(long, value_name = "P", alias = "top_p", hide_short_help = GREEDY)]
    top_p: Option<f64>,

    /// Draw only from tokens with at least this share of the top token's probability
    #[arg(long, value_name = "P", alias = "min_p", hide_short_help = GREEDY)]
    min_p: Option<f64>,

    /// Additional stop string: ends an answer as soon as it contains this text; repeatable
    #[arg(long = "stop", value_name = "TEXT", hide_short_help = GREEDY)]
    pub stops: Vec<String>,
}

impl<const GREEDY: bool> DrawArgs<GREEDY> {
    /// Returns the sampling if all given options take effect. `counts` are options that must not be 0; the first of them requests that many answers
    /// to each prompt.
    pub(super) fn sampling(&self, repetition_penalty: Option<f64>, counts: [(&str, usize); 3]) -> Result<Sampling> {
        if let Some((option, _)) = counts.iter().find(|(_, n)| *n == 0) {
            return Err(Error::usage(format!("{option} 0 leaves nothing to write; expected 1 or more")));
        }
        if self.stops.iter().any(String::is_empty) {
            return Err(Error::usage("--stop: expected a text, found an empty one"));
        }
        let DrawArgs { temperature, top_k, top_p, min_p, .. } = *self;
        let sampling = Sampling { temperature, top_k, top_p, min_p, repetition_penalty };
        sampling.check()?;
        if !sampling.is_greedy() {
            return Ok(sampling);
        }
        let cuts = [("--top-k", top_k.is_some()), ("--top-p", top_p.is_some()), ("--min-p", min_p.is_some())];
        if let Some((cut, _)) = cuts.iter().find(|(_, is_given)| *is_given) {
            return Err(Error::usage(format!("{cut} has no effect at temperature 0, which takes the most probable token"))
                .cure("Give a --temperature, such as 1, or leave it out."));
        }
        let (option, times) = counts[0];
        if times > 1 {
            return Err(Error::usage(format!("{option} {times} at temperature 0 would write the same answer {times} times"))
                .cure("Give a --temperature, such as 1."));
        }
        Ok(sampling)
    }
}
