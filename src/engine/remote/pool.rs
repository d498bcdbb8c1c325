//! Several servers of one model: each prompt goes to the one with the fewest tokens under way, and comes back scored.
//!
//! What is bounded is the tokens under way, not the requests: the log-probabilities of a prompt take a server `tokens x vocabulary` numbers.
//! What fails in passing is asked again, after a pause that doubles; a server that fails rests meanwhile, and the others go on.

use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::bounds::{Bounds, Position};
use super::http::{CONNECTIONS, Trouble};
use super::server::{Api, Server};
use crate::error::{Error, Result};
use crate::kernels::TokenStatistics;
use crate::tokens::Sequence;

/// As the user wants it.
#[derive(Debug, Clone, PartialEq)]
pub struct Options {
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
const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A request that is tried once more at once may only have met a connection that the server had closed.
const LEAST_TRIES: u32 = 3;

pub struct Pool {
    pub(super) servers: Vec<Server>,
    loads: Mutex<Vec<Load>>,
    freed: Condvar,
    pub(super) top_k: usize,
    pub(super) vocab: usize,
    in_flight: usize,
    patience: Duration,
    retries: AtomicU64,
    stopped: AtomicBool,
}

/// What is under way at a server.
#[derive(Default)]
struct Load {
    tokens: usize,
    requests: usize,
    /// Failures since its last answer.
    failures: u32,
    rests_until: Option<Instant>,
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
            loads: Mutex::new(servers.iter().map(|_| Load::default()).collect()),
            servers,
            freed: Condvar::new(),
            top_k: options.top_k,
            vocab,
            in_flight: options.in_flight,
            patience,
            retries: AtomicU64::new(0),
            stopped: AtomicBool::new(false),
        })
    }

    /// The same servers, asked for fewer of the most probable tokens: enough for the targets alone is one, and costs the least.
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
        let n = sequence.supervised.iter().rposition(|&supervised| supervised).map_or(0, |last| last + 1);
        let positions = self.positions(&sequence.ids[..n], &sequence.supervised[..n])?;
        positions.iter().map(|position| position.statistics(self.vocab)).collect()
    }

    fn positions(&self, ids: &[u32], wanted: &[bool]) -> Result<Vec<Position>> {
        self.turn(ids.len(), |server| server.positions(ids, wanted, (self.top_k, self.vocab), None))
    }

    /// What waits for its turn is asked for no more.
    pub(super) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    /// What a server answers to a request of so many tokens. Waits for its turn, and through failures that pass.
    pub(super) fn turn<T>(&self, tokens: usize, ask: impl Fn(&Server) -> Result<T, Trouble>) -> Result<T> {
        let (mut began, mut tries): (Option<Instant>, u32) = (None, 0);
        loop {
            let at = self.acquire(tokens);
            if self.stopped.load(Ordering::Relaxed) {
                self.release(at, tokens, &Ok(()));
                return Err(Error::new("it was not asked for: another request has failed"));
            }
            let answer = ask(&self.servers[at]);
            self.release(at, tokens, &answer);
            tries += 1;
            match answer {
                Ok(answer) => return Ok(answer),
                Err(Trouble::Passing(error, _)) => {
                    if self.stopped.load(Ordering::Relaxed) {
                        return Err(*error);
                    }
                    if tries >= LEAST_TRIES && began.is_some_and(|began| began.elapsed() >= self.patience) {
                        return Err(error.cure(format!(
                            "It was tried {tries} times. Give the same command again when the server is up: it goes on where it stopped."
                        )));
                    }
                    began.get_or_insert_with(Instant::now);
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
        self.servers[at].positions(ids, wanted, (self.top_k, self.vocab), texts)
    }

    fn loads(&self) -> MutexGuard<'_, Vec<Load>> {
        // Nothing in there can be half done.
        self.loads.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until a server has room for so many tokens: the one with the fewest under way. One prompt may be as long as it likes.
    fn acquire(&self, tokens: usize) -> usize {
        let mut loads = self.loads();
        loop {
            let now = Instant::now();
            let is_free = |load: &Load| {
                let has_room = load.tokens == 0 || load.tokens + tokens <= self.in_flight;
                has_room && load.requests < CONNECTIONS && load.rests_until.is_none_or(|until| until <= now)
            };
            let free = loads.iter().enumerate().filter(|(_, load)| is_free(load)).min_by_key(|(_, load)| load.tokens);
            if let Some((at, _)) = free {
                loads[at].tokens += tokens;
                loads[at].requests += 1;
                return at;
            }
            // A rest may end without anybody saying so.
            let (woken, _) = self.freed.wait_timeout(loads, Duration::from_millis(100)).unwrap_or_else(PoisonError::into_inner);
            loads = woken;
        }
    }

    fn release<T>(&self, at: usize, tokens: usize, answer: &Result<T, Trouble>) {
        let mut loads = self.loads();
        let load = &mut loads[at];
        load.tokens -= tokens;
        load.requests -= 1;
        match answer {
            Err(Trouble::Passing(_, after)) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << load.failures.min(10)).min(LONGEST_PAUSE);
                load.rests_until = Some(Instant::now() + after.unwrap_or(pause));
                load.failures += 1;
            }
            Ok(_) | Err(Trouble::Lasting(_)) => (load.failures, load.rests_until) = (0, None),
        }
        drop(loads);
        self.freed.notify_all();
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
