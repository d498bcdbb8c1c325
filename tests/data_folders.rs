//! Tests which files of a data folder are read, and what is reported about the others.

use std::fs;
use std::os::unix::fs::symlink;
use std::path::Path;

use diagnose::dataset::{Dataset, ReadOptions};

use crate::tiny_model;
use crate::workdir::Workdir;

const ROW: &str = r#"{"messages":[{"role":"user","content":"Say hi."},{"role":"assistant","content":"hi"}]}"#;

/// A folder with a row in each of the files; what ends in `/` is a folder.
fn folder(files: &[&str]) -> tempfile::TempDir {
    let folder = tempfile::tempdir().unwrap();
    for file in files {
        let path = folder.path().join(file);
        match file.ends_with('/') {
            true => fs::create_dir_all(path).unwrap(),
            false => {
                fs::create_dir_all(path.parent().unwrap()).unwrap();
                fs::write(path, format!("{ROW}\n")).unwrap();
            }
        }
    }
    folder
}

/// The names of the files that are read, and all messages about others.
fn read(folder: &Path) -> Result<(Vec<String>, String), String> {
    let dataset = Dataset::open(&[folder.to_str().unwrap().to_owned()], &ReadOptions::default());
    let dataset = dataset.map_err(|error| format!("exit {}: {error}", error.exit_code()))?;
    let inside = |path: &Path| path.strip_prefix(folder).unwrap().to_str().unwrap().to_owned();
    Ok((dataset.files().iter().map(|file| inside(&file.path)).collect(), dataset.notes().join("\n")))
}

#[track_caller]
fn check(folder: &Path, expected: &[&str], notes: &[&str]) {
    let (files, said) = read(folder).unwrap();
    assert_eq!(files, expected);
    assert_eq!(said.is_empty(), notes.is_empty(), "{said}");
    notes.iter().for_each(|note| assert!(said.contains(note), "expected `{note}` in: {said}"));
}

#[track_caller]
fn check_refused(folder: &Path, parts: &[&str]) {
    let error = read(folder).unwrap_err();
    parts.iter().for_each(|part| assert!(error.contains(part), "expected `{part}` in: {error}"));
}

#[test]
fn links_are_followed_once() {
    let data = folder(&["a.jsonl", "sub/b.jsonl"]);
    symlink("..", data.path().join("sub/up")).unwrap();
    check(data.path(), &["a.jsonl", "sub/b.jsonl"], &["reached more than once by symbolic links"]);
    // Names before the real one, too, and links to links.
    symlink("a.jsonl", data.path().join("0.jsonl")).unwrap();
    symlink("0.jsonl", data.path().join("1.jsonl")).unwrap();
    symlink("sub", data.path().join("0")).unwrap();
    check(data.path(), &["a.jsonl", "sub/b.jsonl"], &["reached more than once by symbolic links"]);
}

#[test]
fn links_that_lead_out_of_the_folder_are_read() {
    // As the hub's cache keeps a data set: snapshots of links to files that are named after their contents.
    let cache = folder(&["blobs/", "snapshots/main/data/"]);
    for (idx, name) in ["train-0.jsonl", "train-1.jsonl", "test-0.jsonl"].iter().enumerate() {
        fs::write(cache.path().join(format!("blobs/{idx}")), format!("{ROW}\n")).unwrap();
        symlink(format!("../../../blobs/{idx}"), cache.path().join("snapshots/main/data").join(name)).unwrap();
    }
    let snapshot = cache.path().join("snapshots/main");
    check(&snapshot, &["data/train-0.jsonl", "data/train-1.jsonl"], &["1 file of another split"]);
    // A link to a missing file is missing data and is reported.
    symlink("../../../blobs/gone", snapshot.join("data/train-2.jsonl")).unwrap();
    check_refused(&snapshot, &["data/train-2.jsonl: expected a data file, cannot open it"]);
}

#[test]
fn a_file_of_two_names_is_that_of_the_split_which_is_read() {
    let data = folder(&["test.jsonl"]);
    symlink("test.jsonl", data.path().join("train.jsonl")).unwrap();
    check(data.path(), &["train.jsonl"], &["1 file of another split"]);
}

