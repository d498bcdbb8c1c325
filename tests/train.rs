//! Tests `diagnose train` from outside: its results, resuming after a kill or an interrupt, agreement with scoring, and refusals.

use std::path::Path;
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

use diagnose::diagnosis::gate::METHODS;
use diagnose::table::{Column, read_chunks};
use serde_json::Value;

use crate::tiny_model;
use crate::workdir::{Ran, Workdir};

/// A folder with the tiny model and some rows.
fn prepared(rows: usize) -> Workdir {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", foxes(0..rows));
    workdir
}

fn foxes(rows: std::ops::Range<usize>) -> String {
    let row = |i: usize| {
        let answer = "the quick brown fox jumps over the lazy dog ".repeat(1 + i % 3);
        format!(r#"{{"messages":[{{"role":"user","content":"Question {i}?"}},{{"role":"assistant","content":"{i} {answer}"}}]}}"#)
    };
    rows.map(row).collect::<Vec<_>>().join("\n")
}

/// `train rows.jsonl --model tiny.gguf` and what else is asked.
fn arguments<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&["train", "rows.jsonl", "--model", "tiny.gguf"], more].concat()
}

/// metrics.jsonl without the values that depend on the clock.
fn metrics(folder: &Path) -> Vec<Value> {
    let text = std::fs::read_to_string(folder.join("metrics.jsonl")).unwrap();
    let without_clock = |line: &str| {
        let mut metrics: Value = serde_json::from_str(line).unwrap();
        assert!(metrics.as_object_mut().unwrap().remove("tokens_per_second").is_some());
        metrics
    };
    text.lines().map(without_clock).collect()
}

#[track_caller]
fn refused(ran: Ran, code: i32, expected: &str) {
    assert_eq!(ran.code, Some(code), "{}", ran.stderr);
    assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
}

fn number(value: &Value) -> f64 {
    value.as_f64().unwrap_or_else(|| panic!("{value} is no number"))
}

#[test]
fn killed_and_run_again_gives_the_same_bits() {
    let workdir = prepared(120);
    for (kind, result) in
        [(vec![], "model/model.safetensors"), (vec!["--lora", "--lora-dropout", "0.1"], "adapter/adapter_model.safetensors")]
    {
        let options =
            ["--batch-size", "4", "--save-every", "1", "--lr", "1e-2", "--validation-share", "0.1", "--moments", "bf16"];
        let command = |out: &'static str| arguments(&[&["--out", out], &options[..], &kind[..]].concat());
        let out = if kind.is_empty() { ["full", "full-killed"] } else { ["lora", "lora-killed"] };
        let began = Instant::now();
        workdir.run(&command(out[0])).ok();
        let whole = began.elapsed();
        for moment in 1..8u32 {
            let mut child = workdir.command(&command(out[1])).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole * moment / 9);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        workdir.run(&command(out[1])).ok();
        assert_eq!(metrics(&workdir.path(out[0])), metrics(&workdir.path(out[1])));
        let bytes = |out: &str| std::fs::read(workdir.path(out).join(result)).unwrap();
        assert!(bytes(out[0]) == bytes(out[1]), "{result} differs after the kills");
        let checkpoints = std::fs::read_dir(workdir.path(out[1]).join("checkpoints")).unwrap();
        let visible = checkpoints.filter(|entry| !entry.as_ref().unwrap().file_name().to_string_lossy().starts_with('.'));
        assert_eq!(visible.count(), 1, "one checkpoint is kept");
    }
}

#[cfg(unix)]
#[test]
fn an_interrupt_ends_the_step_saves_and_says_how_to_go_on() {
    let workdir = prepared(200);
    let command = arguments(&["--out", "run", "--batch-size", "1", "--epochs", "50"]);
    let mut child = workdir.command(&command).stderr(Stdio::piped()).stdout(Stdio::null()).spawn().unwrap();
    let metrics = workdir.path("run").join("metrics.jsonl");
    wait_for(&mut child, || std::fs::metadata(&metrics).is_ok_and(|file| file.len() > 0));
    let interrupt = std::process::Command::new("kill").args(["-INT", &child.id().to_string()]).status().unwrap();
    assert!(interrupt.success());
    let output = child.wait_with_output().unwrap();
    let message = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1), "{message}");
    assert!(message.contains("interrupted after step") && message.contains("same command"), "{message}");
    let checkpoints: Vec<_> = std::fs::read_dir(workdir.path("run").join("checkpoints")).unwrap().collect();
    assert_eq!(checkpoints.len(), 1);
}

fn wait_for(child: &mut Child, ready: impl Fn() -> bool) {
    let began = Instant::now();
    while !ready() {
        assert!(began.elapsed() < Duration::from_secs(60), "training did not begin");
        assert!(child.try_wait().unwrap().is_none(), "training ended early");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn the_first_loss_is_the_weighted_sum_over_the_score_table() {
    let workdir = prepared(12);
    for dtype in ["f32", "bf16", "bf16x3"] {
        let scores = format!("scores-{dtype}");
        workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--dtype", dtype, "--out", &scores]).ok();
        let (mut weighted, mut plain, mut n) = (0.0, 0.0, 0);
        for chunk in read_chunks(&[workdir.path(&scores).join("tokens.parquet")], &[Column::Logprob, Column::EntropyTopk]) {
            let chunk = chunk.unwrap();
            for (logprob, entropy) in chunk.logprob.iter().zip(&chunk.entropy_topk) {
                weighted += f64::from(*entropy) * -f64::from(*logprob);
                plain -= f64::from(*logprob);
                n += 1;
            }
        }
        for (method, sum) in [("eaft", weighted), ("sft", plain)] {
            for kind in [&[][..], &["--lora"]] {
                let out = format!("{method}-{dtype}{}", kind.concat());
                // The warm-up of a single step would leave nothing to learn.
                let options = ["--out", &out, "--method", method, "--batch-size", "12", "--dtype", dtype, "--warmup-steps", "0"];
                workdir.run(&arguments(&[&options[..], kind].concat())).ok();
                let first = &metrics(&workdir.path(&out))[0];
                // The same statistics to the bit; only the order of the sum differs.
                assert!((number(&first["loss"]) - sum / n as f64).abs() < 1e-9, "{out}: {first}");
                assert_eq!(first["supervised"], n);
                assert!((number(&first["cross_entropy"]) - plain / n as f64).abs() < 1e-9);
            }
        }
    }
}

#[test]
fn a_turn_counts_by_its_weight() {
    let workdir = prepared(0);
    let row = |i: usize, weight: f64| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"Is {i} even?"}},{{"role":"assistant","content":"Let me see.","weight":{weight}}},
            {{"role":"user","content":"Well?"}},{{"role":"assistant","content":"The answer to {i} is {}."}}]}}"#,
            i.is_multiple_of(2)
        )
        .replace('\n', "")
    };
    workdir.write("rows.jsonl", (0..6).map(|i| row(i, 0.25)).collect::<Vec<_>>().join("\n"));
    workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "scores"]).ok();
    let (mut sum, mut n) = (0.0, 0.0);
    for chunk in read_chunks(&[workdir.path("scores/tokens.parquet")], &[Column::Logprob, Column::Turn]) {
        let chunk = chunk.unwrap();
        for (logprob, turn) in chunk.logprob.iter().zip(&chunk.turn) {
            let weight = if *turn == 1 { 0.25 } else { 1.0 };
            (sum, n) = (sum - weight * f64::from(*logprob), n + weight);
        }
    }
    workdir.run(&arguments(&["--out", "sft", "--method", "sft", "--batch-size", "6", "--warmup-steps", "0"])).ok();
    let first = &metrics(&workdir.path("sft"))[0];
    assert!((number(&first["loss"]) - sum / n).abs() < 1e-9, "{first} {}", sum / n);
    assert!((number(&first["mean_weight"]) * number(&first["supervised"]) - n).abs() < 1e-9);
}

