//! Answers that a server generates: token ids in, token ids out, ended by this program's own rules.
//!
//! The request states everything that could change the distribution instead of relying on the server's defaults: temperature, filters, penalties, end
//! tokens, watermarks. The tokens are processed one by one as in our own engine (`generate/answer.rs`); the server's reason for stopping only matters
//! if this finds no end.

use std::io::Read;
use std::time::Duration;

use serde::Deserialize;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::http::Trouble;
use super::pool::{Given, Pool};
use super::reply::{Fault, Limited, Passed, unread};
use super::server::{Api, Server};
use crate::engine::generate::{Answer, Request, Sampling, Way, answer_of};
use crate::error::{Error, Result};
use crate::format::{beginning, n_tokens};
use crate::tokens::Tokenizer;

/// A server with many concurrent answers generates five tokens per second of each.
const WAIT_FOR_TOKEN: Duration = Duration::from_millis(200);
/// vLLM raises smaller positive temperatures to this value.
const LEAST_TEMPERATURE_OF_VLLM: f64 = 0.01;

impl Pool {
    /// Returns an error if the servers cannot sample in this way.
    pub fn check_way(&self, sampling: &Sampling) -> Result<()> {
        let by = |api: Api| self.servers.iter().find(|server| server.api == api);
        if let (Some(penalty), Some(server)) = (sampling.repetition_penalty, by(Api::Sglang)) {
            return Err(Error::usage(format!(
                "--repetition-penalty {penalty}: some versions of SGLang apply it to the tokens of the prompt, as Transformers and vLLM do, and some do not"
            ))
            .at(server.url())
            .cure("Pass --repetition-penalty 1 for answers without a penalty."));
        }
        let Some(server) = by(Api::Vllm) else { return Ok(()) };
        let Sampling { temperature, top_k: _, top_p, min_p, repetition_penalty: _ } = *sampling;
        if temperature > 0.0 && temperature < LEAST_TEMPERATURE_OF_VLLM {
            return Err(Error::usage(format!(
                "--temperature {temperature}: vLLM replaces lower values by {LEAST_TEMPERATURE_OF_VLLM}"
            ))
            .at(server.url())
            .cure(format!("Give {LEAST_TEMPERATURE_OF_VLLM} or more, or 0 for the most probable token.")));
        }
        if !sampling.is_greedy() && top_p.is_some() && min_p.is_some() {
            return Err(Error::usage(
                "--top-p and --min-p together: vLLM applies --min-p first, this program and Transformers --top-p, and different tokens remain",
            )
            .at(server.url())
            .cure("Use only one of the two."));
        }
        Ok(())
    }

    /// The answer to a request. Waits for its turn, and retries transient failures.
    pub fn answer(&self, request: &Request, way: &Way, tokenizer: &Tokenizer) -> Result<Given<Answer>> {
        let tokens = request.prompt.len() + request.max_new_tokens;
        self.turn(tokens, |server| server.answer(request, way, tokenizer, self.vocab))
    }
}

impl Server {
    /// Sends one request, or two: if the server stopped at a string that the bytes of the tokens do not contain, it is asked again without stop
    /// strings.
    pub(super) fn answer(&self, request: &Request, way: &Way, tokenizer: &Tokenizer, vocab: usize) -> Result<Answer, Trouble> {
        let Way { ends, stops, .. } = way;
        let cut = |told: &Told| answer_of(&told.ids, request.max_new_tokens, ends, stops, tokenizer);
        let mut told = self.told(request, way, stops, vocab)?;
        if cut(&told).is_none() && told.reason == "stop" && told.matched.is_string() {
            told = self.told(request, way, &[], vocab)?;
        }
        cut(&told).ok_or_else(|| self.trouble(Fault::Wrong(told.unfinished(request, tokenizer))))
    }

    fn told(&self, request: &Request, way: &Way, stops: &[String], vocab: usize) -> Result<Told, Trouble> {
        let more = WAIT_FOR_TOKEN.saturating_mul(u32::try_from(request.max_new_tokens).unwrap_or(u32::MAX));
        let tokens = (request.prompt.len() + request.max_new_tokens) as u64;
        let told = match self.api {
            Api::Vllm => {
                let reply = self.http.post_waiting("/v1/completions", &self.asked_of_vllm(request, way, stops), more)?;
                read(reply, tokens).and_then(Told::by_vllm)
            }
            Api::Sglang => {
                let reply = self.http.post_waiting("/generate", &asked_of_sglang(request, way, stops), more)?;
                read(reply, tokens).and_then(Told::by_sglang)
            }
        };
        let told = told.and_then(|told| told.checked(request, vocab));
        told.map_err(|fault| self.trouble(fault))
    }

