//! Several servers of one model: each prompt goes to one that has room for it, and comes back scored.
//!
//! What is bounded is the tokens under way, not the requests: the log-probabilities of a prompt take a server `tokens x vocabulary` numbers.
//! What fails in passing is asked again when its turn comes (`turns.rs`).

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

use super::bounds::{Bounds, Position, TopTokens};
use super::http::{CONNECTIONS, Trouble};
use super::server::{Api, Server};
use super::turns::{End, LEAST_TRIES, Turns};
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::tokens::Sequence;

/// What the user asks of the servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The addresses of the servers.
    pub urls: Vec<String>,
    /// `None`: it is found out.
    pub api: Option<Api>,
    /// The name under which the model is served; `None` where there is one.
    pub model: Option<String>,
    /// How many of the most probable tokens are asked for.
    pub top_k: usize,
    /// Tokens under way at each server.
    pub in_flight: usize,
}

/// Seconds for which a request is tried again, in place of [`PATIENCE`].
const PATIENCE_VARIABLE: &str = "DIAGNOSE_SERVER_PATIENCE";
const PATIENCE: Duration = Duration::from_secs(180);

/// The servers of one model, and whose turn it is.
pub struct Pool {
    pub(super) servers: Vec<Server>,
    turns: Turns,
    pub(super) top_k: usize,
    pub(super) vocab: usize,
    patience: Duration,
    retries: AtomicU64,
    stopped: AtomicBool,
}

fn patience(seconds: &str) -> Result<Duration> {
    let parsed: Option<f64> = seconds.trim().parse().ok();
    parsed.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        Error::usage(format!("{PATIENCE_VARIABLE} is `{seconds}`; expected seconds, such as {}", PATIENCE.as_secs()))
    })
}

/// `top_k` of the most probable tokens are asked for, of fewer that there are.
pub(crate) fn more_than_all(top_k: usize, vocab: usize) -> Error {
    Error::usage(format!("--top-logprobs {top_k} is more than the {vocab} tokens of the model's vocabulary"))
}

/// How the turn ends that has brought this answer.
fn end_of<T>(answer: &Result<T, Trouble>) -> End {
    match answer {
        Ok(_) => End::Answered,
        Err(Trouble::Passing(_, after)) => End::Failed(*after),
        Err(Trouble::Lasting(_)) => End::Refused,
    }
}

fn resumable(tried: Duration) -> String {
    format!("Retried for {:.1} s. Run the same command again when the server is up: it resumes.", tried.as_secs_f64())
}

/// What is known of each supervised token of a sequence, in order.
pub type Scored = Vec<(TokenStatistics, Bounds)>;

