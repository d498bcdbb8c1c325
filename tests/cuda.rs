//! NVIDIA's libraries: which are taken, and what is said where none are. On the emulated GPU, whose driver is of any version.

use std::path::{Path, PathBuf};

use crate::tiny_model;
use crate::workdir::Workdir;

/// The folder of the emulated GPU's libraries, if that is what there is.
fn emulated() -> Option<PathBuf> {
    match diagnose::kernels::cuda::Device::get() {
        Ok(device) if device.name().starts_with("emulated") => {}
        Ok(_) => return None,
        Err(error) => {
            assert!(std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "{error}");
            return None;
        }
    }
    let folders = std::env::var_os("LD_LIBRARY_PATH").unwrap_or_default();
    std::env::split_paths(&folders).find(|folder| folder.join("libcublasLt.so.12").exists())
}

/// A driver of CUDA 12 takes what CUDA 12 has, even beside what 13 has, and where there is nothing of 12 the error names what to install.
#[test]
fn libraries_are_of_no_later_cuda_than_the_driver_on_a_gpu() {
    let Some(libraries) = emulated() else { return };
    let workdir = Workdir::new();
    tiny_model::write(&workdir.path(""));
    workdir.write("rows.jsonl", r#"{"prompt": "One and two?", "completion": "Three."}"#);
    let run = |libraries: &Path, driver: &str, out: &str| {
        let arguments = ["rows.jsonl", "--model", "tiny.gguf", "--device", "cuda", "--out", out, "--no-view"];
        let mut command = workdir.command(&arguments);
        command.env("LD_LIBRARY_PATH", libraries).env("EMULATED_DRIVER", driver);
        let ran = command.env_remove("CUDA_HOME").env_remove("CUDA_PATH").env("PYTHON", "no-python").output().unwrap();
        (ran.status.success(), String::from_utf8_lossy(&ran.stderr).into_owned())
    };
    let (is_done, said) = run(&libraries, "12.4", "run");
    assert!(is_done, "{said}");
    let refused = |libraries: &Path, driver: &str| {
        let (is_done, said) = run(libraries, driver, "refused");
        assert!(!is_done, "{said}");
        said
    };
    let said = refused(&libraries, "11.8");
    assert!(said.contains("is of CUDA 11.8") && said.contains("Update NVIDIA's driver"), "{said}");
    let newest = workdir.path("newest");
    std::fs::create_dir(&newest).unwrap();
    for name in ["libcuda.so.1", "libnvrtc.so.13", "libcublasLt.so.13"] {
        std::fs::copy(libraries.join(name), newest.join(name)).unwrap();
    }
    let said = refused(&newest, "12.4");
    assert!(said.contains("libcublasLt.so.12") && said.contains("nvidia-cublas-cu12 nvidia-cuda-nvrtc-cu12"), "{said}");
}

/// A step of one answer fills its tile with rows that hold no token, which in this family differ from each other: they would have every expert
/// multiplied. The profile counts the products of experts' inputs, of this shape alone: in each of three layers of a step two that the token
/// chose, and of the prompt's first step all four at most.
#[test]
fn one_answer_at_a_time_multiplies_the_experts_that_it_chose_on_a_gpu() {
    if let Err(error) = diagnose::kernels::cuda::Device::get() {
        return assert!(std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "{error}");
    }
    let workdir = Workdir::new();
    workdir.write("rows.jsonl", r#"{"prompt": "One and two?", "completion": "Three."}"#);
    let model = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fixtures/families/qwen3_next");
    let arguments = ["rollout", "rows.jsonl", "--model", model, "--device", "cuda", "--dtype", "f32", "--max-new-tokens", "30"];
    let mut command = workdir.command(&[&arguments[..], &["--temperature", "0", "--out", "run"]].concat());
    let ran = command.env("DIAGNOSE_CUDA_PROFILE", "1").output().unwrap();
    let said = String::from_utf8_lossy(&ran.stderr);
    assert!(ran.status.success(), "{said}");
    let line = said.lines().find(|line| line.starts_with("product 40 x 36 ")).unwrap_or_else(|| panic!("{said}"));
    let products: u64 = line.split_whitespace().nth(4).unwrap().parse().unwrap();
    let run: serde_json::Value = serde_json::from_str(&std::fs::read_to_string(workdir.path("run/run.json")).unwrap()).unwrap();
    let steps = run["written"]["steps"].as_u64().unwrap();
    assert!(steps >= 10, "{run}");
    assert!((6 * steps - 6..=6 * steps + 6).contains(&products), "{products} products in {steps} steps:\n{said}");
}
