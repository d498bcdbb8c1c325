//! A client for the hub's protocol, modelled on huggingface_hub's `file_download.py` and `utils/_http.py`.
//!
//! `GET /api/models/ID/revision/REVISION` returns the commit and the names of the files. `HEAD /ID/resolve/COMMIT/FILE` returns
//! the size and the ETag of a file: the SHA-256 of a large file (`X-Linked-ETag`), git's blob hash of a small one. `GET` of the
//! same address redirects to another host for a large file. Either hash is verified before a file gets its final name.
//!
//! The token is sent only to the hub's own origin, never with a redirect to another one, and appears in no message.

use std::fs::OpenOptions;
use std::io::{Read, Write};
use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use sha1::Sha1;
use sha2::{Digest, Sha256};
use ureq::config::ConfigBuilder;
use ureq::http::{Response, Uri};
use ureq::tls::{PemItem, RootCerts, TlsConfig, parse_pem};
use ureq::typestate::AgentScope;
use ureq::{Agent, Body, Proxy};

use super::cache::{self, is_commit};
use super::hub_id::{HubId, Shelf, is_relative};
use crate::error::{Context, Error, Result};
use crate::files::file_digest;
use crate::json;

/// A connection to one repository.
pub(crate) struct Client {
    agent: Agent,
    /// Scheme and host, without a trailing slash.
    endpoint: String,
    token: Option<String>,
    id: HubId,
}

/// A repository at one commit.
pub(crate) struct Listing {
    /// The SHA-1 of the commit, in hexadecimal.
    pub commit: String,
    /// The paths of all files in the repository.
    pub files: Vec<String>,
}

/// The expected size and hash of a file on the hub.
pub(crate) struct Remote {
    url: String,
    /// SHA-256 of a large file, git's blob hash of a small one.
    pub etag: String,
    /// Size in bytes, if the hub provides it.
    pub size: Option<u64>,
}

/// The result of one transfer.
enum Transfer {
    Whole,
    /// Interrupted; worth another try.
    Broken(Error),
}

/// Gives up a transfer after so many consecutive tries without a new byte.
const TRIES: u32 = 4;
const PAUSE: Duration = Duration::from_millis(500);
const REDIRECTS: usize = 8;
const WAIT_TO_CONNECT: Duration = Duration::from_secs(10);
const WAIT_FOR_BYTES: Duration = Duration::from_secs(60);
/// The limit for a listing, which usually holds a few hundred names.
const LISTING_BYTES: u64 = 64 << 20;

/// Is HF_HUB_OFFLINE, or Transformers' older name for it, set?
pub(crate) fn offline() -> bool {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.is_empty());
    let value = set("HF_HUB_OFFLINE").or_else(|| set("TRANSFORMERS_OFFLINE")).unwrap_or_default();
    ["1", "ON", "YES", "TRUE"].contains(&value.to_ascii_uppercase().as_str())
}

impl Client {
    /// Creates a client from HF_ENDPOINT, the token and SSL_CERT_FILE; ureq reads the proxy variables.
    pub(crate) fn from_env(id: &HubId) -> Result<Client> {
        let endpoint = std::env::var("HF_ENDPOINT").ok().filter(|value| !value.is_empty());
        let endpoint = endpoint.unwrap_or_else(|| "https://huggingface.co".to_owned()).trim_end_matches('/').to_owned();
        if origin(&endpoint).is_none() {
            return Err(Error::new(format!("HF_ENDPOINT is `{endpoint}`; expected an address such as https://huggingface.co")));
        }
        let config =
            agent_config(&endpoint)?.timeout_recv_response(Some(WAIT_FOR_BYTES)).timeout_per_read(Some(WAIT_FOR_BYTES)).build();
        Ok(Client { agent: config.into(), endpoint, token: token()?, id: id.clone() })
    }

    pub(crate) fn repo(&self) -> &str {
        &self.id.repo
    }

