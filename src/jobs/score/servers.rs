//! Scores a run through servers: sends many requests concurrently, and assembles the answers into parts in data order.

use std::collections::{BTreeSet, VecDeque};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, TryRecvError, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::part::{Part, Stages};
use super::plan::Plan;

use crate::engine::remote::{Checked, Given, Pool, Scored};
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
    scored: Result<Given<Scored>>,
}

/// A part of which some answers may be missing.
struct Open {
    part: Part,
    scored: Vec<Option<Given<Scored>>>,
    missing: usize,
    /// The sequences that are still to be sent.
    to_send: VecDeque<usize>,
}

impl Open {
    fn of(part: Part) -> Open {
        let missing = part.sequences.len();
        Open { scored: (0..missing).map(|_| None).collect(), part, missing, to_send: (0..missing).collect() }
    }

    /// Forgets what servers other than `confirmed` have answered, which has to be sent again. Returns the number of its tokens.
    fn keep_of(&mut self, confirmed: &BTreeSet<usize>) -> u64 {
        let mut tokens = 0;
        for (index, scored) in self.scored.iter_mut().enumerate() {
            if scored.take_if(|given| !confirmed.contains(&given.by)).is_some() {
                self.missing += 1;
                self.to_send.push_back(index);
                tokens += self.part.sequences[index].ids.len() as u64;
            }
        }
        tokens
    }
}

/// Scores the parts and passes them on in order, each only after its servers have scored a text as they did at the beginning, so that no part comes
/// from a replaced model; what a server that no longer answers has contributed is sent again. A lasting failure ends the run; the parts completed by
/// then are kept.
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
    let confirmed = |by: BTreeSet<usize>| pool.confirmed(by.into_iter(), checked, &plan.tokenizer);
    let workers = Workers::start(pool);
    let mut open: VecDeque<Open> = VecDeque::new();
    let (mut first_open, mut under_way, mut ended) = (0, 0, false);
    loop {
        // Keep twice as many requests as connections, so that no connection is idle.
        while under_way < 2 * pool.connections() {
            let next = open.iter_mut().enumerate().find_map(|(at, open)| Some((at, open.to_send.pop_front()?)));
            if let Some((at, index)) = next {
                workers.send(Task { part: first_open + at, index, sequence: open[at].part.sequences[index].clone() })?;
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
                Ok(part) => open.push_back(Open::of(part)),
                Err(TryRecvError::Disconnected) => ended = true,
                Err(TryRecvError::Empty) => break,
            }
            stages.engine_waited += began.elapsed().as_secs_f64();
            // A part may have nothing to score.
            if !hand_on(&mut open, &mut first_open, to_writer, &mut stages, &confirmed)? {
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
        let goes_on = hand_on(&mut open, &mut first_open, to_writer, &mut stages, &confirmed)?;
        watch.remarks(&plan.info.name, &pool.news());
        if !goes_on {
            return Ok(stages);
        }
    }
}

/// Passes on the first complete parts. Returns false if the writer has failed; its own error is reported.
fn hand_on(
    open: &mut VecDeque<Open>,
    first_open: &mut usize,
    to_writer: &SyncSender<Part>,
    stages: &mut Stages,
    confirmed: &dyn Fn(BTreeSet<usize>) -> Result<BTreeSet<usize>>,
) -> Result<bool> {
    while let Some(first) = open.front_mut()
        && first.missing == 0
    {
        stages.input_tokens -= first.keep_of(&confirmed(first.scored.iter().flatten().map(|given| given.by).collect())?);
        if first.missing > 0 {
            return Ok(true);
        }
        let Some(Open { part, scored, .. }) = open.pop_front() else { return Ok(true) };
        *first_open += 1;
        let answers = scored.into_iter().map(|given| given.map_or_else(Vec::new, |given| given.answer));
        let (scores, bounds) = answers.map(|scored| scored.into_iter().unzip()).unzip();
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
