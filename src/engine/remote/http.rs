//! Requests to one server: sends JSON, receives a stream; interprets the status, and decides whether to retry.

use std::io::{Cursor, Read};
use std::sync::mpsc::{Receiver, RecvTimeoutError, sync_channel};
use std::time::Duration;

use serde_json::Value;
use ureq::http::Response;
use ureq::{Agent, Body};

use crate::error::{Error, Result};
use crate::fetch::client::{agent_config, proxy_of};

/// The environment variable with the servers' key, if they need one.
pub(crate) const KEY_VARIABLE: &str = "DIAGNOSE_SERVER_KEY";

/// The timeouts of a server.
#[derive(Clone, Copy)]
struct Waits {
    /// The time until an answer begins, and the same again until it ends. A server with a long queue answers late.
    answer: Duration,
    /// The longest pause within an answer once its first byte has arrived. Servers send an answer after they have computed all of it.
    stall: Duration,
    /// The longest time in which the server may read none of what is sent.
    sending: Duration,
}

const WAITS: Waits =
    Waits { answer: Duration::from_secs(900), stall: Duration::from_secs(60), sending: Duration::from_secs(120) };
/// The advice if a server's model returns NaN.
pub(super) const DAMAGED: &str = "Its weights are damaged, or overflow in its precision: try --dtype float32 or bfloat16 there.";
/// The limit on the size of an error message, and of a reply that is not an answer to a prompt.
const MESSAGE_BYTES: u64 = 1 << 20;
/// The number of connections to keep open.
pub(super) const CONNECTIONS: usize = 64;

/// A failed request.
#[derive(Debug)]
pub(crate) enum Trouble {
    /// Worth a retry, after the given time if the server states one.
    Passing(Box<Error>, Option<Duration>),
    /// A retry would fail in the same way.
    Lasting(Box<Error>),
}

impl Trouble {
    pub(crate) fn passing(error: Error) -> Trouble {
        Trouble::Passing(Box::new(error), None)
    }

    pub(crate) fn lasting(error: Error) -> Trouble {
        Trouble::Lasting(Box::new(error))
    }

    pub(crate) fn into_error(self) -> Error {
        match self {
            Trouble::Passing(error, _) | Trouble::Lasting(error) => *error,
        }
    }
}

/// A connection to the server at an address.
pub(crate) struct Http {
    agent: Agent,
    /// Without a trailing slash.
    pub url: String,
    key: Option<String>,
    waits: Waits,
}

impl Http {
    /// Connects to `url` as written by the user: with or without the `/v1` of OpenAI's protocol.
    pub(crate) fn new(url: &str) -> Result<Http> {
        Http::with_waits(url, WAITS)
    }

    fn with_waits(url: &str, waits: Waits) -> Result<Http> {
        let expected = "Give an address such as http://localhost:8000.";
        let trimmed = url.trim_end_matches('/');
        let trimmed = trimmed.strip_suffix("/v1").unwrap_or(trimmed).trim_end_matches('/');
        let host = trimmed.strip_prefix("http://").or_else(|| trimmed.strip_prefix("https://"));
        // An address that may contain a password or a key is not shown, in any spelling.
        let secret = [('@', "has a name or a password before an `@`"), ('?', "has a `?`, which may introduce a key")];
        if let Some((_, what)) = secret.iter().find(|(sign, _)| url.contains(*sign)) {
            return Err(Error::usage(format!("the address of a server {what}"))
                .cure(format!("Remove it, and put the server's key into the environment variable {KEY_VARIABLE}.")));
        }
        match host {
            Some(host) if !host.is_empty() && !host.contains('#') => {}
            _ => return Err(Error::usage(format!("`{url}` is not the address of a server")).cure(expected)),
        }
        let key = std::env::var(KEY_VARIABLE).ok().map(|key| key.trim().to_owned()).filter(|key| !key.is_empty());
        if key.as_ref().is_some_and(|key| !key.bytes().all(|byte| byte.is_ascii_graphic())) {
            return Err(Error::new(format!("{KEY_VARIABLE} has characters that are not allowed in a key")).cure("Set it anew."));
        }
        // Redirects are not followed, so that the key is not sent elsewhere.
        let config = agent_config(trimmed)?
            .timeout_recv_response(Some(waits.answer))
            .timeout_recv_body(Some(waits.answer))
            .timeout_per_write(Some(waits.sending))
            .max_idle_connections(CONNECTIONS)
            .max_idle_connections_per_host(CONNECTIONS)
            .build();
        Ok(Http { agent: config.into(), url: trimmed.to_owned(), key, waits })
    }

