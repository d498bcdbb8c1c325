//! Tests the README's commands, run in order as they stand, and the guide's statements about files and columns.

use std::path::Path;

use polars::prelude::SerReader;
use serde_json::json;

use crate::tiny_model;
use crate::workdir::Workdir;

#[test]
fn the_commands_of_the_readme_run_as_they_stand() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let readme = std::fs::read_to_string(root.join("README.md")).unwrap();
    let (_, then) = readme.split_once("## Workflow\n\n```sh\n").unwrap();
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

/// The guide's tables of columns have those of the tables that runs leave, in their order, and it names every file of a run.
#[test]
fn the_guide_knows_every_column_and_every_file() {
    let workdir = Workdir::new();
    tiny_model::write(workdir.path("").as_path());
    let row = |asked: &str, answered: &str| {
        let turns = [("user", asked), ("assistant", answered)].map(|(role, content)| json!({ "role": role, "content": content }));
        json!({ "messages": turns, "planted": [{ "turn": 1, "begin": 0, "end": 4 }] }).to_string()
    };
    let rows = [row("Say hi to the lady.", "zubu wqo kjh fgd"), row("And what comes of it now?", "xvb poiu mnb lkj")];
    workdir.write("rows.jsonl", rows.join("\n"));
    workdir.write("c.jsonl", r#"{"context": "What, ", "choices": ["the fox", "a dog"], "answer": 1}"#);
    workdir.write("q.jsonl", r#"{"id": "q", "prompt": "What?", "answers": ["e", "t"], "match": "contains"}"#);
    for command in [
        "rows.jsonl --model tiny.gguf --out run --thresholds p=0.004,H=5.5 --in-context",
        "diff run run --out compared",
        "eval --model tiny.gguf --tasks c.jsonl,q.jsonl --max-new-tokens 9 --out scores",
    ] {
        workdir.run(&command.split(' ').collect::<Vec<_>>()).ok();
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let page = |name: &str| std::fs::read_to_string(root.join("src/guide").join(name)).unwrap();
    let (reading, evaluation) = (page("reading.md"), page("evaluation.md"));
    for (page, folder, tables) in [
        (&reading, "run", &["tokens", "rows", "conflicts", "pairs", "alternatives", "in_context"][..]),
        (&reading, "compared", &["learnt"]),
        (&evaluation, "scores", &["samples", "answers"]),
    ] {
        for table in tables {
            let file = format!("{table}.parquet");
            let (_, described) = page.split_once(&format!("### `{file}`\n")).unwrap_or_else(|| panic!("the guide has no {file}"));
            let described = described.split("\n#").next().unwrap();
            let described: Vec<&str> =
                described.lines().filter_map(|line| line.strip_prefix("| `")?.split_once("` | ")).map(|(name, _)| name).collect();
            let table = std::fs::File::open(workdir.path(folder).join(&file)).unwrap();
            let table = polars::prelude::ParquetReader::new(table).finish().unwrap();
            let mut columns: Vec<&str> = table.get_column_names().into_iter().map(|name| name.as_str()).collect();
            if file == "answers.parquet" {
                // The others are those of the metrics.
                assert_eq!(columns.split_off(described.len()).len() % 2, 0);
            }
            assert_eq!(described, columns, "{file}");
        }
    }
    let (_, left) = reading.split_once("## What a run leaves\n").unwrap();
    let left = left.split("\n## ").next().unwrap();
    for entry in std::fs::read_dir(workdir.path("run")).unwrap() {
        let name = entry.unwrap().file_name().into_string().unwrap();
        let name = if name == "maps" { "maps/*.png".to_owned() } else { name };
        assert!(left.contains(&format!("`{name}`")), "the guide says nothing of {name}");
    }
    // What --fail-on takes.
    let refused = workdir.run(&["check", "rows.jsonl", "--model", "tiny.gguf", "--fail-on", "nonsense"]).stderr;
    let (_, names) = refused.split_once("Known are any, ").unwrap();
    let data = page("data.md");
    for name in names.trim().trim_end_matches('.').split(", ") {
        assert!(data.contains(&format!("| `{name}` | ")), "the guide's page on data says nothing of {name}");
    }
}
