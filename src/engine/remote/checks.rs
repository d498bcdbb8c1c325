//! Tests the servers before a run, because each of these engines has had bugs in exactly this feature.
//!
//! Every answer of the run is checked as well: `reply.rs` checks that the first entry is null, that no entry is missing and that each
//! contains its own token; `../bounds.rs` checks that the log-probabilities are those of a distribution.

use std::collections::{BTreeSet, HashMap};
use std::path::Path;

use serde::{Deserialize, Serialize};

use super::bounds::{Position, TopTokens};
use super::http::Trouble;
use super::pool::Pool;
use super::server::{Api, Server, program};
use crate::engine::generate::{Request, Sampling, Way};
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::tokens::{Sequence, Span, Tokenizer};

/// The tokens of a probe: enough for several pages of a server's cache (16 tokens in vLLM).
const PROBE_TOKENS: usize = 64;
/// A text that every run asks about, whatever its data. It shows whether two shards were scored by the same weights.
const FIXED_TEXT: &str = "The quick brown fox jumps over the lazy dog. A train leaves the station at 7:45 and arrives 3 hours later; def f(x): \
    return x + 1  # plus one. Water boils at 100 degrees.";
/// Smaller ln p are clamped to this, because bf16 is inaccurate there, and JSON has no minus infinity.
const LEAST_LOGPROB: f32 = -15.0;
/// The mean difference, in nats, between two answers to one prompt. In bf16 another batch rounds differently, by 0.01; a stale value is off
/// by nats.
const REPEATED: f64 = 0.05;
/// The mean difference, in nats, between two servers of one model, which may run on different cards.
const BETWEEN_SERVERS: f64 = 0.1;
/// The mean difference, in nats, from our own engine in f32. bf16 alone is off by 0.03, fp8 and int4 by several times that.
const FROM_OWN: f64 = 0.3;
/// The nats by which a token that was generated greedily may be below the most probable one when it is scored as part of a prompt: in bf16
/// two nearly equal tokens may change places.
const WRITTEN: f32 = 0.25;
/// The number of tokens generated for that check.
const PROBE_ANSWER: usize = 8;
/// The share of tokens whose texts may differ, because tokenizers spell spaces and broken characters differently.
const OTHER_TEXTS: f64 = 0.1;

/// A description of the servers, and the results of the checks; recorded in run.json.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Checked {
    /// The protocol of the servers.
    pub api: Api,
    /// Their addresses.
    pub urls: Vec<String>,
    /// The name under which the model is served, or by which another program's answers name it; empty if they do not.
    pub model: String,
    /// The origin of the served model, if the servers report it.
    pub root: Option<String>,
    /// The version of the servers' program, if they report it.
    pub version: Option<String>,
    /// The number of most probable tokens requested for each position.
    pub top_logprobs: usize,
    /// The size of the vocabulary, over which the mass of the unlisted tokens is distributed.
    pub vocab_size: usize,
    /// The mean and largest difference, in nats, between two answers to the same prompt.
    pub repeated: Difference,
    /// The difference, in nats, between the servers and this program's own engine in f32; absent if the weights are not available here or too
    /// large.
    pub from_own: Option<Difference>,
    /// ln p of the probe's tokens, which are the first of the data.
    #[serde(default)]
    pub probe: Vec<f32>,
    /// ln p of the tokens of a text that is the same in all runs; empty if there is no server.
    #[serde(default)]
    pub fixed: Vec<f32>,
    /// The same of each server, with which its later scores are compared: other cards round otherwise.
    #[serde(skip)]
    pub fixed_of_each: Vec<Vec<f32>>,
    /// SHA-256 of the file of prompts, if another program has answered them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sent_sha256: Option<String>,
}

