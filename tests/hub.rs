//! Tests models by hub id, with a small local server that answers as the hub and its file store do.

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};
use sha2::Digest;

use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

const COMMIT: &str = "0123456789abcdef0123456789abcdef01234567";
const OLDER: &str = "89abcdef0123456789abcdef0123456789abcdef";
const TOKEN: &str = "hf_SecretOfThisTest";
const ROW: &str = r#"{"messages":[{"role":"user","content":"Say hi."},{"role":"assistant","content":"hi"}]}"#;

#[test]
fn a_repository_is_fetched_once_into_pythons_layout() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    let first = scored(&workdir, &hub.address, "org/tiny", &[]);
    assert_eq!(first["model"]["name"], "tiny");
    assert_eq!(first["model"]["reference"], "org/tiny");

    let repo = workdir.path("hf/hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(repo.join("refs/main")).unwrap(), COMMIT);
    let mut blobs = Vec::new();
    for (name, file) in folder_files() {
        let link = repo.join("snapshots").join(COMMIT).join(&name);
        if name == "README.md" {
            assert!(!link.exists(), "a file that no model needs was fetched");
            continue;
        }
        assert_eq!(std::fs::read_link(&link).unwrap(), Path::new("../../blobs").join(etag(&file)), "{name}");
        assert!(std::fs::read(link).unwrap() == file.bytes, "{name}");
        blobs.push(etag(&file));
    }
    blobs.sort_unstable();
    assert_eq!(file_names(&repo.join("blobs")), blobs);
    // The same numbers as from the folder itself.
    let local = scored(&workdir, CLOSED, fixture("base").to_str().unwrap(), &[]);
    assert_eq!(local["model"]["sha256"], first["model"]["sha256"]);
    assert_eq!(local["overall"], first["overall"]);

    // On the second run, the revision is requested, but no file.
    hub.forget();
    run(&workdir, &hub.address, "org/tiny", &[]).ok();
    assert_eq!(hub.requests(), ["GET /api/models/org/tiny/revision/main"]);
    // A full commit hash needs no request.
    hub.forget();
    run(&workdir, &hub.address, &format!("org/tiny@{COMMIT}"), &[]).ok();
    assert_eq!(hub.requests(), [""; 0]);
    // Without a network, and told so.
    for settings in [&[][..], &[("HF_HUB_OFFLINE", "1")]] {
        let offline = scored(&workdir, CLOSED, "org/tiny", settings);
        assert_eq!(offline["overall"], first["overall"]);
    }
    let other = run(&workdir, &hub.address, "org/other", &[("HF_HUB_OFFLINE", "1")]);
    check(&other, &["org/other", "HF_HUB_OFFLINE", "models--org--other"]);
    assert_eq!(hub.requests(), [""; 0]);
}

#[test]
fn a_revision_has_a_snapshot_of_its_own_and_shares_the_bytes() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    run(&workdir, &hub.address, "org/tiny", &[]).ok();
    hub.forget();
    run(&workdir, &hub.address, "org/tiny@refs/pr/1", &[]).ok();
    let repo = workdir.path("hf/hub/models--org--tiny");
    assert_eq!(std::fs::read_to_string(repo.join("refs/refs/pr/1")).unwrap(), OLDER);
    assert!(repo.join("snapshots").join(OLDER).join("config.json").is_file());
    assert!(
        hub.requests().iter().all(|request| request.starts_with("HEAD") || request.contains("/api/")),
        "{:?}",
        hub.requests()
    );
    check(&run(&workdir, &hub.address, "org/tiny@nothing", &[]), &["no revision `nothing`"]);
}

