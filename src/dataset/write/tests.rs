use serde_json::json;

use super::*;
use crate::dataset::{ReadOptions, Role, WeightedPart};
use crate::random::SplitMix;

fn original(object: Value) -> Original {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, format!("{object}\n")).unwrap();
    let dataset = Dataset::open(&[path.to_string_lossy().into_owned()], &ReadOptions::default()).unwrap();
    dataset.originals().next().unwrap().unwrap()
}

use crate::dataset::Dataset;

fn written(target: Target, original: &Original, example: &Example) -> Result<Object> {
    let (mapping, roles) = (FieldMap::default(), RoleMap::default());
    let format = Format::detect(original.object.as_ref().unwrap(), &mapping).unwrap();
    row(
        target,
        original,
        example,
        &Reading { format, mapping: &mapping, roles: &roles, source: "rows.jsonl", forms: Forms::default() },
    )
    .map(|(row, _)| row)
}

fn chat() -> Original {
    original(json!({"id": "a", "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "Capital of France?"}, {"role": "assistant", "content": "It is Lyon."},
        {"role": "user", "content": "Née?"}, {"role": "assistant", "content": "é, yes."}], "note": "x"}))
}

#[test]
fn rows_by_hand() {
    let original = chat();
    let example = original.example.as_ref().unwrap();
    let check = |target, expected: Value| assert_eq!(Value::Object(written(target, &original, example).unwrap()), expected);
    check(Target::Read, Value::Object(original.object.clone().unwrap()));
    check(
        Target::ShareGpt,
        json!({"id": "a", "system": "Be brief.", "conversations": [
            {"from": "human", "value": "Capital of France?"}, {"from": "gpt", "value": "It is Lyon."},
            {"from": "human", "value": "Née?"}, {"from": "gpt", "value": "é, yes."}]}),
    );
    check(
        Target::Alpaca,
        json!({"id": "a", "instruction": "Née?", "input": "", "output": "é, yes.", "system": "Be brief.",
            "history": [["Capital of France?", "It is Lyon."]]}),
    );
    assert_eq!(left_out(Target::Alpaca, &original, &FieldMap::default()), ["note"]);
    assert!(left_out(Target::Read, &original, &FieldMap::default()).is_empty());
}

/// A row may have a number as its name, which is one again, or a list, which no format but messages keeps.
#[test]
fn the_name_of_a_row_stays_what_it_is_or_is_said_to_be_lost() {
    let of = |id: Value| {
        original(
            json!({"id": id, "source": ["a"], "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]}),
        )
    };
    for (id, as_text, lost) in [(json!(7), json!("7"), &["source"][..]), (json!(["x", 1]), Value::Null, &["id", "source"])] {
        let original = of(id.clone());
        let example = original.example.as_ref().unwrap();
        let row = written(Target::Messages, &original, example).unwrap();
        assert_eq!((&row["id"], &row["source"]), (&id, &json!(["a"])));
        assert_eq!(left_out(Target::Messages, &original, &FieldMap::default()), [""; 0]);
        let row = written(Target::Axolotl, &original, example).unwrap();
        assert_eq!(row.get("id").cloned().unwrap_or_default(), as_text);
        assert_eq!(left_out(Target::Axolotl, &original, &FieldMap::default()), lost);
    }
}

/// TRL takes the form of the first row for that of all.
#[test]
fn rows_for_trl_have_one_form() {
    let talk = |more: Value| {
        let mut row = json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}]});
        row.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
        original(row)
    };
    let (plain, switched) = (talk(json!({})), talk(json!({"chat_template_kwargs": {"today": "1 May"}})));
    let text = original(json!({"text": "words"}));
    let mut forms = Forms::default();
    let row = |original: &Original, forms: Forms| {
        let (mapping, roles) = (FieldMap::default(), RoleMap::default());
        let reading = Reading { format: Format::Messages, mapping: &mapping, roles: &roles, source: "rows.jsonl", forms };
        super::row(Target::Trl, original, original.example.as_ref().unwrap(), &reading)
    };
    assert_eq!(row(&text, forms).unwrap().0, json!({"text": "words"}).as_object().unwrap().clone());
    [&plain, &switched].into_iter().for_each(|original| forms.add(original.example.as_ref().unwrap()));
    let (written, read_again) = row(&plain, forms).unwrap();
    assert_eq!((&written["chat_template_kwargs"], read_again.template_switches), (&json!({}), None));
    assert_eq!(row(&switched, forms).unwrap().0["chat_template_kwargs"], json!({"today": "1 May"}));
    let error = row(&text, forms).unwrap_err().to_string();
    assert!(error.contains("others of the file are conversations"), "{error}");
}