    fn asked_of_vllm(&self, request: &Request, way: &Way, stops: &[String]) -> Value {
        let Sampling { temperature, top_k, top_p, min_p, repetition_penalty } = way.sampling;
        let mut body = json!({
            "prompt": request.prompt,
            "max_tokens": request.max_new_tokens,
            "temperature": temperature,
            "top_k": top_k.unwrap_or(0),
            "top_p": top_p.unwrap_or(1.0),
            "min_p": min_p.unwrap_or(0.0),
            "repetition_penalty": repetition_penalty.unwrap_or(1.0),
            "presence_penalty": 0.0,
            "frequency_penalty": 0.0,
            "watermarking": false,
            // Only our end tokens apply: those of the served model may differ.
            "ignore_eos": true,
            "stop_token_ids": way.ends,
            "stop": stops,
            "include_stop_str_in_output": true,
            "skip_special_tokens": false,
            "spaces_between_special_tokens": false,
            "add_special_tokens": false,
            "return_token_ids": true,
        });
        if !way.sampling.is_greedy() {
            // vLLM only accepts signed numbers.
            body["seed"] = (request.seed >> 1).into();
        }
        if !self.model.is_empty() {
            body["model"] = self.model.as_str().into();
        }
        body
    }
}

fn asked_of_sglang(request: &Request, way: &Way, stops: &[String]) -> Value {
    // A penalty has been refused before (`check_way`).
    let Sampling { temperature, top_k, top_p, min_p, repetition_penalty: _ } = way.sampling;
    let mut sampling = json!({
        "max_new_tokens": request.max_new_tokens,
        "temperature": temperature,
        "top_k": top_k.map_or(-1, |k| i64::try_from(k).unwrap_or(i64::MAX)),
        "top_p": top_p.unwrap_or(1.0),
        "min_p": min_p.unwrap_or(0.0),
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
        // With it set, SGLang would also ignore these end tokens.
        "ignore_eos": way.ends.is_empty(),
        "stop_token_ids": way.ends,
        "stop": stops,
        "no_stop_trim": true,
        "skip_special_tokens": false,
        "spaces_between_special_tokens": false,
    });
    if !way.sampling.is_greedy() {
        // SGLang uses this with --enable-deterministic-inference, and without it would then sample the same answer to equal prompts.
        sampling["sampling_seed"] = (request.seed >> 33).into();
    }
    json!({ "input_ids": request.prompt, "sampling_params": sampling })
}

/// Parses a reply limited to `tokens` tokens.
fn read<T: DeserializeOwned>(reply: impl Read, tokens: u64) -> Result<T, Fault> {
    let passed = Passed::default();
    let reply = Limited::of_tokens(reply, tokens, &passed).buffered();
    serde_json::from_reader(reply).map_err(|error| unread(error, &passed, None))
}

#[derive(Deserialize)]
struct VllmReply {
    #[serde(default)]
    choices: Vec<VllmChoice>,
    usage: Option<Usage>,
}

#[derive(Deserialize)]
struct VllmChoice {
    token_ids: Option<Vec<u32>>,
    prompt_token_ids: Option<Vec<u32>>,
    finish_reason: Option<String>,
    #[serde(default)]
    stop_reason: Value,
}

#[derive(Deserialize)]
struct Usage {
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct SglangReply {
    output_ids: Option<Vec<u32>>,
    meta_info: Option<Meta>,
}

#[derive(Deserialize)]
struct Meta {
    finish_reason: Option<FinishReason>,
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
}

#[derive(Deserialize)]
struct FinishReason {
    #[serde(rename = "type")]
    kind: Option<String>,
    #[serde(default)]
    matched: Value,
    message: Option<String>,
}

/// A server's answer.
struct Told {
    ids: Vec<u32>,
    /// For example `length` or `stop`.
    reason: String,
    /// The id or text that ended the answer, or null.
    matched: Value,
    prompt_ids: Option<Vec<u32>>,
    prompt_tokens: Option<usize>,
    completion_tokens: Option<usize>,
}

impl Told {
    fn by_vllm(reply: VllmReply) -> Result<Told, Fault> {
        let [choice] = <[VllmChoice; 1]>::try_from(reply.choices)
            .map_err(|choices| Fault::Wrong(Error::new(format!("expected one answer, found {}", choices.len()))))?;
        let reason = choice.finish_reason.unwrap_or_default();
        check_not_given_up(&reason, "")?;
        Ok(Told {
            ids: choice.token_ids.ok_or_else(no_ids)?,
            reason,
            matched: choice.stop_reason,
            prompt_ids: choice.prompt_token_ids,
            prompt_tokens: reply.usage.as_ref().and_then(|usage| usage.prompt_tokens),
            completion_tokens: reply.usage.and_then(|usage| usage.completion_tokens),
        })
    }

