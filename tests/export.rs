//! Tests `diagnose export`: it reproduces the data byte for byte where nothing was decided, and otherwise leaves exactly the supervised tokens that
//! the decisions leave, in every format; and it refuses what it cannot do.

use std::collections::{BTreeMap, BTreeSet};
use std::path::Path;

use diagnose::table::{Column, Quadrant, read_chunks};
use serde_json::{Value, json};

use crate::tiny_model;
use crate::workdir::{Workdir, default_model};

/// Rows as people write them: irregular spacing, a blank line, an unreadable row, no line feed at the end.
const ROWS: &str = concat!(
    "{\"id\": \"a\", \"messages\": [{\"role\": \"user\", \"content\": \"Say hi.\"}, {\"role\": \"assistant\", \"content\": \"hi there\"}], \"note\": 1}\n",
    "{\"id\":\"b\",\"source\":\"second\",\"messages\":[{\"role\":\"system\",\"content\":\"Be brief.\"},{\"role\":\"user\",\"content\":\"And?\"},{\"role\":\"assistant\",\"content\":\"n\\u00e9, so it is\"},{\"role\":\"user\",\"content\":\"Why?\"},{\"role\":\"assistant\",\"content\":\"because of 12 🙂\"}]}\r\n",
    "\n",
    "{\"id\": \"c\", \"messages\": [ {\"role\":\"user\",\"content\":\"Tell me.\"}, {\"role\":\"assistant\",\"content\":\"no\"} ] }\n",
    "not a row\n",
    "{\"id\":\"d\",\"messages\":[{\"role\":\"user\",\"content\":\"Last?\"},{\"role\":\"assistant\",\"content\":\"yes,  it\\tis\"}]}",
);

fn scored(rows: &str) -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", rows);
    score(&workdir, "rows.jsonl", "run");
    workdir
}

/// Every token of a random model is uncertain; these thresholds make conflicts of some.
fn score(workdir: &Workdir, data: &str, out: &str) {
    workdir.run(&[data, "--model", "tiny.gguf", "--out", out, "--thresholds", "p=0.003,H=99"]).ok();
}

fn export(workdir: &Workdir, options: &[&str]) -> Value {
    workdir.run(&[&["export", "run", "--json"], options].concat()).ok().json()
}

/// A supervised token: the number of the scored row among the scored, turn, place, token; then its bytes and quadrant.
type Token = (usize, u32, u32, (u32, u32), u16, Quadrant);

fn tokens(run: &Path) -> Vec<Token> {
    let columns = [Column::Row, Column::Turn, Column::Pos, Column::TokenId, Column::Begin, Column::End, Column::Quadrant];
    let (mut tokens, mut rows) = (Vec::new(), BTreeMap::new());
    for chunk in read_chunks(&[run.join("tokens.parquet")], &columns) {
        let chunk = chunk.unwrap();
        for i in 0..chunk.len() {
            let n = rows.len();
            let row = *rows.entry(chunk.row[i]).or_insert(n);
            tokens.push((row, chunk.pos[i], chunk.token_id[i], (chunk.begin[i], chunk.end[i]), chunk.turn[i], chunk.quadrant[i]));
        }
    }
    tokens
}

fn places(tokens: &[Token]) -> Vec<(usize, u32, u32)> {
    tokens.iter().map(|&(row, pos, id, ..)| (row, pos, id)).collect()
}

/// The whole characters of a span of a scored row.
fn whole(row: usize, turn: u16, begin: u32, end: u32) -> (u32, u32) {
    let line = ROWS.split('\n').filter(|line| line.starts_with('{')).nth(row).unwrap();
    let line: Value = serde_json::from_str(line).unwrap();
    let content = line["messages"][usize::from(turn)]["content"].as_str().unwrap();
    (content.floor_char_boundary(begin as usize) as u32, content.ceil_char_boundary(end as usize) as u32)
}

fn decisions(workdir: &Workdir, lines: &[Value]) -> String {
    let run: Value = serde_json::from_slice(&std::fs::read(workdir.path("run/run.json")).unwrap()).unwrap();
    let data: Vec<Value> =
        run["data"].as_array().unwrap().iter().map(|file| json!({"path": file["path"], "sha256": file["sha256"]})).collect();
    let head = json!({"decisions": 1, "run": run["identity"], "data": data});
    let lines: Vec<String> = std::iter::once(&head).chain(lines).map(Value::to_string).collect();
    workdir.write("decisions.jsonl", lines.join("\n"));
    "decisions.jsonl".to_owned()
}

#[test]
fn without_a_decision_the_file_is_the_same_to_the_byte() {
    for rows in [ROWS.to_owned(), format!("{ROWS}\n\n \n"), format!("\u{FEFF}{ROWS}\r\n")] {
        let workdir = scored(&rows);
        let exported = export(&workdir, &["--out", "clean.jsonl"]);
        assert_eq!(std::fs::read(workdir.path("clean.jsonl")).unwrap(), rows.as_bytes());
        assert_eq!(
            (&exported["rows_read"], &exported["rows_written"], &exported["unreadable"]),
            (&5.into(), &5.into(), &1.into())
        );
        let changes = std::fs::read_to_string(workdir.path("clean.changes.jsonl")).unwrap();
        assert_eq!(changes.lines().count(), 2, "{changes}");
    }
}

