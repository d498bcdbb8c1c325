//! Tests `diagnose eval` as a user runs it, and compares its numbers with lm-evaluation-harness.

use serde_json::Value;

use crate::tiny_model;
use crate::workdir::{Workdir, absent, default_model, shared};
use crate::worst::worst;

const ITEMS: &str = r#"{"id":"a","context":"one two","choices":["three","four"],"answer":0,"subject":"numbers"}
{"id":"b","context":"nil","choices":["alpha","beta","gamma"],"answer":2,"subject":"letters"}
{"id":"c","context":"one two ","choices":["é","a much longer answer"],"answer":1,"subject":"numbers"}
"#;

fn workdir() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("items.uniform.jsonl", ITEMS);
    workdir.write(
        "last.jsonl",
        "{\"context\":\"I saw the\",\"continuation\":\"sea\"}\n{\"context\":\"we\",\"continuation\":\"go\"}\n",
    );
    workdir.write("text.txt", "It was a bright cold day in April,\n\nand the clocks were striking thirteen.");
    workdir
}

fn scores(workdir: &Workdir, out: &str) -> Value {
    serde_json::from_str(&std::fs::read_to_string(workdir.path(out).join("scores.json")).unwrap()).unwrap()
}

#[test]
fn scores_and_samples_land_in_the_folder() {
    let workdir = workdir();
    let tasks = "items.uniform.jsonl,last.jsonl,text.txt";
    let ran = workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", tasks, "--out", "out", "--max-len", "24"]).ok();
    assert!(ran.stdout.contains("items") && ran.stdout.contains("bits_per_byte"), "{}", ran.stdout);
    let found = scores(&workdir, "out");
    assert_eq!((&found["model"], &found["dtype"]), (&"tiny".into(), &"f32".into()));
    let tasks = &found["tasks"];
    assert_eq!((tasks["items"]["n"].as_u64(), tasks["items"]["groups"]["numbers"]["n"].as_u64()), (Some(3), Some(2)));
    for metric in ["acc", "acc_norm", "acc_bytes"] {
        let acc = &tasks["items"]["metrics"][metric];
        assert!(acc["value"].is_f64() && acc["stderr"].is_f64() && acc["ci95"].as_array().unwrap().len() == 2, "{acc}");
    }
    // 73 bytes in windows of 24 tokens, a token being one or two bytes.
    let bits = tasks["text"]["metrics"]["bits_per_byte"]["value"].as_f64().unwrap();
    assert!((4.0..14.0).contains(&bits) && tasks["text"]["n"].as_u64().unwrap() >= 3, "{bits}");
    let samples = diagnose::eval::samples::read(&workdir.path("out").join("samples.parquet")).unwrap();
    let items = &samples["items"];
    assert_eq!(items.iter().map(|item| item.choices.len()).collect::<Vec<_>>(), [2, 3, 2]);
    let bytes: u32 = samples["text"].iter().map(|window| window.choices[0].bytes).sum();
    let words: u32 = samples["text"].iter().map(|window| window.choices[0].words).sum();
    assert_eq!((bytes, words), (74, 14));
    assert!(items.iter().flat_map(|item| &item.choices).all(|choice| choice.logprob < 0.0 && choice.tokens > 0));
}

/// Windows of one text are no independent draws of texts; of a single text, they are all that there is.
#[test]
fn the_windows_of_a_text_count_as_one_draw() {
    let workdir = workdir();
    let text = |word: &str| format!("{{\"id\":\"{word}\",\"text\":\"{}\"}}\n", format!("{word} ").repeat(40));
    workdir.write("texts.jsonl", ["bright", "cold", "days"].map(text).concat());
    let ran = workdir
        .run(&["eval", "--model", "tiny.gguf", "--tasks", "texts.jsonl,text.txt", "--out", "short", "--max-len", "24"])
        .ok();
    assert!(ran.stdout.contains("of up to the context length, in 3 texts"), "{}", ran.stdout);
    workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "texts.jsonl,text.txt", "--out", "long", "--max-len", "300"]).ok();
    let [short, long] = ["short", "long"].map(|out| scores(&workdir, out)["tasks"].clone());
    assert!(short["texts"]["n"].as_u64().unwrap() > 12 && short["text"]["n"].as_u64().unwrap() > 1, "{short}");
    assert_eq!([&short["texts"]["n_groups"], &long["texts"]["n"]], [3, 3]);
    assert!([&short["text"]["n_groups"], &long["texts"]["n_groups"]].iter().all(|groups| groups.is_null()));
    assert_eq!(short["texts"]["metrics"]["bits_per_byte"]["interval"], "group_bootstrap");
}

