//! Provides a server that answers as vLLM or SGLang does, with the numbers of a model of this crate, and misbehaves on demand.

use std::collections::HashSet;
use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use diagnose::engine::generate::{Ended, Request, Sampling, Way, generate};
use diagnose::kernels::Segment;
use diagnose::model::{Batch, LoadOptions, Model, Reference};
use serde_json::{Map, Value, json};

/// What is wrong with one answer.
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum Fault {
    Nothing,
    /// The connection ends before an answer.
    Dropped,
    /// It ends within the answer, whose length was told.
    Cut,
    /// The answer ends too soon, and nobody says so.
    Truncated,
    Status(u16, &'static str),
    Slow(Duration),
    /// The last entry is not there.
    Missing,
    /// Every entry stands one place too far to the front.
    Shifted,
    /// Two entries have changed places.
    Swapped,
    /// The values of another prompt, under this one's ids.
    Stale,
    /// The answer to another prompt as a whole.
    Another,
    /// Logits in the place of log-probabilities.
    Raw,
    /// The values of a flatter model.
    Flatter,
    /// The prompt loses its first tokens.
    Cuts,
    /// The list of the most probable tokens is shorter by this many.
    Fewer(usize),
    /// An answer comes without its token ids.
    NoIds,
    /// .. with one id less than it counts.
    Uncounted,
    /// .. is given up by the server.
    Aborted,
    /// .. ends after one token, for its length.
    Short,
    /// .. ends with a token that ends none here.
    EndsElsewhere,
    /// .. ends with a stop string that is none by the tokens' bytes, if there are stop strings.
    FalseStop,
    /// .. has another token than the most probable one.
    Altered,
}

/// A request for log-probabilities, or for an answer.
pub(crate) struct Ask {
    /// Counted from 0, over all of them.
    pub number: usize,
    /// Whether this prompt has come before.
    pub repeated: bool,
    /// Whether an answer is requested.
    pub writes: bool,
    /// Whether this is the text by which a client checks that the model is still the same.
    pub fixed: bool,
}

pub(crate) struct Manners {
    pub api: &'static str,
    pub owner: &'static str,
    pub max_model_len: usize,
    pub key: Option<&'static str>,
    /// Where the model comes from, after so many requests.
    pub root: Box<dyn Fn(usize) -> &'static str + Send + Sync>,
    /// What the tokens' texts are made of: `0` is right.
    pub texts_off_by: u32,
    pub fault: Box<dyn Fn(&Ask) -> Fault + Send + Sync>,
}

impl Manners {
    pub(crate) fn of(api: &'static str) -> Manners {
        Manners {
            api,
            owner: api,
            max_model_len: 4096,
            key: None,
            root: Box::new(|_| "org/tiny"),
            texts_off_by: 0,
            fault: Box::new(|_| Fault::Nothing),
        }
    }

    pub(crate) fn with(api: &'static str, fault: impl Fn(&Ask) -> Fault + Send + Sync + 'static) -> Manners {
        Manners { fault: Box::new(fault), ..Manners::of(api) }
    }

    /// Answers wait from the request of this number on, which may be changed: there is time to kill a client however busy the machine is. Whether the
    /// model is the same still is told at once.
    pub(crate) fn waiting(api: &'static str, from: usize) -> (Manners, Arc<AtomicUsize>) {
        let waits_from = Arc::new(AtomicUsize::new(from));
        let limit = waits_from.clone();
        let waiting = move |ask: &Ask| {
            while ask.number >= limit.load(Ordering::SeqCst) && (ask.writes || !ask.fixed) {
                std::thread::sleep(Duration::from_millis(5));
            }
            Fault::Nothing
        };
        (Manners::with(api, waiting), waits_from)
    }
}

pub(crate) struct Server {
    pub url: String,
    state: Arc<State>,
}

/// A token, its ln p and rank, and all ids by falling ln p.
pub(crate) type Told = (u32, f32, usize, Vec<(u32, f32)>);

struct State {
    model: Model,
    manners: Manners,
    /// The prompts that were asked for, in order.
    asked: Mutex<Vec<Vec<u32>>>,
    seen: Mutex<HashSet<Vec<u32>>>,
    killed: AtomicBool,
}

impl Server {
    pub(crate) fn start(model: &Path, manners: Manners) -> Server {
        let reference = Reference::local(model).unwrap();
        let model = Model::load(&reference, LoadOptions::default(), 4096).unwrap();
        let state =
            Arc::new(State { model, manners, asked: Mutex::default(), seen: Mutex::default(), killed: AtomicBool::new(false) });
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let own = Arc::clone(&state);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                if own.killed.load(Ordering::SeqCst) {
                    return;
                }
                let state = Arc::clone(&own);
                // The client may hang up at any moment.
                std::thread::spawn(move || stream.and_then(|stream| state.serve(stream)));
            }
        });
        Server { url, state }
    }

    /// No more connections, and none of the requests under way gets an answer.
    pub(crate) fn kill(&self) {
        self.state.killed.store(true, Ordering::SeqCst);
        // It waits for one more.
        drop(TcpStream::connect(self.url.trim_start_matches("http://")));
    }

    /// What it says of each token of a prompt but the first.
    pub(crate) fn told(&self, ids: &[u32]) -> Vec<Told> {
        self.state.entries(ids, Fault::Nothing)
    }

    pub(crate) fn asked(&self) -> Vec<Vec<u32>> {
        self.state.asked.lock().unwrap().clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.kill();
    }
}

