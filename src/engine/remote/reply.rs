//! Parses a server's answer as it arrives: JSON of any length -> the requested positions.
//!
//! A prompt token takes 1.4 kB of vLLM's JSON and 170 bytes here. Unwanted values are dropped at once, and excess ones are refused as soon as
//! they appear, so the request limits the memory, whatever the reply. Each position must contain its own token, which rules out replies that
//! are shifted, reordered, truncated or for another prompt.

use std::cell::{Cell, RefCell};
use std::collections::HashMap;
use std::fmt;
use std::io::{BufReader, Read};

use serde::Deserialize;
use serde::de::{DeserializeSeed, Deserializer, Error as _, IgnoredAny, MapAccess, SeqAccess, Visitor};

use super::bounds::{Position, TopTokens};
use super::http::{DAMAGED, said};
use crate::error::{Error, Result};
use crate::json::foreign_number;
use crate::kernels::Choice;

/// The requirements on the answer to a prompt.
pub(crate) struct Expected<'a> {
    /// The prompt that was sent.
    pub ids: &'a [u32],
    /// Whether each token's position is wanted; never the first token's.
    pub wanted: &'a [bool],
    /// The index of the token with which the answer begins; its position is null, because it is not predicted.
    pub start: usize,
    /// How many of the most probable tokens each position must list.
    pub top_k: usize,
    /// The size of the vocabulary; ids are below it.
    pub vocab: usize,
    /// The server's key, which no message may show.
    pub key: Option<&'a str>,
}

/// What is wrong with an answer.
#[derive(Debug)]
pub(crate) enum Fault {
    /// It is truncated or invalid JSON: worth a retry.
    Broken(Error),
    /// It is complete but wrong: a retry would give the same.
    Wrong(Error),
}

/// Parses the wanted positions, in order, and the texts of tokens, if `texts` is given and the answer contains them.
pub(crate) fn read_vllm(
    reply: impl Read,
    expected: &Expected,
    texts: Option<&mut HashMap<u32, String>>,
) -> Result<Vec<Position>, Fault> {
    let mut reading = Reading { expected, positions: Vec::new(), at: 0, texts, fault: None };
    let passed = Passed::default();
    let read = read(Limited::of_prompt(reply, expected, &passed), Vllm(&mut reading));
    finish(reading, read, &passed)
}

/// Like [`read_vllm`], for the answer of SGLang's `/generate`, without the texts of tokens.
pub(crate) fn read_sglang(reply: impl Read, expected: &Expected) -> Result<Vec<Position>, Fault> {
    let mut reading = Reading { expected, positions: Vec::new(), at: 0, texts: None, fault: None };
    let mut arrays = Arrays::default();
    let passed = Passed::default();
    let read = read(Limited::of_prompt(reply, expected, &passed), Sglang(&mut reading, &mut arrays));
    let read = read.and_then(|()| {
        let joined = arrays.join(&mut reading);
        joined.map_err(|fault| {
            reading.fault = Some(fault);
            serde_json::Error::custom("")
        })
    });
    finish(reading, read, &passed)
}

/// A reply limited to the length that an answer to this request can have. Values are limited as they are parsed; this limits a single string
/// or key, which is read whole.
pub(super) struct Limited<'a, R> {
    reply: R,
    left: u64,
    passed: &'a Passed,
}

/// What is known about a reply when parsing fails.
#[derive(Default)]
pub(super) struct Passed {
    is_too_long: Cell<bool>,
    recent: RefCell<Recent>,
}

/// The last bytes of a reply: at least as many as the parser may have read ahead of its error.
#[derive(Default)]
struct Recent {
    bytes: Vec<u8>,
    /// The number of whole lines before these bytes, and of the bytes of their own line before them.
    lines: usize,
    columns: usize,
}

impl Recent {
    const LEAST: usize = 2 * BUFFER_BYTES;

    fn add(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        if self.bytes.len() > 2 * Recent::LEAST {
            for byte in self.bytes.drain(..self.bytes.len() - Recent::LEAST) {
                (self.lines, self.columns) = if byte == b'\n' { (self.lines + 1, 0) } else { (self.lines, self.columns + 1) };
            }
        }
    }