    /// Requests the current commit of the revision, and its files.
    pub(crate) fn listing(&self) -> Result<Listing> {
        let HubId { repo, revision, .. } = &self.id;
        let shelf = match self.id.shelf {
            Shelf::Models => "models",
            Shelf::DataSets => "datasets",
        };
        let url = format!("{}/api/{shelf}/{repo}/revision/{}", self.endpoint, percent_encoded(revision, ""));
        let mut response = self.request(false, &url, None)?;
        if !response.status().is_success() {
            return Err(self.refusal(&response, None));
        }
        let mut text = String::new();
        response.body_mut().as_reader().take(LISTING_BYTES).read_to_string(&mut text).map_err(|cause| self.unreachable(cause))?;
        let odd = || Error::new(format!("{url} did not reply like the hub")).cure("Check HF_ENDPOINT and the proxy variables.");
        let json: Value = json::from_str(&text).map_err(|cause| odd().caused_by(cause))?;
        let commit = json.get("sha").and_then(Value::as_str).filter(|sha| is_commit(sha)).ok_or_else(odd)?;
        let siblings = json.get("siblings").and_then(Value::as_array).ok_or_else(odd)?;
        let files = siblings.iter().filter_map(|sibling| sibling.get("rfilename").and_then(Value::as_str));
        let files = files.filter(|name| is_relative(name)).map(str::to_owned).collect();
        Ok(Listing { commit: commit.to_owned(), files })
    }

