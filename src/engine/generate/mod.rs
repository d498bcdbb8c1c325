//! Generates answers: prompts -> token ids.
//!
//! Many prompts are answered concurrently, and a finished answer makes room for the next (continuous batching): a step computes one token of
//! every running answer and the whole prompts of new ones in one batch, with the same blocks as scoring (`Model::next_logits`). Cache pages
//! that only contain a common beginning of two prompts are computed and stored once, except in models with the gated delta rule, whose state
//! summarises the whole sequence.
//!
//! Every token is sampled with its own random number, derived from the request's seed and the token's index in the answer, and its logits do
//! not depend on the rest of the batch, to the bit; so neither does an answer. Stop strings and end tokens end it (`answer.rs`);
//! `sampling.rs` chooses the tokens.

mod answer;
mod sampling;

use std::sync::Arc;

use rayon::prelude::*;

use answer::Writing;
pub(crate) use answer::answer_of;
pub use answer::{Answer, Ended, text_of};
pub use sampling::Sampling;

use crate::error::{Error, Result};
use crate::kernels::tasks::on_the_pool;
use crate::model::{Cache, CacheSize, Model, Placement, Stretch};
use crate::random;

/// The most prompt tokens that join in one step, unless a single prompt is longer.
const JOINING_TOKENS: usize = 2048;

/// A prompt to answer.
#[derive(Debug, Clone, PartialEq)]
pub struct Request {
    /// At least one token.
    pub prompt: Vec<u32>,
    /// At least 1; prompt and answer together must fit into the positions that the model was loaded for.
    pub max_new_tokens: usize,
    /// Requests with the same prompt and seed get the same answer.
    pub seed: u64,
}

/// How to generate answers.
#[derive(Debug, Clone, PartialEq)]
pub struct Way {
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Tokens that end an answer.
    pub ends: Vec<u32>,
    /// Texts that end an answer as soon as it contains them.
    pub stops: Vec<String>,
    /// The number of concurrent answers; affects no answer.
    pub at_once: usize,
}

/// The amount of computation.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Written {
    /// The number of tokens of all prompts.
    pub prompt_tokens: u64,
    /// The number of prompt tokens that had been computed for an earlier prompt.
    pub shared_tokens: u64,
    /// The number of tokens of the answers.
    pub tokens: u64,
    /// The number of batches.
    pub steps: u64,
}

/// Answers all requests. `finished` receives each answer with the index of its request as soon as it is complete, and `progress` receives
/// the number of tokens generated after every step.
pub fn generate(
    model: &Model,
    requests: &[Request],
    way: &Way,
    finished: &mut dyn FnMut(usize, Answer) -> Result<()>,
    progress: &mut dyn FnMut(u64),
) -> Result<Written> {
    way.sampling.check()?;
    for request in requests {
        if request.prompt.is_empty() || request.max_new_tokens == 0 {
            return Err(Error::new("an answer needs a prompt of at least one token, and at least one token to write"));
        }
    }
    if model.placement == Placement::Metal {
        return Err(Error::new("answers are written on the CPU or on an NVIDIA GPU, not on `metal`").cure("Give --device cpu."));
    }
    let at_once = way.at_once.clamp(1, requests.len().max(1));
    let cache = model.cache(&cache_size(requests, at_once, model.page()))?;
    answer_within(model, requests, way, cache, finished, progress)
}

/// Like [`generate`], in an existing cache; if its pages do not suffice for all requests at once, some wait.
fn answer_within(
    model: &Model,
    requests: &[Request],
    way: &Way,
    cache: Cache,
    finished: &mut dyn FnMut(usize, Answer) -> Result<()>,
    progress: &mut dyn FnMut(u64),
) -> Result<Written> {
    let at_once = way.at_once.clamp(1, requests.len().max(1));
    let vocabulary = model.head().out_features();
    let mut desk = Desk {
        model,
        requests,
        way,
        cache,
        seats: (0..at_once).rev().collect(),
        next: 0,
        rows: Vec::new(),
        last: None,
        written: Written::default(),
    };
    loop {
        desk.admit()?;
        if desk.rows.is_empty() {
            return Ok(desk.written);
        }
        let batch = desk.batch();
        let (rows, cache) = (&desk.rows, &mut desk.cache);
        let step = || -> Result<Vec<u32>> {
            let random = |row: &Row| random::unit(requests[row.request].seed, row.writing.len() as u64);
            let choose = |(row, logits): (&Row, &[f32])| {
                let before = requests[row.request].prompt.iter().chain(row.writing.ids());
                way.sampling.choose(&way.sampling.penalised(logits, before.copied()), random(row))
            };
            // A GPU chooses the tokens, too, if only the model's probabilities matter.
            let chosen = if way.sampling.repetition_penalty.is_some() {
                None
            } else if way.sampling.is_greedy() {
                model.next_largest(cache, &batch.ids, &batch.stretches)?
            } else if !way.sampling.has_cuts() {
                let randoms: Vec<f64> = rows.iter().map(random).collect();
                model.next_drawn(cache, &batch.ids, &batch.stretches, way.sampling.scale(), &randoms)?
            } else {
                None
            };
            if let Some(chosen) = chosen {
                return chosen.into_iter().map(sampling::check_chosen).collect();
            }
            model.next_logits(cache, &batch.ids, &batch.stretches, |logits| {
                rows.par_iter().zip(logits.par_chunks(vocabulary)).map(choose).collect()
            })
        };
        let chosen = on_the_pool(step)?;
        desk.take(&chosen, finished)?;
        progress(desk.written.tokens);
    }
}