/// An element of an array has no line of its own that could be copied.
#[test]
fn records_that_cannot_be_copied_are_said_to_be_left_out() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let good = r#"{"prompt": "What?", "completion": "That.", "z": 1E400}"#;
    workdir.write("rows.json", format!("[{good},\n{{\"prompt\": \"And?\", \"completion\": }},\n{good}]"));
    workdir.run(&["rows.json", "--model", "tiny.gguf", "--out", "run"]).ok();
    for out in ["clean.jsonl", "clean.parquet"] {
        let said = workdir.run(&["export", "run", "--out", out]).ok().stdout;
        assert!(said.starts_with("2 of 3 rows written: 0 dropped"), "{said}");
        assert!(said.contains("1 record could not be read, and is left out") && !said.contains("unchanged\n"), "{said}");
    }
    let exported = export(&workdir, &["--out", "clean.jsonl"]);
    assert_eq!((&exported["unreadable"], &exported["unreadable_left_out"]), (&1.into(), &1.into()));
    assert!(
        std::fs::read_to_string(workdir.path("clean.jsonl")).unwrap().contains("\"z\":Infinity"),
        "as Python writes what it reads there"
    );
    // A line is copied, and said to be.
    let said = scored(ROWS).run(&["export", "run", "--out", "clean.jsonl"]).ok().stdout;
    assert!(said.contains("1 record could not be read, and is written unchanged"), "{said}");
}

/// A mark of the byte order stands at the beginning of a file alone.
#[test]
fn files_that_begin_with_a_mark_become_one_file_that_does() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = r#"{"prompt": "What?", "completion": "That."}"#;
    for name in ["a.jsonl", "b.jsonl"] {
        workdir.write(name, format!("\u{FEFF}{row}\n"));
    }
    workdir.run(&["a.jsonl", "b.jsonl", "--model", "tiny.gguf", "--out", "run"]).ok();
    export(&workdir, &["--out", "clean.jsonl"]);
    assert_eq!(std::fs::read_to_string(workdir.path("clean.jsonl")).unwrap(), format!("\u{FEFF}{row}\n{row}\n"));
}

#[test]
fn names_say_what_is_written() {
    let workdir = scored(ROWS);
    for name in ["clean.csv", "clean.jsonl.gz", "clean.arrow"] {
        let refused = workdir.run(&["export", "run", "--out", name]);
        assert!(
            refused.code == Some(2) && refused.stderr.contains("expected an output name in .jsonl or .parquet"),
            "{}",
            refused.stderr
        );
        assert!(!workdir.path(name).exists());
    }
    let table = export(&workdir, &["--format", "messages", "--out", "clean.parquet"]);
    let lines = export(&workdir, &["--out", "clean.jsonl"]);
    assert_eq!([&table["changes"], &lines["changes"]], ["clean.parquet.changes.jsonl", "clean.changes.jsonl"]);
}

/// A time in each message: of a type that is not read, and so in no row that is written.
#[test]
fn what_cannot_be_read_of_a_table_is_named() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arrow/file-plain.arrow");
    workdir.write("rows.arrow", std::fs::read(fixture).unwrap());
    score(&workdir, "rows.arrow", "run");
    for out in ["clean.jsonl", "clean.parquet"] {
        assert_eq!(export(&workdir, &["--out", out])["columns_left_out"], json!(["messages.at"]));
        let said = workdir.run(&["export", "run", "--out", out]).ok().stdout;
        assert!(said.contains("its type is not supported: messages.at"), "{said}");
    }
}

/// A mapped column is in the text; the row's own column of the mapped meaning, and those that nothing reads, are not.
#[test]
fn what_a_map_reads_is_not_said_to_be_left_out() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = json!({"qq": "What?", "a1": "This", "a2": "that", "answer": "Nothing.", "more": 7});
    workdir.write("rows.jsonl", row.to_string());
    let maps = ["--map", "prompt=qq", "--map", "completion={a1} and {a2}"];
    workdir.run(&[&["rows.jsonl", "--model", "tiny.gguf", "--out", "run"], &maps[..]].concat()).ok();
    let exported = export(&workdir, &["--format", "messages", "--out", "clean.jsonl"]);
    assert_eq!(exported["columns_left_out"], json!(["answer", "more"]));
}