#[test]
fn what_a_pattern_matches_is_read_or_named() {
    let data = folder(&["a.jsonl", "b.jsonl", "more/c.jsonl"]);
    let all = data.path().join("*").display().to_string();
    let open = || Dataset::open(std::slice::from_ref(&all), &ReadOptions::default());
    let dataset = open().unwrap();
    assert_eq!(dataset.files().len(), 2);
    assert!(dataset.notes()[0].contains("1 matching folder is not read"), "{:?}", dataset.notes());
    // Overlapping patterns name a file twice.
    let both = [all.clone(), data.path().join("./b.jsonl").display().to_string()];
    let dataset = Dataset::open(&both, &ReadOptions::default()).unwrap();
    let said = dataset.notes().join("\n");
    assert!(dataset.files().len() == 3 && said.contains("1 file is named twice and read twice"), "{said}");
    symlink("gone", data.path().join("d.jsonl")).unwrap();
    let error = open().unwrap_err().to_string();
    assert!(error.contains("d.jsonl: expected a data file, cannot open it"), "{error}");
}

#[test]
fn however_deep_the_data_lie_they_are_read() {
    let data = folder(&["1/2/3/4/5/6/7/8/9/10/11/a.jsonl", "b.jsonl"]);
    check(data.path(), &["1/2/3/4/5/6/7/8/9/10/11/a.jsonl", "b.jsonl"], &[]);
}

#[test]
fn what_this_program_wrote_is_no_data() {
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    fs::create_dir(workdir.path("data")).unwrap();
    workdir.write("data/rows.jsonl", format!("{ROW}\n{ROW}\n"));
    let run = |arguments: &[&str]| workdir.run(arguments).ok();
    run(&["data", "--model", "tiny.gguf", "--out", "data/runs/scored"]);
    run(&["rollout", "data/rows.jsonl", "--model", "tiny.gguf", "--out", "data/written", "--max-new-tokens", "4"]);
    run(&["export", "data/runs/scored", "--out", "data/more.jsonl", "--drop", "rows=0"]);
    let named = "{\"decisions\": 1, \"run\": \"x\", \"data\": []}\n";
    workdir.write("data/decisions (1).jsonl", named);
    for begun in ["data/begun/parts", "data/tuning"] {
        fs::create_dir_all(workdir.path(begun)).unwrap();
    }
    workdir.write("data/begun/.lock", "");
    workdir.write("data/begun/parts/0.parquet", "");
    workdir.write("data/tuning/.lock", "");
    workdir.write("data/tuning/train.toml", "");
    workdir.write("data/tuning/metrics.jsonl", "{\"step\": 1}\n");
    let (files, said) = read(&workdir.path("data")).unwrap();
    assert_eq!(files, ["more.jsonl", "rows.jsonl"]);
    assert!(said.contains("4 run folders of this program were left out"), "{said}");
    assert!(said.contains("2 files that this program wrote about data were left out"), "{said}");
    // Rollouts are data if given explicitly; scores and training runs are not.
    let (files, said) = read(&workdir.path("data/written")).unwrap();
    assert_eq!((files, said.as_str()), (vec!["rollouts.jsonl".to_owned()], ""));
    for (named, cure) in [("data/runs/scored", "that of the run is data/rows.jsonl"), ("data/begun", ""), ("data/tuning", "")] {
        let cure = ["exit 2", "a run folder of this program, not data", "Name the data files", cure];
        check_refused(&workdir.path(named), &cure);
    }
    for (named, what) in [("data/more.changes.jsonl", "the changes"), ("data/decisions (1).jsonl", "decisions about a run")] {
        let error = Dataset::open(&[workdir.path(named).display().to_string()], &ReadOptions::default()).unwrap_err();
        assert!(error.to_string().contains(what), "{error}");
    }
    // A person's own folder is read whatever its files are called.
    let data = folder(&["mine/rollouts.jsonl", "parts/a.jsonl"]);
    fs::write(data.path().join("mine/run.jsonl"), format!("{ROW}\n")).unwrap();
    check(data.path(), &["mine/rollouts.jsonl", "mine/run.jsonl", "parts/a.jsonl"], &[]);
}

