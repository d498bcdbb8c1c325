//! One server: its protocol, the model that it serves, and its answer to a prompt.

use std::collections::HashMap;

use serde_json::{Value, json};

use super::bounds::{Position, TopTokens};
use super::http::{Http, Trouble};
use super::reply::{Expected, Fault, read_sglang, read_vllm};
use crate::error::{Error, Result};
use crate::spelling::named;

/// The protocol of a server.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    /// `/v1/completions` with `prompt_logprobs`.
    Vllm,
    /// `/generate` with `return_logprob`.
    Sglang,
}

named! { pub Api, "a protocol of servers": Vllm = "vllm", Sglang = "sglang" }

pub(crate) struct Server {
    pub(super) http: Http,
    /// The protocol that it speaks.
    pub api: Api,
    /// The name under which it serves the model.
    pub model: String,
    /// The origin of the model, if the server reports it.
    pub root: Option<String>,
    /// The version of its program, if the server reports it.
    pub version: Option<String>,
    /// The limit on prompt and answer together, if the server reports it.
    pub max_len: Option<usize>,
}

impl Server {
    /// Connects to a server and determines its properties. `model` selects one of the models that it serves, if there are several. `is_one_of` says
    /// whether there are other servers.
    pub(crate) fn open(url: &str, api: Option<Api>, model: Option<&str>, is_one_of: bool) -> Result<Server> {
        let http = Http::new(url)?;
        let without = if is_one_of { " Or leave out this --server." } else { "" };
        let is_up = |trouble: Trouble| match trouble {
            Trouble::Passing(error, _) => {
                error.cure(format!("Check the address, and whether the server is up: it may still be loading.{without}"))
            }
            Trouble::Lasting(error) => *error,
        };
        let at = http.url.clone();
        let listed = listed(&http).map_err(is_up)?;
        let owner = listed.first().and_then(|model| model["owned_by"].as_str()).unwrap_or_default().to_owned();
        if owner == "llamacpp" {
            return Err(Error::new("this is llama.cpp's server, which returns no log-probabilities of a prompt")
                .at(at)
                .cure("Run its file here, without a server: --model file.gguf."));
        }
        let api = match (api, owner.as_str()) {
            (Some(api), _) => api,
            (None, "vllm") => Api::Vllm,
            (None, "sglang") => Api::Sglang,
            (None, _) if http.get("/get_model_info").map_err(is_up)?.is_some_and(|info| info["model_path"].is_string()) => {
                Api::Sglang
            }
            (None, _) => {
                let whose =
                    if owner.is_empty() { "does not say what it is".to_owned() } else { format!("says that it is `{owner}`") };
                return Err(Error::new(format!("expected a vLLM or SGLang server; this one {whose}")).at(at).cure(
                    "If it implements one of their protocols, pass --api vllm or --api sglang. Only these return the log-probabilities of a prompt.",
                ));
            }
        };
        let served = match model {
            Some(name) => listed.iter().find(|served| served["id"] == *name),
            None => listed.first(),
        };
        let names = || listed.iter().filter_map(|served| served["id"].as_str()).collect::<Vec<_>>().join(", ");
        match (model, listed.len()) {
            (Some(name), 1..) if served.is_none() => {
                return Err(Error::usage(format!("the server serves no model `{name}`, but {}", names())).at(at));
            }
            (None, 2..) => {
                return Err(Error::usage(format!("the server serves several models: {}", names()))
                    .at(at)
                    .cure("Choose one with --served-model."));
            }
            _ => {}
        }
        let text = |key: &str| served.and_then(|served| served[key].as_str()).map(str::to_owned);
        let version = match api {
            Api::Vllm => http.get("/version").map_err(is_up)?.and_then(|version| version["version"].as_str().map(str::to_owned)),
            Api::Sglang => None,
        };
        // SGLang reserves up to this many tokens of its limit, depending on the version, and refuses or truncates longer requests.
        let kept_back = if api == Api::Sglang { 8 } else { 0 };
        Ok(Server {
            api,
            model: text("id").or_else(|| model.map(str::to_owned)).unwrap_or_default(),
            root: text("root"),
            version,
            max_len: served.and_then(|served| limit_of(served, &listed)).map(|tokens| tokens.saturating_sub(kept_back)),
            http,
        })
    }

    /// The program with its version, such as `vllm 0.11.0`.
    pub(super) fn program(&self) -> String {
        program(self.api, self.version.as_deref())
    }

    /// The origin of the model, or else its name.
    pub(super) fn origin(&self) -> &str {
        self.root.as_deref().unwrap_or(&self.model)
    }

