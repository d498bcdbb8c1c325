//! Tests scores from servers: the same numbers after every temporary fault, and the right message for each lasting one.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diagnose::table::{Column, TokenChunk, for_each_bounded, read_chunks};
use polars::prelude as pl;
use polars::prelude::{NamedFrom, SerReader};
use serde_json::Value;

use crate::served::{Ask, Fault, Manners, Server};
use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

fn workdir(rows: usize) -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        let answer = "the fox and the dog ".repeat(1 + i % 3);
        format!(r#"{{"messages":[{{"role":"user","content":"Question {i}?"}},{{"role":"assistant","content":"{i} {answer}"}}]}}"#)
    };
    let mut rows: Vec<String> = (0..rows).map(row).collect();
    // One with nothing to score, and one that cannot be read.
    rows.insert(rows.len() / 2, r#"{"messages":[{"role":"user","content":"nobody answers"}]}"#.to_owned());
    rows.push(r#"{"messages":"no list"}"#.to_owned());
    workdir.write("rows.jsonl", rows.join("\n"));
    workdir
}

fn arguments<'a>(server: &'a Server, out: &'a str) -> Vec<&'a str> {
    vec!["rows.jsonl", "--model", "tiny.gguf", "--server", &server.url, "--out", out]
}

/// Where a failure that does not pass is not waited for.
fn run(workdir: &Workdir, arguments: &[&str]) -> Ran {
    Ran::of(workdir.command(arguments).env("DIAGNOSE_SERVER_PATIENCE", "0.5").output().unwrap())
}

fn table(workdir: &Workdir, run: &str) -> PathBuf {
    workdir.path(run).join("tokens.parquet")
}

fn read(path: &Path) -> TokenChunk {
    let columns: Vec<Column> = Column::ALL.iter().map(|(column, ..)| *column).collect();
    read_chunks(&[path.to_owned()], &columns).next().unwrap().unwrap()
}

fn same_tables(workdir: &Workdir, runs: [&str; 2]) {
    for name in ["tokens.parquet", "rows.parquet", "summary.json"] {
        let [a, b] = runs.map(|run| std::fs::read(workdir.path(run).join(name)).unwrap());
        assert!(a == b, "{name} of {} and {} differ", runs[0], runs[1]);
    }
}

#[test]
fn servers_give_our_own_scores_and_bounds_that_hold() {
    let workdir = workdir(40);
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "own"]).ok();
    let own = read(&table(&workdir, "own"));
    for api in ["vllm", "sglang"] {
        let server = Server::start(&workdir.path("tiny.gguf"), Manners::of(api));
        let ran = run(&workdir, &arguments(&server, api)).ok();
        assert!(ran.stderr.contains("this program's own engine in f32 differ in ln p by 0.0000 nat"), "{}", ran.stderr);
        assert!(ran.stdout.contains("through a server, top 20: H within"), "{}", ran.stdout);
        let served = read(&table(&workdir, api));
        assert_eq!(
            (&served.row, &served.pos, &served.token_id, &served.begin, &served.end, &served.top_id),
            (&own.row, &own.pos, &own.token_id, &own.begin, &own.end, &own.top_id)
        );
        // The softmax over the same logits, in another order of its sums.
        let near = |a: &[f32], b: &[f32]| a.iter().zip(b).all(|(a, b)| (a - b).abs() < 2e-5);
        assert!(near(&served.logprob, &own.logprob) && near(&served.top_logprob, &own.top_logprob));
        assert!(near(&served.entropy_topk, &own.entropy_topk));
        let (mut i, mut exact) = (0, 0);
        for_each_bounded(&[table(&workdir, api)], |token| {
            let within = |lo: f32, hi: f32, truth: f32| lo - 2e-5 <= truth && truth <= hi + 2e-5;
            let bounds = &token.bounds;
            assert!(within(bounds.entropy.lo, bounds.entropy.hi, own.entropy[i]), "{bounds:?} {}", own.entropy[i]);
            assert!(within(bounds.tail.lo, bounds.tail.hi, own.tail[i]), "{bounds:?} {}", own.tail[i]);
            assert!(within(bounds.grad.lo, bounds.grad.hi, own.grad[i]), "{bounds:?} {}", own.grad[i]);
            assert!(within(bounds.varentropy.lo, bounds.varentropy.hi, own.varentropy[i]), "{bounds:?}");
            if own.rank[i] <= 20 {
                assert_eq!(token.rank, own.rank[i]);
                exact += 1;
            } else if api == "vllm" {
                assert_eq!(token.rank, own.rank[i]);
            }
            i += 1;
        })
        .unwrap();
        assert!(i == own.len() && exact > 0 && exact < i, "{exact} of {i}");

        let json = |name: &str| -> Value {
            serde_json::from_str(&std::fs::read_to_string(workdir.path(api).join(name)).unwrap()).unwrap()
        };
        let (summary, record) = (json("summary.json"), json("run.json"));
        assert_eq!(summary["bounded"]["tail_exact"], exact);
        let [least, most] = [0, 1].map(|i| summary["bounded"]["conflicts"][i].as_u64().unwrap());
        let conflicts = summary["overall"]["quadrants"]["confident_conflict"]["tokens"].as_u64().unwrap();
        assert!(least <= conflicts && conflicts <= most);
        assert_eq!((&record["server"]["api"], &record["dtype"]), (&api.into(), &"as served".into()));
        assert!(record["server"]["from_own"]["max"].as_f64().unwrap() < 1e-4);
        let report = std::fs::read_to_string(workdir.path(api).join("report.md")).unwrap();
        assert!(report.contains("## What is exact"), "{report}");
        // Sorting again needs no server.
        drop(server);
        run(&workdir, &[api, "--thresholds", "groups"]).ok();
        run(&workdir, &[api]).ok();
        assert_eq!(json("summary.json")["bounded"], summary["bounded"]);
    }
}

