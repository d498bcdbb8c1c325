//! Tests which of NVIDIA's libraries are used and the errors without them, on the emulated GPU, whose driver can have any version.

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

/// A driver for CUDA 12 uses the libraries of CUDA 12, even beside those of 13; without any for 12, the error names what to install.
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

/// The host does not see which experts are chosen: the effect of a damaged router is detected where logits are read.
#[test]
fn a_damaged_router_is_reported_by_name_on_a_gpu() {
    if let Err(error) = diagnose::kernels::cuda::Device::get() {
        return assert!(std::env::var_os("DIAGNOSE_DEVICE_TESTS").is_none(), "{error}");
    }
    let workdir = Workdir::new();
    workdir.write("rows.jsonl", r#"{"prompt": "One and two?", "completion": "Three."}"#);
    let fixture = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/families/qwen3_moe");
    std::fs::create_dir(workdir.path("model")).unwrap();
    for name in ["config.json", "tokenizer.json"] {
        std::fs::copy(fixture.join(name), workdir.path("model").join(name)).unwrap();
    }
    // In the last layer, the weights of one expert's logit in bf16.
    let mut bytes = std::fs::read(fixture.join("model.safetensors")).unwrap();
    let header_end = 8 + u64::from_le_bytes(bytes[..8].try_into().unwrap()) as usize;
    let header: serde_json::Value = serde_json::from_slice(&bytes[8..header_end]).unwrap();
    let begin = header_end + header["model.layers.2.mlp.gate.weight"]["data_offsets"][0].as_u64().unwrap() as usize;
    bytes[begin..begin + 2].copy_from_slice(&[0xff; 2]);
    workdir.write("model/model.safetensors", bytes);
    let common = ["rows.jsonl", "--model", "model", "--device", "cuda", "--out"];
    let score = [&common[..], &["score", "--no-view"]].concat();
    let write =
        |name, temperature| [&["rollout"], &common[..], &[name, "--max-new-tokens", "3", "--temperature", temperature]].concat();
    for arguments in [score, write("largest", "0"), write("drawn", "1")] {
        let ran = workdir.run(&arguments);
        assert_ne!(ran.code, Some(0), "{arguments:?}: {}", ran.stderr);
        let said = &ran.stderr;
        assert!(
            said.contains("the model's logits are not numbers") && said.contains("weights are damaged"),
            "{arguments:?}: {said}"
        );
    }
}
