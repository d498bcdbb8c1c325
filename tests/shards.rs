//! Tests shards of a data set that are scored separately: joined, they equal the run of one machine.

use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::Workdir;

const N: u32 = 3;
const ROW: &str = r#"{"messages":[{"role":"user","content":"What?"},{"role":"assistant","content":"the fox and the dog"}]}"#;

fn workdir() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        let answer = "the fox and the dog ".repeat(1 + i % 4);
        format!(r#"{{"messages":[{{"role":"user","content":"Question {i}?"}},{{"role":"assistant","content":"{i} {answer}"}}]}}"#)
    };
    // Several parts, and rows that are not scored.
    let mut rows: Vec<String> = (0..900).map(row).collect();
    rows.insert(17, r#"{"messages":[{"role":"user","content":"nobody answers"}]}"#.to_owned());
    rows.insert(500, r#"{"messages":"no list"}"#.to_owned());
    workdir.write("rows.jsonl", rows.join("\n"));
    workdir
}

fn score_shards(workdir: &Workdir, out: &str, more: &[&str]) {
    for i in 0..N {
        let (shard, out) = (format!("{i}/{N}"), format!("{out}-shard-{i}-of-{N}"));
        let arguments = [&["rows.jsonl", "--model", "tiny.gguf", "--shard", &shard, "--out", &out], more].concat();
        workdir.run(&arguments).ok();
    }
}

fn read(workdir: &Workdir, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(workdir.path(name)).unwrap()).unwrap()
}

#[test]
fn three_shards_joined_are_one_run_byte_for_byte() {
    let workdir = workdir();
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "one"]).ok();
    score_shards(&workdir, "many", &[]);
    let ran = workdir.run(&["many-shard-*"]).ok();
    assert!(ran.stdout.contains("900 of 902 rows"), "{}", ran.stdout);
    for name in ["tokens.parquet", "rows.parquet", "alternatives.parquet", "conflicts.parquet"] {
        let [one, many] = ["one", "many"].map(|run| std::fs::read(workdir.path(run).join(name)).unwrap());
        assert!(one == many, "{name} differs");
    }
    let [one, many] = ["one", "many"].map(|run| read(&workdir, &format!("{run}/run.json")));
    for field in ["identity", "counts", "model", "data", "template_sha256", "vocab_size", "dtype", "kernel_level"] {
        assert_eq!(one[field], many[field], "{field}");
    }
    // All but the sample of curves, of which each shard draws its own.
    let [mut one, mut many] = ["one", "many"].map(|run| read(&workdir, &format!("{run}/summary.json")));
    assert!(many["topk_fidelity"].as_array().is_some_and(|curves| !curves.is_empty()));
    (one["topk_fidelity"], many["topk_fidelity"]) = (Value::Null, Value::Null);
    assert_eq!(one, many);

    // Whatever reads runs takes them as one, in any order.
    std::fs::remove_dir_all(workdir.path("many")).unwrap();
    let shards = ["many-shard-2-of-3", "many-shard-0-of-3", "many-shard-1-of-3"];
    workdir.run(&[&["view"], &shards[..], &["--out", "page.html"]].concat()).ok();
    assert!(workdir.path("page.html").metadata().unwrap().len() > 100_000);
    assert!(
        std::fs::read(workdir.path("one/tokens.parquet")).unwrap() == std::fs::read(workdir.path("many/tokens.parquet")).unwrap()
    );
    let exported = workdir.run(&["export", "many-shard-*", "--out", "kept.jsonl", "--json"]).ok().json();
    assert_eq!(exported["rows_written"], 902, "{exported}");
    let diff = workdir.run(&["diff", "one", "many-shard-*", "--json"]).ok();
    assert!(diff.stdout.contains("tokens"), "{}", diff.stdout);
    // Other thresholds, in a folder of their own.
    workdir.run(&["many-shard-*", "--thresholds", "groups", "--out", "groups"]).ok();
    assert_eq!(read(&workdir, "groups/summary.json")["thresholds"]["preset"], "groups");
    // Without any, those that the shards are sorted by.
    shards.iter().for_each(|shard| drop(workdir.run(&[shard, "--thresholds", "pilot"]).ok()));
    workdir.run(&["many-shard-*", "--out", "pilot"]).ok();
    assert_eq!(read(&workdir, "pilot/summary.json")["thresholds"]["preset"], "pilot");
    // One alone is a run over its rows, by its name or by a glob.
    for name in ["many-shard-1-of-3", "many-shard-1*"] {
        let alone = workdir.run(&[name]).ok();
        assert!(alone.stdout.contains("shard 1/3 of the data"), "{}", alone.stdout);
    }
    // Beside another run it has a name of its own first.
    let ran = workdir.run(&["many-shard-*", "one", "--out", "both"]);
    assert!(ran.code == Some(2) && ran.stderr.contains("--out names one folder, but there are 2 runs"), "{}", ran.stderr);
}