    pub(super) fn key(&self) -> Option<&str> {
        self.key.as_deref()
    }

    fn at(&self, error: Error) -> Error {
        error.at(&self.url)
    }

    /// The JSON result of a GET; `None` if the path does not exist.
    pub(crate) fn get(&self, path: &str) -> Result<Option<Value>, Trouble> {
        let mut request = self.agent.get(format!("{}{path}", self.url));
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.call().map_err(|cause| self.unreachable(cause))?;
        match response.status().as_u16() {
            200 => {
                let text = message(self.body(response, Duration::ZERO));
                Ok(serde_json::from_str(&text).ok())
            }
            404 | 405 => Ok(None),
            _ => Err(self.refusal(response)),
        }
    }

    /// POSTs JSON and returns the body of the answer if the status is successful.
    pub(crate) fn post(&self, path: &str, body: &Value) -> Result<impl Read + use<>, Trouble> {
        self.post_waiting(path, body, Duration::ZERO)
    }

    /// Like [`Http::post`], for an answer that may take `more` time than usual.
    pub(crate) fn post_waiting(&self, path: &str, body: &Value, more: Duration) -> Result<impl Read + use<>, Trouble> {
        let mut request = self.agent.post(format!("{}{path}", self.url)).header("content-type", "application/json");
        let answer = Some(self.waits.answer + more);
        request = request.config().timeout_recv_response(answer).timeout_recv_body(answer).build();
        if let Some(key) = &self.key {
            request = request.header("authorization", format!("Bearer {key}"));
        }
        let response = request.send(body.to_string()).map_err(|cause| self.unreachable(cause))?;
        match response.status().as_u16() {
            200 => Ok(self.body(response, more)),
            _ => Err(self.refusal(response)),
        }
    }

    /// The bytes of an answer that may take `more` time than usual.
    fn body(&self, response: Response<Body>, more: Duration) -> Arriving {
        Arriving::new(response.into_body().into_reader(), self.waits.answer + more, self.waits.stall)
    }

    fn unreachable(&self, cause: ureq::Error) -> Trouble {
        let through =
            proxy_of(&self.url).map(|proxy| format!(" (through the proxy {}, which the environment sets)", proxy.host()));
        let what = format!("the server cannot be reached, or has dropped the connection{}", through.unwrap_or_default());
        Trouble::passing(self.at(Error::new(what).caused_by(cause)))
    }

    /// Converts an unsuccessful status to an error.
    fn refusal(&self, response: Response<Body>) -> Trouble {
        let status = response.status();
        let after = response.headers().get("retry-after").and_then(|value| value.to_str().ok()?.trim().parse().ok());
        let said = said(&message(self.body(response, Duration::ZERO)), self.key.as_deref());
        let error = |what: String| self.at(Error::new(what));
        match status.as_u16() {
            401 | 403 => {
                let key = match self.key {
                    Some(_) => format!("Check the key in {KEY_VARIABLE}."),
                    None => format!("Put its key into the environment variable {KEY_VARIABLE}."),
                };
                Trouble::lasting(error(format!("the server requires a key, or a different one ({status})")).cure(key))
            }
            408 | 429 => Trouble::Passing(
                Box::new(error(format!("the server is overloaded ({status}): {said}"))),
                after.map(|seconds: u64| Duration::from_secs(seconds.min(300))),
            ),
            500..=599 => Trouble::passing(error(format!("the server failed ({status}): {said}"))),
            // Python's json module refuses to write NaN.
            400 if said.contains("not JSON compliant") => Trouble::lasting(
                error("the server's model produces log-probabilities that are not numbers, which it can only report as a bad request (400)".to_owned())
                    .cure(DAMAGED),
            ),
            400 if said.contains("max_tokens must be at least 1") || said.contains("maximum context length") => {
                Trouble::lasting(error(format!("the prompt is longer than the server accepts ({status}): {said}")).cure(
                    "It accepts one token less than its --max-model-len, since it must generate one: use a smaller --max-len here, or a larger limit there.",
                ))
            }
            400 if said.contains("out of vocabulary") => Trouble::lasting(
                error(format!("the server's model has fewer tokens than the tokenizer: {said}"))
                    .cure("Pass the folder of exactly the served model with --model."),
            ),
            400 if said.contains("prompt logprobs") || said.contains("logprobs of") => Trouble::lasting(
                error(format!("the server returns fewer log-probabilities than requested: {said}"))
                    .cure("Start it with a larger --max-logprobs, or use a smaller --top-logprobs."),
            ),
            300..=399 => Trouble::lasting(error(format!("the server redirects to another address ({status}), to which the key must not be sent"))),
            _ => Trouble::lasting(error(format!("the server rejected the request ({status}): {said}"))),
        }
    }
}