#[test]
fn a_broken_transfer_goes_on_where_it_stopped() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    hub.set(Mood::Breaking);
    check(&run(&workdir, &hub.address, "org/tiny", &[]), &["model-00001-of-00002.safetensors", "resumes"]);
    let repo = workdir.path("hf/hub/models--org--tiny");
    let large = &folder_files()["model-00001-of-00002.safetensors"];
    let incomplete = repo.join("blobs").join(format!("{}.incomplete", etag(large)));
    assert_eq!(incomplete.metadata().unwrap().len() as usize, large.bytes.len() / 2);
    assert!(!repo.join("refs/main").exists(), "a revision points at half a snapshot");
    // Nor does it pass for a whole one.
    check(&run(&workdir, CLOSED, "org/tiny", &[("HF_HUB_OFFLINE", "1")]), &["not (completely)"]);

    hub.set(Mood::Well);
    hub.forget();
    run(&workdir, &hub.address, "org/tiny", &[]).ok();
    let ranges: Vec<String> = hub.seen.lock().unwrap().iter().filter_map(|request| request.header("range")).collect();
    // Asked of the hub and, by way of the redirect, of the store.
    assert_eq!(ranges, vec![format!("bytes={}-", large.bytes.len() / 2); 2]);
    assert!(!incomplete.exists());
}

#[test]
fn a_file_with_a_wrong_hash_is_not_kept() {
    for name in ["model-00002-of-00002.safetensors", "tokenizer.json"] {
        let (workdir, hub) = (workdir(), Hub::start(folder_files()));
        hub.set(Mood::Corrupting(name));
        let ran = run(&workdir, &hub.address, "org/tiny", &[]);
        let file = &folder_files()[name];
        check(&ran, &[name, &etag(file), "not kept"]);
        let blobs = file_names(&workdir.path("hf/hub/models--org--tiny/blobs"));
        assert!(blobs.iter().all(|blob| !blob.starts_with(&etag(file))), "{blobs:?}");
        hub.set(Mood::Well);
        run(&workdir, &hub.address, "org/tiny", &[]).ok();
    }
}

#[test]
fn a_check_fetches_no_weights() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    let check = |address: &str, settings: &[(&str, &str)]| {
        run_command(&workdir, address, &["check", "rows.jsonl", "--model", "org/tiny", "--json"], settings).ok().json()
    };
    let found = check(&hub.address, &[]);
    assert_eq!((&found["records"], &found["rows"]), (&1.into(), &1.into()));
    assert!(hub.requests().iter().any(|request| request.ends_with("tokenizer.json")), "{:?}", hub.requests());
    assert!(!hub.requests().iter().any(|request| request.contains("safetensors")), "{:?}", hub.requests());
    // An incomplete cache is enough for another `check`, but not for a score.
    hub.forget();
    assert_eq!(check(CLOSED, &[("HF_HUB_OFFLINE", "1")])["shown"], found["shown"]);
    assert_eq!(run(&workdir, CLOSED, "org/tiny", &[("HF_HUB_OFFLINE", "1")]).code, Some(1));
    scored(&workdir, &hub.address, "org/tiny", &[]);
    assert!(hub.requests().iter().any(|request| request.contains("safetensors")), "{:?}", hub.requests());
}

#[test]
fn the_token_goes_to_the_hub_alone_and_is_never_shown() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    let settings = [("HF_TOKEN", TOKEN), ("RUST_LOG", "trace"), ("RUST_BACKTRACE", "full")];
    let ran = run(&workdir, &hub.address, "org/tiny", &settings).ok();
    let mut said = ran.stdout + &ran.stderr;
    let (mut asked_hub, mut asked_store) = (0, 0);
    for request in hub.seen.lock().unwrap().iter() {
        match request.store {
            true => {
                asked_store += 1;
                assert_eq!(request.header("authorization"), None, "{}", request.line);
            }
            false => {
                asked_hub += 1;
                assert_eq!(request.header("authorization").as_deref(), Some("Bearer hf_SecretOfThisTest"), "{}", request.line);
            }
        }
    }
    assert!(asked_hub > 5 && asked_store == 2, "{:?}", hub.requests());
    for (status, code) in [(401, ""), (403, "GatedRepo"), (500, "")] {
        hub.set(Mood::Refusing(status, code));
        let ran = run(&workdir, &hub.address, "org/another", &settings);
        assert_eq!(ran.code, Some(1));
        said += &(ran.stdout + &ran.stderr);
    }
    let ran = run(&workdir, CLOSED, "org/another", &settings);
    said += &(ran.stdout + &ran.stderr);
    let ran = run(&workdir, &hub.address, "org/another", &[("HF_TOKEN", "hf_Secret\nOfThisTest")]);
    check(&ran, &["HF_TOKEN"]);
    said += &(ran.stdout + &ran.stderr);
    assert!(!said.contains("hf_Secret") && !said.contains("OfThisTest"), "{said}");
    let files = walk(&workdir.path(""));
    assert!(files.len() > 20);
    for path in files {
        let bytes = std::fs::read(&path).unwrap();
        assert!(!bytes.windows(TOKEN.len()).any(|window| window == TOKEN.as_bytes()), "the token is in {}", path.display());
    }

    // The one that `hf auth login` left.
    hub.set(Mood::Well);
    hub.forget();
    workdir.write("hf/token", format!("{TOKEN}\n"));
    run(&workdir, &hub.address, "org/tiny", &[]).ok();
    assert_eq!(hub.seen.lock().unwrap()[0].header("authorization").as_deref(), Some("Bearer hf_SecretOfThisTest"));
}