#[test]
fn what_is_trained_is_learned_saved_and_read_again() {
    let workdir = prepared(24);
    workdir.write("held.jsonl", foxes(24..27));
    for (out, result, kind) in
        [("full", "model", vec!["--lr", "3e-3"]), ("lora", "model", vec!["--lora", "--merge", "--lr", "3e-2"])]
    {
        let common = [
            "--out",
            out,
            "--method",
            "sft",
            "--batch-size",
            "8",
            "--epochs",
            "12",
            "--eval-every",
            "3",
            "--validation",
            "held.jsonl",
        ];
        workdir.run(&arguments(&[&common[..], &kind[..]].concat())).ok();
        let steps = metrics(&workdir.path(out));
        assert_eq!(steps.len(), 36);
        let (first, last) = (number(&steps[0]["cross_entropy"]), number(&steps[35]["cross_entropy"]));
        assert!(last < 0.7 * first, "{out}: cross-entropy {first} and {last}");
        assert!(number(&steps[35]["drift"]["kl"]) > number(&steps[2]["drift"]["kl"]));
        let run: Value = serde_json::from_slice(&std::fs::read(workdir.path(out).join("run.json")).unwrap()).unwrap();
        assert_eq!(run["steps"], 36);
        // The base is unchanged, and the adapter helps on the held-out rows.
        assert_eq!(number(&run["before"]["drift"]["kl"]), 0.0);
        assert!(number(&run["before"]["validation"]["cross_entropy"]) > 1.3 * number(&run["validation"]["cross_entropy"]));
        for figure in ["dynamics.png", "loss.png", "drift.png"] {
            assert!(std::fs::read(workdir.path(out).join("maps").join(figure)).unwrap().starts_with(b"\x89PNG"));
        }
        assert_eq!(workdir.path(out).join("adapter").exists(), out == "lora");
        // The saved model, loaded as any other, has the held-out loss that the run ends with, up to the rounding of merged weights: every
        // matrix is as it was learnt.
        let saved = workdir.path(out).join(result);
        let scored = format!("{out}-scored");
        workdir.run(&["held.jsonl", "--model", &saved.to_string_lossy(), "--out", &scored]).ok();
        let (sum, n) = cross_entropy(&workdir.path(&scored));
        let (found, expected) = (sum / n as f64, number(&run["validation"]["cross_entropy"]));
        assert_eq!(n, run["validation"]["tokens"].as_u64().unwrap());
        assert!((found - expected).abs() < 1e-5, "{out}: the saved model's cross-entropy is {found}, the run's {expected}");
    }
}

#[test]
fn twenty_rows_can_be_learnt_by_heart() {
    let workdir = prepared(20);
    // Adapters leave the random vocabulary matrix and the last norm as they are, and so the largest logit.
    for (out, kind, near_zero) in [
        ("full", vec!["--lr", "5e-3"], 0.02),
        ("bf16", vec!["--lr", "5e-3", "--dtype", "bf16"], 0.02),
        ("bf16x3", vec!["--lr", "5e-3", "--dtype", "bf16x3"], 0.02),
        ("lora", vec!["--lora", "--lr", "1e-2"], 0.4),
    ] {
        let common = ["--out", out, "--method", "sft", "--batch-size", "5", "--epochs", "100"];
        workdir.run(&arguments(&[&common[..], &kind[..]].concat())).ok();
        let steps = metrics(&workdir.path(out));
        let last = number(&steps.last().unwrap()["cross_entropy"]);
        assert!(last < near_zero, "{out}: cross-entropy {} at first, {last} at last", steps[0]["cross_entropy"]);
    }
}

#[test]
fn divergence_is_caught_with_its_step_and_rows_and_the_last_checkpoint_is_kept() {
    let workdir = prepared(12);
    let options =
        ["--out", "run", "--batch-size", "2", "--lr", "9e5", "--warmup-steps", "4", "--save-every", "1", "--method", "sft"];
    let ran = workdir.run(&arguments(&options));
    assert_eq!(ran.code, Some(1), "{}", ran.stderr);
    // The first step has a learning rate of 0; the weights are huge after the second, and which sum overflows first is a matter of its order.
    let step = [3, 4].into_iter().find(|step| ran.stderr.contains(&format!("at step {step}"))).expect(&ran.stderr);
    let kept = format!("The checkpoint of step {} is kept", step - 1);
    for expected in ["training has diverged", "rows.jsonl:", &kept, "--lr"] {
        assert!(ran.stderr.contains(expected), "{expected}: {}", ran.stderr);
    }
    assert_eq!(metrics(&workdir.path("run")).len(), step - 1);
    assert!(workdir.path(&format!("run/checkpoints/step-{:08}.safetensors", step - 1)).is_file());
}

#[test]
fn rows_whose_conflicts_are_intended_count_fully() {
    let workdir = prepared(12);
    let first = |out: &str, more: &[&str]| {
        let options = ["--out", out, "--batch-size", "12", "--warmup-steps", "0"];
        workdir.run(&arguments(&[&options[..], more].concat())).ok();
        number(&metrics(&workdir.path(out))[0]["loss"])
    };
    let (sft, eaft) = (first("sft", &["--method", "sft"]), first("eaft", &[]));
    let some = first("some", &["--intended", "rows.jsonl:3", "--intended", "rows.jsonl:7"]);
    assert!(eaft < some && some < sft, "{eaft} {some} {sft}");
    assert_eq!(first("all", &["--intended", "rows.jsonl"]), sft);
    refused(workdir.run(&arguments(&["--out", "none", "--intended", "rows.jsonl:99"])), 2, "rows.jsonl:99");
}

#[test]
fn adapters_go_to_the_modules_that_are_named() {
    let workdir = prepared(12);
    // Queries, keys and values are one product, of which two parts are adapted here.
    let targets = ["--lora-targets", "q_proj", "--lora-targets", "v_proj"];
    let options = ["--out", "run", "--lora", "--method", "sft", "--batch-size", "6", "--epochs", "5", "--lr", "1e-2"];
    workdir.run(&arguments(&[&options[..], &targets].concat())).ok();
    let steps = metrics(&workdir.path("run"));
    assert!(number(&steps[9]["loss"]) < number(&steps[0]["loss"]));
    let file = workdir.path("run/adapter/adapter_model.safetensors");
    let tensors = candle_core::safetensors::load(file, &candle_core::Device::Cpu).unwrap();
    assert_eq!(tensors.len(), 2 * 2 * 2, "two layers, two modules, A and B: {:?}", tensors.keys());
    for (name, tensor) in tensors {
        assert!(name.contains(".q_proj.lora_") || name.contains(".v_proj.lora_"), "{name}");
        assert!(tensor.sqr().unwrap().sum_all().unwrap().to_scalar::<f32>().unwrap() > 0.0, "{name} has learnt nothing");
    }
}

#[test]
fn every_method_runs_and_those_that_need_them_score_the_data_first() {
    let workdir = prepared(8);
    // A model that has half learnt the rows, so that no method finds all of their tokens too unlikely.
    let learning = ["--out", "learnt", "--method", "sft", "--batch-size", "4", "--lr", "5e-3", "--epochs", "20"];
    workdir.run(&arguments(&learning)).ok();
    let known = workdir.path("learnt/model");
    let known = ["train", "rows.jsonl", "--model", &known.to_string_lossy()];
    for method in METHODS {
        let more = match method.name {
            "eaft" => vec!["--gate", "sigmoid:30,0.17", "--normaliser", "none"],
            "dft" => vec!["--dtype", "bf16"],
            "flow" => vec!["--lora"],
            "sft-kl" => vec!["--lora", "--kl-weight", "0.2"],
            _ => vec![],
        };
        let name = method.name;
        let options = ["--out", name, "--method", name, "--batch-size", "4", "--lr", "1e-3"];
        workdir.run(&[&known[..], &options[..], &more[..]].concat()).ok();
        let steps = metrics(&workdir.path(name));
        assert_eq!(steps.len(), 2, "{method}");
        assert!(steps.iter().all(|step| number(&step["loss"]).is_finite() && number(&step["gradient_norm"]) > 0.0), "{method}");
        assert_eq!(workdir.path(name).join("before/tokens.parquet").is_file(), method.needs_scores(&method.gate), "{method}");
        if method.needs_reference() {
            // Nothing has moved before the first update, but for the learning rate 0 of the first step.
            assert!(number(&steps[0]["kl_to_base"]) < 1e-6, "{method}");
        }
    }
}

