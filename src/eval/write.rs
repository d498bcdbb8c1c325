//! Turns questions into prompts, and the answers that the model generates into verdicts.
//!
//! This follows `generate_until` in lm-evaluation-harness (`lm_eval/models/huggingface.py`): a prompt that leaves no room for the
//! longest answer is truncated at its beginning, control tokens are left out of the answer's text, and the text ends before the
//! first stop string. The end tokens are those that stop generation in Transformers; with a chat template, also the token with
//! which it ends a turn.
//!
//! A draw depends only on the seed, the task, the item and the number of the draw.

use rayon::prelude::*;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::asking::Asking;
use super::metrics::{Draw, Sample};
use super::requests::encode_prompt;
use super::tasks::{Item, Task};
use super::written::{Check, Spec, Verdict};
use crate::engine::generate::{Ended, Request, Sampling};
use crate::error::{Error, Result};
use crate::files::sha256;
use crate::random::own_seed;
use crate::tokens::Tokenizer;

/// The settings of generation on which a task's scores depend.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Writing {
    /// The longest answer in tokens.
    pub max_new_tokens: usize,
    /// How the next token is chosen.
    pub sampling: Sampling,
    /// Strings that end an answer and are not part of it.
    pub stops: Vec<String>,
    /// The number of answers per question.
    pub repeats: u32,
    /// The seed of the draws; `None` for greedy decoding.
    pub seed: Option<u64>,
    /// The end tokens: files beside the weights define them, so that the model's SHA-256 does not cover them.
    #[serde(default)]
    pub ends: Vec<u32>,
}

/// How answers ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Endings {
    /// Answers that ended with an end token.
    pub end_token: u64,
    /// Answers that ended at a stop string.
    pub stop: u64,
    /// Answers that were cut off at the longest length.
    pub length: u64,
}

/// The prompts for a task.
pub struct Prompts {
    /// The prompts, in the order of the items.
    pub list: Vec<Prompt>,
    /// Prompts that were truncated at their beginning.
    pub truncated: u64,
    /// Prompts whose system message the chat template rejected.
    pub without_system: u64,
}

/// The prompt of one question.
pub struct Prompt {
    /// Its token ids.
    pub ids: Vec<u32>,
    /// SHA-256 of the prompt's text.
    pub sha256: String,
}

impl Writing {
    /// The task's own settings with the given overrides; `stops` are added to the task's. `ends` remains empty until the model is
    /// known.
    pub fn of(
        spec: &Spec,
        max_new_tokens: Option<usize>,
        sampling: Sampling,
        stops: &[String],
        repeats: u32,
        seed: u64,
    ) -> Writing {
        let own = spec.stops.iter().map(|stop| (*stop).to_owned());
        Writing {
            max_new_tokens: max_new_tokens.unwrap_or(spec.max_new_tokens),
            sampling,
            stops: own.chain(stops.iter().cloned()).collect(),
            repeats,
            seed: (!sampling.is_greedy()).then_some(seed),
            ends: Vec::new(),
        }
    }

    /// The number of tokens that remain for a prompt of the task; an error if there are none.
    pub fn room(&self, task: &str, max_len: usize) -> Result<usize> {
        max_len.checked_sub(self.max_new_tokens).filter(|most| *most > 0).ok_or_else(|| {
            Error::usage(format!(
                "`{task}` needs answers of up to {} tokens, which leaves no room for its prompts in --max-len {max_len}",
                self.max_new_tokens
            ))
            .cure("Use a larger --max-len or a smaller --max-new-tokens.")
        })
    }

    /// The option by which two settings differ. The seed does not count, since it only draws other answers in the same way.
    pub fn differs(&self, other: &Writing) -> Option<&'static str> {
        if self.max_new_tokens != other.max_new_tokens {
            return Some("--max-new-tokens");
        }
        if self.sampling != other.sampling {
            return Some("--temperature, --top-k, --top-p, --min-p or --repetition-penalty");
        }
        if self.stops != other.stops {
            return Some("--stop");
        }
        (self.repeats != other.repeats).then_some("--repeats")
    }

    /// The options that give these settings, for messages.
    pub fn words(&self) -> Vec<String> {
        let mut words = vec![format!("--max-new-tokens {}", self.max_new_tokens)];
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty } = self.sampling;
        words.extend(repetition_penalty.map(|penalty| format!("--repetition-penalty {penalty}")));
        if let Some(seed) = self.seed {
            words.push(format!("--temperature {temperature}"));
            words.extend(top_k.map(|k| format!("--top-k {k}")));
            words.extend(top_p.map(|p| format!("--top-p {p}")));
            words.extend(min_p.map(|p| format!("--min-p {p}")));
            words.push(format!("--repeats {} --seed {seed}", self.repeats));
        }
        words.extend(self.stops.iter().map(|stop| format!("stop {stop:?}")));
        words
    }

    /// The request for one answer to one of the task's prompts.
    pub fn request(&self, task: &Task, item: usize, prompts: &Prompts, draw: u32) -> Request {
        Request {
            prompt: prompts.list[item].ids.clone(),
            max_new_tokens: self.max_new_tokens,
            seed: own_seed(&format!("answer {} {} {} {draw}", self.seed.unwrap_or_default(), task.name, task.items[item].id)),
        }
    }
}

