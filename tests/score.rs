//! Tests the main job as a user runs it: the run folder, the output, and the effect of every option.

use serde_json::Value;

use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

const ROWS: &str = r#"{"id":"a","messages":[{"role":"user","content":"Say hi."},{"role":"assistant","content":"hi there"}]}
{"id":"b","source":"second","messages":[{"role":"user","content":"And?"},{"role":"assistant","content":"bye"},{"role":"user","content":"Why?"},{"role":"assistant","content":"because"}]}
{"id":"c","messages":[{"role":"user","content":"nobody answers"}]}
{"id":"d","messages":"not a list"}
"#;

fn workdir() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", ROWS);
    workdir
}

fn json(workdir: &Workdir, name: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(workdir.path(name)).unwrap()).unwrap()
}

/// Behind an instruction that all rows share, rows that ask the same are told from those that ask nearly the same.
#[test]
fn contradictions_are_found_behind_a_shared_instruction() {
    let workdir = workdir();
    let instruction = "Read the question below with care, look nothing up, and answer as short as you can. ".repeat(6);
    let row = |(place, capital): (&str, &str)| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{instruction}What is the capital of {place}?\"}},{{\"role\":\"assistant\",\"content\":\"{capital}\"}}]}}\n"
        )
    };
    let rows =
        [("Spain", "Madrid"), ("France", "Lyon"), ("Italy", "Rome"), ("France", "Lyon"), ("France", "Paris"), ("Italy", "Rome")];
    workdir.write("asked.jsonl", rows.map(row).concat());
    workdir.run(&["asked.jsonl", "--model", "tiny.gguf", "--out", "run", "--no-view"]).ok();
    let kinds = &json(&workdir, "run/summary.json")["kinds"];
    assert_eq!((&kinds["near_duplicates"], &kinds["contradictions"]), (&5.into(), &3.into()), "{kinds}");
    let report = std::fs::read_to_string(workdir.path("run/report.md")).unwrap();
    assert!(
        report.contains("5 rows have the same prompt as an earlier row, or a similar one; 3 rows have the same prompt as another row but a different answer"),
        "{report}"
    );
}