#[test]
fn every_format_has_the_same_supervised_tokens() {
    let workdir = scored(ROWS);
    let expected = tokens(&workdir.path("run"));
    assert!(expected.len() > 40);
    for format in ["read", "messages", "sharegpt", "alpaca", "llama-factory", "axolotl", "trl"] {
        for extension in ["jsonl", "parquet"] {
            if (format, extension) == ("read", "parquet") {
                // The row that is none has no place in a table.
                continue;
            }
            let out = format!("{format}.{extension}");
            let exported = export(&workdir, &["--format", format, "--out", &out]);
            score(&workdir, &out, &format!("again-{out}"));
            assert_eq!(places(&tokens(&workdir.path(&format!("again-{out}")))), places(&expected), "{out}");
            let left_out = if format == "read" { json!([]) } else { json!(["note"]) };
            assert_eq!(exported["columns_left_out"], left_out, "{out}");
        }
    }
    let info: Value = serde_json::from_slice(&std::fs::read(workdir.path("dataset_info.json")).unwrap()).unwrap();
    assert_eq!(info["llama-factory"]["columns"]["messages"], "conversations");
    assert!(std::fs::read_to_string(workdir.path("axolotl.axolotl.yaml")).unwrap().contains("message_field_training: train"));
}

/// For any mask, the exported file has exactly the supervised tokens that the decisions left when read again, also in training.
#[test]
fn what_is_read_again_is_what_the_decisions_left() {
    let workdir = scored(ROWS);
    let all = tokens(&workdir.path("run"));
    // The numbers of the scored rows in the data.
    let numbers = [0, 1, 2, 4];
    let mut n_axolotl = 0;
    for seed in 0..6_usize {
        let mut lines = Vec::new();
        let mut masked: BTreeSet<(usize, u32)> = BTreeSet::new();
        let mut turns: BTreeSet<(usize, u16)> = BTreeSet::new();
        for (i, &(row, pos, _, (begin, end), turn, _)) in all.iter().enumerate() {
            // Every so many-th token, of a different row of the pattern by the seed; a mask of half a character masks all of it.
            if (i * 7 + seed * 5) % 11 < 3 && begin < end {
                lines.push((numbers[row], turn, begin, end));
                masked.insert((row, pos));
            }
            if (row + usize::from(turn) + seed) % 9 == 0 {
                turns.insert((row, turn));
            }
        }
        // Tokens that share a character go together.
        let widened = |&(number, turn, begin, end): &(usize, u16, u32, u32)| {
            let (begin, end) = whole(numbers.iter().position(|n| *n == number).unwrap(), turn, begin, end);
            (number, turn, begin, end)
        };
        let spans: Vec<(usize, u16, u32, u32)> = lines.iter().map(widened).collect();
        let touched = |row: usize, turn: u16, (begin, end): (u32, u32)| {
            spans.iter().any(|&(number, its, b, e)| number == numbers[row] && its == turn && b < end && begin < e)
        };
        for &(row, pos, _, span, turn, _) in &all {
            if span.0 < span.1 && touched(row, turn, span) {
                masked.insert((row, pos));
            }
        }
        let mask = |&(row, turn, begin, end): &(usize, u16, u32, u32)| json!({"row": row, "action": "mask", "turn": turn, "begin": begin, "end": end});
        let mut written: Vec<Value> = spans.iter().map(mask).collect();
        written.extend(turns.iter().map(|&(row, turn)| json!({"row": numbers[row], "action": "mask", "turn": turn})));
        let file = decisions(&workdir, &written);
        let left: Vec<Token> = all
            .iter()
            .filter(|(row, pos, _, _, turn, _)| !masked.contains(&(*row, *pos)) && !turns.contains(&(*row, *turn)))
            .copied()
            .collect();
        assert!(left.len() < all.len());
        // Rows of which nothing is left are not scored, and the others move up.
        let kept: Vec<usize> = left.iter().map(|token| token.0).collect::<BTreeSet<_>>().into_iter().collect();
        let expected: Vec<_> =
            places(&left).into_iter().map(|(row, pos, id)| (kept.iter().position(|k| *k == row).unwrap(), pos, id)).collect();
        for (format, extension) in [("read", "jsonl"), ("messages", "jsonl"), ("messages", "parquet"), ("axolotl", "jsonl")] {
            let out = format!("{format}-{seed}.{extension}");
            let ran = workdir.run(&["export", "run", "--format", format, "--out", &out, "--decisions", &file]);
            if ran.code != Some(0) && format == "axolotl" {
                assert!(ran.stderr.contains("part of the character"), "{}", ran.stderr);
                continue;
            }
            ran.ok();
            n_axolotl += usize::from(format == "axolotl");
            score(&workdir, &out, &format!("again-{out}"));
            assert_eq!(places(&tokens(&workdir.path(&format!("again-{out}")))), expected, "{out}");
        }
        if seed == 0 {
            let options =
                ["--model", "tiny.gguf", "--out", "trained", "--batch-size", "9", "--max-steps", "1", "--warmup-steps", "0"];
            workdir.run(&[&["train", "messages-0.jsonl"], &options[..]].concat()).ok();
            let metrics = std::fs::read_to_string(workdir.path("trained/metrics.jsonl")).unwrap();
            let first: Value = serde_json::from_str(metrics.lines().next().unwrap()).unwrap();
            assert_eq!(first["supervised"], left.len());
        }
    }
    assert!(n_axolotl > 0);
}