/// The prompts themselves are compared with the harness's in `src/eval/asking.rs`.
#[test]
fn a_chat_template_is_part_of_what_an_evaluation_is() {
    let workdir = workdir();
    let eval = |out: &str, tasks: &str, more: &[&str]| {
        workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", tasks, "--out", out], more].concat())
    };
    eval("plain", "items.uniform.jsonl,text.txt", &[]).ok();
    let shown = eval("chat", "items.uniform.jsonl,text.txt", &["--apply-chat-template"]).ok().stdout;
    assert!(shown.contains("--apply-chat-template (template "), "{shown}");
    let (plain, chat) = (scores(&workdir, "plain"), scores(&workdir, "chat"));
    let tasks = |scores: &Value| scores["tasks"].clone();
    assert_ne!(tasks(&plain)["items"]["metrics"], tasks(&chat)["items"]["metrics"]);
    // A text is read as it is.
    assert_eq!(tasks(&plain)["text"]["metrics"], tasks(&chat)["text"]["metrics"]);
    assert!(chat["tasks"]["items"]["chat"]["template_sha256"].is_string() && chat["tasks"]["text"].get("chat").is_none());

    // By hand: ChatML, and choices right behind the opened answer.
    let line = "{\"context\":\"<|im_start|>user\\none two<|im_end|>\\n<|im_start|>assistant\\n\",\"choices\":[\"three\",\"four\"],\"answer\":0}\n";
    workdir.write("hand.jsonl", line);
    eval("hand", "hand.jsonl", &[]).ok();
    let first = |out: &str, task: &str| {
        diagnose::eval::samples::read(&workdir.path(out).join("samples.parquet")).unwrap().remove(task).unwrap().remove(0)
    };
    let (ours, by_hand) = (first("chat", "items"), first("hand", "hand"));
    assert_eq!(ours.prompt_sha256, by_hand.prompt_sha256);
    // The newline that goes over to the choice, and its letters; by hand there is a space, which is a token with the first letter.
    assert_eq!((ours.choices[0].tokens, by_hand.choices[0].tokens), (6, 6));
    assert!(ours.choices[0].chars == 5 && ours.choices[0].logprob != by_hand.choices[0].logprob);

    let same = workdir.run(&["diff", "chat", "chat", "--json"]).ok().json();
    assert_eq!(same["tasks"]["items"]["prompts_differ"], 0);
    let refused = workdir.run(&["diff", "plain", "chat", "--json"]).ok().json();
    let skipped = refused["skipped"][0].as_str().unwrap();
    assert!(skipped.contains("`items` was asked in two ways, which differ in --apply-chat-template"), "{skipped}");
    assert!(refused["tasks"].get("items").is_none() && refused["tasks"].get("text").is_some(), "{refused}");

    for (more, what) in [
        (&["--apply-chat-template", "--system", "Be brief."][..], "requested: all items and no examples, --system \"Be brief.\""),
        (&[], "with all items and no examples, --apply-chat-template"),
    ] {
        let other = eval("chat", "items.uniform.jsonl", more);
        assert!(other.code == Some(1) && other.stderr.contains(what), "{}", other.stderr);
    }
    for option in ["--fewshot-as-multiturn=true", "--fewshot-as-multiturn=false", "--chat-template-kwargs={}"] {
        let refused = eval("bad", "items.uniform.jsonl", &[option]);
        assert!(refused.code == Some(2) && refused.stderr.contains("Add --apply-chat-template"), "{}", refused.stderr);
    }
    let nowhere = eval("bad", "items.uniform.jsonl", &["--chat-template", "nowhere.jinja"]);
    assert!(nowhere.code == Some(1) && nowhere.stderr.contains("nowhere.jinja"), "{}", nowhere.stderr);
}

