//! Schedules requests: they wait in order of arrival, and each goes to the server with the fewest tokens in flight.
//!
//! A server that fails is paused for a time that doubles, and then tried with what the others have no room for, until it answers again. Requests in
//! flight when it failed were sent before the failure was known, so however many of them fail, they count as one failure.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

const FIRST_PAUSE: Duration = Duration::from_millis(250);
const LONGEST_PAUSE: Duration = Duration::from_secs(15);
/// A request is only given up after this many failures, because a single one may be due to a kept connection that the server had closed.
pub(super) const LEAST_TRIES: u32 = 3;

pub(super) struct Turns {
    state: Mutex<State>,
    changed: Condvar,
    /// The most tokens in flight at each server.
    in_flight: usize,
    /// The most requests in flight at each server.
    connections: usize,
}

/// A request in flight.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Turn {
    /// The index of its server.
    pub at: usize,
    tokens: usize,
    /// The number of the server's failures when it was sent.
    fallen: u64,
    /// Whether the server was failing when it was sent: another failure then says nothing about the request.
    pub tries_server: bool,
}

/// How a request ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
    Answered,
    /// A transient failure; the server may have stated after how long to retry.
    Failed(Option<Duration>),
    /// It would fail on every server and every time.
    Refused,
}

struct State {
    servers: Vec<Load>,
    /// The ticket of the next request to arrive, and of the one whose turn is next.
    comes: u64,
    next: u64,
}

/// The requests in flight at a server.
#[derive(Debug, Default)]
struct Load {
    tokens: usize,
    requests: usize,
    fallen: u64,
    /// The number of failures since its last answer, and the time of the first of them.
    failures: u32,
    fails_since: Option<Instant>,
    rests_until: Option<Instant>,
    /// Whether the user has been told that it fails.
    is_told: bool,
}

impl Turns {
    pub(super) fn new(servers: usize, in_flight: usize, connections: usize) -> Turns {
        let servers = (0..servers).map(|_| Load::default()).collect();
        Turns { state: Mutex::new(State { servers, comes: 0, next: 0 }), changed: Condvar::new(), in_flight, connections }
    }

    /// Waits until all earlier requests have had their turn and a server has room for `tokens` tokens. A single request may exceed the limit. Returns
    /// `None` once `stopped` is set, which is permanent and also ends the waiting of others.
    pub(super) fn take(&self, tokens: usize, stopped: &AtomicBool) -> Option<Turn> {
        let mut state = self.state();
        let own = state.comes;
        state.comes += 1;
        loop {
            if stopped.load(Ordering::Relaxed) {
                return None;
            }
            if state.next == own
                && let Some(turn) = self.free(&mut state, tokens, Instant::now())
            {
                state.next += 1;
                self.changed.notify_all();
                return Some(turn);
            }
            // A pause may end without a notification.
            let (woken, _) = self.changed.wait_timeout(state, Duration::from_millis(50)).unwrap_or_else(PoisonError::into_inner);
            state = woken;
        }
    }

    pub(super) fn end(&self, turn: Turn, end: End) {
        self.state().servers[turn.at].end(turn, end, Instant::now());
        self.changed.notify_all();
    }

    /// For how long no server has answered anything, if each has failed several times; waiting requests have waited in vain for that long.
    pub(super) fn failing_for(&self) -> Option<Duration> {
        self.state().failing_for(Instant::now())
    }

    /// For how long one server has answered nothing, if it has failed several times.
    pub(super) fn server_failing_for(&self, at: usize) -> Option<Duration> {
        self.state().servers[at].failing_for(Instant::now())
    }

    /// Whether the user has still to be told that a server fails: true once, until it answers again.
    pub(super) fn is_to_be_told(&self, at: usize) -> bool {
        !std::mem::replace(&mut self.state().servers[at].is_told, true)
    }