#[test]
fn failures_that_pass_lose_and_double_nothing() {
    let workdir = workdir(40);
    let well = Server::start(&workdir.path("tiny.gguf"), Manners::of("vllm"));
    run(&workdir, &arguments(&well, "well")).ok();
    // The checks before the run take the first five requests, and are not tried again.
    let moody = Server::start(
        &workdir.path("tiny.gguf"),
        Manners::with("vllm", |ask| match ask.number {
            0..6 => Fault::Nothing,
            n if ask.repeated && n % 2 == 0 => Fault::Nothing,
            n => [
                Fault::Dropped,
                Fault::Cut,
                Fault::Truncated,
                Fault::Status(429, r#"{"error": {"message": "too many"}}"#),
                Fault::Status(500, r#"{"error": {"message": "out of memory"}}"#),
                Fault::Status(503, "<html>starting</html>"),
                Fault::Slow(Duration::from_millis(60)),
                Fault::Nothing,
            ][n % 8],
        }),
    );
    let ran = Ran::of(workdir.command(&arguments(&moody, "moody")).output().unwrap());
    ran.ok();
    same_tables(&workdir, ["well", "moody"]);
    let record: Value = serde_json::from_str(&std::fs::read_to_string(workdir.path("moody/run.json")).unwrap()).unwrap();
    assert!(record["server"]["retries"].as_u64().unwrap() > 10, "{record}");
}

#[test]
fn each_fault_that_lasts_has_its_message() {
    let workdir = workdir(3);
    tiny_model::write_noised(&workdir.path("other.gguf"), 2.0);
    let check = |manners: Manners, model: &str, message: &str| {
        let server = Server::start(&workdir.path(model), manners);
        let ran = run(&workdir, &arguments(&server, "run"));
        assert_eq!(ran.code, Some(1), "{message}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(message), "expected {message}, found {}", ran.stderr);
        assert!(!workdir.path("run").join("tokens.parquet").exists());
    };
    let always = |api, fault| Manners::with(api, move |_| fault);
    for api in ["vllm", "sglang"] {
        let check = |fault, message| check(always(api, fault), "tiny.gguf", message);
        check(Fault::Missing, "entries are missing");
        check(Fault::Shifted, if api == "vllm" { "the entries are shifted by one" } else { "shifted" });
        check(Fault::Swapped, "does not name it");
        check(Fault::Raw, "expected log-probabilities, found");
        check(Fault::Cuts, if api == "vllm" { "cut at its beginning" } else { "the server read" });
        check(Fault::Truncated, "the reply was interrupted");
        check(
            Fault::Status(500, r#"{"error": {"message": "out of memory"}}"#),
            "the server failed (500 Internal Server Error): out of memory",
        );
        check(Fault::Dropped, "has dropped the connection");
        check(
            Fault::Status(400, r#"{"error": {"message": "Out of range float values are not JSON compliant"}}"#),
            "log-probabilities that are not numbers",
        );
        check(Fault::Status(404, r#"{"error": {"message": "The model `x` does not exist."}}"#), "The model `x` does not exist.");
    }
    // As a real server says it.
    let refused = |body, message| check(always("vllm", Fault::Status(400, body)), "tiny.gguf", message);
    refused(include_str!("fixtures/vllm/too_many.json"), "the server returns fewer log-probabilities than requested");
    refused(include_str!("fixtures/vllm/vocabulary.json"), "the server's model has fewer tokens than the tokenizer");
    refused(include_str!("fixtures/vllm/limit.json"), "the prompt is longer than the server accepts");
    refused(include_str!("fixtures/vllm/unknown.json"), "The model `nope` does not exist");
    check(always("vllm", Fault::Another), "tiny.gguf", "does not name it");
    check(always("vllm", Fault::Fewer(3)), "tiny.gguf", "expected the 20 most probable tokens at token 1, found 1");
    // What a prefix cache may do: the second answer to a prompt is another one.
    let stale = Manners::with("vllm", |ask| if ask.repeated { Fault::Stale } else { Fault::Nothing });
    check(stale, "tiny.gguf", "the server scores the same tokens differently when sent again");
    // Any other prompt that begins as the probe did.
    let stale = Manners::with("vllm", |ask| if ask.number == 3 { Fault::Stale } else { Fault::Nothing });
    check(stale, "tiny.gguf", "in a prompt with the same beginning");
    check(always("vllm", Fault::Stale), "tiny.gguf", "the server scores tokens differently than this program");
    check(Manners::of("vllm"), "other.gguf", "the server scores tokens differently than this program");
    check(Manners { texts_off_by: 1, ..Manners::of("vllm") }, "tiny.gguf", "the server's model has a different vocabulary");
    check(Manners { owner: "llamacpp", ..Manners::of("vllm") }, "tiny.gguf", "--model file.gguf");
    check(Manners { owner: "somebody", ..Manners::of("vllm") }, "tiny.gguf", "this one says that it is `somebody`");

    // After the checks, too: the row is not scored wrongly.
    for fault in [Fault::Missing, Fault::Swapped, Fault::Raw, Fault::Another] {
        let later = Manners::with("vllm", move |ask| if ask.number > 5 { fault } else { Fault::Nothing });
        let server = Server::start(&workdir.path("tiny.gguf"), later);
        let ran = run(&workdir, &arguments(&server, "later"));
        assert_eq!(ran.code, Some(1), "{fault:?}: {}", ran.stderr);
        assert!(!workdir.path("later").join("tokens.parquet").exists());
    }
}

#[test]
fn what_is_wrong_before_any_request_is_said_before_it() {
    let workdir = workdir(3);
    let short = Server::start(&workdir.path("tiny.gguf"), Manners { max_model_len: 64, ..Manners::of("vllm") });
    let usage = |more: &[&str], message: &str| {
        let ran = run(&workdir, &[&arguments(&short, "run"), more].concat());
        assert_eq!(ran.code, Some(2), "{}", ran.stderr);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
    };
    usage(&["--max-len", "64"], "--max-len 64 is more than the 63 tokens that the server accepts");
    usage(&["--dtype", "bf16"], "--dtype is for running the model here");
    usage(&["--in-context"], "the argument '--in-context' cannot be used with");
    usage(&["--top-logprobs", "5"], "--top-logprobs 5 is less than the 20");
    usage(&["--top-logprobs", "100000"], "--top-logprobs 100000 is more than the");
    usage(&["--served-model", "huge"], "the server serves no model `huge`, but tiny");
    usage(&["--server", "http://me:secret@127.0.0.1:1"], "has a name or a password before an `@`");
    // Without a length of its own a run is cut to what the server takes.
    run(&workdir, &arguments(&short, "cut")).ok();
    let record: Value = serde_json::from_str(&std::fs::read_to_string(workdir.path("cut/run.json")).unwrap()).unwrap();
    assert_eq!(record["max_len"], 63);
    assert!(short.asked().iter().all(|ids| ids.len() <= 63));
    // What only another engine is asked for is refused where there is none.
    let ran = run(&workdir, &["rows.jsonl", "--model", "tiny.gguf", "--top-logprobs", "40"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--server"), "{}", ran.stderr);
    let ran = workdir.command(&arguments(&short, "never")).env("DIAGNOSE_SERVER_PATIENCE", "-1").output().unwrap();
    let ran = Ran::of(ran);
    assert!(ran.code == Some(2) && ran.stderr.contains("DIAGNOSE_SERVER_PATIENCE is `-1`"), "{}", ran.stderr);
    let ran = run(&workdir, &["rows.jsonl", "--server", &short.url]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--server needs --model"), "{}", ran.stderr);
}

#[test]
fn a_key_opens_the_door_and_stands_nowhere() {
    const KEY: &str = "a-key-that-nobody-sees";
    let workdir = workdir(3);
    let server = Server::start(&workdir.path("tiny.gguf"), Manners { key: Some(KEY), ..Manners::of("vllm") });
    let ran = run(&workdir, &arguments(&server, "run"));
    assert!(ran.code == Some(1) && ran.stderr.contains("DIAGNOSE_SERVER_KEY"), "{}", ran.stderr);
    let with = |key: &str| Ran::of(workdir.command(&arguments(&server, "run")).env("DIAGNOSE_SERVER_KEY", key).output().unwrap());
    let wrong = with("another-key");
    assert!(wrong.stderr.contains("Check the key in") && !wrong.stderr.contains("another-key"), "{}", wrong.stderr);
    let ran = with(KEY).ok();
    assert!(!ran.stdout.contains(KEY) && !ran.stderr.contains(KEY));
    for name in ["run.json", "summary.json", "report.md", "tokens.parquet"] {
        let bytes = std::fs::read(workdir.path("run").join(name)).unwrap();
        assert!(!bytes.windows(KEY.len()).any(|window| window == KEY.as_bytes()), "{name}");
    }
}

/// Scores of rows that change during scoring belong to no run, so none is kept.
#[test]
fn data_that_change_under_way_are_noticed() {
    let workdir = workdir(40);
    let (waiting, waits_from) = Manners::waiting("vllm", 12);
    let server = Server::start(&workdir.path("tiny.gguf"), waiting);
    let mut client = workdir.command(&arguments(&server, "changed"));
    let client = client.stderr(std::process::Stdio::piped()).spawn().unwrap();
    let began = Instant::now();
    while server.asked().len() < 12 && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    let rows = std::fs::read_to_string(workdir.path("rows.jsonl")).unwrap();
    workdir.write("rows.jsonl", rows.replacen("Question", "Riddle", 1));
    waits_from.store(usize::MAX, Ordering::SeqCst);
    let ran = Ran::of(client.wait_with_output().unwrap());
    assert!(ran.code == Some(1) && ran.stderr.contains("the data file has changed since it was opened"), "{}", ran.stderr);
    assert!(!workdir.path("changed/parts").exists() && !workdir.path("changed/tokens.parquet").exists());
    workdir.write("rows.jsonl", rows);
    run(&workdir, &arguments(&server, "changed")).ok();
    run(&workdir, &arguments(&server, "one")).ok();
    same_tables(&workdir, ["changed", "one"]);
}

/// If another model replaces the first one, none of its scores are kept, and the run resumes with the first. One whose scores are too near is known
/// by its name.
#[test]
fn a_model_that_changes_under_way_is_noticed() {
    let workdir = workdir(40);
    let changes_at = Arc::new(AtomicUsize::new(25));
    let limit = changes_at.clone();
    let changing = move |ask: &Ask| if ask.number < limit.load(Ordering::SeqCst) { Fault::Nothing } else { Fault::Flatter };
    let server = Server::start(&workdir.path("tiny.gguf"), Manners::with("vllm", changing));
    let ran = run(&workdir, &arguments(&server, "changed"));
    assert!(ran.code == Some(1) && ran.stderr.contains("scores a text differently than at the beginning"), "{}", ran.stderr);
    changes_at.store(usize::MAX, Ordering::SeqCst);
    run(&workdir, &arguments(&server, "changed")).ok();
    run(&workdir, &arguments(&server, "one")).ok();
    same_tables(&workdir, ["changed", "one"]);

    let renames = |asked| if asked < 25 { "checkpoint-100" } else { "checkpoint-200" };
    let renamed = Server::start(&workdir.path("tiny.gguf"), Manners { root: Box::new(renames), ..Manners::of("vllm") });
    let ran = run(&workdir, &arguments(&renamed, "renamed"));
    let expected = "the server served checkpoint-100 at the beginning, and serves checkpoint-200 now";
    assert!(ran.code == Some(1) && ran.stderr.contains(expected), "{}", ran.stderr);
    assert!(!workdir.path("renamed/parts/rows-00000.parquet").exists() && !workdir.path("renamed/tokens.parquet").exists());
}

#[test]
fn several_servers_share_the_work_and_must_agree() {
    let workdir = workdir(40);
    let slow = Manners::with("vllm", |_| Fault::Slow(Duration::from_millis(5)));
    let [a, b] = [Manners::of("vllm"), slow].map(|manners| Server::start(&workdir.path("tiny.gguf"), manners));
    let both = [&arguments(&a, "both")[..], &["--server", &b.url, "--in-flight", "400"]].concat();
    run(&workdir, &both).ok();
    let (n_a, n_b) = (a.asked().len(), b.asked().len());
    assert!(n_a > 8 && n_b > 8 && n_a + n_b == 40 + 2 * 6 + 2, "{n_a} {n_b}");
    run(&workdir, &arguments(&a, "one")).ok();
    same_tables(&workdir, ["both", "one"]);

    tiny_model::write_noised(&workdir.path("other.gguf"), 2.0);
    let other = Server::start(&workdir.path("other.gguf"), Manners::of("vllm"));
    let ran = run(&workdir, &[&arguments(&a, "never")[..], &["--server", &other.url]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("this server scores a probe differently than"), "{}", ran.stderr);

    // A name alone may differ for good reasons.
    let renamed = Manners { root: Box::new(|_| "elsewhere/tiny"), ..Manners::of("vllm") };
    let renamed = Server::start(&workdir.path("tiny.gguf"), renamed);
    let ran = run(&workdir, &[&arguments(&a, "named")[..], &["--server", &renamed.url]].concat()).ok();
    assert!(ran.stderr.contains("The servers name different models, org/tiny ("), "{}", ran.stderr);
    same_tables(&workdir, ["named", "one"]);
}

/// Starts a client, waits until `server` has been asked `n_asked` times, kills the server, and returns how the client ended.
pub(crate) fn with_a_death(mut client: std::process::Command, server: &Server, waits_from: &AtomicUsize, n_asked: usize) -> Ran {
    client.env("DIAGNOSE_SERVER_PATIENCE", "1").stdout(std::process::Stdio::piped()).stderr(std::process::Stdio::piped());
    let client = client.spawn().unwrap();
    let began = Instant::now();
    while server.asked().len() < n_asked && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    waits_from.store(usize::MAX, Ordering::SeqCst);
    Ran::of(client.wait_with_output().unwrap())
}

/// What a dead server has answered since it was last found to be the same is asked of the others, as is all that it has not answered.
#[test]
fn of_several_servers_one_may_die() {
    let workdir = workdir(40);
    let model = workdir.path("tiny.gguf");
    let one = Server::start(&model, Manners::of("vllm"));
    run(&workdir, &arguments(&one, "one")).ok();
    // It dies with answers that nobody has kept yet: of one part, all of whose rows have to be there.
    let (waiting, waits_from) = Manners::waiting("vllm", 16);
    let slow = Manners::with("vllm", |_| Fault::Slow(Duration::from_millis(20)));
    let [well, dies] = [slow, waiting].map(|manners| Server::start(&model, manners));
    let both = [&arguments(&well, "both")[..], &["--server", &dies.url, "--in-flight", "400"]].concat();
    let ran = with_a_death(workdir.command(&both), &dies, &waits_from, 18).ok();
    assert_eq!(ran.stderr.matches("The other servers do its work").count(), 1, "{}", ran.stderr);
    assert!(ran.stderr.contains(&format!("{}: the server cannot be reached", dies.url)), "{}", ran.stderr);
    same_tables(&workdir, ["both", "one"]);
    // The six requests before are the checks.
    let n_rows = |server: &Server| one.asked()[6..].iter().filter(|ids| server.asked().contains(ids)).count();
    assert!(n_rows(&dies) > 5 && n_rows(&well) == one.asked().len() - 6, "{} {}", n_rows(&dies), n_rows(&well));

    // None is left.
    let (waiting, waits_from) = Manners::waiting("vllm", 16);
    let drops = Manners::with("vllm", |ask| if ask.number < 10 { Fault::Nothing } else { Fault::Dropped });
    let [dies, drops] = [waiting, drops].map(|manners| Server::start(&model, manners));
    let dead = [&arguments(&dies, "dead")[..], &["--server", &drops.url, "--in-flight", "400"]].concat();
    let ran = with_a_death(workdir.command(&dead), &dies, &waits_from, 18);
    assert!(
        ran.code == Some(1) && ran.stderr.contains("cannot be reached") && ran.stderr.contains("it resumes"),
        "{}",
        ran.stderr
    );
    // Without the dead one the command goes on.
    let ran = run(&workdir, &dead);
    assert!(ran.code == Some(1) && ran.stderr.contains("Or leave out this --server"), "{}", ran.stderr);
    run(&workdir, &arguments(&one, "dead")).ok();
    same_tables(&workdir, ["dead", "one"]);
}

#[test]
fn killed_client_and_server_and_run_again_gives_the_same_table() {
    // Of two parts and more.
    const ROWS: usize = 500;
    let workdir = workdir(ROWS);
    let model = workdir.path("tiny.gguf");
    let undisturbed = Server::start(&model, Manners::of("vllm"));
    run(&workdir, &arguments(&undisturbed, "undisturbed")).ok();

    // In the middle of the second part.
    let (waiting, waits_from) = Manners::waiting("vllm", 420);
    let server = Server::start(&model, waiting);
    let has_part = || workdir.path("killed").join("parts/rows-00000.parquet").exists();
    // The client, as soon as it has a part; then the server under the next client.
    let mut client = workdir.command(&arguments(&server, "killed")).spawn().unwrap();
    let began = Instant::now();
    while !has_part() && began.elapsed() < Duration::from_secs(60) {
        std::thread::sleep(Duration::from_millis(5));
    }
    client.kill().unwrap();
    client.wait().unwrap();
    assert!(!workdir.path("killed").join("tokens.parquet").exists(), "it was done before it was killed");
    let asked_before = server.asked().len();
    assert!(asked_before < ROWS);

    waits_from.store(asked_before + 40, Ordering::SeqCst);
    let mut client = workdir.command(&arguments(&server, "killed"));
    client.env("DIAGNOSE_SERVER_PATIENCE", "0.5").stderr(std::process::Stdio::piped());
    let client = client.spawn().unwrap();
    while server.asked().len() < asked_before + 20 {
        std::thread::sleep(Duration::from_millis(5));
    }
    server.kill();
    waits_from.store(usize::MAX, Ordering::SeqCst);
    let ran = Ran::of(client.wait_with_output().unwrap());
    assert!(ran.code == Some(1) && ran.stderr.contains("it resumes"), "{}", ran.stderr);

    // Another model in its place is refused.
    tiny_model::write_noised(&workdir.path("other.gguf"), 2.0);
    let other = Server::start(&workdir.path("other.gguf"), Manners::of("vllm"));
    let of_other = ["rows.jsonl", "--model", "other.gguf", "--server", &other.url, "--out", "killed"];
    let says_other_things = "the servers score the data's first tokens differently than at the start of this run";
    let ran = run(&workdir, &of_other);
    assert!(ran.code == Some(1) && ran.stderr.contains(says_other_things), "{}", ran.stderr);

    let server = Server::start(&model, Manners::of("vllm"));
    run(&workdir, &arguments(&server, "killed")).ok();
    assert!(server.asked().len() < ROWS, "nothing was kept");
    // Nor is the finished run taken for that of another model which is served under the same name.
    let ran = run(&workdir, &of_other);
    assert!(ran.code == Some(1) && ran.stderr.contains(says_other_things), "{}", ran.stderr);
    run(&workdir, &arguments(&server, "killed")).ok();
    same_tables(&workdir, ["undisturbed", "killed"]);
}

/// What the program of --emit leaves, in two files, made of what the server says.
fn write_answers(server: &Server, folder: &Path) {
    let file = std::fs::File::open(folder.join("sequences.parquet")).unwrap();
    let sent = pl::ParquetReader::new(file).finish().unwrap();
    let list = |name: &str, i: usize| -> Vec<u32> {
        sent.column(name).unwrap().list().unwrap().get_as_series(i).unwrap().u32().unwrap().into_no_null_iter().collect()
    };
    let rows: Vec<u32> = sent.column("row").unwrap().u32().unwrap().into_no_null_iter().collect();
    std::fs::create_dir(folder.join("answers")).unwrap();
    for (number, part) in (0..rows.len()).collect::<Vec<_>>().chunks(rows.len().div_ceil(2)).enumerate() {
        let mut numbers: [Vec<u32>; 4] = Default::default();
        let (mut logprobs, mut top_ids, mut top_logprobs) = (Vec::new(), Vec::new(), Vec::new());
        for &i in part {
            let (ids, targets) = (list("ids", i), list("targets", i));
            let told = server.told(&ids);
            for pos in targets {
                let (id, logprob, rank, all) = &told[pos as usize - 1];
                for (column, value) in numbers.iter_mut().zip([rows[i], pos, *id, *rank as u32]) {
                    column.push(value);
                }
                logprobs.push(*logprob);
                top_ids.push(pl::Series::new("".into(), all[..20].iter().map(|(id, _)| *id).collect::<Vec<u32>>()));
                top_logprobs
                    .push(pl::Series::new("".into(), all[..20].iter().map(|(_, logprob)| *logprob).collect::<Vec<f32>>()));
            }
        }
        let [row, pos, token_id, rank] = numbers;
        let mut frame = pl::df!("row" => row, "pos" => pos, "token_id" => token_id, "logprob" => logprobs, "rank" => rank, "top_ids" => top_ids, "top_logprobs" => top_logprobs).unwrap();
        let file = std::fs::File::create(folder.join(format!("answers/{number:05}.parquet"))).unwrap();
        pl::ParquetWriter::new(file).finish(&mut frame).unwrap();
    }
}

#[test]
fn answers_that_another_program_has_left_are_those_of_a_server() {
    let workdir = workdir(40);
    let server = Server::start(&workdir.path("tiny.gguf"), Manners::of("vllm"));
    run(&workdir, &arguments(&server, "served")).ok();
    run(&workdir, &["rows.jsonl", "--model", "tiny.gguf", "--emit", "vllm-offline", "--out", "offline"]).ok();
    write_answers(&server, &workdir.path("offline"));
    let answered = |out: &'static str| ["rows.jsonl", "--model", "tiny.gguf", "--answers", "offline", "--out", out];
    let ran = run(&workdir, &answered("run")).ok();
    assert!(ran.stderr.contains("this program's own engine in f32 differ in ln p by 0.0000 nat"), "{}", ran.stderr);
    let all = |run: &str| {
        let mut bounds = Vec::new();
        for_each_bounded(&[table(&workdir, run)], |token| bounds.push((token.rank, token.bounds))).unwrap();
        (read(&table(&workdir, run)), bounds)
    };
    assert!(all("run") == all("served"), "the way does not change what is said");
    // Once more it is reported alone; and shards of the same answers are the run.
    run(&workdir, &answered("run")).ok();
    for (shard, out) in [("0/2", "off-shard-0-of-2"), ("1/2", "off-shard-1-of-2")] {
        run(&workdir, &[&answered(out)[..], &["--shard", shard]].concat()).ok();
    }
    run(&workdir, &["off-shard-*"]).ok();
    same_tables(&workdir, ["run", "off"]);
    // Other prompts, and prompts that the run of before was not about.
    let ran = run(&workdir, &[&answered("other")[..], &["--system", "Be kind."]].concat());
    assert!(ran.code == Some(1) && ran.stderr.contains("the answers belong to other sequences"), "{}", ran.stderr);
    let record: Value = serde_json::from_slice(&std::fs::read(workdir.path("run/run.json")).unwrap()).unwrap();
    assert_eq!(record["server"]["sent_sha256"].as_str().map(str::len), Some(64));
    let sent = workdir.path("offline/sequences.parquet");
    let bytes = std::fs::read(&sent).unwrap();
    run(&workdir, &["rows.jsonl", "--model", "tiny.gguf", "--limit", "30", "--emit", "vllm-offline", "--out", "fewer", "--json"])
        .ok();
    std::fs::copy(workdir.path("fewer/sequences.parquet"), &sent).unwrap();
    let ran = run(&workdir, &answered("run"));
    assert!(ran.code == Some(1) && ran.stderr.contains("the answered prompts differ"), "{}", ran.stderr);
    // Answers to some of them: the missing ones are named.
    std::fs::write(&sent, bytes).unwrap();
    std::fs::remove_file(workdir.path("offline/answers/00001.parquet")).unwrap();
    let ran = run(&workdir, &answered("half"));
    assert!(ran.code == Some(1) && ran.stderr.contains("the answers end before row"), "{}", ran.stderr);
    // A prompt as long as the model takes leaves no room for an answer.
    let long = ["rows.jsonl", "--model", "tiny.gguf", "--max-len", "100000", "--emit", "vllm-offline", "--out", "long"];
    let ran = run(&workdir, &long);
    assert!(ran.code == Some(2) && ran.stderr.contains("leaves no room for the token"), "{}", ran.stderr);
}

#[test]
fn shards_of_servers_with_other_weights_are_not_joined() {
    let workdir = workdir(60);
    tiny_model::write_noised(&workdir.path("other.gguf"), 2.0);
    let [one, other] = ["tiny.gguf", "other.gguf"].map(|model| Server::start(&workdir.path(model), Manners::of("vllm")));
    // The same tokenizer, served under the same name: of the weights nothing is known but what the servers say.
    let score = |model: &str, server: &Server, shard: &str, out: &str| {
        run(&workdir, &["rows.jsonl", "--model", model, "--server", &server.url, "--shard", shard, "--out", out]).ok();
    };
    score("tiny.gguf", &one, "0/2", "a-shard-0-of-2");
    score("tiny.gguf", &one, "1/2", "a-shard-1-of-2");
    score("other.gguf", &other, "1/2", "b-shard-1-of-2");
    let ran = run(&workdir, &["a-shard-0-of-2", "b-shard-1-of-2"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("ran different models"), "{}", ran.stderr);
    run(&workdir, &["a-shard-0-of-2", "a-shard-1-of-2"]).ok();
}

#[test]
fn what_vllm_is_to_score_without_a_server_is_written_with_its_program() {
    let workdir = workdir(5);
    let arguments = ["rows.jsonl", "--model", "tiny.gguf", "--emit", "vllm-offline", "--out", "offline"];
    let ran = run(&workdir, &arguments).ok();
    assert!(ran.stdout.contains("5 sequences for offline/vllm_offline.py"), "{}", ran.stdout);
    for part in ["1 of 7 rows was refused and skipped", "`messages`: expected a list", "1 of 6 rows has no supervised token"] {
        assert!(ran.stderr.contains(part), "expected {part} in\n{}", ran.stderr);
    }
    assert!(workdir.path("offline/sequences.parquet").metadata().unwrap().len() > 0);
    let program = std::fs::read_to_string(workdir.path("offline/vllm_offline.py")).unwrap();
    assert!(program.contains("TOP_K = 20\n") && program.lines().count() < 100, "{program}");
    let strict = ["rows.jsonl", "--model", "tiny.gguf", "--emit", "vllm-offline", "--out", "strict", "--strict"];
    let ran = run(&workdir, &strict);
    assert!(ran.code == Some(1) && ran.stderr.contains("`messages`: expected a list"), "{}", ran.stderr);
    let more_than_all = run(&workdir, &[&arguments[..], &["--top-logprobs", "100000"]].concat());
    assert!(more_than_all.code == Some(2), "{}", more_than_all.stderr);
    // Before the program has run there is nothing to read.
    let ran = run(&workdir, &["rows.jsonl", "--model", "tiny.gguf", "--answers", "offline", "--out", "run"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("cannot list the folder of the answers"), "{}", ran.stderr);
    std::fs::create_dir(workdir.path("offline/answers")).unwrap();
    let ran = run(&workdir, &arguments);
    assert!(ran.code == Some(1) && ran.stderr.contains("the folder already holds answers"), "{}", ran.stderr);
}
