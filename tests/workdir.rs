//! Provides a temporary folder to run the program in, and captures its output.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

pub(crate) struct Workdir {
    folder: tempfile::TempDir,
}

impl Workdir {
    pub(crate) fn new() -> Workdir {
        Workdir { folder: tempfile::tempdir().unwrap() }
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    pub(crate) fn write(&self, name: &str, bytes: impl AsRef<[u8]>) -> PathBuf {
        let path = self.path(name);
        std::fs::write(&path, bytes).unwrap();
        path
    }

    /// The program with this folder as its own, no colours, no terminal.
    pub(crate) fn command(&self, arguments: &[&str]) -> Command {
        let mut command = Command::new(env!("CARGO_BIN_EXE_diagnose"));
        command.args(arguments).current_dir(self.folder.path()).stdin(Stdio::null()).env("NO_COLOR", "1");
        command
    }

    pub(crate) fn run(&self, arguments: &[&str]) -> Ran {
        Ran::of(self.command(arguments).output().unwrap())
    }
}

pub(crate) struct Ran {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

impl Ran {
    pub(crate) fn of(output: Output) -> Ran {
        Ran {
            code: output.status.code(),
            stdout: String::from_utf8_lossy(&output.stdout).into_owned(),
            stderr: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }

    /// Panics with everything the program said unless it succeeded.
    #[track_caller]
    pub(crate) fn ok(self) -> Ran {
        assert_eq!(self.code, Some(0), "stdout:\n{}\nstderr:\n{}", self.stdout, self.stderr);
        self
    }

    #[track_caller]
    pub(crate) fn json(&self) -> serde_json::Value {
        serde_json::from_str(&self.stdout).unwrap_or_else(|error| panic!("{error}: {}", self.stdout))
    }
}

/// Says that a test is skipped for want of something. In CI, where nobody reads what a passing test says, it fails instead, unless
/// `DIAGNOSE_TESTS_WITHOUT` names the thing among those that the machine is known to lack: `shared,gemma`.
pub(crate) fn absent(thing: &str, why: &str) {
    let is_ci = std::env::var("CI").is_ok_and(|value| !["", "0", "false"].contains(&value.as_str()));
    let without = std::env::var("DIAGNOSE_TESTS_WITHOUT").unwrap_or_default();
    assert!(
        may_lack(thing, is_ci, &without),
        "{why}: CI must not pass for want of it (DIAGNOSE_TESTS_WITHOUT={thing} allows it)"
    );
    println!("skipped: {why}");
}

fn may_lack(thing: &str, is_ci: bool, without: &str) -> bool {
    !is_ci || without.split(',').any(|known| known.trim() == thing)
}

/// A file of the development data beside the checkout; prints why the test is skipped where there is none.
pub(crate) fn shared(name: &str) -> Option<PathBuf> {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared").join(name);
    if !path.exists() {
        absent("shared", &format!("there is no ../shared/{name}"));
        return None;
    }
    Some(path)
}

/// The default model if an earlier run has fetched it; prints why the test is skipped if not.
pub(crate) fn default_model() -> Option<PathBuf> {
    let variable = |name: &str| std::env::var_os(name).map(PathBuf::from);
    let cache = variable("DIAGNOSE_CACHE").or_else(|| {
        let base = variable("XDG_CACHE_HOME").or_else(|| variable("HOME").map(|home| home.join(".cache")));
        base.map(|base| base.join("diagnose"))
    });
    let path = cache.map(|cache| cache.join("SmolLM2-135M-Instruct.Q4_1.gguf")).filter(|path| path.exists());
    if path.is_none() {
        absent("model", "the default model is not in the cache; `cargo run --release -- data/demo.jsonl` fetches it");
    }
    path
}

#[test]
fn what_is_missing_fails_in_ci_unless_it_is_known() {
    assert!(may_lack("shared", false, "") && may_lack("shared", true, "gemma, shared"));
    assert!(!may_lack("shared", true, "") && !may_lack("shared", true, "gemma"));
}