/// The cache size for `at_once` concurrent answers, or at least for one, with pages of `page` positions.
fn cache_size(requests: &[Request], at_once: usize, page: usize) -> CacheSize {
    let longest_prompt = requests.iter().map(|request| request.prompt.len()).max().unwrap_or(0);
    CacheSize {
        pages: n_pages(requests, 1, page)..=n_pages(requests, at_once, page),
        sequences: at_once,
        positions: requests.iter().map(positions_of).max().unwrap_or(0),
        tokens: longest_prompt.max(JOINING_TOKENS) + at_once,
    }
}

/// The pages for the largest requests that can run concurrently, and for the prompt that was admitted last.
fn n_pages(requests: &[Request], at_once: usize, page: usize) -> usize {
    let mut needs: Vec<usize> = requests.iter().map(|request| positions_of(request).div_ceil(page)).collect();
    needs.sort_unstable_by(|a, b| b.cmp(a));
    let prompts = requests.iter().map(|request| request.prompt.len().div_ceil(page));
    needs.iter().take(at_once.max(1)).sum::<usize>() + prompts.max().unwrap_or(0)
}

/// The number of tokens that the model reads: all except the last token of the answer.
fn positions_of(request: &Request) -> usize {
    request.prompt.len() + request.max_new_tokens - 1
}

/// The state of all requests.
struct Desk<'a> {
    model: &'a Model,
    requests: &'a [Request],
    way: &'a Way,
    cache: Cache,
    /// The sequence indices of the cache that no answer uses.
    seats: Vec<usize>,
    /// The first request that has not begun.
    next: usize,
    rows: Vec<Row<'a>>,
    /// The prompt that was admitted last, and its full pages, which are kept even after its answer, because the following prompts mostly
    /// begin like it.
    last: Option<(usize, Vec<usize>)>,
    written: Written,
}

/// A running answer.
struct Row<'a> {
    request: usize,
    seat: usize,
    pages: Arc<[usize]>,
    /// The number of the sequence's tokens in the cache.
    n_cached: usize,
    /// The sequence's tokens to process next.
    reading: Vec<u32>,
    writing: Writing<'a>,
}

/// The tokens of one step: those of all rows, one row after the other.
struct Step {
    ids: Vec<u32>,
    stretches: Vec<Stretch>,
}

