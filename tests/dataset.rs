//! Tests reading whole files through `Dataset`: good ones of every format and container, and bad ones with the required message. The insides of a
//! single reader are tested beside its code.

use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};

use diagnose::Error;
use diagnose::dataset::{Compression, Container, Dataset, Example, FieldMap, Format, ReadOptions, Record, Role, RoleMap};
use serde_json::{Value, json};

#[test]
fn every_shared_file_loads_whole_and_in_its_own_format() {
    let mut n_missing = 0;
    for (file, format, n_examples, n_turns) in [
        ("sft/agentic/glaive_toolcall_en_demo.json", Format::ShareGpt, 225, 1454),
        ("sft/agentic/glaive_toolcall_zh_demo.json", Format::ShareGpt, 225, 1380),
        ("sft/agentic/reason_tool_use_demo.jsonl", Format::Messages, 36, 200),
        ("sft/agentic/tau_airline_gpt4o.jsonl", Format::Messages, 60, 1290),
        ("sft/agentic/toolbench_examples.jsonl", Format::Messages, 10, 94),
        ("sft/general/alpaca_en_demo.json", Format::Alpaca, 720, 1440),
        ("sft/general/alpaca_zh_demo.json", Format::Alpaca, 720, 1440),
        ("sft/general/dummy_conversation.json", Format::ShareGpt, 500, 2000),
        ("sft/general/gpteacher_roleplay.json", Format::Alpaca, 700, 1400),
        ("sft/general/identity.json", Format::Alpaca, 91, 182),
        ("sft/general/oasst_seed_dialogues.json", Format::Oasst, 158, 764),
        ("sft/general/seed_tasks.jsonl", Format::SelfInstruct, 175, 350),
        ("sft/general/v1_sft_demo.jsonl", Format::Messages, 430, 860),
        ("sft/general/wikisql_text.jsonl", Format::Text, 1000, 1000),
        ("sft/math/gsm8k_train.jsonl", Format::QuestionAnswer, 5000, 10_000),
        ("sft/medical/medmcqa_messages.jsonl", Format::Messages, 1400, 2800),
        ("sft/medical/medquad_prompt_completion.jsonl", Format::PromptCompletion, 1200, 2400),
        ("sft/medical/pubmedqa_alpaca.json", Format::Alpaca, 350, 700),
        ("text/c4_demo.jsonl", Format::Text, 220, 220),
        ("text/wiki_demo.txt", Format::Text, 30, 30),
    ] {
        let Some(path) = shared(file) else {
            n_missing += 1;
            continue;
        };
        let dataset = open(&path, &ReadOptions::default()).unwrap();
        let examples: Vec<Example> = dataset.records().map(|record| record.unwrap().example.unwrap()).collect();
        let turns = examples.iter().map(|example| example.turns.len()).sum::<usize>();
        let data_file = &dataset.files()[0];
        println!("{file}: {:?}, {}, {} examples, {turns} turns", data_file.container, data_file.format, examples.len());
        assert_eq!(data_file.format, format, "{file}");
        assert_eq!((examples.len(), turns), (n_examples, n_turns), "{file}");
    }
    if let (0, Some(folder)) = (n_missing, shared("sft")) {
        let n_files: usize =
            fs::read_dir(folder).unwrap().map(|entry| fs::read_dir(entry.unwrap().path()).unwrap().count()).sum();
        assert_eq!(n_files, 19, "a file under sft is not in the table above (the raw MedMCQA rows have a test of their own)");
    }
}

#[test]
fn raw_medmcqa_rows_become_the_published_messages() {
    let raw = shared("sft/medical/medmcqa_explained.jsonl");
    let messages = shared("sft/medical/medmcqa_messages.jsonl");
    let (Some(raw), Some(messages)) = (raw, messages) else { return };
    let error = open(&raw, &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("`opa`") && error.contains("--map") && error.contains("--format"), "{error}");

    let rules = [
        r"prompt={question}\nA. {opa}\nB. {opb}\nC. {opc}\nD. {opd}".to_owned(),
        r"completion={exp}\n\nAnswer: {cop:A. {opa}|B. {opb}|C. {opc}|D. {opd}}".to_owned(),
    ];
    let options = ReadOptions { mapping: FieldMap::parse(&rules).unwrap(), ..ReadOptions::default() };
    let mapped = open(&raw, &options).unwrap();
    assert_eq!(mapped.files()[0].format, Format::PromptCompletion);
    let expected = open(&messages, &ReadOptions::default()).unwrap();
    let mut n_rows = 0;
    for (mapped, expected) in mapped.records().zip(expected.records()) {
        let (mapped, expected) = (mapped.unwrap().example.unwrap(), expected.unwrap().example.unwrap());
        assert_eq!((mapped.id, mapped.turns), (expected.id, expected.turns));
        n_rows += 1;
    }
    assert_eq!(n_rows, 1400);
}