/// The turns may stand in a column that the field map names; they are the row's own.
#[test]
fn masks_are_written_into_a_mapped_column() {
    let (mapping, roles) = (FieldMap::parse(&["messages=talk".to_owned()]).unwrap(), RoleMap::default());
    let talk =
        json!({"talk": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}], "messages": ["no turns"]});
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.jsonl");
    std::fs::write(&path, format!("{talk}\n")).unwrap();
    let options = ReadOptions { mapping: mapping.clone(), ..ReadOptions::default() };
    let dataset = Dataset::open(&[path.to_string_lossy().into_owned()], &options).unwrap();
    let original = dataset.originals().next().unwrap().unwrap();
    let mut example = original.example.as_ref().unwrap().clone();
    example.turns[1].mask();
    let reading =
        Reading { format: Format::Messages, mapping: &mapping, roles: &roles, source: "rows.jsonl", forms: Forms::default() };
    let (row, _) = row(Target::Read, &original, &example, &reading).unwrap();
    assert_eq!(row["talk"][1], json!({"role": "assistant", "content": "b", "weight": 0}));
    assert_eq!(row["messages"], json!(["no turns"]));
}

#[test]
fn masks_by_hand() {
    let original = chat();
    let mut example = original.example.as_ref().unwrap().clone();
    example.turns[2].weight = 0.0;
    example.turns[4].parts.push(WeightedPart { begin: 0, end: 2, weight: 0.0 });
    let detail =
        json!([{"begin_offset": 0, "end_offset": 0, "train": false}, {"begin_offset": 1, "end_offset": 6, "train": true}]);
    let row = written(Target::Messages, &original, &example).unwrap();
    assert_eq!((&row["messages"][2]["weight"], &row["messages"][4]["train_detail"]), (&json!(0), &detail));
    let row = written(Target::Axolotl, &original, &example).unwrap();
    assert_eq!((&row["messages"][2]["train"], &row["messages"][4]["train"]), (&json!(false), &json!(true)));
    assert_eq!(row["messages"][4]["train_detail"], detail);
    // axolotl takes nulls out of all but texts.
    let with = |tools: Value, arguments: Value| {
        let calls = json!([{"type": "function", "function": {"name": "f", "arguments": arguments}}]);
        let mut row = example.clone();
        (row.tools, row.turns[4].tool_calls) = (Some(tools), Some(calls));
        row
    };
    let tools = json!([{"type": "function", "function": {"name": "f", "parameters": {"x": {"default": null}}}}]);
    let row = written(Target::Axolotl, &original, &with(tools.clone(), json!({"x": 1}))).unwrap();
    assert_eq!(serde_json::from_str::<Value>(row["tools"].as_str().unwrap()).unwrap(), tools);
    assert!(written(Target::Axolotl, &original, &with(tools.clone(), json!("{\"x\": null}"))).is_ok());
    for text in ["x = 1", "[1]", "{'x': 1}"] {
        let error = written(Target::Axolotl, &original, &with(tools.clone(), json!(text))).unwrap_err().to_string();
        assert!(error.contains(&format!("text that holds no JSON object, `{text}`")), "{error}");
        assert!(written(Target::Messages, &original, &with(tools.clone(), json!(text))).is_ok());
    }
    let error = written(Target::Axolotl, &original, &with(tools.clone(), json!({"x": [{"y": null}]}))).unwrap_err().to_string();
    assert!(error.contains("a tool call holds a null"), "{error}");
    assert!(written(Target::Messages, &original, &with(tools, json!({"x": null}))).is_ok());
    let mut inner = example.clone();
    inner.turns[4].content = "a é, no".to_owned();
    inner.turns[4].parts = vec![WeightedPart { begin: 2, end: 4, weight: 0.0 }];
    let error = written(Target::Axolotl, &original, &inner).unwrap_err().to_string();
    assert!(error.contains("part of the character `é`"), "{error}");
    assert!(written(Target::Messages, &original, &inner).is_ok());
    let row = written(Target::Read, &original, &example).unwrap();
    assert_eq!((&row["messages"][2]["weight"], &row["note"]), (&json!(0), &json!("x")));
    for target in [Target::ShareGpt, Target::Alpaca, Target::LlamaFactory, Target::Trl] {
        let error = written(target, &original, &example).unwrap_err().to_string();
        assert!(error.contains("is excluded from the loss") && error.contains("messages or axolotl"), "{target}: {error}");
    }
    // TRL supervises only the completion of a row, so answers before it may be excluded.
    example.turns[4].parts.clear();
    let row = written(Target::Trl, &original, &example).unwrap();
    assert_eq!((row["prompt"].as_array().unwrap().len(), &row["completion"][0]["content"]), (4, &json!("é, yes.")));
    example.turns[4].parts.push(WeightedPart { begin: 0, end: 2, weight: 0.0 });
    let error = written(Target::Trl, &original, &example).unwrap_err().to_string();
    assert!(error.contains("turn 4 is excluded from the loss, or partly"), "{error}");
}