/// The beginning of a body, as text.
fn message(body: impl Read) -> String {
    let mut bytes = Vec::new();
    // Uses what has arrived, even after an error.
    let _ = body.take(MESSAGE_BYTES).read_to_end(&mut bytes);
    String::from_utf8_lossy(&bytes).into_owned()
}

/// A stream of bytes that a separate thread fetches, so that the reader can detect a stall: the HTTP library has a single timeout for an answer
/// that is still being computed and for pauses between its parts. If the server stalls, that thread ends with the timeout of the whole answer.
struct Arriving {
    chunks: Receiver<std::io::Result<Vec<u8>>>,
    chunk: Cursor<Vec<u8>>,
    /// The timeout of the next byte: longer for the first one than for the others.
    wait: Duration,
    stall: Duration,
    ended: bool,
}

impl Arriving {
    fn new(mut body: impl Read + Send + 'static, first: Duration, stall: Duration) -> Arriving {
        const CHUNK_BYTES: usize = 1 << 16;
        // One chunk waits while the next is fetched, which limits the memory.
        let (to_us, chunks) = sync_channel(1);
        std::thread::spawn(move || {
            loop {
                let mut chunk = vec![0; CHUNK_BYTES];
                let read = body.read(&mut chunk).map(|n| {
                    chunk.truncate(n);
                    chunk
                });
                let ends = read.as_ref().map_or(true, Vec::is_empty);
                if to_us.send(read).is_err() || ends {
                    return;
                }
            }
        });
        Arriving { chunks, chunk: Cursor::default(), wait: first, stall, ended: false }
    }

    fn next_chunk(&mut self) -> std::io::Result<Vec<u8>> {
        match self.chunks.recv_timeout(self.wait) {
            Ok(read) => read,
            Err(RecvTimeoutError::Timeout) => {
                let seconds = self.wait.as_secs_f64();
                let why = format!("the server kept the connection open but sent nothing for {seconds} s");
                Err(std::io::Error::new(std::io::ErrorKind::TimedOut, why))
            }
            Err(RecvTimeoutError::Disconnected) => Err(std::io::Error::other("the thread that reads the answer has ended")),
        }
    }
}

impl Read for Arriving {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        loop {
            let n = self.chunk.read(buffer)?;
            if n > 0 || self.ended || buffer.is_empty() {
                return Ok(n);
            }
            let chunk = self.next_chunk()?;
            (self.ended, self.wait) = (chunk.is_empty(), self.stall);
            self.chunk = Cursor::new(chunk);
        }
    }
}

