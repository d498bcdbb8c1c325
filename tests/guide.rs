//! The README's commands, run as they stand there, one after the other.

use std::path::Path;

use crate::tiny_model;
use crate::workdir::Workdir;

#[test]
fn the_commands_of_the_readme_run_as_they_stand() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (_, then) = readme.split_once("## Then\n\n```sh\n").unwrap();
    let commands: Vec<&str> =
        then.split_once("```").unwrap().0.lines().map(|line| line.split(" #").next().unwrap().trim()).collect();
    assert_eq!(commands.len(), 8, "{commands:?}");

    let workdir = Workdir::new();
    std::fs::rename(tiny_model::write(workdir.path("").as_path()), workdir.path("model.gguf")).unwrap();
    // A folder as a trained model is one: the tiny model after a step.
    let demo = std::fs::read_to_string(root.join("data/demo.jsonl")).unwrap();
    let rows: Vec<&str> = demo.lines().filter(|row| !row.contains("tool")).take(80).collect();
    workdir.write("data.jsonl", rows.join("\n"));
    let made = workdir.run(&[
        "train",
        "data.jsonl",
        "--model",
        "model.gguf",
        "--out",
        "made",
        "--max-steps",
        "1",
        "--warmup-steps",
        "0",
        "--lr",
        "1e-9",
    ]);
    assert_eq!(made.code, Some(0), "{}", made.stderr);
    std::fs::rename(workdir.path("made").join("model"), workdir.path("folder")).unwrap();
    for command in commands {
        let words: Vec<&str> = command.split_whitespace().collect();
        assert_eq!(words[0], "diagnose");
        if command.contains("--decisions decisions.jsonl") {
            // What a person exports from the page.
            let record: serde_json::Value =
                serde_json::from_slice(&std::fs::read(workdir.path("run/run.json")).unwrap()).unwrap();
            let head = serde_json::json!({ "decisions": 1, "run": record["identity"], "data": record["data"] });
            workdir.write("decisions.jsonl", format!("{head}\n{{\"row\": 3, \"action\": \"drop\"}}\n"));
        }
        let ran = workdir.run(&words[1..]);
        assert_eq!(ran.code, Some(0), "{command}\n{}", ran.stderr);
    }
    let n_rows = |file: &str| std::fs::read_to_string(workdir.path(file)).unwrap().lines().count();
    assert_eq!(n_rows("clean.jsonl") + 1, n_rows("data.jsonl"), "the row that was dropped");
    for left in ["run/view.html", "clean.jsonl", "tuned/model", "before/scores.json", "after/scores.json"] {
        assert!(workdir.path(left).exists(), "no {left}");
    }
}
