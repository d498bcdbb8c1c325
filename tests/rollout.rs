//! Tests `diagnose rollout`: the rows that it writes, their scores, and resuming a killed run.

use std::time::{Duration, Instant};

use diagnose::kernels::cuda;
use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::{Workdir, default_model, shared};

fn workdir(n_rows: usize) -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        let turns = [
            json!({"role": "user", "content": format!("Question {i}, {}?", "which is long ".repeat(i % 5))}),
            json!({"role": "assistant", "content": "an earlier answer"}),
            json!({"role": "user", "content": "And then?"}),
            json!({"role": "assistant", "content": "the last answer"}),
        ];
        json!({"id": format!("r{i}"), "messages": if i.is_multiple_of(2) { &turns[..2] } else { &turns[..] }}).to_string()
    };
    workdir.write("rows.jsonl", (0..n_rows).map(row).collect::<Vec<_>>().join("\n"));
    workdir
}

fn read(workdir: &Workdir, run: &str) -> String {
    std::fs::read_to_string(workdir.path(run).join("rollouts.jsonl")).unwrap()
}

fn rows(text: &str) -> Vec<Value> {
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

const COMMAND: [&str; 8] = ["rollout", "rows.jsonl", "--model", "tiny.gguf", "--max-new-tokens", "60", "--n", "2"];

#[test]
fn answers_are_rows_that_score_as_the_model_drew_them() {
    let workdir = workdir(100);
    let printed = workdir.run(&[&COMMAND[..], &["--out", "run", "--json"]].concat()).ok().json();
    assert_eq!(printed["out"], "run");
    assert_eq!((&printed["prompts"], &printed["counts"]["answers"]), (&json!(100), &json!(200)));
    let rows = rows(&read(&workdir, "run"));
    for (i, row) in rows.iter().enumerate() {
        let (source, draw) = (i / 2, i % 2);
        assert_eq!((&row["rollout"]["row"], &row["rollout"]["draw"]), (&json!(source), &json!(draw)));
        assert_eq!(row["id"], format!("r{source}"));
        let messages = row["messages"].as_array().unwrap();
        assert_eq!(messages.len(), if source.is_multiple_of(2) { 2 } else { 4 });
        // What the data say in an earlier answer is not the model's.
        assert!(source.is_multiple_of(2) || messages[1]["weight"] == 0);
        assert_ne!(messages.last().unwrap()["content"], "the last answer");
    }
    assert_ne!(rows[0]["rollout"]["ids"], rows[1]["rollout"]["ids"], "two draws are two answers");

    let report =
        workdir.run(&["run/rollouts.jsonl", "--model", "tiny.gguf", "--out", "scores", "--no-view", "--json"]).ok().json();
    let on_policy = &report["on_policy"];
    assert_eq!((&on_policy["rows"], &on_policy["why_not"]), (&json!(200), &Value::Null), "{on_policy}");
    let drawn: usize = rows.iter().map(|row| row["rollout"]["ids"].as_array().unwrap().len()).sum();
    let check = &on_policy["check"];
    assert_eq!(check["tokens"], json!(drawn), "exactly the tokens that were drawn are scored");
    let number = |key: &str| check[key].as_f64().unwrap();
    assert!(number("mean_surplus").abs() < 3.0 * number("stderr") && number("ks_p") > 0.01, "{check}");
    // A random model of bytes writes hardly any UTF-8: its text cannot give the same tokens.
    assert!(on_policy["respelt"].as_u64().unwrap() > 100, "{on_policy}");

    // Beside the data: one figure, and how far the one lies from the other.
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "data", "--no-view"]).ok();
    let beside = workdir.run(&["data", "scores", "--out", "beside", "--json"]).ok().json();
    let runs = beside["runs"].as_array().unwrap();
    assert_eq!((&runs[0]["run"], &runs[1]["run"], &runs[0]["gaps"]), (&json!("data"), &json!("scores"), &Value::Null));
    let gaps = &runs[1]["gaps"];
    let surplus = |run: usize| runs[run]["overall"]["mean_surplus"].as_f64().unwrap();
    assert!((gaps["mean_surplus"]["value"].as_f64().unwrap() - (surplus(1) - surplus(0))).abs() < 1e-6);
    let within = |gap: &Value| {
        // Of runs without any conflict there is no interval.
        let Some(ends) = gap["ci95"].as_array() else { return gap["value"] == 0.0 };
        let ends: Vec<f64> = ends.iter().map(|end| end.as_f64().unwrap()).collect();
        ends[0] <= ends[1] && ends[0] - 0.02 <= gap["value"].as_f64().unwrap() && gap["value"].as_f64().unwrap() <= ends[1] + 0.02
    };
    assert!(["conflict_share", "mean_surplus", "distance"].iter().all(|key| within(&gaps[*key])), "{gaps}");
    for name in ["landscapes.png", "landscapes.svg", "landscapes.md", "landscapes.json"] {
        assert!(workdir.path("beside").join(name).is_file(), "{name}");
    }
    workdir.run(&["data", "--thresholds", "p=0.5,H=2"]).ok();
    let refused = workdir.run(&["data", "scores", "--out", "other"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("different thresholds"), "{}", refused.stderr);

    // Drawn otherwise, or by another model, they are no check.
    let other = tiny_model::write_noised(&workdir.path("other.gguf"), 0.01);
    let scored =
        workdir.run(&["run/rollouts.jsonl", "--model", other.to_str().unwrap(), "--out", "other", "--no-view", "--json"]).ok();
    assert!(scored.json()["on_policy"]["why_not"].as_str().unwrap().contains("this very model"));
    // A changed text is read as what it says.
    let mut changed = rows[0].clone();
    changed["messages"][1]["content"] = json!("changed");
    workdir.write("changed.jsonl", changed.to_string());
    let scored = workdir.run(&["changed.jsonl", "--model", "tiny.gguf", "--out", "changed", "--no-view"]).ok();
    assert!(scored.stderr.contains("do not match the row"), "{}", scored.stderr);
}

