//! Scores a run through servers: sends many requests concurrently, and assembles the answers into parts in data order.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::part::{Part, Stages};
use super::plan::Plan;

use crate::engine::remote::{Checked, Pool, Scored};
use crate::error::{Error, Result};
use crate::jobs::watch::Watch;
use crate::tokens::Sequence;

/// The number of parts that may wait for answers; later ones wait in the reader.
const OPEN_PARTS: usize = 4;

/// A sequence to score, by the number of its part and its index in it.
struct Task {
    part: usize,
    index: usize,
    sequence: Sequence,
}

struct Answer {
    part: usize,
    index: usize,
    tokens: u64,
    scored: Result<Scored>,
}

/// A part of which some answers may be missing.
struct Open {
    part: Part,
    scored: Vec<Option<Scored>>,
    missing: usize,
    /// The number of its sequences that have been sent.
    sent: usize,
}

/// Scores the parts and passes them on in order, each only after the servers have scored a text as they did at the beginning, so that no part comes
/// from a replaced model. A lasting failure ends the run; the parts completed by then are kept.
pub(super) fn score(
    plan: &Plan,
    pool: &Arc<Pool>,
    checked: &Checked,
    from_reader: &Receiver<Part>,
    to_writer: &SyncSender<Part>,
    done_tokens: u64,
    watch: &dyn Watch,
) -> Result<Stages> {
    let mut stages = Stages::default();
    let unchanged = || pool.check_unchanged(checked, &plan.tokenizer);
    let workers = Workers::start(pool);
    let mut open: VecDeque<Open> = VecDeque::new();
    let (mut first_open, mut under_way, mut ended) = (0, 0, false);
    loop {
        // Keep twice as many requests as connections, so that no connection is idle.
        while under_way < 2 * pool.connections() {
            let next = open.iter().position(|open| open.sent < open.part.sequences.len());
            if let Some(at) = next {
                let Open { part, sent, .. } = &mut open[at];
                workers.send(Task { part: first_open + at, index: *sent, sequence: part.sequences[*sent].clone() })?;
                *sent += 1;
                under_way += 1;
                continue;
            }
            if !ended && watch.interrupted() {
                // Requests already sent are completed.
                (stages.interrupted, ended) = (true, true);
            }
            if ended || open.len() == OPEN_PARTS {
                break;
            }
            let began = Instant::now();
            let part = match under_way {
                0 => from_reader.recv().map_err(|_| TryRecvError::Disconnected),
                _ => from_reader.try_recv(),
            };
            match part {
                Ok(part) => {
                    let missing = part.sequences.len();
                    open.push_back(Open { scored: (0..missing).map(|_| None).collect(), part, missing, sent: 0 });
                }
                Err(TryRecvError::Disconnected) => ended = true,
                Err(TryRecvError::Empty) => break,
            }
            stages.engine_waited += began.elapsed().as_secs_f64();
            // A part may have nothing to score.
            if !hand_on(&mut open, &mut first_open, to_writer, &unchanged)? {
                return Ok(stages);
            }
        }
        if under_way == 0 && ended && open.is_empty() {
            return Ok(stages);
        }
        let Some(Answer { part, index, tokens, scored }) = workers.next()? else { continue };
        under_way -= 1;
        let scored = scored?;
        stages.to_first_row.get_or_insert_with(|| plan.began.elapsed().as_secs_f64());
        stages.input_tokens += tokens;
        stages.computed_tokens += tokens;
        watch.tokens("Scoring", done_tokens + stages.input_tokens, plan.totals.tokens);
        if let Some(open) = part.checked_sub(first_open).and_then(|at| open.get_mut(at)) {
            open.scored[index] = Some(scored);
            open.missing -= 1;
        }
        if !hand_on(&mut open, &mut first_open, to_writer, &unchanged)? {
            return Ok(stages);
        }
    }
}

/// Passes on the first complete parts. Returns false if the writer has failed; its own error is reported.
fn hand_on(
    open: &mut VecDeque<Open>,
    first_open: &mut usize,
    to_writer: &SyncSender<Part>,
    unchanged: &dyn Fn() -> Result<()>,
) -> Result<bool> {
    while open.front().is_some_and(|first| first.missing == 0)
        && let Some(Open { part, scored, .. }) = open.pop_front()
    {
        if !scored.is_empty() {
            unchanged()?;
        }
        *first_open += 1;
        let (scores, bounds) = scored.into_iter().map(|scored| scored.unwrap_or_default().into_iter().unzip()).unzip();
        if to_writer.send(Part { scores, bounds, ..part }).is_err() {
            return Ok(false);
        }
    }
    Ok(true)
}

/// Threads that each wait for one answer at a time. They end after their current answer once this is dropped.
struct Workers {
    tasks: Sender<Task>,
    answers: Receiver<Answer>,
}

impl Workers {
    fn start(pool: &Arc<Pool>) -> Workers {
        let (tasks, from_us) = channel::<Task>();
        let (to_us, answers) = channel();
        let from_us = Arc::new(Mutex::new(from_us));
        for _ in 0..pool.connections() {
            let (pool, from_us, to_us) = (Arc::clone(pool), Arc::clone(&from_us), to_us.clone());
            // The threads are not joined: if one answer is an error, the others are not needed.
            std::thread::spawn(move || {
                loop {
                    let task = from_us.lock().unwrap_or_else(PoisonError::into_inner).recv();
                    let Ok(Task { part, index, sequence }) = task else { return };
                    // A panic of ours must also reach the receiver, which waits for the answer.
                    let scored = catch_unwind(AssertUnwindSafe(|| pool.score(&sequence)));
                    let scored = scored.unwrap_or_else(|_| {
                        Err(Error::new(format!("the program has failed at the answer to row {}", sequence.row)))
                    });
                    let answer = Answer { part, index, tokens: sequence.ids.len() as u64, scored };
                    if to_us.send(answer).is_err() {
                        return;
                    }
                }
            });
        }
        Workers { tasks, answers }
    }

    fn send(&self, task: Task) -> Result<()> {
        self.tasks.send(task).map_err(|_| stopped())
    }

    /// The next answer; `None` if none arrives for a while.
    fn next(&self) -> Result<Option<Answer>> {
        match self.answers.recv_timeout(Duration::from_millis(20)) {
            Ok(answer) => Ok(Some(answer)),
            Err(RecvTimeoutError::Timeout) => Ok(None),
            Err(RecvTimeoutError::Disconnected) => Err(stopped()),
        }
    }
}

fn stopped() -> Error {
    Error::new("the threads that wait for the servers have ended")
}
