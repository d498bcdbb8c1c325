//! Tests `diagnose diff` as a user runs it: two evaluations, two score runs, and combinations that do not match.

use crate::tiny_model;
use crate::workdir::{Workdir, absent, shared};

/// Forty questions about nothing.
fn workdir() -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    let item = |i: usize| {
        format!(
            "{{\"id\":\"q{i}\",\"context\":\"item {i}\",\"choices\":[\"a{i}\",\"b{}\",\"cc\"],\"answer\":{}}}\n",
            i * 7,
            i % 3
        )
    };
    workdir.write("items.uniform.jsonl", (0..40).map(item).collect::<String>());
    workdir
}

fn eval(workdir: &Workdir, out: &str, more: &[&str]) {
    workdir.run(&[&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl", "--out", out], more].concat()).ok();
}

#[test]
fn a_model_against_itself_differs_by_nothing() {
    let workdir = workdir();
    eval(&workdir, "a", &[]);
    eval(&workdir, "b", &[]);
    let ran = workdir.run(&["diff", "a", "b", "--out", "d", "--fail-on-drop", "0", "--json"]).ok();
    let found = ran.json();
    let task = &found["tasks"]["items"];
    assert_eq!((&task["n"], &task["metrics"]["acc"]["difference"]["value"]), (&40.into(), &0.0.into()));
    assert!(task["flips"]["lost"].as_array().unwrap().is_empty() && task["flips"]["gained"].as_array().unwrap().is_empty());
    assert_eq!((&task["metrics"]["acc"]["p"], &found["macro_average"]["difference"]["value"]), (&1.0.into(), &0.0.into()));
    for file in ["diff.json", "diff.md", "diff.html", "forest.png", "forest.svg"] {
        assert!(workdir.path("d").join(file).exists(), "{file}");
    }
    let html = std::fs::read_to_string(workdir.path("d/diff.html")).unwrap();
    assert!(html.starts_with("<section") && html.contains("<svg") && html.contains("McNemar's"), "{html}");
    assert!(found["divergence"]["unavailable"].as_str().unwrap().contains("--kl"));
}

/// All training runs leave their result under the same name.
#[test]
fn models_of_one_name_are_called_after_their_paths() {
    let workdir = workdir();
    for (run, noise) in [("one", 0.1), ("two", 0.2)] {
        std::fs::create_dir_all(workdir.path(run)).unwrap();
        tiny_model::write_noised(&workdir.path(run).join("model.gguf"), noise);
        let model = format!("{run}/model.gguf");
        let command = ["eval", "--model", &model, "--tasks", "items.uniform.jsonl", "--out", &format!("{run}-scores")];
        workdir.run(&command).ok();
    }
    let heading = |more: &[&str]| {
        let tasks: &[&str] =
            if more.iter().any(|side| side.ends_with(".gguf")) { &["--tasks", "items.uniform.jsonl"] } else { &[] };
        let found = workdir.run(&[&["diff", "--json"], tasks, more].concat()).ok().json();
        format!("{} -> {}", found["before"].as_str().unwrap(), found["after"].as_str().unwrap())
    };
    let by_model = "one/model.gguf -> two/model.gguf";
    assert_eq!(heading(&["one/model.gguf", "two/model.gguf"]), by_model);
    assert_eq!(heading(&["one-scores", "two-scores"]), by_model);
    assert_eq!(heading(&["one-scores", "two/model.gguf"]), by_model);
    // One model, evaluated twice: the folders are what differs.
    let again = ["eval", "--model", "./one/model.gguf", "--tasks", "items.uniform.jsonl", "--out", "again"];
    workdir.run(&again).ok();
    assert_eq!(heading(&["one-scores", "again"]), "one-scores -> again");
    // Names that differ stay.
    eval(&workdir, "tiny", &[]);
    assert_eq!(heading(&["tiny", "one-scores"]), "tiny -> model");
    let shown = workdir.run(&["diff", "one-scores", "two-scores", "--out", "d"]).ok().stdout;
    assert!(shown.starts_with(by_model), "{shown}");
    assert!(std::fs::read_to_string(workdir.path("d/diff.md")).unwrap().contains(by_model));
    // Several runs since one.
    let command = ["diff", "one/model.gguf", "two/model.gguf", "tiny.gguf", "--tasks", "items.uniform.jsonl,probe"];
    let several = workdir.run(&[&command[..], &["--target", "items", "--limit", "20", "--json"]].concat()).ok().json();
    assert_eq!((&several["before"], &several["runs"][0]["name"]), (&"model".into(), &"two/model.gguf".into()));
}

/// Folders are compared with the settings they were evaluated with.
#[test]
fn options_of_an_evaluation_are_refused_where_nothing_is_evaluated() {
    let workdir = workdir();
    eval(&workdir, "a", &[]);
    for option in [&["--limit", "3"][..], &["--apply-chat-template"], &["--max-len", "64"], &["--seed", "1234"]] {
        let refused = workdir.run(&[&["diff", "a", "a"], option].concat());
        let expected = format!("{} has no effect", option[0]);
        assert!(refused.code == Some(2) && refused.stderr.contains(&expected), "{option:?}: {}", refused.stderr);
    }
    // Options for running the models behind the folders apply to the divergence; options for asking questions do not.
    workdir.run(&["diff", "a", "a", "--kl", "--max-len", "64"]).ok();
    assert_eq!(workdir.run(&["diff", "a", "a", "--kl", "--limit", "3"]).code, Some(2));
    // A model is evaluated by them.
    workdir.run(&["diff", "a", "tiny.gguf", "--tasks", "items.uniform.jsonl", "--device", "cpu"]).ok();
}

/// The longest line that the program prints on a terminal of `columns` columns.
fn longest_line(workdir: &Workdir, arguments: &[&str], columns: usize) -> Option<(usize, String)> {
    let program = env!("CARGO_BIN_EXE_diagnose");
    let shell = format!("stty rows 24 cols {columns} && {program} {} 2> said", arguments.join(" "));
    let mut command = std::process::Command::new("script");
    command.args(["-qec", &shell, "/dev/null"]).current_dir(workdir.path("")).stdin(std::process::Stdio::null());
    let Ok(ran) = command.output() else {
        absent("script", "there is no `script`, which gives a program a terminal");
        return None;
    };
    let text = String::from_utf8_lossy(&ran.stdout).into_owned();
    assert!(ran.status.success(), "{text}");
    let seen = |line: &str| {
        let mut parts = line.trim_end_matches('\r').split('\x1b');
        let first = parts.next().unwrap_or_default().chars().count();
        first + parts.map(|part| part.split_once('m').map_or(0, |(_, rest)| rest.chars().count())).sum::<usize>()
    };
    Some((text.lines().map(seen).max().unwrap(), text))
}

#[test]
fn what_is_printed_fits_the_terminal() {
    let workdir = workdir();
    for (model, out) in [("tiny.gguf", "a"), ("noised.gguf", "b")] {
        tiny_model::write_noised(&workdir.path("noised.gguf"), 0.2);
        workdir.run(&["eval", "--model", model, "--tasks", "items.uniform.jsonl,probe", "--limit", "20", "--out", out]).ok();
        let row = |i: usize| {
            format!(r#"{{"messages":[{{"role":"user","content":"{i}?"}},{{"role":"assistant","content":"{i} the fox"}}]}}"#)
        };
        workdir.write("rows.jsonl", (0..20).map(row).collect::<Vec<_>>().join("\n"));
        workdir.run(&["rows.jsonl", "--model", model, "--out", &format!("{out}-scores"), "--no-view"]).ok();
    }
    for (sides, parts) in [(["a", "b"], ["p (Holm)", "macro average"]), (["a-scores", "b-scores"], ["uncertain", "entropy"])] {
        let command = ["diff", sides[0], sides[1]];
        for columns in [80, 100, 200] {
            let Some((longest, text)) = longest_line(&workdir, &command, columns) else { return };
            assert!(longest <= columns && parts.iter().all(|part| text.contains(part)), "{longest} of {columns}\n{text}");
        }
        // Lines are not wrapped if the output is no terminal.
        assert!(workdir.run(&command).ok().stdout.lines().any(|line| line.chars().count() > 80));
    }
}

/// Questions whose answers are what the tiny model picks, so that it is always right.
fn its_own_answers(workdir: &Workdir) {
    eval(workdir, "picks", &[]);
    let picked = diagnose::eval::samples::read(&workdir.path("picks").join("samples.parquet")).unwrap();
    let lines = std::fs::read_to_string(workdir.path("items.uniform.jsonl")).unwrap();
    let item = |(i, line): (usize, &str)| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["answer"] = picked["items"][i].picked(|_| 1.0).into();
        format!("{row}\n")
    };
    workdir.write("items.uniform.jsonl", lines.lines().enumerate().map(item).collect::<String>());
}

#[test]
fn two_models_are_evaluated_on_the_spot_and_noise_is_found() {
    let workdir = workdir();
    its_own_answers(&workdir);
    tiny_model::write_noised(&workdir.path("noised.gguf"), 0.2);
    let diff = |after: &str, more: &[&str]| {
        let arguments = ["diff", "tiny.gguf", after, "--tasks", "items.uniform.jsonl", "--fail-on-drop", "2", "--json"];
        workdir.run(&[&arguments[..], more].concat())
    };
    let same = diff("tiny.gguf", &[]).ok().json();
    assert_eq!(same["tasks"]["items"]["metrics"]["acc"]["before"], 1.0);
    for (name, metric) in same["tasks"]["items"]["metrics"].as_object().unwrap() {
        assert_eq!(metric["difference"]["value"], 0.0, "{name}");
        // No flips among a few items do not prove that nothing changed.
        assert!(metric["difference"]["ci95"][0].as_f64().unwrap() < 0.0, "{name}");
    }
    assert_eq!(same["divergence"]["mean"]["value"], 0.0);
    let noised = diff("noised.gguf", &["--out", "d"]);
    assert_eq!(noised.code, Some(3), "{}", noised.stderr);
    let found = noised.json();
    assert!(found["tasks"]["items"]["metrics"]["acc"]["difference"]["value"].as_f64().unwrap() < -0.1, "{found}");
    assert!(found["divergence"]["mean"]["value"].as_f64().unwrap() > 0.01, "{found}");
    // Each model has one folder, and a second comparison evaluates nothing.
    let folders = || std::fs::read_dir(workdir.path("runs")).unwrap().map(|entry| entry.unwrap().path()).collect::<Vec<_>>();
    assert_eq!(folders().len(), 2);
    let written = |path: &std::path::PathBuf| std::fs::metadata(path.join("samples.parquet")).unwrap().modified().unwrap();
    let before: Vec<_> = folders().iter().map(written).collect();
    assert_eq!(diff("noised.gguf", &[]).code, Some(3));
    assert_eq!(folders().iter().map(written).collect::<Vec<_>>(), before);
    // These folders also contain other tasks, which are not compared.
    let lines = std::fs::read_to_string(workdir.path("items.uniform.jsonl")).unwrap();
    workdir.write("others.uniform.jsonl", &lines);
    workdir.run(&["diff", "tiny.gguf", "noised.gguf", "--tasks", "others.uniform.jsonl"]).ok();
    let again = diff("noised.gguf", &[]).json();
    assert_eq!((&again["tasks"], &again["macro_average"]), (&found["tasks"], &found["macro_average"]));
}

#[test]
fn runs_are_set_against_their_target() {
    let workdir = workdir();
    its_own_answers(&workdir);
    let lines = std::fs::read_to_string(workdir.path("items.uniform.jsonl")).unwrap();
    workdir.write("general.jsonl", &lines);
    // The same questions with wrong answers: there is only something to be gained.
    let wrong = |line: &str| {
        let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
        row["answer"] = ((row["answer"].as_u64().unwrap() + 1) % 3).into();
        format!("{row}\n")
    };
    workdir.write("target.jsonl", lines.lines().map(wrong).collect::<String>());
    let both = ["eval", "--tasks", "general.jsonl,target.jsonl"];
    for (name, noise) in [("base", 0.0), ("little", 0.05), ("much", 0.3)] {
        tiny_model::write_noised(&workdir.path("tuned.gguf"), noise);
        workdir.run(&[&both[..], &["--model", "tuned.gguf", "--out", name]].concat()).ok();
    }
    let retention = ["diff", "base", "little", "much", "--target", "target", "--out", "d"];
    let ran = workdir.run(&[&retention[..], &["--fail-on-drop", "2"]].concat());
    assert!(ran.code == Some(3) && ran.stderr.contains("general average of much"), "{:?} {}", ran.code, ran.stderr);
    let found = workdir.run(&[&retention[..], &["--json"]].concat()).ok().json();
    let runs = found["runs"].as_array().unwrap();
    assert_eq!([&runs[0]["name"], &runs[1]["name"]], ["little", "much"]);
    let value = |average: &serde_json::Value| average["difference"]["value"].as_f64().unwrap();
    assert!(value(&runs[1]["target"]) > 0.0 && value(&runs[1]["general"]) < 0.0, "{found}");
    for file in ["diff.json", "diff.md", "diff.html", "retention.png", "retention.svg"] {
        assert!(workdir.path("d").join(file).exists(), "{file}");
    }
    let several = workdir.run(&["diff", "base", "little", "much"]);
    assert!(several.code == Some(2) && several.stderr.contains("--target"), "{}", several.stderr);
    let unknown = workdir.run(&["diff", "base", "little", "--target", "law"]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains("general, target"), "{}", unknown.stderr);

    // For folders, --tasks selects what is compared; options for evaluating a model have no effect.
    let chosen = workdir.run(&["diff", "base", "much", "--tasks", "target", "--json"]).ok().json();
    assert_eq!(chosen["tasks"].as_object().unwrap().keys().collect::<Vec<_>>(), ["target"]);
    assert_eq!(chosen["macro_average"]["tasks"], serde_json::json!(["target"]));
    let unknown = workdir.run(&["diff", "base", "much", "--tasks", "law"]);
    assert!(unknown.code == Some(2) && unknown.stderr.contains("--tasks names `law`"), "{}", unknown.stderr);
    for (option, value) in [("--limit", "3"), ("--temperature", "0.5"), ("--dtype", "bf16"), ("--seed", "2")] {
        let ran = workdir.run(&["diff", "base", "much", option, value]);
        assert!(ran.code == Some(2) && ran.stderr.contains(&format!("{option} has no effect")), "{}", ran.stderr);
    }
    // Remarks on a comparison of two also apply to each of several runs.
    workdir.run(&[&both[..], &["--model", "tuned.gguf", "--system", "S", "--out", "asked"]].concat()).ok();
    let ran = workdir.run(&["diff", "base", "little", "asked", "--target", "target"]);
    assert!(ran.code == Some(1) && ran.stderr.contains("which differ in --system"), "{}", ran.stderr);
    workdir.run(&[&both[..], &["--model", "tuned.gguf", "--fewshot", "1", "--out", "shown"]].concat()).ok();
    let ran = workdir.run(&["diff", "base", "little", "shown", "--target", "target"]).ok();
    assert!(ran.stdout.contains("shown: target was asked with 0 examples before and with 1"), "{}", ran.stdout);
}

/// The answers are the choices that the model picks; in the copy that it is compared with, all but one are wrong.
#[test]
fn a_drop_is_found_and_fails_the_check() {
    let workdir = workdir();
    eval(&workdir, "first", &[]);
    let picked = diagnose::eval::samples::read(&workdir.path("first").join("samples.parquet")).unwrap();
    let rewrite = |answer: &dyn Fn(usize, usize) -> usize| -> String {
        let lines = std::fs::read_to_string(workdir.path("items.uniform.jsonl")).unwrap();
        let item = |(i, line): (usize, &str)| {
            let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
            row["answer"] = answer(i, picked["items"][i].picked(|_| 1.0)).into();
            format!("{row}\n")
        };
        lines.lines().enumerate().map(item).collect()
    };
    let right = rewrite(&|_, picked| picked);
    // With the order of the choices reversed and the answer in its old place, the model picks another choice.
    let turned: String = right
        .lines()
        .map(|line| {
            let mut row: serde_json::Value = serde_json::from_str(line).unwrap();
            let choices = row["choices"].as_array_mut().unwrap();
            choices.rotate_left(1);
            format!("{row}\n")
        })
        .collect();
    workdir.write("items.uniform.jsonl", right);
    eval(&workdir, "before", &[]);
    workdir.write("items.uniform.jsonl", turned);
    eval(&workdir, "after", &["--limit", "30"]);
    let ran = workdir.run(&["diff", "before", "after", "--fail-on-drop", "2.0", "--out", "d"]);
    assert!(ran.code == Some(3) && ran.stderr.contains("significantly more than 2"), "{:?} {}", ran.code, ran.stderr);
    // Written and shown all the same, with what is on one side only.
    assert!(ran.stdout.contains("items of items only before: 10 (q30"), "{}", ran.stdout);
    assert!(ran.stdout.contains("a different one"), "{}", ran.stdout);
    let report = std::fs::read_to_string(workdir.path("d/diff.md")).unwrap();
    assert!(report.contains("lost (30): `q0`, `q1`"), "{report}");
    workdir.run(&["diff", "after", "before", "--fail-on-drop", "2.0"]).ok();
}

#[test]
fn score_runs_show_how_tokens_moved() {
    let workdir = workdir();
    let row = |i: usize| {
        format!(
            "{{\"messages\":[{{\"role\":\"user\",\"content\":\"say {i}\"}},{{\"role\":\"assistant\",\"content\":\"{}\"}}]}}\n",
            i * 31
        )
    };
    workdir.write("rows.jsonl", (0..6).map(row).collect::<String>());
    let score = |out: &str, more: &[&str]| {
        workdir.run(&[&["rows.jsonl", "--model", "tiny.gguf", "--out", out], more].concat()).ok();
    };
    score("a", &[]);
    score("b", &["--limit", "4", "--thresholds", "p=0.001,H=9"]);
    let found = workdir.run(&["diff", "a", "b", "--json", "--out", "d"]).ok().json();
    let moved: u64 =
        found["moved"].as_array().unwrap().iter().flat_map(|row| row.as_array().unwrap()).map(|n| n.as_u64().unwrap()).sum();
    assert_eq!(found["tokens"].as_u64(), Some(moved));
    assert!(moved > 0 && found["tokens_only_before"].as_u64().unwrap() > 0 && found["tokens_only_after"] == 0);
    // The same model: nothing but the thresholds moved them. Other batches sum in another order.
    for mean in ["logprob", "entropy"] {
        assert!(found["overall"][mean].as_f64().unwrap().abs() < 1e-5, "{found}");
    }
    let diagonal: u64 = (0..4).map(|i| found["moved"][i][i].as_u64().unwrap()).sum();
    assert!(diagonal < moved);
    assert!(workdir.path("d/movement.png").exists() && workdir.path("d/diff.html").exists());
    let distance = workdir.run(&["diff", "a", "b", "--json", "--kl"]).ok().json();
    assert_eq!(distance["divergence"]["mean"]["value"], 0.0, "the same model");
    let same = workdir.run(&["diff", "a", "a"]).ok();
    assert!(same.stdout.contains("0 only before, 0 only after") && same.stdout.contains("logprob +0.0000"), "{}", same.stdout);
    // Options for evaluations are refused before anything is compared, and so are sides of two kinds.
    eval(&workdir, "evaluated", &["--limit", "2"]);
    for (arguments, expected) in [
        (&["a", "b", "--fail-on-drop", "1"][..], "--fail-on-drop is for evaluations"),
        (&["a", "b", "--tasks", "items"], "--tasks is for evaluations"),
        (&["a", "evaluated"], "one folder is an evaluation, the other a score run"),
        (&["a", "b", "a"], "score runs are compared two at a time"),
        (&["evaluated", "evaluated", "evaluated"], "several runs after one before need --target"),
    ] {
        let refused = workdir.run(&[&["diff"], arguments].concat());
        assert!(refused.code == Some(2) && refused.stderr.contains(expected), "{arguments:?}: {}", refused.stderr);
    }
}

#[test]
fn what_does_not_fit_together_is_refused() {
    let workdir = workdir();
    eval(&workdir, "a", &["--limit", "2"]);
    std::fs::create_dir(workdir.path("empty")).unwrap();
    let check = |arguments: &[&str], code: i32, expected: &str| {
        let ran = workdir.run(&[&["diff"], arguments].concat());
        assert!(ran.code == Some(code) && ran.stderr.contains(expected), "{:?} {}", ran.code, ran.stderr);
    };
    check(&["a", "empty"], 2, "expected a folder with scores.json or tokens.parquet");
    check(&["a", "nowhere"], 2, "nowhere");
    check(&["a", "a", "--fail-on-drop", "-1"], 2, "");
    workdir.write("other.jsonl", "{\"context\":\"x\",\"continuation\":\"y\"}\n");
    workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "other.jsonl", "--out", "b"]).ok();
    check(&["a", "b"], 1, "no items in common");
    std::fs::remove_file(workdir.path("b/samples.parquet")).unwrap();
    check(&["a", "b"], 1, "samples.parquet");
    eval(&workdir, "c", &["--limit", "2", "--system", "S"]);
    check(&["a", "c"], 1, "nothing in the two can be compared: `items` was asked in two ways");
}

