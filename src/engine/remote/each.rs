//! Runs many requests concurrently, as many as there are connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use super::pool::Pool;
use crate::error::{Error, Result};

impl Pool {
    /// Runs `ask` for each task, and passes the indices of tasks and their results to `finished`, all that have arrived since its last call at
    /// once. It returns the tasks whose results it does not accept, which are asked for again. After a failure no new requests begin, but the
    /// results of running ones are still passed on, because they have been paid for.
    pub fn each<T: Sync, R: Send>(
        &self,
        tasks: &[T],
        ask: impl Fn(&T) -> Result<R> + Sync,
        finished: &mut dyn FnMut(Vec<(usize, R)>) -> Result<Vec<usize>>,
    ) -> Result<()> {
        let mut open: Vec<usize> = (0..tasks.len()).collect();
        while !open.is_empty() {
            let mut again = Vec::new();
            self.each_of(&open, |at| ask(&tasks[at]), &mut |came| {
                again.extend(finished(came)?);
                Ok(())
            })?;
            open = again;
        }
        Ok(())
    }

    fn each_of<R: Send>(
        &self,
        tasks: &[usize],
        ask: impl Fn(usize) -> Result<R> + Sync,
        finished: &mut dyn FnMut(Vec<(usize, R)>) -> Result<()>,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let stop = || {
            next.store(tasks.len(), Ordering::Relaxed);
            self.stop();
        };
        let work = |to_us: std::sync::mpsc::Sender<(usize, Result<R>)>| {
            loop {
                let Some(&at) = tasks.get(next.fetch_add(1, Ordering::Relaxed)) else { return };
                // A panic must also reach the thread that waits for the answer.
                let answer = catch_unwind(AssertUnwindSafe(|| ask(at)))
                    .unwrap_or_else(|_| Err(Error::new(format!("the program has failed at request {at}"))));
                let has_failed = answer.is_err();
                if to_us.send((at, answer)).is_err() {
                    return;
                }
                // Stops only after sending the failure, so that requests which end because of it come after it.
                if has_failed {
                    stop();
                }
            }
        };
        std::thread::scope(|scope| {
            let (to_us, answers) = channel();
            for _ in 0..self.connections().min(tasks.len()) {
                let (to_us, work) = (to_us.clone(), &work);
                scope.spawn(move || work(to_us));
            }
            drop(to_us);
            let (mut failure, mut can_write) = (None, true);
            while let Ok(first) = answers.recv() {
                let mut came = Vec::new();
                for (at, answer) in std::iter::once(first).chain(answers.try_iter()) {
                    match answer {
                        Ok(answer) => came.push((at, answer)),
                        Err(error) => {
                            stop();
                            failure.get_or_insert(error);
                        }
                    }
                }
                // After a failure to write, no more results are passed on.
                if can_write
                    && !came.is_empty()
                    && let Err(error) = finished(came)
                {
                    stop();
                    can_write = false;
                    failure.get_or_insert(error);
                }
            }
            failure.map_or(Ok(()), Err)
        })
    }
}