/// A mask is decided about the text of an answer, and holds for the tokens that were drawn.
#[test]
fn masked_parts_of_answers_are_not_learnt() {
    let workdir = workdir(6);
    workdir.run(&[&COMMAND[..], &["--out", "run"]].concat()).ok();
    let scored = |data: &str, out: &str| -> u64 {
        let score = ["--model", "tiny.gguf", "--thresholds", "p=0.004,H=9", "--no-view", "--json"];
        let report = workdir.run(&[&[data, "--out", out], &score[..]].concat()).ok().json();
        assert_eq!(report["on_policy"]["rows"], 12, "{report}");
        report["overall"]["tokens"].as_u64().unwrap()
    };
    let before = scored("run/rollouts.jsonl", "scores");
    workdir.run(&["export", "scores", "--out", "masked.jsonl", "--mask", "conflicts"]).ok();
    let changes = rows(&std::fs::read_to_string(workdir.path("masked.changes.jsonl")).unwrap());
    let masks = changes.iter().filter(|change| change["action"] == "mask");
    let masked: u64 = masks.map(|mask| mask["tokens"].as_u64().unwrap()).sum();
    assert!(masked > 100 && masked + 100 < before, "{masked} of {before}");
    assert_eq!(scored("masked.jsonl", "again"), before - masked);
}

#[test]
fn a_killed_run_and_another_batch_give_the_same_answers() {
    killed_and_written_again(300, &COMMAND);
}

/// On an emulated one, too; where there is none, `--device cuda` is refused by the name of what is missing.
#[test]
fn a_killed_run_and_another_batch_give_the_same_answers_on_a_gpu() {
    let mut command = [&COMMAND[..], &["--device", "cuda"]].concat();
    command[5] = "25";
    if let Err(error) = cuda::Device::get() {
        assert!(std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "{error}");
        let refused = workdir(3).run(&[&command[..], &["--out", "run"]].concat());
        assert!(
            refused.code == Some(1) && refused.stderr.contains("GPU") || refused.stderr.contains("libcuda"),
            "{}",
            refused.stderr
        );
        return;
    }
    killed_and_written_again(30, &command);
}