#[test]
fn tool_calls_of_all_styles_become_one() {
    let call = |id: Option<&str>| {
        let mut call = json!({"type": "function"});
        if let Some(id) = id {
            call["id"] = json!(id);
        }
        call["function"] = json!({"name": "add", "arguments": {"b": 1, "a": "x"}});
        Some(json!([call]))
    };
    let flat = json!({"name": "add", "arguments": {"b": 1, "a": "x"}});
    let check = |turn: Value, id: Option<&str>| {
        let example = example(json!({"messages": [{"role": "user", "content": "?"}, turn]}));
        assert_eq!(example.turns[1].tool_calls, call(id), "{turn}");
        // Chat templates print arguments in the order of the row.
        assert!(example.turns[1].tool_calls.as_ref().unwrap().to_string().contains(r#"{"b":1,"a":"x"}"#));
    };
    check(
        json!({"role": "assistant", "content": null, "tool_calls": [{"id": "7", "type": "function", "function": flat}]}),
        Some("7"),
    );
    check(json!({"role": "assistant", "content": "", "tool_calls": [flat]}), None);
    check(json!({"role": "assistant", "content": [{"type": "tool_call", "value": flat.to_string()}]}), None);
    check(json!({"role": "tool_call", "content": flat.to_string()}), None);

    let example = example(json!({
        "conversations": [
            {"from": "human", "value": "1 + x?"},
            {"from": "function_call", "value": flat.to_string()},
            {"from": "observation", "value": "{\"sum\": 2}"},
            {"from": "gpt", "value": "2"},
        ],
        "tools": "[{\"name\": \"add\", \"parameters\": {}}]",
        "system": "Be brief.",
    }));
    assert_eq!(script(&example), ["System: Be brief.", "User: 1 + x?", "Assistant: ", "Tool: {\"sum\": 2}", "Assistant: 2"]);
    assert_eq!(example.turns[2].tool_calls, call(None));
    assert_eq!(example.tools, Some(json!([{"type": "function", "function": {"name": "add", "parameters": {}}}])));
}

#[test]
fn tool_results_and_empty_tool_lists() {
    let example = example(json!({
        "messages": [
            {"role": "user", "content": "?"},
            {"role": "assistant", "content": null, "function_call": {"name": "f", "arguments": ""}},
            {"role": "function", "name": "f", "content": {"ok": true}},
            {"role": "tool", "tool_call_id": "c1", "content": [1, 2]},
        ],
        "functions": [],
    }));
    assert_eq!(script(&example)[2..], ["Tool: {\"ok\": true}", "Tool: [1, 2]"], "as json.dumps has it");
    let values = |turn: usize| example.turns[turn].written.value.clone();
    assert_eq!([values(1), values(2), values(3)], [None, Some(json!({"ok": true})), Some(json!([1, 2]))]);
    assert_eq!(example.turns[1].tool_calls.as_ref().unwrap()[0]["function"]["arguments"], json!({}));
    assert_eq!((example.turns[2].name.as_deref(), example.turns[3].tool_call_id.as_deref()), (Some("f"), Some("c1")));
    assert_eq!(example.tools, None);
}

#[test]
fn what_templates_may_tell_apart_is_kept() {
    let call = r#"{"index":0,"id":"c","type":"function","function":{"name":"f","arguments":"{\"a\":1}"}}"#;
    let call: Value = serde_json::from_str(call).unwrap();
    let example = example(json!({"messages": [
        {"role": "developer", "content": [{"type": "text", "text": "Be "}, {"type": "text", "text": "brief."}]},
        {"role": "User", "content": "a", "channel": "x", "weights": null},
        {"role": "assistant", "content": null, "tool_calls": [call], "tool_plan": "I ask.", "loss": false},
        {"role": "tool", "tool_call_id": "c", "content": null},
        {"role": "assistant", "content": null, "refusal": "No."},
        {"role": "assistant", "content": null},
    ]}));
    assert_eq!(script(&example), ["System: Be brief.", "User: a", "Assistant: ", "Tool: ", "Assistant: No.", "Assistant: "]);
    let written = |turn: usize| &example.turns[turn].written;
    let roles: Vec<Option<&str>> = example.turns.iter().map(|turn| turn.written.role.as_deref()).collect();
    assert_eq!(roles, [Some("developer"), Some("User"), None, None, None, None]);
    assert_eq!(written(0).parts, [json!({"type": "text", "text": "Be "}), json!({"type": "text", "text": "brief."})]);
    assert_eq!(json!(written(1).others), json!({"channel": "x"}));
    assert_eq!(json!(written(2).others), json!({"tool_plan": "I ask."}), "what switches the loss is not for templates");
    let without: Vec<bool> = example.turns.iter().map(|turn| turn.written.without_content).collect();
    assert_eq!(without, [false, false, true, true, false, true]);
    // Letter by letter, in the order of its keys.
    assert_eq!(example.turns[2].tool_calls.as_ref().unwrap()[0].to_string(), call.to_string());
}

#[test]
fn integers_keep_their_digits() {
    let row = |number: &str| {
        let row = format!(
            r#"{{"question": "?", "answer": {number}, "id": {number}, "tools": [{{"type": "function", "function": {{"name": "f", "x": {number}}}}}]}}"#
        );
        let options = ReadOptions { format: Some(Format::QuestionAnswer), ..ReadOptions::default() };
        read_bytes("rows.jsonl", row.as_bytes(), &options).unwrap().1.remove(0).example
    };
    for number in [
        "18446744073709551615",
        "18446744073709551616",
        "-170141183460469231731687303715884105728",
        "123456789012345678901234567890",
    ] {
        let example = row(number).unwrap();
        assert_eq!((example.turns[1].content.as_str(), example.id.as_deref()), (number, Some(number)));
    }
    let error = row(&"9".repeat(40)).unwrap_err().to_string();
    assert!(error.contains("more than 128 bits"), "{error}");
}

#[test]
fn typed_parts_reasoning_and_weights() {
    let example = example(json!({"messages": [
        {"role": "user", "content": [{"type": "text", "text": "a"}, {"type": "text", "value": "b"}, "c"], "loss_weight": 0.0},
        {"role": "assistant", "content": [{"type": "reasoning", "value": "hm"}, {"type": "text", "text": "d"}], "weight": 0.5},
        {"role": "assistant", "content": "e", "reasoning_content": "so", "train": false},
        {"role": "assistant", "content": "f", "train": true},
    ]}));
    assert_eq!(script(&example), ["User: abc", "Assistant: d", "Assistant: e", "Assistant: f"]);
    assert_eq!(example.turns.iter().map(|turn| turn.weight).collect::<Vec<_>>(), [0.0, 0.5, 0.0, 1.0]);
    assert_eq!((example.turns[1].reasoning.as_deref(), example.turns[2].reasoning.as_deref()), (Some("hm"), Some("so")));
}

#[test]
fn columns_become_turns() {
    let check = |row: Value, expected: &[&str]| assert_eq!(script(&example(row.clone())), expected, "{row}");
    check(json!({"instruction": "a", "input": "", "output": "c"}), &["User: a", "Assistant: c"]);
    check(json!({"instruction": "a", "input": "b", "response": "c"}), &["User: a\nb", "Assistant: c"]);
    check(
        json!({"instruction": "a", "input": null, "output": "c", "system": "s", "history": [["x", "y"]]}),
        &["System: s", "User: x", "Assistant: y", "User: a", "Assistant: c"],
    );
    check(json!({"prompt": "a", "completion": "b"}), &["User: a", "Assistant: b"]);
    check(json!({"system_prompt": "s", "question": "a", "response": "b"}), &["System: s", "User: a", "Assistant: b"]);
    let (user, assistant) = (json!({"role": "user", "content": "a"}), json!({"role": "assistant", "content": "b"}));
    check(json!({"prompt": [user], "completion": [assistant]}), &["User: a", "Assistant: b"]);
    check(json!({"prompt": "a", "chosen": [user, assistant], "rejected": []}), &["User: a", "Assistant: b"]);
    check(json!({"prompt": "a", "chosen": "b", "rejected": "c"}), &["User: a", "Assistant: b"]);
    check(json!({"text": "all"}), &["Text: all"]);
    check(json!({"messages": [user]}), &["User: a"]);
}

#[test]
fn oasst_messages_are_linked_in_any_order() {
    let row = |id: &str, parent: Value, role: &str| {
        json!({"message_id": id, "parent_id": parent, "role": role, "text": id}).to_string()
    };
    let rows = [
        row("b", json!("a"), "assistant"),
        row("a", json!(null), "prompter"),
        row("c", json!("a"), "assistant"),
        row("d", json!("c"), "prompter"),
        row("e", json!("lost"), "assistant"),
        row("f", json!("g"), "assistant"),
        row("g", json!("f"), "prompter"),
        row("a", json!(null), "prompter"),
    ];
    let (_, records) = read_bytes("trees.jsonl", rows.join("\n").as_bytes(), &ReadOptions::default()).unwrap();
    let show = |record: &Record| match &record.example {
        Ok(example) => format!("{}: {}", record.place.line, script(example).join(" > ")),
        Err(error) => format!("{}: {}", record.place.line, error.message()),
    };
    let expected = [
        "1: User: a > Assistant: b",
        "4: User: a > Assistant: c > User: d",
        "5: expected the message `lost`, the parent of `e`, found none with this id",
        "6: expected a root above the message `f`, found a cycle of parents",
        "7: expected a root above the message `g`, found a cycle of parents",
        "8: expected a new message id, found `a` of line 2 again",
    ];
    assert_eq!(records.iter().map(show).collect::<Vec<_>>(), expected);
}

#[test]
fn sources_ids_and_planted_spans() {
    let rows = concat!(
        r#"{"id": 7, "source": "exam", "prompt": "a", "completion": "né", "planted": [{"turn": 1, "begin": 1, "end": 3}]}"#,
        "\n",
        r#"{"prompt": "a", "completion": "b", "prompt": "twice"}"#,
    );
    let examples = examples("rows.jsonl", rows.as_bytes());
    assert_eq!((examples[0].id.as_deref(), examples[0].source.as_str()), (Some("7"), "exam"));
    let span = examples[0].planted[0];
    assert_eq!(&examples[0].turns[1].content[span.begin as usize..span.end as usize], "é");
    assert_eq!((examples[1].id.as_deref(), examples[1].source.as_str()), (None, "rows.jsonl"));
    assert_eq!(examples[1].turns[0].content, "twice", "the last of equal keys wins, as in Python");
}

#[test]
fn the_same_rows_from_every_container_and_packing() {
    let lines = "{\"prompt\": \"1,\u{2028}\\\"\", \"completion\": \"b\"}\r\n\n  \n{\"prompt\": \"c\", \"completion\": \"\"}";
    let array = "[{\"prompt\": \"1,\\u2028\\\"\", \"completion\": \"b\"},\n {\"prompt\": \"c\", \"completion\": \"\"}]";
    let objects = "{\n\"prompt\": \"1,\u{2028}\\\"\",\n\"completion\": \"b\"}\n{\n\"prompt\": \"c\", \"completion\": \"\"}\n";
    let csv = "prompt,completion,x\n\"1,\u{2028}\"\"\",b,\nc,,\n";
    let expected = [["User: 1,\u{2028}\"", "Assistant: b"], ["User: c", "Assistant: "]];
    for (name, bytes, container) in [
        ("a.jsonl", lines.as_bytes(), Container::JsonLines),
        ("a.json", lines.as_bytes(), Container::JsonLines),
        ("a", lines.as_bytes(), Container::JsonLines),
        ("a.json", array.as_bytes(), Container::JsonArray),
        ("a.jsonl", array.as_bytes(), Container::JsonArray),
        ("a.json", objects.as_bytes(), Container::JsonObjects),
        ("a.csv", csv.as_bytes(), Container::Csv),
        ("a.dat", csv.as_bytes(), Container::Csv),
        ("a.parquet", &pairs_as_parquet(), Container::Parquet),
    ] {
        let with_mark = [b"\xEF\xBB\xBF", bytes].concat();
        let half = bytes.len() / 2;
        let members = [gzip(&bytes[..half]), gzip(&bytes[half..])].concat();
        for (bytes, compression) in [
            (bytes.to_vec(), Compression::None),
            (if container == Container::Parquet { bytes.to_vec() } else { with_mark }, Compression::None),
            (members, Compression::Gzip),
            (zstd::encode_all(bytes, 1).unwrap(), Compression::Zstd),
        ] {
            let (dataset, records) = read_bytes(name, &bytes, &ReadOptions::default()).unwrap();
            let file = &dataset.files()[0];
            assert_eq!((file.container, file.compression), (container, compression), "{name}");
            assert_eq!((file.format, file.bytes), (Format::PromptCompletion, bytes.len() as u64));
            let found: Vec<_> = records.iter().map(|record| script(record.example.as_ref().unwrap())).collect();
            assert_eq!(found, expected, "{name} {compression:?}");
        }
    }
}

#[test]
fn the_separator_of_a_table_and_pythons_quotes_are_told() {
    for (name, bytes) in [
        ("a.tsv", "prompt\tcompletion\na, b; c\td\n"),
        ("a.csv", "prompt;completion\na, b; c;d\n"),
        ("a.csv", "prompt,completion\n\"a, b; c\",d\n"),
        ("a.csv", "\u{FEFF}prompt;completion\n\"a, b; c\";d\n"),
        ("a.jsonl", "{'prompt': 'a, b; c', 'completion': \"d\", 'note': None}\n"),
    ] {
        // Two separators in a cell without quotes are two cells.
        let bytes = bytes.replace("\na, b; c;d", "\n\"a, b; c\";d");
        let examples = examples(name, bytes.as_bytes());
        assert_eq!(script(&examples[0]), ["User: a, b; c", "Assistant: d"], "{name}: {bytes}");
    }
}

/// Made by tests/fixtures/arrow/make.py.
#[test]
fn arrow_data_are_read_packed_or_not() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arrow");
    for kind in ["stream", "file"] {
        for packing in ["plain", "lz4", "zstd"] {
            let path = folder.join(format!("{kind}-{packing}.arrow"));
            let dataset = open(&path, &ReadOptions::default()).unwrap();
            assert_eq!(dataset.files()[0].container, Container::Arrow);
            assert!(dataset.notes().iter().any(|note| note.contains("messages.at")), "{:?}", dataset.notes());
            let examples: Vec<Example> = dataset.records().map(|record| record.unwrap().example.unwrap()).collect();
            let found: Vec<_> =
                examples.iter().map(|example| (script(example), example.id.clone(), example.source.clone())).collect();
            let expected = |asked: &str, answered: &str, id: &str, source: &str| {
                (vec![format!("User: {asked}"), format!("Assistant: {answered}")], Some(id.to_owned()), source.to_owned())
            };
            let rows = [expected("Größe?", "7.", "1", "a"), expected(&"Why? ".repeat(40), "So.", "-2", "b")];
            assert_eq!(found, rows, "{}", path.display());
        }
    }
}

fn pairs_as_parquet() -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut frame = polars::df!("prompt" => ["1,\u{2028}\"", "c"], "completion" => ["b", ""], "x" => [Some(1), None]).unwrap();
    polars::prelude::ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    bytes
}

