//! Tells the program which commit it is built from: `DIAGNOSE_COMMIT`, which `src/provenance.rs` reads.
//!
//! `6221c8126b41`, or `6221c8126b41-dirty.1f2e3d4c` where files that make the program differ from the commit; the second number is a
//! hash of the difference, so that two such programs differ in name, too. Without git the commit that `cargo package` writes down
//! is taken, and without that one none.
//!
//! What it costs: the crate (not what it depends on) is built again after each commit and checkout, as after each edit. Who does not
//! want that while working sets the environment variable `DIAGNOSE_COMMIT` to a name of their own, which is taken as it is.

use std::path::Path;
use std::process::Command;

/// What makes the program; notes, tests and benchmarks do not.
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
    // A checkout of its own, and not a folder within somebody else's.
    let top = git(&["rev-parse", "--show-toplevel"])?;
    if std::fs::canonicalize(top).ok()? != std::fs::canonicalize(".").ok()? {
        return None;
    }
    for source in SOURCES {
        println!("cargo::rerun-if-changed={source}");
    }
    // A commit leaves HEAD as it is and moves the branch that it names, which a pack of references may hold; the log knows of both.
    let branch = git(&["symbolic-ref", "--quiet", "HEAD"]);
    for name in ["HEAD", "logs/HEAD"].into_iter().chain(branch.as_deref()) {
        // Cargo would run this again and again for a file that is missing.
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

/// The file that `cargo package` puts into the archive of a crate.
fn from_package() -> Option<String> {
    let text = std::fs::read_to_string(".cargo_vcs_info.json").ok()?;
    let sha1 = text.split("\"sha1\"").nth(1)?.split('"').nth(1)?;
    Some(sha1.chars().take(12).collect())
}

/// What git prints; `None` where there is no git or it fails.
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
