//! Items -> log-likelihoods, on the engine that scores data sets: what choices have in common is computed once.

use std::ops::Range;

use rayon::prelude::*;

use super::asking::Asking;
use super::metrics::{ChoiceScore, Sample};
use super::requests::{Encoded, encode, is_python_space, windows};
use super::tasks::{Item, Kind, Task};
use crate::engine::{self, Work};
use crate::error::{Error, Result};
use crate::files::sha256;
use crate::model::Model;
use crate::tokens::{Sequence, Tokenizer};

/// What the model said about every item.
pub struct Scored {
    pub samples: Vec<Sample>,
    /// Requests whose context lost its beginning to `max_len`.
    pub truncated: u64,
    /// Items whose system message the chat template refused.
    pub without_system: u64,
    /// Tokens of all requests, and how many of them went through the model.
    pub tokens: u64,
    pub computed_tokens: u64,
}

/// Tokens that are packed together: many enough that the items of a task meet those with the same prefix.
const CHUNK_TOKENS: usize = 1 << 16;

/// Takes the first of `open` that are packed together, at least one if there is one.
pub(super) fn take_chunk<T>(open: &mut Vec<T>, tokens: impl Fn(&T) -> usize) -> Vec<T> {
    let mut n_tokens = 0;
    let fitting = open.iter().take_while(|item| {
        let fits = n_tokens < CHUNK_TOKENS;
        n_tokens += tokens(item);
        fits
    });
    let n = fitting.count();
    open.drain(..n).collect()
}

/// `progress` is told the number of tokens done, of all.
pub fn score(model: &Model, task: &Task, asking: &Asking, max_len: usize, progress: &mut dyn FnMut(u64, u64)) -> Result<Scored> {
    let of_item = |item: &Item| {
        prepare(&model.tokenizer, task.kind, item, asking, max_len)
            .map_err(|error| Error::new(format!("item `{}` cannot be scored", item.id)).caused_by(error).at(&task.path))
    };
    let prepared: Vec<Vec<Prepared>> = task.items.par_iter().map(of_item).collect::<Result<_>>()?;
    let mut prepared: Vec<Prepared> = prepared.into_iter().flatten().collect();
    let truncated = prepared.iter().flat_map(|sample| &sample.requests).filter(|request| request.truncated).count() as u64;
    let without_system = prepared.iter().filter(|sample| sample.without_system).count() as u64;
    let tokens: u64 = prepared.iter().map(|sample| sample.n_tokens() as u64).sum();

    let mut work = Work::default();
    let mut done = 0;
    let mut samples = Vec::with_capacity(prepared.len());
    while !prepared.is_empty() {
        let chunk = take_chunk(&mut prepared, Prepared::n_tokens);
        let begun = done;
        done += chunk.iter().map(|sample| sample.n_tokens() as u64).sum::<u64>();
        samples.extend(score_chunk(model, chunk, &mut work, &mut |within| progress(begun + within, tokens))?);
    }
    Ok(Scored { samples, truncated, without_system, tokens, computed_tokens: work.computed_tokens })
}

/// A sample whose log-likelihoods are still missing, and what is to be scored for them.
struct Prepared {
    sample: Sample,
    requests: Vec<Encoded>,
    without_system: bool,
}

impl Prepared {
    fn n_tokens(&self) -> usize {
        self.requests.iter().map(|request| request.ids.len()).sum()
    }
}

fn prepare(tokenizer: &Tokenizer, kind: Kind, item: &Item, asking: &Asking, max_len: usize) -> Result<Vec<Prepared>> {
    let sample = |id: String, choices: Vec<ChoiceScore>| Sample {
        id,
        subject: item.subject.clone(),
        group: item.group.clone(),
        answer: item.answer as u32,
        choices,
        ..Sample::default()
    };
    if kind == Kind::Text {
        let text = &item.requests[0].continuation;
        let spaces = space_runs(text);
        let of_window = |(number, (request, bytes)): (usize, (Encoded, Range<usize>))| {
            let n_spaces = spaces.partition_point(|&at| at < bytes.end) - spaces.partition_point(|&at| at < bytes.start);
            let score = ChoiceScore {
                chars: text.char_indices().filter(|(at, _)| bytes.contains(at)).count() as u32,
                bytes: bytes.len() as u32,
                // `re.split` finds one piece more than there are separators.
                words: n_spaces as u32 + u32::from(bytes.start == 0),
                ..ChoiceScore::default()
            };
            let sample = sample(format!("{}:{number}", item.id), vec![score]);
            Prepared { sample, requests: vec![request], without_system: false }
        };
        return Ok(windows(tokenizer, text, max_len)?.into_iter().enumerate().map(of_window).collect());
    }
    let mut without_system = false;
    let mut prompt_sha256 = None;
    let mut requests = Vec::with_capacity(item.requests.len());
    let mut last: Option<(&str, String)> = None;
    for request in &item.requests {
        // Mostly all choices have one context.
        let context = match last.take().filter(|(question, _)| *question == request.context) {
            Some((_, text)) => text,
            None => {
                let context = asking.context(item, &request.context)?;
                without_system |= context.without_system;
                context.text
            }
        };
        prompt_sha256.get_or_insert_with(|| sha256(&context));
        requests.push(encode(tokenizer, &context, asking.continuation(kind, request), max_len)?);
        last = Some((&request.context, context));
    }
    let lengths = item.requests.iter().map(|request| {
        let choice = request.choice();
        ChoiceScore {
            chars: choice.chars().count() as u32,
            bytes: choice.len() as u32,
            words: choice.split_whitespace().count() as u32,
            ..ChoiceScore::default()
        }
    });
    let sample = Sample { prompt_sha256, ..sample(item.id.clone(), lengths.collect()) };
    Ok(vec![Prepared { sample, requests, without_system }])
}

/// Where each run of white space begins.
fn space_runs(text: &str) -> Vec<usize> {
    let mut runs = Vec::new();
    let mut within = false;
    for (at, c) in text.char_indices() {
        let space = is_python_space(c);
        if space && !within {
            runs.push(at);
        }
        within = space;
    }
    runs
}

fn score_chunk(model: &Model, chunk: Vec<Prepared>, work: &mut Work, progress: &mut dyn FnMut(u64)) -> Result<Vec<Sample>> {
    let mut samples = Vec::with_capacity(chunk.len());
    let mut sequences: Vec<Sequence> = Vec::new();
    for Prepared { sample, requests, .. } in chunk {
        samples.push(sample);
        sequences.extend(requests.into_iter().map(|request| request.sequence(0)));
    }
    let mut statistics = engine::score(model, &sequences, work, progress)?.into_iter();
    for score in samples.iter_mut().flat_map(|sample| &mut sample.choices) {
        let tokens = statistics.next().unwrap_or_default();
        score.logprob = tokens.iter().map(|token| f64::from(token.logprob)).sum();
        score.greedy = tokens.iter().all(|token| token.rank == 1);
        score.tokens = tokens.len() as u32;
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_are_the_pieces_between_white_space() {
        // len(re.split(r"\s+", " a b\n\nc\u2003d")) is 5: one empty piece before the first space.
        assert_eq!(space_runs(" a b\n\nc\u{2003}d"), [0, 2, 4, 7]);
    }
}