#[test]
fn refusals_say_what_to_do() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    let refused = |status: u16, code: &'static str, settings: &[(&str, &str)], parts: &[&str]| {
        hub.set(Mood::Refusing(status, code));
        check(&run(&workdir, &hub.address, "org/tiny", settings), parts);
    };
    refused(401, "RepoNotFound", &[], &["no folder `org/tiny`", "no repository of that name", "hf auth login"]);
    refused(404, "RepoNotFound", &[("HF_TOKEN", TOKEN)], &["no repository of that name", "Your token was sent"]);
    refused(403, "GatedRepo", &[("HF_TOKEN", TOKEN)], &["gated", &format!("{}/org/tiny", hub.address)]);
    refused(401, "GatedRepo", &[], &["gated", "HF_TOKEN"]);
    refused(429, "", &[], &["limits requests"]);
    refused(503, "", &[], &["could not serve", "Try again later"]);
    check(&run(&workdir, CLOSED, "org/tiny", &[]), &["no folder `org/tiny`", CLOSED, "cannot be reached", "hf download"]);
    check(&run(&workdir, "huggingface.co", "org/tiny", &[]), &["HF_ENDPOINT is `huggingface.co`"]);
    hub.set(Mood::Well);
    // A folder of that name is what is meant.
    std::fs::create_dir_all(workdir.path("org/tiny")).unwrap();
    hub.forget();
    check(&run(&workdir, &hub.address, "org/tiny", &[]), &["model.safetensors"]);
    assert_eq!(hub.requests(), [""; 0]);
}

#[test]
fn a_gguf_file_of_a_repository() {
    let workdir = workdir();
    let bytes = std::fs::read(tiny_model::write(&workdir.path(""))).unwrap();
    let files = |names: &[&str]| {
        let file = |name: &&str| ((*name).to_owned(), Stored { bytes: bytes.clone(), large: true });
        names.iter().map(file).collect::<BTreeMap<_, _>>()
    };
    let single = Hub::start(files(&["tiny.Q4_K_M.gguf", "README.md"]));
    let printed = scored(&workdir, &single.address, "org/single", &[]);
    assert_eq!(printed["model"]["name"], "single");
    let several = Hub::start(files(&["q4/tiny.gguf", "q8/tiny.gguf"]));
    check(&run(&workdir, &several.address, "org/several", &[]), &["2 .gguf files", "org/several:q4/tiny.gguf"]);
    let printed = scored(&workdir, &several.address, "org/several:q8/tiny.gguf", &[]);
    assert_eq!(printed["model"]["name"], "tiny");
    let link = workdir.path("hf/hub/models--org--several/snapshots").join(COMMIT).join("q8/tiny.gguf");
    assert!(std::fs::read_link(link).unwrap().starts_with("../../../blobs"));
    check(&run(&workdir, &several.address, "org/several:q9/tiny.gguf", &[]), &["no file `q9/tiny.gguf`"]);
    let old = Hub::start(files(&["pytorch_model.bin", "config.json"]));
    check(&run(&workdir, &old.address, "org/old", &[]), &["safetensors"]);
}