/// A file for each kind of task of the harness, made with the numbers of scipy and statsmodels by tests/fixtures/eval/samples.py.
#[test]
fn the_harness_files_differ_by_what_scipy_and_statsmodels_make_of_their_metrics() {
    let fixture = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/eval/samples");
    let expected: serde_json::Value = serde_json::from_slice(&std::fs::read(fixture.join("expected.json")).unwrap()).unwrap();
    let workdir = Workdir::new();
    let [before, after] = ["before", "after"].map(|side| fixture.join(side).to_str().unwrap().to_owned());
    let found = workdir.run(&["diff", &before, &after, "--json"]).ok().json();
    let mut n = 0;
    for (task, metrics) in expected.as_object().unwrap() {
        for (metric, expected) in metrics.as_object().unwrap() {
            let own = &found["tasks"][task]["metrics"][metric];
            for (pointer, key) in [
                ("/before", "before"),
                ("/after", "after"),
                ("/difference/value", "difference"),
                ("/difference/stderr", "stderr"),
            ] {
                let (own, expected) = (own.pointer(pointer).and_then(|x| x.as_f64()), expected[key].as_f64().unwrap());
                // Perplexities are sums of some hundred terms, of the size of 20.
                let close = own.is_some_and(|own| (own - expected).abs() <= 1e-12 * expected.abs().max(1.0));
                assert!(close, "{task}, {metric}, {key}: {own:?} for {expected}");
                n += 1;
            }
        }
    }
    assert_eq!(n, 4 * 19, "every metric of every task");
    assert_eq!(found["tasks"].as_object().unwrap().len(), expected.as_object().unwrap().len());
    assert_eq!(
        (&found["tasks"]["sciq"]["prompts_differ"], &found["tasks"]["arc_easy"]["prompts_differ"]),
        (&24.into(), &0.into())
    );
    let skipped: Vec<&str> = found["skipped"].as_array().unwrap().iter().map(|reason| reason.as_str().unwrap()).collect();
    for (file, reason) in [("samples_cut_", ""), ("samples_cola_", "mcc"), ("`other_documents`", "doc_hash")] {
        assert!(skipped.iter().any(|text| text.contains(file) && text.contains(reason)), "{file}: {skipped:?}");
    }
}