impl Checked {
    /// The record for answers in a folder, which another program has written with the model `model`.
    pub fn offline(
        folder: &Path,
        model: String,
        sent_sha256: String,
        asked: TopTokens,
        first: &[Position],
        from_own: Option<Difference>,
    ) -> Checked {
        Checked {
            api: Api::Vllm,
            urls: vec![folder.display().to_string()],
            model,
            root: None,
            version: Some("offline".to_owned()),
            top_logprobs: asked.top_k,
            vocab_size: asked.vocab,
            repeated: Difference::default(),
            from_own,
            probe: logprobs(first),
            fixed: Vec::new(),
            fixed_of_each: Vec::new(),
            sent_sha256: Some(sent_sha256),
        }
    }

    /// The program with its version, such as `vllm 0.11.0`.
    pub fn program(&self) -> String {
        program(self.api, self.version.as_deref())
    }

    /// The difference between two runs' servers on the text that is the same in all runs, if it is too large for one model.
    pub fn weights_apart(&self, other: &Checked) -> Option<Difference> {
        // Tokens after a prefix do not affect its scores.
        let apart = Difference::of(self.fixed.iter().copied().zip(other.fixed.iter().copied()));
        (self.fixed.is_empty() != other.fixed.is_empty() || apart.mean > BETWEEN_SERVERS).then_some(apart)
    }

    /// Returns an error unless the probe is the same and the servers' answers to it agree with those `before`.
    pub fn compare(&self, before: &Checked) -> Result<()> {
        if self.sent_sha256 != before.sent_sha256 || self.probe.len() != before.probe.len() {
            return Err(Error::new("the answered prompts differ from those at the start of this run")
                .cure("Pass the earlier answers, or choose another folder with --out."));
        }
        let apart = Difference::of(self.probe.iter().copied().zip(before.probe.iter().copied()));
        if apart.mean <= BETWEEN_SERVERS {
            return Ok(());
        }
        Err(Error::new(format!(
            "the servers score the data's first tokens differently than at the start of this run: ln p differs by {:.3} nat on average over {}",
            apart.mean, apart.tokens
        ))
        .cure("A different model is served now: serve the earlier one, or choose another folder with --out."))
    }
}

/// The difference between two lists of ln p of the same tokens, in nats.
#[derive(Debug, Clone, Copy, Default, PartialEq, Serialize, Deserialize)]
pub struct Difference {
    /// The number of tokens compared.
    pub tokens: usize,
    /// The mean difference.
    pub mean: f64,
    /// The largest difference.
    pub max: f64,
}

impl Difference {
    /// Compares pairs of ln p; tokens that are impossible according to both are skipped.
    fn of(pairs: impl Iterator<Item = (f32, f32)>) -> Difference {
        let mut found = Difference::default();
        for (a, b) in pairs {
            let apart = f64::from((a.max(LEAST_LOGPROB) - b.max(LEAST_LOGPROB)).abs());
            found.tokens += 1;
            found.mean += apart;
            found.max = found.max.max(apart);
        }
        found.mean /= found.tokens.max(1) as f64;
        found
    }
}

impl Pool {
    /// Probes every server with the beginning of a sequence of the data. `own` returns the scores of this program's own engine for the
    /// supervised tokens of a sequence, if available.
    pub fn check(
        &self,
        sequence: &Sequence,
        tokenizer: &Tokenizer,
        own: impl FnOnce(&Sequence) -> Result<Option<Vec<TokenStatistics>>>,
    ) -> Result<Checked> {
        let probe = probe_of(sequence);
        let first = self.probe(0, &probe, tokenizer)?;
        let repeated = self.repeat(0, &probe, &first)?;
        let fixed = self.fixed(0, tokenizer)?;
        let mut fixed_of_each = vec![fixed.clone()];
        for at in 1..self.servers.len() {
            let other = self.probe(at, &probe, tokenizer)?;
            self.repeat(at, &probe, &other)?;
            let fixed_there = self.fixed(at, tokenizer)?;
            let here = logprobs(&first).into_iter().chain(fixed.iter().copied());
            let apart = Difference::of(here.zip(logprobs(&other).into_iter().chain(fixed_there.iter().copied())));
            fixed_of_each.push(fixed_there);
            if apart.mean > BETWEEN_SERVERS {
                return Err(self
                    .fault(
                        at,
                        format!(
                            "this server scores a probe differently than {}: ln p differs by {:.3} nat on average over {} tokens",
                            self.servers[0].url(),
                            apart.mean,
                            apart.tokens
                        ),
                    )
                    .cure("Use servers of the same model in the same precision."));
            }
        }
        let from_own = match own(&probe)? {
            Some(own) => Some(compare_with_own(&first, &own).map_err(|error| error.at(self.servers[0].url()))?),
            None => None,
        };
        let server = &self.servers[0];
        Ok(Checked {
            api: server.api,
            urls: self.servers.iter().map(|server| server.url().to_owned()).collect(),
            model: server.model.clone(),
            root: server.root.clone(),
            version: server.version.clone(),
            top_logprobs: self.top_k,
            vocab_size: self.vocab,
            repeated,
            from_own,
            probe: logprobs(&first),
            fixed,
            fixed_of_each,
            sent_sha256: None,
        })
    }