    fn by_sglang(reply: SglangReply) -> Result<Told, Fault> {
        let meta = reply.meta_info.unwrap_or(Meta { finish_reason: None, prompt_tokens: None, completion_tokens: None });
        let reason = meta.finish_reason.unwrap_or(FinishReason { kind: None, matched: Value::Null, message: None });
        let kind = reason.kind.unwrap_or_default();
        check_not_given_up(&kind, &reason.message.unwrap_or_default())?;
        Ok(Told {
            ids: reply.output_ids.ok_or_else(no_ids)?,
            reason: kind,
            matched: reason.matched,
            prompt_ids: None,
            prompt_tokens: meta.prompt_tokens,
            completion_tokens: meta.completion_tokens,
        })
    }

    /// Checks that it is a complete answer to this request, in tokens of the vocabulary.
    fn checked(self, request: &Request, vocab: usize) -> Result<Told, Fault> {
        let wrong = |what: String| Err(Fault::Wrong(Error::new(what)));
        if self.prompt_ids.as_ref().is_some_and(|ids| *ids != request.prompt) {
            return wrong("the server read different tokens than were sent".to_owned());
        }
        if let Some(read) = self.prompt_tokens.filter(|read| *read != request.prompt.len()) {
            return wrong(format!("the server read {read} of the {} tokens that were sent", request.prompt.len()));
        }
        let (found, most) = (self.ids.len(), request.max_new_tokens);
        if let Some(counted) = self.completion_tokens.filter(|counted| *counted != found) {
            return wrong(format!("the server counts {counted} tokens in its answer, but returned {found} ids"));
        }
        if found > most {
            return wrong(format!("expected an answer of at most {most} tokens, found {found}"));
        }
        if let Some(id) = self.ids.iter().find(|&&id| id as usize >= vocab) {
            let error =
                Error::new(format!("the server's answer has a token {id}, but the model named here has only ids below {vocab}"));
            return Err(Fault::Wrong(error.cure("Pass the folder of exactly the served model with --model.")));
        }
        Ok(self)
    }

    /// Why these tokens are not an answer: nothing in them ends it.
    fn unfinished(&self, request: &Request, tokenizer: &Tokenizer) -> Error {
        let (found, most) = (self.ids.len(), request.max_new_tokens);
        match (self.reason.as_str(), self.ids.last()) {
            ("length", _) => Error::new(format!("the server ended an answer after {}, but {most} were requested", n_tokens(found as u64)))
                .cure("Start it with a larger --max-model-len (SGLang: --context-length), and without its own limit on new tokens."),
            ("stop", Some(&last)) => Error::new(format!(
                "the server ended an answer with token {last} ({:?}), which is not an end token in the files of the model named here",
                tokenizer.text(last)
            ))
            .cure("Pass the folder of exactly the served model with --model: its generation_config.json says what ends an answer."),
            ("stop", None) => Error::new("the server ended an answer before its first token"),
            (other, _) => Error::new(format!(
                "the server ended an answer after {} because of `{other}`; expected an end token, a stop string, or {}",
                n_tokens(found as u64),
                n_tokens(most as u64)
            )),
        }
    }
}

/// Returns an error that permits a retry if the server aborted the answer.
fn check_not_given_up(reason: &str, message: &str) -> Result<(), Fault> {
    if reason != "abort" {
        return Ok(());
    }
    let error = Error::new(match message.is_empty() {
        true => "the server aborted the request".to_owned(),
        false => format!("the server aborted the request: {}", beginning(message, 300)),
    });
    Err(Fault::Broken(error))
}

fn no_ids() -> Fault {
    let error =
        Error::new("the server returns no token ids for its answer, and tokenising the text does not always give the drawn ids");
    Fault::Wrong(
        error.cure("vLLM returns them from version 0.10.2 on (`return_token_ids`), SGLang as `output_ids`: use a newer version."),
    )
}
