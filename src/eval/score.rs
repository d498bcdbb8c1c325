//! Computes the log-likelihoods of items, either with the engine that also scores data sets, which computes common prefixes of
//! choices once, or through another source such as a server.

use std::ops::Range;

use rayon::prelude::*;

use super::asking::Asking;
use super::metrics::{ChoiceScore, Sample};
use super::requests::{Encoded, encode, is_python_space, windows};
use super::tasks::{Item, Task, TaskKind};
use crate::engine::{self, Work};
use crate::error::{Error, Result};
use crate::files::sha256;
use crate::kernels::TokenStatistics;
use crate::model::Model;
use crate::tokens::{Sequence, Tokenizer};

/// The model's results on all items of a task.
pub struct Scored {
    /// One sample per item, in order.
    pub samples: Vec<Sample>,
    /// Requests whose context was truncated at its beginning to fit `max_len`.
    pub truncated: u64,
    /// Items whose system message the chat template rejected.
    pub without_system: u64,
    /// The number of tokens of all requests.
    pub tokens: u64,
}

/// The log-likelihood of the supervised tokens of a sequence.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Said {
    /// The sum of ln p, in f64.
    pub logprob: f64,
    /// Is each token the model's most probable one at its position: the lowest id among the largest logits, like `argmax`?
    pub greedy: bool,
    /// The number of supervised tokens.
    pub tokens: u32,
}

impl Said {
    /// Sums the statistics of the supervised tokens of `sequence`.
    pub fn of<'a>(sequence: &Sequence, statistics: impl IntoIterator<Item = &'a TokenStatistics>) -> Said {
        let nothing = Said { logprob: 0.0, greedy: true, tokens: 0 };
        sequence.targets().zip(statistics).fold(nothing, |said, ((_, target), token)| Said {
            logprob: said.logprob + f64::from(token.logprob),
            greedy: said.greedy && token.top_id == target,
            tokens: said.tokens + 1,
        })
    }
}

/// A function that scores sequences and returns the results in their order. It reports the number of tokens done to the callback
/// in its second argument.
pub type Say<'a> = dyn FnMut(&[Sequence], &mut dyn FnMut(u64)) -> Result<Vec<Said>> + 'a;

/// A [`Say`] that scores with a model of our own; its work is added to `work`.
pub fn said_by<'a>(
    model: &'a Model,
    work: &'a mut Work,
) -> impl FnMut(&[Sequence], &mut dyn FnMut(u64)) -> Result<Vec<Said>> + 'a {
    |sequences, progress| {
        let scores = engine::score_watched(model, sequences, work, progress)?;
        Ok(sequences.iter().zip(&scores).map(|(sequence, statistics)| Said::of(sequence, statistics)).collect())
    }
}

/// Tokens that are packed together: enough that items of a task meet others with the same prefix.
const CHUNK_TOKENS: usize = 1 << 16;

/// Takes the first elements of `open` that are packed together, at least one if there is any.
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