/// Rows are rendered with the chat template by default; another template gives another evaluation.
#[test]
fn the_template_of_rows_to_learn_from_is_part_of_what_an_evaluation_is() {
    let workdir = workdir();
    workdir.write("rows.jsonl", r#"{"messages":[{"role":"user","content":"Hi"},{"role":"assistant","content":"Hello"}]}"#);
    workdir.write("bare.jinja", "{% for m in messages %}[{{ m.role }}]{{ m.content }}{% endfor %}");
    let eval =
        |more: &[&str]| workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", "rows.jsonl", "--out", "out"], more].concat());
    eval(&[]).ok();
    assert!(scores(&workdir, "out")["tasks"]["rows"]["chat"]["template_sha256"].is_string());
    // Asked for by name it is the same.
    eval(&["--apply-chat-template"]).ok();
    let other = eval(&["--chat-template", "bare.jinja"]);
    assert!(other.code == Some(1) && other.stderr.contains("holds the scores of `rows` with"), "{}", other.stderr);
}

#[test]
fn a_score_does_not_depend_on_its_neighbours_or_the_kernels() {
    let workdir = workdir();
    let eval = |out: &str, more: &[&str]| {
        let arguments = [&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl", "--out", out], more].concat();
        workdir.run(&arguments).ok();
        diagnose::eval::samples::read(&workdir.path(out).join("samples.parquet")).unwrap().remove("items").unwrap()
    };
    let (all, one, slow) = (eval("all", &[]), eval("one", &["--limit", "1"]), eval("slow", &["--kernels", "reference"]));
    // The first one of each of two subjects.
    assert_eq!(one.len(), 2);
    // f32 sums in another order.
    for (a, b) in all.iter().zip(&one).chain(all.iter().zip(&slow)) {
        for (a, b) in a.choices.iter().zip(&b.choices) {
            assert!((a.logprob - b.logprob).abs() < 1e-4, "{} {}", a.logprob, b.logprob);
        }
    }
}

#[test]
fn finished_tasks_are_kept_and_others_added() {
    let workdir = workdir();
    let eval = |tasks: &str, more: &[&str]| {
        workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", tasks, "--out", "out"], more].concat())
    };
    eval("items.uniform.jsonl", &[]).ok();
    let seconds = scores(&workdir, "out")["tasks"]["items"]["seconds"].clone();
    eval("items.uniform.jsonl,last.jsonl", &[]).ok();
    let found = scores(&workdir, "out");
    assert_eq!(found["tasks"]["items"]["seconds"], seconds, "evaluated again");
    assert_eq!(found["tasks"]["last"]["n"], 2);
    // Other items or examples of a task would hide the ones that are there; another precision is another evaluation.
    let limited = eval("items.uniform.jsonl", &["--limit", "2"]);
    assert!(
        limited.code == Some(1) && limited.stderr.contains("with all items and no examples; requested: --limit 2"),
        "{}",
        limited.stderr
    );
    assert_eq!(scores(&workdir, "out"), found);
    // With the default folder, both are kept.
    for more in [&[][..], &["--limit", "2"], &["--sample", "2", "--seed", "3"]] {
        workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl"], more].concat()).ok();
    }
    assert_eq!(std::fs::read_dir(workdir.path("runs")).unwrap().count(), 3);
    let other = eval("items.uniform.jsonl", &["--dtype", "bf16"]);
    assert!(other.code == Some(1) && other.stderr.contains("another evaluation"), "{}", other.stderr);
}

#[test]
fn a_folder_belongs_to_one_program_and_to_a_model_by_any_spelling() {
    let workdir = workdir();
    let eval =
        |model: &str, out: &[&str]| workdir.run(&[&["eval", "--model", model, "--tasks", "items.uniform.jsonl"], out].concat());
    eval("tiny.gguf", &["--out", "out"]).ok();
    let found = scores(&workdir, "out");
    for field in ["program", "version", "commit", "started", "kernel_level", "device"] {
        assert!(found[field].as_str().is_some_and(|text| !text.is_empty()), "{field}: {}", found[field]);
    }
    let path = workdir.path("tiny.gguf");
    eval(path.to_str().unwrap(), &["--out", "out"]).ok();
    assert_eq!(scores(&workdir, "out"), found, "evaluated again");
    // Nobody names the folder: it is the same one, too.
    eval("tiny.gguf", &[]).ok();
    eval("./tiny.gguf", &[]).ok();
    assert_eq!(std::fs::read_dir(workdir.path("runs")).unwrap().count(), 1);
    // Another commit has left the folder.
    let mut other = found.clone();
    other["commit"] = "0123456789ab".into();
    workdir.write("out/scores.json", other.to_string());
    let refused = eval("tiny.gguf", &["--out", "out"]);
    assert!(refused.code == Some(1) && refused.stderr.contains("0123456789ab"), "{}", refused.stderr);
}

#[test]
fn a_sample_is_drawn_from_all_items_and_written_down() {
    let workdir = workdir();
    let item = |i: usize| format!("{{\"id\":\"q{i}\",\"context\":\"item {i}\",\"choices\":[\"a{i}\",\"b\"],\"answer\":0}}\n");
    workdir.write("many.jsonl", (0..30).map(item).collect::<String>());
    let eval = |out: &str, more: &[&str]| {
        let ran = workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", "many.jsonl", "--out", out], more].concat()).ok();
        let samples = diagnose::eval::samples::read(&workdir.path(out).join("samples.parquet")).unwrap();
        (ran.stdout, samples["many"].iter().map(|sample| sample.id.clone()).collect::<Vec<_>>())
    };
    let (_, whole) = eval("whole", &[]);
    let (printed, sampled) = eval("out", &["--sample", "10", "--seed", "2"]);
    assert!(printed.contains("10 items drawn at random, seed 2"), "{printed}");
    assert!(whole.len() == 30 && sampled.len() == 10 && sampled != whole[..10], "{sampled:?}");
    let task = &scores(&workdir, "out")["tasks"]["many"];
    assert_eq!((&task["sample"], &task["sample_seed"], &task["limit"]), (&10.into(), &2.into(), &Value::Null));
    let (printed, first) = eval("first", &["--limit", "10"]);
    assert!(printed.contains("the first 10 items, not a random sample") && first == whole[..10], "{printed}");
}

#[test]
fn subjects_are_limited_and_weighed_and_groups_widen_the_errors() {
    let workdir = workdir();
    // 6 items of law in groups of three, 30 of logic on their own.
    let item = |i: usize| {
        let (subject, group) = if i < 6 { ("law", format!(",\"group\":\"p{}\"", i / 3)) } else { ("logic", String::new()) };
        format!(
            "{{\"id\":\"q{i}\",\"context\":\"item {i}\",\"choices\":[\"a{i}\",\"b\"],\"answer\":{},\"subject\":\"{subject}\"{group}}}\n",
            i % 2
        )
    };
    workdir.write("both.jsonl", (0..36).map(item).collect::<String>());
    let eval = |out: &str, more: &[&str]| {
        let ran = workdir.run(&[&["eval", "--model", "tiny.gguf", "--out", out], more].concat()).ok();
        (ran.stdout, scores(&workdir, out)["tasks"]["both"].clone())
    };
    let (printed, task) = eval("limited", &["--tasks", "both.jsonl", "--limit", "4"]);
    assert!(printed.contains("the first 4 items of each of 2 subjects") && task["n"] == 8, "{printed}");
    let (printed, task) = eval("whole", &["--tasks", "both.jsonl"]);
    let number = |pointer: &str| task.pointer(pointer).unwrap().as_f64().unwrap();
    let [law, logic] = ["law", "logic"].map(|subject| number(&format!("/groups/{subject}/value")));
    assert!((number("/metrics/acc/value") - (6.0 * law + 30.0 * logic) / 36.0).abs() < 1e-12);
    assert!((number("/mean_over_subjects/value") - (law + logic) / 2.0).abs() < 1e-12);
    assert_eq!((&task["n_groups"], &task["metrics"]["acc"]["interval"]), (&32.into(), &"group_bootstrap".into()));
    assert!(printed.contains("acc by subject") && printed.contains("a bootstrap over groups of items (acc"), "{printed}");
    let alone = eval("alone", &["--tasks", "items.uniform.jsonl"]).0;
    assert!(alone.contains("95 % intervals: Wilson's (acc, acc by subject, acc_norm)"), "{alone}");
}

#[test]
fn bad_tasks_are_refused_before_the_model_is_loaded() {
    let workdir = workdir();
    workdir.write("bad.jsonl", format!("{ITEMS}{}\n", r#"{"id":"d","context":"q","choices":["x","y"],"answer":7}"#));
    let check = |tasks: &str, code: i32, expected: &str| {
        let ran = workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", tasks, "--out", "out"]);
        assert!(ran.code == Some(code) && ran.stderr.contains(expected), "{:?} {}", ran.code, ran.stderr);
    };
    check("bad.jsonl", 1, "bad.jsonl:4: `answer` is 7");
    workdir.write("empty.jsonl", format!("{ITEMS}{}\n", r#"{"id":"d","context":"","choices":["x","y"],"answer":0}"#));
    check("empty.jsonl", 1, "empty.jsonl:4: `context` is empty");
    check("hellaswagg", 2, "`--tasks list`");
    check("items.uniform.jsonl,items.uniform.jsonl", 2, "two tasks are called `items`");
    assert!(!workdir.path("out").exists());
}

/// The fixture is made by tests/fixtures/eval/harness.py, on the first 200 items of each file, of which the first 80 are compared.
#[test]
fn the_harness_gives_the_same_log_likelihoods() {
    let (Some(_), Some(bench), Some(fixture)) = (default_model(), shared("data/bench"), fixture("harness.json")) else { return };
    let workdir = Workdir::new();
    for (name, theirs) in fixture["tasks"].as_object().unwrap() {
        let file =
            ["uniform.jsonl", "jsonl"].map(|end| bench.join(format!("{name}.{end}"))).into_iter().find(|file| file.exists());
        // By hand, since --limit counts the items of each subject.
        let items: String = std::fs::read_to_string(file.unwrap()).unwrap().split_inclusive('\n').take(80).collect();
        let file = workdir.write(&format!("{name}.jsonl"), items);
        workdir.run(&["eval", "--tasks", file.to_str().unwrap(), "--out", "out"]).ok();
        let ours = diagnose::eval::samples::read(&workdir.path("out").join("samples.parquet")).unwrap().remove(name).unwrap();
        let theirs = theirs["items"].as_array().unwrap();
        assert_eq!(ours.len(), 80);
        let mut differences = Vec::new();
        let mut n_ties = 0;
        for (ours, theirs) in ours.iter().zip(theirs) {
            assert_eq!(theirs[0].as_str(), Some(ours.id.as_str()));
            let logprobs: Vec<f64> = theirs[1].as_array().unwrap().iter().map(|value| value.as_f64().unwrap()).collect();
            assert_eq!(logprobs.len(), ours.choices.len());
            for (ours, theirs) in ours.choices.iter().zip(&logprobs) {
                differences.push((ours.logprob - theirs).abs());
            }
            let (acc, norm) = match ours.choices.len() {
                1 => (ours.choices[0].greedy, None),
                _ => {
                    let right = |picked: usize| picked == ours.answer as usize;
                    (right(ours.picked(|_| 1.0)), Some(right(ours.picked(|score| f64::from(score.chars)))))
                }
            };
            // A tie within the tolerance may fall either way.
            let is_tie = |length: fn(&diagnose::eval::metrics::ChoiceScore) -> f64| {
                let mut values: Vec<f64> = ours.choices.iter().map(|score| score.logprob / length(score)).collect();
                values.sort_by(|a, b| b.total_cmp(a));
                values.len() > 1 && values[0] - values[1] < TOLERANCE
            };
            let ties = [is_tie(|_| 1.0), is_tie(|score| f64::from(score.chars)) && norm.is_some()];
            n_ties += ties.iter().filter(|tie| **tie).count();
            assert!(ties[0] || theirs[2].as_u64() == Some(acc.into()), "{name}, {}: acc", ours.id);
            assert!(ties[1] || norm.is_none_or(|norm| theirs[3].as_u64() == Some(norm.into())), "{name}, {}: acc_norm", ours.id);
        }
        let worst = worst(differences);
        println!("{name}: largest difference {worst:.1e}, {n_ties} ties");
        assert!(worst <= TOLERANCE, "{name}: {worst}");
    }
}

/// The fixture is made by tests/fixtures/eval/rolling.py: lm-evaluation-harness on a text of our own.
#[test]
fn the_harness_gives_the_same_perplexity_in_rolling_windows() {
    let (Some(_), Some(fixture)) = (default_model(), fixture("rolling.json")) else { return };
    let harness = &fixture["harness"];
    let workdir = Workdir::new();
    let passage = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/eval/passage.txt");
    workdir.run(&["eval", "--tasks", passage, "--out", "out", "--max-len", &harness["window"].to_string()]).ok();
    let metrics = &scores(&workdir, "out")["tasks"]["passage"]["metrics"];
    for metric in ["bits_per_byte", "byte_perplexity", "word_perplexity"] {
        let (ours, theirs) = (metrics[metric]["value"].as_f64().unwrap(), harness[metric].as_f64().unwrap());
        println!("{metric}: {ours}, of the harness {theirs}");
        // f32 sums in another order; the project's bar is 0.5 %.
        assert!((ours / theirs - 1.0).abs() < 1e-4, "{metric}: {ours} for {theirs}");
    }
}

/// The script that made the fixture has a plain loop over Transformers, too, for the beginnings of four development texts.
#[test]
fn transformers_gives_the_same_bits_per_byte() {
    let (Some(_), Some(folder), Some(fixture)) = (default_model(), shared("data/text"), fixture("rolling.json")) else { return };
    let theirs = &fixture["transformers"];
    let workdir = Workdir::new();
    let (n_bytes, n_rows) = (theirs["bytes"].as_u64().unwrap() as usize, theirs["rows"].as_u64().unwrap() as usize);
    let mut tasks = Vec::new();
    for name in theirs["bits_per_byte"].as_object().unwrap().keys() {
        let text = std::fs::read_to_string(folder.join(name)).unwrap();
        let excerpt = match name.ends_with(".jsonl") {
            true => text.split('\n').take(n_rows).collect::<Vec<_>>().join("\n"),
            false => text[..text.floor_char_boundary(n_bytes)].to_owned(),
        };
        workdir.write(name, excerpt);
        tasks.push(name.clone());
    }
    workdir.run(&["eval", "--tasks", &tasks.join(","), "--out", "out", "--max-len", &theirs["window"].to_string()]).ok();
    for (name, theirs) in theirs["bits_per_byte"].as_object().unwrap() {
        let task = name.split('.').next().unwrap();
        let ours = scores(&workdir, "out")["tasks"][task]["metrics"]["bits_per_byte"]["value"].as_f64().unwrap();
        let theirs = theirs.as_f64().unwrap();
        println!("{name}: {ours}, of Transformers {theirs}");
        // The project's bar is 0.5 %; f32 sums in another order differ by much less.
        assert!((ours / theirs - 1.0).abs() < 1e-4, "{name}: {ours} for {theirs}");
    }
}

#[test]
fn examples_stand_before_the_questions_and_are_recorded() {
    let workdir = workdir();
    let eval = |out: &str, more: &[&str]| {
        let arguments = [&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl", "--out", out], more].concat();
        workdir.run(&arguments)
    };
    eval("out", &[]).ok();
    assert_eq!(scores(&workdir, "out")["tasks"]["items"]["few_shot"], 0);
    let refused = eval("out", &["--fewshot", "1"]);
    // Of the items of a subject there are two and one.
    assert!(refused.code == Some(2) && refused.stderr.contains("`items` of `letters` has (0)"), "{}", refused.stderr);
    workdir.write("items.uniform.jsonl", ITEMS.replace("letters", "numbers"));
    let logprobs = |out: &str| -> Vec<f64> {
        let samples = diagnose::eval::samples::read(&workdir.path(out).join("samples.parquet")).unwrap();
        samples["items"].iter().flat_map(|item| &item.choices).map(|choice| choice.logprob).collect()
    };
    eval("zero", &[]).ok();
    eval("two", &["--fewshot", "2"]).ok();
    let task = &scores(&workdir, "two")["tasks"]["items"];
    assert_eq!((&task["few_shot"], &task["seed"]), (&2.into(), &1234.into()));
    // The same prompts written out by hand. The draw decides about the order alone: two examples are all the others.
    let first = |order: [&str; 2]| {
        let line = format!("{{\"context\":\"{}{}one two\",\"choices\":[\"three\",\"four\"],\"answer\":0}}\n", order[0], order[1]);
        workdir.write("hand.jsonl", line);
        workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "hand.jsonl", "--out", "hand"]).ok();
        diagnose::eval::samples::read(&workdir.path("hand").join("samples.parquet")).unwrap()["hand"][0].choices[0].logprob
    };
    let (b, c) = ("nil gamma\\n\\n", "one two  a much longer answer\\n\\n");
    let by_hand = [first([b, c]), first([c, b])];
    let found = logprobs("two")[0];
    assert!(by_hand.iter().any(|by_hand| (by_hand - found).abs() < 1e-4), "{found} for one of {by_hand:?}");
    assert!((found - logprobs("zero")[0]).abs() > 1e-2);
}

#[test]
fn benchmarks_read_the_users_copy_of_their_rows() {
    let workdir = workdir();
    let row = |premise: &str, label: u32| {
        format!(
            "{{\"premise\":\"{premise}\",\"choice1\":\"The cup fell.\",\"choice2\":\"It rained.\",\"question\":\"effect\",\"label\":{label}}}\n"
        )
    };
    workdir.write("rows.jsonl", row("He pushed it.", 0) + &row("The sky was dark.", 1));
    workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "copa=rows.jsonl", "--out", "out"]).ok();
    let task = &scores(&workdir, "out")["tasks"]["copa"];
    assert_eq!((&task["n"], &task["kind"], &task["data"]), (&2.into(), &"choice".into(), &"rows.jsonl".into()));
    // The choices keep the space that this benchmark gives them.
    let samples = diagnose::eval::samples::read(&workdir.path("out").join("samples.parquet")).unwrap();
    assert_eq!(samples["copa"][0].choices[0].chars, " the cup fell.".len() as u32);
    let refused = |tasks: &str, expected: &str| {
        let ran = workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", tasks, "--out", "bad"]);
        assert!(ran.code == Some(1) && ran.stderr.contains(expected), "{:?} {}", ran.code, ran.stderr);
    };
    workdir.write("bad.jsonl", row("He pushed it.", 0) + "\n{\"premise\":\"He\"}\n");
    refused("copa=bad.jsonl", "bad.jsonl:3: expected `choice1`");
    workdir.write("range.jsonl", row("He pushed it.", 2));
    refused("copa=range.jsonl", "range.jsonl:1: `answer` is 2, but there are 2 choices");
    refused("copa=nowhere.jsonl", "nowhere.jsonl");
    let listed = workdir.run(&["eval", "--tasks", "list"]).ok();
    assert!(["probe ", "hellaswag ", "xcopa_zh "].iter().all(|name| listed.stdout.contains(name)), "{}", listed.stdout);
    let listed = workdir.run(&["eval", "--tasks", "list", "--json"]).ok().json();
    let tasks: Vec<&Value> = listed.as_array().unwrap().iter().map(|task| &task["task"]).collect();
    assert!(tasks.len() > 20 && tasks.contains(&&"probe".into()) && tasks.contains(&&"hellaswag".into()), "{tasks:?}");
}

/// Made by a script beside it.
fn fixture(name: &str) -> Option<Value> {
    let path = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval").join(name);
    let Ok(bytes) = std::fs::read(path) else {
        absent(name, &format!("there is no tests/fixtures/eval/{name}; the script beside it makes it"));
        return None;
    };
    Some(serde_json::from_slice(&bytes).unwrap())
}

/// The bar of the project; f32 sums in another order differ by much less.
const TOLERANCE: f64 = 5e-3;
