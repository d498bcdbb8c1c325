//! Evaluates a task on a model: computes its samples by log-likelihoods or from generated answers.

use std::collections::HashMap;
use std::path::Path;

use serde::{Deserialize, Serialize};

use crate::dataset::Role;
use crate::engine;
use crate::engine::generate::{self, Sampling};
use crate::error::{Error, Result};
use crate::eval::asking::Asking;
use crate::eval::metrics::Sample;
use crate::eval::results::Work;
use crate::eval::score::{Said, Scored};
use crate::eval::tasks::{Item, Task, TaskKind};
use crate::eval::write::{self, Prompt, Writing};
use crate::eval::{rows, score};
use crate::format::part_of;
use crate::jobs::answer::{Wanted, entries, write_open};
use crate::jobs::author::Author;
use crate::jobs::journal::Journal;
use crate::jobs::served::Servers;
use crate::jobs::watch::Watch;
use crate::model::{GenerationConfig, Reference, text_of};
use crate::tokens::Sequence;

/// What evaluating a task requires.
pub(super) struct Desk<'a> {
    pub(super) author: &'a Author,
    pub(super) asking: &'a Asking,
    pub(super) max_len: usize,
    /// The number of answers generated concurrently.
    pub(super) at_once: usize,
    pub(super) watch: &'a dyn Watch,
}

/// The samples of a task, the work they took, and the journal to remove once they are stored.
pub(super) type Evaluated = (Vec<Sample>, Work, Option<Journal>);

impl Desk<'_> {
    /// The samples of a task scored by log-likelihoods. Scores that servers have already returned come from the journal.
    pub(super) fn scored(&self, task: &Task, journal: &Path, identity: &str) -> Result<Evaluated> {
        match self.author {
            Author::Own(model) => {
                let mut work = engine::Work::default();
                let scored = self.scored_by(task, &mut score::said_by(model, &mut work))?;
                Ok(evaluated(scored, work.computed_tokens, None))
            }
            Author::Servers(servers) => {
                let mut saying = Saying::begin(servers, journal, identity, self.watch)?;
                let scored = self.scored_by(task, &mut |sequences, progress| saying.say(sequences, progress))?;
                Ok(evaluated(scored, saying.tokens, Some(saying.journal)))
            }
        }
    }

    fn scored_by(&self, task: &Task, say: &mut score::Say) -> Result<Scored> {
        let what = format!("Evaluating {}", task.name);
        let mut progress = |done, total| self.watch.tokens(&what, done, total);
        match (task.kind, &self.asking.rows) {
            (TaskKind::Rows, Some(renderer)) => rows::score(task, renderer, say, &mut progress),
            _ => score::score(self.author.tokenizer(), task, self.asking, self.max_len, say, &mut progress),
        }
    }

    /// The samples of a task with generated answers. Answers in the journal are not generated again.
    pub(super) fn written(&self, task: &Task, writing: &Writing, journal: &Path, identity: &str) -> Result<Evaluated> {
        let tokenizer = self.author.tokenizer();
        let prompts = write::prompts(tokenizer, task, self.asking, writing, self.max_len)?;
        let (mut journal, before) = Journal::open(journal, identity, || Some(begun_otherwise(journal)))?;
        let mut entries = entries(before);
        let rows: Vec<u32> = (0..task.items.len() as u32).collect();
        let way = generate::Way {
            sampling: writing.sampling,
            ends: writing.ends.clone(),
            stops: writing.stops.clone(),
            at_once: self.at_once,
        };
        let request = |item, draw| writing.request(task, item, &prompts, draw);
        let wanted = Wanted { rows: &rows, repeats: writing.repeats, way: &way, request: &request };
        let spent = write_open(self.author, &wanted, &mut journal, &mut entries, self.watch)?;
        let judged = |(item, (question, prompt)): (usize, (&Item, &Prompt))| {
            let answers = (0..writing.repeats).map(|draw| match entries.get(&(item as u32, draw)) {
                Some(entry) => Ok((entry.ids.as_slice(), entry.ended)),
                None => Err(Error::new(format!("the answer {draw} to item `{}` is missing", question.id))),
            });
            write::judged(tokenizer, task, question, prompt, &writing.stops, &answers.collect::<Result<Vec<_>>>()?)
        };
        let (samples, unjudged): (Vec<Sample>, Vec<u64>) =
            task.items.iter().zip(&prompts.list).enumerate().map(judged).collect::<Result<Vec<_>>>()?.into_iter().unzip();
        let of_prompts = prompts.list.iter().map(|prompt| prompt.ids.len() as u64).sum::<u64>() * u64::from(writing.repeats);
        let work = Work {
            truncated: prompts.truncated,
            without_system: prompts.without_system,
            unjudged: unjudged.into_iter().sum(),
            tokens: of_prompts + entries.values().map(|entry| entry.ids.len() as u64).sum::<u64>(),
            computed_tokens: spent.prompt_tokens - spent.shared_tokens + spent.tokens,
        };
        Ok((samples, work, Some(journal)))
    }
}