    /// Requests the size and the hash of `file`.
    pub(crate) fn remote(&self, commit: &str, file: &str) -> Result<Remote> {
        let shelf = match self.id.shelf {
            Shelf::Models => "",
            Shelf::DataSets => "datasets/",
        };
        let url = format!("{}/{shelf}{}/resolve/{commit}/{}", self.endpoint, self.id.repo, percent_encoded(file, "/"));
        let response = self.request(true, &url, None)?;
        let status = response.status();
        if !status.is_success() && !status.is_redirection() {
            return Err(self.refusal(&response, Some(file)));
        }
        let own_length = if status.is_redirection() { None } else { header(&response, "content-length") };
        let size = header(&response, "x-linked-size").or(own_length).and_then(|size| size.parse().ok());
        let etag = header(&response, "x-linked-etag").or_else(|| header(&response, "etag")).unwrap_or_default();
        let etag = etag.trim_start_matches("W/").trim_matches('"').to_owned();
        // The ETag becomes a file name.
        if etag.is_empty() || !etag.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-') {
            return Err(Error::new(format!("the hub returns no usable ETag for `{file}` of `{}`", self.id.repo))
                .cure("Check HF_ENDPOINT and the proxy variables: a proxy may have removed the ETag."));
        }
        Ok(Remote { url, etag, size })
    }

    /// Downloads the file to `blob`, resuming an earlier interrupted transfer. `tick` receives the number of bytes so far.
    pub(crate) fn download(&self, file: &str, remote: &Remote, blob: &Path, tick: &dyn Fn(u64)) -> Result<()> {
        let incomplete = blob.with_file_name(format!("{}.incomplete", remote.etag));
        let folder = blob.parent().unwrap_or(Path::new("."));
        std::fs::create_dir_all(folder).context_at(folder, "cannot create the cache folder")?;
        let mut tries = 0;
        loop {
            let before = length(&incomplete);
            let broken = match self.transfer(file, remote, &incomplete, tick)? {
                Transfer::Whole => break,
                Transfer::Broken(error) => error,
            };
            tries = if length(&incomplete) > before { 0 } else { tries + 1 };
            if tries == TRIES {
                let what =
                    format!("`{file}` of `{}` was not downloaded: {TRIES} attempts in a row returned no new bytes", self.id.repo);
                let again = "Run the same command again: the download resumes.";
                return Err(Error::new(what).caused_by(broken).cure(again));
            }
            std::thread::sleep(PAUSE * tries);
        }
        if let Err(error) = self.verify(file, remote, &incomplete) {
            // A corrupt file must not be resumed.
            let _ = std::fs::remove_file(&incomplete);
            return Err(error);
        }
        std::fs::rename(&incomplete, blob).context_at(blob, "cannot move the downloaded file to its place")
    }

    /// Requests once what `incomplete` lacks.
    fn transfer(&self, file: &str, remote: &Remote, incomplete: &Path, tick: &dyn Fn(u64)) -> Result<Transfer> {
        let mut have = length(incomplete);
        if have > 0 && remote.size == Some(have) {
            return Ok(Transfer::Whole);
        }
        if remote.size.is_some_and(|size| size < have) {
            have = 0;
        }
        let mut response = match self.request(false, &remote.url, (have > 0).then_some(have)) {
            Ok(response) => response,
            Err(error) => return Ok(Transfer::Broken(error)),
        };
        match response.status().as_u16() {
            206 if header(&response, "content-range").is_some_and(|range| range.starts_with(&format!("bytes {have}-"))) => {}
            200 => have = 0,
            // The server cannot resume here, so that the next try starts from the beginning.
            206 | 416 => {
                let _ = std::fs::remove_file(incomplete);
                return Ok(Transfer::Broken(self.refusal(&response, Some(file))));
            }
            429 | 500..=599 => return Ok(Transfer::Broken(self.refusal(&response, Some(file)))),
            _ => return Err(self.refusal(&response, Some(file))),
        }
        let cannot_write = "cannot write the downloaded file";
        let mut output =
            OpenOptions::new().create(true).append(true).open(incomplete).context_at(incomplete, "cannot create the file")?;
        output.set_len(have).context_at(incomplete, cannot_write)?;
        let mut body = response.body_mut().as_reader();
        let mut buffer = vec![0; 1 << 18];
        let broken = loop {
            match body.read(&mut buffer) {
                Ok(0) => break None,
                Ok(n) => {
                    output.write_all(&buffer[..n]).context_at(incomplete, cannot_write)?;
                    have += n as u64;
                    tick(have);
                }
                Err(cause) => break Some(cause),
            }
        };
        output.sync_all().context_at(incomplete, cannot_write)?;
        let of = remote.size.map_or_else(String::new, |size| format!(" of {size}"));
        let broke_off =
            || Error::new(format!("the download of `{file}` of `{}` was interrupted after {have}{of} bytes", self.id.repo));
        match broken {
            Some(cause) => Ok(Transfer::Broken(broke_off().caused_by(cause))),
            None if remote.size.is_some_and(|size| size != have) => Ok(Transfer::Broken(broke_off())),
            None => Ok(Transfer::Whole),
        }
    }

    /// Compares the file with its ETag: SHA-256 of a large file, git's blob hash of a small one. A mirror's ETag of another form
    /// cannot be checked.
    fn verify(&self, file: &str, remote: &Remote, path: &Path) -> Result<()> {
        let (kind, found) = match remote.etag.len() {
            64 => ("SHA-256", file_digest(Sha256::new(), path)?),
            40 => ("git hash", file_digest(Sha1::new().chain_update(format!("blob {}\0", length(path))), path)?),
            _ => return Ok(()),
        };
        if found.eq_ignore_ascii_case(&remote.etag) {
            return Ok(());
        }
        Err(Error::new(format!(
            "`{file}` of `{}` has the {kind} {found}; the hub says {}: it was changed or damaged in transit, and is not kept",
            self.id.repo, remote.etag
        ))
        .cure("Run the same command again; if the problem persists, check HF_ENDPOINT and the proxy."))
    }

    /// Sends GET or HEAD and follows redirects, those of HEAD only within the hub, since other hosts do not return the hashes. Each
    /// address is reached through the proxy that the environment sets for it.
    fn request(&self, head: bool, url: &str, from_byte: Option<u64>) -> Result<Response<Body>> {
        let ours = origin(&self.endpoint);
        let mut url = url.to_owned();
        for _ in 0..REDIRECTS {
            refuse_socks(&url)?;
            let request = if head { self.agent.head(&url) } else { self.agent.get(&url) };
            let mut request = request.config().proxy(proxy_of(&url)).build();
            if let Some(token) = self.token.as_ref().filter(|_| origin(&url) == ours) {
                request = request.header("authorization", format!("Bearer {token}"));
            }
            if let Some(from) = from_byte {
                request = request.header("range", format!("bytes={from}-"));
            }
            let response = request.call().map_err(|cause| self.unreachable(cause))?;
            let location = header(&response, "location").filter(|_| response.status().is_redirection());
            match location.and_then(|location| joined(&url, location)) {
                Some(next) if !head || origin(&next) == ours => url = next,
                _ => return Ok(response),
            }
        }
        Err(self.unreachable(ureq::Error::TooManyRedirects))
    }

    fn unreachable(&self, cause: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> Error {
        let HubId { shelf, repo, .. } = &self.id;
        if *shelf == Shelf::DataSets {
            return Error::new(format!("the hub at {} cannot be reached for the data set `{repo}`", self.endpoint))
                .caused_by(cause)
                .cure("Check the network, HF_ENDPOINT and HTTPS_PROXY.");
        }
        Error::new(format!("there is no folder `{repo}` here, and the hub at {} cannot be reached", self.endpoint))
            .caused_by(cause)
            .cure(format!(
                "If `{repo}` is a folder, check its path. If it is a hub id, check the network, HF_ENDPOINT and HTTPS_PROXY, \
                 or download it on a machine with a network (`hf download {repo}`) and copy the cache (HF_HOME)."
            ))
    }

    /// The error for a status that is not a success.
    fn refusal(&self, response: &Response<Body>, file: Option<&str>) -> Error {
        let HubId { shelf, repo, revision, .. } = &self.id;
        let status = response.status();
        let code = header(response, "x-error-code").unwrap_or_default();
        let log_in = match self.token {
            Some(_) => "Your token was sent: check its owner and permissions with `hf auth whoami`.",
            None => "No token was sent: set HF_TOKEN, or log in with `hf auth login`.",
        };
        let name = file.map_or_else(|| format!("`{repo}`"), |file| format!("`{file}` of `{repo}`"));
        match (status.as_u16(), code) {
            (_, "GatedRepo") => Error::new(format!("{repo} is gated: its owners ask you to accept their terms first ({status})"))
                .cure(format!("Accept them at {}/{repo} in a browser. {log_in}", self.endpoint)),
            (_, "RevisionNotFound") => Error::new(format!("the hub's `{repo}` has no revision `{revision}` ({status})"))
                .cure("Name a branch, a tag or a full commit after the `@`."),
            (404, "EntryNotFound") => Error::new(format!("the hub has no {name} ({status})")),
            (401 | 404, _) if *shelf == Shelf::DataSets => {
                Error::new(format!("the hub at {} has no data set `{repo}` that you can read ({status})", self.endpoint))
                    .cure(log_in)
            }
            (401 | 404, _) => Error::new(format!(
                "there is no folder `{repo}` here, and the hub at {} has no repository of that name that you can read ({status})",
                self.endpoint
            ))
            .cure(format!(
                "If it is a folder, check its path. If it is a hub id, check its spelling; it may be private. {log_in}"
            )),
            (403, _) => Error::new(format!("the hub denies access to {name} ({status})")).cure(log_in),
            (429, _) => Error::new(format!("the hub limits requests for {name} ({status})"))
                .cure(format!("Try again in a few minutes. {log_in}")),
            _ => Error::new(format!("the hub could not serve {name} ({status})")).cure("Try again later, or check HF_ENDPOINT."),
        }
    }
}