/// The message of an error body, in one line: `{"error": {"message": ..}}`, `{"error": ".."}`, `{"detail": ".."}`, or the body itself. Removes
/// the key, because some servers repeat a wrong one.
pub(super) fn said(body: &str, key: Option<&str>) -> String {
    let json: Value = serde_json::from_str(body).unwrap_or_default();
    let said = [&json["error"]["message"], &json["error"], &json["detail"], &json["message"]];
    let said = said.into_iter().find_map(Value::as_str).unwrap_or(body);
    let mut line = said.split_whitespace().collect::<Vec<_>>().join(" ");
    if let Some(key) = key {
        line = line.replace(key, "(the key)");
    }
    match line.char_indices().nth(300) {
        Some((end, _)) => format!("{}..", &line[..end]),
        None => line,
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;
    use std::net::{TcpListener, TcpStream};
    use std::time::Instant;

    use serde_json::json;

    use super::*;

    /// The address of a server that runs `serve` for its only connection.
    fn server(serve: impl FnOnce(TcpStream) + Send + 'static) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        std::thread::spawn(move || serve(listener.accept().unwrap().0));
        url
    }

    #[test]
    fn neither_what_is_sent_nor_what_comes_is_waited_for_for_ever() {
        let waits =
            Waits { answer: Duration::from_secs(2), stall: Duration::from_millis(200), sending: Duration::from_millis(100) };
        let ask = |url: String, body: &Value| {
            let mut text = String::new();
            let reply = Http::with_waits(&url, waits).unwrap().post("/", body)?;
            let read = std::io::BufReader::new(reply).read_to_string(&mut text);
            read.map_err(|cause| Trouble::passing(Error::new("the reply was interrupted").caused_by(cause)))?;
            Ok(text)
        };
        let rest = Duration::from_secs(20);
        let head = "HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\n";
        let fails = |url: String, body: &Value| match ask(url, body) {
            Err(Trouble::Passing(error, _)) => error.to_string(),
            other => panic!("{other:?}"),
        };
        // A server that reads only what fits into the buffers; one that never answers; one that sends half of its answer.
        let long = json!({ "prompt": "x".repeat(64 << 20) });
        assert!(fails(server(move |_stream| std::thread::sleep(rest)), &long).contains("cannot be reached"));
        assert!(fails(server(move |_stream| std::thread::sleep(rest)), &json!({})).contains("cannot be reached"));
        let half = server(move |mut stream| {
            write!(stream, "{head}x").unwrap();
            std::thread::sleep(rest);
        });
        let began = Instant::now();
        let error = fails(half, &json!({}));
        assert!(error.contains("was interrupted") && error.contains("sent nothing for 0.2 s"), "{error}");
        assert!(began.elapsed() < waits.answer, "it is not waited for the whole time that an answer may take");
        // The same for an error's body: its status suffices.
        let refusal = server(move |mut stream| {
            write!(stream, "HTTP/1.1 500 X\r\nContent-Length: 9\r\n\r\noops").unwrap();
            std::thread::sleep(rest);
        });
        assert!(fails(refusal, &json!({})).contains("the server failed (500 Internal Server Error): oops"));
        assert!(began.elapsed() < waits.answer);
        // Slow is not stalled: pauses longer than the sending timeout before and after the header, and a short one within the body.
        for pauses in [[300, 0, 0], [0, 300, 0], [300, 300, 0], [0, 0, 100]] {
            let late = server(move |mut stream| {
                for (pause, part) in pauses.into_iter().zip([head, "o", "k"]) {
                    std::thread::sleep(Duration::from_millis(pause));
                    stream.write_all(part.as_bytes()).unwrap();
                }
                std::thread::sleep(rest);
            });
            assert_eq!(ask(late, &json!({})).unwrap(), "ok", "{pauses:?}");
        }
    }

    #[test]
    fn what_may_hold_a_secret_is_not_shown() {
        for url in [
            "http://me:secret@host:8000",
            "HTTP://me:secret@host:8000",
            "me:secret@host",
            "http://host/v1?api_key=secret",
            "host:8000/?api_key=secret",
        ] {
            let error = Http::new(url).err().unwrap().to_string();
            assert!(error.contains(KEY_VARIABLE) && !error.contains("secret"), "{error}");
        }
        assert!(Http::new("host:8000").err().unwrap().to_string().contains("`host:8000` is not the address"));
        assert_eq!(Http::new("http://host:8000/v1/").unwrap().url, "http://host:8000");
    }

    #[test]
    fn what_a_server_says_is_a_line_without_the_key() {
        let body = r#"{"error": {"message": "Incorrect API key\n provided: sk-12345."}}"#;
        assert_eq!(said(body, Some("sk-12345")), "Incorrect API key provided: (the key).");
        assert_eq!(said("<b>no</b>", None), "<b>no</b>");
        // If the line is cut within the key, no part of the key remains.
        let long = format!("{}sk-12345", "x".repeat(296));
        assert!(!said(&long, Some("sk-12345")).contains("sk-"));
    }
}
