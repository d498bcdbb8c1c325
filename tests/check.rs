//! Tests `diagnose check`: its output, findings and exit codes.

use std::path::Path;

use crate::tiny_model;
use crate::workdir::Workdir;

const ROWS: &str = concat!(
    r#"{"messages":[{"role":"user","content":"a"},{"role":"assistant","content":"no","loss":false},{"role":"user","content":"b"},{"role":"assistant","content":"yes"}]}"#,
    "\n",
    r#"{"messages":[{"role":"user","content":"c"},{"role":"assistant","content":"d","lossy":1}]}"#,
    "\n",
    r#"{"messages":[{"role":"user","content":"c"},{"role":"assistant","content":"d"}]}"#,
    "\n",
    r#"{"messages":[{"role":"user","content":"c"},{"role":"assistant","content":"e"}]}"#,
    "\n{\n",
);

#[test]
fn what_is_learnt_is_marked_and_what_is_odd_is_named() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", ROWS);
    let ran = workdir.run(&["check", "rows.jsonl", "--model", "tiny.gguf", "--show", "1"]).ok();
    assert!(ran.stdout.contains("assistant\nno<|im_end|>"), "{}", ran.stdout);
    assert!(ran.stdout.contains("assistant\n[[yes<|im_end|>]]"), "{}", ran.stdout);
    for part in [
        "1 row is equal to an earlier one. For example: rows.jsonl:3 as rows.jsonl:2",
        "rows.jsonl:4 as rows.jsonl:2",
        "`messages[].lossy` in 1",
        "rows.jsonl:5: ",
    ] {
        assert!(ran.stdout.contains(part), "expected {part} in\n{}", ran.stdout);
    }
    let found = workdir.run(&["check", "rows.jsonl", "--model", "tiny.gguf", "--json"]).ok().json();
    assert_eq!((&found["records"], &found["rows"], &found["duplicates"]["rows"]), (&5.into(), &4.into(), &1.into()));
    // Rows that are equal are found, too, though the audit is of single rows.
    let says_nothing = |rows: &str| {
        workdir.write("few.jsonl", rows);
        workdir.run(&["check", "few.jsonl", "--model", "tiny.gguf"]).ok().stdout.contains("The audit found nothing.")
    };
    let row = r#"{"prompt":"a","completion":"b"}"#;
    assert_eq!([says_nothing(row), says_nothing(&format!("{row}\n{row}"))], [true, false]);
    // An unknown finding is refused before anything is read.
    let refused = workdir.run(&["check", "nowhere.jsonl", "--model", "tiny.gguf", "--fail-on", "any,duplicate"]);
    let told = "expected a finding behind --fail-on, found `duplicate`\n  Did you mean duplicates? Known are any, empty_mask";
    assert!(refused.code == Some(2) && refused.stderr.contains(told), "{}", refused.stderr);
}