/// Scores all items of a task. `progress` receives the number of tokens done and the total.
pub fn score(
    tokenizer: &Tokenizer,
    task: &Task,
    asking: &Asking,
    max_len: usize,
    say: &mut Say,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<Scored> {
    let of_item = |item: &Item| {
        prepare(tokenizer, task.kind, item, asking, max_len)
            .map_err(|error| Error::new(format!("item `{}` cannot be scored", item.id)).caused_by(error).at(&task.path))
    };
    let mut prepared: Vec<Vec<Prepared>> = task.items.par_iter().map(of_item).collect::<Result<_>>()?;
    // The windows of one text share its subject and style, and count as one draw. Of a single text, windows are all that there is to draw.
    if task.items.len() > 1 && prepared.iter().any(|windows| windows.len() > 1) {
        for (item, windows) in task.items.iter().zip(&mut prepared) {
            windows.iter_mut().for_each(|window| _ = window.sample.group.get_or_insert_with(|| item.id.clone()));
        }
    }
    let mut prepared: Vec<Prepared> = prepared.into_iter().flatten().collect();
    let truncated = prepared.iter().flat_map(|sample| &sample.requests).filter(|request| request.truncated).count() as u64;
    let without_system = prepared.iter().filter(|sample| sample.without_system).count() as u64;
    let tokens: u64 = prepared.iter().map(|sample| sample.n_tokens() as u64).sum();

    let mut done = 0;
    let mut samples = Vec::with_capacity(prepared.len());
    while !prepared.is_empty() {
        let chunk = take_chunk(&mut prepared, Prepared::n_tokens);
        let begun = done;
        done += chunk.iter().map(|sample| sample.n_tokens() as u64).sum::<u64>();
        samples.extend(score_chunk(chunk, say, &mut |within| progress(begun + within, tokens))?);
    }
    Ok(Scored { samples, truncated, without_system, tokens })
}

/// A sample without log-likelihoods yet, and the requests to score for it.
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

fn prepare(tokenizer: &Tokenizer, kind: TaskKind, item: &Item, asking: &Asking, max_len: usize) -> Result<Vec<Prepared>> {
    let sample = |id: String, choices: Vec<ChoiceScore>| Sample {
        id,
        subject: item.subject.clone(),
        group: item.group.clone(),
        answer: item.answer as u32,
        choices,
        ..Sample::default()
    };
    if kind == TaskKind::Text {
        let text = &item.requests[0].continuation;
        let spaces = space_runs(text);
        let of_window = |(number, (request, bytes)): (usize, (Encoded, Range<usize>))| {
            let n_spaces = spaces.partition_point(|&at| at < bytes.end) - spaces.partition_point(|&at| at < bytes.start);
            let score = ChoiceScore {
                chars: text.char_indices().filter(|(at, _)| bytes.contains(at)).count() as u32,
                bytes: bytes.len() as u32,
                // `re.split` returns one piece more than there are separators.
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
        // In most tasks, all choices have the same context.
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

/// The start of each run of white space.
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

fn score_chunk(chunk: Vec<Prepared>, say: &mut Say, progress: &mut dyn FnMut(u64)) -> Result<Vec<Sample>> {
    let mut samples = Vec::with_capacity(chunk.len());
    let mut sequences: Vec<Sequence> = Vec::new();
    for Prepared { sample, requests, .. } in chunk {
        samples.push(sample);
        sequences.extend(requests.into_iter().map(|request| request.sequence(0)));
    }
    let scores = samples.iter_mut().flat_map(|sample| &mut sample.choices);
    for (score, said) in scores.zip(say(&sequences, progress)?) {
        (score.logprob, score.greedy, score.tokens) = (said.logprob, said.greedy, said.tokens);
    }
    Ok(samples)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::tokens::Span;

    #[test]
    fn what_is_said_of_a_continuation_is_the_sum_over_its_tokens() {
        let token =
            |logprob: f32, rank: u32, top_id: u32| TokenStatistics { logprob, rank, top_id, ..TokenStatistics::default() };
        let two = Sequence { row: 0, ids: vec![1, 7, 8], supervised: vec![false, true, true], spans: vec![Span::default(); 3] };
        let said = |tokens: &[TokenStatistics]| Said::of(&two, tokens);
        assert_eq!(said(&[token(-0.5, 1, 7), token(-0.25, 1, 8)]), Said { logprob: -0.75, greedy: true, tokens: 2 });
        assert_eq!(said(&[token(-0.5, 1, 7), token(-4.0, 3, 5)]), Said { logprob: -4.5, greedy: false, tokens: 2 });
        assert_eq!(said(&[token(f32::NEG_INFINITY, 9, 5)]).logprob, f64::NEG_INFINITY);
        // All tokens are equally probable: the most probable one is the first id, although no token ranks above the target.
        assert!(!said(&[token(-3.0, 1, 0), token(-3.0, 1, 0)]).greedy);
    }

    #[test]
    fn words_are_the_pieces_between_white_space() {
        // len(re.split(r"\s+", " a b\n\nc\u2003d")) is 5: there is an empty piece before the first space.
        assert_eq!(space_runs(" a b\n\nc\u{2003}d"), [0, 2, 4, 7]);
    }
}