/// Files that the harness itself wrote: shares and means, whose standard error is the sample deviation of the differences over sqrt(n).
#[test]
fn files_of_the_harness_itself_are_compared_by_their_own_metrics() {
    let Some(samples) = shared("cases/train/samples") else { return };
    let workdir = Workdir::new();
    for (before, after) in [("tiny", "tiny2"), ("mmlu_good", "mmlu_tiny2")] {
        let [before, after] = [before, after].map(|name| samples.join(name));
        let found = workdir.run(&["diff", before.to_str().unwrap(), after.to_str().unwrap(), "--json"]).ok().json();
        let mut compared = 0;
        for (task, change) in found["tasks"].as_object().unwrap() {
            for (metric, own) in change["metrics"].as_object().unwrap() {
                let (name, filter) = metric.split_once(',').unwrap_or((metric, "none"));
                if name == "perplexity" {
                    continue;
                }
                let values = |folder: &std::path::Path| -> Vec<f64> {
                    let prefix = format!("samples_{task}_2");
                    let files = std::fs::read_dir(folder).unwrap().map(|entry| entry.unwrap().path());
                    let newest =
                        files.filter(|path| path.file_name().unwrap().to_str().unwrap().starts_with(&prefix)).max().unwrap();
                    let text = std::fs::read_to_string(newest).unwrap();
                    let rows = text
                        .split('\n')
                        .filter(|line| !line.is_empty())
                        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
                    let mut of_docs: Vec<(u64, f64)> = rows
                        .filter(|row| row["filter"] == filter)
                        .map(|row| (row["doc_id"].as_u64().unwrap(), row[name].as_f64().unwrap()))
                        .collect();
                    of_docs.sort_by_key(|(doc, _)| *doc);
                    of_docs.into_iter().map(|(_, value)| value).collect()
                };
                let (old, new) = (values(&before), values(&after));
                let n = old.len() as f64;
                let differences: Vec<f64> = old.iter().zip(&new).map(|(old, new)| new - old).collect();
                let mean = differences.iter().sum::<f64>() / n;
                let squares: f64 = differences.iter().map(|difference| (difference - mean).powi(2)).sum();
                let close = |key: &str, expected: f64| {
                    let found = own["difference"][key].as_f64().unwrap();
                    assert!((found - expected).abs() < 1e-12, "{task}, {metric}, {key}: {found} for {expected}");
                };
                close("value", mean);
                close("stderr", (squares / (n - 1.0) / n).sqrt());
                compared += 1;
            }
        }
        assert!(compared >= 3, "{compared}");
        if let Some(group) = found["groups"].get("y_mmlu") {
            assert_eq!((group["n"].as_u64(), group["tasks"].as_array().unwrap().len()), (Some(180), 3));
        } else {
            assert!(before.ends_with("tiny"), "the subjects are no group");
        }
    }
    // A group as the target, and what is left beside it.
    for (side, folders) in [("old", ["mmlu_good", "tiny"]), ("new", ["mmlu_tiny2", "tiny2"])] {
        std::fs::create_dir(workdir.path(side)).unwrap();
        for entry in folders.iter().flat_map(|folder| std::fs::read_dir(samples.join(folder)).unwrap()) {
            let path = entry.unwrap().path();
            std::fs::copy(&path, workdir.path(side).join(path.file_name().unwrap())).unwrap();
        }
    }
    let found = workdir.run(&["diff", "old", "new", "--target", "y_mmlu", "--json"]).ok().json();
    let run = &found["runs"][0];
    assert_eq!(run["target"]["tasks"], serde_json::json!(["y_mmlu"]));
    assert_eq!(run["target"]["difference"]["value"], run["target_groups"]["y_mmlu"]["by_items"]["difference"]["value"]);
    assert_eq!(run["general"]["tasks"].as_array().unwrap().len(), 5);
}
