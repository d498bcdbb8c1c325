//! Records what produced a result: which program, when, and on which machine. run.json and scores.json hold this record, and
//! the program knows its own folders by it.
//!
//! Version and commit affect the numbers and are therefore part of the identity of every run ([`build`]); the rest tells a reader
//! how to judge times and speeds.

use std::path::Path;
use std::time::{SystemTime, UNIX_EPOCH};

use serde::{Deserialize, Serialize};

use crate::files::{LOCK_FILE, read_json};
use crate::format::utc;

/// The record of finished work: of scores, of rollouts, or of training.
pub(crate) const RUN_FILE: &str = "run.json";
/// The record of an evaluation.
pub(crate) const SCORES_FILE: &str = "scores.json";
/// The folder of the tables of scores before they are joined.
pub(crate) const PARTS_FOLDER: &str = "parts";
/// The folder in which the parts are assembled before they count.
pub(crate) const JOINING_FOLDER: &str = ".parts.joining";
/// The answers of a rollout in progress.
pub(crate) const JOURNAL_FILE: &str = "answers.part.jsonl";
/// The answers of a finished rollout.
pub(crate) const ROLLOUTS_FILE: &str = "rollouts.jsonl";
/// The options of a training run, written at its beginning.
pub(crate) const OPTIONS_FILE: &str = "train.toml";
/// A comparison as JSON, as Markdown and as HTML.
pub(crate) const DIFF_FILES: [&str; 3] = ["diff.json", "diff.md", "diff.html"];

/// Whether the folder is that of a command of this program, finished or in progress.
pub(crate) fn is_own_folder(folder: &Path) -> bool {
    let is_there = |name: &&str| folder.join(name).exists();
    let is_own = |record: &&str| {
        let made = read_json::<Provenance>(&folder.join(record));
        made.is_ok_and(|made| made.is_some_and(|made| made.program == env!("CARGO_PKG_NAME")))
    };
    let is_begun = || is_there(&LOCK_FILE) && [PARTS_FOLDER, OPTIONS_FILE, JOURNAL_FILE].iter().any(is_there);
    [RUN_FILE, SCORES_FILE].iter().any(is_own) || is_begun() || DIFF_FILES.iter().all(is_there)
}

/// The record. A field is absent if an older program wrote the record or the system does not provide the value.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Provenance {
    /// The name of the program.
    pub program: String,
    pub version: String,
    /// The commit that the program was built from, followed by `-dirty.` and a hash if the source differed from it.
    #[serde(default)]
    pub commit: Option<String>,
    /// When the process that wrote the record began, such as `2026-01-31T23:59:59Z`.
    #[serde(default)]
    pub started: Option<String>,
    /// The processor's name.
    #[serde(default)]
    pub processor: Option<String>,
    /// The instruction set that the kernels used, such as `avx512bf16`. `None` if servers ran the model.
    #[serde(default)]
    pub kernel_level: Option<String>,
    /// The number of CPU threads.
    #[serde(default)]
    pub threads: Option<usize>,
    /// The device that ran the model.
    #[serde(default = "cpu")]
    pub device: String,
}

impl Provenance {
    /// Creates the record of this process, which began at `started`. `kernel_level` is `None` if the model ran elsewhere, since
    /// then no kernel of this process affected the numbers.
    pub fn new(started: SystemTime, kernel_level: Option<&str>, device: String) -> Provenance {
        Provenance {
            program: env!("CARGO_PKG_NAME").to_owned(),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            commit: commit().map(str::to_owned),
            started: started.duration_since(UNIX_EPOCH).ok().map(|since| utc(since.as_secs())),
            processor: processor(),
            kernel_level: kernel_level.map(str::to_owned),
            threads: Some(rayon::current_num_threads()),
            device,
        }
    }

    /// The version and commit of the program that wrote the record, in the form of [`build`].
    pub fn build(&self) -> String {
        named(&self.version, self.commit.as_deref())
    }
}

/// The commit that this program was built from; `None` if it was built outside Git and not from a crate's archive.
pub(crate) fn commit() -> Option<&'static str> {
    Some(env!("DIAGNOSE_COMMIT")).filter(|commit| !commit.is_empty())
}

/// The version and commit of this program, `0.1.0 (6221c8126b41)`: programs for which these agree give the same numbers.
pub(crate) fn build() -> String {
    named(env!("CARGO_PKG_VERSION"), commit())
}

fn named(version: &str, commit: Option<&str>) -> String {
    commit.map_or_else(|| version.to_owned(), |commit| format!("{version} ({commit})"))
}

/// The device of records that were written before there was a choice of device.
fn cpu() -> String {
    "cpu".to_owned()
}

#[cfg(target_os = "linux")]
pub(crate) fn processor() -> Option<String> {
    let text = std::fs::read_to_string("/proc/cpuinfo").ok()?;
    // On Arm, the kernel gives no processor name, but may give the board's.
    let names = ["model name", "Model", "Hardware"];
    let value = |name: &str| text.lines().find_map(|line| line.split_once(':').filter(|(key, _)| key.trim() == name));
    names.into_iter().find_map(value).map(|(_, name)| name.trim().to_owned())
}

#[cfg(target_os = "macos")]
pub(crate) fn processor() -> Option<String> {
    let output = std::process::Command::new("sysctl").args(["-n", "machdep.cpu.brand_string"]).output().ok()?;
    Some(String::from_utf8_lossy(&output.stdout).trim().to_owned()).filter(|name| !name.is_empty())
}

#[cfg(not(any(target_os = "linux", target_os = "macos")))]
pub(crate) fn processor() -> Option<String> {
    std::env::var("PROCESSOR_IDENTIFIER").ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn records_of_older_programs_can_be_read() {
        let old: Provenance = serde_json::from_str(r#"{"program":"diagnose","version":"0.0.9"}"#).unwrap();
        assert_eq!((old.build().as_str(), old.device.as_str()), ("0.0.9", "cpu"));
        let new = Provenance::new(UNIX_EPOCH, Some("avx2"), "cuda (X)".to_owned());
        assert_eq!((new.build(), new.started.as_deref()), (build(), Some("1970-01-01T00:00:00Z")));
        let again: Provenance = serde_json::from_str(&serde_json::to_string(&new).unwrap()).unwrap();
        assert_eq!(again, new);
    }

    #[test]
    fn a_checkout_knows_its_commit() {
        let is_checkout = std::path::Path::new(env!("CARGO_MANIFEST_DIR")).join(".git").exists();
        assert!(commit().is_some() || !is_checkout);
    }
}