/// The token in HF_TOKEN, or the one that `hf auth login` stored.
fn token() -> Result<Option<String>> {
    let set = |name: &str| std::env::var(name).ok().filter(|value| !value.trim().is_empty());
    let token = set("HF_TOKEN").or_else(|| set("HUGGING_FACE_HUB_TOKEN")).or_else(|| {
        let path = cache::variable("HF_TOKEN_PATH").or_else(|| cache::home().map(|home| home.join("token")))?;
        std::fs::read_to_string(path).ok()
    });
    let token = token.map(|token| token.trim().to_owned()).filter(|token| !token.is_empty());
    // The message does not show the token, since messages end up in logs.
    match token {
        Some(token) if !token.bytes().all(|byte| byte.is_ascii_graphic()) => {
            Err(Error::new("the Hugging Face token has characters that are not allowed in a token")
                .cure("Check HF_TOKEN, or log in again with `hf auth login`."))
        }
        token => Ok(token),
    }
}

/// The configuration of all HTTP agents of this program, for a server at `url`; each adds its own time limits.
pub(crate) fn agent_config(url: &str) -> Result<ConfigBuilder<AgentScope>> {
    Ok(Agent::config_builder()
        .proxy(proxy_of(url))
        .http_status_as_error(false)
        // This program follows redirects itself or not at all, because they decide where a token goes.
        .max_redirects(0)
        .max_redirects_will_error(false)
        .user_agent(concat!("diagnose/", env!("CARGO_PKG_VERSION")))
        // Sizes and hashes are those of the file, not of a compressed copy.
        .accept_encoding("identity")
        .timeout_connect(Some(WAIT_TO_CONNECT))
        .tls_config(TlsConfig::builder().root_certs(root_certificates()?).build()))
}