#[test]
fn what_a_format_cannot_hold_is_refused_by_name() {
    let refused = |target, object: Value, part: &str| {
        let original = original(object);
        let error = written(target, &original, original.example.as_ref().unwrap()).unwrap_err().to_string();
        assert!(error.contains(part), "{target}: {error}");
    };
    let calls = json!([{"type": "function", "function": {"name": "f", "arguments": "{\"a\": 1}"}}]);
    let called = |content: &str| {
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": content, "tool_calls": calls},
            {"role": "tool", "content": "1"}, {"role": "assistant", "content": "b"}]})
    };
    refused(Target::Alpaca, called(""), "can express only");
    refused(Target::ShareGpt, called("I call."), "both text and a tool call");
    let original = original(called(""));
    assert!(written(Target::LlamaFactory, &original, original.example.as_ref().unwrap()).is_ok());
    refused(Target::Messages, json!({"text": "plain"}), "plain text");
    refused(Target::Messages, json!({"prompt": "a", "chosen": "b", "rejected": "c"}), "rejected");
    let two = json!({"messages": [{"role": "user", "content": "a"}, {"role": "user", "content": "b"}, {"role": "assistant", "content": "c"}]});
    refused(Target::LlamaFactory, two, "turn 1 breaks the order");
    let thinks =
        json!({"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b", "reasoning_content": "c"}]});
    refused(Target::ShareGpt, thinks, "reasoning");
}

/// Templates tell a null from an empty text, and parts from their text.
#[test]
fn messages_keep_the_form_of_a_content() {
    let text = |text: &str| json!({"type": "text", "text": text});
    let call = json!({"type": "function", "function": {"name": "f", "arguments": "{}"}});
    let weighted = json!([{"type": "text", "text": "c ", "weight": 0}, text("d"), {"type": "text", "text": "e", "weight": 0.5}]);
    let messages = json!([
        {"role": "user", "content": [text("a "), text("b")]},
        {"role": "assistant", "content": null, "tool_calls": [call]},
        {"role": "tool", "content": [text("5")]},
        {"role": "tool", "content": null},
        {"role": "assistant", "content": weighted}]);
    let original = original(json!({"messages": messages}));
    let mut example = original.example.as_ref().unwrap().clone();
    assert_eq!(written(Target::Messages, &original, &example).unwrap()["messages"], messages);
    // A mask within a part has no place in the list.
    example.turns[4].parts = vec![WeightedPart { begin: 0, end: 1, weight: 0.0 }];
    let row = written(Target::Messages, &original, &example).unwrap();
    assert_eq!(row["messages"][4]["content"], json!([text("c "), text("d"), text("e")]));
    assert_eq!(row["messages"][4]["train_detail"][0], json!({"begin_offset": 0, "end_offset": 0, "train": false}));
}

