//! Tests what a killed run leaves: complete files only, and the same table after the same command.

use std::path::Path;
use std::time::{Duration, Instant};

use crate::tiny_model;
use crate::workdir::Workdir;

const ROWS: usize = 2_000;

fn data() -> String {
    let row = |i: usize| {
        let answer = "the quick brown fox jumps over the lazy dog ".repeat(1 + i % 3);
        format!(r#"{{"messages":[{{"role":"user","content":"Question {i}?"}},{{"role":"assistant","content":"{i} {answer}"}}]}}"#)
    };
    (0..ROWS).map(row).collect::<Vec<_>>().join("\n")
}

/// Every file under its final name can be read to its end.
fn check_whole(run: &Path) {
    let Ok(entries) = std::fs::read_dir(run) else { return };
    for entry in entries {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if path.is_dir() {
            check_whole(&path);
        } else if name.starts_with('.') {
            continue;
        } else if name.ends_with(".json") {
            let text = std::fs::read_to_string(&path).unwrap();
            serde_json::from_str::<serde_json::Value>(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        } else if name.ends_with(".parquet") {
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes.starts_with(b"PAR1") && bytes.ends_with(b"PAR1"), "{} is cut short", path.display());
        } else if name.ends_with(".png") {
            let bytes = std::fs::read(&path).unwrap();
            assert!(bytes.windows(4).any(|window| window == b"IEND"), "{} is cut short", path.display());
        }
    }
}

#[test]
fn killed_at_ten_moments_and_run_again_gives_the_same_table() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", data());
    let arguments = |out: &'static str| ["rows.jsonl", "--model", "tiny.gguf", "--out", out];

    let began = Instant::now();
    workdir.run(&arguments("undisturbed")).ok();
    let whole = began.elapsed();

    for moment in 0..10u32 {
        let mut child = workdir.command(&arguments("killed")).stderr(std::process::Stdio::null()).spawn().unwrap();
        // Spread over the run and beyond the start, which the later ones mostly see.
        std::thread::sleep(whole * (moment + 1) / 11 + Duration::from_millis(u64::from(moment * 7 % 5)));
        child.kill().unwrap();
        child.wait().unwrap();
        check_whole(&workdir.path("killed"));
    }
    workdir.run(&arguments("killed")).ok();
    for name in ["tokens.parquet", "rows.parquet", "fidelity.json", "summary.json"] {
        let read = |run: &str| std::fs::read(workdir.path(run).join(name)).unwrap();
        assert!(read("undisturbed") == read("killed"), "{name} differs after the kills");
    }
    let parts = workdir.path("killed").join("parts");
    assert!(!parts.exists(), "the parts are still there");
}

/// An interrupt ends the current part, loses nothing, and the message says how to resume.
#[cfg(unix)]
#[test]
fn an_interrupt_keeps_what_is_under_way_and_says_how_to_go_on() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", data());
    let arguments = |out: &'static str| ["rows.jsonl", "--model", "tiny.gguf", "--out", out];
    workdir.run(&arguments("undisturbed")).ok();

    let child = workdir
        .command(&arguments("left"))
        .stdout(std::process::Stdio::null())
        .stderr(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    let parts = workdir.path("left/parts");
    let n_parts = || {
        std::fs::read_dir(&parts).map_or(0, |entries| {
            entries
                .filter(|entry| entry.as_ref().unwrap().path().extension().is_some_and(|extension| extension == "parquet"))
                .count()
        })
    };
    let began = Instant::now();
    while n_parts() == 0 {
        assert!(began.elapsed() < Duration::from_secs(120), "no part was written");
        std::thread::sleep(Duration::from_millis(5));
    }
    // A notebook sends it to the whole group, and who has started the program passes it on: one interrupt all the same.
    for signal in ["-INT", "-TERM"] {
        let interrupted = std::process::Command::new("kill").args([signal, &child.id().to_string()]).status().unwrap();
        assert!(interrupted.success());
    }
    let left = child.wait_with_output().unwrap();
    let said = String::from_utf8(left.stderr).unwrap();
    assert_eq!(left.status.code(), Some(1), "{said}");
    assert!(said.contains("error: interrupted after ") && said.contains("Run the same command again to resume."), "{said}");
    let kept = n_parts();
    assert!(kept > 0 && !workdir.path("left/tokens.parquet").exists());
    let (_, tokens) = said.split_once("interrupted after ").unwrap();
    let (done, total) = tokens.split_once(" tokens").unwrap().0.split_once(" of ").unwrap();
    let number = |text: &str| text.replace(',', "").parse::<u64>().unwrap();
    assert!(0 < number(done) && number(done) < number(total), "{said}");

    let ran = workdir.run(&arguments("left")).ok();
    assert!(!ran.stderr.contains("interrupted"), "{}", ran.stderr);
    for name in ["tokens.parquet", "rows.parquet", "summary.json"] {
        let read = |run: &str| std::fs::read(workdir.path(run).join(name)).unwrap();
        assert!(read("undisturbed") == read("left"), "{name} differs after the interrupt");
    }
}

/// Two runs at once would write the same files.
#[test]
fn a_folder_in_which_another_process_is_at_work_is_refused() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", r#"{"prompt":"What is it?","completion":"A test."}"#);
    workdir.write("task.jsonl", r#"{"context":"a","choices":["b","c"],"answer":0}"#);
    let commands: [&[&str]; 4] = [
        &["rows.jsonl", "--model", "tiny.gguf"],
        &["train", "rows.jsonl", "--model", "tiny.gguf", "--max-steps", "1", "--warmup-steps", "0"],
        &["eval", "--model", "tiny.gguf", "--tasks", "task.jsonl"],
        &["rollout", "rows.jsonl", "--model", "tiny.gguf", "--max-new-tokens", "2"],
    ];
    for (i, command) in commands.into_iter().enumerate() {
        let out = format!("out-{i}");
        let command = [command, &["--out", &out]].concat();
        std::fs::create_dir(workdir.path(&out)).unwrap();
        let lock = std::fs::File::create(workdir.path(&out).join(".lock")).unwrap();
        lock.lock().unwrap();
        let refused = workdir.run(&command);
        let says = refused.stderr.contains("another command is working in this folder") && refused.stderr.contains(&out);
        assert!(refused.code == Some(1) && says, "{command:?}: {}", refused.stderr);
        assert_eq!(std::fs::read_dir(workdir.path(&out)).unwrap().count(), 1, "{command:?} has written something");
        lock.unlock().unwrap();
        workdir.run(&command).ok();
    }
}

#[test]
fn a_finished_run_is_not_scored_again_and_another_command_is_refused_its_folder() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", data().lines().take(5).collect::<Vec<_>>().join("\n"));
    let arguments = ["rows.jsonl", "--model", "tiny.gguf", "--out", "run"];
    workdir.run(&arguments).ok();
    let table = workdir.path("run").join("tokens.parquet");
    let before = std::fs::read(&table).unwrap();
    workdir.run(&arguments).ok();
    assert!(before == std::fs::read(&table).unwrap());

    let other = workdir.run(&[&arguments[..], &["--max-len", "60"]].concat());
    assert_eq!(other.code, Some(1));
    assert!(other.stderr.contains("holds another run"), "{}", other.stderr);
    assert!(before == std::fs::read(&table).unwrap(), "the refused command changed the table");
}