impl Desk<'_> {
    /// Begins requests as long as there is room.
    fn admit(&mut self) -> Result<()> {
        let (mut joining, page) = (0, self.cache.page());
        while let (Some(request), Some(&seat)) = (self.requests.get(self.next), self.seats.last()) {
            if joining > 0 && joining + request.prompt.len() > JOINING_TOKENS {
                break;
            }
            let shared = self.shared_pages(&request.prompt);
            let Some(own) = self.cache.take(positions_of(request).div_ceil(page) - shared.len()) else {
                match self.rows.is_empty() {
                    true => return Err(Error::new("the cache has no room for a single answer")),
                    false => break,
                }
            };
            self.seats.pop();
            self.cache.share(&shared);
            let n_shared = shared.len() * page;
            joining += request.prompt.len() - n_shared;
            let pages: Vec<usize> = shared.into_iter().chain(own).collect();
            let whole = pages[..request.prompt.len() / page].to_vec();
            self.cache.share(&whole);
            if let Some((_, before)) = self.last.replace((self.next, whole)) {
                self.cache.release(&before);
            }
            let Way { ends, stops, .. } = self.way;
            self.rows.push(Row {
                request: self.next,
                seat,
                pages: pages.into(),
                n_cached: n_shared,
                reading: request.prompt[n_shared..].to_vec(),
                writing: Writing::new(&self.model.tokenizer, ends, stops, request.max_new_tokens),
            });
            self.written.prompt_tokens += request.prompt.len() as u64;
            self.written.shared_tokens += n_shared as u64;
            self.next += 1;
        }
        Ok(())
    }

    /// The pages of another prompt that only contain the beginning of this one. They contain neither prompt's last token: this one's has to
    /// be processed, because the answer begins from it, and the other's may have been computed in another way than the tokens before it.
    fn shared_pages(&self, prompt: &[u32]) -> Vec<usize> {
        if !self.cache.shares_pages() {
            return Vec::new();
        }
        let common = |request: usize| {
            let other = &self.requests[request].prompt;
            let beginnings = prompt[..prompt.len() - 1].iter().zip(&other[..other.len() - 1]);
            beginnings.take_while(|(a, b)| a == b).count() / self.cache.page()
        };
        let of_rows = self.rows.iter().map(|row| (common(row.request), &row.pages[..]));
        let of_last = self.last.iter().map(|(request, pages)| (common(*request), pages.as_slice()));
        let best = of_rows.chain(of_last).max_by_key(|(n, _)| *n);
        best.map_or_else(Vec::new, |(n, pages)| pages[..n].to_vec())
    }

    fn batch(&self) -> Step {
        let mut step = Step { ids: Vec::new(), stretches: Vec::new() };
        for row in &self.rows {
            let begin = step.ids.len();
            step.ids.extend_from_slice(&row.reading);
            let tokens = begin..step.ids.len();
            step.stretches.push(Stretch { tokens, position: row.n_cached, pages: row.pages.clone(), sequence: row.seat });
        }
        step
    }

    /// Adds the chosen token to each row; removes rows that it ends.
    fn take(&mut self, chosen: &[u32], finished: &mut dyn FnMut(usize, Answer) -> Result<()>) -> Result<()> {
        self.written.steps += 1;
        self.written.tokens += chosen.len() as u64;
        let mut rows = Vec::with_capacity(self.rows.len());
        for (mut row, &id) in std::mem::take(&mut self.rows).into_iter().zip(chosen) {
            row.n_cached += row.reading.len();
            match row.writing.push(id) {
                Some(answer) => {
                    self.cache.release(&row.pages);
                    self.seats.push(row.seat);
                    finished(row.request, answer)?;
                }
                None => {
                    row.reading = vec![id];
                    rows.push(row);
                }
            }
        }
        self.rows = rows;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::kernels::{Dtype, Kernels};
    use crate::model::{LoadOptions, Reference};

    /// In the smallest cache at least one answer always runs, and the answers are those of the largest cache.
    #[test]
    fn an_answer_does_not_depend_on_the_pages_there_are() {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
        let reference = Reference::local(&folder).unwrap();
        let on_gpu = crate::kernels::testing::device().map(|_| Placement::Cuda);
        for device in [Placement::Cpu].into_iter().chain(on_gpu) {
            let options = LoadOptions { dtype: Dtype::F32, kernels: Kernels::Fused, device };
            let model = Model::load(&reference, options, 128).unwrap();
            let request = |i: u32| Request {
                prompt: (0..5 + i * 17 % 70).map(|j| if j < 40 { 9 } else { i * 31 % 250 }).collect(),
                max_new_tokens: 3 + (i as usize * 7) % 13,
                seed: u64::from(i),
            };
            let requests: Vec<Request> = (0..12).map(request).collect();
            let way = Way { sampling: Sampling::PLAIN, ends: Vec::new(), stops: Vec::new(), at_once: 8 };
            let size = cache_size(&requests, 8, model.page());
            assert!(size.pages.start() < size.pages.end());
            let answers = |pages: usize| {
                let mut answers = vec![None; requests.len()];
                let cache = model.cache(&CacheSize { pages: pages..=pages, ..size.clone() }).unwrap();
                let finished = &mut |request: usize, answer: Answer| {
                    answers[request] = Some(answer);
                    Ok(())
                };
                let written = answer_within(&model, &requests, &way, cache, finished, &mut |_| {}).unwrap();
                (answers, written.steps)
            };
            let (scarce, scarce_steps) = answers(*size.pages.start());
            let (plenty, plenty_steps) = answers(*size.pages.end());
            assert!(scarce.iter().all(Option::is_some) && scarce == plenty, "{device}");
            assert!(scarce_steps > plenty_steps, "{scarce_steps} and {plenty_steps} steps on {device}");
        }
    }
}