    fn free(&self, state: &mut State, tokens: usize, now: Instant) -> Option<Turn> {
        let has_room = |load: &Load| {
            let fits = load.tokens == 0 || load.tokens + tokens <= self.in_flight;
            // A failing server is tried by one request at a time, however many are waiting.
            let connections = if load.failures == 0 { self.connections } else { 1 };
            fits && load.requests < connections && load.rests_until.is_none_or(|until| until <= now)
        };
        let with_room = state.servers.iter_mut().enumerate().filter(|(_, load)| has_room(load));
        let (at, load) = with_room.min_by_key(|(_, load)| (load.failures > 0, load.tokens))?;
        load.tokens += tokens;
        load.requests += 1;
        Some(Turn { at, tokens, fallen: load.fallen, tries_server: load.failures > 0 })
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // The state is never left inconsistent.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    fn failing_for(&self, now: Instant) -> Option<Duration> {
        self.servers.iter().map(|load| load.failing_for(now)).min().flatten()
    }
}

impl Load {
    fn failing_for(&self, now: Instant) -> Option<Duration> {
        self.fails_since.filter(|_| self.failures >= LEAST_TRIES).map(|since| now.saturating_duration_since(since))
    }

    fn end(&mut self, turn: Turn, end: End, now: Instant) {
        self.tokens -= turn.tokens;
        self.requests -= 1;
        match end {
            // This ends no pause, because the answered request may have been sent before the failure.
            End::Answered => (self.failures, self.fails_since, self.is_told) = (0, None, false),
            End::Failed(after) => {
                let pause = FIRST_PAUSE.saturating_mul(1 << self.failures.min(10)).min(LONGEST_PAUSE);
                let is_first = turn.fallen == self.fallen;
                let rest = after.or_else(|| is_first.then_some(pause)).map(|rest| now + rest);
                // The longer of two pauses applies; none is shortened.
                self.rests_until = self.rests_until.max(rest);
                if is_first {
                    self.fallen += 1;
                    self.failures += 1;
                    self.fails_since.get_or_insert(now);
                }
            }
            End::Refused => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn take(turns: &Turns, tokens: usize, now: Instant) -> Option<Turn> {
        turns.free(&mut turns.state(), tokens, now)
    }

    fn end(turns: &Turns, turn: Turn, how: End, now: Instant) {
        turns.state().servers[turn.at].end(turn, how, now);
    }

    #[test]
    fn failures_that_happen_together_count_once() {
        let (turns, mut now) = (Turns::new(1, 1000, 64), Instant::now());
        for pause in [250, 500, 1000, 2000].map(Duration::from_millis) {
            let under_way: Vec<Turn> = (0..64).map_while(|_| take(&turns, 1, now)).collect();
            // After a failure, one request tries the server for all.
            assert_eq!(under_way.len(), if pause == FIRST_PAUSE { 64 } else { 1 });
            // One after the other, while the server is paused already.
            for (n, turn) in (0..).zip(under_way) {
                end(&turns, turn, End::Failed(None), now + Duration::from_millis(n));
            }
            assert_eq!(take(&turns, 1, now + pause - Duration::from_millis(1)), None);
            now += pause;
        }
        end(&turns, take(&turns, 1, now).unwrap(), End::Answered, now);
        end(&turns, take(&turns, 1, now).unwrap(), End::Failed(None), now);
        assert!(take(&turns, 1, now + FIRST_PAUSE).is_some(), "an answer sets the pauses back");
    }

    #[test]
    fn servers_fail_where_none_answers() {
        let (turns, began) = (Turns::new(2, 10, 64), Instant::now());
        let failing_for = |now| turns.state().failing_for(now);
        let mut now = began;
        for pause in [FIRST_PAUSE, 2 * FIRST_PAUSE, 4 * FIRST_PAUSE] {
            assert_eq!(failing_for(now), None);
            let both = [10, 10].map(|tokens| take(&turns, tokens, now).unwrap());
            both.into_iter().for_each(|turn| end(&turns, turn, End::Failed(None), now));
            now += pause;
        }
        assert_eq!(failing_for(now), Some(now - began));
        end(&turns, take(&turns, 1, now).unwrap(), End::Answered, now);
        assert_eq!(failing_for(now), None);
    }

    #[test]
    fn a_rest_that_was_asked_for_is_kept() {
        let (turns, now) = (Turns::new(1, 1000, 64), Instant::now());
        let turn = || take(&turns, 1, now).unwrap();
        let (asked, answered, failed, asked_less) = (turn(), turn(), turn(), turn());
        end(&turns, asked, End::Failed(Some(20 * SECOND)), now);
        end(&turns, answered, End::Answered, now);
        end(&turns, failed, End::Failed(None), now);
        end(&turns, asked_less, End::Failed(Some(SECOND)), now);
        assert_eq!(take(&turns, 1, now + 19 * SECOND), None);
        assert!(take(&turns, 1, now + 20 * SECOND).is_some());
    }

    #[test]
    fn the_others_go_on_while_one_rests() {
        let (turns, now) = (Turns::new(2, 10, 64), Instant::now());
        let turn = take(&turns, 4, now).unwrap();
        end(&turns, turn, End::Failed(None), now);
        let next: Vec<usize> = (0..3).filter_map(|_| Some(take(&turns, 4, now)?.at)).collect();
        assert_eq!(next, [1 - turn.at, 1 - turn.at], "it has room for two");
    }

    #[test]
    fn a_long_request_is_not_passed_by() {
        let turns = Turns::new(1, 10, 64);
        let never = AtomicBool::new(false);
        let first = turns.take(6, &never).unwrap();
        let order = Mutex::new(Vec::new());
        let wait_for = |comes: u64| {
            while turns.state().comes < comes {
                std::thread::yield_now();
            }
        };
        std::thread::scope(|scope| {
            let (turns, order, never) = (&turns, &order, &never);
            for (tokens, comes) in [(10, 1), (2, 2), (1, 3)] {
                wait_for(comes);
                scope.spawn(move || {
                    let turn = turns.take(tokens, never).unwrap();
                    order.lock().unwrap().push(tokens);
                    turns.end(turn, End::Answered);
                });
            }
            wait_for(4);
            turns.end(first, End::Answered);
        });
        // The long request is first; the others then fit concurrently, in either order.
        assert_eq!(order.into_inner().unwrap()[0], 10);
    }

    #[test]
    fn a_server_that_has_failed_is_tried_by_one_request_at_a_time() {
        let never = AtomicBool::new(false);
        let turns = Turns::new(2, 10, 4);
        let first = turns.take(1, &never).unwrap();
        assert!(!first.tries_server);
        turns.end(first, End::Failed(Some(Duration::ZERO)));
        // The other server comes first, and the failed one gets what it has no room for.
        let next: Vec<Turn> = (0..5).map(|_| turns.take(1, &never).unwrap()).collect();
        let other = 1 - first.at;
        assert_eq!(next.iter().map(|turn| turn.at).collect::<Vec<_>>(), [other, other, other, other, first.at]);
        assert_eq!(next.iter().map(|turn| turn.tries_server).collect::<Vec<_>>(), [false, false, false, false, true]);
        turns.end(next[0], End::Answered);
        assert_eq!(turns.take(1, &never).unwrap().at, other);
        assert_eq!(turns.free(&mut turns.state(), 1, Instant::now()), None);
        // Once it answers, it is as good as any.
        turns.end(next[4], End::Answered);
        assert_eq!((0..4).map(|_| turns.take(1, &never).unwrap().at).collect::<Vec<_>>(), [first.at; 4]);
    }

    #[test]
    fn whoever_waits_goes_when_all_is_over() {
        let stopped = AtomicBool::new(false);
        let turns = Turns::new(1, 10, 64);
        let first = turns.take(1, &stopped).unwrap();
        turns.end(first, End::Failed(Some(Duration::from_secs(300))));
        std::thread::scope(|scope| {
            let waits = scope.spawn(|| turns.take(1, &stopped));
            stopped.store(true, Ordering::Relaxed);
            assert_eq!(waits.join().unwrap(), None);
        });
    }
}
