//! Many requests at a time, as many as there are connections.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::mpsc::channel;

use super::pool::Pool;
use crate::error::{Error, Result};

impl Pool {
    /// Asks for each task, and gives `finished` the numbers of tasks and what came, as it comes: of all that came while it was at work before,
    /// at once. After a failure nothing more is begun, and what was under way is still handed on: it has been paid for.
    pub fn each<T: Sync, R: Send>(
        &self,
        tasks: &[T],
        ask: impl Fn(&T) -> Result<R> + Sync,
        finished: &mut dyn FnMut(Vec<(usize, R)>) -> Result<()>,
    ) -> Result<()> {
        let next = AtomicUsize::new(0);
        let stop = || {
            next.store(tasks.len(), Ordering::Relaxed);
            self.stop();
        };
        let work = |to_us: std::sync::mpsc::Sender<(usize, Result<R>)>| {
            loop {
                let at = next.fetch_add(1, Ordering::Relaxed);
                let Some(task) = tasks.get(at) else { return };
                // Whoever waits for the answer must hear of a fault of ours, too.
                let answer = catch_unwind(AssertUnwindSafe(|| ask(task)))
                    .unwrap_or_else(|_| Err(Error::new(format!("the program has failed at request {at}"))));
                let has_failed = answer.is_err();
                if to_us.send((at, answer)).is_err() {
                    return;
                }
                // Those that end by it come behind what it was.
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
                // What could not be written down once is not offered more.
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