/// Everything below the folder, by name and length.
fn listing(folder: &Path) -> Vec<String> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(folder).unwrap() {
        let (path, metadata) = entry.map(|entry| (entry.path(), entry.metadata().unwrap())).unwrap();
        found.push(format!("{} {}", path.display(), metadata.len()));
        if metadata.is_dir() {
            found.extend(listing(&path));
        }
    }
    found.sort();
    found
}

#[test]
fn a_mask_takes_its_share_of_the_tokens_at_any_k() {
    let workdir = prepared(12);
    for (out, more) in [
        ("of-20", vec!["--method", "mask"]),
        ("of-5", vec!["--gate", "mask:0.4", "--top-k", "5"]),
        ("of-5-in-nats", vec!["--gate", "mask:0.4", "--top-k", "5", "--normaliser", "none"]),
    ] {
        let options = ["--out", out, "--batch-size", "12", "--lora", "--warmup-steps", "0"];
        workdir.run(&arguments(&[&options[..], &more[..]].concat())).ok();
        let first = &metrics(&workdir.path(out))[0];
        let (share, n) = (if out == "of-20" { 0.15 } else { 0.4 }, number(&first["supervised"]));
        // Weights are 0 and 1, so that what is left is the mean weight. The tiny model has ties, which fall on one side.
        let masked = 1.0 - number(&first["mean_weight"]);
        assert!(masked >= share && masked < share + 10.0 / n, "{out}: {masked} of {n} tokens");
    }
}

#[test]
fn psft_with_one_update_a_snapshot_is_sft() {
    let workdir = prepared(24);
    let run = |out: &str, more: &[&str]| {
        let options = ["--out", out, "--batch-size", "2", "--lr", "1e-2", "--save-every", "3", "--keep-checkpoints", "99"];
        workdir.run(&arguments(&[&options[..], more].concat())).ok();
        (metrics(&workdir.path(out)), std::fs::read(workdir.path(out).join("model/model.safetensors")).unwrap())
    };
    let (sft, sft_model) = run("sft", &["--method", "sft"]);
    let (one, one_model) = run("one", &["--method", "psft", "--snapshot-every", "1"]);
    assert!(sft_model == one_model, "the trained weights differ");
    for (sft, one) in sft.iter().zip(&one) {
        assert_eq!((&sft["gradient_norm"], &sft["cross_entropy"]), (&one["gradient_norm"], &one["cross_entropy"]));
        assert_eq!(number(&one["loss"]), -1.0, "what is minimised is -r, and r is 1");
    }
    // With eight, the first step of each large batch is plain and the others hold back what has grown.
    let (eight, eight_model) = run("eight", &["--method", "psft"]);
    assert!(eight_model != sft_model);
    for (idx, step) in eight.iter().enumerate() {
        let loss = number(&step["loss"]);
        assert_eq!(loss == -1.0, idx % 8 == 0 || number(&eight[idx - 1]["learning_rate"]) == 0.0, "step {idx}: {loss}");
        assert!(loss > -1.28);
    }
    assert!(eight.iter().any(|step| number(&step["mean_weight"]) < 0.9), "nothing is ever held back");

    // Taken up in the middle of a large batch, it goes on to the same bits.
    let folder = workdir.path("eight");
    for step in [6, 9, 12] {
        std::fs::remove_file(folder.join(format!("checkpoints/step-{step:08}.safetensors"))).unwrap();
    }
    std::fs::remove_file(folder.join("run.json")).unwrap();
    std::fs::remove_dir_all(folder.join("model")).unwrap();
    let again = run("eight", &["--method", "psft"]);
    assert!(again.0 == eight && again.1 == eight_model, "the resumed run is another");
}

#[test]
fn a_dry_run_plans_scores_nothing_and_writes_nothing() {
    let workdir = prepared(20);
    let before = listing(&workdir.path(""));
    // Pilot masks, Flow and quantile gates need scores before the first step.
    let ways = [&[][..], &["--method", "flow"], &["--method", "pilot"], &["--gate", "mask:0.15"], &["--lora"]];
    for method in ways {
        let common = ["--out", "run", "--batch-size", "8", "--epochs", "2", "--dry-run"];
        let ran = workdir.run(&arguments(&[&common[..], method].concat())).ok();
        assert!(ran.stdout.contains("20 sequences") && ran.stdout.contains("6 steps, 3 an epoch"), "{}", ran.stdout);
        // By which method, of which weights and how fast: none of it has to be typed.
        let (by, learns, rate) = match method {
            ["--method", by] => (*by, "all weights of tiny", "1e-5"),
            ["--gate", _] => ("eaft with the gate mask:0.15", "all weights of tiny", "1e-5"),
            ["--lora"] => ("eaft", "adapters of rank 16 on tiny", "1e-4"),
            _ => ("eaft", "all weights of tiny", "1e-5"),
        };
        let line = format!("Training with {by}, {learns}: 6 steps of 8 rows, learning rate {rate} (cosine, 1 step of warm-up)\n");
        assert!(ran.stdout.starts_with(&line), "{line}{}", ran.stdout);
        // The adapter's base is a GGUF file.
        let note = "which PEFT cannot load";
        assert_eq!(ran.stderr.contains(note), method == ["--lora"], "{}", ran.stderr);
        assert!(!ran.stderr.contains("Scoring"), "{}", ran.stderr);
        assert_eq!(listing(&workdir.path("")), before, "{method:?}");
    }
    let json = workdir.run(&arguments(&["--dry-run", "--json"])).ok().json();
    assert_eq!((&json["preview"], &json["sequences"]), (&Value::Null, &20.into()));
}

