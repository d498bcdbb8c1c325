//! Tests `diagnose eval` and `diagnose rollout` through servers: the same numbers and answers as our own after every temporary fault, and the right
//! message for each lasting one.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use diagnose::eval::metrics::Sample;
use serde_json::{Value, json};

use crate::remote::with_a_death;
use crate::served::{Ask, Fault, Manners, Server};
use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

/// Requests of the checks before a run: of an answer, too, where one is to be written.
const CHECKS: usize = 8;

fn workdir(rows: usize) -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let lines = |row: &dyn Fn(usize) -> Value| (0..rows).map(|i| row(i).to_string()).collect::<Vec<_>>().join("\n");
    let long = |i: usize| "which is long ".repeat(i % 5);
    let choice = |i: usize| json!({"context": format!("Question {i}, {}", long(i)), "choices": ["the fox", "a dog", "it"], "answer": i % 3});
    workdir.write("c.jsonl", lines(&choice));
    workdir.write("t.txt", "the fox and the dog are here. ".repeat(rows));
    let row = |i: usize| {
        let turns = [
            json!({"role": "user", "content": format!("{i}, {}?", long(i))}),
            json!({"role": "assistant", "content": "the fox"}),
        ];
        json!({ "messages": turns })
    };
    workdir.write("m.jsonl", lines(&row));
    let letters: Vec<String> = ('!'..='~').map(String::from).collect();
    let letter = |i: usize| json!({"context": format!("{i}, {}?", long(i)), "choices": letters, "answer": 0});
    workdir.write("letters.jsonl", (0..12).map(|i| letter(i).to_string()).collect::<Vec<_>>().join("\n"));
    let question = |i: usize| json!({"id": format!("q{i}"), "prompt": format!("Question {i}, {}?", long(i)), "answers": ["e", "t"], "match": "contains"});
    workdir.write("q.jsonl", lines(&question));
    workdir
}

fn json_of(workdir: &Workdir, path: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(workdir.path(path)).unwrap()).unwrap()
}

fn samples(workdir: &Workdir, out: &str) -> HashMap<String, Vec<Sample>> {
    let mut samples = diagnose::eval::samples::read(&workdir.path(out).join("samples.parquet")).unwrap();
    let answers = workdir.path(out).join("answers.parquet");
    if answers.exists() {
        samples.extend(diagnose::eval::answers::read(&answers).unwrap());
    }
    samples
}

fn run(workdir: &Workdir, arguments: &[&str]) -> Ran {
    // A failure that does not pass is not waited for.
    Ran::of(workdir.command(arguments).env("DIAGNOSE_SERVER_PATIENCE", "0.5").output().unwrap())
}

const EVAL: [&str; 7] = ["eval", "--model", "tiny.gguf", "--max-new-tokens", "30", "--tasks", "c.jsonl,t.txt,m.jsonl,q.jsonl"];
const LETTERS: [&str; 6] = ["eval", "--model", "tiny.gguf", "--apply-chat-template", "--tasks", "letters.jsonl"];
const ROLLOUT: [&str; 6] = ["rollout", "m.jsonl", "--model", "tiny.gguf", "--max-new-tokens", "40"];