    /// A server's scores of the text that is the same in all runs.
    fn fixed(&self, at: usize, tokenizer: &Tokenizer) -> Result<Vec<f32>> {
        let Sequence { ids, supervised, .. } = self.fixed_sequence(tokenizer)?;
        Ok(logprobs(&self.ask(at, &ids, &supervised, None).map_err(Trouble::into_error)?))
    }

    /// A remark if the servers' names for their models differ: models as near as two checkpoints of one training may pass the comparison of scores.
    pub(crate) fn named_apart(&self) -> Option<String> {
        let first = self.servers.first()?;
        let other = self.servers.iter().find(|server| server.origin() != first.origin())?;
        Some(format!(
            "The servers name different models, {} ({}) and {} ({}), and their scores differ by less than {BETWEEN_SERVERS} nat on average: make sure that these are the same weights.",
            first.origin(),
            first.url(),
            other.origin(),
            other.url()
        ))
    }

    /// Those of the servers `by` that score this text as in the checks. The others cannot be reached, so it is unknown which model gave their last
    /// answers. Returns an error if a server's scores or its name for the model differ, because it then serves another model.
    pub(crate) fn confirmed(
        &self,
        by: impl Iterator<Item = usize>,
        checked: &Checked,
        tokenizer: &Tokenizer,
    ) -> Result<BTreeSet<usize>> {
        let Sequence { ids, supervised, .. } = self.fixed_sequence(tokenizer)?;
        let mut confirmed: BTreeSet<usize> = by.collect();
        for at in confirmed.clone() {
            let ask =
                |server: &Server| Ok((server.other_origin()?, server.positions(&ids, &supervised, self.top_tokens(), None)?));
            let Some((other, now)) = self.ask_again(at, ask)? else {
                confirmed.remove(&at);
                continue;
            };
            let before = checked.fixed_of_each.get(at).unwrap_or(&checked.fixed);
            let apart = Difference::of(logprobs(&now).into_iter().zip(before.iter().copied()));
            let what = match other {
                Some(other) => {
                    format!("the server served {} at the beginning, and serves {other} now", self.servers[at].origin())
                }
                None if apart.mean > BETWEEN_SERVERS => format!(
                    "the server scores a text differently than at the beginning: ln p differs by {:.3} nat on average over {} tokens",
                    apart.mean, apart.tokens
                ),
                None => continue,
            };
            return Err(self.fault(at, what).cure(
                "A different model is served now, and its replies were not kept: serve the earlier one, and run the command again.",
            ));
        }
        Ok(confirmed)
    }