/// Messages as the hub keeps them: a list of structs in which absent fields are null.
#[test]
fn parquet_rows_may_hold_lists_of_structs() {
    use polars::prelude::{Column, DataFrame, IntoSeries, NamedFrom, ParquetWriter, Series, StructChunked};
    let turns = |role: &[&str], content: &[Option<&str>], weight: &[Option<f64>]| {
        let fields =
            [Series::new("role".into(), role), Series::new("content".into(), content), Series::new("weight".into(), weight)];
        StructChunked::from_series("".into(), role.len(), fields.iter()).unwrap().into_series()
    };
    let rows = [
        turns(&["user", "assistant"], &[Some("a"), Some("b")], &[None, Some(0.5)]),
        turns(&["assistant"], &[None], &[None]),
        turns(&["assistant"], &[Some("c")], &[None]),
    ];
    let mut frame = DataFrame::new_infer_height(vec![Column::from(Series::new("messages".into(), rows))]).unwrap();
    let mut bytes = Vec::new();
    ParquetWriter::new(&mut bytes).with_row_group_size(Some(2)).finish(&mut frame).unwrap();
    check_bad_row("a.parquet", &bytes, "`messages[0].content`: expected text, found `role`");
    let (_, records) = read_bytes("a.parquet", &bytes, &ReadOptions::default()).unwrap();
    let example = records[0].example.as_ref().unwrap();
    assert_eq!(script(example), ["User: a", "Assistant: b"]);
    assert_eq!(example.turns.iter().map(|turn| turn.weight).collect::<Vec<_>>(), [1.0, 0.5]);
    assert_eq!(records[2].place.line, 3);
}

#[test]
fn plain_text_is_one_record_a_line() {
    let (dataset, records) = read_bytes("a.txt", b"[first]\n\n second\r\n", &ReadOptions::default()).unwrap();
    assert_eq!((dataset.files()[0].container, dataset.files()[0].format), (Container::Text, Format::Text));
    let turn = |record: &Record| (record.place.line, record.example.as_ref().unwrap().turns[0].clone());
    let turns: Vec<_> = records.iter().map(turn).map(|(line, turn)| (line, turn.role, turn.content)).collect();
    assert_eq!(turns, [(1, Role::Text, "[first]".to_owned()), (3, Role::Text, " second".to_owned())]);
}

#[test]
fn several_files_and_patterns_count_rows_on() {
    let folder = tempfile::tempdir().unwrap();
    fs::write(folder.path().join("b.jsonl"), "{\"text\": \"3\"}\n").unwrap();
    fs::write(folder.path().join("a.jsonl"), "{\"text\": \"1\"}\n{\"text\": []}\n").unwrap();
    let pattern = format!("{}/*.jsonl", folder.path().display());
    let dataset = Dataset::open(&[pattern], &ReadOptions::default()).unwrap();
    let rows: Vec<_> =
        dataset.records().map(|record| record.unwrap()).map(|r| (r.row, r.place.line, r.example.is_ok())).collect();
    assert_eq!(rows, [(0, 1, true), (1, 2, false), (2, 1, true)]);
    // From: printf '{"text": "3"}\n' | sha256sum
    assert_eq!(dataset.files()[1].sha256, "697dbd16700acb61c389b3bf62d1965dd3ade195a42257bf12e1112f96016406");
    let file = serde_json::to_value(&dataset.files()[1]).unwrap();
    assert_eq!(
        (&file["container"], &file["compression"], &file["format"]),
        (&json!("json-lines"), &json!("none"), &json!("text"))
    );
}

#[test]
fn a_row_of_ten_megabytes_is_a_row() {
    let rows = format!("{{\"text\": \"{}\"}}\n{{\"text\": \"b\"}}", "a".repeat(10 << 20));
    let lengths: Vec<_> = examples("a.jsonl", rows.as_bytes()).iter().map(|example| example.turns[0].content.len()).collect();
    assert_eq!(lengths, [10 << 20, 1]);
}

#[test]
fn what_is_switched_off_is_not_learnt() {
    let weights = |row: Value| {
        let example = example(row);
        let answers = example.turns.iter().filter(|turn| turn.role == Role::Assistant);
        (answers.map(|turn| turn.weight).collect::<Vec<_>>(), example.unused)
    };
    let ask = json!({"role": "user", "content": "?"});
    let turn = |key: &str, value: Value| json!({"role": "assistant", "content": "bad", key: value});
    let good = json!({"role": "assistant", "content": "good"});
    for (key, off) in [
        ("weight", json!(0)),
        ("loss_weight", json!(0.0)),
        ("loss_scale", json!(0)),
        ("train", json!(false)),
        ("training", json!(false)),
        ("loss", json!(false)),
        ("mask", json!(true)),
        ("masked", json!(true)),
    ] {
        let row = json!({"messages": [ask, turn(key, off.clone()), ask, good]});
        assert_eq!(weights(row), (vec![0.0, 1.0], vec![]), "{key}");
        // The same on a part, where there is another part beside it.
        let parts = json!([{"type": "text", "text": "bad ", key: off}, {"type": "text", "text": "good"}]);
        let example = example(json!({"messages": [ask, {"role": "assistant", "content": parts}]}));
        let part = example.turns[1].parts[0];
        assert_eq!((part.begin, part.end, part.weight, example.unused.len()), (0, 4, 0.0, 0), "{key}");
    }
    assert_eq!(weights(json!({"messages": [ask, good, ask, good], "loss_mask": [0, 1]})).0, [0.0, 1.0]);
    assert_eq!(weights(json!({"prompt": "a", "completion": "b", "label": false})).0, [0.0]);
    assert_eq!(weights(json!({"messages": [ask, good], "kto_tag": true})), (vec![1.0], vec![]));
    let switches = example(json!({"messages": [ask, good], "chat_template_kwargs": {"think": false}})).template_switches;
    assert_eq!(switches, Some(json!({"think": false})));

    // Whatever else looks like a switch is named.
    let row = json!({
        "messages": [{"role": "user", "content": "?", "train": true}, turn("lossless", json!(1))],
        "label": "spam",
        "training_split": "a",
        "other": 1,
    });
    let named = ["messages[0].train", "messages[1].lossless", "label", "training_split"];
    assert_eq!(weights(row), (vec![1.0], named.map(str::to_owned).to_vec()));
}