/// Random weights on random rows: the written row has the same weights, or is refused.
#[test]
fn what_is_written_reads_as_what_was_decided() {
    let mut random = SplitMix(7);
    let mut below = |n: usize| (random.next() % n as u64) as usize;
    let texts = ["Yes.", "né 5 🙂 five", " a\n\tb ", "名古屋市", "{\"a\": 1}", "x"];
    let (mut n_written, mut n_masked) = (0, 0);
    for _ in 0..400 {
        let mut messages = Vec::new();
        if below(3) == 0 {
            messages.push(json!({"role": "system", "content": texts[below(texts.len())]}));
        }
        for _ in 0..1 + below(3) {
            messages.push(json!({"role": "user", "content": texts[below(texts.len())]}));
            messages.push(json!({"role": "assistant", "content": texts[below(texts.len())]}));
        }
        let original = original(json!({"id": below(9).to_string(), "messages": messages}));
        let mut example = original.example.as_ref().unwrap().clone();
        for turn in example.turns.iter_mut().filter(|turn| turn.role == Role::Assistant) {
            match below(4) {
                0 => turn.weight = 0.0,
                1 => {
                    let mut cuts: Vec<usize> = turn.content.char_indices().map(|(at, _)| at).collect();
                    cuts.push(turn.content.len());
                    let begin = below(cuts.len() - 1);
                    let end = begin + 1 + below(cuts.len() - 1 - begin);
                    turn.parts.push(WeightedPart { begin: cuts[begin], end: cuts[end], weight: 0.0 });
                }
                _ => {}
            }
        }
        for target in Target::ALL {
            // `row` checks this by reading back; the formats with masks are checked independently here.
            let Ok(row) = written(target, &original, &example) else { continue };
            n_written += 1;
            if !matches!(target, Target::Messages | Target::Axolotl | Target::Read) {
                continue;
            }
            for (turn, message) in example.turns.iter().zip(row["messages"].as_array().unwrap()) {
                let is_off = message.get("weight") == Some(&json!(0)) || message.get("train") == Some(&json!(false));
                assert_eq!(is_off, turn.weight == 0.0, "{message}");
                let learnt = |n: usize| {
                    let details = message.get("train_detail").and_then(Value::as_array);
                    details.is_none_or(|details| {
                        let holds = |detail: &&Value| {
                            (detail["begin_offset"].as_u64().unwrap()..=detail["end_offset"].as_u64().unwrap())
                                .contains(&(n as u64))
                        };
                        details.iter().find(holds).unwrap()["train"] == true
                    })
                };
                for (n, (at, _)) in turn.content.char_indices().enumerate() {
                    let is_masked = turn.parts.iter().any(|part| (part.begin..part.end).contains(&at));
                    n_masked += usize::from(is_masked);
                    assert_eq!(learnt(n), !is_masked, "{message} {n}");
                }
            }
        }
    }
    assert!(n_written > 1500 && n_masked > 500, "{n_written} {n_masked}");
}