    /// The origin of the model that it serves now, if that is another one than when it was opened.
    pub(super) fn other_origin(&self) -> Result<Option<String>, Trouble> {
        let listed = listed(&self.http)?;
        let now = match listed.iter().find(|served| served["id"] == self.model) {
            Some(served) => served["root"].as_str().filter(|root| self.root.as_ref().is_some_and(|before| before != root)),
            None if self.model.is_empty() => None,
            None => listed.first().and_then(|served| served["id"].as_str()),
        };
        Ok(now.map(str::to_owned))
    }

    pub(crate) fn url(&self) -> &str {
        &self.http.url
    }

    /// The positions of the wanted tokens of a prompt, in order; `texts` receives the texts of tokens, if the answer contains them.
    pub(crate) fn positions(
        &self,
        ids: &[u32],
        wanted: &[bool],
        TopTokens { top_k, vocab }: TopTokens,
        texts: Option<&mut HashMap<u32, String>>,
    ) -> Result<Vec<Position>, Trouble> {
        let Some(first) = wanted.iter().position(|&wanted| wanted) else { return Ok(Vec::new()) };
        let start = match self.api {
            Api::Vllm => 0,
            Api::Sglang => first.saturating_sub(1),
        };
        let expected = Expected { ids, wanted, start, top_k, vocab, key: self.http.key() };
        let read = match self.api {
            Api::Vllm => read_vllm(self.http.post("/v1/completions", &self.vllm(ids, top_k))?, &expected, texts),
            Api::Sglang => read_sglang(self.http.post("/generate", &sglang(ids, start, top_k))?, &expected),
        };
        read.map_err(|fault| self.trouble(fault))
    }

    /// Converts a faulty answer of this server to an error, which says whether to retry.
    pub(super) fn trouble(&self, fault: Fault) -> Trouble {
        match fault {
            Fault::Broken(error) => Trouble::passing(error.at(self.url())),
            Fault::Wrong(error) => Trouble::lasting(error.at(self.url())),
        }
    }

    fn vllm(&self, ids: &[u32], top_k: usize) -> Value {
        // It refuses to generate no tokens, so one is generated and ignored.
        let mut body = json!({
            "prompt": ids,
            "max_tokens": 1,
            "temperature": 0,
            "prompt_logprobs": top_k,
            "return_token_ids": true,
            "add_special_tokens": false,
        });
        if !self.model.is_empty() {
            body["model"] = self.model.as_str().into();
        }
        body
    }
}

/// The program with its version, such as `vllm 0.11.0`.
pub(super) fn program(api: Api, version: Option<&str>) -> String {
    version.map_or_else(|| api.to_string(), |version| format!("{api} {version}"))
}

fn sglang(ids: &[u32], start: usize, top_k: usize) -> Value {
    json!({
        "input_ids": ids,
        "sampling_params": { "max_new_tokens": 1, "temperature": 1.0 },
        "return_logprob": true,
        "logprob_start_len": start,
        "top_logprobs_num": top_k,
        "return_text_in_logprobs": false,
    })
}

/// The models that a server lists; none if it has no such list.
fn listed(http: &Http) -> Result<Vec<Value>, Trouble> {
    Ok(http
        .get("/v1/models")?
        .and_then(|mut models| Some(models["data"].as_array_mut()?.drain(..).collect()))
        .unwrap_or_default())
}

/// The longest sequence of a served model, in tokens. vLLM lists it for base models alone: an adapter has that of its `parent`, and
/// where neither is known, no model of the list takes more than the least.
fn limit_of(served: &Value, listed: &[Value]) -> Option<usize> {
    let limit = |model: &Value| model["max_model_len"].as_u64().map(|tokens| tokens as usize);
    let parent = || listed.iter().find(|model| model["id"].is_string() && model["id"] == served["parent"]);
    limit(served).or_else(|| limit(parent()?)).or_else(|| listed.iter().filter_map(limit).min())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_adapter_has_the_limit_of_its_base() {
        let limits = |data: Value| -> Vec<Option<usize>> {
            let listed = data.as_array().unwrap();
            listed.iter().map(|served| limit_of(served, listed)).collect()
        };
        let [long, short] = [("a", 200), ("b", 100)].map(|(id, limit)| json!({"id": id, "max_model_len": limit, "parent": null}));
        let tuned = json!({"id": "tuned", "max_model_len": null, "parent": "a"});
        let unknown = json!({"id": "unknown"});
        assert_eq!(limits(json!([long, short, tuned, unknown])), [Some(200), Some(100), Some(200), Some(100)]);
        assert_eq!(limits(json!([unknown])), [None]);
    }
}
