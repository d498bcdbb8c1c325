//! The jobs that the command line asks for: what the user wants -> files opened and checked, work done, a folder written.
//!
//! Only these own run folders; what they put together stands in the rooms above.
//!
//! ```text
//! score/     a data set -> tables, figures, report
//! train/     a data set -> a fine-tuned model
//! eval.rs    tasks -> scores
//! diff.rs    two of those -> what changed
//! ```

pub mod diff;
pub mod eval;
pub mod score;
pub mod train;

/// The high-water mark of this process's resident set, where the kernel tells (Linux).
pub fn peak_memory_bytes() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:"))?;
    let kibibytes: u64 = line.trim().strip_suffix("kB")?.trim().parse().ok()?;
    Some(kibibytes * 1024)
}