impl Pool {
    /// Asks each server what it is. They serve a model of `vocab` tokens.
    pub fn open(options: &Options, vocab: usize) -> Result<Pool> {
        if options.top_k > vocab {
            return Err(more_than_all(options.top_k, vocab));
        }
        let patience = match std::env::var(PATIENCE_VARIABLE) {
            Ok(seconds) => patience(&seconds)?,
            Err(_) => PATIENCE,
        };
        let servers = options.urls.iter().map(|url| Server::open(url, options.api, options.model.as_deref()));
        let servers = servers.collect::<Result<Vec<Server>>>()?;
        Ok(Pool {
            turns: Turns::new(servers.len(), options.in_flight, CONNECTIONS),
            servers,
            top_k: options.top_k,
            vocab,
            patience,
            retries: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    fn top_tokens(&self) -> TopTokens {
        TopTokens { top_k: self.top_k, vocab: self.vocab }
    }

    /// The servers as before, asked for `top_k` of the most probable tokens: 1 is enough for the targets alone, and costs the least.
    pub fn with_top_k(self, top_k: usize) -> Pool {
        Pool { top_k, ..self }
    }

    /// The most requests that can be under way.
    pub fn connections(&self) -> usize {
        CONNECTIONS * self.servers.len()
    }

    /// Where the servers have the model from, or what they call it.
    pub fn model(&self) -> &str {
        self.servers.first().map_or("", |server| server.root.as_deref().unwrap_or(&server.model))
    }

    /// `vllm 0.11.0`
    pub fn program(&self) -> String {
        self.servers.first().map_or_else(String::new, Server::program)
    }

    /// Requests that were sent again.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// The most tokens that all of them take, prompt and answer together.
    pub fn max_len(&self) -> Option<usize> {
        self.servers.iter().filter_map(|server| server.max_len).min()
    }

    /// The longest prompt that all of them take: one token less than their limit, since each has to answer one.
    pub fn longest_prompt(&self) -> Option<usize> {
        self.max_len().map(|tokens| tokens.saturating_sub(1))
    }

    /// What the servers say of the supervised tokens of a sequence, in order. Waits for its turn, and through failures that pass.
    pub fn score(&self, sequence: &Sequence) -> Result<Scored> {
        // Nothing is asked of what follows the last supervised token.
        let n = sequence.targets_end();
        let positions = self.positions(&sequence.ids[..n], &sequence.supervised[..n])?;
        positions.iter().map(|position| position.statistics(self.vocab)).collect()
    }

    fn positions(&self, ids: &[u32], wanted: &[bool]) -> Result<Vec<Position>> {
        self.turn(ids.len(), |server| server.positions(ids, wanted, self.top_tokens(), None))
    }

    /// What waits for its turn is asked for no more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What a server answers to a request of so many tokens. Waits for its turn, and through failures that pass.
    pub(super) fn turn<T>(&self, tokens: usize, ask: impl Fn(&Server) -> Result<T, Trouble>) -> Result<T> {
        let (mut began, mut tries): (Option<Instant>, u32) = (None, 0);
        loop {
            let Some(turn) = self.turns.take(tokens, &self.stopped) else {
                return Err(Error::new("not sent: another request has failed"));
            };
            let answer = ask(&self.servers[turn.at]);
            self.turns.end(turn, end_of(&answer));
            tries += 1;
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Passing(error, _)) => {
                    if self.stopped.load(Ordering::Relaxed) {
                        return Err(*error);
                    }
                    // A server may fail at one request and answer others, or answer nothing at all.
                    let own = began.filter(|_| tries >= LEAST_TRIES).map(|began| began.elapsed());
                    if let Some(tried) = own.max(self.turns.failing_for()).filter(|tried| *tried >= self.patience) {
                        return Err(error.cure(resumable(tried)));
                    }
                    began.get_or_insert_with(Instant::now);
                    self.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(Trouble::Lasting(error)) => return Err(*error),
            }
        }
    }

    /// One request to one server, sent again while it fails in passing.
    pub(super) fn ask_again(&self, at: usize, ids: &[u32], wanted: &[bool]) -> Result<Vec<Position>> {
        const PAUSE: Duration = Duration::from_millis(250);
        let (began, mut tries) = (Instant::now(), 0);
        loop {
            tries += 1;
            match self.ask(at, ids, wanted, None) {
                Ok(positions) => return Ok(positions),
                Err(Trouble::Passing(error, after)) => {
                    let tried = began.elapsed();
                    if (tries >= LEAST_TRIES && tried >= self.patience) || self.stopped.load(Ordering::Relaxed) {
                        return Err(error.cure(resumable(tried)));
                    }
                    std::thread::sleep(after.unwrap_or(PAUSE));
                    self.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(Trouble::Lasting(error)) => return Err(*error),
            }
        }
    }

    /// One request to one server.
    pub(super) fn ask(
        &self,
        at: usize,
        ids: &[u32],
        wanted: &[bool],
        texts: Option<&mut HashMap<u32, String>>,
    ) -> Result<Vec<Position>, Trouble> {
        self.servers[at].positions(ids, wanted, self.top_tokens(), texts)
    }

    /// An error of the checks before the run.
    pub(super) fn fault(&self, at: usize, message: String) -> Error {
        Error::new(message).at(self.servers[at].url())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn patience_is_a_time() {
        assert_eq!(patience("0.5").unwrap(), Duration::from_millis(500));
        for wrong in ["-1", "inf", "nan", "1e300", "soon", ""] {
            assert!(patience(wrong).unwrap_err().to_string().contains("expected seconds, such as 180"), "{wrong}");
        }
    }
}