/// A benchmark's rows, from the revision at which the hub keeps every data set as Parquet.
#[test]
fn the_data_of_a_benchmark_is_fetched_once() {
    let workdir = workdir();
    tiny_model::write(&workdir.path(""));
    let mut frame = polars::df!(
        "premise" => ["天黑了。", "下雨了。"],
        "choice1" => ["他睡了。", "地湿了。"],
        "choice2" => ["他笑了。", "灯亮了。"],
        "question" => ["effect", "effect"],
        "label" => [0i64, 0]
    )
    .unwrap();
    let mut bytes = Vec::new();
    polars::prelude::ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    let other = Stored { bytes: b"PAR1".to_vec(), large: true };
    let zh = Stored { bytes, large: true };
    let files = [("zh/test/0000.parquet".to_owned(), zh), ("et/test/0000.parquet".to_owned(), other)];
    let hub = Hub::start(BTreeMap::from(files));
    let eval = |endpoint: &str, out: &str| {
        let mut command = workdir.command(&["eval", "--model", "tiny.gguf", "--tasks", "xcopa_zh", "--out", out, "--json"]);
        Ran::of(command.env("HF_HOME", workdir.path("hf")).env("HF_ENDPOINT", endpoint).output().unwrap())
    };
    let first = eval(&hub.address, "a").ok().json();
    assert_eq!(first["tasks"]["xcopa_zh"]["n"], 2);
    let snapshot = workdir.path("hf/hub/datasets--cambridgeltl--xcopa/snapshots").join(COMMIT);
    assert!(snapshot.join("zh/test/0000.parquet").exists() && !snapshot.join("et").exists());
    assert_eq!(hub.requests()[0], "GET /api/datasets/cambridgeltl/xcopa/revision/refs%2Fconvert%2Fparquet");
    assert!(hub.requests()[1].starts_with("HEAD /datasets/cambridgeltl/xcopa/resolve/"), "{:?}", hub.requests());
    // Benchmarks do not change: nothing is asked for again.
    let again = eval(CLOSED, "b").ok().json();
    assert_eq!(again["tasks"]["xcopa_zh"]["data_sha256"], first["tasks"]["xcopa_zh"]["data_sha256"]);
    std::fs::remove_dir_all(workdir.path("hf")).unwrap();
    check(&eval(CLOSED, "c"), &["xcopa_zh", "--tasks xcopa_zh=FILE", CLOSED]);
}

/// The cache is shared with Python, and a download may be interrupted: the missing rest of an incomplete set is fetched, and the part is never taken
/// for the whole.
#[test]
fn a_part_of_a_benchmark_is_not_taken_for_the_whole() {
    let workdir = workdir();
    tiny_model::write(&workdir.path(""));
    let of_paradigm = |good: &str| {
        let mut frame =
            polars::df!("UID" => [good], "pair_id" => [0i64], "sentence_good" => [good], "sentence_bad" => ["Cats sleeps."])
                .unwrap();
        let mut bytes = Vec::new();
        polars::prelude::ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
        Stored { bytes, large: true }
    };
    let names = ["agreement/train/0000.parquet", "binding/train/0000.parquet", "ellipsis/train/0000.parquet"];
    let files: BTreeMap<_, _> = names.iter().map(|name| ((*name).to_owned(), of_paradigm(name))).collect();
    let hub = Hub::start(files.clone());
    let eval = |endpoint: &str, out: &str, settings: &[(&str, &str)]| {
        let mut command = workdir.command(&["eval", "--model", "tiny.gguf", "--tasks", "blimp", "--out", out, "--json"]);
        command.env("HF_HOME", workdir.path("hf")).env("HF_ENDPOINT", endpoint).envs(settings.iter().copied());
        Ran::of(command.output().unwrap())
    };
    let offline = [("HF_HUB_OFFLINE", "1")];
    // As Python's library leaves it, of whom somebody wanted a single file.
    let repo = workdir.path("hf/hub/datasets--nyu-mll--blimp");
    let file = |name: &str| repo.join("snapshots").join(COMMIT).join(name);
    std::fs::create_dir_all(repo.join("refs/refs/convert")).unwrap();
    std::fs::write(repo.join("refs/refs/convert/parquet"), COMMIT).unwrap();
    std::fs::create_dir_all(file(names[1]).parent().unwrap()).unwrap();
    std::fs::write(file(names[1]), &files[names[1]].bytes).unwrap();
    check(
        &eval(CLOSED, "a", &offline),
        &["`nyu-mll/blimp`", "without the list of its files", "HF_HUB_OFFLINE", "--tasks blimp=FILE"],
    );
    check(&eval(CLOSED, "a", &[]), &["blimp", CLOSED]);
    assert_eq!(eval(&hub.address, "a", &[]).ok().json()["tasks"]["blimp"]["n"], 3);
    assert!(!hub.requests().iter().any(|request| request.contains("binding")), "{:?}", hub.requests());
    assert_eq!(eval(CLOSED, "b", &offline).ok().json()["tasks"]["blimp"]["n"], 3);
    // A file that has gone is missed.
    std::fs::remove_file(file(names[2])).unwrap();
    check(&eval(CLOSED, "c", &offline), &["is in the cache with 2 of 3 files", "HF_HUB_OFFLINE"]);
    assert_eq!(eval(&hub.address, "c", &[]).ok().json()["tasks"]["blimp"]["n"], 3);
}