fn through<'a>(command: &[&'a str], server: &'a Server, out: &'a str, more: &[&'a str]) -> Vec<&'a str> {
    [command, &["--server", &server.url, "--out", out], more].concat()
}

/// Answers, ends, verdicts and first choices to the letter; ln p but for the order of its sums.
#[track_caller]
fn assert_same(own: &HashMap<String, Vec<Sample>>, served: &HashMap<String, Vec<Sample>>) {
    for (task, own) in own {
        assert_eq!(served[task].len(), own.len());
        for (served, own) in served[task].iter().zip(own) {
            assert_eq!((&served.id, &served.draws, &served.prompt_sha256), (&own.id, &own.draws, &own.prompt_sha256));
            assert_eq!(served.choices.len(), own.choices.len());
            for (served, own) in served.choices.iter().zip(&own.choices) {
                assert_eq!((served.greedy, served.tokens), (own.greedy, own.tokens));
                assert!((served.logprob - own.logprob).abs() < 2e-5 * f64::from(own.tokens), "{task} {served:?} {own:?}");
            }
        }
    }
}

#[test]
fn servers_give_our_own_scores_and_answers() {
    let workdir = workdir(30);
    workdir.run(&[&EVAL[..], &["--out", "own"]].concat()).ok();
    let own = samples(&workdir, "own");
    workdir.run(&[&LETTERS[..], &["--out", "own-letters"]].concat()).ok();
    let letters = samples(&workdir, "own-letters");
    for api in ["vllm", "sglang"] {
        let server = Server::start(&workdir.path("tiny.gguf"), Manners::of(api));
        let ran = run(&workdir, &through(&EVAL, &server, api, &[])).ok();
        assert!(ran.stderr.contains("this program's own engine in f32 differ in ln p by 0.0000 nat"), "{}", ran.stderr);
        let served = samples(&workdir, api);
        assert_eq!(served.len(), 4);
        assert_same(&own, &served);
        // Of one token each, behind a chat template.
        let out = format!("{api}-letters");
        run(&workdir, &through(&LETTERS, &server, &out, &[])).ok();
        let served = samples(&workdir, &out);
        assert_same(&letters, &served);
        let scores = json_of(&workdir, &format!("{api}/scores.json"));
        let engine = if api == "vllm" { "vllm 0.32.0" } else { "sglang" };
        assert_eq!(
            [&scores["device"], &scores["dtype"], &scores["kernels"], &scores["server"]["api"], &scores["server"]["model"]],
            [engine, "as served", "as served", api, "tiny"]
        );
        let diff = workdir.run(&["diff", "own", api, "--json"]).ok().json();
        assert_eq!(diff["engines"], json!(["this program in f32", format!("{engine} (a server)")]));
        let refused = workdir.run(&["diff", "own", api, "--kl"]);
        let says_why = refused.stderr.contains("a server ran a model, whose weights are not known here");
        assert!(refused.code == Some(2) && says_why, "{}", refused.stderr);
        let shown = workdir.run(&["diff", "own", api]).ok().stdout;
        assert!(shown.contains("different engines, which may differ by themselves: this program in f32 before"), "{shown}");

        // What is done is not done again, by any server of the model; another model in its place is refused.
        drop(server);
        let again = Server::start(&workdir.path("tiny.gguf"), Manners::of(api));
        run(&workdir, &through(&EVAL, &again, api, &[])).ok();
        assert!(again.asked().len() <= CHECKS, "{}", again.asked().len());
        tiny_model::write_noised(&workdir.path("other.gguf"), 2.0);
        let other = Server::start(&workdir.path("other.gguf"), Manners::of(api));
        let mut of_other = through(&EVAL, &other, api, &[]);
        of_other[2] = "other.gguf";
        let ran = run(&workdir, &of_other);
        assert!(
            ran.code == Some(1) && ran.stderr.contains("score a text differently than when this folder was started"),
            "{}",
            ran.stderr
        );
    }
    // A penalty is sent on; SGLang's is another one.
    const PENALISED: [&str; 9] =
        ["eval", "--model", "tiny.gguf", "--tasks", "q.jsonl", "--max-new-tokens", "30", "--repetition-penalty", "1.3"];
    workdir.run(&[&PENALISED[..], &["--out", "own-penalised"]].concat()).ok();
    let server = Server::start(&workdir.path("tiny.gguf"), Manners::of("vllm"));
    run(&workdir, &through(&PENALISED, &server, "vllm-penalised", &[])).ok();
    let penalised = samples(&workdir, "own-penalised");
    assert_same(&penalised, &samples(&workdir, "vllm-penalised"));
    let draws = |samples: &HashMap<String, Vec<Sample>>| samples["q"].iter().map(|one| one.draws.clone()).collect::<Vec<_>>();
    assert_ne!(draws(&penalised), draws(&own));
    let server = Server::start(&workdir.path("tiny.gguf"), Manners::of("sglang"));
    let ran = run(&workdir, &through(&PENALISED, &server, "sglang-penalised", &[]));
    assert!(ran.code == Some(2) && ran.stderr.contains("some versions of SGLang apply it to the tokens"), "{}", ran.stderr);
    // Nor is the folder of one engine gone on with by the other.
    let server = Server::start(&workdir.path("tiny.gguf"), Manners::of("vllm"));
    let ran = run(&workdir, &through(&EVAL, &server, "own", &[]));
    assert!(ran.code == Some(1) && ran.stderr.contains("the folder holds the scores of another evaluation"), "{}", ran.stderr);
}

#[test]
fn rollouts_of_servers_are_rows_with_the_ids_that_were_drawn() {
    let workdir = workdir(30);
    let rows = |out: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(workdir.path(out).join("rollouts.jsonl")).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    };
    // Stop strings are cut by this program, whatever the server makes of them.
    let greedy = ["--temperature", "0", "--stop", "e"];
    workdir.run(&[&ROLLOUT[..], &["--out", "own"], &greedy].concat()).ok();
    for api in ["vllm", "sglang"] {
        let server = Server::start(&workdir.path("tiny.gguf"), Manners::of(api));
        run(&workdir, &through(&ROLLOUT, &server, api, &greedy)).ok();
        for (served, own) in rows(api).iter().zip(rows("own")) {
            assert_eq!(served["messages"], own["messages"]);
            assert_eq!(
                ["ids", "ended", "prompt"].map(|key| &served["rollout"][key]),
                ["ids", "ended", "prompt"].map(|key| &own["rollout"][key])
            );
            assert_eq!(served["rollout"]["dtype"], "as served");
        }
        let seeing = Server::start(&workdir.path("tiny.gguf"), Manners::with(api, |_| Fault::FalseStop));
        let out = format!("{api}-seeing");
        run(&workdir, &through(&ROLLOUT, &seeing, &out, &greedy)).ok();
        assert_eq!(rows(&out), rows(api), "a stop string that only the server has seen ends no answer");
        // By the seeds of rows and draws, so that it can be repeated.
        let drawn = ["--n", "2", "--top-k", "50", "--min-p", "0.001"];
        let names = [format!("{api}-a"), format!("{api}-b")];
        for name in &names {
            let shown = run(&workdir, &through(&ROLLOUT, &server, name, &drawn)).ok().stdout;
            assert!(shown.contains(&format!("60 answers to 30 prompts with tiny by {api}")), "{shown}");
        }
        let [a, b] = names.each_ref().map(|name| rows(name));
        assert!(a == b && a.len() == 60 && a[0]["rollout"]["ids"] != a[1]["rollout"]["ids"]);
        let record = json_of(&workdir, &format!("{api}-a/run.json"));
        assert_eq!([&record["server"]["api"], &record["dtype"]], [api, "as served"]);
        // A finished folder is none of another model's, either.
        tiny_model::write_noised(&workdir.path("other.gguf"), 2.0);
        let other = Server::start(&workdir.path("other.gguf"), Manners::of(api));
        let mut of_other = through(&ROLLOUT, &other, &names[0], &drawn);
        of_other[3] = "other.gguf";
        let ran = run(&workdir, &of_other);
        assert!(ran.code == Some(1) && ran.stderr.contains("score a text differently"), "{}", ran.stderr);
    }
    // Scoring finds the drawn ids in the rows, and does not take what it cannot know for the model's own.
    let command = ["vllm-a/rollouts.jsonl", "--model", "tiny.gguf", "--out", "scores", "--no-view", "--json"];
    let report = workdir.run(&command).ok().json();
    assert_eq!(report["on_policy"]["rows"], 60);
    assert!(report["on_policy"]["why_not"].as_str().unwrap().contains("not known to be drawn by this very model"), "{report}");
}