#[test]
fn of_a_preference_the_chosen_answer_is_learnt() {
    let check = |row: Value, expected: &[(&str, f32)]| {
        let example = example(row.clone());
        let answers = example.turns.iter().filter(|turn| turn.role == Role::Assistant);
        let found: Vec<(&str, f32)> = answers.map(|turn| (turn.content.as_str(), turn.weight)).collect();
        assert_eq!(found, expected, "{row}");
    };
    // Earlier answers of other rows are supervised, whatever the names of the columns.
    for row in [
        json!({"query": "c", "response": "d", "history": [["a", "b"]]}),
        json!({"instruction": "c", "output": "d", "history": [["a", "b"]]}),
    ] {
        check(row, &[("b", 1.0), ("d", 1.0)]);
    }
    check(json!({"query": "c", "chosen": "d", "rejected": "e", "history": [["a", "b"]]}), &[("b", 0.0), ("d", 1.0)]);
    let from = |name: &str, text: &str| json!({"from": name, "value": text});
    let history = [from("human", "a"), from("gpt", "b"), from("human", "c")];
    check(json!({"conversations": history, "chosen": from("gpt", "d"), "rejected": from("gpt", "e")}), &[("b", 0.0), ("d", 1.0)]);
    check(json!({"instruction": "a", "input": "", "chosen": "d", "rejected": "e"}), &[("d", 1.0)]);
    check(json!({"question": "a", "chosen": "d", "rejected": "e"}), &[("d", 1.0)]);
    check(json!({"prompt": history, "chosen": [from("gpt", "d")], "rejected": [from("gpt", "e")]}), &[("b", 0.0), ("d", 1.0)]);
    let whole = |last: &str| json!([history[0], history[1], history[2], from("gpt", last)]);
    check(json!({"chosen": whole("d"), "rejected": whole("e")}), &[("b", 0.0), ("d", 1.0)]);
    check(
        json!({"chosen": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: d", "rejected": "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant: e"}),
        &[("b", 0.0), ("d", 1.0)],
    );
}

/// The messages of gpt-oss's channels are those of chat completions.
#[test]
fn channels_of_harmony_become_reasoning_calls_and_answers() {
    let said = |channel: &str, content: &str| json!({"role": "assistant", "channel": channel, "content": content});
    let call = json!({"role": "assistant", "channel": "commentary", "recipient": "functions.add", "content_type": "<|constrain|>json", "content": "{\"x\": 2}"});
    let result =
        json!({"role": "tool", "name": "functions.add", "channel": "commentary", "recipient": "assistant", "content": "4"});
    let user = json!({"role": "user", "content": "Two and two?"});
    let row =
        json!({"messages": [user, said("analysis", "Add "), said("analysis", "them."), call, result, said("final", "Four.")]});
    let plain = json!({"messages": [
        user,
        {"role": "assistant", "content": null, "reasoning_content": "Add them.", "tool_calls": [
            {"type": "function", "function": {"name": "add", "arguments": "{\"x\": 2}"}},
        ]},
        {"role": "tool", "name": "add", "content": "4"},
        {"role": "assistant", "content": "Four."},
    ]});
    assert_eq!(example(row).turns, example(plain).turns);
    let refused = |messages: Value, expected: &str| {
        let row = json!({"messages": messages}).to_string();
        let (_, records) = read_bytes("row.jsonl", row.as_bytes(), &ReadOptions::default()).unwrap();
        let error = records[0].example.as_ref().unwrap_err().to_string();
        assert!(error.contains(expected), "{error}");
    };
    refused(json!([user, said("analysis", "Add.")]), "expected an assistant's message after the one in the channel `analysis`");
    refused(json!([user, said("commentary", "First I add.")]), "`messages[1]`: expected an analysis, a call");
    // The format ignores the channels of other programs.
    assert_eq!(example(json!({"messages": [user, said("general", "Four.")]})).turns[1].content, "Four.");
}

#[test]
fn thoughts_are_reasoning_wherever_they_stand() {
    let gemini = json!({"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "hm", "thought": true}, {"text": "b"}]}]});
    let details = json!([{"type": "reasoning.text", "text": "h"}, {"type": "reasoning.summary", "summary": "m"}, {"type": "reasoning.encrypted", "data": "x"}]);
    let router = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_details": details}]});
    for row in [gemini, router] {
        let answer = &example(row).turns[1];
        assert_eq!((answer.content.as_str(), answer.reasoning.as_deref()), ("b", Some("hm")));
    }
}

#[test]
fn columns_whose_text_is_in_no_turn_are_named() {
    let check = |row: Value, expected: &[&str]| assert_eq!(example(row.clone()).unread, expected, "{row}");
    check(json!({"context": "Oslo is the capital.", "question": "What is it?", "answer": "Oslo"}), &["context"]);
    check(json!({"question": "2+2?", "choices": ["3", "4"], "answer": 1}), &["choices"]);
    check(json!({"prompt": "To German.", "input": "Good morning.", "completion": "Guten Morgen."}), &["input"]);
    check(
        json!({"instruction": "Say it.", "context": "Oslo is it.", "response": "b c", "category": "open_qa", "url": "http://a/b"}),
        &[],
    );
    // One-word notes, dates and numbers do not count, and neither do values under other names.
    let row = json!({"prompt": "\n\nHuman: a b\n\nAssistant:", "chosen": " c d", "rejected": " e f", "at": "2024-01-01 10:00", "n": 3, "system": "Be brief."});
    check(row, &[]);
    check(
        json!({"question": "Which is it?", "answer": "the first", "tags": ["a", "b"], "options": ["the first", "the second"]}),
        &["options"],
    );
    // Of conversations, too; but not what holds them all, nor what they hold.
    let messages = json!([{"role": "user", "content": "a b"}, {"role": "assistant", "content": "b c"}]);
    let others =
        json!({"note": "two words", "prompt": "a b", "text": "<user>a b<assistant>b c", "rejected": "x y", "kind": "word"});
    for (list, messages) in
        [("messages", messages), ("conversations", json!([{"from": "human", "value": "a b"}, {"from": "gpt", "value": "b c"}]))]
    {
        let mut row = others.clone();
        row[list] = messages;
        check(row, &["note"]);
    }
    check(json!({"id": "1", "data": ["a a", "b b"]}), &[]);
}

/// A row that is read by way of `--map`.
fn mapped(row: &Value, rules: &[&str]) -> Result<Example, Error> {
    let rules: Vec<String> = rules.iter().map(|rule| (*rule).to_owned()).collect();
    let options = ReadOptions { mapping: FieldMap::parse(&rules)?, ..ReadOptions::default() };
    let (_, mut records) = read_bytes("rows.jsonl", row.to_string().as_bytes(), &options)?;
    records.remove(0).example
}

#[test]
fn a_mapped_question_or_answer_takes_the_place_of_the_rows_own() {
    let check = |row: Value, rules: &[&str], expected: &[&str]| {
        assert_eq!(script(&mapped(&row, rules).unwrap()), expected, "{row} by {rules:?}");
    };
    let asked = json!({"question": "q", "answer": "a", "context": "c"});
    check(asked.clone(), &["prompt={context} {question}"], &["User: c q", "Assistant: a"]);
    check(asked.clone(), &["question={context} {question}"], &["User: c q", "Assistant: a"]);
    check(asked.clone(), &["query={context}"], &["User: c", "Assistant: a"]);
    check(asked.clone(), &["completion={answer}!"], &["User: q", "Assistant: a!"]);
    check(asked.clone(), &["system=context"], &["System: c", "User: q", "Assistant: a"]);
    check(json!({"question": "q", "answer": "a", "text": "t"}), &["prompt=text"], &["User: t", "Assistant: a"]);
    let alpaca = json!({"instruction": "q", "input": "i", "output": "a", "context": "c"});
    check(alpaca.clone(), &["prompt={context} {instruction}"], &["User: c q", "Assistant: a"]);
    check(alpaca.clone(), &["instruction={context} {instruction}"], &["User: c q\ni", "Assistant: a"]);
    check(alpaca.clone(), &["input=context"], &["User: q\nc", "Assistant: a"]);
    check(alpaca.clone(), &["answer=context"], &["User: q\ni", "Assistant: c"]);
    let pair = json!({"prompt": "q", "completion": "a", "context": "c"});
    check(pair.clone(), &["question=context"], &["User: c", "Assistant: a"]);
    check(pair, &["output=context"], &["User: q", "Assistant: c"]);
    let preference = json!({"prompt": "q", "chosen": "a", "rejected": "b", "context": "c"});
    check(preference.clone(), &["question=context"], &["User: c", "Assistant: a"]);
    check(preference.clone(), &["completion=context"], &["User: q", "Assistant: c"]);
    check(preference, &["chosen=context", "rejected=chosen"], &["User: q", "Assistant: c"]);
    let chat = json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "system_prompt": "s", "context": "c",
        "turns": [{"from": "human", "value": "x"}, {"from": "gpt", "value": "y"}]});
    check(chat.clone(), &["system=context"], &["System: c", "User: q", "Assistant: a"]);
    check(chat, &["messages=turns"], &["System: s", "User: x", "Assistant: y"]);
    // A field mapped to nothing is not read from another column.
    let nothing = json!({"question": "q", "answer": "a", "context": null});
    assert!(mapped(&nothing, &["question=context"]).unwrap_err().to_string().contains("`question`"));
}

#[test]
fn a_mapped_field_that_the_row_is_not_read_by_is_refused_by_name() {
    let turns = json!([{"role": "user", "content": "q"}, {"role": "assistant", "content": "a"}]);
    let chat = json!({"messages": turns, "context": "c", "label": true});
    for (row, rule, format) in [
        (chat.clone(), "prompt=context", "messages"),
        (chat.clone(), "question=context", "messages"),
        (chat.clone(), "input=context", "messages"),
        (
            json!({"conversations": [{"from": "human", "value": "q"}, {"from": "gpt", "value": "a"}], "c": "c"}),
            "prompt=c",
            "sharegpt",
        ),
        (json!({"question": "q", "answer": "a", "c": "c"}), "instruction=c", "question-answer"),
        (json!({"question": "q", "answer": "a", "c": "c"}), "input=c", "question-answer"),
        (json!({"instruction": "q", "input": "", "output": "a", "c": "c"}), "context=c", "alpaca"),
        (json!({"prompt": "q", "completion": "a", "c": "c"}), "input=c", "prompt-completion"),
        (json!({"prompt": "q", "completion": turns, "c": "c"}), "prompt=c", "prompt-completion"),
        (json!({"prompt": "q", "chosen": turns, "rejected": turns, "c": "c"}), "prompt=c", "prompt-completion"),
        (json!({"prompt": "q", "completion": "a", "c": "c"}), "rejected=c", "prompt-completion"),
        (json!({"text": "t", "c": "c"}), "system=c", "text"),
        (json!({"message_id": "1", "parent_id": null, "role": "prompter", "text": "t", "c": "c"}), "system=c", "oasst"),
        (json!({"instruction": "q", "instances": [{"input": "", "output": "a"}], "c": "c"}), "system=c", "self-instruct"),
    ] {
        let error = mapped(&row, &[rule]).unwrap_err();
        let field = rule.split_once('=').unwrap().0;
        assert!(
            error.to_string().contains(&format!("found `{field}`: rows in the format {format} ")),
            "{row} by {rule}: {error}"
        );
        assert_eq!(error.exit_code(), 2, "{row} by {rule}");
    }
    let error = mapped(&chat, &["prompt=context"]).unwrap_err().to_string();
    assert!(error.contains("Map one of `messages`, `system`, `tools`, ") && !error.contains("`completion`"), "{error}");
    for rule in ["system=context", "id=context", "source=context", "label=label"] {
        mapped(&chat, &[rule]).unwrap();
    }
    let error = mapped(&chat, &["system=context", "system=label"]).unwrap_err().to_string();
    assert!(error.contains("one --map for `system`"), "{error}");
    // Lines of plain text are rows of a text, and so is what a later row is not read by.
    let options = ReadOptions { mapping: FieldMap::parse(&["prompt=text".to_owned()]).unwrap(), ..ReadOptions::default() };
    assert!(
        read_bytes("rows.txt", b"a\nb\n", &options).unwrap_err().to_string().contains("found `prompt`: rows in the format text ")
    );
    let rows = format!(
        "{}\n{}\n",
        json!({"prompt": "q", "completion": "a", "c": "c"}),
        json!({"prompt": "q", "completion": turns, "c": "c"})
    );
    let options = ReadOptions { mapping: FieldMap::parse(&["prompt=c".to_owned()]).unwrap(), ..ReadOptions::default() };
    let (_, records) = read_bytes("rows.jsonl", rows.as_bytes(), &options).unwrap();
    assert!(records[0].example.is_ok() && records[1].example.as_ref().unwrap_err().to_string().contains("found `prompt`"));
}

/// The audit's suggestion for an unread column works on every kind of row.
#[test]
fn the_way_to_read_a_column_that_the_audit_names_works() {
    let turns = json!([{"role": "user", "content": "what is it?"}, {"role": "assistant", "content": "it is Oslo"}]);
    let whole = json!([{"role": "system", "content": "be brief"}, {"role": "user", "content": "x y"}, {"role": "assistant", "content": "a b"}]);
    for (row, rules, expected) in [
        (json!({"question": "what?", "answer": "a b"}), &[][..], Some(r"question={context}\n\n{question}")),
        (json!({"question": "what?", "answer": "a b"}), &["prompt=question"], Some(r"prompt={context}\n\n{question}")),
        (
            json!({"question": "what?", "answer": "a b"}),
            &[r"question=\{{question}\}"],
            Some(r"question={context}\n\n\{{question}\}"),
        ),
        (json!({"instruction": "do", "input": "it now", "output": "a b"}), &[], Some(r"instruction={context}\n\n{instruction}")),
        (json!({"prompt": "what?", "completion": "a b"}), &[], Some(r"prompt={context}\n\n{prompt}")),
        (json!({"inputs": "what?", "targets": "a b"}), &[], Some(r"prompt={context}\n\n{inputs}")),
        (json!({"prompt": "what?", "chosen": "a b", "rejected": "c d"}), &[], Some(r"prompt={context}\n\n{prompt}")),
        (json!({"prompt": [turns[0].clone()], "completion": "a b"}), &[], Some("system={context}")),
        (json!({"prompt": "\n\nHuman: x y\n\nAssistant:", "completion": "a b"}), &[], Some("system={context}")),
        (json!({"prompt": "what?", "completion": turns}), &[], Some("system={context}")),
        (json!({"messages": turns}), &[], Some("system={context}")),
        (json!({"messages": turns, "system": "be brief"}), &[], Some(r"system={system}\n\n{context}")),
        (json!({"messages": turns, "system_prompt": "be brief"}), &[], Some(r"system_prompt={system_prompt}\n\n{context}")),
        (json!({"messages": whole}), &[], None),
    ] {
        for context in [json!("Oslo is the \"capital\""), json!(["the \"first\"", "the séçond"])] {
            let mut row = row.clone();
            row["context"] = context;
            let example = mapped(&row, rules).unwrap();
            assert!(example.unread.contains(&"context".to_owned()), "{row}: {:?}", example.unread);
            assert_eq!(example.unread_map.as_deref(), expected, "{row}");
            let Some(rule) = expected else { continue };
            let read = mapped(&row, &[rule]).unwrap();
            assert!(!read.unread.contains(&"context".to_owned()), "{row} by {rule}: {:?}", read.unread);
            assert!(script(&read).iter().any(|turn| turn.contains("Oslo is") || turn.contains("first")), "{row} by {rule}");
            assert_eq!(read.turns.last(), example.turns.last(), "{row} by {rule}");
        }
    }
}

#[test]
fn a_flag_called_chosen_makes_no_preference() {
    let turns = ["User: a", "Assistant: b"];
    for flag in [json!(true), json!(1), json!(null)] {
        let messages = json!([{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]);
        assert_eq!(script(&example(json!({"messages": messages, "chosen": flag}))), turns);
        assert_eq!(script(&example(json!({"prompt": "a", "response": "b", "chosen": flag}))), turns);
        assert_eq!(script(&example(json!({"instruction": "a", "output": "b", "chosen": flag}))), turns);
    }
}

/// Dahoas/full-hh-rlhf and its kin: the prompt is a transcript, and ends where the answer is to stand.
#[test]
fn an_answer_is_the_end_of_the_transcript_that_is_its_prompt() {
    let check = |row: Value, expected: &[&str], n_given: usize| {
        let example = example(row.clone());
        assert_eq!(script(&example), expected, "{row}");
        let answer = example.turns.last().unwrap();
        let given: Vec<_> = answer.parts.iter().map(|part| (part.begin, part.end, part.weight)).collect();
        assert_eq!(given, if n_given > 0 { vec![(0, n_given, 0.0)] } else { vec![] }, "{row}");
        assert!(
            answer.weight == 1.0
                && example.turns[..example.turns.len() - 1].iter().all(|turn| turn.role != Role::Assistant || turn.weight == 0.0)
        );
    };
    let prompt = "\n\nHuman: a\n\nAssistant: b\n\nHuman: c\n\nAssistant:";
    let turns = ["User: a", "Assistant: b", "User: c", "Assistant: d e"];
    check(json!({"prompt": prompt, "chosen": " d e", "rejected": " f"}), &turns, 0);
    check(json!({"prompt": format!("{prompt} "), "completion": "d e\n"}), &turns, 0);
    check(json!({"prompt": prompt, "completion": [{"role": "assistant", "content": " d e"}]}), &turns, 0);
    // The speaker stands with the answer.
    check(json!({"prompt": prompt.strip_suffix("\n\nAssistant:"), "response": "\n\nAssistant: d e"}), &turns, 0);
    // The answer begins in the prompt; that part is given, not supervised.
    check(json!({"prompt": format!("{prompt} d"), "chosen": " e", "rejected": " f"}), &turns, 1);
    // A text that is no transcript keeps its white space and its words.
    check(json!({"prompt": "Assistant:", "completion": " d"}), &["User: Assistant:", "Assistant:  d"], 0);
}

#[test]
fn other_peoples_shapes_become_turns() {
    let check = |row: Value, expected: &[&str]| assert_eq!(script(&example(row.clone())), expected, "{row}");
    let plain = ["User: a", "Assistant: b"];
    check(json!({"query": "a", "response": "b"}), &plain);
    check(
        json!({"query": "a", "response": "b", "history": [["x", "y"]]}),
        &["User: x", "Assistant: y", "User: a", "Assistant: b"],
    );
    let messages = json!([{"role": "user", "content": "x"}, {"role": "assistant", "content": "y"}]);
    check(
        json!({"instruction": "a", "output": "b", "history": messages}),
        &["User: x", "Assistant: y", "User: a", "Assistant: b"],
    );
    check(json!({"input": "a", "output": "b"}), &plain);
    check(json!({"inputs": "a", "targets": "b"}), &plain);
    check(json!({"id": "1", "data": ["a", "b", "c", "d"]}), &["User: a", "Assistant: b", "User: c", "Assistant: d"]);
    check(json!({"conversation": [{"human": "a", "assistant": "b"}]}), &plain);
    check(json!({"conversations": [{"from": "Human", "value": "a"}, {"from": "ASSISTANT", "value": "b"}]}), &plain);
    check(json!({"conversations": [{"role": "user", "value": "a"}, {"role": "bot", "value": "b"}]}), &plain);
    check(
        json!({"messages": [{"role": "user", "content": [{"text": "a"}]}, {"role": "assistant", "content": [{"text": "b"}]}]}),
        &plain,
    );
    check(json!({"contents": [{"role": "user", "parts": [{"text": "a"}]}, {"role": "model", "parts": [{"text": "b"}]}]}), &plain);
    check(json!({"messages": {"role": ["user", "assistant"], "content": ["a", "b"]}}), &plain);
    check(json!({"messages": {"role": ["user", "assistant"], "content": ["a", "b"], "weight": null}}), &plain);
    check(json!({"conversations": {"from": ["human", "gpt"], "value": ["a", "b"]}}), &plain);
    check(json!({"prompt": "What is 2 + 3?", "completion": 5}), &["User: What is 2 + 3?", "Assistant: 5"]);
    check(json!({"instruction": "Is it?", "output": true}), &["User: Is it?", "Assistant: True"]);
    check(
        json!({"messages": "[{'role': 'user', 'content': 'a'}, {'role': 'assistant', 'content': \"b's\"}]"}),
        &["User: a", "Assistant: b's"],
    );
    let null_contents = json!([{"role": "system", "content": null}, {"role": "user", "content": "a"}, {"role": "tool", "content": null}, {"role": "assistant", "content": "b"}]);
    check(json!({"messages": null_contents}), &["System: ", "User: a", "Tool: ", "Assistant: b"]);

    // Anthropic's calls and results.
    let parts = json!([
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": [{"type": "thinking", "thinking": "hm"}, {"type": "text", "text": "b"}, {"type": "tool_use", "id": "t1", "name": "f", "input": {"x": 1}}]},
        {"role": "user", "content": [{"type": "tool_result", "tool_use_id": "t1", "content": [{"type": "text", "text": "r"}]}]},
        {"role": "assistant", "content": "c"},
    ]);
    let row = json!({"messages": parts, "tools": [{"name": "f", "description": "d", "input_schema": {"type": "object"}}]});
    let example = example(row);
    assert_eq!(script(&example), ["User: a", "Assistant: b", "Tool: r", "Assistant: c"]);
    let call = json!([{"type": "function", "id": "t1", "function": {"name": "f", "arguments": {"x": 1}}}]);
    assert_eq!((example.turns[1].tool_calls.as_ref(), example.turns[1].reasoning.as_deref()), (Some(&call), Some("hm")));
    assert_eq!(example.turns[2].tool_call_id.as_deref(), Some("t1"));
    let schema = json!([{"type": "function", "function": {"name": "f", "description": "d", "parameters": {"type": "object"}}}]);
    assert_eq!(example.tools, Some(schema));
}

#[test]
fn no_tools_are_no_tools_and_text_arguments_stay_text() {
    let ask = json!([{"role": "user", "content": "?"}]);
    for none in [json!(null), json!(""), json!([]), json!("[]"), json!("null"), json!({}), json!("{}")] {
        assert_eq!(example(json!({"messages": ask, "tools": none})).tools, None, "{none}");
    }
    let one = json!({"type": "function", "function": {"name": "f"}});
    assert_eq!(example(json!({"messages": ask, "tools": one})).tools, Some(json!([one])));
    for arguments in [json!("{\"a\":1}"), json!("not JSON"), json!({"b": 1, "a": 1e3})] {
        let call =
            json!({"role": "assistant", "content": "", "tool_calls": [{"function": {"name": "f", "arguments": arguments}}]});
        let example = example(json!({"messages": [call]}));
        assert_eq!(example.turns[0].tool_calls.as_ref().unwrap()[0]["function"]["arguments"], arguments);
    }
}

#[test]
fn the_user_may_name_roles() {
    let rows = br#"{"messages": [{"role": "patient", "content": "a"}, {"role": "Doctor", "content": "b"}]}"#;
    let error = read_bytes("a.jsonl", rows, &ReadOptions::default()).unwrap().1.remove(0).example.unwrap_err().to_string();
    assert!(error.contains("found `patient`") && error.contains("--role"), "{error}");
    let roles = RoleMap::parse(&["patient=user".to_owned(), "Doctor=assistant".to_owned()]).unwrap();
    let options = ReadOptions { roles, ..ReadOptions::default() };
    let (_, records) = read_bytes("a.jsonl", rows, &options).unwrap();
    assert_eq!(script(records[0].example.as_ref().unwrap()), ["User: a", "Assistant: b"]);
}

/// python3 -c 'import lzma; print(lzma.compress(b"""{"prompt": "a", "completion": "b"}\n{"prompt": "c", "completion": "b"}\n"""))'
const XZ: &[u8] = b"\xfd\x37\x7a\x58\x5a\x00\x00\x04\xe6\xd6\xb4\x46\x02\x00\x21\x01\x16\x00\x00\x00\x74\x2f\xe5\xa3\xe0\x00\x45\x00\x29\x5d\x00\x3d\x88\x8a\x07\x63\xfc\x26\x26\x50\x57\x53\x29\x36\x5c\xa7\x3a\x36\xad\xea\x32\x02\x4b\x18\x4a\x1e\xfb\xdf\x04\xf3\xdd\x63\x20\x85\x85\x04\xda\xca\x39\x24\x04\x00\x00\x00\x00\x00\x07\x5a\x7a\x67\x4d\x48\x47\x78\x00\x01\x45\x46\xce\xea\x37\x32\x1f\xb6\xf3\x7d\x01\x00\x00\x00\x00\x04\x59\x5a";

#[test]
fn wrapped_and_packed_and_turned_tables_are_read() {
    let row = |text: &str| format!("{{\"prompt\": \"{text}\", \"completion\": \"b\"}}");
    let lines = format!("{}\n{}\n", row("a"), row("c"));
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, text) in [("x/README.md", "no data"), ("x/1.jsonl", row("a").as_str()), ("x/2.json", row("c").as_str())] {
        zip.start_file(name, zip::write::SimpleFileOptions::default()).unwrap();
        zip.write_all(text.as_bytes()).unwrap();
    }
    let zip = zip.finish().unwrap().into_inner();
    let mut bzip2 = bzip2::write::BzEncoder::new(Vec::new(), bzip2::Compression::fast());
    bzip2.write_all(lines.as_bytes()).unwrap();
    let turns = |text: &str| {
        format!("[{{\"role\": \"user\", \"content\": \"{text}\"}}, {{\"role\": \"assistant\", \"content\": \"b\"}}]")
    };
    for (name, bytes) in [
        ("a.json", format!("{{\"version\": 1, \"data\": [{}, {}], \"n\": [2]}}", row("a"), row("c")).into_bytes()),
        ("a.json", format!("{{\n \"train\": [\n{},\n{}\n]}}", row("a"), row("c")).into_bytes()),
        ("a.json", br#"{"prompt": {"0": "a", "1": "c"}, "completion": {"0": "b", "1": "b"}}"#.to_vec()),
        ("a.json", br#"{"prompt": ["a", "c"], "completion": ["b", "b"]}"#.to_vec()),
        ("a.jsonl", format!("{}\n{}\n", turns("a"), turns("c")).into_bytes()),
        ("a.json", format!("[{},\n{}]", turns("a"), turns("c")).into_bytes()),
        ("a.jsonl", format!("\u{FEFF}{}\n\u{FEFF}{}\n", row("a"), row("c")).into_bytes()),
        ("a.zip", zip),
        ("a.jsonl.bz2", bzip2.finish().unwrap()),
        ("a.jsonl.xz", XZ.to_vec()),
    ] {
        let (_, records) = read_bytes(name, &bytes, &ReadOptions::default()).unwrap();
        let found: Vec<_> = records.iter().map(|record| script(record.example.as_ref().unwrap())).collect();
        assert_eq!(found, [["User: a", "Assistant: b"], ["User: c", "Assistant: b"]], "{name}");
    }
}

#[test]
fn a_bomb_is_refused_and_a_folder_is_read() {
    let folder = tempfile::tempdir().unwrap();
    let bomb = zstd::encode_all(std::io::repeat(b' ').take(300 << 20), 1).unwrap();
    fs::write(folder.path().join("bomb.jsonl"), &bomb).unwrap();
    let error = open(&folder.path().join("bomb.jsonl"), &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("compression bomb"), "{error}");

    let folder = tempfile::tempdir().unwrap();
    for name in ["train-0.jsonl", "train-1.jsonl", "test.jsonl"] {
        fs::write(folder.path().join(name), "{\"prompt\": \"a\", \"completion\": \"b\"}").unwrap();
    }
    let dataset = open(folder.path(), &ReadOptions::default()).unwrap();
    assert_eq!(dataset.records().count(), 2);
    assert!(dataset.notes()[0].contains("test.jsonl"), "{:?}", dataset.notes());
}

/// A bad row is reported with reason and place, and the good row after it is still read.
#[test]
fn bad_chat_rows_say_where_and_why() {
    let good = r#"{"messages": [{"role": "assistant", "content": "good"}]}"#;
    let check = |row: &str, expected: &str| check_bad_row("a.jsonl", format!("{good}\n{row}\n{good}").as_bytes(), expected);
    check(r#"{"messages": [{"role": "us"#, "expected valid JSON, found the end (EOF while parsing a string; line 2, column 26)");
    check(r#"{"messages": }"#, "expected valid JSON, found `}` (expected value; line 2, column 14)");
    check("{\"messages\": \"\0\"}", "found a NUL byte at byte 14");
    check(r#"{"messages": "\ud800"}"#, "expected valid JSON");
    check(r#"{"x": NaN, "messages": }"#, "expected valid JSON: expected a value, found `}` at byte 23");
    check(r#"{"messages": NaN}"#, "`messages`: expected a value, found `NaN`");
    check(r#"{"messages": -Infinity}"#, "`messages`: expected a list, found `-Infinity`");
    check(r#"{"messages": [{"role": "user", "content": "\uFDD3 1"}]}"#, "the Unicode noncharacter U+FDD3");
    check(&format!("{}1{}", "[".repeat(9999), "]".repeat(9999)), "found more than 128 brackets inside each other");
    check("[1, 2]", "expected an object with named fields, found a list");
    check("\"text\"", "expected an object with named fields, found a string");
    check("{}", "missing field `messages`, found no keys");
    check(r#"{"prompt": "a", "completion": "b"}"#, "missing field `messages`, found `prompt`, `completion`");
    check(r#"{"messages": null}"#, "`messages`: expected a value, found null");
    check(r#"{"messages": 7}"#, "`messages`: expected a list, found a number");
    check(r#"{"messages": "hello"}"#, "`messages`: expected a list, found a string that does not contain one, `hello`");
    check(r#"{"messages": []}"#, "`messages`: expected at least one turn, found an empty list");

    let check_turn =
        |turn: &str, expected: &str| check(&format!(r#"{{"messages": [{{"role": "user", "content": "a"}}, {turn}]}}"#), expected);
    check_turn("3", "`messages[1]`: expected an object, found a number");
    check_turn(r#"{"content": "b"}"#, "missing field `messages[1].role`, found `content`");
    check_turn(r#"{"role": "narrator", "content": "b"}"#, "`messages[1].role`: expected a role (system, user");
    check_turn(r#"{"role": 1, "content": "b"}"#, "`messages[1].role`: expected a role (system, user");
    check_turn(r#"{"role": "assistant"}"#, "`messages[1].content`: expected text, found `role`");
    check_turn(r#"{"role": "assistant", "content": "a", "refusal": "b"}"#, "expected an answer or a refusal");
    check_turn(r#"{"role": "user", "content": {"a": 1}}"#, "expected a string or a list of parts, found an object");
    check_turn(
        r#"{"role": "user", "content": [{"type": "image_url"}]}"#,
        "`messages[1].content[0].type`: expected text, found `image_url`, but only text can be scored",
    );
    check_turn(r#"{"role": "user", "content": [{"type": "text"}]}"#, "missing field `messages[1].content[0].text`");
    check_turn(r#"{"role": "user", "content": "", "tool_calls": [{"name": "f", "arguments": {}}]}"#, "in assistant turns only");
    check_turn(r#"{"role": "function_call", "content": "f(1)"}"#, "expected a tool call as JSON, found text that is not JSON");
    check_turn(
        r#"{"role": "assistant", "content": "", "weight": -1}"#,
        "`messages[1].weight`: expected a finite number from 0, found -1",
    );
    check_turn(r#"{"role": "assistant", "content": "", "weight": 1e-50}"#, "expected 0 or a number from 1e-45, found 1e-50");
    check_turn(
        r#"{"role": "assistant", "content": "", "train": "yes"}"#,
        "expected a finite number of 0 or more, or a boolean, found a string",
    );
    check_turn(r#"{"role": "assistant", "content": "", "weight": Infinity}"#, "of 0 or more, or a boolean, found `Infinity`");
    check_turn(r#"{"role": "assistant", "content": Infinity}"#, "expected a string or a list of parts, found `Infinity`");
    check_turn(
        r#"{"role": "tool", "content": "b", "tool_call_id": [4]}"#,
        "`messages[1].tool_call_id`: expected a string, found a list",
    );

    let check_call = |call: &str, expected: &str| {
        check_turn(&format!(r#"{{"role": "assistant", "content": "", "tool_calls": {call}}}"#), expected)
    };
    check_call("\"f()\"", "`messages[1].tool_calls`: expected a list");
    check_call("[{}]", "missing field `messages[1].tool_calls[0].name`");
    check_call(r#"[{"name": "f", "arguments": [1]}]"#, "expected an object, found a list");

    let check_field = |field: &str, expected: &str| {
        check(&format!(r#"{{"messages": [{{"role": "user", "content": "né"}}], {field}}}"#), expected)
    };
    check_field(r#""tools": "add""#, "`tools`: expected a list of tool schemas, found a string");
    check_field(r#""tools": [1]"#, "`tools[0]`: expected an object, found a number");
    let systems = r#""system": "Be long.", "messages": [{"role": "system", "content": "Be brief."}]"#;
    check_field(systems, "contradict each other: the system prompts `Be long.` and `Be brief.`");
    check_field(r#""planted": 3"#, "`planted`: expected a list, found a number");
    check_field(r#""planted": [{"turn": 0, "begin": 0}]"#, "missing field `planted[0].end`");
    check_field(
        r#""planted": [{"turn": 1, "begin": 0, "end": 1}]"#,
        "`planted[0].turn`: expected less than 1, the number of turns, found 1",
    );
    check_field(
        r#""planted": [{"turn": 0, "begin": 0, "end": 9}]"#,
        "expected begin < end <= 3, the bytes of turn 0, found 0..9",
    );
    check_field(r#""planted": [{"turn": 0, "begin": 1, "end": 2}]"#, "expected bytes on character boundaries, found 1..2");
    check_field(
        r#""planted": [{"turn": 0, "begin": -1, "end": 2}]"#,
        "`planted[0].begin`: expected a whole number from 0, found -1",
    );
}

#[test]
fn bad_rows_of_other_formats_and_containers() {
    let good = r#"{"instruction": "a", "output": "b"}"#;
    let check = |row: &str, expected| check_bad_row("a.jsonl", format!("{good}\n{row}\n{good}").as_bytes(), expected);
    check(r#"{"instruction": "a"}"#, "missing field `output`, found `instruction`");
    check(r#"{"instruction": "a", "output": [42]}"#, "`output`: expected a string, found a list");
    check(r#"{"instruction": null, "output": "b"}"#, "`instruction`: expected a value, found null");
    check(r#"{"instruction": "a", "input": [], "output": "b"}"#, "`input`: expected a string, found a list");
    check(r#"{"instruction": "a", "output": "b", "history": [["x"]]}"#, "`history[0]`: expected two strings, found a string");
    let tasks = r#"{"instruction": "a", "instances": [{"output": "b"}]}"#;
    let check = |row: &str, expected| check_bad_row("a.jsonl", format!("{tasks}\n{row}\n{tasks}").as_bytes(), expected);
    check(r#"{"instruction": "a", "instances": []}"#, "`instances`: expected at least one instance, found an empty list");
    check(r#"{"instruction": "a", "instances": [{"input": "b"}]}"#, "missing field `instances[0].output`, found `input`");
    let invalid = [good.as_bytes(), b"\n{\"instruction\": \"\xFF\"}\n", good.as_bytes()].concat();
    check_bad_row("a.jsonl", &invalid, "expected UTF-8, found the byte 0xFF at byte 17");
    check_bad_row("a.json", format!("[{good},\n{{\"instruction\": }},\n{good}]").as_bytes(), "expected valid JSON");
    check_bad_row("a.csv", b"text,x\na,1\nb\nc,1\n", "expected 2 cells as in the header, found 1");
    check_bad_row("a.csv", b"text,x\na,1\n\xFF,1\nc,1\n", "column `text`: expected UTF-8");
    check_bad_row("a.txt", b"a\n\0\nb", "found a NUL byte");
}

/// What `pandas.read_csv` makes of them, and `datasets.load_dataset("csv")` with it.
#[test]
fn cells_of_csv_are_read_as_pandas_reads_them() {
    let rows = "prompt,completion,system\nq,None,s\nq,nan,s\nq,\"NULL\",s\nq,n/a,s\nNA,a,s\nq,a,<NA>\nq,nano,NA\nq,,none\n";
    let (_, records) = read_bytes("a.csv", rows.as_bytes(), &ReadOptions::default()).unwrap();
    for record in &records[..5] {
        let error = record.example.as_ref().unwrap_err();
        assert!(error.message().ends_with("expected a value, found null"), "{error}");
        assert!(error.to_string().contains("read as missing, as in pandas"), "{error}");
    }
    let read: Vec<_> = records[5..].iter().map(|record| script(record.example.as_ref().unwrap())).collect();
    let expected: [&[&str]; 3] =
        [&["User: q", "Assistant: a"], &["User: q", "Assistant: nano"], &["System: none", "User: q", "Assistant: "]];
    assert_eq!(read, expected);
    // In the rows of other files the same words are text.
    assert_eq!(script(&example(json!({"prompt": "NA", "completion": "None"}))), ["User: NA", "Assistant: None"]);
    // An index and an empty column have no names.
    assert_eq!(script(&examples("a.csv", b",prompt,,completion,\n0,q,x,a,\n")[0]), ["User: q", "Assistant: a"]);
}

#[test]
fn columns_of_one_name_are_refused() {
    // A table with two columns whose names are of one length; the second is given the name of the first.
    let mut frame = polars::df!("prompt" => ["q"], "another" => ["x"], "bnother" => ["a"]).unwrap();
    let mut bytes = Vec::new();
    polars::prelude::ParquetWriter::new(&mut bytes).finish(&mut frame).unwrap();
    for at in 0..bytes.len() - 7 {
        if &bytes[at..at + 7] == b"bnother" {
            bytes[at] = b'a';
        }
    }
    for (name, bytes) in [("a.parquet", &bytes[..]), ("a.csv", b"prompt,another,another\nq,x,a\n")] {
        let error = read_bytes(name, bytes, &ReadOptions::default()).unwrap_err().to_string();
        assert!(error.contains("expected different column names, found `another` twice"), "{error}");
        assert!(error.contains("Rename one"), "{error}");
    }
}

#[test]
fn columns_that_cannot_be_read_are_named() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/arrow/unread.arrow");
    let dataset = open(&path, &ReadOptions::default()).unwrap();
    assert!(dataset.notes().iter().any(|note| note.contains("`input`")), "{:?}", dataset.notes());
    let path = path.with_file_name("unread-answer.arrow");
    let error = open(&path, &ReadOptions::default()).unwrap_err().to_string();
    assert!(error.contains("the column `output` has a type that is not supported"), "{error}");
}

#[test]
fn gzip_members_may_have_zeros_behind_them() {
    let members = ["a", "c"].map(|text| gzip(format!("{{\"prompt\": \"{text}\", \"completion\": \"b\"}}\n").as_bytes()));
    let [first, second] = &members;
    for bytes in [
        [&first[..], second].concat(),
        [&first[..], &[0; 700], second, &[0; 300_000]].concat(),
        [&first[..], second, &[0]].concat(),
    ] {
        let examples = examples("a.jsonl.gz", &bytes);
        let found: Vec<_> = examples.iter().map(script).collect();
        assert_eq!(found, [["User: a", "Assistant: b"], ["User: c", "Assistant: b"]]);
    }
    let error = read_bytes("a.jsonl.gz", &[&first[..], b"\0\0more"].concat(), &ReadOptions::default()).unwrap_err();
    assert!(error.message().contains("cannot read further: the file is damaged"), "{error}");
}

fn zipped(members: &[(&str, &[u8])]) -> Vec<u8> {
    let mut zip = zip::ZipWriter::new(std::io::Cursor::new(Vec::new()));
    for (name, bytes) in members {
        match name.ends_with('/') {
            true => zip.add_directory(*name, zip::write::SimpleFileOptions::default()).unwrap(),
            false => zip.start_file(*name, zip::write::SimpleFileOptions::default()).unwrap(),
        }
        zip.write_all(bytes).unwrap();
    }
    zip.finish().unwrap().into_inner()
}

#[test]
fn of_an_archive_the_data_are_read() {
    let row = br#"{"prompt": "a", "completion": "b"}"#;
    let zip = zipped(&[
        ("d/", b""),
        ("d/rows.jsonl", row),
        ("__MACOSX/d/._rows.jsonl", b"\0\x05\x16\x07"),
        ("d/.rows.jsonl", b"of an editor"),
        (".git/rows.jsonl", b"of another time"),
    ]);
    assert_eq!(examples("a.zip", &zip).len(), 1);
}

/// Files of unsupported kinds: each is named, with a suggestion.
#[test]
fn archives_and_tables_of_other_programs_are_named() {
    let row = br#"{"prompt": "a", "completion": "b"}"#;
    let mut tar = vec![0; 1536];
    tar[..9].copy_from_slice(b"d/a.jsonl");
    tar[257..263].copy_from_slice(b"ustar\0");
    tar[512..512 + row.len()].copy_from_slice(row);
    let workbook = zipped(&[("[Content_Types].xml", b"<x/>"), ("xl/workbook.xml", b"<x/>")]);
    let cases: [(&str, Vec<u8>, &str, &str); 9] = [
        ("a.tar", tar.clone(), "found a tar archive", "tar -xf"),
        ("a.tar.gz", gzip(&tar), "found a tar archive", "tar -xf"),
        ("a.jsonl.gz", gzip(&gzip(row)), "compressed twice", "Unpack"),
        ("a.gz", gzip(&zipped(&[("a.jsonl", row)])), "compressed twice", "Unpack"),
        ("a.xlsx", workbook, "found an Excel workbook", "CSV UTF-8"),
        ("a.zip", zipped(&[]), "expected data files in the zip archive, found none", "Unpack it"),
        ("a.zip", zipped(&[("a.txt", b"text")]), "expected data files in the zip archive, found none", "Unpack it"),
        ("a.npy", b"\x93NUMPY\x01\0".to_vec(), "found a NumPy array", "Parquet"),
        ("a.pkl", b"\x80\x05\x95\0".to_vec(), "found a Python pickle", "Parquet"),
    ];
    for (name, bytes, found, cure) in cases {
        let error = read_bytes(name, &bytes, &ReadOptions::default()).unwrap_err();
        assert!(error.message().contains(found), "{name}, expected: {found}\nfound: {error}");
        assert!(error.known_cure().is_some_and(|known| known.contains(cure)), "{error}");
    }
}

/// As programs of the first Macs wrote them, and a spreadsheet still offers it.
#[test]
fn lines_that_end_in_carriage_returns_alone_are_named() {
    let row = r#"{"prompt": "a", "completion": "b"}"#;
    for (name, text) in [
        ("a.csv", "prompt,completion\ra,b\rc,d\r".to_owned()),
        ("lines.csv", "prompt,completion\ra,\"b\nc\"\rd,e\r".to_owned()),
        ("a.dat", "prompt,completion\ra,b".to_owned()),
        ("a.tsv", "prompt\tcompletion\ra\tb".to_owned()),
        ("a.txt", "one\rtwo\r".to_owned()),
        ("a.jsonl", format!("{row}\r{row}\r")),
    ] {
        let error = read_bytes(name, text.as_bytes(), &ReadOptions::default()).unwrap_err();
        assert!(error.message().contains("carriage return"), "{name}: {error}");
        assert!(error.known_cure().is_some_and(|cure| cure.contains("tr '\\r' '\\n'")), "{error}");
    }
    // Within JSON a carriage return is white space.
    for text in [format!("[\r{row},\r{row}\r]\r"), format!("{row}\r"), row.replace(": ", ":\r")] {
        assert!(!examples("a.json", text.as_bytes()).is_empty());
    }
}

#[test]
fn questions_alone_are_no_conversation() {
    // MT-Bench: both turns are the user's.
    let rows = [json!({"question_id": 81, "turns": ["Write a poem.", "Now shorter."]}), json!({"turns": ["a", "b", "c"]})];
    let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
    let (_, records) = read_bytes("question.jsonl", text.as_bytes(), &ReadOptions::default()).unwrap();
    for record in records {
        let error = record.example.unwrap_err();
        assert!(error.message().contains("`turns`: expected turns with a speaker"), "{error}");
        assert!(error.known_cure().is_some_and(|cure| cure.contains("`data`")), "{error}");
    }
    assert_eq!(script(&example(json!({"data": ["a", "b"]}))), ["User: a", "Assistant: b"]);
}

/// LLaMA-Factory joins the instruction and the input, where there are both, and takes the one that there is.
#[test]
fn rows_of_alpaca_may_lack_an_instruction() {
    let whole = json!({"instruction": "Say it in German.", "input": "cat", "output": "Katze"});
    let joined: &[&str] = &["User: Say it in German.\ncat", "Assistant: Katze"];
    let alone: &[&str] = &["User: cat", "Assistant: cat!"];
    for part in [
        json!({"input": "cat", "output": "cat!"}),
        json!({"instruction": null, "input": "cat", "output": "cat!"}),
        json!({"instruction": "", "input": "cat", "output": "cat!"}),
    ] {
        for (rows, expected) in [([&whole, &part], [joined, alone]), ([&part, &whole], [alone, joined])] {
            let text: String = rows.iter().map(|row| format!("{row}\n")).collect();
            let found: Vec<_> = examples("a.jsonl", text.as_bytes()).iter().map(script).collect();
            assert_eq!(found, expected, "{text}");
        }
    }
    let good = r#"{"instruction": "a", "output": "b"}"#;
    let check = |row: &str, expected| check_bad_row("a.jsonl", format!("{good}\n{row}\n{good}").as_bytes(), expected);
    check(r#"{"instruction": null, "context": "a", "output": "b"}"#, "`instruction`: expected a value, found null");
    check(r#"{"instruction": null, "input": "", "output": "b"}"#, "`instruction`: expected a value, found null");
    check(
        r#"{"instruction": "a", "output": "b", "history": [["x", null]]}"#,
        "`history[0]`: expected two strings, found a string and null",
    );
}

/// The second of three rows is bad; under `strict` it ends the reading.
fn check_bad_row(name: &str, bytes: &[u8], expected: &str) {
    let (_, records) = read_bytes(name, bytes, &ReadOptions::default()).unwrap();
    let is_good: Vec<_> = records.iter().map(|record| record.example.is_ok()).collect();
    assert_eq!(is_good, [true, false, true], "{expected}");
    let error = records[1].example.as_ref().unwrap_err();
    assert!(error.message().contains(expected), "expected: {expected}\nfound: {error}");
    let place = format!("{name}:{}: ", records[1].place.line);
    assert!(error.to_string().contains(&place), "expected the place {place} in: {error}");
    let strict = ReadOptions { strict: true, ..ReadOptions::default() };
    let error = read_bytes(name, bytes, &strict).unwrap_err();
    assert!(error.to_string().contains(&place) && error.message().contains(expected), "strict: {error}");
}

/// Files that cannot be read at all, or not to their end.
#[test]
fn bad_files_are_errors_that_name_the_file() {
    let rows: String = (0..50).map(|i| format!("{{\"text\": \"{}\"}}\n", i * 7919 % 10_007)).collect();
    let (packed, zstd) = (gzip(rows.as_bytes()), zstd::encode_all(rows.as_bytes(), 1).unwrap());
    let empty = "expected at least one record, found an empty file";
    let cases: [(&str, &[u8], &str); 22] = [
        ("a.jsonl", b"<!DOCTYPE html>", "found a page of HTML"),
        ("a.jsonl", b"", empty),
        ("a.jsonl", b"\n  \n\r\n", empty),
        ("a.jsonl", b"\xEF\xBB\xBF", empty),
        ("a.json", b"[]", empty),
        ("a.csv", b"prompt,completion\n", empty),
        ("a.jsonl", b"{\"a\": 1, \"b\": 2}", "cannot tell the format from the columns `a`, `b`"),
        ("a.jsonl", b"{\"text\": \"a", "expected valid JSON, found the end"),
        ("a.jsonl", b"\xFF\xFE{\0", "expected UTF-8, found UTF-16"),
        ("a.jsonl", b"\xFE\xFF\0{", "expected UTF-8, found UTF-16"),
        ("a.jsonl", b"\xFF\xFE\0\0{\0\0\0", "expected UTF-8, found UTF-32"),
        ("a.jsonl", b"\0\0\xFE\xFF\0\0\0{", "expected UTF-8, found UTF-32"),
        ("a.csv", b"text,text\na,b\n", "expected different column names, found `text` twice"),
        ("a.parquet", b"{\"text\": \"a\"}", "expected a Parquet file, which begins with `PAR1`"),
        ("a.parquet", b"PAR1 and then nothing", "cannot read the Parquet file: it is damaged"),
        ("a.bin", b"\x7FELF\0\0", "expected JSON Lines, a JSON array, CSV, Parquet or Arrow, found something else"),
        ("a.jsonl.gz", &packed[..packed.len() / 2], "cannot read further: the file is damaged or truncated"),
        ("a.jsonl.zst", &zstd[..zstd.len() / 2], "cannot read further: the file is damaged or truncated"),
        ("a.jsonl.gz", b"\x1F\x8B\x08 not really", "cannot read further: the file is damaged"),
        ("a.jsonl.bz2", b"BZh91AY&SY", "cannot read further: the file is damaged"),
        ("a.jsonl.xz", b"\xFD7zXZ\0 not really", "cannot read further: the file is damaged"),
        ("a.zip", b"PK\x03\x04rest", "cannot read the zip archive"),
    ];
    for (name, bytes, expected) in cases {
        let error = read_bytes(name, bytes, &ReadOptions::default()).unwrap_err();
        assert!(error.message().contains(expected), "{name}, expected: {expected}\nfound: {error}");
        assert!(error.to_string().contains(name), "{error}");
        assert_eq!(error.exit_code(), 1);
    }
    let forced = ReadOptions { format: Some(Format::Alpaca), ..ReadOptions::default() };
    let error = read_bytes("a.txt", b"text", &forced).unwrap_err();
    assert!(error.message().contains("expected records of the format `alpaca`, found plain text"), "{error}");
}

#[test]
fn bad_inputs_are_told_apart() {
    let check = |inputs: &[&str], expected: &str, exit_code| {
        let inputs: Vec<String> = inputs.iter().map(|input| (*input).to_owned()).collect();
        let error = Dataset::open(&inputs, &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains(expected), "{error}");
        assert_eq!(error.exit_code(), exit_code, "{error}");
    };
    let folder = tempfile::tempdir().unwrap();
    let folder = folder.path().to_str().unwrap();
    check(&[], "expected at least one data file", 2);
    check(&["-", "-"], "`-` (standard input) is given twice", 2);
    check(&["no/such/file.jsonl"], "no/such/file.jsonl: expected a data file, cannot open it", 1);
    check(&[folder], "neither a finished run (no run.json) nor data files", 2);
    check(&[&format!("{folder}/*.jsonl")], "expected files that match", 1);
    check(&["a**b"], "is not a valid pattern", 2);
}

#[test]
fn the_rows_before_the_damage_are_read() {
    let rows: String = (0..20_000).map(|i| format!("{{\"text\": \"{}\"}}\n", i * 7919 % 10_007)).collect();
    let packed = gzip(rows.as_bytes());
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("a.jsonl.gz");
    fs::write(&path, &packed[..packed.len() - 100]).unwrap();
    let records: Vec<_> = open(&path, &ReadOptions::default()).unwrap().records().collect();
    assert!(records.len() > 10_000 && records[..records.len() - 1].iter().all(Result::is_ok));
    let error = records.last().unwrap().as_ref().unwrap_err().to_string();
    assert!(error.contains("a.jsonl.gz: cannot read further"), "{error}");
}

fn shared(file: &str) -> Option<PathBuf> {
    crate::workdir::shared(&format!("data/{file}"))
}

fn open(path: &Path, options: &ReadOptions) -> Result<Dataset, Error> {
    Dataset::open(&[path.to_str().unwrap().to_owned()], options)
}

/// Writes `bytes` under `name` in a folder of its own and reads them back.
fn read_bytes(name: &str, bytes: &[u8], options: &ReadOptions) -> Result<(Dataset, Vec<Record>), Error> {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join(name);
    fs::write(&path, bytes).unwrap();
    let dataset = open(&path, options)?;
    let records = dataset.records().collect::<Result<_, _>>()?;
    Ok((dataset, records))
}

/// The examples of a file that has no bad rows.
fn examples(name: &str, bytes: &[u8]) -> Vec<Example> {
    let (_, records) = read_bytes(name, bytes, &ReadOptions::default()).unwrap();
    records.into_iter().map(|record| record.example.unwrap()).collect()
}

fn example(row: Value) -> Example {
    examples("row.jsonl", row.to_string().as_bytes()).remove(0)
}

/// `role: content` for each turn.
fn script(example: &Example) -> Vec<String> {
    example.turns.iter().map(|turn| format!("{:?}: {}", turn.role, turn.content)).collect()
}

fn gzip(bytes: &[u8]) -> Vec<u8> {
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder.write_all(bytes).unwrap();
    encoder.finish().unwrap()
}
