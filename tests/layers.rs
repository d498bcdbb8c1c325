//! The map of the code is kept: a module uses only modules above it, and each foreign world stays in its rooms.

use std::fs;
use std::path::{Path, PathBuf};

/// The reading order of lib.rs.
const ORDER: &[&str] = &[
    "error",
    "files",
    "format",
    "json",
    "random",
    "stats",
    "fetch",
    "dataset",
    "tokens",
    "kernels",
    "model",
    "engine",
    "table",
    "diagnosis",
    "eval",
    "train",
    "maps",
    "report",
    "jobs",
    "cli",
];

/// Crates that may be named in a few rooms only, and those rooms. `error` turns foreign errors into ours.
const ROOMS: &[(&str, &[&str])] = &[
    ("candle_core", &["error", "kernels", "model", "engine", "train"]),
    // The readers of Parquet and Arrow are the table library's.
    (
        "polars",
        &["error", "dataset/frame.rs", "dataset/parquet.rs", "dataset/arrow.rs", "table", "diagnosis", "maps", "eval", "report"],
    ),
    ("plotters", &["maps"]),
    ("clap", &["cli"]),
    ("indicatif", &["cli"]),
    ("tokenizers", &["tokens"]),
    ("minijinja", &["tokens"]),
];

fn source_files() -> Vec<(String, String)> {
    fn walk(folder: &Path, files: &mut Vec<PathBuf>) {
        for entry in fs::read_dir(folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                walk(&path, files);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                files.push(path);
            }
        }
    }
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut files = Vec::new();
    walk(&root, &mut files);
    let name = |path: &PathBuf| path.strip_prefix(&root).unwrap().to_string_lossy().replace('\\', "/");
    files.iter().map(|path| (name(path), fs::read_to_string(path).unwrap())).collect()
}

/// The module that a file belongs to: `kernels` for `kernels/head/mod.rs`.
fn module(file: &str) -> &str {
    file.split(['/', '.']).next().unwrap()
}

#[test]
fn a_module_uses_only_modules_above_it() {
    let mut wrong = Vec::new();
    for (file, text) in source_files() {
        let Some(own) = ORDER.iter().position(|name| *name == module(&file)) else {
            assert!(["lib.rs", "main.rs"].contains(&file.as_str()), "{file} is in no module that this test knows");
            continue;
        };
        // Unit tests may look down.
        let text = text.split("#[cfg(test)]\nmod tests").next().unwrap();
        if file.contains("test") {
            continue;
        }
        for (below, name) in ORDER.iter().enumerate().skip(own + 1) {
            if text.contains(&format!("crate::{name}::")) || text.contains(&format!("use crate::{name};")) {
                wrong.push(format!("src/{file} ({own}) uses {name} ({below})"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn foreign_worlds_stay_in_their_rooms() {
    let mut wrong = Vec::new();
    for (file, text) in source_files() {
        for (world, rooms) in ROOMS {
            let named = text.lines().any(|line| {
                let line = line.trim_start();
                !line.starts_with("//") && line.contains(&format!("{world}::"))
            });
            if named && !rooms.iter().any(|room| *room == module(&file) || *room == file) {
                wrong.push(format!("src/{file} uses {world}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[test]
fn unsafe_stays_in_the_kernels() {
    for (file, text) in source_files() {
        let found = text.lines().any(|line| {
            let code = line.split("//").next().unwrap();
            code.contains("unsafe {") || code.contains("unsafe fn") || code.contains("unsafe impl")
        });
        assert!(!found || module(&file) == "kernels", "src/{file} holds unsafe code");
    }
}

#[test]
fn lib_rs_declares_the_modules_in_reading_order() {
    let lib = fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("src/lib.rs")).unwrap();
    let declared: Vec<&str> = lib
        .lines()
        .map(|line| line.trim_start_matches("pub "))
        .filter_map(|line| line.strip_prefix("mod "))
        .map(|name| name.trim_end_matches(';'))
        .collect();
    assert_eq!(declared, ORDER);
}