#[test]
fn a_table_holds_what_the_rows_hold() {
    let rows = [
        json!({"id": "a", "messages": [{"role": "user", "content": "né"}, {"role": "assistant", "content": "b", "weight": 0}], "n": 1}),
        json!({"messages": [{"role": "user", "content": "c"}], "n": 1.5, "none": null}),
    ];
    let rows: Vec<Object> = rows.into_iter().map(|row| row.as_object().unwrap().clone()).collect();
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    write_parquet(&rows, false, &mut std::fs::File::create(&path).unwrap()).unwrap();
    let read: Vec<_> = crate::dataset::rows(&path).unwrap().map(|row| Value::Object(row.unwrap().1)).collect();
    let expected = [
        json!({"id": "a", "messages": [{"role": "user", "content": "né"}, {"role": "assistant", "content": "b", "weight": 0}], "n": 1.0, "none": null}),
        json!({"id": null, "messages": [{"role": "user", "content": "c"}], "n": 1.5, "none": null}),
    ];
    assert_eq!(read, expected);
    // pandas' missing values are allowed in columns of every type; integers are never rounded silently.
    let read_back = |text: &[&str]| {
        let object = |text: &&str| crate::dataset::json::parse(text.as_bytes(), 1).unwrap().as_object().unwrap().clone();
        let rows: Vec<Object> = text.iter().map(object).collect();
        write_parquet(&rows, false, &mut std::fs::File::create(&path).unwrap())?;
        let read = crate::dataset::rows(&path).unwrap().map(|row| crate::dataset::line(&row.unwrap().1)).collect::<Vec<_>>();
        Ok::<_, crate::error::Error>(read)
    };
    let texts = [r#"{"t":NaN,"n":1,"f":NaN,"l":["a",NaN],"o":{"x":NaN}}"#, r#"{"t":"a","n":NaN,"f":0.5,"l":NaN,"o":{"x":true}}"#];
    let expected = [r#"{"t":null,"n":1,"f":NaN,"l":["a",null],"o":{}}"#, r#"{"t":"a","n":null,"f":0.5,"l":null,"o":{"x":true}}"#];
    assert_eq!(read_back(&texts).unwrap(), expected);
    assert_eq!(read_back(&[r#"{"f":1}"#, r#"{"f":Infinity}"#]).unwrap(), [r#"{"f":1.0}"#, r#"{"f":Infinity}"#]);
    for text in [r#"{"f":9007199254740993}"#, r#"{"f":18446744073709551615}"#] {
        let error = read_back(&[text, r#"{"f":0.5}"#]).unwrap_err().to_string();
        assert!(error.contains("`f`") && error.contains(&text[5..text.len() - 1]), "{error}");
    }
    let error = read_back(&[r#"{"f":123456789012345678901234567890}"#]).unwrap_err().to_string();
    assert!(error.contains("`f`: a table holds integers of at most 64 bits, found 123456789012345678901234567890"), "{error}");
    let mixed: Vec<Object> = [json!({"a": 1}), json!({"a": "b"})].iter().map(|row| row.as_object().unwrap().clone()).collect();
    let error = write_parquet(&mixed, false, &mut Vec::new()).unwrap_err().to_string();
    assert!(error.contains("`a`: expected a number in every row of a table, found a string"), "{error}");
}

/// What a chat template prints is written as it is, or refused: a table has the keys of one row in all, and no null beside a missing key.
#[test]
fn a_table_holds_what_templates_print_exactly_or_refuses_it() {
    let call = |arguments: &str| {
        let text = format!(
            r#"{{"messages":[{{"role":"assistant","tool_calls":[{{"function":{{"name":"f","arguments":{arguments}}}}}]}}]}}"#
        );
        crate::dataset::json::parse(text.as_bytes(), 1).unwrap().as_object().unwrap().clone()
    };
    let tools = |tools: &str| {
        crate::dataset::json::parse(format!(r#"{{"prompt":"a","tools":{tools}}}"#).as_bytes(), 1)
            .unwrap()
            .as_object()
            .unwrap()
            .clone()
    };
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("rows.parquet");
    let mut exact = 0;
    for (rows, refused) in [
        ([call(r#"{"city":"X","n":1}"#), call(r#"{"city":"Y","n":2}"#)], None),
        ([call(r#""{\"city\":null}""#), call(r#""{}""#)], None),
        (
            [call(r#"{"city":"X","unit":null}"#), call(r#"{"city":"Y","unit":"c"}"#)],
            Some("arguments.unit`: a table does not tell null"),
        ),
        ([call(r#"{"city":"X"}"#), call("{}")], Some("arguments`: a table has the key `city`")),
        ([call(r#"{"z":{"a":[null]}}"#), call(r#"{"z":{"a":[]}}"#)], Some("arguments.z.a`: a table does not tell null")),
        ([call(r#"{"n":5}"#), call(r#"{"n":5.5}"#)], Some("makes 5.0 of 5")),
        ([tools(r#"[{"name":"f","p":{"d":1}}]"#), tools("null")], None),
        ([tools(r#"[{"name":"f","d":null}]"#), tools("null")], Some("`tools.d`: a table does not tell null")),
        ([tools(r#"[{"name":"f"},{"name":"g","d":1}]"#), tools("null")], Some("`tools`: a table has the key `d`")),
    ] {
        let written = write_parquet(&rows, false, &mut std::fs::File::create(&path).unwrap());
        match refused {
            Some(expected) => {
                let error = written.unwrap_err().to_string();
                assert!(error.contains(expected) && error.contains("JSON Lines"), "{error}");
                // Rows of a table are as alike as its columns made them.
                write_parquet(&rows, true, &mut Vec::new()).unwrap();
            }
            None => {
                written.unwrap();
                let read: Vec<_> = crate::dataset::rows(&path).unwrap().map(|row| row.unwrap().1).collect();
                for (read, row) in read.iter().zip(&rows) {
                    let present: Object =
                        read.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
                    let row: Object =
                        row.iter().filter(|(_, value)| !value.is_null()).map(|(k, v)| (k.clone(), v.clone())).collect();
                    assert_eq!(present, row);
                    exact += 1;
                }
            }
        }
    }
    assert_eq!(exact, 6);
}