#[test]
fn rules_say_what_they_did_and_why() {
    let workdir = scored(ROWS);
    let all = tokens(&workdir.path("run"));
    let conflicts: Vec<&Token> = all.iter().filter(|token| token.5 == Quadrant::ConfidentConflict).collect();
    assert!(conflicts.len() > 3, "{}", conflicts.len());
    let exported = export(
        &workdir,
        &["--format", "messages", "--out", "m.jsonl", "--mask", "conflicts", "--rewrite-candidates", "todo.jsonl"],
    );
    score(&workdir, "m.jsonl", "again");
    let masked: BTreeSet<(usize, u16, u32, u32)> = conflicts
        .iter()
        .filter(|token| token.3.0 < token.3.1)
        .map(|token| {
            let (begin, end) = whole(token.0, token.4, token.3.0, token.3.1);
            (token.0, token.4, begin, end)
        })
        .collect();
    let is_left = |token: &&Token| {
        token.3.0 == token.3.1 || !masked.iter().any(|m| (m.0, m.1) == (token.0, token.4) && m.2 < token.3.1 && token.3.0 < m.3)
    };
    let left: Vec<Token> = all.iter().filter(is_left).copied().collect();
    assert_eq!(places(&tokens(&workdir.path("again"))).len(), left.len());
    let of_template = conflicts.iter().filter(|token| token.3.0 == token.3.1).count();
    assert_eq!(exported["conflicts_beside_content"], of_template);
    let changes = std::fs::read_to_string(workdir.path("m.changes.jsonl")).unwrap();
    let changes: Vec<Value> = changes.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(changes[0]["format"], "messages");
    let masks: Vec<&Value> = changes.iter().filter(|change| change["action"] == "mask").collect();
    // Several bytes of one character are masked together.
    let masked: u64 = masks.iter().map(|mask| mask["conflicts"].as_u64().unwrap()).sum();
    assert_eq!(masked as usize, conflicts.len() - of_template);
    let learnt_less: u64 = masks.iter().map(|mask| mask["tokens"].as_u64().unwrap()).sum();
    assert_eq!(learnt_less as usize, all.len() - left.len());
    assert!(
        masks
            .iter()
            .all(|mask| mask["why"] == "--mask conflicts" && mask["loss"].as_f64().unwrap() > 0.0 && mask["text"].is_string())
    );
    let todo = std::fs::read_to_string(workdir.path("todo.jsonl")).unwrap();
    let first: Value = serde_json::from_str(todo.lines().next().unwrap()).unwrap();
    assert_eq!((&first["rewrite"], first["conflicts"][0]["model"].is_string()), (&"".into(), true));

    let refused = workdir.run(&["export", "run", "--out", "none.jsonl", "--select", "0"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("--select 0 keeps no row"), "{}", refused.stderr);
    let dropped = export(&workdir, &["--out", "d.jsonl", "--drop", "rows=0,4", "--select", "1"]);
    assert_eq!((&dropped["rows_dropped"], &dropped["rows_written"]), (&4.into(), &1.into()));
    let weighted = export(&workdir, &["--format", "messages", "--out", "w.jsonl", "--weight", "eaft"]);
    assert_eq!(weighted["rows_weighted"], 4);
    let first: Value =
        serde_json::from_str(std::fs::read_to_string(workdir.path("w.jsonl")).unwrap().lines().next().unwrap()).unwrap();
    assert!((0.0..1.0).contains(&first["messages"][1]["weight"].as_f64().unwrap()), "{first}");
    // A person's decision takes precedence over a rule.
    let file = decisions(&workdir, &[json!({"row": 0, "action": "keep"}), json!({"row": 2, "action": "drop"})]);
    let kept = export(&workdir, &["--out", "k.jsonl", "--drop", "mass=0", "--decisions", &file]);
    assert_eq!(kept["rows_written"].as_u64().unwrap(), 5 - kept["rows_dropped"].as_u64().unwrap());
    assert!(std::fs::read_to_string(workdir.path("k.jsonl")).unwrap().starts_with("{\"id\": \"a\""));
}

#[test]
fn no_file_that_is_read_or_written_already_is_written() {
    let workdir = scored(ROWS);
    let file = decisions(&workdir, &[json!({"row": 1, "action": "drop"})]);
    let read = [workdir.path("rows.jsonl"), workdir.path(&file), workdir.path("run/tokens.parquet")];
    let before = read.each_ref().map(|path| std::fs::read(path).unwrap());
    for (options, part) in [
        (vec!["--out", "./rows.jsonl"], "--out names a data file of the run"),
        (vec!["--out", "a.jsonl", "--rewrite-candidates", "rows.jsonl"], "--rewrite-candidates names a data file of the run"),
        (vec!["--out", &file, "--decisions", &file], "--out names the file of --decisions"),
        (vec!["--out", "run/tokens.parquet"], "run/tokens.parquet: the file is not an earlier export"),
        (vec!["--out", "a.jsonl", "--rewrite-candidates", "a.jsonl"], "--rewrite-candidates names --out"),
        (vec!["--out", "a.jsonl", "--rewrite-candidates", "run/../a.changes.jsonl"], "names the file of changes"),
        (vec!["--out", "-"], "`-` is not a file"),
    ] {
        let refused = workdir.run(&[vec!["export", "run"], options.clone()].concat());
        assert!(refused.code == Some(2) && refused.stderr.contains(part), "{options:?}: {}", refused.stderr);
    }
    assert_eq!(read.map(|path| std::fs::read(path).unwrap()), before);
    assert!(!workdir.path("a.jsonl").exists() && !workdir.path("-").exists());
    // An earlier export into the folder of the run may be replaced.
    for _ in 0..2 {
        export(&workdir, &["--out", "run/clean.jsonl"]);
    }
}

#[test]
fn rows_that_the_run_did_not_read_are_said_to_be_left_out() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", ROWS);
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run", "--limit", "2"]).ok();
    let said = workdir.run(&["export", "run", "--out", "clean.jsonl"]).ok();
    assert!(said.stdout.contains("3 rows of the data were not read by the run"), "{}", said.stdout);
    assert_eq!(export(&workdir, &["--out", "clean.jsonl"])["rows_not_read"], 3);
    assert_eq!(std::fs::read_to_string(workdir.path("clean.jsonl")).unwrap().lines().count(), 2);
}