/// Rows with all sorts of faults, many of them twice and more, and thrice as many without.
fn dirty_rows() -> String {
    let turns = |turns: Value| json!({ "messages": turns });
    let row = |i: usize| {
        let user = json!({"role": "user", "content": format!("Question {i}?")});
        let answer = |content: Value| json!({"role": "assistant", "content": content});
        match i % 40 {
            0 => ROW.to_owned(),
            1 => r#"{"messages":"no list"}"#.to_owned(),
            2 => turns(json!([{"role": "wizard", "content": format!("{i}")}, answer("x".into())])).to_string(),
            3 => turns(json!([{"role": "developer", "content": "Be brief."}, user, answer("the fox".into())])).to_string(),
            4 => turns(json!([user, answer("".into())])).to_string(),
            5 => turns(json!([user, {"role": "assistant", "content": "a dog", "lossy": true}])).to_string(),
            6 => turns(json!([user, answer("the fox and the dog ".repeat(200).into())])).to_string(),
            7 => turns(json!([user, answer("before <|im_end|> behind".into())])).to_string(),
            8 => turns(json!([user])).to_string(),
            9 => turns(json!([{"role": "user", "content": ""}, answer(format!("it is {}", i % 80).into())])).to_string(),
            10 => format!("{{\"messages\": [{i}"),
            n => turns(json!([user, answer(format!("{} the fox and the dog", i % (n * 20)).into())])).to_string(),
        }
    };
    (0..400).map(row).collect::<Vec<_>>().join("\n")
}

#[test]
fn what_a_joined_run_says_is_what_one_run_says() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", dirty_rows());
    let short = ["--max-len", "300"];
    workdir.run(&[&["rows.jsonl", "--model", "tiny.gguf", "--out", "one"], &short[..]].concat()).ok();
    score_shards(&workdir, "many", &short);
    workdir.run(&["many-shard-*"]).ok();
    let [mut one, mut many] = ["one", "many"].map(|run| read(&workdir, &format!("{run}/run.json")));
    let found = |name: &str| one["audit"]["findings"].as_array().unwrap().iter().find(|finding| finding["name"] == name).unwrap();
    for name in
        ["empty_mask", "empty_answer", "empty_question", "unused_switches", "special_in_content", "truncated", "template_error"]
    {
        assert!(found(name)["rows"].as_u64().unwrap() > 3, "{name} is not in the data: {}", found(name));
    }
    let lines = one["audit_lines"].to_string();
    assert!(lines.contains(" rows are equal to an earlier one, token by token"), "{lines}");
    // No shard has seen them all.
    assert_ne!(read(&workdir, "many-shard-0-of-3/run.json")["audit"]["equal"]["rows"], one["audit"]["equal"]["rows"]);
    // All but what a process measures of itself, and the command.
    for run in [&mut one, &mut many] {
        let run = run.as_object_mut().unwrap();
        for own in ["command", "started", "seconds", "seconds_to_first_row", "tokens_per_second", "peak_memory_bytes"] {
            assert!(run.remove(own).is_some(), "{own}");
        }
    }
    for (name, value) in one.as_object().unwrap() {
        assert_eq!(*value, many[name], "{name}");
    }
    assert_eq!(one, many);
    let [mut one, mut many] = ["one", "many"].map(|run| read(&workdir, &format!("{run}/summary.json")));
    // Each shard draws its own sample of curves, and says of how many tokens.
    (one["topk_fidelity"], many["topk_fidelity"]) = (Value::Null, Value::Null);
    assert_eq!(one, many);
    let report = |run: &str| {
        let text = std::fs::read_to_string(workdir.path(run).join("report.md")).unwrap();
        let (head, rest) = text.split_once("## The mask").unwrap();
        let (body, _) = rest.split_once("## Can the model's own numbers be trusted?").unwrap();
        let head: Vec<&str> =
            head.split("Made by diagnose").next().unwrap().lines().filter(|line| !line.starts_with("| speed")).collect();
        (head.join("\n"), body.to_owned())
    };
    assert_eq!(report("one"), report("many"));
    for name in ["tokens.parquet", "rows.parquet", "conflicts.parquet", "planted.json"] {
        let [one, many] = ["one", "many"].map(|run| std::fs::read(workdir.path(run).join(name)).ok());
        assert!(one == many, "{name} differs");
    }
}

