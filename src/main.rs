//! Parse, run, print the error chain, set the exit code.

use std::process::ExitCode;

/// Scoring allocates and frees buffers of some megabytes all the time; the system's allocator gives them back to the kernel
/// and faults them in again each time.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

fn main() -> ExitCode {
    match diagnose::cli::run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => ExitCode::from(diagnose::cli::fail(&error)),
    }
}