#[test]
fn what_cannot_be_is_refused_by_name_and_leaves_nothing() {
    let workdir = scored(ROWS);
    let refused = |options: &[&str], part: &str| {
        let ran = workdir.run(&[&["export", "run", "--out", "out/no.jsonl"], options].concat());
        assert!(ran.code != Some(0) && ran.stderr.contains(part), "{options:?}: {}", ran.stderr);
        let left: Vec<_> = std::fs::read_dir(workdir.path("out"))
            .map(|folder| folder.map(|entry| entry.unwrap().file_name()).collect())
            .unwrap_or_default();
        assert!(left.is_empty(), "{options:?}: {left:?}");
    };
    let mask = |turn: u16, begin: u32, end: u32| json!({"row": 1, "action": "mask", "turn": turn, "begin": begin, "end": end});
    for (line, part) in [
        (mask(2, 0, 2), "decisions.jsonl:2: expected a span of whole characters of turn 2, found 0..2"),
        (mask(2, 0, 99), "decisions.jsonl:2: expected a span within the"),
        (mask(9, 0, 1), "decisions.jsonl:2: expected a turn of the row"),
        (json!({"row": 77, "action": "drop"}), "about row 77"),
        (json!({"row": 1, "action": "burn"}), "decisions.jsonl:2: expected the action"),
    ] {
        let file = decisions(&workdir, &[line]);
        refused(&["--decisions", &file], part);
    }
    let file = decisions(&workdir, &[json!({"row": 1, "action": "mask", "turn": 2})]);
    for format in ["sharegpt", "alpaca", "llama-factory"] {
        refused(&["--format", format, "--decisions", &file], "rows.jsonl:2: turn 2 is excluded from the loss");
    }
    let passed_over =
        export(&workdir, &["--format", "alpaca", "--out", "some.jsonl", "--decisions", &file, "--drop", "inexpressible"]);
    assert_eq!(passed_over["rows_dropped"], 1);
    // What was decided about the same bytes, read otherwise.
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--map", "messages=messages", "--out", "mapped", "--no-view"]).ok();
    let mapped: Value = serde_json::from_slice(&std::fs::read(workdir.path("mapped/run.json")).unwrap()).unwrap();
    let head = json!({"decisions": 1, "run": mapped["identity"], "data": mapped["data"], "maps": mapped["read"]["maps"]});
    workdir.write("otherwise.jsonl", format!("{head}\n{}", json!({"row": 1, "action": "drop"})));
    refused(
        &["--decisions", "otherwise.jsonl"],
        "which read these data as messages, --map messages=messages; this run read them as",
    );
    refused(&["--drop", "rows=50"], "names row 50");
    refused(&["--drop", "colour"], "expected a rule for rows");
    workdir.write("other.jsonl", ROWS.replace("hi", "ho"));
    refused(&["--data", "other.jsonl"], "the data file has changed since the run");
    std::fs::remove_file(workdir.path("rows.jsonl")).unwrap();
    refused(&[], "cannot find the data file rows.jsonl of the run");
    workdir.write("rows.jsonl", ROWS.replace("hi", "ho"));
    refused(&[], "the data file has changed since the run");
    // A run sorted again without its data still gets a report, which states what is missing.
    workdir.run(&["run", "--thresholds", "p=0.003,H=98"]).ok();
    let report = std::fs::read_to_string(workdir.path("run/report.md")).unwrap();
    assert!(report.contains("The sentences cannot be shown: the data file has changed since the run"), "{report}");
}