fn killed_and_written_again(n_rows: usize, command: &[&str]) {
    let workdir = workdir(n_rows);
    let began = Instant::now();
    workdir.run(&[command, &["--out", "whole"]].concat()).ok();
    let whole = began.elapsed();
    for moment in 1..4u32 {
        let mut child = workdir.command(&[command, &["--out", "killed"]].concat()).spawn().unwrap();
        std::thread::sleep(whole * moment / 5 + Duration::from_millis(3));
        child.kill().unwrap();
        child.wait().unwrap();
    }
    workdir.run(&[command, &["--out", "killed", "--batch", "5"]].concat()).ok();
    assert!(read(&workdir, "whole") == read(&workdir, "killed"));
    let other = workdir.run(&[command, &["--out", "killed", "--seed", "1"]].concat());
    assert!(other.code == Some(1) && other.stderr.contains("holds other rollouts"), "{}", other.stderr);
    workdir.run(&[command, &["--out", "alone", "--batch", "1", "--limit", "3"]].concat()).ok();
    let first: Vec<Value> = rows(&read(&workdir, "whole")).into_iter().take(6).collect();
    assert_eq!(rows(&read(&workdir, "alone")), first);
}

#[test]
fn what_cannot_be_answered_is_said() {
    let workdir = workdir(4);
    workdir.write(
        "mixed.jsonl",
        [
            json!({"messages": [{"role": "user", "content": "Short?"}]}),
            json!({"messages": [{"role": "user", "content": "Long? ".repeat(50)}]}),
            json!({"messages": [{"role": "assistant", "content": "nobody asked"}]}),
        ]
        .map(|row| row.to_string())
        .join("\n"),
    );
    let arguments = ["rollout", "mixed.jsonl", "--model", "tiny.gguf", "--max-len", "100", "--out", "mixed", "--json"];
    let ran = workdir.run(&arguments).ok();
    let record = ran.json();
    assert_eq!(record["left_out"], json!({"too_long": 1, "unusable": 1}));
    assert!(ran.stderr.contains("nothing before its answer"), "{}", ran.stderr);
    // Prompt and answer keep to --max-len, though --max-new-tokens is 512.
    assert!(rows(&read(&workdir, "mixed"))[0]["rollout"]["ids"].as_array().unwrap().len() < 100);

    workdir.write("text.jsonl", json!({"text": "plain"}).to_string());
    let refused = workdir.run(&["rollout", "text.jsonl", "--model", "tiny.gguf", "--out", "text"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("plain text has no prompt"), "{}", refused.stderr);
    // Options without effect, or that would give the same answer twice.
    let greedy = |more: &[&str]| workdir.run(&[&COMMAND[..6], &["--temperature", "0"], more].concat());
    for (more, expected) in [(["--n", "2"], "would write the same answer 2 times"), (["--top-k", "5"], "--top-k has no effect")] {
        let refused = greedy(&more);
        assert!(refused.code == Some(2) && refused.stderr.contains(expected), "{}", refused.stderr);
    }
    for option in ["--temperature=-1", "--n=0", "--top-p=2", "--stop="] {
        let refused = workdir.run(&["rollout", "mixed.jsonl", "--model", "tiny.gguf", option]);
        assert_eq!(refused.code, Some(2), "{option}: {}", refused.stderr);
        assert!(refused.stderr.contains(option.split_once('=').unwrap().0), "{}", refused.stderr);
    }
}

/// The bar on real text: 200 prompts at temperature 1, the surplus within three standard errors of 0 and `tail` not rejected at 1 %.
#[test]
fn the_default_model_agrees_with_itself() {
    let (Some(model), Some(data)) = (default_model(), shared("data/sft/math/gsm8k_train.jsonl")) else { return };
    let workdir = Workdir::new();
    let (model, data) = (model.to_str().unwrap(), data.to_str().unwrap());
    let rollout = ["rollout", data, "--model", model, "--limit", "200", "--max-new-tokens", "24", "--out", "run"];
    workdir.run(&rollout).ok();
    let report = workdir.run(&["run/rollouts.jsonl", "--model", model, "--out", "scores", "--no-view", "--json"]).ok().json();
    let check = &report["on_policy"]["check"];
    let number = |key: &str| check[key].as_f64().unwrap();
    assert!(number("mean_surplus").abs() < 3.0 * number("stderr") && number("ks_p") > 0.01, "{check}");
}
