//! Several servers of one model: each prompt goes to a server that has room for it.
//!
//! The limit is on the tokens in flight, not on the requests, because a server needs `tokens x vocabulary` numbers for the log-probabilities
//! of a prompt. Requests with transient failures are retried in turn (`turns.rs`), by whichever server has room: if one dies, the others do its work,
//! and the run ends when none is left.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::bounds::{Bounds, Position, TopTokens};
use super::http::{CONNECTIONS, Trouble};
use super::server::{Api, Server};
use super::turns::{End, LEAST_TRIES, Turns};
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::tokens::Sequence;

/// The user's settings for the servers.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
    /// The addresses of the servers.
    pub urls: Vec<String>,
    /// The protocol; `None` to detect it.
    pub api: Option<Api>,
    /// The name under which the model is served; `None` if there is only one.
    pub model: Option<String>,
    /// The number of most probable tokens to request.
    pub top_k: usize,
    /// The tokens in flight at each server.
    pub in_flight: usize,
}

/// The variable with the number of seconds for which a request is retried, in place of [`PATIENCE`].
const PATIENCE_VARIABLE: &str = "DIAGNOSE_SERVER_PATIENCE";
const PATIENCE: Duration = Duration::from_secs(180);

/// The servers of one model, and the scheduler.
pub struct Pool {
    pub(super) servers: Vec<Server>,
    turns: Turns,
    pub(super) top_k: usize,
    pub(super) vocab: usize,
    patience: Duration,
    retries: AtomicU64,
    stopped: AtomicBool,
    /// What the user has not been told yet.
    news: Mutex<Vec<String>>,
}

fn patience(seconds: &str) -> Result<Duration> {
    let parsed: Option<f64> = seconds.trim().parse().ok();
    parsed.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()).ok_or_else(|| {
        Error::usage(format!("{PATIENCE_VARIABLE} is `{seconds}`; expected seconds, such as {}", PATIENCE.as_secs()))
    })
}

/// The error for requesting `top_k` most probable tokens from a smaller vocabulary.
pub(crate) fn more_than_all(top_k: usize, vocab: usize) -> Error {
    Error::usage(format!("--top-logprobs {top_k} is more than the {vocab} tokens of the model's vocabulary"))
}

/// How a request with this answer has ended, for the scheduler.
fn end_of<T>(answer: &Result<T, Trouble>) -> End {
    match answer {
        Ok(_) => End::Answered,
        Err(Trouble::Passing(_, after)) => End::Failed(*after),
        Err(Trouble::Lasting(_)) => End::Refused,
    }
}

/// The statistics and bounds of each supervised token of a sequence, in order.
pub type Scored = Vec<(TokenStatistics, Bounds)>;

/// A server's answer. It is kept once that server has confirmed that it still runs the model which was checked.
#[derive(Debug, Clone)]
pub struct Given<T> {
    /// The index of the server.
    pub by: usize,
    pub answer: T,
}

impl<T> Given<T> {
    /// The same with a result computed from the answer.
    pub fn map<R>(self, of: impl FnOnce(T) -> R) -> Given<R> {
        Given { by: self.by, answer: of(self.answer) }
    }
}

impl Pool {
    /// Connects to each server. They must serve a model of `vocab` tokens.
    pub fn open(options: &Options, vocab: usize) -> Result<Pool> {
        if options.top_k > vocab {
            return Err(more_than_all(options.top_k, vocab));
        }
        let patience = match std::env::var(PATIENCE_VARIABLE) {
            Ok(seconds) => patience(&seconds)?,
            Err(_) => PATIENCE,
        };
        let open = |url: &String| Server::open(url, options.api, options.model.as_deref(), options.urls.len() > 1);
        let servers = options.urls.iter().map(open).collect::<Result<Vec<Server>>>()?;
        Ok(Pool {
            turns: Turns::new(servers.len(), options.in_flight, CONNECTIONS),
            servers,
            top_k: options.top_k,
            vocab,
            patience,
            retries: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
            news: Mutex::default(),
        })
    }

    pub(super) fn top_tokens(&self) -> TopTokens {
        TopTokens { top_k: self.top_k, vocab: self.vocab }
    }

    /// The same servers with `top_k` most probable tokens: 1 suffices for the targets only, and costs the least.
    pub fn with_top_k(self, top_k: usize) -> Pool {
        Pool { top_k, ..self }
    }

    /// The most requests that can run concurrently.
    pub fn connections(&self) -> usize {
        CONNECTIONS * self.servers.len()
    }

    /// The origin of the servers' model, or its name.
    pub fn model(&self) -> &str {
        self.servers.first().map_or("", Server::origin)
    }

    /// The program with its version, such as `vllm 0.11.0`.
    pub fn program(&self) -> String {
        self.servers.first().map_or_else(String::new, Server::program)
    }

    /// The number of requests that were retried.
    pub fn retries(&self) -> u64 {
        self.retries.load(Ordering::Relaxed)
    }