    /// The non-JSON number at which the parser failed, if that is the cause.
    fn foreign_number(&self, error: &serde_json::Error) -> Option<&'static str> {
        let nth = error.line().checked_sub(1 + self.lines)?;
        let before = if nth == 0 { self.columns } else { 0 };
        let line = self.bytes.split(|&byte| byte == b'\n').nth(nth)?;
        foreign_number(line, error.column().checked_sub(before)?)
    }
}

impl<'a, R: Read> Limited<'a, R> {
    fn of_prompt(reply: R, expected: &Expected, passed: &'a Passed) -> Limited<'a, R> {
        Limited::of_tokens(reply, expected.ids.len() as u64 * (expected.top_k as u64 + 2), passed)
    }

    /// Limits `reply` to the length of an answer about `tokens` tokens.
    pub(super) fn of_tokens(reply: R, tokens: u64, passed: &'a Passed) -> Limited<'a, R> {
        // The part beside the entries, including the answer's text and the prompt's ids; and the entry of each token, whose text of about a
        // hundred characters may be escaped with six bytes each.
        const BESIDE: u64 = 4 << 20;
        const TOKEN: u64 = 1 << 10;
        Limited { reply, left: BESIDE + tokens * TOKEN, passed }
    }

    /// Buffers the reply in large pieces.
    pub(super) fn buffered(self) -> BufReader<Self> {
        BufReader::with_capacity(BUFFER_BYTES, self)
    }
}

const BUFFER_BYTES: usize = 1 << 16;

impl<R: Read> Read for Limited<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        let n = self.reply.read(buffer)?;
        match self.left.checked_sub(n as u64) {
            Some(left) => self.left = left,
            None => {
                self.passed.is_too_long.set(true);
                return Err(std::io::Error::other("too long"));
            }
        }
        self.passed.recent.borrow_mut().add(&buffer[..n]);
        Ok(n)
    }
}

fn read<'de, R: Read, S: DeserializeSeed<'de, Value = ()>>(reply: Limited<R>, seed: S) -> serde_json::Result<()> {
    let mut json = serde_json::Deserializer::from_reader(reply.buffered());
    seed.deserialize(&mut json)?;
    json.end()
}

/// Why a reply could not be parsed; `at` describes the place in it, if more is known than the line.
pub(super) fn unread(error: serde_json::Error, passed: &Passed, at: Option<String>) -> Fault {
    if passed.is_too_long.get() {
        return Fault::Wrong(Error::new("the reply is longer than possible for this request"));
    }
    // A retry would give the same: this is the output of the model.
    if let Some(number) = passed.recent.borrow().foreign_number(&error) {
        let at = at.unwrap_or_else(|| format!("at line {} column {} of its reply", error.line(), error.column()));
        return Fault::Wrong(Error::new(format!("the server returned {number} {at}; expected a finite number")).cure(DAMAGED));
    }
    let what = if error.is_eof() || error.is_io() { "the reply was interrupted" } else { "the reply is not the expected JSON" };
    Fault::Broken(Error::new(what).caused_by(error))
}

fn finish(reading: Reading, read: serde_json::Result<()>, passed: &Passed) -> Result<Vec<Position>, Fault> {
    if let Some(fault) = reading.fault {
        return Err(Fault::Wrong(fault));
    }
    read.map_err(|error| {
        // Entries are parsed in place, except for those that arrive in separate lists.
        let within = reading.index().ok().filter(|_| reading.at > 0);
        unread(error, passed, within.map(|index| format!("in the entry of token {index} of the prompt")))
    })?;
    let Expected { ids, start, .. } = reading.expected;
    let (expected, found) = (ids.len() - start, reading.at);
    if found == 0 && expected > 0 {
        return Err(Fault::Wrong(no_logprobs()));
    }
    if found != expected {
        return Err(Fault::Wrong(
            Error::new(format!("expected the log-probabilities of {expected} tokens, found {found}: entries are missing")).cure(
                "The server truncates prompts, or omits what is in its prefix cache: start it with --no-enable-prefix-caching (vLLM) or \
                 --disable-radix-cache (SGLang).",
            ),
        ));
    }
    Ok(reading.positions)
}

/// The state of parsing.
struct Reading<'a> {
    expected: &'a Expected<'a>,
    positions: Vec<Position>,
    /// The number of entries parsed.
    at: usize,
    texts: Option<&'a mut HashMap<u32, String>>,
    /// Why the answer is wrong although it is valid JSON.
    fault: Option<Error>,
}