/// Four in five of the demo's planted numbers and names that are conflicts are called so by their kinds.
#[test]
fn kinds_of_the_demo() {
    if default_model().is_none() {
        return;
    }
    let workdir = Workdir::new();
    let demo = Path::new(env!("CARGO_MANIFEST_DIR")).join("data/demo.jsonl");
    workdir.run(&[demo.to_str().unwrap(), "--out", "run"]).ok();
    let rows: Vec<Value> =
        std::fs::read_to_string(&demo).unwrap().lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let mut known = BTreeMap::new();
    for conflict in diagnose::table::read_conflicts(&workdir.path("run/conflicts.parquet")) {
        let conflict = conflict.unwrap();
        known.insert((conflict.row, conflict.pos), (conflict.kind, conflict.evidence));
    }
    let columns = [Column::Row, Column::Turn, Column::Pos, Column::Begin, Column::End, Column::Quadrant];
    let (mut found, mut right, mut wrong) = (BTreeMap::new(), BTreeMap::new(), Vec::new());
    for chunk in read_chunks(&[workdir.path("run/tokens.parquet")], &columns) {
        let chunk = chunk.unwrap();
        for i in (0..chunk.len()).filter(|&i| chunk.quadrant[i] == Quadrant::ConfidentConflict) {
            let spans = rows[chunk.row[i] as usize]["planted"].as_array();
            let number = |span: &Value, key: &str| span[key].as_u64().unwrap();
            let span = spans.into_iter().flatten().find(|span| {
                number(span, "turn") == u64::from(chunk.turn[i])
                    && number(span, "begin") < u64::from(chunk.end[i])
                    && u64::from(chunk.begin[i]) < number(span, "end")
            });
            let Some(span) = span else { continue };
            let (kind, evidence) = &known[&(chunk.row[i], chunk.pos[i])];
            let label = span["kind"].as_str().unwrap();
            *found.entry(label).or_insert(0) += 1;
            match kind == label || label == "word" {
                true => *right.entry(label).or_insert(0) += 1,
                false => wrong.push(format!("{span}: {kind}, {evidence}")),
            }
        }
    }
    println!("{right:?} of {found:?}; {wrong:#?}");
    for label in ["number", "entity"] {
        assert!(found[label] >= 8 && right[label] * 5 >= found[label] * 4, "{label}: {right:?} of {found:?}, {wrong:#?}");
    }
}

/// A folder `model` without a chat template, whose answers end in `<|im_end|>`.
fn with_model() -> Workdir {
    let workdir = Workdir::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    std::fs::create_dir(workdir.path("model")).unwrap();
    for name in ["config.json", "model.safetensors", "tokenizer.json"] {
        std::fs::copy(fixture.join(name), workdir.path("model").join(name)).unwrap();
    }
    workdir.write("model/tokenizer_config.json", r#"{"eos_token": "<|im_end|>"}"#);
    workdir
}

/// The exported rows are one thing; what a trainer makes of them is another.
#[test]
fn what_another_program_would_learn_of_the_rows_is_said() {
    let workdir = with_model();
    // Reasoning stands in the last answer alone.
    workdir.write(
        "model/chat_template.jinja",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}{% if m.role == 'assistant' and not loop.last %}\
         {{ m.content.split('</think>')[-1] }}{% else %}{{ m.content }}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    );
    let row = |turns: &[&str]| {
        let message = |(i, text): (usize, &&str)| {
            let role = if i % 2 == 0 { "user" } else { "assistant" };
            json!({"role": role, "content": text})
        };
        json!({"messages": turns.iter().enumerate().map(message).collect::<Vec<_>>()}).to_string()
    };
    workdir.write("rows.jsonl", [row(&["a", "b"]), row(&["c", "<think>d</think>e", "f", "g"])].join("\n"));
    let scored = |out: &str, more: &[&str]| {
        workdir.run(&[&["rows.jsonl", "--model", "model", "--max-len", "128", "--out", out], more].concat()).ok();
    };
    let notes = |run: &str, format: &str, out: &str| {
        workdir.run(&["export", run, "--format", format, "--out", out, "--json"]).ok().json()["notes"].clone()
    };
    let train = |out: &str| -> Vec<Value> {
        let text = std::fs::read_to_string(workdir.path(out)).unwrap();
        let row: Value = serde_json::from_str(text.lines().nth(1).unwrap()).unwrap();
        row["messages"].as_array().unwrap().iter().map(|message| message["train"].clone()).collect()
    };

    scored("run", &[]);
    for (format, told) in
        [("axolotl", "axolotl learns different tokens"), ("llama-factory", "LLaMA-Factory (without a `template`")]
    {
        let said = notes("run", format, &format!("{format}.jsonl"));
        let note = said[0].as_str().unwrap_or_else(|| panic!("{said}"));
        assert!(note.starts_with(&format!("of 1 row {told}")) && note.contains("rows.jsonl:2: "), "{said}");
        assert_eq!(said.as_array().unwrap().len(), 1, "{said}");
    }
    assert_eq!(train("axolotl.jsonl"), [Value::Null, json!(true), Value::Null, json!(true)]);
    assert_eq!(notes("run", "messages", "messages.jsonl"), json!([]));

    // If only the last answer is supervised, no difference can arise; the rows tell axolotl so.
    scored("last", &["--supervise", "last", "--system", "Be brief."]);
    let said = notes("last", "axolotl", "last.jsonl");
    assert!(said.as_array().unwrap().len() == 1 && said[0].as_str().unwrap().contains("--system"), "{said}");
    assert_eq!(train("last.jsonl"), [Value::Null, json!(false), Value::Null, json!(true)]);
    let said = notes("last", "llama-factory", "last-factory.jsonl");
    assert!(said[1].as_str().unwrap().contains("mask_history: true"), "{said}");

    // Another template than the model's own is in no file that the run names, and a model may be gone.
    std::fs::copy(workdir.path("model/chat_template.jinja"), workdir.path("own.jinja")).unwrap();
    let own = std::fs::read_to_string(workdir.path("own.jinja")).unwrap() + " ";
    workdir.write("own.jinja", own);
    scored("own", &["--chat-template", "own.jinja"]);
    assert!(notes("own", "axolotl", "own.jsonl")[0].as_str().unwrap().contains("a different chat template"));
    std::fs::rename(workdir.path("model"), workdir.path("moved")).unwrap();
    assert!(notes("run", "axolotl", "gone.jsonl")[0].as_str().unwrap().contains("not checked whether"));
}