#[test]
fn of_many_files_the_first_are_named() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| format!(r#"{{"messages":[{{"role":"user","content":"{i:02}"}},{{"role":"assistant","content":"d"}}]}}"#);
    std::fs::create_dir(workdir.path("many")).unwrap();
    for i in 0..25 {
        workdir.write(&format!("many/{i:02}.jsonl"), row(i));
    }
    workdir.write("many/z.jsonl", r#"{"text": "d"}"#);
    let of_one = row(0).len();
    let ran = workdir.run(&["check", "many", "--model", "tiny.gguf"]).ok();
    let lines: Vec<&str> = ran.stdout.lines().take(22).collect();
    assert_eq!(lines[19], format!("many/19.jsonl: messages, {of_one} bytes"));
    assert_eq!(lines[20], format!("and 6 more files, {} bytes: 5 of messages, 1 of text", 5 * of_one + 13));
    assert!(lines[21].starts_with("26 rows read"), "{}", lines[21]);
    let found = workdir.run(&["check", "many", "--model", "tiny.gguf", "--json"]).ok().json();
    assert_eq!(found["files"].as_array().unwrap().len(), 26);
}

/// The audit's suggestions can be typed as printed, and do what they promise.
#[test]
fn a_column_that_is_not_read_is_named_with_a_way_to_read_it() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let check = |file: &str, more: &[&str]| workdir.run(&[&["check", file, "--model", "tiny.gguf"], more].concat());
    workdir.write("pairs.jsonl", r#"{"question":"Who wrote it?","answer":"Anna","context":"By Anna in 1920."}"#);
    let said = check("pairs.jsonl", &[]).ok().stdout;
    assert!(said.contains(r"such as --map 'question={context}\n\n{question}'; nothing"), "{said}");
    let said = check("pairs.jsonl", &["--map", r"question={context}\n\n{question}"]).ok().stdout;
    assert!(said.contains("By Anna in 1920.\n\nWho wrote it?") && said.contains("The audit found nothing."), "{said}");
    workdir.write(
        "chat.jsonl",
        r#"{"messages":[{"role":"user","content":"Who?"},{"role":"assistant","content":"Anna"}],"context":"By Anna in 1920."}"#,
    );
    let said = check("chat.jsonl", &["--fail-on", "unread_columns"]);
    assert_eq!(said.code, Some(3), "{}", said.stdout);
    assert!(said.stdout.contains("such as --map 'system={context}'; nothing"), "{}", said.stdout);
    let refused = check("chat.jsonl", &["--map", "prompt={context}"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stdout);
    assert!(
        refused.stderr.contains("found `prompt`: rows in the format messages ")
            && refused.stderr.contains("Map one of `messages`, `system`"),
        "{}",
        refused.stderr
    );
}

#[test]
fn rows_are_cut_where_the_model_ends_whether_its_weights_are_there_or_not() {
    let workdir = Workdir::new();
    let family = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    for folder in ["whole", "bare", "foreign"] {
        std::fs::create_dir(workdir.path(folder)).unwrap();
        for file in ["config.json", "tokenizer.json", "model.safetensors"] {
            if folder == "whole" || file != "model.safetensors" {
                std::fs::copy(family.join(file), workdir.path(folder).join(file)).unwrap();
            }
        }
    }
    workdir.write("foreign/config.json", r#"{"model_type": "abacus", "max_position_embeddings": 64}"#);
    workdir.write("long.jsonl", format!("{{\"text\": \"{}\"}}\n", "abacus ".repeat(200)));
    let check = |model: &str, more: &[&str]| {
        let arguments = [&["check", "long.jsonl", "--supervise", "all", "--show", "0", "--model", model], more].concat();
        workdir.run(&arguments)
    };
    let (whole, bare) = (check("whole", &[]).ok().stdout, check("bare", &[]).ok().stdout);
    assert!(whole.contains("--max-len 128") && whole.contains("1 of 1 row is longer"), "{whole}");
    assert_eq!(whole.replace("by whole", "by bare"), bare);
    // The model family does not affect the rows, but determines their longest length.
    let refused = check("foreign", &[]);
    assert_eq!(refused.code, Some(1), "{}", refused.stdout);
    assert!(refused.stderr.contains("`abacus`") && refused.stderr.contains("Pass --max-len"), "{}", refused.stderr);
    check("foreign", &["--max-len", "64"]).ok();
}

/// Answers are compared one by one, each with those to the same text.
#[test]
fn a_contradiction_is_another_answer_to_the_same_text() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let check = |rows: &[&[(&str, &str)]]| {
        let turn = |(asked, answered): &(&str, &str)| {
            let weight = if answered.starts_with('-') { ",\"weight\":0" } else { "" };
            format!(
                r#"{{"role":"user","content":"{asked}"}},{{"role":"assistant","content":"{}"{weight}}}"#,
                answered.trim_start_matches('-')
            )
        };
        let row = |row: &&[(&str, &str)]| format!("{{\"messages\":[{}]}}\n", row.iter().map(turn).collect::<Vec<_>>().join(","));
        workdir.write("rows.jsonl", rows.iter().map(row).collect::<String>());
        let found = workdir.run(&["check", "rows.jsonl", "--model", "tiny.gguf", "--json"]).ok().json();
        let examples = |what: &str| found[what]["examples"].to_string().replace("rows.jsonl", "");
        (examples("contradictions"), examples("duplicates"))
    };
    let said = |contradictions: &str, duplicates: &str| (contradictions.to_owned(), duplicates.to_owned());
    // A conversation that continues another one does not contradict it.
    let whole = [("a", "b"), ("c", "d"), ("e", "f")];
    assert_eq!(check(&[&whole[..1], &whole[..2], &whole]), said("[]", "[]"));
    let rows: [&[(&str, &str)]; 4] = [&[("a", "b")], &[("a", "c")], &[("a", "b"), ("d", "e")], &[("a", "b"), ("d", "f")]];
    assert_eq!(check(&rows), said(r#"[":2 as :1",":3 as :2",":4 as :2"]"#, "[]"));
    let rows: [&[(&str, &str)]; 3] = [&[("x", "y"), ("a", "b")], &[("x", "y"), ("a", "c")], &[("x", "z"), ("a", "b")]];
    assert_eq!(check(&rows), said(r#"[":2 as :1",":3 as :1"]"#, "[]"));
    // The same tokens with a different loss mask.
    let rows: [&[(&str, &str)]; 4] =
        [&[("a", "-b"), ("c", "d")], &[("a", "b"), ("c", "d")], &[("a", "-b"), ("c", "d")], &[("a", "-x"), ("c", "d")]];
    assert_eq!(check(&rows), said("[]", r#"[":3 as :1"]"#));
}

#[test]
fn large_numbers_have_their_thousands_apart() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = "{\"messages\":[{\"role\":\"user\",\"content\":\"c\"},{\"role\":\"assistant\",\"content\":\"d\",\"lossy\":1}]}\n";
    workdir.write("rows.jsonl", row.repeat(1200));
    let said = workdir.run(&["check", "rows.jsonl", "--model", "tiny.gguf", "--show", "0"]).ok().stdout;
    for part in [
        "1,200 rows read, 1,200 with supervised tokens",
        "1,199 rows are equal",
        "1,200 of 1,200 rows",
        "`messages[].lossy` in 1,200",
    ] {
        assert!(said.contains(part), "expected {part} in\n{said}");
    }
}

#[test]
fn a_finding_can_fail_the_check() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", ROWS);
    let code = |finding: &str| workdir.run(&["check", "rows.jsonl", "--model", "tiny.gguf", "--fail-on", finding]).code;
    assert_eq!(
        [code("unused_switches"), code("empty_mask,duplicates"), code("full_mask"), code("any"), code("nonsense")],
        [Some(3), Some(3), Some(0), Some(3), Some(2)]
    );
}

/// `check` is the first command to run on unknown data: their content, their file names and the files beside them must not affect the terminal.
#[test]
#[cfg(unix)]
fn nothing_of_the_data_acts_on_the_terminal() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let rows = concat!(
        r#"{"messages": "\u001b[31mred\u001b]0;title\u0007"}"#,
        "\n",
        r#"{"messages": [{"role": "user", "content": "a \u001b[2J clear"}, {"role": "assistant", "content": "b \u001b]52;c;\u0007 c\r \u202edlo \u009b2J"}], "id": "\u001b[31mID"}"#,
        "\n",
        r#"{"messages": [{"role": "us\u001b[31mer", "content": "a"}, {"role": "assistant", "content": "b"}]}"#,
        "\n",
    );
    let name = "\u{1b}[31mrows.jsonl";
    workdir.write(name, rows);
    let acts = |c: char| c.is_control() && c != '\n' || ('\u{202a}'..='\u{202e}').contains(&c);
    let is_harmless = |what: &str, text: &str| assert!(!text.chars().any(acts), "{what}: {text:?}");
    let check = |more: &[&str]| workdir.run(&[&["check", name, "--model", "tiny.gguf"], more].concat());
    let shown = check(&[]).ok();
    is_harmless("check", &shown.stdout);
    is_harmless("check", &shown.stderr);
    for part in ["␛[31mrows.jsonl:2\n", "a ␛[2J clear", "[[b ␛]52;c;␇ c␍ ⟨U+202E⟩dlo ⟨U+009B⟩2J<|im_end|>]]", "us␛[31mer"]
    {
        assert!(shown.stdout.contains(part), "expected {part} in\n{}", shown.stdout);
    }
    let json = check(&["--json"]).ok();
    is_harmless("--json", &json.stdout);
    let text: String =
        json.json()["shown"][0]["pieces"].as_array().unwrap().iter().map(|piece| piece["text"].as_str().unwrap()).collect();
    assert!(text.contains("b \u{1b}]52;c;\u{7} c\r \u{202e}dlo \u{9b}2J"), "JSON says what there is: {text:?}");
    let refused = check(&["--strict"]);
    assert_eq!(refused.code, Some(1));
    is_harmless("an error", &refused.stderr);
    assert!(refused.stderr.contains("found `␛[31mred␛]0;title␇`"), "{}", refused.stderr);
    // An options file comes with the data, so it is not trusted either.
    workdir.write("diagnose.toml", "thresholds = \"\\u001b[2J\"\n");
    let refused = workdir.run(&[name, "--model", "tiny.gguf"]);
    assert_eq!(refused.code, Some(2));
    is_harmless("an error of options", &refused.stderr);
    assert!(refused.stderr.contains("diagnose.toml") && refused.stderr.contains("--thresholds"), "{}", refused.stderr);
    std::fs::remove_file(workdir.path("diagnose.toml")).unwrap();
    let scored = workdir.run(&[name, "--model", "tiny.gguf", "--out", "run"]).ok();
    is_harmless("scoring", &(scored.stdout + &scored.stderr));
    let report = std::fs::read_to_string(workdir.path("run/report.md")).unwrap();
    is_harmless("report.md", &report);
    assert!(report.contains("us␛"), "{report}");
}