/// `check` and the report find the same contradictory rows: those with different supervised answers to the same question, including its tools.
#[test]
fn check_and_report_agree_on_contradictions() {
    let workdir = workdir();
    let chat = |turns: &[(&str, &str)], row: &str| {
        let turn = |(asked, answered): &(&str, &str)| {
            let weight = if answered.starts_with('-') { ",\"weight\":0" } else { "" };
            let answered = answered.trim_start_matches('-');
            format!(r#"{{"role":"user","content":"{asked}"}},{{"role":"assistant","content":"{answered}"{weight}}}"#)
        };
        format!("{{\"messages\":[{}]{row}}}\n", turns.iter().map(turn).collect::<Vec<_>>().join(","))
    };
    let tools = |name: &str| format!(r#","tools":[{{"type":"function","function":{{"name":"{name}","parameters":{{}}}}}}]"#);
    let called = |town: &str, said: &str| {
        let call = format!(r#"{{"id":"{said}","type":"function","function":{{"name":"rain","arguments":{{"town":"{town}"}}}}}}"#);
        format!(
            r#"{{"messages":[{{"role":"user","content":"Wet?"}},{{"role":"assistant","content":"","weight":0,"tool_calls":[{call}]}},{{"role":"tool","content":"9"}},{{"role":"assistant","content":"{said}"}}]}}"#
        ) + "\n"
    };
    // How many rows are in contradiction with another, and how many of them with an earlier one.
    let found = |name: &str, rows: &str| {
        workdir.write(&format!("{name}.jsonl"), rows);
        let arguments = [&format!("{name}.jsonl"), "--model", "tiny.gguf"];
        workdir.run(&[&arguments[..], &["--out", name, "--no-view"]].concat()).ok();
        let checked = workdir.run(&[&["check", "--json"], &arguments[..]].concat()).ok().json();
        let kinds = &json(&workdir, &format!("{name}/summary.json"))["kinds"];
        (kinds["contradictions"].as_u64().unwrap(), checked["contradictions"]["rows"].as_u64().unwrap())
    };
    let asked = "Is it raining?";
    let other_tools = chat(&[(asked, "yes")], &tools("rain")) + &chat(&[(asked, "no")], &tools("song"));
    assert_eq!(found("other-tools", &other_tools), (0, 0));
    let same_tools = chat(&[(asked, "yes")], &tools("rain")) + &chat(&[("is it raining", "no")], &tools("rain"));
    assert_eq!(found("same-tools", &same_tools), (2, 1));
    let switched = |on: &str| format!(r#","chat_template_kwargs":{{"enable_thinking":{on}}}"#);
    let switches = chat(&[(asked, "yes")], &switched("true")) + &chat(&[(asked, "no")], &switched("false"));
    assert_eq!(found("switches", &switches), (0, 0));
    // The two rows of the same call answer otherwise, and the third asks something else by another call.
    let calls = called("Oslo", "yes") + &called("Rome", "no") + &called("Rome", "maybe");
    assert_eq!(found("calls", &calls), (2, 1));
    // The first answers differ, and what is said behind them is the same.
    let within = chat(&[(asked, "yes"), ("Thanks", "Welcome")], "") + &chat(&[(asked, "no"), ("Thanks", "Welcome")], "");
    assert_eq!(found("within", &within), (2, 1));
    let unlearnt = chat(&[(asked, "yes")], "") + &chat(&[(asked, "-no")], "") + &chat(&[(asked, "-no"), ("Sure?", "yes")], "");
    assert_eq!(found("unlearnt", &unlearnt), (0, 0));
    let last = workdir.run(&["within.jsonl", "--model", "tiny.gguf", "--supervise", "last", "--out", "last", "--no-view"]);
    last.ok();
    assert_eq!(json(&workdir, "last/summary.json")["kinds"]["contradictions"], 0);
}

/// What an assistant writes beside the content goes by the same rules as the content, and has sentences; what the template puts around it does not.
#[test]
fn reasoning_and_calls_have_kinds_and_sentences() {
    use diagnose::table::{Column, read_chunks, read_conflicts, texts_of};
    let workdir = workdir();
    workdir.write("template.jinja", tiny_model::THINKS_AND_CALLS);
    workdir.write(
        "beside.jsonl",
        concat!(
            r#"{"messages":[{"role":"user","content":"a?"},{"role":"assistant","content":"","reasoning_content":"We have 7 degrees in Köln.","#,
            r#""tool_calls":[{"type":"function","function":{"name":"heat","arguments":{"city":"Köln","days":3}}}]}]}"#,
            "\n",
            r#"{"messages":[{"role":"user","content":"b?"},{"role":"assistant","content":"","reasoning_content":"So it ends"}]}"#,
            "\n",
            r#"{"messages":[{"role":"user","content":"c?"},{"role":"assistant","content":"And then it went on to the","reasoning_content":"Hm."}]}"#,
            "\n",
            r#"{"messages":[{"role":"user","content":"d?"},{"role":"assistant","content":""}]}"#,
            "\n",
        ),
    );
    let args = ["beside.jsonl", "--model", "tiny.gguf", "--chat-template", "template.jinja", "--out", "run"];
    // The random model is sure of nothing: by these thresholds every token is a conflict.
    let printed = workdir.run(&[&args[..], &["--thresholds", "p=0.999,H=99"]].concat()).ok().stdout;
    let conflicts = || {
        let tables = [workdir.path("run/tokens.parquet")];
        let mut ids = Vec::new();
        for chunk in read_chunks(&tables, &[Column::Row, Column::TokenId]) {
            let chunk = chunk.unwrap();
            ids.extend(chunk.row.iter().copied().zip(chunk.token_id.iter().copied()));
        }
        let texts = texts_of(&tables, &ids.iter().map(|(_, id)| *id).collect()).unwrap();
        let found: Vec<_> = read_conflicts(&workdir.path("run/conflicts.parquet")).map(Result::unwrap).collect();
        assert_eq!(found.len(), ids.len());
        let found =
            ids.iter().zip(found).map(|(&(row, id), conflict)| (row, texts[&id].clone(), conflict.kind, conflict.evidence));
        found.collect::<Vec<_>>()
    };
    let found = conflicts();
    let of_row = |row: u32| found.iter().filter(move |conflict| conflict.0 == row);
    let template: String = of_row(0).filter(|(_, _, kind, _)| kind == "template").map(|(_, text, ..)| text.as_str()).collect();
    // The signs between and behind the arguments are the call's.
    assert_eq!(template, "<think>\n\n</think>\n\n\n<tool_call>\n{\"name\": \"\", \"arguments\": {\"\n</tool_call><|im_end|>");
    for number in ["7", "3"] {
        assert!(of_row(0).any(|(_, text, kind, _)| text == number && kind == "number"), "{number}: {found:?}");
    }
    // The two bytes of a letter are two tokens, in the reasoning and in the call.
    assert_eq!(of_row(0).filter(|(_, text, kind, _)| text == "<0xC3>" && kind != "template").count(), 2);
    let ends: Vec<(u32, &str, &str)> = found
        .iter()
        .filter(|(_, text, ..)| text == "<|im_end|>")
        .map(|(row, _, kind, evidence)| (*row, kind.as_str(), evidence.as_str()))
        .collect();
    let of_template = ("template", "a token of the template");
    assert_eq!(ends[..2], [(0, of_template.0, of_template.1), (1, of_template.0, of_template.1)]);
    assert_eq!(ends[2..].iter().map(|end| (end.0, end.1)).collect::<Vec<_>>(), [(2, "malformed"), (3, "malformed")]);
    assert_eq!(ends[3].2, "the answer is empty");
    assert_eq!(found.iter().filter(|(_, _, kind, _)| kind == "malformed").count(), 2, "{found:?}");
    // Every sentence of what is listed holds its token, and says what it is part of.
    let report = std::fs::read_to_string(workdir.path("run/report.md")).unwrap();
    assert!(report.contains(" (reasoning)") && report.contains(" (tool call)"), "{report}");
    assert!(printed.contains(" (reasoning)"), "{printed}");
    let surprises = json(&workdir, "run/summary.json")["surprises"].clone();
    let mut parts = std::collections::BTreeSet::new();
    for surprise in surprises.as_array().unwrap() {
        let context = &surprise["context"];
        parts.extend(context["part"].as_str().map(str::to_owned));
        let token = surprise["token"].as_str().unwrap();
        assert!(token.contains("<0x") || surprise["row"] == 3 || context["token"] == token, "{surprise}");
    }
    assert!(parts.contains("reasoning") && parts.contains("tool_call"), "{surprises}");
    // Sorted again, without the model: the same.
    workdir.run(&["run", "--thresholds", "p=0.998,H=99"]).ok();
    assert_eq!(conflicts(), found);
    let masked = workdir.run(&["export", "run", "--out", "masked.jsonl", "--format", "messages", "--mask", "conflicts"]).ok();
    let said =
        "conflicts are tokens outside the content (reasoning, tool calls or the template), which cannot be masked one by one";
    assert!(masked.stdout.contains(said) || masked.stderr.contains(said), "{} {}", masked.stdout, masked.stderr);
    workdir.run(&["export", "run", "--out", "kept.jsonl", "--drop", "kind=malformed"]).ok();
    let kept = std::fs::read_to_string(workdir.path("kept.jsonl")).unwrap();
    assert_eq!(kept.lines().map(|line| line.contains("a?") || line.contains("b?")).collect::<Vec<_>>(), [true, true]);
}

#[test]
fn a_run_leaves_every_file_and_counts_every_row() {
    let workdir = workdir();
    let ran = workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run"]).ok();
    for name in
        ["run.json", "tokens.parquet", "rows.parquet", "summary.json", "report.md", "maps/density.png", "maps/density.svg"]
    {
        assert!(workdir.path("run").join(name).metadata().unwrap().len() > 0, "{name} is empty");
    }
    assert!(ran.stdout.contains("2 of 4 rows"), "{}", ran.stdout);
    // The audit says what was skipped, where and why, before the work.
    assert!(ran.stderr.contains("rows.jsonl:3"), "{}", ran.stderr);
    assert!(ran.stderr.contains("rows.jsonl:4"), "{}", ran.stderr);
    let run = json(&workdir, "run/run.json");
    assert_eq!((&run["counts"]["records"], &run["counts"]["scored"]), (&4.into(), &2.into()));
    assert_eq!(run["data"][0]["format"], "messages");
    // The start counts, and finishing does not.
    let first_row = run["seconds_to_first_row"].as_f64().unwrap();
    assert!(first_row > run["seconds"]["load"].as_f64().unwrap() && first_row < 60.0, "{first_row}");
    // "hi there", "bye" and "because" a byte a token (the only merges are "ab" and " t"), each with its end of turn.
    assert_eq!(run["counts"]["supervised"], 7 + 1 + 3 + 1 + 7 + 1);
    let summary = json(&workdir, "run/summary.json");
    assert_eq!(summary["overall"]["tokens"], 20);
    assert_eq!(summary["sources"].as_array().unwrap().len(), 2);
    let report = std::fs::read_to_string(workdir.path("run/report.md")).unwrap();
    assert!(report.contains("diagnose rows.jsonl --model tiny.gguf --out run"), "{report}");
}

#[test]
fn a_run_says_what_made_it_and_the_same_file_by_another_spelling_is_the_same_run() {
    let workdir = workdir();
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run"]).ok();
    let run = json(&workdir, "run/run.json");
    for field in ["program", "version", "commit", "started", "kernel_level", "device", "dtype", "kernels"] {
        assert!(run[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", run[field]);
    }
    assert!(run["threads"].as_u64().unwrap() > 0);
    assert!(run["started"].as_str().unwrap() > "2026-01-01T00:00:00Z", "{}", run["started"]);
    let version = workdir.run(&["--version"]).ok().stdout;
    let commit = run["commit"].as_str().unwrap();
    assert!(version.contains(commit) && version.contains(run["kernel_level"].as_str().unwrap()), "{version}");
    assert!(std::fs::read_to_string(workdir.path("run/report.md")).unwrap().contains(commit));

    let table = || std::fs::read(workdir.path("run/tokens.parquet")).unwrap();
    let before = table();
    let absolute = workdir.path("rows.jsonl");
    let model = workdir.path("tiny.gguf");
    for (data, model) in [("./rows.jsonl", "./tiny.gguf"), (absolute.to_str().unwrap(), model.to_str().unwrap())] {
        workdir.run(&[data, "--model", model, "--out", "run"]).ok();
        // Scored once: what was measured then still stands there.
        assert_eq!(json(&workdir, "run/run.json"), run, "{data}");
        assert!(before == table());
    }
    // The same bytes under another name have other sources in the table.
    std::fs::copy(&absolute, workdir.path("renamed.jsonl")).unwrap();
    let other = workdir.run(&["renamed.jsonl", "--model", "tiny.gguf", "--out", "run"]);
    assert!(other.code == Some(1) && other.stderr.contains("holds another run"), "{}", other.stderr);
}

#[test]
fn json_is_the_summary_and_nothing_else() {
    let workdir = workdir();
    let mut printed = workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run", "--json"]).ok().json();
    // Beside it, only where the run is.
    assert_eq!(printed.as_object_mut().unwrap().remove("out"), Some("run".into()));
    assert_eq!(printed, json(&workdir, "run/summary.json"));
}

#[test]
fn options_decide_what_is_scored() {
    let workdir = workdir();
    let supervised = |out: &str, options: &[&str]| {
        let arguments = [&["rows.jsonl", "--model", "tiny.gguf", "--out", out, "--json"], options].concat();
        workdir.run(&arguments).ok().json()["overall"]["tokens"].as_u64().unwrap()
    };
    assert_eq!(supervised("limit", &["--limit", "1"]), 8);
    assert_eq!(supervised("last", &["--supervise", "last"]), 8 + 8);
    // Whole texts but for each first token, the answerless row included.
    assert!(supervised("all", &["--supervise", "all"]) > 100);
    assert!(supervised("short", &["--max-len", "40"]) < 20);
    assert_eq!(supervised("system", &["--system", "Be brief."]), 20);
}

#[test]
fn a_sample_is_drawn_and_a_limit_says_that_it_is_none() {
    let workdir = workdir();
    let row = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"{i}?\"}},{{\"role\":\"assistant\",\"content\":\"{i} ab\"}}]}}\n"
        )
    };
    workdir.write("many.jsonl", (0..40).map(row).collect::<String>());
    let run = |out: &str, more: &[&str]| workdir.run(&[&["many.jsonl", "--model", "tiny.gguf", "--out", out], more].concat());
    let rows = |out: &str| -> Vec<u32> {
        let rows = diagnose::table::read_rows(&workdir.path(out).join("rows.parquet")).unwrap();
        rows.iter().map(|row| row.row).collect()
    };
    let report = |out: &str| std::fs::read_to_string(workdir.path(out).join("report.md")).unwrap();
    let sampled = run("sample", &["--sample", "12", "--seed", "5"]).ok();
    assert!(sampled.stdout.contains("12 rows drawn at random of 40, seed 5"), "{}", sampled.stdout);
    assert!(report("sample").contains("12 rows drawn at random of 40, seed 5"));
    let found = json(&workdir, "sample/run.json");
    assert_eq!((&found["sample"], &found["sampled_from"], &found["seed"]), (&12.into(), &40.into(), &5.into()));
    run("larger", &["--sample", "20", "--seed", "5"]).ok();
    let (smaller, larger) = (rows("sample"), rows("larger"));
    assert!(
        smaller.len() == 12 && larger.len() == 20 && smaller.iter().all(|row| larger.contains(row)),
        "{smaller:?} {larger:?}"
    );
    // The sample's tokens are those of the whole run, to the bit.
    run("whole", &["--thresholds", "p=0.01,H=5.2"]).ok();
    let logprobs = |out: &str| -> Vec<(u32, u32, u32)> {
        let columns = [diagnose::table::Column::Row, diagnose::table::Column::Pos, diagnose::table::Column::Logprob];
        let chunks = diagnose::table::read_chunks(&[workdir.path(out).join("tokens.parquet")], &columns);
        let of = |chunk: diagnose::table::TokenChunk| {
            (0..chunk.len()).map(move |i| (chunk.row[i], chunk.pos[i], chunk.logprob[i].to_bits()))
        };
        chunks.flat_map(|chunk| of(chunk.unwrap()).collect::<Vec<_>>()).collect()
    };
    let expected: Vec<_> = logprobs("whole").into_iter().filter(|(row, ..)| smaller.contains(row)).collect();
    assert_eq!(logprobs("sample"), expected);
    let first = run("first", &["--limit", "3"]).ok();
    assert!(first.stdout.contains("the first 3 rows of the data, not a random sample"), "{}", first.stdout);
    // Intervals and the number of rows behind them stand in the summary.
    let overall = json(&workdir, "whole/summary.json")["overall"].clone();
    assert_eq!(overall["rows"], 40);
    let interval =
        |cell: &Value| cell["token_share_ci95"].as_array().map(|ends| [ends[0].as_f64().unwrap(), ends[1].as_f64().unwrap()]);
    for (name, cell) in overall["quadrants"].as_object().unwrap() {
        let share = cell["token_share"].as_f64().unwrap();
        match interval(cell) {
            Some([low, high]) => assert!(low < share && share < high, "{name}: {cell}"),
            None => assert!(share == 0.0 || share == 1.0, "{name}: {cell}"),
        }
    }
    assert!(overall["quadrants"].as_object().unwrap().values().any(|cell| interval(cell).is_some()));
    let refused = run("both", &["--limit", "3", "--sample", "3"]);
    assert_eq!(refused.code, Some(2), "{}", refused.stderr);
}

#[test]
fn sorting_again_is_the_same_as_sorting_so_at_once() {
    let workdir = workdir();
    for preset in ["pilot", "groups", "tail", "p=0.01,H=5.2"] {
        let fresh = format!("fresh-{preset}");
        let run = |out: &str, thresholds: &str| {
            workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", out, "--thresholds", thresholds]).ok();
        };
        run(&fresh, preset);
        run("again", "fixed");
        workdir.run(&["again", "--thresholds", preset]).ok();
        for name in ["tokens.parquet", "rows.parquet", "summary.json"] {
            let read = |out: &str| std::fs::read(workdir.path(out).join(name)).unwrap();
            assert!(read(&fresh) == read("again"), "{name} differs under {preset}");
        }
    }
}

#[test]
fn the_same_rows_in_other_wrappings_give_the_same_table() {
    let workdir = workdir();
    let rows: Vec<Value> = ROWS.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    workdir.write("rows.json", serde_json::to_string(&rows).unwrap());
    let zipped = {
        use std::io::Write;
        let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        encoder.write_all(ROWS.as_bytes()).unwrap();
        encoder.finish().unwrap()
    };
    workdir.write("rows.jsonl.gz", zipped);
    let overall = |input: &str, out: &str| {
        let printed = workdir.run(&[input, "--model", "tiny.gguf", "--out", out, "--json"]).ok().json();
        printed["overall"].clone()
    };
    let plain = overall("rows.jsonl", "plain");
    assert_eq!(plain, overall("rows.json", "array"));
    assert_eq!(plain, overall("rows.jsonl.gz", "gz"));
    assert_eq!(plain, overall("rows.json*l", "glob"));

    use std::io::Write;
    let mut command = workdir.command(&["-", "--model", "tiny.gguf", "--out", "stdin", "--json"]);
    let mut child = command.stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(ROWS.as_bytes()).unwrap();
    let printed: Value = serde_json::from_slice(&child.wait_with_output().unwrap().stdout).unwrap();
    assert_eq!(plain, printed["overall"]);
}

#[test]
fn every_level_and_kernel_gives_the_same_scores() {
    let workdir = workdir();
    let perplexity = |out: &str, level: &str, kernels: &str| {
        let arguments = ["rows.jsonl", "--model", "tiny.gguf", "--out", out, "--kernels", kernels, "--json"];
        let output = workdir.command(&arguments).env("DIAGNOSE_KERNELS", level).output().unwrap();
        let printed = crate::workdir::Ran::of(output).ok().json();
        printed["overall"]["perplexity"].as_f64().unwrap()
    };
    let reference = perplexity("reference", "portable", "reference");
    for level in ["portable", "avx2", "avx512"] {
        let fused = perplexity(level, level, "fused");
        // f32 sums in another order.
        assert!((fused / reference - 1.0).abs() < 1e-5, "{level}: {fused}, reference {reference}");
    }
}

/// Conflicts with another row of their kind shown first have the scores of one conversation of both rows in which the first is not supervised.
#[test]
fn conflicts_in_context_are_scored_as_one_conversation() {
    use diagnose::table::{Column, Quadrant, read_chunks, read_conflicts};
    let workdir = workdir();
    let turns = [("Say hi to the lady.", "zubu wqo kjh fgd"), ("And what comes of it now?", "xvb poiu mnb lkj")];
    let message = |role: &str, content: &str, weight: u8| serde_json::json!({"role": role, "content": content, "weight": weight});
    let alone = |(asked, answered): (&str, &str)| serde_json::json!({"messages": [message("user", asked, 1), message("assistant", answered, 1)]});
    let together = |first: usize, second: usize| {
        let [(a, b), (c, d)] = [turns[first], turns[second]];
        let messages = [message("user", a, 0), message("assistant", b, 0), message("user", c, 1), message("assistant", d, 1)];
        serde_json::json!({ "messages": messages })
    };
    workdir.write("alone.jsonl", format!("{}\n{}\n", alone(turns[0]), alone(turns[1])));
    workdir.write("together.jsonl", format!("{}\n{}\n", together(1, 0), together(0, 1)));
    let score = |data: &str, more: &[&str]| {
        let out = data.split('.').next().unwrap();
        workdir.run(&[&[data, "--model", "tiny.gguf", "--out", out, "--thresholds", "p=0.004,H=5.5"], more].concat()).ok()
    };
    let said = score("alone.jsonl", &["--in-context"]).stdout;
    assert!(
        said.contains("in context ") && said.contains(" conflicts vanish with another row of their kind shown first"),
        "{said}"
    );
    score("together.jsonl", &[]);

    let columns = [Column::Row, Column::Pos, Column::Turn, Column::Begin, Column::End, Column::Logprob, Column::Quadrant];
    let table = |run: &str, shift: u16| {
        let mut tokens = std::collections::BTreeMap::new();
        for chunk in read_chunks(&[workdir.path(run).join("tokens.parquet")], &columns) {
            let chunk = chunk.unwrap();
            for i in (0..chunk.len()).filter(|&i| chunk.begin[i] < chunk.end[i]) {
                let key = (chunk.row[i], chunk.turn[i] - shift, chunk.begin[i]);
                tokens.insert(key, (chunk.pos[i], f64::from(chunk.logprob[i]), chunk.quadrant[i] == Quadrant::ConfidentConflict));
            }
        }
        tokens
    };
    let (before, after) = (table("alone", 0), table("together", 2));
    assert_eq!(before.keys().collect::<Vec<_>>(), after.keys().collect::<Vec<_>>());
    let kinds: std::collections::HashMap<(u32, u32), String> = read_conflicts(&workdir.path("alone/conflicts.parquet"))
        .map(Result::unwrap)
        .map(|conflict| ((conflict.row, conflict.pos), conflict.kind))
        .collect();
    let mut expected: std::collections::BTreeMap<String, (u64, u64, f64)> = std::collections::BTreeMap::new();
    for (key, (pos, logprob, _)) in before.iter().filter(|(_, (.., is_conflict))| *is_conflict) {
        let (_, then, is_conflict) = after[key];
        let own = expected.entry(kinds[&(key.0, *pos)].clone()).or_default();
        *own = (own.0 + 1, own.1 + u64::from(!is_conflict), own.2 + then - logprob);
    }
    let found = &json(&workdir, "alone/summary.json")["kinds"]["in_context"];
    assert_eq!((&found["rows"], &found["rows_left_out"]), (&2.into(), &0.into()), "{found}");
    assert_eq!(found["kinds"].as_array().unwrap().len(), expected.len());
    for kind in found["kinds"].as_array().unwrap() {
        let (n, vanished, change) = expected[kind["kind"].as_str().unwrap()];
        assert_eq!((kind["tokens"].as_u64(), kind["vanished"].as_u64()), (Some(n), Some(vanished)), "{kind}");
        assert!((kind["change"].as_f64().unwrap() - change / n as f64).abs() < 1e-5, "{kind}, expected {change} over {n}");
    }
    assert!(std::fs::read_to_string(workdir.path("alone/report.md")).unwrap().contains("shown first"));
    // Sorted again by the same thresholds, or asked for again, nothing is scored again and nothing is lost.
    let bytes = || std::fs::read(workdir.path("alone/in_context.parquet")).unwrap();
    let (scored, found) = (bytes(), found.clone());
    workdir.run(&["alone", "--thresholds", "p=0.004,H=5.5"]).ok();
    score("alone.jsonl", &["--in-context"]);
    assert!(bytes() == scored && json(&workdir, "alone/summary.json")["kinds"]["in_context"] == found);
    // A killed run has left what it had scored, which the next one takes over: here a row without conflicts, which nobody would find.
    let known = diagnose::table::read_provenance(&workdir.path("alone/in_context.parquet")).unwrap();
    let key = &known.iter().find(|(key, _)| key == "diagnose.conflicts").unwrap().1;
    let left = |key: &str| {
        std::fs::remove_file(workdir.path("alone/in_context.parquet")).unwrap();
        let row = serde_json::json!({"row": 0, "shown": 1, "others": 4, "new": 1, "conflicts": []});
        let torn = &row.to_string()[..20];
        workdir.write("alone/.in_context.jsonl", format!("{}\n{row}\n{torn}", serde_json::json!({"identity": key})));
        score("alone.jsonl", &["--in-context"]);
        assert!(!workdir.path("alone/.in_context.jsonl").exists());
        json(&workdir, "alone/summary.json")["kinds"]["in_context"].clone()
    };
    let resumed = left(key);
    let n_tokens =
        |of: &serde_json::Value| of["kinds"].as_array().unwrap().iter().map(|kind| kind["tokens"].as_u64().unwrap()).sum::<u64>();
    assert!(resumed["rows"] == 2 && n_tokens(&resumed) > 0 && n_tokens(&resumed) < n_tokens(&found), "{resumed}");
    assert_eq!(left("of other conflicts"), found);
    assert!(bytes() == scored);
    // Under other thresholds they are other conflicts, of which nothing that was found of the old ones is said.
    let said = workdir.run(&["alone", "--thresholds", "p=0.003,H=5.5"]).ok().stderr;
    assert!(said.contains("the --in-context results belong to other thresholds"), "{said}");
    assert!(!workdir.path("alone/in_context.parquet").exists());
    assert!(json(&workdir, "alone/summary.json")["kinds"]["in_context"].is_null());
    // A run keeps the thresholds that it is sorted by where none are named; and with the old ones comes back what was found under them.
    let thresholds = || json(&workdir, "alone/summary.json")["thresholds"]["preset"].clone();
    workdir.run(&["alone"]).ok();
    assert_eq!(thresholds(), "p=0.003,H=5.5");
    workdir.run(&["alone", "--thresholds", "p=0.004,H=5.5"]).ok();
    assert!(bytes() == scored && json(&workdir, "alone/summary.json")["kinds"]["in_context"] == found);
    // A finished run is not scored: what only scoring heeds is no option of it.
    for option in
        [["--model", "none"], ["--dtype", "bf16"], ["--max-len", "10"], ["--supervise", "all"], ["--seed", "0"], ["--out", "x"]]
    {
        let refused = workdir.run(&[&["alone"], &option[..]].concat());
        let expected = format!("{} has no effect on a finished run", option[0]);
        assert!(refused.code == Some(2) && refused.stderr.contains(&expected), "{}", refused.stderr);
        if option[0] != "--out" {
            let refused = workdir.run(&[&["alone", "alone"], &option[..]].concat());
            assert!(
                refused.code == Some(2) && refused.stderr.contains("has no effect on a comparison of runs"),
                "{}",
                refused.stderr
            );
        }
    }
    let refused = workdir.run(&["alone", "--in-context"]);
    assert!(refused.code == Some(2) && refused.stderr.contains("--in-context runs the model"), "{}", refused.stderr);
}

/// The first start on a processor measures and stores the kernel level for all later ones; clearing the cache changes nothing.
#[test]
fn the_level_that_was_found_the_fastest_is_used() {
    let workdir = Workdir::new();
    let version = || {
        let mut command = workdir.command(&["--version"]);
        let command = command.env("DIAGNOSE_CACHE", workdir.path("cache")).env("XDG_STATE_HOME", workdir.path("state"));
        Ran::of(command.env_remove("DIAGNOSE_KERNELS").output().unwrap()).stdout
    };
    let first = version();
    assert!(!workdir.path("cache").join("levels").exists(), "the choice stands in the cache");
    let Ok(levels) = std::fs::read_dir(workdir.path("state").join("diagnose/levels")) else {
        assert!(first.contains("portable") || first.contains("avx2"), "no choice was kept where there is one: {first}");
        return;
    };
    let kept = levels.map(|entry| entry.unwrap().path()).next().unwrap();
    let mut choice: Value = serde_json::from_slice(&std::fs::read(&kept).unwrap()).unwrap();
    assert!(first.contains(&format!("kernels {}", choice["level"].as_str().unwrap())), "{first}");
    choice["level"] = "avx2".into();
    std::fs::write(&kept, choice.to_string()).unwrap();
    assert!(version().contains("kernels avx2"), "the choice that was kept is not used");
}

/// A run stays at its kernel level: another one is refused by name, with the way back, and comparisons report different levels.
#[test]
fn a_run_goes_on_at_its_own_level_only_and_comparisons_name_another() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", r#"{"prompt":"What is it?","response":"A test of levels."}"#);
    let at =
        |level: &str, arguments: &[&str]| Ran::of(workdir.command(arguments).env("DIAGNOSE_KERNELS", level).output().unwrap());
    let highest = Ran::of(workdir.command(&["--version"]).env_remove("DIAGNOSE_KERNELS").output().unwrap()).stdout;
    if highest.contains("kernels portable") {
        println!("skipped: there is one level only");
        return;
    }
    let score = |out| ["rows.jsonl", "--model", "tiny.gguf", "--out", out];
    let evaluate = ["eval", "--tasks", "rows.jsonl", "--model", "tiny.gguf", "--out", "evaluated"];
    let train = [
        "train",
        "rows.jsonl",
        "--model",
        "tiny.gguf",
        "--batch-size",
        "1",
        "--epochs",
        "2",
        "--warmup-steps",
        "0",
        "--save-every",
        "1",
        "--out",
        "trained",
    ];
    for arguments in [&score("run")[..], &evaluate, &train] {
        at("portable", arguments).ok();
        let refused = at("avx2", arguments);
        let named = ["started at the kernel level portable", "this process uses avx2", "DIAGNOSE_KERNELS=portable resumes it"];
        assert!(refused.code == Some(1) && named.iter().all(|part| refused.stderr.contains(part)), "{}", refused.stderr);
        at("portable", arguments).ok();
    }
    // Killed before they had ended: parts and checkpoints know the level, too.
    let parts = workdir.path("half/parts");
    std::fs::create_dir_all(&parts).unwrap();
    std::fs::write(parts.join("identity.json"), r#"{"identity": "of another", "kernel_level": "portable"}"#).unwrap();
    std::fs::remove_file(workdir.path("trained/run.json")).unwrap();
    for arguments in [&score("half")[..], &train] {
        let refused = at("avx2", arguments);
        assert!(refused.stderr.contains("started at the kernel level portable"), "{}", refused.stderr);
    }
    at("avx2", &score("other")).ok();
    let said = at("avx2", &["diff", "run", "other"]).ok().stdout;
    assert!(said.contains("The kernel level is portable in run and avx2 in other"), "{said}");
    // A card rounds other sums than a processor, and than another card.
    let path = workdir.path("other/run.json");
    let mut record: serde_json::Value = serde_json::from_slice(&std::fs::read(&path).unwrap()).unwrap();
    assert_eq!(record["device"], "cpu");
    record["device"] = "cuda (a card)".into();
    std::fs::write(&path, record.to_string()).unwrap();
    let said = at("avx2", &["diff", "run", "other"]).ok().stdout;
    assert!(said.contains("The device is cpu in run and cuda (a card) in other"), "{said}");
    let same = at("avx2", &["diff", "run", "run"]).ok().stdout;
    assert!(!same.contains("kernel level"), "{same}");
}

/// Without its data, a run cannot classify its conflicts: sorted again by the same thresholds it keeps the kinds, and by others it reports that they
/// are gone.
#[test]
fn a_run_whose_data_have_changed_keeps_what_it_knows() {
    let workdir = workdir();
    workdir.write("rows.jsonl", r#"{"prompt":"What is it?","response":"zubu wqo kjh fgd xvb poiu mnb lkj"}"#);
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run", "--thresholds", "p=0.004,H=5.5"]).ok();
    let files = ["conflicts.parquet", "tokens.parquet", "report.md", "summary.json", "view.html"];
    let read = || files.map(|file| std::fs::read(workdir.path("run").join(file)).unwrap());
    let before = read();
    workdir.write("rows.jsonl", r#"{"prompt":"What is it?","response":"zubu wqo"}"#);
    for arguments in [&["run"][..], &["run", "--thresholds", "p=0.004,H=5.5"]] {
        let shown = workdir.run(arguments).ok();
        assert!(shown.stderr.contains("the run keeps its present thresholds, p=0.004,H=5.5"), "{}", shown.stderr);
        assert!(shown.stdout.contains("confident conflict") && read() == before);
    }
    let shown = workdir.run(&["run", "--thresholds", "fixed"]).ok();
    assert!(shown.stderr.contains("sorted without sentences and kinds of conflict: "), "{}", shown.stderr);
    assert!(!workdir.path("run/conflicts.parquet").exists());
}

/// Texts that cannot be reproduced are kept: if the data are gone, the page of the run is the only place with its texts.
#[test]
fn a_page_with_texts_is_not_replaced_by_one_without() {
    let workdir = workdir();
    let row = r#"{"prompt":"What is it?","response":"zubu wqo kjh fgd xvb poiu mnb lkj"}"#;
    let score = |more: &[&str]| {
        let command = [&["-", "--model", "tiny.gguf", "--out", "run", "--thresholds", "p=0.004,H=5.5"], more].concat();
        let mut program =
            workdir.command(&command).stdin(std::process::Stdio::piped()).stdout(std::process::Stdio::piped()).spawn().unwrap();
        std::io::Write::write_all(program.stdin.as_mut().unwrap(), row.as_bytes()).unwrap();
        assert!(program.wait_with_output().unwrap().status.success());
    };
    score(&[]);
    let read = |file: &str| std::fs::read(workdir.path("run").join(file)).unwrap();
    let (page, conflicts) = (read("view.html"), read("conflicts.parquet"));
    let viewed = workdir.run(&["view", "run"]).ok();
    assert!(viewed.stderr.contains("The existing page, which has the texts, is kept: run: "), "{}", viewed.stderr);
    assert!(viewed.stderr.contains("came from standard input") && viewed.stderr.contains("--data"), "{}", viewed.stderr);
    assert!(viewed.stdout.contains("run/view.html") && read("view.html") == page);
    // A page elsewhere is another one, which there was none of.
    workdir.run(&["view", "run", "--out", "other.html"]).ok();
    assert!(std::fs::read(workdir.path("other.html")).unwrap() != page);
    // Files that were named and are not those of the run are an error, in each command alike.
    workdir.write("rows.jsonl", ROWS);
    for command in [&["view"][..], &[], &["export", "--out", "x.jsonl"]] {
        let refused = workdir.run(&[command, &["run", "--data", "rows.jsonl"]].concat());
        assert!(
            refused.code == Some(1) && refused.stderr.contains("the data file has changed since the run"),
            "{}",
            refused.stderr
        );
    }
    assert!(read("view.html") == page && read("conflicts.parquet") == conflicts);
    // Under other thresholds there are other conflicts: the page with the texts is kept beside the new one.
    let sorted = workdir.run(&["run", "--thresholds", "fixed"]).ok();
    assert!(
        sorted.stderr.contains("is kept as run/view-p=0.004,H=5.5.html") && sorted.stderr.contains("--data"),
        "{}",
        sorted.stderr
    );
    assert!(read("view-p=0.004,H=5.5.html") == page && read("view.html") != page);
    // With the bytes in a file everything comes back, the order of the options aside.
    workdir.write("kept.jsonl", row);
    workdir.run(&["--data", "kept.jsonl", "run", "--thresholds", "p=0.004,H=5.5"]).ok();
    assert!(read("conflicts.parquet") == conflicts && read("view.html") == page);
    workdir.run(&["run", "--thresholds", "fixed"]).ok();
    let viewed = workdir.run(&["view", "--data", "kept.jsonl", "run"]).ok();
    assert_eq!(viewed.stderr, "");
    let refused = workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--data", "kept.jsonl"]);
    assert!(
        refused.code == Some(2) && refused.stderr.contains("--data kept.jsonl has no effect when data are scored"),
        "{}",
        refused.stderr
    );
}

/// The page of a run shows the thresholds by which the run is sorted, or there is no page.
#[test]
fn without_a_page_none_of_other_thresholds_is_left() {
    let workdir = workdir();
    let score =
        |more: &[&str]| workdir.run(&[&["rows.jsonl", "--model", "tiny.gguf", "--out", "run"], more].concat()).ok().stdout;
    score(&[]);
    let page = workdir.path("run/view.html");
    assert!(score(&["--no-view", "--thresholds", "fixed"]).contains("run/view.html") && page.exists(), "it is still true");
    for sort in [&["run", "--no-view", "--thresholds", "p=0.004,H=5.5"][..], &["run", "--no-view", "--thresholds", "pilot"]] {
        assert!(!workdir.run(sort).ok().stdout.contains("view.html") && !page.exists());
        workdir.run(&["run"]).ok();
        assert!(page.exists());
    }
    assert!(!score(&["--no-view", "--thresholds", "fixed"]).contains("view.html") && !page.exists());
}

/// A colleague's run, say, on a disk of theirs. (Where everybody may write everywhere, a folder in the place of the file does.)
#[test]
fn a_run_that_cannot_be_written_to_can_be_shown() {
    let workdir = workdir();
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run"]).ok();
    std::fs::remove_file(workdir.path("run/.lock")).unwrap();
    std::fs::create_dir(workdir.path("run/.lock")).unwrap();
    let refused = workdir.run(&["run"]);
    assert!(
        refused.code == Some(1) && refused.stderr.contains("show it with `diagnose view run --out FILE`"),
        "{}",
        refused.stderr
    );
    workdir.run(&["view", "run", "--out", "page.html"]).ok();
}

/// An option without effect is an error, so that nobody believes it had one.
#[test]
fn options_without_a_say_and_names_of_nothing_are_refused_by_name() {
    let workdir = workdir();
    workdir.write("t.txt", "One text.");
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "run", "--no-view"]).ok();
    let rollout = ["rollout", "rows.jsonl", "--model", "tiny.gguf"];
    workdir.write("items.jsonl", r#"{"context":"One and one are","choices":["two","three"],"answer":0}"#);
    let eval = ["eval", "--model", "tiny.gguf", "--tasks", "t.txt"];
    let of_items = ["eval", "--model", "tiny.gguf", "--tasks", "items.jsonl"];
    for (command, options, expected) in [
        (&["rows.jsonl"][..], &["--seed", "5"][..], "--seed 5 has no effect without --sample"),
        (&["check", "rows.jsonl"], &["--seed", "5"], "--seed 5 has no effect without --sample"),
        (&rollout, &["--supervise", "last"], "--supervise has no effect on prompts"),
        (&rollout, &["--append-eos"], "--append-eos has no effect on prompts"),
        (&eval, &["--temperature", "0.5"], "--temperature has no effect: the model does not write answers in t"),
        (&eval, &["--stop", "x"], "--stop has no effect"),
        (&eval, &["--max-new-tokens", "9"], "--max-new-tokens has no effect"),
        (&eval, &["--batch", "9"], "--batch has no effect"),
        (&eval, &["--system", "Be brief."], "--system has no effect: texts are read as they are"),
        (&eval, &["--apply-chat-template"], "--apply-chat-template has no effect: texts are read as they are"),
        (&eval, &["--chat-template", "t.jinja"], "--chat-template has no effect: texts are read as they are"),
        (&eval, &["--seed", "3"], "--seed has no effect: neither items"),
        (&of_items, &["--apply-chat-template", "--fewshot-as-multiturn", "false"], "--fewshot-as-multiturn false has no effect"),
        (&of_items, &["--seed", "3"], "--seed has no effect"),
        (
            &["train", "-"],
            &["--method", "pilot"],
            "--method pilot reads the data twice, first for the base model's scores, but `-` can be read only once",
        ),
        (&["train", "-"], &["--validation", "-"], "`-` is given twice"),
        (&["run", "run", "notthere"], &[], "notthere: there is no run folder or data file with this name"),
        (
            &["diff", "run", "nosuch"],
            &[],
            "nosuch: expected a folder with scores.json or tokens.parquet, or a model, and there is nothing of this name",
        ),
    ] {
        let refused = workdir.run(&[command, options].concat());
        assert!(
            refused.code == Some(2) && refused.stderr.contains(expected),
            "{command:?} {options:?}: {:?} {}",
            refused.code,
            refused.stderr
        );
    }
    // The seed of a file of options, whose sample gives way to a limit that is typed.
    workdir.write("options.toml", "sample = 2\nseed = 5\n");
    workdir
        .run(&["rows.jsonl", "--model", "tiny.gguf", "--config", "options.toml", "--limit", "1", "--out", "first", "--no-view"])
        .ok();
    workdir.run(&[&rollout[..], &["--seed", "5", "--max-new-tokens", "2", "--out", "own"]].concat()).ok();
}

fn said_of(workdir: &Workdir, before: &str, after: &str) -> String {
    workdir.run(&["diff", before, after]).ok().stdout
}

/// Differences that move tokens independently of the models are reported: other thresholds, other data.
#[test]
fn a_comparison_of_runs_names_other_thresholds_and_other_data() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = r#"{"prompt":"What is it?","response":"A test of comparisons."}"#;
    workdir.write("rows.jsonl", row);
    workdir.write("more.jsonl", format!("{row}\n{row}\n"));
    let score = |data: &str, thresholds: &str, out: &str| {
        workdir.run(&[data, "--model", "tiny.gguf", "--thresholds", thresholds, "--out", out]).ok();
    };
    score("rows.jsonl", "fixed", "run");
    score("rows.jsonl", "p=0.1,H=9", "sorted");
    score("more.jsonl", "fixed", "more");
    let said = |other: &str| said_of(&workdir, "run", other);
    let sorted = said("sorted");
    assert!(sorted.contains("run was sorted by fixed: p <= 0.25, H <= 1 nat, and sorted by p=0.1,H=9"), "{sorted}");
    assert!(!sorted.contains("the same files"), "{sorted}");
    let more = said("more");
    let by_number = "run and more have not read the same files in the same way: the rows have no ids, and are paired by their numbers, 1 of them";
    assert!(more.contains(by_number), "{more}");
    assert!(!more.contains("was sorted by"), "{more}");
    // Rows with ids find each other in any order; one whose id another has, too, and one that is new stand alone.
    let rows: Vec<String> = (0..9)
        .map(|i| format!(r#"{{"id":"r{i}","prompt":"What is {i}?","response":"{}"}}"#, "A test of it. ".repeat(1 + i % 3)))
        .collect();
    let twice = r#"{"id":"twice","prompt":"Who?","response":"Nobody knows."}"#;
    let new = r#"{"id":"new","prompt":"Who else?","response":"Nobody."}"#;
    let lines = |rows: &[&str]| rows.join("\n");
    let forwards: Vec<&str> = rows.iter().map(String::as_str).chain([twice, twice]).collect();
    let backwards: Vec<&str> = [new].into_iter().chain(forwards.iter().rev().skip(1).copied()).collect();
    workdir.write("forwards.jsonl", lines(&forwards));
    workdir.write("backwards.jsonl", lines(&backwards));
    score("forwards.jsonl", "fixed", "forwards");
    score("backwards.jsonl", "fixed", "backwards");
    let diff = workdir.run(&["diff", "forwards", "backwards", "--json"]).ok().json();
    let n = |run: &str, rows: &[u32]| -> u64 {
        let all = diagnose::table::read_rows(&workdir.path(run).join("rows.parquet")).unwrap();
        all.iter().filter(|row| rows.contains(&row.row)).map(|row| u64::from(row.supervised)).sum()
    };
    let (pairs, alone) = (n("forwards", &[0, 1, 2, 3, 4, 5, 6, 7, 8]), [n("forwards", &[9, 10]), n("backwards", &[0, 1])]);
    assert_eq!(
        (&diff["overall"]["tokens"], &diff["tokens_only_before"], &diff["tokens_only_after"]),
        (&pairs.into(), &alone[0].into(), &alone[1].into())
    );
    assert!(diff["overall"]["logprob"].as_f64().unwrap().abs() < 1e-6, "{diff}");
    assert!(said_of(&workdir, "forwards", "backwards").contains("rows are paired by their ids, 9 of them"));
    // After another question, the same answer is another text, so a change in its scores is neither learnt nor lost.
    let asked = |i: usize, row: &String| if i < 2 { row.replace("What is", "Who made") } else { row.clone() };
    workdir.write("asked.jsonl", rows.iter().enumerate().map(|(i, row)| asked(i, row) + "\n").collect::<String>());
    workdir.write("others.jsonl", rows.iter().map(|row| asked(0, row) + "\n").collect::<String>());
    score("asked.jsonl", "fixed", "asked");
    score("others.jsonl", "fixed", "others");
    let diff = workdir.run(&["diff", "forwards", "asked", "--json"]).ok().json();
    let (pairs, alone) = (n("forwards", &[2, 3, 4, 5, 6, 7, 8]), [n("forwards", &[0, 1, 9, 10]), n("asked", &[0, 1])]);
    assert_eq!(
        (&diff["overall"]["tokens"], &diff["tokens_only_before"], &diff["tokens_only_after"]),
        (&pairs.into(), &alone[0].into(), &alone[1].into())
    );
    let said = said_of(&workdir, "forwards", "asked");
    assert!(said.contains("paired by their ids, 7 of them; 2 more have other texts and are left out"), "{said}");
    let refused = workdir.run(&["diff", "forwards", "others"]);
    let has_none = refused.stderr.contains("no token in common: 9 rows have the same id and other texts");
    assert!(refused.code == Some(1) && has_none, "{}", refused.stderr);
}

/// With another system prompt, other template variables or another reading, equal files give different rows, which is no change of the model.
#[test]
fn a_comparison_of_runs_names_what_else_stands_before_their_tokens() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let row = |i: usize| {
        let answer = "A long test of comparisons. ".repeat(1 + 20 * (i % 2));
        format!(r#"{{"prompt":"What is {i}?","aside":"Who is {i}?","response":"{answer}"}}"#) + "\n"
    };
    workdir.write("rows.jsonl", (0..4).map(row).collect::<String>());
    let score = |options: &[&str], out: &str| {
        workdir.run(&[&["rows.jsonl", "--model", "tiny.gguf", "--no-view", "--out", out], options].concat()).ok();
    };
    score(&[], "run");
    score(&["--chat-template-kwargs", r#"{"unheard": true}"#, "--system", "Be brief."], "asked");
    score(&["--max-len", "60"], "cut");
    score(&["--map", "prompt=aside"], "mapped");
    let asked = said_of(&workdir, "run", "asked");
    let expected =
        "run and asked differ in the system prompt (--system) and the template's variables (--chat-template-kwargs): part of";
    assert!(asked.contains(expected) && !asked.contains("the same files"), "{asked}");
    let cut = said_of(&workdir, "run", "cut");
    assert!(cut.contains("Rows are cut after 2,048 tokens in run and after 60 in cut (--max-len)"), "{cut}");
    assert!(!cut.contains("differ in"), "{cut}");
    // Another question each, of which the files say nothing.
    let refused = workdir.run(&["diff", "run", "mapped"]);
    let has_none = refused.stderr.contains("no token in common: 4 rows have the same number and other texts");
    assert!(refused.code == Some(1) && has_none, "{}{}", refused.stdout, refused.stderr);
    let again = said_of(&workdir, "run", "run");
    assert!(["differ in", "are cut", "the same files"].iter().all(|said| !again.contains(said)), "{again}");
}