impl Reading<'_> {
    fn wrong<E: serde::de::Error>(&mut self, fault: Error) -> E {
        self.fault.get_or_insert(fault);
        E::custom("")
    }

    /// Checks the number of tokens that the server has read, if it reports it.
    fn check_length<E: serde::de::Error>(&mut self, read: Option<u64>) -> Result<(), E> {
        let sent = self.expected.ids.len() as u64;
        match read.filter(|read| *read != sent) {
            Some(read) => Err(self.wrong(Error::new(format!(
                "{sent} tokens were sent, but the server read {read}: it silently truncates prompts"
            )))),
            None => Ok(()),
        }
    }

    /// The index of the token for the next entry, or an error if there is none.
    fn index(&self) -> Result<usize> {
        let index = self.expected.start + self.at;
        match index < self.expected.ids.len() {
            true => Ok(index),
            false => Err(Error::new(format!(
                "expected the log-probabilities of {} tokens, found more: this is the reply to another prompt",
                self.expected.ids.len() - self.expected.start
            ))),
        }
    }

    /// Handles the entry of a token that is not predicted.
    fn null(&mut self) -> Result<()> {
        let index = self.index()?;
        if self.at > 0 {
            return Err(Error::new(format!(
                "the entry of token {index} is null, and only the first may be: its log-probability is missing, infinite or not a number"
            )));
        }
        self.at += 1;
        Ok(())
    }

    /// Handles the entry of a token: the most probable tokens, and the target, which may be among them.
    fn entry(&mut self, top: Vec<Choice>, target: Option<Choice>, rank: Option<u32>) -> Result<()> {
        let index = self.index()?;
        let Expected { ids, wanted, top_k, vocab, .. } = *self.expected;
        if self.at == 0 {
            return Err(Error::new(format!(
                "the first entry is for token {}, which nothing predicts; expected null: the entries are shifted by one",
                target.or(top.first().copied()).map_or(0, |choice| choice.id)
            )));
        }
        let id = ids[index];
        let Some(target) = target.filter(|target| target.id == id) else {
            return Err(Error::new(format!(
                "the entry at token {index} does not name it (id {id}): the reply is shifted, reordered, cut at its beginning, or for another prompt"
            )));
        };
        self.at += 1;
        if !wanted[index] {
            return Ok(());
        }
        self.positions.push(Position::new(index, target, rank, top, TopTokens { top_k, vocab })?);
        Ok(())
    }
}

/// vLLM writes -9999 for minus infinity; smaller finite values are kept.
fn logprob(value: f64) -> f32 {
    if value == -9999.0 { f32::NEG_INFINITY } else { value as f32 }
}

/// Defines the parser of an object, some members of which are read and the others skipped.
macro_rules! object {
    ($seed:ident($($of:ident: $type:ty),*), $what:literal, |$own:ident, $key:ident, $map:ident| $body:block) => {
        struct $seed<'r, 'a>($(&'r mut $type),*);

        impl<'de> DeserializeSeed<'de> for $seed<'_, '_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
                json.deserialize_map(self)
            }
        }

        impl<'de> Visitor<'de> for $seed<'_, '_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str($what)
            }

            fn visit_map<A: MapAccess<'de>>(self, mut $map: A) -> Result<(), A::Error> {
                let $own = self;
                while let Some($key) = $map.next_key::<String>()? {
                    $body
                }
                Ok(())
            }
        }
    };
}

object!(Vllm(reading: Reading<'a>), "an object with choices", |own, key, map| {
    match key.as_str() {
        "choices" => map.next_value_seed(Choices(own.0))?,
        "usage" => {
            let usage: Option<Usage> = map.next_value()?;
            own.0.check_length(usage.and_then(|usage| usage.prompt_tokens))?;
        }
        _ => drop(map.next_value::<IgnoredAny>()?),
    }
});

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<u64>,
}

/// The list of choices, which has one element for one prompt.
struct Choices<'r, 'a>(&'r mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for Choices<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_seq(self)
    }
}

impl<'de> Visitor<'de> for Choices<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of choices")
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        if seq.next_element_seed(VllmChoice(self.0))?.is_some() && seq.next_element::<IgnoredAny>()?.is_some() {
            return Err(self.0.wrong(Error::new("expected the reply to one prompt, found several")));
        }
        Ok(())
    }
}

