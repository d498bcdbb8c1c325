//! Tests `diagnose eval` on training rows, and on published questions whose answers are in another file.

use diagnose::table::{Column, read_chunks};
use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::Workdir;

fn workdir() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir
}

fn scores(workdir: &Workdir, out: &str) -> Value {
    let text = std::fs::read_to_string(workdir.path(out).join("scores.json")).unwrap();
    serde_json::from_str::<Value>(&text).unwrap()["tasks"].clone()
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

/// Rows of two sources, the answers of the second longer.
fn rows(n: usize) -> String {
    let row = |i: usize| {
        let (source, answer) = if i.is_multiple_of(3) { ("law", "yes ".repeat(9)) } else { ("art", format!("number {i}")) };
        json!({"source": source, "instruction": format!("What is {i}?"), "input": "", "output": answer}).to_string()
    };
    (0..n).map(row).collect::<Vec<_>>().join("\n")
}

#[test]
fn the_cross_entropy_of_rows_is_that_of_their_scores_by_source_and_in_a_comparison() {
    let workdir = workdir();
    workdir.write("held.jsonl", rows(30));
    workdir.run(&["held.jsonl", "--model", "tiny.gguf", "--out", "run"]).ok();
    let mut sums = [(0.0, 0u32); 2];
    for chunk in read_chunks(&[workdir.path("run/tokens.parquet")], &[Column::Row, Column::Logprob]) {
        let chunk = chunk.unwrap();
        for (row, logprob) in chunk.row.iter().zip(&chunk.logprob) {
            let (sum, n) = &mut sums[usize::from(!row.is_multiple_of(3))];
            (*sum, *n) = (*sum - f64::from(*logprob), *n + 1);
        }
    }
    let eval = |out: &str, more: &[&str]| {
        workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", "held.jsonl", "--out", out], more].concat())
    };
    let shown = eval("eval", &[]).ok().stdout;
    let task = scores(&workdir, "eval")["held"].clone();
    let metric = |task: &Value| number(&task["metrics"]["cross_entropy"]["value"]);
    let all = (sums[0].0 + sums[1].0) / f64::from(sums[0].1 + sums[1].1);
    assert_eq!((&task["kind"], &task["n"]), (&json!("rows"), &json!(30)));
    assert!((metric(&task) - all).abs() < 1e-6, "{} is not {all}: {task}", metric(&task));
    assert!((number(&task["metrics"]["perplexity"]["value"]) - all.exp()).abs() < 1e-4 * all.exp());
    for (source, (sum, n)) in ["law", "art"].into_iter().zip(sums) {
        let (part, mean) = (&task["groups"][source], sum / f64::from(n));
        assert!((number(&part["value"]) - mean).abs() < 1e-6, "{source}: {part}");
        assert!(number(&part["ci95"][0]) < mean && mean < number(&part["ci95"][1]), "{source}: {part}");
    }
    let ci95 = &task["metrics"]["cross_entropy"]["ci95"];
    assert!(number(&ci95[0]) < all && all < number(&ci95[1]), "{ci95}");
    // Nats, and no share.
    let line = |name: &str| shown.lines().find(|line| line.contains(name)).unwrap_or_else(|| panic!("{name}: {shown}"));
    assert!(line("cross_entropy").contains(&format!("{:.4} ", metric(&task))) && !line("cross_entropy").contains('%'), "{shown}");
    assert!(line("law: ").contains("in 10 rows") && line("art: ").contains("in 20 rows"), "{shown}");

    // Of the first rows, of a sample of all, whatever their sources, and with another system prompt; two of the same give no difference.
    eval("some", &["--limit", "4"]).ok();
    assert_eq!(scores(&workdir, "some")["held"]["n"], 4);
    let shown = eval("sample", &["--sample", "8", "--seed", "3"]).ok().stdout;
    assert_eq!(scores(&workdir, "sample")["held"]["n"], 8);
    assert!(shown.contains("8 items drawn at random, seed 3"), "{shown}");
    eval("system", &["--system", "Be brief."]).ok();
    assert!((metric(&scores(&workdir, "system")["held"]) - all).abs() > 1e-6, "the system prompt changes nothing");
    eval("again", &[]).ok();
    let ran = workdir.run(&["diff", "eval", "again", "--json", "--out", "diff"]).ok();
    let change = &ran.json()["tasks"]["held"]["metrics"]["cross_entropy"];
    assert_eq!((number(&change["difference"]["value"]), &change["lower_is_better"]), (0.0, &json!(true)));

    let refused = |ran: crate::workdir::Ran, expected: &str| {
        assert!(ran.code != Some(0) && ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    };
    refused(eval("none", &["--fewshot", "2"]), "--fewshot is for questions");
    workdir.write("bad.jsonl", format!("{}\n{{\"instruction\": 7}}", rows(2)));
    refused(workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "bad.jsonl", "--out", "none"]), "bad.jsonl:3");
    workdir.write("empty.jsonl", r#"{"messages":[{"role":"user","content":"No answer?"}]}"#);
    refused(
        workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "empty.jsonl", "--out", "none"]),
        "none of its tokens is supervised",
    );
}