impl State {
    fn serve(&self, stream: TcpStream) -> std::io::Result<()> {
        stream.set_nodelay(true)?;
        let mut reader = BufReader::new(stream.try_clone()?);
        let mut stream = stream;
        loop {
            let (mut line, mut length, mut key) = (String::new(), 0, None);
            if reader.read_line(&mut line)? == 0 {
                return Ok(());
            }
            loop {
                let mut header = String::new();
                reader.read_line(&mut header)?;
                let Some((name, value)) = header.trim_end().split_once(": ") else { break };
                match name.to_ascii_lowercase().as_str() {
                    "content-length" => length = value.parse().unwrap(),
                    "authorization" => key = value.strip_prefix("Bearer ").map(str::to_owned),
                    _ => {}
                }
            }
            let mut body = vec![0; length];
            reader.read_exact(&mut body)?;
            if self.killed.load(Ordering::SeqCst) {
                return Ok(());
            }
            let path = line.split(' ').nth(1).unwrap_or_default().to_owned();
            if self.manners.key.is_some_and(|wanted| key.as_deref() != Some(wanted)) {
                write(&mut stream, 401, &json!({"error": "Unauthorized"}).to_string(), None)?;
                continue;
            }
            let is_sglang = self.manners.api == "sglang";
            match path.as_str() {
                "/v1/models" => {
                    let Manners { owner, max_model_len, root, .. } = &self.manners;
                    let root = root(self.asked.lock().unwrap().len());
                    let served = json!({"id": "tiny", "owned_by": owner, "root": root, "max_model_len": max_model_len});
                    write(&mut stream, 200, &json!({"data": [served]}).to_string(), None)?;
                }
                "/version" if !is_sglang => write(&mut stream, 200, r#"{"version": "0.32.0"}"#, None)?,
                "/v1/completions" if !is_sglang => {
                    if !self.answer(&mut stream, &body)? {
                        return Ok(());
                    }
                }
                "/generate" if is_sglang => {
                    if !self.answer(&mut stream, &body)? {
                        return Ok(());
                    }
                }
                _ => write(&mut stream, 404, r#"{"detail": "Not Found"}"#, None)?,
            }
        }
    }

    /// False where the connection ends with it.
    fn answer(&self, stream: &mut TcpStream, body: &[u8]) -> std::io::Result<bool> {
        let body: Value = serde_json::from_slice(body).unwrap();
        let is_sglang = self.manners.api == "sglang";
        let ids = if is_sglang { &body["input_ids"] } else { &body["prompt"] };
        let ids: Vec<u32> = ids.as_array().unwrap().iter().map(|id| id.as_u64().unwrap() as u32).collect();
        let number = {
            let mut asked = self.asked.lock().unwrap();
            asked.push(ids.clone());
            asked.len() - 1
        };
        let repeated = !self.seen.lock().unwrap().insert(ids.clone());
        let writes = body.get(if is_sglang { "return_logprob" } else { "prompt_logprobs" }).is_none();
        let text: String = ids.iter().map(|&id| self.text(id)).collect();
        let fixed = text.contains("The quick brown fox jumps over the lazy dog.");
        let fault = (self.manners.fault)(&Ask { number, repeated, writes, fixed });
        if let Some(id) = ids.iter().find(|&&id| id as usize >= self.model.config.vocab_size) {
            let message = format!("Token id {id} is out of vocabulary");
            write(stream, 400, &json!({"error": {"message": message, "code": 400}}).to_string(), None)?;
            return Ok(true);
        }
        match fault {
            Fault::Dropped => return Ok(false),
            Fault::Status(status, body) => {
                write(stream, status, body, None)?;
                return Ok(true);
            }
            Fault::Slow(time) => std::thread::sleep(time),
            _ => {}
        }
        let reply = match (writes, is_sglang) {
            (true, _) => self.written(&body, &ids, fault),
            (false, true) => self.sglang(&body, &ids, fault),
            (false, false) => self.vllm(&body, &ids, fault),
        };
        let reply = reply.to_string();
        if self.killed.load(Ordering::SeqCst) {
            return Ok(false);
        }
        match fault {
            Fault::Truncated => write(stream, 200, &reply[..reply.len() / 2], None)?,
            Fault::Cut => {
                write(stream, 200, &reply, Some(reply.len() / 2))?;
                return Ok(false);
            }
            _ => write(stream, 200, &reply, None)?,
        }
        Ok(true)
    }

    /// For each token but the first.
    fn entries(&self, ids: &[u32], fault: Fault) -> Vec<Told> {
        let other: Vec<u32> = ids.iter().map(|id| (id + 1) % 256).collect();
        let read = if fault == Fault::Stale { &other } else { ids };
        let segments = Arc::from([Segment { tokens: 0..read.len(), context: Vec::new() }]);
        let rows: Vec<u32> = (0..read.len() as u32).collect();
        let logits = self.model.logits(&Batch { ids: read.to_vec(), segments }, &rows).unwrap().to_vec2::<f32>().unwrap();
        let of_row = |(row, id): (&Vec<f32>, &u32)| {
            let flat: Vec<f32> = row.iter().map(|logit| logit * 0.3).collect();
            let row = if fault == Fault::Flatter { &flat } else { row };
            let largest = row.iter().copied().fold(f32::NEG_INFINITY, f32::max);
            let sum: f64 = row.iter().map(|logit| f64::from(logit - largest).exp()).sum();
            let value = |logit: f32| match fault {
                Fault::Raw => logit + 20.0,
                _ => (f64::from(logit - largest) - sum.ln()) as f32,
            };
            let mut all: Vec<(u32, f32)> = (0..).zip(row).map(|(id, logit)| (id, value(*logit))).collect();
            all.sort_by(|a, b| b.1.total_cmp(&a.1));
            let own = value(row[*id as usize]);
            let rank = all.iter().filter(|(_, logprob)| *logprob >= own).count();
            (*id, own, rank, all)
        };
        logits.iter().zip(&ids[1..]).map(of_row).collect()
    }

    /// An answer as either of them gives it.
    fn written(&self, body: &Value, ids: &[u32], fault: Fault) -> Value {
        let is_sglang = self.manners.api == "sglang";
        let asked = if is_sglang { &body["sampling_params"] } else { body };
        let number = |key: &str| asked[key].as_f64().unwrap();
        // What a server would take for granted is said.
        assert_eq!(["presence_penalty", "frequency_penalty"].map(number), [0.0, 0.0]);
        let most = number(if is_sglang { "max_new_tokens" } else { "max_tokens" }) as usize;
        let seed = asked[if is_sglang { "sampling_seed" } else { "seed" }].as_u64();
        assert_eq!(seed.is_some(), number("temperature") > 0.0);
        let sampling = Sampling {
            temperature: number("temperature"),
            top_k: Some(number("top_k")).filter(|k| *k > 0.0).map(|k| k as usize),
            top_p: Some(number("top_p")).filter(|p| *p < 1.0),
            min_p: Some(number("min_p")).filter(|p| *p > 0.0),
            repetition_penalty: Some(number("repetition_penalty")).filter(|penalty| *penalty != 1.0),
        };
        let list = |key: &str| asked[key].as_array().unwrap().clone();
        let way = Way {
            sampling,
            ends: list("stop_token_ids").iter().map(|id| id.as_u64().unwrap() as u32).collect(),
            stops: list("stop").iter().map(|text| text.as_str().unwrap().to_owned()).collect(),
            at_once: 1,
        };
        let request = Request { prompt: ids.to_vec(), max_new_tokens: most, seed: seed.unwrap_or_default() };
        let mut written = None;
        let mut finished = |_, answer| {
            written = Some(answer);
            Ok(())
        };
        generate(&self.model, &[request], &way, &mut finished, &mut |_| {}).unwrap();
        let answer = written.unwrap();
        let (mut answered, mut ended) = (answer.ids.clone(), answer.ended);
        let mut matched = match ended {
            Ended::EndToken => json!(answered.last()),
            Ended::Stop => json!(way.stops[0]),
            Ended::Length => Value::Null,
        };
        match fault {
            Fault::Short => (answered, ended) = (vec![1], Ended::Length),
            Fault::EndsElsewhere => (answered, ended, matched) = (vec![1], Ended::EndToken, json!(1)),
            Fault::FalseStop if !way.stops.is_empty() => {
                (answered, ended, matched) = (vec![1], Ended::Stop, json!(way.stops[0]));
            }
            Fault::Altered => answered[0] = (answered[0] + 1) % 256,
            _ => {}
        }
        let n = answered.len();
        if fault == Fault::Uncounted {
            answered.pop();
        }
        let mut reason = if ended == Ended::Length { "length" } else { "stop" };
        if fault == Fault::Aborted {
            reason = "abort";
        }
        let n_read = ids.len() - if fault == Fault::Cuts { 2 } else { 0 };
        let given = if fault == Fault::NoIds { Value::Null } else { json!(answered) };
        match is_sglang {
            true => json!({
                "text": "",
                "output_ids": given,
                "meta_info": {
                    "finish_reason": {"type": reason, "matched": matched},
                    "prompt_tokens": n_read,
                    "completion_tokens": n,
                },
            }),
            false => json!({
                "choices": [{"index": 0, "text": "", "token_ids": given, "finish_reason": reason, "stop_reason": matched}],
                "usage": {"prompt_tokens": n_read, "completion_tokens": n},
            }),
        }
    }

    fn text(&self, id: u32) -> String {
        let tokenizer = &self.model.tokenizer;
        String::from_utf8_lossy(tokenizer.bytes(id + self.manners.texts_off_by)).into_owned()
    }

    fn vllm(&self, body: &Value, ids: &[u32], fault: Fault) -> Value {
        let k = body["prompt_logprobs"].as_u64().unwrap() as usize;
        let ids = match fault {
            Fault::Cuts => &ids[2..],
            _ => ids,
        };
        let another: Vec<u32> = ids.iter().rev().copied().collect();
        let ids = if fault == Fault::Another { &another } else { ids };
        let told = |logprob: f32, rank: usize, id: u32| json!({"logprob": logprob, "rank": rank, "decoded_token": self.text(id)});
        let entry = |(id, own, rank, all): &Told| {
            let mut entry = Map::new();
            entry.insert(id.to_string(), told(*own, *rank, *id));
            let left_out = if let Fault::Fewer(n) = fault { n } else { 0 };
            for (rank, (other, logprob)) in (1..).zip(all.iter().take(k - left_out)) {
                entry.entry(other.to_string()).or_insert_with(|| told(*logprob, rank, *other));
            }
            Value::Object(entry)
        };
        let mut entries: Vec<Value> = self.entries(ids, fault).iter().map(entry).collect();
        let n = entries.len();
        match fault {
            Fault::Missing => drop(entries.pop()),
            Fault::Swapped if n > 2 => entries.swap(0, n - 1),
            _ => {}
        }
        if fault != Fault::Shifted {
            entries.insert(0, Value::Null);
        }
        json!({
            "id": "cmpl-1",
            "model": "tiny",
            "choices": [{"index": 0, "text": " x", "prompt_logprobs": entries, "token_ids": [1]}],
            "usage": {"prompt_tokens": ids.len(), "total_tokens": ids.len() + 1},
        })
    }

    fn sglang(&self, body: &Value, ids: &[u32], fault: Fault) -> Value {
        let number = |key: &str| body[key].as_u64().unwrap() as usize;
        let (k, start) = (number("top_logprobs_num"), number("logprob_start_len"));
        let (mut targets, mut tops) = (vec![json!([null, ids[start], null])], vec![Value::Null]);
        for (id, own, _, all) in &self.entries(ids, fault)[start..] {
            targets.push(json!([own, id, null]));
            tops.push(all.iter().take(k).map(|(id, logprob)| json!([logprob, id, null])).collect());
        }
        let n = targets.len();
        match fault {
            Fault::Missing => {
                targets.pop();
                tops.pop();
            }
            Fault::Shifted => {
                targets.remove(0);
                tops.remove(0);
            }
            Fault::Swapped => {
                targets.swap(1, n - 1);
                tops.swap(1, n - 1);
            }
            _ => {}
        }
        json!({
            "text": " x",
            "output_ids": [1],
            "meta_info": {
                "id": "1",
                "finish_reason": {"type": "length", "length": 1},
                "prompt_tokens": ids.len() - if fault == Fault::Cuts { 2 } else { 0 },
                "input_token_logprobs": targets,
                "input_top_logprobs": tops,
                "completion_tokens": 1,
            },
        })
    }
}

/// An answer, or the beginning of one that was promised whole.
fn write(stream: &mut TcpStream, status: u16, body: &str, cut: Option<usize>) -> std::io::Result<()> {
    let after = if status == 429 { "Retry-After: 0\r\n" } else { "" };
    let head = format!("HTTP/1.1 {status} X\r\nContent-Type: application/json\r\n{after}Content-Length: {}\r\n\r\n", body.len());
    stream.write_all(head.as_bytes())?;
    stream.write_all(&body.as_bytes()[..cut.unwrap_or(body.len())])?;
    stream.flush()
}