#[test]
fn a_split_gguf_file_is_fetched_and_read_as_one() {
    let workdir = workdir();
    let whole = tiny_model::write(&workdir.path(""));
    let parts = tiny_model::write_split(&workdir.path(""));
    let files = parts.iter().map(|path| {
        let name = format!("q4/{}", path.file_name().unwrap().to_str().unwrap());
        (name, Stored { bytes: std::fs::read(path).unwrap(), large: true })
    });
    let hub = Hub::start(files.collect());
    let expected = scored(&workdir, CLOSED, whole.to_str().unwrap(), &[]);
    let [first, second] = parts.map(|path| path.to_str().unwrap().to_owned());
    for model in ["org/split", "org/split:q4/tiny-00001-of-00002.gguf", &first, &second] {
        let printed = scored(&workdir, &hub.address, model, &[]);
        assert_eq!(printed["overall"]["perplexity"], expected["overall"]["perplexity"], "{model}");
    }
    std::fs::remove_file(&second).unwrap();
    check(&run(&workdir, CLOSED, &first, &[]), &["tiny-00002-of-00002.gguf", "cannot open"]);
}

/// A user with a proxy does not want direct requests to the hub.
#[test]
fn a_proxy_that_cannot_be_used_is_refused() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    let host = hub.address.trim_start_matches("http://").split(':').next().unwrap().to_owned();
    for name in ["ALL_PROXY", "https_proxy"] {
        let proxy = (name, "socks5://name:secret@10.0.0.1:1080");
        let refused = run(&workdir, &hub.address, "org/tiny", &[proxy]);
        assert_eq!(refused.code, Some(1), "{}", refused.stderr);
        check(&refused, &["found a SOCKS proxy (10.0.0.1)", "NO_PROXY"]);
        assert!(!refused.stderr.contains("secret") && hub.requests().is_empty(), "{}", refused.stderr);
    }
    run(&workdir, &hub.address, "org/tiny", &[("ALL_PROXY", "socks5://10.0.0.1:1080"), ("NO_PROXY", &host)]).ok();
}

/// A hub within a company, reached directly, may hand out addresses outside, reached through the proxy.
#[test]
fn each_redirect_has_the_proxy_of_its_own_address() {
    let (workdir, hub) = (workdir(), Hub::start_with_store(folder_files(), Some("http://store.invalid")));
    // The store is the proxy as well.
    let with = |excluded: &str| run(&workdir, &hub.address, "org/tiny", &[("ALL_PROXY", &hub.store), ("NO_PROXY", excluded)]);
    check(&with("127.0.0.1,store.invalid"), &["cannot be reached"]);
    assert!(!hub.requests().iter().any(|line| line.starts_with("CONNECT")), "{:?}", hub.requests());
    with("127.0.0.1").ok();
    let proxied: Vec<String> = hub.requests().into_iter().filter(|line| line.starts_with("CONNECT")).collect();
    assert!(!proxied.is_empty() && proxied.iter().all(|line| line.starts_with("CONNECT store.invalid:80")), "{proxied:?}");
}