/// Rows without ids are found again by what they say: another order of the file changes no pair, and so nothing at all.
#[test]
fn rows_without_ids_are_paired_in_any_order() {
    let workdir = workdir();
    let lines: Vec<String> = rows(12).lines().map(str::to_owned).collect();
    let twice = [&lines[..], &lines[..1]].concat();
    let backwards: Vec<String> = twice.iter().rev().cloned().collect();
    for (folder, lines) in [("a", &twice), ("b", &backwards)] {
        std::fs::create_dir(workdir.path(folder)).unwrap();
        workdir.write(&format!("{folder}/held.jsonl"), lines.join("\n"));
        let tasks = format!("{folder}/held.jsonl");
        let out = format!("eval-{folder}");
        workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", &tasks, "--out", &out]).ok();
    }
    let diff = workdir.run(&["diff", "eval-a", "eval-b", "--json"]).ok().json();
    let task = &diff["tasks"]["held"];
    assert_eq!((&task["n"], &task["data_differs"]), (&json!(13), &json!(true)), "{task}");
    let [a, b] = ["eval-a", "eval-b"].map(|out| {
        let samples = diagnose::eval::samples::read(&workdir.path(out).join("samples.parquet")).unwrap().remove("held").unwrap();
        let said = samples.into_iter().map(|sample| (sample.id, (sample.choices[0].tokens, sample.choices[0].logprob)));
        said.collect::<std::collections::BTreeMap<_, _>>()
    });
    assert_eq!(a.len(), 13);
    for (id, (tokens, logprob)) in &a {
        assert!(b[id].0 == *tokens && (b[id].1 - logprob).abs() < 1e-4, "{id}: {:?} and {:?}", a[id], b[id]);
    }
}

/// Other rows under the same ids are compared, as prompts may have been mended, and counted.
#[test]
fn other_rows_of_the_same_ids_are_counted() {
    let workdir = workdir();
    let row = |i: usize, answer: &str| {
        json!({"id": format!("r{i}"), "prompt": format!("What is {i}?"), "completion": answer}).to_string()
    };
    for (out, answers) in [("a", ["one", "two", "three"]), ("b", ["one", "three", "three"])] {
        let rows: Vec<String> = answers.iter().enumerate().map(|(i, answer)| row(i, answer)).collect();
        workdir.write("held.jsonl", rows.join("\n"));
        workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "held.jsonl", "--out", out]).ok();
    }
    let diff = workdir.run(&["diff", "a", "b"]).ok();
    let said = diff.stdout + &diff.stderr;
    assert!(said.contains("held: 1 of 3 items was asked with a different prompt"), "{said}");
}

#[test]
fn questions_find_their_answers_in_the_file_beside_them() {
    let workdir = workdir();
    let function = json!({"name": "add", "description": "Adds.", "parameters": {"type": "dict", "properties":
        {"a": {"type": "integer", "description": "one"}, "b": {"type": "integer", "description": "two"}}, "required": ["a", "b"]}});
    let question = |i: usize, category: &str| {
        json!({"id": format!("{category}_{i}"), "question": [[{"role": "user", "content": format!("Add {i} and 2.")}]], "function": [function]}).to_string()
    };
    let answer =
        |i: usize| json!({"id": format!("simple_python_{i}"), "ground_truth": [{"add": {"a": [i], "b": [2]}}]}).to_string();
    std::fs::create_dir_all(workdir.path("bfcl/possible_answer")).unwrap();
    let lines = |f: &dyn Fn(usize) -> String| (0..3).map(f).collect::<Vec<_>>().join("\n");
    workdir.write("bfcl/BFCL_v4_simple_python.json", lines(&|i| question(i, "simple_python")));
    workdir.write("bfcl/BFCL_v4_irrelevance.json", lines(&|i| question(i, "irrelevance")));
    workdir.write("bfcl/possible_answer/BFCL_v4_simple_python.json", lines(&answer));
    let eval = |more: &[&str]| {
        let options = ["eval", "--model", "tiny.gguf", "--tasks", "bfcl=bfcl", "--max-new-tokens", "6"];
        workdir.run(&[&options[..], more].concat())
    };
    eval(&["--out", "scores", "--apply-chat-template"]).ok();
    let task = scores(&workdir, "scores")["bfcl"].clone();
    // A model of random weights calls nothing, which is right where nothing fits.
    assert_eq!((&task["n"], &task["primary"]), (&json!(6), &json!("acc")));
    assert_eq!(task["groups"]["simple_python"]["value"], 0.0);
    assert_eq!(task["groups"]["irrelevance"]["value"], 1.0);
    let ran = eval(&["--out", "none"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("Add --apply-chat-template"), "{}", ran.stderr);

    // Other answers are other data; without them there is nothing to judge by.
    workdir.write("bfcl/possible_answer/BFCL_v4_simple_python.json", lines(&|i| answer(i).replace("[2]", "[2, 3]")));
    let hash = |out: &str| scores(&workdir, out)["bfcl"]["data_sha256"].clone();
    eval(&["--out", "other", "--apply-chat-template"]).ok();
    assert_ne!(hash("scores"), hash("other"));
    std::fs::remove_dir_all(workdir.path("bfcl/possible_answer")).unwrap();
    let ran = eval(&["--out", "none", "--apply-chat-template"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("expected a list of calls, found null"), "{}", ran.stderr);

    let ran = workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "cluewsc", "--out", "none"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--tasks cluewsc=FILE"), "{}", ran.stderr);
}