    /// The tokens of the text that is the same in all runs, which serves as the probe if there are no data.
    pub(crate) fn fixed_sequence(&self, tokenizer: &Tokenizer) -> Result<Sequence> {
        let text = tokenizer.encode(FIXED_TEXT)?;
        let mut ids: Vec<u32> = tokenizer.leading().iter().copied().chain(text.iter().map(|token| token.id)).collect();
        ids.truncate(PROBE_TOKENS.min(self.longest_prompt().unwrap_or(PROBE_TOKENS)));
        let n = ids.len();
        Ok(Sequence { row: 0, supervised: (0..n).map(|i| i > 0).collect(), spans: vec![Span::default(); n], ids })
    }

    /// Lets every server continue a text greedily, and asks it for the probability of these tokens: its answers must agree with its scores.
    /// This detects a penalty, a watermark, or ids other than those that were sampled.
    pub(crate) fn check_answers(&self, tokenizer: &Tokenizer) -> Result<()> {
        let mut prompt = self.fixed_sequence(tokenizer)?.ids;
        prompt.truncate(prompt.len().saturating_sub(PROBE_ANSWER).max(1));
        let way = Way { sampling: Sampling::GREEDY, ends: Vec::new(), stops: Vec::new(), at_once: 1 };
        let request = Request { prompt, max_new_tokens: PROBE_ANSWER, seed: 0 };
        for (at, server) in self.servers.iter().enumerate() {
            let answer = server.answer(&request, &way, tokenizer, self.vocab).map_err(Trouble::into_error)?;
            let ids: Vec<u32> = request.prompt.iter().chain(&answer.ids).copied().collect();
            let wanted: Vec<bool> = (0..ids.len()).map(|i| i >= request.prompt.len()).collect();
            let said = self.ask(at, &ids, &wanted, None).map_err(Trouble::into_error)?;
            let short_of =
                |position: &Position| position.top.first().map_or(0.0, |first| first.logprob - position.target.logprob);
            if let Some(worst) = said.iter().max_by(|a, b| short_of(a).total_cmp(&short_of(b))).filter(|p| short_of(p) > WRITTEN)
            {
                let error = self.fault(
                    at,
                    format!(
                        "the server was asked for the most probable tokens and wrote {} ({:?}), which by its own log-probabilities is {:.2} nat less probable than the first",
                        worst.target.id,
                        tokenizer.text(worst.target.id),
                        short_of(worst)
                    ),
                );
                return Err(error.cure("It changes the distribution: start it without its own penalties, biases and watermarks."));
            }
        }
        Ok(())
    }

    /// The first answer of a server, with a check that its tokens are ours.
    fn probe(&self, at: usize, probe: &Sequence, tokenizer: &Tokenizer) -> Result<Vec<Position>> {
        let mut texts = HashMap::new();
        let positions = self.ask(at, &probe.ids, &probe.supervised, Some(&mut texts)).map_err(Trouble::into_error)?;
        for position in &positions {
            position.statistics(self.vocab).map_err(|error| error.at(self.servers[at].url()))?;
        }
        self.check_texts(at, &texts, tokenizer)?;
        // The server must know the last token of the vocabulary, and must not know the one after it.
        let last = tokenizer.vocab_size().min(self.vocab).saturating_sub(1) as u32;
        let ids = [probe.ids[0], last];
        self.ask(at, &ids, &[false, true], None).map_err(Trouble::into_error)?;
        // SGLang passes it to the GPU, where it crashes the server.
        if self.servers[at].api == Api::Vllm {
            let beyond = [probe.ids[0], self.vocab as u32];
            match self.ask(at, &beyond, &[false, true], None) {
                Err(Trouble::Lasting(_)) => {}
                Err(Trouble::Passing(error, _)) => return Err(*error),
                Ok(_) => return Err(self.larger_vocabulary(at)),
            }
        }
        Ok(positions)
    }

    fn larger_vocabulary(&self, at: usize) -> Error {
        self.fault(at, format!("the server's model has a token {}, which the model named here lacks", self.vocab))
            .cure("Pass the folder of exactly the served model with --model.")
    }