fn evaluated(scored: Scored, computed_tokens: u64, journal: Option<Journal>) -> Evaluated {
    let Scored { samples, truncated, without_system, tokens } = scored;
    (samples, Work { truncated, without_system, unjudged: 0, tokens, computed_tokens }, journal)
}

fn begun_otherwise(journal: &Path) -> Error {
    Error::new("the task was started with other items or settings, at another kernel level (DIAGNOSE_KERNELS), or by another version of the program")
        .at(journal)
        .cure("Continue as it was started, remove the file, or choose another --out.")
}

/// Servers' scores of a task's sequences, which come in the same order each time the task runs.
struct Saying<'a> {
    servers: &'a Servers,
    watch: &'a dyn Watch,
    journal: Journal,
    /// The servers' scores so far, by the number of the sequence.
    known: HashMap<u64, Said>,
    /// The number of sequences passed on, and of tokens requested.
    n: u64,
    tokens: u64,
}

/// JSON has no minus infinity, so the sum is stored as its bits.
#[derive(Serialize, Deserialize)]
struct SaidEntry {
    sequence: u64,
    logprob_bits: u64,
    greedy: bool,
    tokens: u32,
}

impl Saying<'_> {
    fn begin<'a>(servers: &'a Servers, path: &Path, identity: &str, watch: &'a dyn Watch) -> Result<Saying<'a>> {
        let (journal, before) = Journal::open::<SaidEntry>(path, identity, || Some(begun_otherwise(path)))?;
        let said =
            |entry: &SaidEntry| Said { logprob: f64::from_bits(entry.logprob_bits), greedy: entry.greedy, tokens: entry.tokens };
        let known = before.iter().map(|entry| (entry.sequence, said(entry))).collect();
        Ok(Saying { servers, watch, journal, known, n: 0, tokens: 0 })
    }

    fn say(&mut self, sequences: &[Sequence], progress: &mut dyn FnMut(u64)) -> Result<Vec<Said>> {
        let Saying { servers, watch, journal, known, n, tokens } = self;
        let first = *n;
        *n += sequences.len() as u64;
        let (open, held): (Vec<(u64, &Sequence)>, Vec<_>) =
            (first..).zip(sequences).partition(|(number, _)| !known.contains_key(number));
        let mut done: u64 = held.iter().map(|(_, sequence)| sequence.ids.len() as u64).sum();
        servers.each(
            &open,
            |pool, (_, sequence)| {
                let given = pool.score(sequence)?;
                Ok(given.map(|scored| Said::of(sequence, scored.iter().map(|(statistics, _)| statistics))))
            },
            *watch,
            &mut |at, said| {
                let (sequence, ids) = (open[at].0, open[at].1.ids.len() as u64);
                let Said { logprob, greedy, tokens: n_targets } = said;
                journal.add(&SaidEntry { sequence, logprob_bits: logprob.to_bits(), greedy, tokens: n_targets })?;
                known.insert(sequence, said);
                (done, *tokens) = (done + ids, *tokens + ids);
                progress(done);
                Ok(())
            },
        )?;
        let missing = |number| Error::new(format!("the result for sequence {number} is missing"));
        (first..*n).map(|number| known.get(&number).copied().ok_or_else(|| missing(number))).collect()
    }
}

/// The model's defaults for answers.
pub(super) struct Answering {
    /// The tokens that end an answer: those that end it in Transformers, and the token with which the chat template ends a turn.
    pub ends: Vec<u32>,
    /// Includes the model's own repetition penalty unless the user gives one.
    pub sampling: Sampling,
}