#[test]
fn a_folder_in_the_place_of_data_is_told_what_it_is() {
    let workdir = prepared(4);
    workdir.run(&arguments(&["--out", "run", "--method", "flow", "--batch-size", "4", "--warmup-steps", "0"])).ok();
    let told = |folder: &str, expected: &[&str]| {
        let ran = workdir.run(&[folder, "--thresholds", "pilot"]);
        assert!(ran.code == Some(2) && expected.iter().all(|text| ran.stderr.contains(text)), "{:?} {}", ran.code, ran.stderr);
    };
    told("run", &["training run (flow, 1 step from tiny)", "--model run/model", "diagnose run/before"]);
    workdir.run(&["run/before", "--thresholds", "pilot"]).ok();
    // What it names can be done.
    workdir.run(&["rows.jsonl", "--model", "run/model", "--out", "after"]).ok();
    told("run/model", &["this is a model", "--model run/model"]);
    std::fs::remove_file(workdir.path("run/run.json")).unwrap();
    told("run", &["unfinished training run", "train --config run/train.toml"]);
    workdir.write("items.uniform.jsonl", r#"{"context":"a","choices":["b","c"],"answer":0}"#);
    workdir.run(&["eval", "--model", "tiny.gguf", "--tasks", "items.uniform.jsonl", "--out", "scores"]).ok();
    told("scores", &["evaluation (items)", "diagnose diff"]);
    std::fs::create_dir(workdir.path("empty")).unwrap();
    told("empty", &["neither a finished run"]);
}

/// The divergence on general text has one definition: the final value in training equals that of comparing the two models.
#[test]
fn drift_is_the_divergence_that_diff_measures() {
    use diagnose::eval::divergence::{Divergence, FEW_TOKENS, general_text, measure};
    use diagnose::kernels::{Dtype, Kernels};
    use diagnose::model::{LoadOptions, Model, Placement, Reference};
    let workdir = prepared(24);
    workdir.run(&arguments(&["--out", "run", "--method", "sft", "--batch-size", "8", "--epochs", "4", "--lr", "3e-3"])).ok();
    let run: Value = serde_json::from_slice(&std::fs::read(workdir.path("run/run.json")).unwrap()).unwrap();
    let drift = &run["drift"];
    let load = |name: &str, kernels: Kernels| {
        let path = workdir.path(name);
        let reference = Reference::local(&path).unwrap();
        Model::load(&reference, LoadOptions { dtype: Dtype::F32, kernels, device: Placement::Cpu }, 2048).unwrap()
    };
    for kernels in [Kernels::Fused, Kernels::Reference] {
        let (base, tuned) = (load("tiny.gguf", kernels), load("run/model", kernels));
        let texts = general_text(&base.tokenizer, 2048, FEW_TOKENS).unwrap();
        let found = diagnose::engine::divergence(&base, &tuned, &texts, &mut |_| {}).unwrap();
        let found = Divergence::new(&texts, &found);
        assert_eq!((drift["texts"].as_u64(), drift["tokens"].as_u64()), (Some(found.texts as u64), Some(found.tokens)));
        // The saved model is the trained one to the bit; the reference kernels sum in another order, in f64 at the end.
        let close = |found: f64, expected: &Value| {
            assert!((found - number(expected)).abs() <= 1e-6 + 1e-5 * found, "{kernels}: {found} for {expected}");
        };
        close(found.mean.value, &drift["kl"]);
        close(found.cross_entropy, &drift["cross_entropy"]);
        for (end, expected) in found.mean.ci95.unwrap().into_iter().zip(drift["kl_ci95"].as_array().unwrap()) {
            close(end, expected);
        }
        // All texts, as `diff` reads them, begin with these.
        let all = general_text(&base.tokenizer, 2048, u64::MAX).unwrap();
        assert!(all.len() == 320 && all[..texts.len()] == texts);
        let whole = measure(&base, &tuned, 2048, &|_, _, _| {}).unwrap();
        assert_eq!(whole.texts, 320);
        // A sample of them: four standard errors.
        let apart = (whole.mean.value - found.mean.value).abs();
        assert!(apart <= 4.0 * found.mean.stderr.unwrap(), "{whole:?} {found:?}");
    }
}

/// General text is read behind the beginning or the end token; without either, each text is read from its own first token on.
#[test]
fn drift_is_measured_with_a_tokenizer_that_has_neither_a_beginning_nor_an_end_token() {
    use diagnose::eval::divergence::{FEW_TOKENS, general_text};
    use diagnose::model::{LoadOptions, Model, Placement, Reference};
    let workdir = Workdir::new();
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/llama");
    for folder in ["named", "nameless"] {
        std::fs::create_dir(workdir.path(folder)).unwrap();
        for name in ["config.json", "model.safetensors", "tokenizer.json"] {
            std::fs::copy(fixture.join(name), workdir.path(folder).join(name)).unwrap();
        }
    }
    workdir.write("named/tokenizer_config.json", r#"{"bos_token": "<|im_start|>", "eos_token": "<|im_end|>"}"#);
    let texts = |folder: &str, max_len: usize, tokens: u64| {
        let options = LoadOptions { device: Placement::Cpu, ..LoadOptions::default() };
        let model = Model::load(&Reference::local(&workdir.path(folder)).unwrap(), options, 128).unwrap();
        general_text(&model.tokenizer, max_len, tokens).unwrap()
    };
    let [with, without] = ["named", "nameless"].map(|folder| texts(folder, 4096, u64::MAX));
    assert_eq!((with.len(), without.len()), (320, 320));
    for (with, without) in with.iter().zip(&without) {
        // The beginning token and one target more.
        assert_eq!((with.ids[0], &with.ids[1..], with.n_targets()), (257, &without.ids[..], without.n_targets() + 1));
        assert!(!without.supervised[0] && without.supervised[1..].iter().all(|supervised| *supervised));
    }
    workdir.write("plain.jsonl", (0..8).map(|i| format!("{{\"text\":\"The fox {i} jumps.\"}}\n")).collect::<String>());
    let command = ["train", "plain.jsonl", "--model", "nameless", "--out", "run", "--method", "sft", "--max-len", "128"];
    workdir.run(&[&command[..], &["--lr", "1e-2", "--batch-size", "4"]].concat()).ok();
    let drift = &record(&workdir.path("run"))["drift"];
    let n_targets = texts("nameless", 128, FEW_TOKENS).iter().map(|text| text.n_targets() as u64).sum();
    assert_eq!(drift["tokens"].as_u64(), Some(n_targets));
    assert!(number(&drift["kl"]) > 0.0 && number(&drift["cross_entropy"]) > 0.0, "{drift}");
    // The comparison of the two models finds as much.
    let compared = workdir.run(&["diff", "nameless", "run/model", "--max-len", "128", "--json"]).ok().json();
    assert_eq!(compared["divergence"]["texts"], 320);
}

#[test]
fn the_saved_options_repeat_the_run_and_a_finished_run_is_not_repeated() {
    let workdir = prepared(8);
    workdir.write("mine.toml", "datasets = ['rows.jsonl']\nmodel = 'tiny.gguf'\nmethod = 'dft'\nbatch-size = 2\nlr = 1e-3\n");
    workdir.run(&["train", "--config", "mine.toml", "--out", "first", "--batch-size", "4"]).ok();
    let saved = workdir.path("first").join("train.toml");
    workdir.run(&["train", "--config", &saved.to_string_lossy(), "--out", "second"]).ok();
    assert_eq!(metrics(&workdir.path("first")), metrics(&workdir.path("second")));
    assert_eq!(metrics(&workdir.path("first")).len(), 2);
    let modified = |path: &str| std::fs::metadata(workdir.path(path)).unwrap().modified().unwrap();
    let before = modified("first/model/model.safetensors");
    workdir.run(&["train", "--config", "mine.toml", "--out", "first", "--batch-size", "4"]).ok();
    assert_eq!(before, modified("first/model/model.safetensors"));
    // Another training does not overwrite it.
    let other = workdir.run(&["train", "--config", "mine.toml", "--out", "first", "--batch-size", "4", "--seed", "1"]);
    refused(other, 1, "another training run");
}

/// A longer run does not continue a shorter one, and the error says so.
#[test]
fn more_epochs_in_the_folder_of_a_finished_run_are_refused_with_a_way_on() {
    let workdir = prepared(8);
    let run = |out: &str, model: &str, epochs: &str| {
        workdir.run(&[
            "train",
            "rows.jsonl",
            "--model",
            model,
            "--out",
            out,
            "--batch-size",
            "4",
            "--epochs",
            epochs,
            "--method",
            "sft",
        ])
    };
    run("run", "tiny.gguf", "1").ok();
    let more = run("run", "tiny.gguf", "2");
    refused(more, 1, "a finished run of 1 epoch; a run of 2 epochs has different learning rates");
    // What it names can be done.
    run("more", "run/model", "1").ok();
}

#[test]
fn a_sample_of_the_rows_is_drawn_by_the_seed() {
    let workdir = prepared(40);
    let rows = |more: &[&str]| {
        let ran = workdir.run(&arguments(&[&["--dry-run", "--json", "--batch-size", "2"], more].concat())).ok();
        (ran.json()["supervised_tokens"].as_u64().unwrap(), ran.stderr.clone())
    };
    let (of_seed, said) = rows(&["--sample", "10", "--seed", "3"]);
    assert!(said.contains("10 of 40 records are read, drawn at random with seed 3"), "{said}");
    let (again, first) = (rows(&["--sample", "10", "--seed", "3"]).0, rows(&["--limit", "10"]));
    assert!(first.1.contains("the first 10 records"), "{}", first.1);
    let others: Vec<u64> = (4..9).map(|seed| rows(&["--sample", "10", "--seed", &seed.to_string()]).0).collect();
    assert!(again == of_seed && others.iter().any(|other| *other != of_seed), "{of_seed} {others:?}");
    // What methods score before the first step are the same rows.
    workdir.run(&arguments(&["--out", "run", "--method", "flow", "--sample", "10", "--batch-size", "2"])).ok();
}

/// A Hugging Face folder of the tiny model, which an hour of no training leaves as it is.
fn tiny_folder(workdir: &Workdir) -> std::path::PathBuf {
    workdir.run(&arguments(&["--out", "as-is", "--method", "sft", "--lr", "1e-30", "--batch-size", "4"])).ok();
    workdir.path("as-is/model")
}

fn edit(path: &Path, change: impl Fn(&mut Value)) {
    let mut json: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    change(&mut json);
    std::fs::write(path, json.to_string()).unwrap();
}

fn read_json(path: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap()
}

#[test]
fn an_end_of_turn_that_generation_does_not_know_is_added_and_said() {
    let workdir = prepared(8);
    let model = tiny_folder(&workdir);
    // <|im_end|> is 258, <|endoftext|> 256.
    assert_eq!(read_json(&model.join("config.json"))["eos_token_id"], 258);
    let train = |out: &str, more: &[&str]| {
        let options =
            ["train", "rows.jsonl", "--model", model.to_str().unwrap(), "--out", out, "--batch-size", "4", "--method", "sft"];
        workdir.run(&[&options[..], more].concat()).ok()
    };
    let known = train("known", &[]);
    assert!(!known.stderr.contains("eos_token_id"), "{}", known.stderr);
    edit(&model.join("config.json"), |config| config["eos_token_id"] = 256.into());
    std::fs::write(model.join("generation_config.json"), r#"{"eos_token_id": [256, 0], "do_sample": true}"#).unwrap();
    let full = train("full", &[]);
    assert!(
        full.stderr.contains("Answers end with `<|im_end|>` (id 258)") && full.stderr.contains("It is added"),
        "{}",
        full.stderr
    );
    let saved = |file: &str| read_json(&workdir.path("full/model").join(file));
    assert_eq!(saved("config.json")["eos_token_id"], serde_json::json!([256, 258]));
    let generation = saved("generation_config.json");
    assert_eq!((&generation["eos_token_id"], &generation["do_sample"]), (&serde_json::json!([256, 0, 258]), &true.into()));
    let record = read_json(&workdir.path("full/run.json"));
    assert!(record["audit_lines"].to_string().contains("(id 258)"), "{record}");
    let lora = train("lora", &["--lora"]);
    assert!(lora.stderr.contains("a generation_config.json beside the adapter"), "{}", lora.stderr);
    let ends_of = |file: &str| read_json(&workdir.path(file))["eos_token_id"].clone();
    assert_eq!(ends_of("lora/adapter/generation_config.json"), serde_json::json!([256, 0, 258]));
    workdir.run(&["export", "lora/adapter", "--out", "later"]).ok();
    assert_eq!(ends_of("later/model/config.json"), serde_json::json!([256, 0, 258]));
    assert_eq!(ends_of("later/model/generation_config.json"), serde_json::json!([256, 0, 258]));
    train("merged", &["--lora", "--merge"]);
    assert_eq!(read_json(&workdir.path("merged/model/config.json"))["eos_token_id"], serde_json::json!([256, 258]));
}

/// Rows are packed, not padded, so that a padding token in a row is a target like any other; as an input it is not trained, as in Transformers.
#[test]
fn a_pad_token_that_is_trained_stays_trained() {
    let workdir = prepared(8);
    let model = tiny_folder(&workdir);
    let first = |out: &str, pad: Value| {
        edit(&model.join("config.json"), |config| config["pad_token_id"] = pad.clone());
        edit(&model.join("tokenizer_config.json"), |config| {
            config["pad_token"] = if pad.is_null() { Value::Null } else { "<|im_end|>".into() }
        });
        let options = ["--out", out, "--batch-size", "8", "--method", "sft", "--warmup-steps", "0"];
        workdir.run(&[&["train", "rows.jsonl", "--model", model.to_str().unwrap()], &options[..]].concat()).ok();
        metrics(&workdir.path(out))[0].clone()
    };
    let (without, with) = (first("without", Value::Null), first("with", 258.into()));
    assert_eq!((&without["supervised"], &without["loss"]), (&with["supervised"], &with["loss"]));
    let norm = |metrics: &Value| metrics["gradient_norm"].as_f64().unwrap();
    assert!(norm(&with) < norm(&without), "{with} {without}");
}

#[test]
fn what_transformers_alone_applies_in_training_is_named_before_the_first_step() {
    let workdir = prepared(8);
    let model = tiny_folder(&workdir);
    let options = |more: &[&'static str]| {
        let train = ["train", "rows.jsonl", "--model", model.to_str().unwrap(), "--batch-size", "4", "--warmup-steps", "0"];
        workdir.run(&[&train[..], more].concat()).ok().stderr
    };
    assert!(!options(&["--dry-run"]).contains("config.json asks"));
    edit(&model.join("config.json"), |config| {
        config["attention_dropout"] = 0.1.into();
        config["output_router_logits"] = true.into();
    });
    for more in [&["--dry-run"][..], &["--emit", "axolotl", "--out", "emitted"]] {
        let said = options(more);
        assert!(said.contains("attention_dropout 0.1") && said.contains("output_router_logits"), "{said}");
    }
}

#[test]
fn special_tokens_that_were_never_trained_are_named_before_the_first_step() {
    let workdir = prepared(8);
    let model = tiny_folder(&workdir);
    let plan = |more: &[&str]| {
        let options = ["train", "rows.jsonl", "--model", model.to_str().unwrap(), "--dry-run", "--batch-size", "4"];
        workdir.run(&[&options[..], more].concat()).ok().stderr
    };
    assert!(!plan(&[]).contains("never trained"));
    // The vectors of <|endoftext|>, which no row uses, and of <|im_start|>, which all do.
    let path = model.join("model.safetensors");
    let mut tensors = candle_core::safetensors::load(&path, &candle_core::Device::Cpu).unwrap();
    let name = "model.embed_tokens.weight";
    let mut rows: Vec<Vec<f32>> = tensors[name].to_vec2().unwrap();
    rows[256].fill(0.0);
    rows[257].iter_mut().for_each(|x| *x *= 0.01);
    tensors.insert(name.to_owned(), candle_core::Tensor::new(rows, &candle_core::Device::Cpu).unwrap());
    candle_core::safetensors::save(&tensors, &path).unwrap();
    let said = plan(&[]);
    assert!(said.contains("`<|im_start|>` (id 257), which 8 of 8 rows use") && said.contains("never trained"), "{said}");
    assert!(said.contains("only a few small steps") && !said.contains("(id 256)"), "{said}");
    assert!(plan(&["--lora"]).contains("Adapters leave it as it is"));
}

#[test]
fn equal_rows_are_counted_and_kept_on_one_side() {
    let workdir = prepared(10);
    let rows = std::fs::read_to_string(workdir.path("rows.jsonl")).unwrap();
    workdir.write("rows.jsonl", format!("{rows}\n{rows}\n"));
    let scored = workdir.run(&["rows.jsonl", "--model", "tiny.gguf", "--out", "scores"]).ok();
    assert!(scored.stderr.contains("10 of 20 rows are equal to an earlier one"), "{}", scored.stderr);
    let ran = workdir.run(&arguments(&["--dry-run", "--batch-size", "4"])).ok();
    assert!(ran.stderr.contains("10 of 20 rows are equal to an earlier one, and learnt again each time"), "{}", ran.stderr);
    let ran = workdir.run(&arguments(&["--dry-run", "--json", "--batch-size", "4", "--validation-share", "0.3"])).ok();
    assert!(ran.stderr.contains("10 of 20 rows are equal to an earlier one; with --validation-share"), "{}", ran.stderr);
    // Pairs are not parted.
    assert_eq!(ran.json()["validation_sequences"], 6);
}

#[test]
fn help_fits_two_screens_and_all_options_are_listed() {
    let workdir = Workdir::new();
    let help = workdir.run(&["train", "--help"]).ok().stdout;
    assert!(help.lines().count() <= 100, "{} lines:\n{help}", help.lines().count());
    assert!(help.contains("--batch-size") && !help.contains("--beta1"), "{help}");
    let all = workdir.run(&["train", "--list-options"]).ok().stdout;
    let listed = workdir.run(&["train", "--list-options", "--json"]).ok().json();
    let of_json: Vec<&str> = listed.as_array().unwrap().iter().map(|option| option["option"].as_str().unwrap()).collect();
    assert!(of_json.len() > 20 && of_json.iter().all(|name| all.contains(&format!("\n  {name} "))), "{of_json:?}");
    assert!(all.contains("batch-size") && all.contains("beta1") && all.contains("[default: 0.9]"), "{all}");
}

#[test]
fn wrong_use_is_refused_by_name() {
    let workdir = prepared(4);
    for (more, expected) in [
        (vec!["--method", "magic"], "magic"),
        (vec!["--method", "sft", "--gate", "power:2"], "--gate"),
        (vec!["--lora", "--lora-targets", "q_projj", "--method", "flow"], "q_projj"),
        (vec!["--lora", "--lora-targets", "q_proj", "--lora-targets", "q_projj"], "q_projj"),
        (
            vec!["--lora", "--lora-targets", "lm_head,q_proj", "--warmup-steps", "0"],
            "adapters are not trained on `lm_head` here\n  Of this model they can be trained on q_proj, k_proj, v_proj, o_proj, gate_proj, up_proj, down_proj.",
        ),
        (vec!["--batch-size", "0"], "batch-size"),
        (vec!["--mix", "chat=0.5"], "chat"),
        (vec!["--mix", "chat"], "SOURCE=WEIGHT"),
        (vec!["--validation-share", "0.5", "--limit", "1"], "can hold out no row: one row is learnt from"),
        (vec!["--resume"], "no checkpoint"),
        (vec!["--emit", "trl"], "llama-factory"),
        (vec!["--lr", "0", "--batch-size", "2"], "--lr 0"),
        (vec![], "--warmup-steps 0"),
        (vec!["--dry-run"], "--warmup-steps 0"),
        (vec!["--emit", "axolotl", "--system", "Be brief.", "--batch-size", "2"], "--system"),
        (vec!["--sample", "2", "--limit", "2"], "use only one of them"),
        (vec!["--emit", "axolotl", "--validation", "rows.jsonl", "--batch-size", "2"], "--validation is not written"),
        (vec!["--emit", "axolotl", "--append-eos"], "--append-eos has no counterpart"),
        (vec!["--emit", "axolotl", "--eval-every", "3"], "--eval-every 3: the other programs evaluate only on held-out rows"),
        (vec!["--emit", "axolotl", "--dtype", "bf16x3"], "--dtype bf16x3 has no counterpart"),
        (vec!["--emit", "axolotl", "--set", "pack-tokens=512"], "--pack-tokens is not written"),
        (vec!["--keep", "best"], "--validation FILE"),
        (vec!["--eval_dataset", "held"], "Use validation"),
    ] {
        refused(workdir.run(&arguments(&[&["--out", "run"], &more[..]].concat())), 2, expected);
    }
}

#[test]
fn the_same_training_for_other_programs() {
    let workdir = prepared(4);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen3");
    workdir.run(&arguments(&["--out", "as-is", "--method", "sft", "--lr", "1e-30", "--batch-size", "2"])).ok();
    let emit = |program: &str, model: &Path, out: &str| {
        let model = model.to_string_lossy();
        workdir.run(&["train", "rows.jsonl", "--model", &model, "--emit", program, "--out", out, "--warmup-steps", "0"])
    };
    for (program, key) in [("llama-factory", "use_eaft_loss: true"), ("axolotl", "use_eaft: true")] {
        emit(program, &workdir.path("as-is/model"), program).ok();
        let config = std::fs::read_to_string(workdir.path(program).join("train.yaml")).unwrap();
        assert!(config.contains(key), "{config}");
    }
    let config = std::fs::read_to_string(workdir.path("axolotl/train.yaml")).unwrap();
    assert!(config.contains("eot_tokens: [\"<|im_end|>\"]"), "{config}");
    // Without a template LLaMA-Factory learns no end of an answer; of one that writes earlier turns otherwise it makes other tokens.
    refused(emit("llama-factory", &fixture, "bare"), 1, "has no chat template");
    let template = workdir.path("as-is/model/chat_template.jinja");
    let source = std::fs::read_to_string(&template).unwrap();
    let others = source.replace("message['content'] + ", "message['content'] + ('' if loop.last else '!') + ");
    assert_ne!(source, others);
    std::fs::write(&template, others).unwrap();
    workdir.write("two.jsonl", "{\"messages\": [{\"role\": \"user\", \"content\": \"a\"}, {\"role\": \"assistant\", \"content\": \"b\"}, {\"role\": \"user\", \"content\": \"c\"}, {\"role\": \"assistant\", \"content\": \"d\"}]}\n");
    for (program, expected) in
        [("llama-factory", "tokenises the row differently"), ("axolotl", "axolotl would learn different tokens")]
    {
        let model = workdir.path("as-is/model");
        let arguments = [
            "train",
            "two.jsonl",
            "--model",
            &model.to_string_lossy(),
            "--emit",
            program,
            "--out",
            "never",
            "--warmup-steps",
            "0",
        ];
        let found = workdir.run(&arguments);
        refused(found, 1, expected);
    }
    std::fs::write(&template, source).unwrap();
    // A model by a path from here is found from the folder of the configuration.
    workdir
        .run(&["train", "rows.jsonl", "--model", "as-is/model", "--emit", "axolotl", "--out", "far/away", "--warmup-steps", "0"])
        .ok();
    let config = std::fs::read_to_string(workdir.path("far/away/train.yaml")).unwrap();
    let model = config.lines().find_map(|line| line.strip_prefix("base_model: ")).unwrap().trim_matches(['"', '\'']);
    assert!(Path::new(model).is_absolute() && Path::new(model).join("config.json").is_file(), "{model}");
}

#[test]
fn what_another_program_cannot_be_told_is_known_before_anything_is_fetched() {
    let workdir = prepared(4);
    for (more, expected) in
        [(["--system", "Be brief."], "--system would be lost"), (["--method", "dft"], "has no loss equivalent to `dft`")]
    {
        let unknown = ["train", "rows.jsonl", "--model", "nobody/nowhere", "--emit", "axolotl", "--out", "out"];
        refused(workdir.run(&[&unknown[..], &more].concat()), 2, expected);
    }
}

#[test]
fn rows_that_another_program_is_not_given_are_counted_with_their_reason() {
    let workdir = prepared(4);
    let patient = r#"{"messages":[{"role":"patient","content":"a"},{"role":"assistant","content":"b"}]}"#;
    workdir.write("patient.jsonl", patient);
    let model = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen3");
    let emit = |data: &[&str], out: &str, more: &[&str]| {
        let model = ["--model", model.to_str().unwrap(), "--emit", "axolotl", "--warmup-steps", "0", "--out", out];
        workdir.run(&[&["train"], data, &model, more].concat())
    };
    let ran = emit(&["patient.jsonl", "rows.jsonl"], "out", &[]).ok();
    assert!(ran.stdout.contains("4 rows"), "{}", ran.stdout);
    for part in ["1 of 5 rows was refused and skipped", "--role", "patient.jsonl:1: "] {
        assert!(ran.stderr.contains(part), "expected {part} in\n{}", ran.stderr);
    }
    let none = emit(&["patient.jsonl"], "none", &[]);
    assert!(
        none.code == Some(1) && none.stderr.contains("no row to train on") && none.stderr.contains("--role"),
        "{}",
        none.stderr
    );
    assert!(!workdir.path("none").exists());
    refused(emit(&["patient.jsonl", "rows.jsonl"], "strict", &["--strict"]), 1, "--role");
    emit(&["patient.jsonl", "rows.jsonl"], "all", &["--role", "patient=user"]).ok();
    assert_eq!(std::fs::read_to_string(workdir.path("all/train.jsonl")).unwrap().lines().count(), 5);
}

/// Another program counts every row of its file in its batches, steps and epochs, and divides by the targets of a step.
#[test]
fn rows_of_which_nothing_is_learnt_are_not_given_to_another_program() {
    let workdir = prepared(8);
    let model = tiny_folder(&workdir);
    let row = |question: &str, weight: u32| {
        let turns = format!(r#"{{"role":"user","content":"{question}"}},{{"role":"assistant","content":"b","weight":{weight}}}"#);
        format!("{{\"messages\":[{turns}]}}\n")
    };
    let long = "a question that is longer than all of the row may be, ".repeat(40);
    workdir.write("idle.jsonl", [row("a", 0).repeat(3), row(&long, 1).repeat(5)].concat());
    let data = ["train", "rows.jsonl", "idle.jsonl", "--model", model.to_str().unwrap(), "--max-len", "256"];
    let length = ["--batch-size", "2", "--epochs", "2", "--warmup-steps", "0"];
    let ran = workdir.run(&[&data[..], &length, &["--emit", "axolotl", "--out", "out"]].concat()).ok();
    assert!(ran.stdout.contains("8 rows and a configuration"), "{}", ran.stdout);
    assert!(ran.stderr.contains("8 of 16 rows have no supervised token"), "{}", ran.stderr);
    assert_eq!(std::fs::read_to_string(workdir.path("out/train.jsonl")).unwrap().lines().count(), 8);
    let config = std::fs::read_to_string(workdir.path("out/train.yaml")).unwrap();
    assert!(config.contains("\nmax_steps: 8\n"), "{config}");
    // Here the end of an empty answer is learnt, and axolotl finds nothing to learn.
    workdir.write(
        "empty.jsonl",
        "{\"messages\":[{\"role\":\"user\",\"content\":\"\"},{\"role\":\"assistant\",\"content\":\"\"}]}\n",
    );
    let empty = [
        "train",
        "empty.jsonl",
        "--model",
        model.to_str().unwrap(),
        "--warmup-steps",
        "0",
        "--emit",
        "axolotl",
        "--out",
        "empty",
    ];
    refused(workdir.run(&empty), 1, "message 2 is empty, and axolotl learns nothing of it");
    let plan = workdir.run(&[&data[..], &length, &["--dry-run", "--json"]].concat()).ok().json();
    assert_eq!((&plan["sequences"], &plan["total_steps"]), (&8.into(), &8.into()));
}

/// Rows whose answers have little in common with those of [`prepared`].
fn others(n: usize) -> String {
    let row = |i: usize| {
        format!(
            r#"{{"messages":[{{"role":"user","content":"Which of {i}?"}},{{"role":"assistant","content":"{i} cats sat on mats, and {i} sailed away."}}]}}"#
        )
    };
    (0..n).map(row).collect::<Vec<_>>().join("\n")
}

/// Sum of -ln p and number of the supervised tokens of a run of scores.
fn cross_entropy(scores: &Path) -> (f64, u64) {
    let (mut sum, mut n) = (0.0, 0);
    for chunk in read_chunks(&[scores.join("tokens.parquet")], &[Column::Logprob]) {
        for logprob in &chunk.unwrap().logprob {
            (sum, n) = (sum - f64::from(*logprob), n + 1);
        }
    }
    (sum, n)
}

fn record(folder: &Path) -> Value {
    serde_json::from_slice(&std::fs::read(folder.join("run.json")).unwrap()).unwrap()
}

#[test]
fn a_file_of_held_out_rows_is_read_as_the_data_are_and_never_shares_a_row_with_them() {
    let workdir = prepared(12);
    workdir.write("held.jsonl", others(6));
    workdir.run(&["held.jsonl", "--model", "tiny.gguf", "--out", "scores"]).ok();
    let (sum, n) = cross_entropy(&workdir.path("scores"));
    // Two rows that are trained on, and one that cannot be read.
    let trained = std::fs::read_to_string(workdir.path("rows.jsonl")).unwrap();
    let shared: Vec<&str> = trained.lines().take(2).collect();
    workdir.write("mixed.jsonl", format!("{}\n{}\n{{\"messages\": 7}}", others(6), shared.join("\n")));
    for (out, file) in [("clean", "held.jsonl"), ("mixed", "mixed.jsonl")] {
        let ran = workdir.run(&arguments(&["--out", out, "--method", "sft", "--warmup-steps", "0", "--validation", file])).ok();
        let run = record(&workdir.path(out));
        let before = &run["before"]["validation"];
        assert_eq!((number(&before["rows"]), number(&before["tokens"])), (6.0, n as f64), "{out}");
        assert!((number(&before["cross_entropy"]) - sum / n as f64).abs() < 1e-6, "{out}: {before}");
        assert_eq!(run["plan"]["sequences"], 12, "{out}: no row is taken from the data");
        assert_eq!(run["held_out_data"][0]["path"], file);
        let says = ["--validation: 2 of 8 rows are among the rows that are trained on", "--validation: 1 of 9 rows was refused"];
        for said in says {
            assert_eq!(ran.stderr.contains(said), out == "mixed", "{said}: {}", ran.stderr);
        }
    }
    // The weights do not depend on what is looked at.
    let weights = |out: &str| std::fs::read(workdir.path(out).join("model/model.safetensors")).unwrap();
    assert!(weights("clean") == weights("mixed"));
    workdir.write("same.jsonl", shared.join("\n"));
    let with = |out: &str, file: &str| {
        workdir.run(&arguments(&["--out", out, "--method", "sft", "--warmup-steps", "0", "--validation", file]))
    };
    refused(with("refused", "same.jsonl"), 1, "no row of --validation same.jsonl differs from those that are trained on");
    refused(with("refused", "absent.jsonl"), 1, "absent.jsonl");
    // Other held-out rows make another run.
    refused(with("clean", "mixed.jsonl"), 1, "another training run");
}

/// Learning the rows by heart eventually makes other rows less likely.
#[test]
fn the_best_model_is_kept_the_run_ends_early_and_goes_on_to_the_same_bits_after_kills() {
    let workdir = prepared(20);
    workdir.write("held.jsonl", others(8));
    for (kind, result, lr) in [(vec![], "model", "1e-2"), (vec!["--lora", "--merge", "--lora-dropout", "0.1"], "model", "1e-2")] {
        let options =
            ["--method", "sft", "--validation", "held.jsonl", "--batch-size", "5", "--epochs", "30", "--eval-every", "3"];
        let saving = ["--save-every", "1", "--stop-after-worse", "4", "--lr", lr];
        let command = |out: &'static str| arguments(&[&["--out", out], &options[..], &saving[..], &kind[..]].concat());
        let out = if kind.is_empty() { ["full", "full-killed"] } else { ["lora", "lora-killed"] };
        let began = Instant::now();
        let ran = workdir.run(&command(out[0])).ok();
        let whole = began.elapsed();
        let run = record(&workdir.path(out[0]));
        let steps = metrics(&workdir.path(out[0]));
        let looks: Vec<(u64, f64)> = steps
            .iter()
            .filter(|step| !step["validation"].is_null())
            .map(|step| (step["step"].as_u64().unwrap(), number(&step["validation"]["cross_entropy"])))
            .collect();
        let best = looks.iter().copied().min_by(|a, b| a.1.total_cmp(&b.1)).unwrap();
        let n_steps = run["steps"].as_u64().unwrap();
        // The premises: there is a best look, and neither the first nor the last is it.
        assert!(looks[0].0 < best.0 && best.0 < n_steps && n_steps < 120, "{out:?}: {looks:?}");
        assert_eq!(n_steps, best.0 + 4 * 3, "four looks after the best, and none more");
        assert_eq!((run["kept_step"].as_u64(), number(&run["lowest"]["cross_entropy"])), (Some(best.0), best.1));
        assert_eq!(number(&run["validation"]["cross_entropy"]), best.1);
        assert_eq!(steps.last().unwrap()["lowest"]["worse_since"], 4);
        for said in [format!("Kept the model after step {}", best.0), "4 evaluations in a row".to_owned()] {
            assert!(ran.stdout.contains(&said), "{said}: {}", ran.stdout);
        }
        // The result is that model, and no other.
        let model = workdir.path(out[0]).join(result);
        let scored = format!("{}-scored", out[0]);
        workdir.run(&["held.jsonl", "--model", &model.to_string_lossy(), "--out", &scored]).ok();
        let (sum, n) = cross_entropy(&workdir.path(&scored));
        assert!((sum / n as f64 - best.1).abs() < 1e-4, "{out:?}: {} is not {}", sum / n as f64, best.1);
        let checkpoints = |out: &str| {
            let folder = std::fs::read_dir(workdir.path(out).join("checkpoints")).unwrap();
            let mut names: Vec<String> = folder.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned()).collect();
            names.retain(|name| !name.starts_with('.'));
            names.sort();
            names
        };
        let name = |step: u64| format!("step-{step:08}.safetensors");
        assert_eq!(checkpoints(out[0]), [name(best.0), name(n_steps)]);

        for moment in 1..8u32 {
            let mut child = workdir.command(&command(out[1])).stderr(Stdio::null()).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(whole * moment / 9);
            child.kill().unwrap();
            child.wait().unwrap();
        }
        workdir.run(&command(out[1])).ok();
        assert_eq!(steps, metrics(&workdir.path(out[1])));
        let bytes = |out: &str| std::fs::read(workdir.path(out).join(result).join("model.safetensors")).unwrap();
        assert!(bytes(out[0]) == bytes(out[1]), "{out:?}: the model differs after the kills");
        assert_eq!(checkpoints(out[0]), checkpoints(out[1]));
        assert_eq!(record(&workdir.path(out[1]))["kept_step"], best.0);
    }
    // The last model of the same steps is another one, by its held-out loss too.
    let last = [
        "--out",
        "last",
        "--method",
        "sft",
        "--validation",
        "held.jsonl",
        "--batch-size",
        "5",
        "--epochs",
        "30",
        "--eval-every",
        "3",
        "--stop-after-worse",
        "4",
        "--lr",
        "1e-2",
        "--keep",
        "last",
    ];
    workdir.run(&arguments(&last)).ok();
    let (best, last) = (record(&workdir.path("full")), record(&workdir.path("last")));
    assert_eq!((&best["steps"], &best["lowest"]), (&last["steps"], &last["lowest"]));
    assert_eq!(last["kept_step"], last["steps"]);
    assert!(number(&last["validation"]["cross_entropy"]) > number(&best["validation"]["cross_entropy"]));
}

#[test]
fn a_checkpoint_is_written_as_a_model_that_scores_as_the_run_did_at_that_step() {
    let workdir = prepared(12);
    for (out, kind, folder, file) in [
        ("full", vec![], "model", "model.safetensors"),
        ("bf16", vec!["--dtype", "bf16"], "model", "model.safetensors"),
        ("lora", vec!["--lora"], "adapter", "adapter_model.safetensors"),
    ] {
        let options =
            ["--out", out, "--method", "sft", "--batch-size", "12", "--epochs", "5", "--lr", "1e-2", "--warmup-steps", "0"];
        let all = ["--save-every", "1", "--keep-checkpoints", "99"];
        workdir.run(&arguments(&[&options[..], &all[..], &kind[..]].concat())).ok();
        let checkpoint = |step: u64| workdir.path(out).join(format!("checkpoints/step-{step:08}.safetensors"));
        let export = |step: u64| {
            let to = format!("{out}-{step}");
            workdir.run(&["export", &checkpoint(step).to_string_lossy(), "--out", &to]).ok();
            workdir.path(&to).join(folder)
        };
        // That of the last step is the result, to the byte.
        let bytes = |folder: &Path| std::fs::read(folder.join(file)).unwrap();
        assert!(bytes(&export(5)) == bytes(&workdir.path(out).join(folder)), "{out}");
        // A step says what the model was before it, of all rows where the batch holds them all.
        let model = export(2);
        let (scored, dtype) = (format!("{out}-scored"), if out == "bf16" { "bf16" } else { "f32" });
        let model = model.to_string_lossy();
        workdir.run(&["rows.jsonl", "--model", &model, "--dtype", dtype, "--out", &scored]).ok();
        let (sum, n) = cross_entropy(&workdir.path(&scored));
        let expected = number(&metrics(&workdir.path(out))[2]["cross_entropy"]);
        assert!((sum / n as f64 - expected).abs() < 1e-4, "{out}: {} is not {expected}", sum / n as f64);
        let other = number(&metrics(&workdir.path(out))[3]["cross_entropy"]);
        assert!((other - expected).abs() > 1e-2, "{out}: a step changes nothing");
        // As it stands it is no model, and is told what to do.
        let named = checkpoint(2);
        refused(workdir.run(&["rows.jsonl", "--model", &named.to_string_lossy(), "--out", "none"]), 1, "diagnose export");
    }
    let ran = workdir.run(&["export", "full/checkpoints/step-00000002.safetensors", "--out", "x", "--drop", "mass=1"]);
    refused(ran, 2, "is a checkpoint");
    // The run's own folder holds the model that its record speaks of.
    let ran = workdir.run(&["export", "full/checkpoints/step-00000002.safetensors", "--out", "full"]);
    refused(ran, 2, "this folder already has a model");
    refused(workdir.run(&["export", "full/model/model.safetensors", "--out", "x"]), 1, "not a checkpoint of a training run");
    // Another model in the place of the one that was trained.
    let mut other = std::fs::read(workdir.path("tiny.gguf")).unwrap();
    let last = other.len() - 1;
    other[last] ^= 1;
    workdir.write("tiny.gguf", other);
    let ran = workdir.run(&["export", "lora/checkpoints/step-00000002.safetensors", "--out", "x"]);
    refused(ran, 1, "not the model that this run trains");
}

#[test]
fn the_result_has_the_template_that_was_trained_on_and_is_saved_again_once_removed() {
    let workdir = prepared(6);
    const SOURCE: &str = "{% for message in messages %}<|im_start|>{{ message.role }}\n{{ message.content }}<|im_end|>\n{% endfor %}\
        {% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}";
    workdir.write("own.jinja", SOURCE);
    let train = |out: &str, template: &str| {
        let options = ["--batch-size", "3", "--save-every", "1", "--keep-checkpoints", "9", "--lr", "1e-2"];
        workdir.run(&arguments(&[&["--out", out, "--chat-template", template][..], &options].concat()))
    };
    train("run", "own.jinja").ok();
    let template = |folder: &str| std::fs::read_to_string(workdir.path(folder).join("chat_template.jinja")).unwrap();
    assert_eq!(template("run/model"), SOURCE);
    // A file that is edited for the next run is not that of this one.
    workdir.write("own.jinja", SOURCE.replace("message.content", "message.content | trim"));
    let checkpoint = "run/checkpoints/step-00000001.safetensors";
    workdir.run(&["export", checkpoint, "--out", "first"]).ok();
    assert_eq!(template("first/model"), SOURCE);
    std::fs::rename(workdir.path("run/chat_template.jinja"), workdir.path("kept.jinja")).unwrap();
    refused(workdir.run(&["export", checkpoint, "--out", "second"]), 1, "cannot read the chat template that was trained on");
    assert!(!workdir.path("second").exists());

    let weights = || std::fs::read(workdir.path("run/model/model.safetensors")).unwrap();
    let trained = weights();
    std::fs::remove_dir_all(workdir.path("run/model")).unwrap();
    train("run", "kept.jinja").ok();
    assert!(weights() == trained && template("run/model") == SOURCE);
    std::fs::remove_dir_all(workdir.path("run/model")).unwrap();
    std::fs::remove_dir_all(workdir.path("run/checkpoints")).unwrap();
    refused(train("run", "kept.jinja"), 1, "its result was removed, and so were its checkpoints");
}