#[test]
fn failures_that_pass_lose_and_double_nothing() {
    let workdir = workdir(40);
    let moody = |ask: &Ask| match ask.number {
        0..CHECKS => Fault::Nothing,
        n => [
            Fault::Dropped,
            Fault::Nothing,
            Fault::Cut,
            Fault::Truncated,
            Fault::Nothing,
            Fault::Status(429, r#"{"error": {"message": "too many"}}"#),
            Fault::Status(500, r#"{"error": {"message": "out of memory"}}"#),
            Fault::Nothing,
            if ask.writes { Fault::Aborted } else { Fault::Nothing },
            Fault::Slow(Duration::from_millis(30)),
            Fault::Nothing,
        ][n % 11],
    };
    let drawn = ["--temperature", "1", "--repeats", "2"];
    for api in ["vllm", "sglang"] {
        let well = Server::start(&workdir.path("tiny.gguf"), Manners::of(api));
        let moody = || Server::start(&workdir.path("tiny.gguf"), Manners::with(api, moody));
        let [eval_well, eval_moody, well_out, moody_out] = ["ew", "em", "rw", "rm"].map(|name| format!("{name}-{api}"));
        run(&workdir, &through(&EVAL, &well, &eval_well, &drawn)).ok();
        let long = |arguments: &[&str]| Ran::of(workdir.command(arguments).output().unwrap());
        long(&through(&EVAL, &moody(), &eval_moody, &drawn)).ok();
        assert_eq!(samples(&workdir, &eval_well), samples(&workdir, &eval_moody));
        run(&workdir, &through(&ROLLOUT, &well, &well_out, &["--n", "2"])).ok();
        long(&through(&ROLLOUT, &moody(), &moody_out, &["--n", "2"])).ok();
        let [a, b] = [&well_out, &moody_out].map(|out| std::fs::read(workdir.path(out).join("rollouts.jsonl")).unwrap());
        assert!(a == b, "the rollouts differ");
    }
}

#[test]
fn each_fault_that_lasts_has_its_message() {
    let workdir = workdir(1);
    let written = ["eval", "--model", "tiny.gguf", "--max-new-tokens", "30", "--tasks", "q.jsonl"];
    let scored = ["eval", "--model", "tiny.gguf", "--tasks", "c.jsonl"];
    let check = |api: &'static str, command: &[&str], number: usize, fault: Fault, message: &str| {
        let manners = Manners::with(api, move |ask| if ask.number >= number { fault } else { Fault::Nothing });
        let server = Server::start(&workdir.path("tiny.gguf"), manners);
        let out = tempfile::tempdir().unwrap();
        let ran = run(&workdir, &through(command, &server, out.path().to_str().unwrap(), &[]));
        assert_eq!(ran.code, Some(1), "{fault:?}: {}{}", ran.stdout, ran.stderr);
        assert!(ran.stderr.contains(message), "{fault:?}: expected {message}, found {}", ran.stderr);
        assert!(!["scores.json", "rollouts.jsonl"].iter().any(|name| out.path().join(name).exists()));
    };
    for api in ["vllm", "sglang"] {
        // In the run, behind the checks.
        let n_checks = if api == "vllm" { CHECKS } else { CHECKS - 1 };
        let in_run = |command: &[&str], fault, message| check(api, command, n_checks, fault, message);
        in_run(&ROLLOUT, Fault::NoIds, "the server returns no token ids for its answer");
        in_run(&ROLLOUT, Fault::Aborted, "the server aborted the request");
        for (fault, message) in [
            (Fault::NoIds, "the server returns no token ids for its answer"),
            (Fault::Uncounted, "tokens in its answer, but returned"),
            (Fault::Short, "the server ended an answer after 1 token, but 30 were requested"),
            (Fault::EndsElsewhere, "the server ended an answer with token 1 ("),
            (Fault::Cuts, "the server read "),
            (Fault::Truncated, "the reply was interrupted"),
            (Fault::Dropped, "has dropped the connection"),
            (Fault::Status(429, "{}"), "the server is overloaded (429"),
            (
                Fault::Status(500, r#"{"error": {"message": "out of memory"}}"#),
                "the server failed (500 Internal Server Error): out of memory",
            ),
            (Fault::Status(404, r#"{"error": {"message": "The model `x` does not exist."}}"#), "The model `x` does not exist."),
        ] {
            in_run(&written, fault, message);
        }
        let check = |fault, message| check(api, &scored, n_checks - 2, fault, message);
        check(Fault::Missing, "entries are missing");
        check(Fault::Swapped, "does not name it");
        check(Fault::Raw, "expected log-probabilities, found");
    }
    check("vllm", &scored, CHECKS - 2, Fault::Another, "does not name it");
    // In the checks: what is written is not what is said to be the most probable.
    let altered = |ask: &Ask| if ask.writes { Fault::Altered } else { Fault::Nothing };
    let server = Server::start(&workdir.path("tiny.gguf"), Manners::with("vllm", altered));
    let ran = run(&workdir, &through(&ROLLOUT, &server, "altered", &[]));
    assert!(
        ran.code == Some(1) && ran.stderr.contains("the server was asked for the most probable tokens and wrote"),
        "{}",
        ran.stderr
    );
    // Of log-likelihoods alone no answer is asked for.
    run(&workdir, &through(&scored, &server, "scored", &[])).ok();
}

/// The weights are where the servers are.
#[test]
fn answers_of_servers_need_no_weights_here() {
    let workdir = workdir(3);
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    let mut config: Value = serde_json::from_slice(&std::fs::read(fixture.join("config.json")).unwrap()).unwrap();
    config["max_position_embeddings"] = 4096.into();
    for (folder, names) in [("bare", &["tokenizer.json"][..]), ("whole", &["tokenizer.json", "model.safetensors"])] {
        std::fs::create_dir(workdir.path(folder)).unwrap();
        workdir.write(&format!("{folder}/config.json"), config.to_string());
        for name in names {
            std::fs::copy(fixture.join(name), workdir.path(folder).join(name)).unwrap();
        }
    }
    workdir.write("bare/generation_config.json", r#"{"eos_token_id": [7, 9]}"#);
    workdir.write("p.jsonl", r#"{"prompt": "Question", "completion": "e"}"#);
    let server = Server::start(&workdir.path("whole"), Manners::of("vllm"));
    let eval = ["eval", "--model", "bare", "--tasks", "q.jsonl", "--max-new-tokens", "30"];
    run(&workdir, &through(&eval, &server, "eval", &[])).ok();
    let ends = json_of(&workdir, "eval/scores.json")["tasks"]["q"]["writing"]["ends"].clone();
    assert!([7, 9].iter().all(|id| ends.as_array().unwrap().contains(&json!(id))), "{ends}");
    let rollout = ["rollout", "p.jsonl", "--model", "bare", "--max-new-tokens", "30"];
    run(&workdir, &through(&rollout, &server, "own", &[])).ok();
}

#[test]
fn what_is_wrong_before_any_request_is_said_before_it() {
    let workdir = workdir(3);
    let server = Server::start(&workdir.path("tiny.gguf"), Manners { max_model_len: 100, ..Manners::of("vllm") });
    let usage = |command: &[&str], more: &[&str], message: &str| {
        let ran = run(&workdir, &through(command, &server, "never", more));
        assert_eq!(ran.code, Some(2), "{more:?}: {}", ran.stderr);
        assert!(ran.stderr.contains(message), "{}", ran.stderr);
    };
    for command in [&EVAL[..], &ROLLOUT] {
        usage(command, &["--dtype", "bf16"], "--dtype is for running the model here");
        usage(command, &["--temperature", "0.005"], "vLLM replaces lower values by 0.01");
        usage(command, &["--temperature", "1", "--top-p", "0.9", "--min-p", "0.1"], "vLLM applies --min-p first");
        usage(command, &["--served-model", "huge"], "the server serves no model `huge`, but tiny");
        usage(command, &["--in-flight", "0"], "--in-flight 0 sends nothing");
        usage(command, &["--batch", "4"], "--batch");
    }
    usage(&EVAL, &["--max-len", "99"], "--max-len 99 is more than the 98 tokens that the server accepts: two tokens below");
    usage(&EVAL, &["--device", "cpu"], "--device is for running the model here");
    usage(&ROLLOUT, &["--max-len", "101"], "--max-len 101 is more than the 100 tokens that the server accepts: its limit");
    let ran = run(&workdir, &["eval", "--tasks", "c.jsonl", "--server", &server.url]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--server needs --model"), "{}", ran.stderr);
    // Without a length of its own a run keeps to what the server takes.
    run(&workdir, &through(&EVAL, &server, "eval", &[])).ok();
    run(&workdir, &through(&ROLLOUT, &server, "rollout", &[])).ok();
    assert!(server.asked().iter().all(|ids| ids.len() <= 99));
    assert_eq!([&json_of(&workdir, "eval/scores.json")["max_len"], &json_of(&workdir, "rollout/run.json")["max_len"]], [98, 100]);
}

/// Requests, but those by which it is found out whether the model is the same still: they come as often as answers do.
fn work(server: &Server) -> usize {
    let asked = server.asked();
    asked.iter().filter(|ids| **ids != asked[0]).count()
}

/// Another model replaces the first one and the client is killed before it notices: none of the other's answers are kept.
#[test]
fn what_another_model_has_said_does_not_outlive_a_client_that_is_killed() {
    let workdir = workdir(12);
    let scored = ["eval", "--model", "tiny.gguf", "--tasks", "c.jsonl"];
    for (command, more, n_checks, n_asked) in [(&ROLLOUT[..], &["--n", "2"][..], CHECKS, 24), (&scored, &[], CHECKS - 2, 36)] {
        let name = command[0];
        let outs = ["first", "killed"].map(|what| format!("{name}-{what}"));
        let first = Server::start(&workdir.path("tiny.gguf"), Manners::of("vllm"));
        run(&workdir, &through(command, &first, &outs[0], more)).ok();

        let changes_at = Arc::new(AtomicUsize::new(n_checks + 10));
        let limit = changes_at.clone();
        let changing = move |ask: &Ask| match ask {
            ask if ask.number < limit.load(Ordering::SeqCst) => Fault::Nothing,
            ask if ask.writes => Fault::Altered,
            // Whether it is another one it does not say before the client is killed.
            ask if ask.fixed => Fault::Slow(Duration::from_secs(120)),
            _ => Fault::Flatter,
        };
        let server = Server::start(&workdir.path("tiny.gguf"), Manners::with("vllm", changing));
        let arguments = through(command, &server, &outs[1], more);
        let mut client = workdir.command(&arguments).spawn().unwrap();
        let began = Instant::now();
        while server.asked().len() <= n_checks + n_asked && began.elapsed() < Duration::from_secs(60) {
            std::thread::sleep(Duration::from_millis(5));
        }
        client.kill().unwrap();
        client.wait().unwrap();
        assert!(server.asked().len() > n_checks + n_asked, "all was asked for, and once whether the model is the same");
        changes_at.store(usize::MAX, Ordering::SeqCst);
        run(&workdir, &arguments).ok();
        match name {
            "eval" => assert_eq!(samples(&workdir, &outs[0]), samples(&workdir, &outs[1])),
            _ => {
                let [a, b] = outs.each_ref().map(|out| std::fs::read(workdir.path(out).join("rollouts.jsonl")).unwrap());
                assert!(a == b, "the rollouts differ");
            }
        }
    }
}

#[test]
fn killed_client_and_server_and_run_again_gives_the_same_answers() {
    let workdir = workdir(12);
    let model = workdir.path("tiny.gguf");
    let scored = ["eval", "--model", "tiny.gguf", "--tasks", "c.jsonl"];
    for (command, more, journal) in
        [(&ROLLOUT[..], &["--n", "2"][..], "answers.part.jsonl"), (&scored, &[], "scores.c.part.jsonl")]
    {
        let name = command[0];
        let outs = ["undisturbed", "killed"].map(|what| format!("{name}-{what}"));
        let undisturbed = Server::start(&model, Manners::of("vllm"));
        run(&workdir, &through(command, &undisturbed, &outs[0], more)).ok();
        let all = work(&undisturbed);

        let (waiting, waits_from) = Manners::waiting("vllm", 20);
        let server = Server::start(&model, waiting);
        let kept = || std::fs::read_to_string(workdir.path(&outs[1]).join(journal)).map_or(0, |text| text.lines().count());
        let until = |is_so: &dyn Fn() -> bool| {
            let began = Instant::now();
            while !is_so() && began.elapsed() < Duration::from_secs(60) {
                std::thread::sleep(Duration::from_millis(5));
            }
            assert!(is_so());
        };
        let arguments = through(command, &server, &outs[1], more);
        let mut client = workdir.command(&arguments).spawn().unwrap();
        until(&|| kept() > 8);
        client.kill().unwrap();
        client.wait().unwrap();
        let (before, asked) = (kept(), server.asked().len());

        // Then the server under the next client.
        waits_from.store(asked + 13, Ordering::SeqCst);
        let mut client = workdir.command(&arguments);
        client.env("DIAGNOSE_SERVER_PATIENCE", "0.5").stderr(std::process::Stdio::piped());
        let client = client.spawn().unwrap();
        until(&|| kept() > before + 2);
        server.kill();
        waits_from.store(usize::MAX, Ordering::SeqCst);
        let ran = Ran::of(client.wait_with_output().unwrap());
        assert!(ran.code == Some(1) && ran.stderr.contains("it resumes"), "{}", ran.stderr);

        let server = Server::start(&model, Manners::of("vllm"));
        let kept = kept() - 1;
        run(&workdir, &through(command, &server, &outs[1], more)).ok();
        assert!(kept > 10 && work(&server) == all - kept, "{kept} were kept, {} of {all} asked for", work(&server));
        assert!(!workdir.path(&outs[1]).join(journal).exists());
        match name {
            "eval" => assert_eq!(samples(&workdir, &outs[0]), samples(&workdir, &outs[1])),
            _ => {
                let [a, b] = outs.each_ref().map(|out| std::fs::read(workdir.path(out).join("rollouts.jsonl")).unwrap());
                assert!(a == b, "the rollouts differ");
            }
        }
    }
}

/// What it has answered since it was last found to be the same is asked of the others.
#[test]
fn of_several_servers_one_may_die() {
    let workdir = workdir(12);
    let model = workdir.path("tiny.gguf");
    let scored = ["eval", "--model", "tiny.gguf", "--tasks", "c.jsonl"];
    for (command, more, n_checks) in [(&ROLLOUT[..], &["--n", "2"][..], CHECKS), (&scored, &[], CHECKS - 2)] {
        let name = command[0];
        let outs = ["one", "both"].map(|what| format!("{name}-{what}"));
        let one = Server::start(&model, Manners::of("vllm"));
        run(&workdir, &through(command, &one, &outs[0], more)).ok();
        // Whether it is the same it no longer says, from its first answer on.
        let waits_from = Arc::new(AtomicUsize::new(n_checks + 4));
        let limit = waits_from.clone();
        let waiting = move |ask: &Ask| {
            while ask.number >= n_checks
                && (ask.number >= limit.load(Ordering::SeqCst) || (ask.fixed && !ask.writes))
                && limit.load(Ordering::SeqCst) < usize::MAX
            {
                std::thread::sleep(Duration::from_millis(5));
            }
            Fault::Nothing
        };
        let slow = Manners::with("vllm", |_| Fault::Slow(Duration::from_millis(20)));
        let [well, dies] = [slow, Manners::with("vllm", waiting)].map(|manners| Server::start(&model, manners));
        let arguments = [&through(command, &well, &outs[1], more)[..], &["--server", &dies.url, "--in-flight", "400"]].concat();
        let ran = with_a_death(workdir.command(&arguments), &dies, &waits_from, n_checks + 5).ok();
        assert_eq!(ran.stderr.matches("The other servers do its work").count(), 1, "{}", ran.stderr);
        let wanted = |server: &Server| one.asked()[n_checks..].iter().filter(|ids| server.asked().contains(ids)).count();
        assert!(wanted(&dies) > 3 && wanted(&well) == one.asked().len() - n_checks, "{} {}", wanted(&dies), wanted(&well));
        match name {
            "eval" => assert_eq!(samples(&workdir, &outs[0]), samples(&workdir, &outs[1])),
            _ => {
                let [a, b] = outs.each_ref().map(|out| std::fs::read(workdir.path(out).join("rollouts.jsonl")).unwrap());
                assert!(a == b, "the rollouts differ");
            }
        }
    }
}