/// What the run was told beside the rows, and what a template tells apart in them, is in the rows or is said.
#[test]
fn rows_that_are_other_tokens_than_the_run_are_counted_in_every_format() {
    let workdir = with_model();
    // The parts of a content are trimmed one by one, as in Gemma 3's template.
    workdir.write(
        "model/chat_template.jinja",
        "Today: {{ today | default('26 July') }}.\n{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' }}\
         {% if m.content is string %}{{ m.content | trim }}{% else %}{% for part in m.content %}{{ part.text | trim }}{% endfor %}\
         {% endif %}{{ '<|im_end|>\n' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    );
    let text = |text: &str| json!({"type": "text", "text": text});
    let row = |answer: Value, more: Value| {
        let mut row = json!({"messages": [{"role": "user", "content": "q"}, {"role": "assistant", "content": answer}]});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        row.to_string()
    };
    let rows = [
        row(json!([text("one "), text("two")]), json!({})),
        row("three".into(), json!({"chat_template_kwargs": {"today": "1 May"}})),
        row("four".into(), json!({})),
    ];
    workdir.write("rows.jsonl", rows.join("\n"));
    let score = |data: &str, out: &str, more: &[&str]| {
        workdir.run(&[&[data, "--model", "model", "--max-len", "128", "--out", out, "--no-view"], more].concat()).ok();
        places(&tokens(&workdir.path(out)))
    };
    let export = |run: &str, format: &str| {
        let out = format!("{run}-{format}.jsonl");
        let options = ["--format", format, "--out", &out, "--drop", "inexpressible", "--json"];
        let notes = workdir.run(&[&["export", run], &options[..]].concat()).ok().json()["notes"].clone();
        notes.as_array().unwrap().iter().map(|note| note.as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    let said = |notes: &[String], what: &str| assert!(notes.iter().any(|note| note.contains(what)), "{what}: {notes:?}");

    let switches = ["--chat-template-kwargs", r#"{"today": "1 January"}"#];
    let of_run = score("rows.jsonl", "run", &switches);
    // The rows of messages hold all of it.
    assert_eq!(export("run", "messages"), [""; 0]);
    assert_eq!(score("run-messages.jsonl", "again", &[]), of_run);
    let written = std::fs::read_to_string(workdir.path("run-messages.jsonl")).unwrap();
    let written: Vec<Value> = written.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    assert_eq!(written[0]["messages"][1]["content"], json!([text("one "), text("two")]));
    assert_eq!(written[1]["chat_template_kwargs"], json!({"today": "1 May"}));
    assert_eq!(written[2]["chat_template_kwargs"], json!({"today": "1 January"}));
    // Other rows have one text for the parts, and axolotl takes no variables from a row.
    said(&export("run", "trl"), "of 1 row TRL learns different tokens than the run; for example rows.jsonl:1: ");
    said(&export("run", "sharegpt"), "of 1 row a trainer with the model's chat template learns different tokens");
    said(&export("run", "axolotl"), "of 2 rows axolotl learns different tokens");
    let settings = std::fs::read_to_string(workdir.path("run-axolotl.axolotl.yaml")).unwrap();
    assert!(settings.contains("\nchat_template_kwargs: {\"today\": \"1 January\"}\n"), "{settings}");
    for format in ["alpaca", "llama-factory", "read"] {
        said(&export("run", format), "(--chat-template-kwargs), which are not in the rows");
    }

    // The text of an answer that the model gave is not its tokens, and axolotl learns an end that was not drawn.
    workdir.run(&["rollout", "rows.jsonl", "--model", "model", "--out", "ro", "--max-new-tokens", "3", "--seed", "1"]).ok();
    score("ro/rollouts.jsonl", "drawn", &[]);
    for format in ["messages", "trl", "axolotl"] {
        said(&export("drawn", format), "the model's own tokens of the answer are not written");
    }
    let emit = ["--model", "model", "--emit", "axolotl", "--out", "emitted", "--warmup-steps", "0", "--batch-size", "1"];
    let refused = workdir.run(&[&["train", "ro/rollouts.jsonl"], &emit[..]].concat());
    assert!(refused.code != Some(0) && refused.stderr.contains("the model's own tokens"), "{}", refused.stderr);

    // axolotl's configuration has the variables.
    workdir.write("plain.jsonl", &rows[2]);
    workdir.run(&[&["train", "plain.jsonl"], &emit[..], &switches].concat()).ok();
    let config = std::fs::read_to_string(workdir.path("emitted/train.yaml")).unwrap();
    assert!(config.contains("\nchat_template_kwargs: {\"today\": \"1 January\"}\n"), "{config}");

    // TRL appends the end token to a text, which a run does if it is told to.
    workdir.write("text.jsonl", r#"{"text": "one two three"}"#);
    score("text.jsonl", "text", &[]);
    let notes = export("text", "trl");
    said(&notes, "of 1 row TRL learns different tokens than the run");
    assert_eq!(notes.len(), 1, "{notes:?}");
    score("text.jsonl", "ended", &["--append-eos"]);
    assert_eq!(export("ended", "trl"), [""; 0]);
}

/// Trainers give the template what the row has, while here it gets what it knows: names of roles, texts for parts and nulls.
#[test]
fn rows_are_written_as_the_run_rendered_them() {
    let workdir = with_model();
    workdir.write(
        "model/chat_template.jinja",
        "{% for m in messages %}{{ '<|im_start|>' + m.role + '\n' + m.content }}{% for c in m.tool_calls or [] %}\
         {% for k, v in c.function.arguments.items() %}{{ k + '=' + v }}{% endfor %}{% endfor %}{{ '<|im_end|>\n' }}{% endfor %}\
         {% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}",
    );
    let call = |arguments: Value| json!([{"type": "function", "function": {"name": "f", "arguments": arguments}}]);
    let row = json!({"messages": [
        {"role": "developer", "content": "b"},
        {"role": "human", "content": [{"type": "text", "text": "a "}, {"type": "text", "text": "q"}]},
        {"role": "gpt", "content": null, "tool_calls": call("{\"x\": \"y\"}".into())},
        {"role": "function", "content": "5"}, {"role": "gpt", "content": "five"}]});
    workdir.write("rows.jsonl", row.to_string());
    workdir.run(&["rows.jsonl", "--model", "model", "--max-len", "128", "--out", "run", "--no-view"]).ok();
    let export = |out: &str, format: &str| {
        let ran = workdir.run(&["export", "run", "--format", format, "--out", out, "--json"]).ok().json();
        let written = std::fs::read_to_string(workdir.path(out)).unwrap();
        (ran["notes"].clone(), serde_json::from_str::<Value>(&written).unwrap()["messages"].clone())
    };
    let expected = json!([
        {"role": "system", "content": "b"}, {"role": "user", "content": "a q"},
        {"role": "assistant", "content": "", "tool_calls": call(json!({"x": "y"}))},
        {"role": "tool", "content": "5"}, {"role": "assistant", "content": "five"}]);
    for (out, format) in [("messages.jsonl", "messages"), ("trl.jsonl", "trl")] {
        let (notes, written) = export(out, format);
        assert_eq!(written, expected, "{format}: {notes}");
        assert!(!notes.to_string().contains("learns different tokens"), "{notes}");
    }
    // Without the model the form is the one that every template takes.
    std::fs::rename(workdir.path("model"), workdir.path("gone")).unwrap();
    let written = export("gone.jsonl", "messages").1;
    assert_eq!((&written[1], &written[2]["content"], &written[4]["role"]), (&expected[1], &json!(""), &json!("assistant")));
}

/// Conflicts may lie in a call or in reasoning, which whoever writes the answer anew has to see.
#[test]
fn candidates_are_whole_messages_with_the_tools() {
    let call = json!({"type": "function", "function": {"name": "f", "arguments": {"x": 1}}});
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {}}}]);
    let messages = json!([
        {"role": "user", "content": "Call f."}, {"role": "assistant", "content": "", "tool_calls": [call]},
        {"role": "tool", "content": "5"}, {"role": "assistant", "content": "It is five, I am sure of it."}]);
    let workdir = scored(&json!({"messages": messages, "tools": tools}).to_string());
    export(&workdir, &["--out", "all.jsonl", "--rewrite-candidates", "todo.jsonl"]);
    let todo = std::fs::read_to_string(workdir.path("todo.jsonl")).unwrap();
    let todo: Vec<Value> = todo.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let last = todo.iter().find(|candidate| candidate["turn"] == 3).unwrap();
    assert_eq!((&last["tools"], &last["answer"]), (&tools, &messages[3]["content"]));
    assert_eq!(last["before"], json!(messages.as_array().unwrap()[..3]));
}

#[test]
fn a_selection_that_leaves_no_row_out_is_said() {
    let workdir = scored(ROWS);
    assert_eq!(export(&workdir, &["--select", "1", "--out", "one.jsonl"])["notes"], json!([]));
    let all = export(&workdir, &["--select", "99", "--out", "all.jsonl"]);
    assert!(all["notes"][0].as_str().unwrap().starts_with("--select 99 leaves no row out"), "{all}");
    assert_eq!(workdir.run(&["export", "run", "--select", "0", "--out", "none.jsonl"]).code, Some(2));
    assert_eq!(workdir.run(&["view", "run", "--tokens", "0"]).code, Some(2));
}