object!(VllmChoice(reading: Reading<'a>), "a choice", |own, key, map| {
    match key.as_str() {
        "prompt_logprobs" => map.next_value_seed(Entries(own.0))?,
        "prompt_token_ids" => map.next_value_seed(ReadIds(own.0))?,
        _ => drop(map.next_value::<IgnoredAny>()?),
    }
});

/// The ids of the prompt as the server has read them, or null.
struct ReadIds<'r, 'a>(&'r mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for ReadIds<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for ReadIds<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("null or a list of token ids")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut sent = self.0.expected.ids.iter();
        loop {
            let read = seq.next_element::<u32>()?;
            if read.as_ref() != sent.next() {
                return Err(self.0.wrong(Error::new("the server read different tokens than were sent")));
            }
            if read.is_none() {
                return Ok(());
            }
        }
    }
}

/// The entries of the tokens: `[null, {"id": {..}, ..}, ..]`.
struct Entries<'r, 'a>(&'r mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for Entries<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Entries<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("a list of log-probabilities, one for each token of the prompt")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        Err(self.0.wrong(no_logprobs()))
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        while seq.next_element_seed(Entry(self.0))?.is_some() {}
        Ok(())
    }
}

fn no_logprobs() -> Error {
    Error::new("the server returns no log-probabilities of the prompt").cure(
        "vLLM does with `prompt_logprobs`, SGLang with `return_logprob`; llama.cpp's server does not: run its file here with --model file.gguf.",
    )
}

struct Entry<'r, 'a>(&'r mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for Entry<'_, '_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
        json.deserialize_any(self)
    }
}

#[derive(Deserialize)]
struct Told {
    logprob: f64,
    rank: Option<u32>,
    decoded_token: Option<String>,
}

impl<'de> Visitor<'de> for Entry<'_, '_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("null or an object from token ids to log-probabilities")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
        self.0.null().map_err(|fault| self.0.wrong(fault))
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<(), A::Error> {
        let reading = self.0;
        let Expected { ids, top_k, .. } = *reading.expected;
        let own = reading.index().map(|index| ids[index]).map_err(|fault| reading.wrong(fault))?;
        let (mut top, mut target, mut rank) = (Vec::with_capacity(top_k + 1), None, None);
        while let Some(id) = map.next_key::<IdText>()? {
            let told: Told = map.next_value()?;
            let choice = Choice { id: id.0, logprob: logprob(told.logprob) };
            if choice.id == own {
                (target, rank) = (Some(choice), told.rank);
            }
            top.push(choice);
            if top.len() > top_k + 1 {
                let found = "expected the requested number of most probable tokens at each position, found more";
                return Err(reading.wrong(Error::new(found)));
            }
            if let (Some(texts), Some(text)) = (&mut reading.texts, told.decoded_token) {
                texts.insert(choice.id, text);
            }
        }
        // One more than requested: this is the target, which is not among the most probable.
        if top.len() == top_k + 1 {
            top.retain(|choice| choice.id != own);
        }
        reading.entry(top, target, rank).map_err(|fault| reading.wrong(fault))
    }
}

/// A token id as the key of an object.
struct IdText(u32);

impl<'de> Deserialize<'de> for IdText {
    fn deserialize<D: Deserializer<'de>>(json: D) -> Result<IdText, D::Error> {
        struct Id;
        impl Visitor<'_> for Id {
            type Value = IdText;

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a token id in quotes")
            }

            fn visit_str<E: serde::de::Error>(self, text: &str) -> Result<IdText, E> {
                text.parse().map(IdText).map_err(|_| E::custom(format!("expected a token id, found `{text}`")))
            }
        }
        json.deserialize_str(Id)
    }
}

object!(Sglang(reading: Reading<'a>, arrays: Arrays), "an object with meta_info", |own, key, map| {
    match key.as_str() {
        "meta_info" => map.next_value_seed(Meta(own.0, own.1))?,
        _ => drop(map.next_value::<IgnoredAny>()?),
    }
});

/// SGLang's two lists, which come one after the other: the targets, and the most probable tokens.
#[derive(Default)]
struct Arrays {
    targets: Vec<Option<Choice>>,
    tops: Vec<Option<Vec<Choice>>>,
    seen: bool,
}

/// Why the answer ended.
#[derive(Deserialize)]
struct FinishReason {
    #[serde(rename = "type")]
    kind: Option<String>,
    message: Option<String>,
}

/// A token of SGLang: `[ln p, id, text or null]`.
#[derive(Deserialize)]
struct Triple(Option<f64>, u32, IgnoredAny);