#[test]
fn a_repository_without_an_organisation() {
    let (workdir, hub) = (workdir(), Hub::start(folder_files()));
    let printed = scored(&workdir, &hub.address, "old-name", &[]);
    assert_eq!(printed["model"]["name"], "old-name");
    assert!(workdir.path("hf/hub/models--old-name/refs/main").exists());
    check(&run(&workdir, CLOSED, "other-name", &[]), &["no folder `other-name` here", CLOSED]);
}

/// A port on which nothing listens.
pub(crate) const CLOSED: &str = "http://127.0.0.1:9";

fn workdir() -> Workdir {
    let workdir = Workdir::new();
    workdir.write("rows.jsonl", ROW);
    workdir
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/lora").join(name)
}

/// One run with the hub at `endpoint`, its cache in the folder of the test, and nothing of the tester's own settings.
fn run(workdir: &Workdir, endpoint: &str, model: &str, settings: &[(&str, &str)]) -> Ran {
    let out = next_run(workdir);
    run_command(workdir, endpoint, &["rows.jsonl", "--model", model, "--out", &out, "--json"], settings)
}

fn run_command(workdir: &Workdir, endpoint: &str, arguments: &[&str], settings: &[(&str, &str)]) -> Ran {
    let mut command = workdir.command(arguments);
    for (name, _) in std::env::vars_os() {
        let name = name.to_string_lossy().into_owned();
        if name.starts_with("HF_") || name.to_ascii_lowercase().ends_with("_proxy") {
            command.env_remove(name);
        }
    }
    command.env("HF_HOME", workdir.path("hf")).env("HF_ENDPOINT", endpoint).envs(settings.iter().copied());
    Ran::of(command.output().unwrap())
}

/// What a run that succeeds prints, with `model` of its run.json.
#[track_caller]
fn scored(workdir: &Workdir, endpoint: &str, model: &str, settings: &[(&str, &str)]) -> Value {
    let out = next_run(workdir);
    let mut printed = run(workdir, endpoint, model, settings).ok().json();
    let record: Value = serde_json::from_slice(&std::fs::read(workdir.path(&out).join("run.json")).unwrap()).unwrap();
    printed["model"] = record["model"].clone();
    printed
}

fn next_run(workdir: &Workdir) -> String {
    let mut names = (0..).map(|number| format!("run-{number}"));
    names.find(|name| !workdir.path(name).exists()).unwrap()
}

/// Checks that a run fails with all of `parts` in its message, and without a panic.
#[track_caller]
fn check(ran: &Ran, parts: &[&str]) {
    assert_eq!(ran.code, Some(1), "{}{}", ran.stdout, ran.stderr);
    for part in parts {
        assert!(ran.stderr.contains(part), "expected `{part}` in\n{}", ran.stderr);
    }
    assert!(!ran.stderr.contains("panicked"), "{}", ran.stderr);
}

fn file_names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().file_name().into_string().unwrap());
    let mut names: Vec<String> = entries.collect();
    names.sort_unstable();
    names
}

/// Every file below `folder`.
fn walk(folder: &Path) -> Vec<PathBuf> {
    let paths = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
    paths.flat_map(|path| if path.is_dir() { walk(&path) } else { vec![path] }).collect()
}

/// A file of the repository; a large one lies in the store.
#[derive(Clone)]
struct Stored {
    bytes: Vec<u8>,
    large: bool,
}

/// The fixture's base model: two shards with their index, and a file that no model needs.
fn folder_files() -> BTreeMap<String, Stored> {
    let mut files = BTreeMap::new();
    for name in file_names(&fixture("base")) {
        let bytes = std::fs::read(fixture("base").join(&name)).unwrap();
        let large = name.ends_with(".safetensors");
        files.insert(name, Stored { bytes, large });
    }
    files.insert("README.md".to_owned(), Stored { bytes: b"# Tiny".to_vec(), large: false });
    files
}

/// SHA-256 of a large file, git's blob hash of a small one.
fn etag(file: &Stored) -> String {
    let hex = |bytes: &[u8]| bytes.iter().map(|byte| format!("{byte:02x}")).collect();
    match file.large {
        true => hex(&sha2::Sha256::digest(&file.bytes)),
        false => {
            hex(&sha1::Sha1::new().chain_update(format!("blob {}\0", file.bytes.len())).chain_update(&file.bytes).finalize())
        }
    }
}