/// The proxy that the environment sets for this address.
pub(crate) fn proxy_of(url: &str) -> Option<Proxy> {
    let host = url.parse::<Uri>().ok()?.host()?.to_owned();
    // In the order in which ureq reads them.
    let excluded = std::env::var("NO_PROXY").or_else(|_| std::env::var("no_proxy")).unwrap_or_default();
    Proxy::try_from_env().filter(|_| !is_excluded(&host, &excluded))
}

/// Whether NO_PROXY excludes the host, read as curl and Python do: white space beside the commas does not count, a domain stands for
/// all hosts in it, and an address may have the bits of its network behind it, such as 10.0.0.0/8. ureq knows none of these.
fn is_excluded(host: &str, excluded: &str) -> bool {
    let host = host.trim_matches(['[', ']']).to_ascii_lowercase();
    let mut entries = excluded.split(|c: char| c == ',' || c.is_whitespace()).filter(|entry| !entry.is_empty());
    entries.any(|entry| {
        let name = entry.trim_start_matches('*').trim_start_matches('.').to_ascii_lowercase();
        entry == "*" || host == name || host.ends_with(&format!(".{name}")) || is_within(&host, &name)
    })
}

/// Whether the host is an address of this network, such as 10.0.0.0/8.
fn is_within(host: &str, network: &str) -> bool {
    let Some((network, bits)) = network.split_once('/') else { return false };
    // The bits of an address, as the highest ones of a number.
    let number = |address: &str| match address.parse().ok()? {
        IpAddr::V4(address) => Some((32, u128::from(address.to_bits()) << 96)),
        IpAddr::V6(address) => Some((128, address.to_bits())),
    };
    match (number(host), number(network), bits.parse::<u32>()) {
        (Some((size, host)), Some((other, network)), Ok(bits)) if size == other && bits <= size => {
            (host ^ network).checked_shr(128 - bits).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// Returns an error if the environment sets a SOCKS proxy for this address: without that feature, ureq would silently connect
/// directly.
fn refuse_socks(url: &str) -> Result<()> {
    use ureq::ProxyProtocol::{Socks4, Socks4A, Socks5, Socks5h};
    let Some(proxy) = proxy_of(url) else { return Ok(()) };
    let host = origin(url).map_or_else(|| url.to_owned(), |(_, host, _)| host);
    match proxy.protocol() {
        Socks4 | Socks4A | Socks5 | Socks5h => Err(Error::new(format!(
            "expected an HTTP proxy in HTTPS_PROXY or ALL_PROXY, found a SOCKS proxy ({})",
            proxy.host()
        ))
        .cure(format!(
            "Set one such as http://HOST:PORT, list {host} in NO_PROXY to bypass the proxy, or download the files by other \
                     means and name their folder."
        ))),
        _ => Ok(()),
    }
}

/// Mozilla's root certificates, or those of the file that companies with their own proxy name.
fn root_certificates() -> Result<RootCerts> {
    let Some(path) = cache::variable("SSL_CERT_FILE").or_else(|| cache::variable("REQUESTS_CA_BUNDLE")) else {
        return Ok(RootCerts::WebPki);
    };
    let pem = std::fs::read(&path).context_at(&path, "cannot read the certificates (SSL_CERT_FILE)")?;
    let certificates = parse_pem(&pem).filter_map(|item| match item {
        Ok(PemItem::Certificate(certificate)) => Some(certificate),
        _ => None,
    });
    Ok(RootCerts::Specific(Arc::new(certificates.collect())))
}

fn header<'a>(response: &'a Response<Body>, name: &str) -> Option<&'a str> {
    response.headers().get(name).and_then(|value| value.to_str().ok())
}

/// The scheme, host and port of an address.
fn origin(url: &str) -> Option<(String, String, u16)> {
    let uri: Uri = url.parse().ok()?;
    let scheme = uri.scheme_str()?.to_ascii_lowercase();
    let port = uri.port_u16().or(match scheme.as_str() {
        "http" => Some(80),
        "https" => Some(443),
        _ => None,
    })?;
    Some((scheme, uri.host()?.to_ascii_lowercase(), port))
}

/// Resolves `location`, the target of a redirect, against `url`.
fn joined(url: &str, location: &str) -> Option<String> {
    if location.contains("://") {
        return Some(location.to_owned());
    }
    let (scheme, rest) = url.split_once("://")?;
    let host = rest.split('/').next()?;
    match location {
        _ if location.starts_with("//") => Some(format!("{scheme}:{location}")),
        _ if location.starts_with('/') => Some(format!("{scheme}://{host}{location}")),
        _ => None,
    }
}

/// Encodes every byte as `%2F` and the like, except letters, digits, `-._~` and the characters in `kept`.
fn percent_encoded(text: &str, kept: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-._~".contains(&byte) || kept.as_bytes().contains(&byte);
    text.bytes().map(|byte| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") }).collect()
}

/// The length of a file, 0 if it does not exist.
fn length(path: &Path) -> u64 {
    std::fs::metadata(path).map_or(0, |metadata| metadata.len())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn excluded_hosts_are_those_of_curl() {
        let check =
            |host: &str, excluded: &str, expected: bool| assert_eq!(is_excluded(host, excluded), expected, "{host} {excluded}");
        for excluded in
            ["localhost, 127.0.0.1", "127.0.0.1", "a.b\t127.0.0.1", "*", "127.0.0.0/8", "10.0.0.0/8, 127.0.0.1/32", "0.0.0.0/0"]
        {
            check("127.0.0.1", excluded, true);
        }
        for excluded in ["", " ,", "localhost", "128.0.0.0/8", "127.0.0.2/32", "::/0", "127.0.0.0/40", "7.0.0.1", "27.0.0.1"] {
            check("127.0.0.1", excluded, false);
        }
        for excluded in ["example.com", ".example.com", "*.example.com", "Example.COM", "gpu.example.com"] {
            check("GPU.example.com", excluded, true);
            check("myexample.com", excluded, false);
        }
        check("[fd00::1]", "fd00::/8", true);
        check("[fd00::1]", "fe00::/8", false);
    }

    #[test]
    fn hashes_are_those_of_git_and_of_sha256sum() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("file");
        std::fs::write(&path, "hello\n").unwrap();
        // `echo hello | git hash-object --stdin`, `echo hello | sha256sum`
        let git = file_digest(Sha1::new().chain_update(format!("blob {}\0", length(&path))), &path).unwrap();
        assert_eq!(git, "ce013625030ba8dba906f756967f9e9ca394464a");
        let sha256 = file_digest(Sha256::new(), &path).unwrap();
        assert_eq!(sha256, "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03");
    }

    #[test]
    fn the_origin_decides_about_the_token() {
        let same = |a: &str, b: &str| origin(a) == origin(b);
        assert!(same("https://huggingface.co", "https://HuggingFace.co:443/a/b?c"));
        assert!(!same("https://huggingface.co", "http://huggingface.co"));
        assert!(!same("https://huggingface.co", "https://huggingface.co.evil.org"));
        assert!(!same("https://huggingface.co", "https://huggingface.co@evil.org/"));
        assert!(!same("http://127.0.0.1:1", "http://127.0.0.1:2"));
        assert_eq!(origin("not an address"), None);
    }

    #[test]
    fn addresses_of_redirects_and_revisions() {
        let check = |location: &str, expected: Option<&str>| {
            assert_eq!(joined("https://hub:8/a/b?c", location).as_deref(), expected, "{location}");
        };
        check("https://other/x", Some("https://other/x"));
        check("/x/y", Some("https://hub:8/x/y"));
        check("//other/x", Some("https://other/x"));
        check("x", None);
        assert_eq!(percent_encoded("refs/pr/1", ""), "refs%2Fpr%2F1");
        assert_eq!(percent_encoded("q 4/é.gguf", "/"), "q%204/%C3%A9.gguf");
    }
}
