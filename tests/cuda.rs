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