impl Answering {
    pub(super) fn of(reference: &Reference, asking: &Asking, asked: Sampling) -> Result<Answering> {
        let (tokenizer, _) = text_of(reference)?;
        let generation = GenerationConfig::read(reference, &tokenizer)?;
        generation.check()?;
        let mut ends = generation.end_tokens;
        let of_turn = asking.chat.as_ref().and_then(|chat| chat.renderer.end_of_turn());
        ends.extend(of_turn.filter(|id| !ends.contains(id)));
        let repetition_penalty = asked.repetition_penalty.or(generation.repetition_penalty).filter(|penalty| *penalty != 1.0);
        Ok(Answering { ends, sampling: Sampling { repetition_penalty, ..asked } })
    }
}

/// Warnings about how the model handles a task, as sentences.
pub(super) fn notes(task: &Task, answering: Option<&Answering>, asking: &Asking) -> Vec<String> {
    let mut notes = Vec::new();
    let answering = answering.filter(|_| task.kind == TaskKind::Written);
    if let Some(penalty) = answering.and_then(|answering| answering.sampling.repetition_penalty) {
        notes.push(format!(
            "answers are written with a repetition penalty of {penalty}, from generation_config.json (as in Transformers) or --repetition-penalty"
        ));
    }
    if answering.is_some_and(|answering| answering.ends.is_empty()) {
        notes.push(
            "neither the model nor a template names an end token: every answer runs to its maximum length or a stop string"
                .to_owned(),
        );
    }
    if task.written.is_some_and(|spec| spec.primary == "string_match") {
        notes.push(
            "`string_match` compares Minerva's normal forms as texts; the harness's `exact_match` also asks sympy, for which 0.5 is \\frac{1}{2}, \
             2\\sqrt{2} is \\sqrt{8}, and a sum in another order is the same: it is never lower"
                .to_owned(),
        );
    }
    // Texts are read without a question, and rows already contain their answers.
    let is_asked = !matches!(task.kind, TaskKind::Text | TaskKind::Rows);
    if is_asked && asking.chat.as_ref().is_some_and(|chat| !chat.renderer.has_generation_prompt()) {
        notes.push("the chat template has no generation prompt: answers begin directly after the question".to_owned());
    }
    let messages_of = |item: &Item| match (&item.written, &item.row) {
        (Some(written), _) if written.messages.is_some() => written.messages.clone(),
        (_, Some(row)) => Some(row.turns.clone()),
        _ => None,
    };
    let has_own = |item: &&Item| messages_of(item).is_some_and(|turns| turns.iter().any(|turn| turn.role == Role::System));
    let own = task.items.iter().filter(has_own).count();
    if asking.system.is_some() && own > 0 {
        let verbs = ["has its own system message, and keeps it", "have their own system messages, and keep them"];
        notes.push(part_of(own as u64, task.items.len() as u64, "item", verbs) + " instead of --system");
    }
    notes
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::eval::tasks::parse;

    #[test]
    fn answers_that_nothing_ends_are_said_where_some_are_written() {
        let task = |row: &str| parse("t", "t.jsonl", row.as_bytes()).unwrap();
        let of = |row: &str, ends: &[u32]| {
            let answering = Answering { ends: ends.to_vec(), sampling: Sampling::GREEDY };
            notes(&task(row), Some(&answering), &Asking::default())
        };
        let (written, chosen) = (r#"{"prompt":"a","answer":"b"}"#, r#"{"context":"a","choices":["b","c"],"answer":0}"#);
        assert!(of(written, &[])[0].contains("names an end token"));
        assert!(of(written, &[2]).is_empty() && of(chosen, &[]).is_empty());
    }

    #[test]
    fn items_that_keep_a_system_message_of_their_own_are_counted() {
        let row = |role: &str| {
            format!(r#"{{"messages":[{{"role":"{role}","content":"S"}},{{"role":"user","content":"a"}}],"answer":"b"}}"#)
        };
        let rows = [row("system"), row("user"), row("system")].join("\n");
        let task = parse("t", "t.jsonl", rows.as_bytes()).unwrap();
        let of = |system: Option<&str>| notes(&task, None, &Asking { system: system.map(str::to_owned), ..Asking::default() });
        assert!(
            of(Some("Be brief."))[0]
                .starts_with("2 of 3 items have their own system messages, and keep them instead of --system")
        );
        assert!(of(None).is_empty());
    }
}