#[test]
fn what_does_not_belong_together_is_named() {
    let workdir = workdir();
    score_shards(&workdir, "a", &["--limit", "40"]);
    let check = |runs: &[&str], message: &str| {
        let ran = workdir.run(runs);
        assert!(ran.code != Some(0) && ran.stderr.contains(message), "expected {message}, found {}{}", ran.stdout, ran.stderr);
    };
    check(&["a-shard-0-of-3", "a-shard-2-of-3"], "1 of 3 shards are missing: 1/3");
    check(&["a-shard-0-of-3", "a-shard-1-of-3", "a-shard-2-of-3", "a-shard-1-of-3"], "this is shard 1/3 again");
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--limit", "40", "--shard", "1/2", "--out", "half"]).ok();
    check(
        &["half", "a-shard-0-of-3"],
        "shard 1/2 and shard 0/3 (in a-shard-0-of-3) belong to runs that were divided differently",
    );
    // Another model, and other instructions of the processor.
    tiny_model::write_noised(&workdir.path("other.gguf"), 0.5);
    workdir.run(&["rows.jsonl", "--model", "other.gguf", "--limit", "40", "--shard", "2/3", "--out", "other"]).ok();
    check(&["a-shard-0-of-3", "a-shard-1-of-3", "other"], "the model is");
    let mut command =
        workdir.command(&["rows.jsonl", "--model", "tiny.gguf", "--limit", "40", "--shard", "2/3", "--out", "plain"]);
    let plain = command.env("DIAGNOSE_KERNELS", "portable").output().unwrap();
    assert!(plain.status.success(), "{}", String::from_utf8_lossy(&plain.stderr));
    let level = read(&workdir, "plain/run.json")["kernel_level"].clone();
    if read(&workdir, "a-shard-0-of-3/run.json")["kernel_level"] != level {
        check(&["a-shard-0-of-3", "a-shard-1-of-3", "plain"], "the kernel level is");
    }
    // Shards that are sorted by other thresholds: for the reader to say.
    workdir.run(&["a-shard-1-of-3", "--thresholds", "groups"]).ok();
    check(&["view", "a-shard-0-of-3", "a-shard-1-of-3", "a-shard-2-of-3"], "the shards are sorted by different thresholds");
    // Killed when it had its parts and no record.
    assert!(workdir.path("a/parts").exists());
    std::fs::remove_file(workdir.path("a/run.json")).unwrap();
    workdir.run(&["a-shard-0-of-3", "a-shard-1-of-3", "a-shard-2-of-3", "--thresholds", "fixed"]).ok();
    assert_eq!(read(&workdir, "a/run.json")["counts"]["records"], 40);
    // Parts of the same run that was scored, and not to its end.
    std::fs::create_dir_all(workdir.path("scoring/parts")).unwrap();
    let identity = format!("{{\"identity\": {}}}", read(&workdir, "a/run.json")["identity"]);
    workdir.write("scoring/parts/identity.json", identity);
    check(&["a-shard-0-of-3", "a-shard-1-of-3", "a-shard-2-of-3", "--out", "scoring"], "holds a run that was not finished");
    score_shards(&workdir, "b", &["--limit", "30"]);
    // In the order in which they are named.
    for [first, second] in [["a", "b"], ["b", "a"]] {
        check(
            &[&format!("{first}-shard-*"), &format!("{second}-shard-*"), "--out", "never"],
            &format!(
                "--out names one folder, but there are 2 runs: {first}-shard-0-of-3 (shard 0/3), {second}-shard-0-of-3 (shard 0/3)"
            ),
        );
    }
    check(&["view", "nothing-*"], "nothing-*");
    // Killed behind its tables: what stands beside them may be missing.
    std::fs::remove_file(workdir.path("a-shard-2-of-3/summary.json")).unwrap();
    check(&["a-shard-0-of-3", "a-shard-1-of-3", "a-shard-2-of-3", "--out", "never"], "was killed before it was finished");
}