    /// The most tokens that all servers accept, prompt and answer together.
    pub fn max_len(&self) -> Option<usize> {
        self.servers.iter().filter_map(|server| server.max_len).min()
    }

    /// The longest prompt that all servers accept: one token less than their limit, because each has to generate one.
    pub fn longest_prompt(&self) -> Option<usize> {
        self.max_len().map(|tokens| tokens.saturating_sub(1))
    }

    /// Which servers fail while others do their work, as sentences for the user; each once.
    pub fn news(&self) -> Vec<String> {
        std::mem::take(&mut *self.news.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The statistics of the supervised tokens of a sequence, in order. Waits for its turn, and retries transient failures.
    pub fn score(&self, sequence: &Sequence) -> Result<Given<Scored>> {
        // Nothing after the last supervised token is needed.
        let n = sequence.targets_end();
        let (ids, wanted) = (&sequence.ids[..n], &sequence.supervised[..n]);
        let Given { by, answer: positions } = self.turn(n, |server| server.positions(ids, wanted, self.top_tokens(), None))?;
        let scored = positions.iter().map(|position| position.statistics(self.vocab)).collect::<Result<Scored>>()?;
        Ok(Given { by, answer: scored })
    }

    /// Stops requests that are still waiting for their turn.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// A server's answer to a request of `tokens` tokens. Waits for its turn, and retries transient failures.
    pub(super) fn turn<T>(&self, tokens: usize, ask: impl Fn(&Server) -> Result<T, Trouble>) -> Result<Given<T>> {
        let (mut began, mut tries): (Option<Instant>, u32) = (None, 0);
        loop {
            let Some(turn) = self.turns.take(tokens, &self.stopped) else {
                return Err(Error::new("not sent: another request has failed"));
            };
            let answer = ask(&self.servers[turn.at]);
            self.turns.end(turn, end_of(&answer));
            // A server that was failing before has not failed because of this request.
            tries += u32::from(!turn.tries_server);
            match answer {
                Ok(answer) => return Ok(Given { by: turn.at, answer }),
                Err(Trouble::Passing(error, _)) => {
                    if self.stopped.load(Ordering::Relaxed) {
                        return Err(*error);
                    }
                    // A server may fail at one request and answer others, or answer none at all.
                    let own = began.filter(|_| tries >= LEAST_TRIES).map(|began| began.elapsed());
                    if let Some(tried) = own.max(self.turns.failing_for()).filter(|tried| *tried >= self.patience) {
                        return Err(error.cure(self.resumable(tried)));
                    }
                    if let Some(failing) = self.turns.server_failing_for(turn.at).filter(|failing| *failing >= self.patience) {
                        self.tell(turn.at, &error, failing);
                    }
                    began.get_or_insert_with(Instant::now);
                    self.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(Trouble::Lasting(error)) => return Err(*error),
            }
        }
    }

    fn tell(&self, at: usize, error: &Error, failing: Duration) {
        if !self.turns.is_to_be_told(at) {
            return;
        }
        let line = format!(
            "{}: {}: nothing for {:.1} s. The other servers do its work; it is tried until it answers again.",
            self.servers[at].url(),
            error.reason(),
            failing.as_secs_f64()
        );
        self.news.lock().unwrap_or_else(PoisonError::into_inner).push(line);
    }

    /// The cure for a server that has failed for this long.
    fn resumable(&self, tried: Duration) -> String {
        let others = if self.servers.len() > 1 { ", or without this --server" } else { "" };
        format!("Retried for {:.1} s. Run the same command again when the server is up{others}: it resumes.", tried.as_secs_f64())
    }

    /// Sends one request to one server, and retries transient failures. `None` if they last, and other servers can do its work.
    pub(super) fn ask_again<T>(&self, at: usize, ask: impl Fn(&Server) -> Result<T, Trouble>) -> Result<Option<T>> {
        const PAUSE: Duration = Duration::from_millis(250);
        let (began, mut tries) = (Instant::now(), 0);
        loop {
            tries += 1;
            match ask(&self.servers[at]) {
                Ok(answer) => return Ok(Some(answer)),
                Err(Trouble::Passing(error, after)) => {
                    // Other requests may have found out before that it fails.
                    let tried = Some(began.elapsed()).max(self.turns.server_failing_for(at)).unwrap_or_default();
                    let is_stopped = self.stopped.load(Ordering::Relaxed);
                    if is_stopped || (tries >= LEAST_TRIES && tried >= self.patience) {
                        let all_fail = self.turns.failing_for().is_some_and(|failing| failing >= self.patience);
                        if self.servers.len() == 1 || (all_fail && !is_stopped) {
                            return Err(error.cure(self.resumable(tried)));
                        }
                        if !is_stopped {
                            self.tell(at, &error, tried);
                        }
                        return Ok(None);
                    }
                    std::thread::sleep(after.unwrap_or(PAUSE));
                    self.retries.fetch_add(1, Ordering::Relaxed);
                }
                Err(Trouble::Lasting(error)) => return Err(*error),
            }
        }
    }

    /// Sends one request to one server.
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