/// The prompts for all items; together with the longest answer, none is longer than `max_len`.
pub fn prompts(tokenizer: &Tokenizer, task: &Task, asking: &Asking, writing: &Writing, max_len: usize) -> Result<Prompts> {
    let most = writing.room(&task.name, max_len)?;
    let of_item = |item: &Item| {
        let context = asking.context(item, &item.requests[0].context)?;
        let (ids, is_cut) = encode_prompt(tokenizer, &context.text, most)?;
        Ok((Prompt { ids, sha256: sha256(&context.text) }, is_cut, context.without_system))
    };
    let named = |item: &Item| {
        of_item(item)
            .map_err(|error: Error| Error::new(format!("item `{}` cannot be asked", item.id)).caused_by(error).at(&task.path))
    };
    let found = task.items.par_iter().map(named).collect::<Result<Vec<_>>>()?;
    let count = |is_one: fn(&(Prompt, bool, bool)) -> bool| found.iter().filter(|one| is_one(one)).count() as u64;
    let (truncated, without_system) = (count(|one| one.1), count(|one| one.2));
    Ok(Prompts { list: found.into_iter().map(|(prompt, ..)| prompt).collect(), truncated, without_system })
}

/// The verdicts on the answers to an item, and the number of answers that could not be judged, which count as wrong. `answers`
/// are the tokens of each, in the order of the draws.
pub fn judged(
    tokenizer: &Tokenizer,
    task: &Task,
    item: &Item,
    prompt: &Prompt,
    stops: &[String],
    answers: &[(&[u32], Ended)],
) -> Result<(Sample, u64)> {
    let (Some(spec), Some(question)) = (task.written, &item.written) else {
        return Err(Error::new(format!("`{}` is not a task with written answers", task.name)));
    };
    let mut unjudged = 0;
    let draw = |&(ids, ended): &(&[u32], Ended)| {
        let text = text(tokenizer, ids, ended, stops)?;
        let (verdicts, is_judged) = verdicts(spec.check, &question.data, &text)?;
        unjudged += u64::from(!is_judged);
        Ok(Draw { text, tokens: ids.len() as u32, ended, verdicts })
    };
    let draws = answers.iter().map(draw).collect::<Result<Vec<Draw>>>().map_err(|error: Error| {
        Error::new(format!("an answer to item `{}` cannot be judged", item.id)).caused_by(error).at(&task.path)
    })?;
    let sample = Sample {
        id: item.id.clone(),
        subject: item.subject.clone(),
        group: item.group.clone(),
        prompt_sha256: Some(prompt.sha256.clone()),
        draws,
        ..Sample::default()
    };
    Ok((sample, unjudged))
}

/// The verdicts on an answer, and whether it could be judged. One that could not be, for example because a pattern takes too long
/// on it, must not abort the evaluation: it is wrong by each metric, and judging an empty answer yields the names of the metrics.
fn verdicts(check: Check, data: &Value, text: &str) -> Result<(Vec<Verdict>, bool)> {
    match check(data, text) {
        Ok(verdicts) => Ok((verdicts, true)),
        Err(error) => {
            let of_nothing = check(data, "").map_err(|_| error)?;
            Ok((of_nothing.into_iter().map(|verdict| Verdict { right: 0, ..verdict }).collect(), false))
        }
    }
}

/// The text of an answer as it is judged.
fn text(tokenizer: &Tokenizer, ids: &[u32], ended: Ended, stops: &[String]) -> Result<String> {
    let n = ids.len() - usize::from(ended == Ended::EndToken && !ids.is_empty());
    let mut text = tokenizer.decode(&ids[..n])?;
    for stop in stops {
        text.truncate(text.find(stop.as_str()).unwrap_or(text.len()));
    }
    Ok(text)
}

impl Endings {
    /// Counts how the answers of these samples ended.
    pub fn of(samples: &[Sample]) -> Endings {
        let mut endings = Endings::default();
        for draw in samples.iter().flat_map(|sample| &sample.draws) {
            match draw.ended {
                Ended::EndToken => endings.end_token += 1,
                Ended::Stop => endings.stop += 1,
                Ended::Length => endings.length += 1,
            }
        }
        endings
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::super::written::uniform;
    use super::*;

    #[test]
    fn an_answer_that_no_pattern_can_be_tried_on_is_wrong_and_counted() {
        // This pattern backtracks endlessly if the last character is missing.
        let row = json!({"answer": r"^(?=a)(a|a|aa)+\1b$", "match": "regex"});
        let data = uniform::data(row.as_object().unwrap()).unwrap();
        let answer = "a".repeat(60);
        assert!((uniform::SPEC.check)(&data, &format!("{answer}c")).is_err());
        let wrong = vec![Verdict::of_answer("match", false)];
        assert_eq!(verdicts(uniform::SPEC.check, &data, &format!("{answer}c")).unwrap(), (wrong.clone(), false));
        assert_eq!(verdicts(uniform::SPEC.check, &data, "x").unwrap(), (wrong, true));
        // Data with which no answer can be judged are an error.
        assert!(verdicts(uniform::SPEC.check, &json!({}), "x").is_err());
    }
}