#[test]
fn shards_without_anything_to_score_are_runs_that_join() {
    let workdir = workdir();
    // One row, of which two of three shards have nothing; and a second one that nobody answers, which one of them may have.
    workdir.write("two.jsonl", format!("{}\n{}\n", ROW, r#"{"messages":[{"role":"user","content":"nobody answers"}]}"#));
    workdir.run(&["two.jsonl", "--model", "tiny.gguf", "--out", "one"]).ok();
    let mut scored = 0;
    for i in 0..N {
        let (shard, out) = (format!("{i}/{N}"), format!("s-shard-{i}-of-{N}"));
        workdir.run(&["two.jsonl", "--model", "tiny.gguf", "--shard", &shard, "--out", &out]).ok();
        let counts = read(&workdir, &format!("{out}/run.json"))["counts"].clone();
        assert_eq!(workdir.path(&out).join("view.html").exists(), counts["scored"] == 1);
        scored += u64::from(counts["scored"] == 1);
        // It is reported again like any other.
        workdir.run(&[&out]).ok();
        let seen = workdir.run(&["view", &out]);
        assert!(seen.code == Some(0) || seen.stderr.contains("there is nothing to show"), "{}", seen.stderr);
    }
    assert_eq!(scored, 1);
    workdir.run(&["s-shard-*"]).ok();
    for name in ["tokens.parquet", "rows.parquet", "conflicts.parquet"] {
        let [one, many] = ["one", "s"].map(|run| std::fs::read(workdir.path(run).join(name)).unwrap());
        assert!(one == many, "{name} differs");
    }
    // Where no shard has anything, that is said.
    workdir.write("none.jsonl", r#"{"messages":[{"role":"user","content":"nobody answers"}]}"#);
    let ran = workdir.run(&["none.jsonl", "--model", "tiny.gguf", "--shard", "0/3"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("there is nothing to score"), "{}", ran.stderr);
}

#[test]
fn the_slurm_array_runs_on_one_machine() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        format!(r#"{{"messages":[{{"role":"user","content":"{i}?"}},{{"role":"assistant","content":"{i} the fox"}}]}}"#)
    };
    workdir.write("rows.jsonl", (0..40).map(row).collect::<Vec<_>>().join("\n"));
    let script = concat!(env!("CARGO_MANIFEST_DIR"), "/examples/shards.slurm");
    assert!(std::fs::read_to_string(script).unwrap().contains("#SBATCH --array=0-3\n"));
    let program = std::path::Path::new(env!("CARGO_BIN_EXE_diagnose")).parent().unwrap();
    let path = format!("{}:{}", program.display(), std::env::var("PATH").unwrap());
    // What Slurm sets for a task of the array.
    let task = |task: u32, runs: &str| {
        let mut command = std::process::Command::new("bash");
        command.args([script, "rows.jsonl", "--model", "tiny.gguf"]).current_dir(workdir.path("")).envs([
            ("PATH", path.as_str()),
            ("SLURM_ARRAY_TASK_ID", &task.to_string()),
            ("SLURM_ARRAY_TASK_COUNT", "4"),
            ("RUNS", runs),
        ]);
        command.stdout(std::process::Stdio::null()).stderr(std::process::Stdio::piped());
        command
    };
    for i in 0..4 {
        let ran = task(i, "runs/scores").output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
        assert_eq!(workdir.path("runs/scores/summary.json").exists(), i == 3, "after task {i}");
    }
    // All at once: whichever is the last joins.
    let tasks: Vec<_> = (0..4).map(|i| task(i, "runs/at_once").spawn().unwrap()).collect();
    for task in tasks {
        let ran = task.wait_with_output().unwrap();
        assert!(ran.status.success(), "{}", String::from_utf8_lossy(&ran.stderr));
    }
    assert_eq!(read(&workdir, "runs/at_once/run.json")["counts"]["records"], 40);
    assert_eq!(read(&workdir, "runs/scores/run.json")["counts"]["records"], 40);
}
