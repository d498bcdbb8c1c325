//! A task and a model -> its samples, by log-likelihoods or by written answers.

use std::cell::Cell;
use std::path::Path;
use std::time::Instant;

use crate::engine::generate::{self, Request, generate};
use crate::error::{Error, Result};
use crate::eval::asking::Asking;
use crate::eval::metrics::Sample;
use crate::eval::results::Work;
use crate::eval::tasks::{Item, Kind, Task};
use crate::eval::write::{self, Prompt, Writing};
use crate::eval::{rows, score};
use crate::jobs::answer::{Entry, entries};
use crate::jobs::journal::Journal;
use crate::jobs::watch::Watch;
use crate::model::{Model, Reference, stop_tokens};

/// What tasks are evaluated with.
pub(super) struct Desk<'a> {
    pub(super) model: &'a Model,
    pub(super) asking: &'a Asking,
    pub(super) max_len: usize,
    /// Tokens that end an answer.
    pub(super) ends: Vec<u32>,
    /// Answers under way at a time.
    pub(super) at_once: usize,
    pub(super) watch: &'a dyn Watch,
}

/// What a task came to, and the journal that is of no use once that is written.
pub(super) type Evaluated = (Vec<Sample>, Work, Option<Journal>);

impl Desk<'_> {
    /// By log-likelihoods.
    pub(super) fn scored(&self, task: &Task) -> Result<Evaluated> {
        let what = format!("Evaluating {}", task.name);
        let mut progress = |done, total| self.watch.tokens(&what, done, total);
        let scored = match (task.kind, &self.asking.rows) {
            (Kind::Rows, Some(renderer)) => rows::score(self.model, task, renderer, &mut progress)?,
            _ => score::score(self.model, task, self.asking, self.max_len, &mut progress)?,
        };
        let score::Scored { samples, truncated, without_system, tokens, computed_tokens } = scored;
        Ok((samples, Work { truncated, without_system, tokens, computed_tokens }, None))
    }

    /// By answers that are written, as far as the journal does not hold them.
    pub(super) fn written(&self, task: &Task, writing: &Writing, journal: &Path, identity: &str) -> Result<Evaluated> {
        let tokenizer = &self.model.tokenizer;
        let prompts = write::prompts(tokenizer, task, self.asking, writing, self.max_len)?;
        let other = || {
            let error = Error::new("the answers were begun for other items or settings, or by another version of the program")
                .at(journal)
                .cure("Go on as it was begun, remove the file, or give another --out.");
            Some(error)
        };
        let (mut journal, before) = Journal::open(journal, identity, other)?;
        let mut entries = entries(before);
        let all: Vec<(usize, u32)> =
            (0..task.items.len()).flat_map(|item| (0..writing.repeats).map(move |draw| (item, draw))).collect();
        let open: Vec<(usize, u32)> =
            all.iter().copied().filter(|&(item, draw)| !entries.contains_key(&(item as u32, draw))).collect();
        let requests: Vec<Request> = open.iter().map(|&(item, draw)| writing.request(task, item, &prompts, draw)).collect();
        let way = generate::Way {
            sampling: writing.sampling,
            ends: self.ends.clone(),
            stops: writing.stops.clone(),
            at_once: self.at_once,
        };
        let (began, n_tokens) = (Instant::now(), Cell::new(0));
        let mut done = entries.len() as u64;
        let spent = generate(
            self.model,
            &requests,
            &way,
            &mut |request, answer| {
                let (item, draw) = open[request];
                let entry = Entry { row: item as u32, draw, ids: answer.ids, ended: answer.ended };
                journal.add(&entry)?;
                entries.insert((entry.row, entry.draw), entry);
                done += 1;
                self.watch.answers(done, all.len() as u64, n_tokens.get() as f64 / began.elapsed().as_secs_f64());
                Ok(())
            },
            &mut |tokens| n_tokens.set(tokens),
        )?;
        let judged = |(item, (question, prompt)): (usize, (&Item, &Prompt))| {
            let answers = (0..writing.repeats).map(|draw| match entries.get(&(item as u32, draw)) {
                Some(entry) => Ok((entry.ids.as_slice(), entry.ended)),
                None => Err(Error::new(format!("the answer {draw} to item `{}` is missing", question.id))),
            });
            write::judged(tokenizer, task, question, prompt, &writing.stops, &answers.collect::<Result<Vec<_>>>()?)
        };
        let samples = task.items.iter().zip(&prompts.list).enumerate().map(judged).collect::<Result<Vec<Sample>>>()?;
        let of_prompts = prompts.list.iter().map(|prompt| prompt.ids.len() as u64).sum::<u64>() * u64::from(writing.repeats);
        let work = Work {
            truncated: prompts.truncated,
            without_system: prompts.without_system,
            tokens: of_prompts + entries.values().map(|entry| entry.ids.len() as u64).sum::<u64>(),
            computed_tokens: spent.prompt_tokens - spent.shared_tokens + spent.tokens,
        };
        Ok((samples, work, Some(journal)))
    }
}

/// The tokens that end an answer: those that end it in Transformers, and the one with which the chat template ends a turn.
pub(super) fn ends(reference: &Reference, model: &Model, asking: &Asking) -> Result<Vec<u32>> {
    let mut ends = stop_tokens(reference, &model.tokenizer)?;
    let of_turn = asking.chat.as_ref().and_then(|chat| chat.renderer.end_of_turn());
    ends.extend(of_turn.filter(|id| !ends.contains(id)));
    Ok(ends)
}

/// What is odd about the model, in sentences.
pub(super) fn notes(writes: bool, ends: &[u32], asking: &Asking) -> Vec<String> {
    let mut notes = Vec::new();
    if writes && ends.is_empty() {
        notes.push(
            "the model names no end token, and neither does a template: every answer is as long as it may be, or meets a stop string"
                .to_owned(),
        );
    }
    if asking.chat.as_ref().is_some_and(|chat| !chat.renderer.has_generation_prompt()) {
        notes.push(
            "the chat template adds nothing where an answer is to follow: answers begin right behind the question".to_owned(),
        );
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_that_nothing_ends_are_said_where_some_are_written() {
        let of = |writes, ends: &[u32]| notes(writes, ends, &Asking::default());
        assert!(of(true, &[])[0].contains("names no end token"));
        assert!(of(true, &[2]).is_empty() && of(false, &[]).is_empty());
    }
}