impl Triple {
    fn choice(&self) -> Option<Choice> {
        Some(Choice { id: self.1, logprob: logprob(self.0?) })
    }
}

impl Arrays {
    fn join(self, reading: &mut Reading) -> Result<()> {
        if !self.seen {
            return Err(no_logprobs());
        }
        let (targets, tops) = (self.targets.len(), self.tops.len());
        if targets != tops {
            return Err(Error::new(format!(
                "found the log-probabilities of {targets} tokens, and the most probable ones at {tops}: entries are missing"
            )));
        }
        for (target, top) in self.targets.into_iter().zip(self.tops) {
            match (target, top) {
                (None, _) => reading.null()?,
                (target, top) => reading.entry(top.unwrap_or_default(), target, None)?,
            }
        }
        Ok(())
    }
}

object!(Meta(reading: Reading<'a>, arrays: Arrays), "an object with log-probabilities", |own, key, map| {
    match key.as_str() {
        "input_token_logprobs" => map.next_value_seed(Targets(own.0, own.1))?,
        "input_top_logprobs" => map.next_value_seed(Tops(own.0, own.1))?,
        "prompt_tokens" => {
            let read: Option<u64> = map.next_value()?;
            own.0.check_length(read)?;
        }
        "finish_reason" => {
            let reason: Option<FinishReason> = map.next_value()?;
            if let Some(reason) = reason.filter(|reason| reason.kind.as_deref() == Some("abort")) {
                let why = said(&reason.message.unwrap_or_default(), own.0.expected.key);
                return Err(own.0.wrong(Error::new(format!("the server aborted the request: {why}"))));
            }
        }
        _ => drop(map.next_value::<IgnoredAny>()?),
    }
});

/// Defines the parser of a list with at most one element per token of the prompt.
macro_rules! per_token {
    ($seed:ident, |$own:ident, $seq:ident| $next:expr, |$element:ident| $body:expr) => {
        struct $seed<'r, 'a>(&'r mut Reading<'a>, &'r mut Arrays);

        impl<'de> DeserializeSeed<'de> for $seed<'_, '_> {
            type Value = ();

            fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<(), D::Error> {
                json.deserialize_any(self)
            }
        }

        impl<'de> Visitor<'de> for $seed<'_, '_> {
            type Value = ();

            fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
                f.write_str("a list with an element for each token of the prompt")
            }

            fn visit_unit<E: serde::de::Error>(self) -> Result<(), E> {
                Err(self.0.wrong(no_logprobs()))
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut $seq: A) -> Result<(), A::Error> {
                let $own = self;
                let most = $own.0.expected.ids.len();
                for n in 0.. {
                    let Some($element) = $next else { break };
                    if n >= most {
                        let found = format!("expected the log-probabilities of at most {most} tokens, found more");
                        return Err($own.0.wrong(Error::new(found)));
                    }
                    $body;
                }
                Ok(())
            }
        }
    };
}

per_token!(Targets, |own, seq| seq.next_element::<Option<Triple>>()?, |target| {
    own.1.targets.push(target.and_then(|triple| triple.choice()));
    own.1.seen = true;
});
per_token!(Tops, |own, seq| seq.next_element_seed(Several(&mut *own.0))?, |top| own.1.tops.push(top));

/// A list with at most as many tokens as requested, or null.
struct Several<'r, 'a>(&'r mut Reading<'a>);

impl<'de> DeserializeSeed<'de> for Several<'_, '_> {
    type Value = Option<Vec<Choice>>;

    fn deserialize<D: Deserializer<'de>>(self, json: D) -> Result<Self::Value, D::Error> {
        json.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Several<'_, '_> {
    type Value = Option<Vec<Choice>>;

    fn expecting(&self, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("null or a list of the most probable tokens")
    }

    fn visit_unit<E: serde::de::Error>(self) -> Result<Self::Value, E> {
        Ok(None)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Self::Value, A::Error> {
        let most = self.0.expected.top_k;
        let mut choices = Vec::with_capacity(most);
        while let Some(triple) = seq.next_element::<Triple>()? {
            if choices.len() == most {
                return Err(self
                    .0
                    .wrong(Error::new(format!("expected the {most} most probable tokens of each position, found more"))));
            }
            choices.extend(triple.choice());
        }
        Ok(Some(choices))
    }
}

#[cfg(test)]
mod tests;
