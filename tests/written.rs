//! Tests `diagnose eval` with generated answers: its results, resuming a killed run, and refusals.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::Workdir;

fn workdir(n_rows: usize) -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        let prompt = format!("Question {i}, {}?", "which is long ".repeat(i % 5));
        let subject = if i.is_multiple_of(2) { "a" } else { "b" };
        json!({"id": format!("q{i}"), "prompt": prompt, "answers": ["e", "t"], "match": "contains", "subject": subject})
            .to_string()
    };
    workdir.write("q.jsonl", (0..n_rows).map(row).collect::<Vec<_>>().join("\n"));
    workdir
}

fn task(workdir: &Workdir, out: &str, name: &str) -> Value {
    let text = std::fs::read_to_string(workdir.path(out).join("scores.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tasks"][name].clone()
}

/// The answers to each item.
fn answers(workdir: &Workdir, out: &str, name: &str) -> Vec<(String, Vec<String>)> {
    let samples = diagnose::eval::answers::read(&workdir.path(out).join("answers.parquet")).unwrap().remove(name).unwrap();
    samples.into_iter().map(|sample| (sample.id, sample.draws.into_iter().map(|draw| draw.text).collect())).collect()
}

const EVAL: [&str; 7] = ["eval", "--model", "tiny.gguf", "--max-new-tokens", "40", "--tasks", "q.jsonl"];
const DRAWN: [&str; 4] = ["--temperature", "1", "--repeats", "3"];

#[test]
fn answers_are_judged_and_kept() {
    let workdir = workdir(40);
    let eval = |out: &str, more: &[&str]| workdir.run(&[&EVAL[..], &["--out", out], more].concat());
    let shown = eval("greedy", &[]).ok().stdout;
    assert!(shown.contains("40 answers") && shown.contains("answers.parquet"), "{shown}");
    let found = task(&workdir, "greedy", "q");
    assert_eq!((&found["n"], &found["kind"], &found["primary"]), (&json!(40), &json!("written"), &json!("match")));
    assert_eq!(found["groups"]["a"]["n"], 20);
    let written = answers(&workdir, "greedy", "q");
    let right = written.iter().filter(|(_, draws)| draws[0].contains(['e', 't'])).count();
    assert_eq!(found["metrics"]["match"]["value"], json!(right as f64 / 40.0));
    let endings = &found["endings"];
    let all = ["end_token", "stop", "length"].iter().map(|key| endings[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!(all, 40, "{endings}");
    // Finished tasks are kept, and no journal of them.
    eval("greedy", &[]).ok();
    assert_eq!(task(&workdir, "greedy", "q")["seconds"], found["seconds"], "evaluated again");
    assert!(!workdir.path("greedy").join("answers.q.part.jsonl").exists());

    // Several answers: their mean, and the chance of one in k, which does not fall.
    eval("drawn", &DRAWN).ok();
    let found = task(&workdir, "drawn", "q");
    let value = |metric: &str| found["metrics"][metric]["value"].as_f64().unwrap();
    let written = answers(&workdir, "drawn", "q");
    let counts: Vec<usize> =
        written.iter().map(|(_, draws)| draws.iter().filter(|text| text.contains(['e', 't'])).count()).collect();
    assert!(written.iter().all(|(_, draws)| draws.len() == 3 && draws[0] != draws[1]));
    assert!((value("match") - counts.iter().sum::<usize>() as f64 / 120.0).abs() < 1e-12);
    assert!((value("pass@3(match)") - counts.iter().filter(|count| **count > 0).count() as f64 / 40.0).abs() < 1e-12);
    assert!(value("match") <= value("pass@2(match)") && value("pass@2(match)") <= value("pass@3(match)"));
    let ends = found["metrics"]["match"]["ci95"].as_array().unwrap();
    assert!(ends[0].as_f64().unwrap() < value("match") && value("match") < ends[1].as_f64().unwrap(), "{ends:?}");

    // A stop string is not part of the answer that it ends.
    let stopped = eval("stopped", &["--stop", "e"]).ok().stdout;
    assert!(stopped.contains("stop \"e\""), "{stopped}");
    assert!(answers(&workdir, "stopped", "q").iter().all(|(_, draws)| !draws[0].contains('e')));
}

#[test]
fn other_ways_of_writing_are_not_compared() {
    let workdir = workdir(20);
    let eval = |out: &str, more: &[&str]| workdir.run(&[&EVAL[..], &["--out", out], more].concat());
    for (out, more) in
        [("greedy", &[][..]), ("drawn", &DRAWN), ("again", &["--temperature", "1", "--repeats", "3", "--seed", "7"])]
    {
        eval(out, more).ok();
    }
    let drawn_twice = workdir.run(&["diff", "drawn", "again", "--json"]).ok().json();
    assert_eq!(drawn_twice["macro_average"]["tasks"], json!(["q"]), "the share of right answers is an accuracy");
    assert!(drawn_twice["tasks"]["q"]["metrics"]["match"]["difference"]["ci95"].is_array());
    let refused = workdir.run(&["diff", "greedy", "drawn"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("which differ in --temperature"), "{}", refused.stderr);
    let other = eval("greedy", &["--stop", "x"]);
    assert!(
        other.code == Some(1) && other.stderr.contains("requested: all items and no examples, --max-new-tokens 40, stop \"x\""),
        "{}",
        other.stderr
    );
}

#[test]
fn a_killed_evaluation_and_another_batch_give_the_same_answers() {
    let workdir = workdir(250);
    let command = [&EVAL[..], &DRAWN].concat();
    let began = Instant::now();
    workdir.run(&[&command[..], &["--out", "whole"]].concat()).ok();
    let whole = began.elapsed();
    for moment in 1..4u32 {
        let mut child = workdir.command(&[&command[..], &["--out", "killed"]].concat()).spawn().unwrap();
        std::thread::sleep(whole * moment / 5 + Duration::from_millis(3));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    workdir.run(&[&command[..], &["--out", "killed", "--batch", "5"]].concat()).ok();
    assert_eq!(answers(&workdir, "whole", "q"), answers(&workdir, "killed", "q"));
    let [a, b] = ["whole", "killed"].map(|out| task(&workdir, out, "q"));
    assert_eq!((&a["metrics"], &a["tokens"]), (&b["metrics"], &b["tokens"]));
    // A sample of the items has their answers.
    workdir.run(&[&command[..], &["--out", "few", "--batch", "1", "--limit", "2"]].concat()).ok();
    assert_eq!(answers(&workdir, "few", "q"), answers(&workdir, "whole", "q")[..4]);
    // A journal of other settings is not gone on with, unless nothing stands in it.
    std::fs::create_dir(workdir.path("other")).unwrap();
    workdir.write("other/answers.q.part.jsonl", "{\"identity\":\"x\"}\n{}\n");
    let refused = workdir.run(&[&command[..], &["--out", "other"]].concat());
    assert!(refused.code == Some(1) && refused.stderr.contains("started with other items"), "{}", refused.stderr);
    workdir.write("other/answers.q.part.jsonl", "{\"identity\":\"x\"}\n");
    workdir.run(&[&command[..], &["--out", "other"]].concat()).ok();
    assert_eq!(answers(&workdir, "whole", "q"), answers(&workdir, "other", "q"));
}

/// In f32 the tiny model's greedy answers are the same wherever it runs, and tasks of both kinds share a folder there.
#[test]
fn answers_on_a_gpu_are_those_of_the_cpu() {
    if let Err(error) = diagnose::kernels::cuda::Device::get() {
        assert!(std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "{error}");
        return;
    }
    let workdir = workdir(12);
    workdir.write("chosen.jsonl", r#"{"context": "a", "choices": ["b", "c"], "answer": 0}"#);
    let eval = |device: &str| {
        let tasks = ["--tasks", "q.jsonl,chosen.jsonl"];
        workdir.run(&[&EVAL[..5], &tasks, &["--device", device, "--out", device, "--batch", "5"]].concat()).ok();
        assert!(!workdir.path(device).join("answers.q.part.jsonl").exists());
        answers(&workdir, device, "q")
    };
    assert_eq!(eval("cuda"), eval("cpu"));
    assert_eq!(task(&workdir, "cuda", "q")["metrics"], task(&workdir, "cpu", "q")["metrics"]);
}

/// The least memory with which a task without answers goes to the emulated GPU (a card has the memory that it has) leaves no room for an answer's
/// keys and values: one with answers goes to the CPU then, where it would have been refused in the middle.
#[test]
fn answers_go_where_one_fits_on_a_gpu() {
    match diagnose::kernels::cuda::Device::get() {
        Ok(device) if device.name().starts_with("emulated") => {}
        Ok(_) => return,
        Err(error) => return assert!(std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "{error}"),
    }
    let workdir = workdir(2);
    workdir.write("chosen.jsonl", r#"{"context": "a", "choices": ["b", "c"], "answer": 0}"#);
    let mut n = 0;
    let mut device = |memory: u64, tasks: &str| {
        n += 1;
        let out = format!("run-{n}");
        // The length limit for answers has no effect if none are generated.
        let length = if tasks == "chosen.jsonl" { &[][..] } else { &EVAL[3..5] };
        let arguments = [&EVAL[..3], length, &["--tasks", tasks, "--max-len", "4096", "--out", &out]].concat();
        let mut command = workdir.command(&arguments);
        let ran = command.env("EMULATED_MEMORY", memory.to_string()).output().unwrap();
        assert!(ran.status.success(), "{memory} bytes: {}", String::from_utf8_lossy(&ran.stderr));
        let scores = std::fs::read_to_string(workdir.path(&out).join("scores.json")).unwrap();
        let scores: Value = serde_json::from_str(&scores).unwrap();
        scores["device"].as_str().unwrap().split(' ').next().unwrap().to_owned()
    };
    let (mut too_little, mut enough) = (1 << 20, 16 << 30);
    while enough - too_little > 1 {
        let middle = u64::midpoint(too_little, enough);
        *if device(middle, "chosen.jsonl") == "cuda" { &mut enough } else { &mut too_little } = middle;
    }
    assert_eq!(device(enough, "q.jsonl,chosen.jsonl"), "cpu");
    assert_eq!(device(16 << 30, "q.jsonl,chosen.jsonl"), "cuda");
}

#[test]
fn what_cannot_be_asked_is_said() {
    let workdir = workdir(4);
    let refused = |tasks: &str, more: &[&str], code: i32, what: &str| {
        let ran = workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", tasks, "--out", "bad"], more].concat());
        assert!(ran.code == Some(code) && ran.stderr.contains(what), "{:?} {}", ran.code, ran.stderr);
    };
    refused("q.jsonl", &["--repeats", "2"], 2, "would write the same answer 2 times");
    refused("q.jsonl", &["--max-new-tokens", "0"], 2, "--max-new-tokens 0");
    refused("q.jsonl", &["--top-p", "0.9"], 2, "--top-p has no effect at temperature 0");
    refused("q.jsonl", &["--fewshot-from", "q.jsonl"], 2, "`q` uses none");
    refused("q.jsonl", &["--device", "metal"], 2, "answers are written on the CPU or on an NVIDIA GPU, not on `metal`");
    assert!(!workdir.path("bad").exists());
    refused("q.jsonl", &["--max-len", "256"], 2, "leaves no room for its prompts in --max-len 256");
    workdir.write("empty.jsonl", r#"{"prompt": " ", "answer": "a"}"#);
    refused("empty.jsonl", &[], 1, "empty.jsonl:1: `prompt` is empty");
    workdir.write("talk.jsonl", r#"{"messages": [{"role": "user", "content": "Hi"}], "answer": "a"}"#);
    refused("talk.jsonl", &[], 1, "--apply-chat-template");
    workdir
        .run(&[
            "eval",
            "--model",
            "tiny.gguf",
            "--tasks",
            "talk.jsonl",
            "--apply-chat-template",
            "--max-new-tokens",
            "4",
            "--out",
            "talk",
        ])
        .ok();
    // A first row with an answer would be one to learn from.
    let rows = [
        r#"{"messages": [{"role": "user", "content": "Hi"}], "answer": "a"}"#,
        r#"{"messages": [{"role": "assistant", "content": "Hi"}], "answer": "a"}"#,
    ];
    workdir.write("said.jsonl", rows.join("\n"));
    refused(
        "said.jsonl",
        &["--apply-chat-template"],
        1,
        "said.jsonl:2: the last of `messages` is an answer: there is nothing to answer",
    );
    workdir.write("open.jsonl", r#"{"prompt": "Hi"}"#);
    refused("open.jsonl", &[], 1, "open.jsonl:1: expected `answer` or `answers`");

    // A prompt that is too long loses its beginning, which is said.
    let cut = workdir.run(&[&EVAL[..], &["--max-len", "70", "--out", "cut"]].concat()).ok().stdout;
    assert!(cut.contains("contexts were cut at their beginning"), "{cut}");
    assert_eq!(task(&workdir, "cut", "q")["truncated"], 2);
    assert!(task(&workdir, "cut", "q")["writing"]["ends"].is_array());

    // A template that opens no answer, and a model that never ends one.
    workdir.write("bare.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}");
    let bare = workdir.run(&[&EVAL[..], &["--chat-template", "bare.jinja", "--out", "bare"]].concat()).ok();
    assert!(bare.stderr.contains("has no generation prompt"), "{}", bare.stderr);
    assert!(task(&workdir, "bare", "q")["notes"][0].as_str().unwrap().contains("directly after the question"));
}

#[test]
fn gsm8k_takes_its_examples_from_a_file() {
    let workdir = workdir(1);
    let row =
        |a: usize| json!({"question": format!("{a} + {a}?"), "answer": format!("It is {}.\n#### {}", 2 * a, 2 * a)}).to_string();
    let rows = |range: std::ops::Range<usize>| range.map(row).collect::<Vec<_>>().join("\n");
    workdir.write("test.jsonl", rows(0..3));
    workdir.write("train.jsonl", rows(10..20));
    let eval = |out: &str, more: &[&str]| {
        let command = ["eval", "--model", "tiny.gguf", "--tasks", "gsm8k=test.jsonl", "--max-new-tokens", "8", "--out", out];
        workdir.run(&[&command[..], more].concat())
    };
    let few = eval("bad", &[]);
    assert!(
        few.code == Some(2) && few.stderr.contains("--fewshot 5 asks for more examples than `gsm8k` has (2)"),
        "{}",
        few.stderr
    );
    eval("out", &["--fewshot-from", "train.jsonl"]).ok();
    let found = task(&workdir, "out", "gsm8k");
    assert_eq!(
        (&found["few_shot"], &found["seed"], &found["primary"]),
        (&json!(5), &Value::Null, &json!("exact_match,strict-match"))
    );
    assert!(found["metrics"]["exact_match,flexible-extract"]["value"].is_f64());
    // The prompt by hand.
    let shown = |a: usize| format!("Question: {a} + {a}?\nAnswer: It is {}.\n#### {}\n\n", 2 * a, 2 * a);
    let prompt = format!("{}Question: 0 + 0?\nAnswer:", (10..15).map(shown).collect::<String>());
    workdir.write("hand.jsonl", json!({"prompt": prompt, "answer": "x"}).to_string());
    workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "hand.jsonl", "--max-new-tokens", "8", "--out", "hand"]).ok();
    let hash = |out: &str, name: &str| {
        let samples = diagnose::eval::answers::read(&workdir.path(out).join("answers.parquet")).unwrap();
        (samples[name][0].prompt_sha256.clone().unwrap(), samples[name][0].draws[0].text.clone())
    };
    let (ours, by_hand) = (hash("out", "gsm8k"), hash("hand", "hand"));
    assert_eq!(ours.0, by_hand.0);
    assert!(by_hand.1.starts_with(&ours.1), "only the stop strings differ: {ours:?} {by_hand:?}");

    // The harness's samples of the same questions pair by number, filter and metric; its hash of the prompt is ours.
    let samples = |filter: &str| {
        let row = |id: usize| {
            let prompt = if id == 0 { ours.0.as_str() } else { "another" };
            json!({"doc_id": id, "doc": {}, "filter": filter, "metrics": ["exact_match"], "exact_match": 1.0, "prompt_hash": prompt}).to_string()
        };
        (0..3).map(row).collect::<Vec<_>>().join("\n") + "\n"
    };
    std::fs::create_dir(workdir.path("theirs")).unwrap();
    workdir.write("theirs/samples_gsm8k_2026-01-02T03-04-05.6.jsonl", samples("strict-match") + &samples("flexible-extract"));
    let compared = workdir.run(&["diff", "out", "theirs", "--json"]).ok().json()["tasks"]["gsm8k"].clone();
    assert_eq!((&compared["n"], &compared["prompts_differ"]), (&json!(3), &json!(2)));
    assert_eq!(compared["primary"], "exact_match,strict-match");
    assert_eq!(compared["metrics"]["exact_match,strict-match"]["after"], 1.0);
    assert_eq!(compared["metrics"].as_object().unwrap().len(), 2);
}

/// Transformers applies the penalty of generation_config.json to greedy answers, too.
#[test]
fn answers_have_the_repetition_penalty_that_the_model_asks_for() {
    let workdir = workdir(8);
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    for (model, generation) in [("plain", None), ("asks", Some(r#"{"repetition_penalty": 1.3, "top_k": 20}"#))] {
        std::fs::create_dir(workdir.path(model)).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(fixture.join(name), workdir.path(model).join(name)).unwrap();
        }
        if let Some(text) = generation {
            workdir.write(&format!("{model}/generation_config.json"), text);
        }
    }
    let eval = |model: &str, out: &str, more: &[&str]| {
        let arguments =
            ["eval", "--model", model, "--max-new-tokens", "30", "--max-len", "128", "--tasks", "q.jsonl", "--out", out];
        workdir.run(&[&arguments[..], more].concat())
    };
    eval("plain", "plainly", &[]).ok();
    eval("plain", "told", &["--repetition-penalty", "1.3"]).ok();
    let said = eval("asks", "asked", &[]).ok().stderr;
    assert!(said.contains("a repetition penalty of 1.3"), "{said}");
    eval("asks", "refused", &["--repetition-penalty", "1"]).ok();
    let [plainly, told, asked, refused] = ["plainly", "told", "asked", "refused"].map(|out| answers(&workdir, out, "q"));
    assert!(plainly == refused && told == asked && plainly != told);
    // It is part of how the questions are asked, so that the two are not compared.
    assert_eq!(task(&workdir, "asked", "q")["writing"]["sampling"]["repetition_penalty"], 1.3);
    let unlike = workdir.run(&["diff", "plainly", "asked"]);
    assert!(unlike.stderr.contains("--repetition-penalty"), "{}", unlike.stderr);

    // Rollouts are of the model's own distribution, and say so.
    workdir.write("rows.jsonl", r#"{"prompt": "Question", "completion": "e"}"#);
    let rollout = workdir
        .run(&["rollout", "rows.jsonl", "--model", "asks", "--max-new-tokens", "4", "--max-len", "64", "--out", "own"])
        .ok();
    assert!(rollout.stderr.contains("asks for `repetition_penalty: 1.3` (generation_config.json)"), "{}", rollout.stderr);

    workdir.write("asks/generation_config.json", r#"{"num_beams": 4}"#);
    let beams = eval("asks", "beams", &[]);
    assert!(beams.code == Some(1) && beams.stderr.contains("generation_config.json: `num_beams: 4`"), "{}", beams.stderr);
}

#[test]
fn examples_of_another_file_are_another_way_of_asking() {
    let workdir = workdir(3);
    let examples = |from: usize| {
        let row = |i: usize| {
            let subject = if i.is_multiple_of(2) { "a" } else { "b" };
            json!({"prompt": format!("Example {i}?"), "answer": "yes", "subject": subject}).to_string()
        };
        (from..from + 4).map(row).collect::<Vec<_>>().join("\n")
    };
    workdir.write("one.jsonl", examples(0));
    workdir.write("same.jsonl", examples(0));
    workdir.write("other.jsonl", examples(50));
    let eval = |out: &[&str], file: &str| workdir.run(&[&EVAL[..], out, &["--fewshot", "2", "--fewshot-from", file]].concat());
    eval(&["--out", "one"], "one.jsonl").ok();
    let found = task(&workdir, "one", "q");
    // The data are the task's own, whatever examples stand before them.
    workdir.run(&[&EVAL[..], &["--out", "none"]].concat()).ok();
    assert_eq!(found["data_sha256"], task(&workdir, "none", "q")["data_sha256"]);

    // Another file is refused, and so is this one once it says something else; the same text under another name is no other file.
    let refused = eval(&["--out", "one"], "other.jsonl");
    assert!(
        refused.code == Some(1) && refused.stderr.contains("--fewshot 2 --fewshot-from a file with SHA-256"),
        "{}",
        refused.stderr
    );
    workdir.write("one.jsonl", examples(20));
    let refused = eval(&["--out", "one"], "one.jsonl");
    assert!(refused.code == Some(1) && refused.stderr.contains("Choose another --out"), "{}", refused.stderr);
    eval(&["--out", "one"], "same.jsonl").ok();
    assert_eq!(task(&workdir, "one", "q"), found, "evaluated again");

    // Folders that nobody named are named after what the file says, too.
    let folders = || std::fs::read_dir(workdir.path("runs")).unwrap().count();
    eval(&[], "one.jsonl").ok();
    workdir.write("one.jsonl", examples(0));
    eval(&[], "one.jsonl").ok();
    assert_eq!(folders(), 2);
    eval(&[], "same.jsonl").ok();
    assert_eq!(folders(), 2);

    // A comparison says it; with as many examples, nothing else would where prompts have no hash.
    eval(&["--out", "other"], "other.jsonl").ok();
    let ran = workdir.run(&["diff", "one", "other"]).ok();
    assert!(ran.stdout.contains("q was asked with different examples: --fewshot 2 --fewshot-from a file with"), "{}", ran.stdout);
    let compared = workdir.run(&["diff", "one", "other", "--json"]).ok().json()["tasks"]["q"].clone();
    assert_eq!((&compared["data_differs"], &compared["few_shot"]), (&json!(false), &Value::Null));
    let same = workdir.run(&["diff", "one", "one", "--json"]).ok().json()["tasks"]["q"].clone();
    assert_eq!(same["examples_differ"], Value::Null);
}
