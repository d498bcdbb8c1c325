//! Tests that no command overwrites a file that this program did not write, and that every command may replace its own results.

use std::path::Path;

use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

/// A folder with the tiny model, rows, an item to evaluate, and two score runs of the rows, `a` and `b`.
fn prepared() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        let messages = json!([{"role": "user", "content": format!("say {i}")}, {"role": "assistant", "content": "so it is"}]);
        json!({ "messages": messages }).to_string()
    };
    workdir.write("rows.jsonl", (0..4).map(row).collect::<Vec<_>>().join("\n"));
    workdir.write("items.uniform.jsonl", r#"{"context":"a","choices":["b","c"],"answer":0}"#);
    for run in ["a", "b"] {
        workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", run, "--thresholds", "p=0.02,H=99"]).ok();
    }
    workdir
}

const MINE: &[u8] = b"mine\n";

/// The names of the files in a folder.
fn names(folder: &Path) -> Vec<String> {
    let entries = std::fs::read_dir(folder).unwrap();
    entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect()
}

#[track_caller]
fn refused(ran: &Ran, about: &str) {
    assert!(ran.code == Some(2) && ran.stderr.contains(about), "{about}: {:?} {}", ran.code, ran.stderr);
}

#[test]
fn a_folder_with_files_of_other_origin_is_refused() {
    let workdir = prepared();
    let train = ["train", "rows.jsonl", "--model", "tiny.gguf", "--max-steps", "1", "--batch-size", "4", "--warmup-steps", "0"];
    let commands: [(&[&str], &[&str]); 5] = [
        (&["diff", "a", "b"], &["diff.json", "diff.md", "diff.html", "movement.png", "learnt.parquet", "compared.html"]),
        (&["a", "b"], &["landscapes.json", "landscapes.md", "landscapes.svg"]),
        (&["rows.jsonl", "--model", "tiny.gguf", "--emit", "vllm-offline"], &["sequences.parquet", "vllm_offline.py"]),
        (&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl"], &["samples.parquet"]),
        (&train, &["train.toml", "metrics.jsonl"]),
    ];
    for (number, (command, files)) in commands.into_iter().enumerate() {
        let in_folder = |folder: &str| workdir.run(&[command, &["--out", folder]].concat());
        for file in files {
            let folder = format!("{number}-{file}");
            std::fs::create_dir(workdir.path(&folder)).unwrap();
            let path = workdir.write(&format!("{folder}/{file}"), MINE);
            refused(&in_folder(&folder), file);
            assert_eq!(std::fs::read(path).unwrap(), MINE, "{command:?}: {file}");
            assert_eq!(names(&workdir.path(&folder)), [*file], "{command:?}");
        }
        // A second call finds its own results, and other files do not matter.
        let own = format!("{number}-own");
        std::fs::create_dir(workdir.path(&own)).unwrap();
        let notes = workdir.write(&format!("{own}/notes.md"), MINE);
        for _ in 0..2 {
            in_folder(&own).ok();
        }
        assert_eq!(std::fs::read(notes).unwrap(), MINE);
    }
    let scored = workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl", "--out", "3-own", "--json"]);
    assert_eq!(scored.ok().json()["out"], "3-own");
    // The options of a person's own are not replaced by those that a run saves.
    std::fs::create_dir(workdir.path("mine")).unwrap();
    let options = "# A comment of mine.\nmax_steps = 1\nbatch_size = 4\nwarmup_steps = 0\n";
    let path = workdir.write("mine/train.toml", options);
    let train = ["train", "rows.jsonl", "--model", "tiny.gguf", "--config", "mine/train.toml", "--out", "mine"];
    refused(&workdir.run(&train), "train.toml");
    assert_eq!(std::fs::read_to_string(path).unwrap(), options);
}

#[test]
fn a_page_replaces_only_a_page() {
    let workdir = prepared();
    workdir.write("config.json", "{}");
    for out in ["rows.jsonl", "a/tokens.parquet", "a/run.json", "a/report.md", "tiny.gguf", "config.json"] {
        let before = std::fs::read(workdir.path(out)).unwrap();
        refused(&workdir.run(&["view", "a", "--out", out]), "not a page of this program");
        assert_eq!(std::fs::read(workdir.path(out)).unwrap(), before, "{out}");
    }
    workdir.write("empty.html", "");
    for out in ["a/view.html", "new.html", "new.html", "empty.html"] {
        workdir.run(&["view", "a", "--out", out]).ok();
    }
    workdir.run(&["view", "a", "b", "--out", "new.html"]).ok();
}

#[test]
fn an_export_replaces_only_an_export() {
    let workdir = prepared();
    let export = |options: &[&str]| workdir.run(&[&["export", "a", "--json"], options].concat());
    for (file, options) in [
        ("mine.jsonl", &["--out", "mine.jsonl"][..]),
        ("config.json", &["--out", "config.json"]),
        ("new.changes.jsonl", &["--out", "new.jsonl"]),
        ("new.axolotl.yaml", &["--out", "new.jsonl", "--format", "axolotl"]),
        ("todo.jsonl", &["--out", "new.jsonl", "--rewrite-candidates", "todo.jsonl"]),
    ] {
        let path = workdir.write(file, MINE);
        refused(&export(options), "is not overwritten");
        assert_eq!(std::fs::read(&path).unwrap(), MINE, "{file}");
        assert!(!workdir.path("new.jsonl").exists(), "{file}");
        std::fs::remove_file(path).unwrap();
    }
    for out in ["clean.jsonl", "clean.parquet"] {
        for _ in 0..2 {
            let options = ["--out", out, "--format", "axolotl", "--rewrite-candidates", "todo.jsonl"];
            assert!(export(&options).ok().json()["candidates"].as_u64() > Some(0));
        }
    }
    // Answers that somebody has written into the file of candidates are not lost.
    let todo = std::fs::read_to_string(workdir.path("todo.jsonl")).unwrap();
    let mut first: Value = serde_json::from_str(todo.lines().next().unwrap()).unwrap();
    first["rewrite"] = "A better answer.".into();
    workdir.write("todo.jsonl", format!("{first}\n"));
    refused(&export(&["--out", "clean.jsonl", "--rewrite-candidates", "todo.jsonl"]), "is not overwritten");
}