/// The front matter of a data set's README.md, and its files, as `datasets.load_dataset(folder, split="train")` reads them.
#[test]
fn the_card_of_a_data_set_says_which_files_are_for_training() {
    let clone = |card: &str, files: &[&str]| {
        let folder = folder(files);
        fs::write(folder.path().join("README.md"), format!("---\nlicense: mit\n{card}size_categories:\n- n<1K\n---\n# Data\n"))
            .unwrap();
        folder
    };
    let gsm8k = ["main/train-0.jsonl", "main/test-0.jsonl", "socratic/train-0.jsonl", "socratic/test-0.jsonl"];
    let config = |name: &str, default: &str| {
        format!(
            "- config_name: {name}\n  data_files:\n  - split: train\n    path: {name}/train-*\n  - split: test\n    path: {name}/test-*\n{default}"
        )
    };
    let both = |main: &str, socratic: &str| format!("configs:\n{}{}", config("main", main), config("socratic", socratic));
    let data = clone(&both("", ""), &gsm8k);
    check_refused(data.path(), &["exit 2", "several configurations", "main, socratic", "/main/train-*'"]);
    let data = clone(&both("", "  default: true\n"), &gsm8k);
    check(data.path(), &["socratic/train-0.jsonl"], &["configuration `socratic`", "3 data files that README.md"]);
    let data = clone(&both("  default: true\n", "  default: true\n"), &gsm8k);
    check_refused(data.path(), &["several configurations", "main, socratic"]);

    // `default` is a name that makes one the default. Its files need not be called after their splits.
    let named = "configs:\n- config_name: other\n  data_files: b.jsonl\n- config_name: default\n  data_files:\n  - a.jsonl\n  - 'more/*'\n";
    let data = clone(named, &["a.jsonl", "b.jsonl", "more/c.jsonl", "more/d.jsonl", "more/test.txt"]);
    check(data.path(), &["a.jsonl", "more/c.jsonl", "more/d.jsonl"], &["configuration `default`", "1 data file that README.md"]);
    let single = "configs:\n- config_name: x\n  data_files:\n  - split: train\n    path: [part-1/**, 'part-2/?.jsonl']\n  - split: validation\n    path: part-3/**\n";
    let data = clone(single, &["part-1/x/a.jsonl", "part-1/b.jsonl", "part-2/c.jsonl", "part-2/dd.jsonl", "part-3/e.jsonl"]);
    check(data.path(), &["part-1/b.jsonl", "part-1/x/a.jsonl", "part-2/c.jsonl"], &["2 data files that README.md"]);

    // Splits with other names: one is the data, of several none is known to be.
    let split = |names: &[&str]| {
        let split = |name: &&str| format!("  - split: {name}\n    path: data/{name}-*\n");
        format!("configs:\n- config_name: default\n  data_files:\n{}", names.iter().map(split).collect::<String>())
    };
    let files = ["data/train_sft-0.jsonl", "data/train_gen-0.jsonl", "data/test_sft-0.jsonl"];
    let data = clone(&split(&["train_sft", "test_sft", "train_gen"]), &files);
    check_refused(data.path(), &["exit 2", "splits train_sft, test_sft, train_gen", "but no `train`", "/data/train_sft-*'"]);
    let data = clone(&split(&["test"]), &["data/test-0.jsonl"]);
    check(data.path(), &["data/test-0.jsonl"], &[]);

    // A folder of the data, without and with a pattern for its files.
    let inner = "configs:\n- config_name: default\n  data_dir: inner\n";
    let data = clone(inner, &["inner/train.jsonl", "inner/test.jsonl", "outer.jsonl"]);
    check(data.path(), &["inner/train.jsonl"], &["1 file of another split", "1 data file that README.md"]);
    let data = clone("configs:\n- config_name: default\n  drop_labels: true\n", &["train.jsonl", "test.jsonl"]);
    check(data.path(), &["train.jsonl"], &["1 file of another split"]);

    // What the card names and the clone lacks, and a card that cannot be read.
    let data = clone(&split(&["train", "test"]), &["data/test-0.jsonl"]);
    check_refused(data.path(), &["README.md names `data/train-*`", "no such data file"]);
    let elsewhere = "configs:\n- config_name: default\n  data_files: hf://datasets/a/b/train.jsonl\n";
    check_refused(clone(elsewhere, &["a.jsonl"]).path(), &["hf://datasets/a/b/train.jsonl", "elsewhere"]);
    check_refused(clone("configs: {a: [\n", &["a.jsonl"]).path(), &["README.md", "configs"]);
    check_refused(clone("configs:\n- data_files: a.jsonl\n", &["a.jsonl"]).path(), &["README.md", "config_name"]);
    // A README that is no card.
    let data = folder(&["a.jsonl"]);
    fs::write(data.path().join("README.md"), "# Data\n\nconfigs:\n- none\n").unwrap();
    check(data.path(), &["a.jsonl"], &[]);
}

#[test]
fn splits_may_be_numbered() {
    let data = folder(&["train1.jsonl", "train2.jsonl", "test1.jsonl", "evaluation.jsonl", "dev_2.jsonl", "testing/a.jsonl"]);
    check(data.path(), &["train1.jsonl", "train2.jsonl"], &["4 files of other splits"]);
}