/// How the servers behave.
#[derive(Clone, Copy)]
enum Mood {
    Well,
    /// The store sends the first half of a file and serves nothing after that.
    Breaking,
    /// The file of this name comes with its first byte changed.
    Corrupting(&'static str),
    /// The hub answers everything with this status and error code.
    Refusing(u16, &'static str),
}

struct Request {
    store: bool,
    /// `GET /path`
    line: String,
    headers: Vec<(String, String)>,
}

impl Request {
    fn header(&self, name: &str) -> Option<String> {
        self.headers.iter().find(|(key, _)| key == name).map(|(_, value)| value.clone())
    }
}

#[derive(Default)]
struct Reply {
    status: u16,
    headers: Vec<(&'static str, String)>,
    body: Vec<u8>,
    /// Bytes of the body after which the connection breaks.
    cut: Option<usize>,
}

/// The hub, and at another port the store that it sends people to for large files.
struct Hub {
    address: String,
    store: String,
    seen: Arc<Mutex<Vec<Request>>>,
    mood: Arc<Mutex<Mood>>,
}

impl Hub {
    fn start(files: BTreeMap<String, Stored>) -> Hub {
        Hub::start_with_store(files, None)
    }

    /// `named` is the address to which the hub redirects, if it is not that of the store.
    fn start_with_store(files: BTreeMap<String, Stored>, named: Option<&str>) -> Hub {
        let (files, seen, mood) = (Arc::new(files), Arc::new(Mutex::new(Vec::new())), Arc::new(Mutex::new(Mood::Well)));
        let serve = |store: Option<String>| {
            let (files, seen, mood) = (Arc::clone(&files), Arc::clone(&seen), Arc::clone(&mood));
            let listener = TcpListener::bind("127.0.0.1:0").unwrap();
            let address = format!("http://{}", listener.local_addr().unwrap());
            std::thread::spawn(move || {
                for stream in listener.incoming() {
                    let mut stream = stream.unwrap();
                    let Some(mut request) = read_request(&mut stream, store.is_none()) else { continue };
                    // As a proxy, it hands on to itself.
                    if request.line.starts_with("CONNECT ") {
                        seen.lock().unwrap().push(request);
                        stream.write_all(b"HTTP/1.1 200 Connected\r\n\r\n").unwrap();
                        request = read_request(&mut stream, store.is_none()).unwrap();
                    }
                    let mood = *mood.lock().unwrap();
                    let reply = match &store {
                        Some(store) => hub_reply(&request, &files, store, mood),
                        None => store_reply(&request, &files, mood),
                    };
                    let head = request.line.starts_with("HEAD");
                    seen.lock().unwrap().push(request);
                    // The client may have hung up.
                    let _ = write_reply(&mut stream, &reply, head);
                }
            });
            address
        };
        let store = serve(None);
        let address = serve(Some(named.map_or_else(|| store.clone(), str::to_owned)));
        Hub { address, store, seen, mood }
    }

    fn set(&self, mood: Mood) {
        *self.mood.lock().unwrap() = mood;
    }

    fn forget(&self) {
        self.seen.lock().unwrap().clear();
    }

    fn requests(&self) -> Vec<String> {
        self.seen.lock().unwrap().iter().map(|request| request.line.clone()).collect()
    }
}

fn hub_reply(request: &Request, files: &BTreeMap<String, Stored>, store: &str, mood: Mood) -> Reply {
    if let Mood::Refusing(status, code) = mood {
        return Reply { status, headers: vec![("X-Error-Code", code.to_owned())], ..Reply::default() };
    }
    let path = request.line.split_once(' ').unwrap().1;
    if let Some((_, revision)) = path.split_once("/revision/") {
        let commit = match revision {
            "main" | COMMIT | "refs%2Fconvert%2Fparquet" => COMMIT,
            "refs%2Fpr%2F1" => OLDER,
            _ => {
                return Reply { status: 404, headers: vec![("X-Error-Code", "RevisionNotFound".to_owned())], ..Reply::default() };
            }
        };
        let siblings: Vec<Value> = files.keys().map(|name| json!({"rfilename": name})).collect();
        let body = json!({"id": "org/tiny", "sha": commit, "siblings": siblings}).to_string().into_bytes();
        return Reply { status: 200, body, ..Reply::default() };
    }
    // What `resolve` of a small file may lead to: another address of the hub.
    if let Some(name) = path.strip_prefix("/api/resolve-cache/") {
        let file = &files[name];
        return Reply {
            status: 200,
            headers: vec![("ETag", format!("W/\"{}\"", etag(file)))],
            body: sent(name, file, mood),
            cut: None,
        };
    }
    let (_, rest) = path.split_once("/resolve/").unwrap();
    let (commit, name) = rest.split_once('/').unwrap();
    assert!(commit == COMMIT || commit == OLDER, "{path}");
    let Some(file) = files.get(name) else {
        return Reply { status: 404, headers: vec![("X-Error-Code", "EntryNotFound".to_owned())], ..Reply::default() };
    };
    let linked = |location: String| {
        vec![
            ("X-Repo-Commit", commit.to_owned()),
            ("X-Linked-Etag", format!("\"{}\"", etag(file))),
            ("X-Linked-Size", file.bytes.len().to_string()),
            ("Location", location),
            ("ETag", "\"that-of-the-redirect\"".to_owned()),
        ]
    };
    match name {
        _ if file.large => Reply { status: 302, headers: linked(format!("{store}/{}", etag(file))), ..Reply::default() },
        "config.json" => Reply { status: 307, headers: linked(format!("/api/resolve-cache/{name}")), ..Reply::default() },
        _ => {
            let headers = vec![("X-Repo-Commit", commit.to_owned()), ("ETag", format!("\"{}\"", etag(file)))];
            Reply { status: 200, headers, body: sent(name, file, mood), cut: None }
        }
    }
}

fn store_reply(request: &Request, files: &BTreeMap<String, Stored>, mood: Mood) -> Reply {
    let wanted = request.line.rsplit_once('/').unwrap().1;
    let (name, file) = files.iter().find(|(_, file)| etag(file) == wanted).unwrap();
    let body = sent(name, file, mood);
    let from = request.header("range").map(|range| range["bytes=".len()..].trim_end_matches('-').parse::<usize>().unwrap());
    match (mood, from) {
        (Mood::Breaking, None) => Reply { status: 200, cut: Some(body.len() / 2), body, ..Reply::default() },
        (Mood::Breaking, Some(_)) => Reply { status: 503, ..Reply::default() },
        (_, None) => Reply { status: 200, body, ..Reply::default() },
        (_, Some(from)) => {
            let range = format!("bytes {from}-{}/{}", body.len() - 1, body.len());
            Reply { status: 206, headers: vec![("Content-Range", range)], body: body[from..].to_vec(), cut: None }
        }
    }
}

fn sent(name: &str, file: &Stored, mood: Mood) -> Vec<u8> {
    let mut bytes = file.bytes.clone();
    if matches!(mood, Mood::Corrupting(corrupted) if corrupted == name) {
        bytes[0] ^= 1;
    }
    bytes
}

fn read_request(stream: &mut TcpStream, store: bool) -> Option<Request> {
    let mut lines = BufReader::new(&mut *stream).lines().map_while(Result::ok);
    let first = lines.next()?;
    let line = first.rsplit_once(' ')?.0.to_owned();
    let fields = lines.take_while(|line| !line.is_empty());
    let headers =
        fields.filter_map(|line| line.split_once(':').map(|(key, value)| (key.to_lowercase(), value.trim().to_owned())));
    let headers = headers.collect();
    Some(Request { store, line, headers })
}

fn write_reply(stream: &mut TcpStream, reply: &Reply, head: bool) -> std::io::Result<()> {
    write!(stream, "HTTP/1.1 {} Reply\r\nContent-Length: {}\r\nConnection: close\r\n", reply.status, reply.body.len())?;
    for (key, value) in &reply.headers {
        write!(stream, "{key}: {value}\r\n")?;
    }
    stream.write_all(b"\r\n")?;
    match head {
        true => Ok(()),
        false => stream.write_all(&reply.body[..reply.cut.unwrap_or(reply.body.len())]),
    }
}
