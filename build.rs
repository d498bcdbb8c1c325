//! Tells the program which commit it is built from, through `DIAGNOSE_COMMIT`, which `src/provenance.rs` reads.
//!
//! The value is `6221c8126b41`, or `6221c8126b41-dirty.1f2e3d4c` if the program's sources differ from the commit; the second
//! number is a hash of the difference, so that two such programs have different names. Without Git, it is the commit that
//! `cargo package` recorded, or empty if there is none.
//!
//! The price is that this crate (not its dependencies) is rebuilt after each commit and checkout, as after each edit. To avoid
//! this while working, set the environment variable `DIAGNOSE_COMMIT` to any name, which is then used as it is.

use std::path::Path;
use std::process::Command;

/// The files that determine the program; notes, tests and benchmarks do not.
const SOURCES: [&str; 5] = ["src", "data/probe", "build.rs", "Cargo.toml", "Cargo.lock"];

const VARIABLE: &str = "DIAGNOSE_COMMIT";

fn main() {
    println!("cargo::rerun-if-env-changed={VARIABLE}");
    let commit = match std::env::var(VARIABLE) {
        Ok(name) => {
            println!("cargo::rerun-if-changed=build.rs");
            Some(name)
        }
        Err(_) => from_git().or_else(from_package),
    };
    println!("cargo::rustc-env={VARIABLE}={}", commit.unwrap_or_default());
}

fn from_git() -> Option<String> {
    // This must be a repository of its own, not a folder within another repository.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if std::fs::canonicalize(top).ok()? != std::fs::canonicalize(".").ok()? {
        return None;
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    // A commit changes not HEAD but the branch that HEAD names, which may be in packed references; HEAD's log covers both.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        // Cargo would rerun this script every time for a missing file.
        if let Some(path) = git(&["rev-parse", "--git-path", name]).filter(|path| Path::new(path).exists()) {
            println!("cargo::rerun-if-changed={path}");
        }
    }
    let commit = git(&["rev-parse", "--short=12", "HEAD"])?;
    let of_sources = |arguments: &[&str]| git(&[arguments, &["--"], &SOURCES].concat());
    let mut difference = of_sources(&["diff", "--binary", "HEAD"])?;
    for file in of_sources(&["ls-files", "--others", "--exclude-standard"])?.lines() {
        difference += file;
        difference += &String::from_utf8_lossy(&std::fs::read(file).unwrap_or_default());
    }
    Some(if difference.is_empty() { commit } else { format!("{commit}-dirty.{:08x}", hash(&difference)) })
}

/// Reads the commit from the file that `cargo package` puts into the archive of a crate.
fn from_package() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let sha1 = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    Some(sha1.chars().take(12).collect())
}

/// The output of git; `None` if git is missing or fails.
fn git(arguments: &[&str]) -> Option<String> {
    let output = Command::new("git").arg("--no-optional-locks").args(arguments).output().ok()?;
    output.status.success().then(|| String::from_utf8_lossy(&output.stdout).trim_end().to_owned())
}

/// FNV-1a, folded to 32 bits.
fn hash(text: &str) -> u32 {
    let step = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0000_0100_0000_01b3);
    let hash = text.bytes().fold(0xcbf2_9ce4_8422_2325, step);
    (hash ^ (hash >> 32)) as u32
}