    fn check_texts(&self, at: usize, texts: &HashMap<u32, String>, tokenizer: &Tokenizer) -> Result<()> {
        // Partial characters cannot be represented in JSON.
        let whole = |text: &str| !text.contains('\u{fffd}');
        let mut ids: Vec<u32> = texts.iter().filter(|(_, text)| whole(text)).map(|(id, _)| *id).collect();
        ids.sort_unstable();
        let is_other = |id: &&u32| texts[*id].trim() != tokenizer.text(**id).trim();
        let other: Vec<u32> = ids.iter().filter(is_other).copied().collect();
        if other.len() as f64 <= OTHER_TEXTS * ids.len() as f64 {
            return Ok(());
        }
        let examples = other.iter().take(3).map(|id| format!("{id} is {:?} there and {:?} here", texts[id], tokenizer.text(*id)));
        Err(self
            .fault(
                at,
                format!(
                    "the server's model has a different vocabulary: {} of {} tokens differ ({})",
                    other.len(),
                    ids.len(),
                    examples.collect::<Vec<_>>().join("; ")
                ),
            )
            .cure("Pass the folder of exactly the served model with --model."))
    }

    /// Scores a prompt with the same prefix, and the probe again: the cache must not change the scores.
    fn repeat(&self, at: usize, probe: &Sequence, first: &[Position]) -> Result<Difference> {
        let shared = probe.ids.len() / 2;
        if shared >= 2 {
            let ids: Vec<u32> = probe.ids[..shared].iter().chain(&probe.ids[1..shared]).copied().collect();
            let wanted: Vec<bool> = (0..ids.len()).map(|i| i > 0).collect();
            let beside = self.ask(at, &ids, &wanted, None).map_err(Trouble::into_error)?;
            self.check_repeated(at, difference(first, &beside[..shared - 1]), "in a prompt with the same beginning")?;
        }
        let again = self.ask(at, &probe.ids, &probe.supervised, None).map_err(Trouble::into_error)?;
        self.check_repeated(at, difference(first, &again), "when sent again")
    }

    fn check_repeated(&self, at: usize, found: Difference, when: &str) -> Result<Difference> {
        if found.mean <= REPEATED {
            return Ok(found);
        }
        Err(self
            .fault(
                at,
                format!(
                    "the server scores the same tokens differently {when}: ln p differs by {:.3} nat on average, by {:.3} at most",
                    found.mean, found.max
                ),
            )
            .cure("Its cache returns stale values: start it with --no-enable-prefix-caching (vLLM) or --disable-radix-cache (SGLang)."))
    }
}

/// Compares another engine's scores of a sequence with this program's own. Returns an error if they differ more than any precision explains.
pub fn compare_with_own(found: &[Position], own: &[TokenStatistics]) -> Result<Difference> {
    let apart = Difference::of(found.iter().zip(own).map(|(found, own)| (found.target.logprob, own.logprob)));
    if apart.mean <= FROM_OWN {
        return Ok(apart);
    }
    Err(Error::new(format!(
        "the server scores tokens differently than this program with the model named here: ln p differs by {:.3} nat on average over {} tokens, by {:.3} at most",
        apart.mean, apart.tokens, apart.max
    ))
    .cure("A different model is served, or the server computes it incorrectly. Pass exactly the served model with --model."))
}

/// ln p of the targets, for storage and comparison.
fn logprobs(positions: &[Position]) -> Vec<f32> {
    positions.iter().map(|position| position.target.logprob.max(LEAST_LOGPROB)).collect()
}

fn difference(first: &[Position], second: &[Position]) -> Difference {
    Difference::of(first.iter().zip(second).map(|(first, second)| (first.target.logprob, second.target.logprob)))
}

/// The beginning of a sequence, with all tokens except the first requested.
fn probe_of(sequence: &Sequence) -> Sequence {
    let n = sequence.ids.len().min(PROBE_TOKENS);
    Sequence {
        row: sequence.row,
        ids: sequence.ids[..n].to_vec(),
        supervised: (0..n).map(|i| i > 0).collect(),
        spans: sequence.spans[..n].to_vec(),
    }
}
